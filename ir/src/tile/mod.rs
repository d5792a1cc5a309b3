//! Tile programs: the one kernel language for all targets.
//!
//! Invariant: a tile program is a list of parts; the programs (grid points) of all parts are numbered consecutively,
//! are independent of one another, and together store every element of every output exactly once; only in programs for
//! GPUs, whose parts run one after another, may a part load what an earlier one stored. Values are small
//! dense tiles of static shape. There are no threads, registers or barriers in it.
//!
//! Axes: inside an index expression the symbol `aK` stands for the position along axis K of the tile that the
//! statement defines (or stores). Grid and loop variables are ordinary symbols. Every other symbol is a run-time dim.
//!
//! The text form (`#` begins a comment):
//!
//! ```text
//! kernel @k3(x: f32[98304], w: f32[2359296], y: f32[393216] written) {
//!   part grid(i = 32, j = 384) {
//!     %0: f32[4,8] = const 0.0f32
//!     for k in 0..768 step 1 carry(%1: f32[4,8] = %0) {
//!       %2: f32[4,1] = load x[768*a0 + 3072*i + k]
//!       %3: f32[1,8] = load w[a1 + 8*j + 3072*k]
//!       %4: f32[4,8] = fma %2, %3, %1
//!     } next(%4) as(%5)
//!     store y[a1 + 3072*a0 + 12288*i + 8*j] = %5 if(a0 + 4*i < 126)
//!   }
//! }
//! ```
//!
//! A product by a unit for matrices: `multiply sums[16+8,16+16] pairs by 16 x[a0*768 + a1 + q] y[a0*32 + a1 + 32*q] for(q = 48 step 16)`;
//! between operands, `and` precedes further ones of each step, `then` those of the next round. A choice: `if %3 { ... } else { ... }`.
//!
//! The other operations: `index(a0 + k)`, `load x[v0 + a1] with(%3) if(a0 < n, k < 9) else 0.0f32`, `exp %1`,
//! `add %1, %2`, `select %1, %2, %3`, `cast %1`, `reduce add 1, %2`, `transpose [1, 0], %2`, `dot %1, %2, %3`, of bytes
//! `dot_u8s8 %1, %2, %3`,
//! `check %1 in(extent) status 3`; stores to computed places: `store y[8*v0 + a0] = %5 with(%3)`.

mod interp;
mod multiply;
mod parse;
mod print;
mod verify;

#[cfg(test)]
mod tests;

pub use interp::{RunError, run};
pub use multiply::{Ahead, Factors, Multiply};
pub use verify::VerifyError;

use crate::dtype::DType;
use crate::expr::{Expr, Symbol};
use crate::id::{Arena, Id};
use crate::scalar::{BinaryOp, Constant, Less, UnaryOp};
use crate::vector::Product;

/// A tile program. See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileProgram {
    /// Name, such as `k3`.
    pub name: String,
    /// Buffers in the order of the kernel's arguments.
    pub buffers: Vec<Buffer>,
    /// The parts, which together cover the outputs.
    pub parts: Vec<Part>,
    /// Types of all tiles.
    pub tiles: Arena<TileType>,
}

/// A handle to a tile.
pub type TileId = Id<TileType>;

impl TileProgram {
    /// What it does: everything but its name.
    pub fn code(&self) -> impl PartialEq + std::hash::Hash {
        (&self.buffers, &self.parts, &self.tiles)
    }

    /// The kernel's arguments: all buffers that are not local.
    pub fn arguments(&self) -> impl DoubleEndedIterator<Item = &Buffer> {
        self.buffers.iter().filter(|b| !b.local)
    }

    /// Whether there are products by a unit for matrices.
    pub fn multiplies(&self) -> bool {
        fn any(body: &[Stmt]) -> bool {
            body.iter().any(|stmt| match stmt {
                Stmt::Multiply(_) => true,
                Stmt::For(f) => any(&f.body),
                Stmt::If(choice) => any(&choice.then) || any(&choice.otherwise),
                Stmt::Let(..) | Stmt::Store { .. } => false,
            })
        }
        self.parts.iter().any(|part| any(&part.body))
    }

    /// How many programs all parts have together.
    pub fn programs(&self) -> Expr {
        self.parts.iter().fold(Expr::default(), |sum, part| sum.add(&part.programs()))
    }
}

impl Part {
    /// How many programs the part has: the product of the grid's extents, none of which counts as less than 0.
    pub fn programs(&self) -> Expr {
        self.grid.iter().fold(Expr::from(1i64), |n, (_, extent)| n.mul(&extent.greatest(&Expr::default())))
    }
}

/// The symbol of axis `k` of a tile in index expressions, `ak`.
pub fn axis(k: usize) -> Symbol {
    Symbol::numbered("a", k)
}

/// The symbol of the `k`-th gathered tile of a load in its address, `vk`.
pub fn gathered(k: usize) -> Symbol {
    Symbol::numbered("v", k)
}

/// Whether the name is that of an axis or a gathered tile, which no dim, grid or loop variable may have.
pub fn is_reserved(symbol: &Symbol) -> bool {
    symbol.name().strip_prefix(['a', 'v']).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a tile of one type may be loaded from a buffer of the other one: the same, or narrow integers as i32.
pub fn loads_from(tile: DType, buffer: DType) -> bool {
    tile == buffer || tile == DType::I32 && matches!(buffer, DType::U8 | DType::I8 | DType::U16 | DType::I16)
}

/// Whether a tile of one type may be stored to a buffer of the other one: the same, or i32 to narrow integers, whose low bits they
/// keep.
pub fn stores_to(tile: DType, buffer: DType) -> bool {
    loads_from(tile, buffer)
}

/// A tile's type.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TileType {
    /// Element type.
    pub dtype: DType,
    /// Extents; a scalar has none.
    pub shape: Vec<usize>,
}

impl TileType {
    /// How many elements there are; `usize::MAX` where that does not fit.
    pub fn elements(&self) -> usize {
        self.shape.iter().fold(1usize, |n, &e| n.saturating_mul(e))
    }
}

/// A kernel argument in memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Name for people.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// How many elements the buffer holds; an address at or past it is out of bounds.
    pub len: Expr,
    /// Whether the kernel stores to it.
    pub written: bool,
    /// Whether it is memory of each program's own, which begins as anything, and no argument. Such buffers are written, have a
    /// constant number of elements, and follow all others.
    pub local: bool,
}

/// Programs with the same body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Part {
    /// Grid variables with their extents, outermost first; the last one runs fastest.
    pub grid: Vec<(Symbol, Expr)>,
    /// What each program does.
    pub body: Vec<Stmt>,
}

/// A statement of a tile program.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Stmt {
    /// Defines a tile.
    Let(TileId, TileOp),
    /// A counted loop that carries tiles.
    For(For),
    /// Stores a tile: element `[a0, a1, ...]` goes to the address. Of an i32 tile a buffer of 8- or 16-bit integers gets the low
    /// bits.
    Store {
        /// Index into the buffers.
        buffer: usize,
        /// Address in elements, over grid and loop variables and the axes of `value`; symbol `vK` in it stands for the element of
        /// `gathered[K]` at the same position.
        address: Expr,
        /// i64 tiles (broadcast to the value's shape) that the address may use as `v0`, `v1`, ...
        gathered: Vec<TileId>,
        /// Elements for which not all conditions hold are not stored.
        mask: Vec<Less>,
        /// The tile.
        value: TileId,
    },
    /// A product of matrices into local memory.
    Multiply(Multiply),
    /// A choice between statements.
    If(If),
}

/// `if condition { then } else { otherwise }`. What either defines is not visible after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct If {
    /// A bool tile of one element.
    pub condition: TileId,
    /// What is done where it is true.
    pub then: Vec<Stmt>,
    /// What is done where it is false.
    pub otherwise: Vec<Stmt>,
}

/// `for var in lo..hi step step`: `hi - lo` is a multiple of `step` by construction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct For {
    /// Loop variable.
    pub var: Symbol,
    /// First value.
    pub lo: Expr,
    /// End, exclusive.
    pub hi: Expr,
    /// Step, at least 1.
    pub step: i64,
    /// Tiles carried from one iteration to the next.
    pub carried: Vec<Carried>,
    /// Body.
    pub body: Vec<Stmt>,
}

/// A tile carried by a loop.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Carried {
    /// The value before the first iteration.
    pub init: TileId,
    /// Its name inside the body.
    pub inside: TileId,
    /// What the body hands to the next iteration.
    pub next: TileId,
    /// Its name after the loop (the last `next`, or `init` where there was no iteration).
    pub after: TileId,
}

/// How a tile is computed. All operands of elementwise operations have the result's rank and shape, except that an
/// extent of 1 broadcasts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TileOp {
    /// Every element is the constant.
    Const(Constant),
    /// Element `[a0, a1, ...]` is the expression's value, as i64.
    Index(Expr),
    /// Element `[a0, a1, ...]` is loaded from the address. An i32 tile may be loaded from a buffer of 8- or 16-bit integers: each
    /// element is widened.
    Load {
        /// Index into the buffers.
        buffer: usize,
        /// Address in elements; symbol `vK` in it stands for the element of `gathered[K]` at the same position.
        address: Expr,
        /// i64 tiles (broadcast to the result's shape) that the address may use as `v0`, `v1`, ...
        gathered: Vec<TileId>,
        /// Where not all conditions hold nothing is loaded and the element is `other`.
        mask: Vec<Less>,
        /// See `mask`.
        other: Constant,
    },
    /// Elementwise operation on one tile.
    Unary(UnaryOp, TileId),
    /// Elementwise operation on two tiles.
    Binary(BinaryOp, TileId, TileId),
    /// `a * b + c` with one rounding; on integers a wrapping product and sum.
    Fma(TileId, TileId, TileId),
    /// Elementwise `if a { b } else { c }`.
    Select(TileId, TileId, TileId),
    /// Elementwise conversion.
    Cast(DType, TileId),
    /// Folds the axis away to extent 1 with an associative operation (add, mul, min, max, and, or). In which order
    /// is open: the interpreter goes by rising index, other targets group otherwise, always in the same way.
    Reduce(BinaryOp, usize, TileId),
    /// The tile with its axes in another order.
    Transpose(Vec<usize>, TileId),
    /// Matrix product `a[m,k] · b[k,n] + acc[m,n]`: `a` and `b` converted to the type of `acc`, then `fma` by
    /// rising `k` on floats, a wrapping product and sum on integers. With a [`Product`] of bytes the elements of `a`, `b` and `acc` are i32,
    /// those of `a` and `b` four bytes each, and what is summed is their dot product.
    Dot(Option<Product>, TileId, TileId, TileId),
    /// The i64 tile, where every element is in `-extent..extent`, with the negative ones moved up by `extent`;
    /// any other element makes the kernel fail with this status (not 0), before anything that follows.
    CheckIndex {
        /// The indices.
        index: TileId,
        /// Exclusive bound, over dims, grid and loop variables and axes.
        extent: Expr,
        /// Status that the kernel returns.
        status: u32,
    },
}

impl TileOp {
    /// Calls `f` with every tile that the operation reads.
    pub fn for_each_operand(&mut self, f: &mut dyn FnMut(&mut TileId)) {
        match self {
            TileOp::Const(_) | TileOp::Index(_) => {}
            TileOp::Load { gathered, .. } => gathered.iter_mut().for_each(f),
            TileOp::Unary(_, a) | TileOp::Reduce(_, _, a) | TileOp::Transpose(_, a) => f(a),
            TileOp::Cast(_, a) | TileOp::CheckIndex { index: a, .. } => f(a),
            TileOp::Binary(_, a, b) => [a, b].into_iter().for_each(f),
            TileOp::Fma(a, b, c) | TileOp::Select(a, b, c) | TileOp::Dot(_, a, b, c) => {
                [a, b, c].into_iter().for_each(f);
            }
        }
    }
}
