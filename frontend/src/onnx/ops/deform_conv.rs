//! `DeformConv`.

use super::conv::biased;
use super::support::filled;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;

const ATTRIBUTES: &[&str] = &["dilations", "group", "kernel_shape", "offset_group", "pads", "strides"];

pub(super) const OPS: &[Spec] = &[onnx("DeformConv", 19, ATTRIBUTES, deform_conv)];

fn deform_conv(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, w, offset) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    if cx.rank(x) != 4 || cx.rank(w) != 4 || cx.rank(offset) != 4 {
        return Err(Failure::unsupported("only deformable convolutions of images are supported"));
    }
    let count = |name: &str| {
        let v = cx.node.int_or(name, 1)?;
        usize::try_from(v).map_err(|_| Failure::from(cx.node.attribute_value(name, format!("{v} is negative"))))
    };
    let pads = cx.sizes("pads", 4, 0)?.unwrap_or_else(|| vec![0; 4]);
    let (low, high) = pads.split_at(2);
    let a = Attributes::new()
        .with("strides", cx.sizes("strides", 2, 1)?.unwrap_or_else(|| vec![1; 2]).as_slice())
        .with("dilations", cx.sizes("dilations", 2, 1)?.unwrap_or_else(|| vec![1; 2]).as_slice())
        .with("low", low)
        .with("high", high)
        .with("groups", count("group")?)
        .with("offset_groups", count("offset_group")?);
    let mask = match cx.optional(4)? {
        Some(mask) => mask,
        None => {
            let mut dims = cx.dims(offset);
            dims[1] = dims[1].floor_div(&kiln_ir::Expr::from(2i64));
            filled(cx, cx.dtype(x), 1.0, dims)?
        }
    };
    let y = cx.host("deform_conv", a, &[x, w, offset, mask])?.remove(0);
    let bias = cx.optional(3)?;
    Ok(biased(cx, y, bias)?.into())
}
