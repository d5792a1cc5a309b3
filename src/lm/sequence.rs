//! Encoder-decoders: a source that is read once, and a target that is written token by token.
//!
//! Invariant: after its source was read, a target is decoded as any text is: by a [`Session`], of which the cache has the source.

use super::compiled::{self, Compiled, Entry, Sizes, SourceFacts, loading};
use super::model::{ends, settings_of, tokenizer_of};
use super::programs::EncodedSource;
use super::{LmError, ProgramOptions, Programs, Sampling, Session, Tokenizer};
use crate::bundle::Bundle;
use crate::source::Within;
use crate::{Error, Observer, Options, compile_graph};
use kiln_frontend::builder::BuildError;
use kiln_frontend::checkpoint::{CheckpointError, Files, Folder, Loader};
use kiln_frontend::families::{Extent, Form, Past, Sequence, SequenceForm, Settings};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_ir::Tensor;
use kiln_runtime::engine::Context;
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// An encoder-decoder with its weights and tokenizer.
#[derive(Debug)]
pub struct SequenceModel {
    body: Body,
    tokenizer: Tokenizer,
    ends: BTreeSet<u32>,
    targets: Targets,
}

/// Where it comes from.
#[derive(Debug)]
enum Body {
    /// A checkpoint.
    Checkpoint(Box<(Sequence, Folder)>),
    /// An artifact.
    Compiled(Compiled),
}

/// How targets begin and end, as a checkpoint asks for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Targets {
    /// The token that the decoder begins with.
    start: u32,
    /// The token that must come first after it.
    first: Option<u32>,
    /// The token that must come last where a target becomes as long as it may.
    last: Option<u32>,
    /// Tokens that never come.
    never: BTreeSet<u32>,
}

impl Targets {
    /// A token that a model which knows so many does not have.
    pub(super) fn beyond(&self, vocabulary: usize) -> Option<u32> {
        [self.first, self.last].into_iter().flatten().chain([self.start]).find(|&token| token as usize >= vocabulary)
    }
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
        let lists = [settings_of(&folder, "bad_words_ids"), settings_of(&folder, "suppress_tokens")];
        let single = |word: &Json| match word {
            Json::Array(tokens) if tokens.len() == 1 => tokens[0].as_u64(),
            other => other.as_u64(),
        };
        let words = lists.into_iter().flatten().filter_map(Json::as_array).flatten().filter_map(single);
        let targets = Targets {
            start,
            first: generation(&folder, "forced_bos_token_id"),
            last: generation(&folder, "forced_eos_token_id"),
            never: words.filter_map(|token| u32::try_from(token).ok()).collect(),
        };
        Ok(SequenceModel { body: Body::Checkpoint(Box::new((sequence, folder))), tokenizer, ends, targets })
    }

    /// Of an artifact that was opened.
    pub(super) fn of_opened(opened: compiled::Opened, targets: Targets) -> SequenceModel {
        let compiled::Opened { compiled, tokenizer, ends, .. } = opened;
        SequenceModel { body: Body::Compiled(compiled), tokenizer, ends, targets }
    }

    /// The architecture; an artifact has none.
    pub fn sequence(&self) -> Option<&Sequence> {
        match &self.body {
            Body::Checkpoint(checkpoint) => Some(&checkpoint.0),
            Body::Compiled(_) => None,
        }
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match &self.body {
            Body::Checkpoint(checkpoint) => checkpoint.0.vocabulary(),
            Body::Compiled(compiled) => compiled.sizes.vocabulary,
        }
    }

    /// Most tokens of a target, that the model was trained or compiled for; nothing where there is no bound.
    pub fn context(&self) -> Option<usize> {
        match &self.body {
            Body::Checkpoint(checkpoint) => checkpoint.0.context(),
            Body::Compiled(compiled) => Some(compiled.sizes.capacity),
        }
    }

    /// The same of a source.
    pub fn longest_source(&self) -> Option<usize> {
        match &self.body {
            Body::Checkpoint(checkpoint) => checkpoint.0.context(),
            Body::Compiled(compiled) => compiled.longest,
        }
    }

    /// What an artifact's caches are kept in; a checkpoint's are kept in what is asked for.
    pub fn cache(&self) -> Option<CacheElement> {
        match &self.body {
            Body::Checkpoint(_) => None,
            Body::Compiled(compiled) => Some(compiled.sizes.element),
        }
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
        [self.targets.start]
    }

    /// What the checkpoint asks of targets with at most so many tokens: tokens that must come first and last, and tokens that
    /// never come.
    pub fn sampling(&self, max_tokens: Option<usize>) -> Sampling {
        let Targets { first, last, never, .. } = &self.targets;
        let mut forced = BTreeMap::new();
        forced.extend(last.and_then(|token| Some((max_tokens?.checked_sub(1)?, token))));
        forced.extend(first.map(|token| (0, token)));
        let bias = never.iter().map(|&token| (token, f64::NEG_INFINITY)).collect();
        Sampling { forced, bias, ..Sampling::default() }
    }

    /// Compiles the model to an artifact with all that answering a text needs: for sources of at most `longest` tokens and targets of
    /// `capacity`, whose cache keeps its numbers in `cache`.
    ///
    /// # Errors
    /// The weights do not fit the configuration (all problems at once), a limit is reached, the model is an artifact, or a bug of Kiln.
    pub fn compile(
        &self,
        longest: usize,
        cache: (usize, CacheElement),
        options: &Options,
        observer: &mut dyn Observer,
    ) -> Result<Bundle, Error> {
        let (mut bundle, sizes) =
            self.programs(&[Entry::Many, Entry::One, Entry::All], longest, cache, options, observer)?;
        let source = SourceFacts { longest, targets: self.targets.clone() };
        compiled::describe_sequence(&mut bundle, sizes, (&self.ends, &self.tokenizer), source)?;
        Ok(bundle)
    }

    /// Programs of the decoder, and that of the encoder behind them.
    fn programs(
        &self,
        entries: &[Entry],
        longest: usize,
        cache: (usize, CacheElement),
        options: &Options,
        observer: &mut dyn Observer,
    ) -> Result<(Bundle, Sizes), Error> {
        let Body::Checkpoint(checkpoint) = &self.body else {
            return Err(Error::Usage("the model is an artifact, which is compiled already".into()));
        };
        let (sequence, folder) = &**checkpoint;
        let loader = Loader::new(&folder.weights);
        let form = |target| SequenceForm { target, source: Extent::Free, longest_source: longest };
        let build = |e: BuildError| Error::Internal(e.to_string());
        let target = Form {
            batch: 1,
            tokens: Extent::Free,
            past: Past::Prefix(Extent::Free),
            capacity: cache.0,
            logits: Logits::Last,
            cache: cache.1,
        };
        // Both graphs are asked for before anything is reported: neither has all parameters.
        let encoder = sequence.encoder(&loader, &form(target)).map_err(build)?;
        sequence.decoder(&loader, &form(target)).map_err(build)?;
        let known = |name: &str| sequence.known_surplus(name);
        loader.finish(known).map_err(|e| LmError::Checkpoint(CheckpointError::Weights(e)))?;
        let decoder = |target: &Form| sequence.decoder(&loader, &form(*target)).map_err(build);
        let mut bundle = compiled::compile(&decoder, entries, cache, options, observer)?;
        observer.entry(Entry::Source.name())?;
        bundle.add(Entry::Source.name(), compile_graph(encoder, options, observer)?);
        Ok((bundle, Sizes::new(sequence.vocabulary(), sequence.layers(), sequence.heads(), cache)))
    }
}

/// A token that the checkpoint names.
fn generation(folder: &Folder, key: &str) -> Option<u32> {
    settings_of(folder, key).and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok())
}

/// An encoder-decoder, ready to run for a capacity of source and target.
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
    /// Makes a model ready for sources of at most `longest` tokens; the options' capacity is that of targets. Compiles a checkpoint, or takes the
    /// programs of an artifact.
    ///
    /// # Errors
    /// The weights do not fit the configuration (all problems at once), a limit is reached, the artifact has no code for the machine or fewer
    /// positions, or a bug of Kiln.
    pub fn new(
        model: &SequenceModel,
        longest: usize,
        options: &ProgramOptions,
        observer: &mut dyn Observer,
    ) -> Result<SequencePrograms, Error> {
        let (compiled, longest) = match &model.body {
            Body::Compiled(compiled) => {
                let capacity = compiled.longest.unwrap_or(0);
                if longest > capacity {
                    return Err(LmError::Positions { wanted: longest, capacity }.into());
                }
                (compiled.within(options)?, capacity)
            }
            Body::Checkpoint(_) => {
                let many = if options.all_logits { Entry::All } else { Entry::Many };
                let cache = (options.capacity, options.cache.unwrap_or_default());
                let compilation = options.compilation();
                let (bundle, sizes) = model.programs(&[many, Entry::One], longest, cache, &compilation, observer)?;
                (Compiled::new(sizes, bundle.into_artifact()?), longest)
            }
        };
        let decoder = Programs::of_compiled(&compiled, options)?;
        let loaded = compiled.program(Entry::Source, &loading(options.level))?;
        let plan = loaded.plan();
        let place = |name: String| {
            let found = plan.outputs.iter().position(|(n, _)| **n == *name);
            found.ok_or_else(|| Error::Internal(format!("an encoder's graph without `{name}`")))
        };
        let names = (0..compiled.sizes.layers).flat_map(|n| [format!("source_k.{n}"), format!("source_v.{n}")]);
        let places = names.map(place).collect::<Result<_, _>>()?;
        let inputs = plan.inputs.iter().map(|(name, _)| name.to_string()).collect();
        let encoder = decoder.beside(&loaded)?;
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
