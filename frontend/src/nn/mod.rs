//! The parts of language models, written with the [`Builder`]: the language that model families are written in.
//!
//! Invariant: a module's parameters are asked for when it is made, under the path of its [`Scope`], and applying it asks for
//! none; so that a module that is applied twice shares its weights, and a checkpoint can be checked whole.
//!
//! Shapes are given with these letters: `B` batch, `T` tokens (queries), `S` keys, `E` model size, `H` query heads, `Hkv`
//! heads of keys and values, `D` size of a head's query and key, `Dv` of its value, `F` inner size, `V` vocabulary.
//!
//! [`Builder`]: crate::builder::Builder

mod attention;
mod cache;
mod disentangled;
mod dropout;
mod embedding;
mod feed_forward;
mod layer;
mod linear;
mod matrix;
mod multi_head;
mod norm;
mod relative;
mod relative_xl;
mod rotary;
mod scope;
mod switches;

pub use attention::{Attend, Heads, Mask, Scales, Segment, attend};
pub use cache::{CacheElement, CacheForm, CacheLayout, Decoding, LayerCache, Logits};
pub use disentangled::Distances;
pub use dropout::{Dropout, Phase};
pub use embedding::{Embedding, sinusoids};
pub use feed_forward::{Activation, FeedForward, Gated};
pub use layer::{DecoderLayer, EncoderLayer, NormPlace, Residual};
pub use linear::{Linear, WeightOrder};
pub use matrix::Matrix;
pub use multi_head::{MultiHead, MultiHeadNames, split_heads};
pub use norm::{LayerNorm, RmsNorm};
pub use relative::RelativeBias;
pub use relative_xl::RelativeSines;
pub use rotary::{Pairs, Rotary, Scaling};
pub use scope::{Parameters, Scope, Seeded};
pub use switches::{HEAD_SWITCH, HeadSwitches, LAYER_SWITCH, LayerSwitch, Switches};
