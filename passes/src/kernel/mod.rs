//! Groups to tile programs.
//!
//! Invariant: the parts of a tile program cover every element of the group's result exactly once, with tiles whose extents
//! fit without masks; a schedule changes speed, never results other than by the order of float additions in a fold.

mod alike;
mod attention;
mod attention_pairs;
mod attention_rows;
mod causal;
mod choice;
mod cuts;
mod decoding;
mod emit;
mod factor;
mod fill;
pub mod flat;
mod fold;
mod forms;
mod gpu;
mod groups;
mod looked;
mod matrix;
mod narrow;
mod online;
pub(crate) mod parts;
mod rows;
pub mod scatter;
mod schedule;
mod split;
mod tiles;
mod whole;

use crate::group::Group;
use cuts::{Segment, block_variables, overhanging, panel_of, panel_segments, row_segments, segments, vector_of};
use emit::{Emitter, Place, tile_axis, widens};
use factor::Factors;
use flat::{Axis, FlatNest, Stride, stride};
use fold::Tiling;
use forms::{has_words, is_dot_of_bytes, is_identity, is_product_of_eight_bits, sums_blocks, unpacks};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::graph::{Graph, TensorType, ValueId};
use kiln_ir::layout::Layout;
use kiln_ir::nest;
use kiln_ir::ops::Op;
use kiln_ir::scalar::{Constant, Coord, Less, Scalar, Source};
use kiln_ir::tile::{Buffer, For, Part, Stmt, TileId, TileProgram};
use matrix::Unit;
use parts::Parts;

pub(crate) use alike::Alike;
pub use choice::{Arrangement, Boundary, Choice, ChoiceError, Order, Space, VERSION as SCHEDULE_VERSION, key};
pub(crate) use forms::has_few_bits;
pub(crate) use gpu::{LEAST_TILE, operands, symbols};
pub(crate) use narrow::MOST_ROWS;
pub use parts::Terms;
pub(crate) use parts::reads_parts;
pub use schedule::{Gpu, Machine, Schedule};
pub(crate) use tiles::{may_make_tiles, multiplies_tiles};

/// No tile program could be made of a group.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct KernelError(pub String);

/// Whether vector programs compute with the type.
pub fn is_kernel_type(dtype: DType) -> bool {
    matches!(
        dtype,
        DType::Bool
            | DType::I8
            | DType::I16
            | DType::I32
            | DType::I64
            | DType::U8
            | DType::U16
            | DType::U32
            | DType::U64
            | DType::F16
            | DType::BF16
            | DType::F32
            | DType::F64
    )
}

/// Whether kernels of a target compute with values of the type: those for GPUs also move, convert and multiply floats of 8 bits.
pub(crate) fn computes(on_gpus: bool, dtype: DType) -> bool {
    is_kernel_type(dtype) || on_gpus && dtype.is_ofp8()
}

/// The layouts that the group's constant operands should have, decided before the tile program is made.
///
/// The right operand of a product is cut into panels as wide as the register tile and laid out in the order in which the loops
/// read it.
pub fn preferred_layouts(graph: &Graph, group: &Group, machine: &Machine, choice: &Choice) -> Vec<(ValueId, Layout)> {
    let Some(stage) = packing_stage(group) else { return vec![] };
    let Some(width) = panel_width(graph, group, machine) else { return vec![] };
    // Panels of parts are as wide as the registers that they are read into.
    let free = !reads_parts(&stage.body);
    let chosen = choice.panel.or(choice.columns).filter(|_| free).and_then(|w| usize::try_from(w).ok());
    let Some((column, extent)) = column_axis(graph.ty(group.output)) else { return vec![] };
    let column = nest::axis(column);
    let width = chosen.map_or(width, |w| w.min(extent));
    let results = stage.dims.iter().filter_map(Expr::as_const).fold(1, i64::saturating_mul);
    let many = results >= LEAST_TILE.saturating_mul(extent as i64);
    let eight = machine.gpu.is_some_and(|gpu| gpu.float8) && is_product_of_eight_bits(&stage.body);
    let by_fold = machine.gpu.is_some() && many && (is_dot_of_bytes(&stage.body) || eight);
    let mut wishes = Vec::new();
    for (_, node) in stage.body.nodes() {
        let Scalar::Load(Source::Input(n), coords) = node else { continue };
        let value = group.inputs[*n];
        let ty = graph.ty(value);
        let own = choice::packable(graph, group, value);
        let index: Option<Vec<&Expr>> = coords.iter().map(Coord::expr).collect();
        let Some(index) = index.filter(|_| own) else { continue };
        let Some(axis) = index.iter().position(|e| e.as_symbol() == Some(&column)) else { continue };
        if index.iter().filter(|e| e.mentions(&column)).count() != 1 {
            continue;
        }
        // Panels outside, then the folds in loop order; axes that the loops do not walk (groups) go first.
        let position =
            |e: &Expr| (0..stage.folds.len()).find(|&f| e.mentions(&nest::fold_axis(f))).map_or(-1, |f| f as i64);
        let mut order: Vec<usize> = (0..ty.rank()).filter(|&a| a != axis).collect();
        order.sort_by_key(|&a| position(index[a]));
        order.insert(0, axis);
        let block = (width > 1 && machine.gpu.is_none()).then_some((axis, width));
        // Matrix instructions take bytes along the fold, and nothing turns them round on the way.
        if block.is_none() && !by_fold {
            order.rotate_left(1);
        }
        wishes.push((value, Layout { order, block, gap: None }));
    }
    wishes
}

/// The nest for which a group's constant operand is laid out: its only one, or the product of the tiles that the first one makes.
fn packing_stage(group: &Group) -> Option<&nest::Nest> {
    match group.stages.as_slice() {
        [only] => Some(only),
        [_, product] if group.is_tiled() => Some(product),
        _ => None,
    }
}

/// How wide the panels are into which the cost model cuts a group's constant operand; nothing where the group is no single fold.
fn panel_width(graph: &Graph, group: &Group, machine: &Machine) -> Option<usize> {
    let stage = packing_stage(group)?;
    if stage.folds.is_empty() {
        return None;
    }
    let (column, extent) = column_axis(graph.ty(group.output))?;
    if let Some(group) = machine.group(&stage.body, &nest::axis(column)) {
        return usize::try_from(group).ok();
    }
    // With free dims the rows are many: a weight's panels suit the long runs, where the work is.
    let free = stage.dims.iter().any(|d| d.as_const().is_none());
    let rows = stage.dims.iter().filter_map(Expr::as_size).product::<usize>() / extent.max(1);
    // However many rows there are: programs for one token and for many share the weight.
    if has_few_bits(&stage.body) {
        return Some(machine.unpacking_columns(extent, has_words(&stage.body)));
    }
    // Filled up, so that a tile may overhang.
    let lanes = machine.lanes as i64;
    let short = vector_of(extent as i64, lanes).filter(|_| machine.gpu.is_none());
    Some(short.map_or_else(|| machine.columns(if free { rows.max(16) } else { rows }, extent), |short| short as usize))
}

/// The result axis that is innermost in memory, with its extent, where that is constant; axes of extent 1 do not count.
fn column_axis(ty: &TensorType) -> Option<(usize, usize)> {
    let innermost = ty.layout.order.iter().rev().find(|&&a| ty.dims[a].as_const() != Some(1))?;
    Some((*innermost, ty.dims[*innermost].as_size()?))
}

/// Makes the tile program of a group.
///
/// # Errors
/// A type or a form of code is not for kernels.
pub fn tile_program(
    graph: &Graph,
    group: &Group,
    name: &str,
    machine: &Machine,
    choice: &Choice,
) -> Result<TileProgram, KernelError> {
    let fail = |m: &str| KernelError(format!("{}: {m}", group.origin));
    let mut buffers = Vec::new();
    let types: Vec<&TensorType> = group.inputs.iter().map(|&v| graph.ty(v)).collect();
    let output = graph.ty(group.output);
    for (n, ty) in types.iter().chain([&output]).enumerate() {
        if !computes(machine.gpu.is_some(), ty.dtype) {
            return Err(fail(&format!("{} is no type for kernels", ty.dtype)));
        }
        let written = n == types.len();
        let name = if written { "out".to_string() } else { format!("in{n}") };
        let len = ty.layout.storage_len(&ty.dims);
        buffers.push(Buffer { name, dtype: ty.dtype, len, written, local: false });
    }
    for stage in &group.stages {
        for (id, node) in stage.body.nodes().chain(stage.finish.nodes()) {
            let code =
                if stage.body.len() > id.index() && stage.body.node(id) == node { &stage.body } else { &stage.finish };
            if !computes(machine.gpu.is_some(), code.dtype(id)) {
                return Err(fail(&format!("{} is no type for kernels", code.dtype(id))));
            }
        }
    }
    let program = TileProgram { name: name.into(), buffers, parts: vec![], tiles: kiln_ir::Arena::default() };
    if group.stages.is_empty() {
        return scatter::program(graph, group, program, machine).ok_or_else(|| fail("it is no kernel for this target"));
    }
    let known = group.inputs.iter().map(|&v| small_constant(graph, v)).collect();
    let buffers = (0..types.len()).collect();
    let mut builder = Builder { program, machine, choice, buffers, known, within: None, fresh: 0 };
    if output.elements().as_const() == Some(0) {
        return Ok(builder.program);
    }
    let last = group.stages.len().saturating_sub(1);
    let stored = |n: usize| (n == last).then_some(output);
    let flats: Option<Vec<FlatNest>> =
        group.stages.iter().enumerate().map(|(n, s)| FlatNest::new(s, &types, stored(n), &graph.symbols)).collect();
    let flats = flats.ok_or_else(|| fail("the code is not well typed"))?;
    let done = match (flats.as_slice(), machine.gpu.is_some()) {
        ([only], false) if makes_tiles(graph, group) => {
            builder.or_as_nest(|b| b.window_tiles(only), |b| b.single(only.clone()))
        }
        ([only], false) => builder.single(only.clone()),
        (_, false) if group.is_attention() => builder.or_as_nest(
            |b| b.attention_of_pairs(&flats),
            |b| b.row_blocks_of_attention(&flats, looked::seen_keys(graph, group).as_ref()),
        ),
        ([windows, product], false) if group.is_tiled() => builder.tiled_convolution(windows, product),
        (_, false) => builder.rows(group, &flats),
        ([only], true) => builder.gpu_single(only.clone()),
        (_, true) if group.is_attention() => {
            let constant = |n: usize| looked::row_major_constant(graph, *group.inputs.get(n)?);
            builder.gpu_attention(&flats, &constant)
        }
        (_, true) => builder.gpu_rows(group, &flats),
    };
    done.ok_or_else(|| fail("the code has a form that kernels do not have"))?;
    Ok(builder.program)
}

/// Whether a group makes the tiles of windows and nothing else.
fn makes_tiles(graph: &Graph, group: &Group) -> bool {
    matches!(group.nodes.as_slice(), [only] if matches!(graph.node(*only).op, Op::WindowTiles(_)))
}

/// Most elements of a constant that kernels have as constants of their own, where it is known which element is read.
const SMALL: usize = 64;

/// The elements of a small constant; empty where it is none, and for a float by itself: the group has written those into its code
/// that are no layer's scale ([`crate::layers`]).
fn small_constant(graph: &Graph, value: ValueId) -> Vec<Constant> {
    let ty = graph.ty(value);
    let Some(tensor) = graph.constant(value).filter(|_| ty.layout.is_row_major()) else { return vec![] };
    match ty.elements().as_size() {
        Some(1) if ty.dtype == DType::F32 => vec![],
        Some(n) if n <= SMALL => (0..n).map_while(|i| Constant::load(ty.dtype, tensor.bytes(), i)).collect(),
        Some(_) | None => vec![],
    }
}

/// The axes of every tile: rows and columns of the result, and the elements of a fold that runs along vector lanes.
const ROW: usize = 0;
const COLUMN: usize = 1;
const LANE: usize = 2;

/// Numbers of 4 bytes of a line of a cache.
const LINE: i64 = 16;

/// Most numbers of 4 bytes in a program's local memory: 192 KiB of its stack.
const MOST_LOCAL: i64 = 48 << 10;

/// The most boxes into which conditions cut a nest.
const MOST_BOXES: usize = 40;

/// The same of one that only moves elements, as a layer's steps are put together: each of its programs would go through all conditions.
const MOST_MOVED_BOXES: usize = 1024;

/// Rows that are written in turn where they are read across: as many as the widest vectors have lanes of 4 bytes, and as are transposed at once, so that vectors are loaded along the
/// rows and transposed in registers.
const TURNED_ROWS: i64 = 16;

/// With fewer columns there are hardly blocks to transpose.
const LEAST_TURNED: i64 = 32;

/// The axis along which a load has neighbours that lies across the axis of the store, where there is one: of a transposition.
fn turned(nest: &FlatNest, column: &Axis) -> Option<Symbol> {
    let along = forms::strides(nest, &column.symbol);
    let across = |a: &&Axis| {
        let steps = forms::strides(nest, &a.symbol);
        let turns = |(c, r): (&Stride, &Stride)| !matches!(c, Stride::Known(0 | 1)) && *r == Stride::Known(1);
        !a.is_single() && a.symbol != column.symbol && along.iter().zip(&steps).any(turns)
    };
    nest.axes.iter().find(across).map(|a| a.symbol.clone())
}

/// The shape of a tile of one element.
fn single() -> Vec<usize> {
    vec![1; 3]
}

struct Builder<'a> {
    program: TileProgram,
    machine: &'a Machine,
    choice: &'a Choice,
    buffers: Vec<usize>,
    /// The elements of inputs that are small constants.
    known: Vec<Vec<Constant>>,
    /// The local buffer that results go to, where they do not leave the program yet.
    within: Option<usize>,
    fresh: usize,
}

impl Builder<'_> {
    fn symbol(&mut self, prefix: &str) -> Symbol {
        self.fresh += 1;
        Symbol::numbered(prefix, self.fresh - 1)
    }

    fn emitter<'e>(&'e mut self, stages: &'e [TileId]) -> Emitter<'e> {
        Emitter { program: &mut self.program, buffers: &self.buffers, known: &self.known, stages, status: 1 }
    }

    /// What a form of its own makes of a nest, or, where the nest does not have it, what the nest says.
    fn or_as_nest(
        &mut self,
        own: impl FnOnce(&mut Self) -> Option<()>,
        nest: impl FnOnce(&mut Self) -> Option<()>,
    ) -> Option<()> {
        let before = self.program.parts.len();
        own(self).or_else(|| {
            self.program.parts.truncate(before);
            nest(self)
        })
    }

    /// One nest: boxes, each with its own schedule.
    fn single(&mut self, nest: FlatNest) -> Option<()> {
        let plain = |node: &Scalar| match node {
            Scalar::Load(Source::Input(_), coords) => matches!(coords.as_slice(), [Coord::Index(_)]),
            _ => matches!(node, Scalar::Guard(..) | Scalar::Const(_)),
        };
        let moves = nest.folds.is_empty() && is_identity(&nest.finish) && nest.body.nodes().all(|(_, n)| plain(n));
        for nest in nest.boxes(if moves { MOST_MOVED_BOXES } else { MOST_BOXES }) {
            let nest = nest.without_unread_fold();
            if !nest.folds.is_empty() && multiplies_tiles(&nest.body) {
                self.or_as_nest(|b| b.tile_product(&nest), |b| b.fold(&nest.clone().collapse()))?;
                continue;
            }
            let nest = nest.collapse();
            if nest.axes.iter().any(|a| a.known() == Some(0)) {
                continue;
            }
            if nest.folds.is_empty() {
                self.pointwise(&nest)?;
            } else if unpacks(&nest.body) {
                self.fold(&nest.in_blocks())?;
            } else {
                self.fold(&nest)?;
            }
        }
        Some(())
    }

    /// No fold: a program walks along the innermost axis in memory, or along a chunk of it.
    fn pointwise(&mut self, nest: &FlatNest) -> Option<()> {
        let column = nest.axes.iter().position(|a| stride(&nest.store, &a.symbol) == Stride::Known(1));
        let lanes = self.machine.lanes as i64;
        let width = lanes * self.machine.pointwise_vectors(nest);
        let mut outer = nest.axes.clone();
        let Some(column) = column.map(|c| outer.remove(c)) else {
            return self.chunk(nest, &outer, None, None, width);
        };
        // Where a load goes down what the store goes along, some of the rows that it goes along are written in turn: each line of memory
        // that one element is read of is read for all of them while it is in the first cache.
        let pays = width > lanes && column.known().is_none_or(|extent| extent >= LEAST_TURNED);
        let row = turned(nest, &column).filter(|_| pays).and_then(|row| outer.iter().position(|a| a.symbol == row));
        let row = row.map(|r| outer.remove(r));
        let width = if row.is_some() { self.machine.transposed(nest.finish.result_type()) } else { width };
        let rows = match &row {
            None => vec![None],
            Some(row) => {
                let cut = segments(&row.extent, TURNED_ROWS, 1, &nest.dims);
                cut.into_iter().map(|s| Some((row.symbol.clone(), s))).collect()
            }
        };
        let chunk = (self.machine.chunk / width * width).max(width);
        let programs = outer.iter().chain(&row).map(|a| nest.guess(a)).fold(1i64, i64::saturating_mul);
        let one = |lo: Expr, block: Expr| (lo, block, Expr::from(1i64));
        let extent = &column.extent;
        let runs: Vec<(Expr, Expr, Expr)> = match extent.as_const() {
            // Rows are the programs. With free dims only a nest of one axis is sure to be cut well.
            _ if programs >= 64 || extent.as_const().is_none() && !outer.is_empty() => {
                vec![one(Expr::default(), extent.clone())]
            }
            Some(extent) if extent <= chunk => vec![one(Expr::default(), Expr::from(extent))],
            Some(_) => segments(extent, chunk, 1, &nest.dims)
                .into_iter()
                .map(|s| (s.lo, Expr::from(s.block), s.count))
                .collect(),
            None => {
                let size = Expr::from(chunk);
                let whole = extent.floor_div(&size).simplify(&nest.dims);
                let rest = extent.modulo(&size).simplify(&nest.dims);
                vec![(Expr::default(), size, whole.clone()), one(whole.scale(chunk), rest)]
            }
        };
        for (lo, block, count) in runs {
            if count.as_const() != Some(0) && block.as_const() != Some(0) {
                for row in &rows {
                    let column = (&column, lo.clone(), block.clone(), count.clone());
                    self.chunk(nest, &outer, row.as_ref(), Some(column), width)?;
                }
            }
        }
        Some(())
    }

    /// A place without any loop: only dims are known.
    fn outermost(&self, nest: &FlatNest) -> Place {
        Place { ranges: nest.dims.clone(), ..Place::default() }
    }

    /// A part whose programs each cover one block of the column axis: where the run begins, the size of a block, and how
    /// many there are; and of some of the rows, where there are such.
    fn chunk(
        &mut self,
        nest: &FlatNest,
        outer: &[Axis],
        row: Option<&(Symbol, Segment)>,
        column: Option<(&Axis, Expr, Expr, Expr)>,
        width: i64,
    ) -> Option<()> {
        let mut grid: Vec<(Symbol, Expr)> = outer.iter().map(|a| (a.symbol.clone(), a.extent.clone())).collect();
        grid.extend(block_variables(&row.cloned()));
        let mut place = self.within(nest, &grid);
        let mut body = Vec::new();
        place.shape = single();
        if let Some((symbol, segment)) = row {
            place.shape[ROW] = segment.block as usize;
            place.ranges.insert(tile_axis(ROW), (0, segment.block - 1));
            place.at.insert(symbol.clone(), segment.first(symbol).add(&Expr::from(tile_axis(ROW))));
        }
        match column {
            None => {
                self.point(&mut body, nest, &place, &[])?;
            }
            Some((column, lo, block, count)) => {
                let mut base = lo;
                if count.as_const() != Some(1) {
                    let symbol = self.symbol("c");
                    place.enter(&symbol, &count);
                    base = base.add(&Expr::from(&symbol).mul(&block));
                    grid.push((symbol, count));
                }
                self.walk(&mut body, nest, &place, column, &base, &block, width, &[])?;
            }
        }
        self.program.parts.push(Part { grid, body });
        Some(())
    }

    /// Walks along an axis from `base` for `extent` elements, `width` at a time, in as many rows as the place has.
    #[allow(clippy::too_many_arguments)] // All of them say where and how far.
    fn walk(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        place: &Place,
        column: &Axis,
        base: &Expr,
        extent: &Expr,
        width: i64,
        stages: &[TileId],
    ) -> Option<()> {
        for s in segments(extent, width, self.machine.lanes as i64, &nest.dims) {
            let mut place = place.clone();
            let lo = base.add(&s.lo);
            place.shape.resize(single().len(), 1);
            place.shape[COLUMN] = s.block as usize;
            place.ranges.insert(tile_axis(COLUMN), (0, s.block - 1));
            let element = Expr::from(tile_axis(COLUMN));
            if s.is_single() {
                place.at.insert(column.symbol.clone(), lo.add(&element));
                self.point(body, nest, &place, stages)?;
                continue;
            }
            // The loop variable counts elements, so that it is the index register of every address.
            let var = self.symbol("j");
            let hi = s.count.scale(s.block);
            place.enter(&var, &hi.sub(&Expr::from(s.block - 1)));
            place.at.insert(column.symbol.clone(), lo.add(&Expr::from(&var)).add(&element));
            let mut inner = Vec::new();
            self.point(&mut inner, nest, &place, stages)?;
            let lo = Expr::default();
            body.push(Stmt::For(For { var, lo, hi, step: s.block, carried: vec![], body: inner }));
        }
        Some(())
    }

    /// Body, finish and store of a nest without fold at a place.
    fn point(&mut self, body: &mut Vec<Stmt>, nest: &FlatNest, place: &Place, stages: &[TileId]) -> Option<()> {
        let ends_here = is_identity(&nest.finish);
        let mut e = self.emitter(stages);
        let value = if ends_here && widens(&nest.body) {
            e.wide_code(body, &nest.body, place, None)?
        } else {
            e.code(body, &nest.body, place, None)?
        };
        let value = self.finished(body, nest, place, value, stages)?;
        self.store(body, nest, place, value);
        Some(())
    }

    /// The nest's finish of a folded value.
    fn finished(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        place: &Place,
        value: TileId,
        stages: &[TileId],
    ) -> Option<TileId> {
        if is_identity(&nest.finish) {
            return Some(value);
        }
        let mut e = self.emitter(stages);
        if widens(&nest.finish) {
            e.wide_code(body, &nest.finish, place, Some(value))
        } else {
            e.code(body, &nest.finish, place, Some(value))
        }
    }

    fn store(&mut self, body: &mut Vec<Stmt>, nest: &FlatNest, place: &Place, value: TileId) {
        let Some(buffer) = self.within.or(self.program.arguments().count().checked_sub(1)) else { return };
        let address = place.expr(&nest.store);
        // A value that is the same along an axis of the tile is repeated: a store writes what it is given.
        let full: Vec<usize> =
            (0..place.shape.len()).map(|n| if address.mentions(&tile_axis(n)) { place.shape[n] } else { 1 }).collect();
        let value = self.emitter(&[]).full(body, value, &full);
        body.push(Stmt::Store { buffer, address, gathered: vec![], mask: place.mask.clone(), value });
    }

    /// A fold: register tiles of rows and columns.
    fn fold(&mut self, nest: &FlatNest) -> Option<()> {
        let in_words = nest.in_words().filter(|_| self.machine.gpu.is_none());
        let nest = in_words.as_ref().unwrap_or(nest);
        let across = nest.axes.iter().find(|a| stride(&nest.store, &a.symbol) == Stride::Known(1)).map(|a| &a.symbol);
        let grouped = across.and_then(|c| nest.in_runs(c, self.machine.group(&nest.body, c)?));
        let nest = grouped.as_ref().unwrap_or(nest);
        let mut schedule = Schedule::choose(nest, self.machine).with(self.choice);
        let halved = schedule.halve(nest, self.machine);
        let nest = halved.as_ref().unwrap_or(nest);
        let lanes = self.machine.lanes as i64;
        let axis = |s: &Symbol| nest.axes.iter().find(|a| a.symbol == *s).cloned();
        let row = schedule.row.as_ref().and_then(axis);
        let column = schedule.column.as_ref().and_then(axis);
        let deepest = column.as_ref().filter(|_| self.machine.matrices).and_then(|c| matrix::deepest_last(nest, c));
        let nest = deepest.as_ref().unwrap_or(nest);
        let unit = match (&row, &column) {
            (Some(row), Some(column)) if self.machine.matrices && schedule.lanes.is_none() => {
                Unit::of(nest, row, column)
            }
            _ => None,
        };
        let parts = match (&row, &column) {
            (Some(row), Some(column)) if schedule.lanes.is_none() => Parts::of(nest, self.machine, row, column),
            _ => None,
        };
        if parts.is_some() {
            schedule.columns = matrix::BLOCK;
        }
        if unit.is_some() {
            (schedule.rows, schedule.columns) = (matrix::BLOCK, schedule.columns.min(matrix::BLOCK));
        }
        let unit = unit.as_ref();
        let taken = |a: &Axis| [&row, &column].iter().any(|t| t.as_ref().is_some_and(|t| t.symbol == a.symbol));
        let outer: Vec<Axis> = nest.axes.iter().filter(|a| !taken(a)).cloned().collect();
        let cut = |a: &Option<Axis>, cut: &dyn Fn(&Axis) -> Vec<Segment>| match a {
            None => vec![None],
            Some(a) => cut(a).into_iter().map(|s| Some((a.symbol.clone(), s))).collect(),
        };
        let column_lanes = if schedule.lanes.is_some() { 1 } else { lanes };
        // A chosen tile stays within a panel, which another level may have cut narrower.
        let panel = column.as_ref().and_then(|a| panel_of(nest, &a.symbol)).filter(|_| self.choice.columns.is_some());
        let columns = panel.map_or(schedule.columns, |p| schedule.columns.min(p));
        let panels =
            |a: &Axis, block: i64, lanes: i64| panel_segments(a, block, lanes, panel_of(nest, &a.symbol), &nest.dims);
        let overhangs = unit.is_none() && parts.is_none() && halved.is_none() && self.choice.columns.is_none();
        let overhangs = overhangs && schedule.lanes.is_none() && self.machine.gpu.is_none() && !unpacks(&nest.body);
        let columns_of = |a: &Axis| {
            let cut = panels(a, columns, column_lanes);
            let may_read = |end| overhangs && self.may_read(nest, a, end);
            overhanging(cut, &a.extent, column_lanes, may_read)
        };
        for column in cut(&column, &columns_of) {
            if let (Some(parts), Some(row), Some((symbol, run))) = (&parts, &row, &column)
                && run.block == matrix::BLOCK
                && run.parts == 1
            {
                self.in_parts(nest, (parts, &schedule), &outer, row, (symbol, run))?;
                continue;
            }
            // Grid axes of the columns' blocks, and of everything that is no tile axis.
            let across = block_variables(&column);
            let others: Vec<(Symbol, Expr)> = outer.iter().map(|a| (a.symbol.clone(), a.extent.clone())).collect();
            let guess = |(symbol, extent): &(Symbol, Expr)| {
                nest.guess(&Axis { symbol: symbol.clone(), extent: extent.clone() })
            };
            let programs = across.iter().chain(&others).map(guess).fold(1i64, i64::saturating_mul);
            let order = self.choice.order.unwrap_or_else(|| schedule.order(nest, self.machine, programs));
            let rows = cut(&row, &|a| match panel_of(nest, &a.symbol) {
                Some(_) => panels(a, schedule.rows, 1),
                // Registers that are not full take as long.
                None if unit.is_some() => segments(&a.extent, schedule.rows, 1, &nest.dims),
                None => row_segments(&a.extent, schedule.rows, &nest.dims),
            });
            if matches!(order, Order::Columns | Order::Outer) {
                let grid = match order {
                    // Their panel of weights stays in cache while rows stream by.
                    Order::Columns | Order::Tiles => [across.clone(), others.clone()].concat(),
                    Order::Outer | Order::Rows | Order::Across => [others.clone(), across.clone()].concat(),
                };
                let place = self.within(nest, &grid);
                let mut body = Vec::new();
                for row in &rows {
                    if let (Some(unit), Some(row), Some(column), Order::Columns) = (unit, row, &column, order)
                        && self.groups_of_blocks(nest, unit, [&across, &others], (row, column), true)?
                    {
                        continue;
                    }
                    if let (Some(unit), Some(row), Some(column)) = (unit, row, &column)
                        && self.in_stretches(&mut body, nest, unit, &place, (row, column))?
                    {
                        continue;
                    }
                    self.for_blocks(&mut body, row, &place, |this, inner, place| {
                        this.block_of(inner, nest, (&schedule, unit), place, row.clone(), column.clone())
                    })?;
                }
                if !body.is_empty() {
                    self.program.parts.push(Part { grid, body });
                }
                continue;
            }
            for row in rows {
                if let (Some(unit), Some(row), Some(column), Order::Tiles) = (unit, &row, &column, order)
                    && self.groups_of_blocks(nest, unit, [&across, &others], (row, column), false)?
                {
                    continue;
                }
                let down = block_variables(&row);
                let grid = match order {
                    Order::Columns | Order::Tiles => [across.clone(), others.clone(), down].concat(),
                    Order::Outer | Order::Rows => [others.clone(), down, across.clone()].concat(),
                    Order::Across => [others.clone(), down].concat(),
                };
                let place = self.within(nest, &grid);
                let mut body = Vec::new();
                let blocks = if order == Order::Across { &column } else { &None };
                self.for_blocks(&mut body, blocks, &place, |this, inner, place| {
                    this.block_of(inner, nest, (&schedule, unit), place, row, column.clone())
                })?;
                self.program.parts.push(Part { grid, body });
            }
        }
        Some(())
    }

    /// Whether what the body reads of elements of an axis up to `end`, which is beyond its own, lies in its buffers.
    fn may_read(&self, nest: &FlatNest, axis: &Axis, end: i64) -> bool {
        let mut ranges = nest.loops().ranges().clone();
        ranges.insert(axis.symbol.clone(), (0, end - 1));
        let (code, live) = (&nest.body, nest.body.live());
        code.nodes().filter(|(id, _)| live[id.index()]).all(|(_, node)| match node {
            Scalar::Load(Source::Input(n), coords) => match coords.as_slice() {
                [Coord::Index(at)] if at.mentions(&axis.symbol) => {
                    let len = self
                        .buffers
                        .get(*n)
                        .and_then(|&b| self.program.buffers.get(b))
                        .map(|b| b.len.bounds(&nest.dims).0);
                    let (low, high) = at.bounds(&ranges);
                    low >= 0 && len.is_some_and(|len| high < len)
                }
                [Coord::Index(_)] => true,
                _ => false,
            },
            Scalar::Load(..) | Scalar::Index(_) | Scalar::Guard(..) => false,
            _ => true,
        })
    }

    /// The place in a program of a grid.
    fn within(&self, nest: &FlatNest, grid: &[(Symbol, Expr)]) -> Place {
        let mut place = self.outermost(nest);
        grid.iter().for_each(|(symbol, extent)| place.enter(symbol, extent));
        place
    }

    /// What is done for each block of a segment, in loops over the blocks.
    fn for_blocks(
        &mut self,
        body: &mut Vec<Stmt>,
        segment: &Option<(Symbol, Segment)>,
        place: &Place,
        of_block: impl FnOnce(&mut Self, &mut Vec<Stmt>, &Place) -> Option<()>,
    ) -> Option<()> {
        let mut place = place.clone();
        let variables = block_variables(segment);
        variables.iter().for_each(|(var, extent)| place.enter(var, extent));
        let mut inner = Vec::new();
        of_block(self, &mut inner, &place)?;
        for (var, hi) in variables.into_iter().rev() {
            inner = vec![Stmt::For(For { var, lo: Expr::default(), hi, step: 1, carried: vec![], body: inner })];
        }
        body.extend(inner);
        Some(())
    }

    /// Fold, finish and store of one block of rows and columns, by the unit for matrices where it is one for that.
    fn block_of(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        (schedule, unit): (&Schedule, Option<&Unit>),
        place: &Place,
        row: Option<(Symbol, Segment)>,
        column: Option<(Symbol, Segment)>,
    ) -> Option<()> {
        if let (Some(unit), Some(row), Some(column)) = (unit, &row, &column) {
            let mut place = place.clone();
            for (symbol, segment) in [row, column] {
                place.at.insert(symbol.clone(), segment.first(symbol));
            }
            if self.multiplied(body, nest, unit, &place, (row, column))? {
                return Some(());
            }
        }
        self.register_tile(body, nest, schedule, place, row, column)
    }

    /// Fold, finish and store of one register tile.
    fn register_tile(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        schedule: &Schedule,
        place: &Place,
        row: Option<(Symbol, Segment)>,
        column: Option<(Symbol, Segment)>,
    ) -> Option<()> {
        let lanes = schedule.lanes.clone();
        let inner = lanes.as_ref().map(|(symbol, _)| symbol).or(nest.folds.last().map(|f| &f.symbol));
        let factors = match (inner, &column) {
            // More rows share what is unpacked.
            (Some(inner), Some((column, _))) if row.is_none() || schedule.halves || sums_blocks(&nest.body) => {
                Factors::of(nest, inner, column)
            }
            _ => None,
        };
        let mut tiling =
            Tiling { nest, stages: &[], row, column, lanes, unroll: schedule.unroll, factors, start: None };
        let mut place = place.clone();
        place.shape = single();
        for (n, axis) in [(ROW, &tiling.row), (COLUMN, &tiling.column)] {
            let Some((symbol, s)) = axis else { continue };
            place.shape[n] = s.block as usize;
            place.ranges.insert(tile_axis(n), (0, s.block - 1));
            place.at.insert(symbol.clone(), s.first(symbol).add(&Expr::from(tile_axis(n))));
        }
        // What lies beyond the end is folded with the rest.
        let everywhere = place.clone();
        if let Some((symbol, Segment { end: Some(end), .. })) = &tiling.column {
            place.mask.push(Less { left: place.at.get(symbol)?.clone(), right: Expr::from(*end) });
        }
        let vectors = tiling.lanes.is_none() && tiling.factors.is_none() && self.machine.gpu.is_none();
        let begun = if vectors { self.start_of_sum(body, nest, &place) } else { None };
        tiling.start = begun.as_ref().map(|(start, _)| *start);
        let value = self.folded(body, &tiling, &everywhere)?;
        let value = self.finished(body, begun.as_ref().map_or(nest, |(_, rest)| rest), &place, value, &[])?;
        self.store(body, nest, &place, value);
        Some(())
    }
}
