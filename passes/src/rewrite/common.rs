//! Common subexpressions: of nodes with equal ops and operands one is kept.

use super::Graph;
use kiln_ir::graph::{GraphError, ValueId};
use std::collections::HashMap;

/// Makes readers of equal computations read the first of them; equal small constants are joined too.
///
/// # Errors
/// The graph has a cycle.
pub fn eliminate_common(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    let mut constants: HashMap<(String, Vec<u8>), ValueId> = HashMap::new();
    let ids: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    for id in ids {
        let Some(t) = graph.constant(id).filter(|t| t.bytes().len() <= 4096 && t.strings().is_none()) else { continue };
        let key = (graph.ty(id).to_string(), t.bytes().to_vec());
        match constants.get(&key) {
            Some(&first) => graph.replace(id, first),
            None => {
                constants.insert(key, id);
            }
        }
    }
    let mut seen: HashMap<(String, Vec<ValueId>), Vec<ValueId>> = HashMap::new();
    for id in graph.live_order()? {
        let node = graph.node(id);
        let key = (node.op.to_string(), node.inputs.clone());
        let outputs = node.outputs.clone();
        match seen.get(&key) {
            Some(first) => {
                for (old, new) in outputs.into_iter().zip(first.clone()) {
                    graph.replace(old, new);
                }
            }
            None => {
                seen.insert(key, outputs);
            }
        }
    }
    graph.compact()
}
