//! Operators of `com.microsoft` on quantized tensors: what the plain operator makes of the real values, quantized again.

use super::matmul::{Flip, matmul};
use super::quantize::{centred, of_matrix, to_integer};
use super::support::floats;
use super::{Spec, of};
use crate::onnx::import::{Body, Context, Failure, Outputs, S};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Concat, Contract, Reduce, Softmax};
use kiln_ir::{BinaryOp, DType, Expr, Tensor};

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
    of(DOMAIN, "QLinearGlobalAveragePool", &["channels_last"], global_average_pool),
    of(DOMAIN, "QGemm", &["alpha", "transA", "transB"], gemm),
    of(DOMAIN, "MatMulNBits", &["K", "N", "accuracy_level", "bits", "block_size", "weight_prepacked"], matmul_n_bits),
];

/// Input `at` as real numbers, with its scale and zero point in the two inputs after it.
fn real(cx: &mut Context, at: usize) -> Result<ValueId, Failure> {
    let (x, scale) = (cx.input(at)?, cx.input(at + 1)?);
    let zero_point = cx.optional(at + 2)?.map(|z| cx.reshape(z, vec![])).transpose()?;
    let scale = cx.reshape(scale, vec![])?;
    let steps = centred(cx, x, zero_point)?;
    cx.map(&[steps, scale], |b, a| {
        let steps = b.cast(DType::F32, a[0]);
        b.mul(steps, a[1])
    })
}

/// Real numbers as integers of a type, with scale and zero point in inputs `at` and `at + 1`.
fn quantized(cx: &mut Context, y: ValueId, at: usize, otherwise: DType) -> Result<ValueId, Failure> {
    let scale = cx.input(at)?;
    let mut inputs = vec![y, cx.reshape(scale, vec![])?];
    let mut to = otherwise;
    if let Some(z) = cx.optional(at + 1)? {
        to = cx.dtype(z);
        inputs.push(cx.reshape(z, vec![])?);
    }
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

fn concat(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut parts = Vec::new();
    let count = cx.input_count();
    for at in (2..count).step_by(3) {
        parts.push(real(cx, at)?);
    }
    let first = *parts.first().ok_or_else(|| Failure::invalid("there is nothing to concatenate"))?;
    let axis = cx.axis(cx.node.int("axis")?, cx.rank(first))?;
    let whole = cx.add(Concat { axis }, &parts)?;
    let dtype = cx.dtype(cx.input(2)?);
    Ok(quantized(cx, whole, 0, dtype)?.into())
}

fn global_average_pool(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, dtype) = (real(cx, 0)?, cx.dtype(cx.input(0)?));
    let dims = cx.dims(x);
    let last = cx.node.bool_or("channels_last", false)?;
    let axes: Vec<usize> = if last { (1..dims.len().saturating_sub(1)).collect() } else { (2..dims.len()).collect() };
    let count = axes.iter().fold(Expr::from(1i64), |n, &a| n.mul(&dims[a]));
    let sum = cx.add(Reduce { combine: BinaryOp::Add, axes, keep: true }, &[x])?;
    let count = cx.dims_tensor(&[count], true)?;
    let mean = cx.map(&[sum, count], |b, a| {
        let count = b.cast(DType::F32, a[1]);
        b.div(a[0], count)
    })?;
    Ok(quantized(cx, mean, 3, dtype)?.into())
}

/// `alpha * a * b + bias`; the bias is an i32 with the scale of the product. Without a scale for it the result stays real.
fn gemm(cx: &mut Context) -> Result<Outputs, Failure> {
    let (a, b) = (cx.input(0)?, cx.input(3)?);
    let (flip_a, flip_b) = (cx.node.bool_or("transA", false)?, cx.node.bool_or("transB", false)?);
    let alpha = f64::from(cx.node.float_or("alpha", 1.0)?);
    let (scale_a, scale_b) = (cx.input(1)?, cx.input(4)?);
    if cx.ty(scale_b).elements().as_const() != Some(1) && flip_b {
        // One scale for each column of the product is one for each row of the operand as it is stored.
        let zero = cx.optional(5)?.map(|z| of_matrix(cx, z, b, true)).transpose()?;
        return finish_gemm(cx, (a, b), zero, (flip_a, flip_b), alpha, (scale_a, scale_b));
    }
    let zero = cx.optional(5)?.map(|z| of_matrix(cx, z, b, false)).transpose()?;
    finish_gemm(cx, (a, b), zero, (flip_a, flip_b), alpha, (scale_a, scale_b))
}

fn finish_gemm(
    cx: &mut Context,
    (a, b): (ValueId, ValueId),
    zero_b: Option<ValueId>,
    flips: (bool, bool),
    alpha: f64,
    (scale_a, scale_b): (ValueId, ValueId),
) -> Result<Outputs, Failure> {
    let dtype = cx.dtype(a);
    let zero_a = cx.optional(2)?.map(|z| cx.reshape(z, vec![])).transpose()?;
    let (left, right) = (centred(cx, a, zero_a)?, centred(cx, b, zero_b)?);
    let mut y = matmul(cx, left, right, Flip(flips.0), Flip(flips.1))?;
    if let Some(bias) = cx.optional(6)? {
        y = cx.map(&[y, bias], |b, a| b.add(a[0], a[1]))?;
    }
    let scale_a = cx.reshape(scale_a, vec![])?;
    let scale_b = of_matrix(cx, scale_b, y, false)?;
    let y = cx.map(&[y, scale_a, scale_b], |b, a| {
        let (y, alpha) = (b.cast(DType::F32, a[0]), b.lit(a[1], alpha));
        let scale = b.mul(a[1], a[2]);
        let scale = b.mul(alpha, scale);
        b.mul(y, scale)
    })?;
    if cx.bound(7).is_none() { Ok(y.into()) } else { Ok(quantized(cx, y, 7, dtype)?.into()) }
}

/// A product with a constant matrix of 4 or 8 bits a weight, stored as `[N, blocks, bytes of a block]`, low bits first, with a
/// scale and perhaps a zero point for each block.
fn matmul_n_bits(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let size = |name: &str, default: Option<i64>| {
        let v = default.map_or_else(|| cx.node.int(name), |d| cx.node.int_or(name, d))?;
        let size = usize::try_from(v).ok().filter(|&v| v > 0 && v <= 1 << 31);
        size.ok_or_else(|| Failure::from(cx.node.attribute_value(name, format!("{v} is out of range"))))
    };
    let (k, n, bits, block) = (size("K", None)?, size("N", None)?, size("bits", Some(4))?, size("block_size", None)?);
    if cx.bound(4).is_some() {
        return Err(Failure::unsupported("`g_idx` of MatMulNBits is not supported"));
    }
    let narrow = match bits {
        4 => DType::U4,
        8 => DType::U8,
        _ => return Err(Failure::unsupported(format!("weights of {bits} bits are not supported"))),
    };
    let per_byte = 8 / bits;
    let blocks = k.div_ceil(block);
    let unpack = |packed: &[u8], rows: usize, columns: usize, stride: usize| -> Vec<u8> {
        let element = |row: usize, column: usize| {
            let byte = packed.get(row * stride + column / per_byte).copied().unwrap_or(0);
            if per_byte == 1 { byte } else { byte >> (4 * (column % 2)) & 15 }
        };
        (0..rows).flat_map(|r| (0..columns).map(move |c| element(r, c))).collect()
    };
    kiln_ir::tensor::element_count(&[n, blocks, block], 1)?;
    let packed = cx.constant_input(1, "B")?;
    if packed.dtype() != DType::U8 || packed.len() != n * blocks * block / per_byte {
        return Err(Failure::invalid(format!("B has {} bytes for {n} rows of {blocks} blocks", packed.len())));
    }
    let weights = unpack(packed.bytes(), n, blocks * block, blocks * block / per_byte);
    let weights = Tensor::new(narrow, vec![n, blocks, block], weights)?;
    let zero_points = match cx.optional(3)? {
        None => None,
        Some(z) if cx.dtype(z) == DType::U8 => {
            let packed = cx.constant_input(3, "zero_points")?;
            let stride = blocks.div_ceil(per_byte);
            if packed.len() != n * stride {
                return Err(Failure::invalid(format!("{} zero points for {n} rows of {blocks}", packed.len())));
            }
            let values = unpack(packed.bytes(), n, blocks, stride);
            Some(cx.constant(Tensor::new(narrow, vec![n, blocks, 1], values)?))
        }
        Some(z) => Some(cx.reshape(z, [n, blocks, 1].map(Expr::from).to_vec())?),
    };
    let weights = cx.constant(weights);
    let scales = cx.input(2)?;
    let scales = cx.reshape(scales, [n, blocks, 1].map(Expr::from).to_vec())?;
    let zero_points = match zero_points {
        Some(z) => z,
        None => floats(cx, DType::F32, &[], &[(1 << (bits - 1)) as f64])?,
    };
    let dtype = cx.dtype(x);
    let real = cx.map(&[weights, scales, zero_points], |b, a| {
        let [w, s, z] = [a[0], a[1], a[2]].map(|v| b.cast(DType::F32, v));
        let steps = b.sub(w, z);
        let value = b.mul(steps, s);
        b.cast(dtype, value)
    })?;
    let real = cx.reshape(real, vec![Expr::from(n), Expr::from(blocks * block)])?;
    let real = super::support::first(cx, real, 1, Expr::from(k))?;
    let letters: String = ('a'..='w').take(cx.rank(x).saturating_sub(1)).collect();
    let y = cx.add(Contract::new(&format!("{letters}z"), "yz", &format!("{letters}y")), &[x, real])?;
    match cx.optional(5)? {
        Some(bias) => Ok(cx.map(&[y, bias], |b, a| b.add(a[0], a[1]))?.into()),
        None => Ok(y.into()),
    }
}
