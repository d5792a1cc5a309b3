//! Normalizations within one element of the batch: layer, root mean square, group and instance.

use super::reduce::mean;
use super::{Spec, of, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Norm, NormKind};
use kiln_ir::{Class, Constant, DType, Expr};

pub(super) const OPS: &[Spec] = &[
    // Exporters use it in older versions too, as ONNX Runtime allows.
    onnx("LayerNormalization", 1, &["axis", "epsilon", "stash_type"], |cx| rows(cx, NormKind::Layer)),
    onnx("RMSNormalization", 23, &["axis", "epsilon", "stash_type"], |cx| rows(cx, NormKind::Rms)),
    // ONNX Runtime puts this one into ONNX's own domain.
    onnx("SimplifiedLayerNormalization", 1, &["axis", "epsilon", "stash_type"], |cx| rows(cx, NormKind::Rms)),
    of("com.microsoft", "SimplifiedLayerNormalization", &["axis", "epsilon", "stash_type"], |cx| rows(cx, NormKind::Rms)),
    of("com.microsoft", "SkipLayerNormalization", &["epsilon"], |cx| {
        skip(cx, NormKind::Layer, Some(3), 4, 1e-12)
    }),
    of("com.microsoft", "SkipSimplifiedLayerNormalization", &["epsilon"], |cx| {
        skip(cx, NormKind::Rms, None, 3, 1e-12)
    }),
    onnx("InstanceNormalization", 1, &["epsilon", "consumed_inputs"], |cx| {
        let x = cx.input(0)?;
        let rank = cx.rank(x);
        if rank < 3 {
            return Err(Failure::invalid(format!("{} has no spatial axes", cx.ty(x))));
        }
        let epsilon = f64::from(cx.node.float_or("epsilon", 1e-5)?);
        let y = norm(cx, x, NormKind::Layer, rank - 2, epsilon)?;
        channels(cx, y)
    }),
    onnx("GroupNormalization", 18, &["epsilon", "num_groups", "stash_type"], |cx| {
        let x = cx.input(0)?;
        let dims = cx.dims(x);
        let count = cx.node.int("num_groups")?;
        let groups = Expr::from(count);
        if count < 1 || dims.len() < 2 || dims[1].modulo(&groups).as_const() != Some(0) {
            let message = format!("{} cannot be cut into {count} groups of channels", cx.ty(x));
            return Err(cx.node.attribute_value("num_groups", message).into());
        }
        let epsilon = f64::from(cx.node.float_or("epsilon", 1e-5)?);
        let per_group = dims[1].floor_div(&groups);
        let mut split = vec![dims[0].clone(), groups, per_group.clone()];
        split.extend_from_slice(&dims[2..]);
        let axes = split.len() - 2;
        let grouped = cx.reshape(x, split.clone())?;
        let y = norm(cx, grouped, NormKind::Layer, axes, epsilon)?;
        if cx.opset() >= 21 {
            let y = cx.reshape(y, dims)?;
            return channels(cx, y);
        }
        // Before version 21 there is one scale and bias for each group.
        let y = channels(cx, y)?;
        match y.0.first() {
            Some(crate::onnx::import::Bound::Tensor(y)) => Ok(cx.reshape(*y, dims)?.into()),
            _ => Ok(y),
        }
    }),
    onnx("LpNormalization", 1, &["axis", "p"], |cx| {
        let x = cx.input(0)?;
        let p = cx.node.int_or("p", 2)?;
        if !(1..=2).contains(&p) {
            return Err(cx.node.attribute_value("p", format!("{p} is neither 1 nor 2")).into());
        }
        let axis = cx.axis_attribute(-1, cx.rank(x))?;
        let powers = super::pool::power(cx, x, p)?;
        let reduce = kiln_ir::ops::Reduce { combine: kiln_ir::BinaryOp::Add, axes: vec![axis], keep: true };
        let sum = cx.add(reduce, &[powers])?;
        let norm = super::pool::root(cx, sum, p)?;
        // A row of zeros stays one.
        let result = cx.map(&[x, norm], |b, a| {
            let (zero, one) = (b.lit(a[1], 0.0), b.lit(a[1], 1.0));
            let none = b.eq(a[1], zero);
            let by = b.select(none, one, a[1]);
            b.div(a[0], by)
        });
        Ok(result?.into())
    }),
    onnx("MeanVarianceNormalization", 9, &["axes"], |cx| {
        let x = cx.input(0)?;
        let axes = cx.axes(cx.node.ints_opt("axes")?.unwrap_or(&[0, 2, 3]), cx.rank(x))?;
        let average = mean(cx, x, &axes, true)?;
        let centred = cx.map(&[x, average], |b, a| b.sub(a[0], a[1]))?;
        let square = cx.map(&[centred], |b, a| b.mul(a[0], a[0]))?;
        let variance = mean(cx, square, &axes, true)?;
        let result = cx.map(&[centred, variance], |b, a| {
            let (root, epsilon) = (b.sqrt(a[1]), b.lit(a[1], 1e-9));
            let by = b.add(root, epsilon);
            b.div(a[0], by)
        });
        Ok(result?.into())
    }),
];

/// The last `axes` axes normalized, in at least f32; the result has the type of that computation.
pub(super) fn norm(cx: &mut Context, x: ValueId, kind: NormKind, axes: usize, epsilon: f64) -> Result<ValueId, Failure> {
    let wide = if cx.dtype(x).class() == Class::Float { DType::F32 } else { cx.dtype(x) };
    let x = cx.cast(x, wide)?;
    cx.add(Norm { kind, axes, epsilon: Constant::float(wide, epsilon) }, &[x])
}

/// Scale (input 1) and bias (input 2) along axis 1.
fn channels(cx: &mut Context, y: ValueId) -> Result<Outputs, Failure> {
    let (dtype, wide, rank) = (cx.dtype(cx.input(0)?), cx.dtype(y), cx.rank(y));
    let mut along = |i: usize| -> Result<ValueId, Failure> {
        let v = cx.input(i)?;
        let v = cx.along(v, 1, rank)?;
        cx.cast(v, wide)
    };
    let (scale, bias) = (along(1)?, along(2)?);
    let result = cx.map(&[y, scale, bias], |b, a| {
        let scaled = b.mul(a[0], a[1]);
        let y = b.add(scaled, a[2]);
        b.cast(dtype, y)
    });
    Ok(result?.into())
}

/// `y * scale + bias`, rounded to `dtype` before them.
pub(super) fn affine(
    cx: &mut Context,
    y: ValueId,
    scale: Option<ValueId>,
    bias: Option<ValueId>,
    dtype: DType,
) -> Result<ValueId, Failure> {
    let dims = cx.dims(y);
    let mut y = cx.cast(y, dtype)?;
    if let Some(scale) = scale {
        y = cx.map(&[y, scale], |b, a| {
            // The scale may be of a wider type than the input.
            let wide = if b.dtype(a[1]) == b.dtype(a[0]) { a[0] } else { b.cast(b.dtype(a[1]), a[0]) };
            b.mul(wide, a[1])
        })?;
    }
    if let Some(bias) = bias {
        y = cx.map(&[y, bias], |b, a| b.add(a[0], a[1]))?;
    }
    if cx.dims(y) != dims {
        return Err(Failure::invalid("scale or bias do not broadcast to the input"));
    }
    Ok(y)
}

/// Layer or root mean square normalization from an axis on, with scale and bias of the axes' dims.
fn rows(cx: &mut Context, kind: NormKind) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (dtype, rank) = (cx.dtype(x), cx.rank(x));
    let axis = cx.axis_attribute(-1, rank)?;
    let epsilon = f64::from(cx.node.float_or("epsilon", 1e-5)?);
    let (scale, bias) = (cx.optional(1)?, cx.optional(2)?);
    let normal = norm(cx, x, kind, rank - axis, epsilon)?;
    let y = affine(cx, normal, scale, bias, dtype)?;
    let mut outputs = vec![y];
    if cx.wants(1) || cx.wants(2) {
        let wide = cx.dtype(normal);
        let axes: Vec<usize> = (axis..rank).collect();
        let x = cx.cast(x, wide)?;
        let average = mean(cx, x, &axes, true)?;
        let centred = match kind {
            NormKind::Layer => cx.map(&[x, average], |b, a| b.sub(a[0], a[1]))?,
            NormKind::Rms => x,
        };
        let square = cx.map(&[centred], |b, a| b.mul(a[0], a[0]))?;
        let variance = mean(cx, square, &axes, true)?;
        let inverse = cx.map(&[variance], |b, a| {
            let e = b.lit(a[0], epsilon);
            let sum = b.add(a[0], e);
            let root = b.sqrt(sum);
            b.recip(root)
        })?;
        if kind == NormKind::Layer {
            outputs.push(average);
        }
        outputs.push(inverse);
    }
    Ok(outputs.into())
}

/// `norm(input + skip + bias)`, ONNX Runtime's fusion; the sum is output 3.
fn skip(
    cx: &mut Context,
    kind: NormKind,
    beta: Option<usize>,
    bias: usize,
    epsilon: f32,
) -> Result<Outputs, Failure> {
    let (x, skip) = (cx.input(0)?, cx.input(1)?);
    let dtype = cx.dtype(x);
    let epsilon = f64::from(cx.node.float_or("epsilon", epsilon)?);
    if cx.wants(1) || cx.wants(2) {
        return Err(Failure::unsupported("mean and inverse deviation as outputs are not supported"));
    }
    let mut sum = cx.map(&[x, skip], |b, a| b.add(a[0], a[1]))?;
    if cx.dims(sum) != cx.dims(x) {
        return Err(Failure::invalid(format!("{} does not broadcast to {}", cx.ty(skip), cx.ty(x))));
    }
    if let Some(bias) = cx.optional(bias)? {
        sum = cx.map(&[sum, bias], |b, a| b.add(a[0], a[1]))?;
    }
    let normal = norm(cx, sum, kind, 1, epsilon)?;
    let (gamma, beta) = (cx.input(2)?, beta.map_or(Ok(None), |i| cx.optional(i))?);
    let y = affine(cx, normal, Some(gamma), beta, dtype)?;
    // Outputs 1 and 2 are not wanted; any tensor can stand for them.
    Ok(vec![y, sum, sum, sum].into())
}
