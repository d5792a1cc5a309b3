//! Products of the same rows with weights of few bits become one.
//!
//! Invariant: each column is computed from the same numbers in the same order; only what stands beside it changes. One product instead of three
//! reads its weight in one stretch and the rows once, and threads wait for one another once.

use super::{Operand, Patch, rewrite};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{Concat, Op, Slice};

/// Joins block products of the same rows whose weights are constants of the same form.
///
/// # Errors
/// See [`rewrite`].
pub(super) fn join_products(graph: &Graph) -> Result<Graph, GraphError> {
    // Each product becomes a part of the joined one; these are the same node, and their weights constants, after that.
    let graph = rewrite(graph, &[part])?;
    super::fold_constants(&super::eliminate_common(&graph)?)
}

/// The products of the same rows as one, in order; nothing where it is alone.
fn alike(graph: &Graph, id: NodeId) -> Option<Vec<NodeId>> {
    let node = graph.node(id);
    let Op::BlockProduct(product) = &node.op else { return None };
    let (rows, own) = node.inputs.split_at_checked(product.of_rows())?;
    // A weight that something else reads, too, stays where it is.
    let alone = |id: NodeId, reader: &NodeId| *reader == id || matches!(graph.node(*reader).op, Op::Concat(_));
    let movable = |id: NodeId| {
        let weight = graph.node(id).inputs.get(rows.len()..).unwrap_or_default();
        weight.iter().all(|&v| graph.constant(v).is_some() && graph.users(v).iter().all(|reader| alone(id, reader)))
    };
    let form = |inputs: &[ValueId]| -> Vec<(DType, Vec<Expr>)> {
        inputs.iter().map(|&v| (graph.ty(v).dtype, graph.ty(v).dims.iter().skip(1).cloned().collect())).collect()
    };
    let same = |other: NodeId| {
        let node = graph.node(other);
        let product = matches!(&node.op, Op::BlockProduct(p) if p == product);
        product && node.inputs.starts_with(rows) && form(&node.inputs[rows.len()..]) == form(own)
    };
    let mut found: Vec<NodeId> = graph.users(*rows.first()?).to_vec();
    found.retain(|&other| same(other) && movable(other));
    found.sort_unstable();
    found.dedup();
    (found.len() > 1 && found.contains(&id)).then_some(found)
}

/// A product as a part of the joined one.
fn part(graph: &Graph, id: NodeId) -> Option<Patch> {
    let found = alike(graph, id)?;
    let node = graph.node(id);
    let Op::BlockProduct(product) = &node.op else { return None };
    let columns = |id: &NodeId| graph.ty(graph.node(*id).outputs[0]).dims.last()?.as_const();
    let before: i64 = found.iter().take_while(|&&other| other != id).map(columns).sum::<Option<_>>()?;
    let mut nodes: Vec<(Op, Vec<Operand>)> = Vec::new();
    let mut operands: Vec<Operand> = node.inputs.iter().take(product.of_rows()).copied().map(Operand::Value).collect();
    for n in product.of_rows()..node.inputs.len() {
        let parts = found.iter().map(|other| graph.node(*other).inputs.get(n).copied().map(Operand::Value));
        nodes.push((Concat { axis: 0 }.into(), parts.collect::<Option<_>>()?));
        operands.push(Operand::New(nodes.len() - 1));
    }
    nodes.push((product.clone().into(), operands));
    let dims = graph.ty(node.outputs[0]).dims.clone();
    let mut starts = vec![Expr::default(); dims.len()];
    *starts.last_mut()? = Expr::from(before);
    let steps = vec![1; dims.len()];
    nodes.push((Slice { starts, steps, dims }.into(), vec![Operand::New(nodes.len() - 1)]));
    let also = found.into_iter().filter(|&other| other != id).collect();
    Some(Patch { nodes, replaces: node.outputs[0], with: None, also })
}
