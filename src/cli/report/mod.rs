//! `kiln report`: all that is known of a compiled model as one HTML page.
//!
//! Invariant: the page holds everything that it shows: it loads nothing, and what it says was measured or recorded by the same
//! code as the other commands' reports.

mod contents;
mod listing;
mod page;

use super::Talk;
use super::compare::{self, Layer};
use super::explain::Reader;
use super::options::{self, Inputs, Machinery, Ready, Request, Watching};
use super::profile::{Setting, counters, json as profile_json};
use clap::Args as ClapArgs;
use contents::{Accuracy, Contents};
use kiln::data::{self, From};
use kiln::gpu::{self, Architecture, Precision};
use kiln::ir::Tensor;
use kiln::notes::Notes;
use kiln::profile::{Effort, profile};
use kiln::runtime::artifact::{self, Artifact};
use kiln::runtime::cpu::CpuLevel;
use kiln::runtime::engine::{Context, LoadError, Model, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::tune::{places, record};
use kiln::{Compiled, Error, Source, peaks, provenance};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Write one HTML page about a compiled model: graph, memory, roofline, machine code, accuracy, tuning
///
/// The page needs no network and no other file. The model is run and measured as by `kiln profile`; its values are compared as by
/// `kiln compare`, with the portable code of the same model where nothing else is given.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model or an artifact
    model: PathBuf,
    /// The page to write
    #[arg(short, long, value_name = "F.html")]
    output: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Time to measure for
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// Runs to measure [default: as many as fit in --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,
    /// Compare values with this model or artifact instead of the portable code
    #[arg(long, value_name = "MODEL")]
    against: Option<PathBuf>,
    /// Show the trials of a tuning database (see `kiln tune`); several times for several
    #[arg(long, value_name = "F.jsonl")]
    tuning: Vec<PathBuf>,
    /// Show PTX for this GPU architecture too (models only)
    #[arg(long, value_name = "SM")]
    target: Option<Architecture>,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// A model that can run, with what the compiler knows of it where it was just compiled.
struct Subject {
    artifact: Arc<Artifact>,
    model: Model,
    inputs: Vec<Tensor>,
    budget: Budget,
    compiled: Option<Compiled>,
    gpu: Option<gpu::Compiled>,
}

impl Subject {
    /// The hashes of the places where fusion and layout have a choice, and of those where a measurement decided.
    fn places(&self) -> Result<BTreeSet<String>, Error> {
        let decided = provenance::tuning(self.artifact.options())?.of_boundaries();
        let mut all: BTreeSet<String> = decided.choices.into_keys().map(|(place, _)| place).collect();
        all.extend(self.compiled.iter().flat_map(places::places).map(|place| place.kernel));
        Ok(all)
    }
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let time = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Error::Usage(format!("--seconds {} is no time", self.seconds)))?;
        data::writable(&self.output)?;
        let records = self.tuning.iter().map(|path| record::read(path)).collect::<Result<Vec<_>, _>>()?.concat();
        let subject = self.subject(talk)?;
        let (model, threads) = (&subject.model, self.machinery.threads());
        let peaks = peaks::measure(model.level(), threads, &subject.budget)?;
        let counters = counters::open();
        let mut context = Context::new(model, threads, &subject.budget)?;
        context.load(&subject.inputs)?;
        let effort = Effort { time, runs: self.runs.and_then(|n| usize::try_from(n).ok()) };
        let profile = profile(&mut context, model.plan(), model.kernels(), effort)?;
        let counted = counters::count(counters, &mut context, model.plan().steps.len())?;
        let dims = context.dims().to_vec();
        drop(context);
        let setting = Setting { level: model.level().name(), threads, path: &self.model };
        let measured = profile_json(&profile, &peaks, &counted, &setting);
        let accuracy = self.accuracy(&subject, talk)?;
        let notes = Notes::parse(subject.artifact.text(artifact::NOTES).map_err(LoadError::Artifact)?)?;
        let explained = match &subject.compiled {
            Some(compiled) => {
                let reader = Reader::new(compiled, model.level())?;
                (0..compiled.plan.kernels.len()).map(|k| reader.json(k)).collect()
            }
            None => Vec::new(),
        };
        let name = self.model.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let contents = Contents {
            model,
            name,
            notes: &notes,
            dims: &dims,
            measured,
            explained,
            accuracy,
            records: &records,
            places: subject.places()?,
            gpu: subject.gpu.as_ref(),
        };
        let data = contents.json()?;
        let html = page::html(&data)?;
        data::write(&self.output, html.as_bytes())?;
        talk.say(format_args!("{}: {:.2} MB", self.output.display(), html.len() as f64 / 1e6));
        talk.report_if_json(&json!({ "report": self.output.display().to_string(), "bytes": html.len() }))
    }

    fn subject(&self, talk: Talk) -> Result<Subject, Error> {
        match Source::open(&self.model)? {
            Source::Artifact(path) => {
                if self.target.is_some() {
                    return Err(options::compiled_already("--target", &path));
                }
                let Ready { model, inputs, budget, .. } = options::ready(self.request(&self.model), talk)?;
                Ok(Subject { artifact: Arc::clone(model.artifact()), model, inputs, budget, compiled: None, gpu: None })
            }
            source @ Source::Model { .. } => {
                let (machinery, budget) = (&self.machinery, self.machinery.budget());
                let level = machinery.level_here()?;
                let onnx = source.model(&machinery.limits())?;
                let from = Some(self.inputs.from().unwrap_or(From::Seed(0)));
                let levels = vec![CpuLevel::Portable, level];
                let (mut options, inputs) = options::with_inputs(&onnx, machinery, from, levels, &budget)?;
                let named = options::by_name(&onnx, &inputs);
                let mut compiled = loop {
                    match options::compile(&onnx, &options, &self.watching, machinery, talk) {
                        Err(error) if options.learn(&error, &named) => {}
                        done => break done?,
                    }
                };
                let mut gpu = None;
                if let Some(target) = self.target {
                    let mut observer = self.watching.observers(machinery, talk)?;
                    gpu = Some(gpu::compile(&onnx, &options, (target, Precision::F32), &mut observer)?);
                }
                if let Source::Model { bytes, .. } = &source {
                    compiled.record_model(bytes, &onnx);
                }
                let artifact = Arc::new(compiled.to_artifact()?);
                // Levels that would be the code of another one are left out by the compiler.
                let levels = compiled.code.last().map(|code| vec![code.level]);
                let model = Model::new(Arc::clone(&artifact), &ModelOptions { levels, ..ModelOptions::default() })?;
                Ok(Subject { artifact, model, inputs, budget, compiled: Some(compiled), gpu })
            }
        }
    }

    fn request<'a>(&'a self, path: &'a std::path::Path) -> Request<'a> {
        let inputs = Some(self.inputs.from().unwrap_or(From::Seed(0)));
        let (machinery, watching) = (&self.machinery, &self.watching);
        Request { path, machinery, watching, inputs, taps: &[], archive: false, entry: None }
    }

    /// The values of the subject beside those of what it is compared with.
    fn accuracy(&self, subject: &Subject, talk: Talk) -> Result<Accuracy, Error> {
        let threads = self.machinery.threads();
        let other: (String, BTreeMap<String, Layer>) = match &self.against {
            Some(path) => {
                let Ready { model, .. } = options::ready(self.request(path), talk)?;
                let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
                (name, compare::layers(&model, &subject.inputs, threads, &subject.budget)?)
            }
            None => {
                let level = subject.artifact.levels().next().filter(|&l| l != subject.model.level());
                let Some(level) = level else {
                    let there = subject.model.level();
                    return Ok(Accuracy::None(format!(
                        "there is no code but that for {there}; --against gives another model"
                    )));
                };
                let options = ModelOptions { levels: Some(vec![level]), ..ModelOptions::default() };
                let model = Model::new(Arc::clone(&subject.artifact), &options)?;
                let layers = compare::layers(&model, &subject.inputs, threads, &subject.budget)?;
                (format!("the same model's code for {level}"), layers)
            }
        };
        let own = compare::layers(&subject.model, &subject.inputs, threads, &subject.budget)?;
        Ok(Accuracy::Compared { with: other.0, own, other: other.1 })
    }
}
