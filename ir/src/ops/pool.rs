//! `pool`: a fold over a moving window, without padding.

use super::conv::{window_extent, window_index};
use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes, fold_axis};
use crate::scalar::{BinaryOp, Code, Source};

/// `out[n, c, s...] = fold over k... of x[n, c, s*stride + k*dilation]` for `x[n, c, d...]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// add, min or max.
    pub combine: BinaryOp,
    /// Extents of the window along the spatial axes, at least 1.
    pub window: Vec<usize>,
    /// Step of the window along each spatial axis, at least 1.
    pub strides: Vec<usize>,
    /// Distance of the window's elements along each spatial axis, at least 1.
    pub dilations: Vec<usize>,
}

impl Pool {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Pool, OpError> {
        let word = a.word("combine")?;
        let combine =
            BinaryOp::from_name(word).ok_or_else(|| OpError::new(format!("`{word}` is no operation to fold with")))?;
        Ok(Pool { combine, window: a.sizes("window")?, strides: a.sizes("strides")?, dilations: a.sizes("dilations")? })
    }
}

impl Operator for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
            .with("combine", self.combine.name())
            .with("window", self.window.as_slice())
            .with("strides", self.strides.as_slice())
            .with("dilations", self.dilations.as_slice())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        let spatial = self.window.len();
        if x.rank() != spatial + 2 || self.strides.len() != spatial || self.dilations.len() != spatial {
            return Err(OpError::new(format!("a window of {spatial} axes does not fit {x}")));
        }
        if [&self.window, &self.strides, &self.dilations].iter().any(|v| v.contains(&0)) {
            return Err(OpError::new("window, strides and dilations must be at least 1"));
        }
        if !matches!(self.combine, BinaryOp::Add | BinaryOp::Max | BinaryOp::Min)
            || !(x.dtype.is_float() || x.dtype.is_int())
        {
            return Err(OpError::new(format!("cannot fold {} with `{}`", x.dtype, self.combine.name())));
        }
        let mut dims = x.dims[..2].to_vec();
        for n in 0..spatial {
            let d = window_extent(&x.dims[n + 2], &Expr::from(self.window[n]), self.strides[n], self.dilations[n]);
            if d.as_const().is_some_and(|d| d < 0) {
                return Err(OpError::new("the window is larger than the input"));
            }
            dims.push(d);
        }
        Ok(vec![TensorType::new(x.dtype, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let at = axes(out.rank());
        let mut index = at[..2].to_vec();
        for n in 0..self.window.len() {
            index.push(window_index(&at[n + 2], self.strides[n], Expr::from(fold_axis(n)), self.dilations[n]));
        }
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), index, out.dtype);
        body.set_result(load);
        let folds: Vec<Expr> = self.window.iter().map(|&k| Expr::from(k)).collect();
        Ok(Meaning::Nests(vec![if folds.is_empty() {
            Nest::map(out.dims, body)
        } else {
            Nest::fold(out.dims, folds, self.combine, body)
        }]))
    }
}
