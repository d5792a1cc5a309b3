//! `Col2Im`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("Col2Im", 18, &["dilations", "pads", "strides"], col2im)];

fn col2im(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let size = |i: usize, what: &str| -> Result<Vec<usize>, Failure> {
        let ints = cx.ints(i, what)?;
        let sizes: Option<Vec<usize>> = ints.iter().map(|&v| usize::try_from(v).ok()).collect();
        sizes.ok_or_else(|| Failure::invalid(format!("`{what}` {ints:?} holds a negative number")))
    };
    let (image, block) = (size(1, "image_shape")?, size(2, "block_shape")?);
    let axes = image.len();
    let pads = cx.sizes("pads", 2 * axes, 0)?.unwrap_or_else(|| vec![0; 2 * axes]);
    let (low, high) = pads.split_at(axes);
    let ones = || vec![1; axes];
    let a = Attributes::new()
        .with("image", image.as_slice())
        .with("block", block.as_slice())
        .with("strides", cx.sizes("strides", axes, 1)?.unwrap_or_else(ones).as_slice())
        .with("dilations", cx.sizes("dilations", axes, 1)?.unwrap_or_else(ones).as_slice())
        .with("low", low)
        .with("high", high);
    Ok(cx.host("columns_to_image", a, &[x])?.into())
}
