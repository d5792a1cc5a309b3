//! When work that depends on constants alone is done.
//!
//! Invariant: right before the first work that reads it, so that what is unpacked from weights of few bits for one product is not in memory
//! while others are computed. All other work keeps its order, and what is read still comes before what reads it.

use crate::group::Work;
use kiln_ir::graph::{Graph, ValueId};
use std::collections::HashMap;

/// The work in an order in which what constants alone decide comes late.
pub(crate) fn constants_late(graph: &Graph, work: Vec<Work>) -> Vec<Work> {
    let makers: HashMap<ValueId, usize> =
        work.iter().enumerate().flat_map(|(n, w)| w.makes(graph).iter().map(move |&v| (v, n))).collect();
    let mut movable = vec![false; work.len()];
    for (n, w) in work.iter().enumerate() {
        let known = |v: &ValueId| graph.constant(*v).is_some() || makers.get(v).is_some_and(|&m| movable[m]);
        // What the host draws at random keeps its place among other draws.
        let known = w.host().is_none() && w.reads(graph).iter().all(known);
        movable[n] = known;
    }
    let mut left: Vec<Option<Work>> = work.into_iter().map(Some).collect();
    let mut placed = Vec::with_capacity(left.len());
    let others = (0..left.len()).filter(|&n| !movable[n]);
    // What nothing reads are outputs: they come last.
    for first in others.chain(0..movable.len()) {
        let mut waiting = vec![first];
        while let Some(&n) = waiting.last() {
            let before = left[n].as_ref().and_then(|w| {
                let needed = |v: &ValueId| makers.get(v).copied().filter(|&m| movable[m] && left[m].is_some());
                w.reads(graph).iter().find_map(needed)
            });
            match before {
                Some(before) => waiting.push(before),
                None => {
                    placed.extend(left[n].take());
                    waiting.pop();
                }
            }
        }
    }
    placed
}

#[cfg(test)]
mod tests {
    use crate::boundary::Wishes;
    use crate::group::{Work, group};
    use kiln_ir::graph::Graph;
    use kiln_ir::{DType, Tensor};

    #[test]
    fn weights_are_unpacked_right_before_their_product() {
        // Many rows read each weight, so that it is unpacked to memory; the graph has all of them before the first product.
        let (mut weights, mut products) = (String::new(), String::new());
        for n in 1..=3 {
            let [numbers, scales, wide, flat, y, from] = [1, 2, 3, 4, 5, -5].map(|k| 10 * n + k);
            let from = if n == 1 { 0 } else { from };
            weights.push_str(&format!(
                "const %{numbers} : u8[64, 2, 32] = data 0\n const %{scales} : f32[64, 2, 1] = data 1
                 %{wide} = map(%{numbers}, %{scales}) body = {{ mul(to_f32(a0), a1) }} : f32[64, 2, 32]
                 %{flat} = reshape(%{wide}) dims = [64, 64] : f32[64, 64]\n"
            ));
            products.push_str(&format!(
                "%{y} = contract(%{from}, %{flat}) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[256, 64]\n"
            ));
        }
        let text = format!("graph \"g\" {{\n input %0 : f32[256, 64]\n {weights}{products} output %35 \"y\"\n}}");
        let data =
            [(DType::U8, [64, 2, 32]), (DType::F32, [64, 2, 1])].map(|(ty, dims)| Tensor::zeros(ty, &dims).unwrap());
        let graph = Graph::parse(&text, &data).unwrap();
        let work = group(&graph, &|_| false, &Wishes::default(), &mut Vec::new()).unwrap();
        let kinds: Vec<&str> = work.iter().filter_map(Work::kernel).map(|g| g.what.as_str()).collect();
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        for pair in kinds.chunks(2) {
            assert!(pair[0].starts_with("map") && pair[1].starts_with("contract"), "{kinds:?}");
        }
    }
}
