//! Common subexpressions: of nodes with equal ops and operands one is kept.

use super::Graph;
use kiln_ir::graph::{GraphError, ValueId};
use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Makes readers of equal computations read the first of them; equal constants are joined too.
///
/// # Errors
/// The graph has a cycle.
pub fn eliminate_common(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    // By type and hash, as weights are large: a layer that is written out step by step has packed the same ones for each.
    let mut constants: HashMap<(String, u64), Vec<ValueId>> = HashMap::new();
    let ids: Vec<ValueId> = graph.values().map(|(id, _)| id).collect();
    for id in ids {
        let Some(t) = graph.constant(id).filter(|t| t.strings().is_none() && t.tensors().is_none()) else { continue };
        let mut hasher = DefaultHasher::new();
        t.bytes().hash(&mut hasher);
        let alike = constants.entry((graph.ty(id).to_string(), hasher.finish())).or_default();
        let equal = |first: &&ValueId| graph.constant(**first).is_some_and(|f| f.bytes() == t.bytes());
        match alike.iter().find(equal).copied() {
            Some(first) => graph.replace(id, first),
            None => alike.push(id),
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
