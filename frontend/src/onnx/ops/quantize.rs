//! `QuantizeLinear`, `DequantizeLinear` and `DynamicQuantizeLinear`.

use super::few_bits;
use super::support::{cast_unsaturated, first, repeat, type_attribute};
use super::{Spec, of, onnx};
use crate::onnx::import::{Body, Context, Failure, Outputs, S};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Reduce;
use kiln_ir::{BinaryOp, DType, Expr, Tensor};

pub(super) const OPS: &[Spec] = &[
    onnx("QuantizeLinear", 10, &["axis", "block_size", "output_dtype", "precision", "saturate"], quantize),
    onnx("DequantizeLinear", 10, &["axis", "block_size", "output_dtype"], dequantize),
    of("com.microsoft", "QuantizeLinear", &["axis", "block_size"], quantize),
    of("com.microsoft", "DequantizeLinear", &["axis", "block_size"], dequantize),
    onnx("DynamicQuantizeLinear", 11, &[], |cx| {
        let x = cx.input(0)?;
        let (y, scale, zero_point) = quantize_dynamically(cx, x)?;
        Ok(vec![y, scale, zero_point].into())
    }),
];

/// Scale or zero point so that it broadcasts to `x`: one number, a vector along `axis`, or one for each block along it.
pub(super) fn spread(
    cx: &mut Context,
    parameter: ValueId,
    x: ValueId,
    axis: i64,
    block: i64,
) -> Result<ValueId, Failure> {
    if cx.ty(parameter).elements().as_const() == Some(1) && block == 0 {
        return cx.reshape(parameter, vec![]);
    }
    let rank = cx.rank(x);
    let axis = cx.axis(axis, rank)?;
    if block == 0 {
        return cx.along(parameter, axis, rank);
    }
    let block = usize::try_from(block).map_err(|_| cx.node.attribute_value("block_size", "is negative"))?;
    if cx.rank(parameter) != rank {
        return Err(Failure::invalid(format!("{} gives no blocks of {}", cx.ty(parameter), cx.ty(x))));
    }
    let whole = repeat(cx, parameter, axis, block)?;
    let extent = cx.dims(x)[axis].clone();
    let (have, want) = (cx.dims(whole)[axis].as_const(), extent.as_const());
    if have.zip(want).is_some_and(|(have, want)| have < want || have - want >= block as i64) {
        return Err(Failure::invalid(format!("{} gives no blocks of {block} of {}", cx.ty(parameter), cx.ty(x))));
    }
    first(cx, whole, axis, extent)
}

/// Refuses a constant scale that leaves no number: one that is none itself, and where values are divided by it, one that is not above
/// zero. What is multiplied by a negative scale or by zero has a value like any other, and files of people hold such ones.
pub(super) fn check_scale(cx: &Context, scale: ValueId, divides: bool) -> Result<(), Failure> {
    let wrong = |v: &f64| !v.is_finite() || divides && *v <= 0.0;
    match cx.constant_of(scale).and_then(Tensor::to_f64).and_then(|all| all.into_iter().find(wrong)) {
        None => Ok(()),
        Some(v) => {
            let least = if divides { ", and greater than 0 where values are divided by them" } else { "" };
            Err(Failure::invalid(format!("a scale is {v}; scales are finite{least}")))
        }
    }
}

/// Rounds to the nearest even, adds the zero point and saturates; all but the result in f32.
pub(super) fn to_integer(b: &mut Body, dtype: DType, scaled: S, zero_point: Option<S>) -> S {
    let rounded = b.round(scaled);
    let shifted = match zero_point {
        Some(z) => {
            let z = b.cast(DType::F32, z);
            b.add(rounded, z)
        }
        None => rounded,
    };
    let (low, high) = dtype.int_range().unwrap_or((0, 1));
    let (low, high) = (b.lit(shifted, low as f64), b.lit(shifted, high as f64));
    let raised = b.max(shifted, low);
    let clamped = b.min(raised, high);
    b.cast(dtype, clamped)
}

fn quantize(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, scale, zero_point) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    let (axis, block) = (cx.node.int_or("axis", 1)?, cx.node.int_or("block_size", 0)?);
    let given = type_attribute(cx, "output_dtype")?;
    let to = zero_point.map(|z| cx.dtype(z)).or(given).unwrap_or(DType::U8);
    if given.is_some_and(|g| g != to) {
        return Err(Failure::invalid(format!("`output_dtype` is not the zero point's type {to}")));
    }
    let saturate = cx.node.bool_or("saturate", true)?;
    let precision = type_attribute(cx, "precision")?.unwrap_or(cx.dtype(scale));
    check_scale(cx, scale, true)?;
    let scale = spread(cx, scale, x, axis, block)?;
    let mut inputs = vec![x, scale];
    // The zero point of a float type is 0; it only names the type.
    if let (Some(z), true) = (zero_point, to.is_int()) {
        inputs.push(spread(cx, z, x, axis, block)?);
    }
    let dims = cx.dims(x);
    let y = cx.map(&inputs, |b, a| {
        let (value, scale) = (b.cast(precision, a[0]), b.cast(precision, a[1]));
        let scaled = b.div(value, scale);
        let scaled = b.cast(DType::F32, scaled);
        match (to.is_int(), saturate) {
            (true, _) => to_integer(b, to, scaled, a.get(2).copied()),
            (false, true) => b.cast(to, scaled),
            (false, false) => cast_unsaturated(b, to, scaled),
        }
    })?;
    if cx.dims(y) != dims {
        return Err(Failure::invalid(format!("the scale does not broadcast to {}", cx.ty(x))));
    }
    Ok(y.into())
}

fn dequantize(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, scale, zero_point) = (cx.input(0)?, cx.input(1)?, cx.optional(2)?);
    let (axis, block) = (cx.node.int_or("axis", 1)?, cx.node.int_or("block_size", 0)?);
    let to = type_attribute(cx, "output_dtype")?.unwrap_or(cx.dtype(scale));
    let integer = cx.dtype(x).is_int();
    check_scale(cx, scale, false)?;
    if let Some(y) = matrix_of_few_bits(cx, [x, scale], zero_point, axis, block)? {
        return Ok(cx.cast(y, to)?.into());
    }
    let scale = spread(cx, scale, x, axis, block)?;
    let mut inputs = vec![in_bytes(cx, x)?, scale];
    if let (Some(z), true) = (zero_point, integer) {
        if cx.dtype(z) != cx.dtype(x) {
            return Err(Failure::invalid(format!("the zero point is {}, the values are {}", cx.ty(z), cx.ty(x))));
        }
        let z = in_bytes(cx, z)?;
        inputs.push(spread(cx, z, x, axis, block)?);
    }
    let dims = cx.dims(x);
    let y = cx.map(&inputs, |b, a| {
        let difference = match a.get(2) {
            Some(&z) => {
                let (v, z) = (b.cast(DType::I32, a[0]), b.cast(DType::I32, z));
                b.sub(v, z)
            }
            None => a[0],
        };
        let (value, scale) = (b.cast(DType::F32, difference), b.cast(DType::F32, a[1]));
        let product = b.mul(value, scale);
        b.cast(to, product)
    })?;
    if cx.dims(y) != dims {
        return Err(Failure::invalid(format!("the scale does not broadcast to {}", cx.ty(x))));
    }
    Ok(y.into())
}

/// A constant matrix of 2 or 4 bits in blocks along an axis, or with a scale for each row or column or for all of it, or one of 8 bits in blocks,
/// as `MatMulNBits` has it: its numbers as [`few_bits`] has them, with a scale and a zero point for each block, so that products unpack it in
/// registers. Rows that their blocks do not divide are filled up. Nothing where it is no such matrix.
fn matrix_of_few_bits(
    cx: &mut Context,
    [x, scale]: [ValueId; 2],
    zero: Option<ValueId>,
    axis: i64,
    block: i64,
) -> Result<Option<ValueId>, Failure> {
    let up = match cx.dtype(x) {
        DType::I4 => 8,
        DType::I2 => 2,
        DType::I8 if block > 0 => 128,
        DType::U4 | DType::U2 => 0,
        DType::U8 if block > 0 => 0,
        _ => return Ok(None),
    };
    let Ok(block) = usize::try_from(block) else { return Ok(None) };
    let (Some(t), Some(scales)) = (cx.constant_of(x).cloned(), cx.constant_of(scale).cloned()) else { return Ok(None) };
    let zeros = match zero {
        Some(z) if cx.dtype(z) != cx.dtype(x) => return Ok(None),
        Some(z) => match cx.constant_of(z).cloned() {
            Some(zeros) => Some(zeros),
            None => return Ok(None),
        },
        None => None,
    };
    let &[rows, columns] = t.shape() else { return Ok(None) };
    let single = block == 0 && scales.len() == 1;
    // A scale for each row is for a block along the row. One for all may be either; products mostly have rows that are summed over.
    let along_rows = single || (cx.axis(axis, cx.rank(x))? == 0) == (block > 0);
    let (n, k) = if along_rows { (columns, rows) } else { (rows, columns) };
    let each = match block {
        // Few numbers stay as they are.
        0 if k < few_bits::RUN => k,
        0 => k.next_multiple_of(few_bits::RUN),
        _ => block,
    };
    let blocks = k.div_ceil(each.max(1));
    let whole = blocks.saturating_mul(each);
    if t.is_empty() || whole > k.saturating_mul(2) || scales.dtype() != DType::F32 {
        return Ok(None);
    }
    let parameters = match (block, along_rows) {
        _ if single => vec![],
        (0, _) => vec![n],
        (_, true) => vec![blocks, n],
        (_, false) => vec![n, blocks],
    };
    let fits = |t: &Tensor| t.shape() == parameters || single && t.len() == 1;
    if !fits(&scales) || !zeros.as_ref().is_none_or(fits) {
        return Ok(None);
    }
    // With the axis of the blocks last, filled up to so many.
    let turned = |values: Vec<i64>, from: usize, to: usize| -> Vec<u8> {
        let at = |row: usize, column: usize| if along_rows { column * n + row } else { row * from + column };
        let value = |i: usize| (i % to < from).then(|| values.get(at(i / to, i % to)).copied()).flatten().unwrap_or(0);
        (0..n * to).map(|i| (value(i) + up) as u8).collect()
    };
    let Some(numbers) = t.to_i64() else { return Ok(None) };
    let (numbers, mut per_block) = few_bits::numbers(cx, turned(numbers, k, whole), [n, blocks, each])?;
    let scale = few_bits::narrowed(cx, scale)?;
    let scale = if along_rows && blocks > 1 { cx.transpose(scale, &[1, 0])? } else { scale };
    if single {
        per_block.fill(1);
    }
    let mut inputs = vec![numbers, cx.reshape(scale, per_block.iter().copied().map(Expr::from).collect())?];
    if let Some(zeros) = zeros.and_then(|z| z.to_i64()) {
        let zeros = if single { zeros.iter().map(|z| (z + up) as u8).collect() } else { turned(zeros, blocks, blocks) };
        inputs.push(cx.constant(Tensor::new(DType::U8, per_block, zeros)?));
    }
    let y = cx.map(&inputs, |b, a| {
        let (w, s) = (b.cast(DType::F32, a[0]), b.cast(DType::F32, a[1]));
        let zero = match a.get(2) {
            Some(&z) => b.cast(DType::F32, z),
            None => b.lit(w, up as f64),
        };
        let steps = b.sub(w, zero);
        b.mul(steps, s)
    })?;
    let y = cx.reshape(y, vec![Expr::from(n), Expr::from(whole)])?;
    let y = first(cx, y, 1, Expr::from(k))?;
    Ok(Some(if along_rows { cx.transpose(y, &[1, 0])? } else { y }))
}

/// A constant of numbers of fewer than 8 bits as one of bytes, which kernels compute with.
fn in_bytes(cx: &mut Context, v: ValueId) -> Result<ValueId, Failure> {
    let to = match cx.dtype(v) {
        DType::I4 | DType::I2 => DType::I8,
        DType::U4 | DType::U2 => DType::U8,
        _ => return Ok(v),
    };
    let Some(t) = cx.constant_of(v) else { return Ok(v) };
    let Some(values) = t.to_i64() else { return Ok(v) };
    let bytes: Vec<u8> = values.into_iter().map(|v| v as u8).collect();
    let wide = Tensor::new(to, t.shape().to_vec(), bytes)?;
    Ok(cx.constant(wide))
}

/// The value as u8 with its scale and zero point, which cover the range of the values and 0.
pub(super) fn quantize_dynamically(cx: &mut Context, x: ValueId) -> Result<(ValueId, ValueId, ValueId), Failure> {
    if cx.dtype(x) != DType::F32 || cx.ty(x).elements().as_const() == Some(0) {
        return Err(Failure::invalid(format!("{} cannot be quantized", cx.ty(x))));
    }
    let all = |cx: &mut Context, combine: BinaryOp| {
        cx.add(Reduce { combine, axes: (0..cx.rank(x)).collect(), keep: false }, &[x])
    };
    let (high, low) = (all(cx, BinaryOp::Max)?, all(cx, BinaryOp::Min)?);
    let scale = cx.map(&[high, low], |b, a| {
        let (zero, one, steps) = (b.lit(a[0], 0.0), b.lit(a[0], 1.0), b.lit(a[0], 255.0));
        let (high, low) = (b.max(a[0], zero), b.min(a[1], zero));
        let (range, empty) = (b.sub(high, low), b.eq(high, low));
        let range = b.select(empty, one, range);
        b.div(range, steps)
    })?;
    let zero_point = cx.map(&[low, scale], |b, a| {
        let zero = b.lit(a[0], 0.0);
        let low = b.min(a[0], zero);
        let steps = b.div(low, a[1]);
        let shifted = b.sub(zero, steps);
        to_integer(b, DType::U8, shifted, None)
    })?;
    let y = cx.map(&[x, scale, zero_point], |b, a| {
        let scaled = b.div(a[0], a[1]);
        to_integer(b, DType::U8, scaled, Some(a[2]))
    })?;
    Ok((y, scale, zero_point))
}

/// The nearest of the 256 numbers that [`quantize_dynamically`] has for the whole of `x`.
pub(super) fn rounded(cx: &mut Context, x: ValueId) -> Result<ValueId, Failure> {
    let (steps, scale, zero_point) = quantize_dynamically(cx, x)?;
    cx.map(&[steps, scale, zero_point], |b, a| {
        let (steps, zero) = (b.cast(DType::I32, a[0]), b.cast(DType::I32, a[2]));
        let steps = b.sub(steps, zero);
        let steps = b.cast(DType::F32, steps);
        b.mul(steps, a[1])
    })
}

/// The value minus its zero point, as i32. The zero point must broadcast to it.
pub(super) fn centred(cx: &mut Context, x: ValueId, zero_point: Option<ValueId>) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let y = match zero_point {
        Some(z) => cx.map(&[x, z], |b, a| {
            let (x, z) = (b.cast(DType::I32, a[0]), b.cast(DType::I32, a[1]));
            b.sub(x, z)
        })?,
        None => cx.cast(x, DType::I32)?,
    };
    if cx.dims(y) != dims {
        return Err(Failure::invalid(format!("the zero point does not broadcast to {}", cx.ty(x))));
    }
    Ok(y)
}

/// A parameter of a matrix: one number, a vector along the rows or columns, or already with all axes.
pub(super) fn of_matrix(
    cx: &mut Context,
    parameter: ValueId,
    x: ValueId,
    along_rows: bool,
) -> Result<ValueId, Failure> {
    if cx.ty(parameter).elements().as_const() == Some(1) {
        return cx.reshape(parameter, vec![]);
    }
    match (cx.rank(parameter), along_rows) {
        (1, true) if cx.rank(x) >= 2 => {
            let mut dims = cx.dims(parameter);
            dims.push(Expr::from(1i64));
            cx.reshape(parameter, dims)
        }
        _ => Ok(parameter),
    }
}
