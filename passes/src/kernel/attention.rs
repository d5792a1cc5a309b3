//! Attention in one kernel (Dao et al. 2022, FlashAttention): scores are made and used up tile by tile. Few queries are
//! [`super::decoding`]'s.
//!
//! Invariant: a program has some rows of queries and walks along all keys. It carries the greatest score of each row so
//! far, the sum of the exponentials below it and the product of these with the values; when a greater score comes, sum and
//! product are scaled down. The greatest score begins with the lowest number, not with minus infinity, so that a row of
//! which no key was seen yet has exponentials of 0.

use super::Builder;
use super::causal::{Constants, Seen};
use super::emit::{Emitter, Place};
use super::flat::{Axis, FlatNest};
use super::forms::{is_identity, is_product_sum};
use super::gpu::{ACROSS, Operands, across, below, by_memory, down, number, operands, product, symbols, unravel};
use super::schedule::Gpu;
use crate::warp::Floats;
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::id::Id;
use kiln_ir::nest::neutral;
use kiln_ir::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source, UnaryOp};
use kiln_ir::tile::{Carried, For, Part, Stmt, TileId, TileOp, TileType};
use std::collections::BTreeMap;

/// Rows below which a tile of queries would be nearly empty.
const FEW_ROWS: i64 = 8;

/// Most elements of a query, key or value.
const MOST_DEPTH: i64 = 128;

/// Most rows and keys of a tile.
const ROWS: i64 = 64;
const KEYS: i64 = 64;

/// Fewest keys of a tile. Of f32 for multiply-adds, which pass through shared memory, rows of 16 are too short to lie in different banks.
const LEAST_KEYS: i64 = 16;
const LEAST_KEYS_OF_F32: i64 = 32;

/// The same where products are multiply-adds, of which a tile of queries takes more registers and shared memory.
const ROWS_OF_F32: i64 = 32;

/// Most elements of f32 that a block has in shared memory.
const SHARED: i64 = 12 << 10;

/// What replaces the symbols of a stage: expressions over those of the last one.
pub(super) type At = BTreeMap<Symbol, Expr>;

/// The parts of attention, with the loops of its last product.
pub(super) struct Attention<'f> {
    pub out: FlatNest,
    pub operands: Operands,
    /// The loop along the keys.
    pub key: Axis,
    pub scores: &'f FlatNest,
    pub scores_at: At,
    /// What becomes of a score before the softmax: the body of the stage that finds the greatest one.
    pub seen: &'f FlatNest,
    pub seen_at: At,
    pub query: Id<Scalar>,
    pub keys: Id<Scalar>,
    /// What scores are multiplied with; queries are instead.
    pub scale: Option<Constant>,
    /// What follows the product of queries and keys, without the scale.
    pub finish: Code,
    /// Whether a share that is no number is 0, as exporters write it for rows that see no key.
    pub nan_is_zero: bool,
}

/// `exp(x - bound)`.
pub(super) fn exponential(e: &mut Emitter<'_>, body: &mut Vec<Stmt>, x: TileId, bound: TileId) -> TileId {
    let shifted = e.binary(body, BinaryOp::Sub, x, bound);
    let shape = e.program.tiles[shifted].shape.clone();
    e.define(body, DType::F32, shape, TileOp::Unary(UnaryOp::Exp, shifted))
}

/// Where the node `exp(x - stage 1)` reads the stage.
fn below_stage(code: &Code, id: Id<Scalar>) -> Option<&[Coord]> {
    let Scalar::Unary(UnaryOp::Exp, shifted) = code.node(id) else { return None };
    let Scalar::Binary(BinaryOp::Sub, _, m) = code.node(*shifted) else { return None };
    match code.node(*m) {
        Scalar::Load(Source::Stage(1), coords) => Some(coords),
        _ => None,
    }
}

/// The second code with the value of the first one as its argument.
fn composed_with(first: &Code, second: &Code) -> Option<Code> {
    let mut code = first.clone();
    let value = code.result();
    let result = code.inline(second, &mut |_, node, _| Ok(matches!(node, Scalar::Arg(_)).then_some(value)));
    code.set_result(result.ok()?);
    Some(code)
}

/// The value that the code gives but where that is no number, and whether it gives 0 there. As one share of a row is no number all of them
/// are, for their sum is none.
fn without_nan(code: &Code) -> (Id<Scalar>, bool) {
    let result = code.result();
    let number = match code.node(result) {
        Scalar::Select(is_nan, zero, x) => match (code.node(*is_nan), code.node(*zero)) {
            (Scalar::Binary(BinaryOp::Ne, a, b), Scalar::Const(c)) if a == x && b == x && c.bits == 0 => Some(*x),
            _ => None,
        },
        _ => None,
    };
    (number.unwrap_or(result), number.is_some())
}

/// The code without a product of its argument with a constant at its beginning, and the constant.
fn without_scale(code: &Code) -> Option<(Code, Constant)> {
    let live = code.live();
    let is_argument = |id: Id<Scalar>| matches!(code.node(id), Scalar::Arg(0));
    let readers: Vec<_> = code
        .nodes()
        .filter(|(id, n)| live[id.index()] && n.operands().into_iter().any(is_argument))
        .map(|(id, _)| id)
        .collect();
    let &[only] = readers.as_slice() else { return None };
    let constant = |id: Id<Scalar>| match code.node(id) {
        Scalar::Const(c) if c.dtype == DType::F32 => Some(c.as_f64()),
        _ => None,
    };
    let scale = match code.node(only) {
        Scalar::Binary(BinaryOp::Mul, a, b) if is_argument(*a) => constant(*b)?,
        Scalar::Binary(BinaryOp::Mul, a, b) if is_argument(*b) => constant(*a)?,
        Scalar::Binary(BinaryOp::Div, a, b) if is_argument(*a) => 1.0 / constant(*b)?,
        _ => return None,
    };
    let mut out = Code::new();
    let result = out.inline(code, &mut |out, node, dtype| {
        let argument = |id: &Id<Scalar>| matches!(out.node(*id), Scalar::Arg(0));
        let scales = matches!(node, Scalar::Binary(BinaryOp::Mul | BinaryOp::Div, a, b) if argument(a) || argument(b));
        Ok(scales.then(|| out.arg(0, dtype)))
    });
    out.set_result(result.ok()?);
    Some((out, Constant::float(DType::F32, scale)))
}

impl<'f> Attention<'f> {
    pub(super) fn of(flats: &'f [FlatNest]) -> Option<Attention<'f>> {
        let [scores, seen, sum, share, out] = flats else { return None };
        let out = out.clone().collapse();
        let operands = operands(&out)?;
        let ([key], [of_seen]) = (out.folds.as_slice(), seen.folds.as_slice()) else { return None };
        let Scalar::Load(Source::Stage(3), coords) = out.body.node(operands.left) else { return None };
        let loops = out.loops();
        let composed = |e: &Expr, at: &At| loops.simplify(&e.substitute(&|s| at.get(s).cloned()));
        let named = |axes: &[Axis], coords: &[Coord], at: &At| -> Option<At> {
            let pairs = axes.iter().zip(coords);
            pairs.map(|(a, c)| Some((a.symbol.clone(), composed(c.expr()?, at)))).collect()
        };
        let share_at = named(&share.axes, coords, &At::new())?;
        let code = composed_with(&share.body, &share.finish)?;
        let (quotient, nan_is_zero) = without_nan(&code);
        // exp(x - greatest) * (1 / sum)
        let Scalar::Binary(BinaryOp::Mul, e, inverse) = code.node(quotient) else { return None };
        let Scalar::Unary(UnaryOp::Recip, s) = code.node(*inverse) else { return None };
        let greatest = below_stage(&code, *e)?;
        let summed = below_stage(&sum.body, sum.body.result())?;
        let plain = [&seen.finish, &sum.finish].into_iter().all(is_identity);
        let folds = (seen.combine, sum.combine) == (BinaryOp::Max, BinaryOp::Add);
        let divided = matches!(code.node(*s), Scalar::Load(Source::Stage(2), coords) if coords == greatest);
        if !plain || !folds || !divided || summed.len() != greatest.len() || !is_product_sum(scores) {
            return None;
        }
        let along = along(share, greatest)?;
        let mut seen_at = named(&seen.axes, greatest, &share_at)?;
        seen_at.insert(of_seen.symbol.clone(), composed(&Expr::from(&along.symbol), &share_at));
        if seen_at.get(&of_seen.symbol)?.as_symbol() != Some(&key.symbol) || of_seen.extent != key.extent {
            return None;
        }
        let mut read: Option<&[Coord]> = None;
        for (_, node) in seen.body.nodes() {
            if let Scalar::Load(Source::Stage(0), coords) = node {
                if read.is_some_and(|r| r != coords.as_slice()) {
                    return None;
                }
                read = Some(coords);
            }
        }
        let scores_at = named(&scores.axes, read?, &seen_at)?;
        let Scalar::Binary(_, a, b) = scores.body.node(scores.body.result()) else { return None };
        let walks = |id: Id<Scalar>, axis: &Symbol| {
            symbols(&scores.body, id).iter().any(|s| scores_at.get(s).is_some_and(|e| e.mentions(axis)))
        };
        let (query, keys) = match (walks(*a, &key.symbol), walks(*b, &key.symbol)) {
            (false, true) => (*a, *b),
            (true, false) => (*b, *a),
            _ => return None,
        };
        let (key, rows) = (key.clone(), &operands.rows);
        if rows.iter().any(|r| walks(keys, &r.symbol)) {
            return None;
        }
        let (finish, scale) = match without_scale(&scores.finish) {
            Some((finish, scale)) => (finish, Some(scale)),
            None => (scores.finish.clone(), None),
        };
        Some(Attention {
            key,
            scores,
            scores_at,
            seen,
            seen_at,
            query,
            keys,
            scale,
            finish,
            nan_is_zero,
            operands,
            out,
        })
    }
}

/// The axis of the shares along which they were summed: the one that the sum's coordinates leave out.
fn along<'n>(share: &'n FlatNest, sum: &[Coord]) -> Option<&'n Axis> {
    let same = |c: &Coord, a: &Axis| matches!(c, Coord::Index(e) if e.as_symbol() == Some(&a.symbol));
    let left_out = (0..share.axes.len()).find(|&p| {
        let others = share.axes.iter().enumerate().filter(|(n, _)| *n != p).map(|(_, a)| a);
        share.axes.len() == sum.len() + 1 && others.zip(sum).all(|(a, c)| same(c, a))
    });
    share.axes.get(left_out?)
}

/// Extents of the tiles: rows, keys, elements of a query and of a value.
pub(super) struct Tiles {
    pub rows: i64,
    pub keys: i64,
    pub depth: i64,
    pub columns: i64,
}

impl Tiles {
    fn of(a: &Attention<'_>, gpu: &Gpu) -> Option<Tiles> {
        let size = |extent: i64, most: i64| (extent as u64).next_power_of_two().clamp(16, most as u64) as i64;
        let extent = |axes: &[Axis]| product(axes).as_const();
        let (depth, columns) = (extent(&a.scores.folds)?, extent(&a.operands.columns)?);
        let (rows, keys) = (extent(&a.operands.rows)?, a.key.known()?);
        if depth > MOST_DEPTH || columns > MOST_DEPTH || keys < 1 {
            return None;
        }
        let halves = gpu.operands.is_some();
        let most = if halves { ROWS } else { ROWS_OF_F32 };
        let least = if halves { LEAST_KEYS } else { LEAST_KEYS_OF_F32 };
        let mut tiles = Tiles {
            rows: size(rows, most),
            keys: size(keys, KEYS).max(least),
            depth: size(depth, MOST_DEPTH),
            columns: size(columns, MOST_DEPTH),
        };
        // A warp multiplies 16 rows by matrix instructions; its lanes hold what it stages, 32 elements each at most.
        let held = |t: &Tiles| t.keys * t.depth.max(t.columns) > t.rows * (32 / 16) * 32;
        while rows >= FEW_ROWS && gpu.floats != Floats::Whole && tiles.keys > LEAST_KEYS && held(&tiles) {
            tiles.keys /= 2;
        }
        while rows >= FEW_ROWS && !halves && tiles.shared() > SHARED {
            let wider = tiles.keys > tiles.rows.max(least);
            *(if wider { &mut tiles.keys } else { &mut tiles.rows }) /= 2;
        }
        Some(tiles)
    }

    /// Elements in shared memory: queries, keys, values, shares.
    fn shared(&self) -> i64 {
        self.depth * (self.rows + self.keys) + self.keys * (self.columns + self.rows)
    }
}

/// What becomes of the products of queries and keys before the softmax: what follows them, and what is made of that.
pub(super) struct Softened<'c> {
    pub finish: &'c Code,
    pub body: &'c Code,
}

/// A place of the last product, and what is beyond its ends.
struct Spot {
    place: Place,
    key: Option<Less>,
}

impl Builder<'_> {
    /// See the module.
    pub(super) fn gpu_attention(&mut self, flats: &[FlatNest], constants: &Constants<'_>) -> Option<()> {
        let a = Attention::of(flats).filter(|a| !a.nan_is_zero)?;
        let rounded = self.machine.gpu.and_then(|g| g.operands);
        let t = Tiles::of(&a, &self.machine.gpu?)?;
        let rows = by_memory(&a.operands.rows, &[&a.out.store]);
        let row_count = product(&rows);
        if row_count.as_const()? < FEW_ROWS {
            return self.decoding(&a, &t);
        }
        let mut base = self.outermost(&a.out);
        let mut grid = Vec::new();
        for axis in &a.operands.batch {
            base.enter(&axis.symbol, &axis.extent);
            grid.push((axis.symbol.clone(), axis.extent.clone()));
        }
        let block = self.symbol("b");
        let blocks = row_count.ceil_div(&number(t.rows));
        base.enter(&block, &blocks);
        grid.push((block.clone(), blocks.clone()));
        let tiles = a.key.extent.ceil_div(&number(t.keys));
        let hi = tiles.scale(t.keys);
        // Rows that see the most keys come first, so that they are not what is left at the end.
        let last_first = blocks.sub(&number(1)).sub(&Expr::from(&block)).scale(t.rows);
        let seen = Seen::of(&a, constants).and_then(|seen| {
            let ends = seen.ends(&rows, (&last_first, t.rows), (t.keys, &tiles))?;
            let fewer = ends[0].bounds(&base.ranges).0 < hi.as_const()?;
            fewer.then_some((seen, ends))
        });
        let first_row = if seen.is_some() { last_first } else { Expr::from(&block).scale(t.rows) };
        // The loops along the keys, and what becomes of a score in each.
        let masked = Softened { finish: &a.finish, body: &a.seen.body };
        let walks = match &seen {
            None => vec![(Expr::default(), hi, masked)],
            Some((seen, [end, whole])) if whole.bounds(&base.ranges).1 > 0 => {
                let whole_tiles = Softened { finish: &seen.finish, body: &seen.body };
                vec![(Expr::default(), whole.clone(), whole_tiles), (whole.clone(), end.clone(), masked)]
            }
            Some((_, [end, _])) => vec![(Expr::default(), end.clone(), masked)],
        };

        // Where a tile with rows, keys or columns down and across is.
        let spot = |base: &Place, shape: [i64; 2], row: Option<Expr>, key: Option<Expr>, column: Option<Expr>| {
            let mut place = base.clone();
            Self::shaped(&mut place, shape);
            if let Some(row) = row {
                let row = first_row.add(&row);
                unravel(&rows, &row, &mut place.at);
                place.mask.extend(below(&row, &row_count, t.rows));
            }
            if let Some(column) = column {
                let count = product(&a.operands.columns);
                unravel(&a.operands.columns, &column, &mut place.at);
                place.mask.extend(below(&column, &count, t.columns));
            }
            let beyond = key.as_ref().and_then(|key| below(key, &a.key.extent, t.keys));
            if let Some(key) = key {
                place.at.insert(a.key.symbol.clone(), key);
                place.mask.extend(beyond.clone());
            }
            Spot { place, key: beyond }
        };
        // The same for an earlier stage.
        let within = |spot: &Spot, at: &At| {
            let at = at.iter().map(|(s, e)| (s.clone(), spot.place.expr(e))).collect();
            Place { at, ..spot.place.clone() }
        };
        let folds = by_memory(&a.scores.folds, &super::forms::addresses(a.scores).collect::<Vec<_>>());
        let depth_of = |mut place: Place, depth: Expr| {
            unravel(&folds, &depth, &mut place.at);
            let beyond = below(&depth, &product(&folds), t.depth);
            place.mask.extend(beyond.clone());
            (place, beyond)
        };

        let mut body = Vec::new();
        let (place, beyond) =
            depth_of(within(&spot(&base, [t.rows, t.depth], Some(down()), None, None), &a.scores_at), across());
        let query = self.product_operand(&mut body, (&a.scores.body, a.query), &place, beyond, None)?;
        let query = self.scaled(&mut body, query, a.scale);
        let query = self.rounded(&mut body, query, rounded);

        let shapes = [[t.rows, 1], [t.rows, 1], [t.rows, t.columns]].map(|s| s.map(|e| e as usize).to_vec());
        // Greatest score, sum, product.
        let mut shaped = shapes.iter();
        let mut so_far = [f64::from(f32::MIN), 0.0, 0.0].map(|value| {
            let first = TileOp::Const(Constant::float(DType::F32, value));
            let shape = shaped.next().cloned().unwrap_or_default();
            self.emitter(&[]).define(&mut body, DType::F32, shape, first)
        });
        for (lo, hi, softened) in walks {
            let mut base = base.clone();
            let var = self.symbol("k");
            base.enter(&var, &hi);
            let key = |key: Expr| Some(Expr::from(&var).add(&key));
            let mut tiles = |shape: &Vec<usize>| {
                let ty = TileType { dtype: DType::F32, shape: shape.clone() };
                [(); 2].map(|()| self.program.tiles.push(ty.clone()))
            };
            // Inside and after the loop.
            let carried: Vec<[TileId; 2]> = shapes.iter().map(&mut tiles).collect();
            let inside: Vec<TileId> = carried.iter().map(|c| c[0]).collect();
            let mut inner = Vec::new();
            let (place, beyond) =
                depth_of(within(&spot(&base, [t.depth, t.keys], None, key(across()), None), &a.scores_at), down());
            let keys = self.product_operand(&mut inner, (&a.scores.body, a.keys), &place, beyond, rounded)?;
            let at = spot(&base, [t.rows, t.keys], Some(down()), key(across()), None);
            let places = (&within(&at, &a.scores_at), &within(&at, &a.seen_at));
            let shape = at.place.shape.clone();
            let mut e = self.emitter(&[]);
            let none = e.define(&mut inner, DType::F32, shape.clone(), TileOp::Const(Constant::float(DType::F32, 0.0)));
            let products = e.define(&mut inner, DType::F32, shape, TileOp::Dot(None, query, keys, none));
            let scores = self.scores(&mut inner, &softened, products, places, at.key)?;
            let at = spot(&base, [t.keys, t.columns], None, key(down()), Some(across()));
            let next = self.online(&mut inner, scores, &inside, |this, inner| {
                this.product_operand(inner, (&a.out.body, a.operands.right), &at.place, at.key, rounded)
            })?;
            let list = carried.iter().zip(so_far).zip(next);
            let list = list.map(|((&[inside, after], init), next)| Carried { init, inside, next, after }).collect();
            body.push(Stmt::For(For { var: var.clone(), lo, hi, step: t.keys, carried: list, body: inner }));
            so_far.iter_mut().zip(&carried).for_each(|(tile, [_, after])| *tile = *after);
        }

        let mut e = self.emitter(&[]);
        let [_, sum, products] = so_far;
        let inverse = e.define(&mut body, DType::F32, shapes[1].clone(), TileOp::Unary(UnaryOp::Recip, sum));
        let value = e.binary(&mut body, BinaryOp::Mul, products, inverse);
        let at = spot(&base, [t.rows, t.columns], Some(down()), None, Some(across()));
        let value = self.emitter(&[]).code(&mut body, &a.out.finish, &at.place, Some(value))?;
        self.store(&mut body, &a.out, &at.place, value);
        self.program.parts.push(Part { grid, body: vec![] });
        self.finish_part(body);
        Some(())
    }

    /// The tile multiplied with a constant, where there is one.
    pub(super) fn scaled(&mut self, body: &mut Vec<Stmt>, tile: TileId, by: Option<Constant>) -> TileId {
        let Some(by) = by else { return tile };
        let mut e = self.emitter(&[]);
        let by = e.constant(body, by, 2);
        e.binary(body, BinaryOp::Mul, tile, by)
    }

    /// A tile of scores as the softmax sees them, of products of queries and keys; minus infinity beyond the last key.
    pub(super) fn scores(
        &mut self,
        body: &mut Vec<Stmt>,
        code: &Softened<'_>,
        products: TileId,
        (scores, seen): (&Place, &Place),
        beyond: Option<Less>,
    ) -> Option<TileId> {
        let (shape, rank) = (scores.shape.clone(), scores.shape.len());
        let score = self.emitter(&[]).code(body, code.finish, scores, Some(products))?;
        let stages = [score];
        let mut e = self.emitter(&stages);
        let score = e.code(body, code.body, seen, None)?;
        let mut score = e.full(body, score, &shape);
        if let Some(beyond) = beyond {
            let holds = e.holds(body, &[beyond], seen)?;
            let least = e.constant(body, neutral(BinaryOp::Max, DType::F32), rank);
            score = e.define(body, DType::F32, shape, TileOp::Select(holds, score, least));
        }
        Some(score)
    }

    /// One step: the next greatest scores, sums and products.
    fn online(
        &mut self,
        body: &mut Vec<Stmt>,
        scores: TileId,
        inside: &[TileId],
        values: impl FnOnce(&mut Self, &mut Vec<Stmt>) -> Option<TileId>,
    ) -> Option<[TileId; 3]> {
        let &[greatest, sum, products] = inside else { return None };
        let rows = self.program.tiles[greatest].shape.clone();
        let wide = self.program.tiles[products].shape.clone();
        let mut e = self.emitter(&[]);
        let folded = e.define(body, DType::F32, rows.clone(), TileOp::Reduce(BinaryOp::Max, ACROSS, scores));
        let next = e.binary(body, BinaryOp::Max, greatest, folded);
        let shares = exponential(&mut e, body, scores, next);
        let scale = exponential(&mut e, body, greatest, next);
        let added = e.define(body, DType::F32, rows.clone(), TileOp::Reduce(BinaryOp::Add, ACROSS, shares));
        let sum = e.define(body, DType::F32, rows, TileOp::Fma(sum, scale, added));
        let scaled = e.define(body, DType::F32, wide.clone(), TileOp::Binary(BinaryOp::Mul, products, scale));
        let values = values(self, body)?;
        let half = Some(self.program.tiles[values].dtype).filter(|d| *d != DType::F32);
        let shares = self.rounded(body, shares, half);
        let products = self.emitter(&[]).define(body, DType::F32, wide, TileOp::Dot(None, shares, values, scaled));
        Some([next, sum, products])
    }
}
