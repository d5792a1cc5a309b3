//! The exponential function and what is made of it.
//!
//! Invariant: `x = n ln 2 + r` with an integer `n` and `|r| <= ln 2 / 2`; `n ln 2` is taken away in two parts, of
//! which the first has so few bits that its product with `n` is exact. `2^n` is multiplied in two steps, or in
//! one where the target scales, so that results below the normal numbers are rounded once and those too large become infinite.

use super::{layout, with_sign};
use crate::lower::build::At;
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{DType, scalar};

/// What differs between f32 and f64.
struct Format {
    /// Adding it rounds to an integer, which is then in the low bits of the sum.
    magic: f64,
    ln2_high: f64,
    ln2_low: f64,
    /// Below it the result is 0, above the other it is infinite.
    limits: (f64, f64),
    /// `(e^r - 1 - r) / r^2` for `|r| <= ln 2 / 2`.
    quadratic: &'static [f64],
    /// At twice this argument `tanh` is 1.
    twice_tanh_limit: f64,
}

/// Relative error of the polynomial in `e^r`: below 2^-26.
const SINGLE: Format = Format {
    magic: 12_582_912.0,
    ln2_high: 0.693_359_375,
    ln2_low: -0.000_212_194_440_054_690_57,
    limits: (-104.0, 89.0),
    quadratic: &[
        0.001_392_617_611_993_555_7,
        0.008_363_173_074_513_711,
        0.041_666_554_662_050_53,
        0.166_665_770_255_979_87,
        0.5,
    ],
    twice_tanh_limit: 20.0,
};

/// Relative error of the polynomial in `e^r`: below 2^-62.
const DOUBLE: Format = Format {
    magic: 6_755_399_441_055_744.0,
    ln2_high: 0.693_147_180_485_539_1,
    ln2_low: 7.440_617_110_012_397e-11,
    limits: (-746.0, 710.0),
    quadratic: &[
        2.091_467_937_658_394e-9,
        2.510_520_637_395_701e-8,
        2.755_727_366_134_863_7e-7,
        2.755_725_542_574_643e-6,
        2.480_158_732_553_336_3e-5,
        0.000_198_412_698_748_004_93,
        0.001_388_888_888_888_375_2,
        0.008_333_333_333_326_14,
        0.041_666_666_666_666_67,
        0.166_666_666_666_666_7,
        0.5,
    ],
    twice_tanh_limit: 44.0,
};

fn format(ty: VectorType) -> &'static Format {
    if ty.dtype == DType::F64 { &DOUBLE } else { &SINGLE }
}

/// `x = n ln 2 + r`.
struct Reduced {
    /// As a float.
    n: ValueId,
    /// With `n` as an integer in its low bits.
    shifted: ValueId,
    r: ValueId,
    /// `(e^r - 1 - r) / r^2`
    quadratic: ValueId,
}

fn reduce(code: &mut At<'_>, x: ValueId) -> Reduced {
    let ty = code.ty(x);
    let f = format(ty);
    let (log2e, magic) = (code.num(x, std::f64::consts::LOG2_E), code.num(x, f.magic));
    let shifted = code.fma(x, log2e, magic);
    let n = code.sub(shifted, magic);
    let (high, low) = (code.num(x, -f.ln2_high), code.num(x, -f.ln2_low));
    let r = code.fma(n, high, x);
    let r = code.fma(n, low, r);
    let quadratic = code.polynomial(r, f.quadratic);
    Reduced { n, shifted, r, quadratic }
}

/// The `n` of a reduction as an integer.
fn whole(code: &mut At<'_>, shifted: ValueId) -> ValueId {
    let ty = code.ty(shifted);
    let (f, (int, _)) = (format(ty), layout(ty));
    let bits = code.bits(int, shifted);
    let magic_bits = Constant::int(int, Constant::float(ty.dtype, f.magic).bits as i64);
    let magic_bits = code.constant(VectorType { dtype: int, ..ty }, magic_bits);
    code.sub(bits, magic_bits)
}

/// `2^n` as a float of the type, for `n` among the exponents of normal numbers.
fn power_of_two(code: &mut At<'_>, n: ValueId, dtype: DType) -> ValueId {
    let (_, fraction) = layout(VectorType { dtype, lanes: 1 });
    let biased = code.with(BinaryOp::Add, n, if dtype == DType::F64 { 1023.0 } else { 127.0 });
    let bits = code.with(BinaryOp::Shl, biased, fraction as f64);
    code.bits(dtype, bits)
}

/// `e^x`, for x within the limits of the format (or NaN), and 0 in the lanes that are `gone`: before `2^n` is multiplied, since processors of Intel take more than a hundred cycles
/// for each vector with a result that is too small to be one, as every row of a masked softmax has.
fn exp_within(code: &mut At<'_>, x: ValueId, gone: Option<ValueId>) -> ValueId {
    let dtype = code.ty(x).dtype;
    let Reduced { n, shifted, r, quadratic } = reduce(code, x);
    let one = code.num(x, 1.0);
    let linear = code.fma(quadratic, r, one);
    let mut power = code.fma(linear, r, one);
    if let Some(gone) = gone {
        let zero = code.num(x, 0.0);
        power = code.select(gone, zero, power);
    }
    if let Some(scaled) = code.scale(power, n) {
        return scaled;
    }
    let n = whole(code, shifted);
    let half = code.with(BinaryOp::Shr, n, 1.0);
    let rest = code.sub(n, half);
    let (half, rest) = (power_of_two(code, half, dtype), power_of_two(code, rest, dtype));
    let scaled = code.mul(power, half);
    code.mul(scaled, rest)
}

/// `e^x`.
pub(super) fn exp(code: &mut At<'_>, x: ValueId) -> ValueId {
    let (low, high) = format(code.ty(x)).limits;
    let x = code.with(BinaryOp::Max, x, low);
    let gone = code.with(BinaryOp::Le, x, low);
    let x = code.with(BinaryOp::Min, x, high);
    exp_within(code, x, Some(gone))
}

/// `e^x - 1`, for x from 0 to where `e^x` has the greatest exponent less 1 (or NaN).
pub(super) fn exp_minus_one(code: &mut At<'_>, x: ValueId) -> ValueId {
    let dtype = code.ty(x).dtype;
    let Reduced { shifted, r, quadratic, .. } = reduce(code, x);
    let square = code.mul(r, r);
    let part = code.fma(quadratic, square, r);
    let n = whole(code, shifted);
    let scale = power_of_two(code, n, dtype);
    let whole = code.with(BinaryOp::Sub, scale, 1.0);
    code.fma(part, scale, whole)
}

/// `tanh |x| = (e^2|x| - 1) / (e^2|x| + 1)`.
pub(super) fn tanh(code: &mut At<'_>, x: ValueId) -> ValueId {
    let limit = format(code.ty(x)).twice_tanh_limit;
    let magnitude = code.unary(UnaryOp::Abs, x);
    let twice = code.add(magnitude, magnitude);
    let twice = code.with(BinaryOp::Min, twice, limit);
    let above = exp_minus_one(code, twice);
    let below = code.with(BinaryOp::Add, above, 2.0);
    let quotient = code.div(above, below);
    with_sign(code, quotient, x)
}

/// `1 / (1 + e^-x)`, where x is negative as `e^x / (1 + e^x)`.
pub(super) fn sigmoid(code: &mut At<'_>, x: ValueId) -> ValueId {
    let magnitude = code.unary(UnaryOp::Abs, x);
    let minus = code.unary(UnaryOp::Neg, magnitude);
    let e = exp(code, minus);
    let (zero, one) = (code.num(x, 0.0), code.num(x, 1.0));
    let negative = code.binary(BinaryOp::Lt, x, zero);
    let above = code.select(negative, e, one);
    let below = code.add(one, e);
    code.div(above, below)
}

/// `erf(x) / x - 1` in `x^2`, for `|x| <= 0.92`; error below 2^-31.
const ERF_SMALL: [f64; 7] = [
    8.399_777_794_704_155e-5,
    -0.000_815_005_048_755_436_6,
    0.005_201_714_569_109_889,
    -0.026_859_690_654_925_65,
    0.112_837_011_702_068_15,
    -0.376_126_341_397_009,
    0.128_379_166_684_507_33,
];

/// `-ln(erfc x) / x` for `0.92 <= x <= 4`; error below 2^-22.
const ERF_LARGE: [f64; 8] = [
    -1.046_065_681_923_824_7e-6,
    3.438_850_877_177_664e-5,
    -0.000_498_825_008_150_723_6,
    0.004_303_789_307_578_727,
    -0.025_139_550_312_712_38,
    0.107_855_652_930_229_6,
    0.634_148_183_824_143_7,
    1.128_902_798_136_003_8,
];

/// The error function of f32: a polynomial near 0, elsewhere `1 - e^-p(|x|)`.
pub(super) fn erf(code: &mut At<'_>, x: ValueId) -> ValueId {
    let square = code.mul(x, x);
    let small = code.polynomial(square, &ERF_SMALL);
    let small = code.fma(x, small, x);
    let magnitude = code.unary(UnaryOp::Abs, x);
    let near = code.with(scalar::BinaryOp::Lt, magnitude, 0.92);
    let bounded = code.with(BinaryOp::Min, magnitude, 4.0);
    let p = code.polynomial(bounded, &ERF_LARGE);
    let p = code.mul(p, bounded);
    let minus = code.unary(UnaryOp::Neg, p);
    let e = exp_within(code, minus, None);
    let one = code.num(x, 1.0);
    let large = code.sub(one, e);
    let large = with_sign(code, large, x);
    code.select(near, small, large)
}
