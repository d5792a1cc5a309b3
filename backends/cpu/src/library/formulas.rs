//! Expressions over free dims as code.
//!
//! Invariant: the code computes what [`Expr::eval`] computes, saturation and division by zero included. Where bounds of the
//! dims show that nothing can overflow, plain arithmetic does it.

use super::asm::{Code, I64};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use kiln_ir::expr::{Atom, Expr, Symbol};
use std::collections::HashMap;

/// A value and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounded {
    pub value: Value,
    lo: i64,
    hi: i64,
}

/// Expressions of one block of code; quotients and the like are computed once.
#[derive(Default)]
pub(super) struct Formulas {
    symbols: HashMap<Symbol, Bounded>,
    atoms: HashMap<Atom, Bounded>,
}

/// The interval, cut to what 64 bits hold, and whether something was cut.
fn fit(lo: i128, hi: i128) -> (i64, i64, bool) {
    let clamp = |v: i128| i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX });
    let (l, h) = (clamp(lo), clamp(hi));
    (l, h, i128::from(l) != lo || i128::from(h) != hi)
}

impl Formulas {
    /// Loads the values of symbols that have been checked against their ranges.
    pub fn load(c: &mut Code<'_, '_>, symbols: &[(Symbol, (i64, i64))], dims: Value) -> Formulas {
        let mut all = Formulas::default();
        for (n, (symbol, (lo, hi))) in symbols.iter().enumerate() {
            let value = c.load(dims, (n * 8) as i32);
            all.know(symbol, value, *lo, *hi);
        }
        all
    }

    /// Gives a symbol its value.
    pub fn know(&mut self, symbol: &Symbol, value: Value, lo: i64, hi: i64) {
        self.symbols.insert(symbol.clone(), Bounded { value, lo, hi });
    }

    /// The value of an expression; 0 for symbols without a value, which callers exclude.
    pub fn value(&mut self, c: &mut Code<'_, '_>, e: &Expr) -> Value {
        self.expr(c, e).value
    }

    fn constant(c: &mut Code<'_, '_>, value: i64) -> Bounded {
        Bounded { value: c.int(value), lo: value, hi: value }
    }

    // The order of sums and products is that of `Expr::eval`: where they saturate, it matters.
    fn expr(&mut self, c: &mut Code<'_, '_>, e: &Expr) -> Bounded {
        let mut sum = Self::constant(c, e.constant());
        for (atoms, factor) in e.terms() {
            let mut product = Self::constant(c, factor);
            for atom in atoms {
                let atom = self.atom(c, atom);
                product = multiply(c, product, atom);
            }
            sum = add(c, sum, product);
        }
        sum
    }

    fn atom(&mut self, c: &mut Code<'_, '_>, atom: &Atom) -> Bounded {
        if let Some(known) = self.atoms.get(atom) {
            return *known;
        }
        let made = match atom {
            Atom::Symbol(s) => match self.symbols.get(s) {
                Some(known) => *known,
                None => Self::constant(c, 0),
            },
            Atom::FloorDiv(a, b) => {
                let (a, b) = (self.expr(c, a), self.expr(c, b));
                divide(c, a, b).0
            }
            Atom::Mod(a, b) => {
                let (a, b) = (self.expr(c, a), self.expr(c, b));
                divide(c, a, b).1
            }
            Atom::Min(a, b) => {
                let (a, b) = (self.expr(c, a), self.expr(c, b));
                Bounded { value: c.b.ins().smin(a.value, b.value), lo: a.lo.min(b.lo), hi: a.hi.min(b.hi) }
            }
            Atom::Max(a, b) => {
                let (a, b) = (self.expr(c, a), self.expr(c, b));
                Bounded { value: c.b.ins().smax(a.value, b.value), lo: a.lo.max(b.lo), hi: a.hi.max(b.hi) }
            }
        };
        self.atoms.insert(atom.clone(), made);
        made
    }
}

fn add(c: &mut Code<'_, '_>, a: Bounded, b: Bounded) -> Bounded {
    let (lo, hi, overflows) = fit(i128::from(a.lo) + i128::from(b.lo), i128::from(a.hi) + i128::from(b.hi));
    let sum = c.b.ins().iadd(a.value, b.value);
    if !overflows {
        return Bounded { value: sum, lo, hi };
    }
    // It overflowed where both signs differ from that of the sum.
    let (x, y) = (c.b.ins().bxor(a.value, sum), c.b.ins().bxor(b.value, sum));
    let both = c.b.ins().band(x, y);
    let overflowed = c.icmp_imm(IntCC::SignedLessThan, both, 0);
    let limit = limit(c, a.value);
    Bounded { value: c.b.ins().select(overflowed, limit, sum), lo, hi }
}

fn multiply(c: &mut Code<'_, '_>, a: Bounded, b: Bounded) -> Bounded {
    let (al, ah, bl, bh) = (i128::from(a.lo), i128::from(a.hi), i128::from(b.lo), i128::from(b.hi));
    let corners = [al * bl, al * bh, ah * bl, ah * bh];
    let (least, most) = corners.iter().fold((i128::MAX, i128::MIN), |(l, h), &v| (l.min(v), h.max(v)));
    let (lo, hi, overflows) = fit(least, most);
    let product = c.b.ins().imul(a.value, b.value);
    if !overflows {
        return Bounded { value: product, lo, hi };
    }
    // The upper half of an exact product repeats the sign of the lower one.
    let high = c.b.ins().smulhi(a.value, b.value);
    let shift = c.int(63);
    let sign = c.b.ins().sshr(product, shift);
    let overflowed = c.icmp(IntCC::NotEqual, high, sign);
    let signs = c.b.ins().bxor(a.value, b.value);
    let limit = limit(c, signs);
    Bounded { value: c.b.ins().select(overflowed, limit, product), lo, hi }
}

/// The least number where the sign is set, else the greatest.
fn limit(c: &mut Code<'_, '_>, sign: Value) -> Value {
    let negative = c.icmp_imm(IntCC::SignedLessThan, sign, 0);
    let (least, most) = (c.int(i64::MIN), c.int(i64::MAX));
    c.b.ins().select(negative, least, most)
}

/// Quotient rounded towards minus infinity and the remainder that goes with it; both 0 where the divisor is 0.
fn divide(c: &mut Code<'_, '_>, a: Bounded, b: Bounded) -> (Bounded, Bounded) {
    let zero = c.int(0);
    // Divisors that a machine's division stops at take 1's place for it, and their results that of 1's.
    let (is_zero, is_minus) = (c.icmp_imm(IntCC::Equal, b.value, 0), c.icmp_imm(IntCC::Equal, b.value, -1));
    let plain = b.lo > 0;
    let divisor = if plain {
        b.value
    } else {
        let special = c.b.ins().bor(is_zero, is_minus);
        let one = c.int(1);
        c.b.ins().select(special, one, b.value)
    };
    let quotient = c.b.ins().sdiv(a.value, divisor);
    let back = c.b.ins().imul(quotient, divisor);
    let rest = c.b.ins().isub(a.value, back);
    let inexact = c.icmp(IntCC::NotEqual, rest, zero);
    let signs = c.b.ins().bxor(a.value, divisor);
    let differ = c.icmp_imm(IntCC::SignedLessThan, signs, 0);
    let below = c.b.ins().band(inexact, differ);
    let below_wide = c.b.ins().uextend(I64, below);
    let mut floor = c.b.ins().isub(quotient, below_wide);
    let up = c.b.ins().iadd(rest, divisor);
    let mut modulo = c.b.ins().select(below, up, rest);
    if !plain {
        let negated = c.b.ins().ineg(a.value);
        let least = c.icmp_imm(IntCC::Equal, a.value, i64::MIN);
        let most = c.int(i64::MAX);
        let negated = c.b.ins().select(least, most, negated);
        floor = c.b.ins().select(is_minus, negated, floor);
        floor = c.b.ins().select(is_zero, zero, floor);
        let special = c.b.ins().bor(is_zero, is_minus);
        modulo = c.b.ins().select(special, zero, modulo);
    }
    let (mut lo, mut hi) = (i64::MIN, i64::MAX);
    if plain && a.lo >= 0 {
        // Neither grows, and nothing below zero comes of it.
        (lo, hi) = (0, a.hi);
    }
    let modulo_bounds = if plain { (0, b.hi - 1) } else { (i64::MIN, i64::MAX) };
    (Bounded { value: floor, lo, hi }, Bounded { value: modulo, lo: modulo_bounds.0, hi: modulo_bounds.1 })
}
