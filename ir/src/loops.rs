//! Facts about index expressions inside loops whose extents are dims.
//!
//! Invariant: what is proved holds for every value of the dims in their ranges and every iteration; what cannot be
//! proved is left as it is, never guessed.

use crate::expr::{Atom, Expr, Ranges, Symbol};
use std::collections::BTreeMap;

/// Division steps before giving up: products of dims have a handful of terms.
const MOST_STEPS: usize = 64;

/// Loops around an expression, and the ranges of the dims that their extents mention.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loops {
    extents: BTreeMap<Symbol, Expr>,
    dims: Ranges,
    /// Constant bounds of everything.
    ranges: Ranges,
}

/// The factor of the symbol and what is left, where the expression is `factor * symbol + rest` and neither mentions it.
pub fn linear(e: &Expr, symbol: &Symbol) -> Option<(Expr, Expr)> {
    let (mut factor, mut rest) = (Expr::default(), Expr::from(e.constant()));
    for (atoms, c) in e.terms() {
        let at = atoms.iter().position(|a| matches!(a, Atom::Symbol(s) if s == symbol));
        let others = atoms.iter().enumerate().filter(|(n, _)| Some(*n) != at).map(|(_, a)| a);
        let product = others.fold(Expr::from(c), |p, a| p.mul(&Expr::from(a.clone())));
        if product.mentions(symbol) {
            return None;
        }
        match at {
            Some(_) => factor = factor.add(&product),
            None => rest = rest.add(&product),
        }
    }
    Some((factor, rest))
}

/// `e = quotient * by + rest` by long division of polynomials: as much as possible of `e` is in the quotient.
fn divide(e: &Expr, by: &Expr) -> Option<(Expr, Expr)> {
    // The term with the most factors leads; any fixed choice is right.
    let (lead, scale) = by.terms().max_by_key(|(atoms, _)| atoms.len())?;
    let (mut quotient, mut rest) = (Expr::default(), e.clone());
    for _ in 0..MOST_STEPS {
        let found = rest.terms().find_map(|(atoms, c)| {
            let mut left = atoms.to_vec();
            for factor in lead {
                let at = left.iter().position(|a| a == factor)?;
                left.remove(at);
            }
            (c.checked_rem(scale) == Some(0)).then(|| (left, c / scale))
        });
        let Some((atoms, c)) = found else { return Some((quotient, rest)) };
        let part = atoms.into_iter().fold(Expr::from(c), |p, a| p.mul(&Expr::from(a)));
        rest = rest.sub(&part.mul(by));
        quotient = quotient.add(&part);
    }
    None
}

/// `c*d*floordiv(x, d) + c*mod(x, d)` is `c*x`.
fn recombined(e: Expr) -> Expr {
    let pair = e.terms().find_map(|(atoms, c)| {
        let [Atom::Mod(x, d)] = atoms else { return None };
        let quotient = [Atom::FloorDiv(x.clone(), d.clone())];
        let whole = c.checked_mul(d.as_const()?)?;
        let there = e.terms().any(|(other, by)| *other == quotient && by == whole);
        there.then(|| (Expr::from(atoms[0].clone()).scale(c), Expr::from(quotient[0].clone()).scale(whole), x.scale(c)))
    });
    match pair {
        Some((rest, quotient, x)) => recombined(e.sub(&rest).sub(&quotient).add(&x)),
        None => e,
    }
}

impl Loops {
    /// Loop variables, each running from 0, with their extents over dims, and the inclusive ranges of the dims.
    pub fn new(extents: BTreeMap<Symbol, Expr>, dims: Ranges) -> Loops {
        let mut ranges = dims.clone();
        for (symbol, extent) in &extents {
            let (_, hi) = extent.bounds(&dims);
            ranges.insert(symbol.clone(), (0, if hi == i64::MAX { hi } else { (hi - 1).max(0) }));
        }
        Loops { extents, dims, ranges }
    }

    /// Constant bounds of all symbols, where there are any.
    pub fn ranges(&self) -> &Ranges {
        &self.ranges
    }

    /// Whether the expression is proved to be 0 or more in every iteration. Loops without iterations prove anything.
    pub fn is_never_negative(&self, e: &Expr) -> bool {
        if e.bounds(&self.ranges).0 >= 0 {
            return true;
        }
        if self.dims.is_empty() {
            return false;
        }
        let mut least = e.clone();
        for (symbol, extent) in &self.extents {
            if !least.mentions(symbol) {
                continue;
            }
            let Some((factor, rest)) = linear(&least, symbol) else { return false };
            least = if self.is_never_negative(&factor) {
                rest
            } else if self.is_never_negative(&factor.scale(-1)) {
                rest.add(&factor.mul(&extent.sub(&Expr::from(1i64))))
            } else {
                return false;
            };
        }
        if least.bounds(&self.dims).0 >= 0 {
            return true;
        }
        // Dims counted from their least value are 0 or more: then it is enough that no term is taken away.
        let shifted = least.substitute(&|s| {
            let &(lo, _) = self.dims.get(s).filter(|r| r.0 > i64::MIN)?;
            Some(Expr::from(s).add(&Expr::from(lo)))
        });
        let counted: Ranges = self
            .dims
            .iter()
            .map(|(s, &(lo, hi))| {
                let hi = if hi == i64::MAX { hi } else { hi.saturating_sub(lo) };
                (s.clone(), if lo == i64::MIN { (lo, hi) } else { (0, hi) })
            })
            .collect();
        let not_negative = |a: &Atom| Expr::from(a.clone()).bounds(&counted).0 >= 0;
        shifted.constant() >= 0 && shifted.terms().all(|(atoms, c)| c >= 0 && atoms.iter().all(not_negative))
    }

    /// Whether the expression is proved to be less than 0 in every iteration.
    pub fn is_always_negative(&self, e: &Expr) -> bool {
        self.is_never_negative(&e.scale(-1).sub(&Expr::from(1i64)))
    }

    /// Whether the expression is proved to be in `0..extent`.
    fn is_inside(&self, e: &Expr, extent: &Expr) -> bool {
        self.is_never_negative(e) && self.is_always_negative(&e.sub(extent))
    }

    /// Quotient and remainder without a division, where they can be proved.
    fn divided(&self, e: &Expr, by: &Expr) -> Option<(Expr, Expr)> {
        if self.is_inside(e, by) {
            return Some((Expr::default(), e.clone()));
        }
        if by.as_const().is_some() {
            return None;
        }
        divide(e, by).filter(|(_, rest)| self.is_inside(rest, by))
    }

    /// The expression without the divisions, remainders, minima and maxima that the loops decide, and with quotients and
    /// remainders of one division put together again.
    pub fn simplify(&self, e: &Expr) -> Expr {
        recombined(self.decided(e))
    }

    fn decided(&self, e: &Expr) -> Expr {
        let e = e.simplify(&self.ranges);
        if self.dims.is_empty() || e.terms().all(|(atoms, _)| atoms.iter().all(|a| matches!(a, Atom::Symbol(_)))) {
            return e;
        }
        let inner = |e: &Expr| self.decided(e);
        let mut sum = Expr::from(e.constant());
        for (atoms, c) in e.terms() {
            let mut product = Expr::from(c);
            for atom in atoms {
                product = product.mul(&match atom {
                    Atom::Symbol(s) => Expr::from(s),
                    Atom::FloorDiv(a, b) => {
                        let (a, b) = (inner(a), inner(b));
                        self.divided(&a, &b).map_or_else(|| a.floor_div(&b), |d| d.0)
                    }
                    Atom::Mod(a, b) => {
                        let (a, b) = (inner(a), inner(b));
                        self.divided(&a, &b).map_or_else(|| a.modulo(&b), |d| d.1)
                    }
                    Atom::Min(a, b) => {
                        let (a, b) = (inner(a), inner(b));
                        let difference = b.sub(&a);
                        if self.is_never_negative(&difference) {
                            a
                        } else if self.is_never_negative(&difference.scale(-1)) {
                            b
                        } else {
                            a.least(&b)
                        }
                    }
                    Atom::Max(a, b) => {
                        let (a, b) = (inner(a), inner(b));
                        let difference = b.sub(&a);
                        if self.is_never_negative(&difference) {
                            b
                        } else if self.is_never_negative(&difference.scale(-1)) {
                            a
                        } else {
                            a.greatest(&b)
                        }
                    }
                });
            }
            sum = sum.add(&product);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn e(s: &str) -> Expr {
        s.parse().unwrap()
    }

    /// Loops b < B, s < S, i < P + T, t < T, d < 64 over dims B, S, T >= 1 and P >= 0.
    fn loops() -> Loops {
        let extents = [("b", "B"), ("s", "S"), ("i", "P + T"), ("t", "T"), ("d", "64")];
        let dims = [("B", 1), ("S", 1), ("T", 1), ("P", 0)];
        Loops::new(
            extents.iter().map(|(n, x)| (Symbol::new(n), e(x))).collect(),
            dims.iter().map(|(n, lo)| (Symbol::new(n), (*lo, i64::MAX))).collect(),
        )
    }

    #[test]
    fn extents_decide_divisions_by_dims() {
        for (text, expected) in [
            ("floordiv(S*b + s, S)", "b"),
            ("mod(S*b + s, S)", "s"),
            ("floordiv(64*S*b + 64*s + d, 64*S)", "b"),
            ("mod(floordiv(64*S*b + 64*s + d, 64), S)", "s"),
            ("floordiv((P + T)*b + i, P + T)", "b"),
            ("mod((P + T)*b + i, P + T)", "i"),
            ("mod(P + t, P + T)", "P + t"),
            ("min(t, T)", "t"),
            ("max(P + t, P)", "P + t"),
            ("96*floordiv(s, 32) + 3*mod(s, 32) + t", "3*s + t"),
            // Not to be decided: s may be more than T.
            ("mod(s, T)", "mod(s, T)"),
            ("floordiv(S*b + s, T)", "floordiv(S*b + s, T)"),
        ] {
            assert_eq!(loops().simplify(&e(text)), e(expected), "{text}");
        }
    }

    #[test]
    fn signs_are_proved_or_not() {
        let loops = loops();
        for (text, never, always) in [
            ("T - t - 1", true, false),
            ("i - P - T", false, true),
            ("t - T", false, true),
            ("i - P", false, false),
            ("S*B - b*S - s - 1", true, false),
            ("s - b", false, false),
            ("P", true, false),
            ("P - 1", false, false),
        ] {
            assert_eq!(
                (loops.is_never_negative(&e(text)), loops.is_always_negative(&e(text))),
                (never, always),
                "{text}"
            );
        }
    }

    proptest::proptest! {
        #[test]
        fn what_is_simplified_is_equal_everywhere(
            (big_b, big_s, big_t, big_p) in (1i64..4, 1i64..5, 1i64..5, 0i64..4),
            (x, y) in (0usize..12, 0usize..12),
            op in 0usize..4,
        ) {
            let pool = [
                "S*b + s", "b", "s", "T*S*b + T*s + t", "(P + T)*b + i", "P + t", "S", "T", "P + T", "S*T", "64*s + d", "64*S",
            ];
            let text = format!("{}({}, {})", ["floordiv", "mod", "min", "max"][op], pool[x], pool[y]);
            let (loops, original) = (loops(), e(&text));
            let simple = loops.simplify(&original);
            for b in 0..big_b {
                for s in 0..big_s {
                    for t in 0..big_t {
                        for i in 0..big_p + big_t {
                            for d in [0, 1, 63] {
                                let value = |name: &Symbol| Some(match name.name() {
                                    "B" => big_b, "S" => big_s, "T" => big_t, "P" => big_p,
                                    "b" => b, "s" => s, "t" => t, "i" => i, _ => d,
                                });
                                proptest::prop_assert_eq!(original.eval(&value), simple.eval(&value), "{} -> {}", text, simple);
                            }
                        }
                    }
                }
            }
        }
    }
}
