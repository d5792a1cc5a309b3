//! The options of `kiln quantize`, and what they come to.

use super::checkpoint::Model;
use crate::cli::options::Machinery;
use clap::{Args as ClapArgs, ValueEnum};
use kiln::Error;
use kiln::passes::quantize::{FloatFormat, Grid, RangeMethod};
use kiln::quantize::images::Channels;
use kiln::quantize::metric::Metric;
use kiln::quantize::onnx::{Activations, Prune, Settings};
use kiln::quantize::{Method, Removal, WeightOptions};
use std::path::PathBuf;

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
    kiln quantize folder/ -o q.onnx --activations u8 --text english.txt --layer output=f32\n  \
    kiln quantize folder/ -o small/ --drop-layers 2 --drop-heads 0.25 --text english.txt --metric cosine --max-drop 0.05")]
pub struct Args {
    /// An ONNX model, a GGUF file, or a folder with config.json, safetensors and tokenizer.json
    pub(super) model: PathBuf,
    /// The file or folder to write
    #[arg(short, long, value_name = "OUT")]
    pub(super) output: PathBuf,
    /// What to write [default: onnx or artifact where OUT ends in .onnx or .kiln; else an artifact of an ONNX model, and the form that it
    /// has of a language model]
    #[arg(long, value_enum)]
    pub(super) emit: Option<Emit>,
    /// Numbers of the weights: int8, int4, int3 around zero; uint8, uint4, uint3 with zero points; nf4 by the normal distribution;
    /// f16, bf16, and fp8e4m3, fp8e5m2 with a scale for each output
    #[arg(long, value_name = "TYPE", default_value = "int8", value_parser = parse_grid)]
    pub(super) weights: Grid,
    /// Quantize nothing: only take out layers and heads, and prune
    #[arg(long, conflicts_with_all = ["weights", "layer", "method", "activations"])]
    pub(super) no_quantize: bool,
    /// Take layers of a language model out, those that its text shows to be worth least; each round measures all that are there
    #[arg(long, value_name = "N", requires = "text")]
    pub(super) drop_layers: Option<u32>,
    /// Take this share of a language model's attention heads out, such as 0.25, those that its text shows to be worth least. Heads that
    /// share keys and values go together; BERT and its like keep different numbers in layers
    #[arg(long, value_name = "SHARE", requires = "text")]
    pub(super) drop_heads: Option<f64>,
    /// Other numbers for layers whose node or weights hold this in their name, f32 to leave them alone; several times for several, of
    /// which the last that fits counts
    #[arg(long, value_name = "PART=TYPE", value_parser = parse_layer)]
    pub(super) layer: Vec<(String, Option<Grid>)>,
    /// Inputs that share a scale; 0 for one scale for each output. Convolutions and integer products always have that
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(super) group: u32,
    /// How weights are rounded: to the nearest, or so that outputs lose little by calibration data (gptq, awq), or by the
    /// weights alone (hqq)
    #[arg(long, value_enum, default_value_t = MethodWord::Rtn)]
    pub(super) method: MethodWord,
    /// Activations of ONNX models: f32; u8 with a zero point or i8 without one, by calibration data; dynamic: u8, scaled anew in
    /// each run
    #[arg(long, value_enum, default_value_t = ActivationsWord::F32)]
    pub(super) activations: ActivationsWord,
    /// How ranges of activations are chosen
    #[arg(long, value_enum, default_value_t = RangesWord::Minmax)]
    pub(super) ranges: RangesWord,
    /// The share of values that --ranges percentile keeps
    #[arg(long, value_name = "SHARE", default_value_t = 0.9999)]
    pub(super) percentile: f64,
    /// One scale for all weights of a layer
    #[arg(long)]
    pub(super) per_tensor: bool,
    /// Let biases make good what weights lose on average
    #[arg(long)]
    pub(super) bias_correction: bool,
    /// Make the ranges of neighbouring layers equal first
    #[arg(long)]
    pub(super) equalise: bool,
    /// Move a part of activations' ranges into weights first (SmoothQuant), such as 0.5
    #[arg(long, value_name = "STRENGTH")]
    pub(super) smooth: Option<f32>,
    /// Set weights to zero first: a share such as 0.5 of the least, or 2:4 for two of each four inputs. Weights that stay f32 with two of
    /// four at most are stored without the others where one row is multiplied by many of them
    #[arg(long, value_name = "SHARE|N:M", value_parser = parse_prune)]
    pub(super) prune: Option<Prune>,
    /// Calibration data of ONNX models: .npz files, key = input name, or PNG and JPEG images for a model with one input of images, or folders
    /// of them. Images are scaled to cover the input's height and width and cut to them at the centre
    #[arg(long, value_name = "F.npz|IMAGE|DIR")]
    pub(super) data: Vec<PathBuf>,
    /// Taken from images' values, which are from 0 to 1: a number for all channels, or one for each
    #[arg(long, value_name = "M,..", value_delimiter = ',', allow_negative_numbers = true, requires = "data")]
    pub(super) image_mean: Vec<f32>,
    /// What images' values are divided by then
    #[arg(long, value_name = "S,..", value_delimiter = ',', requires = "data")]
    pub(super) image_std: Vec<f32>,
    /// Calibration text of language models: for decoders one text, for encoders a text in each line
    #[arg(long, value_name = "FILE")]
    pub(super) text: Option<PathBuf>,
    /// Tokens that calibration reads at once
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..=8192))]
    pub(super) window: u32,
    /// Most samples (of a decoder: tokens) that calibration reads
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) samples: u32,
    /// What must not become worse: cosine, top1 (with an array `labels` in the data: accuracy), mse, perplexity, or a command that
    /// prints a number for the file that is put behind it
    #[arg(long, value_name = "METRIC", requires = "max_drop")]
    pub(super) metric: Option<String>,
    /// By how much it may: of cosine 1 less it, of perplexity the part by which it grows, of others the difference
    #[arg(long, value_name = "X", requires = "metric", allow_negative_numbers = true)]
    pub(super) max_drop: Option<f64>,
    /// Measure what each layer alone costs where there are at most N of them, and else go by the errors of their outputs [default: 64, or 0
    /// where a command measures]
    #[arg(long, value_name = "N", requires = "metric")]
    pub(super) measure_layers: Option<usize>,
    /// Data, or a text, to measure on [default: the last quarter of the calibration data, which is then not calibrated with]
    #[arg(long, value_name = "F.npz|DIR|FILE")]
    pub(super) held_back: Vec<PathBuf>,
    /// Leave layers alone whose node or weights hold this in their name; several times for several
    #[arg(long, value_name = "PART")]
    pub(super) skip: Vec<String>,
    /// Write the report as JSON to a file
    #[arg(long, value_name = "F.json")]
    pub(super) report: Option<PathBuf>,
    #[command(flatten)]
    pub(super) machinery: Machinery,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Emit {
    Artifact,
    Onnx,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum MethodWord {
    Rtn,
    Gptq,
    Awq,
    Hqq,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum ActivationsWord {
    F32,
    U8,
    I8,
    Dynamic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum RangesWord {
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

impl Args {
    pub(super) fn options(&self) -> WeightOptions {
        let method = match self.method {
            MethodWord::Rtn => Method::Nearest,
            MethodWord::Gptq => Method::Gptq,
            MethodWord::Awq => Method::Awq,
            MethodWord::Hqq => Method::Hqq,
        };
        WeightOptions { grid: self.weights, group: self.group as usize, method, threads: self.machinery.threads() }
    }

    /// Refuses options that do not go together.
    pub(super) fn check(&self) -> Result<(), Error> {
        let floats = |grid: &Grid| matches!(grid, Grid::Float(_));
        if floats(&self.weights) && self.options().method != Method::Nearest {
            let method = self.options().method.name();
            return Err(Error::Usage(format!(
                "{} weights are rounded to the nearest; --method {method} is for integers",
                self.weights
            )));
        }
        if self.drop_heads.is_some_and(|share| !(share > 0.0 && share < 1.0)) {
            return Err(Error::Usage("--drop-heads must be a share between 0 and 1".into()));
        }
        if self.no_quantize && self.removal().is_none() && self.prune.is_none() {
            return Err(Error::Usage("--no-quantize goes with --drop-layers, --drop-heads or --prune".into()));
        }
        Ok(())
    }

    /// What is to be taken out.
    pub(super) fn removal(&self) -> Option<Removal> {
        let (layers, heads) = (self.drop_layers.unwrap_or(0) as usize, self.drop_heads.unwrap_or(0.0));
        (layers > 0 || heads > 0.0).then_some(Removal { layers, heads })
    }

    /// What `--layer` says of a layer: nothing, or its numbers, if it is to have any.
    pub(super) fn told(&self, names: &[&str]) -> Option<Option<Grid>> {
        let fits = |part: &str| names.iter().any(|name| name.contains(part));
        self.layer.iter().rev().find(|(part, _)| fits(part)).map(|(_, grid)| *grid)
    }

    /// Whether a language model is written in a form of language models.
    pub(super) fn keeps_form(&self, model: &Model) -> bool {
        match self.emit() {
            None => true,
            Some(Emit::Onnx) => false,
            // An encoder's artifact is one of an ONNX model.
            Some(Emit::Artifact) => self.stored_in_blocks() && matches!(model, Model::Decoder(_)),
        }
    }

    /// Whether files of language models have a place for what is asked for.
    pub(super) fn stored_in_blocks(&self) -> bool {
        let onnx = self.activations != ActivationsWord::F32
            || self.per_tensor
            || self.smooth.is_some()
            || !self.data.is_empty();
        let grids = self.layer.iter().filter_map(|(_, grid)| *grid).chain([self.weights]);
        !onnx && grids.into_iter().all(kiln::quantize::in_files)
    }

    pub(super) fn settings(&self) -> Result<Settings, Error> {
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

    /// What is done with the channels of images.
    pub(super) fn channels(&self) -> Result<Channels, Error> {
        let wrong = |v: &f32| !v.is_finite() || *v <= 0.0;
        if self.image_mean.iter().any(|v| !v.is_finite()) || self.image_std.iter().any(wrong) {
            return Err(Error::Usage(
                "--image-mean and --image-std must be numbers, and what is divided by above 0".into(),
            ));
        }
        let or = |list: &[f32], otherwise: Vec<f32>| if list.is_empty() { otherwise } else { list.to_vec() };
        let Channels { mean, deviation } = Channels::default();
        Ok(Channels { mean: or(&self.image_mean, mean), deviation: or(&self.image_std, deviation) })
    }

    /// The grids that a budget may choose among, from the one that was asked for on; none where nothing is to be quantized.
    pub(super) fn grids(&self) -> Vec<Grid> {
        if self.no_quantize {
            return Vec::new();
        }
        let asymmetric = matches!(self.weights, Grid::Asymmetric(_));
        let of = |bits: u32| if asymmetric { Grid::Asymmetric(bits) } else { Grid::Symmetric(bits) };
        let more = [4, 8].into_iter().filter(|&bits| bits > self.weights.bits()).map(of);
        std::iter::once(self.weights).chain(more).collect()
    }

    /// What is to be written, where the options or the output's name say so.
    pub(super) fn emit(&self) -> Option<Emit> {
        let named = |word: &str| self.output.extension().is_some_and(|e| e.eq_ignore_ascii_case(word));
        let by_name = [("onnx", Emit::Onnx), ("kiln", Emit::Artifact)].into_iter().find(|(word, _)| named(word));
        self.emit.or(by_name.map(|(_, emit)| emit))
    }

    pub(super) fn metric(&self) -> Option<Metric> {
        self.metric.as_deref().map(Metric::from_word)
    }

    pub(super) fn max_drop(&self) -> Result<f64, Error> {
        match self.max_drop {
            Some(drop) if drop.is_finite() => Ok(drop),
            _ => Err(Error::Usage("--max-drop must be a number".into())),
        }
    }

    /// The options for the matrix of a checkpoint, where layers have `grid` unless they are told otherwise.
    pub(super) fn wanted(&self, name: &str, grid: Grid) -> Option<WeightOptions> {
        if self.skip.iter().any(|part| name.contains(part.as_str())) {
            return None;
        }
        let grid = self.told(&[name]).unwrap_or(Some(grid))?;
        let method = if matches!(grid, Grid::Float(_)) { Method::Nearest } else { self.options().method };
        Some(WeightOptions { grid, method, ..self.options() })
    }
}
