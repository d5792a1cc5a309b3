//! `SwiGLU`, and `CausalConvWithState` of state space models.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::{Concat, Conv, Elements, Slice};
use kiln_ir::{Constant, Expr};

pub(super) const OPS: &[Spec] = &[
    onnx("SwiGLU", 27, &["alpha"], |cx| {
        let (a, b) = (cx.input(0)?, cx.input(1)?);
        if cx.ty(a) != cx.ty(b) {
            return Err(Failure::invalid(format!("{} and {} differ", cx.ty(a), cx.ty(b))));
        }
        let alpha = f64::from(cx.node.float_or("alpha", 1.0)?);
        let y = cx.float_map(&[a, b], |f, v| {
            let alpha = f.lit(v[0], alpha);
            let scaled = f.mul(alpha, v[0]);
            let gate = f.sigmoid(scaled);
            let swish = f.mul(v[0], gate);
            f.mul(swish, v[1])
        });
        Ok(y?.into())
    }),
    onnx("CausalConvWithState", 27, &["activation"], causal_conv),
];

/// A convolution of each channel with what came before it: the state, or zeros.
fn causal_conv(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    let (dims, kernel) = (cx.dims(x), cx.static_dims(w)?);
    let ([batch, channels, _], [count, 1, k]) = (dims.as_slice(), kernel.as_slice()) else {
        return Err(Failure::invalid(format!("{} is no kernel for {}", cx.ty(w), cx.ty(x))));
    };
    let before = Expr::from(k.saturating_sub(1));
    let state = match cx.optional(3)? {
        Some(state) => state,
        None => {
            let zero = cx.scalar(Constant::int(cx.dtype(x), 0))?;
            cx.broadcast(zero, vec![batch.clone(), channels.clone(), before.clone()])?
        }
    };
    let padded = cx.add(Concat { axis: 2 }, &[state, x])?;
    let y = cx.add(Conv { strides: vec![1], dilations: vec![1], groups: *count, elements: Elements::Numbers }, &[padded, w])?;
    let bias = cx.optional(2)?;
    let y = super::conv::biased(cx, y, bias)?;
    let y = match cx.node.string_or("activation", "none")? {
        "none" => y,
        "silu" | "swish" => cx.float_map(&[y], |f, v| {
            let gate = f.sigmoid(v[0]);
            f.mul(v[0], gate)
        })?,
        other => {
            let message = format!("{other:?} is none of none, silu, swish");
            return Err(cx.node.attribute_value("activation", message).into());
        }
    };
    let mut dims = cx.dims(padded);
    let start = dims[2].sub(&before);
    dims[2] = before;
    let last = Slice { starts: vec![Expr::default(), Expr::default(), start], steps: vec![1; 3], dims };
    let state = cx.add(last, &[padded])?;
    Ok(vec![y, state].into())
}
