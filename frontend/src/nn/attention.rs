//! Scaled dot-product attention (Vaswani et al. 2017, section 3.2) over any number of segments of keys.
//!
//! Invariant: weights of all segments are normalized together, so that attention over a cached past and new tokens is that over
//! their concatenation, without the cache being copied.

use crate::builder::{BuildError, Result, Value};
use kiln_ir::Expr;
use kiln_ir::ops::OpError;

/// Sizes of an attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Query heads, `H`.
    pub queries: usize,
    /// Heads of keys and values, `Hkv`; a divisor of the query heads (grouped queries, Ainslie et al. 2023).
    pub keys: usize,
    /// Size of a query and key, `D`.
    pub key_size: usize,
    /// Size of a value, `Dv`.
    pub value_size: usize,
}

impl Heads {
    /// Heads of one kind and size.
    pub fn equal(heads: usize, size: usize) -> Heads {
        Heads { queries: heads, keys: heads, key_size: size, value_size: size }
    }
}

/// Which keys a query sees.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'g> {
    /// True where it sees: broadcasts to `[B, Hkv, H/Hkv, T, S]`.
    pub visible: Value<'g>,
    /// The score of keys that it does not see: minus infinity, or a large negative number where a query may see none (it
    /// then sees all alike).
    pub fill: f64,
}

/// Keys and values of some positions.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'g> {
    /// `[B, S, Hkv, D]`, or `[S, B, Hkv, D]` in a cache.
    pub keys: Value<'g>,
    /// `[B, S, Hkv, Dv]`, or `[S, B, Hkv, Dv]` in a cache.
    pub values: Value<'g>,
    /// Whether the position comes before the batch.
    pub position_first: bool,
    /// Added to the scores: broadcasts to `[B, Hkv, H/Hkv, T, S]`.
    pub bias: Option<Value<'g>>,
    /// Which keys are seen; all without.
    pub mask: Option<Mask<'g>>,
    /// What keys and values are to be multiplied by; by nothing without.
    pub scales: Option<Scales<'g>>,
}

/// Scales of keys and values, one for all elements of a head: each broadcasts to `[B, Hkv, H/Hkv, T, S]`.
#[derive(Clone, Copy, Debug)]
pub struct Scales<'g> {
    /// Of keys.
    pub keys: Value<'g>,
    /// Of values.
    pub values: Value<'g>,
}

impl<'g> Segment<'g> {
    /// Keys and values as they are, without a bias.
    pub fn new(keys: Value<'g>, values: Value<'g>, position_first: bool, mask: Option<Mask<'g>>) -> Segment<'g> {
        Segment { keys, values, position_first, bias: None, mask, scales: None }
    }
}

/// What [`attend`] gives.
#[derive(Clone, Copy, Debug)]
pub struct Attend<'g> {
    /// `[B, T, H * Dv]`.
    pub output: Value<'g>,
    /// `[B, H, T, S]` over all segments.
    pub weights: Value<'g>,
}

/// Attention of queries `[B, T, H, D]` to segments, with scores multiplied by `scale`.
///
/// # Errors
/// The shapes do not fit, or there is no segment.
pub fn attend<'g>(queries: Value<'g>, heads: Heads, segments: &[Segment<'g>], scale: f64) -> Result<Attend<'g>> {
    let [batch, tokens] = [queries.dim(0)?, queries.dim(1)?];
    let groups = heads.queries.checked_div(heads.keys).unwrap_or(0);
    if groups * heads.keys != heads.queries || segments.is_empty() {
        let message = format!("{} query heads cannot share {} heads of keys", heads.queries, heads.keys);
        return Err(BuildError::Op { call: "attend".into(), error: OpError::new(message) });
    }
    let builder = queries.builder();
    let size = |n: usize| Expr::from(n);
    let split = [batch.clone(), tokens.clone(), size(heads.keys), size(groups), size(heads.key_size)];
    let queries = queries.reshape(split)?;
    let mut scores = Vec::with_capacity(segments.len());
    for segment in segments {
        let letters = if segment.position_first { "sbhd" } else { "bshd" };
        let product = queries.contract(segment.keys, &format!("bthgd,{letters}->bhgts"))?;
        let mut operands: Vec<Value<'g>> = segment.bias.into_iter().collect();
        operands.extend(segment.scales.map(|s| s.keys));
        operands.extend(segment.mask.map(|m| m.visible));
        scores.push(product.map("scores", &operands, |code, v| {
            let by = code.lit(v[0], scale);
            let mut given = v.iter().copied().skip(1);
            let bias = segment.bias.and_then(|_| given.next());
            let mut score = v[0];
            if let Some(keys) = segment.scales.and_then(|_| given.next()) {
                score = code.mul(score, keys);
            }
            if scale != 1.0 {
                score = code.mul(score, by);
            }
            if let Some(bias) = bias {
                score = code.add(score, bias);
            }
            if let (Some(mask), Some(visible)) = (segment.mask, given.next()) {
                let fill = code.lit(score, mask.fill);
                score = code.select(visible, score, fill);
            }
            score
        })?);
    }
    let scores = if let [one] = scores[..] { one } else { builder.concat(&scores, -1)? };
    let weights = scores.softmax(-1)?;
    let mut output: Option<Value<'g>> = None;
    let mut start = Expr::default();
    for segment in segments {
        let letters = if segment.position_first { "sbhd" } else { "bshd" };
        let length = segment.keys.dim(if segment.position_first { 0 } else { 1 })?;
        let own = if segments.len() == 1 { weights } else { weights.part(-1, start.clone(), length.clone())? };
        let own = match segment.scales {
            Some(scales) => own.mul(scales.values)?,
            None => own,
        };
        let part = own.contract(segment.values, &format!("bhgts,{letters}->bthgd"))?;
        output = Some(match output {
            None => part,
            Some(sum) => sum.add(part)?,
        });
        start = start.add(&length);
    }
    let flat = [batch.clone(), tokens.clone(), size(heads.queries * heads.value_size)];
    // There is a segment, so there is an output.
    let output = output.unwrap_or(queries).reshape(flat)?;
    let weights = weights.reshape([batch, size(heads.queries), tokens, start])?;
    Ok(Attend { output, weights })
}
