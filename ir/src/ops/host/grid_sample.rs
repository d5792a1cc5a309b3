//! `grid_sample`: an image read at computed points, in any number of spatial axes.

use super::Function;
use super::element::{advance, floats, from_floats, same, strides, tensors};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;

/// `x[n, c, d...]` at `grid[n, o.., k]`, whose last axis holds the point's coordinates from -1 to 1, last spatial axis first.
/// Attributes: `mode` (linear, nearest, cubic with a = -0.75), `padding` (zeros, border, reflection), `align_corners` (±1 are
/// the centres of the corner pixels, else their outer edges).
pub(super) const FUNCTION: Function = Function { name: "grid_sample", infer, eval };

/// Points whose neighbours are found before they are read in all channels.
const BLOCK: usize = 1024;

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

fn padding(a: &Attributes) -> Result<Padding, OpError> {
    match a.word("padding")? {
        "zeros" => Ok(Padding::Zeros),
        "border" => Ok(Padding::Border),
        "reflection" => Ok(Padding::Reflection),
        other => Err(OpError::new(format!("there is no padding `{other}`"))),
    }
}

/// First neighbour, relative to the point's floor, and the neighbours' weights for the fraction.
fn taps(mode: &str, fraction: f64) -> Result<(i64, Vec<f64>), OpError> {
    let a = -0.75;
    let far = |x: f64| ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    let near = |x: f64| ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    let t = fraction;
    match mode {
        "nearest" => Ok((0, vec![1.0])),
        "linear" => Ok((0, vec![1.0 - t, t])),
        "cubic" => Ok((-1, vec![far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)])),
        other => Err(OpError::new(format!("there is no mode `{other}`"))),
    }
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, grid] = operands(inputs)?;
    let spatial = x.rank().saturating_sub(2);
    if spatial == 0 || grid.rank() != x.rank() || !x.dtype.is_float() || !grid.dtype.is_float() {
        return Err(OpError::new("wants floats x[n, c, d...] and grid[n, o..., k] with as many axes"));
    }
    same("batches", &x.dims[0], &grid.dims[0])?;
    same("coordinates of a point", &grid.dims[spatial + 1], &Expr::from(spatial))?;
    a.bool("align_corners")?;
    padding(a)?;
    taps(a.word("mode")?, 0.0)?;
    let mut dims = x.dims[..2].to_vec();
    dims.extend_from_slice(&grid.dims[1..=spatial]);
    Ok(vec![TensorType::new(x.dtype, dims)])
}

/// `v` mirrored at the borders until it lies between them.
fn reflect(v: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    if range <= 0.0 || !v.is_finite() {
        return low;
    }
    let distance = if v < low { low - v } else { v - high };
    if distance <= 0.0 {
        return v;
    }
    let turns = (distance / range).floor();
    let rest = distance - turns * range;
    if (v < low) == (turns % 2.0 == 0.0) { low + rest } else { high - rest }
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, grid] = tensors(inputs)?;
    let (mode, padding, align) = (a.word("mode")?, padding(a)?, a.bool("align_corners")?);
    let (channels, extents) = (x.shape()[1], &x.shape()[2..]);
    let spatial = extents.len();
    if grid.shape()[0] != x.shape()[0] || grid.shape()[spatial + 1] != spatial || extents.contains(&0) {
        return Err(OpError::new("the grid does not fit the image"));
    }
    let mut shape = x.shape()[..2].to_vec();
    shape.extend_from_slice(&grid.shape()[1..=spatial]);
    let (plane, points): (usize, usize) = (extents.iter().product(), shape[2..].iter().product());
    let stride = strides(extents);
    let (values, grid) = (floats(x)?, floats(grid)?);
    let mut result = vec![0.0; crate::tensor::element_count(&shape, 8)?];
    // Which places of a plane each of a block's points reads, with their weights, and where each one's end: the same for all channels.
    let (mut places, mut ends): (Vec<(usize, f64)>, Vec<usize>) = (Vec::new(), Vec::new());
    for (image, block) in (0..shape[0]).flat_map(|image| (0..points).step_by(BLOCK).map(move |block| (image, block))) {
        places.clear();
        ends.clear();
        let end = points.min(block + BLOCK);
        for point in block..end {
            let coordinates = &grid[(image * points + point) * spatial..][..spatial];
            // For each axis the neighbours' offsets in the plane (none: zero padding) and weights.
            let mut neighbours: Vec<Vec<(Option<usize>, f64)>> = Vec::with_capacity(spatial);
            for n in 0..spatial {
                let extent = extents[n] as f64;
                let (low, high) = if align { (0.0, extent - 1.0) } else { (-0.5, extent - 0.5) };
                let normal = coordinates[spatial - 1 - n];
                let v =
                    if align { (normal + 1.0) / 2.0 * (extent - 1.0) } else { ((normal + 1.0) * extent - 1.0) / 2.0 };
                // The point is kept in f32, as the definition's own arithmetic is.
                let mut v = f64::from(v as f32);
                if mode == "nearest" {
                    v = v.round_ties_even();
                }
                if v < low || v > high {
                    v = match padding {
                        Padding::Zeros => v,
                        // The neighbours of a cubic are clamped one by one, as PyTorch and ONNX Runtime do.
                        Padding::Border if mode == "cubic" => v,
                        Padding::Border => v.clamp(0.0, extent - 1.0),
                        Padding::Reflection => reflect(v, low, high),
                    };
                }
                let floor = v.floor();
                let (first, weights) = taps(mode, v - floor)?;
                let place = |tap: i64| {
                    let i = floor + (first + tap) as f64;
                    let i = match padding {
                        Padding::Zeros => i,
                        Padding::Border => i.clamp(0.0, extent - 1.0),
                        Padding::Reflection => reflect(i, low, high).clamp(0.0, extent - 1.0).trunc(),
                    };
                    (i >= 0.0 && i < extent).then_some(i as usize * stride[n])
                };
                neighbours.push(weights.into_iter().enumerate().map(|(t, w)| (place(t as i64), w)).collect());
            }
            let counts: Vec<usize> = neighbours.iter().map(Vec::len).collect();
            let mut at = vec![0; spatial];
            for _ in 0..counts.iter().product() {
                let picked = neighbours.iter().zip(&at).map(|(line, &t)| line[t]);
                let (place, weight) = picked.fold((Some(0), 1.0), |(sum, product), (offset, weight)| {
                    (sum.zip(offset).map(|(a, b)| a + b), product * weight)
                });
                places.extend(place.map(|place| (place, weight)));
                advance(&mut at, &counts);
            }
            ends.push(places.len());
        }
        for row in image * channels..(image + 1) * channels {
            let (from, to) = (&values[row * plane..][..plane], &mut result[row * points..][block..end]);
            let mut first = 0;
            for (to, &end) in to.iter_mut().zip(&ends) {
                for &(place, weight) in &places[first..end] {
                    *to += weight * from[place];
                }
                first = end;
            }
        }
    }
    Ok(vec![from_floats(x.dtype(), &shape, &result)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn modes_and_paddings() {
        let x = Tensor::from_f32(&[1, 1, 1, 3], &[1., 2., 4.]).unwrap();
        let grid = Tensor::from_f32(&[1, 1, 3, 2], &[0.5, 0., -1., 0., 1.5, 0.]).unwrap();
        let of = |mode: &str, padding: &str| {
            let a = Attributes::new().with("mode", mode).with("padding", padding).with("align_corners", true);
            run("grid_sample", a, &[x.clone(), grid.clone()])[0].to_f32().unwrap()
        };
        // Points 1.5, 0 and 2.5 of the row.
        assert_eq!(of("linear", "zeros"), [3., 1., 2.]);
        assert_eq!(of("linear", "border"), [3., 1., 4.]);
        assert_eq!(of("linear", "reflection"), [3., 1., 3.]);
        assert_eq!(of("nearest", "border"), [4., 1., 4.]);
    }

    #[test]
    fn reflection_is_a_triangle_wave() {
        let line: Vec<f64> = (-5..6).map(|v| reflect(f64::from(v), 0.0, 2.0)).collect();
        assert_eq!(line, [1., 0., 1., 2., 1., 0., 1., 2., 1., 0., 1.]);
    }
}
