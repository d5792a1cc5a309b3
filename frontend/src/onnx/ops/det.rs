//! `Det`.

use super::{Spec, onnx};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("Det", 11, &[], |cx| {
    let x = cx.input(0)?;
    Ok(cx.host("determinant", Attributes::new(), &[x])?.into())
})];
