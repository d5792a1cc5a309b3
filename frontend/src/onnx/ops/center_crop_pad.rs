//! `CenterCropPad`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::{Pad, Slice};
use kiln_ir::{Constant, Expr};

pub(super) const OPS: &[Spec] = &[onnx("CenterCropPad", 18, &["axes"], center_crop_pad)];

/// Where the difference is odd, the larger half is at the end.
fn center_crop_pad(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (have, rank) = (cx.static_dims(x)?, cx.rank(x));
    let wanted = cx.ints(1, "shape")?;
    let axes = match cx.node.ints_opt("axes")? {
        Some(axes) => cx.axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    if wanted.len() != axes.len() {
        return Err(Failure::invalid(format!("`shape` has {} numbers for {} axes", wanted.len(), axes.len())));
    }
    let (mut starts, mut kept) = (vec![0; rank], have.clone());
    let (mut low, mut high) = (vec![0; rank], vec![0; rank]);
    for (&axis, &want) in axes.iter().zip(&wanted) {
        let want = usize::try_from(want).map_err(|_| Failure::invalid(format!("`shape` holds {want}")))?;
        kept[axis] = want.min(have[axis]);
        starts[axis] = (have[axis] - kept[axis]) / 2;
        low[axis] = (want - kept[axis]) / 2;
        high[axis] = want - kept[axis] - low[axis];
    }
    let exprs = |v: &[usize]| v.iter().map(|&n| Expr::from(n)).collect::<Vec<_>>();
    let slice = Slice { starts: exprs(&starts), steps: vec![1; rank], dims: exprs(&kept) };
    let cut = cx.add(slice, &[x])?;
    let value = Constant::int(cx.dtype(x), 0);
    Ok(cx.add(Pad { low, high, interior: vec![0; rank], value }, &[cut])?.into())
}
