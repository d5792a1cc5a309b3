//! Embeddings of tokens and of positions.

use super::{Linear, Matrix, Scope, WeightOrder};
use crate::builder::{Result, Value};

/// A table of rows picked by number: tokens, learned positions, segments.
#[derive(Clone, Copy, Debug)]
pub struct Embedding<'g> {
    weight: Matrix<'g>,
}

impl<'g> Embedding<'g> {
    /// `weight: [rows, size]` of a scope.
    ///
    /// # Errors
    /// The graph cannot hold the table.
    pub fn new(scope: &Scope<'g>, rows: usize, size: usize) -> Result<Embedding<'g>> {
        Ok(Embedding { weight: scope.matrix("weight", rows, size)? })
    }

    /// A table that is there.
    pub fn of(weight: Value<'g>) -> Embedding<'g> {
        Embedding { weight: Matrix::Plain(weight) }
    }

    /// Integers `[..]` to rows `[.., size]`. A number that is out of range is an error when the model runs.
    ///
    /// # Errors
    /// The numbers are no integers.
    pub fn apply(&self, numbers: Value<'g>) -> Result<Value<'g>> {
        self.weight.rows(numbers)
    }

    /// The output head that shares the table: `[.., size]` to `[.., rows]` (Press, Wolf 2017).
    pub fn tied_head(&self) -> Linear<'g> {
        Linear::of(self.weight, None, WeightOrder::OutIn)
    }
}

/// The sinusoidal positions of the Transformer (Vaswani et al. 2017, section 3.5) as rows of `size` values:
/// `sin(p / 10000^(2i/size))` and the cosine, interleaved as in the paper, or all sines first as Marian and
/// others have them.
pub fn sinusoids(rows: usize, size: usize, interleaved: bool) -> Vec<f32> {
    let half = size / 2;
    let angle = |p: usize, i: usize| p as f64 / 10000f64.powf(2.0 * i as f64 / size as f64);
    let mut out = vec![0.0; rows.saturating_mul(size)];
    if size == 0 {
        return out;
    }
    for (p, row) in out.chunks_exact_mut(size).enumerate() {
        for i in 0..half {
            let (sine, cosine) = if interleaved { (2 * i, 2 * i + 1) } else { (i, half + i) };
            row[sine] = angle(p, i).sin() as f32;
            row[cosine] = angle(p, i).cos() as f32;
        }
    }
    out
}
