//! `BitCast`.

use super::support::type_attribute;
use super::{Spec, onnx};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("BitCast", 26, &["to"], |cx| {
    let x = cx.input(0)?;
    let to = type_attribute(cx, "to")?.ok_or_else(|| cx.node.attribute_missing("to"))?;
    if to == cx.dtype(x) {
        return Ok(x.into());
    }
    Ok(cx.host("bit_cast", Attributes::new().with("to", to), &[x])?.into())
})];
