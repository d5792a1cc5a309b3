//! Scales that differ from layer to layer.
//!
//! Invariant: the layers of a model are the same but for their weights, and so are their kernels. A scale of a quantized layer is
//! a weight, so it stays an operand; written into the code it would make a kernel for every layer of what is one.

use kiln_ir::DType;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::ops::{Map, Op};
use kiln_ir::scalar::{BinaryOp, Scalar};
use std::collections::{HashMap, HashSet};

/// In how many places elementwise code has to occur with different scales: fewer are rather code that is alike by chance, which
/// gains more from numbers that the compiler knows.
const LEAST_LAYERS: usize = 4;

/// The constants of one element by which elementwise code multiplies, where the same code multiplies by others elsewhere.
pub fn scales_of_layers(graph: &Graph) -> HashSet<ValueId> {
    let mut alike: HashMap<String, Vec<NodeId>> = HashMap::new();
    for (id, node) in graph.nodes() {
        let Op::Map(map) = &node.op else { continue };
        let scales = scales(graph, map, &node.inputs);
        if scales.is_empty() {
            continue;
        }
        // What the code reads in the other places: scales by their places, everything else by its type.
        let reads = node.inputs.iter().enumerate().map(|(k, &v)| match scales.contains(&k) {
            true => format!("scale {k}"),
            false => graph.ty(v).to_string(),
        });
        let key = reads.chain([node.op.to_string()]).collect::<Vec<_>>().join("; ");
        alike.entry(key).or_default().push(id);
    }
    let mut found = HashSet::new();
    for layers in alike.into_values().filter(|l| l.len() >= LEAST_LAYERS) {
        // The code is the same in all of them, and so are the places of its scales.
        let first = graph.node(layers[0]);
        let Op::Map(map) = &first.op else { continue };
        for k in scales(graph, map, &first.inputs) {
            let values: HashSet<ValueId> = layers.iter().map(|&l| graph.node(l).inputs[k]).collect();
            let numbers: HashSet<_> = values.iter().map(|&v| graph.constant(v).map(|t| t.bytes())).collect();
            if numbers.len() > 1 {
                found.extend(values);
            }
        }
    }
    found
}

/// Which inputs are constants of one element that the code only multiplies by.
fn scales(graph: &Graph, map: &Map, inputs: &[ValueId]) -> Vec<usize> {
    let single = |v: &ValueId| graph.constant(*v).is_some_and(|t| t.len() == 1 && t.dtype() == DType::F32);
    let body = &map.body;
    let is_factor = |k: usize| {
        body.nodes().all(|(_, node)| {
            let reads = node.operands().into_iter().any(|o| *body.node(o) == Scalar::Arg(k));
            !reads || matches!(node, Scalar::Binary(BinaryOp::Mul, ..))
        })
    };
    let own = |k: usize| *body.node(body.result()) != Scalar::Arg(k);
    inputs.iter().enumerate().filter(|&(k, v)| single(v) && is_factor(k) && own(k)).map(|(k, _)| k).collect()
}
