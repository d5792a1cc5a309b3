//! Pools over all spatial axes.

use super::pool::{power, root};
use super::reduce::mean;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Reduce;
use kiln_ir::{BinaryOp, Class, DType};

pub(super) const OPS: &[Spec] = &[
    onnx("GlobalAveragePool", 1, &[], |cx| {
        let (x, axes) = spatial(cx)?;
        let dtype = cx.dtype(x);
        let wide = if dtype.class() == Class::Float { cx.cast(x, DType::F32)? } else { x };
        let mean = mean(cx, wide, &axes, true)?;
        Ok(cx.cast(mean, dtype)?.into())
    }),
    onnx("GlobalMaxPool", 1, &[], |cx| {
        let (x, axes) = spatial(cx)?;
        Ok(cx.add(Reduce { combine: BinaryOp::Max, axes, keep: true }, &[x])?.into())
    }),
    onnx("GlobalLpPool", 2, &["p"], |cx| {
        let (x, axes) = spatial(cx)?;
        let p = cx.node.int_or("p", 2)?;
        if p < 1 {
            return Err(cx.node.attribute_value("p", format!("{p} is less than 1")).into());
        }
        let powers = power(cx, x, p)?;
        let sum = cx.add(Reduce { combine: BinaryOp::Add, axes, keep: true }, &[powers])?;
        Ok(root(cx, sum, p)?.into())
    }),
];

fn spatial(cx: &Context) -> Result<(ValueId, Vec<usize>), Failure> {
    let x = cx.input(0)?;
    match cx.rank(x) {
        0..=1 => Err(Failure::invalid(format!("{} has no channels", cx.ty(x)))),
        rank => Ok((x, (2..rank).collect())),
    }
}
