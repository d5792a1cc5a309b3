//! Searching schedules by measured trials.
//!
//! Invariant: with the same seed, the same records and the same times the search takes the same steps; every trial is in the
//! database before the next begins, and a search that begins again takes what is there as measured.
//!
//! First the places where fusion has a choice are measured ([`places`]), since they decide which kernels there are; then the schedules
//! of the kernels. The search of schedules is evolutionary (Bäck, "Evolutionary Algorithms in Theory and Practice", 1996): the cost model ranks all
//! schedules and gives the first generation; then the best so far are crossed and changed in one part.

pub mod places;
pub mod record;
mod trial;

use crate::profile::Distribution;
use crate::{Compiled, Error, VERSION};
use kiln_passes::group::Group;
use kiln_passes::kernel::{Choice, Machine, SCHEDULE_VERSION, Space, key};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::memory::Budget;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use record::{Database, Record};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
pub use trial::{Measured, Trials};

/// Hex digits of a hash: enough that no two kernels of a lifetime have the same.
const DIGITS: usize = 32;

/// The hash by which records name a kernel or code.
pub fn hash(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..DIGITS].to_string()
}

/// A kernel that can be tuned.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Hash of what identifies it.
    pub kernel: String,
    /// Its first place among the plan's kernels, and how many kernels of the plan are the same.
    pub first: usize,
    /// How many kernels of the plan are the same.
    pub count: usize,
    /// What it does.
    pub what: String,
    /// Types of operands and result.
    pub shapes: String,
    /// Estimated operations of one run.
    pub operations: u64,
    /// What may be chosen.
    pub space: Space,
}

/// The kernels of a compiled model that can be tuned, each distinct one once, the most work first.
pub fn subjects(compiled: &Compiled, machine: &Machine) -> Vec<Subject> {
    let graph = &compiled.scheduled.graph;
    let mut found: BTreeMap<String, Subject> = BTreeMap::new();
    for (first, group) in compiled.scheduled.groups().enumerate() {
        let Some(space) = Space::of(graph, group, machine) else { continue };
        let kernel = hash(key(graph, group).as_bytes());
        let operations = compiled.plan.kernels.get(first).map_or(0, |k| k.operations);
        let make = |kernel: &String| {
            let (kernel, what, shapes) = (kernel.clone(), group.what.clone(), shapes(compiled, group));
            Subject { kernel, first, count: 0, what, shapes, operations, space }
        };
        found.entry(kernel).or_insert_with_key(make).count += 1;
    }
    let mut all: Vec<Subject> = found.into_values().collect();
    all.sort_by_key(|s| (std::cmp::Reverse(s.operations.saturating_mul(s.count as u64)), s.first));
    all
}

fn shapes(compiled: &Compiled, group: &Group) -> String {
    let graph = &compiled.scheduled.graph;
    let types: Vec<String> = group.inputs.iter().map(|&v| graph.ty(v).to_string()).collect();
    format!("{} -> {}", types.join(" "), graph.ty(group.output))
}

/// How to search.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Level of the code, which must run here.
    pub level: CpuLevel,
    /// Threads that kernels run on.
    pub threads: usize,
    /// Seed of what is tried.
    pub seed: u64,
    /// Trials of a kernel at most.
    pub trials: usize,
    /// Generations without gain after which a search ends.
    pub patience: usize,
    /// The processor's name, for the records.
    pub cpu: String,
}

impl Settings {
    /// A record of such a search in which nothing is measured yet.
    fn record(&self, kernel: &str, what: &str, shapes: &str) -> Record {
        Record {
            kernel: kernel.into(),
            what: what.into(),
            shapes: shapes.into(),
            level: self.level.name().into(),
            cpu: self.cpu.clone(),
            threads: self.threads,
            schedule: String::new(),
            default: false,
            estimate: 0.0,
            last: false,
            samples: 0,
            min_ns: 0.0,
            p20_ns: 0.0,
            median_ns: 0.0,
            p80_ns: 0.0,
            code: String::new(),
            compiler: VERSION.into(),
            format: SCHEDULE_VERSION,
            seed: self.seed,
        }
    }
}

/// What is known after a search.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Times of the cost model's schedule, compared in turns with the best.
    pub default: Record,
    /// The best.
    pub best: Record,
    /// Trials that were made now, and schedules that are known altogether.
    pub trials: usize,
    /// Schedules that have been measured.
    pub known: usize,
}

impl Outcome {
    /// Of the records of a comparison, the cost model's own first; they are written down.
    fn of(records: Vec<Record>, database: &mut Database, (trials, known): (usize, usize)) -> Result<Outcome, Error> {
        let default = records.first().cloned().ok_or_else(|| Error::Internal("nothing was compared".into()))?;
        let best = record::best_of(&records.iter().collect::<Vec<_>>()).cloned().unwrap_or_else(|| default.clone());
        records.into_iter().try_for_each(|record| database.add(record))?;
        Ok(Outcome { default, best, trials, known })
    }

    /// How much less time the best takes.
    pub fn gain(&self) -> f64 {
        self.default.p20_ns / self.best.p20_ns.max(1.0)
    }
}

/// The quickest turn: one is slow because of what else ran, never quick because of it.
fn quickest(turns: Vec<Measured>) -> Result<Measured, Error> {
    let best = turns.into_iter().min_by(|a, b| a.time.p20.total_cmp(&b.time.p20));
    best.ok_or_else(|| Error::Internal("nothing was compared".into()))
}

/// Schedules of a kernel to know at most, where nothing else is asked for.
pub const TRIALS: u32 = 96;
/// Generations without gain after which a search ends, likewise.
pub const PATIENCE: u32 = 3;

/// Trials of a generation.
const GENERATION: usize = 8;
/// Parents of a generation.
const PARENTS: usize = 5;
/// Turns of the last comparison, and how many are in it besides the cost model's own.
const TURNS: usize = 5;
const FINALISTS: usize = 3;

/// A search for the schedule of one kernel.
pub struct Search<'a> {
    subject: &'a Subject,
    settings: &'a Settings,
    trials: Trials<'a>,
    choices: Vec<Choice>,
    known: BTreeMap<Choice, f64>,
    made: usize,
    rng: ChaCha8Rng,
}

impl<'a> Search<'a> {
    /// A search that begins with what the database knows.
    ///
    /// # Errors
    /// [`Error::Internal`] where the subject is of another model.
    pub fn new(
        compiled: &'a Compiled,
        subject: &'a Subject,
        settings: &'a Settings,
        database: &Database,
        budget: &'a Budget,
    ) -> Result<Search<'a>, Error> {
        let group = compiled.scheduled.groups().nth(subject.first);
        let group = group.ok_or_else(|| Error::Internal("a kernel that is not there is tuned".into()))?;
        let weights = compiled.plan.weight_bytes;
        let trials = Trials::new(&compiled.scheduled, group, settings.level, settings.threads, weights, budget);
        let mut choices = subject.space.choices();
        choices.sort_by(|a, b| subject.space.estimate(a).total_cmp(&subject.space.estimate(b)).then(a.cmp(b)));
        let known = database.records.iter().filter(|r| of_search(r, &subject.kernel, settings));
        let known = known.filter_map(|r| Some((r.schedule.parse().ok()?, r.p20_ns * 1e-9)));
        let mut least: BTreeMap<Choice, f64> = BTreeMap::new();
        known.for_each(|(choice, time)| {
            least.entry(choice).and_modify(|t| *t = t.min(time)).or_insert(time);
        });
        // Each kernel has numbers of its own, whichever kernels are searched before it.
        let stream = u64::from_str_radix(subject.kernel.get(..16).unwrap_or("0"), 16).unwrap_or(0);
        let mut rng = ChaCha8Rng::seed_from_u64(settings.seed);
        rng.set_stream(stream);
        Ok(Search { subject, settings, trials, choices, known: least, made: 0, rng })
    }

    fn best(&self) -> Option<f64> {
        self.known.values().copied().reduce(f64::min)
    }

    /// Searches until the budget, the deadline or the patience ends; `report` hears of each trial: how many were made, and the
    /// cost model's and the best time so far.
    ///
    /// # Errors
    /// The database cannot be written; the cost model's own schedule cannot be compiled.
    pub fn run(
        mut self,
        database: &mut Database,
        deadline: Option<Instant>,
        report: &mut dyn FnMut(usize, f64, f64),
    ) -> Result<Outcome, Error> {
        let default = self.subject.space.default;
        let late = || deadline.is_some_and(|d| Instant::now() >= d);
        let mut own = match self.known.get(&default) {
            Some(&time) => time,
            None => self.trial(&default, None, database)?.unwrap_or(f64::INFINITY),
        };
        let first: Vec<Choice> = self.choices.iter().copied().take(2 * GENERATION).collect();
        let mut idle = 0;
        let mut next: Vec<Choice> = first;
        while !late() && self.known.len() < self.settings.trials && idle < self.settings.patience && !next.is_empty() {
            let before = self.best().unwrap_or(f64::INFINITY);
            for choice in next {
                if late() || self.known.len() >= self.settings.trials {
                    break;
                }
                if !self.known.contains_key(&choice) {
                    let limit = self.best();
                    self.trial(&choice, limit, database)?;
                    own = self.known.get(&default).copied().unwrap_or(own);
                    report(self.made, own, self.best().unwrap_or(own));
                }
            }
            let gained = self.best().is_some_and(|best| best < 0.99 * before);
            idle = if gained { 0 } else { idle + 1 };
            next = self.generation();
        }
        self.compare(database)
    }

    /// Schedules to try next: children of the best, and some at random.
    fn generation(&mut self) -> Vec<Choice> {
        let mut parents: Vec<(f64, Choice)> = self.known.iter().map(|(c, t)| (*t, *c)).collect();
        parents.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        parents.truncate(PARENTS);
        let open: Vec<Choice> = self.choices.iter().copied().filter(|c| !self.known.contains_key(c)).collect();
        let valid: BTreeSet<Choice> = open.iter().copied().collect();
        let mut next = BTreeSet::new();
        let mut tries = 0;
        while next.len() < GENERATION.min(valid.len()) {
            tries += 1;
            let child = match (self.pick(parents.len()), self.pick(parents.len())) {
                (Some(a), Some(b)) if tries < 200 => {
                    let (a, b, other) = (parents[a].1, parents[b].1, self.pick(self.choices.len()));
                    let other = other.map_or(a, |n| self.choices[n]);
                    self.child(a, b, other)
                }
                _ => match self.pick(open.len()) {
                    Some(n) => open[n],
                    None => break,
                },
            };
            if valid.contains(&child) {
                next.insert(child);
            }
        }
        next.into_iter().collect()
    }

    fn pick(&mut self, count: usize) -> Option<usize> {
        (count > 0).then(|| (self.rng.next_u64() % count as u64) as usize)
    }

    /// Each part from one of two parents, and one part from anywhere.
    fn child(&mut self, a: Choice, b: Choice, other: Choice) -> Choice {
        let bits = self.rng.next_u32();
        let from = |n: u32| if bits >> n & 1 == 0 { &a } else { &b };
        // Columns and panel go together: a panel is a multiple of the columns.
        let tile = from(1);
        let mut child = Choice {
            rows: from(0).rows,
            columns: tile.columns,
            panel: tile.panel,
            unroll: from(2).unroll,
            order: from(3).order,
            boundary: None,
        };
        match bits >> 8 & 7 {
            0 | 1 => child.rows = other.rows,
            2 | 3 => (child.columns, child.panel) = (other.columns, other.panel),
            4 => child.panel = child.columns.map(|c| c << (bits >> 16 & 1)).filter(|_| child.panel.is_some()),
            5 => child.unroll = other.unroll,
            _ => child.order = other.order,
        }
        child
    }

    /// Measures a schedule and writes it down; nothing where it cannot be compiled.
    fn trial(&mut self, choice: &Choice, limit: Option<f64>, database: &mut Database) -> Result<Option<f64>, Error> {
        self.made += 1;
        let measured = match self.trials.measure(choice, limit) {
            Ok(measured) => measured,
            Err(error) if *choice == self.subject.space.default => return Err(error),
            Err(Error::Code { .. } | Error::Unsupported(_)) => {
                self.known.insert(*choice, f64::INFINITY);
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        self.known.insert(*choice, measured.time.p20);
        database.add(self.record(choice, &measured.time, &measured.code, false))?;
        Ok(Some(measured.time.p20))
    }

    fn record(&self, choice: &Choice, time: &Distribution, code: &str, last: bool) -> Record {
        let Subject { kernel, what, shapes, space, .. } = self.subject;
        let blank = self.settings.record(kernel, what, shapes);
        let (default, estimate) = (*choice == space.default, space.estimate(choice).round());
        Record { schedule: choice.to_string(), default, estimate, last, code: code.into(), ..blank.timed(time) }
    }

    /// The best few against the cost model's own, in turns: what the machine does meanwhile meets all of them.
    fn compare(&mut self, database: &mut Database) -> Result<Outcome, Error> {
        let default = self.subject.space.default;
        let mut order: Vec<(f64, Choice)> = self.known.iter().map(|(c, t)| (*t, *c)).collect();
        order.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let quick = order.iter().filter(|(t, c)| t.is_finite() && *c != default).map(|(_, c)| *c);
        let finalists: Vec<Choice> = std::iter::once(default).chain(quick.take(FINALISTS)).collect();
        let mut turns: Vec<Vec<Measured>> = vec![Vec::new(); finalists.len()];
        for _ in 0..TURNS {
            for (choice, turns) in finalists.iter().zip(&mut turns) {
                turns.push(self.trials.measure(choice, None)?);
            }
        }
        let mut records = Vec::new();
        for (choice, turns) in finalists.iter().zip(turns) {
            let best = quickest(turns)?;
            records.push(self.record(choice, &best.time, &best.code, true));
        }
        Outcome::of(records, database, (self.made, self.known.len()))
    }
}

/// Whether a record is of the same search: kernel, code and machine.
fn of_search(r: &Record, kernel: &str, settings: &Settings) -> bool {
    r.kernel == kernel
        && r.level == settings.level.name()
        && r.threads == settings.threads
        && r.stale(&settings.cpu).is_none()
}

/// What a finished search of the same seed found, where the database has it.
pub fn finished(kernel: &str, settings: &Settings, database: &Database) -> Option<Outcome> {
    let of: Vec<&Record> = database.records.iter().filter(|r| of_search(r, kernel, settings)).collect();
    let last: Vec<&Record> = of.iter().copied().filter(|r| r.last && r.seed == settings.seed).collect();
    let default = last.iter().rev().find(|r| r.default).copied()?;
    let best = record::best_of(&last).unwrap_or(default);
    let known: BTreeSet<&str> = of.iter().map(|r| r.schedule.as_str()).collect();
    Some(Outcome { default: default.clone(), best: best.clone(), trials: 0, known: known.len() })
}

/// Searches the schedules of all subjects, one after another; `heard` hears of each trial: whose it was, how many were made, and the
/// cost model's and the best time so far. What there is no time for stays with the cost model: nothing is said of it.
///
/// # Errors
/// Those of [`Search::run`].
pub fn search_all(
    compiled: &Compiled,
    subjects: &[Subject],
    settings: &Settings,
    database: &mut Database,
    (end, budget): (Option<Instant>, &Budget),
    heard: &mut dyn FnMut(usize, &Subject, usize, f64, f64),
) -> Result<Vec<Option<Outcome>>, Error> {
    let mut outcomes: Vec<Option<Outcome>> = Vec::new();
    for (n, subject) in subjects.iter().enumerate() {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let outcome = match finished(&subject.kernel, settings, database) {
            Some(outcome) => Some(outcome),
            None if left.is_some_and(|left| left.is_zero()) => None,
            None => {
                let rest = subjects.get(n..).unwrap_or_default();
                let deadline = left.map(|left| Instant::now() + allowance(left, rest));
                let search = Search::new(compiled, subject, settings, database, budget)?;
                let mut report = |trials: usize, own: f64, best: f64| heard(n, subject, trials, own, best);
                let outcome = search.run(database, deadline, &mut report)?;
                let gain = outcome.gain();
                tracing::info!("k{} {}: {gain:.2}x after {} trials", subject.first, subject.what, outcome.trials);
                Some(outcome)
            }
        };
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// The time that each of the kernels that are left may take of what is left of a budget: by their work, not too unevenly.
fn allowance(left: Duration, subjects: &[Subject]) -> Duration {
    let weight = |s: &Subject| (s.operations as f64 * s.count as f64).max(1.0).sqrt();
    let all: f64 = subjects.iter().map(weight).sum();
    let first = subjects.first().map_or(0.0, weight);
    left.mul_f64(if all > 0.0 { (first / all).clamp(0.0, 1.0) } else { 0.0 })
}
