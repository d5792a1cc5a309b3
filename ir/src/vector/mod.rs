//! Vector programs: SSA over vectors of a target's width, explicit loops and addresses, no tiles.
//!
//! Invariant: every value is assigned once, before its uses, in the same or an enclosing region; integer address
//! arithmetic is explicit i64 code. A program is the body of one kernel,
//! `fn(args: *const *mut u8, dims: *const i64, lo: i64, hi: i64, scratch: *mut u8) -> u32`:
//! it runs programs `lo..hi` of the kernel and returns 0, or the status of the first failed check.

//!
//! The text form (see the tests for a whole program; `#` begins a comment):
//!
//! ```text
//! vector @k3(b0: f32, b1: f32 written, dims 1) {
//!   %0: i64 = lo
//!   %1: i64 = dim 0
//!   %2: f32x4 = 0.0f32
//!   for %3 in %0..%1 step 4 carry (%4: f32x4 = %2) {
//!     %5: f32x4 = load b0[%3 + 8]
//!     %6: f32x4 = add(%4, %5)
//!     store b1[%3], %6
//!   } next (%6) as (%7)
//!   %8: f32 = fold_add(%7)
//!   %9: bool = lt(%8, %8)
//!   fail 1 if %9
//! }
//! ```

mod interp;
mod matrix;
mod parse;
mod print;
mod verify;

#[cfg(test)]
mod tests;

pub use interp::{InterpError, run};
pub use matrix::{Matrix, Product, REGISTERS, Registers, Shape, Shapes, multiplies};
pub use verify::VerifyError;

use crate::dtype::DType;
use crate::id::{Arena, Id};
use crate::scalar::{BinaryOp, Constant, UnaryOp};

/// A vector program. See the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct VectorProgram {
    /// Name, such as `k3`.
    pub name: String,
    /// Element type of each buffer argument, with whether it is stored to.
    pub buffers: Vec<(DType, bool)>,
    /// Memory that a run of the kernel has for itself, which begins as anything: element type and elements. Addresses number it on
    /// after the buffers.
    pub locals: Vec<(DType, usize)>,
    /// How many run-time dims the kernel takes.
    pub dims: usize,
    /// Types of all values.
    pub values: Arena<VectorType>,
    /// Body.
    pub body: Vec<Stmt>,
}

impl VectorProgram {
    /// The element type of a buffer or local memory, with whether it may be stored to.
    pub fn memory(&self, number: usize) -> Option<(DType, bool)> {
        let local = || Some((self.locals.get(number.checked_sub(self.buffers.len())?)?.0, true));
        self.buffers.get(number).copied().or_else(local)
    }

    /// The element type of a buffer or local memory of a program that verifies.
    pub fn element(&self, number: usize) -> DType {
        self.memory(number).map_or(DType::U8, |(dtype, _)| dtype)
    }
}

/// A handle to a value.
pub type ValueId = Id<VectorType>;

/// The type of a value: `lanes` elements. A scalar has one lane.
/// Comparisons of vectors give `Bool` with the operands' lanes; such a mask is never loaded or stored, and not bitcast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorType {
    /// Element type; one that [`crate::vector`] programs compute with: bool, 8- to 64-bit integers, f32, f64.
    pub dtype: DType,
    /// 1, or a power of two.
    pub lanes: u32,
}

impl VectorType {
    /// One element.
    pub fn scalar(dtype: DType) -> VectorType {
        VectorType { dtype, lanes: 1 }
    }

    /// `lanes` elements.
    pub fn vector(dtype: DType, lanes: u32) -> VectorType {
        VectorType { dtype, lanes }
    }

    /// Whether there is one lane.
    pub fn is_scalar(self) -> bool {
        self.lanes == 1
    }
}

/// The type of the lanes that elements of a narrow type are widened to when they are loaded and narrowed from when they are stored.
pub fn widened(narrow: DType) -> Option<DType> {
    match narrow {
        DType::F16 => Some(DType::F32),
        DType::U8 | DType::I8 | DType::U16 | DType::I16 => Some(DType::I32),
        _ => None,
    }
}

/// A place in a buffer: element `index + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Index into the buffers, and on into local memory.
    pub buffer: usize,
    /// i64 value in elements, or nothing for 0.
    pub index: Option<ValueId>,
    /// Constant in elements.
    pub offset: i64,
}

/// How near memory is brought that is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cache {
    /// Into the first cache: what is loaded soon.
    First,
    /// Into the second one: what would push out of the first what is loaded before it.
    Second,
}

/// A statement of a vector program.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// Defines a value.
    Let(ValueId, Op),
    /// A counted loop: `for var in lo..hi step step`.
    For(For),
    /// Stores all lanes to consecutive elements; of i32 lanes a buffer of 8- or 16-bit integers gets the low bits, of f32 lanes a
    /// buffer of f16 the nearest numbers.
    Store(Address, ValueId),
    /// Asks for the memory at an address, which may lie beyond the buffer: it changes how long later loads take and nothing else.
    Prefetch(Cache, Address),
    /// What matrix registers do.
    Matrix(Matrix),
    /// A two-way branch without results.
    If {
        /// Scalar bool.
        condition: ValueId,
        /// Statements where it holds.
        then: Vec<Stmt>,
        /// Statements where it does not.
        otherwise: Vec<Stmt>,
    },
    /// Leaves the kernel with the status where the scalar bool holds.
    Fail {
        /// Scalar bool.
        condition: ValueId,
        /// Status, not 0.
        status: u32,
    },
}

/// A counted loop that carries values.
#[derive(Clone, Debug, PartialEq)]
pub struct For {
    /// Loop variable, i64 scalar.
    pub var: ValueId,
    /// First value, i64 scalar.
    pub lo: ValueId,
    /// End, exclusive, i64 scalar. No iteration where `lo >= hi`.
    pub hi: ValueId,
    /// Step, at least 1. `hi + step` must not exceed `i64::MAX`.
    pub step: i64,
    /// Values carried from one iteration to the next.
    pub carried: Vec<Carried>,
    /// Body.
    pub body: Vec<Stmt>,
}

/// A value carried by a loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The value before the first iteration.
    pub init: ValueId,
    /// Its name inside the body.
    pub inside: ValueId,
    /// What the body hands to the next iteration.
    pub next: ValueId,
    /// Its name after the loop.
    pub after: ValueId,
}

/// How a value is computed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Every lane is the constant.
    Const(Constant),
    /// The n-th run-time dim, i64 scalar.
    Dim(usize),
    /// First program to run, i64 scalar.
    Lo,
    /// End of the programs to run, i64 scalar.
    Hi,
    /// Consecutive elements, as many as the result has lanes; a bool is true where its byte is not 0.
    Load(Address),
    /// Consecutive elements of a buffer of 8- or 16-bit integers, each widened to i32, or of f16, each widened to f32.
    LoadWide(Address),
    /// Every lane is the one element there.
    LoadSplat(Address),
    /// Lanes `0, stride, 2*stride, ...` elements apart.
    LoadStrided(Address, i64),
    /// Every lane is the scalar.
    Splat(ValueId),
    /// The scalars as the lanes of a vector.
    Pack(Vec<ValueId>),
    /// One lane as a scalar.
    Extract(ValueId, u32),
    /// The same lane of each of some vectors, as many as they have lanes, 2 or more; no masks. All of these are the vectors transposed.
    Column(Vec<ValueId>, u32),
    /// Lanewise operation on one value. Only: neg abs not floor ceil round trunc sqrt (floats); neg abs not (integers);
    /// not (bool).
    Unary(UnaryOp, ValueId),
    /// Lanewise operation on two values of one type: all of [`BinaryOp`] but `pow`, and `rem`, `mod` only on integers, `dot4` only
    /// on i32, `pair` only on f32, and not `dot2`.
    /// On bools: `and`, `or`, `xor`, `add` (or), `mul` (and), `min`, `max` and the comparisons.
    Binary(BinaryOp, ValueId, ValueId),
    /// `a * b + c` of floats with one rounding; with two (after the product, after the sum) on a target without
    /// fused multiply-add, which is x86-64 below v3. Where `a` and `b` are i32, they are pairs of bf16 and `c` is f32:
    /// `dot2` onto `c`.
    Fma(ValueId, ValueId, ValueId),
    /// `a * 2^floor(n)` of f32 with one rounding. One instruction of AVX-512; code generators for less have no such operation, and
    /// programs for them no use for it.
    Scale(ValueId, ValueId),
    /// Lanewise `if a { b } else { c }`.
    Select(ValueId, ValueId, ValueId),
    /// Lanewise conversion by the rules of [`crate::semantics`]; each rounds at most once.
    Cast(DType, ValueId),
    /// Each f32 rounded to the nearest f16, ties to even, and kept as f32.
    RoundHalf(ValueId),
    /// The bytes of the value, lanes in memory order, as another type of the same total size.
    Bitcast(DType, ValueId),
    /// All lanes folded to a scalar with add, mul, min, max, and, or — pairwise: lanes i and i + n/2 first.
    Fold(BinaryOp, ValueId),
}

impl Op {
    /// Calls `f` with every value that the operation reads, in order.
    pub fn for_each_operand(&self, mut f: impl FnMut(ValueId)) {
        match self {
            Op::Const(_) | Op::Dim(_) | Op::Lo | Op::Hi => {}
            Op::Load(a) | Op::LoadWide(a) | Op::LoadSplat(a) | Op::LoadStrided(a, _) => {
                if let Some(index) = a.index {
                    f(index);
                }
            }
            Op::Splat(a)
            | Op::Extract(a, _)
            | Op::Unary(_, a)
            | Op::Cast(_, a)
            | Op::RoundHalf(a)
            | Op::Bitcast(_, a)
            | Op::Fold(_, a) => f(*a),
            Op::Binary(_, a, b) | Op::Scale(a, b) => {
                f(*a);
                f(*b);
            }
            Op::Fma(a, b, c) | Op::Select(a, b, c) => {
                f(*a);
                f(*b);
                f(*c);
            }
            Op::Pack(values) | Op::Column(values, _) => values.iter().copied().for_each(f),
        }
    }
}
