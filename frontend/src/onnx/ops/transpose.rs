//! `Transpose`.

use super::{Spec, onnx};

pub(super) const OPS: &[Spec] = &[onnx("Transpose", 1, &["perm"], |cx| {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let perm: Vec<usize> = match cx.node.ints_opt("perm")? {
        None => (0..rank).rev().collect(),
        Some(perm) if perm.len() != rank => {
            return Err(cx.node.attribute_value("perm", format!("{perm:?} does not permute {rank} axes")).into());
        }
        Some(perm) => cx.axes(perm, rank)?,
    };
    Ok(cx.transpose(x, &perm)?.into())
})];
