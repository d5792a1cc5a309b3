//! Ops whose results are as long as the data says: `nonzero`, `compress`, `unique`, `slice_at` and `non_max_suppression`.
//!
//! Invariant: an extent that the data decides is in attribute `results`; all others are inferred and must agree with it.

use super::Function;
use super::element::{advance, constants, floats, ints, order, split, strides, tensor};
use super::sequence::given;
use crate::DType;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes};
use crate::tensor::Tensor;
use std::cmp::Ordering;

/// The positions of the elements that are not 0, in row-major order: `[axes, count]`, i64.
pub(super) const NONZERO: Function = Function { name: "nonzero", infer: infer_nonzero, eval: eval_nonzero };
/// Operands: a tensor and truth values, which say what is kept along `axis`, or of all elements in order without one.
pub(super) const COMPRESS: Function = Function { name: "compress", infer: infer_compress, eval: eval_compress };
/// The distinct elements, or slices along `axis` where there is one, in ascending order where `sorted`, else as they first occur;
/// then where each first occurs, which of them each element is, and how often each occurs (i64). A NaN is greater than every
/// number.
pub(super) const UNIQUE: Function = Function { name: "unique", infer: infer_unique, eval: eval_unique };
/// Operands: boxes `[batch, boxes, 4]`, scores `[batch, classes, boxes]`, the most boxes of a class (i64), the least overlap
/// (intersection over union) at which the box with the lower score goes, and the least score, which must be exceeded (f32).
/// Result: `[count, 3]`, i64: batch, class, box. Attribute `centred`: boxes are x, y of the centre, width and height, else y and x
/// of two opposite corners.
pub(super) const NMS: Function = Function { name: "non_max_suppression", infer: infer_nms, eval: eval_nms };

/// Operands: a tensor, starts, ends and steps (integers) along `axes`: ONNX's `Slice`, what is outside being cut off.
pub(super) const SLICE: Function = Function { name: "slice_at", infer: infer_slice, eval: eval_slice };

fn infer_slice(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, starts, ends, steps] = inputs else { return Err(OpError::new("takes 4 operands")) };
    let (axes, types) = (a.sizes("axes")?, given(a, 1)?);
    check_axes(&axes, x.rank())?;
    let lists = [starts, ends, steps].iter().all(|t| t.dtype.is_int() && t.rank() == 1);
    let kept = |(n, (a, b)): (usize, (&crate::Expr, &crate::Expr))| axes.contains(&n) || a == b;
    let fits = types[0].dtype == x.dtype && types[0].rank() == x.rank();
    if x.dtype == DType::Seq || !lists || !fits || !x.dims.iter().zip(&types[0].dims).enumerate().all(kept) {
        return Err(OpError::new(format!("{} cannot be a slice of {x}", types[0])));
    }
    Ok(types)
}

fn eval_slice(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, starts, ends, steps] = inputs else { return Err(OpError::new("takes 4 operands")) };
    let axes = a.sizes("axes")?;
    let (starts, ends, steps) = (ints(starts)?, ints(ends)?, ints(steps)?);
    if [&starts, &ends, &steps].iter().any(|l| l.len() != axes.len()) {
        return Err(OpError::new(format!("starts, ends and steps for {} axes are not of that length", axes.len())));
    }
    let mut part = x.clone();
    for (n, &axis) in axes.iter().enumerate() {
        let (extent, step) = (i64::try_from(x.shape()[axis]).unwrap_or(i64::MAX), steps[n]);
        if step == 0 {
            return Err(OpError::new("a step is 0"));
        }
        let (low, high) = if step > 0 { (0, extent) } else { (-1, extent - 1) };
        let place = |v: i64| (if v < 0 { v.saturating_add(extent) } else { v }).clamp(low, high);
        let (mut at, end) = (place(starts[n]), place(ends[n]));
        let mut kept = Vec::new();
        while if step > 0 { at < end } else { at > end } {
            kept.push(usize::try_from(at).unwrap_or(0));
            at = at.saturating_add(step);
        }
        part = picked(&part, Some(axis), &kept)?;
    }
    Ok(vec![part])
}

fn infer_nonzero(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = inputs else { return Err(OpError::new("takes 1 operand")) };
    let types = given(a, 1)?;
    let ty = &types[0];
    if x.dtype.size() == 0 || ty.dtype != DType::I64 || ty.rank() != 2 || ty.dims[0].as_size() != Some(x.rank()) {
        return Err(OpError::new(format!("{ty} cannot be the positions in {x}")));
    }
    Ok(types)
}

fn eval_nonzero(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = inputs else { return Err(OpError::new("takes 1 operand")) };
    // A NaN is not 0, and no bits but those of a sign make a 0.
    let zero: Vec<bool> = match x.to_i64() {
        Some(values) => values.iter().map(|&v| v == 0).collect(),
        None => floats(x)?.iter().map(|&v| v == 0.0).collect(),
    };
    let rank = x.shape().len();
    let count = zero.iter().filter(|z| !**z).count();
    let mut found = vec![0i64; rank * count];
    let (mut index, mut n) = (vec![0usize; rank], 0);
    for is_zero in zero {
        if !is_zero {
            index.iter().enumerate().for_each(|(axis, &at)| found[axis * count + n] = at as i64);
            n += 1;
        }
        advance(&mut index, x.shape());
    }
    Ok(vec![Tensor::from_i64(&[rank, count], &found)?])
}

/// The axis; nothing where there is none.
fn axis(a: &Attributes) -> Result<Option<usize>, OpError> {
    if a.get("axis").is_some() { a.size("axis").map(Some) } else { Ok(None) }
}

/// The elements (slices along an axis where there is one) that positions name.
fn picked(x: &Tensor, axis: Option<usize>, at: &[usize]) -> Result<Tensor, OpError> {
    let mut shape = axis.map_or_else(|| vec![x.len()], |_| x.shape().to_vec());
    let axis = axis.unwrap_or(0);
    let (outer, extent, inner) = split(&shape, axis);
    shape[axis] = at.len();
    let rows = (0..outer).flat_map(|o| at.iter().map(move |&n| (o * extent + n) * inner));
    if let Some(strings) = x.strings() {
        return Ok(Tensor::from_strings(shape, rows.flat_map(|r| strings[r..r + inner].to_vec()).collect())?);
    }
    let size = x.dtype().size();
    let mut bytes = Vec::with_capacity(outer * at.len() * inner * size);
    rows.for_each(|r| bytes.extend_from_slice(&x.bytes()[r * size..(r + inner) * size]));
    Ok(Tensor::new(x.dtype(), shape, bytes)?)
}

fn infer_compress(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, condition] = inputs else { return Err(OpError::new("takes 2 operands")) };
    let (types, axis) = (given(a, 1)?, axis(a)?);
    let ty = &types[0];
    let rank = axis.map_or(1, |_| x.rank());
    check_axes(&[axis.unwrap_or(0)], rank)?;
    let same = |(n, (a, b)): (usize, (&crate::Expr, &crate::Expr))| Some(n) == axis || a == b;
    let kept = axis.is_none() || x.dims.iter().zip(&ty.dims).enumerate().all(same);
    if x.dtype == DType::Seq || ty.dtype != x.dtype || ty.rank() != rank || !kept {
        return Err(OpError::new(format!("{ty} cannot be a part of {x}")));
    }
    if condition.dtype != DType::Bool || condition.rank() != 1 {
        return Err(OpError::new(format!("wants a list of truth values, not {condition}")));
    }
    Ok(types)
}

fn eval_compress(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, condition] = inputs else { return Err(OpError::new("takes 2 operands")) };
    let axis = axis(a)?;
    let extent = axis.map_or(x.len(), |n| x.shape()[n]);
    let condition = ints(condition)?;
    if condition.len() > extent {
        return Err(OpError::new(format!("{} truth values for {extent} elements", condition.len())));
    }
    let kept: Vec<usize> = condition.iter().enumerate().filter(|(_, c)| **c != 0).map(|(n, _)| n).collect();
    Ok(vec![picked(x, axis, &kept)?])
}

fn infer_unique(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = inputs else { return Err(OpError::new("takes 1 operand")) };
    let (types, axis) = (given(a, 4)?, axis(a)?);
    a.bool("sorted")?;
    check_axes(&[axis.unwrap_or(0)], axis.map_or(1, |_| x.rank()))?;
    let counts = types[1..].iter().all(|t| t.dtype == DType::I64 && t.rank() == 1);
    if x.dtype == DType::Seq || types[0].dtype != x.dtype || types[0].rank() != axis.map_or(1, |_| x.rank()) || !counts
    {
        return Err(OpError::new(format!("{} cannot be the distinct elements of {x}", types[0])));
    }
    Ok(types)
}

fn eval_unique(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = inputs else { return Err(OpError::new("takes 1 operand")) };
    let axis = axis(a)?;
    let shape = axis.map_or_else(|| vec![x.len()], |_| x.shape().to_vec());
    let (outer, extent, inner) = split(&shape, axis.unwrap_or(0));
    // Which elements slice n has, in order.
    let places = |n: usize| (0..outer).flat_map(move |o| (0..inner).map(move |i| (o * extent + n) * inner + i));
    let mut by_value: Vec<usize> = (0..extent).collect();
    let compare: Box<dyn Fn(usize, usize) -> Ordering> = match x.strings() {
        Some(strings) => Box::new(move |a, b| places(a).map(|p| &strings[p]).cmp(places(b).map(|p| &strings[p]))),
        None => {
            let values = constants(x)?;
            Box::new(move |a, b| {
                let pairs = places(a).zip(places(b));
                pairs.map(|(p, q)| order(values[p], values[q])).find(|o| o.is_ne()).unwrap_or(Ordering::Equal)
            })
        }
    };
    by_value.sort_by(|&a, &b| compare(a, b).then(a.cmp(&b)));
    // The first slice of each group of equal ones.
    let mut groups: Vec<(usize, i64)> = Vec::new();
    let mut group_of = vec![0usize; extent];
    for &n in &by_value {
        match groups.last_mut() {
            Some((first, count)) if compare(*first, n).is_eq() => *count += 1,
            _ => groups.push((n, 1)),
        }
        group_of[n] = groups.len() - 1;
    }
    let mut sequence: Vec<usize> = (0..groups.len()).collect();
    if !a.bool("sorted")? {
        sequence.sort_by_key(|&g| groups[g].0);
    }
    let mut rank = vec![0usize; groups.len()];
    sequence.iter().enumerate().for_each(|(n, &g)| rank[g] = n);
    let firsts: Vec<usize> = sequence.iter().map(|&g| groups[g].0).collect();
    let list = |values: Vec<i64>| Tensor::from_i64(&[values.len()], &values);
    Ok(vec![
        picked(x, axis, &firsts)?,
        list(firsts.iter().map(|&n| n as i64).collect())?,
        list(group_of.iter().map(|&g| rank[g] as i64).collect())?,
        list(sequence.iter().map(|&g| groups[g].1).collect())?,
    ])
}

fn infer_nms(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [boxes, scores, most, overlap, least] = inputs else { return Err(OpError::new("takes 5 operands")) };
    let types = given(a, 1)?;
    a.bool("centred")?;
    let floats = [boxes, scores, overlap, least].iter().all(|t| t.dtype.is_float());
    let axes = boxes.rank() == 3 && scores.rank() == 3 && boxes.dims[2].as_size() == Some(4);
    let result = types[0].dtype == DType::I64 && types[0].rank() == 2 && types[0].dims[1].as_size() == Some(3);
    if floats && axes && result && most.dtype.is_int() {
        Ok(types)
    } else {
        Err(OpError::new("wants boxes [batch, boxes, 4], scores [batch, classes, boxes] and three numbers"))
    }
}

/// Corners of a box: least y and x, greatest y and x.
fn corners(b: &[f64], centred: bool) -> [f64; 4] {
    let [p, q, r, s] = [b[0], b[1], b[2], b[3]];
    if centred {
        [q - s / 2.0, p - r / 2.0, q + s / 2.0, p + r / 2.0]
    } else {
        [p.min(r), q.min(s), p.max(r), q.max(s)]
    }
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> f64 {
    let area = |c: &[f64; 4]| (c[2] - c[0]).max(0.0) * (c[3] - c[1]).max(0.0);
    let both = [a[0].max(b[0]), a[1].max(b[1]), a[2].min(b[2]), a[3].min(b[3])];
    let both = if both[2] > both[0] && both[3] > both[1] { area(&both) } else { 0.0 };
    let all = area(a) + area(b) - both;
    if all > 0.0 { both / all } else { 0.0 }
}

fn eval_nms(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [boxes, scores, most, limit, least] = inputs else { return Err(OpError::new("takes 5 operands")) };
    let centred = a.bool("centred")?;
    let &[batch, count, 4] = boxes.shape() else { return Err(OpError::new("boxes are [batch, boxes, 4]")) };
    let &[scored, classes, of] = scores.shape() else { return Err(OpError::new("scores are [batch, classes, boxes]")) };
    if scored != batch || of != count {
        return Err(OpError::new(format!("scores for {scored} * {of} boxes, there are {batch} * {count}")));
    }
    let number = |t: &Tensor| floats(t).map(|v| v.first().copied().unwrap_or(0.0));
    let (limit, least) = (number(limit)?, number(least)?);
    let most = ints(most)?.first().map_or(0, |&m| usize::try_from(m).unwrap_or(0));
    let values = floats(boxes)?;
    let scores = floats(scores)?;
    let mut found = Vec::new();
    let place = strides(&[batch, classes, count]);
    for b in 0..batch {
        let all: Vec<[f64; 4]> =
            values[b * count * 4..(b + 1) * count * 4].chunks(4).map(|c| corners(c, centred)).collect();
        for class in 0..classes {
            crate::interp::limits::check_time()?;
            let score = &scores[b * place[0] + class * place[1]..][..count];
            let mut open: Vec<usize> = (0..count).filter(|&n| score[n] > least).collect();
            open.sort_by(|&p, &q| score[q].total_cmp(&score[p]).then(p.cmp(&q)));
            let mut kept: Vec<usize> = Vec::new();
            for n in open {
                if kept.len() >= most {
                    break;
                }
                if kept.iter().all(|&k| overlap(&all[k], &all[n]) <= limit) {
                    kept.push(n);
                    found.extend([b as i64, class as i64, n as i64]);
                }
            }
        }
    }
    let rows = found.len() / 3;
    let values: Vec<crate::Constant> = found.iter().map(|&v| crate::Constant::int(DType::I64, v)).collect();
    Ok(vec![tensor(DType::I64, &[rows, 3], &values)?])
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;
    use crate::{Expr, Symbol};

    fn results(types: &[(DType, &[usize])]) -> Attributes {
        // A dim of 0 stands for one that the data decides.
        let dim = |&d: &usize| if d == 0 { Expr::from(Symbol::new("n")) } else { Expr::from(d) };
        let types = types.iter().map(|(t, dims)| TensorType::new(*t, dims.iter().map(dim).collect()));
        Attributes::new().with("results", types.collect::<Vec<_>>())
    }

    fn op(name: &str, a: Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
        let types = super::super::element::types(inputs);
        let op = Host::new(name, a)?;
        crate::ops::Operator::infer(&op, &types.iter().collect::<Vec<_>>())?;
        op.eval(inputs)
    }

    fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(shape, values).unwrap()
    }

    fn bools(values: &[u8]) -> Tensor {
        Tensor::new(DType::Bool, vec![values.len()], values.to_vec()).unwrap()
    }

    #[test]
    fn nonzero_knows_nan_and_minus_0() {
        let x = f32s(&[2, 2], &[0.0, f32::NAN, -0.0, 3.0]);
        let made = op("nonzero", results(&[(DType::I64, &[2, 0])]), &[x]).unwrap();
        assert_eq!((made[0].shape(), made[0].to_i64().unwrap()), (&[2usize, 2][..], vec![0, 1, 1, 1]));
        let scalar = op("nonzero", results(&[(DType::I64, &[0, 0])]), &[f32s(&[], &[1.0])]);
        assert!(scalar.is_err(), "a number has no axes, the type says otherwise");
    }

    #[test]
    fn compress_along_an_axis_and_of_all() {
        let x = f32s(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let of = |a, c: &[u8]| op("compress", a, &[x.clone(), bools(c)]).map(|r| r[0].to_f32().unwrap());
        let along = || results(&[(DType::F32, &[2, 0])]).with("axis", 1usize);
        assert_eq!(of(along(), &[0, 1, 1]).unwrap(), [1., 2., 4., 5.]);
        assert_eq!(of(along(), &[1]).unwrap(), [0., 3.]);
        assert!(of(along(), &[1, 1, 1, 1]).is_err());
        assert_eq!(of(results(&[(DType::F32, &[0])]), &[0, 0, 0, 1]).unwrap(), [3.]);
    }

    #[test]
    fn slices_are_cut_off() {
        let x = f32s(&[2, 3], &[0., 1., 2., 3., 4., 5.]);
        let of = |start: i64, end: i64, step: i64| {
            let list = |v| Tensor::from_i64(&[1], &[v]).unwrap();
            let a = results(&[(DType::F32, &[2, 0])]).with("axes", &[1usize][..]);
            op("slice_at", a, &[x.clone(), list(start), list(end), list(step)]).map(|r| r[0].to_f32().unwrap())
        };
        assert_eq!(of(1, i64::MAX, 1).unwrap(), [1., 2., 4., 5.]);
        assert_eq!(of(-1, i64::MIN, -2).unwrap(), [2., 0., 5., 3.]);
        assert_eq!(of(2, 1, 1).unwrap(), []);
        assert!(of(0, 1, 0).is_err());
    }

    #[test]
    fn unique_elements_and_slices() {
        let list: &[usize] = &[0];
        let of = |x: &Tensor, sorted: bool| {
            let a = results(&[(DType::F32, list), (DType::I64, list), (DType::I64, list), (DType::I64, list)]);
            op("unique", a.with("sorted", sorted), std::slice::from_ref(x)).unwrap()
        };
        let x = f32s(&[6], &[2., 1., 1., f32::NAN, 2., f32::NAN]);
        let made = of(&x, true);
        assert_eq!(made[1].to_i64().unwrap(), [1, 0, 3]);
        assert_eq!(made[2].to_i64().unwrap(), [1, 0, 0, 2, 1, 2]);
        assert_eq!(made[3].to_i64().unwrap(), [2, 2, 2]);
        assert_eq!(of(&x, false)[1].to_i64().unwrap(), [0, 1, 3]);
        let x = f32s(&[2, 3], &[1., 0., 1., 2., 5., 2.]);
        let two: &[usize] = &[2, 0];
        let a = results(&[(DType::F32, two), (DType::I64, list), (DType::I64, list), (DType::I64, list)]);
        let made = op("unique", a.with("sorted", true).with("axis", 1usize), &[x]).unwrap();
        assert_eq!(made[0].to_f32().unwrap(), [0., 1., 5., 2.]);
        assert_eq!(made[2].to_i64().unwrap(), [1, 0, 1]);
    }

    #[test]
    fn boxes_that_overlap_go() {
        let boxes = f32s(&[1, 3, 4], &[0., 0., 1., 1., 1., 1., 0., 0.1, 0., 2., 1., 3.]);
        let scores = f32s(&[1, 1, 3], &[0.5, 0.9, 0.3]);
        let of = |most: i64, least: f32| {
            let most = Tensor::from_i64(&[1], &[most]).unwrap();
            let inputs = [boxes.clone(), scores.clone(), most, f32s(&[], &[0.5]), f32s(&[1], &[least])];
            let a = results(&[(DType::I64, &[0, 3])]).with("centred", false);
            op("non_max_suppression", a, &inputs).unwrap()[0].to_i64().unwrap()
        };
        assert_eq!(of(10, 0.0), [0, 0, 1, 0, 0, 2]);
        assert_eq!(of(10, 0.3), [0, 0, 1]);
        assert_eq!(of(1, 0.0), [0, 0, 1]);
        assert_eq!(of(0, 0.0), []);
        assert_eq!(overlap(&[0., 0., 0., 0.], &[0., 0., 0., 0.]), 0.0);
        assert_eq!(corners(&[1., 2., 4., 6.], true), [-1., -1., 5., 3.]);
    }
}
