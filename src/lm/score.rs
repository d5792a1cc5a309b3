//! How likely a model finds texts.
//!
//! Invariant: logarithms of probabilities are computed in f64 from the model's logits, softmax first.

use super::{LmError, PackedPrograms, Programs, Reading, Session, Texts};
use crate::Error;

/// The probabilities of a text's tokens, each given those before it.
#[derive(Clone, Debug, Default)]
pub struct Scored {
    /// Natural logarithm of the probability of each token that was predicted.
    pub log_probabilities: Vec<f64>,
    /// Whether each was the most likely one.
    pub greedy: bool,
}

impl Scored {
    /// Their sum.
    pub fn total(&self) -> f64 {
        self.log_probabilities.iter().sum()
    }

    /// Mean of the negative logarithms, with half the width of its 95 % confidence interval by the normal approximation.
    pub fn mean_loss(&self) -> (f64, f64) {
        let n = self.log_probabilities.len() as f64;
        let mean = -self.total() / n;
        let spread = self.log_probabilities.iter().map(|l| (-l - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
        (mean, 1.96 * (spread / n).sqrt())
    }
}

/// The logarithm of the softmax at a place, and whether it is the greatest.
pub(crate) fn log_softmax(logits: &[f32], at: usize) -> (f64, bool) {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - f64::from(most)).exp()).sum();
    let logit = logits.get(at).copied().unwrap_or(f32::NEG_INFINITY);
    (f64::from(logit) - f64::from(most) - sum.ln(), logit >= most)
}

/// Tokens that are read at once: the logits of each are kept for that time.
pub(super) const PIECE: usize = 128;

/// Adds the probabilities of `tokens[from..]` given those before, for a session whose text is to be `tokens`. The programs give
/// all logits.
///
/// # Errors
/// A token has nothing before it, the tokens do not fit, or a run fails.
pub fn score(
    programs: &mut Programs,
    session: &mut Session,
    tokens: &[u32],
    from: usize,
    scored: &mut Scored,
) -> Result<(), Error> {
    if from == 0 || from > tokens.len() {
        return Err(LmError::Empty.into());
    }
    let vocabulary = programs.vocabulary();
    // What the session has of the text already is kept; the token before the first that is predicted is read for its logits.
    let same = session.tokens().iter().zip(tokens).take_while(|(a, b)| a == b).count();
    let kept = same.min(from - 1);
    session.rewind(kept);
    if scored.log_probabilities.is_empty() {
        scored.greedy = true;
    }
    let mut at = kept;
    for piece in tokens.get(kept..).unwrap_or_default().chunks(PIECE) {
        let logits = session.prefill(programs, piece)?;
        for (n, row) in logits.chunks(vocabulary).enumerate() {
            if let Some(&next) = tokens.get(at + n + 1).filter(|_| at + n + 1 >= from) {
                let (log, best) = log_softmax(row, next as usize);
                scored.log_probabilities.push(log);
                scored.greedy &= best;
            }
        }
        at += piece.len();
    }
    Ok(())
}

/// Tokens of which logits are kept at once, where several texts are scored together.
const TOGETHER: usize = 256;

/// The probabilities of each text's tokens from a place on, given those before: texts with a common beginning, which is read once. No
/// other text is there.
///
/// # Errors
/// A text has nothing before its place, the texts do not fit, or a run fails.
pub fn score_together(
    programs: &mut PackedPrograms,
    texts: &mut Texts,
    given: &[(usize, &[u32])],
) -> Result<Vec<Scored>, Error> {
    if given.iter().any(|(from, tokens)| *from == 0 || *from >= tokens.len()) {
        return Err(LmError::Empty.into());
    }
    let first = given.first().map(|(_, tokens)| *tokens).unwrap_or_default();
    // The token before the first that is predicted is read with its text, for its logits.
    let same =
        |(from, tokens): &(usize, &[u32])| first.iter().zip(*tokens).take_while(|(a, b)| a == b).count().min(from - 1);
    let common = given.iter().map(same).min().unwrap_or(0);
    texts.begin_all_with(programs, first.get(..common).unwrap_or_default())?;
    let (vocabulary, mut all) = (programs.vocabulary(), Vec::with_capacity(given.len()));
    let mut rest = given;
    while !rest.is_empty() {
        let mut wanted = 0;
        let fits = |(from, tokens): &&(usize, &[u32])| {
            wanted += tokens.len() - from;
            wanted <= TOGETHER
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        rest = later;
        let ids: Vec<_> = now.iter().map(|_| texts.begin()).collect();
        let reading = |(&text, (from, tokens)): (&_, &(usize, &'_ [u32]))| {
            // What follows the last token is not asked for.
            let tokens = tokens.get(common..tokens.len() - 1).unwrap_or_default();
            (text, tokens.to_vec(), from - 1 - common)
        };
        let read: Vec<_> = ids.iter().zip(now).map(reading).collect();
        let readings: Vec<Reading<'_>> =
            read.iter().map(|(text, tokens, from)| Reading { text: *text, tokens, logits_from: *from }).collect();
        let logits = texts.read(programs, &readings);
        ids.iter().for_each(|&text| texts.end(text));
        for (logits, (from, tokens)) in logits?.iter().zip(now) {
            let mut scored = Scored { log_probabilities: Vec::new(), greedy: true };
            for (row, &next) in logits.chunks(vocabulary).zip(tokens.get(*from..).unwrap_or_default()) {
                let (log, best) = log_softmax(row, next as usize);
                scored.log_probabilities.push(log);
                scored.greedy &= best;
            }
            all.push(scored);
        }
    }
    Ok(all)
}

/// Windows of a text: for each its tokens, and the first of them that is predicted. Each token but the first is predicted
/// once, with up to `window - 1` tokens before it; windows begin `stride` apart.
pub fn windows(tokens: usize, window: usize, stride: usize) -> Vec<(std::ops::Range<usize>, usize)> {
    let mut all = Vec::new();
    let (mut start, mut done) = (0usize, 1usize);
    while done < tokens && window > 1 && stride > 0 {
        let end = start.saturating_add(window).min(tokens);
        all.push((start..end, done.max(start + 1) - start));
        done = end;
        start += stride;
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_predict_each_token_once() {
        assert_eq!(windows(10, 4, 3), [(0..4, 1), (3..7, 1), (6..10, 1)]);
        assert_eq!(windows(9, 4, 2), [(0..4, 1), (2..6, 2), (4..8, 2), (6..9, 2)]);
        assert_eq!(windows(3, 8, 4), [(0..3, 1)]);
        assert_eq!(windows(1, 8, 4), []);
        assert_eq!(windows(5, 1, 1), []);
    }

    #[test]
    fn losses_are_those_of_a_softmax() {
        let (log, best) = log_softmax(&[0.0, 0.0, 2f32.ln()], 2);
        assert!((log - 0.5f64.ln()).abs() < 1e-7 && best);
        let scored = Scored { log_probabilities: vec![-1.0, -3.0], greedy: false };
        let (mean, half) = scored.mean_loss();
        assert!((mean - 2.0).abs() < 1e-12 && (half - 1.96).abs() < 1e-12);
    }
}
