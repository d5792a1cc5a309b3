//! `Range`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Iota;
use kiln_ir::{Class, Constant, DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx("Range", 11, &["stash_type"], range)];

/// The number of elements of floats that are whole numbers, of which one depends on free dims.
fn whole_count(cx: &Context, start: ValueId, limit: ValueId, delta: ValueId) -> Option<Expr> {
    let [start, limit, delta] = [cx.whole(start)?, cx.whole(limit)?, cx.whole(delta)?];
    let count = limit.sub(&start).ceil_div(&delta).simplify(cx.ranges());
    let free = count.as_const().is_none() && delta.bounds(cx.ranges()).0 > 0;
    free.then(|| count.greatest(&Expr::default()).simplify(cx.ranges()))
}

/// `start + i * delta` for `max(ceil((limit - start) / delta), 0)` elements.
fn range(cx: &mut Context) -> Result<Outputs, Failure> {
    let (start, limit, delta) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let dtype = cx.dtype(start);
    for v in [start, limit, delta] {
        if cx.dtype(v) != dtype || cx.ty(v).elements().as_const() != Some(1) || !(dtype.is_int() || dtype.is_float()) {
            return Err(Failure::invalid(format!("start, limit and delta must be single numbers of one type, not {}", cx.ty(v))));
        }
    }
    let count = if dtype.is_int() {
        let one = |i: usize, what: &str| -> Result<Expr, Failure> { Ok(cx.exprs(i, what)?.remove(0)) };
        let (start, limit, delta) = (one(0, "start")?, one(1, "limit")?, one(2, "delta")?);
        if delta.as_const() == Some(0) {
            return Err(Failure::invalid("delta is 0"));
        }
        let count = limit.sub(&start).ceil_div(&delta).simplify(cx.ranges());
        count.greatest(&Expr::default()).simplify(cx.ranges())
    } else if let Some(count) = whole_count(cx, start, limit, delta) {
        count
    } else {
        let number = |i: usize, what: &str| cx.number(i, what).map(Constant::as_f64);
        let (start, limit, delta) = (number(0, "start")?, number(1, "limit")?, number(2, "delta")?);
        let count = ((limit - start) / delta).ceil().max(0.0);
        if count.is_nan() || count > (1u64 << 40) as f64 {
            return Err(Failure::invalid(format!("{start}..{limit} by {delta} has no length, or too great a one")));
        }
        Expr::from(count as i64)
    };
    let (start, delta) = (cx.reshape(start, vec![])?, cx.reshape(delta, vec![])?);
    let positions = cx.add(Iota { dims: vec![count], axis: 0 }, &[])?;
    // Positions of narrow floats are counted in f32, which holds more of them.
    let wide = if dtype.class() == Class::Float { DType::F32 } else { dtype };
    let result = cx.map(&[positions, start, delta], |b, a| {
        let [i, start, delta] = [a[0], a[1], a[2]].map(|v| b.cast(wide, v));
        let step = b.mul(i, delta);
        let sum = b.add(start, step);
        b.cast(dtype, sum)
    });
    Ok(result?.into())
}
