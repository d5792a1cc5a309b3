//! Text that continues a prompt.
//!
//! Invariant: what is handed out piece by piece is, joined, the text of the [`Generation`]; no piece ends inside a character
//! or holds a part of a stop string.

use super::{
    Constraint, LanguageModel, LmError, Lookup, Programs, Sampler, Sampling, SequenceModel, SequencePrograms, Session,
    TextStream, Tokenizer,
};
use crate::Error;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// When and how to go on.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Most tokens; without, until the capacity is reached.
    pub max_tokens: Option<usize>,
    /// Whether to go on after a token that ends a text.
    pub ignore_end: bool,
    /// Texts before which to stop.
    pub stops: Vec<String>,
    /// What the text must follow; where nothing can follow any more, it ends.
    pub constraint: Option<Constraint>,
    /// Most tokens that are guessed ahead, from what followed the last tokens where they stood before (prompt lookup: Saxena 2023), and
    /// read with the token before them; 0 guesses none. The text is the same. Only for programs that give all logits.
    pub lookup: usize,
}

/// Why a generation stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The model ended its text.
    End,
    /// As many tokens as were asked for.
    Length,
    /// A stop string.
    Text(String),
    /// There are no more positions.
    Capacity,
    /// The receiver of the text wanted no more.
    Receiver,
}

/// What was generated.
#[derive(Clone, Debug)]
pub struct Generation {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens that were chosen, with the one that ended the text.
    pub tokens: Vec<u32>,
    /// Their text, without a stop string.
    pub text: String,
    /// Why it ended.
    pub stop: Stop,
    /// Time to read the prompt.
    pub prefill: Duration,
    /// Time of all that followed.
    pub decode: Duration,
    /// Bytes of the session's cache.
    pub cache_bytes: u64,
}

impl Generation {
    /// Tokens that were read after the prompt, a second.
    pub fn tokens_per_second(&self) -> f64 {
        // The first token is chosen from the prompt's logits, the last one is never read.
        let steps = self.tokens.len().saturating_sub(1);
        if self.decode.is_zero() { 0.0 } else { steps as f64 / self.decode.as_secs_f64() }
    }
}

/// Changes logits before a token is chosen: gets the tokens that were generated so far.
pub type Hook<'a> = dyn FnMut(&[u32], &mut Vec<f32>) + 'a;

/// Generates text with a model.
pub struct Generator<'a> {
    tokenizer: &'a Tokenizer,
    ends: &'a BTreeSet<u32>,
    programs: &'a mut Programs,
    hook: Option<&'a mut Hook<'a>>,
}

impl<'a> Generator<'a> {
    /// A generator.
    pub fn new(model: &'a LanguageModel, programs: &'a mut Programs) -> Generator<'a> {
        Generator { tokenizer: model.tokenizer(), ends: model.ends(), programs, hook: None }
    }

    /// A generator of an encoder-decoder's targets; their prompt is [`SequenceModel::begin`].
    pub fn of_targets(model: &'a SequenceModel, programs: &'a mut SequencePrograms) -> Generator<'a> {
        Generator { tokenizer: model.tokenizer(), ends: model.ends(), programs: programs.decoder(), hook: None }
    }

    /// With a function that changes logits before each choice.
    #[must_use]
    pub fn with_hook(mut self, hook: &'a mut Hook<'a>) -> Generator<'a> {
        self.hook = Some(hook);
        self
    }

    /// Makes the session's text `prompt`, and goes on. `receive` gets the text in pieces and says whether it wants more.
    ///
    /// # Errors
    /// The prompt has no token or does not fit, or a run fails.
    pub fn run(
        &mut self,
        session: &mut Session,
        prompt: &[u32],
        settings: &Settings,
        receive: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, Error> {
        let start = Instant::now();
        if settings.lookup > 0 && !self.programs.gives_all_logits() {
            return Err(Error::Internal(
                "guesses cannot be checked by programs that give the last token's logits alone".into(),
            ));
        }
        session.read_prompt(self.programs, prompt)?;
        let prefill = start.elapsed();
        let start = Instant::now();
        let mut lookup = Lookup::new(prompt, settings.lookup);
        let mut writing = Writing::new(self.tokenizer, prompt, settings, self.programs.capacity())?;
        let stop = loop {
            let next = writing.next((self.tokenizer, self.ends), session.logits_mut(), &mut self.hook, receive)?;
            match next {
                Next::Stop(stop) => break stop,
                Next::Read(token) => {
                    let left = writing.left();
                    if left > 0 {
                        lookup.step(self.programs, session, token, left)?;
                    }
                }
            }
        };
        // What was guessed and not confirmed is no part of the text.
        session.rewind(prompt.len() + lookup.confirmed());
        writing.finish(self.tokenizer, stop, (prefill, start), session.cache_bytes(), receive)
    }
}

/// What comes after a token.
pub(super) enum Next {
    /// It is to be read.
    Read(u32),
    /// Nothing.
    Stop(Stop),
}

/// A text that is being written.
pub(super) struct Writing<'a> {
    settings: &'a Settings,
    sampler: Sampler,
    prompt: usize,
    /// Positions that there are for prompt and text.
    capacity: usize,
    tokens: Vec<u32>,
    text: Held<'a>,
    stream: TextStream,
}

impl<'a> Writing<'a> {
    /// A text after a prompt, with so many positions for both.
    ///
    /// # Errors
    /// The prompt's tokens are none of the tokenizer's.
    pub(super) fn new(
        tokenizer: &Tokenizer,
        prompt: &[u32],
        settings: &'a Settings,
        capacity: usize,
    ) -> Result<Writing<'a>, Error> {
        let sampler = Sampler::new(settings.sampling.clone(), prompt).constrained(settings.constraint.as_ref());
        let (text, stream) = (Held::new(&settings.stops), TextStream::after(tokenizer, prompt)?);
        Ok(Writing { settings, sampler, prompt: prompt.len(), capacity, tokens: Vec::new(), text, stream })
    }

    /// Positions that are left for tokens to read. The last token is not read yet.
    fn room(&self) -> usize {
        (self.capacity + 1).saturating_sub(self.prompt + self.tokens.len())
    }

    /// Tokens that may still be read.
    fn left(&self) -> usize {
        let most = self.settings.max_tokens;
        most.map_or(self.room(), |most| self.room().min(most.saturating_sub(self.tokens.len())))
    }

    /// Chooses a token from the logits after the last one.
    ///
    /// # Errors
    /// No token is possible.
    pub(super) fn next(
        &mut self,
        (tokenizer, ends): (&Tokenizer, &BTreeSet<u32>),
        logits: &mut Vec<f32>,
        hook: &mut Option<&mut Hook<'_>>,
        receive: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Next, Error> {
        if self.sampler.is_complete() {
            return Ok(Next::Stop(Stop::End));
        }
        if self.settings.max_tokens.is_some_and(|most| self.tokens.len() >= most) {
            return Ok(Next::Stop(Stop::Length));
        }
        if let Some(hook) = hook {
            hook(&self.tokens, logits);
        }
        let token = self.sampler.next(logits).ok_or(Error::Lm(LmError::NoToken))?;
        self.tokens.push(token);
        if ends.contains(&token) && !self.settings.ignore_end {
            return Ok(Next::Stop(Stop::End));
        }
        if let Some(stop) = self.text.push(&self.stream.push(tokenizer, token)?) {
            return Ok(Next::Stop(Stop::Text(stop)));
        }
        if !self.text.give(receive) {
            return Ok(Next::Stop(Stop::Receiver));
        }
        Ok(if self.room() == 0 { Next::Stop(Stop::Capacity) } else { Next::Read(token) })
    }

    /// What was written, with the time of the prompt and the moment after it.
    ///
    /// # Errors
    /// The tokens are none of the tokenizer's.
    pub(super) fn finish(
        mut self,
        tokenizer: &Tokenizer,
        stop: Stop,
        (prefill, start): (Duration, Instant),
        cache_bytes: u64,
        receive: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Generation, Error> {
        if !matches!(stop, Stop::Text(_) | Stop::Receiver) {
            self.text.push(&self.stream.finish(tokenizer)?);
            self.text.finish(receive);
        }
        let (prompt_tokens, tokens, text) = (self.prompt, self.tokens, self.text.given);
        Ok(Generation { prompt_tokens, tokens, text, stop, prefill, decode: start.elapsed(), cache_bytes })
    }
}

/// Text of which the end is held back while it may be the beginning of a stop string.
struct Held<'a> {
    stops: &'a [String],
    given: String,
    held: String,
}

impl<'a> Held<'a> {
    fn new(stops: &'a [String]) -> Held<'a> {
        Held { stops, given: String::new(), held: String::new() }
    }

    /// Adds text; the stop string that is complete, the first one by place. What precedes it is left to give.
    fn push(&mut self, text: &str) -> Option<String> {
        self.held.push_str(text);
        let places = self.stops.iter().filter(|s| !s.is_empty()).filter_map(|s| Some((self.held.find(s.as_str())?, s)));
        let (at, stop) = places.min_by_key(|(at, _)| *at)?;
        self.held.truncate(at);
        Some(stop.clone())
    }

    /// Hands out what cannot belong to a stop string any more.
    fn give(&mut self, receive: &mut dyn FnMut(&str) -> bool) -> bool {
        let begins = |from: &usize| {
            let rest = self.held.get(*from..).unwrap_or_default();
            self.stops.iter().any(|s| s.starts_with(rest))
        };
        let mut starts = self.held.char_indices().map(|(at, _)| at);
        let safe = starts.find(begins).unwrap_or(self.held.len());
        if safe == 0 {
            return true;
        }
        let rest = self.held.split_off(safe);
        let now = std::mem::replace(&mut self.held, rest);
        self.given.push_str(&now);
        receive(&now)
    }

    /// Hands out the rest.
    fn finish(&mut self, receive: &mut dyn FnMut(&str) -> bool) {
        if !self.held.is_empty() {
            let rest = std::mem::take(&mut self.held);
            self.given.push_str(&rest);
            receive(&rest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stops: &[&str], text: &[&str]) -> (Vec<String>, Option<String>) {
        let stops: Vec<String> = stops.iter().map(ToString::to_string).collect();
        let mut held = Held::new(&stops);
        let mut given = Vec::new();
        for piece in text {
            let stop = held.push(piece);
            let mut receive = |s: &str| {
                given.push(s.to_string());
                true
            };
            match stop {
                Some(_) => {
                    held.finish(&mut receive);
                    return (given, stop);
                }
                None => assert!(held.give(&mut receive)),
            }
        }
        held.finish(&mut |s| {
            given.push(s.to_string());
            true
        });
        (given, None)
    }

    #[test]
    fn stop_strings_are_never_shown_in_part() {
        let owned = |v: &[&str]| v.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(pieces(&[], &["a", "b"]), (owned(&["a", "b"]), None));
        assert_eq!(pieces(&["<end>"], &["a<", "en", "x"]), (owned(&["a", "<enx"]), None));
        assert_eq!(pieces(&["<end>"], &["a<", "end>b"]), (owned(&["a"]), Some("<end>".into())));
        assert_eq!(pieces(&["yz", "xy"], &["wx", "yz"]), (owned(&["w"]), Some("xy".into())));
        assert_eq!(pieces(&["中文"], &["a中", "国"]), (owned(&["a", "中国"]), None));
        assert_eq!(pieces(&["ab"], &["a", "a", "b"]), (owned(&["a"]), Some("ab".into())));
        assert_eq!(pieces(&[""], &["a"]), (owned(&["a"]), None));
    }
}
