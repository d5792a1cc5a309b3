//! Products of halves.
//!
//! Invariant: no product reads f16 or bf16: its operands are made f32 where they are made, or where a kernel reads a weight, and its
//! result is rounded once. The products of two halves are exact in f32, so this is what a product of halves means
//! ([`kiln_ir::semantics`]); and an operand that is read many times is widened once.

use super::{Operand, Patch, rewrite};
use kiln_ir::DType;
use kiln_ir::graph::{Graph, GraphError, NodeId};
use kiln_ir::ops::{Map, Op};
use kiln_ir::scalar::Code;

/// Puts conversions around products of f16 and bf16.
///
/// # Errors
/// See [`rewrite`].
pub fn products_of_halves(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[in_f32])
}

/// A conversion of each element.
pub(super) fn cast(from: DType, to: DType) -> Option<Op> {
    let mut body = Code::new();
    let argument = body.arg(0, from);
    let result = body.cast(to, argument).ok()?;
    body.set_result(result);
    Some(Map { body }.into())
}

fn in_f32(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    if !matches!(node.op, Op::Contract(_) | Op::Conv(_)) {
        return None;
    }
    let (&[left, right], half) = (node.inputs.as_slice(), graph.ty(node.outputs[0]).dtype) else { return None };
    if !half.is_half() {
        return None;
    }
    let widen = cast(half, DType::F32)?;
    Some(Patch {
        nodes: vec![
            (widen.clone(), vec![Operand::Value(left)]),
            (widen, vec![Operand::Value(right)]),
            (node.op.clone(), vec![Operand::New(0), Operand::New(1)]),
            (cast(DType::F32, half)?, vec![Operand::New(2)]),
        ],
        replaces: node.outputs[0],
        with: None,
        also: vec![],
    })
}
