//! `LSTM`, `GRU` and `RNN`, and ONNX Runtime's `DynamicQuantizeLSTM`.

use super::quantize::rounded;
use super::recurrent_steps::{Integers, Layer, Steps, scanned, written_out};
use super::support::{filled, real};
use super::{Spec, of, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::{DType, Expr, Tensor};
use kiln_ir::ops::{Attribute, Attributes, Host, Op};

const COMMON: [&str; 7] =
    ["activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "layout"];
const LSTM: &[&str] = &[COMMON[0], COMMON[1], COMMON[2], COMMON[3], COMMON[4], COMMON[5], COMMON[6], "input_forget"];
const QUANTIZED: &[&str] =
    &[COMMON[0], COMMON[1], COMMON[2], COMMON[3], COMMON[4], COMMON[5], "input_forget"];
const GRU: &[&str] =
    &[COMMON[0], COMMON[1], COMMON[2], COMMON[3], COMMON[4], COMMON[5], COMMON[6], "linear_before_reset"];

pub(super) const OPS: &[Spec] = &[
    onnx("LSTM", 7, LSTM, |cx| plain(cx, "lstm", 4, &["Sigmoid", "Tanh", "Tanh"])),
    onnx("GRU", 7, GRU, |cx| plain(cx, "gru", 3, &["Sigmoid", "Tanh"])),
    onnx("RNN", 7, &COMMON, |cx| plain(cx, "rnn", 1, &["Tanh"])),
    of("com.microsoft", "DynamicQuantizeLSTM", QUANTIZED, dynamic_quantize_lstm),
];

fn plain(cx: &mut Context, name: &'static str, gates: usize, default: &[&str]) -> Result<Outputs, Failure> {
    let operands = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    layer(cx, operands, None, name, gates, default)
}

/// An LSTM with quantized weights `[directions, input or hidden, 4 * hidden]`. What they are multiplied with, the input as a
/// whole and the state of all rows at every step, is rounded to 8 bits first. The domain's documentation leaves that open; this is
/// what ONNX Runtime does with one thread (with more it gives each thread rows of its own, with a scale of their own, so that its
/// results depend on how many there are). The rest is computed as it does, bit by bit: gates as `(x w + h r) + (wb + rb)`, and its
/// rational approximations of tanh and the sigmoid.
fn dynamic_quantize_lstm(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let x = rounded(cx, x)?;
    let mut weights = |at: usize, scale: usize| -> Result<ValueId, Failure> {
        let w = cx.input(at)?;
        if cx.rank(w) != 3 {
            return Err(Failure::invalid(format!("the weights are {}, not of 3 axes", cx.ty(w))));
        }
        if let Some(real) = dequantized(cx, w, cx.input(scale)?, cx.input(scale + 1)?)? {
            return Ok(cx.constant(real));
        }
        let mut inputs = vec![w];
        for parameter in [cx.input(scale)?, cx.input(scale + 1)?] {
            let (mut dims, one) = (cx.dims(parameter), Expr::from(1i64));
            dims.insert(1.min(dims.len()), one.clone());
            dims.resize(3, one);
            inputs.push(cx.reshape(parameter, dims)?);
        }
        let real = cx.map(&inputs, |b, a| {
            let (w, zero) = (b.cast(DType::F32, a[0]), b.cast(DType::F32, a[2]));
            let steps = b.sub(w, zero);
            b.mul(steps, a[1])
        })?;
        cx.transpose(real, &[0, 2, 1])
    };
    let (w, r) = (weights(1, 8)?, weights(2, 10)?);
    let integers = match (integers(cx, 1, 8)?, integers(cx, 2, 10)?) {
        (Some(w), Some(r)) => Some(Integers { w, r }),
        _ => None,
    };
    layer(cx, [x, w, r], integers, "lstm", 4, &["Sigmoid", "Tanh", "Tanh"])
}

/// Each direction of the constant weights at an input, as integers with their scale and zero point.
fn integers(cx: &mut Context, at: usize, scale: usize) -> Result<Option<Vec<Steps>>, Failure> {
    let inputs = [cx.input(at)?, cx.input(scale)?, cx.input(scale + 1)?];
    let [Some(w), Some(scale), Some(zero)] = inputs.map(|v| cx.constant_of(v).cloned()) else { return Ok(None) };
    let &[directions, rows, columns] = w.shape() else { return Ok(None) };
    let mut all = Vec::new();
    for d in 0..directions {
        // A part of each tensor, where it has as many elements for every direction.
        let mut part = |t: &Tensor, shape: Option<Vec<usize>>| -> Result<Option<ValueId>, Failure> {
            let each = t.bytes().len() / directions;
            let count = each.checked_div(t.dtype().size()).unwrap_or(0);
            let shape = shape.unwrap_or(if count == 1 { vec![] } else { vec![count] });
            let fits = (count == 1 || count == columns || shape.len() == 2) && each * directions == t.bytes().len();
            let Some(bytes) = t.bytes().get(d * each..(d + 1) * each).filter(|_| fits) else { return Ok(None) };
            Ok(Some(cx.constant(Tensor::new(t.dtype(), shape, bytes.to_vec())?)))
        };
        let (x, scale, zero) = (part(&w, Some(vec![rows, columns]))?, part(&scale, None)?, part(&zero, None)?);
        let (Some(x), Some(scale), Some(zero)) = (x, scale, zero) else { return Ok(None) };
        all.push(Steps { x, scale, zero });
    }
    Ok(Some(all))
}

/// Constant weights `[directions, rows, columns]` as floats, transposed to `[directions, columns, rows]`: what would be done in every run
/// if it were left to the passes, which keep weights of bytes as they are.
fn dequantized(cx: &Context, w: ValueId, scale: ValueId, zero: ValueId) -> Result<Option<Tensor>, Failure> {
    let (Some(w), Some(scale), Some(zero)) = (cx.constant_of(w), cx.constant_of(scale), cx.constant_of(zero)) else {
        return Ok(None);
    };
    let &[directions, rows, columns] = w.shape() else { return Ok(None) };
    let (Some(values), Some(scales), Some(zeros)) = (w.to_i64(), scale.to_f32(), zero.to_i64()) else { return Ok(None) };
    // One parameter for each direction, or for each column of each.
    let each = scales.len().checked_div(directions).unwrap_or(0);
    if !(each == 1 || each == columns) || scales.len() != each * directions || zeros.len() != scales.len() {
        return Ok(None);
    }
    let mut real = Vec::with_capacity(values.len());
    for d in 0..directions {
        for column in 0..columns {
            let at = d * each + if each == 1 { 0 } else { column };
            for row in 0..rows {
                let steps = values[(d * rows + row) * columns + column] - zeros[at];
                real.push(steps as f32 * scales[at]);
            }
        }
    }
    Ok(Some(Tensor::from_f32(&[directions, columns, rows], &real)?))
}

/// The functions with their parameters as the host op reads them. Parameters are handed out in order, to those functions that
/// take any.
fn activations(cx: &Context, directions: usize, default: &[&str]) -> Result<String, Failure> {
    let names: Vec<String> = match cx.node.byte_strings_opt("activations")? {
        Some(given) if !given.is_empty() => given.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect(),
        _ => default.iter().cycle().take(default.len() * directions).map(|s| s.to_string()).collect(),
    };
    let mut alphas = cx.node.floats_opt("activation_alpha")?.unwrap_or_default().iter();
    let mut betas = cx.node.floats_opt("activation_beta")?.unwrap_or_default().iter();
    let mut texts = Vec::new();
    for name in names {
        let (takes_alpha, takes_beta, alpha, beta) = match name.to_ascii_lowercase().as_str() {
            "affine" => (true, true, 1.0, 0.0),
            "scaledtanh" => (true, true, 1.0, 1.0),
            "hardsigmoid" => (true, true, 0.2, 0.5),
            "leakyrelu" => (true, false, 0.01, 0.0),
            "thresholdedrelu" | "elu" => (true, false, 1.0, 0.0),
            _ => (false, false, 0.0, 0.0),
        };
        let alpha = if takes_alpha { alphas.next().copied().unwrap_or(alpha) } else { alpha };
        let beta = if takes_beta { betas.next().copied().unwrap_or(beta) } else { beta };
        texts.push(if takes_alpha { format!("{name} {alpha} {beta}") } else { name });
    }
    Ok(texts.join(","))
}

/// The layer that the node's attributes and inputs from 3 on describe, with the input and the weights given.
fn layer(
    cx: &mut Context,
    [mut x, w, r]: [ValueId; 3],
    integers: Option<Integers>,
    name: &'static str,
    gates: usize,
    default: &[&str],
) -> Result<Outputs, Failure> {
    let dtype = cx.dtype(x);
    if cx.rank(x) != 3 || cx.rank(w) != 3 || cx.rank(r) != 3 {
        return Err(Failure::invalid("X, W and R must have three axes"));
    }
    let (directions, reverse) = match cx.node.string_or("direction", "forward")? {
        "forward" => (1, false),
        "reverse" => (1, true),
        "bidirectional" => (2, false),
        other => return Err(cx.node.attribute_value("direction", format!("{other:?} is none of ONNX's")).into()),
    };
    if cx.dims(w)[0].as_size() != Some(directions) {
        return Err(Failure::invalid(format!("W is {} for {directions} directions", cx.ty(w))));
    }
    let batch_first = cx.node.bool_or("layout", false)?;
    if batch_first {
        x = cx.transpose(x, &[1, 0, 2])?;
    }
    let (time, batch, hidden) = (cx.dims(x)[0].clone(), cx.dims(x)[1].clone(), cx.dims(r)[2].clone());
    let many = Expr::from(directions);
    let b = match cx.optional(3)? {
        Some(b) => b,
        None => filled(cx, dtype, 0.0, vec![many.clone(), hidden.scale(2 * gates as i64)])?,
    };
    let lengths = match cx.optional(4)? {
        Some(lengths) => lengths,
        None => {
            let time = cx.dims_tensor(&[time], true)?;
            cx.broadcast(time, vec![batch.clone()])?
        }
    };
    let state = |cx: &mut Context, i: usize| -> Result<ValueId, Failure> {
        match cx.optional(i)? {
            Some(s) if batch_first => cx.transpose(s, &[1, 0, 2]),
            Some(s) => Ok(s),
            None => filled(cx, dtype, 0.0, vec![many.clone(), batch.clone(), hidden.clone()]),
        }
    };
    let h = state(cx, 5)?;
    let mut inputs = vec![x, w, r, b, h, lengths];
    let clip = cx.node.float_opt("clip")?.filter(|&c| c > 0.0).map_or(f64::INFINITY, f64::from);
    let functions = activations(cx, directions, default)?;
    let text = Attribute::Text(functions.clone());
    let mut a = Attributes::new().with("reverse", reverse).with("activations", text).with("clip", real(clip));
    match name {
        "lstm" => {
            inputs.push(state(cx, 6)?);
            inputs.push(match cx.optional(7)? {
                Some(p) => p,
                None => filled(cx, dtype, 0.0, vec![many.clone(), hidden.scale(3)])?,
            });
            a = a.with("coupled", cx.node.bool_or("input_forget", false)?);
            if cx.node.op_type == "DynamicQuantizeLSTM" {
                a = a.with("rounded", true);
            }
        }
        "gru" => a = a.with("reset_after", cx.node.bool_or("linear_before_reset", false)?),
        _ => {}
    }
    let flag = match name {
        "lstm" => cx.node.bool_or("input_forget", false)?,
        "gru" => cx.node.bool_or("linear_before_reset", false)?,
        _ => false,
    };
    let quantized = a.get("rounded").is_some();
    let (lengths, peepholes) = (cx.optional(4)?, if name == "lstm" { cx.optional(7)? } else { None });
    let memory = (name == "lstm").then(|| inputs[6]);
    let layer = Layer { name, gates, reverse, clip, activations: functions, flag, rounded: quantized, integers, x, w, r, b, h, c: memory, lengths, peepholes };
    // The host op says what is wrong with operands that do not fit.
    let types: Vec<_> = inputs.iter().map(|&v| cx.ty(v).clone()).collect();
    let op: Op = Host::new(name, a.clone()).map_err(|e| Failure::unsupported(e.0))?.into();
    let fits = op.infer(&types.iter().collect::<Vec<_>>()).is_ok();
    let mut results = if fits { written_out(cx, &layer)? } else { None };
    if results.is_none() && fits {
        results = scanned(cx, &layer)?;
    }
    let mut results = match results {
        Some(results) => results,
        None => cx.host(name, a, &inputs)?,
    };
    if batch_first {
        // Y is [time, directions, batch, hidden], the states are [directions, batch, hidden].
        for (n, result) in results.iter_mut().enumerate() {
            *result = if n == 0 { cx.transpose(*result, &[2, 0, 1, 3])? } else { cx.transpose(*result, &[1, 0, 2])? };
        }
    }
    Ok(results.into())
}
