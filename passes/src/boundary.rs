//! Places where fusion has a choice, as a search by measurements sees them.
//!
//! Invariant: a wish moves where a value is computed, into its reader or into memory; what it is stays, and what fusion must refuse
//! stays refused.

use crate::fusion::{Attempt, Refusal, Way};
use crate::group::{Group, Work, only_moves};
use crate::kernel::{Cut, key};
use kiln_ir::graph::{Graph, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What was asked for, by value: whether it is computed in the kernel that reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes(BTreeMap<ValueId, bool>);

impl Wishes {
    /// What was asked for the value, if anything was.
    pub fn of(&self, value: ValueId) -> Option<bool> {
        self.0.get(&value).copied()
    }

    /// Asks for a value to be fused, or not to be; whether that is new. The first wish for a value holds.
    pub fn ask(&mut self, value: ValueId, fused: bool) -> bool {
        let new = !self.0.contains_key(&value);
        self.0.entry(value).or_insert(fused);
        new
    }
}

/// A kernel that could be cut otherwise: in two, or together with one whose value it reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What identifies it, whatever model it is in: the kernel, and those that it could take in.
    pub key: String,
    /// The other ways, and the value that each is about.
    pub cuts: Vec<(Cut, ValueId)>,
    /// The ops of the kernel, for people.
    pub what: String,
    /// The kernel's result.
    pub output: ValueId,
}

/// The kernels where fusion chose by cost, or could have left a value apart from a fold.
pub fn places(graph: &Graph, work: &[Work], attempts: &[Attempt]) -> Vec<Place> {
    let mut holder: BTreeMap<NodeId, &Group> = BTreeMap::new();
    let mut maker: BTreeMap<ValueId, &Group> = BTreeMap::new();
    let mut twice: BTreeSet<NodeId> = BTreeSet::new();
    for group in work.iter().filter_map(Work::kernel) {
        maker.insert(group.output, group);
        for &node in &group.nodes {
            if holder.insert(node, group).is_some() {
                twice.insert(node);
            }
        }
    }
    let mut found: BTreeMap<ValueId, Place> = BTreeMap::new();
    let mut seen: BTreeSet<ValueId> = BTreeSet::new();
    for attempt in attempts {
        let value = attempt.value;
        // A node in several kernels, such as a view, is no place between two of them.
        let Some(reader) = holder.get(&attempt.reader).filter(|_| !twice.contains(&attempt.reader)) else { continue };
        let mut taken_in = None;
        let cut = match attempt.verdict {
            Err(Refusal::Cost(_) | Refusal::Reuse(_) | Refusal::Product) => {
                taken_in = maker.get(&value).filter(|made| made.output != reader.output);
                let place = reader.inputs.iter().position(|&v| v == value);
                place.filter(|_| taken_in.is_some()).map(Cut::With)
            }
            Ok(Way::Inlined | Way::Finished | Way::Bordered) if reader.folds() => {
                let producer = graph.producer(value).filter(|n| !twice.contains(n) && !only_moves(graph, *n));
                let nodes: BTreeSet<NodeId> = reader.nodes.iter().copied().collect();
                producer.and_then(|producer| nodes.iter().position(|&n| n == producer)).map(Cut::Apart)
            }
            Ok(_) | Err(_) => None,
        };
        let Some(cut) = cut.filter(|_| seen.insert(value)) else { continue };
        let place = found.entry(reader.output).or_insert_with(|| Place {
            key: format!("fusion of\n{}", key(graph, reader)),
            cuts: Vec::new(),
            what: reader.what.clone(),
            output: reader.output,
        });
        place.cuts.push((cut, value));
        if let Some(made) = taken_in {
            // Writing to a string cannot fail.
            let _ = write!(place.key, "\n{cut} {}", key(graph, made));
        }
    }
    found.into_values().collect()
}
