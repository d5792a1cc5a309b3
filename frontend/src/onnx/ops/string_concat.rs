//! `StringConcat`.

use super::{Spec, onnx};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("StringConcat", 20, &[], |cx| {
    let inputs = [cx.input(0)?, cx.input(1)?];
    Ok(cx.host("string_concat", Attributes::new(), &inputs)?.into())
})];
