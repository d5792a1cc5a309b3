//! Powers and remainders.
//!
//! Invariant: all cases that C's `pow` and `fmod` define come out as there.

use super::{exp, in_f64, log, with_sign};
use crate::lower::build::At;
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{Class, DType};

/// `x^y` of f32, as `e^(y ln x)` in f64; nothing for f64.
pub(crate) fn pow(code: &mut At<'_>, x: ValueId, y: ValueId) -> Option<ValueId> {
    (code.ty(x).dtype == DType::F32).then(|| in_f64(code, &[x, y], |code, v| wide_pow(code, v[0], v[1])))
}

fn wide_pow(code: &mut At<'_>, x: ValueId, y: ValueId) -> ValueId {
    let (zero, one) = (code.num(x, 0.0), code.num(x, 1.0));
    let magnitude = code.unary(UnaryOp::Abs, x);
    let log = log::log(code, magnitude);
    let exponent = code.mul(y, log);
    let power = exp::exp(code, exponent);
    // 1 to any power, and anything to the power of 0, NaN included.
    let unit = code.binary(BinaryOp::Eq, magnitude, one);
    let numbers = code.binary(BinaryOp::Eq, y, y);
    let unit = code.binary(BinaryOp::And, unit, numbers);
    let power = code.select(unit, one, power);
    // A negative base: the sign of odd powers, and no number for those that are not whole.
    let floor = code.unary(UnaryOp::Floor, y);
    let whole = code.binary(BinaryOp::Eq, floor, y);
    let half = code.with(BinaryOp::Mul, y, 0.5);
    let half_floor = code.unary(UnaryOp::Floor, half);
    let uneven = code.binary(BinaryOp::Ne, half_floor, half);
    let odd = code.binary(BinaryOp::And, whole, uneven);
    let signed = with_sign(code, power, x);
    let signed = code.select(odd, signed, power);
    let negative = code.binary(BinaryOp::Lt, x, zero);
    let finite = code.with(BinaryOp::Gt, x, f64::NEG_INFINITY);
    let broken = code.unary(UnaryOp::Not, whole);
    let undefined = code.binary(BinaryOp::And, negative, finite);
    let undefined = code.binary(BinaryOp::And, undefined, broken);
    let nan = code.num(x, f64::NAN);
    let result = code.select(undefined, nan, signed);
    let positive_unit = code.binary(BinaryOp::Eq, x, one);
    let nothing = code.binary(BinaryOp::Eq, y, zero);
    let always_one = code.binary(BinaryOp::Or, positive_unit, nothing);
    code.select(always_one, one, result)
}

/// How often a quotient of f32 can be reduced by 27 bits: they have up to 277.
const STEPS: i64 = 11;

/// The remainder of f32 with the sign of the dividend, or with that of the divisor; nothing for f64.
pub(crate) fn remainder(code: &mut At<'_>, x: ValueId, y: ValueId, of_divisor: bool) -> Option<ValueId> {
    (code.ty(x).dtype == DType::F32)
        .then(|| in_f64(code, &[x, y], |code, v| wide_remainder(code, v[0], v[1], of_divisor)))
}

/// Takes away multiples of y with few enough bits that every product and difference is exact.
fn wide_remainder(code: &mut At<'_>, x: ValueId, y: ValueId, of_divisor: bool) -> ValueId {
    let ty = code.ty(x);
    let ints = VectorType { dtype: DType::I64, ..ty };
    let zero = code.num(x, 0.0);
    let steps = code.i64(STEPS);
    let results = code.repeat(steps, &[x], |code, inside| {
        let rest = inside[0];
        let quotient = code.div(rest, y);
        let bits = code.bits(DType::I64, quotient);
        // 28 significant bits.
        let mask = code.constant(ints, Constant::int(DType::I64, -1 << 25));
        let bits = code.binary(BinaryOp::And, bits, mask);
        let quotient = code.bits(DType::F64, bits);
        let quotient = code.unary(UnaryOp::Trunc, quotient);
        let minus = code.unary(UnaryOp::Neg, quotient);
        vec![code.fma(minus, y, rest)]
    });
    let rest = results.first().copied().unwrap_or(x);
    // A quotient that was rounded up left a rest of the other sign.
    let divisor = code.unary(UnaryOp::Abs, y);
    let divisor = with_sign(code, divisor, x);
    let corrected = code.add(rest, divisor);
    let product = code.mul(rest, divisor);
    let wrong = code.binary(BinaryOp::Lt, product, zero);
    let rest = code.select(wrong, corrected, rest);
    let magnitude = code.unary(UnaryOp::Abs, rest);
    let rest = with_sign(code, magnitude, x);
    // Of a finite number and an infinite divisor the number itself is left.
    let endless = code.with(BinaryOp::Eq, divisor, f64::INFINITY);
    let minus_endless = code.with(BinaryOp::Eq, divisor, f64::NEG_INFINITY);
    let endless = code.binary(BinaryOp::Or, endless, minus_endless);
    let size = code.unary(UnaryOp::Abs, x);
    let finite = code.with(BinaryOp::Lt, size, f64::INFINITY);
    let kept = code.binary(BinaryOp::And, endless, finite);
    let rest = code.select(kept, x, rest);
    if !of_divisor {
        return rest;
    }
    let moved = code.add(rest, y);
    let below = code.binary(BinaryOp::Lt, rest, zero);
    let divisor_below = code.binary(BinaryOp::Lt, y, zero);
    let differ = code.binary(BinaryOp::Xor, below, divisor_below);
    let there = code.binary(BinaryOp::Ne, rest, zero);
    let differ = code.binary(BinaryOp::And, differ, there);
    code.select(differ, moved, rest)
}

/// `x^y` of integers, by squaring; a negative exponent gives the truncated fraction.
pub(crate) fn int_pow(code: &mut At<'_>, x: ValueId, y: ValueId) -> ValueId {
    let dtype = code.ty(x).dtype;
    let (zero, one) = (code.int(x, 0), code.int(x, 1));
    let bits = code.i64(i64::from(dtype.bits()));
    let results = code.repeat(bits, &[one, x, y], |code, inside| {
        let [result, square, left] = [inside[0], inside[1], inside[2]];
        let product = code.mul(result, square);
        let low = code.binary(BinaryOp::And, left, one);
        let set = code.binary(BinaryOp::Ne, low, zero);
        let result = code.select(set, product, result);
        let square = code.mul(square, square);
        vec![result, square, code.binary(BinaryOp::Shr, left, one)]
    });
    let result = results.first().copied().unwrap_or(one);
    if dtype.class() != Class::Signed {
        return result;
    }
    let minus = code.int(x, -1);
    let low = code.binary(BinaryOp::And, y, one);
    let even = code.binary(BinaryOp::Eq, low, zero);
    let alternating = code.select(even, one, minus);
    let is_minus = code.binary(BinaryOp::Eq, x, minus);
    let fraction = code.select(is_minus, alternating, zero);
    let is_one = code.binary(BinaryOp::Eq, x, one);
    let fraction = code.select(is_one, one, fraction);
    let negative = code.binary(BinaryOp::Lt, y, zero);
    code.select(negative, fraction, result)
}
