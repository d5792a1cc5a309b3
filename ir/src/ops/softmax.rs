//! `softmax`: exponentials divided by their sum along an axis, safe against overflow.

use super::{Attributes, Meaning, OpError, Operator, check_axes, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes, axis, fold_axis};
use crate::scalar::{BinaryOp, Code, Source, UnaryOp};

/// `exp(x - m) / sum(exp(x - m))` with `m` the maximum along the axis, or the logarithm of that. Types narrower
/// than f32 are rounded once, at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Softmax {
    /// The axis.
    pub axis: usize,
    /// Whether the logarithm is taken.
    pub log: bool,
}

impl Softmax {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Softmax, OpError> {
        Ok(Softmax { axis: a.size("axis")?, log: a.bool("log")? })
    }
}

impl Operator for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis).with("log", self.log)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        check_axes(&[self.axis], x.rank())?;
        if !x.dtype.is_float() {
            return Err(OpError::new("wants floats"));
        }
        Ok(vec![TensorType::new(x.dtype, x.dims.clone())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (dtype, wide) = (out.dtype, super::wide(out.dtype));
        let (mut outer, extent) = (out.dims.clone(), out.dims[self.axis].clone());
        outer.remove(self.axis);
        // Within the folding stages the axes after the folded one have moved up by one.
        let mut folded = axes(outer.len());
        folded.insert(self.axis, Expr::from(fold_axis(0)));
        let stage_at = axes(outer.len());
        let mut rest: Vec<Expr> = axes(out.rank());
        rest.remove(self.axis);

        let mut max = Code::new();
        max.load_at(Source::Input(0), folded.clone(), dtype);

        let mut sum = Code::new();
        let x = sum.load_at(Source::Input(0), folded, dtype);
        let m = sum.load_at(Source::Stage(0), stage_at, dtype);
        let (x, m) = (sum.cast(wide, x)?, sum.cast(wide, m)?);
        let shifted = sum.binary(BinaryOp::Sub, x, m)?;
        let e = sum.unary(UnaryOp::Exp, shifted)?;
        sum.set_result(e);

        let mut body = Code::new();
        let here = (0..out.rank()).map(|n| Expr::from(axis(n))).collect();
        let x = body.load_at(Source::Input(0), here, dtype);
        let m = body.load_at(Source::Stage(0), rest.clone(), dtype);
        let s = body.load_at(Source::Stage(1), rest, wide);
        let (x, m) = (body.cast(wide, x)?, body.cast(wide, m)?);
        let shifted = body.binary(BinaryOp::Sub, x, m)?;
        if self.log {
            let log = body.unary(UnaryOp::Log, s)?;
            let result = body.binary(BinaryOp::Sub, shifted, log)?;
            let result = body.cast(dtype, result)?;
            body.set_result(result);
        } else {
            let e = body.unary(UnaryOp::Exp, shifted)?;
            // One division a row: each element is rounded once more.
            let share = body.unary(UnaryOp::Recip, s)?;
            let result = body.binary(BinaryOp::Mul, e, share)?;
            let result = body.cast(dtype, result)?;
            body.set_result(result);
        }
        Ok(Meaning::Nests(vec![
            Nest::fold(outer.clone(), vec![extent.clone()], BinaryOp::Max, max),
            Nest::fold(outer, vec![extent], BinaryOp::Add, sum),
            Nest::map(out.dims, body),
        ]))
    }
}
