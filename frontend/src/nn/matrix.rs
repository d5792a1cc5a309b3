//! Matrices of weights, as numbers or in quantized blocks.
//!
//! Invariant: both forms mean the same elements; blocks are computed with where they are read, and no expanded copy is asked
//! for.

use crate::builder::{BuildError, Result, Value};
use crate::gguf::{BLOCK, Numbers, shifts_of_halves};
use kiln_ir::ops::OpError;
use kiln_ir::{DType, Expr};

/// A matrix `[rows, columns]`.
#[derive(Clone, Copy, Debug)]
pub enum Matrix<'g> {
    /// f32.
    Plain(Value<'g>),
    /// `number * scale + least`, with one scale for each block of a row.
    Blocks {
        /// What `numbers` holds.
        form: Numbers,
        /// Integers, `[rows, blocks, 32]` (or 16), or bytes of two, `[rows, blocks, 16]`.
        numbers: Value<'g>,
        /// f32 or f16, `[rows, blocks, 1]`.
        scales: Value<'g>,
        /// As the scales.
        least: Option<Value<'g>>,
    },
}

/// The numbers of blocks, `[.., 32]`, each as wide as arithmetic wants it.
fn unpacked(form: Numbers, numbers: Value<'_>) -> Result<Value<'_>> {
    if form == Numbers::Bytes {
        return Ok(numbers);
    }
    let mut dims = numbers.dims();
    let bytes = dims.pop();
    // By the half and by the byte: the first 16 elements are the low halves.
    let halves = dims.iter().cloned().chain([Expr::from(1i64)]).chain(bytes);
    let shifts =
        shifts_of_halves().map_err(|e| BuildError::Op { call: "halves".into(), error: OpError::new(e.to_string()) })?;
    let shifts = numbers.builder().constant(shifts);
    let wide = numbers.reshape(halves)?.map("halves", &[shifts], |code, v| code.half_of_byte(v[0], v[1]))?;
    wide.reshape(dims.into_iter().chain([Expr::from(BLOCK)]))
}

/// Elements of a block.
fn block(form: Numbers, numbers: Value<'_>) -> Result<Expr> {
    match form {
        Numbers::Bytes => numbers.dim(2),
        Numbers::Halves => Ok(Expr::from(BLOCK)),
    }
}

/// `number * scale + least` as f32, `[.., 32]`.
fn elements<'g>(form: Numbers, numbers: Value<'g>, scales: Value<'g>, least: Option<Value<'g>>) -> Result<Value<'g>> {
    let others: Vec<Value<'g>> = [scales].into_iter().chain(least).collect();
    unpacked(form, numbers)?.map("expand", &others, |code, v| {
        let number = code.cast(DType::F32, v[0]);
        let scale = code.cast(DType::F32, v[1]);
        let scaled = code.mul(number, scale);
        if others.len() == 1 {
            return scaled;
        }
        let least = code.cast(DType::F32, v[2]);
        code.add(scaled, least)
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
            Matrix::Blocks { form, numbers, scales, least } => {
                let dims = [numbers.dim(0)?, numbers.dim(1)?.mul(&block(form, numbers)?)];
                elements(form, numbers, scales, least)?.reshape(dims)
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
            Matrix::Blocks { form, numbers, scales, least } => {
                // Over blocks and their elements, so that a scale is read once for a block.
                let mut dims: Vec<Expr> = x.dims();
                dims.pop();
                dims.extend([numbers.dim(1)?, block(form, numbers)?]);
                let weight = elements(form, numbers, scales, least)?;
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
            Matrix::Blocks { form, numbers, scales, least } => {
                let mut dims = at.dims();
                dims.push(numbers.dim(1)?.mul(&block(form, numbers)?));
                let picked = least.map(|l| l.gather(at, 0)).transpose()?;
                elements(form, numbers.gather(at, 0)?, scales.gather(at, 0)?, picked)?.reshape(dims)
            }
        }
    }
}
