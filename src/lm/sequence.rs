//! Encoder-decoders: a source that is read once, and a target that is written token by token.
//!
//! Invariant: after its source was read, a target is decoded as any text is: by a [`Session`], of which the cache has the source.

use super::model::{ends, settings_of, tokenizer_of};
use super::programs::EncodedSource;
use super::{LmError, ProgramOptions, Programs, Sampling, Session, Tokenizer};
use crate::source::Within;
use crate::{Error, Observer, compile_graph};
use kiln_frontend::checkpoint::{CheckpointError, Files, Folder, Loader};
use kiln_frontend::families::{Extent, Sequence, SequenceForm, Settings};
use kiln_ir::Tensor;
use kiln_runtime::engine::{Context, ModelOptions};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// An encoder-decoder with its weights and tokenizer.
#[derive(Debug)]
pub struct SequenceModel {
    sequence: Sequence,
    folder: Folder,
    tokenizer: Tokenizer,
    ends: BTreeSet<u32>,
    start: u32,
}

impl SequenceModel {
    /// Whether there is a folder at a path whose `config.json` is that of an encoder-decoder.
    pub fn is_at(path: &Path) -> bool {
        let config = std::fs::read(path.join("config.json")).ok();
        let config = config.and_then(|bytes| serde_json::from_slice::<Json>(&bytes).ok());
        config.is_some_and(|c| c.get("model_type").and_then(Json::as_str).is_some_and(Sequence::is_kind))
    }

    /// Reads a folder as Hugging Face lays it out.
    ///
    /// # Errors
    /// What is wrong.
    pub fn open(path: &Path) -> Result<SequenceModel, LmError> {
        SequenceModel::of_folder(&Within(path))
    }

    /// Of the files of a folder.
    ///
    /// # Errors
    /// What is wrong.
    pub fn of_folder(files: &dyn Files) -> Result<SequenceModel, LmError> {
        let folder = Folder::read(files)?;
        let settings = Settings::json("config.json", &folder.config);
        let sequence = Sequence::from_json(&settings)?;
        let tokenizer = tokenizer_of(&folder, sequence.vocabulary())?;
        let (vocabulary, ends) = (sequence.vocabulary(), ends(&folder));
        let start = generation(&folder, "decoder_start_token_id").or(sequence.start());
        let missing = || settings.error("decoder_start_token_id", "is missing: nothing says how a target begins");
        let start = start.ok_or_else(missing)?;
        if start as usize >= vocabulary {
            return Err(LmError::Token { token: start, vocabulary });
        }
        Ok(SequenceModel { sequence, folder, tokenizer, ends, start })
    }

    /// The architecture.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens that end a target.
    pub fn ends(&self) -> &BTreeSet<u32> {
        &self.ends
    }

    /// The tokens that a target begins with.
    pub fn begin(&self) -> [u32; 1] {
        [self.start]
    }

    /// What the checkpoint asks of targets with at most so many tokens: tokens that must come first and last, and tokens that
    /// never come.
    pub fn sampling(&self, max_tokens: Option<usize>) -> Sampling {
        let mut forced = BTreeMap::new();
        forced.extend(
            generation(&self.folder, "forced_eos_token_id").and_then(|t| Some((max_tokens?.checked_sub(1)?, t))),
        );
        forced.extend(generation(&self.folder, "forced_bos_token_id").map(|token| (0, token)));
        let lists = [settings_of(&self.folder, "bad_words_ids"), settings_of(&self.folder, "suppress_tokens")];
        let single = |word: &Json| match word {
            Json::Array(tokens) if tokens.len() == 1 => tokens[0].as_u64(),
            other => other.as_u64(),
        };
        let words = lists.into_iter().flatten().filter_map(Json::as_array).flatten().filter_map(single);
        let bias = words.filter_map(|token| Some((u32::try_from(token).ok()?, f64::NEG_INFINITY))).collect();
        Sampling { forced, bias, ..Sampling::default() }
    }
}

/// A token that the checkpoint names.
fn generation(folder: &Folder, key: &str) -> Option<u32> {
    settings_of(folder, key).and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok())
}

/// An encoder-decoder, compiled for a capacity of source and target.
#[derive(Debug)]
pub struct SequencePrograms {
    encoder: Context,
    /// For each part of a source, its place among the encoder's outputs.
    places: Vec<usize>,
    inputs: Vec<String>,
    longest: usize,
    decoder: Programs,
}

impl SequencePrograms {
    /// Compiles a model for sources of at most `longest` tokens; the options' capacity is that of targets.
    ///
    /// # Errors
    /// The weights do not fit the configuration (all problems at once), a limit is reached, or a bug of Kiln.
    pub fn compile(
        model: &SequenceModel,
        longest: usize,
        options: &ProgramOptions,
        observer: &mut dyn Observer,
    ) -> Result<SequencePrograms, Error> {
        let (sequence, loader) = (&model.sequence, Loader::new(&model.folder.weights));
        let form = |target| SequenceForm { target, source: Extent::Free, longest_source: longest };
        let build = |e: kiln_frontend::builder::BuildError| Error::Internal(e.to_string());
        let target = kiln_frontend::families::Form {
            batch: 1,
            tokens: Extent::Free,
            past: kiln_frontend::families::Past::Prefix(Extent::Free),
            capacity: options.capacity,
            logits: kiln_frontend::nn::Logits::Last,
            cache: options.cache.unwrap_or_default(),
        };
        // Both graphs are asked for before anything is reported: neither has all parameters.
        let graph = sequence.encoder(&loader, &form(target)).map_err(build)?;
        sequence.decoder(&loader, &form(target)).map_err(build)?;
        let known = |name: &str| sequence.known_surplus(name);
        loader.finish(known).map_err(|e| LmError::Checkpoint(CheckpointError::Weights(e)))?;
        let loaded = compile_graph(graph, &options.compilation(), observer)?.load(&ModelOptions::default())?;
        let plan = loaded.plan();
        let place = |name: String| {
            let found = plan.outputs.iter().position(|(n, _)| **n == *name);
            found.ok_or_else(|| Error::Internal(format!("an encoder's graph without `{name}`")))
        };
        let names = (0..sequence.layers()).flat_map(|n| [format!("source_k.{n}"), format!("source_v.{n}")]);
        let places = names.map(place).collect::<Result<_, _>>()?;
        let inputs = plan.inputs.iter().map(|(name, _)| name.to_string()).collect();
        let encoder = Context::new(&loaded, options.threads, &options.budget)?;
        let sizes = (sequence.vocabulary(), sequence.layers(), sequence.heads());
        let graph = |target: &_| sequence.decoder(&loader, &form(*target)).map_err(build);
        let decoder = Programs::of_graphs(graph, sizes, options, observer)?;
        Ok(SequencePrograms { encoder, places, inputs, longest, decoder })
    }

    /// The decoder, with which sessions go on.
    pub fn decoder(&mut self) -> &mut Programs {
        &mut self.decoder
    }

    /// A session for the target of a source, in which nothing of the target was read.
    ///
    /// # Errors
    /// The source has no token or too many, one is not the model's, or the run fails.
    pub fn begin(&mut self, source: &[u32]) -> Result<Session, Error> {
        let vocabulary = self.decoder.vocabulary();
        if source.is_empty() {
            return Err(LmError::Empty.into());
        }
        if let Some(&token) = source.iter().find(|&&t| t as usize >= vocabulary) {
            return Err(LmError::Token { token, vocabulary }.into());
        }
        if source.len() > self.longest {
            return Err(LmError::Capacity { tokens: source.len(), used: 0, capacity: self.longest }.into());
        }
        let tensor = |values: Vec<i64>| {
            Tensor::from_i64(&[1, source.len()], &values).map_err(|e| Error::Internal(e.to_string()))
        };
        let mask = tensor(vec![1; source.len()])?;
        let ids = tensor(source.iter().map(|&t| i64::from(t)).collect())?;
        let inputs: Vec<Tensor> =
            (self.inputs.iter()).map(|name| if name == "source_mask" { mask.clone() } else { ids.clone() }).collect();
        let outputs = self.encoder.run(&inputs)?;
        let missing = || Error::Internal("an encoder with fewer outputs than its plan".into());
        let part = |&n: &usize| outputs.get(n).cloned().ok_or_else(missing);
        let parts = self.places.iter().map(part).collect::<Result<_, _>>()?;
        Ok(Session::of(self.decoder.cache()?.with_source(EncodedSource { mask, parts })))
    }
}
