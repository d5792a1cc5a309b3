//! Masks that other kernels make, looked at as if attention made them itself.
//!
//! Invariant: only what is known of a mask is taken from here; it is read as the group says. So code may be longer here than fusion would make it.

use super::attention::Attention;
use super::causal::Seen;
use super::flat::FlatNest;
use crate::group::{Group, inline, of_node};
use kiln_ir::graph::{Graph, TensorType, ValueId};
use kiln_ir::scalar::{Code, Scalar, Source};

/// Most nodes of the graph that are looked through.
const MOST_NODES: usize = 64;

/// Most nodes of code that are looked at.
const MOST_CODE: usize = 1000;

/// What is known of the keys that attention's rows see, be the mask a constant, a condition in the group's code, or what other kernels make of such.
pub(super) fn seen_keys(graph: &Graph, group: &Group) -> Option<Seen> {
    let looked = through_masks(graph, group);
    let types: Vec<&TensorType> = looked.inputs.iter().map(|&v| graph.ty(v)).collect();
    let last = looked.stages.len().checked_sub(1)?;
    let stored = |n: usize| (n == last).then(|| graph.ty(group.output));
    let stages = looked.stages.iter().enumerate();
    let flats: Vec<FlatNest> =
        stages.map(|(n, s)| FlatNest::new(s, &types, stored(n), &graph.symbols)).collect::<Option<_>>()?;
    let constant = |n: usize| row_major_constant(graph, *looked.inputs.get(n)?);
    Seen::of(&Attention::of(&flats)?, &constant)
}

/// The constant that a value is, where its elements lie row by row.
pub(super) fn row_major_constant(graph: &Graph, value: ValueId) -> Option<&kiln_ir::Tensor> {
    graph.constant(value).filter(|_| graph.ty(value).layout.is_row_major())
}

/// The group with the code of pointwise nodes in place of what only its masks read of them.
fn through_masks(graph: &Graph, group: &Group) -> Group {
    let mut looked = group.clone();
    for _ in 0..MOST_NODES {
        let next = (0..looked.inputs.len()).filter(|&k| is_mask(&looked, k)).find_map(|k| {
            let maker = of_node(graph, graph.producer(looked.inputs[k])?).filter(Group::is_pointwise)?;
            inline(&looked, k, &maker).filter(|next| next.code_size() <= MOST_CODE)
        });
        match next {
            Some(next) => looked = next,
            None => break,
        }
    }
    looked
}

/// Whether the input is read by what follows the product of queries and keys, and by nothing else.
fn is_mask(group: &Group, k: usize) -> bool {
    let reads = |code: &Code| {
        let live = code.live();
        code.nodes().any(|(id, n)| live[id.index()] && matches!(n, Scalar::Load(Source::Input(i), _) if *i == k))
    };
    let [scores, seen, others @ ..] = group.stages.as_slice() else { return false };
    let elsewhere = reads(&scores.body) || others.iter().any(|s| reads(&s.body) || reads(&s.finish));
    !elsewhere && (reads(&scores.finish) || reads(&seen.body))
}
