//! Borders: what a convolution or a pool computes goes straight into the middle of what `pad` makes of it.
//!
//! Invariant: the group computes what the two kernels did that it replaces. Its result is the padded one; where the border is, it
//! folds nothing and stores the pad's value, and the kernel's boxes ([`crate::kernel::flat::FlatNest::boxes`]) keep the two apart.
//! Nothing else reads what lies between.

use crate::boundary::Wishes;
use crate::fusion::{Attempt, Way};
use crate::group::{Group, Work};
use crate::kernel::flat::map_exprs;
use crate::kernel::has_few_bits;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::graph::{Graph, NodeId, ValueId};
use kiln_ir::nest::{self, Nest, neutral};
use kiln_ir::scalar::{Code, Constant, Less, Scalar, Source};
use std::collections::HashMap;

/// Fewer elements than this along the axis beside the columns are no rows for a register tile: there the product's rows run on
/// from one line of a picture to the next, as they cannot where a border lies between.
const FEWEST_ROWS: i64 = 12;

/// Joins what can be, but for what is wished apart, and notes it.
pub(crate) fn join_borders(graph: &Graph, work: Vec<Work>, wishes: &Wishes, attempts: &mut Vec<Attempt>) -> Vec<Work> {
    let mut work: Vec<Option<Work>> = work.into_iter().map(Some).collect();
    let made: HashMap<ValueId, usize> = work
        .iter()
        .enumerate()
        .filter_map(|(at, w)| match w {
            Some(Work::Kernel(group)) => Some((group.output, at)),
            Some(Work::Host(_) | Work::Alias { .. }) | None => None,
        })
        .collect();
    for n in 0..work.len() {
        let Some(Work::Kernel(pad)) = &work[n] else { continue };
        let Some(border) = Border::of(graph, pad) else { continue };
        let Some(&at) = made.get(&border.of) else { continue };
        let Some(Work::Kernel(inner)) = &work[at] else { continue };
        if readers(graph, &work, border.of) != 1 || wishes.of(border.of) == Some(false) {
            continue;
        }
        let Some(group) = border.around(graph, inner, pad) else { continue };
        attempts.push(Attempt { value: border.of, reader: border.node, verdict: Ok(Way::Bordered) });
        work[at] = None;
        work[n] = Some(Work::Kernel(group));
    }
    work.into_iter().flatten().collect()
}

/// How many read the value, the caller of the graph included.
pub(crate) fn readers(graph: &Graph, work: &[Option<Work>], value: ValueId) -> usize {
    let times = |w: &Work| w.reads(graph).iter().filter(|&&v| v == value).count();
    work.iter().flatten().map(times).sum::<usize>() + usize::from(graph.is_output(value))
}

/// A group that puts a border around a value.
struct Border {
    of: ValueId,
    /// The last node of the group.
    node: NodeId,
    /// What holds where the value is.
    conditions: Vec<Less>,
    /// Where in the value an element of the result is.
    index: Vec<Expr>,
    value: Constant,
}

impl Border {
    /// Nothing for groups that do anything else, and for borders along the columns or of free extents.
    fn of(graph: &Graph, group: &Group) -> Option<Border> {
        let [Nest { dims, folds, body, finish, .. }] = group.stages.as_slice() else { return None };
        let (&[of], Some(&node)) = (group.inputs.as_slice(), group.nodes.first()) else { return None };
        let Scalar::Guard(conditions, then, other) = body.node(body.result()) else { return None };
        let (Scalar::Load(Source::Input(0), coords), Scalar::Const(value)) = (body.node(*then), body.node(*other))
        else {
            return None;
        };
        if !folds.is_empty() || !matches!(finish.node(finish.result()), Scalar::Arg(_)) {
            return None;
        }
        let index: Option<Vec<Expr>> = coords.iter().map(|c| c.expr().cloned()).collect();
        let index = index.filter(|index| index.len() == dims.len())?;
        let shifted = |n: usize, e: &Expr| e.sub(&Expr::from(nest::axis(n))).as_const().is_some();
        let known = dims.iter().all(|d| d.as_const().is_some());
        let layout = &graph.ty(group.output).layout;
        if !known || !index.iter().enumerate().all(|(n, e)| shifted(n, e)) || graph.ty(of).layout != *layout {
            return None;
        }
        let mut outward = layout.order.iter().rev().filter(|&&n| dims[n].as_const() != Some(1));
        let (column, row) = (outward.next()?, outward.next()?);
        let at_columns =
            conditions.iter().any(|c| [&c.left, &c.right].iter().any(|e| e.mentions(&nest::axis(*column))));
        let rows = graph.ty(of).dims.get(*row)?.as_const()?;
        let plain = layout.block.is_none() && !at_columns && rows >= FEWEST_ROWS;
        plain.then(|| Border { of, node, conditions: conditions.clone(), index, value: *value })
    }

    /// The group of a single fold with the border around its result.
    fn around(&self, graph: &Graph, inner: &Group, pad: &Group) -> Option<Group> {
        let [stage] = inner.stages.as_slice() else { return None };
        if stage.folds.is_empty() || has_few_bits(&stage.body) {
            return None;
        }
        let at = |s: &Symbol| (0..self.index.len()).find(|&n| *s == nest::axis(n)).map(|n| self.index[n].clone());
        let moved = |code: &Code, other: Constant| {
            let mut code = map_exprs(code, &|e| e.substitute(&at)).ok()?;
            let other = code.constant(other);
            let guarded = code.push(Scalar::Guard(self.conditions.clone(), code.result(), other)).ok()?;
            code.set_result(guarded);
            Some(code)
        };
        let body = moved(&stage.body, neutral(stage.combine, stage.body.result_type()))?;
        let finish = moved(&stage.finish, self.value)?;
        let dims = graph.ty(pad.output).dims.clone();
        let mut group = inner.clone();
        group.stages = vec![Nest { dims, body, finish, ..stage.clone() }];
        let count = |v: ValueId| graph.ty(v).elements().as_const();
        group.border = count(pad.output).zip(count(self.of)).map_or(0, |(all, within)| all - within);
        group.output = pad.output;
        group.origin.merge(&pad.origin);
        group.nodes.extend_from_slice(&pad.nodes);
        group.what = format!("{}+{}", inner.what, pad.what);
        Some(group)
    }
}
