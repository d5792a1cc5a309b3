//! `Conv`: a pad, a convolution without padding, and the bias.

use super::sliding::Window;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure};
use kiln_ir::Constant;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Conv, Elements};

pub(super) const OPS: &[Spec] =
    &[onnx("Conv", 1, &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"], |cx| {
        let (x, w) = (cx.input(0)?, cx.input(1)?);
        let zero = Constant::int(cx.dtype(x), 0);
        let y = convolve(cx, x, w, zero)?;
        let bias = cx.optional(2)?;
        Ok(biased(cx, y, bias)?.into())
    })];

/// The number of groups.
pub(super) fn groups(cx: &Context) -> Result<usize, Failure> {
    let group = cx.node.int_or("group", 1)?;
    let fail = || cx.node.attribute_value("group", format!("{group} is out of range"));
    Ok(usize::try_from(group).ok().filter(|g| (1..=1 << 31).contains(g)).ok_or_else(fail)?)
}

/// The convolution that the node's attributes describe, padded with `zero`.
pub(super) fn convolve(cx: &mut Context, x: ValueId, w: ValueId, zero: Constant) -> Result<ValueId, Failure> {
    if cx.rank(x) < 2 || cx.rank(w) != cx.rank(x) {
        return Err(Failure::invalid(format!("{} is no kernel for {}", cx.ty(w), cx.ty(x))));
    }
    let kernel = cx.static_dims(w)?.split_off(2);
    let window = Window::read(cx, &cx.dims(x)[2..], Some(kernel))?;
    let groups = groups(cx)?;
    let x = window.pad(cx, x, zero)?;
    cx.add(Conv { strides: window.strides, dilations: window.dilations, groups, elements: Elements::Numbers }, &[x, w])
}

/// The bias along axis 1 added.
pub(super) fn biased(cx: &mut Context, y: ValueId, bias: Option<ValueId>) -> Result<ValueId, Failure> {
    let Some(bias) = bias else { return Ok(y) };
    let dims = cx.dims(y);
    let bias = cx.along(bias, 1, dims.len())?;
    let sum = cx.map(&[y, bias], |b, a| b.add(a[0], a[1]))?;
    if cx.dims(sum) != dims {
        return Err(Failure::invalid(format!("the bias {} does not fit {}", cx.ty(bias), cx.ty(y))));
    }
    Ok(sum)
}
