//! `Pad`.

use super::sliding::pad as border;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Broadcast, Concat, Gather, Iota};
use kiln_ir::{BinaryOp, Constant, DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx("Pad", 1, &["mode", "paddings", "pads", "value"], pad)];

fn pad(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (rank, dtype) = (cx.rank(x), cx.dtype(x));
    // Inputs from version 11 on.
    let pads = match cx.opset() {
        11.. => cx.exprs(1, "pads")?,
        2..11 => cx.node.ints("pads")?.iter().map(|&p| Expr::from(p)).collect(),
        _ => cx.node.ints("paddings")?.iter().map(|&p| Expr::from(p)).collect(),
    };
    let axes = match cx.optional_ints(3, "axes")? {
        Some(axes) => cx.axes(&axes, rank)?,
        None => (0..rank).collect(),
    };
    if pads.len() != 2 * axes.len() {
        return Err(Failure::invalid(format!("{} pads do not fit {} axes", pads.len(), axes.len())));
    }
    let limit = 1i64 << 31;
    let (mut low, mut high) = (vec![0; rank], vec![0; rank]);
    // Ends whose lengths depend on free dims.
    let mut free: Vec<(usize, bool, Expr)> = Vec::new();
    for (n, p) in pads.iter().enumerate() {
        let (axis, behind) = (axes[n % axes.len()], n >= axes.len());
        match p.as_const() {
            Some(p) if !(-limit..=limit).contains(&p) => {
                return Err(Failure::invalid(format!("the pad {p} is out of range")));
            }
            Some(p) if behind => high[axis] = p,
            Some(p) => low[axis] = p,
            // Where only some values of the symbols give a negative one, these are refused when they are known, as any negative extent.
            None if p.bounds(cx.ranges()).1 < 0 => {
                return Err(Failure::unsupported(format!("the pad `{p}` is negative; bind its symbols")));
            }
            None => free.push((axis, behind, p.clone())),
        }
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
            let mut x = border(cx, x, &low, &high, &vec![0; rank], value)?;
            for (axis, behind, extent) in free {
                let mut dims = cx.dims(x);
                dims[axis] = extent;
                let value = cx.scalar(value)?;
                let end = cx.add(Broadcast { dims }, &[value])?;
                x = cx.add(Concat { axis }, &if behind { [x, end] } else { [end, x] })?;
            }
            x
        }
        "reflect" | "edge" | "wrap" if !free.is_empty() => {
            let message = format!("padding in mode {mode} by `{}`; bind its symbols", free[0].2);
            return Err(Failure::unsupported(message));
        }
        "reflect" | "edge" | "wrap" => (0..rank).try_fold(x, |x, axis| indexed(cx, x, axis, low[axis], high[axis], &mode))?,
        other => {
            let message = format!("{other:?} is none of constant, reflect, edge, wrap");
            return Err(cx.node.attribute_value("mode", message).into());
        }
    };
    Ok(result.into())
}

/// As [`indexed`], along an axis of free extent: where an element comes from is computed when the model runs.
fn indexed_later(
    cx: &mut Context,
    x: ValueId,
    axis: usize,
    (low, high): (i64, i64),
    mode: &str,
) -> Result<ValueId, Failure> {
    let dim = cx.dims(x)[axis].clone();
    if dim.bounds(cx.ranges()).0 < 1 || low < 0 || high < 0 {
        let message = format!("padding in mode {mode} by {low} and {high} wants `{dim}` to be at least 1; bound its symbols");
        return Err(Failure::unsupported(message));
    }
    let (one, wanted) = (Expr::from(1i64), dim.add(&Expr::from(low.saturating_add(high))));
    let positions = cx.add(Iota { dims: vec![wanted], axis: 0 }, &[])?;
    let low = cx.scalar(Constant::int(DType::I64, low))?;
    let last = dim.sub(&one);
    // Reflection without the edge has a period of twice the extent, less both edges; with an extent of 1 it is 0, and so is every place.
    let period = cx.dims_tensor(&[if mode == "wrap" { dim } else { last.scale(2) }], true)?;
    let last = cx.dims_tensor(&[last], true)?;
    let zero = cx.scalar(Constant::int(DType::I64, 0))?;
    let positions = cx.map(&[positions, low, period, last, zero], |b, a| {
        let i = b.binary(BinaryOp::Sub, a[0], a[1]);
        match mode {
            "edge" => {
                let i = b.binary(BinaryOp::Max, i, a[4]);
                b.binary(BinaryOp::Min, i, a[3])
            }
            "wrap" => b.binary(BinaryOp::Mod, i, a[2]),
            _ => {
                let at = b.binary(BinaryOp::Mod, i, a[2]);
                let back = b.binary(BinaryOp::Sub, a[2], at);
                b.binary(BinaryOp::Min, at, back)
            }
        }
    })?;
    cx.add(Gather { axis }, &[x, positions])
}

/// Elements along an axis, picked by where each one comes from.
fn indexed(cx: &mut Context, x: ValueId, axis: usize, low: i64, high: i64, mode: &str) -> Result<ValueId, Failure> {
    if (low, high) == (0, 0) {
        return Ok(x);
    }
    let dim = cx.dims(x)[axis].clone();
    let Some(extent) = dim.as_const() else { return indexed_later(cx, x, axis, (low, high), mode) };
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
