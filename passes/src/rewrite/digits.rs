//! Products of one row with weights of 4 bits: each activation as three bytes, so that integer dot products multiply it.
//!
//! Invariant: nothing is rounded that f32 would keep. An activation is the sum of three signed bytes, each worth [`RADIX`] times as much as the next, times a
//! scale for its block, and what is left is at most 2^-24 of the block's greatest one. Weights stay as they are and take no more bytes.
//! Where an activation is not finite, what its block adds is NaN.

use super::activations::MOST;
use super::few_bits::{Nodes, Product, Wanted, shared};
use super::{Operand, apply};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, NodeId};
use kiln_ir::ops::{MOST_DIGITS, Pack, RADIX, Reshape};
use kiln_ir::scalar::{BinaryOp, Constant, Scalar, UnaryOp};
use kiln_ir::tensor::Tensor;
use std::collections::BTreeSet;

/// What pays: as many numbers that the bytes of a row cost less than they save.
const WANTED: Wanted = Wanted { len: 1 << 15, bits: 4 };

/// The least scale of a block: what is smaller than a few bits of that is 0.
const LEAST_SCALE: f64 = 1e-30;

/// Puts products with weights of 4 bits into the form that integer dot products read: those of one row in bytes, those of more in f32, so
/// that programs for one row and for many read the same weight.
///
/// # Errors
/// See [`rewrite`](super::rewrite).
pub fn products_in_digits(graph: &Graph) -> Result<Graph, GraphError> {
    let mut changed = graph.compact()?;
    let mut any = false;
    for id in changed.live_order()? {
        let Some(product) = Product::of(&changed, id, WANTED).filter(|p| pays(&changed, p)) else { continue };
        let patch = match product.is_of_one_row() {
            true => product.patch(MOST_DIGITS, digits),
            false => product.patch(0, |_, x, _| Some(vec![x])),
        };
        if let Some(patch) = patch {
            apply(&mut changed, id, patch)?;
            any = true;
        }
    }
    if any { shared(&changed) } else { Ok(changed) }
}

/// Whether the weight takes no more bytes than it did.
fn pays(graph: &Graph, product: &Product) -> bool {
    let weight = &product.weight;
    let constants = |id: &NodeId| graph.node(*id).inputs.iter().copied().filter(|&v| graph.constant(v).is_some());
    let read: BTreeSet<_> = weight.nodes.iter().flat_map(constants).collect();
    let before: usize = read.iter().filter_map(|&v| graph.constant(v)).map(|t| t.bytes().len()).sum();
    weight.bytes() <= before
}

/// Rows of f32, `[.., B, G]`, as three bytes for each number in words, `[.., 3, B, G / 4]`, with the scales and the sums of blocks.
fn digits(nodes: &mut Nodes, x: Operand, dims: &[Expr]) -> Option<Vec<Operand>> {
    let (block, rows) = dims.split_last()?;
    let last = rows.len();
    let most = nodes.greatest(last, x.clone())?;
    let scale = nodes.map(vec![(most, DType::F32)], |b, a| {
        let (by, least) = (b.float(DType::F32, MOST), b.float(DType::F32, LEAST_SCALE));
        let scale = b.binary(BinaryOp::Div, a[0], by)?;
        b.binary(BinaryOp::Max, scale, least)
    })?;
    let sum = nodes.reduce(BinaryOp::Add, last, x.clone());
    let (blocks, others) = rows.split_last()?;
    let one = Expr::from(1i64);
    let beside = |block: &Expr| others.iter().chain([&one, blocks, block]).cloned().collect::<Vec<Expr>>();
    let each = nodes.add(Reshape { dims: beside(&one) }, vec![scale.clone()]);
    let x = nodes.add(Reshape { dims: beside(block) }, vec![x]);
    let which: Vec<u8> = (0..MOST_DIGITS as i32).flat_map(i32::to_le_bytes).collect();
    let which = Operand::Constant(Tensor::new(DType::I32, vec![MOST_DIGITS, 1, 1], which).ok()?);
    let numbers = nodes.map(vec![(x, DType::F32), (each, DType::F32), (which, DType::I32)], |b, a| {
        let (one, finer) = (b.float(DType::F32, 1.0), b.float(DType::F32, RADIX as f64));
        let (low, high) = (b.float(DType::F32, -MOST), b.float(DType::F32, MOST));
        let inverse = b.binary(BinaryOp::Div, one, a[1])?;
        let mut left = b.binary(BinaryOp::Mul, a[0], inverse)?;
        let mut digit = b.unary(UnaryOp::Round, left)?;
        let mut whole = digit;
        for n in 1..MOST_DIGITS {
            let rest = b.binary(BinaryOp::Sub, left, whole)?;
            left = b.binary(BinaryOp::Mul, rest, finer)?;
            whole = b.unary(UnaryOp::Round, left)?;
            let n = b.constant(Constant::int(DType::I32, n as i64));
            let before = b.binary(BinaryOp::Lt, a[2], n)?;
            digit = b.push(Scalar::Select(before, digit, whole))?;
        }
        let raised = b.binary(BinaryOp::Max, digit, low)?;
        let clipped = b.binary(BinaryOp::Min, raised, high)?;
        b.cast(DType::I8, clipped)
    })?;
    let words = nodes.add(Pack { axis: last + 1 }, vec![numbers]);
    Some(vec![words, scale, sum])
}
