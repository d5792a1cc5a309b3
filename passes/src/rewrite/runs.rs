//! What is picked in a few runs, as `Pad` by reflection is and by the edge, is copied run by run.
//!
//! Invariant: the same elements at the same places; only where each of them is computed to be is said in another way.

use super::{Operand, Patch};
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, NodeId};
use kiln_ir::ops::{Concat, Gather, Op, Slice};

/// Most runs, and how long they must be in the mean: an index that is looked up takes as long as several elements that are copied.
const MOST_RUNS: usize = 24;
const LEAST_MEAN: usize = 4;

/// `gather` at constant indices that go up or down by one for most of the way.
pub(super) fn gather_in_runs(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let (Op::Gather(Gather { axis }), &[data, indices]) = (&node.op, node.inputs.as_slice()) else { return None };
    let (ty, known) = (graph.ty(data), graph.constant(indices)?);
    let extent = ty.dims.get(*axis)?.as_const()?;
    let picked = known.to_i64().filter(|_| known.shape().len() == 1 && graph.constant(data).is_none())?;
    if picked.iter().any(|&at| !(0..extent).contains(&at)) {
        return None;
    }
    let runs = runs(&picked)?;
    let rank = ty.rank();
    let mut nodes: Vec<(Op, Vec<Operand>)> = Vec::new();
    for (first, step, count) in &runs {
        let (mut starts, mut steps, mut dims) = (vec![Expr::default(); rank], vec![1; rank], ty.dims.clone());
        (starts[*axis], steps[*axis], dims[*axis]) = (Expr::from(*first), *step, Expr::from(*count));
        nodes.push((Slice { starts, steps, dims }.into(), vec![Operand::Value(data)]));
    }
    let parts = (0..nodes.len()).map(Operand::New).collect();
    nodes.push((Concat { axis: *axis }.into(), parts));
    Some(Patch { nodes, replaces: *node.outputs.first()?, with: None, also: vec![] })
}

/// Where each run begins, by how much it goes on, and how many elements it has; nothing where there are too many runs.
fn runs(picked: &[i64]) -> Option<Vec<(i64, i64, usize)>> {
    let mut found = Vec::new();
    let mut rest = picked;
    while let Some(&first) = rest.first() {
        let step = rest.get(1).map_or(1, |second| second - first);
        let step = if step == -1 { -1 } else { 1 };
        let count = rest.iter().zip(0i64..).take_while(|(at, n)| **at == first + step * n).count();
        found.push((first, step, count));
        if found.len() > MOST_RUNS {
            return None;
        }
        rest = rest.get(count..)?;
    }
    (!found.is_empty() && found.len() * LEAST_MEAN <= picked.len()).then_some(found)
}

#[cfg(test)]
mod tests {
    use super::runs;

    #[test]
    fn indices_are_cut_where_they_do_not_go_on() {
        let reflected: Vec<i64> = (1..=3).rev().chain(0..20).chain((16..19).rev()).collect();
        assert_eq!(runs(&reflected), Some(vec![(3, -1, 4), (1, 1, 19), (18, -1, 3)]));
        assert_eq!(runs(&[0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]).map(|r| r.len()), None);
        assert_eq!(runs(&(0..16).map(|n| n / 2).collect::<Vec<_>>()), None);
        assert_eq!(runs(&[]), None);
    }
}
