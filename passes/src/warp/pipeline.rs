//! Loops that copy the operands of their products ahead.
//!
//! Invariant: of `stages` slots in shared memory one is read and the others are being copied to. An iteration first
//! waits for its own slot and for all threads, which have then read the slot of the iteration before; the copies
//! that it begins go there.

use super::layout::each;
use super::memory::Width;
use super::product::{Staged, staged_type};
use super::{LowerError, Lowering, number};
use kiln_ir::expr::Symbol;
use kiln_ir::scalar::{BinaryOp, Less};
use kiln_ir::tile::{For, Stmt as TileStmt, TileId, TileOp};
use kiln_ir::warp::Stmt;
use kiln_ir::{DType, Expr};

/// A load that is done by copies ahead of the iteration that needs it.
pub(super) struct Ahead<'a> {
    id: TileId,
    buffer: usize,
    address: &'a Expr,
    mask: &'a [Less],
    width: Width,
}

impl Lowering<'_> {
    /// The loads of the loop's body that can be done ahead: those that only products of the body read, that are zero
    /// outside their masks, and whose accesses are wide enough for copies.
    pub(super) fn ahead<'s>(&self, counted: &'s For) -> Vec<Ahead<'s>> {
        let mut found = Vec::new();
        if self.options.stages < 2 {
            return found;
        }
        for stmt in &counted.body {
            let TileStmt::Let(id, TileOp::Load { buffer, address, gathered, mask, other }) = stmt else { continue };
            let (layout, dtype) = (self.layouts.of(*id), self.program.tiles[*id].dtype);
            let width = self.width(&layout, dtype, address, mask);
            let everyone = (1u32 << self.layouts.threads) - 1 == layout.used();
            let along_rows = width.elements == 1 || self.layouts.staging(*id).is_some_and(|s| s.along == width.axis);
            let fits = matches!(width.elements * dtype.size(), 4 | 8 | 16)
                && (dtype.is_ofp8() || staged_type(dtype) == dtype)
                && along_rows;
            let zero = other.bits == 0 || mask.is_empty() && (0..layout.shape.len()).all(|k| !layout.is_padded(k));
            if gathered.is_empty() && everyone && fits && zero && self.only_for_products(*id, &counted.body) {
                found.push(Ahead { id: *id, buffer: *buffer, address, mask, width });
            }
        }
        found
    }

    /// Whether products among these statements are all that reads the tile.
    fn only_for_products(&self, id: TileId, body: &[TileStmt]) -> bool {
        let products = body.iter().filter_map(|stmt| match stmt {
            TileStmt::Let(_, TileOp::Dot(_, a, b, acc)) => {
                Some([*a, *b].iter().filter(|o| **o == id).count() * usize::from(*acc != id))
            }
            TileStmt::Let(..) | TileStmt::For(_) | TileStmt::Store { .. } | TileStmt::Multiply(_) | TileStmt::If(_) => {
                None
            }
        });
        let products: usize = products.sum();
        let mut uses = 0;
        for part in &self.program.parts {
            each(&part.body, &mut |stmt| uses += uses_of(stmt, id));
        }
        products > 0 && products == uses
    }

    pub(super) fn pipeline(&mut self, counted: &For, ahead: Vec<Ahead<'_>>) -> Result<(), LowerError> {
        let stages = self.options.stages;
        let slot = Symbol::numbered("slot.", self.code.shared.len());
        let mut slots = Vec::new();
        let again = !self.spare.is_empty();
        for a in &ahead {
            let (strides, size, swizzle) = self.shared_shape(a.id)?;
            let place = self.space(staged_type(self.program.tiles[a.id].dtype), size.saturating_mul(stages));
            slots.push((Staged { place, base: Expr::default(), strides, swizzle }, size as i64));
        }
        if self.code.depth() > 0 || again {
            // Threads may still read what the loop that is around this one, or the one before it, copied here.
            self.code.push(Stmt::Barrier);
        }
        for s in 0..stages - 1 {
            let at = counted.lo.add(&number(counted.step.saturating_mul(s as i64)));
            self.copies(counted, &ahead, &slots, &at, &number(s as i64))?;
        }
        let first = self.code.int(DType::I32, 0);
        self.repeat(counted, &[first], |lowering, further| {
            let current = further.first().copied().unwrap_or(first);
            lowering.code.push(Stmt::Wait(stages as u32 - 2));
            lowering.code.push(Stmt::Barrier);
            let last = lowering.code.int(DType::I32, stages as i64 - 1);
            let at_first = lowering.code.with(BinaryOp::Eq, current, 0);
            let before = lowering.code.with(BinaryOp::Add, current, -1);
            let before = lowering.code.select(at_first, last, before);
            let bounds = (0, stages as i64 - 1);
            let distance = counted.step.saturating_mul(stages as i64 - 1);
            let at = Expr::from(&counted.var).add(&number(distance));
            lowering.with_symbol(&slot, before, bounds, |lowering| {
                lowering.copies(counted, &ahead, &slots, &at, &Expr::from(&slot))
            })?;
            for (a, (staged, size)) in ahead.iter().zip(&slots) {
                let staged = Staged { base: Expr::from(&slot).scale(*size), ..staged.clone() };
                lowering.staged.insert(a.id, staged);
            }
            lowering.with_symbol(&slot, current, bounds, |lowering| lowering.region(&counted.body))?;
            ahead.iter().for_each(|a| {
                lowering.staged.remove(&a.id);
            });
            let at_last = lowering.code.binary(BinaryOp::Eq, current, last);
            let next = lowering.code.with(BinaryOp::Add, current, 1);
            Ok(vec![lowering.code.select(at_last, first, next)])
        })?;
        // The last iterations began copies of nothing.
        self.code.push(Stmt::Wait(0));
        Ok(())
    }

    /// Begins the copies for the iteration where the loop's variable is `at`, if there is one, to a slot.
    fn copies(
        &mut self,
        counted: &For,
        ahead: &[Ahead<'_>],
        slots: &[(Staged, i64)],
        at: &Expr,
        slot: &Expr,
    ) -> Result<(), LowerError> {
        for (a, (staged, size)) in ahead.iter().zip(slots) {
            let then = |e: &Expr| e.replace(&counted.var, at);
            let mut conditions = vec![Less { left: at.clone(), right: counted.hi.clone() }];
            conditions.extend(a.mask.iter().map(|m| Less { left: then(&m.left), right: then(&m.right) }));
            let staged = Staged { base: slot.scale(*size), ..staged.clone() };
            self.copy(a.id, (a.buffer, &then(a.address)), &conditions, &staged, a.width)?;
        }
        self.code.push(Stmt::Commit);
        Ok(())
    }
}

/// How often a statement itself reads the tile.
fn uses_of(stmt: &TileStmt, id: TileId) -> usize {
    let count = |ids: &[TileId]| ids.iter().filter(|&&i| i == id).count();
    match stmt {
        TileStmt::Let(_, op) => match op {
            TileOp::Const(_) | TileOp::Index(_) => 0,
            TileOp::Load { gathered, .. } => count(gathered),
            TileOp::Unary(_, a) | TileOp::Cast(_, a) | TileOp::Reduce(_, _, a) | TileOp::Transpose(_, a) => {
                count(&[*a])
            }
            TileOp::Binary(_, a, b) => count(&[*a, *b]),
            TileOp::Fma(a, b, c) | TileOp::Select(a, b, c) | TileOp::Dot(_, a, b, c) => count(&[*a, *b, *c]),
            TileOp::CheckIndex { index, .. } => count(&[*index]),
        },
        TileStmt::For(For { carried, .. }) => carried.iter().map(|c| count(&[c.init, c.next])).sum(),
        TileStmt::Store { value, .. } => count(&[*value]),
        TileStmt::If(choice) => count(&[choice.condition]),
        TileStmt::Multiply(_) => 0,
    }
}
