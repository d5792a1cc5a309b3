//! The interpreter of plans: every step in the interpreters of tile programs and of ops, in memory that is laid out as the plan
//! says.
//!
//! Invariant: memory holds a pattern, not zeros, before a step writes it, so that what reads too early or over another slot shows.
//! Host steps find the values of symbols that no input has. Nothing panics on a plan that its verifier accepts.

use super::{Loop, Place, Plan, Refusal, SlotId, Step};
use crate::expr::{Expr, Symbol};
use crate::graph::TensorType;
use crate::interp::{Bindings, EvalError, bind_types, eval_op, limits};
use crate::tensor::Tensor;
use crate::tile::{self, TileProgram};
use std::collections::HashMap;
use std::ops::Range;

/// What memory holds that nothing has written.
const UNWRITTEN: u8 = 0xa5;

/// The outputs of a plan whose kernels are `programs`, for these contents of the weights section.
///
/// # Errors
/// The inputs do not fit, a step fails (the error names its origin), or the plan does not verify in a way that shows.
pub fn run(plan: &Plan, programs: &[TileProgram], weights: &[u8], inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    let types: Vec<(&str, &TensorType)> =
        plan.inputs.iter().map(|(name, slot)| (&**name, &plan.slots[*slot].ty)).collect();
    let shapes: Vec<&[usize]> = inputs.iter().map(Tensor::shape).collect();
    let dims = bind_types(&types, &plan.ranges(), &shapes).map_err(EvalError::Invalid)?;
    let arena = usize::try_from(plan.arena_bytes).map_err(|_| invalid("an arena that no memory holds"))?;
    let mut memory = Memory { plan, weights, inputs, dims, bytes: HashMap::new(), tensors: HashMap::new() };
    memory.bytes.insert(Owner::Arena, vec![UNWRITTEN; arena]);
    memory.steps(0..plan.steps.len(), programs)?;
    plan.outputs.iter().map(|(_, slot)| memory.tensor(*slot)).collect()
}

fn invalid(message: &str) -> EvalError {
    EvalError::Invalid(message.into())
}

/// A block of memory that steps write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Arena,
    Region(usize),
    Output(usize),
}

struct Memory<'a> {
    plan: &'a Plan,
    weights: &'a [u8],
    inputs: &'a [Tensor],
    dims: Bindings,
    bytes: HashMap<Owner, Vec<u8>>,
    /// What has no bytes, by slot.
    tensors: HashMap<SlotId, Tensor>,
}

impl Memory<'_> {
    fn dim(&self, symbol: &Symbol) -> Option<i64> {
        self.dims.get(symbol).copied()
    }

    fn size(&self, slot: SlotId) -> Result<usize, EvalError> {
        let bytes = self.plan.slots[slot].ty.bytes();
        let size = bytes.eval(&|s| self.dim(s)).and_then(|n| usize::try_from(n).ok());
        size.ok_or_else(|| EvalError::Unbound(bytes.to_string()))
    }

    /// Where a slot's bytes are, and from which on.
    fn place(&self, slot: SlotId) -> Result<(Owner, usize), EvalError> {
        match self.plan.slots[slot].place {
            Place::Arena(at) => Ok((Owner::Arena, usize::try_from(at).unwrap_or(usize::MAX))),
            Place::Region(n) => Ok((Owner::Region(n), 0)),
            Place::Output(n) => Ok((Owner::Output(n), 0)),
            Place::Weights(_) | Place::Input(_) | Place::Host => Err(invalid("a step writes what is not its own")),
        }
    }

    /// The slot's memory, as long as its owner is, made where it is first asked for.
    fn block(&mut self, owner: Owner, slot: SlotId) -> Result<&mut Vec<u8>, EvalError> {
        let size = match owner {
            Owner::Arena => 0,
            Owner::Output(_) => self.size(slot)?,
            Owner::Region(n) => {
                let bytes = self.plan.regions.get(n).ok_or_else(|| invalid("a region that is not there"))?;
                let size = bytes.eval(&|s| self.dim(s)).and_then(|n| usize::try_from(n).ok());
                size.ok_or_else(|| EvalError::Unbound(bytes.to_string()))?
            }
        };
        Ok(self.bytes.entry(owner).or_insert_with(|| vec![UNWRITTEN; size]))
    }

    fn read(&mut self, slot: SlotId) -> Result<Vec<u8>, EvalError> {
        let size = self.size(slot)?;
        let outside = || invalid("a slot lies outside its memory");
        match self.plan.slots[slot].place {
            Place::Weights(at) => {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                let part = at.checked_add(size).and_then(|end| self.weights.get(at..end));
                Ok(part.ok_or_else(outside)?.to_vec())
            }
            Place::Input(n) => {
                let tensor = self.inputs.get(n).ok_or_else(|| invalid("an input that is not there"))?;
                Ok(tensor.bytes().to_vec())
            }
            Place::Arena(_) | Place::Region(_) | Place::Output(_) => {
                let (owner, at) = self.place(slot)?;
                let block = self.block(owner, slot)?;
                let part = at.checked_add(size).and_then(|end| block.get(at..end));
                Ok(part.ok_or_else(outside)?.to_vec())
            }
            Place::Host => Err(invalid("a kernel reads what has no bytes")),
        }
    }

    fn write(&mut self, slot: SlotId, bytes: &[u8]) -> Result<(), EvalError> {
        let (owner, at) = self.place(slot)?;
        let block = self.block(owner, slot)?;
        let part = at.checked_add(bytes.len()).and_then(|end| block.get_mut(at..end));
        part.ok_or_else(|| invalid("a slot lies outside its memory"))?.copy_from_slice(bytes);
        Ok(())
    }

    fn tensor(&mut self, slot: SlotId) -> Result<Tensor, EvalError> {
        let plan = self.plan;
        let ty = &plan.slots[slot].ty;
        if let Place::Input(n) = plan.slots[slot].place {
            return self.inputs.get(n).cloned().ok_or_else(|| invalid("an input that is not there"));
        }
        if !ty.dtype.is_bytes() {
            return self.tensors.get(&slot).cloned().ok_or_else(|| invalid("a tensor that no step has made"));
        }
        let extent = |d: &crate::Expr| d.eval(&|s| self.dim(s)).and_then(|n| usize::try_from(n).ok());
        let shape: Option<Vec<usize>> = ty.dims.iter().map(extent).collect();
        let shape = shape.ok_or_else(|| EvalError::Unbound(ty.to_string()))?;
        let bytes = self.read(slot)?;
        Ok(Tensor::new(ty.dtype, shape, bytes)?)
    }

    /// Steps one after another, each with those that belong to it.
    fn steps(&mut self, range: Range<usize>, programs: &[TileProgram]) -> Result<(), EvalError> {
        let plan = self.plan;
        let mut n = range.start;
        while let Some(step) = plan.steps.get(n).filter(|_| n < range.end) {
            limits::check().map_err(|reached| EvalError::Invalid(reached.to_string()))?;
            let next = n.saturating_add(1).saturating_add(step.inner());
            match step {
                Step::If { condition, then, .. } => {
                    let middle = n.saturating_add(1).saturating_add(*then);
                    let taken = if self.number(*condition)? != 0 { n + 1..middle } else { middle..next };
                    self.steps(taken, programs)?;
                }
                Step::Loop(l) => self.repeat(l, n + 1..next, programs)?,
                Step::Launch { .. }
                | Step::Host { .. }
                | Step::Copy { .. }
                | Step::Bind { .. }
                | Step::Refuse { .. } => {
                    self.step(step, programs)?;
                }
            }
            n = next;
        }
        Ok(())
    }

    /// The one number that a slot holds.
    fn number(&mut self, slot: SlotId) -> Result<i64, EvalError> {
        let value = self.tensor(slot)?.to_i64().and_then(|v| v.first().copied());
        value.ok_or_else(|| invalid("a slot holds no number"))
    }

    fn repeat(&mut self, l: &Loop, body: Range<usize>, programs: &[TileProgram]) -> Result<(), EvalError> {
        let mut most = l.times.map(|slot| self.number(slot)).transpose()?;
        for e in &l.scanned {
            let extent = self.tensor(e.whole)?.shape().first().map(|&n| i64::try_from(n).unwrap_or(i64::MAX));
            if most.is_some() && most != extent {
                return Err(invalid("the scanned inputs have different lengths").at(&l.origin));
            }
            most = extent;
        }
        let mut go = l.first.map(|slot| self.number(slot)).transpose()? != Some(0);
        let (most, mut turn) = (most.unwrap_or(0), 0i64);
        let mut collected: Vec<Vec<Vec<u8>>> = vec![Vec::new(); l.collected.len()];
        while go && turn < most {
            if let Some(slot) = l.counter {
                self.write(slot, &turn.to_ne_bytes())?;
            }
            for e in &l.scanned {
                let at = usize::try_from(if e.backward { most - 1 - turn } else { turn }).unwrap_or(usize::MAX);
                let (whole, size) = (self.read(e.whole)?, self.size(e.element)?);
                let part = at.checked_mul(size).and_then(|at| whole.get(at..at.checked_add(size)?));
                self.write(e.element, part.ok_or_else(|| invalid("an element that is not there"))?)?;
            }
            self.steps(body.clone(), programs)?;
            for (list, e) in collected.iter_mut().zip(&l.collected) {
                list.push(self.read(e.element)?);
            }
            let states = l.carried.iter().map(|(next, _)| self.read(*next)).collect::<Result<Vec<_>, _>>()?;
            go = l.again.map(|slot| self.number(slot)).transpose()? != Some(0);
            for ((_, state), bytes) in l.carried.iter().zip(states) {
                self.write(*state, &bytes)?;
            }
            turn += 1;
        }
        for (mut list, e) in collected.into_iter().zip(&l.collected) {
            if e.backward {
                list.reverse();
            }
            if let Some(symbol) = self.plan.slots[e.whole].ty.dims.first().and_then(crate::Expr::as_symbol) {
                self.dims.entry(symbol.clone()).or_insert(turn);
            }
            let bytes = list.concat();
            if bytes.len() != self.size(e.whole)? {
                return Err(invalid("a loop had another number of turns than its results say").at(&l.origin));
            }
            self.write(e.whole, &bytes)?;
        }
        Ok(())
    }

    fn step(&mut self, step: &Step, programs: &[TileProgram]) -> Result<(), EvalError> {
        let (reads, writes) = step.accesses();
        match step {
            Step::If { .. } | Step::Loop(_) => return Err(invalid("a step that has steps of its own")),
            Step::Refuse { why: Refusal::Always(message), origin } => return Err(invalid(message).at(origin)),
            Step::Refuse { why: Refusal::Unequal(sides), origin } => {
                let value = |e: &Expr| e.eval(&|s| self.dim(s)).ok_or_else(|| EvalError::Unbound(e.to_string()));
                let (left, right) = (value(&sides.0)?, value(&sides.1)?);
                if left != right {
                    return Err(EvalError::Invalid(Refusal::unequal(origin, &sides.0, &sides.1, (left, right))));
                }
            }
            Step::Bind { from, to, .. } => {
                let tensor = self.tensor(*from)?;
                self.learn(*to, &tensor);
                self.write(*to, tensor.bytes())?;
            }
            Step::Launch { kernel, .. } => {
                let program = programs.get(*kernel).ok_or_else(|| invalid("a kernel that is not there"))?;
                let mut buffers = reads.iter().map(|&s| self.read(s)).collect::<Result<Vec<_>, _>>()?;
                for &slot in writes.iter() {
                    buffers.push(vec![!UNWRITTEN; self.size(slot)?]);
                }
                let count = program.programs();
                let count = count.eval(&|s| self.dim(s)).ok_or_else(|| EvalError::Unbound(count.to_string()))?;
                let ran = tile::run(program, &mut buffers, &|s| self.dim(s), 0..count);
                let origin = self.plan.kernels.get(*kernel).map(|k| k.origin.clone()).unwrap_or_default();
                ran.map_err(|e| EvalError::Invalid(e.to_string()).at(&origin))?;
                for (&slot, bytes) in writes.iter().zip(buffers.split_off(reads.len())) {
                    self.write(slot, &bytes)?;
                }
            }
            Step::Host { op, outputs, origin, .. } => {
                let operands = reads.iter().map(|&s| self.tensor(s)).collect::<Result<Vec<_>, _>>()?;
                let op = op.map_exprs(&|e| e.substitute(&|s| self.dim(s).map(Into::into)));
                let results = eval_op(&op, &operands).map_err(|e| e.at(origin))?;
                for (&slot, result) in outputs.iter().zip(results) {
                    self.learn(slot, &result);
                    if result.dtype().is_bytes() {
                        self.write(slot, result.bytes())?;
                    } else {
                        self.tensors.insert(slot, result);
                    }
                }
            }
            Step::Copy { from, to } => {
                if let Some(tensor) = self.tensors.get(from).cloned() {
                    self.tensors.insert(*to, tensor);
                } else {
                    let bytes = self.read(*from)?;
                    self.write(*to, &bytes)?;
                }
            }
        }
        Ok(())
    }

    /// Gives symbols without a value the extents that a result has.
    fn learn(&mut self, slot: SlotId, result: &Tensor) {
        for (dim, &extent) in self.plan.slots[slot].ty.dims.iter().zip(result.shape()) {
            if let Some(symbol) = dim.as_symbol() {
                self.dims.entry(symbol.clone()).or_insert(i64::try_from(extent).unwrap_or(i64::MAX));
            }
        }
    }
}
