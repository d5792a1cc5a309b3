//! The plan: what a compiled model does when it runs, step by step, and where every tensor lives.
//!
//! Invariant: every slot is written before it is read, and two slots whose lives overlap share no byte of the arena;
//! [`Plan::verify`] recomputes both from the steps alone, without looking at how the planner decided.
//!
//! Steps are one flat list: a loop or a branch says how many of the steps behind it belong to it.

mod interp;
mod parse;
mod print;
#[cfg(test)]
mod tests;
mod verify;

use crate::expr::{Expr, Ranges, Symbol};
use crate::graph::{Origin, TensorType};
use crate::id::{Arena, Id};
use crate::ops::Op;
use std::borrow::Cow;
use std::sync::Arc;

pub use interp::run;
pub use verify::PlanError;

/// A handle to a slot.
pub type SlotId = Id<Slot>;

/// A plan. See the module documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Name of the model.
    pub name: String,
    /// Dims that are only known when the plan runs, with their inclusive ranges: what kernels get as their dims, in this
    /// order. Inputs give them their values; those that no input mentions get them from the results of host steps.
    pub symbols: Vec<(Symbol, (i64, i64))>,
    /// Where tensors live.
    pub slots: Arena<Slot>,
    /// Inputs by position: name and slot.
    pub inputs: Vec<(Arc<str>, SlotId)>,
    /// Outputs by position: name and slot.
    pub outputs: Vec<(Arc<str>, SlotId)>,
    /// Kernels that `launch` steps name by number; their code is in the artifact under the same name.
    pub kernels: Vec<Kernel>,
    /// What is done, in order.
    pub steps: Vec<Step>,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// The largest sum of bytes of arena slots that live at once: no arena can be smaller.
    pub live_bytes: u64,
    /// Bytes of the weights section.
    pub weight_bytes: u64,
    /// What must hold of the symbols: two expressions that come out equal, with the nodes that need it.
    pub requirements: Vec<Requirement>,
    /// Bytes of each region beside the arena, over the symbols; slots of run-time size live there.
    pub regions: Vec<Expr>,
}

/// Two expressions over the symbols that must be equal.
#[derive(Clone, Debug, PartialEq)]
pub struct Requirement {
    /// One side.
    pub left: Expr,
    /// The other.
    pub right: Expr,
    /// What the model's nodes are called that need it.
    pub origin: Origin,
}

/// A tensor in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    /// Name in the model, where it has one.
    pub name: Option<Arc<str>>,
    /// Type; its dims are constant or over the plan's symbols.
    pub ty: TensorType,
    /// Where it lives.
    pub place: Place,
}

/// Where a slot lives. Offsets are multiples of 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// In the weights section, at this byte.
    Weights(u64),
    /// The caller's n-th input.
    Input(usize),
    /// The caller's n-th output.
    Output(usize),
    /// In the arena, at this byte.
    Arena(u64),
    /// At the first byte of this region.
    Region(usize),
    /// Made and held by host ops: strings, which have no fixed size.
    Host,
}

/// A kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// Name, such as `k3`.
    pub name: String,
    /// What the model's nodes are called that it computes.
    pub origin: Origin,
    /// What it does, in a word or two: `conv+map`, `softmax`.
    pub what: String,
    /// Estimated floating-point (and integer) operations; free dims count as [`nominal`].
    pub operations: u64,
    /// Estimated bytes read and written.
    pub bytes: u64,
}

/// The value that estimates assume for a free dim of that range.
pub fn nominal((lo, hi): (i64, i64)) -> i64 {
    32.clamp(lo.min(hi), hi.max(lo))
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Runs all programs of a kernel.
    Launch {
        /// Index into the kernels.
        kernel: usize,
        /// Its buffer arguments, in order.
        arguments: Vec<SlotId>,
        /// How many of the last arguments it writes.
        written: usize,
    },
    /// Runs an op's reference definition in the runtime.
    Host {
        /// The op.
        op: Op,
        /// Operands.
        inputs: Vec<SlotId>,
        /// Results.
        outputs: Vec<SlotId>,
        /// What the model's nodes are called that it computes.
        origin: Origin,
    },
    /// Copies a slot to another of the same type.
    Copy {
        /// Source.
        from: SlotId,
        /// Destination.
        to: SlotId,
    },
    /// Copies a slot to another whose dims may be symbols without a value: those get the extents of the source.
    Bind {
        /// Source.
        from: SlotId,
        /// Destination.
        to: SlotId,
        /// What the model's nodes are called whose result it is.
        origin: Origin,
    },
    /// Ends the run with an error.
    Refuse {
        /// Why.
        why: Refusal,
        /// What the model's nodes are called that cannot be computed.
        origin: Origin,
    },
    /// Runs the `then` steps that follow it, or else the `otherwise` steps that follow those.
    If {
        /// One truth value.
        condition: SlotId,
        /// How many steps are run where it is true.
        then: usize,
        /// How many are run where it is not.
        otherwise: usize,
        /// What the model's nodes are called.
        origin: Origin,
    },
    /// Runs the steps that follow it again and again.
    Loop(Box<Loop>),
}

/// Why a step ends a run.
#[derive(Clone, Debug, PartialEq)]
pub enum Refusal {
    /// These two differ: what a body of a loop or branch takes for granted where it is run, and only there.
    Unequal(Box<(Expr, Expr)>),
    /// Whoever gets here: a branch that was compiled to this message.
    Always(Arc<str>),
}

impl Refusal {
    /// What two sides that differ come to, in words.
    pub fn unequal(origin: &Origin, left: &Expr, right: &Expr, (l, r): (i64, i64)) -> String {
        format!("{origin} needs {left} = {right}, which are {l} and {r}")
    }

    /// Why a run of a plan of fixed dims ends here; nothing where it goes on.
    pub fn where_all_is_fixed(&self, origin: &Origin) -> Option<String> {
        match self {
            Refusal::Always(message) => Some(message.to_string()),
            Refusal::Unequal(sides) => match (sides.0.as_const(), sides.1.as_const()) {
                (Some(l), Some(r)) => (l != r).then(|| Refusal::unequal(origin, &sides.0, &sides.1, (l, r))),
                _ => Some(format!("{origin} needs {} = {}, which are not known", sides.0, sides.1)),
            },
        }
    }
}

/// What a loop of a plan does besides running its steps. At the end of each turn what is collected is taken, then states get their new
/// values, then `again` is asked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Loop {
    /// The greatest number of turns (one i64); nothing where the extent of what is scanned is the number.
    pub times: Option<SlotId>,
    /// Whether there is a first turn (one truth value); nothing where there is.
    pub first: Option<SlotId>,
    /// Whether there is another turn, made by each (one truth value); nothing where only the number of turns ends the loop.
    pub again: Option<SlotId>,
    /// Where the number of the turn goes, from 0 on (one i64).
    pub counter: Option<SlotId>,
    /// Tensors of which each turn gets the next element along the first axis.
    pub scanned: Vec<Elements>,
    /// What a turn makes, and the state that it is in the next turn and after the loop.
    pub carried: Vec<(SlotId, SlotId)>,
    /// What each turn makes, one behind the other along a new first axis.
    pub collected: Vec<Elements>,
    /// How many of the steps that follow are a turn.
    pub body: usize,
    /// What the model's nodes are called.
    pub origin: Origin,
}

/// A tensor and a slot for one of its elements along the first axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// The tensor.
    pub whole: SlotId,
    /// The element.
    pub element: SlotId,
    /// Whether the last element is the first turn's.
    pub backward: bool,
}

/// No slot has as many bytes.
pub const MOST_BYTES: i64 = 1 << 48;

/// How deep loops and branches may lie within one another.
pub const MOST_NESTED: usize = 32;

impl Step {
    /// The slots that the step reads, and those that it writes. For a loop these are what it reads before its first turn and what it
    /// writes itself; what its turns make for it is theirs.
    pub fn accesses(&self) -> (Cow<'_, [SlotId]>, Cow<'_, [SlotId]>) {
        match self {
            Step::Launch { arguments, written, .. } => {
                let (reads, writes) = arguments.split_at(arguments.len().saturating_sub(*written));
                (reads.into(), writes.into())
            }
            Step::Host { inputs, outputs, .. } => (inputs.into(), outputs.into()),
            Step::Copy { from, to } | Step::Bind { from, to, .. } => {
                (std::slice::from_ref(from).into(), std::slice::from_ref(to).into())
            }
            Step::If { condition, .. } => (std::slice::from_ref(condition).into(), Cow::Borrowed(&[])),
            Step::Refuse { .. } => (Cow::Borrowed(&[]), Cow::Borrowed(&[])),
            Step::Loop(l) => {
                let whole = l.scanned.iter().map(|e| e.whole);
                let states = l.carried.iter().map(|(_, state)| *state);
                let reads: Vec<SlotId> =
                    l.times.into_iter().chain(l.first).chain(whole).chain(states.clone()).collect();
                let elements = l.scanned.iter().map(|e| e.element);
                let collected = l.collected.iter().map(|e| e.whole);
                (reads.into(), l.counter.into_iter().chain(elements).chain(states).chain(collected).collect())
            }
        }
    }

    /// The two ends of a host step that moves no element: what is left of a reshape where no kernel could take it.
    pub fn renames(&self) -> Option<(SlotId, SlotId)> {
        match self {
            Step::Host { op: Op::Reshape(_), inputs, outputs, .. } => match (inputs.as_slice(), outputs.as_slice()) {
                (&[from], &[to]) => Some((from, to)),
                _ => None,
            },
            Step::Host { .. } | Step::Launch { .. } | Step::Copy { .. } => None,
            Step::Bind { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => None,
        }
    }

    /// How many of the steps that follow belong to it.
    pub fn inner(&self) -> usize {
        match self {
            Step::Launch { .. } | Step::Host { .. } | Step::Copy { .. } => 0,
            Step::Bind { .. } | Step::Refuse { .. } => 0,
            Step::If { then, otherwise, .. } => then.saturating_add(*otherwise),
            Step::Loop(l) => l.body,
        }
    }
}

impl Plan {
    /// The symbols' ranges.
    pub fn ranges(&self) -> Ranges {
        self.symbols.iter().cloned().collect()
    }

    /// Whether sizes depend on dims that are only known when the plan runs.
    pub fn is_symbolic(&self) -> bool {
        !self.symbols.is_empty()
    }

    /// Bytes that a slot takes, padding included; 0 for strings, for absurd sizes, which [`Plan::verify`] reports, and for
    /// slots whose dims are not constant.
    pub fn slot_bytes(&self, slot: SlotId) -> u64 {
        self.slots[slot].ty.bytes().as_const().and_then(|b| u64::try_from(b).ok()).unwrap_or(0)
    }

    /// For each slot the first and the last step between which its memory is its own; nothing for slots that no step touches. What
    /// a turn of a loop reads and has not made itself is there for all turns.
    pub fn lives(&self) -> Vec<Option<(usize, usize)>> {
        let mut lives: Vec<Option<(usize, usize)>> = vec![None; self.slots.len()];
        let mut touch = |slot: SlotId, n: usize| {
            if let Some(life) = lives.get_mut(slot.index()) {
                *life = Some(life.map_or((n, n), |(first, last)| (first.min(n), last.max(n))));
            }
        };
        let mut loops = Vec::new();
        for (n, step) in self.steps.iter().enumerate() {
            let (reads, writes) = step.accesses();
            reads.iter().chain(writes.iter()).for_each(|&slot| touch(slot, n));
            if let Step::Loop(l) = step {
                let end = n.saturating_add(l.body).min(self.steps.len().saturating_sub(1));
                loops.push((n, end));
                l.again.into_iter().for_each(|slot| touch(slot, end));
                l.carried.iter().for_each(|&(next, state)| {
                    touch(next, end);
                    touch(state, end);
                });
                l.scanned.iter().for_each(|e| touch(e.whole, end));
                l.collected.iter().for_each(|e| {
                    touch(e.whole, end);
                    touch(e.element, end);
                });
            }
        }
        // Inner loops first: what they lengthen may reach into those around them.
        for (begin, end) in loops.into_iter().rev() {
            for (first, last) in lives.iter_mut().flatten() {
                if *first < begin && (begin + 1..end).contains(last) {
                    *last = end;
                }
                if (begin + 1..=end).contains(first) && *last > end {
                    *first = begin;
                }
            }
        }
        lives
    }
}
