//! Operators whose results are as long as the data says: `NonZero`, `Compress`, `Unique` and `NonMaxSuppression`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Attributes;
use kiln_ir::{DType, Expr, Tensor, TensorType};

pub(super) const OPS: &[Spec] = &[
    onnx("NonZero", 9, &[], |cx| {
        let x = cx.input(0)?;
        let dims = vec![Expr::from(cx.rank(x)), cx.fresh()];
        let a = Attributes::new().with("results", vec![TensorType::new(DType::I64, dims)]);
        Ok(cx.host("nonzero", a, &[x])?.into())
    }),
    onnx("Compress", 9, &["axis"], |cx| {
        let (x, condition) = (cx.input(0)?, cx.input(1)?);
        let (axis, extent) = (axis(cx, x)?, cx.fresh());
        let (dims, a) = with_axis(cx, x, axis, extent);
        let a = a.with("results", vec![TensorType::new(cx.dtype(x), dims)]);
        Ok(cx.host("compress", a, &[x, condition])?.into())
    }),
    onnx("Unique", 11, &["axis", "sorted"], |cx| {
        let x = cx.input(0)?;
        let (axis, count) = (axis(cx, x)?, cx.fresh());
        let all = axis.map_or_else(|| cx.ty(x).elements(), |n| cx.dims(x)[n].clone());
        let (dims, a) = with_axis(cx, x, axis, count.clone());
        let list = |n: &Expr| TensorType::new(DType::I64, vec![n.clone()]);
        let types = vec![TensorType::new(cx.dtype(x), dims), list(&count), list(&all), list(&count)];
        let a = a.with("sorted", cx.node.bool_or("sorted", true)?).with("results", types);
        Ok(cx.host("unique", a, &[x])?.into())
    }),
    onnx("NonMaxSuppression", 10, &["center_point_box"], |cx| {
        let mut inputs = vec![cx.input(0)?, cx.input(1)?];
        inputs.push(match cx.optional(2)? {
            Some(v) => v,
            None => cx.constant(Tensor::from_i64(&[], &[0])?),
        });
        for (i, otherwise) in [(3, 0.0), (4, f64::NEG_INFINITY)] {
            inputs.push(match cx.optional(i)? {
                Some(v) => v,
                None => cx.float(DType::F32, otherwise)?,
            });
        }
        let dims = vec![cx.fresh(), Expr::from(3i64)];
        let a = Attributes::new().with("centred", cx.node.bool_or("center_point_box", false)?);
        let a = a.with("results", vec![TensorType::new(DType::I64, dims)]);
        Ok(cx.host("non_max_suppression", a, &inputs)?.into())
    }),
];

fn axis(cx: &Context, x: ValueId) -> Result<Option<usize>, Failure> {
    cx.node.int_opt("axis")?.map(|axis| cx.axis(axis, cx.rank(x))).transpose()
}

/// The dims of a part of `x` along an axis, or of its elements in order, and the attribute that says which.
fn with_axis(cx: &Context, x: ValueId, axis: Option<usize>, extent: Expr) -> (Vec<Expr>, Attributes) {
    match axis {
        None => (vec![extent], Attributes::new()),
        Some(axis) => {
            let mut dims = cx.dims(x);
            dims[axis] = extent;
            (dims, Attributes::new().with("axis", axis))
        }
    }
}
