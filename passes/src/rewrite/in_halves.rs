//! Products whose operands are f16 or bf16 in memory, for GPUs.
//!
//! Invariant: an operand is rounded where it is made, once, and to the type to which the product's matrix instructions would round
//! it; products of halves are exact in f32 and so is their sum's type. Only products with constants change: what lies between
//! two products of attention is no memory of its own. What else kernels keep as halves is decided once they are cut
//! (`stored_halves.rs`).

use super::halves::cast;
use super::{Operand, Patch, apply, eliminate_common};
use kiln_ir::graph::{Graph, GraphError, NodeId, ValueId};
use kiln_ir::ops::{Contract, Elements, Op};
use kiln_ir::scalar::Scalar;
use kiln_ir::tensor::Tensor;
use kiln_ir::{DType, semantics};

/// Products with constants read both operands as halves of that type, where one is given; and as those of the model, where
/// it has them.
///
/// # Errors
/// A patch does not fit, or the graph has a cycle.
pub fn products_in_halves(graph: &Graph, rounded: Option<DType>) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    for id in graph.live_order()? {
        if let Some(patch) = product(&graph, id, rounded) {
            apply(&mut graph, id, patch)?;
        }
    }
    eliminate_common(&graph.compact()?)
}

/// The half that a value was widened from.
fn widened(graph: &Graph, value: ValueId) -> Option<ValueId> {
    let node = graph.node(graph.producer(value)?);
    let Op::Map(map) = &node.op else { return None };
    let &[from] = node.inputs.as_slice() else { return None };
    let same = matches!(map.body.node(map.body.result()), Scalar::Cast(DType::F32, a)
        if matches!(map.body.node(*a), Scalar::Arg(0)));
    (same && graph.ty(from).dtype.is_half()).then_some(from)
}

/// A constant of f32 in a half type.
pub(crate) fn constant_in(half: DType, tensor: &Tensor) -> Option<Tensor> {
    let values = tensor.to_f32()?;
    let mut bytes = Vec::with_capacity(values.len() * half.size());
    values.into_iter().for_each(|v| semantics::store_f32(half, v, &mut bytes));
    Tensor::new(half, tensor.shape().to_vec(), bytes).ok()
}

fn product(graph: &Graph, id: NodeId, rounded: Option<DType>) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(contract) = &node.op else { return None };
    let &[left, right] = node.inputs.as_slice() else { return None };
    if contract.elements != Elements::Numbers || graph.ty(node.outputs[0]).dtype != DType::F32 {
        return None;
    }
    let fixed = |v: ValueId| graph.constant(widened(graph, v).unwrap_or(v)).is_some();
    let (constant, other) = match (fixed(left), fixed(right)) {
        (true, false) => (left, right),
        (false, true) => (right, left),
        _ => return None,
    };
    let of_type = |v: ValueId| widened(graph, v).filter(|v| rounded.is_none_or(|ty| graph.ty(*v).dtype == ty));
    let narrow = of_type(other);
    let half = rounded.or_else(|| narrow.map(|v| graph.ty(v).dtype))?;
    let weights = match of_type(constant).filter(|v| graph.ty(*v).dtype == half) {
        Some(value) => Operand::Value(value),
        None => {
            let given = graph.constant(constant)?;
            let weights = constant_in(half, given)?;
            if rounded.is_none() && weights.to_f32() != given.to_f32() {
                return None;
            }
            Operand::Constant(weights)
        }
    };
    let mut nodes = Vec::new();
    let activations = match narrow {
        Some(value) => Operand::Value(value),
        None => {
            nodes.push((cast(DType::F32, half)?, vec![Operand::Value(other)]));
            Operand::New(0)
        }
    };
    let mut both = vec![activations, weights];
    if other == right {
        both.reverse();
    }
    nodes.push((Contract { elements: Elements::Halves, ..contract.clone() }.into(), both));
    Some(Patch { nodes, replaces: node.outputs[0], with: None, also: vec![] })
}
