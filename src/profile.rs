//! Where the time of a run goes, step by step.
//!
//! Invariant: a step's samples are the times between the ends of two steps of one run, so that the samples of a run add up to
//! the run. Estimates of work are the plan's; where dims are free they count on nominal ones, which the report says.

use crate::Error;
use crate::peaks::Peaks;
use kiln_ir::ops::Op;
use kiln_ir::plan::{Plan, Step};
use kiln_runtime::artifact::KernelTable;
use kiln_runtime::engine::Context;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Where the middle, the quick and the slow ones of a set of samples lie, in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distribution {
    /// How many samples there are.
    pub count: usize,
    /// The quickest.
    pub min: f64,
    /// A fifth of the samples is quicker.
    pub p20: f64,
    /// Half of the samples are quicker.
    pub median: f64,
    /// Four fifths of the samples are quicker.
    pub p80: f64,
    /// Nine tenths of the samples are quicker.
    pub p90: f64,
}

impl Distribution {
    /// Of samples in seconds, in any order.
    pub fn of(mut samples: Vec<f64>) -> Distribution {
        samples.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let last = samples.len().saturating_sub(1);
            samples.get((last as f64 * share).round() as usize).copied().unwrap_or(0.0)
        };
        Distribution { count: samples.len(), min: at(0.0), p20: at(0.2), median: at(0.5), p80: at(0.8), p90: at(0.9) }
    }

    /// As JSON, in microseconds.
    pub fn json(&self) -> Value {
        json!({ "runs": self.count, "min_us": self.min * 1e6, "p20_us": self.p20 * 1e6, "median_us": self.median * 1e6,
                "p80_us": self.p80 * 1e6, "p90_us": self.p90 * 1e6 })
    }
}

/// A step of the plan, and how long it took.
#[derive(Clone, Debug)]
pub struct StepProfile {
    /// The kernel's name, `host` or `copy`.
    pub name: String,
    /// What it does.
    pub what: String,
    /// The model's nodes.
    pub origin: Vec<String>,
    /// What made its code, where it has any.
    pub emitter: Option<String>,
    /// Index of its kernel.
    pub kernel: Option<usize>,
    /// Estimated operations.
    pub operations: u64,
    /// Estimated bytes read and written.
    pub bytes: u64,
    /// Its times.
    pub time: Distribution,
    /// Share of all time, by the medians.
    pub share: f64,
}

impl StepProfile {
    /// The share of what the roofline allows; nothing where no work is estimated.
    pub fn of_roofline(&self, peaks: &Peaks) -> Option<f64> {
        let (least, _) = peaks.least_seconds(self.operations, self.bytes);
        (self.kernel.is_some() && least > 0.0 && self.time.median > 0.0).then(|| least / self.time.median)
    }
}

/// Where the time of runs went.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Name of the model.
    pub model: String,
    /// Steps in the order of the plan.
    pub steps: Vec<StepProfile>,
    /// Whole runs.
    pub total: Distribution,
    /// The samples of the middle run: for each step when it began and how long it took.
    pub middle: Vec<(Duration, Duration)>,
    /// Whether dims are free, so that estimates of work are for nominal ones.
    pub estimates_nominal: bool,
}

/// How long to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Time to measure for.
    pub time: Duration,
    /// Exactly so many runs, whatever time they take.
    pub runs: Option<usize>,
}

/// Runs a context that has its inputs again and again.
///
/// # Errors
/// A run fails.
pub fn profile(context: &mut Context, plan: &Plan, table: &KernelTable, effort: Effort) -> Result<Profile, Error> {
    context.run_loaded()?;
    let count = plan.steps.len();
    let mut samples: Vec<Vec<f64>> = vec![Vec::new(); count];
    let mut totals: Vec<Duration> = Vec::new();
    let begin = Instant::now();
    let mut ends: Vec<(usize, Instant)> = Vec::with_capacity(count);
    // All runs are kept: which one is in the middle is known at the end.
    let mut runs: Vec<Vec<(Duration, Duration)>> = Vec::new();
    let more = |done: usize| match effort.runs {
        Some(runs) => done < runs.max(1),
        None => done < 3 || begin.elapsed() < effort.time && done < MOST_RUNS,
    };
    while more(totals.len()) {
        ends.clear();
        let start = Instant::now();
        context.run_watched(&mut |n| ends.push((n, Instant::now())))?;
        totals.push(start.elapsed());
        // A step of a loop has run several times: it gets their sum, from the first one's begin on. The loop itself gets what no step
        // in it took.
        let mut run: Vec<(Duration, Duration)> = vec![Default::default(); count];
        let starts = std::iter::once(start).chain(ends.iter().map(|(_, end)| *end));
        for (from, &(n, to)) in starts.zip(&ends) {
            if let Some((begin, took)) = run.get_mut(n) {
                *begin = if took.is_zero() { from - start } else { *begin };
                *took += to - from;
            }
        }
        for (samples, (_, took)) in samples.iter_mut().zip(&run) {
            samples.push(took.as_secs_f64());
        }
        runs.push(run);
    }
    let mut order: Vec<usize> = (0..totals.len()).collect();
    order.sort_unstable_by_key(|&n| totals[n]);
    let middle = order.get(order.len() / 2).and_then(|&n| runs.get(n)).cloned().unwrap_or_default();
    let times: Vec<Distribution> = samples.into_iter().map(Distribution::of).collect();
    let sum: f64 = times.iter().map(|t| t.median).sum();
    let steps = plan.steps.iter().zip(times).map(|(step, time)| {
        let share = if sum > 0.0 { time.median / sum } else { 0.0 };
        describe(plan, table, step, time, share)
    });
    Ok(Profile {
        model: plan.name.clone(),
        steps: steps.collect(),
        total: Distribution::of(totals.iter().map(Duration::as_secs_f64).collect()),
        middle,
        estimates_nominal: plan.is_symbolic(),
    })
}

/// Runs whose every step is remembered: enough for any distribution.
const MOST_RUNS: usize = 5_000;

fn describe(plan: &Plan, table: &KernelTable, step: &Step, time: Distribution, share: f64) -> StepProfile {
    let names = |origin: &kiln_ir::graph::Origin| origin.names().map(str::to_string).collect();
    let mut profile = StepProfile {
        name: "copy".into(),
        what: "copy".into(),
        origin: Vec::new(),
        emitter: None,
        kernel: None,
        operations: 0,
        bytes: 0,
        time,
        share,
    };
    match step {
        Step::Launch { kernel, .. } => {
            if let Some(k) = plan.kernels.get(*kernel) {
                profile.name.clone_from(&k.name);
                profile.what.clone_from(&k.what);
                profile.origin = names(&k.origin);
                (profile.operations, profile.bytes) = (k.operations, k.bytes);
            }
            profile.emitter = table.0.get(*kernel).map(|e| e.emitter.clone());
            profile.kernel = Some(*kernel);
        }
        Step::Host { op, origin, .. } => {
            profile.name = "host".into();
            profile.what = match op {
                Op::Host(host) => host.function().to_string(),
                op => op.name().to_string(),
            };
            profile.origin = names(origin);
        }
        Step::Copy { from, .. } => profile.bytes = plan.slot_bytes(*from).saturating_mul(2),
        Step::Bind { from, origin, .. } => {
            profile.bytes = plan.slot_bytes(*from).saturating_mul(2);
            profile.origin = names(origin);
        }
        Step::Refuse { origin, .. } => {
            (profile.name, profile.what) = ("check".into(), "check".into());
            profile.origin = names(origin);
        }
        Step::If { origin, .. } => {
            (profile.name, profile.what) = ("if".into(), "if".into());
            profile.origin = names(origin);
        }
        Step::Loop(l) => {
            (profile.name, profile.what) = ("loop".into(), "loop".into());
            profile.origin = names(&l.origin);
        }
    }
    profile
}

impl Profile {
    /// The middle run in the trace event format that Chrome and Perfetto read: one complete event for each step, in
    /// microseconds.
    pub fn trace(&self) -> Value {
        let event = |(step, (start, took)): (&StepProfile, &(Duration, Duration))| {
            json!({
                "name": format!("{} {}", step.name, step.what), "cat": step.emitter.as_deref().unwrap_or("host"),
                "ph": "X", "pid": 1, "tid": 1, "ts": start.as_secs_f64() * 1e6, "dur": took.as_secs_f64() * 1e6,
                "args": { "origin": step.origin, "operations": step.operations, "bytes": step.bytes,
                          "median_us": step.time.median * 1e6 },
            })
        };
        let mut events = vec![
            json!({ "name": "process_name", "ph": "M", "pid": 1, "tid": 1, "args": { "name": format!("kiln {}", self.model) } }),
            json!({ "name": "thread_name", "ph": "M", "pid": 1, "tid": 1, "args": { "name": "steps of the plan" } }),
        ];
        events.extend(self.steps.iter().zip(&self.middle).map(event));
        json!({ "traceEvents": events, "displayTimeUnit": "ns" })
    }

    /// Folded stacks, as flame graphs take them: the model, the parts of a node's name, the kernel; median nanoseconds.
    pub fn folded(&self) -> String {
        let clean = |text: &str| text.replace([';', '\n', '\r'], "_");
        let mut text = String::new();
        for step in &self.steps {
            let mut stack = vec![clean(&self.model)];
            // Of a fused kernel's nodes the first names the place in the model.
            let first = step.origin.first().map_or("", String::as_str);
            stack.extend(first.split('/').filter(|part| !part.is_empty()).map(clean));
            stack.push(clean(&format!("{} {}", step.name, step.what)));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {}", stack.join(";"), (step.time.median * 1e9).round());
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_few_and_many() {
        let d = Distribution::of((0..=100).rev().map(f64::from).collect());
        assert_eq!((d.count, d.min, d.p20, d.median, d.p80, d.p90), (101, 0.0, 20.0, 50.0, 80.0, 90.0));
        assert_eq!(Distribution::of(vec![3.0]).p90, 3.0);
        assert_eq!(Distribution::of(vec![]), Distribution::default());
    }

    fn step(name: &str, origin: &[&str]) -> StepProfile {
        StepProfile {
            name: name.into(),
            what: "conv".into(),
            origin: origin.iter().map(|s| s.to_string()).collect(),
            emitter: None,
            kernel: Some(0),
            operations: 100,
            bytes: 10,
            time: Distribution::of(vec![2e-6]),
            share: 1.0,
        }
    }

    #[test]
    fn folded_stacks_have_one_number_at_the_end_of_each_line() {
        let profile = Profile {
            model: "m;x".into(),
            steps: vec![step("k0", &["/a/b;c/Conv"]), step("copy", &[])],
            total: Distribution::default(),
            middle: vec![(Duration::ZERO, Duration::from_micros(2)); 2],
            estimates_nominal: false,
        };
        assert_eq!(profile.folded(), "m_x;a;b_c;Conv;k0 conv 2000\nm_x;copy conv 2000\n");
        let trace = profile.trace();
        assert_eq!(trace["traceEvents"].as_array().map(Vec::len), Some(4));
        assert_eq!(trace["traceEvents"][2]["dur"], 2.0);
    }
}
