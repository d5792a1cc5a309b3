//! `concat`: operands one after another along an axis.

use super::{Attributes, Meaning, OpError, Operator, check_axes};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes};
use crate::scalar::{Code, Constant, Less, Scalar, Source};

/// The operands one after another along an axis; their other dims are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Concat {
    /// The axis.
    pub axis: usize,
}

impl Concat {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Concat, OpError> {
        Ok(Concat { axis: a.size("axis")? })
    }
}

impl Operator for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let first = *inputs.first().ok_or_else(|| OpError::new("takes at least one operand"))?;
        check_axes(&[self.axis], first.rank())?;
        let mut dims = first.dims.clone();
        for t in &inputs[1..] {
            let same = |(n, (a, b)): (usize, (&Expr, &Expr))| n == self.axis || a == b;
            if t.dtype != first.dtype || t.rank() != dims.len() || !t.dims.iter().zip(&dims).enumerate().all(same) {
                return Err(OpError::new(format!("{t} cannot follow {first} along axis {}", self.axis)));
            }
            dims[self.axis] = dims[self.axis].add(&t.dims[self.axis]);
        }
        Ok(vec![TensorType::new(first.dtype, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let at = axes(out.rank());
        let mut start = out.dims[self.axis].clone();
        let mut body = Code::new();
        let mut result = None;
        // From the last operand to the first: `guard[i < end of this one](this one, those after it)`.
        for (n, t) in inputs.iter().enumerate().rev() {
            let end = start.clone();
            start = start.sub(&t.dims[self.axis]);
            let mut index = at.clone();
            index[self.axis] = index[self.axis].sub(&start);
            let load = body.load_at(Source::Input(n), index, out.dtype);
            // Both ends are guarded: the part of a guard that does not hold may still be evaluated.
            let load = if n == 0 {
                load
            } else {
                let zero = body.constant(Constant::int(out.dtype, 0));
                let before = Less { left: start.sub(&Expr::from(1i64)), right: at[self.axis].clone() };
                body.push(Scalar::Guard(vec![before], load, zero))?
            };
            result = Some(match result {
                None => load,
                Some(rest) => {
                    body.push(Scalar::Guard(vec![Less { left: at[self.axis].clone(), right: end }], load, rest))?
                }
            });
        }
        if let Some(r) = result {
            body.set_result(r);
        }
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
