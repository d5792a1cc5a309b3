//! What host ops share: elements of tensors as scalars, indices that are checked, results of given types.
//!
//! Invariant: an index that comes from data is used only after [`position`] has accepted it.

use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::OpError;
use crate::scalar::{BinaryOp, Constant};
use crate::semantics;
use crate::tensor::{Tensor, TensorError};
use crate::{Class, DType};
use std::cmp::Ordering;

impl From<TensorError> for OpError {
    fn from(e: TensorError) -> OpError {
        OpError(e.to_string())
    }
}

/// All elements; nothing is returned for complex numbers and strings.
pub(super) fn constants(t: &Tensor) -> Result<Vec<Constant>, OpError> {
    let at = |i| Constant::load(t.dtype(), t.bytes(), i);
    let all: Option<Vec<Constant>> = (0..t.len()).map(at).collect();
    all.ok_or_else(|| OpError::new(format!("elements of type {} are no numbers", t.dtype())))
}

/// A tensor of scalars of its type.
pub(super) fn tensor(dtype: DType, shape: &[usize], values: &[Constant]) -> Result<Tensor, OpError> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    values.iter().for_each(|v| v.store(&mut bytes));
    Ok(Tensor::new(dtype, shape.to_vec(), bytes)?)
}

/// All elements as f64.
pub(super) fn floats(t: &Tensor) -> Result<Vec<f64>, OpError> {
    t.to_f64().ok_or_else(|| OpError::new(format!("elements of type {} are no numbers", t.dtype())))
}

/// A tensor of f64 values rounded to its type.
pub(super) fn from_floats(dtype: DType, shape: &[usize], values: &[f64]) -> Result<Tensor, OpError> {
    let mut bytes = Vec::with_capacity(values.len() * dtype.size());
    match dtype {
        DType::F32 => values.iter().for_each(|&v| bytes.extend_from_slice(&(v as f32).to_le_bytes())),
        _ => values.iter().for_each(|&v| Constant::float(dtype, v).store(&mut bytes)),
    }
    Ok(Tensor::new(dtype, shape.to_vec(), bytes)?)
}

/// All elements as i64.
pub(super) fn ints(t: &Tensor) -> Result<Vec<i64>, OpError> {
    t.to_i64().ok_or_else(|| OpError::new(format!("elements of type {} are no integers", t.dtype())))
}

/// The binary operation on two scalars of one type, by [`crate::semantics`].
pub(super) fn binary(op: BinaryOp, a: Constant, b: Constant) -> Constant {
    let dtype = a.dtype;
    match dtype.class() {
        Class::Float => {
            let y = semantics::binary_f32(op, f32::from_bits(a.bits as u32), f32::from_bits(b.bits as u32));
            Constant { dtype, bits: u64::from(semantics::round_to(dtype, y).to_bits()) }
        }
        Class::Double => Constant::float(dtype, semantics::binary_f64(op, a.as_f64(), b.as_f64())),
        Class::Bool | Class::Signed | Class::Unsigned | Class::Complex | Class::Str => {
            let y = semantics::binary_int(op, dtype, a.bits as i64, b.bits as i64).unwrap_or(0);
            Constant { dtype, bits: y as u64 }
        }
    }
}

/// Order of two scalars of one type; a NaN is greater than every number and equal to another NaN.
pub(super) fn order(a: Constant, b: Constant) -> Ordering {
    match a.dtype.class() {
        Class::Unsigned | Class::Bool => a.bits.cmp(&b.bits),
        Class::Signed | Class::Complex | Class::Str => (a.bits as i64).cmp(&(b.bits as i64)),
        Class::Float | Class::Double => {
            let (a, b) = (a.as_f64(), b.as_f64());
            a.partial_cmp(&b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
        }
    }
}

/// The key of a NaN, which is greater than that of every other float.
pub(super) const NAN: i64 = i64::MAX;

/// Numbers in the order of [`order`] for so many elements of a tensor from one of them on: equal elements have equal ones.
pub(super) fn keys(t: &Tensor, from: usize, count: usize, keys: &mut Vec<i64>) -> Result<(), OpError> {
    keys.clear();
    let (dtype, size) = (t.dtype(), t.dtype().size());
    let bytes = t.bytes().get(from * size..(from + count) * size).unwrap_or_default();
    // Without their sign floats are in the order of their bits; a zero has none.
    let single = |v: f32| match v.is_nan() {
        true => NAN,
        false => {
            let bits = (v + 0.0).to_bits() as i32;
            i64::from(bits ^ ((bits >> 31) as u32 >> 1) as i32)
        }
    };
    match (dtype.class(), dtype) {
        (Class::Float, DType::F32) => {
            keys.extend(bytes.as_chunks::<4>().0.iter().map(|b| single(f32::from_le_bytes(*b))))
        }
        (Class::Signed, DType::I64) => keys.extend(bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b))),
        (class, _) => {
            for n in from..from + count {
                let c = Constant::load(dtype, t.bytes(), n);
                let c = c.ok_or_else(|| OpError::new(format!("elements of type {dtype} are no numbers")))?;
                keys.push(match class {
                    Class::Unsigned | Class::Bool => c.bits as i64 ^ i64::MIN,
                    Class::Signed | Class::Complex | Class::Str => c.bits as i64,
                    Class::Float => single(f32::from_bits(c.bits as u32)),
                    Class::Double if c.as_f64().is_nan() => NAN,
                    Class::Double => {
                        let bits = (c.as_f64() + 0.0).to_bits() as i64;
                        bits ^ ((bits >> 63) as u64 >> 1) as i64
                    }
                });
            }
        }
    }
    Ok(())
}

/// An index into an axis, negative ones counted from the end.
pub(super) fn position(index: i64, extent: usize) -> Result<usize, OpError> {
    let shifted = if index < 0 { index.saturating_add(i64::try_from(extent).unwrap_or(i64::MAX)) } else { index };
    let inside = usize::try_from(shifted).ok().filter(|&i| i < extent);
    inside.ok_or_else(|| OpError::new(format!("index {index} is out of range for an axis of extent {extent}")))
}

/// Distances between neighbours along each axis of a row-major tensor.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for n in (1..shape.len()).rev() {
        strides[n - 1] = strides[n] * shape[n];
    }
    strides
}

/// The product of the extents before an axis, its extent, and the product of those after it.
pub(super) fn split(shape: &[usize], axis: usize) -> (usize, usize, usize) {
    (shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product())
}

/// Moves an index on to the next one of a row-major tensor.
pub(super) fn advance(index: &mut [usize], shape: &[usize]) {
    for (i, &extent) in index.iter_mut().zip(shape).rev() {
        *i += 1;
        if *i < extent {
            return;
        }
        *i = 0;
    }
}

/// The shape of a result, with the operands' real dims.
pub(super) fn result_shape(types: Result<Vec<TensorType>, OpError>, n: usize) -> Result<Vec<usize>, OpError> {
    let shape = types?.get(n).and_then(TensorType::shape);
    shape.ok_or_else(|| OpError::new("the result has no constant dims"))
}

/// The types of tensors.
pub(super) fn types(inputs: &[Tensor]) -> Vec<TensorType> {
    inputs.iter().map(|t| TensorType::of(t.dtype(), t.shape())).collect()
}

/// Exactly `N` operand tensors.
pub(super) fn tensors<const N: usize>(inputs: &[Tensor]) -> Result<&[Tensor; N], OpError> {
    inputs.try_into().map_err(|_| OpError::new(format!("takes {N} operands, not {}", inputs.len())))
}

/// Fails where two dims are different numbers, whatever the symbols are.
pub(super) fn same(what: &str, a: &Expr, b: &Expr) -> Result<(), OpError> {
    match a.sub(b).as_const() {
        None | Some(0) => Ok(()),
        Some(_) => Err(OpError::new(format!("{what}: {a} is not {b}"))),
    }
}

/// Elements of `base`, or of `other` where the pick says so, each by its row-major position.
pub(super) fn assemble(base: &Tensor, other: &Tensor, from_other: &[Option<usize>]) -> Result<Tensor, OpError> {
    let picks = from_other.iter().enumerate();
    if let (Some(a), Some(b)) = (base.strings(), other.strings()) {
        let strings = picks.map(|(i, o)| o.and_then(|o| b.get(o)).or_else(|| a.get(i)).cloned().unwrap_or_default());
        return Ok(Tensor::from_strings(base.shape().to_vec(), strings.collect())?);
    }
    let size = base.dtype().size();
    let mut bytes = base.bytes().to_vec();
    for (i, o) in picks {
        let source = o.and_then(|o| other.bytes().get(o * size..(o + 1) * size));
        if let (Some(source), Some(slot)) = (source, bytes.get_mut(i * size..(i + 1) * size)) {
            slot.copy_from_slice(source);
        }
    }
    Ok(Tensor::new(base.dtype(), base.shape().to_vec(), bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_elements() {
        let floats =
            [0.0, -0.0, 1.5, -1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e-40, -1e-40, 3e38, 96.0, -448.0];
        let ints = [0.0, 1.0, 127.0, 255.0, 3.0];
        for dtype in DType::ALL.into_iter().filter(|d| d.is_float() || d.is_int() || *d == DType::Bool) {
            let mut bytes = Vec::new();
            let values: &[f64] = if dtype.is_float() { &floats } else { &ints };
            match dtype {
                _ if dtype.is_float() => values.iter().for_each(|&v| Constant::float(dtype, v).store(&mut bytes)),
                // Patterns that are negative where there is a sign.
                _ => (0..5 * dtype.size()).for_each(|n| bytes.push([0, 1, 127, 255, 128][n % 5])),
            }
            let count = bytes.len() / dtype.size();
            let t = Tensor::new(dtype, vec![count], bytes).unwrap();
            let (all, mut found) = (constants(&t).unwrap(), Vec::new());
            keys(&t, 0, count, &mut found).unwrap();
            for (a, x) in all.iter().zip(&found) {
                for (b, y) in all.iter().zip(&found) {
                    assert_eq!(order(*a, *b), x.cmp(y), "{dtype} {a} {b}");
                }
            }
            let mut part = Vec::new();
            keys(&t, 2, 2, &mut part).unwrap();
            assert_eq!(part, found[2..4]);
        }
    }
}
