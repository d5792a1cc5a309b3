//! Functions that no target has as an instruction, as vector operations.
//!
//! Invariant: the results do not depend on the target but for the roundings that fused multiply-add saves, are the
//! same in every lane, and lie within these bounds of the exact values (ulp: units in the last place of the result;
//! measured by the tests, over all magnitudes, with and without fused multiply-add):
//!
//! | function | f32 | f64 |
//! |---|---|---|
//! | `exp` | 1.5 ulp | 2 ulp |
//! | `log` | 1 ulp | 2 ulp |
//! | `tanh` | 2 ulp | 4 ulp |
//! | `sigmoid` | 2 ulp | 3 ulp |
//! | `erf` | 1.5 ulp | not there |
//! | `sin`, `cos`, `tan` (any argument), `asin`, `acos`, `atan` | 1 ulp | not there |
//! | `sinh`, `cosh`, `asinh`, `acosh`, `atanh` | 1 ulp | not there |
//! | `pow` | 1 ulp | not there |
//! | `rem`, `mod` | exact | not there |
//! | `recip`, `sign` | exact, one rounding | the same |
//!
//! Special values are those of IEEE 754 and C (`exp(-inf) = 0`, `log(0) = -inf`, `tanh(-0) = -0`, `pow(x, 0) = 1`);
//! a NaN gives a NaN. The f32 functions of 1 ulp other than `exp` and `log` are computed in f64, two lanes at a time.
//!
//! The polynomials are Chebyshev interpolations of the functions that their comments name.

mod exp;
mod log;
mod pairs;
mod power;
#[cfg(test)]
mod tests;
mod wide;

use super::build::At;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{Constant, DType};

pub(super) use pairs::{dot_of_pairs, pair};
pub(super) use power::{int_pow, pow, remainder};

/// The function of a float value; nothing where there is none for its type.
pub(super) fn unary(code: &mut At<'_>, op: UnaryOp, x: ValueId) -> Option<ValueId> {
    let double = code.ty(x).dtype == DType::F64;
    Some(match op {
        UnaryOp::Sign => {
            let (zero, one, minus) = (code.num(x, 0.0), code.num(x, 1.0), code.num(x, -1.0));
            let below = code.binary(BinaryOp::Lt, x, zero);
            let above = code.binary(BinaryOp::Gt, x, zero);
            // Zeros and NaN are their own sign.
            let result = code.select(below, minus, x);
            code.select(above, one, result)
        }
        UnaryOp::Recip => {
            let one = code.num(x, 1.0);
            code.div(one, x)
        }
        UnaryOp::Exp => exp::exp(code, x),
        UnaryOp::Tanh => exp::tanh(code, x),
        UnaryOp::Sigmoid => exp::sigmoid(code, x),
        UnaryOp::Log => log::log(code, x),
        UnaryOp::Erf if !double => exp::erf(code, x),
        UnaryOp::Erf
        | UnaryOp::Sin
        | UnaryOp::Cos
        | UnaryOp::Tan
        | UnaryOp::Asin
        | UnaryOp::Acos
        | UnaryOp::Atan
        | UnaryOp::Sinh
        | UnaryOp::Cosh
        | UnaryOp::Asinh
        | UnaryOp::Acosh
        | UnaryOp::Atanh => {
            return (!double).then(|| in_f64(code, &[x], |code, x| wide::unary(code, op, x[0])));
        }
        UnaryOp::Neg
        | UnaryOp::Abs
        | UnaryOp::Not
        | UnaryOp::Floor
        | UnaryOp::Ceil
        | UnaryOp::Round
        | UnaryOp::Trunc
        | UnaryOp::Sqrt => return None,
    })
}

/// Applies a function of f64 to f32 operands, as many lanes at a time as fit the vectors, and rounds its result.
fn in_f64(code: &mut At<'_>, operands: &[ValueId], mut f: impl FnMut(&mut At<'_>, &[ValueId]) -> ValueId) -> ValueId {
    let lanes = operands.first().map_or(1, |&v| code.ty(v).lanes);
    let group = (lanes / 2).max(1);
    let mut results = Vec::new();
    for first in (0..lanes).step_by(group as usize) {
        let mut wide = Vec::new();
        for &v in operands {
            let mut scalars = Vec::new();
            for lane in first..first + group {
                let scalar = code.extract(v, lane);
                scalars.push(code.cast(DType::F64, scalar));
            }
            wide.push(code.pack(scalars));
        }
        let result = f(code, &wide);
        for lane in 0..group {
            let scalar = code.extract(result, lane);
            results.push(code.cast(DType::F32, scalar));
        }
    }
    code.pack(results)
}

/// The integer type with as many bits as a float type, and how many of those are the fraction.
fn layout(ty: VectorType) -> (DType, i64) {
    if ty.dtype == DType::F64 { (DType::I64, 52) } else { (DType::I32, 23) }
}

/// `magnitude` (not negative) with the sign of `x`.
fn with_sign(code: &mut At<'_>, magnitude: ValueId, x: ValueId) -> ValueId {
    let ty = code.ty(x);
    let (int, _) = layout(ty);
    let least = if int == DType::I64 { i64::MIN } else { i64::from(i32::MIN) };
    let mask = code.constant(VectorType { dtype: int, ..ty }, Constant::int(int, least));
    let bits = code.bits(int, x);
    let sign = code.binary(BinaryOp::And, bits, mask);
    let bits = code.bits(int, magnitude);
    let signed = code.binary(BinaryOp::Or, bits, sign);
    code.bits(ty.dtype, signed)
}
