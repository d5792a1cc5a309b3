//! Convolutions by tiles: what `window_tiles` and `tile_product` are on CPUs.
//!
//! Invariant: the programs compute what the nests say, in another order of additions: a window's 16 numbers of one channel are made
//! together, and the 16 products of a block of tiles are in the program's local memory before results are made of them. What does not have this form
//! is left to the nest.

use super::cuts::{Segment, block_variables, panel_of, panel_segments, row_segments, segments};
use super::emit::{Emitter, Place, tile_axis};
use super::flat::{Axis, FlatNest, Stride, map_exprs, stride};
use super::parts::{counted, loaded, stored};
use super::schedule::Schedule;
use super::{Builder, COLUMN, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::ops::tiles::{SECOND, SUMS};
use kiln_ir::scalar::{BinaryOp, Code, Coord, Scalar, Source};
use kiln_ir::tile::{Part, Stmt, TileId};

/// Most tiles of a block: its products, of one panel of columns, stay in the second cache beside what they are made of.
const MOST_TILES: i64 = 60;

/// Most bytes of weights that stay in the second cache while blocks of tiles go by.
const NEAR_WEIGHTS: i64 = 512 << 10;

/// Whether the code is that of a product of tiles.
pub(crate) fn multiplies_tiles(code: &Code) -> bool {
    Operands::of(code).is_some()
}

/// What a product of tiles reads.
struct Operands {
    tiles: (usize, Expr),
    weights: (usize, Expr),
    /// What the product counts in the result.
    counts: Expr,
}

impl Operands {
    fn of(code: &Code) -> Option<Operands> {
        let load = |id| match code.node(id) {
            Scalar::Load(Source::Input(n), coords) if code.dtype(id) == DType::F32 => match coords.as_slice() {
                [Coord::Index(at), ..] => Some((*n, at.clone())),
                _ => None,
            },
            _ => None,
        };
        let Scalar::Select(_, _, product) = code.node(code.result()) else { return None };
        let Scalar::Binary(BinaryOp::Mul, sign, product) = code.node(*product) else { return None };
        let Scalar::Cast(DType::F32, sign) = code.node(*sign) else { return None };
        let (Scalar::Index(counts), Scalar::Binary(BinaryOp::Mul, tiles, weights)) =
            (code.node(*sign), code.node(*product))
        else {
            return None;
        };
        Some(Operands { tiles: load(*tiles)?, weights: load(*weights)?, counts: counts.clone() })
    }
}

/// A run of blocks of tiles along an axis.
struct Blocks {
    segment: Segment,
    /// Whether the last tile has one result along the axis, in place of two.
    odd: bool,
}

/// Blocks of at most so many tiles, for so many results.
fn blocks(results: i64, most: i64, dims: &Ranges) -> Option<Vec<Blocks>> {
    let mut found = Vec::new();
    for segment in row_segments(&Expr::from((results + 1) / 2), most, dims) {
        found.push(Blocks { segment, odd: false });
    }
    if results % 2 == 1 {
        let last = found.last_mut()?;
        let count = last.segment.count.as_const()?;
        let lo = last.segment.lo.add(&Expr::from((count - 1) * last.segment.block));
        let single = Segment::new(lo, last.segment.block, 1);
        last.segment.count = Expr::from(count - 1);
        found.push(Blocks { segment: single, odd: true });
    }
    found.retain(|b| b.segment.count.as_const() != Some(0));
    Some(found)
}

impl Builder<'_> {
    /// The 16 numbers of each window's products.
    pub(super) fn window_tiles(&mut self, nest: &FlatNest) -> Option<()> {
        let [picture, product, row, column, channel] = nest.axes.as_slice() else { return None };
        let code = &nest.body;
        // The nest reads the numbers of a product's own row and column first.
        let live = code.live();
        let (input, address) = code.nodes().find_map(|(id, node)| match node {
            Scalar::Load(Source::Input(n), coords) if live[id.index()] => match coords.as_slice() {
                [Coord::Index(at)] => Some((*n, at.clone())),
                _ => None,
            },
            _ => None,
        })?;
        let loops = nest.loops();
        let of_product = |e: &Expr, n: usize| loops.simplify(&e.replace(&product.symbol, &Expr::from(n as i64)));
        if [&of_product(&address, 0), &of_product(&nest.store, 0)]
            .iter()
            .any(|e| stride(e, &channel.symbol) != Stride::Known(1))
        {
            return None;
        }
        let source = *self.buffers.get(input)?;
        let out = self.program.arguments().count().checked_sub(1)?;
        let grid: Vec<(Symbol, Expr)> = [picture, row]
            .into_iter()
            .filter(|a| !a.is_single())
            .map(|a| (a.symbol.clone(), a.extent.clone()))
            .collect();
        let mut place = self.within(nest, &grid);
        [picture, row]
            .into_iter()
            .filter(|a| a.is_single())
            .for_each(|a| _ = place.at.insert(a.symbol.clone(), Expr::default()));
        let at = self.symbol("t");
        place.enter(&at, &column.extent);
        place.at.insert(column.symbol.clone(), Expr::from(&at));
        let lanes = self.machine.lanes as i64;
        let mut of_tile = Vec::new();
        for run in segments(&channel.extent, lanes, lanes, &nest.dims) {
            let (var, count) = (self.symbol("j"), run.count.as_const()?);
            let mut place = place.clone();
            place.enter(&var, &Expr::from((count - 1) * run.block + 1));
            place.shape = single();
            place.shape[COLUMN] = run.block as usize;
            place.ranges.insert(tile_axis(COLUMN), (0, run.block - 1));
            let first = run.lo.add(&Expr::from(&var)).add(&Expr::from(tile_axis(COLUMN)));
            place.at.insert(channel.symbol.clone(), first);
            let shape = place.shape.clone();
            let mut body = Vec::new();
            let mut e = self.emitter(&[]);
            let mut numbers = Vec::new();
            for n in 0..16 {
                let at = place.expr(&of_product(&address, n));
                numbers.push(e.define(&mut body, DType::F32, shape.clone(), loaded(source, at, DType::F32)));
            }
            let mut along = |body: &mut Vec<Stmt>, four: [TileId; 4], n: usize| {
                let (second, plus) = SECOND[n];
                e.binary(body, if plus { BinaryOp::Add } else { BinaryOp::Sub }, four[n], four[second])
            };
            let mut rows = Vec::new();
            for row in numbers.chunks_exact(4) {
                let row: [TileId; 4] = row.try_into().ok()?;
                rows.push([0, 1, 2, 3].map(|n| along(&mut body, row, n)));
            }
            for n in 0..16 {
                let four = [0, 1, 2, 3].map(|m: usize| rows[m][n % 4]);
                let value = along(&mut body, four, n / 4);
                let address = place.expr(&of_product(&nest.store, n));
                body.push(stored(out, address, value));
            }
            of_tile.push(counted(var, count * run.block, run.block, body));
        }
        let body = vec![counted(at, column.known()?, 1, of_tile)];
        self.program.parts.push(Part { grid, body });
        Some(())
    }

    /// The results of products of tiles; nothing is done where the nest has another form.
    pub(super) fn tile_product(&mut self, nest: &FlatNest) -> Option<()> {
        let ([picture, column, y, x], [product, channel]) = (nest.axes.as_slice(), nest.folds.as_slice()) else {
            return None;
        };
        let operands = Operands::of(&nest.body)?;
        let (height, width) = (y.known()?, x.known()?);
        if !counts_as_defined(&operands.counts, [&y.symbol, &x.symbol, &product.symbol]) {
            return None;
        }
        let (rows, columns) = ((height + 1) / 2, (width + 1) / 2);
        // The tiles' address by tile, of which the rows follow one another.
        let (down, along) = (self.symbol("t"), self.symbol("t"));
        let loops = nest.loops();
        let mut ranges = loops.ranges().clone();
        ranges.insert(down.clone(), (0, rows - 1));
        ranges.insert(along.clone(), (0, rows * columns - 1));
        let by_tile = |e: &Expr| {
            let e = e.replace(&y.symbol, &Expr::from(&down).scale(2)).replace(&x.symbol, &Expr::from(&along).scale(2));
            e.simplify(&ranges)
        };
        let tiles = by_tile(&operands.tiles.1);
        let (Stride::Known(of_row), Stride::Known(of_tile)) = (stride(&tiles, &down), stride(&tiles, &along)) else {
            return None;
        };
        let still = |e: &Expr, axes: &[&Symbol]| axes.iter().all(|s| !e.mentions(s));
        let apart = still(&tiles, &[&column.symbol, &y.symbol, &x.symbol])
            && still(&operands.weights.1, &[&picture.symbol, &y.symbol, &x.symbol])
            && stride(&tiles, &channel.symbol) == Stride::Known(1)
            && stride(&nest.store, &column.symbol) == Stride::Known(1);
        if !apart {
            return None;
        }
        // Whole rows of tiles where they follow one another, or a part of one.
        let whole = columns <= MOST_TILES && of_row == columns * of_tile;
        let in_rows = if whole { MOST_TILES / columns } else { 1 };
        let in_columns = if whole { columns } else { MOST_TILES };

        // One of the 16 products: a tile is a row.
        let row = Axis { symbol: along.clone(), extent: Expr::from(in_rows * in_columns) };
        let mut body = Code::new();
        let load = |body: &mut Code, (input, address): (usize, Expr)| {
            body.load(Source::Input(input), vec![Coord::Index(address)], DType::F32)
        };
        let left = load(&mut body, (operands.tiles.0, tiles.clone()));
        let right = load(&mut body, operands.weights.clone());
        let value = body.binary(BinaryOp::Mul, left, right).ok()?;
        body.set_result(value);
        let plain = FlatNest {
            axes: vec![row.clone(), column.clone()],
            folds: vec![channel.clone()],
            combine: BinaryOp::Add,
            body,
            finish: Code::identity(DType::F32),
            store: Expr::from(&column.symbol),
            dims: nest.dims.clone(),
        };
        let schedule = Schedule::choose(&plain, self.machine).with(self.choice);
        let fits = schedule.row.as_ref() == Some(&row.symbol) && schedule.column.as_ref() == Some(&column.symbol);
        if !fits || schedule.lanes.is_some() {
            return None;
        }
        let panel = panel_of(&plain, &column.symbol);
        let across = panel.map_or(schedule.columns, |p| schedule.columns.min(p));
        let lanes = self.machine.lanes as i64;
        let (down_blocks, along_blocks) =
            (blocks(height, in_rows, &nest.dims)?, blocks(width, in_columns, &nest.dims)?);
        let near = 16 * channel.known()? * column.known()? * 4 <= NEAR_WEIGHTS;
        for panels in panel_segments(column, across, lanes, panel, &nest.dims) {
            let of_columns = Some((column.symbol.clone(), panels.clone()));
            for (down_run, along_run) in down_blocks.iter().flat_map(|d| along_blocks.iter().map(move |a| (d, a))) {
                let (of_rows, of_tiles) = (
                    Some((y.symbol.clone(), down_run.segment.clone())),
                    Some((x.symbol.clone(), along_run.segment.clone())),
                );
                let others = (!picture.is_single()).then(|| (picture.symbol.clone(), picture.extent.clone()));
                let of_blocks: Vec<(Symbol, Expr)> =
                    others.into_iter().chain(block_variables(&of_rows)).chain(block_variables(&of_tiles)).collect();
                let of_panels = block_variables(&of_columns);
                // Weights that no near cache holds are read once.
                let grid = if near { [of_blocks, of_panels].concat() } else { [of_panels, of_blocks].concat() };
                let mut place = self.within(nest, &grid);
                if picture.is_single() {
                    place.at.insert(picture.symbol.clone(), Expr::default());
                }
                let first = (down_run.segment.first(&y.symbol), along_run.segment.first(&x.symbol));
                let count = down_run.segment.block * along_run.segment.block;
                let local = self.named("products", DType::F32, count * 16 * panels.block);
                let mut body = Vec::new();

                // The products, one after the other.
                let k = self.symbol("k");
                let mut within = place.clone();
                within.enter(&k, &Expr::from(16i64));
                within.at.insert(product.symbol.clone(), Expr::from(&k));
                within.at.insert(down.clone(), first.0.clone());
                let moved = |e: &Expr| e.replace(&along, &Expr::from(&along).add(&first.1));
                let own = Expr::from(&column.symbol).sub(&panels.first(&column.symbol));
                let store = Expr::from(&k).scale(count).add(&Expr::from(&along)).scale(panels.block).add(&own);
                let block = FlatNest {
                    axes: vec![Axis { symbol: along.clone(), extent: Expr::from(count) }, column.clone()],
                    store,
                    body: map_exprs(&plain.body, &moved).ok()?,
                    ..plain.clone()
                };
                let mut of_product = Vec::new();
                self.within = Some(local);
                let mut done = Some(());
                for rows in row_segments(&Expr::from(count), schedule.rows, &nest.dims) {
                    let rows = Some((along.clone(), rows));
                    done = done.and(self.for_blocks(&mut of_product, &rows, &within, |this, inner, place| {
                        this.register_tile(inner, &block, &schedule, place, rows.clone(), of_columns.clone())
                    }));
                }
                self.within = None;
                done?;
                body.push(counted(k, 16, 1, of_product));

                // The results, tile by tile.
                let ends = |b: &Blocks| {
                    let full = b.segment.block - i64::from(b.odd);
                    [(0, full, 2), (full, i64::from(b.odd), 1)].into_iter().filter(|(_, count, _)| *count > 0)
                };
                for (row_lo, row_count, high) in ends(down_run) {
                    for (column_lo, column_count, wide) in ends(along_run) {
                        let (r, c) = (self.symbol("t"), self.symbol("t"));
                        let mut place = place.clone();
                        place.enter(&r, &Expr::from(row_count));
                        place.enter(&c, &Expr::from(column_count));
                        let (r_at, c_at) =
                            (Expr::from(&r).add(&Expr::from(row_lo)), Expr::from(&c).add(&Expr::from(column_lo)));
                        let tile = r_at.scale(along_run.segment.block).add(&c_at);
                        let pixel = [first.0.add(&r_at).scale(2), first.1.add(&c_at).scale(2)];
                        let axes = [&y.symbol, &x.symbol];
                        let mut inner = Vec::new();
                        for run in segments(&Expr::from(panels.block), lanes, lanes, &nest.dims) {
                            let var = self.symbol("j");
                            let mut place = place.clone();
                            let steps = run.count.as_const()?;
                            place.enter(&var, &Expr::from((steps - 1) * run.block + 1));
                            place.shape = single();
                            place.shape[COLUMN] = run.block as usize;
                            place.ranges.insert(tile_axis(COLUMN), (0, run.block - 1));
                            let own = run.lo.add(&Expr::from(&var)).add(&Expr::from(tile_axis(COLUMN)));
                            place.at.insert(column.symbol.clone(), panels.first(&column.symbol).add(&own));
                            let address = |k: i64| Expr::from(k * count).add(&tile).scale(panels.block).add(&own);
                            let mut of_run = Vec::new();
                            self.summed_tile(
                                &mut of_run,
                                nest,
                                &place,
                                (local, &address),
                                (pixel.clone(), axes, [high, wide]),
                            )?;
                            inner.push(counted(var, steps * run.block, run.block, of_run));
                        }
                        let inner = vec![counted(c, column_count, 1, inner)];
                        body.push(counted(r, row_count, 1, inner));
                    }
                }
                self.program.parts.push(Part { grid, body });
            }
        }
        Some(())
    }

    /// A tile's results of its 16 products, `high` by `wide` of them from a pixel on.
    fn summed_tile(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        place: &Place,
        (local, address): (usize, &dyn Fn(i64) -> Expr),
        (pixel, axes, sizes): ([Expr; 2], [&Symbol; 2], [usize; 2]),
    ) -> Option<()> {
        let mut e = self.emitter(&[]);
        let mut columns = Vec::new();
        for n in 0..4 {
            let mut four = Vec::new();
            for m in 0..4 {
                let load = loaded(local, place.expr(&address(4 * m + n)), DType::F32);
                four.push(e.define(body, DType::F32, place.shape.clone(), load));
            }
            let sums: Vec<TileId> = (0..sizes[0]).map(|of| summed(&mut e, body, &four, of)).collect::<Option<_>>()?;
            columns.push(sums);
        }
        for down in 0..sizes[0] {
            let four: Vec<TileId> = columns.iter().filter_map(|sums| sums.get(down).copied()).collect();
            for along in 0..sizes[1] {
                let value = summed(&mut self.emitter(&[]), body, &four, along)?;
                let mut place = place.clone();
                for ((axis, first), within) in axes.into_iter().zip(&pixel).zip([down, along]) {
                    place.at.insert(axis.clone(), first.add(&Expr::from(within)));
                }
                let value = self.finished(body, nest, &place, value, &[])?;
                self.store(body, nest, &place, value);
            }
        }
        Some(())
    }
}

/// The sum of what four products count in a result.
fn summed(e: &mut Emitter<'_>, body: &mut Vec<Stmt>, four: &[TileId], of: usize) -> Option<TileId> {
    let counted = SUMS.get(of)?.iter().zip(four).filter(|(count, _)| **count != 0);
    counted.fold(None, |total, (&count, &value)| {
        Some(match total {
            // The first one that counts is added in both results.
            None => value,
            Some(total) => e.binary(body, if count > 0 { BinaryOp::Add } else { BinaryOp::Sub }, total, value),
        })
    })
}

/// Whether an expression over a pixel and a product is what the product counts in the pixel's result.
fn counts_as_defined(counts: &Expr, [y, x, product]: [&Symbol; 3]) -> bool {
    let pixels = [(0i64, 0i64), (0, 1), (1, 0), (1, 1)];
    pixels.into_iter().flat_map(|pixel| (0..16usize).map(move |k| (pixel, k))).all(|((down, along), k)| {
        let value =
            |s: &Symbol| [(y, down), (x, along), (product, k as i64)].iter().find(|(n, _)| *n == s).map(|n| n.1);
        counts.eval(&value) == Some(SUMS[down as usize][k / 4] * SUMS[along as usize][k % 4])
    })
}
