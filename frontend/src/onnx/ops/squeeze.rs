//! `Squeeze` and `Unsqueeze`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;

pub(super) const OPS: &[Spec] =
    &[onnx("Squeeze", 1, &["axes"], squeeze), onnx("Unsqueeze", 1, &["axes"], unsqueeze)];

/// The axes are an input from version 13 on.
fn axes(cx: &Context) -> Result<Option<Vec<i64>>, Failure> {
    if cx.opset() >= 13 { cx.optional_ints(1, "axes") } else { Ok(cx.node.ints_opt("axes")?.map(<[i64]>::to_vec)) }
}

fn squeeze(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut x = cx.input(0)?;
    let mut dims = cx.dims(x);
    let gone: Vec<usize> = match axes(cx)? {
        Some(axes) => {
            let axes = cx.axes(&axes, dims.len())?;
            if let Some(&a) = axes.iter().find(|&&a| dims[a].as_const().is_some_and(|d| d != 1)) {
                return Err(Failure::Invalid(format!("axis {a} of {} has not extent 1", cx.ty(x))));
            }
            // A free extent is asked for when it is known, one at a time, so that what is said names it.
            let free: Vec<usize> = axes.iter().copied().filter(|&a| dims[a].as_const().is_none()).collect();
            for a in free {
                dims[a] = Expr::from(1i64);
                x = cx.reshape(x, dims.clone())?;
            }
            axes
        }
        None => (0..dims.len()).filter(|&n| dims[n].as_const() == Some(1)).collect(),
    };
    let left = dims.into_iter().enumerate().filter(|(n, _)| !gone.contains(n)).map(|(_, d)| d).collect();
    Ok(cx.reshape(x, left)?.into())
}

fn unsqueeze(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let dims = cx.dims(x);
    let axes = axes(cx)?.ok_or_else(|| Failure::invalid("the axes are missing"))?;
    let rank = dims.len() + axes.len();
    let new = cx.axes(&axes, rank)?;
    let mut rest = dims.into_iter();
    let one = || Expr::from(1i64);
    let dims = (0..rank).map(|n| if new.contains(&n) { one() } else { rest.next().unwrap_or_else(one) }).collect();
    Ok(cx.reshape(x, dims)?.into())
}
