//! BERT (Devlin et al. 2018) and encoders of its build: RoBERTa (Liu et al. 2019), ELECTRA (Clark et al. 2020), DistilBERT (Sanh et
//! al. 2019), MiniLM; with their heads.
//!
//! Invariant: parameters have the names that Hugging Face gives them, below the family's prefix or without it. What padding
//! holds does not change any other position.

use super::Settings;
use super::anatomy::{Anatomy, HeadParts, Keys};
use super::heads::{Head, Wanted, known_head_parts, sentence_embedding, span_outputs};
use crate::builder::{Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use crate::nn::{
    Activation, Embedding, EncoderLayer, FeedForward, Heads, LayerNorm, LayerSwitch, Linear, Mask, MultiHead,
    MultiHeadNames, Parameters, Residual, Scope, WeightOrder,
};
use kiln_ir::{DType, Expr, Graph};
use std::collections::{BTreeMap, BTreeSet};

/// What a checkpoint calls its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// BERT, MiniLM.
    Bert,
    /// RoBERTa, XLM-RoBERTa: no segments to speak of, positions from the padding token's number on.
    Roberta,
    /// ELECTRA: embeddings may be narrower than the layers.
    Electra,
    /// DistilBERT: no segments, no pooler.
    DistilBert,
}

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What the checkpoint calls its parts.
    pub kind: Kind,
    /// `V`.
    pub vocabulary: usize,
    /// Size of the embeddings.
    pub embedding: usize,
    /// `E`.
    pub model: usize,
    /// Layers.
    pub layers: usize,
    /// Attention heads that a layer was made with: each is `E / heads` wide.
    pub heads: usize,
    /// Those that were taken out, by layer (`pruned_heads`).
    pub pruned: BTreeMap<usize, BTreeSet<usize>>,
    /// `F`.
    pub inner: usize,
    /// Of the feed-forward layer.
    pub activation: Activation,
    /// Added to variances.
    pub epsilon: f64,
    /// Rows of the table of positions.
    pub positions: usize,
    /// The first row that is used.
    pub first_position: usize,
    /// Segments; 0 where there is no such table.
    pub segments: usize,
    /// Classes of the heads that classify.
    pub classes: usize,
    /// ELECTRA's `summary_activation`, RoBERTa's and others' of classification.
    pub pooled: Activation,
}

/// The kinds of model, by `model_type`.
pub const KINDS: [&str; 5] = ["bert", "roberta", "xlm-roberta", "electra", "distilbert"];

impl Config {
    /// From a `config.json`, for a head with so many classes.
    ///
    /// # Errors
    /// A setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>, classes: usize) -> std::result::Result<Config, CheckpointError> {
        let name = settings.text_if("model_type")?.unwrap_or_default();
        let kind = match name {
            "bert" => Kind::Bert,
            "roberta" | "xlm-roberta" => Kind::Roberta,
            "electra" => Kind::Electra,
            "distilbert" => Kind::DistilBert,
            other => return Err(CheckpointError::Family(other.into(), KINDS.join(", "))),
        };
        let small = kind == Kind::DistilBert;
        let key = |bert: &'static str, distil: &'static str| if small { distil } else { bert };
        let model = settings.size(key("hidden_size", "dim"))?;
        let heads_key = key("num_attention_heads", "n_heads");
        let heads = settings.size(heads_key)?;
        settings.divides(heads_key, model, heads)?;
        let activation_key = key("hidden_act", "activation");
        let activation = settings.text_if(activation_key)?.unwrap_or("gelu");
        let unsupported = || settings.error(activation_key, format!("`{activation}` is not supported"));
        if let Some(other) = settings.text_if("position_embedding_type")?.filter(|&t| t != "absolute") {
            return Err(CheckpointError::Unsupported(format!("positions of the type `{other}` are not supported")));
        }
        let layers = settings.layers(key("num_hidden_layers", "n_layers"))?;
        let padding = settings.float_if("pad_token_id")?.unwrap_or(1.0).max(0.0) as usize;
        Ok(Config {
            kind,
            vocabulary: settings.size("vocab_size")?,
            embedding: settings.size_if("embedding_size")?.filter(|_| kind == Kind::Electra).unwrap_or(model),
            model,
            layers,
            heads,
            pruned: pruned(settings, layers, heads)?,
            inner: settings.size(key("intermediate_size", "hidden_dim"))?,
            activation: Activation::from_name(activation).ok_or_else(unsupported)?,
            epsilon: settings.float_if("layer_norm_eps")?.unwrap_or(1e-12),
            positions: settings.size("max_position_embeddings")?,
            first_position: if kind == Kind::Roberta { padding + 1 } else { 0 },
            segments: if small { 0 } else { settings.size_if("type_vocab_size")?.unwrap_or(2) },
            classes,
            pooled: if kind == Kind::Electra { Activation::Gelu } else { Activation::Tanh },
        })
    }

    /// The greatest number of tokens of a text.
    pub fn context(&self) -> usize {
        self.positions.saturating_sub(self.first_position)
    }

    /// The heads of a layer.
    pub fn heads_of(&self, layer: usize) -> usize {
        self.heads - self.pruned.get(&layer).map_or(0, BTreeSet::len)
    }

    /// Where its checkpoints have layers and heads.
    pub fn anatomy(&self) -> Anatomy {
        let size = self.model / self.heads;
        let small = self.kind == Kind::DistilBert;
        let ([query, key, value, output], layers, count_key) = match small {
            true => (
                ["attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"],
                "transformer.layer.",
                "n_layers",
            ),
            false => (
                ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
                "encoder.layer.",
                "num_hidden_layers",
            ),
        };
        let left = |n: usize| (0..self.heads).filter(|h| !self.pruned.get(&n).is_some_and(|p| p.contains(h))).collect();
        let parts = HeadParts {
            outputs: vec![(query, size), (key, size), (value, size)],
            inputs: (output, size),
            units: (0..self.layers).map(left).collect(),
            queries: 1,
            keys: Keys::Pruned,
        };
        Anatomy { layers, count: self.layers, count_key, heads: Ok(parts), ordered: None }
    }

    fn prefix(&self) -> &'static str {
        match self.kind {
            Kind::Bert => "bert",
            Kind::Roberta => "roberta",
            Kind::Electra => "electra",
            Kind::DistilBert => "distilbert",
        }
    }
}

/// The heads of layers that `pruned_heads` lists, which must leave each layer one.
fn pruned(
    settings: &Settings<'_>,
    layers: usize,
    heads: usize,
) -> std::result::Result<BTreeMap<usize, BTreeSet<usize>>, CheckpointError> {
    let key = "pruned_heads";
    let mut all = BTreeMap::new();
    for (layer, list) in settings.lists_if(key)? {
        let of = layer.parse().ok().filter(|n| *n < layers);
        let of: usize =
            of.ok_or_else(|| settings.error(key, format!("has {layer:?}, which is none of {layers} layers")))?;
        if let Some(head) = list.iter().find(|head| **head >= heads) {
            return Err(settings.error(key, format!("has the head {head} of layer {of}, which is none of {heads}")));
        }
        let list: BTreeSet<usize> = list.into_iter().collect();
        if list.len() == heads {
            return Err(settings.error(key, format!("leaves no head of layer {of}")));
        }
        all.insert(of, list);
    }
    Ok(all)
}

/// What all heads are made of.
struct Encoded<'g> {
    hidden: Value<'g>,
    mask: Value<'g>,
    embedding: Embedding<'g>,
    /// Below the model's prefix, and beside it.
    root: Scope<'g>,
    scope: Scope<'g>,
}

/// The graph: inputs `input_ids`, `attention_mask` (1 where there is a token) and, where the model has segments,
/// `token_type_ids`, each i64 `[B, T]`; outputs by the head.
///
/// # Errors
/// The model does not have the head.
pub fn graph(config: &Config, parameters: &dyn Parameters, wanted: &Wanted) -> Result<Graph> {
    let g = Builder::new(config.prefix());
    let encoded = encode(config, &g, parameters, wanted, wanted.dims(&g, config.context())?)?;
    head(config, &g, &encoded, wanted.head)?;
    g.finish()
}

/// Embeddings and layers.
fn encode<'g>(
    config: &Config,
    g: &'g Builder,
    parameters: &'g dyn Parameters,
    wanted: &Wanted,
    dims: [Expr; 2],
) -> Result<Encoded<'g>> {
    let scope = Scope::new(g, parameters);
    let prefixed = scope.has(&format!("{}.embeddings.word_embeddings.weight", config.prefix()));
    let root = if prefixed { scope.enter(config.prefix()) } else { scope.clone() };
    let ids = g.input("input_ids", DType::I64, dims.clone())?;
    let mask = g.input("attention_mask", DType::I64, dims.clone())?;
    let [_, tokens] = dims.clone();
    let place = root.enter("embeddings");
    let table = |name: &str, rows: usize| Embedding::new(&place.enter(name), rows, config.embedding);
    let embedding = table("word_embeddings", config.vocabulary)?;
    let positions = table("position_embeddings", config.positions)?;
    let first = Expr::from(config.first_position);
    let at = g.iota([first.add(&tokens)], 0)?.part(0, first, tokens)?;
    let mut hidden = embedding.apply(ids)?;
    if config.segments > 0 {
        let segments = g.input("token_type_ids", DType::I64, dims)?;
        hidden = hidden.add(table("token_type_embeddings", config.segments)?.apply(segments)?)?;
    }
    hidden = hidden.add(positions.apply(at)?)?;
    hidden = LayerNorm::new(&place.enter("LayerNorm"), config.embedding, config.epsilon)?.apply(hidden)?;
    if config.embedding != config.model {
        let project = Linear::new(&root.enter("embeddings_project"), config.embedding, config.model, true)?;
        hidden = project.apply(hidden)?;
    }
    let [b, t] = [mask.dim(0)?, mask.dim(1)?];
    let one = || Expr::from(1i64);
    let visible = mask.differs(0)?.reshape([b, one(), one(), one(), t])?;
    // As transformers has it: a text without tokens sees all of them alike.
    let mask_of = Mask { visible, fill: f64::from(f32::MIN) };
    let show = |n: usize, hidden: Value<'g>| match wanted.hidden_states {
        true => g.output(&format!("hidden_states.{n}"), hidden),
        false => Ok(()),
    };
    show(0, hidden)?;
    for n in 0..config.layers {
        let (layer, switch) = layer(config, &root, n)?;
        let made = layer.apply(hidden, None, Some(mask_of))?;
        if wanted.attentions {
            g.output(&format!("attentions.{n}"), made.weights)?;
        }
        hidden = switch.apply(hidden, made.output)?;
        show(n + 1, hidden)?;
    }
    Ok(Encoded { hidden, mask, embedding, root, scope })
}

/// The layer of a number, and its switch.
fn layer<'g>(config: &Config, root: &Scope<'g>, n: usize) -> Result<(EncoderLayer<'g>, LayerSwitch<'g>)> {
    let model = config.model;
    let heads = Heads::equal(config.heads_of(n), model / config.heads);
    let scale = 1.0 / (heads.key_size as f64).sqrt();
    let (layer, names, [norm, up, down, last]) = match config.kind {
        Kind::DistilBert => {
            let names = MultiHeadNames { query: "q_lin", key: "k_lin", value: "v_lin", output: "out_lin" };
            let rest = ["sa_layer_norm", "ffn.lin1", "ffn.lin2", "output_layer_norm"];
            (root.enter("transformer.layer").enter(n), names, rest)
        }
        Kind::Bert | Kind::Roberta | Kind::Electra => {
            let [query, key, value] = ["self.query", "self.key", "self.value"];
            let names = MultiHeadNames { query, key, value, output: "output.dense" };
            let rest = ["attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm"];
            (root.enter("encoder.layer").enter(n), names, rest)
        }
    };
    let made = EncoderLayer {
        attention: MultiHead::new(&layer.enter("attention"), names, model, heads, true, scale)?,
        attention_norm: LayerNorm::new(&layer.enter(norm), model, config.epsilon)?,
        inner: FeedForward::new(
            (&layer.enter(up), &layer.enter(down)),
            (model, config.inner),
            config.activation,
            true,
            WeightOrder::OutIn,
        )?,
        inner_norm: LayerNorm::new(&layer.enter(last), model, config.epsilon)?,
        residual: Residual::default(),
    };
    Ok((made, LayerSwitch::new(&layer)?))
}

/// Token 0 of `[B, T, E]`: `[B, E]`.
fn first(hidden: Value<'_>) -> Result<Value<'_>> {
    let dims = [hidden.dim(0)?, hidden.dim(2)?];
    hidden.part(1, 0i64, 1i64)?.reshape(dims)
}

/// The outputs of a head.
fn head(config: &Config, g: &Builder, encoded: &Encoded<'_>, head: Head) -> Result<()> {
    let (hidden, scope, root) = (encoded.hidden, &encoded.scope, &encoded.root);
    let (model, classes) = (config.model, config.classes);
    let pooled = || {
        let dense = Linear::new(&root.enter("pooler.dense"), model, model, true)?;
        dense.apply(first(hidden)?)?.tanh()
    };
    match head {
        Head::Hidden => {
            g.output("last_hidden_state", hidden)?;
            if root.has("pooler.dense.weight") {
                g.output("pooler_output", pooled()?)?;
            }
        }
        Head::Embedding => sentence_embedding(hidden, encoded.mask)?,
        Head::MaskedLanguage => g.output("logits", language(config, encoded, hidden)?)?,
        Head::NextSentence => {
            let head = Linear::new(&scope.enter("cls.seq_relationship"), model, 2, true)?;
            g.output("logits", head.apply(pooled()?)?)?;
        }
        Head::PreTraining => {
            let [batch, tokens] = [hidden.dim(0)?, hidden.dim(1)?];
            let masked = g.symbol("masked", 1..=i64::try_from(config.context()).unwrap_or(i64::MAX))?;
            let positions = g.input("masked_positions", DType::I64, [batch.clone(), masked])?;
            // Rows of all texts one after another.
            let starts = g.iota([batch.clone(), 1.into()], 0)?;
            let length = g.iota([tokens.clone()], 0)?.part(0, tokens.sub(&Expr::from(1i64)), 1i64)?.shift(1.0)?;
            let rows = positions.add(starts.mul(length)?)?;
            let picked = hidden.reshape([batch.mul(&tokens), model.into()])?.gather(rows, 0)?;
            g.output("prediction_logits", language(config, encoded, picked)?)?;
            let head = Linear::new(&scope.enter("cls.seq_relationship"), model, 2, true)?;
            g.output("seq_relationship_logits", head.apply(pooled()?)?)?;
        }
        Head::Sequence => g.output("logits", classify(config, encoded, pooled, classes)?)?,
        Head::Tokens => {
            g.output("logits", Linear::new(&scope.enter("classifier"), model, classes, true)?.apply(hidden)?)?;
        }
        Head::Answer => span_outputs(Linear::new(&scope.enter("qa_outputs"), model, 2, true)?.apply(hidden)?)?,
        Head::Replaced => {
            let dense = Linear::new(&scope.enter("discriminator_predictions.dense"), model, model, true)?;
            let last = Linear::new(&scope.enter("discriminator_predictions.dense_prediction"), model, 1, true)?;
            let logits = last.apply(config.activation.apply(dense.apply(hidden)?)?)?;
            g.output("logits", logits.reshape([hidden.dim(0)?, hidden.dim(1)?])?)?;
        }
    }
    Ok(())
}

/// The masked language model's head: dense, activation, norm, the embedding as a map, and a bias.
fn language<'g>(config: &Config, encoded: &Encoded<'g>, hidden: Value<'g>) -> Result<Value<'g>> {
    let (scope, model, size) = (&encoded.scope, config.model, config.embedding);
    let (dense, norm, bias, activation) = match config.kind {
        Kind::Bert => {
            let at = "cls.predictions.transform";
            (format!("{at}.dense"), format!("{at}.LayerNorm"), "cls.predictions.bias", config.activation)
        }
        Kind::Roberta => ("lm_head.dense".into(), "lm_head.layer_norm".into(), "lm_head.bias", Activation::Gelu),
        Kind::Electra => {
            let at = "generator_predictions";
            (format!("{at}.dense"), format!("{at}.LayerNorm"), "generator_lm_head.bias", Activation::Gelu)
        }
        Kind::DistilBert => {
            ("vocab_transform".into(), "vocab_layer_norm".into(), "vocab_projector.bias", config.activation)
        }
    };
    let epsilon = if config.kind == Kind::DistilBert { 1e-12 } else { config.epsilon };
    let dense = Linear::new(&scope.enter(dense), model, size, true)?;
    let norm = LayerNorm::new(&scope.enter(norm), size, epsilon)?;
    let bias = scope.parameter(bias, &[config.vocabulary])?;
    let x = norm.apply(activation.apply(dense.apply(hidden)?)?)?;
    encoded.embedding.tied_head().apply(x)?.add(bias)
}

/// Classes of a text.
fn classify<'g>(
    config: &Config,
    encoded: &Encoded<'g>,
    pooled: impl Fn() -> Result<Value<'g>>,
    classes: usize,
) -> Result<Value<'g>> {
    let (scope, model) = (&encoded.scope, config.model);
    let linear = |name: &str, outputs: usize| Linear::new(&scope.enter(name), model, outputs, true);
    match config.kind {
        Kind::Bert => linear("classifier", classes)?.apply(pooled()?),
        Kind::Roberta | Kind::Electra => {
            let x = linear("classifier.dense", model)?.apply(first(encoded.hidden)?)?;
            linear("classifier.out_proj", classes)?.apply(config.pooled.apply(x)?)
        }
        Kind::DistilBert => {
            let x = linear("pre_classifier", model)?.apply(first(encoded.hidden)?)?.relu()?;
            linear("classifier", classes)?.apply(x)
        }
    }
}

/// Tensors that a checkpoint may have beside the parameters of a graph: buffers, the tied head's copies, and the parts of
/// heads that the graph does not have.
pub fn known_surplus(config: &Config, wanted: Head, name: &str) -> bool {
    let tied = ["cls.predictions.decoder.", "lm_head.decoder.", "vocab_projector.weight", "generator_lm_head.weight"];
    let begins = |list: &[&str]| list.iter().any(|start| name.starts_with(start));
    let part = name.strip_prefix(config.prefix()).and_then(|n| n.strip_prefix('.')).unwrap_or(name);
    part == "embeddings.position_ids"
        || part == "embeddings.token_type_ids"
        || begins(&tied)
        || part.starts_with("pooler.")
        || known_head_parts(wanted, name)
}
