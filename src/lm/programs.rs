//! A decoder, compiled.
//!
//! Invariant: how a compiled graph takes the past is known here alone; a session hands over its cache and gets it back with
//! the new positions in place.

use super::compiled::{self, Compiled, Entry, Sizes, loading};
use super::model::Body;
use super::{LanguageModel, LmError};
use crate::{Activations, Error, Observer, Options, Precision};
use kiln_frontend::nn::{CacheElement, Logits};
use kiln_ir::{DType, Tensor};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, Lent, Model};
use kiln_runtime::memory::{Budget, Buffer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How to make a decoder ready to run.
#[derive(Clone, Debug)]
pub struct ProgramOptions {
    /// Positions that a session can hold; of an artifact at most those that it was compiled for.
    pub capacity: usize,
    /// Threads to run on.
    pub threads: usize,
    /// The CPU level to compile for; of an artifact the highest one up to this.
    pub level: CpuLevel,
    /// Bytes that weights, arenas and outputs may take together.
    pub budget: Budget,
    /// Whether logits of every token are wanted, not only of the last.
    pub all_logits: bool,
    /// What activations are rounded to where they meet weights of few bits; an artifact has that already.
    pub activations: Activations,
    /// How precisely products with weights of f32 are computed; an artifact has that already.
    pub precision: Precision,
    /// What a cache's numbers are kept in; f32 where nothing is said, or what the artifact has, which cannot be changed.
    pub cache: Option<CacheElement>,
}

impl ProgramOptions {
    /// The options of the compilation.
    pub(super) fn compilation(&self) -> Options {
        let (activations, precision) = (self.activations, self.precision);
        Options { levels: vec![self.level], activations, precision, ..Options::default() }
    }
}

/// The parts of a layer's source: f32, whatever the cache is kept in.
const SOURCE_PARTS: [&str; 2] = ["k", "v"];

/// Most tokens of one call: what a call needs beside weights and cache grows with them.
pub(super) const MOST_TOKENS: usize = 256;

/// Keys and values of all layers.
#[derive(Debug)]
pub struct Cache {
    /// By layer, and in it by [`CacheElement::parts`]: each `[capacity, 1, ..]`.
    parts: Vec<Buffer>,
    /// What one position of each part of a layer has.
    kinds: Arc<[(DType, Vec<usize>)]>,
    capacity: usize,
    /// What an encoder-decoder attends to beside its own positions.
    source: Option<Arc<EncodedSource>>,
}

/// What an encoder made of a source, as the decoder's graph takes it.
#[derive(Debug)]
pub(super) struct EncodedSource {
    /// i64 `[1, S]`.
    pub(super) mask: Tensor,
    /// By layer, keys before values: f32 `[1, S, H, D]`.
    pub(super) parts: Vec<Tensor>,
}

impl Cache {
    /// One in which nothing is.
    ///
    /// # Errors
    /// The memory is not to be had.
    pub(super) fn empty(sizes: &Sizes, capacity: usize, budget: &Budget) -> Result<Cache, Error> {
        let kinds: Arc<[_]> = sizes.element.parts().iter().map(|kind| sizes.part(kind)).collect();
        let bytes = |kind: &(DType, Vec<usize>)| (position_bytes(kind) as u64).saturating_mul(capacity as u64);
        let parts = (0..sizes.layers).flat_map(|_| kinds.iter());
        let parts = parts.map(|kind| Buffer::zeroed(budget, bytes(kind), "a cache")).collect::<Result<_, _>>()?;
        Ok(Cache { parts, kinds, capacity, source: None })
    }

    /// The same with a source.
    pub(super) fn with_source(self, source: EncodedSource) -> Cache {
        Cache { source: Some(Arc::new(source)), ..self }
    }

    /// A cache of its own with the first positions of this one.
    ///
    /// # Errors
    /// The memory is not to be had.
    pub fn copy(&self, positions: usize, budget: &Budget) -> Result<Cache, Error> {
        let mut parts = Vec::with_capacity(self.parts.len());
        for (n, part) in self.parts.iter().enumerate() {
            let from = part.as_slice();
            let mut to = Buffer::zeroed(budget, from.len() as u64, "a cache")?;
            let kept = positions.min(self.capacity).saturating_mul(self.row(n)).min(from.len());
            if let (Some(to), Some(from)) = (to.as_mut_slice().get_mut(..kept), from.get(..kept)) {
                to.copy_from_slice(from);
            }
            parts.push(to);
        }
        Ok(Cache { parts, kinds: Arc::clone(&self.kinds), capacity: self.capacity, source: self.source.clone() })
    }

    /// Keeps these positions alone, which are in order, at the front.
    pub(super) fn keep(&mut self, positions: &[usize]) {
        for n in 0..self.parts.len() {
            let row = self.row(n);
            let Some(bytes) = self.parts.get_mut(n).map(Buffer::as_mut_slice) else { continue };
            for (to, &from) in positions.iter().enumerate().filter(|(to, from)| to != *from) {
                // In order, so that `to` is before `from`; what is outside of the cache is not there.
                if let Some(end) = from.checked_add(1).map(|n| n * row).filter(|&end| end <= bytes.len()) {
                    bytes.copy_within(from * row..end, to * row);
                }
            }
        }
    }

    /// Bytes of the whole.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.as_slice().len() as u64).sum()
    }

    /// What one position of a part has.
    fn kind(&self, part: usize) -> Option<&(DType, Vec<usize>)> {
        self.kinds.get(part.checked_rem(self.kinds.len())?)
    }

    /// Bytes of one position in a part.
    fn row(&self, part: usize) -> usize {
        self.kind(part).map_or(0, position_bytes)
    }
}

/// Bytes of one position of a part of a cache.
fn position_bytes((dtype, dims): &(DType, Vec<usize>)) -> usize {
    dims.iter().product::<usize>() * dtype.size()
}

/// A decoder, ready to run for a capacity.
#[derive(Debug)]
pub struct Programs {
    sizes: Sizes,
    capacity: usize,
    budget: Budget,
    /// For any number of tokens.
    many: Program,
    /// For one token.
    one: Program,
}

/// A compiled graph.
#[derive(Debug)]
pub(super) struct Program {
    logits: Logits,
    context: Context,
    inputs: Vec<Input>,
    /// The outputs of logits, and of `new_k`, `new_v` by layer.
    logits_at: Option<usize>,
    new_at: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Input {
    Tokens,
    /// A tensor of whole numbers that describes packed texts, by its place in [`Packed`].
    Packed(usize),
    /// A part of the cache.
    Past(usize),
    /// Which positions of a source count.
    SourceMask,
    /// A part of an encoded source.
    Source(usize),
}

impl Programs {
    /// Makes a model ready to run: compiles a checkpoint, or takes the programs of an artifact.
    ///
    /// # Errors
    /// The weights do not fit the configuration (all problems at once), a limit is reached, the artifact has no code for the
    /// machine or fewer positions, or a bug of Kiln.
    pub fn new(
        model: &LanguageModel,
        options: &ProgramOptions,
        observer: &mut dyn Observer,
    ) -> Result<Programs, Error> {
        let many = if options.all_logits { Entry::All } else { Entry::Many };
        Programs::of_compiled(&compiled_for(model, &[many, Entry::One], options, observer)?, options)
    }

    /// The programs of a decoder that is compiled.
    ///
    /// # Errors
    /// As [`Programs::new`].
    pub(super) fn of_compiled(compiled: &Compiled, options: &ProgramOptions) -> Result<Programs, Error> {
        let sizes = compiled.sizes;
        let many = if options.all_logits { Entry::All } else { Entry::Many };
        let loading = loading(options.level);
        let ready = |entry: Entry| compiled.program(entry, &loading);
        let many = Program::new(Context::new(&ready(many)?, options.threads, &options.budget)?, many, &sizes)?;
        // The weights are the same memory.
        let one = Context::beside(&many.context, &ready(Entry::One)?, options.threads)?;
        let one = Program::new(one, Entry::One, &sizes)?;
        let (capacity, budget) = (options.capacity, options.budget.clone());
        Ok(Programs { sizes, capacity, budget, many, one })
    }

    /// A program over the same weights, with as many threads.
    ///
    /// # Errors
    /// The memory or the threads are not to be had.
    pub(super) fn beside(&self, model: &Model) -> Result<Context, Error> {
        Ok(Context::beside(&self.many.context, model, self.many.context.threads())?)
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        self.sizes.vocabulary
    }

    /// Positions that a cache holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Memory that may be used.
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// A cache in which nothing is.
    ///
    /// # Errors
    /// The memory is not to be had.
    pub fn cache(&self) -> Result<Cache, Error> {
        Cache::empty(&self.sizes, self.capacity, &self.budget)
    }

    /// Whether each token's logits are given, not only the last one's.
    pub fn gives_all_logits(&self) -> bool {
        self.many.logits == Logits::All
    }

    /// Whether tokens can be run at positions from `past` on.
    pub(super) fn check(&self, past: usize, tokens: &[u32]) -> Result<(), LmError> {
        let (vocabulary, capacity) = (self.sizes.vocabulary, self.capacity);
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= vocabulary) {
            return Err(LmError::Token { token, vocabulary });
        }
        if past.checked_add(tokens.len()).is_none_or(|end| end > capacity) {
            return Err(LmError::Capacity { tokens: tokens.len(), used: past, capacity });
        }
        Ok(())
    }

    /// Runs tokens at positions from `past` on; the logits of the last one, or of all, go to `logits`.
    ///
    /// # Errors
    /// A token is not one of the model's, the positions do not suffice, or a run fails.
    pub fn run(&mut self, cache: &mut Cache, past: usize, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), Error> {
        self.check(past, tokens)?;
        logits.clear();
        let mut at = past;
        for now in tokens.chunks(MOST_TOKENS) {
            // The program of one token has the logits of that token alone.
            let alone = now.len() == 1 && (tokens.len() == 1 || self.many.logits == Logits::Last);
            let program = if alone { &mut self.one } else { &mut self.many };
            program.run(cache, (at, now), &[], logits)?;
            at += now.len();
        }
        Ok(())
    }
}

/// The programs of a model: those of an artifact, or compiled now.
///
/// # Errors
/// As [`Programs::new`].
pub(super) fn compiled_for(
    model: &LanguageModel,
    entries: &[Entry],
    options: &ProgramOptions,
    observer: &mut dyn Observer,
) -> Result<Compiled, Error> {
    match &model.body {
        Body::Compiled(compiled) => compiled.within(options),
        Body::Checkpoint(checkpoint) => {
            let decoder = &checkpoint.decoder;
            let cache = (options.capacity, options.cache.unwrap_or_default());
            let sizes = Sizes::new(decoder.vocabulary(), decoder.layers(), decoder.heads(), cache);
            let bundle = compiled::compile(&checkpoint.graphs(), entries, cache, &options.compilation(), observer)?;
            Ok(Compiled::new(sizes, bundle.into_artifact()?))
        }
    }
}

impl Compiled {
    /// The programs of an artifact, where they are as the options want them.
    ///
    /// # Errors
    /// Something else is asked for than it was compiled for.
    pub(super) fn within(&self, options: &ProgramOptions) -> Result<Compiled, Error> {
        let decided =
            |what: &str| Err(Error::Usage(format!("{what} is decided when a model is compiled; this is an artifact")));
        if options.activations != Activations::F32 {
            return decided("what activations are rounded to");
        }
        if options.precision != Precision::F32 {
            return decided("how precisely products are computed");
        }
        if options.cache.is_some_and(|cache| cache != self.sizes.element) {
            let has = self.sizes.element;
            let what = format!("what a cache is kept in is decided when a model is compiled; this artifact's is {has}");
            return Err(Error::Usage(what));
        }
        if options.capacity > self.sizes.capacity {
            return Err(LmError::Positions { wanted: options.capacity, capacity: self.sizes.capacity }.into());
        }
        Ok(self.clone())
    }
}

impl Program {
    pub(super) fn new(context: Context, entry: Entry, sizes: &Sizes) -> Result<Program, Error> {
        let (layers, kinds) = (sizes.layers, sizes.element.parts());
        let plan = context.plan();
        let internal = |name: &str| Error::Internal(format!("a decoder's graph has `{name}`"));
        let part = |name: &str, prefix: &str| {
            let (kind, layer) = name.strip_prefix(prefix)?.split_once('.')?;
            let layer = layer.parse::<usize>().ok().filter(|&l| l < layers)?;
            Some((layer, kind.to_string()))
        };
        let input = |name: &str| match name {
            "tokens" => Ok(Input::Tokens),
            "source_mask" => Ok(Input::SourceMask),
            "text" => Ok(Input::Packed(0)),
            "position" => Ok(Input::Packed(1)),
            "past_text" => Ok(Input::Packed(2)),
            "past_position" => Ok(Input::Packed(3)),
            "chosen" => Ok(Input::Packed(4)),
            name => {
                let place = |kinds: &[&str], (layer, kind): (usize, String)| {
                    Some(kinds.len() * layer + kinds.iter().position(|k| *k == kind)?)
                };
                let past = part(name, "past_").and_then(|at| place(kinds, at)).map(Input::Past);
                let source = || part(name, "source_").and_then(|at| place(&SOURCE_PARTS, at)).map(Input::Source);
                past.or_else(source).ok_or_else(|| internal(name))
            }
        };
        let inputs = plan.inputs.iter().map(|(name, _)| input(name)).collect::<Result<_, _>>()?;
        let places: BTreeMap<&str, usize> =
            plan.outputs.iter().enumerate().map(|(n, (name, _))| (&**name, n)).collect();
        let place = |name: String| places.get(&*name).copied().ok_or_else(|| internal(&name));
        let names = (0..layers).flat_map(|layer| kinds.iter().map(move |kind| format!("new_{kind}.{layer}")));
        let new_at = names.map(place).collect::<Result<_, _>>()?;
        let logits_at = places.get("logits").copied();
        Ok(Program { logits: entry.logits(), context, inputs, logits_at, new_at })
    }

    /// Runs tokens after `at` positions of the cache. `packed` is what the program of packed texts is told beside: text and position of
    /// each token, of each position of the past, and which tokens' logits are wanted.
    pub(super) fn run(
        &mut self,
        cache: &mut Cache,
        (at, tokens): (usize, &[u32]),
        packed: &[Vec<i64>],
        logits: &mut Vec<f32>,
    ) -> Result<(), Error> {
        let packed: Vec<([usize; 1], Vec<u8>)> =
            packed.iter().map(|v| ([v.len()], v.iter().flat_map(|n| n.to_le_bytes()).collect())).collect();
        let ids: Vec<u8> = tokens.iter().flat_map(|&t| i64::from(t).to_le_bytes()).collect();
        let ids_shape = [1, tokens.len()];
        let rows: Vec<usize> = (0..cache.parts.len()).map(|n| cache.row(n)).collect();
        let kinds: Vec<(DType, Vec<usize>)> =
            cache.kinds.iter().map(|(dtype, dims)| (*dtype, [at, 1].iter().chain(dims).copied().collect())).collect();
        let parts = cache.parts.iter_mut().zip(&rows).map(|(part, row)| split(part, at * row, tokens.len() * row));
        let parts: Option<Vec<(&[u8], &mut [u8])>> = parts.collect();
        let parts = parts.ok_or_else(|| Error::Internal("a cache of another size".into()))?;
        let (past, new): (Vec<&[u8]>, Vec<&mut [u8]>) = parts.into_iter().unzip();
        let source = |pick: &dyn Fn(&EncodedSource) -> Option<&Tensor>| {
            let tensor = cache.source.as_deref().and_then(pick);
            let tensor = tensor.ok_or_else(|| Error::Internal("a cache without the source of its text".into()))?;
            Ok::<_, Error>(Lent { dtype: tensor.dtype(), shape: tensor.shape(), bytes: tensor.bytes() })
        };
        let lend = |input: &Input| match input {
            Input::Tokens => Ok(Lent { dtype: DType::I64, shape: &ids_shape, bytes: &ids }),
            Input::Past(n) => {
                let (dtype, shape) = &kinds[n % kinds.len()];
                Ok(Lent { dtype: *dtype, shape, bytes: past[*n] })
            }
            Input::Packed(n) => {
                let given = packed.get(*n).ok_or_else(|| Error::Internal("texts that are not described".into()))?;
                Ok(Lent { dtype: DType::I64, shape: &given.0, bytes: &given.1 })
            }
            Input::SourceMask => source(&|s| Some(&s.mask)),
            Input::Source(n) => source(&|s| s.parts.get(*n)),
        };
        let inputs = self.inputs.iter().map(lend).collect::<Result<Vec<Lent<'_>>, Error>>()?;
        let mut outputs: Vec<(usize, &mut [u8])> = self.new_at.iter().copied().zip(new).collect();
        self.context.run_lent(&inputs, &mut outputs)?;
        if let Some(bytes) = self.logits_at.and_then(|n| self.context.output_bytes(n)) {
            if self.logits != Logits::All {
                logits.clear();
            }
            logits.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(())
    }
}

/// Where the past ends: the bytes before are read, so many bytes behind are written.
fn split(part: &mut Buffer, past: usize, new: usize) -> Option<(&[u8], &mut [u8])> {
    let (past, rest) = part.as_mut_slice().split_at_mut_checked(past)?;
    Some((past, rest.get_mut(..new)?))
}
