//! What listings do with a language model's logits, and should not.
//!
//! ```python
//! probs = torch.softmax(logits, dim=-1) / temperature       # (1)
//! token = torch.argmax(probs)
//! perplexity = torch.exp(torch.log(logits[targets]).mean()) # (2)
//! ```
//!
//! (1) Dividing all probabilities by the same number does not change which is the greatest: whatever the temperature, the text is the same.
//! Temperature divides the *logits*, before the softmax, and acts where a token is *drawn*; `argmax` is temperature 0.
//!
//! (2) Logits are no probabilities: they may be negative, whose logarithm does not exist, and do not add up to 1. Perplexity is the
//! exponential of the mean of *minus* the logarithms of the targets' probabilities after a softmax: at best 1, and the vocabulary's size for
//! a model that knows nothing.

use kiln::lm::{Sampler, Sampling, Scored};

/// The logarithm of the softmax at a place.
pub fn log_probability(logits: &[f32], target: usize) -> f64 {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    f64::from(logits[target] - most) - sum.ln()
}

/// Perplexity of targets, for rows of logits.
pub fn perplexity(rows: &[Vec<f32>], targets: &[usize]) -> f64 {
    let logs = rows.iter().zip(targets).map(|(row, &target)| log_probability(row, target)).collect();
    Scored { log_probabilities: logs, greedy: false }.mean_loss().0.exp()
}

/// How often each of the tokens is drawn in 1000 draws.
pub fn drawn(logits: &[f32], temperature: f64) -> Vec<usize> {
    let mut sampler = Sampler::new(Sampling { temperature, ..Sampling::default() }, &[]);
    let mut counts = vec![0; logits.len()];
    for _ in 0..1000 {
        if let Some(token) = sampler.next(&mut logits.to_vec()) {
            counts[token as usize] += 1;
        }
    }
    counts
}

/// Says so with numbers.
#[allow(dead_code)]
pub fn show() {
    let logits = [2.0, 1.0, 0.0, -1.0];
    for temperature in [0.0, 0.5, 1.0, 5.0] {
        println!("temperature {temperature}: of 1000 tokens {:?}", drawn(&logits, temperature));
    }
    let rows = [logits.to_vec(), vec![0.0; 4]];
    println!(
        "perplexity: {:.4} where the model is right and knows, {} where it knows nothing",
        perplexity(&rows[..1], &[0]),
        perplexity(&rows[1..], &[3])
    );
}
