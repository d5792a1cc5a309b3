//! `kiln quantize`: a model with smaller numbers.
//!
//! Invariant: the output appears complete or not at all, and only when the budget, if there is one, is kept.

mod checkpoint;
mod onnx;

use super::Talk;
use super::options::Machinery;
use clap::{Args as ClapArgs, ValueEnum};
use kiln::lm::LanguageModel;
use kiln::passes::quantize::{FloatFormat, Grid, RangeMethod};
use kiln::quantize::budget::{Found, NotMet};
use kiln::quantize::metric::Metric;
use kiln::quantize::onnx::{Activations, Prune, Settings};
use kiln::quantize::{Kept, LayerReport, Method, WeightOptions};
use kiln::{Error, data};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Quantize a model
///
/// ONNX models become an artifact or, with --emit onnx, an ONNX model with QuantizeLinear and DequantizeLinear between its own nodes.
/// Language models keep their form: a GGUF file becomes one with Q8_0, Q4_0 or Q4_1 blocks, a folder one with packed safetensors;
/// `kiln generate` and `kiln eval` take both. With --emit onnx (or OUT.onnx) they become ONNX models, with all that is there for those;
/// with --emit artifact (or OUT.kiln) what `kiln generate` runs, or, where weights or activations have no such form, what `kiln run` does.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:\n  \
    kiln quantize m.onnx -o m.kiln                                    weights int8\n  \
    kiln quantize m.onnx -o q.onnx --activations u8 --data calib/     static int8, Q/DQ form\n  \
    kiln quantize m.onnx -o q.onnx --activations u8 --data calib/ --metric top1 --max-drop 0.005\n  \
    kiln quantize m.gguf -o q.gguf --weights int4 --method gptq --text english.txt\n  \
    kiln quantize folder/ -o q.onnx --activations u8 --text english.txt --layer output=f32")]
pub struct Args {
    /// An ONNX model, a GGUF file, or a folder with config.json, safetensors and tokenizer.json
    model: PathBuf,
    /// The file or folder to write
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// What to write [default: onnx or artifact where OUT ends in .onnx or .kiln; else an artifact of an ONNX model, and the form that it
    /// has of a language model]
    #[arg(long, value_enum)]
    emit: Option<Emit>,
    /// Numbers of the weights: int8, int4, int3 around zero; uint8, uint4, uint3 with zero points; nf4 by the normal distribution;
    /// f16, bf16, and fp8e4m3, fp8e5m2 with a scale for each output
    #[arg(long, value_name = "TYPE", default_value = "int8", value_parser = parse_grid)]
    weights: Grid,
    /// Other numbers for layers whose node or weights hold this in their name, f32 to leave them alone; several times for several, of
    /// which the last that fits counts
    #[arg(long, value_name = "PART=TYPE", value_parser = parse_layer)]
    layer: Vec<(String, Option<Grid>)>,
    /// Inputs that share a scale; 0 for one scale for each output. Convolutions and integer products always have that
    #[arg(long, value_name = "N", default_value_t = 64)]
    group: u32,
    /// How weights are rounded: to the nearest, or so that outputs lose little by calibration data (gptq, awq), or by the
    /// weights alone (hqq)
    #[arg(long, value_enum, default_value_t = MethodWord::Rtn)]
    method: MethodWord,
    /// Activations of ONNX models: f32; u8 with a zero point or i8 without one, by calibration data; dynamic: u8, scaled anew in
    /// each run
    #[arg(long, value_enum, default_value_t = ActivationsWord::F32)]
    activations: ActivationsWord,
    /// How ranges of activations are chosen
    #[arg(long, value_enum, default_value_t = RangesWord::Minmax)]
    ranges: RangesWord,
    /// The share of values that --ranges percentile keeps
    #[arg(long, value_name = "SHARE", default_value_t = 0.9999)]
    percentile: f64,
    /// One scale for all weights of a layer
    #[arg(long)]
    per_tensor: bool,
    /// Let biases make good what weights lose on average
    #[arg(long)]
    bias_correction: bool,
    /// Make the ranges of neighbouring layers equal first
    #[arg(long)]
    equalise: bool,
    /// Move a part of activations' ranges into weights first (SmoothQuant), such as 0.5
    #[arg(long, value_name = "STRENGTH")]
    smooth: Option<f32>,
    /// Set weights to zero first: a share such as 0.5 of the least, or 2:4 for two of each four inputs
    #[arg(long, value_name = "SHARE|N:M", value_parser = parse_prune)]
    prune: Option<Prune>,
    /// Calibration data of ONNX models: .npz files, or folders of them, key = input name
    #[arg(long, value_name = "F.npz|DIR")]
    data: Vec<PathBuf>,
    /// Calibration text of language models: for decoders one text, for encoders a text in each line
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens that calibration reads at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=8192))]
    window: u32,
    /// Most samples (of a decoder: tokens) that calibration reads
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    samples: u32,
    /// What must not become worse: cosine, top1 (with an array `labels` in the data: accuracy), mse, perplexity, or a command that
    /// prints a number for the file that is put behind it
    #[arg(long, value_name = "METRIC", requires = "max_drop")]
    metric: Option<String>,
    /// By how much it may: of cosine 1 less it, of perplexity the part by which it grows, of others the difference
    #[arg(long, value_name = "X", requires = "metric", allow_negative_numbers = true)]
    max_drop: Option<f64>,
    /// Data, or a text, to measure on [default: the last quarter of the calibration data, which is then not calibrated with]
    #[arg(long, value_name = "F.npz|DIR|FILE")]
    held_back: Vec<PathBuf>,
    /// Leave layers alone whose node or weights hold this in their name; several times for several
    #[arg(long, value_name = "PART")]
    skip: Vec<String>,
    /// Write the report as JSON to a file
    #[arg(long, value_name = "F.json")]
    report: Option<PathBuf>,
    #[command(flatten)]
    machinery: Machinery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Emit {
    Artifact,
    Onnx,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MethodWord {
    Rtn,
    Gptq,
    Awq,
    Hqq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ActivationsWord {
    F32,
    U8,
    I8,
    Dynamic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RangesWord {
    Minmax,
    Entropy,
    Percentile,
    Mse,
}

fn parse_grid(word: &str) -> Result<Grid, String> {
    Ok(match word {
        "int8" => Grid::Symmetric(8),
        "int4" => Grid::Symmetric(4),
        "int3" => Grid::Symmetric(3),
        "uint8" => Grid::Asymmetric(8),
        "uint4" => Grid::Asymmetric(4),
        "uint3" => Grid::Asymmetric(3),
        "nf4" => Grid::NormalFloat4,
        "f16" => Grid::Float(FloatFormat::F16),
        "bf16" => Grid::Float(FloatFormat::Bf16),
        "fp8e4m3" => Grid::Float(FloatFormat::E4M3),
        "fp8e5m2" => Grid::Float(FloatFormat::E5M2),
        other => {
            let there = "int8, int4, int3, uint8, uint4, uint3, nf4, f16, bf16, fp8e4m3, fp8e5m2";
            return Err(format!("{other:?} is no type of weights; there are {there}"));
        }
    })
}

fn parse_layer(text: &str) -> Result<(String, Option<Grid>), String> {
    let (part, word) = text.rsplit_once('=').ok_or("it must be PART=TYPE, such as lm_head=int8")?;
    if part.is_empty() {
        return Err("the part of the name is empty".into());
    }
    let grid = match word {
        "f32" => None,
        "nf4" => return Err("nf4 is for all layers (--weights nf4), not for one".into()),
        word => Some(parse_grid(word)?),
    };
    Ok((part.into(), grid))
}

fn parse_prune(word: &str) -> Result<Prune, String> {
    if let Some((n, m)) = word.split_once(':') {
        let (n, m): (usize, usize) = n.parse().ok().zip(m.parse().ok()).ok_or("N:M must be two numbers")?;
        return if n > 0 && n < m { Ok(Prune::Pattern(n, m)) } else { Err("of N:M, N must be less than M".into()) };
    }
    match word.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(Prune::Share(share)),
        Ok(_) | Err(_) => Err("it must be a share between 0 and 1, or N:M".into()),
    }
}

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
        let keeps = LanguageModel::is_at(&self.model) && self.keeps_form();
        let outcome = if keeps { checkpoint::run(self, talk)? } else { onnx::run(self, talk)? };
        let seconds = start.elapsed().as_secs_f64();
        let mut report = json!({
            "model": self.model.display().to_string(), "output": self.output.display().to_string(),
            "bytes": outcome.bytes, "method": self.options().method.name(), "weights": self.weights.to_string(),
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

    fn options(&self) -> WeightOptions {
        let method = match self.method {
            MethodWord::Rtn => Method::Nearest,
            MethodWord::Gptq => Method::Gptq,
            MethodWord::Awq => Method::Awq,
            MethodWord::Hqq => Method::Hqq,
        };
        WeightOptions { grid: self.weights, group: self.group as usize, method, threads: self.machinery.threads() }
    }

    /// Refuses options that do not go together.
    fn check(&self) -> Result<(), Error> {
        let floats = |grid: &Grid| matches!(grid, Grid::Float(_));
        if floats(&self.weights) && self.options().method != Method::Nearest {
            let method = self.options().method.name();
            return Err(Error::Usage(format!(
                "{} weights are rounded to the nearest; --method {method} is for integers",
                self.weights
            )));
        }
        Ok(())
    }

    /// What `--layer` says of a layer: nothing, or its numbers, if it is to have any.
    fn told(&self, names: &[&str]) -> Option<Option<Grid>> {
        let fits = |part: &str| names.iter().any(|name| name.contains(part));
        self.layer.iter().rev().find(|(part, _)| fits(part)).map(|(_, grid)| *grid)
    }

    /// Whether a language model is written in a form of language models.
    fn keeps_form(&self) -> bool {
        match self.emit() {
            None => true,
            Some(Emit::Onnx) => false,
            // An encoder's artifact is one of an ONNX model.
            Some(Emit::Artifact) => self.stored_in_blocks() && checkpoint::is_decoder(&self.model),
        }
    }

    /// Whether files of language models have a place for what is asked for.
    fn stored_in_blocks(&self) -> bool {
        let onnx = self.activations != ActivationsWord::F32
            || self.per_tensor
            || self.smooth.is_some()
            || !self.data.is_empty();
        let grids = self.layer.iter().filter_map(|(_, grid)| *grid).chain([self.weights]);
        !onnx && grids.into_iter().all(kiln::quantize::in_files)
    }

    fn settings(&self) -> Result<Settings, Error> {
        let activations = match self.activations {
            ActivationsWord::F32 => Activations::Float,
            ActivationsWord::U8 => Activations::Unsigned,
            ActivationsWord::I8 => Activations::Signed,
            ActivationsWord::Dynamic => Activations::Dynamic,
        };
        if activations != Activations::Float && self.weights != Grid::Symmetric(8) {
            let message = "integer activations go with --weights int8 only";
            return Err(Error::Unsupported(format!("{message}, not {}", self.weights)));
        }
        let others = self.layer.iter().filter_map(|(_, grid)| *grid).find(|grid| *grid != Grid::Symmetric(8));
        if let (true, Some(grid)) = (activations != Activations::Float, others) {
            return Err(Error::Unsupported(format!(
                "integer activations go with --layer PART=int8 or f32, not {grid}"
            )));
        }
        if self.per_tensor && activations == Activations::Dynamic {
            return Err(Error::Unsupported("--per-tensor does not go with --activations dynamic".into()));
        }
        let ranges = match self.ranges {
            RangesWord::Minmax => RangeMethod::MinMax,
            RangesWord::Entropy => RangeMethod::Entropy,
            RangesWord::Mse => RangeMethod::MeanSquare,
            RangesWord::Percentile if self.percentile > 0.0 && self.percentile <= 1.0 => {
                RangeMethod::Percentile(self.percentile)
            }
            RangesWord::Percentile => return Err(Error::Usage("--percentile must be a share such as 0.9999".into())),
        };
        if self.smooth.is_some_and(|s| !(0.0..=1.0).contains(&s)) {
            return Err(Error::Usage("--smooth must lie between 0 and 1".into()));
        }
        Ok(Settings {
            weights: self.options(),
            activations,
            ranges,
            per_tensor: self.per_tensor,
            bias_correction: self.bias_correction,
            equalise: self.equalise,
            smooth: self.smooth,
            prune: self.prune,
            skip: self.skip.clone(),
        })
    }

    /// The grids that a budget may choose among, from the one that was asked for on.
    fn grids(&self) -> Vec<Grid> {
        let asymmetric = matches!(self.weights, Grid::Asymmetric(_));
        let of = |bits: u32| if asymmetric { Grid::Asymmetric(bits) } else { Grid::Symmetric(bits) };
        let more = [4, 8].into_iter().filter(|&bits| bits > self.weights.bits()).map(of);
        std::iter::once(self.weights).chain(more).collect()
    }

    /// What is to be written, where the options or the output's name say so.
    fn emit(&self) -> Option<Emit> {
        let named = |word: &str| self.output.extension().is_some_and(|e| e.eq_ignore_ascii_case(word));
        let by_name = [("onnx", Emit::Onnx), ("kiln", Emit::Artifact)].into_iter().find(|(word, _)| named(word));
        self.emit.or(by_name.map(|(_, emit)| emit))
    }

    fn metric(&self) -> Option<Metric> {
        self.metric.as_deref().map(Metric::from_word)
    }

    fn max_drop(&self) -> Result<f64, Error> {
        match self.max_drop {
            Some(drop) if drop.is_finite() => Ok(drop),
            _ => Err(Error::Usage("--max-drop must be a number".into())),
        }
    }

    /// The options for the matrix of a checkpoint, where layers have `grid` unless they are told otherwise.
    fn wanted(&self, name: &str, grid: Grid) -> Option<WeightOptions> {
        if self.skip.iter().any(|part| name.contains(part.as_str())) {
            return None;
        }
        let grid = self.told(&[name]).unwrap_or(Some(grid))?;
        let method = if matches!(grid, Grid::Float(_)) { Method::Nearest } else { self.options().method };
        Some(WeightOptions { grid, method, ..self.options() })
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
