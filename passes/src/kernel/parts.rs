//! Products of f32 by the unit for matrices, as sums of products of bf16: each factor is the sum of three of them.
//!
//! Invariant: a program multiplies parts only of activations that have such parts, and looks at each of them while it makes them. Where
//! one has none (it is infinite, no number, too large or too small) the program computes its block of the result by multiply-adds of
//! f32, from weights that are the exact sums of their parts.

use super::cuts::{Segment, row_segments, segments};
use super::emit::{Place, tile_axis};
use super::flat::{Axis, FlatNest, Stride, stride};
use super::matrix::{BLOCK, registers};
use super::schedule::{Machine, Schedule};
use super::{Builder, COLUMN, ROW, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Scalar, Source, UnaryOp};
use kiln_ir::semantics::{LEAST_IN_PARTS, MOST_IN_PARTS};
use kiln_ir::tile::{Buffer, Carried, Factors, For, If, Multiply, Part, Stmt, TileId, TileOp};
use kiln_ir::vector::Product;

/// How many products of parts stand for a product of f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terms {
    /// All but those that are up to 2^-16 of the product: each part is up to 2^-8 of the one before.
    Three,
    /// All but those that are up to 2^-24 of the product.
    Six,
}

impl Terms {
    /// All of them.
    pub const ALL: [Terms; 2] = [Terms::Three, Terms::Six];

    /// How many there are.
    pub fn count(self) -> usize {
        match self {
            Terms::Three => 3,
            Terms::Six => 6,
        }
    }

    /// What a kernel that multiplies so ends with, where a plan says what it does.
    pub fn mark(self) -> &'static str {
        match self {
            Terms::Three => " of 3 bf16 products",
            Terms::Six => " of 6 bf16 products",
        }
    }

    /// The most that is left out of a product, relative to it; sums round as f32's.
    pub fn left_out(self) -> f64 {
        match self {
            Terms::Three => 3.0 / f64::from(1 << 16),
            Terms::Six => 2.1 / f64::from(1 << 24),
        }
    }

    /// The parts of the left and of the right factor, the small products in a walk of their own before the large one. Neighbours
    /// share a part, which stays in its registers.
    fn rounds(self) -> [&'static [(i64, i64)]; 2] {
        match self {
            Terms::Three => [&[(1, 0), (0, 1)], &[(0, 0)]],
            Terms::Six => [&[(2, 0), (1, 0), (1, 1), (0, 1), (0, 2)], &[(0, 0)]],
        }
    }
}

/// Rows of a program's block: its parts and sums stay in the second cache.
const ROWS: i64 = 64;
/// Most panels of [`BLOCK`] columns of a program's block, which share the parts of its rows.
const PANELS: i64 = 12;
/// Most places of a fold whose products are summed in registers, before they are added to the sums in memory.
const STRETCH: i64 = 192;

/// Fewer columns, places of a fold, rows that one weight serves or rows that lie evenly are left to multiply-adds: making parts takes
/// as long as multiplying some 40 columns, a weight of 6 bytes takes as long to read as its products with some 30 rows are
/// faster, and a register has 16 rows.
const LEAST_COLUMNS: i64 = 64;
const LEAST_PLACES: i64 = 64;
const LEAST_ROWS: i64 = 64;
const LEAST_RUN: i64 = 16;

/// How the innermost fold of a product with a constant may be cut: in steps of two runs of so many places.
pub(crate) fn run_of(places: i64) -> Option<i64> {
    (8..=16).rev().find(|d| places % (2 * d) == 0)
}

/// The input that would be kept in parts: the right operand of a product that pays. `flat` has its loops joined.
pub(crate) fn worthwhile(flat: &FlatNest) -> Option<usize> {
    let Scalar::Binary(BinaryOp::Mul, a, b) = flat.body.node(flat.body.result()) else { return None };
    let (a, b) = (load(&flat.body, *a, DType::F32)?, load(&flat.body, *b, DType::F32)?);
    let column = flat.axes.iter().find(|a| stride(&flat.store, &a.symbol) == Stride::Known(1))?;
    let walks = |o: &(usize, Expr), axis: &Axis| stride(&o.1, &axis.symbol) != Stride::Known(0);
    let (left, right) = if walks(&b, column) && !walks(&a, column) { (a, b) } else { (b, a) };
    if walks(&left, column) || flat.combine != BinaryOp::Add {
        return None;
    }
    let rows = || flat.axes.iter().filter(|a| a.symbol != column.symbol && !walks(&right, a));
    let row = rows().max_by_key(|a| flat.guess(a))?;
    let inner = flat.folds.last()?;
    let product = |axes: &[&Axis]| axes.iter().try_fold(1i64, |n, a| n.checked_mul(a.known()?));
    let (folds, served): (Vec<&Axis>, Vec<&Axis>) = (flat.folds.iter().collect(), rows().collect());
    let pays = column.known()? >= LEAST_COLUMNS
        && product(&folds)? >= LEAST_PLACES
        && product(&served)? >= LEAST_ROWS
        && row.known()? >= LEAST_RUN
        && flat.axes.iter().all(|a| a.known().is_some());
    (pays && stride(&left.1, &inner.symbol) == Stride::Known(1)).then_some(right.0)
}

/// The input and the address that a node loads.
pub(super) fn load(code: &Code, id: Id<Scalar>, dtype: DType) -> Option<(usize, Expr)> {
    match code.node(id) {
        Scalar::Load(Source::Input(n), coords) if code.dtype(id) == dtype => match coords.as_slice() {
            [Coord::Index(address)] => Some((*n, address.clone())),
            _ => None,
        },
        _ => None,
    }
}

/// The other factor and the words of three parts, where the code is a product of a number with one in parts.
fn factors(code: &Code) -> Option<(Id<Scalar>, [Id<Scalar>; 3])> {
    let Scalar::Binary(BinaryOp::Mul, a, b) = code.node(code.result()) else { return None };
    let part = |id: Id<Scalar>| match code.node(id) {
        Scalar::Binary(BinaryOp::Dot2, pairs, _) => Some(*pairs),
        _ => None,
    };
    let parts = |id: Id<Scalar>| {
        let Scalar::Binary(BinaryOp::Add, first, third) = code.node(id) else { return None };
        let Scalar::Binary(BinaryOp::Add, first, second) = code.node(*first) else { return None };
        Some([part(*first)?, part(*second)?, part(*third)?])
    };
    parts(*b).map(|parts| (*a, parts)).or_else(|| Some((*b, parts(*a)?)))
}

/// Whether the code multiplies with a number in parts.
pub(crate) fn reads_parts(code: &Code) -> bool {
    factors(code).is_some()
}

/// A product whose right operand is kept in parts.
pub(super) struct Parts {
    terms: Terms,
    /// Input and address of an activation.
    left: (usize, Expr),
    /// Input, and the address of each of a weight's parts.
    right: (usize, [Expr; 3]),
    /// Places of a run; those of two runs are pairs.
    run: i64,
    /// The folds around a step of two runs, outermost first; the last one is walked in stretches.
    outer: Vec<Axis>,
    /// The folds over the two runs and within one.
    inner: [Axis; 2],
}

impl Parts {
    /// Nothing where the nest is of another form.
    pub(super) fn of(nest: &FlatNest, machine: &Machine, row: &Axis, column: &Axis) -> Option<Parts> {
        let terms = machine.terms.filter(|_| machine.matrices)?;
        let code = &nest.body;
        let (left, [first, second, third]) = factors(code)?;
        let left = load(code, left, DType::F32)?;
        let part = |id| load(code, id, DType::I32);
        let right = [part(first)?, part(second)?, part(third)?];
        let input = right[0].0;
        if nest.combine != BinaryOp::Add || right.iter().any(|(n, _)| *n != input) {
            return None;
        }
        let [outer @ .., two, within] = nest.folds.as_slice() else { return None };
        let run = within.known()?;
        let right = (input, right.map(|(_, address)| address));
        let walks = |e: &Expr, axis: &Axis| stride(e, &axis.symbol) != Stride::Known(0);
        let placed = two.known() == Some(2)
            && (1..=BLOCK / 2).contains(&run)
            && walks(&left.1, row)
            && !walks(&left.1, column)
            && right.1.iter().all(|e| !walks(e, row) && walks(e, column) && !walks(e, two))
            && stride(&left.1, &within.symbol) == Stride::Known(1);
        let known = outer.iter().chain([row, column]).all(|a| a.known().is_some());
        let inner = [two.clone(), within.clone()];
        (placed && known).then(|| Parts { terms, left, right, run, outer: outer.to_vec(), inner })
    }
}

/// Where a program's block is.
struct Block<'a> {
    nest: &'a FlatNest,
    parts: &'a Parts,
    schedule: &'a Schedule,
    row: (&'a Symbol, Expr, i64),
    /// The first column and the number of panels.
    column: (&'a Symbol, Expr, i64),
    /// Local memory: parts of activations, sums of a step of the unit, all sums, the least and the greatest activation.
    pairs: usize,
    sums: usize,
    totals: usize,
    extremes: usize,
    /// Steps of a stretch.
    steps: i64,
}

impl Block<'_> {
    /// The address of a pair of a part of an activation, of a block's row and a stretch's step.
    fn pair(&self, part: i64, row: &Expr, step: &Expr, within: &Expr) -> Expr {
        let width = self.steps * self.parts.run;
        let row = row.scale(width).add(&Expr::from(part * self.row.2 * width));
        row.add(&step.scale(self.parts.run)).add(within)
    }

    /// The address of a sum of the block.
    fn total(&self, row: &Expr, panel: &Expr) -> Expr {
        row.scale(self.column.2 * BLOCK).add(&panel.scale(BLOCK)).add(&Expr::from(tile_axis(COLUMN)))
    }
}

pub(super) fn loaded(buffer: usize, address: Expr, dtype: DType) -> TileOp {
    TileOp::Load { buffer, address, gathered: vec![], mask: vec![], other: Constant::int(dtype, 0) }
}

pub(super) fn stored(buffer: usize, address: Expr, value: TileId) -> Stmt {
    Stmt::Store { buffer, address, gathered: vec![], mask: vec![], value }
}

pub(super) fn counted(var: Symbol, count: i64, step: i64, body: Vec<Stmt>) -> Stmt {
    Stmt::For(For { var, lo: Expr::default(), hi: Expr::from(count), step, carried: vec![], body })
}

impl Builder<'_> {
    /// Local memory of a name.
    pub(super) fn named(&mut self, name: &str, dtype: DType, elements: i64) -> usize {
        let elements = usize::try_from(elements).unwrap_or(usize::MAX);
        let buffers = &mut self.program.buffers;
        if let Some(n) = buffers.iter().position(|b| b.local && b.name == name) {
            let len = buffers[n].len.as_size().unwrap_or(0).max(elements);
            buffers[n].len = Expr::from(len);
            return n;
        }
        buffers.push(Buffer { name: name.into(), dtype, len: Expr::from(elements), written: true, local: true });
        buffers.len() - 1
    }

    /// The parts of the program that compute a run of whole panels of columns.
    pub(super) fn in_parts(
        &mut self,
        nest: &FlatNest,
        (parts, schedule): (&Parts, &Schedule),
        others: &[Axis],
        row: &Axis,
        (column, run): (&Symbol, &Segment),
    ) -> Option<()> {
        let panels = run.count.as_const().filter(|_| run.parts == 1 && run.block == BLOCK)?;
        let programs = (panels + PANELS - 1) / PANELS;
        let width = (panels + programs - 1) / programs;
        // As many rows in each program, in whole registers, two by two.
        let extent = row.known()?;
        let blocks = (extent + ROWS - 1) / ROWS;
        let height = (((extent + blocks - 1) / blocks) as u64).next_multiple_of(BLOCK as u64) as i64;
        for across in segments(&Expr::from(panels), width, 1, &nest.dims) {
            for down in segments(&row.extent, height, 1, &nest.dims) {
                // Blocks of rows have a variable of their own: the block by multiply-adds numbers those within it.
                let (panel, part) = (self.symbol("p"), self.symbol("p"));
                let mut grid: Vec<(Symbol, Expr)> = Vec::new();
                let blocks =
                    |s: &Segment, variable: &Symbol| (!s.is_single()).then(|| (variable.clone(), s.count.clone()));
                grid.extend(blocks(&across, &panel));
                grid.extend(others.iter().map(|a| (a.symbol.clone(), a.extent.clone())));
                grid.extend(blocks(&down, &part));
                let place = self.within(nest, &grid);
                let first = |s: &Segment, variable: &Symbol| match s.is_single() {
                    true => s.lo.clone(),
                    false => s.lo.add(&Expr::from(variable).scale(s.block)),
                };
                let column_at = run.lo.add(&first(&across, &panel).scale(BLOCK));
                let block = (first(&down, &part), down.block);
                let body = self.block_in_parts(
                    nest,
                    (parts, schedule),
                    &place,
                    (&row.symbol, block.0, block.1),
                    (column, column_at, across.block),
                )?;
                self.program.parts.push(Part { grid, body });
            }
        }
        Some(())
    }

    fn block_in_parts(
        &mut self,
        nest: &FlatNest,
        (parts, schedule): (&Parts, &Schedule),
        place: &Place,
        row: (&Symbol, Expr, i64),
        column: (&Symbol, Expr, i64),
    ) -> Option<Vec<Stmt>> {
        let walked = parts.outer.last().map_or(Some(1), Axis::known)?;
        let most = (STRETCH / (2 * parts.run)).max(1);
        let stretches = (walked + most - 1) / most;
        let steps = (walked + stretches - 1) / stretches;
        let (rows, columns) = (row.2, column.2 * BLOCK);
        let pairs = self.named("pairs", DType::I32, 3 * rows * steps * parts.run);
        let sums = self.named("products", DType::F32, BLOCK * BLOCK);
        let totals = self.named("totals", DType::F32, rows * columns);
        let extremes = self.named("extremes", DType::F32, 2 * parts.run);
        let block = Block { nest, parts, schedule, row, column, pairs, sums, totals, extremes, steps };
        let mut body = Vec::new();
        self.cleared(&mut body, &block);
        // Loops over the outer folds, the last of them in stretches.
        let mut stretched = vec![(0, steps, walked / steps)];
        stretched.extend((walked % steps > 0).then_some((walked - walked % steps, walked % steps, 1)));
        let mut inner = Vec::new();
        let mut around = place.clone();
        let mut loops = Vec::new();
        if let Some((_, outside)) = parts.outer.split_last() {
            for fold in outside {
                let variable = self.symbol("k");
                around.enter(&variable, &fold.extent);
                around.at.insert(fold.symbol.clone(), Expr::from(&variable));
                loops.push((variable, fold.known()?));
            }
        }
        for (first, steps, count) in stretched {
            let variable = self.symbol("k");
            let mut place = around.clone();
            place.enter(&variable, &Expr::from((count - 1) * steps + 1));
            let base = Expr::from(&variable).add(&Expr::from(first));
            let mut stretch = Vec::new();
            self.parted(&mut stretch, &block, &place, (&base, steps))?;
            self.summed_parts(&mut stretch, &block, &place, (&base, steps))?;
            inner.push(counted(variable, count * steps, steps, stretch));
        }
        for (variable, extent) in loops.into_iter().rev() {
            inner = vec![counted(variable, extent, 1, inner)];
        }
        body.extend(inner);
        let condition = self.all_have_parts(&mut body, &block);
        let then = self.finished_totals(&block, place)?;
        let otherwise = self.multiplied_whole(&block, place)?;
        body.push(Stmt::If(If { condition, then, otherwise }));
        Some(body)
    }

    /// Sums of nothing, and the extremes of no activations.
    fn cleared(&mut self, body: &mut Vec<Stmt>, block: &Block<'_>) {
        let (row, panel) = (self.symbol("r"), self.symbol("c"));
        let mut e = self.emitter(&[]);
        for (n, value) in [0.0, 1.0].into_iter().enumerate() {
            let shape = vec![1, block.parts.run as usize, 1];
            let value = e.define(body, DType::F32, shape, TileOp::Const(Constant::float(DType::F32, value)));
            let address = Expr::from(tile_axis(COLUMN)).add(&Expr::from(n as i64 * block.parts.run));
            body.push(stored(block.extremes, address, value));
        }
        let mut inner = Vec::new();
        let shape = vec![1, BLOCK as usize, 1];
        let zero = e.define(&mut inner, DType::F32, shape, TileOp::Const(Constant::float(DType::F32, 0.0)));
        inner.push(stored(block.totals, block.total(&Expr::from(&row), &Expr::from(&panel)), zero));
        body.push(counted(row, block.row.2, 1, vec![counted(panel, block.column.2, 1, inner)]));
    }

    /// The parts of the activations of a stretch, which begins at a place of the last outer fold.
    fn parted(
        &mut self,
        body: &mut Vec<Stmt>,
        block: &Block<'_>,
        place: &Place,
        (base, steps): (&Expr, i64),
    ) -> Option<()> {
        let parts = block.parts;
        let (row, step) = (self.symbol("r"), self.symbol("q"));
        let mut place = place.clone();
        place.enter(&row, &Expr::from(block.row.2));
        place.enter(&step, &Expr::from(steps));
        place.ranges.insert(tile_axis(COLUMN), (0, parts.run - 1));
        place.at.insert(block.row.0.clone(), block.row.1.add(&Expr::from(&row)));
        if let Some(last) = parts.outer.last() {
            place.at.insert(last.symbol.clone(), base.add(&Expr::from(&step)));
        }
        let along = Expr::from(tile_axis(COLUMN));
        place.at.insert(parts.inner[1].symbol.clone(), along.clone());
        let mut shape = single();
        shape[COLUMN] = parts.run as usize;
        let extreme = |n: i64| along.add(&Expr::from(n * parts.run));
        let kept = *self.buffers.get(parts.left.0)?;
        let f32s = |tiles: &mut Self| {
            tiles.program.tiles.push(kiln_ir::tile::TileType { dtype: DType::F32, shape: shape.clone() })
        };
        let (mut of_row, mut of_step) = (Vec::new(), Vec::new());
        let init = [0, 1].map(|n| {
            self.emitter(&[]).define(
                &mut of_row,
                DType::F32,
                shape.clone(),
                loaded(block.extremes, extreme(n), DType::F32),
            )
        });
        let inside = [0, 1].map(|_| f32s(self));
        let after = [0, 1].map(|_| f32s(self));
        let mut seen = inside;
        let mut halves = [Vec::new(), Vec::new()];
        for (half, found) in halves.iter_mut().enumerate() {
            let mut place = place.clone();
            place.at.insert(parts.inner[0].symbol.clone(), Expr::from(half as i64));
            let mut e = self.emitter(&[]);
            let b = &mut of_step;
            let x = e.define(b, DType::F32, shape.clone(), loaded(kept, place.expr(&parts.left.1), DType::F32));
            let [most, one, none] =
                [MOST_IN_PARTS, 1.0, 0.0].map(|v| e.constant(b, Constant::float(DType::F32, v.into()), 3));
            // What is no number is not less, and counts as too large.
            let size = e.define(b, DType::F32, shape.clone(), TileOp::Unary(UnaryOp::Abs, x));
            let fits = e.binary(b, BinaryOp::Lt, size, most);
            let large = e.define(b, DType::F32, shape.clone(), TileOp::Select(fits, size, most));
            let nothing = e.binary(b, BinaryOp::Eq, size, none);
            let small = e.define(b, DType::F32, shape.clone(), TileOp::Select(nothing, one, size));
            seen = [e.binary(b, BinaryOp::Max, seen[0], large), e.binary(b, BinaryOp::Min, seen[1], small)];
            // Dekker's and Veltkamp's split: the upper 8 bits of 24, each time.
            let by = e.constant(b, Constant::float(DType::F32, 65537.0), 3);
            let mut rest = x;
            for _ in 0..2 {
                let scaled = e.binary(b, BinaryOp::Mul, rest, by);
                let over = e.binary(b, BinaryOp::Sub, scaled, rest);
                let upper = e.binary(b, BinaryOp::Sub, scaled, over);
                rest = e.binary(b, BinaryOp::Sub, rest, upper);
                found.push(upper);
            }
            found.push(rest);
        }
        let [low, high] = halves;
        for (n, (low, high)) in
            low.into_iter().zip(high).enumerate().take(if parts.terms == Terms::Six { 3 } else { 2 })
        {
            let pair = self.emitter(&[]).binary(&mut of_step, BinaryOp::Pair, low, high);
            let address = block.pair(n as i64, &Expr::from(&row), &Expr::from(&step), &along);
            of_step.push(stored(block.pairs, address, pair));
        }
        let carried = (0..2).map(|n| Carried { init: init[n], inside: inside[n], next: seen[n], after: after[n] });
        of_row.push(Stmt::For(For {
            var: step,
            lo: Expr::default(),
            hi: Expr::from(steps),
            step: 1,
            carried: carried.collect(),
            body: of_step,
        }));
        of_row.extend((0..2).map(|n| stored(block.extremes, extreme(n), after[n as usize])));
        body.push(counted(row, block.row.2, 1, of_row));
        Some(())
    }

    /// The products of a stretch, added to the block's sums.
    fn summed_parts(
        &mut self,
        body: &mut Vec<Stmt>,
        block: &Block<'_>,
        place: &Place,
        (base, steps): (&Expr, i64),
    ) -> Option<()> {
        let parts = block.parts;
        let panel = self.symbol("c");
        let mut place = place.clone();
        place.enter(&panel, &Expr::from(block.column.2));
        for rows in segments(&Expr::from(block.row.2), BLOCK, 1, &block.nest.dims) {
            let (variable, count) = (self.symbol("r"), rows.count.as_const()?);
            let mut place = place.clone();
            place.enter(&variable, &rows.count);
            let first = rows.lo.add(&Expr::from(&variable).scale(rows.block));
            let step = self.symbol("q");
            let [a0, a1] = [0, 1].map(|n| Expr::from(tile_axis(n)));
            let mut right = place.clone();
            right.enter(&step, &Expr::from(steps));
            right.ranges.insert(tile_axis(0), (0, parts.run - 1));
            right.ranges.insert(tile_axis(1), (0, BLOCK - 1));
            let column = block.column.1.add(&Expr::from(&panel).scale(BLOCK)).add(&a1);
            right.at.insert(block.column.0.clone(), column);
            right.at.insert(parts.inner[0].symbol.clone(), Expr::default());
            right.at.insert(parts.inner[1].symbol.clone(), a0.clone());
            if let Some(last) = parts.outer.last() {
                right.at.insert(last.symbol.clone(), base.add(&Expr::from(&step)));
            }
            let weights = *self.buffers.get(parts.right.0)?;
            let factors = |&(l, r): &(i64, i64)| {
                let left = block.pair(l, &first.add(&a0), &Expr::from(&step), &a1);
                Some(Factors {
                    left: (block.pairs, left),
                    right: (weights, right.expr(parts.right.1.get(r as usize)?)),
                })
            };
            let rounds = parts.terms.rounds().map(|round| round.iter().map(factors).collect::<Option<Vec<_>>>());
            let rounds = rounds.into_iter().collect::<Option<Vec<_>>>()?;
            let mut of_rows = vec![Stmt::Multiply(Multiply {
                out: (block.sums, Expr::default()),
                adds: false,
                rows: registers(rows.block),
                columns: registers(BLOCK),
                product: Product::Pairs,
                depth: parts.run as usize,
                rounds,
                folds: vec![(step, Expr::from(steps), 1)],
                ahead: None,
            })];
            for few in segments(&Expr::from(rows.block), 4, 1, &block.nest.dims) {
                let (variable, count) = (self.symbol("r"), few.count.as_const()?);
                let row = few.lo.add(&Expr::from(&variable).scale(few.block)).add(&a0);
                let shape = vec![few.block as usize, BLOCK as usize, 1];
                let total = block.total(&first.add(&row), &Expr::from(&panel));
                let mut inner = Vec::new();
                let mut e = self.emitter(&[]);
                let before =
                    e.define(&mut inner, DType::F32, shape.clone(), loaded(block.totals, total.clone(), DType::F32));
                let more = loaded(block.sums, row.scale(BLOCK).add(&a1), DType::F32);
                let more = e.define(&mut inner, DType::F32, shape, more);
                let after = e.binary(&mut inner, BinaryOp::Add, before, more);
                inner.push(stored(block.totals, total, after));
                of_rows.push(counted(variable, count, 1, inner));
            }
            // Registers keep their shapes for all panels.
            let of_panel = counted(variable, count, 1, of_rows);
            body.push(counted(panel.clone(), block.column.2, 1, vec![of_panel]));
        }
        Some(())
    }

    /// Whether every activation that was met has parts.
    fn all_have_parts(&mut self, body: &mut Vec<Stmt>, block: &Block<'_>) -> TileId {
        let mut shape = single();
        shape[COLUMN] = block.parts.run as usize;
        let mut e = self.emitter(&[]);
        let bounds = [(BinaryOp::Max, BinaryOp::Lt, MOST_IN_PARTS), (BinaryOp::Min, BinaryOp::Ge, LEAST_IN_PARTS)];
        let [large, small] = [0usize, 1].map(|n| {
            let (fold, compare, bound) = bounds[n];
            let address = Expr::from(tile_axis(COLUMN)).add(&Expr::from(n as i64 * block.parts.run));
            let all = e.define(body, DType::F32, shape.clone(), loaded(block.extremes, address, DType::F32));
            let extreme = e.define(body, DType::F32, single(), TileOp::Reduce(fold, COLUMN, all));
            let bound = e.constant(body, Constant::float(DType::F32, bound.into()), 3);
            e.binary(body, compare, extreme, bound)
        });
        e.binary(body, BinaryOp::And, large, small)
    }

    /// The block's sums, finished and stored.
    fn finished_totals(&mut self, block: &Block<'_>, place: &Place) -> Option<Vec<Stmt>> {
        let nest = block.nest;
        let panel = self.symbol("c");
        let mut place = place.clone();
        place.enter(&panel, &Expr::from(block.column.2));
        let few = (self.machine.pointwise_vectors(nest) * self.machine.lanes as i64 / BLOCK).max(1);
        let mut all = Vec::new();
        for rows in segments(&Expr::from(block.row.2), few, 1, &nest.dims) {
            let (variable, count) = (self.symbol("r"), rows.count.as_const()?);
            let mut place = place.clone();
            place.enter(&variable, &rows.count);
            let row = rows.lo.add(&Expr::from(&variable).scale(rows.block)).add(&Expr::from(tile_axis(ROW)));
            let column = Expr::from(&panel).scale(BLOCK).add(&Expr::from(tile_axis(COLUMN)));
            place.shape = vec![rows.block as usize, BLOCK as usize, 1];
            place.ranges.insert(tile_axis(ROW), (0, rows.block - 1));
            place.ranges.insert(tile_axis(COLUMN), (0, BLOCK - 1));
            place.at.insert(block.row.0.clone(), block.row.1.add(&row));
            place.at.insert(block.column.0.clone(), block.column.1.add(&column));
            let mut inner = Vec::new();
            let total = loaded(block.totals, block.total(&row, &Expr::from(&panel)), DType::F32);
            let value = self.emitter(&[]).define(&mut inner, DType::F32, place.shape.clone(), total);
            let value = self.finished(&mut inner, nest, &place, value, &[])?;
            self.store(&mut inner, nest, &place, value);
            all.push(counted(variable, count, 1, inner));
        }
        Some(vec![counted(panel, block.column.2, 1, all)])
    }

    /// The block by multiply-adds of f32.
    fn multiplied_whole(&mut self, block: &Block<'_>, place: &Place) -> Option<Vec<Stmt>> {
        let panel = self.symbol("c");
        let mut place = place.clone();
        place.enter(&panel, &Expr::from(block.column.2));
        let column = block.column.1.add(&Expr::from(&panel).scale(BLOCK));
        let column = Some((block.column.0.clone(), Segment::new(column, BLOCK, 1)));
        let mut inner = Vec::new();
        for rows in row_segments(&Expr::from(block.row.2), block.schedule.rows, &block.nest.dims) {
            let row = Some((block.row.0.clone(), Segment { lo: block.row.1.add(&rows.lo), ..rows }));
            self.for_blocks(&mut inner, &row, &place, |this, inner, place| {
                this.block_of(inner, block.nest, (block.schedule, None), place, row.clone(), column.clone())
            })?;
        }
        Some(vec![counted(panel, block.column.2, 1, inner)])
    }
}
