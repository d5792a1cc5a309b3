//! Where regions of 8-bit integers end, and why: for reports.
//!
//! Invariant: what is said is read off the optimised graph and changes nothing. A map between integers and integers is part of its region,
//! whatever it computes with in registers; a region ends where numbers that are made of integers are read by something else.

use crate::rewrite::elements;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::ops::{Elements, Op};
use std::collections::BTreeSet;
use std::fmt;

/// Why what reads numbers that were integers does not read the integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It is an output of the model.
    Output,
    /// The other factor is constant, and no signed bytes with a scale for each column.
    Weights,
    /// The other factor is no dequantized activation.
    Factor,
    /// The op is computed in f32.
    Floats,
    /// Not all of its operands are integers of one scale and zero point.
    Scales,
    /// No integer stands for the border.
    Border,
    /// The numbers are not those of one scale and zero point that are known.
    Moved,
    /// A host step reads it.
    Host,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Why::Output => "it is an output of the model",
            Why::Weights => "the weights are no 8-bit integers with one scale a column",
            Why::Factor => "the other factor is no dequantized value of one scale",
            Why::Floats => "it is computed in f32",
            Why::Scales => "its operands are not all integers of one scale and zero point",
            Why::Border => "no integer stands for the border",
            Why::Moved => "what it moves has no scale and zero point that are known",
            Why::Host => "it runs on the host",
        })
    }
}

/// An end of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The map that makes numbers of integers.
    pub node: NodeId,
    /// What reads them, through maps in registers; nothing for an output.
    pub reader: Option<NodeId>,
    /// Why it ends there.
    pub why: Why,
}

/// Whether a value holds 8-bit integers, or exact sums of their products.
fn is_integer(graph: &Graph, v: ValueId) -> bool {
    let product = |id: NodeId| elements(&graph.node(id).op) == Some(Elements::Bytes);
    let sum = |v: ValueId| {
        graph.producer(v).is_some_and(|id| {
            let node = graph.node(id);
            let shares = matches!(node.op, Op::Map(_)) && graph.ty(v).dtype == DType::I32;
            product(id) || shares && node.inputs.iter().any(|&v| graph.producer(v).is_some_and(product))
        })
    };
    graph.constant(v).is_none() && (matches!(graph.ty(v).dtype, DType::U8 | DType::I8) || sum(v))
}

/// Why an op that reads numbers does not read the integers that they were.
fn why(graph: &Graph, id: NodeId, read: ValueId) -> Why {
    let node = graph.node(id);
    match &node.op {
        Op::Contract(_) | Op::Conv(_) | Op::BlockProduct(_) => {
            let constant = node.inputs.iter().any(|&v| v != read && graph.constant(v).is_some());
            if constant { Why::Weights } else { Why::Factor }
        }
        Op::Softmax(_) | Op::Norm(_) | Op::Map(_) | Op::Pack(_) | Op::Iota(_) => Why::Floats,
        Op::Reduce(_) | Op::Pool(_) => Why::Floats,
        Op::Concat(_) => Why::Scales,
        Op::Pad(_) => Why::Border,
        Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Gather(_)
        | Op::GatherElements(_)
        | Op::GatherNd(_) => Why::Moved,
        Op::Host(_) => Why::Host,
    }
}

/// All ends of regions of integers, in the order of the nodes.
pub fn ends(graph: &Graph) -> Vec<End> {
    let mut ends = Vec::new();
    for (id, node) in graph.nodes() {
        let float = node.outputs.first().is_some_and(|&v| graph.ty(v).dtype.is_float());
        if !matches!(node.op, Op::Map(_)) || !float || !node.inputs.iter().any(|&v| is_integer(graph, v)) {
            continue;
        }
        let mut left: Vec<ValueId> = node.outputs.clone();
        let mut seen: BTreeSet<ValueId> = left.iter().copied().collect();
        while let Some(value) = left.pop() {
            if graph.is_output(value) {
                ends.push(End { node: id, reader: None, why: Why::Output });
            }
            for &reader in graph.users(value) {
                let made = graph.node(reader);
                if matches!(made.op, Op::Map(_)) {
                    let on = made.outputs.iter().copied().filter(|&v| !is_integer(graph, v) && seen.insert(v));
                    left.extend(on);
                } else {
                    ends.push(End { node: id, reader: Some(reader), why: why(graph, reader, value) });
                }
            }
        }
    }
    ends.dedup();
    ends
}
