//! Steps of optimizers: `Adagrad`, `Adam` and `Momentum` of `ai.onnx.preview.training`.

use super::{Spec, of};
use crate::onnx::import::{Body, Context, Failure, Outputs, S};
use kiln_ir::graph::ValueId;

const DOMAIN: &str = "ai.onnx.preview.training";

pub(super) const OPS: &[Spec] = &[
    of(DOMAIN, "Adagrad", &["decay_factor", "epsilon", "norm_coefficient"], adagrad),
    of(DOMAIN, "Adam", &["alpha", "beta", "epsilon", "norm_coefficient", "norm_coefficient_post"], adam),
    of(DOMAIN, "Momentum", &["alpha", "beta", "mode", "norm_coefficient"], momentum),
];

fn attribute(cx: &Context, name: &str, default: f32) -> Result<f64, Failure> {
    Ok(f64::from(cx.node.float_or(name, default)?))
}

/// The rate, the step's number as a float, and for each tensor its `kinds` values: the tensor, its gradient, its states.
fn operands(cx: &mut Context, kinds: usize) -> Result<(ValueId, ValueId, Vec<Vec<ValueId>>), Failure> {
    let inputs = cx.all_inputs()?;
    let [rate, step, rest @ ..] = inputs.as_slice() else { return Err(Failure::invalid("inputs are missing")) };
    if rest.is_empty() || rest.len() % kinds != 0 {
        return Err(Failure::invalid(format!("{} inputs are not {kinds} for each tensor", rest.len())));
    }
    let dtype = cx.dtype(rest[0]);
    let (rate, step) = (cx.cast(*rate, dtype)?, cx.cast(*step, dtype)?);
    let count = rest.len() / kinds;
    let sets = (0..count).map(|i| (0..kinds).map(|k| rest[k * count + i]).collect()).collect();
    Ok((rate, step, sets))
}

/// All new tensors, then all of each state.
fn collected(results: Vec<Vec<ValueId>>) -> Outputs {
    let kinds = results.first().map_or(0, Vec::len);
    (0..kinds).flat_map(|k| results.iter().map(move |r| r[k])).collect::<Vec<_>>().into()
}

/// `g + norm * x`.
fn regularized(b: &mut Body, g: S, x: S, norm: f64) -> S {
    let norm = b.lit(x, norm);
    let decay = b.mul(norm, x);
    b.add(decay, g)
}

fn adagrad(cx: &mut Context) -> Result<Outputs, Failure> {
    let (decay, epsilon) = (attribute(cx, "decay_factor", 0.0)?, attribute(cx, "epsilon", 1e-6)?);
    let norm = attribute(cx, "norm_coefficient", 0.0)?;
    let (rate, step, sets) = operands(cx, 3)?;
    let mut results = Vec::new();
    for set in sets {
        let (x, g, h) = (set[0], set[1], set[2]);
        let h = cx.map(&[x, g, h], |b, a| {
            let g = regularized(b, a[1], a[0], norm);
            let square = b.mul(g, g);
            b.add(a[2], square)
        })?;
        let x = cx.map(&[x, g, h, rate, step], |b, a| {
            let g = regularized(b, a[1], a[0], norm);
            let (one, decay, epsilon) = (b.lit(g, 1.0), b.lit(g, decay), b.lit(g, epsilon));
            let (slower, root) = (b.mul(a[4], decay), b.sqrt(a[2]));
            let (slower, root) = (b.add(one, slower), b.add(root, epsilon));
            let rate = b.div(a[3], slower);
            let change = b.mul(rate, g);
            let change = b.div(change, root);
            b.sub(a[0], change)
        })?;
        results.push(vec![x, h]);
    }
    Ok(collected(results))
}

fn adam(cx: &mut Context) -> Result<Outputs, Failure> {
    let (alpha, beta) = (attribute(cx, "alpha", 0.9)?, attribute(cx, "beta", 0.999)?);
    let (epsilon, norm) = (attribute(cx, "epsilon", 1e-6)?, attribute(cx, "norm_coefficient", 0.0)?);
    let post = attribute(cx, "norm_coefficient_post", 0.0)?;
    let (rate, step, sets) = operands(cx, 4)?;
    // In the first step nothing is corrected.
    let rate = cx.map(&[rate, step], |b, a| {
        let (zero, one) = (b.lit(a[0], 0.0), b.lit(a[0], 1.0));
        let (alpha, beta) = (b.lit(a[0], alpha), b.lit(a[0], beta));
        let (alpha, beta) = (b.pow(alpha, a[1]), b.pow(beta, a[1]));
        let (alpha, beta) = (b.sub(one, alpha), b.sub(one, beta));
        let root = b.sqrt(beta);
        let scaled = b.mul(a[0], root);
        let (corrected, later) = (b.div(scaled, alpha), b.gt(a[1], zero));
        b.select(later, corrected, a[0])
    })?;
    let mut results = Vec::new();
    for set in sets {
        let (x, g) = (set[0], set[1]);
        let average = |cx: &mut Context, old: ValueId, factor: f64, square: bool| {
            cx.map(&[x, g, old], |b, a| {
                let g = regularized(b, a[1], a[0], norm);
                let new = if square { b.mul(g, g) } else { g };
                let (keep, take) = (b.lit(g, factor), b.lit(g, 1.0 - factor));
                let (kept, taken) = (b.mul(keep, a[2]), b.mul(take, new));
                b.add(kept, taken)
            })
        };
        let (v, h) = (average(cx, set[2], alpha, false)?, average(cx, set[3], beta, true)?);
        let x = cx.map(&[x, v, h, rate], |b, a| {
            let (epsilon, shrink) = (b.lit(a[0], epsilon), b.lit(a[0], 1.0 - post));
            let root = b.sqrt(a[2]);
            let root = b.add(root, epsilon);
            let change = b.div(a[1], root);
            let change = b.mul(a[3], change);
            let new = b.sub(a[0], change);
            b.mul(shrink, new)
        })?;
        results.push(vec![x, v, h]);
    }
    Ok(collected(results))
}

fn momentum(cx: &mut Context) -> Result<Outputs, Failure> {
    let (alpha, beta) = (f64::from(cx.node.float("alpha")?), f64::from(cx.node.float("beta")?));
    let norm = f64::from(cx.node.float("norm_coefficient")?);
    let nesterov = match cx.node.string("mode")? {
        "standard" => false,
        "nesterov" => true,
        other => return Err(cx.node.attribute_value("mode", format!("{other:?} is none of ONNX's")).into()),
    };
    let (rate, step, sets) = operands(cx, 3)?;
    let mut results = Vec::new();
    for set in sets {
        let (x, g) = (set[0], set[1]);
        let v = cx.map(&[x, g, set[2], step], |b, a| {
            let g = regularized(b, a[1], a[0], norm);
            let (zero, one) = (b.lit(g, 0.0), b.lit(g, 1.0));
            let (alpha, beta) = (b.lit(g, alpha), b.lit(g, beta));
            let later = b.gt(a[3], zero);
            let weight = b.select(later, beta, one);
            let (kept, taken) = (b.mul(alpha, a[2]), b.mul(weight, g));
            b.add(kept, taken)
        })?;
        let x = cx.map(&[x, g, v, rate], |b, a| {
            let direction = if nesterov {
                let g = regularized(b, a[1], a[0], norm);
                let alpha = b.lit(g, alpha);
                let ahead = b.mul(alpha, a[2]);
                b.add(g, ahead)
            } else {
                a[2]
            };
            let change = b.mul(a[3], direction);
            b.sub(a[0], change)
        })?;
        results.push(vec![x, v]);
    }
    Ok(collected(results))
}
