//! `conv`: cross-correlation without padding.

use super::{Attributes, Elements, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes, fold_axis};
use crate::scalar::{BinaryOp, Code, Scalar, Source};

/// `out[n, o, s...] = sum over c, k... of x[n, g(o)*C/groups + c, s*stride + k*dilation] * w[o, c, k...]`
/// for `x[n, C, d...]` and `w[O, C/groups, k...]`, where `g(o)` is the group of output channel `o`. Padding is an op of its own.
///
/// Elements that are bytes or pairs are i32, as [`super::Pack`] makes them, and the product of two of them is their dot product; of
/// bytes, those of `x` are unsigned and those of `w` signed, and `x` may be u8 or u16: its elements are
/// the lowest bytes, the others 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Step of the window along each spatial axis, at least 1.
    pub strides: Vec<usize>,
    /// Distance of the window's elements along each spatial axis, at least 1.
    pub dilations: Vec<usize>,
    /// Number of groups of channels, at least 1.
    pub groups: usize,
    /// What elements hold.
    pub elements: Elements,
}

impl Conv {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Conv, OpError> {
        let elements = Elements::from_attributes(a)?;
        Ok(Conv { strides: a.sizes("strides")?, dilations: a.sizes("dilations")?, groups: a.size("groups")?, elements })
    }
}

/// The extent that a window leaves of a spatial axis.
pub(super) fn window_extent(d: &Expr, window: &Expr, stride: usize, dilation: usize) -> Expr {
    let one = Expr::from(1i64);
    let span = window.sub(&one).mul(&Expr::from(dilation)).add(&one);
    d.sub(&span).floor_div(&Expr::from(stride)).add(&one)
}

/// `s*stride + k*dilation` for spatial axis `n`, with the window's position in `k`.
pub(super) fn window_index(at: &Expr, stride: usize, k: Expr, dilation: usize) -> Expr {
    at.mul(&Expr::from(stride)).add(&k.mul(&Expr::from(dilation)))
}

impl Operator for Conv {
    fn name(&self) -> &'static str {
        "conv"
    }

    fn attributes(&self) -> Attributes {
        let window = Attributes::new()
            .with("strides", self.strides.as_slice())
            .with("dilations", self.dilations.as_slice())
            .with("groups", self.groups);
        self.elements.note(window)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x, w] = operands(inputs)?;
        let spatial = self.strides.len();
        if x.rank() != spatial + 2 || w.rank() != spatial + 2 || self.dilations.len() != spatial {
            return Err(OpError::new(format!("{spatial} strides do not fit the operands' axes")));
        }
        let wrong = match self.elements {
            Elements::Numbers => (x.dtype != w.dtype || !(x.dtype.is_float() || x.dtype.is_int()))
                .then_some("operands must have one numeric element type"),
            Elements::Bytes => (w.dtype != DType::I32 || !matches!(x.dtype, DType::I32 | DType::U8 | DType::U16))
                .then_some("products of bytes take i32 (or u8 or u16 on the left) and i32"),
            Elements::Pairs => {
                (w.dtype != DType::I32 || x.dtype != DType::I32).then_some("products of pairs take i32 and i32")
            }
            Elements::Halves => Some("convolutions are not of halves"),
        };
        if let Some(message) = wrong {
            return Err(OpError::new(message));
        }
        if self.groups == 0 || self.strides.contains(&0) || self.dilations.contains(&0) {
            return Err(OpError::new("groups, strides and dilations must be at least 1"));
        }
        let groups = Expr::from(self.groups);
        if w.dims[1].mul(&groups) != x.dims[1] {
            return Err(OpError::new(format!(
                "{} channels in {} groups want a kernel with {} of them, not {}",
                x.dims[1],
                self.groups,
                x.dims[1].floor_div(&groups),
                w.dims[1]
            )));
        }
        if w.dims[0].modulo(&groups).as_const() != Some(0) {
            return Err(OpError::new(format!("{} kernels cannot be cut into {} groups", w.dims[0], self.groups)));
        }
        let mut dims = vec![x.dims[0].clone(), w.dims[0].clone()];
        for n in 0..spatial {
            let d = window_extent(&x.dims[n + 2], &w.dims[n + 2], self.strides[n], self.dilations[n]);
            if d.as_const().is_some_and(|d| d < 0) {
                return Err(OpError::new("the window is larger than the input"));
            }
            dims.push(d);
        }
        Ok(vec![TensorType::new(self.elements.result_type(w.dtype), dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let (x, w) = (inputs[0], inputs[1]);
        let at = axes(out.rank());
        let per_group = w.dims[0].floor_div(&Expr::from(self.groups));
        let group = if self.groups == 1 { Expr::default() } else { at[1].floor_div(&per_group) };
        // The channel is the last fold, so that the innermost loop runs along channels-last memory.
        let spatial = self.strides.len();
        let channel = Expr::from(fold_axis(spatial));
        let mut x_index = vec![at[0].clone(), group.mul(&w.dims[1]).add(&channel)];
        let mut w_index = vec![at[1].clone(), channel];
        let mut folds = Vec::new();
        for n in 0..spatial {
            let k = Expr::from(fold_axis(n));
            x_index.push(window_index(&at[n + 2], self.strides[n], k.clone(), self.dilations[n]));
            w_index.push(k);
            folds.push(w.dims[n + 2].clone());
        }
        folds.push(w.dims[1].clone());
        let mut body = Code::new();
        let a = body.load_at(Source::Input(0), x_index, x.dtype);
        let b = body.load_at(Source::Input(1), w_index, w.dtype);
        let a = if x.dtype == w.dtype { a } else { body.push(Scalar::Cast(w.dtype, a))? };
        let product = body.binary(self.elements.product(), a, b)?;
        body.set_result(product);
        Ok(Meaning::Nests(vec![Nest::fold(out.dims, folds, BinaryOp::Add, body)]))
    }
}
