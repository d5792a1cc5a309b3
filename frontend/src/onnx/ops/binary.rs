//! Operators on two elements that are one core operation.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::{BinaryOp, Class, DType, Expr};

const LEGACY: &[&str] = &["consumed_inputs", "axis", "broadcast"];

pub(super) const OPS: &[Spec] = &[
    onnx("Add", 1, LEGACY, |cx| binary(cx, BinaryOp::Add)),
    onnx("Sub", 1, LEGACY, |cx| binary(cx, BinaryOp::Sub)),
    onnx("Mul", 1, LEGACY, |cx| binary(cx, BinaryOp::Mul)),
    onnx("Div", 1, LEGACY, |cx| binary(cx, BinaryOp::Div)),
    onnx("And", 1, LEGACY, |cx| binary(cx, BinaryOp::And)),
    onnx("Or", 1, LEGACY, |cx| binary(cx, BinaryOp::Or)),
    onnx("Xor", 1, LEGACY, |cx| binary(cx, BinaryOp::Xor)),
    onnx("BitwiseAnd", 18, &[], |cx| binary(cx, BinaryOp::And)),
    onnx("BitwiseOr", 18, &[], |cx| binary(cx, BinaryOp::Or)),
    onnx("BitwiseXor", 18, &[], |cx| binary(cx, BinaryOp::Xor)),
    onnx("BitShift", 11, &["direction"], shift),
    onnx("Mod", 10, &["fmod"], modulo),
    onnx("Pow", 1, LEGACY, pow),
    onnx("PRelu", 1, &["consumed_inputs"], prelu),
];

/// Both operands. Before version 7 the second one broadcasts only where that is asked for, from an axis on.
pub(super) fn operands(cx: &mut Context) -> Result<(ValueId, ValueId), Failure> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    if cx.opset() >= 7 || !cx.node.bool_or("broadcast", false)? {
        return Ok((a, b));
    }
    let Some(axis) = cx.node.int_opt("axis")? else { return Ok((a, b)) };
    let axis = cx.axis(axis, cx.rank(a))?;
    let mut dims = cx.dims(b);
    if dims.len() + axis > cx.rank(a) {
        return Err(Failure::invalid(format!("{} does not broadcast from axis {axis} of {}", cx.ty(b), cx.ty(a))));
    }
    dims.resize(cx.rank(a) - axis, Expr::from(1i64));
    let b = cx.reshape(b, dims)?;
    Ok((a, b))
}

pub(super) fn binary(cx: &mut Context, op: BinaryOp) -> Result<Outputs, Failure> {
    let (x, y) = operands(cx)?;
    Ok(cx.map(&[x, y], |b, a| b.binary(op, a[0], a[1]))?.into())
}

fn shift(cx: &mut Context) -> Result<Outputs, Failure> {
    match cx.node.string("direction")? {
        "LEFT" => binary(cx, BinaryOp::Shl),
        "RIGHT" => binary(cx, BinaryOp::Shr),
        other => Err(cx.node.attribute_value("direction", format!("{other:?} is neither LEFT nor RIGHT")).into()),
    }
}

fn modulo(cx: &mut Context) -> Result<Outputs, Failure> {
    let op = if cx.node.bool_or("fmod", false)? { BinaryOp::Rem } else { BinaryOp::Mod };
    binary(cx, op)
}

/// The exponent may have another type; the result has that of the base.
fn pow(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, y) = operands(cx)?;
    let (base, exponent) = (cx.dtype(x), cx.dtype(y));
    // The type that holds both: a float exponent of an integer base makes the power a float.
    let common = match (base.is_float(), exponent.is_float()) {
        _ if base == exponent => base,
        (true, _) if base.class() == Class::Double || exponent.class() == Class::Double => DType::F64,
        (true, _) => DType::F32,
        (false, true) => DType::F64,
        (false, false) => DType::I64,
    };
    let result = cx.map(&[x, y], |b, a| {
        let (x, y) = (b.cast(common, a[0]), b.cast(common, a[1]));
        let power = b.pow(x, y);
        b.cast(base, power)
    });
    Ok(result?.into())
}

/// `x < 0 ? slope * x : x`; before version 7 the slope runs along axis 1.
fn prelu(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, mut slope) = (cx.input(0)?, cx.input(1)?);
    let single = cx.ty(slope).elements().as_const() == Some(1);
    if cx.opset() < 7 && !single && cx.rank(slope) == 1 && cx.rank(x) >= 2 {
        slope = cx.along(slope, 1, cx.rank(x))?;
    }
    let dims = cx.dims(x);
    let result = cx.map(&[x, slope], |b, a| {
        let zero = b.int(a[0], 0);
        let (negative, scaled) = (b.lt(a[0], zero), b.mul(a[1], a[0]));
        b.select(negative, scaled, a[0])
    })?;
    if cx.dims(result) != dims {
        return Err(Failure::invalid(format!("the slope {} does not broadcast to {}", cx.ty(slope), cx.ty(x))));
    }
    Ok(result.into())
}
