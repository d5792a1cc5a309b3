//! Recurrent layers as products and elementwise work that kernels compute: over a small known number of steps written out, over any
//! other number as a `scan`, whose body is one step of all directions.
//!
//! Invariant: a layer means the same in every form; see `kiln_ir::ops::host` for its definition, which runs the rest.

use super::quantize::rounded;
use crate::body::{Body, S};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Concat, Contract, Gather, Iota, Slice};
use kiln_ir::{DType, Expr, TensorType};

/// Most steps, over both directions, that are written out: code grows with each.
const MOST_STEPS: usize = 128;

/// What a layer computes with; see the host op for the operands.
pub(super) struct Layer {
    /// `lstm`, `gru` or `rnn`.
    pub name: &'static str,
    pub gates: usize,
    pub reverse: bool,
    pub clip: f64,
    /// Names of the activations, with parameters.
    pub activations: String,
    /// The forget gate is one minus the input gate; the reset gate applies after the product.
    pub flag: bool,
    /// What is multiplied is rounded to 8 bits before, and the rest computed bit by bit as ONNX Runtime does: a state that one bit
    /// moves over the middle between two of those 256 numbers is a different one.
    pub rounded: bool,
    /// The weights as 8-bit integers, where they are constant ones.
    pub integers: Option<Integers>,
    pub x: ValueId,
    pub w: ValueId,
    pub r: ValueId,
    pub b: ValueId,
    pub h: ValueId,
    pub c: Option<ValueId>,
    /// Lengths of the sequences, where there are any.
    pub lengths: Option<ValueId>,
    /// What gates see of the cell: `[directions, 3 * hidden]` (i o f).
    pub peepholes: Option<ValueId>,
}

/// Constant weights of few bits, each direction's by itself.
pub(super) struct Integers {
    /// `[input, gates * hidden]`.
    pub w: Vec<Steps>,
    /// `[hidden, gates * hidden]`.
    pub r: Vec<Steps>,
}

/// Numbers as 8-bit integers with a scale and a zero point, for all of them or for each column.
#[derive(Clone, Copy)]
pub(super) struct Steps {
    pub x: ValueId,
    pub scale: ValueId,
    pub zero: ValueId,
}

impl Steps {
    fn real(self, cx: &mut Context) -> Result<ValueId, Failure> {
        cx.map(&[self.x, self.scale, self.zero], |b, a| {
            let (x, zero) = (b.cast(DType::I32, a[0]), b.cast(DType::I32, a[2]));
            let steps = b.sub(x, zero);
            let steps = b.cast(DType::F32, steps);
            b.mul(steps, a[1])
        })
    }
}

/// An activation with its parameters.
#[derive(Clone, Copy)]
enum Activation {
    Tanh,
    Sigmoid,
    /// ONNX Runtime's approximations.
    RationalTanh,
    RationalSigmoid,
    Relu,
    Affine(f64, f64),
    LeakyRelu(f64),
    ThresholdedRelu(f64),
    ScaledTanh(f64, f64),
    HardSigmoid(f64, f64),
    Elu(f64),
    Softsign,
}

impl Activation {
    /// A name and its parameters, as the host op reads them; nothing for what scalar code does not have.
    fn parse(text: &str, rational: bool) -> Option<Activation> {
        let mut words = text.split_whitespace();
        let name = words.next()?.to_ascii_lowercase();
        let mut parameter = || words.next().and_then(|w| w.parse::<f64>().ok());
        Some(match name.as_str() {
            "tanh" if rational => Activation::RationalTanh,
            "sigmoid" if rational => Activation::RationalSigmoid,
            "tanh" => Activation::Tanh,
            "sigmoid" => Activation::Sigmoid,
            "relu" => Activation::Relu,
            "softsign" => Activation::Softsign,
            "affine" => Activation::Affine(parameter()?, parameter()?),
            "leakyrelu" => Activation::LeakyRelu(parameter()?),
            "thresholdedrelu" => Activation::ThresholdedRelu(parameter()?),
            "scaledtanh" => Activation::ScaledTanh(parameter()?, parameter()?),
            "hardsigmoid" => Activation::HardSigmoid(parameter()?, parameter()?),
            "elu" => Activation::Elu(parameter()?),
            _ => return None,
        })
    }

    fn of(self, b: &mut Body, x: S) -> S {
        let number = |b: &mut Body, v: f64| b.lit(x, v);
        match self {
            Activation::Tanh => b.tanh(x),
            Activation::Sigmoid => b.sigmoid(x),
            Activation::RationalTanh => rational(b, x, 9.0, &TANH.0, &TANH.1),
            Activation::RationalSigmoid => {
                let centred = rational(b, x, 18.0, &SIGMOID.0, &SIGMOID.1);
                let (half, zero) = (number(b, 0.5), number(b, 0.0));
                let y = b.add(centred, half);
                b.max(y, zero)
            }
            Activation::Relu => {
                let zero = number(b, 0.0);
                b.max(x, zero)
            }
            Activation::Affine(alpha, beta) => scaled(b, x, alpha, beta),
            Activation::LeakyRelu(alpha) => {
                let zero = number(b, 0.0);
                let (below, low) = (b.lt(x, zero), scaled(b, x, alpha, 0.0));
                b.select(below, low, x)
            }
            Activation::ThresholdedRelu(alpha) => {
                let (alpha, zero) = (number(b, alpha), number(b, 0.0));
                let above = b.gt(x, alpha);
                b.select(above, x, zero)
            }
            Activation::ScaledTanh(alpha, beta) => {
                let inside = scaled(b, x, beta, 0.0);
                let inside = b.tanh(inside);
                scaled(b, inside, alpha, 0.0)
            }
            Activation::HardSigmoid(alpha, beta) => {
                let line = scaled(b, x, alpha, beta);
                let (zero, one) = (number(b, 0.0), number(b, 1.0));
                let line = b.max(line, zero);
                b.min(line, one)
            }
            Activation::Elu(alpha) => {
                // The exponential of what is not below 0 is not looked at.
                let (zero, one) = (number(b, 0.0), number(b, 1.0));
                let low = b.min(x, zero);
                let low = b.exp(low);
                let low = b.sub(low, one);
                let (below, low) = (b.lt(x, zero), scaled(b, low, alpha, 0.0));
                b.select(below, low, x)
            }
            Activation::Softsign => {
                let (size, one) = (b.abs(x), number(b, 1.0));
                let size = b.add(one, size);
                b.div(x, size)
            }
        }
    }
}

/// Numerator over `x` and denominator as polynomials in `x^2`, highest power first: those of Eigen's `ptanh_float` and of
/// `MlasComputeLogistic` less one half, within 5 ulp of the function and within 2e-8 of it where it is near 0.
const TANH: ([f32; 7], [f32; 4]) = (
    [-2.760_768_4e-16, 2.000_188e-13, -8.604_672e-11, 5.122_297_3e-8, 1.485_722_35e-5, 6.372_619_5e-4, 4.893_524_6e-3],
    [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_7e-3, 4.893_525e-3],
);
const SIGMOID: ([f32; 5], [f32; 6]) = (
    [4.370_31e-11, 1.156_273_2e-7, 6.085_749e-5, 8.513_771e-3, 2.482_879_5e-1],
    [6.102_473_7e-13, 5.761_021_4e-9, 6.291_068e-6, 1.701_988_2e-3, 1.168_176_5e-1, 9.931_519e-1],
);

/// `x p(x^2) / q(x^2)`, with `x` held within the limit; every step of the polynomials is rounded once.
fn rational(b: &mut Body, x: S, limit: f64, p: &[f32], q: &[f32]) -> S {
    let (low, high) = (b.lit(x, -limit), b.lit(x, limit));
    let x = b.max(x, low);
    let x = b.min(x, high);
    let square = b.mul(x, x);
    let mut polynomial = |coefficients: &[f32]| {
        let mut all = coefficients.iter().map(|&c| f64::from(c));
        let mut sum = b.lit(x, all.next().unwrap_or(0.0));
        for c in all {
            let c = b.lit(x, c);
            sum = b.fma(sum, square, c);
        }
        sum
    };
    let (p, q) = (polynomial(p), polynomial(q));
    let p = b.mul(p, x);
    b.div(p, q)
}

/// `alpha x + beta`.
fn scaled(b: &mut Body, x: S, alpha: f64, beta: f64) -> S {
    let by = b.lit(x, alpha);
    let line = b.mul(by, x);
    if beta == 0.0 {
        return line;
    }
    let beta = b.lit(x, beta);
    b.add(line, beta)
}

/// The directions and activations of a layer whose types and functions kernels have.
fn parts(cx: &Context, layer: &Layer) -> Option<(usize, Vec<Activation>)> {
    let directions = cx.dims(layer.w).first()?.as_size()?;
    let activations = layer.activations.split(',').map(|a| Activation::parse(a, layer.rounded));
    let activations = activations.collect::<Option<Vec<Activation>>>()?;
    let float = matches!(cx.dtype(layer.x), DType::F32 | DType::F64);
    let wanted = match layer.name {
        "lstm" => 3,
        "gru" => 2,
        _ => 1,
    };
    (float && activations.len() == directions * wanted).then_some((directions, activations))
}

/// The lengths as i64, each of which must be in 0..=time: they are picked from those that there are, so that another one is an index
/// out of range.
fn within_time(cx: &mut Context, lengths: ValueId, time: &Expr) -> Result<ValueId, Failure> {
    let lengths = cx.cast(lengths, DType::I64)?;
    // Negative indices would count from the end.
    let places = cx.map(&[lengths], |b, a| {
        let (zero, far) = (b.lit(a[0], 0.0), b.lit(a[0], -2f64.powi(52)));
        let (negative, moved) = (b.lt(a[0], zero), b.add(a[0], far));
        b.select(negative, moved, a[0])
    })?;
    let known = cx.add(Iota { dims: vec![time.add(&Expr::from(1i64))], axis: 0 }, &[])?;
    cx.add(Gather { axis: 0 }, &[known, places])
}

/// The results of the host op, written out; nothing where the layer is not of the kind that is.
pub(super) fn written_out(cx: &mut Context, layer: &Layer) -> Result<Option<Vec<ValueId>>, Failure> {
    let Some((directions, activations)) = parts(cx, layer) else { return Ok(None) };
    let Some(time) = cx.dims(layer.x)[0].as_size().filter(|&n| n > 0 && n * directions <= MOST_STEPS) else {
        return Ok(None);
    };
    if layer.lengths.is_some() {
        return Ok(None);
    }
    let each = activations.len() / directions;
    let hidden = cx.dims(layer.r)[2].clone();
    let (mut ys, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for d in 0..directions {
        let direction = Direction::new(cx, layer, d, &hidden, &activations[d * each..][..each])?;
        let mut state = (part(cx, layer.h, d)?, layer.c.map(|c| part(cx, c, d)).transpose()?);
        let backwards = d == 1 || layer.reverse;
        let mut steps = vec![state.0; time];
        for n in 0..time {
            let t = if backwards { time - 1 - n } else { n };
            let x = part(cx, direction.projected, t)?;
            state = direction.step(cx, x, state)?;
            steps[t] = state.0;
        }
        let steps = steps.into_iter().map(|v| led(cx, v, 2)).collect::<Result<Vec<_>, _>>()?;
        ys.push(joined(cx, &steps, 0)?);
        last_h.push(led(cx, state.0, 1)?);
        if let Some(c) = state.1 {
            last_c.push(led(cx, c, 1)?);
        }
    }
    let mut results = vec![joined(cx, &ys, 1)?, joined(cx, &last_h, 0)?];
    if !last_c.is_empty() {
        results.push(joined(cx, &last_c, 0)?);
    }
    Ok(Some(results))
}

/// The value with leading axes of extent 1.
fn led(cx: &mut Context, v: ValueId, axes: usize) -> Result<ValueId, Failure> {
    let mut dims = vec![Expr::from(1i64); axes];
    dims.extend(cx.dims(v));
    cx.reshape(v, dims)
}

/// The results of the host op as a `scan` over steps; nothing where the layer is not of the kind that is.
///
/// States are those of each direction. A direction that runs backwards scans from the end and stacks from the end, so that both have
/// their results in the order of time. Beyond the end of a sequence states stay what they are, and results are 0.
pub(super) fn scanned(cx: &mut Context, layer: &Layer) -> Result<Option<Vec<ValueId>>, Failure> {
    let Some((directions, activations)) = parts(cx, layer) else { return Ok(None) };
    if layer.rounded && layer.lengths.is_some() {
        return Ok(None);
    }
    let (dims, hidden) = (cx.dims(layer.x), cx.dims(layer.r)[2].clone());
    let (time, each) = (dims[0].clone(), activations.len() / directions);
    let (mut states, mut slices, mut outside, mut backward) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut made = Vec::new();
    for d in 0..directions {
        let direction = Direction::new(cx, layer, d, &hidden, &activations[d * each..][..each])?;
        states.push(part(cx, layer.h, d)?);
        if let Some(c) = layer.c {
            states.push(part(cx, c, d)?);
        }
        slices.push(direction.projected);
        backward.push(usize::from(d == 1 || layer.reverse));
        outside.extend(direction.recurrent.values());
        outside.push(direction.bias);
        outside.extend(direction.peepholes);
        made.push(direction);
    }
    if let Some(lengths) = layer.lengths {
        let numbers = cx.add(Iota { dims: vec![time.clone()], axis: 0 }, &[])?;
        for d in 0..directions {
            slices.push(numbers);
            backward.push(backward[d]);
        }
        outside.push(within_time(cx, lengths, &time)?);
    }
    let mut params: Vec<TensorType> = states.iter().map(|&v| cx.ty(v).clone()).collect();
    params.extend(slices.iter().map(|&v| TensorType::new(cx.dtype(v), cx.dims(v).split_off(1))));
    let (per, slice) = (states.len() / directions, states.len());
    let (turn, captures) = cx.built_region(&params, &outside, |cx, inputs, outside| {
        let mut outside = outside.iter().copied();
        let mut next = || outside.next().ok_or_else(|| Failure::invalid("a recurrent layer lacks an operand"));
        let mut inner = Vec::new();
        for direction in &made {
            let (recurrent, bias) = (direction.recurrent.with(&mut next)?, next()?);
            let peepholes = direction.peepholes.map(|_| next()).transpose()?;
            inner.push(Direction { recurrent, bias, peepholes, ..direction.clone() });
        }
        let lengths = layer.lengths.map(|_| next()).transpose()?;
        let (mut kept, mut collected) = (Vec::new(), Vec::new());
        for (d, direction) in inner.iter().enumerate() {
            let old = (inputs[d * per], layer.c.map(|_| inputs[d * per + 1]));
            let (mut h, mut c) = direction.step(cx, inputs[slice + d], old)?;
            let mut y = h;
            if let Some(lengths) = lengths {
                let n = inputs[slice + directions + d];
                let within = cx.map(&[n, lengths], |b, a| b.lt(a[0], a[1]))?;
                let mut column = cx.dims(within);
                column.push(Expr::from(1i64));
                let within = cx.reshape(within, column)?;
                y = cx.map(&[within, h], |b, a| {
                    let zero = b.lit(a[1], 0.0);
                    b.select(a[0], a[1], zero)
                })?;
                let stays = |cx: &mut Context, new, old| cx.map(&[within, new, old], |b, a| b.select(a[0], a[1], a[2]));
                h = stays(cx, h, old.0)?;
                c = match (c, old.1) {
                    (Some(c), Some(old)) => Some(stays(cx, c, old)?),
                    _ => c,
                };
            }
            kept.push(h);
            kept.extend(c);
            collected.push(y);
        }
        kept.append(&mut collected);
        Ok(kept)
    })?;
    let state = |n: usize| params[n].clone();
    let mut types: Vec<TensorType> = (0..slice).map(state).collect();
    for d in 0..directions {
        let mut dims = vec![time.clone()];
        dims.extend(params[d * per].dims.iter().cloned());
        types.push(TensorType::new(params[d * per].dtype, dims));
    }
    let a = Attributes::new()
        .with("body", turn)
        .with("states", slice)
        .with("axes", vec![0usize; slices.len()].as_slice())
        .with("backward", backward.as_slice())
        .with("out_axes", vec![0usize; directions].as_slice())
        .with("out_backward", &backward[..directions])
        .with("results", types);
    let operands: Vec<ValueId> = states.into_iter().chain(slices).chain(captures).collect();
    let results = cx.host("scan", a, &operands)?;
    let (mut ys, mut last) = (Vec::new(), vec![Vec::new(); per]);
    for d in 0..directions {
        // [time, batch, hidden] becomes [time, 1, batch, hidden].
        let y = results[slice + d];
        let mut dims = cx.dims(y);
        dims.insert(1, Expr::from(1i64));
        ys.push(cx.reshape(y, dims)?);
        for (n, last) in last.iter_mut().enumerate() {
            last.push(led(cx, results[d * per + n], 1)?);
        }
    }
    let mut all = vec![joined(cx, &ys, 1)?];
    for last in last {
        all.push(joined(cx, &last, 0)?);
    }
    Ok(Some(all))
}

fn joined(cx: &mut Context, parts: &[ValueId], axis: usize) -> Result<ValueId, Failure> {
    match parts {
        [one] => Ok(*one),
        many => cx.add(Concat { axis }, many),
    }
}

/// `v` from `start` on for `extent` elements of an axis.
fn cut(cx: &mut Context, v: ValueId, axis: usize, start: Expr, extent: Expr) -> Result<ValueId, Failure> {
    let mut dims = cx.dims(v);
    let mut starts = vec![Expr::default(); dims.len()];
    let steps = vec![1; dims.len()];
    starts[axis] = start;
    dims[axis] = extent;
    cx.add(Slice { starts, steps, dims }, &[v])
}

/// `v[n]`.
fn part(cx: &mut Context, v: ValueId, n: usize) -> Result<ValueId, Failure> {
    let one = cut(cx, v, 0, Expr::from(n), Expr::from(1i64))?;
    let rest = cx.dims(v).split_off(1);
    cx.reshape(one, rest)
}

/// Recurrent weights as numbers, or as integers that every step makes numbers of, so that its product sees what they are.
#[derive(Clone, Copy)]
enum Recurrent {
    Numbers(ValueId),
    Steps(Steps),
}

impl Recurrent {
    fn values(self) -> Vec<ValueId> {
        match self {
            Recurrent::Numbers(v) => vec![v],
            Recurrent::Steps(Steps { x, scale, zero }) => vec![x, scale, zero],
        }
    }

    /// The same with other values.
    fn with<E>(self, next: &mut dyn FnMut() -> Result<ValueId, E>) -> Result<Recurrent, E> {
        Ok(match self {
            Recurrent::Numbers(_) => Recurrent::Numbers(next()?),
            Recurrent::Steps(_) => Recurrent::Steps(Steps { x: next()?, scale: next()?, zero: next()? }),
        })
    }
}

/// What one direction computes with.
#[derive(Clone)]
struct Direction<'a> {
    layer: &'a Layer,
    hidden: Expr,
    activations: &'a [Activation],
    /// `W x + bW` of all steps and gates, where nothing is rounded, else `W x`: `[time, batch, gates * hidden]`.
    projected: ValueId,
    /// The recurrent weights, transposed, so that lanes run along gates: `[hidden, gates * hidden]`.
    recurrent: Recurrent,
    /// The bias that is not in `projected`: `[gates * hidden]`.
    bias: ValueId,
    /// `[3 * hidden]` (i o f).
    peepholes: Option<ValueId>,
}

impl<'a> Direction<'a> {
    fn new(
        cx: &mut Context,
        layer: &'a Layer,
        d: usize,
        hidden: &Expr,
        activations: &'a [Activation],
    ) -> Result<Direction<'a>, Failure> {
        let wide = hidden.scale(layer.gates as i64);
        let biases = part(cx, layer.b, d)?;
        let integers = layer.integers.as_ref().and_then(|all| Some((*all.w.get(d)?, *all.r.get(d)?)));
        let (product, recurrent) = match integers {
            Some((w, r)) => {
                let w = w.real(cx)?;
                (cx.add(Contract::new("tbi", "ig", "tbg"), &[layer.x, w])?, Recurrent::Steps(r))
            }
            None => {
                let (w, r) = (part(cx, layer.w, d)?, part(cx, layer.r, d)?);
                let r = cx.transpose(r, &[1, 0])?;
                (cx.add(Contract::new("tbi", "gi", "tbg"), &[layer.x, w])?, Recurrent::Numbers(r))
            }
        };
        let (first, bias) =
            (cut(cx, biases, 0, Expr::default(), wide.clone())?, cut(cx, biases, 0, wide.clone(), wide)?);
        let (projected, bias) = match layer.rounded {
            // Both biases are added to both products.
            true => (product, cx.map(&[first, bias], |b, a| b.add(a[0], a[1]))?),
            false => (cx.map(&[product, first], |b, a| b.add(a[0], a[1]))?, bias),
        };
        let peepholes = layer.peepholes.map(|p| part(cx, p, d)).transpose()?;
        Ok(Direction { layer, hidden: hidden.clone(), activations, projected, recurrent, bias, peepholes })
    }

    /// Gates `first..last` of a tensor whose last axis they are.
    fn gates(&self, cx: &mut Context, v: ValueId, axis: usize, first: usize, last: usize) -> Result<ValueId, Failure> {
        if first == 0 && last == self.layer.gates {
            return Ok(v);
        }
        cut(cx, v, axis, self.hidden.scale(first as i64), self.hidden.scale((last - first) as i64))
    }

    /// `R v + bR` for gates `first..last`: `[batch, gates * hidden]`.
    fn product(&self, cx: &mut Context, v: ValueId, first: usize, last: usize) -> Result<ValueId, Failure> {
        let product = self.unbiased(cx, v, first, last)?;
        let bias = self.gates(cx, self.bias, 0, first, last)?;
        cx.map(&[product, bias], |b, a| b.add(a[0], a[1]))
    }

    /// `R v` for gates `first..last`.
    fn unbiased(&self, cx: &mut Context, v: ValueId, first: usize, last: usize) -> Result<ValueId, Failure> {
        let r = match self.recurrent {
            Recurrent::Numbers(v) => v,
            Recurrent::Steps(steps) => steps.real(cx)?,
        };
        let r = self.gates(cx, r, 1, first, last)?;
        let v = if self.layer.rounded { rounded(cx, v)? } else { v };
        cx.add(Contract::new("bh", "hg", "bg"), &[v, r])
    }

    fn activate(&self, b: &mut Body, n: usize, x: S) -> S {
        let held = if self.layer.clip.is_finite() {
            let (low, high) = (b.lit(x, -self.layer.clip), b.lit(x, self.layer.clip));
            let low = b.max(x, low);
            b.min(low, high)
        } else {
            x
        };
        self.activations[n].of(b, held)
    }

    /// A gate that sees the cell through its n-th peepholes, where there are any.
    fn peep(&self, cx: &mut Context, gate: ValueId, n: i64, cell: ValueId) -> Result<ValueId, Failure> {
        let Some(all) = self.peepholes else { return Ok(gate) };
        let own = cut(cx, all, 0, self.hidden.scale(n), self.hidden.clone())?;
        cx.map(&[gate, own, cell], |b, a| {
            let seen = b.mul(a[1], a[2]);
            b.add(a[0], seen)
        })
    }

    fn step(
        &self,
        cx: &mut Context,
        x: ValueId,
        (h, c): (ValueId, Option<ValueId>),
    ) -> Result<(ValueId, Option<ValueId>), Failure> {
        match (self.layer.name, c) {
            ("lstm", Some(c)) => {
                let sum = if self.layer.rounded {
                    let recurrent = self.unbiased(cx, h, 0, 4)?;
                    cx.map(&[x, recurrent, self.bias], |b, a| {
                        let sum = b.add(a[0], a[1]);
                        b.add(sum, a[2])
                    })?
                } else {
                    let recurrent = self.product(cx, h, 0, 4)?;
                    cx.map(&[x, recurrent], |b, a| b.add(a[0], a[1]))?
                };
                let [i, o, f, g] = [0, 1, 2, 3].map(|n| self.gates(cx, sum, 1, n, n + 1));
                let (mut i, mut o, mut f, g) = (i?, o?, f?, g?);
                if self.peepholes.is_some() {
                    (i, f) = (self.peep(cx, i, 0, c)?, self.peep(cx, f, 2, c)?);
                }
                let c = cx.map(&[i, f, g, c], |b, a| {
                    let i = self.activate(b, 0, a[0]);
                    let f = if self.layer.flag {
                        let one = b.lit(i, 1.0);
                        b.sub(one, i)
                    } else {
                        self.activate(b, 0, a[1])
                    };
                    let new = self.activate(b, 1, a[2]);
                    let (kept, new) = (b.mul(f, a[3]), b.mul(i, new));
                    b.add(kept, new)
                })?;
                o = self.peep(cx, o, 1, c)?;
                let h = cx.map(&[o, c], |b, a| {
                    let (o, c) = (self.activate(b, 0, a[0]), self.activations[2].of(b, a[1]));
                    b.mul(o, c)
                })?;
                Ok((h, Some(c)))
            }
            ("gru", _) => {
                let recurrent = self.product(cx, h, 0, 2)?;
                let own = self.gates(cx, x, 1, 0, 2)?;
                let both = cx.map(&[own, recurrent], |b, a| {
                    let sum = b.add(a[0], a[1]);
                    self.activate(b, 0, sum)
                })?;
                let (z, r) = (
                    cut(cx, both, 1, Expr::default(), self.hidden.clone())?,
                    cut(cx, both, 1, self.hidden.clone(), self.hidden.clone())?,
                );
                let new = if self.layer.flag {
                    let product = self.product(cx, h, 2, 3)?;
                    cx.map(&[product, r], |b, a| b.mul(a[0], a[1]))?
                } else {
                    let kept = cx.map(&[r, h], |b, a| b.mul(a[0], a[1]))?;
                    self.product(cx, kept, 2, 3)?
                };
                let own = self.gates(cx, x, 1, 2, 3)?;
                let h = cx.map(&[z, own, new, h], |b, a| {
                    let sum = b.add(a[1], a[2]);
                    let (candidate, one) = (self.activate(b, 1, sum), b.lit(a[0], 1.0));
                    let rest = b.sub(one, a[0]);
                    let (new, old) = (b.mul(rest, candidate), b.mul(a[0], a[3]));
                    b.add(new, old)
                })?;
                Ok((h, None))
            }
            _ => {
                let recurrent = self.product(cx, h, 0, 1)?;
                let h = cx.map(&[x, recurrent], |b, a| {
                    let sum = b.add(a[0], a[1]);
                    self.activate(b, 0, sum)
                })?;
                Ok((h, None))
            }
        }
    }
}
