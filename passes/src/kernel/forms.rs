//! What the code of a fold is like: how its operands lie, and which sum it is.
//!
//! Invariant: only code is looked at, never where it came from, so kernels do not know of ops.

use super::flat::{FlatNest, Stride, stride};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Coord, Scalar, Source};

/// The addresses of the loads of a fold's body.
pub(super) fn addresses(nest: &FlatNest) -> impl Iterator<Item = &Expr> {
    let live = nest.body.live();
    nest.body.nodes().filter_map(move |(id, node)| match node {
        Scalar::Load(Source::Input(_), coords) if live[id.index()] => match coords.first() {
            Some(Coord::Index(e)) => Some(e),
            Some(Coord::Value(_)) | None => None,
        },
        _ => None,
    })
}

/// How a fold's operands lie along a symbol: for each load of the body, its stride there.
pub(super) fn strides(nest: &FlatNest, symbol: &Symbol) -> Vec<Stride> {
    addresses(nest).map(|e| stride(e, symbol)).collect()
}

/// The type in which a factor is kept, before it is widened.
pub(super) fn kept(code: &Code, factor: Id<Scalar>) -> DType {
    match code.node(factor) {
        Scalar::Cast(_, kept) => code.dtype(*kept),
        _ => code.dtype(factor),
    }
}

/// Whether the fold is a sum of products, which a multiply-add unit computes.
pub(super) fn is_product_sum(nest: &FlatNest) -> bool {
    let product = matches!(nest.body.node(nest.body.result()), Scalar::Binary(BinaryOp::Mul, ..));
    nest.combine == BinaryOp::Add && product && !sums_blocks(&nest.body)
}

/// Whether the fold is a sum of dot products of bytes or of pairs of bf16.
pub(super) fn is_dot_sum(nest: &FlatNest) -> bool {
    let dot = |n: &Scalar| matches!(n, Scalar::Binary(BinaryOp::Dot4 | BinaryOp::Dot2, ..));
    nest.combine == BinaryOp::Add && dot(nest.body.node(nest.body.result()))
}

/// Whether the code is a dot product of bytes.
pub(super) fn is_dot_of_bytes(code: &Code) -> bool {
    matches!(code.node(code.result()), Scalar::Binary(BinaryOp::Dot4, ..))
}

/// Whether the code is a product of two floats of 8 bits, widened.
pub(super) fn is_product_of_eight_bits(code: &Code) -> bool {
    let Scalar::Binary(BinaryOp::Mul, a, b) = code.node(code.result()) else { return false };
    [*a, *b].into_iter().all(|factor| kept(code, factor).is_ofp8())
}

/// Whether the code multiplies f32 with what it makes of integers of few bits.
pub(super) fn unpacks(code: &Code) -> bool {
    let live = code.live();
    let narrow = |dtype: DType| dtype.is_int() && dtype.size() < 4 || dtype.is_ofp8();
    let reads = |(id, n): (Id<Scalar>, &Scalar)| {
        live[id.index()] && matches!(n, Scalar::Load(Source::Input(_), _)) && narrow(code.dtype(id))
            || live[id.index()] && is_part_of_word(code, n)
    };
    code.result_type() == DType::F32
        && matches!(code.node(code.result()), Scalar::Binary(BinaryOp::Mul, ..))
        && code.nodes().any(reads)
}

/// Whether a node converts some bits of a word that is loaded as it is.
fn is_part_of_word(code: &Code, node: &Scalar) -> bool {
    let Scalar::Cast(DType::F32, part) = node else { return false };
    let Scalar::Binary(BinaryOp::And, moved, _) = code.node(*part) else { return false };
    let Scalar::Binary(BinaryOp::Shr, word, _) = code.node(*moved) else { return false };
    matches!(code.node(*word), Scalar::Load(Source::Input(_), _)) && code.dtype(*word) == DType::I32
}

/// Whether a weight's words hold four bytes or eight halves for each column: those that are multiplied by one row in several bytes for each
/// number, and the same for more rows.
pub(super) fn has_words(code: &Code) -> bool {
    let live = code.live();
    let live = |(id, node): (Id<Scalar>, &'_ Scalar)| live[id.index()].then(|| node.clone());
    let dots = code.nodes().filter_map(live).filter(|n| matches!(n, Scalar::Binary(BinaryOp::Dot4, ..))).count();
    dots > 1 || unpacks(code) && code.nodes().any(|(_, node)| is_part_of_word(code, node))
}

/// Whether the code scales dot products of bytes.
pub(super) fn sums_blocks(code: &Code) -> bool {
    let live = code.live();
    let dot = |id: Id<Scalar>| matches!(code.node(id), Scalar::Binary(BinaryOp::Dot4, ..));
    code.result_type() == DType::F32
        && code.nodes().any(|(id, n)| live[id.index()] && matches!(n, Scalar::Cast(DType::F32, a) if dot(*a)))
}

/// Whether the code reads a weight of few bits, in either form.
pub(crate) fn has_few_bits(code: &Code) -> bool {
    unpacks(code) || sums_blocks(code)
}

/// Whether the code is its argument.
pub(super) fn is_identity(code: &Code) -> bool {
    matches!(code.node(code.result()), Scalar::Arg(_))
}
