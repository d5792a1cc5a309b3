//! Text as a graph: what parses prints as text that parses to the same.
#![no_main]

use kiln_ir::Graph;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(graph) = Graph::parse(text, &[]) else { return };
    let printed = graph.to_string();
    let again = Graph::parse(&printed, &graph.data());
    assert!(again.is_ok_and(|g| g.verify().len() == graph.verify().len()), "{printed}");
});
