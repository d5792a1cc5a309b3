//! The graph verifier: collects every error.

use super::{Definition, Graph, Origin};
use crate::tensor::element_count;

/// Something is wrong with a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct GraphError {
    /// The model's nodes that it concerns.
    pub origin: Origin,
    /// What is wrong.
    pub message: String,
}

impl GraphError {
    /// An error at an origin.
    pub fn new(origin: &Origin, message: String) -> GraphError {
        GraphError { origin: origin.clone(), message }
    }
}

impl Graph {
    /// All errors: operands that do not exist, types that the ops do not infer, layouts that do not fit, constants
    /// whose data does not fit their type, definitions that do not agree with their nodes, cycles.
    pub fn verify(&self) -> Vec<GraphError> {
        let mut errors = Vec::new();
        for (id, node) in self.nodes() {
            let mut fail =
                |message: String| errors.push(GraphError::new(&node.origin, format!("node {id}: {message}")));
            let known = |v: &super::ValueId| v.index() < self.values().len();
            if !node.inputs.iter().chain(&node.outputs).all(known) {
                fail("refers to a value that does not exist".into());
                continue;
            }
            let types: Vec<_> = node.inputs.iter().map(|&v| self.ty(v)).collect();
            match node.op.infer(&types) {
                Err(e) => fail(e.to_string()),
                Ok(outputs) if outputs.len() != node.outputs.len() => {
                    fail(format!("{} results, {} inferred", node.outputs.len(), outputs.len()));
                }
                Ok(outputs) => {
                    for (n, (ty, &v)) in outputs.iter().zip(&node.outputs).enumerate() {
                        let found = self.ty(v);
                        if ty.dtype != found.dtype || ty.dims != found.dims {
                            fail(format!("result {n} is {found}, inferred is {ty}"));
                        }
                        if self.value(v).definition != Definition::Node(id, n) {
                            fail(format!("result {v} is not defined by the node"));
                        }
                    }
                }
            }
        }
        for (id, value) in self.values() {
            let mut fail = |message: String| {
                let origin = Origin::new(value.name.as_deref().unwrap_or("value"));
                errors.push(GraphError::new(&origin, format!("value {id}: {message}")));
            };
            if !value.ty.layout.fits(value.ty.rank()) {
                fail(format!("layout {} does not fit {} axes", value.ty.layout, value.ty.rank()));
            }
            if value.ty.layout.gap.is_some() && !matches!(value.definition, Definition::Node(..)) {
                fail("only what a node makes has gaps in memory".into());
            }
            if let Some(shape) = value.ty.shape()
                && let Err(e) = element_count(&shape, value.ty.dtype.size())
            {
                fail(e.to_string());
            }
            let defined = match value.definition {
                Definition::Input(n) => self.inputs.get(n) == Some(&id),
                Definition::Node(node, n) => {
                    node.index() < self.nodes().len() && self.node(node).outputs.get(n) == Some(&id)
                }
                Definition::Constant(_) => true,
            };
            if !defined {
                fail("is not what its definition defines".into());
            }
            if let Definition::Constant(t) = &value.definition
                && (t.dtype() != value.ty.dtype || value.ty.shape().as_deref() != Some(t.shape()))
            {
                fail(format!("a constant {t:?} of type {}", value.ty));
            }
        }
        for (name, v) in &self.outputs {
            if v.index() >= self.values().len() {
                errors.push(GraphError::new(&Origin::new(name), "the output does not exist".into()));
            }
        }
        if let Err(e) = self.order() {
            errors.push(e);
        }
        errors
    }
}
