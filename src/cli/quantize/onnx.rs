//! ONNX models.

use super::super::Talk;
use super::super::generate::DEFAULT_CONTEXT;
use super::super::options::Progress;
use super::{Args, Emit, Outcome, checkpoint};
use kiln::onnx::model::Model;
use kiln::onnx::write::{WriteError, encode};
use kiln::passes::quantize::Grid;
use kiln::quantize::budget::{self, Candidate, Measured};
use kiln::quantize::metric::{Metric, compare};
use kiln::quantize::onnx::{Layer, Prepared, Runs, Sample, raise, samples};
use kiln::quantize::{self, Bounds};
use kiln::runtime::cpu::CpuLevel;
use kiln::{Error, Observer, Options, Source, data};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Most layers that are measured one by one.
const MOST_MEASURED: usize = 64;

/// The same where a command measures: it may take minutes, and bisection over the layers in the order of their errors runs it a few times.
const MOST_MEASURED_BY_COMMAND: usize = 0;

/// Quantizes an ONNX model, or a language model as one.
pub fn run(args: &Args, opened: Option<checkpoint::Opened>, talk: Talk) -> Result<Outcome, Error> {
    data::writable(&args.output)?;
    let emit = args.emit().unwrap_or(Emit::Artifact);
    let machinery = &args.machinery;
    let (budget, level) = (machinery.budget(), machinery.level_here()?);
    let place = (level, machinery.threads());
    let mut observer = Progress::new(talk);
    let mut subject = match &opened {
        Some(opened) => Subject::of_checkpoint(args, &opened.model, place, &mut observer)?,
        None => Subject::of_onnx(args)?,
    };
    // What the budget compares with, where layers or heads were taken out.
    let original = match opened.as_ref().and_then(|opened| opened.before.as_ref()).filter(|_| args.metric.is_some()) {
        Some(before) => Some(Subject::of_checkpoint(args, before, place, &mut observer)?),
        None => None,
    };
    let removed = opened.map_or(Value::Null, |opened| opened.removed);
    subject.hold_back(args)?;
    let original = original.map(|mut original| original.hold_back(args).map(|()| original)).transpose()?;
    let Subject { model, bounds, calibration, held_back } = subject;
    let options = with_bounds(machinery.options(vec![level], BTreeMap::new())?, &bounds);
    let runs = Runs { options, place, budget };
    let (hash, held_hash, held_back) = (calibration.hash, held_back.hash, held_back.samples);
    let mut calibration = calibration.samples;
    calibration.truncate(args.samples as usize);
    let prepared = Prepared::new(&model, &args.settings()?, &calibration, &runs, &mut observer)?;
    let grids = args.grids();
    let (choices, found) = match args.metric() {
        None => (vec![0; prepared.layers().len()], Value::Null),
        Some(metric) => {
            let before = match &original {
                Some(original) => (&original.model, original.held_back.samples.as_slice()),
                None => (&model, held_back.as_slice()),
            };
            let (prepared, grids, held_back) = (&prepared, &grids, &held_back);
            let work = Budget { args, talk, before, prepared, grids, held_back, runs: &runs };
            work.search(&metric, held_hash, &mut observer)?
        }
    };
    let chosen = chosen(args, prepared.layers(), &choices, &grids);
    let (made, layers) = prepared.quantized(&|layer| chosen.get(&layer.node).copied().flatten())?;
    drop(observer);
    let bytes = write(args, made, emit, &bounds, talk)?;
    let (divided, pruned) = (prepared.equalised, &prepared.pruned);
    let details = json!({
        "calibration": { "hash": hash, "samples": calibration.len() }, "budget": found,
        "equalised_pairs": divided.0, "divided_inputs": divided.1, "pruned": pruned,
        "removed": removed,
    });
    Ok(Outcome { bytes, layers, kept: prepared.kept().to_vec(), details })
}

fn with_bounds(mut options: Options, bounds: &Bounds) -> Options {
    for (name, &range) in bounds {
        options.bind.entry(name.clone()).or_insert(range);
    }
    options
}

/// Samples, and the hash of the data that they are from.
#[derive(Default)]
struct Data {
    samples: Vec<Sample>,
    hash: Option<String>,
}

/// What is quantized, by which data.
struct Subject {
    model: Model,
    bounds: Bounds,
    calibration: Data,
    held_back: Data,
}

impl Subject {
    fn of_onnx(args: &Args) -> Result<Subject, Error> {
        if args.text.is_some() {
            return Err(Error::Usage("--text is for language models; give ONNX models .npz files with --data".into()));
        }
        let model = Source::open(&args.model)?.model(&args.machinery.limits())?;
        let budget = args.machinery.budget();
        let read = |paths: &[std::path::PathBuf]| match paths {
            [] => Ok(Data::default()),
            paths => samples(&model, paths, &args.channels()?, &budget)
                .map(|(samples, hash)| Data { samples, hash: Some(hash) }),
        };
        let (calibration, held_back) = (read(&args.data)?, read(&args.held_back)?);
        Ok(Subject { model, bounds: Bounds::new(), calibration, held_back })
    }

    /// Takes a quarter of the samples to measure a budget on, where there is one and no data for it.
    fn hold_back(&mut self, args: &Args) -> Result<(), Error> {
        let by_samples = args.metric().is_some_and(|metric| !matches!(metric, Metric::Command(_)));
        if !by_samples || !self.held_back.samples.is_empty() {
            return Ok(());
        }
        let samples = &mut self.calibration.samples;
        self.held_back.samples = samples.split_off(samples.len() - samples.len() / 4);
        if !self.held_back.samples.is_empty() {
            return Ok(());
        }
        let message = "a budget is measured on data that calibration does not see: give it with --held-back (a quarter of \
                       --data is taken where that has at least 4 samples)";
        Err(Error::Usage(message.into()))
    }

    /// A language model as an ONNX model, with texts or arrays for it.
    fn of_checkpoint(
        args: &Args,
        subject: &checkpoint::Model,
        place: (CpuLevel, usize),
        observer: &mut Progress,
    ) -> Result<Subject, Error> {
        let budget = args.machinery.budget();
        let (model, bounds) = match subject {
            checkpoint::Model::Decoder(decoder) => {
                quantize::decoder_onnx(decoder, decoder.context().min(DEFAULT_CONTEXT))?
            }
            checkpoint::Model::Encoder(folder) => quantize::encoder_onnx(folder)?,
        };
        let mut of_text = |path: &Path| -> Result<Data, Error> {
            let text = super::read(path)?;
            let samples = match subject {
                checkpoint::Model::Decoder(decoder) => {
                    let mut tokens = decoder.tokenizer().encode(&text, false)?;
                    let window = (args.window as usize).min(decoder.context());
                    tokens.truncate((args.samples as usize).max(window));
                    quantize::decoder_samples(&model, &tokens, window)?
                }
                checkpoint::Model::Encoder(folder) => {
                    let texts = checkpoint::lines(&text);
                    quantize::encoder_samples(folder, &model, &texts, place, &budget, observer)?
                }
            };
            Ok(Data { samples, hash: Some(quantize::text_hash(&text)) })
        };
        let mut read = |text: Option<&Path>, arrays: &[std::path::PathBuf]| match (text, arrays) {
            (Some(text), []) => of_text(text),
            (None, []) => Ok(Data::default()),
            (None, arrays) => samples(&model, arrays, &args.channels()?, &budget)
                .map(|(samples, hash)| Data { samples, hash: Some(hash) }),
            (Some(_), _) => Err(Error::Usage("give calibration data with --text or with --data, not both".into())),
        };
        let calibration = read(args.text.as_deref(), &args.data)?;
        let arrays = args.held_back.iter().any(|p| p.is_dir() || p.extension().is_some_and(|e| e == "npz"));
        let held_back = match args.held_back.as_slice() {
            [one] if !arrays => read(Some(one), &[])?,
            paths => read(None, paths)?,
        };
        Ok(Subject { model, bounds, calibration, held_back })
    }
}

/// What each layer becomes.
fn chosen(args: &Args, layers: &[Layer], choices: &[usize], grids: &[Grid]) -> BTreeMap<String, Option<Grid>> {
    let grid = |layer: &Layer, choice: usize| told(args, layer).unwrap_or(grids.get(choice).copied());
    layers.iter().zip(choices).map(|(l, &c)| (l.node.clone(), grid(l, c))).collect()
}

/// What `--layer` says of a layer.
fn told(args: &Args, layer: &Layer) -> Option<Option<Grid>> {
    args.told(&[&layer.node, &layer.weights])
}

/// Writes a model as an artifact or as ONNX; its size.
fn write(args: &Args, mut model: Model, emit: Emit, bounds: &Bounds, talk: Talk) -> Result<u64, Error> {
    let output = &args.output;
    match emit {
        Emit::Onnx => {
            raise(&mut model)?;
            let bytes = encode(&model, ("kiln", kiln::VERSION)).map_err(|e| match e {
                WriteError::TooLarge(_) => Error::Limit(e.to_string()),
                WriteError::Initializer(_) => Error::Internal(e.to_string()),
            })?;
            data::write(output, &bytes)?;
            Ok(bytes.len() as u64)
        }
        Emit::Artifact => {
            let options = args.machinery.options(args.machinery.artifact_levels(), BTreeMap::new())?;
            let options = with_bounds(options, bounds);
            kiln::compile(&model, &options, &mut Progress::new(talk))?.write(output)
        }
    }
}

struct Budget<'a> {
    args: &'a Args,
    talk: Talk,
    /// What the budget compares with: the model before anything was done to it, and the data as it takes them.
    before: (&'a Model, &'a [Sample]),
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
            let (bytes, error) = match told(self.args, layer) {
                None => self.prepared.costs(layer, self.grids)?,
                // It costs the same whatever the search chooses for it.
                Some(grid) => {
                    let (bytes, _) = self.prepared.costs(layer, grid.as_slice())?;
                    (vec![bytes.first().copied().unwrap_or_default(); self.grids.len() + 1], 0.0)
                }
            };
            candidates.push(Candidate { name: layer.node.clone(), bytes, error });
        }
        let max_drop = self.args.max_drop()?;
        let quantized = |choices: &[usize]| {
            let chosen = chosen(self.args, layers, choices, self.grids);
            self.prepared.quantized(&|layer| chosen.get(&layer.node).copied().flatten())
        };
        let found = match metric {
            Metric::Command(command) => {
                let most = self.args.measure_layers.unwrap_or(MOST_MEASURED_BY_COMMAND);
                let (mut run, runs) = (0, 1 + budget::most_measured(&candidates, most));
                self.talk.say(format_args!("the metric's command is run at most {runs} times"));
                let mut told = |model: Model| {
                    run += 1;
                    observer.stage(&format!("the metric's command: run {run} of at most {runs}"));
                    self.told(command, model)
                };
                let before = told(self.before.0.clone())?;
                let mut measure = |choices: &[usize]| {
                    let value = told(quantized(choices)?.0)?;
                    Ok(Measured { value, drop: before - value, half_interval: None })
                };
                budget::search(&candidates, max_drop, most, &mut measure)?
            }
            Metric::Cosine | Metric::Top1 | Metric::MeanSquare | Metric::Perplexity => {
                let before = self.runs.outputs(self.before.0, self.before.1, observer)?;
                let shapes = |all: &[Vec<kiln::ir::Tensor>]| -> Vec<Vec<usize>> {
                    all.first().into_iter().flatten().map(|t| t.shape().to_vec()).collect()
                };
                let whole = shapes(&before);
                let mut measure = |choices: &[usize]| {
                    let after = self.runs.outputs(&quantized(choices)?.0, self.held_back, observer)?;
                    if shapes(&after) != whole && matches!(metric, Metric::Cosine | Metric::MeanSquare) {
                        return Err(Error::Unsupported(format!(
                            "{} compares all outputs, and a decoder with fewer layers or heads has other caches; measure perplexity",
                            metric.name()
                        )));
                    }
                    compare(metric, &before, &after, self.held_back)
                };
                let most = self.args.measure_layers.unwrap_or(MOST_MEASURED);
                budget::search(&candidates, max_drop, most, &mut measure)?
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
