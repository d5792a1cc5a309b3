//! DeBERTa v2 and v3 (He et al. 2020, 2021): encoders whose attention scores content and distance apart.
//!
//! Invariant: parameters have the names of Hugging Face's `DebertaV2` models, below `deberta.` or without it.

use super::Settings;
use super::heads::{Head, Wanted, known_head_parts, sentence_embedding, span_outputs};
use crate::builder::{BuildError, Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use crate::nn::{
    Activation, Distances, Embedding, FeedForward, Heads, LayerNorm, Linear, Mask, Parameters, Scope, Segment,
    WeightOrder, attend, split_heads,
};
use kiln_ir::ops::OpError;
use kiln_ir::{DType, Expr, Graph};

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `V`.
    pub vocabulary: usize,
    /// `E`.
    pub model: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads.
    pub heads: usize,
    /// `F`.
    pub inner: usize,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// Of the dense layer on the first token.
    pub pooled: Activation,
    /// Added to variances.
    pub epsilon: f64,
    /// Positions that the model was trained for.
    pub context: usize,
    /// Whether positions are added to the embeddings too.
    pub position_input: bool,
    /// Segments; 0 where there is no such table.
    pub segments: usize,
    /// Buckets of distances; without, every distance has a row of its own.
    pub buckets: Option<usize>,
    /// The distance from which all share a row.
    pub longest: usize,
    /// Whether content to position, and position to content, are scored.
    pub scored: (bool, bool),
    /// Whether relative embeddings go through the maps of queries and keys, not through maps of their own.
    pub shared_maps: bool,
    /// Whether relative embeddings are normalized.
    pub relative_norm: bool,
    /// Classes of the heads that classify.
    pub classes: usize,
}

impl Config {
    /// From a `config.json`, for a head with so many classes.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>, classes: usize) -> std::result::Result<Config, CheckpointError> {
        let activation = |key: &str| {
            let name = settings.text_if(key)?.unwrap_or("gelu");
            Activation::from_name(name).ok_or_else(|| settings.error(key, format!("`{name}` is not supported")))
        };
        if !settings.flag("relative_attention", false)? {
            return Err(settings.error("relative_attention", "is false, which is not supported"));
        }
        if settings.float_if("conv_kernel_size")?.is_some_and(|size| size > 0.0) {
            return Err(
                settings.error("conv_kernel_size", "is not 0: the convolution beside the first layer is not supported")
            );
        }
        let (model, heads) = (settings.size("hidden_size")?, settings.size("num_attention_heads")?);
        settings.divides("num_attention_heads", model, heads)?;
        if settings.size_if("embedding_size")?.is_some_and(|size| size != model) {
            return Err(settings.error("embedding_size", "is not the hidden size, which is not supported"));
        }
        let context = settings.size("max_position_embeddings")?;
        let positive = |key: &str| -> std::result::Result<Option<usize>, CheckpointError> {
            Ok(settings.float_if(key)?.filter(|&v| v >= 1.0).map(|v| v as usize))
        };
        let longest = positive("max_relative_positions")?.unwrap_or(context);
        let buckets = positive("position_buckets")?;
        if buckets.is_some_and(|b| b < 4 || longest <= b / 2 + 1) {
            return Err(settings.error("position_buckets", format!("does not fit distances up to {longest}")));
        }
        let kinds = settings.words_if("pos_att_type")?.unwrap_or_default();
        let scored = |kind: &str| kinds.contains(&kind);
        Ok(Config {
            vocabulary: settings.size("vocab_size")?,
            model,
            layers: settings.layers("num_hidden_layers")?,
            heads,
            inner: settings.size("intermediate_size")?,
            activation: activation("hidden_act")?,
            pooled: activation("pooler_hidden_act")?,
            epsilon: settings.float_if("layer_norm_eps")?.unwrap_or(1e-7),
            context,
            position_input: settings.flag("position_biased_input", true)?,
            segments: settings.float_if("type_vocab_size")?.map_or(0, |v| v as usize),
            buckets,
            longest,
            scored: (scored("c2p"), scored("p2c")),
            shared_maps: settings.flag("share_att_key", false)?,
            relative_norm: settings.words_if("norm_rel_ebd")?.unwrap_or_default().contains(&"layer_norm"),
            classes,
        })
    }
}

/// The graph: inputs and outputs as [`super::TextEncoder`] has them, `token_type_ids` where the model has segments.
///
/// # Errors
/// The model has no such head.
pub fn graph(config: &Config, parameters: &dyn Parameters, wanted: &Wanted) -> Result<Graph> {
    let g = Builder::new("deberta");
    let scope = Scope::new(&g, parameters);
    let prefixed = scope.has("deberta.embeddings.word_embeddings.weight");
    let root = if prefixed { scope.enter("deberta") } else { scope.clone() };
    let dims = wanted.dims(&g, config.context)?;
    let ids = g.input("input_ids", DType::I64, dims.clone())?;
    let mask = g.input("attention_mask", DType::I64, dims.clone())?;
    let place = root.enter("embeddings");
    let table = |name: &str, rows: usize| Embedding::new(&place.enter(name), rows, config.model);
    let embedding = table("word_embeddings", config.vocabulary)?;
    let mut hidden = embedding.apply(ids)?;
    if config.position_input {
        let at = g.iota([dims[1].clone()], 0)?;
        hidden = hidden.add(table("position_embeddings", config.context)?.apply(at)?)?;
    }
    if config.segments > 0 {
        let segments = g.input("token_type_ids", DType::I64, dims.clone())?;
        hidden = hidden.add(table("token_type_embeddings", config.segments)?.apply(segments)?)?;
    }
    hidden = LayerNorm::new(&place.enter("LayerNorm"), config.model, config.epsilon)?.apply(hidden)?;
    hidden = hidden.mul(mask.cast(DType::F32)?.unsqueeze(2)?)?;
    let stack = root.enter("encoder");
    let distances = Distances::new(&g, config.buckets, config.longest, config.context)?;
    let mut relative = stack.enter("rel_embeddings").parameter("weight", &[distances.rows(), config.model])?;
    if config.relative_norm {
        relative = LayerNorm::new(&stack.enter("LayerNorm"), config.model, config.epsilon)?.apply(relative)?;
    }
    let one = || Expr::from(1i64);
    let visible = mask.differs(0)?.reshape([dims[0].clone(), one(), one(), one(), dims[1].clone()])?;
    let shared = Shared { distances, relative, mask: Mask { visible, fill: f64::from(f32::MIN) } };
    let show = |n: usize, hidden: Value<'_>| match wanted.hidden_states {
        true => g.output(&format!("hidden_states.{n}"), hidden),
        false => Ok(()),
    };
    show(0, hidden)?;
    for n in 0..config.layers {
        let layer = stack.enter("layer").enter(n);
        let (attended, weights) = attention(config, &layer.enter("attention"), hidden, &shared)?;
        if wanted.attentions {
            g.output(&format!("attentions.{n}"), weights)?;
        }
        let norm = |name: &str| LayerNorm::new(&layer.enter(name), config.model, config.epsilon);
        hidden = norm("attention.output.LayerNorm")?.apply(attended.add(hidden)?)?;
        let places = (&layer.enter("intermediate.dense"), &layer.enter("output.dense"));
        let inner =
            FeedForward::new(places, (config.model, config.inner), config.activation, true, WeightOrder::OutIn)?;
        hidden = norm("output.LayerNorm")?.apply(inner.apply(hidden)?.add(hidden)?)?;
        show(n + 1, hidden)?;
    }
    let linear = |name: &str, to: usize| Linear::new(&scope.enter(name), config.model, to, true);
    match wanted.head {
        Head::Hidden => g.output("last_hidden_state", hidden)?,
        Head::Tokens => g.output("logits", linear("classifier", config.classes)?.apply(hidden)?)?,
        Head::Sequence => {
            let first = hidden.part(1, 0i64, 1i64)?.reshape([dims[0].clone(), config.model.into()])?;
            let pooled = config.pooled.apply(linear("pooler.dense", config.model)?.apply(first)?)?;
            g.output("logits", linear("classifier", config.classes)?.apply(pooled)?)?;
        }
        Head::Answer => span_outputs(linear("qa_outputs", 2)?.apply(hidden)?)?,
        Head::MaskedLanguage => {
            let at = "cls.predictions.transform";
            let x = config.activation.apply(linear(&format!("{at}.dense"), config.model)?.apply(hidden)?)?;
            let norm = LayerNorm::new(&scope.enter(format!("{at}.LayerNorm")), config.model, config.epsilon)?;
            let bias = scope.parameter("cls.predictions.bias", &[config.vocabulary])?;
            g.output("logits", embedding.tied_head().apply(norm.apply(x)?)?.add(bias)?)?;
        }
        Head::Embedding => sentence_embedding(hidden, mask)?,
        Head::NextSentence | Head::PreTraining | Head::Replaced => {
            let error = OpError::new("DeBERTa models have no such head");
            return Err(BuildError::Op { call: format!("{:?}", wanted.head), error });
        }
    }
    g.finish()
}

/// What all layers share.
struct Shared<'g> {
    distances: Distances<'g>,
    /// `[rows, E]`.
    relative: Value<'g>,
    mask: Mask<'g>,
}

/// A layer's attention, and its weights.
fn attention<'g>(
    config: &Config,
    place: &Scope<'g>,
    x: Value<'g>,
    shared: &Shared<'g>,
) -> Result<(Value<'g>, Value<'g>)> {
    let own = place.enter("self");
    let heads = Heads::equal(config.heads, config.model / config.heads);
    let map = |name: &str| Linear::new(&own.enter(name), config.model, config.model, true);
    let split = |x: Value<'g>| split_heads(x, heads.queries, heads.key_size);
    let (query, key) = (map("query_proj")?, map("key_proj")?);
    let (queries, keys) = (split(query.apply(x)?)?, split(key.apply(x)?)?);
    let kinds = 1 + usize::from(config.scored.0) + usize::from(config.scored.1);
    let scale = 1.0 / ((heads.key_size * kinds) as f64).sqrt();
    let mut bias: Option<Value<'g>> = None;
    for (wanted, of_keys, shared_map, own_map) in
        [(config.scored.0, false, &key, "pos_key_proj"), (config.scored.1, true, &query, "pos_query_proj")]
    {
        if !wanted {
            continue;
        }
        let made = if config.shared_maps {
            shared_map.apply(shared.relative)?
        } else {
            map(own_map)?.apply(shared.relative)?
        };
        let contents = if of_keys { keys } else { queries };
        let scores = shared.distances.scores(contents, split(made)?, heads, of_keys)?.scale(scale)?;
        bias = Some(match bias {
            Some(sum) => sum.add(scores)?,
            None => scores,
        });
    }
    // Each head is a head of keys of its own: [B, H, 1, T, T] fits.
    let values = split(map("value_proj")?.apply(x)?)?;
    let segment = Segment { bias, ..Segment::new(keys, values, false, Some(shared.mask)) };
    let attended = attend(queries, heads, &[segment], scale)?;
    let output = Linear::new(&place.enter("output.dense"), config.model, config.model, true)?;
    Ok((output.apply(attended.output)?, attended.weights))
}

/// Tensors that a checkpoint may have beside the parameters of a graph.
pub fn known_surplus(wanted: Head, name: &str) -> bool {
    name.ends_with("embeddings.position_ids")
        || known_head_parts(wanted, name)
        || name == "cls.predictions.decoder.weight"
        || name == "cls.predictions.decoder.bias"
        || name.starts_with("pooler.") && wanted != Head::Sequence
}
