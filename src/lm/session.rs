//! One text and its cache.
//!
//! Invariant: the cache holds the keys and values of exactly the session's tokens; the logits are those of the last one, or
//! there are none.

use super::programs::Cache;
use super::score::PIECE;
use super::{LmError, Programs};
use crate::Error;

/// A text that a model has read. Sessions share the programs, and each has a cache of its own.
#[derive(Debug)]
pub struct Session {
    cache: Cache,
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

impl Session {
    /// A session in which nothing was read.
    ///
    /// # Errors
    /// The memory of its cache is not to be had.
    pub fn new(programs: &Programs) -> Result<Session, Error> {
        Ok(Session { cache: programs.cache()?, tokens: Vec::new(), logits: Vec::new() })
    }

    /// A session in which nothing was read, with a cache that has a source.
    pub(super) fn of(cache: Cache) -> Session {
        Session { cache, tokens: Vec::new(), logits: Vec::new() }
    }

    /// Bytes of the cache.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// The tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The logits of what follows the last token, `[V]`; empty where no token was read since the session was rewound. They
    /// may be changed before a token is chosen.
    pub fn logits_mut(&mut self) -> &mut Vec<f32> {
        &mut self.logits
    }

    /// Reads tokens; the logits of the last one.
    ///
    /// # Errors
    /// There are none, one is not the model's, the capacity is reached, or a run fails. The session is as it was then.
    pub fn prefill(&mut self, programs: &mut Programs, tokens: &[u32]) -> Result<&mut Vec<f32>, Error> {
        if tokens.is_empty() {
            return Err(LmError::Empty.into());
        }
        programs.run(&mut self.cache, self.tokens.len(), tokens, &mut self.logits)?;
        self.tokens.extend_from_slice(tokens);
        Ok(&mut self.logits)
    }

    /// Reads one token; its logits.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn step(&mut self, programs: &mut Programs, token: u32) -> Result<&mut Vec<f32>, Error> {
        self.prefill(programs, &[token])
    }

    /// Makes the session's tokens these, reading only what follows the beginning that they share with the tokens that are
    /// there (at least one is read). The number of tokens that were kept.
    ///
    /// # Errors
    /// As [`Session::prefill`].
    pub fn continue_with(&mut self, programs: &mut Programs, tokens: &[u32]) -> Result<usize, Error> {
        let same = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let kept = same.min(tokens.len().saturating_sub(1));
        self.rewind(kept);
        self.prefill(programs, tokens.get(kept..).unwrap_or_default())?;
        Ok(kept)
    }

    /// As [`Session::continue_with`], in pieces, of which the logits of all but the last token are dropped.
    pub(super) fn read_prompt(&mut self, programs: &mut Programs, tokens: &[u32]) -> Result<(), Error> {
        let same = self.tokens.iter().zip(tokens).take_while(|(a, b)| a == b).count();
        let kept = same.min(tokens.len().saturating_sub(1));
        if !programs.gives_all_logits() {
            return self.continue_with(programs, tokens).map(|_| ());
        }
        // What does not fit is said before anything is read.
        programs.check(kept, tokens.get(kept..).unwrap_or_default())?;
        self.rewind(kept);
        for piece in tokens.get(kept..).unwrap_or_default().chunks(PIECE) {
            let logits = self.prefill(programs, piece)?;
            logits.drain(..logits.len() - programs.vocabulary().min(logits.len()));
        }
        if tokens.is_empty() { Err(LmError::Empty.into()) } else { Ok(()) }
    }

    /// A session of its own that goes on from here.
    ///
    /// # Errors
    /// The memory of its cache is not to be had.
    pub fn fork(&self, programs: &Programs) -> Result<Session, Error> {
        let cache = self.cache.copy(self.tokens.len(), programs.budget())?;
        Ok(Session { cache, tokens: self.tokens.clone(), logits: self.logits.clone() })
    }

    /// Forgets all but the first tokens.
    pub fn rewind(&mut self, tokens: usize) {
        if tokens < self.tokens.len() {
            self.tokens.truncate(tokens);
            self.logits.clear();
        }
    }
}
