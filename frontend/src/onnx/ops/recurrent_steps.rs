//! Recurrent layers over a small known number of steps, written out: products and elementwise work that kernels compute.
//!
//! Invariant: a layer that is not written out here means the same as one that is; see `kiln_ir::ops::host`, which runs the rest.

use super::quantize::rounded;
use crate::body::{Body, S};
use crate::onnx::import::{Context, Failure};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Concat, Contract, Slice};
use kiln_ir::{DType, Expr};

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
    /// The state is rounded to 8 bits before it is multiplied.
    pub rounded: bool,
    pub x: ValueId,
    pub w: ValueId,
    pub r: ValueId,
    pub b: ValueId,
    pub h: ValueId,
    pub c: Option<ValueId>,
}

/// An activation that scalar code has.
#[derive(Clone, Copy)]
enum Activation {
    Tanh,
    Sigmoid,
    Relu,
}

impl Activation {
    fn named(name: &str) -> Option<Activation> {
        match name.to_ascii_lowercase().as_str() {
            "tanh" => Some(Activation::Tanh),
            "sigmoid" => Some(Activation::Sigmoid),
            "relu" => Some(Activation::Relu),
            _ => None,
        }
    }

    fn of(self, b: &mut Body, x: S) -> S {
        match self {
            Activation::Tanh => b.tanh(x),
            Activation::Sigmoid => b.sigmoid(x),
            Activation::Relu => {
                let zero = b.lit(x, 0.0);
                b.max(x, zero)
            }
        }
    }
}

/// The results of the host op, written out; nothing where the layer is not of the kind that is.
pub(super) fn written_out(cx: &mut Context, layer: &Layer) -> Result<Option<Vec<ValueId>>, Failure> {
    let dims = cx.dims(layer.x);
    let (time, directions) = (dims[0].as_size(), cx.dims(layer.w)[0].as_size());
    let (Some(time), Some(directions)) = (time, directions) else { return Ok(None) };
    let names: Option<Vec<Activation>> = layer.activations.split(',').map(Activation::named).collect();
    let Some(activations) = names else { return Ok(None) };
    let float = matches!(cx.dtype(layer.x), DType::F32 | DType::F64);
    let each = activations.len().checked_div(directions).unwrap_or(0);
    if time == 0 || time * directions > MOST_STEPS || !float || each == 0 {
        return Ok(None);
    }
    let hidden = cx.dims(layer.r)[2].clone();
    let (mut ys, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for d in 0..directions {
        let direction = Direction::new(cx, layer, d, &hidden, &activations[d * each..][..each])?;
        let mut state = (part(cx, layer.h, d)?, layer.c.map(|c| part(cx, c, d)).transpose()?);
        let backwards = d == 1 || layer.reverse;
        let mut steps = vec![state.0; time];
        for n in 0..time {
            let t = if backwards { time - 1 - n } else { n };
            state = direction.step(cx, t, state)?;
            steps[t] = state.0;
        }
        let of = |v: ValueId, cx: &mut Context, lead: usize| {
            let mut dims = cx.dims(v);
            for _ in 0..lead {
                dims.insert(0, Expr::from(1i64));
            }
            cx.reshape(v, dims)
        };
        let steps = steps.into_iter().map(|v| of(v, cx, 2)).collect::<Result<Vec<_>, _>>()?;
        ys.push(joined(cx, &steps, 0)?);
        last_h.push(of(state.0, cx, 1)?);
        if let Some(c) = state.1 {
            last_c.push(of(c, cx, 1)?);
        }
    }
    let mut results = vec![joined(cx, &ys, 1)?, joined(cx, &last_h, 0)?];
    if !last_c.is_empty() {
        results.push(joined(cx, &last_c, 0)?);
    }
    Ok(Some(results))
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

/// What one direction computes with.
struct Direction<'a> {
    layer: &'a Layer,
    hidden: Expr,
    activations: &'a [Activation],
    /// `W x + bW` of all steps and gates: `[time, batch, gates * hidden]`.
    projected: ValueId,
    /// The recurrent weights, transposed, so that lanes run along gates: `[hidden, gates * hidden]`.
    recurrent: ValueId,
    /// The recurrent bias: `[gates * hidden]`.
    bias: ValueId,
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
        let (w, recurrent, biases) = (part(cx, layer.w, d)?, part(cx, layer.r, d)?, part(cx, layer.b, d)?);
        let recurrent = cx.transpose(recurrent, &[1, 0])?;
        let product = cx.add(Contract::new("tbi", "gi", "tbg"), &[layer.x, w])?;
        let (first, bias) =
            (cut(cx, biases, 0, Expr::default(), wide.clone())?, cut(cx, biases, 0, wide.clone(), wide)?);
        let projected = cx.map(&[product, first], |b, a| b.add(a[0], a[1]))?;
        Ok(Direction { layer, hidden: hidden.clone(), activations, projected, recurrent, bias })
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
        let (r, bias) = (self.gates(cx, self.recurrent, 1, first, last)?, self.gates(cx, self.bias, 0, first, last)?);
        let v = if self.layer.rounded { rounded(cx, v)? } else { v };
        let product = cx.add(Contract::new("bh", "hg", "bg"), &[v, r])?;
        cx.map(&[product, bias], |b, a| b.add(a[0], a[1]))
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

    fn step(
        &self,
        cx: &mut Context,
        t: usize,
        (h, c): (ValueId, Option<ValueId>),
    ) -> Result<(ValueId, Option<ValueId>), Failure> {
        let x = part(cx, self.projected, t)?;
        match (self.layer.name, c) {
            ("lstm", Some(c)) => {
                let recurrent = self.product(cx, h, 0, 4)?;
                let sum = cx.map(&[x, recurrent], |b, a| b.add(a[0], a[1]))?;
                let [i, o, f, g] = [0, 1, 2, 3].map(|n| self.gates(cx, sum, 1, n, n + 1));
                let (i, o, f, g) = (i?, o?, f?, g?);
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
