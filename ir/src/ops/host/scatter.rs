//! `scatter_elements` and `scatter_nd`: elements of a tensor replaced by, or combined with, updates at indexed places.

use super::Function;
use super::element::{assemble, binary, constants, ints, position, same, strides, tensor, tensors};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::scalar::BinaryOp;
use crate::semantics;
use crate::tensor::Tensor;

/// `out = data; out[.., indices[i], ..] = updates[i]`, the index at `axis`. Attributes: `axis`, `combine` (`replace`, add, mul,
/// max, min). Negative indices count from the end, one that is out of range is an error. Updates are applied in order.
pub(super) const ELEMENTS: Function = Function { name: "scatter_elements", infer: infer_elements, eval: eval_elements };

/// `out = data; out[indices[j..], ..] = updates[j.., ..]`: the last axis of `indices` holds index tuples. Attribute: `combine`.
pub(super) const ND: Function = Function { name: "scatter_nd", infer: infer_nd, eval: eval_nd };

fn combine(a: &Attributes, data: &TensorType, updates: &TensorType) -> Result<Option<BinaryOp>, OpError> {
    let word = a.word("combine")?;
    let op = BinaryOp::from_name(word);
    let known = matches!(op, Some(BinaryOp::Add | BinaryOp::Mul | BinaryOp::Max | BinaryOp::Min));
    if word != "replace" && !known {
        return Err(OpError::new(format!("cannot combine with `{word}`")));
    }
    let numbers = data.dtype.is_float() || data.dtype.is_int() || data.dtype == crate::DType::Bool;
    if data.dtype != updates.dtype || (op.is_some() && !numbers) {
        return Err(OpError::new(format!("cannot scatter {} into {} by `{word}`", updates.dtype, data.dtype)));
    }
    Ok(op)
}

fn infer_elements(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [data, indices, updates] = operands(inputs)?;
    combine(a, data, updates)?;
    let axis = a.size("axis")?;
    check_axes(&[axis], data.rank())?;
    if !indices.dtype.is_int() || indices.rank() != data.rank() || updates.rank() != data.rank() {
        return Err(OpError::new("indices must be integers, with as many axes as the data and the updates"));
    }
    for n in 0..data.rank() {
        same("extents of indices and updates", &indices.dims[n], &updates.dims[n])?;
        if n != axis && data.dims[n].sub(&indices.dims[n]).as_const().is_some_and(|d| d < 0) {
            return Err(OpError::new(format!("axis {n} of the indices is longer than that of the data")));
        }
    }
    Ok(vec![TensorType::new(data.dtype, data.dims.clone())])
}

fn infer_nd(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [data, indices, updates] = operands(inputs)?;
    combine(a, data, updates)?;
    let tuple = indices.dims.last().and_then(Expr::as_size).filter(|&k| k <= data.rank());
    let tuple = tuple.ok_or_else(|| OpError::new("the indices' last dim must be a number of the data's axes"))?;
    let mut expected = indices.dims[..indices.rank() - 1].to_vec();
    expected.extend_from_slice(&data.dims[tuple..]);
    if !indices.dtype.is_int() || updates.rank() != expected.len() {
        return Err(OpError::new(format!("{updates} at {indices} do not fit {data}")));
    }
    for (u, e) in updates.dims.iter().zip(&expected) {
        same("extents of the updates", u, e)?;
    }
    Ok(vec![TensorType::new(data.dtype, data.dims.clone())])
}

/// Applies updates: each element of `updates`, in order, goes to the place that `place` gives.
fn apply(a: &Attributes, data: &Tensor, updates: &Tensor, places: &[usize]) -> Result<Vec<Tensor>, OpError> {
    let Some(op) = BinaryOp::from_name(a.word("combine")?) else {
        let mut picks = vec![None; data.len()];
        for (update, &place) in places.iter().enumerate() {
            picks[place] = Some(update);
        }
        return Ok(vec![assemble(data, updates, &picks)?]);
    };
    if data.dtype() == DType::F32 {
        return apply_f32(op, data, updates, places);
    }
    let (mut result, new) = (constants(data)?, constants(updates)?);
    for (&update, &place) in new.iter().zip(places) {
        result[place] = binary(op, result[place], update);
    }
    Ok(vec![tensor(data.dtype(), data.shape(), &result)?])
}

/// [`apply`] of the type that graph networks sum up in, without a scalar of any type for each element.
fn apply_f32(op: BinaryOp, data: &Tensor, updates: &Tensor, places: &[usize]) -> Result<Vec<Tensor>, OpError> {
    let mut result = data.bytes().to_vec();
    let (elements, _) = result.as_chunks_mut::<4>();
    let (updates, _) = updates.bytes().as_chunks::<4>();
    for (update, &place) in updates.iter().zip(places) {
        let element = elements.get_mut(place).ok_or_else(|| OpError::new("a place outside of the data"))?;
        *element = semantics::binary_f32(op, f32::from_ne_bytes(*element), f32::from_ne_bytes(*update)).to_ne_bytes();
    }
    Ok(vec![Tensor::new(data.dtype(), data.shape().to_vec(), result)?])
}

fn eval_elements(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [data, indices, updates] = tensors(inputs)?;
    let axis = a.size("axis")?;
    let stride = strides(data.shape());
    for (n, (i, d)) in indices.shape().iter().zip(data.shape()).enumerate() {
        if n != axis && i > d && !indices.is_empty() {
            return Err(OpError::new(format!("axis {n} of the indices is longer than that of the data")));
        }
    }
    let flat = ints(indices)?;
    let mut places = Vec::with_capacity(flat.len());
    // Rows of the indices: within one only the last axis moves.
    let Some((&row, outer)) = indices.shape().split_last() else { return Err(OpError::new("wants an axis")) };
    let mut at = vec![0usize; outer.len()];
    let step = if axis == outer.len() { 0 } else { 1 };
    for row in flat.chunks(row.max(1)) {
        let base: usize = (0..at.len()).filter(|&n| n != axis).map(|n| at[n] * stride[n]).sum();
        for (n, &index) in row.iter().enumerate() {
            places.push(base + n * step + position(index, data.shape()[axis])? * stride[axis]);
        }
        super::element::advance(&mut at, outer);
    }
    apply(a, data, updates, &places)
}

fn eval_nd(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [data, indices, updates] = tensors(inputs)?;
    let tuple = indices.shape().last().copied().unwrap_or(0);
    let stride = strides(data.shape());
    let slice: usize = data.shape()[tuple..].iter().product();
    let flat = ints(indices)?;
    let tuples: usize = indices.shape()[..indices.shape().len() - 1].iter().product();
    let mut places = Vec::with_capacity(updates.len());
    for t in 0..tuples {
        let mut start = 0;
        for n in 0..tuple {
            start += position(flat[t * tuple + n], data.shape()[n])? * stride[n];
        }
        places.extend(start..start + slice);
    }
    apply(a, data, updates, &places)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, run};
    use super::*;

    fn t(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(shape, values).unwrap()
    }

    #[test]
    fn elements_replace_and_combine() {
        let indices = Tensor::from_i64(&[1, 3], &[1, -1, 1]).unwrap();
        let inputs = [t(&[2, 3], &[1., 2., 3., 4., 5., 6.]), indices, t(&[1, 3], &[10., 20., 30.])];
        let of = |axis: usize, op: &str| {
            run("scatter_elements", Attributes::new().with("axis", axis).with("combine", op), &inputs)[0]
                .to_f32()
                .unwrap()
        };
        assert_eq!(of(0, "replace"), [1., 2., 3., 10., 20., 30.]);
        assert_eq!(of(1, "add"), [1., 42., 23., 4., 5., 6.]);
        assert_eq!(of(1, "max"), [1., 30., 20., 4., 5., 6.]);
        let bad = [inputs[0].clone(), Tensor::from_i64(&[1, 3], &[0, 7, 0]).unwrap(), inputs[2].clone()];
        let error = fails("scatter_elements", Attributes::new().with("axis", 1usize).with("combine", "add"), &bad);
        assert!(error.contains("index 7") && error.contains("extent 3"), "{error}");
    }

    #[test]
    fn nd_writes_slices() {
        let data = t(&[3, 2], &[1., 2., 3., 4., 5., 6.]);
        let inputs = [data, Tensor::from_i64(&[2, 1], &[2, 0]).unwrap(), t(&[2, 2], &[7., 8., 9., 10.])];
        let of = |op: &str| run("scatter_nd", Attributes::new().with("combine", op), &inputs)[0].to_f32().unwrap();
        assert_eq!(of("replace"), [9., 10., 3., 4., 7., 8.]);
        assert_eq!(of("mul"), [9., 20., 3., 4., 35., 48.]);
        let strings = |s: &[&str]| s.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
        let data = Tensor::from_strings(vec![2], strings(&["a", "b"])).unwrap();
        let update = Tensor::from_strings(vec![1], strings(&["c"])).unwrap();
        let inputs = [data, Tensor::from_i64(&[1, 1], &[-2]).unwrap(), update];
        let r = run("scatter_nd", Attributes::new().with("combine", "replace"), &inputs);
        assert_eq!(r[0].strings().unwrap(), strings(&["c", "b"]));
    }
}
