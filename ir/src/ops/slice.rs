//! `slice`: a regular selection along every axis.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis};
use crate::scalar::{Code, Source};

/// `out[i] = in[start + step * i]` along every axis; steps may be negative.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// First index along each axis.
    pub starts: Vec<Expr>,
    /// Step along each axis, not 0.
    pub steps: Vec<i64>,
    /// Dims of the result.
    pub dims: Vec<Expr>,
}

impl Slice {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Slice, OpError> {
        Ok(Slice { starts: a.exprs("starts")?, steps: a.ints("steps")?, dims: a.exprs("dims")? })
    }
}

impl Operator for Slice {
    fn name(&self) -> &'static str {
        "slice"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
            .with("starts", self.starts.as_slice())
            .with("steps", self.steps.as_slice())
            .with("dims", self.dims.as_slice())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        let rank = x.rank();
        if self.starts.len() != rank || self.steps.len() != rank || self.dims.len() != rank || self.steps.contains(&0) {
            return Err(OpError::new(format!("starts, steps and dims must have {rank} entries, no step may be 0")));
        }
        for n in 0..rank {
            // First and last index, where both are known, must be inside.
            let last = self.dims[n].sub(&Expr::from(1i64)).scale(self.steps[n]).add(&self.starts[n]);
            if let (Some(a), Some(b), Some(d)) = (self.starts[n].as_const(), last.as_const(), x.dims[n].as_const())
                && self.dims[n].as_const() != Some(0)
                && (a.min(b) < 0 || a.max(b) >= d)
            {
                return Err(OpError::new(format!("axis {n}: indices {a}..={b} are outside 0..{d}")));
            }
        }
        if self.dims.iter().any(|d| d.as_const().is_some_and(|d| d < 0)) {
            return Err(OpError::new("a dim is negative"));
        }
        Ok(vec![TensorType::new(x.dtype, self.dims.clone())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let at = |n: usize| Expr::from(axis(n)).scale(self.steps[n]).add(&self.starts[n]);
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), (0..out.rank()).map(at).collect(), out.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
