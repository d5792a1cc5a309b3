//! `If`, `Loop` and `Scan` whose course is only known when the model runs: graphs within the graph, evaluated by the host.
//!
//! Invariant: a dim that may differ between branches or steps is a symbol of its own; an element type or a number of axes that does
//! is refused.

use crate::onnx::import::{Bound, Context, Failure, ImportErrors, Outputs, Param, Region};
use crate::onnx::model::{Graph, ValueType};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attribute, Attributes};
use kiln_ir::{DType, Expr, Tensor, TensorType};

/// The types of results, and what they mean once they are computed.
fn results(cx: &mut Context, params: &[Param]) -> Vec<TensorType> {
    params.iter().map(|p| TensorType::new(p.dtype, cx.settled(&p.dims))).collect()
}

fn meant(values: Vec<ValueId>, params: Vec<Param>) -> Outputs {
    let bound = |(v, p): (ValueId, Param)| match p.kind {
        Some(kind) => Bound::Value(v, kind),
        None => Bound::Tensor(v),
    };
    Outputs(values.into_iter().zip(params).map(bound).collect())
}

/// What `f` makes of a node. Where that is not supported, but would be if `v` were known, the failure says so.
pub(super) fn unless_known(
    cx: &mut Context,
    v: ValueId,
    f: impl FnOnce(&mut Context) -> Result<Outputs, Failure>,
) -> Result<Outputs, Failure> {
    let made = cx.attempt(|cx| match f(cx) {
        Ok(outputs) => Ok(Some(outputs)),
        Err(Failure::Invalid(message)) => Err(Failure::Invalid(message)),
        Err(Failure::Unsupported(_) | Failure::Computed(..) | Failure::Skip) => Ok(None),
    })?;
    made.ok_or_else(|| cx.computed("the course", v))
}

/// What a value has to be that may come from either place.
fn either(cx: &Context, what: &str, a: &Param, b: &Param) -> Result<Param, Failure> {
    match (&a.kind, &b.kind) {
        (None, None) if a.dtype == b.dtype && a.dims.len() == b.dims.len() => {
            let dims = a.dims.iter().zip(&b.dims).map(|(x, y)| if x == y { x.clone() } else { None }).collect();
            Ok(Param { dtype: a.dtype, dims, kind: None })
        }
        (Some(x), Some(y)) => Ok(Param::value(cx.join(x, y)?)),
        (None, None) if a.dtype == b.dtype => {
            let (a, b) = (a.dims.len(), b.dims.len());
            Err(Failure::unsupported(format!("{what} has {a} axes or {b}, as the data says")))
        }
        _ => Err(Failure::invalid(format!("{what} has different types"))),
    }
}

/// Most characters of why a branch is refused.
const LONGEST: usize = 400;

/// A branch that cannot be taken with the sizes that are known here: it fails when it is, and says why.
fn refusing(cx: &mut Context, name: &str, outputs: &[Param], why: &ImportErrors) -> Result<Region, Failure> {
    if outputs.iter().any(|p| p.kind.is_some()) {
        return Err(Failure::unsupported(why.to_string()));
    }
    let zero = Expr::default();
    let dims = |p: &Param| p.dims.iter().map(|d| d.clone().unwrap_or(zero.clone())).collect();
    let types: Vec<TensorType> = outputs.iter().map(|p| TensorType::new(p.dtype, dims(p))).collect();
    let why: String = why.to_string().chars().take(LONGEST).collect();
    let message = format!("`{name}` cannot be taken with the sizes and values that the model was compiled for: {why}");
    let mut a = Attributes::new().with("results", types);
    a.0.push(("message".into(), Attribute::Text(message)));
    let (graph, captures) = cx.built_region(&[], &[], |cx, _, _| cx.host("refuse", a, &[]))?;
    Ok(Region { graph, outputs: outputs.to_vec(), captures })
}

/// The `then` branch in place, where the condition says no more than that two sizes are equal and all that the branch gives rests on
/// that: PyTorch exports `squeeze` so, with a branch for either number of axes. Other sizes are refused when they are known.
fn where_equal(cx: &mut Context, condition: ValueId) -> Result<Option<Outputs>, Failure> {
    let Some(sides) = cx.compared(condition) else { return Ok(None) };
    let node = cx.node;
    let then = node.graph("then_branch")?;
    cx.attempt(|cx| {
        let outputs = cx.inline(then, Vec::new())?;
        let rests = |b: &Bound| matches!(b, Bound::Tensor(v) if cx.rests_on(*v, &sides));
        Ok(outputs.0.iter().all(rests).then_some(outputs))
    })
}

/// `If`: both branches, of which one is taken.
pub(super) fn branch(cx: &mut Context, condition: ValueId) -> Result<Outputs, Failure> {
    if cx.dtype(condition) != DType::Bool {
        return Err(Failure::invalid(format!("`cond` is {}, not bool", cx.dtype(condition))));
    }
    let node = cx.node;
    let (then, otherwise) = (node.graph("then_branch")?, node.graph("else_branch")?);
    let (then, otherwise) = match (cx.region_or_why(then, &[]), cx.region_or_why(otherwise, &[])) {
        (Ok(then), Ok(otherwise)) => (then, otherwise),
        // What a branch demands of sizes holds where it is taken.
        (Ok(then), Err(why)) => {
            let refusing = refusing(cx, "else_branch", &then.outputs, &why)?;
            (then, refusing)
        }
        (Err(why), Ok(otherwise)) => (refusing(cx, "then_branch", &otherwise.outputs, &why)?, otherwise),
        (Err(why), Err(_)) => return Err(Failure::unsupported(why.to_string())),
    };
    if then.outputs.len() != otherwise.outputs.len() {
        return Err(Failure::invalid("the branches have different numbers of outputs"));
    }
    let axes = |r: &Region| r.outputs.iter().map(|p| p.dims.len()).collect::<Vec<_>>();
    if axes(&then) != axes(&otherwise)
        && let Some(outputs) = where_equal(cx, condition)?
    {
        return Ok(outputs);
    }
    let params = then.outputs.iter().zip(&otherwise.outputs);
    let params = params.map(|(a, b)| either(cx, "a result", a, b)).collect::<Result<Vec<_>, _>>()?;
    let types = results(cx, &params);
    let mut inputs = vec![condition];
    inputs.extend(then.captures.iter().chain(&otherwise.captures));
    let a = Attributes::new().with("then", then.graph).with("else", otherwise.graph).with("results", types);
    Ok(meant(cx.host("if", a, &inputs)?, params))
}

/// Input `i` as a value, and what it is as a param.
fn carried(cx: &mut Context, i: usize) -> Result<(ValueId, Param), Failure> {
    let bound = cx.bound(i).cloned().ok_or_else(|| Failure::invalid(format!("input {i} is missing")))?;
    reified(cx, bound)
}

fn reified(cx: &mut Context, bound: Bound) -> Result<(ValueId, Param), Failure> {
    let empty = |b: &Bound| matches!(b, Bound::Sequence(all) if all.is_empty()) || matches!(b, Bound::Optional(None));
    if empty(&bound) {
        return Err(Failure::unsupported("the type of an empty sequence or optional that a loop carries is not known"));
    }
    let (v, kind) = cx.reify(bound)?;
    Ok((v, kind.map_or_else(|| Param::tensor(cx.ty(v)), Param::value)))
}

/// The body for states that keep their types from step to step; `made` says which of its outputs are states. Types of states
/// grow less definite until they do.
fn settle(
    cx: &mut Context,
    body: &Graph,
    fixed: (&[Param], &[Param]),
    states: &mut [Param],
    first: usize,
) -> Result<Region, Failure> {
    let most = 2 + states.iter().map(|s| s.dims.len() + 2).sum::<usize>();
    for _ in 0..most {
        let params: Vec<Param> = fixed.0.iter().chain(states.iter()).chain(fixed.1).cloned().collect();
        let region = cx.attempt(|cx| {
            let region = cx.region(body, &params)?;
            let given = region.outputs.get(first..first + states.len());
            let given = given.ok_or_else(|| Failure::invalid("the body has fewer outputs than states"))?;
            let mut same = true;
            for (state, given) in states.iter_mut().zip(given) {
                let joined = either(cx, "a state", state, given)?;
                same &= joined.dims == state.dims && joined.kind == state.kind;
                *state = joined;
            }
            Ok(same.then_some(region))
        })?;
        if let Some(region) = region {
            return Ok(region);
        }
    }
    Err(Failure::unsupported("the types of the states do not settle"))
}

/// `Loop`: as many steps as the count and the condition say.
pub(super) fn repeat(cx: &mut Context) -> Result<Outputs, Failure> {
    let node = cx.node;
    let body = node.graph("body")?;
    let steps = match cx.optional(0)? {
        Some(v) => {
            let v = cx.cast(v, DType::I64)?;
            cx.reshape(v, vec![])?
        }
        None => cx.constant(Tensor::from_i64(&[], &[i64::MAX])?),
    };
    let go = match cx.optional(1)? {
        Some(v) if cx.dtype(v) != DType::Bool => return Err(Failure::invalid(format!("`cond` is {}", cx.ty(v)))),
        Some(v) => cx.reshape(v, vec![])?,
        None => cx.constant(Tensor::new(DType::Bool, vec![], vec![1u8])?),
    };
    let (mut inputs, mut states) = (vec![steps, go], Vec::new());
    for i in 2..node.inputs.len() {
        let bound = cx.bound(i).cloned().ok_or_else(|| Failure::invalid(format!("input {i} is missing")))?;
        // What an empty sequence or optional holds is said by the body's own input.
        let declared = body.inputs.get(i).and_then(|info| info.ty.as_ref());
        let (v, param) = match (&bound, declared) {
            (Bound::Sequence(all), Some(kind @ ValueType::Sequence(_))) if all.is_empty() => {
                (cx.host("sequence", Attributes::new(), &[])?[0], Param::value(kind.clone()))
            }
            (Bound::Optional(None), Some(kind @ ValueType::Optional(_))) => {
                (cx.host("sequence", Attributes::new(), &[])?[0], Param::value(kind.clone()))
            }
            _ => carried(cx, i)?,
        };
        inputs.push(v);
        states.push(param);
    }
    let fixed = [Param::tensor(&TensorType::of(DType::I64, &[])), Param::tensor(&TensorType::of(DType::Bool, &[]))];
    let region = settle(cx, body, (&fixed, &[]), &mut states, 1)?;
    if region.outputs.first().is_none_or(|p| p.dtype != DType::Bool) {
        return Err(Failure::invalid("the body's first output is no condition"));
    }
    let count = states.len();
    let mut params = states;
    for part in region.outputs.into_iter().skip(1 + count) {
        if part.kind.is_some() {
            return Err(Failure::invalid("what is collected must be tensors"));
        }
        let mut dims = vec![None];
        dims.extend(part.dims);
        params.push(Param { dtype: part.dtype, dims, kind: None });
    }
    let types = results(cx, &params);
    inputs.extend(&region.captures);
    let a = Attributes::new().with("body", region.graph).with("carried", count).with("results", types);
    Ok(meant(cx.host("loop", a, &inputs)?, params))
}

/// Attributes of a `Scan`, one entry for each scanned input or collected output.
pub(super) struct Lists<'a> {
    pub directions: &'a [i64],
    pub axes: &'a [i64],
    pub out_axes: &'a [i64],
    pub out_directions: &'a [i64],
}

/// `Scan` over an axis of extent `length`.
pub(super) fn scan(
    cx: &mut Context,
    body: &Graph,
    inputs: &[ValueId],
    states: usize,
    length: &Expr,
    lists: &Lists<'_>,
) -> Result<Outputs, Failure> {
    let mut kept: Vec<Param> = inputs[..states].iter().map(|&v| Param::tensor(cx.ty(v))).collect();
    let (mut slices, mut scanned) = (Vec::new(), Vec::new());
    for (&v, &axis) in inputs[states..].iter().zip(lists.axes) {
        // Along the first axis elements lie one behind the other, as loops of a plan want them.
        let axis = cx.axis(axis, cx.rank(v))?;
        let mut perm: Vec<usize> = (0..cx.rank(v)).filter(|&n| n != axis).collect();
        perm.insert(0, axis);
        let v = cx.transpose(v, &perm)?;
        let mut param = Param::tensor(cx.ty(v));
        param.dims.remove(0);
        slices.push(param);
        scanned.push(v);
    }
    let region = settle(cx, body, (&[], &slices), &mut kept, 0)?;
    let (mut params, mut out_axes) = (kept, Vec::new());
    for (part, &axis) in region.outputs.into_iter().skip(states).zip(lists.out_axes) {
        let axis = cx.axis(axis, part.dims.len() + 1)?;
        let mut dims = part.dims;
        dims.insert(0, Some(length.clone()));
        params.push(Param { dtype: part.dtype, dims, kind: part.kind });
        out_axes.push(axis);
    }
    let types = results(cx, &params);
    let mut operands = inputs[..states].to_vec();
    operands.extend(&scanned);
    operands.extend(&region.captures);
    let flags = |list: &[i64]| list.iter().map(|&d| usize::from(d != 0)).collect::<Vec<usize>>();
    let a = Attributes::new()
        .with("body", region.graph)
        .with("states", states)
        .with("axes", vec![0usize; scanned.len()].as_slice())
        .with("backward", flags(lists.directions).as_slice())
        .with("out_axes", vec![0usize; out_axes.len()].as_slice())
        .with("out_backward", flags(lists.out_directions).as_slice())
        .with("results", types);
    let mut made = cx.host("scan", a, &operands)?;
    for (v, &axis) in made.iter_mut().skip(states).zip(&out_axes) {
        let mut perm: Vec<usize> = (1..cx.rank(*v)).collect();
        perm.insert(axis, 0);
        *v = cx.transpose(*v, &perm)?;
    }
    Ok(meant(made, params))
}
