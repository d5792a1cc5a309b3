//! The plan: what a compiled model does when it runs, step by step, and where every tensor lives.
//!
//! Invariant: every slot is written before it is read, and two slots whose lives overlap share no byte of the arena;
//! [`Plan::verify`] recomputes both from the steps alone, without looking at how the planner decided.

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
}

impl Step {
    /// The slots that the step reads, and those that it writes.
    pub fn accesses(&self) -> (&[SlotId], &[SlotId]) {
        match self {
            Step::Launch { arguments, written, .. } => {
                let (reads, writes) = arguments.split_at(arguments.len().saturating_sub(*written));
                (reads, writes)
            }
            Step::Host { inputs, outputs, .. } => (inputs, outputs),
            Step::Copy { from, to } => (std::slice::from_ref(from), std::slice::from_ref(to)),
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

    /// For each slot the first and the last step that touches it; nothing for slots that none touches.
    pub fn lives(&self) -> Vec<Option<(usize, usize)>> {
        let mut lives: Vec<Option<(usize, usize)>> = vec![None; self.slots.len()];
        for (n, step) in self.steps.iter().enumerate() {
            let (reads, writes) = step.accesses();
            for slot in reads.iter().chain(writes) {
                if let Some(life) = lives.get_mut(slot.index()) {
                    *life = Some(life.map_or((n, n), |(first, _)| (first, n)));
                }
            }
        }
        lives
    }
}
