//! Statements of tile programs.
//!
//! Invariant: a tile's registers are as many as its layout says, and hold what the tile's elements are wherever the
//! position is inside the tile; elsewhere they hold anything.

use super::index::{Condition, common, divisor, fits};
use super::{LowerError, Lowering, Tile};
use kiln_ir::DType;
use kiln_ir::expr::Expr;
use kiln_ir::scalar::BinaryOp;
use kiln_ir::tile::{For, Stmt, TileId, TileOp};
use kiln_ir::warp::{Stmt as WarpStmt, ValueId};
use std::collections::HashSet;

impl Lowering<'_> {
    pub(super) fn region(&mut self, body: &[Stmt]) -> Result<(), LowerError> {
        let mut done = HashSet::new();
        for (n, stmt) in body.iter().enumerate() {
            if matches!(stmt, Stmt::Let(id, _) if done.contains(id)) {
                continue;
            }
            match self.beside(body.get(n..).unwrap_or(&[])) {
                Some(together) => {
                    self.load_beside(stmt, &together)?;
                    done.extend(together);
                }
                None => self.stmt(stmt)?,
            }
        }
        Ok(())
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), LowerError> {
        match stmt {
            Stmt::Let(id, op) => {
                if !self.staged.contains_key(id) {
                    let tile = self.define(*id, op)?;
                    self.tiles.insert(*id, tile);
                }
                Ok(())
            }
            Stmt::Store { gathered, .. } if !gathered.is_empty() => Err(self.unsupported("a store to computed places")),
            Stmt::Store { buffer, address, mask, value, .. } => self.store(*buffer, address, mask, *value),
            Stmt::Multiply(_) => Err(self.unsupported("a product in local memory")),
            Stmt::If(_) => Err(self.unsupported("a choice")),
            Stmt::For(counted) => {
                let multiple = common(counted.step, divisor(&counted.lo, &self.multiples));
                self.multiples.insert(counted.var.clone(), multiple);
                let ready = self.before_loop(&counted.body)?;
                let ahead = self.ahead(counted);
                if ahead.is_empty() {
                    self.counted_loop(counted)?
                } else {
                    self.pipeline(counted, ahead)?
                }
                self.staged.retain(|id, _| !ready.contains(id));
                self.fragments.retain(|(id, _), _| !ready.contains(id));
                self.multiples.remove(&counted.var);
                self.leave_space();
                Ok(())
            }
        }
    }

    fn define(&mut self, id: TileId, op: &TileOp) -> Result<Tile, LowerError> {
        match op {
            TileOp::Const(c) => Ok(Tile::Splat(self.constant(*c))),
            TileOp::Index(e) => {
                let layout = self.layouts.of(id);
                let registers = (0..layout.registers()).map(|r| {
                    let e = self.at(e, &layout, &layout.offsets(r));
                    self.wide(&e)
                });
                Ok(Tile::Registers(registers.collect::<Result<_, _>>()?))
            }
            TileOp::Load { buffer, address, gathered, mask, other } => {
                self.load(id, *buffer, address, gathered, mask, *other)
            }
            TileOp::Unary(op, a) => match self.exponential(id) {
                Some(tile) => tile,
                None => self.map(id, [*a], |s, [a]| s.unary(*op, a)),
            },
            TileOp::Binary(op, a, b) => match if *op == BinaryOp::Div { self.share(id, *a, *b) } else { None } {
                Some(tile) => tile,
                None => self.map(id, [*a, *b], |s, [a, b]| s.binary(*op, a, b)),
            },
            TileOp::Fma(a, b, c) => self.map(id, [*a, *b, *c], |s, [a, b, c]| s.multiply_add(a, b, c)),
            TileOp::Select(c, a, b) => self.map(id, [*c, *a, *b], |s, [c, a, b]| Ok(s.code.select(c, a, b))),
            TileOp::Cast(to, a) => {
                let from = self.program.tiles[*a].dtype;
                self.map(id, [*a], |s, [a]| Ok(s.convert_float8(from, *to, a).unwrap_or_else(|| s.convert(*to, a))))
            }
            TileOp::Reduce(op, axis, a) => self.reduce(*op, *axis, *a),
            TileOp::Transpose(order, a) => self.transpose(id, order, *a),
            TileOp::Dot(of, a, b, acc) => self.product(id, *of, [*a, *b, *acc]),
            TileOp::CheckIndex { index, extent, status } => self.checked(id, *index, extent, *status),
        }
    }

    /// Indices in bounds, the negative ones counted from the end; 0 in place of those out of bounds, which are noted.
    fn checked(&mut self, id: TileId, index: TileId, extent: &Expr, status: u32) -> Result<Tile, LowerError> {
        let layout = self.layouts.of(id);
        let mut registers = Vec::new();
        for r in 0..layout.registers() {
            let offsets = layout.offsets(r);
            let x = self.operand(index, &layout.coordinates(r))?;
            let end = self.at(extent, &layout, &offsets);
            let end = self.wide(&end)?;
            let zero = self.code.int(DType::I64, 0);
            let first = self.code.binary(BinaryOp::Sub, zero, end);
            let after = self.code.binary(BinaryOp::Ge, x, end);
            let before = self.code.binary(BinaryOp::Lt, x, first);
            let mut wrong = self.code.binary(BinaryOp::Or, after, before);
            let below = self.code.binary(BinaryOp::Lt, x, zero);
            let moved = self.code.add(x, end);
            let moved = self.code.select(below, moved, x);
            registers.push(self.code.select(wrong, zero, moved));
            match self.mask(&[], &layout, &offsets)? {
                Condition::Never => continue,
                Condition::Always => {}
                Condition::Where(inside) => wrong = self.code.binary(BinaryOp::And, wrong, inside),
            }
            self.code.push(WarpStmt::Fail { condition: wrong, status });
        }
        Ok(Tile::Registers(registers))
    }

    /// An elementwise operation.
    pub(super) fn map<const N: usize>(
        &mut self,
        id: TileId,
        operands: [TileId; N],
        mut f: impl FnMut(&mut Self, [ValueId; N]) -> Result<ValueId, LowerError>,
    ) -> Result<Tile, LowerError> {
        let splat = operands.iter().all(|o| matches!(self.tiles.get(o), Some(Tile::Splat(_))));
        let layout = self.layouts.of(id);
        let mut registers = Vec::new();
        for r in 0..if splat { 1 } else { layout.registers() } {
            let coordinates = layout.coordinates(r);
            let mut values = Vec::with_capacity(N);
            for &o in &operands {
                values.push(self.operand(o, &coordinates)?);
            }
            let values = values.try_into().map_err(|_| self.unsupported("an operation without operands"))?;
            let value = f(self, values)?;
            registers.push(self.wrapped(self.program.tiles[id].dtype, value));
        }
        Ok(match registers.as_slice() {
            [one] if splat => Tile::Splat(*one),
            _ => Tile::Registers(registers),
        })
    }

    /// The element of a tile at the register's numbers along the axes of a tile that it broadcasts to.
    pub(super) fn operand(&self, id: TileId, coordinates: &[usize]) -> Result<ValueId, LowerError> {
        let missing = || self.unsupported(format!("the tile {id}, which is not defined"));
        match self.tiles.get(&id).ok_or_else(missing)? {
            Tile::Splat(value) => Ok(*value),
            Tile::Registers(registers) => {
                let layout = self.layouts.of(id);
                registers.get(layout.register(coordinates)).copied().ok_or_else(missing)
            }
        }
    }

    /// All registers of a tile.
    pub(super) fn registers(&self, id: TileId) -> Result<Vec<ValueId>, LowerError> {
        let layout = self.layouts.of(id);
        (0..layout.registers()).map(|r| self.operand(id, &layout.coordinates(r))).collect()
    }

    fn counted_loop(&mut self, counted: &For) -> Result<(), LowerError> {
        self.repeat(counted, &[], |lowering, _| {
            lowering.region(&counted.body)?;
            Ok(Vec::new())
        })?;
        Ok(())
    }

    /// The loop with its carried tiles and further values. `body` is given the further values inside, and gives the
    /// next ones.
    pub(super) fn repeat(
        &mut self,
        counted: &For,
        further: &[ValueId],
        body: impl FnOnce(&mut Self, &[ValueId]) -> Result<Vec<ValueId>, LowerError>,
    ) -> Result<(), LowerError> {
        let For { var, lo, hi, step, carried, .. } = counted;
        let ty = self.loop_type(counted);
        let bounds = (lo.bounds(&self.ranges).0, hi.bounds(&self.ranges).1.saturating_sub(1));
        let (lo, hi) = (self.expr(lo)?, self.expr(hi)?);
        let (lo, hi) = (self.code.cast(ty, lo), self.code.cast(ty, hi));
        let mut init = Vec::new();
        for c in carried {
            // The tile inside may have more registers than one that begins it with the same value everywhere.
            let layout = self.layouts.of(c.inside);
            for r in 0..layout.registers() {
                init.push(self.operand(c.init, &layout.coordinates(r))?);
            }
        }
        init.extend(further);
        let counts: Vec<usize> = carried.iter().map(|c| self.layouts.of(c.inside).registers()).collect();
        let after = self.looped(ty, (lo, hi, *step), &init, |lowering, variable, inside| {
            let mut rest = inside;
            for (c, &n) in carried.iter().zip(&counts) {
                let (own, others) = rest.split_at_checked(n).unwrap_or((rest, &[]));
                lowering.tiles.insert(c.inside, Tile::Registers(own.to_vec()));
                rest = others;
            }
            lowering.with_symbol(var, variable, bounds, |lowering| {
                let further = body(lowering, rest)?;
                let mut next = Vec::new();
                for c in carried {
                    let layout = lowering.layouts.of(c.inside);
                    for r in 0..layout.registers() {
                        next.push(lowering.operand(c.next, &layout.coordinates(r))?);
                    }
                }
                next.extend(further);
                Ok(next)
            })
        })?;
        let mut rest = after.as_slice();
        for (c, n) in carried.iter().zip(counts) {
            let (own, others) = rest.split_at_checked(n).unwrap_or((rest, &[]));
            self.tiles.insert(c.after, Tile::Registers(own.to_vec()));
            rest = others;
        }
        Ok(())
    }

    /// A loop over values; see [`super::Builder::repeat`].
    pub(super) fn looped(
        &mut self,
        ty: DType,
        bounds: (ValueId, ValueId, i64),
        init: &[ValueId],
        body: impl FnOnce(&mut Self, ValueId, &[ValueId]) -> Result<Vec<ValueId>, LowerError>,
    ) -> Result<Vec<ValueId>, LowerError> {
        // The builder calls back with itself only, so it is taken out of the lowering for the time of the loop.
        let mut code = std::mem::replace(&mut self.code, super::Builder::new());
        let after = code.repeat(ty, bounds, init, |code, variable, inside| {
            std::mem::swap(&mut self.code, code);
            let next = body(self, variable, inside);
            std::mem::swap(&mut self.code, code);
            next
        });
        self.code = code;
        after
    }

    /// The type of a loop's variable: i32 where that certainly holds it and the step beyond.
    pub(super) fn loop_type(&self, counted: &For) -> DType {
        let beyond = counted.hi.add(&Expr::from(counted.step));
        if fits(&beyond, &self.ranges) && fits(&counted.lo, &self.ranges) { DType::I32 } else { DType::I64 }
    }
}
