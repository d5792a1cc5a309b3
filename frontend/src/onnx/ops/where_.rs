//! `Where`.

use super::{Spec, onnx};

pub(super) const OPS: &[Spec] = &[onnx("Where", 9, &[], |cx| {
    let (c, x, y) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    Ok(cx.map(&[c, x, y], |b, a| b.select(a[0], a[1], a[2]))?.into())
})];
