//! Products of matrices by a unit that multiplies whole tiles.
//!
//! Invariant: what the unit needs is a part of the statement: how the rows and columns are cut into its registers, and by how much
//! it walks along the folds. Cutting otherwise changes nothing but the order of float additions.

use crate::expr::{Expr, Symbol};
use crate::vector::Product;

/// Sets local memory, `[rows][columns]`, to sums of products, or adds them to what is there: over all rounds and their folds and, within a step of the innermost
/// one, over all factors and `depth` elements of both of them. In which order floats are added is open, but for rounds, of which one is
/// added after the other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Multiply {
    /// The local buffer and where in it the `rows * columns` elements begin.
    pub out: (usize, Expr),
    /// Whether the sums begin with what is there, instead of with nothing.
    pub adds: bool,
    /// Rows, as many as each register has.
    pub rows: Vec<usize>,
    /// Columns, as many as each register has.
    pub columns: Vec<usize>,
    /// How two elements are multiplied.
    pub product: Product,
    /// Elements of a row of the left operand's registers, and rows of the right one's.
    pub depth: usize,
    /// What is multiplied in each step, for each walk along the folds. What follows one another with the same operand reads it once.
    pub rounds: Vec<Vec<Factors>>,
    /// Variables with their extents and steps, outermost first.
    pub folds: Vec<(Symbol, Expr, i64)>,
    /// What is read later and asked for meanwhile.
    pub ahead: Option<Ahead>,
}

/// Lines of memory that each step asks for, which changes time alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ahead {
    /// Buffer and address of an element of the first line, which may lie beyond the buffer.
    pub from: (usize, Expr),
    /// How many lines of 64 bytes follow one another.
    pub lines: usize,
}

/// Two operands of a product.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Factors {
    /// Buffer and address of the left operand's element in row `a0` at step `a1`.
    pub left: (usize, Expr),
    /// Buffer and address of the right operand's element at step `a0` in column `a1`.
    pub right: (usize, Expr),
}

impl Multiply {
    /// Rows and columns of the result.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows.iter().sum(), self.columns.iter().sum()]
    }
}
