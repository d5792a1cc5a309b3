//! Loads of local memory that wait until what they load is needed.
//!
//! Invariant: each register is loaded before anything is stored over it.
//!
//! A load from a buffer that the kernel stores to must happen where it stands, or at least before the next store to it. Where a sum goes through local memory
//! in stretches, the whole tile of sums would then be in registers beside the whole tile of the stretch, which takes almost all there are: each
//! sum was loaded, stored again elsewhere, and loaded once more to be added. Stored back where they came from, sums can be loaded one register at a time.

use super::LowerError;
use super::tiles::Lowering;
use kiln_ir::expr::Expr;
use kiln_ir::tile::{Stmt, TileId, TileOp};
use std::collections::HashSet;

/// Vectors of sums that fit beside those of a stretch. Loaded together they are added to sooner: one row of few bits takes a tenth longer otherwise.
const FEW: usize = 8;

impl Lowering<'_> {
    /// Whether a load may wait: one from memory that no other buffer shares, of so much that it takes many registers.
    pub(super) fn may_wait(&self, id: TileId, op: &TileOp) -> bool {
        let vectors = self.ty(id).elements() * self.ty(id).dtype.size() / self.bytes as usize;
        let local = self.plain_load(op).is_some_and(|(buffer, _)| self.program.buffers[buffer].local);
        local && vectors > FEW
    }

    /// The buffer and the address of a load of all elements.
    fn plain_load<'o>(&self, op: &'o TileOp) -> Option<(usize, &'o Expr)> {
        match op {
            TileOp::Load { buffer, address, gathered, mask, .. } if gathered.is_empty() && mask.is_empty() => {
                Some((*buffer, address))
            }
            _ => None,
        }
    }

    /// Loads what may not wait any longer, before a statement.
    pub(super) fn before(&mut self, stmt: &Stmt) -> Result<(), LowerError> {
        if matches!(stmt, Stmt::Let(..)) {
            return Ok(());
        }
        for load in std::mem::take(&mut self.waiting) {
            let Some((from, address)) = self.ops[load.index()].and_then(|op| self.plain_load(op)) else { continue };
            match stmt {
                Stmt::Store { buffer, .. } if *buffer != from => self.waiting.push(load),
                Stmt::Store { address: to, gathered, mask, value, .. }
                    if to == address && gathered.is_empty() && mask.is_empty() && self.is_made_of(*value, load) => {}
                Stmt::Let(..) | Stmt::Store { .. } | Stmt::For(_) | Stmt::Multiply(_) | Stmt::If(_) => {
                    self.all(load)?;
                }
            }
        }
        Ok(())
    }

    /// Whether each element of a tile that is not computed yet needs the one of another tile at the same position.
    fn is_made_of(&self, tile: TileId, other: TileId) -> bool {
        let shape = &self.ty(other).shape;
        let (mut open, mut seen) = (vec![tile], HashSet::new());
        while let Some(id) = open.pop() {
            if id == other {
                return true;
            }
            // What is computed has loaded what it is made of.
            if self.ty(id).shape != *shape || self.registers.contains_key(&(id, 0)) || !seen.insert(id) {
                continue;
            }
            match self.ops[id.index()] {
                Some(TileOp::Unary(_, a) | TileOp::Cast(_, a)) => open.push(*a),
                Some(TileOp::Binary(_, a, b)) => open.extend([*a, *b]),
                Some(TileOp::Fma(a, b, c) | TileOp::Select(a, b, c)) => open.extend([*a, *b, *c]),
                _ => {}
            }
        }
        false
    }
}
