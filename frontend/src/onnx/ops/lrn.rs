//! `LRN`: local response normalization across channels.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::{Pad, Pool};
use kiln_ir::{BinaryOp, Constant, Expr};

pub(super) const OPS: &[Spec] = &[onnx("LRN", 1, &["alpha", "beta", "bias", "size"], lrn)];

/// `x / (bias + alpha / size * sum of squares of `size` channels around)^beta`.
fn lrn(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let size = cx.node.int("size")?;
    let window = usize::try_from(size).ok().filter(|n| (1..=1 << 31).contains(n));
    let window = window.ok_or_else(|| cx.node.attribute_value("size", format!("{size} is out of range")))?;
    let alpha = f64::from(cx.node.float_or("alpha", 1e-4)?) / size as f64;
    let (beta, bias) = (f64::from(cx.node.float_or("beta", 0.75)?), f64::from(cx.node.float_or("bias", 1.0)?));
    let dims = cx.dims(x);
    if dims.len() < 2 {
        return Err(Failure::invalid(format!("{} has no channels", cx.ty(x))));
    }
    let rest = dims[2..].iter().fold(Expr::from(1i64), |n, d| n.mul(d));
    let square = cx.map(&[x], |b, a| b.mul(a[0], a[0]))?;
    // Channels as the first of two spatial axes.
    let flat = cx.reshape(square, vec![dims[0].clone(), Expr::from(1i64), dims[1].clone(), rest])?;
    let value = Constant::int(cx.dtype(x), 0);
    let (low, high) = (vec![0, 0, (window - 1) / 2, 0], vec![0, 0, window / 2, 0]);
    let padded = cx.add(Pad { low, high, interior: vec![0; 4], value }, &[flat])?;
    let pool = Pool { combine: BinaryOp::Add, window: vec![window, 1], strides: vec![1, 1], dilations: vec![1, 1] };
    let sum = cx.add(pool, &[padded])?;
    let sum = cx.reshape(sum, dims)?;
    let result = cx.map(&[x, sum], |b, a| {
        let (alpha, beta, bias) = (b.lit(a[1], alpha), b.lit(a[1], beta), b.lit(a[1], bias));
        let scaled = b.mul(alpha, a[1]);
        let base = b.add(bias, scaled);
        let by = b.pow(base, beta);
        b.div(a[0], by)
    });
    Ok(result?.into())
}
