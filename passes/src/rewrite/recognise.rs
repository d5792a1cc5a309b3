//! Composite ops as exporters spell them out: softmax and normalization found again in their parts; and pools of large windows taken apart
//! ([`super::windows`]).

use super::windows::window_by_axes;
use super::{Operand, Patch, rewrite};
use kiln_ir::graph::{Graph, GraphError, Node, NodeId, ValueId};
use kiln_ir::ops::{Norm, NormKind, Op, Reduce, Softmax};
use kiln_ir::scalar::{BinaryOp, Constant, Scalar, UnaryOp};

/// Applies all rules of this file until none applies.
///
/// # Errors
/// See [`rewrite`].
pub fn recognise(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[layer_norm, softmax, window_by_axes])
}

fn producer(graph: &Graph, v: ValueId) -> Option<(NodeId, &Node)> {
    graph.producer(v).map(|id| (id, graph.node(id)))
}

/// A map that applies one binary operation to two operands (or one operand and itself); their values in the order of the operation.
fn binary(graph: &Graph, v: ValueId, op: BinaryOp) -> Option<(ValueId, ValueId)> {
    let (_, node) = producer(graph, v)?;
    let Op::Map(m) = &node.op else { return None };
    let Scalar::Binary(found, a, b) = m.body.node(m.body.result()) else { return None };
    let operand = |id| match m.body.node(id) {
        Scalar::Arg(n) => node.inputs.get(*n).copied(),
        _ => None,
    };
    (*found == op).then_some(())?;
    Some((operand(*a)?, operand(*b)?))
}

fn unary(graph: &Graph, v: ValueId, op: UnaryOp) -> Option<ValueId> {
    let (_, node) = producer(graph, v)?;
    let Op::Map(m) = &node.op else { return None };
    match m.body.node(m.body.result()) {
        Scalar::Unary(found, a) if *found == op && matches!(m.body.node(*a), Scalar::Arg(0)) => {
            node.inputs.first().copied()
        }
        _ => None,
    }
}

/// A constant of one element, broadcast by a map.
fn scalar(graph: &Graph, v: ValueId) -> Option<Constant> {
    let t = graph.constant(v)?;
    (t.len() == 1).then(|| Constant::load(t.dtype(), t.bytes(), 0)).flatten()
}

/// The operand of a mean over the last axis, kept with extent 1: a sum divided by (or multiplied with the inverse of) the count.
fn mean(graph: &Graph, v: ValueId) -> Option<ValueId> {
    let (_, node) = producer(graph, v)?;
    let Op::Map(m) = &node.op else { return None };
    let sum = *node.inputs.first()?;
    let (_, Node { op: Op::Reduce(r), inputs, .. }) = producer(graph, sum)? else { return None };
    let x = inputs[0];
    let rank = graph.ty(x).rank();
    if r.combine != BinaryOp::Add || r.axes != [rank.checked_sub(1)?] || !r.keep {
        return None;
    }
    let count = graph.ty(x).dims.last()?.as_const()? as f64;
    let Scalar::Binary(op, a, b) = m.body.node(m.body.result()) else { return None };
    if !matches!(m.body.node(*a), Scalar::Arg(0)) {
        return None;
    }
    let factor = match m.body.node(*b) {
        Scalar::Const(c) => *c,
        Scalar::Arg(1) => scalar(graph, *node.inputs.get(1)?)?,
        _ => return None,
    };
    let exact = match op {
        BinaryOp::Div => factor.as_f64() == count,
        BinaryOp::Mul => factor == Constant::float(factor.dtype, 1.0 / count),
        _ => false,
    };
    exact.then_some(x)
}

/// `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon)` over the last axis.
fn layer_norm(graph: &Graph, id: NodeId) -> Option<Patch> {
    let output = *graph.node(id).outputs.first()?;
    let (centred, root) = binary(graph, output, BinaryOp::Div)?;
    let variance = unary(graph, root, UnaryOp::Sqrt).or_else(|| {
        // `pow(x, 0.5)` is the same root.
        let (v, half) = binary(graph, root, BinaryOp::Pow)?;
        (scalar(graph, half)?.as_f64() == 0.5).then_some(v)
    })?;
    let (square_mean, epsilon) = binary(graph, variance, BinaryOp::Add)?;
    let (square_mean, epsilon) = match scalar(graph, epsilon) {
        Some(e) => (square_mean, e),
        None => (epsilon, scalar(graph, square_mean)?),
    };
    let square = mean(graph, square_mean)?;
    let squared = is_square(graph, square)?;
    let (x, average) = binary(graph, centred, BinaryOp::Sub)?;
    // Exporters may subtract twice: equal differences count as one.
    let same = squared == centred || binary(graph, squared, BinaryOp::Sub) == Some((x, average));
    if !same || mean(graph, average)? != x || !graph.ty(output).dtype.is_float() || epsilon.dtype != graph.ty(x).dtype {
        return None;
    }
    let norm = Norm { kind: NormKind::Layer, axes: 1, epsilon };
    let mut patch = Patch::node(output, norm, &[x]);
    patch.also =
        [centred, root, variance, square_mean, square, average].iter().filter_map(|&v| graph.producer(v)).collect();
    Some(patch)
}

/// The value that another one is the square of: `x * x` or `pow(x, 2)`.
fn is_square(graph: &Graph, v: ValueId) -> Option<ValueId> {
    if let Some((a, b)) = binary(graph, v, BinaryOp::Mul) {
        return (a == b).then_some(a);
    }
    if let Some((a, two)) = binary(graph, v, BinaryOp::Pow) {
        return (scalar(graph, two)?.as_f64() == 2.0).then_some(a);
    }
    let (_, node) = producer(graph, v)?;
    let Op::Map(m) = &node.op else { return None };
    match m.body.node(m.body.result()) {
        Scalar::Binary(BinaryOp::Mul, a, b) if a == b && matches!(m.body.node(*a), Scalar::Arg(0)) => {
            node.inputs.first().copied()
        }
        _ => None,
    }
}

/// `exp(x - max(x)) / sum(exp(x - max(x)))` along one axis.
fn softmax(graph: &Graph, id: NodeId) -> Option<Patch> {
    let output = *graph.node(id).outputs.first()?;
    let (exponentials, sum) = binary(graph, output, BinaryOp::Div)?;
    let reduce = |v: ValueId, combine: BinaryOp| -> Option<(ValueId, Reduce)> {
        match producer(graph, v)? {
            (_, Node { op: Op::Reduce(r), inputs, .. }) if r.combine == combine && r.keep && r.axes.len() == 1 => {
                Some((inputs[0], r.clone()))
            }
            _ => None,
        }
    };
    let (summed, over) = reduce(sum, BinaryOp::Add)?;
    let shifted = unary(graph, exponentials, UnaryOp::Exp)?;
    let (x, max) = binary(graph, shifted, BinaryOp::Sub)?;
    let (source, along) = reduce(max, BinaryOp::Max)?;
    if summed != exponentials || source != x || over.axes != along.axes {
        return None;
    }
    let mut patch = Patch {
        nodes: vec![(Softmax { axis: over.axes[0], log: false }.into(), vec![Operand::Value(x)])],
        replaces: output,
        with: None,
        also: vec![],
    };
    patch.also = [exponentials, sum, shifted, max].iter().filter_map(|&v| graph.producer(v)).collect();
    Some(patch)
}
