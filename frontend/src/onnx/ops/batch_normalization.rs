//! `BatchNormalization`: a scale and a shift for each channel.

use super::reduce::mean;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::{Class, DType};

const ATTRIBUTES: &[&str] = &["epsilon", "momentum", "training_mode", "is_test", "spatial", "consumed_inputs"];

pub(super) const OPS: &[Spec] = &[onnx("BatchNormalization", 1, ATTRIBUTES, batch_normalization)];

fn batch_normalization(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (dtype, rank) = (cx.dtype(x), cx.rank(x));
    let epsilon = f64::from(cx.node.float_or("epsilon", 1e-5)?);
    if cx.opset() < 9 && !cx.node.bool_or("spatial", true)? {
        return Err(Failure::unsupported("spatial = 0 is not supported"));
    }
    let old = cx.opset() < 7 && !cx.node.bool_or("is_test", false)?;
    let training = cx.opset() >= 14 && cx.node.bool_or("training_mode", false)?;
    let trained = (1..5).any(|i| cx.wants(i));
    if old || trained && !training {
        return Err(Failure::unsupported("statistics as outputs are not supported; export the model for inference"));
    }
    if rank == 0 || !dtype.is_float() {
        return Err(Failure::invalid(format!("{} is no tensor of floats with channels", cx.ty(x))));
    }
    // Axis 1 holds the channels; a vector has but one.
    let wide = if dtype.class() == Class::Float { DType::F32 } else { DType::F64 };
    // What is known is computed once, in f64: an error of a channel's factor is one of all its elements, which no sum evens out.
    let mut known = !training;
    for i in 1..5 {
        let v = cx.input(i)?;
        known &= cx.constant_of(v).is_some();
    }
    let exact = if known { DType::F64 } else { wide };
    let channels = |cx: &mut Context, i: usize| -> Result<_, Failure> {
        let v = cx.input(i)?;
        let v = cx.cast(v, exact)?;
        if rank == 1 { Ok(v) } else { cx.along(v, 1, rank) }
    };
    let (scale, bias) = (channels(cx, 1)?, channels(cx, 2)?);
    let (old_mean, old_variance) = (channels(cx, 3)?, channels(cx, 4)?);
    let x = cx.cast(x, wide)?;
    let (average, variance) = if training {
        let axes: Vec<usize> = (0..rank).filter(|&n| n != 1).collect();
        let average = mean(cx, x, &axes, true)?;
        let square = cx.map(&[x, average], |b, a| {
            let d = b.sub(a[0], a[1]);
            b.mul(d, d)
        })?;
        (average, mean(cx, square, &axes, true)?)
    } else {
        (old_mean, old_variance)
    };
    // Constant statistics leave one multiplication and one addition.
    let factor = cx.map(&[scale, variance], |b, a| {
        let e = b.lit(a[1], epsilon);
        let sum = b.add(a[1], e);
        let root = b.sqrt(sum);
        b.div(a[0], root)
    })?;
    let shift = cx.map(&[bias, average, factor], |b, a| {
        let moved = b.mul(a[1], a[2]);
        b.sub(a[0], moved)
    })?;
    let (factor, shift) = (cx.cast(factor, wide)?, cx.cast(shift, wide)?);
    let y = cx.map(&[x, factor, shift], |b, a| {
        let scaled = b.mul(a[0], a[1]);
        let y = b.add(scaled, a[2]);
        b.cast(dtype, y)
    })?;
    let mut outputs = vec![y];
    if training {
        let momentum = f64::from(cx.node.float_or("momentum", 0.9)?);
        for (i, old, new) in [(3, old_mean, average), (4, old_variance, variance)] {
            let running = cx.map(&[old, new], |b, a| {
                let (keep, take) = (b.lit(a[0], momentum), b.lit(a[0], 1.0 - momentum));
                let (kept, taken) = (b.mul(a[0], keep), b.mul(a[1], take));
                b.add(kept, taken)
            })?;
            let given = cx.input(i)?;
            let (dims, dtype) = (cx.dims(given), cx.dtype(given));
            let running = cx.reshape(running, dims)?;
            outputs.push(cx.cast(running, dtype)?);
        }
    }
    Ok(outputs.into())
}
