//! `transpose`: axes in another order.

use super::{Attributes, Meaning, OpError, Operator, check_axes, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis};
use crate::scalar::{Code, Source};

/// Axis `n` of the result is axis `perm[n]` of the operand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transpose {
    /// A permutation of the operand's axes.
    pub perm: Vec<usize>,
}

impl Transpose {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Transpose, OpError> {
        Ok(Transpose { perm: a.sizes("perm")? })
    }
}

impl Operator for Transpose {
    fn name(&self) -> &'static str {
        "transpose"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("perm", self.perm.as_slice())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        check_axes(&self.perm, x.rank())?;
        if self.perm.len() != x.rank() {
            return Err(OpError::new(format!("{:?} does not permute {} axes", self.perm, x.rank())));
        }
        Ok(vec![TensorType::new(x.dtype, self.perm.iter().map(|&n| x.dims[n].clone()).collect())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let mut index = vec![Expr::default(); out.rank()];
        for (n, &from) in self.perm.iter().enumerate() {
            index[from] = Expr::from(axis(n));
        }
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), index, out.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
