//! Columns: one scalar of code for many elements at once, and the operations on them.
//!
//! Invariant: the operations are those of [`crate::semantics`], applied to each lane; floats narrower than f32 are kept as
//! the f32 of the same value, bools as 0 and 1.

use crate::dtype::{Class, DType};
use crate::scalar::{BinaryOp, Constant, UnaryOp};
use crate::semantics;

/// How many lanes a column has at most.
pub(super) const LANES: usize = 512;

/// The lanes of one scalar.
#[derive(Clone)]
pub(super) enum Column {
    /// [`Class::Float`].
    F32(Vec<f32>),
    /// [`Class::Double`], and products that are summed.
    F64(Vec<f64>),
    /// Integers and bools; for complex numbers and strings, which are only moved, the number of the element.
    I64(Vec<i64>),
}

impl Column {
    /// A column of zeros for a type.
    pub fn new(dtype: DType) -> Column {
        match dtype.class() {
            Class::Float => Column::F32(vec![0.0; LANES]),
            Class::Double => Column::F64(vec![0.0; LANES]),
            Class::Bool | Class::Signed | Class::Unsigned | Class::Complex | Class::Str => Column::I64(vec![0; LANES]),
        }
    }

    /// A column filled with a constant. Those that are only moved have the number -1.
    pub fn constant(c: Constant) -> Column {
        match c.dtype.class() {
            Class::Float => Column::F32(vec![f32::from_bits(c.bits as u32); LANES]),
            Class::Double => Column::F64(vec![f64::from_bits(c.bits); LANES]),
            Class::Bool | Class::Signed | Class::Unsigned => Column::I64(vec![c.bits as i64; LANES]),
            Class::Complex | Class::Str => Column::I64(vec![-1; LANES]),
        }
    }

    fn f32(&self) -> &[f32] {
        if let Column::F32(v) = self { v } else { &[] }
    }

    fn f64(&self) -> &[f64] {
        if let Column::F64(v) = self { v } else { &[] }
    }

    /// The lanes of an integer column.
    pub fn i64(&self) -> &[i64] {
        if let Column::I64(v) = self { v } else { &[] }
    }

    /// The first `n` lanes of an integer column.
    pub fn i64_mut(&mut self, n: usize) -> &mut [i64] {
        if let Column::I64(v) = self { &mut v[..n] } else { &mut [] }
    }
}

/// Expands to a match over all operations, in every arm of which `$op` is a constant: the operation is chosen once a column.
macro_rules! for_op {
    ($enum:ident, $value:expr, [$($variant:ident)*], |$op:ident| $body:expr) => {
        match $value { $($enum::$variant => { const $op: $enum = $enum::$variant; $body })* }
    };
}

fn zip<A: Copy, B: Copy, C>(a: &[A], b: &[B], out: &mut [C], f: impl Fn(A, B) -> C) {
    for ((a, b), out) in a.iter().zip(b).zip(out) {
        *out = f(*a, *b);
    }
}

fn map<A: Copy, C>(a: &[A], out: &mut [C], f: impl Fn(A) -> C) {
    for (a, out) in a.iter().zip(out) {
        *out = f(*a);
    }
}

/// Rounds results of f32 arithmetic to a narrower type.
fn round(dtype: DType, out: &mut [f32]) {
    if dtype != DType::F32 {
        for v in out {
            *v = semantics::round_to(dtype, *v);
        }
    }
}

/// `out = op(a)` on the first `n` lanes of operands of a type.
pub(super) fn unary(op: UnaryOp, dtype: DType, n: usize, a: &Column, out: &mut Column) {
    for_op!(UnaryOp, op, [Neg Abs Sign Not Floor Ceil Round Trunc Sqrt Recip Exp Log Sin Cos Tan Asin Acos Atan Sinh Cosh
        Tanh Asinh Acosh Atanh Erf Sigmoid], |OP| match out {
        Column::F32(out) => {
            map(a.f32(), &mut out[..n], |x| semantics::unary_f32(OP, x));
            round(dtype, &mut out[..n]);
        }
        Column::F64(out) => map(a.f64(), &mut out[..n], |x| semantics::unary_f64(OP, x)),
        Column::I64(out) => map(a.i64(), &mut out[..n], |x| semantics::unary_int(OP, dtype, x).unwrap_or(0)),
    })
}

/// `out = op(a, b)` on the first `n` lanes of operands of a type.
pub(super) fn binary(op: BinaryOp, dtype: DType, n: usize, a: &Column, b: &Column, out: &mut Column) {
    for_op!(BinaryOp, op, [Add Sub Mul Div Rem Mod Pow Min Max And Or Xor Shl Shr Dot4 Pair Dot2 Eq Ne Lt Le Gt Ge], |OP| {
        if OP.is_comparison() {
            let out = out.i64_mut(n);
            let truth = |t: Option<bool>| i64::from(t.unwrap_or(false));
            return match dtype.class() {
                Class::Float => zip(a.f32(), b.f32(), out, |a, b| truth(semantics::compare(OP, a, b))),
                Class::Double => zip(a.f64(), b.f64(), out, |a, b| truth(semantics::compare(OP, a, b))),
                Class::Unsigned => zip(a.i64(), b.i64(), out, |a, b| truth(semantics::compare(OP, a as u64, b as u64))),
                Class::Signed | Class::Bool | Class::Complex | Class::Str => {
                    zip(a.i64(), b.i64(), out, |a, b| truth(semantics::compare(OP, a, b)));
                }
            };
        }
        match out {
            Column::I64(out) if OP == BinaryOp::Pair => zip(a.f32(), b.f32(), &mut out[..n], semantics::pair),
            Column::F32(out) if OP == BinaryOp::Dot2 => {
                zip(a.i64(), b.i64(), &mut out[..n], |a, b| semantics::dot2(a, b, 0.0));
            }
            Column::F32(out) => {
                zip(a.f32(), b.f32(), &mut out[..n], |a, b| semantics::binary_f32(OP, a, b));
                round(dtype, &mut out[..n]);
            }
            Column::F64(out) => zip(a.f64(), b.f64(), &mut out[..n], |a, b| semantics::binary_f64(OP, a, b)),
            Column::I64(out) => {
                zip(a.i64(), b.i64(), &mut out[..n], |a, b| semantics::binary_int(OP, dtype, a, b).unwrap_or(0));
            }
        }
    })
}

/// The product in f64 of columns of class [`Class::Float`]: exact.
pub(super) fn product(n: usize, a: &Column, b: &Column, out: &mut Column) {
    if let Column::F64(out) = out {
        zip(a.f32(), b.f32(), &mut out[..n], |a, b| f64::from(a) * f64::from(b));
    }
}

/// `out = a * b + c` with one rounding on the first `n` lanes, of floats.
pub(super) fn fma(n: usize, a: &Column, b: &Column, c: &Column, out: &mut Column) {
    fn each<T: Copy>(a: &[T], b: &[T], c: &[T], out: &mut [T], f: impl Fn(T, T, T) -> T) {
        for (((a, b), c), out) in a.iter().zip(b).zip(c).zip(out) {
            *out = f(*a, *b, *c);
        }
    }
    match out {
        Column::F32(out) => each(a.f32(), b.f32(), c.f32(), &mut out[..n], f32::mul_add),
        Column::F64(out) => each(a.f64(), b.f64(), c.f64(), &mut out[..n], f64::mul_add),
        // No fma of integers is well typed.
        Column::I64(out) => out[..n].fill(0),
    }
}

/// `out = if take(lane) { a } else { b }` on the first `n` lanes.
pub(super) fn select(n: usize, take: impl Fn(usize) -> bool, a: &Column, b: &Column, out: &mut Column) {
    fn pick<T: Copy>(a: &[T], b: &[T], out: &mut [T], take: impl Fn(usize) -> bool) {
        for (l, ((a, b), out)) in a.iter().zip(b).zip(out).enumerate() {
            *out = if take(l) { *a } else { *b };
        }
    }
    match out {
        Column::F32(out) => pick(a.f32(), b.f32(), &mut out[..n], take),
        Column::F64(out) => pick(a.f64(), b.f64(), &mut out[..n], take),
        Column::I64(out) => pick(a.i64(), b.i64(), &mut out[..n], take),
    }
}

/// Converts the first `n` lanes.
pub(super) fn cast(from: DType, to: DType, n: usize, a: &Column, out: &mut Column) {
    let unsigned = from.class() == Class::Unsigned;
    match (a, out) {
        (Column::F32(a), Column::F32(out)) => map(a, &mut out[..n], |x| semantics::round_to(to, x)),
        (Column::F32(a), Column::F64(out)) => map(a, &mut out[..n], f64::from),
        (Column::F32(a), Column::I64(out)) => map(a, &mut out[..n], |x| semantics::float_to_int(to, f64::from(x))),
        (Column::F64(a), Column::F32(out)) => map(a, &mut out[..n], |x| semantics::narrow(to, x)),
        (Column::F64(a), Column::F64(out)) => out[..n].copy_from_slice(&a[..n]),
        (Column::F64(a), Column::I64(out)) => map(a, &mut out[..n], |x| semantics::float_to_int(to, x)),
        (Column::I64(a), Column::F32(out)) => {
            map(a, &mut out[..n], |x| semantics::round_to(to, if unsigned { x as u64 as f32 } else { x as f32 }))
        }
        (Column::I64(a), Column::F64(out)) => {
            map(a, &mut out[..n], |x| if unsigned { x as u64 as f64 } else { x as f64 })
        }
        (Column::I64(a), Column::I64(out)) if to == DType::Bool => map(a, &mut out[..n], |x| i64::from(x != 0)),
        (Column::I64(a), Column::I64(out)) => map(a, &mut out[..n], |x| semantics::wrap(to, x)),
    }
}

/// Elements of one type at addresses `at(lane)` of row-major bytes, into the first `n` lanes; `number` is added to the
/// addresses of elements that are only moved. Lanes without an address become 0.
pub(super) fn load(
    dtype: DType,
    bytes: &[u8],
    number: i64,
    n: usize,
    at: impl Fn(usize) -> Option<usize>,
    out: &mut Column,
) {
    fn each<T: Default>(out: &mut [T], at: impl Fn(usize) -> Option<usize>, f: impl Fn(usize) -> T) {
        for (l, out) in out.iter_mut().enumerate() {
            *out = at(l).map_or_else(T::default, &f);
        }
    }
    match out {
        Column::F32(out) if dtype == DType::F32 => {
            let elements = bytes.as_chunks::<4>().0;
            each(&mut out[..n], at, |a| elements.get(a).map_or(0.0, |c| f32::from_le_bytes(*c)));
        }
        Column::F32(out) => each(&mut out[..n], at, |a| semantics::load_f32(dtype, bytes, a)),
        Column::F64(out) => each(&mut out[..n], at, |a| semantics::load_f64(dtype, bytes, a)),
        Column::I64(out) => match dtype.class() {
            Class::Complex | Class::Str => each(&mut out[..n], at, |a| number + a as i64),
            _ => each(&mut out[..n], at, |a| semantics::load_i64(dtype, bytes, a)),
        },
    }
}

/// The `n` elements from an address on: the common case of [`load`].
pub(super) fn load_run(dtype: DType, bytes: &[u8], number: i64, n: usize, from: usize, out: &mut Column) {
    if let (Column::F32(out), DType::F32) = (&mut *out, dtype) {
        let run = bytes.as_chunks::<4>().0.get(from..from + n).unwrap_or(&[]);
        map(run, &mut out[..n], f32::from_le_bytes);
    } else {
        load(dtype, bytes, number, n, |l| Some(from + l), out);
    }
}

/// Writes the first `n` lanes as elements of a type at `from + l * step`.
pub(super) fn store(dtype: DType, column: &Column, n: usize, from: usize, step: usize, out: &mut [u8]) {
    fn put<const N: usize>(out: &mut [u8], from: usize, step: usize, n: usize, f: impl Fn(usize) -> [u8; N]) {
        let elements = out.as_chunks_mut::<N>().0;
        for (l, slot) in elements.iter_mut().skip(from).step_by(step.max(1)).take(n).enumerate() {
            *slot = f(l);
        }
    }
    match column {
        Column::F32(v) if dtype == DType::F32 => put(out, from, step, n, |l| v[l].to_le_bytes()),
        Column::F64(v) => put(out, from, step, n, |l| v[l].to_le_bytes()),
        Column::F32(v) => {
            let mut one = Vec::with_capacity(4);
            let size = dtype.size();
            for (l, x) in v[..n].iter().enumerate() {
                one.clear();
                semantics::store_f32(dtype, *x, &mut one);
                let at = (from + l * step) * size;
                if let Some(slot) = out.get_mut(at..at + size) {
                    slot.copy_from_slice(&one);
                }
            }
        }
        Column::I64(v) => match dtype.size() {
            1 => put(out, from, step, n, |l| [v[l] as u8]),
            2 => put(out, from, step, n, |l| (v[l] as i16).to_le_bytes()),
            4 => put(out, from, step, n, |l| (v[l] as i32).to_le_bytes()),
            _ => put(out, from, step, n, |l| v[l].to_le_bytes()),
        },
    }
}

/// Values that are being folded: floats in f64, integers wrapped to the type at each step.
pub(super) enum Fold {
    /// Class Float or Double.
    F64(Vec<f64>),
    /// Integers and bools.
    I64(Vec<i64>),
}

impl Fold {
    /// `n` folds that have seen no value.
    pub fn new(init: Constant, n: usize) -> Fold {
        match init.dtype.class() {
            Class::Float | Class::Double => Fold::F64(vec![init.as_f64(); n]),
            Class::Bool | Class::Signed | Class::Unsigned | Class::Complex | Class::Str => {
                Fold::I64(vec![init.bits as i64; n])
            }
        }
    }

    /// Starts again.
    pub fn reset(&mut self, init: Constant) {
        match self {
            Fold::F64(v) => v.fill(init.as_f64()),
            Fold::I64(v) => v.fill(init.bits as i64),
        }
    }

    /// Folds lane `l` of the first `n` into fold `l`, or all of them into the first one where `join`.
    pub fn add(&mut self, combine: BinaryOp, dtype: DType, column: &Column, n: usize, join: bool) {
        fn go<T: Copy, A: Copy>(to: &mut [A], from: &[T], join: bool, f: impl Fn(A, T) -> A) {
            if join {
                if let Some(to) = to.first_mut() {
                    *to = from.iter().fold(*to, |a, b| f(a, *b));
                }
            } else {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = f(*to, *from);
                }
            }
        }
        for_op!(BinaryOp, combine, [Add Sub Mul Div Rem Mod Pow Min Max And Or Xor Shl Shr Dot4 Pair Dot2 Eq Ne Lt Le Gt Ge],
            |OP| match (&mut *self, column) {
            (Fold::F64(to), Column::F32(v)) => go(to, &v[..n], join, |a, b| semantics::binary_f64(OP, a, f64::from(b))),
            (Fold::F64(to), Column::F64(v)) => go(to, &v[..n], join, |a, b| semantics::binary_f64(OP, a, b)),
            (Fold::I64(to), Column::I64(v)) => {
                go(to, &v[..n], join, |a, b| semantics::binary_int(OP, dtype, a, b).unwrap_or(0));
            }
            // A fold and its column are made from one type.
            (Fold::F64(_), Column::I64(_)) | (Fold::I64(_), Column::F32(_) | Column::F64(_)) => {}
        })
    }

    /// The first `n` folded values, rounded to the type.
    pub fn finish(&self, dtype: DType, n: usize, out: &mut Column) {
        match (self, out) {
            (Fold::F64(v), Column::F32(out)) => map(v, &mut out[..n], |x| semantics::narrow(dtype, x)),
            (Fold::F64(v), Column::F64(out)) => out[..n].copy_from_slice(&v[..n]),
            (Fold::I64(v), Column::I64(out)) => out[..n].copy_from_slice(&v[..n]),
            (Fold::F64(_), Column::I64(_)) | (Fold::I64(_), Column::F32(_) | Column::F64(_)) => {}
        }
    }
}
