//! `AffineGrid`.

use super::support::floats;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::Expr;
use kiln_ir::ops::Contract;

/// More points than this are refused: a short file could ask for any number.
const MAX: usize = 1 << 26;

pub(super) const OPS: &[Spec] = &[onnx("AffineGrid", 20, &["align_corners"], affine_grid)];

/// The points of a regular grid from -1 to 1, last axis first, each transformed by the matrices of the batch.
fn affine_grid(cx: &mut Context) -> Result<Outputs, Failure> {
    let theta = cx.input(0)?;
    let align = cx.node.bool_or("align_corners", false)?;
    let size = cx.ints(1, "size")?;
    let extents: Option<Vec<usize>> = size.iter().skip(2).map(|&d| usize::try_from(d).ok()).collect();
    let extents = extents
        .filter(|e| (2..=3).contains(&e.len()))
        .filter(|e| kiln_ir::tensor::element_count(e, 8).is_ok_and(|n| n <= MAX));
    let extents =
        extents.ok_or_else(|| Failure::invalid(format!("`size` {size:?} is no batch of 2-D or 3-D images")))?;
    let axes = extents.len();
    let points: usize = extents.iter().product();
    let mut grid = Vec::with_capacity(points * (axes + 1));
    for point in 0..points {
        let mut rest = point;
        for &extent in extents.iter().rev() {
            let (i, n) = ((rest % extent) as f64, extent as f64);
            rest /= extent;
            grid.push(match align {
                true if extent == 1 => -1.0,
                true => 2.0 * i / (n - 1.0) - 1.0,
                false => (2.0 * i + 1.0) / n - 1.0,
            });
        }
        grid.push(1.0);
    }
    let grid = floats(cx, cx.dtype(theta), &[points, axes + 1], &grid)?;
    let moved = cx.add(Contract::new("bij", "pj", "bpi"), &[theta, grid])?;
    let mut dims = vec![cx.dims(theta)[0].clone()];
    dims.extend(extents.iter().map(|&d| Expr::from(d)));
    dims.push(Expr::from(axes));
    Ok(cx.reshape(moved, dims)?.into())
}
