//! Constants of f32 that products by matrix registers read are kept as three parts of bf16 each, two neighbours of a part in a word.
//!
//! Invariant: a product computes what it did before: the sum of a number's parts is the number, to the last bit. No other kernel and
//! no host step reads such a constant.

use crate::group::{Group, Work};
use crate::kernel::Terms;
use crate::kernel::flat::FlatNest;
use crate::kernel::parts::{run_of, worthwhile};
use kiln_ir::Tensor;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, TensorType, ValueId};
use kiln_ir::nest::{Nest, fold_axis};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Scalar, Source, TypeError};
use kiln_ir::semantics::parts;
use std::collections::HashMap;

/// Keeps constants in parts where that pays.
pub(crate) fn keep_parts(graph: &mut Graph, work: &mut [Work], terms: Terms) {
    // A view of a constant is part of every kernel that reads it, so one node that uses it may be several kernels.
    let mut readers: HashMap<ValueId, usize> = HashMap::new();
    work.iter().flat_map(|w| w.reads(graph)).for_each(|v| *readers.entry(*v).or_default() += 1);
    for w in work {
        let Work::Kernel(group) = w else { continue };
        let Some((input, nest, kept)) = in_parts(graph, group) else { continue };
        if readers.get(&group.inputs[input]) != Some(&1) {
            continue;
        }
        graph.replace_constant(group.inputs[input], kept);
        group.stages = vec![nest];
        group.what.push_str(terms.mark());
    }
}

/// The number of the input, the product that reads it in parts, and the parts.
fn in_parts(graph: &Graph, group: &Group) -> Option<(usize, Nest, Tensor)> {
    let [nest] = group.stages.as_slice() else { return None };
    let types: Vec<&TensorType> = group.inputs.iter().map(|v| graph.ty(*v)).collect();
    let flat = FlatNest::new(nest, &types, Some(graph.ty(group.output)), &graph.symbols)?.collapse();
    let input = worthwhile(&flat)?;
    let value = *group.inputs.get(input)?;
    let constant = graph.constant(value)?;
    let alone = graph.users(value).len() == 1 && !graph.is_output(value) && graph.ty(value).layout.is_row_major();
    if !alone || group.inputs.iter().filter(|v| **v == value).count() != 1 || reads(&nest.finish, input) {
        return None;
    }
    let inner = nest.folds.len().checked_sub(1)?;
    let places = nest.folds.get(inner)?.as_const()?;
    let run = run_of(places)?;
    let [steps, two, within] = [0, 1, 2].map(|n| Expr::from(fold_axis(inner + n)));
    let step = |width: i64| steps.scale(width);
    let place = step(2 * run).add(&two.scale(run)).add(&within);
    let moved = |e: &Expr| e.replace(&fold_axis(inner), &place);
    let coords = only_load(&nest.body, input)?;
    let axis = coords.iter().position(|e| e.as_symbol() == Some(&fold_axis(inner)))?;
    if coords.iter().filter(|e| e.mentions(&fold_axis(inner))).count() != 1 {
        return None;
    }
    let mut body = Code::new();
    let result = body.inline(&nest.body, &mut |out, node, dtype| match node {
        Scalar::Load(Source::Input(n), _) if *n == input => {
            let mut index = coords.clone();
            index[axis] = step(run).add(&within);
            let part = |out: &mut Code, n: i64| part_of(out, input, &index, n, &two);
            let (first, second, third) = (part(out, 0)?, part(out, 1)?, part(out, 2)?);
            let upper = out.binary(BinaryOp::Add, first, second)?;
            out.binary(BinaryOp::Add, upper, third).map(Some)
        }
        Scalar::Load(source, coords) => {
            let index: Option<Vec<Expr>> = coords.iter().map(|c| c.expr().map(&moved)).collect();
            let index = index.ok_or_else(|| TypeError("a gathered operand".into()))?;
            Ok(Some(out.load_at(*source, index, dtype)))
        }
        _ => Ok(None),
    });
    body.set_result(result.ok()?);
    let mut folds = nest.folds.clone();
    folds.splice(inner.., [places / (2 * run), 2, run].map(Expr::from));
    let kept = stored(constant, axis, usize::try_from(run).ok()?)?;
    Some((input, Nest { body, folds, ..nest.clone() }, kept))
}

/// One of the two numbers of a word as f32: its product with 1, beside that of the other one with 0.
fn part_of(
    out: &mut Code,
    input: usize,
    index: &[Expr],
    part: i64,
    two: &Expr,
) -> Result<kiln_ir::Id<Scalar>, TypeError> {
    let index = std::iter::once(Expr::from(part)).chain(index.iter().cloned()).collect();
    let word = out.load_at(Source::Input(input), index, DType::I32);
    let shift = out.index(two.scale(16));
    let shift = out.cast(DType::I32, shift)?;
    let one = out.constant(Constant::int(DType::I32, 0x3f80));
    let one = out.binary(BinaryOp::Shl, one, shift)?;
    out.binary(BinaryOp::Dot2, word, one)
}

fn reads(code: &Code, input: usize) -> bool {
    let live = code.live();
    code.nodes().any(|(id, node)| live[id.index()] && matches!(node, Scalar::Load(Source::Input(n), _) if *n == input))
}

/// The one index at which code reads an input.
fn only_load(code: &Code, input: usize) -> Option<Vec<Expr>> {
    let live = code.live();
    let mut found = code.nodes().filter_map(|(id, node)| match node {
        Scalar::Load(Source::Input(n), coords) if *n == input && live[id.index()] => Some(coords),
        _ => None,
    });
    let coords = found.next().filter(|_| found.next().is_none())?;
    coords.iter().map(Coord::expr).map(|e| e.cloned()).collect()
}

/// The constant's parts, `[3][..]`, with words along an axis that hold a number and the one `run` places after it. Nothing where a number
/// has no parts.
fn stored(constant: &Tensor, axis: usize, run: usize) -> Option<Tensor> {
    let values = constant.to_f32()?;
    let mut shape = constant.shape().to_vec();
    let extent = *shape.get(axis)?;
    let inner: usize = shape[axis + 1..].iter().product();
    let split: Vec<[u16; 3]> =
        values.iter().map(|&x| Some(parts(x)?.map(|part| (part.to_bits() >> 16) as u16))).collect::<Option<_>>()?;
    *shape.get_mut(axis)? = extent / 2;
    shape.insert(0, 3);
    let mut bytes = Vec::with_capacity(6 * values.len());
    for part in 0..3 {
        for block in split.chunks((extent * inner).max(1)) {
            for two in block.chunks(2 * run * inner) {
                let (low, high) = two.split_at_checked(run * inner)?;
                for (low, high) in low.iter().zip(high) {
                    bytes.extend((u32::from(high[part]) << 16 | u32::from(low[part])).to_le_bytes());
                }
            }
        }
    }
    Tensor::new(DType::I32, shape, bytes).ok()
}
