//! Operators of `com.microsoft` on quantized tensors: what the plain operator makes of the real values, quantized again.

use super::matmul::{Flip, matmul};
use super::pool::{average, channels_first};
use super::quantize::{centred, check_scale, to_integer};
use super::reduce::mean;
use super::{Spec, of};
use crate::onnx::import::{Body, Context, Failure, Outputs, S};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Concat, Softmax};
use kiln_ir::{BinaryOp, DType, Expr};

const DOMAIN: &str = "com.microsoft";

pub(super) const OPS: &[Spec] = &[
    of(DOMAIN, "QLinearAdd", &[], |cx| binary(cx, BinaryOp::Add)),
    of(DOMAIN, "QLinearMul", &[], |cx| binary(cx, BinaryOp::Mul)),
    of(DOMAIN, "QLinearSigmoid", &[], |cx| unary(cx, |b, x| b.sigmoid(x))),
    of(DOMAIN, "QLinearLeakyRelu", &["alpha"], |cx| {
        let alpha = f64::from(cx.node.float_or("alpha", 0.01)?);
        unary(cx, |b, x| {
            let (zero, alpha) = (b.lit(x, 0.0), b.lit(x, alpha));
            let (negative, scaled) = (b.lt(x, zero), b.mul(alpha, x));
            b.select(negative, scaled, x)
        })
    }),
    of(DOMAIN, "QLinearSoftmax", &["axis", "opset"], softmax),
    of(DOMAIN, "QLinearConcat", &["axis"], concat),
    of(DOMAIN, "QLinearWhere", &[], |cx| {
        let condition = cx.input(0)?;
        let (x, y, dtype) = (real(cx, 1)?, real(cx, 4)?, cx.dtype(cx.input(1)?));
        let picked = cx.map(&[condition, x, y], |b, a| b.select(a[0], a[1], a[2]))?;
        Ok(quantized(cx, picked, 7, dtype)?.into())
    }),
    of(DOMAIN, "QLinearReduceMean", &["axes", "keepdims"], |cx| {
        let (x, dtype) = (real(cx, 0)?, cx.dtype(cx.input(0)?));
        let axes = cx.axes(cx.node.ints_opt("axes")?.unwrap_or_default(), cx.rank(x))?;
        let keep = cx.node.bool_or("keepdims", true)?;
        let y = mean(cx, x, &axes, keep)?;
        Ok(quantized(cx, y, 3, dtype)?.into())
    }),
    of(
        DOMAIN,
        "QLinearAveragePool",
        &["auto_pad", "ceil_mode", "channels_last", "count_include_pad", "kernel_shape", "pads", "strides"],
        |cx| pool(cx, average),
    ),
    of(DOMAIN, "QLinearGlobalAveragePool", &["channels_last"], |cx| {
        pool(cx, |cx, x| {
            let axes: Vec<usize> = (2..cx.rank(x)).collect();
            mean(cx, x, &axes, true)
        })
    }),
    of(DOMAIN, "QGemm", &["alpha", "transA", "transB"], gemm),
];

/// The one number that input `at` is, without axes; nothing where it is absent.
fn number(cx: &mut Context, at: usize) -> Result<Option<ValueId>, Failure> {
    cx.optional(at)?.map(|z| cx.reshape(z, vec![])).transpose()
}

/// Input `at` as real numbers, with its scale and zero point in the two inputs after it.
fn real(cx: &mut Context, at: usize) -> Result<ValueId, Failure> {
    let (x, scale) = (cx.input(at)?, cx.input(at + 1)?);
    check_scale(cx, scale, false)?;
    let zero_point = number(cx, at + 2)?;
    let scale = cx.reshape(scale, vec![])?;
    let steps = centred(cx, x, zero_point)?;
    cx.map(&[steps, scale], |b, a| {
        let steps = b.cast(DType::F32, a[0]);
        b.mul(steps, a[1])
    })
}

/// Real numbers as integers, with scale and zero point in inputs `at` and `at + 1`; without a zero point of type `otherwise`.
fn quantized(cx: &mut Context, y: ValueId, at: usize, otherwise: DType) -> Result<ValueId, Failure> {
    let scale = cx.input(at)?;
    check_scale(cx, scale, true)?;
    let mut inputs = vec![y, cx.reshape(scale, vec![])?];
    let zero_point = number(cx, at + 1)?;
    let to = zero_point.map_or(otherwise, |z| cx.dtype(z));
    inputs.extend(zero_point);
    cx.map(&inputs, |b, a| {
        let scaled = b.div(a[0], a[1]);
        to_integer(b, to, scaled, a.get(2).copied())
    })
}

fn binary(cx: &mut Context, op: BinaryOp) -> Result<Outputs, Failure> {
    let (x, y, dtype) = (real(cx, 0)?, real(cx, 3)?, cx.dtype(cx.input(0)?));
    let result = cx.map(&[x, y], |b, a| b.binary(op, a[0], a[1]))?;
    Ok(quantized(cx, result, 6, dtype)?.into())
}

fn unary(cx: &mut Context, f: impl FnOnce(&mut Body, S) -> S) -> Result<Outputs, Failure> {
    let (x, dtype) = (real(cx, 0)?, cx.dtype(cx.input(0)?));
    let result = cx.map(&[x], |b, a| f(b, a[0]))?;
    Ok(quantized(cx, result, 3, dtype)?.into())
}

/// Before version 13 of `Softmax`, which `opset` names, all axes from `axis` on count as one.
fn softmax(cx: &mut Context) -> Result<Outputs, Failure> {
    let (mut x, dtype) = (real(cx, 0)?, cx.dtype(cx.input(0)?));
    let dims = cx.dims(x);
    let mut axis = cx.axis_attribute(-1, dims.len())?;
    if cx.node.int_or("opset", 13)? < 13 {
        let product = |d: &[Expr]| d.iter().fold(Expr::from(1i64), |a, b| a.mul(b));
        x = cx.reshape(x, vec![product(&dims[..axis]), product(&dims[axis..])])?;
        axis = 1;
    }
    let soft = cx.add(Softmax { axis, log: false }, &[x])?;
    let soft = cx.reshape(soft, dims)?;
    Ok(quantized(cx, soft, 3, dtype)?.into())
}

/// Inputs 0 and 1 are the result's scale and zero point; every operand comes with its own.
fn concat(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut parts = Vec::new();
    for at in (2..cx.input_count()).step_by(3) {
        parts.push(real(cx, at)?);
    }
    let first = *parts.first().ok_or_else(|| Failure::invalid("there is nothing to concatenate"))?;
    let axis = cx.axis(cx.node.int("axis")?, cx.rank(first))?;
    let whole = cx.add(Concat { axis }, &parts)?;
    let dtype = cx.dtype(cx.input(2)?);
    Ok(quantized(cx, whole, 0, dtype)?.into())
}

fn pool(
    cx: &mut Context,
    f: impl FnOnce(&mut Context, ValueId) -> Result<ValueId, Failure>,
) -> Result<Outputs, Failure> {
    let (x, dtype) = (real(cx, 0)?, cx.dtype(cx.input(0)?));
    let y = if cx.node.bool_or("channels_last", false)? {
        let (x, back) = channels_first(cx, x)?;
        let y = f(cx, x)?;
        cx.transpose(y, &back)?
    } else {
        f(cx, x)?
    };
    Ok(quantized(cx, y, 3, dtype)?.into())
}

/// `alpha * a * b + bias`; the bias is an i32 with the scale of the product. Without a scale for it the result stays real.
fn gemm(cx: &mut Context) -> Result<Outputs, Failure> {
    let (a, b, dtype) = (cx.input(0)?, cx.input(3)?, cx.dtype(cx.input(0)?));
    let (flip_a, flip_b) = (cx.node.bool_or("transA", false)?, cx.node.bool_or("transB", false)?);
    let alpha = f64::from(cx.node.float_or("alpha", 1.0)?);
    let zero_a = number(cx, 2)?;
    // One number for each column of the product is one for each row of the operand where that is stored flipped.
    let zero_b = match cx.optional(5)? {
        Some(z) if cx.ty(z).elements().as_const() == Some(1) => Some(cx.reshape(z, vec![])?),
        Some(z) if flip_b => Some(cx.along(z, 0, 2)?),
        other => other,
    };
    let (left, right) = (centred(cx, a, zero_a)?, centred(cx, b, zero_b)?);
    let mut y = matmul(cx, left, right, Flip(flip_a), Flip(flip_b))?;
    if let Some(bias) = cx.optional(6)? {
        y = cx.map(&[y, bias], |b, a| b.add(a[0], a[1]))?;
    }
    let (scale_a, scale_b) = (cx.input(1)?, cx.input(4)?);
    let scale_a = cx.reshape(scale_a, vec![])?;
    let y = cx.map(&[y, scale_a, scale_b], |b, a| {
        let (y, alpha) = (b.cast(DType::F32, a[0]), b.lit(a[1], alpha));
        let scale = b.mul(a[1], a[2]);
        let scale = b.mul(alpha, scale);
        b.mul(y, scale)
    })?;
    if cx.bound(7).is_none() { Ok(y.into()) } else { Ok(quantized(cx, y, 7, dtype)?.into()) }
}
