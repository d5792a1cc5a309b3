//! Operators on single elements that are one core operation.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::UnaryOp;

macro_rules! unary {
    ($($name:literal since $since:literal = $op:ident),* $(,)?) => {
        pub(super) const OPS: &[Spec] = &[$(onnx($name, $since, &["consumed_inputs"], |cx| unary(cx, UnaryOp::$op))),*];
    };
}

unary! {
    "Abs" since 1 = Abs, "Neg" since 1 = Neg, "Sign" since 9 = Sign, "Floor" since 1 = Floor, "Ceil" since 1 = Ceil,
    "Round" since 11 = Round, "Sqrt" since 1 = Sqrt, "Reciprocal" since 1 = Recip, "Exp" since 1 = Exp, "Log" since 1 = Log,
    "Sin" since 7 = Sin, "Cos" since 7 = Cos, "Tan" since 7 = Tan, "Asin" since 7 = Asin, "Acos" since 7 = Acos,
    "Atan" since 7 = Atan, "Sinh" since 9 = Sinh, "Cosh" since 9 = Cosh, "Asinh" since 9 = Asinh, "Acosh" since 9 = Acosh,
    "Atanh" since 9 = Atanh, "Tanh" since 1 = Tanh, "Sigmoid" since 1 = Sigmoid, "Erf" since 9 = Erf, "Not" since 1 = Not,
    "BitwiseNot" since 18 = Not,
}

fn unary(cx: &mut Context, op: UnaryOp) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    Ok(cx.map(&[x], |b, a| b.unary(op, a[0]))?.into())
}
