//! `HannWindow`, `HammingWindow`, `BlackmanWindow` and `MelWeightMatrix`: constants of signal processing.

use super::support::{floats, type_attribute};
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::DType;
use std::f64::consts::TAU;

/// More elements than this are refused: a short file could ask for any number.
const MAX: usize = 1 << 24;

pub(super) const OPS: &[Spec] = &[
    onnx("HannWindow", 17, &["output_datatype", "periodic"], |cx| window(cx, &[0.5, 0.5])),
    onnx("HammingWindow", 17, &["output_datatype", "periodic"], |cx| window(cx, &[25.0 / 46.0, 21.0 / 46.0])),
    onnx("BlackmanWindow", 17, &["output_datatype", "periodic"], |cx| window(cx, &[0.42, 0.5, 0.08])),
    onnx("MelWeightMatrix", 17, &["output_datatype"], mel),
];

fn dtype(cx: &Context) -> Result<DType, Failure> {
    Ok(type_attribute(cx, "output_datatype")?.unwrap_or(DType::F32))
}

/// `sum over k of (-1)^k c[k] cos(k 2π n / N)`.
fn window(cx: &mut Context, c: &[f64]) -> Result<Outputs, Failure> {
    let dtype = dtype(cx)?;
    let size = match cx.ints(0, "size")?.as_slice() {
        [n] => usize::try_from(*n).ok().filter(|&n| n <= MAX),
        _ => None,
    };
    let size = size.ok_or_else(|| Failure::invalid("`size` is not one number within bounds"))?;
    let period = if cx.node.bool_or("periodic", true)? { size as f64 } else { size as f64 - 1.0 };
    let value = |n: usize| {
        let term = |(k, c): (usize, &f64)| {
            let sign = if k % 2 == 0 { 1.0 } else { -1.0 };
            sign * c * (TAU * (k * n) as f64 / period).cos()
        };
        // A window of one element divides by zero; it is 1.
        if period == 0.0 { 1.0 } else { c.iter().enumerate().map(term).sum() }
    };
    let values: Vec<f64> = (0..size).map(value).collect();
    Ok(floats(cx, dtype, &[size], &values)?.into())
}

/// Triangular filters evenly spaced on the mel scale, as columns over the bins of a spectrum.
fn mel(cx: &mut Context) -> Result<Outputs, Failure> {
    let dtype = dtype(cx)?;
    let mut numbers = [0.0; 5];
    for (i, what) in
        ["num_mel_bins", "dft_length", "sample_rate", "lower_edge_hertz", "upper_edge_hertz"].into_iter().enumerate()
    {
        numbers[i] = cx.number(i, what)?.as_f64();
    }
    let [bins, length, rate, low, high] = numbers;
    let fits = |n: f64| n >= 1.0 && n <= MAX as f64;
    if !fits(bins) || !fits(length) || bins * length > MAX as f64 || rate.is_nan() || rate <= 0.0 {
        return Err(Failure::invalid(format!("{bins} bins, length {length} and rate {rate} are out of bounds")));
    }
    let (bins, rows) = (bins as usize, length as usize / 2 + 1);
    let to_mel = |hertz: f64| 2595.0 * (hertz / 700.0).ln_1p() / 10f64.ln();
    let step = (to_mel(high) - to_mel(low)) / (bins + 2) as f64;
    let edge = |n: usize| {
        let hertz = 700.0 * ((n as f64 * step + to_mel(low)) / 2595.0 * 10f64.ln()).exp_m1();
        let bin = ((length + 1.0) * hertz / rate).floor();
        Some(bin as usize).filter(|&b| bin >= 0.0 && b < rows)
    };
    let edges: Option<Vec<usize>> = (0..bins + 2).map(edge).collect();
    let edges = edges.ok_or_else(|| Failure::invalid("the edges are beyond the spectrum"))?;
    let mut values = vec![0.0; rows * bins];
    for (column, e) in edges.windows(3).enumerate() {
        let (left, centre, right) = (e[0], e[1], e[2]);
        let mut set = |row: usize, value: f64| values[row * bins + column] = value;
        if left == centre {
            set(centre, 1.0);
        } else {
            (left..=centre).for_each(|row| set(row, (row - left) as f64 / (centre - left) as f64));
        }
        (centre..right).for_each(|row| set(row, (right - row) as f64 / (right - centre) as f64));
    }
    Ok(floats(cx, dtype, &[rows, bins], &values)?.into())
}
