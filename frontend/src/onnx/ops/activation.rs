//! Activation functions that are a formula on single elements.

use super::{Spec, of, onnx};
use crate::onnx::import::{Body, Context, Failure, Outputs, S};
use kiln_ir::graph::ValueId;
use std::f64::consts::FRAC_2_PI;

pub(super) const OPS: &[Spec] = &[
    onnx("Relu", 1, &["consumed_inputs"], |cx| {
        let x = cx.input(0)?;
        let result = cx.map(&[x], |b, a| {
            let zero = b.int(a[0], 0);
            b.max(a[0], zero)
        });
        Ok(result?.into())
    }),
    onnx("LeakyRelu", 1, &["alpha", "consumed_inputs"], |cx| {
        let alpha = number(cx, "alpha", 0.01)?;
        formula(cx, |b, x| {
            let (zero, alpha) = (b.lit(x, 0.0), b.lit(x, alpha));
            let (negative, scaled) = (b.lt(x, zero), b.mul(alpha, x));
            b.select(negative, scaled, x)
        })
    }),
    onnx("Elu", 1, &["alpha", "consumed_inputs"], |cx| {
        let alpha = number(cx, "alpha", 1.0)?;
        formula(cx, |b, x| {
            let low = exponential(b, x, 1.0, alpha);
            positive_or(b, x, x, low)
        })
    }),
    onnx("Selu", 1, &["alpha", "gamma", "consumed_inputs"], |cx| {
        let (alpha, gamma) = match cx.opset() {
            ..6 => (1.6732, 1.0507),
            _ => (1.673_263_192_176_818_8, 1.050_701_022_148_132_3),
        };
        let (alpha, gamma) = (number(cx, "alpha", alpha)?, number(cx, "gamma", gamma)?);
        formula(cx, |b, x| {
            let low = exponential(b, x, 1.0, alpha);
            let either = positive_or(b, x, x, low);
            let gamma = b.lit(x, gamma);
            b.mul(gamma, either)
        })
    }),
    onnx("Celu", 12, &["alpha"], |cx| {
        let alpha = number(cx, "alpha", 1.0)?;
        formula(cx, |b, x| {
            let low = exponential(b, x, alpha, alpha);
            positive_or(b, x, x, low)
        })
    }),
    onnx("Gelu", 20, &["approximate"], |cx| {
        let x = cx.input(0)?;
        let result = match cx.node.string_or("approximate", "none")? {
            "none" => gelu(cx, x)?,
            "tanh" => fast_gelu(cx, x)?,
            other => {
                let message = format!("{other:?} is neither \"none\" nor \"tanh\"");
                return Err(cx.node.attribute_value("approximate", message).into());
            }
        };
        Ok(result.into())
    }),
    of("com.microsoft", "Gelu", &[], |cx| {
        let x = cx.input(0)?;
        Ok(gelu(cx, x)?.into())
    }),
    of("com.microsoft", "FastGelu", &[], |cx| {
        let x = biased(cx)?;
        Ok(fast_gelu(cx, x)?.into())
    }),
    of("com.microsoft", "BiasGelu", &[], |cx| {
        let x = biased(cx)?;
        Ok(gelu(cx, x)?.into())
    }),
    of("com.microsoft", "QuickGelu", &["alpha"], |cx| {
        let alpha = number(cx, "alpha", 1.702)?;
        formula(cx, |b, x| swish(b, x, alpha))
    }),
    onnx("HardSigmoid", 1, &["alpha", "beta", "consumed_inputs"], |cx| {
        let (alpha, beta) = (number(cx, "alpha", 0.2)?, number(cx, "beta", 0.5)?);
        formula(cx, |b, x| hard_sigmoid(b, x, alpha, beta))
    }),
    onnx("HardSwish", 14, &[], |cx| {
        formula(cx, |b, x| {
            let gate = hard_sigmoid(b, x, 1.0 / 6.0, 0.5);
            b.mul(x, gate)
        })
    }),
    onnx("Mish", 18, &[], |cx| {
        formula(cx, |b, x| {
            let soft = softplus(b, x);
            let gate = b.tanh(soft);
            b.mul(x, gate)
        })
    }),
    onnx("Softplus", 1, &[], |cx| formula(cx, softplus)),
    onnx("Softsign", 1, &[], |cx| {
        formula(cx, |b, x| {
            let (one, size) = (b.lit(x, 1.0), b.abs(x));
            let below = b.add(one, size);
            b.div(x, below)
        })
    }),
    onnx("Swish", 24, &["alpha"], |cx| {
        let alpha = number(cx, "alpha", 1.0)?;
        formula(cx, |b, x| swish(b, x, alpha))
    }),
    onnx("ThresholdedRelu", 1, &["alpha"], |cx| {
        let alpha = number(cx, "alpha", 1.0)?;
        formula(cx, |b, x| {
            let (alpha, zero) = (b.lit(x, alpha), b.lit(x, 0.0));
            let above = b.gt(x, alpha);
            b.select(above, x, zero)
        })
    }),
    onnx("Shrink", 9, &["bias", "lambd"], |cx| {
        let (bias, lambd) = (number(cx, "bias", 0.0)?, number(cx, "lambd", 0.5)?);
        let x = cx.input(0)?;
        // Integers are compared and shifted as f64, which holds what they can be here, and truncated as NumPy does.
        let result = cx.map(&[x], |b, a| {
            let dtype = b.dtype(a[0]);
            let x = if dtype.is_float() { a[0] } else { b.cast(kiln_ir::DType::F64, a[0]) };
            let (low, high, bias, zero) = (b.lit(x, -lambd), b.lit(x, lambd), b.lit(x, bias), b.lit(x, 0.0));
            let (below, above, raised, lowered) = (b.lt(x, low), b.gt(x, high), b.add(x, bias), b.sub(x, bias));
            let rest = b.select(above, lowered, zero);
            let result = b.select(below, raised, rest);
            b.cast(dtype, result)
        });
        Ok(result?.into())
    }),
];

fn number(cx: &Context, name: &str, default: f64) -> Result<f64, Failure> {
    Ok(cx.node.float_opt(name)?.map_or(default, f64::from))
}

fn formula(cx: &mut Context, f: impl FnOnce(&mut Body, S) -> S) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    Ok(cx.float_map(&[x], |b, a| f(b, a[0]))?.into())
}

/// The first input plus the second, where there is one.
fn biased(cx: &mut Context) -> Result<ValueId, Failure> {
    let x = cx.input(0)?;
    match cx.optional(1)? {
        Some(bias) => cx.map(&[x, bias], |b, a| b.add(a[0], a[1])),
        None => Ok(x),
    }
}

/// `x > 0 ? high : low`; a NaN takes `low`, which must keep it.
fn positive_or(b: &mut Body, x: S, high: S, low: S) -> S {
    let zero = b.lit(x, 0.0);
    let positive = b.gt(x, zero);
    b.select(positive, high, low)
}

/// `alpha * (exp(x / scale) - 1)`, for `x` that is not positive.
fn exponential(b: &mut Body, x: S, scale: f64, alpha: f64) -> S {
    let (scale, alpha, one, zero) = (b.lit(x, scale), b.lit(x, alpha), b.lit(x, 1.0), b.lit(x, 0.0));
    let low = b.min(x, zero);
    let scaled = b.div(low, scale);
    let grown = b.exp(scaled);
    let shifted = b.sub(grown, one);
    b.mul(alpha, shifted)
}

fn gelu(cx: &mut Context, x: ValueId) -> Result<ValueId, Failure> {
    cx.float_map(&[x], |b, a| b.gelu(a[0]))
}

/// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))`.
fn fast_gelu(cx: &mut Context, x: ValueId) -> Result<ValueId, Failure> {
    cx.float_map(&[x], |b, a| {
        let x = a[0];
        let (half, one, cubic, root) = (b.lit(x, 0.5), b.lit(x, 1.0), b.lit(x, 0.044_715), b.lit(x, FRAC_2_PI.sqrt()));
        let square = b.mul(x, x);
        let cube = b.mul(square, x);
        let bent = b.mul(cubic, cube);
        let sum = b.add(x, bent);
        let scaled = b.mul(root, sum);
        let tanh = b.tanh(scaled);
        let (gate, halved) = (b.add(tanh, one), b.mul(half, x));
        b.mul(halved, gate)
    })
}

fn swish(b: &mut Body, x: S, alpha: f64) -> S {
    let alpha = b.lit(x, alpha);
    let scaled = b.mul(alpha, x);
    let gate = b.sigmoid(scaled);
    b.mul(x, gate)
}

fn hard_sigmoid(b: &mut Body, x: S, alpha: f64, beta: f64) -> S {
    let (alpha, beta, zero, one) = (b.lit(x, alpha), b.lit(x, beta), b.lit(x, 0.0), b.lit(x, 1.0));
    let scaled = b.mul(alpha, x);
    let line = b.add(scaled, beta);
    let low = b.max(line, zero);
    b.min(low, one)
}

/// `log(1 + exp(x))` as `max(x, 0) + log(1 + exp(-|x|))`, which does not overflow.
fn softplus(b: &mut Body, x: S) -> S {
    let (zero, one, size) = (b.lit(x, 0.0), b.lit(x, 1.0), b.abs(x));
    let minus = b.neg(size);
    let small = b.exp(minus);
    let sum = b.add(one, small);
    let (log, high) = (b.log(sum), b.max(x, zero));
    b.add(high, log)
}
