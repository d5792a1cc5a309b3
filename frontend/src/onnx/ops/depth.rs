//! `DepthToSpace` and `SpaceToDepth`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;

pub(super) const OPS: &[Spec] =
    &[onnx("DepthToSpace", 1, &["blocksize", "mode"], depth_to_space), onnx("SpaceToDepth", 1, &["blocksize", "mode"], space_to_depth)];

/// The dims of `[n, c, h, w]` and the block size.
fn read(cx: &Context) -> Result<([Expr; 4], Expr), Failure> {
    let x = cx.input(0)?;
    let dims: [Expr; 4] =
        cx.dims(x).try_into().map_err(|_| Failure::invalid(format!("{} does not have 4 axes", cx.ty(x))))?;
    let block = cx.node.int("blocksize")?;
    if !(1..=1 << 31).contains(&block) {
        return Err(cx.node.attribute_value("blocksize", format!("{block} is out of range")).into());
    }
    Ok((dims, Expr::from(block)))
}

/// Whether blocks are the outer part of the channels (DCR), else channels are (CRD).
fn outer(cx: &Context) -> Result<bool, Failure> {
    match cx.node.string_or("mode", "DCR")? {
        "DCR" => Ok(true),
        "CRD" => Ok(false),
        other => Err(cx.node.attribute_value("mode", format!("{other:?} is neither DCR nor CRD")).into()),
    }
}

fn depth_to_space(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let ([n, c, h, w], b) = read(cx)?;
    let square = b.mul(&b);
    if c.modulo(&square).as_const() != Some(0) {
        return Err(Failure::invalid(format!("{c} channels are no whole number of blocks of {square}")));
    }
    let rest = c.floor_div(&square);
    let (split, perm) = if outer(cx)? {
        (vec![n.clone(), b.clone(), b.clone(), rest.clone(), h.clone(), w.clone()], [0, 3, 4, 1, 5, 2])
    } else {
        (vec![n.clone(), rest.clone(), b.clone(), b.clone(), h.clone(), w.clone()], [0, 1, 4, 2, 5, 3])
    };
    let split = cx.reshape(x, split)?;
    let moved = cx.transpose(split, &perm)?;
    Ok(cx.reshape(moved, vec![n, rest, h.mul(&b), w.mul(&b)])?.into())
}

fn space_to_depth(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let ([n, c, h, w], b) = read(cx)?;
    let (rows, columns) = (h.floor_div(&b), w.floor_div(&b));
    if h.modulo(&b).as_const() != Some(0) || w.modulo(&b).as_const() != Some(0) {
        return Err(Failure::invalid(format!("{h} x {w} is no whole number of blocks of {b} x {b}")));
    }
    let split = vec![n.clone(), c.clone(), rows.clone(), b.clone(), columns.clone(), b.clone()];
    let split = cx.reshape(x, split)?;
    let perm = if outer(cx)? { [0, 3, 5, 1, 2, 4] } else { [0, 1, 3, 5, 2, 4] };
    let moved = cx.transpose(split, &perm)?;
    Ok(cx.reshape(moved, vec![n, c.mul(&b).mul(&b), rows, columns])?.into())
}
