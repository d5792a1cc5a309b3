//! Evaluation of whole graphs, and the values that symbols get from the shapes of inputs.
//!
//! Invariant: a value is freed after its last use; every error names the model's nodes that it concerns.

use super::{EvalError, eval_op_within};
use crate::expr::{Atom, Expr, Ranges, Symbol};
use crate::graph::{Definition, Graph, TensorType, ValueId};
use crate::tensor::Tensor;
use std::collections::BTreeMap;

/// Values of symbols.
pub type Bindings = BTreeMap<Symbol, i64>;

/// What else is wanted of [`eval_graph`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// Values whose tensors are returned after those of the outputs.
    pub taps: &'a [ValueId],
    /// Limit in bytes of all tensors that nodes make and that live at once; `None` is no limit.
    pub budget: Option<u64>,
}

/// The outputs of a graph, then the taps. Symbols get their values from the inputs' shapes; those that only occur
/// in the results of host ops get them from the results.
///
/// # Errors
/// The inputs do not fit, a node fails (the error names its origin), or the budget is exceeded.
pub fn eval_graph(graph: &Graph, inputs: &[Tensor], options: &Options<'_>) -> Result<Vec<Tensor>, EvalError> {
    let shapes: Vec<&[usize]> = inputs.iter().map(Tensor::shape).collect();
    let mut bindings = bind_inputs(graph, &shapes).map_err(EvalError::Invalid)?;
    let mut values: Vec<Option<Tensor>> = vec![None; graph.values().len()];
    for (&id, tensor) in graph.inputs.iter().zip(inputs) {
        let value = graph.value(id);
        if value.ty.dtype != tensor.dtype() {
            let name = value.name.as_deref().unwrap_or("");
            let message = format!("input `{name}` is {}, wants {}", tensor.dtype(), value.ty.dtype);
            return Err(EvalError::Invalid(message));
        }
        values[id.index()] = Some(tensor.clone());
    }
    let missing = |v: ValueId| EvalError::Invalid(format!("value {v} has no definition"));
    let get = |values: &[Option<Tensor>], v: ValueId| match values.get(v.index()) {
        Some(Some(tensor)) => Ok(tensor.clone()),
        _ => graph.constant(v).cloned().ok_or_else(|| missing(v)),
    };
    let invalid = |e: crate::graph::GraphError| EvalError::Invalid(e.to_string());
    // The nodes that an output or a tap needs.
    let mut order = graph.live_order().map_err(invalid)?;
    if options.taps.iter().any(|&v| graph.producer(v).is_some_and(|n| !order.contains(&n))) {
        order = graph.order().map_err(invalid)?;
    }
    let mut uses = vec![0usize; values.len()];
    let kept = graph.outputs.iter().map(|(_, v)| v).chain(options.taps);
    for v in order.iter().flat_map(|&n| &graph.node(n).inputs).chain(kept) {
        *uses.get_mut(v.index()).ok_or_else(|| missing(*v))? += 1;
    }
    let mut live = 0u64;
    for id in order {
        let node = graph.node(id);
        let fail = |e: EvalError| e.at(&node.origin);
        let operands: Result<Vec<Tensor>, EvalError> = node.inputs.iter().map(|&v| get(&values, v)).collect();
        let operands = operands.map_err(fail)?;
        let op = node.op.map_exprs(&|e| substitute(e, &bindings));
        let left = options.budget.map(|b| b.saturating_sub(live));
        let results = eval_op_within(&op, &operands, left).map_err(fail)?;
        if results.len() != node.outputs.len() {
            return Err(fail(EvalError::Invalid(format!("{} results of {}", results.len(), node.outputs.len()))));
        }
        drop(operands);
        for (&v, tensor) in node.outputs.iter().zip(results) {
            learn(&graph.value(v).ty, tensor.shape(), &mut bindings);
            if uses[v.index()] > 0 {
                live = live.saturating_add(tensor.footprint());
                values[v.index()] = Some(tensor);
            }
        }
        for &v in &node.inputs {
            uses[v.index()] -= 1;
            if uses[v.index()] == 0
                && matches!(graph.value(v).definition, Definition::Node(..))
                && let Some(freed) = values[v.index()].take()
            {
                live = live.saturating_sub(freed.footprint());
            }
        }
    }
    let wanted = graph.outputs.iter().map(|(_, v)| v).chain(options.taps);
    wanted.map(|&v| get(&values, v)).collect()
}

fn substitute(e: &Expr, bindings: &Bindings) -> Expr {
    e.substitute(&|s| bindings.get(s).map(|&v| Expr::from(v)))
}

/// Gives symbols that occur alone as a dim of a result the extent that the result has.
fn learn(ty: &TensorType, shape: &[usize], bindings: &mut Bindings) {
    for (dim, &extent) in ty.dims.iter().zip(shape) {
        if let Some(symbol) = dim.as_symbol() {
            bindings.entry(symbol.clone()).or_insert(i64::try_from(extent).unwrap_or(i64::MAX));
        }
    }
}

/// The values of a graph's symbols for inputs of these shapes: from dims that are linear in one symbol; all other
/// dims must then come out as the shapes have them.
///
/// # Errors
/// The number of inputs, a rank or a dim does not fit, a symbol would have two values or one outside its range; the
/// message names inputs and axes.
pub fn bind_inputs<S: AsRef<[usize]>>(graph: &Graph, shapes: &[S]) -> Result<Bindings, String> {
    let named = |v: &ValueId| (graph.value(*v).name.as_deref().unwrap_or(""), &graph.value(*v).ty);
    let inputs: Vec<(&str, &TensorType)> = graph.inputs.iter().map(named).collect();
    bind_types(&inputs, &graph.symbols, shapes)
}

/// [`bind_inputs`] for inputs of these names and types, over symbols of these ranges.
///
/// # Errors
/// As [`bind_inputs`].
pub fn bind_types<S: AsRef<[usize]>>(
    inputs: &[(&str, &TensorType)],
    symbols: &Ranges,
    shapes: &[S],
) -> Result<Bindings, String> {
    if shapes.len() != inputs.len() {
        return Err(format!("{} inputs are given, the model takes {}", shapes.len(), inputs.len()));
    }
    struct Dim<'a> {
        input: &'a str,
        axis: usize,
        dim: &'a Expr,
        extent: i64,
    }
    let mut open = Vec::new();
    for (&(input, ty), shape) in inputs.iter().zip(shapes) {
        let shape = shape.as_ref();
        if shape.len() != ty.rank() {
            return Err(format!("input `{input}` has {} axes, wants {ty}", shape.len()));
        }
        for (axis, (dim, &extent)) in ty.dims.iter().zip(shape).enumerate() {
            let extent = i64::try_from(extent).map_err(|_| format!("axis {axis} of `{input}` is too long"))?;
            if dim.as_const() != Some(extent) {
                open.push(Dim { input, axis, dim, extent });
            }
        }
    }
    let mut bindings = Bindings::new();
    let mut sources: BTreeMap<Symbol, &str> = BTreeMap::new();
    loop {
        let before = bindings.len();
        for d in &open {
            if d.dim.as_symbol().is_some_and(|symbol| bindings.contains_key(symbol)) {
                continue;
            }
            let dim = substitute(d.dim, &bindings);
            let Some((symbol, factor)) = single_symbol(&dim) else { continue };
            let rest = d.extent.saturating_sub(dim.constant());
            if factor == 0 || rest.checked_rem(factor) != Some(0) {
                return Err(format!("axis {} of `{}` is {}, which {} cannot be", d.axis, d.input, d.extent, d.dim));
            }
            let value = rest / factor;
            if let Some(&(lo, hi)) = symbols.get(&symbol)
                && !(lo..=hi).contains(&value)
            {
                return Err(format!("{symbol} = {value} in `{}` is outside its range {lo}..{hi}", d.input));
            }
            sources.insert(symbol.clone(), d.input);
            bindings.insert(symbol, value);
        }
        if bindings.len() == before {
            break;
        }
    }
    for d in &open {
        if d.dim.as_symbol().and_then(|symbol| bindings.get(symbol)) == Some(&d.extent) {
            continue;
        }
        let dim = substitute(d.dim, &bindings);
        if dim.as_const() == Some(d.extent) {
            continue;
        }
        if let Some((symbol, factor)) = single_symbol(d.dim)
            && let (Some(first), Some(source)) = (bindings.get(&symbol), sources.get(&symbol))
        {
            let here = d.extent.saturating_sub(d.dim.constant()).checked_div(factor).unwrap_or(0);
            return Err(format!("{symbol} = {first} in `{source}`, {here} in `{}`", d.input));
        }
        let found = dim.as_const().map_or(String::new(), |v| format!(" = {v}"));
        let wanted = if d.dim.as_const().is_some() { d.dim.to_string() } else { format!("{}{found}", d.dim) };
        return Err(match dim.as_const() {
            Some(_) => format!("axis {} of `{}` is {}, wants {wanted}", d.axis, d.input, d.extent),
            None => {
                format!("axis {} of `{}` is {}: {wanted} does not say what its symbols are", d.axis, d.input, d.extent)
            }
        });
    }
    Ok(bindings)
}

/// The symbol and its coefficient, where the expression is linear in that one symbol.
fn single_symbol(e: &Expr) -> Option<(Symbol, i64)> {
    let mut terms = e.terms();
    match (terms.next()?, terms.next()) {
        (([Atom::Symbol(s)], c), None) => Some((s.clone(), c)),
        _ => None,
    }
}
