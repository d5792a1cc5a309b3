//! Prompt-lookup speculation (Saxena 2023; the check of guesses: Leviathan et al. 2022, for the greedy choice).
//!
//! Invariant: a guess is only ever read ahead: each token is chosen from the logits of exactly the tokens before it, so that the text does
//! not depend on the guesses.

use super::{LmError, Programs, Session};
use crate::Error;
use std::collections::VecDeque;

/// Tokens that must have stood before as they stand now, most and least.
const RUNS: [usize; 2] = [3, 2];

/// Reads a text's tokens one by one, and guesses ahead.
#[derive(Debug)]
pub(super) struct Lookup {
    /// Prompt and text.
    all: Vec<u32>,
    prompt: usize,
    /// Most guesses.
    most: usize,
    /// Guesses that were read, with the logits after each.
    ahead: VecDeque<(u32, Vec<f32>)>,
}

impl Lookup {
    pub(super) fn new(prompt: &[u32], most: usize) -> Lookup {
        Lookup { all: prompt.to_vec(), prompt: prompt.len(), most, ahead: VecDeque::new() }
    }

    /// Tokens of the text that were given to [`Lookup::step`].
    pub(super) fn confirmed(&self) -> usize {
        self.all.len() - self.prompt
    }

    /// Makes the session's logits those after `token`, which follows the text; up to `room` tokens can be read, itself among them.
    pub(super) fn step(
        &mut self,
        programs: &mut Programs,
        session: &mut Session,
        token: u32,
        room: usize,
    ) -> Result<(), Error> {
        let at = self.all.len();
        self.all.push(token);
        if self.ahead.front().is_some_and(|(guess, _)| *guess == token) {
            *session.logits_mut() = self.ahead.pop_front().unwrap_or_default().1;
            return Ok(());
        }
        self.ahead.clear();
        session.rewind(at);
        let guesses = self.guess(room.saturating_sub(1).min(self.most));
        let read: Vec<u32> = std::iter::once(token).chain(guesses.iter().copied()).collect();
        let logits = session.prefill(programs, &read)?;
        let vocabulary = programs.vocabulary();
        if !guesses.is_empty() {
            let rows = logits.chunks(vocabulary).skip(1).map(<[f32]>::to_vec);
            self.ahead = guesses.iter().copied().zip(rows).collect();
            logits.truncate(vocabulary);
        }
        if logits.is_empty() { Err(LmError::Empty.into()) } else { Ok(()) }
    }

    /// What followed the last tokens where they stood last before.
    fn guess(&self, most: usize) -> Vec<u32> {
        let [longest, shortest] = RUNS;
        for length in (shortest..=longest).rev().filter(|_| most > 0) {
            let Some(from) = self.all.len().checked_sub(length) else { continue };
            let last = self.all.get(from..).unwrap_or_default();
            let before = self.all.get(..self.all.len() - 1).unwrap_or_default();
            if let Some(found) = before.windows(length).rposition(|run| run == last) {
                let follows = self.all.get(found + length..).unwrap_or_default();
                return follows.iter().copied().take(most).collect();
            }
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::Lookup;

    #[test]
    fn guesses_are_what_followed_last_time() {
        let guess = |all: &[u32], most| Lookup::new(all, 9).guess(most);
        assert_eq!(guess(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(guess(&[1, 2, 3, 4, 5, 1, 2, 3], 9), [4, 5, 1, 2, 3]);
        // The longer run decides, then the later place.
        assert_eq!(guess(&[7, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3], 1), [4]);
        assert_eq!(guess(&[8, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3], 1), [5]);
        assert_eq!(guess(&[2, 2, 2], 3), [2]);
        assert!(guess(&[1, 2, 3, 1], 3).is_empty() && guess(&[], 3).is_empty() && guess(&[1, 2, 1, 2], 0).is_empty());
    }
}
