//! `if`, `loop`, `scan` and `sequence_map`: graphs within the graph, evaluated as often as the data says.
//!
//! Invariant: a graph within the graph sees only its inputs; what it takes from outside comes as the last operands. Time and
//! memory are those of [`limits`], asked at every step.

use super::Function;
use super::element::split;
use super::sequence::given;
use crate::DType;
use crate::graph::{Graph, TensorType};
use crate::interp::{self, limits};
use crate::ops::{Attributes, OpError};
use crate::tensor::{Tensor, element_count};

/// Operands: the condition (one bool), then the inputs of `then`, then those of `else`. Attributes: the graphs `then` and
/// `else`, and `results`, the types that the results have whichever is taken.
pub(super) const IF: Function = Function { name: "if", infer: infer_if, eval: eval_if };

/// Operands: the greatest number of steps (i64), whether there is a first step (bool), `carried` values, and what `body` takes
/// from outside. `body` takes the number of the step, the condition, the carried values, and the rest; it gives whether there
/// is a next step, the carried values, and what is collected. Results, of types `results`: the last carried values, and what
/// was collected, stacked along a new first axis.
pub(super) const LOOP: Function = Function { name: "loop", infer: infer_loop, eval: eval_loop };

/// Operands: `states` values, then as many tensors as there are `axes`, cut along those, backwards where `backward` says 1, and
/// what `body` takes from outside. `body` takes states, slices and the rest; it gives states and what is collected along
/// `out_axes`, from the end where `out_backward` says 1. Results, of types `results`: states and what was collected.
pub(super) const SCAN: Function = Function { name: "scan", infer: infer_scan, eval: eval_scan };

/// Operands: a sequence, `others` sequences of the same length or tensors, and what `body` takes from outside. `body` takes an
/// element of each sequence, each tensor, and the rest. Results: a sequence of each of its results.
pub(super) const MAP: Function = Function { name: "sequence_map", infer: infer_map, eval: eval_map };

fn run(graph: &Graph, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    limits::check_time()?;
    let options = interp::Options { budget: limits::current().bytes, ..Default::default() };
    interp::eval_graph(graph, inputs, &options).map_err(|e| OpError(e.to_string()))
}

/// Fails where these types are no inputs of the graph.
fn accepts<'a>(graph: &Graph, what: &str, types: impl ExactSizeIterator<Item = &'a TensorType>) -> Result<(), OpError> {
    if types.len() != graph.inputs.len() {
        return Err(OpError::new(format!("{what} takes {} inputs, {} are given", graph.inputs.len(), types.len())));
    }
    for (&input, ty) in graph.inputs.iter().zip(types) {
        let wanted = graph.ty(input);
        let fits = |(a, b): (&crate::Expr, &crate::Expr)| a.as_const().is_none() || b.as_const().is_none() || a == b;
        let same = wanted.dtype == ty.dtype && wanted.rank() == ty.rank();
        if !same || !wanted.dims.iter().zip(&ty.dims).all(fits) {
            return Err(OpError::new(format!("{what} takes {wanted}, {ty} is given")));
        }
    }
    Ok(())
}

/// Fails where results do not have the types that were promised for all that the data may be.
fn promised(types: &[TensorType], results: Vec<Tensor>) -> Result<Vec<Tensor>, OpError> {
    if types.len() != results.len() {
        return Err(OpError::new(format!("{} results where {} were promised", results.len(), types.len())));
    }
    for (ty, t) in types.iter().zip(&results) {
        let fits = ty.dims.iter().zip(t.shape()).all(|(d, &n)| d.as_size().is_none_or(|d| d == n));
        if ty.dtype != t.dtype() || ty.rank() != t.shape().len() || !fits {
            return Err(OpError::new(format!("a result is {}{:?}, {ty} was promised", t.dtype(), t.shape())));
        }
    }
    Ok(results)
}

fn infer_if(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let (then, otherwise) = (a.graph("then")?, a.graph("else")?);
    let Some((condition, rest)) = inputs.split_first() else { return Err(OpError::new("wants a condition")) };
    if condition.dtype != DType::Bool || condition.elements().as_const().is_some_and(|n| n != 1) {
        return Err(OpError::new("wants one truth value"));
    }
    let (first, second) =
        rest.split_at_checked(then.inputs.len()).ok_or_else(|| OpError::new("operands are missing"))?;
    accepts(then, "`then`", first.iter().copied())?;
    accepts(otherwise, "`else`", second.iter().copied())?;
    let results = a.types("results")?;
    if then.outputs.len() != results.len() || otherwise.outputs.len() != results.len() {
        return Err(OpError::new("the branches do not give the results"));
    }
    Ok(results.to_vec())
}

fn eval_if(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (then, otherwise) = (a.graph("then")?, a.graph("else")?);
    let Some((condition, rest)) = inputs.split_first() else { return Err(OpError::new("wants a condition")) };
    let (first, second) =
        rest.split_at_checked(then.inputs.len()).ok_or_else(|| OpError::new("operands are missing"))?;
    let results = if truth(condition)? { run(then, first)? } else { run(otherwise, second)? };
    promised(a.types("results")?, results)
}

fn truth(t: &Tensor) -> Result<bool, OpError> {
    let values = t.to_i64().filter(|v| v.len() == 1 && t.dtype() == DType::Bool);
    values.map(|v| v[0] != 0).ok_or_else(|| OpError::new("a condition must be one truth value"))
}

fn infer_loop(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let (body, carried, results) = (a.graph("body")?, a.size("carried")?, a.types("results")?);
    let [steps, condition, rest @ ..] = inputs else { return Err(OpError::new("wants steps and a condition")) };
    if steps.dtype != DType::I64 || condition.dtype != DType::Bool {
        return Err(OpError::new("wants a number of steps (i64) and a condition (bool)"));
    }
    let (number, truth) = (TensorType::of(DType::I64, &[]), TensorType::of(DType::Bool, &[]));
    let all: Vec<&TensorType> = [&number, &truth].into_iter().chain(rest.iter().copied()).collect();
    accepts(body, "`body`", all.into_iter())?;
    if body.outputs.len() != 1 + results.len() || carried > results.len() {
        return Err(OpError::new("the body does not give the results"));
    }
    Ok(results.to_vec())
}

fn eval_loop(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (body, carried, results) = (a.graph("body")?, a.size("carried")?, a.types("results")?);
    let [steps, condition, rest @ ..] = inputs else { return Err(OpError::new("wants steps and a condition")) };
    let steps = steps.to_i64().and_then(|v| v.first().copied()).unwrap_or(0);
    let (first, outside) = rest.split_at_checked(carried).ok_or_else(|| OpError::new("operands are missing"))?;
    let mut go = truth(condition)?;
    let mut state = first.to_vec();
    let mut collected = Collected::new(results.len().saturating_sub(carried));
    let mut done = 0;
    while go && done < steps {
        let mut arguments = vec![Tensor::from_i64(&[], &[done])?, Tensor::new(DType::Bool, vec![], vec![1u8])?];
        arguments.append(&mut state);
        arguments.extend_from_slice(outside);
        let mut made = run(body, &arguments)?.into_iter();
        go = truth(&made.next().ok_or_else(|| OpError::new("the body gives no condition"))?)?;
        state.extend(made.by_ref().take(carried));
        collected.take(made, &state)?;
        done += 1;
    }
    for (n, parts) in collected.parts.into_iter().enumerate() {
        let ty = results.get(carried + n).ok_or_else(|| OpError::new("a type is missing"))?;
        state.push(stack(&parts, 0, ty)?);
    }
    promised(results, state)
}

/// What the steps of a body give, one list for each result.
struct Collected {
    parts: Vec<Vec<Tensor>>,
    bytes: u64,
}

impl Collected {
    fn new(count: usize) -> Collected {
        Collected { parts: vec![Vec::new(); count], bytes: 0 }
    }

    fn take(&mut self, made: impl Iterator<Item = Tensor>, state: &[Tensor]) -> Result<(), OpError> {
        for (list, part) in self.parts.iter_mut().zip(made) {
            self.bytes = self.bytes.saturating_add(part.footprint()).saturating_add(size_of::<Tensor>() as u64);
            list.push(part);
        }
        let held = state.iter().map(Tensor::footprint).fold(self.bytes, u64::saturating_add);
        match limits::current().bytes {
            Some(most) if held > most => {
                limits::refuse_memory();
                Err(OpError::new(format!(
                    "what the steps give takes {held} bytes, {most} are left of the memory budget"
                )))
            }
            Some(_) | None => Ok(()),
        }
    }
}

/// Tensors of one type along a new axis; without any, of the promised type, unknown extents being 0.
fn stack(parts: &[Tensor], axis: usize, ty: &TensorType) -> Result<Tensor, OpError> {
    let Some(first) = parts.first() else {
        let mut shape: Vec<usize> = ty.dims.iter().map(|d| d.as_size().unwrap_or(0)).collect();
        if let Some(d) = shape.get_mut(axis) {
            *d = 0;
        }
        return empty(ty.dtype, shape);
    };
    if parts.iter().any(|p| p.dtype() != first.dtype() || p.shape() != first.shape() || p.tensors().is_some()) {
        return Err(OpError::new("what is collected must be tensors of one type and shape"));
    }
    let mut shape = first.shape().to_vec();
    if axis > shape.len() {
        return Err(OpError::new(format!("there is no axis {axis}")));
    }
    shape.insert(axis, parts.len());
    let count = element_count(&shape, first.dtype().size())?;
    let (outer, extent, inner) = split(&shape, axis);
    if first.strings().is_some() {
        let mut strings = Vec::with_capacity(count);
        for o in 0..outer {
            for part in parts {
                strings.extend_from_slice(
                    part.strings().and_then(|s| s.get(o * inner..(o + 1) * inner)).unwrap_or_default(),
                );
            }
        }
        return Ok(Tensor::from_strings(shape, strings)?);
    }
    let row = inner * first.dtype().size();
    let mut bytes = Vec::with_capacity(outer * extent * row);
    for o in 0..outer {
        for part in parts {
            bytes.extend_from_slice(&part.bytes()[o * row..(o + 1) * row]);
        }
    }
    Ok(Tensor::new(first.dtype(), shape, bytes)?)
}

fn empty(dtype: DType, shape: Vec<usize>) -> Result<Tensor, OpError> {
    match dtype {
        DType::Str => Ok(Tensor::from_strings(shape, Vec::new())?),
        DType::Seq => Ok(Tensor::from_tensors(Vec::new())),
        _ => Ok(Tensor::zeros(dtype, &shape)?),
    }
}

fn infer_scan(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let (body, states, results) = (a.graph("body")?, a.size("states")?, a.types("results")?);
    let axes = a.sizes("axes")?;
    let mut seen: Vec<TensorType> = Vec::with_capacity(inputs.len());
    for (n, ty) in inputs.iter().enumerate() {
        let mut ty = (*ty).clone();
        if let Some(&axis) = n.checked_sub(states).and_then(|n| axes.get(n)) {
            if axis >= ty.rank() {
                return Err(OpError::new(format!("{ty} has no axis {axis}")));
            }
            ty.dims.remove(axis);
            ty = TensorType::new(ty.dtype, ty.dims);
        }
        seen.push(ty);
    }
    accepts(body, "`body`", seen.iter())?;
    let collected = results.len().checked_sub(states).filter(|_| body.outputs.len() == results.len());
    let collected = collected.ok_or_else(|| OpError::new("the body does not give the results"))?;
    let lists = [a.sizes("backward")?.len() == axes.len(), a.sizes("out_axes")?.len() == collected];
    if axes.is_empty() || lists.contains(&false) || a.sizes("out_backward")?.len() != collected {
        return Err(OpError::new("lists of axes and directions are not as long as those of operands and results"));
    }
    Ok(results.to_vec())
}

fn eval_scan(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (body, states, results) = (a.graph("body")?, a.size("states")?, a.types("results")?);
    let (axes, backward) = (a.sizes("axes")?, a.sizes("backward")?);
    let (out_axes, out_backward) = (a.sizes("out_axes")?, a.sizes("out_backward")?);
    let missing = || OpError::new("operands are missing");
    let (first, rest) = inputs.split_at_checked(states).ok_or_else(missing)?;
    let (scanned, outside) = rest.split_at_checked(axes.len()).ok_or_else(missing)?;
    let extent = |(t, &axis): (&Tensor, &usize)| t.shape().get(axis).copied();
    let lengths = scanned.iter().zip(&axes).map(extent).collect::<Option<Vec<usize>>>().ok_or_else(missing)?;
    let steps = lengths.first().copied().unwrap_or(0);
    if lengths.iter().any(|&l| l != steps) {
        return Err(OpError::new(format!("the scanned inputs have different lengths: {lengths:?}")));
    }
    let mut state = first.to_vec();
    let mut collected = Collected::new(results.len().saturating_sub(states));
    for step in 0..steps {
        let mut arguments = std::mem::take(&mut state);
        for ((t, &axis), &back) in scanned.iter().zip(&axes).zip(&backward) {
            arguments.push(slice(t, axis, if back == 1 { steps - 1 - step } else { step })?);
        }
        arguments.extend_from_slice(outside);
        let mut made = run(body, &arguments)?.into_iter();
        state.extend(made.by_ref().take(states));
        collected.take(made, &state)?;
    }
    for (n, mut parts) in collected.parts.into_iter().enumerate() {
        if out_backward.get(n) == Some(&1) {
            parts.reverse();
        }
        let ty = results.get(states + n).ok_or_else(missing)?;
        state.push(stack(&parts, out_axes.get(n).copied().unwrap_or(0), ty)?);
    }
    promised(results, state)
}

/// Element `n` along an axis, without the axis.
fn slice(t: &Tensor, axis: usize, n: usize) -> Result<Tensor, OpError> {
    let (outer, extent, inner) = split(t.shape(), axis);
    let mut shape = t.shape().to_vec();
    shape.remove(axis);
    if let Some(strings) = t.strings() {
        let rows = (0..outer).flat_map(|o| strings.get((o * extent + n) * inner..(o * extent + n + 1) * inner));
        return Ok(Tensor::from_strings(shape, rows.flatten().cloned().collect())?);
    }
    let row = inner * t.dtype().size();
    let mut bytes = Vec::with_capacity(outer * row);
    for o in 0..outer {
        bytes.extend_from_slice(&t.bytes()[(o * extent + n) * row..(o * extent + n + 1) * row]);
    }
    Ok(Tensor::new(t.dtype(), shape, bytes)?)
}

fn infer_map(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let (body, others) = (a.graph("body")?, a.size("others")?);
    if inputs.first().is_none_or(|t| t.dtype != DType::Seq) || inputs.len() <= others {
        return Err(OpError::new("wants a sequence first"));
    }
    if inputs.len() != body.inputs.len() {
        return Err(OpError::new(format!("`body` takes {} inputs, {} are given", body.inputs.len(), inputs.len())));
    }
    given(a, body.outputs.len())
}

fn eval_map(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (body, others) = (a.graph("body")?, a.size("others")?);
    let (mapped, outside) = inputs.split_at_checked(1 + others).ok_or_else(|| OpError::new("operands are missing"))?;
    let length = mapped.first().and_then(Tensor::tensors).map_or(0, <[Tensor]>::len);
    let mut collected = Collected::new(body.outputs.len());
    for n in 0..length {
        let mut arguments = Vec::with_capacity(inputs.len());
        for t in mapped {
            arguments.push(match t.tensors() {
                Some(elements) if elements.len() == length => elements[n].clone(),
                Some(elements) => {
                    return Err(OpError::new(format!("sequences of {length} and {} elements", elements.len())));
                }
                None => t.clone(),
            });
        }
        arguments.extend_from_slice(outside);
        collected.take(run(body, &arguments)?.into_iter(), &[])?;
    }
    Ok(collected.parts.into_iter().map(Tensor::from_tensors).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;
    use crate::graph::Origin;
    use crate::ops::{Concat, Map, Op};
    use crate::{BinaryOp, Code, Expr, Symbol};

    fn add() -> Op {
        let mut body = Code::new();
        let (x, y) = (body.arg(0, DType::F32), body.arg(1, DType::F32));
        let sum = body.binary(BinaryOp::Add, x, y).unwrap();
        body.set_result(sum);
        Map { body }.into()
    }

    fn compare(op: BinaryOp, dtype: DType) -> Op {
        let mut body = Code::new();
        let (x, y) = (body.arg(0, dtype), body.arg(1, dtype));
        let truth = body.binary(op, x, y).unwrap();
        body.set_result(truth);
        Map { body }.into()
    }

    fn f32s(values: &[f32]) -> Tensor {
        Tensor::from_f32(&[values.len()], values).unwrap()
    }

    fn truth_value(v: bool) -> Tensor {
        Tensor::new(DType::Bool, vec![], vec![u8::from(v)]).unwrap()
    }

    /// x as it is, or twice.
    fn branches() -> (Graph, Graph) {
        let here = Origin::default();
        let symbol = Expr::from(Symbol::new("n"));
        let mut once = Graph::new("once");
        let x = once.add_input("x", TensorType::new(DType::F32, vec![symbol.clone()]));
        once.add_output("y", x);
        let mut twice = Graph::new("twice");
        let x = twice.add_input("x", TensorType::new(DType::F32, vec![symbol]));
        let y = twice.add(Concat { axis: 0 }.into(), &[x, x], &here).unwrap();
        twice.add_output("y", y);
        (once, twice)
    }

    #[test]
    fn a_branch_decides_the_extent() {
        let (once, twice) = branches();
        let results = vec![TensorType::new(DType::F32, vec![Expr::from(Symbol::new("m"))])];
        let a = Attributes::new().with("then", once).with("else", twice).with("results", results);
        let op = Host::new("if", a).unwrap();
        let x = f32s(&[1., 2.]);
        let of = |c| op.eval(&[truth_value(c), x.clone(), x.clone()]).unwrap()[0].to_f32().unwrap();
        assert_eq!(of(true), [1., 2.]);
        assert_eq!(of(false), [1., 2., 1., 2.]);
    }

    /// Carries `x[n]`, which grows by a captured element at every step, and collects its step; goes on as long as step < 2.
    fn growing() -> Graph {
        let here = Origin::default();
        let mut g = Graph::new("body");
        let step = g.add_input("step", TensorType::of(DType::I64, &[]));
        g.add_input("go", TensorType::of(DType::Bool, &[]));
        let x = g.add_input("x", TensorType::new(DType::F32, vec![Expr::from(Symbol::new("n"))]));
        let more = g.add_input("more", TensorType::of(DType::F32, &[1]));
        let longer = g.add(Concat { axis: 0 }.into(), &[x, more], &here).unwrap();
        let two = g.add_constant(Tensor::from_i64(&[], &[2]).unwrap());
        let go = g.add(compare(BinaryOp::Lt, DType::I64), &[step, two], &here).unwrap();
        g.add_output("go", go);
        g.add_output("x", longer);
        g.add_output("step", step);
        g
    }

    fn loop_op() -> Host {
        let dim = |n| Expr::from(Symbol::new(n));
        let results =
            vec![TensorType::new(DType::F32, vec![dim("m")]), TensorType::new(DType::I64, vec![dim("steps")])];
        let a = Attributes::new().with("body", growing()).with("carried", 1usize).with("results", results);
        Host::new("loop", a).unwrap()
    }

    fn eval_loop_with(steps: i64, go: bool) -> Result<Vec<Tensor>, OpError> {
        let steps = Tensor::from_i64(&[], &[steps]).unwrap();
        loop_op().eval(&[steps, truth_value(go), f32s(&[7.]), f32s(&[9.])])
    }

    #[test]
    fn a_loop_ends_by_count_or_by_condition() {
        let made = eval_loop_with(i64::MAX, true).unwrap();
        assert_eq!(made[0].to_f32().unwrap(), [7., 9., 9., 9.]);
        assert_eq!(made[1].to_i64().unwrap(), [0, 1, 2]);
        assert_eq!(eval_loop_with(1, true).unwrap()[0].to_f32().unwrap(), [7., 9.]);
        let none = eval_loop_with(5, false).unwrap();
        assert_eq!((none[0].to_f32().unwrap(), none[1].shape()), (vec![7.], &[0usize][..]));
    }

    #[test]
    fn a_loop_keeps_to_time_and_memory() {
        let now = limits::Limits { deadline: Some(std::time::Instant::now()), ..Default::default() };
        let message = limits::scope(now, || eval_loop_with(i64::MAX, true)).unwrap_err().0;
        assert!(message.contains("time limit"), "{message}");
        let little = limits::Limits { bytes: Some(64), ..Default::default() };
        let message = limits::scope(little, || eval_loop_with(i64::MAX, true)).unwrap_err().0;
        assert!(message.contains("memory budget"), "{message}");
    }

    #[test]
    fn the_text_form_holds_graphs() {
        let here = Origin::new("Loop_0");
        let mut g = Graph::new("whole");
        let steps = g.add_input("steps", TensorType::of(DType::I64, &[]));
        let go = g.add_input("go", TensorType::of(DType::Bool, &[]));
        let x = g.add_input("x", TensorType::of(DType::F32, &[1]));
        let node = g.add_node(loop_op().into(), &[steps, go, x, x], &here).unwrap();
        let out = g.node(node).outputs[0];
        g.add_output("y", out);
        assert_eq!(g.verify(), []);
        let text = g.to_string();
        let again = Graph::parse(&text, &g.data()).unwrap();
        let text = again.to_string();
        assert_eq!(Graph::parse(&text, &again.data()).unwrap().to_string(), text);
        let of = |g: &Graph| {
            let inputs = [Tensor::from_i64(&[], &[2]).unwrap(), truth_value(true), f32s(&[3.])];
            interp::eval_graph(g, &inputs, &Default::default()).unwrap()[0].to_f32().unwrap()
        };
        assert_eq!(of(&again), [3., 3., 3.]);
        assert_eq!(of(&g), [3., 3., 3.]);
    }

    #[test]
    fn a_scan_runs_both_ways() {
        let here = Origin::default();
        let mut g = Graph::new("body");
        let (s, x) =
            (g.add_input("s", TensorType::of(DType::F32, &[])), g.add_input("x", TensorType::of(DType::F32, &[])));
        let sum = g.add(add(), &[s, x], &here).unwrap();
        g.add_output("s", sum);
        g.add_output("y", sum);
        let of = |back: usize| {
            let results = vec![TensorType::of(DType::F32, &[]), TensorType::of(DType::F32, &[3])];
            let a = Attributes::new().with("body", g.clone()).with("states", 1usize).with("results", results);
            let a = a.with("axes", &[0usize][..]).with("backward", &[back][..]);
            let a = a.with("out_axes", &[0usize][..]).with("out_backward", &[back][..]);
            let zero = Tensor::from_f32(&[], &[0.]).unwrap();
            Host::new("scan", a).unwrap().eval(&[zero, f32s(&[1., 2., 4.])]).unwrap()[1].to_f32().unwrap()
        };
        assert_eq!(of(0), [1., 3., 7.]);
        assert_eq!(of(1), [7., 6., 4.]);
    }

    #[test]
    fn sequences_are_mapped() {
        let mut g = Graph::new("body");
        let symbol = || vec![Expr::from(Symbol::new("n"))];
        let x = g.add_input("x", TensorType::new(DType::F32, symbol()));
        let y = g.add_input("y", TensorType::of(DType::F32, &[1]));
        let sum = g.add(add(), &[x, y], &Origin::default()).unwrap();
        g.add_output("z", sum);
        let results = vec![TensorType::new(DType::Seq, symbol())];
        let a = Attributes::new().with("body", g).with("others", 1usize).with("results", results);
        let sequence = Tensor::from_tensors(vec![f32s(&[1.]), f32s(&[2., 3.])]);
        let made = Host::new("sequence_map", a).unwrap().eval(&[sequence, f32s(&[10.])]).unwrap();
        assert_eq!(made[0], Tensor::from_tensors(vec![f32s(&[11.]), f32s(&[12., 13.])]));
    }
}
