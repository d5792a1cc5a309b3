//! `block_product`: a product of rows with a weight of few bits in blocks that have scales.

use super::{Attributes, Meaning, OpError, Operator};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::id::Id;
use crate::nest::{Nest, axis, fold_axis};
use crate::scalar::{BinaryOp, Code, Constant, Less, Scalar, Source, TypeError};

/// `out[.., n] = sum over b of scale[n, b] * dot[.., n, b] + least[n, b] * x_sum[.., b]`, where `dot` is the sum over `k` of the products of
/// the numbers of `x[.., b, k]` and of `w[n, b, k]`.
///
/// The weight's operands come last: `w` i32, each of four unsigned bytes, `[N, B, K]`; `scale` and `least` f32 or f16 `[N, B]`. With `halves` a
/// byte of `w` holds two numbers of 4 bits, and it is `[N, B, K / 2]`: the low halves of all of a block's bytes come before the high ones.
/// With `zero` the numbers of `w` are that much too large, and there is no `least`: it is `-zero * scale[n, b]`.
///
/// The operands before them depend on the form of the rows ([`BlockProduct::bytes`]):
///
/// - 0: `x` f32 `[.., B, G]`, as many numbers as a block has.
/// - 1: `x` i32 `[.., B, K]`, each of four signed bytes; `x_scale` and `x_sum` f32 `[.., B]`. A number is its byte times the scale, and
///   `x_sum` the sum of a block's.
/// - more: the same with `x` `[.., D, B, K]`. A number is the sum of its `D` bytes, each worth [`RADIX`] times as much as the next one, times the scale, which is
///   that of the first.
///
/// The sum of a block's bytes is exact where it has at most 512 numbers; in f32 it is scaled and added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockProduct {
    /// How many signed bytes stand for a number of the rows, at most [`MOST_DIGITS`]; 0 where the rows are f32.
    pub bytes: usize,
    /// Whether a byte of the weight holds two numbers.
    pub halves: bool,
    /// The number of the weight that stands for 0, at most 255; nothing where each block says what its least number stands for.
    pub zero: Option<u8>,
}

/// Numbers of a block whose sum of products is exact in f32 and so in every order.
pub const MOST_BLOCK: usize = 512;

/// How much more a byte of a number of the rows is worth than the next one: what is left of a number that was rounded is at most
/// half, of which 254 are 127.
pub const RADIX: i64 = 254;

/// Most bytes of a number of the rows: three have the bits of an f32.
pub const MOST_DIGITS: usize = 3;

impl BlockProduct {
    pub(super) fn from_attributes(a: &Attributes) -> Result<BlockProduct, OpError> {
        let zero = a.get("zero").map(|_| a.size("zero")).transpose()?;
        let zero = zero.map(|z| u8::try_from(z).map_err(|_| OpError::new("`zero` is a byte"))).transpose()?;
        Ok(BlockProduct { bytes: a.size("bytes")?, halves: a.bool("halves")?, zero })
    }

    /// How many operands are of the rows; the others are of the weight.
    pub fn of_rows(&self) -> usize {
        if self.bytes == 0 { 1 } else { 3 }
    }

    /// The number that is at a step of a block, of a weight's word that is loaded by `word`.
    fn number(
        &self,
        body: &mut Code,
        step: &Expr,
        words: &Expr,
        word: impl FnOnce(&mut Code, Expr) -> Id<Scalar>,
    ) -> Result<Id<Scalar>, TypeError> {
        let numbers = words.scale(4);
        let (half, within) = match self.halves {
            true => (step.floor_div(&numbers), step.modulo(&numbers)),
            false => (Expr::default(), step.clone()),
        };
        let four = Expr::from(4i64);
        let loaded = word(body, within.floor_div(&four));
        let shift = body.index(within.modulo(&four).scale(8).add(&half.scale(4)));
        let shift = body.cast(DType::I32, shift)?;
        let moved = body.binary(BinaryOp::Shr, loaded, shift)?;
        let mask = body.constant(Constant::int(DType::I32, if self.halves { 15 } else { 255 }));
        let number = body.binary(BinaryOp::And, moved, mask)?;
        body.cast(DType::F32, number)
    }
}

impl Operator for BlockProduct {
    fn name(&self) -> &'static str {
        "block_product"
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with("bytes", self.bytes).with("halves", self.halves);
        match self.zero {
            Some(zero) => attributes.with("zero", usize::from(zero)),
            None => attributes,
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        if self.bytes > MOST_DIGITS {
            return Err(OpError::new(format!("a number of the rows has at most {MOST_DIGITS} bytes")));
        }
        let (of_rows, of_weight) = inputs.split_at_checked(self.of_rows()).unwrap_or_default();
        let (x, w, scale, least) = match (of_rows, of_weight, self.zero) {
            ([x, ..], [w, scale], Some(_)) => (x, w, scale, None),
            ([x, ..], [w, scale, least], None) => (x, w, scale, Some(least)),
            _ => {
                let wanted = self.of_rows() + if self.zero.is_some() { 2 } else { 3 };
                return Err(OpError::new(format!("{wanted} operands are needed, {} are there", inputs.len())));
            }
        };
        let of_x = if self.bytes == 0 { DType::F32 } else { DType::I32 };
        if x.dtype != of_x || w.dtype != DType::I32 {
            return Err(OpError::new("four bytes are an i32, and rows without bytes f32"));
        }
        let floats = of_rows.iter().skip(1).all(|t| t.dtype == DType::F32);
        let alike = least.is_none_or(|least| least.dtype == scale.dtype);
        if !floats || !alike || !matches!(scale.dtype, DType::F32 | DType::F16) {
            return Err(OpError::new("scales, sums and least values are f32; those of the weight may be f16"));
        }
        let (Some((steps, rows)), [columns, blocks, own]) = (x.dims.split_last(), w.dims.as_slice()) else {
            return Err(OpError::new("x is [.., blocks, words], w [columns, blocks, words]"));
        };
        let of_word = if self.bytes == 0 { 4 } else { 1 };
        let whole = own.scale(if self.halves { 2 } else { 1 } * of_word);
        let Some((blocks_of_x, others)) = rows.split_last().filter(|(b, _)| *b == blocks && *steps == whole) else {
            return Err(OpError::new(format!("{x} has other blocks than {w}")));
        };
        let most = i64::try_from(MOST_BLOCK / 4).unwrap_or(i64::MAX) * of_word;
        if steps.as_const().is_none_or(|steps| steps > most) {
            return Err(OpError::new(format!("a block has at most {MOST_BLOCK} numbers")));
        }
        let mut dims = others.to_vec();
        if self.bytes > 1 && dims.pop().and_then(|digits| digits.as_size()) != Some(self.bytes) {
            return Err(OpError::new(format!("{x} has not {} bytes for a number", self.bytes)));
        }
        let for_blocks: Vec<Expr> = dims.iter().chain([blocks_of_x]).cloned().collect();
        if let Some(wrong) = of_rows.iter().skip(1).find(|t| t.dims != for_blocks) {
            return Err(OpError::new(format!("{wrong} is not one number for each block of {x}")));
        }
        if let Some(wrong) = std::iter::once(scale).chain(least).find(|t| t.dims != w.dims[..2]) {
            return Err(OpError::new(format!("{wrong} is not one number for each block of {w}")));
        }
        dims.push(columns.clone());
        Ok(vec![TensorType::new(DType::F32, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let of_rows = self.of_rows();
        let (blocks, words) = (inputs[of_rows].dims[1].clone(), inputs[of_rows].dims[2].clone());
        let of_word = if self.bytes == 0 { 4 } else { 1 };
        let steps = words.scale(if self.halves { 2 } else { 1 } * of_word);
        let rows: Vec<Expr> = (0..out.rank() - 1).map(|n| Expr::from(axis(n))).collect();
        let (column, block, step) =
            (Expr::from(axis(out.rank() - 1)), Expr::from(fold_axis(0)), Expr::from(fold_axis(1)));
        let of_row: Vec<Expr> = rows.iter().cloned().chain([block.clone()]).collect();
        let of_column = vec![column.clone(), block.clone()];
        let float = |body: &mut Code, n: usize| {
            let stored = body.load_at(Source::Input(n), of_column.clone(), inputs[n].dtype);
            body.cast(DType::F32, stored)
        };
        let load_word = |body: &mut Code, word: Expr| {
            body.load_at(Source::Input(of_rows), vec![column.clone(), block.clone(), word], DType::I32)
        };
        let nest = |mut body: Code, value| {
            body.set_result(value);
            Meaning::Nests(vec![Nest::fold(out.dims.clone(), vec![blocks.clone(), steps.clone()], BinaryOp::Add, body)])
        };
        let mut body = Code::new();
        if self.bytes == 0 {
            let at = of_row.iter().cloned().chain([step.clone()]).collect();
            let x = body.load_at(Source::Input(0), at, DType::F32);
            let mut number = self.number(&mut body, &step, &words, load_word)?;
            if let Some(zero) = self.zero {
                let zero = body.float(DType::F32, f64::from(zero));
                number = body.binary(BinaryOp::Sub, number, zero)?;
            }
            let scale = float(&mut body, 2)?;
            let mut weight = body.binary(BinaryOp::Mul, number, scale)?;
            if self.zero.is_none() {
                let least = float(&mut body, 3)?;
                weight = body.binary(BinaryOp::Add, weight, least)?;
            }
            let value = body.binary(BinaryOp::Mul, x, weight)?;
            return Ok(nest(body, value));
        }
        let word = if self.halves { step.modulo(&words) } else { step.clone() };
        let mut w = load_word(&mut body, word);
        if self.halves {
            let half = body.index(step.floor_div(&words).scale(4));
            let half = body.cast(DType::I32, half)?;
            w = body.binary(BinaryOp::Shr, w, half)?;
            let mask = body.constant(Constant::int(DType::I32, 0x0f0f_0f0f));
            w = body.binary(BinaryOp::And, w, mask)?;
        }
        let x_scale = body.load_at(Source::Input(1), of_row.clone(), DType::F32);
        let scale = float(&mut body, 4)?;
        // From the last byte on, each of which is worth the least.
        let finer = body.float(DType::F32, 1.0 / RADIX as f64);
        let mut dots = None;
        for digit in (0..self.bytes).rev() {
            let digit_axis = (self.bytes > 1).then(|| Expr::from(digit));
            let at = rows.iter().cloned().chain(digit_axis).chain([block.clone(), step.clone()]).collect();
            let x = body.load_at(Source::Input(0), at, DType::I32);
            let dot = body.binary(BinaryOp::Dot4, w, x)?;
            let dot = body.cast(DType::F32, dot)?;
            dots = Some(dots.map_or(Ok(dot), |less| body.push(Scalar::Fma(less, finer, dot)))?);
        }
        let dots = dots.ok_or_else(|| OpError::new("rows of bytes have some"))?;
        // Once a block.
        let sum = body.load_at(Source::Input(2), of_row, DType::F32);
        let nothing = body.constant(Constant::int(DType::F32, 0));
        let first = |body: &mut Code, offset| {
            let first = Less { left: step.clone(), right: Expr::from(1i64) };
            body.push(Scalar::Guard(vec![first], offset, nothing))
        };
        let least = match self.zero {
            Some(zero) => {
                let zero = body.float(DType::F32, -f64::from(zero));
                // The same for all columns.
                let moved = body.binary(BinaryOp::Mul, sum, zero)?;
                if self.bytes > 1 {
                    // Nearly all of what numbers without a sign are too much goes before the result is rounded.
                    let moved = first(&mut body, moved)?;
                    let own = body.push(Scalar::Fma(x_scale, dots, moved))?;
                    let value = body.binary(BinaryOp::Mul, scale, own)?;
                    return Ok(nest(body, value));
                }
                body.binary(BinaryOp::Mul, moved, scale)?
            }
            None => {
                let least = float(&mut body, 5)?;
                body.binary(BinaryOp::Mul, least, sum)?
            }
        };
        let both = body.binary(BinaryOp::Mul, x_scale, scale)?;
        let own = body.binary(BinaryOp::Mul, both, dots)?;
        let least = first(&mut body, least)?;
        let value = body.binary(BinaryOp::Add, own, least)?;
        Ok(nest(body, value))
    }
}
