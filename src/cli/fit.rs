//! `kiln fit`: whether a model can be made to meet a budget of memory and time, and how.
//!
//! Invariant: what is promised was measured: memory is the plan's formula at the dims of the inputs, time that of nine runs of ten.

mod search;

use super::Talk;
use super::options::{self, Inputs, Machinery, Watching};
use super::table::{Align, table};
use super::tune::parse_time;
use clap::Args as ClapArgs;
use kiln::Error;
use kiln::data;
use kiln::profile::Distribution;
use kiln::quantize::metric::Metric;
use kiln::runtime::cpu::CpuLevel;
use search::Search;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Find a precision, a number of threads and an order of steps with which a model meets a budget, or say what cannot be met
///
/// Tried in this order: f32, products in bf16, 8-bit weights, 8-bit integers for weights and activations (scales of activations are
/// found in each run), 4-bit weights; each with as few threads as do, and with its steps in an order that needs less memory where that is
/// needed. With --tune, schedules are searched where only time is missed. RAM is weights, machine code
/// and the peak of a run at the dims of the inputs. Exit code 6 where memory or time cannot be met, 5 where only a precision
/// does that the metric does not allow.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
    model: PathBuf,
    /// Most memory for weights, code and a run, such as 64M
    #[arg(long, value_name = "SIZE", value_parser = options::parse_size)]
    ram: Option<u64>,
    /// Time that nine of ten runs may take, such as 50ms
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    latency: Option<Duration>,
    /// How outputs of another precision are compared with those of f32: cosine, top1 or mse
    #[arg(long, value_name = "METRIC", default_value = "cosine")]
    metric: String,
    /// What a precision may lose by the metric
    #[arg(long, value_name = "D", default_value_t = 0.01)]
    max_drop: f64,
    #[command(flatten)]
    inputs: Inputs,
    /// Take schedules from a tuning database (see `kiln tune`); several times for several
    #[arg(long, value_name = "F.jsonl")]
    tuning: Vec<PathBuf>,
    /// Time to measure each candidate for
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    seconds: f64,
    /// Where only time is missed: search schedules for so long, such as 60s, as `kiln tune` does
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    tune: Option<Duration>,
    /// Write what was found as an artifact
    #[arg(short, long, value_name = "OUT.kiln")]
    output: Option<PathBuf>,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// Something that was tried.
struct Candidate {
    precision: &'static str,
    /// Whether the steps are in an order that needs less memory.
    ordered: bool,
    /// Whether a search has found its schedules.
    tuned: bool,
    threads: usize,
    bytes: u64,
    formula: String,
    time: Distribution,
    /// What it loses by the metric.
    drop: f64,
    /// Which of the models it is.
    variant: usize,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        if self.ram.is_none() && self.latency.is_none() {
            return Err(Error::Usage("give --ram, --latency or both".into()));
        }
        if !self.max_drop.is_finite() || self.max_drop < 0.0 {
            return Err(Error::Usage(format!("--max-drop {} is no drop", self.max_drop)));
        }
        Duration::try_from_secs_f64(self.seconds)
            .map_err(|_| Error::Usage(format!("--seconds {} is no time", self.seconds)))?;
        if self.machinery.precision != kiln::Precision::F32.name() {
            return Err(Error::Usage("--precision is what `fit` finds; leave it away".into()));
        }
        let metric = Metric::from_word(&self.metric);
        if !matches!(metric, Metric::Cosine | Metric::Top1 | Metric::MeanSquare) {
            return Err(Error::Usage(format!("--metric {}: there are cosine, top1 and mse", self.metric)));
        }
        if let Some(path) = &self.output {
            data::writable(path)?;
        }
        let mut search = Search::new(self, metric, talk)?;
        let chosen = search.run()?;
        let picked = chosen.as_ref().map(|(n, _)| *n);
        let (tried, notes) = (&search.tried, &search.notes);
        let report = self.json(tried, picked, notes, search.level());
        talk.report(&report, &self.text(tried, picked, notes))?;
        match chosen {
            Some((_, compiled)) => match &self.output {
                Some(path) => compiled.write(path).map(|_| ()),
                None => Ok(()),
            },
            None => Err(self.missed(tried)),
        }
    }

    /// Whether memory and time are met.
    fn meets(&self, c: &Candidate) -> (bool, bool) {
        let time = self.latency.is_none_or(|most| c.time.p90 <= most.as_secs_f64());
        (self.ram.is_none_or(|most| c.bytes <= most), time)
    }

    fn json(&self, tried: &[Candidate], chosen: Option<usize>, notes: &[String], level: CpuLevel) -> Value {
        let candidate = |c: &Candidate| {
            json!({ "precision": c.precision, "order": if c.ordered { "least memory" } else { "of the model" },
                    "tuned": c.tuned,
                    "threads": c.threads, "ram": c.bytes, "formula": c.formula, "time": c.time.json(), "drop": c.drop,
                    "meets_ram": self.meets(c).0, "meets_latency": self.meets(c).1, "meets_metric": c.drop <= self.max_drop })
        };
        json!({ "level": level.name(), "ram": self.ram, "latency_us": self.latency.map(|l| l.as_secs_f64() * 1e6),
                "chosen": chosen.and_then(|n| tried.get(n)).map(candidate), "notes": notes,
                "tried": tried.iter().map(candidate).collect::<Vec<_>>() })
    }

    fn text(&self, tried: &[Candidate], chosen: Option<usize>, notes: &[String]) -> String {
        let (l, r) = (Align::Left, Align::Right);
        let rows: Vec<_> = tried
            .iter()
            .enumerate()
            .map(|(n, c)| {
                let (ram, time) = self.meets(c);
                let misses = [(!ram, "memory"), (!time, "time"), (c.drop > self.max_drop, "precision")];
                let misses: Vec<&str> =
                    misses.into_iter().filter(|(missed, _)| *missed).map(|(_, what)| what).collect();
                let verdict = if chosen == Some(n) { "fits".into() } else { format!("misses {}", misses.join(", ")) };
                [
                    format!("{}{}", c.precision, if c.tuned { ", tuned" } else { "" }),
                    if c.ordered { "least memory".into() } else { "of the model".to_string() },
                    c.threads.to_string(),
                    format!("{:.2}", c.bytes as f64 / 1e6),
                    format!("{:.3}", c.time.median * 1e3),
                    format!("{:.3}", c.time.p90 * 1e3),
                    if c.precision == "f32" { String::new() } else { format!("{:.2e}", c.drop) },
                    verdict,
                ]
            })
            .collect();
        let columns = [
            ("precision", l),
            ("order", l),
            ("threads", r),
            ("RAM, MB", r),
            ("median, ms", r),
            ("90 % below", r),
            ("drop", r),
            ("", l),
        ];
        let mut text = table("", columns, &rows);
        if let Some(c) = chosen.and_then(|n| tried.get(n)) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "peak memory of weights and a run, in bytes: {}", c.formula);
        }
        notes.iter().for_each(|note| text.push_str(&format!("{note}\n")));
        text
    }

    /// By how much the nearest candidates miss the budget.
    fn missed(&self, tried: &[Candidate]) -> Error {
        let inexact = |c: &&Candidate| self.meets(c) == (true, true);
        if let Some(c) = tried.iter().find(inexact) {
            let (precision, drop, most) = (c.precision, c.drop, self.max_drop);
            return Error::Mismatch(format!(
                "only {precision} meets memory and time, and it loses {drop:.2e} by {}, where {most:.2e} is allowed",
                self.metric
            ));
        }
        let mut all = Vec::new();
        if let (Some(most), Some(c)) = (self.ram, tried.iter().min_by_key(|c| c.bytes))
            && c.bytes > most
        {
            let over = 100.0 * (c.bytes as f64 / most.max(1) as f64 - 1.0);
            all.push(format!("memory: {} needs {} bytes, {over:.1} % more than {most}", c.precision, c.bytes));
        }
        if let (Some(most), Some(c)) = (self.latency, tried.iter().min_by(|a, b| a.time.p90.total_cmp(&b.time.p90)))
            && c.time.p90 > most.as_secs_f64()
        {
            let over = 100.0 * (c.time.p90 / most.as_secs_f64().max(1e-9) - 1.0);
            let (precision, threads, ms) = (c.precision, c.threads, c.time.p90 * 1e3);
            all.push(format!(
                "time: {precision} on {threads} threads takes {ms:.3} ms, {over:.1} % more than {most:?}"
            ));
        }
        if all.is_empty() {
            all.push("what meets the memory misses the time, and the other way round".into());
        }
        Error::Limit(format!("the budget cannot be met; {}", all.join("; ")))
    }
}
