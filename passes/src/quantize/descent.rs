//! Coordinate descent (QuantEase, Behdin et al. 2023): from numbers that some other method found, each number and each scale in turn
//! becomes the one that loses least while all others stay.
//!
//! Invariant: no step makes the row's error larger, as the moments of its inputs measure it.

use super::linear_algebra::{add, dot};
use super::{Grid, Group};

/// Rounds of all numbers and then all scales; after three little changes.
const ROUNDS: usize = 3;

/// The error that is made smaller: `e H eᵀ` of a row's error `e`, with `H` `[columns, columns]` symmetric and something added to its
/// diagonal, so that columns that the calibration set hardly moved keep their weights.
pub(super) struct Objective<'a> {
    /// The products of the inputs.
    pub products: &'a [f32],
    /// What is added to their diagonal.
    pub damping: f32,
}

impl Objective<'_> {
    /// `gradient += by * H[column]`.
    fn move_by(&self, gradient: &mut [f32], column: usize, by: f32) {
        let n = gradient.len();
        add(gradient, by, &self.products[column * n..(column + 1) * n]);
        gradient[column] += by * self.damping;
    }

    /// Improves a row of numbers and its groups' scales, given the weights that they stand for.
    pub fn descend(&self, grid: Grid, size: usize, weights: &[f32], numbers: &mut [i16], groups: &mut [Group]) {
        let n = weights.len();
        let value = |groups: &[Group], numbers: &[i16], c: usize| grid.value(groups[c / size], numbers[c]);
        let off: Vec<f32> = (0..n).map(|c| value(groups, numbers, c) - weights[c]).collect();
        // Half the derivative of the error by each value.
        let mut gradient: Vec<f32> =
            (0..n).map(|c| dot(&self.products[c * n..(c + 1) * n], &off) + self.damping * off[c]).collect();
        for _ in 0..ROUNDS {
            let mut moved = false;
            for c in 0..n {
                let curvature = self.products[c * n + c] + self.damping;
                let now = value(groups, numbers, c);
                let number = grid.number(groups[c / size], now - gradient[c] / curvature);
                if number != numbers[c] {
                    numbers[c] = number;
                    self.move_by(&mut gradient, c, value(groups, numbers, c) - now);
                    moved = true;
                }
            }
            for (at, group) in groups.iter_mut().enumerate() {
                let columns = at * size..(at * size + size).min(n);
                // What a scale of 1 more adds to each value.
                let unit = Group { scale: 1.0, ..*group };
                let along: Vec<f32> = columns.clone().map(|c| grid.value(unit, numbers[c])).collect();
                let slope = dot(&gradient[columns.clone()], &along);
                let curvature: f32 = columns
                    .clone()
                    .zip(&along)
                    .map(|(c, &by)| {
                        by * (dot(&self.products[c * n + columns.start..c * n + columns.end], &along)
                            + self.damping * by)
                    })
                    .sum();
                let scale = group.scale - slope / curvature;
                // Groups of zeros have no curvature; a scale that changed its sign would be one step too far.
                if !(scale.is_normal() && scale > 0.0) {
                    continue;
                }
                let by = scale - group.scale;
                group.scale = scale;
                for (c, step) in columns.zip(along) {
                    self.move_by(&mut gradient, c, by * step);
                }
            }
            if !moved {
                break;
            }
        }
    }
}
