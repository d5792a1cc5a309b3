//! `arg_reduce`: where along an axis the greatest or least element is.

use super::Function;
use super::element::{NAN, keys};
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
    let mut result = vec![0i64; outer * inner];
    let (mut row, mut best) = (Vec::new(), Vec::new());
    // The greater the key, the better; of equals the first wins, but where it is to be the last.
    let wins = |key: i64, best: i64| key > best || last && key == best && !(x.dtype().is_float() && key == NAN);
    for o in 0..outer {
        let result = &mut result[o * inner..][..inner];
        if inner == 1 {
            keys(x, o * extent, extent, &mut row)?;
            turn(x.dtype(), max, &mut row);
            let most = row.iter().copied().max();
            let same = |key: &i64| Some(*key) == most;
            let first = !last || x.dtype().is_float() && most == Some(NAN);
            let at = if first { row.iter().position(same) } else { row.iter().rposition(same) };
            result.copy_from_slice(&[at.unwrap_or(0) as i64]);
            continue;
        }
        for k in 0..extent {
            keys(x, (o * extent + k) * inner, inner, &mut row)?;
            turn(x.dtype(), max, &mut row);
            if k == 0 {
                best.clone_from(&row);
            }
            for ((&key, best), at) in row.iter().zip(&mut best).zip(result.iter_mut()) {
                if wins(key, *best) {
                    (*best, *at) = (key, k as i64);
                }
            }
        }
    }
    Tensor::from_i64(&shape, &result).map(|t| vec![t]).map_err(|e| OpError::new(e.to_string()))
}

/// Turns the order round where the least element wins; a NaN still does before all others.
fn turn(dtype: DType, max: bool, keys: &mut [i64]) {
    if !max {
        let is_nan = |key: i64| dtype.is_float() && key == NAN;
        keys.iter_mut().for_each(|key| *key = if is_nan(*key) { NAN } else { !*key });
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn equals_nan_and_every_axis() {
        let nan = f32::NAN;
        let x = [1., 3., 3., 2., -0., 0., nan, 5., nan, -7., -7., f32::NEG_INFINITY];
        let of = |shape: [usize; 2], axis: usize, max: bool, last: bool| {
            let x = Tensor::from_f32(&shape, &x).unwrap();
            let a = Attributes::new().with("axis", axis).with("keep", false).with("max", max).with("last", last);
            run("arg_reduce", a, &[x])[0].to_i64().unwrap()
        };
        assert_eq!(of([3, 4], 1, true, false), [1, 2, 0]);
        assert_eq!(of([3, 4], 1, true, true), [2, 2, 0]);
        assert_eq!(of([3, 4], 1, false, false), [0, 2, 0]);
        assert_eq!(of([4, 3], 1, false, false), [0, 1, 0, 2]);
        assert_eq!(of([4, 3], 1, false, true), [0, 2, 0, 2]);
        // Down the columns [1, -0, nan], [3, 0, -7], [3, nan, -7], [2, 5, -inf].
        assert_eq!(of([3, 4], 0, true, false), [2, 0, 1, 1]);
        assert_eq!(of([3, 4], 0, false, true), [2, 2, 1, 2]);
        let bytes: Vec<u8> = [7, u64::MAX, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
        let x = Tensor::new(DType::U64, vec![4], bytes).unwrap();
        let of = |max: bool, last: bool| {
            let a = Attributes::new().with("axis", 0usize).with("keep", false).with("max", max).with("last", last);
            run("arg_reduce", a, std::slice::from_ref(&x))[0].to_i64().unwrap()
        };
        assert_eq!([of(true, true), of(false, false), of(false, true)], [[1], [2], [3]]);
    }
}
