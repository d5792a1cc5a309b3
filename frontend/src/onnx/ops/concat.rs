//! `Concat`.

use super::{Spec, onnx};
use kiln_ir::ops::Concat;

pub(super) const OPS: &[Spec] = &[onnx("Concat", 1, &["axis"], |cx| {
    let inputs = cx.all_inputs()?;
    let rank = cx.rank(inputs[0]);
    // The axis has a default in version 1 only.
    let axis = match cx.node.int_opt("axis")? {
        None if cx.opset() >= 4 => return Err(cx.node.attribute_missing("axis").into()),
        axis => cx.axis(axis.unwrap_or(1), rank)?,
    };
    match inputs.as_slice() {
        [only] => Ok((*only).into()),
        all => {
            let all = cx.agree_except(all, axis)?;
            Ok(cx.add(Concat { axis }, &all)?.into())
        }
    }
})];
