//! A decoder, compiled.
//!
//! Invariant: how a compiled graph takes the past is known here alone; a session hands over its cache and gets it back with
//! the new positions in place.

use super::{LanguageModel, LmError};
use crate::{Error, Observer, Options, compile_graph};
use kiln_frontend::families::{Extent, Form, Past};
use kiln_frontend::nn::{Heads, Logits};
use kiln_ir::{DType, Tensor};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, Model, ModelOptions};
use kiln_runtime::memory::Budget;
use std::collections::BTreeMap;

/// How to compile a decoder.
#[derive(Clone, Debug)]
pub struct ProgramOptions {
    /// Positions that a session can hold.
    pub capacity: usize,
    /// Threads to run on.
    pub threads: usize,
    /// The CPU level to run on.
    pub level: CpuLevel,
    /// Bytes that weights, arenas and outputs may take together.
    pub budget: Budget,
    /// Whether logits of every token are wanted, not only of the last.
    pub all_logits: bool,
}

/// Tokens of a call, where there are that many.
const CHUNK: usize = 32;

/// Keys and values of all layers, each `[capacity, 1, Hkv, D]`.
#[derive(Clone, Debug)]
pub struct Cache {
    /// By layer, keys before values.
    parts: Vec<Vec<u8>>,
    capacity: usize,
}

/// A decoder, compiled for a capacity.
#[derive(Debug)]
pub struct Programs {
    vocabulary: usize,
    layers: usize,
    heads: Heads,
    capacity: usize,
    /// By the number of tokens that they take, descending.
    programs: Vec<Program>,
}

/// A graph that takes a fixed number of tokens.
#[derive(Debug)]
struct Program {
    tokens: usize,
    logits: Logits,
    context: Context,
    /// For each input, what it is, and its shape.
    inputs: Vec<(Input, Vec<usize>)>,
    /// The outputs of logits, and of `new_k`, `new_v` by layer.
    logits_at: Option<usize>,
    new_at: Vec<usize>,
}

#[derive(Clone, Copy, Debug)]
enum Input {
    Tokens,
    PastLength,
    /// A part of the cache.
    Past(usize),
}

impl Programs {
    /// Compiles a model.
    ///
    /// # Errors
    /// The weights do not fit the configuration (all problems at once), a limit is reached, or a bug of Kiln.
    pub fn compile(
        model: &LanguageModel,
        options: &ProgramOptions,
        observer: &mut dyn Observer,
    ) -> Result<Programs, Error> {
        let decoder = model.decoder();
        let loader = model.loader();
        let mut programs = Vec::new();
        let every = if options.all_logits { Logits::All } else { Logits::Last };
        for (tokens, logits) in [(CHUNK, every), (1, every)] {
            if tokens > options.capacity {
                continue;
            }
            let form = Form {
                batch: 1,
                tokens: Extent::Fixed(tokens),
                past: Past::Capacity,
                capacity: options.capacity,
                logits,
            };
            let graph = decoder.graph(&loader, &form).map_err(|e| Error::Internal(e.to_string()))?;
            loader.finish(|name| decoder.known_surplus(name)).map_err(|e| LmError::Checkpoint(e.into()))?;
            let compiling = Options { levels: vec![options.level], ..Options::default() };
            let compiled = compile_graph(graph, &compiling, observer)?;
            let loaded = compiled.load(&ModelOptions::default())?;
            drop(compiled);
            programs.push(Program::new(&loaded, tokens, logits, decoder.layers(), options)?);
        }
        let (vocabulary, layers, heads) = (decoder.vocabulary(), decoder.layers(), decoder.heads());
        Ok(Programs { vocabulary, layers, heads, capacity: options.capacity, programs })
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Positions that a cache holds.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// A cache in which nothing is.
    pub fn cache(&self) -> Cache {
        let sizes = [self.heads.key_size, self.heads.value_size];
        let bytes = |size: usize| self.capacity * self.heads.keys * size * 4;
        let parts = (0..self.layers).flat_map(|_| sizes).map(|size| vec![0; bytes(size)]).collect();
        Cache { parts, capacity: self.capacity }
    }

    /// Runs tokens at positions from `past` on; the logits of the last one, or of all, go to `logits`.
    ///
    /// # Errors
    /// A token is not one of the model's, the positions do not suffice, or a run fails.
    pub fn run(&mut self, cache: &mut Cache, past: usize, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), Error> {
        if let Some(&token) = tokens.iter().find(|&&t| t as usize >= self.vocabulary) {
            return Err(LmError::Token { token, vocabulary: self.vocabulary }.into());
        }
        if past.checked_add(tokens.len()).is_none_or(|end| end > cache.capacity) {
            return Err(LmError::Capacity { tokens: tokens.len(), used: past, capacity: cache.capacity }.into());
        }
        logits.clear();
        let (mut at, mut rest) = (past, tokens);
        while !rest.is_empty() {
            let fits = self.programs.iter_mut().find(|p| p.tokens <= rest.len());
            let program = fits.ok_or_else(|| Error::Internal("no program takes one token".into()))?;
            let (now, later) = rest.split_at(program.tokens);
            program.run(cache, at, now, logits)?;
            at += now.len();
            rest = later;
        }
        Ok(())
    }
}

impl Program {
    fn new(
        model: &Model,
        tokens: usize,
        logits: Logits,
        layers: usize,
        options: &ProgramOptions,
    ) -> Result<Program, Error> {
        let plan = model.plan();
        let internal = |name: &str| Error::Internal(format!("a decoder's graph has `{name}`"));
        let part = |name: &str, prefix: &str| {
            let (kind, layer) = name.strip_prefix(prefix)?.split_once('.')?;
            let layer = layer.parse::<usize>().ok().filter(|&l| l < layers)?;
            Some(2 * layer + usize::from(kind == "v"))
        };
        let input = |name: &str| match name {
            "tokens" => Ok(Input::Tokens),
            "past_length" => Ok(Input::PastLength),
            name => part(name, "past_").map(Input::Past).ok_or_else(|| internal(name)),
        };
        let shaped = |(name, slot): &(std::sync::Arc<str>, kiln_ir::plan::SlotId)| {
            let shape = plan.slots.get(*slot).and_then(|s| s.ty.shape());
            Ok::<_, Error>((input(name)?, shape.ok_or_else(|| internal(name))?))
        };
        let inputs = plan.inputs.iter().map(shaped).collect::<Result<_, _>>()?;
        let places: BTreeMap<&str, usize> =
            plan.outputs.iter().enumerate().map(|(n, (name, _))| (&**name, n)).collect();
        let place = |name: String| places.get(&*name).copied().ok_or_else(|| internal(&name));
        let new_at = (0..2 * layers)
            .map(|n| place(format!("new_{}.{}", if n % 2 == 0 { "k" } else { "v" }, n / 2)))
            .collect::<Result<_, _>>()?;
        let context = Context::new(model, options.threads, &options.budget)?;
        Ok(Program { tokens, logits, context, inputs, logits_at: places.get("logits").copied(), new_at })
    }

    fn run(&mut self, cache: &mut Cache, at: usize, tokens: &[u32], logits: &mut Vec<f32>) -> Result<(), Error> {
        let wrong = |e: kiln_ir::TensorError| Error::Internal(e.to_string());
        let ids: Vec<i64> = tokens.iter().map(|&t| i64::from(t)).collect();
        let past = i64::try_from(at).unwrap_or(i64::MAX);
        let tensor = |(input, shape): &(Input, Vec<usize>)| match input {
            Input::Tokens => Tensor::from_i64(shape, &ids),
            Input::PastLength => Tensor::from_i64(shape, &[past]),
            Input::Past(n) => {
                let bytes = cache.parts.get(*n).cloned().unwrap_or_default();
                Tensor::new(DType::F32, shape.clone(), bytes)
            }
        };
        let inputs = self.inputs.iter().map(tensor).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        self.context.load(&inputs)?;
        self.context.run_loaded()?;
        for (part, &output) in cache.parts.iter_mut().zip(&self.new_at) {
            let row = part.len() / cache.capacity.max(1);
            let new = self.context.output_bytes(output).unwrap_or_default();
            let room = part.get_mut(at * row..(at + tokens.len()) * row).filter(|room| room.len() == new.len());
            room.ok_or_else(|| Error::Internal("new keys of another size".into()))?.copy_from_slice(new);
        }
        if let Some(bytes) = self.logits_at.and_then(|n| self.context.output_bytes(n)) {
            if self.logits == Logits::Last {
                logits.clear();
            }
            logits.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
        }
        Ok(())
    }
}
