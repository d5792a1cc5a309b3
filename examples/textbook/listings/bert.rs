//! (d) BERT as articles write it from memory:
//!
//! ```python
//! x = self.token(ids) + self.position(torch.arange(T)) + self.segment(segments)
//! for block in self.blocks:
//!     x = block(x, mask)
//! # masked language model
//! h = self.mlm_norm(torch.relu(self.mlm_dense(x)))
//! mlm = h @ self.token.weight.T + self.mlm_bias
//! # next sentence
//! nsp = self.nsp_out(torch.relu(self.nsp_dense(x[:, 0])))
//! ```
//!
//! It differs from BERT (Devlin et al. 2018) and its checkpoints in four places: BERT normalizes the sum of its embeddings; the head of the
//! masked language model has GELU; the dense layer on token 0, the pooler, has tanh; and its norms have an epsilon of 1e-12. Weights of a
//! checkpoint loaded into this model give wrong answers without an error; `kiln::families::bert` is the model that they are for.

use super::{blocks, dims};
use kiln::builder::Result;
use kiln::ir::DType;
use kiln::nn::{Activation, Embedding, LayerNorm, Linear, Scope};

const MODEL: usize = 8;
const WORDS: usize = 11;
const LONGEST: usize = 16;
const BLOCKS: usize = 2;

/// Inputs `ids`, `segments` and `mask`, i64 `[B, T]`; outputs `mlm: [B, T, V]` and `nsp: [B, 2]`.
pub fn graph(scope: &Scope<'_>) -> Result<()> {
    let g = scope.builder();
    let [batch, length] = dims(g, "tokens")?;
    let input = |name: &str| g.input(name, DType::I64, [batch.clone(), length.clone()]);
    let (ids, segments, mask) = (input("ids")?, input("segments")?, input("mask")?);
    let table = |name: &str, rows: usize| Embedding::new(&scope.enter(name), rows, MODEL);
    let token = table("token", WORDS)?;
    let at = table("position", LONGEST)?.apply(g.iota([length.clone()], 0)?)?;
    let mut x = token.apply(ids)?.add(at)?.add(table("segment", 2)?.apply(segments)?)?;
    let visible = mask.differs(0)?.reshape([batch.clone(), 1.into(), 1.into(), 1.into(), length])?;
    for n in 0..BLOCKS {
        x = blocks::block(&scope.enter("blocks").enter(n), x, visible, Activation::Gelu)?;
    }
    let linear = |name: &str, to: usize| Linear::new(&scope.enter(name), MODEL, to, true);
    let hidden = linear("mlm_dense", MODEL)?.apply(x)?.relu()?;
    let hidden = LayerNorm::new(&scope.enter("mlm_norm"), MODEL, 1e-5)?.apply(hidden)?;
    g.output("mlm", token.tied_head().apply(hidden)?.add(scope.parameter("mlm_bias", &[WORDS])?)?)?;
    let first = x.part(1, 0i64, 1i64)?.reshape([batch, MODEL.into()])?;
    g.output("nsp", linear("nsp_out", 2)?.apply(linear("nsp_dense", MODEL)?.apply(first)?.relu()?)?)
}
