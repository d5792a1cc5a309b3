//! Rows that products read side by side, moved apart in memory.
//!
//! Invariant: only values that kernels alone write and read get another layout, with all names that their memory has; what lies
//! between the rows is never read.
//!
//! A tile of a product reads a dozen rows of its left operand at once, and some hundred rows of a right operand that is computed,
//! again for each tile. A cache finds a line by the low bits of its address, 12 of them in the first cache of x86 processors: rows at a
//! distance that 4,096 divides all lie in one set of it, which has 8 or 12 places, and push one another out. A line left out behind each
//! row lets neighbouring rows lie in different sets.

use crate::group::{Group, LEAST_REUSE, Work, about, reuse};
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, TensorType, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::nest;
use kiln_ir::scalar::{BinaryOp, Coord, Source};
use std::collections::{HashMap, HashSet};

/// The bytes after which the sets of a first cache come again.
const PERIOD: i64 = 4096;

/// Rows at a distance that this divides lie in so few sets that fewer of them stay than a fold has steps.
const SHORT_PERIOD: i64 = 512;

/// The bytes of a cache line.
const LINE: usize = 64;

/// Fewer rows than this are in each other's way in no cache.
pub(crate) const LEAST_ROWS: i64 = 5;

/// Fewer steps of a fold than this stay in the cache at any distance.
const LEAST_STEPS: i64 = 16;

/// Leaves a line out behind each row of the values for which it pays.
pub(crate) fn spread_rows(graph: &mut Graph, work: &[Work]) {
    let mut spread: Vec<(ValueId, (usize, usize))> = Vec::new();
    // Each value with the products that read it, and as which of their inputs.
    let mut products: HashMap<ValueId, Vec<(&Group, usize)>> = HashMap::new();
    for group in work.iter().filter_map(Work::kernel).filter(|g| g.folds()) {
        group.inputs.iter().enumerate().for_each(|(k, &v)| products.entry(v).or_default().push((group, k)));
    }
    for names in memories(graph, work) {
        // A gap behind the innermost rows moves the outer ones apart, too, where their number is no multiple of 64.
        let readers = names.iter().filter_map(|v| products.get(v)).flatten();
        let rows = readers.filter_map(|&(group, k)| meeting_rows(graph, group, k)).min();
        let gap = |v: ValueId| Some((axis_of_rows(graph.ty(v), rows?)?, LINE / graph.ty(v).dtype.size()));
        let gaps: Option<Vec<_>> = names.iter().map(|&v| Some((v, gap(v)?))).collect();
        spread.extend(gaps.unwrap_or_default());
    }
    for (value, gap) in spread {
        let layout = Layout { gap: Some(gap), ..graph.ty(value).layout.clone() };
        graph.set_layout(value, layout);
    }
}

/// Takes all gaps away.
pub(crate) fn close_rows(graph: &mut Graph) {
    let open: Vec<ValueId> = graph.values().filter(|(_, v)| v.ty.layout.gap.is_some()).map(|(id, _)| id).collect();
    for value in open {
        let layout = Layout { gap: None, ..graph.ty(value).layout.clone() };
        graph.set_layout(value, layout);
    }
}

/// The names of each memory that a kernel writes and nothing but kernels touches.
fn memories(graph: &Graph, work: &[Work]) -> Vec<Vec<ValueId>> {
    let mut owner: HashMap<ValueId, usize> = HashMap::new();
    let mut all: Vec<Vec<ValueId>> = Vec::new();
    let mut fixed: HashSet<usize> = HashSet::new();
    for w in work {
        match w {
            // What scatters walks through rows by itself.
            Work::Kernel(group) if group.stages.is_empty() => {
                fixed.extend(group.inputs.iter().filter_map(|v| owner.get(v)));
            }
            Work::Kernel(group) => {
                owner.insert(group.output, all.len());
                all.push(vec![group.output]);
            }
            Work::Host(node) => fixed.extend(graph.node(*node).inputs.iter().filter_map(|v| owner.get(v))),
            Work::Alias { of, value } => {
                if let Some(&n) = owner.get(of) {
                    owner.insert(*value, n);
                    all[n].push(*value);
                }
            }
        }
    }
    let own = |n: usize, names: &[ValueId]| !fixed.contains(&n) && !names.iter().any(|&v| graph.is_output(v));
    all.into_iter().enumerate().filter(|(n, names)| own(*n, names)).map(|(_, names)| names).collect()
}

/// The axes of a tensor from the innermost one outward, each with the bytes from one of its places to the next, as far as these are
/// known and no block cuts them.
fn distances(ty: &TensorType) -> Vec<(usize, i64)> {
    let mut known = Vec::new();
    let mut bytes = Some(ty.dtype.size() as i64).filter(|_| ty.layout.block.is_none());
    for &axis in ty.layout.order.iter().rev() {
        let Some(distance) = bytes else { break };
        known.push((axis, distance));
        bytes = ty.dims[axis].as_const().and_then(|extent| distance.checked_mul(extent));
    }
    known
}

/// The axis whose places are that many bytes apart.
fn axis_of_rows(ty: &TensorType, bytes: i64) -> Option<usize> {
    let apart = |&(axis, distance): &(usize, i64)| distance == bytes && ty.dims[axis].as_const() != Some(1);
    distances(ty).into_iter().find(apart).map(|(axis, _)| axis)
}

/// Whether rows of a left operand, which are along its last axis but one, lie in one set of the cache.
pub(crate) fn rows_meet(ty: &TensorType) -> bool {
    let rows = ty.rank().checked_sub(2);
    distances(ty).iter().any(|&(axis, distance)| Some(axis) == rows && distance > 0 && distance % PERIOD == 0)
}

/// The bytes between rows of a kernel's k-th input that are in each other's way, where it is a product that reads them again and again.
fn meeting_rows(graph: &Graph, group: &Group, k: usize) -> Option<i64> {
    let [stage] = group.stages.as_slice() else { return None };
    if stage.combine != BinaryOp::Add || reuse(graph, group, k) < LEAST_REUSE {
        return None;
    }
    let ty = graph.ty(group.inputs[k]);
    let distances: Vec<(usize, i64)> =
        distances(ty).into_iter().filter(|(axis, _)| ty.dims[*axis].as_const() != Some(1)).collect();
    let ((innermost, _), outward) = distances.split_first()?;
    let mut found = None;
    stage.for_each_load(&mut |source, coords| {
        let index: Option<Vec<&Expr>> = coords.iter().map(Coord::expr).collect();
        let (true, Some(index)) = (source == Source::Input(k), index) else { return };
        let summed = |a: usize| (0..stage.folds.len()).any(|f| index[a].mentions(&nest::fold_axis(f)));
        let walked = |a: usize| (0..stage.dims.len()).any(|d| index[a].mentions(&nest::axis(d)));
        // A window that moves on by two pixels reads every other row.
        let step =
            |a: usize| (0..stage.dims.len()).find_map(|d| index[a].coefficient(&nest::axis(d)).filter(|&c| c > 0));
        let meets = |&&(axis, distance): &&(usize, i64)| {
            let many = about(graph, &ty.dims[axis]);
            let apart = distance.saturating_mul(step(axis).unwrap_or(1));
            let left = summed(*innermost) && walked(axis) && many >= LEAST_ROWS && apart % PERIOD == 0;
            let right = walked(*innermost) && summed(axis) && many >= LEAST_STEPS && distance % SHORT_PERIOD == 0;
            left || right
        };
        found = found.or(outward.iter().find(meets).map(|&(_, distance)| distance));
    });
    found
}
