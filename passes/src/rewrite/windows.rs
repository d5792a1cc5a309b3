//! Pools to the greatest or least number of large windows go axis by axis.
//!
//! Invariant: the greatest of the greatest is the greatest; which of two zeros it is may change.

use super::{Operand, Patch};
use kiln_ir::graph::{Graph, NodeId};
use kiln_ir::ops::{Op, Pool};
use kiln_ir::scalar::BinaryOp;

/// A pool along the last axis that has a window, and one along the others, where that takes at most six tenths of the numbers.
pub(super) fn window_by_axes(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Pool(pool) = &node.op else { return None };
    let (&x, &replaces) = (node.inputs.first()?, node.outputs.first()?);
    let last = pool.window.iter().rposition(|&extent| extent > 1)?;
    let others = |v: &[usize]| (0..v.len()).filter(|&n| n != last).map(|n| v[n]).fold(1, usize::saturating_mul);
    let (along, rest) = (pool.window[last], others(&pool.window));
    // What is made along the one axis is made for every place of the others, of which their strides skip some.
    let apart = along.saturating_mul(others(&pool.strides)).saturating_add(rest);
    let together = along.saturating_mul(rest);
    let pays = rest > 1 && apart.saturating_mul(10) <= together.saturating_mul(6);
    if !pays || !matches!(pool.combine, BinaryOp::Max | BinaryOp::Min) {
        return None;
    }
    let only = |v: &[usize], here: bool| (0..v.len()).map(|n| if (n == last) == here { v[n] } else { 1 }).collect();
    let part = |here: bool| Pool {
        combine: pool.combine,
        window: only(&pool.window, here),
        strides: only(&pool.strides, here),
        dilations: only(&pool.dilations, here),
    };
    let nodes = vec![(part(true).into(), vec![Operand::Value(x)]), (part(false).into(), vec![Operand::New(0)])];
    Some(Patch { nodes, replaces, with: None, also: vec![] })
}
