//! Groups to tile programs for GPUs.
//!
//! Invariant: as everywhere in [`super`], every element of the result is stored exactly once; but a program is a block
//! of threads that hold its tiles together, so tiles are large, several axes of a nest are one axis of a tile, and what
//! is beyond the ends is masked instead of cut off.
//!
//! A nest has one of four forms: *points*, a tile of result elements each of which folds for itself; *reduced*, rows
//! of the fold beside one another, folded across threads; *rows*, the same for several stages; and *product*, a matrix
//! product of two tiles for each step of the fold, which convolutions are too.

use super::Builder;
use super::emit::{Place, tile_axis};
use super::fill::{Tiles, Unit, Work};
use super::flat::{Axis, FlatNest, Stride, stride};
use super::fold::Tiling;
use super::forms::{addresses, kept};
use super::groups::halves;
use super::rows::row_names;
use crate::group::Group;
use crate::warp::Floats;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::nest::neutral;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source};
use kiln_ir::tile::{Carried, For, If, Part, Stmt, TileId, TileOp, TileProgram};
use kiln_ir::vector::Product as Elements;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Threads of a block that computes points.
const POINTS: i64 = 256;

/// Results below which each thread has one of its own, so that there are more threads.
const FEW: i64 = 1 << 14;

/// Places of the fold that a matrix instruction of floats of 8 bits takes.
const EIGHT_BITS_DEEP: i64 = 32;

/// Elements of a row that the threads of a block hold at once.
const ROW: i64 = 8192;

/// Elements of a row that are read at a time where it is longer than [`ROW`].
const CHUNK: i64 = 2048;

/// Elements of the rows of a block together, where one row has fewer.
const ROWS: i64 = 1024;

/// Folds longer than this are shared by threads where neighbouring results do not read neighbouring elements.
const LONG_FOLD: i64 = 32;

/// Rows, columns and places of a fold from which a product is one of tiles.
pub(crate) const LEAST_TILE: i64 = 8;

/// Axes of a tile.
pub(super) const DOWN: usize = 0;
pub(super) const ACROSS: usize = 1;

pub(super) fn number(n: i64) -> Expr {
    Expr::from(n)
}

pub(super) fn across() -> Expr {
    Expr::from(tile_axis(ACROSS))
}

pub(super) fn down() -> Expr {
    Expr::from(tile_axis(DOWN))
}

pub(super) fn product(axes: &[Axis]) -> Expr {
    axes.iter().fold(number(1), |n, a| n.mul(&a.extent))
}

/// Makes a number below the product of the extents the indices of the axes, the last of which runs fastest.
pub(super) fn unravel(axes: &[Axis], linear: &Expr, at: &mut BTreeMap<Symbol, Expr>) {
    let mut rest = linear.clone();
    for (n, axis) in axes.iter().enumerate().rev() {
        let index = if n == 0 { rest.clone() } else { rest.modulo(&axis.extent) };
        at.insert(axis.symbol.clone(), index);
        if n > 0 {
            rest = rest.floor_div(&axis.extent);
        }
    }
}

/// The axes in the order of memory, by how far each goes in the first address that it walks along.
pub(super) fn by_memory(axes: &[Axis], addresses: &[&Expr]) -> Vec<Axis> {
    let far = |a: &Axis| {
        let strides = addresses.iter().filter(|e| e.mentions(&a.symbol)).map(|e| stride(e, &a.symbol));
        strides.map(|s| if let Stride::Known(n) = s { n.saturating_abs() } else { i64::MAX }).next().unwrap_or(i64::MAX)
    };
    let mut sorted = axes.to_vec();
    sorted.sort_by_key(|a| std::cmp::Reverse(far(a)));
    sorted
}

/// So many of `extent` as a tile has: all where they are few.
fn tile_of(extent: &Expr, most: i64) -> i64 {
    extent.as_const().map_or(most, |n| n.clamp(1, most))
}

/// The condition that an index is below its end, unless the blocks divide it.
pub(super) fn below(index: &Expr, end: &Expr, block: i64) -> Option<Less> {
    let whole = end.as_const().is_some_and(|n| n % block == 0);
    (!whole).then(|| Less { left: index.clone(), right: end.clone() })
}

/// How the operands of a sum of products walk along the nest.
pub(crate) struct Operands {
    pub left: Id<Scalar>,
    pub right: Id<Scalar>,
    pub rows: Vec<Axis>,
    pub columns: Vec<Axis>,
    /// Axes along which both walk.
    pub batch: Vec<Axis>,
    /// How elements are multiplied that are several numbers each.
    pub of: Option<Elements>,
}

impl Builder<'_> {
    /// One nest.
    pub(super) fn gpu_single(&mut self, nest: FlatNest) -> Option<()> {
        let nest = nest.collapse();
        if nest.axes.iter().any(|a| a.known() == Some(0)) {
            return Some(());
        }
        if nest.folds.is_empty() {
            return self.points(&nest);
        }
        if let Some(operands) = operands(&nest)
            && self.matrix(&nest, &operands).or_else(|| self.narrow(&nest, &operands)).is_some()
        {
            return Some(());
        }
        if is_by_fold(&nest) {
            return self.reduced(&nest);
        }
        self.tall(&nest).or_else(|| self.points(&nest))
    }

    /// A part with a grid of one variable.
    pub(super) fn blocks(&mut self, count: Expr, place: &mut Place) -> Expr {
        let block = self.symbol("b");
        place.enter(&block, &count);
        self.program.parts.push(Part { grid: vec![(block.clone(), count)], body: vec![] });
        Expr::from(block)
    }

    pub(super) fn finish_part(&mut self, body: Vec<Stmt>) {
        let body = without_repeats(&mut self.program, body);
        if let Some(part) = self.program.parts.last_mut() {
            part.body = body;
        }
    }

    /// Adds the tile's axes to a place.
    pub(super) fn shaped(place: &mut Place, shape: [i64; 2]) {
        place.shape = shape.iter().map(|&e| e as usize).collect();
        for (n, e) in shape.into_iter().enumerate() {
            place.ranges.insert(tile_axis(n), (0, e - 1));
        }
    }

    /// Each element of the result for itself: the tile runs along memory, and its second axis is what one thread reads
    /// at once.
    fn points(&mut self, nest: &FlatNest) -> Option<()> {
        let mut axes = by_memory(&nest.axes, &[&nest.store]);
        let all = axes.iter().map(|a| nest.guess(a)).fold(1i64, i64::saturating_mul);
        let contiguous = axes.last().filter(|a| stride(&nest.store, &a.symbol) == Stride::Known(1) && all >= FEW);
        let vector =
            contiguous.and_then(Axis::known).and_then(|e| [4, 2].into_iter().find(|v| e % v == 0)).unwrap_or(1);
        let inner = axes.last().cloned();
        if let Some(last) = axes.last_mut() {
            last.extent = last.extent.floor_div(&number(vector));
        }
        let count = product(&axes);
        let tile = tile_of(&count, POINTS);
        let mut place = self.outermost(nest);
        let block = self.blocks(count.ceil_div(&number(tile)), &mut place);
        Self::shaped(&mut place, [tile, vector]);
        let linear = block.scale(tile).add(&down());
        unravel(&axes, &linear, &mut place.at);
        if let Some(inner) = inner
            && vector > 1
            && let Some(e) = place.at.get_mut(&inner.symbol)
        {
            *e = e.scale(vector).add(&across());
        }
        place.mask.extend(below(&linear, &count, tile));
        let mut body = Vec::new();
        let value = if nest.folds.is_empty() {
            self.emitter(&[]).code(&mut body, &nest.body, &place, None)?
        } else {
            let tiling = Tiling {
                nest,
                stages: &[],
                row: None,
                column: None,
                lanes: None,
                unroll: 4,
                factors: None,
                start: None,
            };
            self.folded(&mut body, &tiling, &place)?
        };
        let value = self.emitter(&[]).code(&mut body, &nest.finish, &place, Some(value))?;
        self.store(&mut body, nest, &place, value);
        self.finish_part(body);
        Some(())
    }

    /// How many rows of so many elements a block has.
    fn rows_of_block(rows: &Expr, elements: Option<i64>) -> i64 {
        let elements = elements.unwrap_or(ROW).clamp(1, ROW) as u64;
        tile_of(rows, (ROWS / elements.next_power_of_two() as i64).max(1))
    }

    /// A fold whose elements lie beside one another: rows of a tile, folded across threads.
    fn reduced(&mut self, nest: &FlatNest) -> Option<()> {
        let axes = by_memory(&nest.axes, &[&nest.store]);
        let rows = product(&axes);
        let tile = Self::rows_of_block(&rows, product(&nest.folds).as_const());
        let mut place = self.outermost(nest);
        let block = self.blocks(rows.ceil_div(&number(tile)), &mut place);
        Self::shaped(&mut place, [tile, 1]);
        let linear = block.scale(tile).add(&down());
        unravel(&axes, &linear, &mut place.at);
        place.mask.extend(below(&linear, &rows, tile));
        let mut body = Vec::new();
        let value = self.row_fold(&mut body, nest, &place, &[])?;
        let value = self.emitter(&[]).code(&mut body, &nest.finish, &place, Some(value))?;
        self.store(&mut body, nest, &place, value);
        self.finish_part(body);
        Some(())
    }

    /// The folds of the rows of a tile, one value for each.
    fn row_fold(&mut self, body: &mut Vec<Stmt>, nest: &FlatNest, place: &Place, stages: &[TileId]) -> Option<TileId> {
        let folds = by_memory(&nest.folds, &addresses(nest).collect::<Vec<_>>());
        let dtype = nest.body.result_type();
        let rows = place.shape[DOWN] as i64;
        let result = place.shape.clone();
        let count = product(&folds);
        if let Some(n) = count.as_const().filter(|&n| n <= ROW) {
            let mut place = place.clone();
            Self::shaped(&mut place, [rows, n.max(1)]);
            unravel(&folds, &across(), &mut place.at);
            let shape = place.shape.clone();
            let mut e = self.emitter(stages);
            let value = e.code(body, &nest.body, &place, None)?;
            let value = e.full(body, value, &shape);
            return Some(e.define(body, dtype, result, TileOp::Reduce(nest.combine, ACROSS, value)));
        }
        let sums =
            self.chunks(body, place, &count, Some((dtype, neutral(nest.combine, dtype))), |this, body, p, c, sums| {
                let mut place = p.clone();
                unravel(&folds, c, &mut place.at);
                let shape = place.shape.clone();
                let mut e = this.emitter(stages);
                let value = e.code(body, &nest.body, &place, None)?;
                let mut value = e.full(body, value, &shape);
                if let Some(end) = below(c, &count, CHUNK) {
                    let holds = e.holds(body, &[end], &place)?;
                    let other = e.constant(body, neutral(nest.combine, dtype), shape.len());
                    value = e.define(body, dtype, shape.clone(), TileOp::Select(holds, value, other));
                }
                Some(Some(e.define(body, dtype, shape, TileOp::Binary(nest.combine, sums?, value))))
            })?;
        Some(self.emitter(stages).define(body, dtype, result, TileOp::Reduce(nest.combine, ACROSS, sums?)))
    }

    /// A loop over chunks of `count` elements, with a tile that it may carry. `step` is given the place, the element and
    /// the tile inside, and gives the next one.
    #[allow(clippy::type_complexity)] // The step's arguments are what the loop knows.
    fn chunks(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        count: &Expr,
        carried: Option<(DType, Constant)>,
        step: impl FnOnce(&mut Self, &mut Vec<Stmt>, &Place, &Expr, Option<TileId>) -> Option<Option<TileId>>,
    ) -> Option<Option<TileId>> {
        let mut place = place.clone();
        let rows = place.shape[DOWN] as i64;
        Self::shaped(&mut place, [rows, CHUNK]);
        let shape = place.shape.clone();
        let hi = count.ceil_div(&number(CHUNK)).scale(CHUNK);
        let var = self.symbol("k");
        place.enter(&var, &hi);
        let element = Expr::from(&var).add(&across());
        place.mask.extend(below(&element, count, CHUNK));
        let tile = |this: &mut Self| {
            let (dtype, _) = carried?;
            Some(this.program.tiles.push(kiln_ir::tile::TileType { dtype, shape: shape.clone() }))
        };
        let init = tile(self);
        if let (Some(init), Some((_, c))) = (init, carried) {
            body.push(Stmt::Let(init, TileOp::Const(c)));
        }
        let (inside, after) = (tile(self), tile(self));
        let mut inner = Vec::new();
        let next = step(self, &mut inner, &place, &element, inside)?;
        let list = match (init, inside, next, after) {
            (Some(init), Some(inside), Some(next), Some(after)) => vec![Carried { init, inside, next, after }],
            _ => vec![],
        };
        body.push(Stmt::For(For { var, lo: Expr::default(), hi, step: CHUNK, carried: list, body: inner }));
        Some(after)
    }

    /// Several stages (softmax, norms): a block folds some rows, then walks along them.
    pub(super) fn gpu_rows(&mut self, group: &Group, flats: &[FlatNest]) -> Option<()> {
        let (last, folds) = flats.split_last()?;
        let prefix = folds.first()?.axes.clone();
        if folds.iter().any(|f| f.axes != prefix) || !last.folds.is_empty() {
            return None;
        }
        let names = row_names(group, &prefix)?;
        let free: Vec<Axis> = last.axes.iter().filter(|a| !names.contains_key(&a.symbol)).cloned().collect();
        let free = by_memory(&free, &[&last.store]);
        let named: Vec<Axis> = prefix
            .iter()
            .enumerate()
            .map(|(n, a)| Axis { symbol: Symbol::numbered("p", n), extent: a.extent.clone() })
            .collect();
        let (rows, width) = (product(&named), product(&free));
        let longest = folds.iter().map(|f| product(&f.folds)).chain([width.clone()]).map(|e| e.as_const());
        let longest = longest.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
        let tile = Self::rows_of_block(&rows, longest);
        let mut place = self.outermost(last);
        let block = self.blocks(rows.ceil_div(&number(tile)), &mut place);
        Self::shaped(&mut place, [tile, 1]);
        let linear = block.scale(tile).add(&down());
        let mut at = BTreeMap::new();
        unravel(&named, &linear, &mut at);
        place.mask.extend(below(&linear, &rows, tile));
        let row = |n: usize| at.get(&Symbol::numbered("p", n)).cloned().unwrap_or_default();
        let mut body = Vec::new();
        let mut stages = Vec::new();
        for flat in folds {
            let mut place = place.clone();
            for (n, a) in flat.axes.iter().enumerate() {
                place.at.insert(a.symbol.clone(), row(n));
            }
            let value = self.row_fold(&mut body, flat, &place, &stages)?;
            stages.push(self.emitter(&stages).code(&mut body, &flat.finish, &place, Some(value))?);
        }
        for (from, to) in &names {
            place.at.insert(from.clone(), at.get(to).cloned().unwrap_or_default());
        }
        match width.as_const().filter(|&n| n <= ROW) {
            Some(n) => {
                Self::shaped(&mut place, [tile, n.max(1)]);
                unravel(&free, &across(), &mut place.at);
                self.point(&mut body, last, &place, &stages)?;
            }
            None => {
                self.chunks(&mut body, &place, &width, None, |this, body, place, element, _| {
                    let mut place = place.clone();
                    unravel(&free, element, &mut place.at);
                    this.point(body, last, &place, &stages)?;
                    Some(None)
                })?;
            }
        }
        self.finish_part(body);
        Some(())
    }

    /// The tile of a product's operand, 0 where the fold is at its end; rounded to a type where there is one.
    pub(super) fn product_operand(
        &mut self,
        body: &mut Vec<Stmt>,
        (code, id): (&Code, Id<Scalar>),
        place: &Place,
        beyond: Option<Less>,
        rounded: Option<DType>,
    ) -> Option<TileId> {
        let shape = place.shape.clone();
        // What is kept in the type that it is rounded to is not widened before.
        let id = match code.node(id) {
            Scalar::Cast(_, kept) if rounded == Some(code.dtype(*kept)) => *kept,
            _ => id,
        };
        let plain = matches!(code.node(id), Scalar::Load(Source::Input(_), coords) if coords.len() == 1);
        let mut e = self.emitter(&[]);
        let mut value = e.part(body, code, id, place)?;
        value = e.full(body, value, &shape);
        if let Some(beyond) = beyond.filter(|_| !plain) {
            let dtype = code.dtype(id);
            let holds = e.holds(body, &[beyond], place)?;
            let zero = e.constant(body, Constant::int(dtype, 0), shape.len());
            value = e.define(body, dtype, shape, TileOp::Select(holds, value, zero));
        }
        Some(self.rounded(body, value, rounded.filter(|to| *to != code.dtype(id))))
    }

    /// The tile in another type, where there is one.
    pub(super) fn rounded(&mut self, body: &mut Vec<Stmt>, value: TileId, to: Option<DType>) -> TileId {
        let Some(to) = to.filter(|&to| self.program.tiles[value].dtype != to) else { return value };
        let shape = self.program.tiles[value].shape.clone();
        self.emitter(&[]).define(body, to, shape, TileOp::Cast(to, value))
    }

    /// A product of matrices, or of convolution: each step of the loop multiplies a tile of rows with one of columns.
    fn matrix(&mut self, nest: &FlatNest, o: &Operands) -> Option<()> {
        let guess = |axes: &[Axis]| axes.iter().map(|a| nest.guess(a)).fold(1i64, i64::saturating_mul);
        let (m, n, k) = (guess(&o.rows), guess(&o.columns), guess(&nest.folds));
        if m < LEAST_TILE || n < LEAST_TILE || k < LEAST_TILE {
            return None;
        }
        if self.matrix_of_groups(nest, o, [m, n, k]).is_some() {
            return Some(());
        }
        self.matrix_of(nest, o, None)
    }

    /// The product in tiles of so many rows, columns and elements of the fold, its operands of that type; or as is best.
    pub(super) fn matrix_of(&mut self, nest: &FlatNest, o: &Operands, given: Option<([i64; 3], DType)>) -> Option<()> {
        let guess = |axes: &[Axis]| axes.iter().map(|a| nest.guess(a)).fold(1i64, i64::saturating_mul);
        let (m, n, k) = (guess(&o.rows), guess(&o.columns), guess(&nest.folds));
        let gpu = self.machine.gpu?;
        let least = given.map_or(if k <= 8 { 8 } else { 16 }, |([.., depth], _)| depth);
        // The fold that both operands' tiles walk along: a long one whose elements are neighbours in one of them, around
        // which the others are loops; or all folds as one.
        let neighbours = |a: &&Axis| {
            let even = addresses(nest).any(|e| stride(e, &a.symbol) == Stride::Known(1));
            even && a.known().is_some_and(|e| e >= least)
        };
        let folds = by_memory(&nest.folds, &addresses(nest).collect::<Vec<_>>());
        let (outer, inner): (Vec<Axis>, Vec<Axis>) = match folds.iter().rfind(neighbours) {
            Some(a) => (folds.iter().filter(|f| *f != a).cloned().collect(), vec![a.clone()]),
            None => (vec![], folds.clone()),
        };
        // Matrix instructions take 16 elements of the fold at a time, or 32 of 8 bits.
        let kinds = [o.left, o.right].map(|factor| kept(&nest.body, factor));
        let eight = kinds.iter().all(|kind| kind.is_ofp8());
        let along = |id: Id<Scalar>| {
            let axis = inner.last().filter(|_| inner.len() == 1);
            axis.is_some_and(|a| read_by(&nest.body, id).is_some_and(|e| stride(e, &a.symbol) == Stride::Known(1)))
        };
        let deep = guess(&inner) >= EIGHT_BITS_DEEP;
        let whole_bytes = eight && gpu.float8 && deep && along(o.left) && along(o.right);
        let halves = halves(&nest.body, o).or(eight.then_some(DType::F16));
        let rounded = match given {
            Some((_, dtype)) => [Some(dtype); 2],
            None if whole_bytes => kinds.map(Some),
            None => [halves.or(gpu.operands).filter(|_| least == 16 && o.of.is_none()); 2],
        };
        let work = Work {
            batch: guess(&o.batch),
            rows: m,
            columns: n,
            outer: guess(&outer),
            inner: guess(&inner),
            unit: match (rounded[0], gpu.floats) {
                _ if o.of.is_some() => Unit::Words(1),
                _ if whole_bytes => Unit::Bytes,
                (Some(_), _) => Unit::Halves,
                (None, Floats::Whole) => Unit::Fma,
                (None, Floats::Tf32) => Unit::Words(1),
                (None, Floats::Fast) => Unit::Words(3),
            },
            sizes: kinds.map(|kind| kind.size() as i64),
        };
        let tiles = match given {
            Some(([rows, columns, depth], _)) => Tiles { rows, columns, depth, splits: 1 },
            None => work.tiles(&gpu),
        };
        let Tiles { rows: bm, columns: bn, depth: bk, splits } = tiles;
        let rows = by_memory(&o.rows, &[&nest.store]);
        let columns = by_memory(&o.columns, &[&nest.store]);
        let (down_count, across_count) = (product(&rows), product(&columns));

        let mut place = self.outermost(nest);
        let mut grid = Vec::new();
        let mut add = |symbol: Symbol, extent: Expr, place: &mut Place| {
            place.enter(&symbol, &extent);
            grid.push((symbol, extent));
        };
        for a in &o.batch {
            add(a.symbol.clone(), a.extent.clone(), &mut place);
        }
        let (i, j) = (self.symbol("b"), self.symbol("b"));
        add(i.clone(), down_count.ceil_div(&number(bm)), &mut place);
        add(j.clone(), across_count.ceil_div(&number(bn)), &mut place);

        let depth = product(&inner);
        let chunks = depth.ceil_div(&number(bk));
        let var = self.symbol("k");
        let steps = product(&outer).mul(&chunks);
        let share = steps.ceil_div(&number(splits));
        let whole = share.scale(splits) == steps || splits == 1;
        // Without outer folds the loop counts elements.
        let (base, step, share) = if outer.is_empty() {
            place.enter(&var, &share.scale(splits * bk));
            (Expr::from(&var), bk, share.scale(bk))
        } else {
            place.enter(&var, &steps);
            (Expr::from(&var).modulo(&chunks).scale(bk), 1, share)
        };
        unravel(&outer, &Expr::from(&var).floor_div(&chunks), &mut place.at);
        let split = (splits > 1).then(|| self.split(nest, o, splits));
        let lo = match &split {
            None => Expr::default(),
            Some(split) => {
                add(split.symbol.clone(), number(split.count), &mut place);
                Expr::from(&split.symbol).mul(&share)
            }
        };
        let hi = lo.add(&share);

        let element = |block: &Symbol, size: i64, axis: Expr| Expr::from(block).scale(size).add(&axis);
        let operand = |this: &mut Self, body: &mut Vec<Stmt>, id: Id<Scalar>, left: bool| {
            let mut place = place.clone();
            Self::shaped(&mut place, if left { [bm, bk] } else { [bk, bn] });
            let (at_depth, free, axes, end) = match left {
                true => (
                    base.add(&across()),
                    element(&i, bm, down()),
                    &rows,
                    below(&element(&i, bm, down()), &down_count, bm),
                ),
                false => {
                    let e = element(&j, bn, across());
                    (base.add(&down()), e.clone(), &columns, below(&e, &across_count, bn))
                }
            };
            unravel(axes, &free, &mut place.at);
            unravel(&inner, &at_depth, &mut place.at);
            let beyond = match whole {
                true => below(&at_depth, &depth, bk),
                false => Some(Less { left: at_depth.clone(), right: depth.clone() }),
            };
            place.mask.extend(end.into_iter().chain(beyond.clone()));
            this.product_operand(body, (&nest.body, id), &place, beyond, rounded[usize::from(!left)])
        };
        let dtype = nest.body.result_type();
        let mut accumulators = place.clone();
        Self::shaped(&mut accumulators, [bm, bn]);
        let ty = kiln_ir::tile::TileType { dtype, shape: accumulators.shape.clone() };
        let mut body = Vec::new();
        let [init, inside, next, after] = std::array::from_fn(|_| self.program.tiles.push(ty.clone()));
        body.push(Stmt::Let(init, TileOp::Const(Constant::int(dtype, 0))));
        let mut inner_body = Vec::new();
        let a = operand(self, &mut inner_body, o.left, true)?;
        let b = operand(self, &mut inner_body, o.right, false)?;
        inner_body.push(Stmt::Let(next, TileOp::Dot(o.of, a, b, inside)));
        let inner_body = without_repeats(&mut self.program, inner_body);
        let carried = vec![Carried { init, inside, next, after }];
        body.push(Stmt::For(For { var, lo, hi, step, carried, body: inner_body }));

        let mut place = accumulators;
        let (row, column) = (element(&i, bm, down()), element(&j, bn, across()));
        unravel(&rows, &row, &mut place.at);
        unravel(&columns, &column, &mut place.at);
        place.mask.extend(below(&row, &down_count, bm).into_iter().chain(below(&column, &across_count, bn)));
        self.program.parts.push(Part { grid, body: vec![] });
        if let Some(split) = split {
            body.push(split.stored(&place, after));
            self.finish_part(body);
            return self.join_split(nest, &split);
        }
        let value = self.emitter(&[]).code(&mut body, &nest.finish, &place, Some(after))?;
        self.store(&mut body, nest, &place, value);
        self.finish_part(body);
        Some(())
    }
}

/// The address of the only load that an operand is, widened or not.
fn read_by(code: &Code, id: Id<Scalar>) -> Option<&Expr> {
    match code.node(id) {
        Scalar::Cast(_, from) => read_by(code, *from),
        Scalar::Load(Source::Input(_), coords) => match coords.as_slice() {
            [Coord::Index(e)] => Some(e),
            _ => None,
        },
        _ => None,
    }
}

/// Whether the threads of a block should share each result's fold: its elements are neighbours in memory, and those of
/// neighbouring results are not.
fn is_by_fold(nest: &FlatNest) -> bool {
    let long = nest.folds.iter().map(|f| nest.guess(f)).fold(1i64, i64::saturating_mul) >= LONG_FOLD;
    let column = nest.axes.iter().find(|a| stride(&nest.store, &a.symbol) == Stride::Known(1));
    let beside = |s: &Symbol| addresses(nest).all(|e| matches!(stride(e, s), Stride::Known(0 | 1)));
    let coalesced = column.is_some_and(|c| nest.guess(c) >= 8 && beside(&c.symbol));
    let neighbours = nest.folds.iter().any(|f| addresses(nest).any(|e| stride(e, &f.symbol) == Stride::Known(1)));
    long && neighbours && !coalesced
}

/// The operands of a sum of products of f32, or of dot products of bytes, of which each walks along an axis of its own.
pub(crate) fn operands(nest: &FlatNest) -> Option<Operands> {
    let code = &nest.body;
    let Scalar::Binary(op, a, b) = code.node(code.result()) else { return None };
    let of = match (op, code.dtype(code.result())) {
        (BinaryOp::Mul, DType::F32) => None,
        (BinaryOp::Dot4, DType::I32) => Some([Elements::UnsignedSigned, Elements::SignedUnsigned]),
        _ => return None,
    };
    if nest.combine != BinaryOp::Add {
        return None;
    }
    let (of_a, of_b) = (symbols(code, *a), symbols(code, *b));
    let column = nest.axes.iter().find(|x| stride(&nest.store, &x.symbol) == Stride::Known(1))?;
    let turned = match (of_a.contains(&column.symbol), of_b.contains(&column.symbol)) {
        (false, true) => false,
        (true, false) => true,
        _ => return None,
    };
    let (left, right, of_left, of_right) = if turned { (*b, *a, of_b, of_a) } else { (*a, *b, of_a, of_b) };
    let of = of.map(|[straight, other]| if turned { other } else { straight });
    let some = |of: &BTreeSet<Symbol>| nest.folds.iter().any(|f| of.contains(&f.symbol));
    if !some(&of_left) || !some(&of_right) {
        return None;
    }
    let (mut rows, mut columns, mut batch) = (vec![], vec![], vec![]);
    for axis in &nest.axes {
        match (of_left.contains(&axis.symbol), of_right.contains(&axis.symbol)) {
            (true, false) => rows.push(axis.clone()),
            (false, true) => columns.push(axis.clone()),
            _ => batch.push(axis.clone()),
        }
    }
    Some(Operands { left, right, rows, columns, batch, of })
}

/// The symbols that a node depends on.
pub(crate) fn symbols(code: &Code, id: Id<Scalar>) -> BTreeSet<Symbol> {
    let mut found = BTreeSet::new();
    for_each_expr(code, id, &mut |e| e.for_each_symbol(&mut |s| _ = found.insert(s.clone())));
    found
}

/// Calls `see` with each expression that a node depends on.
pub(super) fn for_each_expr<'c>(code: &'c Code, id: Id<Scalar>, see: &mut dyn FnMut(&'c Expr)) {
    let mut open = vec![id];
    let mut seen = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !seen.insert(id) {
            continue;
        }
        let node = code.node(id);
        match node {
            Scalar::Load(_, coords) => coords.iter().for_each(|c| {
                if let Coord::Index(e) = c {
                    see(e);
                }
            }),
            Scalar::Index(e) => see(e),
            Scalar::Guard(conditions, ..) => conditions.iter().for_each(|c| {
                see(&c.left);
                see(&c.right);
            }),
            Scalar::Arg(_) | Scalar::Const(_) | Scalar::Unary(..) | Scalar::Binary(..) | Scalar::Select(..) => {}
            Scalar::Fma(..) | Scalar::Cast(..) => {}
        }
        open.extend(node.operands());
    }
}

/// The statements of a region without operations that it has twice: stages read the same elements.
pub(super) fn without_repeats(program: &mut TileProgram, body: Vec<Stmt>) -> Vec<Stmt> {
    let mut known: HashMap<String, TileId> = HashMap::new();
    let mut same: HashMap<TileId, TileId> = HashMap::new();
    let mut kept = Vec::new();
    for stmt in body {
        match stmt {
            Stmt::Let(id, mut op) => {
                op.for_each_operand(&mut |o| *o = same.get(o).copied().unwrap_or(*o));
                let key = format!("{:?} {op:?}", program.tiles[id]);
                match known.get(&key) {
                    Some(&first) => _ = same.insert(id, first),
                    None => {
                        known.insert(key, id);
                        kept.push(Stmt::Let(id, op));
                    }
                }
            }
            Stmt::Store { buffer, address, mut gathered, mask, value } => {
                let value = same.get(&value).copied().unwrap_or(value);
                gathered.iter_mut().for_each(|id| *id = same.get(id).copied().unwrap_or(*id));
                kept.push(Stmt::Store { buffer, address, gathered, mask, value });
            }
            Stmt::Multiply(m) => kept.push(Stmt::Multiply(m)),
            Stmt::If(mut choice) => {
                rename_choice(&mut choice, &same);
                kept.push(Stmt::If(choice));
            }
            Stmt::For(mut counted) => {
                rename(&mut counted, &same);
                kept.push(Stmt::For(counted));
            }
        }
    }
    kept
}

fn rename(counted: &mut For, same: &HashMap<TileId, TileId>) {
    let find = |id: &mut TileId| *id = same.get(id).copied().unwrap_or(*id);
    for c in &mut counted.carried {
        find(&mut c.init);
        find(&mut c.next);
    }
    rename_all(&mut counted.body, same);
}

fn rename_choice(choice: &mut If, same: &HashMap<TileId, TileId>) {
    choice.condition = same.get(&choice.condition).copied().unwrap_or(choice.condition);
    rename_all(&mut choice.then, same);
    rename_all(&mut choice.otherwise, same);
}

fn rename_all(body: &mut [Stmt], same: &HashMap<TileId, TileId>) {
    let find = |id: &mut TileId| *id = same.get(id).copied().unwrap_or(*id);
    for stmt in body {
        match stmt {
            Stmt::Let(_, op) => op.for_each_operand(&mut |o| find(o)),
            Stmt::Store { value, gathered, .. } => gathered.iter_mut().chain([value]).for_each(find),
            Stmt::Multiply(_) => {}
            Stmt::For(inner) => rename(inner, same),
            Stmt::If(choice) => rename_choice(choice, same),
        }
    }
}
