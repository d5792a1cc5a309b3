//! Attention in one kernel on CPUs: the scores of a block of queries stay in the program's local memory, in the nearest caches.
//!
//! Invariant: a program has some rows of queries. It multiplies them with all keys, takes the softmax of each row where its scores lie, and
//! multiplies with the values; rows are divided by their sums at the end. A row's scores are all there at once, so nothing has to be
//! scaled down later as in an online softmax, and fully masked rows are what the definition makes of them.

use super::attention::{At, Attention};
use super::cuts::{Segment, block_variables, row_segments, segments};
use super::emit::Place;
use super::flat::{Axis, FlatNest, map_exprs};
use super::fold::Tiling;
use super::schedule::Schedule;
use super::{Builder, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Scalar, Source, UnaryOp};
use kiln_ir::tile::{For, Part, Stmt, TileOp};

/// Most numbers of f32 that a block of queries has in local memory, which is on the stack: 64 KiB, which the second cache holds with keys and values beside it.
const MOST_SCORES: i64 = 16 << 10;

/// With fewer keys than this three kernels do as well: what they hand on stays in cache.
const LEAST_KEYS: i64 = 128;

/// Numbers of a cache line.
const LINE: i64 = 16;

/// Fewer rows than this at a time would read keys and values too often.
const LEAST_ROWS: i64 = 4;

impl Builder<'_> {
    /// See the module. Nothing where keys are of a free number or too many, and for forms that have conditions.
    pub(super) fn row_blocks_of_attention(&mut self, flats: &[FlatNest]) -> Option<()> {
        let a = Attention::of(flats)?;
        let ([row], [column]) = (a.operands.rows.as_slice(), a.operands.columns.as_slice()) else { return None };
        let keys = a.key.known().filter(|&keys| keys >= LEAST_KEYS)?;
        let lanes = self.machine.lanes as i64;
        // What is beyond the last key takes part as minus infinity, so that rows are whole vectors.
        let width = (keys + 4 * lanes - 1) / (4 * lanes) * (4 * lanes);
        // Rows at a distance that 4,096 bytes divide would lie in one set of the cache.
        let stride = if width % 1024 == 0 { width + LINE } else { width };
        let scores = self.buffers.len();

        // Stages have the same names for loops of their own: all get new ones.
        let mut fresh = |axis: &Axis| Axis { symbol: self.symbol("x"), extent: axis.extent.clone() };
        let batch: Vec<Axis> = a.operands.batch.iter().map(&mut fresh).collect();
        let [own_row, own_column, own_key] = [row, column, &a.key].map(&mut fresh);
        let depth: Vec<Axis> = a.scores.folds.iter().map(&mut fresh).collect();
        let old = a.operands.batch.iter().chain([row, column, &a.key]);
        let new = batch.iter().chain([&own_row, &own_column, &own_key]);
        let names: At = old.zip(new).map(|(o, n)| (o.symbol.clone(), Expr::from(&n.symbol))).collect();
        let folds: At =
            a.scores.folds.iter().zip(&depth).map(|(o, n)| (o.symbol.clone(), Expr::from(&n.symbol))).collect();
        let renamed = |e: &Expr| e.substitute(&|s| names.get(s).cloned());
        let none = At::new();
        let of_stage = |code: &Code, at: &At, folds: &At| {
            let at: At = at.iter().map(|(s, e)| (s.clone(), renamed(e))).chain(folds.clone()).collect();
            plain(code).then(|| map_exprs(code, &|e| e.substitute(&|s| at.get(s).cloned())).ok()).flatten()
        };
        let of_out = |code: &Code| plain(code).then(|| map_exprs(code, &renamed).ok()).flatten();

        // The scores as the softmax sees them.
        let products = of_stage(&a.scores.body, &a.scores_at, &folds)?;
        // The fold of the greatest score is the key, which is no fold of the product.
        let (finish, seen) =
            (of_stage(&a.scores.finish, &a.scores_at, &none)?, of_stage(&a.seen.body, &a.seen_at, &none)?);
        let mut softened = Code::new();
        let argument = softened.arg(0, DType::F32);
        let is_argument = |node: &Scalar| matches!(node, Scalar::Arg(_));
        let score = softened.inline(&finish, &mut |_, node, _| Ok(is_argument(node).then_some(argument))).ok()?;
        let is_score = |node: &Scalar| matches!(node, Scalar::Load(Source::Stage(_), _));
        let score = softened.inline(&seen, &mut |_, node, _| Ok(is_score(node).then_some(score))).ok()?;
        softened.set_result(score);
        let nest =
            |axes: &[&Axis], folds: &[Axis], combine: BinaryOp, body: Code, finish: Code, store: Expr| FlatNest {
                axes: axes.iter().map(|&a| a.clone()).collect(),
                folds: folds.to_vec(),
                combine,
                body,
                finish,
                store,
                dims: a.out.dims.clone(),
            };
        // Row `row` of the block is the element's row less the first one's, or the row itself where only forms matter.
        let line = |row: &Expr, at: &Symbol| row.scale(stride).add(&Expr::from(at));
        let here = Expr::from(&own_row.symbol);
        let scored = |row: &Expr| {
            let (body, finish, store) = (products.clone(), softened.clone(), line(row, &own_key.symbol));
            nest(&[&own_row, &own_key], &depth, BinaryOp::Add, body, finish, store)
        };

        // The products with the values, of which the left operand is in local memory.
        let load = |code: &mut Code, at: Expr| code.load(Source::Input(scores), vec![Coord::Index(at)], DType::F32);
        let (of_values, of_result) = (of_out(&a.out.body)?, of_out(&a.out.finish)?);
        let inverses = |rows: i64| Expr::from(rows * stride);
        let summed = |row: &Expr, most: i64| -> Option<FlatNest> {
            let mut body = Code::new();
            let product = body.inline(&of_values, &mut |out, node, _| {
                Ok(is_score(node).then(|| load(out, line(row, &own_key.symbol))))
            });
            body.set_result(product.ok()?);
            let mut finish = Code::new();
            let sum = finish.arg(0, DType::F32);
            let inverse = load(&mut finish, row.add(&inverses(most)));
            let value = finish.binary(BinaryOp::Mul, sum, inverse).ok()?;
            let result = finish.inline(&of_result, &mut |_, node, _| Ok(is_argument(node).then_some(value)));
            finish.set_result(result.ok()?);
            let store = renamed(&a.out.store);
            Some(nest(&[&own_row, &own_column], std::slice::from_ref(&own_key), BinaryOp::Add, body, finish, store))
        };

        let schedules = [scored(&here), summed(&here, 0)?].map(|n| Schedule::choose(&n, self.machine));
        let fits = |(s, column): (&Schedule, &Axis)| {
            let (down, across) = (s.row.as_ref() == Some(&own_row.symbol), s.column.as_ref() == Some(&column.symbol));
            down && across && s.lanes.is_none()
        };
        if !schedules.iter().zip([&own_key, &own_column]).all(fits) {
            return None;
        }
        let rows = schedules.iter().map(|s| s.rows).min()?.min(MOST_SCORES / (stride + 1));
        if rows < LEAST_ROWS.min(own_row.known().unwrap_or(LEAST_ROWS)) {
            return None;
        }
        let [scoring, summing] = schedules.map(|s| Schedule { rows, ..s });
        let cut = row_segments(&own_row.extent, rows, &a.out.dims);
        let most = cut.iter().map(|s| s.block).max()?;
        let local = self.local_named("scores", DType::F32, usize::try_from(most * (stride + 1)).ok()?);
        self.buffers.push(local);
        self.known.push(vec![]);

        for segment in cut {
            let of_rows = Some((own_row.symbol.clone(), segment.clone()));
            let mut grid: Vec<(Symbol, Expr)> = batch.iter().map(|a| (a.symbol.clone(), a.extent.clone())).collect();
            grid.extend(block_variables(&of_rows));
            let mut place = self.outermost(&a.out);
            grid.iter().for_each(|(symbol, extent)| place.enter(symbol, extent));
            // Local memory begins with the first row of the block.
            let inside = here.sub(&segment.first(&own_row.symbol));
            let mut body = Vec::new();
            self.within = Some(local);
            self.tiles_along(&mut body, &scored(&inside), &scoring, &place, &of_rows, &own_key)?;
            self.softmax_within(
                &mut body,
                &place,
                (scores, local),
                (segment.block, keys, width, stride),
                &inverses(most),
            )?;
            self.within = None;
            self.tiles_along(&mut body, &summed(&inside, most)?, &summing, &place, &of_rows, &own_column)?;
            self.program.parts.push(Part { grid, body });
        }
        Some(())
    }

    /// Register tiles of a block of rows along an axis of columns.
    fn tiles_along(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        schedule: &Schedule,
        place: &Place,
        rows: &Option<(Symbol, Segment)>,
        columns: &Axis,
    ) -> Option<()> {
        for segment in segments(&columns.extent, schedule.columns, self.machine.lanes as i64, &nest.dims) {
            let column = Some((columns.symbol.clone(), segment));
            self.for_blocks(body, &column, place, |this, inner, place| {
                this.register_tile(inner, nest, schedule, place, rows.clone(), column.clone())
            })?;
        }
        Some(())
    }

    /// Makes `exp(x - greatest)` of each row of scores, and behind all rows the inverses of their sums.
    fn softmax_within(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        (scores, local): (usize, usize),
        (rows, keys, width, stride): (i64, i64, i64, i64),
        inverses: &Expr,
    ) -> Option<()> {
        let var = self.symbol("r");
        let mut place = place.clone();
        place.enter(&var, &Expr::from(rows));
        place.shape = single();
        let key = Axis { symbol: self.symbol("x"), extent: Expr::from(width) };
        let address = Expr::from(&var).scale(stride).add(&Expr::from(&key.symbol));
        let dims = place.ranges.clone();
        let nest = |folded: bool, combine: BinaryOp, body: Code| {
            let (axes, folds) = if folded { (vec![], vec![key.clone()]) } else { (vec![key.clone()], vec![]) };
            let finish = Code::identity(DType::F32);
            FlatNest { axes, folds, combine, body, finish, store: address.clone(), dims: dims.clone() }
        };
        let mut loaded = Code::new();
        let score = loaded.load(Source::Input(scores), vec![Coord::Index(address.clone())], DType::F32);
        loaded.set_result(score);
        let mut exponential = loaded.clone();
        let greatest = exponential.load(Source::Stage(0), vec![], DType::F32);
        let shifted = exponential.binary(BinaryOp::Sub, score, greatest).ok()?;
        let power = exponential.unary(UnaryOp::Exp, shifted).ok()?;
        exponential.set_result(power);

        let mut inner = Vec::new();
        if keys < width {
            let mut nothing = Code::new();
            let least = nothing.constant(Constant::float(DType::F32, f64::NEG_INFINITY));
            nothing.set_result(least);
            let beyond = nest(false, BinaryOp::Add, nothing);
            let (lo, extent) = (Expr::from(keys), Expr::from(width - keys));
            self.walk(&mut inner, &beyond, &place, &key, &lo, &extent, self.machine.lanes as i64, &[])?;
        }
        let folded = |this: &mut Self, inner: &mut Vec<Stmt>, nest: &FlatNest| {
            let Schedule { lanes, unroll, .. } = Schedule::row(nest, this.machine);
            let tiling = Tiling { nest, stages: &[], row: None, column: None, lanes, unroll, factors: None };
            this.folded(inner, &tiling, &place)
        };
        let greatest = folded(self, &mut inner, &nest(true, BinaryOp::Max, loaded.clone()))?;
        let powers = nest(false, BinaryOp::Add, exponential);
        let step = self.machine.lanes as i64 * 2;
        self.walk(&mut inner, &powers, &place, &key, &Expr::default(), &key.extent, step, &[greatest])?;
        let sum = folded(self, &mut inner, &nest(true, BinaryOp::Add, loaded))?;
        let mut e = self.emitter(&[]);
        let value = e.define(&mut inner, DType::F32, single(), TileOp::Unary(UnaryOp::Recip, sum));
        let address = Expr::from(&var).add(inverses);
        inner.push(Stmt::Store { buffer: local, address, gathered: vec![], mask: vec![], value });
        let (lo, hi) = (Expr::default(), Expr::from(rows));
        body.push(Stmt::For(For { var, lo, hi, step: 1, carried: vec![], body: inner }));
        Some(())
    }
}

/// Whether code has neither conditions nor computed indices.
fn plain(code: &Code) -> bool {
    code.nodes().all(|(_, node)| match node {
        Scalar::Guard(..) => false,
        Scalar::Load(_, coords) => coords.iter().all(|c| c.expr().is_some()),
        _ => true,
    })
}
