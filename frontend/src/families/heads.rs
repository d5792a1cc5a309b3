//! What encoders give beside their hidden states.
//!
//! Invariant: a head's outputs have the same names and shapes in every family that has it.

use crate::builder::{Builder, Result, Value};
use crate::checkpoint::CheckpointError;
use kiln_ir::{DType, Expr};

/// What a model gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Head {
    /// `last_hidden_state` and, where the model has one, `pooler_output`.
    Hidden,
    /// `sentence_embedding`: the mean over the tokens, divided by its length (Reimers, Gurevych 2019).
    Embedding,
    /// `logits` over the vocabulary at each token.
    MaskedLanguage,
    /// `logits` of "follows" and "does not follow".
    NextSentence,
    /// `prediction_logits` at the positions of the input `masked_positions`, and `seq_relationship_logits`.
    PreTraining,
    /// `logits` over classes; one for a regression.
    Sequence,
    /// `logits` over classes at each token.
    Tokens,
    /// `start_logits` and `end_logits` of a span.
    Answer,
    /// `logits` at each token that it was replaced (ELECTRA's discriminator).
    Replaced,
}

impl Head {
    /// What a model is made for, by the name of its class in Hugging Face's transformers; hidden states without one.
    ///
    /// # Errors
    /// There is no such head here.
    pub(super) fn of_architecture(name: Option<&str>) -> std::result::Result<Head, CheckpointError> {
        // XLNet's class says neither what it is for nor that it sees both sides.
        let Some(name) = name.filter(|n| n.contains("For") || n.contains("LMHead")) else { return Ok(Head::Hidden) };
        let part = name.split_once("For").map_or(name, |(_, part)| part);
        Ok(match part {
            "MaskedLM" | "XLNetLMHeadModel" => Head::MaskedLanguage,
            "NextSentencePrediction" => Head::NextSentence,
            "PreTraining" if name.starts_with("Electra") => Head::Replaced,
            "PreTraining" => Head::PreTraining,
            "SequenceClassification" => Head::Sequence,
            "TokenClassification" => Head::Tokens,
            "QuestionAnswering" if name.starts_with("XLNet") => {
                let message = "XLNet's `QuestionAnswering` searches spans by beams, which is not supported";
                return Err(CheckpointError::Unsupported(format!("{message}; its `QuestionAnsweringSimple` is")));
            }
            "QuestionAnswering" | "QuestionAnsweringSimple" => Head::Answer,
            other => return Err(CheckpointError::Unsupported(format!("the head `{other}` is not supported"))),
        })
    }
}

/// What is wanted of a graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The head.
    pub head: Head,
    /// Whether the outputs `hidden_states.N` are wanted: the embeddings, and what each layer gives.
    pub hidden_states: bool,
    /// Whether the outputs `attentions.N`, `[B, H, T, T]`, are wanted.
    pub attentions: bool,
    /// Texts, and tokens of each; nothing for those that are known when the graph runs.
    pub extents: (Option<usize>, Option<usize>),
}

impl Wanted {
    /// Texts, and tokens of each, at most `longest`.
    pub(super) fn dims(&self, g: &Builder, longest: usize) -> Result<[Expr; 2]> {
        let most = i64::try_from(longest).unwrap_or(i64::MAX);
        let batch = self.extents.0.map_or_else(|| g.symbol("batch", 1..=1 << 16), |n| Ok(n.into()))?;
        let tokens = self.extents.1.map_or_else(|| g.symbol("tokens", 1..=most), |n| Ok(n.into()))?;
        Ok([batch, tokens])
    }
}

/// `sentence_embedding` of `hidden: [B, T, E]` with the mask `[B, T]`.
pub(super) fn sentence_embedding(hidden: Value<'_>, mask: Value<'_>) -> Result<()> {
    let mask = mask.cast(DType::F32)?;
    let rank = mask.rank();
    let sum = hidden.mul(mask.unsqueeze(rank)?)?.sum(&[1], false)?;
    let count = mask.sum(&[1], true)?;
    let mean = sum.div(count.max(count.like(1e-9)?)?)?;
    let length = mean.mul(mean)?.sum(&[-1], true)?.sqrt()?;
    hidden.builder().output("sentence_embedding", mean.div(length.max(length.like(1e-12)?)?)?)
}

/// Makes the two columns of `both`, `[B, T, 2]`, the outputs of [`Head::Answer`], each `[B, T]`.
pub(super) fn span_outputs(both: Value<'_>) -> Result<()> {
    let dims = [both.dim(0)?, both.dim(1)?];
    for (n, name) in ["start_logits", "end_logits"].into_iter().enumerate() {
        both.builder().output(name, both.part(-1, n, 1i64)?.reshape(dims.clone())?)?;
    }
    Ok(())
}

/// Whether a tensor is a part of a head, where none is wanted.
pub(super) fn known_head_parts(wanted: Head, name: &str) -> bool {
    let heads = [
        "cls.",
        "lm_head.",
        "lm_loss.",
        "vocab_",
        "generator_",
        "discriminator_",
        "classifier.",
        "pre_classifier.",
        "qa_outputs.",
        "sequence_summary.",
        "logits_proj.",
    ];
    matches!(wanted, Head::Hidden | Head::Embedding) && heads.iter().any(|start| name.starts_with(start))
}
