//! `kiln compile`: a model to an artifact.

use super::Talk;
use super::generate::DEFAULT_CONTEXT;
use super::options::{self, Machinery, Progress, Watching};
use clap::Args as ClapArgs;
use kiln::data::{self, From};
use kiln::ir::plan::Step;
use kiln::lm::LanguageModel;
use kiln::{Compiled, Error, Source};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Compile a model to an artifact
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model; or a language model (a GGUF file, or a folder with config.json), for `kiln generate`
    model: PathBuf,
    /// The artifact to write
    #[arg(short, long, value_name = "OUT.kiln")]
    output: PathBuf,
    /// Fix all dims to those of these inputs (their values are not used)
    #[arg(long, value_name = "F.npz", conflicts_with = "data")]
    inputs: Option<PathBuf>,
    /// Fix all dims to those of the input_i.pb files in a folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Tokens of prompt and continuation together that a language model is to have room for
    /// [default: what it was trained for, up to 2048]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    context: Option<u32>,
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
        data::writable(&self.output)?;
        let start = Instant::now();
        if LanguageModel::is_at(&self.model) {
            return self.language_model(talk);
        }
        if self.context.is_some() {
            return Err(Error::Usage("--context is for language models; this is none".into()));
        }
        let onnx = Source::open(&self.model)?.model(&self.machinery.limits())?;
        let levels = self.machinery.artifact_levels();
        let budget = self.machinery.budget();
        let from = self.inputs.clone().map(From::Npz).or_else(|| self.data.clone().map(From::Folder));
        let options = match from {
            Some(from) => options::with_inputs(&onnx, &self.machinery, Some(from), levels, &budget)?.0,
            None => self.machinery.options(levels, Default::default())?,
        };
        let mut compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        drop(onnx);
        if self.golden {
            compiled.add_golden(0, &budget)?;
        }
        let bytes = compiled.write(&self.output)?;
        self.report(&[("", &compiled)], compiled.plan.weight_bytes, bytes, start, talk)
    }

    /// A decoder, with its tokenizer and a program for each use.
    fn language_model(&self, talk: Talk) -> Result<(), Error> {
        let start = Instant::now();
        let onnx_only = [
            ("--inputs", self.inputs.is_some()),
            ("--data", self.data.is_some()),
            ("--golden", self.golden),
            ("--bind", !self.machinery.binding.bind.is_empty()),
        ];
        if let Some((option, _)) = onnx_only.iter().find(|(_, given)| *given) {
            return Err(Error::Usage(format!("{option} is not for language models; --context fixes their room")));
        }
        let model = LanguageModel::open(&self.model)?;
        let context = self.context.map_or(model.context().min(DEFAULT_CONTEXT), |n| n as usize);
        let options = self.machinery.options(self.machinery.artifact_levels(), Default::default())?;
        let bundle = model.compile(context, &options, &mut Progress::new(talk))?;
        let bytes = bundle.write(&self.output)?;
        let programs: Vec<(&str, &Compiled)> = bundle.programs().iter().map(|(name, p)| (name.as_str(), p)).collect();
        self.report(&programs, bundle.weight_bytes(), bytes, start, talk)
    }

    /// What was made; the arena and kernels are those of all entries.
    fn report(
        &self,
        programs: &[(&str, &Compiled)],
        weight_bytes: u64,
        bytes: u64,
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
            talk.report(&report, &"")?;
        }
        Ok(())
    }
}
