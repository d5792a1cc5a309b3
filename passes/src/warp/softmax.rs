//! Exponentials below a bound, as a softmax has them.
//!
//! Invariant: only `exp(x - m)` where `m` is never below `x` is computed here, so that results lie between 0 and 1 and need no
//! care above; results below the normal numbers are 0. They err by less than 3 units in the last place, but in the
//! accumulators of matrix instructions, whose operands are rounded to 11 bits or fewer anyway: there by a share of
//! `2^-24 |x|` more, for a multiply-add and one instruction each.

use super::Floats;
use super::build::Builder;
use super::layout::Product;
use super::{LowerError, Lowering, Tile};
use kiln_ir::DType;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::tile::{TileId, TileOp};
use kiln_ir::warp::{Op, ValueId};

/// How many operations back a bound is looked for.
const BACK: usize = 8;

impl Lowering<'_> {
    /// Whether no element of `a` is above the element of `bound` in its row (or is no number where that is none).
    fn is_below(&self, a: TileId, bound: TileId, back: usize) -> bool {
        if a == bound {
            return true;
        }
        let Some(back) = back.checked_sub(1) else { return false };
        match self.definitions.get(&bound) {
            Some(TileOp::Binary(BinaryOp::Max, x, y)) => self.is_below(a, *x, back) || self.is_below(a, *y, back),
            Some(TileOp::Reduce(BinaryOp::Max, _, x)) => self.is_below(a, *x, back),
            Some(_) | None => false,
        }
    }

    /// `x` and `m` where the tile is `exp(x - m)` of f32 and `m` is never below `x`.
    fn below_bound(&self, id: TileId) -> Option<(TileId, TileId)> {
        let Some(TileOp::Unary(UnaryOp::Exp, shifted)) = self.definitions.get(&id) else { return None };
        let Some(TileOp::Binary(BinaryOp::Sub, x, m)) = self.definitions.get(shifted) else { return None };
        let single = self.program.tiles[id].dtype == DType::F32;
        (single && self.is_below(*x, *m, BACK)).then_some((*x, *m))
    }

    /// The exponential, where it is one below a bound.
    pub(super) fn exponential(&mut self, id: TileId) -> Option<Result<Tile, LowerError>> {
        let (x, m) = self.below_bound(id)?;
        let rough = self.layouts.product(id) == Product::Mma && self.options.floats != Floats::Fast;
        Some(self.map(id, [x, m], |s, [x, m]| Ok(if rough { s.code.rough_exp(x, m) } else { s.code.exp_below(x, m) })))
    }

    /// The quotient `e / sum`, where `e` is an exponential below a bound and `sum` that of its row: one of the summands is
    /// 1, so the inverse is neither infinite nor denormal, and a product with it errs by 1.5 units in the last place.
    pub(super) fn share(&mut self, id: TileId, e: TileId, sum: TileId) -> Option<Result<Tile, LowerError>> {
        let Some(TileOp::Reduce(BinaryOp::Add, _, summed)) = self.definitions.get(&sum) else { return None };
        let summed = *summed;
        // What is beyond the end of a row may have been replaced by 0.
        let of = |t: TileId| match self.definitions.get(&t) {
            Some(TileOp::Select(_, x, _)) => *x,
            Some(_) | None => t,
        };
        let same = |a: TileId, b: TileId| a == b || self.below_bound(a).is_some_and(|x| self.below_bound(b) == Some(x));
        self.below_bound(of(e))?;
        if !same(of(e), of(summed)) {
            return None;
        }
        Some(self.map(id, [e, sum], |s, [e, sum]| {
            let one = s.code.float(1.0);
            let inverse = s.code.binary(BinaryOp::Div, one, sum);
            Ok(s.code.binary(BinaryOp::Mul, e, inverse))
        }))
    }
}

impl Builder {
    /// `e^(x - m)` for `x <= m`: `2^t (1 + r)` where `t` is the exponent to base 2, rounded, and `r` what was rounded off,
    /// back to base e.
    fn exp_below(&mut self, x: ValueId, m: ValueId) -> ValueId {
        let d = self.binary(BinaryOp::Sub, x, m);
        // What is below this becomes 0; infinity would have a rest that is no number.
        let least = self.float(-104.0);
        let d = self.binary(BinaryOp::Max, d, least);
        let log2e = self.float(std::f64::consts::LOG2_E);
        let t = self.binary(BinaryOp::Mul, d, log2e);
        let ln2 = std::f64::consts::LN_2;
        let (high, low) = (self.float(-ln2), self.float(f64::from(ln2 as f32) - ln2));
        let rest = self.fma(t, high, d);
        let rest = self.fma(t, low, rest);
        let power = self.op(DType::F32, Op::Exp2(t));
        self.fma(power, rest, power)
    }

    /// `e^(x - m)` for `x <= m` by one multiply-add. The rounding of `m log2(e)` is the same for all of a row, so it
    /// leaves their shares as they are.
    fn rough_exp(&mut self, x: ValueId, m: ValueId) -> ValueId {
        let log2e = self.float(std::f64::consts::LOG2_E);
        let scaled = self.binary(BinaryOp::Mul, m, log2e);
        let minus = self.unary(UnaryOp::Neg, scaled);
        let t = self.fma(x, log2e, minus);
        self.op(DType::F32, Op::Exp2(t))
    }
}
