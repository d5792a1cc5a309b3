//! Operands of products in the order in which vectors read them.
//!
//! Invariant: a product of two computed tensors reads the operand that holds the result's last axis with that axis last, where
//! each of its elements is read often. Otherwise the sums would run along vector lanes and each be folded at its end, at a third of
//! the speed; a copy costs a few loads an element.

use super::{Operand, Patch, rewrite};
use crate::group::{LEAST_REUSE, about};
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId};
use kiln_ir::ops::{Elements, Op, Transpose};

/// Fewer columns than this fill no vector, however they lie.
const LEAST_COLUMNS: i64 = 16;

/// Puts a transpose before such operands of products as have the result's last axis elsewhere.
///
/// # Errors
/// See [`rewrite`].
pub fn columns_last(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[transpose_for_columns])
}

fn transpose_for_columns(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    let extent = |e: &Expr| about(graph, e);
    let out = &graph.ty(node.outputs[0]).dims;
    let column = c.out.chars().last()?;
    if c.elements != Elements::Numbers
        || extent(out.last()?) < LEAST_COLUMNS
        || node.inputs.iter().any(|&v| graph.constant(v).is_some())
    {
        return None;
    }
    let side = [&c.lhs, &c.rhs].into_iter().position(|letters| letters.contains(column))?;
    let letters = if side == 0 { &c.lhs } else { &c.rhs };
    let at = letters.find(column)?;
    let others = c.out.chars().zip(out).filter(|(letter, _)| !letters.contains(*letter));
    let reuse = others.map(|(_, e)| extent(e)).fold(1i64, i64::saturating_mul);
    // What follows the column must be summed over: if it is an axis of the result, rows of it are contiguous nevertheless.
    let summed = letters.chars().last().is_some_and(|last| !c.out.contains(last));
    if at + 1 == letters.len() || !summed || reuse < LEAST_REUSE || graph.ty(node.inputs[side]).layout.block.is_some() {
        return None;
    }
    let perm: Vec<usize> = (0..letters.len()).filter(|&n| n != at).chain([at]).collect();
    let moved: String = perm.iter().filter_map(|&n| letters.chars().nth(n)).collect();
    let (lhs, rhs) = if side == 0 { (moved.as_str(), c.rhs.as_str()) } else { (c.lhs.as_str(), moved.as_str()) };
    let operands = (0..2).map(|n| if n == side { Operand::New(0) } else { Operand::Value(node.inputs[n]) }).collect();
    Some(Patch {
        nodes: vec![
            (Transpose { perm }.into(), vec![Operand::Value(node.inputs[side])]),
            (c.with_letters(lhs, rhs, &c.out).into(), operands),
        ],
        replaces: node.outputs[0],
        with: None,
        also: vec![],
    })
}
