//! Which numbers there are, and how groups of weights are rounded to them.
//!
//! Invariant: a group's scale is positive and finite, whatever finite values it was fitted to; a group of zeros stays zeros.

use super::{Weights, over_rows};
use kiln_ir::{DType, semantics};
use std::fmt;

/// The numbers that a weight may become, times its group's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grid {
    /// `-2^(bits-1) ..= 2^(bits-1) - 1`.
    Symmetric(u32),
    /// `0 ..= 2^bits - 1`, less the group's zero point, which is one of them.
    Asymmetric(u32),
    /// The 16 quantiles of a normal distribution of QLoRA (Dettmers et al. 2023, appendix E).
    NormalFloat4,
    /// Floats of 8 or 16 bits; a number is the bits of one.
    Float(FloatFormat),
}

/// Floats that weights are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FloatFormat {
    /// IEEE's binary16, without a scale.
    F16,
    /// The upper half of an f32, without a scale.
    Bf16,
    /// 4 bits of exponent, 3 after the point, no infinity (Micikevicius et al. 2022), times a scale.
    E4M3,
    /// 5 bits of exponent, 2 after the point, times a scale.
    E5M2,
}

impl FloatFormat {
    /// The element type.
    pub fn dtype(self) -> DType {
        match self {
            FloatFormat::F16 => DType::F16,
            FloatFormat::Bf16 => DType::BF16,
            FloatFormat::E4M3 => DType::F8E4M3FN,
            FloatFormat::E5M2 => DType::F8E5M2,
        }
    }

    /// Whether groups have a scale: the range of 16 bits is that of weights as they are.
    pub fn scaled(self) -> bool {
        matches!(self, FloatFormat::E4M3 | FloatFormat::E5M2)
    }

    /// The greatest finite value.
    fn greatest(self) -> f32 {
        match self {
            FloatFormat::F16 => 65504.0,
            FloatFormat::Bf16 => 3.389_531_4e38,
            FloatFormat::E4M3 => 448.0,
            FloatFormat::E5M2 => 57344.0,
        }
    }

    /// The bits of the float nearest to a value; what is beyond the greatest becomes that.
    fn bits(self, value: f32) -> i16 {
        let (dtype, most) = (self.dtype(), self.greatest());
        let rounded = semantics::narrow(dtype, f64::from(value.clamp(-most, most)));
        let mut bytes = Vec::with_capacity(2);
        semantics::store_f32(dtype, rounded, &mut bytes);
        i16::from_le_bytes([bytes.first().copied().unwrap_or(0), bytes.get(1).copied().unwrap_or(0)])
    }

    fn value(self, bits: i16) -> f32 {
        semantics::load_f32(self.dtype(), &bits.to_le_bytes(), 0)
    }
}

/// The values of [`Grid::NormalFloat4`].
const NORMAL_FLOAT: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// What the numbers of a group mean.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// What a step is.
    pub scale: f32,
    /// The number that means 0; 0 but for asymmetric grids.
    pub zero: i16,
}

impl Grid {
    /// Bits of a number.
    pub fn bits(self) -> u32 {
        match self {
            Grid::Symmetric(bits) | Grid::Asymmetric(bits) => bits,
            Grid::NormalFloat4 => 4,
            Grid::Float(format) => 8 * format.dtype().size() as u32,
        }
    }

    /// The values of the numbers where they are not the numbers themselves.
    pub fn table(self) -> Option<&'static [f32]> {
        match self {
            Grid::NormalFloat4 => Some(&NORMAL_FLOAT),
            Grid::Symmetric(_) | Grid::Asymmetric(_) | Grid::Float(_) => None,
        }
    }

    /// Least and greatest number; of floats, whose order is not that of their bits, all.
    pub fn ends(self) -> (i16, i16) {
        match self {
            Grid::Symmetric(bits) => (-(1 << (bits - 1)), (1 << (bits - 1)) - 1),
            Grid::Asymmetric(bits) => (0, (1 << bits) - 1),
            Grid::NormalFloat4 => (0, 15),
            Grid::Float(_) => (i16::MIN, i16::MAX),
        }
    }

    /// The number for a value.
    pub fn number(self, group: Group, value: f32) -> i16 {
        let (low, high) = self.ends();
        match self {
            Grid::Symmetric(_) | Grid::Asymmetric(_) => {
                let steps = (value / group.scale).round_ties_even() + f32::from(group.zero);
                steps.clamp(f32::from(low), f32::from(high)) as i16
            }
            Grid::NormalFloat4 => {
                let value = value / group.scale;
                // The table ascends: the nearest is on one side of the first that is not less.
                let at = NORMAL_FLOAT.partition_point(|&t| t < value).min(15);
                let below = at.saturating_sub(1);
                let nearer = if value - NORMAL_FLOAT[below] < NORMAL_FLOAT[at] - value { below } else { at };
                nearer as i16
            }
            Grid::Float(format) => format.bits(value / group.scale),
        }
    }

    /// The value of a number.
    pub fn value(self, group: Group, number: i16) -> f32 {
        match self {
            Grid::Symmetric(_) | Grid::Asymmetric(_) => f32::from(number - group.zero) * group.scale,
            Grid::NormalFloat4 => {
                let at = usize::try_from(number).unwrap_or_default();
                NORMAL_FLOAT.get(at).copied().unwrap_or_default() * group.scale
            }
            Grid::Float(format) => format.value(number) * group.scale,
        }
    }

    /// The group that covers values from `low` to `high`.
    pub fn covering(self, low: f32, high: f32) -> Group {
        let (low, high) = (low.min(0.0), high.max(0.0));
        let most = high.max(-low);
        let (first, last) = self.ends();
        let (range, steps) = match self {
            Grid::Symmetric(_) => (most, f32::from(last)),
            Grid::Asymmetric(_) => (high - low, f32::from(last - first)),
            Grid::NormalFloat4 => (most, 1.0),
            Grid::Float(format) if format.scaled() => (most, format.greatest()),
            Grid::Float(_) => (1.0, 1.0),
        };
        let scale = range / steps;
        if !(scale.is_normal() && scale > 0.0) {
            return Group { scale: 1.0, zero: 0 };
        }
        let zero = match self {
            Grid::Asymmetric(_) => (-low / scale).round_ties_even().clamp(f32::from(first), f32::from(last)) as i16,
            Grid::Symmetric(_) | Grid::NormalFloat4 | Grid::Float(_) => 0,
        };
        Group { scale, zero }
    }

    /// The group that covers all of some values.
    pub fn whole(self, values: &[f32]) -> Group {
        let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        self.covering(low, high)
    }

    /// The group, among those that cover a part of the range of some values, whose squared errors weigh least; `importance`
    /// gives the weight of each.
    pub fn fitted(self, values: &[f32], importance: impl Fn(usize) -> f32) -> Group {
        let (low, high) = values.iter().fold((0f32, 0f32), |(l, h), &v| (l.min(v), h.max(v)));
        let mut best = self.covering(low, high);
        let mut least = f32::INFINITY;
        for step in 0..=20u8 {
            // From the whole range down to 60 % of it, and for few bits somewhat beyond: the least number lies further out.
            let part = 1.06 - 0.023 * f32::from(step);
            let group = self.covering(low * part, high * part);
            let mut error = 0.0;
            for (n, &v) in values.iter().enumerate() {
                let off = v - self.value(group, self.number(group, v));
                error += importance(n) * off * off;
            }
            if error < least {
                (best, least) = (group, error);
            }
        }
        best
    }
}

impl fmt::Display for Grid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Grid::Symmetric(bits) => write!(f, "int{bits}"),
            Grid::Asymmetric(bits) => write!(f, "uint{bits}"),
            Grid::NormalFloat4 => f.write_str("nf4"),
            Grid::Float(FloatFormat::F16) => f.write_str("f16"),
            Grid::Float(FloatFormat::Bf16) => f.write_str("bf16"),
            Grid::Float(FloatFormat::E4M3) => f.write_str("fp8e4m3"),
            Grid::Float(FloatFormat::E5M2) => f.write_str("fp8e5m2"),
        }
    }
}

/// A matrix of numbers with scales for groups of columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantized {
    /// What the numbers mean.
    pub grid: Grid,
    /// Number of outputs.
    pub rows: usize,
    /// Number of inputs.
    pub columns: usize,
    /// Columns that share a scale; the last group of a row may have fewer.
    pub group: usize,
    /// `[rows, columns]`.
    pub numbers: Vec<i16>,
    /// `[rows, groups]`.
    pub groups: Vec<Group>,
}

impl Quantized {
    /// Groups of a row.
    pub fn groups_of_row(&self) -> usize {
        self.columns.div_ceil(self.group.max(1))
    }

    /// The values of a row.
    pub fn row(&self, row: usize) -> impl Iterator<Item = f32> + '_ {
        let (start, per_row) = (row * self.columns, self.groups_of_row());
        let numbers = self.numbers.get(start..start + self.columns).unwrap_or_default();
        let groups = self.groups.get(row * per_row..(row + 1) * per_row).unwrap_or_default();
        let spread = numbers.chunks(self.group.max(1)).zip(groups);
        spread.flat_map(move |(numbers, &group)| numbers.iter().map(move |&n| self.grid.value(group, n)))
    }

    /// All values, `[rows, columns]`.
    pub fn values(&self) -> Vec<f32> {
        (0..self.rows).flat_map(|row| self.row(row)).collect()
    }

    /// Bytes of numbers, packed, and of scales (f32) and zero points, as ONNX stores them: 3 bits take 4.
    pub fn bytes(&self) -> usize {
        let width: usize = match self.grid.bits() {
            ..=4 => 4,
            5..=8 => 8,
            _ => 16,
        };
        let zeros = if matches!(self.grid, Grid::Asymmetric(_)) { self.groups.len() * width } else { 0 };
        let scales = if matches!(self.grid, Grid::Float(format) if !format.scaled()) { 0 } else { self.groups.len() };
        (self.numbers.len() * width + zeros).div_ceil(8) + 4 * scales
    }
}

/// Each weight becomes the nearest number, with scales that cover the whole range of each group.
pub fn round_to_nearest(weights: Weights<'_>, grid: Grid, group: usize, threads: usize) -> Quantized {
    by_groups(weights, grid, group, threads, &|_, values| grid.whole(values))
}

/// Rounds to groups that `fit` finds for the values of each; it is told the group's first column.
pub(super) fn by_groups(
    weights: Weights<'_>,
    grid: Grid,
    group: usize,
    threads: usize,
    fit: &(dyn Fn(usize, &[f32]) -> Group + Sync),
) -> Quantized {
    let Weights { rows, columns, .. } = weights;
    let made = over_rows(weights.rows().collect(), threads, |_, row: &[f32]| {
        let mut numbers = Vec::with_capacity(row.len());
        let mut groups = Vec::new();
        for (n, values) in row.chunks(group.max(1)).enumerate() {
            let found = fit(n * group, values);
            numbers.extend(values.iter().map(|&v| grid.number(found, v)));
            groups.push(found);
        }
        (numbers, groups)
    });
    let (numbers, groups): (Vec<_>, Vec<_>) = made.into_iter().unzip();
    Quantized { grid, rows, columns, group, numbers: numbers.concat(), groups: groups.concat() }
}
