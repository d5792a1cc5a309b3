//! `kiln compile`: a model to an artifact.

use super::Talk;
use super::generate::DEFAULT_CONTEXT;
use super::options::{self, Adapted, Machinery, Shapes, Watching};
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args as ClapArgs, ValueEnum};
use kiln::data;
use kiln::gpu::{self, Precision, Target};
use kiln::ir::plan::Step;
use kiln::library::{Form, LibraryOptions, Written};
use kiln::lm::{LanguageModel, Opened};
use kiln::nn::CacheElement;
use kiln::onnx::model::Model;
use kiln::tune::record::{self, Tuning};
use kiln::{Compiled, Error, Options, Source, provenance};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Emit {
    /// An artifact, which `kiln run` and Kiln's runtime library run
    Kiln,
    /// A shared object with C functions
    So,
    /// A relocatable object with C functions
    Obj,
    /// A static library with C functions
    Staticlib,
}

impl Emit {
    /// The form of a library, if it is one.
    fn form(self) -> Option<Form> {
        match self {
            Emit::Kiln => None,
            Emit::So => Some(Form::Shared),
            Emit::Obj => Some(Form::Object),
            Emit::Staticlib => Some(Form::Static),
        }
    }
}

/// Compile a model to an artifact, or to a library that C programs link or load
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model; or a language model (a GGUF file, or a folder with config.json), for `kiln generate`
    model: PathBuf,
    /// The file to write, such as net.kiln or libnet.so; beside a library come net.h, net.pc and net-config.cmake
    #[arg(short, long, value_name = "OUT", default_value = "", hide_default_value = true)]
    #[arg(value_parser = OsStringValueParser::new().map(PathBuf::from))]
    output: PathBuf,
    /// Make PTX for GPU architectures too (sm_80, sm_86, sm_89, sm_90, sm_90a, sm_100, sm_120), into the artifact beside the code for
    /// CPUs, each with a precision of its own where one is given: sm_80:f16; without --output into the folder of --dump, for one
    #[arg(long, value_name = "SM[:P],...", value_delimiter = ',')]
    target: Vec<Target>,
    /// What to write
    #[arg(long, value_enum, default_value_t = Emit::Kiln)]
    emit: Emit,
    /// What the names of a library's functions begin with [default: the name of its file]
    #[arg(long, value_name = "NAME")]
    prefix: Option<String>,
    /// Keep a library's weights in a file of their own, which the program maps and hands over
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    shapes: Shapes,
    /// Tokens of prompt and continuation together that a language model is to have room for
    /// [default: what it was trained for, up to 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
    #[command(flatten)]
    adapted: Adapted,
    /// What a language model keeps keys and values in: f32, f16, bf16, int8 (with a scale for each head of each token) [default: f32]
    #[arg(long, value_name = "E")]
    cache: Option<CacheElement>,
    /// Take schedules from a tuning database (see `kiln tune`); several times for several
    #[arg(long, value_name = "F.jsonl")]
    tuning: Vec<PathBuf>,
    /// Keep seeded inputs and the portable level's outputs in the artifact, for `kiln selftest`
    #[arg(long)]
    golden: bool,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let output = !self.output.as_os_str().is_empty();
        let dumped = match (self.target.as_slice(), output) {
            (_, true) => None,
            ([target], false) if self.watching.dump.is_some() => Some(*target),
            (_, false) => return Err(Error::Usage("give --output, or one --target with --dump".into())),
        };
        if output {
            data::writable(&self.output)?;
        }
        self.check_emit()?;
        let of_cpu = self.machinery.checked_precision();
        let target = match &of_cpu {
            Err(_) => self.target.first(),
            // What means something for both is for the CPU's code alone.
            Ok(kiln::Precision::F32Fast) => self.target.iter().find(|t| t.precision.is_none()),
            Ok(_) => None,
        };
        if let (Some(target), Ok(precision), true) = (target, Precision::parse(&self.machinery.precision), output) {
            let (name, precision) = (target.architecture.name, precision.name());
            return Err(Error::Usage(format!(
                "--precision is for CPUs where an artifact has code for both; for the GPU's: --target {name}:{precision}"
            )));
        }
        let start = Instant::now();
        if LanguageModel::is_at(&self.model) {
            return self.language_model(talk);
        }
        if self.context.is_some() {
            return Err(Error::Usage("--context is for language models; this is none".into()));
        }
        if self.cache.is_some() {
            return Err(Error::Usage("--cache is for language models; this is none".into()));
        }
        if self.adapted.adapter.is_some() {
            return Err(Error::Usage("--adapter is for language models; this is none".into()));
        }
        let source = Source::open(&self.model)?;
        let machinery = &Machinery { gpu: dumped.is_some(), ..self.machinery.clone() };
        let onnx = source.model(&machinery.limits())?;
        let levels = self.machinery.artifact_levels();
        let budget = self.machinery.budget();
        let mut options = self.shapes.options(&onnx, machinery, levels, &budget)?;
        if let Some(target) = dumped {
            if !self.tuning.is_empty() {
                return Err(Error::Usage("--tuning is for CPUs: records are of kernels for a CPU level".into()));
            }
            return self.for_gpu(&onnx, &options, target, start, talk);
        }
        options.tuning = schedules(&self.tuning, talk)?;
        let mut compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        if let Source::Model { bytes, .. } = &source {
            compiled.record_model(bytes, &onnx);
        }
        if self.golden {
            compiled.add_golden(0, &budget)?;
        }
        if !self.target.is_empty() {
            return self.with_gpus(&onnx, compiled, &options, start, talk);
        }
        drop(onnx);
        let library = match self.emit.form() {
            None => None,
            Some(form) => {
                let options = LibraryOptions { form, prefix: self.prefix.clone(), weights: self.weights.clone() };
                Some(compiled.write_library(&self.output, &options)?)
            }
        };
        let bytes = match &library {
            None => compiled.write(&self.output)?,
            Some(written) => written.files.first().map_or(0, |(_, bytes)| *bytes),
        };
        if !self.tuning.is_empty() {
            let used = provenance::tuning(&compiled.manifest.options)?.choices.len();
            talk.say(format_args!("{used} schedules are from the tuning database"));
        }
        self.report(&[("", &compiled)], library.as_ref(), (compiled.plan.weight_bytes, bytes), start, talk)
    }

    /// A decoder or an encoder-decoder, with its tokenizer and a program for each use.
    fn language_model(&self, talk: Talk) -> Result<(), Error> {
        let start = Instant::now();
        let onnx_only = [
            ("--inputs", self.shapes.inputs.is_some()),
            ("--data", self.shapes.data.is_some()),
            ("--golden", self.golden),
            ("--tuning", !self.tuning.is_empty()),
            ("--target", !self.target.is_empty()),
            ("--emit", self.emit.form().is_some()),
            ("--bind", !self.machinery.binding.bind.is_empty()),
        ];
        if let Some((option, _)) = onnx_only.iter().find(|(_, given)| *given) {
            return Err(Error::Usage(format!("{option} is not for language models; --context fixes their room")));
        }
        let options = self.machinery.options(self.machinery.artifact_levels(), Default::default())?;
        let observer = &mut self.watching.observers(&self.machinery, talk)?;
        let asked = |context: Option<usize>| {
            let most = context.unwrap_or(DEFAULT_CONTEXT).min(DEFAULT_CONTEXT);
            (self.context.map_or(most, |n| n as usize), self.cache.unwrap_or_default())
        };
        let bundle = match Opened::open(&self.model)? {
            Opened::Decoder(model) => {
                let model = self.adapted.applied(*model)?;
                model.compile(asked(Some(model.context())), &options, observer)?
            }
            Opened::Sequence(model) => {
                self.adapted.only_decoders()?;
                let cache = asked(model.context());
                // Sources and targets have the same room.
                model.compile(cache.0, cache, &options, observer)?
            }
        };
        let bytes = bundle.write(&self.output)?;
        let programs: Vec<(&str, &Compiled)> = bundle.programs().iter().map(|(name, p)| (name.as_str(), p)).collect();
        self.report(&programs, None, (bundle.weight_bytes(), bytes), start, talk)
    }

    /// What was made; the arena and kernels are those of all entries.
    fn report(
        &self,
        programs: &[(&str, &Compiled)],
        library: Option<&Written>,
        (weight_bytes, bytes): (u64, u64),
        start: Instant,
        talk: Talk,
    ) -> Result<(), Error> {
        let seconds = start.elapsed().as_secs_f64();
        let plans = || programs.iter().map(|(_, program)| &program.plan);
        let host = |s: &&Step| matches!(s, Step::Host { .. });
        let hosts = plans().map(|plan| plan.steps.iter().filter(host).count()).sum::<usize>();
        let kernels = plans().map(|plan| plan.kernels.len()).sum::<usize>();
        let arena = plans().map(|plan| plan.arena_bytes).sum::<u64>();
        let live = plans().map(|plan| plan.live_bytes).sum::<u64>();
        let levels = programs.first().iter().flat_map(|(_, p)| &p.code).map(|c| c.level.name()).collect::<Vec<_>>();
        talk.say(format_args!(
            "{}: {:.1} MB, {kernels} kernels for {}, {hosts} host ops, arena {:.1} MB, in {seconds:.2} s",
            self.output.display(),
            bytes as f64 / 1e6,
            levels.join(", "),
            arena as f64 / 1e6,
        ));
        if let Some(written) = library {
            say_library(written, talk);
        }
        if talk.json {
            let mut report = json!({
                "artifact": self.output.display().to_string(), "bytes": bytes, "seconds": seconds, "levels": levels,
                "kernels": kernels, "host_ops": hosts, "arena_bytes": arena,
                "live_bytes": live, "weight_bytes": weight_bytes,
            });
            let entries: Vec<&str> = programs.iter().map(|(name, _)| *name).filter(|n| !n.is_empty()).collect();
            if !entries.is_empty() {
                report["entries"] = json!(entries);
            }
            if let Some(written) = library {
                let files = written
                    .files
                    .iter()
                    .map(|(path, bytes)| json!({ "path": path.display().to_string(), "bytes": bytes }));
                let code = written.code.iter().map(|(level, bytes)| json!({ "level": level.name(), "bytes": bytes }));
                report["prefix"] = json!(written.prefix);
                report["files"] = files.collect();
                report["code"] = code.collect();
                report["driver_bytes"] = json!(written.driver);
                let steps = written.host_steps.iter().map(|(op, nodes)| json!({ "op": op, "nodes": nodes }));
                report["host_steps"] = steps.collect();
            }
            talk.report(&report, &"")?;
        }
        Ok(())
    }

    /// Options of libraries are for libraries.
    fn check_emit(&self) -> Result<(), Error> {
        let library = self.prefix.as_ref().map(|_| "--prefix").or(self.weights.as_ref().map(|_| "--weights"));
        match (self.emit.form(), library) {
            (None, Some(option)) => {
                Err(Error::Usage(format!("{option} is for libraries: --emit so, obj or staticlib")))
            }
            (Some(_), _) if !self.target.is_empty() => {
                Err(Error::Usage("--emit is for CPUs: a library holds no PTX".into()))
            }
            (Some(_), _) if self.golden => {
                Err(Error::Usage("--golden is for artifacts: a library carries no self-test".into()))
            }
            (None, None) | (Some(_), _) => self.weights.as_deref().map_or(Ok(()), data::writable),
        }
    }

    /// An artifact with PTX beside the code for CPUs.
    fn with_gpus(
        &self,
        onnx: &Model,
        compiled: Compiled,
        options: &Options,
        start: Instant,
        talk: Talk,
    ) -> Result<(), Error> {
        let mut observer = self.watching.observers(&self.machinery, talk)?;
        let bundle = gpu::stored::bundle(onnx, compiled, options, &self.target, &mut observer)?;
        drop(observer);
        let bytes = bundle.write(&self.output)?;
        let programs: Vec<(&str, &Compiled)> = bundle.programs().iter().map(|(name, p)| (name.as_str(), p)).collect();
        self.report(&programs, None, (bundle.weight_bytes(), bytes), start, talk)
    }

    /// Kernels for a GPU, as text in a folder.
    fn for_gpu(
        &self,
        onnx: &Model,
        options: &Options,
        target: Target,
        start: Instant,
        talk: Talk,
    ) -> Result<(), Error> {
        let mut observer = self.watching.observers(&self.machinery, talk)?;
        let precision = target.precision.map_or_else(|| Precision::parse(&self.machinery.precision), Ok)?;
        let target = target.architecture;
        let compiled = gpu::compile(onnx, options, (target, precision), &mut observer)?;
        if let Some(folder) = &self.watching.dump {
            compiled.dump(folder)?;
        }
        let launches: usize = compiled.kernels.iter().map(|k| k.modules.len()).sum();
        let hosts = compiled.notes.hosts.len();
        let seconds = start.elapsed().as_secs_f64();
        talk.say(format_args!(
            "{} kernels for {} ({}), {hosts} host ops, in {seconds:.2} s",
            launches, target.name, target.what,
        ));
        if talk.json {
            let report = json!({ "target": target.name, "kernels": launches, "host_ops": hosts, "seconds": seconds });
            talk.report(&report, &"")?;
        }
        Ok(())
    }
}

/// The schedules of the databases that are given. Records that cannot be used are counted, with the reasons.
pub(super) fn schedules(paths: &[PathBuf], talk: Talk) -> Result<Tuning, Error> {
    let mut records = Vec::new();
    for path in paths {
        records.extend(record::read(path)?);
    }
    let cpu = record::cpu_name();
    let stale: Vec<String> = records.iter().filter_map(|r| r.stale(&cpu)).collect();
    let why: BTreeSet<&String> = stale.iter().collect();
    if let Some(first) = why.first() {
        let more = if why.len() > 1 { format!(", and {} other reasons", why.len() - 1) } else { String::new() };
        talk.say(format_args!("{} of {} records are stale: {first}{more}", stale.len(), records.len()));
    }
    Ok(Tuning::of(&records, &cpu))
}

fn say_library(written: &Written, talk: Talk) {
    for (path, bytes) in written.files.iter().skip(1) {
        talk.say(format_args!("  {}: {bytes} bytes", path.display()));
    }
    let code = written.code.iter().map(|(level, bytes)| format!("{level} {bytes} bytes"));
    let code: Vec<String> = code.collect();
    let (prefix, driver) = (&written.prefix, written.driver);
    talk.say(format_args!("  functions {prefix}_*; code: {}, driver {driver} bytes", code.join(", ")));
    for (op, nodes) in &written.host_steps {
        talk.say(format_args!(
            "  the program that loads it must do {op} for {nodes}: {prefix}_host takes the function"
        ));
    }
}
