//! Products of floats in bf16: both factors are rounded to bf16, two neighbours along the summed axis are one i32, and their products
//! are summed in f32.
//!
//! Invariant: only products of an activation with a constant are rounded; each factor once, to the nearest, the even one of two.
//! Weights of 8 bits are not rounded at all: as whole numbers they are exact in bf16, and their scale is applied to the sum.
//! A product of two activations and everything else stay as they are; attention is rounded by the kernels of targets that gain by it
//! (`kernel::attention_pairs`).

use super::{Operand, Patch, halves, rewrite};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::{Contract, Conv, Elements, Map, Op, Pack};
use kiln_ir::scalar::{BinaryOp, Code, Scalar};
use kiln_ir::semantics;
use kiln_ir::tensor::Tensor;

/// Applies all rules of this file until none applies.
///
/// # Errors
/// See [`rewrite`].
pub fn products_of_pairs(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[convolution, product, product_of_bytes])
}

/// What [`Pack`] makes of a constant of f32.
fn packed(tensor: &Tensor, axis: usize) -> Option<Tensor> {
    if tensor.dtype() != DType::F32 {
        return None;
    }
    let values = tensor.to_f32()?;
    let mut shape = tensor.shape().to_vec();
    let extent = *shape.get(axis)?;
    let inner: usize = shape[axis + 1..].iter().product();
    *shape.get_mut(axis)? = extent.div_ceil(2);
    let mut bytes = Vec::with_capacity(4 * shape.iter().product::<usize>());
    if extent * inner > 0 {
        for block in values.chunks(extent * inner) {
            for two in block.chunks(2 * inner) {
                let (low, high) = two.split_at(inner);
                for (n, low) in low.iter().enumerate() {
                    let high = high.get(n).copied().unwrap_or(0.0);
                    bytes.extend((semantics::pair(*low, high) as i32).to_le_bytes());
                }
            }
        }
    }
    Tensor::new(DType::I32, shape, bytes).ok()
}

/// The product of packed operands, both along an axis of theirs. One of them is constant.
fn patch(
    graph: &Graph,
    replaces: ValueId,
    op: Op,
    (operands, axes): (&[ValueId], [usize; 2]),
    constant: usize,
) -> Option<Patch> {
    let activations = *operands.get(1 - constant)?;
    if graph.ty(activations).dtype != DType::F32 || graph.constant(activations).is_some() {
        return None;
    }
    rounded(graph, replaces, op, (activations, axes), (constant, graph.constant(*operands.get(constant)?)?))
}

/// The product of activations with a constant, whose number among the operands is given.
fn rounded(
    graph: &Graph,
    replaces: ValueId,
    op: Op,
    (activations, axes): (ValueId, [usize; 2]),
    (constant, weights): (usize, &Tensor),
) -> Option<Patch> {
    let weights = packed(weights, *axes.get(constant)?)?;
    let (axis, mut nodes) = (*axes.get(1 - constant)?, Vec::new());
    let mut x = Operand::Value(activations);
    if side_by_side(graph, activations, axis) {
        // What makes the activations rounds them, and their memory is the pairs'.
        nodes.push((halves::cast(DType::F32, DType::BF16)?, vec![x]));
        x = Operand::New(0);
    }
    nodes.push((Pack { axis }.into(), vec![x]));
    let mut both = vec![Operand::New(nodes.len() - 1), Operand::Constant(weights)];
    if constant == 0 {
        both.reverse();
    }
    nodes.push((op, both));
    Some(Patch { nodes, replaces, with: None, also: vec![] })
}

/// Whether pairs cover the axis and will lie side by side in memory: innermost in a matrix, the channels of pixels.
fn side_by_side(graph: &Graph, v: ValueId, axis: usize) -> bool {
    let ty = graph.ty(v);
    let even = ty.dims.get(axis).and_then(Expr::as_const).is_some_and(|n| n % 2 == 0);
    let channels = ty.rank() > 3 && axis == 1;
    even && (channels || axis + 1 == ty.rank())
}

/// A convolution, but for those whose groups have an odd number of channels.
fn convolution(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Conv(conv) = &node.op else { return None };
    let channels = graph.ty(node.inputs[1]).dims.get(1)?.as_const()?;
    let pays = if conv.groups == 1 { channels > 1 } else { channels % 2 == 0 };
    if conv.elements != Elements::Numbers || !pays {
        return None;
    }
    let op = Conv { elements: Elements::Pairs, ..conv.clone() };
    patch(graph, node.outputs[0], op.into(), (&node.inputs, [1, 1]), 1)
}

/// Weights of 8 bits as floats that bf16 holds exactly, and what each of them is to be multiplied with: numbers for some axes.
struct Whole {
    values: Tensor,
    scale: Tensor,
}

/// The value of maps of constants that are not folded, as they are weights of bytes.
fn evaluated(graph: &Graph, v: ValueId, depth: usize) -> Option<Tensor> {
    if let Some(t) = graph.constant(v) {
        return Some(t.clone());
    }
    let node = graph.node(graph.producer(v)?);
    (depth > 0 && matches!(node.op, Op::Map(_))).then_some(())?;
    let operands: Vec<Tensor> = node.inputs.iter().map(|&v| evaluated(graph, v, depth - 1)).collect::<Option<_>>()?;
    eval_op(&node.op, &operands).ok()?.into_iter().next()
}

/// The value as whole numbers times scales, as models with weights of 8 bits have them.
fn whole(graph: &Graph, v: ValueId) -> Option<Whole> {
    let node = graph.node(graph.producer(v)?);
    let Op::Map(Map { body }) = &node.op else { return None };
    let Scalar::Binary(BinaryOp::Mul, a, b) = body.node(body.result()) else { return None };
    let Scalar::Arg(scale) = body.node(*b) else { return None };
    let scale = graph.constant(*node.inputs.get(*scale)?).filter(|t| t.dtype() == DType::F32)?.clone();
    // What is multiplied, as a map of its own.
    let mut numbers = body.clone();
    numbers.set_result(*a);
    let unread = |v: &ValueId| evaluated(graph, *v, 3);
    let operands: Vec<Tensor> = node.inputs.iter().map(unread).collect::<Option<_>>()?;
    let bytes = |&v: &ValueId| reads_bytes(graph, v, 3);
    if !node.inputs.iter().any(bytes) {
        return None;
    }
    let values = eval_op(&Map { body: numbers }.into(), &operands).ok()?.into_iter().next()?;
    let exact = |v: &f32| v.fract() == 0.0 && v.abs() <= 256.0;
    let shape: Option<Vec<usize>> = graph.ty(v).shape();
    (values.to_f32()?.iter().all(exact) && Some(values.shape()) == shape.as_deref()).then_some(Whole { values, scale })
}

/// Whether the value is made of constant 8-bit integers.
fn reads_bytes(graph: &Graph, v: ValueId, depth: usize) -> bool {
    if graph.constant(v).is_some() {
        return matches!(graph.ty(v).dtype, DType::U8 | DType::I8) && graph.ty(v).rank() > 1;
    }
    let Some(node) = graph.producer(v).map(|id| graph.node(id)) else { return false };
    depth > 0 && matches!(node.op, Op::Map(_)) && node.inputs.iter().any(|&v| reads_bytes(graph, v, depth - 1))
}

/// A matrix product with weights of 8 bits: the whole numbers are exact in bf16, and their scale comes after the sum.
fn product_of_bytes(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    if contract.elements != Elements::Numbers {
        return None;
    }
    let constant = node.inputs.iter().rposition(|&v| reads_bytes(graph, v, 4))?;
    let axes = packed_axes(contract, constant)?;
    let Whole { values, scale } = whole(graph, *node.inputs.get(constant)?)?;
    // The scale of each axis of the weights, which none that is summed may have.
    let letters = if constant == 1 { &contract.rhs } else { &contract.lhs };
    let lead = letters.len().checked_sub(scale.shape().len())?;
    let mut shape = vec![1; contract.out.len()];
    let mut wide = 0;
    for (n, &extent) in scale.shape().iter().enumerate().filter(|(_, e)| **e > 1) {
        *shape.get_mut(contract.out.find(letters.chars().nth(lead + n)?)?)? = extent;
        wide += 1;
    }
    let activations = *node.inputs.get(1 - constant)?;
    if wide > 1 || graph.ty(activations).dtype != DType::F32 {
        return None;
    }
    let op = Contract { elements: Elements::Pairs, ..contract.clone() };
    let mut patch = rounded(graph, node.outputs[0], op.into(), (activations, axes), (constant, &values))?;
    let mut body = Code::new();
    let (sum, by) = (body.arg(0, DType::F32), body.arg(1, DType::F32));
    let scaled = body.binary(BinaryOp::Mul, sum, by).ok()?;
    body.set_result(scaled);
    let scale = Operand::Constant(scale.reshaped(&shape).ok()?);
    patch.nodes.push((Map { body }.into(), vec![Operand::New(patch.nodes.len() - 1), scale]));
    patch.also.extend(graph.producer(node.inputs[constant]));
    Some(patch)
}

/// The axes of both operands along which neighbours are paired: of several summed axes the one that is innermost in the activations.
fn packed_axes(contract: &Contract, constant: usize) -> Option<[usize; 2]> {
    let activations = if constant == 1 { &contract.lhs } else { &contract.rhs };
    let summed = contract.summed();
    let both = |c: &char| contract.lhs.contains(*c) && contract.rhs.contains(*c);
    let letter = activations.chars().rev().filter(|c| summed.contains(*c)).find(both)?;
    Some([contract.lhs.find(letter)?, contract.rhs.find(letter)?])
}

/// A matrix product with a constant.
fn product(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    if contract.elements != Elements::Numbers {
        return None;
    }
    let constant = node.inputs.iter().rposition(|&v| graph.constant(v).is_some())?;
    let axes = packed_axes(contract, constant)?;
    let op = Contract { elements: Elements::Pairs, ..contract.clone() };
    patch(graph, node.outputs[0], op.into(), (&node.inputs, axes), constant)
}
