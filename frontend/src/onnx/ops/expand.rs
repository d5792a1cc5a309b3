//! `Expand` and `Tile`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;
use kiln_ir::ops::broadcast_dims;

pub(super) const OPS: &[Spec] = &[onnx("Expand", 8, &[], expand), onnx("Tile", 6, &[], tile)];

fn expand(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let shape = cx.exprs(1, "shape")?;
    if let Some(d) = shape.iter().find(|d| d.as_const().is_some_and(|d| d < 0)) {
        return Err(Failure::invalid(format!("`shape` has the dim {d}")));
    }
    let dims = broadcast_dims(&[&cx.dims(x), &shape]).map_err(|e| {
        let known = shape.iter().chain(&cx.ty(x).dims).all(|d| d.as_const().is_some());
        if known { Failure::Invalid(e.0) } else { Failure::unsupported(format!("{}; bind their symbols", e.0)) }
    })?;
    Ok(cx.broadcast(x, dims)?.into())
}

/// Each axis behind a new one that is repeated.
fn tile(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let dims = cx.dims(x);
    let repeats = cx.exprs(1, "repeats")?;
    if repeats.len() != dims.len() || repeats.iter().any(|r| r.as_const().is_some_and(|r| r < 0)) {
        return Err(Failure::invalid(format!("`repeats` does not fit {}", cx.ty(x))));
    }
    let (mut split, mut repeated) = (Vec::new(), Vec::new());
    for (d, r) in dims.iter().zip(&repeats) {
        if r.as_const() != Some(1) {
            split.push(Expr::from(1i64));
            repeated.push(r.clone());
        }
        split.push(d.clone());
        repeated.push(d.clone());
    }
    let split = cx.reshape(x, split)?;
    let repeated = cx.broadcast(split, repeated)?;
    Ok(cx.reshape(repeated, dims.iter().zip(&repeats).map(|(d, r)| d.mul(r)).collect())?.into())
}
