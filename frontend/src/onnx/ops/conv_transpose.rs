//! `ConvTranspose`: the input spread out by the stride, convolved with the mirrored weights.

use super::conv::{biased, groups};
use super::sliding::pad;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Conv, Elements, Slice};
use kiln_ir::{Constant, Expr};

const ATTRIBUTES: &[&str] =
    &["auto_pad", "dilations", "group", "kernel_shape", "output_padding", "output_shape", "pads", "strides"];

pub(super) const OPS: &[Spec] = &[onnx("ConvTranspose", 1, ATTRIBUTES, conv_transpose)];

fn conv_transpose(cx: &mut Context) -> Result<Outputs, Failure> {
    let (x, w) = (cx.input(0)?, cx.input(1)?);
    if cx.rank(x) < 2 || cx.rank(w) != cx.rank(x) {
        return Err(Failure::invalid(format!("{} is no kernel for {}", cx.ty(w), cx.ty(x))));
    }
    let rank = cx.rank(x) - 2;
    let kernel = cx.static_dims(w)?.split_off(2);
    if cx.sizes("kernel_shape", rank, 1)?.is_some_and(|given| given != kernel) {
        return Err(cx.node.attribute_value("kernel_shape", format!("the weights' is {kernel:?}")).into());
    }
    let ones = || vec![1usize; rank];
    let strides = cx.sizes("strides", rank, 1)?.unwrap_or_else(ones);
    let dilations = cx.sizes("dilations", rank, 1)?.unwrap_or_else(ones);
    let more = cx.sizes("output_padding", rank, 0)?.unwrap_or_else(|| vec![0; rank]);
    let shape = cx.sizes("output_shape", rank, 0)?;
    let auto = cx.node.string_or("auto_pad", "NOTSET")?.to_owned();
    let explicit = cx.sizes("pads", 2 * rank, 0)?;
    if !["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"].contains(&auto.as_str()) {
        let message = format!("{auto:?} is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID");
        return Err(cx.node.attribute_value("auto_pad", message).into());
    }
    let groups = groups(cx)?;
    let dims = cx.dims(x);
    let (mut low, mut high, mut interior) = (vec![0, 0], vec![0, 0], vec![0, 0]);
    for n in 0..rank {
        let (stride, reach) = (strides[n] as i64, (kernel[n] as i64 - 1).saturating_mul(dilations[n] as i64));
        let whole = |d: i64| d.saturating_sub(1).saturating_mul(stride).saturating_add(more[n] as i64 + 1).saturating_add(reach);
        let known = || {
            dims[n + 2].as_const().ok_or_else(|| {
                Failure::unsupported(format!("the padding depends on the dim `{}`; bind its symbols", dims[n + 2]))
            })
        };
        let total = match (&shape, auto.starts_with("SAME")) {
            (Some(shape), _) => Some(whole(known()?).saturating_sub(shape[n] as i64)),
            // (d - 1) * stride + ... - d * stride does not depend on d.
            (None, true) => Some(whole(1).saturating_sub(stride)),
            (None, false) => None,
        };
        let (begin, end) = match total {
            Some(total) if auto == "SAME_UPPER" => (total.div_euclid(2), total - total.div_euclid(2)),
            Some(total) => (total - total.div_euclid(2), total.div_euclid(2)),
            None => explicit.as_ref().map_or((0, 0), |p| (p[n] as i64, p[n + rank] as i64)),
        };
        low.push(reach.saturating_sub(begin));
        high.push(reach.saturating_sub(end).saturating_add(more[n] as i64));
        interior.push(strides[n] - 1);
    }
    let zero = Constant::int(cx.dtype(x), 0);
    let spread = pad(cx, x, &low, &high, &interior, zero)?;
    let w = mirrored(cx, w, groups)?;
    let y = cx.add(Conv { strides: ones(), dilations, groups, elements: Elements::Numbers }, &[spread, w])?;
    let bias = cx.optional(2)?;
    Ok(biased(cx, y, bias)?.into())
}

/// Weights `[C, M/groups, k...]` as `[M, C/groups, k...]` with all spatial axes reversed.
fn mirrored(cx: &mut Context, w: ValueId, groups: usize) -> Result<ValueId, Failure> {
    let dims = cx.dims(w);
    let g = Expr::from(groups);
    if dims[0].modulo(&g).as_const() != Some(0) {
        return Err(Failure::invalid(format!("{} channels cannot be cut into {groups} groups", dims[0])));
    }
    let per_group = dims[0].floor_div(&g);
    let mut split = vec![g.clone(), per_group.clone(), dims[1].clone()];
    split.extend_from_slice(&dims[2..]);
    let split = cx.reshape(w, split)?;
    let perm: Vec<usize> = [0, 2, 1].into_iter().chain(3..dims.len() + 1).collect();
    let swapped = cx.transpose(split, &perm)?;
    let mut joined = vec![dims[1].mul(&g), per_group];
    joined.extend_from_slice(&dims[2..]);
    let joined = cx.reshape(swapped, joined)?;
    let dims = cx.dims(joined);
    let one = Expr::from(1i64);
    let starts = dims.iter().enumerate().map(|(n, d)| if n < 2 { Expr::default() } else { d.sub(&one) }).collect();
    let steps = (0..dims.len()).map(|n| if n < 2 { 1 } else { -1 }).collect();
    cx.add(Slice { starts, steps, dims }, &[joined])
}
