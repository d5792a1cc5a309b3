//! How long two artifacts take, and their kernels.
//!
//! Invariant: both sides run in turns in this process, on as many threads; what is kept of each is its quickest turn, since a turn is slow
//! because of what else ran, never quick because of it.

use super::super::Talk;
use super::super::options::{self, Binding, Inputs, Machinery, Ready, Request, Watching};
use clap::Args as ClapArgs;
use kiln::data::From;
use kiln::peaks::{self, Peaks};
use kiln::profile::{Effort, Profile, profile};
use kiln::runtime::engine::Context;
use kiln::{Activations, Error};
use std::path::Path;
use std::time::Duration;

/// What is asked of a measurement.
#[derive(Debug, ClapArgs)]
pub struct Measuring {
    /// Run both in turns, and show their times beside what the roofline of this machine allows
    #[arg(long)]
    measure: bool,
    #[command(flatten)]
    inputs: Inputs,
    /// Time to measure for, both together
    #[arg(long, value_name = "S", default_value_t = 4.0, requires = "measure")]
    seconds: f64,
    /// Threads, 1 to 1024 [default: all cores]
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u64).range(1..=1024), requires = "measure")]
    threads: Option<u64>,
}

/// Turns of each side.
const TURNS: u32 = 5;

/// Estimated and measured times of the two sides.
pub(super) struct Times {
    peaks: Peaks,
    sides: [Profile; 2],
}

impl Measuring {
    /// The times of both artifacts, where they are asked for.
    ///
    /// # Errors
    /// One of them does not run here, or not on these inputs.
    pub(super) fn times(&self, paths: [&Path; 2], talk: Talk) -> Result<Option<Times>, Error> {
        if !self.measure {
            return match self.inputs.from() {
                Some(_) => Err(Error::Usage("inputs are for --measure".into())),
                None => Ok(None),
            };
        }
        let time = Duration::try_from_secs_f64(self.seconds / f64::from(2 * TURNS))
            .map_err(|_| Error::Usage(format!("--seconds {} is no time", self.seconds)))?;
        let machinery = Machinery {
            cpu: Vec::new(),
            precision: kiln::Precision::F32.name().into(),
            activations: Activations::F32,
            gpu: false,
            binding: Binding { bind: Vec::new(), memory_limit: None },
            threads: self.threads,
        };
        let watching = Watching { dump: None, verify_each: false };
        let ready = |path| {
            let inputs = Some(self.inputs.from().unwrap_or(From::Seed(0)));
            let request = Request {
                path,
                machinery: &machinery,
                watching: &watching,
                inputs,
                taps: &[],
                archive: false,
                entry: None,
            };
            options::ready(request, talk)
        };
        let [first, second]: [Ready; 2] = [ready(paths[0])?, ready(paths[1])?];
        let threads = machinery.threads();
        let peaks = peaks::measure(first.model.level(), threads, &first.budget)?;
        let loaded = |ready: &Ready| -> Result<Context, Error> {
            let mut context = Context::new(&ready.model, threads, &ready.budget)?;
            context.load(&ready.inputs)?;
            Ok(context)
        };
        let mut contexts = [loaded(&first)?, loaded(&second)?];
        let mut turn = |side: usize| {
            let of = [&first, &second][side];
            profile(&mut contexts[side], of.model.plan(), of.model.kernels(), Effort { time, runs: None })
        };
        let mut sides = [turn(0)?, turn(1)?];
        for _ in 1..TURNS {
            for (n, kept) in sides.iter_mut().enumerate() {
                let new = turn(n)?;
                if new.total.median < kept.total.median {
                    *kept = new;
                }
            }
        }
        Ok(Some(Times { peaks, sides }))
    }
}

impl Times {
    /// What the roofline allows and what was measured of a side's kernels, in seconds; of all steps where none are named.
    pub(super) fn of(&self, side: usize, kernels: Option<&[usize]>) -> [f64; 2] {
        let Some(profile) = self.sides.get(side) else { return [0.0; 2] };
        let wanted = |kernel: Option<usize>| match kernels {
            Some(kernels) => kernel.is_some_and(|k| kernels.contains(&k)),
            None => true,
        };
        let steps = profile.steps.iter().filter(|s| wanted(s.kernel));
        let both = steps.map(|s| [self.peaks.least_seconds(s.operations, s.bytes).0, s.time.median]);
        let sum = both.fold([0.0; 2], |sum: [f64; 2], [a, b]| [sum[0] + a, sum[1] + b]);
        match kernels {
            Some(_) => sum,
            None => [sum[0], profile.total.median],
        }
    }
}
