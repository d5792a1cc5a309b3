//! Nodes of a model whose weights can be quantized.
//!
//! Invariant: a layer's weights are a dense f32 initializer of the main graph, all finite.

use super::initializer;
use crate::Error;
use crate::quantize::Kept;
use kiln_frontend::onnx::model::{AttributeValue, Model, Node};
use kiln_ir::DType;

/// What a layer computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `MatMul` by a matrix `[columns, rows]`.
    Product,
    /// `Gemm` by a matrix; whether it is stored `[rows, columns]`.
    Gemm {
        /// `transB`.
        by_rows: bool,
    },
    /// `Conv` with kernels `[rows, columns..]`.
    Conv,
}

/// A node with weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The node's name.
    pub node: String,
    /// Its position in the graph.
    pub at: usize,
    /// What it computes.
    pub kind: Kind,
    /// The name of what it reads.
    pub input: String,
    /// The name of its weights.
    pub weights: String,
    /// Shape of the weights, as stored.
    pub shape: Vec<usize>,
    /// The name of its bias, where that is a constant vector of one number for each output.
    pub bias: Option<String>,
    /// Outputs.
    pub rows: usize,
    /// Inputs of an output.
    pub columns: usize,
}

impl Layer {
    /// The axis of the outputs in the weights as stored.
    pub fn output_axis(&self) -> usize {
        match self.kind {
            Kind::Product | Kind::Gemm { by_rows: false } => 1,
            Kind::Gemm { by_rows: true } | Kind::Conv => 0,
        }
    }

    /// The weights by outputs, `[rows, columns]`.
    ///
    /// # Errors
    /// [`Error::Data`] for weights that are not finite.
    pub fn values(&self, model: &Model) -> Result<Vec<f32>, Error> {
        let stored = initializer(model, &self.weights).and_then(|t| t.to_f32());
        let stored = stored.ok_or_else(|| Error::Internal(format!("no weights {:?}", self.weights)))?;
        crate::quantize::checkpoint::finite(&self.weights, &stored)?;
        Ok(self.turned(&stored, self.output_axis() == 1))
    }

    /// Elements by outputs in the order of storage.
    pub fn stored<T: Copy>(&self, by_rows: &[T]) -> Vec<T> {
        if self.output_axis() == 0 {
            return by_rows.to_vec();
        }
        transposed(by_rows, self.rows, self.columns)
    }

    fn turned(&self, stored: &[f32], turn: bool) -> Vec<f32> {
        if turn { transposed(stored, self.columns, self.rows) } else { stored.to_vec() }
    }
}

/// A matrix `[rows, columns]` as `[columns, rows]`.
pub(in crate::quantize) fn transposed<T: Copy>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    (0..columns).flat_map(|c| (0..rows).filter_map(move |r| values.get(r * columns + c).copied())).collect()
}

pub(super) fn int(node: &Node, name: &str, default: i64) -> i64 {
    let found = node.attributes.iter().find(|a| a.name == name).map(|a| &a.value);
    match found {
        Some(AttributeValue::Int(v)) => *v,
        _ => default,
    }
}

pub(super) fn float(node: &Node, name: &str, default: f32) -> f32 {
    let found = node.attributes.iter().find(|a| a.name == name).map(|a| &a.value);
    match found {
        Some(AttributeValue::Float(v)) => *v,
        _ => default,
    }
}

/// The layers of the main graph in its order, and nodes of such kinds that are none, with the reason.
pub fn layers(model: &Model) -> (Vec<Layer>, Vec<Kept>) {
    let (mut found, mut kept) = (Vec::new(), Vec::new());
    for (at, node) in model.graph.nodes.iter().enumerate() {
        if !node.domain.is_empty() || !matches!(node.op_type.as_str(), "MatMul" | "Gemm" | "Conv" | "ConvTranspose") {
            continue;
        }
        match layer(model, at, node) {
            Ok(layer) => found.push(layer),
            Err(reason) => kept.push(Kept { name: node.name.clone(), reason: reason.into() }),
        }
    }
    (found, kept)
}

fn layer(model: &Model, at: usize, node: &Node) -> Result<Layer, &'static str> {
    let (input, weights) = (node.input(0), node.input(1));
    let (input, weights) = input.zip(weights).ok_or("it has no weights")?;
    let tensor = initializer(model, weights).ok_or("its weights are no constant")?;
    if tensor.dtype() != DType::F32 {
        return Err("its weights are not f32");
    }
    if initializer(model, input).is_some() {
        return Err("it reads a constant");
    }
    let shape = tensor.shape().to_vec();
    let (kind, rows, columns) = match (node.op_type.as_str(), shape.as_slice()) {
        ("MatMul", &[columns, rows]) => (Kind::Product, rows, columns),
        ("Gemm", _) if int(node, "transA", 0) != 0 => return Err("it reads its input transposed"),
        ("Gemm", &[rows, columns]) if int(node, "transB", 0) != 0 => (Kind::Gemm { by_rows: true }, rows, columns),
        ("Gemm", &[columns, rows]) => (Kind::Gemm { by_rows: false }, rows, columns),
        ("Conv", &[rows, ref rest @ ..]) => (Kind::Conv, rows, rest.iter().product()),
        ("ConvTranspose", _) => return Err("transposed convolutions are not quantized"),
        _ => return Err("its weights are not a matrix"),
    };
    if rows == 0 || columns == 0 {
        return Err("its weights have no elements");
    }
    let plain = float(node, "alpha", 1.0) == 1.0 && float(node, "beta", 1.0) == 1.0;
    let vector =
        |name: &&str| initializer(model, name).is_some_and(|t| t.dtype() == DType::F32 && t.shape() == [rows]) && plain;
    let bias = node.input(2).filter(vector).map(String::from);
    let (input, weights) = (input.to_string(), weights.to_string());
    Ok(Layer { node: node.name.clone(), at, kind, input, weights, shape, bias, rows, columns })
}
