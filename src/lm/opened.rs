//! A language model of either kind, by what is at a path.

use super::{LanguageModel, SequenceModel, compiled};
use crate::Error;
use kiln_runtime::artifact;
use std::path::Path;

/// A language model.
#[derive(Debug)]
pub enum Opened {
    /// It continues texts.
    Decoder(Box<LanguageModel>),
    /// It answers a text by another.
    Sequence(Box<SequenceModel>),
}

impl Opened {
    /// Reads a GGUF file, a folder as Hugging Face lays it out, or an artifact of either kind.
    ///
    /// # Errors
    /// As [`LanguageModel::open`] and [`SequenceModel::open`].
    pub fn open(path: &Path) -> Result<Opened, Error> {
        if SequenceModel::is_at(path) {
            return Ok(Opened::Sequence(Box::new(SequenceModel::open(path)?)));
        }
        let compiled = !path.is_dir() && kiln_runtime::file::map(path).is_ok_and(|file| artifact::is_artifact(&file));
        if !compiled {
            return Ok(Opened::Decoder(Box::new(LanguageModel::open(path)?)));
        }
        let mut opened = compiled::open(path)?;
        Ok(match opened.targets.take() {
            Some(targets) => Opened::Sequence(Box::new(SequenceModel::of_opened(opened, targets))),
            None => Opened::Decoder(Box::new(LanguageModel::of_opened(path, opened)?)),
        })
    }
}
