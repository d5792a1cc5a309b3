//! Disentangled attention (DeBERTa; He et al. 2020, section 3.1): scores of content to position and of position to content.
//!
//! Invariant: the bias depends on the contents of query and key and on their distance, by its bucket: near distances have buckets of their
//! own, far ones share them by the logarithm.

use super::attention::Heads;
use crate::builder::{BuildError, Builder, Result, Value};
use kiln_ir::ops::OpError;
use kiln_ir::{Expr, Tensor};

/// Distances by bucket, for positions below a capacity.
#[derive(Clone, Copy, Debug)]
pub struct Distances<'g> {
    /// The row of each distance `query - key` from `-(capacity - 1)` on.
    table: Value<'g>,
    capacity: usize,
    /// Rows of the relative embeddings.
    rows: usize,
}

/// The bucket of a distance, in f32 as torch computes it; without buckets the distance itself.
fn bucket(distance: i64, buckets: Option<usize>, longest: usize) -> i64 {
    let Some(buckets) = buckets else { return distance };
    let middle = (buckets / 2) as i64;
    if distance.abs() <= middle {
        return distance;
    }
    let ratio = (distance.abs() as f32 / middle as f32).ln() / ((longest as f32 - 1.0) / middle as f32).ln();
    (((ratio * (middle - 1) as f32).ceil()) as i64 + middle) * distance.signum()
}

impl<'g> Distances<'g> {
    /// For `2 span` rows of relative embeddings, where `span` is the number of buckets or, without them, `longest`.
    ///
    /// # Errors
    /// There is no memory for the table.
    pub fn new(builder: &'g Builder, buckets: Option<usize>, longest: usize, capacity: usize) -> Result<Distances<'g>> {
        let span = buckets.unwrap_or(longest) as i64;
        let last = i64::try_from(capacity).unwrap_or(i64::MAX).saturating_sub(1);
        let row = |d: i64| (bucket(d, buckets, longest) + span).clamp(0, 2 * span - 1);
        let table: Vec<i64> = (-last..=last).map(row).collect();
        let made = Tensor::from_i64(&[table.len()], &table)
            .map_err(|e| BuildError::Op { call: "distances".into(), error: OpError::new(e.to_string()) })?;
        Ok(Distances { table: builder.constant(made), capacity, rows: 2 * span as usize })
    }

    /// Rows of the relative embeddings.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// The scores of `contents: [B, T, H, D]` with relative embeddings `[rows, H, D]`, each pair's by its distance: `[B, H, 1, T, T]`. With
    /// `of_keys` the contents are those of the keys (position to content), else of the queries (content to position).
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn scores(&self, contents: Value<'g>, relative: Value<'g>, heads: Heads, of_keys: bool) -> Result<Value<'g>> {
        let builder = contents.builder();
        let [batch, tokens] = [contents.dim(0)?, contents.dim(1)?];
        let [heads, rows] = [Expr::from(heads.queries), Expr::from(self.rows)];
        let all = contents.contract(relative, "bthd,rhd->bhtr")?;
        let flat = all.reshape([batch.clone(), heads.clone(), tokens.mul(&rows)])?;
        let at = builder.iota([tokens.clone()], 0)?;
        let queries = at.unsqueeze(1)?;
        let distance = queries.sub(at)?.shift(self.capacity.saturating_sub(1) as f64)?;
        let rows = i64::try_from(self.rows).unwrap_or(i64::MAX);
        let content = if of_keys { at } else { queries };
        let place = self.table.gather(distance, 0)?.map("place", &[content], |code, v| {
            let rows = code.int(v[1], rows);
            let start = code.mul(v[1], rows);
            code.add(v[0], start)
        })?;
        flat.gather(place, 2)?.reshape([batch, heads, 1.into(), tokens.clone(), tokens])
    }
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn buckets_are_those_of_torch() {
        // By make_log_bucket_position(d, 8, 24) and (d, 256, 512).
        let small: Vec<i64> = [0, 1, 3, 4, 5, 7, 9, 13, 20, 23].map(|d| bucket(d, Some(8), 24)).into();
        assert_eq!(small, [0, 1, 3, 4, 5, 5, 6, 7, 7, 7]);
        assert_eq!([-1, -5, -20, 300].map(|d| bucket(d, Some(256), 512)), [-1, -5, -20, 207]);
        assert_eq!([-9, 9].map(|d| bucket(d, Some(8), 24)), [-6, 6]);
        assert_eq!(bucket(-31, None, 64), -31);
    }
}
