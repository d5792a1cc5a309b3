//! Attention as ONNX Runtime fuses it: `Attention`, `QAttention`, `MultiHeadAttention` and `GroupQueryAttention` of
//! `com.microsoft`.
//!
//! Invariant: all four come down to [`attend`]; they differ in how queries, keys, values and what is added to the scores are
//! found. Scores and softmax are computed in f32.

use super::attention::heads;
use super::matmul::{Flip, matmul};
use super::quantize::centred;
use super::rotary_embedding::rotate;
use super::split::pieces;
use super::{Spec, of};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Concat, Contract, GatherNd, Iota, Slice, Softmax};
use kiln_ir::{DType, Expr};

const DOMAIN: &str = "com.microsoft";

const ATTENTION: &[&str] = &[
    "do_rotary",
    "mask_filter_value",
    "num_heads",
    "past_present_share_buffer",
    "qkv_hidden_sizes",
    "rotary_embedding_dim",
    "scale",
    "unidirectional",
];

const GROUP: &[&str] = &[
    "causal",
    "do_rotary",
    "k_quant_type",
    "kv_cache_bit_width",
    "kv_num_heads",
    "local_window_size",
    "num_heads",
    "qk_norm_epsilon",
    "qk_output",
    "rotary_interleaved",
    "scale",
    "sliding_window_cache",
    "smooth_softmax",
    "softcap",
    "v_quant_type",
];

pub(super) const OPS: &[Spec] = &[
    of(DOMAIN, "Attention", ATTENTION, |cx| {
        let (x, weights) = (cx.input(0)?, cx.input(1)?);
        let mut qkv = matmul(cx, x, weights, Flip::default(), Flip::default())?;
        if let Some(bias) = cx.optional(2)? {
            qkv = cx.map(&[qkv, bias], |b, a| b.add(a[0], a[1]))?;
        }
        if cx.bound(6).is_some() {
            return Err(Failure::unsupported("past and present that share a buffer are not supported"));
        }
        attention(cx, qkv, Places { mask: 3, past: 4, bias: Some(5) })
    }),
    of(DOMAIN, "QAttention", ATTENTION, |cx| {
        let (x, w) = (cx.input(0)?, cx.input(1)?);
        let zero_x = cx.optional(6)?.map(|z| cx.reshape(z, vec![])).transpose()?;
        let zero_w = cx.optional(7)?;
        let (x, w) = (centred(cx, x, zero_x)?, centred(cx, w, zero_w)?);
        let product = matmul(cx, x, w, Flip::default(), Flip::default())?;
        let (bias, scale_x, scale_w) = (cx.input(2)?, cx.input(3)?, cx.input(4)?);
        let scale_x = cx.reshape(scale_x, vec![])?;
        let qkv = cx.map(&[product, scale_x, scale_w, bias], |b, a| {
            let (y, scale) = (b.cast(DType::F32, a[0]), b.mul(a[1], a[2]));
            let y = b.mul(y, scale);
            b.add(y, a[3])
        })?;
        attention(cx, qkv, Places { mask: 5, past: 8, bias: None })
    }),
    of(DOMAIN, "MultiHeadAttention", &["mask_filter_value", "num_heads", "scale", "unidirectional"], multi_head),
    of(DOMAIN, "GroupQueryAttention", GROUP, group_query),
];

/// Which inputs hold what.
struct Places {
    mask: usize,
    past: usize,
    bias: Option<usize>,
}

/// What makes scores of products of queries and keys.
struct Scores {
    scale: f64,
    /// Bound of a score's size; 0 for none.
    softcap: f64,
    /// What is added.
    bias: Option<ValueId>,
    /// A score of each head that takes part in the softmax, but picks no value.
    sink: Option<ValueId>,
}

/// Queries `[batch, heads, queries, size]`, keys `[batch, shared, keys, size]` and values `[batch, shared, keys, value size]`
/// to `[batch, queries, heads * value size]`; also the scores before and after the softmax, `[batch, heads, queries, keys]`.
fn attend(cx: &mut Context, [q, k, v]: [ValueId; 3], scores: Scores) -> Result<[ValueId; 3], Failure> {
    let dtype = cx.dtype(q);
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (q, k, v) = (cx.cast(q, wide)?, cx.cast(k, wide)?, cx.cast(v, wide)?);
    let [batch, many, queries, size] = four(cx, q)?;
    let [_, shared, keys, _] = four(cx, k)?;
    let value_size = four(cx, v)?[3].clone();
    let group = match (many.as_const(), shared.as_const()) {
        (Some(a), Some(b)) if b > 0 && a % b == 0 => Expr::from(a / b),
        _ => return Err(Failure::invalid(format!("{many} query heads do not share {shared} key heads evenly"))),
    };
    let split = vec![batch.clone(), shared.clone(), group.clone(), queries.clone(), size];
    let left = cx.reshape(q, split)?;
    let products = cx.add(Contract::new("bngqd", "bnkd", "bngqk"), &[left, k])?;
    let whole = vec![batch.clone(), many.clone(), queries.clone(), keys.clone()];
    let products = cx.reshape(products, whole.clone())?;
    let mut inputs = vec![products];
    inputs.extend(scores.bias.map(|v| cx.cast(v, wide)).transpose()?);
    let raw = cx.map(&inputs, |b, a| {
        let scale = b.lit(a[0], scores.scale);
        let mut y = b.mul(a[0], scale);
        if scores.softcap > 0.0 {
            let cap = b.lit(y, scores.softcap);
            let down = b.div(y, cap);
            let bent = b.tanh(down);
            y = b.mul(bent, cap);
        }
        if let Some(&bias) = a.get(1) { b.add(y, bias) } else { y }
    })?;
    if cx.dims(raw) != whole {
        return Err(Failure::invalid(format!("masks and biases do not fit [{}]", kiln_ir::text::Commas(&whole))));
    }
    let weights = match scores.sink {
        None => cx.add(Softmax { axis: 3, log: false }, &[raw])?,
        Some(sink) => {
            let sink = cx.cast(sink, wide)?;
            let one = Expr::from(1i64);
            let sink = cx.reshape(sink, vec![one.clone(), many.clone(), one.clone(), one.clone()])?;
            let sink = cx.broadcast(sink, vec![batch.clone(), many.clone(), queries.clone(), one.clone()])?;
            let all = cx.add(Concat { axis: 3 }, &[raw, sink])?;
            let all = cx.add(Softmax { axis: 3, log: false }, &[all])?;
            pieces(cx, all, 3, &[keys.clone(), one])?[0]
        }
    };
    let grouped = cx.reshape(weights, vec![batch.clone(), shared, group, queries.clone(), keys])?;
    let y = cx.add(Contract::new("bngqk", "bnkd", "bqngd"), &[grouped, v])?;
    let y = cx.reshape(y, vec![batch, queries, many.mul(&value_size)])?;
    Ok([cx.cast(y, dtype)?, raw, weights])
}

fn four(cx: &Context, x: ValueId) -> Result<[Expr; 4], Failure> {
    cx.dims(x).try_into().map_err(|_| Failure::invalid(format!("{} has not 4 axes", cx.ty(x))))
}

/// `[batch, sequence, heads * size]` as `[batch, sequence, heads, size]`.
fn split_heads(cx: &mut Context, x: ValueId, count: &Expr) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let [batch, sequence, hidden] = dims.as_slice() else {
        return Err(Failure::invalid(format!("{} has not 3 axes", cx.ty(x))));
    };
    if count.as_const().is_none_or(|c| c < 1) || hidden.modulo(count).as_const() != Some(0) {
        return Err(Failure::invalid(format!("{hidden} elements are not {count} heads")));
    }
    cx.reshape(x, vec![batch.clone(), sequence.clone(), count.clone(), hidden.floor_div(count)])
}

/// Attribute `scale`, or one over the root of the head's size.
fn scale(cx: &Context, q: ValueId) -> Result<f64, Failure> {
    match cx.node.float_opt("scale")? {
        Some(s) if s != 0.0 => Ok(f64::from(s)),
        _ => match cx.dims(q).last().and_then(Expr::as_const) {
            Some(n) if n > 0 => Ok(1.0 / (n as f64).sqrt()),
            _ => Err(Failure::unsupported(format!("the head size of {} must be known; bind its symbols", cx.ty(q)))),
        },
    }
}

/// Positions along the query or key axis of the scores.
fn positions(cx: &mut Context, extent: &Expr, axis: usize) -> Result<ValueId, Failure> {
    let mut dims = vec![Expr::from(1i64); 4];
    dims[axis] = extent.clone();
    cx.add(Iota { dims, axis }, &[])
}

/// 0 where the condition holds, `otherwise` elsewhere, as f32.
fn penalty(cx: &mut Context, allowed: ValueId, otherwise: f64) -> Result<ValueId, Failure> {
    let zero = cx.float(DType::F32, 0.0)?;
    let otherwise = cx.float(DType::F32, otherwise)?;
    cx.map(&[allowed, zero, otherwise], |b, a| b.select(a[0], a[1], a[2]))
}

fn sum(cx: &mut Context, parts: &[Option<ValueId>]) -> Result<Option<ValueId>, Failure> {
    let mut all: Option<ValueId> = None;
    for &part in parts.iter().flatten() {
        let part = cx.cast(part, DType::F32)?;
        all = Some(match all {
            Some(sum) => cx.map(&[sum, part], |b, a| b.add(a[0], a[1]))?,
            None => part,
        });
    }
    Ok(all)
}

/// What a mask of keys adds: truth values `[batch, keys]` or `[batch, queries, keys]`, such values for all places
/// `[batch, 1, places, places]`, ends `[batch]`, or ends and then starts `[2 * batch]`.
fn key_mask(
    cx: &mut Context,
    mask: ValueId,
    [batch, queries, keys]: [&Expr; 3],
    past: &Expr,
    filter: f64,
) -> Result<ValueId, Failure> {
    let one = Expr::from(1i64);
    let dims = cx.dims(mask);
    let kept = match dims.as_slice() {
        [all] if all == batch || *all == batch.scale(2) => {
            let column = vec![batch.clone(), one.clone(), one.clone(), one.clone()];
            let parts = vec![batch.clone(); if all == batch { 1 } else { 2 }];
            let parts = pieces(cx, mask, 0, &parts)?;
            let mut inputs = vec![positions(cx, keys, 3)?];
            for part in parts {
                let part = cx.cast(part, DType::I64)?;
                inputs.push(cx.reshape(part, column.clone())?);
            }
            return kept_between(cx, &inputs, filter);
        }
        [_, k] if k == keys => cx.reshape(mask, vec![batch.clone(), one.clone(), one, keys.clone()])?,
        [_, q, k] if q == queries && k == keys => {
            cx.reshape(mask, vec![batch.clone(), one, queries.clone(), keys.clone()])?
        }
        [b, _, _, _] => {
            let starts = vec![Expr::default(), Expr::default(), past.clone(), Expr::default()];
            let cut = vec![b.clone(), one, queries.clone(), keys.clone()];
            cx.add(Slice { starts, steps: vec![1; 4], dims: cut }, &[mask])?
        }
        _ => return Err(Failure::unsupported(format!("a mask {} is not supported", cx.ty(mask)))),
    };
    let kept = cx.map(&[kept], |b, a| {
        let zero = b.int(a[0], 0);
        b.gt(a[0], zero)
    })?;
    penalty(cx, kept, filter)
}

fn kept_between(cx: &mut Context, inputs: &[ValueId], filter: f64) -> Result<ValueId, Failure> {
    let kept = cx.map(inputs, |b, a| {
        let below = b.lt(a[0], a[1]);
        match a.get(2) {
            Some(&start) => {
                let above = b.ge(a[0], start);
                b.and(below, above)
            }
            None => below,
        }
    })?;
    penalty(cx, kept, filter)
}

/// What keeps queries, the first of which is at place `past`, from later keys.
fn causal(cx: &mut Context, queries: &Expr, keys: &Expr, past: &Expr) -> Result<ValueId, Failure> {
    let (i, j) = (positions(cx, queries, 2)?, positions(cx, keys, 3)?);
    let past = cx.dims_tensor(std::slice::from_ref(past), true)?;
    let allowed = cx.map(&[i, j, past], |b, a| {
        let place = b.add(a[0], a[2]);
        b.le(a[1], place)
    })?;
    penalty(cx, allowed, f64::from(f32::MIN))
}

/// New rows behind those of the past: `[batch, heads, rows, size]`. Models name the dims of a cache freely; they are those of what is
/// added to it.
pub(super) fn behind(cx: &mut Context, past: ValueId, new: ValueId) -> Result<ValueId, Failure> {
    let both = cx.agree_except(&[past, new], 2)?;
    cx.add(Concat { axis: 2 }, &both)
}

/// Keys and values behind those of the past, and how many the past has.
fn after_past(
    cx: &mut Context,
    [past_k, past_v]: [ValueId; 2],
    [k, v]: [ValueId; 2],
) -> Result<(Expr, [ValueId; 2]), Failure> {
    let past = four(cx, past_k)?[2].clone();
    Ok((past, [behind(cx, past_k, k)?, behind(cx, past_v, v)?]))
}

/// [`attend`] to what the operands at `places` (a mask of keys, and perhaps a bias of scores) and `unidirectional` leave seen,
/// where the first query is at place `past`.
fn attend_seen(
    cx: &mut Context,
    [q, k, v]: [ValueId; 3],
    past: &Expr,
    (mask, bias): (usize, Option<usize>),
) -> Result<[ValueId; 3], Failure> {
    let [batch, _, queries, _] = four(cx, q)?;
    let keys = four(cx, k)?[2].clone();
    let filter = f64::from(cx.node.float_or("mask_filter_value", -10000.0)?);
    let mask = match cx.optional(mask)? {
        Some(mask) => Some(key_mask(cx, mask, [&batch, &queries, &keys], past, filter)?),
        None => None,
    };
    let ahead = cx.node.bool_or("unidirectional", false)?;
    let ahead = if ahead { Some(causal(cx, &queries, &keys, past)?) } else { None };
    let given = bias.map_or(Ok(None), |at| cx.optional(at))?;
    let bias = sum(cx, &[mask, ahead, given])?;
    let scores = Scores { scale: scale(cx, q)?, softcap: 0.0, bias, sink: None };
    attend(cx, [q, k, v], scores)
}

/// Projected queries, keys and values side by side, to the result and the present keys and values.
fn attention(cx: &mut Context, qkv: ValueId, places: Places) -> Result<Outputs, Failure> {
    for name in ["do_rotary", "past_present_share_buffer"] {
        if cx.node.bool_or(name, false)? {
            return Err(Failure::unsupported(format!("`{name}` is not supported")));
        }
    }
    let hidden = cx.dims(qkv).pop().unwrap_or_default();
    let sizes = match cx.sizes("qkv_hidden_sizes", 3, 1)? {
        Some(sizes) => sizes.into_iter().map(Expr::from).collect(),
        None => vec![hidden.floor_div(&Expr::from(3i64)); 3],
    };
    if sizes.iter().fold(Expr::default(), |a, b| a.add(b)) != hidden {
        return Err(Failure::invalid(format!("{hidden} columns do not make queries, keys and values")));
    }
    let mut parts = pieces(cx, qkv, 2, &sizes)?;
    for part in &mut parts {
        *part = heads(cx, *part, "num_heads")?;
    }
    let (q, mut k, mut v) = (parts[0], parts[1], parts[2]);
    let one = Expr::from(1i64);
    let mut past = Expr::default();
    if let Some(given) = cx.optional(places.past)? {
        let dims = cx.dims(given);
        let [_, rest @ ..] = dims.as_slice() else { return Err(Failure::invalid("`past` has no axes")) };
        let halves = pieces(cx, given, 0, &[one.clone(), one.clone()])?;
        let (past_k, past_v) = (cx.reshape(halves[0], rest.to_vec())?, cx.reshape(halves[1], rest.to_vec())?);
        (past, [k, v]) = after_past(cx, [past_k, past_v], [k, v])?;
    }
    let [y, ..] = attend_seen(cx, [q, k, v], &past, (places.mask, places.bias))?;
    let mut outputs = vec![y];
    if cx.wants(1) {
        let mut halves = Vec::new();
        for half in [k, v] {
            let mut dims = vec![one.clone()];
            dims.extend(cx.dims(half));
            halves.push(cx.reshape(half, dims)?);
        }
        outputs.push(cx.add(Concat { axis: 0 }, &halves)?);
    }
    Ok(outputs.into())
}

fn multi_head(cx: &mut Context) -> Result<Outputs, Failure> {
    if cx.bound(8).is_some() || cx.bound(9).is_some() {
        return Err(Failure::unsupported("past and present that share a buffer are not supported"));
    }
    let query = cx.input(0)?;
    let (key, value, bias) = (cx.optional(1)?, cx.optional(2)?, cx.optional(3)?);
    let count = Expr::from(cx.node.int("num_heads")?);
    let [q, mut k, mut v] = match (cx.rank(query), key, value) {
        (3, Some(key), Some(value)) => {
            let mut parts = [query, key, value];
            if let Some(bias) = bias {
                // Keys and values that come from outside, with 4 axes, have their bias already.
                let widths = [query, key, value].map(|x| match cx.dims(x).as_slice() {
                    [_, _, hidden] => hidden.clone(),
                    [_, heads, _, size] => heads.mul(size),
                    _ => Expr::default(),
                });
                let biases = pieces(cx, bias, 0, &widths)?;
                for (part, bias) in parts.iter_mut().zip(biases) {
                    if cx.rank(*part) == 3 {
                        *part = cx.map(&[*part, bias], |b, a| b.add(a[0], a[1]))?;
                    }
                }
            }
            for part in &mut parts {
                if cx.rank(*part) == 3 {
                    let split = split_heads(cx, *part, &count)?;
                    *part = cx.transpose(split, &[0, 2, 1, 3])?;
                }
            }
            parts
        }
        _ => return Err(Failure::unsupported("packed queries, keys and values are not supported")),
    };
    let mut past = Expr::default();
    if let (Some(past_k), Some(past_v)) = (cx.optional(6)?, cx.optional(7)?) {
        (past, [k, v]) = after_past(cx, [past_k, past_v], [k, v])?;
    }
    let [y, _, weights] = attend_seen(cx, [q, k, v], &past, (4, Some(5)))?;
    Ok(vec![y, k, v, weights].into())
}

/// Keys and values are caches of the whole sequence; how much of them is filled is known for each sequence at run time.
fn group_query(cx: &mut Context) -> Result<Outputs, Failure> {
    let quantized = ["k_quant_type", "v_quant_type"].into_iter().map(|n| Ok(cx.node.string_or(n, "NONE")? != "NONE"));
    let quantized = quantized.collect::<Result<Vec<bool>, Failure>>()?.contains(&true);
    if quantized || cx.bound(12).is_some() || cx.bound(13).is_some() {
        return Err(Failure::unsupported("quantized caches of keys and values are not supported"));
    }
    if cx.node.bool_or("sliding_window_cache", false)? {
        return Err(Failure::unsupported("caches of a window's size are not supported"));
    }
    if cx.bound(14).is_some() || cx.bound(15).is_some() {
        return Err(Failure::unsupported("normalized queries and keys are not supported"));
    }
    let (many, shared) = (Expr::from(cx.node.int("num_heads")?), Expr::from(cx.node.int("kv_num_heads")?));
    let query = cx.input(0)?;
    let (q, k, v) = match (cx.optional(1)?, cx.optional(2)?) {
        (Some(k), Some(v)) => (query, k, v),
        (None, None) => {
            let hidden = cx.dims(query).pop().unwrap_or_default();
            let size = hidden.floor_div(&many.add(&shared.scale(2)));
            let widths = [many.mul(&size), shared.mul(&size), shared.mul(&size)];
            if widths.iter().fold(Expr::default(), |a, b| a.add(b)) != hidden {
                return Err(Failure::invalid(format!("{hidden} columns are not {many} and twice {shared} heads")));
            }
            let parts = pieces(cx, query, 2, &widths)?;
            (parts[0], parts[1], parts[2])
        }
        _ => return Err(Failure::invalid("key and value must both be there")),
    };
    let (mut q, mut k) = (split_heads(cx, q, &many)?, split_heads(cx, k, &shared)?);
    let v = split_heads(cx, v, &shared)?;
    let [batch, queries, ..] = four(cx, q)?;
    let one = Expr::from(1i64);

    // How many keys of each sequence are in the cache: all but the new ones.
    let lengths = cx.input(5)?;
    let lengths = cx.cast(lengths, DType::I64)?;
    let lengths = cx.reshape(lengths, vec![batch.clone(), one.clone()])?;
    let new = cx.dims_tensor(std::slice::from_ref(&queries), true)?;
    let filled = cx.map(&[lengths, new], |b, a| {
        let (one, zero) = (b.int(a[0], 1), b.int(a[0], 0));
        let total = b.add(a[0], one);
        let before = b.sub(total, a[1]);
        b.max(before, zero)
    })?;
    if cx.node.bool_or("do_rotary", false)? {
        let (cos, sin) = (cx.input(7)?, cx.input(8)?);
        let places = match cx.optional(9)? {
            Some(places) => places,
            None => {
                let step = cx.add(Iota { dims: vec![one.clone(), queries.clone()], axis: 1 }, &[])?;
                cx.map(&[filled, step], |b, a| b.add(a[0], a[1]))?
            }
        };
        let turned = cx.dims(cos).last().map(|half| half.scale(2)).unwrap_or_default();
        let interleaved = cx.node.bool_or("rotary_interleaved", false)?;
        q = rotate(cx, q, [cos, sin], Some(places), turned.clone(), interleaved)?;
        k = rotate(cx, k, [cos, sin], Some(places), turned, interleaved)?;
    }
    let [q, k, v] = [q, k, v].map(|x| cx.transpose(x, &[0, 2, 1, 3]));
    let (q, mut k, mut v) = (q?, k?, v?);

    let total = cx.exprs(6, "total_sequence_length")?;
    let [total] = total.as_slice() else { return Err(Failure::invalid("`total_sequence_length` is no number")) };
    let past = match cx.optional(3)? {
        Some(past) => four(cx, past)?[2].clone(),
        None => Expr::default(),
    };
    let keys = past.greatest(total).simplify(cx.ranges());
    if past != Expr::default() || keys != queries {
        let place = cache_places(cx, filled, [&batch, &shared, &keys], &past, &queries)?;
        let kept = in_cache(cx, filled, new, &batch, &keys)?;
        let (old_k, old_v) = (cx.optional(3)?, cx.optional(4)?);
        for (new, old) in [(&mut k, old_k), (&mut v, old_v)] {
            let all = match old {
                Some(old) if past != Expr::default() => behind(cx, old, *new)?,
                _ => *new,
            };
            let all = cx.add(GatherNd { batch: 2 }, &[all, place])?;
            *new = cx.map(&[all, kept], |b, a| {
                let zero = b.lit(a[0], 0.0);
                b.select(a[1], a[0], zero)
            })?;
        }
    }

    let column = cx.reshape(filled, vec![batch, one.clone(), one.clone(), one])?;
    let (i, j) = (positions(cx, &queries, 2)?, positions(cx, &keys, 3)?);
    let window = cx.node.int_or("local_window_size", -1)?;
    let ahead = cx.node.bool_or("causal", true)?;
    let allowed = cx.map(&[i, j, column, new], |b, a| {
        let place = b.add(a[0], a[2]);
        let end = b.add(a[2], a[3]);
        let mut allowed = if ahead { b.le(a[1], place) } else { b.lt(a[1], end) };
        if window > 0 {
            let window = b.int(place, window);
            let start = b.sub(place, window);
            let near = b.gt(a[1], start);
            allowed = b.and(allowed, near);
        }
        allowed
    })?;
    let limits = penalty(cx, allowed, f64::NEG_INFINITY)?;
    let given = cx.optional(10)?;
    let bias = sum(cx, &[Some(limits), given])?;
    let sink = match cx.optional(11)? {
        Some(sink) => Some(sink),
        None if cx.node.bool_or("smooth_softmax", false)? => {
            let zero = cx.float(DType::F32, 0.0)?;
            Some(cx.broadcast(zero, vec![many])?)
        }
        None => None,
    };
    let scores = Scores { scale: scale(cx, q)?, softcap: f64::from(cx.node.float_or("softcap", 0.0)?), bias, sink };
    let [y, raw, weights] = attend(cx, [q, k, v], scores)?;
    let shown = if cx.node.int_or("qk_output", 0)? == 1 { raw } else { weights };
    Ok(vec![y, k, v, shown].into())
}

/// Whether each key of the new cache, `[batch, 1, keys, 1]`, is one of the sequence.
fn in_cache(
    cx: &mut Context,
    filled: ValueId,
    new: ValueId,
    batch: &Expr,
    keys: &Expr,
) -> Result<ValueId, Failure> {
    let column = cx.reshape(filled, vec![batch.clone(), 1i64.into(), 1i64.into(), 1i64.into()])?;
    let j = positions(cx, keys, 2)?;
    cx.map(&[j, column, new], |b, a| {
        let end = b.add(a[1], a[2]);
        b.lt(a[0], end)
    })
}

/// For each key of the new cache, `[batch, heads, keys, 1]`, its place in the old cache followed by the new keys: the filled
/// part of the old cache, the new keys, and then any place.
fn cache_places(
    cx: &mut Context,
    filled: ValueId,
    [batch, heads, keys]: [&Expr; 3],
    past: &Expr,
    new: &Expr,
) -> Result<ValueId, Failure> {
    let j = cx.add(Iota { dims: vec![Expr::from(1i64), keys.clone()], axis: 1 }, &[])?;
    let past = cx.dims_tensor(std::slice::from_ref(past), true)?;
    let new = cx.dims_tensor(std::slice::from_ref(new), true)?;
    let place = cx.map(&[j, filled, past, new], |b, a| {
        let one = b.int(a[0], 1);
        let (end, all) = (b.add(a[1], a[3]), b.add(a[2], a[3]));
        let (old, fresh) = (b.lt(a[0], a[1]), b.lt(a[0], end));
        let last = b.sub(all, one);
        let rest = b.min(a[0], last);
        let shifted = b.sub(a[0], a[1]);
        let shifted = b.add(a[2], shifted);
        let later = b.select(fresh, shifted, rest);
        b.select(old, a[0], later)
    })?;
    let place = cx.reshape(place, vec![batch.clone(), 1i64.into(), keys.clone(), 1i64.into()])?;
    cx.broadcast(place, vec![batch.clone(), heads.clone(), keys.clone(), 1i64.into()])
}
