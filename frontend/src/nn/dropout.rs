//! Dropout (Srivastava et al. 2014).

use crate::builder::{BuildError, Result, Value};
use kiln_ir::ops::OpError;
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_ir::{DType, Expr};

/// What a graph is made for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Running a trained model.
    #[default]
    Inference,
    /// Training it.
    Training,
}

/// Sets elements to 0 with a probability while a model is trained, and divides the others by the probability that they stay.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    probability: f64,
    seed: u32,
}

impl Dropout {
    /// With a probability from 0 to below 1, and a seed that says which elements: the same ones in every run.
    ///
    /// # Errors
    /// The probability is none, or 1.
    pub fn new(probability: f64, seed: u32) -> Result<Dropout> {
        if !(0.0..1.0).contains(&probability) {
            let error = OpError::new(format!("{probability} is no probability below 1"));
            return Err(BuildError::Op { call: "dropout".into(), error });
        }
        Ok(Dropout { probability, seed })
    }

    /// `[..]` of floats to the same: in inference `x` itself.
    ///
    /// Element `n` in row-major order stays where the hash PCG-RXS-M-XS of `n` and the seed (O'Neill 2014; Jarzynski, Olano 2020) is at least
    /// `probability * 2^32`.
    ///
    /// # Errors
    /// The graph cannot hold it.
    pub fn apply(self, x: Value<'_>, phase: Phase) -> Result<Value<'_>> {
        if phase == Phase::Inference || self.probability == 0.0 {
            return Ok(x);
        }
        let dims = x.dims();
        let all = dims.iter().fold(Expr::from(1i64), |all, dim| all.mul(dim));
        let number = x.builder().iota([all], 0)?.reshape(dims)?.cast(DType::U32)?;
        let least = (self.probability * f64::from(u32::MAX)) as i64;
        x.map("dropout", &[number], |code, v| {
            let word =
                |code: &mut crate::body::Body, value: u32| code.constant(Constant::int(DType::U32, i64::from(value)));
            let seed = word(code, pcg(self.seed));
            let start = code.binary(BinaryOp::Xor, v[1], seed);
            let (by, and) = (word(code, BY), word(code, AND));
            let state = code.mul(start, by);
            let state = code.add(state, and);
            let (high, four) = (word(code, 28), word(code, 4));
            let shift = code.binary(BinaryOp::Shr, state, high);
            let shift = code.add(shift, four);
            let shifted = code.binary(BinaryOp::Shr, state, shift);
            let mixed = code.binary(BinaryOp::Xor, shifted, state);
            let by = word(code, MIX);
            let mixed = code.mul(mixed, by);
            let half = word(code, 22);
            let shifted = code.binary(BinaryOp::Shr, mixed, half);
            let drawn = code.binary(BinaryOp::Xor, shifted, mixed);
            let least = code.constant(Constant::int(DType::U32, least));
            let dropped = code.lt(drawn, least);
            let kept = code.lit(v[0], 1.0 / (1.0 - self.probability));
            let kept = code.mul(v[0], kept);
            let zero = code.lit(v[0], 0.0);
            code.select(dropped, zero, kept)
        })
    }
}

/// The constants of PCG-RXS-M-XS with 32 bits: a step of the generator, and what its state is multiplied by.
const BY: u32 = 747_796_405;
const AND: u32 = 2_891_336_453;
const MIX: u32 = 277_803_737;

/// The hash of a seed, so that neighbouring seeds have nothing in common.
fn pcg(seed: u32) -> u32 {
    let state = seed.wrapping_mul(BY).wrapping_add(AND);
    let mixed = ((state >> ((state >> 28) + 4)) ^ state).wrapping_mul(MIX);
    (mixed >> 22) ^ mixed
}
