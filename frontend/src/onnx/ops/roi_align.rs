//! `RoiAlign`.

use super::support::real;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;

const ATTRIBUTES: &[&str] =
    &["mode", "output_height", "output_width", "sampling_ratio", "spatial_scale", "coordinate_transformation_mode"];

pub(super) const OPS: &[Spec] = &[onnx("RoiAlign", 10, ATTRIBUTES, roi_align)];

/// Version 16 adds `coordinate_transformation_mode`; what earlier ones did is called `output_half_pixel` there.
fn roi_align(cx: &mut Context) -> Result<Outputs, Failure> {
    let inputs = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let default = if cx.opset() >= 16 { "half_pixel" } else { "output_half_pixel" };
    let half_pixel = match cx.node.string_or("coordinate_transformation_mode", default)? {
        "half_pixel" => true,
        "output_half_pixel" => false,
        other => return Err(cx.node.attribute_value("coordinate_transformation_mode", format!("{other:?}")).into()),
    };
    let max = match cx.node.string_or("mode", "avg")? {
        "avg" => false,
        "max" => true,
        other => return Err(cx.node.attribute_value("mode", format!("{other:?} is neither avg nor max")).into()),
    };
    let size = |name: &str, default: i64| {
        let v = cx.node.int_or(name, default)?;
        usize::try_from(v).map_err(|_| Failure::from(cx.node.attribute_value(name, format!("{v} is negative"))))
    };
    let a = Attributes::new()
        .with("height", size("output_height", 1)?)
        .with("width", size("output_width", 1)?)
        .with("samples", size("sampling_ratio", 0)?)
        .with("scale", real(f64::from(cx.node.float_or("spatial_scale", 1.0)?)))
        .with("half_pixel", half_pixel)
        .with("max", max);
    Ok(cx.host("roi_align", a, &inputs)?.into())
}
