//! `fourier`: the discrete Fourier transform along an axis, of any length (mixed-radix, Cooley & Tukey 1965).

use super::Function;
use super::element::{floats, from_floats, split, tensors};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::tensor::Tensor;
use std::f64::consts::TAU;

/// The last axis holds real part and, where it has extent 2, imaginary part. Attributes: `axis` (not the last), `length` (the
/// signal is cut or filled with zeros), `inverse` (scaled by 1/length), `onesided` (forward: only the first `length/2 + 1`
/// frequencies; inverse: these are given and the result is real). A result that is not real has extent 2 at the end.
pub(super) const FUNCTION: Function = Function { name: "fourier", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let (axis, length, inverse, onesided) =
        (a.size("axis")?, a.size("length")?, a.bool("inverse")?, a.bool("onesided")?);
    check_axes(&[axis], x.rank())?;
    let last = x.rank() - 1;
    let parts = x.dims[last].as_size().filter(|p| (1..=2).contains(p));
    if axis == last || parts.is_none() || !x.dtype.is_float() || length == 0 {
        return Err(OpError::new("wants floats with 1 or 2 parts along the last axis, and another axis of signals"));
    }
    let mut dims = x.dims.clone();
    dims[axis] = Expr::from(if onesided && !inverse { length / 2 + 1 } else { length });
    dims[last] = Expr::from(if onesided && inverse { 1usize } else { 2 });
    Ok(vec![TensorType::new(x.dtype, dims)])
}

type Complex = (f64, f64);

fn times(a: Complex, b: Complex) -> Complex {
    (a.0 * b.0 - a.1 * b.1, a.0 * b.1 + a.1 * b.0)
}

/// The transform of `x[start], x[start + step], ...` of `out.len()` elements; `roots[k]` is the k-th power of the root of unity
/// of order `roots.len()`.
fn transform(x: &[Complex], start: usize, step: usize, roots: &[Complex], out: &mut [Complex]) {
    let n = out.len();
    if n == 1 {
        out[0] = x[start];
        return;
    }
    let radix = (2..).take_while(|p| p * p <= n).find(|&p| n.is_multiple_of(p)).unwrap_or(n);
    let m = n / radix;
    for (r, part) in out.chunks_mut(m).enumerate() {
        transform(x, start + r * step, step * radix, roots, part);
    }
    let mut column = vec![(0.0, 0.0); radix];
    for k in 0..m {
        for (r, slot) in column.iter_mut().enumerate() {
            *slot = out[r * m + k];
        }
        for q in 0..radix {
            let frequency = k + q * m;
            // The root of order n to the power r * frequency; roots.len() is a multiple of n.
            let unit = roots.len() / n;
            out[frequency] = column.iter().enumerate().fold((0.0, 0.0), |sum, (r, &c)| {
                let term = times(c, roots[r * frequency % n * unit]);
                (sum.0 + term.0, sum.1 + term.1)
            });
        }
    }
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = tensors(inputs)?;
    let (axis, length, inverse, onesided) =
        (a.size("axis")?, a.size("length")?, a.bool("inverse")?, a.bool("onesided")?);
    let parts = x.shape().last().copied().unwrap_or(1);
    let (outer, extent, inner) = split(&x.shape()[..x.shape().len() - 1], axis);
    let out_extent = if onesided && !inverse { length / 2 + 1 } else { length };
    let out_parts = if onesided && inverse { 1 } else { 2 };
    let mut shape = x.shape().to_vec();
    shape[axis] = out_extent;
    if let Some(last) = shape.last_mut() {
        *last = out_parts;
    }
    let sign = if inverse { 1.0 } else { -1.0 };
    let angle = |k: usize| sign * TAU * k as f64 / length as f64;
    let roots: Vec<Complex> = (0..length).map(|k| (libm::cos(angle(k)), libm::sin(angle(k)))).collect();
    let scale = if inverse { 1.0 / length as f64 } else { 1.0 };
    let values = floats(x)?;
    let mut result = vec![0.0; crate::tensor::element_count(&shape, 8)?];
    let (mut line, mut out) = (vec![(0.0, 0.0); length], vec![(0.0, 0.0); length]);
    for o in 0..outer {
        for i in 0..inner {
            let given = if onesided && inverse { length / 2 + 1 } else { length };
            for (n, slot) in line.iter_mut().enumerate() {
                let at = ((o * extent + n) * inner + i) * parts;
                let real = n < extent && n < given;
                *slot = if real { (values[at], if parts == 2 { values[at + 1] } else { 0.0 }) } else { (0.0, 0.0) };
            }
            if onesided && inverse {
                // The other half mirrors the given one; what a real signal cannot have is dropped.
                line[0].1 = 0.0;
                for n in given..length {
                    line[n] = (line[length - n].0, -line[length - n].1);
                }
                if length.is_multiple_of(2) {
                    line[length / 2].1 = 0.0;
                }
            }
            transform(&line, 0, 1, &roots, &mut out);
            for (k, value) in out.iter().take(out_extent).enumerate() {
                let at = ((o * out_extent + k) * inner + i) * out_parts;
                result[at] = value.0 * scale;
                if out_parts == 2 {
                    result[at + 1] = value.1 * scale;
                }
            }
        }
    }
    Ok(vec![from_floats(x.dtype(), &shape, &result)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    fn dft(x: &Tensor, length: usize, inverse: bool, onesided: bool) -> Tensor {
        let a = Attributes::new().with("axis", 1usize).with("length", length);
        run("fourier", a.with("inverse", inverse).with("onesided", onesided), std::slice::from_ref(x)).remove(0)
    }

    fn close(a: &Tensor, b: &[f32]) {
        let a = a.to_f32().unwrap();
        assert_eq!(a.len(), b.len());
        assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5), "{a:?} {b:?}");
    }

    #[test]
    fn small_transforms() {
        let x = Tensor::from_f32(&[1, 4, 1], &[1., 2., 3., 4.]).unwrap();
        close(&dft(&x, 4, false, false), &[10., 0., -2., 2., -2., 0., -2., -2.]);
        close(&dft(&x, 4, false, true), &[10., 0., -2., 2., -2., 0.]);
        let root = 3f32.sqrt() / 2.0;
        close(&dft(&x, 3, false, false), &[6., 0., -1.5, root, -1.5, -root]);
    }

    #[test]
    fn inverses_of_every_length() {
        for n in 1..40usize {
            let values: Vec<f32> = (0..n).map(|i| (i * i % 7) as f32 - 2.0).collect();
            let x = Tensor::from_f32(&[1, n, 1], &values).unwrap();
            let both: Vec<f32> = values.iter().flat_map(|&v| [v, 0.0]).collect();
            close(&dft(&dft(&x, n, false, false), n, true, false), &both);
            close(&dft(&dft(&x, n, false, true), n, true, true), &values);
        }
    }
}
