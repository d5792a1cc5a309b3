//! `kiln fit`: whether a model can be made to meet a budget of memory and time, and how.
//!
//! Invariant: what is promised was measured: memory is the plan's formula at the dims of the inputs, time that of nine runs of ten.

use super::Talk;
use super::options::{self, Inputs, Machinery, Watching};
use super::table::{Align, table};
use super::tune::parse_time;
use clap::Args as ClapArgs;
use kiln::data::{self, From};
use kiln::fit::Footprint;
use kiln::ir::Tensor;
use kiln::onnx::model::Model as Onnx;
use kiln::passes::quantize::{Grid, RangeMethod};
use kiln::profile::Distribution;
use kiln::quantize::metric::{Metric, compare};
use kiln::quantize::onnx::{Activations, Prepared, Runs, Sample, Settings};
use kiln::quantize::{Method, WeightOptions};
use kiln::runtime::cpu::CpuLevel;
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::{Compiled, Error, Options, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Find a precision, a number of threads and an order of steps with which a model meets a budget, or say what cannot be met
///
/// Tried in this order: f32, then products in bf16, then 8-bit integers for weights and activations (scales of activations are found in each run); each with
/// as few threads as do, and with its steps in an order that needs less memory where that is needed. RAM is weights, machine code
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
    threads: usize,
    bytes: u64,
    formula: String,
    time: Distribution,
    /// What it loses by the metric.
    drop: f64,
}

/// What the candidates are measured with.
struct Bench<'a> {
    args: &'a Args,
    level: CpuLevel,
    inputs: Vec<Tensor>,
    budget: Budget,
    talk: Talk,
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
        let (level, budget) = (self.machinery.level_here()?, self.machinery.budget());
        let source = Source::open(&self.model)?;
        let onnx = source.model(&self.machinery.limits())?;
        let from = Some(self.inputs.from().unwrap_or(From::Seed(0)));
        let (fixed, inputs) = options::with_inputs(&onnx, &self.machinery, from, vec![level], &budget)?;
        let tuning = super::compile::schedules(&self.tuning, talk)?;
        let mut options = Options { shapes: BTreeMap::new(), tuning, ..fixed.clone() };
        let bench = Bench { args: self, level, inputs, budget, talk };
        let mut compiled = match bench.compile(&onnx, &options) {
            // Where shapes hang on values, the dims are those of the inputs.
            Err(Error::Import(_)) => {
                options = Options { tuning: options.tuning, ..fixed };
                let named = options::by_name(&onnx, &bench.inputs);
                loop {
                    match bench.compile(&onnx, &options) {
                        Err(error) if options.learn(&error, &named) => {}
                        done => break done?,
                    }
                }
            }
            done => done?,
        };
        let record = |compiled: &mut Compiled| {
            if let Source::Model { bytes, .. } = &source {
                compiled.record_model(bytes, &onnx);
            }
        };
        record(&mut compiled);
        let (mut tried, mut notes) = (Vec::new(), Vec::new());
        let (first, wanted) = bench.candidates(&mut compiled, "f32", 0.0, &mut tried)?;
        let mut chosen = wanted.map(|n| (n, compiled));
        if chosen.is_none() {
            let mut compiled =
                bench.compile(&onnx, &Options { precision: kiln::Precision::Bf16, ..options.clone() })?;
            record(&mut compiled);
            chosen = bench.rounded(compiled, "bf16", (&metric, &first), &mut tried)?;
        }
        if chosen.is_none() {
            match self.int8(&onnx, &options, &bench, (&metric, &first), &mut tried) {
                Ok(found) => chosen = found,
                Err(error @ (Error::Usage(_) | Error::Unsupported(_) | Error::Import(_) | Error::Data { .. })) => {
                    notes.push(format!("no int8: {error}"));
                }
                Err(error) => return Err(error),
            }
        }
        let picked = chosen.as_ref().map(|(n, _)| *n);
        let report = self.json(&tried, picked, &notes, level);
        talk.report(&report, &self.text(&tried, picked, &notes))?;
        match chosen {
            Some((_, compiled)) => match &self.output {
                Some(path) => compiled.write(path).map(|_| ()),
                None => Ok(()),
            },
            None => Err(self.missed(&tried)),
        }
    }

    /// The model with weights and activations of 8 bits.
    fn int8(
        &self,
        onnx: &Onnx,
        options: &Options,
        bench: &Bench<'_>,
        of_f32: (&Metric, &[Tensor]),
        tried: &mut Vec<Candidate>,
    ) -> Result<Option<(usize, Compiled)>, Error> {
        let threads = self.machinery.threads();
        let grid = Grid::Symmetric(8);
        let settings = Settings {
            weights: WeightOptions { grid, group: 0, method: Method::Nearest, threads },
            activations: Activations::Dynamic,
            ranges: RangeMethod::MinMax,
            per_tensor: false,
            bias_correction: false,
            equalise: false,
            smooth: None,
            prune: None,
            skip: Vec::new(),
        };
        let runs = Runs { options: options.clone(), place: (bench.level, threads), budget: bench.budget.clone() };
        let mut observer = options::Progress::new(bench.talk);
        let prepared = Prepared::new(onnx, &settings, &[], &runs, &mut observer)?;
        let (made, _) = prepared.quantized(&|_| Some(grid))?;
        drop(observer);
        bench.rounded(bench.compile(&made, options)?, "int8", of_f32, tried)
    }

    /// Whether memory and time are met.
    fn meets(&self, c: &Candidate) -> (bool, bool) {
        let time = self.latency.is_none_or(|most| c.time.p90 <= most.as_secs_f64());
        (self.ram.is_none_or(|most| c.bytes <= most), time)
    }

    fn json(&self, tried: &[Candidate], chosen: Option<usize>, notes: &[String], level: CpuLevel) -> Value {
        let candidate = |c: &Candidate| {
            json!({ "precision": c.precision, "order": if c.ordered { "least memory" } else { "of the model" },
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
                    c.precision.to_string(),
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

impl Bench<'_> {
    fn compile(&self, onnx: &Onnx, options: &Options) -> Result<Compiled, Error> {
        options::compile(onnx, options, &self.args.watching, &self.args.machinery, self.talk)
    }

    /// Tries a program as it is and, where memory is missed, with its steps in another order; the outputs, and which candidate
    /// fits. The program is left as the last one that was tried.
    fn candidates(
        &self,
        compiled: &mut Compiled,
        precision: &'static str,
        drop: f64,
        tried: &mut Vec<Candidate>,
    ) -> Result<(Vec<Tensor>, Option<usize>), Error> {
        let (outputs, found) = self.threads(compiled, precision, (drop, false), tried)?;
        let short = tried.last().is_some_and(|c| !self.args.meets(c).0);
        if found.is_none() && short && compiled.save_memory() {
            return self.threads(compiled, precision, (drop, true), tried);
        }
        Ok((outputs, found))
    }

    /// Tries a program in another precision, whose outputs are compared with those of f32: which candidate fits, and the program.
    fn rounded(
        &self,
        mut compiled: Compiled,
        precision: &'static str,
        (metric, before): (&Metric, &[Tensor]),
        tried: &mut Vec<Candidate>,
    ) -> Result<Option<(usize, Compiled)>, Error> {
        let model = compiled.load(&ModelOptions::default())?;
        let after = Context::new(&model, self.args.machinery.threads(), &self.budget)?.run(&self.inputs)?;
        let sample = Sample { inputs: self.inputs.clone(), labels: None };
        let drop = compare(metric, &[before.to_vec()], &[after], &[sample])?.drop;
        let (_, wanted) = self.candidates(&mut compiled, precision, drop, tried)?;
        Ok(wanted.map(|n| (n, compiled)))
    }

    /// Tries one thread, then more until the time is met.
    fn threads(
        &self,
        compiled: &Compiled,
        precision: &'static str,
        (drop, ordered): (f64, bool),
        tried: &mut Vec<Candidate>,
    ) -> Result<(Vec<Tensor>, Option<usize>), Error> {
        let model = compiled.load(&ModelOptions::default())?;
        let code = compiled.code.iter().map(|c| c.bytes.len() as u64).max().unwrap_or(0);
        let footprint = Footprint::of(model.plan());
        let (mut outputs, mut threads) = (Vec::new(), 1);
        let most = if self.args.latency.is_some() { self.args.machinery.threads() } else { 1 };
        loop {
            let mut context = Context::new(&model, threads, &self.budget)?;
            context.load(&self.inputs)?;
            context.run_loaded()?;
            let bytes = footprint.bytes(model.plan(), context.dims());
            let bytes = bytes.ok_or_else(|| Error::Limit("the sizes are larger than any memory".into()))?;
            let (begin, mut samples) = (Instant::now(), Vec::new());
            while samples.len() < 10 || begin.elapsed().as_secs_f64() < self.args.seconds && samples.len() < 100_000 {
                let start = Instant::now();
                context.run_loaded()?;
                samples.push(start.elapsed().as_secs_f64());
            }
            outputs = if outputs.is_empty() { context.take_outputs()? } else { outputs };
            let (time, formula) = (Distribution::of(samples), footprint.formula().to_string());
            let bytes = bytes.saturating_add(code);
            tried.push(Candidate { precision, ordered, threads, bytes, formula, time, drop });
            let Some(last) = tried.last() else { return Ok((outputs, None)) };
            let (ram, in_time) = self.args.meets(last);
            if ram && in_time && drop <= self.args.max_drop {
                return Ok((outputs, Some(tried.len() - 1)));
            }
            if !ram || in_time || threads >= most {
                return Ok((outputs, None));
            }
            threads = (2 * threads).min(most);
        }
    }
}
