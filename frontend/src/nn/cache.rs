//! Decoding with a cache of keys and values.
//!
//! Invariant: a cache is `[positions, B, Hkv, D]`, so that the past is the front of a buffer and new positions follow it
//! directly: a step reads its past from the buffer and writes its new keys behind, and nothing is moved. Keys are kept rotated.
//!
//! What differs between a past whose length is a dim of the graph and one that is a whole buffer with a number of positions that
//! count is here alone: [`CacheForm`]. So is what its numbers are kept in: [`CacheElement`]. New keys and values are rounded before
//! anything attends to them, so that a token sees the same whether what it sees came with it or before it.

use super::attention::{Mask, Scales, Segment};
use crate::builder::{BuildError, Builder, Result, Value};
use kiln_ir::ops::OpError;
use kiln_ir::{DType, Expr};
use std::fmt;
use std::str::FromStr;

/// What the numbers of a cache are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CacheElement {
    /// As they are.
    #[default]
    F32,
    /// 16 bits, of which 10 after the point.
    F16,
    /// 16 bits with the range of f32.
    Bf16,
    /// -127..127 times a scale in f32 for each head of each position.
    Int8,
}

impl CacheElement {
    const ALL: [CacheElement; 4] = [CacheElement::F32, CacheElement::F16, CacheElement::Bf16, CacheElement::Int8];

    /// The name, as options and artifacts have it.
    pub fn name(self) -> &'static str {
        match self {
            CacheElement::F32 => "f32",
            CacheElement::F16 => "f16",
            CacheElement::Bf16 => "bf16",
            CacheElement::Int8 => "int8",
        }
    }

    /// The type of the cache's tensors.
    pub fn dtype(self) -> DType {
        match self {
            CacheElement::F32 => DType::F32,
            CacheElement::F16 => DType::F16,
            CacheElement::Bf16 => DType::BF16,
            CacheElement::Int8 => DType::I8,
        }
    }

    /// What a layer keeps, as the names of its inputs and outputs have it: keys and values, `[positions, B, Hkv, D]` of
    /// [`CacheElement::dtype`], and the scales of both, where there are any, f32 `[positions, B, Hkv]`.
    pub fn parts(self) -> &'static [&'static str] {
        match self {
            CacheElement::F32 | CacheElement::F16 | CacheElement::Bf16 => &["k", "v"],
            CacheElement::Int8 => &["k", "v", "k_scale", "v_scale"],
        }
    }
}

impl fmt::Display for CacheElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for CacheElement {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<CacheElement, String> {
        let found = CacheElement::ALL.into_iter().find(|e| e.name() == text);
        found.ok_or_else(|| format!("{text:?} is none of {}", CacheElement::ALL.map(CacheElement::name).join(", ")))
    }
}

/// A cache as a graph has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheLayout {
    /// How the past is taken.
    pub form: CacheForm,
    /// What its numbers are kept in.
    pub element: CacheElement,
}

/// How a graph takes the past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheForm {
    /// The past's inputs have its length: `[P, B, Hkv, D]` with `P` this dim.
    Prefix(Expr),
    /// The past's inputs have the whole capacity, `[C, B, Hkv, D]`; an input `past_length` of type i64 without axes says
    /// how many positions of it count.
    Capacity,
    /// Several texts beside one another in one row of tokens, each of which sees its own (Krell et al. 2021). Inputs of type i64 say
    /// what a token is: `text` and `position`, `[T]`, and of the past `past_text` and `past_position`, `[P]` with `P` this dim. What is
    /// of text 0 is seen by all. A text's tokens come in order.
    Packed(Expr),
}

/// Which logits a graph gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Logits {
    /// Of the last token: `[B, V]`.
    Last,
    /// Of every token: `[B, T, V]`.
    All,
    /// Of the tokens whose places in `[T]` the input `chosen` has, i64 `[W]`: `[B, W, V]`.
    Chosen,
    /// None; the graph only fills the cache.
    None,
}

/// One layer's keys and values of some positions, as a cache keeps them.
#[derive(Clone, Copy, Debug)]
pub struct LayerCache<'g> {
    /// `[positions, B, Hkv, D]`.
    keys: Value<'g>,
    /// `[positions, B, Hkv, Dv]`.
    values: Value<'g>,
    /// Of keys and values, f32 `[positions, B, Hkv]`.
    scales: Option<[Value<'g>; 2]>,
}

/// The greatest number of a cache of bytes.
const MOST: f64 = 127.0;

impl<'g> LayerCache<'g> {
    /// New keys and values, f32, as a cache of such elements keeps them.
    fn of(keys: Value<'g>, values: Value<'g>, element: CacheElement) -> Result<LayerCache<'g>> {
        match element {
            CacheElement::F32 => Ok(LayerCache { keys, values, scales: None }),
            CacheElement::F16 | CacheElement::Bf16 => {
                let to = element.dtype();
                Ok(LayerCache { keys: keys.cast(to)?, values: values.cast(to)?, scales: None })
            }
            CacheElement::Int8 => {
                let ((keys, of_keys), (values, of_values)) = (in_bytes(keys)?, in_bytes(values)?);
                Ok(LayerCache { keys, values, scales: Some([of_keys, of_values]) })
            }
        }
    }

    /// The tensors in the order of [`CacheElement::parts`].
    fn tensors(&self) -> Vec<Value<'g>> {
        [self.keys, self.values].into_iter().chain(self.scales.into_iter().flatten()).collect()
    }

    /// These positions and those that follow them.
    fn and(&self, next: &LayerCache<'g>) -> Result<LayerCache<'g>> {
        let join = |a: Value<'g>, b: Value<'g>| a.builder().concat(&[a, b], 0);
        let scales = match (self.scales, next.scales) {
            (Some([a, b]), Some([c, d])) => Some([join(a, c)?, join(b, d)?]),
            _ => None,
        };
        Ok(LayerCache { keys: join(self.keys, next.keys)?, values: join(self.values, next.values)?, scales })
    }

    /// What is attended to.
    fn segment(&self, mask: Option<Mask<'g>>) -> Result<Segment<'g>> {
        let numbers = |x: Value<'g>| if x.ty().dtype == DType::F32 { Ok(x) } else { x.cast(DType::F32) };
        // [S, B, Hkv] as scores have their axes: [B, Hkv, 1, 1, S].
        let beside_scores = |scale: Value<'g>| scale.transpose(&[1, 2, 0])?.unsqueeze(2)?.unsqueeze(3);
        let scales = match self.scales {
            Some([keys, values]) => Some(Scales { keys: beside_scores(keys)?, values: beside_scores(values)? }),
            None => None,
        };
        let (keys, values) = (numbers(self.keys)?, numbers(self.values)?);
        Ok(Segment { scales, ..Segment::new(keys, values, true, mask) })
    }
}

/// `[.., D]` as whole numbers in -127..127 and their scales, `[..]`: the greatest absolute value over 127.
fn in_bytes(x: Value<'_>) -> Result<(Value<'_>, Value<'_>)> {
    let scale = x.abs()?.maximum(&[-1], false)?.scale(1.0 / MOST)?;
    let last = scale.rank();
    let bytes = x.map("in_bytes", &[scale.unsqueeze(last)?], |code, v| {
        let (zero, one) = (code.lit(v[1], 0.0), code.lit(v[1], 1.0));
        let (inverse, some) = (code.div(one, v[1]), code.gt(v[1], zero));
        // Where all are zero there is no scale to divide by.
        let inverse = code.select(some, inverse, zero);
        let steps = code.mul(v[0], inverse);
        let (low, high) = (code.lit(steps, -MOST), code.lit(steps, MOST));
        let steps = code.max(steps, low);
        let steps = code.min(steps, high);
        let whole = code.round(steps);
        code.cast(DType::I8, whole)
    })?;
    Ok((bytes, scale))
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
    packed: Option<Packed<'g>>,
    capacity: usize,
    element: CacheElement,
}

/// Which text tokens are of, and where the past's are in theirs.
#[derive(Clone, Copy, Debug)]
struct Packed<'g> {
    /// `[T]`.
    text: Value<'g>,
    /// `[past]`.
    past_text: Value<'g>,
    /// `[past]`.
    past_position: Value<'g>,
}

impl<'g> Packed<'g> {
    /// Whether tokens see what is of such texts, `[T, S]`.
    fn sees(&self, keys: Value<'g>) -> Result<Value<'g>> {
        self.text.unsqueeze(1)?.map("sees", &[keys], |code, v| {
            let (own, none) = (code.eq(v[0], v[1]), code.int(v[1], 0));
            let of_all = code.eq(v[1], none);
            code.or(own, of_all)
        })
    }
}

impl<'g> Decoding<'g> {
    /// The start of a decoder graph: its inputs `tokens: i64[B, T]` and, by the form, `past_length`. Gives the tokens too.
    ///
    /// # Errors
    /// The names are taken.
    pub fn new(
        builder: &'g Builder,
        (batch, tokens): (Expr, Expr),
        cache: &CacheLayout,
        capacity: usize,
    ) -> Result<(Decoding<'g>, Value<'g>)> {
        let ids = builder.input("tokens", DType::I64, [batch.clone(), tokens.clone()])?;
        let mut packed = None;
        let (past, past_length, positions) = match &cache.form {
            CacheForm::Prefix(past) => {
                // Counted from the start of the past, so that the past's length enters as a dim.
                let all = builder.iota([past.add(&tokens)], 0)?;
                (past.clone(), None, all.part(0, past.clone(), tokens.clone())?)
            }
            CacheForm::Capacity => {
                let length = builder.input("past_length", DType::I64, [])?;
                (capacity.into(), Some(length), builder.iota([tokens.clone()], 0)?.add(length)?)
            }
            CacheForm::Packed(past) => {
                let each = |name: &str, extent: &Expr| builder.input(name, DType::I64, [extent.clone()]);
                let [text, position] = [each("text", &tokens)?, each("position", &tokens)?];
                packed = Some(Packed {
                    text,
                    past_text: each("past_text", past)?,
                    past_position: each("past_position", past)?,
                });
                (past.clone(), None, position)
            }
        };
        let element = cache.element;
        Ok((Decoding { builder, batch, tokens, past, past_length, positions, packed, capacity, element }, ids))
    }

    /// The positions of the tokens, i64 `[T]`.
    pub fn positions(&self) -> Value<'g> {
        self.positions
    }

    /// The positions of the past's inputs, i64 `[past]`.
    fn past_positions(&self) -> Result<Value<'g>> {
        match self.packed {
            Some(packed) => Ok(packed.past_position),
            None => self.builder.iota([self.past.clone()], 0),
        }
    }

    /// The past of a layer: inputs `past_k.N`, `past_v.N` and so on, by [`CacheElement::parts`].
    ///
    /// # Errors
    /// The names are taken.
    pub fn layer(&self, layer: usize, heads: usize, (key, value): (usize, usize)) -> Result<LayerCache<'g>> {
        let whole = |size: usize| vec![self.past.clone(), self.batch.clone(), heads.into(), size.into()];
        let beside = || vec![self.past.clone(), self.batch.clone(), heads.into()];
        let input =
            |kind: &str, dtype, dims: Vec<Expr>| self.builder.input(&format!("past_{kind}.{layer}"), dtype, dims);
        let dtype = self.element.dtype();
        let (keys, values) = (input("k", dtype, whole(key))?, input("v", dtype, whole(value))?);
        let scales = match self.element {
            CacheElement::F32 | CacheElement::F16 | CacheElement::Bf16 => None,
            CacheElement::Int8 => {
                Some([input("k_scale", DType::F32, beside())?, input("v_scale", DType::F32, beside())?])
            }
        };
        Ok(LayerCache { keys, values, scales })
    }

    /// Whether past and new positions are one segment. A single token's scores are joined instead, so that its past is not copied; many tokens
    /// read it so often that the copy matters little (a few, that were guessed, pay for it), and attention over one segment is one kernel. Texts beside one another are mostly
    /// of one token each, and a capacity is mostly empty.
    fn is_joined(&self) -> bool {
        let prefix = self.past_length.is_none() && self.packed.is_none();
        prefix && self.tokens.as_const() != Some(1)
    }

    /// The positions of the keys of each of [`Decoding::segments`], i64 `[S]`.
    ///
    /// # Errors
    /// Never for a graph that could be begun.
    pub fn key_positions(&self) -> Result<Vec<Value<'g>>> {
        if self.is_joined() {
            return Ok(vec![self.builder.iota([self.past.add(&self.tokens)], 0)?]);
        }
        Ok(vec![self.past_positions()?, self.positions])
    }

    /// The segments of a layer: its past, and the new keys and values (f32 `[B, T, Hkv, D]`), which become the outputs `new_k.N`,
    /// `new_v.N` and so on, as the past has them; or one of both together. With a window a query sees itself and the `window - 1` positions before it
    /// (Beltagy et al. 2020).
    ///
    /// # Errors
    /// The shapes do not fit.
    pub fn segments(
        &self,
        layer: usize,
        past: LayerCache<'g>,
        (keys, values): (Value<'g>, Value<'g>),
        window: Option<usize>,
    ) -> Result<Vec<Segment<'g>>> {
        let new = LayerCache::of(self.position_first(keys)?, self.position_first(values)?, self.element)?;
        for (kind, tensor) in self.element.parts().iter().zip(new.tensors()) {
            self.builder.output(&format!("new_{kind}.{layer}"), tensor)?;
        }
        let mask = |visible| Mask { visible, fill: f64::NEG_INFINITY };
        if self.is_joined() {
            let visible = self.all_visible(window)?;
            return Ok(vec![past.and(&new)?.segment(Some(mask(visible)))?]);
        }
        let past_mask = self.past_visible(window)?.map(mask);
        let new_mask = self.new_visible(window)?.map(mask);
        Ok(vec![past.segment(past_mask)?, new.segment(new_mask)?])
    }

    /// `[T, past + T]`, of a past that is a prefix.
    fn all_visible(&self, window: Option<usize>) -> Result<Value<'g>> {
        let at = self.builder.iota([self.past.add(&self.tokens)], 0)?;
        let causal = at.at_most(self.positions.unsqueeze(1)?)?;
        match window {
            Some(window) => causal.both(self.near(self.positions, at, window)?),
            None => Ok(causal),
        }
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
        let at = self.past_positions()?;
        let counted = match (self.past_length, self.packed) {
            (Some(length), _) => Some(at.less(length)?),
            (None, Some(packed)) => Some(packed.sees(packed.past_text)?),
            (None, None) => None,
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
        let (causal, at) = match self.packed {
            Some(packed) => (causal.both(packed.sees(packed.text)?)?, self.positions),
            None => (causal, at),
        };
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
            Logits::Chosen => {
                let most = i64::try_from(self.capacity).unwrap_or(i64::MAX);
                let wanted = self.builder.symbol("chosen", 1..=most)?;
                Some(hidden.gather(self.builder.input("chosen", DType::I64, [wanted])?, 1)?)
            }
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
