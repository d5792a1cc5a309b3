//! Values that only products read are kept as f16 or bf16 where products round their operands to it: what lies in memory between
//! kernels, once it is known what the kernels are. Which products have operands of a half type at all is a rewrite of the graph before
//! that (`rewrite/in_halves.rs`).
//!
//! Invariant: a product whose operands matrix instructions round computes what it did before, since an operand is rounded once, where
//! it is made instead of where it is read. Every kernel that reads such a value reads it as an operand of a sum of products,
//! and no host step does.

use crate::group::{Group, Work};
use crate::rewrite::constant_in;
use kiln_ir::dtype::DType;
use kiln_ir::graph::{Graph, ValueId};
use kiln_ir::nest::{Nest, axis};
use kiln_ir::scalar::{BinaryOp, Code, Scalar, Source};
use std::collections::{HashMap, HashSet};

/// Places of a fold from which its product is worth its operands' rounding.
const LEAST_FOLD: usize = 16;

/// Keeps values of f32 as halves where that is possible.
pub(crate) fn keep_halves(graph: &mut Graph, work: &mut [Work], half: DType) {
    // Names of one memory change together: each value's is that of the value that owns it.
    let mut owners: HashMap<ValueId, ValueId> = HashMap::new();
    let mut wide: HashSet<ValueId> = graph.inputs.iter().chain(graph.outputs.iter().map(|(_, v)| v)).copied().collect();
    let mut read: HashSet<ValueId> = HashSet::new();
    let mut made: HashSet<ValueId> = HashSet::new();
    for w in work.iter() {
        match w {
            Work::Alias { of, value } => {
                let owner = owners.get(of).copied().unwrap_or(*of);
                owners.insert(*value, owner);
                if wide.contains(value) {
                    wide.insert(owner);
                }
            }
            Work::Host(n) => {
                let node = graph.node(*n);
                wide.extend(node.inputs.iter().chain(&node.outputs));
            }
            Work::Kernel(group) => {
                made.insert(group.output);
                if group.stages.is_empty() {
                    wide.extend(group.inputs.iter().chain([&group.output]));
                }
                for (k, &value) in group.inputs.iter().enumerate() {
                    if is_operand(graph, group, k) {
                        read.insert(value)
                    } else {
                        wide.insert(value)
                    };
                }
            }
        }
    }
    let owner = |v: ValueId| owners.get(&v).copied().unwrap_or(v);
    let wide: HashSet<ValueId> = wide.into_iter().map(owner).collect();
    let chosen: HashSet<ValueId> = read
        .into_iter()
        .map(owner)
        .filter(|v| !wide.contains(v) && graph.ty(*v).dtype == DType::F32)
        .filter(|v| made.contains(v) || graph.constant(*v).is_some())
        .collect();
    for &value in &chosen {
        let rounded = graph.constant(value).and_then(|tensor| constant_in(half, tensor));
        if graph.constant(value).is_some() == rounded.is_some() {
            graph.set_dtype(value, half, rounded);
        }
    }
    let is_half = |graph: &Graph, v: ValueId| graph.ty(v).dtype == half && chosen.contains(&owner(v));
    let names: Vec<ValueId> = owners.keys().copied().filter(|v| chosen.contains(&owner(*v))).collect();
    names.into_iter().for_each(|v| graph.set_dtype(v, half, None));
    for w in work.iter_mut() {
        let Work::Kernel(group) = w else { continue };
        let halves: Vec<bool> = group.inputs.iter().map(|&v| is_half(graph, v)).collect();
        let narrow = is_half(graph, group.output);
        if let Some(stages) = changed(group, &halves, narrow.then_some(half), half) {
            group.stages = stages;
        }
    }
}

/// Whether all that a group does with its `k`-th input is to multiply its elements in a sum of products, other than one that has
/// its own factors for each result.
fn is_operand(graph: &Graph, group: &Group, k: usize) -> bool {
    if graph.ty(group.inputs[k]).dtype != DType::F32 {
        return false;
    }
    group.stages.iter().all(|nest| {
        let reads = |code: &Code| {
            let live = code.live();
            let of = |(id, n): (kiln_ir::Id<Scalar>, &Scalar)| {
                matches!(n, Scalar::Load(Source::Input(n), _) if *n == k && live[id.index()]).then_some(id)
            };
            code.nodes().filter_map(of).collect::<Vec<_>>()
        };
        let loads = reads(&nest.body);
        let Scalar::Binary(BinaryOp::Mul, a, b) = nest.body.node(nest.body.result()) else {
            return loads.is_empty() && reads(&nest.finish).is_empty();
        };
        let factors = loads.iter().all(|id| id == a || id == b);
        reads(&nest.finish).is_empty() && (loads.is_empty() || factors && is_large(nest, [*a, *b]))
    })
}

/// Whether the nest is a sum of many products, each factor of which serves several results.
fn is_large(nest: &Nest, factors: [kiln_ir::Id<Scalar>; 2]) -> bool {
    let fold = nest.folds.iter().map(|f| f.as_size().unwrap_or(usize::MAX)).fold(1, usize::saturating_mul);
    let reused = |factor| {
        let symbols = crate::kernel::symbols(&nest.body, factor);
        let others = nest.dims.iter().enumerate().filter(|(n, _)| !symbols.contains(&axis(*n)));
        others.map(|(_, d)| d.as_size().unwrap_or(usize::MAX)).fold(1, usize::saturating_mul)
    };
    nest.combine == BinaryOp::Add && fold >= LEAST_FOLD && factors.into_iter().map(reused).any(|n| n >= 8)
}

/// The stages where some inputs are halves, which are widened, and the result is one.
fn changed(group: &Group, halves: &[bool], narrow: Option<DType>, half: DType) -> Option<Vec<Nest>> {
    if narrow.is_none() && !halves.contains(&true) {
        return None;
    }
    let widened = |code: &Code| -> Option<Code> {
        let mut out = Code::new();
        let result = out.inline(code, &mut |out, node, _| match node {
            Scalar::Load(Source::Input(n), coords) if halves.get(*n) == Some(&true) => {
                let load = out.load(Source::Input(*n), coords.clone(), half);
                out.cast(DType::F32, load).map(Some)
            }
            _ => Ok(None),
        });
        out.set_result(result.ok()?);
        Some(out)
    };
    let mut stages = Vec::new();
    for nest in &group.stages {
        stages.push(Nest { body: widened(&nest.body)?, finish: widened(&nest.finish)?, ..nest.clone() });
    }
    if let (Some(half), Some(last)) = (narrow, stages.last_mut()) {
        let mut finish = last.finish.clone();
        let result = finish.cast(half, finish.result()).ok()?;
        finish.set_result(result);
        last.finish = finish;
    }
    Some(stages)
}
