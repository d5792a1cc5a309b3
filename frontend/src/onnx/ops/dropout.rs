//! `Dropout` outside of training: the input, and a mask that keeps everything.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::{Constant, DType};

pub(super) const OPS: &[Spec] = &[onnx("Dropout", 1, &["ratio", "is_test", "seed", "consumed_inputs"], dropout)];

fn dropout(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    if cx.opset() < 7 && !cx.node.bool_or("is_test", false)? {
        return Err(Failure::unsupported("training (is_test = 0) is not supported; export the model for inference"));
    }
    if cx.opset() >= 12 && cx.bound(2).is_some() {
        let training = cx.number(2, "training_mode")?.as_i64() != Some(0);
        let ratio = if cx.bound(1).is_some() { cx.number(1, "ratio")?.as_f64() } else { 0.5 };
        if training && ratio != 0.0 {
            return Err(Failure::unsupported("training_mode is not supported; export the model for inference"));
        }
    }
    if !cx.wants(1) {
        return Ok(x.into());
    }
    // The mask has the input's type before version 10.
    let dtype = if cx.opset() < 10 { cx.dtype(x) } else { DType::Bool };
    let one = cx.scalar(Constant::int(dtype, 1))?;
    let dims = cx.dims(x);
    let mask = cx.broadcast(one, dims)?;
    Ok(vec![x, mask].into())
}
