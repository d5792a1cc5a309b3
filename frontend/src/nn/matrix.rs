//! Matrices of weights, as numbers or in quantized blocks.
//!
//! Invariant: both forms mean the same elements; blocks are computed with where they are read, and no expanded copy is asked
//! for.

use crate::builder::{Result, Value};
use kiln_ir::{DType, Expr};

/// A matrix `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'g> {
    /// f32.
    Plain(Value<'g>),
    /// `number * scale + least`, with one scale for each block of a row.
    Blocks {
        /// Integers, `[rows, blocks, block]`.
        numbers: Value<'g>,
        /// f32, `[rows, blocks, 1]`.
        scales: Value<'g>,
        /// f32, `[rows, blocks, 1]`.
        least: Option<Value<'g>>,
    },
}

/// `number * scale + least` as f32.
fn elements<'g>(numbers: Value<'g>, scales: Value<'g>, least: Option<Value<'g>>) -> Result<Value<'g>> {
    let others: Vec<Value<'g>> = [scales].into_iter().chain(least).collect();
    numbers.map("expand", &others, |code, v| {
        let number = code.cast(DType::F32, v[0]);
        let scaled = code.mul(number, v[1]);
        if others.len() > 1 { code.add(scaled, v[2]) } else { scaled }
    })
}

impl<'g> Matrix<'g> {
    /// The elements, f32 `[rows, columns]`.
    ///
    /// # Errors
    /// The parts do not fit.
    pub fn value(self) -> Result<Value<'g>> {
        match self {
            Matrix::Plain(value) => Ok(value),
            Matrix::Blocks { numbers, scales, least } => {
                let dims = [numbers.dim(0)?, numbers.dim(1)?.mul(&numbers.dim(2)?)];
                elements(numbers, scales, least)?.reshape(dims)
            }
        }
    }

    /// `x` times the transposed matrix: `[.., columns]` to `[.., rows]`.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn product(self, x: Value<'g>) -> Result<Value<'g>> {
        let letters: String = (b'a'..=b'j').take(x.rank().saturating_sub(1)).map(char::from).collect();
        match self {
            Matrix::Plain(value) => x.contract(value, &format!("{letters}K,NK->{letters}N")),
            Matrix::Blocks { numbers, scales, least } => {
                // Over blocks and their elements, so that a scale is read once for a block.
                let mut dims: Vec<Expr> = x.dims();
                dims.pop();
                dims.extend([numbers.dim(1)?, numbers.dim(2)?]);
                let weight = elements(numbers, scales, least)?;
                x.reshape(dims)?.contract(weight, &format!("{letters}BK,NBK->{letters}N"))
            }
        }
    }

    /// Rows picked by integers: `[..]` to `[.., columns]`.
    ///
    /// # Errors
    /// The numbers are no integers.
    pub fn rows(self, at: Value<'g>) -> Result<Value<'g>> {
        match self {
            Matrix::Plain(value) => value.gather(at, 0),
            Matrix::Blocks { numbers, scales, least } => {
                let mut dims = at.dims();
                dims.push(numbers.dim(1)?.mul(&numbers.dim(2)?));
                let picked = least.map(|l| l.gather(at, 0)).transpose()?;
                elements(numbers.gather(at, 0)?, scales.gather(at, 0)?, picked)?.reshape(dims)
            }
        }
    }
}
