//! A whole model in the PTX interpreter.
//!
//! Invariant: what is run is the PTX text and the plan, nothing else: kernels see only the slots that the plan gives
//! them, and a slot that no step has written to counts as not initialised. Branches are taken as the host would take them.

use super::{Compiled, allowed, apart, stored};
use crate::Error;
use kiln_ir::interp::eval_op;
use kiln_ir::plan::{Place, SlotId, Step};
use kiln_ir::{Tensor, tile};
use kiln_ptx::Argument;
use kiln_ptx::emulate::{self, Buffer, Counts, Finding, Launch, Module, Options};
use std::collections::BTreeMap;
use std::ops::Range;

/// What a kernel did.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// What it does and for which nodes.
    pub what: String,
    /// Mistakes that were found.
    pub findings: Vec<Finding>,
    /// What was executed.
    pub counts: Counts,
    /// Blocks and threads of each.
    pub shape: (u32, u32),
    /// How far its result is from that of its tile program on the same operands, where that was looked at.
    pub difference: Option<f64>,
    /// How far it may be.
    pub allowed: f64,
}

/// What came of a model's run.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// Its outputs.
    pub outputs: Vec<Tensor>,
    /// Its launches, in order.
    pub kernels: Vec<Kernel>,
}

/// Runs a model on inputs. With `each`, every kernel is compared with its tile program on the same operands.
///
/// # Errors
/// A kernel does not end, fails one of its own checks, or cannot be run.
pub fn run(
    compiled: &Compiled,
    inputs: &[Tensor],
    options: &Options,
    each: bool,
    seen: &mut dyn FnMut(&Kernel),
) -> Result<Outcome, Error> {
    let plan = &compiled.plan;
    let weights: BTreeMap<u64, &kiln_passes::plan::Weight> = compiled.weights.iter().map(|w| (w.offset, w)).collect();
    let memory = vec![None; plan.slots.len()];
    let mut run = Run { compiled, options, each, seen, memory, kernels: Vec::new() };
    for ((_, slot), input) in plan.inputs.iter().zip(inputs) {
        run.fill(*slot, input.bytes().to_vec());
    }
    for (id, slot) in plan.slots.iter() {
        if let Place::Weights(offset) = slot.place {
            let weight = weights.get(&offset).ok_or_else(|| bug(format!("there is no weight at {offset}")))?;
            run.fill(id, weight.bytes().to_vec());
        }
    }
    run.steps(0..plan.steps.len())?;
    let outputs = plan.outputs.iter().map(|(_, slot)| run.tensor(*slot)).collect::<Result<_, _>>()?;
    Ok(Outcome { outputs, kernels: run.kernels })
}

/// Instructions of all warps of the first block of a launch with this text, whose buffers hold zeros and have so many bytes;
/// nothing where it cannot be run or is too large for that.
pub fn instructions_of_a_block(text: &Module, launch: &stored::Launch, bytes: &[u64]) -> Option<u64> {
    const MOST: u64 = 2 << 30;
    if bytes.iter().try_fold(4u64, |sum, b| sum.checked_add(*b)).is_none_or(|all| all > MOST) {
        return None;
    }
    let buffer = |bytes: &u64| Buffer { bytes: vec![0; *bytes as usize], written: true, initialised: true, granule: 4 };
    let mut buffers: Vec<Buffer> = bytes.iter().chain([&4]).map(buffer).collect();
    let status = bytes.len();
    let argument = |handed: &stored::Handed| match handed {
        stored::Handed::Slot(n) => emulate::Argument::Buffer(*n),
        stored::Handed::Status => emulate::Argument::Buffer(status),
        stored::Handed::Map(map) => emulate::Argument::Map(map.slot, map.into()),
    };
    let arguments = launch.arguments.iter().map(argument).collect();
    let start = Launch { grid: [1; 3], block: [launch.threads, 1, 1], shared: launch.shared, arguments };
    let options = Options { checks: false, threads: 1, steps: 1 << 22, ..Options::default() };
    let report = emulate::run(text, text.kernel(&launch.entry)?, &start, &mut buffers, &options).ok()?;
    Some(report.counts.instructions)
}

fn bug(message: String) -> Error {
    Error::Internal(message)
}

struct Run<'a> {
    compiled: &'a Compiled,
    options: &'a Options,
    each: bool,
    seen: &'a mut dyn FnMut(&Kernel),
    /// By slot.
    memory: Vec<Option<Buffer>>,
    kernels: Vec<Kernel>,
}

impl Run<'_> {
    fn granule(&self, slot: SlotId) -> usize {
        self.compiled.plan.slots[slot].ty.dtype.size()
    }

    /// What a slot holds that nobody has written to.
    fn fresh(&self, slot: SlotId) -> Buffer {
        let bytes = vec![0xffu8; self.compiled.plan.slot_bytes(slot) as usize];
        Buffer { bytes, written: true, initialised: false, granule: self.granule(slot) }
    }

    fn fill(&mut self, slot: SlotId, bytes: Vec<u8>) {
        let granule = self.granule(slot);
        self.memory[slot.index()] = Some(Buffer { bytes, initialised: true, written: false, granule });
    }

    /// Steps one after another, each with those that belong to it.
    fn steps(&mut self, range: Range<usize>) -> Result<(), Error> {
        let plan = &self.compiled.plan;
        let mut n = range.start;
        while let Some(step) = plan.steps.get(n).filter(|_| n < range.end) {
            let next = n.saturating_add(1).saturating_add(step.inner());
            match step {
                Step::Launch { kernel, arguments, written } => self.launch(*kernel, arguments, *written)?,
                Step::Host { op, inputs, outputs, origin } => {
                    let operands = inputs.iter().map(|s| self.tensor(*s)).collect::<Result<Vec<_>, _>>()?;
                    let results = eval_op(op, &operands).map_err(|e| Error::data(origin, e))?;
                    for (slot, result) in outputs.iter().zip(results) {
                        self.fill(*slot, result.bytes().to_vec());
                    }
                }
                Step::Copy { from, to } => self.memory[to.index()] = self.memory[from.index()].clone(),
                Step::If { condition, then, .. } => {
                    let middle = n + 1 + then;
                    let holds = self.tensor(*condition)?.bytes().iter().any(|b| *b != 0);
                    self.steps(if holds { n + 1..middle } else { middle..next })?;
                }
                Step::Refuse { why, origin } => {
                    if let Some(message) = why.where_all_is_fixed(origin) {
                        return Err(Error::data(origin, message));
                    }
                }
                Step::Loop(_) | Step::Bind { .. } => {
                    return Err(bug("a loop, or a result of free dims, among the steps of a GPU".into()));
                }
            }
            n = next;
        }
        Ok(())
    }

    fn launch(&mut self, kernel: usize, arguments: &[SlotId], written: usize) -> Result<(), Error> {
        let compiled = self.compiled;
        let made = compiled.kernels.get(kernel).ok_or_else(|| bug(format!("there is no kernel {kernel}")))?;
        let of_plan = compiled.plan.kernels.get(kernel);
        let mut buffers = Vec::new();
        for (n, slot) in arguments.iter().enumerate() {
            let output = n + written >= arguments.len();
            let held = self.memory[slot.index()].take();
            buffers.push(match held {
                Some(b) if !output => Buffer { written: false, ..b },
                _ => self.fresh(*slot),
            });
        }
        let before = self.each.then(|| buffers.iter().map(|b| b.bytes.clone()).collect::<Vec<_>>());
        // The status.
        buffers.push(Buffer { bytes: vec![0; 4], written: true, initialised: true, granule: 4 });
        let status = buffers.len() - 1;
        for (n, module) in made.modules.iter().enumerate() {
            let l = &module.launch;
            let blocks = l.blocks.as_const().and_then(|b| u32::try_from(b.max(0)).ok());
            let blocks = blocks.ok_or_else(|| bug(format!("{} blocks of {}", l.blocks, l.entry)))?;
            let mut next = 0;
            let arguments = l.arguments.iter().map(|a| match a {
                Argument::Buffer { .. } => {
                    next += 1;
                    emulate::Argument::Buffer(next - 1)
                }
                Argument::Dim(_) => emulate::Argument::Value(0),
                Argument::Status => emulate::Argument::Buffer(status),
                Argument::Map(map) => emulate::Argument::Map(map.buffer, map.into()),
            });
            let launch = Launch {
                grid: [blocks, 1, 1],
                block: [l.threads, 1, 1],
                shared: l.dynamic_shared,
                arguments: arguments.collect(),
            };
            let text = Module::parse(&module.text).map_err(|e| bug(format!("{}: {e}", l.entry)))?;
            let code = text.kernel(&l.entry).ok_or_else(|| bug(format!("{} has no entry", l.entry)))?;
            // What an earlier part has written stays.
            if n > 0 {
                buffers.iter_mut().for_each(|b| b.initialised = true);
            }
            let report = if blocks == 0 {
                emulate::Report::default()
            } else {
                emulate::run(&text, code, &launch, &mut buffers, self.options)
                    .map_err(|e| Error::Limit(e.to_string()))?
            };
            self.kernels.push(Kernel {
                name: l.entry.clone(),
                what: of_plan.map(|k| format!("{} ({})", k.what, k.origin)).unwrap_or_default(),
                findings: report.findings,
                counts: report.counts,
                shape: (blocks, l.threads),
                difference: None,
                allowed: allowed(&made.tile),
            });
        }
        let failed = buffers.pop().map_or(0, |b| b.bytes.first().copied().unwrap_or(0));
        if failed != 0 {
            let what = of_plan.map(|k| k.origin.to_string()).unwrap_or_default();
            return Err(Error::data(what, "an index is out of range"));
        }
        if let Some(mut want) = before {
            tile::run(&made.tile, &mut want, &|_| None, 0..i64::MAX).map_err(|e| bug(e.to_string()))?;
            let difference = apart(&made.tile, &want, buffers.iter().map(|b| b.bytes.as_slice()));
            if let Some(k) = self.kernels.last_mut() {
                k.difference = Some(difference);
            }
        }
        for (slot, buffer) in arguments.iter().zip(buffers) {
            self.memory[slot.index()] = Some(Buffer { initialised: true, ..buffer });
        }
        let all = self.kernels.len();
        self.kernels[all - made.modules.len()..].iter().for_each(&mut *self.seen);
        Ok(())
    }

    /// A slot's contents, which lie row by row.
    fn tensor(&self, slot: SlotId) -> Result<Tensor, Error> {
        let of = &self.compiled.plan.slots[slot];
        let name = || of.name.as_deref().unwrap_or("a value").to_string();
        let shape = of.ty.shape().ok_or_else(|| bug(format!("{} has no fixed shape", name())))?;
        let held = self.memory.get(slot.index()).and_then(Option::as_ref);
        let held = held.ok_or_else(|| bug(format!("nothing was written to {}", name())))?;
        Tensor::new(of.ty.dtype, shape, held.bytes.clone()).map_err(|e| bug(e.to_string()))
    }
}
