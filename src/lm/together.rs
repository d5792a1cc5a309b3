//! Texts that continue several prompts at once.
//!
//! Invariant: each text is that of its prompt alone, as far as its logits are (see [`Texts`]): it has a sampler of its own, from the same
//! seed.

use super::generate::{Next, Writing};
use super::{Generation, LanguageModel, LmError, PackedPrograms, Reading, Settings, TextId, Texts};
use crate::Error;
use std::time::{Duration, Instant};

/// Continues several prompts at once.
#[derive(Clone, Copy, Debug)]
pub struct Together<'a> {
    /// The model.
    pub model: &'a LanguageModel,
    /// How each text goes on.
    pub settings: &'a Settings,
    /// Texts that are there at once: where one ends, the next prompt takes its place.
    pub most: usize,
}

/// A text on its way.
struct Running<'a> {
    prompt: usize,
    text: TextId,
    /// What is to be read next.
    tokens: Vec<u32>,
    writing: Writing<'a>,
    begun: Instant,
    /// Time to read the prompt, and the moment after it.
    read: Option<(Duration, Instant)>,
}

impl Together<'_> {
    /// The texts that follow prompts. Each has an equal part of the programs' capacity.
    ///
    /// # Errors
    /// A prompt has no token or does not fit, guesses are asked for, or a run fails.
    pub fn run(&self, programs: &mut PackedPrograms, prompts: &[Vec<u32>]) -> Result<Vec<Generation>, Error> {
        if self.settings.lookup > 0 || self.most == 0 {
            return Err(Error::Usage("texts are continued together at least one at once, and without guesses".into()));
        }
        let capacity = programs.capacity() / self.most;
        if let Some(prompt) = prompts.iter().find(|p| p.len() > capacity) {
            return Err(LmError::Capacity { tokens: prompt.len(), used: 0, capacity }.into());
        }
        let (tokenizer, ends) = (self.model.tokenizer(), self.model.ends());
        let mut texts = Texts::new(programs)?;
        let mut waiting = prompts.iter().enumerate();
        let mut running: Vec<Running<'_>> = Vec::new();
        let mut done: Vec<Option<Generation>> = vec![None; prompts.len()];
        loop {
            while running.len() < self.most
                && let Some((prompt, tokens)) = waiting.next()
            {
                let writing = Writing::new(tokenizer, tokens, self.settings, capacity)?;
                let (text, tokens) = (texts.begin(), tokens.clone());
                running.push(Running { prompt, text, tokens, writing, begun: Instant::now(), read: None });
            }
            if running.is_empty() {
                break;
            }
            let readings: Vec<Reading<'_>> = running.iter().map(|r| Reading::last(r.text, &r.tokens)).collect();
            let logits = texts.read(programs, &readings)?;
            let mut still = Vec::with_capacity(running.len());
            for (mut text, mut logits) in running.into_iter().zip(logits) {
                let read = *text.read.get_or_insert_with(|| (text.begun.elapsed(), Instant::now()));
                match text.writing.next((tokenizer, ends), &mut logits, &mut None, &mut |_| true)? {
                    Next::Read(token) => {
                        text.tokens = vec![token];
                        still.push(text);
                    }
                    Next::Stop(stop) => {
                        texts.end(text.text);
                        let made = text.writing.finish(tokenizer, stop, read, texts.cache_bytes(), &mut |_| true)?;
                        if let Some(place) = done.get_mut(text.prompt) {
                            *place = Some(made);
                        }
                    }
                }
            }
            running = still;
        }
        let lost = || Error::Internal("a text was never finished".into());
        done.into_iter().map(|made| made.ok_or_else(lost)).collect()
    }
}
