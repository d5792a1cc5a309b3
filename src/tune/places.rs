//! Measuring kernels that are cut, or lay their results out, otherwise than the rules have them.
//!
//! Invariant: what is compared are all kernels that differ between the ways of one graph, whichever those are; each is measured as a
//! search of its schedule does, and the ways in turns.

use super::record::{Database, Record};
use super::trial::{Measured, Trials};
use super::{Outcome, Settings, TURNS, finished, hash, quickest};
use crate::profile::Distribution;
use crate::{Compiled, Error};
use kiln_ir::graph::ValueId;
use kiln_passes::boundary::{self, Other, Wishes};
use kiln_passes::group::Group;
use kiln_passes::kernel::{Boundary, Choice, key};
use kiln_passes::pipeline::Scheduled;
use kiln_runtime::memory::Budget;
use std::collections::{BTreeMap, BTreeSet};

/// A kernel that could be cut, or lay its result out, otherwise.
#[derive(Clone, Debug)]
pub struct Place {
    /// Hash of what identifies it.
    pub kernel: String,
    /// How many of its kind there are.
    pub count: usize,
    /// The ops of the kernel.
    pub what: String,
    /// The type of its result.
    pub shape: String,
    /// The other ways, of the first of its kind.
    others: Vec<Other>,
}

/// The places of a compiled model, each distinct one once, in the order of the graph.
pub fn places(compiled: &Compiled) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for boundary::Place { key, others, what, output } in compiled.scheduled.places() {
        let kernel = hash(key.as_bytes());
        if let Some(place) = known.get(&kernel).and_then(|&n| found.get_mut(n)) {
            place.count += 1;
            continue;
        }
        known.insert(kernel.clone(), found.len());
        let shape = compiled.scheduled.graph.ty(output).to_string();
        found.push(Place { kernel, count: 1, what, shape, others });
    }
    found
}

/// A kernel by what it computes and which value that is.
type Name = (ValueId, String);

/// The kernels of a cut with their names.
fn named(cut: &Scheduled) -> Vec<(Name, &Group)> {
    cut.groups().map(|g| ((g.output, key(&cut.graph, g)), g)).collect()
}

/// The kernels of one cut that the other does not have.
fn only_in<'n, 'a>(cut: &'n [(Name, &'a Group)], other: &[(Name, &Group)]) -> Vec<&'n (Name, &'a Group)> {
    let others: BTreeSet<&Name> = other.iter().map(|(name, _)| name).collect();
    cut.iter().filter(|(name, _)| !others.contains(name)).collect()
}

/// One way: which of the kernels that the rules make stay, those that come, and what its turns took.
struct Way<'a> {
    boundary: Boundary,
    stay: Vec<usize>,
    come: Vec<Trials<'a>>,
    turns: Vec<Measured>,
}

/// Measures a place in all ways and writes it down; nothing where no other way can be compiled or changes a kernel.
///
/// # Errors
/// The database cannot be written; kernels that the model has cannot be compiled alone.
pub fn measure(
    compiled: &Compiled,
    place: &Place,
    settings: &Settings,
    database: &mut Database,
    budget: &Budget,
) -> Result<Option<Outcome>, Error> {
    if let Some(known) = finished(&place.kernel, settings, database) {
        return Ok(Some(known));
    }
    let own = &compiled.scheduled;
    let asked = |&Other { boundary, value, .. }: &Other| {
        let mut wishes = Wishes::default();
        wishes.ask(value, boundary);
        Ok((boundary, own.recut(&wishes)?))
    };
    let others = place.others.iter().map(asked).collect::<Result<Vec<_>, Error>>()?;
    let kernels = named(own);
    let others: Vec<_> = others.iter().map(|(boundary, other)| (*boundary, other, named(other))).collect();
    // For each of the other cuts which of the kernels that the rules make it does not have; what all of them have is of no account.
    let gone: Vec<BTreeSet<&Name>> =
        others.iter().map(|(.., of)| only_in(&kernels, of).into_iter().map(|(name, _)| name).collect()).collect();
    let before: Vec<&(Name, &Group)> =
        kernels.iter().filter(|(name, _)| gone.iter().any(|gone| gone.contains(name))).collect();
    let trial = |cut, g| Trials::new(cut, g, settings.level, settings.threads, compiled.plan.weight_bytes, budget);
    let mut by_rules: Vec<Trials<'_>> = before.iter().map(|(_, g)| trial(own, g)).collect();
    let all = (0..before.len()).collect();
    let mut ways = vec![Way { boundary: Boundary::Rules, stay: all, come: Vec::new(), turns: Vec::new() }];
    for ((boundary, other, of), gone) in others.iter().zip(&gone) {
        let stay = before.iter().enumerate().filter(|(_, (name, _))| !gone.contains(name)).map(|(n, _)| n).collect();
        let come: Vec<Trials<'_>> = only_in(of, &kernels).into_iter().map(|(_, g)| trial(other, g)).collect();
        if !come.is_empty() {
            ways.push(Way { boundary: *boundary, stay, come, turns: Vec::new() });
        }
    }
    for _ in 0..TURNS {
        let measured = |trials: &mut Vec<Trials<'_>>| -> Result<Vec<Measured>, Error> {
            trials.iter_mut().map(|t| t.measure(&Choice::default(), None)).collect()
        };
        let rules = measured(&mut by_rules)?;
        let mut possible = Vec::new();
        for mut way in ways {
            let come = match measured(&mut way.come) {
                Ok(come) => come,
                Err(Error::Code { .. } | Error::Unsupported(_)) => continue,
                Err(error) => return Err(error),
            };
            let stay = way.stay.iter().filter_map(|&n| rules.get(n));
            way.turns.push(together(&stay.chain(&come).collect::<Vec<_>>()));
            possible.push(way);
        }
        ways = possible;
    }
    if ways.len() < 2 {
        return Ok(None);
    }
    let mut records: Vec<Record> = Vec::new();
    for Way { boundary, turns, .. } in ways {
        let best = quickest(turns)?;
        let blank = settings.record(&place.kernel, &place.what, &place.shape).timed(&best.time);
        let default = boundary == Boundary::Rules;
        // Of those that are equally quick the rules are preferred.
        let estimate = if default { 0.0 } else { 1.0 };
        let schedule = Choice { boundary: Some(boundary), ..Choice::default() }.to_string();
        records.push(Record { schedule, default, estimate, last: true, code: best.code, ..blank });
    }
    let count = records.len();
    Outcome::of(records, database, (count, count)).map(Some)
}

/// Several kernels as if they were one: each time is their sum, the code that of all.
fn together(kernels: &[&Measured]) -> Measured {
    let sum = |of: &dyn Fn(&Distribution) -> f64| kernels.iter().map(|m| of(&m.time)).sum::<f64>();
    let time = Distribution {
        count: kernels.iter().map(|m| m.time.count).min().unwrap_or(0),
        min: sum(&|t| t.min),
        p20: sum(&|t| t.p20),
        median: sum(&|t| t.median),
        p80: sum(&|t| t.p80),
        p90: sum(&|t| t.p90),
    };
    let codes: Vec<&str> = kernels.iter().map(|m| m.code.as_str()).collect();
    Measured { time, code: hash(codes.join(" ").as_bytes()) }
}
