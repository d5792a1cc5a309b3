//! Weights that are set to zero.
//!
//! Invariant: what stays keeps its value. Of weights of one magnitude the earlier ones go first.

use crate::rewrite::sparse;

/// A pruned matrix.
#[derive(Clone, Debug, PartialEq)]
pub struct Pruned {
    /// The elements, in the order of the matrix.
    pub values: Vec<f32>,
    /// How many of them are zero now.
    pub zeros: usize,
}

impl Pruned {
    fn of(values: Vec<f32>) -> Pruned {
        let zeros = values.iter().filter(|v| **v == 0.0).count();
        Pruned { values, zeros }
    }

    /// Bytes of the elements that stay, each of `bits`, and of a map with one bit for each element.
    pub fn packed_bytes(&self, bits: usize) -> usize {
        ((self.values.len() - self.zeros) * bits + self.values.len()).div_ceil(8)
    }

    /// Bytes of a matrix of f32 with rows of `columns`, of which each four neighbours in a row are stored as two and a byte with their places;
    /// nothing where some four have more than two that are not zero.
    pub fn two_of_four_bytes(&self, columns: usize) -> Option<usize> {
        sparse::packed_bytes(&self.values, columns)
    }
}

/// Sets the given share of the elements to zero, the least in magnitude (Han et al. 2015).
pub fn magnitude(values: &[f32], share: f64) -> Pruned {
    let count = (values.len() as f64 * share.clamp(0.0, 1.0)).round() as usize;
    Pruned::of(without_least(values, count))
}

/// Of each `m` elements along a row of `columns` keeps the `n` greatest in magnitude (Mishra et al. 2021 for 2 of 4); of a last,
/// shorter part as many as it has, up to `n`.
pub fn n_of_m(values: &[f32], columns: usize, n: usize, m: usize) -> Pruned {
    let rows = values.chunks(columns.max(1));
    let parts = rows.flat_map(|row| row.chunks(m.max(1)));
    Pruned::of(parts.flat_map(|part| without_least(part, part.len().saturating_sub(n))).collect())
}

fn without_least(values: &[f32], count: usize) -> Vec<f32> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].abs().total_cmp(&values[b].abs()).then(a.cmp(&b)));
    let mut kept = values.to_vec();
    order.iter().take(count).for_each(|&at| kept[at] = 0.0);
    kept
}
