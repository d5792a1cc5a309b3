//! `kiln compile`: a model to an artifact.

use super::Talk;
use super::options::{self, Machinery, Watching};
use clap::Args as ClapArgs;
use kiln::data::{self, From};
use kiln::{Error, Source};
use serde_json::json;
use std::path::PathBuf;
use std::time::Instant;

/// Compile a model to an artifact
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
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
        let seconds = start.elapsed().as_secs_f64();
        let plan = &compiled.plan;
        let hosts = plan.steps.iter().filter(|s| matches!(s, kiln::ir::plan::Step::Host { .. })).count();
        let levels: Vec<&str> = compiled.code.iter().map(|c| c.level.name()).collect();
        talk.say(format_args!(
            "{}: {:.1} MB, {} kernels for {}, {hosts} host ops, arena {:.1} MB, in {seconds:.2} s",
            self.output.display(),
            bytes as f64 / 1e6,
            plan.kernels.len(),
            levels.join(", "),
            plan.arena_bytes as f64 / 1e6,
        ));
        if talk.json {
            let report = json!({
                "artifact": self.output.display().to_string(), "bytes": bytes, "seconds": seconds, "levels": levels,
                "kernels": plan.kernels.len(), "host_ops": hosts, "arena_bytes": plan.arena_bytes,
                "live_bytes": plan.live_bytes, "weight_bytes": plan.weight_bytes,
            });
            talk.report(&report, &"")?;
        }
        Ok(())
    }
}
