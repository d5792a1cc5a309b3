//! Constant folding: nodes whose operands are all constant are computed now, by the interpreter.

use super::Graph;
use kiln_ir::DType;
use kiln_ir::graph::GraphError;
use kiln_ir::interp::eval_op;
use kiln_ir::ops::{Concat, Op};
use kiln_ir::tensor::{Tensor, element_count};

/// Constants of bytes and halves that are longer than this are weights: making wider numbers of them is left to what reads them.
const MOST_WIDENED: usize = 1 << 12;

/// Results larger than this many bytes are not folded unless they are at most twice as large as their operands, as a weight is whose
/// windows are filled up with zeros: a broadcast weight would blow up the artifact.
const MOST_GROWTH: usize = 1 << 20;

/// Replaces nodes with constant operands by their values. A node that cannot be computed is left for the run to report.
///
/// # Errors
/// The graph has a cycle.
pub fn fold_constants(graph: &Graph) -> Result<Graph, GraphError> {
    let mut graph = graph.compact()?;
    for id in graph.live_order()? {
        let node = graph.node(id).clone();
        let operands: Option<Vec<_>> = node.inputs.iter().map(|&v| graph.constant(v).cloned()).collect();
        let Some(operands) = operands else { continue };
        let size = |shape: &[usize], dtype: DType| element_count(shape, dtype.size()).map(|n| n * dtype.size());
        let read: usize = operands.iter().filter_map(|t| size(t.shape(), t.dtype()).ok()).sum();
        let made: Option<usize> =
            node.outputs.iter().map(|&v| graph.ty(v).shape().and_then(|s| size(&s, graph.ty(v).dtype).ok())).sum();
        // Sequences are no constants.
        let never = node.outputs.iter().any(|&v| graph.ty(v).dtype == DType::Seq) || is_left(&node.op);
        let small = |dtype: DType| dtype.size() == 1 || dtype.is_half();
        let weights = operands.iter().any(|t| small(t.dtype()) && t.bytes().len() > MOST_WIDENED);
        if made.is_none_or(|m| m > if weights { read } else { MOST_GROWTH.max(2 * read) }) || never {
            continue;
        }
        let values = match one_after_another(&node.op, &operands) {
            Some(value) => vec![value],
            None => match eval_op(&node.op, &operands) {
                Ok(values) => values,
                Err(_) => continue,
            },
        };
        for (&old, value) in node.outputs.iter().zip(values) {
            let new = graph.add_constant(value);
            graph.replace(old, new);
        }
    }
    graph.compact()
}

/// Tensors joined along the first axis that has any extent, which are large where they are weights: their bytes, one after the other.
fn one_after_another(op: &Op, operands: &[Tensor]) -> Option<Tensor> {
    let Op::Concat(Concat { axis }) = op else { return None };
    let first = operands.first()?;
    let lies_apart = |t: &Tensor| {
        let before = t.shape().get(..*axis).is_none_or(|lead| lead.iter().any(|&d| d != 1));
        before || t.strings().is_some() || t.tensors().is_some() || t.dtype() != first.dtype()
    };
    if operands.iter().any(lies_apart) {
        return None;
    }
    let mut shape = first.shape().to_vec();
    *shape.get_mut(*axis)? = operands.iter().map(|t| t.shape().get(*axis)).sum::<Option<usize>>()?;
    let bytes = operands.iter().map(Tensor::bytes).collect::<Vec<_>>().concat();
    Tensor::new(first.dtype(), shape, bytes).ok()
}

/// Ops that draw numbers, and graphs of their own, which may never end.
fn is_left(op: &Op) -> bool {
    matches!(op, Op::Host(h) if h.function().starts_with("random") || h.is_region())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_one_after_another_are_what_the_interpreter_joins() {
        let tensor = |dtype: DType, shape: &[usize], from: u8| {
            let bytes = shape.iter().product::<usize>() * dtype.size();
            Tensor::new(dtype, shape.to_vec(), (0..bytes).map(|n| from ^ n as u8).collect::<Vec<u8>>()).unwrap()
        };
        for (axis, shapes) in [(0, [[2, 3, 2], [0, 3, 2], [5, 3, 2]]), (1, [[1, 3, 2], [1, 1, 2], [1, 4, 2]])] {
            for dtype in [DType::I32, DType::U8, DType::F16] {
                let parts: Vec<Tensor> = shapes.iter().zip(1..).map(|(s, n)| tensor(dtype, s, 16 * n)).collect();
                let op = Op::from(Concat { axis });
                let expected = eval_op(&op, &parts).unwrap().pop().unwrap();
                let found = one_after_another(&op, &parts).unwrap();
                assert_eq!((found.shape(), found.bytes()), (expected.shape(), expected.bytes()), "{axis} {dtype}");
            }
        }
        let apart = [tensor(DType::I32, &[2, 1], 1), tensor(DType::I32, &[2, 3], 2)];
        assert!(one_after_another(&Concat { axis: 1 }.into(), &apart).is_none());
    }
}
