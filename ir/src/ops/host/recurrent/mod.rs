//! `lstm`, `gru` and `rnn`: recurrent layers over `x[time, batch, input]`, in one or both directions.
//!
//! Invariant: a cell sees one direction and one time step of one sequence; order of time, lengths and directions are dealt
//! with here, once. Everything is computed in f64 and rounded when it is stored.

mod activation;
mod gru;
mod lstm;
mod rnn;

use super::Function;
use super::element::{floats, from_floats, ints, same, types};
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError};
use crate::tensor::Tensor;
use activation::Activation;

/// Operands of all three: `x[time, batch, input]`, `w[directions, gates * hidden, input]`, `r[directions, gates * hidden,
/// hidden]`, `b[directions, 2 * gates * hidden]`, `h[directions, batch, hidden]`, `lengths[batch]` (integers). Results:
/// `y[time, directions, batch, hidden]` (0 beyond a sequence's length) and the last `h`.
/// Attributes: `reverse` (the first direction runs backwards; a second one always does), `activations` (text, for each
/// direction those of its cell), `clip` (f64; bound of what goes into activations, infinity for none).
///
/// `lstm`: gates i o f c; further operands `c[directions, batch, hidden]` and peepholes `p[directions, 3 * hidden]` (i o f);
/// further result: the last `c`. Attribute `coupled`: the forget gate is one minus the input gate. All three: attribute
/// `rounded` (may be absent): what the recurrent weights are multiplied with is rounded to 8 bits, see [`rounded`].
pub(super) const LSTM: Function = Function {
    name: "lstm",
    infer: |a, inputs| infer(&lstm::CELL, a, inputs),
    eval: |a, inputs| eval(&lstm::CELL, a, inputs),
};

/// Gates z r h; attribute `reset_after`: the reset gate applies after the recurrent product. See [`LSTM`].
pub(super) const GRU: Function = Function {
    name: "gru",
    infer: |a, inputs| infer(&gru::CELL, a, inputs),
    eval: |a, inputs| eval(&gru::CELL, a, inputs),
};

/// One gate. See [`LSTM`].
pub(super) const RNN: Function = Function {
    name: "rnn",
    infer: |a, inputs| infer(&rnn::CELL, a, inputs),
    eval: |a, inputs| eval(&rnn::CELL, a, inputs),
};

/// What tells the three apart.
struct Cell {
    gates: usize,
    activations: usize,
    /// Whether there are a cell state and peepholes.
    memory: bool,
    /// The cell's own attribute, if it has one.
    flag: Option<&'static str>,
    step: fn(&Step<'_>, &mut State),
}

/// What a cell reads in one step.
struct Step<'a> {
    hidden: usize,
    /// `W x + bW` of all gates.
    input: &'a [f64],
    /// The recurrent weights, transposed: `[hidden, gates * hidden]`.
    recurrent: &'a [f64],
    /// The recurrent bias of all gates.
    bias: &'a [f64],
    peepholes: &'a [f64],
    activations: &'a [Activation],
    clip: f64,
    flag: bool,
    /// To what the state is rounded before it is multiplied, if it is.
    rounding: Option<(f32, f32)>,
}

/// What one sequence carries from step to step.
struct State {
    h: Vec<f64>,
    c: Vec<f64>,
}

impl Step<'_> {
    fn activate(&self, n: usize, x: f64) -> f64 {
        self.activations[n].of(x.clamp(-self.clip, self.clip))
    }

    /// `R v + bR` for gates `first..last`.
    fn product(&self, v: &[f64], first: usize, last: usize) -> Vec<f64> {
        let (from, to) = (first * self.hidden, last * self.hidden);
        let mut sum = self.bias[from..to].to_vec();
        for (row, &v) in self.recurrent.chunks(self.bias.len()).zip(v) {
            let v = self.rounding.map_or(v, |s| rounded(v, s));
            sum.iter_mut().zip(&row[from..to]).for_each(|(s, r)| *s += r * v);
        }
        sum
    }
}

/// The step and zero point of 256 numbers that cover the values and 0; nothing where all are 0. In f32, as
/// `DynamicQuantizeLinear` is defined.
fn step_of<'a>(values: impl Iterator<Item = &'a f64> + Clone) -> Option<(f32, f32)> {
    let bound = |f: fn(f32, f32) -> f32| values.clone().fold(0.0f32, |m, &v| f(m, v as f32));
    let (low, high) = (bound(f32::min), bound(f32::max));
    let step = (high - low) / 255.0;
    (step > 0.0).then(|| (step, (-low / step).round_ties_even().clamp(0.0, 255.0)))
}

/// The nearest of the 256 numbers.
fn rounded(v: f64, (step, zero): (f32, f32)) -> f64 {
    let q = ((v as f32 / step).round_ties_even() + zero).clamp(0.0, 255.0);
    f64::from((q - zero) * step)
}

fn clip(a: &Attributes) -> Result<f64, OpError> {
    let clip = a.constant("clip")?.as_f64();
    if clip >= 0.0 { Ok(clip) } else { Err(OpError::new("`clip` is negative")) }
}

fn is_rounded(a: &Attributes) -> Result<bool, OpError> {
    if a.get("rounded").is_some() { a.bool("rounded") } else { Ok(false) }
}

fn infer(cell: &Cell, a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let (base, memory) = match (inputs, cell.memory) {
        (&[x, w, r, b, h, lengths], false) => ([x, w, r, b, h, lengths], None),
        (&[x, w, r, b, h, lengths, c, p], true) => ([x, w, r, b, h, lengths], Some((c, p))),
        _ => return Err(OpError::new(format!("takes {} operands", if cell.memory { 8 } else { 6 }))),
    };
    let [x, w, r, b, h, lengths] = base;
    let floats = [x, w, r, b, h].into_iter().chain(memory.into_iter().flat_map(|(c, p)| [c, p]));
    if !x.dtype.is_float() || floats.clone().any(|t| t.dtype != x.dtype) || !lengths.dtype.is_int() {
        return Err(OpError::new("wants operands of one float type and integer lengths"));
    }
    let ranks = [(x, 3), (w, 3), (r, 3), (b, 2), (h, 3), (lengths, 1)];
    let ranks = ranks.into_iter().chain(memory.into_iter().flat_map(|(c, p)| [(c, 3), (p, 2)]));
    if let Some((t, rank)) = ranks.clone().find(|(t, rank)| t.rank() != *rank) {
        return Err(OpError::new(format!("operand {t} must have {rank} axes")));
    }
    let hidden = &r.dims[2];
    let gates = hidden.scale(cell.gates as i64);
    let directions = w.dims[0].as_size().filter(|d| (1..=2).contains(d));
    let directions = directions.ok_or_else(|| OpError::new("wants one or two directions"))?;
    let axes = [
        (&w.dims[1], &gates),
        (&w.dims[2], &x.dims[2]),
        (&r.dims[0], &w.dims[0]),
        (&r.dims[1], &gates),
        (&b.dims[0], &w.dims[0]),
        (&b.dims[1], &gates.scale(2)),
        (&h.dims[0], &w.dims[0]),
        (&h.dims[1], &x.dims[1]),
        (&h.dims[2], hidden),
        (&lengths.dims[0], &x.dims[1]),
    ];
    axes.into_iter().try_for_each(|(a, b)| same("extents of the operands", a, b))?;
    if let Some((c, p)) = memory {
        c.dims.iter().zip(&h.dims).try_for_each(|(a, b)| same("extents of c and h", a, b))?;
        same("extents of p", &p.dims[0], &w.dims[0])?;
        same("extents of p", &p.dims[1], &hidden.scale(3))?;
    }
    a.bool("reverse")?;
    cell.flag.map_or(Ok(false), |flag| a.bool(flag))?;
    clip(a)?;
    is_rounded(a)?;
    activation::parse(a.word("activations")?, directions * cell.activations)?;
    let y = vec![x.dims[0].clone(), w.dims[0].clone(), x.dims[1].clone(), hidden.clone()];
    let state = TensorType::new(x.dtype, h.dims.clone());
    let mut results = vec![TensorType::new(x.dtype, y), state.clone()];
    results.extend(cell.memory.then_some(state));
    Ok(results)
}

fn eval(cell: &Cell, a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let operand_types = types(inputs);
    let results = infer(cell, a, &operand_types.iter().collect::<Vec<_>>())?;
    let shapes: Vec<Vec<usize>> = results.iter().filter_map(TensorType::shape).collect();
    let &[time, directions, batch, hidden] = shapes[0].as_slice() else { return Err(OpError::new("wants known dims")) };
    let input = inputs[0].shape()[2];
    let wide = cell.gates * hidden;
    let [x, w, r, b, h] = [0, 1, 2, 3, 4].map(|n| floats(&inputs[n]));
    let (x, w, r, b, mut last_h) = (x?, w?, r?, b?, h?);
    let lengths = ints(&inputs[5])?;
    let (mut last_c, peepholes) = match cell.memory {
        true => (floats(&inputs[6])?, floats(&inputs[7])?),
        false => (vec![], vec![]),
    };
    let activations = activation::parse(a.word("activations")?, directions * cell.activations)?;
    let mut y = vec![0.0; crate::tensor::element_count(&shapes[0], 8)?];
    for direction in 0..directions {
        let backwards = direction == 1 || a.bool("reverse")?;
        let w = transposed(&w[direction * wide * input..][..wide * input], wide, input);
        let recurrent = transposed(&r[direction * wide * hidden..][..wide * hidden], wide, hidden);
        let biases = &b[direction * 2 * wide..][..2 * wide];
        let mut sequences = Vec::with_capacity(batch);
        for sequence in 0..batch {
            let length = usize::try_from(lengths[sequence]).ok().filter(|&l| l <= time);
            let length = length.ok_or_else(|| {
                OpError::new(format!("sequence {sequence} has length {}, there are {time} steps", lengths[sequence]))
            })?;
            let place = (direction * batch + sequence) * hidden;
            let memory = last_c.get(place..place + hidden).unwrap_or_default().to_vec();
            sequences.push((length, State { h: last_h[place..place + hidden].to_vec(), c: memory }));
        }
        for n in 0..time {
            crate::interp::limits::check_time()?;
            // The states of all sequences are rounded to the same 256 numbers, as one product takes them.
            let states = sequences.iter().filter(|(length, _)| n < *length).flat_map(|(_, state)| &state.h);
            let rounding = if is_rounded(a)? { step_of(states) } else { None };
            for (sequence, (length, state)) in sequences.iter_mut().enumerate().filter(|(_, (length, _))| n < *length) {
                let t = if backwards { *length - 1 - n } else { n };
                let mut projected = biases[..wide].to_vec();
                let values = &x[(t * batch + sequence) * input..][..input];
                for (row, &v) in w.chunks(wide.max(1)).zip(values) {
                    projected.iter_mut().zip(row).for_each(|(s, w)| *s += w * v);
                }
                let step = Step {
                    hidden,
                    input: &projected,
                    recurrent: &recurrent,
                    bias: &biases[wide..],
                    peepholes: peepholes.get(direction * 3 * hidden..(direction + 1) * 3 * hidden).unwrap_or_default(),
                    activations: &activations[direction * cell.activations..][..cell.activations],
                    clip: clip(a)?,
                    flag: cell.flag.map_or(Ok(false), |flag| a.bool(flag))?,
                    rounding,
                };
                (cell.step)(&step, state);
                y[((t * directions + direction) * batch + sequence) * hidden..][..hidden].copy_from_slice(&state.h);
            }
        }
        for (sequence, (_, state)) in sequences.iter().enumerate() {
            let place = (direction * batch + sequence) * hidden;
            last_h[place..place + hidden].copy_from_slice(&state.h);
            if let Some(slot) = last_c.get_mut(place..place + hidden) {
                slot.copy_from_slice(&state.c);
            }
        }
    }
    let dtype = inputs[0].dtype();
    let mut made = vec![from_floats(dtype, &shapes[0], &y)?, from_floats(dtype, &shapes[1], &last_h)?];
    if cell.memory {
        made.push(from_floats(dtype, &shapes[1], &last_c)?);
    }
    Ok(made)
}

fn transposed(m: &[f64], rows: usize, columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| (0..rows).map(move |i| m[i * columns + j])).collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, run};
    use super::*;
    use crate::{Constant, DType};

    fn t(shape: &[usize], values: &[f32]) -> Tensor {
        Tensor::from_f32(shape, values).unwrap()
    }

    fn attributes(activations: &str) -> Attributes {
        let text = crate::ops::Attribute::Text(activations.into());
        let clip = Constant::float(DType::F64, f64::INFINITY);
        Attributes::new().with("reverse", false).with("activations", text).with("clip", clip)
    }

    #[test]
    fn rnn_runs_both_ways_within_lengths() {
        // h' = x + 2 h, in both directions, sequences of length 3 and 2.
        let x = t(&[3, 2, 1], &[1., 10., 2., 20., 3., 30.]);
        let (w, r) = (t(&[2, 1, 1], &[1., 1.]), t(&[2, 1, 1], &[2., 2.]));
        let (b, h) = (t(&[2, 2], &[0.; 4]), t(&[2, 2, 1], &[0.; 4]));
        let of =
            |l: &[i64]| [x.clone(), w.clone(), r.clone(), b.clone(), h.clone(), Tensor::from_i64(&[2], l).unwrap()];
        let result = run("rnn", attributes("Affine 1 0,Affine 1 0"), &of(&[3, 2]));
        // [time, direction, batch]
        assert_eq!(result[0].to_f32().unwrap(), [1., 10., 17., 50., 4., 40., 8., 20., 11., 0., 3., 0.]);
        assert_eq!(result[1].to_f32().unwrap(), [11., 40., 17., 50.]);
        assert!(fails("rnn", attributes("Affine 1 0,Affine 1 0"), &of(&[3, 4])).contains("length 4"));
    }

    #[test]
    fn lstm_with_identity_gates() {
        // Affine activations make every gate linear: i = o = f = x + h, c~ = x + h.
        let x = t(&[2, 1, 1], &[1., 2.]);
        let (w, r, b) = (t(&[1, 4, 1], &[1.; 4]), t(&[1, 4, 1], &[1.; 4]), t(&[1, 8], &[0.; 8]));
        let (h, p) = (t(&[1, 1, 1], &[0.]), t(&[1, 3], &[0., 1., 0.]));
        let inputs = [x, w, r, b, h.clone(), Tensor::from_i64(&[1], &[2]).unwrap(), h, p];
        let a = attributes("Affine 1 0,Affine 1 0,Affine 1 0").with("coupled", false);
        let result = run("lstm", a, &inputs);
        // Step 1: c = 1, o = 1 + 1 * c = 2, h = 2. Step 2: g = 4: c = 4*1 + 4*4 = 20, o = 4 + 20 = 24, h = 480.
        assert_eq!(result[0].to_f32().unwrap(), [2., 480.]);
        assert_eq!(result[2].to_f32().unwrap(), [20.]);
    }

    #[test]
    fn the_state_is_rounded_to_256_numbers() {
        // h' = x + h from h = (1, 0.3): 0.3 is 76.5 steps of 1 / 255, which rounds to the even 76, and 0 is kept exactly.
        let x = t(&[1, 1, 1], &[0.]);
        let (w, r) = (t(&[1, 2, 1], &[0., 0.]), t(&[1, 2, 2], &[1., 0., 0., 1.]));
        let (b, h) = (t(&[1, 4], &[0.; 4]), t(&[1, 1, 2], &[1., 0.3]));
        let inputs = [x, w, r, b, h, Tensor::from_i64(&[1], &[1]).unwrap()];
        let result = run("rnn", attributes("Affine 1 0").with("rounded", true), &inputs)[1].to_f32().unwrap();
        assert_eq!(result, [255.0 * (1.0 / 255.0), 76.0 * (1.0 / 255.0)]);
        assert_eq!(step_of([0.0, 0.0].iter()), None);
        assert_eq!(rounded(-3.0, step_of([-3.0, 0.0].iter()).unwrap()), f64::from(-255.0f32 * (3.0 / 255.0)));
    }

    #[test]
    fn gru_before_and_after() {
        // z = 0.5 x, r = h, candidate = x + r (R h + 1) or x + R (r h) + 1, with R = 1, from h = 2.
        let x = t(&[1, 1, 1], &[1.]);
        let (w, r) = (t(&[1, 3, 1], &[0.5, 0., 1.]), t(&[1, 3, 1], &[0., 1., 1.]));
        let (b, h) = (t(&[1, 6], &[0., 0., 0., 0., 0., 1.]), t(&[1, 1, 1], &[2.]));
        let inputs = [x, w, r, b, h, Tensor::from_i64(&[1], &[1]).unwrap()];
        let of = |after| {
            let a = attributes("Affine 1 0,Affine 1 0").with("reset_after", after);
            run("gru", a, &inputs)[1].to_f32().unwrap()[0]
        };
        assert_eq!(of(true), 0.5 * (1. + 2. * 3.) + 0.5 * 2.);
        assert_eq!(of(false), 0.5 * (1. + 4. + 1.) + 0.5 * 2.);
    }
}
