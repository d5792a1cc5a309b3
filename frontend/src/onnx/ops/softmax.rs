//! `Softmax` and `LogSoftmax`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Softmax;
use kiln_ir::Expr;

pub(super) const OPS: &[Spec] = &[
    onnx("Softmax", 1, &["axis"], |cx| along(cx, |cx, x, axis| softmax(cx, x, axis, false))),
    onnx("LogSoftmax", 1, &["axis"], |cx| along(cx, |cx, x, axis| softmax(cx, x, axis, true))),
];

/// Computed in the input's own type, as ONNX's definition by other operators is.
pub(super) fn softmax(cx: &mut Context, x: ValueId, axis: usize, log: bool) -> Result<ValueId, Failure> {
    cx.add(Softmax { axis, log }, &[x])
}

/// Applies `f` along the axis; before version 13 the axis and all after it are one.
pub(super) fn along(
    cx: &mut Context,
    f: impl FnOnce(&mut Context, ValueId, usize) -> Result<ValueId, Failure>,
) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    if cx.opset() >= 13 {
        let axis = cx.axis_attribute(-1, cx.rank(x))?;
        return Ok(f(cx, x, axis)?.into());
    }
    let dims = cx.dims(x);
    let axis = cx.axis_attribute(1, dims.len())?;
    if axis + 1 == dims.len() {
        return Ok(f(cx, x, axis)?.into());
    }
    let product = |dims: &[Expr]| dims.iter().fold(Expr::from(1i64), |n, d| n.mul(d));
    let flat = cx.reshape(x, vec![product(&dims[..axis]), product(&dims[axis..])])?;
    let result = f(cx, flat, 1)?;
    Ok(cx.reshape(result, dims)?.into())
}
