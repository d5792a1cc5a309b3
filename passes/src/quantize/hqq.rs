//! HQQ (Badri, Shaji 2023): groups are fitted to their weights alone, without any data, by a norm that lets a few weights be far off.
//!
//! Half-quadratic splitting: the errors that the norm `|e|^0.7` would keep are taken out of the weights, then the group's scale and
//! zero point are those that fit the rest best. The paper fits float zero points alone; here they are integers, which is how ONNX
//! stores them, and the scale makes good what that loses. The best group that was seen is taken.

use super::grid::by_groups;
use super::{Grid, Group, Quantized, Weights};

const ROUNDS: usize = 20;
const NORM: f32 = 0.7;

/// Rounds a matrix.
pub fn hqq(weights: Weights<'_>, grid: Grid, group: usize, threads: usize) -> Quantized {
    by_groups(weights, grid, group, threads, &|_, values| fit(grid, values))
}

fn loss(grid: Grid, group: Group, values: &[f32]) -> f32 {
    values.iter().map(|&v| (v - grid.value(group, grid.number(group, v))).abs().powf(NORM)).sum()
}

/// What of an error stays when the norm and `weight` times the squared distance are minimised.
fn shrunk(error: f32, weight: f32) -> f32 {
    let less = error.abs() - error.abs().max(1e-12).powf(NORM - 1.0) / weight;
    error.signum() * less.max(0.0)
}

fn fit(grid: Grid, values: &[f32]) -> Group {
    let mut group = grid.whole(values);
    let (low, high) = grid.ends();
    let mut best = (loss(grid, group, values), group);
    let mut weight = 10.0f32;
    for _ in 0..ROUNDS {
        let (mut products, mut squares, mut zeros) = (0f32, 0f32, 0f32);
        for &v in values {
            let number = grid.number(group, v);
            let made = grid.value(group, number);
            // Errors are weighed in steps of the grid, as the method's code does by working on scaled weights.
            let kept = shrunk((v - made) / group.scale, weight) * group.scale;
            let unit = made / group.scale;
            products += unit * (v - kept);
            squares += unit * unit;
            zeros += f32::from(number) - (v - kept) / group.scale;
        }
        let scale = products / squares;
        let scale = if scale.is_normal() && scale > 0.0 { scale } else { group.scale };
        let zero = match grid {
            Grid::Asymmetric(_) => (zeros / values.len().max(1) as f32).round_ties_even() as i16,
            Grid::Symmetric(_) | Grid::NormalFloat4 | Grid::Float(_) => 0,
        };
        group = Group { scale, zero: zero.clamp(low.min(0), high) };
        let found = loss(grid, group, values);
        if found < best.0 {
            best = (found, group);
        }
        weight *= 1.01;
    }
    best.1
}
