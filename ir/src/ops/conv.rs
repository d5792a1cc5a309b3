//! `conv`: cross-correlation without padding.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes, fold_axis};
use crate::scalar::{BinaryOp, Code, Scalar, Source};

/// `out[n, o, s...] = sum over c, k... of x[n, g(o)*C/groups + c, s*stride + k*dilation] * w[o, c, k...]`
/// for `x[n, C, d...]` and `w[O, C/groups, k...]`, where `g(o)` is the group of output channel `o`. Padding is an op of its own.
///
/// With `bytes` the product of two elements is the dot product of their four bytes, unsigned those of `x` and signed those of `w`;
/// both are i32 ([`super::Pack`]), or `x` is u8 and its elements are the lowest bytes, the others 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conv {
    /// Step of the window along each spatial axis, at least 1.
    pub strides: Vec<usize>,
    /// Distance of the window's elements along each spatial axis, at least 1.
    pub dilations: Vec<usize>,
    /// Number of groups of channels, at least 1.
    pub groups: usize,
    /// Whether elements are bytes.
    pub bytes: bool,
}

impl Conv {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Conv, OpError> {
        let bytes = a.optional_flag("bytes")?;
        Ok(Conv { strides: a.sizes("strides")?, dilations: a.sizes("dilations")?, groups: a.size("groups")?, bytes })
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
        if self.bytes { window.with("bytes", true) } else { window }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x, w] = operands(inputs)?;
        let spatial = self.strides.len();
        if x.rank() != spatial + 2 || w.rank() != spatial + 2 || self.dilations.len() != spatial {
            return Err(OpError::new(format!("{spatial} strides do not fit the operands' axes")));
        }
        if self.bytes && !(w.dtype == DType::I32 && matches!(x.dtype, DType::I32 | DType::U8)) {
            return Err(OpError::new("products of bytes take i32 (or u8 on the left) and i32"));
        }
        if !self.bytes && (x.dtype != w.dtype || !(x.dtype.is_float() || x.dtype.is_int())) {
            return Err(OpError::new("operands must have one numeric element type"));
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
        Ok(vec![TensorType::new(w.dtype, dims)])
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
        let product = match self.bytes {
            true => {
                let a = if x.dtype == DType::I32 { a } else { body.push(Scalar::Cast(DType::I32, a))? };
                body.binary(BinaryOp::Dot4, a, b)?
            }
            false => body.binary(BinaryOp::Mul, a, b)?,
        };
        body.set_result(product);
        Ok(Meaning::Nests(vec![Nest::fold(out.dims, folds, BinaryOp::Add, body)]))
    }
}
