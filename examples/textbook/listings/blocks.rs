//! (c) Attention and a block as most articles write them:
//!
//! ```python
//! class MultiHeadAttention(nn.Module):
//!     def forward(self, q, k, v, mask=None):
//!         q, k, v = (self.split(w(x)) for w, x in ((self.w_q, q), (self.w_k, k), (self.w_v, v)))
//!         scores = q @ k.transpose(-2, -1) / math.sqrt(self.d_k)
//!         if mask is not None:
//!             scores = scores.masked_fill(mask == 0, -1e9)
//!         return self.w_o(self.join(torch.softmax(scores, dim=-1) @ v))
//!
//! class TransformerBlock(nn.Module):
//!     def forward(self, x, mask):
//!         x = self.norm1(x + self.attention(x, x, x, mask))
//!         return self.norm2(x + self.feed_forward(x))
//! ```
//!
//! `-1e9` is not minus infinity: a query that may see no key at all sees all of them alike, the mean of the values, and not NaN. That is
//! what the first text here is for: none of its positions count. In half precision `-1e9` is minus infinity, and the NaN is back.

use super::dims;
use kiln::builder::{Result, Value};
use kiln::ir::DType;
use kiln::nn::{Activation, FeedForward, Heads, LayerNorm, Mask, MultiHead, MultiHeadNames, Scope, WeightOrder};

const MODEL: usize = 8;
const INNER: usize = 12;

/// The attention, of `x` to itself; `visible` is true where a key counts.
pub fn attention<'g>(scope: &Scope<'g>, x: Value<'g>, visible: Value<'g>) -> Result<Value<'g>> {
    let names = MultiHeadNames { query: "w_q", key: "w_k", value: "w_v", output: "w_o" };
    let heads = Heads::equal(2, MODEL / 2);
    let own = MultiHead::new(scope, names, MODEL, heads, true, 1.0 / (heads.key_size as f64).sqrt())?;
    Ok(own.over(x, x, None, Some(Mask { visible, fill: -1e9 }))?.output)
}

/// The block: post-norm, both residuals.
pub fn block<'g>(scope: &Scope<'g>, x: Value<'g>, visible: Value<'g>, activation: Activation) -> Result<Value<'g>> {
    let norm = |name: &str| LayerNorm::new(&scope.enter(name), MODEL, 1e-5);
    let x = norm("norm1")?.apply(x.add(attention(&scope.enter("attention"), x, visible)?)?)?;
    let places = (&scope.enter("feed_forward.0"), &scope.enter("feed_forward.2"));
    let inner = FeedForward::new(places, (MODEL, INNER), activation, true, WeightOrder::OutIn)?;
    norm("norm2")?.apply(x.add(inner.apply(x)?)?)
}

/// The inputs `x: [B, T, E]` and `mask`, i64 `[B, T]`, the latter as what attention takes.
fn masked<'g>(scope: &Scope<'g>) -> Result<(Value<'g>, Value<'g>)> {
    let g = scope.builder();
    let [batch, length] = dims(g, "tokens")?;
    let x = g.input("x", DType::F32, [batch.clone(), length.clone(), MODEL.into()])?;
    let mask = g.input("mask", DType::I64, [batch.clone(), length.clone()])?;
    Ok((x, mask.differs(0)?.reshape([batch, 1.into(), 1.into(), 1.into(), length])?))
}

/// The attention alone; output `y: [B, T, E]`.
pub fn attention_graph(scope: &Scope<'_>) -> Result<()> {
    let (x, visible) = masked(scope)?;
    scope.builder().output("y", attention(scope, x, visible)?)
}

/// The block alone; output `y: [B, T, E]`.
pub fn block_graph(scope: &Scope<'_>) -> Result<()> {
    let (x, visible) = masked(scope)?;
    scope.builder().output("y", block(scope, x, visible, Activation::Relu)?)
}
