//! `LinearAttention`: a recurrence over tokens whose state is a matrix for each head, as a `scan`.
//!
//! Source: ONNX operators, LinearAttention 27. The state of a key head is shared by the query heads that belong to it.
//!
//! Invariant: the state is computed in f32 where the inputs are narrower, and rounded when it is given out.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Contract};
use kiln_ir::{DType, Expr, TensorType};

pub(super) const OPS: &[Spec] = &[onnx(
    "LinearAttention",
    27,
    &["chunk_size", "kv_num_heads", "q_num_heads", "scale", "update_rule"],
    linear_attention,
)];

fn linear_attention(cx: &mut Context) -> Result<Outputs, Failure> {
    let (q, k, v) = (cx.input(0)?, cx.input(1)?, cx.input(2)?);
    let dtype = cx.dtype(q);
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (gated, delta) = match cx.node.string_or("update_rule", "gated_delta")? {
        "linear" => (false, false),
        "gated" => (true, false),
        "delta" => (false, true),
        "gated_delta" => (true, true),
        other => return Err(cx.node.attribute_value("update_rule", format!("{other:?} is none of ONNX's")).into()),
    };
    let (q_heads, kv_heads) = (cx.node.int("q_num_heads")?, cx.node.int("kv_num_heads")?);
    if q_heads < 1 || kv_heads < 1 || q_heads % kv_heads != 0 {
        return Err(Failure::invalid(format!("{q_heads} query heads do not share {kv_heads} key heads evenly")));
    }
    let heads = Expr::from(kv_heads);
    let own = std::slice::from_ref(&heads);
    let q = by_time(cx, q, &[heads.clone(), Expr::from(q_heads / kv_heads)], wide)?;
    let (k, v) = (by_time(cx, k, own, wide)?, by_time(cx, v, own, wide)?);
    let (q_dims, k_dims, v_dims) = (cx.dims(q), cx.dims(k), cx.dims(v));
    let (time, batch) = (q_dims[0].clone(), q_dims[1].clone());
    let (k_size, v_size) = (k_dims[3].clone(), v_dims[3].clone());
    let scale = match (cx.node.float_or("scale", 0.0)?, k_size.as_const()) {
        (s, _) if s != 0.0 => f64::from(s),
        (_, Some(n)) => 1.0 / (n as f64).sqrt(),
        _ => return Err(Failure::unsupported(format!("the head size `{k_size}` must be known; bind its symbols"))),
    };
    let mut slices = vec![q, k, v];
    if gated {
        let decay = cx.optional(4)?.ok_or_else(|| Failure::invalid("this rule needs `decay`"))?;
        slices.push(by_time(cx, decay, own, wide)?);
    }
    if delta {
        let beta = cx.optional(5)?.ok_or_else(|| Failure::invalid("this rule needs `beta`"))?;
        // One for each head, or one for all.
        let all =
            if cx.dims(beta).last().and_then(Expr::as_const) == Some(1) { Expr::from(1i64) } else { heads.clone() };
        slices.push(by_time(cx, beta, &[all], wide)?);
    }
    let state_dims = vec![batch.clone(), heads.clone(), k_size, v_size.clone()];
    let state = match cx.optional(3)? {
        Some(past) if cx.rank(past) == 4 => cx.cast(past, wide)?,
        Some(past) => return Err(Failure::invalid(format!("`past_state` is {}, not of 4 axes", cx.ty(past)))),
        None => super::support::filled(cx, wide, 0.0, state_dims.clone())?,
    };
    if cx.dims(state) != state_dims {
        let wanted = TensorType::new(wide, state_dims);
        return Err(Failure::invalid(format!("`past_state` is {}, not {wanted}", cx.ty(state))));
    }
    let mut params = vec![cx.ty(state).clone()];
    params.extend(slices.iter().map(|&s| TensorType::new(wide, cx.dims(s).split_off(1))));
    let (turn, captures) = cx.built_region(&params, &[], |cx, inputs, _| {
        let [state, q, k, v, rest @ ..] = inputs else {
            return Err(Failure::invalid("a linear attention lacks an operand"));
        };
        let mut rest = rest.iter().copied();
        let decay = gated.then(|| rest.next()).flatten();
        let mut state = *state;
        if let Some(decay) = decay {
            let decay = with_axis(cx, decay, 3)?;
            state = cx.map(&[state, decay], |b, a| {
                let kept = b.exp(a[1]);
                b.mul(a[0], kept)
            })?;
        }
        let mut new = *v;
        if let Some(beta) = delta.then(|| rest.next()).flatten() {
            let known = cx.add(Contract::new("bnd", "bnde", "bne"), &[*k, state])?;
            new = cx.map(&[new, known, beta], |b, a| {
                let rest = b.sub(a[0], a[1]);
                b.mul(rest, a[2])
            })?;
        }
        let (column, row) = (with_axis(cx, *k, 3)?, with_axis(cx, new, 2)?);
        state = cx.map(&[state, column, row], |b, a| {
            let outer = b.mul(a[1], a[2]);
            b.add(a[0], outer)
        })?;
        let y = cx.add(Contract::new("bngd", "bnde", "bnge"), &[*q, state])?;
        let y = cx.map(&[y], |b, a| {
            let scale = b.lit(a[0], scale);
            b.mul(a[0], scale)
        })?;
        Ok(vec![state, y])
    })?;
    let stacked = vec![time.clone(), batch.clone(), heads.clone(), Expr::from(q_heads / kv_heads), v_size.clone()];
    let zeros = vec![0usize; slices.len()];
    let a = Attributes::new()
        .with("body", turn)
        .with("states", 1usize)
        .with("axes", zeros.as_slice())
        .with("backward", zeros.as_slice())
        .with("out_axes", &zeros[..1])
        .with("out_backward", &zeros[..1])
        .with("results", vec![params[0].clone(), TensorType::new(wide, stacked)]);
    let operands: Vec<ValueId> = [state].into_iter().chain(slices).chain(captures).collect();
    let results = cx.host("scan", a, &operands)?;
    let [state, y] = results.as_slice() else { return Err(Failure::invalid("a scan lacks a result")) };
    let y = cx.transpose(*y, &[1, 0, 2, 3, 4])?;
    let y = cx.reshape(y, vec![batch, time, v_size.scale(q_heads)])?;
    Ok(vec![cx.cast(y, dtype)?, cx.cast(*state, dtype)?].into())
}

/// `[batch, time, parts * size]` as `[time, batch, parts, size]`, the parts on as many axes as there are numbers of them.
fn by_time(cx: &mut Context, x: ValueId, parts: &[Expr], dtype: DType) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let [batch, time, packed] = dims.as_slice() else {
        return Err(Failure::invalid(format!("{} has not 3 axes", cx.ty(x))));
    };
    let all = parts.iter().fold(Expr::from(1i64), |n, p| n.mul(p));
    if packed.modulo(&all).as_const() != Some(0) {
        return Err(Failure::invalid(format!("{all} heads do not divide {packed}")));
    }
    let mut split = vec![batch.clone(), time.clone()];
    split.extend(parts.iter().cloned());
    split.push(packed.floor_div(&all));
    let axes: Vec<usize> = [1, 0].into_iter().chain(2..split.len()).collect();
    let x = cx.reshape(x, split)?;
    let x = cx.transpose(x, &axes)?;
    cx.cast(x, dtype)
}

/// The value with an axis of extent 1 at a place.
fn with_axis(cx: &mut Context, x: ValueId, at: usize) -> Result<ValueId, Failure> {
    let mut dims = cx.dims(x);
    dims.insert(at, Expr::from(1i64));
    cx.reshape(x, dims)
}
