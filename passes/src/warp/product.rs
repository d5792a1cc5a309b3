//! Matrix products by way of shared memory.
//!
//! Invariant: the rows of a staged tile are 16 bytes longer than the tile, so that they stay aligned for wide accesses
//! and eight successive rows of a tile with a multiple of 16 elements of 2 bytes lie in different banks; but not those of
//! 4-byte elements that copies of 16 bytes write, of which two rows of 16 elements fill all banks. Without matrix
//! instructions the sum runs by rising `k`, as in the tile program.

use super::arith::register_type;
use super::layout::{Bit, Layout, Product};
use super::memory::{Width, groups};
use super::{LowerError, Lowering, Tile};
use kiln_ir::expr::Symbol;
use kiln_ir::tile::{TileId, axis};
use kiln_ir::warp::{Op, Place, Stmt, ValueId};
use kiln_ir::{DType, Expr};

/// A tile in shared memory: element `[i, j, ..]` is at `base + i * strides[0] + j * strides[1] + ..`.
#[derive(Clone)]
pub(super) struct Staged {
    pub place: Place,
    pub base: Expr,
    pub strides: Vec<i64>,
}

/// The type in shared memory of elements of a type.
pub(super) fn in_shared(dtype: DType) -> DType {
    if dtype == DType::Bool { DType::I32 } else { register_type(dtype) }
}

impl Lowering<'_> {
    /// The strides of a tile in shared memory, with its elements there; whether its rows are longer is given.
    pub(super) fn shared_shape(&self, id: TileId, longer: bool) -> Result<(Vec<i64>, usize), LowerError> {
        let ty = &self.program.tiles[id];
        let wide = 16 / in_shared(ty.dtype).size().max(1);
        let mut strides = vec![1i64; ty.shape.len()];
        let mut size = 1usize;
        for (k, &extent) in ty.shape.iter().enumerate().rev() {
            strides[k] = size as i64;
            // Positions up to the next power of two are there, so that storing them needs no condition.
            size = size.saturating_mul(extent.max(1).next_power_of_two());
            if k + 1 == ty.shape.len() && k > 0 {
                size = size.max(wide).saturating_add(if longer { wide } else { 0 });
            }
        }
        if size > self.options.shared {
            return Err(self.unsupported(format!("a tile of {size} elements in shared memory")));
        }
        Ok((strides, size.max(wide)))
    }

    /// The address of an element as an expression over the axes.
    fn element(staged: &Staged) -> Expr {
        let strides = staged.strides.iter().enumerate();
        strides.fold(staged.base.clone(), |sum, (k, &stride)| sum.add(&Expr::from(axis(k)).scale(stride)))
    }

    /// How wide the thread's accesses of a staged tile can be.
    pub(super) fn staged_width(layout: &Layout, dtype: DType) -> Width {
        let Some(axis) = layout.shape.len().checked_sub(1) else { return Width { axis: 0, elements: 1 } };
        let most = (16 / in_shared(dtype).size().max(1)).min(8);
        Width { axis, elements: (1usize << layout.run(axis)).min(most) }
    }

    /// Writes tiles to shared memory, where all threads can then read them.
    pub(super) fn stage(&mut self, ids: &[TileId]) -> Result<Vec<Staged>, LowerError> {
        if self.code.depth() > 0 {
            // What the iteration before wrote here may still be read.
            self.code.push(Stmt::Barrier);
        }
        let mut all = Vec::new();
        for &id in ids {
            let (strides, size) = self.shared_shape(id, true)?;
            let (layout, dtype) = (self.layouts.of(id), self.program.tiles[id].dtype);
            let place = self.code.shared(in_shared(dtype), size);
            let staged = Staged { place, base: Expr::default(), strides };
            let condition = self.owner(&layout);
            for group in groups(&layout, Self::staged_width(&layout, dtype)) {
                let Some(&first) = group.first() else { continue };
                let address = self.address(place, &Self::element(&staged), &layout, &layout.offsets(first))?;
                let mut values = Vec::new();
                for r in group {
                    let value = self.operand(id, &layout.coordinates(r))?;
                    values.push(self.code.cast(in_shared(dtype), value));
                }
                self.code.push(Stmt::Store { address, values, condition });
            }
            all.push(staged);
        }
        self.code.push(Stmt::Barrier);
        Ok(all)
    }

    /// Begins to copy a tile's elements from memory to shared memory; where `conditions` do not hold, zeros are there
    /// after it.
    pub(super) fn copy(
        &mut self,
        id: TileId,
        (buffer, address): (usize, &Expr),
        conditions: &[kiln_ir::scalar::Less],
        staged: &Staged,
        width: Width,
    ) -> Result<(), LowerError> {
        let layout = self.layouts.of(id);
        for group in groups(&layout, width) {
            let Some(&first) = group.first() else { continue };
            let offsets = layout.offsets(first);
            let condition = match self.mask(conditions, &layout, &offsets)? {
                super::index::Condition::Always => None,
                super::index::Condition::Never => Some(self.code.int(DType::Bool, 0)),
                super::index::Condition::Where(value) => Some(value),
            };
            let from = self.address(Place::Global(buffer), address, &layout, &offsets)?;
            let to = self.address(staged.place, &Self::element(staged), &layout, &offsets)?;
            self.code.push(Stmt::Copy { to, from, count: group.len(), condition });
        }
        Ok(())
    }

    pub(super) fn product(&mut self, id: TileId, a: TileId, b: TileId, acc: TileId) -> Result<Tile, LowerError> {
        let fresh: Vec<TileId> = [a, b].into_iter().filter(|o| !self.staged.contains_key(o)).collect();
        let mut staged = if fresh.is_empty() { Vec::new() } else { self.stage(&fresh)? }.into_iter();
        let mut place = |o: TileId| self.staged.get(&o).cloned().or_else(|| staged.next());
        let (Some(left), Some(right)) = (place(a), place(b)) else {
            return Err(self.unsupported("a product without operands"));
        };
        let layout = self.layouts.of(id);
        let init = (0..layout.registers())
            .map(|r| self.operand(acc, &layout.coordinates(r)))
            .collect::<Result<Vec<_>, _>>()?;
        let depth = self.program.tiles[a].shape.get(1).copied().unwrap_or(1);
        let operands = Operands { a, b, left, right, layout };
        let step = match self.layouts.product(id) {
            Product::Mma => 16,
            Product::Fma => {
                let most = (16 / in_shared(self.program.tiles[a].dtype).size()).min(4);
                (0..).map(|n| most >> n).find(|s| *s <= 1 || depth.is_multiple_of(*s)).unwrap_or(1).max(1)
            }
        };
        let (lo, hi) = (self.code.int(DType::I32, 0), self.code.int(DType::I32, depth as i64));
        let k = Symbol::numbered("product.", id.index());
        let product = self.layouts.product(id);
        let add = |lowering: &mut Self, k: &Expr, sums: &[ValueId]| match product {
            Product::Fma => lowering.multiply(&operands, k, step, sums),
            Product::Mma => lowering.matrix_multiply(&operands, k, sums),
        };
        if depth <= step {
            return Ok(Tile::Registers(add(self, &Expr::default(), &init)?));
        }
        let sums = self.looped(DType::I32, (lo, hi, step as i64), &init, |lowering, variable, sums| {
            lowering.with_symbol(&k, variable, (0, depth as i64), |lowering| add(lowering, &Expr::from(&k), sums))
        })?;
        Ok(Tile::Registers(sums))
    }

    /// Adds `step` products to each accumulator.
    fn multiply(&mut self, o: &Operands, k: &Expr, step: usize, sums: &[ValueId]) -> Result<Vec<ValueId>, LowerError> {
        let Operands { a, b, left, right, layout } = o;
        let ty = sums.first().map_or(DType::F32, |&s| self.code.ty(s));
        let (of_a, of_b) = (self.program.tiles[*a].dtype, self.program.tiles[*b].dtype);
        let (lda, ldb) = (left.strides[0], right.strides[0]);
        let row = self.thread_position(layout, 0);
        let column = self.thread_position(layout, 1);
        let mut rows = Vec::new();
        for i in 0..layout.along(0) {
            let at = row.add(&super::number(layout.offset(0, i))).scale(lda).add(k).add(&left.base);
            let address = self.place(left.place, &at)?;
            let values = self.code.load(in_shared(of_a), step, address, None);
            rows.push(values.into_iter().map(|v| self.convert(ty, v)).collect::<Vec<_>>());
        }
        let mut sums = sums.to_vec();
        let most = (16 / in_shared(of_b).size()).min(8);
        let width = (1usize << layout.run(1)).min(most);
        for j in 0..step {
            let mut columns = Vec::new();
            for n in (0..layout.along(1)).step_by(width) {
                let down = k.add(&super::number(j as i64)).scale(ldb);
                let at = column.add(&super::number(layout.offset(1, n))).add(&down).add(&right.base);
                let address = self.place(right.place, &at)?;
                for value in self.code.load(in_shared(of_b), width, address, None) {
                    columns.push(self.convert(ty, value));
                }
            }
            for (i, values) in rows.iter().enumerate() {
                let Some(&x) = values.get(j) else { continue };
                for (n, &y) in columns.iter().enumerate() {
                    let r = layout.register(&[i, n]);
                    if let Some(slot) = sums.get_mut(r) {
                        *slot = self.multiply_add(x, y, *slot)?;
                    }
                }
            }
        }
        Ok(sums)
    }

    /// Adds 16 products to each accumulator with `mma.m16n8k16`, from fragments that `ldmatrix` loads: `a` by rows, `b`
    /// transposed, two columns of fragments at a time.
    fn matrix_multiply(&mut self, o: &Operands, k: &Expr, sums: &[ValueId]) -> Result<Vec<ValueId>, LowerError> {
        let Operands { a, left, right, layout, .. } = o;
        let dtype = self.program.tiles[*a].dtype;
        let (lda, ldb) = (left.strides[0], right.strides[0]);
        // The warps' part of a position is what the lanes do not give.
        let mut warps = layout.clone();
        warps.axes.iter_mut().flatten().for_each(|bit| {
            if matches!(bit, Bit::Thread(0..5)) {
                *bit = Bit::Register;
            }
        });
        let (row, column) = (self.thread_position(&warps, 0), self.thread_position(&warps, 1));
        let mut lane = |bits: Vec<Bit>| self.thread_position(&Layout { shape: vec![16], axes: vec![bits] }, 0);
        let sixteenth = lane((0..4).map(Bit::Thread).collect());
        let eight = lane(vec![Bit::Register, Bit::Register, Bit::Register, Bit::Thread(4)]);
        let mut fragments = Vec::new();
        for i in (0..layout.along(0)).step_by(2) {
            let down = row.add(&sixteenth).add(&super::number(layout.offset(0, i))).scale(lda);
            let address = self.place(left.place, &down.add(&eight).add(k).add(&left.base))?;
            let op = Op::Matrix { address, transposed: false };
            fragments.push(self.code.several(DType::U32, 4, op));
        }
        let mut sums = sums.to_vec();
        let across = if layout.along(1) >= 4 { 4 } else { 2 };
        for n in (0..layout.along(1)).step_by(across) {
            let down = k.add(&sixteenth).scale(ldb);
            let right_of = column.add(&super::number(layout.offset(1, n)));
            let right_of = if across == 4 { right_of.add(&eight) } else { right_of };
            let address = self.place(right.place, &down.add(&right_of).add(&right.base))?;
            let op = Op::Matrix { address, transposed: true };
            let b = self.code.several(DType::U32, across, op);
            for (i, a) in fragments.iter().enumerate() {
                let &[a0, a1, a2, a3] = a.as_slice() else { continue };
                for (j, b) in b.chunks(2).enumerate() {
                    let (i, n) = (2 * i, n + 2 * j);
                    let at = [[i, n], [i, n + 1], [i + 1, n], [i + 1, n + 1]].map(|c| layout.register(&c));
                    let (&[b0, b1], [Some(c0), Some(c1), Some(c2), Some(c3)]) = (b, at.map(|r| sums.get(r).copied()))
                    else {
                        continue;
                    };
                    let op = Op::Mma { dtype, a: [a0, a1, a2, a3], b: [b0, b1], c: [c0, c1, c2, c3] };
                    for (r, sum) in at.into_iter().zip(self.code.several(DType::F32, 4, op)) {
                        sums[r] = sum;
                    }
                }
            }
        }
        Ok(sums)
    }
}

struct Operands {
    a: TileId,
    b: TileId,
    left: Staged,
    right: Staged,
    /// Of the accumulators.
    layout: Layout,
}
