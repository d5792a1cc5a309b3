//! What every scalar operation means: the one table that the interpreters and all backends follow.
//!
//! Invariant: every function here is total. The rules that other systems leave open:
//!
//! | case | result |
//! |---|---|
//! | integer `+ - * neg abs` out of range | wraps at the type's width |
//! | integer division by zero | 0 |
//! | `MIN / -1` | `MIN` (wraps) |
//! | integer `rem`, `mod` by zero | 0 |
//! | shift by the width or more | 0 (arithmetic right shift of a negative: -1) |
//! | negative shift count | as its unsigned value, so by the width or more |
//! | integer power with a negative exponent | truncated rational (0, ±1) |
//! | `min`, `max` of floats with a NaN | NaN |
//! | `min`, `max` of -0 and +0 | either zero, -0 counts as less |
//! | float to integer | truncates towards zero, saturates, NaN gives 0 |
//! | integer to narrower integer | keeps the low bits |
//! | float to bool | NaN is true, ±0 false |
//! | `round` | half to even |
//! | `dot4` of i32 | sum of the four products of an unsigned byte of the left and the signed byte of the right at its place |
//! | `pair` of f32 | both rounded to bf16 (half to even), the left one in bits 0..16 of the i32, the right one above it |
//! | `dot2` of i32 | product of the high halves as bf16, plus that of the low ones, in f32, rounded once; onto a sum: one rounding for each product. Subnormal numbers may count as 0 |
//! | `sign` of NaN | NaN |
//! | f16, bf16, f8 arithmetic | computed in f32, each operation rounded to the type |

use crate::dtype::{Class, DType};
use crate::scalar::{BinaryOp, UnaryOp};
use half::{bf16, f16};

fn chunk<const N: usize>(bytes: &[u8], i: usize) -> [u8; N] {
    bytes.as_chunks::<N>().0.get(i).copied().unwrap_or([0; N])
}

/// Element `i` of row-major data as i64 (bool as 0 or 1, u64 by its bits, floats truncated by the cast rule).
pub fn load_i64(dtype: DType, bytes: &[u8], i: usize) -> i64 {
    match dtype {
        DType::Bool => i64::from(bytes.get(i).is_some_and(|&b| b != 0)),
        DType::I8 | DType::I4 | DType::I2 => i64::from(bytes.get(i).copied().unwrap_or(0) as i8),
        DType::U8 | DType::U4 | DType::U2 => i64::from(bytes.get(i).copied().unwrap_or(0)),
        DType::I16 => i64::from(i16::from_le_bytes(chunk(bytes, i))),
        DType::U16 => i64::from(u16::from_le_bytes(chunk(bytes, i))),
        DType::I32 => i64::from(i32::from_le_bytes(chunk(bytes, i))),
        DType::U32 => i64::from(u32::from_le_bytes(chunk(bytes, i))),
        DType::I64 | DType::U64 => i64::from_le_bytes(chunk(bytes, i)),
        DType::F4E2M1
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0
        | DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64 => load_f64(dtype, bytes, i) as i64,
        DType::C64 | DType::C128 | DType::Str | DType::Seq => 0,
    }
}

/// Element `i` of row-major data as f32, for types of class [`Class::Float`]; exact.
pub fn load_f32(dtype: DType, bytes: &[u8], i: usize) -> f32 {
    match dtype {
        DType::F32 => f32::from_le_bytes(chunk(bytes, i)),
        DType::F16 => f16::from_le_bytes(chunk(bytes, i)).to_f32(),
        DType::BF16 => bf16::from_le_bytes(chunk(bytes, i)).to_f32(),
        DType::F4E2M1 | DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ | DType::F8E8M0 => {
            crate::float8::decode(dtype, bytes.get(i).copied().unwrap_or(0))
        }
        other => load_f64(other, bytes, i) as f32,
    }
}

/// Element `i` of row-major data as f64 (u64 and i64 rounded to nearest).
pub fn load_f64(dtype: DType, bytes: &[u8], i: usize) -> f64 {
    match dtype.class() {
        Class::Double => f64::from_le_bytes(chunk(bytes, i)),
        Class::Float => f64::from(load_f32(dtype, bytes, i)),
        Class::Unsigned => load_i64(dtype, bytes, i) as u64 as f64,
        Class::Signed | Class::Bool => load_i64(dtype, bytes, i) as f64,
        Class::Complex | Class::Str => 0.0,
    }
}

/// Appends an f32 as an element of a type of class [`Class::Float`], rounding to nearest even.
pub fn store_f32(dtype: DType, value: f32, out: &mut Vec<u8>) {
    match dtype {
        DType::F16 => out.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
        DType::BF16 => out.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
        DType::F4E2M1 | DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ | DType::F8E8M0 => {
            // An infinity here is one that the type has: conversions have saturated before.
            out.push(crate::float8::encode(dtype, value, !value.is_infinite()))
        }
        _ => out.extend_from_slice(&value.to_le_bytes()),
    }
}

/// Appends an i64 as an element of an integer or bool type, keeping its low bits.
pub fn store_i64(dtype: DType, value: i64, out: &mut Vec<u8>) {
    match dtype.size() {
        1 => out.push(value as u8),
        2 => out.extend_from_slice(&(value as i16).to_le_bytes()),
        4 => out.extend_from_slice(&(value as i32).to_le_bytes()),
        _ => out.extend_from_slice(&value.to_le_bytes()),
    }
}

/// Rounds an f32 to the values of a type of class [`Class::Float`].
pub fn round_to(dtype: DType, value: f32) -> f32 {
    match dtype {
        DType::F16 => f16::from_f32(value).to_f32(),
        DType::BF16 => bf16::from_f32(value).to_f32(),
        DType::F4E2M1 | DType::F8E4M3FN | DType::F8E4M3FNUZ | DType::F8E5M2 | DType::F8E5M2FNUZ | DType::F8E8M0 => {
            crate::float8::decode(dtype, crate::float8::encode(dtype, value, true))
        }
        _ => value,
    }
}

/// Rounds an f64 once to the values of a type of class [`Class::Float`].
pub fn narrow(dtype: DType, value: f64) -> f32 {
    let nearest = value as f32;
    if dtype == DType::F32 || f64::from(nearest) == value || value.is_nan() {
        return round_to(dtype, nearest);
    }
    // Round to odd first: an inexact f32 with its last bit set rounds to a narrower type as the exact value does.
    let towards_zero =
        if f64::from(nearest).abs() > value.abs() { f32::from_bits(nearest.to_bits() - 1) } else { nearest };
    round_to(dtype, f32::from_bits(towards_zero.to_bits() | 1))
}

/// Brings an integer into the range of its type by keeping the low bits; everything but 0 is true.
pub fn wrap(dtype: DType, value: i64) -> i64 {
    let unused = 64 - dtype.bits().clamp(1, 64);
    match dtype.class() {
        Class::Unsigned => ((value as u64) << unused >> unused) as i64,
        Class::Bool => i64::from(value != 0),
        _ => value << unused >> unused,
    }
}

/// The unary operation on an f32.
pub fn unary_f32(op: UnaryOp, x: f32) -> f32 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Sign if x.is_nan() || x == 0.0 => x,
        UnaryOp::Sign => x.signum(),
        UnaryOp::Not => f32::from(u8::from(x == 0.0)),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Trunc => x.trunc(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Recip => 1.0 / x,
        // The rest in f64 and rounded once: the interpreters are oracles.
        _ => unary_f64(op, f64::from(x)) as f32,
    }
}

/// The unary operation on an f64.
pub fn unary_f64(op: UnaryOp, x: f64) -> f64 {
    match op {
        UnaryOp::Neg => -x,
        UnaryOp::Abs => x.abs(),
        UnaryOp::Sign if x.is_nan() || x == 0.0 => x,
        UnaryOp::Sign => x.signum(),
        UnaryOp::Not => f64::from(u8::from(x == 0.0)),
        UnaryOp::Floor => x.floor(),
        UnaryOp::Ceil => x.ceil(),
        UnaryOp::Round => x.round_ties_even(),
        UnaryOp::Trunc => x.trunc(),
        UnaryOp::Sqrt => x.sqrt(),
        UnaryOp::Recip => 1.0 / x,
        UnaryOp::Exp => libm::exp(x),
        UnaryOp::Log => libm::log(x),
        UnaryOp::Sin => libm::sin(x),
        UnaryOp::Cos => libm::cos(x),
        UnaryOp::Tan => libm::tan(x),
        UnaryOp::Asin => libm::asin(x),
        UnaryOp::Acos => libm::acos(x),
        UnaryOp::Atan => libm::atan(x),
        UnaryOp::Sinh => libm::sinh(x),
        UnaryOp::Cosh => libm::cosh(x),
        UnaryOp::Tanh => libm::tanh(x),
        UnaryOp::Asinh => libm::asinh(x),
        // libm's answer is a number for large negative arguments.
        UnaryOp::Acosh if x < 1.0 => f64::NAN,
        UnaryOp::Acosh => libm::acosh(x),
        UnaryOp::Atanh => libm::atanh(x),
        UnaryOp::Erf => libm::erf(x),
        // Either way nothing overflows.
        UnaryOp::Sigmoid if x < 0.0 => libm::exp(x) / (1.0 + libm::exp(x)),
        UnaryOp::Sigmoid => 1.0 / (1.0 + libm::exp(-x)),
    }
}

/// The unary operation on an integer or bool of the type; `None` where it is not defined on integers.
pub fn unary_int(op: UnaryOp, dtype: DType, x: i64) -> Option<i64> {
    let y = match op {
        UnaryOp::Neg => x.wrapping_neg(),
        UnaryOp::Abs if dtype.class() == Class::Signed => x.wrapping_abs(),
        UnaryOp::Sign if dtype.class() == Class::Signed => x.signum(),
        UnaryOp::Sign => i64::from(x != 0),
        UnaryOp::Not if dtype == DType::Bool => return Some(i64::from(x == 0)),
        UnaryOp::Not => !x,
        UnaryOp::Abs | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round | UnaryOp::Trunc => x,
        UnaryOp::Sqrt
        | UnaryOp::Recip
        | UnaryOp::Exp
        | UnaryOp::Log
        | UnaryOp::Sin
        | UnaryOp::Cos
        | UnaryOp::Tan
        | UnaryOp::Asin
        | UnaryOp::Acos
        | UnaryOp::Atan
        | UnaryOp::Sinh
        | UnaryOp::Cosh
        | UnaryOp::Tanh
        | UnaryOp::Asinh
        | UnaryOp::Acosh
        | UnaryOp::Atanh
        | UnaryOp::Erf
        | UnaryOp::Sigmoid => return None,
    };
    Some(wrap(dtype, y))
}

/// The comparison, where the operation is one.
pub fn compare<T: PartialOrd>(op: BinaryOp, a: T, b: T) -> Option<bool> {
    Some(match op {
        BinaryOp::Eq => a == b,
        BinaryOp::Ne => a != b,
        BinaryOp::Lt => a < b,
        BinaryOp::Le => a <= b,
        BinaryOp::Gt => a > b,
        BinaryOp::Ge => a >= b,
        _ => return None,
    })
}

/// The binary operation on f32, comparisons and bitwise operations excepted (they give NaN).
pub fn binary_f32(op: BinaryOp, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Min | BinaryOp::Max | BinaryOp::Mod => binary_f64(op, f64::from(a), f64::from(b)) as f32,
        BinaryOp::Pow => libm::pow(f64::from(a), f64::from(b)) as f32,
        _ => f32::NAN,
    }
}

/// The binary operation on f64, comparisons and bitwise operations excepted (they give NaN).
pub fn binary_f64(op: BinaryOp, a: f64, b: f64) -> f64 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Rem => a % b,
        BinaryOp::Mod => {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) { r + b } else { r }
        }
        BinaryOp::Pow => libm::pow(a, b),
        BinaryOp::Min | BinaryOp::Max if a.is_nan() || b.is_nan() => f64::NAN,
        BinaryOp::Min if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        BinaryOp::Max if a == b => {
            if a.is_sign_negative() {
                b
            } else {
                a
            }
        }
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        _ => f64::NAN,
    }
}

/// The binary operation on integers (or bools) of the type, comparisons excepted.
/// u64 comes as its bits. `None` where the operation is a comparison, [`pair`] or [`dot2`].
pub fn binary_int(op: BinaryOp, dtype: DType, a: i64, b: i64) -> Option<i64> {
    let unsigned = dtype.class() != Class::Signed;
    let (ua, ub) = (a as u64, b as u64);
    let y = match op {
        BinaryOp::Add if dtype == DType::Bool => a | b,
        BinaryOp::Mul if dtype == DType::Bool => a & b,
        BinaryOp::Add => a.wrapping_add(b),
        BinaryOp::Sub => a.wrapping_sub(b),
        BinaryOp::Mul => a.wrapping_mul(b),
        BinaryOp::Div | BinaryOp::Rem | BinaryOp::Mod if b == 0 => 0,
        BinaryOp::Div if unsigned => (ua / ub) as i64,
        BinaryOp::Div => a.wrapping_div(b),
        BinaryOp::Rem | BinaryOp::Mod if unsigned => (ua % ub) as i64,
        BinaryOp::Rem => a.wrapping_rem(b),
        BinaryOp::Mod => {
            let r = a.wrapping_rem(b);
            if r != 0 && (r < 0) != (b < 0) { r + b } else { r }
        }
        BinaryOp::Pow => int_pow(dtype, a, b),
        BinaryOp::Min if unsigned => ua.min(ub) as i64,
        BinaryOp::Max if unsigned => ua.max(ub) as i64,
        BinaryOp::Min => a.min(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::And => a & b,
        BinaryOp::Or => a | b,
        BinaryOp::Xor => a ^ b,
        BinaryOp::Shl if ub >= u64::from(dtype.bits()) => 0,
        BinaryOp::Shl => a << ub,
        BinaryOp::Shr if ub >= u64::from(dtype.bits()) => {
            if unsigned || a >= 0 {
                0
            } else {
                -1
            }
        }
        BinaryOp::Shr if unsigned => (ua >> ub) as i64,
        BinaryOp::Shr => a >> ub,
        BinaryOp::Dot4 => dot4(a, b),
        BinaryOp::Pair | BinaryOp::Dot2 => return None,
        BinaryOp::Eq | BinaryOp::Ne | BinaryOp::Lt | BinaryOp::Le | BinaryOp::Gt | BinaryOp::Ge => return None,
    };
    Some(if dtype == DType::Bool { i64::from(y != 0) } else { wrap(dtype, y) })
}

/// The dot product of the low four bytes, unsigned those of `a` and signed those of `b`: at most 130,560 in size.
/// The dot product of four unsigned bytes and four signed ones, each four the low half of a number.
pub fn dot4(a: i64, b: i64) -> i64 {
    let (a, b) = ((a as i32).to_le_bytes(), (b as i32).to_le_bytes());
    a.iter().zip(b).map(|(&a, b)| i64::from(a) * i64::from(b as i8)).sum()
}

/// Two numbers rounded to bf16 as one i32, the first one in the low half.
pub fn pair(low: f32, high: f32) -> i64 {
    let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    i64::from((bits(high) << 16 | bits(low)) as i32)
}

/// The sum and the dot product of two [`pair`]s. The product of two bf16 is exact; so each step rounds once.
pub fn dot2(a: i64, b: i64, sum: f32) -> f32 {
    let low = |x: i64| f32::from_bits((x as u32) << 16);
    let high = |x: i64| f32::from_bits(x as u32 & 0xffff_0000);
    low(a).mul_add(low(b), high(a).mul_add(high(b), sum))
}

/// The least and (exclusively) the greatest size of a number with [`parts`]. Products of the parts of such numbers, and their sums,
/// do not overflow, as long as the other number is a weight below [`MOST_OF_A_WEIGHT`]. A product of parts below 2^-126 may
/// count as 0, as matrix registers have it.
pub const LEAST_IN_PARTS: f32 = f32::from_bits(27 << 23);
/// See [`LEAST_IN_PARTS`].
pub const MOST_IN_PARTS: f32 = f32::from_bits(191 << 23);
/// See [`LEAST_IN_PARTS`].
pub const MOST_OF_A_WEIGHT: f32 = f32::from_bits(159 << 23);

/// Three bf16, each of them what the ones before leave rounded to the nearest, whose sum is a weight. Nothing where it is not finite, too
/// large or too small.
pub fn parts(x: f32) -> Option<[f32; 3]> {
    let size = x.abs();
    if size == 0.0 {
        return Some([x, 0.0, 0.0]);
    }
    if !(LEAST_IN_PARTS..MOST_OF_A_WEIGHT).contains(&size) {
        return None;
    }
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    let first = rounded(x);
    let second = rounded(x - first);
    Some([first, second, x - first - second])
}

fn int_pow(dtype: DType, base: i64, exponent: i64) -> i64 {
    if dtype.class() == Class::Signed && exponent < 0 {
        return match base {
            1 => 1,
            -1 if exponent % 2 == 0 => 1,
            -1 => -1,
            _ => 0,
        };
    }
    let (mut result, mut square, mut left) = (1i64, base, exponent as u64);
    while left > 0 {
        if left & 1 == 1 {
            result = result.wrapping_mul(square);
        }
        square = square.wrapping_mul(square);
        left >>= 1;
    }
    result
}

/// An f64 (or exact f32) to an integer type: truncates, saturates, NaN to 0; u64 is returned by its bits.
pub fn float_to_int(dtype: DType, x: f64) -> i64 {
    match dtype.int_range() {
        Some(_) if dtype == DType::U64 => x as u64 as i64,
        Some((lo, hi)) => (x as i64).clamp(lo as i64, hi as i64),
        None => i64::from(x != 0.0),
    }
}
