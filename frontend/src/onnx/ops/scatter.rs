//! `Scatter`, `ScatterElements` and `ScatterND`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use crate::onnx::model::MAX_OPSET;
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[
    Spec { name: "Scatter", domain: "", versions: (9, MAX_OPSET), attributes: &["axis"], import: elements },
    onnx("ScatterElements", 11, &["axis", "reduction"], elements),
    onnx("ScatterND", 11, &["reduction"], |cx| {
        let a = Attributes::new().with("combine", reduction(cx)?);
        let inputs = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
        Ok(cx.host("scatter_nd", a, &inputs)?.into())
    }),
];

fn reduction(cx: &Context) -> Result<&'static str, Failure> {
    match cx.node.string_or("reduction", "none")? {
        "none" => Ok("replace"),
        "add" => Ok("add"),
        "mul" => Ok("mul"),
        "max" => Ok("max"),
        "min" => Ok("min"),
        other => Err(cx.node.attribute_value("reduction", format!("{other:?} is none of ONNX's")).into()),
    }
}

fn elements(cx: &mut Context) -> Result<Outputs, Failure> {
    let inputs = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let axis = cx.axis_attribute(0, cx.rank(inputs[0]))?;
    let a = Attributes::new().with("axis", axis).with("combine", reduction(cx)?);
    Ok(cx.host("scatter_elements", a, &inputs)?.into())
}
