//! Copies of what callers hand over, for products that read many rows of it side by side.
//!
//! Invariant: only products read a copy made here, and only where its rows will be moved apart ([`crate::spread`]); what the caller
//! owns lies as the caller has it.

use super::{Operand, Patch, rewrite};
use crate::spread::{LEAST_ROWS, meet};
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Definition, Graph, GraphError, NodeId};
use kiln_ir::ops::{Elements, Map, Op};
use kiln_ir::plan::nominal;
use kiln_ir::scalar::Code;

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
    let extent = |e: &Expr| e.eval(&|s| graph.symbols.get(s).map(|&range| nominal(range))).unwrap_or(1);
    let size = |within: bool, letters: &str| {
        let dims = c.out.chars().zip(&graph.ty(node.outputs[0]).dims);
        let chosen = dims.filter(|(letter, _)| letters.contains(*letter) == within);
        chosen.map(|(_, e)| extent(e)).fold(1i64, i64::saturating_mul)
    };
    let side = [&c.lhs, &c.rhs].into_iter().zip(&node.inputs).position(|(letters, &v)| {
        let given = matches!(graph.value(v).definition, Definition::Input(_));
        let summed = letters.chars().last().is_some_and(|last| !c.out.contains(last));
        let rows = graph.ty(v).rank().checked_sub(2);
        given
            && summed
            && rows.is_some_and(|rows| meet(graph.ty(v), rows))
            && size(true, letters) >= LEAST_ROWS
            && size(false, letters) >= LEAST_REUSE
    })?;
    let operands = (0..2).map(|n| if n == side { Operand::New(0) } else { Operand::Value(node.inputs[n]) }).collect();
    let value = node.inputs[side];
    let copy = Map { body: Code::identity(graph.ty(value).dtype) };
    Some(Patch {
        nodes: vec![(copy.into(), vec![Operand::Value(value)]), (node.op.clone(), operands)],
        replaces: node.outputs[0],
        with: None,
        also: vec![],
    })
}
