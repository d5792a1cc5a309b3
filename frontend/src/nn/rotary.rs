//! Rotary positions (RoPE; Su et al. 2021).
//!
//! Invariant: frequencies and angles are computed in f32, in the order in which the common implementations compute them:
//! at late positions another order is another angle.

use crate::builder::{Builder, Result, Value};

/// Which two elements are rotated together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// Element `i` with `i + D/2` (GPT-NeoX, and Llama as Hugging Face stores it).
    Halves,
    /// Element `2i` with `2i + 1` (the paper, and Llama as GGUF stores it).
    Neighbours,
}

/// How frequencies are changed for contexts that are longer than those of the training.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All divided by a factor (Chen et al. 2023).
    Linear(f64),
    /// Low ones divided, high ones kept, with a smooth passage: Llama 3.1.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// Context of the training.
        original: f64,
    },
    /// YaRN (Peng et al. 2023): by parts, and the attention is made sharper.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Rotations within the training's context above which a frequency is kept, 32 by default.
        fast: f64,
        /// Rotations below which it is divided, 1 by default.
        slow: f64,
        /// Context of the training.
        original: f64,
        /// Factor of cosines and sines; `0.1 ln(factor) + 1` by default.
        sharpness: f64,
    },
    /// Each divided by its own number (GGUF's `rope_freqs`, LongRoPE).
    Divisors(Vec<f32>),
}

/// Rotation of queries and keys by their positions.
#[derive(Clone, Debug)]
pub struct Rotary<'g> {
    cosines: Value<'g>,
    sines: Value<'g>,
    size: usize,
    pairs: Pairs,
}

impl<'g> Rotary<'g> {
    /// Rotation of the first `size` elements of each head at positions below `capacity`.
    ///
    /// # Errors
    /// The graph cannot hold the table.
    pub fn new(
        builder: &'g Builder,
        (size, capacity): (usize, usize),
        base: f64,
        scaling: &Scaling,
        pairs: Pairs,
    ) -> Result<Rotary<'g>> {
        let (frequencies, sharpness) = frequencies(size, base, scaling);
        let angles = (0..capacity).flat_map(|p| frequencies.iter().map(move |f| p as f32 * f));
        let angles: Vec<f64> = angles.map(f64::from).collect();
        let table = |f: fn(f64) -> f64| -> Vec<f32> { angles.iter().map(|&a| f(a) as f32 * sharpness).collect() };
        let shape = [capacity, size / 2];
        let (cosines, sines) = (builder.floats(&shape, &table(f64::cos))?, builder.floats(&shape, &table(f64::sin))?);
        Ok(Rotary { cosines, sines, size, pairs })
    }

    /// Cosines and sines of positions `[T]`, each `[T, 1, size/2]`: for [`Rotary::apply`] of every layer.
    ///
    /// # Errors
    /// The positions are no integers.
    pub fn angles(&self, positions: Value<'g>) -> Result<(Value<'g>, Value<'g>)> {
        let rows = |table: Value<'g>| table.gather(positions, 0)?.unsqueeze(1);
        Ok((rows(self.cosines)?, rows(self.sines)?))
    }

    /// `x: [B, T, H, D]` rotated by the angles of its positions.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn apply(&self, x: Value<'g>, (cos, sin): (Value<'g>, Value<'g>)) -> Result<Value<'g>> {
        let builder = x.builder();
        let dims = x.dims();
        let whole = x.dim(-1)?;
        let half = self.size / 2;
        let rotated = |a: Value<'g>, b: Value<'g>| -> Result<(Value<'g>, Value<'g>)> {
            let turn = |call: &str, other: bool| {
                a.map(call, &[b, cos, sin], move |code, v| {
                    let (from_a, from_b) = if other { (v[3], v[2]) } else { (v[2], v[3]) };
                    let (left, right) = (code.mul(v[0], from_a), code.mul(v[1], from_b));
                    if other { code.add(left, right) } else { code.sub(left, right) }
                })
            };
            Ok((turn("rotate_first", false)?, turn("rotate_second", true)?))
        };
        let turned = match self.pairs {
            Pairs::Halves => {
                let (a, b) = rotated(x.part(-1, 0i64, half)?, x.part(-1, half, half)?)?;
                builder.concat(&[a, b], -1)?
            }
            Pairs::Neighbours => {
                let mut pairs = dims.clone();
                pairs.pop();
                let kept = pairs.clone();
                pairs.extend([half.into(), 2.into()]);
                let mut single = kept.clone();
                single.push(half.into());
                let x = x.part(-1, 0i64, self.size)?.reshape(pairs.clone())?;
                let (a, b) = (x.part(-1, 0i64, 1i64)?, x.part(-1, 1i64, 1i64)?);
                let (a, b) = rotated(a.reshape(single.clone())?, b.reshape(single)?)?;
                let last = a.rank();
                let mut flat = kept;
                flat.push(self.size.into());
                builder.concat(&[a.unsqueeze(last)?, b.unsqueeze(last)?], -1)?.reshape(flat)?
            }
        };
        if whole.as_size() == Some(self.size) {
            return Ok(turned);
        }
        let rest = x.part(-1, self.size, whole.sub(&self.size.into()))?;
        builder.concat(&[turned, rest], -1)
    }
}

/// The frequency of each pair, and the factor of cosines and sines.
fn frequencies(size: usize, base: f64, scaling: &Scaling) -> (Vec<f32>, f32) {
    let pairs = size / 2;
    let exponent = |i: usize| (2 * i) as f32 / size as f32;
    let plain: Vec<f32> = (0..pairs).map(|i| 1.0 / (base as f32).powf(exponent(i))).collect();
    let tau = std::f64::consts::TAU;
    match scaling {
        Scaling::None => (plain, 1.0),
        Scaling::Linear(factor) => (plain.iter().map(|f| f / *factor as f32).collect(), 1.0),
        Scaling::Divisors(divisors) => (plain.iter().zip(divisors).map(|(f, d)| f / d).collect(), 1.0),
        Scaling::Llama3 { factor, low, high, original } => {
            let scaled = |&f: &f32| {
                let wave = (tau / f64::from(f)) as f32;
                let divided = f / *factor as f32;
                if f64::from(wave) > original / low {
                    divided
                } else if f64::from(wave) < original / high {
                    f
                } else {
                    let smooth = ((original / f64::from(wave) - low) / (high - low)) as f32;
                    (1.0 - smooth) * divided + smooth * f
                }
            };
            (plain.iter().map(scaled).collect(), 1.0)
        }
        Scaling::Yarn { factor, fast, slow, original, sharpness } => {
            // The pair that makes so many rotations within the original context.
            let pair = |rotations: f64| size as f64 * (original / (rotations * tau)).ln() / (2.0 * base.ln());
            let first = pair(*fast).floor().max(0.0);
            let last = pair(*slow).ceil().min(size as f64 - 1.0);
            let last = if last == first { first + 0.001 } else { last };
            let scaled = |(i, &f): (usize, &f32)| {
                let ramp = ((i as f64 - first) / (last - first)).clamp(0.0, 1.0) as f32;
                f / *factor as f32 * ramp + f * (1.0 - ramp)
            };
            (plain.iter().enumerate().map(scaled).collect(), *sharpness as f32)
        }
    }
}
