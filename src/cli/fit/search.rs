//! What is tried to meet a budget, and in which order.
//!
//! Invariant: what a candidate promises was measured on it: memory by the plan's formula at the dims of the inputs, time by runs, loss by
//! outputs compared with those of f32.

use super::{Args, Candidate};
use crate::cli::{Talk, compile, options};
use kiln::data::From;
use kiln::fit::Footprint;
use kiln::ir::Tensor;
use kiln::onnx::model::Model as Onnx;
use kiln::profile::Distribution;
use kiln::quantize::metric::{Metric, compare};
use kiln::quantize::onnx::{Plain, Sample};
use kiln::runtime::cpu::CpuLevel;
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::tune::record::{self, Database};
use kiln::tune::{self, places};
use kiln::{Compiled, Error, Options, Source, emit};
use std::collections::BTreeMap;
use std::time::Instant;

/// A way of computing less exactly than f32 does, from the most exact to the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rounding {
    /// None.
    None,
    /// Factors of products rounded to bf16.
    Bf16,
    /// Weights of a number of bits, with activations of 8 bits or as they are.
    Integers(Plain),
}

const fn integers(bits: u32, group: usize, activations: bool) -> Rounding {
    Rounding::Integers(Plain { bits, group, activations })
}

/// What is tried, in this order.
const ROUNDINGS: [(&str, Rounding); 5] = [
    ("f32", Rounding::None),
    ("bf16", Rounding::Bf16),
    ("int8 weights", integers(8, 0, false)),
    ("int8", integers(8, 0, true)),
    ("int4 weights", integers(4, 32, false)),
];

/// A model as it can be compiled in one precision.
struct Variant {
    precision: &'static str,
    /// Where it is not the user's own: the model with weights of few bits.
    model: Option<(Plain, Onnx)>,
    options: Options,
    drop: f64,
}

/// A search for what meets a budget.
pub(super) struct Search<'a> {
    args: &'a Args,
    talk: Talk,
    level: CpuLevel,
    budget: Budget,
    source: Source,
    onnx: Onnx,
    options: Options,
    /// Those with the dims of the inputs.
    fixed: Options,
    inputs: Vec<Tensor>,
    metric: Metric,
    /// The outputs of f32.
    reference: Vec<Tensor>,
    variants: Vec<Variant>,
    /// What was tried.
    pub(super) tried: Vec<Candidate>,
    /// Why something could not be tried.
    pub(super) notes: Vec<String>,
}

impl<'a> Search<'a> {
    /// Reads the model and its inputs.
    ///
    /// # Errors
    /// Either cannot be read.
    pub(super) fn new(args: &'a Args, metric: Metric, talk: Talk) -> Result<Search<'a>, Error> {
        let (level, budget) = (args.machinery.level_here()?, args.machinery.budget());
        let source = Source::open(&args.model)?;
        let onnx = source.model(&args.machinery.limits())?;
        let from = Some(args.inputs.from().unwrap_or(From::Seed(0)));
        let (fixed, inputs) = options::with_inputs(&onnx, &args.machinery, from, vec![level], &budget)?;
        let tuning = compile::schedules(&args.tuning, talk)?;
        let options = Options { shapes: BTreeMap::new(), tuning, ..fixed.clone() };
        Ok(Search {
            args,
            talk,
            level,
            budget,
            source,
            onnx,
            options,
            fixed,
            inputs,
            metric,
            reference: Vec::new(),
            variants: Vec::new(),
            tried: Vec::new(),
            notes: Vec::new(),
        })
    }

    /// The level of the code.
    pub(super) fn level(&self) -> CpuLevel {
        self.level
    }

    /// Tries one precision after the other, then other schedules where those are asked for; the candidate that fits and its program.
    ///
    /// # Errors
    /// The model does not compile or run; what only a quantized form of it lacks is a note.
    pub(super) fn run(&mut self) -> Result<Option<(usize, Compiled)>, Error> {
        for (precision, rounding) in ROUNDINGS {
            match self.precision(precision, rounding) {
                Ok(None) => {}
                Err(error @ (Error::Usage(_) | Error::Unsupported(_) | Error::Import(_) | Error::Data { .. }))
                    if matches!(rounding, Rounding::Integers(_)) =>
                {
                    self.notes.push(format!("no {precision}: {error}"));
                }
                found => return found,
            }
        }
        self.tuned()
    }

    fn precision(&mut self, precision: &'static str, rounding: Rounding) -> Result<Option<(usize, Compiled)>, Error> {
        let (mut model, mut options) = (None, self.options.clone());
        match rounding {
            Rounding::None => {}
            Rounding::Bf16 => options.precision = kiln::Precision::Bf16,
            Rounding::Integers(plain) => {
                model = Some((plain, plain.apply(&self.onnx, self.args.machinery.threads())?));
            }
        }
        let exact = rounding == Rounding::None;
        let mut compiled = match self.compile(model.as_ref(), &options) {
            // Where shapes hang on values, the dims are those of the inputs.
            Err(Error::Import(_)) if exact => {
                options = Options { tuning: options.tuning, ..self.fixed.clone() };
                let named = options::by_name(&self.onnx, &self.inputs);
                let compiled = loop {
                    match self.compile(None, &options) {
                        Err(error) if options.learn(&error, &named) => {}
                        done => break done?,
                    }
                };
                self.options = options.clone();
                compiled
            }
            done => done?,
        };
        let drop = if exact { 0.0 } else { self.lost(&compiled)? };
        self.variants.push(Variant { precision, model, options, drop });
        let (outputs, found) = self.candidates(&mut compiled, self.variants.len() - 1)?;
        if exact {
            self.reference = outputs;
        }
        Ok(found.map(|n| (n, compiled)))
    }

    /// The program of the user's model, or of what was made of it. It can be made from the user's again.
    fn compile(&self, model: Option<&(Plain, Onnx)>, options: &Options) -> Result<Compiled, Error> {
        let (watching, machinery) = (&self.args.watching, &self.args.machinery);
        let onnx = model.map_or(&self.onnx, |(_, quantized)| quantized);
        let mut compiled = options::compile(onnx, options, watching, machinery, self.talk)?;
        if let Source::Model { bytes, .. } = &self.source {
            compiled.record_model(bytes, &self.onnx);
        }
        if let Some((plain, _)) = model {
            compiled.record_quantized(*plain);
        }
        Ok(compiled)
    }

    /// What a program loses by the metric.
    fn lost(&self, compiled: &Compiled) -> Result<f64, Error> {
        let model = compiled.load(&ModelOptions::default())?;
        let after = Context::new(&model, self.args.machinery.threads(), &self.budget)?.run(&self.inputs)?;
        let sample = Sample { inputs: self.inputs.clone(), labels: None };
        Ok(compare(&self.metric, std::slice::from_ref(&self.reference), &[after], &[sample])?.drop)
    }

    /// Where time alone is missed: the quickest of what fits otherwise, with schedules that a search finds in the time given.
    fn tuned(&mut self) -> Result<Option<(usize, Compiled)>, Error> {
        let Some(time) = self.args.tune else { return Ok(None) };
        let fits = |c: &&Candidate| self.args.meets(c).0 && c.drop <= self.args.max_drop;
        let quickest = self.tried.iter().filter(fits).min_by(|a, b| a.time.p90.total_cmp(&b.time.p90));
        let Some(Candidate { variant, ordered, .. }) = quickest else { return Ok(None) };
        let (variant, ordered) = (*variant, *ordered);
        let Variant { model, options, .. } = &self.variants[variant];
        let (model, mut options) = (model.as_ref(), options.clone());
        let end = Instant::now() + time;
        let mut compiled = self.compile(model, &options)?;
        let level = compiled.code.last().map_or(self.level, |code| code.level);
        let settings = tune::Settings {
            level,
            threads: 1,
            seed: 0,
            trials: tune::TRIALS as usize,
            patience: tune::PATIENCE as usize,
            cpu: record::cpu_name(),
        };
        let folder = tempfile::tempdir().map_err(|e| Error::Internal(format!("a temporary folder: {e}")))?;
        let mut database = Database::open(&folder.path().join("fit.jsonl"))?;
        for place in places::places(&compiled) {
            if Instant::now() < end {
                places::measure(&compiled, &place, &settings, &mut database, &self.budget)?;
            }
        }
        let add = |options: &mut Options, database: &Database| {
            let found = record::Tuning::of(&database.records, &settings.cpu);
            let changed = !found.choices.is_empty();
            options.tuning.choices.extend(found.choices);
            changed
        };
        if add(&mut options, &database) {
            compiled = self.compile(model, &options)?;
        }
        let machine = emit::Emitter::of(level, &compiled.scheduled)?.machine();
        let subjects = tune::subjects(&compiled, &machine);
        let until = (Some(end), &self.budget);
        tune::search_all(&compiled, &subjects, &settings, &mut database, until, &mut |_, _, _, _, _| {})?;
        if !add(&mut options, &database) {
            self.notes.push("tuning found nothing quicker than the cost model".into());
            return Ok(None);
        }
        compiled = self.compile(model, &options)?;
        if ordered {
            compiled.save_memory();
        }
        let (_, found) = self.threads(&compiled, (variant, ordered, true))?;
        Ok(found.map(|n| (n, compiled)))
    }

    /// Tries a program as it is and, where memory is missed, with its steps in another order; the outputs, and which candidate
    /// fits. The program is left as the last one that was tried.
    fn candidates(&mut self, compiled: &mut Compiled, variant: usize) -> Result<(Vec<Tensor>, Option<usize>), Error> {
        let (outputs, found) = self.threads(compiled, (variant, false, false))?;
        let short = self.tried.last().is_some_and(|c| !self.args.meets(c).0);
        if found.is_none() && short && compiled.save_memory() {
            return self.threads(compiled, (variant, true, false));
        }
        Ok((outputs, found))
    }

    /// Tries one thread, then more until the time is met.
    fn threads(
        &mut self,
        compiled: &Compiled,
        (variant, ordered, tuned): (usize, bool, bool),
    ) -> Result<(Vec<Tensor>, Option<usize>), Error> {
        let Variant { precision, drop, .. } = self.variants[variant];
        let args = self.args;
        let model = compiled.load(&ModelOptions::default())?;
        let code = compiled.code.iter().map(|c| c.bytes.len() as u64).max().unwrap_or(0);
        let footprint = Footprint::of(model.plan());
        let (mut outputs, mut threads) = (Vec::new(), 1);
        let most = if args.latency.is_some() { args.machinery.threads() } else { 1 };
        loop {
            let mut context = Context::new(&model, threads, &self.budget)?;
            context.load(&self.inputs)?;
            context.run_loaded()?;
            let bytes = footprint.bytes(model.plan(), context.dims());
            let bytes = bytes.ok_or_else(|| Error::Limit("the sizes are larger than any memory".into()))?;
            let (begin, mut samples) = (Instant::now(), Vec::new());
            while samples.len() < 10 || begin.elapsed().as_secs_f64() < args.seconds && samples.len() < 100_000 {
                let start = Instant::now();
                context.run_loaded()?;
                samples.push(start.elapsed().as_secs_f64());
            }
            outputs = if outputs.is_empty() { context.take_outputs()? } else { outputs };
            let (time, formula) = (Distribution::of(samples), footprint.formula().to_string());
            let bytes = bytes.saturating_add(code);
            let candidate = Candidate { precision, ordered, tuned, threads, bytes, formula, time, drop, variant };
            let (ram, in_time) = args.meets(&candidate);
            self.tried.push(candidate);
            if ram && in_time && drop <= args.max_drop {
                return Ok((outputs, Some(self.tried.len() - 1)));
            }
            if !ram || in_time || threads >= most {
                return Ok((outputs, None));
            }
            threads = (2 * threads).min(most);
        }
    }
}
