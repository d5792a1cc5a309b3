//! `DFT` and `STFT`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Gather};
use kiln_ir::{Expr, Tensor};

pub(super) const OPS: &[Spec] =
    &[onnx("DFT", 17, &["axis", "inverse", "onesided"], dft), onnx("STFT", 17, &["onesided"], stft)];

/// One number that input `i` holds; nothing where it is absent.
fn number(cx: &Context, i: usize, what: &str) -> Result<Option<i64>, Failure> {
    match cx.optional_ints(i, what)?.as_deref() {
        None => Ok(None),
        Some([n]) => Ok(Some(*n)),
        Some(other) => Err(Failure::invalid(format!("`{what}` has {} elements, not 1", other.len()))),
    }
}

fn positive(n: i64, what: &str) -> Result<usize, Failure> {
    let size = usize::try_from(n).ok().filter(|&n| n > 0 && n <= 1 << 28);
    size.ok_or_else(|| Failure::invalid(format!("`{what}` is {n}")))
}

/// The axis is an attribute (default 1) before version 20, then an input (default -2).
fn dft(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let axis = match cx.opset() >= 20 {
        true => cx.axis(number(cx, 2, "axis")?.unwrap_or(-2), rank)?,
        false => cx.axis_attribute(1, rank)?,
    };
    let (inverse, onesided) = (cx.node.bool_or("inverse", false)?, cx.node.bool_or("onesided", false)?);
    let length = match number(cx, 1, "dft_length")? {
        Some(n) => positive(n, "dft_length")?,
        None => {
            let extent = cx.static_dims(x)?[axis];
            if inverse && onesided { 2 * extent.saturating_sub(1) } else { extent }
        }
    };
    transform(cx, x, axis, length, inverse, onesided)
}

fn transform(
    cx: &mut Context,
    x: ValueId,
    axis: usize,
    length: usize,
    inverse: bool,
    onesided: bool,
) -> Result<Outputs, Failure> {
    let a =
        Attributes::new().with("axis", axis).with("length", length).with("inverse", inverse).with("onesided", onesided);
    Ok(cx.host("fourier", a, &[x])?.into())
}

/// Frames of the signal, `frame_step` apart, each times the window and transformed.
fn stft(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut x = cx.input(0)?;
    let step = number(cx, 1, "frame_step")?.ok_or_else(|| Failure::invalid("`frame_step` is missing"))?;
    let step = positive(step, "frame_step")?;
    if cx.rank(x) == 2 {
        let mut dims = cx.dims(x);
        dims.push(Expr::from(1i64));
        x = cx.reshape(x, dims)?;
    }
    let dims = cx.static_dims(x)?;
    let [_, signal, _] = dims.as_slice() else {
        return Err(Failure::invalid(format!("the signal is {}, not [batch, length, parts]", cx.ty(x))));
    };
    let window = cx.optional(2)?;
    let length = match (number(cx, 3, "frame_length")?, window) {
        (Some(n), _) => positive(n, "frame_length")?,
        (None, Some(w)) => cx.static_dims(w)?.first().copied().unwrap_or(0),
        (None, None) => return Err(Failure::invalid("neither `window` nor `frame_length` is given")),
    };
    let frames = signal.checked_sub(length).map(|rest| rest / step + 1);
    let frames = frames.ok_or_else(|| Failure::invalid(format!("frames of {length} in a signal of {signal}")))?;
    let count = kiln_ir::tensor::element_count(&[frames, length], 8)?;
    let positions: Vec<i64> = (0..count).map(|i| (i / length * step + i % length) as i64).collect();
    let positions = cx.constant(Tensor::from_i64(&[frames, length], &positions)?);
    let mut cut = cx.add(Gather { axis: 1 }, &[x, positions])?;
    if let Some(window) = window {
        let window = cx.along(window, 0, 2)?;
        cut = cx.map(&[cut, window], |b, a| b.mul(a[0], a[1]))?;
    }
    transform(cx, cut, 2, length, false, cx.node.bool_or("onesided", true)?)
}
