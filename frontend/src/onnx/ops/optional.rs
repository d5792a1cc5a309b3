//! `Optional`, `OptionalHasElement` and `OptionalGetElement`.

use super::sequence::{bound, element, taken};
use super::{Spec, onnx};
use crate::onnx::import::{Bound, Context, Failure, Outputs};
use crate::onnx::model::ValueType;
use kiln_ir::ops::Attributes;
use kiln_ir::{DType, Tensor};

pub(super) const OPS: &[Spec] = &[
    onnx("Optional", 15, &["type"], |cx| Ok(Bound::Optional(cx.bound(0).cloned().map(Box::new)).into())),
    onnx("OptionalHasElement", 15, &[], has_element),
    onnx("OptionalGetElement", 15, &[], get_element),
];

/// From version 18 on, tensors and sequences may stand for optionals that hold them.
fn has_element(cx: &mut Context) -> Result<Outputs, Failure> {
    let known = match cx.bound(0) {
        None | Some(Bound::Optional(None)) => false,
        Some(Bound::Value(v, ValueType::Optional(_))) => {
            let v = *v;
            let length = cx.host("sequence_length", Attributes::new(), &[v])?[0];
            return Ok(cx
                .map(&[length], |b, a| {
                    let zero = b.int(a[0], 0);
                    b.gt(a[0], zero)
                })?
                .into());
        }
        Some(Bound::Optional(Some(_)) | Bound::Tensor(_) | Bound::Sequence(_) | Bound::Value(..)) => true,
    };
    Ok(cx.constant(Tensor::new(DType::Bool, vec![], vec![u8::from(known)])?).into())
}

fn get_element(cx: &mut Context) -> Result<Outputs, Failure> {
    match bound(cx, 0)? {
        Bound::Optional(Some(inside)) => Ok((*inside).into()),
        Bound::Optional(None) => Err(Failure::invalid("the optional is empty")),
        Bound::Value(v, ValueType::Optional(kind)) => {
            let a = Attributes::new().with("results", vec![element(cx, &kind)?]);
            let first = cx.constant(Tensor::from_i64(&[], &[0])?);
            let made = cx.host("sequence_at", a, &[v, first])?[0];
            Ok(taken(made, *kind).into())
        }
        other @ (Bound::Tensor(_) | Bound::Sequence(_) | Bound::Value(..)) => Ok(other.into()),
    }
}
