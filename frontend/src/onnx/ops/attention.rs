//! `Attention`: scaled dot products, masks, softmax, and the weighted sum of values.
//!
//! Source: ONNX operators, Attention 23 to 25. Query heads that share a key head are an axis of the products, so that keys and
//! values are not repeated.

use super::fused_attention::behind;
use super::softmax::softmax;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use crate::onnx::tensor::element_type;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Contract, Iota, Pad, Reduce};
use kiln_ir::{BinaryOp, Class, Constant, DType, Expr};

pub(super) const OPS: &[Spec] = &[onnx(
    "Attention",
    23,
    &[
        "is_causal",
        "kv_num_heads",
        "left_window_size",
        "q_num_heads",
        "qk_matmul_output_mode",
        "right_window_size",
        "scale",
        "softcap",
        "softmax_precision",
    ],
    attention,
)];

/// Axes of the masks: query, key.
const QUERY: usize = 2;
const KEY: usize = 3;

fn attention(cx: &mut Context) -> Result<Outputs, Failure> {
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let dtype = cx.dtype(q);
    let flat = cx.rank(q) == 3;
    let q = heads(cx, q, "q_num_heads")?;
    let (mut k, mut v) = (heads(cx, k, "kv_num_heads")?, heads(cx, v, "kv_num_heads")?);
    let past = match (cx.optional(4)?, cx.optional(5)?) {
        (None, None) => Expr::default(),
        (Some(past_k), Some(past_v)) => {
            k = behind(cx, past_k, k)?;
            v = behind(cx, past_v, v)?;
            cx.dims(past_k)[2].clone()
        }
        _ => return Err(Failure::invalid("past_key and past_value must both be there")),
    };
    let [batch, q_heads, queries, size] = four(cx, q)?;
    let [_, kv_heads, keys, _] = four(cx, k)?;
    let [.., v_size] = four(cx, v)?;
    let group = match (q_heads.as_const(), kv_heads.as_const()) {
        (Some(a), Some(b)) if b > 0 && a % b == 0 => Expr::from(a / b),
        _ if q_heads == kv_heads => Expr::from(1i64),
        _ => return Err(Failure::invalid(format!("{q_heads} query heads do not share {kv_heads} key heads evenly"))),
    };

    let scale = match cx.node.float_opt("scale")? {
        Some(s) => f64::from(s),
        None => match size.as_const() {
            Some(n) => 1.0 / (n as f64).sqrt(),
            None => return Err(Failure::unsupported(format!("the head size `{size}` must be known; bind its symbols"))),
        },
    };
    // Narrow floats are scaled before the product, by the root on both sides, as the definition does; wider ones after it.
    let narrow = dtype != DType::F32 && dtype.class() == Class::Float;
    let times = |cx: &mut Context, x: ValueId, by: f64| {
        cx.map(&[x], |b, a| {
            let by = b.lit(a[0], by);
            b.mul(a[0], by)
        })
    };
    let (left, right) = if narrow { (times(cx, q, scale.sqrt())?, times(cx, k, scale.sqrt())?) } else { (q, k) };
    let grouped = vec![batch.clone(), kv_heads.clone(), group.clone(), queries.clone(), size];
    let left = cx.reshape(left, grouped)?;
    let scores = cx.add(Contract::new("bngqd", "bnkd", "bngqk"), &[left, right])?;
    let scores = if narrow { scores } else { times(cx, scores, scale)? };
    let whole = vec![batch.clone(), q_heads.clone(), queries.clone(), keys.clone()];
    let raw = cx.reshape(scores, whole.clone())?;

    let softcap = f64::from(cx.node.float_or("softcap", 0.0)?);
    let capped = if softcap > 0.0 {
        cx.map(&[raw], |b, a| {
            let cap = b.lit(a[0], softcap);
            let down = b.div(a[0], cap);
            let bent = b.tanh(down);
            b.mul(bent, cap)
        })?
    } else {
        raw
    };
    let bias = bias(cx, dtype, &queries, &keys, &past)?;
    let biased = match bias {
        Some((bias, _)) => cx.map(&[capped, bias], |b, a| b.add(a[0], a[1]))?,
        None => capped,
    };
    if cx.dims(biased) != whole {
        return Err(Failure::invalid(format!("the mask does not broadcast to [{}]", kiln_ir::text::Commas(&whole))));
    }
    let precise = match cx.node.int_opt("softmax_precision")? {
        None | Some(0) => biased,
        Some(n) => {
            let to = i32::try_from(n).ok().and_then(|n| element_type(n).ok()).filter(|(_, t)| t.is_float());
            let fail = || cx.node.attribute_value("softmax_precision", format!("{n} is no type of floats"));
            let (_, to) = to.ok_or_else(fail)?;
            cx.cast(biased, to)?
        }
    };
    let mut weights = softmax(cx, precise, 3, false)?;
    if let Some((bias, true)) = bias {
        // A query that may look at nothing gets zeros.
        let most = cx.add(Reduce { combine: BinaryOp::Max, axes: vec![cx.rank(bias) - 1], keep: true }, &[bias])?;
        weights = cx.map(&[weights, most], |b, a| {
            let (none, zero) = (b.lit(a[1], f64::NEG_INFINITY), b.lit(a[0], 0.0));
            let masked = b.eq(a[1], none);
            b.select(masked, zero, a[0])
        })?;
    }
    let weights = cx.cast(weights, dtype)?;

    let split = cx.reshape(weights, vec![batch.clone(), kv_heads, group, queries.clone(), keys])?;
    let y = if flat {
        let y = cx.add(Contract::new("bngqk", "bnkd", "bqngd"), &[split, v])?;
        cx.reshape(y, vec![batch, queries, q_heads.mul(&v_size)])?
    } else {
        let y = cx.add(Contract::new("bngqk", "bnkd", "bngqd"), &[split, v])?;
        cx.reshape(y, vec![batch, q_heads, queries, v_size])?
    };
    let shown = match cx.node.int_or("qk_matmul_output_mode", 0)? {
        0 => raw,
        1 => capped,
        2 => biased,
        3 => weights,
        other => {
            return Err(cx.node.attribute_value("qk_matmul_output_mode", format!("{other} is none of 0, 1, 2, 3")).into());
        }
    };
    Ok(vec![y, k, v, shown].into())
}

fn four(cx: &Context, x: ValueId) -> Result<[Expr; 4], Failure> {
    cx.dims(x).try_into().map_err(|_| Failure::invalid(format!("{} has neither 3 nor 4 axes", cx.ty(x))))
}

/// `[batch, sequence, heads * size]` as `[batch, heads, sequence, size]`; a tensor with 4 axes has that form already.
pub(super) fn heads(cx: &mut Context, x: ValueId, attribute: &str) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let [batch, sequence, hidden] = dims.as_slice() else {
        four(cx, x)?;
        return Ok(x);
    };
    let count = Expr::from(cx.node.int(attribute)?);
    if count.as_const().is_none_or(|c| c < 1) || hidden.modulo(&count).as_const() != Some(0) {
        return Err(cx.node.attribute_value(attribute, format!("{count} does not divide {hidden}")).into());
    }
    let split = vec![batch.clone(), sequence.clone(), count.clone(), hidden.floor_div(&count)];
    let split = cx.reshape(x, split)?;
    cx.transpose(split, &[0, 2, 1, 3])
}

/// Positions along an axis of the mask, plus a number.
fn positions(cx: &mut Context, extent: &Expr, axis: usize) -> Result<ValueId, Failure> {
    let mut dims = vec![Expr::from(1i64); 4];
    dims[axis] = extent.clone();
    cx.add(Iota { dims, axis }, &[])
}

/// What is added to the scores: 0 or the mask where a query looks at a key, -inf elsewhere; and whether a query may be left
/// without any key.
fn bias(
    cx: &mut Context,
    dtype: DType,
    queries: &Expr,
    keys: &Expr,
    past: &Expr,
) -> Result<Option<(ValueId, bool)>, Failure> {
    let causal = cx.node.bool_or("is_causal", false)?;
    let window = |name: &str| -> Result<Option<i64>, Failure> {
        match cx.node.int_or(name, -1)? {
            -1 => Ok(None),
            n if n >= 0 => Ok(Some(n)),
            n => Err(cx.node.attribute_value(name, format!("{n} is less than -1")).into()),
        }
    };
    let (before, after) = (window("left_window_size")?, window("right_window_size")?);
    let filled = match cx.optional(6)? {
        Some(v) => {
            let dims = cx.dims(v);
            let v = cx.reshape(v, vec![dims.first().cloned().unwrap_or(Expr::from(1i64)), 1i64.into(), 1i64.into(), 1i64.into()])?;
            Some(cx.cast(v, DType::I64)?)
        }
        None => None,
    };
    let mut guarded = false;
    let mut bias: Option<ValueId> = None;
    if let Some(mask) = cx.optional(3)? {
        guarded = true;
        bias = Some(additive(cx, mask, dtype, keys)?);
    }
    let mut restrict = |cx: &mut Context, allowed: ValueId| -> Result<(), Failure> {
        let inputs: Vec<ValueId> = [Some(allowed), bias].into_iter().flatten().collect();
        bias = Some(cx.map(&inputs, |b, a| {
            let (zero, none) = (Constant::float(dtype, 0.0), Constant::float(dtype, f64::NEG_INFINITY));
            let (zero, none) = (b.constant(zero), b.constant(none));
            let limit = b.select(a[0], zero, none);
            if a.len() > 1 { b.add(a[1], limit) } else { limit }
        })?);
        Ok(())
    };
    if causal || before.is_some() || after.is_some() {
        // The position of the first query among the keys.
        let offset = match filled {
            Some(filled) if *past == Expr::default() => {
                guarded = true;
                let count = cx.dims_tensor(std::slice::from_ref(queries), true)?;
                cx.map(&[filled, count], |b, a| b.sub(a[0], a[1]))?
            }
            _ => cx.dims_tensor(std::slice::from_ref(past), true)?,
        };
        guarded |= before.is_some() || after.is_some();
        let (i, j) = (positions(cx, queries, QUERY)?, positions(cx, keys, KEY)?);
        let allowed = cx.map(&[i, j, offset], |b, a| {
            let place = b.add(a[0], a[2]);
            let mut all = Vec::new();
            if causal {
                all.push(b.le(a[1], place));
            }
            if let Some(n) = before {
                let n = b.int(place, n);
                let first = b.sub(place, n);
                all.push(b.le(first, a[1]));
            }
            if let Some(n) = after {
                let n = b.int(place, n);
                let last = b.add(place, n);
                all.push(b.le(a[1], last));
            }
            let first = all[0];
            all[1..].iter().fold(first, |x, &y| b.and(x, y))
        })?;
        restrict(cx, allowed)?;
    }
    if let Some(filled) = filled {
        guarded = true;
        let j = positions(cx, keys, KEY)?;
        let allowed = cx.map(&[j, filled], |b, a| b.lt(a[0], a[1]))?;
        restrict(cx, allowed)?;
    }
    Ok(bias.map(|b| (b, guarded)))
}

/// A mask of truth values or numbers as numbers to add; keys beyond its end are masked.
fn additive(cx: &mut Context, mask: ValueId, dtype: DType, keys: &Expr) -> Result<ValueId, Failure> {
    let truth = cx.dtype(mask) == DType::Bool;
    let mut mask = mask;
    let last = cx.dims(mask).last().cloned().ok_or_else(|| Failure::invalid("the mask has no axes"))?;
    if let (Some(have), Some(want)) = (last.as_size(), keys.as_size())
        && have < want
    {
        let rank = cx.rank(mask);
        let mut high = vec![0; rank];
        high[rank - 1] = want - have;
        let value = if truth {
            Constant::int(DType::Bool, 0)
        } else {
            Constant::float(cx.dtype(mask), f64::NEG_INFINITY)
        };
        mask = cx.add(Pad { low: vec![0; rank], high, interior: vec![0; rank], value }, &[mask])?;
    }
    if !truth {
        return cx.cast(mask, dtype);
    }
    cx.map(&[mask], |b, a| {
        let (zero, none) = (Constant::float(dtype, 0.0), Constant::float(dtype, f64::NEG_INFINITY));
        let (zero, none) = (b.constant(zero), b.constant(none));
        b.select(a[0], zero, none)
    })
}
