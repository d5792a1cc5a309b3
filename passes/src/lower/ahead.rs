//! What is read after a fold, asked for before it.
//!
//! Invariant: only time changes. A fold keeps the processor busy for some hundred cycles, in which what is added to its sums comes near; the
//! loads behind it are too far away for the processor to see by itself, and lie in pieces that no stream foresees.

use super::LowerError;
use super::address::lane;
use super::memory::PREFETCH_FROM;
use super::tiles::{Lowering, positions};
use kiln_ir::expr::Expr;
use kiln_ir::tile::{Stmt, TileOp};
use kiln_ir::vector;

/// The bytes of a cache line.
const LINE: i64 = 64;

impl<'a> Lowering<'a> {
    /// Asks for what statements behind a loop load in vectors from large buffers, a line at a time.
    pub(super) fn ask_ahead(&mut self, behind: &'a [Stmt]) -> Result<(), LowerError> {
        // Vectors of 16 bytes are for Cranelift, which cannot ask. Within a fold nothing waits for long.
        if self.bytes < 32 || self.folding.is_some() {
            return Ok(());
        }
        for stmt in behind {
            let Stmt::Let(id, TileOp::Load { buffer, address, gathered, mask, .. }) = stmt else { continue };
            let (of, Some(home)) = (&self.program.buffers[*buffer], self.home(*id)) else { continue };
            let size = of.dtype.size() as i64;
            let bytes = of.len.as_const().map_or(0, |n| n.saturating_mul(size));
            if of.local || of.written || bytes < PREFETCH_FROM || !gathered.is_empty() || !mask.is_empty() {
                continue;
            }
            let mut asked = Vec::new();
            for at in positions(self.ty(*id), Some(home)) {
                let place = self.placed(address, &at, Some((home.axis, home.lanes)), &[]);
                if place.coefficient(&lane()) != Some(1) {
                    continue;
                }
                let address = self.address(*buffer, &place.replace(&lane(), &Expr::default()))?;
                let line = (address.index, address.offset.saturating_mul(size).div_euclid(LINE));
                if !asked.contains(&line) {
                    asked.push(line);
                    let depth = self.builder.depth();
                    self.builder.push(depth, vector::Stmt::Prefetch(address));
                }
            }
        }
        Ok(())
    }
}
