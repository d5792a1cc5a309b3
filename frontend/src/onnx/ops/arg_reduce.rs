//! `ArgMax` and `ArgMin`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Attributes;

const ATTRIBUTES: &[&str] = &["axis", "keepdims", "select_last_index"];

pub(super) const OPS: &[Spec] = &[
    onnx("ArgMax", 1, ATTRIBUTES, |cx| arg(cx, true)),
    onnx("ArgMin", 1, ATTRIBUTES, |cx| arg(cx, false)),
];

fn arg(cx: &mut Context, max: bool) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axis = cx.axis_attribute(0, cx.rank(x))?;
    let (keep, last) = (cx.node.bool_or("keepdims", true)?, cx.node.bool_or("select_last_index", false)?);
    Ok(arg_reduce(cx, x, axis, keep, max, last)?.into())
}

fn arg_reduce(cx: &mut Context, x: ValueId, axis: usize, keep: bool, max: bool, last: bool) -> Result<ValueId, Failure> {
    let attributes = Attributes::new().with("axis", axis).with("keep", keep).with("max", max).with("last", last);
    let made = cx.host("arg_reduce", attributes, &[x])?;
    made.first().copied().ok_or_else(|| Failure::unsupported("arg_reduce has no result"))
}
