//! Functions of f32, computed in f64.
//!
//! Invariant: the argument is an f32 widened to f64, and the result is off by less than 2^-28 of itself before it
//! is rounded to f32.

use super::{exp, log, with_sign};
use crate::lower::build::At;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::vector::ValueId;
use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};

/// One of the functions that [`super::unary`] sends here; the value itself for any other.
pub(super) fn unary(code: &mut At<'_>, op: UnaryOp, x: ValueId) -> ValueId {
    match op {
        UnaryOp::Sin | UnaryOp::Cos | UnaryOp::Tan => circular(code, op, x),
        UnaryOp::Atan => atan(code, x),
        UnaryOp::Asin => {
            let squared = one_minus_square(code, x);
            let cosine = code.unary(UnaryOp::Sqrt, squared);
            let tangent = code.div(x, cosine);
            atan(code, tangent)
        }
        UnaryOp::Acos => {
            let one = code.num(x, 1.0);
            let (above, below) = (code.sub(one, x), code.add(one, x));
            let quotient = code.div(above, below);
            let tangent = code.unary(UnaryOp::Sqrt, quotient);
            let half = atan(code, tangent);
            code.add(half, half)
        }
        UnaryOp::Sinh => {
            let em = bounded_exp_minus_one(code, x);
            let e = code.with(BinaryOp::Add, em, 1.0);
            let quotient = code.div(em, e);
            let sum = code.add(em, quotient);
            let half = code.with(BinaryOp::Mul, sum, 0.5);
            with_sign(code, half, x)
        }
        UnaryOp::Cosh => {
            let em = bounded_exp_minus_one(code, x);
            let e = code.with(BinaryOp::Add, em, 1.0);
            let one = code.num(x, 1.0);
            let inverse = code.div(one, e);
            let sum = code.add(e, inverse);
            code.with(BinaryOp::Mul, sum, 0.5)
        }
        UnaryOp::Asinh => {
            // ln(s + sqrt(s^2 + 1)) = ln(1 + s + s^2 / (1 + sqrt(s^2 + 1)))
            let s = code.unary(UnaryOp::Abs, x);
            let square = code.mul(s, s);
            let hypotenuse = code.with(BinaryOp::Add, square, 1.0);
            let hypotenuse = code.unary(UnaryOp::Sqrt, hypotenuse);
            let below = code.with(BinaryOp::Add, hypotenuse, 1.0);
            let quotient = code.div(square, below);
            let sum = code.add(s, quotient);
            let result = log_one_plus(code, sum);
            let infinite = code.with(BinaryOp::Eq, s, f64::INFINITY);
            let result = code.select(infinite, s, result);
            with_sign(code, result, x)
        }
        UnaryOp::Acosh => {
            // With t = x - 1: ln(1 + t + sqrt(2 t + t^2))
            let t = code.with(BinaryOp::Sub, x, 1.0);
            let twice = code.add(t, t);
            let square = code.fma(t, t, twice);
            let root = code.unary(UnaryOp::Sqrt, square);
            let sum = code.add(t, root);
            let result = log_one_plus(code, sum);
            let nan = code.num(x, f64::NAN);
            let below = code.with(BinaryOp::Lt, x, 1.0);
            code.select(below, nan, result)
        }
        UnaryOp::Atanh => {
            // ln((1 + s) / (1 - s)) / 2 = ln(1 + 2 s / (1 - s)) / 2
            let s = code.unary(UnaryOp::Abs, x);
            let one = code.num(x, 1.0);
            let below = code.sub(one, s);
            let twice = code.add(s, s);
            let quotient = code.div(twice, below);
            let result = log_one_plus(code, quotient);
            let half = code.with(BinaryOp::Mul, result, 0.5);
            with_sign(code, half, x)
        }
        UnaryOp::Neg
        | UnaryOp::Abs
        | UnaryOp::Sign
        | UnaryOp::Not
        | UnaryOp::Floor
        | UnaryOp::Ceil
        | UnaryOp::Round
        | UnaryOp::Trunc
        | UnaryOp::Sqrt
        | UnaryOp::Recip
        | UnaryOp::Exp
        | UnaryOp::Log
        | UnaryOp::Tanh
        | UnaryOp::Erf
        | UnaryOp::Sigmoid => x,
    }
}

fn one_minus_square(code: &mut At<'_>, x: ValueId) -> ValueId {
    let one = code.num(x, 1.0);
    let (below, above) = (code.sub(one, x), code.add(one, x));
    code.mul(below, above)
}

/// `e^|x| - 1`, finite: far beyond f32 it stops growing.
fn bounded_exp_minus_one(code: &mut At<'_>, x: ValueId) -> ValueId {
    let magnitude = code.unary(UnaryOp::Abs, x);
    let bounded = code.with(BinaryOp::Min, magnitude, 600.0);
    exp::exp_minus_one(code, bounded)
}

/// `ln(1 + x)` for x that is not -1: the logarithm of the rounded sum and what the rounding left out.
fn log_one_plus(code: &mut At<'_>, x: ValueId) -> ValueId {
    let u = code.with(BinaryOp::Add, x, 1.0);
    let whole = code.with(BinaryOp::Sub, u, 1.0);
    let rest = code.sub(x, whole);
    let rest = code.div(rest, u);
    let log = log::log(code, u);
    let sum = code.add(log, rest);
    let infinite = code.with(BinaryOp::Eq, u, f64::INFINITY);
    code.select(infinite, u, sum)
}

/// `(atan(x) - x) / x^3` in `x^2`, for `|x| <= tan(pi/8)`; error below 2^-40.
const ATAN: [f64; 8] = [
    0.032_956_795_418_701_36,
    -0.060_273_074_609_466_75,
    0.076_048_000_460_782_92,
    -0.090_841_018_953_464_3,
    0.111_108_197_167_456_76,
    -0.142_857_081_103_604,
    0.199_999_999_949_854_8,
    -0.333_333_333_332_662,
];

/// The arc whose tangent is x: `atan s = pi/2 - atan(1/s) = pi/4 + atan((s - 1) / (s + 1))`.
fn atan(code: &mut At<'_>, x: ValueId) -> ValueId {
    let s = code.unary(UnaryOp::Abs, x);
    let far = code.with(BinaryOp::Gt, s, 1.0 + std::f64::consts::SQRT_2);
    let middle = code.with(BinaryOp::Gt, s, std::f64::consts::SQRT_2 - 1.0);
    let (zero, one, minus) = (code.num(x, 0.0), code.num(x, 1.0), code.num(x, -1.0));
    let (less, more) = (code.sub(s, one), code.add(s, one));
    let above = code.select(middle, less, s);
    let above = code.select(far, minus, above);
    let below = code.select(middle, more, one);
    let below = code.select(far, s, below);
    let (quarter, half) = (code.num(x, FRAC_PI_4), code.num(x, FRAC_PI_2));
    let base = code.select(middle, quarter, zero);
    let base = code.select(far, half, base);
    let y = code.div(above, below);
    let z = code.mul(y, y);
    let p = code.polynomial(z, &ATAN);
    let cubic = code.mul(z, y);
    let arc = code.fma(p, cubic, y);
    let arc = code.add(base, arc);
    with_sign(code, arc, x)
}

/// 2/pi in parts of 28 bits, so that the product of each with an f32 is exact.
const TWO_OVER_PI: [f64; 9] = [
    0.636_619_769_036_769_9,
    3.330_811_473_856_165_6e-9,
    2.276_010_047_810_136e-18,
    2.526_826_018_900_282_2e-26,
    1.668_286_765_701_952_5e-34,
    1.158_871_328_288_855e-43,
    7.053_959_174_404_295e-52,
    8.910_067_885_731_021e-60,
    3.227_204_670_555_102e-68,
];

/// `sin(pi r / 2) / r` in `r^2` for `|r| <= 1/2`; error below 2^-47.
const SIN: [f64; 6] = [
    -3.556_386_260_704_784e-6,
    0.000_160_429_265_044_956_16,
    -0.004_681_752_591_458_208,
    0.079_692_626_155_746_03,
    -0.645_964_097_504_309,
    FRAC_PI_2,
];

/// `cos(pi r / 2)` in `r^2` for `|r| <= 1/2`; error below 2^-54.
const COS: [f64; 7] = [
    4.655_296_187_486_762e-7,
    -2.520_013_526_428_479e-5,
    0.000_919_259_950_041_660_9,
    -0.020_863_480_734_946_57,
    0.253_669_507_899_864_7,
    -1.233_700_550_136_151_3,
    1.0,
];

/// Sine, cosine or tangent. `x = (4 m + q + r) pi/2` with an integer m, q in 0..4 and `|r| <= 1/2`, by the product with
/// 2/pi of which every part is reduced modulo 4 exactly, as Payne and Hanek do.
fn circular(code: &mut At<'_>, op: UnaryOp, x: ValueId) -> ValueId {
    let (quarter, minus_four) = (code.num(x, 0.25), code.num(x, -4.0));
    let mut turns = None;
    for part in TWO_OVER_PI {
        let part = code.num(x, part);
        let product = code.mul(x, part);
        let fourth = code.mul(product, quarter);
        let whole = code.unary(UnaryOp::Round, fourth);
        let rest = code.fma(whole, minus_four, product);
        turns = Some(match turns {
            Some(sum) => code.add(sum, rest),
            None => rest,
        });
    }
    let turns = turns.unwrap_or(x);
    let q = code.unary(UnaryOp::Round, turns);
    let r = code.sub(turns, q);
    let z = code.mul(r, r);
    let p = code.polynomial(z, &SIN);
    let sine = code.mul(p, r);
    let cosine = code.polynomial(z, &COS);
    // q modulo 4, as 0, 1, 2 or 3.
    let fourth = code.mul(q, quarter);
    let whole = code.unary(UnaryOp::Floor, fourth);
    let q = code.fma(whole, minus_four, q);
    let is = |code: &mut At<'_>, n: f64| code.with(BinaryOp::Eq, q, n);
    let (one, two, three) = (is(code, 1.0), is(code, 2.0), is(code, 3.0));
    let odd = code.binary(BinaryOp::Or, one, three);
    let upper = code.binary(BinaryOp::Or, two, three);
    let middle = code.binary(BinaryOp::Or, one, two);
    let signed = |code: &mut At<'_>, a: ValueId, b: ValueId, negative: ValueId| {
        let value = code.select(odd, a, b);
        let minus = code.unary(UnaryOp::Neg, value);
        code.select(negative, minus, value)
    };
    let sin = |code: &mut At<'_>| {
        let value = signed(code, cosine, sine, upper);
        // Only the sign of a zero was lost.
        let zero = code.with(BinaryOp::Eq, x, 0.0);
        code.select(zero, x, value)
    };
    match op {
        UnaryOp::Sin => sin(code),
        UnaryOp::Cos => signed(code, sine, cosine, middle),
        _ => {
            let above = sin(code);
            let below = signed(code, sine, cosine, middle);
            code.div(above, below)
        }
    }
}
