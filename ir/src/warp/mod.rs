//! Warp programs: one GPU kernel with everything explicit — threads, shared buffers, copies, waits, barriers.
//!
//! Invariant: all threads of a block execute the same statements. There is no branch, and loop bounds are the same in
//! every thread (the verifier proves it); threads differ in values and in the conditions of loads, stores and
//! copies. So no barrier, shuffle or matrix operation is ever reached by only some of the threads.
//!
//! Every value is one register of each thread, assigned once, before its uses, in the same or an enclosing region.
//! A kernel takes the buffers as pointers, each aligned to [`BUFFER_ALIGNMENT`] bytes, then the dims as i64.
//!
//! The text form (`#` begins a comment):
//!
//! ```text
//! warp @k3(b0 x: f32[1024], b1 y: f32[4] written, dims(n)) grid(4) threads 128 shared(s0: f32[128]) {
//!   %0: i32 = thread
//!   %1: i32 = block
//!   %2: i64 = dim 0
//!   %3: i32 = 256i32
//!   %4: i32 = 0i32
//!   for %5: i32 in %4..%3 step 128 carry(%6: f32 = %9) {
//!     %7: f32, %8: f32 = load b0[%5 + 4] if %10 else 0.0f32
//!     store s0[%0], (%7) if %10
//!   } next(%7) as(%11)
//!   barrier
//!   copy s0[%0], b0[%5], 4 if %10     # asynchronous: four elements, zeros where not %10
//!   commit
//!   wait 1
//!   %12: f32 = shuffle(%7, 16)        # the value of the lane whose number differs in these bits
//!   fail 3 if %10
//!   %13: u32, %14: u32 = matrix s1[%0]
//!   %15: f32, %16: f32, %17: f32, %18: f32 = mma_bf16(%a0, %a1, %a2, %a3, %b0, %b1, %c0, %c1, %c2, %c3)
//! }
//! ```
//!
//! The other operations: `add(%1, %2)`, `neg(%1)`, `exp2(%1)`, `fma(%1, %2, %3)`, `select(%1, %2, %3)`,
//! `to_i64(%1)`, `bits_u32(%1)`, `pack_f16(%1, %2)`, `unpack_f8e5m2(%1, 2)`, `tf32(%1)`, `matrix_transposed s1[%0]`; and `mma_bf16` for the other
//! [`Factor`]s.

pub mod bulk;
mod factor;
mod interp;
mod parse;
mod print;
mod verify;

#[cfg(test)]
mod tests;

pub use factor::Factor;
pub use interp::{Counts, Fault, Outcome, RunError, run};
pub use verify::VerifyError;

use crate::dtype::DType;
use crate::expr::{Expr, Symbol};
use crate::id::{Arena, Id};
use crate::scalar::{BinaryOp, Constant, UnaryOp};
pub use crate::tile::Buffer;
pub use bulk::{Bulk, GroupProduct, Map, Roles};

/// Bytes to which every buffer that a kernel is given is aligned; a wide access counts on it.
pub const BUFFER_ALIGNMENT: usize = 16;

/// Lanes of a warp.
pub const LANES: u32 = 32;

/// A warp program. See the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct WarpProgram {
    /// Name, such as `k3`.
    pub name: String,
    /// Buffers in the order of the kernel's arguments.
    pub buffers: Vec<Buffer>,
    /// Run-time dims, which follow the buffers as i64 arguments.
    pub dims: Vec<Symbol>,
    /// How many blocks run, over the dims.
    pub grid: Expr,
    /// Threads of a block: a multiple of 32 up to 1024.
    pub threads: u32,
    /// Shared buffers, each block's own, not initialised.
    pub shared: Vec<Shared>,
    /// Arrays that are fetched from: arguments after all others.
    pub maps: Vec<Map>,
    /// Types of all values.
    pub values: Arena<DType>,
    /// Body.
    pub body: Vec<Stmt>,
}

/// A handle to a value, whose type is one of bool, i32, u32, i64, u64, f16, bf16 and f32. There is arithmetic on
/// integers and f32; f16 and bf16 are only moved, selected and converted.
pub type ValueId = Id<DType>;

/// A shared buffer; it begins at a multiple of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Element type.
    pub dtype: DType,
    /// Elements.
    pub len: usize,
}

impl WarpProgram {
    /// Whether the kernel can fail, see [`Stmt::Fail`].
    pub fn has_checks(&self) -> bool {
        fn any(body: &[Stmt]) -> bool {
            body.iter().any(|stmt| match stmt {
                Stmt::Fail { .. } => true,
                Stmt::For(For { body, .. }) => any(body),
                Stmt::Let(..) | Stmt::Store { .. } | Stmt::Copy { .. } => false,
                Stmt::Commit | Stmt::Wait(_) | Stmt::Barrier => false,
                Stmt::Bulk(bulk) => bulk.bodies().into_iter().any(any),
            })
        }
        any(&self.body)
    }

    /// Bytes of all shared buffers, with the place of each.
    pub fn shared_layout(&self) -> (Vec<usize>, usize) {
        let mut end = 0usize;
        let places = self
            .shared
            .iter()
            .map(|s| {
                let at = end;
                let bytes = s.len.saturating_mul(s.dtype.size()).checked_next_multiple_of(16).unwrap_or(usize::MAX);
                end = end.saturating_add(bytes);
                at
            })
            .collect();
        (places, end)
    }
}

/// Which memory an address is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A buffer argument.
    Global(usize),
    /// A shared buffer.
    Shared(usize),
}

/// Element `index + offset` of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The buffer.
    pub place: Place,
    /// i32 or i64 value in elements (only i32 for a shared buffer), or nothing for 0.
    pub index: Option<ValueId>,
    /// Constant in elements.
    pub offset: i64,
}

/// A statement of a warp program.
#[derive(Clone, Debug, PartialEq)]
pub enum Stmt {
    /// Defines values: several by a wide load and the matrix operations, else one.
    Let(Vec<ValueId>, Op),
    /// Stores 1, 2, 4 or 8 values, 16 bytes at most, to consecutive elements, in threads where the condition holds.
    /// The first element's place is a multiple of the size of the access. To a buffer of 8- or 16-bit integers the low
    /// bits of an i32 are stored.
    Store {
        /// First element.
        address: Address,
        /// Values of the buffer's type.
        values: Vec<ValueId>,
        /// Bool; nothing for always.
        condition: Option<ValueId>,
    },
    /// Begins to copy consecutive elements, 4, 8 or 16 bytes of them, from a buffer into a shared one of the same
    /// type; where the condition does not hold, zeros are written and nothing is read.
    Copy {
        /// First element written, in a shared buffer.
        to: Address,
        /// First element read, in a global buffer.
        from: Address,
        /// Elements.
        count: usize,
        /// Bool; nothing for always.
        condition: Option<ValueId>,
    },
    /// Closes the group of the thread's copies since the last `Commit`.
    Commit,
    /// Waits until at most so many of the thread's latest groups are under way.
    Wait(u32),
    /// Waits for all threads of the block; what they wrote before is then visible.
    Barrier,
    /// Notes that a check failed, where the condition holds in any thread; the kernel goes on. A kernel with checks takes
    /// a pointer to a u32 after its dims, which holds the greatest status that was noted, or what it held before.
    Fail {
        /// Bool.
        condition: ValueId,
        /// Status, not 0.
        status: u32,
    },
    /// A counted loop that carries values.
    For(For),
    /// What is done for a whole block.
    Bulk(Bulk),
}

/// `for var in lo..hi step step`, with bounds that are the same in all threads of the block.
#[derive(Clone, Debug, PartialEq)]
pub struct For {
    /// Loop variable, i32 or i64.
    pub var: ValueId,
    /// First value, of the variable's type.
    pub lo: ValueId,
    /// End, exclusive, of the variable's type.
    pub hi: ValueId,
    /// Step, at least 1; `hi + step` must not leave the variable's type.
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

/// How values are computed. Scalar operations mean what [`crate::semantics`] says.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The constant.
    Const(Constant),
    /// The thread's number in its block, i32; lane `thread % 32` of warp `thread / 32`.
    Thread,
    /// The block's number in the grid, i32.
    Block,
    /// The n-th run-time dim, i64.
    Dim(usize),
    /// 1, 2, 4 or 8 consecutive elements, 16 bytes at most, aligned like a store; where the condition does not hold,
    /// nothing is read and each value is the constant. A bool is true where its byte is not 0; of bools there is one. From a global
    /// buffer of 8- or 16-bit integers each element is widened to an i32.
    Load(Address, Option<(ValueId, Constant)>),
    /// On f32: neg abs floor ceil round trunc sqrt; on integers: neg abs not; on bool: not.
    Unary(UnaryOp, ValueId),
    /// `2^x` of an f32, at most 2 units in the last place off; denormal results may be 0.
    Exp2(ValueId),
    /// On f32: add sub mul div min max and comparisons; on integers all but `pow`; on bools: and or xor eq ne.
    Binary(BinaryOp, ValueId, ValueId),
    /// `a * b + c` of f32 with one rounding.
    Fma(ValueId, ValueId, ValueId),
    /// `if a { b } else { c }`.
    Select(ValueId, ValueId, ValueId),
    /// Conversion.
    Cast(DType, ValueId),
    /// The bits as another type of the same size.
    Bitcast(DType, ValueId),
    /// Two f32 rounded to f16 or bf16, as a u32 with the first in its low half; or to a float of 8 bits, with the first in its low byte and
    /// the second in the next: what is too large becomes the largest, infinities too.
    Pack(DType, ValueId, ValueId),
    /// The float of 8 bits in the n-th byte of an i32, as f32; exact.
    Unpack(DType, ValueId, u32),
    /// The value that the lane holds whose number differs from this one's in exactly the bits of the mask (1..32);
    /// of a type of 4 or 8 bytes.
    Shuffle(ValueId, u32),
    /// Loads 1, 2 or 4 matrices of 8 rows of 16 bytes from a shared buffer of elements of 2 or 4 bytes. Lanes `8*j..8*j+8`
    /// give the addresses of the rows of matrix `j`, each a multiple of 16 bytes; value `j` of lane `l`, a u32, holds
    /// elements `[l / 4][2 * (l % 4)]` and the next of matrix `j`, or of its transpose; of 4 bytes element
    /// `[l / 4][l % 4]`, and there is no transpose.
    Matrix {
        /// First element of the lane's row.
        address: Address,
        /// Whether the matrices are transposed.
        transposed: bool,
    },
    /// The f32 rounded to 11 bits, the farther one of two, as the u32 that matrix instructions take.
    Tf32(ValueId),
    /// `a[16,k] · b[k,8] + c[16,8]` with `k` of [`Factor::depth`], `a` and `b` in u32, in the register layout of PTX
    /// `mma.m16n8k16` and its like. Products are exact; how a sum of floats is rounded is up to the target, one of integers wraps.
    Mma {
        /// What `a` and `b` hold.
        factor: Factor,
        /// Left side, 4 u32.
        a: [ValueId; 4],
        /// Right side, 2 u32.
        b: [ValueId; 2],
        /// Addend, 4 of [`Factor::sums`].
        c: [ValueId; 4],
    },
    /// A product of groups of four warps, which is under way until it is waited for.
    GroupMma(GroupProduct),
}

impl Op {
    /// Calls `f` with every value that the operation reads, in order.
    pub fn for_each_operand(&self, mut f: impl FnMut(ValueId)) {
        match self {
            Op::Const(_) | Op::Thread | Op::Block | Op::Dim(_) => {}
            Op::Load(address, condition) => {
                address.index.into_iter().for_each(&mut f);
                condition.iter().for_each(|(c, _)| f(*c));
            }
            Op::Matrix { address, .. } => address.index.into_iter().for_each(f),
            Op::Unary(_, a)
            | Op::Exp2(a)
            | Op::Tf32(a)
            | Op::Cast(_, a)
            | Op::Bitcast(_, a)
            | Op::Shuffle(a, _)
            | Op::Unpack(_, a, _) => {
                f(*a);
            }
            Op::Binary(_, a, b) | Op::Pack(_, a, b) => [*a, *b].into_iter().for_each(f),
            Op::Fma(a, b, c) | Op::Select(a, b, c) => [*a, *b, *c].into_iter().for_each(f),
            Op::Mma { a, b, c, .. } => a.iter().chain(b).chain(c).copied().for_each(f),
            Op::GroupMma(GroupProduct { a, b, c, .. }) => {
                [a, b].into_iter().filter_map(|o| o.address.index).chain(c.iter().copied()).for_each(f);
            }
        }
    }
}
