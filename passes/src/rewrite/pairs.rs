//! Products of floats in bf16: both factors are rounded to bf16, two neighbours along the summed axis are one i32, and their products
//! are summed in f32.
//!
//! Invariant: only products of an activation with a constant are rounded; each factor once, to the nearest, the even one of two.
//! A product of two activations, such as attention's, and everything else stay as they are.

use super::{Operand, Patch, halves, rewrite};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{Contract, Conv, Elements, Op, Pack};
use kiln_ir::semantics;
use kiln_ir::tensor::Tensor;

/// Applies all rules of this file until none applies.
///
/// # Errors
/// See [`rewrite`].
pub fn products_of_pairs(graph: &Graph) -> Result<Graph, GraphError> {
    rewrite(graph, &[convolution, product])
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
    let other = 1 - constant;
    let activations = *operands.get(other)?;
    if graph.ty(activations).dtype != DType::F32 || graph.constant(activations).is_some() {
        return None;
    }
    let weights = packed(graph.constant(*operands.get(constant)?)?, *axes.get(constant)?)?;
    let (axis, mut nodes) = (axes[other], Vec::new());
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

/// A matrix product with a constant. Of several summed axes the one that is innermost in the activations is packed.
fn product(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    if contract.elements != Elements::Numbers {
        return None;
    }
    let constant = node.inputs.iter().rposition(|&v| graph.constant(v).is_some())?;
    let activations = if constant == 1 { &contract.lhs } else { &contract.rhs };
    let summed = contract.summed();
    let both = |c: &char| contract.lhs.contains(*c) && contract.rhs.contains(*c);
    let letter = activations.chars().rev().filter(|c| summed.contains(*c)).find(both)?;
    let axes = [contract.lhs.find(letter)?, contract.rhs.find(letter)?];
    let op = Contract { elements: Elements::Pairs, ..contract.clone() };
    patch(graph, node.outputs[0], op.into(), (&node.inputs, axes), constant)
}
