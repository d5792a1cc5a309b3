//! Comparisons.

use super::binary::binary;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;
use kiln_ir::{BinaryOp, DType};

pub(super) const OPS: &[Spec] = &[
    onnx("Equal", 1, &["axis", "broadcast"], equal),
    onnx("Less", 1, &["axis", "broadcast"], |cx| binary(cx, BinaryOp::Lt)),
    onnx("Greater", 1, &["axis", "broadcast"], |cx| binary(cx, BinaryOp::Gt)),
    onnx("LessOrEqual", 12, &[], |cx| binary(cx, BinaryOp::Le)),
    onnx("GreaterOrEqual", 12, &[], |cx| binary(cx, BinaryOp::Ge)),
    onnx("IsNaN", 9, &[], |cx| {
        let x = cx.input(0)?;
        Ok(cx.map(&[x], |b, a| b.ne(a[0], a[0]))?.into())
    }),
    onnx("IsInf", 10, &["detect_negative", "detect_positive"], |cx| {
        let x = cx.input(0)?;
        let (low, high) = (cx.node.bool_or("detect_negative", true)?, cx.node.bool_or("detect_positive", true)?);
        let found = cx.map(&[x], |b, a| {
            let (minus, plus) = (b.lit(a[0], f64::NEG_INFINITY), b.lit(a[0], f64::INFINITY));
            let (minus, plus) = (b.eq(a[0], minus), b.eq(a[0], plus));
            match (low, high) {
                (true, true) => b.or(minus, plus),
                (true, false) => minus,
                (false, true) => plus,
                (false, false) => b.ne(minus, minus),
            }
        });
        Ok(found?.into())
    }),
];

/// Strings are compared by the host.
fn equal(cx: &mut Context) -> Result<Outputs, Failure> {
    let inputs = [cx.input(0)?, cx.input(1)?];
    if inputs.iter().all(|&v| cx.dtype(v) == DType::Str) {
        return Ok(cx.host("string_equal", Attributes::new(), &inputs)?.into());
    }
    binary(cx, BinaryOp::Eq)
}
