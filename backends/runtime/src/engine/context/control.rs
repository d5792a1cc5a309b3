//! Loops and branches of a plan.
//!
//! Invariant: no pointer moves while a loop runs: what a turn reads and makes is copied to and from slots that stay where they are,
//! each copy within the bytes of both slots. Between two steps, and before every turn, the limits of the thread are asked.

use kiln_ir::Expr;
use kiln_ir::graph::{Origin, TensorType};
use kiln_ir::interp::limits::{self, Reached};
use kiln_ir::ops::OpError;
use kiln_ir::plan::{Elements, Loop, Refusal, SlotId, Step};
use std::ops::Range;

use super::{Context, RunError, origin};
use crate::memory::Buffer;

/// What is called after each step.
pub(super) type After<'a> = dyn FnMut(&Context, usize) + 'a;

/// What the turns of a loop have made for a result.
enum Collected {
    /// The result's extent is known: each element goes to its place.
    InPlace(i64),
    /// It is not: elements are kept here, with how many bytes there are.
    Kept(Option<Buffer>, u64),
}

impl Context {
    /// Runs the steps of a range, one after another, each with those that belong to it.
    pub(super) fn range(&mut self, range: Range<usize>, allowed: u64, after: &mut After<'_>) -> Result<(), RunError> {
        let model = std::sync::Arc::clone(&self.model);
        let mut n = range.start;
        while let Some(step) = model.plan().steps.get(n).filter(|_| n < range.end) {
            if let Err(reached) = limits::check() {
                return Err(RunError::Stopped { origin: origin(model.plan(), step), reached, detail: None });
            }
            // The verifier has checked that these steps are there.
            let next = n.saturating_add(1).saturating_add(step.inner());
            match step {
                Step::Launch { kernel, .. } => self.launch(n, *kernel)?,
                Step::Host { op, inputs, outputs, origin } => self.host(op, inputs, outputs, origin, allowed)?,
                Step::Copy { from, to } => self.copy(*from, *to),
                Step::Bind { from, to, origin } => self.bind_slot(*from, *to, origin)?,
                Step::Refuse { why, origin } => self.refuse(why, origin)?,
                Step::If { condition, then, .. } => {
                    let middle = n.saturating_add(1).saturating_add(*then);
                    let taken = if self.truth(*condition)? { n + 1..middle } else { middle..next };
                    self.range(taken, allowed, after)?;
                }
                Step::Loop(l) => self.repeat(l, n + 1..next, allowed, after)?,
            }
            after(self, n);
            n = next;
        }
        Ok(())
    }

    /// The first bytes of a slot that holds at least as many.
    fn first_bytes<const N: usize>(&self, id: SlotId) -> Result<[u8; N], RunError> {
        let (_, bytes) = self.slot(id)?;
        let pointer = self.slots.get(id.index()).copied().filter(|_| bytes >= N as u64);
        let pointer = pointer.ok_or(RunError::Internal("a slot holds no number"))?;
        // SAFETY: the slot has at least N initialised bytes, and nothing writes to them meanwhile; an array of bytes needs no
        // alignment.
        Ok(unsafe { *pointer.cast::<[u8; N]>() })
    }

    fn truth(&self, id: SlotId) -> Result<bool, RunError> {
        Ok(self.first_bytes::<1>(id)? != [0])
    }

    fn number(&self, id: SlotId) -> Result<i64, RunError> {
        Ok(i64::from_ne_bytes(self.first_bytes(id)?))
    }

    fn refuse(&self, why: &Refusal, origin: &Origin) -> Result<(), RunError> {
        match why {
            Refusal::Always(message) => {
                let error = OpError::new(&**message).into();
                Err(RunError::Host { origin: origin.clone(), error })
            }
            Refusal::Unequal(sides) => {
                let (left, right) = &**sides;
                let value = |e: &Expr| e.eval(&|s| self.dim(s)).ok_or(RunError::Internal("an extent has no value yet"));
                match (value(left)?, value(right)?) {
                    (l, r) if l == r => Ok(()),
                    found => Err(RunError::InputShape(Refusal::unequal(origin, left, right, found))),
                }
            }
        }
    }

    /// Copies a slot to one whose extents may only now become known.
    fn bind_slot(&mut self, from: SlotId, to: SlotId, origin: &Origin) -> Result<(), RunError> {
        let tensor = self.read(from)?;
        self.learn(&[to], std::slice::from_ref(&tensor), origin)?;
        self.write(to, tensor, origin)
    }

    /// Copies `bytes` bytes between two slots, from and to these offsets.
    fn move_bytes(&mut self, from: (SlotId, u64), to: (SlotId, u64), bytes: u64) -> Result<(), RunError> {
        let outside = RunError::Internal("an element lies outside of its tensor");
        let within = |of: u64, at: u64| at.checked_add(bytes).is_some_and(|end| end <= of);
        if !within(self.slot(from.0)?.1, from.1) || !within(self.slot(to.0)?.1, to.1) {
            return Err(outside);
        }
        let (Some(source), Some(target)) = (self.slots.get(from.0.index()), self.slots.get(to.0.index())) else {
            return Err(outside);
        };
        // SAFETY: both slots have the bytes that are copied, as was just checked, and no reference to either is live; `copy`
        // allows them to overlap.
        unsafe { std::ptr::copy(source.add(from.1 as usize), target.add(to.1 as usize), bytes as usize) };
        Ok(())
    }

    /// Bytes of the element, and of how many turns the whole has room for where that is known.
    fn element(&self, e: &Elements) -> Result<(u64, Option<i64>), RunError> {
        let formulas = self.model.formulas();
        let extent = formulas.shape(&self.values, e.whole).and_then(|s| s.first().copied());
        Ok((self.slot(e.element)?.1, extent.and_then(|n| i64::try_from(n).ok())))
    }

    fn repeat(&mut self, l: &Loop, body: Range<usize>, allowed: u64, after: &mut After<'_>) -> Result<(), RunError> {
        let stopped = |reached| RunError::Stopped { origin: l.origin.clone(), reached, detail: None };
        let mut most = l.times.map(|slot| self.number(slot)).transpose()?;
        for e in &l.scanned {
            let (_, extent) = self.element(e)?;
            let extent = extent.ok_or(RunError::Internal("a loop over a tensor of unknown extent"))?;
            if most.is_some_and(|most| most != extent) {
                let message = format!("{} scans tensors of {} and {extent} elements", l.origin, most.unwrap_or(0));
                return Err(RunError::InputShape(message));
            }
            most = Some(extent);
        }
        let most = most.ok_or(RunError::Internal("a loop without an end"))?;
        let mut kept: Vec<Collected> = Vec::with_capacity(l.collected.len());
        for e in &l.collected {
            kept.push(match self.element(e)?.1 {
                Some(extent) => Collected::InPlace(extent),
                None => Collected::Kept(None, 0),
            });
        }
        let mut go = l.first.map_or(Ok(true), |slot| self.truth(slot))?;
        let mut turn = 0i64;
        while go && turn < most {
            limits::check().map_err(stopped)?;
            if let Some(slot) = l.counter {
                self.write_number(slot, turn)?;
            }
            for e in &l.scanned {
                let bytes = self.element(e)?.0;
                let at = if e.backward { most - 1 - turn } else { turn };
                self.move_bytes((e.whole, position(at, bytes)), (e.element, 0), bytes)?;
            }
            self.range(body.clone(), allowed, after)?;
            for (kept, e) in kept.iter_mut().zip(&l.collected) {
                self.collect(kept, e, turn, allowed, &l.origin)?;
            }
            // Asked before the states change: it may be one of them.
            go = l.again.map_or(Ok(true), |slot| self.truth(slot))?;
            for &(next, state) in &l.carried {
                self.copy(next, state);
            }
            turn += 1;
        }
        for (kept, e) in kept.into_iter().zip(&l.collected) {
            self.finish(kept, e, turn, &l.origin)?;
        }
        Ok(())
    }

    fn write_number(&mut self, id: SlotId, number: i64) -> Result<(), RunError> {
        let (_, bytes) = self.slot(id)?;
        let pointer = self.slots.get(id.index()).copied().filter(|_| bytes >= 8);
        let pointer = pointer.ok_or(RunError::Internal("a slot holds no number"))?;
        // SAFETY: the slot has at least eight bytes, and no reference to them is live; an array of bytes needs no alignment.
        unsafe { *pointer.cast::<[u8; 8]>() = number.to_ne_bytes() };
        Ok(())
    }

    /// Takes what a turn has made.
    fn collect(
        &mut self,
        kept: &mut Collected,
        e: &Elements,
        turn: i64,
        allowed: u64,
        origin: &Origin,
    ) -> Result<(), RunError> {
        let bytes = self.element(e)?.0;
        match kept {
            Collected::InPlace(extent) => {
                if turn >= *extent {
                    return Err(self.other_turns(e, turn + 1, origin));
                }
                let at = if e.backward { *extent - 1 - turn } else { turn };
                self.move_bytes((e.element, 0), (e.whole, position(at, bytes)), bytes)
            }
            Collected::Kept(buffer, used) => {
                let needed = used.saturating_add(bytes);
                let there = buffer.as_ref().map_or(0, |b| b.len() as u64);
                if needed > there || buffer.is_none() {
                    let stopped = |detail: String| {
                        let (origin, reached) = (origin.clone(), Reached::Memory);
                        RunError::Stopped { origin, reached, detail: Some(detail) }
                    };
                    if needed > allowed {
                        return Err(stopped(format!(
                            "what the turns of the loop give takes more than {allowed} bytes"
                        )));
                    }
                    let ample = there.saturating_mul(2).clamp(needed, allowed.max(needed));
                    let larger = Buffer::zeroed(&self.budget, ample, "what the turns of a loop give");
                    let mut larger = larger.map_err(|e| stopped(e.to_string()))?;
                    if let (Some(old), Some(new)) = (&buffer, larger.as_mut_slice().get_mut(..there as usize)) {
                        new.copy_from_slice(old.as_slice());
                    }
                    *buffer = Some(larger);
                }
                let element = self.read_stored(e.element)?;
                let place = buffer.as_mut().and_then(|b| b.as_mut_slice().get_mut(*used as usize..needed as usize));
                let place = place.ok_or(RunError::Internal("a buffer is too small"))?;
                place.copy_from_slice(&element);
                *used = needed;
                Ok(())
            }
        }
    }

    /// Puts what the turns have made into the result.
    fn finish(&mut self, kept: Collected, e: &Elements, turns: i64, origin: &Origin) -> Result<(), RunError> {
        let (buffer, used) = match kept {
            Collected::InPlace(extent) if extent == turns => return Ok(()),
            Collected::InPlace(_) => return Err(self.other_turns(e, turns, origin)),
            Collected::Kept(buffer, used) => (buffer, used),
        };
        let bytes = self.element(e)?.0;
        let formulas = self.model.formulas();
        let mut shape =
            formulas.shape(&self.values, e.element).ok_or(RunError::Internal("an element without a shape"))?;
        shape.insert(0, usize::try_from(turns).unwrap_or(usize::MAX));
        self.learn_shape(e.whole, &shape, origin)?;
        if self.model.formulas().shape(&self.values, e.whole).as_ref() != Some(&shape) {
            return Err(self.other_turns(e, turns, origin));
        }
        let (_, size) = self.slot(e.whole)?;
        let target = self.slots.get(e.whole.index()).copied().filter(|_| size == used);
        let target = target.ok_or(RunError::Internal("a loop has made another number of bytes"))?;
        let Some(buffer) = buffer.filter(|_| bytes > 0) else { return Ok(()) };
        let made = buffer.as_slice().get(..used as usize).ok_or(RunError::Internal("a buffer is too small"))?;
        let elements: Box<dyn Iterator<Item = &[u8]>> =
            if e.backward { Box::new(made.chunks(bytes as usize).rev()) } else { Box::new(std::iter::once(made)) };
        let mut at = 0;
        for part in elements {
            // SAFETY: the parts together have as many bytes as the slot, and the buffer is no slot's memory.
            unsafe { std::ptr::copy_nonoverlapping(part.as_ptr(), target.add(at), part.len()) };
            at += part.len();
        }
        Ok(())
    }

    fn other_turns(&self, e: &Elements, turns: i64, origin: &Origin) -> RunError {
        let expected = self.model.plan().slots.get(e.whole).map(|s| s.ty.to_string()).unwrap_or_default();
        let element = self.model.formulas().shape(&self.values, e.element).unwrap_or_default();
        let mut shape = vec![usize::try_from(turns).unwrap_or(usize::MAX)];
        shape.extend(element);
        let dtype = self.model.plan().slots.get(e.whole).map_or(kiln_ir::DType::U8, |s| s.ty.dtype);
        let found = TensorType::of(dtype, &shape).to_string();
        RunError::HostResult { origin: origin.clone(), expected, found }
    }
}

/// Where an element begins.
fn position(at: i64, bytes: u64) -> u64 {
    u64::try_from(at).unwrap_or(u64::MAX).saturating_mul(bytes)
}
