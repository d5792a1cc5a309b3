//! Numbers of few bits for weights and activations: the arithmetic of quantizing, without any model.
//!
//! Invariant: everything here is a function of its arguments: of matrices of weights `[rows, columns]` (a row makes one output,
//! a column reads one input) and of statistics of what the columns read. Results do not depend on the number of threads. Whatever
//! the method, what comes out is a [`Quantized`] whose elements are `(number - zero) * scale`.

mod awq;
mod descent;
mod gptq;
mod grid;
mod hqq;
mod linear_algebra;
mod observe;
mod prune;
mod range;

pub use awq::{Scaled, awq, clipped, scaled_error};
pub use gptq::{GptqError, gptq};
pub use grid::{FloatFormat, Grid, Group, Quantized, round_to_nearest};
pub use hqq::hqq;
pub use observe::{Product, moments, named, observing, products};
pub use prune::{Pruned, magnitude, n_of_m};
pub use range::{Activation, Histogram, Range, RangeMethod};

/// A matrix of weights.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// The elements, `[rows, columns]`, finite.
    pub values: &'a [f32],
    /// Number of outputs.
    pub rows: usize,
    /// Number of inputs.
    pub columns: usize,
}

impl<'a> Weights<'a> {
    /// The rows.
    pub fn rows(&self) -> impl Iterator<Item = &'a [f32]> {
        // A matrix without columns has no rows to speak of.
        self.values.chunks_exact(self.columns.max(1))
    }
}

/// What the columns of a matrix read, over a calibration set.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Moments {
    /// Number of rows of `x` that were seen.
    pub count: u64,
    /// The sum of `xᵀ x`, `[columns, columns]`.
    pub products: Vec<f32>,
    /// The sum of `|x|`, `[columns]`.
    pub magnitudes: Vec<f32>,
    /// The sum of `x`, `[columns]`.
    pub sums: Vec<f32>,
}

impl Moments {
    /// Adds another part of the calibration set.
    pub fn add(&mut self, other: &Moments) {
        let sum = |mine: &mut Vec<f32>, theirs: &[f32]| {
            if mine.is_empty() {
                mine.extend_from_slice(theirs);
            } else {
                mine.iter_mut().zip(theirs).for_each(|(a, b)| *a += b);
            }
        };
        self.count += other.count;
        sum(&mut self.products, &other.products);
        sum(&mut self.magnitudes, &other.magnitudes);
        sum(&mut self.sums, &other.sums);
    }

    /// The mean of each column.
    pub fn means(&self) -> Vec<f32> {
        let count = self.count.max(1) as f32;
        self.sums.iter().map(|s| s / count).collect()
    }

    /// The mean square of what column `n` reads.
    pub fn power(&self, n: usize) -> f32 {
        let at = n * (self.sums.len() + 1);
        self.products.get(at).copied().unwrap_or(0.0) / self.count.max(1) as f32
    }
}

/// Rows of a matrix of which errors are measured: so many are a fair sample, and their cost does not matter.
const SAMPLED_ROWS: usize = 64;

/// The mean square of the error that `quantized` makes in the outputs, over the mean square of the outputs, by the moments of the
/// inputs (by the weights alone where there are none). A sample of rows is measured.
pub fn relative_error(weights: Weights<'_>, quantized: &Quantized, moments: Option<&Moments>) -> f64 {
    let step = (weights.rows / SAMPLED_ROWS).max(1);
    let (mut error, mut whole) = (0.0, 0.0);
    for (n, row) in weights.rows().enumerate().step_by(step) {
        let difference: Vec<f32> = row.iter().zip(quantized.row(n)).map(|(w, q)| w - q).collect();
        error += energy(&difference, moments);
        whole += energy(row, moments);
    }
    if whole > 0.0 { error / whole } else { 0.0 }
}

/// `v H vᵀ` with the moments' products as `H`, else the sum of squares.
pub(super) fn energy(v: &[f32], moments: Option<&Moments>) -> f64 {
    match moments.filter(|m| m.products.len() == v.len() * v.len()) {
        None => v.iter().map(|v| f64::from(*v).powi(2)).sum(),
        Some(m) => {
            let rows = m.products.chunks_exact(v.len().max(1)).zip(v);
            rows.map(|(row, &x)| if x == 0.0 { 0.0 } else { f64::from(x) * f64::from(linear_algebra::dot(row, v)) })
                .sum()
        }
    }
}

/// Calls `work` with each row of `rows`, cut into `threads` parts that run together.
fn over_rows<T: Send, R: Send>(rows: Vec<T>, threads: usize, work: impl Fn(usize, T) -> R + Sync) -> Vec<R> {
    let share = rows.len().div_ceil(threads.max(1)).max(1);
    let mut parts: Vec<Vec<(usize, T)>> = Vec::new();
    for (n, row) in rows.into_iter().enumerate() {
        if n % share == 0 {
            parts.push(Vec::with_capacity(share));
        }
        if let Some(part) = parts.last_mut() {
            part.push((n, row));
        }
    }
    let work = &work;
    let run = |part: Vec<(usize, T)>| part.into_iter().map(|(n, row)| work(n, row)).collect::<Vec<R>>();
    std::thread::scope(|scope| {
        let mut parts = parts.into_iter();
        let first = parts.next();
        let others: Vec<_> = parts.map(|part| scope.spawn(move || run(part))).collect();
        let mut all: Vec<R> = first.map(run).unwrap_or_default();
        for other in others {
            match other.join() {
                Ok(part) => all.extend(part),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    })
}

#[cfg(test)]
mod tests;
