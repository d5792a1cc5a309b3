//! `kiln profile`: where the time of a run goes.

use super::Talk;
use super::options::{self, Inputs, Machinery, Ready, Request, Watching};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use kiln::Error;
use kiln::data::{self, From};
use kiln::peaks::{self, Peaks};
use kiln::profile::{Effort, Profile, profile};
use kiln::runtime::engine::Context;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Show where the time goes: each kernel's time, rates, and share of what this machine can do at best
///
/// The roofline is measured in the same run by kernels of our own: multiply-adds between registers, and reading memory of
/// three sizes. A kernel's roof is the time of its operations or of its bytes, whichever is longer; bytes are taken to come
/// from the nearest memory that holds them.
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
    /// Time to measure for
    #[arg(long, value_name = "S", default_value_t = 2.0)]
    seconds: f64,
    /// Runs to measure [default: as many as fit in --seconds]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    runs: Option<u32>,
    /// Write the middle run as a trace that Chrome (about:tracing) and Perfetto open
    #[arg(long, value_name = "F.json")]
    trace: Option<PathBuf>,
    /// Write folded stacks, one line for each step, as flame graph tools take them
    #[arg(long, value_name = "F.txt")]
    folded: Option<PathBuf>,
    /// Show so many steps, the longest first
    #[arg(long, value_name = "N", default_value_t = 30)]
    top: usize,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let time = Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Error::Usage(format!("--seconds {} is no time", self.seconds)))?;
        for path in self.trace.iter().chain(&self.folded) {
            data::writable(path)?;
        }
        let request = Request {
            path: &self.model,
            machinery: &self.machinery,
            watching: &self.watching,
            inputs: Some(self.inputs.from().unwrap_or(From::Seed(0))),
            taps: &[],
            archive: false,
            entry: self.entry.as_deref(),
        };
        let Ready { model, inputs, budget, .. } = options::ready(request, talk)?;
        let threads = self.machinery.threads();
        let peaks = peaks::measure(model.level(), threads, &budget)?;
        // Threads that are made from here on are counted.
        let counters = counters::open();
        let mut context = Context::new(&model, threads, &budget)?;
        context.load(&inputs)?;
        let effort = Effort { time, runs: self.runs.and_then(|n| usize::try_from(n).ok()) };
        let profile = profile(&mut context, model.plan(), model.kernels(), effort)?;
        let counted = counters::count(counters, &mut context, model.plan().steps.len())?;
        if let Some(path) = &self.trace {
            data::write(path, format!("{}\n", profile.trace()).as_bytes())?;
        }
        if let Some(path) = &self.folded {
            data::write(path, profile.folded().as_bytes())?;
        }
        let setting = Setting { level: model.level().name(), threads, path: &self.model };
        let report = json(&profile, &peaks, &counted, &setting);
        talk.report(&report, &text(&profile, &peaks, &counted, &setting, self.top))
    }
}

pub(super) struct Setting<'a> {
    pub(super) level: &'a str,
    pub(super) threads: usize,
    pub(super) path: &'a Path,
}

/// Counts of a run, by step; or why there are none.
pub(super) type Counted = Result<Vec<counters::Counts>, String>;

pub(super) fn json(profile: &Profile, peaks: &Peaks, counted: &Counted, setting: &Setting<'_>) -> Value {
    let step = |(n, s): (usize, &kiln::profile::StepProfile)| {
        let seconds = s.time.median.max(1e-12);
        let (least, memory) = peaks.least_seconds(s.operations, s.bytes);
        json!({
            "step": n, "name": s.name, "what": s.what, "origin": s.origin, "emitter": s.emitter, "time": s.time.json(),
            "share": s.share, "operations": s.operations, "bytes": s.bytes,
            "gflops": s.operations as f64 / seconds / 1e9, "gb_per_second": s.bytes as f64 / seconds / 1e9,
            "operations_per_byte": s.operations as f64 / s.bytes.max(1) as f64,
            "roofline": s.of_roofline(peaks), "roof_us": least * 1e6, "limit": if memory { "memory" } else { "compute" },
            "counters": counted.as_ref().ok().and_then(|c| c.get(n)).map(counters::Counts::json),
        })
    };
    let reads = peaks.reads.iter().map(|b| json!({ "bytes": b.bytes, "gb_per_second": b.rate / 1e9 }));
    json!({
        "model": profile.model, "path": setting.path.display().to_string(), "level": setting.level,
        "threads": setting.threads, "total": profile.total.json(),
        "estimates_for_nominal_dims": profile.estimates_nominal,
        "machine": { "gflops": peaks.operations / 1e9, "reads": reads.collect::<Vec<_>>() },
        "counters": counted.as_ref().err(),
        "steps": profile.steps.iter().enumerate().map(step).collect::<Vec<_>>(),
    })
}

fn text(profile: &Profile, peaks: &Peaks, counted: &Counted, setting: &Setting<'_>, top: usize) -> String {
    let mut text = String::new();
    let total = &profile.total;
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{:?} on {} with {} threads: median {:.3} ms, min {:.3}, 90 % below {:.3}; {} runs",
        profile.model,
        setting.level,
        setting.threads,
        total.median * 1e3,
        total.min * 1e3,
        total.p90 * 1e3,
        total.count
    );
    let reads = peaks.reads.iter().map(|b| format!("{:.0} GB/s from {:.1} MB", b.rate / 1e9, b.bytes as f64 / 1e6));
    let reads: Vec<String> = reads.collect();
    let _ = writeln!(
        text,
        "this machine at best: {:.0} GFLOP/s between registers, reads {}",
        peaks.operations / 1e9,
        reads.join(", ")
    );
    if profile.estimates_nominal {
        text.push_str(
            "the artifact's dims are free and its estimates of work are for dims of 32, not for this run: rates are left out; \
             a profile of the model itself has them\n",
        );
    }
    if let Err(why) = counted {
        let _ = writeln!(text, "no hardware counters: {why}");
    }
    let mut order: Vec<usize> = (0..profile.steps.len()).collect();
    order.sort_by(|&a, &b| profile.steps[b].time.median.total_cmp(&profile.steps[a].time.median));
    let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
    let rows: Vec<_> = order
        .iter()
        .take(top)
        .map(|&n| {
            let s = &profile.steps[n];
            let known = |text: String| if profile.estimates_nominal { String::new() } else { text };
            let rate = |amount: u64| known(format!("{:.1}", amount as f64 / s.time.median.max(1e-12) / 1e9));
            let (_, memory) = peaks.least_seconds(s.operations, s.bytes);
            let roof = s
                .of_roofline(peaks)
                .map_or(String::new(), |r| format!("{:.0} % {}", 100.0 * r, if memory { "memory" } else { "compute" }));
            let counts = counted.as_ref().ok().and_then(|c| c.get(n));
            [
                s.name.clone(),
                s.what.clone(),
                us(s.time.median),
                us(s.time.min),
                us(s.time.p90),
                format!("{:.1}", 100.0 * s.share),
                rate(s.operations),
                rate(s.bytes),
                known(roof),
                counts.map_or(String::new(), counters::Counts::brief),
                s.emitter.clone().unwrap_or_default(),
                brief(&s.origin),
            ]
        })
        .collect();
    let (l, r) = (Align::Left, Align::Right);
    let columns = [
        ("step", l),
        ("what", l),
        ("us", r),
        ("min", r),
        ("p90", r),
        ("%", r),
        ("GFLOP/s", r),
        ("GB/s", r),
        ("of the roof", r),
        ("counters", l),
        ("emitter", l),
        ("from", l),
    ];
    text.push_str(&table("  ", columns, &rows));
    let rest: f64 = order.iter().skip(top).map(|&n| profile.steps[n].share).sum();
    if order.len() > top {
        let _ =
            writeln!(text, "  and {} more steps with {:.1} % of the time (--top N)", order.len() - top, 100.0 * rest);
    }
    text
}

fn brief(origin: &[String]) -> String {
    match origin {
        [] => "(made by Kiln)".into(),
        [one] => one.clone(),
        [one, rest @ ..] => format!("{one} and {} more", rest.len()),
    }
}

/// Hardware counters, where the system has them.
#[cfg(target_os = "linux")]
pub(super) mod counters {
    use super::{Counted, Error};
    use kiln::runtime::engine::Context;
    use perf_event::events::Hardware;
    use perf_event::{Builder, Counter};
    use serde_json::{Value, json};

    const EVENTS: &[(&str, Hardware)] = &[
        ("cycles", Hardware::CPU_CYCLES),
        ("instructions", Hardware::INSTRUCTIONS),
        ("cache_misses", Hardware::CACHE_MISSES),
        ("stalled_cycles", Hardware::STALLED_CYCLES_BACKEND),
    ];

    /// Counters of this thread and of those that it will make, by position in [`EVENTS`].
    pub type Open = Result<Vec<Option<Counter>>, String>;

    pub fn open() -> Open {
        let open = |event: &Hardware| {
            let mut builder = Builder::new().kind(*event);
            builder.inherit(true);
            builder.build().and_then(|mut c| c.enable().map(|()| c))
        };
        let all: Vec<std::io::Result<Counter>> = EVENTS.iter().map(|(_, event)| open(event)).collect();
        let Some(Err(first)) = all.first() else { return Ok(all.into_iter().map(Result::ok).collect()) };
        let why = match first.kind() {
            std::io::ErrorKind::NotFound => "this machine (or the virtual machine's host) offers none",
            std::io::ErrorKind::PermissionDenied => "not allowed here; see /proc/sys/kernel/perf_event_paranoid",
            _ => "the system refuses them",
        };
        Err(format!("{why} ({first})"))
    }

    /// What was counted in a step, on all threads; a mean over some runs.
    #[derive(Clone, Debug, Default)]
    pub struct Counts([Option<f64>; 4]);

    impl Counts {
        pub fn json(&self) -> Value {
            let named = EVENTS.iter().zip(&self.0).filter_map(|((name, _), n)| Some((name.to_string(), json!((*n)?))));
            Value::Object(named.collect())
        }

        pub fn brief(&self) -> String {
            let [cycles, instructions, misses, stalled] = self.0;
            let per_cycle = instructions.zip(cycles).map(|(i, c)| format!("{:.2} instr/cycle", i / c.max(1.0)));
            let stalls = stalled.zip(cycles).map(|(s, c)| format!("{:.0} % stalled", 100.0 * s / c.max(1.0)));
            let misses = misses.map(|m| format!("{m:.0} misses"));
            per_cycle.into_iter().chain(stalls).chain(misses).collect::<Vec<_>>().join(", ")
        }
    }

    /// Runs whose counts are averaged: reading counters takes longer than many a step, so they are runs of their own.
    const RUNS: u32 = 5;

    pub fn count(open: Open, context: &mut Context, steps: usize) -> Result<Counted, Error> {
        let mut counters = match open {
            Ok(counters) => counters,
            Err(why) => return Ok(Err(why)),
        };
        let mut read = move || -> [Option<u64>; 4] {
            let mut values = [None; 4];
            for (value, counter) in values.iter_mut().zip(&mut counters) {
                *value = counter.as_mut().and_then(|c| c.read().ok());
            }
            values
        };
        let mut sums: Vec<Counts> = vec![Counts::default(); steps];
        for _ in 0..RUNS {
            let mut before = read();
            context.run_watched(&mut |n| {
                let after = read();
                if let Some(Counts(sums)) = sums.get_mut(n) {
                    for ((sum, a), b) in sums.iter_mut().zip(after).zip(before) {
                        let more = a.zip(b).map(|(a, b)| a.saturating_sub(b) as f64 / f64::from(RUNS));
                        *sum = more.map(|more| sum.unwrap_or(0.0) + more);
                    }
                }
                before = after;
            })?;
        }
        Ok(Ok(sums))
    }
}

/// Hardware counters are read through Linux' perf events.
#[cfg(not(target_os = "linux"))]
pub(super) mod counters {
    use super::{Counted, Error};
    use kiln::runtime::engine::Context;
    use serde_json::Value;

    pub type Open = ();

    pub fn open() -> Open {}

    #[derive(Clone, Debug)]
    pub enum Counts {}

    impl Counts {
        pub fn json(&self) -> Value {
            match *self {}
        }

        pub fn brief(&self) -> String {
            match *self {}
        }
    }

    pub fn count((): Open, _: &mut Context, _: usize) -> Result<Counted, Error> {
        Ok(Err("they are read on Linux only".into()))
    }
}
