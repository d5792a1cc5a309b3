//! `CumSum` and `CumProd`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;

pub(super) const OPS: &[Spec] = &[
    onnx("CumSum", 11, &["exclusive", "reverse"], |cx| cumulate(cx, "add")),
    onnx("CumProd", 26, &["exclusive", "reverse"], |cx| cumulate(cx, "mul")),
];

fn cumulate(cx: &mut Context, combine: &str) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axis = match cx.ints(1, "axis")?.as_slice() {
        [axis] => cx.axis(*axis, cx.rank(x))?,
        other => return Err(Failure::invalid(format!("`axis` has {} elements, not 1", other.len()))),
    };
    let a = Attributes::new().with("axis", axis).with("combine", combine);
    let a =
        a.with("exclusive", cx.node.bool_or("exclusive", false)?).with("reverse", cx.node.bool_or("reverse", false)?);
    Ok(cx.host("cumulate", a, &[x])?.into())
}
