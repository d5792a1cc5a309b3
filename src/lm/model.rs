//! A language model: the tokenizer and what goes with it, and a decoder, be it a checkpoint's or compiled already.
//!
//! Invariant: files are mapped, not read; everything is checked before a graph is compiled.

use super::compiled::{self, Compiled};
use super::{LmError, Message, Tokenizer, render};
use crate::Error;
use crate::source::Within;
use bytes::Bytes;
use kiln_frontend::checkpoint::{Adapter, Files, Folder, GgufWeights, Loader, Overlay, Weights};
use kiln_frontend::families::{Decoder, Form, Settings};
use kiln_frontend::gguf::{Gguf, Value};
use kiln_frontend::nn::CacheElement;
use kiln_ir::Graph;
use kiln_runtime::artifact;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// A decoder with its tokenizer. Cloning shares the weights.
#[derive(Clone, Debug)]
pub struct LanguageModel {
    pub(super) body: Body,
    pub(super) tokenizer: Tokenizer,
    pub(super) ends: BTreeSet<u32>,
    pub(super) begin: Option<u32>,
    pub(super) template: Option<String>,
}

/// Where the decoder comes from.
#[derive(Clone, Debug)]
pub(super) enum Body {
    /// A checkpoint.
    Checkpoint(Checkpoint),
    /// An artifact.
    Compiled(Compiled),
}

/// A decoder's configuration and weights.
#[derive(Clone)]
pub(super) struct Checkpoint {
    pub decoder: Decoder,
    weights: Arc<dyn Weights>,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checkpoint({:?})", self.decoder)
    }
}

impl Checkpoint {
    /// Makes the decoder's graphs; quantized weights stay so, and graphs share what had to be converted.
    pub fn graphs(&self) -> impl Fn(&Form) -> Result<Graph, Error> {
        let loader = Loader::new(&*self.weights).keeping_blocks();
        move |form| {
            let graph = self.decoder.graph(&loader, form).map_err(|e| Error::Internal(e.to_string()))?;
            loader.finish(|name| self.decoder.known_surplus(name)).map_err(|e| LmError::Checkpoint(e.into()))?;
            Ok(graph)
        }
    }
}

impl LanguageModel {
    /// Reads a GGUF file, a folder as Hugging Face lays it out, or an artifact that [`LanguageModel::compile`] made.
    ///
    /// # Errors
    /// [`Error::Read`], or [`Error::Lm`] with what is wrong.
    pub fn open(path: &Path) -> Result<LanguageModel, Error> {
        if path.is_dir() {
            return Ok(LanguageModel::of_folder(&Within(path))?);
        }
        let file = kiln_runtime::file::map(path).map_err(|source| Error::Read { path: path.into(), source })?;
        if artifact::is_artifact(&file) {
            return LanguageModel::of_opened(path, compiled::open(path)?);
        }
        if !Gguf::sniff(&file) {
            return Err(LmError::NoCheckpoint(path.into()).into());
        }
        Ok(LanguageModel::of_gguf(file)?)
    }

    /// Of an artifact that was opened.
    pub(super) fn of_opened(path: &Path, opened: compiled::Opened) -> Result<LanguageModel, Error> {
        let compiled::Opened { compiled, tokenizer, ends, begin, template, targets } = opened;
        if targets.is_some() {
            let what = "is an encoder-decoder's, which answers a text by another; what continues a text is wanted";
            return Err(Error::Usage(format!("{} {what}", path.display())));
        }
        Ok(LanguageModel { body: Body::Compiled(compiled), tokenizer, ends, begin, template })
    }

    /// Whether a path leads to what [`LanguageModel::open`] reads, by its first bytes or its files.
    pub fn is_at(path: &Path) -> bool {
        if path.is_dir() {
            return path.join("config.json").is_file();
        }
        kiln_runtime::file::map(path).is_ok_and(|file| Gguf::sniff(&file))
    }

    /// Of the bytes of a GGUF file.
    ///
    /// # Errors
    /// What is wrong.
    pub fn of_gguf(file: Bytes) -> Result<LanguageModel, LmError> {
        let file = Gguf::parse(file).map_err(kiln_frontend::checkpoint::CheckpointError::from)?;
        let decoder = Decoder::from_gguf(&file)?;
        let tokenizer = Tokenizer::from_gguf(&file)?;
        let id = |key: &str| file.get(key).and_then(Value::as_int).and_then(|id| u32::try_from(id).ok());
        let keys = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
        let ends = keys.into_iter().filter_map(id).collect();
        let template = file.get("tokenizer.chat_template").and_then(Value::as_text).map(String::from);
        let begin = id("tokenizer.ggml.bos_token_id");
        let weights = Arc::new(GgufWeights::new(file)?);
        let body = Body::Checkpoint(Checkpoint { decoder, weights });
        LanguageModel { body, tokenizer, ends, begin, template }.checked()
    }

    /// Of the files of a folder.
    ///
    /// # Errors
    /// What is wrong.
    pub fn of_folder(files: &dyn Files) -> Result<LanguageModel, LmError> {
        LanguageModel::of(Folder::read(files)?)
    }

    /// Of a folder that was read.
    ///
    /// # Errors
    /// What is wrong.
    pub fn of(folder: Folder) -> Result<LanguageModel, LmError> {
        let decoder = Decoder::from_json(&Settings::json("config.json", &folder.config))?;
        let tokenizer = tokenizer_of(&folder, decoder.vocabulary())?;
        let ends = ends(&folder);
        let template =
            folder.tokenizer_config.as_ref().and_then(|c| c.get("chat_template")?.as_str().map(String::from));
        let begin = folder.config.get("bos_token_id").and_then(Json::as_u64).and_then(|id| u32::try_from(id).ok());
        let body = Body::Checkpoint(Checkpoint { decoder, weights: Arc::new(folder.weights) });
        LanguageModel { body, tokenizer, ends, begin, template }.checked()
    }

    pub(super) fn checked(self) -> Result<LanguageModel, LmError> {
        check_size(&self.tokenizer, self.vocabulary())?;
        Ok(self)
    }

    /// Number of tokens that the decoder knows.
    pub fn vocabulary(&self) -> usize {
        match &self.body {
            Body::Checkpoint(checkpoint) => checkpoint.decoder.vocabulary(),
            Body::Compiled(compiled) => compiled.sizes.vocabulary,
        }
    }

    /// Positions that the decoder was trained for, or compiled for.
    pub fn context(&self) -> usize {
        match &self.body {
            Body::Checkpoint(checkpoint) => checkpoint.decoder.context(),
            Body::Compiled(compiled) => compiled.sizes.capacity,
        }
    }

    /// What an artifact's caches are kept in; a checkpoint's are kept in what is asked for.
    pub fn cache(&self) -> Option<CacheElement> {
        match &self.body {
            Body::Checkpoint(_) => None,
            Body::Compiled(compiled) => Some(compiled.sizes.element),
        }
    }

    /// The weights of a checkpoint; an artifact's are its own.
    pub fn weights(&self) -> Option<&Arc<dyn Weights>> {
        match &self.body {
            Body::Checkpoint(checkpoint) => Some(&checkpoint.weights),
            Body::Compiled(_) => None,
        }
    }

    /// The model of a checkpoint with other weights of the same names and shapes.
    #[must_use]
    pub fn with_weights(mut self, weights: Arc<dyn Weights>) -> LanguageModel {
        if let Body::Checkpoint(checkpoint) = &mut self.body {
            checkpoint.weights = weights;
        }
        self
    }

    /// The model of a checkpoint with an adapter of low rank merged into its weights, from a folder as PEFT writes it.
    ///
    /// # Errors
    /// The adapter is not right, is of a kind that is not supported, or does not fit (all that does not at once); the model is an
    /// artifact.
    pub fn with_adapter(self, folder: &Path) -> Result<LanguageModel, Error> {
        let Some(weights) = self.weights().cloned() else {
            let what = "an adapter is merged when a model is compiled; this is an artifact";
            return Err(Error::Usage(what.into()));
        };
        let merged = Adapter::read(&Within(folder)).and_then(|adapter| adapter.merged(&*weights));
        Ok(self.with_weights(Arc::new(Overlay::new(weights, merged.map_err(LmError::from)?))))
    }

    /// The decoder's configuration; an artifact has none.
    pub fn decoder(&self) -> Option<&Decoder> {
        match &self.body {
            Body::Checkpoint(checkpoint) => Some(&checkpoint.decoder),
            Body::Compiled(_) => None,
        }
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens that end a text.
    pub fn ends(&self) -> &BTreeSet<u32> {
        &self.ends
    }

    /// The chat template, in Jinja.
    pub fn template(&self) -> Option<&str> {
        self.template.as_deref()
    }

    /// The tokens of a conversation by the chat template, ready for the answer.
    ///
    /// # Errors
    /// The model has no template, or it refuses the messages.
    pub fn chat(&self, messages: &[Message]) -> Result<Vec<u32>, LmError> {
        let none = || LmError::Template("the model has none".into());
        let special = |id: Option<u32>| id.and_then(|id| self.tokenizer.inner().id_to_token(id)).unwrap_or_default();
        let end = special(self.ends.first().copied());
        let text = render(self.template().ok_or_else(none)?, messages, &special(self.begin), &end)?;
        self.tokenizer.encode(&text, false)
    }
}

/// The tokenizer of a folder whose model knows so many tokens.
pub(super) fn tokenizer_of(folder: &Folder, vocabulary: usize) -> Result<Tokenizer, LmError> {
    let missing = || LmError::Tokenizer("there is no file tokenizer.json in the folder".into());
    let tokenizer = Tokenizer::from_json(folder.tokenizer.as_deref().ok_or_else(missing)?)?;
    check_size(&tokenizer, vocabulary)?;
    Ok(tokenizer)
}

/// That a tokenizer is of a model that knows so many tokens.
pub(super) fn check_size(tokenizer: &Tokenizer, vocabulary: usize) -> Result<(), LmError> {
    let tokens = tokenizer.size();
    if tokens > vocabulary {
        let message = format!("it has {tokens} tokens, the model {vocabulary}: it is of another model");
        return Err(LmError::Tokenizer(message));
    }
    Ok(())
}

/// Tokens that end a text, by all that a folder says.
pub(super) fn ends(folder: &Folder) -> BTreeSet<u32> {
    let mut ends = BTreeSet::new();
    for config in [Some(&folder.config), folder.generation.as_ref()].into_iter().flatten() {
        let id = |value: &Json| value.as_u64().and_then(|id| u32::try_from(id).ok());
        match config.get("eos_token_id") {
            Some(Json::Array(several)) => ends.extend(several.iter().filter_map(id)),
            Some(one) => ends.extend(id(one)),
            None => {}
        }
    }
    ends
}

/// What `generation_config.json` says, or else `config.json`.
pub(super) fn settings_of<'a>(folder: &'a Folder, key: &str) -> Option<&'a Json> {
    let all = [folder.generation.as_ref(), Some(&folder.config)];
    all.into_iter().flatten().find_map(|config| config.get(key).filter(|v| !v.is_null()))
}
