//! What convolutions and pools share: windows with strides, dilations and padding.
//!
//! Invariant: padding is signed; what is negative is cut off.

use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Pad, Slice};
use kiln_ir::{Constant, Expr};

/// Moving windows along the spatial axes.
#[derive(Clone, Debug)]
pub(super) struct Window {
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    /// Elements before and after each axis that the model asks for.
    pub pads: Vec<(i64, i64)>,
    /// Elements after each axis that only the last window needs (`ceil_mode`).
    pub extra: Vec<i64>,
}

impl Window {
    /// Reads `kernel_shape` (or takes `kernel`), `strides`, `dilations`, `pads`, `auto_pad` and `ceil_mode`, for
    /// spatial axes of these extents.
    pub fn read(cx: &Context, spatial: &[Expr], kernel: Option<Vec<usize>>) -> Result<Window, Failure> {
        let rank = spatial.len();
        let given = cx.sizes("kernel_shape", rank, 1)?;
        let kernel = match (given, kernel) {
            (Some(given), Some(known)) if given != known => {
                let message = format!("is {given:?}, the weights' is {known:?}");
                return Err(cx.node.attribute_value("kernel_shape", message).into());
            }
            (given, known) => known.or(given).ok_or_else(|| cx.node.attribute_missing("kernel_shape"))?,
        };
        let strides = cx.sizes("strides", rank, 1)?.unwrap_or_else(|| vec![1; rank]);
        let dilations = cx.sizes("dilations", rank, 1)?.unwrap_or_else(|| vec![1; rank]);
        let mut window = Window { kernel, strides, dilations, pads: vec![(0, 0); rank], extra: vec![0; rank] };
        match cx.node.string_or("auto_pad", "NOTSET")? {
            "NOTSET" => {
                if let Some(pads) = cx.sizes("pads", 2 * rank, 0)? {
                    window.pads = (0..rank).map(|n| (pads[n] as i64, pads[n + rank] as i64)).collect();
                }
            }
            "VALID" => {}
            upper @ ("SAME_UPPER" | "SAME_LOWER") => {
                for (n, extent) in spatial.iter().enumerate() {
                    let total = window.same(n, extent)?;
                    let (small, large) = (total / 2, total - total / 2);
                    window.pads[n] = if upper == "SAME_UPPER" { (small, large) } else { (large, small) };
                }
            }
            other => {
                let message = format!("{other:?} is none of NOTSET, SAME_UPPER, SAME_LOWER, VALID");
                return Err(cx.node.attribute_value("auto_pad", message).into());
            }
        }
        if cx.node.bool_or("ceil_mode", false)? {
            for (n, extent) in spatial.iter().enumerate() {
                window.extra[n] = window.ceil(n, extent)?;
            }
        }
        Ok(window)
    }

    /// Extent of a dilated window.
    pub fn span(&self, n: usize) -> i64 {
        (self.kernel[n] as i64 - 1).saturating_mul(self.dilations[n] as i64).saturating_add(1)
    }

    /// Number of elements in a window.
    pub fn volume(&self) -> usize {
        self.kernel.iter().copied().fold(1, usize::saturating_mul)
    }

    /// Padding such that there are as many windows as the extent divided by the stride, rounded up.
    fn same(&self, n: usize, extent: &Expr) -> Result<i64, Failure> {
        let stride = self.strides[n] as i64;
        if stride == 1 {
            return Ok(self.span(n).saturating_sub(1));
        }
        let extent = number(extent)?;
        let windows = (extent.saturating_add(stride - 1)) / stride;
        Ok((windows - 1).max(0).saturating_mul(stride).saturating_add(self.span(n)).saturating_sub(extent).max(0))
    }

    /// Elements that a last, partial window needs. A window that would start in the padding at the end is left out.
    fn ceil(&self, n: usize, extent: &Expr) -> Result<i64, Failure> {
        let (stride, extent) = (self.strides[n] as i64, number(extent)?);
        let padded = extent.saturating_add(self.pads[n].0).saturating_add(self.pads[n].1);
        let beyond = padded.saturating_sub(self.span(n));
        if beyond < 0 {
            return Ok(0);
        }
        let mut last = beyond.saturating_add(stride - 1) / stride;
        if last.saturating_mul(stride) >= extent.saturating_add(self.pads[n].0) {
            last -= 1;
        }
        Ok(last.saturating_mul(stride).saturating_add(self.span(n)).saturating_sub(padded).max(0))
    }

    /// Whether there is any padding.
    pub fn is_padded(&self) -> bool {
        self.pads.iter().any(|&p| p != (0, 0)) || self.extra.iter().any(|&e| e != 0)
    }

    /// The tensor `[n, c, spatial...]` with all padding.
    pub fn pad(&self, cx: &mut Context, x: ValueId, value: Constant) -> Result<ValueId, Failure> {
        let mut low = vec![0, 0];
        let mut high = vec![0, 0];
        low.extend(self.pads.iter().map(|p| p.0));
        high.extend(self.pads.iter().zip(&self.extra).map(|(p, e)| p.1.saturating_add(*e)));
        pad(cx, x, &low, &high, &vec![0; low.len()], value)
    }
}

fn number(extent: &Expr) -> Result<i64, Failure> {
    extent.as_const().ok_or_else(|| {
        Failure::unsupported(format!(
            "the padding depends on the dim `{extent}`, which must be known; bind its symbols"
        ))
    })
}

/// A border of `value`, cut off where it is negative, and `interior` elements between neighbours.
pub(super) fn pad(
    cx: &mut Context,
    x: ValueId,
    low: &[i64],
    high: &[i64],
    interior: &[usize],
    value: Constant,
) -> Result<ValueId, Failure> {
    let grow = |v: &[i64]| v.iter().map(|&p| usize::try_from(p).unwrap_or(0)).collect::<Vec<usize>>();
    let mut x = x;
    let op = Pad { low: grow(low), high: grow(high), interior: interior.to_vec(), value };
    if [&op.low, &op.high, &op.interior].iter().any(|v| v.iter().any(|&p| p > 0)) {
        x = cx.add(op, &[x])?;
    }
    if low.iter().chain(high).all(|&p| p >= 0) {
        return Ok(x);
    }
    let cut = |p: i64| p.min(0).saturating_neg();
    let ends = low.iter().zip(high).map(|(&l, &h)| Expr::from(cut(l).saturating_add(cut(h))));
    let dims: Vec<Expr> = cx.dims(x).iter().zip(ends).map(|(d, cut)| d.sub(&cut)).collect();
    let starts = low.iter().map(|&l| Expr::from(cut(l))).collect();
    cx.add(Slice { starts, steps: vec![1; low.len()], dims }, &[x])
}
