//! Values that constants alone decide.
//!
//! Invariant: each is what the interpreter makes of it. Weights are large, so what depends on one byte and on little else is evaluated for each byte once.

use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::interp::eval_op;
use kiln_ir::ops::Op;
use kiln_ir::tensor::Tensor;

/// How many nodes of constants are looked through.
pub(super) const MOST_NODES: usize = 8;

/// The value, where constants alone decide it, with the nodes that make it added to `nodes`.
pub(super) fn known(graph: &Graph, v: ValueId, nodes: &mut Vec<NodeId>) -> Option<Tensor> {
    decided(graph, v, 0, false, nodes)
}

/// The value, which is of whole numbers, as bytes without a sign if that is easily said of its type.
pub(super) fn known_numbers(graph: &Graph, v: ValueId, nodes: &mut Vec<NodeId>) -> Option<Tensor> {
    decided(graph, v, 0, true, nodes)
}

fn decided(graph: &Graph, v: ValueId, depth: usize, is_narrowed: bool, nodes: &mut Vec<NodeId>) -> Option<Tensor> {
    if let Some(tensor) = graph.constant(v) {
        return Some(tensor.clone());
    }
    let id = graph.producer(v).filter(|_| depth < MOST_NODES)?;
    let node = graph.node(id);
    if matches!(node.op, Op::Host(_)) || node.outputs.len() != 1 {
        return None;
    }
    let is_moved = matches!(node.op, Op::Reshape(_)) && is_narrowed;
    let operand = |&v| decided(graph, v, depth + 1, is_moved, nodes);
    let operands: Vec<Tensor> = node.inputs.iter().map(operand).collect::<Option<_>>()?;
    nodes.push(id);
    let dims = graph.ty(v).shape();
    match (&node.op, dims) {
        (Op::Reshape(_), Some(dims)) => operands.first()?.reshaped(&dims).ok(),
        (Op::Map(_), Some(dims)) => by_bytes(&node.op, &operands, &dims, is_narrowed),
        _ => None,
    }
    .or_else(|| eval_op(&node.op, &operands).ok()?.pop())
}

/// The most elements that all operands but the bytes have together.
const MOST_OTHERS: usize = 16;

/// How the elements of a tensor lie among those of a result: for each axis of that, the step to the next one.
fn steps(shape: &[usize], rank: usize) -> Vec<usize> {
    let mut steps = vec![0; rank];
    let mut own = 1;
    for (step, &extent) in steps.iter_mut().rev().zip(shape.iter().rev()) {
        *step = if extent == 1 { 0 } else { own };
        own *= extent;
    }
    steps
}

/// The result of a map of many bytes and of few other numbers, by a table of what it makes of each byte; nothing where it is no such map.
/// Whole numbers that all fit are bytes without a sign, if they are to be narrowed.
fn by_bytes(map: &Op, operands: &[Tensor], dims: &[usize], is_narrowed: bool) -> Option<Tensor> {
    let (n, bytes) = operands.iter().enumerate().max_by_key(|(_, t)| t.len())?;
    let is_byte = matches!(bytes.dtype(), DType::U8 | DType::I8);
    if !is_byte || bytes.len() <= 256 * MOST_OTHERS {
        return None;
    }
    let (&line, outer) = dims.split_last()?;
    // The other operands' common dims: one byte's results.
    let mut few = vec![1; dims.len()];
    for (_, other) in operands.iter().enumerate().filter(|(m, _)| *m != n) {
        let axes = few.iter_mut().rev().zip(other.shape().iter().rev());
        axes.filter(|(_, extent)| **extent != 1).for_each(|(few, extent)| *few = *extent);
    }
    if few.iter().product::<usize>() > MOST_OTHERS {
        return None;
    }
    // All bytes along an axis after those of the others.
    let of_each = operands.iter().enumerate().map(|(m, other)| match m == n {
        true => Tensor::new(bytes.dtype(), vec![256], (0..=255).collect::<Vec<u8>>()).ok(),
        false => other.reshaped(&[other.shape(), &[1]].concat()).ok(),
    });
    let mut table = eval_op(map, &of_each.collect::<Option<Vec<_>>>()?).ok()?.pop()?;
    if is_narrowed && let Some(values) = table.to_i64() {
        let narrow: Result<Vec<u8>, _> = values.into_iter().map(u8::try_from).collect();
        table = match narrow {
            Ok(narrow) => Tensor::new(DType::U8, vec![narrow.len()], narrow).ok()?,
            Err(_) => table,
        };
    }
    let (dtype, size) = (table.dtype(), table.dtype().size());
    let (from, beside) = (steps(bytes.shape(), dims.len()), steps(&few, dims.len()));
    let (step, step_beside) = (*from.last()?, *beside.last()?);
    let mut made = Vec::with_capacity(dims.iter().product::<usize>() * size);
    for i in 0..outer.iter().product() {
        let (mut rest, mut at, mut at_beside) = (i, 0, 0);
        for axis in (0..outer.len()).rev() {
            let index = rest % outer[axis];
            rest /= outer[axis];
            at += index * from[axis];
            at_beside += index * beside[axis];
        }
        if (size, step, step_beside) == (1, 1, 0) {
            let table = table.bytes().get(at_beside * 256..)?.first_chunk::<256>()?;
            made.extend(bytes.bytes().get(at..at + line)?.iter().map(|&byte| table[usize::from(byte)]));
            continue;
        }
        for k in 0..line {
            let byte = *bytes.bytes().get(at + k * step)?;
            let entry = (at_beside + k * step_beside) * 256 + usize::from(byte);
            made.extend_from_slice(table.bytes().get(entry * size..(entry + 1) * size)?);
        }
    }
    Tensor::new(dtype, dims.to_vec(), made).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::scalar::{BinaryOp, Code};

    /// A map of one byte and one other number.
    fn map(byte: DType, to: DType) -> Op {
        let mut body = Code::new();
        let (byte, other) = (body.arg(0, byte), body.arg(1, DType::I32));
        let wide = body.cast(DType::I32, byte).unwrap();
        let moved = body.binary(BinaryOp::Shr, wide, other).unwrap();
        let number = body.binary(BinaryOp::Sub, moved, other).unwrap();
        let result = body.cast(to, number).unwrap();
        body.set_result(result);
        kiln_ir::ops::Map { body }.into()
    }

    #[test]
    fn a_table_of_bytes_gives_what_the_interpreter_gives() {
        let tensor = |dtype, shape: &[usize], step: usize| {
            let count = shape.iter().product::<usize>() * DType::size(dtype);
            let bytes: Vec<u8> = match dtype {
                DType::I32 => (0..count / 4).flat_map(|n| (n as i32 % 5).to_le_bytes()).collect(),
                _ => (0..count).map(|n| (n * step) as u8).collect(),
            };
            Tensor::new(dtype, shape.to_vec(), bytes).unwrap()
        };
        let cases: [(&[usize], &[usize], &[usize]); 6] = [
            (&[40, 1, 150], &[2, 1], &[40, 2, 150]),
            (&[40, 150], &[2, 1, 1], &[2, 40, 150]),
            (&[6000], &[], &[6000]),
            (&[1500, 4], &[4], &[1500, 4]),
            (&[1500, 1, 4, 1], &[3, 1, 5], &[1500, 3, 4, 5]),
            (&[1200, 1, 5], &[1, 1, 2, 1], &[1, 1200, 2, 5]),
        ];
        for (bytes, other, dims) in cases {
            for (byte, to) in [(DType::U8, DType::U8), (DType::I8, DType::I32), (DType::U8, DType::F32)] {
                let op = map(byte, to);
                let operands = [tensor(byte, bytes, 37), tensor(DType::I32, other, 1)];
                let expected = eval_op(&op, &operands).unwrap().pop().unwrap();
                let found = by_bytes(&op, &operands, dims, false).unwrap();
                assert_eq!((found.shape(), found.bytes()), (expected.shape(), expected.bytes()), "{bytes:?} {other:?}");
                let narrow = by_bytes(&op, &operands, dims, true).unwrap();
                assert_eq!(narrow.to_f64(), expected.to_f64(), "{bytes:?} {other:?}");
            }
        }
        // Too many others, or a map of something else than bytes.
        let many = [tensor(DType::U8, &[6000], 1), tensor(DType::I32, &[17, 1], 1)];
        assert!(by_bytes(&map(DType::U8, DType::U8), &many, &[17, 6000], false).is_none());
        let few = [tensor(DType::U8, &[60], 1), tensor(DType::I32, &[], 1)];
        assert!(by_bytes(&map(DType::U8, DType::U8), &few, &[60], false).is_none());
    }
}
