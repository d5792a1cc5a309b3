//! `TopK`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Attributes;
use kiln_ir::{DType, TensorType};

pub(super) const OPS: &[Spec] = &[onnx("TopK", 1, &["k", "axis", "largest", "sorted"], top_k)];

/// `k` is an attribute before version 10. Results are always sorted, which is right where no order is asked for, too.
fn top_k(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axis = cx.axis_attribute(-1, cx.rank(x))?;
    let largest = cx.node.bool_or("largest", true)?;
    if cx.opset() >= 10 && cx.contents(cx.input(1)?).is_none_or(|k| k.iter().any(|k| k.as_const().is_none())) {
        // How many there are is known when the model runs.
        let (ty, mut dims) = (cx.ty(x).clone(), cx.dims(x));
        dims[axis] = cx.fresh();
        let types = vec![TensorType::new(ty.dtype, dims.clone()), TensorType::new(DType::I64, dims)];
        let a = Attributes::new().with("axis", axis).with("largest", largest).with("results", types);
        let k = cx.input(1)?;
        return Ok(cx.host("top_k", a, &[x, k])?.into());
    }
    let k = if cx.opset() < 10 {
        cx.node.int("k")?
    } else {
        match cx.ints(1, "K")?.as_slice() {
            [k] => *k,
            other => return Err(Failure::invalid(format!("`K` has {} elements, not 1", other.len()))),
        }
    };
    let k = usize::try_from(k).map_err(|_| Failure::invalid(format!("`K` is {k}")))?;
    let a = Attributes::new().with("axis", axis).with("k", k).with("largest", largest);
    Ok(cx.host("top_k", a, &[x])?.into())
}
