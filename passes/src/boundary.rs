//! Places where fusion and the layout pass have a choice, as a search by measurements sees them.
//!
//! Invariant: a wish moves where a value is computed, into its reader or into memory, or how it lies there; what it is stays, and what
//! fusion must refuse stays refused.

use crate::fusion::{Attempt, Refusal, Way};
use crate::group::{Group, Work, only_moves};
use crate::kernel::{Arrangement, Boundary, key};
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::layout::Layout;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// By value: whether it is computed in the kernel that reads it.
    fused: BTreeMap<ValueId, bool>,
    /// By value: how it lies in memory.
    laid: BTreeMap<ValueId, Arrangement>,
}

impl Wishes {
    /// Whether a value is to be fused, if anything was asked of it.
    pub fn of(&self, value: ValueId) -> Option<bool> {
        self.fused.get(&value).copied()
    }

    /// Asks for a boundary at a value; whether that is new. The first wish for a value holds.
    pub fn ask(&mut self, value: ValueId, boundary: Boundary) -> bool {
        match boundary {
            Boundary::Rules => false,
            Boundary::Apart(_) => new(&mut self.fused, value, false),
            Boundary::With(_) => new(&mut self.fused, value, true),
            Boundary::Result(arrangement) => new(&mut self.laid, value, arrangement),
        }
    }

    /// How a value is to lie, if that was asked for.
    pub fn arrangement(&self, value: ValueId) -> Option<Arrangement> {
        self.laid.get(&value).copied()
    }

    /// Lays the values out as was asked, but for those that the host reads or writes.
    pub(crate) fn lay_out(&self, graph: &mut Graph, on_host: &dyn Fn(NodeId) -> bool) {
        for (&value, arrangement) in &self.laid {
            if !graph.users(value).iter().copied().chain(graph.producer(value)).any(on_host) {
                let rank = graph.ty(value).rank();
                graph.set_layout(value, arrangement.layout(rank));
            }
        }
    }
}

/// Enters what is not there yet; whether it was not.
fn new<T>(wishes: &mut BTreeMap<ValueId, T>, value: ValueId, wish: T) -> bool {
    let new = !wishes.contains_key(&value);
    wishes.entry(value).or_insert(wish);
    new
}

/// A kernel that could be cut otherwise, in two or together with one whose value it reads, or lay its result out otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What identifies it, whatever model it is in: the kernel, those that it could take in, and those that read its result.
    pub key: String,
    /// The other ways.
    pub others: Vec<Other>,
    /// The ops of the kernel, for people.
    pub what: String,
    /// The kernel's result.
    pub output: ValueId,
}

/// One of the other ways of a [`Place`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Other {
    /// What is otherwise.
    pub boundary: Boundary,
    /// The value at that boundary.
    pub value: ValueId,
    /// The kernels that it is about, by their results.
    pub kernels: BTreeSet<ValueId>,
}

/// The kernels where fusion chose by cost or could have left a value apart from a fold, and those whose results could lie otherwise.
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
    let mut add = |kernel: &Group, boundary: Boundary, value: ValueId, with: &[&Group]| {
        let place = found.entry(kernel.output).or_insert_with(|| Place {
            key: format!("fusion of\n{}", key(graph, kernel)),
            others: Vec::new(),
            what: kernel.what.clone(),
            output: kernel.output,
        });
        let kernels = std::iter::once(kernel).chain(with.iter().copied()).map(|g| g.output).collect();
        place.others.push(Other { boundary, value, kernels });
        for with in with {
            // Writing to a string cannot fail.
            let _ = write!(place.key, "\n{boundary} {}", key(graph, with));
        }
    };
    let mut seen: BTreeSet<ValueId> = BTreeSet::new();
    for attempt in attempts {
        let value = attempt.value;
        // A node in several kernels, such as a view, is no place between two of them.
        let Some(reader) = holder.get(&attempt.reader).filter(|_| !twice.contains(&attempt.reader)) else { continue };
        let mut taken_in = None;
        let boundary = match attempt.verdict {
            Err(Refusal::Cost(_) | Refusal::Reuse(_) | Refusal::Product) => {
                taken_in = maker.get(&value).copied().filter(|made| made.output != reader.output);
                let place = reader.inputs.iter().position(|&v| v == value);
                place.filter(|_| taken_in.is_some()).map(Boundary::With)
            }
            Ok(Way::Inlined | Way::Finished | Way::Bordered) if reader.folds() => {
                let producer = graph.producer(value).filter(|n| !twice.contains(n) && !only_moves(graph, *n));
                let nodes: BTreeSet<NodeId> = reader.nodes.iter().copied().collect();
                producer.and_then(|producer| nodes.iter().position(|&n| n == producer)).map(Boundary::Apart)
            }
            Ok(_) | Err(_) => None,
        };
        if let Some(boundary) = boundary.filter(|_| seen.insert(value)) {
            add(reader, boundary, value, taken_in.as_slice());
        }
    }
    let readers = readers(graph, work);
    for group in work.iter().filter_map(Work::kernel) {
        let Some(Some(readers)) = readers.get(&group.output) else { continue };
        for arrangement in arrangements(graph, group, readers) {
            add(group, Boundary::Result(arrangement), group.output, readers);
        }
    }
    found.into_values().collect()
}

/// The kernels that read each value; nothing where others than kernels do. The host and callers want it row-major, and a view of what
/// lies otherwise is a copy, which is no small matter.
fn readers<'a>(graph: &Graph, work: &'a [Work]) -> BTreeMap<ValueId, Option<Vec<&'a Group>>> {
    let mut all: BTreeMap<ValueId, Option<Vec<&Group>>> = BTreeMap::new();
    for w in work {
        match w {
            Work::Kernel(group) => {
                for &value in &group.inputs {
                    let readers = all.entry(value).or_insert_with(|| Some(Vec::new()));
                    readers.iter_mut().for_each(|readers| readers.push(group));
                }
            }
            Work::Host(node) => all.extend(graph.node(*node).inputs.iter().map(|&value| (value, None))),
            Work::Alias { of, .. } => _ = all.insert(*of, None),
        }
    }
    all.extend(graph.outputs.iter().map(|(_, value)| (*value, None)));
    all
}

/// The other orders of a kernel's result that are worth a measurement: where it or what reads it folds or has its operands
/// in such an order.
fn arrangements(graph: &Graph, maker: &Group, readers: &[&Group]) -> Vec<Arrangement> {
    let ty = graph.ty(maker.output);
    let rank = ty.rank();
    if ty.layout.block.is_some() {
        return Vec::new();
    }
    let around = || std::iter::once(maker).chain(readers.iter().copied());
    let values = || around().flat_map(|g| g.inputs.iter().chain([&g.output]));
    let ordered = values().any(|&v| graph.constant(v).is_none() && !graph.ty(v).layout.is_row_major());
    let worth = |arrangement: &Arrangement| match arrangement {
        Arrangement::Rows => true,
        Arrangement::Last => rank > 2 && (ordered || around().any(Group::folds)),
        Arrangement::Turned => rank > 1 && !ordered && readers.iter().any(|g| g.folds()),
    };
    // Axes of one element are nowhere.
    let order = |layout: &Layout| -> Vec<usize> {
        let long = |&axis: &usize| ty.dims.get(axis).and_then(|d| d.as_const()) != Some(1);
        layout.order.iter().copied().filter(long).collect()
    };
    let mut known = vec![order(&ty.layout)];
    let mut found = Vec::new();
    for arrangement in Arrangement::ALL.into_iter().filter(worth) {
        let order = order(&arrangement.layout(rank));
        if !known.contains(&order) {
            known.push(order);
            found.push(arrangement);
        }
    }
    found
}
