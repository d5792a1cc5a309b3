//! `Trilu` and `EyeLike`.

use super::support::{positions, type_attribute};
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::{DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx("Trilu", 14, &["upper"], trilu), onnx("EyeLike", 9, &["dtype", "k"], eye_like)];

/// Keeps what is on and above (or below) diagonal `k`, zero elsewhere.
fn trilu(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let upper = cx.node.bool_or("upper", true)?;
    let dims = cx.dims(x);
    let [.., rows, columns] = dims.as_slice() else {
        return Err(Failure::invalid(format!("{} is no matrix", cx.ty(x))));
    };
    let (row, column) = (positions(cx, rows.clone(), 0, 2)?, positions(cx, columns.clone(), 1, 2)?);
    let diagonal = match cx.optional(1)? {
        Some(k) if cx.ty(k).elements().as_const() == Some(1) => {
            let k = cx.cast(k, DType::I64)?;
            cx.reshape(k, vec![])?
        }
        Some(k) => return Err(Failure::invalid(format!("`k` is {}, not one number", cx.ty(k)))),
        None => cx.dims_tensor(&[Expr::default()], true)?,
    };
    let kept = cx.map(&[row, column, diagonal], |b, a| {
        let distance = b.sub(a[1], a[0]);
        if upper { b.ge(distance, a[2]) } else { b.le(distance, a[2]) }
    })?;
    Ok(cx
        .map(&[kept, x], |b, a| {
            let zero = if b.dtype(a[1]) == DType::Bool {
                b.constant(kiln_ir::Constant::int(DType::Bool, 0))
            } else {
                b.int(a[1], 0)
            };
            b.select(a[0], a[1], zero)
        })?
        .into())
}

fn eye_like(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let dtype = type_attribute(cx, "dtype")?.unwrap_or(cx.dtype(x));
    let k = cx.node.int_or("k", 0)?;
    let dims = cx.dims(x);
    let [rows, columns] = dims.as_slice() else {
        return Err(Failure::invalid(format!("{} is no matrix", cx.ty(x))));
    };
    let (row, column) = (positions(cx, rows.clone(), 0, 2)?, positions(cx, columns.clone(), 1, 2)?);
    let eye = cx.map(&[row, column], |b, a| {
        let k = b.int(a[0], k);
        let diagonal = b.add(a[0], k);
        let here = b.eq(diagonal, a[1]);
        b.cast(dtype, here)
    })?;
    Ok(eye.into())
}
