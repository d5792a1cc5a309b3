//! The listings, and the arrays that go with them.

pub mod bert;
pub mod blocks;
pub mod decoding;
pub mod gated;
pub mod houses;
pub mod keras;
pub mod postnorm;

use kiln::builder::{BuildError, Builder, Result, Value};
use kiln::checkpoint::{Element, Loader, Safetensors, Weights};
use kiln::ir::{DType, Graph, Tensor};
use kiln::nn::Scope;

/// A listing as a model.
pub struct Listing {
    /// What its arrays' names begin with.
    pub name: &'static str,
    /// The model, with the weights of the transcription.
    pub graph: fn(&Safetensors) -> Result<Graph>,
}

/// All of them.
pub const LISTINGS: [Listing; 8] = [
    Listing { name: "keras", graph: |arrays| build("keras", arrays, |scope| keras::graph(scope, false)) },
    Listing { name: "keras_causal", graph: |arrays| build("keras_causal", arrays, |scope| keras::graph(scope, true)) },
    Listing { name: "postnorm", graph: |arrays| build("postnorm", arrays, postnorm::graph) },
    Listing { name: "attention", graph: |arrays| build("attention", arrays, blocks::attention_graph) },
    Listing { name: "block", graph: |arrays| build("block", arrays, blocks::block_graph) },
    Listing { name: "bert", graph: |arrays| build("bert", arrays, bert::graph) },
    Listing { name: "gated", graph: |arrays| build("gated", arrays, gated::graph) },
    Listing { name: "houses", graph: |arrays| build("houses", arrays, houses::graph) },
];

/// A graph over the arrays whose names begin with `name`.
fn build(name: &str, arrays: &Safetensors, make: impl FnOnce(&Scope<'_>) -> Result<()>) -> Result<Graph> {
    let (g, loader) = (Builder::new(name), Loader::new(arrays));
    make(&Scope::new(&g, &loader).enter(name))?;
    let graph = g.finish()?;
    // Other listings' arrays are no surplus; one that is missing is named here.
    loader.finish(|_| true).map_err(|e| BuildError::Foreign(e.to_string()))?;
    Ok(graph)
}

/// An array.
fn array(arrays: &Safetensors, name: &str) -> std::result::Result<Tensor, String> {
    let stored = arrays.get(name).ok_or_else(|| format!("there is no array {name}"))?;
    let dtype = match stored.element {
        Element::Float(_) => DType::F32,
        Element::Other(dtype) => dtype,
    };
    Tensor::new(dtype, stored.shape.clone(), stored.bytes.clone()).map_err(|e| e.to_string())
}

/// The inputs of a listing.
pub fn inputs(arrays: &Safetensors, listing: &str, names: &[String]) -> std::result::Result<Vec<Tensor>, String> {
    names.iter().map(|name| array(arrays, &format!("{listing}.in.{name}"))).collect()
}

/// What torch gave for an output of a listing.
pub fn outputs(arrays: &Safetensors, listing: &str, name: &str) -> std::result::Result<Tensor, String> {
    array(arrays, &format!("{listing}.out.{name}"))
}

/// Dims that are known when the model runs: `batch` and another one.
fn dims(g: &Builder, other: &str) -> Result<[kiln::ir::Expr; 2]> {
    Ok([g.symbol("batch", 1..=64)?, g.symbol(other, 1..=512)?])
}

/// Whether a position sees another that is not after it, `[T, T]`.
fn causal<'g>(g: &'g Builder, length: &kiln::ir::Expr) -> Result<Value<'g>> {
    let at = g.iota([length.clone()], 0)?;
    at.at_most(at.unsqueeze(1)?)
}
