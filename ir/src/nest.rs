//! Nests: what an op means, as loops around scalar code.
//!
//! Invariant: a nest defines every element of one dense result,
//! `out[i0, i1, ...] = finish(fold over r0, r1, ... of body)`, from loads whose index expressions are in range by
//! construction. Fusion, lowering, the interpreter and the counts of work all read this one definition.

use crate::dtype::DType;
use crate::expr::{Expr, Ranges, Symbol};
use crate::scalar::{BinaryOp, Code, Constant, Coord, Scalar, Source};
use std::fmt;

/// One loop nest with one result. See the module documentation.
#[derive(Clone, Debug, PartialEq)]
pub struct Nest {
    /// Extents of the result; index symbols `i0`, `i1`, ...
    pub dims: Vec<Expr>,
    /// Extents of the fold; index symbols `r0`, `r1`, ... Empty: no fold.
    pub folds: Vec<Expr>,
    /// How body values are folded: add, mul, min, max, and, or.
    pub combine: BinaryOp,
    /// What is folded, over loads, index symbols and constants.
    pub body: Code,
    /// Applied to the folded value, which is argument 0; it may load at the index symbols `i`.
    pub finish: Code,
}

/// The index symbol of result axis `n`.
pub fn axis(n: usize) -> Symbol {
    Symbol::numbered("i", n)
}

/// The index symbol of fold axis `n`.
pub fn fold_axis(n: usize) -> Symbol {
    Symbol::numbered("r", n)
}

/// Index expressions `i0 .. i(rank-1)`.
pub fn axes(rank: usize) -> Vec<Expr> {
    (0..rank).map(|n| Expr::from(axis(n))).collect()
}

/// Bounds of the index symbols `i0`, `i1`, ... of constant extents.
pub fn index_ranges(dims: &[Expr]) -> Ranges {
    let bound = |d: &Expr| (0, d.bounds(&Ranges::new()).1.saturating_sub(1).max(0));
    dims.iter().enumerate().map(|(n, d)| (axis(n), bound(d))).collect()
}

impl Nest {
    /// A nest without fold.
    pub fn map(dims: Vec<Expr>, body: Code) -> Nest {
        let finish = Code::identity(body.result_type());
        Nest { dims, folds: vec![], combine: BinaryOp::Add, body, finish }
    }

    /// A nest with a fold.
    pub fn fold(dims: Vec<Expr>, folds: Vec<Expr>, combine: BinaryOp, body: Code) -> Nest {
        let finish = Code::identity(body.result_type());
        Nest { dims, folds, combine, body, finish }
    }

    /// The element type of the result.
    pub fn dtype(&self) -> DType {
        self.finish.result_type()
    }

    /// The value that a fold starts from: the neutral element of `combine`.
    pub fn init(&self) -> Constant {
        neutral(self.combine, self.body.result_type())
    }

    /// Bounds of all index symbols, from the extents under the bounds of the graph's symbols.
    pub fn ranges(&self, symbols: &Ranges) -> Ranges {
        let mut ranges = symbols.clone();
        let named = self.dims.iter().enumerate().map(|(n, d)| (axis(n), d));
        let folded = self.folds.iter().enumerate().map(|(n, d)| (fold_axis(n), d));
        for (symbol, extent) in named.chain(folded) {
            let (_, hi) = extent.bounds(symbols);
            ranges.insert(symbol, (0, hi.saturating_sub(1).max(0)));
        }
        ranges
    }

    /// Arithmetic operations of one evaluation of body and fold, and of finish (moves, loads and indices are free).
    pub fn operations(&self) -> (u64, u64) {
        let count = |code: &Code| {
            let live = code.live();
            let counts =
                |n: &Scalar| matches!(n, Scalar::Unary(..) | Scalar::Binary(..) | Scalar::Fma(..) | Scalar::Select(..));
            code.nodes().filter(|(id, n)| live[id.index()] && counts(n)).count() as u64
        };
        (count(&self.body) + u64::from(!self.folds.is_empty()), count(&self.finish))
    }

    /// Calls `f` with the source of every load in body and finish.
    pub fn for_each_load(&self, f: &mut dyn FnMut(Source, &[Coord])) {
        for code in [&self.body, &self.finish] {
            let live = code.live();
            for (id, node) in code.nodes() {
                if let (Scalar::Load(source, coords), true) = (node, live[id.index()]) {
                    f(*source, coords);
                }
            }
        }
    }
}

/// The neutral element of an associative operation.
pub fn neutral(combine: BinaryOp, dtype: DType) -> Constant {
    let range = dtype.int_range().unwrap_or((0, 1));
    match combine {
        BinaryOp::Mul => Constant::int(dtype, 1),
        BinaryOp::Max if dtype.is_float() => Constant::float(dtype, f64::NEG_INFINITY),
        BinaryOp::Min if dtype.is_float() => Constant::float(dtype, f64::INFINITY),
        BinaryOp::Max => Constant::int(dtype, range.0 as i64),
        BinaryOp::Min => Constant::int(dtype, range.1 as i64),
        BinaryOp::And => Constant::int(dtype, if dtype == DType::Bool { 1 } else { -1 }),
        _ => Constant::int(dtype, 0),
    }
}

impl fmt::Display for Nest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nest [{}]", crate::text::Commas(&self.dims))?;
        if !self.folds.is_empty() {
            write!(f, " fold {} [{}]", self.combine.name(), crate::text::Commas(&self.folds))?;
        }
        write!(f, " {} finish {}", self.body, self.finish)
    }
}
