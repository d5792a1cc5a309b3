//! `TopK`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[onnx("TopK", 1, &["k", "axis", "largest", "sorted"], top_k)];

/// `k` is an attribute before version 10. Results are always sorted, which is right where no order is asked for, too.
fn top_k(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axis = cx.axis_attribute(-1, cx.rank(x))?;
    let k = if cx.opset() < 10 {
        cx.node.int("k")?
    } else {
        match cx.ints(1, "K")?.as_slice() {
            [k] => *k,
            other => return Err(Failure::invalid(format!("`K` has {} elements, not 1", other.len()))),
        }
    };
    let k = usize::try_from(k).map_err(|_| Failure::invalid(format!("`K` is {k}")))?;
    let a = Attributes::new().with("axis", axis).with("k", k).with("largest", cx.node.bool_or("largest", true)?);
    Ok(cx.host("top_k", a, &[x])?.into())
}
