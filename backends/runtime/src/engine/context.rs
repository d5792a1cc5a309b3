//! The memory and threads of one run at a time.
//!
//! Invariant: every pointer in the slot table stays valid while its owner in the context lives, and the table is
//! rebuilt whenever an owner changes. No step runs before the sizes of its slots are known and its memory is there. Slots that the plan lets overlap are only reached through these raw pointers, never
//! through two live references.

mod ahead;
mod contents;
mod control;
mod error;

pub use error::RunError;

use std::sync::Arc;

use bytes::Bytes;
use kiln_ir::graph::Origin;
use kiln_ir::interp::limits::{self, Limits};
use kiln_ir::interp::{bind_types, eval_op_within};
use kiln_ir::ops::Op;
use kiln_ir::plan::{Place, Plan, SlotId, Step};
use kiln_ir::{DType, Expr, Symbol, Tensor, TensorType};

use super::formulas::Values;
use super::model::{Loaded, Model};
use crate::memory::{ALIGNMENT, Budget, Buffer, Reservation};
use crate::pool::{self, Pool};

/// An input that is loaded: the caller's own memory where it is aligned, else a copy.
enum Loan {
    Nothing,
    Shared(Tensor),
    Copied(Buffer),
    /// The caller's memory, for the time of one call of [`Context::run_lent`].
    Lent(*const u8),
}

/// An input in memory of the caller's, see [`Context::run_lent`].
#[derive(Clone, Copy, Debug)]
pub struct Lent<'a> {
    /// Element type; not strings.
    pub dtype: DType,
    /// Extents.
    pub shape: &'a [usize],
    /// The elements, row-major.
    pub bytes: &'a [u8],
}

/// What a launch step needs, resolved.
struct Launch {
    kernel: crate::code::KernelFn,
    grain: u64,
    /// First argument in `Context::arguments`.
    first: usize,
    /// Inputs that no step before has read, by the slot and the input's number.
    fresh: Vec<(SlotId, usize)>,
}

/// The memory and threads of one run at a time. See the module documentation.
pub struct Context {
    model: Arc<Loaded>,
    budget: Budget,
    pool: Pool,
    arena: Buffer,
    /// Memory beside the arena, one buffer for each region, as large as it has needed to be.
    regions: Vec<Option<Buffer>>,
    inputs: Vec<Loan>,
    /// Nothing where the output was taken, or its size is not known yet.
    outputs: Vec<Option<Buffer>>,
    /// Where outputs go that the caller lent memory for.
    lent: Vec<Option<*mut u8>>,
    /// The values of the plan's symbols that the inputs give, and those that steps have found since.
    bound: Vec<Option<i64>>,
    dims: Vec<Option<i64>>,
    /// `dims` as kernels read them.
    kernel_dims: Vec<i64>,
    values: Values,
    /// Tensors of strings, by slot.
    strings: Vec<Option<Tensor>>,
    /// Where slots without bytes point: valid to read and write, as a kernel may form such an address.
    nothing: Buffer,
    /// The first byte of each slot.
    slots: Vec<*mut u8>,
    /// The arguments of all launches, one after another.
    arguments: Vec<*mut u8>,
    /// For each step its launch, if it is one.
    launches: Vec<Option<Launch>>,
    loaded: bool,
    /// Contexts that share weights share the charge for them.
    weights: Arc<Reservation>,
}

// SAFETY: the raw pointers lead into memory that the context owns (or shares with immutable owners that it keeps), and
// running needs `&mut self`.
unsafe impl Send for Context {}

/// The argument array of a launch, as all threads of the pool read it.
struct Arguments(*const *mut u8);
// SAFETY: the array is not changed while a run reads it.
unsafe impl Sync for Arguments {}

impl Arguments {
    fn get(&self) -> *const *mut u8 {
        self.0
    }
}

impl Context {
    /// Memory and `threads` threads to run `model` with. The weights are charged to `budget` too.
    ///
    /// # Errors
    /// [`RunError::Memory`] or [`RunError::Pool`].
    pub fn new(model: &Model, threads: usize, budget: &Budget) -> Result<Self, RunError> {
        let weights = Arc::new(budget.reserve(model.plan().weight_bytes, "the weights")?);
        Context::with_weights(model, threads, budget, weights)
    }

    /// As [`Context::new`] for another entry of the artifact that `other` runs: the weights are not charged again.
    ///
    /// # Errors
    /// [`RunError::Memory`] or [`RunError::Pool`]; [`RunError::Internal`] where the artifacts are not the same.
    pub fn beside(other: &Context, model: &Model, threads: usize) -> Result<Self, RunError> {
        if !Arc::ptr_eq(other.model.artifact(), model.artifact()) {
            return Err(RunError::Internal("contexts of two artifacts share no weights"));
        }
        Context::with_weights(model, threads, &other.budget, Arc::clone(&other.weights))
    }

    fn with_weights(
        model: &Model,
        threads: usize,
        budget: &Budget,
        weights: Arc<Reservation>,
    ) -> Result<Self, RunError> {
        let loaded = Arc::clone(&model.0);
        let plan = loaded.plan();
        let arena = Buffer::zeroed(budget, plan.arena_bytes, "the arena")?;
        let nothing = Buffer::zeroed(budget, ALIGNMENT as u64, "an empty tensor")?;
        let mut launches = Vec::with_capacity(plan.steps.len());
        let mut first = 0;
        let mut read = vec![false; plan.inputs.len()];
        for step in &plan.steps {
            launches.push(match step {
                Step::Launch { kernel: n, arguments, .. } => {
                    let fresh = arguments.iter().filter_map(|&slot| match plan.slots[slot].place {
                        Place::Input(n) => {
                            let first = read.get_mut(n).is_some_and(|read| !std::mem::replace(read, true));
                            first.then_some((slot, n))
                        }
                        Place::Weights(_) | Place::Output(_) | Place::Arena(_) | Place::Region(_) | Place::Host => None,
                    });
                    let fresh = fresh.collect();
                    let missing = RunError::Internal("a launch without a kernel");
                    let (code, entry) = loaded.kernel(*n).ok_or(missing)?;
                    let launch = Launch { kernel: code, grain: entry.grain, first, fresh };
                    first += arguments.len();
                    Some(launch)
                }
                Step::Host { .. } | Step::Copy { .. } | Step::Bind { .. } | Step::Refuse { .. } => None,
                Step::If { .. } | Step::Loop(_) => None,
            });
        }
        let unknown = vec![None; plan.symbols.len()];
        let values = loaded.formulas().values(plan, &unknown);
        let mut context = Self {
            regions: plan.regions.iter().map(|_| None).collect(),
            bound: unknown.clone(),
            dims: unknown,
            kernel_dims: vec![0; plan.symbols.len()],
            values,
            budget: budget.clone(),
            pool: Pool::new(threads)?,
            arena,
            inputs: plan.inputs.iter().map(|_| Loan::Nothing).collect(),
            outputs: plan.outputs.iter().map(|_| None).collect(),
            lent: vec![None; plan.outputs.len()],
            strings: vec![None; plan.slots.len()],
            nothing,
            slots: Vec::new(),
            arguments: Vec::with_capacity(first),
            launches,
            loaded: false,
            weights,
            model: loaded,
        };
        context.provide()?;
        Ok(context)
    }

    /// The plan that the context runs.
    pub fn plan(&self) -> &Plan {
        self.model.plan()
    }

    /// The values of the plan's symbols, as far as they are known, in its order.
    pub fn dims(&self) -> &[Option<i64>] {
        &self.dims
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Loads inputs, runs, and hands the outputs over.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, RunError> {
        self.load(inputs)?;
        self.run_loaded()?;
        self.take_outputs()
    }

    /// Checks inputs against the plan and keeps them for [`Context::run_loaded`]. A tensor whose memory is aligned to
    /// [`ALIGNMENT`] bytes is shared, others are copied.
    ///
    /// # Errors
    /// [`RunError::InputCount`], [`RunError::InputType`] or [`RunError::Memory`].
    pub fn load(&mut self, inputs: &[Tensor]) -> Result<(), RunError> {
        let views: Vec<(DType, &[usize])> = inputs.iter().map(|t| (t.dtype(), t.shape())).collect();
        self.accept(&views)?;
        let model = Arc::clone(&self.model);
        let plan = model.plan();
        for ((name, slot), (n, tensor)) in plan.inputs.iter().zip(inputs.iter().enumerate()) {
            if !tensor.dtype().is_bytes() {
                self.strings[slot.index()] = Some(tensor.clone());
            } else if (tensor.bytes().as_ptr() as usize).is_multiple_of(ALIGNMENT) {
                self.inputs[n] = Loan::Shared(tensor.clone());
            } else {
                let what = format!("the input {name:?}");
                self.inputs[n] = Loan::Copied(Buffer::copy_of(&self.budget, tensor.bytes(), &what)?);
            }
        }
        self.provide()?;
        self.loaded = true;
        Ok(())
    }

    /// Checks the types of inputs against the plan and gives the symbols their values; nothing is loaded then.
    fn accept(&mut self, inputs: &[(DType, &[usize])]) -> Result<(), RunError> {
        self.loaded = false;
        let model = Arc::clone(&self.model);
        let plan = model.plan();
        if inputs.len() != plan.inputs.len() {
            let names: Vec<&str> = plan.inputs.iter().map(|(name, _)| &**name).collect();
            return Err(RunError::InputCount {
                expected: plan.inputs.len(),
                names: names.join(", "),
                found: inputs.len(),
            });
        }
        for ((name, slot), (dtype, shape)) in plan.inputs.iter().zip(inputs) {
            let expected = &plan.slots[*slot].ty;
            let fits = |(want, &have): (&Expr, &usize)| want.as_const().is_none() || want.as_size() == Some(have);
            let same = expected.rank() == shape.len() && expected.dims.iter().zip(*shape).all(fits);
            if expected.dtype != *dtype || !same {
                let (expected, found) = (expected.to_string(), TensorType::of(*dtype, shape).to_string());
                return Err(RunError::InputType { name: name.to_string(), expected, found });
            }
        }
        if plan.is_symbolic() {
            let shapes: Vec<&[usize]> = inputs.iter().map(|i| i.1).collect();
            self.bound = bind(plan, &shapes)?;
            self.set_dims(self.bound.clone());
        }
        Ok(())
    }

    /// Runs with inputs and outputs in memory that the caller lends for this call: nothing is copied where it is aligned to
    /// [`ALIGNMENT`] bytes. `outputs` are numbers of outputs with memory of exactly their size; the others stay in the
    /// context. Afterwards nothing is loaded.
    ///
    /// # Errors
    /// As [`Context::load`] and [`Context::run_loaded`]; [`RunError::OutputSize`] where lent memory has another size.
    pub fn run_lent(&mut self, inputs: &[Lent<'_>], outputs: &mut [(usize, &mut [u8])]) -> Result<(), RunError> {
        let views: Vec<(DType, &[usize])> = inputs.iter().map(|i| (i.dtype, i.shape)).collect();
        self.accept(&views)?;
        let result = self.run_with(inputs, outputs);
        // The caller's memory is not pointed to any more, whatever happened.
        self.loaded = false;
        self.forget_lent();
        result
    }

    fn run_with(&mut self, inputs: &[Lent<'_>], outputs: &mut [(usize, &mut [u8])]) -> Result<(), RunError> {
        let model = Arc::clone(&self.model);
        let (plan, formulas) = (model.plan(), model.formulas());
        for ((name, slot), (n, lent)) in plan.inputs.iter().zip(inputs.iter().enumerate()) {
            let bytes = formulas.bytes(&self.values, *slot);
            if !lent.dtype.is_bytes() || bytes != Some(lent.bytes.len() as u64) {
                let (expected, found) = (plan.slots[*slot].ty.to_string(), format!("{} bytes", lent.bytes.len()));
                return Err(RunError::InputType { name: name.to_string(), expected, found });
            }
            self.inputs[n] = if (lent.bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
                Loan::Lent(lent.bytes.as_ptr())
            } else {
                Loan::Copied(Buffer::copy_of(&self.budget, lent.bytes, &format!("the input {name:?}"))?)
            };
        }
        for (n, bytes) in outputs.iter_mut() {
            let Some((name, slot)) = plan.outputs.get(*n) else {
                return Err(RunError::Internal("memory was lent for an output that is not there"));
            };
            let expected = formulas.bytes(&self.values, *slot);
            if expected != Some(bytes.len() as u64) {
                let found = bytes.len() as u64;
                return Err(RunError::OutputSize { name: name.to_string(), expected: expected.unwrap_or(0), found });
            }
            if (bytes.as_ptr() as usize).is_multiple_of(ALIGNMENT) {
                self.lent[*n] = Some(bytes.as_mut_ptr());
            }
        }
        self.provide()?;
        self.loaded = true;
        self.run_loaded()?;
        for (n, bytes) in outputs.iter_mut() {
            if self.lent.get(*n) == Some(&None)
                && let Some(found) = self.output_bytes(*n).filter(|found| found.len() == bytes.len())
            {
                bytes.copy_from_slice(found);
            }
        }
        Ok(())
    }

    /// Runs with the inputs that were loaded last, leaving the outputs in the context. Between steps the limits of the calling
    /// thread ([`limits::scope`]) are asked; host steps may take what they allow, or [`limits::DEFAULT_BYTES`], and no more than
    /// the context's budget.
    ///
    /// # Errors
    /// See [`RunError`]; the outputs then hold anything.
    pub fn run_loaded(&mut self) -> Result<(), RunError> {
        self.steps(|_, _| {})
    }

    /// [`Context::run_loaded`], with a call after each step of the plan that gets the step's number: for whoever measures.
    ///
    /// # Errors
    /// See [`RunError`]; the outputs then hold anything.
    pub fn run_watched(&mut self, after: &mut dyn FnMut(usize)) -> Result<(), RunError> {
        self.steps(|_, n| after(n))
    }

    /// [`Context::run_loaded`], with a call after each step of the plan, which may look at the slots that the step has written.
    ///
    /// # Errors
    /// See [`RunError`]; the outputs then hold anything.
    pub fn run_inspected(&mut self, after: &mut dyn FnMut(&Context, usize)) -> Result<(), RunError> {
        self.steps(after)
    }

    fn steps(&mut self, mut after: impl FnMut(&Self, usize)) -> Result<(), RunError> {
        if !self.loaded {
            return Err(RunError::NoInputs);
        }
        if self.dims != self.bound {
            // The last run found extents of its own; this one may find others.
            self.set_dims(self.bound.clone());
            self.provide()?;
        } else if self.outputs.iter().zip(&self.lent).any(|(output, lent)| output.is_none() && lent.is_none()) {
            self.provide()?;
        }
        let allowed = limits::current().bytes.unwrap_or(limits::DEFAULT_BYTES).min(self.budget.limit());
        self.range(0..self.launches.len(), allowed, &mut after)
    }

    /// Runs a host step, which may take so many bytes.
    fn host(
        &mut self,
        op: &Op,
        inputs: &[SlotId],
        outputs: &[SlotId],
        origin: &Origin,
        allowed: u64,
    ) -> Result<(), RunError> {
        let operands = inputs.iter().map(|&slot| self.read(slot)).collect::<Result<Vec<_>, _>>()?;
        let known;
        let op = if self.dims.is_empty() {
            op
        } else {
            known = op.map_exprs(&|e| e.substitute(&|s| self.dim(s).map(Expr::from)));
            &known
        };
        let within = Limits { bytes: Some(allowed), ..Limits::default() };
        let (results, reached) =
            limits::watch(|| limits::scope(within, || eval_op_within(op, &operands, Some(allowed))));
        let results = results.map_err(|error| match reached {
            None => RunError::Host { origin: origin.clone(), error },
            Some(reached) => RunError::Stopped { origin: origin.clone(), reached, detail: Some(error.to_string()) },
        })?;
        if results.len() != outputs.len() {
            return Err(RunError::Internal("a host op gave another number of results"));
        }
        self.learn(outputs, &results, origin)?;
        for (&slot, result) in outputs.iter().zip(results) {
            self.write(slot, result, origin)?;
        }
        Ok(())
    }

    /// The bytes of the n-th output after a run; nothing for strings and for numbers out of range.
    pub fn output_bytes(&self, n: usize) -> Option<&[u8]> {
        let (_, slot) = self.model.plan().outputs.get(n)?;
        let numeric = self.model.plan().slots.get(*slot)?.ty.dtype.is_bytes();
        numeric.then(|| self.outputs.get(n)?.as_ref()).flatten().map(Buffer::as_slice)
    }

    /// The outputs of the last run, by handing their memory over; the next run gets fresh memory.
    ///
    /// # Errors
    /// [`RunError::Internal`] where no run has been.
    pub fn take_outputs(&mut self) -> Result<Vec<Tensor>, RunError> {
        let plan = self.model.plan();
        let none = || RunError::Internal("outputs were taken before a run");
        let mut tensors = Vec::with_capacity(plan.outputs.len());
        for ((_, slot), buffer) in plan.outputs.iter().zip(&mut self.outputs) {
            let ty = &plan.slots[*slot].ty;
            let buffer = buffer.take().ok_or_else(none)?;
            if !ty.dtype.is_bytes() {
                let missing = RunError::Internal("an output of strings was not written");
                tensors.push(self.strings[slot.index()].clone().ok_or(missing)?);
                continue;
            }
            let shape = self.model.formulas().shape(&self.values, *slot);
            let shape = shape.ok_or(RunError::Internal("an output without a shape"))?;
            let tensor = Tensor::new(ty.dtype, shape, Bytes::from_owner(Owned(buffer)));
            tensors.push(tensor.map_err(|_| RunError::Internal("an output of another size"))?);
        }
        Ok(tensors)
    }

    /// The value of a symbol, where it has one.
    fn dim(&self, symbol: &Symbol) -> Option<i64> {
        let n = self.model.plan().symbols.iter().position(|(s, _)| s == symbol)?;
        self.dims.get(n).copied().flatten()
    }

    /// Gives the symbols their values and evaluates all that depends on them.
    fn set_dims(&mut self, dims: Vec<Option<i64>>) {
        if self.dims == dims {
            return;
        }
        self.kernel_dims = dims.iter().map(|d| d.unwrap_or(0)).collect();
        self.values = self.model.formulas().values(self.model.plan(), &dims);
        self.dims = dims;
    }

    /// Gives symbols without a value the extent that a host step's result has, and provides for what is known then.
    fn learn(&mut self, outputs: &[SlotId], results: &[Tensor], origin: &Origin) -> Result<(), RunError> {
        let shapes: Vec<(SlotId, &[usize])> = outputs.iter().copied().zip(results.iter().map(Tensor::shape)).collect();
        self.learn_shapes(&shapes, origin)
    }

    /// [`Context::learn`] of one slot that is found to have this shape.
    fn learn_shape(&mut self, slot: SlotId, shape: &[usize], origin: &Origin) -> Result<(), RunError> {
        self.learn_shapes(&[(slot, shape)], origin)
    }

    /// [`Context::learn`] of several.
    fn learn_shapes(&mut self, found: &[(SlotId, &[usize])], origin: &Origin) -> Result<(), RunError> {
        let model = Arc::clone(&self.model);
        let plan = model.plan();
        let mut dims = self.dims.clone();
        for &(slot, shape) in found {
            for (dim, &extent) in plan.slots[slot].ty.dims.iter().zip(shape) {
                let Some(symbol) = dim.as_symbol() else { continue };
                let Some(n) = plan.symbols.iter().position(|(s, _)| s == symbol) else { continue };
                let extent = i64::try_from(extent).unwrap_or(i64::MAX);
                let (lo, hi) = plan.symbols[n].1;
                if dims[n].is_none() && !(lo..=hi).contains(&extent) {
                    let found = format!("{symbol} = {extent}, outside its range {lo}..{hi}");
                    return Err(RunError::InputShape(format!("{origin} gave {found}")));
                }
                dims[n] = dims[n].or(Some(extent));
            }
        }
        if dims != self.dims {
            self.set_dims(dims);
            self.provide()?;
        }
        Ok(())
    }

    /// Makes sure that every slot whose size is known has its memory, and points to it.
    fn provide(&mut self) -> Result<(), RunError> {
        let model = Arc::clone(&self.model);
        let (plan, formulas) = (model.plan(), model.formulas());
        if let Some((n, left, right)) = formulas.broken(&self.values)
            && let Some(r) = plan.requirements.get(n)
        {
            let (sides, values) = (format!("{} = {}", r.left, r.right), format!("{left} and {right}"));
            let known = plan.symbols.iter().zip(&self.dims).filter_map(|((s, _), d)| Some(format!("{s} = {}", (*d)?)));
            let known: Vec<String> = known.collect();
            let origin = &r.origin;
            return Err(RunError::InputShape(format!(
                "{origin} needs {sides}, which are {values} for {}",
                known.join(", ")
            )));
        }
        if self.dims.iter().all(Option::is_some) {
            for (id, slot) in plan.slots.iter() {
                let what = || format!("{:?} ({})", slot.name.as_deref().unwrap_or("an intermediate result"), slot.ty);
                let bytes = formulas.bytes(&self.values, id).ok_or_else(|| RunError::Size(what()))?;
                if !formulas.has_shape(&self.values, id) {
                    return Err(RunError::Size(what()));
                }
                if let Place::Region(n) = slot.place
                    && formulas.region(&self.values, n).is_none_or(|limit| bytes > limit)
                {
                    return Err(RunError::Internal("a slot is larger than its region"));
                }
            }
        }
        for (n, region) in self.regions.iter_mut().enumerate() {
            let Some(bytes) = formulas.region(&self.values, n) else { continue };
            let there = region.as_ref().map_or(0, |r| r.as_slice().len() as u64);
            if bytes > there || region.is_none() {
                // What grows step by step (a cache's past) is not moved at every step.
                let ample = if there == 0 { bytes } else { bytes.max(there + there / 2) };
                *region = None;
                let made = Buffer::zeroed(&self.budget, ample, "an intermediate result");
                *region = Some(match made {
                    Err(_) if ample > bytes => Buffer::zeroed(&self.budget, bytes, "an intermediate result")?,
                    made => made?,
                });
            }
        }
        for ((name, slot), (output, lent)) in plan.outputs.iter().zip(self.outputs.iter_mut().zip(&self.lent)) {
            if lent.is_some() {
                continue;
            }
            let Some(bytes) = formulas.bytes(&self.values, *slot) else {
                *output = None;
                continue;
            };
            if output.as_ref().is_none_or(|o| o.as_slice().len() as u64 != bytes) {
                *output = None;
                *output = Some(Buffer::zeroed(&self.budget, bytes, &format!("the output {name:?}"))?);
            }
        }
        self.point();
        Ok(())
    }

    /// Makes what points to memory that was lent point to nothing; the next run points anew.
    fn forget_lent(&mut self) {
        let model = Arc::clone(&self.model);
        let nothing = self.nothing.as_mut_ptr();
        for ((_, slot), pointer) in model.plan().slots.iter().zip(&mut self.slots) {
            let lent = match slot.place {
                Place::Input(n) => matches!(self.inputs.get(n), Some(Loan::Lent(_))),
                Place::Output(n) => matches!(self.lent.get(n), Some(Some(_))),
                Place::Weights(_) | Place::Arena(_) | Place::Region(_) | Place::Host => false,
            };
            if lent {
                *pointer = nothing;
            }
        }
        self.arguments.clear();
        self.lent.fill(None);
        self.inputs.iter_mut().filter(|loan| matches!(loan, Loan::Lent(_))).for_each(|loan| *loan = Loan::Nothing);
    }

    /// Rebuilds the slot table and the launches' arguments.
    fn point(&mut self) {
        let plan = self.model.plan();
        let weights = self.model.weights(0..plan.weight_bytes);
        self.slots.clear();
        for (id, slot) in plan.slots.iter() {
            let bytes = self.model.formulas().bytes(&self.values, id).unwrap_or(0);
            let pointer = if bytes == 0 {
                self.nothing.as_mut_ptr()
            } else {
                match slot.place {
                    // Kernels never write to weights: the verifier rejects a plan in which one would.
                    Place::Weights(at) => {
                        let weight = weights.get(at as usize..(at + bytes) as usize).unwrap_or_default();
                        weight.as_ptr().cast_mut()
                    }
                    Place::Input(n) => match self.inputs.get(n) {
                        Some(Loan::Shared(tensor)) => tensor.bytes().as_ptr().cast_mut(),
                        Some(Loan::Copied(buffer)) => buffer.as_ptr().cast_mut(),
                        Some(Loan::Lent(pointer)) => pointer.cast_mut(),
                        Some(Loan::Nothing) | None => self.nothing.as_mut_ptr(),
                    },
                    Place::Output(n) => match (self.lent.get(n), self.outputs.get_mut(n)) {
                        (Some(Some(pointer)), _) => *pointer,
                        (_, Some(Some(buffer))) => buffer.as_mut_ptr(),
                        (_, Some(None) | None) => self.nothing.as_mut_ptr(),
                    },
                    // The verifier has checked that the slot ends inside the arena.
                    Place::Arena(at) => self.arena.as_mut_ptr().wrapping_add(at as usize),
                    // `provide` has checked that the slot ends inside its region.
                    Place::Region(n) => match self.regions.get_mut(n) {
                        Some(Some(region)) => region.as_mut_ptr(),
                        Some(None) | None => self.nothing.as_mut_ptr(),
                    },
                    Place::Host => self.nothing.as_mut_ptr(),
                }
            };
            self.slots.push(pointer);
        }
        self.arguments.clear();
        for step in &plan.steps {
            if let Step::Launch { arguments, .. } = step {
                self.arguments.extend(arguments.iter().map(|slot| self.slots[slot.index()]));
            }
        }
    }

    fn launch(&mut self, step: usize, kernel: usize) -> Result<(), RunError> {
        let Some(Some(launch)) = self.launches.get(step) else {
            return Err(RunError::Internal("a launch that was not resolved"));
        };
        let arguments = Arguments(self.arguments.as_ptr().wrapping_add(launch.first));
        let (code, dims) = (launch.kernel, &self.kernel_dims);
        let unknown = RunError::Internal("a launch before its dims are known");
        let (plan, formulas) = (self.model.plan(), self.model.formulas());
        let Some(programs) = formulas.programs(&self.values, kernel) else { return Err(unknown) };
        if self.dims.iter().any(Option::is_none)
            && let Some(Step::Launch { arguments, .. }) = plan.steps.get(step)
            && arguments.iter().any(|&slot| formulas.bytes(&self.values, slot).is_none())
        {
            return Err(unknown);
        }
        let ahead = &self.ahead(launch);
        let done = self.pool.run(programs, launch.grain, &|lo, hi, _| {
            ahead.iter().flatten().for_each(|ahead| ahead.read(lo, hi, programs));
            let (dims, scratch) = (dims.as_ptr(), std::ptr::null_mut());
            // SAFETY: the code is a kernel of this model, which the context keeps loaded. Its arguments are the slots
            // that the plan gives it, each of the size that the kernel was compiled for; the verifier has checked that
            // they lie in their sections, and that those written overlap no other live slot. Programs of one launch
            // write disjoint elements. `dims` has the values of all of the plan's symbols, and none uses scratch.
            unsafe { code(arguments.get(), dims, lo as i64, hi as i64, scratch) }
        });
        match done {
            Ok(()) => Ok(()),
            Err(error) => {
                let kernel = self.model.plan().kernels.get(kernel);
                let name = kernel.map(|k| k.name.clone()).unwrap_or_default();
                let origin = kernel.map(|k| k.origin.clone()).unwrap_or_default();
                Err(match error {
                    pool::RunError::Status(status) => RunError::Kernel { kernel: name, origin, status },
                    pool::RunError::Panicked => RunError::Panicked { kernel: name },
                })
            }
        }
    }
}

/// The model's nodes that a step computes.
fn origin(plan: &Plan, step: &Step) -> Origin {
    match step {
        Step::Launch { kernel, .. } => plan.kernels.get(*kernel).map(|k| k.origin.clone()).unwrap_or_default(),
        Step::Host { origin, .. } => origin.clone(),
        Step::Bind { origin, .. } | Step::Refuse { origin, .. } | Step::If { origin, .. } => origin.clone(),
        Step::Loop(l) => l.origin.clone(),
        Step::Copy { .. } => Origin::default(),
    }
}

/// The values that the inputs' shapes give to the plan's symbols.
fn bind(plan: &Plan, shapes: &[&[usize]]) -> Result<Vec<Option<i64>>, RunError> {
    let types: Vec<(&str, &TensorType)> =
        plan.inputs.iter().map(|(name, slot)| (&**name, &plan.slots[*slot].ty)).collect();
    let bindings = bind_types(&types, &plan.ranges(), shapes).map_err(RunError::InputShape)?;
    Ok(plan.symbols.iter().map(|(symbol, _)| bindings.get(symbol).copied()).collect())
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({:?}, {} threads)", self.model.plan().name, self.pool.threads())
    }
}

/// A buffer that a tensor owns.
struct Owned(Buffer);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}
