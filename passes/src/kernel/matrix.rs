//! Products by a unit for matrices.
//!
//! Invariant: a fold goes there only where its operands lie as the unit reads them: rows at even distances, elements side by side.
//! What the unit sums is finished from local memory by the same code as any other fold.

use super::cuts::{Segment, segments};
use super::emit::{Place, tile_axis};
use super::flat::{Axis, FlatNest, Stride, stride};
use super::forms::is_dot_sum;
use super::gpu::product;
use super::parts::{counted, load, loaded};
use super::{Builder, COLUMN, LINE, ROW, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::scalar::{BinaryOp, Scalar};
use kiln_ir::tile::{Ahead, Factors, For, Multiply, Part, Stmt};
use kiln_ir::vector::Product;

/// Rows and columns of the sums that all registers hold together: two by two of them, and as many rows and columns of operands.
pub(super) const BLOCK: i64 = 32;

/// Rows of a register, and elements of a row.
const REGISTER: i64 = 16;

/// Most steps of a stretch: what it reads of a panel of weights and of a block of rows, 2 KiB a step each, stays in the first cache.
const MOST_STEPS: i64 = 8;

/// Most blocks of rows whose sums, 4 KiB each, wait for the next stretch.
const MOST_BLOCKS: i64 = 8;

/// Bytes of rows that stay in the second cache while panels of weights go by.
const NEAR_ROWS: i64 = 1 << 20;

/// Fewer bytes of weights stay in a near cache.
const ASKED_FROM: i64 = 1 << 18;

/// Fewer rows than this are left to dot products of vectors, which then read as much and do no more.
pub(super) const FEWEST_ROWS: i64 = 4;

/// A fold that the unit can sum.
pub(super) struct Unit {
    product: Product,
    /// Input and address of the operand that rows walk along, and of that of the columns.
    left: (usize, Expr),
    right: (usize, Expr),
    /// Elements of the innermost fold that one step takes.
    depth: i64,
    /// An axis, with its extent, whose elements are programs that all read the same weights: each asks for its share of what the next panel's read.
    sharing: Option<(Symbol, i64)>,
}

impl Unit {
    /// Nothing where the fold is of another form.
    pub(super) fn of(nest: &FlatNest, row: &Axis, column: &Axis) -> Option<Unit> {
        if !is_dot_sum(nest) {
            return None;
        }
        let Scalar::Binary(op, a, b) = nest.body.node(nest.body.result()) else { return None };
        let (first, second) = (load(&nest.body, *a, DType::I32)?, load(&nest.body, *b, DType::I32)?);
        let walks = |o: &(usize, Expr), axis: &Axis| stride(&o.1, &axis.symbol) != Stride::Known(0);
        let only = |o: &(usize, Expr), along: &Axis, not: &Axis| walks(o, along) && !walks(o, not);
        let (left, right, swapped) = if only(&first, row, column) && only(&second, column, row) {
            (first, second, false)
        } else if only(&second, row, column) && only(&first, column, row) {
            (second, first, true)
        } else {
            return None;
        };
        let product = match (op, swapped) {
            (BinaryOp::Dot2, _) => Product::Pairs,
            (_, false) => Product::UnsignedSigned,
            (_, true) => Product::SignedUnsigned,
        };
        let extent = nest.folds.last()?.known()?;
        let depth = (1..=REGISTER.min(extent)).rev().find(|d| extent % d == 0)?;
        // Odd extents would take as many steps as elements.
        let full = depth * 2 >= REGISTER || depth == extent && depth >= least_depth(*op);
        // Of the axes that programs have one place of, the last one changes from program to program.
        let other = |a: &&Axis| a.symbol != row.symbol && a.symbol != column.symbol && !a.is_single();
        let last = nest.axes.iter().rfind(other).filter(|a| !walks(&right, a));
        let sharing = last.and_then(|axis| Some((axis.symbol.clone(), axis.known()?)));
        (full && nest.guess(row) >= FEWEST_ROWS).then_some(Unit { product, left, right, depth, sharing })
    }
}

/// Fewer elements of a fold, where it has no more, are left to vectors. A step takes as long with few as with 16: with 3 it still does three times what
/// vectors of pairs do, but no more than those of bytes.
fn least_depth(product: BinaryOp) -> i64 {
    if product == BinaryOp::Dot2 { 3 } else { 4 }
}

/// The same sum, with the fold innermost along which the activations lie side by side: of a picture whose channels are planes that is along
/// the row, not the channels. Nothing where it is so already, or there is none that is long enough.
pub(super) fn deepest_last(nest: &FlatNest, column: &Axis) -> Option<FlatNest> {
    let last = nest.folds.len().checked_sub(1).filter(|_| is_dot_sum(nest))?;
    let Scalar::Binary(op, a, b) = nest.body.node(nest.body.result()) else { return None };
    let mut operands = [*a, *b].into_iter().filter_map(|id| load(&nest.body, id, DType::I32));
    let (_, left) = operands.find(|(_, at)| stride(at, &column.symbol) == Stride::Known(0))?;
    let beside = |fold: &Axis| stride(&left, &fold.symbol) == Stride::Known(1);
    let long = |fold: &Axis| fold.known().is_some_and(|n| n >= least_depth(*op));
    let at = nest.folds[..last].iter().rposition(|fold| beside(fold) && long(fold))?;
    if beside(&nest.folds[last]) {
        return None;
    }
    let mut nest = nest.clone();
    nest.folds.swap(at, last);
    Some(nest)
}

/// A run of an axis in registers.
pub(super) fn registers(extent: i64) -> Vec<usize> {
    (0..extent).step_by(REGISTER as usize).map(|at| (extent - at).min(REGISTER) as usize).collect()
}

/// How the folds of a product are walked: in stretches, all blocks of rows along one before the next one.
struct Stretches {
    /// How many folds, the outermost ones, a stretch has one place of.
    outside: usize,
    /// How far it goes along the next one.
    length: i64,
    /// How many there are in all; only the last may be shorter.
    count: i64,
}

impl Stretches {
    /// Of as many steps as what a panel of weights and a block of rows have there stays in the first cache.
    fn of(nest: &FlatNest, unit: &Unit) -> Option<Stretches> {
        let last = nest.folds.len().checked_sub(1)?;
        let mut steps = 1;
        for (n, fold) in nest.folds.iter().enumerate().rev() {
            let (extent, step) = (fold.known()?, if n == last { unit.depth } else { 1 });
            let of_fold = extent / step;
            if steps * of_fold <= MOST_STEPS && n > 0 {
                steps *= of_fold;
                continue;
            }
            let outside = product(&nest.folds[..n]).as_const()?;
            let most = (MOST_STEPS / steps).max(1);
            // Those that another fold is around are equal.
            let even = (1..=most.min(of_fold)).rev().find(|l| of_fold % l == 0)?;
            let parts = (of_fold + most - 1) / most;
            let length = if outside == 1 { (of_fold + parts - 1) / parts } else { even };
            let count = outside.checked_mul((of_fold + length - 1) / length)?;
            return Some(Stretches { outside: n, length: length * step, count });
        }
        None
    }

    /// Where the outer folds are, and the beginning along the next one, in a stretch of a number. How far it goes.
    fn enter(&self, nest: &FlatNest, place: &mut Place, number: &Expr) -> Option<(Expr, Expr)> {
        let cut = nest.folds.get(self.outside)?;
        let extent = cut.known()?;
        let parts = (extent + self.length - 1) / self.length;
        let mut rest = number.floor_div(&Expr::from(parts)).simplify(&place.ranges);
        for fold in nest.folds[..self.outside].iter().rev() {
            let at = rest.modulo(&fold.extent).simplify(&place.ranges);
            place.at.insert(fold.symbol.clone(), at);
            rest = rest.floor_div(&fold.extent).simplify(&place.ranges);
        }
        let first = number.modulo(&Expr::from(parts)).scale(self.length).simplify(&place.ranges);
        let length = first.as_const().map_or(self.length, |first| self.length.min(extent - first));
        Some((first, Expr::from(length)))
    }
}

/// Where sums of a product are, and how they come there.
struct Sums {
    /// How many folds, the outermost ones, have one place.
    outside: usize,
    /// Where the sums begin along the next one, and how far they go.
    walked: (Expr, Expr),
    out: (usize, Expr),
    adds: bool,
    /// The block's number of so many that walk along the stretch, where these ask for the next one.
    asks: Option<(Expr, i64)>,
}

/// An axis and how many of its elements a block has.
type Cut<'a> = (&'a Symbol, i64);

impl Builder<'_> {
    /// Fold, finish and store of a block of rows and columns by the unit; false, and nothing done, where its operands do not lie
    /// as they must. `place` already knows where the block is.
    pub(super) fn multiplied(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        unit: &Unit,
        place: &Place,
        (row, column): (&(Symbol, Segment), &(Symbol, Segment)),
    ) -> Option<bool> {
        let (row, column) = ((&row.0, row.1.block), (&column.0, column.1.block));
        if !fits(row.1, column.1) {
            return Some(false);
        }
        let out = self.local(nest.body.result_type(), (BLOCK * BLOCK) as usize);
        let (walked, out) = ((Expr::default(), nest.folds.first()?.extent.clone()), (out, Expr::default()));
        let asks = unit.sharing.as_ref().map(|(axis, extent)| (Expr::from(axis), *extent));
        let sums = Sums { outside: 0, walked, out: out.clone(), adds: false, asks };
        let Some(product) = self.product(nest, unit, place, (row, column), &sums)? else { return Some(false) };
        body.push(product);
        self.finish_sums(body, nest, place, (row, column), (&out, column.1))?;
        Some(true)
    }

    /// The same of a run of blocks of rows, all of which walk along a stretch of the folds before the next one: what the stretch has of the
    /// weights is read from the first cache by all but the first of them, which ask for what comes next meanwhile. `place` knows no row.
    pub(super) fn in_stretches(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        unit: &Unit,
        place: &Place,
        (row, column): (&(Symbol, Segment), &(Symbol, Segment)),
    ) -> Option<bool> {
        let (rows, columns) = ((&row.0, row.1.block), (&column.0, column.1.block));
        let plain = row.1.parts == 1 && row.1.last.is_none() && row.1.end.is_none() && fits(rows.1, columns.1);
        let Some(blocks) = row.1.count.as_const().filter(|&blocks| plain && blocks > 1) else { return Some(false) };
        let Some(stretches) = Stretches::of(nest, unit) else { return Some(false) };
        let size = (blocks + MOST_BLOCKS - 1) / MOST_BLOCKS;
        let size = (blocks + size - 1) / size;
        // Sums that wait for no other stretch make room for the next block's.
        let waiting = if stretches.count > 1 { rows.1 * columns.1 } else { 0 };
        let out = self.local(nest.body.result_type(), (BLOCK * BLOCK).max(size * waiting) as usize);
        let mut place = place.clone();
        place.at.insert(column.0.clone(), column.1.first(&column.0));
        // Only the first group waits for memory.
        let first = Segment::new(0, size, 1);
        let others = segments(&Expr::from(blocks - size), size, 1, &nest.dims).into_iter();
        let others = others.map(|s| Segment { lo: s.lo.add(&Expr::from(size)), ..s });
        let mut done = Vec::new();
        for group in std::iter::once(first).chain(others.filter(|_| blocks > size)) {
            let mut place = place.clone();
            let number = self.symbol("g");
            place.enter(&number, &group.count);
            let begin =
                if group.is_single() { group.lo.clone() } else { group.lo.add(&Expr::from(&number).scale(size)) };
            let asks = group.lo.as_const() == Some(0);
            let mut of_group = Vec::new();
            let runs = [(0, 1), (1, stretches.count - 1), ((stretches.count - 1).max(1), stretches.count)];
            for (lo, hi) in runs.into_iter().filter(|(lo, hi)| lo < hi) {
                let mut place = place.clone();
                let (stretch, block) = (self.symbol("s"), self.symbol("b"));
                place.ranges.insert(stretch.clone(), (lo, hi - 1));
                let number = if hi - lo == 1 { Expr::from(lo) } else { Expr::from(&stretch) };
                let walked = stretches.enter(nest, &mut place, &number)?;
                place.enter(&block, &Expr::from(group.block));
                let at = begin.add(&Expr::from(&block)).scale(rows.1);
                place.at.insert(row.0.clone(), row.1.lo.add(&at));
                let out = (out, Expr::from(&block).scale(waiting));
                let asks = asks.then(|| (Expr::from(&block), group.block));
                let sums = Sums { outside: stretches.outside, walked, out: out.clone(), adds: lo > 0, asks };
                let Some(product) = self.product(nest, unit, &place, (rows, columns), &sums)? else {
                    return Some(false);
                };
                let mut of_block = vec![product];
                if hi == stretches.count {
                    self.finish_sums(&mut of_block, nest, &place, (rows, columns), (&out, columns.1))?;
                }
                let of_blocks = counted(block, group.block, 1, of_block);
                of_group.push(match hi - lo {
                    1 => of_blocks,
                    _ => {
                        let (lo, hi) = (Expr::from(lo), Expr::from(hi));
                        Stmt::For(For { var: stretch, lo, hi, step: 1, carried: vec![], body: vec![of_blocks] })
                    }
                });
            }
            match group.is_single() {
                true => done.extend(of_group),
                false => done.push(Stmt::For(For {
                    var: number,
                    lo: Expr::default(),
                    hi: group.count,
                    step: 1,
                    carried: vec![],
                    body: of_group,
                })),
            }
        }
        body.extend(done);
        Some(true)
    }

    /// The same where groups of blocks of rows are programs; false, and nothing done, where there is no group or they lie otherwise. If `far`, only
    /// where the second cache does not hold what the rows have: groups that it holds, each of which meets all panels before the next one.
    pub(super) fn groups_of_blocks(
        &mut self,
        nest: &FlatNest,
        unit: &Unit,
        [across, others]: [&[(Symbol, Expr)]; 2],
        (row, column): (&(Symbol, Segment), &(Symbol, Segment)),
        far: bool,
    ) -> Option<bool> {
        let Some(blocks) = row.1.count.as_const().filter(|_| row.1.parts == 1) else { return Some(false) };
        let size = if far {
            let of_block = row.1.block.saturating_mul(product(&nest.folds).as_const()?).saturating_mul(4).max(1);
            let most = (NEAR_ROWS / of_block).max(MOST_BLOCKS);
            if blocks <= most + most / 4 {
                return Some(false);
            }
            let groups = (blocks + most - 1) / most;
            (blocks + groups - 1) / groups
        } else {
            MOST_BLOCKS.min((blocks + 1) / 2)
        };
        let mut parts = Vec::new();
        for group in segments(&Expr::from(blocks), size, 1, &nest.dims) {
            let number = self.symbol("g");
            let several = (!group.is_single()).then(|| (number.clone(), group.count.clone()));
            let panels = across.iter().chain(others).cloned();
            let grid: Vec<_> =
                if far { several.into_iter().chain(panels).collect() } else { panels.chain(several).collect() };
            let first = group.lo.add(&Expr::from(&number).scale(group.block));
            let first = if group.is_single() { group.lo } else { first };
            let rows = Segment {
                lo: row.1.lo.add(&first.scale(row.1.block)),
                count: Expr::from(group.block),
                ..row.1.clone()
            };
            let place = self.within(nest, &grid);
            let mut body = Vec::new();
            if !self.in_stretches(&mut body, nest, unit, &place, (&(row.0.clone(), rows), column))? {
                return Some(false);
            }
            parts.push(Part { grid, body });
        }
        self.program.parts.extend(parts);
        Some(true)
    }

    /// The sums of a block along a stretch; nothing where the operands do not lie as the unit reads them.
    fn product(
        &mut self,
        nest: &FlatNest,
        unit: &Unit,
        place: &Place,
        (row, column): (Cut<'_>, Cut<'_>),
        sums: &Sums,
    ) -> Option<Option<Stmt>> {
        let mut summed = place.clone();
        let mut folds = Vec::new();
        let last = nest.folds.len().checked_sub(1)?;
        for (n, fold) in nest.folds.iter().enumerate().skip(sums.outside) {
            let (variable, step) = (self.symbol("k"), if n == last { unit.depth } else { 1 });
            let (first, extent) = match n == sums.outside {
                true => sums.walked.clone(),
                false => (Expr::default(), fold.extent.clone()),
            };
            summed.enter(&variable, &extent.sub(&Expr::from(step - 1)));
            summed.at.insert(fold.symbol.clone(), first.add(&Expr::from(&variable)));
            folds.push((variable, extent, step));
        }
        let inner = &nest.folds.get(last)?.symbol;
        let operand = |(input, address): &(usize, Expr), (axis, extent): Cut<'_>, along: usize| {
            let mut place = summed.clone();
            place.ranges.insert(tile_axis(along), (0, extent - 1));
            place.ranges.insert(tile_axis(1 - along), (0, unit.depth - 1));
            for (symbol, axis) in [(axis, tile_axis(along)), (inner, tile_axis(1 - along))] {
                let at = place.at.get(symbol)?.add(&Expr::from(axis));
                place.at.insert(symbol.clone(), at);
            }
            let e = place.expr(address);
            let steps = [e.coefficient(&tile_axis(0)), e.coefficient(&tile_axis(1))];
            let even = steps[0].is_some_and(|s| i32::try_from(s.saturating_mul(4)).is_ok()) && steps[1] == Some(1);
            even.then_some((*self.buffers.get(*input)?, e))
        };
        let (Some(left), Some(right)) = (operand(&unit.left, row, 0), operand(&unit.right, column, 1)) else {
            return Some(None);
        };
        let ahead = sums
            .asks
            .as_ref()
            .and_then(|(block, blocks)| self.next_stretch(&right, &folds, column.1, (block, *blocks)));
        Some(Some(Stmt::Multiply(Multiply {
            out: sums.out.clone(),
            adds: sums.adds,
            rows: registers(row.1),
            columns: registers(column.1),
            product: unit.product,
            depth: unit.depth as usize,
            rounds: vec![vec![Factors { left, right }]],
            folds,
            ahead,
        })))
    }

    /// What the steps of a block ask for of the next stretch of a panel of weights, each of the blocks for an equal share of it. Nothing
    /// where the panel is no single run of memory, or is near anyway.
    fn next_stretch(
        &self,
        (buffer, address): &(usize, Expr),
        folds: &[(Symbol, Expr, i64)],
        columns: i64,
        (block, blocks): (&Expr, i64),
    ) -> Option<Ahead> {
        let weights = self.program.buffers.get(*buffer)?;
        let far = weights.len.as_const()?.saturating_mul(4) >= ASKED_FROM && !weights.local && !weights.written;
        if !far || address.coefficient(&tile_axis(0)) != Some(columns) {
            return None;
        }
        let mut first = address.replace(&tile_axis(0), &Expr::default()).replace(&tile_axis(1), &Expr::default());
        let (mut run, mut steps) = (columns, 1);
        let mut numbers = Vec::new();
        for (variable, extent, step) in folds.iter().rev() {
            let length = extent.as_const()?;
            if length > *step && address.coefficient(variable) != Some(run) {
                return None;
            }
            first = first.replace(variable, &Expr::default());
            numbers.push((variable, steps, *step));
            (run, steps) = (run.checked_mul(length)?, steps * (length / step));
        }
        let lines = (run / LINE + blocks * steps - 1) / (blocks * steps);
        let mut from = first.add(&Expr::from(run)).add(&block.scale(steps * lines * LINE));
        for (variable, steps, step) in numbers {
            // How many elements of lines one element of the fold is.
            let each = steps * lines * LINE;
            from = from.add(&Expr::from(variable).scale((each % step == 0).then_some(each / step)?));
        }
        Some(Ahead { from: (*buffer, from), lines: lines as usize })
    }

    /// Finish and store of a block's sums, which are in the nearest cache now, rows `width` apart.
    pub(super) fn finish_sums(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        place: &Place,
        ((row, rows), (column, columns)): (Cut<'_>, Cut<'_>),
        ((out, first), width): (&(usize, Expr), i64),
    ) -> Option<()> {
        let dtype = nest.body.result_type();
        let few = self.machine.pointwise_vectors(nest) * self.machine.lanes as i64;
        for s in segments(&Expr::from(rows), (few / columns).max(1), 1, &nest.dims) {
            let mut place = place.clone();
            place.shape = single();
            let mut within = s.lo.clone();
            let variable = (!s.is_single()).then(|| self.symbol("r"));
            if let Some(variable) = &variable {
                place.ranges.insert(variable.clone(), (0, s.count.scale(s.block).as_const()? - s.block));
                within = within.add(&Expr::from(variable));
            }
            for (n, symbol, extent, base) in [(ROW, row, s.block, &within), (COLUMN, column, columns, &Expr::default())]
            {
                place.shape[n] = extent as usize;
                place.ranges.insert(tile_axis(n), (0, extent - 1));
                let at = place.at.get(symbol)?.add(base).add(&Expr::from(tile_axis(n)));
                place.at.insert(symbol.clone(), at);
            }
            let element = within.add(&Expr::from(tile_axis(ROW))).scale(width).add(&Expr::from(tile_axis(COLUMN)));
            let mut inner = Vec::new();
            let sum = loaded(*out, first.add(&element), dtype);
            let value = self.emitter(&[]).define(&mut inner, dtype, place.shape.clone(), sum);
            let value = self.finished(&mut inner, nest, &place, value, &[])?;
            self.store(&mut inner, nest, &place, value);
            match variable {
                None => body.extend(inner),
                Some(var) => {
                    let (lo, hi) = (Expr::default(), s.count.scale(s.block));
                    body.push(Stmt::For(For { var, lo, hi, step: s.block, carried: vec![], body: inner }));
                }
            }
        }
        Some(())
    }
}

/// Whether a block of so many rows and columns is one for the unit.
fn fits(rows: i64, columns: i64) -> bool {
    (FEWEST_ROWS..=BLOCK).contains(&rows) && columns <= BLOCK
}
