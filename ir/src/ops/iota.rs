//! `iota`: positions along an axis.

use super::{Attributes, Meaning, OpError, Operator, check_axes, operands};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis};
use crate::scalar::Code;

/// `out[i] = i[axis]`, as i64; takes no operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Iota {
    /// Dims of the result.
    pub dims: Vec<Expr>,
    /// The axis that is counted along.
    pub axis: usize,
}

impl Iota {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Iota, OpError> {
        Ok(Iota { dims: a.exprs("dims")?, axis: a.size("axis")? })
    }
}

impl Operator for Iota {
    fn name(&self) -> &'static str {
        "iota"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("dims", self.dims.as_slice()).with("axis", self.axis)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [] = operands(inputs)?;
        check_axes(&[self.axis], self.dims.len())?;
        Ok(vec![TensorType::new(DType::I64, self.dims.clone())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let mut body = Code::new();
        let e = body.index(Expr::from(axis(self.axis)));
        body.set_result(e);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
