//! The plan verifier: recomputes lives from the steps and rejects overlap.

use super::{Place, Plan, SlotId, Step};
use crate::graph::TensorType;
use crate::ops::Op;
use crate::{Expr, Symbol};
use std::collections::BTreeSet;

/// Something is wrong with a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("plan: {0}")]
pub struct PlanError(pub String);

impl Plan {
    /// All errors: dims that are neither constant nor over symbols that get a value, places outside their section or not aligned, reads before the first write, writes
    /// to weights and inputs, outputs never written, slots that overlap while both live, wrong kernel numbers, host ops with other results.
    pub fn verify(&self) -> Vec<PlanError> {
        let mut errors = Vec::new();
        let mut fail = |message: String| errors.push(PlanError(message));
        self.verify_symbols(&mut fail);
        self.verify_places(&mut fail);
        self.verify_order(&mut fail);
        self.verify_overlap(&mut fail);
        errors
    }

    /// Every symbol is declared once, gets its value from an input or a host step, and nothing mentions any other.
    fn verify_symbols(&self, fail: &mut dyn FnMut(String)) {
        let mut defined: BTreeSet<&Symbol> = BTreeSet::new();
        let inputs = self.inputs.iter().map(|(_, slot)| slot);
        let made = self.steps.iter().filter_map(|step| match step {
            Step::Host { outputs, .. } => Some(outputs),
            Step::Launch { .. } | Step::Copy { .. } => None,
        });
        for dim in inputs.chain(made.flatten()).flat_map(|&slot| &self.slots[slot].ty.dims) {
            dim.for_each_plain_symbol(&mut |s| {
                defined.insert(s);
            });
        }
        let mut declared = BTreeSet::new();
        for (symbol, (lo, hi)) in &self.symbols {
            if !declared.insert(symbol) || lo > hi || *lo < 0 {
                fail(format!("symbol `{symbol}` in {lo}..{hi} is declared before or has no values"));
            }
            if !defined.contains(symbol) {
                fail(format!("symbol `{symbol}` gets a value from no input and no host step"));
            }
        }
        let mut unknown = BTreeSet::new();
        let required = self.requirements.iter().flat_map(|r| [&r.left, &r.right]);
        let sizes = self.slots.iter().flat_map(|(_, slot)| &slot.ty.dims).chain(&self.regions).chain(required);
        for e in sizes {
            e.for_each_symbol(&mut |s| {
                if !declared.contains(s) {
                    unknown.insert(s.clone());
                }
            });
        }
        for symbol in unknown {
            fail(format!("symbol `{symbol}` is not declared"));
        }
    }

    fn verify_places(&self, fail: &mut dyn FnMut(String)) {
        for (id, slot) in self.slots.iter() {
            let strings = !slot.ty.dtype.is_bytes();
            // A slot that is empty whatever its other dims are has a size that is known.
            if slot.ty.bytes().as_const().is_none() {
                // What a slot of run-time size takes is compared with its region when the sizes are known.
                match slot.place {
                    Place::Region(n) if n < self.regions.len() && !strings => continue,
                    Place::Input(n) if self.inputs.get(n).is_some_and(|(_, s)| *s == id) => continue,
                    Place::Output(n) if self.outputs.get(n).is_some_and(|(_, s)| *s == id) => continue,
                    Place::Host => continue,
                    Place::Weights(_) | Place::Arena(_) | Place::Region(_) | Place::Input(_) | Place::Output(_) => {
                        fail(format!("slot {id} of run-time size {} is not in a region of its own", slot.ty));
                        continue;
                    }
                }
            }
            let bytes = slot.ty.bytes().as_const().and_then(|b| u64::try_from(b).ok());
            // Two negative dims have a positive product: the shape is asked for as well.
            let negative = slot.ty.dims.iter().any(|d| d.as_const().is_some_and(|d| d < 0));
            let Some(bytes) = bytes.filter(|&b| b < 1 << 48 && !negative) else {
                fail(format!("slot {id} has no constant size: {}", slot.ty));
                continue;
            };
            let (at, limit) = match slot.place {
                Place::Weights(at) => (at, self.weight_bytes),
                Place::Arena(at) => (at, self.arena_bytes),
                Place::Region(_) => {
                    fail(format!("slot {id} of constant size is in a region"));
                    continue;
                }
                Place::Input(n) => {
                    if self.inputs.get(n).is_none_or(|(_, s)| *s != id) {
                        fail(format!("slot {id} is not input {n}"));
                    }
                    continue;
                }
                Place::Output(n) => {
                    if self.outputs.get(n).is_none_or(|(_, s)| *s != id) {
                        fail(format!("slot {id} is not output {n}"));
                    }
                    continue;
                }
                Place::Host if strings => continue,
                Place::Host => {
                    fail(format!("slot {id} of {} is held by the host", slot.ty));
                    continue;
                }
            };
            if strings {
                fail(format!("slot {id} of strings is in memory that holds none"));
            }
            if at % 64 != 0 || at.checked_add(bytes).is_none_or(|end| end > limit) {
                fail(format!("slot {id}: {bytes} bytes at {at} are not aligned or exceed {limit}"));
            }
        }
        for (n, (name, slot)) in self.inputs.iter().enumerate() {
            if self.slots[*slot].place != Place::Input(n) {
                fail(format!("input {name:?} is not in place"));
            }
        }
        for (n, (name, slot)) in self.outputs.iter().enumerate() {
            if self.slots[*slot].place != Place::Output(n) && self.slots[*slot].place != Place::Host {
                fail(format!("output {name:?} is not in place"));
            }
        }
    }

    fn verify_order(&self, fail: &mut dyn FnMut(String)) {
        let mut written: Vec<bool> =
            self.slots.iter().map(|(_, s)| matches!(s.place, Place::Weights(_) | Place::Input(_))).collect();
        for (n, step) in self.steps.iter().enumerate() {
            let (reads, writes) = step.accesses();
            if let Step::Launch { kernel, .. } = step
                && *kernel >= self.kernels.len()
            {
                fail(format!("step {n} launches kernel {kernel}, there are {}", self.kernels.len()));
            }
            if let Step::Launch { arguments, written, .. } = step
                && *written > arguments.len()
            {
                fail(format!("step {n} writes {written} of {} arguments", arguments.len()));
            }
            if let Step::Host { op, .. } = step {
                self.verify_host(op, reads, writes, &mut |message| fail(format!("step {n}: {message}")));
            }
            if let Step::Copy { from, to } = step
                && self.slots[*from].ty != self.slots[*to].ty
            {
                fail(format!("step {n} copies {} to {}", self.slots[*from].ty, self.slots[*to].ty));
            }
            for slot in reads {
                if !written[slot.index()] {
                    fail(format!("step {n} reads slot {slot} before it is written"));
                }
            }
            for slot in writes {
                if matches!(self.slots[*slot].place, Place::Weights(_) | Place::Input(_)) {
                    fail(format!("step {n} writes slot {slot}, which is constant"));
                }
                written[slot.index()] = true;
            }
        }
        for (name, slot) in &self.outputs {
            if !written[slot.index()] {
                fail(format!("output {name:?} is never written"));
            }
        }
    }

    /// The results' types must be those that the op infers, as far as they do not depend on data.
    fn verify_host(&self, op: &Op, inputs: &[SlotId], outputs: &[SlotId], fail: &mut dyn FnMut(String)) {
        let types: Vec<&TensorType> = inputs.iter().map(|&s| &self.slots[s].ty).collect();
        let inferred = match op.infer(&types) {
            Ok(inferred) => inferred,
            Err(e) => return fail(e.to_string()),
        };
        if inferred.len() != outputs.len() {
            return fail(format!("{} results of {}, {} inferred", outputs.len(), op.name(), inferred.len()));
        }
        for (ty, &slot) in inferred.iter().zip(outputs) {
            let found = &self.slots[slot].ty;
            let fits = |(a, b): (&Expr, &Expr)| a.as_const().is_none() || a == b;
            let same = ty.rank() == found.rank() && ty.dims.iter().zip(&found.dims).all(fits);
            if ty.dtype != found.dtype || !same {
                fail(format!("slot {slot} is {found}, {} infers {ty}", op.name()));
            }
        }
    }

    fn verify_overlap(&self, fail: &mut dyn FnMut(String)) {
        let lives = self.lives();
        let mut regions: Vec<Vec<(usize, usize, SlotId)>> = vec![Vec::new(); self.regions.len()];
        for (id, slot) in self.slots.iter() {
            if let (Place::Region(n), Some((first, last))) = (slot.place, lives[id.index()])
                && let Some(region) = regions.get_mut(n)
            {
                region.push((first, last, id));
            }
        }
        for region in &mut regions {
            region.sort_unstable();
            for pair in region.windows(2) {
                if let [a, b] = pair
                    && b.0 <= a.1
                {
                    fail(format!("slots {} and {} share a region while both live", a.2, b.2));
                }
            }
        }
        let mut arena: Vec<(u64, u64, usize, usize, SlotId)> = Vec::new();
        for (id, slot) in self.slots.iter() {
            if let (Place::Arena(at), Some((first, last))) = (slot.place, lives[id.index()]) {
                arena.push((at, at.saturating_add(self.slot_bytes(id)), first, last, id));
            }
        }
        // Sweep over offsets: only slots that share bytes are compared.
        arena.sort_unstable_by_key(|a| a.0);
        for (i, a) in arena.iter().enumerate() {
            for b in arena[i + 1..].iter().take_while(|b| b.0 < a.1) {
                if a.2 <= b.3 && b.2 <= a.3 && a.0 < b.1 {
                    fail(format!("slots {} and {} overlap while both live", a.4, b.4));
                }
            }
        }
    }
}
