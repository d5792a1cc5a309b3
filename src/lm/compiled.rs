//! A decoder, or an encoder-decoder, as an artifact.
//!
//! Invariant: one section of weights serves all programs: any number of tokens with the logits of the last one (the
//! artifact's own program), one token, any number of tokens with all logits; of a decoder those of several texts at once, of an encoder-decoder
//! what reads a source. The artifact holds the tokenizer too, so that it needs nothing beside it.

use super::model::{Body, check_size};
use super::sequence::Targets;
use super::{LanguageModel, LmError, Tokenizer};
use crate::bundle::Bundle;
use crate::{Error, Observer, Options, compile_graph};
use kiln_frontend::families::{Extent, Form, Past};
use kiln_frontend::nn::{CacheElement, Heads, Logits};
use kiln_ir::{DType, Graph};
use kiln_runtime::artifact::{Artifact, LoadOptions};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{LoadError, Model, ModelOptions};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

/// The section with what a generator must know beside the plans, as JSON.
const FACTS: &str = "lm";

/// The section with the tokenizer, as `tokenizer.json` has it.
const TOKENIZER: &str = "tokenizer";

/// The version of the section [`FACTS`].
const FORMAT: u32 = 2;

/// A program of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// Any number of tokens; the logits of the last one.
    Many,
    /// One token.
    One,
    /// Any number of tokens; the logits of all.
    All,
    /// Any number of tokens of several texts; the logits of those that are chosen.
    Packed,
    /// The encoder of an encoder-decoder.
    Source,
}

impl Entry {
    /// The entry's name in the artifact.
    pub fn name(self) -> &'static str {
        match self {
            Entry::Many => "",
            Entry::One => "one",
            Entry::All => "all",
            Entry::Packed => "packed",
            Entry::Source => "source",
        }
    }

    /// Which logits it gives.
    pub fn logits(self) -> Logits {
        match self {
            Entry::Many | Entry::One => Logits::Last,
            Entry::All => Logits::All,
            Entry::Packed => Logits::Chosen,
            Entry::Source => Logits::None,
        }
    }
}

/// The sizes of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sizes {
    /// Number of tokens that the model knows.
    pub vocabulary: usize,
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values, the size of a key, the size of a value.
    pub cache: [usize; 3],
    /// Positions that a cache can hold.
    pub capacity: usize,
    /// What its numbers are kept in.
    #[serde(with = "by_name")]
    pub element: CacheElement,
}

/// A cache's elements as their name.
mod by_name {
    use super::CacheElement;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(element: &CacheElement, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(element.name())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<CacheElement, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

impl Sizes {
    pub fn new(vocabulary: usize, layers: usize, heads: Heads, (capacity, element): (usize, CacheElement)) -> Sizes {
        Sizes { vocabulary, layers, cache: [heads.keys, heads.key_size, heads.value_size], capacity, element }
    }

    /// What one position of a part of a layer's cache has: its elements and dims, by [`CacheElement::parts`].
    pub fn part(&self, kind: &str) -> (DType, Vec<usize>) {
        let [heads, key, value] = self.cache;
        match kind {
            "k" => (self.element.dtype(), vec![heads, key]),
            "v" => (self.element.dtype(), vec![heads, value]),
            _ => (DType::F32, vec![heads]),
        }
    }
}

/// What an artifact says of its decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Facts {
    format: u32,
    sizes: Sizes,
    /// Tokens that end a text.
    ends: BTreeSet<u32>,
    /// The token that begins a text.
    begin: Option<u32>,
    /// The chat template, in Jinja.
    template: Option<String>,
    /// Of an encoder-decoder, what reads a source and begins a target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    source: Option<SourceFacts>,
}

/// What an artifact says of an encoder-decoder beside its decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SourceFacts {
    /// Most tokens of a source.
    pub longest: usize,
    /// What targets are like.
    pub targets: Targets,
}

/// A decoder that is compiled.
#[derive(Clone)]
pub(super) struct Compiled {
    pub sizes: Sizes,
    pub artifact: Arc<Artifact>,
    /// Programs that were made ready beforehand for the best level of this machine that the artifact has.
    ready: Vec<(Entry, Model)>,
    /// Of an encoder-decoder, most tokens of a source.
    pub longest: Option<usize>,
}

impl std::fmt::Debug for Compiled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Compiled({:?})", self.sizes)
    }
}

impl Compiled {
    pub fn new(sizes: Sizes, artifact: Arc<Artifact>) -> Compiled {
        Compiled { sizes, artifact, ready: vec![], longest: None }
    }

    /// A program, ready to run.
    ///
    /// # Errors
    /// The artifact has no such entry, or no code for this machine.
    pub fn program(&self, entry: Entry, options: &ModelOptions) -> Result<Model, Error> {
        let allowed = |model: &Model| options.levels.as_ref().is_some_and(|levels| levels.contains(&model.level()));
        if let Some((_, model)) = self.ready.iter().find(|(of, model)| *of == entry && allowed(model)) {
            return Ok(model.clone());
        }
        let options = ModelOptions { entry: entry.name().into(), ..options.clone() };
        Ok(Model::new(Arc::clone(&self.artifact), &options)?)
    }
}

/// What generating a text will run; what cannot be made ready is reported to whoever wants it.
fn made_ready(artifact: &Arc<Artifact>) -> Vec<(Entry, Model)> {
    let model = |entry: Entry| {
        let options = ModelOptions { entry: entry.name().into(), ..ModelOptions::default() };
        Some((entry, Model::new(Arc::clone(artifact), &options).ok()?))
    };
    [Entry::Many, Entry::One].into_iter().filter_map(model).collect()
}

/// How a program for this machine is taken from an artifact, of a level up to this one.
pub(super) fn loading(level: CpuLevel) -> ModelOptions {
    let levels = CpuLevel::ALL.into_iter().filter(|&l| l <= level).collect();
    ModelOptions { levels: Some(levels), ..ModelOptions::default() }
}

/// Compiles programs of the decoder whose graphs `graph` makes.
///
/// # Errors
/// A graph cannot be made or compiled.
pub(super) fn compile(
    graph: &dyn Fn(&Form) -> Result<Graph, Error>,
    entries: &[Entry],
    (capacity, cache): (usize, CacheElement),
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Bundle, Error> {
    let mut bundle = Bundle::default();
    for &entry in entries {
        observer.entry(entry.name())?;
        let tokens = if entry == Entry::One { Extent::Fixed(1) } else { Extent::Free };
        let past = if entry == Entry::Packed { Past::Packed } else { Past::Prefix(Extent::Free) };
        let form = Form { batch: 1, tokens, past, capacity, logits: entry.logits(), cache };
        bundle.add(entry.name(), compile_graph(graph(&form)?, options, observer)?);
    }
    Ok(bundle)
}

impl LanguageModel {
    /// Compiles the decoder to an artifact with all that generating text needs. `capacity` is the number of positions that a
    /// cache can hold, and `cache` what its numbers are kept in.
    ///
    /// # Errors
    /// As of [`crate::compile_graph`]; the weights do not fit the configuration, or the model is an artifact.
    pub fn compile(
        &self,
        (capacity, cache): (usize, CacheElement),
        options: &Options,
        observer: &mut dyn Observer,
    ) -> Result<Bundle, Error> {
        let Body::Checkpoint(checkpoint) = &self.body else {
            return Err(Error::Usage("the model is an artifact, which is compiled already".into()));
        };
        let decoder = &checkpoint.decoder;
        let entries = [Entry::Many, Entry::One, Entry::All, Entry::Packed];
        let mut bundle = compile(&checkpoint.graphs(), &entries, (capacity, cache), options, observer)?;
        let facts = Facts {
            format: FORMAT,
            sizes: Sizes::new(decoder.vocabulary(), decoder.layers(), decoder.heads(), (capacity, cache)),
            ends: self.ends.clone(),
            begin: self.begin,
            template: self.template.clone(),
            source: None,
        };
        facts.attach(&mut bundle, &self.tokenizer)?;
        Ok(bundle)
    }
}

impl Facts {
    /// Adds the description and the tokenizer to what becomes an artifact.
    fn attach(&self, bundle: &mut Bundle, tokenizer: &Tokenizer) -> Result<(), Error> {
        let internal = |e: &dyn std::fmt::Display| Error::Internal(format!("a description cannot be written: {e}"));
        bundle.attach(FACTS, serde_json::to_vec(self).map_err(|e| internal(&e))?);
        let tokenizer = tokenizer.inner().to_string(false).map_err(|e| internal(&e))?;
        bundle.attach(TOKENIZER, tokenizer.into_bytes());
        Ok(())
    }
}

/// Describes an encoder-decoder in what becomes its artifact.
///
/// # Errors
/// The description cannot be written.
pub(super) fn describe_sequence(
    bundle: &mut Bundle,
    sizes: Sizes,
    (ends, tokenizer): (&BTreeSet<u32>, &Tokenizer),
    source: SourceFacts,
) -> Result<(), Error> {
    let facts = Facts { format: FORMAT, sizes, ends: ends.clone(), begin: None, template: None, source: Some(source) };
    facts.attach(bundle, tokenizer)
}

/// What an artifact of a language model is.
#[derive(Clone, Debug)]
pub(super) struct Opened {
    pub compiled: Compiled,
    pub tokenizer: Tokenizer,
    pub ends: BTreeSet<u32>,
    pub begin: Option<u32>,
    pub template: Option<String>,
    /// Of an encoder-decoder, how its targets begin and end.
    pub targets: Option<Targets>,
}

/// Opens an artifact of a decoder or an encoder-decoder.
///
/// # Errors
/// It is damaged, or not of a language model.
pub(super) fn open(path: &Path) -> Result<Opened, Error> {
    let load = LoadOptions { verify_weights: false };
    let artifact = Arc::new(Artifact::open(path, &load).map_err(LoadError::Artifact)?);
    // The weights are hashed, and programs made ready, while the tokenizer is made; nothing of them is used before both are done.
    let (hashed, model) = std::thread::scope(|scope| {
        let hashing = scope.spawn(|| artifact.verify_weights().map(|()| made_ready(&artifact)));
        let model = described(path, &artifact);
        (hashing.join(), model)
    });
    let ready = match hashed {
        Ok(verdict) => verdict.map_err(LoadError::Artifact)?,
        Err(_) => return Err(Error::Internal("hashing the weights failed".into())),
    };
    let (Facts { format: _, sizes, ends, begin, template, source }, tokenizer) = model?;
    check_size(&tokenizer, sizes.vocabulary)?;
    let longest = source.as_ref().map(|source| source.longest);
    let targets = source.map(|source| source.targets);
    let wrong = |what: String| Error::from(LmError::Compiled { path: path.into(), what });
    if let Some(token) = targets.as_ref().and_then(|targets| targets.beyond(sizes.vocabulary)) {
        return Err(wrong(format!("its targets have the token {token} of {}", sizes.vocabulary)));
    }
    let compiled = Compiled { sizes, artifact, ready, longest };
    Ok(Opened { compiled, tokenizer, ends, begin, template, targets })
}

/// The cache that an artifact of a decoder works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheFacts {
    /// What its numbers are kept in.
    pub element: CacheElement,
    /// Bytes of all layers' keys and values for one token.
    pub position_bytes: u64,
    /// Most tokens.
    pub capacity: usize,
}

impl CacheFacts {
    /// Of an artifact; nothing where it is of no decoder.
    ///
    /// # Errors
    /// Its description cannot be read.
    pub fn of(path: &Path, artifact: &Artifact) -> Result<Option<CacheFacts>, Error> {
        if !artifact.sections().any(|(name, _)| name == FACTS) {
            return Ok(None);
        }
        let sizes = facts(path, artifact)?.sizes;
        let bytes = |kind: &&str| {
            let (dtype, dims) = sizes.part(kind);
            dims.iter().chain([&dtype.size(), &sizes.layers]).fold(1u64, |all, &n| all.saturating_mul(n as u64))
        };
        let position_bytes = sizes.element.parts().iter().map(bytes).fold(0, u64::saturating_add);
        Ok(Some(CacheFacts { element: sizes.element, position_bytes, capacity: sizes.capacity }))
    }
}

/// What an artifact says of its decoder.
fn facts(path: &Path, artifact: &Artifact) -> Result<Facts, Error> {
    let wrong = |what: &str| LmError::Compiled { path: path.into(), what: what.into() };
    let bytes = artifact.section(FACTS).map_err(|_| LmError::NoCheckpoint(path.into()))?;
    let facts: Facts = serde_json::from_slice(bytes).map_err(|e| wrong(&e.to_string()))?;
    if facts.format != FORMAT {
        return Err(wrong(&format!("its description has format {}, this program reads {FORMAT}", facts.format)).into());
    }
    Ok(facts)
}

/// What an artifact says of its decoder, and its tokenizer.
fn described(path: &Path, artifact: &Artifact) -> Result<(Facts, Tokenizer), Error> {
    let facts = facts(path, artifact)?;
    let tokenizer = Tokenizer::from_json(artifact.section(TOKENIZER).map_err(LoadError::Artifact)?)?;
    Ok((facts, tokenizer))
}
