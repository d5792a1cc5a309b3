//! `kiln run`: a model or an artifact on inputs.

use super::Talk;
use super::cuda;
use super::gpu::OnDevice;
use super::options::{self, Inputs, Machinery, Patience, Ready, Request, Watching};
use clap::Args as ClapArgs;
use kiln::ir::Tensor;
use kiln::ir::plan::Plan;
use kiln::onnx::model::ValueType;
use kiln::runtime::engine::Context;
use kiln::{Error, Source, data, npz};
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Run a model or an artifact
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model or an artifact
    model: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Keep the inputs in an archive
    #[arg(long, value_name = "F.npz")]
    save_inputs: Option<PathBuf>,
    /// Write the outputs to an archive, or as output_i.pb to a folder (a name that ends in `/` makes one)
    #[arg(long, value_name = "F.npz|DIR/")]
    output: Option<PathBuf>,
    /// Add the results of a node, or a value, to the outputs (models only)
    #[arg(long, value_name = "NODE")]
    tap: Vec<String>,
    /// Run on this machine's GPU instead of its CPU: cuda (models of fixed dims, and artifacts with code for it)
    #[arg(long, value_name = "cuda", conflicts_with = "cpu")]
    target: Option<OnDevice>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// What a run gave.
struct Outcome {
    /// The CPU level or the device.
    place: Value,
    outputs: Vec<(String, Tensor)>,
    declared: Vec<Option<ValueType>>,
}

/// Keeps inputs in an archive.
pub fn save(path: &Path, plan: &Plan, inputs: &[Tensor]) -> Result<(), Error> {
    let named = plan.inputs.iter().map(|(n, _)| n.to_string()).zip(inputs.iter().cloned());
    npz::write(path, &named.collect::<Vec<_>>())
}

/// Where outputs go.
enum Output {
    Summary,
    Archive(PathBuf),
    Folder(PathBuf),
}

impl Output {
    fn archive(&self) -> Option<&PathBuf> {
        match self {
            Output::Archive(path) => Some(path),
            Output::Summary | Output::Folder(_) => None,
        }
    }
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        self.patience.within(|| self.run_within(talk))
    }

    fn run_within(&self, talk: Talk) -> Result<(), Error> {
        let output = self.output()?;
        // A long run whose result cannot be kept helps nobody.
        for path in self.save_inputs.iter().chain(output.archive()) {
            data::writable(path)?;
        }
        let Outcome { place, outputs, declared } = match self.target {
            None => self.on_cpu(output.archive().is_some(), talk)?,
            Some(OnDevice::Cuda) => {
                cuda::probe()?;
                let (from, save) = (self.inputs.from(), self.save_inputs.as_deref());
                let cuda::Outcome { device, outputs, declared } = match Source::open(&self.model)? {
                    Source::Artifact(path) => {
                        if let Some(option) = options::of_models(&self.machinery, &self.tap, &self.watching) {
                            return Err(options::compiled_already(option, &path));
                        }
                        cuda::run_stored(&path, &self.machinery, from, save)?
                    }
                    Source::Model { .. } => {
                        let ready = cuda::ready(&self.model, &self.machinery, &self.watching, from, &self.tap, talk)?;
                        cuda::run(ready, save)?
                    }
                };
                Outcome { place: json!({ "device": device }), outputs, declared }
            }
        };
        match output {
            Output::Archive(path) => npz::write(&path, &outputs)?,
            Output::Folder(path) => {
                let types = declared.into_iter().chain(std::iter::repeat(None));
                let typed = outputs.iter().zip(types).map(|((name, tensor), ty)| {
                    let value = data::Value::from_tensor(tensor.clone(), ty.as_ref());
                    data::Output { name: name.clone(), ty, value }
                });
                data::write_folder(&path, &typed.collect::<Vec<_>>())?
            }
            Output::Summary => {}
        }
        if talk.json || self.output.is_none() {
            let mut text = String::new();
            for (name, tensor) in &outputs {
                // Writing to a string cannot fail.
                let _ = writeln!(text, "{name}: {}", Summary(tensor));
            }
            let list: Vec<Value> = outputs.iter().map(|(name, t)| summary_json(name, t)).collect();
            let mut report = place;
            report["outputs"] = list.into();
            talk.report(&report, &text)?;
        }
        Ok(())
    }

    fn on_cpu(&self, archive: bool, talk: Talk) -> Result<Outcome, Error> {
        let request = Request {
            path: &self.model,
            machinery: &self.machinery,
            watching: &self.watching,
            inputs: self.inputs.from(),
            taps: &self.tap,
            archive,
            entry: None,
        };
        let Ready { model, inputs, declared, budget } = options::ready(request, talk)?;
        let plan = model.plan();
        if let Some(path) = &self.save_inputs {
            save(path, plan, &inputs)?;
        }
        let mut context = Context::new(&model, self.machinery.threads(), &budget)?;
        let start = Instant::now();
        let results = context.run(&inputs)?;
        tracing::info!("run: {:.3} ms on {}", start.elapsed().as_secs_f64() * 1e3, model.level());
        let outputs = plan.outputs.iter().map(|(name, _)| name.to_string()).zip(results).collect();
        Ok(Outcome { place: json!({ "level": model.level().name() }), outputs, declared })
    }

    fn output(&self) -> Result<Output, Error> {
        let Some(path) = &self.output else { return Ok(Output::Summary) };
        let slash = path.to_string_lossy().ends_with(std::path::is_separator);
        if slash || path.is_dir() {
            return Ok(Output::Folder(path.clone()));
        }
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("npz")) {
            return Ok(Output::Archive(path.clone()));
        }
        let path = path.display();
        Err(Error::Usage(format!("--output {path}: a name ends in .npz (an archive) or in `/` (a folder)")))
    }
}

/// Most elements that are shown in full.
const SHOWN: usize = 16;

/// A tensor in a line.
struct Summary<'a>(&'a Tensor);

impl std::fmt::Display for Summary<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let tensor = self.0;
        if tensor.len() <= SHOWN {
            return write!(f, "{tensor:?}");
        }
        write!(f, "{}{:?}", tensor.dtype(), tensor.shape())?;
        let Some(s) = Statistics::of(tensor) else { return Ok(()) };
        write!(f, " min {:.6} max {:.6} at {:?} mean {:.6}", s.min, s.max, s.arg_max, s.mean)?;
        if s.not_finite > 0 { write!(f, ", {} not finite", s.not_finite) } else { Ok(()) }
    }
}

/// Statistics of a tensor of numbers with at least one element.
struct Statistics {
    min: f64,
    max: f64,
    arg_max: Vec<usize>,
    mean: f64,
    not_finite: usize,
}

impl Statistics {
    fn of(tensor: &Tensor) -> Option<Statistics> {
        let values = tensor.to_f64()?;
        let (at, _) = values.iter().enumerate().filter(|(_, v)| !v.is_nan()).max_by(|a, b| a.1.total_cmp(b.1))?;
        let mut rest = at;
        let mut arg_max: Vec<usize> = Vec::with_capacity(tensor.shape().len());
        for &extent in tensor.shape().iter().rev() {
            arg_max.push(rest % extent.max(1));
            rest /= extent.max(1);
        }
        arg_max.reverse();
        let max = values.get(at).copied()?;
        let min = values.iter().copied().fold(f64::INFINITY, f64::min);
        let not_finite = values.iter().filter(|v| !v.is_finite()).count();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Some(Statistics { min, max, arg_max, mean, not_finite })
    }
}

fn summary_json(name: &str, tensor: &Tensor) -> Value {
    let mut report = json!({ "name": name, "dtype": tensor.dtype().name(), "shape": tensor.shape() });
    if let Some(s) = Statistics::of(tensor) {
        report["min"] = json!(s.min);
        report["max"] = json!(s.max);
        report["arg_max"] = json!(s.arg_max);
        report["mean"] = json!(s.mean);
        report["not_finite"] = json!(s.not_finite);
    }
    if let Some(elements) = tensor.tensors() {
        report["elements"] = elements.iter().map(|t| summary_json("", t)).collect();
    } else if tensor.len() <= SHOWN {
        report["values"] = match (tensor.strings(), tensor.to_i64()) {
            (Some(strings), _) => strings.iter().map(|s| json!(String::from_utf8_lossy(s))).collect(),
            (None, Some(integers)) => json!(integers),
            (None, None) => json!(tensor.to_f64()),
        };
    }
    report
}
