//! `EmbedLayerNormalization` of `com.microsoft`: the sum of embeddings, normalized.

use super::normalization::{affine, norm};
use super::{Spec, of};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::{Gather, Iota, NormKind, Reduce};
use kiln_ir::{BinaryOp, DType};

pub(super) const OPS: &[Spec] =
    &[of("com.microsoft", "EmbedLayerNormalization", &["epsilon", "mask_index_type"], embed)];

fn embed(cx: &mut Context) -> Result<Outputs, Failure> {
    let (ids, words, places) = (cx.input(0)?, cx.input(2)?, cx.input(3)?);
    let dims = cx.dims(ids);
    let [batch, sequence] = dims.as_slice() else {
        return Err(Failure::invalid(format!("{} is not [batch, sequence]", cx.ty(ids))));
    };
    let at = match cx.optional(8)? {
        Some(at) => at,
        None => cx.add(Iota { dims: vec![1i64.into(), sequence.clone()], axis: 1 }, &[])?,
    };
    let word = cx.add(Gather { axis: 0 }, &[words, ids])?;
    let place = cx.add(Gather { axis: 0 }, &[places, at])?;
    let mut sum = cx.map(&[word, place], |b, a| b.add(a[0], a[1]))?;
    if let (Some(segments), Some(table)) = (cx.optional(1)?, cx.optional(4)?) {
        let segment = cx.add(Gather { axis: 0 }, &[table, segments])?;
        sum = cx.map(&[sum, segment], |b, a| b.add(a[0], a[1]))?;
    }
    let (dtype, epsilon) = (cx.dtype(sum), f64::from(cx.node.float_or("epsilon", 1e-12)?));
    let normal = norm(cx, sum, NormKind::Layer, 1, epsilon)?;
    let (gamma, beta) = (cx.input(5)?, cx.input(6)?);
    let y = affine(cx, normal, Some(gamma), Some(beta), dtype)?;
    // How many tokens of each sequence the mask keeps; without a mask ONNX Runtime says 0.
    let count = match cx.optional(7)? {
        Some(mask) => {
            let mask = cx.cast(mask, DType::I32)?;
            cx.add(Reduce { combine: BinaryOp::Add, axes: vec![1], keep: false }, &[mask])?
        }
        None => {
            let zero = cx.scalar(kiln_ir::Constant::int(DType::I32, 0))?;
            cx.broadcast(zero, vec![batch.clone()])?
        }
    };
    Ok(vec![y, count, sum].into())
}
