//! ONNX models, quantized as ONNX: the user's nodes and names stay, and Q/DQ pairs (or integer operators) come between them.
//!
//! Invariant: a changed model is again a model that can be compiled or written; only what a [`Recipe`] names is changed.

mod calibrate;
mod constants;
mod equalise;
mod layers;
mod plain;
mod prepare;
mod raise;
mod rewrite;

pub use calibrate::{Calibration, Runs, Sample, Seen, samples};
pub use equalise::{equalise, smooth};
pub(super) use layers::transposed;
pub use layers::{Kind, Layer, layers};
pub use plain::Plain;
pub use prepare::{Prepared, Prune, PruneReport, Settings};
pub use raise::raise;
pub use rewrite::{Recipe, rewrite};

use kiln_frontend::onnx::model::{Initializer, Model};
use kiln_frontend::onnx::value::Value;
use kiln_ir::{DType, Tensor};
use std::collections::HashSet;

/// Whether activations become numbers too, and when their scales are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Activations {
    /// They stay f32.
    Float,
    /// u8 with a scale and a zero point from calibration.
    Unsigned,
    /// i8 with a scale from calibration.
    Signed,
    /// u8 with a scale and a zero point of each run.
    Dynamic,
}

/// The dense initializer of a name.
pub(super) fn initializer<'m>(model: &'m Model, name: &str) -> Option<&'m Tensor> {
    let found = model.graph.initializers.iter().find(|i| i.name == name)?;
    match &found.value {
        Value::Tensor(t) => Some(t),
        Value::Sparse(_) | Value::Sequence(_) | Value::Optional(_) | Value::Map(..) => None,
    }
}

/// Gives an initializer other content of the same shape.
pub(super) fn set_initializer(model: &mut Model, name: &str, shape: &[usize], values: &[f32]) {
    if let Ok(tensor) = Tensor::from_f32(shape, values)
        && let Some(found) = model.graph.initializers.iter_mut().find(|i| i.name == name)
    {
        found.value = Value::Tensor(tensor);
    }
}

/// Names that are not taken.
#[derive(Debug)]
pub(super) struct Names(HashSet<String>);

impl Names {
    pub(super) fn of(model: &Model) -> Names {
        let graph = &model.graph;
        let infos = graph.inputs.iter().chain(&graph.defaults).chain(&graph.outputs).map(|v| v.name.clone());
        let mut all: HashSet<String> = infos.chain(graph.initializers.iter().map(|i| i.name.clone())).collect();
        fn nodes(graph: &kiln_frontend::onnx::model::Graph, all: &mut HashSet<String>) {
            for node in &graph.nodes {
                all.insert(node.name.clone());
                all.extend(node.outputs.iter().flatten().cloned());
                node.subgraphs().for_each(|g| nodes(g, all));
            }
        }
        nodes(graph, &mut all);
        Names(all)
    }

    /// The name, or the name with a number behind it.
    pub(super) fn fresh(&mut self, name: &str) -> String {
        let mut made = name.to_string();
        let mut n = 1;
        while !self.0.insert(made.clone()) {
            made = format!("{name}_{n}");
            n += 1;
        }
        made
    }
}

/// An initializer of bytes.
pub(super) fn constant(name: String, dtype: DType, shape: &[usize], bytes: Vec<u8>) -> Option<Initializer> {
    Some(Initializer { name, value: Value::Tensor(Tensor::new(dtype, shape.to_vec(), bytes).ok()?) })
}

/// An initializer of f32.
pub(super) fn floats(name: String, shape: &[usize], values: &[f32]) -> Option<Initializer> {
    Some(Initializer { name, value: Value::Tensor(Tensor::from_f32(shape, values).ok()?) })
}
