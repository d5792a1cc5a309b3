//! Constants of 4 bits that products of few rows read are kept as words of eight of them, for GPUs.
//!
//! Invariant: a product computes what it did before. Every kernel that reads such a constant is a product of fewer rows than a
//! tile of matrix instructions has, which reads every number once; the eight numbers of a word follow one another along the
//! fold and words along the columns, so that a word is read once, by neighbouring lanes, and is eight multiply-adds of one
//! thread. No host step reads it.

use crate::group::{Group, Work};
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
    for (value, readers) in readers.into_iter().filter(|(v, _)| !elsewhere.contains(v)) {
        let Some(low) = graph.constant(value).and_then(lowest) else { continue };
        let made: Option<Vec<(usize, Nest, Matrix)>> = readers
            .iter()
            .map(|&(n, k)| {
                let (nest, matrix) = unpacked(graph, work.get(n)?.kernel()?, k, low)?;
                Some((n, nest, matrix))
            })
            .collect();
        let Some(made) = made else { continue };
        let Some(matrix) = made.first().map(|(.., matrix)| *matrix) else { continue };
        let one_reader_each = made.iter().map(|(n, ..)| n).collect::<HashSet<_>>().len() == made.len();
        if !one_reader_each || made.iter().any(|(.., other)| *other != matrix) {
            continue;
        }
        let Some(words) = graph.constant(value).and_then(|t| matrix.words(t, low)) else { continue };
        graph.replace_constant(value, words);
        for (n, nest, _) in made {
            if let Some(Work::Kernel(group)) = work.get_mut(n) {
                group.stages = vec![nest];
            }
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
    /// Whether neighbours in memory are places of the fold, not columns.
    by_place: bool,
}

impl Matrix {
    /// The constant in words: the numbers of a column that follow one another, the first in the lowest bits.
    fn words(self, tensor: &Tensor, low: i64) -> Option<Tensor> {
        let bytes = tensor.bytes();
        let size = |n: i64| usize::try_from(n).ok();
        let (places, columns, each) = (size(self.places)?, size(self.columns)?, size(EACH)?);
        let (down, across) = if self.by_place { (1, places) } else { (columns, 1) };
        let mut out = Vec::with_capacity(bytes.len() / 2);
        for row in 0..places / each {
            for column in 0..columns {
                let first = row * each * down + column * across;
                let mut word = 0;
                for n in 0..each {
                    let number = bytes.get(first + n * down)?.wrapping_sub(low as u8);
                    word |= u32::from(number) << (BITS as usize * n);
                }
                out.extend(word.to_le_bytes());
            }
        }
        Tensor::new(DType::I32, vec![places / each, columns], out).ok()
    }
}

/// The product that reads its `k`-th input in words, and what matrix that is.
fn unpacked(graph: &Graph, group: &Group, k: usize, low: i64) -> Option<(Nest, Matrix)> {
    let [nest] = group.stages.as_slice() else { return None };
    if !graph.ty(*group.inputs.get(k)?).layout.is_row_major() {
        return None;
    }
    let types: Vec<&TensorType> = group.inputs.iter().map(|v| graph.ty(*v)).collect();
    let flat = FlatNest::new(nest, &types, Some(graph.ty(group.output)), &graph.symbols)?;
    let product = flat.clone().collapse();
    let operands = kernel::operands(&product)?;
    let rows = operands.rows.iter().map(|a| a.known()).try_fold(1i64, |n, e| n.checked_mul(e?))?;
    let [fold] = product.folds.as_slice() else { return None };
    if rows > MOST_ROWS.min(kernel::LEAST_TILE - 1) || !operands.batch.is_empty() || fold.known()? % EACH != 0 {
        return None;
    }
    // Every element, as the matrix or the other way round.
    let address = only_address(&product.body, k)?;
    let [column] = operands.columns.as_slice() else { return None };
    let (places, columns) = (fold.known()?, column.known()?);
    let of = |a: &Axis, stride: i64| Expr::from(&a.symbol).scale(stride);
    let by_place = match () {
        () if *address == of(fold, columns).add(&of(column, 1)) => false,
        () if *address == of(column, places).add(&of(fold, 1)) => true,
        () => return None,
    };
    let all = types.get(k)?.shape()?.iter().product::<usize>();
    if places.checked_mul(columns).and_then(|n| usize::try_from(n).ok()) != Some(all) {
        return None;
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
    let loops = flat.loops();
    let address = only_address(&flat.body, k)?;
    let inner = Expr::from(if by_place { places } else { columns });
    let (outer, inner) = (loops.simplify(&address.floor_div(&inner)), loops.simplify(&address.modulo(&inner)));
    let (place, column) = if by_place { (inner, outer) } else { (outer, inner) };
    let each = Expr::from(EACH);
    let word = [place.floor_div(&each), column].map(|e| Coord::Index(loops.simplify(&e))).to_vec();
    let shift = loops.simplify(&place.modulo(&each).scale(BITS));
    let mut body = Code::new();
    let result = body.inline(&nest.body, &mut |out, node, _| match node {
        Scalar::Load(Source::Input(n), _) if *n == k => {
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
        }
        _ => Ok(None),
    });
    body.set_result(result.ok()?);
    Some((Nest { body, ..nest.clone() }, Matrix { places, columns, by_place }))
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
