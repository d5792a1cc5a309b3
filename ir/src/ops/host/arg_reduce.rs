//! `arg_reduce`: where along an axis the greatest or least element is.

use super::Function;
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::tensor::Tensor;

/// Attributes: `axis`, `keep` (the axis stays with extent 1), `max` (else min), `last` (of equals the last, else the first).
/// The result is i64. A NaN counts as both greatest and least, the first one wins.
pub(super) const FUNCTION: Function = Function { name: "arg_reduce", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let (axis, keep) = (a.size("axis")?, a.bool("keep")?);
    a.bool("max")?;
    a.bool("last")?;
    check_axes(&[axis], x.rank())?;
    if !x.dtype.is_float() && !x.dtype.is_int() {
        return Err(OpError::new(format!("wants numbers, not {}", x.dtype)));
    }
    let mut dims = x.dims.clone();
    if dims[axis].as_const() == Some(0) {
        return Err(OpError::new("the axis is empty"));
    }
    if keep {
        dims[axis] = Expr::from(1i64);
    } else {
        dims.remove(axis);
    }
    Ok(vec![TensorType::new(DType::I64, dims)])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (axis, max, last) = (a.size("axis")?, a.bool("max")?, a.bool("last")?);
    let x = &inputs[0];
    let ty = TensorType::of(x.dtype(), x.shape());
    let shape = infer(a, &[&ty])?[0].shape().unwrap_or_default();
    let extent = x.shape()[axis];
    let inner: usize = x.shape()[axis + 1..].iter().product();
    let outer: usize = x.shape()[..axis].iter().product();
    let mut result = Vec::with_capacity(outer * inner);
    for o in 0..outer {
        for i in 0..inner {
            let at = |k: usize| (o * extent + k) * inner + i;
            // Integers are compared exactly, floats as f64, which holds all of them.
            let better = |k: usize, best: usize| {
                let order = if x.dtype().is_int() {
                    let get = |k| crate::scalar::Constant::load(x.dtype(), x.bytes(), at(k)).map_or(0, |c| c.bits);
                    match x.dtype().class() {
                        crate::Class::Unsigned => Some(get(k).cmp(&get(best))),
                        _ => Some((get(k) as i64).cmp(&(get(best) as i64))),
                    }
                } else {
                    let get = |k| crate::semantics::load_f64(x.dtype(), x.bytes(), at(k));
                    match (get(k).is_nan(), get(best).is_nan()) {
                        (_, true) => return false,
                        (true, false) => return true,
                        (false, false) => get(k).partial_cmp(&get(best)),
                    }
                };
                match order {
                    Some(std::cmp::Ordering::Equal) => last,
                    Some(std::cmp::Ordering::Greater) => max,
                    Some(std::cmp::Ordering::Less) => !max,
                    None => false,
                }
            };
            let best = (1..extent).fold(0, |best, k| if better(k, best) { k } else { best });
            result.push(best as i64);
        }
    }
    Tensor::from_i64(&shape, &result).map(|t| vec![t]).map_err(|e| OpError::new(e.to_string()))
}
