//! Places where fusion has a choice, as a search by measurements sees them.
//!
//! Invariant: a wish moves where a value is computed, into its reader or into memory; what it is stays, and what fusion must refuse
//! stays refused.

use crate::fusion::{Attempt, Refusal, Way};
use crate::group::{Group, Work, only_moves};
use crate::kernel::key;
use kiln_ir::graph::{Graph, NodeId, ValueId};
use std::collections::{BTreeMap, BTreeSet};

/// What was asked for: whether a value is computed in the kernel that reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes(BTreeMap<ValueId, bool>);

impl Wishes {
    /// What was asked for the value, if anything was.
    pub fn of(&self, value: ValueId) -> Option<bool> {
        self.0.get(&value).copied()
    }

    /// Asks for a value to be fused, or not to be; whether that is new. The first wish for a value holds.
    pub fn ask(&mut self, value: ValueId, fused: bool) -> bool {
        if self.0.contains_key(&value) {
            return false;
        }
        self.0.insert(value, fused);
        true
    }
}

/// A value between two kernels that could be one, or within one that could be two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// The value.
    pub value: ValueId,
    /// Whether its reader computes it, as the rules of fusion decided.
    pub fused: bool,
    /// What identifies the place, whatever model it is in: the kernel or kernels, and which of their values it is.
    pub key: String,
    /// The nodes of the kernel or of both.
    pub nodes: BTreeSet<NodeId>,
    /// The ops on the two sides, for people.
    pub what: String,
}

/// What keys begin with.
const FUSED: &str = "fused at op";
const APART: &str = "apart at operand";

impl Boundary {
    /// Whether a key is of a value that its reader computes.
    pub fn is_fused(key: &str) -> bool {
        key.starts_with(FUSED)
    }
}

/// The places where fusion chose by cost, or could have left a value apart from a fold: once for each value.
pub fn boundaries(graph: &Graph, work: &[Work], attempts: &[Attempt]) -> Vec<Boundary> {
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
    let mut found: BTreeMap<ValueId, Boundary> = BTreeMap::new();
    for attempt in attempts {
        let value = attempt.value;
        // A node in several kernels, such as a view, is no place between two of them.
        let Some(reader) = holder.get(&attempt.reader).filter(|_| !twice.contains(&attempt.reader)) else { continue };
        let boundary = match attempt.verdict {
            Err(Refusal::Cost(_) | Refusal::Reuse(_) | Refusal::Product) => {
                let Some(made) = maker.get(&value).filter(|made| made.output != reader.output) else { continue };
                let Some(place) = reader.inputs.iter().position(|&v| v == value) else { continue };
                Boundary {
                    value,
                    fused: false,
                    key: format!("{APART} {place} of\n{}\nfrom\n{}", key(graph, reader), key(graph, made)),
                    nodes: made.nodes.iter().chain(&reader.nodes).copied().collect(),
                    what: format!("{} | {}", made.what, reader.what),
                }
            }
            Ok(Way::Inlined | Way::Finished) if reader.folds() => {
                let Some(producer) = graph.producer(value).filter(|n| !twice.contains(n)) else { continue };
                if only_moves(graph, producer) {
                    continue;
                }
                let nodes: BTreeSet<NodeId> = reader.nodes.iter().copied().collect();
                let Some(place) = nodes.iter().position(|&n| n == producer) else { continue };
                Boundary {
                    value,
                    fused: true,
                    key: format!("{FUSED} {place} of\n{}", key(graph, reader)),
                    nodes,
                    what: reader.what.clone(),
                }
            }
            Ok(_) | Err(_) => continue,
        };
        found.entry(value).or_insert(boundary);
    }
    found.into_values().collect()
}
