//! `GridSample`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("GridSample", 16, &["mode", "padding_mode", "align_corners"], grid_sample)];

/// Before version 20 the modes are called bilinear and bicubic.
fn grid_sample(cx: &mut Context) -> Result<Outputs, Failure> {
    let inputs = [cx.input(0)?, cx.input(1)?];
    let mode = match cx.node.string_or("mode", "linear")? {
        "linear" | "bilinear" => "linear",
        "cubic" | "bicubic" => "cubic",
        "nearest" => "nearest",
        other => return Err(cx.node.attribute_value("mode", format!("{other:?} is none of ONNX's")).into()),
    };
    let a = Attributes::new()
        .with("mode", mode)
        .with("padding", cx.node.string_or("padding_mode", "zeros")?)
        .with("align_corners", cx.node.bool_or("align_corners", false)?);
    Ok(cx.host("grid_sample", a, &inputs)?.into())
}
