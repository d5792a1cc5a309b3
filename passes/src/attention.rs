//! Attention: a softmax between two products becomes one group.
//!
//! Invariant: the group computes what the kernels did that it replaces. Its five stages are the first product with what
//! follows it, the softmax (greatest score, sum of exponentials, shares), and the second product, which reads the shares
//! as its left operand; each stage reads earlier ones at coordinates of their own. Nothing else reads what lies between.

use crate::borders::readers;
use crate::group::{Group, Work, drop_unread_inputs, inline};
use kiln_ir::expr::{Expr, Ranges};
use kiln_ir::graph::{Graph, ValueId};
use kiln_ir::nest::Nest;
use kiln_ir::scalar::{BinaryOp, Code, Coord, Scalar, Source, TypeError};
use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;

/// Stages of a softmax.
const SOFTMAX: usize = 3;

/// Stages of attention.
const ATTENTION: usize = SOFTMAX + 2;

impl Group {
    /// Whether the group is attention; see the module.
    pub(crate) fn is_attention(&self) -> bool {
        self.stages.len() == ATTENTION && self.stages.last().is_some_and(is_product)
    }
}

fn is_product(nest: &Nest) -> bool {
    let product = matches!(nest.body.node(nest.body.result()), Scalar::Binary(BinaryOp::Mul, ..));
    product && nest.combine == BinaryOp::Add && !nest.folds.is_empty()
}

/// Joins what can be; results that are in `apart` stay as they are.
pub(crate) fn join_attention(graph: &Graph, work: Vec<Work>, apart: &HashSet<ValueId>) -> Vec<Work> {
    let mut makers = HashMap::new();
    for (at, w) in work.iter().enumerate() {
        match w {
            Work::Kernel(group) => _ = makers.insert(group.output, at),
            Work::Alias { value, .. } => _ = makers.insert(*value, at),
            Work::Host(_) => {}
        }
    }
    let mut joiner = Joiner { graph, work: work.into_iter().map(Some).collect(), makers };
    for n in 0..joiner.work.len() {
        let Some(Work::Kernel(last)) = &joiner.work[n] else { continue };
        if last.stages.len() != 1 || !is_product(&last.stages[0]) || apart.contains(&last.output) {
            continue;
        }
        let joined = (0..last.inputs.len()).find_map(|k| joiner.join(last, k));
        if let Some((group, gone)) = joined {
            gone.into_iter().for_each(|g| joiner.work[g] = None);
            joiner.work[n] = Some(Work::Kernel(group));
        }
    }
    joiner.work.into_iter().flatten().collect()
}

struct Joiner<'a> {
    graph: &'a Graph,
    work: Vec<Option<Work>>,
    /// Where each value is made or renamed; what was joined is where its last kernel was.
    makers: HashMap<ValueId, usize>,
}

/// What makes a value that one reader has: its kernel, and the work that only hands it on.
struct Made<'a> {
    group: &'a Group,
    at: usize,
    renamed: Vec<usize>,
}

impl Joiner<'_> {
    /// The kernel that makes a value, where it has so many stages and nothing else reads the value or what it is another name of.
    fn made(&self, mut value: ValueId, stages: RangeInclusive<usize>) -> Option<Made<'_>> {
        let (mut names, mut renamed) = (vec![value], Vec::new());
        loop {
            let at = *self.makers.get(&value)?;
            match self.work.get(at)?.as_ref()? {
                Work::Kernel(group) => {
                    // The search for readers is long, and of few kernels.
                    let alone = |&v: &ValueId| readers(self.graph, &self.work, v) == 1;
                    let fits = stages.contains(&group.stages.len()) && names.iter().all(alone);
                    return fits.then_some(Made { group, at, renamed });
                }
                Work::Alias { of, .. } => {
                    renamed.push(at);
                    value = *of;
                    names.push(value);
                }
                Work::Host(_) => return None,
            }
        }
    }

    /// The group of attention whose last product is `last`, with its `k`-th input the softmax; and the work it replaces.
    fn join(&self, last: &Group, k: usize) -> Option<(Group, Vec<usize>)> {
        let shares = self.made(last.inputs[k], SOFTMAX..=SOFTMAX)?;
        let mut gone = shares.renamed;
        gone.push(shares.at);
        let mut softmax = shares.group.clone();
        // What follows the first product may be a kernel of its own: it is computed once for each score here.
        let (scores, softmax, x) = loop {
            let x = scored(&softmax)?;
            let from = self.made(softmax.inputs[x], 1..=1)?;
            gone.extend(from.renamed);
            gone.push(from.at);
            softmax = reread(self.graph, &softmax, x, from.group.output)?;
            match from.group.stages.as_slice() {
                [only] if is_product(only) => break (from.group, softmax, x),
                [only] if only.folds.is_empty() => {
                    softmax = inline(&softmax, x, from.group)?;
                    drop_unread_inputs(&mut softmax);
                }
                _ => return None,
            }
        };
        let last = reread(self.graph, last, k, shares.group.output)?;
        // One list of inputs, and stages where inputs were.
        let mut group = last.clone();
        group.stages.clear();
        group.inputs = scores.inputs.clone();
        let mut add = |from: &Group, stage: Option<(usize, usize)>, before: usize| -> Option<()> {
            let inputs: Vec<usize> = from
                .inputs
                .iter()
                .enumerate()
                .map(|(n, &v)| match stage {
                    Some((of, _)) if of == n => 0,
                    _ => group.inputs.iter().position(|&i| i == v).unwrap_or_else(|| {
                        group.inputs.push(v);
                        group.inputs.len() - 1
                    }),
                })
                .collect();
            for nest in &from.stages {
                let moved = |source: Source| match (source, stage) {
                    (Source::Input(n), Some((of, stage))) if n == of => Source::Stage(stage),
                    (Source::Input(n), _) => Source::Input(inputs[n]),
                    (Source::Stage(n), _) => Source::Stage(before + n),
                };
                let code = |code: &Code| loads(code, &mut |source, coords| Some((moved(source), coords.to_vec())));
                group.stages.push(Nest { body: code(&nest.body)?, finish: code(&nest.finish)?, ..nest.clone() });
            }
            group.origin.merge(&from.origin);
            Some(())
        };
        add(scores, None, 0)?;
        add(&softmax, Some((x, 0)), 1)?;
        add(&last, Some((k, SOFTMAX)), 0)?;
        for from in [scores, &softmax] {
            group.nodes.extend(from.nodes.iter().copied());
        }
        group.what = format!("{}+{}+{}", scores.what, softmax.what, last.what);
        Some((group, gone))
    }
}

/// The group with its `k`-th input, another name of `from`, read as `from` itself.
pub(crate) fn reread(graph: &Graph, group: &Group, k: usize, from: ValueId) -> Option<Group> {
    let value = group.inputs[k];
    let (own, other) = (&graph.ty(value).dims, &graph.ty(from).dims);
    if value == from {
        return Some(group.clone());
    }
    let mut new = group.clone();
    new.inputs[k] = from;
    for nest in &mut new.stages {
        let ranges = nest.ranges(&graph.symbols);
        let code = |code: &Code| {
            loads(code, &mut |source, coords| {
                if source != Source::Input(k) {
                    return Some((source, coords.to_vec()));
                }
                let index: Option<Vec<Expr>> = coords.iter().map(|c| c.expr().cloned()).collect();
                let index = under_other_dims(&index?, own, other, &ranges)?;
                Some((source, index.into_iter().map(Coord::Index).collect()))
            })
        };
        (nest.body, nest.finish) = (code(&nest.body)?, code(&nest.finish)?);
    }
    Some(new)
}

/// The input that a softmax takes its scores from: what its first stage reads at all its loops.
fn scored(softmax: &Group) -> Option<usize> {
    let first = softmax.stages.first()?;
    let mut found = None;
    first.for_each_load(&mut |source, coords| {
        let loops = first.dims.iter().chain(&first.folds).filter(|d| d.as_const() != Some(1)).count();
        let mut symbols = HashSet::new();
        for coord in coords {
            if let Coord::Index(e) = coord {
                e.for_each_symbol(&mut |s| _ = symbols.insert(s.clone()));
            }
        }
        if let (Source::Input(n), true) = (source, symbols.len() >= loops) {
            found.get_or_insert(n);
        }
    });
    found
}

/// What a load becomes.
pub(crate) type Moved<'f> = dyn FnMut(Source, &[Coord]) -> Option<(Source, Vec<Coord>)> + 'f;

/// The code with every load changed; nothing where `f` gives nothing.
pub(crate) fn loads(code: &Code, f: &mut Moved<'_>) -> Option<Code> {
    let mut out = Code::new();
    let result = out.inline(code, &mut |out, node, dtype| match node {
        Scalar::Load(source, coords) => {
            let (source, coords) = f(*source, coords).ok_or_else(|| TypeError("a computed index".into()))?;
            Ok(Some(out.load(source, coords, dtype)))
        }
        _ => Ok(None),
    });
    out.set_result(result.ok()?);
    Some(out)
}

/// The index of an element of a row-major tensor under other dims of the same memory. Dims that both have in front or at
/// the end keep their indices.
fn under_other_dims(index: &[Expr], own: &[Expr], other: &[Expr], ranges: &Ranges) -> Option<Vec<Expr>> {
    let front = own.iter().zip(other).take_while(|(a, b)| a == b).count();
    let rest = own.len().min(other.len()) - front;
    let end = own.iter().rev().zip(other.iter().rev()).take(rest).take_while(|(a, b)| a == b).count();
    let mut number = Expr::default();
    for (i, extent) in index.get(front..index.len() - end)?.iter().zip(own.get(front..)?) {
        number = number.mul(extent).add(i);
    }
    let between = other.get(front..other.len() - end)?;
    let mut inner = Vec::new();
    for (n, extent) in between.iter().enumerate().rev() {
        inner.push(if n == 0 { number.clone() } else { number.modulo(extent) }.simplify(ranges));
        number = number.floor_div(extent).simplify(ranges);
    }
    inner.reverse();
    let all = index.get(..front)?.iter().chain(&inner).chain(index.get(index.len() - end..)?);
    Some(all.cloned().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_ir::expr::Symbol;

    #[test]
    fn indices_under_other_dims() {
        let symbol = |n: usize| Expr::from(Symbol::numbered("i", n));
        let ranges: Ranges = (0..4).map(|n| (Symbol::numbered("i", n), (0, [0, 8, 4, 99][n]))).collect();
        let dims = |d: &[i64]| d.iter().map(|&e| Expr::from(e)).collect::<Vec<_>>();
        // Heads in groups of 3, of which both coordinates are known.
        let heads = symbol(1).floor_div(&Expr::from(3i64)).scale(3).add(&symbol(1).modulo(&Expr::from(3i64)));
        let index = [symbol(0), heads, symbol(2), symbol(3)];
        let found = under_other_dims(&index, &dims(&[1, 9, 5, 100]), &dims(&[1, 3, 3, 5, 100]), &ranges).unwrap();
        let at = |s: &Symbol| Some([0, 7, 2, 50][s.name()[1..].parse::<usize>().unwrap()]);
        let values: Vec<i64> = found.iter().map(|e| e.eval(&at).unwrap()).collect();
        assert_eq!(values, [0, 2, 1, 2, 50]);
        let found = under_other_dims(&found, &dims(&[1, 3, 3, 5, 100]), &dims(&[9, 5, 100]), &ranges).unwrap();
        assert_eq!(found.iter().map(|e| e.eval(&at).unwrap()).collect::<Vec<_>>(), [7, 2, 50]);
        let rows = under_other_dims(&[symbol(1), symbol(2)], &dims(&[9, 5]), &dims(&[45]), &ranges).unwrap();
        assert_eq!(rows, [symbol(1).scale(5).add(&symbol(2))]);
    }
}
