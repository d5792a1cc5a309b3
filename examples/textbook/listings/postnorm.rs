//! (b) A language model as PyTorch tutorials write it:
//!
//! ```python
//! class Layer(nn.Module):
//!     def forward(self, x, mask):
//!         attn, _ = self.attn(x, x, x, attn_mask=mask)
//!         return self.norm2(self.ffn(self.norm1(x + attn)))
//!
//! def forward(self, tokens):
//!     x = self.embed(tokens) + self.positions(torch.arange(tokens.shape[1]))
//!     for layer in self.layers:
//!         x = layer(x, causal_mask)
//!     return self.head(x)
//! ```
//!
//! The layer keeps the residual of the attention and loses that of the feed-forward network, which the paper has too (Vaswani et al. 2017,
//! section 3.1: `LayerNorm(x + Sublayer(x))` around each sub-layer). It is not the same model with a typing error: the network's output
//! alone goes on, and deep stacks of it do not train. It is compared as it is written.
//!
//! What `head` gives are logits. Two things are often said of them wrongly; see [`super::decoding`].

use super::causal;
use kiln::builder::Result;
use kiln::ir::DType;
use kiln::nn::{
    Activation, Embedding, FeedForward, Heads, LayerNorm, Linear, Mask, Scope, Segment, WeightOrder, attend,
    split_heads,
};

const MODEL: usize = 8;
const INNER: usize = 12;
const WORDS: usize = 11;
const LONGEST: usize = 16;
const LAYERS: usize = 2;

/// Input `tokens`, i64 `[B, T]`; output `logits: [B, T, V]`.
pub fn graph(scope: &Scope<'_>) -> Result<()> {
    let g = scope.builder();
    let batch = g.symbol("batch", 1..=64)?;
    let length = g.symbol("tokens", 1..=LONGEST as i64)?;
    let tokens = g.input("tokens", DType::I64, [batch, length.clone()])?;
    let positions = Embedding::new(&scope.enter("positions"), LONGEST, MODEL)?.apply(g.iota([length.clone()], 0)?)?;
    let mut x = Embedding::new(&scope.enter("embed"), WORDS, MODEL)?.apply(tokens)?.add(positions)?;
    let heads = Heads::equal(2, MODEL / 2);
    let mask = Mask { visible: causal(g, &length)?, fill: f64::NEG_INFINITY };
    for n in 0..LAYERS {
        let layer = scope.enter("layers").enter(n);
        // `nn.MultiheadAttention` keeps the three maps in one matrix, `[3 E, E]`.
        let place = layer.enter("attn");
        let both = x.contract(place.parameter("in_proj_weight", &[3 * MODEL, MODEL])?, "btk,nk->btn")?;
        let both = both.add(place.parameter("in_proj_bias", &[3 * MODEL])?)?;
        let part = |n: usize| split_heads(both.part(-1, n * MODEL, MODEL)?, heads.queries, heads.key_size);
        let segment = Segment::new(part(1)?, part(2)?, false, Some(mask));
        let attended = attend(part(0)?, heads, &[segment], 1.0 / (heads.key_size as f64).sqrt())?;
        let attended = Linear::new(&place.enter("out_proj"), MODEL, MODEL, true)?.apply(attended.output)?;
        let norm = |name: &str| LayerNorm::new(&layer.enter(name), MODEL, 1e-5);
        let places = (&layer.enter("ffn.0"), &layer.enter("ffn.2"));
        let ffn = FeedForward::new(places, (MODEL, INNER), Activation::Relu, true, WeightOrder::OutIn)?;
        x = norm("norm2")?.apply(ffn.apply(norm("norm1")?.apply(x.add(attended)?)?)?)?;
    }
    g.output("logits", Linear::new(&scope.enter("head"), MODEL, WORDS, true)?.apply(x)?)
}
