//! BART (Lewis et al. 2019), Marian (Junczys-Dowmunt et al. 2018), MASS, and the Transformer of 2017 (Vaswani et al.): post-norm
//! encoder-decoders with learned or sinusoidal positions.
//!
//! Invariant: parameters have the names of Hugging Face's `BartForConditionalGeneration` and `MarianMTModel`.

use super::sequence::{output_sources, source_mask, source_segment};
use super::{SequenceForm, Settings};
use crate::builder::{Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use crate::nn::{
    Activation, DecoderLayer, Decoding, Embedding, EncoderLayer, FeedForward, Heads, LayerNorm, MultiHead,
    MultiHeadNames, Parameters, Residual, Scope, WeightOrder, sinusoids,
};
use kiln_ir::{DType, Graph};

/// How positions enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// A learned table, of which the first rows are not used.
    Learned {
        /// How many.
        first: usize,
    },
    /// Sines and cosines.
    Sinusoidal {
        /// As in the paper; else all sines come before the cosines.
        interleaved: bool,
    },
}

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `V`.
    pub vocabulary: usize,
    /// `E`.
    pub model: usize,
    /// Layers, heads and `F` of the encoder.
    pub encoder_layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Heads of encoder and decoder.
    pub heads: (usize, usize),
    /// `F` of encoder and decoder.
    pub inner: (usize, usize),
    /// Of the feed-forward layers.
    pub activation: Activation,
    /// Positions.
    pub positions: Positions,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Whether embeddings are multiplied by the root of `E`.
    pub scaled_embedding: bool,
    /// Whether embeddings are normalized.
    pub embedding_norm: bool,
    /// The token that targets begin with.
    pub start: Option<u32>,
}

/// Of layer norms.
const EPSILON: f64 = 1e-5;

impl Config {
    /// From a `config.json`.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>) -> std::result::Result<Config, CheckpointError> {
        let marian = settings.text_if("model_type")? == Some("marian");
        let model = settings.size("d_model")?;
        let heads = (settings.size("encoder_attention_heads")?, settings.size("decoder_attention_heads")?);
        settings.divides("encoder_attention_heads", model, heads.0)?;
        settings.divides("decoder_attention_heads", model, heads.1)?;
        let name = settings.text_if("activation_function")?.unwrap_or("gelu");
        let unsupported = || settings.error("activation_function", format!("`{name}` is not supported"));
        if !settings.flag("share_encoder_decoder_embeddings", true)? {
            return Err(settings.error("share_encoder_decoder_embeddings", "is false, which is not supported"));
        }
        Ok(Config {
            vocabulary: settings.size("vocab_size")?,
            model,
            encoder_layers: settings.layers("encoder_layers")?,
            decoder_layers: settings.layers("decoder_layers")?,
            heads,
            inner: (settings.size("encoder_ffn_dim")?, settings.size("decoder_ffn_dim")?),
            activation: Activation::from_name(name).ok_or_else(unsupported)?,
            positions: match marian {
                true => Positions::Sinusoidal { interleaved: false },
                false => Positions::Learned { first: 2 },
            },
            context: settings.size("max_position_embeddings")?,
            scaled_embedding: settings.flag("scale_embedding", false)?,
            embedding_norm: !marian,
            start: settings.float_if("decoder_start_token_id")?.map(|v| v as u32),
        })
    }

    /// The attention of each layer of the decoder.
    pub fn decoder_heads(&self) -> Heads {
        Heads::equal(self.heads.1, self.model / self.heads.1)
    }

    fn encoder_heads(&self) -> Heads {
        Heads::equal(self.heads.0, self.model / self.heads.0)
    }
}

const NAMES: MultiHeadNames<'_> =
    MultiHeadNames { query: "q_proj", key: "k_proj", value: "v_proj", output: "out_proj" };

fn attention<'g>(config: &Config, scope: &Scope<'g>, heads: Heads) -> Result<MultiHead<'g>> {
    MultiHead::new(scope, NAMES, config.model, heads, true, 1.0 / (heads.key_size as f64).sqrt())
}

fn norm<'g>(config: &Config, scope: &Scope<'g>, name: &str) -> Result<LayerNorm<'g>> {
    LayerNorm::new(&scope.enter(name), config.model, EPSILON)
}

fn shared<'g>(config: &Config, scope: &Scope<'g>) -> Result<Embedding<'g>> {
    Embedding::new(&scope.enter("shared"), config.vocabulary, config.model)
}

/// Tokens at positions as a stack of layers gets them.
fn embed<'g>(
    config: &Config,
    embedding: &Embedding<'g>,
    stack: &Scope<'g>,
    tokens: Value<'g>,
    positions: Value<'g>,
) -> Result<Value<'g>> {
    let mut hidden = embedding.apply(tokens)?;
    if config.scaled_embedding {
        hidden = hidden.scale((config.model as f64).sqrt())?;
    }
    let at = match config.positions {
        Positions::Learned { first } => {
            let table = Embedding::new(&stack.enter("embed_positions"), config.context + first, config.model)?;
            table.apply(positions.shift(first as f64)?)?
        }
        Positions::Sinusoidal { interleaved } => {
            let table = sinusoids(config.context, config.model, interleaved);
            stack.builder().floats(&[config.context, config.model], &table)?.gather(positions, 0)?
        }
    };
    hidden = hidden.add(at)?;
    if config.embedding_norm { norm(config, stack, "layernorm_embedding")?.apply(hidden) } else { Ok(hidden) }
}

/// The feed-forward layer with its norm.
fn inner<'g>(config: &Config, layer: &Scope<'g>, size: usize) -> Result<(FeedForward<'g>, LayerNorm<'g>)> {
    let places = (&layer.enter("fc1"), &layer.enter("fc2"));
    let inner = FeedForward::new(places, (config.model, size), config.activation, true, WeightOrder::OutIn)?;
    Ok((inner, norm(config, layer, "final_layer_norm")?))
}

/// See [`super::Sequence::encoder`].
///
/// # Errors
/// The form is not one that the model can have.
pub fn encoder(config: &Config, parameters: &dyn Parameters, form: &SequenceForm) -> Result<Graph> {
    let g = Builder::new("bart-encoder");
    let scope = Scope::new(&g, parameters).enter("model");
    let dims = [form.target.batch.into(), form.source(&g)?];
    let ids = g.input("source", DType::I64, dims.clone())?;
    let mask = source_mask(&g, dims.clone())?;
    let stack = scope.enter("encoder");
    let positions = g.iota([dims[1].clone()], 0)?;
    let mut hidden = embed(config, &shared(config, &scope)?, &stack, ids, positions)?;
    for n in 0..config.encoder_layers {
        let layer = stack.enter("layers").enter(n);
        let (inner, inner_norm) = inner(config, &layer, config.inner.0)?;
        let layer = EncoderLayer {
            attention: attention(config, &layer.enter("self_attn"), config.encoder_heads())?,
            attention_norm: norm(config, &layer, "self_attn_layer_norm")?,
            inner,
            inner_norm,
            residual: Residual::default(),
        };
        hidden = layer.apply(hidden, None, Some(mask))?.output;
    }
    g.output("memory", hidden)?;
    output_sources(&g, config.decoder_layers, |n| {
        let place = scope.enter("decoder.layers").enter(n).enter("encoder_attn");
        attention(config, &place, config.decoder_heads())?.keys_and_values(hidden)
    })?;
    g.finish()
}

/// See [`super::Sequence::decoder`].
///
/// # Errors
/// The form is not one that the model can have.
pub fn decoder(config: &Config, parameters: &dyn Parameters, form: &SequenceForm) -> Result<Graph> {
    let g = Builder::new("bart-decoder");
    let root = Scope::new(&g, parameters);
    let scope = root.enter("model");
    let (dims, cache) = form.target.dims(&g)?;
    let source = [form.target.batch.into(), form.source(&g)?];
    let (decoding, tokens) = Decoding::new(&g, dims, &cache, form.target.capacity)?;
    let mask = source_mask(&g, source.clone())?;
    let stack = scope.enter("decoder");
    let embedding = shared(config, &scope)?;
    let heads = config.decoder_heads();
    let mut hidden = embed(config, &embedding, &stack, tokens, decoding.positions())?;
    for n in 0..config.decoder_layers {
        let layer = stack.enter("layers").enter(n);
        let past = decoding.layer(n, heads.keys, (heads.key_size, heads.value_size))?;
        let (inner, inner_norm) = inner(config, &layer, config.inner.1)?;
        let cross = attention(config, &layer.enter("encoder_attn"), heads)?;
        let layer = DecoderLayer {
            own: attention(config, &layer.enter("self_attn"), heads)?,
            own_norm: norm(config, &layer, "self_attn_layer_norm")?,
            cross: Some((cross, norm(config, &layer, "encoder_attn_layer_norm")?)),
            inner,
            inner_norm,
            residual: Residual::default(),
        };
        let segment = source_segment(&g, n, source.clone(), heads, mask)?;
        hidden = layer.apply(hidden, |own| decoding.segments(n, past, own, None), &[segment])?;
    }
    let bias = root.parameter("final_logits_bias", &[1, config.vocabulary])?;
    if let Some(hidden) = decoding.select(hidden, form.target.logits)? {
        g.output("logits", embedding.tied_head().apply(hidden)?.add(bias)?)?;
    }
    g.finish()
}

/// Tensors that a checkpoint may have beside its parameters: copies of the shared embedding, and sinusoids.
pub fn known_surplus(config: &Config, name: &str) -> bool {
    let copies = ["model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight"];
    let sines = matches!(config.positions, Positions::Sinusoidal { .. }) && name.ends_with("embed_positions.weight");
    copies.contains(&name) || sines
}
