//! `Identity`.

use super::{Spec, onnx};
use crate::onnx::import::{Failure, Outputs};

pub(super) const OPS: &[Spec] = &[onnx("Identity", 1, &[], |cx| match cx.bound(0) {
    Some(bound) => Ok(Outputs::from(bound.clone())),
    None => Err(Failure::invalid("input 0 is missing")),
})];
