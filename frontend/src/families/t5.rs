//! T5 (Raffel et al. 2019) and T5 1.1: relative positions, pre-norm, no biases, scores that are not scaled.
//!
//! Invariant: parameters have the names of Hugging Face's `T5ForConditionalGeneration`.

use super::sequence::{output_sources, source_mask, source_segment};
use super::{SequenceForm, Settings};
use crate::builder::{Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use crate::nn::{
    Activation, Decoding, Embedding, FeedForward, Gated, Heads, Linear, MultiHead, MultiHeadNames, Parameters,
    RelativeBias, RmsNorm, Scope, WeightOrder,
};
use kiln_ir::{DType, Graph};

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `V`.
    pub vocabulary: usize,
    /// `E`.
    pub model: usize,
    /// Layers of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Attention.
    pub heads: Heads,
    /// `F`.
    pub inner: usize,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// Whether that is gated.
    pub gated: bool,
    /// Added to mean squares.
    pub epsilon: f64,
    /// Buckets of distances, and the distance from which all share one.
    pub buckets: (usize, usize),
    /// Whether the head is the embedding.
    pub tied: bool,
    /// The token that targets begin with.
    pub start: Option<u32>,
}

impl Config {
    /// From a `config.json`.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>) -> std::result::Result<Config, CheckpointError> {
        let name = settings.text_if("feed_forward_proj")?.unwrap_or("relu");
        let (gated, plain) = match name.strip_prefix("gated-") {
            Some(plain) => (true, plain),
            None => (false, name),
        };
        // What T5 1.1 calls a gated GELU has the one with tanh.
        let activation = if gated && plain == "gelu" { "gelu_new" } else { plain };
        let unsupported = || settings.error("feed_forward_proj", format!("`{name}` is not supported"));
        let layers = settings.layers("num_layers")?;
        let decoder_layers = if settings.size_if("num_decoder_layers")?.is_some() {
            settings.layers("num_decoder_layers")?
        } else {
            layers
        };
        let buckets = settings.size_if("relative_attention_num_buckets")?.unwrap_or(32);
        let longest = settings.size_if("relative_attention_max_distance")?.unwrap_or(128);
        if buckets < 4 || longest <= buckets {
            return Err(
                settings.error("relative_attention_num_buckets", format!("is {buckets} for a distance of {longest}"))
            );
        }
        Ok(Config {
            vocabulary: settings.size("vocab_size")?,
            model: settings.size("d_model")?,
            encoder_layers: layers,
            decoder_layers,
            heads: Heads::equal(settings.size("num_heads")?, settings.size("d_kv")?),
            inner: settings.size("d_ff")?,
            activation: Activation::from_name(activation).ok_or_else(unsupported)?,
            gated,
            epsilon: settings.float_if("layer_norm_epsilon")?.unwrap_or(1e-6),
            buckets: (buckets, longest),
            tied: settings.flag("tie_word_embeddings", true)?,
            start: settings.float_if("decoder_start_token_id")?.map(|v| v as u32),
        })
    }
}

const NAMES: MultiHeadNames<'_> = MultiHeadNames { query: "q", key: "k", value: "v", output: "o" };

fn attention<'g>(config: &Config, scope: &Scope<'g>) -> Result<MultiHead<'g>> {
    MultiHead::new(scope, NAMES, config.model, config.heads, false, 1.0)
}

fn norm<'g>(config: &Config, scope: &Scope<'g>, name: &str) -> Result<RmsNorm<'g>> {
    RmsNorm::new(&scope.enter(name), config.model, config.epsilon)
}

/// The feed-forward layer with its norm and residual.
fn inner<'g>(config: &Config, layer: &Scope<'g>, hidden: Value<'g>) -> Result<Value<'g>> {
    let (model, inner) = (config.model, config.inner);
    let x = norm(config, layer, "layer_norm")?.apply(hidden)?;
    let scope = layer.enter("DenseReluDense");
    let made = if config.gated {
        let map = |name: &str, from, to| Linear::new(&scope.enter(name), from, to, false);
        Gated::new(map("wi_0", model, inner)?, map("wi_1", model, inner)?, map("wo", inner, model)?, config.activation)
            .apply(x)?
    } else {
        let places = (&scope.enter("wi"), &scope.enter("wo"));
        FeedForward::new(places, (model, inner), config.activation, false, WeightOrder::OutIn)?.apply(x)?
    };
    hidden.add(made)
}

fn bias<'g>(config: &Config, stack: &Scope<'g>, both_ways: bool, capacity: usize) -> Result<RelativeBias<'g>> {
    let place = stack.enter("block.0.layer.0.SelfAttention.relative_attention_bias");
    RelativeBias::new(&place, config.buckets, config.heads.queries, both_ways, capacity)
}

/// See [`super::Sequence::encoder`].
///
/// # Errors
/// The form is not one that the model can have.
pub fn encoder(config: &Config, parameters: &dyn Parameters, form: &SequenceForm) -> Result<Graph> {
    let g = Builder::new("t5-encoder");
    let scope = Scope::new(&g, parameters);
    let dims = [form.target.batch.into(), form.source(&g)?];
    let ids = g.input("source", DType::I64, dims.clone())?;
    let mask = source_mask(&g, dims.clone())?;
    let stack = scope.enter("encoder");
    let positions = g.iota([dims[1].clone()], 0)?;
    let bias = bias(config, &stack, true, form.longest_source)?.apply(positions, positions)?;
    let mut hidden = Embedding::new(&scope.enter("shared"), config.vocabulary, config.model)?.apply(ids)?;
    for n in 0..config.encoder_layers {
        let block = stack.enter("block").enter(n).enter("layer");
        let x = norm(config, &block, "0.layer_norm")?.apply(hidden)?;
        let attended = attention(config, &block.enter("0.SelfAttention"))?.over(x, x, Some(bias), Some(mask))?;
        hidden = inner(config, &block.enter("1"), hidden.add(attended.output)?)?;
    }
    let memory = norm(config, &stack, "final_layer_norm")?.apply(hidden)?;
    g.output("memory", memory)?;
    output_sources(&g, config.decoder_layers, |n| {
        let place = scope.enter("decoder.block").enter(n).enter("layer.1.EncDecAttention");
        attention(config, &place)?.keys_and_values(memory)
    })?;
    g.finish()
}

/// See [`super::Sequence::decoder`].
///
/// # Errors
/// The form is not one that the model can have.
pub fn decoder(config: &Config, parameters: &dyn Parameters, form: &SequenceForm) -> Result<Graph> {
    let g = Builder::new("t5-decoder");
    let scope = Scope::new(&g, parameters);
    let (dims, cache) = form.target.dims(&g)?;
    let source = [form.target.batch.into(), form.source(&g)?];
    let (decoding, tokens) = Decoding::new(&g, dims, &cache, form.target.capacity)?;
    let mask = source_mask(&g, source.clone())?;
    let stack = scope.enter("decoder");
    let bias = bias(config, &stack, false, form.target.capacity)?;
    let positions = decoding.positions();
    let keys = decoding.key_positions()?;
    let biases = keys.into_iter().map(|keys| bias.apply(positions, keys)).collect::<Result<Vec<_>>>()?;
    let embedding = Embedding::new(&scope.enter("shared"), config.vocabulary, config.model)?;
    let heads = config.heads;
    let mut hidden = embedding.apply(tokens)?;
    for n in 0..config.decoder_layers {
        let block = stack.enter("block").enter(n).enter("layer");
        let past = decoding.layer(n, heads.keys, (heads.key_size, heads.value_size))?;
        let own = attention(config, &block.enter("0.SelfAttention"))?;
        let x = norm(config, &block, "0.layer_norm")?.apply(hidden)?;
        let mut segments = decoding.segments(n, past, own.keys_and_values(x)?, None)?;
        segments.iter_mut().zip(&biases).for_each(|(segment, bias)| segment.bias = Some(*bias));
        hidden = hidden.add(own.apply(x, &segments)?.output)?;
        let cross = attention(config, &block.enter("1.EncDecAttention"))?;
        let segment = source_segment(&g, n, source.clone(), heads, mask)?;
        let x = norm(config, &block, "1.layer_norm")?.apply(hidden)?;
        hidden = hidden.add(cross.apply(x, &[segment])?.output)?;
        hidden = inner(config, &block.enter("2"), hidden)?;
    }
    let last = norm(config, &stack, "final_layer_norm")?;
    let head = match config.tied {
        true => embedding.tied_head(),
        false => Linear::new(&scope.enter("lm_head"), config.model, config.vocabulary, false)?,
    };
    if let Some(hidden) = decoding.select(hidden, form.target.logits)? {
        let mut x = last.apply(hidden)?;
        if config.tied {
            x = x.scale((config.model as f64).powf(-0.5))?;
        }
        g.output("logits", head.apply(x)?)?;
    }
    g.finish()
}

/// Tensors that a checkpoint may have beside its parameters: copies of the shared embedding.
pub fn known_surplus(config: &Config, name: &str) -> bool {
    let copy = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"].contains(&name);
    copy || config.tied && name == "lm_head.weight"
}
