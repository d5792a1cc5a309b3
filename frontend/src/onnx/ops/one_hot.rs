//! `OneHot`.

use super::support::positions;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::Slice;
use kiln_ir::{DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx("OneHot", 9, &["axis"], one_hot)];

/// The place of each index along a new axis is on; an index that is out of range is on nowhere.
fn one_hot(cx: &mut Context) -> Result<Outputs, Failure> {
    let (indices, values) = (cx.input(0)?, cx.input(2)?);
    let depth_input = cx.input(1)?;
    let depth = if cx.dtype(depth_input).is_int() {
        match cx.exprs(1, "depth")?.as_slice() {
            [depth] => depth.clone(),
            other => return Err(Failure::invalid(format!("`depth` has {} elements, not 1", other.len()))),
        }
    } else {
        Expr::from(cx.number(1, "depth")?.as_f64() as i64)
    };
    let rank = cx.rank(indices) + 1;
    let axis = cx.axis_attribute(-1, rank)?;
    if cx.ty(values).shape() != Some(vec![2]) {
        return Err(Failure::invalid(format!("`values` is {}, not two values", cx.ty(values))));
    }
    let mut dims = cx.dims(indices);
    dims.insert(axis, Expr::from(1i64));
    let indices = cx.cast(indices, DType::I64)?;
    let indices = cx.reshape(indices, dims)?;
    let place = positions(cx, depth.clone(), axis, rank)?;
    let depth = cx.dims_tensor(&[depth], true)?;
    let mut value = |at: usize| {
        let slice = Slice { starts: vec![Expr::from(at)], steps: vec![1], dims: vec![Expr::from(1i64)] };
        let one = cx.add(slice, &[values])?;
        cx.reshape(one, vec![])
    };
    let (off, on) = (value(0)?, value(1)?);
    let result = cx.map(&[place, indices, depth, off, on], |b, a| {
        let zero = b.int(a[1], 0);
        let (negative, raised) = (b.lt(a[1], zero), b.add(a[1], a[2]));
        let index = b.select(negative, raised, a[1]);
        let here = b.eq(a[0], index);
        b.select(here, a[4], a[3])
    })?;
    Ok(result.into())
}
