//! A plan on a device.
//!
//! Invariant: a run does the plan's steps in their order on one stream. What lies between two steps of the host is one CUDA graph,
//! made when the model is loaded ([`segments`]); results are read only after the stream was waited for.

mod segments;

use super::memory::{Layout, Memory};
use super::staging::Staging;
use super::{Argument, CudaError, Device, Kernel, meaning, tensor};
use cudarc::driver::sys::{
    CUevent_flags, CUfunction_attribute, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode,
};
use cudarc::driver::{CudaFunction, CudaGraph, DriverError, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;
use kiln_ir::Tensor;
use kiln_ir::interp::eval_op;
use kiln_ir::plan::{Plan, SlotId, Step};
use segments::Segment;
use std::collections::HashMap;

/// A model that is loaded to a device. One run at a time.
pub struct Model {
    device: Device,
    plan: Plan,
    layout: Layout,
    memory: Memory,
    /// What lies on the device from the first input to the last output and status, on the host.
    staging: Staging,
    /// For each kernel of the plan its launches.
    kernels: Vec<Vec<Loaded>>,
    segments: Vec<Segment>,
    /// Which side of each branch that it came to the last run took, by its step.
    taken: HashMap<usize, bool>,
}

/// A launch whose code the driver has.
struct Loaded {
    kernel: Kernel,
    function: CudaFunction,
}

/// An argument as the driver takes it.
enum Given {
    Pointer(u64),
    Map(tensor::Encoded),
}

/// What [`Model::visit`] is told of a launch: contents of the step's arguments before it and after it.
pub struct Visit<'a> {
    /// Number of the kernel in the plan.
    pub kernel: usize,
    /// What is written holds what nobody has written yet.
    pub before: &'a [Vec<u8>],
    /// After the last part of the kernel.
    pub after: &'a [Vec<u8>],
}

impl Model {
    /// Loads a plan of fixed dims with the launches of each of its kernels, and its weights: byte in the weights section,
    /// and contents.
    ///
    /// # Errors
    /// The plan and the kernels do not fit together, the device has too little memory, or the driver refuses a kernel.
    pub fn load<W: AsRef<[u8]>>(
        device: Device,
        plan: Plan,
        kernels: Vec<Vec<Kernel>>,
        weights: impl IntoIterator<Item = (u64, W)>,
    ) -> Result<Model, CudaError> {
        let wrong = plan.verify();
        if !wrong.is_empty() {
            return Err(CudaError::Plan(wrong));
        }
        if plan.is_symbolic() {
            return Err(CudaError::Symbolic);
        }
        let control = plan.steps.iter().find_map(|step| match step {
            Step::Bind { origin, .. } => Some(origin),
            Step::Loop(l) => Some(&l.origin),
            Step::Launch { .. } | Step::Host { .. } | Step::Copy { .. } => None,
            Step::If { .. } | Step::Refuse { .. } => None,
        });
        if let Some(origin) = control {
            return Err(CudaError::Control { origin: origin.to_string() });
        }
        let layout = Layout::of(&plan)?;
        let memory = Memory::new(&device, layout.bytes)?;
        let exchanged = layout.status - layout.inputs + 4 * plan.steps.len() as u64;
        let absurd = || CudaError::Inconsistent("inputs and outputs are too large for this machine".into());
        let staging = Staging::new(&device, usize::try_from(exchanged).map_err(|_| absurd())?);
        // Outputs are copied to the host together, with what lies between them.
        memory.clear(layout.outputs, usize::try_from(layout.bytes - layout.outputs).map_err(|_| absurd())?)?;
        for (at, bytes) in weights {
            let bytes = bytes.as_ref();
            if at.checked_add(bytes.len() as u64).is_none_or(|end| end > plan.weight_bytes) {
                return Err(CudaError::Inconsistent(format!("a weight at {at} is outside of the weights section")));
            }
            memory.upload(layout.weights + at, bytes)?;
        }
        let load = |kernel: Kernel| -> Result<Loaded, CudaError> {
            let refused = |what: String| CudaError::Kernel { entry: kernel.entry.clone(), what };
            if kernel.text.contains('\0') || kernel.entry.contains('\0') {
                return Err(refused("its text has a zero byte".into()));
            }
            let fails = |e: DriverError| match e.0 {
                CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION => CudaError::Newer { entry: kernel.entry.clone() },
                _ => refused(meaning(e)),
            };
            let module = device.context.load_module(Ptx::from_src(kernel.text.clone())).map_err(fails)?;
            let function = module.load_function(&kernel.entry).map_err(fails)?;
            if kernel.dynamic_shared > 0 {
                let most = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                let bytes = i32::try_from(kernel.dynamic_shared).unwrap_or(i32::MAX);
                function.set_attribute(most, bytes).map_err(fails)?;
            }
            Ok(Loaded { kernel, function })
        };
        let kernels: Vec<Vec<Loaded>> = kernels
            .into_iter()
            .map(|parts| parts.into_iter().map(load).collect::<Result<_, _>>())
            .collect::<Result<_, _>>()?;
        let mut model =
            Model { device, plan, layout, memory, staging, kernels, segments: Vec::new(), taken: HashMap::new() };
        model.segments = model.graphs(0..model.plan.steps.len())?;
        Ok(model)
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes
    }

    /// What `begin` begins, as a graph that is not started yet.
    fn captured(&self, begin: impl FnOnce() -> Result<(), CudaError>) -> Result<Option<CudaGraph>, CudaError> {
        let fails = |e| CudaError::Driver { doing: "makes a graph", what: meaning(e) };
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.device.stream.begin_capture(mode).map_err(fails)?;
        // A capture that was begun has to be ended, whatever happens within.
        let done = begin();
        let graph = self.device.stream.end_capture(CUgraphInstantiate_flags(0));
        done?;
        graph.map_err(fails)
    }

    /// Begins a step of the device.
    fn begin(&self, n: usize) -> Result<(), CudaError> {
        let on_device = |slot: SlotId| {
            let wrong = || CudaError::Inconsistent(format!("step {n} reads on the GPU what the host holds"));
            self.layout.slot(slot).ok_or_else(wrong)
        };
        match self.plan.steps.get(n) {
            Some(Step::Launch { kernel, arguments, .. }) => {
                let none = || CudaError::Inconsistent(format!("there is no code for kernel {kernel}"));
                for part in self.kernels.get(*kernel).ok_or_else(none)? {
                    let mut given = Vec::with_capacity(part.kernel.arguments.len());
                    for argument in &part.kernel.arguments {
                        given.push(Given::Pointer(match argument {
                            Argument::Status => self.memory.address(self.layout.status + 4 * n as u64),
                            Argument::Map(map) => {
                                let none = || CudaError::Inconsistent(format!("step {n} has no argument {}", map.slot));
                                let (at, bytes) = on_device(*arguments.get(map.slot).ok_or_else(none)?)?;
                                let encoded = tensor::encode(map, self.memory.address(at), bytes as u64)?;
                                given.push(Given::Map(encoded));
                                continue;
                            }
                            Argument::Slot(k) => {
                                let none = || CudaError::Inconsistent(format!("step {n} has no argument {k}"));
                                let slot = arguments.get(*k).ok_or_else(none)?;
                                self.memory.address(on_device(*slot)?.0)
                            }
                        }));
                    }
                    self.launch(part, &given)?;
                }
            }
            Some(Step::Copy { from, to }) => {
                let ((from, bytes), (to, room)) = (on_device(*from)?, on_device(*to)?);
                self.memory.copy(from, to, bytes.min(room))?;
            }
            // The host does these, and a plan with a loop or a binding was not loaded.
            Some(Step::Host { .. } | Step::Bind { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_)) => {}
            None => {}
        }
        Ok(())
    }

    fn launch(&self, part: &Loaded, given: &[Given]) -> Result<(), CudaError> {
        let Kernel { entry, blocks, threads, dynamic_shared, .. } = &part.kernel;
        if *blocks == 0 {
            return Ok(());
        }
        let mut launch = self.device.stream.launch_builder(&part.function);
        for argument in given {
            match argument {
                Given::Pointer(address) => launch.arg(address),
                Given::Map(map) => launch.arg(map),
            };
        }
        let shape =
            LaunchConfig { grid_dim: (*blocks, 1, 1), block_dim: (*threads, 1, 1), shared_mem_bytes: *dynamic_shared };
        // SAFETY: the arguments are addresses of the slots that the plan gives this kernel, inside of the model's allocation,
        // and the compiler made the kernel for just those slots.
        let begun = unsafe { launch.launch(shape) };
        begun.map(|_| ()).map_err(|e| CudaError::Kernel { entry: entry.clone(), what: meaning(e) })
    }

    /// Runs the model.
    ///
    /// # Errors
    /// An input does not fit, a kernel or a host step fails.
    pub fn run(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, CudaError> {
        let mut held = self.begin_run(inputs)?;
        let mut taken = HashMap::new();
        let done = self.play(&self.segments, &mut held, &mut taken);
        self.taken = taken;
        done?;
        self.finish(&held)
    }

    /// Runs the model step by step, waiting after each, and tells `seen` what every kernel read and wrote.
    ///
    /// # Errors
    /// Those of [`Model::run`].
    pub fn visit(&mut self, inputs: &[Tensor], seen: &mut dyn FnMut(&Visit<'_>)) -> Result<Vec<Tensor>, CudaError> {
        let mut held = self.begin_run(inputs)?;
        self.memory.clear(self.layout.status, 4 * self.plan.steps.len())?;
        self.visit_steps(0..self.plan.steps.len(), &mut held, seen)?;
        self.finish(&held)
    }

    /// Seconds between two moments of the device's clock, before and after what `begin` begins.
    fn clocked(&self, begin: impl FnOnce() -> Result<(), CudaError>) -> Result<f64, CudaError> {
        let fails = |e| CudaError::Driver { doing: "takes times", what: meaning(e) };
        let stamp = || self.device.stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).map_err(fails);
        let start = stamp()?;
        begin()?;
        let end = stamp()?;
        Ok(f64::from(start.elapsed_ms(&end).map_err(fails)?) * 1e-3)
    }

    /// Seconds that the launches of each kernel step take, by the device's clock: the step's number, its kernel and the
    /// least of `rounds` times, each of which is the mean of `times` in a row within one graph, so that no launch by the host
    /// is part of it. What a kernel reads may then lie in the device's cache, which in a whole run it does not. To be
    /// called after a run, whose values the kernels then read again.
    ///
    /// # Errors
    /// The driver fails.
    pub fn time(&mut self, rounds: usize, times: usize) -> Result<Vec<(usize, usize, f64)>, CudaError> {
        let fails = |e| CudaError::Driver { doing: "starts a graph", what: meaning(e) };
        let times = times.max(1);
        let mut all = Vec::new();
        for n in self.done(0..self.plan.steps.len()) {
            let Some(Step::Launch { kernel, .. }) = self.plan.steps.get(n) else { continue };
            let Some(graph) = self.captured(|| (0..times).try_for_each(|_| self.begin(n)))? else { continue };
            let mut least = f64::INFINITY;
            // The first start uploads the graph.
            for round in 0..=rounds.max(1) {
                let seconds = self.clocked(|| graph.launch().map_err(fails))?;
                if round > 0 {
                    least = least.min(seconds / times as f64);
                }
            }
            all.push((n, *kernel, least));
        }
        Ok(all)
    }

    /// Seconds of all graphs of a run, by the device's clock: the least of `rounds`; without copies of inputs and outputs and
    /// without host steps. To be called after a run.
    ///
    /// # Errors
    /// The driver fails.
    pub fn time_graphs(&mut self, rounds: usize) -> Result<f64, CudaError> {
        let mut least = f64::INFINITY;
        for _ in 0..rounds.max(1) {
            least = least.min(self.seconds_of(&self.segments)?);
        }
        Ok(least)
    }

    /// Copies the inputs to the device; gives what the host holds.
    fn begin_run(&mut self, inputs: &[Tensor]) -> Result<HashMap<SlotId, Tensor>, CudaError> {
        if inputs.len() != self.plan.inputs.len() {
            let what = format!("{} inputs; the model has {}", inputs.len(), self.plan.inputs.len());
            return Err(CudaError::Inconsistent(what));
        }
        let mut held = HashMap::new();
        // A run that failed may have left copies under way.
        self.memory.wait()?;
        // What is not run leaves its status as it is.
        if self.plan.steps.iter().any(|step| matches!(step, Step::If { .. })) {
            self.memory.clear(self.layout.status, 4 * self.plan.steps.len())?;
        }
        for ((name, slot), input) in self.plan.inputs.iter().zip(inputs) {
            let ty = &self.plan.slots[*slot].ty;
            if ty.dtype != input.dtype() || ty.shape().as_deref() != Some(input.shape()) {
                let what = format!("{}{:?} was given, and the model wants {ty}", input.dtype(), input.shape());
                return Err(CudaError::Input { name: name.to_string(), what });
            }
            match self.layout.slot(*slot) {
                // Each copy begins while the next input is being copied here.
                Some((at, bytes)) => {
                    let first = usize::try_from(at - self.layout.inputs).unwrap_or(usize::MAX);
                    let outside = || CudaError::Inconsistent(format!("input {name:?} is outside of the inputs"));
                    let end = first.checked_add(bytes).ok_or_else(outside)?;
                    let staged = self.staging.bytes_mut().get_mut(first..end).ok_or_else(outside)?;
                    staged.copy_from_slice(input.bytes());
                    self.memory.upload(at, staged)?;
                }
                None => _ = held.insert(*slot, input.clone()),
            }
        }
        Ok(held)
    }

    /// Does a step of the host.
    fn host(&self, n: usize, held: &mut HashMap<SlotId, Tensor>) -> Result<(), CudaError> {
        let (op, inputs, outputs, origin) = match self.plan.steps.get(n) {
            Some(Step::Host { op, inputs, outputs, origin }) => (op, inputs, outputs, origin),
            Some(Step::Refuse { why, origin }) => {
                let refused = |what| CudaError::Host { origin: origin.to_string(), what };
                return why.where_all_is_fixed(origin).map_or(Ok(()), |what| Err(refused(what)));
            }
            _ => return Ok(()),
        };
        let operands = inputs.iter().map(|s| self.tensor(*s, held)).collect::<Result<Vec<_>, _>>()?;
        let fails = |what: String| CudaError::Host { origin: origin.to_string(), what };
        let results = eval_op(op, &operands).map_err(|e| fails(e.to_string()))?;
        for (slot, result) in outputs.iter().zip(results) {
            match self.layout.slot(*slot) {
                Some((at, bytes)) if bytes == result.bytes().len() => self.memory.upload(at, result.bytes())?,
                Some((_, bytes)) => {
                    return Err(fails(format!("{} bytes came out; {bytes} were planned", result.bytes().len())));
                }
                None => _ = held.insert(*slot, result),
            }
        }
        Ok(())
    }

    /// Waits, looks whether a check failed, and takes the outputs, which are copied with the status at once.
    fn finish(&mut self, held: &HashMap<SlotId, Tensor>) -> Result<Vec<Tensor>, CudaError> {
        let outside = || CudaError::Inconsistent("an output is outside of the outputs".into());
        let from = |at: u64| usize::try_from(at - self.layout.inputs).map_err(|_| outside());
        let (outputs, status) = (from(self.layout.outputs)?, from(self.layout.status)?);
        let exchanged = self.staging.bytes_mut().get_mut(outputs..).ok_or_else(outside)?;
        self.memory.download(self.layout.outputs, exchanged)?;
        let status = self.staging.bytes().get(status..).ok_or_else(outside)?;
        for (step, status) in self.plan.steps.iter().zip(status.chunks(4)) {
            if let Step::Launch { kernel, .. } = step
                && status.iter().any(|b| *b != 0)
            {
                let origin = self.plan.kernels.get(*kernel).map(|k| k.origin.to_string()).unwrap_or_default();
                return Err(CudaError::Check { origin });
            }
        }
        let output = |slot: SlotId| -> Result<Tensor, CudaError> {
            // An output may be what was handed in, or a weight.
            let first = self.layout.slot(slot).filter(|(at, _)| *at >= self.layout.outputs);
            let (Some((at, bytes)), false) = (first, held.contains_key(&slot)) else { return self.tensor(slot, held) };
            let first = from(at)?;
            let contents = first.checked_add(bytes).and_then(|end| self.staging.bytes().get(first..end));
            self.full(slot, contents.ok_or_else(outside)?.to_vec())
        };
        self.plan.outputs.iter().map(|(_, slot)| output(*slot)).collect()
    }

    /// What is in a slot of the device.
    fn contents(&self, slot: SlotId) -> Result<Vec<u8>, CudaError> {
        let Some((at, bytes)) = self.layout.slot(slot) else { return Ok(Vec::new()) };
        let mut contents = vec![0; bytes];
        self.memory.download(at, &mut contents)?;
        Ok(contents)
    }

    fn tensor(&self, slot: SlotId, held: &HashMap<SlotId, Tensor>) -> Result<Tensor, CudaError> {
        if let Some(tensor) = held.get(&slot) {
            return Ok(tensor.clone());
        }
        self.full(slot, self.contents(slot)?)
    }

    /// A slot's contents with its type.
    fn full(&self, slot: SlotId, contents: Vec<u8>) -> Result<Tensor, CudaError> {
        let ty = &self.plan.slots[slot].ty;
        let shape = ty.shape().ok_or(CudaError::Symbolic)?;
        Tensor::new(ty.dtype, shape, contents).map_err(|e| CudaError::Inconsistent(e.to_string()))
    }
}
