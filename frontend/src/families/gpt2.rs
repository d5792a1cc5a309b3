//! GPT-2 (Radford et al. 2019): learned positions, pre-norm, tied embeddings.
//!
//! Invariant: parameters have the names of Hugging Face's `GPT2LMHeadModel`, with the prefix `transformer` or, as the first
//! checkpoints have them, without.

use super::{Anatomy, Form, Settings};
use crate::builder::{Builder, Result};
use crate::checkpoint::CheckpointError;
use crate::nn::{
    Activation, Decoding, Embedding, FeedForward, Heads, LayerNorm, LayerSwitch, Linear, Parameters, Scope,
    WeightOrder, attend, split_heads,
};
use kiln_ir::Graph;

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `V`.
    pub vocabulary: usize,
    /// `E`.
    pub model: usize,
    /// Layers.
    pub layers: usize,
    /// Attention.
    pub heads: Heads,
    /// `F`.
    pub inner: usize,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// Added to variances.
    pub epsilon: f64,
    /// Rows of the table of positions.
    pub context: usize,
    /// Whether scores are divided by the root of the heads' size.
    pub scaled: bool,
    /// Whether they are divided by the layer's number, from 1, too.
    pub scaled_by_layer: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
}

impl Config {
    /// From a `config.json`.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>) -> std::result::Result<Config, CheckpointError> {
        let (model, heads) = (settings.size("n_embd")?, settings.size("n_head")?);
        settings.divides("n_head", model, heads)?;
        let name = settings.text_if("activation_function")?.unwrap_or("gelu_new");
        let activation = Activation::from_name(name);
        let unsupported = || settings.error("activation_function", format!("`{name}` is not supported"));
        Ok(Config {
            vocabulary: settings.size("vocab_size")?,
            model,
            layers: settings.layers("n_layer")?,
            heads: Heads::equal(heads, model / heads),
            inner: settings.size_if("n_inner")?.unwrap_or(4 * model),
            activation: activation.ok_or_else(unsupported)?,
            epsilon: settings.float_if("layer_norm_epsilon")?.unwrap_or(1e-5),
            context: settings.size("n_positions")?,
            scaled: settings.flag("scale_attn_weights", true)?,
            scaled_by_layer: settings.flag("scale_attn_by_inverse_layer_idx", false)?,
            tied: settings.flag("tie_word_embeddings", true)?,
        })
    }

    /// Where its checkpoints have layers; their queries, keys and values are one matrix, and heads stay.
    pub fn anatomy(&self) -> Anatomy {
        let heads = Err("GPT-2's configuration has no place for layers with fewer heads");
        let ordered = self.scaled_by_layer.then_some("its attention is scaled by the number of the layer");
        Anatomy { layers: "h.", count: self.layers, count_key: "n_layer", heads, ordered }
    }
}

/// The graph of a form; see [`super::Decoder::graph`].
///
/// # Errors
/// The form is not one that the model can have.
pub fn graph(config: &Config, parameters: &dyn Parameters, form: &Form) -> Result<Graph> {
    let g = Builder::new("gpt2");
    let (dims, cache) = form.dims(&g)?;
    let scope = Scope::new(&g, parameters);
    let bare = scope.has("wte.weight");
    let root = if bare { scope.clone() } else { scope.enter("transformer") };
    let (decoding, tokens) = Decoding::new(&g, dims, &cache, form.capacity)?;
    let (model, heads) = (config.model, config.heads);
    let embedding = Embedding::new(&root.enter("wte"), config.vocabulary, model)?;
    let positions = Embedding::new(&root.enter("wpe"), config.context, model)?;
    let mut hidden = embedding.apply(tokens)?.add(positions.apply(decoding.positions())?)?;
    for n in 0..config.layers {
        let layer = root.enter("h").enter(n);
        let norm = |name: &str| LayerNorm::new(&layer.enter(name), model, config.epsilon);
        let linear =
            |name: &str, outputs: usize| Linear::ordered(&layer.enter(name), model, outputs, true, WeightOrder::InOut);
        let joint = linear("attn.c_attn", 3 * model)?;
        let output = linear("attn.c_proj", model)?;
        let inner = FeedForward::new(
            (&layer.enter("mlp.c_fc"), &layer.enter("mlp.c_proj")),
            (model, config.inner),
            config.activation,
            true,
            WeightOrder::InOut,
        )?;
        let past = decoding.layer(n, heads.keys, (heads.key_size, heads.value_size))?;
        let all = joint.apply(norm("ln_1")?.apply(hidden)?)?;
        let part = |n: usize| split_heads(all.part(-1, n * model, model)?, heads.queries, heads.key_size);
        let segments = decoding.segments(n, past, (part(1)?, part(2)?), None)?;
        let mut scale = if config.scaled { 1.0 / (heads.key_size as f64).sqrt() } else { 1.0 };
        if config.scaled_by_layer {
            scale /= (n + 1) as f64;
        }
        let attended = attend(part(0)?, heads, &segments, scale)?;
        let before = hidden;
        hidden = hidden.add(output.apply(attended.output)?)?;
        hidden = hidden.add(inner.apply(norm("ln_2")?.apply(hidden)?)?)?;
        hidden = LayerSwitch::new(&layer)?.apply(before, hidden)?;
    }
    let norm = LayerNorm::new(&root.enter("ln_f"), model, config.epsilon)?;
    let head = match config.tied {
        true => embedding.tied_head(),
        false => Linear::new(&scope.enter("lm_head"), model, config.vocabulary, false)?,
    };
    if let Some(hidden) = decoding.select(hidden, form.logits)? {
        g.output("logits", head.apply(norm.apply(hidden)?)?)?;
    }
    g.finish()
}

/// Tensors that a checkpoint may have beside its parameters: the masks that older ones hold, and a copy of the tied head.
pub fn known_surplus(config: &Config, name: &str) -> bool {
    name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias") || config.tied && name == "lm_head.weight"
}
