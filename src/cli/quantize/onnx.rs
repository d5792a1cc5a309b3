//! ONNX models.

use super::super::Talk;
use super::super::options::Progress;
use super::{Args, Emit, Outcome};
use kiln::onnx::model::Model;
use kiln::onnx::write::{WriteError, encode};
use kiln::passes::quantize::Grid;
use kiln::quantize::budget::{self, Candidate, Measured};
use kiln::quantize::metric::{Metric, compare};
use kiln::quantize::onnx::{Layer, Prepared, Runs, Sample, raise, samples};
use kiln::{Error, Source, data};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Most layers that are measured one by one.
const MOST_MEASURED: usize = 64;

pub fn run(args: &Args, talk: Talk) -> Result<Outcome, Error> {
    data::writable(&args.output)?;
    let emit = args.emit()?;
    let machinery = &args.machinery;
    let model = Source::open(&args.model)?.model(&machinery.limits())?;
    let (budget, level) = (machinery.budget(), machinery.level_here()?);
    let options = machinery.options(vec![level], BTreeMap::new())?;
    let runs = Runs { options, place: (level, machinery.threads()), budget: budget.clone() };
    if args.text.is_some() {
        return Err(Error::Usage("--text is for language models; give ONNX models .npz files with --data".into()));
    }
    let read = |paths: &[std::path::PathBuf]| match paths {
        [] => Ok((Vec::new(), None)),
        paths => samples(&model, paths, &budget).map(|(samples, hash)| (samples, Some(hash))),
    };
    let (mut calibration, hash) = read(&args.data)?;
    let (mut held_back, held_hash) = read(&args.held_back)?;
    if args.metric.is_some() && held_back.is_empty() && !matches!(args.metric(), Some(Metric::Command(_))) {
        let split = calibration.len() - calibration.len() / 4;
        held_back = calibration.split_off(split);
        if held_back.is_empty() {
            let message = "a budget is measured on data that calibration does not see: give it with --held-back (a quarter of \
                           --data is taken where that has at least 4 samples)";
            return Err(Error::Usage(message.into()));
        }
    }
    calibration.truncate(args.samples as usize);
    let mut observer = Progress::new(talk);
    let prepared = Prepared::new(&model, &args.settings()?, &calibration, &runs, &mut observer)?;
    let grids = args.grids();
    let (choices, found) = match args.metric() {
        None => (vec![0; prepared.layers().len()], Value::Null),
        Some(metric) => {
            let work =
                Budget { args, model: &model, prepared: &prepared, grids: &grids, held_back: &held_back, runs: &runs };
            work.search(&metric, held_hash, &mut observer)?
        }
    };
    let chosen = chosen(prepared.layers(), &choices, &grids);
    let (made, layers) = prepared.quantized(&|layer| chosen.get(&layer.node).copied().flatten())?;
    drop(observer);
    let bytes = write(args, made, emit, &args.output, talk)?;
    let (divided, pruned) = (prepared.equalised, &prepared.pruned);
    let details = json!({
        "calibration": { "hash": hash, "samples": calibration.len() }, "budget": found,
        "equalised_pairs": divided.0, "divided_inputs": divided.1, "pruned": pruned,
    });
    Ok(Outcome { bytes, layers, kept: prepared.kept().to_vec(), details })
}

/// What each layer becomes.
fn chosen(layers: &[Layer], choices: &[usize], grids: &[Grid]) -> BTreeMap<String, Option<Grid>> {
    layers.iter().zip(choices).map(|(l, &c)| (l.node.clone(), grids.get(c).copied())).collect()
}

/// Writes a model as an artifact or as ONNX; its size.
fn write(args: &Args, mut model: Model, emit: Emit, output: &Path, talk: Talk) -> Result<u64, Error> {
    match emit {
        Emit::Onnx => {
            raise(&mut model)?;
            let bytes = encode(&model, ("kiln", kiln::VERSION)).map_err(|e| match e {
                WriteError::TooLarge(_) => Error::Limit(e.to_string()),
                WriteError::Initializer(_) => Error::Internal(e.to_string()),
            })?;
            data::replace(output, |out| std::io::Write::write_all(out, &bytes))
                .map_err(|source| Error::Write { path: output.into(), source })?;
            Ok(bytes.len() as u64)
        }
        Emit::Artifact => {
            let options = args.machinery.options(args.machinery.artifact_levels(), BTreeMap::new())?;
            kiln::compile(&model, &options, &mut Progress::new(talk))?.write(output)
        }
    }
}

struct Budget<'a> {
    args: &'a Args,
    model: &'a Model,
    prepared: &'a Prepared,
    grids: &'a [Grid],
    held_back: &'a [Sample],
    runs: &'a Runs,
}

impl Budget<'_> {
    fn search(
        &self,
        metric: &Metric,
        hash: Option<String>,
        observer: &mut Progress,
    ) -> Result<(Vec<usize>, Value), Error> {
        let layers = self.prepared.layers();
        let mut candidates = Vec::with_capacity(layers.len());
        for layer in layers {
            let (bytes, error) = self.prepared.costs(layer, self.grids)?;
            candidates.push(Candidate { name: layer.node.clone(), bytes, error });
        }
        let max_drop = self.args.max_drop()?;
        let quantized = |choices: &[usize]| {
            let chosen = chosen(layers, choices, self.grids);
            self.prepared.quantized(&|layer| chosen.get(&layer.node).copied().flatten())
        };
        let found = match metric {
            Metric::Command(command) => {
                let before = self.told(command, self.model.clone())?;
                let mut measure = |choices: &[usize]| {
                    let value = self.told(command, quantized(choices)?.0)?;
                    Ok(Measured { value, drop: before - value, half_interval: None })
                };
                budget::search(&candidates, max_drop, MOST_MEASURED, &mut measure)?
            }
            Metric::Cosine | Metric::Top1 | Metric::MeanSquare | Metric::Perplexity => {
                let before = self.runs.outputs(self.model, self.held_back, observer)?;
                let mut measure = |choices: &[usize]| {
                    let after = self.runs.outputs(&quantized(choices)?.0, self.held_back, observer)?;
                    compare(metric, &before, &after, self.held_back)
                };
                budget::search(&candidates, max_drop, MOST_MEASURED, &mut measure)?
            }
        };
        let names: Vec<&str> = candidates.iter().map(|c| c.name.as_str()).collect();
        super::kept_budget(found, metric, max_drop, &names, hash, self.held_back.len())
    }

    /// The number that a command prints for the file of a model.
    fn told(&self, command: &str, mut model: Model) -> Result<f64, Error> {
        raise(&mut model)?;
        let bytes = encode(&model, ("kiln", kiln::VERSION)).map_err(|e| Error::Limit(e.to_string()))?;
        let fail = |source| Error::Write { path: "a temporary file".into(), source };
        let folder = tempfile::tempdir().map_err(fail)?;
        let path = folder.path().join("candidate.onnx");
        std::fs::write(&path, bytes).map_err(fail)?;
        super::number_of(command, &path)
    }
}
