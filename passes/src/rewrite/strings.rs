//! Constant strings become results of steps on the host: a plan has no place for them but the caller's inputs and outputs and what
//! steps make.
//!
//! Invariant: afterwards no constant that is read holds strings.

use kiln_ir::graph::{Graph, GraphError, Origin, ValueId};
use kiln_ir::ops::Host;
use kiln_ir::ops::host::strings;

/// See the module documentation. Run when nothing folds constants any more.
///
/// # Errors
/// The graph has a cycle.
pub fn strings_from_steps(graph: Graph) -> Result<Graph, GraphError> {
    let read = |v: ValueId| graph.is_output(v) || !graph.users(v).is_empty();
    let constants: Vec<_> = graph
        .values()
        .filter_map(|(v, _)| Some((v, graph.constant(v).and_then(strings::attributes)?)))
        .filter(|(v, _)| read(*v))
        .collect();
    if constants.is_empty() {
        return Ok(graph);
    }
    let mut graph = graph;
    for (v, attributes) in constants {
        let mut origin = Origin::default();
        for &user in graph.users(v) {
            origin.merge(&graph.node(user).origin);
        }
        let fail = |message: String| GraphError::new(&origin, message);
        let op = Host::new("strings", attributes).map_err(|e| fail(e.0))?;
        let made = graph.add(op.into(), &[], &origin).map_err(|e| fail(e.0))?;
        graph.replace(v, made);
    }
    graph.compact()
}
