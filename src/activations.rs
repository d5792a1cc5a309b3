//! What activations are rounded to where they meet weights of few bits.
//!
//! Invariant: nothing is rounded unless the user asks for it, and what was asked for is stated in the artifact.

use crate::{Error, Options};
use kiln_frontend::onnx::model::{self, Model};
use kiln_ir::graph::{Graph, Origin};
use kiln_passes::pipeline::PassError;
use kiln_passes::rewrite::{activations_in_bytes, has_block_products};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// The form in which activations are multiplied with weights of few bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// As they are.
    #[default]
    F32,
    /// Rounded to -127..127 times a scale for each block that has a scale in the weight; products are exact integer sums.
    Int8,
    /// The same, in those products of an ONNX model alone that allow it (`accuracy_level` 4 of `MatMulNBits`).
    Allowed,
}

impl Activations {
    /// Every form.
    pub const ALL: [Activations; 3] = [Activations::F32, Activations::Int8, Activations::Allowed];

    /// The name, as options and artifacts have it.
    pub fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::Int8 => "int8",
            Activations::Allowed => "allowed",
        }
    }
}

impl fmt::Display for Activations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Activations {
    type Err = String;

    fn from_str(text: &str) -> Result<Activations, String> {
        let found = Activations::ALL.into_iter().find(|a| a.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of f32, int8 and allowed"))
    }
}

/// The `accuracy_level` of a `MatMulNBits` that allows activations of 8 bits.
const LEVEL_OF_BYTES: i64 = 4;

/// The names of nodes that allow activations of 8 bits, and of no others.
fn allowing(model: &Model) -> BTreeSet<&str> {
    let (mut yes, mut no) = (BTreeSet::new(), BTreeSet::new());
    let mut graphs: Vec<&model::Graph> = vec![&model.graph];
    while let Some(graph) = graphs.pop() {
        for node in &graph.nodes {
            let product = node.op_type == "MatMulNBits" && node.domain == "com.microsoft";
            let allows = product && node.int_or("accuracy_level", 0).is_ok_and(|level| level == LEVEL_OF_BYTES);
            if allows { &mut yes } else { &mut no }.insert(node.name.as_str());
            graphs.extend(node.subgraphs());
        }
    }
    yes.retain(|name| !no.contains(name));
    yes
}

/// The graph with activations in the form that is asked for; `model` is the one that it was imported from, if it was.
///
/// # Errors
/// [`Error::Unsupported`] where bytes are asked for and no product takes them.
pub(crate) fn applied(graph: Graph, model: Option<&Model>, options: &Options) -> Result<Graph, Error> {
    if options.activations == Activations::F32 || has_block_products(&graph) {
        return Ok(graph);
    }
    let allowed = model.map(allowing).unwrap_or_default();
    let every = options.activations == Activations::Int8;
    let wanted = |origin: &Origin| every || origin.names().any(|name| allowed.contains(name));
    let graph =
        activations_in_bytes(&graph, &wanted).map_err(|error| PassError::Graph { pass: "activations", error })?;
    if has_block_products(&graph) {
        return Ok(graph);
    }
    let what = "activations in int8 are for products with weights of at most 8 bits that have a scale for blocks of 16 or more";
    let none = if every {
        "the model has none"
    } else {
        "the model has none that allows it (`accuracy_level` 4), with f32 activations and a name of its own"
    };
    Err(Error::Unsupported(format!("{what}; {none}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_without_weights_of_few_bits_is_refused() {
        let text = "graph \"test\" {\ninput %0 : f32[3, 64]\ninput %1 : f32[64, 5]\n\
                    %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[3, 5]\noutput %2 \"y\"\n}";
        let graph = Graph::parse(text, &[]).unwrap();
        let rounded = Options { activations: Activations::Int8, ..Options::default() };
        assert!(
            matches!(applied(graph.clone(), None, &rounded), Err(Error::Unsupported(m)) if m.contains("the model has none"))
        );
        assert_eq!(applied(graph.clone(), None, &Options::default()).unwrap().to_string(), graph.to_string());
        let allowed = Options { activations: Activations::Allowed, ..Options::default() };
        assert!(matches!(applied(graph, None, &allowed), Err(Error::Unsupported(m)) if m.contains("that allows it")));
        assert!(Activations::ALL.into_iter().all(|a| a.name().parse() == Ok(a)));
        assert!("int4".parse::<Activations>().is_err());
    }
}
