//! Convolutions by tiles: what `window_tiles` and `tile_product` are on CPUs.
//!
//! Invariant: the programs compute what the nests say, in another order of additions: a window's 16 numbers of one channel are made
//! together, and the 16 products of a block of tiles are in the program's local memory before results are made of them. What does not have this form
//! is left to the nest.

use super::cuts::{Segment, block_variables, panel_of, panel_segments, row_segments, segments};
use super::emit::{Emitter, Place, tile_axis};
use super::flat::{Axis, FlatNest, Stride, stride};
use super::parts::{counted, loaded, stored};
use super::schedule::Schedule;
use super::{Builder, COLUMN, MOST_BOXES, MOST_LOCAL, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::id::Id;
use kiln_ir::ops::tiles::{SECOND, SUMS};
use kiln_ir::scalar::{BinaryOp, Code, Coord, Scalar, Source};
use kiln_ir::tile::{Part, Stmt, TileId};

/// Most tiles of a block: its products, of one panel of columns, stay in the second cache beside what they are made of.
const MOST_TILES: i64 = 60;

/// Most bytes of weights that stay in the second cache while blocks of tiles go by.
const NEAR_WEIGHTS: i64 = 512 << 10;

/// With fewer tiles than this in a block, weights would be read too often; columns of a panel, which is as wide as any.
const LEAST_BLOCK: i64 = 16;
const PANEL: i64 = 32;

/// Whether a program may make the tiles that it multiplies, of so many channels, for so many results of a pixel.
pub(crate) fn may_make_tiles(channels: i64, outputs: i64) -> bool {
    let near = channels.saturating_mul(outputs).saturating_mul(64) <= NEAR_WEIGHTS;
    near && MOST_LOCAL / (16 * (channels.clamp(1, MOST_LOCAL) + PANEL)) >= LEAST_BLOCK
}

/// Whether the code is that of a product of tiles, be it within a border.
pub(crate) fn multiplies_tiles(code: &Code) -> bool {
    let product = match code.node(code.result()) {
        Scalar::Guard(_, product, _) => *product,
        _ => code.result(),
    };
    Operands::at(code, product).is_some()
}

/// Where the tiles are that a product reads.
enum Tiles {
    /// Another kernel's result: the input, and the address.
    Made(usize, Expr),
    /// The program makes them: the index.
    Own(Vec<Expr>),
}

/// What a product of tiles reads.
struct Operands {
    tiles: Tiles,
    weights: (usize, Expr),
    /// What the product counts in the result.
    counts: Expr,
}

impl Operands {
    fn of(code: &Code) -> Option<Operands> {
        Operands::at(code, code.result())
    }

    fn at(code: &Code, product: Id<Scalar>) -> Option<Operands> {
        let load = |id| match code.node(id) {
            Scalar::Load(Source::Input(n), coords) if code.dtype(id) == DType::F32 => match coords.as_slice() {
                [Coord::Index(at), ..] => Some((*n, at.clone())),
                _ => None,
            },
            _ => None,
        };
        let Scalar::Select(nothing, none, product) = code.node(product) else { return None };
        let Scalar::Binary(BinaryOp::Mul, sign, product) = code.node(*product) else { return None };
        let zero = |id: &Id<Scalar>| matches!(code.node(*id), Scalar::Const(c) if c.bits == 0);
        let counts_nothing = matches!(code.node(*nothing), Scalar::Binary(BinaryOp::Eq, a, b) if a == sign && zero(b));
        if !counts_nothing || !zero(none) {
            return None;
        }
        let Scalar::Cast(DType::F32, sign) = code.node(*sign) else { return None };
        let (Scalar::Index(counts), Scalar::Binary(BinaryOp::Mul, tiles, weights)) =
            (code.node(*sign), code.node(*product))
        else {
            return None;
        };
        let tiles = match code.node(*tiles) {
            Scalar::Load(Source::Stage(0), coords) => {
                Tiles::Own(coords.iter().map(|c| c.expr().cloned()).collect::<Option<_>>()?)
            }
            _ => load(*tiles).map(|(input, at)| Tiles::Made(input, at))?,
        };
        Some(Operands { tiles, weights: load(*weights)?, counts: counts.clone() })
    }
}

/// A run of blocks of tiles along an axis.
struct Blocks {
    segment: Segment,
    /// Whether the last tile has one result along the axis, in place of two.
    odd: bool,
}

impl Blocks {
    /// Of at most so many tiles, for so many results.
    fn of(results: i64, most: i64, dims: &Ranges) -> Option<Vec<Blocks>> {
        let cut = row_segments(&Expr::from((results + 1) / 2), most, dims);
        let mut found: Vec<Blocks> = cut.into_iter().map(|segment| Blocks { segment, odd: false }).collect();
        if results % 2 == 1 {
            let last = found.last_mut()?;
            let (block, count) = (last.segment.block, last.segment.count.as_const()?);
            let lo = last.segment.lo.add(&Expr::from((count - 1) * block));
            last.segment.count = Expr::from(count - 1);
            found.push(Blocks { segment: Segment::new(lo, block, 1), odd: true });
        }
        found.retain(|b| b.segment.count.as_const() != Some(0));
        Some(found)
    }

    /// The first tiles that have so many results along the axis, how many of them there are, and these.
    fn ends(&self) -> impl Iterator<Item = (i64, i64, usize)> {
        let full = self.segment.block - i64::from(self.odd);
        [(0, full, 2), (full, i64::from(self.odd), 1)].into_iter().filter(|(_, count, _)| *count > 0)
    }
}

/// The windows that a nest of `window_tiles` reads.
struct Windows<'a> {
    nest: &'a FlatNest,
    buffer: usize,
    /// The number that is at a product's own row and column in its window.
    address: Expr,
    product: &'a Symbol,
    channel: &'a Axis,
}

impl<'a> Windows<'a> {
    fn of(nest: &'a FlatNest, buffers: &[usize]) -> Option<Windows<'a>> {
        let [_, product, _, _, channel] = nest.axes.as_slice() else { return None };
        let (code, live) = (&nest.body, nest.body.live());
        // The nest reads the numbers of a product's own row and column first.
        let (input, address) = code.nodes().find_map(|(id, node)| match node {
            Scalar::Load(Source::Input(n), coords) if live[id.index()] => match coords.as_slice() {
                [Coord::Index(at)] => Some((*n, at.clone())),
                _ => None,
            },
            _ => None,
        })?;
        let buffer = *buffers.get(input)?;
        let windows = Windows { nest, buffer, address, product: &product.symbol, channel };
        (stride(&windows.of_product(&windows.address, 0), &channel.symbol) == Stride::Known(1)).then_some(windows)
    }

    fn of_product(&self, e: &Expr, n: usize) -> Expr {
        e.replace(self.product, &Expr::from(n as i64))
    }
}

/// A product of tiles.
struct Product<'a> {
    nest: &'a FlatNest,
    picture: &'a Axis,
    column: &'a Axis,
    y: &'a Axis,
    x: &'a Axis,
    product: &'a Symbol,
    channel: &'a Axis,
    weights: (usize, Expr),
    /// The tile's number along rows of tiles that follow one another.
    tile: Symbol,
    schedule: Schedule,
    /// How the columns are cut.
    panels: Vec<Segment>,
}

/// A block of tiles of each program.
struct Block<'a> {
    rows: &'a Blocks,
    columns: &'a Blocks,
    /// The first tile.
    first: [Expr; 2],
}

impl Block<'_> {
    fn tiles(&self) -> i64 {
        self.rows.segment.block * self.columns.segment.block
    }
}

impl<'a> Product<'a> {
    /// `left` makes the input and the address of a tile's number, of the tile's row and its number along rows.
    fn of(
        builder: &mut Builder<'_>,
        nest: &'a FlatNest,
        operands: &Operands,
        left: (usize, &Expr),
    ) -> Option<Product<'a>> {
        let ([picture, column, y, x], [product, channel]) = (nest.axes.as_slice(), nest.folds.as_slice()) else {
            return None;
        };
        let still = |e: &Expr, axes: &[&Axis]| axes.iter().all(|a| !e.mentions(&a.symbol));
        let fits = nest.combine == BinaryOp::Add
            && counts_as_defined(&operands.counts, [&y.symbol, &x.symbol, &product.symbol])
            && still(&operands.weights.1, &[picture, y, x])
            && stride(&nest.store, &column.symbol) == Stride::Known(1)
            && [y, x, channel, column].iter().all(|a| a.known().is_some());
        if !fits {
            return None;
        }
        let tile = builder.symbol("t");
        let plain = plain(nest, (&tile, MOST_TILES), (left.0, left.1.add(&Expr::from(&tile))), &operands.weights)?;
        let schedule = Schedule::choose(&plain, builder.machine).with(builder.choice);
        let rows_by_tile = schedule.row.as_ref() == Some(&tile) && schedule.column.as_ref() == Some(&column.symbol);
        if !rows_by_tile || schedule.lanes.is_some() {
            return None;
        }
        let panel = panel_of(&plain, &column.symbol);
        let across = panel.map_or(schedule.columns, |p| schedule.columns.min(p));
        let panels = panel_segments(column, across, builder.machine.lanes as i64, panel, &nest.dims);
        let (product, weights) = (&product.symbol, operands.weights.clone());
        Some(Product { nest, picture, column, y, x, product, channel, weights, tile, schedule, panels })
    }

    /// Tiles along a row.
    fn columns(&self) -> Option<i64> {
        Some((self.x.known()? + 1) / 2)
    }

    /// How many tiles a block may have beside whose products there are numbers of so many channels in local memory.
    fn most_tiles(&self, channels: i64) -> Option<i64> {
        let widest = self.panels.iter().map(|p| p.block).max()?;
        Some((MOST_LOCAL / (16 * (channels + widest))).clamp(1, MOST_TILES))
    }

    /// Blocks of at most so many tiles: whole rows where these follow one another and are short, or parts of one.
    fn blocks(&self, most: i64, follow: bool) -> Option<Vec<(Blocks, Blocks)>> {
        let columns = self.columns()?;
        let (down, along) = if follow && columns <= most { (most / columns, columns) } else { (1, most) };
        let dims = &self.nest.dims;
        let mut all = Vec::new();
        for rows in Blocks::of(self.y.known()?, down, dims)? {
            for columns in Blocks::of(self.x.known()?, along, dims)? {
                let rows = Blocks { segment: rows.segment.clone(), odd: rows.odd };
                all.push((rows, columns));
            }
        }
        Some(all)
    }

    fn block<'b>(&self, (rows, columns): &'b (Blocks, Blocks)) -> Block<'b> {
        let first = [rows.segment.first(&self.y.symbol), columns.segment.first(&self.x.symbol)];
        Block { rows, columns, first }
    }

    /// The grid's variables over pictures and blocks.
    fn variables(&self, block: &Block<'_>) -> Vec<(Symbol, Expr)> {
        let pictures = (!self.picture.is_single()).then(|| (self.picture.symbol.clone(), self.picture.extent.clone()));
        let of = |axis: &Axis, blocks: &Blocks| block_variables(&Some((axis.symbol.clone(), blocks.segment.clone())));
        pictures.into_iter().chain(of(self.y, block.rows)).chain(of(self.x, block.columns)).collect()
    }

    fn place(&self, builder: &Builder<'_>, grid: &[(Symbol, Expr)]) -> Place {
        let mut place = builder.within(self.nest, grid);
        if self.picture.is_single() {
            place.at.insert(self.picture.symbol.clone(), Expr::default());
        }
        place
    }

    /// An expression over a result's row and column as one over its tile's.
    fn by_tile(&self, e: &Expr, down: &Symbol) -> Expr {
        let of = |tile: &Symbol| Expr::from(tile).scale(2);
        let e = e.replace(&self.y.symbol, &of(down)).replace(&self.x.symbol, &of(&self.tile));
        let mut ranges = self.nest.loops().ranges().clone();
        [down, &self.tile].into_iter().for_each(|s| _ = ranges.insert(s.clone(), (0, i64::from(u16::MAX))));
        e.simplify(&ranges)
    }
}

/// One of the 16 products of so many tiles, as a sum without end: what it is stored to is not said.
fn plain(
    nest: &FlatNest,
    (tile, count): (&Symbol, i64),
    left: (usize, Expr),
    weights: &(usize, Expr),
) -> Option<FlatNest> {
    let mut body = Code::new();
    let [left, right] =
        [left, weights.clone()].map(|(input, at)| body.load(Source::Input(input), vec![Coord::Index(at)], DType::F32));
    let value = body.binary(BinaryOp::Mul, left, right).ok()?;
    body.set_result(value);
    let (column, channel) = (nest.axes.get(1)?, nest.folds.get(1)?);
    Some(FlatNest {
        axes: vec![Axis { symbol: tile.clone(), extent: Expr::from(count) }, column.clone()],
        folds: vec![channel.clone()],
        combine: BinaryOp::Add,
        body,
        finish: Code::identity(DType::F32),
        store: Expr::from(&column.symbol),
        dims: nest.dims.clone(),
    })
}

/// Where in local memory a product's number is, of a tile and a channel.
type NumberAt<'f> = dyn Fn(&Expr, &Expr, &Symbol) -> Expr + 'f;

impl Builder<'_> {
    /// The 16 numbers of each window's products.
    pub(super) fn window_tiles(&mut self, nest: &FlatNest) -> Option<()> {
        let [picture, _, row, column, channel] = nest.axes.as_slice() else { return None };
        let windows = Windows::of(nest, &self.buffers)?;
        let out = self.program.arguments().count().checked_sub(1)?;
        let store = |n: usize| windows.of_product(&nest.store, n);
        if stride(&store(0), &channel.symbol) != Stride::Known(1) {
            return None;
        }
        let outer = || [picture, row].into_iter();
        let several = outer().filter(|a| !a.is_single());
        let grid: Vec<(Symbol, Expr)> = several.map(|a| (a.symbol.clone(), a.extent.clone())).collect();
        let mut place = self.within(nest, &grid);
        outer().filter(|a| a.is_single()).for_each(|a| _ = place.at.insert(a.symbol.clone(), Expr::default()));
        let at = self.symbol("t");
        place.enter(&at, &column.extent);
        place.at.insert(column.symbol.clone(), Expr::from(&at));
        let mut body = Vec::new();
        self.window(&mut body, &windows, &place, (out, &store))?;
        let body = vec![counted(at, column.known()?, 1, body)];
        self.program.parts.push(Part { grid, body });
        Some(())
    }

    /// The numbers of one window, of all channels, stored where `store` says for each product.
    fn window(
        &mut self,
        body: &mut Vec<Stmt>,
        windows: &Windows<'_>,
        place: &Place,
        (out, store): (usize, &dyn Fn(usize) -> Expr),
    ) -> Option<()> {
        let lanes = self.machine.lanes as i64;
        for run in segments(&windows.channel.extent, lanes, lanes, &windows.nest.dims) {
            let (place, var, end) = self.vectors(place, &run, &windows.channel.symbol, &Expr::default())?;
            let mut inner = Vec::new();
            let mut e = self.emitter(&[]);
            let mut numbers = Vec::new();
            for n in 0..16 {
                let load = loaded(windows.buffer, place.expr(&windows.of_product(&windows.address, n)), DType::F32);
                numbers.push(e.define(&mut inner, DType::F32, place.shape.clone(), load));
            }
            let mut along = |inner: &mut Vec<Stmt>, four: [TileId; 4], n: usize| {
                let (second, plus) = SECOND[n];
                e.binary(inner, if plus { BinaryOp::Add } else { BinaryOp::Sub }, four[n], four[second])
            };
            let mut rows = Vec::new();
            for row in numbers.chunks_exact(4) {
                let row: [TileId; 4] = row.try_into().ok()?;
                rows.push([0, 1, 2, 3].map(|n| along(&mut inner, row, n)));
            }
            for n in 0..16 {
                let four = [0, 1, 2, 3].map(|m: usize| rows[m][n % 4]);
                let value = along(&mut inner, four, n / 4);
                inner.push(stored(out, place.expr(&store(n)), value));
            }
            body.push(counted(var, end, run.block, inner));
        }
        Some(())
    }

    /// The place of a vector in a loop over a run of an axis, which begins at `base`; the loop's variable and its end.
    fn vectors(&mut self, place: &Place, run: &Segment, axis: &Symbol, base: &Expr) -> Option<(Place, Symbol, i64)> {
        let (var, end) = (self.symbol("j"), run.count.as_const()? * run.block);
        let mut place = place.clone();
        place.enter(&var, &Expr::from(end - run.block + 1));
        place.shape = single();
        place.shape[COLUMN] = run.block as usize;
        place.ranges.insert(tile_axis(COLUMN), (0, run.block - 1));
        let own = run.lo.add(&Expr::from(&var)).add(&Expr::from(tile_axis(COLUMN)));
        place.at.insert(axis.clone(), base.add(&own));
        Some((place, var, end))
    }

    /// The results of products of tiles that another kernel made.
    pub(super) fn tile_product(&mut self, nest: &FlatNest) -> Option<()> {
        let operands = Operands::of(&nest.body)?;
        let Tiles::Made(input, address) = &operands.tiles else { return None };
        let product = Product::of(self, nest, &operands, (*input, &Expr::default()))?;
        let down = self.symbol("t");
        let left = product.by_tile(address, &down);
        let beside = [product.column, product.y, product.x].iter().all(|a| !left.mentions(&a.symbol));
        let (Stride::Known(of_row), Stride::Known(of_tile)) = (stride(&left, &down), stride(&left, &product.tile))
        else {
            return None;
        };
        if !beside || stride(&left, &product.channel.symbol) != Stride::Known(1) {
            return None;
        }
        let near = 64 * product.channel.known()? * product.column.known()? <= NEAR_WEIGHTS;
        let most = product.most_tiles(0)?;
        let blocks = product.blocks(most, of_row == product.columns()? * of_tile)?;
        for panel in &product.panels {
            let of_panels = block_variables(&Some((product.column.symbol.clone(), panel.clone())));
            for block in &blocks {
                let block = product.block(block);
                let of_blocks = product.variables(&block);
                // Weights that no near cache holds are read once.
                let grid = if near {
                    [of_blocks, of_panels.clone()].concat()
                } else {
                    [of_panels.clone(), of_blocks].concat()
                };
                let place = product.place(self, &grid);
                let along = Expr::from(&product.tile).add(&block.first[1]);
                let left = left.replace(&product.tile, &along).replace(&down, &block.first[0]);
                let mut body = Vec::new();
                self.tile_block(&mut body, &product, &place, (&block, panel), (*input, left))?;
                self.program.parts.push(Part { grid, body });
            }
        }
        Some(())
    }

    /// Tiles of windows and their products in one kernel: a program makes the tiles of its block in local memory, and then all columns.
    pub(super) fn tiled_convolution(&mut self, windows: &FlatNest, nest: &FlatNest) -> Option<()> {
        let windows = Windows::of(windows, &self.buffers)?;
        let input = self.buffers.len();
        for nest in nest.clone().boxes(MOST_BOXES) {
            let nest = nest.without_unread_fold();
            if nest.folds.is_empty() {
                self.pointwise(&nest.collapse())?;
                continue;
            }
            let operands = Operands::of(&nest.body)?;
            let Tiles::Own(index) = &operands.tiles else { return None };
            let channels = nest.folds.get(1)?.known()?;
            let row = Expr::from(&nest.folds.get(1)?.symbol);
            let mut product = Product::of(self, &nest, &operands, (input, &row))?;
            let down = self.symbol("t");
            let here = index.iter().map(|e| product.by_tile(e, &down));
            let own = [product.product, &down, &product.tile, &product.channel.symbol];
            if !here.skip(1).eq(own.into_iter().map(Expr::from)) {
                return None;
            }
            let blocks = product.blocks(product.most_tiles(channels)?, true)?;
            let of_all = |(rows, columns): &(Blocks, Blocks)| rows.segment.block * columns.segment.block;
            let local = self.named("tiles", DType::F32, 16 * channels * blocks.iter().map(of_all).max()?);
            if self.buffers.len() == input {
                self.buffers.push(local);
                self.known.push(vec![]);
            }
            let panels = std::mem::take(&mut product.panels);
            for block in &blocks {
                let block = product.block(block);
                let grid = product.variables(&block);
                let place = product.place(self, &grid);
                let count = block.tiles();
                // One product after the other, a tile's channels side by side.
                let number = |k: &Expr, tile: &Expr, channel: &Symbol| {
                    k.scale(count).add(tile).scale(channels).add(&Expr::from(channel))
                };
                let mut body = Vec::new();
                self.own_tiles(&mut body, &windows, &place, &product, &block, (local, &number))?;
                let left = number(&Expr::from(product.product), &Expr::from(&product.tile), &product.channel.symbol);
                for panel in &panels {
                    let of_panel = Some((product.column.symbol.clone(), panel.clone()));
                    self.for_blocks(&mut body, &of_panel, &place, |this, inner, place| {
                        this.tile_block(inner, &product, place, (&block, panel), (input, left.clone()))
                    })?;
                }
                self.program.parts.push(Part { grid, body });
            }
        }
        Some(())
    }

    /// The tiles of a block in local memory, where `number` says.
    fn own_tiles(
        &mut self,
        body: &mut Vec<Stmt>,
        windows: &Windows<'_>,
        place: &Place,
        product: &Product<'_>,
        block: &Block<'_>,
        (local, number): (usize, &NumberAt<'_>),
    ) -> Option<()> {
        let [picture, _, row, column, _] = windows.nest.axes.as_slice() else { return None };
        let (r, c) = (self.symbol("t"), self.symbol("t"));
        let (rows, columns) = (block.rows.segment.block, block.columns.segment.block);
        let mut inside = Place { ranges: place.ranges.clone(), ..Place::default() };
        inside.enter(&r, &Expr::from(rows));
        inside.enter(&c, &Expr::from(columns));
        inside.at.insert(picture.symbol.clone(), place.expr(&Expr::from(&product.picture.symbol)));
        inside.at.insert(row.symbol.clone(), block.first[0].add(&Expr::from(&r)));
        inside.at.insert(column.symbol.clone(), block.first[1].add(&Expr::from(&c)));
        let tile = Expr::from(&r).scale(columns).add(&Expr::from(&c));
        let store = |n: usize| number(&Expr::from(n as i64), &tile, &windows.channel.symbol);
        let mut of_tile = Vec::new();
        self.window(&mut of_tile, windows, &inside, (local, &store))?;
        body.push(counted(r, rows, 1, vec![counted(c, columns, 1, of_tile)]));
        Some(())
    }

    /// A block's products in a panel of columns, and its results. `left` is over the block's own tiles.
    fn tile_block(
        &mut self,
        body: &mut Vec<Stmt>,
        product: &Product<'_>,
        place: &Place,
        (block, panel): (&Block<'_>, &Segment),
        left: (usize, Expr),
    ) -> Option<()> {
        let (count, column) = (block.tiles(), &product.column.symbol);
        let local = self.named("products", DType::F32, 16 * count * panel.block);
        let address = |k: &Expr, tile: &Expr, own: &Expr| k.scale(count).add(tile).scale(panel.block).add(own);

        // The products, one after the other.
        let k = self.symbol("k");
        let mut within = place.clone();
        within.enter(&k, &Expr::from(16i64));
        within.at.insert(product.product.clone(), Expr::from(&k));
        let own = Expr::from(column).sub(&panel.first(column));
        let mut nest = plain(product.nest, (&product.tile, count), left, &product.weights)?;
        nest.store = address(&Expr::from(&k), &Expr::from(&product.tile), &own);
        let (of_columns, mut inner) = (Some((column.clone(), panel.clone())), Vec::new());
        for rows in row_segments(&Expr::from(count), product.schedule.rows, &nest.dims) {
            let rows = Some((product.tile.clone(), rows));
            self.for_blocks(&mut inner, &rows, &within, |this, inner, place| {
                this.within = Some(local);
                let done = this.register_tile(inner, &nest, &product.schedule, place, rows.clone(), of_columns.clone());
                this.within = None;
                done
            })?;
        }
        body.push(counted(k, 16, 1, inner));

        // The results, tile by tile: the last ones may have fewer.
        let lanes = self.machine.lanes as i64;
        for (first_row, rows, high) in block.rows.ends() {
            for (first_column, columns, wide) in block.columns.ends() {
                let (r, c) = (self.symbol("t"), self.symbol("t"));
                let mut place = place.clone();
                place.enter(&r, &Expr::from(rows));
                place.enter(&c, &Expr::from(columns));
                let at = [(&r, first_row), (&c, first_column)].map(|(s, first)| Expr::from(s).add(&Expr::from(first)));
                let tile = at[0].scale(block.columns.segment.block).add(&at[1]);
                let pixel = [0, 1].map(|n| block.first[n].add(&at[n]).scale(2));
                let mut inner = Vec::new();
                for run in segments(&Expr::from(panel.block), lanes, lanes, &product.nest.dims) {
                    let (place, var, end) = self.vectors(&place, &run, column, &panel.first(column))?;
                    let own = place.expr(&Expr::from(column)).sub(&place.expr(&panel.first(column)));
                    let address = |n: usize| address(&Expr::from(n as i64), &tile, &own);
                    let mut of_run = Vec::new();
                    let results = (&pixel, [&product.y.symbol, &product.x.symbol], [high, wide]);
                    self.summed_tile(&mut of_run, product.nest, &place, (local, &address), results)?;
                    inner.push(counted(var, end, run.block, of_run));
                }
                body.push(counted(r, rows, 1, vec![counted(c, columns, 1, inner)]));
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
        (local, address): (usize, &dyn Fn(usize) -> Expr),
        (pixel, axes, sizes): (&[Expr; 2], [&Symbol; 2], [usize; 2]),
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
                for ((axis, first), within) in axes.into_iter().zip(pixel).zip([down, along]) {
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
