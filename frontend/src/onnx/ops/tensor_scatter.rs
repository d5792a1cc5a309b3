//! `TensorScatter`: a key-value cache with new entries written into it.

use super::support::positions;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::GatherNd;
use kiln_ir::{BinaryOp, DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx("TensorScatter", 24, &["axis", "mode"], tensor_scatter)];

/// Every position reads the update that was written to it, if one was, else the cache.
fn tensor_scatter(cx: &mut Context) -> Result<Outputs, Failure> {
    let (cache, update) = (cx.input(0)?, cx.input(1)?);
    let rank = cx.rank(cache);
    let axis = cx.axis_attribute(-2, rank)?;
    if axis == 0 || cx.rank(update) != rank {
        return Err(Failure::invalid("the update must have the cache's axes, and its axis must not be the batch"));
    }
    let circular = match cx.node.string_or("mode", "linear")? {
        "linear" => false,
        "circular" => true,
        other => {
            return Err(cx.node.attribute_value("mode", format!("{other:?} is neither linear nor circular")).into());
        }
    };
    let (extent, length) = (cx.dims(cache)[axis].clone(), cx.dims(update)[axis].clone());
    let mut offset = positions(cx, extent.clone(), 1, 2)?;
    if let Some(starts) = cx.optional(2)? {
        let starts = cx.cast(starts, DType::I64)?;
        let mut dims = cx.dims(starts);
        dims.push(Expr::from(1i64));
        let starts = cx.reshape(starts, dims)?;
        offset = cx.map(&[offset, starts], |b, a| b.sub(a[0], a[1]))?;
    }
    if circular {
        let extent = cx.dims_tensor(std::slice::from_ref(&extent), true)?;
        offset = cx.map(&[offset, extent], |b, a| b.binary(BinaryOp::Mod, a[0], a[1]))?;
    }
    let length = cx.dims_tensor(&[length], true)?;
    let written = cx.map(&[offset, length], |b, a| {
        let zero = b.int(a[0], 0);
        let (after, before) = (b.ge(a[0], zero), b.lt(a[0], a[1]));
        b.and(after, before)
    })?;
    let index = cx.map(&[written, offset], |b, a| {
        let zero = b.int(a[1], 0);
        b.select(a[0], a[1], zero)
    })?;
    let batch = cx.dims(cache)[0].clone();
    let index = cx.broadcast(index, vec![batch.clone(), extent.clone()])?;
    let index = cx.reshape(index, vec![batch.clone(), extent.clone(), Expr::from(1i64)])?;
    // The axis goes next to the batch for the gather, and back.
    let mut forth: Vec<usize> = (0..rank).collect();
    forth.remove(axis);
    forth.insert(1, axis);
    let mut back: Vec<usize> = (0..rank).collect();
    back.remove(1);
    back.insert(axis, 1);
    let moved = cx.transpose(update, &forth)?;
    let moved = cx.add(GatherNd { batch: 1 }, &[moved, index])?;
    let moved = cx.transpose(moved, &back)?;
    let mut mask = vec![Expr::from(1i64); rank];
    mask[0] = cx.dims(written)[0].clone();
    mask[axis] = extent;
    let written = cx.reshape(written, mask)?;
    Ok(cx.map(&[written, moved, cache], |b, a| b.select(a[0], a[1], a[2]))?.into())
}
