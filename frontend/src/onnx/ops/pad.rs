//! `Pad`.

use super::sliding::pad as border;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Constant;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Gather;

pub(super) const OPS: &[Spec] = &[onnx("Pad", 1, &["mode", "paddings", "pads", "value"], pad)];

fn pad(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (rank, dtype) = (cx.rank(x), cx.dtype(x));
    // Inputs from version 11 on.
    let pads = match cx.opset() {
        11.. => cx.ints(1, "pads")?,
        2..11 => cx.node.ints("pads")?.to_vec(),
        _ => cx.node.ints("paddings")?.to_vec(),
    };
    let axes = match cx.optional_ints(3, "axes")? {
        Some(axes) => cx.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(Failure::invalid(format!("{} pads do not fit {} axes", pads.len(), axes.len())));
    }
    let limit = 1i64 << 31;
    if let Some(p) = pads.iter().find(|p| !(-limit..=limit).contains(p)) {
        return Err(Failure::invalid(format!("the pad {p} is out of range")));
    }
    let (mut low, mut high) = (vec![0; rank], vec![0; rank]);
    for (n, &axis) in axes.iter().enumerate() {
        low[axis] = pads[n];
        high[axis] = pads[n + axes.len()];
    }
    let mode = cx.node.string_or("mode", "constant")?.to_owned();
    let result = match mode.as_str() {
        "constant" => {
            let value = if cx.opset() < 11 {
                Constant::float(dtype, f64::from(cx.node.float_or("value", 0.0)?))
            } else if cx.bound(2).is_some() {
                let value = cx.number(2, "constant_value")?;
                if value.dtype != dtype {
                    return Err(Failure::invalid(format!("the value is {}, the input {dtype}", value.dtype)));
                }
                value
            } else {
                Constant::int(dtype, 0)
            };
            border(cx, x, &low, &high, &vec![0; rank], value)?
        }
        "reflect" | "edge" | "wrap" => (0..rank).try_fold(x, |x, axis| indexed(cx, x, axis, low[axis], high[axis], &mode))?,
        other => {
            let message = format!("{other:?} is none of constant, reflect, edge, wrap");
            return Err(cx.node.attribute_value("mode", message).into());
        }
    };
    Ok(result.into())
}

/// Elements along an axis, picked by where each one comes from.
fn indexed(cx: &mut Context, x: ValueId, axis: usize, low: i64, high: i64, mode: &str) -> Result<ValueId, Failure> {
    if (low, high) == (0, 0) {
        return Ok(x);
    }
    let dim = cx.dims(x)[axis].clone();
    let extent = dim.as_const().ok_or_else(|| {
        Failure::unsupported(format!("padding in mode {mode} needs the dim `{dim}` to be known; bind its symbols"))
    })?;
    let wanted = extent.saturating_add(low).saturating_add(high);
    if extent == 0 && wanted > 0 || wanted < 0 || wanted > 1 << 24 {
        return Err(Failure::invalid(format!("axis {axis} of extent {extent} cannot be padded by {low} and {high}")));
    }
    let from = |i: i64| {
        let i = i - low;
        match mode {
            "edge" => i.clamp(0, extent - 1),
            "wrap" => i.rem_euclid(extent),
            // Reflection without the edge has a period of twice the extent, less both edges.
            _ if extent == 1 => 0,
            _ => {
                let period = 2 * (extent - 1);
                let at = i.rem_euclid(period);
                at.min(period - at)
            }
        }
    };
    let positions = cx.int_vector(&(0..wanted).map(from).collect::<Vec<i64>>())?;
    cx.add(Gather { axis }, &[x, positions])
}
