//! Quantization moved out of the way of integers: what dequantizes goes behind ops that only move or compare elements, what quantizes
//! goes before them, and where both meet and undo one another both go, so that whole regions stay integers in memory.
//!
//! Invariant: every value that stays has the same bits as before. Dequantization by one positive scale increases with the integers, so it
//! changes places with whatever picks elements by place or by size; whether a clip is one of integers, and whether two maps undo each
//! other, is found by evaluating them at all integers of the type. (A window that holds NaN has no defined integer, in ONNX neither.)

use super::quantized::{Line, all_integers, applied, line, operands_with, quantization, range};
use super::{Operand, Patch, eliminate_common, rewrite};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{Map, Op, Pad, Pool};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar};
use kiln_ir::tensor::Tensor;

/// Applies all rules of this file until none applies.
///
/// # Errors
/// See [`rewrite`].
pub fn regions_of_integers(graph: &Graph) -> Result<Graph, GraphError> {
    // Tools write one pair of nodes for each reader.
    let graph = eliminate_common(graph)?;
    rewrite(&graph, &[undone, clip, join, later, border, window, earlier, earlier_in_parts])
}

/// Whether the op picks elements of its first operand, by place or as the least or greatest of some.
fn picks(op: &Op) -> bool {
    let extreme = |combine: &BinaryOp| matches!(combine, BinaryOp::Max | BinaryOp::Min);
    match op {
        Op::Pool(p) => extreme(&p.combine),
        Op::Reduce(r) => extreme(&r.combine),
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
        | Op::GatherNd(_) => true,
        Op::Map(_)
        | Op::Contract(_)
        | Op::BlockProduct(_)
        | Op::Conv(_)
        | Op::WindowTiles(_)
        | Op::TileProduct(_)
        | Op::Softmax(_)
        | Op::Norm(_)
        | Op::Concat(_)
        | Op::Pad(_)
        | Op::Pack(_)
        | Op::Iota(_)
        | Op::Host(_) => false,
    }
}

/// A patch that does `op` on integers and dequantizes its result as `from` does.
fn dequantized_after(
    graph: &Graph,
    id: NodeId,
    from: &Line,
    mut nodes: Vec<(Op, Vec<Operand>)>,
    op: (Op, Vec<Operand>),
) -> Option<Patch> {
    nodes.push(op);
    let operands = operands_with(graph, from.node, from.x, Operand::New(nodes.len() - 1))?;
    nodes.push((graph.node(from.node).op.clone(), operands));
    Some(Patch { nodes, replaces: *graph.node(id).outputs.first()?, with: None, also: vec![from.node] })
}

/// Dequantized integers that are quantized to the same integers again.
fn undone(graph: &Graph, id: NodeId) -> Option<Patch> {
    let q = quantization(graph, id)?;
    let from = line(graph, q.y)?;
    let made = Tensor::from_f32(&[from.values.len()], &from.values).ok()?;
    let again = applied(graph, id, q.y, &made)?;
    let same = q.to == from.dtype && again.bytes() == all_integers(q.to)?.bytes();
    same.then(|| Patch::value(graph.node(id).outputs[0], from.x))
}

/// An op that picks elements of dequantized integers picks the integers.
fn later(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    picks(&node.op).then_some(())?;
    let (&data, others) = node.inputs.split_first()?;
    let from = line(graph, data)?;
    let mut operands = vec![Operand::Value(from.x)];
    operands.extend(others.iter().map(|&v| Operand::Value(v)));
    dequantized_after(graph, id, &from, vec![], (node.op.clone(), operands))
}

/// Operands with one scale and one zero point, one after another.
fn join(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Concat(_) = &node.op else { return None };
    let parts: Vec<Line> = node.inputs.iter().map(|&v| line(graph, v)).collect::<Option<_>>()?;
    let first = parts.first()?;
    parts.iter().all(|p| p.same(first)).then_some(())?;
    let operands = parts.iter().map(|p| Operand::Value(p.x)).collect();
    dequantized_after(graph, id, first, vec![], (node.op.clone(), operands))
}

/// A border that an integer stands for.
fn border(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Pad(pad) = &node.op else { return None };
    let from = line(graph, *node.inputs.first()?)?;
    let value = Constant::int(from.dtype, from.integer(pad.value.as_f64())?);
    let op = Pad { value, ..pad.clone() };
    dequantized_after(graph, id, &from, vec![], (op.into(), vec![Operand::Value(from.x)]))
}

/// The greatest elements of windows whose border is below all integers: it becomes the least of them, as no window lies in the border.
fn window(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Pool(pool @ Pool { combine: BinaryOp::Max, .. }) = &node.op else { return None };
    let padded = graph.node(graph.producer(*node.inputs.first()?)?);
    let Op::Pad(pad) = &padded.op else { return None };
    let x = *padded.inputs.first()?;
    let from = line(graph, x)?;
    let least = f64::from(*from.values.first()?);
    let spatial = pool.window.iter().zip(&pool.dilations).enumerate();
    let mut inside = spatial.map(|(n, (&window, &dilation))| {
        let at = n + 2;
        let extent = graph.ty(x).dims.get(at).and_then(Expr::as_const).is_some_and(|d| d > 0);
        let reaches = |by: Option<&usize>| by.is_some_and(|&by| by < window);
        extent
            && dilation == 1
            && reaches(pad.low.get(at))
            && reaches(pad.high.get(at))
            && pad.interior.get(at) == Some(&0)
    });
    let others = [&pad.low, &pad.high, &pad.interior].iter().all(|border| border.iter().take(2).all(|&n| n == 0));
    (pad.value.as_f64() <= least && others && inside.all(|one| one)).then_some(())?;
    let value = Constant::int(from.dtype, range(from.dtype)?.0);
    let border = (Pad { value, ..pad.clone() }.into(), vec![Operand::Value(from.x)]);
    dequantized_after(graph, id, &from, vec![border], (node.op.clone(), vec![Operand::New(0)]))
}

/// A map of dequantized integers that is a clip of the integers: a rectifier, for one.
fn clip(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Map(Map { body }) = &node.op else { return None };
    // What only compares has few operations.
    if body.len() > 8 || !body.nodes().all(|(_, n)| compares(n)) {
        return None;
    }
    let value = *node.outputs.first()?;
    let mut operands = node.inputs.iter().copied().filter(|&v| graph.constant(v).is_none());
    let operand = operands.next()?;
    if operands.any(|v| v != operand) || graph.ty(operand).dims != graph.ty(value).dims {
        return None;
    }
    let from = line(graph, operand)?;
    let all = Tensor::from_f32(&[from.values.len()], &from.values).ok()?;
    let made = applied(graph, id, operand, &all)?.to_f32()?;
    let (low, high) = (made.first()?, made.last()?);
    let (low, high) = (from.integer(f64::from(*low))?, from.integer(f64::from(*high))?);
    let (least, most) = range(from.dtype)?;
    let clipped = |n: usize| from.values.get(usize::try_from((least + n as i64).clamp(low, high) - least).ok()?);
    // Bit by bit, as a 0 may be negative.
    if low > high || made.iter().enumerate().any(|(n, m)| clipped(n).is_none_or(|c| c.to_bits() != m.to_bits())) {
        return None;
    }
    if (low, high) == (least, most) {
        return Some(Patch::value(value, operand));
    }
    let mut body = Code::new();
    let mut clipped = body.arg(0, from.dtype);
    for (bound, op, none) in [(low, BinaryOp::Max, least), (high, BinaryOp::Min, most)] {
        if bound != none {
            let bound = body.constant(Constant::int(from.dtype, bound));
            clipped = body.binary(op, clipped, bound).ok()?;
        }
    }
    body.set_result(clipped);
    dequantized_after(graph, id, &from, vec![], (Map { body }.into(), vec![Operand::Value(from.x)]))
}

/// Whether the scalar picks one of its operands, or is one.
fn compares(node: &Scalar) -> bool {
    match node {
        Scalar::Arg(_) | Scalar::Const(_) | Scalar::Select(..) => true,
        Scalar::Binary(op, ..) => matches!(op, BinaryOp::Max | BinaryOp::Min) || op.is_comparison(),
        Scalar::Unary(..) | Scalar::Fma(..) | Scalar::Cast(..) => false,
        Scalar::Index(_) | Scalar::Load(..) | Scalar::Guard(..) => false,
    }
}

/// The only reader of `v` is the node, and it is in no output.
fn read_once(graph: &Graph, v: ValueId) -> bool {
    graph.users(v).len() == 1 && !graph.is_output(v)
}

/// Whether the op picks every element of its only operand.
fn keeps_all(op: &Op) -> bool {
    picks(op) && matches!(op, Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Pool(_))
}

/// What quantizes the result of an op that moves or compares elements quantizes its operand: fewer bytes are moved, and what made
/// the operand quantizes it in registers. What picks a part of the elements stays, as it would quantize all of them.
fn earlier(graph: &Graph, id: NodeId) -> Option<Patch> {
    let q = quantization(graph, id)?;
    let producer = graph.producer(q.y).filter(|_| read_once(graph, q.y))?;
    let node = graph.node(producer);
    let from = *node.inputs.first()?;
    if graph.constant(from).is_some() || graph.ty(from).dtype != DType::F32 {
        return None;
    }
    let op = match &node.op {
        Op::Pad(pad) => {
            let mut bytes = Vec::new();
            pad.value.store(&mut bytes);
            let value = applied(graph, id, q.y, &Tensor::new(DType::F32, vec![], bytes).ok()?)?;
            Pad { value: Constant::load(q.to, value.bytes(), 0)?, ..pad.clone() }.into()
        }
        op if keeps_all(op) => op.clone(),
        _ => return None,
    };
    let quantize = (graph.node(id).op.clone(), operands_with(graph, id, q.y, Operand::Value(from))?);
    let nodes = vec![quantize, (op, vec![Operand::New(0)])];
    Some(Patch { nodes, replaces: *graph.node(id).outputs.first()?, with: None, also: vec![producer] })
}

/// The same of operands one after another, each of which is quantized where it is made.
fn earlier_in_parts(graph: &Graph, id: NodeId) -> Option<Patch> {
    let q = quantization(graph, id)?;
    let producer = graph.producer(q.y).filter(|_| read_once(graph, q.y))?;
    let node = graph.node(producer);
    let Op::Concat(_) = &node.op else { return None };
    let mut nodes = Vec::new();
    for &part in &node.inputs {
        nodes.push((graph.node(id).op.clone(), operands_with(graph, id, q.y, Operand::Value(part))?));
    }
    let parts = (0..nodes.len()).map(Operand::New).collect();
    nodes.push((node.op.clone(), parts));
    Some(Patch { nodes, replaces: *graph.node(id).outputs.first()?, with: None, also: vec![producer] })
}

#[cfg(test)]
mod tests;
