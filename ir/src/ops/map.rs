//! `map`: scalar code applied elementwise, with broadcasting.

use super::{Attributes, Meaning, OpError, Operator};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis};
use crate::scalar::{Code, Scalar, Source};

/// `out[i] = body(in0[i], in1[i], ...)`; operands broadcast by NumPy's rule (aligned at the last axis, extent 1 repeats).
#[derive(Clone, Debug, PartialEq)]
pub struct Map {
    /// Scalar code over arguments `a0`, `a1`, ...; only arguments, constants and operations.
    pub body: Code,
}

impl Map {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Map, OpError> {
        Ok(Map { body: a.code("body")? })
    }
}

/// The common dims of operands by NumPy's broadcasting rule.
///
/// # Errors
/// Two extents differ and neither is 1; a symbol against a number other than 1 counts as different.
pub fn broadcast_dims(shapes: &[&[Expr]]) -> Result<Vec<Expr>, OpError> {
    let rank = shapes.iter().map(|s| s.len()).max().unwrap_or(0);
    let mut dims = vec![Expr::from(1i64); rank];
    for shape in shapes {
        for (d, slot) in shape.iter().rev().zip(dims.iter_mut().rev()) {
            if slot.as_const() == Some(1) {
                *slot = d.clone();
            } else if d.as_const() != Some(1) && d != slot {
                let text: Vec<String> = shapes.iter().map(|s| format!("[{}]", crate::text::Commas(s.iter()))).collect();
                return Err(OpError::new(format!("shapes {} do not broadcast", text.join(", "))));
            }
        }
    }
    Ok(dims)
}

/// The index at which an operand of dims `from` is read for element `i0, i1, ...` of a result with `rank` axes.
pub(super) fn broadcast_index(from: &[Expr], rank: usize) -> Vec<Expr> {
    from.iter()
        .enumerate()
        .map(|(n, d)| match d.as_const() {
            Some(1) => Expr::default(),
            _ => Expr::from(axis(n + rank - from.len())),
        })
        .collect()
}

impl Operator for Map {
    fn name(&self) -> &'static str {
        "map"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("body", &self.body)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        for (n, dtype) in self.body.arg_types() {
            match inputs.get(n) {
                Some(t) if t.dtype == dtype => {}
                Some(t) => return Err(OpError::new(format!("operand {n} is {}, its code wants {dtype}", t.dtype))),
                None => return Err(OpError::new(format!("its code reads operand {n}, which is not there"))),
            }
        }
        if self.body.nodes().any(|(_, n)| matches!(n, Scalar::Load(..) | Scalar::Index(_) | Scalar::Guard(..))) {
            return Err(OpError::new("its code may only use arguments, constants and operations"));
        }
        let shapes: Vec<&[Expr]> = inputs.iter().map(|t| t.dims.as_slice()).collect();
        Ok(vec![TensorType::new(self.body.result_type(), broadcast_dims(&shapes)?)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let mut body = Code::new();
        let result = body.inline(&self.body, &mut |code, node, dtype| {
            Ok(match node {
                Scalar::Arg(n) => {
                    inputs.get(*n).map(|t| code.load_at(Source::Input(*n), broadcast_index(&t.dims, out.rank()), dtype))
                }
                _ => None,
            })
        })?;
        body.set_result(result);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
