//! Llama (Touvron et al. 2023) and decoders of its build: SmolLM2, Mistral, Qwen2, Qwen3.
//!
//! Invariant: parameters have the names of Hugging Face's `LlamaForCausalLM`.

use super::anatomy::{Anatomy, HeadParts, Keys};
use super::{Form, Settings};
use crate::builder::{Builder, Result};
use crate::checkpoint::CheckpointError;
use crate::gguf::{self, Gguf};
use crate::nn::{
    Activation, Decoding, Embedding, Gated, HeadSwitches, Heads, LayerSwitch, Linear, Pairs, Parameters, RmsNorm,
    Rotary, Scaling, Scope, attend, split_heads,
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
    /// Of the gate.
    pub activation: Activation,
    /// Added to mean squares.
    pub epsilon: f64,
    /// Base of the rotary frequencies.
    pub rotary_base: f64,
    /// Elements of a head that are rotated.
    pub rotary_size: usize,
    /// Of the rotary frequencies.
    pub scaling: Scaling,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Whether query, key and value maps have biases (Qwen2).
    pub query_bias: bool,
    /// Whether the output map of the attention has a bias.
    pub output_bias: bool,
    /// Whether the maps of the feed-forward layer have biases.
    pub inner_bias: bool,
    /// Whether queries and keys are normalized by head (Qwen3).
    pub head_norm: bool,
    /// Sliding window of all layers from the given one on (Mistral).
    pub window: Option<(usize, usize)>,
}

/// The kinds of model, by `model_type`, that are read from a Hugging Face folder.
pub const KINDS: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];
/// The architectures that are read from GGUF.
pub const ARCHITECTURES: [&str; 2] = ["llama", "qwen2"];

impl Config {
    /// From a `config.json`.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>) -> std::result::Result<Config, CheckpointError> {
        let kind = settings.text_if("model_type")?.unwrap_or_default();
        let (model, queries) = (settings.size("hidden_size")?, settings.size("num_attention_heads")?);
        let keys = settings.size_if("num_key_value_heads")?.unwrap_or(queries);
        settings.divides("num_key_value_heads", queries, keys)?;
        let size = match settings.size_if("head_dim")? {
            Some(size) => size,
            None => {
                settings.divides("num_attention_heads", model, queries)?;
                model / queries
            }
        };
        let context = settings.size("max_position_embeddings")?;
        let name = settings.text_if("hidden_act")?.unwrap_or("silu");
        let activation = Activation::from_name(name);
        let activation =
            activation.ok_or_else(|| settings.error("hidden_act", format!("`{name}` is not supported")))?;
        let layers = settings.layers("num_hidden_layers")?;
        // Mistral's window holds in all layers; Qwen2's has to be asked for, and holds from a layer on.
        let windowed = settings.flag("use_sliding_window", kind == "mistral")?;
        let first = if kind == "mistral" { 0 } else { settings.size_if("max_window_layers")?.unwrap_or(layers) };
        let window = settings.size_if("sliding_window")?.filter(|_| windowed).map(|w| (first, w));
        let attention_bias = settings.flag("attention_bias", false)?;
        let (rotary_base, scaling) = rotary(settings, context)?;
        let part = settings.float_if("partial_rotary_factor")?.unwrap_or(1.0);
        let config = Config {
            vocabulary: settings.size("vocab_size")?,
            model,
            layers,
            heads: Heads { queries, keys, key_size: size, value_size: size },
            inner: settings.size("intermediate_size")?,
            activation,
            epsilon: settings.float_if("rms_norm_eps")?.unwrap_or(1e-6),
            rotary_base,
            rotary_size: (size as f64 * part) as usize,
            scaling,
            context,
            tied: settings.flag("tie_word_embeddings", false)?,
            query_bias: kind == "qwen2" || attention_bias,
            output_bias: attention_bias,
            inner_bias: settings.flag("mlp_bias", false)?,
            head_norm: kind == "qwen3",
            window,
        };
        config.check(settings)
    }

    /// From the metadata of a GGUF file.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_gguf(file: &Gguf) -> std::result::Result<Config, CheckpointError> {
        let architecture = file.get("general.architecture").and_then(gguf::Value::as_text).unwrap_or_default();
        let settings = Settings::gguf(file, architecture);
        let (model, queries) = (settings.size("embedding_length")?, settings.size("attention.head_count")?);
        let keys = settings.size_if("attention.head_count_kv")?.unwrap_or(queries);
        settings.divides("attention.head_count_kv", queries, keys)?;
        let key_size = match settings.size_if("attention.key_length")? {
            Some(size) => size,
            None => {
                settings.divides("attention.head_count", model, queries)?;
                model / queries
            }
        };
        let value_size = settings.size_if("attention.value_length")?.unwrap_or(key_size);
        let context = settings.size("context_length")?;
        let tokens = file.get("tokenizer.ggml.tokens").and_then(gguf::Value::as_array);
        let listed = tokens.and_then(gguf::Array::as_texts).map(<[String]>::len).filter(|&n| n > 0);
        let table = file.tensors().get("token_embd.weight").and_then(|t| t.shape.first().copied());
        let vocabulary = settings.size_if("vocab_size")?.or(listed).or(table);
        let scaling = match (settings.text_if("rope.scaling.type")?, file.tensors().get("rope_freqs.weight")) {
            (_, Some(divisors)) => Scaling::Divisors(gguf::expand(divisors.encoding, &file.bytes(divisors))),
            (None | Some("none"), None) => Scaling::None,
            (Some("linear"), None) => Scaling::Linear(settings.float("rope.scaling.factor")?),
            (Some("yarn"), None) => {
                let original = settings.float("rope.scaling.original_context_length")?;
                let factor = settings.float("rope.scaling.factor")?;
                Scaling::Yarn { factor, fast: 32.0, slow: 1.0, original, sharpness: 0.1 * factor.ln() + 1.0 }
            }
            (Some(other), None) => {
                return Err(settings.error("rope.scaling.type", format!("`{other}` is not supported")));
            }
        };
        let has = |name: &str| file.tensors().contains_key(name);
        let config = Config {
            vocabulary: vocabulary.ok_or_else(|| settings.error("vocab_size", "is missing"))?,
            model,
            layers: settings.layers("block_count")?,
            heads: Heads { queries, keys, key_size, value_size },
            inner: settings.size("feed_forward_length")?,
            activation: Activation::Silu,
            epsilon: settings.float("attention.layer_norm_rms_epsilon")?,
            rotary_base: settings.float_if("rope.freq_base")?.unwrap_or(10_000.0),
            rotary_size: settings.size_if("rope.dimension_count")?.unwrap_or(key_size),
            scaling,
            context,
            tied: !has("output.weight"),
            query_bias: has("blk.0.attn_q.bias"),
            output_bias: has("blk.0.attn_output.bias"),
            inner_bias: has("blk.0.ffn_up.bias"),
            head_norm: has("blk.0.attn_q_norm.weight"),
            window: settings.size_if("attention.sliding_window")?.map(|w| (0, w)),
        };
        config.check(&settings)
    }

    /// Where its checkpoints have layers and heads.
    pub fn anatomy(&self) -> Anatomy {
        let Heads { queries, keys, key_size, value_size } = self.heads;
        let shared = queries / keys;
        let parts = HeadParts {
            outputs: vec![
                ("self_attn.q_proj", shared * key_size),
                ("self_attn.k_proj", key_size),
                ("self_attn.v_proj", value_size),
            ],
            inputs: ("self_attn.o_proj", shared * value_size),
            units: vec![(0..keys).collect(); self.layers],
            queries: shared,
            keys: Keys::Counts { key_size, value_size },
        };
        let (layers, count_key) = ("model.layers.", "num_hidden_layers");
        Anatomy { layers, count: self.layers, count_key, heads: Ok(parts), ordered: None }
    }

    fn check(self, settings: &Settings<'_>) -> std::result::Result<Config, CheckpointError> {
        let size = self.rotary_size;
        if !size.is_multiple_of(2) || size > self.heads.key_size || size == 0 {
            let message = format!("{size} elements of a head of {} cannot be rotated", self.heads.key_size);
            return Err(CheckpointError::Unsupported(message));
        }
        if let Scaling::Divisors(divisors) = &self.scaling
            && (divisors.len() != size / 2 || divisors.iter().any(|d| !d.is_finite() || *d == 0.0))
        {
            let message = format!("{} divisors for {} rotary frequencies", divisors.len(), size / 2);
            return Err(CheckpointError::Unsupported(message));
        }
        if self.rotary_base <= 0.0 || self.epsilon < 0.0 {
            return Err(settings.error("rope_theta", "must be positive, and the epsilon of norms not negative"));
        }
        Ok(self)
    }
}

/// Base and scaling of the rotary frequencies: of `rope_theta` and `rope_scaling`, or of `rope_parameters`, which newer
/// configurations have instead.
fn rotary(settings: &Settings<'_>, context: usize) -> std::result::Result<(f64, Scaling), CheckpointError> {
    let newer = settings.below("rope_parameters")?;
    let base = match &newer {
        Some(parameters) => parameters.float_if("rope_theta")?,
        None => settings.float_if("rope_theta")?,
    };
    let base = base.unwrap_or(10_000.0);
    let scaling = match newer {
        Some(parameters) => Some(parameters),
        None => settings.below("rope_scaling")?,
    };
    let Some(scaling) = scaling else { return Ok((base, Scaling::None)) };
    let kind = match scaling.text_if("rope_type")? {
        Some(kind) => kind,
        None => scaling.text_if("type")?.unwrap_or("default"),
    };
    let original = scaling.float_if("original_max_position_embeddings")?.unwrap_or(context as f64);
    let scaling = match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear(scaling.float("factor")?),
        "llama3" => Scaling::Llama3 {
            factor: scaling.float("factor")?,
            low: scaling.float("low_freq_factor")?,
            high: scaling.float("high_freq_factor")?,
            original,
        },
        "yarn" => {
            let factor = scaling.float("factor")?;
            let sharpness = scaling.float_if("attention_factor")?.unwrap_or(0.1 * factor.max(1.0).ln() + 1.0);
            let fast = scaling.float_if("beta_fast")?.unwrap_or(32.0);
            Scaling::Yarn { factor, fast, slow: scaling.float_if("beta_slow")?.unwrap_or(1.0), original, sharpness }
        }
        other => return Err(settings.error("rope_scaling", format!("of the type `{other}` is not supported"))),
    };
    Ok((base, scaling))
}

/// One layer: pre-norm attention and a gated feed-forward layer, each with a residual.
struct Layer<'g> {
    before_attention: RmsNorm<'g>,
    before_inner: RmsNorm<'g>,
    query: Linear<'g>,
    key: Linear<'g>,
    value: Linear<'g>,
    output: Linear<'g>,
    norms: Option<(RmsNorm<'g>, RmsNorm<'g>)>,
    inner: Gated<'g>,
    switch: LayerSwitch<'g>,
    switches: HeadSwitches<'g>,
}

impl<'g> Layer<'g> {
    fn new(config: &Config, scope: &Scope<'g>) -> Result<Layer<'g>> {
        let (model, heads) = (config.model, config.heads);
        let norm = |name: &str| RmsNorm::new(&scope.enter(name), model, config.epsilon);
        let attention = scope.enter("self_attn");
        let map = |name: &str, outputs: usize| Linear::new(&attention.enter(name), model, outputs, config.query_bias);
        let mlp = scope.enter("mlp");
        let inner = |name: &str, (from, to): (usize, usize)| Linear::new(&mlp.enter(name), from, to, config.inner_bias);
        let wide = (model, config.inner);
        let (gate, up, down) =
            (inner("gate_proj", wide)?, inner("up_proj", wide)?, inner("down_proj", (config.inner, model))?);
        let head_norm = |name: &str| RmsNorm::new(&attention.enter(name), heads.key_size, config.epsilon);
        Ok(Layer {
            before_attention: norm("input_layernorm")?,
            before_inner: norm("post_attention_layernorm")?,
            query: map("q_proj", heads.queries * heads.key_size)?,
            key: map("k_proj", heads.keys * heads.key_size)?,
            value: map("v_proj", heads.keys * heads.value_size)?,
            output: Linear::new(
                &attention.enter("o_proj"),
                heads.queries * heads.value_size,
                model,
                config.output_bias,
            )?,
            norms: if config.head_norm { Some((head_norm("q_norm")?, head_norm("k_norm")?)) } else { None },
            inner: Gated::new(gate, up, down, config.activation),
            switch: LayerSwitch::new(scope)?,
            switches: HeadSwitches::new(&attention, heads.queries, heads.value_size)?,
        })
    }
}

/// The graph of a form; see [`super::Decoder::graph`].
///
/// # Errors
/// The form is not one that the model can have.
pub fn graph(config: &Config, parameters: &dyn Parameters, form: &Form) -> Result<Graph> {
    let g = Builder::new("llama");
    let (dims, cache) = form.dims(&g)?;
    let scope = Scope::new(&g, parameters);
    let root = scope.enter("model");
    let (decoding, tokens) = Decoding::new(&g, dims, &cache, form.capacity)?;
    let embedding = Embedding::new(&root.enter("embed_tokens"), config.vocabulary, config.model)?;
    let rotary =
        Rotary::new(&g, (config.rotary_size, form.capacity), config.rotary_base, &config.scaling, Pairs::Halves)?;
    let angles = rotary.angles(decoding.positions())?;
    let heads = config.heads;
    let scale = 1.0 / (heads.key_size as f64).sqrt();
    let mut hidden = embedding.apply(tokens)?;
    for n in 0..config.layers {
        let layer = Layer::new(config, &root.enter("layers").enter(n))?;
        let past = decoding.layer(n, heads.keys, (heads.key_size, heads.value_size))?;
        let x = layer.before_attention.apply(hidden)?;
        let mut query = split_heads(layer.query.apply(x)?, heads.queries, heads.key_size)?;
        let mut key = split_heads(layer.key.apply(x)?, heads.keys, heads.key_size)?;
        let value = split_heads(layer.value.apply(x)?, heads.keys, heads.value_size)?;
        if let Some((of_query, of_key)) = &layer.norms {
            (query, key) = (of_query.apply(query)?, of_key.apply(key)?);
        }
        let (query, key) = (rotary.apply(query, angles)?, rotary.apply(key, angles)?);
        let window = config.window.filter(|(first, _)| n >= *first).map(|(_, window)| window);
        let segments = decoding.segments(n, past, (key, value), window)?;
        let attended = attend(query, heads, &segments, scale)?;
        let before = hidden;
        hidden = hidden.add(layer.output.apply(layer.switches.apply(attended.output)?)?)?;
        hidden = hidden.add(layer.inner.apply(layer.before_inner.apply(hidden)?)?)?;
        hidden = layer.switch.apply(before, hidden)?;
    }
    let norm = RmsNorm::new(&root.enter("norm"), config.model, config.epsilon)?;
    let head = match config.tied {
        true => embedding.tied_head(),
        false => Linear::new(&scope.enter("lm_head"), config.model, config.vocabulary, false)?,
    };
    if let Some(hidden) = decoding.select(hidden, form.logits)? {
        g.output("logits", head.apply(norm.apply(hidden)?)?)?;
    }
    g.finish()
}

/// Tensors that a checkpoint may have beside its parameters.
pub fn known_surplus(config: &Config, name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq") || name == "rope_freqs.weight" || config.tied && name == "lm_head.weight"
}
