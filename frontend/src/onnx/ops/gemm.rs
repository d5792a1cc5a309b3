//! `Gemm`: `alpha * A * B + beta * C`.

use super::matmul::scale;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;
use kiln_ir::ops::Contract;

pub(super) const OPS: &[Spec] = &[onnx("Gemm", 1, &["alpha", "beta", "transA", "transB", "broadcast"], gemm)];

fn gemm(cx: &mut Context) -> Result<Outputs, Failure> {
    let (a, b) = (cx.input(0)?, cx.input(1)?);
    let letters = |flip: bool, plain: &'static str, flipped: &'static str| if flip { flipped } else { plain };
    let lhs = letters(cx.node.bool_or("transA", false)?, "mk", "km");
    let rhs = letters(cx.node.bool_or("transB", false)?, "kn", "nk");
    let (alpha, beta) = (f64::from(cx.node.float_or("alpha", 1.0)?), f64::from(cx.node.float_or("beta", 1.0)?));
    let product = cx.add(Contract::new(lhs, rhs, "mn"), &[a, b])?;
    let product = scale(cx, product, alpha)?;
    let Some(c) = cx.optional(2)? else { return Ok(product.into()) };
    let dims: Vec<Expr> = cx.dims(product);
    let c = scale(cx, c, beta)?;
    let sum = cx.map(&[product, c], |b, a| b.add(a[0], a[1]))?;
    if cx.dims(sum) != dims {
        return Err(Failure::invalid(format!("C, {}, does not broadcast to the product", cx.ty(c))));
    }
    Ok(sum.into())
}
