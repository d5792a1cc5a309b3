//! `ReverseSequence`.

use super::support::positions;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::GatherNd;
use kiln_ir::{DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx("ReverseSequence", 10, &["batch_axis", "time_axis"], reverse_sequence)];

/// Step `t` of a sequence of length `n` reads step `n - 1 - t`, steps beyond the length stay.
fn reverse_sequence(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, lengths) = (cx.input(0)?, cx.input(1)?);
    let (batch, time) = (cx.node.int_or("batch_axis", 1)?, cx.node.int_or("time_axis", 0)?);
    if !matches!((batch, time), (0, 1) | (1, 0)) || cx.rank(x) < 2 || cx.rank(lengths) != 1 {
        return Err(Failure::invalid(
            "batch and time must be the first two axes, and there must be one length a sequence",
        ));
    }
    // Batch first for the gather, and back.
    let mut perm: Vec<usize> = (0..cx.rank(x)).collect();
    if batch == 1 {
        perm.swap(0, 1);
    }
    let x = cx.transpose(x, &perm)?;
    let (sequences, steps) = (cx.dims(x)[0].clone(), cx.dims(x)[1].clone());
    let lengths = cx.cast(lengths, DType::I64)?;
    let lengths = cx.reshape(lengths, vec![sequences.clone(), Expr::from(1i64)])?;
    let step = positions(cx, steps.clone(), 1, 2)?;
    let index = cx.map(&[step, lengths], |b, a| {
        let one = b.int(a[0], 1);
        let last = b.sub(a[1], one);
        let (inside, mirrored) = (b.lt(a[0], a[1]), b.sub(last, a[0]));
        b.select(inside, mirrored, a[0])
    })?;
    let index = cx.reshape(index, vec![sequences, steps, Expr::from(1i64)])?;
    let reversed = cx.add(GatherNd { batch: 1 }, &[x, index])?;
    Ok(cx.transpose(reversed, &perm)?.into())
}
