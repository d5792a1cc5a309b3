//! A trial: one kernel with one schedule, compiled and timed in this process.
//!
//! Invariant: the code is what a compilation with that schedule makes of the kernel, byte for byte, and the engine runs it as it
//! runs a model. Weights are met as in the model: where a model's weights exceed the caches, each launch reads another copy.

use crate::emit::Emitter;
use crate::profile::Distribution;
use crate::{Compiled, Error, Silent, random};
use bytes::Bytes;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::graph::{Graph, TensorType, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::plan::{Kernel, Place, Plan, Slot, Step, nominal};
use kiln_ir::{DType, Tensor};
use kiln_passes::group::Group;
use kiln_passes::kernel::{Choice, preferred_layouts, tile_program};
use kiln_passes::pipeline::Scheduled;
use kiln_passes::plan::Weight;
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, ModelOptions};
use kiln_runtime::memory::Budget;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// What a trial found.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Times of single launches.
    pub time: Distribution,
    /// Hash of the machine code.
    pub code: String,
}

/// A kernel that is tried with many schedules.
pub struct Trials<'a> {
    scheduled: &'a Scheduled,
    graph: &'a Graph,
    group: &'a Group,
    level: CpuLevel,
    threads: usize,
    budget: &'a Budget,
    /// The graph with the layouts of the trial at hand.
    laid_out: Graph,
    /// Operands in the layouts that were asked for so far.
    operands: HashMap<(ValueId, Layout), Vec<Tensor>>,
    /// Copies of constants.
    copies: usize,
}

/// Memory beyond the caches of most machines: more copies of a weight than fill it change nothing.
const COLD: u64 = 48 << 20;
/// Launches of one run at most.
const MOST_COPIES: u64 = 12;

/// How long a trial runs at least and at most.
const LEAST: Duration = Duration::from_millis(12);
const MOST: Duration = Duration::from_millis(200);
/// Samples that a distribution needs.
const SAMPLES: usize = 12;

impl<'a> Trials<'a> {
    /// Trials of a group of a graph whose constants are `weight_bytes` together.
    pub fn new(
        scheduled: &'a Scheduled,
        group: &'a Group,
        level: CpuLevel,
        threads: usize,
        weight_bytes: u64,
        budget: &'a Budget,
    ) -> Trials<'a> {
        let graph = &scheduled.graph;
        let own = group.inputs.iter().filter_map(|&v| graph.constant(v)).map(Tensor::footprint).sum::<u64>().max(1);
        let copies = weight_bytes.min(COLD).div_ceil(own).clamp(1, MOST_COPIES);
        Trials {
            scheduled,
            graph,
            group,
            level,
            threads,
            budget,
            laid_out: graph.clone(),
            operands: HashMap::new(),
            copies: copies as usize,
        }
    }

    fn nominal(&self, e: &Expr) -> Option<usize> {
        let value = |s: &Symbol| self.graph.symbols.get(s).map(|&range| nominal(range));
        e.eval(&value).and_then(|n| usize::try_from(n).ok())
    }

    /// Compiles and times a schedule. A trial that is surely slower than `limit` seconds ends early.
    ///
    /// # Errors
    /// The schedule cannot be compiled, or there is no memory.
    pub fn measure(&mut self, choice: &Choice, limit: Option<f64>) -> Result<Measured, Error> {
        let mut emitter = Emitter::of(self.level, self.scheduled)?;
        let machine = emitter.machine();
        for (value, layout) in preferred_layouts(self.graph, self.group, &machine, choice) {
            self.laid_out.set_layout(value, layout);
        }
        let program = tile_program(&self.laid_out, self.group, "k", &machine, choice);
        let program = program.map_err(|e| Error::Unsupported(e.to_string()))?;
        let (plan, inputs) = self.plan()?;
        let code = emitter.emit(&plan, &[program], 1, &mut Silent)?;
        let hash = crate::tune::hash(&code.bytes);
        let compiled = Compiled::of_code("trial", plan, code);
        let model = compiled.load(&ModelOptions { levels: Some(vec![self.level]), ..ModelOptions::default() })?;
        let mut context = Context::new(&model, self.threads, self.budget)?;
        context.load(&inputs)?;
        context.run_loaded()?;
        let (mut samples, mut best): (Vec<f64>, f64) = (Vec::new(), f64::INFINITY);
        let begin = Instant::now();
        loop {
            let mut last = Instant::now();
            context.run_watched(&mut |_| {
                let now = Instant::now();
                samples.push((now - last).as_secs_f64());
                last = now;
            })?;
            best = samples.iter().copied().fold(best, f64::min);
            let elapsed = begin.elapsed();
            let enough = samples.len() >= SAMPLES && elapsed >= LEAST;
            let hopeless = samples.len() >= 3 && limit.is_some_and(|limit| best > 1.25 * limit);
            if enough || hopeless || elapsed >= MOST && samples.len() >= 3 {
                return Ok(Measured { time: Distribution::of(samples), code: hash });
            }
        }
    }

    /// One launch for each copy of the constants, and the operands. The kernel's buffers are flat here, as it sees them.
    fn plan(&mut self) -> Result<(Plan, Vec<Tensor>), Error> {
        let too_large = || Error::Unsupported("a trial of this kernel has operands of no size".into());
        let symbols = self.graph.symbols.iter().map(|(s, &range)| (s.clone(), range)).collect();
        let mut plan = Plan { name: "trial".into(), symbols, ..Plan::default() };
        let mut inputs: Vec<Tensor> = Vec::new();
        let add = |plan: &mut Plan, inputs: &mut Vec<Tensor>, ty: TensorType, tensor: Tensor| {
            let place = Place::Input(plan.inputs.len());
            let slot = plan.slots.push(Slot { name: None, ty, place });
            plan.inputs.push((format!("in{}", plan.inputs.len()).into(), slot));
            inputs.push(tensor);
            slot
        };
        if !plan.symbols.is_empty() {
            // Free dims get their values from the shape of an input that no kernel reads.
            let dims: Vec<Expr> = plan.symbols.iter().map(|(s, _)| Expr::from(s)).collect();
            let shape: Vec<usize> =
                dims.iter().map(|d| self.nominal(d)).collect::<Option<_>>().ok_or_else(too_large)?;
            if shape.iter().product::<usize>() > 1 << 24 {
                return Err(Error::Unsupported("too many free dims for a trial: fix some with --bind".into()));
            }
            let tensor = Tensor::zeros(DType::Bool, &shape).map_err(|e| Error::Internal(e.to_string()))?;
            add(&mut plan, &mut inputs, TensorType::new(DType::Bool, dims), tensor);
        }
        let mut slots = Vec::new();
        for &value in &self.group.inputs {
            let tensors = self.operand(value)?;
            let of = |t: &Tensor| TensorType::of(t.dtype(), t.shape());
            let each = tensors.iter().map(|t| add(&mut plan, &mut inputs, of(t), t.clone()));
            slots.push(each.collect::<Vec<_>>());
        }
        let ty = self.laid_out.ty(self.group.output);
        let len = self.nominal(&ty.layout.storage_len(&ty.dims)).ok_or_else(too_large)?;
        let out = plan.slots.push(Slot { name: None, ty: TensorType::of(ty.dtype, &[len]), place: Place::Output(0) });
        plan.outputs.push(("out".into(), out));
        let bytes = inputs.iter().map(Tensor::footprint).sum::<u64>() / self.copies as u64;
        let operations = self.nominal(&self.group.operations()).unwrap_or(0) as u64;
        let (name, origin, what) = ("k".to_string(), self.group.origin.clone(), self.group.what.clone());
        plan.kernels.push(Kernel { name, origin, what, operations, bytes });
        for copy in 0..self.copies {
            let read = |of: &Vec<_>| of.get(copy % of.len().max(1)).copied();
            let arguments: Option<Vec<_>> = slots.iter().map(read).chain([Some(out)]).collect();
            let arguments = arguments.ok_or_else(|| Error::Internal("a trial without operands".into()))?;
            plan.steps.push(Step::Launch { kernel: 0, arguments, written: 1 });
        }
        Ok((plan, inputs))
    }

    /// The copies of an operand in its layout of the moment, flat.
    fn operand(&mut self, value: ValueId) -> Result<Vec<Tensor>, Error> {
        let ty = self.laid_out.ty(value).clone();
        if let Some(known) = self.operands.get(&(value, ty.layout.clone())) {
            return Ok(known.clone());
        }
        let flat = |dtype: DType, bytes: &[u8]| {
            let tensor = Tensor::new(dtype, vec![bytes.len() / dtype.size()], aligned(bytes));
            tensor.map_err(|e| Error::Internal(e.to_string()))
        };
        let made = match self.graph.constant(value) {
            Some(tensor) => {
                let bytes = Weight { offset: 0, tensor: tensor.clone(), layout: ty.layout.clone() }.bytes();
                (0..self.copies).map(|_| flat(ty.dtype, &bytes)).collect::<Result<Vec<_>, _>>()?
            }
            None => {
                let len = self.nominal(&ty.layout.storage_len(&ty.dims));
                let len = len.ok_or_else(|| Error::Unsupported("an operand has no size".into()))?;
                let made = random::inputs(&[random::Input { dtype: ty.dtype, shape: vec![len] }], 0)?;
                made.iter().map(|t| flat(t.dtype(), t.bytes())).collect::<Result<_, _>>()?
            }
        };
        self.operands.insert((value, ty.layout), made.clone());
        Ok(made)
    }
}

/// A copy that begins on a cache line, so that the engine shares it.
fn aligned(bytes: &[u8]) -> Bytes {
    let mut memory = vec![0u8; bytes.len() + 64];
    let start = memory.as_ptr().align_offset(64).min(64);
    memory[start..start + bytes.len()].copy_from_slice(bytes);
    Bytes::from(memory).slice(start..start + bytes.len())
}
