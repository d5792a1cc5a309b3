//! What activations are rounded to where they meet weights of few bits.
//!
//! Invariant: nothing is rounded unless the user asks for it, and what was asked for is stated in the artifact.

use crate::{Error, Options};
use kiln_ir::graph::Graph;
use kiln_passes::pipeline::PassError;
use kiln_passes::rewrite::{activations_in_bytes, has_block_products};
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
}

impl Activations {
    /// The name, as options and artifacts have it.
    pub fn name(self) -> &'static str {
        match self {
            Activations::F32 => "f32",
            Activations::Int8 => "int8",
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
        let all = [Activations::F32, Activations::Int8];
        all.into_iter().find(|a| a.name() == text).ok_or_else(|| format!("{text:?} is neither f32 nor int8"))
    }
}

/// The graph with activations in the form that is asked for.
///
/// # Errors
/// [`Error::Unsupported`] where bytes are asked for and no product has a weight of few bits.
pub(crate) fn applied(graph: Graph, options: &Options) -> Result<Graph, Error> {
    if options.activations == Activations::F32 || has_block_products(&graph) {
        return Ok(graph);
    }
    let graph = activations_in_bytes(&graph).map_err(|error| PassError::Graph { pass: "activations", error })?;
    if has_block_products(&graph) {
        return Ok(graph);
    }
    let what = "activations in int8 are for products with weights of at most 8 bits that have a scale for blocks of 16 or more";
    Err(Error::Unsupported(format!("{what}; the model has none")))
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
            matches!(applied(graph.clone(), &rounded), Err(Error::Unsupported(m)) if m.contains("the model has none"))
        );
        assert_eq!(applied(graph.clone(), &Options::default()).unwrap().to_string(), graph.to_string());
        assert_eq!("int8".parse(), Ok(Activations::Int8));
        assert!("int4".parse::<Activations>().is_err());
    }
}
