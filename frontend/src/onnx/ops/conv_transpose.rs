//! `ConvTranspose`: a convolution with mirrored weights.
//!
//! With a stride, every so many neighbouring results are channels of one convolution: `y[i s + t] += x[i] w[t]` gives `y[q s + p]` the taps
//! `w[p + j s]` of `x[q - j]`, so a convolution with `k / s` taps (rounded up) makes all `s` of them and nothing is multiplied by the
//! zeros between spread out elements ("sub-pixel convolution": Shi et al., <https://arxiv.org/abs/1609.07009>). A dilated
//! kernel with a stride has no such taps, and one much shorter than its stride few: there the input is spread out by the stride.

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
    let mut axes = Vec::new();
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
        let past = reach.saturating_sub(end).saturating_add(more[n] as i64);
        axes.push(Axis { kernel: kernel[n], stride: strides[n], dilation: dilations[n], reach, begin, past });
    }
    let together = axes.iter().any(|a| a.stride > 1) && axes.iter().all(|a| a.stride == 1 || a.dilation == 1 && a.cuts());
    let y = if together { sub_pixel(cx, x, w, groups, &axes)? } else { spread(cx, x, w, groups, &axes)? };
    let bias = cx.optional(2)?;
    Ok(biased(cx, y, bias)?.into())
}

/// A spatial axis.
struct Axis {
    kernel: usize,
    stride: usize,
    dilation: usize,
    /// From the first to the last tap.
    reach: i64,
    /// Results that are cut off before the first that is kept.
    begin: i64,
    /// The last result that is kept, counted from where the last element's first tap goes.
    past: i64,
}

impl Axis {
    /// Taps of each of the `stride` results that are made together.
    fn taps(&self) -> usize {
        self.kernel.div_ceil(self.stride)
    }

    /// Whether the kernel has taps for its results without growing to more than twice its size, as it would with a stride that leaves gaps.
    fn cuts(&self) -> bool {
        let whole = self.kernel.checked_next_multiple_of(self.stride).and_then(|n| i64::try_from(n).ok());
        whole.is_some_and(|n| n <= (self.kernel as i64).saturating_mul(2))
    }
}

/// A convolution of the input with zeros between its elements.
fn spread(cx: &mut Context, x: ValueId, w: ValueId, groups: usize, axes: &[Axis]) -> Result<ValueId, Failure> {
    let (mut low, mut high, mut interior) = (vec![0, 0], vec![0, 0], vec![0, 0]);
    for axis in axes {
        low.push(axis.reach.saturating_sub(axis.begin));
        high.push(axis.past);
        interior.push(axis.stride - 1);
    }
    let zero = Constant::int(cx.dtype(x), 0);
    let spread = pad(cx, x, &low, &high, &interior, zero)?;
    let w = mirrored(cx, w, groups)?;
    let dilations = axes.iter().map(|a| a.dilation).collect();
    cx.add(Conv { strides: vec![1; axes.len()], dilations, groups, elements: Elements::Numbers }, &[spread, w])
}

/// A convolution whose channels are neighbouring results.
fn sub_pixel(cx: &mut Context, x: ValueId, w: ValueId, groups: usize, axes: &[Axis]) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let zero = Constant::int(cx.dtype(x), 0);
    let (mut low, mut high, mut first) = (vec![0, 0], vec![0, 0], vec![Expr::default(); 2]);
    for axis in axes {
        let stride = axis.stride as i64;
        let taps = if axis.stride == 1 { axis.reach } else { axis.taps() as i64 - 1 };
        low.push(taps.saturating_sub(axis.begin.div_euclid(stride)));
        high.push(axis.past.div_euclid(stride));
        first.push(Expr::from(axis.begin.rem_euclid(stride)));
    }
    let rank = axes.len();
    let (none, inner) = (vec![0; rank + 2], vec![0; rank + 2]);
    let padded = pad(cx, x, &low, &high, &inner, zero)?;

    // Weights [C, M, k...] whose kernels are cut into taps of one result each: [C, s..., M, taps...]. Channels of the same result stay
    // neighbours, so that lying apart they are moved in runs.
    let missing: Vec<i64> = axes.iter().map(|a| (a.taps() * a.stride) as i64 - a.kernel as i64).collect();
    let mut more = vec![0, 0];
    more.extend_from_slice(&missing);
    let w = if missing.iter().all(|m| *m == 0) { w } else { pad(cx, w, &none, &more, &inner, zero)? };
    let mut split = cx.dims(w)[..2].to_vec();
    let outer = split[1].clone();
    split.extend(axes.iter().flat_map(|a| [Expr::from(a.taps()), Expr::from(a.stride)]));
    let w = cx.reshape(w, split)?;
    let (taps, results) = ((0..rank).map(|n| 2 * n + 2), (0..rank).map(|n| 2 * n + 3));
    let perm: Vec<usize> = [0].into_iter().chain(results).chain([1]).chain(taps).collect();
    let w = cx.transpose(w, &perm)?;
    let strides = || axes.iter().map(|a| Expr::from(a.stride));
    let mut joined = vec![dims[1].clone(), strides().fold(outer.clone(), |all, s| all.mul(&s))];
    joined.extend(axes.iter().map(|a| Expr::from(a.taps())));
    let w = cx.reshape(w, joined)?;
    let w = mirrored(cx, w, groups)?;

    let dilations = axes.iter().map(|a| a.dilation).collect();
    let z = cx.add(Conv { strides: vec![1; rank], dilations, groups, elements: Elements::Numbers }, &[padded, w])?;
    // [N, groups, s..., M, q...] as [N, groups, M, q s, ...].
    let found = cx.dims(z);
    let mut apart = vec![found[0].clone(), Expr::from(groups)];
    apart.extend(strides());
    apart.push(outer.clone());
    apart.extend_from_slice(&found[2..]);
    let z = cx.reshape(z, apart)?;
    let perm: Vec<usize> = [0, 1, rank + 2].into_iter().chain((0..rank).flat_map(|n| [rank + 3 + n, 2 + n])).collect();
    let z = cx.transpose(z, &perm)?;
    let mut whole = vec![found[0].clone(), outer.mul(&Expr::from(groups))];
    whole.extend(strides().zip(&found[2..]).map(|(s, d)| d.mul(&s)));
    let z = cx.reshape(z, whole.clone())?;
    let mut kept = whole[..2].to_vec();
    for (n, axis) in axes.iter().enumerate() {
        let last = dims[n + 2].sub(&Expr::from(1i64)).scale(axis.stride as i64).add(&Expr::from(axis.past));
        kept.push(last.sub(&Expr::from(axis.begin)).add(&Expr::from(1i64)));
    }
    if kept == whole {
        return Ok(z);
    }
    cx.add(Slice { starts: first, steps: vec![1; rank + 2], dims: kept }, &[z])
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
