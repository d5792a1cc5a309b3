//! Options that several commands take, and what they come to.
//!
//! Invariant: an option that makes no sense with what it is given is an error, never ignored.

use super::Talk;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use kiln::data::{self, From, Wanted};
use kiln::ir::Tensor;
use kiln::ir::interp::limits;
use kiln::lm::LanguageModel;
use kiln::notes::Notes;
use kiln::npz;
use kiln::observe::{Dump, Several, VerifyEach};
use kiln::onnx::model::{Limits, Model as OnnxModel, ValueType};
use kiln::runtime::artifact::{self, Artifact};
use kiln::runtime::cpu::{CpuLevel, Machine};
use kiln::runtime::engine::{self, LoadError, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::{Activations, Compiled, Error, Observer, Options, Source};
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Options of everything that compiles or runs.
#[derive(Clone, Debug, Args)]
pub struct Machinery {
    /// CPU levels: portable, x86-64-v3, x86-64-v3-vnni, x86-64-v4, x86-64-v4-vnni, x86-64-v4-bf16, x86-64-v4-amx
    #[arg(long, value_delimiter = ',', value_name = "LEVEL,...")]
    pub cpu: Vec<CpuLevel>,
    /// How precisely products with weights are computed: f32, f32-fast (on AMX alone as three products of bf16), strict
    /// (multiply-adds alone), bf16 (both factors rounded, sums in f32; on AMX attention's too); on GPUs also f16, tf32, and f32-fast is three products of tf32
    #[arg(long, default_value = "f32", value_name = "P")]
    pub precision: String,
    /// What activations are rounded to where they meet weights of few bits: f32 (not at all), int8 (a scale for each block), allowed
    /// (int8 where an ONNX model's MatMulNBits has accuracy_level 4)
    #[arg(id = "round-activations", long, default_value_t = Activations::F32, value_name = "A")]
    pub activations: Activations,
    /// Whether it is for a GPU, which has other precisions.
    #[arg(skip)]
    pub gpu: bool,
    #[command(flatten)]
    pub binding: Binding,
    /// Threads, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub threads: Option<u64>,
}

/// Options of everything that reads a model.
#[derive(Clone, Debug, Args)]
pub struct Binding {
    /// Fix a symbolic dim, or bound it; several times for several dims
    #[arg(long, value_name = "DIM=N|DIM=A..B", value_parser = parse_bind)]
    pub bind: Vec<(String, (i64, i64))>,
    /// Most memory for weights, arena, inputs and outputs, such as 512M or 8G
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub memory_limit: Option<u64>,
}

/// A language model with what it was adapted by.
#[derive(Clone, Debug, Args)]
pub struct Adapted {
    /// Merge an adapter of low rank (LoRA) into the weights: a folder with adapter_config.json and adapter_model.safetensors
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

impl Adapted {
    /// The model at a path, adapted if that is asked for.
    pub fn open(&self, model: &Path) -> Result<LanguageModel, Error> {
        self.applied(LanguageModel::open(model)?)
    }

    /// The model, adapted if that is asked for.
    pub fn applied(&self, model: LanguageModel) -> Result<LanguageModel, Error> {
        self.adapter.iter().try_fold(model, |model, folder| model.with_adapter(folder))
    }

    /// Refuses an adapter for a model that answers a text by another.
    pub fn only_decoders(&self) -> Result<(), Error> {
        match &self.adapter {
            Some(_) => Err(Error::Usage("--adapter is for decoders; this model answers a text by another".into())),
            None => Ok(()),
        }
    }
}

/// Options of everything that may take long.
#[derive(Clone, Debug, Args)]
pub struct Patience {
    /// Most seconds that the command may take; polled at every step of a run and of a loop (exit code 6)
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    timeout: Option<Duration>,
}

impl Patience {
    /// Runs `f` until the time is up, if it is limited.
    pub fn within<T>(&self, f: impl FnOnce() -> T) -> T {
        let deadline = self.timeout.and_then(|t| Instant::now().checked_add(t));
        limits::scope(limits::Limits { deadline, ..limits::Limits::default() }, f)
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|s| *s >= 0.0);
    let time = seconds.and_then(|s| Duration::try_from_secs_f64(s).ok());
    time.ok_or_else(|| format!("{text:?} is no number of seconds"))
}

/// Options of what watches a compilation.
#[derive(Clone, Debug, Args)]
pub struct Watching {
    /// Write the text form of every stage to a folder
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Interpret the graph before and after each pass and name the pass that changes results
    #[arg(long)]
    pub verify_each: bool,
}

impl Watching {
    /// What watches a compilation: the progress bar, and what was asked for.
    ///
    /// # Errors
    /// The folder of dumps cannot be made.
    pub fn observers(&self, machinery: &Machinery, talk: Talk) -> Result<Several, Error> {
        let mut observers = Several::default();
        observers.0.push(Box::new(Progress::new(talk)));
        if let Some(folder) = &self.dump {
            observers.0.push(Box::new(Dump::new(folder)?));
        }
        if self.verify_each {
            observers.0.push(Box::new(VerifyEach { seed: 0, budget: machinery.binding.memory_limit }));
        }
        Ok(observers)
    }

    /// The option that is given, if there is one.
    pub fn given(&self) -> Option<&'static str> {
        self.dump.as_ref().map(|_| "--dump").or(self.verify_each.then_some("--verify-each"))
    }
}

/// The error for an option that an artifact cannot heed.
pub fn compiled_already(option: &str, path: &Path) -> Error {
    Error::Usage(format!("{option} needs the model; {} is compiled already", path.display()))
}

/// Where inputs come from.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub struct Inputs {
    /// Take inputs from an archive, key = input name
    #[arg(long, value_name = "F.npz")]
    pub inputs: Option<PathBuf>,
    /// Take inputs from a folder of input_i.pb files, as in ONNX's test_data_set folders
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Make inputs: floats N(0,1), integers 0 or 1, unbound dims 1
    #[arg(long, value_name = "SEED")]
    pub random: Option<u64>,
}

impl Inputs {
    /// Where inputs come from, if it is said.
    pub fn from(&self) -> Option<From> {
        let npz = self.inputs.clone().map(From::Npz);
        npz.or_else(|| self.data.clone().map(From::Folder)).or_else(|| self.random.map(From::Seed))
    }
}

impl Binding {
    /// Limits of reading a model.
    pub fn limits(&self) -> Limits {
        let limits = Limits::default();
        let decoded_bytes = self.memory_limit.map_or(limits.decoded_bytes, |m| m.min(limits.decoded_bytes));
        Limits { decoded_bytes, ..limits }
    }

    /// The bounds of symbolic dims by name.
    pub fn bind(&self) -> Result<BTreeMap<String, (i64, i64)>, Error> {
        let mut bind = BTreeMap::new();
        for (name, range) in &self.bind {
            if bind.insert(name.clone(), *range).is_some_and(|other| other != *range) {
                return Err(Error::Usage(format!("--bind gives {name} twice")));
            }
        }
        Ok(bind)
    }
}

impl Machinery {
    /// Memory that may be used.
    pub fn budget(&self) -> Budget {
        self.binding.memory_limit.map_or_else(Budget::unlimited, Budget::new)
    }

    /// Threads to run on.
    pub fn threads(&self) -> usize {
        let all = || std::thread::available_parallelism().map_or(1, usize::from);
        self.threads.and_then(|t| usize::try_from(t).ok()).unwrap_or_else(all)
    }

    /// Limits of reading a model.
    pub fn limits(&self) -> Limits {
        self.binding.limits()
    }

    /// The option that is given and that only a compilation can heed, if there is one.
    pub fn compiles(&self) -> Option<&'static str> {
        let given = [
            (!self.cpu.is_empty(), "--cpu"),
            (!self.binding.bind.is_empty(), "--bind"),
            (self.threads.is_some(), "--threads"),
            (self.precision != "f32", "--precision"),
            (self.activations != Activations::F32, "--round-activations"),
        ];
        given.into_iter().find(|(given, _)| *given).map(|(_, option)| option)
    }

    /// Refuses activations in another form where that cannot be chosen.
    ///
    /// # Errors
    /// [`Error::Usage`] that says for what.
    pub fn activations_of_model(&self, what: &str) -> Result<(), Error> {
        if self.activations == Activations::F32 {
            return Ok(());
        }
        let chosen = self.activations;
        Err(Error::Usage(format!(
            "--round-activations {chosen} is for ONNX models, decoders and encoder-decoders to compile, not for {what}"
        )))
    }

    /// The precision of products on CPUs; f32 where it is for a GPU, whose own must then be known.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where there is none of that name.
    pub fn checked_precision(&self) -> Result<kiln::Precision, Error> {
        if self.gpu {
            return kiln::gpu::Precision::parse(&self.precision).map(|_| kiln::Precision::F32);
        }
        self.precision.parse().map_err(|e: kiln::UnknownPrecision| Error::Unsupported(e.to_string()))
    }

    /// The options of a compilation for `levels`.
    pub fn options(&self, levels: Vec<CpuLevel>, shapes: BTreeMap<String, Vec<usize>>) -> Result<Options, Error> {
        Ok(Options {
            bind: self.binding.bind()?,
            shapes,
            values: BTreeMap::new(),
            precision: self.checked_precision()?,
            levels,
            taps: Vec::new(),
            threads: self.threads(),
            memory_limit: self.binding.memory_limit.unwrap_or(u64::MAX),
            tuning: Default::default(),
            activations: self.activations,
        })
    }

    /// The levels to compile an artifact for.
    pub fn artifact_levels(&self) -> Vec<CpuLevel> {
        if self.cpu.is_empty() { kiln::default_levels() } else { self.cpu.clone() }
    }

    /// The one level to compile for that runs here.
    pub fn level_here(&self) -> Result<CpuLevel, Error> {
        let wanted = self.artifact_levels();
        let list = |levels: &[CpuLevel]| levels.iter().map(|l| l.name()).collect::<Vec<_>>().join(", ");
        Machine::detect().choose(wanted.iter().copied()).ok_or_else(|| {
            let here: Vec<_> = Machine::detect().levels().collect();
            let here = if here.is_empty() { "none".into() } else { list(&here) };
            Error::Unsupported(format!("the CPU level {} does not run on this machine; it has {here}", list(&wanted)))
        })
    }

    /// How an artifact is loaded.
    pub fn load_options(&self) -> Result<ModelOptions, Error> {
        self.checked_precision()?;
        self.activations_of_model("an artifact")?;
        let levels = (!self.cpu.is_empty()).then(|| self.cpu.clone());
        Ok(ModelOptions { levels, ..ModelOptions::default() })
    }
}

/// What is asked of [`ready`].
pub struct Request<'a> {
    /// A model or an artifact.
    pub path: &'a Path,
    /// How to compile or load it.
    pub machinery: &'a Machinery,
    /// What watches the compilation.
    pub watching: &'a Watching,
    /// Where inputs come from.
    pub inputs: Option<From>,
    /// Nodes and values that become outputs.
    pub taps: &'a [String],
    /// Whether the outputs go to an archive, which cannot hold values of every type.
    pub archive: bool,
    /// Which of an artifact's programs; without a name the first.
    pub entry: Option<&'a str>,
}

/// A model that is ready to run, and inputs for it.
pub struct Ready {
    /// The model.
    pub model: engine::Model,
    /// The inputs, in order.
    pub inputs: Vec<Tensor>,
    /// The types of the outputs as the model declares them; those that were tapped follow without one.
    pub declared: Vec<Option<ValueType>>,
    /// Memory that may be used.
    pub budget: Budget,
}

/// Refuses an output that no archive can hold.
fn held(name: &str, ty: &ValueType) -> Result<(), Error> {
    if npz::holds(ty) {
        return Ok(());
    }
    Err(Error::Usage(format!("output {name:?} is {ty}, which no .npz file can hold; use --output DIR/")))
}

/// An option that was given and that only a model can follow, not an artifact.
pub fn of_models(machinery: &Machinery, taps: &[String], watching: &Watching) -> Option<&'static str> {
    let bound = (!machinery.binding.bind.is_empty()).then_some("--bind");
    let tapped = (!taps.is_empty()).then_some("--tap");
    bound.or(tapped).or(watching.given())
}

/// The entry of that name, or the first.
fn named_entry(artifact: &Artifact, name: Option<&str>) -> Result<String, Error> {
    let Some(name) = name else { return Ok(String::new()) };
    match artifact.entries().any(|entry| entry == name) {
        true => Ok(name.into()),
        false => {
            let there: Vec<&str> = artifact.entries().filter(|entry| !entry.is_empty()).collect();
            let there = if there.is_empty() { "none with a name".into() } else { there.join(", ") };
            Err(Error::Usage(format!(
                "the artifact has no program {name:?}; there are {there}, and the first without a name"
            )))
        }
    }
}

/// Loads an artifact, or compiles a model for this machine, with inputs.
///
/// # Errors
/// [`Error::Usage`] where options do not go together, [`Error`] of reading inputs, compiling and loading.
pub fn ready(request: Request<'_>, talk: Talk) -> Result<Ready, Error> {
    let Request { path, machinery, watching, inputs, taps, archive, entry } = request;
    let budget = machinery.budget();
    match Source::open(path)? {
        Source::Artifact(path) => {
            if let Some(option) = of_models(machinery, taps, watching) {
                return Err(compiled_already(option, &path));
            }
            let artifact =
                Arc::new(Artifact::open(&path, &artifact::LoadOptions::default()).map_err(LoadError::Artifact)?);
            let entry = named_entry(&artifact, entry)?;
            let options = ModelOptions { entry: entry.clone(), ..machinery.load_options()? };
            let model = engine::Model::new(artifact, &options)?;
            let notes = artifact::of_entry(&entry, artifact::NOTES);
            let text = model.artifact().text(&notes).map_err(LoadError::Artifact)?;
            let notes = Notes::parse(text)?;
            let outputs = data::declared_types(model.plan(), &model.plan().outputs, &notes.outputs)?;
            if archive {
                outputs.iter().try_for_each(|o| held(&o.name, &o.ty))?;
            }
            let wanted = data::declared_types(model.plan(), &model.plan().inputs, &notes.inputs)?;
            let shape = |name: &str| data::unit_shape(model.plan(), name);
            let inputs = read_inputs(inputs, &wanted, &shape, &budget)?;
            let declared = outputs.into_iter().map(|o| Some(o.ty)).collect();
            Ok(Ready { model, inputs, declared, budget })
        }
        source @ Source::Model { .. } => {
            if entry.is_some() {
                return Err(Error::Usage("--entry is for artifacts; a model has one program".into()));
            }
            let level = machinery.level_here()?;
            let onnx = source.model(&machinery.limits())?;
            if archive {
                let typed = onnx.graph.outputs.iter().filter_map(|o| Some((&o.name, o.ty.as_ref()?)));
                typed.into_iter().try_for_each(|(name, ty)| held(name, ty))?;
            }
            let (mut options, inputs) = with_inputs(&onnx, machinery, inputs, vec![level], &budget)?;
            options.taps = taps.to_vec();
            let named = by_name(&onnx, &inputs);
            let compiled = loop {
                match compile(&onnx, &options, watching, machinery, talk) {
                    Err(error) if options.learn(&error, &named) => {}
                    done => break done?,
                }
            };
            let model = compiled.load(&ModelOptions::default())?;
            let outputs = data::types(model.plan(), &model.plan().outputs);
            if archive {
                outputs.iter().try_for_each(|o| held(&o.name, &o.ty))?;
            }
            let declared = onnx.graph.outputs.iter().map(|o| o.ty.clone()).collect();
            Ok(Ready { model, inputs, declared, budget })
        }
    }
}

/// The dims to compile for, where inputs fix them.
#[derive(Clone, Debug, Default, Args)]
#[group(multiple = false)]
pub struct Shapes {
    /// Fix all dims to those of these inputs (their values are not used)
    #[arg(long, value_name = "F.npz")]
    pub inputs: Option<PathBuf>,
    /// Fix all dims to those of the input_i.pb files in a folder
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

impl Shapes {
    /// The options of a compilation for `levels` with these dims.
    ///
    /// # Errors
    /// The inputs cannot be read or are not the model's, or options do not go together.
    pub fn options(
        &self,
        onnx: &OnnxModel,
        machinery: &Machinery,
        levels: Vec<CpuLevel>,
        budget: &Budget,
    ) -> Result<Options, Error> {
        let from = self.inputs.clone().map(From::Npz).or_else(|| self.data.clone().map(From::Folder));
        match from {
            Some(from) => Ok(with_inputs(onnx, machinery, Some(from), levels, budget)?.0),
            None => machinery.options(levels, BTreeMap::new()),
        }
    }
}

/// Inputs by name.
pub fn by_name(onnx: &OnnxModel, inputs: &[Tensor]) -> BTreeMap<String, Tensor> {
    data::wanted(onnx).into_iter().map(|w| w.name).zip(inputs.iter().cloned()).collect()
}

/// Inputs of a model, and the options of a compilation for their shapes.
pub fn with_inputs(
    onnx: &OnnxModel,
    machinery: &Machinery,
    from: Option<From>,
    levels: Vec<CpuLevel>,
    budget: &Budget,
) -> Result<(Options, Vec<Tensor>), Error> {
    let wanted = data::wanted(onnx);
    let mut options = machinery.options(levels, BTreeMap::new())?;
    let unit = kiln::source::unit_shapes(onnx, &options.bind);
    let inputs = read_inputs(from, &wanted, &|name| unit.get(name).cloned(), budget)?;
    let dense = wanted.iter().zip(&inputs).filter(|(_, tensor)| tensor.tensors().is_none());
    let shapes = dense.map(|(w, t)| (w.name.clone(), t.shape().to_vec()));
    options.shapes = shapes.collect();
    Ok((options, inputs))
}

/// Inputs of these names and types.
///
/// # Errors
/// [`Error::Usage`] where none are given; those of reading them.
pub fn read_inputs(
    from: Option<From>,
    wanted: &[Wanted],
    shape: &dyn Fn(&str) -> Option<Vec<usize>>,
    budget: &Budget,
) -> Result<Vec<Tensor>, Error> {
    match from {
        Some(from) => data::inputs(&from, wanted, shape, budget),
        None if wanted.is_empty() => Ok(Vec::new()),
        None => {
            let names: Vec<String> = wanted.iter().map(|w| format!("{} {}", w.name, w.ty)).collect();
            let names = names.join(", ");
            Err(Error::Usage(format!("give inputs with --inputs, --data or --random; the model takes {names}")))
        }
    }
}

/// Compiles with what `watching` asks for.
pub fn compile(
    onnx: &OnnxModel,
    options: &Options,
    watching: &Watching,
    machinery: &Machinery,
    talk: Talk,
) -> Result<Compiled, Error> {
    kiln::compile(onnx, options, &mut watching.observers(machinery, talk)?)
}

/// Shows on a terminal which stage runs, and logs how long each took.
pub struct Progress {
    bar: Option<ProgressBar>,
    since: Option<(String, std::time::Instant)>,
}

impl Progress {
    /// For a command that talks so.
    pub fn new(talk: Talk) -> Progress {
        let bar = (!talk.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Progress { bar, since: None }
    }

    fn end(&mut self) {
        if let Some((stage, since)) = self.since.take() {
            tracing::info!("{stage}: {:.3} s", since.elapsed().as_secs_f64());
        }
    }
}

impl Observer for Progress {
    fn stage(&mut self, name: &str) {
        self.end();
        self.since = Some((name.to_string(), std::time::Instant::now()));
        if let Some(bar) = &self.bar {
            bar.set_message(name.to_string());
        }
    }

    fn graph(&mut self, pass: &str, _: &kiln::ir::Graph, after: &kiln::ir::Graph) -> Result<(), Error> {
        tracing::debug!("{pass}: {} nodes", after.nodes().len());
        Ok(())
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn parse_bind(text: &str) -> Result<(String, (i64, i64)), String> {
    let (name, value) = text.rsplit_once('=').ok_or("it must be DIM=N or DIM=A..B")?;
    let number = |s: &str| match s.parse::<i64>() {
        Ok(n) if n >= 0 => Ok(n),
        Ok(_) | Err(_) => Err(format!("{s:?} is no extent")),
    };
    let range = match value.split_once("..") {
        Some((lo, hi)) => (number(lo)?, number(hi)?),
        None => (number(value)?, number(value)?),
    };
    if name.is_empty() || range.0 > range.1 {
        return Err("it must be DIM=N or DIM=A..B with A at most B".into());
    }
    Ok((name.to_string(), range))
}

pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default().to_ascii_uppercase().as_str() {
        "" | "B" => 1u64,
        "K" | "KB" | "KIB" => 1 << 10,
        "M" | "MB" | "MIB" => 1 << 20,
        "G" | "GB" | "GIB" => 1 << 30,
        "T" | "TB" | "TIB" => 1 << 40,
        other => return Err(format!("{other:?} is no unit; there are K, M, G and T")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size"))?;
    number.checked_mul(unit).ok_or_else(|| format!("{text:?} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_bindings_parse() {
        assert_eq!(parse_size("8G"), Ok(8 << 30));
        assert_eq!(parse_size("512m"), Ok(512 << 20));
        assert_eq!(parse_size("77"), Ok(77));
        assert!(parse_size("8X").is_err() && parse_size("G").is_err() && parse_size("99999999999T").is_err());
        assert_eq!(parse_bind("batch=8"), Ok(("batch".into(), (8, 8))));
        assert_eq!(parse_bind("seq=1..512"), Ok(("seq".into(), (1, 512))));
        assert_eq!(parse_bind("a=b=2"), Ok(("a=b".into(), (2, 2))));
        assert!(parse_bind("x").is_err() && parse_bind("x=-1").is_err() && parse_bind("x=5..2").is_err());
    }
}
