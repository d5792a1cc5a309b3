//! The natural logarithm.
//!
//! Invariant: `x = 2^k m` with `sqrt(1/2) <= m < sqrt(2)`, so `m - 1` is exact and no sum of `k ln 2` and `ln m`
//! cancels; `k ln 2` is added in two parts, the first exact.

use super::layout;
use crate::lower::build::At;
use kiln_ir::DType;
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_ir::vector::{ValueId, VectorType};

/// `(ln(1 + f) - f + f^2 / 2) / f^3`; error in the logarithm below 2^-27 of it.
const SINGLE: [f64; 9] = [
    0.069_716_114_714_511_78,
    -0.114_797_338_466_376_37,
    0.116_854_199_234_867_4,
    -0.124_256_873_314_511_06,
    0.142_490_576_456_974_8,
    -0.166_678_023_195_012_54,
    0.200_007_157_488_921_03,
    -0.249_999_969_579_508_82,
    0.333_333_311_800_300_5,
];

/// `(2 atanh(s) / s - 2) / s^2` in `s^2`; error in the logarithm below 2^-57 of it.
const DOUBLE: [f64; 7] = [
    0.146_164_496_850_434_06,
    0.153_317_216_005_560_4,
    0.181_828_891_252_617_23,
    0.222_222_111_347_950_8,
    0.285_714_286_259_754_87,
    0.399_999_999_998_995_05,
    0.666_666_666_666_667,
];

/// The logarithm of f32 or f64.
pub(super) fn log(code: &mut At<'_>, x: ValueId) -> ValueId {
    let ty = code.ty(x);
    let ints = VectorType { dtype: layout(ty).0, ..ty };
    let fraction = layout(ty).1;
    let double = ty.dtype == DType::F64;
    // Numbers below the normal ones are scaled up first.
    let least = if double { f64::MIN_POSITIVE } else { f64::from(f32::MIN_POSITIVE) };
    let tiny = code.with(BinaryOp::Lt, x, least);
    let (scale, lift) = if double { (1.8014398509481984e+16, 54.0) } else { (33_554_432.0, 25.0) };
    let scaled = code.with(BinaryOp::Mul, x, scale);
    let scaled = code.select(tiny, scaled, x);
    let bits = code.bits(ints.dtype, scaled);
    // The bits of sqrt(1/2): what lies between it and sqrt(2) has k = 0.
    let root = Constant::float(ty.dtype, std::f64::consts::FRAC_1_SQRT_2).bits as i64;
    let root = code.constant(ints, Constant::int(ints.dtype, root));
    let above = code.sub(bits, root);
    let k = code.with(BinaryOp::Shr, above, fraction as f64);
    let exponent = code.with(BinaryOp::Shl, k, fraction as f64);
    let m = code.sub(bits, exponent);
    let m = code.bits(ty.dtype, m);
    let k = code.cast(ty.dtype, k);
    let lowered = code.with(BinaryOp::Sub, k, lift);
    let k = code.select(tiny, lowered, k);
    let f = code.with(BinaryOp::Sub, m, 1.0);
    let finite = if double { double_log(code, f, k) } else { single_log(code, f, k) };

    let (zero, infinity) = (code.num(x, 0.0), code.num(x, f64::INFINITY));
    let (minus, nan) = (code.num(x, f64::NEG_INFINITY), code.num(x, f64::NAN));
    let endless = code.binary(BinaryOp::Eq, x, infinity);
    let finite = code.select(endless, infinity, finite);
    let is_zero = code.binary(BinaryOp::Eq, x, zero);
    let other = code.select(is_zero, minus, nan);
    let positive = code.binary(BinaryOp::Gt, x, zero);
    code.select(positive, finite, other)
}

fn single_log(code: &mut At<'_>, f: ValueId, k: ValueId) -> ValueId {
    let square = code.mul(f, f);
    let cubic = code.polynomial(f, &SINGLE);
    let cube = code.mul(square, f);
    let rest = code.mul(cubic, cube);
    let low = code.num(f, -0.000_212_194_440_054_690_57);
    let rest = code.fma(k, low, rest);
    let minus_half = code.num(f, -0.5);
    let rest = code.fma(square, minus_half, rest);
    let sum = code.add(f, rest);
    let high = code.num(f, 0.693_359_375);
    code.fma(k, high, sum)
}

/// With `s = f / (2 + f)`: `ln(1 + f) = 2 atanh(s) = f - (f^2/2 - s (f^2/2 + R))`.
fn double_log(code: &mut At<'_>, f: ValueId, k: ValueId) -> ValueId {
    let below = code.with(BinaryOp::Add, f, 2.0);
    let s = code.div(f, below);
    let z = code.mul(s, s);
    let p = code.polynomial(z, &DOUBLE);
    let r = code.mul(z, p);
    let square = code.mul(f, f);
    let half = code.with(BinaryOp::Mul, square, 0.5);
    let sum = code.add(half, r);
    let low = code.num(f, 7.440_617_110_012_397e-11);
    let low = code.mul(k, low);
    let rest = code.fma(s, sum, low);
    let rest = code.sub(half, rest);
    let rest = code.sub(rest, f);
    let high = code.num(f, 0.693_147_180_485_539_1);
    let high = code.mul(k, high);
    code.sub(high, rest)
}
