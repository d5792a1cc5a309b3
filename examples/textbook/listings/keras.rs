//! (a) An encoder-decoder as Keras tutorials write it:
//!
//! ```python
//! embed = Embedding(vocab, d_model)
//! def encoder(x):
//!     x = embed(x)
//!     x = MultiHeadAttention(num_heads=2, key_dim=d_model)(x, x)
//!     return Dense(d_model, activation="relu")(x)
//! def decoder(y, memory):
//!     y = embed(y)
//!     y = MultiHeadAttention(num_heads=2, key_dim=d_model)(y, y)
//!     y = MultiHeadAttention(num_heads=2, key_dim=d_model)(y, memory)
//!     return Dense(d_model, activation="relu")(y)
//! model = Dense(vocab, activation="softmax")(decoder(target, encoder(source)))
//! ```
//!
//! `key_dim` is the size of one head, so that two heads of `d_model` each make maps twice as wide as usual. What is said of such listings
//! and is not so:
//!
//! - *"It is the Transformer."* Without positions it does not know the order of its words: exchange two words of the source, and every
//!   output stays the same. Without residuals and norms it is trainable at one or two layers only.
//! - *"It learns to predict the next word."* Its attention over the target has no mask, so that during training each position sees the
//!   word that it is to predict. `use_causal_mask=True` is missing; `graph` has it where `causal` is true.

use super::{causal, dims};
use kiln::builder::{Result, Value};
use kiln::ir::DType;
use kiln::nn::{Embedding, Heads, Linear, Mask, Scope, Segment, WeightOrder, attend, split_heads};

const MODEL: usize = 8;
const WORDS: usize = 11;
const HEADS: Heads = Heads { queries: 2, keys: 2, key_size: MODEL, value_size: MODEL };

/// Keras keeps a dense layer's matrix as `[in, out]`.
fn dense<'g>(scope: &Scope<'g>, name: &str, from: usize, to: usize) -> Result<Linear<'g>> {
    Linear::ordered(&scope.enter(name), from, to, true, WeightOrder::InOut)
}

/// Keras' layer, of `x` to `memory`.
fn attention<'g>(scope: &Scope<'g>, x: Value<'g>, memory: Value<'g>, visible: Option<Value<'g>>) -> Result<Value<'g>> {
    let wide = HEADS.queries * HEADS.key_size;
    let heads = |name: &str, of: Value<'g>| {
        split_heads(dense(scope, name, MODEL, wide)?.apply(of)?, HEADS.queries, HEADS.key_size)
    };
    let mask = visible.map(|visible| Mask { visible, fill: f64::NEG_INFINITY });
    let (keys, values) = (heads("key", memory)?, heads("value", memory)?);
    let segment = Segment::new(keys, values, false, mask);
    let attended = attend(heads("query", x)?, HEADS, &[segment], 1.0 / (HEADS.key_size as f64).sqrt())?;
    dense(scope, "output", wide, MODEL)?.apply(attended.output)
}

/// Inputs `source` and `target`, i64 `[B, S]` and `[B, T]`; output `probabilities: [B, T, V]`.
pub fn graph(scope: &Scope<'_>, with_mask: bool) -> Result<()> {
    let g = scope.builder();
    let [batch, length] = dims(g, "source")?;
    let source = g.input("source", DType::I64, [batch.clone(), length])?;
    let length = g.symbol("target", 1..=512)?;
    let target = g.input("target", DType::I64, [batch, length.clone()])?;
    let embed = Embedding::new(&scope.enter("embed"), WORDS, MODEL)?;
    let x = embed.apply(source)?;
    let x = attention(&scope.enter("encoder.attention"), x, x, None)?;
    let memory = dense(scope, "encoder.dense", MODEL, MODEL)?.apply(x)?.relu()?;
    let y = embed.apply(target)?;
    let visible = if with_mask { Some(causal(g, &length)?) } else { None };
    let y = attention(&scope.enter("decoder.own"), y, y, visible)?;
    let y = attention(&scope.enter("decoder.cross"), y, memory, None)?;
    let y = dense(scope, "decoder.dense", MODEL, MODEL)?.apply(y)?.relu()?;
    g.output("probabilities", dense(scope, "words", MODEL, WORDS)?.apply(y)?.softmax(-1)?)
}
