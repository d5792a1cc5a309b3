//! Measuring the places where fusion has a choice.
//!
//! Invariant: what is compared are the kernels that differ between the two cuts of one graph, whichever those are; each is measured as a
//! search of its schedule does, and the two sides in turns.

use super::record::{self, Database, Record};
use super::trial::{Measured, Trials};
use super::{Outcome, Settings, finished, hash};
use crate::profile::Distribution;
use crate::{Compiled, Error};
use kiln_passes::boundary::{Boundary, Wishes};
use kiln_passes::group::Group;
use kiln_passes::kernel::{Choice, key};
use kiln_passes::pipeline::Scheduled;
use kiln_runtime::memory::Budget;
use std::collections::{BTreeMap, BTreeSet};

/// A place where fusion has a choice.
#[derive(Clone, Debug)]
pub struct Place {
    /// Hash of what identifies it.
    pub kernel: String,
    /// The first of its kind in the model.
    pub boundary: Boundary,
    /// How many of its kind there are.
    pub count: usize,
    /// The type of the value.
    pub shape: String,
}

/// The places of a compiled model, each distinct one once, in the order of the graph.
pub fn places(compiled: &Compiled) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    for boundary in compiled.scheduled.boundaries() {
        let kernel = hash(boundary.key.as_bytes());
        if let Some(place) = known.get(&kernel).and_then(|&n| found.get_mut(n)) {
            place.count += 1;
            continue;
        }
        known.insert(kernel.clone(), found.len());
        let shape = compiled.scheduled.graph.ty(boundary.value).to_string();
        found.push(Place { kernel, boundary, count: 1, shape });
    }
    found
}

/// The kernels of one cut that the other does not have.
fn only_in<'a>(cut: &'a Scheduled, other: &Scheduled) -> Vec<&'a Group> {
    let name = |cut: &Scheduled, g: &Group| (g.output, key(&cut.graph, g));
    let others: BTreeSet<_> = other.groups().map(|g| name(other, g)).collect();
    cut.groups().filter(|g| !others.contains(&name(cut, g))).collect()
}

/// Turns of a comparison.
const TURNS: usize = 5;

/// Measures a place both ways and writes it down; nothing where the other way cannot be compiled or changes no kernel.
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
    let (own, fused) = (&compiled.scheduled, place.boundary.fused);
    let mut wishes = Wishes::default();
    wishes.ask(place.boundary.value, !fused);
    let other = own.recut(&wishes)?;
    let weights = compiled.plan.weight_bytes;
    let trial = |cut, g| Trials::new(cut, g, settings.level, settings.threads, weights, budget);
    let (before, after) = (only_in(own, &other), only_in(&other, own));
    if before.is_empty() || after.is_empty() {
        return Ok(None);
    }
    let before: Vec<Trials<'_>> = before.into_iter().map(|g| trial(own, g)).collect();
    let after: Vec<Trials<'_>> = after.into_iter().map(|g| trial(&other, g)).collect();
    let mut sides = [(fused, before, Vec::new()), (!fused, after, Vec::new())];
    for _ in 0..TURNS {
        for (as_it_is, trials, turns) in &mut sides {
            let side: Result<Vec<Measured>, Error> =
                trials.iter_mut().map(|t| t.measure(&Choice::default(), None)).collect();
            match side {
                Ok(side) => turns.push(together(&side)),
                Err(Error::Code { .. } | Error::Unsupported(_)) if *as_it_is != fused => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
    let mut records: Vec<Record> = Vec::new();
    for (is_fused, _, turns) in sides {
        // The quickest turn of each: a turn is slow because of what else ran, never quick because of it.
        let best = turns.into_iter().min_by(|a, b| a.time.p20.total_cmp(&b.time.p20));
        let best = best.ok_or_else(|| Error::Internal("nothing was compared".into()))?;
        let choice = Choice { fused: Some(is_fused), ..Choice::default() };
        let blank = settings.record(&place.kernel, &place.boundary.what, &place.shape).timed(&best.time);
        let default = is_fused == fused;
        // Of two that are equally quick the rules of fusion are preferred.
        let estimate = if default { 0.0 } else { 1.0 };
        let record = Record { schedule: choice.to_string(), default, estimate, last: true, code: best.code, ..blank };
        database.add(record.clone())?;
        records.push(record);
    }
    let default = records.first().cloned().ok_or_else(|| Error::Internal("nothing was compared".into()))?;
    let best = record::best_of(&records.iter().collect::<Vec<_>>()).cloned().unwrap_or_else(|| default.clone());
    Ok(Some(Outcome { default, best, trials: 2, known: 2 }))
}

/// Several kernels as if they were one: each time is their sum, the code that of all.
fn together(side: &[Measured]) -> Measured {
    let sum = |of: &dyn Fn(&Distribution) -> f64| side.iter().map(|m| of(&m.time)).sum::<f64>();
    let time = Distribution {
        count: side.iter().map(|m| m.time.count).min().unwrap_or(0),
        min: sum(&|t| t.min),
        p20: sum(&|t| t.p20),
        median: sum(&|t| t.median),
        p80: sum(&|t| t.p80),
        p90: sum(&|t| t.p90),
    };
    let codes: Vec<&str> = side.iter().map(|m| m.code.as_str()).collect();
    Measured { time, code: hash(codes.join(" ").as_bytes()) }
}
