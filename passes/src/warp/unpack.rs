//! Numbers of few bits as f32, without an instruction that converts.
//!
//! Invariant: results are exact. Bits that are put into the low end of 2^23's mantissa are added to it, so that a word's bits
//! become a number by one operation on bits (`lop3` masks and sets them at once) and one multiply-add, which takes 2^23
//! away, moves the number down to where it would have been shifted to, and subtracts what is subtracted from it. Frantar et al.
//! 2024 (MARLIN) do it with f16 and 2^10.

use super::Lowering;
use kiln_ir::DType;
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_ir::warp::{Op, ValueId};

/// 2^23 as f32.
const WHOLE: i64 = 0x4b00_0000;

/// The bits below it.
const ROOM: i64 = 23;

/// Bits that one shift serves.
const HALF: i64 = 16;

impl Lowering<'_> {
    fn operation(&self, x: ValueId) -> Option<(BinaryOp, ValueId, i64)> {
        match self.code.definition(x)? {
            Op::Binary(op, a, b) => Some((*op, *a, self.code.known(*b)?.as_i64()?)),
            _ => None,
        }
    }

    /// An i32 of few bits as f32, where it is cut out of a word.
    pub(super) fn unpacked(&mut self, x: ValueId) -> Option<ValueId> {
        if self.code.ty(x) != DType::I32 {
            return None;
        }
        let (number, less) = match self.operation(x)? {
            (BinaryOp::Sub, a, less) if (0..=HALF).contains(&less) => (a, less),
            _ => (x, 0),
        };
        let (BinaryOp::And, moved, mask) = self.operation(number)? else { return None };
        let (word, shift) = match self.operation(moved) {
            Some((BinaryOp::Shr, word, shift)) if (0..32).contains(&shift) => (word, shift),
            _ => (moved, 0),
        };
        let bits = i64::from(mask.trailing_ones());
        let within = shift % HALF;
        if mask <= 0 || mask.count_ones() != mask.trailing_ones() || within + bits > ROOM {
            return None;
        }
        let word = self.code.with(BinaryOp::Shr, word, shift - within);
        let kept = self.code.with(BinaryOp::And, word, mask << within);
        let whole = self.code.with(BinaryOp::Or, kept, WHOLE);
        let value = self.code.op(DType::F32, Op::Bitcast(DType::F32, whole));
        Some(self.scaled(value, within, less))
    }

    /// `(value - 2^23) / 2^within - less`, in one rounding of what is a whole number.
    fn scaled(&mut self, value: ValueId, within: i64, less: i64) -> ValueId {
        let factor = self.code.float((-(within as f64)).exp2());
        let rest = self.code.float(-((ROOM - within) as f64).exp2() - less as f64);
        self.code.fma(value, factor, rest)
    }

    /// What an unpacked number becomes when a small whole number is subtracted.
    pub(super) fn unpacked_less(&mut self, x: ValueId, less: Constant) -> Option<ValueId> {
        let Some(Op::Fma(value, factor, rest)) = self.code.definition(x).cloned() else { return None };
        let (factor, rest) = (self.code.known(factor)?.as_f64(), self.code.known(rest)?.as_f64());
        let (within, less) = (-factor.log2(), less.as_f64());
        let is_unpacked = rest == -(ROOM as f64 - within).exp2() && (0.0..HALF as f64).contains(&within);
        let is_bits = matches!(self.code.definition(value), Some(Op::Bitcast(..)));
        let whole = less.fract() == 0.0 && (0.0..=HALF as f64).contains(&less);
        (is_unpacked && is_bits && whole).then(|| self.scaled(value, within as i64, less as i64))
    }
}
