//! `Gather`, `GatherElements`, `GatherND`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Gather, GatherElements, GatherNd};

pub(super) const OPS: &[Spec] = &[
    onnx("Gather", 1, &["axis"], |cx| {
        let (data, indices) = (cx.input(0)?, indices(cx)?);
        let axis = cx.axis_attribute(0, cx.rank(data))?;
        Ok(cx.add(Gather { axis }, &[data, indices])?.into())
    }),
    onnx("GatherElements", 11, &["axis"], |cx| {
        let (data, indices) = (cx.input(0)?, indices(cx)?);
        let axis = cx.axis_attribute(0, cx.rank(data))?;
        Ok(cx.add(GatherElements { axis }, &[data, indices])?.into())
    }),
    onnx("GatherND", 11, &["batch_dims"], |cx| {
        let (data, indices) = (cx.input(0)?, indices(cx)?);
        let batch = cx.node.int_or("batch_dims", 0)?;
        let fail = || cx.node.attribute_value("batch_dims", format!("{batch} is out of range"));
        let batch = usize::try_from(batch).map_err(|_| fail())?;
        Ok(cx.add(GatherNd { batch }, &[data, indices])?.into())
    }),
];

fn indices(cx: &Context) -> Result<ValueId, Failure> {
    let indices = cx.input(1)?;
    if cx.dtype(indices).is_int() {
        Ok(indices)
    } else {
        Err(Failure::invalid(format!("the indices are {}, not integers", cx.ty(indices))))
    }
}
