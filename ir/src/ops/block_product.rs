//! `block_product`: a product of rows of bytes with a weight of few bits, both in blocks that have scales.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis, fold_axis};
use crate::scalar::{BinaryOp, Code, Constant, Less, Scalar, Source};

/// `out[.., n] = sum over b of (x_scale[.., b] * scale[n, b]) * dot[.., n, b] + least[n, b] * x_sum[.., b]`, where `dot` is the sum over
/// `k` of the products of the numbers of `x[.., b, k]` and of `w[n, b, k]`, an integer.
///
/// Operands, in this order: `x` i32 `[.., B, K]`, each of four signed bytes; `x_scale` and `x_sum` f32 `[.., B]`; `w` i32, each of
/// four unsigned bytes, `[N, B, K]`; `scale` and `least` f32 or f16 `[N, B]`. With `halves` a byte of `w` holds two numbers of 4 bits, and it is
/// `[N, B, K / 2]`: the low halves of all of a block's bytes come before the high ones.
///
/// With `zero` the numbers of `w` are that much too large, and there is no `least`: it is `-zero * scale[n, b]`.
///
/// The sum of a block is exact where it has at most 512 numbers; in f32 it is scaled and added up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockProduct {
    /// Whether a byte of the weight holds two numbers.
    pub halves: bool,
    /// The number of the weight that stands for 0, at most 255; nothing where each block says what its least number stands for.
    pub zero: Option<u8>,
}

/// Numbers of a block whose sum of products is exact in f32 and so in every order.
pub const MOST_BLOCK: usize = 512;

impl BlockProduct {
    pub(super) fn from_attributes(a: &Attributes) -> Result<BlockProduct, OpError> {
        let zero = a.get("zero").map(|_| a.size("zero")).transpose()?;
        let zero = zero.map(|z| u8::try_from(z).map_err(|_| OpError::new("`zero` is a byte"))).transpose()?;
        Ok(BlockProduct { halves: a.bool("halves")?, zero })
    }
}

impl Operator for BlockProduct {
    fn name(&self) -> &'static str {
        "block_product"
    }

    fn attributes(&self) -> Attributes {
        let attributes = Attributes::new().with("halves", self.halves);
        match self.zero {
            Some(zero) => attributes.with("zero", usize::from(zero)),
            None => attributes,
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let ([x, x_scale, x_sum, w, scale], least) = match self.zero {
            Some(_) => (operands(inputs)?, None),
            None => {
                let [x, x_scale, x_sum, w, scale, least] = operands(inputs)?;
                ([x, x_scale, x_sum, w, scale], Some(least))
            }
        };
        if x.dtype != DType::I32 || w.dtype != DType::I32 {
            return Err(OpError::new("four bytes are an i32"));
        }
        let floats = [x_scale, x_sum].iter().all(|t| t.dtype == DType::F32);
        let alike = least.is_none_or(|least| least.dtype == scale.dtype);
        if !floats || !alike || !matches!(scale.dtype, DType::F32 | DType::F16) {
            return Err(OpError::new("scales, sums and least values are f32; those of the weight may be f16"));
        }
        let (Some((words, rows)), [columns, blocks, own]) = (x.dims.split_last(), w.dims.as_slice()) else {
            return Err(OpError::new("x is [.., blocks, words], w [columns, blocks, words]"));
        };
        let whole = if self.halves { own.scale(2) } else { own.clone() };
        if rows.last() != Some(blocks) || *words != whole {
            return Err(OpError::new(format!("{x} has other blocks than {w}")));
        }
        let most = i64::try_from(MOST_BLOCK / 4).unwrap_or(i64::MAX);
        if words.as_const().is_none_or(|words| words > most) {
            return Err(OpError::new(format!("a block has at most {MOST_BLOCK} numbers")));
        }
        if x_scale.dims != rows || x_sum.dims != rows {
            return Err(OpError::new(format!("{x_scale} and {x_sum} are not one number for each block of {x}")));
        }
        if let Some(wrong) = std::iter::once(scale).chain(least).find(|t| t.dims != w.dims[..2]) {
            return Err(OpError::new(format!("{wrong} is not one number for each block of {w}")));
        }
        let mut dims = rows.to_vec();
        dims.pop();
        dims.push(columns.clone());
        Ok(vec![TensorType::new(DType::F32, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (blocks, words) = (inputs[3].dims[1].clone(), inputs[3].dims[2].clone());
        let steps = if self.halves { words.scale(2) } else { words.clone() };
        let rows: Vec<Expr> = (0..out.rank() - 1).map(|n| Expr::from(axis(n))).collect();
        let (column, block, step) =
            (Expr::from(axis(out.rank() - 1)), Expr::from(fold_axis(0)), Expr::from(fold_axis(1)));
        let of_row: Vec<Expr> = rows.iter().cloned().chain([block.clone()]).collect();
        let of_column = vec![column.clone(), block.clone()];
        let mut body = Code::new();
        let bytes = of_row.iter().cloned().chain([step.clone()]).collect();
        let x = body.load_at(Source::Input(0), bytes, DType::I32);
        let word = if self.halves { step.modulo(&words) } else { step.clone() };
        let mut w = body.load_at(Source::Input(3), vec![column, block, word], DType::I32);
        if self.halves {
            let half = body.index(step.floor_div(&words).scale(4));
            let half = body.cast(DType::I32, half)?;
            w = body.binary(BinaryOp::Shr, w, half)?;
            let mask = body.constant(Constant::int(DType::I32, 0x0f0f_0f0f));
            w = body.binary(BinaryOp::And, w, mask)?;
        }
        let dot = body.binary(BinaryOp::Dot4, w, x)?;
        let dot = body.cast(DType::F32, dot)?;
        let x_scale = body.load_at(Source::Input(1), of_row.clone(), DType::F32);
        let float = |body: &mut Code, n: usize| {
            let stored = body.load_at(Source::Input(n), of_column.clone(), inputs[n].dtype);
            body.cast(DType::F32, stored)
        };
        let scale = float(&mut body, 4)?;
        let both = body.binary(BinaryOp::Mul, x_scale, scale)?;
        let own = body.binary(BinaryOp::Mul, both, dot)?;
        // Once a block.
        let sum = body.load_at(Source::Input(2), of_row, DType::F32);
        let offset = match self.zero {
            Some(zero) => {
                // The same for all columns.
                let zero = body.float(DType::F32, -f64::from(zero));
                let moved = body.binary(BinaryOp::Mul, sum, zero)?;
                body.binary(BinaryOp::Mul, moved, scale)?
            }
            None => {
                let least = float(&mut body, 5)?;
                body.binary(BinaryOp::Mul, least, sum)?
            }
        };
        let zero = body.constant(Constant::int(DType::F32, 0));
        let first = Less { left: step, right: Expr::from(1i64) };
        let offset = body.push(Scalar::Guard(vec![first], offset, zero))?;
        let value = body.binary(BinaryOp::Add, own, offset)?;
        body.set_result(value);
        Ok(Meaning::Nests(vec![Nest::fold(out.dims, vec![blocks, steps], BinaryOp::Add, body)]))
    }
}
