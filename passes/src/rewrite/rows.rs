//! Copies of what callers hand over, for products that read many rows of it side by side.
//!
//! Invariant: only products read a copy made here, and only where its rows will be moved apart ([`crate::spread`]); what the caller
//! owns lies as the caller has it.

use super::{Operand, Patch, rewrite};
use crate::group::about;
use crate::spread::{LEAST_ROWS, rows_meet};
use kiln_ir::graph::{Definition, Graph, GraphError, NodeId};
use kiln_ir::ops::{Elements, Map, Op};
use kiln_ir::scalar::{Code, Scalar};

/// How often a product must read each element for a copy to cost little beside what it gains, a tenth of the product.
const LEAST_REUSE: i64 = 256;

/// Puts a copy before such operands of products as are inputs of the graph whose rows meet in the cache.
///
/// # Errors
/// See [`rewrite`].
pub fn copied_rows(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[copy_rows])
}

fn copy_rows(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    if c.elements != Elements::Numbers {
        return None;
    }
    let size = |within: bool, letters: &str| {
        let dims = c.out.chars().zip(&graph.ty(node.outputs[0]).dims);
        let chosen = dims.filter(|(letter, _)| letters.contains(*letter) == within);
        chosen.map(|(_, e)| about(graph, e)).fold(1i64, i64::saturating_mul)
    };
    let side = [&c.lhs, &c.rhs].into_iter().zip(&node.inputs).position(|(letters, &v)| {
        let given = matches!(graph.value(v).definition, Definition::Input(_));
        let summed = letters.chars().last().is_some_and(|last| !c.out.contains(last));
        given
            && summed
            && rows_meet(graph.ty(v))
            && size(true, letters) >= LEAST_ROWS
            && size(false, letters) >= LEAST_REUSE
    })?;
    let value = node.inputs[side];
    // Products of one input share its copy.
    let made = graph.users(value).iter().map(|&user| graph.node(user)).find(|user| is_copy(&user.op));
    let mut nodes = Vec::new();
    let copy = made.and_then(|copy| copy.outputs.first()).map_or(Operand::New(0), |&made| Operand::Value(made));
    if made.is_none() {
        let copy = Map { body: Code::identity(graph.ty(value).dtype) };
        nodes.push((copy.into(), vec![Operand::Value(value)]));
    }
    let operand = |n: usize| if n == side { copy.clone() } else { Operand::Value(node.inputs[n]) };
    nodes.push((node.op.clone(), vec![operand(0), operand(1)]));
    Some(Patch { nodes, replaces: node.outputs[0], with: None, also: vec![] })
}

fn is_copy(op: &Op) -> bool {
    matches!(op, Op::Map(Map { body }) if matches!(body.node(body.result()), Scalar::Arg(0)))
}
