//! Functions of f32 that GPUs have no precise instruction for.
//!
//! Invariant: results lie within 3 units in the last place of the exact values (measured by the tests, with an exact
//! [`Op::Exp2`]); special values are those of IEEE 754 and C, and a NaN gives a NaN.

use super::build::Builder;
use kiln_ir::DType;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::warp::{Op, ValueId};

/// `e^(1/t^2) erfc(1/t)` for `1/4 <= t <= 1`: a Chebyshev interpolation; the error in erf is below 2^-29.
const SCALED_ERFC: [f64; 8] = [
    0.000_381_532_294_406_575_36,
    0.557_292_635_049_893_6,
    0.053_599_493_621_485_44,
    -0.513_899_122_398_201_8,
    0.589_897_173_002_435_8,
    -0.368_562_558_616_786_33,
    0.128_479_450_597_535_52,
    -0.019_605_029_368_399_21,
];

impl Builder {
    /// `e^x` of f32: `2^n 2^f` with an integer `n` and `|f| <= 1/2`, where `x log2(e)` is taken in two parts so that
    /// `f` is exact to 2^-30. `2^n` is multiplied in two steps, so that results below the normal numbers are rounded
    /// once and those too large become infinite.
    pub fn exp(&mut self, x: ValueId) -> ValueId {
        let code = self;
        let (low, high) = (code.float(-104.0), code.float(89.0));
        let x = code.binary(BinaryOp::Max, x, low);
        let x = code.binary(BinaryOp::Min, x, high);
        let log2e = std::f64::consts::LOG2_E;
        let first = code.float(log2e);
        let second = code.float(log2e - f64::from(log2e as f32));
        // Numbers of this size have no fraction bits left, so the sum is rounded to an integer, in its low bits.
        let magic = code.float(12_582_912.0);
        let sum = code.fma(x, first, magic);
        let n = code.binary(BinaryOp::Sub, sum, magic);
        let minus = code.unary(UnaryOp::Neg, n);
        let f = code.fma(x, first, minus);
        let f = code.fma(x, second, f);
        let fraction = code.op(DType::F32, Op::Exp2(f));
        let low_bits = code.op(DType::I32, Op::Bitcast(DType::I32, sum));
        let n = code.with(BinaryOp::Sub, low_bits, i64::from(12_582_912.0f32.to_bits()));
        let half = code.with(BinaryOp::Shr, n, 1);
        let rest = code.binary(BinaryOp::Sub, n, half);
        [half, rest].into_iter().fold(fraction, |result, n| {
            let biased = code.with(BinaryOp::Add, n, 127);
            let bits = code.with(BinaryOp::Shl, biased, 23);
            let power = code.op(DType::F32, Op::Bitcast(DType::F32, bits));
            code.binary(BinaryOp::Mul, result, power)
        })
    }

    /// `ln x = k ln 2 + ln m` with `sqrt(1/2) <= m < sqrt(2)`, and `ln m = 2 atanh(s)` with `s = (m - 1) / (m + 1)`, whose
    /// series converges fast because `|s| < 0.172`.
    pub fn log(&mut self, x: ValueId) -> ValueId {
        // Numbers below the normal ones are scaled up by 2^25 first.
        let least = self.float(f64::from(f32::MIN_POSITIVE));
        let tiny = self.binary(BinaryOp::Lt, x, least);
        let scaled = self.times(x, 33_554_432.0);
        let scaled = self.select(tiny, scaled, x);
        let bits = self.op(DType::I32, Op::Bitcast(DType::I32, scaled));
        // What lies between sqrt(1/2) and sqrt(2) has k = 0.
        let root = i64::from(std::f32::consts::FRAC_1_SQRT_2.to_bits());
        let above = self.with(BinaryOp::Sub, bits, root);
        let k = self.with(BinaryOp::Shr, above, 23);
        let exponent = self.with(BinaryOp::Shl, k, 23);
        let m = self.binary(BinaryOp::Sub, bits, exponent);
        let m = self.op(DType::F32, Op::Bitcast(DType::F32, m));
        let (none, lift) = (self.int(DType::I32, 0), self.int(DType::I32, 25));
        let lift = self.select(tiny, lift, none);
        let k = self.binary(BinaryOp::Sub, k, lift);
        let k = self.cast(DType::F32, k);
        let f = self.plus(m, -1.0);
        let sum = self.plus(m, 1.0);
        let s = self.binary(BinaryOp::Div, f, sum);
        let square = self.binary(BinaryOp::Mul, s, s);
        // 2 atanh(s) = f - s (f - s^2 (2/3 + 2/5 s^2 + ...)), because 2 s = f - s f.
        let series = self.polynomial(square, &[2.0 / 3.0, 2.0 / 5.0, 2.0 / 7.0, 2.0 / 9.0]);
        let tail = self.binary(BinaryOp::Mul, square, series);
        let inner = self.binary(BinaryOp::Sub, f, tail);
        let ln2 = std::f64::consts::LN_2;
        // The first part of ln 2 has so few bits that its product with k is exact.
        let high = f64::from(f32::from_bits((ln2 as f32).to_bits() & 0xffff_f000));
        let low = self.float(ln2 - high);
        let minus = self.unary(UnaryOp::Neg, s);
        let correction = self.binary(BinaryOp::Mul, minus, inner);
        let correction = self.fma(k, low, correction);
        let fine = self.binary(BinaryOp::Add, correction, f);
        let high = self.float(high);
        let result = self.fma(k, high, fine);
        // Of zeros, infinity, negative numbers and NaN.
        let [zero, infinity, lowest, nan] = [0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN].map(|v| self.float(v));
        let is_infinite = self.binary(BinaryOp::Eq, x, infinity);
        let result = self.select(is_infinite, infinity, result);
        let positive = self.binary(BinaryOp::Gt, x, zero);
        let result = self.select(positive, result, nan);
        let is_zero = self.binary(BinaryOp::Eq, x, zero);
        self.select(is_zero, lowest, result)
    }

    /// `1 / (1 + e^-|x|)`, below zero times `e^-|x|`: neither power overflows.
    pub fn sigmoid(&mut self, x: ValueId) -> ValueId {
        let magnitude = self.unary(UnaryOp::Abs, x);
        let minus = self.unary(UnaryOp::Neg, magnitude);
        let power = self.exp(minus);
        let (zero, one) = (self.float(0.0), self.float(1.0));
        let sum = self.add(one, power);
        let below = self.binary(BinaryOp::Lt, x, zero);
        let share = self.select(below, power, one);
        self.binary(BinaryOp::Div, share, sum)
    }

    /// The quotient of the series of sinh and cosh near zero, `1 - 2 / (e^2|x| + 1)` elsewhere.
    pub fn tanh(&mut self, x: ValueId) -> ValueId {
        let square = self.binary(BinaryOp::Mul, x, x);
        let sinh = self.polynomial(square, &[1.0, 1.0 / 6.0, 1.0 / 120.0, 1.0 / 5040.0, 1.0 / 362_880.0]);
        let sinh = self.binary(BinaryOp::Mul, sinh, x);
        let cosh = self.polynomial(square, &[1.0, 0.5, 1.0 / 24.0, 1.0 / 720.0, 1.0 / 40_320.0, 1.0 / 3_628_800.0]);
        let near = self.binary(BinaryOp::Div, sinh, cosh);
        let magnitude = self.unary(UnaryOp::Abs, x);
        let twice = self.add(magnitude, magnitude);
        let power = self.exp(twice);
        let power = self.plus(power, 1.0);
        let (one, two) = (self.float(1.0), self.float(2.0));
        let rest = self.binary(BinaryOp::Div, two, power);
        let far = self.binary(BinaryOp::Sub, one, rest);
        let far = self.with_sign_of(far, x);
        let bound = self.float(0.625);
        let is_near = self.binary(BinaryOp::Lt, magnitude, bound);
        self.select(is_near, near, far)
    }

    /// The Taylor series up to 1, `1 - erfc(x)` beyond.
    pub fn erf(&mut self, x: ValueId) -> ValueId {
        let square = self.binary(BinaryOp::Mul, x, x);
        // (-1)^n / (n! (2n + 1)), times 2 / sqrt(pi).
        let mut factorial = 1.0;
        let series: Vec<f64> = (0..12)
            .map(|n| {
                let n = f64::from(n);
                factorial *= n.max(1.0);
                let sign = if n % 2.0 == 0.0 { 1.0 } else { -1.0 };
                std::f64::consts::FRAC_2_SQRT_PI * sign / (factorial * (2.0 * n + 1.0))
            })
            .collect();
        let near = self.polynomial(square, &series);
        let near = self.binary(BinaryOp::Mul, near, x);
        let magnitude = self.unary(UnaryOp::Abs, x);
        let (one, four) = (self.float(1.0), self.float(4.0));
        // From 4 on the result is 1; a NaN stays.
        let clamped = self.binary(BinaryOp::Min, magnitude, four);
        let clamped = self.binary(BinaryOp::Max, clamped, one);
        let inverse = self.binary(BinaryOp::Div, one, clamped);
        let scaled = self.polynomial(inverse, &SCALED_ERFC);
        let negative = self.unary(UnaryOp::Neg, clamped);
        let exponent = self.binary(BinaryOp::Mul, negative, clamped);
        let power = self.exp(exponent);
        let negative = self.unary(UnaryOp::Neg, scaled);
        let far = self.fma(negative, power, one);
        let far = self.with_sign_of(far, x);
        let is_near = self.binary(BinaryOp::Lt, magnitude, one);
        self.select(is_near, near, far)
    }

    fn times(&mut self, x: ValueId, factor: f64) -> ValueId {
        let factor = self.float(factor);
        self.binary(BinaryOp::Mul, x, factor)
    }

    fn plus(&mut self, x: ValueId, summand: f64) -> ValueId {
        let summand = self.float(summand);
        self.add(x, summand)
    }

    /// The polynomial with these coefficients, that of the constant first.
    fn polynomial(&mut self, x: ValueId, coefficients: &[f64]) -> ValueId {
        let mut rest = coefficients.iter().rev();
        let first = self.float(rest.next().copied().unwrap_or(0.0));
        rest.fold(first, |sum, &c| {
            let c = self.float(c);
            self.fma(sum, x, c)
        })
    }

    /// A number that is not negative with the sign of another.
    fn with_sign_of(&mut self, x: ValueId, sign: ValueId) -> ValueId {
        let zero = self.float(0.0);
        let negative = self.unary(UnaryOp::Neg, x);
        let below = self.binary(BinaryOp::Lt, sign, zero);
        self.select(below, negative, x)
    }
}
