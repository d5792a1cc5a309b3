//! Relative positions of Transformer-XL (Dai et al. 2019, section 3.3) and XLNet (Yang et al. 2019).
//!
//! Invariant: the score of a pair has a part of the query and the sine embedding of their distance, which no table of learned rows limits;
//! only the capacity that the sines are made for does.

use crate::builder::{Builder, Result, Value};
use kiln_ir::Expr;

/// Sines and cosines of distances, for positions below a capacity.
#[derive(Clone, Copy, Debug)]
pub struct RelativeSines<'g> {
    /// `[2 capacity, E]`, the row `n` that of the distance `capacity - n`; all sines before the cosines.
    table: Value<'g>,
    capacity: usize,
}

impl<'g> RelativeSines<'g> {
    /// The table of embeddings of size `E`.
    ///
    /// # Errors
    /// The graph cannot hold it.
    pub fn new(builder: &'g Builder, model: usize, capacity: usize) -> Result<RelativeSines<'g>> {
        let half = model / 2;
        let mut table = vec![0.0; (2 * capacity).saturating_mul(model)];
        for (row, values) in table.chunks_exact_mut(model.max(1)).enumerate() {
            let distance = capacity as f64 - row as f64;
            for i in 0..half {
                // The frequency is rounded to f32, as torch has it.
                let frequency = f64::from((1.0 / 10000f64.powf(2.0 * i as f64 / model as f64)) as f32);
                let angle = f64::from((distance * frequency) as f32);
                values[i] = angle.sin() as f32;
                values[half + i] = angle.cos() as f32;
            }
        }
        Ok(RelativeSines { table: builder.floats(&[2 * capacity, model], &table)?, capacity })
    }

    /// The scores of `queries: [B, T, H, D]` with the distances to all `T` keys, which `map` of `[E, H, D]` takes to heads: `[B, H, 1, T, T]`.
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn scores(&self, queries: Value<'g>, map: Value<'g>) -> Result<Value<'g>> {
        let [batch, tokens, heads] = [queries.dim(0)?, queries.dim(1)?, queries.dim(2)?];
        let one = Expr::from(1i64);
        let twice = tokens.add(&tokens);
        // Distances from T down to 1 - T.
        let rows = self.table.part(0, Expr::from(self.capacity).sub(&tokens), twice.clone())?;
        let keys = rows.contract(map, "re,ehd->rhd")?;
        let all = queries.contract(keys, "bthd,rhd->bhtr")?;
        // Row i needs the columns from T - i on: read with rows one shorter, each row starts one later.
        let turned = all.reshape([batch.clone(), heads.clone(), twice.clone(), tokens.clone()])?;
        let shorter = twice.sub(&one);
        let cut = turned.part(2, one.clone(), shorter.clone())?;
        let shifted = cut.reshape([batch.clone(), heads.clone(), tokens.clone(), shorter])?;
        shifted.part(3, Expr::default(), tokens.clone())?.reshape([batch, heads, one, tokens.clone(), tokens])
    }
}
