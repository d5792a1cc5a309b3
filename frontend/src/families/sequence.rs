//! What all encoder-decoders have in common.
//!
//! Invariant: a model is two graphs that share their parameters: one reads the source and gives each layer's keys and values of
//! it, the other one decodes as a [`super::Decoder`] does, attending to them.

use super::{Extent, Form, Settings, bart, t5};
use crate::builder::{Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use crate::nn::{Heads, Mask, Parameters, Segment};
use kiln_ir::{DType, Expr, Graph};

/// An encoder-decoder of any family.
#[derive(Clone, Debug)]
pub enum Sequence {
    /// T5.
    T5(t5::Config),
    /// BART, Marian, and the Transformer of 2017.
    Bart(bart::Config),
}

/// The kinds of models, as `config.json` names them.
const KINDS: [&str; 3] = ["t5", "bart", "marian"];

/// The form of an encoder-decoder's graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceForm {
    /// The decoder's form.
    pub target: Form,
    /// Tokens of the source; where they are free, this is the symbol `source`.
    pub source: Extent,
    /// Most tokens of a source.
    pub longest_source: usize,
}

/// Makes each decoder layer's keys and values of the source, which `of` gives, outputs of the encoder's graph.
pub(super) fn output_sources<'g>(
    g: &'g Builder,
    layers: usize,
    of: impl Fn(usize) -> Result<(Value<'g>, Value<'g>)>,
) -> Result<()> {
    for n in 0..layers {
        let (keys, values) = of(n)?;
        g.output(&format!("source_k.{n}"), keys)?;
        g.output(&format!("source_v.{n}"), values)?;
    }
    Ok(())
}

impl SequenceForm {
    pub(super) fn source(&self, g: &Builder) -> Result<Expr> {
        match self.source {
            Extent::Fixed(n) => Ok(n.into()),
            Extent::Free => g.symbol("source", 1..=i64::try_from(self.longest_source).unwrap_or(i64::MAX)),
        }
    }
}

/// The mask of a source from the input `source_mask`, i64 `[B, S]`, 1 where there is a token.
pub(super) fn source_mask<'g>(g: &'g Builder, [batch, source]: [Expr; 2]) -> Result<Mask<'g>> {
    let mask = g.input("source_mask", DType::I64, [batch.clone(), source.clone()])?;
    let one = || Expr::from(1i64);
    let visible = mask.differs(0)?.reshape([batch, one(), one(), one(), source])?;
    Ok(Mask { visible, fill: f64::from(f32::MIN) })
}

/// The inputs `source_k.N` and `source_v.N` of a layer, `[B, S, H, D]`, as a segment.
pub(super) fn source_segment<'g>(
    g: &'g Builder,
    layer: usize,
    [batch, source]: [Expr; 2],
    heads: Heads,
    mask: Mask<'g>,
) -> Result<Segment<'g>> {
    let input = |kind: &str, size: usize| {
        let dims = [batch.clone(), source.clone(), heads.keys.into(), size.into()];
        g.input(&format!("source_{kind}.{layer}"), DType::F32, dims)
    };
    let (keys, values): (Value<'g>, Value<'g>) = (input("k", heads.key_size)?, input("v", heads.value_size)?);
    Ok(Segment::new(keys, values, false, Some(mask)))
}

impl Sequence {
    /// The encoder-decoder that a `config.json` describes.
    ///
    /// # Errors
    /// Its kind is not supported, or a setting is missing, cannot be, or is not supported.
    pub fn from_json(settings: &Settings<'_>) -> std::result::Result<Sequence, CheckpointError> {
        match settings.text_if("model_type")?.unwrap_or_default() {
            "t5" => Ok(Sequence::T5(t5::Config::from_json(settings)?)),
            "bart" | "marian" => Ok(Sequence::Bart(bart::Config::from_json(settings)?)),
            other => Err(CheckpointError::Family(other.into(), KINDS.join(", "))),
        }
    }

    /// Layers of the decoder.
    pub fn layers(&self) -> usize {
        match self {
            Sequence::T5(config) => config.decoder_layers,
            Sequence::Bart(config) => config.decoder_layers,
        }
    }

    /// The attention of each layer of the decoder.
    pub fn heads(&self) -> Heads {
        match self {
            Sequence::T5(config) => config.heads,
            Sequence::Bart(config) => config.decoder_heads(),
        }
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match self {
            Sequence::T5(config) => config.vocabulary,
            Sequence::Bart(config) => config.vocabulary,
        }
    }

    /// Positions that the model was trained for; without a number, distances alone count.
    pub fn context(&self) -> Option<usize> {
        match self {
            Sequence::T5(_) => None,
            Sequence::Bart(config) => Some(config.context),
        }
    }

    /// Whether a model of that kind (`model_type`) is an encoder-decoder.
    pub fn is_kind(kind: &str) -> bool {
        KINDS.contains(&kind)
    }

    /// The token that targets begin with.
    pub fn start(&self) -> Option<u32> {
        match self {
            Sequence::T5(config) => config.start,
            Sequence::Bart(config) => config.start,
        }
    }

    /// The encoder: inputs `source` and `source_mask`, i64 `[B, S]`; outputs `memory: [B, S, E]`, and for each layer of the
    /// decoder `source_k.N` and `source_v.N`.
    ///
    /// # Errors
    /// The form is not one that the model can have.
    pub fn encoder(&self, parameters: &dyn Parameters, form: &SequenceForm) -> Result<Graph> {
        match self {
            Sequence::T5(config) => t5::encoder(config, parameters, form),
            Sequence::Bart(config) => bart::encoder(config, parameters, form),
        }
    }

    /// The decoder: inputs and outputs as [`super::Decoder::graph`] has them, and the inputs `source_mask`, `source_k.N` and
    /// `source_v.N`.
    ///
    /// # Errors
    /// The form is not one that the model can have.
    pub fn decoder(&self, parameters: &dyn Parameters, form: &SequenceForm) -> Result<Graph> {
        match self {
            Sequence::T5(config) => t5::decoder(config, parameters, form),
            Sequence::Bart(config) => bart::decoder(config, parameters, form),
        }
    }

    /// Whether a checkpoint may have a tensor that neither graph asks for.
    pub fn known_surplus(&self, name: &str) -> bool {
        match self {
            Sequence::T5(config) => t5::known_surplus(config, name),
            Sequence::Bart(config) => bart::known_surplus(config, name),
        }
    }
}
