//! Several texts that are read together, of whatever lengths.
//!
//! Invariant: their tokens share one row and one cache, without padding, and each sees its own text and what was read for all, nothing
//! else. So what is said of a text is what is said of it alone, but for the order in which sums are rounded.

use super::compiled::loading;
use super::compiled::{Entry, Sizes};
use super::programs::{Cache, MOST_TOKENS, Program, compiled_for};
use super::{LanguageModel, LmError, ProgramOptions};
use crate::{Error, Observer};
use kiln_runtime::engine::Context;
use kiln_runtime::memory::Budget;
use std::collections::BTreeMap;

/// A decoder that reads several texts at once, ready to run for a capacity that they share.
#[derive(Debug)]
pub struct PackedPrograms {
    program: Program,
    sizes: Sizes,
    capacity: usize,
    budget: Budget,
}

impl PackedPrograms {
    /// Makes a model ready to run: compiles a checkpoint, or takes the program of an artifact. The options' capacity is that of all
    /// texts together.
    ///
    /// # Errors
    /// As [`super::Programs::new`].
    pub fn new(
        model: &LanguageModel,
        options: &ProgramOptions,
        observer: &mut dyn Observer,
    ) -> Result<PackedPrograms, Error> {
        let compiled = compiled_for(model, &[Entry::Packed], options, observer)?;
        let sizes = compiled.sizes;
        let ready = compiled.program(Entry::Packed, &loading(options.level))?;
        let context = Context::new(&ready, options.threads, &options.budget)?;
        let program = Program::new(context, Entry::Packed, &sizes)?;
        Ok(PackedPrograms { program, sizes, capacity: options.capacity, budget: options.budget.clone() })
    }

    /// Positions that a cache holds for all texts together.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        self.sizes.vocabulary
    }
}

/// One of several texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TextId(i64);

/// What all texts begin with.
const COMMON: TextId = TextId(0);

/// Tokens that a text goes on with.
#[derive(Clone, Copy, Debug)]
pub struct Reading<'a> {
    /// The text.
    pub text: TextId,
    /// Its next tokens.
    pub tokens: &'a [u32],
    /// The first of them after which logits are wanted.
    pub logits_from: usize,
}

/// Texts that a model has read, and their cache.
#[derive(Debug)]
pub struct Texts {
    cache: Cache,
    /// Of each position that is taken, the text and the place in it.
    text: Vec<i64>,
    position: Vec<i64>,
    /// Tokens of each text that is there, with those of all.
    lengths: BTreeMap<i64, i64>,
    begun: i64,
    /// What was read for all.
    common: Vec<u32>,
}

/// One token of a call.
struct Token {
    text: i64,
    position: i64,
    token: u32,
    /// Whose logits it gives.
    wanted: Option<usize>,
}

impl Texts {
    /// None yet.
    ///
    /// # Errors
    /// The memory of their cache is not to be had.
    pub fn new(programs: &PackedPrograms) -> Result<Texts, Error> {
        let cache = Cache::empty(&programs.sizes, programs.capacity, &programs.budget)?;
        Ok(Texts {
            cache,
            text: Vec::new(),
            position: Vec::new(),
            lengths: BTreeMap::new(),
            begun: 0,
            common: Vec::new(),
        })
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Begins a text after what was read for all.
    pub fn begin(&mut self) -> TextId {
        self.begun += 1;
        self.lengths.insert(self.begun, self.common.len() as i64);
        TextId(self.begun)
    }

    /// Makes these tokens what all texts begin with; what is there of them already is not read again. No text may be there.
    ///
    /// # Errors
    /// As [`Texts::read`].
    pub fn begin_all_with(&mut self, programs: &mut PackedPrograms, tokens: &[u32]) -> Result<(), Error> {
        if !self.lengths.is_empty() {
            return Err(Error::Internal("texts were begun before what all begin with".into()));
        }
        let kept = self.common.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        // No text is there, so the positions are those of all, in order.
        self.text.truncate(kept);
        self.position.truncate(kept);
        self.common.truncate(kept);
        let rest = tokens.get(kept..).unwrap_or_default();
        if !rest.is_empty() {
            self.lengths.insert(COMMON.0, kept as i64);
            let read = self.read(programs, &[Reading { text: COMMON, tokens: rest, logits_from: rest.len() }]);
            self.lengths.remove(&COMMON.0);
            read?;
            self.common.extend_from_slice(rest);
        }
        Ok(())
    }

    /// Ends a text; its positions are free again.
    pub fn end(&mut self, text: TextId) {
        self.lengths.remove(&text.0);
        self.keep(|at, texts| texts.text.get(at) != Some(&text.0));
    }

    /// Keeps the positions that `wanted` says.
    fn keep(&mut self, wanted: impl Fn(usize, &Texts) -> bool) {
        let kept: Vec<usize> = (0..self.text.len()).filter(|&at| wanted(at, self)).collect();
        self.cache.keep(&kept);
        let pick = |all: &[i64]| kept.iter().filter_map(|&at| all.get(at).copied()).collect();
        (self.text, self.position) = (pick(&self.text), pick(&self.position));
    }

    /// Reads tokens of texts, each of which is there once; the logits of each that are wanted, `[tokens, V]`.
    ///
    /// # Errors
    /// A text has none, a token is not the model's, the capacity is reached, or a run fails. The texts are as they were then.
    pub fn read(&mut self, programs: &mut PackedPrograms, readings: &[Reading<'_>]) -> Result<Vec<Vec<f32>>, Error> {
        let vocabulary = programs.sizes.vocabulary;
        let (used, capacity) = (self.text.len(), programs.capacity);
        let mut all = Vec::new();
        let mut lengths = self.lengths.clone();
        for (n, reading) in readings.iter().enumerate() {
            if reading.tokens.is_empty() {
                return Err(LmError::Empty.into());
            }
            let missing = || Error::Internal("tokens of a text that is not there".into());
            let length = lengths.get_mut(&reading.text.0).ok_or_else(missing)?;
            for (place, &token) in reading.tokens.iter().enumerate() {
                if token as usize >= vocabulary {
                    return Err(LmError::Token { token, vocabulary }.into());
                }
                let wanted = (place >= reading.logits_from).then_some(n);
                all.push(Token { text: reading.text.0, position: *length, token, wanted });
                *length += 1;
            }
        }
        if used.saturating_add(all.len()) > capacity {
            return Err(LmError::Capacity { tokens: all.len(), used, capacity }.into());
        }
        let mut logits = vec![Vec::new(); readings.len()];
        for now in all.chunks(MOST_TOKENS) {
            if let Err(error) = self.call(programs, now, &mut logits) {
                self.text.truncate(used);
                self.position.truncate(used);
                return Err(error);
            }
        }
        self.lengths = lengths;
        Ok(logits)
    }

    /// One call of the program.
    fn call(&mut self, programs: &mut PackedPrograms, now: &[Token], logits: &mut [Vec<f32>]) -> Result<(), Error> {
        let vocabulary = programs.sizes.vocabulary;
        let mut chosen: Vec<(usize, Option<usize>)> =
            now.iter().enumerate().filter(|(_, t)| t.wanted.is_some()).map(|(at, t)| (at, t.wanted)).collect();
        if chosen.is_empty() {
            // The program gives at least one token's.
            chosen.push((0, None));
        }
        let ids: Vec<u32> = now.iter().map(|t| t.token).collect();
        let text: Vec<i64> = now.iter().map(|t| t.text).collect();
        let position: Vec<i64> = now.iter().map(|t| t.position).collect();
        let places = chosen.iter().map(|(at, _)| *at as i64).collect();
        let described = [text.clone(), position.clone(), self.text.clone(), self.position.clone(), places];
        let mut rows = Vec::new();
        programs.program.run(&mut self.cache, (self.text.len(), &ids), &described, &mut rows)?;
        self.text.extend(text);
        self.position.extend(position);
        for (row, (_, of)) in rows.chunks(vocabulary).zip(&chosen) {
            if let Some(to) = of.and_then(|n| logits.get_mut(n)) {
                to.extend_from_slice(row);
            }
        }
        Ok(())
    }
}

impl<'a> Reading<'a> {
    /// Tokens of which the last one's logits are wanted.
    pub fn last(text: TextId, tokens: &'a [u32]) -> Reading<'a> {
        Reading { text, tokens, logits_from: tokens.len().saturating_sub(1) }
    }
}
