//! GPTQ (Frantar et al. 2022): columns are rounded one after another, and what each loses the columns after it make good.
//!
//! Columns go in the order of descending power of their inputs, with groups of columns as they are stored, whose scales are
//! fitted before (the paper's `act-order` with static groups): the order costs nothing when the numbers are read. What it finds is
//! improved by coordinate [descent](super::descent), since it never looks back at a number or at a scale.

use super::descent::Objective;
use super::linear_algebra::{inverse_factor, subtract};
use super::{Grid, Group, Moments, Quantized, Weights, over_rows};

/// The inputs that were seen do not suffice.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GptqError {
    /// The moments are not those of the matrix's columns.
    #[error("the statistics of the inputs are of {found} columns, the weights have {columns}")]
    Columns {
        /// Columns of the weights.
        columns: usize,
        /// Columns of the moments.
        found: usize,
    },
    /// The products have no inverse, even with much added to their diagonal: they are not finite.
    #[error("the products of the inputs cannot be inverted: they hold infinite values or NaN")]
    Singular,
}

/// What is added to the diagonal, of its mean; ten times as much with each try that fails.
const DAMPING: f64 = 0.01;

/// The same for [`descent`](super::descent), which follows the calibration set further than a few samples for each column deserve:
/// with a hundredth SmolLM2 loses a fifth more on other texts (`scripts/quantize-table`).
const DESCENT_DAMPING: f64 = 0.2;

/// Rounds a matrix by the moments of its inputs.
///
/// # Errors
/// See [`GptqError`].
pub fn gptq(
    weights: Weights<'_>,
    grid: Grid,
    group: usize,
    moments: &Moments,
    threads: usize,
) -> Result<Quantized, GptqError> {
    let Weights { rows, columns, .. } = weights;
    if moments.products.len() != columns * columns || moments.sums.len() != columns {
        return Err(GptqError::Columns { columns, found: moments.sums.len() });
    }
    let group = group.clamp(1, columns.max(1));
    let mut order: Vec<usize> = (0..columns).collect();
    order.sort_by(|&a, &b| moments.power(b).total_cmp(&moments.power(a)).then(a.cmp(&b)));
    let factor = factor(moments, &order).ok_or(GptqError::Singular)?;
    let objective = Objective { products: &moments.products, damping: (DESCENT_DAMPING * mean_power(moments)) as f32 };
    let made = over_rows(weights.rows().collect(), threads, |_, row: &[f32]| {
        let mut groups: Vec<Group> = row
            .chunks(group)
            .enumerate()
            .map(|(n, values)| grid.fitted(values, |i| moments.power(n * group + i)))
            .collect();
        let mut rest: Vec<f32> = order.iter().map(|&c| row[c]).collect();
        let mut numbers = vec![0i16; columns];
        for (at, &column) in order.iter().enumerate() {
            let held = groups[column / group];
            let number = grid.number(held, rest[at]);
            numbers[column] = number;
            let line = &factor[at * columns..(at + 1) * columns];
            let error = (rest[at] - grid.value(held, number)) / line[at];
            subtract(&mut rest[at + 1..], error, &line[at + 1..]);
        }
        objective.descend(grid, group, row, &mut numbers, &mut groups);
        (numbers, groups)
    });
    let (numbers, groups): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    Ok(Quantized { grid, rows, columns, group, numbers: numbers.concat(), groups: groups.concat() })
}

/// The mean of the products' diagonal; 1 where it is 0.
fn mean_power(moments: &Moments) -> f64 {
    let n = moments.sums.len();
    let mean = (0..n).map(|c| f64::from(moments.products[c * n + c])).sum::<f64>() / n.max(1) as f64;
    if mean > 0.0 { mean } else { 1.0 }
}

/// The upper factor of the inverse of the products in that order of columns.
fn factor(moments: &Moments, order: &[usize]) -> Option<Vec<f32>> {
    let n = order.len();
    let mean = mean_power(moments);
    let mut damping = DAMPING;
    while damping <= 10.0 {
        let mut h = vec![0f64; n * n];
        for (i, &row) in order.iter().enumerate() {
            for (j, &column) in order.iter().enumerate() {
                h[i * n + j] = f64::from(moments.products[row * n + column]);
            }
            h[i * n + i] += damping * mean;
        }
        if let Some(found) = inverse_factor(&h, n) {
            return Some(found);
        }
        damping *= 10.0;
    }
    None
}
