//! Pairs of bf16 where the target has no instructions for them.
//!
//! Invariant: bit by bit what [`kiln_ir::semantics::pair`] and [`kiln_ir::semantics::dot2`] give, but for the payload of NaNs; a
//! subnormal number keeps its value.

use super::super::build::At;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::vector::ValueId;
use kiln_ir::{Constant, DType};

/// An integer of the type of `like`, all 32 bits of which are given.
fn bits_like(code: &mut At<'_>, like: ValueId, bits: u32) -> ValueId {
    let ty = code.ty(like);
    code.constant(ty, Constant::int(ty.dtype, i64::from(bits)))
}

/// The bits of an f32 as u32 whose upper half is the nearest bf16, the even one of two.
fn rounded(code: &mut At<'_>, x: ValueId) -> ValueId {
    let bits = code.bits(DType::U32, x);
    let half = bits_like(code, bits, 16);
    let upper = code.binary(BinaryOp::Shr, bits, half);
    let one = bits_like(code, bits, 1);
    let odd = code.binary(BinaryOp::And, upper, one);
    let below_half = bits_like(code, bits, 0x7fff);
    let up = code.add(odd, below_half);
    let near = code.add(bits, up);
    let quiet = bits_like(code, bits, 0x40_0000);
    let nan = code.binary(BinaryOp::Or, bits, quiet);
    let is_nan = code.binary(BinaryOp::Ne, x, x);
    code.select(is_nan, nan, near)
}

/// Two f32 as a pair of bf16.
pub(in super::super) fn pair(code: &mut At<'_>, low: ValueId, high: ValueId) -> ValueId {
    let (low, high) = (rounded(code, low), rounded(code, high));
    let (half, upper) = (bits_like(code, low, 16), bits_like(code, low, 0xffff_0000));
    let low = code.binary(BinaryOp::Shr, low, half);
    let high = code.binary(BinaryOp::And, high, upper);
    let both = code.binary(BinaryOp::Or, low, high);
    code.bits(DType::I32, both)
}

/// The halves of a pair as f32, the lower one first.
fn halves(code: &mut At<'_>, pair: ValueId) -> [ValueId; 2] {
    let (half, upper) = (bits_like(code, pair, 16), bits_like(code, pair, 0xffff_0000));
    let low = code.binary(BinaryOp::Shl, pair, half);
    let high = code.binary(BinaryOp::And, pair, upper);
    [code.bits(DType::F32, low), code.bits(DType::F32, high)]
}

/// The dot product of two pairs onto a sum. `fused` says whether multiply-add rounds once.
pub(in super::super) fn dot_of_pairs(code: &mut At<'_>, a: ValueId, b: ValueId, sum: ValueId, fused: bool) -> ValueId {
    let ([a_low, a_high], [b_low, b_high]) = (halves(code, a), halves(code, b));
    let onto = if fused { At::fma } else { rounded_once };
    let sum = onto(code, a_high, b_high, sum);
    onto(code, a_low, b_low, sum)
}

/// `a * b + sum` of bf16 factors, rounded once without an instruction for it. Their product has 16 significant bits, so f32 holds it,
/// unless it is beyond f32's range, from where the sum may bring it back. There it is computed 2^128 times smaller: both
/// factors are above 1 then, and what that takes off a sum below 4 is less than half of what the result shows.
fn rounded_once(code: &mut At<'_>, a: ValueId, b: ValueId, sum: ValueId) -> ValueId {
    let (down, up) = (code.num(a, 2f64.powi(-64)), code.num(a, 2f64.powi(64)));
    let product = code.mul(a, b);
    let plain = code.add(product, sum);
    let (a, b, less) = (code.mul(a, down), code.mul(b, down), code.mul(sum, down));
    let (product_less, less) = (code.mul(a, b), code.mul(less, down));
    let result = code.add(product_less, less);
    let result = code.mul(result, up);
    let result = code.mul(result, up);
    let size = code.unary(UnaryOp::Abs, product);
    let infinity = code.num(product, f64::INFINITY);
    let beyond = code.binary(BinaryOp::Eq, size, infinity);
    code.select(beyond, result, plain)
}
