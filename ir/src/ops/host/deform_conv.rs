//! `deform_conv`: a convolution whose taps are moved by computed offsets (Dai et al. 2017; Zhu et al. 2018).

use super::Function;
use super::element::{floats, from_floats, result_shape, same, tensors, types};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;

/// Operands: `x[n, c, h, w]`, `w[o, c / groups, kh, kw]`, `offset[n, og * kh * kw * 2, oh, ow]` (down, then right),
/// `mask[n, og * kh * kw, oh, ow]` (factors of the taps). Attributes: `strides`, `dilations`, `low`, `high`, `groups`,
/// `offset_groups` (og). Between pixels x is bilinear, outside it is 0.
pub(super) const FUNCTION: Function = Function { name: "deform_conv", infer, eval };

struct Shape {
    strides: Vec<usize>,
    dilations: Vec<usize>,
    low: Vec<usize>,
    high: Vec<usize>,
    groups: usize,
    offset_groups: usize,
}

fn shape(a: &Attributes) -> Result<Shape, OpError> {
    let s = Shape {
        strides: a.sizes("strides")?,
        dilations: a.sizes("dilations")?,
        low: a.sizes("low")?,
        high: a.sizes("high")?,
        groups: a.size("groups")?,
        offset_groups: a.size("offset_groups")?,
    };
    let two = [&s.strides, &s.dilations, &s.low, &s.high].iter().all(|v| v.len() == 2);
    if !two || s.groups == 0 || s.offset_groups == 0 || s.strides.contains(&0) || s.dilations.contains(&0) {
        return Err(OpError::new(
            "wants two entries in each attribute, and groups, strides and dilations of at least 1",
        ));
    }
    Ok(s)
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, w, offset, mask] = operands(inputs)?;
    let s = shape(a)?;
    if inputs.iter().any(|t| t.rank() != 4 || t.dtype != x.dtype) || !x.dtype.is_float() {
        return Err(OpError::new("wants four operands with four axes and one float type"));
    }
    let (groups, offset_groups) = (Expr::from(s.groups), Expr::from(s.offset_groups));
    let taps = w.dims[2].mul(&w.dims[3]).mul(&offset_groups);
    same("channels", &x.dims[1], &w.dims[1].mul(&groups))?;
    same("offsets", &offset.dims[1], &taps.scale(2))?;
    same("masks", &mask.dims[1], &taps)?;
    let whole = |d: &Expr, by: &Expr| d.modulo(by).as_const().is_none_or(|r| r == 0);
    if !whole(&w.dims[0], &groups) || !whole(&x.dims[1], &offset_groups) {
        return Err(OpError::new("the channels cannot be cut into the groups"));
    }
    let mut dims = vec![x.dims[0].clone(), w.dims[0].clone()];
    for n in 0..2 {
        let span = w.dims[n + 2].sub(&Expr::from(1i64)).mul(&Expr::from(s.dilations[n])).add(&Expr::from(1i64));
        let padded = x.dims[n + 2].add(&Expr::from(s.low[n])).add(&Expr::from(s.high[n]));
        let d = padded.sub(&span).floor_div(&Expr::from(s.strides[n])).add(&Expr::from(1i64));
        same("offsets", &offset.dims[n + 2], &d)?;
        same("masks", &mask.dims[n + 2], &d)?;
        dims.push(d);
    }
    same("batches", &offset.dims[0], &x.dims[0])?;
    same("batches", &mask.dims[0], &x.dims[0])?;
    Ok(vec![TensorType::new(x.dtype, dims)])
}

/// A plane of `extents` at a point, bilinear, 0 outside.
fn sample(plane: &[f64], extents: (usize, usize), y: f64, x: f64) -> f64 {
    let (top, left) = (y.floor(), x.floor());
    let (dy, dx) = (y - top, x - left);
    let pixel = |r: f64, c: f64| {
        let inside = r >= 0.0 && c >= 0.0 && r < extents.0 as f64 && c < extents.1 as f64;
        if inside { plane[r as usize * extents.1 + c as usize] } else { 0.0 }
    };
    let row = |r: f64| pixel(r, left) * (1.0 - dx) + pixel(r, left + 1.0) * dx;
    row(top) * (1.0 - dy) + row(top + 1.0) * dy
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let operand_types = types(inputs);
    let out = result_shape(infer(a, &operand_types.iter().collect::<Vec<_>>()), 0)?;
    let s = shape(a)?;
    let [x, w, offset, mask] = tensors(inputs)?;
    let (channels, extents) = (x.shape()[1], (x.shape()[2], x.shape()[3]));
    let (per_group, kh, kw) = (w.shape()[1], w.shape()[2], w.shape()[3]);
    let (oh, ow) = (out[2], out[3]);
    let (taps, plane, out_plane) = (kh * kw, extents.0 * extents.1, oh * ow);
    let (values, weights, offsets, masks) = (floats(x)?, floats(w)?, floats(offset)?, floats(mask)?);
    let (outputs_per_group, channels_per_offset) = (out[1] / s.groups, channels / s.offset_groups);
    let mut result = vec![0.0; crate::tensor::element_count(&out, 8)?];
    for n in 0..out[0] {
        for c in 0..channels {
            let image = &values[(n * channels + c) * plane..][..plane];
            let block = (n * s.offset_groups + c / channels_per_offset) * taps;
            for tap in 0..taps {
                for point in 0..out_plane {
                    let (i, j) = (point / ow, point % ow);
                    let at = |n: usize| offsets[((block + tap) * 2 + n) * out_plane + point];
                    let y = (i * s.strides[0] + tap / kw * s.dilations[0]) as f64 - s.low[0] as f64 + at(0);
                    let x = (j * s.strides[1] + tap % kw * s.dilations[1]) as f64 - s.low[1] as f64 + at(1);
                    let v = sample(image, extents, y, x) * masks[(block + tap) * out_plane + point];
                    let group = c / per_group;
                    for o in group * outputs_per_group..(group + 1) * outputs_per_group {
                        let weight = weights[(o * per_group + c % per_group) * taps + tap];
                        result[(n * out[1] + o) * out_plane + point] += weight * v;
                    }
                }
            }
        }
    }
    Ok(vec![from_floats(x.dtype(), &out, &result)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn offsets_move_and_masks_scale() {
        let x = Tensor::from_f32(&[1, 1, 1, 3], &[1., 2., 4.]).unwrap();
        let w = Tensor::from_f32(&[1, 1, 1, 2], &[1., 10.]).unwrap();
        // Tap 0 stays; tap 1 moves right by 0.5 in the first place, out of the image in the second.
        let offset = Tensor::from_f32(&[1, 4, 1, 2], &[0., 0., 0., 0., 0., 0., 0.5, 1.0]).unwrap();
        let mask = Tensor::from_f32(&[1, 2, 1, 2], &[1., 0.5, 1., 1.]).unwrap();
        let a = Attributes::new().with("strides", &[1usize, 1][..]).with("dilations", &[1usize, 1][..]);
        let a = a.with("low", &[0usize, 0][..]).with("high", &[0usize, 0][..]);
        let r = run("deform_conv", a.with("groups", 1usize).with("offset_groups", 1usize), &[x, w, offset, mask]);
        assert_eq!(r[0].to_f32().unwrap(), [1. + 30., 0.5 * 2.]);
    }
}
