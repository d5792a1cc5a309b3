//! `Slice`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Slice};
use kiln_ir::{Expr, Ranges, TensorType};

pub(super) const OPS: &[Spec] = &[onnx("Slice", 1, &["axes", "ends", "starts"], slice)];

fn slice(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    if cx.opset() >= 10 && cx.is_inside() && [1, 2, 4].into_iter().any(|i| is_open(cx, i)) {
        return at_run_time(cx, x);
    }
    // Inputs from version 10 on.
    let (starts, ends, axes, steps) = if cx.opset() >= 10 {
        (cx.exprs(1, "starts")?, cx.exprs(2, "ends")?, cx.optional_ints(3, "axes")?, cx.optional_ints(4, "steps")?)
    } else {
        let exprs = |name: &str| Ok::<_, Failure>(cx.node.ints(name)?.iter().map(|&v| Expr::from(v)).collect::<Vec<_>>());
        (exprs("starts")?, exprs("ends")?, cx.node.ints_opt("axes")?.map(<[i64]>::to_vec), None)
    };
    let count = starts.len();
    let axes = axes.unwrap_or_else(|| (0..count as i64).collect());
    let steps = steps.unwrap_or_else(|| vec![1; count]);
    if ends.len() != count || axes.len() != count || steps.len() != count {
        return Err(Failure::invalid("starts, ends, axes and steps are not of one length"));
    }
    let axes = cx.axes(&axes, rank)?;
    let mut op = Slice { starts: vec![Expr::default(); rank], steps: vec![1; rank], dims: cx.dims(x) };
    for (n, &axis) in axes.iter().enumerate() {
        let (start, dim) = range(&op.dims[axis], &starts[n], &ends[n], steps[n], cx.ranges())?;
        op.starts[axis] = start;
        op.steps[axis] = steps[n];
        op.dims[axis] = dim;
    }
    if op.dims == cx.dims(x) && op.steps.iter().all(|&s| s == 1) {
        return Ok(x.into());
    }
    Ok(cx.add(op, &[x])?.into())
}

/// Whether input `i` is there and not known.
fn is_open(cx: &Context, i: usize) -> bool {
    matches!(cx.optional(i), Ok(Some(v)) if cx.contents(v).is_none())
}

/// A slice whose bounds change from step to step of a loop.
fn at_run_time(cx: &mut Context, x: ValueId) -> Result<Outputs, Failure> {
    let (starts, ends) = (cx.input(1)?, cx.input(2)?);
    let count = cx.dims(starts).first().and_then(Expr::as_const).unwrap_or(0);
    let axes = cx.optional_ints(3, "axes")?.unwrap_or_else(|| (0..count).collect());
    let axes = cx.axes(&axes, cx.rank(x))?;
    let steps = match cx.optional(4)? {
        Some(steps) => steps,
        None => cx.int_vector(&vec![1; axes.len()])?,
    };
    let mut dims = cx.dims(x);
    for &axis in &axes {
        dims[axis] = cx.fresh();
    }
    let a = Attributes::new().with("axes", axes.as_slice());
    let a = a.with("results", vec![TensorType::new(cx.dtype(x), dims)]);
    Ok(cx.host("slice_at", a, &[x, starts, ends, steps])?.into())
}

/// First index and extent of `start..end` by `step` of an axis with extent `d`. Indices below 0 count from the end; what is
/// outside is cut off.
fn range(d: &Expr, start: &Expr, end: &Expr, step: i64, ranges: &Ranges) -> Result<(Expr, Expr), Failure> {
    if step == 0 {
        return Err(Failure::invalid("a step is 0"));
    }
    let (zero, one) = (Expr::default(), Expr::from(1i64));
    // A forward slice lies in 0..=d, a backward one starts in -1..d and ends above -1.
    let (low, high) = if step > 0 { (zero.clone(), d.clone()) } else { (Expr::from(-1i64), d.sub(&one)) };
    let place = |e: &Expr| -> Result<Expr, Failure> {
        let from_start = match e.bounds(ranges) {
            (_, hi) if hi < 0 => d.add(e),
            (lo, _) if lo >= 0 => e.clone(),
            _ => return Err(Failure::unsupported(format!("`{e}` may have either sign; bind its symbols"))),
        };
        // Above a bound for every value of the symbols: the bound itself.
        if from_start.sub(&high).simplify(ranges).bounds(ranges).0 >= 0 {
            return Ok(high.clone());
        }
        Ok(from_start.least(&high).greatest(&low).simplify(ranges))
    };
    let (start, end) = (place(start)?, place(end)?);
    let size = Expr::from(step.saturating_abs());
    let distance = if step > 0 { end.sub(&start) } else { start.sub(&end) };
    let dim = distance.ceil_div(&size).simplify(ranges).greatest(&zero).simplify(ranges);
    // Nothing is read of an empty range; it starts where there certainly is no index out of range.
    let start = if dim.as_const() == Some(0) { zero } else { start };
    Ok((start, dim))
}
