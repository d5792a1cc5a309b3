//! `kiln bench`: how long a run takes.

use super::Talk;
use super::cuda;
use super::gpu::OnDevice;
use super::options::{self, Inputs, Machinery, Patience, Ready, Request, Watching};
use clap::Args as ClapArgs;
use kiln::Error;
use kiln::data::From;
use kiln::runtime::engine::Context;
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Time a model or an artifact
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model or an artifact
    model: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Which of an artifact's programs: a language model's are that for any number of tokens, which has no name, `one` for a single
    /// token, and others (`kiln inspect` names them)
    #[arg(long, value_name = "NAME")]
    entry: Option<String>,
    /// Runs to time [default: as many as fit in --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    runs: Option<u64>,
    /// Time to measure for
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// Time this machine's GPU instead of its CPU, and each kernel there: cuda (models of fixed dims only)
    #[arg(long, value_name = "cuda", conflicts_with = "cpu")]
    target: Option<OnDevice>,
    #[command(flatten)]
    patience: Patience,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        self.patience.within(|| self.run_within(talk))
    }

    fn run_within(&self, talk: Talk) -> Result<(), Error> {
        let limit = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Error::Usage(format!("--seconds {} is no time", self.seconds)))?;
        // Speed hardly depends on values, so random ones will do where none are given.
        let from = self.inputs.from().unwrap_or(From::Seed(0));
        if let Some(OnDevice::Cuda) = self.target {
            let ready = cuda::ready(&self.model, &self.machinery, &self.watching, Some(from), &[], talk)?;
            return cuda::bench(ready, self.runs.unwrap_or(20), talk);
        }
        let request = Request {
            path: &self.model,
            machinery: &self.machinery,
            watching: &self.watching,
            inputs: Some(from),
            taps: &[],
            archive: false,
            entry: self.entry.as_deref(),
        };
        let Ready { model, inputs, budget, .. } = options::ready(request, talk)?;
        let mut context = Context::new(&model, self.machinery.threads(), &budget)?;
        context.load(&inputs)?;
        let first = Instant::now();
        context.run_loaded()?;
        let first = first.elapsed();
        let begin = Instant::now();
        let mut times: Vec<Duration> = Vec::new();
        let enough = |times: &[Duration]| match self.runs {
            Some(runs) => times.len() as u64 >= runs,
            None => begin.elapsed() >= limit && times.len() >= 3,
        };
        while !enough(&times) {
            let start = Instant::now();
            context.run_loaded()?;
            times.push(start.elapsed());
        }
        times.sort_unstable();
        let at =
            |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).map_or(0.0, |t| t.as_secs_f64() * 1e3);
        let operations: u64 = model.plan().kernels.iter().map(|k| k.operations).sum();
        let (min, median, p90) = (at(0.0), at(0.5), at(0.9));
        let gigaops = operations as f64 / (median / 1e3) / 1e9;
        let report = json!({
            "level": model.level().name(), "threads": context.threads(), "runs": times.len(),
            "first_ms": first.as_secs_f64() * 1e3, "min_ms": min, "median_ms": median, "p90_ms": p90,
            "operations": operations, "gigaops_per_second": gigaops,
        });
        let text = format!(
            "median {median:.3} ms, min {min:.3}, 90 % below {p90:.3}, first {:.3}; {} runs on {} with {} threads, \
             {gigaops:.1} billion operations/s\n",
            first.as_secs_f64() * 1e3,
            times.len(),
            model.level(),
            context.threads(),
        );
        talk.report(&report, &text)
    }
}
