//! Canonical forms: views that do nothing go, views of views become one, transposes go into contractions, what is picked from a
//! table of weights is picked before it is computed with ([`super::picked`]), products sum over the blocks of such a table
//! ([`super::blocks`]), and scales of its rows leave it ([`super::places`]).

use super::blocks::{sum_over_blocks, whole_rows};
use super::picked::{gather_first, gather_through_view};
use super::places::scales_of_places;
use super::runs::gather_in_runs;
use super::{Patch, rewrite};
use kiln_ir::graph::{Graph, GraphError, Node, NodeId, ValueId};
use kiln_ir::ops::{Op, Reshape, Transpose};
use kiln_ir::scalar::Scalar;

/// Applies all rules of this file until none applies.
///
/// # Errors
/// See [`rewrite`].
pub fn canonicalise(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(
        graph,
        &[
            drop_identity,
            join_views,
            transpose_operand,
            transpose_result,
            gather_first,
            gather_through_view,
            gather_in_runs,
            whole_rows,
            sum_over_blocks,
            scales_of_places,
        ],
    )
}

pub(super) fn producer(graph: &Graph, v: ValueId) -> Option<(NodeId, &Node)> {
    graph.producer(v).map(|id| (id, graph.node(id)))
}

/// A node whose result is its operand.
fn drop_identity(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (&input, &output) = (node.inputs.first()?, node.outputs.first()?);
    let (from, to) = (graph.ty(input), graph.ty(output));
    if from.dtype != to.dtype || from.dims != to.dims {
        return None;
    }
    let identity = match &node.op {
        Op::Reshape(_) | Op::Broadcast(_) => true,
        Op::Transpose(t) => t.perm.is_sorted(),
        Op::Slice(s) => s.starts.iter().all(|e| e.as_const() == Some(0)) && s.steps.iter().all(|&s| s == 1),
        Op::Concat(_) => node.inputs.len() == 1,
        Op::Pad(p) => [&p.low, &p.high, &p.interior].iter().all(|v| v.iter().all(|&x| x == 0)),
        Op::Map(m) => node.inputs.len() == 1 && matches!(m.body.node(m.body.result()), Scalar::Arg(0)),
        Op::Reduce(r) => r.axes.is_empty(),
        Op::Contract(_)
        | Op::BlockProduct(_)
        | Op::Conv(_)
        | Op::WindowTiles(_)
        | Op::TileProduct(_)
        | Op::Pack(_)
        | Op::Pool(_)
        | Op::Softmax(_)
        | Op::Norm(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
        | Op::GatherNd(_)
        | Op::Iota(_)
        | Op::Host(_) => false,
    };
    identity.then(|| Patch::value(output, input))
}

/// A reshape of a reshape, a transpose of a transpose; a transpose that moves only axes of extent 1 is a reshape.
fn join_views(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (&input, &output) = (node.inputs.first()?, node.outputs.first()?);
    match &node.op {
        Op::Transpose(outer) => {
            if let Some((inner_id, Node { op: Op::Transpose(inner), inputs, .. })) = producer(graph, input) {
                let perm = outer.perm.iter().map(|&n| inner.perm[n]).collect();
                let mut patch = Patch::node(output, Transpose { perm }, inputs);
                patch.also.push(inner_id);
                return Some(patch);
            }
            let dims = &graph.ty(input).dims;
            let moved: Vec<usize> = outer.perm.iter().copied().filter(|&n| dims[n].as_const() != Some(1)).collect();
            moved.is_sorted().then(|| Patch::node(output, Reshape { dims: graph.ty(output).dims.clone() }, &[input]))
        }
        Op::Reshape(outer) => match producer(graph, input)? {
            (inner_id, Node { op: Op::Reshape(_), inputs, .. }) => {
                let mut patch = Patch::node(output, outer.clone(), inputs);
                patch.also.push(inner_id);
                Some(patch)
            }
            _ => None,
        },
        _ => None,
    }
}

/// `contract(transpose(x), y)` reads `x` with its letters permuted.
pub(super) fn transpose_operand(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    for side in 0..2 {
        let Some((inner, Node { op: Op::Transpose(t), inputs, .. })) = producer(graph, node.inputs[side]) else {
            continue;
        };
        let letters: Vec<char> = if side == 0 { c.lhs.chars().collect() } else { c.rhs.chars().collect() };
        let mut moved = vec![' '; letters.len()];
        for (n, &from) in t.perm.iter().enumerate() {
            moved[from] = letters[n];
        }
        let moved: String = moved.into_iter().collect();
        let (lhs, rhs) = if side == 0 { (moved.as_str(), c.rhs.as_str()) } else { (c.lhs.as_str(), moved.as_str()) };
        let mut operands = node.inputs.clone();
        operands[side] = inputs[0];
        let mut patch = Patch::node(node.outputs[0], c.with_letters(lhs, rhs, &c.out), &operands);
        patch.also.push(inner);
        return Some(patch);
    }
    None
}

/// `transpose(contract(x, y))`, read by nobody else, writes its result in the other order.
fn transpose_result(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Transpose(t) = &node.op else { return None };
    let input = node.inputs[0];
    let (inner, Node { op: Op::Contract(c), inputs, .. }) = producer(graph, input)? else { return None };
    if graph.users(input).len() != 1 || graph.is_output(input) {
        return None;
    }
    let letters: Vec<char> = c.out.chars().collect();
    let out: String = t.perm.iter().map(|&n| letters[n]).collect();
    let mut patch = Patch::node(node.outputs[0], c.with_letters(&c.lhs, &c.rhs, &out), inputs);
    patch.also.push(inner);
    Some(patch)
}

/// Elements from which on a constant is a table of weights.
pub(super) const TABLE: usize = 1 << 12;

/// How many maps of maps are looked through.
pub(super) const MOST_MAPS: usize = 8;
