//! `Resize` and `Upsample`: every axis on its own, nearest by picking, the others as weighted sums of picked neighbours.

use super::support::{floats, pick, repeat};
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Contract;
use kiln_ir::{DType, Expr, Tensor};

const RESIZE: &[&str] = &[
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "extrapolation_value",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
];

pub(super) const OPS: &[Spec] = &[
    onnx("Resize", 10, RESIZE, resize),
    Spec { name: "Upsample", domain: "", versions: (7, 9), attributes: &["mode", "scales"], import: upsample },
];

/// More neighbours than this are summed by a product with a matrix of weights.
const MAX_TAPS: usize = 8;

/// How coordinates of the result become coordinates of the operand.
#[derive(Clone, Copy, PartialEq)]
enum Coordinates {
    Asymmetric,
    AlignCorners,
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    TfCropAndResize,
}

#[derive(Clone, Copy, PartialEq)]
enum Nearest {
    Floor,
    Ceil,
    PreferFloor,
    PreferCeil,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest(Nearest),
    Linear,
    Cubic(f64),
}

struct Method {
    mode: Mode,
    coordinates: Coordinates,
    antialias: bool,
    exclude_outside: bool,
    extrapolation: f64,
}

/// One axis to resize.
struct Axis {
    axis: usize,
    input: usize,
    output: usize,
    scale: f32,
    roi: (f32, f32),
}

fn method(cx: &Context) -> Result<Method, Failure> {
    let node = cx.node;
    let value =
        |name: &str, given: &str| Failure::from(node.attribute_value(name, format!("{given:?} is none of ONNX's")));
    // Version 10 knows only this.
    let (coordinates, nearest) =
        if cx.opset() < 11 { ("asymmetric", "floor") } else { ("half_pixel", "round_prefer_floor") };
    let coordinates = match node.string_or("coordinate_transformation_mode", coordinates)? {
        "asymmetric" => Coordinates::Asymmetric,
        "align_corners" => Coordinates::AlignCorners,
        "half_pixel" => Coordinates::HalfPixel,
        "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
        "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
        "tf_crop_and_resize" => Coordinates::TfCropAndResize,
        "tf_half_pixel_for_nn" => {
            return Err(Failure::unsupported("tf_half_pixel_for_nn is not supported; convert the model to version 13"));
        }
        other => return Err(value("coordinate_transformation_mode", other)),
    };
    let nearest = match node.string_or("nearest_mode", nearest)? {
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        "round_prefer_floor" => Nearest::PreferFloor,
        "round_prefer_ceil" => Nearest::PreferCeil,
        other => return Err(value("nearest_mode", other)),
    };
    let mode = match node.string_or("mode", "nearest")? {
        "nearest" => Mode::Nearest(nearest),
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic(f64::from(node.float_or("cubic_coeff_a", -0.75)?)),
        other => return Err(value("mode", other)),
    };
    let antialias = node.bool_or("antialias", false)?;
    if antialias && matches!(mode, Mode::Nearest(_)) {
        return Err(node.attribute_value("antialias", "has no meaning for nearest").into());
    }
    Ok(Method {
        mode,
        coordinates,
        antialias,
        exclude_outside: node.bool_or("exclude_outside", false)?,
        extrapolation: f64::from(node.float_or("extrapolation_value", 0.0)?),
    })
}

/// The numbers of input `i`; nothing where it is absent or empty.
fn numbers(cx: &Context, i: usize, what: &str) -> Result<Option<Vec<f32>>, Failure> {
    match cx.optional(i)? {
        None => Ok(None),
        Some(v) if cx.ty(v).elements().as_const() == Some(0) => Ok(None),
        Some(_) => {
            let values = cx.constant_input(i, what)?.to_f64();
            let values = values.ok_or_else(|| Failure::invalid(format!("`{what}` holds no numbers")))?;
            Ok(Some(values.into_iter().map(|v| v as f32).collect()))
        }
    }
}

fn resize(cx: &mut Context) -> Result<Outputs, Failure> {
    let method = method(cx)?;
    let x = cx.input(0)?;
    let rank = cx.rank(x);
    let axes = match cx.node.ints_opt("axes")? {
        Some(axes) => cx.axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let at = if cx.opset() < 11 { (None, 1, None) } else { (Some(1), 2, Some(3)) };
    let sizes = match at.2 {
        Some(i) if cx.bound(i).is_some() => Some(cx.exprs(i, "sizes")?).filter(|s| !s.is_empty()),
        _ => None,
    };
    let scales = if sizes.is_none() { numbers(cx, at.1, "scales")? } else { None };
    let roi = match at.0 {
        Some(i) if method.coordinates == Coordinates::TfCropAndResize => numbers(cx, i, "roi")?,
        _ => None,
    };
    let roi = roi.unwrap_or_else(|| [vec![0.0; axes.len()], vec![1.0; axes.len()]].concat());
    let count = scales.as_ref().map_or(0, Vec::len) + sizes.as_ref().map_or(0, Vec::len);
    if count != axes.len() || roi.len() != 2 * axes.len() {
        return Err(Failure::invalid(format!("{} axes are resized by {count} numbers", axes.len())));
    }
    let roi = |n: usize| (roi[n], roi[n + axes.len()]);
    let mut all = Vec::new();
    let mut x = x;
    if let Some(scales) = scales {
        for (n, &axis) in axes.iter().enumerate() {
            x = scaled(cx, x, &method, axis, scales[n], roi(n), &mut all)?;
        }
    }
    if let Some(sizes) = sizes {
        x = sized(cx, x, &method, &axes, &sizes, &roi, &mut all)?;
    }
    Ok(apply(cx, x, &method, &all)?.into())
}

/// Adds an axis with its scale to those that are to be resized; does at once what needs no known extent.
fn scaled(
    cx: &mut Context,
    x: ValueId,
    method: &Method,
    axis: usize,
    scale: f32,
    roi: (f32, f32),
    all: &mut Vec<Axis>,
) -> Result<ValueId, Failure> {
    if !(scale > 0.0 && scale.is_finite()) {
        return Err(Failure::invalid(format!("axis {axis} is scaled by {scale}")));
    }
    if scale == 1.0 && roi == (0.0, 1.0) {
        return Ok(x);
    }
    if cx.dims(x)[axis].as_size().is_none() && scale.fract() == 0.0 && repeats(method) {
        return repeat(cx, x, axis, scale as usize);
    }
    let input = cx.static_dims(x)?[axis];
    let output = (scale * input as f32).floor() as usize;
    all.push(Axis { axis, input, output, scale, roi });
    Ok(x)
}

/// Whether scaling by a whole number repeats every element.
fn repeats(method: &Method) -> bool {
    match (method.mode, method.coordinates) {
        (Mode::Nearest(Nearest::Floor), Coordinates::Asymmetric) => true,
        (Mode::Nearest(n), Coordinates::HalfPixel) => matches!(n, Nearest::PreferFloor | Nearest::PreferCeil),
        _ => false,
    }
}

fn sized(
    cx: &mut Context,
    mut x: ValueId,
    method: &Method,
    axes: &[usize],
    sizes: &[Expr],
    roi: &dyn Fn(usize) -> (f32, f32),
    all: &mut Vec<Axis>,
) -> Result<ValueId, Failure> {
    let policy = cx.node.string_or("keep_aspect_ratio_policy", "stretch")?;
    let stretch = match policy {
        "stretch" => true,
        "not_larger" | "not_smaller" => false,
        other => return Err(cx.node.attribute_value("keep_aspect_ratio_policy", format!("{other:?}")).into()),
    };
    let mut ratios = Vec::new();
    for (n, &axis) in axes.iter().enumerate() {
        let dim = cx.dims(x)[axis].clone();
        if stretch && sizes[n] == dim && roi(n) == (0.0, 1.0) {
            continue;
        }
        let times =
            sizes[n].floor_div(&dim).as_const().filter(|&k| dim.scale(k) == sizes[n] && dim.as_const().is_none());
        if let (Some(times), true, true) = (times.and_then(|k| usize::try_from(k).ok()), stretch, repeats(method)) {
            x = repeat(cx, x, axis, times)?;
            continue;
        }
        let input = cx.static_dims(x)?[axis];
        let output =
            sizes[n].as_const().ok_or_else(|| Failure::unsupported("`sizes` must be known; bind its symbols"))?;
        let output = usize::try_from(output).map_err(|_| Failure::invalid(format!("`sizes` holds {output}")))?;
        if input == 0 {
            return Err(Failure::invalid(format!("axis {axis} is empty")));
        }
        ratios.push(output as f64 / input as f64);
        all.push(Axis { axis, input, output, scale: output as f32 / input as f32, roi: roi(n) });
    }
    if !stretch {
        let pick = if policy == "not_larger" { f64::min } else { f64::max };
        let ratio = ratios.into_iter().reduce(pick).unwrap_or(1.0);
        for a in all.iter_mut() {
            a.scale = ratio as f32;
            a.output = (ratio * a.input as f64 + 0.5).floor() as usize;
        }
    }
    Ok(x)
}

/// `Upsample`: what `Resize` does with asymmetric coordinates, towards the lower neighbour.
fn upsample(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut x = cx.input(0)?;
    let scales = match cx.opset() >= 9 {
        true => numbers(cx, 1, "scales")?.unwrap_or_default(),
        false => cx.node.floats("scales")?.to_vec(),
    };
    if scales.len() != cx.rank(x) {
        return Err(Failure::invalid(format!("{} scales for {} axes", scales.len(), cx.rank(x))));
    }
    let mode = match cx.node.string_or("mode", "nearest")? {
        "nearest" => Mode::Nearest(Nearest::Floor),
        "linear" | "bilinear" => Mode::Linear,
        other => return Err(cx.node.attribute_value("mode", format!("{other:?} is none of ONNX's")).into()),
    };
    let coordinates = Coordinates::Asymmetric;
    let method = Method { mode, coordinates, antialias: false, exclude_outside: false, extrapolation: 0.0 };
    let mut all = Vec::new();
    for (axis, &scale) in scales.iter().enumerate() {
        x = scaled(cx, x, &method, axis, scale, (0.0, 1.0), &mut all)?;
    }
    Ok(apply(cx, x, &method, &all)?.into())
}

fn apply(cx: &mut Context, x: ValueId, method: &Method, axes: &[Axis]) -> Result<ValueId, Failure> {
    let dtype = cx.dtype(x);
    let mut out = cx.static_dims(x).unwrap_or_default();
    axes.iter().for_each(|a| {
        if let Some(d) = out.get_mut(a.axis) {
            *d = a.output
        }
    });
    kiln_ir::tensor::element_count(&out, 8)?;
    if axes.iter().any(|a| a.input == 0 && a.output > 0) {
        return Err(Failure::invalid("an axis without elements cannot be resized"));
    }
    if let Mode::Nearest(nearest) = method.mode {
        let mut x = x;
        for a in axes {
            let last = a.input.saturating_sub(1);
            let places: Vec<usize> =
                (0..a.output).map(|i| (nearest_to(a.origin(method, i), nearest).max(0.0) as usize).min(last)).collect();
            x = pick(cx, x, a.axis, &places)?;
            x = extrapolated(cx, x, method, a)?;
        }
        return Ok(x);
    }
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let mut y = cx.cast(x, wide)?;
    for a in axes {
        y = interpolated(cx, y, method, a)?;
        y = extrapolated(cx, y, method, a)?;
    }
    match dtype.int_range() {
        Some((low, high)) if !axes.is_empty() => cx.map(&[y], |b, args| {
            let rounded = b.round(args[0]);
            let (low, high) = (b.lit(rounded, low as f64), b.lit(rounded, high as f64));
            let raised = b.max(rounded, low);
            let clamped = b.min(raised, high);
            b.cast(dtype, clamped)
        }),
        _ => cx.cast(y, dtype),
    }
}

fn nearest_to(x: f32, mode: Nearest) -> f32 {
    let (floor, part) = (x.floor(), x - x.floor());
    match mode {
        Nearest::Floor => floor,
        Nearest::Ceil => x.ceil(),
        Nearest::PreferFloor => floor + f32::from(u8::from(part > 0.5)),
        Nearest::PreferCeil => floor + f32::from(u8::from(part >= 0.5)),
    }
}

impl Axis {
    /// The coordinate in the operand of element `i` of the result, in f32 as the scales are.
    fn origin(&self, method: &Method, i: usize) -> f32 {
        let (i, input, output) = (i as f32, self.input as f32, self.scale * self.input as f32);
        match method.coordinates {
            Coordinates::Asymmetric => i / self.scale,
            Coordinates::AlignCorners if output == 1.0 => 0.0,
            Coordinates::AlignCorners => i * (input - 1.0) / (output - 1.0),
            Coordinates::HalfPixel => (i + 0.5) / self.scale - 0.5,
            Coordinates::PytorchHalfPixel if output == 1.0 => -0.5,
            Coordinates::PytorchHalfPixel => (i + 0.5) / self.scale - 0.5,
            Coordinates::HalfPixelSymmetric => {
                let offset = input / 2.0 * (1.0 - self.output as f32 / output);
                offset + (i + 0.5) / self.scale - 0.5
            }
            Coordinates::TfCropAndResize => {
                let (start, length) = (self.roi.0 * (input - 1.0), (self.roi.1 - self.roi.0) * (input - 1.0));
                if output == 1.0 { length / 2.0 + start } else { i * length / (output - 1.0) + start }
            }
        }
    }

    fn is_outside(&self, method: &Method, i: usize) -> bool {
        let x = self.origin(method, i);
        method.coordinates == Coordinates::TfCropAndResize && !(0.0..=self.input as f32 - 1.0).contains(&x)
    }

    /// For each element of the result the first neighbour (it may lie outside) and the neighbours' weights, equally many.
    fn weights(&self, method: &Method) -> Vec<(i64, Vec<f64>)> {
        // Where the kernel is stretched over more neighbours to smooth before shrinking.
        let shrink = if method.antialias { f64::from(self.scale).min(1.0) } else { 1.0 };
        let reach = if matches!(method.mode, Mode::Cubic(_)) { 2.0 } else { 1.0 };
        let start = (-reach / shrink).floor() as i64 + 1;
        let kernel = |x: f64| {
            let x = x.abs();
            match method.mode {
                Mode::Cubic(a) if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
                Mode::Cubic(a) if x < 2.0 => ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a,
                Mode::Cubic(_) => 0.0,
                Mode::Linear | Mode::Nearest(_) => (1.0 - x).max(0.0),
            }
        };
        let line = |i: usize| {
            let x = f64::from(self.origin(method, i));
            // Of two neighbours at one distance the left one counts: the ratio lies in (0, 1].
            let base = x.ceil() - 1.0;
            let ratio = x - base;
            let mut weights: Vec<f64> = (start..2 - start).map(|n| kernel((n as f64 - ratio) * shrink)).collect();
            let first = base as i64 + start;
            if method.exclude_outside {
                for (n, w) in weights.iter_mut().enumerate() {
                    let place = first + n as i64;
                    *w = if place < 0 || place >= self.input as i64 { 0.0 } else { *w };
                }
            }
            let sum: f64 = weights.iter().sum();
            if (method.antialias || method.exclude_outside) && sum != 0.0 {
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            (first, weights)
        };
        (0..self.output).map(line).collect()
    }
}

fn interpolated(cx: &mut Context, x: ValueId, method: &Method, a: &Axis) -> Result<ValueId, Failure> {
    let (dtype, rank) = (cx.dtype(x), cx.rank(x));
    let lines = a.weights(method);
    let taps = lines.first().map_or(0, |(_, w)| w.len());
    let clamp = |place: i64| usize::try_from(place).unwrap_or(0).min(a.input.saturating_sub(1));
    if taps > MAX_TAPS || a.output == 0 {
        let mut matrix = vec![0.0; kiln_ir::tensor::element_count(&[a.output, a.input], 8)?];
        for (i, (first, weights)) in lines.iter().enumerate() {
            for (n, w) in weights.iter().enumerate() {
                matrix[i * a.input + clamp(first + n as i64)] += w;
            }
        }
        let matrix = floats(cx, dtype, &[a.output, a.input], &matrix)?;
        let letters: String = ('a'..='w').take(rank).collect();
        if letters.len() != rank {
            return Err(Failure::unsupported(format!("a tensor with {rank} axes is not resized")));
        }
        let summed = &letters[a.axis..=a.axis];
        let out = letters.replace(summed, "z");
        return cx.add(Contract::new(&letters, &format!("z{summed}"), &out), &[x, matrix]);
    }
    let mut terms = Vec::new();
    for n in 0..taps {
        let weights: Vec<f64> = lines.iter().map(|(_, w)| w[n]).collect();
        if weights.iter().all(|&w| w == 0.0) {
            continue;
        }
        let places: Vec<usize> = lines.iter().map(|(first, _)| clamp(first + n as i64)).collect();
        terms.push(pick(cx, x, a.axis, &places)?);
        let weights = floats(cx, dtype, &[weights.len()], &weights)?;
        terms.push(cx.along(weights, a.axis, rank)?);
    }
    cx.map(&terms, |b, args| {
        let products: Vec<_> = args.chunks(2).map(|p| b.mul(p[0], p[1])).collect();
        products.into_iter().reduce(|sum, p| b.add(sum, p)).unwrap_or(args[0])
    })
}

/// The extrapolation value where the coordinate lies outside of the operand.
fn extrapolated(cx: &mut Context, x: ValueId, method: &Method, a: &Axis) -> Result<ValueId, Failure> {
    let outside: Vec<u8> = (0..a.output).map(|i| u8::from(a.is_outside(method, i))).collect();
    if outside.iter().all(|&o| o == 0) {
        return Ok(x);
    }
    let mask = cx.constant(Tensor::new(DType::Bool, vec![a.output], outside)?);
    let mask = cx.along(mask, a.axis, cx.rank(x))?;
    cx.map(&[mask, x], |b, args| {
        let value = b.lit(args[1], method.extrapolation);
        b.select(args[0], value, args[1])
    })
}
