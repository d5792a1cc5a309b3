//! Constants of 4 bits that products of few rows read are kept as words of eight of them, for GPUs.
//!
//! Invariant: a product computes what it did before. Every kernel that reads such a constant is a product of fewer rows than a
//! tile of matrix instructions has, which reads every number once; the eight numbers of a word follow one another along the
//! fold and words along the columns, so that a word is read once, by neighbouring lanes, and is eight multiply-adds of one
//! thread. No host step reads it.

use crate::group::{Group, Work, drop_unread_inputs};
use crate::kernel::flat::{Axis, FlatNest};
use crate::kernel::{self, MOST_ROWS};
use kiln_ir::Tensor;
use kiln_ir::dtype::DType;
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Graph, TensorType, ValueId};
use kiln_ir::id::Id;
use kiln_ir::nest::Nest;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Scalar, Source};
use std::collections::{BTreeMap, HashSet};

/// Numbers in a word.
pub(crate) const EACH: i64 = 8;

/// The bits of a number.
const BITS: i64 = 4;
const MASK: i64 = 15;

/// Keeps constants as words where that is possible.
pub(crate) fn keep_nibbles(graph: &mut Graph, work: &mut [Work]) {
    let mut elsewhere: HashSet<ValueId> = graph.outputs.iter().map(|(_, v)| *v).collect();
    let mut readers: BTreeMap<ValueId, Vec<(usize, usize)>> = BTreeMap::new();
    for (n, w) in work.iter().enumerate() {
        match w {
            Work::Alias { of, value } => elsewhere.extend([of, value]),
            Work::Host(node) => elsewhere.extend(&graph.node(*node).inputs),
            Work::Kernel(group) => {
                group.inputs.iter().enumerate().for_each(|(k, v)| readers.entry(*v).or_default().push((n, k)));
            }
        }
    }
    let mut changed = HashSet::new();
    for (value, readers) in readers.into_iter().filter(|(v, _)| !elsewhere.contains(v)) {
        if graph.constant(value).is_none() {
            continue;
        }
        let made: Option<Vec<(usize, Nest, Matrix)>> = readers
            .iter()
            .map(|&(n, k)| {
                let (nest, matrix) = unpacked(graph, work.get(n)?.kernel()?, k)?;
                Some((n, nest, matrix))
            })
            .collect();
        let Some(made) = made else { continue };
        let Some(matrix) = made.first().map(|(.., matrix)| *matrix) else { continue };
        let one_reader_each = made.iter().map(|(n, ..)| n).collect::<HashSet<_>>().len() == made.len();
        if !one_reader_each || made.iter().any(|(.., other)| *other != matrix) {
            continue;
        }
        let Some(words) = graph.constant(value).and_then(|t| matrix.words(t)) else { continue };
        graph.replace_constant(value, words);
        for (n, nest, _) in made {
            if let Some(Work::Kernel(group)) = work.get_mut(n) {
                group.stages = vec![nest];
                changed.insert(n);
            }
        }
    }
    for n in changed {
        if let Some(Work::Kernel(group)) = work.get_mut(n) {
            drop_unread_inputs(group);
        }
    }
}

/// What is subtracted of the numbers of a constant so that they are of 4 bits without a sign, if they can be.
fn lowest(tensor: &Tensor) -> Option<i64> {
    let within = |lo: i8, hi: i8| tensor.bytes().iter().all(|&b| (lo..=hi).contains(&(b as i8)));
    match tensor.dtype() {
        DType::U8 => within(0, 15).then_some(0),
        DType::I8 => within(-8, 7).then_some(-8),
        _ => None,
    }
}

/// How a constant is a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Matrix {
    /// Places of the fold.
    places: i64,
    columns: i64,
    order: Order,
    /// What all numbers are less than they are in a word.
    low: i64,
}

/// Where the number of a place and a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// In a byte; neighbours are columns.
    ByColumn,
    /// In a byte; neighbours are places of the fold.
    ByPlace,
    /// Two a byte: byte `j` of a run of 32 places of a column holds those of `j` and of `j + 16`.
    Halves,
}

/// Places of a run of [`Order::Halves`].
const RUN: i64 = 32;

impl Matrix {
    fn expr(self, place: &Expr, inner: &Expr, column: &Expr) -> Expr {
        match self.order {
            Order::ByColumn => place.scale(self.columns).add(column),
            Order::ByPlace => column.scale(self.places).add(place),
            // The last fold's places are those of a run.
            Order::Halves => {
                let run = place.sub(inner).floor_div(&Expr::from(RUN)).scale(RUN / 2);
                column.scale(self.places / 2).add(&run).add(&inner.modulo(&Expr::from(RUN / 2)))
            }
        }
    }

    /// The constant in words: the numbers of a column that follow one another, the first in the lowest bits.
    fn words(self, tensor: &Tensor) -> Option<Tensor> {
        let bytes = tensor.bytes();
        let size = |n: i64| usize::try_from(n).ok();
        let (places, columns, run) = (size(self.places)?, size(self.columns)?, size(RUN)?);
        let number = |place: usize, column: usize| match self.order {
            Order::ByColumn => bytes.get(place * columns + column).copied(),
            Order::ByPlace => bytes.get(column * places + place).copied(),
            Order::Halves => {
                let at = column * places / 2 + place / run * (run / 2) + place % (run / 2);
                bytes.get(at).map(|byte| byte >> (4 * (place % run / (run / 2))) & MASK as u8)
            }
        };
        let mut out = Vec::with_capacity(places * columns / 2);
        for first in (0..places).step_by(size(EACH)?) {
            for column in 0..columns {
                let mut word = 0;
                for n in 0..size(EACH)? {
                    let number = number(first + n, column)?.wrapping_sub(self.low as u8);
                    word |= u32::from(number) << (BITS as usize * n);
                }
                out.extend(word.to_le_bytes());
            }
        }
        Tensor::new(DType::I32, vec![places / size(EACH)?, columns], out).ok()
    }
}

/// The product that reads its `k`-th input in words, and what matrix that is.
fn unpacked(graph: &Graph, group: &Group, k: usize) -> Option<(Nest, Matrix)> {
    let [nest] = group.stages.as_slice() else { return None };
    let value = *group.inputs.get(k)?;
    if !graph.ty(value).layout.is_row_major() {
        return None;
    }
    let types: Vec<&TensorType> = group.inputs.iter().map(|v| graph.ty(*v)).collect();
    let flat = FlatNest::new(nest, &types, Some(graph.ty(group.output)), &graph.symbols)?;
    let operands = kernel::operands(&flat).filter(|o| o.of.is_none())?;
    let extent = |axes: &[Axis]| axes.iter().map(Axis::known).try_fold(1i64, |n, e| n.checked_mul(e?));
    let mut columns = operands.columns.iter().filter(|a| !a.is_single());
    let (Some(column), None) = (columns.next(), columns.next()) else { return None };
    let (rows, places, columns) = (extent(&operands.rows)?, extent(&flat.folds)?, column.known()?);
    if rows > MOST_ROWS.min(kernel::LEAST_TILE - 1) || extent(&operands.batch)? != 1 || places % EACH != 0 {
        return None;
    }
    let tensor = graph.constant(value)?;
    let halves = shift_of_halves(&nest.body, k);
    let low = if halves.is_some() { 0 } else { lowest(tensor)? };
    let loops = flat.loops();
    let place = flat
        .folds
        .iter()
        .try_fold(Expr::default(), |place, fold| Some(place.scale(fold.known()?).add(&Expr::from(&fold.symbol))))?;
    let inner = flat.folds.last()?;
    let (last, column) = (Expr::from(&inner.symbol), Expr::from(&column.symbol));
    // Every element, in one of the orders that are known.
    let orders = if halves.is_some() { &[Order::Halves][..] } else { &[Order::ByColumn, Order::ByPlace] };
    let address = only_address(&flat.body, k)?;
    let all = orders.iter().map(|&order| Matrix { places, columns, order, low });
    let matrix = all.into_iter().find(|m| loops.simplify(&m.expr(&place, &last, &column)) == *address)?;
    let numbers = places.checked_mul(columns).and_then(|n| usize::try_from(n).ok())?;
    if tensor.dtype().size() != 1 || tensor.len() * if halves.is_some() { 2 } else { 1 } != numbers {
        return None;
    }
    if let Some(shifts) = halves {
        let held = graph.constant(*group.inputs.get(shifts)?)?;
        let half = loops.simplify(&last.floor_div(&Expr::from(RUN / 2)));
        let known = held.dtype() == DType::I32 && held.bytes() == [0, 0, 0, 0, 4, 0, 0, 0];
        if !known || inner.known() != Some(RUN) || *only_address(&flat.body, shifts)? != half {
            return None;
        }
    }
    // Nothing but a conversion sees a number.
    let is_number = |id: Id<Scalar>| matches!(nest.body.node(id), Scalar::Load(Source::Input(n), _) if *n == k);
    let live = nest.body.live();
    let seen = |(id, node): (Id<Scalar>, &Scalar)| {
        live[id.index()] && !matches!(node, Scalar::Cast(..)) && node.operands().into_iter().any(is_number)
    };
    if nest.body.nodes().any(seen) || reads(&flat.finish, k) {
        return None;
    }
    let each = Expr::from(EACH);
    let word = [place.floor_div(&each), column].map(|e| Coord::Index(loops.simplify(&e))).to_vec();
    let shift = loops.simplify(&place.modulo(&each).scale(BITS));
    let mut body = Code::new();
    let result = body.inline(&nest.body, &mut |out, node, _| {
        let is_number = match halves {
            Some(_) => half_of(out, node).is_some_and(|(byte, _)| byte == k),
            None => matches!(node, Scalar::Load(Source::Input(n), _) if *n == k),
        };
        if !is_number {
            return Ok(None);
        }
        let load = out.load(Source::Input(k), word.clone(), DType::I32);
        let shift = out.index(shift.clone());
        let shift = out.cast(DType::I32, shift)?;
        let moved = out.binary(BinaryOp::Shr, load, shift)?;
        let mask = out.constant(Constant::int(DType::I32, MASK));
        let number = out.binary(BinaryOp::And, moved, mask)?;
        if low == 0 {
            return Ok(Some(number));
        }
        let zero = out.constant(Constant::int(DType::I32, -low));
        out.binary(BinaryOp::Sub, number, zero).map(Some)
    });
    body.set_result(result.ok()?);
    Some((Nest { body, ..nest.clone() }, matrix))
}

/// The input of which a node takes 4 bits of a byte, and the input that says which, where it does that.
fn half_of(code: &Code, node: &Scalar) -> Option<(usize, usize)> {
    let Scalar::Binary(BinaryOp::And, moved, mask) = node else { return None };
    let Scalar::Binary(BinaryOp::Shr, wide, shift) = code.node(*moved) else { return None };
    let Scalar::Cast(DType::I32, byte) = code.node(*wide) else { return None };
    match (code.node(*byte), code.node(*shift), code.node(*mask)) {
        (Scalar::Load(Source::Input(k), _), Scalar::Load(Source::Input(shifts), _), Scalar::Const(c)) => {
            (code.dtype(*byte) == DType::U8 && c.bits == MASK as u64).then_some((*k, *shifts))
        }
        _ => None,
    }
}

/// The input that says which half of a byte of the `k`-th input is the number, where all that reads it takes halves.
fn shift_of_halves(code: &Code, k: usize) -> Option<usize> {
    let live = code.live();
    let found =
        |(id, node): (Id<Scalar>, &Scalar)| half_of(code, node).filter(|(byte, _)| live[id.index()] && *byte == k);
    let mut all = code.nodes().filter_map(found);
    match (all.next(), all.next()) {
        (Some((_, shifts)), None) => Some(shifts),
        _ => None,
    }
}

fn reads(code: &Code, k: usize) -> bool {
    let live = code.live();
    code.nodes().any(|(id, node)| live[id.index()] && matches!(node, Scalar::Load(Source::Input(n), _) if *n == k))
}

/// The one address at which code reads its `k`-th input.
fn only_address(code: &Code, k: usize) -> Option<&Expr> {
    let live = code.live();
    let mut found = code.nodes().filter_map(|(id, node)| match node {
        Scalar::Load(Source::Input(n), coords) if *n == k && live[id.index()] => Some(coords),
        _ => None,
    });
    match (found.next()?.as_slice(), found.next()) {
        ([Coord::Index(e)], None) => Some(e),
        _ => None,
    }
}

/// Whether a number of a word is what code multiplies.
pub(crate) fn is_of_words(code: &Code, factor: Id<Scalar>) -> bool {
    let mut open = vec![factor];
    while let Some(id) = open.pop() {
        if let Scalar::Binary(BinaryOp::And, moved, mask) = code.node(id)
            && matches!(code.node(*mask), Scalar::Const(c) if c.bits == MASK as u64)
            && let Scalar::Binary(BinaryOp::Shr, word, _) = code.node(*moved)
            && matches!(code.node(*word), Scalar::Load(Source::Input(_), coords) if coords.len() == 1)
        {
            return true;
        }
        open.extend(code.node(id).operands());
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_gives_the_same_words() {
        let (places, columns, low) = (64usize, 3usize, 0);
        let number = |place: usize, column: usize| ((place * place + 5 * column + place / 3) % 16) as u8;
        let by_place = |column: usize| (0..places).map(move |place| number(place, column));
        let bytes = |order: Order| -> Vec<u8> {
            match order {
                Order::ByColumn => (0..places * columns).map(|n| number(n / columns, n % columns)).collect(),
                Order::ByPlace => (0..columns).flat_map(by_place).collect(),
                Order::Halves => (0..columns)
                    .flat_map(|c| by_place(c).collect::<Vec<_>>().chunks(32).map(<[u8]>::to_vec).collect::<Vec<_>>())
                    .flat_map(|run| (0..16).map(move |j| run[j] | run[j + 16] << 4))
                    .collect(),
            }
        };
        let words = |order: Order| {
            let bytes = bytes(order);
            let tensor = Tensor::new(DType::U8, vec![bytes.len()], bytes).expect("bytes");
            let matrix = Matrix { places: places as i64, columns: columns as i64, order, low };
            matrix.words(&tensor).expect("words").bytes().to_vec()
        };
        let want = words(Order::ByColumn);
        let first = u32::from_le_bytes(want[..4].try_into().expect("a word"));
        assert_eq!(first >> 4 & 15, u32::from(number(1, 0)));
        assert_eq!(words(Order::ByPlace), want);
        assert_eq!(words(Order::Halves), want);
    }
}
