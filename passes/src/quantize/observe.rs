//! Products of a graph with weights, and a graph that observes what they read.
//!
//! Invariant: statistics are computed by the compiled graph itself, so that no activation is kept: the observing graph's outputs are
//! sums over all rows of a run, and runs are added up.

use super::Moments;
use kiln_ir::graph::{Definition, Graph, GraphError, Origin, ValueId};
use kiln_ir::ops::{Contract, Map, Op, Reduce};
use kiln_ir::{BinaryOp, Code, Constant, DType, Tensor, UnaryOp};
use std::collections::BTreeMap;

/// A product of activations with a named matrix of weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Product {
    /// The name of the weights.
    pub name: String,
    /// What the matrix reads, `[.., columns]`.
    pub input: ValueId,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// Whether the weights are stored `[columns, rows]`.
    pub transposed: bool,
}

/// The products of activations with named constants of two axes, each name once; those whose weights are used otherwise too
/// (tables of embeddings) are left out.
pub fn products(graph: &Graph) -> Vec<Product> {
    let mut found: BTreeMap<ValueId, Option<Product>> = BTreeMap::new();
    for (_, node) in graph.nodes() {
        let product = product(graph, node);
        for (at, &v) in node.inputs.iter().enumerate() {
            if graph.constant(v).is_none() {
                continue;
            }
            let here = product.as_ref().filter(|(place, _)| *place == at).map(|(_, p)| p.clone());
            found
                .entry(v)
                .and_modify(|known| {
                    if known.as_ref().map(|p| p.input) != here.as_ref().map(|p| p.input) {
                        *known = None;
                    }
                })
                .or_insert(here);
        }
    }
    found.into_values().flatten().collect()
}

/// Which operand of a node is a named matrix, and the product that it is.
fn product(graph: &Graph, node: &kiln_ir::graph::Node) -> Option<(usize, Product)> {
    let Op::Contract(contract) = &node.op else { return None };
    let &[left, right] = node.inputs.as_slice() else { return None };
    let (at, weights, input) = match (graph.constant(left), graph.constant(right)) {
        (Some(_), None) => (0, left, right),
        (None, Some(_)) => (1, right, left),
        (Some(_), Some(_)) | (None, None) => return None,
    };
    let letters = if at == 0 { [&contract.lhs, &contract.rhs] } else { [&contract.rhs, &contract.lhs] };
    let (of_weights, of_input) = (letters[0].as_str(), letters[1].as_str());
    let summed = contract.summed();
    let shape = graph.ty(weights).shape()?;
    let name = graph.value(weights).name.as_deref()?.to_string();
    if summed.len() != 1 || !of_input.ends_with(&summed) || graph.ty(weights).dtype != DType::F32 {
        return None;
    }
    match (shape.as_slice(), of_weights.find(&summed)?) {
        (&[columns, rows], 0) => Some((at, Product { name, input, rows, columns, transposed: true })),
        (&[rows, columns], 1) => Some((at, Product { name, input, rows, columns, transposed: false })),
        _ => None,
    }
}

/// Sums that a graph of [`observing`] gives for each value, in this order.
const SUMS: usize = 4;

/// The graph whose outputs are, for each of the values (f32, at least one axis), what [`moments`] reads.
///
/// # Errors
/// A value is not f32, or has no axis.
pub fn observing(graph: &Graph, values: &[ValueId]) -> Result<Graph, GraphError> {
    let mut graph = graph.clone();
    graph.outputs.clear();
    let origin = Origin::new("statistics");
    let fail = |e: &dyn std::fmt::Display| GraphError::new(&Origin::default(), e.to_string());
    for (n, &value) in values.iter().enumerate() {
        let rank = graph.ty(value).rank();
        if graph.ty(value).dtype != DType::F32 || rank == 0 || rank > 20 {
            return Err(fail(&format!("{} has no columns to observe", graph.ty(value))));
        }
        let leading: String = (b'a'..).take(rank - 1).map(char::from).collect();
        let products = Contract::new(&format!("{leading}y"), &format!("{leading}z"), "yz");
        let products = graph.add(products.into(), &[value, value], &origin).map_err(|e| fail(&e))?;
        graph.add_output(&format!("products.{n}"), products);
        let mut sum = |word: &str, code: Code| -> Result<(), GraphError> {
            let mapped = graph.add(Map { body: code }.into(), &[value], &origin).map_err(|e| fail(&e))?;
            let reduce = Reduce { combine: BinaryOp::Add, axes: (0..rank - 1).collect(), keep: false };
            let summed = graph.add(reduce.into(), &[mapped], &origin).map_err(|e| fail(&e))?;
            graph.add_output(&format!("{word}.{n}"), summed);
            Ok(())
        };
        let (mut magnitude, mut same, mut one) = (Code::default(), Code::default(), Code::default());
        let x = magnitude.arg(0, DType::F32);
        let made = magnitude.unary(UnaryOp::Abs, x).map_err(|e| fail(&e))?;
        magnitude.set_result(made);
        let x = same.arg(0, DType::F32);
        same.set_result(x);
        one.arg(0, DType::F32);
        let made = one.constant(Constant::float(DType::F32, 1.0));
        one.set_result(made);
        sum("magnitudes", magnitude)?;
        sum("sums", same)?;
        sum("counts", one)?;
    }
    Ok(graph)
}

/// The moments of each value, of the outputs of a run of an observing graph; nothing where they are not such.
pub fn moments(outputs: &[Tensor]) -> Option<Vec<Moments>> {
    let each = outputs.chunks(SUMS).map(|parts| {
        let [products, magnitudes, sums, counts] = parts else { return None };
        let count = counts.to_f32()?.first().copied().unwrap_or(0.0) as u64;
        Some(Moments { count, products: products.to_f32()?, magnitudes: magnitudes.to_f32()?, sums: sums.to_f32()? })
    });
    each.collect()
}

/// The value of the graph that has a name, if it is computed or an input.
pub fn named(graph: &Graph, name: &str) -> Option<ValueId> {
    let computed = |d: &Definition| !matches!(d, Definition::Constant(_));
    graph.values().find(|(_, v)| v.name.as_deref() == Some(name) && computed(&v.definition)).map(|(id, _)| id)
}
