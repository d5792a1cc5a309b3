//! `Hardmax`.

use super::support::positions;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("Hardmax", 1, &["axis"], hardmax)];

/// 1 where the first of the greatest elements is, else 0. Before version 13 all axes from `axis` on count as one.
fn hardmax(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (dtype, dims) = (cx.dtype(x), cx.dims(x));
    let (mut flat, mut axis) = (x, cx.axis_attribute(if cx.opset() >= 13 { -1 } else { 1 }, dims.len())?);
    if cx.opset() < 13 {
        let product = |d: &[Expr]| d.iter().fold(Expr::from(1i64), |a, b| a.mul(b));
        flat = cx.reshape(x, vec![product(&dims[..axis]), product(&dims[axis..])])?;
        axis = 1;
    }
    let a = Attributes::new().with("axis", axis).with("keep", true).with("max", true).with("last", false);
    let best = cx.host("arg_reduce", a, &[flat])?.remove(0);
    let place = positions(cx, cx.dims(flat)[axis].clone(), axis, cx.rank(flat))?;
    let hard = cx.map(&[place, best], |b, a| {
        let here = b.eq(a[0], a[1]);
        b.cast(dtype, here)
    })?;
    Ok(cx.reshape(hard, dims)?.into())
}
