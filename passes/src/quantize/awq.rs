//! AWQ (Lin et al. 2023): columns that read large inputs are scaled up before they are rounded, so that they lose less; what
//! makes the inputs scales them down.

use super::grid::by_groups;
use super::{Grid, Moments, Quantized, SAMPLED_ROWS, Weights, energy};

/// Matrices that read the same inputs, quantized with scaled columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Scaled {
    /// What the inputs are to be divided by, `[columns]`; positive.
    pub scales: Vec<f32>,
    /// The matrices, in order; they take the divided inputs.
    pub matrices: Vec<Quantized>,
}

/// Exponents that are tried: `0, 1/20, .. 19/20`, as in the paper's code.
const TRIED: u8 = 20;

/// Quantizes matrices that read the same inputs. `scalable` says whether whoever makes the inputs can divide them.
pub fn awq(matrices: &[Weights<'_>], grid: Grid, group: usize, moments: &Moments, threads: usize) -> Scaled {
    let columns = moments.sums.len();
    let count = moments.count.max(1) as f32;
    let magnitudes: Vec<f32> = moments.magnitudes.iter().map(|m| m / count).collect();
    let mut best = vec![1f32; columns];
    let mut least = f64::INFINITY;
    for n in 0..TRIED {
        let exponent = f32::from(n) / f32::from(TRIED);
        let scales = scales(&magnitudes, exponent);
        let error: f64 = matrices.iter().map(|&m| sampled_error(m, grid, group, moments, &scales)).sum();
        if error < least {
            (best, least) = (scales, error);
        }
    }
    let each = matrices.iter().map(|&m| {
        let scaled: Vec<f32> = m.rows().flat_map(|row| row.iter().zip(&best).map(|(w, s)| w * s)).collect();
        quantize(Weights { values: &scaled, ..m }, grid, group, moments, &best, threads)
    });
    Scaled { matrices: each.collect(), scales: best }
}

/// The same without scales: only the ranges of groups are searched, by what the columns read.
pub fn clipped(matrices: &[Weights<'_>], grid: Grid, group: usize, moments: &Moments, threads: usize) -> Scaled {
    let scales = vec![1f32; moments.sums.len()];
    let each = matrices.iter().map(|&m| quantize(m, grid, group, moments, &scales, threads));
    Scaled { matrices: each.collect(), scales }
}

/// As [`relative_error`](super::relative_error), of a matrix that takes inputs divided by `scales`.
pub fn scaled_error(weights: Weights<'_>, quantized: &Quantized, scales: &[f32], moments: &Moments) -> f64 {
    let step = (weights.rows / SAMPLED_ROWS).max(1);
    let (mut error, mut whole) = (0.0, 0.0);
    for (n, row) in weights.rows().enumerate().step_by(step) {
        let off: Vec<f32> = row.iter().zip(quantized.row(n)).zip(scales).map(|((w, q), s)| w - q / s).collect();
        error += energy(&off, Some(moments));
        whole += energy(row, Some(moments));
    }
    if whole > 0.0 { error / whole } else { 0.0 }
}

/// `magnitude^exponent`, so that the greatest and the least are reciprocal.
fn scales(magnitudes: &[f32], exponent: f32) -> Vec<f32> {
    let mut scales: Vec<f32> = magnitudes.iter().map(|m| m.max(1e-8).powf(exponent).max(1e-4)).collect();
    let (low, high) = scales.iter().fold((f32::INFINITY, 0f32), |(l, h), &s| (l.min(s), h.max(s)));
    let middle = (low * high).sqrt();
    if middle.is_normal() {
        scales.iter_mut().for_each(|s| *s /= middle);
    }
    scales
}

fn quantize(
    scaled: Weights<'_>,
    grid: Grid,
    group: usize,
    moments: &Moments,
    scales: &[f32],
    threads: usize,
) -> Quantized {
    let power: Vec<f32> = scales.iter().enumerate().map(|(n, s)| moments.power(n) / (s * s)).collect();
    // As the paper clips weights: scales of groups are those that lose least.
    let fit = |first: usize, values: &[f32]| grid.fitted(values, |i| power.get(first + i).copied().unwrap_or(0.0));
    by_groups(scaled, grid, group, threads, &fit)
}

/// The error in the outputs of a sample of rows.
fn sampled_error(weights: Weights<'_>, grid: Grid, group: usize, moments: &Moments, scales: &[f32]) -> f64 {
    let step = (weights.rows / SAMPLED_ROWS).max(1);
    let sample: Vec<&[f32]> = weights.rows().step_by(step).collect();
    let scaled: Vec<f32> = sample.iter().flat_map(|row| row.iter().zip(scales).map(|(w, s)| w * s)).collect();
    let taken = Weights { values: &scaled, rows: sample.len(), columns: weights.columns };
    let made = quantize(taken, grid, group, moments, scales, 1);
    let mut error = 0.0;
    for (n, row) in sample.iter().enumerate() {
        let off: Vec<f32> = row.iter().zip(made.row(n)).zip(scales).map(|((w, q), s)| w - q / s).collect();
        error += energy(&off, Some(moments));
    }
    error * step as f64
}
