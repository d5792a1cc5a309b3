//! `norm`: rows brought to mean 0 and variance 1, or to root mean square 1.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes, fold_axis};
use crate::scalar::{BinaryOp, Code, Constant, Source, UnaryOp};

/// What is divided out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// `(x - mean) / sqrt(mean((x - mean)^2) + epsilon)`: layer normalization (Ba et al. 2016).
    Layer,
    /// `x / sqrt(mean(x^2) + epsilon)`: root mean square normalization (Zhang, Sennrich 2019).
    Rms,
}

/// Normalization over the last `axes` axes, without scale and bias (those are maps). Types narrower than
/// f32 are rounded once, at the end: their range would not hold the sums.
#[derive(Clone, Debug, PartialEq)]
pub struct Norm {
    /// What is divided out.
    pub kind: NormKind,
    /// How many of the last axes are normalized together, at least 1.
    pub axes: usize,
    /// Added to the variance, of the operand's type.
    pub epsilon: Constant,
}

impl Norm {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Norm, OpError> {
        let kind = match a.word("kind")? {
            "layer" => NormKind::Layer,
            "rms" => NormKind::Rms,
            other => return Err(OpError::new(format!("`{other}` is no kind of normalization"))),
        };
        Ok(Norm { kind, axes: a.size("axes")?, epsilon: a.constant("epsilon")? })
    }
}

impl Operator for Norm {
    fn name(&self) -> &'static str {
        "norm"
    }

    fn attributes(&self) -> Attributes {
        let kind = match self.kind {
            NormKind::Layer => "layer",
            NormKind::Rms => "rms",
        };
        Attributes::new().with("kind", kind).with("axes", self.axes).with("epsilon", self.epsilon)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        if !x.dtype.is_float() || self.epsilon.dtype != x.dtype {
            return Err(OpError::new("wants floats and an epsilon of their type"));
        }
        if self.axes == 0 || self.axes > x.rank() {
            return Err(OpError::new(format!("cannot normalize {} axes of {x}", self.axes)));
        }
        Ok(vec![TensorType::new(x.dtype, x.dims.clone())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (dtype, wide, rank) = (out.dtype, super::wide(out.dtype), out.rank());
        let outer = rank - self.axes;
        let dims = out.dims[..outer].to_vec();
        let folds = out.dims[outer..].to_vec();
        let count = folds.iter().fold(Expr::from(1i64), |a, d| a.mul(d));
        let mut row = axes(outer);
        row.extend((0..self.axes).map(|n| Expr::from(fold_axis(n))));
        // The count may be symbolic: it enters the code as an index expression.
        let divide = |code: &mut Code| -> Result<_, OpError> {
            let sum = code.arg(0, wide);
            let n = match count.as_const() {
                Some(n) => code.constant(Constant::int(wide, n)),
                None => {
                    let n = code.index(count.clone());
                    code.cast(wide, n)?
                }
            };
            Ok(code.binary(BinaryOp::Div, sum, n)?)
        };
        let mut stages = Vec::new();
        if self.kind == NormKind::Layer {
            let mut body = Code::new();
            let x = body.load_at(Source::Input(0), row.clone(), dtype);
            let x = body.cast(wide, x)?;
            body.set_result(x);
            let mut mean = Nest::fold(dims.clone(), folds.clone(), BinaryOp::Add, body);
            let mut finish = Code::new();
            let result = divide(&mut finish)?;
            finish.set_result(result);
            mean.finish = finish;
            stages.push(mean);
        }
        let centred = |code: &mut Code, index: Vec<Expr>| -> Result<_, OpError> {
            let x = code.load_at(Source::Input(0), index, dtype);
            let x = code.cast(wide, x)?;
            Ok(match self.kind {
                NormKind::Rms => x,
                NormKind::Layer => {
                    let mean = code.load_at(Source::Stage(0), axes(outer), wide);
                    code.binary(BinaryOp::Sub, x, mean)?
                }
            })
        };
        let mut square = Code::new();
        let x = centred(&mut square, row)?;
        let result = square.binary(BinaryOp::Mul, x, x)?;
        square.set_result(result);
        let mut scale = Nest::fold(dims, folds, BinaryOp::Add, square);
        let mut finish = Code::new();
        let mean = divide(&mut finish)?;
        let epsilon = finish.constant(Constant::float(wide, self.epsilon.as_f64()));
        let sum = finish.binary(BinaryOp::Add, mean, epsilon)?;
        let root = finish.unary(UnaryOp::Sqrt, sum)?;
        let result = finish.unary(UnaryOp::Recip, root)?;
        finish.set_result(result);
        scale.finish = finish;
        let last = stages.len();
        stages.push(scale);

        let mut body = Code::new();
        let x = centred(&mut body, axes(rank))?;
        let scale = body.load_at(Source::Stage(last), axes(outer), wide);
        let result = body.binary(BinaryOp::Mul, x, scale)?;
        let result = body.cast(dtype, result)?;
        body.set_result(result);
        stages.push(Nest::map(out.dims, body));
        Ok(Meaning::Nests(stages))
    }
}
