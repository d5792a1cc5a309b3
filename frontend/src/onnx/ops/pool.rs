//! Pools over moving windows.

use super::sliding::Window;
use super::{Spec, of, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::nest::neutral;
use kiln_ir::ops::{Attributes, Pool};
use kiln_ir::{BinaryOp, Constant, DType, Expr};

pub(super) const OPS: &[Spec] = &[
    onnx("MaxPool", 1, &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "storage_order", "strides"], max),
    onnx(
        "AveragePool",
        1,
        &["auto_pad", "ceil_mode", "count_include_pad", "dilations", "kernel_shape", "pads", "strides"],
        |cx| {
            let x = cx.input(0)?;
            Ok(average(cx, x)?.into())
        },
    ),
    of("com.microsoft", "NhwcMaxPool", &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "pads", "strides"], |cx| {
        let x = cx.input(0)?;
        let (x, back) = channels_first(cx, x)?;
        let window = read(cx, x)?;
        let y = fold(cx, x, &window, BinaryOp::Max)?;
        Ok(cx.transpose(y, &back)?.into())
    }),
    onnx("LpPool", 2, &["auto_pad", "ceil_mode", "dilations", "kernel_shape", "p", "pads", "strides"], lp),
];

fn read(cx: &Context, x: ValueId) -> Result<Window, Failure> {
    if cx.rank(x) < 3 {
        return Err(Failure::invalid(format!("{} has no spatial axes", cx.ty(x))));
    }
    Window::read(cx, &cx.dims(x)[2..], None)
}

/// `[n, spatial.., c]` as `[n, c, spatial..]`, and the order of axes that leads back.
pub(super) fn channels_first(cx: &mut Context, x: ValueId) -> Result<(ValueId, Vec<usize>), Failure> {
    let rank = cx.rank(x);
    if rank < 2 {
        return Err(Failure::invalid(format!("{} has no channels", cx.ty(x))));
    }
    let mut there = vec![0, rank - 1];
    there.extend(1..rank - 1);
    let mut back = vec![0];
    back.extend(2..rank);
    back.push(1);
    Ok((cx.transpose(x, &there)?, back))
}

fn fold(cx: &mut Context, x: ValueId, window: &Window, combine: BinaryOp) -> Result<ValueId, Failure> {
    let value = neutral(combine, cx.dtype(x));
    let x = window.pad(cx, x, value)?;
    let Window { kernel, strides, dilations, .. } = window.clone();
    cx.add(Pool { combine, window: kernel, strides, dilations }, &[x])
}

fn max(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let window = read(cx, x)?;
    if cx.wants(1) {
        // The positions are no fold: the host finds both.
        let sizes = |v: &mut dyn Iterator<Item = i64>| v.map(|p| usize::try_from(p).unwrap_or(0)).collect::<Vec<usize>>();
        let low = sizes(&mut window.pads.iter().map(|p| p.0));
        let high = sizes(&mut window.pads.iter().zip(&window.extra).map(|(p, e)| p.1.saturating_add(*e)));
        let attributes = Attributes::new()
            .with("window", window.kernel.as_slice())
            .with("strides", window.strides.as_slice())
            .with("dilations", window.dilations.as_slice())
            .with("low", low.as_slice())
            .with("high", high.as_slice())
            .with("column_major", cx.node.bool_or("storage_order", false)?);
        return Ok(cx.host("max_pool", attributes, &[x])?.into());
    }
    Ok(fold(cx, x, &window, BinaryOp::Max)?.into())
}

/// The mean of each window that the node's attributes describe.
pub(super) fn average(cx: &mut Context, x: ValueId) -> Result<ValueId, Failure> {
    let window = read(cx, x)?;
    let dtype = cx.dtype(x);
    let narrow = dtype.is_float() && dtype != DType::F64;
    let wide = if narrow { cx.cast(x, DType::F32)? } else { x };
    let sum = fold(cx, wide, &window, BinaryOp::Add)?;
    let whole = cx.node.bool_or("count_include_pad", false)?;
    let uniform = !window.is_padded() || whole && window.extra.iter().all(|&e| e == 0);
    let mean = if uniform {
        let volume = window.volume() as f64;
        cx.map(&[sum], |b, a| {
            let n = b.lit(a[0], volume);
            b.div(a[0], n)
        })?
    } else {
        // How many elements each window has: the same pool over ones.
        let mut dims = vec![Expr::from(1i64); 2];
        dims.extend_from_slice(&cx.dims(wide)[2..]);
        let one = Constant::int(cx.dtype(wide), 1);
        let ones = cx.scalar(one)?;
        let mut ones = cx.broadcast(ones, dims)?;
        let mut counted = window.clone();
        if whole {
            counted.extra.fill(0);
            ones = counted.pad(cx, ones, one)?;
            counted = Window { pads: vec![(0, 0); window.pads.len()], extra: window.extra.clone(), ..window };
        }
        let count = fold(cx, ones, &counted, BinaryOp::Add)?;
        cx.map(&[sum, count], |b, a| b.div(a[0], a[1]))?
    };
    cx.cast(mean, dtype)
}

/// `(sum of |x|^p)^(1/p)`.
fn lp(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let window = read(cx, x)?;
    let p = cx.node.int_or("p", 2)?;
    if p < 1 {
        return Err(cx.node.attribute_value("p", format!("{p} is less than 1")).into());
    }
    let powers = power(cx, x, p)?;
    let sum = fold(cx, powers, &window, BinaryOp::Add)?;
    Ok(root(cx, sum, p)?.into())
}

/// `|x|^p`.
pub(super) fn power(cx: &mut Context, x: ValueId, p: i64) -> Result<ValueId, Failure> {
    cx.map(&[x], |b, a| {
        let size = b.abs(a[0]);
        match p {
            1 => size,
            2 => b.mul(a[0], a[0]),
            _ => {
                let p = b.int(size, p);
                b.pow(size, p)
            }
        }
    })
}

/// `x^(1/p)`.
pub(super) fn root(cx: &mut Context, x: ValueId, p: i64) -> Result<ValueId, Failure> {
    match p {
        1 => Ok(x),
        2 => cx.map(&[x], |b, a| b.sqrt(a[0])),
        _ => cx.map(&[x], |b, a| {
            let p = b.lit(a[0], 1.0 / p as f64);
            b.pow(a[0], p)
        }),
    }
}
