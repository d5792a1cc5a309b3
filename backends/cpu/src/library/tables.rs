//! What the routines of a library read: the plan as tables.
//!
//! Invariant: a number in a table is itself where it is not negative; `!n` stands for the n-th of [`Tables::formulas`], whose
//! values a run computes first. Nothing in a table depends on where the library lies.

use super::data::Data;
use super::{LibraryError, Source, host};
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::graph::Origin;
use kiln_ir::plan::{MOST_BYTES, Place, Plan, Refusal, SlotId, Step};
use std::collections::{BTreeSet, HashMap};

/// Alignment of the arena and of what is in it.
pub(super) const ALIGNMENT: i64 = 64;

/// Inputs or outputs: a table of rows of [`END_ROW`] words, and how many there are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub table: u64,
    pub count: i64,
}

/// Words of a row of [`Ends`]: name, element type and dims as texts in the data, extents in the data, rank, bytes of an element.
pub(super) const END_ROW: i64 = 6;
/// Words of a row of slots: base, offset, bytes, most bytes.
pub(super) const SLOT_ROW: i64 = 4;
/// Words of a row of steps: kernel, first argument, number of arguments; or -1 and the slots of a copy.
pub(super) const STEP_ROW: i64 = 3;
/// Words of a row of kernels: code, grain, programs.
pub(super) const KERNEL_ROW: i64 = 3;

/// Bases of slots: weights, arena, regions, inputs, outputs.
pub(super) const BASE_WEIGHTS: i64 = 0;
pub(super) const BASE_ARENA: i64 = 1;
pub(super) const BASE_REGIONS: i64 = 2;

/// What lies in the caller's arena, by offset from its first multiple of [`ALIGNMENT`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub values: i64,
    pub bases: i64,
    pub pointers: i64,
    pub arguments: i64,
    pub task: i64,
    /// The caller's context and dims.
    pub context: i64,
    pub dims: i64,
    /// What a host's function gets: the step, its operands, their extents.
    pub step: i64,
    pub operands: i64,
    pub extents: i64,
    /// Where slots without bytes point.
    pub nothing: i64,
    pub arena: i64,
    pub regions: i64,
}

/// See the module documentation.
pub(super) struct Tables<'a> {
    pub plan: &'a Plan,
    pub source: &'a Source<'a>,
    pub formulas: Vec<Expr>,
    /// Formulas that must come to a size.
    pub sizes: Vec<bool>,
    pub slots: u64,
    pub steps: u64,
    /// For each step of the plan the row it has, or the next one where it has none; the number of rows at the end.
    pub rows: Vec<i64>,
    /// Steps of the host.
    pub host: HostSteps,
    pub arguments: u64,
    /// Rows of all kernels, level by level.
    pub kernels: u64,
    /// For each kernel the beginning of its message and the length of it.
    pub messages: u64,
    pub inputs: Ends,
    pub outputs: Ends,
    /// Rows of name, least and greatest value.
    pub symbols: u64,
    /// Where the texts of name and metadata are.
    pub name: u64,
    pub metadata: u64,
    /// The hash of the weights.
    pub hash: u64,
    pub frame: Frame,
}

struct Numbers {
    known: HashMap<Expr, i64>,
    formulas: Vec<Expr>,
    sizes: Vec<bool>,
}

impl Numbers {
    /// A number that must be a size: not negative and below [`MOST_BYTES`].
    fn size(&mut self, e: &Expr, what: &str) -> Result<i64, LibraryError> {
        if let Some(c) = e.as_const() {
            let fits = (0..MOST_BYTES).contains(&c);
            return if fits { Ok(c) } else { Err(LibraryError::TooLarge(format!("{what} would be {c}"))) };
        }
        let n = self.formula(e);
        if let Some(size) = usize::try_from(!n).ok().and_then(|n| self.sizes.get_mut(n)) {
            *size = true;
        }
        Ok(n)
    }

    /// A number that may be anything.
    fn formula(&mut self, e: &Expr) -> i64 {
        if let Some(&n) = self.known.get(e) {
            return n;
        }
        let n = !(self.formulas.len() as i64);
        self.formulas.push(e.clone());
        self.sizes.push(false);
        self.known.insert(e.clone(), n);
        n
    }
}

fn round_up(n: i64) -> i64 {
    n.saturating_add(ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// Steps that the host does.
#[derive(Debug, Default)]
pub(super) struct HostSteps {
    /// Their numbers in the plan.
    pub steps: Vec<usize>,
    /// The most operands and results of one, and the most extents of these.
    operands: i64,
    extents: i64,
}

impl HostSteps {
    fn of(plan: &Plan) -> HostSteps {
        let mut all = HostSteps::default();
        for (n, step) in plan.steps.iter().enumerate() {
            if let Step::Host { inputs, outputs, .. } = step
                && step.renames().is_none()
            {
                all.steps.push(n);
                let ranks = inputs.iter().chain(outputs).map(|&slot| plan.slots[slot].ty.rank() as i64);
                all.operands = all.operands.max((inputs.len() + outputs.len()) as i64);
                all.extents = all.extents.max(ranks.sum());
            }
        }
        all
    }

    /// The names of their ops, each once.
    pub fn names<'a>(&self, plan: &'a Plan) -> Vec<&'a str> {
        let mut names: Vec<&str> = self.steps.iter().filter_map(|&n| host_op(plan.steps.get(n)?)).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}

/// The name of the op of a host step.
fn host_op(step: &Step) -> Option<&str> {
    match step {
        Step::Host { op, .. } => Some(op.what()),
        Step::Launch { .. } | Step::Copy { .. } | Step::Bind { .. } => None,
        Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => None,
    }
}

/// Why a library of a plan is not to be had, if so.
fn refuse(plan: &Plan) -> Result<(), LibraryError> {
    for (name, slot) in plan.inputs.iter().chain(&plan.outputs) {
        let ty = &plan.slots[*slot].ty;
        if !ty.dtype.is_bytes() {
            return Err(LibraryError::NotBytes(format!("{name:?}"), ty.to_string()));
        }
    }
    let mut given: BTreeSet<&Symbol> = BTreeSet::new();
    for dim in plan.inputs.iter().flat_map(|(_, slot)| &plan.slots[*slot].ty.dims) {
        dim.for_each_plain_symbol(&mut |s| {
            given.insert(s);
        });
    }
    // What only a run finds: the sizes of the caller's memory could not be said before it.
    let found = |slot: &SlotId| {
        let ty = &plan.slots[*slot].ty;
        let mut unknown = false;
        ty.dims.iter().for_each(|d| d.for_each_symbol(&mut |s| unknown |= !given.contains(s)));
        unknown || !ty.dtype.is_bytes()
    };
    let hosts = plan.steps.iter().filter_map(|step| {
        let (reads, writes) = step.accesses();
        let (origin, what) = match step {
            Step::Host { op, origin, .. } => (origin, op.what()),
            Step::Bind { origin, .. } | Step::If { origin, .. } => (origin, "if"),
            Step::Loop(l) => (&l.origin, "loop"),
            Step::Launch { .. } | Step::Copy { .. } | Step::Refuse { .. } => return None,
        };
        (reads.iter().chain(writes.iter()).any(found)).then(|| format!("{origin} ({what})"))
    });
    let hosts: Vec<String> = hosts.collect();
    let unknown = plan.symbols.iter().find(|(s, _)| !given.contains(s));
    match unknown {
        Some((s, _)) if hosts.is_empty() => Err(LibraryError::FoundByRun(vec![s.to_string()])),
        Some(_) | None if hosts.is_empty() => Ok(()),
        Some(_) | None => Err(LibraryError::FoundByRun(hosts)),
    }
}

/// The beginning of what is said where a kernel finds that the data breaks a rule; the status and a bracket end it.
fn broken_rule(origin: &Origin, kernel: &str) -> String {
    match origin.names().len() {
        0 => format!("an index is out of range in kernel {kernel} (status "),
        1 => format!("an index of {origin} is out of range (kernel {kernel}, status "),
        _ => format!("an index of one of {origin} is out of range (kernel {kernel}, status "),
    }
}

impl<'a> Tables<'a> {
    pub fn new(source: &'a Source<'a>, starts: &[u64], data: &mut Data) -> Result<Tables<'a>, LibraryError> {
        let plan = source.plan;
        refuse(plan)?;
        let mut numbers = Numbers { known: HashMap::new(), formulas: vec![], sizes: vec![] };
        let regions = plan.regions.len() as i64;
        let (first_input, first_output) = (BASE_REGIONS + regions, BASE_REGIONS + regions + plan.inputs.len() as i64);
        let bases = first_output + plan.outputs.len() as i64;
        let mut slots = Vec::new();
        for (_, slot) in plan.slots.iter() {
            let what = format!("the size of {:?} ({})", slot.name.as_deref().unwrap_or("a tensor"), slot.ty);
            let bytes = numbers.size(&slot.ty.bytes(), &what)?;
            for dim in &slot.ty.dims {
                numbers.size(dim, &what)?;
            }
            let mut most = bytes;
            let (base, offset) = match slot.place {
                Place::Weights(at) => (BASE_WEIGHTS, at),
                Place::Arena(at) => (BASE_ARENA, at),
                Place::Region(n) => {
                    let limit = plan.regions.get(n).cloned().unwrap_or_default();
                    most = numbers.size(&limit, &what)?;
                    (BASE_REGIONS + n as i64, 0)
                }
                Place::Input(n) => (first_input + n as i64, 0),
                Place::Output(n) => (first_output + n as i64, 0),
                // Only host steps make such values.
                Place::Host => (BASE_ARENA, 0),
            };
            let offset = i64::try_from(offset).unwrap_or(i64::MAX);
            slots.extend([base, offset, bytes, most]);
        }
        let (mut steps, mut arguments, mut longest) = (Vec::new(), Vec::new(), 0);
        let mut rows = Vec::with_capacity(plan.steps.len() + 1);
        for step in &plan.steps {
            rows.push(steps.len() as i64 / STEP_ROW);
            match step {
                Step::Launch { kernel, arguments: of, .. } => {
                    steps.extend([*kernel as i64, arguments.len() as i64, of.len() as i64]);
                    arguments.extend(of.iter().map(|s| s.index() as u32));
                    longest = longest.max(of.len() as i64);
                }
                Step::Copy { from, to } => steps.extend([-1, from.index() as i64, to.index() as i64]),
                Step::Host { .. } => {
                    if let Some((from, to)) = step.renames() {
                        steps.extend([-1, from.index() as i64, to.index() as i64]);
                    }
                }
                // Code of their own.
                Step::Bind { .. } | Step::If { .. } | Step::Loop(_) => {}
                Step::Refuse { why: Refusal::Always(_), .. } => {}
                Step::Refuse { why: Refusal::Unequal(sides), .. } => {
                    numbers.formula(&sides.0);
                    numbers.formula(&sides.1);
                }
            }
        }
        rows.push(steps.len() as i64 / STEP_ROW);
        let mut kernels = Vec::new();
        for (level, start) in source.levels.iter().zip(starts) {
            for (kernel, of) in level.kernels.iter().zip(&plan.kernels) {
                let programs = numbers.size(&kernel.programs, &format!("the grid of {}", of.name))?;
                let grain = i64::try_from(kernel.grain).unwrap_or(i64::MAX);
                kernels.extend([(start + kernel.offset) as i64, grain, programs]);
            }
        }
        let mut messages = Vec::new();
        for kernel in &plan.kernels {
            let text = broken_rule(&kernel.origin, &kernel.name);
            messages.extend([data.text(&text) as i64, text.len() as i64]);
        }
        let symbols = plan.symbols.iter().flat_map(|(s, (lo, hi))| [data.text(s.name()) as i64, *lo, *hi]);
        let symbols: Vec<i64> = symbols.collect();
        let (inputs, outputs) = (ends(plan, &plan.inputs, data), ends(plan, &plan.outputs, data));
        let arena = i64::try_from(plan.arena_bytes).unwrap_or(i64::MAX);
        let host = HostSteps::of(plan);
        let frame = Frame::new(&numbers, &host, (bases, plan.slots.len() as i64, longest), arena);
        let hash = data.bytes.len() as u64;
        data.bytes.extend_from_slice(&source.weights_hash);
        Ok(Tables {
            plan,
            source,
            slots: data.words(&slots),
            steps: data.words(&steps),
            rows,
            host,
            arguments: data.halves(&arguments),
            kernels: data.words(&kernels),
            messages: data.words(&messages),
            inputs,
            outputs,
            symbols: data.words(&symbols),
            name: data.text(&plan.name),
            metadata: data.text(source.metadata),
            hash,
            formulas: numbers.formulas,
            sizes: numbers.sizes,
            frame,
        })
    }

    /// The plan's symbols with their ranges.
    pub fn symbols(&self) -> &'a [(Symbol, (i64, i64))] {
        &self.plan.symbols
    }

    /// The number of the first input's base; those of outputs follow the inputs'.
    pub fn first_input(&self) -> i64 {
        BASE_REGIONS + self.plan.regions.len() as i64
    }
}

impl Frame {
    fn new(numbers: &Numbers, host: &HostSteps, (bases, slots, arguments): (i64, i64, i64), arena: i64) -> Frame {
        let mut end = 0i64;
        let mut take = |words: i64| {
            let at = end;
            end += words * 8;
            at
        };
        let values = take(numbers.formulas.len() as i64 + 1);
        let bases = take(bases);
        let pointers = take(slots);
        let arguments = take(arguments);
        let task = take(3);
        let (context, dims) = (take(1), take(1));
        let some = i64::from(!host.steps.is_empty());
        let (step, operands, extents) =
            (take(some * host::STEP), take(host.operands * host::OPERAND), take(host.extents));
        let nothing = round_up(end);
        let start = nothing + ALIGNMENT;
        Frame {
            values,
            bases,
            pointers,
            arguments,
            task,
            context,
            dims,
            step,
            operands,
            extents,
            nothing,
            arena: start,
            regions: round_up(start.saturating_add(arena)),
        }
    }
}

fn ends(plan: &Plan, ends: &[(std::sync::Arc<str>, SlotId)], data: &mut Data) -> Ends {
    let mut rows = Vec::new();
    for (name, slot) in ends {
        let ty = &plan.slots[*slot].ty;
        let dims: Vec<String> = ty.dims.iter().map(ToString::to_string).collect();
        let extents: Vec<i64> = ty.dims.iter().map(|d| d.as_const().unwrap_or(-1)).collect();
        let (name, dtype) = (data.text(name) as i64, data.text(ty.dtype.name()) as i64);
        let dims = data.text(&dims.join(", ")) as i64;
        let extents = data.words(&extents) as i64;
        rows.extend([name, dtype, dims, extents, ty.rank() as i64, ty.dtype.size() as i64]);
    }
    Ends { table: data.words(&rows), count: ends.len() as i64 }
}
