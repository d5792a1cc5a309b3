//! Attention of a few queries to many keys, as in decoding from a cache (Flash-Decoding, Dao et al. 2023).
//!
//! Invariant: every query is a program of its own, in which each place of a tile of keys carries a greatest score, sum and
//! product of its own, so that nothing passes between threads before the end. Many keys are split between programs: each
//! leaves its three results in a buffer, from which a second part joins them.

use super::Builder;
use super::attention::{At, Attention, Softened, Tiles, exponential};
use super::emit::Place;
use super::flat::Axis;
use super::gpu::{ACROSS, DOWN, across, below, by_memory, down, number, product, unravel};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::scalar::{BinaryOp, Constant, Less, UnaryOp};
use kiln_ir::tile::{Buffer, Carried, For, Part, Stmt, TileId, TileOp, TileType};

/// Keys that one program has at least where they are split.
const SPLIT: i64 = 256;

/// Most programs that share the keys of a query.
const MOST_SPLITS: i64 = 16;

/// How the keys are split.
struct Splits {
    /// Programs that share the keys of a query.
    count: i64,
    /// Keys of each: a multiple of the keys of a tile.
    share: i64,
    /// Which of them a program is.
    split: Symbol,
    /// The loop variable along its keys.
    var: Symbol,
}

/// What programs that share the keys of a query leave to be joined: for each the product, the greatest score and the sum.
struct Parts {
    splits: i64,
    columns: i64,
    /// The number of the query.
    query: Expr,
    buffer: usize,
}

impl Parts {
    /// Elements of one program: a multiple of 16 bytes.
    fn stride(&self) -> i64 {
        self.columns + 4
    }

    /// Where the results of a program are: the greatest score, the sum, and the product, of which `element` is one.
    fn addresses(&self, split: &Expr, element: &Expr) -> [Expr; 3] {
        let first = self.query.scale(self.splits).add(split).scale(self.stride());
        [number(self.columns), number(self.columns + 1), element.clone()].map(|e| first.add(&e))
    }
}

/// A place of a stage, and what is beyond the last key and beyond the end of the axes across.
struct Spot {
    place: Place,
    key: Option<Less>,
    end: Option<Less>,
}

/// Where tiles are.
struct Spots<'a> {
    base: &'a Place,
    key: &'a Axis,
    splits: &'a Splits,
}

impl Spots<'_> {
    /// The place of a tile of a stage whose axes `at` gives (of the last product where it gives none), with keys down
    /// where it has several rows and `axes` across.
    fn at(&self, at: &At, shape: [i64; 2], axes: &[Axis]) -> Spot {
        let mut place = self.base.clone();
        Builder::shaped(&mut place, shape);
        let mut beyond = None;
        if shape[DOWN] > 1 {
            let s = self.splits;
            let first = if s.count > 1 { Expr::from(&s.split).scale(s.share) } else { Expr::default() };
            let key = first.add(&Expr::from(&s.var)).add(&down());
            beyond = below(&key, &self.key.extent, s.share);
            place.at.insert(self.key.symbol.clone(), key);
            place.mask.extend(beyond.clone());
        }
        if !at.is_empty() {
            place.at = at.iter().map(|(s, e)| (s.clone(), place.expr(e))).collect();
        }
        unravel(axes, &across(), &mut place.at);
        let end = below(&across(), &product(axes), shape[ACROSS]);
        place.mask.extend(end.clone());
        Spot { place, key: beyond, end }
    }
}

impl Builder<'_> {
    /// See the module.
    pub(super) fn decoding(&mut self, a: &Attention<'_>, t: &Tiles) -> Option<()> {
        let keys = a.key.known()?;
        let wanted = (keys / SPLIT).clamp(1, MOST_SPLITS);
        let share = keys.saturating_add(wanted * t.keys - 1) / (wanted * t.keys) * t.keys;
        let count = keys.saturating_add(share - 1) / share;
        let splits = Splits { count, share, split: self.symbol("s"), var: self.symbol("k") };
        let mut base = self.outermost(&a.out);
        let mut grid = Vec::new();
        let mut query = Expr::default();
        for axis in a.operands.batch.iter().chain(&a.operands.rows) {
            base.enter(&axis.symbol, &axis.extent);
            grid.push((axis.symbol.clone(), axis.extent.clone()));
            query = query.mul(&axis.extent).add(&Expr::from(&axis.symbol));
        }
        let parts = Parts { splits: count, columns: t.columns, query, buffer: self.program.buffers.len() - 1 };
        let (outside, queries) = (base.clone(), grid.clone());
        if count > 1 {
            base.enter(&splits.split, &number(count));
            grid.push((splits.split.clone(), number(count)));
            let len = queries.iter().fold(number(count * parts.stride()), |n, (_, e)| n.mul(e));
            let buffer = Buffer { name: "parts".into(), dtype: DType::F32, len, written: true, local: false };
            self.program.buffers.insert(parts.buffer, buffer);
        }
        base.enter(&splits.var, &number(share));
        let spots = Spots { base: &base, key: &a.key, splits: &splits };
        let mut body = Vec::new();
        let last = self.walk_keys(&mut body, a, t, &spots)?;
        let joined = self.joined(&mut body, last);
        self.program.parts.push(Part { grid, body: vec![] });
        if count == 1 {
            return self.quotient(body, a, &outside, joined, t.columns);
        }
        for (value, address) in joined.into_iter().zip(parts.addresses(&Expr::from(&splits.split), &across())) {
            body.push(Stmt::Store { buffer: parts.buffer, address, gathered: vec![], mask: vec![], value });
        }
        self.finish_part(body);

        let mut body = Vec::new();
        let mut widths = [1, 1, t.columns].into_iter();
        let loaded = parts.addresses(&down(), &across()).map(|address| {
            let other = Constant::float(DType::F32, 0.0);
            let op = TileOp::Load { buffer: parts.buffer, address, gathered: vec![], mask: vec![], other };
            let shape = vec![count as usize, widths.next().unwrap_or(1) as usize];
            self.emitter(&[]).define(&mut body, DType::F32, shape, op)
        });
        let joined = self.joined(&mut body, loaded);
        self.program.parts.push(Part { grid: queries, body: vec![] });
        self.quotient(body, a, &outside, joined, t.columns)
    }

    /// The loop along the keys of a program: the greatest score, the sum and the product of each place of a tile.
    fn walk_keys(
        &mut self,
        body: &mut Vec<Stmt>,
        a: &Attention<'_>,
        t: &Tiles,
        spots: &Spots<'_>,
    ) -> Option<[TileId; 3]> {
        let folds = by_memory(&a.scores.folds, &super::forms::addresses(a.scores).collect::<Vec<_>>());
        let at = spots.at(&a.scores_at, [1, t.depth], &folds);
        let query = self.product_operand(body, (&a.scores.body, a.query), &at.place, at.end, None)?;
        let query = self.scaled(body, query, a.scale);
        let shapes = [[t.keys, 1], [t.keys, 1], [t.keys, t.columns]].map(|s| s.map(|e| e as usize).to_vec());
        let mut first = [f64::from(f32::MIN), 0.0, 0.0].into_iter();
        let carried = shapes.clone().map(|shape| {
            let ty = TileType { dtype: DType::F32, shape };
            let [init, inside, after] = [(); 3].map(|()| self.program.tiles.push(ty.clone()));
            let value = Constant::float(DType::F32, first.next().unwrap_or(0.0));
            body.push(Stmt::Let(init, TileOp::Const(value)));
            [init, inside, after]
        });

        let mut inner = Vec::new();
        let at = spots.at(&a.scores_at, [t.keys, t.depth], &folds);
        let key = self.product_operand(&mut inner, (&a.scores.body, a.keys), &at.place, at.end, None)?;
        let [rows, _, wide] = shapes;
        let mut e = self.emitter(&[]);
        let products = e.binary(&mut inner, BinaryOp::Mul, query, key);
        let products = e.define(&mut inner, DType::F32, rows.clone(), TileOp::Reduce(BinaryOp::Add, ACROSS, products));
        let at = spots.at(&a.scores_at, [t.keys, 1], &[]);
        let seen = spots.at(&a.seen_at, [t.keys, 1], &[]);
        let code = Softened { finish: &a.finish, body: &a.seen.body };
        let score = self.scores(&mut inner, &code, products, (&at.place, &seen.place), at.key)?;
        let [greatest, sum, total] = carried.map(|c| c[1]);
        let next = self.emitter(&[]).binary(&mut inner, BinaryOp::Max, greatest, score);
        let power = exponential(&mut self.emitter(&[]), &mut inner, score, next);
        let scale = exponential(&mut self.emitter(&[]), &mut inner, greatest, next);
        let at = spots.at(&At::new(), [t.keys, t.columns], &a.operands.columns);
        let code = (&a.out.body, a.operands.right);
        let values = self.product_operand(&mut inner, code, &at.place, at.key, None)?;
        let mut e = self.emitter(&[]);
        let sum = e.define(&mut inner, DType::F32, rows, TileOp::Fma(sum, scale, power));
        let scaled = e.binary(&mut inner, BinaryOp::Mul, total, scale);
        let total = e.define(&mut inner, DType::F32, wide, TileOp::Fma(power, values, scaled));
        let list = carried.iter().zip([next, sum, total]);
        let carry = list.map(|(&[init, inside, after], next)| Carried { init, inside, next, after }).collect();
        let (var, hi) = (spots.splits.var.clone(), number(spots.splits.share));
        body.push(Stmt::For(For { var, lo: Expr::default(), hi, step: t.keys, carried: carry, body: inner }));
        Some(carried.map(|c| c[2]))
    }

    /// Joins what the rows of the tiles hold: the greatest score of all, the sum, and the product.
    fn joined(&mut self, body: &mut Vec<Stmt>, [greatest, sum, total]: [TileId; 3]) -> [TileId; 3] {
        let columns = self.program.tiles[total].shape.get(ACROSS).copied().unwrap_or(1);
        let mut e = self.emitter(&[]);
        let fold = |op, tile| TileOp::Reduce(op, DOWN, tile);
        let most = e.define(body, DType::F32, vec![1, 1], fold(BinaryOp::Max, greatest));
        let scale = exponential(&mut e, body, greatest, most);
        let [sum, total] = [sum, total].map(|t| e.binary(body, BinaryOp::Mul, t, scale));
        let sum = e.define(body, DType::F32, vec![1, 1], fold(BinaryOp::Add, sum));
        [most, sum, e.define(body, DType::F32, vec![1, columns], fold(BinaryOp::Add, total))]
    }

    /// Stores the quotient of product and sum, and ends the part.
    fn quotient(
        &mut self,
        mut body: Vec<Stmt>,
        a: &Attention<'_>,
        base: &Place,
        [_, sum, total]: [TileId; 3],
        columns: i64,
    ) -> Option<()> {
        let mut e = self.emitter(&[]);
        let inverse = e.define(&mut body, DType::F32, vec![1, 1], TileOp::Unary(UnaryOp::Recip, sum));
        let value = e.binary(&mut body, BinaryOp::Mul, total, inverse);
        let mut place = base.clone();
        Self::shaped(&mut place, [1, columns]);
        unravel(&a.operands.columns, &across(), &mut place.at);
        place.mask.extend(below(&across(), &product(&a.operands.columns), columns));
        let value = self.emitter(&[]).code(&mut body, &a.out.finish, &place, Some(value))?;
        self.store(&mut body, &a.out, &place, value);
        self.finish_part(body);
        Some(())
    }
}
