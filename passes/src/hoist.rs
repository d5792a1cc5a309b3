//! Work that depends on constants alone is done when a model is compiled, not in each run.
//!
//! Invariant: only whole groups are computed, whose results would be written to memory in each run: what a kernel expands in
//! registers while it reads weights of few bits stays as it is. Such weights were made small on purpose, so that nothing is computed
//! where the constants would grow by much.

use crate::group::{Group, Work, group};
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::Op;
use kiln_ir::tensor::Tensor;
use std::collections::HashMap;

/// Bytes by which constants may grow in any case; beyond, by a quarter of what they are.
const ALLOWED_GROWTH: usize = 16 << 20;

/// How often the work is looked through: what one round computes may leave more to compute.
const MOST_ROUNDS: usize = 4;

/// A result of at most so many times the bytes it is made of is expanded weights; more is a broadcast, best left to the run.
const MOST_EXPANDED: usize = 8;

/// Replaces the results of groups that read nothing but constants by their values.
///
/// # Errors
/// The graph has a cycle.
pub fn hoist_constants(graph: &Graph, on_host: &dyn Fn(&Graph, NodeId) -> bool) -> Result<Graph, GraphError> {
    let mut graph = graph.clone();
    for _ in 0..MOST_ROUNDS {
        let constant = |v: &ValueId| graph.constant(*v).is_some();
        let order = graph.live_order()?;
        let ready = |id: &NodeId| {
            let node = graph.node(*id);
            !matches!(node.op, Op::Host(_)) && !node.inputs.is_empty() && node.inputs.iter().all(constant)
        };
        if !order.iter().any(ready) {
            break;
        }
        let place: HashMap<NodeId, usize> = order.into_iter().enumerate().map(|(n, id)| (id, n)).collect();
        let work = group(&graph, &|id| on_host(&graph, id), &mut Vec::new())?;
        let found: Vec<(ValueId, Tensor)> = work.iter().filter_map(|w| computed(&graph, w, &place)).collect();
        let growth: usize = found.iter().map(|(_, t)| t.bytes().len()).sum();
        if found.is_empty() || growth > ALLOWED_GROWTH.max(graph.constant_bytes() / 4) {
            break;
        }
        for (old, value) in found {
            let new = graph.add_constant(value);
            graph.replace(old, new);
        }
        graph = graph.compact()?;
    }
    Ok(graph)
}

/// What a group makes of constants; nothing where it reads anything else, cannot be computed or is no expansion.
fn computed(graph: &Graph, work: &Work, place: &HashMap<NodeId, usize>) -> Option<(ValueId, Tensor)> {
    let Work::Kernel(Group { inputs, output, nodes, .. }) = work else { return None };
    let ty = graph.ty(*output);
    let read: usize = inputs.iter().map(|&v| graph.constant(v).map(|t| t.bytes().len())).sum::<Option<usize>>()?;
    let made = ty.bytes().as_const().and_then(|n| usize::try_from(n).ok())?;
    // Outputs of the model have memory of their own.
    if inputs.is_empty() || graph.is_output(*output) || made > read.saturating_mul(MOST_EXPANDED) {
        return None;
    }
    let mut nodes = nodes.clone();
    nodes.sort_by_key(|id| place.get(id));
    nodes.dedup();
    let mut values: HashMap<ValueId, Tensor> = HashMap::new();
    for id in nodes {
        let node = graph.node(id);
        let operand = |v: &ValueId| values.get(v).or_else(|| graph.constant(*v)).cloned();
        let operands: Vec<Tensor> = node.inputs.iter().map(operand).collect::<Option<_>>()?;
        values.extend(node.outputs.iter().copied().zip(eval_op(&node.op, &operands).ok()?));
    }
    Some((*output, values.remove(output)?))
}
