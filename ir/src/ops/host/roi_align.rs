//! `roi_align`: regions of an image sampled bilinearly and pooled (He et al., Mask R-CNN, section 3).

use super::Function;
use super::element::{floats, from_floats, ints, position, same, tensors};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;

/// Operands: `x[n, c, h, w]`, `regions[r, 4]` (x1, y1, x2, y2), `batch[r]` (which image). Attributes: `height`, `width` (of the
/// result), `samples` (points along each side of a cell; 0: as many as the cell has pixels), `scale` (f64), `half_pixel`, `max`
/// (pooling takes the greatest weighted corner, else the mean).
pub(super) const FUNCTION: Function = Function { name: "roi_align", infer, eval };

/// More points along one side of a cell than this are refused: their number comes from data.
const MAX_SAMPLES: f64 = 4096.0;

/// Most points of a region that are found once for all channels, 72 bytes each.
const MOST_KEPT: usize = 1 << 16;

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, regions, batch] = operands(inputs)?;
    if x.rank() != 4 || regions.rank() != 2 || batch.rank() != 1 || !batch.dtype.is_int() {
        return Err(OpError::new("wants x[n, c, h, w], regions[r, 4] and integers batch[r]"));
    }
    same("numbers of a region", &regions.dims[1], &Expr::from(4i64))?;
    same("regions and batch", &regions.dims[0], &batch.dims[0])?;
    if !x.dtype.is_float() || regions.dtype != x.dtype {
        return Err(OpError::new("x and regions must have one float type"));
    }
    a.size("samples")?;
    a.constant("scale")?;
    a.bool("half_pixel")?;
    a.bool("max")?;
    let (height, width) = (a.size("height")?, a.size("width")?);
    let dims = vec![regions.dims[0].clone(), x.dims[1].clone(), Expr::from(height), Expr::from(width)];
    Ok(vec![TensorType::new(x.dtype, dims)])
}

/// The four corners around a point, each a position in the plane and a weight; none where the point is outside.
fn corners(y: f64, x: f64, height: usize, width: usize) -> Option<[(usize, f64); 4]> {
    if !(-1.0..=height as f64).contains(&y) || !(-1.0..=width as f64).contains(&x) {
        return None;
    }
    let along = |v: f64, extent: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low + 1 >= extent { (extent - 1, extent - 1, 0.0) } else { (low, low + 1, v - low as f64) }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (along(y, height), along(x, width));
    let (hy, hx) = (1.0 - ly, 1.0 - lx);
    Some([
        (y0 * width + x0, hy * hx),
        (y0 * width + x1, hy * lx),
        (y1 * width + x0, ly * hx),
        (y1 * width + x1, ly * lx),
    ])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, regions, batch] = tensors(inputs)?;
    let (out_h, out_w, samples) = (a.size("height")?, a.size("width")?, a.size("samples")?);
    let (scale, half_pixel, max) = (a.constant("scale")?.as_f64(), a.bool("half_pixel")?, a.bool("max")?);
    let &[images, channels, height, width] = x.shape() else { return Err(OpError::new("wants x[n, c, h, w]")) };
    if height == 0 || width == 0 {
        return Err(OpError::new("the images are empty"));
    }
    let (values, regions) = (floats(x)?, floats(regions)?);
    let shape = [batch.len(), channels, out_h, out_w];
    let mut result = Vec::with_capacity(crate::tensor::element_count(&shape, 8)?);
    let offset = if half_pixel { 0.5 } else { 0.0 };
    for (region, image) in regions.chunks(4).zip(ints(batch)?) {
        let image = position(image, images)?;
        let at = |n: usize| region.get(n).copied().unwrap_or(0.0) * scale - offset;
        let (left, top, mut w, mut h) = (at(0), at(1), at(2) - at(0), at(3) - at(1));
        if !half_pixel {
            (w, h) = (w.max(1.0), h.max(1.0));
        }
        let (cell_h, cell_w) = (h / out_h as f64, w / out_w as f64);
        let points = |cell: f64| if samples > 0 { samples as f64 } else { cell.ceil().max(0.0) };
        let (rows, columns) = (points(cell_h), points(cell_w));
        if !(rows <= MAX_SAMPLES && columns <= MAX_SAMPLES) {
            return Err(OpError::new(format!("a region of {w} x {h} pixels is too large to sample")));
        }
        let count = (rows * columns).max(1.0);
        let (cells, of_cell) = (out_h * out_w, (rows * columns) as usize);
        let corners_of = |n: usize| {
            let (cell, point) = (n / of_cell, n % of_cell);
            let (py, px) = ((cell / out_w) as f64, (cell % out_w) as f64);
            let (iy, ix) = ((point / columns as usize) as f64, (point % columns as usize) as f64);
            let y = top + py * cell_h + (iy + 0.5) * cell_h / rows;
            let x = left + px * cell_w + (ix + 0.5) * cell_w / columns;
            corners(y, x, height, width)
        };
        // They are the same for all channels.
        let kept = cells.saturating_mul(of_cell) <= MOST_KEPT;
        let all: Vec<_> = if kept { (0..cells * of_cell).map(corners_of).collect() } else { vec![] };
        for channel in 0..channels {
            let plane = &values[(image * channels + channel) * height * width..][..height * width];
            for cell in 0..cells {
                let (mut sum, mut greatest) = (0.0, None::<f64>);
                for n in cell * of_cell..(cell + 1) * of_cell {
                    let corners = all.get(n).copied().unwrap_or_else(|| corners_of(n));
                    let weighted = corners.map_or([0.0; 4], |c| c.map(|(at, weight)| plane[at] * weight));
                    sum += weighted.iter().sum::<f64>();
                    let here = weighted.into_iter().fold(f64::NEG_INFINITY, f64::max);
                    greatest = Some(greatest.map_or(here, |g| g.max(here)));
                }
                result.push(if max { greatest.unwrap_or(0.0) } else { sum / count });
            }
        }
    }
    Ok(vec![from_floats(x.dtype(), &shape, &result)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, run};
    use super::*;
    use crate::{Constant, DType};

    #[test]
    fn mean_of_samples_of_a_ramp() {
        let x = Tensor::from_f32(&[1, 1, 4, 4], &(0..16).map(|v| v as f32).collect::<Vec<_>>()).unwrap();
        let regions = Tensor::from_f32(&[1, 4], &[0., 0., 2., 2.]).unwrap();
        let at = |b: i64| [x.clone(), regions.clone(), Tensor::from_i64(&[1], &[b]).unwrap()];
        let a = Attributes::new().with("height", 1usize).with("width", 2usize).with("samples", 1usize);
        let a = a.with("scale", Constant::float(DType::F64, 1.0)).with("half_pixel", false).with("max", false);
        // Points (y, x) = (1, 0.5) and (1, 1.5) of 4y + x.
        assert_eq!(run("roi_align", a.clone(), &at(0))[0].to_f32().unwrap(), [4.5, 5.5]);
        assert!(fails("roi_align", a, &at(1)).contains("index 1"));
    }
}
