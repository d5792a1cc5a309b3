//! Sums of products of atoms, each with its coefficient.
//!
//! Invariant: the products rise, each occurs once, and no coefficient is 0. Sums are short, and compilers copy expressions far more often
//! than they make them: a sorted vector of shared products is quicker than a tree of owned ones.

use super::Atom;
use std::sync::Arc;

/// Sorted factors.
pub(super) type Product = Arc<[Atom]>;

/// See the module documentation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub(super) struct Terms(Vec<(Product, i64)>);

impl Terms {
    /// One product. The coefficient is not 0.
    pub(super) fn one(product: Product, coefficient: i64) -> Terms {
        Terms(vec![(product, coefficient)])
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Product, i64)> {
        self.0.iter().map(|(product, c)| (product, *c))
    }

    pub(super) fn atoms(&self) -> impl Iterator<Item = &Atom> {
        self.0.iter().flat_map(|(product, _)| product.iter())
    }

    /// The product and its coefficient, where there is just one.
    pub(super) fn only(&self) -> Option<(&[Atom], i64)> {
        match self.0.as_slice() {
            [(product, c)] => Some((product, *c)),
            _ => None,
        }
    }

    /// Adds a product; saturates.
    pub(super) fn add(&mut self, product: &Product, coefficient: i64) {
        match self.0.binary_search_by(|(p, _)| p.cmp(product)) {
            Ok(at) => match self.0[at].1.saturating_add(coefficient) {
                0 => _ = self.0.remove(at),
                sum => self.0[at].1 = sum,
            },
            Err(at) => self.0.insert(at, (product.clone(), coefficient)),
        }
    }

    /// Every coefficient times a factor that is not 0; saturates.
    pub(super) fn scale(&self, factor: i64) -> Terms {
        Terms(self.0.iter().map(|(p, c)| (p.clone(), c.saturating_mul(factor))).collect())
    }

    /// The terms whose coefficients `d` divides, divided by it, and the others.
    pub(super) fn split(&self, d: i64) -> (Terms, Terms) {
        let (divided, rest): (Vec<_>, Vec<_>) = self.0.iter().cloned().partition(|(_, c)| c.wrapping_rem(d) == 0);
        (Terms(divided.into_iter().map(|(p, c)| (p, c.saturating_div(d))).collect()), Terms(rest))
    }
}
