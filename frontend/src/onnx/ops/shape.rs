//! `Shape` and `Size`.

use super::{Spec, onnx};
use kiln_ir::Expr;

pub(super) const OPS: &[Spec] = &[
    onnx("Shape", 1, &["end", "start"], |cx| {
        let dims = cx.dims(cx.input(0)?);
        let rank = dims.len() as i64;
        // Out of range is cut off.
        let place = |v: i64| usize::try_from(if v < 0 { v.saturating_add(rank) } else { v }.clamp(0, rank)).unwrap_or(0);
        let (start, end) = (place(cx.node.int_or("start", 0)?), place(cx.node.int_or("end", rank)?));
        let part: Vec<Expr> = dims.get(start..end).map(<[Expr]>::to_vec).unwrap_or_default();
        Ok(cx.dims_tensor(&part, false)?.into())
    }),
    onnx("Size", 1, &[], |cx| {
        let count = cx.ty(cx.input(0)?).elements();
        Ok(cx.dims_tensor(&[count], true)?.into())
    }),
];
