//! `Clip`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;

pub(super) const OPS: &[Spec] = &[onnx("Clip", 1, &["min", "max", "consumed_inputs"], clip)];

/// The limits are attributes before version 11, optional inputs from then on.
fn clip(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    let mut limit = |attribute: &str, input: usize| -> Result<Option<ValueId>, Failure> {
        if cx.opset() >= 11 {
            return match cx.optional(input)? {
                Some(v) if cx.dtype(v) != dtype || cx.ty(v).elements().as_const() != Some(1) => {
                    Err(Failure::invalid(format!("`{attribute}` is {}, not one number of type {dtype}", cx.ty(v))))
                }
                Some(v) => cx.reshape(v, vec![]).map(Some),
                None => Ok(None),
            };
        }
        match cx.node.float_opt(attribute)? {
            Some(v) => cx.float(dtype, f64::from(v)).map(Some),
            None => Ok(None),
        }
    };
    let limits = (limit("min", 1)?, limit("max", 2)?);
    let result = match limits {
        (None, None) => x,
        (Some(low), None) => cx.map(&[x, low], |b, a| b.max(a[0], a[1]))?,
        (None, Some(high)) => cx.map(&[x, high], |b, a| b.min(a[0], a[1]))?,
        (Some(low), Some(high)) => cx.map(&[x, low, high], |b, a| {
            let raised = b.max(a[0], a[1]);
            b.min(raised, a[2])
        })?,
    };
    Ok(result.into())
}
