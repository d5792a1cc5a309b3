//! Weights of 2, 4 or 8 bits in blocks with a scale each: `MatMulNBits` and `GatherBlockQuantized` of `com.microsoft`.
//!
//! Invariant: packed weights are constants, low bits first; those of products are stored as [`super::few_bits`] has them.

use super::few_bits;
use super::matmul::{Flip, matmul};
use super::quantize::{check_scale, spread};
use super::support::first;
use super::{Spec, of};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Gather;
use kiln_ir::{DType, Expr, Tensor};

const DOMAIN: &str = "com.microsoft";

pub(super) const OPS: &[Spec] = &[
    of(DOMAIN, "MatMulNBits", &["K", "N", "accuracy_level", "bits", "block_size", "weight_prepacked"], matmul_n_bits),
    of(DOMAIN, "GatherBlockQuantized", &["bits", "block_size", "gather_axis", "quantize_axis"], gather_block_quantized),
];

/// An attribute that is a positive number.
fn size(cx: &Context, name: &str, default: Option<i64>) -> Result<usize, Failure> {
    let v = default.map_or_else(|| cx.node.int(name), |d| cx.node.int_or(name, d))?;
    let size = usize::try_from(v).ok().filter(|&v| v > 0 && v <= 1 << 31);
    size.ok_or_else(|| cx.node.attribute_value(name, format!("{v} is out of range")).into())
}

fn bits(cx: &Context) -> Result<usize, Failure> {
    match size(cx, "bits", Some(4))? {
        n @ (2 | 4 | 8) => Ok(n),
        n => Err(cx.node.attribute_value("bits", format!("{n} is none of 2, 4, 8")).into()),
    }
}

/// `columns` numbers of `bits` bits from each of `rows` rows of `stride` bytes.
fn unpacked(packed: &[u8], (rows, columns): (usize, usize), stride: usize, bits: usize) -> Vec<u8> {
    let each = 8 / bits;
    let mask = if bits == 8 { u8::MAX } else { (1 << bits) - 1 };
    let mut all = Vec::with_capacity(rows.saturating_mul(columns));
    for row in packed.chunks(stride.max(1)).take(rows) {
        all.extend((0..columns).map(|c| row.get(c / each).copied().unwrap_or(0) >> (bits * (c % each)) & mask));
    }
    all
}

/// The number that stands for 0 where no zero point is given.
fn middle(bits: usize) -> f64 {
    f64::from(1u32 << (bits - 1))
}

/// `(weights - zero point) * scale`, in f32, as `dtype`.
fn real(
    cx: &mut Context,
    [weights, scale]: [ValueId; 2],
    zero_point: Option<ValueId>,
    otherwise: f64,
    dtype: DType,
) -> Result<ValueId, Failure> {
    let mut inputs = vec![weights, scale];
    inputs.extend(zero_point);
    cx.map(&inputs, |b, a| {
        let (w, s) = (b.cast(DType::F32, a[0]), b.cast(DType::F32, a[1]));
        let z = match a.get(2) {
            Some(&z) => b.cast(DType::F32, z),
            None => b.lit(w, otherwise),
        };
        let steps = b.sub(w, z);
        let value = b.mul(steps, s);
        b.cast(dtype, value)
    })
}

/// `x * weights^T + bias`. Weights are `[N, blocks, bytes of a block]`, with a scale and perhaps a zero point for each block.
fn matmul_n_bits(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (k, n, bits, block) = (size(cx, "K", None)?, size(cx, "N", None)?, bits(cx)?, size(cx, "block_size", None)?);
    if cx.bound(4).is_some() {
        return Err(Failure::unsupported("`g_idx` is not supported"));
    }
    if cx.node.int_or("weight_prepacked", 0)? != 0 {
        return Err(Failure::unsupported("weights that are packed for one engine are not supported"));
    }
    if !block.is_power_of_two() || block * bits < 8 {
        return Err(cx.node.attribute_value("block_size", format!("{block} is out of range")).into());
    }
    let blocks = k.div_ceil(block);
    let whole = blocks.saturating_mul(block);
    kiln_ir::tensor::element_count(&[n, whole], 1)?;
    let packed = cx.constant_input(1, "B")?;
    if packed.dtype() != DType::U8 || packed.len() != n * (whole * bits / 8) {
        return Err(Failure::invalid(format!("B has {} bytes for {n} rows of {blocks} blocks", packed.len())));
    }
    let weights = unpacked(packed.bytes(), (n, whole), whole * bits / 8, bits);
    let (weights, per_block) = few_bits::numbers(cx, weights, [n, blocks, block])?;
    let dims: Vec<Expr> = per_block.iter().copied().map(Expr::from).collect();
    let zero_points = match cx.optional(3)? {
        None => None,
        Some(z) if cx.dtype(z) == DType::U8 => {
            let packed = cx.constant_input(3, "zero_points")?;
            let stride = (blocks * bits).div_ceil(8);
            if packed.len() != n * stride {
                return Err(Failure::invalid(format!("{} bytes of zero points for {n} rows of {blocks}", packed.len())));
            }
            let values = unpacked(packed.bytes(), (n, blocks), stride, bits);
            Some(cx.constant(Tensor::new(DType::U8, per_block, values)?))
        }
        Some(z) => Some(cx.reshape(z, dims.clone())?),
    };
    let scales = cx.input(2)?;
    check_scale(cx, scales, false)?;
    let dtype = cx.dtype(scales);
    let scales = few_bits::narrowed(cx, scales)?;
    let scales = cx.reshape(scales, dims)?;
    let weights = real(cx, [weights, scales], zero_points, middle(bits), dtype)?;
    let weights = cx.cast(weights, cx.dtype(x))?;
    let weights = cx.reshape(weights, vec![Expr::from(n), Expr::from(whole)])?;
    let weights = first(cx, weights, 1, Expr::from(k))?;
    let y = matmul(cx, x, weights, Flip::default(), Flip(true))?;
    match cx.optional(5)? {
        Some(bias) => Ok(cx.map(&[y, bias], |b, a| b.add(a[0], a[1]))?.into()),
        None => Ok(y.into()),
    }
}

/// Rows (or slices along another axis) of a quantized table, as floats.
fn gather_block_quantized(cx: &mut Context) -> Result<Outputs, Failure> {
    let (data, indices, scales) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let (block, rank) = (size(cx, "block_size", Some(128))?, cx.rank(data));
    let axis = cx.axis(cx.node.int_or("gather_axis", 0)?, rank)?;
    let along = cx.axis(cx.node.int_or("quantize_axis", 1)?, rank)?;
    let bits = bits(cx)?;
    if let Some(rows) = rows_of_few_bits(cx, [axis, along], block, bits)? {
        return Ok(rows.into());
    }
    let narrow = |dtype| matches!(dtype, DType::U4 | DType::I4);
    let (table, zero_points, otherwise) = if cx.dtype(data) == DType::U8 {
        if along + 1 != rank {
            return Err(Failure::invalid("packed data must be quantized along its last axis"));
        }
        let zero_points = match cx.optional(3)? {
            Some(_) => {
                let packed = cx.constant_input(3, "zero_points")?.clone();
                Some(unpack_last(cx, &packed, bits, scale_blocks(cx, scales))?)
            }
            None => None,
        };
        let packed = cx.constant_input(0, "data")?.clone();
        let table = unpack_last(cx, &packed, bits, None)?;
        (table, zero_points, middle(bits))
    } else if narrow(cx.dtype(data)) {
        (data, cx.optional(3)?, 0.0)
    } else {
        return Err(Failure::unsupported(format!("data of type {} is not supported", cx.dtype(data))));
    };
    let parameters: Vec<ValueId> = [Some(scales), zero_points].into_iter().flatten().collect();
    let pick = |cx: &mut Context, v: ValueId| cx.add(Gather { axis }, &[v, indices]);
    let together = axis == along;
    // Only what is picked is converted, unless the blocks run along the axis that is picked from.
    let (table, parameters) = if together {
        (table, parameters)
    } else {
        let table = pick(cx, table)?;
        (table, parameters.into_iter().map(|p| pick(cx, p)).collect::<Result<Vec<_>, _>>()?)
    };
    let place = if along > axis { along + cx.rank(table) - rank } else { along };
    let place = i64::try_from(place).unwrap_or(i64::MAX);
    let block = i64::try_from(block).unwrap_or(i64::MAX);
    let spread = parameters.iter().map(|&p| spread(cx, p, table, place, block)).collect::<Result<Vec<_>, _>>()?;
    let [scale, rest @ ..] = spread.as_slice() else { return Err(Failure::invalid("there is no scale")) };
    let dtype = cx.dtype(scales);
    let result = real(cx, [table, *scale], rest.first().copied(), otherwise, dtype)?;
    if together { Ok(pick(cx, result)?.into()) } else { Ok(result.into()) }
}

/// Rows of a table that is stored several numbers a byte: the bytes are picked, as what else reads the table reads them. Nothing where it is no
/// such table.
fn rows_of_few_bits(
    cx: &mut Context,
    [axis, along]: [usize; 2],
    block: usize,
    bits: usize,
) -> Result<Option<ValueId>, Failure> {
    let (data, indices, scales) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let zeros = cx.optional(3)?;
    let Some(table) = cx.constant_of(data).filter(|t| t.dtype() == DType::U8).cloned() else { return Ok(None) };
    let &[rows, stride] = table.shape() else { return Ok(None) };
    let columns = stride.saturating_mul(8 / bits);
    let blocks = columns / block;
    let whole = |v: ValueId| cx.ty(v).shape() == Some(vec![rows, blocks]);
    if (axis, along) != (0, 1) || columns % block != 0 || zeros.is_some() || !whole(scales) {
        return Ok(None);
    }
    let numbers = unpacked(table.bytes(), (rows, columns), stride, bits);
    let Some(each) = few_bits::fits(&numbers, block) else { return Ok(None) };
    let dtype = cx.dtype(scales);
    let bytes = few_bits::packed(&numbers, each, [rows, blocks, block])?;
    let bytes = cx.constant(bytes);
    let scales = few_bits::narrowed(cx, scales)?;
    let pick = |cx: &mut Context, v: ValueId| cx.add(Gather { axis: 0 }, &[v, indices]);
    let (bytes, scales) = (pick(cx, bytes)?, pick(cx, scales)?);
    let numbers = few_bits::unpacked(cx, bytes, each)?;
    let mut dims = cx.dims(scales);
    dims.resize(cx.rank(numbers), Expr::from(1i64));
    let scales = cx.reshape(scales, dims)?;
    let values = real(cx, [numbers, scales], None, middle(bits), dtype)?;
    let mut dims = cx.dims(indices);
    dims.push(Expr::from(columns));
    Ok(Some(cx.reshape(values, dims)?))
}

/// How many blocks there are along the last axis, where that is known.
fn scale_blocks(cx: &Context, scales: ValueId) -> Option<usize> {
    cx.dims(scales).last().and_then(Expr::as_size)
}

/// A constant of packed bytes with its last axis unpacked, to `count` elements where that is known.
fn unpack_last(cx: &mut Context, packed: &Tensor, bits: usize, count: Option<usize>) -> Result<ValueId, Failure> {
    let mut shape = packed.shape().to_vec();
    let stride = shape.pop().ok_or_else(|| Failure::invalid("packed data must have an axis"))?;
    if packed.dtype() != DType::U8 {
        return Err(Failure::invalid(format!("packed data is of type {}", packed.dtype())));
    }
    let rows = kiln_ir::tensor::element_count(&shape, 1)?;
    let columns = stride.saturating_mul(8 / bits);
    let columns = count.filter(|&c| c <= columns).unwrap_or(columns);
    shape.push(columns);
    kiln_ir::tensor::element_count(&shape, 1)?;
    let values = unpacked(packed.bytes(), (rows, columns), stride, bits);
    Ok(cx.constant(Tensor::new(DType::U8, shape, values)?))
}

#[cfg(test)]
mod tests {
    use super::unpacked;

    #[test]
    fn low_bits_come_first() {
        assert_eq!(unpacked(&[0x21, 0x43, 0x65, 0x07], (2, 3), 2, 4), [1, 2, 3, 5, 6, 7]);
        assert_eq!(unpacked(&[0b1110_0100], (1, 4), 1, 2), [0, 1, 2, 3]);
        assert_eq!(unpacked(&[200, 3], (2, 1), 1, 8), [200, 3]);
    }
}
