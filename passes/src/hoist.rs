//! Work that depends on constants alone is done when a model is compiled, not in each run.
//!
//! Invariant: only whole groups are computed, whose results would be written to memory in each run: what a kernel expands in
//! registers while it reads weights of few bits stays as it is. Such weights were made small on purpose, so that nothing is computed
//! where the constants would grow by much.

use crate::boundary::Wishes;
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
    // What may still be added, told from the types: nothing is computed that would not be kept.
    let mut allowed = ALLOWED_GROWTH.max(graph.constant_bytes() / 4);
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
        let work = group(&graph, &|id| on_host(&graph, id), &Wishes::default(), &mut Vec::new())?;
        let groups: Vec<(&Group, usize)> = work.iter().filter_map(|w| expansion(&graph, w)).collect();
        let growth = groups.iter().fold(0usize, |sum, (_, made)| sum.saturating_add(*made));
        if growth > allowed {
            break;
        }
        allowed -= growth;
        let found: Vec<(ValueId, Tensor)> = groups.iter().filter_map(|(g, _)| computed(&graph, g, &place)).collect();
        if found.is_empty() {
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

/// A group that reads nothing but constants and expands them, with the bytes that it makes.
fn expansion<'a>(graph: &Graph, work: &'a Work) -> Option<(&'a Group, usize)> {
    let Work::Kernel(group) = work else { return None };
    let Group { inputs, output, .. } = group;
    let read: usize = inputs.iter().map(|&v| graph.constant(v).map(|t| t.bytes().len())).sum::<Option<usize>>()?;
    let made = graph.ty(*output).bytes().as_const().and_then(|n| usize::try_from(n).ok())?;
    // Outputs of the model have memory of their own.
    let kept = !inputs.is_empty() && !graph.is_output(*output) && made <= read.saturating_mul(MOST_EXPANDED);
    kept.then_some((group, made))
}

/// What such a group makes; nothing where it cannot be computed.
fn computed(graph: &Graph, group: &Group, place: &HashMap<NodeId, usize>) -> Option<(ValueId, Tensor)> {
    let Group { output, nodes, .. } = group;
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
