//! `broadcast`: repetition along axes of extent 1.

use super::map::{broadcast_dims, broadcast_index};
use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::Nest;
use crate::scalar::{Code, Source};

/// The operand repeated to dims that it broadcasts to by NumPy's rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Broadcast {
    /// Dims of the result.
    pub dims: Vec<Expr>,
}

impl Broadcast {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Broadcast, OpError> {
        Ok(Broadcast { dims: a.exprs("dims")? })
    }
}

impl Operator for Broadcast {
    fn name(&self) -> &'static str {
        "broadcast"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("dims", self.dims.as_slice())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        if broadcast_dims(&[&x.dims, &self.dims])? != self.dims {
            return Err(OpError::new(format!("{x} does not broadcast to [{}]", crate::text::Commas(&self.dims))));
        }
        Ok(vec![TensorType::new(x.dtype, self.dims.clone())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), broadcast_index(&inputs[0].dims, out.rank()), out.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
