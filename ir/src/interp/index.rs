//! Index expressions compiled to numbered axes.
//!
//! Invariant: [`Index::eval`] gives what [`Expr::eval`] gives for the same values of the symbols.

use super::EvalError;
use crate::expr::{Atom, Expr, Ranges, Symbol, floor_div, floor_mod};
use std::collections::HashMap;

/// The loop axes of a nest: the result's, then the fold's.
pub(super) struct Space {
    /// Extents; a collapsed axis keeps its number and has extent 1.
    pub extents: Vec<usize>,
    /// How many of them are the result's.
    pub results: usize,
    symbols: HashMap<Symbol, usize>,
    ranges: Ranges,
}

impl Space {
    /// The axes of a nest with these extents, none of them 0.
    pub fn new(dims: &[usize], folds: &[usize]) -> Space {
        let results = dims.iter().enumerate().map(|(n, &d)| (crate::nest::axis(n), d));
        let folded = folds.iter().enumerate().map(|(n, &d)| (crate::nest::fold_axis(n), d));
        let (mut symbols, mut ranges, mut extents) = (HashMap::new(), Ranges::new(), Vec::new());
        for (symbol, d) in results.chain(folded) {
            let last = i64::try_from(d).unwrap_or(i64::MAX).saturating_sub(1);
            ranges.insert(symbol.clone(), (0, last));
            symbols.insert(symbol, extents.len());
            extents.push(d);
        }
        Space { extents, results: dims.len(), symbols, ranges }
    }

    /// Whether the expression is in `0..extent` for all values of the axes.
    pub fn is_within(&self, e: &Expr, extent: usize) -> bool {
        let (lo, hi) = e.bounds(&self.ranges);
        lo >= 0 && usize::try_from(hi).is_ok_and(|hi| hi < extent)
    }

    /// Compiles an expression.
    ///
    /// # Errors
    /// It mentions a symbol that is no axis.
    pub fn compile(&self, e: &Expr) -> Result<Index, EvalError> {
        self.compile_raw(&e.simplify(&self.ranges))
    }

    fn compile_raw(&self, e: &Expr) -> Result<Index, EvalError> {
        let mut index = Index { constant: e.constant(), steps: vec![0; self.extents.len()], products: Vec::new() };
        for (atoms, c) in e.terms() {
            if let [Atom::Symbol(s)] = atoms {
                let axis = self.axis(s)?;
                // An axis of extent 1 stays at 0, whatever its coefficient.
                index.steps[axis] = if self.extents[axis] == 1 { 0 } else { c };
            } else {
                let factors: Result<Vec<Factor>, EvalError> = atoms.iter().map(|a| self.factor(a)).collect();
                index.products.push((c, factors?));
            }
        }
        Ok(index)
    }

    fn axis(&self, s: &Symbol) -> Result<usize, EvalError> {
        self.symbols.get(s).copied().ok_or_else(|| EvalError::Unbound(s.to_string()))
    }

    fn factor(&self, atom: &Atom) -> Result<Factor, EvalError> {
        let pair = |a: &Expr, b: &Expr| Ok::<_, EvalError>(Box::new((self.compile_raw(a)?, self.compile_raw(b)?)));
        Ok(match atom {
            Atom::Symbol(s) => Factor::Axis(self.axis(s)?),
            Atom::FloorDiv(a, b) => Factor::FloorDiv(pair(a, b)?),
            Atom::Mod(a, b) => Factor::Mod(pair(a, b)?),
            Atom::Min(a, b) => Factor::Min(pair(a, b)?),
            Atom::Max(a, b) => Factor::Max(pair(a, b)?),
        })
    }

    /// Joins neighbouring axes that every one of `indices` walks like one longer axis.
    pub fn collapse(&mut self, indices: &mut [&mut Index]) {
        for k in (0..self.extents.len().saturating_sub(1)).rev() {
            // The next axis inwards that is not gone already, on the same side of the fold.
            let end = if k < self.results { self.results } else { self.extents.len() };
            let Some(inner) = (k + 1..end).find(|&n| self.extents[n] != 1) else { continue };
            let (outer_extent, extent) = (self.extents[k], self.extents[inner]);
            let joins = |i: &&mut Index| {
                i64::try_from(extent).ok().and_then(|d| i.steps[inner].checked_mul(d)) == Some(i.steps[k])
                    && !i.products.iter().any(|(_, f)| f.iter().any(|f| f.mentions(k) || f.mentions(inner)))
            };
            let Some(joined) = outer_extent.checked_mul(extent) else { continue };
            if outer_extent != 1 && indices.iter().all(joins) {
                for i in indices.iter_mut() {
                    i.steps[k] = 0;
                }
                self.extents[inner] = joined;
                self.extents[k] = 1;
            }
        }
    }
}

/// A compiled index expression: a constant, a step for each axis, and products that are not linear.
#[derive(Clone)]
pub(super) struct Index {
    constant: i64,
    /// The coefficient of each axis.
    pub steps: Vec<i64>,
    products: Vec<(i64, Vec<Factor>)>,
}

#[derive(Clone)]
enum Factor {
    Axis(usize),
    FloorDiv(Box<(Index, Index)>),
    Mod(Box<(Index, Index)>),
    Min(Box<(Index, Index)>),
    Max(Box<(Index, Index)>),
}

impl Factor {
    fn mentions(&self, axis: usize) -> bool {
        match self {
            Factor::Axis(a) => *a == axis,
            Factor::FloorDiv(p) | Factor::Mod(p) | Factor::Min(p) | Factor::Max(p) => {
                p.0.mentions(axis) || p.1.mentions(axis)
            }
        }
    }

    fn eval(&self, at: &[i64]) -> i64 {
        match self {
            Factor::Axis(a) => at[*a],
            Factor::FloorDiv(p) => floor_div(p.0.eval(at), p.1.eval(at)),
            Factor::Mod(p) => floor_mod(p.0.eval(at), p.1.eval(at)),
            Factor::Min(p) => p.0.eval(at).min(p.1.eval(at)),
            Factor::Max(p) => p.0.eval(at).max(p.1.eval(at)),
        }
    }
}

impl Index {
    /// An index that is linear in the axes.
    pub fn linear(steps: Vec<i64>) -> Index {
        Index { constant: 0, steps, products: Vec::new() }
    }

    /// The value at a point of the space.
    pub fn eval(&self, at: &[i64]) -> i64 {
        let mut sum = self.constant;
        for (step, x) in self.steps.iter().zip(at) {
            sum = sum.saturating_add(step.saturating_mul(*x));
        }
        for (c, factors) in &self.products {
            sum = sum.saturating_add(factors.iter().fold(*c, |p, f| p.saturating_mul(f.eval(at))));
        }
        sum
    }

    /// How the value changes with each step along an axis, where that is always the same.
    pub fn along(&self, axis: usize) -> Option<i64> {
        self.is_linear_in(axis).then(|| self.steps.get(axis).copied().unwrap_or(0))
    }

    /// Whether the axis occurs in no product.
    pub fn is_linear_in(&self, axis: usize) -> bool {
        !self.products.iter().any(|(_, f)| f.iter().any(|f| f.mentions(axis)))
    }

    fn mentions(&self, axis: usize) -> bool {
        self.steps.get(axis).is_some_and(|&s| s != 0) || !self.is_linear_in(axis)
    }

    /// The values at `out.len()` points from `at` along an axis.
    pub fn fill(&self, at: &mut [i64], axis: usize, out: &mut [i64]) {
        let start = at[axis];
        match self.along(axis) {
            Some(step) => {
                let base = self.eval(at);
                for (l, v) in out.iter_mut().enumerate() {
                    *v = base.saturating_add(step.saturating_mul(l as i64));
                }
            }
            None => {
                for (l, v) in out.iter_mut().enumerate() {
                    at[axis] = start + l as i64;
                    *v = self.eval(at);
                }
                at[axis] = start;
            }
        }
    }
}

/// Calls `f` at every point of the axes in `walk` (the others stay at 0), the last one fastest.
///
/// # Errors
/// Those of `f`.
pub(super) fn for_each_point(
    extents: &[usize],
    walk: &[usize],
    at: &mut [i64],
    f: &mut dyn FnMut(&mut [i64]) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    for &axis in walk {
        at[axis] = 0;
    }
    loop {
        f(at)?;
        let Some(&axis) = walk.iter().rev().find(|&&a| (at[a] as usize) + 1 < extents[a]) else {
            for &axis in walk {
                at[axis] = 0;
            }
            return Ok(());
        };
        for &inner in walk.iter().rev().take_while(|&&a| a != axis) {
            at[inner] = 0;
        }
        at[axis] += 1;
    }
}
