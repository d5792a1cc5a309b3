//! Products of floats of 8 bits, for GPUs: what a model dequantizes on both sides and multiplies becomes a product of the 8-bit floats themselves,
//! whose sum is scaled.
//!
//! Invariant: `sum(a * s * (b * t)) = s * t * sum(a * b)`, where `s` and `t` are the same for all that is summed; products of two floats of 8 bits
//! are exact in f32, so that only roundings differ. Sums of two floats of 8 bits stay finite, scales or not;
//! of f32 with weights of 8 bits `a * b` may leave the range where `a * (b * t)` does not.

use super::halves::cast;
use super::quantized::{argument, converted, is_scalar};
use super::{Operand, Patch, apply, eliminate_common};
use kiln_ir::DType;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{Contract, Elements, Map, Op};
use kiln_ir::scalar::{BinaryOp, Code, Scalar};

/// Products of two operands that are made of floats of 8 bits, by a conversion and at most one scale, read these; where one operand is a
/// constant made so, its scale follows the sum.
///
/// # Errors
/// A patch does not fit, or the graph has a cycle.
pub fn products_in_float8(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    for id in graph.live_order()? {
        if let Some(patch) = product(&graph, id) {
            apply(&mut graph, id, patch)?;
        }
    }
    eliminate_common(&graph.compact()?)
}

/// An operand as floats of 8 bits and what they are multiplied with.
struct Scaled {
    x: ValueId,
    scale: Option<ValueId>,
    node: NodeId,
}

fn scaled(graph: &Graph, v: ValueId) -> Option<Scaled> {
    let id = graph.producer(v)?;
    let node = graph.node(id);
    let Op::Map(Map { body }) = &node.op else { return None };
    let (x, scale) = match body.node(body.result()) {
        Scalar::Binary(BinaryOp::Mul, a, b) => {
            let ordered = |a, b| Some((converted(body, a, DType::F32)?, Some(argument(body, b)?)));
            ordered(*a, *b).or_else(|| ordered(*b, *a))?
        }
        _ => (converted(body, body.result(), DType::F32)?, None),
    };
    let x = *node.inputs.get(x)?;
    let scale = scale.map(|n| node.inputs.get(n).copied()).map_or(Some(None), |s| s.map(Some))?;
    let same = graph.ty(x).dims == graph.ty(v).dims && graph.ty(x).dtype.is_ofp8();
    let floats = scale.is_none_or(|s| graph.ty(s).dtype == DType::F32);
    (same && floats).then_some(Scaled { x, scale, node: id })
}

/// The scale of an operand with these letters as it broadcasts to the result: a constant along one axis that is not summed, or one number.
fn of_result(graph: &Graph, scale: ValueId, letters: &str, out: &str) -> Option<Operand> {
    if is_scalar(graph, scale) {
        return (graph.ty(scale).rank() <= out.len()).then_some(Operand::Value(scale));
    }
    let tensor = graph.constant(scale)?;
    let lead = letters.len().checked_sub(tensor.shape().len())?;
    let mut shape = vec![1; out.len()];
    for (n, &extent) in tensor.shape().iter().enumerate().filter(|(_, extent)| **extent > 1) {
        *shape.get_mut(out.find(letters.chars().nth(lead + n)?)?)? = extent;
    }
    // In another order numbers would have to move.
    let places = letters.chars().skip(lead).zip(tensor.shape()).filter(|(_, extent)| **extent > 1);
    let places: Vec<usize> = places.filter_map(|(c, _)| out.find(c)).collect();
    places.is_sorted().then(|| tensor.reshaped(&shape).ok().map(Operand::Constant)).flatten()
}

fn product(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    let &[left, right] = node.inputs.as_slice() else { return None };
    if contract.elements != Elements::Numbers || graph.ty(*node.outputs.first()?).dtype != DType::F32 {
        return None;
    }
    let sides = [left, right].map(|v| scaled(graph, v));
    let mut nodes = Vec::new();
    let mut operands = Vec::new();
    let both = sides.iter().all(Option::is_some);
    for (side, value) in sides.iter().zip([left, right]) {
        operands.push(match side {
            Some(side) if both => Operand::Value(side.x),
            // Weights that numbers are multiplied with: their scale is all that there is to gain.
            Some(side) if side.scale.is_some() && graph.constant(side.x).is_some() => {
                nodes.push((cast(graph.ty(side.x).dtype, DType::F32)?, vec![Operand::Value(side.x)]));
                Operand::New(nodes.len() - 1)
            }
            Some(_) => return None,
            None => Operand::Value(value),
        });
    }
    if sides.iter().all(Option::is_none) {
        return None;
    }
    let elements = if both { Elements::Halves } else { Elements::Numbers };
    nodes.push((Contract { elements, ..contract.clone() }.into(), operands));
    for (side, letters) in sides.iter().zip([&contract.lhs, &contract.rhs]) {
        let Some(scale) = side.as_ref().and_then(|side| side.scale) else { continue };
        let mut body = Code::new();
        let (sum, by) = (body.arg(0, DType::F32), body.arg(1, DType::F32));
        let result = body.binary(BinaryOp::Mul, sum, by).ok()?;
        body.set_result(result);
        let operands = vec![Operand::New(nodes.len() - 1), of_result(graph, scale, letters, &contract.out)?];
        nodes.push((Map { body }.into(), operands));
    }
    let also = sides.iter().flatten().map(|side| side.node).collect();
    Some(Patch { nodes, replaces: node.outputs[0], with: None, also })
}
