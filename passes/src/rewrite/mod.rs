//! Rewrites of graphs.
//!
//! Invariant: a rule reads the graph and returns a [`Patch`]; only [`apply`] changes the graph, and it type-checks what it
//! adds. A value is only replaced by one of the same dtype and dims.

mod activations;
mod blocks;
mod byte_activations;
mod bytes;
mod canonicalise;
mod columns;
mod common;
mod digits;
mod few_bits;
mod fold;
mod halves;
mod in_float8;
mod in_halves;
mod integers;
mod joined;
mod known;
mod of_bytes;
mod pairs;
mod picked;
mod places;
mod quantized;
mod recognise;
mod rows;
mod runs;
pub(crate) mod sparse;
mod strings;
mod tiles;
mod windows;

pub use activations::activations_in_bytes;
pub use bytes::{has_block_products, products_of_bytes};
pub use canonicalise::canonicalise;
pub use columns::columns_last;
pub use common::eliminate_common;
pub use digits::products_in_digits;
pub use fold::fold_constants;
pub use halves::products_of_halves;
pub use in_float8::products_in_float8;
pub(crate) use in_halves::constant_in;
pub use in_halves::products_in_halves;
pub use integers::regions_of_integers;
pub use of_bytes::functions_of_bytes;
pub use pairs::products_of_pairs;
pub use recognise::recognise;
pub use rows::copied_rows;
pub use sparse::without_zeros;
pub use strings::strings_from_steps;
pub use tiles::convolutions_by_tiles;

use kiln_ir::graph::{Graph, GraphError, NodeId, Origin, ValueId};
use kiln_ir::ops::{Elements, Op};
use kiln_ir::tensor::Tensor;

/// What the elements of a product's operands hold; nothing of ops that are none.
pub(crate) fn elements(op: &Op) -> Option<Elements> {
    match op {
        Op::Conv(c) => Some(c.elements),
        Op::Contract(c) => Some(c.elements),
        Op::BlockProduct(p) => Some(if p.bytes > 0 { Elements::Bytes } else { Elements::Numbers }),
        _ => None,
    }
}

/// Whether the graph holds products whose operands have such elements.
pub fn has_products_of(graph: &Graph, wanted: Elements) -> bool {
    graph.nodes().any(|(_, node)| elements(&node.op) == Some(wanted))
}

/// An operand of a node that a patch adds.
#[derive(Clone, Debug)]
pub enum Operand {
    /// A value of the graph.
    Value(ValueId),
    /// The only result of the patch's n-th node.
    New(usize),
    /// A new constant.
    Constant(Tensor),
}

/// What a rule wants changed: nodes to add, and a value that the last of them replaces.
#[derive(Clone, Debug)]
pub struct Patch {
    /// Nodes to add, in order; without any, `with` stands in for the value.
    pub nodes: Vec<(Op, Vec<Operand>)>,
    /// The value that goes.
    pub replaces: ValueId,
    /// What replaces it, where no node is added.
    pub with: Option<Operand>,
    /// Other nodes whose work the new ones do, for their origin.
    pub also: Vec<NodeId>,
}

impl Patch {
    /// Replaces a node's result by that of one new node.
    pub fn node(replaces: ValueId, op: impl Into<Op>, operands: &[ValueId]) -> Patch {
        let operands = operands.iter().map(|&v| Operand::Value(v)).collect();
        Patch { nodes: vec![(op.into(), operands)], replaces, with: None, also: vec![] }
    }

    /// Replaces a value by another.
    pub fn value(replaces: ValueId, with: ValueId) -> Patch {
        Patch { nodes: vec![], replaces, with: Some(Operand::Value(with)), also: vec![] }
    }
}

/// A rule: what it would change about a node.
pub type Rule = fn(&Graph, NodeId) -> Option<Patch>;

/// Applies a patch.
///
/// # Errors
/// A new node does not type-check, or the replacement has another type.
pub fn apply(graph: &mut Graph, node: NodeId, patch: Patch) -> Result<(), GraphError> {
    let mut origin: Origin = graph.node(node).origin.clone();
    for also in &patch.also {
        origin.merge(&graph.node(*also).origin);
    }
    let fail = |message: String| GraphError::new(&origin, message);
    let mut made: Vec<ValueId> = Vec::new();
    let resolve = |graph: &mut Graph, made: &[ValueId], o: Operand| match o {
        Operand::Value(v) => Some(v),
        Operand::New(n) => made.get(n).copied(),
        Operand::Constant(t) => Some(graph.add_constant(t)),
    };
    let missing = || fail("a patch refers to a node that it does not add".into());
    for (op, operands) in patch.nodes {
        let mut inputs = Vec::new();
        for o in operands {
            inputs.push(resolve(graph, &made, o).ok_or_else(missing)?);
        }
        made.push(graph.add(op, &inputs, &origin).map_err(|e| fail(e.to_string()))?);
    }
    let new = match patch.with {
        Some(o) => resolve(graph, &made, o).ok_or_else(missing)?,
        None => made.last().copied().ok_or_else(missing)?,
    };
    let (old, ty) = (graph.ty(patch.replaces), graph.ty(new));
    if old.dtype != ty.dtype || old.dims != ty.dims {
        return Err(fail(format!("a patch replaces {old} by {ty}")));
    }
    graph.replace(patch.replaces, new);
    Ok(())
}

/// How often a rule set may sweep over a graph: each sweep must make progress, and no chain of rewrites is longer.
const MOST_SWEEPS: usize = 16;

/// Sweeps over the graph until no rule applies, then removes what is dead.
///
/// # Errors
/// A patch does not fit, or the graph has a cycle.
pub fn rewrite(graph: &Graph, rules: &[Rule]) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    for _ in 0..MOST_SWEEPS {
        let mut changed = false;
        for id in graph.live_order()? {
            for rule in rules {
                if let Some(patch) = rule(&graph, id) {
                    apply(&mut graph, id, patch)?;
                    changed = true;
                    break;
                }
            }
        }
        graph = graph.compact()?;
        if !changed {
            break;
        }
    }
    Ok(graph)
}
