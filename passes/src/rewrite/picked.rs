//! What is picked from a table of weights is picked before anything is computed with the table.
//!
//! Invariant: only values that constants alone decide are read elsewhere than before, and each at the same place of the result.

use super::canonicalise::{MOST_MAPS, TABLE, producer};
use super::{Operand, Patch};
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, Node, NodeId, ValueId};
use kiln_ir::ops::{Gather, Op, Reshape, Slice, Transpose};

/// Whether a value is a large constant, or what maps and views make of constants alone, one of them large.
pub(super) fn is_table(graph: &Graph, v: ValueId, depth: usize) -> bool {
    let known = |v: ValueId| graph.constant(v).is_some();
    if let Some(tensor) = graph.constant(v) {
        return tensor.len() >= TABLE;
    }
    match producer(graph, v) {
        Some((_, Node { op: Op::Map(_) | Op::Reshape(_) | Op::Slice(_) | Op::Transpose(_), inputs, .. }))
            if depth > 0 =>
        {
            let table = |&v: &ValueId| is_table(graph, v, depth - 1);
            inputs.iter().any(table) && inputs.iter().all(|v| known(*v) || table(v))
        }
        _ => false,
    }
}

/// `gather(map(x, ..))` of a table of weights picks from each operand, so that only what is picked is computed.
pub(super) fn gather_first(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (Op::Gather(gather), &[data, indices]) = (&node.op, node.inputs.as_slice()) else { return None };
    let (inner, Node { op: Op::Map(map), inputs, .. }) = producer(graph, data)? else { return None };
    if !is_table(graph, data, MOST_MAPS) {
        return None;
    }
    let (rank, extent) = (graph.ty(data).rank(), &graph.ty(data).dims[gather.axis]);
    let new_axes = graph.ty(indices).rank();
    let mut nodes: Vec<(Op, Vec<Operand>)> = Vec::new();
    let mut operands = Vec::new();
    for &input in inputs {
        let dims = &graph.ty(input).dims;
        // Operands are aligned at the last axis; what has no such axis is the same for all that is picked.
        let axis = gather.axis.checked_sub(rank - dims.len()).filter(|&a| a < dims.len());
        let mut operand = Operand::Value(input);
        if let Some(axis) = axis {
            if dims[axis] == *extent {
                nodes.push((Gather { axis }.into(), vec![operand, Operand::Value(indices)]));
                operand = Operand::New(nodes.len() - 1);
            } else if new_axes != 1 {
                let mut dims = dims.clone();
                dims.splice(axis..=axis, std::iter::repeat_n(Expr::from(1i64), new_axes));
                nodes.push((Reshape { dims }.into(), vec![operand]));
                operand = Operand::New(nodes.len() - 1);
            }
        }
        operands.push(operand);
    }
    nodes.push((map.clone().into(), operands));
    Some(Patch { nodes, replaces: *node.outputs.first()?, with: None, also: vec![inner] })
}

/// `gather(view(x))` of a table of weights picks from what the view moves, where an axis of that is the one that is picked from: rows that
/// were joined from blocks, for one.
pub(super) fn gather_through_view(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (Op::Gather(gather), &[data, indices]) = (&node.op, node.inputs.as_slice()) else { return None };
    let (inner, view) = producer(graph, data)?;
    let &of = view.inputs.first()?;
    let output = *node.outputs.first()?;
    let (from, to) = (&graph.ty(of).dims, &graph.ty(data).dims);
    let (axis, new_axes) = (gather.axis, graph.ty(indices).rank());
    // One entry for each axis of a view, with as many for the indices' axes in the place of the one that is picked from.
    fn picked<T: Clone>(each: &[T], axis: usize, new: Vec<T>) -> Vec<T> {
        let mut all = each.to_vec();
        all.splice(axis..=axis, new);
        all
    }
    let (from_axis, moved): (usize, Op) = match &view.op {
        Op::Reshape(_) => {
            let before = to.get(..axis)?.iter().map(Expr::as_const).product::<Option<i64>>()?;
            let mut outer = Some(1i64);
            let from_axis = from.iter().position(|dim| {
                let found = outer == Some(before) && *dim == to[axis];
                outer = outer.zip(dim.as_const()).and_then(|(outer, dim)| outer.checked_mul(dim));
                found
            })?;
            (from_axis, Reshape { dims: graph.ty(output).dims.clone() }.into())
        }
        Op::Transpose(t) => {
            let from_axis = *t.perm.get(axis)?;
            let own = |p: usize| if p > from_axis { p + new_axes - 1 } else { p };
            let perm: Vec<usize> = t.perm.iter().map(|&p| own(p)).collect();
            (from_axis, Transpose { perm: picked(&perm, axis, (from_axis..from_axis + new_axes).collect()) }.into())
        }
        Op::Slice(s) => {
            let whole = s.starts.get(axis)?.as_const() == Some(0) && s.steps.get(axis) == Some(&1);
            (whole && from.get(axis) == to.get(axis)).then_some(())?;
            let starts = picked(&s.starts, axis, vec![Expr::default(); new_axes]);
            let steps = picked(&s.steps, axis, vec![1; new_axes]);
            (axis, Slice { starts, steps, dims: graph.ty(output).dims.clone() }.into())
        }
        _ => return None,
    };
    if !is_table(graph, data, MOST_MAPS) {
        return None;
    }
    let pick = (Gather { axis: from_axis }.into(), vec![Operand::Value(of), Operand::Value(indices)]);
    Some(Patch { nodes: vec![pick, (moved, vec![Operand::New(0)])], replaces: output, with: None, also: vec![inner] })
}

#[cfg(test)]
mod tests {
    use crate::rewrite::canonicalise;
    use kiln_ir::graph::Graph;
    use kiln_ir::interp::{Options, eval_graph};
    use kiln_ir::ops::Op;
    use kiln_ir::{DType, Tensor};

    /// A table of 5 x 7 blocks of 160 numbers, under a view, picked from: the result, and whether only what is picked is computed.
    fn check(view: &str, dims: &str, axis: usize, picked: &str, first: bool) {
        let text = format!(
            "graph \"g\" {{\n input %0 : i64[2, 3]\n const %1 : u8[5, 7, 160] = data 0\n const %2 : f32[5, 7, 1] = data 1
             %3 = map(%1, %2) body = {{ mul(to_f32(a0), a1) }} : f32[5, 7, 160]
             {view} : f32[{dims}]
             %5 = gather(%4, %0) axis = {axis} : f32[{picked}]\n output %5 \"y\"\n}}"
        );
        let numbers: Vec<u8> = (0..5600u32).map(|n| (n * 31 % 251) as u8).collect();
        let scales: Vec<f32> = (0..35).map(|n| 1.0 + n as f32 / 64.0).collect();
        let data =
            [Tensor::new(DType::U8, vec![5, 7, 160], numbers).unwrap(), Tensor::from_f32(&[5, 7, 1], &scales).unwrap()];
        let graph = Graph::parse(&text, &data).unwrap();
        let made = canonicalise(&graph).unwrap();
        let indices = [Tensor::from_i64(&[2, 3], &[4, 0, -1, 1, 2, 2]).unwrap()];
        let run = |g: &Graph| eval_graph(g, &indices, &Options::default()).unwrap();
        assert_eq!(run(&graph), run(&made), "{view}");
        let computes_all = made
            .nodes()
            .any(|(_, n)| matches!(n.op, Op::Map(_)) && made.ty(n.outputs[0]).elements().as_const() == Some(5600));
        assert_eq!(!computes_all, first, "{view}\n{made}");
    }

    #[test]
    fn rows_are_picked_before_their_numbers_are_scaled() {
        let joined = "%4 = reshape(%3) dims = [5, 1120]";
        check(joined, "5, 1120", 0, "2, 3, 1120", true);
        check("%4 = reshape(%3) dims = [5, 7, 10, 16]", "5, 7, 10, 16", 1, "5, 2, 3, 10, 16", true);
        check("%4 = transpose(%3) perm = [2, 0, 1]", "160, 5, 7", 1, "160, 2, 3, 7", true);
        check("%4 = transpose(%3) perm = [2, 0, 1]", "160, 5, 7", 2, "160, 5, 2, 3", true);
        check(
            "%4 = slice(%3) starts = [0, 0, 1], steps = [1, 1, 3], dims = [5, 6, 50]",
            "5, 6, 50",
            0,
            "2, 3, 6, 50",
            true,
        );
        // Where the axis is no axis of the table, or a part of it, all of the table is computed.
        check(joined, "5, 1120", 1, "5, 2, 3", false);
        check("%4 = reshape(%3) dims = [35, 160]", "35, 160", 0, "2, 3, 160", false);
        check(
            "%4 = slice(%3) starts = [0, 0, 0], steps = [1, 1, 1], dims = [5, 6, 160]",
            "5, 6, 160",
            1,
            "5, 2, 3, 160",
            false,
        );
    }
}
