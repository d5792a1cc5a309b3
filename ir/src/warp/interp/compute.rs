//! Operations on the registers of one thread, and matrix products of one warp.

use crate::dtype::{Class, DType};
use crate::float8;
use crate::scalar::{BinaryOp, Constant, UnaryOp};
use crate::semantics;
use crate::warp::Factor;

/// The f32 of a value's bits.
pub(super) fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// The bits of an f32.
pub(super) fn bits(value: f32) -> u64 {
    u64::from(value.to_bits())
}

pub(super) fn unary(op: UnaryOp, dtype: DType, a: u64) -> u64 {
    match dtype.class() {
        Class::Float => bits(semantics::unary_f32(op, float(a))),
        Class::Signed | Class::Unsigned | Class::Bool | Class::Double | Class::Complex | Class::Str => {
            semantics::unary_int(op, dtype, a as i64).unwrap_or(0) as u64
        }
    }
}

pub(super) fn binary(op: BinaryOp, dtype: DType, a: u64, b: u64) -> u64 {
    if dtype.class() == Class::Float {
        let (a, b) = (float(a), float(b));
        return semantics::compare(op, a, b).map_or_else(|| bits(semantics::binary_f32(op, a, b)), u64::from);
    }
    let compared = match dtype.class() {
        Class::Unsigned => semantics::compare(op, a, b),
        Class::Signed | Class::Bool | Class::Float | Class::Double | Class::Complex | Class::Str => {
            semantics::compare(op, a as i64, b as i64)
        }
    };
    match compared {
        Some(holds) => u64::from(holds),
        None => semantics::binary_int(op, dtype, a as i64, b as i64).unwrap_or(0) as u64,
    }
}

pub(super) fn cast(to: DType, from: Constant) -> u64 {
    match (from.dtype.class(), to.class()) {
        (Class::Float, Class::Float) => bits(semantics::round_to(to, float(from.bits))),
        (Class::Float, _) => semantics::float_to_int(to, f64::from(float(from.bits))) as u64,
        (Class::Unsigned, Class::Float) => bits(from.bits as f32),
        (_, Class::Float) => bits(from.bits as i64 as f32),
        (_, Class::Bool) => u64::from(from.bits != 0),
        (_, _) => semantics::wrap(to, from.bits as i64) as u64,
    }
}

/// Two f32 as a pair of a narrower type.
pub(super) fn pack(to: DType, low: u64, high: u64) -> u64 {
    if to.is_ofp8() {
        return [low, high].iter().rev().fold(0, |word, &v| word << 8 | u64::from(float8::encode(to, float(v), true)));
    }
    let mut bytes = Vec::with_capacity(4);
    [low, high].into_iter().for_each(|v| semantics::store_f32(to, float(v), &mut bytes));
    bytes.iter().rev().fold(0, |word, &b| word << 8 | u64::from(b))
}

/// An f32 rounded to 11 bits, the one farther from zero of two.
pub(super) fn tf32(a: u64) -> u64 {
    if float(a).is_nan() { 0x7fff_ffff } else { u64::from((a as u32).wrapping_add(0x1000) & 0xffff_e000) }
}

/// The n-th number of a register of the left side, or of the right one.
fn element(factor: Factor, register: u64, n: usize, left: bool) -> f64 {
    let bits = register >> (32 / factor.numbers() * n);
    if let Some([of_left, of_right]) = factor.floats_of_8_bits() {
        return f64::from(float8::decode(if left { of_left } else { of_right }, bits as u8));
    }
    let half = |dtype| f64::from(semantics::load_f32(dtype, &(bits as u16).to_le_bytes(), 0));
    match factor {
        Factor::F16 => half(DType::F16),
        Factor::BF16 => half(DType::BF16),
        Factor::TF32 => f64::from(float(bits & 0xffff_e000)),
        Factor::UnsignedSigned | Factor::SignedUnsigned if left == (factor == Factor::UnsignedSigned) => {
            f64::from(bits as u8)
        }
        // The others were decoded.
        _ => f64::from(bits as i8),
    }
}

/// `a · b + c` of all warps; the operands are 4 registers of `a`, 2 of `b` and 4 of `c`, over all threads.
pub(super) fn mma(factor: Factor, operands: &[&[u64]], threads: usize) -> Vec<Vec<u64>> {
    let register = |n: usize, t: usize| operands.get(n).and_then(|o| o.get(t)).copied().unwrap_or(0);
    let each = factor.numbers();
    let mut results = vec![vec![0u64; threads]; 4];
    for warp in (0..threads).step_by(32) {
        let (mut a, mut b) = ([[0.0f64; 32]; 16], [[0.0f64; 8]; 32]);
        for lane in 0..32 {
            let (group, first) = (lane / 4, each * (lane % 4));
            for n in 0..each {
                for r in 0..4 {
                    let of = register(r, warp + lane);
                    a[group + 8 * (r % 2)][first + n + 4 * each * (r / 2)] = element(factor, of, n, true);
                }
                for r in 0..2 {
                    b[first + n + 4 * each * r][group] = element(factor, register(4 + r, warp + lane), n, false);
                }
            }
        }
        for lane in 0..32 {
            for (r, result) in results.iter_mut().enumerate() {
                let (row, column) = (lane / 4 + 8 * (r / 2), 2 * (lane % 4) + r % 2);
                let c = register(6 + r, warp + lane);
                let sum = |first| a[row].iter().zip(&b).fold(first, |sum, (x, y)| sum + x * y[column]);
                if let Some(slot) = result.get_mut(warp + lane) {
                    *slot = match factor.sums() {
                        // Whole numbers far below 2^53.
                        DType::I32 => i64::from((c as i32).wrapping_add(sum(0.0) as i32)) as u64,
                        _ => bits(sum(f64::from(float(c))) as f32),
                    };
                }
            }
        }
    }
    results
}
