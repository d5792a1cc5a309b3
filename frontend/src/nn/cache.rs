//! Decoding with a cache of keys and values.
//!
//! Invariant: a cache is `[positions, B, Hkv, D]`, so that the past is the front of a buffer and new positions follow it
//! directly: a step reads its past from the buffer and writes its new keys behind, and nothing is moved. Keys are kept rotated.
//!
//! What differs between a past whose length is a dim of the graph and one that is a whole buffer with a number of positions that
//! count is here alone: [`CacheForm`].

use super::attention::{Mask, Segment};
use crate::builder::{BuildError, Builder, Result, Value};
use kiln_ir::ops::OpError;
use kiln_ir::{DType, Expr};

/// How a graph takes the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheForm {
    /// The past's inputs have its length: `[P, B, Hkv, D]` with `P` this dim.
    Prefix(Expr),
    /// The past's inputs have the whole capacity, `[C, B, Hkv, D]`; an input `past_length` of type i64 without axes says
    /// how many positions of it count.
    Capacity,
}

/// Which logits a graph gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Logits {
    /// Of the last token: `[B, V]`.
    Last,
    /// Of every token: `[B, T, V]`.
    All,
    /// None; the graph only fills the cache.
    None,
}

/// One layer's past.
#[derive(Clone, Copy, Debug)]
pub struct LayerCache<'g> {
    /// `[past, B, Hkv, D]`.
    pub keys: Value<'g>,
    /// `[past, B, Hkv, Dv]`.
    pub values: Value<'g>,
}

/// What all layers of a decoder graph share.
#[derive(Clone, Debug)]
pub struct Decoding<'g> {
    builder: &'g Builder,
    batch: Expr,
    tokens: Expr,
    /// Extent of the past's inputs.
    past: Expr,
    /// How many of its positions count, as a tensor without axes; nothing where all do.
    past_length: Option<Value<'g>>,
    positions: Value<'g>,
}

impl<'g> Decoding<'g> {
    /// The start of a decoder graph: its inputs `tokens: i64[B, T]` and, by the form, `past_length`. Gives the tokens too.
    ///
    /// # Errors
    /// The names are taken.
    pub fn new(
        builder: &'g Builder,
        (batch, tokens): (Expr, Expr),
        form: &CacheForm,
        capacity: usize,
    ) -> Result<(Decoding<'g>, Value<'g>)> {
        let ids = builder.input("tokens", DType::I64, [batch.clone(), tokens.clone()])?;
        let (past, past_length, positions) = match form {
            CacheForm::Prefix(past) => {
                // Counted from the start of the past, so that the past's length enters as a dim.
                let all = builder.iota([past.add(&tokens)], 0)?;
                (past.clone(), None, all.part(0, past.clone(), tokens.clone())?)
            }
            CacheForm::Capacity => {
                let length = builder.input("past_length", DType::I64, [])?;
                (capacity.into(), Some(length), builder.iota([tokens.clone()], 0)?.add(length)?)
            }
        };
        Ok((Decoding { builder, batch, tokens, past, past_length, positions }, ids))
    }

    /// The positions of the tokens, i64 `[T]`.
    pub fn positions(&self) -> Value<'g> {
        self.positions
    }

    /// The positions of the past's inputs, i64 `[past]`.
    ///
    /// # Errors
    /// Never for a graph that could be begun.
    pub fn past_positions(&self) -> Result<Value<'g>> {
        self.builder.iota([self.past.clone()], 0)
    }

    /// The inputs `past_k.N` and `past_v.N` of a layer.
    ///
    /// # Errors
    /// The names are taken.
    pub fn layer(&self, layer: usize, heads: usize, (key, value): (usize, usize)) -> Result<LayerCache<'g>> {
        let dims = |size: usize| [self.past.clone(), self.batch.clone(), heads.into(), size.into()];
        let keys = self.builder.input(&format!("past_k.{layer}"), DType::F32, dims(key))?;
        let values = self.builder.input(&format!("past_v.{layer}"), DType::F32, dims(value))?;
        Ok(LayerCache { keys, values })
    }

    /// The segments of a layer: its past, and the new keys and values (`[B, T, Hkv, D]`), which become the outputs `new_k.N` and
    /// `new_v.N`. With a window a query sees itself and the `window - 1` positions before it (Beltagy et al. 2020).
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn segments(
        &self,
        layer: usize,
        past: LayerCache<'g>,
        (keys, values): (Value<'g>, Value<'g>),
        window: Option<usize>,
    ) -> Result<[Segment<'g>; 2]> {
        let keys = self.position_first(keys)?;
        let values = self.position_first(values)?;
        self.builder.output(&format!("new_k.{layer}"), keys)?;
        self.builder.output(&format!("new_v.{layer}"), values)?;
        let mask = |visible| Mask { visible, fill: f64::NEG_INFINITY };
        let past_mask = self.past_visible(window)?.map(mask);
        let new_mask = self.new_visible(window)?.map(mask);
        let segment = |keys, values, mask| Segment { keys, values, position_first: true, bias: None, mask };
        Ok([segment(past.keys, past.values, past_mask), segment(keys, values, new_mask)])
    }

    /// `[B, T, H, D]` as `[T, B, H, D]`.
    fn position_first(&self, x: Value<'g>) -> Result<Value<'g>> {
        if self.batch.as_const() == Some(1) {
            let mut dims = x.dims();
            dims.swap(0, 1);
            return x.reshape(dims);
        }
        x.transpose(&[1, 0, 2, 3])
    }

    /// `[T, past]`.
    fn past_visible(&self, window: Option<usize>) -> Result<Option<Value<'g>>> {
        let at = self.builder.iota([self.past.clone()], 0)?;
        let counted = match self.past_length {
            Some(length) => Some(at.less(length)?),
            None => None,
        };
        let near = match window {
            Some(window) => Some(self.near(self.positions, at, window)?),
            None => None,
        };
        Ok(match (counted, near) {
            (Some(a), Some(b)) => Some(a.both(b)?),
            (a, b) => a.or(b),
        })
    }

    /// `[T, T]`.
    fn new_visible(&self, window: Option<usize>) -> Result<Option<Value<'g>>> {
        if self.tokens.as_const() == Some(1) {
            return Ok(None);
        }
        let at = self.builder.iota([self.tokens.clone()], 0)?;
        let causal = at.at_most(at.unsqueeze(1)?)?;
        Ok(Some(match window {
            Some(window) => causal.both(self.near(at, at, window)?)?,
            None => causal,
        }))
    }

    /// Whether `query - key < window`, `[T, S]`.
    fn near(&self, queries: Value<'g>, keys: Value<'g>, window: usize) -> Result<Value<'g>> {
        let window = i64::try_from(window).unwrap_or(i64::MAX);
        queries.unsqueeze(1)?.map("near", &[keys], |code, v| {
            let distance = code.sub(v[0], v[1]);
            let window = code.int(distance, window);
            code.lt(distance, window)
        })
    }

    /// The hidden states that logits are made of: `[B, E]` of the last token or all, `[B, T, E]`.
    ///
    /// # Errors
    /// There are no tokens.
    pub fn select(&self, hidden: Value<'g>, logits: Logits) -> Result<Option<Value<'g>>> {
        Ok(match logits {
            Logits::None => None,
            Logits::All => Some(hidden),
            Logits::Last => {
                let size = hidden.dim(-1)?;
                let last = self.tokens.sub(&Expr::from(1i64));
                if last.as_const().is_some_and(|n| n < 0) {
                    let error = OpError::new("there is no last token");
                    return Err(BuildError::Op { call: "select".into(), error });
                }
                Some(hidden.part(1, last, 1i64)?.reshape([self.batch.clone(), size])?)
            }
        })
    }
}
