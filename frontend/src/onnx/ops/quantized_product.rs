//! Products of quantized tensors: `MatMulInteger`, `QLinearMatMul`, `ConvInteger`, `QLinearConv`, and the products of the
//! `com.microsoft` domain that quantize on the fly.

use super::conv::convolve;
use super::matmul::{Flip, matmul};
use super::quantize::{centred, check_scale, of_matrix, quantize_dynamically, to_integer};
use super::{Spec, of, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::{Constant, DType};

const CONV: &[&str] = &["auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

pub(super) const OPS: &[Spec] = &[
    onnx("MatMulInteger", 10, &[], |cx| {
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let (za, zb) = (cx.optional(2)?, cx.optional(3)?);
        Ok(product(cx, a, b, za, zb)?.into())
    }),
    onnx("QLinearMatMul", 10, &[], |cx| {
        let (a, b) = (cx.input(0)?, cx.input(3)?);
        let (za, zb) = (cx.optional(2)?, cx.optional(5)?);
        let y = product(cx, a, b, za, zb)?;
        let (sa, sb) = (cx.input(1)?, cx.input(4)?);
        [sa, sb].into_iter().try_for_each(|s| check_scale(cx, s, false))?;
        let sa = of_matrix(cx, sa, a, true)?;
        let sb = of_matrix(cx, sb, b, false)?;
        Ok(requantized(cx, y, [sa, sb], 6)?.into())
    }),
    onnx("ConvInteger", 10, CONV, |cx| {
        let (zx, zw) = (cx.optional(2)?, cx.optional(3)?);
        Ok(convolution(cx, (0, zx), (1, zw))?.into())
    }),
    onnx("QLinearConv", 10, CONV, |cx| {
        let (zx, zw) = (cx.optional(2)?, cx.optional(5)?);
        let mut y = convolution(cx, (0, zx), (3, zw))?;
        let bias = cx.optional(8)?;
        y = super::conv::biased(cx, y, bias)?;
        let (sx, sw) = (cx.input(1)?, cx.input(4)?);
        [sx, sw].into_iter().try_for_each(|s| check_scale(cx, s, false))?;
        let sx = cx.reshape(sx, vec![])?;
        let sw = channels(cx, sw, 1, cx.rank(y))?;
        Ok(requantized(cx, y, [sx, sw], 6)?.into())
    }),
    of("com.microsoft", "MatMulIntegerToFloat", &[], |cx| {
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        let (sa, sb) = (cx.input(2)?, cx.input(3)?);
        let (za, zb) = (cx.optional(4)?, cx.optional(5)?);
        let y = product(cx, a, b, za, zb)?;
        dequantized(cx, y, sa, sb, 6)
    }),
    of("com.microsoft", "DynamicQuantizeMatMul", &[], |cx| {
        let (a, b, sb, zb) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.optional(3)?);
        let (a, sa, za) = quantize_dynamically(cx, a)?;
        let y = product(cx, a, b, Some(za), zb)?;
        dequantized(cx, y, sa, sb, 4)
    }),
];

/// The product of two matrices without their zero points, as i32.
fn product(
    cx: &mut Context,
    a: ValueId,
    b: ValueId,
    zero_a: Option<ValueId>,
    zero_b: Option<ValueId>,
) -> Result<ValueId, Failure> {
    let zero_a = zero_a.map(|z| of_matrix(cx, z, a, true)).transpose()?;
    let zero_b = zero_b.map(|z| of_matrix(cx, z, b, false)).transpose()?;
    let (a, b) = (centred(cx, a, zero_a)?, centred(cx, b, zero_b)?);
    matmul(cx, a, b, Flip::default(), Flip::default())
}

/// One number, or a vector along one axis of a tensor with `rank` axes.
fn channels(cx: &mut Context, parameter: ValueId, axis: usize, rank: usize) -> Result<ValueId, Failure> {
    if cx.ty(parameter).elements().as_const() == Some(1) {
        cx.reshape(parameter, vec![])
    } else {
        cx.along(parameter, axis, rank)
    }
}

/// The convolution of two inputs without their zero points, as i32; the border is what stands for 0.
fn convolution(
    cx: &mut Context,
    (x, zero_x): (usize, Option<ValueId>),
    (w, zero_w): (usize, Option<ValueId>),
) -> Result<ValueId, Failure> {
    let (x, w) = (cx.input(x)?, cx.input(w)?);
    let zero_x = zero_x.map(|z| cx.reshape(z, vec![])).transpose()?;
    let zero_w = zero_w.map(|z| channels(cx, z, 0, cx.rank(w))).transpose()?;
    let (x, w) = (centred(cx, x, zero_x)?, centred(cx, w, zero_w)?);
    convolve(cx, x, w, Constant::int(DType::I32, 0))
}

/// `y * a * b / scale + zero point`, with scale and zero point at input `at`.
fn requantized(cx: &mut Context, y: ValueId, scales: [ValueId; 2], at: usize) -> Result<ValueId, Failure> {
    let (scale, zero_point) = (cx.input(at)?, cx.input(at + 1)?);
    check_scale(cx, scale, true)?;
    let (scale, zero_point) = (of_matrix(cx, scale, y, true)?, of_matrix(cx, zero_point, y, true)?);
    let (to, dims) = (cx.dtype(zero_point), cx.dims(y));
    if !to.is_int() {
        return Err(Failure::unsupported(format!("results of type {to} are not supported")));
    }
    let result = cx.map(&[y, scales[0], scales[1], scale, zero_point], |b, a| {
        let [y, s0, s1, s] = [a[0], a[1], a[2], a[3]].map(|v| b.cast(DType::F32, v));
        let product = b.mul(s0, s1);
        let factor = b.div(product, s);
        let scaled = b.mul(y, factor);
        to_integer(b, to, scaled, Some(a[4]))
    })?;
    if cx.dims(result) != dims {
        return Err(Failure::invalid(format!("the scales do not broadcast to {}", cx.ty(y))));
    }
    Ok(result)
}

/// `y * a * b` plus the bias at input `at`, if there is one.
fn dequantized(cx: &mut Context, y: ValueId, a: ValueId, b: ValueId, at: usize) -> Result<Outputs, Failure> {
    [a, b].into_iter().try_for_each(|s| check_scale(cx, s, false))?;
    let (a, b) = (of_matrix(cx, a, y, true)?, of_matrix(cx, b, y, false)?);
    let mut inputs = vec![y, a, b];
    inputs.extend(cx.optional(at)?);
    let to = cx.dtype(a);
    let result = cx.map(&inputs, |body, v| {
        let [y, a, b] = [v[0], v[1], v[2]].map(|v| body.cast(DType::F32, v));
        let scale = body.mul(a, b);
        let mut sum = body.mul(y, scale);
        if let Some(&bias) = v.get(3) {
            let bias = body.cast(DType::F32, bias);
            sum = body.add(sum, bias);
        }
        body.cast(to, sum)
    })?;
    Ok(result.into())
}
