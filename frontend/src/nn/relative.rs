//! Relative positions as a bias of the scores (T5; Raffel et al. 2019, section 2.1).
//!
//! Invariant: the bias depends on the distance between key and query alone, by its bucket: near ones have buckets of their own,
//! far ones share them by the logarithm of the distance.

use super::Scope;
use crate::builder::{Builder, Result, Value};
use kiln_ir::{Expr, Tensor};

/// Learned biases by distance and head.
#[derive(Clone, Copy, Debug)]
pub struct RelativeBias<'g> {
    /// `[buckets, H]`.
    weight: Value<'g>,
    /// The bucket of each distance from `-(capacity - 1)` on.
    table: Value<'g>,
    capacity: usize,
    heads: usize,
}

/// The bucket of a distance `key - query`, in f32 as torch computes it.
fn bucket(distance: i64, buckets: usize, longest: usize, both_ways: bool) -> i64 {
    let (mut first, mut count) = (0i64, buckets as i64);
    let mut far = -distance;
    if both_ways {
        count /= 2;
        first = if distance > 0 { count } else { 0 };
        far = distance.abs();
    }
    let far = far.max(0);
    let exact = count / 2;
    if far < exact {
        return first + far;
    }
    let ratio = (far as f32 / exact.max(1) as f32).ln() / (longest as f64 / exact.max(1) as f64).ln() as f32;
    let shared = exact + (ratio * (count - exact) as f32) as i64;
    first + shared.min(count - 1)
}

impl<'g> RelativeBias<'g> {
    /// `weight: [buckets, H]` of a scope, for positions below `capacity`.
    ///
    /// # Errors
    /// The graph cannot hold the parameters.
    pub fn new(
        scope: &Scope<'g>,
        (buckets, longest): (usize, usize),
        heads: usize,
        both_ways: bool,
        capacity: usize,
    ) -> Result<RelativeBias<'g>> {
        let builder: &'g Builder = scope.builder();
        let last = i64::try_from(capacity).unwrap_or(i64::MAX).saturating_sub(1);
        let table: Vec<i64> = (-last..=last).map(|d| bucket(d, buckets, longest, both_ways)).collect();
        let made = Tensor::from_i64(&[table.len()], &table);
        let table = builder.constant(made.map_err(|e| crate::builder::BuildError::Op {
            call: "relative_bias".into(),
            error: kiln_ir::ops::OpError::new(e.to_string()),
        })?);
        Ok(RelativeBias { weight: scope.parameter("weight", &[buckets, heads])?, table, capacity, heads })
    }

    /// The bias for queries at positions `[T]` and keys at positions `[S]`: `[H, 1, T, S]`.
    ///
    /// # Errors
    /// The positions are no integers.
    pub fn apply(&self, queries: Value<'g>, keys: Value<'g>) -> Result<Value<'g>> {
        let distance = keys.sub(queries.unsqueeze(1)?)?.shift(self.capacity.saturating_sub(1) as f64)?;
        let bias = self.weight.gather(self.table.gather(distance, 0)?, 0)?;
        let dims = [Expr::from(self.heads), Expr::from(1i64), queries.dim(0)?, keys.dim(0)?];
        bias.transpose(&[2, 0, 1])?.reshape(dims)
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_those_of_the_paper_s_code() {
        // By torch: 32 buckets up to 128.
        let both: Vec<i64> =
            [-200, -128, -20, -8, -7, -1, 0, 1, 7, 8, 20, 127, 500].map(|d| bucket(d, 32, 128, true)).into();
        assert_eq!(both, [15, 15, 10, 8, 7, 1, 0, 17, 23, 24, 26, 31, 31]);
        let back: Vec<i64> = [-200, -127, -20, -16, -15, -1, 0, 5].map(|d| bucket(d, 32, 128, false)).into();
        assert_eq!(back, [31, 31, 17, 16, 15, 1, 0, 0]);
    }
}
