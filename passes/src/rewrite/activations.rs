//! Activations in bytes, where the user asks for it: products with weights of few bits become integer products of blocks.
//!
//! Invariant: numbers, scales and least values of the weights stay what the model says; the rows that they are multiplied with are
//! rounded to -127..127 times a scale for each block, `max |x| / 127`. A product whose weight has no blocks that a
//! [block product](kiln_ir::ops::BlockProduct) takes is left as it is.

use super::blocks::whole_rows;
use super::canonicalise::transpose_operand;
use super::few_bits::{Nodes, Product, Wanted, shared};
use super::{Operand, apply, rewrite};
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, GraphError, Origin};
use kiln_ir::ops::{Pack, Reshape};
use kiln_ir::scalar::{BinaryOp, Scalar, UnaryOp};

/// Rounds what is multiplied with weights of few bits to bytes, in the products that `wanted` says.
///
/// # Errors
/// See [`rewrite`].
pub fn activations_in_bytes(graph: &Graph, wanted: &dyn Fn(&Origin) -> bool) -> Result<Graph, GraphError> {
    let mut graph = rewrite(graph, &[transpose_operand, whole_rows])?;
    for id in graph.live_order()? {
        let product = Some(id).filter(|&id| wanted(&graph.node(id).origin)).and_then(|id| Product::of(&graph, id, ANY));
        if let Some(patch) = product.and_then(|product| product.patch(1, rounded)) {
            apply(&mut graph, id, patch)?;
        }
    }
    shared(&graph)
}

/// Weights of every size whose numbers fit a byte.
const ANY: Wanted = Wanted { len: 0, bits: 8 };

/// The greatest number that an activation is rounded to.
pub(super) const MOST: f64 = 127.0;

/// Rows of f32, `[.., B, G]`, as bytes in words, their scales and their sums, for each block.
fn rounded(nodes: &mut Nodes, x: Operand, dims: &[Expr]) -> Option<Vec<Operand>> {
    let (_, rows) = dims.split_last()?;
    let last = rows.len();
    let most = nodes.greatest(last, x.clone())?;
    let scale = nodes.map(vec![(most, DType::F32)], |b, a| {
        let by = b.float(DType::F32, MOST);
        b.binary(BinaryOp::Div, a[0], by)
    })?;
    let mut beside = rows.to_vec();
    beside.push(Expr::from(1i64));
    let each = nodes.add(Reshape { dims: beside }, vec![scale.clone()]);
    let numbers = nodes.map(vec![(x, DType::F32), (each, DType::F32)], |b, a| {
        let (zero, one) = (b.float(DType::F32, 0.0), b.float(DType::F32, 1.0));
        let inverse = b.binary(BinaryOp::Div, one, a[1])?;
        let some = b.binary(BinaryOp::Gt, a[1], zero)?;
        let inverse = b.push(Scalar::Select(some, inverse, zero))?;
        let steps = b.binary(BinaryOp::Mul, a[0], inverse)?;
        let (low, high) = (b.float(DType::F32, -MOST), b.float(DType::F32, MOST));
        let raised = b.binary(BinaryOp::Max, steps, low)?;
        let clipped = b.binary(BinaryOp::Min, raised, high)?;
        let whole = b.unary(UnaryOp::Round, clipped)?;
        b.cast(DType::I8, whole)
    })?;
    let wide = nodes.map(vec![(numbers.clone(), DType::I8)], |b, a| b.cast(DType::I32, a[0]))?;
    let sum = nodes.reduce(BinaryOp::Add, last, wide);
    let sum = nodes.map(vec![(sum, DType::I32), (scale.clone(), DType::F32)], |b, a| {
        let sum = b.cast(DType::F32, a[0])?;
        b.binary(BinaryOp::Mul, sum, a[1])
    })?;
    let words = nodes.add(Pack { axis: last }, vec![numbers]);
    Some(vec![words, scale, sum])
}
