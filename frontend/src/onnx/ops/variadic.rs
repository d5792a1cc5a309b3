//! Operators that fold any number of operands, with broadcasting.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::BinaryOp;

pub(super) const OPS: &[Spec] = &[
    onnx("Sum", 1, &["consumed_inputs"], |cx| variadic(cx, BinaryOp::Add, false)),
    onnx("Mean", 1, &["consumed_inputs"], |cx| variadic(cx, BinaryOp::Add, true)),
    onnx("Max", 1, &["consumed_inputs"], |cx| variadic(cx, BinaryOp::Max, false)),
    onnx("Min", 1, &["consumed_inputs"], |cx| variadic(cx, BinaryOp::Min, false)),
];

fn variadic(cx: &mut Context, op: BinaryOp, mean: bool) -> Result<Outputs, Failure> {
    let inputs = cx.all_inputs()?;
    let count = inputs.len() as f64;
    let result = cx.map(&inputs, |b, a| {
        let folded = a[1..].iter().fold(a[0], |x, &y| b.binary(op, x, y));
        if mean {
            let n = b.lit(folded, count);
            b.div(folded, n)
        } else {
            folded
        }
    });
    Ok(result?.into())
}
