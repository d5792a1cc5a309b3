//! The cost model: which axes a register tile covers and how far.
//!
//! Invariant: a schedule is data; whatever it says, the tile program made from it computes the same function.

use super::TURNED_ROWS;
use super::choice::Order;
use super::cuts::{SHORT, panel_of};
use super::flat::{Axis, FlatNest, Stride, stride};
use super::forms::{addresses, has_few_bits, has_words, is_dot_sum, is_product_sum, strides, sums_blocks, unpacks};
use super::parts::Terms;
use crate::warp::Floats;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Atom, Expr, Symbol};
use kiln_ir::scalar::{BinaryOp, Code, Scalar, Source};

/// Most bytes of weights that stay near while a program walks along all of them for each tile's rows.
const NEAR_WEIGHTS: i64 = 64 << 10;

/// Vectors of a row of weights from which on adding up its lanes in the end costs little beside reading it.
const LONG_ROW: i64 = 32;

/// Bytes of a result that the second cache does not hold beside what it is made of.
const FAR_RESULTS: i64 = 1 << 20;

/// What kernels for a GPU are like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Its multiprocessors, which blocks are to fill.
    pub multiprocessors: i64,
    /// The type to which the operands of products of f32 are rounded, for matrix instructions (f16 or bf16); the sums stay
    /// f32. Nothing for plain multiply-adds.
    pub operands: Option<DType>,
    /// How products whose operands stay f32 are multiplied.
    pub floats: Floats,
    /// Whether there are products of four warps that read tiles fetched by bulk copies (sm_90a).
    pub groups: bool,
    /// Whether there are matrix instructions of floats of 8 bits (sm_89 and later).
    pub float8: bool,
}

/// What the cost model knows of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Lanes of a vector of 32-bit elements.
    pub lanes: usize,
    /// Vector registers.
    pub registers: usize,
    /// Elements of a long elementwise loop that one program computes.
    pub chunk: i64,
    /// So many programs keep all threads busy; with fewer, rows become programs too.
    pub enough_programs: i64,
    /// Whether a program is a block of a GPU's threads, which together hold tiles as wide as the block; the rest of what
    /// is here is then of no account.
    pub gpu: Option<Gpu>,
    /// Whether a dot product of bytes is one instruction; else each factor takes two registers.
    pub dots: bool,
    /// The same of pairs of bf16.
    pub pairs: bool,
    /// Whether there is a unit that multiplies matrices of bytes and of pairs.
    pub matrices: bool,
    /// How many products of parts of f32 by that unit stand for a product of f32; nothing where that is multiplied whole.
    pub terms: Option<Terms>,
    /// Whether that unit also multiplies what attention does, of which no factor is a constant, rounded to pairs of bf16.
    pub rounds_attention: bool,
}

impl Machine {
    /// 128-bit vectors in 16 registers: x86-64 below AVX-512 as Cranelift uses it, and aarch64.
    pub fn narrow() -> Machine {
        Machine {
            lanes: 4,
            registers: 16,
            chunk: 8192,
            enough_programs: 12,
            gpu: None,
            dots: false,
            pairs: false,
            matrices: false,
            terms: None,
            rounds_attention: false,
        }
    }

    /// 256-bit vectors in 16 registers: x86-64-v3.
    pub fn avx2() -> Machine {
        Machine { lanes: 8, ..Machine::narrow() }
    }

    /// The same with dot products of bytes: x86-64-v3 with AVX-VNNI.
    pub fn avx2_vnni() -> Machine {
        Machine { dots: true, ..Machine::avx2() }
    }

    /// 512-bit vectors in 32 registers: x86-64-v4.
    pub fn avx512() -> Machine {
        Machine { lanes: 16, registers: 32, ..Machine::narrow() }
    }

    /// Blocks of a GPU's threads.
    pub fn gpu(gpu: Gpu) -> Machine {
        Machine { gpu: Some(gpu), ..Machine::narrow() }
    }

    /// 512-bit vectors in 32 registers with dot products of bytes: x86-64-v4 with AVX-512 VNNI.
    pub fn avx512_vnni() -> Machine {
        Machine { dots: true, ..Machine::avx512() }
    }

    /// 512-bit vectors in 32 registers with dot products of bytes and of bf16: x86-64-v4 with AVX-512 VNNI and BF16.
    pub fn avx512_bf16() -> Machine {
        Machine { pairs: true, ..Machine::avx512_vnni() }
    }

    /// The same with a unit that multiplies matrices: AMX.
    pub fn amx() -> Machine {
        Machine { matrices: true, ..Machine::avx512_bf16() }
    }

    /// How many columns a register tile of a product has, for a result with that many rows and columns.
    pub fn columns(&self, rows: usize, columns: usize) -> usize {
        let vectors = if rows < 4 { self.registers / 2 } else { 2 };
        let most = vectors * self.lanes;
        if columns >= most { most } else { (columns / self.lanes * self.lanes).max(columns.min(self.lanes)) }
    }

    /// How wide the panels of a weight of few bits are, as one row wants them: each vector needs a sum, a sum within its block and
    /// something to unpack in. The numbers of tiles and of vectors are even if possible: two threads share the
    /// tiles, and tiles of many rows have half as many vectors or fewer. `words` says that one row has several bytes for each number, and so
    /// several sums for each vector.
    pub fn unpacking_columns(&self, columns: usize, words: bool) -> usize {
        if let Some(width) = self.half_columns(columns, words) {
            return width;
        }
        let most = if words { self.registers / 8 } else { (self.registers.saturating_sub(4) / 3).clamp(2, 8) };
        let fits = |vectors: &usize, tiles: usize| columns.is_multiple_of(tiles * vectors * self.lanes);
        let even = || (most / 2..=most).rev().filter(|v| v.is_multiple_of(2));
        let vectors = even().find(|v| fits(v, 2)).or_else(|| even().find(|v| fits(v, 1))).unwrap_or(most & !1);
        let width = vectors * self.lanes;
        if columns >= width { width } else { (columns / self.lanes * self.lanes).max(columns.min(self.lanes)) }
    }

    /// How many columns read the same elements of the other factor, groups of channels, where a register tile would read those of several
    /// groups: of a product's body and its column.
    pub(super) fn group(&self, body: &Code, column: &Symbol) -> Option<i64> {
        if self.gpu.is_some() || !matches!(body.node(body.result()), Scalar::Binary(BinaryOp::Mul, ..)) {
            return None;
        }
        let of = |e: &Expr| {
            let runs = e.terms().filter_map(|(atoms, _)| match atoms {
                [Atom::FloorDiv(x, by)] if x.as_symbol() == Some(column) => by.as_const(),
                _ => None,
            });
            runs.min()
        };
        let loads = body.nodes().flat_map(|(_, node)| match node {
            Scalar::Load(Source::Input(_), coords) => coords.as_slice(),
            _ => &[],
        });
        // A panel of weights is no group: an element has its place in it, too.
        let places =
            |e: &&Expr| e.terms().any(|(atoms, _)| matches!(atoms, [Atom::Mod(x, _)] if x.as_symbol() == Some(column)));
        let group = loads.filter_map(|c| c.expr().filter(|e| !places(e)).and_then(of)).min()?;
        // Of fewer channels a vector is no better than one channel after the other, and tiles within a group are as good as any.
        let tile = (2 * self.lanes) as i64;
        (group >= SHORT && group < 2 * tile && group % tile != 0).then_some(group)
    }

    /// The same of panels of which a tile of one row takes two at a time, one from each half of the columns; nothing where the
    /// halves are not made of such panels.
    pub fn half_columns(&self, columns: usize, words: bool) -> Option<usize> {
        // Few vectors, so that both halves' sums stay in registers, but no fewer than memory answers well.
        let vectors: &[usize] = match (self.registers > 16, words) {
            (true, false) => &[6, 4, 3],
            (true, true) => &[3, 2],
            (false, false) => &[2],
            // The sums of two places would take all 16.
            (false, true) => &[],
        };
        let fits = |vectors: usize, pairs: usize| columns.is_multiple_of(2 * pairs * vectors * self.lanes);
        let even = vectors.iter().find(|&&v| fits(v, 2));
        even.or_else(|| vectors.iter().find(|&&v| fits(v, 1))).map(|v| v * self.lanes)
    }

    /// How many rows a register tile with that many columns has: balanced, so that the last tile is not a sliver, where the
    /// number of rows is known.
    /// `each` is how many registers a vector of the right operand takes, `own` whether each row reads vectors of its own, as in a
    /// depthwise convolution, where the left operand is not one number for all columns: these need as many registers as the sums.
    fn rows(&self, rows: Option<i64>, columns: i64, each: usize, own: bool) -> i64 {
        let vectors = (columns as usize).div_ceil(self.lanes).max(1);
        // Accumulators, the vectors of one row of the right operand, one broadcast and one temporary.
        let others = each * vectors + if each > 1 { 4 } else { 2 };
        let of_a_row = if own { 2 * vectors } else { vectors };
        let most = (self.registers.saturating_sub(others) / of_a_row).clamp(1, 14) as i64;
        let Some(rows) = rows else { return most };
        let tiles = (rows + most - 1) / most;
        (rows + tiles - 1) / tiles
    }

    /// How many columns a register tile of a product of two or three rows has.
    pub(super) fn wide_columns(&self, rows: i64, columns: usize) -> usize {
        let vectors = (self.registers * 3 / 4 / rows.max(1) as usize).max(1);
        let most = (1 << vectors.ilog2()) * self.lanes;
        if columns >= most { most } else { (columns / self.lanes * self.lanes).max(columns.min(self.lanes)) }
    }

    /// How many columns a tile of so many rows has whose sums run along lanes: a power of two, so that the columns' sums are folded together,
    /// each to a lane of a vector, and no more than there are registers for.
    fn folded_columns(&self, rows: i64) -> i64 {
        let most = (self.registers as i64 * 3 / 4 / rows.max(1)).clamp(2, (self.lanes as i64 / 2).max(4));
        1 << most.ilog2()
    }

    /// How many vectors of a long row of weights are added up beside one another, where a single row of activations meets one row of weights
    /// after the other: memory answers a few streams at the speed of one (Zen 4: 28 GB/s), and eight rows that lie side by side, 3 KiB
    /// each, at two thirds of it. In cache both take as long.
    fn dot_vectors(&self, nest: &FlatNest, fold: &Axis) -> Option<i64> {
        let lanes = self.lanes as i64;
        let extent = fold.known().filter(|&n| n >= LONG_ROW * lanes)?;
        let floats = is_product_sum(nest) && nest.body.result_type() == DType::F32 && !unpacks(&nest.body);
        // No more single elements at the end than vectors leave in any case.
        let fits = |vectors: &i64| extent % (vectors * lanes) == extent % lanes;
        (self.gpu.is_none() && floats).then(|| [4, 3, 2].into_iter().find(fits)).flatten()
    }

    /// Whether the dot products that a nest sums are one instruction.
    fn multiplies(&self, nest: &FlatNest) -> bool {
        match nest.body.result_type() {
            DType::F32 => self.pairs,
            _ => self.dots,
        }
    }

    /// How many elements of a row are in whole vectors, where all of them fit half of the registers: what several stages read of
    /// such a row is loaded and computed once.
    pub(super) fn in_registers(&self, extent: i64) -> Option<i64> {
        let vectors = extent / self.lanes as i64;
        (1..=self.registers as i64 / 2).contains(&vectors).then_some(vectors * self.lanes as i64)
    }

    /// How many elements of a type are written side by side where as many rows, or a multiple of them, are read across: as many vectors of
    /// them are transposed at once.
    pub(super) fn transposed(&self, dtype: DType) -> i64 {
        (self.lanes * 4 / dtype.size().max(1)).clamp(1, TURNED_ROWS as usize) as i64
    }

    /// How many vectors an elementwise loop computes at a time: few where the code is long.
    pub(super) fn pointwise_vectors(&self, nest: &FlatNest) -> i64 {
        let heavy = |n: &Scalar| matches!(n, Scalar::Unary(..) | Scalar::Select(..));
        let nodes = nest.body.len() + nest.finish.len();
        let unary = [&nest.body, &nest.finish].iter().flat_map(|c| c.nodes()).filter(|(_, n)| heavy(n)).count();
        if nodes > 12 || unary > 1 { 1 } else { 4 }
    }
}

/// The strides within runs of `width` iterations: an index that only changes from run to run has stride 0.
fn lane_strides(nest: &FlatNest, symbol: &Symbol, width: i64) -> Vec<Stride> {
    let (run, lane) = (Symbol::numbered("%run", 0), Symbol::numbered("%lane", 0));
    let mut ranges = nest.loops().ranges().clone();
    ranges.insert(run.clone(), (0, i64::MAX));
    ranges.insert(lane.clone(), (0, width - 1));
    let at = Expr::from(&run).scale(width).add(&Expr::from(&lane));
    addresses(nest).map(|e| stride(&e.replace(symbol, &at).simplify(&ranges), &lane)).collect()
}

/// How a fold is tiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Result axis of the tile's rows.
    pub row: Option<Symbol>,
    /// Rows of a tile.
    pub rows: i64,
    /// Result axis of the tile's columns.
    pub column: Option<Symbol>,
    /// Columns of a tile.
    pub columns: i64,
    /// The fold that runs along vector lanes, with how many elements at a time; without it the columns do.
    pub lanes: Option<(Symbol, i64)>,
    /// How often the innermost loop's body is repeated.
    pub unroll: i64,
    /// Whether the rows are the halves of the columns of a single row, which memory answers faster than one stream.
    pub halves: bool,
}

impl Schedule {
    /// The schedule of a fold.
    pub fn choose(nest: &FlatNest, machine: &Machine) -> Schedule {
        let column = nest.axes.iter().find(|a| stride(&nest.store, &a.symbol) == Stride::Known(1));
        // Along the columns: every load is contiguous, or the same for all of them. Blocked weights have no single coefficient
        // but are contiguous within a block, which is what a tile covers.
        let along = |s: &Symbol| strides(nest, s).iter().all(|s| matches!(s, Stride::Uneven | Stride::Known(0 | 1)));
        let reads_input = |n: &Scalar| matches!(n, Scalar::Load(Source::Input(_), _));
        let loads = nest.body.nodes().filter(|(_, n)| reads_input(n)).count();
        let by_columns = column.filter(|a| nest.guess(a) >= machine.lanes as i64 && along(&a.symbol));
        if let Some(column) = by_columns {
            return Schedule::by_columns(nest, machine, column);
        }
        let fold = nest.folds.iter().rev().find(|f| {
            let s = lane_strides(nest, &f.symbol, machine.lanes as i64);
            let even = s.iter().all(|s| matches!(s, Stride::Known(0 | 1)));
            nest.guess(f) >= machine.lanes as i64 && even && s.contains(&Stride::Known(1))
        });
        if let Some(fold) = fold {
            return Schedule::by_fold(nest, machine, fold, loads);
        }
        match column {
            Some(column) => Schedule::by_columns(nest, machine, column),
            None => Schedule { row: None, rows: 1, column: None, columns: 1, lanes: None, unroll: 4, halves: false },
        }
    }

    /// Where a single row of bytes meets a weight of few bits: makes the halves of its columns the rows of a tile, so that the weight is
    /// read from two places at once, and gives the nest that has them. One stream of a weight that no cache holds comes at two thirds
    /// of the speed (Zen 5, panels of 4 to 6 vectors; four places are no faster).
    pub fn halve(&mut self, nest: &FlatNest, machine: &Machine) -> Option<FlatNest> {
        let [column] = nest.axes.as_slice() else { return None };
        let along = self.lanes.is_none() && self.row.is_none() && self.column.as_ref() == Some(&column.symbol);
        if machine.gpu.is_some() || !along || !sums_blocks(&nest.body) {
            return None;
        }
        let panel = panel_of(nest, &column.symbol)?;
        machine.half_columns(usize::try_from(column.known()?).ok()?, has_words(&nest.body))?;
        let (halved, halves) = nest.in_halves(&column.symbol)?;
        // A half that ends within a panel has no panels of its own.
        if panel_of(&halved, &column.symbol) != Some(panel) {
            return None;
        }
        (self.row, self.rows, self.halves) = (Some(halves.symbol), 2, true);
        Some(halved)
    }

    fn by_columns(nest: &FlatNest, machine: &Machine, column: &Axis) -> Schedule {
        let along = strides(nest, &column.symbol);
        // Rows along which what is loaded as a vector can be used again.
        let reuse = |a: &&Axis| {
            a.symbol != column.symbol
                && strides(nest, &a.symbol)
                    .iter()
                    .zip(&along)
                    .any(|(r, c)| *r == Stride::Known(0) && *c != Stride::Known(0))
        };
        let row = nest.axes.iter().filter(reuse).max_by_key(|a| nest.guess(a)).filter(|a| !a.is_single());
        let rows = row.map_or(Some(1), Axis::known);
        let moves = |s: &Stride| *s != Stride::Known(0);
        let own = row.is_some_and(|a| strides(nest, &a.symbol).iter().zip(&along).any(|(r, c)| moves(r) && moves(c)));
        let others = nest.axes.iter().filter(|a| a.symbol != column.symbol);
        let all = others.map(|a| nest.guess(a)).fold(1i64, i64::saturating_mul);
        let extent = nest.guess(column) as usize;
        let columns = match all {
            1 if has_few_bits(&nest.body) => machine.unpacking_columns(extent, has_words(&nest.body)),
            // Within the panels, which are made for one row: all of one of three vectors.
            _ if has_few_bits(&nest.body) => match panel_of(nest, &column.symbol) {
                Some(panel) if panel == 3 * machine.lanes as i64 => panel as usize,
                Some(_) | None => machine.columns(all.max(4) as usize, extent),
            },
            _ => {
                // Few rows leave registers for more columns, where no layout has cut these.
                let fits = is_product_sum(nest) && !own && panel_of(nest, &column.symbol).is_none();
                let few = rows.filter(|&n| fits && n > 1 && n < 4);
                few.map_or_else(|| machine.columns(all.max(1) as usize, extent), |n| machine.wide_columns(n, extent))
            }
        } as i64;
        // Columns that no vector has are cut into short ones and what is left, but for those of panels, which others go by.
        let whole = columns % 4 == 0 || columns >= machine.lanes as i64 || panel_of(nest, &column.symbol).is_some();
        let columns = if whole || columns < 4 { columns } else { 1 << columns.ilog2() };
        let each = match () {
            // What is unpacked, its scale and its offset.
            () if unpacks(&nest.body) => 3,
            () if is_dot_sum(nest) && !machine.multiplies(nest) => 2,
            () => 1,
        };
        Schedule {
            row: row.map(|a| a.symbol.clone()),
            // Blocks have sums of their own beside those of the rows.
            rows: if sums_blocks(&nest.body) {
                machine.rows(rows, 2 * columns, 1, own)
            } else {
                machine.rows(rows, columns, each, own)
            },
            column: Some(column.symbol.clone()),
            columns,
            lanes: None,
            unroll: 4,
            halves: false,
        }
    }

    fn by_fold(nest: &FlatNest, machine: &Machine, fold: &Axis, loads: usize) -> Schedule {
        if !(is_product_sum(nest) || is_dot_sum(nest)) || loads < 2 {
            let mut s = Schedule::row(nest, machine);
            s.lanes = Some((fold.symbol.clone(), (4 * machine.lanes) as i64));
            return s;
        }
        // Rows that only one operand walks along, columns that only the other one does.
        let only = |first: bool, a: &&Axis| {
            let s = strides(nest, &a.symbol);
            // The first load is the left operand; the others make up the right one, be it unpacked or not.
            let still = |s: &Stride| *s == Stride::Known(0);
            let (left, right) = (s.first().is_none_or(still), s.iter().skip(1).all(still));
            !a.is_single() && if first { right && !left } else { left && !right }
        };
        let widest = |first: bool| nest.axes.iter().filter(|a| only(first, a)).max_by_key(|a| nest.guess(a));
        let (row, column) = (widest(true), widest(false));
        if let (None, Some(_), Some(vectors)) = (row, column, machine.dot_vectors(nest, fold)) {
            return Schedule {
                row: None,
                rows: 1,
                column: column.map(|a| a.symbol.clone()),
                columns: 1,
                lanes: Some((fold.symbol.clone(), vectors * machine.lanes as i64)),
                unroll: 2,
                halves: false,
            };
        }
        let most = |a: &Axis, most: i64| a.known().map_or(most, |known| known.min(most));
        let rows = row.map_or(1, |a| most(a, 4));
        let columns = column.map_or(1, |a| most(a, machine.folded_columns(rows)));
        Schedule {
            row: row.map(|a| a.symbol.clone()),
            rows,
            column: column.map(|a| a.symbol.clone()),
            columns,
            lanes: Some((fold.symbol.clone(), machine.lanes as i64)),
            unroll: 2,
            halves: false,
        }
    }

    /// In which order tiles are computed, where so many programs would walk along the rows.
    pub(super) fn order(&self, nest: &FlatNest, machine: &Machine, programs: i64) -> Order {
        if self.writes_lines(nest, machine) {
            return Order::Across;
        }
        if programs >= machine.enough_programs { Order::Columns } else { Order::Tiles }
    }

    /// Whether a product has few weights and a result that no near cache holds: panel after panel, each line of it would be written, and what
    /// is added to it read, in pieces at other times. With more weights than the first cache holds it gains nothing.
    fn writes_lines(&self, nest: &FlatNest, machine: &Machine) -> bool {
        let all = |axes: &[Axis]| axes.iter().try_fold(1i64, |all, a| Some(all.saturating_mul(a.known()?)));
        let column = nest.axes.iter().find(|a| Some(&a.symbol) == self.column.as_ref()).and_then(Axis::known);
        let (Some(columns), Some(results), Some(steps)) = (column, all(&nest.axes), all(&nest.folds)) else {
            return false;
        };
        let product = is_product_sum(nest) || machine.matrices && is_dot_sum(nest);
        let plain = machine.gpu.is_none() && self.lanes.is_none() && self.row.is_some() && product;
        let widens = columns > self.columns.max(steps);
        let bytes = |numbers: i64| numbers.saturating_mul(4);
        let programs = results / (columns * self.rows).max(1);
        plain
            && widens
            && bytes(steps.saturating_mul(columns)) <= NEAR_WEIGHTS
            && bytes(results) >= FAR_RESULTS
            && programs >= machine.enough_programs
    }

    /// The schedule of a fold that makes one value of a row.
    pub fn row(nest: &FlatNest, machine: &Machine) -> Schedule {
        let contiguous = |f: &&Axis| {
            let even = strides(nest, &f.symbol).iter().all(|s| matches!(s, Stride::Known(0 | 1)));
            even && nest.guess(f) >= machine.lanes as i64
        };
        let fold = nest.folds.iter().rev().find(contiguous);
        if let Some((fold, whole)) = fold.and_then(|f| Some((f, machine.in_registers(f.known()?)?))) {
            // What the vectors leave is written out, too.
            let lanes = Some((fold.symbol.clone(), whole));
            return Schedule {
                row: None,
                rows: 1,
                column: None,
                columns: 1,
                lanes,
                unroll: machine.lanes as i64,
                halves: false,
            };
        }
        let heavy = nest.body.nodes().any(|(_, n)| matches!(n, Scalar::Unary(..)));
        let vectors = if heavy { 1 } else { 4 };
        let lanes = fold.map(|f| (f.symbol.clone(), vectors * machine.lanes as i64));
        Schedule { row: None, rows: 1, column: None, columns: 1, lanes, unroll: 1, halves: false }
    }
}
