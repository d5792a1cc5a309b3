//! Reductions over axes.

use super::pool::{power, root};
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Reduce;
use kiln_ir::{BinaryOp, Class, DType, Expr};

const ATTRIBUTES: &[&str] = &["axes", "keepdims", "noop_with_empty_axes"];

pub(super) const OPS: &[Spec] = &[
    onnx("ReduceSum", 1, ATTRIBUTES, |cx| reduce(cx, Kind::Sum)),
    onnx("ReduceMean", 1, ATTRIBUTES, |cx| reduce(cx, Kind::Mean)),
    onnx("ReduceMax", 1, ATTRIBUTES, |cx| reduce(cx, Kind::Max)),
    onnx("ReduceMin", 1, ATTRIBUTES, |cx| reduce(cx, Kind::Min)),
    onnx("ReduceProd", 1, ATTRIBUTES, |cx| reduce(cx, Kind::Product)),
    onnx("ReduceL1", 1, ATTRIBUTES, |cx| reduce(cx, Kind::L1)),
    onnx("ReduceL2", 1, ATTRIBUTES, |cx| reduce(cx, Kind::L2)),
    onnx("ReduceSumSquare", 1, ATTRIBUTES, |cx| reduce(cx, Kind::SumSquare)),
    onnx("ReduceLogSum", 1, ATTRIBUTES, |cx| reduce(cx, Kind::LogSum)),
    onnx("ReduceLogSumExp", 1, ATTRIBUTES, |cx| reduce(cx, Kind::LogSumExp)),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Product,
    L1,
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

/// The axes are an input from version 18 on (13 for `ReduceSum`). No axes are all axes, or none where the node says so.
fn axes(cx: &Context, kind: Kind, rank: usize) -> Result<Vec<usize>, Failure> {
    let since = if kind == Kind::Sum { 13 } else { 18 };
    let as_input = cx.opset() >= since;
    if !as_input && cx.input_count() > 1 {
        return Err(Failure::invalid(format!("has an input of axes, which came with version {since}, not {}", cx.opset())));
    }
    let given = if as_input { cx.optional_ints(1, "axes")? } else { cx.node.ints_opt("axes")?.map(<[i64]>::to_vec) };
    match given {
        Some(axes) if !axes.is_empty() => cx.axes(&axes, rank),
        _ if as_input && cx.node.bool_or("noop_with_empty_axes", false)? => Ok(Vec::new()),
        _ => Ok((0..rank).collect()),
    }
}

fn reduce(cx: &mut Context, kind: Kind) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axes = axes(cx, kind, cx.rank(x))?;
    let keep = cx.node.bool_or("keepdims", true)?;
    let dtype = cx.dtype(x);
    let plain = matches!(kind, Kind::Sum | Kind::Max | Kind::Min | Kind::Product);
    let real = matches!(kind, Kind::L2 | Kind::LogSum | Kind::LogSumExp);
    // Compositions of narrow floats are rounded once; roots and logarithms of integers are those of floats.
    let wide = match dtype.class() {
        Class::Float if !plain => DType::F32,
        Class::Signed | Class::Unsigned if real => DType::F64,
        _ => dtype,
    };
    let x = cx.cast(x, wide)?;
    let fold = |cx: &mut Context, x: ValueId, combine: BinaryOp, keep: bool| {
        cx.add(Reduce { combine, axes: axes.clone(), keep }, &[x])
    };
    let result = match kind {
        Kind::Sum => fold(cx, x, BinaryOp::Add, keep)?,
        Kind::Product => fold(cx, x, BinaryOp::Mul, keep)?,
        Kind::Max => fold(cx, x, BinaryOp::Max, keep)?,
        Kind::Min => fold(cx, x, BinaryOp::Min, keep)?,
        Kind::Mean => mean(cx, x, &axes, keep)?,
        Kind::L1 | Kind::L2 | Kind::SumSquare => {
            let powers = power(cx, x, if kind == Kind::L1 { 1 } else { 2 })?;
            let sum = fold(cx, powers, BinaryOp::Add, keep)?;
            root(cx, sum, if kind == Kind::L2 { 2 } else { 1 })?
        }
        Kind::LogSum => {
            let sum = fold(cx, x, BinaryOp::Add, keep)?;
            cx.map(&[sum], |b, a| b.log(a[0]))?
        }
        Kind::LogSumExp => {
            // Shifted by the maximum, which keeps the exponentials in range; an infinite one shifts nothing.
            let max = fold(cx, x, BinaryOp::Max, true)?;
            let shift = cx.map(&[max], |b, a| {
                let (size, limit, zero) = (b.abs(a[0]), b.lit(a[0], f64::INFINITY), b.lit(a[0], 0.0));
                let finite = b.lt(size, limit);
                b.select(finite, a[0], zero)
            })?;
            let grown = cx.map(&[x, shift], |b, a| {
                let d = b.sub(a[0], a[1]);
                b.exp(d)
            })?;
            let sum = fold(cx, grown, BinaryOp::Add, true)?;
            let log = cx.map(&[sum, shift], |b, a| {
                let log = b.log(a[0]);
                b.add(log, a[1])
            })?;
            let dims = cx.dims(log);
            let left = dims.into_iter().enumerate().filter(|(n, _)| keep || !axes.contains(n)).map(|(_, d)| d);
            let left = left.collect();
            cx.reshape(log, left)?
        }
    };
    Ok(cx.cast(result, dtype)?.into())
}

/// The mean over axes.
pub(super) fn mean(cx: &mut Context, x: ValueId, axes: &[usize], keep: bool) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let count = axes.iter().filter_map(|&a| dims.get(a)).fold(Expr::from(1i64), |n, d| n.mul(d));
    let sum = cx.add(Reduce { combine: BinaryOp::Add, axes: axes.to_vec(), keep }, &[x])?;
    divide_by(cx, sum, &count)
}

/// The value divided by a number of elements.
pub(super) fn divide_by(cx: &mut Context, v: ValueId, count: &Expr) -> Result<ValueId, Failure> {
    match count.as_const() {
        Some(n) => cx.map(&[v], |b, a| {
            let n = b.int(a[0], n);
            b.div(a[0], n)
        }),
        None => {
            let n = cx.dims_tensor(std::slice::from_ref(count), true)?;
            let n = cx.cast(n, cx.dtype(v))?;
            cx.map(&[v, n], |b, a| b.div(a[0], a[1]))
        }
    }
}
