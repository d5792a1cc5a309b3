//! Products by a unit for matrices.
//!
//! Invariant: a fold goes there only where its operands lie as the unit reads them: rows at even distances, elements side by side.
//! What the unit sums is finished from local memory by the same code as any other fold.

use super::cuts::{Segment, segments};
use super::emit::{Place, tile_axis};
use super::flat::{Axis, FlatNest, Stride, stride};
use super::forms::is_dot_sum;
use super::{Builder, COLUMN, ROW, single};
use kiln_ir::dtype::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::scalar::{BinaryOp, Constant, Coord, Scalar, Source};
use kiln_ir::tile::{Factors, For, Multiply, Stmt, TileOp};
use kiln_ir::vector::Product;

/// Rows and columns of the sums that all registers hold together: two by two of them, and as many rows and columns of operands.
pub(super) const BLOCK: i64 = 32;

/// Rows of a register, and elements of a row.
const REGISTER: i64 = 16;

/// Fewer rows than this are left to dot products of vectors, which then read as much and do no more.
const FEWEST_ROWS: i64 = 4;

/// A fold that the unit can sum.
pub(super) struct Unit {
    product: Product,
    /// Input and address of the operand that rows walk along, and of that of the columns.
    left: (usize, Expr),
    right: (usize, Expr),
    /// Elements of the innermost fold that one step takes.
    depth: i64,
}

impl Unit {
    /// Nothing where the fold is of another form.
    pub(super) fn of(nest: &FlatNest, row: &Axis, column: &Axis) -> Option<Unit> {
        if !is_dot_sum(nest) {
            return None;
        }
        let Scalar::Binary(op, a, b) = nest.body.node(nest.body.result()) else { return None };
        let operand = |id| match nest.body.node(id) {
            Scalar::Load(Source::Input(n), coords) if nest.body.dtype(id) == DType::I32 => match coords.as_slice() {
                [Coord::Index(address)] => Some((*n, address.clone())),
                _ => None,
            },
            _ => None,
        };
        let (first, second) = (operand(*a)?, operand(*b)?);
        let walks = |o: &(usize, Expr), axis: &Axis| stride(&o.1, &axis.symbol) != Stride::Known(0);
        let only = |o: &(usize, Expr), along: &Axis, not: &Axis| walks(o, along) && !walks(o, not);
        let (left, right, swapped) = if only(&first, row, column) && only(&second, column, row) {
            (first, second, false)
        } else if only(&second, row, column) && only(&first, column, row) {
            (second, first, true)
        } else {
            return None;
        };
        let product = match (op, swapped) {
            (BinaryOp::Dot2, _) => Product::Pairs,
            (_, false) => Product::UnsignedSigned,
            (_, true) => Product::SignedUnsigned,
        };
        let extent = nest.folds.last()?.known()?;
        let depth = (1..=REGISTER.min(extent)).rev().find(|d| extent % d == 0)?;
        // Odd extents would take as many steps as elements.
        let full = depth * 2 >= REGISTER || depth == extent && depth * 4 >= REGISTER;
        (full && nest.guess(row) >= FEWEST_ROWS).then_some(Unit { product, left, right, depth })
    }
}

/// A run of an axis in registers.
pub(super) fn registers(extent: i64) -> Vec<usize> {
    (0..extent).step_by(REGISTER as usize).map(|at| (extent - at).min(REGISTER) as usize).collect()
}

impl Builder<'_> {
    /// Fold, finish and store of a block of rows and columns by the unit; false, and nothing done, where its operands do not lie
    /// as they must. `place` already knows where the block is.
    pub(super) fn multiplied(
        &mut self,
        body: &mut Vec<Stmt>,
        nest: &FlatNest,
        unit: &Unit,
        place: &Place,
        (row, column): (&(Symbol, Segment), &(Symbol, Segment)),
    ) -> Option<bool> {
        let (rows, columns) = (row.1.block, column.1.block);
        if !(FEWEST_ROWS..=BLOCK).contains(&rows) || columns > BLOCK {
            return Some(false);
        }
        let mut summed = place.clone();
        let mut folds = Vec::new();
        let last = nest.folds.len().checked_sub(1)?;
        for (n, fold) in nest.folds.iter().enumerate() {
            let (variable, step) = (self.symbol("k"), if n == last { unit.depth } else { 1 });
            summed.enter(&variable, &fold.extent.sub(&Expr::from(step - 1)));
            summed.at.insert(fold.symbol.clone(), Expr::from(&variable));
            folds.push((variable, fold.extent.clone(), step));
        }
        let operand = |(input, address): &(usize, Expr), axis: &(Symbol, Segment), along: usize| {
            let mut place = summed.clone();
            place.ranges.insert(tile_axis(along), (0, axis.1.block - 1));
            place.ranges.insert(tile_axis(1 - along), (0, unit.depth - 1));
            let inner = &nest.folds.get(last)?.symbol;
            for (symbol, axis) in [(&axis.0, tile_axis(along)), (inner, tile_axis(1 - along))] {
                let at = place.at.get(symbol)?.add(&Expr::from(axis));
                place.at.insert(symbol.clone(), at);
            }
            let e = place.expr(address);
            let steps = [e.coefficient(&tile_axis(0)), e.coefficient(&tile_axis(1))];
            let even = steps[0].is_some_and(|s| i32::try_from(s.saturating_mul(4)).is_ok()) && steps[1] == Some(1);
            even.then_some((*self.buffers.get(*input)?, e))
        };
        let (Some(left), Some(right)) = (operand(&unit.left, row, 0), operand(&unit.right, column, 1)) else {
            return Some(false);
        };
        let dtype = nest.body.result_type();
        let out = self.local(dtype, (BLOCK * BLOCK) as usize);
        let (rows_of, columns_of) = (registers(rows), registers(columns));
        let (product, depth) = (unit.product, unit.depth as usize);
        body.push(Stmt::Multiply(Multiply {
            out,
            rows: rows_of,
            columns: columns_of,
            product,
            depth,
            rounds: vec![vec![Factors { left, right }]],
            folds,
        }));
        // The sums are in the nearest cache now.
        let few = self.machine.pointwise_vectors(nest) * self.machine.lanes as i64;
        for s in segments(&Expr::from(rows), (few / columns).max(1), 1, &nest.dims) {
            let mut place = place.clone();
            place.shape = single();
            let mut within = s.lo.clone();
            let variable = (!s.is_single()).then(|| self.symbol("r"));
            if let Some(variable) = &variable {
                place.ranges.insert(variable.clone(), (0, s.count.scale(s.block).as_const()? - s.block));
                within = within.add(&Expr::from(variable));
            }
            for (n, symbol, extent, base) in
                [(ROW, &row.0, s.block, &within), (COLUMN, &column.0, columns, &Expr::default())]
            {
                place.shape[n] = extent as usize;
                place.ranges.insert(tile_axis(n), (0, extent - 1));
                let at = place.at.get(symbol)?.add(base).add(&Expr::from(tile_axis(n)));
                place.at.insert(symbol.clone(), at);
            }
            let element = within.add(&Expr::from(tile_axis(ROW))).scale(columns).add(&Expr::from(tile_axis(COLUMN)));
            let load = TileOp::Load {
                buffer: out,
                address: element,
                gathered: vec![],
                mask: vec![],
                other: Constant::int(dtype, 0),
            };
            let mut inner = Vec::new();
            let value = self.emitter(&[]).define(&mut inner, dtype, place.shape.clone(), load);
            let value = self.finished(&mut inner, nest, &place, value, &[])?;
            self.store(&mut inner, nest, &place, value);
            match variable {
                None => body.extend(inner),
                Some(var) => {
                    let (lo, hi) = (Expr::default(), s.count.scale(s.block));
                    body.push(Stmt::For(For { var, lo, hi, step: s.block, carried: vec![], body: inner }));
                }
            }
        }
        Some(true)
    }
}
