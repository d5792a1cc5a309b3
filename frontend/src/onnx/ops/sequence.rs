//! Sequences. What is known of one at import is kept apart element by element; the rest is the host's.

use super::split::pieces;
use super::{Spec, onnx};
use crate::onnx::import::{Bound, Context, Failure, Outputs, Param};
use crate::onnx::model::{self, Dim, ValueType};
use crate::onnx::problem::shown;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Concat};
use kiln_ir::{DType, Expr, TensorType};

pub(super) const OPS: &[Spec] = &[
    onnx("SequenceConstruct", 11, &[], |cx| {
        let all = (0..cx.node.inputs.len()).map(|i| bound(cx, i)).collect::<Result<Vec<_>, _>>()?;
        Ok(Bound::Sequence(all).into())
    }),
    onnx("SequenceEmpty", 11, &["dtype"], |_| Ok(Bound::Sequence(Vec::new()).into())),
    onnx("SequenceLength", 11, &[], |cx| match bound(cx, 0)? {
        Bound::Sequence(all) => Ok(cx.dims_tensor(&[Expr::from(all.len())], true)?.into()),
        other => {
            let (v, _) = sequence(cx, other)?;
            Ok(cx.host("sequence_length", Attributes::new(), &[v])?.into())
        }
    }),
    onnx("SequenceAt", 11, &[], at),
    onnx("SequenceInsert", 11, &[], insert),
    onnx("SequenceErase", 11, &[], erase),
    onnx("SplitToSequence", 11, &["axis", "keepdims"], split),
    onnx("ConcatFromSequence", 11, &["axis", "new_axis"], join),
    onnx("SequenceMap", 17, &["body"], map),
];

pub(super) fn bound(cx: &Context, i: usize) -> Result<Bound, Failure> {
    cx.bound(i).cloned().ok_or_else(|| Failure::invalid(format!("input {i} is missing")))
}

/// The sequence as a value, and the type of its elements.
fn sequence(cx: &mut Context, bound: Bound) -> Result<(ValueId, ValueType), Failure> {
    match cx.reify(bound)? {
        (v, Some(ValueType::Sequence(element))) => Ok((v, *element)),
        (v, Some(other)) => Err(Failure::invalid(format!("{other} ({v}) is no sequence"))),
        (v, None) => Err(Failure::invalid(format!("a sequence was expected, not {}", cx.ty(v)))),
    }
}

/// The type of a sequence whose length the data says.
fn some(cx: &mut Context) -> Vec<TensorType> {
    vec![TensorType::new(DType::Seq, vec![cx.fresh()])]
}

/// The meaning of what is taken out of a sequence or optional, with the attributes of the op that takes it.
pub(super) fn element(cx: &mut Context, kind: &ValueType) -> Result<TensorType, Failure> {
    match kind {
        ValueType::Tensor(model::TensorType { dtype, shape: Some(shape) }) => {
            let dims = shape.iter().map(|d| match d {
                Dim::Fixed(n) => Some(Expr::from(*n)),
                Dim::Symbol(_) | Dim::Unknown => None,
            });
            let dims = dims.collect::<Vec<_>>();
            Ok(TensorType::new(*dtype, cx.settled(&dims)))
        }
        ValueType::Sequence(_) | ValueType::Optional(_) => Ok(TensorType::new(DType::Seq, vec![cx.fresh()])),
        other => Err(Failure::unsupported(format!("not even the number of axes of an element is known ({other})"))),
    }
}

pub(super) fn taken(v: ValueId, kind: ValueType) -> Bound {
    match kind {
        kind @ (ValueType::Sequence(_) | ValueType::Optional(_)) => Bound::Value(v, kind),
        ValueType::Tensor(_) | ValueType::Sparse(_) | ValueType::Map { .. } | ValueType::Opaque { .. } => {
            Bound::Tensor(v)
        }
    }
}

/// The position that input `i` is, among `count` places, where it is known.
fn place(cx: &Context, i: usize, count: usize) -> Result<Option<usize>, Failure> {
    let Some(at) = cx.constant_of(cx.input(i)?).and_then(kiln_ir::Tensor::to_i64).and_then(|v| v.first().copied()) else {
        return Ok(None);
    };
    let from_start = if at < 0 { at.saturating_add(i64::try_from(count).unwrap_or(i64::MAX)) } else { at };
    let found = usize::try_from(from_start).ok().filter(|&at| at < count);
    found.map(Some).ok_or_else(|| Failure::invalid(format!("there is no position {at} in {count} places")))
}

fn at(cx: &mut Context) -> Result<Outputs, Failure> {
    let given = bound(cx, 0)?;
    if let Bound::Sequence(all) = &given
        && let Some(n) = place(cx, 1, all.len())?
    {
        return Ok(all[n].clone().into());
    }
    let (v, kind) = sequence(cx, given)?;
    let at = cx.input(1)?;
    let a = Attributes::new().with("results", vec![element(cx, &kind)?]);
    let made = cx.host("sequence_at", a, &[v, at])?[0];
    Ok(taken(made, kind).into())
}

fn insert(cx: &mut Context) -> Result<Outputs, Failure> {
    let (given, new) = (bound(cx, 0)?, bound(cx, 1)?);
    if let Bound::Sequence(mut all) = given.clone() {
        // A position counts the elements from the end where it is negative; the last place is behind them.
        let place = match cx.optional(2)? {
            None => Some(all.len()),
            Some(v) => match cx.constant_of(v).and_then(kiln_ir::Tensor::to_i64).and_then(|v| v.first().copied()) {
                Some(at) => {
                    let from = if at < 0 { at.saturating_add(i64::try_from(all.len()).unwrap_or(i64::MAX)) } else { at };
                    let found = usize::try_from(from).ok().filter(|&p| p <= all.len());
                    Some(found.ok_or_else(|| Failure::invalid(format!("there is no position {at} to insert at")))?)
                }
                None => None,
            },
        };
        if let Some(place) = place {
            all.insert(place, new);
            return Ok(Bound::Sequence(all).into());
        }
    }
    let (x, kind) = cx.reify(new)?;
    let kind = kind.unwrap_or_else(|| cx.kind(x));
    // An empty sequence becomes one of what is inserted.
    let (v, kind) = match given {
        Bound::Sequence(all) if all.is_empty() => (cx.host("sequence", Attributes::new(), &[])?[0], kind),
        other => {
            let (v, element) = sequence(cx, other)?;
            (v, cx.join(&element, &kind)?)
        }
    };
    let mut inputs = vec![v, x];
    inputs.extend(cx.optional(2)?);
    let a = Attributes::new().with("results", some(cx));
    let made = cx.host("sequence_insert", a, &inputs)?[0];
    Ok(Bound::Value(made, ValueType::Sequence(Box::new(kind))).into())
}

fn erase(cx: &mut Context) -> Result<Outputs, Failure> {
    let given = bound(cx, 0)?;
    if let Bound::Sequence(mut all) = given.clone() {
        let place = match cx.optional(1)? {
            None => all.len().checked_sub(1).map(Some).ok_or_else(|| Failure::invalid("there is nothing to erase"))?,
            Some(_) => place(cx, 1, all.len())?,
        };
        if let Some(place) = place {
            all.remove(place);
            return Ok(Bound::Sequence(all).into());
        }
    }
    let (v, kind) = sequence(cx, given)?;
    let mut inputs = vec![v];
    inputs.extend(cx.optional(1)?);
    let a = Attributes::new().with("results", some(cx));
    let made = cx.host("sequence_erase", a, &inputs)?[0];
    Ok(Bound::Value(made, ValueType::Sequence(Box::new(kind))).into())
}

fn split(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axis = cx.axis_attribute(0, cx.rank(x))?;
    let keep = cx.node.bool_or("keepdims", true)?;
    let extent = cx.dims(x)[axis].as_const();
    let sizes = match cx.optional(1)? {
        Some(v) => match (cx.contents(v), cx.rank(v), extent) {
            (Some(sizes), 0, Some(extent)) => match sizes.first().and_then(Expr::as_const) {
                Some(size) if size > 0 => {
                    let mut parts = vec![size; usize::try_from(extent / size).unwrap_or(0)];
                    parts.extend((extent % size > 0).then_some(extent % size));
                    Some(parts)
                }
                Some(size) => return Err(Failure::invalid(format!("parts of extent {size}"))),
                None => None,
            },
            (Some(sizes), 1, Some(_)) => sizes.iter().map(Expr::as_const).collect(),
            _ => None,
        },
        None => extent.map(|n| vec![1; usize::try_from(n).unwrap_or(0)]),
    };
    if let Some(sizes) = sizes.filter(|s| s.len() <= 1024) {
        if extent != Some(sizes.iter().sum()) || sizes.iter().any(|&s| s < 0) {
            return Err(Failure::invalid(format!("parts of {sizes:?} do not make up {}", cx.ty(x))));
        }
        let sizes: Vec<Expr> = sizes.into_iter().map(Expr::from).collect();
        let mut parts = Vec::with_capacity(sizes.len());
        for part in pieces(cx, x, axis, &sizes)? {
            let mut dims = cx.dims(part);
            if !keep && cx.bound(1).is_none() {
                dims.remove(axis);
            }
            parts.push(Bound::Tensor(cx.reshape(part, dims)?));
        }
        return Ok(Bound::Sequence(parts).into());
    }
    let mut inputs = vec![x];
    inputs.extend(cx.optional(1)?);
    let mut shape = cx.dims(x).iter().map(|d| d.as_size().map_or(Dim::Unknown, Dim::Fixed)).collect::<Vec<_>>();
    shape[axis] = Dim::Unknown;
    if !keep && cx.bound(1).is_none() {
        shape.remove(axis);
    }
    let kind = ValueType::Tensor(model::TensorType { dtype: cx.dtype(x), shape: Some(shape) });
    let a = Attributes::new().with("axis", axis).with("keep", keep).with("results", some(cx));
    let made = cx.host("sequence_split", a, &inputs)?[0];
    Ok(Bound::Value(made, ValueType::Sequence(Box::new(kind))).into())
}

fn join(cx: &mut Context) -> Result<Outputs, Failure> {
    let stacked = cx.node.bool_or("new_axis", false)?;
    let given = bound(cx, 0)?;
    let axis = cx.node.int("axis")?;
    if let Bound::Sequence(all) = &given {
        let mut parts = Vec::with_capacity(all.len());
        for part in all {
            let Bound::Tensor(v) = part else { return Err(Failure::invalid("the elements are no tensors")) };
            let (v, mut dims) = (*v, cx.dims(*v));
            if stacked {
                dims.insert(cx.axis(axis, dims.len() + 1)?, Expr::from(1i64));
            }
            parts.push(cx.reshape(v, dims)?);
        }
        let first = *parts.first().ok_or_else(|| Failure::invalid("there is nothing to join"))?;
        let axis = cx.axis(axis, cx.rank(first))?;
        return Ok(cx.add(Concat { axis }, &parts)?.into());
    }
    let (v, kind) = sequence(cx, given)?;
    let mut ty = element(cx, &kind)?;
    let axis = cx.axis(axis, ty.rank() + usize::from(stacked))?;
    let extent = cx.fresh();
    if stacked {
        ty.dims.insert(axis, extent);
    } else {
        ty.dims[axis] = extent;
    }
    let a = Attributes::new().with("axis", axis).with("stacked", stacked);
    let a = a.with("results", vec![TensorType::new(ty.dtype, ty.dims)]);
    Ok(cx.host("sequence_join", a, &[v])?.into())
}

fn map(cx: &mut Context) -> Result<Outputs, Failure> {
    let node = cx.node;
    let body = node.graph("body")?;
    let all = (0..node.inputs.len()).map(|i| bound(cx, i)).collect::<Result<Vec<_>, _>>()?;
    let known: Option<Vec<usize>> = all
        .iter()
        .filter_map(|b| match b {
            Bound::Sequence(all) => Some(Some(all.len())),
            Bound::Value(..) => Some(None),
            Bound::Tensor(_) | Bound::Optional(_) => None,
        })
        .collect();
    if let Some(lengths) = known {
        let Some(&length) = lengths.first().filter(|l| **l <= 256) else {
            return Err(Failure::unsupported(format!("sequences of {lengths:?} elements are not supported")));
        };
        if lengths.iter().any(|&l| l != length) {
            return Err(Failure::invalid(format!("sequences of {lengths:?} elements")));
        }
        let mut results = vec![Vec::with_capacity(length); body.outputs.len()];
        for n in 0..length {
            let element = |b: &Bound| match b {
                Bound::Sequence(all) => all[n].clone(),
                other => other.clone(),
            };
            let made = cx.inline(body, all.iter().map(element).collect())?;
            results.iter_mut().zip(made.0).for_each(|(list, part)| list.push(part));
        }
        return Ok(Outputs(results.into_iter().map(Bound::Sequence).collect()));
    }
    let (mut inputs, mut params) = (Vec::new(), Vec::new());
    for bound in all {
        let (v, kind) = cx.reify(bound)?;
        params.push(match kind {
            Some(ValueType::Sequence(kind)) => match *kind {
                // The number of axes of elements may be known from the body's own input only.
                ValueType::Tensor(model::TensorType { dtype, shape: None }) => {
                    let declared = body.inputs.get(inputs.len()).and_then(|i| i.ty.as_ref()).and_then(ValueType::tensor);
                    let rank = declared.and_then(|t| t.shape.as_ref()).map(Vec::len);
                    let rank = rank.ok_or_else(|| {
                        Failure::unsupported("not even the number of axes of the elements is known")
                    })?;
                    Param { dtype, dims: vec![None; rank], kind: None }
                }
                ValueType::Tensor(model::TensorType { dtype, shape: Some(shape) }) => {
                    let dims = shape.iter().map(|d| match d {
                        Dim::Fixed(n) => Some(Expr::from(*n)),
                        Dim::Symbol(_) | Dim::Unknown => None,
                    });
                    Param { dtype, dims: dims.collect(), kind: None }
                }
                other => Param::value(other),
            },
            Some(other) => return Err(Failure::invalid(format!("{} is {other}", shown(&node.name)))),
            None => Param::tensor(cx.ty(v)),
        });
        inputs.push(v);
    }
    let region = cx.region(body, &params)?;
    let kinds: Vec<ValueType> = region.outputs.iter().map(kind_of).collect();
    let types: Vec<TensorType> = kinds.iter().flat_map(|_| some(cx)).collect();
    let others = inputs.len().saturating_sub(1);
    inputs.extend(&region.captures);
    let a = Attributes::new().with("body", region.graph).with("others", others).with("results", types);
    let made = cx.host("sequence_map", a, &inputs)?;
    let bound = |(v, kind)| Bound::Value(v, ValueType::Sequence(Box::new(kind)));
    Ok(Outputs(made.into_iter().zip(kinds).map(bound).collect()))
}

/// The type of what a body gives, as an element of a sequence.
fn kind_of(p: &Param) -> ValueType {
    let dim = |d: &Option<Expr>| d.as_ref().and_then(Expr::as_size).map_or(Dim::Unknown, Dim::Fixed);
    p.kind.clone().unwrap_or_else(|| {
        let shape = Some(p.dims.iter().map(dim).collect());
        ValueType::Tensor(model::TensorType { dtype: p.dtype, shape })
    })
}
