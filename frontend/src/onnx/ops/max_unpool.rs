//! `MaxUnpool`.

use super::{Spec, onnx};
use crate::onnx::import::Failure;
use kiln_ir::ops::{Attribute, Attributes, Pad};
use kiln_ir::{Constant, Expr};

pub(super) const OPS: &[Spec] = &[onnx("MaxUnpool", 9, &["kernel_shape", "pads", "strides"], |cx| {
    let (x, places) = (cx.input(0)?, cx.input(1)?);
    let dims = cx.dims(x);
    let spatial = dims.len().saturating_sub(2);
    let kernel = cx.sizes("kernel_shape", spatial, 1)?.ok_or_else(|| cx.node.attribute_missing("kernel_shape"))?;
    let strides = cx.sizes("strides", spatial, 1)?.unwrap_or_else(|| vec![1; spatial]);
    let pads = cx.sizes("pads", 2 * spatial, 0)?.unwrap_or_else(|| vec![0; 2 * spatial]);
    let mut inferred = dims.clone();
    for n in 0..spatial {
        let steps = dims[n + 2].sub(&Expr::from(1i64)).mul(&Expr::from(strides[n]));
        inferred[n + 2] = steps.add(&Expr::from(kernel[n])).sub(&Expr::from(pads[n] + pads[n + spatial]));
    }
    let a = Attributes::new().with("dims", Attribute::List(inferred));
    let unpooled = cx.host("max_unpool", a, &[x, places])?.remove(0);
    if cx.bound(2).is_none() {
        return Ok(unpooled.into());
    }
    // The positions refer to the inferred shape; a larger one is filled up with zeros.
    let (wanted, have) = (cx.ints(2, "output_shape")?, cx.static_dims(unpooled)?);
    let high: Option<Vec<usize>> = match wanted.len() == have.len() {
        true => wanted.iter().zip(&have).map(|(&w, &h)| usize::try_from(w).ok()?.checked_sub(h)).collect(),
        false => None,
    };
    let high = high.ok_or_else(|| Failure::invalid(format!("`output_shape` {wanted:?} is smaller than {have:?}")))?;
    let zero = vec![0; have.len()];
    let value = Constant::int(cx.dtype(x), 0);
    Ok(cx.add(Pad { low: zero.clone(), high, interior: zero, value }, &[unpooled])?.into())
})];
