//! Products with tables of weights in blocks: they sum over the blocks and what is in them, and over whole blocks.
//!
//! Invariant: a table's numbers stay as they are stored; what a row has beyond the summed axis meets zeros.

use super::canonicalise::{MOST_MAPS, TABLE, producer};
use super::{Operand, Patch};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, Node, NodeId, ValueId};
use kiln_ir::id::Id;
use kiln_ir::ops::{Elements, Map, Op, Pad, Reshape};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar};

/// Whether a value that maps and views make of constants alone is made of a large one; nothing where it is made of something else.
fn of_large_constant(graph: &Graph, v: ValueId, depth: usize) -> Option<bool> {
    if let Some(tensor) = graph.constant(v) {
        return Some(tensor.len() >= TABLE);
    }
    match producer(graph, v) {
        Some((_, Node { op: Op::Map(_) | Op::Reshape(_) | Op::Transpose(_), inputs, .. })) if depth > 0 => {
            inputs.iter().try_fold(false, |large, &v| Some(of_large_constant(graph, v, depth - 1)? || large))
        }
        _ => None,
    }
}

/// `contract(x, reshape(w))`, where the reshape joins the blocks of a table's rows, sums over the blocks and what is in them: a scale is then
/// read once for each block, as indices say.
pub(super) fn sum_over_blocks(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    let [left, right] = node.inputs.as_slice() else { return None };
    if c.elements != Elements::Numbers {
        return None;
    }
    for (side, (&table, &other)) in [(left, right), (right, left)].into_iter().enumerate() {
        let Some((inner, Node { op: Op::Reshape(_), inputs, .. })) = producer(graph, table) else { continue };
        let (own, others) = if side == 0 { (&c.lhs, &c.rhs) } else { (&c.rhs, &c.lhs) };
        let (Some(from), Some(to)) = (graph.ty(*inputs.first()?).shape(), graph.ty(table).shape()) else { continue };
        let (&[rows, row], [first, blocks @ ..]) = (to.as_slice(), from.as_slice()) else { continue };
        let Some(summed) = own.chars().nth(1).filter(|l| !c.out.contains(*l) && others.contains(*l)) else { continue };
        if *first != rows || blocks.len() < 2 || blocks.iter().product::<usize>() != row {
            continue;
        }
        if of_large_constant(graph, *inputs.first()?, MOST_MAPS) != Some(true) {
            continue;
        }
        let mut free = ('a'..='z').chain('A'..='Z').filter(|l| !c.lhs.contains(*l) && !c.rhs.contains(*l));
        let letters: String = blocks.iter().map(|_| free.next()).collect::<Option<_>>()?;
        let split = |word: &str| word.replace(summed, &letters);
        let mut dims = Vec::new();
        for (letter, dim) in others.chars().zip(&graph.ty(other).dims) {
            match letter == summed {
                true => dims.extend(blocks.iter().copied().map(Expr::from)),
                false => dims.push(dim.clone()),
            }
        }
        let weight = Operand::Value(*inputs.first()?);
        let operands = if side == 0 { vec![weight, Operand::New(0)] } else { vec![Operand::New(0), weight] };
        return Some(Patch {
            nodes: vec![
                (Reshape { dims }.into(), vec![Operand::Value(other)]),
                (c.with_letters(&split(&c.lhs), &split(&c.rhs), &c.out).into(), operands),
            ],
            replaces: *node.outputs.first()?,
            with: None,
            also: vec![inner],
        });
    }
    None
}

/// The greatest magnitude that a value may have which constants alone decide, where what is done to them is plain arithmetic and all
/// of it stays finite.
fn magnitude(graph: &Graph, v: ValueId, depth: usize) -> Option<f64> {
    if let Some(tensor) = graph.constant(v) {
        if let Some((low, high)) = tensor.dtype().int_range() {
            return Some((low as f64).abs().max((high as f64).abs()));
        }
        return tensor.to_f64()?.into_iter().try_fold(0f64, |most, v| v.is_finite().then(|| most.max(v.abs())));
    }
    let (_, node) = producer(graph, v).filter(|_| depth > 0)?;
    let operands: Vec<f64> = node.inputs.iter().map(|&v| magnitude(graph, v, depth - 1)).collect::<Option<_>>()?;
    match &node.op {
        Op::Map(Map { body }) => magnitude_of(body, &operands),
        Op::Reshape(_) | Op::Transpose(_) => operands.first().copied(),
        _ => None,
    }
}

/// The same of the result of a map's body.
fn magnitude_of(body: &Code, operands: &[f64]) -> Option<f64> {
    let mut all: Vec<Option<f64>> = Vec::with_capacity(body.len());
    for (id, node) in body.nodes() {
        let operand = |id: &Id<Scalar>| all.get(id.index()).copied().flatten();
        let both = |a, b| operand(a).zip(operand(b));
        let most = match node {
            Scalar::Arg(n) => operands.get(*n).copied(),
            Scalar::Const(c) => Some(c.as_f64().abs()),
            Scalar::Cast(_, a) | Scalar::Binary(BinaryOp::Shr, a, _) => operand(a),
            Scalar::Binary(BinaryOp::Add | BinaryOp::Sub, a, b) => both(a, b).map(|(a, b)| a + b),
            Scalar::Binary(BinaryOp::Mul, a, b) => both(a, b).map(|(a, b)| a * b),
            Scalar::Binary(BinaryOp::And, a, b) => both(a, b).map(|(a, b)| 2.0 * a.max(b)),
            _ => None,
        };
        // Integers wrap around: where they are cast or added up they may have any value of their type.
        let range = body.dtype(id).int_range().filter(|_| matches!(node, Scalar::Cast(..) | Scalar::Binary(..)));
        let most = most.map(|most| range.map_or(most, |(low, high)| most.max(low.abs().max(high) as f64)));
        let limit = match body.dtype(id) {
            DType::F16 => 65504.0,
            DType::F32 | DType::BF16 => f64::from(f32::MAX) / 4.0,
            ty if ty.is_int() => f64::MAX,
            _ => 0.0,
        };
        all.push(most.filter(|most| *most < limit));
    }
    all.get(body.result().index()).copied().flatten()
}

/// `contract(x, slice(w))`, where the slice takes off what fills up the last blocks of a table's rows, is the product of the whole rows with
/// zeros beyond `x`: the table is then read as it lies.
pub(super) fn whole_rows(graph: &Graph, id: NodeId) -> Option<Patch> {
    let node = graph.node(id);
    let Op::Contract(c) = &node.op else { return None };
    if c.elements != Elements::Numbers {
        return None;
    }
    for side in 0..2 {
        let (&cut, &other) = (node.inputs.get(side)?, node.inputs.get(1 - side)?);
        let Some((inner, Node { op: Op::Slice(slice), inputs, .. })) = producer(graph, cut) else { continue };
        let &whole = inputs.first()?;
        let (own, others) = if side == 0 { (&c.lhs, &c.rhs) } else { (&c.rhs, &c.lhs) };
        let leads = slice.starts.iter().all(|e| e.as_const() == Some(0)) && slice.steps.iter().all(|&s| s == 1);
        if !leads || of_large_constant(graph, whole, MOST_MAPS) != Some(true) {
            continue;
        }
        let (Some(from), Some(to)) = (graph.ty(whole).shape(), graph.ty(cut).shape()) else { continue };
        let rank = graph.ty(other).rank();
        let mut high = vec![0; rank];
        let mut summed = true;
        for ((letter, from), to) in own.chars().zip(from).zip(to).filter(|((_, from), to)| from != to) {
            match others.find(letter).filter(|_| !c.out.contains(letter)) {
                // Rows that would be mostly zeros cost more than the slice does.
                Some(axis) if from <= to.saturating_mul(2) => high[axis] = from - to,
                Some(_) | None => summed = false,
            }
        }
        // A number that is none would not vanish.
        if !summed || magnitude(graph, whole, MOST_MAPS).is_none() {
            continue;
        }
        let value = Constant::float(graph.ty(other).dtype, 0.0);
        let pad = Pad { low: vec![0; rank], high, interior: vec![0; rank], value };
        let operands = if side == 0 {
            vec![Operand::Value(whole), Operand::New(0)]
        } else {
            vec![Operand::New(0), Operand::Value(whole)]
        };
        return Some(Patch {
            nodes: vec![(pad.into(), vec![Operand::Value(other)]), (c.clone().into(), operands)],
            replaces: *node.outputs.first()?,
            with: None,
            also: vec![inner],
        });
    }
    None
}
