//! `kiln quantize`: a model with smaller numbers.
//!
//! Invariant: the output appears complete or not at all, and only when the budget, if there is one, is kept.

mod arguments;
mod checkpoint;
mod onnx;
mod removal;

use super::Talk;
use arguments::{ActivationsWord, Emit};
use clap::ValueEnum;
use kiln::lm::LanguageModel;
use kiln::quantize::budget::{Found, NotMet};
use kiln::quantize::metric::Metric;
use kiln::quantize::{Kept, LayerReport};
use kiln::{Error, data};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

pub use arguments::Args;

/// What a quantization comes to.
struct Outcome {
    /// Bytes that were written.
    bytes: u64,
    layers: Vec<LayerReport>,
    kept: Vec<Kept>,
    /// More for the report.
    details: Value,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let start = Instant::now();
        self.check()?;
        let checkpoint = LanguageModel::is_at(&self.model).then(|| checkpoint::open(self)).transpose()?;
        let checkpoint = checkpoint.map(|opened| removal::without(self, opened, talk)).transpose()?;
        let outcome = match checkpoint {
            Some(opened) if self.keeps_form(&opened.model) => checkpoint::run(self, opened, talk)?,
            Some(opened) => onnx::run(self, Some(opened), talk)?,
            None if self.removal().is_some() => return Err(removal::not_a_checkpoint()),
            None => onnx::run(self, None, talk)?,
        };
        let seconds = start.elapsed().as_secs_f64();
        let mut report = json!({
            "model": self.model.display().to_string(), "output": self.output.display().to_string(),
            "bytes": outcome.bytes, "method": self.options().method.name(),
            "weights": (!self.no_quantize).then(|| self.weights.to_string()),
            "activations": self.activations.to_possible_value().map(|v| v.get_name().to_string()),
            "group": self.group, "layers": outcome.layers, "kept": outcome.kept, "seconds": seconds,
        });
        if let (Value::Object(all), Value::Object(more)) = (&mut report, outcome.details.clone()) {
            all.extend(more);
        }
        if let Some(path) = &self.report {
            let text = format!("{report:#}\n");
            data::write(path, text.as_bytes())?;
        }
        talk.report(&report, &table(&outcome, seconds))
    }
}

/// The choices of a search and its report, or the error that no mix keeps the budget.
fn kept_budget(
    found: Result<Found, NotMet>,
    metric: &Metric,
    max_drop: f64,
    names: &[&str],
    hash: Option<String>,
    samples: usize,
) -> Result<(Vec<usize>, Value), Error> {
    match found {
        Ok(found) => {
            let sensitivity = found.sensitivity.as_ref().map(|all| {
                let each = names.iter().zip(all).map(|(n, s)| (n.to_string(), json!(s)));
                Value::Object(each.collect())
            });
            let report = json!({
                "metric": metric.name(), "max_drop": max_drop, "measured": found.measured, "points": found.points,
                "sensitivity": sensitivity, "held_back": { "hash": hash, "samples": samples },
            });
            Ok((found.choices, report))
        }
        Err(missed) => {
            let points = missed.points.iter().filter(|p| p.pareto);
            let points: Vec<String> =
                points.map(|p| format!("{:.1} kB: {:.3e}", p.bytes as f64 / 1e3, p.measured.drop)).collect();
            Err(Error::Mismatch(format!(
                "the budget cannot be met: of {} mixes that were measured, none has a drop of {} of at most {max_drop}; the least \
                 is {:.3e} (bytes of weights and drop: {}); nothing was written",
                missed.points.len(),
                metric.name(),
                missed.least,
                points.join(", "),
            )))
        }
    }
}

/// The last number that a command prints for a file.
fn number_of(command: &str, path: &Path) -> Result<f64, Error> {
    let line = format!("{command} \"$0\"");
    let made =
        std::process::Command::new("sh").arg("-c").arg(line).arg(path).stderr(std::process::Stdio::inherit()).output();
    let made = made.map_err(|e| Error::Usage(format!("cannot run the metric's command: {e}")))?;
    if !made.status.success() {
        return Err(Error::Usage(format!("the metric's command {command:?} ended with {}", made.status)));
    }
    let text = String::from_utf8_lossy(&made.stdout);
    let number = text.split_whitespace().next_back().and_then(|w| w.parse::<f64>().ok()).filter(|v| v.is_finite());
    number.ok_or_else(|| Error::Usage(format!("the metric's command {command:?} printed no number at its end")))
}

/// The report for people.
fn table(outcome: &Outcome, seconds: f64) -> String {
    let mut text = String::new();
    let mut worst: Vec<_> = outcome.layers.iter().collect();
    worst.sort_by(|a, b| b.relative_error.total_cmp(&a.relative_error).then(a.name.cmp(&b.name)));
    for layer in worst.iter().take(10) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<50} {:<6} error {:.3e}", layer.name, layer.precision, layer.relative_error);
    }
    if let Some(measured) = outcome.details.get("budget").and_then(|b| b.get("measured")) {
        let get = |key: &str| measured.get(key).and_then(Value::as_f64).unwrap_or_default();
        let _ = writeln!(
            text,
            "measured {:.6}, a drop of {:.3e} ± {:.1e}",
            get("value"),
            get("drop"),
            get("half_interval")
        );
    }
    text += &removal::line(&outcome.details["removed"]);
    let (now, before) = outcome.layers.iter().fold((0, 0), |(n, b), l| (n + l.bytes, b + l.bytes_f32));
    let _ = writeln!(
        text,
        "{} matrices, {:.1} MB of {:.1} MB as f32; {} left as they are; {:.1} MB written, in {seconds:.1} s",
        outcome.layers.len(),
        now as f64 / 1e6,
        before as f64 / 1e6,
        outcome.kept.len(),
        outcome.bytes as f64 / 1e6,
    );
    text
}

fn read(path: &Path) -> Result<String, Error> {
    let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.into(), source })?;
    String::from_utf8(bytes).map_err(|_| Error::data(path.display(), "the text is not UTF-8"))
}
