//! Products for GPUs whose warps multiply in groups of four (sm_90a).
//!
//! Invariant: what is made here is a stream to `warp::stream`, or nothing; which tiles pay is a rule on shapes alone.

use super::Builder;
use super::flat::{Axis, FlatNest};
use super::gpu::Operands;
use crate::warp::stream::{CHUNK, Stream};
use kiln_ir::dtype::DType;
use kiln_ir::id::Id;
use kiln_ir::scalar::{Code, Scalar, Source};

/// Rows and columns of tiles, by falling reuse of what is fetched.
const TILES: [[i64; 2]; 4] = [[128, 256], [128, 128], [64, 128], [64, 64]];

/// Blocks that keep most multiprocessors busy: an H100 has 132.
const BUSY: i64 = 96;

/// The load of an operand that is a half in memory and is widened.
fn half(code: &Code, id: Id<Scalar>) -> Option<Id<Scalar>> {
    match code.node(id) {
        Scalar::Cast(DType::F32, from) => half(code, *from),
        Scalar::Load(Source::Input(_), _) => code.dtype(id).is_half().then_some(id),
        _ => None,
    }
}

/// The type of both operands in memory, where they are halves.
pub(super) fn halves(code: &Code, o: &Operands) -> Option<DType> {
    let [left, right] = [o.left, o.right].map(|id| half(code, id).map(|id| code.dtype(id)));
    left.filter(|_| left == right)
}

impl Builder<'_> {
    /// The product of so many rows, columns and elements of the fold as a stream of tiles; nothing (and no change) where it
    /// is none, or too small to pay.
    pub(super) fn matrix_of_groups(&mut self, nest: &FlatNest, o: &Operands, [m, n, k]: [i64; 3]) -> Option<()> {
        let wanted = self.machine.gpu.is_some_and(|gpu| gpu.groups);
        let dtype = halves(&nest.body, o).filter(|_| wanted && m >= 64 && n >= 64 && k >= CHUNK)?;
        let batch = o.batch.iter().map(|a: &Axis| nest.guess(a)).fold(1i64, i64::saturating_mul);
        let count = |[rows, columns]: &[i64; 2]| {
            let blocks = ((m + rows - 1) / rows).saturating_mul((n + columns - 1) / columns);
            blocks.saturating_mul(batch)
        };
        let [.., smallest] = TILES;
        let [rows, columns] = TILES.into_iter().find(|tile| count(tile) >= BUSY).unwrap_or(smallest);
        let before = self.program.clone();
        let part = before.parts.len();
        let made = self.matrix_of(nest, o, Some(([rows, columns, CHUNK], dtype)));
        if made.is_some() && self.program.parts.get(part).is_some_and(|part| Stream::of(&self.program, part).is_some())
        {
            return Some(());
        }
        self.program = before;
        None
    }
}
