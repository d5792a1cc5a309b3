//! What all encoders have in common.
//!
//! Invariant: whoever runs an encoder need not know its family: inputs are `input_ids`, `attention_mask` and, where the family has
//! segments, `token_type_ids`, each i64 `[B, T]`; outputs are those of [`Head`].

use super::{Anatomy, Head, Settings, Wanted, bert, deberta, xlnet};
use crate::builder::Result;
use crate::checkpoint::CheckpointError;
use crate::nn::Parameters;
use kiln_ir::Graph;

/// Tokens of a text where the family sets no limit: XLNet knows distances alone, and was trained with 512.
const LONGEST: usize = 2048;

/// An encoder of any family.
#[derive(Clone, Debug, PartialEq)]
pub struct TextEncoder {
    /// What the checkpoint was made for.
    pub head: Head,
    /// Classes of the heads that classify, with their names where the checkpoint has them.
    pub labels: Vec<String>,
    family: Family,
}

#[derive(Clone, Debug, PartialEq)]
enum Family {
    Bert(bert::Config),
    Deberta(deberta::Config),
    Xlnet(xlnet::Config),
}

impl TextEncoder {
    /// The encoder that a `config.json` describes; `architecture` is the name of its class there.
    ///
    /// # Errors
    /// Its kind is not supported, or a setting is missing, cannot be, or is not supported.
    pub fn from_json(
        settings: &Settings<'_>,
        architecture: Option<&str>,
        labels: Vec<String>,
    ) -> std::result::Result<TextEncoder, CheckpointError> {
        let labels = if labels.is_empty() { vec!["0".into(), "1".into()] } else { labels };
        let family = match settings.text_if("model_type")?.unwrap_or_default() {
            kind if bert::KINDS.contains(&kind) => Family::Bert(bert::Config::from_json(settings, labels.len())?),
            "deberta-v2" => Family::Deberta(deberta::Config::from_json(settings, labels.len())?),
            "xlnet" => Family::Xlnet(xlnet::Config::from_json(settings, LONGEST, labels.len())?),
            other => {
                let known = [bert::KINDS.as_slice(), &["deberta-v2", "xlnet"]].concat();
                return Err(CheckpointError::Family(other.into(), known.join(", ")));
            }
        };
        Ok(TextEncoder { head: Head::of_architecture(architecture)?, labels, family })
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match &self.family {
            Family::Bert(config) => config.vocabulary,
            Family::Deberta(config) => config.vocabulary,
            Family::Xlnet(config) => config.vocabulary,
        }
    }

    /// The greatest number of tokens of a text.
    pub fn context(&self) -> usize {
        match &self.family {
            Family::Bert(config) => config.context(),
            Family::Deberta(config) => config.context,
            Family::Xlnet(config) => config.longest,
        }
    }

    /// Where its checkpoints have layers and heads; nothing for families whose layers share what the others need (DeBERTa's positions,
    /// XLNet's recurrence).
    pub fn anatomy(&self) -> Option<Anatomy> {
        match &self.family {
            Family::Bert(config) => Some(config.anatomy()),
            Family::Deberta(_) | Family::Xlnet(_) => None,
        }
    }

    /// How many segments the model tells apart; nothing where it compares them and has no table of them.
    pub fn segments(&self) -> Option<usize> {
        match &self.family {
            Family::Bert(config) => Some(config.segments),
            Family::Deberta(config) => Some(config.segments),
            Family::Xlnet(_) => None,
        }
    }

    /// Whether shorter texts of a call are filled up before their beginning, since their last token is that of the class.
    pub fn pads_before(&self) -> bool {
        matches!(self.family, Family::Xlnet(_))
    }

    /// The graph.
    ///
    /// # Errors
    /// The family does not have the head.
    pub fn graph(&self, parameters: &dyn Parameters, wanted: &Wanted) -> Result<Graph> {
        match &self.family {
            Family::Bert(config) => bert::graph(config, parameters, wanted),
            Family::Deberta(config) => deberta::graph(config, parameters, wanted),
            Family::Xlnet(config) => xlnet::graph(config, parameters, wanted),
        }
    }

    /// Whether a checkpoint may have a tensor that the graph with a head does not ask for.
    pub fn known_surplus(&self, head: Head, name: &str) -> bool {
        match &self.family {
            Family::Bert(config) => bert::known_surplus(config, head, name),
            Family::Deberta(_) => deberta::known_surplus(head, name),
            Family::Xlnet(_) => xlnet::known_surplus(head, name),
        }
    }
}
