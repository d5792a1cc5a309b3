//! What several importers share: constants, picking along an axis, conversions that do not saturate.
//!
//! Invariant: nothing here knows an operator.

use crate::onnx::import::{Body, Context, Failure, S};
use crate::onnx::tensor::element_type;
use kiln_ir::graph::ValueId;
use kiln_ir::ops;
use kiln_ir::{Constant, DType, Expr, Tensor};

/// An f64 as an attribute of a host op.
pub(super) fn real(value: f64) -> Constant {
    Constant::float(DType::F64, value)
}

/// A constant of floats, rounded to the type.
pub(super) fn floats(cx: &mut Context, dtype: DType, shape: &[usize], values: &[f64]) -> Result<ValueId, Failure> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    values.iter().for_each(|&v| Constant::float(dtype, v).store(&mut bytes));
    Ok(cx.constant(Tensor::new(dtype, shape.to_vec(), bytes)?))
}

/// A tensor of one repeated number.
pub(super) fn filled(cx: &mut Context, dtype: DType, value: f64, dims: Vec<Expr>) -> Result<ValueId, Failure> {
    let scalar = cx.float(dtype, value)?;
    cx.broadcast(scalar, dims)
}

/// Elements along an axis by constant positions, which must be in range. Regular positions become views.
pub(super) fn pick(cx: &mut Context, x: ValueId, axis: usize, positions: &[usize]) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let regular = |step: usize, first: usize| positions.iter().enumerate().all(|(i, &p)| p == first + i * step);
    if let Some(extent) = dims[axis].as_size() {
        let first = positions.first().copied().unwrap_or(0);
        let step = positions.get(1).and_then(|&p| p.checked_sub(first)).filter(|&s| s > 0).unwrap_or(1);
        if positions.len() == extent && regular(1, 0) {
            return Ok(x);
        }
        if regular(step, first) {
            let (mut starts, mut steps) = (vec![Expr::default(); dims.len()], vec![1; dims.len()]);
            let mut cut = dims;
            starts[axis] = Expr::from(first);
            steps[axis] = i64::try_from(step).unwrap_or(i64::MAX);
            cut[axis] = Expr::from(positions.len());
            return cx.add(ops::Slice { starts, steps, dims: cut }, &[x]);
        }
        let times = positions.len().checked_div(extent).unwrap_or(0);
        if times * extent == positions.len() && positions.iter().enumerate().all(|(i, &p)| p == i / times) {
            return repeat(cx, x, axis, times);
        }
    }
    let positions: Vec<i64> = positions.iter().map(|&p| i64::try_from(p).unwrap_or(i64::MAX)).collect();
    let indices = cx.int_vector(&positions)?;
    cx.add(ops::Gather { axis }, &[x, indices])
}

/// Every element along an axis `times` times.
pub(super) fn repeat(cx: &mut Context, x: ValueId, axis: usize, times: usize) -> Result<ValueId, Failure> {
    let (mut split, mut whole) = (cx.dims(x), cx.dims(x));
    split.insert(axis + 1, Expr::from(1i64));
    let x = cx.reshape(x, split.clone())?;
    split[axis + 1] = Expr::from(times);
    let x = cx.broadcast(x, split)?;
    whole[axis] = whole[axis].mul(&Expr::from(times));
    cx.reshape(x, whole)
}

/// The first `count` elements along an axis.
pub(super) fn first(cx: &mut Context, x: ValueId, axis: usize, count: Expr) -> Result<ValueId, Failure> {
    let mut dims = cx.dims(x);
    if dims[axis] == count {
        return Ok(x);
    }
    dims[axis] = count;
    let rank = dims.len();
    cx.add(ops::Slice { starts: vec![Expr::default(); rank], steps: vec![1; rank], dims }, &[x])
}

/// Positions along an axis of a tensor with `rank` axes, as `[1, .., extent, .., 1]`.
pub(super) fn positions(cx: &mut Context, extent: Expr, axis: usize, rank: usize) -> Result<ValueId, Failure> {
    let mut dims = vec![Expr::from(1i64); rank];
    dims[axis] = extent;
    cx.add(ops::Iota { dims, axis }, &[])
}

/// The element type that an attribute names; nothing where it is absent or 0.
pub(super) fn type_attribute(cx: &Context, name: &str) -> Result<Option<DType>, Failure> {
    let number = cx.node.int_or(name, 0)?;
    if number == 0 {
        return Ok(None);
    }
    let number = i32::try_from(number).map_err(|_| cx.node.attribute_value(name, format!("{number} is no type")))?;
    match element_type(number) {
        Ok((_, dtype)) => Ok(Some(dtype)),
        Err(e) if e.is_unsupported() => Err(Failure::unsupported(e.to_string())),
        Err(e) => Err(cx.node.attribute_value(name, e.to_string()).into()),
    }
}

/// A conversion of an f32 to a float type of 8 bits in which what is too large becomes infinite, or NaN where the type has no
/// infinity (ONNX `Cast` with `saturate` = 0).
pub(super) fn cast_unsaturated(b: &mut Body, to: DType, x: S) -> S {
    // The least magnitude that rounds beyond the greatest finite value, and what that becomes.
    let (limit, inclusive, beyond) = match to {
        DType::F8E4M3FN => (464.0, false, f64::NAN),
        DType::F8E4M3FNUZ => (248.0, true, f64::NAN),
        DType::F8E5M2 => (61440.0, true, f64::INFINITY),
        DType::F8E5M2FNUZ => (61440.0, true, f64::NAN),
        _ => return b.cast(to, x),
    };
    let cast = b.cast(to, x);
    let size = b.abs(x);
    let limit = b.lit(x, limit);
    let over = if inclusive { b.ge(size, limit) } else { b.gt(size, limit) };
    let zero = b.lit(x, 0.0);
    let negative = b.lt(x, zero);
    let (plus, minus) = (b.lit(cast, beyond), b.lit(cast, -beyond));
    let beyond = b.select(negative, minus, plus);
    b.select(over, beyond, cast)
}
