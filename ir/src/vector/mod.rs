//! Vector programs: SSA over vectors of a target's width, explicit loops and addresses, no tiles.
//!
//! Invariant: every value is assigned once, before its uses, in the same or an enclosing region; integer address
//! arithmetic is explicit i64 code. A program is the body of one kernel,
//! `fn(args: *const *mut u8, dims: *const i64, lo: i64, hi: i64, scratch: *mut u8) -> u32`:
//! it runs programs `lo..hi` of the kernel and returns 0, or the status of the first failed check.

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
    /// How many run-time dims the kernel takes.
    pub dims: usize,
    /// Types of all values.
    pub values: Arena<VectorType>,
    /// Body.
    pub body: Vec<Stmt>,
}

/// A handle to a value.
pub type ValueId = Id<VectorType>;

/// The type of a value: `lanes` elements. A scalar has one lane.
/// Comparisons of vectors give `Bool` with the operands' lanes; such a mask is only used by `select`, `and`, `or`, `xor`, `not`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct VectorType {
    /// Element type; one that [`crate::vector`] programs compute with: bool, 8- to 64-bit integers, f32, f64.
    pub dtype: DType,
    /// 1, or a power of two.
    pub lanes: u32,
}

/// A place in a buffer: element `index + offset`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// Index into the buffers.
    pub buffer: usize,
    /// i64 value in elements, or nothing for 0.
    pub index: Option<ValueId>,
    /// Constant in elements.
    pub offset: i64,
}

/// A statement of a vector program.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// Defines a value.
    Let(ValueId, Op),
    /// A counted loop: `for var in lo..hi step step`.
    For(For),
    /// Stores all lanes to consecutive elements.
    Store(Address, ValueId),
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
    /// Step, at least 1.
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
    /// Consecutive elements, as many as the result has lanes.
    Load(Address),
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
    /// Lanewise operation on one value. Only: neg abs not floor ceil round trunc sqrt (floats); neg abs not (integers); not (bool).
    Unary(UnaryOp, ValueId),
    /// Lanewise operation on two values of one type: all of [`BinaryOp`] but `pow`, and `rem`, `mod` only on integers.
    Binary(BinaryOp, ValueId, ValueId),
    /// `a * b + c` with one rounding.
    Fma(ValueId, ValueId, ValueId),
    /// Lanewise `if a { b } else { c }`.
    Select(ValueId, ValueId, ValueId),
    /// Lanewise conversion by the rules of [`crate::semantics`].
    Cast(DType, ValueId),
    /// The bits of the value as another type of the same size.
    Bitcast(DType, ValueId),
    /// All lanes folded to a scalar with add, mul, min, max, and, or — pairwise: lanes i and i + n/2 first.
    Fold(BinaryOp, ValueId),
}
