//! What all decoders have in common.

use super::{Anatomy, Settings, gpt2, llama};
use crate::builder::{Builder, Result};
use crate::checkpoint::CheckpointError;
use crate::gguf::{self, Gguf};
use crate::nn::{CacheElement, CacheForm, CacheLayout, Heads, Logits, Parameters};
use kiln_ir::{Expr, Graph};

/// An extent of a graph's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Extent {
    /// This many.
    Fixed(usize),
    /// Known when the graph runs.
    Free,
}

/// How a graph takes the past.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Past {
    /// Inputs of the past's length; where it is free, this is the symbol `past`.
    Prefix(Extent),
    /// Inputs of the whole capacity, and `past_length`.
    Capacity,
    /// Several texts in one row of tokens, as [`CacheForm::Packed`] has them; the past's length is the symbol `past`.
    Packed,
}

/// A decoder graph's form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Form {
    /// Texts that are decoded together.
    pub batch: usize,
    /// Tokens of one call; where they are free, this is the symbol `tokens`.
    pub tokens: Extent,
    /// The past.
    pub past: Past,
    /// Positions that the cache can hold.
    pub capacity: usize,
    /// Which logits are wanted.
    pub logits: Logits,
    /// What the cache's numbers are kept in.
    pub cache: CacheElement,
}

impl Form {
    /// Dims of the tokens, and the form of the cache, in a builder.
    ///
    /// # Errors
    /// The builder has such symbols already, or there is no capacity.
    pub(super) fn dims(&self, builder: &Builder) -> Result<((Expr, Expr), CacheLayout)> {
        let most = i64::try_from(self.capacity).unwrap_or(i64::MAX);
        let tokens = match self.tokens {
            Extent::Fixed(tokens) => Expr::from(tokens),
            Extent::Free => builder.symbol("tokens", 1..=most)?,
        };
        let form = match self.past {
            Past::Prefix(Extent::Fixed(past)) => CacheForm::Prefix(past.into()),
            Past::Prefix(Extent::Free) => CacheForm::Prefix(builder.symbol("past", 0..=most)?),
            Past::Capacity => CacheForm::Capacity,
            Past::Packed => CacheForm::Packed(builder.symbol("past", 0..=most)?),
        };
        Ok(((self.batch.into(), tokens), CacheLayout { form, element: self.cache }))
    }
}

/// A decoder of any family.
#[derive(Clone, Debug)]
pub enum Decoder {
    /// Llama and its like.
    Llama(llama::Config),
    /// GPT-2.
    Gpt2(gpt2::Config),
}

impl Decoder {
    /// The decoder that a `config.json` describes.
    ///
    /// # Errors
    /// Its kind is not supported, or a setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>) -> std::result::Result<Decoder, CheckpointError> {
        let kind = settings.text_if("model_type")?.unwrap_or_default();
        if llama::KINDS.contains(&kind) {
            return Ok(Decoder::Llama(llama::Config::from_json(settings)?));
        }
        if kind == "gpt2" {
            return Ok(Decoder::Gpt2(gpt2::Config::from_json(settings)?));
        }
        Err(CheckpointError::Family(kind.into(), format!("{}, gpt2", llama::KINDS.join(", "))))
    }

    /// The decoder that a GGUF file describes.
    ///
    /// # Errors
    /// Its architecture is not supported, or a setting is missing, cannot be, or is not supported.
    pub fn from_gguf(file: &Gguf) -> std::result::Result<Decoder, CheckpointError> {
        let architecture = file.get("general.architecture").and_then(gguf::Value::as_text).unwrap_or_default();
        if llama::ARCHITECTURES.contains(&architecture) {
            return Ok(Decoder::Llama(llama::Config::from_gguf(file)?));
        }
        Err(CheckpointError::Family(architecture.into(), llama::ARCHITECTURES.join(", ")))
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match self {
            Decoder::Llama(config) => config.vocabulary,
            Decoder::Gpt2(config) => config.vocabulary,
        }
    }

    /// Layers.
    pub fn layers(&self) -> usize {
        match self {
            Decoder::Llama(config) => config.layers,
            Decoder::Gpt2(config) => config.layers,
        }
    }

    /// The attention of each layer.
    pub fn heads(&self) -> Heads {
        match self {
            Decoder::Llama(config) => config.heads,
            Decoder::Gpt2(config) => config.heads,
        }
    }

    /// Where its checkpoints have layers and heads.
    pub fn anatomy(&self) -> Anatomy {
        match self {
            Decoder::Llama(config) => config.anatomy(),
            Decoder::Gpt2(config) => config.anatomy(),
        }
    }

    /// Positions that the model was trained for.
    pub fn context(&self) -> usize {
        match self {
            Decoder::Llama(config) => config.context,
            Decoder::Gpt2(config) => config.context,
        }
    }

    /// The graph of a form: inputs `tokens`, `past_length` (by the form), `past_k.N`, `past_v.N` (and more, by [`CacheElement::parts`]);
    /// outputs `new_k.N`, `new_v.N` likewise and,
    /// by the form, `logits`.
    ///
    /// # Errors
    /// The form is not one that the model can have.
    pub fn graph(&self, parameters: &dyn Parameters, form: &Form) -> Result<Graph> {
        match self {
            Decoder::Llama(config) => llama::graph(config, parameters, form),
            Decoder::Gpt2(config) => gpt2::graph(config, parameters, form),
        }
    }

    /// Whether a checkpoint may have a tensor that the graph does not ask for.
    pub fn known_surplus(&self, name: &str) -> bool {
        match self {
            Decoder::Llama(config) => llama::known_surplus(config, name),
            Decoder::Gpt2(config) => gpt2::known_surplus(config, name),
        }
    }
}
