//! Beam search: the likeliest texts, of several that are followed at once.
//!
//! Invariant: the search is that of transformers' `generate`: finished texts are compared by the sum of their tokens' log-probabilities
//! over a power of their length (Wu et al. 2016, section 7, as it is usually implemented), and a text that ends counts only where it is
//! among the best `beams` continuations of its step.

use super::{Constraint, LmError, Programs, Sampler, Sampling, Session};
use crate::Error;
use std::collections::BTreeSet;

/// When a search ends, of which as many texts as there are beams have finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ending {
    /// When the best unfinished text, were it finished now, would be worse than all of them.
    #[default]
    Unlikely,
    /// At once.
    Full,
    /// When no unfinished text can become better than the worst of them, as long as it may become.
    Exact,
}

/// How to search.
#[derive(Clone, Debug)]
pub struct BeamSearch {
    /// Texts that are followed at once.
    pub beams: usize,
    /// The power of the length by which log-probabilities are divided: more than 0 favours long texts.
    pub length_penalty: f64,
    /// When to end.
    pub ending: Ending,
    /// Most tokens of a text.
    pub max_tokens: usize,
    /// What changes the log-probabilities; nothing is drawn.
    pub sampling: Sampling,
    /// What texts must follow.
    pub constraint: Option<Constraint>,
}

/// A text that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// The sum of their log-probabilities over the power of their number.
    pub score: f64,
    /// Whether a token ended it; else there was no room for more.
    pub ended: bool,
}

/// A text that is followed.
struct Beam {
    session: Session,
    sampler: Sampler,
    tokens: Vec<u32>,
    /// The sum of its log-probabilities.
    sum: f64,
}

/// A continuation of a text.
#[derive(Clone, Copy)]
struct Next {
    beam: usize,
    token: u32,
    sum: f64,
}

impl BeamSearch {
    /// The best texts that follow `prompt`, at most `beams`, the best one first. The session's text becomes the prompt; `ends` are the
    /// tokens that end a text.
    ///
    /// # Errors
    /// There is no beam, the prompt has no token or does not fit, no token is possible, or a run fails.
    pub fn run(
        &self,
        programs: &mut Programs,
        mut session: Session,
        prompt: &[u32],
        ends: &BTreeSet<u32>,
    ) -> Result<Vec<Hypothesis>, Error> {
        session.continue_with(programs, prompt)?;
        let most = self.max_tokens.min(programs.capacity().saturating_sub(prompt.len()).saturating_add(1));
        let sampler = Sampler::new(self.sampling.clone(), prompt).constrained(self.constraint.as_ref());
        let mut running = vec![Beam { session, sampler, tokens: Vec::new(), sum: 0.0 }];
        let mut finished: Vec<Hypothesis> = Vec::new();
        if self.beams == 0 {
            return Err(Error::Usage("a search needs at least one beam".into()));
        }
        let kept = (1 + ends.len()).max(2).saturating_mul(self.beams);
        let worth = |sum: f64, length: usize| sum / (length as f64).powf(self.length_penalty);
        for length in 1..=most {
            let next = self.best(&mut running, kept)?;
            let over = |n: &Next| length == most || ends.contains(&n.token);
            for done in next.iter().take(self.beams).filter(|n| over(n)) {
                let mut tokens = running.get(done.beam).map(|b| b.tokens.clone()).unwrap_or_default();
                tokens.push(done.token);
                let ended = ends.contains(&done.token);
                finished.push(Hypothesis { tokens, score: worth(done.sum, length), ended });
            }
            finished.sort_by(|a, b| b.score.total_cmp(&a.score));
            finished.truncate(self.beams);
            let going: Vec<Next> = next.iter().filter(|n| !over(n)).take(self.beams).copied().collect();
            let Some(first) = going.first() else { break };
            if finished.len() == self.beams {
                let far = match self.ending {
                    Ending::Full => break,
                    Ending::Exact if self.length_penalty > 0.0 => most,
                    Ending::Exact | Ending::Unlikely => length,
                };
                if finished.last().is_some_and(|worst| worth(first.sum, far) <= worst.score) {
                    break;
                }
            }
            running = follow(programs, running, &going)?;
        }
        Ok(finished)
    }

    /// The best continuations of all beams.
    fn best(&self, running: &mut [Beam], kept: usize) -> Result<Vec<Next>, Error> {
        let mut all: Vec<Next> = Vec::new();
        for (beam, each) in running.iter_mut().enumerate() {
            let mut logs = log_softmax(each.session.logits_mut());
            each.sampler.adjust(&mut logs);
            let next = (0u32..).zip(&logs).filter(|(_, log)| **log > f32::NEG_INFINITY);
            all.extend(next.map(|(token, log)| Next { beam, token, sum: each.sum + f64::from(*log) }));
            // Among equals, the one of the better beam and the lower token comes first.
            all.sort_by(|a, b| b.sum.total_cmp(&a.sum).then(a.beam.cmp(&b.beam)).then(a.token.cmp(&b.token)));
            all.truncate(kept);
        }
        if all.is_empty() {
            return Err(LmError::NoToken.into());
        }
        Ok(all)
    }
}

/// The beams of the chosen continuations: the last one of each beam takes its session, the others get copies.
fn follow(programs: &mut Programs, running: Vec<Beam>, going: &[Next]) -> Result<Vec<Beam>, Error> {
    let mut uses = vec![0usize; running.len()];
    going.iter().for_each(|n| uses[n.beam] += 1);
    let mut running: Vec<Option<Beam>> = running.into_iter().map(Some).collect();
    let lost = || Error::Internal("a beam was used up".into());
    let mut beams = Vec::with_capacity(going.len());
    for next in going {
        uses[next.beam] -= 1;
        let mut beam = if uses[next.beam] == 0 {
            running[next.beam].take().ok_or_else(lost)?
        } else {
            let from = running[next.beam].as_ref().ok_or_else(lost)?;
            let session = from.session.fork(programs)?;
            Beam { session, sampler: from.sampler.clone(), tokens: from.tokens.clone(), sum: from.sum }
        };
        beam.sampler.accept(next.token);
        beam.tokens.push(next.token);
        beam.sum = next.sum;
        beam.session.step(programs, next.token)?;
        beams.push(beam);
    }
    Ok(beams)
}

/// The logarithms of a softmax.
fn log_softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    logits.iter().map(|&l| (f64::from(l - most) - sum.ln()) as f32).collect()
}
