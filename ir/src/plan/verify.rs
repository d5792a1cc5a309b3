//! The plan verifier: recomputes lives from the steps and rejects overlap.

use super::{Elements, Loop, MOST_BYTES, MOST_NESTED, Place, Plan, Refusal, SlotId, Step};
use crate::graph::TensorType;
use crate::ops::Op;
use crate::{DType, Expr, Symbol};
use std::collections::BTreeSet;
use std::ops::Range;

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
        let made = self.steps.iter().flat_map(|step| match step {
            Step::Host { outputs, .. } => outputs.clone(),
            Step::Bind { to, .. } => vec![*to],
            Step::Loop(l) => l.collected.iter().map(|e| e.whole).collect(),
            Step::Launch { .. } | Step::Copy { .. } | Step::Refuse { .. } | Step::If { .. } => vec![],
        });
        for dim in inputs.copied().chain(made).flat_map(|slot| &self.slots[slot].ty.dims) {
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
        let compared = self.steps.iter().filter_map(|step| match step {
            Step::Refuse { why: Refusal::Unequal(sides), .. } => Some([&sides.0, &sides.1]),
            Step::Refuse { why: Refusal::Always(_), .. } | Step::Launch { .. } | Step::Host { .. } => None,
            Step::Copy { .. } | Step::Bind { .. } | Step::If { .. } | Step::Loop(_) => None,
        });
        let sizes = self.slots.iter().flat_map(|(_, slot)| &slot.ty.dims).chain(&self.regions);
        let sizes = sizes.chain(required).chain(compared.flatten());
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
            let Some(bytes) = bytes.filter(|&b| b < MOST_BYTES as u64 && !negative) else {
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
        self.verify_steps(0..self.steps.len(), &mut written, 0, fail);
        for (name, slot) in &self.outputs {
            if !written[slot.index()] {
                fail(format!("output {name:?} is never written"));
            }
        }
    }

    /// Steps one after another. Afterwards `written` has the slots that are written whatever the data says.
    fn verify_steps(&self, range: Range<usize>, written: &mut Vec<bool>, depth: usize, fail: &mut dyn FnMut(String)) {
        if depth > MOST_NESTED {
            return fail(format!("step {}: loops and branches lie deeper than {MOST_NESTED}", range.start));
        }
        let mut n = range.start;
        while let Some(step) = self.steps.get(n).filter(|_| n < range.end) {
            let (reads, writes) = step.accesses();
            for slot in reads.iter() {
                // A loop's states are listed as read: they must have a value before its first turn.
                if !written[slot.index()] {
                    fail(format!("step {n} reads slot {slot} before it is written"));
                }
            }
            for slot in writes.iter() {
                if matches!(self.slots[*slot].place, Place::Weights(_) | Place::Input(_)) {
                    fail(format!("step {n} writes slot {slot}, which is constant"));
                }
            }
            let next = match n.checked_add(1 + step.inner().min(self.steps.len())) {
                Some(next) if next <= range.end && step.inner() <= self.steps.len() => next,
                Some(_) | None => {
                    return fail(format!("step {n} has {} steps of its own, which are not there", step.inner()));
                }
            };
            match step {
                Step::Launch { kernel, arguments, written: count } => {
                    if *kernel >= self.kernels.len() {
                        fail(format!("step {n} launches kernel {kernel}, there are {}", self.kernels.len()));
                    }
                    if *count > arguments.len() {
                        fail(format!("step {n} writes {count} of {} arguments", arguments.len()));
                    }
                }
                Step::Host { op, .. } => {
                    self.verify_host(op, &reads, &writes, &mut |message| fail(format!("step {n}: {message}")));
                }
                Step::Copy { from, to } => {
                    if self.slots[*from].ty != self.slots[*to].ty {
                        fail(format!("step {n} copies {} to {}", self.slots[*from].ty, self.slots[*to].ty));
                    }
                }
                Step::Bind { from, to, .. } => {
                    let (a, b) = (&self.slots[*from].ty, &self.slots[*to].ty);
                    let rows = a.layout.is_row_major() && b.layout.is_row_major() && a.dtype.is_bytes();
                    if a.dtype != b.dtype || a.rank() != b.rank() || !rows {
                        fail(format!("step {n} binds {b} to {a}"));
                    }
                }
                Step::Refuse { why: Refusal::Unequal(_), .. } => {}
                // Nothing gets past it, so whatever is read there has been written.
                Step::Refuse { why: Refusal::Always(_), .. } => written.fill(true),
                Step::If { condition, then, .. } => {
                    self.verify_scalar(*condition, DType::Bool, n, fail);
                    let middle = n + 1 + then;
                    let mut other = written.clone();
                    self.verify_steps(n + 1..middle, written, depth + 1, fail);
                    self.verify_steps(middle..next, &mut other, depth + 1, fail);
                    written.iter_mut().zip(other).for_each(|(a, b)| *a &= b);
                }
                Step::Loop(l) => self.verify_loop(n, l, written, depth, fail),
            }
            writes.iter().for_each(|slot| written[slot.index()] = true);
            n = next;
        }
    }

    fn verify_loop(&self, n: usize, l: &Loop, written: &[bool], depth: usize, fail: &mut dyn FnMut(String)) {
        for (slot, dtype) in
            [(l.times, DType::I64), (l.counter, DType::I64), (l.first, DType::Bool), (l.again, DType::Bool)]
        {
            if let Some(slot) = slot {
                self.verify_scalar(slot, dtype, n, fail);
            }
        }
        if l.times.is_none() && l.scanned.is_empty() {
            fail(format!("step {n}: nothing says how often the loop is run"));
        }
        for Elements { whole, element, .. } in l.scanned.iter().chain(&l.collected) {
            let (a, b) = (&self.slots[*whole].ty, &self.slots[*element].ty);
            let rows = a.layout.is_row_major() && b.layout.is_row_major() && a.dtype.is_bytes();
            if a.dtype != b.dtype || a.dims.get(1..) != Some(b.dims.as_slice()) || !rows {
                fail(format!("step {n}: {b} is no element of {a}"));
            }
        }
        let states: BTreeSet<SlotId> = l.carried.iter().map(|(_, state)| *state).collect();
        for (next, state) in &l.carried {
            if self.slots[*next].ty != self.slots[*state].ty {
                fail(format!("step {n}: the state {} becomes {}", self.slots[*state].ty, self.slots[*next].ty));
            }
            if states.contains(next) {
                fail(format!("step {n}: slot {next} is a state and what becomes of one"));
            }
        }
        let elements = l.scanned.iter().map(|e| e.element);
        let own: BTreeSet<SlotId> = l.counter.into_iter().chain(elements).chain(states.iter().copied()).collect();
        if own.len() != l.counter.iter().len() + l.scanned.len() + l.carried.len() {
            fail(format!("step {n} writes a slot twice"));
        }
        // What a turn writes may not be written at all, so it is nobody's but the turn's.
        let mut inside = written.to_vec();
        own.iter().for_each(|slot| inside[slot.index()] = true);
        let collected: BTreeSet<SlotId> = l.collected.iter().map(|e| e.whole).collect();
        for step in self.steps.iter().skip(n + 1).take(l.body) {
            let (reads, writes) = step.accesses();
            let kept = |slot: &SlotId| own.contains(slot) || collected.contains(slot);
            let looked_at = reads.iter().any(|slot| collected.contains(slot));
            if writes.iter().any(kept) || looked_at {
                fail(format!("step {n}: a turn touches what the loop writes"));
            }
        }
        self.verify_steps(n + 1..n + 1 + l.body, &mut inside, depth + 1, fail);
        let made = l.carried.iter().map(|(next, _)| *next).chain(l.again).chain(l.collected.iter().map(|e| e.element));
        for slot in made {
            if !inside[slot.index()] || collected.contains(&slot) {
                fail(format!("step {n}: a turn does not make slot {slot}"));
            }
        }
    }

    fn verify_scalar(&self, slot: SlotId, dtype: DType, n: usize, fail: &mut dyn FnMut(String)) {
        let ty = &self.slots[slot].ty;
        if ty.dtype != dtype || ty.elements().as_const() != Some(1) || !ty.layout.is_row_major() {
            fail(format!("step {n}: slot {slot} is {ty}, not one {dtype}"));
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
