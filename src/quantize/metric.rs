//! How much worse a model became.
//!
//! Invariant: a drop is 0 for an unchanged model and grows with the harm; its confidence interval is that of a mean over rows (or
//! tokens) by the normal approximation.

use super::budget::Measured;
use super::onnx::Sample;
use crate::Error;
use crate::lm::{Scored, log_softmax};
use kiln_ir::Tensor;

/// What is measured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Mean cosine between outputs before and after, row by row; the drop is 1 less it.
    Cosine,
    /// Share of rows whose greatest output is the right class where labels are given, else the same as before; the drop is the
    /// difference of shares.
    Top1,
    /// Mean square of the difference of outputs over their mean square.
    MeanSquare,
    /// Perplexity of a language model (or, of other models, of the labels by the first output); the drop is the part by which it grew.
    Perplexity,
    /// A number that a command prints for the file of a model, greater for better ones; the drop is the difference.
    Command(String),
}

impl Metric {
    /// The metric of a word of the command line; anything else is a command.
    pub fn from_word(word: &str) -> Metric {
        match word {
            "cosine" => Metric::Cosine,
            "top1" => Metric::Top1,
            "mse" => Metric::MeanSquare,
            "perplexity" => Metric::Perplexity,
            command => Metric::Command(command.into()),
        }
    }

    /// The word.
    pub fn name(&self) -> &str {
        match self {
            Metric::Cosine => "cosine",
            Metric::Top1 => "top1",
            Metric::MeanSquare => "mse",
            Metric::Perplexity => "perplexity",
            Metric::Command(command) => command,
        }
    }
}

/// Mean, and half the width of its 95 % confidence interval.
fn mean(values: &[f64]) -> (f64, Option<f64>) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let spread = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0).max(1.0);
    (mean, (values.len() > 1).then(|| 1.96 * (spread / n).sqrt()))
}

/// The float outputs of a run as rows.
fn rows(outputs: &[Tensor]) -> Result<Vec<Vec<f32>>, Error> {
    let mut all = Vec::new();
    for tensor in outputs.iter().filter(|t| t.dtype().is_float()) {
        let values = tensor.to_f32().or_else(|| Some(tensor.to_f64()?.into_iter().map(|v| v as f32).collect()));
        let values = values.ok_or_else(|| Error::Internal("an output is no number".into()))?;
        let count = if tensor.shape().len() > 1 { tensor.shape()[0] } else { 1 };
        let size = values.len() / count.max(1);
        all.extend(values.chunks(size.max(1)).map(<[f32]>::to_vec));
    }
    Ok(all)
}

/// The first output as rows: along its first axis, or along all but its last where that gives as many as there are labels.
fn first_rows(outputs: &[Tensor], labels: Option<usize>) -> Result<Vec<Vec<f32>>, Error> {
    let mut found = rows(outputs.get(..1).unwrap_or_default())?;
    let last = outputs.first().and_then(|t| t.shape().last().copied()).unwrap_or(1).max(1);
    let elements: usize = found.iter().map(Vec::len).sum();
    if labels.is_some_and(|n| n != found.len() && n * last == elements) {
        found = found.concat().chunks(last).map(<[f32]>::to_vec).collect();
    }
    Ok(found)
}

/// How likely the first output finds the labels, by its rows; negative labels are not known.
fn likelihoods(outputs: &[Vec<Tensor>], samples: &[Sample]) -> Result<Scored, Error> {
    let mut scored = Scored::default();
    for (outputs, sample) in outputs.iter().zip(samples) {
        let missing = || Error::Usage("perplexity is of a language model, or of data with an array `labels`".into());
        let labels = sample.labels.as_ref().ok_or_else(missing)?;
        let rows = first_rows(outputs, Some(labels.len()))?;
        if rows.len() != labels.len() {
            let message = format!("there are {} labels for {} rows of the first output", labels.len(), rows.len());
            return Err(Error::data("the held-back data", message));
        }
        for (row, &label) in rows.iter().zip(labels).filter(|(_, label)| **label >= 0) {
            let at = usize::try_from(label).ok().filter(|at| *at < row.len());
            let at = at.ok_or_else(|| Error::data("the held-back data", format!("there is no class {label}")))?;
            scored.log_probabilities.push(log_softmax(row, at).0);
        }
    }
    match scored.log_probabilities.is_empty() {
        true => Err(Error::data("the held-back data", "there is no label in it")),
        false => Ok(scored),
    }
}

pub(super) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    // What is not a number stays so: no budget allows it.
    if lengths == 0.0 { f64::from(u8::from(a == b)) } else { dot(a, b) / lengths }
}

/// Compares the outputs of the samples before and after.
///
/// # Errors
/// [`Error::Data`] where labels do not fit the outputs, [`Error::Usage`] for a metric that does not compare outputs.
pub fn compare(
    metric: &Metric,
    before: &[Vec<Tensor>],
    after: &[Vec<Tensor>],
    samples: &[Sample],
) -> Result<Measured, Error> {
    if *metric == Metric::Perplexity {
        let both = (likelihoods(before, samples)?, likelihoods(after, samples)?);
        return Ok(perplexities(&both.0, &both.1));
    }
    let (mut scores, mut drops) = (Vec::new(), Vec::new());
    for ((before, after), sample) in before.iter().zip(after).zip(samples) {
        match metric {
            Metric::Cosine => {
                for (a, b) in rows(before)?.iter().zip(&rows(after)?) {
                    scores.push(cosine(a, b));
                    drops.push(1.0 - cosine(a, b));
                }
            }
            Metric::MeanSquare => {
                for (a, b) in rows(before)?.iter().zip(&rows(after)?) {
                    let square = a.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
                    let off = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
                    let part = if square > 0.0 { off / square } else { off };
                    scores.push(part);
                    drops.push(part);
                }
            }
            Metric::Top1 => {
                let count = sample.labels.as_ref().map(Vec::len);
                let classes = |outputs: &[Tensor]| -> Result<Vec<usize>, Error> {
                    let found = first_rows(outputs, count)?;
                    Ok(found.iter().map(|r| greatest(r)).collect())
                };
                let (old, new) = (classes(before)?, classes(after)?);
                let labels = sample.labels.as_ref();
                if let Some(labels) = labels.filter(|l| l.len() != old.len()) {
                    let message =
                        format!("there are {} labels for {} rows of the first output", labels.len(), old.len());
                    return Err(Error::data("the held-back data", message));
                }
                for (n, (old, new)) in old.iter().zip(&new).enumerate() {
                    if labels.and_then(|l| l.get(n)).is_some_and(|&l| l < 0) {
                        continue;
                    }
                    let right = labels.and_then(|l| l.get(n)).and_then(|&l| usize::try_from(l).ok()).unwrap_or(*old);
                    let hit = |class: usize| f64::from(u8::from(class == right));
                    scores.push(hit(*new));
                    drops.push(hit(*old) - hit(*new));
                }
            }
            Metric::Perplexity | Metric::Command(_) => {
                return Err(Error::Usage(format!("the metric {} does not compare outputs", metric.name())));
            }
        }
    }
    if drops.is_empty() {
        return Err(Error::data("the held-back data", "the model has no float outputs to compare"));
    }
    let (drop, half_interval) = mean(&drops);
    Ok(Measured { value: mean(&scores).0, drop: if drop.is_nan() { f64::INFINITY } else { drop }, half_interval })
}

fn greatest(row: &[f32]) -> usize {
    let best = row.iter().enumerate().max_by(|(i, a), (j, b)| a.total_cmp(b).then(j.cmp(i)));
    best.map_or(0, |(at, _)| at)
}

/// Mean cosine of rows, as [`compare`] has it.
pub fn cosines(before: &[Vec<f32>], after: &[Vec<f32>]) -> Measured {
    let all: Vec<f64> = before.iter().zip(after).map(|(a, b)| cosine(a, b)).collect();
    let (value, half_interval) = mean(&all);
    Measured { value, drop: 1.0 - value, half_interval }
}

/// The growth of perplexity between two scores of the same tokens.
pub fn perplexities(before: &Scored, after: &Scored) -> Measured {
    let pairs = before.log_probabilities.iter().zip(&after.log_probabilities);
    let (growth, half) = mean(&pairs.map(|(b, a)| b - a).collect::<Vec<_>>());
    let value = after.mean_loss().0.exp();
    let growth = if growth.is_nan() { f64::INFINITY } else { growth };
    Measured { value, drop: growth.exp() - 1.0, half_interval: half.map(|h| growth.exp() * h) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_are_zero_for_the_same_and_grow_with_harm() {
        let of = |values: &[f32]| vec![vec![Tensor::from_f32(&[2, 3], values).unwrap()]];
        let sample = |labels| [Sample { inputs: vec![], labels }];
        let (a, b) = (of(&[1.0, 2.0, 3.0, 3.0, 2.0, 1.0]), of(&[3.0, 2.0, 1.0, 3.0, 2.0, 1.0]));
        for metric in [Metric::Cosine, Metric::Top1, Metric::MeanSquare] {
            let same = compare(&metric, &a, &a, &sample(None)).unwrap();
            assert!(same.drop.abs() < 1e-12, "{metric:?}: {same:?}");
            assert!(compare(&metric, &a, &b, &sample(None)).unwrap().drop > 0.01, "{metric:?}");
        }
        // The second model is right where the first was not.
        let labelled = compare(&Metric::Top1, &a, &b, &sample(Some(vec![0, 0]))).unwrap();
        assert_eq!((labelled.value, labelled.drop), (1.0, -0.5));
        let error = compare(&Metric::Top1, &a, &b, &sample(Some(vec![0]))).unwrap_err().to_string();
        assert!(error.contains("1 labels for 2 rows"), "{error}");
        let likelier = compare(&Metric::Perplexity, &a, &b, &sample(Some(vec![0, -1]))).unwrap();
        assert!((likelier.drop - ((-2f64).exp() - 1.0)).abs() < 1e-6, "{likelier:?}");
        assert!(compare(&Metric::Perplexity, &a, &b, &sample(None)).is_err());
        let nan = compare(&Metric::Cosine, &a, &of(&[f32::NAN; 6]), &sample(None)).unwrap();
        assert_eq!(nan.drop, f64::INFINITY);
    }
}
