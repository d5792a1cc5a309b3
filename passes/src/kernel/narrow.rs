//! Products of few rows, as decoding and the last layers of networks have them: a matrix that is read once; and other long
//! folds of few results whose neighbours are results, such as the greatest element of each column.
//!
//! Invariant: every element of the matrix is read by one thread, 16 bytes at a time where its rows are aligned, and
//! neighbouring lanes read neighbouring elements of a row. A thread adds up what it reads in sums of its own, so that many
//! reads are under way at once; the threads of a block fold their sums in one fixed order. Where an element holds several
//! numbers that follow one another along the fold (`nibbles`), the thread multiplies them one after another, and what scales
//! them all alike scales their sum.

use super::Builder;
use super::emit::Place;
use super::fill::{self, Narrow};
use super::flat::{FlatNest, Stride, stride};
use super::forms::{addresses, kept};
use super::gpu::{
    DOWN, Operands, across, below, by_memory, down, for_each_expr, number, product, unravel, without_repeats,
};
use crate::nibbles;
use kiln_ir::expr::Expr;
use kiln_ir::id::Id;
use kiln_ir::nest::neutral;
use kiln_ir::scalar::{BinaryOp, Less, Scalar};
use kiln_ir::tile::{Carried, For, Stmt, TileId, TileOp, TileType};

/// Most rows of the product that share what is read of the matrix.
pub(crate) const MOST_ROWS: i64 = 8;

/// Elements of a fold from which threads share it.
const LONG: i64 = 64;

/// Elements of the matrix that a block reads at once, for one row; more rows have more sums.
const AT_ONCE: i64 = 8192;

/// The same where an element is a word of several numbers, each of which is a multiply-add and as much again to unpack.
const WORDS_AT_ONCE: i64 = 2048;

/// Words of a fold from which steps end where it does.
const LEAST_WORDS: i64 = 8;

/// Results of a block that folds columns: a sector of f32.
const TALL: i64 = 8;

/// Threads of such a block, and elements that each reads at once.
const THREADS: i64 = 256;
const EACH: i64 = 4;

impl Builder<'_> {
    /// A product of few rows with a matrix whose neighbours are columns of the product.
    pub(super) fn narrow(&mut self, nest: &FlatNest, o: &Operands) -> Option<()> {
        let rows = product(&o.rows).as_const().filter(|r| *r <= MOST_ROWS)?;
        let columns = by_memory(&o.columns, &[&nest.store]);
        let folds = by_memory(&nest.folds, &addresses(nest).collect::<Vec<_>>());
        let (width, depth) = (product(&columns).as_const()?, product(&folds).as_const()?);
        let column = columns.last()?;
        let beside = |e: &Expr| matches!(stride(e, &column.symbol), Stride::Known(1));
        // Numbers of the fold in an element of the matrix.
        let each = if nibbles::is_of_words(&nest.body, o.right) { nibbles::EACH } else { 1 };
        let size = if each > 1 { 4 } else { kept(&nest.body, o.right).size() as i64 };
        if depth % each != 0 {
            return None;
        }
        if depth < LONG || width * size < fill::SECTOR || !addresses(nest).any(beside) {
            return None;
        }
        let gpu = self.machine.gpu?;
        let batch = product(&o.batch).as_const()?;
        let places = depth / each;
        let Narrow { columns: bn, mut splits } = fill::narrow(&gpu, (batch, width, places), size);
        let most = if each > 1 { WORDS_AT_ONCE } else { AT_ONCE } / (rows as u64).next_power_of_two() as i64;
        let mut bk = most / bn;
        if each > 1 {
            // A step that goes beyond the fold would look at every number.
            while splits > 1 && places % (splits * LEAST_WORDS) != 0 {
                splits -= 1;
            }
            let even = 1 << (places / splits).trailing_zeros();
            bk = if even >= LEAST_WORDS { bk.min(even) } else { bk };
        }
        let share = (places as u64).div_ceil(splits as u64) as i64;
        let bk = bk.clamp(1, (share as u64).next_power_of_two() as i64);
        let share = (share as u64).div_ceil(bk as u64) as i64 * bk;

        let mut place = self.outermost(nest);
        let mut grid = Vec::new();
        for a in &o.batch {
            place.enter(&a.symbol, &a.extent);
            grid.push((a.symbol.clone(), a.extent.clone()));
        }
        let (block, var) = (self.symbol("b"), self.symbol("k"));
        let blocks = number(width).ceil_div(&number(bn));
        place.enter(&block, &blocks);
        grid.push((block.clone(), blocks));
        let split = (splits > 1).then(|| self.split(nest, o, splits));
        let mut lo = Expr::default();
        if let Some(split) = &split {
            place.enter(&split.symbol, &number(splits));
            grid.push((split.symbol.clone(), number(splits)));
            lo = Expr::from(&split.symbol).scale(share);
        }
        place.enter(&var, &number(share * splits));
        let word = Expr::from(&var).add(&down());
        let at_depth = |n: i64| word.scale(each).add(&number(n));
        let beyond = (share * splits != places).then(|| Less { left: word.clone(), right: number(places) });
        let at_column = Expr::from(&block).scale(bn).add(&across());
        let end = below(&at_column, &number(width), bn);
        let at_row = |place: &mut Place, row: usize| unravel(&o.rows, &number(row as i64), &mut place.at);

        let ty = TileType { dtype: nest.body.result_type(), shape: vec![bk as usize, bn as usize] };
        let mut body = Vec::new();
        let sums: Vec<[TileId; 4]> = (0..rows)
            .map(|_| {
                let [init, inside, next, after] = std::array::from_fn(|_| self.program.tiles.push(ty.clone()));
                body.push(Stmt::Let(init, TileOp::Const(neutral(nest.combine, ty.dtype))));
                [init, inside, next, after]
            })
            .collect();
        let mut inner = Vec::new();
        let of_matrix = |n: i64| {
            let mut place = place.clone();
            Self::shaped(&mut place, [bk, bn]);
            unravel(&columns, &at_column, &mut place.at);
            unravel(&folds, &at_depth(n), &mut place.at);
            place.mask.extend(end.iter().cloned().chain(beyond.clone()));
            place
        };
        let (factor, scale) = match each {
            1 => (o.right, None),
            _ => common_factor(nest, o.right, [of_matrix(0), of_matrix(each - 1)]),
        };
        // The sums so far, or those of the word.
        let mut partial: Vec<Option<TileId>> =
            sums.iter().map(|&[_, inside, ..]| scale.is_none().then_some(inside)).collect();
        for n in 0..each {
            let matrix = self.product_operand(&mut inner, (&nest.body, factor), &of_matrix(n), beyond.clone(), None)?;
            for ((row, &[_, _, next, _]), partial) in sums.iter().enumerate().zip(&mut partial) {
                let mut of_row = place.clone();
                Self::shaped(&mut of_row, [bk, 1]);
                at_row(&mut of_row, row);
                unravel(&folds, &at_depth(n), &mut of_row.at);
                of_row.mask.extend(beyond.clone());
                let left = self.product_operand(&mut inner, (&nest.body, o.left), &of_row, beyond.clone(), None)?;
                let last = n + 1 == each && scale.is_none();
                let to = if last { next } else { self.program.tiles.push(ty.clone()) };
                let sum = match (o.of, *partial) {
                    (None, Some(sum)) => TileOp::Fma(left, matrix, sum),
                    (None, None) => TileOp::Binary(BinaryOp::Mul, left, matrix),
                    (Some(of), sum) => {
                        let (left, right) = of.ordered(left, matrix);
                        let mut e = self.emitter(&[]);
                        let product = e.define(
                            &mut inner,
                            ty.dtype,
                            ty.shape.clone(),
                            TileOp::Binary(of.operation(), left, right),
                        );
                        TileOp::Binary(BinaryOp::Add, product, sum?)
                    }
                };
                inner.push(Stmt::Let(to, sum));
                *partial = Some(to);
            }
        }
        if let Some(scale) = scale {
            let scale = self.product_operand(&mut inner, (&nest.body, scale), &of_matrix(0), beyond.clone(), None)?;
            for (&[_, inside, next, _], partial) in sums.iter().zip(partial) {
                inner.push(Stmt::Let(next, TileOp::Fma(partial?, scale, inside)));
            }
        }
        let inner = without_repeats(&mut self.program, inner);
        let carried = sums.iter().map(|&[init, inside, next, after]| Carried { init, inside, next, after }).collect();
        let hi = lo.add(&number(share));
        body.push(Stmt::For(For { var, lo, hi, step: bk, carried, body: inner }));

        self.program.parts.push(kiln_ir::tile::Part { grid, body: vec![] });
        for (row, &[_, _, _, after]) in sums.iter().enumerate() {
            let mut place = place.clone();
            Self::shaped(&mut place, [1, bn]);
            at_row(&mut place, row);
            unravel(&columns, &at_column, &mut place.at);
            place.mask.extend(end.clone());
            let folded = TileOp::Reduce(nest.combine, DOWN, after);
            let shape = place.shape.clone();
            let sum = self.emitter(&[]).define(&mut body, ty.dtype, shape, folded);
            match &split {
                Some(split) => body.push(split.stored(&place, sum)),
                None => {
                    let value = self.emitter(&[]).code(&mut body, &nest.finish, &place, Some(sum))?;
                    self.store(&mut body, nest, &place, value);
                }
            }
        }
        self.finish_part(body);
        match split {
            Some(split) => self.join_split(nest, &split),
            None => Some(()),
        }
    }

    /// A long fold of few results, of which each has fold after fold of neighbours beside one another.
    pub(super) fn tall(&mut self, nest: &FlatNest) -> Option<()> {
        let axes = by_memory(&nest.axes, &[&nest.store]);
        let folds = by_memory(&nest.folds, &addresses(nest).collect::<Vec<_>>());
        let (width, depth) = (product(&axes).as_const()?, product(&folds).as_const()?);
        let gpu = self.machine.gpu?;
        let column = axes.last().filter(|a| a.known().is_some_and(|e| e >= TALL))?;
        let beside = |e: &Expr| matches!(stride(e, &column.symbol), Stride::Known(0 | 1));
        // With more results each thread has some for itself.
        if nest.body.result_type().is_half()
            || depth < LONG
            || width > gpu.multiprocessors * THREADS
            || !addresses(nest).all(beside)
        {
            return None;
        }
        let bk = (THREADS * EACH / TALL).min((depth as u64).next_power_of_two() as i64);
        let steps = (depth as u64).div_ceil(bk as u64) as i64;

        let mut place = self.outermost(nest);
        let blocks = number(width).ceil_div(&number(TALL));
        let block = self.blocks(blocks, &mut place);
        let var = self.symbol("k");
        place.enter(&var, &number(steps * bk));
        let result = block.scale(TALL).add(&across());
        unravel(&axes, &result, &mut place.at);
        place.mask.extend(below(&result, &number(width), TALL));
        let mut within = place.clone();
        Self::shaped(&mut within, [bk, TALL]);
        let at_depth = Expr::from(&var).add(&down());
        unravel(&folds, &at_depth, &mut within.at);
        let beyond = below(&at_depth, &number(depth), bk);
        within.mask.extend(beyond.clone());

        let dtype = nest.body.result_type();
        let ty = TileType { dtype, shape: within.shape.clone() };
        let [init, inside, next, after] = std::array::from_fn(|_| self.program.tiles.push(ty.clone()));
        let nothing = neutral(nest.combine, dtype);
        let mut body = vec![Stmt::Let(init, TileOp::Const(nothing))];
        let mut inner = Vec::new();
        let mut e = self.emitter(&[]);
        let value = e.code(&mut inner, &nest.body, &within, None)?;
        let mut value = e.full(&mut inner, value, &ty.shape);
        if let Some(beyond) = beyond {
            let holds = e.holds(&mut inner, &[beyond], &within)?;
            let other = e.constant(&mut inner, nothing, ty.shape.len());
            value = e.define(&mut inner, dtype, ty.shape.clone(), TileOp::Select(holds, value, other));
        }
        inner.push(Stmt::Let(next, TileOp::Binary(nest.combine, inside, value)));
        let carried = vec![Carried { init, inside, next, after }];
        let (lo, hi) = (Expr::default(), number(steps * bk));
        body.push(Stmt::For(For { var, lo, hi, step: bk, carried, body: inner }));
        Self::shaped(&mut place, [1, TALL]);
        let folded = TileOp::Reduce(nest.combine, DOWN, after);
        let mut e = self.emitter(&[]);
        let value = e.define(&mut body, dtype, place.shape.clone(), folded);
        let value = e.code(&mut body, &nest.finish, &place, Some(value))?;
        self.store(&mut body, nest, &place, value);
        self.finish_part(body);
        Some(())
    }
}

/// The factor of a product of numbers with what is the same at both places, and that.
fn common_factor(nest: &FlatNest, id: Id<Scalar>, places: [Place; 2]) -> (Id<Scalar>, Option<Id<Scalar>>) {
    let code = &nest.body;
    let same = |id: Id<Scalar>| {
        let mut same = true;
        for_each_expr(code, id, &mut |e| same &= places[0].expr(e) == places[1].expr(e));
        same
    };
    match code.node(id) {
        Scalar::Binary(BinaryOp::Mul, a, b) if same(*b) => (*a, Some(*b)),
        Scalar::Binary(BinaryOp::Mul, a, b) if same(*a) => (*b, Some(*a)),
        _ => (id, None),
    }
}
