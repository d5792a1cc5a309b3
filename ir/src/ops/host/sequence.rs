//! Sequences of tensors, and optionals, which are sequences of at most one.
//!
//! Invariant: what a sequence holds is checked where it is taken out; a position counts from the end where it is negative.

use super::Function;
use super::element::{ints, split};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes};
use crate::tensor::{Tensor, element_count};

/// All operands, in order.
pub(super) const MAKE: Function = Function { name: "sequence", infer: infer_make, eval: eval_make };
/// Operands: a sequence, a tensor, and perhaps a position: the sequence with the tensor before that position, or at the end.
pub(super) const INSERT: Function = Function { name: "sequence_insert", infer: infer_insert, eval: eval_insert };
/// Operands: a sequence and perhaps a position: the sequence without that element, or without the last.
pub(super) const ERASE: Function = Function { name: "sequence_erase", infer: infer_erase, eval: eval_erase };
/// Operands: a sequence and a position: that element, of type `results`.
pub(super) const AT: Function = Function { name: "sequence_at", infer: infer_at, eval: eval_at };
/// The number of elements, an i64 without axes.
pub(super) const LENGTH: Function = Function { name: "sequence_length", infer: infer_length, eval: eval_length };
/// Operands: a tensor, and perhaps an extent or a list of extents (integers): its parts along `axis`. Without extents, of
/// extent 1, and without that axis unless `keep`.
pub(super) const SPLIT: Function = Function { name: "sequence_split", infer: infer_split, eval: eval_split };
/// The elements one after another along `axis`, which is a new one where `stacked`; of type `results`.
pub(super) const JOIN: Function = Function { name: "sequence_join", infer: infer_join, eval: eval_join };

/// Attribute `results`, which the data decides, of `count` types.
pub(super) fn given(a: &Attributes, count: usize) -> Result<Vec<TensorType>, OpError> {
    let types = a.types("results")?;
    if types.len() == count {
        Ok(types.to_vec())
    } else {
        Err(OpError::new(format!("{} types of results, there are {count}", types.len())))
    }
}

fn sequence_type(a: &Attributes) -> Result<Vec<TensorType>, OpError> {
    let types = given(a, 1)?;
    if types.iter().all(|t| t.dtype == DType::Seq && t.rank() == 1) {
        Ok(types)
    } else {
        Err(OpError::new("the result is a sequence"))
    }
}

fn is_sequence(ty: &TensorType) -> Result<(), OpError> {
    if ty.dtype == DType::Seq { Ok(()) } else { Err(OpError::new(format!("wants a sequence, not {ty}"))) }
}

fn elements(t: &Tensor) -> Result<&[Tensor], OpError> {
    t.tensors().ok_or_else(|| OpError::new("wants a sequence"))
}

fn infer_make(_: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    Ok(vec![TensorType::new(DType::Seq, vec![Expr::from(inputs.len())])])
}

fn eval_make(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    Ok(vec![Tensor::from_tensors(inputs.to_vec())])
}

/// A position among `count` places.
fn place(t: &Tensor, count: usize) -> Result<usize, OpError> {
    let values = ints(t)?;
    let [at] = values.as_slice() else { return Err(OpError::new("a position must be one number")) };
    super::element::position(*at, count)
}

fn infer_insert(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    match inputs {
        [sequence, _] | [sequence, _, _] => is_sequence(sequence)?,
        _ => return Err(OpError::new("takes 2 or 3 operands")),
    }
    sequence_type(a)
}

fn eval_insert(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [sequence, element, position @ ..] = inputs else { return Err(OpError::new("takes 2 or 3 operands")) };
    let mut all = elements(sequence)?.to_vec();
    let at = match position {
        // One more place than there are elements: the last one is behind them.
        [at] => {
            let at = ints(at)?.first().copied().unwrap_or(0);
            let at = if at < 0 { at.saturating_add(all.len() as i64) } else { at };
            usize::try_from(at).ok().filter(|&at| at <= all.len())
        }
        _ => Some(all.len()),
    };
    let at = at.ok_or_else(|| OpError::new(format!("there is no such position in {} elements", all.len())))?;
    all.insert(at, element.clone());
    Ok(vec![Tensor::from_tensors(all)])
}

fn infer_erase(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    match inputs {
        [sequence] | [sequence, _] => is_sequence(sequence)?,
        _ => return Err(OpError::new("takes 1 or 2 operands")),
    }
    sequence_type(a)
}

fn eval_erase(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [sequence, position @ ..] = inputs else { return Err(OpError::new("takes 1 or 2 operands")) };
    let mut all = elements(sequence)?.to_vec();
    let last = Tensor::from_i64(&[], &[-1])?;
    let at = place(position.first().unwrap_or(&last), all.len())?;
    all.remove(at);
    Ok(vec![Tensor::from_tensors(all)])
}

fn infer_at(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [sequence, _] = inputs else { return Err(OpError::new("takes 2 operands")) };
    is_sequence(sequence)?;
    given(a, 1)
}

fn eval_at(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [sequence, position] = inputs else { return Err(OpError::new("takes 2 operands")) };
    let all = elements(sequence)?;
    let element = &all[place(position, all.len())?];
    let ty = &given(a, 1)?[0];
    let fits = ty.dims.iter().zip(element.shape()).all(|(d, &n)| d.as_size().is_none_or(|d| d == n));
    if element.dtype() != ty.dtype || element.shape().len() != ty.rank() || !fits {
        return Err(OpError::new(format!("the element is {}{:?}, not {ty}", element.dtype(), element.shape())));
    }
    Ok(vec![element.clone()])
}

fn infer_length(_: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [sequence] = inputs else { return Err(OpError::new("takes 1 operand")) };
    is_sequence(sequence)?;
    Ok(vec![TensorType::of(DType::I64, &[])])
}

fn eval_length(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let length = inputs.first().map(elements).transpose()?.map_or(0, <[Tensor]>::len);
    Ok(vec![Tensor::from_i64(&[], &[i64::try_from(length).unwrap_or(i64::MAX)])?])
}

fn infer_split(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let ([x] | [x, _]) = inputs else { return Err(OpError::new("takes 1 or 2 operands")) };
    check_axes(&[a.size("axis")?], x.rank())?;
    a.bool("keep")?;
    sequence_type(a)
}

fn eval_split(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, parts @ ..] = inputs else { return Err(OpError::new("takes 1 or 2 operands")) };
    let axis = a.size("axis")?;
    let extent = x.shape()[axis];
    let (sizes, keep) = match parts {
        [sizes] => {
            let size = |&v: &i64| usize::try_from(v).map_err(|_| OpError::new(format!("a part of extent {v}")));
            let values = ints(sizes)?.iter().map(size).collect::<Result<Vec<usize>, _>>()?;
            match values.as_slice() {
                [0] if sizes.shape().is_empty() => return Err(OpError::new("parts of extent 0")),
                [one] if sizes.shape().is_empty() => {
                    let whole = (0..extent / one).map(|_| *one);
                    (whole.chain((extent % one > 0).then_some(extent % one)).collect(), true)
                }
                _ => (values, true),
            }
        }
        _ => (vec![1; extent], a.bool("keep")?),
    };
    let total = sizes.iter().try_fold(0usize, |a, &b| a.checked_add(b));
    if total != Some(extent) {
        return Err(OpError::new(format!("parts of {sizes:?} do not make up the extent {extent}")));
    }
    let (outer, _, inner) = split(x.shape(), axis);
    let mut start = 0;
    let mut all = Vec::with_capacity(sizes.len());
    for size in sizes {
        let mut shape = x.shape().to_vec();
        shape[axis] = size;
        if !keep {
            shape.remove(axis);
        }
        let range =
            |o: usize, unit: usize| (o * extent + start) * inner * unit..(o * extent + start + size) * inner * unit;
        all.push(match x.strings() {
            Some(strings) => {
                Tensor::from_strings(shape, (0..outer).flat_map(|o| strings[range(o, 1)].to_vec()).collect())?
            }
            None => {
                let unit = x.dtype().size();
                let bytes: Vec<u8> = (0..outer).flat_map(|o| x.bytes()[range(o, unit)].iter().copied()).collect();
                Tensor::new(x.dtype(), shape, bytes)?
            }
        });
        start += size;
    }
    Ok(vec![Tensor::from_tensors(all)])
}

fn infer_join(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [sequence] = inputs else { return Err(OpError::new("takes 1 operand")) };
    is_sequence(sequence)?;
    let types = given(a, 1)?;
    check_axes(&[a.size("axis")?], types[0].rank())?;
    a.bool("stacked")?;
    Ok(types)
}

fn eval_join(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [sequence] = inputs else { return Err(OpError::new("takes 1 operand")) };
    let (axis, stacked, ty) = (a.size("axis")?, a.bool("stacked")?, given(a, 1)?.remove(0));
    let mut parts = Vec::new();
    for element in elements(sequence)? {
        let mut shape = element.shape().to_vec();
        if stacked {
            shape.insert(axis.min(shape.len()), 1);
        }
        if element.dtype() != ty.dtype || shape.len() != ty.rank() || element.tensors().is_some() {
            return Err(OpError::new(format!("an element is {}{:?}", element.dtype(), element.shape())));
        }
        parts.push((element, shape));
    }
    let Some((_, first)) = parts.first() else { return Err(OpError::new("there is nothing to join")) };
    let mut shape = first.clone();
    shape[axis] = 0;
    for (_, other) in &parts {
        let differs = |(n, d): (usize, &usize)| n != axis && *d != shape[n];
        if other.iter().enumerate().any(differs) {
            return Err(OpError::new(format!("elements of shapes {first:?} and {other:?} do not fit together")));
        }
        shape[axis] = shape[axis].saturating_add(other[axis]);
    }
    element_count(&shape, ty.dtype.size())?;
    let (outer, _, inner) = split(&shape, axis);
    if ty.dtype == DType::Str {
        let mut strings = Vec::new();
        for o in 0..outer {
            for (part, s) in &parts {
                let row = s[axis] * inner;
                strings
                    .extend_from_slice(part.strings().and_then(|v| v.get(o * row..(o + 1) * row)).unwrap_or_default());
            }
        }
        return Ok(vec![Tensor::from_strings(shape, strings)?]);
    }
    let mut bytes = Vec::new();
    for o in 0..outer {
        for (part, s) in &parts {
            let row = s[axis] * inner * ty.dtype.size();
            bytes.extend_from_slice(&part.bytes()[o * row..(o + 1) * row]);
        }
    }
    Ok(vec![Tensor::new(ty.dtype, shape, bytes)?])
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;
    use crate::Symbol;

    fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(shape, values).unwrap()
    }

    fn i64s(values: &[i64]) -> Tensor {
        let shape: &[usize] = if values.len() == 1 { &[] } else { &[values.len()] };
        Tensor::from_i64(shape, values).unwrap()
    }

    fn free(dtype: DType, rank: usize) -> Attributes {
        let dims = (0..rank).map(|n| Expr::from(Symbol::new(&format!("n{n}_")))).collect();
        Attributes::new().with("results", vec![TensorType::new(dtype, dims)])
    }

    fn op(name: &str, a: Attributes, inputs: &[Tensor]) -> Result<Tensor, OpError> {
        let types = super::super::element::types(inputs);
        let op = Host::new(name, a)?;
        crate::ops::Operator::infer(&op, &types.iter().collect::<Vec<_>>())?;
        op.eval(inputs).map(|mut r| r.remove(0))
    }

    #[test]
    fn elements_come_and_go() {
        let (a, b) = (f32s(&[1], &[1.]), f32s(&[2], &[2., 3.]));
        let s = op("sequence", Attributes::new(), &[a.clone(), b.clone()]).unwrap();
        assert_eq!(op("sequence_length", Attributes::new(), std::slice::from_ref(&s)).unwrap().to_i64().unwrap(), [2]);
        let insert = |at: &[Tensor]| {
            let inputs: Vec<Tensor> = [s.clone(), b.clone()].into_iter().chain(at.iter().cloned()).collect();
            op("sequence_insert", free(DType::Seq, 1), &inputs)
        };
        assert_eq!(insert(&[]).unwrap(), Tensor::from_tensors(vec![a.clone(), b.clone(), b.clone()]));
        assert_eq!(insert(&[i64s(&[0])]).unwrap(), Tensor::from_tensors(vec![b.clone(), a.clone(), b.clone()]));
        assert_eq!(insert(&[i64s(&[-1])]).unwrap(), Tensor::from_tensors(vec![a.clone(), b.clone(), b.clone()]));
        assert!(insert(&[i64s(&[3])]).is_err());
        let erase = |at| op("sequence_erase", free(DType::Seq, 1), &[s.clone(), i64s(&[at])]);
        assert_eq!(erase(-2).unwrap(), Tensor::from_tensors(vec![b.clone()]));
        assert!(erase(2).is_err());
        let at = |n, rank| op("sequence_at", free(DType::F32, rank), &[s.clone(), i64s(&[n])]);
        assert_eq!(at(-1, 1).unwrap(), b);
        assert!(at(2, 1).is_err() && at(0, 2).is_err());
    }

    #[test]
    fn splits_and_joins() {
        let x = f32s(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let split = |sizes: &[Tensor], keep: bool| {
            let inputs: Vec<Tensor> = std::iter::once(x.clone()).chain(sizes.iter().cloned()).collect();
            op("sequence_split", free(DType::Seq, 1).with("axis", 1usize).with("keep", keep), &inputs)
        };
        let parts = split(&[i64s(&[2])], true).unwrap();
        let two = [f32s(&[2, 2], &[0., 1., 3., 4.]), f32s(&[2, 1], &[2., 5.])];
        assert_eq!(parts, Tensor::from_tensors(two.to_vec()));
        assert_eq!(split(&[i64s(&[2, 1])], true).unwrap(), parts);
        assert!(split(&[i64s(&[2, 2])], true).is_err() && split(&[i64s(&[0])], true).is_err());
        assert_eq!(split(&[], false).unwrap().tensors().unwrap()[2], f32s(&[2], &[2., 5.]));
        let join = |s: &Tensor, rank, axis: usize, stacked: bool| {
            op(
                "sequence_join",
                free(DType::F32, rank).with("axis", axis).with("stacked", stacked),
                std::slice::from_ref(s),
            )
        };
        assert_eq!(join(&parts, 2, 1, false).unwrap(), x);
        assert_eq!(join(&split(&[], false).unwrap(), 2, 1, true).unwrap(), x);
        assert!(join(&parts, 2, 0, false).is_err(), "other extents differ");
        assert!(join(&Tensor::from_tensors(vec![]), 2, 0, false).is_err());
    }
}
