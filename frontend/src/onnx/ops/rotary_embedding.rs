//! `RotaryEmbedding`: pairs of a head's elements rotated by angles that depend on the position.

use super::split::pieces;
use super::{Spec, of, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Concat, Gather, Iota};
use kiln_ir::{DType, Expr};

pub(super) const OPS: &[Spec] = &[
    onnx("RotaryEmbedding", 23, &["interleaved", "num_heads", "rotary_embedding_dim"], |cx| {
        let (x, cos, sin, places) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.optional(3)?);
        rotary(cx, x, cos, sin, places)
    }),
    of(
        "com.microsoft",
        "RotaryEmbedding",
        &["interleaved", "is_packed_batching", "num_heads", "rotary_embedding_dim", "scale"],
        |cx| {
            let (x, places, cos, sin) = (cx.input(0)?, cx.input(1)?, cx.input(2)?, cx.input(3)?);
            if cx.node.bool_or("is_packed_batching", false)? || cx.node.float_or("scale", 1.0)? != 1.0 {
                return Err(Failure::unsupported("packed batches and scales other than 1 are not supported"));
            }
            let places = if cx.rank(places) < 2 { from_offset(cx, x, places)? } else { places };
            rotary(cx, x, cos, sin, Some(places))
        },
    ),
];

/// Positions `[batch, sequence]` of `x` that begin at one number.
fn from_offset(cx: &mut Context, x: ValueId, offset: ValueId) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let (batch, sequence) = match dims.as_slice() {
        [batch, sequence, _] | [batch, _, sequence, _] => (batch.clone(), sequence.clone()),
        _ => return Err(Failure::invalid(format!("{} has neither 3 nor 4 axes", cx.ty(x)))),
    };
    let offset = cx.reshape(offset, vec![])?;
    let offset = cx.cast(offset, DType::I64)?;
    let step = cx.add(Iota { dims: vec![batch, sequence], axis: 1 }, &[])?;
    cx.map(&[step, offset], |b, a| b.add(a[0], a[1]))
}

/// Caches are `[positions, half]` with `places` `[batch, sequence]`, or `[batch, sequence, half]` without.
fn rotary(
    cx: &mut Context,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    places: Option<ValueId>,
) -> Result<Outputs, Failure> {
    let given = cx.dims(x);
    // As [batch, sequence, heads, size].
    let x = match given.as_slice() {
        [_, _, _, _] => cx.transpose(x, &[0, 2, 1, 3])?,
        [batch, sequence, hidden] => {
            let heads = match cx.node.int_or("num_heads", 0)? {
                0 => {
                    // ONNX Runtime allows it to be left out: the caches tell the size then.
                    let half = cx.dims(cos).last().cloned().unwrap_or_default();
                    hidden.floor_div(&half.scale(2))
                }
                n => Expr::from(n),
            };
            if heads.as_const().is_none_or(|h| h < 1) || hidden.modulo(&heads).as_const() != Some(0) {
                return Err(cx.node.attribute_value("num_heads", format!("{heads} does not divide {hidden}")).into());
            }
            cx.reshape(x, vec![batch.clone(), sequence.clone(), heads.clone(), hidden.floor_div(&heads)])?
        }
        _ => return Err(Failure::invalid(format!("{} has neither 3 nor 4 axes", cx.ty(x)))),
    };
    let turned = match cx.node.int_or("rotary_embedding_dim", 0)? {
        0 => cx.dims(x)[3].clone(),
        n if n > 0 && n % 2 == 0 => Expr::from(n),
        n => return Err(cx.node.attribute_value("rotary_embedding_dim", format!("{n} is out of range")).into()),
    };
    let y = rotate(cx, x, [cos, sin], places, turned, cx.node.bool_or("interleaved", false)?)?;
    let y = if given.len() == 4 { cx.transpose(y, &[0, 2, 1, 3])? } else { cx.reshape(y, given)? };
    Ok(y.into())
}

/// Rotates the first `turned` elements of each head of `x` `[batch, sequence, heads, size]`. See [`rotary`] for the caches.
pub(super) fn rotate(
    cx: &mut Context,
    x: ValueId,
    caches: [ValueId; 2],
    places: Option<ValueId>,
    turned: Expr,
    interleaved: bool,
) -> Result<ValueId, Failure> {
    let dims = cx.dims(x);
    let size = dims[3].clone();
    let half = turned.floor_div(&Expr::from(2i64));
    let one = Expr::from(1i64);
    let angles = |cx: &mut Context, cache: ValueId| -> Result<ValueId, Failure> {
        let picked = match places {
            Some(places) => cx.add(Gather { axis: 0 }, &[cache, places])?,
            None => cache,
        };
        let mut dims = cx.dims(picked);
        if dims.len() != 3 || dims[2] != half {
            return Err(Failure::invalid(format!("the cache {} does not fit a rotation of {turned}", cx.ty(cache))));
        }
        dims.insert(2, one.clone());
        cx.reshape(picked, dims)
    };
    let (cos, sin) = (angles(cx, caches[0])?, angles(cx, caches[1])?);
    let rest = size.sub(&turned);
    let whole = if rest.as_const() == Some(0) { vec![x] } else { pieces(cx, x, 3, &[turned.clone(), rest])? };
    let front = whole[0];
    // The two elements of a pair are neighbours, or half the rotated part apart: axes 4 or 3 of a split.
    let mut paired = dims[..3].to_vec();
    let axis = if interleaved { 4 } else { 3 };
    paired.extend(if interleaved { [half.clone(), 2i64.into()] } else { [2i64.into(), half.clone()] });
    let pairs = cx.reshape(front, paired)?;
    let mut parts = Vec::new();
    for part in pieces(cx, pairs, axis, &[one.clone(), one.clone()])? {
        let mut dims = dims[..3].to_vec();
        dims.push(half.clone());
        parts.push(cx.reshape(part, dims)?);
    }
    let (a, b) = (parts[0], parts[1]);
    let real = cx.map(&[a, b, cos, sin], |f, v| {
        let (x, y) = (f.mul(v[2], v[0]), f.mul(v[3], v[1]));
        f.sub(x, y)
    })?;
    let imaginary = cx.map(&[a, b, cos, sin], |f, v| {
        let (x, y) = (f.mul(v[3], v[0]), f.mul(v[2], v[1]));
        f.add(x, y)
    })?;
    let mut joined = dims[..3].to_vec();
    joined.push(turned);
    let mut split = dims[..3].to_vec();
    split.extend(if interleaved { [half, one] } else { [one, half] });
    let (real, imaginary) = (cx.reshape(real, split.clone())?, cx.reshape(imaginary, split)?);
    let turned = cx.add(Concat { axis }, &[real, imaginary])?;
    let turned = cx.reshape(turned, joined)?;
    match whole.get(1) {
        Some(&rest) => cx.add(Concat { axis: 3 }, &[turned, rest]),
        None => Ok(turned),
    }
}
