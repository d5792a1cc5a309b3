//! Attention in one kernel on CPUs: the scores of a block of queries stay in the program's local memory, in the nearest caches.
//!
//! Invariant: a program has some rows of queries. It multiplies them with keys, takes the softmax of each row where its scores lie, and
//! multiplies with the values; rows are divided by their sums at the end. Where local memory holds the scores of all keys, a row's are
//! all there at once. Else the program goes along the keys in stretches (Milakov and Gimelshein 2018, online softmax): it keeps the greatest
//! score of each row so far, the sum of the exponentials below it and their product with the values, and scales sum and product down
//! where a greater score comes. Fully masked rows are what the definition makes of them in both. Keys that no row of the block sees are not visited.

use super::Builder;
use super::attention::{At, Attention};
use super::causal::Seen;
use super::cuts::{Segment, block_variables, overlapping, row_segments, segments};
use super::emit::Place;
use super::flat::{Axis, FlatNest, map_exprs};
use super::online::{Keys, Kind, Local};
use super::schedule::Schedule;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Scalar, Source};
use kiln_ir::tile::{For, Part, Stmt};

/// Most numbers of f32 that a block of queries has in local memory, which is on the stack: 64 KiB, which the second cache holds with keys and values beside it.
const MOST_NUMBERS: i64 = 16 << 10;

/// Fewer rows than this at a time would read keys and values too often.
const LEAST_ROWS: i64 = 4;

/// Most vectors of columns of a tile of few rows.
const WIDE: i64 = 8;

/// The code of attention with loops of its own for a program: stages have the same names for theirs.
pub(super) struct Nests {
    /// The queries of a block.
    pub row: Axis,
    /// The elements of a value.
    pub column: Axis,
    /// The keys of a stretch, counted from its first one.
    pub key: Axis,
    /// The elements of a query.
    pub depth: Vec<Axis>,
    /// What a program has one of each.
    pub batch: Vec<Axis>,
    /// What is summed to a score.
    pub products: Code,
    /// What becomes of that sum before the softmax.
    softened: Code,
    /// What is summed to a product with the values, and what becomes of it.
    pub of_values: Code,
    of_result: Code,
    /// As [`Attention::nan_is_zero`] has it.
    nan_is_zero: bool,
    in_stretches: bool,
    /// Address of a result.
    store: Expr,
    pub dims: Ranges,
    /// What axes of the group are here.
    names: At,
}

fn is_argument(node: &Scalar) -> bool {
    matches!(node, Scalar::Arg(_))
}

fn is_score(node: &Scalar) -> bool {
    matches!(node, Scalar::Load(Source::Stage(_), _))
}

impl Nests {
    /// Nothing where indices are computed, or what is multiplied has conditions.
    pub fn of(a: &Attention<'_>, keys: &Keys, symbol: &mut dyn FnMut() -> Symbol) -> Option<Nests> {
        let [of_columns] = a.operands.columns.as_slice() else { return None };
        // Of several axes of queries the longest is that of the blocks, as the rows of a group of heads.
        let of_rows = a.operands.rows.iter().max_by_key(|row| a.out.guess(row))?;
        let others = a.operands.rows.iter().filter(|row| row.symbol != of_rows.symbol);
        let of_batch: Vec<&Axis> = a.operands.batch.iter().chain(others).collect();
        let mut fresh = |axis: &Axis| Axis { symbol: symbol(), extent: axis.extent.clone() };
        let batch: Vec<Axis> = of_batch.iter().map(|a| fresh(a)).collect();
        let [row, column, mut key] = [of_rows, of_columns, &a.key].map(&mut fresh);
        let depth: Vec<Axis> = a.scores.folds.iter().map(&mut fresh).collect();
        key.extent = keys.count.clone();
        let old = of_batch.into_iter().chain([of_rows, of_columns]);
        let new = batch.iter().chain([&row, &column]);
        let mut names: At = old.zip(new).map(|(o, n)| (o.symbol.clone(), Expr::from(&n.symbol))).collect();
        names.insert(a.key.symbol.clone(), keys.first.add(&Expr::from(&key.symbol)));
        let folds: At =
            a.scores.folds.iter().zip(&depth).map(|(o, n)| (o.symbol.clone(), Expr::from(&n.symbol))).collect();
        let renamed = |e: &Expr| e.substitute(&|s| names.get(s).cloned());
        let of_stage = |code: &Code, at: &At, folds: &At| {
            let at: At = at.iter().map(|(s, e)| (s.clone(), renamed(e))).chain(folds.clone()).collect();
            picks_nothing(code).then(|| map_exprs(code, &|e| e.substitute(&|s| at.get(s).cloned())).ok()).flatten()
        };
        let of_out = |code: &Code| picks_nothing(code).then(|| map_exprs(code, &renamed).ok()).flatten();
        // What is multiplied is loaded in vectors.
        if !without_conditions(&a.scores.body) || !without_conditions(&a.out.body) {
            return None;
        }

        let products = of_stage(&a.scores.body, &a.scores_at, &folds)?;
        // The fold of the greatest score is the key, which is no fold of the product.
        let none = At::new();
        let (finish, seen) =
            (of_stage(&a.scores.finish, &a.scores_at, &none)?, of_stage(&a.seen.body, &a.seen_at, &none)?);
        let mut softened = Code::new();
        let argument = softened.arg(0, DType::F32);
        let score = softened.inline(&finish, &mut |_, node, _| Ok(is_argument(node).then_some(argument))).ok()?;
        let score = softened.inline(&seen, &mut |_, node, _| Ok(is_score(node).then_some(score))).ok()?;
        softened.set_result(score);
        let (of_values, of_result) = (of_out(&a.out.body)?, of_out(&a.out.finish)?);
        let dims = a.out.dims.clone();
        let (nan_is_zero, in_stretches, store) = (a.nan_is_zero, keys.stretch.is_some(), renamed(&a.out.store));
        #[rustfmt::skip]
        let nests = Nests { row, column, key, depth, batch, products, softened, of_values, of_result, nan_is_zero, in_stretches, store, dims, names };
        Some(nests)
    }

    /// With the keys of a block, where there is what the place knows.
    pub fn at_keys(&mut self, keys: &Keys, place: &Place) {
        self.key.extent = keys.count.clone();
        self.dims.extend(place.ranges.clone());
        if let Some((stretch, count)) = &keys.stretch {
            let most = count.bounds(&self.dims).1;
            self.dims.insert(stretch.clone(), (0, if most == i64::MAX { most } else { (most - 1).max(0) }));
        }
    }

    fn nest(&self, axes: &[&Axis], folds: &[Axis], body: Code, finish: Code, store: Expr) -> FlatNest {
        let axes = axes.iter().map(|&a| a.clone()).collect();
        FlatNest { axes, folds: folds.to_vec(), combine: BinaryOp::Add, body, finish, store, dims: self.dims.clone() }
    }

    /// The scores as the softmax sees them. Row `row` of the block is the element's row less the first one's, or the row itself where
    /// only forms matter; likewise below.
    pub fn scored(&self, local: &Local, row: &Expr) -> FlatNest {
        let store = local.score(row, &Expr::from(&self.key.symbol));
        self.nest(&[&self.row, &self.key], &self.depth, self.products.clone(), self.softened.clone(), store)
    }

    /// The products with the values, of which the left operand is in local memory: of all keys the result, of a stretch what is added to
    /// those before.
    pub fn summed(&self, local: &Local, row: &Expr) -> Option<FlatNest> {
        let mut body = Code::new();
        let key = Expr::from(&self.key.symbol);
        let product = body.inline(&self.of_values, &mut |out, node, _| {
            Ok(is_score(node).then(|| local.load(out, local.score(row, &key))))
        });
        body.set_result(product.ok()?);
        let mut finish = Code::new();
        let sum = finish.arg(0, DType::F32);
        let store = if self.in_stretches {
            let place = local.product(row, &Expr::from(&self.column.symbol));
            let before = local.load(&mut finish, place.clone());
            let scale = local.load(&mut finish, local.number(Kind::Scale, row));
            let result = finish.fma(before, scale, sum).ok()?;
            finish.set_result(result);
            place
        } else {
            self.divide(&mut finish, local, row, sum)?;
            self.store.clone()
        };
        let (axes, folds) = ([&self.row, &self.column], std::slice::from_ref(&self.key));
        Some(self.nest(&axes, folds, body, finish, store))
    }

    /// The results of a row whose products are in local memory.
    fn ended(&self, local: &Local, row: &Expr) -> Option<FlatNest> {
        let mut body = Code::new();
        let sum = local.load(&mut body, local.product(row, &Expr::from(&self.column.symbol)));
        self.divide(&mut body, local, row, sum)?;
        Some(self.nest(&[&self.column], &[], body, Code::identity(DType::F32), self.store.clone()))
    }

    /// Makes the result of a row's product with the values.
    fn divide(&self, code: &mut Code, local: &Local, row: &Expr, sum: Id<Scalar>) -> Option<()> {
        let inverse = local.load(code, local.number(Kind::Inverse, row));
        let mut value = code.binary(BinaryOp::Mul, sum, inverse).ok()?;
        if self.nan_is_zero {
            let is_nan = code.binary(BinaryOp::Ne, inverse, inverse).ok()?;
            let zero = code.constant(Constant::float(DType::F32, 0.0));
            value = code.select(is_nan, zero, value).ok()?;
        }
        let result = code.inline(&self.of_result, &mut |_, node, _| Ok(is_argument(node).then_some(value)));
        code.set_result(result.ok()?);
        Some(())
    }
}

impl Builder<'_> {
    /// See the module. Nothing where keys are few, or of a number that may be 0, and for forms that [`Nests`] has not. Keys that are not `seen` are
    /// not visited.
    pub(super) fn row_blocks_of_attention(&mut self, flats: &[FlatNest], seen: Option<&Seen>) -> Option<()> {
        let a = Attention::of(flats)?;
        let seen = seen.filter(|seen| a.operands.rows.iter().any(|row| row.symbol == seen.token));
        let ends = seen.map(|_| [self.symbol("f"), self.symbol("e")]);
        let keys = Keys::of(&a, self.machine, ends.as_ref(), || self.symbol("s"))?;
        let mut nests = Nests::of(&a, &keys, &mut || self.symbol("x"))?;
        let columns = nests.column.known()?;
        let (buffer, input) = (self.program.buffers.len(), self.buffers.len());
        let mut local = Local { input, buffer, rows: 0, stride: keys.stride, columns };

        let here = Expr::from(&nests.row.symbol);
        let known = |nest: FlatNest| {
            let of = |a: &Axis| Axis {
                extent: if a.symbol == nests.key.symbol { Expr::from(keys.most) } else { a.extent.clone() },
                ..a.clone()
            };
            FlatNest { axes: nest.axes.iter().map(of).collect(), folds: nest.folds.iter().map(of).collect(), ..nest }
        };
        let schedules = [nests.scored(&local, &here), nests.summed(&local, &here)?]
            .map(|n| Schedule::choose(&known(n), self.machine));
        let fits = |(s, column): (&Schedule, &Axis)| {
            let (down, across) = (s.row.as_ref() == Some(&nests.row.symbol), s.column.as_ref() == Some(&column.symbol));
            down && across && s.lanes.is_none()
        };
        if !schedules.iter().zip([&nests.key, &nests.column]).all(fits) {
            return None;
        }
        let of_row = Local::of_row(keys.stride, columns, nests.in_stretches);
        let rows = schedules.iter().map(|s| s.rows).min()?.min(MOST_NUMBERS / of_row);
        if rows < LEAST_ROWS.min(nests.row.known().unwrap_or(LEAST_ROWS)) {
            return None;
        }
        let cut = row_segments(&nests.row.extent, rows, &a.out.dims);
        local.rows = cut.iter().map(|s| s.block).max()?;
        self.local_named("scores", DType::F32, usize::try_from(local.rows * of_row).ok()?);
        self.buffers.push(buffer);
        self.known.push(vec![]);

        for segment in cut {
            let of_rows = Some((nests.row.symbol.clone(), segment.clone()));
            let mut grid: Vec<(Symbol, Expr)> =
                nests.batch.iter().map(|a| (a.symbol.clone(), a.extent.clone())).collect();
            grid.extend(block_variables(&of_rows));
            let mut place = self.outermost(&a.out);
            grid.iter().for_each(|(symbol, extent)| place.enter(symbol, extent));
            // Local memory begins with the first row of the block.
            let first = segment.first(&nests.row.symbol);
            let inside = here.sub(&first);
            let mut keys = keys.clone();
            if let (Some(seen), Some(ends)) = (seen, &ends) {
                let token = nests.names.get(&seen.token)?;
                let one = Expr::from(1i64);
                let (least, most) = if *token == here {
                    (first.clone(), first.add(&Expr::from(segment.block - 1)))
                } else {
                    (token.clone(), token.clone())
                };
                let lanes = self.machine.lanes as i64;
                let begin = seen.first.as_ref().map_or(Expr::default(), |first| {
                    least.add(first).greatest(&Expr::default()).floor_div(&Expr::from(lanes)).scale(lanes)
                });
                let end = most.add(&seen.last).add(&one).least(&a.key.extent);
                let known = ends.iter().cloned().zip([begin, end].map(|e| e.simplify(&place.ranges)));
                place.at.extend(known);
                keys = keys.between(&place.at, &place.ranges);
            }
            nests.at_keys(&keys, &place);
            let wide = |s: &Schedule, extent: i64| {
                let few = segment.block <= LEAST_ROWS;
                let most = WIDE * self.machine.lanes as i64;
                let columns = few.then(|| (self.machine.wide_columns(segment.block, extent as usize) as i64).min(most));
                Schedule { rows: segment.block, columns: columns.unwrap_or(s.columns), ..s.clone() }
            };
            let [scoring, summing] = [wide(&schedules[0], keys.most), wide(&schedules[1], columns)];
            let (scored, summed) = (nests.scored(&local, &inside), nests.summed(&local, &inside)?);
            let (mut body, mut inner) = (Vec::new(), Vec::new());
            let mut of_stretch = place.clone();
            if let Some((stretch, count)) = &keys.stretch {
                of_stretch.enter(stretch, count);
                self.begun(&mut body, &place, &local, segment.block)?;
            }
            self.within = Some(buffer);
            let lanes = self.machine.lanes as i64;
            let across = overlapping(&nests.key.extent, scoring.columns, lanes, &nests.dims);
            self.tiles_along(&mut inner, &scored, &scoring, &of_stretch, &of_rows, (&nests.key, across))?;
            self.softmax_within(&mut inner, &of_stretch, &local, &keys, segment.block)?;
            self.within = keys.stretch.as_ref().map(|_| buffer);
            let across = segments(&nests.column.extent, summing.columns, lanes, &nests.dims);
            self.tiles_along(&mut inner, &summed, &summing, &of_stretch, &of_rows, (&nests.column, across))?;
            self.within = None;
            if let Some((var, hi)) = keys.stretch.clone() {
                body.push(Stmt::For(For { var, lo: Expr::default(), hi, step: 1, carried: vec![], body: inner }));
                self.ended(&mut body, &place, &local, &nests, (&first, segment.block))?;
            } else {
                body = inner;
            }
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
        (columns, cut): (&Axis, Vec<Segment>),
    ) -> Option<()> {
        for segment in cut {
            let column = Some((columns.symbol.clone(), segment));
            self.for_blocks(body, &column, place, |this, inner, place| {
                this.register_tile(inner, nest, schedule, place, rows.clone(), column.clone())
            })?;
        }
        Some(())
    }

    /// After the last stretch: divides the products of `rows` rows, the first of which is `first`, by their sums.
    fn ended(
        &mut self,
        body: &mut Vec<Stmt>,
        place: &Place,
        local: &Local,
        nests: &Nests,
        (first, rows): (&Expr, i64),
    ) -> Option<()> {
        self.for_rows(body, place, rows, |this, inner, place, row| {
            let mut place = place.clone();
            place.at.insert(nests.row.symbol.clone(), first.add(row));
            let sum = this.number(inner, local, Kind::Sum, row);
            this.set_inverse(inner, local, row, sum);
            let nest = nests.ended(local, row)?;
            let width = this.machine.lanes as i64 * this.machine.pointwise_vectors(&nest);
            let column = &nests.column;
            this.walk(inner, &nest, &place, column, &Expr::default(), &column.extent, width, &[])
        })
    }
}

/// Whether code has no computed indices.
fn picks_nothing(code: &Code) -> bool {
    code.nodes().all(|(_, node)| match node {
        Scalar::Load(_, coords) => coords.iter().all(|c| c.expr().is_some()),
        _ => true,
    })
}

/// Whether code has no conditions on indices.
fn without_conditions(code: &Code) -> bool {
    code.nodes().all(|(_, node)| !matches!(node, Scalar::Guard(..)))
}
