//! `If`: with a condition that is known, the branch in place.

use super::{Spec, onnx, run_time};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::DType;

pub(super) const OPS: &[Spec] = &[onnx("If", 1, &["else_branch", "then_branch"], if_)];

fn if_(cx: &mut Context) -> Result<Outputs, Failure> {
    let condition = cx.input(0)?;
    if cx.constant_of(condition).is_none() {
        return run_time::unless_known(cx, condition, |cx| run_time::branch(cx, condition));
    }
    let condition = cx.number(0, "cond")?;
    if condition.dtype != DType::Bool {
        return Err(Failure::invalid(format!("`cond` is {}, not bool", condition.dtype)));
    }
    let node = cx.node;
    let (then, otherwise) = (node.graph("then_branch")?, node.graph("else_branch")?);
    cx.inline(if condition.as_i64() == Some(1) { then } else { otherwise }, Vec::new())
}
