//! `Split`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Slice;

pub(super) const OPS: &[Spec] = &[onnx("Split", 1, &["axis", "num_outputs", "split"], split)];

fn split(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let axis = cx.axis_attribute(0, cx.rank(x))?;
    let extent = cx.dims(x)[axis].clone();
    // An input from version 13 on (and in version 1).
    let given = if cx.bound(1).is_some() {
        Some(cx.exprs(1, "split")?)
    } else {
        cx.node.ints_opt("split")?.map(|s| s.iter().map(|&d| Expr::from(d)).collect())
    };
    let parts = match given {
        Some(parts) => parts,
        None => equal(cx, &extent)?,
    };
    let sum = parts.iter().fold(Expr::default(), |a, b| a.add(b));
    if sum != extent || parts.iter().any(|p| p.as_const().is_some_and(|p| p < 0)) {
        let shown = kiln_ir::text::Commas(&parts);
        return Err(Failure::invalid(format!("parts of [{shown}] do not make up the extent {extent} of axis {axis}")));
    }
    Ok(pieces(cx, x, axis, &parts)?.into())
}

/// Consecutive pieces along an axis.
pub(super) fn pieces(cx: &mut Context, x: ValueId, axis: usize, parts: &[Expr]) -> Result<Vec<ValueId>, Failure> {
    let mut at = Expr::default();
    let mut outputs = Vec::with_capacity(parts.len());
    for part in parts {
        let mut dims = cx.dims(x);
        if dims[axis] == *part {
            outputs.push(x);
        } else {
            let mut starts = vec![Expr::default(); dims.len()];
            starts[axis] = at.clone();
            dims[axis] = part.clone();
            outputs.push(cx.add(Slice { starts, steps: vec![1; dims.len()], dims }, &[x])?);
        }
        at = at.add(part);
    }
    Ok(outputs)
}

/// As many parts as there are outputs, the last one smaller where they do not fit.
fn equal(cx: &Context, extent: &Expr) -> Result<Vec<Expr>, Failure> {
    let outputs = cx.node.outputs.len();
    let count = match cx.node.int_opt("num_outputs")? {
        Some(n) if usize::try_from(n) != Ok(outputs) => {
            return Err(cx.node.attribute_value("num_outputs", format!("is {n}, the node has {outputs} outputs")).into());
        }
        _ => outputs,
    };
    if count == 0 {
        return Err(Failure::invalid("there is no output"));
    }
    let number = Expr::from(count);
    if extent.modulo(&number).as_const() == Some(0) {
        return Ok(vec![extent.floor_div(&number); count]);
    }
    if cx.opset() < 18 && extent.as_const().is_some() {
        return Err(Failure::invalid(format!("an axis of extent {extent} cannot be cut into {count} equal parts")));
    }
    if extent.as_const().is_none() {
        return Err(Failure::unsupported(format!("Kiln cannot tell how `{extent}` is cut into {count} parts; bind its symbols")));
    }
    let size = extent.ceil_div(&number);
    let mut left = extent.clone();
    Ok((0..count)
        .map(|_| {
            let part = size.least(&left);
            left = left.sub(&part);
            part
        })
        .collect())
}
