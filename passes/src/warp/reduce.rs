//! Reductions: within registers, then between lanes by shuffles, then between warps through shared memory.
//!
//! Invariant: after a reduction every thread that holds a copy of a result holds the same bits, because the two sides of
//! a shuffle compute one commutative operation, and all threads fold the warps' shares in one order.

use super::arith::register_type;
use super::index::Condition;
use super::layout::Layout;
use super::product::in_shared;
use super::{LowerError, Lowering, Tile};
use kiln_ir::DType;
use kiln_ir::Expr;
use kiln_ir::scalar::{BinaryOp, Less};
use kiln_ir::tile::{TileId, axis as axis_symbol};
use kiln_ir::warp::{Address, Op, Stmt, ValueId};

impl Lowering<'_> {
    pub(super) fn reduce(&mut self, op: BinaryOp, axis: usize, a: TileId) -> Result<Tile, LowerError> {
        let (layout, ty) = (self.layouts.of(a), self.program.tiles[a].dtype);
        let registers = self.registers(a)?;
        let identity = self.identity(op, ty)?;
        let mut sums: Vec<Option<ValueId>> = vec![None; layout.registers() / layout.along(axis)];
        let mut without = layout.clone();
        without.shape[axis] = 1;
        without.axes[axis].clear();
        for (r, mut value) in registers.into_iter().enumerate() {
            if layout.is_padded(axis) {
                let inside = Less { left: Expr::from(axis_symbol(axis)), right: Expr::from(layout.shape[axis]) };
                value = match self.condition(&inside, &layout, &layout.offsets(r))? {
                    Condition::Always => value,
                    Condition::Never => continue,
                    Condition::Where(condition) => self.code.select(condition, value, identity),
                };
            }
            let slot = without.register(&layout.coordinates(r));
            let sum = match sums.get(slot).copied().flatten() {
                None => value,
                Some(sum) => self.binary(op, sum, value)?,
            };
            if let Some(slot) = sums.get_mut(slot) {
                *slot = Some(sum);
            }
        }
        let mut sums: Vec<ValueId> = sums.into_iter().map(|s| s.unwrap_or(identity)).collect();
        let threads = layout.used_along(axis);
        for lane in (0..5).filter(|lane| threads >> lane & 1 != 0) {
            for sum in &mut sums {
                let other = self.shuffle(*sum, 1 << lane);
                *sum = self.binary(op, *sum, other)?;
            }
        }
        let warps = threads & !31;
        if warps != 0 {
            self.between_warps(op, &mut sums, threads, warps)?;
        }
        let sums = sums.into_iter().map(|sum| self.wrapped(ty, sum)).collect();
        Ok(Tile::Registers(sums))
    }

    /// The value of the lane that differs in the bits of the mask.
    fn shuffle(&mut self, value: ValueId, mask: u32) -> ValueId {
        let ty = self.code.ty(value);
        let carrier = match ty {
            DType::Bool => DType::I32,
            DType::F16 | DType::BF16 => DType::F32,
            other => other,
        };
        let carried = self.code.cast(carrier, value);
        let other = self.code.op(carrier, Op::Shuffle(carried, mask));
        self.code.cast(ty, other)
    }

    /// Folds the sums of the warps that differ in the bits `warps`; `threads` are all bits along the axis.
    fn between_warps(
        &mut self,
        op: BinaryOp,
        sums: &mut [ValueId],
        threads: u32,
        warps: u32,
    ) -> Result<(), LowerError> {
        let block = 1usize << self.layouts.threads;
        let Some(&first) = sums.first() else { return Ok(()) };
        let ty = self.code.ty(first);
        let carrier = in_shared(ty);
        let place = self.code.shared(carrier, sums.len() * block);
        if self.code.depth() > 0 {
            // What the iteration before wrote here may still be read.
            self.code.push(Stmt::Barrier);
        }
        let thread = self.thread();
        let condition = self.bits_are_zero(threads & 31);
        for (n, &sum) in sums.iter().enumerate() {
            let address = Address { place, index: Some(thread), offset: (n * block) as i64 };
            let value = self.code.cast(carrier, sum);
            self.code.push(Stmt::Store { address, values: vec![value], condition });
        }
        self.code.push(Stmt::Barrier);
        let own = self.code.with(BinaryOp::And, thread, !i64::from(threads));
        let shares: Vec<i64> = (0..block as u32).filter(|w| w & !warps == 0).map(i64::from).collect();
        for (n, sum) in sums.iter_mut().enumerate() {
            let mut all = None;
            for share in &shares {
                let address = Address { place, index: Some(own), offset: (n * block) as i64 + share };
                for value in self.code.load(carrier, 1, address, None) {
                    let value = self.code.cast(ty, value);
                    all = Some(match all {
                        None => value,
                        Some(all) => self.binary(op, all, value)?,
                    });
                }
            }
            *sum = all.unwrap_or(*sum);
        }
        Ok(())
    }

    /// The tile with its axes in another order, by way of shared memory.
    pub(super) fn transpose(&mut self, id: TileId, order: &[usize], a: TileId) -> Result<Tile, LowerError> {
        let target: Layout = self.layouts.of(id);
        if let Some(Tile::Splat(value)) = self.tiles.get(&a) {
            return Ok(Tile::Splat(*value));
        }
        let staged = self.stage(&[a])?;
        let Some(staged) = staged.first() else { return Err(self.unsupported("a transpose of nothing")) };
        let ty = self.program.tiles[a].dtype;
        // Axis `order[k]` of `a` is axis `k` of the result.
        let address = order
            .iter()
            .enumerate()
            .fold(Expr::default(), |sum, (k, &from)| sum.add(&Expr::from(axis_symbol(k)).scale(staged.strides[from])));
        let mut registers = Vec::new();
        for r in 0..target.registers() {
            let address = self.address(staged.place, &address, &target, &target.offsets(r))?;
            for value in self.code.load(in_shared(ty), 1, address, None) {
                registers.push(self.code.cast(register_type(ty), value));
            }
        }
        Ok(Tile::Registers(registers))
    }
}
