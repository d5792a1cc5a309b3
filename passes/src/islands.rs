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

/// Whether a value holds 8-bit integers, or exact sums of their products, with what zero points take from them.
fn is_integer(graph: &Graph, v: ValueId) -> bool {
    let bytes = |v: ValueId| graph.constant(v).is_none() && matches!(graph.ty(v).dtype, DType::U8 | DType::I8);
    let (mut left, mut seen) = (vec![v], BTreeSet::from([v]));
    while let Some(value) = left.pop() {
        let Some(node) = graph.producer(value).map(|id| graph.node(id)) else { continue };
        if elements(&node.op) == Some(Elements::Bytes) {
            return true;
        }
        if matches!(node.op, Op::Map(_)) && graph.ty(value).dtype == DType::I32 {
            left.extend(node.inputs.iter().copied().filter(|&v| seen.insert(v)));
        }
    }
    bytes(v)
}

/// Why an op that reads numbers does not read the integers that they were.
fn why(graph: &Graph, id: NodeId, read: ValueId) -> Why {
    let node = graph.node(id);
    match &node.op {
        Op::Contract(_) | Op::Conv(_) | Op::TileProduct(_) | Op::BlockProduct(_) => {
            let constant = node.inputs.iter().any(|&v| v != read && graph.constant(v).is_some());
            if constant { Why::Weights } else { Why::Factor }
        }
        Op::Softmax(_) | Op::Norm(_) | Op::Map(_) | Op::Pack(_) | Op::Iota(_) => Why::Floats,
        Op::Reduce(_) | Op::Pool(_) | Op::WindowTiles(_) => Why::Floats,
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

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::graph::TensorType;
    use kiln_ir::ops::{Concat, Contract, Map, Pad, Softmax, Transpose};
    use kiln_ir::scalar::{Code, Constant, UnaryOp};
    use kiln_ir::{Origin, Tensor};

    fn map(build: impl FnOnce(&mut Code)) -> Op {
        let mut body = Code::new();
        build(&mut body);
        Map { body }.into()
    }

    /// `f32(x)`, as all that makes numbers of bytes is a map.
    fn numbers(from: DType) -> Op {
        map(|code| {
            let x = code.arg(0, from);
            let made = code.cast(DType::F32, x).unwrap();
            code.set_result(made);
        })
    }

    fn negated() -> Op {
        map(|code| {
            let x = code.arg(0, DType::F32);
            let made = code.unary(UnaryOp::Neg, x).unwrap();
            code.set_result(made);
        })
    }

    /// What the ends are of a graph in which numbers that were bytes, `[4, 4]`, are read by an op (with what `others` adds), after
    /// another map.
    fn found(op: Op, others: impl Fn(&mut Graph) -> Vec<ValueId>) -> Vec<(Why, Option<String>)> {
        let (mut graph, none) = (Graph::new("g"), Origin::default());
        let x = graph.add_input("x", TensorType::of(DType::U8, &[4, 4]));
        let value = graph.add(numbers(DType::U8), &[x], &none).unwrap();
        let value = graph.add(negated(), &[value], &none).unwrap();
        let inputs: Vec<ValueId> = std::iter::once(value).chain(others(&mut graph)).collect();
        let read = graph.add(op, &inputs, &none).unwrap();
        graph.add_output("y", read);
        let name = |id: NodeId| graph.node(id).op.name().to_string();
        ends(&graph).into_iter().map(|end| (end.why, end.reader.map(name))).collect()
    }

    #[test]
    fn each_reader_has_its_reason() {
        let one = |why: Why, op: &str| vec![(why, Some(op.to_string()))];
        let nothing = |_: &mut Graph| vec![];
        let product = || Op::from(Contract::new("mk", "kn", "mn"));
        let floats = |graph: &mut Graph| vec![graph.add_input("w", TensorType::of(DType::F32, &[4, 4]))];
        let weights = |graph: &mut Graph| vec![graph.add_constant(Tensor::from_f32(&[4, 4], &[0.5; 16]).unwrap())];
        assert_eq!(found(product(), weights), one(Why::Weights, "contract"));
        assert_eq!(found(product(), floats), one(Why::Factor, "contract"));
        assert_eq!(found(Softmax { axis: 1, log: false }.into(), nothing), one(Why::Floats, "softmax"));
        assert_eq!(found(Concat { axis: 0 }.into(), floats), one(Why::Scales, "concat"));
        assert_eq!(found(Transpose { perm: vec![1, 0] }.into(), nothing), one(Why::Moved, "transpose"));
        let value = Constant::float(DType::F32, 0.3);
        let border = Pad { low: vec![1, 0], high: vec![0, 0], interior: vec![0, 0], value };
        assert_eq!(found(border.into(), nothing), one(Why::Border, "pad"));
        assert_eq!(found(negated(), nothing), [(Why::Output, None)]);
    }

    #[test]
    fn sums_of_products_of_bytes_are_integers_through_any_number_of_maps() {
        let (mut graph, none) = (Graph::new("g"), Origin::default());
        let [x, w] = ["x", "w"].map(|name| graph.add_input(name, TensorType::of(DType::I32, &[4, 4])));
        let product = Contract { elements: Elements::Bytes, ..Contract::new("mk", "nk", "mn") };
        let mut sum = graph.add(product.into(), &[x, w], &none).unwrap();
        let share = || {
            map(|code| {
                let x = code.arg(0, DType::I32);
                let made = code.unary(UnaryOp::Neg, x).unwrap();
                code.set_result(made);
            })
        };
        for _ in 0..2 {
            sum = graph.add(share(), &[sum], &none).unwrap();
        }
        let real = graph.add(numbers(DType::I32), &[sum], &none).unwrap();
        let soft = graph.add(Softmax { axis: 1, log: false }.into(), &[real], &none).unwrap();
        graph.add_output("y", soft);
        assert!(matches!(ends(&graph)[..], [End { why: Why::Floats, .. }]), "{:?}", ends(&graph));
    }

    #[test]
    fn what_was_never_an_integer_or_stays_one_ends_nothing() {
        let (mut graph, none) = (Graph::new("g"), Origin::default());
        let x = graph.add_input("x", TensorType::of(DType::F32, &[4, 4]));
        let soft = graph.add(Softmax { axis: 1, log: false }.into(), &[x], &none).unwrap();
        graph.add_output("y", soft);
        // From bytes to bytes, through numbers in registers.
        let bytes = graph.add_input("b", TensorType::of(DType::U8, &[4, 4]));
        let value = graph.add(numbers(DType::U8), &[bytes], &none).unwrap();
        let again = map(|code| {
            let x = code.arg(0, DType::F32);
            let made = code.cast(DType::U8, x).unwrap();
            code.set_result(made);
        });
        let again = graph.add(again, &[value], &none).unwrap();
        graph.add_output("z", again);
        // Numbers of i64 are no region.
        let counts = graph.add_input("c", TensorType::of(DType::I64, &[4, 4]));
        let counts = graph.add(numbers(DType::I64), &[counts], &none).unwrap();
        graph.add_output("n", counts);
        assert_eq!(ends(&graph), []);
    }
}
