//! Products of few rows, as decoding and the last layers of networks have them: a matrix that is read once.
//!
//! Invariant: every element of the matrix is read by one thread, 16 bytes at a time where its rows are aligned, and
//! neighbouring lanes read neighbouring elements of a row. A thread adds up what it reads in sums of its own, so that many
//! reads are under way at once; the threads of a block fold their sums in one fixed order.

use super::Builder;
use super::emit::Place;
use super::fill::{self, Narrow};
use super::flat::{FlatNest, Stride, stride};
use super::forms::{addresses, kept};
use super::gpu::{DOWN, Operands, across, below, by_memory, down, number, product, unravel};
use kiln_ir::expr::Expr;
use kiln_ir::nest::neutral;
use kiln_ir::scalar::Less;
use kiln_ir::tile::{Carried, For, Stmt, TileId, TileOp, TileType};

/// Most rows of the product that share what is read of the matrix.
const MOST_ROWS: i64 = 8;

/// Elements of a fold from which threads share it.
const LONG: i64 = 64;

/// Elements of the matrix that a block reads at once, for one row; more rows have more sums.
const AT_ONCE: i64 = 8192;

impl Builder<'_> {
    /// A product of few rows with a matrix whose neighbours are columns of the product.
    pub(super) fn narrow(&mut self, nest: &FlatNest, o: &Operands) -> Option<()> {
        let rows = product(&o.rows).as_const().filter(|r| *r <= MOST_ROWS)?;
        let columns = by_memory(&o.columns, &[&nest.store]);
        let folds = by_memory(&nest.folds, &addresses(nest).collect::<Vec<_>>());
        let (width, depth) = (product(&columns).as_const()?, product(&folds).as_const()?);
        let column = columns.last()?;
        let beside = |e: &Expr| matches!(stride(e, &column.symbol), Stride::Known(1));
        let size = kept(&nest.body, o.right).size() as i64;
        if depth < LONG || width * size < fill::SECTOR || !addresses(nest).any(beside) {
            return None;
        }
        let gpu = self.machine.gpu?;
        let batch = product(&o.batch).as_const()?;
        let Narrow { columns: bn, splits } = fill::narrow(&gpu, (batch, width, depth), size);
        let each = (depth as u64).div_ceil(splits as u64) as i64;
        let most = AT_ONCE / (rows as u64).next_power_of_two() as i64;
        let bk = (most / bn).clamp(1, (each as u64).next_power_of_two() as i64);
        let share = (each as u64).div_ceil(bk as u64) as i64 * bk;

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
        let at_depth = Expr::from(&var).add(&down());
        let beyond = (share * splits != depth).then(|| Less { left: at_depth.clone(), right: number(depth) });
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
        let mut of_matrix = place.clone();
        Self::shaped(&mut of_matrix, [bk, bn]);
        unravel(&columns, &at_column, &mut of_matrix.at);
        unravel(&folds, &at_depth, &mut of_matrix.at);
        of_matrix.mask.extend(end.iter().cloned().chain(beyond.clone()));
        let matrix = self.product_operand(&mut inner, (&nest.body, o.right), &of_matrix, beyond.clone(), None)?;
        for (row, &[_, inside, next, _]) in sums.iter().enumerate() {
            let mut of_row = place.clone();
            Self::shaped(&mut of_row, [bk, 1]);
            at_row(&mut of_row, row);
            unravel(&folds, &at_depth, &mut of_row.at);
            of_row.mask.extend(beyond.clone());
            let factor = self.product_operand(&mut inner, (&nest.body, o.left), &of_row, beyond.clone(), None)?;
            inner.push(Stmt::Let(next, TileOp::Fma(factor, matrix, inside)));
        }
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
}
