//! Choosing the next token.
//!
//! Invariant: the choice depends on the logits, the tokens so far, the settings and the seed alone; among equal logits the
//! lower token wins.

use super::{Constraint, Matcher};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use std::collections::BTreeMap;

/// How tokens are chosen. Applied in this order: bias and bans, penalties, repetitions, a constraint, forced tokens,
/// temperature, top-k, top-p, min-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 always takes the most likely token.
    pub temperature: f64,
    /// Only the so many most likely; 0 keeps all.
    pub top_k: usize,
    /// Only the most likely that together have at least this probability (Holtzman et al. 2019).
    pub top_p: f64,
    /// Only those at least so likely as this part of the most likely one (Nguyen et al. 2024).
    pub min_p: f64,
    /// Logits of tokens that are there already are divided by it (multiplied, if negative; Keskar et al. 2019).
    pub repetition_penalty: f64,
    /// Taken from a token's logit for each time it was generated.
    pub frequency_penalty: f64,
    /// Taken from a token's logit once it was generated.
    pub presence_penalty: f64,
    /// Added to logits by token; minus infinity bans one.
    pub bias: BTreeMap<u32, f64>,
    /// No so many tokens in a row come twice in prompt and text (Paulus et al. 2017); 0 allows it.
    pub no_repeat: usize,
    /// Tokens that must come at a place of the text, by the number of tokens before it.
    pub forced: BTreeMap<usize, u32>,
    /// Of the random numbers.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Sampling {
        Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            bias: BTreeMap::new(),
            no_repeat: 0,
            forced: BTreeMap::new(),
            seed: 0,
        }
    }
}

/// Chooses tokens one after another.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
    /// How often each token is in prompt and text, and in the text alone.
    seen: BTreeMap<u32, (u32, u32)>,
    /// Prompt and text.
    all: Vec<u32>,
    /// Tokens of the prompt.
    prompt: usize,
    /// What the text must follow.
    matcher: Option<Matcher>,
}

impl Sampler {
    /// After a prompt.
    pub fn new(sampling: Sampling, prompt: &[u32]) -> Sampler {
        let mut seen = BTreeMap::<u32, (u32, u32)>::new();
        for &token in prompt {
            seen.entry(token).or_default().0 += 1;
        }
        Sampler {
            random: ChaCha8Rng::seed_from_u64(sampling.seed),
            sampling,
            seen,
            all: prompt.to_vec(),
            prompt: prompt.len(),
            matcher: None,
        }
    }

    /// The same for a text that follows a constraint.
    #[must_use]
    pub fn constrained(self, constraint: Option<&Constraint>) -> Sampler {
        Sampler { matcher: constraint.map(Constraint::begin), ..self }
    }

    /// Whether the text follows a constraint by which it ends here.
    pub fn is_complete(&self) -> bool {
        self.matcher.as_ref().is_some_and(Matcher::is_complete)
    }

    /// The next token for these logits, which are changed; nothing where none is possible.
    pub fn next(&mut self, logits: &mut [f32]) -> Option<u32> {
        self.adjust(logits);
        let token = self.choose(logits)?;
        self.accept(token);
        Some(token)
    }

    /// A token for logits that were adjusted; nothing where none is possible.
    pub fn choose(&mut self, logits: &[f32]) -> Option<u32> {
        if self.sampling.temperature > 0.0 { self.draw(logits) } else { greatest(logits) }
    }

    /// Makes a token the text's next one.
    pub fn accept(&mut self, token: u32) {
        let count = self.seen.entry(token).or_default();
        count.0 = count.0.saturating_add(1);
        count.1 = count.1.saturating_add(1);
        self.all.push(token);
        if let Some(matcher) = &mut self.matcher {
            matcher.accept(token);
        }
    }

    /// Bias, penalties, and what must not or must come next.
    pub fn adjust(&self, logits: &mut [f32]) {
        self.weigh(logits);
        let s = &self.sampling;
        if let Some(before) = s.no_repeat.checked_sub(1).and_then(|n| self.all.len().checked_sub(n)) {
            let last = self.all.get(before..).unwrap_or_default();
            for run in self.all.windows(s.no_repeat) {
                if let Some((&next, first)) = run.split_last()
                    && first == last
                    && let Some(logit) = logits.get_mut(next as usize)
                {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        if let Some(matcher) = &self.matcher {
            matcher.mask(logits);
        }
        if let Some(&token) = s.forced.get(&(self.all.len() - self.prompt)) {
            logits.fill(f32::NEG_INFINITY);
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = 0.0;
            }
        }
    }

    fn weigh(&self, logits: &mut [f32]) {
        let s = &self.sampling;
        for (&token, &bias) in &s.bias {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = (f64::from(*logit) + bias) as f32;
            }
        }
        if s.repetition_penalty == 1.0 && s.frequency_penalty == 0.0 && s.presence_penalty == 0.0 {
            return;
        }
        for (&token, &(_, made)) in &self.seen {
            let Some(logit) = logits.get_mut(token as usize) else { continue };
            let mut value = f64::from(*logit);
            value = if value < 0.0 { value * s.repetition_penalty } else { value / s.repetition_penalty };
            value -= s.frequency_penalty * f64::from(made);
            if made > 0 {
                value -= s.presence_penalty;
            }
            *logit = value as f32;
        }
    }

    fn draw(&mut self, logits: &[f32]) -> Option<u32> {
        let s = &self.sampling;
        let mut candidates: Vec<(u32, f64)> = (0u32..).zip(logits).map(|(t, &l)| (t, f64::from(l))).collect();
        candidates.retain(|(_, l)| *l > f64::NEG_INFINITY);
        candidates.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if s.top_k > 0 {
            candidates.truncate(s.top_k);
        }
        let most = candidates.first()?.1;
        for (_, value) in &mut candidates {
            *value = libm::exp((*value - most) / s.temperature);
        }
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        let (mut sum, mut kept) = (0.0, 0);
        for (_, p) in &candidates {
            if kept > 0 && (sum >= s.top_p * total || *p < s.min_p) {
                break;
            }
            sum += p;
            kept += 1;
        }
        candidates.truncate(kept);
        // 53 bits are what an f64 holds.
        let mut at = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * sum;
        for (token, p) in &candidates {
            at -= p;
            if at < 0.0 {
                return Some(*token);
            }
        }
        candidates.last().map(|(token, _)| *token)
    }
}

/// The token with the greatest logit; the lowest of equal ones. What is no number, or minus infinity, is none.
fn greatest(logits: &[f32]) -> Option<u32> {
    // The greatest first, in lanes that do not wait for one another: a vocabulary is long.
    const LANES: usize = 16;
    let (whole, rest) = logits.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in whole {
        for (most, &logit) in lanes.iter_mut().zip(chunk) {
            *most = if logit > *most { logit } else { *most };
        }
    }
    let more = |most: f32, &logit: &f32| if logit > most { logit } else { most };
    let most = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, more);
    // Its place in steps of as many lanes, too.
    let before = whole.iter().take_while(|chunk| chunk.iter().fold(true, |none, &logit| none & (logit != most)));
    let first = before.count() * LANES;
    let found = logits.iter().skip(first).position(|&logit| logit == most)?;
    (most > f32::NEG_INFINITY).then(|| u32::try_from(first + found).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, &[]);
        (0..200).map(|_| sampler.next(&mut logits.to_vec()).unwrap()).collect()
    }

    #[test]
    fn greedy_takes_the_lowest_of_equal_logits() {
        assert_eq!(pick(Sampling::default(), &[1.0, 3.0, f32::NAN, 3.0, 2.0]), [1; 200]);
        assert_eq!(Sampler::new(Sampling::default(), &[]).next(&mut [f32::NAN]), None);
        assert_eq!(Sampler::new(Sampling::default(), &[]).next(&mut [f32::NEG_INFINITY; 40]), None);
        let mut many: Vec<f32> = (0..53).map(|n| -((n - 20) * (n - 20)) as f32).collect();
        assert_eq!(pick(Sampling::default(), &many), [20; 200]);
        (many[51], many[52]) = (7.0, 7.0);
        assert_eq!(pick(Sampling::default(), &many), [51; 200]);
    }

    #[test]
    fn draws_follow_the_probabilities_and_the_seed() {
        let sampling = |seed| Sampling { temperature: 1.0, seed, ..Sampling::default() };
        let logits = [0.0, 1.0986123, f32::NEG_INFINITY];
        let drawn = pick(sampling(7), &logits);
        assert_eq!(drawn, pick(sampling(7), &logits));
        assert_ne!(drawn, pick(sampling(8), &logits));
        // Three quarters of 200, within four standard deviations.
        let ones = drawn.iter().filter(|&&t| t == 1).count();
        assert!((125..=175).contains(&ones) && !drawn.contains(&2), "{ones}");
    }

    #[test]
    fn cuts_keep_what_they_should() {
        let cut = |sampling: Sampling| {
            let drawn = pick(Sampling { temperature: 1.0, ..sampling }, &[2.0, 4.0, 3.0, 1.0]);
            drawn.into_iter().collect::<std::collections::BTreeSet<_>>().into_iter().collect::<Vec<_>>()
        };
        assert_eq!(cut(Sampling { top_k: 2, ..Sampling::default() }), [1, 2]);
        // The probabilities are 0.64, 0.24, 0.09, 0.03.
        assert_eq!(cut(Sampling { top_p: 0.6, ..Sampling::default() }), [1]);
        assert_eq!(cut(Sampling { top_p: 0.7, ..Sampling::default() }), [1, 2]);
        assert_eq!(cut(Sampling { min_p: 0.3, ..Sampling::default() }), [1, 2]);
        assert_eq!(cut(Sampling { top_p: 0.0, ..Sampling::default() }), [1]);
    }

    #[test]
    fn penalties_and_bias_change_the_choice() {
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() }, &[1]);
        assert_eq!(sampler.next(&mut [1.0, 1.5, 0.9]), Some(0));
        assert_eq!(sampler.next(&mut [1.0, 1.5, 0.9]), Some(2));
        let mut sampler = Sampler::new(Sampling { frequency_penalty: 0.4, ..Sampling::default() }, &[0]);
        let chosen: Vec<_> = (0..4).map(|_| sampler.next(&mut [1.0, 0.5]).unwrap()).collect();
        assert_eq!(chosen, [0, 0, 1, 0]);
        let mut sampler = Sampler::new(Sampling { presence_penalty: 0.4, ..Sampling::default() }, &[0]);
        let chosen: Vec<_> = (0..3).map(|_| sampler.next(&mut [1.0, 0.7]).unwrap()).collect();
        assert_eq!(chosen, [0, 1, 0]);
        let bias = BTreeMap::from([(0, f64::NEG_INFINITY), (2, 1.0)]);
        assert_eq!(Sampler::new(Sampling { bias, ..Sampling::default() }, &[]).next(&mut [9.0, 1.0, 0.5]), Some(2));
    }
}
