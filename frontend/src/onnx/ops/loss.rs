//! `NegativeLogLikelihoodLoss` and `SoftmaxCrossEntropyLoss`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Gather, GatherElements, Reduce, Softmax};
use kiln_ir::{BinaryOp, DType, Expr};

pub(super) const OPS: &[Spec] = &[
    onnx("NegativeLogLikelihoodLoss", 12, &["ignore_index", "reduction"], |cx| {
        let x = cx.input(0)?;
        let (wide, dtype) = (widened(cx, x)?, cx.dtype(x));
        Ok(loss(cx, wide, dtype)?.into())
    }),
    onnx("SoftmaxCrossEntropyLoss", 12, &["ignore_index", "reduction"], |cx| {
        let x = cx.input(0)?;
        let (wide, dtype) = (widened(cx, x)?, cx.dtype(x));
        if cx.rank(x) < 2 {
            return Err(Failure::invalid(format!("{} has no classes", cx.ty(x))));
        }
        let log = cx.add(Softmax { axis: 1, log: true }, &[wide])?;
        let loss = loss(cx, log, dtype)?;
        Ok(vec![loss, cx.cast(log, dtype)?].into())
    }),
];

/// Sums are formed in f32 at least.
fn widened(cx: &mut Context, x: ValueId) -> Result<ValueId, Failure> {
    let to = if cx.dtype(x) == DType::F64 { DType::F64 } else { DType::F32 };
    cx.cast(x, to)
}

/// `-weight[target] * x[target]` for log-probabilities `x[n, classes, d...]`, then the sum or the weighted mean.
fn loss(cx: &mut Context, x: ValueId, result: DType) -> Result<ValueId, Failure> {
    let target = cx.input(1)?;
    let dims = cx.dims(target);
    if cx.rank(x) != dims.len() + 1 || dims.is_empty() {
        return Err(Failure::invalid(format!("targets {} do not fit {}", cx.ty(target), cx.ty(x))));
    }
    let target = cx.cast(target, DType::I64)?;
    let ignore = cx.node.int_opt("ignore_index")?;
    let counted = match ignore {
        Some(ignore) => Some(cx.map(&[target], |b, a| {
            let ignore = b.int(a[0], ignore);
            b.ne(a[0], ignore)
        })?),
        None => None,
    };
    let index = match counted {
        Some(counted) => cx.map(&[counted, target], |b, a| {
            let zero = b.int(a[1], 0);
            b.select(a[0], a[1], zero)
        })?,
        None => target,
    };
    let mut column = dims.clone();
    column.insert(1, Expr::from(1i64));
    let places = cx.reshape(index, column)?;
    let picked = cx.add(GatherElements { axis: 1 }, &[x, places])?;
    let picked = cx.reshape(picked, dims)?;
    let weight = match cx.optional(2)? {
        Some(weight) => {
            let weight = cx.cast(weight, cx.dtype(x))?;
            Some(cx.add(Gather { axis: 0 }, &[weight, index])?)
        }
        None => None,
    };
    let dtype = cx.dtype(x);
    let weight = match (weight, counted) {
        (Some(weight), Some(counted)) => Some(cx.map(&[counted, weight], |b, a| {
            let zero = b.lit(a[1], 0.0);
            b.select(a[0], a[1], zero)
        })?),
        (None, Some(counted)) => Some(cx.cast(counted, dtype)?),
        (weight, None) => weight,
    };
    let each = match weight {
        Some(weight) => cx.map(&[picked, weight], |b, a| {
            let product = b.mul(a[0], a[1]);
            let (zero, negative) = (b.lit(a[1], 0.0), b.neg(product));
            // What does not count is 0 even where its logarithm is infinite.
            let nothing = b.eq(a[1], zero);
            b.select(nothing, zero, negative)
        })?,
        None => cx.map(&[picked], |b, a| b.neg(a[0]))?,
    };
    let all = |cx: &mut Context, v: ValueId| {
        let axes = (0..cx.rank(v)).collect();
        cx.add(Reduce { combine: BinaryOp::Add, axes, keep: false }, &[v])
    };
    let total = match cx.node.string_or("reduction", "mean")? {
        "none" => each,
        "sum" => all(cx, each)?,
        "mean" => {
            let sum = all(cx, each)?;
            let count = match weight {
                Some(weight) => all(cx, weight)?,
                None => {
                    let elements = cx.ty(each).elements();
                    let count = cx.dims_tensor(&[elements], true)?;
                    cx.cast(count, dtype)?
                }
            };
            cx.map(&[sum, count], |b, a| b.div(a[0], a[1]))?
        }
        other => return Err(cx.node.attribute_value("reduction", format!("{other:?} is none of ONNX's")).into()),
    };
    cx.cast(total, result)
}
