//! What arithmetic instructions compute, one lane at a time.
//!
//! Invariant: every function is total. A register's bits are those of the type that was written, above which all are 0;
//! each function looks only at the bits of the types it reads. The approximate functions are computed exactly here; the
//! error that they may have is added by their caller.
//!
//! Source: "Parallel Thread Execution ISA", chapter 9.7.

use half::{bf16, f16};

/// A scalar type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ty {
    Pred,
    U8,
    S8,
    U16,
    S16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    F32,
    F64,
}

impl Ty {
    /// The type of that name; untyped bits are unsigned.
    pub fn parse(name: &str) -> Option<Ty> {
        Some(match name {
            "pred" => Ty::Pred,
            "b8" | "u8" => Ty::U8,
            "s8" => Ty::S8,
            "b16" | "u16" => Ty::U16,
            "s16" => Ty::S16,
            "b32" | "u32" => Ty::U32,
            "s32" => Ty::S32,
            "b64" | "u64" => Ty::U64,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::BF16,
            "bf16x2" => Ty::BF16x2,
            "f32" => Ty::F32,
            "f64" => Ty::F64,
            _ => return None,
        })
    }

    pub fn bytes(self) -> usize {
        match self {
            Ty::Pred | Ty::U8 | Ty::S8 => 1,
            Ty::U16 | Ty::S16 | Ty::F16 | Ty::BF16 => 2,
            Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::BF16x2 => 4,
            Ty::U64 | Ty::S64 | Ty::F64 => 8,
        }
    }

    pub fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::BF16 | Ty::BF16x2 | Ty::F32 | Ty::F64)
    }

    pub fn mask(self) -> u64 {
        if self == Ty::Pred { 1 } else { u64::MAX >> (64 - 8 * self.bytes()) }
    }

    /// The value that a load of this type leaves in a register: sign-extended, or with zeros above.
    pub fn extend(self, bits: u64) -> u64 {
        if self.is_signed() { int(self, bits) as u64 } else { bits & self.mask() }
    }
}

/// The bits as an integer.
pub(super) fn int(ty: Ty, bits: u64) -> i128 {
    match ty {
        Ty::S8 => i128::from(bits as i8),
        Ty::S16 => i128::from(bits as i16),
        Ty::S32 => i128::from(bits as i32),
        Ty::S64 => i128::from(bits as i64),
        other => i128::from(bits & other.mask()),
    }
}

/// Floats as f64: exact.
pub(super) fn float(ty: Ty, bits: u64) -> f64 {
    match ty {
        Ty::F16 | Ty::F16x2 => f64::from(f16::from_bits(bits as u16)),
        Ty::BF16 | Ty::BF16x2 => f64::from(bf16::from_bits(bits as u16)),
        Ty::F64 => f64::from_bits(bits),
        _ => f64::from(f32::from_bits(bits as u32)),
    }
}

/// How a result is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Round {
    #[default]
    Nearest,
    Zero,
    Down,
    Up,
}

/// The bits of an f64 rounded to the type. A NaN becomes the one that the hardware makes.
pub(super) fn rounded(ty: Ty, value: f64, round: Round) -> u64 {
    if ty == Ty::F64 {
        return value.to_bits();
    }
    if value.is_nan() {
        return match ty {
            Ty::F32 => 0x7fff_ffff,
            _ => 0x7fff,
        };
    }
    let bits = |v: f64| match ty {
        Ty::F16 | Ty::F16x2 => u64::from(f16::from_f64(v).to_bits()),
        Ty::BF16 | Ty::BF16x2 => u64::from(to_bf16(v).to_bits()),
        _ => u64::from((v as f32).to_bits()),
    };
    let nearest = bits(value);
    let back = float(ty, nearest);
    let sign = 1u64 << (8 * if matches!(ty, Ty::F32) { 4 } else { 2 } - 1);
    let towards_zero = |b: u64| if b & (sign - 1) == 0 { b } else { b - 1 };
    let away = |b: u64| b + 1;
    match round {
        Round::Nearest => nearest,
        Round::Zero if back.abs() > value.abs() => towards_zero(nearest),
        Round::Down if back > value => {
            if nearest & sign != 0 {
                away(nearest)
            } else if nearest == 0 {
                sign | 1
            } else {
                towards_zero(nearest)
            }
        }
        Round::Up if back < value => {
            if nearest & sign == 0 {
                away(nearest)
            } else if nearest == sign {
                1
            } else {
                towards_zero(nearest)
            }
        }
        Round::Zero | Round::Down | Round::Up => nearest,
    }
}

/// An f64 rounded once to bf16.
fn to_bf16(value: f64) -> bf16 {
    bf16::from_f32(odd(value))
}

/// An f64 as the f32 that rounds to narrower types as the f64 does: rounded to odd.
fn odd(value: f64) -> f32 {
    let nearest = value as f32;
    if f64::from(nearest) == value || !nearest.is_finite() {
        return nearest;
    }
    let zero = if f64::from(nearest).abs() > value.abs() { nearest.to_bits() - 1 } else { nearest.to_bits() };
    f32::from_bits(zero | 1)
}

/// Zero in place of a number below the normal ones.
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// An operation on two integers of a type, or a shift by an unsigned count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IntOp {
    Add,
    Sub,
    Mul,
    MulHi,
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    Shl,
    Shr,
    Neg,
    Abs,
    Not,
    Popc,
    Clz,
    Brev,
    Bfind,
    BfindShift,
    Cnot,
}

pub(super) fn int_op(op: IntOp, ty: Ty, a: u64, b: u64) -> u64 {
    // The common ones first, in the width that they have.
    match (op, ty) {
        (IntOp::Add, Ty::U32 | Ty::S32) => return u64::from((a as u32).wrapping_add(b as u32)),
        (IntOp::Mul, Ty::U32 | Ty::S32) => return u64::from((a as u32).wrapping_mul(b as u32)),
        (IntOp::Add, Ty::U64 | Ty::S64) => return a.wrapping_add(b),
        (IntOp::And, _) => return a & b & ty.mask(),
        (IntOp::Or, _) => return (a | b) & ty.mask(),
        (IntOp::Xor, _) => return (a ^ b) & ty.mask(),
        (IntOp::Not, _) => return !a & ty.mask(),
        _ => {}
    }
    let bits = 8 * ty.bytes() as u32;
    let (x, y) = (int(ty, a), int(ty, b));
    let count = (b as u32).min(bits);
    let unsigned = a & ty.mask();
    let result = match op {
        IntOp::Add => x + y,
        IntOp::Sub => x - y,
        IntOp::Mul => x.wrapping_mul(y),
        IntOp::MulHi => x.wrapping_mul(y) >> bits,
        IntOp::MulWide => return x.wrapping_mul(y) as u64 & u64::MAX >> (64 - (2 * bits).min(64)),
        // What the manual leaves open is all ones here.
        IntOp::Div if y == 0 => -1,
        IntOp::Div => x / y,
        IntOp::Rem if y == 0 => -1,
        IntOp::Rem => x % y,
        IntOp::Min => x.min(y),
        IntOp::Max => x.max(y),
        IntOp::And | IntOp::Or | IntOp::Xor | IntOp::Not => 0,
        IntOp::Shl => return if count >= bits { 0 } else { unsigned << count & ty.mask() },
        IntOp::Shr => x >> count,
        IntOp::Neg => -x,
        IntOp::Abs => x.abs(),
        IntOp::Popc => return u64::from(unsigned.count_ones()),
        IntOp::Clz => return u64::from(unsigned.leading_zeros() - (64 - bits)),
        IntOp::Brev => return unsigned.reverse_bits() >> (64 - bits),
        IntOp::Bfind | IntOp::BfindShift => {
            let of = if ty.is_signed() && x < 0 { !unsigned & ty.mask() } else { unsigned };
            let place = 63u32.wrapping_sub(of.leading_zeros());
            return u64::from(if of == 0 {
                u32::MAX
            } else if op == IntOp::Bfind {
                place
            } else {
                bits - 1 - place
            });
        }
        IntOp::Cnot => return u64::from(unsigned == 0),
    };
    result as u64 & ty.mask()
}

/// An operation on one or two floats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FloatOp {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Neg,
    Abs,
    Sqrt,
    Rsqrt,
    Rcp,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Copysign,
}

/// How a float instruction is modified.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub(super) struct Mode {
    pub ftz: bool,
    pub sat: bool,
    pub round: Round,
    /// Relative error that the result may have, in units of 2^-23; 0 for an exact instruction.
    pub error: f32,
}

fn two_or_one(ty: Ty, a: u64, b: u64, f: impl Fn(f64, f64) -> u64) -> u64 {
    match ty {
        Ty::F16x2 | Ty::BF16x2 => {
            let part = |n: u32| f(float(ty, a >> n), float(ty, b >> n)) & 0xffff;
            part(0) | part(16) << 16
        }
        _ => f(float(ty, a), float(ty, b)),
    }
}

pub(super) fn float_op(op: FloatOp, ty: Ty, mode: Mode, a: u64, b: u64) -> u64 {
    let (a, b) = if mode.ftz && ty == Ty::F32 { (flushed(a), flushed(b)) } else { (a, b) };
    if ty == Ty::F32 && mode.round == Round::Nearest && !mode.sat {
        let (x, y) = (f32::from_bits(a as u32), f32::from_bits(b as u32));
        let exact = match op {
            FloatOp::Add => Some(x + y),
            FloatOp::Sub => Some(x - y),
            FloatOp::Mul => Some(x * y),
            _ => None,
        };
        if let Some(z) = exact {
            return u64::from(if z.is_nan() { 0x7fff_ffff } else { (if mode.ftz { flush(z) } else { z }).to_bits() });
        }
    }
    let result = match op {
        // Signs are bits: a NaN keeps its own.
        FloatOp::Neg => return a ^ signs(ty),
        FloatOp::Abs => return a & !signs(ty),
        FloatOp::Copysign => return b & !signs(ty) | a & signs(ty),
        _ => two_or_one(ty, a, b, |x, y| {
            let nan = x.is_nan() || y.is_nan();
            let value = match op {
                FloatOp::Add => x + y,
                FloatOp::Sub => x - y,
                FloatOp::Mul => x * y,
                // Rounding twice gives the same for a quotient and a root of f32.
                FloatOp::Div => x / y,
                FloatOp::MinNan | FloatOp::MaxNan if nan => f64::NAN,
                FloatOp::Min | FloatOp::MinNan => {
                    if x.is_nan() || !y.is_nan() && (y < x || x == y && y.is_sign_negative()) { y } else { x }
                }
                FloatOp::Max | FloatOp::MaxNan => {
                    if x.is_nan() || !y.is_nan() && (y > x || x == y && x.is_sign_negative()) { y } else { x }
                }
                FloatOp::Sqrt => x.sqrt(),
                FloatOp::Rsqrt => 1.0 / x.sqrt(),
                FloatOp::Rcp => 1.0 / x,
                FloatOp::Ex2 => x.exp2(),
                FloatOp::Lg2 => x.log2(),
                FloatOp::Sin => x.sin(),
                FloatOp::Cos => x.cos(),
                FloatOp::Tanh => x.tanh(),
                FloatOp::Neg | FloatOp::Abs | FloatOp::Copysign => x,
            };
            let value = if mode.sat { if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) } } else { value };
            rounded(ty, value, mode.round)
        }),
    };
    if mode.ftz && ty == Ty::F32 { flushed(result) } else { result }
}

fn flushed(bits: u64) -> u64 {
    u64::from(flush(f32::from_bits(bits as u32)).to_bits())
}

fn signs(ty: Ty) -> u64 {
    match ty {
        Ty::F16 | Ty::BF16 => 1 << 15,
        Ty::F16x2 | Ty::BF16x2 => 1 << 31 | 1 << 15,
        Ty::F64 => 1 << 63,
        _ => 1 << 31,
    }
}

/// `a * b + c` with one rounding.
pub(super) fn fma(ty: Ty, mode: Mode, a: u64, b: u64, c: u64) -> u64 {
    match ty {
        Ty::F32 => {
            let f = |bits: u64| if mode.ftz { flush(f32::from_bits(bits as u32)) } else { f32::from_bits(bits as u32) };
            let exact = if mode.round == Round::Nearest {
                f(a).mul_add(f(b), f(c))
            } else {
                let sum = f64::from(f(a)).mul_add(f64::from(f(b)), f64::from(f(c)));
                f32::from_bits(rounded(Ty::F32, sum, mode.round) as u32)
            };
            let value = if mode.sat { if exact.is_nan() { 0.0 } else { exact.clamp(0.0, 1.0) } } else { exact };
            let value = if mode.ftz { flush(value) } else { value };
            if value.is_nan() { 0x7fff_ffff } else { u64::from(value.to_bits()) }
        }
        Ty::F64 => float(ty, a).mul_add(float(ty, b), float(ty, c)).to_bits(),
        Ty::F16x2 | Ty::BF16x2 => {
            let part =
                |n: u32| rounded(ty, float(ty, a >> n).mul_add(float(ty, b >> n), float(ty, c >> n)), mode.round);
            part(0) & 0xffff | (part(16) & 0xffff) << 16
        }
        _ => rounded(ty, float(ty, a).mul_add(float(ty, b), float(ty, c)), mode.round),
    }
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compare {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

impl Compare {
    pub fn parse(name: &str) -> Option<Compare> {
        use Compare::*;
        let all = [
            ("eq", Eq),
            ("ne", Ne),
            ("lt", Lt),
            ("lo", Lt),
            ("le", Le),
            ("ls", Le),
            ("gt", Gt),
            ("hi", Gt),
            ("ge", Ge),
            ("hs", Ge),
            ("equ", Equ),
            ("neu", Neu),
            ("ltu", Ltu),
            ("leu", Leu),
            ("gtu", Gtu),
            ("geu", Geu),
            ("num", Num),
            ("nan", Nan),
        ];
        all.iter().find(|(n, _)| *n == name).map(|(_, c)| *c)
    }
}

pub(super) fn compare(c: Compare, ty: Ty, a: u64, b: u64) -> bool {
    use std::cmp::Ordering::*;
    let order = if ty.is_float() { float(ty, a).partial_cmp(&float(ty, b)) } else { Some(int(ty, a).cmp(&int(ty, b))) };
    match c {
        Compare::Eq => order == Some(Equal),
        // Ordered: false of a NaN.
        Compare::Ne => matches!(order, Some(Less | Greater)),
        Compare::Lt => order == Some(Less),
        Compare::Le => matches!(order, Some(Less | Equal)),
        Compare::Gt => order == Some(Greater),
        Compare::Ge => matches!(order, Some(Greater | Equal)),
        Compare::Equ => matches!(order, Some(Equal) | None),
        Compare::Neu => order != Some(Equal),
        Compare::Ltu => matches!(order, Some(Less) | None),
        Compare::Leu => order != Some(Greater),
        Compare::Gtu => matches!(order, Some(Greater) | None),
        Compare::Geu => order != Some(Less),
        Compare::Num => order.is_some(),
        Compare::Nan => order.is_none(),
    }
}

/// How a conversion rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Convert {
    /// To an integer: `rni`, `rzi`, `rmi`, `rpi`.
    pub to_int: Option<Round>,
    pub round: Round,
    pub sat: bool,
    pub ftz: bool,
    pub relu: bool,
}

pub(super) fn convert(to: Ty, from: Ty, mode: Convert, bits: u64) -> u64 {
    let bits = if mode.ftz && from == Ty::F32 { flushed(bits) } else { bits };
    if !from.is_float() {
        let x = int(from, bits);
        if to.is_float() {
            // Through f64 both roundings are exact but for 64-bit integers, which have their own way to f32.
            return match to {
                Ty::F32 if mode.round == Round::Nearest => u64::from((x as f32).to_bits()),
                _ => rounded(to, x as f64, mode.round),
            };
        }
        if mode.sat {
            let (lo, hi) = range(to);
            return x.clamp(lo, hi) as u64 & to.mask();
        }
        return x as u64 & to.mask();
    }
    let x = float(from, bits);
    let whole = |x: f64, round: Round| match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
    };
    if !to.is_float() {
        let (lo, hi) = range(to);
        if x.is_nan() {
            // The manual: 0, but the highest bit of 64-bit results.
            return if to.bytes() == 8 { 1 << 63 } else { 0 };
        }
        let value = whole(x, mode.to_int.unwrap_or(Round::Zero));
        return (value as i128).clamp(lo, hi) as u64 & to.mask();
    }
    let x = mode.to_int.map_or(x, |round| whole(x, round));
    let x = if mode.sat { if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) } } else { x };
    let x = if mode.relu && x < 0.0 { 0.0 } else { x };
    let result = rounded(to, x, mode.round);
    if mode.ftz && to == Ty::F32 { flushed(result) } else { result }
}

fn range(ty: Ty) -> (i128, i128) {
    let bits = 8 * ty.bytes() as u32;
    if ty.is_signed() { (-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) } else { (0, (1i128 << bits) - 1) }
}

/// `lop3` by its table.
pub(super) fn lop3(a: u64, b: u64, c: u64, table: u64) -> u64 {
    (0..8).filter(|n| table >> n & 1 != 0).fold(0u64, |sum, n| {
        let pick = |x: u64, bit: u64| if n & bit != 0 { x } else { !x };
        sum | pick(a, 4) & pick(b, 2) & pick(c, 1)
    }) & 0xffff_ffff
}

/// `prmt` in its general form.
pub(super) fn prmt(a: u64, b: u64, selector: u64) -> u64 {
    let bytes = a & 0xffff_ffff | b << 32;
    (0..4).fold(0, |sum, n| {
        let s = selector >> (4 * n);
        let byte = bytes >> (8 * (s & 7)) & 0xff;
        let byte = if s & 8 != 0 { if byte & 0x80 != 0 { 0xff } else { 0 } } else { byte };
        sum | byte << (8 * n)
    })
}

/// `bfe`: `length` bits from `position` on.
pub(super) fn bfe(ty: Ty, a: u64, position: u64, length: u64) -> u64 {
    let bits = 8 * ty.bytes() as u64;
    let (position, length) = (position & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let sign = ty.is_signed() && a >> (position + length - 1).min(bits - 1) & 1 != 0;
    (0..bits).fold(0, |sum, n| {
        let bit = if n < length && position + n < bits { a >> (position + n) & 1 } else { u64::from(sign) };
        sum | bit << n
    })
}

/// `bfi`: the low bits of `a` in place of `length` bits of `b` from `position` on.
pub(super) fn bfi(ty: Ty, a: u64, b: u64, position: u64, length: u64) -> u64 {
    let bits = 8 * ty.bytes() as u64;
    let (position, length) = (position & 0xff, length & 0xff);
    let end = (position + length).min(bits);
    (position.min(bits)..end).fold(b & ty.mask(), |sum, n| sum & !(1 << n) | (a >> (n - position) & 1) << n)
}

/// `dp4a`: the products of four bytes added to the third operand; which sides have signs.
pub(super) fn dot_of_bytes((left, right): (bool, bool), a: u64, b: u64, c: u64) -> u64 {
    let byte = |word: u64, n: usize, signed: bool| {
        let byte = (word >> (8 * n)) as u8;
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    let sum = (0..4).fold(c as i32, |sum, n| sum.wrapping_add(byte(a, n, left) * byte(b, n, right)));
    u64::from(sum as u32)
}

/// `shf`: 64 bits of `b` and `a` shifted, of which 32 are kept.
pub(super) fn shf(left: bool, wrap: bool, a: u64, b: u64, count: u64) -> u64 {
    let both = a & 0xffff_ffff | b << 32;
    let count = if wrap { count & 31 } else { (count & 0xffff_ffff).min(32) };
    let shifted = if left { (u128::from(both) << count >> 32) as u64 } else { both >> count };
    shifted & 0xffff_ffff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_manual_says() {
        assert_eq!(prmt(0x3322_1100, 0x7766_5544, 0x5410), 0x5544_1100);
        assert_eq!(prmt(0x80, 0, 0x8888), 0xffff_ffff);
        assert_eq!(lop3(0xf0, 0xcc, 0xaa, 0xe8), 0xe8);
        assert_eq!(dot_of_bytes((false, true), 0xff02_0001, 0x80ff_7f03, 5) as u32 as i32, 3 - 2 - 255 * 128 + 5);
        assert_eq!(dot_of_bytes((true, false), 0xff02_0001, 0x80ff_7f03, 5) as u32 as i32, 3 + 2 * 255 - 128 + 5);
        assert_eq!(bfe(Ty::S32, 0xf0, 4, 4), 0xffff_ffff);
        assert_eq!(bfe(Ty::U32, 0xf0, 4, 4), 0xf);
        assert_eq!(bfi(Ty::U32, 0xf, 0xffff_0000, 4, 4), 0xffff_00f0);
        assert_eq!(shf(true, true, 0x8000_0000, 1, 1), 3);
        assert_eq!(int_op(IntOp::MulHi, Ty::S32, u64::from(-2i32 as u32), 3), 0xffff_ffff);
        assert_eq!(int_op(IntOp::Shr, Ty::S32, 0x8000_0000, 40), 0xffff_ffff);
        assert_eq!(int_op(IntOp::Clz, Ty::U32, 1, 0), 31);
        let third = rounded(Ty::F32, 1.0 / 3.0, Round::Down);
        assert_eq!(rounded(Ty::F32, 1.0 / 3.0, Round::Up), third + 1);
        let rzi = Convert { to_int: Some(Round::Zero), ..Convert::default() };
        assert_eq!(convert(Ty::S32, Ty::F32, rzi, u64::from(3e9f32.to_bits())), i32::MAX as u64);
        let nan = f32::NAN.to_bits();
        assert!(compare(Compare::Neu, Ty::F32, u64::from(nan), 0) && !compare(Compare::Ne, Ty::F32, u64::from(nan), 0));
        assert_eq!(float_op(FloatOp::Max, Ty::F32, Mode::default(), u64::from(nan), 0x3f80_0000), 0x3f80_0000);
    }
}
