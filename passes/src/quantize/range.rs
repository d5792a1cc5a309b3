//! Ranges of activations: from what was seen to a scale and a zero point.
//!
//! Invariant: a range holds 0, so that zeros (padding, what ReLU cuts off) stay exact.

use super::{Grid, Group};
use std::fmt;

/// Bins of a histogram.
const BINS: usize = 2048;

/// Values that occur, from the least to the greatest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The least, or 0.
    pub low: f32,
    /// The greatest, or 0.
    pub high: f32,
}

impl Default for Range {
    fn default() -> Range {
        Range { low: 0.0, high: 0.0 }
    }
}

impl Range {
    /// The range with more values in it. Infinite values and NaN are the caller's to refuse.
    #[must_use]
    pub fn with(self, values: &[f32]) -> Range {
        values.iter().fold(self, |r, &v| Range { low: r.low.min(v), high: r.high.max(v) })
    }

    /// Whether there is nothing but zeros in it.
    pub fn is_empty(self) -> bool {
        self.low == self.high
    }
}

/// How a range is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RangeMethod {
    /// All that was seen.
    MinMax,
    /// All but a share at both ends; such as 0.9999 of the values.
    Percentile(f64),
    /// The one that loses least information, by Kullback and Leibler's measure (Migacz 2017).
    Entropy,
    /// The one with the least mean square error.
    MeanSquare,
}

impl fmt::Display for RangeMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RangeMethod::MinMax => f.write_str("minmax"),
            RangeMethod::Percentile(share) => write!(f, "percentile {share}"),
            RangeMethod::Entropy => f.write_str("entropy"),
            RangeMethod::MeanSquare => f.write_str("mse"),
        }
    }
}

/// What integers mean that stand for activations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Activation {
    /// Unsigned with a zero point, or signed without one.
    pub grid: Grid,
    /// Scale and zero point.
    pub group: Group,
}

/// How often values occur in parts of a range.
#[derive(Clone, Debug, PartialEq)]
pub struct Histogram {
    range: Range,
    counts: Vec<u64>,
}

impl Histogram {
    /// Of values that lie in a range.
    pub fn new(range: Range) -> Histogram {
        Histogram { range, counts: vec![0; BINS] }
    }

    /// Counts values; those outside of the range count as its ends.
    pub fn add(&mut self, values: &[f32]) {
        let width = (self.range.high - self.range.low) / BINS as f32;
        for &v in values {
            let at = if width > 0.0 { ((v - self.range.low) / width).max(0.0) as usize } else { 0 };
            if let Some(count) = self.counts.get_mut(at.min(BINS - 1)) {
                *count += 1;
            }
        }
    }

    /// The middle of a bin.
    fn middle(&self, bin: usize) -> f32 {
        self.range.low + (bin as f32 + 0.5) * (self.range.high - self.range.low) / BINS as f32
    }

    /// The range that a method chooses for a grid.
    pub fn chosen(&self, method: RangeMethod, grid: Grid) -> Range {
        match method {
            RangeMethod::MinMax => self.range,
            RangeMethod::Percentile(share) => self.percentile(share),
            RangeMethod::Entropy => self.entropy(grid),
            RangeMethod::MeanSquare => self.mean_square(grid),
        }
    }

    /// Scale and zero point by a method.
    pub fn activation(&self, method: RangeMethod, grid: Grid) -> Activation {
        let Range { low, high } = self.chosen(method, grid);
        Activation { grid, group: grid.covering(low, high) }
    }

    fn percentile(&self, share: f64) -> Range {
        let total: u64 = self.counts.iter().sum();
        // Half of the rest may be lost at each end.
        let lost = total as f64 * (1.0 - share.clamp(0.0, 1.0)) / 2.0;
        let end = |bins: &mut dyn Iterator<Item = usize>| {
            let mut seen = 0.0;
            for bin in bins {
                seen += self.counts[bin] as f64;
                if seen > lost {
                    return bin;
                }
            }
            0
        };
        let (first, last) = (end(&mut (0..BINS)), end(&mut (0..BINS).rev()));
        let width = (self.range.high - self.range.low) / BINS as f32;
        let low = self.range.low + first as f32 * width;
        let high = self.range.low + (last + 1) as f32 * width;
        Range { low: low.min(0.0), high: high.max(0.0) }
    }

    /// The range without magnitudes beyond a part of the greatest.
    fn clipped(&self, part: f32) -> Range {
        let Range { low, high } = self.range;
        let most = part * high.max(-low);
        Range { low: low.max(-most), high: high.min(most) }
    }

    fn mean_square(&self, grid: Grid) -> Range {
        let error = |range: Range| {
            let group = grid.covering(range.low, range.high);
            let bins = self.counts.iter().enumerate().filter(|(_, c)| **c > 0);
            let squares = bins.map(|(b, &count)| {
                let v = self.middle(b);
                f64::from(v - grid.value(group, grid.number(group, v))).powi(2) * count as f64
            });
            squares.sum::<f64>()
        };
        self.least(error)
    }

    /// The part of the range with the least of something: from the whole down to a hundredth.
    fn least(&self, measure: impl Fn(Range) -> f64) -> Range {
        let mut best = (f64::INFINITY, self.range);
        for n in 0..100u8 {
            let range = self.clipped(1.0 - f32::from(n) / 100.0);
            let found = measure(range);
            if found < best.0 {
                best = (found, range);
            }
        }
        best.1
    }

    /// Compares, for each part of the range, how values are distributed that were clipped to it with how they are after they
    /// became numbers of the grid, each number's weight spread over the bins that it stands for and in which something is.
    fn entropy(&self, grid: Grid) -> Range {
        // Zeros are exact on every grid, and after a ReLU so many that nothing else would count: no more than beside them.
        let mut counts = self.counts.clone();
        let zero = (0..BINS).find(|&b| self.middle(b) >= 0.0 || b + 1 == BINS).unwrap_or(0);
        for at in [zero.saturating_sub(1), zero] {
            let beside = [at.checked_sub(1), at.checked_sub(2), Some(at + 1), Some(at + 2)];
            let most = beside.into_iter().flatten().filter(|b| ![zero.saturating_sub(1), zero].contains(b));
            let most = most.filter_map(|b| self.counts.get(b)).max().copied().unwrap_or(0);
            counts[at] = counts[at].min(most);
        }
        let total: f64 = counts.iter().map(|&c| c as f64).sum();
        if total == 0.0 {
            return self.range;
        }
        let (first, last) = grid.ends();
        let numbers = usize::try_from(last - first).unwrap_or(0) + 1;
        self.least(|range| {
            let group = grid.covering(range.low, range.high);
            let inside = |b: usize| (range.low..=range.high).contains(&self.middle(b));
            let mut clipped = vec![0f64; BINS];
            let (mut sums, mut filled) = (vec![0f64; numbers], vec![0f64; numbers]);
            let number = |b: usize| {
                let n = grid.number(group, self.middle(b)) - first;
                usize::try_from(n).unwrap_or(0).min(numbers - 1)
            };
            let bins: Vec<usize> = (0..BINS).filter(|&b| inside(b)).collect();
            let (Some(&low), Some(&high)) = (bins.first(), bins.last()) else { return f64::INFINITY };
            for (b, &count) in counts.iter().enumerate() {
                let count = count as f64;
                clipped[b.clamp(low, high)] += count;
                if inside(b) {
                    sums[number(b)] += count;
                    filled[number(b)] += f64::from(u8::from(count > 0.0));
                }
            }
            let kept: f64 = sums.iter().sum();
            let mut divergence = 0.0;
            for &b in &bins {
                let (p, n) = (clipped[b] / total, number(b));
                if p > 0.0 {
                    // What was clipped into an empty bin has no counterpart: it counts as if it were rare.
                    let spread = if counts[b] > 0 { sums[n] / filled[n].max(1.0) / kept.max(1.0) } else { 0.0 };
                    divergence += p * (p / spread.max(1e-9)).ln();
                }
            }
            divergence
        })
    }
}
