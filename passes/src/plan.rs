//! From groups to a plan: slots for values, steps in order, weights in the layouts that kernels read.
//!
//! Invariant: a plan made here passes `Plan::verify`; every value that crosses a step has one slot.

use crate::group::{Group, Work};
use crate::memory::{ALIGNMENT, plan_memory};
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::graph::{Definition, Graph, GraphError, Origin, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::ops::Op;
use kiln_ir::plan::{Kernel, Place, Plan, Requirement, Slot, SlotId, Step, nominal};
use kiln_ir::tensor::Tensor;
use kiln_ir::tile::TileProgram;
use std::collections::HashMap;

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

/// Builds the plan of a graph that was cut into work; kernels are named in its order.
///
/// # Errors
/// A constant has dims that are not constant, or a value that no step makes has dims that no input has.
pub fn build_plan(graph: &Graph, work: &[Work]) -> Result<(Plan, Vec<Weight>), GraphError> {
    let mut builder = Builder {
        graph,
        plan: Plan {
            name: graph.name.clone(),
            symbols: graph.symbols.iter().map(|(symbol, &range)| (symbol.clone(), range)).collect(),
            ..Plan::default()
        },
        slots: HashMap::new(),
        weights: vec![],
    };
    for (n, &v) in graph.inputs.iter().enumerate() {
        let slot = builder.add(v, Place::Input(n))?;
        let name = graph.value(v).name.clone().unwrap_or_default();
        builder.plan.inputs.push((name, slot));
    }
    // An output that a step computes is computed in place; the first output to name a value gets that.
    let made: std::collections::HashSet<ValueId> = work
        .iter()
        .flat_map(|w| match w {
            Work::Kernel(g) => vec![g.output],
            Work::Host(n) => graph.node(*n).outputs.clone(),
            Work::Alias { .. } => vec![],
        })
        .collect();
    for (n, (name, v)) in graph.outputs.iter().enumerate() {
        let slot = if made.contains(v) && !builder.slots.contains_key(v) {
            builder.add(*v, Place::Output(n))?
        } else {
            builder.fresh(*v, Place::Output(n))?
        };
        builder.plan.outputs.push((name.clone(), slot));
    }
    for id in graph.live_order()? {
        let node = graph.node(id);
        if let (Op::Reshape(reshape), [x]) = (&node.op, node.inputs.as_slice())
            && let Some((left, right)) = reshape.assumes(graph.ty(*x))
        {
            let known = builder.plan.requirements.iter_mut().find(|r| r.left == left && r.right == right);
            match known {
                Some(known) => known.origin.merge(&node.origin),
                None => {
                    let origin = node.origin.clone();
                    builder.plan.requirements.push(Requirement { left, right, origin });
                }
            }
        }
    }
    for w in work {
        match w {
            Work::Alias { of, value } => {
                let slot = builder.slot(*of)?;
                builder.slots.insert(*value, slot);
            }
            Work::Host(id) => {
                let node = graph.node(*id);
                let inputs = node.inputs.iter().map(|&v| builder.slot(v)).collect::<Result<_, _>>()?;
                let outputs = node.outputs.iter().map(|&v| builder.slot(v)).collect::<Result<_, _>>()?;
                builder.plan.steps.push(Step::Host {
                    op: node.op.clone(),
                    inputs,
                    outputs,
                    origin: node.origin.clone(),
                });
            }
            Work::Kernel(group) => builder.launch(group)?,
        }
    }
    for (n, (_, v)) in graph.outputs.iter().enumerate() {
        let (from, to) = (builder.slot(*v)?, builder.plan.outputs[n].1);
        if from != to {
            builder.plan.steps.push(Step::Copy { from, to });
        }
    }
    let Builder { mut plan, weights, .. } = builder;
    plan_memory(&mut plan);
    Ok((plan, weights))
}

struct Builder<'a> {
    graph: &'a Graph,
    plan: Plan,
    slots: HashMap<ValueId, SlotId>,
    weights: Vec<Weight>,
}

impl Builder<'_> {
    fn fresh(&mut self, v: ValueId, place: Place) -> Result<SlotId, GraphError> {
        let value = self.graph.value(v);
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

    fn add(&mut self, v: ValueId, place: Place) -> Result<SlotId, GraphError> {
        let slot = self.fresh(v, place)?;
        self.slots.insert(v, slot);
        Ok(slot)
    }

    fn slot(&mut self, v: ValueId) -> Result<SlotId, GraphError> {
        if let Some(&slot) = self.slots.get(&v) {
            return Ok(slot);
        }
        let Definition::Constant(tensor) = &self.graph.value(v).definition else {
            return self.add(v, Place::Arena(0));
        };
        let offset = self.plan.weight_bytes;
        let slot = self.add(v, Place::Weights(offset))?;
        self.plan.weight_bytes = (offset + self.plan.slot_bytes(slot)).next_multiple_of(ALIGNMENT);
        let layout = self.graph.ty(v).layout.clone();
        self.weights.push(Weight { offset, tensor: tensor.clone(), layout });
        Ok(slot)
    }

    fn launch(&mut self, group: &Group) -> Result<(), GraphError> {
        let mut arguments: Vec<SlotId> = Vec::new();
        for &v in &group.inputs {
            arguments.push(self.slot(v)?);
        }
        arguments.push(self.slot(group.output)?);
        let symbols = &self.graph.symbols;
        let operations = guess(&group.operations(), symbols);
        let bytes = arguments.iter().map(|&s| guess(&self.plan.slots[s].ty.bytes(), symbols)).sum::<u64>();
        self.plan.kernels.push(Kernel {
            name: format!("k{}", self.plan.kernels.len()),
            origin: group.origin.clone(),
            what: group.what.clone(),
            operations,
            bytes,
        });
        let kernel = self.plan.kernels.len() - 1;
        self.plan.steps.push(Step::Launch { kernel, arguments, written: 1 });
        Ok(())
    }
}
