//! Index expressions and conditions as values.
//!
//! Invariant: an expression is computed in i32 only where the bounds of its symbols show that no part of it leaves
//! i32; else in i64. Conditions that the bounds decide are not computed.

use super::layout::{Bit, Layout};
use super::{LowerError, Lowering};
use kiln_ir::expr::{Atom, Ranges, Symbol};
use kiln_ir::scalar::{BinaryOp, Less};
use kiln_ir::tile::axis;
use kiln_ir::warp::{Op, ValueId};
use kiln_ir::{DType, Expr};
use std::collections::HashMap;

/// The part of a position along an axis that the thread's number gives, as a symbol that no text can name.
fn thread_part(mask: &[Bit]) -> Symbol {
    let bits: Vec<String> = mask
        .iter()
        .map(|b| match b {
            Bit::Register => "r".to_string(),
            Bit::Thread(n) => n.to_string(),
        })
        .collect();
    Symbol::numbered(&format!("thread.{}.", bits.join(".")), bits.len())
}

/// Whether the condition holds in no thread, all threads, or where a value says so.
pub(super) enum Condition {
    Never,
    Always,
    Where(ValueId),
}

impl Lowering<'_> {
    /// The number of the thread in its block.
    pub(super) fn thread(&mut self) -> ValueId {
        self.code.op(DType::I32, Op::Thread)
    }

    /// The i32 that selected bits of the thread's number make, each moved to its place in the position.
    fn selected_bits(&mut self, bits: &[Bit]) -> ValueId {
        let thread = self.thread();
        let mut sum = self.code.int(DType::I32, 0);
        let mut position = 0;
        while position < bits.len() {
            let Bit::Thread(first) = bits[position] else {
                position += 1;
                continue;
            };
            let follows = |&i: &usize| bits.get(position + i) == Some(&Bit::Thread(first + i as u32));
            let run = 1 + (1..).take_while(follows).count();
            let moved = self.code.with(BinaryOp::Shr, thread, i64::from(first));
            // The number's own top bits need no mask.
            let top = first as usize + run >= self.layouts.threads as usize;
            let masked = if top { moved } else { self.code.with(BinaryOp::And, moved, (1 << run) - 1) };
            let placed = self.code.with(BinaryOp::Shl, masked, position as i64);
            sum = self.code.add(sum, placed);
            position += run;
        }
        sum
    }

    /// The thread's part of the position along an axis, as an expression.
    pub(super) fn thread_position(&mut self, layout: &Layout, k: usize) -> Expr {
        if layout.used_along(k) == 0 {
            return Expr::default();
        }
        let symbol = thread_part(&layout.axes[k]);
        if !self.env.contains_key(&symbol) {
            let value = self.selected_bits(&layout.axes[k]);
            let most = (0i64..)
                .zip(&layout.axes[k])
                .filter(|(_, b)| **b != Bit::Register)
                .fold(0, |sum, (position, _)| sum + (1 << position));
            self.ranges.insert(symbol.clone(), (0, most));
            self.env.insert(symbol.clone(), value);
        }
        Expr::from(symbol)
    }

    /// The expression with each axis replaced by the thread's part of its position and what `offsets` adds.
    pub(super) fn at(&mut self, e: &Expr, layout: &Layout, offsets: &[i64]) -> Expr {
        let positions: Vec<Expr> = (0..layout.shape.len())
            .map(|k| {
                let own = self.thread_position(layout, k);
                own.add(&Expr::from(offsets.get(k).copied().unwrap_or(0)))
            })
            .collect();
        let axes: Vec<Symbol> = (0..positions.len()).map(axis).collect();
        let replaced = e.substitute(&|s| axes.iter().position(|a| a == s).map(|k| positions[k].clone()));
        replaced.simplify(&self.ranges)
    }

    /// Whether the condition holds at the place of an element.
    pub(super) fn condition(&mut self, less: &Less, layout: &Layout, offsets: &[i64]) -> Result<Condition, LowerError> {
        let difference = self.at(&less.left.sub(&less.right), layout, offsets);
        let (lo, hi) = difference.bounds(&self.ranges);
        if hi < 0 {
            return Ok(Condition::Always);
        }
        if lo >= 0 {
            return Ok(Condition::Never);
        }
        // Registers that differ by a constant share the sum.
        let sum = difference.sub(&Expr::from(difference.constant()));
        let value = self.expr(&sum)?;
        let bound = -i128::from(difference.constant());
        let Some(bound) =
            i64::try_from(bound).ok().filter(|&b| self.code.ty(value) == DType::I64 || b.unsigned_abs() < 1 << 31)
        else {
            return Err(self.unsupported(format!("the condition `{} < {}`", less.left, less.right)));
        };
        Ok(Condition::Where(self.code.with(BinaryOp::Lt, value, bound)))
    }

    /// All conditions of a mask, and that the element is in the tile.
    pub(super) fn mask(&mut self, mask: &[Less], layout: &Layout, offsets: &[i64]) -> Result<Condition, LowerError> {
        let inside = (0..layout.shape.len())
            .filter(|&k| layout.is_padded(k))
            .map(|k| Less { left: Expr::from(axis(k)), right: Expr::from(layout.shape[k]) });
        let all: Vec<Less> = mask.iter().cloned().chain(inside).collect();
        let mut sum = None;
        for less in &all {
            match self.condition(less, layout, offsets)? {
                Condition::Always => {}
                Condition::Never => return Ok(Condition::Never),
                Condition::Where(value) => sum = self.code.both(sum, Some(value)),
            }
        }
        Ok(sum.map_or(Condition::Always, Condition::Where))
    }

    /// The value of an expression over symbols in scope: an i32, or an i64.
    pub(super) fn expr(&mut self, e: &Expr) -> Result<ValueId, LowerError> {
        let e = e.simplify(&self.ranges);
        let ty = if fits(&e, &self.ranges) { DType::I32 } else { DType::I64 };
        self.sum(&e, ty)
    }

    /// The value of an expression as an i64.
    pub(super) fn wide(&mut self, e: &Expr) -> Result<ValueId, LowerError> {
        let value = self.expr(e)?;
        Ok(self.code.cast(DType::I64, value))
    }

    fn sum(&mut self, e: &Expr, ty: DType) -> Result<ValueId, LowerError> {
        let mut sum = self.code.int(ty, 0);
        for (atoms, coefficient) in e.terms() {
            let mut product = None;
            for atom in atoms {
                let value = self.atom(atom, ty)?;
                product = Some(match product {
                    None => value,
                    Some(p) => self.code.binary(BinaryOp::Mul, p, value),
                });
            }
            if let Some(product) = product {
                let scaled = self.code.with(BinaryOp::Mul, product, coefficient);
                sum = self.code.add(sum, scaled);
            }
        }
        Ok(self.code.with(BinaryOp::Add, sum, e.constant()))
    }

    fn atom(&mut self, atom: &Atom, ty: DType) -> Result<ValueId, LowerError> {
        let (a, b, op) = match atom {
            Atom::Symbol(s) => {
                let Some(&value) = self.env.get(s) else {
                    return Err(self.unsupported(format!("the symbol `{s}`, which is no dim or variable in scope")));
                };
                return Ok(self.code.cast(ty, value));
            }
            Atom::FloorDiv(a, b) => (a, b, BinaryOp::Div),
            Atom::Mod(a, b) => (a, b, BinaryOp::Mod),
            Atom::Min(a, b) => (a, b, BinaryOp::Min),
            Atom::Max(a, b) => (a, b, BinaryOp::Max),
        };
        let natural = a.bounds(&self.ranges).0 >= 0 && b.bounds(&self.ranges).0 >= 0;
        let (x, y) = (self.sum(a, ty)?, self.sum(b, ty)?);
        if op == BinaryOp::Div && !natural {
            // Rounding towards zero is the same as downwards once the remainder is taken away.
            let rest = self.code.binary(BinaryOp::Mod, x, y);
            let whole = self.code.binary(BinaryOp::Sub, x, rest);
            return Ok(self.code.binary(BinaryOp::Div, whole, y));
        }
        let power = b.as_const().filter(|b| natural && *b > 0 && b & (b - 1) == 0);
        Ok(match (op, power) {
            (BinaryOp::Div, Some(b)) => self.code.with(BinaryOp::Shr, x, i64::from(b.trailing_zeros())),
            (BinaryOp::Mod, Some(b)) => self.code.with(BinaryOp::And, x, b - 1),
            (BinaryOp::Mod, None) if natural => self.code.binary(BinaryOp::Rem, x, y),
            _ => self.code.binary(op, x, y),
        })
    }
}

/// The greatest magnitude that any part of the expression can have; `i64::MAX` where that is not known.
fn magnitude(e: &Expr, ranges: &Ranges) -> i64 {
    e.terms().fold(e.constant().saturating_abs(), |sum, (atoms, coefficient)| {
        let product = atoms.iter().fold(coefficient.saturating_abs(), |product, atom| {
            let of_atom = match atom {
                Atom::Symbol(s) => {
                    ranges.get(s).map_or(i64::MAX, |(lo, hi)| lo.saturating_abs().max(hi.saturating_abs()))
                }
                Atom::FloorDiv(a, b) | Atom::Mod(a, b) | Atom::Min(a, b) | Atom::Max(a, b) => {
                    // Twice, because a remainder is taken away before a division.
                    magnitude(a, ranges).max(magnitude(b, ranges)).saturating_mul(2)
                }
            };
            product.saturating_mul(of_atom)
        });
        sum.saturating_add(product)
    })
}

/// Whether every part of the expression fits an i32.
pub(super) fn fits(e: &Expr, ranges: &Ranges) -> bool {
    magnitude(e, ranges) <= i64::from(i32::MAX)
}

/// A number that divides the expression whatever the symbols are, given such numbers of some of them; 0 where the
/// expression is 0.
pub(super) fn divisor(e: &Expr, multiples: &HashMap<Symbol, i64>) -> i64 {
    e.terms().fold(e.constant(), |divisor, (atoms, coefficient)| {
        let term = atoms.iter().fold(coefficient, |product, atom| match atom {
            Atom::Symbol(s) => product.saturating_mul(multiples.get(s).copied().unwrap_or(1)),
            Atom::FloorDiv(..) | Atom::Mod(..) | Atom::Min(..) | Atom::Max(..) => product,
        });
        common(divisor, term)
    })
}

/// The greatest number that divides both.
pub(super) fn common(a: i64, b: i64) -> i64 {
    if b == 0 { a.saturating_abs() } else { common(b, a.wrapping_rem(b)) }
}
