//! Small fusions that ONNX Runtime's optimizer writes: an operator with the activation, bias or residual that follows it.

use super::conv::{biased, convolve};
use super::matmul::{Flip, matmul, scale};
use super::pool::channels_first;
use super::{Spec, of};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::Constant;

const DOMAIN: &str = "com.microsoft";

const CONV: &[&str] =
    &["activation", "activation_params", "auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"];

const GEMM: &[&str] = &[
    "activation",
    "activation_alpha",
    "activation_beta",
    "activation_gamma",
    "alpha",
    "beta",
    "transA",
    "transB",
];

pub(super) const OPS: &[Spec] = &[
    of(DOMAIN, "FusedConv", CONV, |cx| {
        let y = fused_conv(cx, false)?;
        Ok(y.into())
    }),
    of(DOMAIN, "NhwcFusedConv", CONV, |cx| {
        let y = fused_conv(cx, true)?;
        Ok(y.into())
    }),
    of(DOMAIN, "FusedGemm", GEMM, fused_gemm),
];

/// The activation that the node names, with its parameters in order.
fn activate(cx: &mut Context, y: ValueId, parameters: &[f32]) -> Result<ValueId, Failure> {
    let at = |n: usize, otherwise: f64| parameters.get(n).map_or(otherwise, |&p| f64::from(p));
    let (first, second) = (at(0, f64::NAN), at(1, f64::NAN));
    let name = cx.node.string_or("activation", "")?.to_owned();
    match name.as_str() {
        "" => Ok(y),
        "Relu" => cx.map(&[y], |b, a| {
            let zero = b.int(a[0], 0);
            b.max(a[0], zero)
        }),
        "Tanh" => cx.map(&[y], |b, a| b.tanh(a[0])),
        "Sigmoid" => cx.map(&[y], |b, a| b.sigmoid(a[0])),
        "LeakyRelu" => cx.map(&[y], |b, a| {
            let (zero, alpha) = (b.lit(a[0], 0.0), b.lit(a[0], if first.is_nan() { 0.01 } else { first }));
            let (negative, scaled) = (b.lt(a[0], zero), b.mul(alpha, a[0]));
            b.select(negative, scaled, a[0])
        }),
        "Clip" => cx.map(&[y], |b, a| {
            let (low, high) = (b.lit(a[0], first), b.lit(a[0], second));
            let y = if first.is_nan() { a[0] } else { b.max(a[0], low) };
            if second.is_nan() { y } else { b.min(y, high) }
        }),
        "HardSigmoid" => cx.map(&[y], |b, a| {
            let alpha = b.lit(a[0], if first.is_nan() { 0.2 } else { first });
            let beta = b.lit(a[0], if second.is_nan() { 0.5 } else { second });
            let (zero, one, scaled) = (b.lit(a[0], 0.0), b.lit(a[0], 1.0), b.mul(alpha, a[0]));
            let line = b.add(scaled, beta);
            let low = b.max(line, zero);
            b.min(low, one)
        }),
        other => Err(Failure::unsupported(format!("the fused activation {other:?} is not supported"))),
    }
}

/// A convolution with bias (input 2), then the residual (input 3), then the activation.
fn fused_conv(cx: &mut Context, channels_last: bool) -> Result<ValueId, Failure> {
    let (mut x, w, mut residual) = (cx.input(0)?, cx.input(1)?, cx.optional(3)?);
    let mut back = None;
    if channels_last {
        let (first, order) = channels_first(cx, x)?;
        (x, back) = (first, Some(order));
        residual = residual.map(|z| channels_first(cx, z).map(|(z, _)| z)).transpose()?;
    }
    let y = convolve(cx, x, w, Constant::int(cx.dtype(x), 0))?;
    let bias = cx.optional(2)?;
    let mut y = biased(cx, y, bias)?;
    if let Some(residual) = residual {
        y = cx.map(&[y, residual], |b, a| b.add(a[0], a[1]))?;
    }
    let parameters = cx.node.floats_opt("activation_params")?.unwrap_or_default().to_vec();
    let y = activate(cx, y, &parameters)?;
    match back {
        Some(back) => cx.transpose(y, &back),
        None => Ok(y),
    }
}

fn fused_gemm(cx: &mut Context) -> Result<Outputs, Failure> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let flips = (Flip(cx.node.bool_or("transA", false)?), Flip(cx.node.bool_or("transB", false)?));
    let (alpha, beta) = (f64::from(cx.node.float_or("alpha", 1.0)?), f64::from(cx.node.float_or("beta", 1.0)?));
    let product = matmul(cx, a, b, flips.0, flips.1)?;
    let mut y = scale(cx, product, alpha)?;
    if let Some(c) = cx.optional(2)? {
        let c = scale(cx, c, beta)?;
        y = cx.map(&[y, c], |b, a| b.add(a[0], a[1]))?;
    }
    let mut parameters = Vec::new();
    for name in ["activation_alpha", "activation_beta", "activation_gamma"] {
        parameters.extend(cx.node.float_opt(name)?);
    }
    Ok(activate(cx, y, &parameters)?.into())
}
