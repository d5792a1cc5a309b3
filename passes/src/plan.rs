//! From groups to a plan: slots for values, steps in order, weights in the layouts that kernels read.
//!
//! Invariant: a plan made here passes `Plan::verify`; every value that crosses a step has one slot.

use crate::group::{Group, Work};
use crate::memory::{ALIGNMENT, plan_memory};
use crate::pipeline::Cut;
use crate::region::{Body, Feed, Region};
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::graph::{Definition, Graph, GraphError, Node, NodeId, Origin, TensorType, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::ops::Op;
use kiln_ir::plan::{Elements, Kernel, Loop, Place, Plan, Refusal, Requirement, Slot, SlotId, Step, nominal};
use kiln_ir::tensor::Tensor;
use kiln_ir::tile::TileProgram;
use std::collections::{HashMap, HashSet};

/// A weight of the plan: where it goes, and what is stored there.
#[derive(Clone, Debug)]
pub struct Weight {
    /// Byte in the weights section.
    pub offset: u64,
    /// The constant, row-major.
    pub tensor: Tensor,
    /// How it is stored.
    pub layout: Layout,
}

impl Weight {
    /// The bytes as they are stored.
    pub fn bytes(&self) -> bytes::Bytes {
        if self.layout.is_row_major() { self.tensor.shared_bytes() } else { pack(&self.tensor, &self.layout).into() }
    }
}

/// The weights section, in memory: each weight at its offset, zeros between.
pub fn weights_section(weights: &[Weight], total: u64) -> Vec<u8> {
    let mut section = vec![0u8; usize::try_from(total).unwrap_or(0)];
    for weight in weights {
        let (at, bytes) = (usize::try_from(weight.offset).unwrap_or(usize::MAX), weight.bytes());
        if let Some(place) = at.checked_add(bytes.len()).and_then(|end| section.get_mut(at..end)) {
            place.copy_from_slice(&bytes);
        }
    }
    section
}

/// The elements of a row-major tensor in the order of a layout; padding is zero.
fn pack(tensor: &Tensor, layout: &Layout) -> Vec<u8> {
    let (shape, size, data) = (tensor.shape(), tensor.dtype().size(), tensor.bytes());
    // The storage as a dense tensor: one axis for each of `order`, and the block innermost.
    let mut extents: Vec<usize> = layout.order.iter().map(|&a| shape[a]).collect();
    let block = layout.block.map(|(axis, block)| (layout.order.iter().position(|&a| a == axis).unwrap_or(0), block));
    if let Some((at, block)) = block {
        extents[at] = extents[at].div_ceil(block);
    }
    let mut strides = vec![1usize; shape.len()];
    for n in (0..shape.len().saturating_sub(1)).rev() {
        strides[n] = strides[n + 1] * shape[n + 1];
    }
    let inner = block.map_or(1, |(_, b)| b);
    let mut out = vec![0u8; extents.iter().product::<usize>() * inner * size];
    let mut index = vec![0usize; extents.len()];
    for chunk in out.chunks_exact_mut(inner * size) {
        let mut from = 0;
        for (n, &axis) in layout.order.iter().enumerate() {
            let scale = block.filter(|b| b.0 == n).map_or(1, |b| b.1);
            from += index[n] * scale * strides[axis];
        }
        match block {
            None => chunk.copy_from_slice(&data[from * size..(from + 1) * size]),
            Some((at, b)) => {
                let axis = layout.order[at];
                let here = (shape[axis] - index[at] * b).min(b);
                for (k, element) in chunk.chunks_exact_mut(size).take(here).enumerate() {
                    let from = from + k * strides[axis];
                    element.copy_from_slice(&data[from * size..(from + 1) * size]);
                }
            }
        }
        for n in (0..index.len()).rev() {
            index[n] += 1;
            if index[n] < extents[n] {
                break;
            }
            index[n] = 0;
        }
    }
    out
}

/// Work that one thread should have at least, in operations or bytes; below it a fork costs more than it saves.
const WORK_PER_THREAD: u64 = 30_000;

/// How many programs the grid of a kernel has, over the free dims.
pub fn program_count(program: &TileProgram, dims: &Ranges) -> Expr {
    program.programs().simplify(dims)
}

/// The value of an expression over free dims that estimates count on.
fn guess(e: &Expr, dims: &Ranges) -> u64 {
    let value = |s: &Symbol| dims.get(s).map(|&range| nominal(range));
    e.eval(&value).and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
}

/// The fewest programs that are worth a thread of their own.
pub fn grain(kernel: &Kernel, programs: &Expr, dims: &Ranges) -> u64 {
    let programs = guess(programs, dims);
    let each = (kernel.operations.max(kernel.bytes) / programs.max(1)).max(1);
    WORK_PER_THREAD.div_ceil(each)
}

/// Builds the plan of a graph that was cut into work. `programs` are its kernels by number: what they write besides their
/// results has slots that nothing else reads.
///
/// # Errors
/// A constant has dims that are not constant, or a value that no step makes has dims that no input has.
pub fn build_plan(cut: &Cut, programs: &[TileProgram]) -> Result<(Plan, Vec<Weight>), GraphError> {
    let graph = &cut.graph;
    let mut builder = Builder {
        symbols: &graph.symbols,
        programs,
        plan: Plan {
            name: graph.name.clone(),
            symbols: graph.symbols.iter().map(|(symbol, &range)| (symbol.clone(), range)).collect(),
            ..Plan::default()
        },
        kernels: Vec::new(),
        weights: vec![],
    };
    let scope = &mut Scope { graph, slots: HashMap::new() };
    for (n, &v) in graph.inputs.iter().enumerate() {
        let slot = builder.add(scope, v, Place::Input(n))?;
        let name = graph.value(v).name.clone().unwrap_or_default();
        builder.plan.inputs.push((name, slot));
    }
    // An output that a step computes is computed in place; the first output to name a value gets that.
    let made = made(cut);
    for (n, (name, v)) in graph.outputs.iter().enumerate() {
        let slot = if made.contains(v) && !scope.slots.contains_key(v) {
            builder.add(scope, *v, Place::Output(n))?
        } else {
            builder.fresh(graph, *v, Place::Output(n))?
        };
        builder.plan.outputs.push((name.clone(), slot));
    }
    builder.plan.requirements = assumptions(graph)?;
    builder.work(scope, cut)?;
    for (n, (_, v)) in graph.outputs.iter().enumerate() {
        let (from, to) = (builder.slot(scope, *v)?, builder.plan.outputs[n].1);
        if from != to {
            builder.plan.steps.push(Step::Copy { from, to });
        }
    }
    let Builder { mut plan, kernels, weights, .. } = builder;
    plan.kernels = kernels.into_iter().flatten().collect();
    plan_memory(&mut plan);
    Ok((plan, weights))
}

/// What the reshapes of a graph take for granted.
fn assumptions(graph: &Graph) -> Result<Vec<Requirement>, GraphError> {
    let mut all: Vec<Requirement> = Vec::new();
    for id in graph.live_order()? {
        let node = graph.node(id);
        if let (Op::Reshape(reshape), [x]) = (&node.op, node.inputs.as_slice())
            && let Some((left, right)) = reshape.assumes(graph.ty(*x))
        {
            match all.iter_mut().find(|r| r.left == left && r.right == right) {
                Some(known) => known.origin.merge(&node.origin),
                None => all.push(Requirement { left, right, origin: node.origin.clone() }),
            }
        }
    }
    Ok(all)
}

/// The message of a node that ends every run that comes to it.
fn refusal(node: &Node) -> Option<Refusal> {
    let Op::Host(host) = &node.op else { return None };
    let message = (host.function() == "refuse").then(|| host.attributes.word("message").ok())?;
    Some(Refusal::Always(message?.into()))
}

/// The values that steps make.
fn made(cut: &Cut) -> HashSet<ValueId> {
    let of = |w: &Work| match w {
        Work::Kernel(g) => vec![g.output],
        Work::Host(n) => cut.graph.node(*n).outputs.clone(),
        Work::Alias { .. } => vec![],
    };
    cut.work.iter().flat_map(of).collect()
}

/// A graph whose steps are being made, with the slots that its values have.
struct Scope<'a> {
    graph: &'a Graph,
    slots: HashMap<ValueId, SlotId>,
}

struct Builder<'a> {
    symbols: &'a Ranges,
    programs: &'a [TileProgram],
    plan: Plan,
    /// By number.
    kernels: Vec<Option<Kernel>>,
    weights: Vec<Weight>,
}

impl Builder<'_> {
    fn fresh(&mut self, graph: &Graph, v: ValueId, place: Place) -> Result<SlotId, GraphError> {
        let value = graph.value(v);
        let mut ty = value.ty.clone();
        if matches!(place, Place::Output(_)) {
            ty.layout = Layout::row_major(ty.rank());
        }
        if ty.shape().is_none() && matches!(place, Place::Weights(_)) {
            let origin = Origin::new(value.name.as_deref().unwrap_or("a value"));
            return Err(GraphError::new(&origin, format!("the constant has the type {ty}")));
        }
        let place = if !ty.dtype.is_bytes() && !matches!(place, Place::Input(_) | Place::Output(_)) {
            Place::Host
        } else {
            place
        };
        Ok(self.plan.slots.push(Slot { name: value.name.clone(), ty, place }))
    }

    fn add(&mut self, scope: &mut Scope<'_>, v: ValueId, place: Place) -> Result<SlotId, GraphError> {
        let slot = self.fresh(scope.graph, v, place)?;
        scope.slots.insert(v, slot);
        Ok(slot)
    }

    fn slot(&mut self, scope: &mut Scope<'_>, v: ValueId) -> Result<SlotId, GraphError> {
        if let Some(&slot) = scope.slots.get(&v) {
            return Ok(slot);
        }
        let Definition::Constant(tensor) = &scope.graph.value(v).definition else {
            return self.add(scope, v, Place::Arena(0));
        };
        let offset = self.plan.weight_bytes;
        let slot = self.add(scope, v, Place::Weights(offset))?;
        self.plan.weight_bytes = (offset + self.plan.slot_bytes(slot)).next_multiple_of(ALIGNMENT);
        let layout = scope.graph.ty(v).layout.clone();
        self.weights.push(Weight { offset, tensor: tensor.clone(), layout });
        Ok(slot)
    }

    fn all(&mut self, scope: &mut Scope<'_>, values: &[ValueId]) -> Result<Vec<SlotId>, GraphError> {
        values.iter().map(|&v| self.slot(scope, v)).collect()
    }

    /// The steps of a graph.
    fn work(&mut self, scope: &mut Scope<'_>, cut: &Cut) -> Result<(), GraphError> {
        let mut number = cut.first;
        for w in &cut.work {
            match w {
                Work::Alias { of, value } => {
                    let slot = self.slot(scope, *of)?;
                    scope.slots.insert(*value, slot);
                }
                Work::Host(id) => match cut.regions.get(id) {
                    Some(region) => self.region(scope, *id, region)?,
                    None => {
                        let node = cut.graph.node(*id);
                        if let Some(why) = refusal(node) {
                            let origin = node.origin.clone();
                            self.plan.steps.push(Step::Refuse { why, origin });
                            continue;
                        }
                        let (inputs, outputs) = (self.all(scope, &node.inputs)?, self.all(scope, &node.outputs)?);
                        let (op, origin) = (node.op.clone(), node.origin.clone());
                        self.plan.steps.push(Step::Host { op, inputs, outputs, origin });
                    }
                },
                Work::Kernel(group) => {
                    self.launch(scope, group, number)?;
                    number += 1;
                }
            }
        }
        Ok(())
    }

    fn launch(&mut self, scope: &mut Scope<'_>, group: &Group, number: usize) -> Result<(), GraphError> {
        let mut arguments = self.all(scope, &group.inputs)?;
        let buffers = self.programs.get(number).map_or(&[][..], |p| &p.buffers);
        let written = || buffers.iter().filter(|b| b.written && !b.local);
        let between = written().count().saturating_sub(1);
        for b in written().take(between) {
            let ty = TensorType::new(b.dtype, vec![b.len.clone()]);
            arguments.push(self.plan.slots.push(Slot { name: None, ty, place: Place::Arena(0) }));
        }
        arguments.push(self.slot(scope, group.output)?);
        let operations = guess(&group.operations(), self.symbols);
        let bytes = arguments.iter().map(|&s| guess(&self.plan.slots[s].ty.bytes(), self.symbols)).sum::<u64>();
        if self.kernels.len() <= number {
            self.kernels.resize(number + 1, None);
        }
        self.kernels[number] = Some(Kernel {
            name: format!("k{number}"),
            origin: group.origin.clone(),
            what: group.what.clone(),
            operations,
            bytes,
        });
        self.plan.steps.push(Step::Launch { kernel: number, arguments, written: 1 + between });
        Ok(())
    }

    fn region(&mut self, scope: &mut Scope<'_>, id: NodeId, region: &Region) -> Result<(), GraphError> {
        let node = scope.graph.node(id);
        let (inputs, outputs, origin) = (node.inputs.clone(), node.outputs.clone(), node.origin.clone());
        let results = self.all(scope, &outputs)?;
        let operand = |n: usize| inputs.get(n).copied().ok_or_else(|| missing(&origin));
        match region {
            Region::If { then, otherwise } => {
                let condition = self.slot(scope, operand(0)?)?;
                let step = self.plan.steps.len();
                self.plan.steps.push(Step::If { condition, then: 0, otherwise: 0, origin: origin.clone() });
                let mut counts = [0; 2];
                for (count, body) in counts.iter_mut().zip([then, otherwise]) {
                    let first = self.plan.steps.len();
                    self.branch(scope, body, &results, &origin)?;
                    *count = self.plan.steps.len() - first;
                }
                let [then, otherwise] = counts;
                self.plan.steps[step] = Step::If { condition, then, otherwise, origin };
                Ok(())
            }
            Region::Loop { body, states } => {
                let (times, first) = (operand(0)?, operand(1)?);
                let always = scope.graph.constant(first).is_some_and(|t| t.bytes().first() == Some(&1));
                let mut l = Loop { times: Some(self.slot(scope, times)?), origin, ..Loop::default() };
                l.first = if always { None } else { Some(self.slot(scope, first)?) };
                let initial = inputs.get(2..).unwrap_or_default();
                let backward = vec![false; results.len() - states];
                self.repeat(
                    scope,
                    body,
                    (initial, &results[..*states]),
                    (&[], &results[*states..]),
                    (&[], &backward),
                    l,
                )
            }
            Region::Scan { body, states, backward, out_backward } => {
                let scanned = inputs.get(*states..states + backward.len()).ok_or_else(|| missing(&origin))?;
                let wholes = self.all(scope, scanned)?;
                let (l, ends) = (Loop { origin, ..Loop::default() }, (&inputs[..*states], &results[..*states]));
                self.repeat(scope, body, ends, (&wholes, &results[*states..]), (backward, out_backward), l)
            }
        }
    }

    /// The steps of a body, behind those that ask for what it takes for granted: the plan's requirements are asked before anything
    /// runs, which is too early for what may not run at all.
    fn body(&mut self, scope: &mut Scope<'_>, cut: &Cut) -> Result<(), GraphError> {
        for Requirement { left, right, origin } in assumptions(&cut.graph)? {
            let why = Refusal::Unequal(Box::new((left, right)));
            self.plan.steps.push(Step::Refuse { why, origin });
        }
        self.work(scope, cut)
    }

    /// The slots that a body's inputs have outside.
    fn enter<'b>(&mut self, scope: &mut Scope<'_>, body: &'b Body) -> Result<Scope<'b>, GraphError> {
        let mut inner = Scope { graph: &body.cut.graph, slots: HashMap::new() };
        for (feed, &input) in body.feeds.iter().zip(&body.cut.graph.inputs) {
            if let Feed::Outside(v) = feed {
                let slot = self.slot(scope, *v)?;
                inner.slots.insert(input, slot);
            }
        }
        Ok(inner)
    }

    fn branch(
        &mut self,
        scope: &mut Scope<'_>,
        body: &Body,
        results: &[SlotId],
        origin: &Origin,
    ) -> Result<(), GraphError> {
        let mut inner = self.enter(scope, body)?;
        let graph = &body.cut.graph;
        let made = made(&body.cut);
        // What a step makes of the result's type is made in place.
        for ((_, v), &result) in graph.outputs.iter().zip(results) {
            if made.contains(v) && *graph.ty(*v) == self.plan.slots[result].ty {
                inner.slots.entry(*v).or_insert(result);
            }
        }
        self.body(&mut inner, &body.cut)?;
        if matches!(self.plan.steps.last(), Some(Step::Refuse { why: Refusal::Always(_), .. })) {
            return Ok(());
        }
        for ((_, v), &to) in graph.outputs.iter().zip(results) {
            let from = self.slot(&mut inner, *v)?;
            if from == to {
                continue;
            }
            self.plan.steps.push(if self.plan.slots[from].ty == self.plan.slots[to].ty {
                Step::Copy { from, to }
            } else {
                Step::Bind { from, to, origin: origin.clone() }
            });
        }
        Ok(())
    }

    /// A loop: initial values and results of states, what is scanned and what is collected, and which of those from the end.
    fn repeat(
        &mut self,
        scope: &mut Scope<'_>,
        body: &Body,
        (initial, states): (&[ValueId], &[SlotId]),
        (scanned, collected): (&[SlotId], &[SlotId]),
        (backward, out_backward): (&[bool], &[bool]),
        mut l: Loop,
    ) -> Result<(), GraphError> {
        for (&v, &to) in initial.iter().zip(states) {
            let from = self.slot(scope, v)?;
            self.plan.steps.push(Step::Copy { from, to });
        }
        let graph = &body.cut.graph;
        let mut inner = self.enter(scope, body)?;
        for (feed, &input) in body.feeds.iter().zip(&graph.inputs) {
            match *feed {
                Feed::Known | Feed::Outside(_) => {}
                Feed::Counter if graph.users(input).is_empty() && !graph.is_output(input) => {}
                Feed::Counter => l.counter = Some(self.add(&mut inner, input, Place::Arena(0))?),
                Feed::State(n) => {
                    let state = states.get(n).ok_or_else(|| missing(&l.origin))?;
                    inner.slots.insert(input, *state);
                }
                Feed::Scanned(n) => {
                    let element = self.add(&mut inner, input, Place::Arena(0))?;
                    let (whole, backward) = (scanned.get(n), backward.get(n));
                    let (Some(&whole), Some(&backward)) = (whole, backward) else { return Err(missing(&l.origin)) };
                    l.scanned.push(Elements { whole, element, backward });
                }
            }
        }
        let step = self.plan.steps.len();
        self.plan.steps.push(Step::Loop(Box::default()));
        self.body(&mut inner, &body.cut)?;
        let mut outputs = graph.outputs.iter().map(|(_, v)| *v);
        if l.times.is_some() {
            let again = outputs.next().ok_or_else(|| missing(&l.origin))?;
            let always = graph.constant(again).is_some_and(|t| t.bytes().first() == Some(&1));
            l.again = if always { None } else { Some(self.slot(&mut inner, again)?) };
        }
        for (&state, v) in states.iter().zip(outputs.by_ref()) {
            let mut next = self.slot(&mut inner, v)?;
            if next == state {
                continue;
            }
            if states.contains(&next) {
                // A state that becomes another one: all of them change at once.
                let from = next;
                next = self.fresh(graph, v, Place::Arena(0))?;
                self.plan.steps.push(Step::Copy { from, to: next });
            }
            l.carried.push((next, state));
        }
        for ((&whole, v), &backward) in collected.iter().zip(outputs).zip(out_backward) {
            let element = self.slot(&mut inner, v)?;
            l.collected.push(Elements { whole, element, backward });
        }
        l.body = self.plan.steps.len() - step - 1;
        self.plan.steps[step] = Step::Loop(Box::new(l));
        Ok(())
    }
}

fn missing(origin: &Origin) -> GraphError {
    GraphError::new(origin, "a loop or branch lacks an operand".into())
}
