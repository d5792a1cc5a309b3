//! Constant folding: nodes whose operands are all constant are computed now, by the interpreter.

use super::Graph;
use kiln_ir::DType;
use kiln_ir::graph::GraphError;
use kiln_ir::interp::eval_op;
use kiln_ir::ops::Op;
use kiln_ir::tensor::element_count;

/// Constants of bytes and halves that are longer than this are weights: making wider numbers of them is left to what reads them.
const MOST_WIDENED: usize = 1 << 12;

/// Results larger than this many bytes are not folded unless they are no larger than their operands: a broadcast weight
/// would blow up the artifact.
const MOST_GROWTH: usize = 1 << 20;

/// Replaces nodes with constant operands by their values. A node that cannot be computed is left for the run to report.
///
/// # Errors
/// The graph has a cycle.
pub fn fold_constants(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    for id in graph.live_order()? {
        let node = graph.node(id).clone();
        let operands: Option<Vec<_>> = node.inputs.iter().map(|&v| graph.constant(v).cloned()).collect();
        let Some(operands) = operands else { continue };
        let size = |shape: &[usize], dtype: DType| element_count(shape, dtype.size()).map(|n| n * dtype.size());
        let read: usize = operands.iter().filter_map(|t| size(t.shape(), t.dtype()).ok()).sum();
        let made: Option<usize> =
            node.outputs.iter().map(|&v| graph.ty(v).shape().and_then(|s| size(&s, graph.ty(v).dtype).ok())).sum();
        // Sequences are no constants.
        let never = node.outputs.iter().any(|&v| graph.ty(v).dtype == DType::Seq) || is_left(&node.op);
        let small = |dtype: DType| dtype.size() == 1 || dtype.is_half();
        let weights = operands.iter().any(|t| small(t.dtype()) && t.bytes().len() > MOST_WIDENED);
        if made.is_none_or(|m| m > read.max(if weights { 0 } else { MOST_GROWTH })) || never {
            continue;
        }
        let Ok(values) = eval_op(&node.op, &operands) else { continue };
        for (&old, value) in node.outputs.iter().zip(values) {
            let new = graph.add_constant(value);
            graph.replace(old, new);
        }
    }
    graph.compact()
}

/// Ops that draw numbers, and graphs of their own, which may never end.
fn is_left(op: &Op) -> bool {
    matches!(op, Op::Host(h) if h.function().starts_with("random") || h.is_region())
}
