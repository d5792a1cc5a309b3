//! XLNet (Yang et al. 2019), as an encoder: both directions, no memory of earlier segments, no permutation.
//!
//! Invariant: parameters have the names of Hugging Face's `XLNet` models, below `transformer.` or without it.

use super::Settings;
use super::heads::{Head, Wanted, known_head_parts, sentence_embedding, span_outputs};
use crate::builder::{BuildError, Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use crate::nn::{
    Activation, Embedding, FeedForward, Heads, LayerNorm, Linear, Mask, Parameters, RelativeSines, Scope, Segment,
    WeightOrder, attend,
};
use kiln_ir::ops::OpError;
use kiln_ir::{DType, Graph};

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `V`.
    pub vocabulary: usize,
    /// `E`.
    pub model: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads, of size `E / heads`.
    pub heads: usize,
    /// `F`.
    pub inner: usize,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// Added to variances.
    pub epsilon: f64,
    /// Tokens that a graph is made for: positions have no limit of their own.
    pub longest: usize,
    /// Classes of the heads that classify.
    pub classes: usize,
}

impl Config {
    /// From a `config.json`, for texts of at most `longest` tokens and a head with so many classes.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(
        settings: &Settings<'_>,
        longest: usize,
        classes: usize,
    ) -> std::result::Result<Config, CheckpointError> {
        let (model, heads) = (settings.size("d_model")?, settings.size("n_head")?);
        settings.divides("n_head", model, heads)?;
        if model % 2 != 0 {
            return Err(settings.error("d_model", format!("is {model}, which sines and cosines do not share")));
        }
        let only = |key: &str, value: &str| match settings.text_if(key)?.unwrap_or(value) {
            found if found == value => Ok(()),
            found => Err(settings.error(key, format!("`{found}` is not supported"))),
        };
        only("attn_type", "bi")?;
        only("summary_type", "last")?;
        if settings.flag("same_length", false)? {
            return Err(settings.error("same_length", "is true, which is not supported"));
        }
        if settings.float_if("clamp_len")?.is_some_and(|v| v > 0.0) {
            return Err(settings.error("clamp_len", "is not supported"));
        }
        let name = settings.text_if("ff_activation")?.unwrap_or("gelu");
        let unsupported = || settings.error("ff_activation", format!("`{name}` is not supported"));
        Ok(Config {
            vocabulary: settings.size("vocab_size")?,
            model,
            layers: settings.layers("n_layer")?,
            heads,
            inner: settings.size("d_inner")?,
            activation: Activation::from_name(name).ok_or_else(unsupported)?,
            epsilon: settings.float_if("layer_norm_eps")?.unwrap_or(1e-12),
            longest,
            classes,
        })
    }
}

/// The graph: inputs `input_ids`, `attention_mask` and `token_type_ids`, i64 `[B, T]`; outputs as [`super::TextEncoder`] has them. The
/// language model's head gives logits of each token from both sides.
///
/// # Errors
/// The model has no such head.
pub fn graph(config: &Config, parameters: &dyn Parameters, wanted: &Wanted) -> Result<Graph> {
    let g = Builder::new("xlnet");
    let scope = Scope::new(&g, parameters);
    let prefixed = scope.has("transformer.word_embedding.weight");
    let root = if prefixed { scope.enter("transformer") } else { scope.clone() };
    let dims = wanted.dims(&g, config.longest)?;
    let [batch, tokens] = dims.clone();
    let input = |name: &str| g.input(name, DType::I64, dims.clone());
    let (ids, mask, segments) = (input("input_ids")?, input("attention_mask")?, input("token_type_ids")?);
    let embedding = Embedding::new(&root.enter("word_embedding"), config.vocabulary, config.model)?;
    let mut hidden = embedding.apply(ids)?;
    // A token sees itself even where it does not count.
    let at = g.iota([tokens.clone()], 0)?;
    let itself = at.unsqueeze(1)?.map("itself", &[at], |code, v| code.eq(v[0], v[1]))?;
    let counts = mask.differs(0)?.reshape([batch.clone(), 1.into(), 1.into(), 1.into(), tokens.clone()])?;
    let visible = counts.map("visible", &[itself], |code, v| code.or(v[0], v[1]))?;
    // Whether query and key are of different segments.
    let keys = segments.reshape([batch.clone(), 1.into(), 1.into(), 1.into(), tokens.clone()])?;
    let queries = segments.reshape([batch.clone(), 1.into(), 1.into(), tokens, 1.into()])?;
    let differ = queries.map("differ", &[keys], |code, v| code.ne(v[0], v[1]))?;
    let sines = RelativeSines::new(&g, config.model, config.longest)?;
    let shared = Shared { sines, differ, mask: Mask { visible, fill: -1e30 } };
    let show = |n: usize, hidden: Value<'_>| match wanted.hidden_states {
        true => g.output(&format!("hidden_states.{n}"), hidden),
        false => Ok(()),
    };
    show(0, hidden)?;
    for n in 0..config.layers {
        let layer = root.enter("layer").enter(n);
        let place = layer.enter("rel_attn");
        let (attended, weights) = attention(config, &place, hidden, &shared)?;
        if wanted.attentions {
            g.output(&format!("attentions.{n}"), weights)?;
        }
        hidden =
            LayerNorm::new(&place.enter("layer_norm"), config.model, config.epsilon)?.apply(attended.add(hidden)?)?;
        let place = layer.enter("ff");
        let places = (&place.enter("layer_1"), &place.enter("layer_2"));
        let inner =
            FeedForward::new(places, (config.model, config.inner), config.activation, true, WeightOrder::OutIn)?;
        let made = inner.apply(hidden)?.add(hidden)?;
        hidden = LayerNorm::new(&place.enter("layer_norm"), config.model, config.epsilon)?.apply(made)?;
        show(n + 1, hidden)?;
    }
    let linear = |name: &str, to: usize| Linear::new(&scope.enter(name), config.model, to, true);
    match wanted.head {
        Head::Hidden => g.output("last_hidden_state", hidden)?,
        Head::Tokens => g.output("logits", linear("classifier", config.classes)?.apply(hidden)?)?,
        Head::Sequence => {
            // XLNet's texts are padded on the left: the last token is that of the class.
            let last = dims[1].sub(&1i64.into());
            let last = hidden.part(1, last, 1i64)?.reshape([batch, config.model.into()])?;
            let summary = linear("sequence_summary.summary", config.model)?.apply(last)?.tanh()?;
            g.output("logits", linear("logits_proj", config.classes)?.apply(summary)?)?;
        }
        Head::Answer => span_outputs(linear("qa_outputs", 2)?.apply(hidden)?)?,
        Head::MaskedLanguage => {
            let bias = scope.enter("lm_loss").parameter("bias", &[config.vocabulary])?;
            g.output("logits", embedding.tied_head().apply(hidden)?.add(bias)?)?;
        }
        Head::Embedding => sentence_embedding(hidden, mask)?,
        Head::NextSentence | Head::PreTraining | Head::Replaced => {
            let error = OpError::new("XLNet models have no such head");
            return Err(BuildError::Op { call: format!("{:?}", wanted.head), error });
        }
    }
    g.finish()
}

/// What all layers share.
struct Shared<'g> {
    sines: RelativeSines<'g>,
    /// `[B, 1, 1, T, T]`.
    differ: Value<'g>,
    mask: Mask<'g>,
}

/// A layer's attention, and its weights.
fn attention<'g>(
    config: &Config,
    place: &Scope<'g>,
    x: Value<'g>,
    shared: &Shared<'g>,
) -> Result<(Value<'g>, Value<'g>)> {
    let heads = Heads::equal(config.heads, config.model / config.heads);
    let (count, size) = (heads.queries, heads.key_size);
    let map = |name: &str| place.parameter(name, &[config.model, count, size]);
    let apply = |name: &str| x.contract(map(name)?, "bte,ehd->bthd");
    let (queries, keys, values) = (apply("q")?, apply("k")?, apply("v")?);
    let with = |bias: &str| queries.add(place.parameter(bias, &[count, size])?);
    let scale = 1.0 / (size as f64).sqrt();
    let distance = shared.sines.scores(with("r_r_bias")?, map("r")?)?;
    // A row for keys of the query's own segment, and one for others.
    let rows = place.parameter("seg_embed", &[2, count, size])?;
    let both = with("r_s_bias")?.contract(rows, "bthd,shd->bhts")?;
    let dims = [x.dim(0)?, count.into(), 1.into(), x.dim(1)?, 1.into()];
    let part = |n: usize| both.part(-1, n, 1i64)?.reshape(dims.clone());
    let bias = distance.map("bias", &[shared.differ, part(1)?, part(0)?], |code, v| {
        let segment = code.select(v[1], v[2], v[3]);
        let sum = code.add(v[0], segment);
        let by = code.lit(sum, scale);
        code.mul(sum, by)
    })?;
    let segment = Segment { bias: Some(bias), ..Segment::new(keys, values, false, Some(shared.mask)) };
    let attended = attend(with("r_w_bias")?, heads, &[segment], scale)?;
    let split = crate::nn::split_heads(attended.output, count, size)?;
    Ok((split.contract(map("o")?, "bthd,ehd->bte")?, attended.weights))
}

/// Tensors that a checkpoint may have beside the parameters of a graph: what only a permuted model asks for, and parts of other heads.
pub fn known_surplus(wanted: Head, name: &str) -> bool {
    let part = name.strip_prefix("transformer.").unwrap_or(name);
    part == "mask_emb" || name == "lm_loss.weight" || known_head_parts(wanted, name)
}
