//! Matrix products by way of shared memory.
//!
//! Invariant: an operand lies in shared memory as in global memory, with the elements of a row (of the axis along which
//! they are neighbours) beside one another, so that copies and reads of 16 bytes are possible; and no two lanes that
//! access it together meet in a bank. For that the 16-byte pieces of a row change places with one another where lanes
//! read several rows at once: piece `p` of row `r` is at `p ^ (r / rows in 128 bytes)`, cut to the pieces of a row. Where lanes
//! read eight neighbouring f32 of four rows, which are two pieces each, the bits of that number are rotated by one; where they read
//! pairs of rows that are eight apart, the number is made of the bits that differ.
//! Without matrix instructions the sum runs by rising `k`, as in the tile program.

use super::arith::register_type;
use super::layout::{Layout, Product, each};
use super::memory::{Width, groups};
use super::{LowerError, Lowering, Tile};
use kiln_ir::expr::Symbol;
use kiln_ir::scalar::BinaryOp;
use kiln_ir::tile::{Stmt as TileStmt, TileId, TileOp};
use kiln_ir::vector::Product as Elements;
use kiln_ir::warp::{Address, Factor, Place, Shared, Stmt, ValueId};
use kiln_ir::{DType, Expr};

/// A tile in shared memory: element `[i, j, ..]` is at `base + i * strides[0] + j * strides[1] + ..`, but for the swizzle.
#[derive(Clone)]
pub(super) struct Staged {
    pub place: Place,
    pub base: Expr,
    pub strides: Vec<i64>,
    pub swizzle: Option<Swizzle>,
}

/// Which pieces of a row change places.
#[derive(Clone, Copy)]
pub(super) struct Swizzle {
    /// The axis of rows; the other one is along them.
    rows: usize,
    /// `log2` of the elements of a piece.
    piece: u32,
    /// `log2` of the rows that lie in 128 bytes.
    together: u32,
    /// The pieces of a row, up to 8, less one.
    mask: i64,
    /// Whether the number of the row is rotated by one bit.
    rotated: bool,
    /// Whether rows that are read together are pairs that are eight rows apart: bits 0, 3 and 4 of the row's number are what differs.
    spread: bool,
}

/// A position along an axis: what threads and loops give, and a constant.
type Position = (Expr, i64);

/// Registers of a thread that the fragments of a left operand may take for the time of a loop.
const MOST_FRAGMENTS: usize = 64;

/// Depth of a tile up to which its matrix instructions are written out.
const MOST_DEPTH: usize = 128;

/// The same where each factor is the sum of parts, which take registers, too.
const MOST_DEPTH_IN_PARTS: usize = 32;

/// The type in shared memory of elements of a type.
pub(super) fn in_shared(dtype: DType) -> DType {
    if dtype == DType::Bool { DType::I32 } else { register_type(dtype) }
}

/// The same of operands of products: floats of 8 bits are bytes.
pub(super) fn staged_type(dtype: DType) -> DType {
    if dtype.is_ofp8() { DType::U8 } else { in_shared(dtype) }
}

impl Lowering<'_> {
    /// How a tile lies in shared memory: its strides, its elements there, and its swizzle. Positions up to the next power
    /// of two are there, so that storing them needs no condition.
    pub(super) fn shared_shape(&self, id: TileId) -> Result<(Vec<i64>, usize, Option<Swizzle>), LowerError> {
        let ty = &self.program.tiles[id];
        let size = staged_type(ty.dtype).size().max(1);
        let wide = 16 / size;
        let extents: Vec<usize> = ty.shape.iter().map(|e| (*e).max(1).next_power_of_two()).collect();
        let mut strides = vec![1i64; extents.len()];
        let (elements, swizzle) = match (self.layouts.staging(id), extents.as_slice()) {
            (Some(staging), &[_, _]) => {
                let rows = 1 - staging.along;
                let row = extents[staging.along].max(wide);
                strides[rows] = row as i64;
                let pieces = row / wide;
                let swizzle = (staging.swizzled && pieces > 1).then(|| Swizzle {
                    rows,
                    piece: wide.ilog2(),
                    together: (8 / pieces).max(1).ilog2(),
                    mask: pieces.min(8) as i64 - 1,
                    rotated: staging.rotated && pieces > 2 && !staging.spread,
                    spread: staging.spread,
                });
                (row.saturating_mul(extents[rows]), swizzle)
            }
            _ => {
                let mut elements = 1usize;
                for (k, &extent) in extents.iter().enumerate().rev() {
                    strides[k] = elements as i64;
                    elements = elements.saturating_mul(extent);
                    // Of a tile that is read along another axis than it is written, each row begins in another bank.
                    if k + 1 == extents.len() && k > 0 {
                        elements += 1;
                    }
                }
                (elements, None)
            }
        };
        if elements > self.options.shared {
            return Err(self.unsupported(format!("a tile of {elements} elements in shared memory")));
        }
        Ok((strides, elements.next_multiple_of(wide), swizzle))
    }

    /// The address of an element of a staged tile.
    pub(super) fn element(&mut self, staged: &Staged, at: &[Position]) -> Result<Address, LowerError> {
        let Some(Swizzle { rows, piece, together, mask, rotated, spread }) = staged.swizzle else {
            let parts = at.iter().zip(&staged.strides);
            let e = parts.fold(staged.base.clone(), |sum, ((e, constant), stride)| {
                sum.add(&e.add(&super::number(*constant)).scale(*stride))
            });
            return self.place(staged.place, &e);
        };
        let (Some((row, down)), Some((column, across))) = (at.get(rows), at.get(1 - rows)) else {
            return Err(self.unsupported("a swizzled tile that has not two axes"));
        };
        // Rows that differ by a whole turn have their pieces in the same places.
        let turn = if spread { 32 } else { (mask + 1) << together };
        let number = self.expr(&row.add(&super::number(down.rem_euclid(turn))))?;
        let number = if spread {
            // Bits 0, 3 and 4 as the lowest.
            let first = self.code.with(BinaryOp::And, number, 1);
            let others = self.code.with(BinaryOp::Shr, number, 2);
            let others = self.code.with(BinaryOp::And, others, 6);
            self.code.binary(BinaryOp::Or, first, others)
        } else {
            number
        };
        let turned = self.code.with(BinaryOp::Shr, number, i64::from(together));
        let mut turned = self.code.with(BinaryOp::And, turned, mask);
        if rotated {
            let up = self.code.with(BinaryOp::Shl, turned, 1);
            let down = self.code.with(BinaryOp::Shr, turned, i64::from(mask.count_ones()) - 1);
            let both = self.code.binary(BinaryOp::Or, up, down);
            turned = self.code.with(BinaryOp::And, both, mask);
        }
        let turned = self.code.with(BinaryOp::Shl, turned, i64::from(piece));
        // Whole turns of pieces along a row keep their places, too.
        let whole = across - across.rem_euclid((mask + 1) << piece);
        let column = self.expr(&column.add(&super::number(across - whole)))?;
        let turned = self.code.cast(self.code.ty(column), turned);
        let column = self.code.binary(BinaryOp::Xor, column, turned);
        let first = self.expr(&row.scale(staged.strides[rows]).add(&staged.base))?;
        let first = self.code.cast(self.code.ty(column), first);
        let index = self.code.add(first, column);
        Ok(Address { place: staged.place, index: Some(index), offset: down * staged.strides[rows] + whole })
    }

    /// Where the thread's element is along each axis, given what its register adds.
    fn positions(&mut self, layout: &Layout, offsets: &[i64]) -> Vec<Position> {
        (0..layout.shape.len())
            .map(|k| (self.thread_position(layout, k), offsets.get(k).copied().unwrap_or(0)))
            .collect()
    }

    /// How wide the thread's stores to a staged tile can be.
    fn staged_width(&self, id: TileId, layout: &Layout) -> Width {
        let Some(staging) = self.layouts.staging(id) else { return Width { axis: 0, elements: 1 } };
        let most = (16 / staged_type(self.program.tiles[id].dtype).size().max(1)).min(8);
        Width { axis: staging.along, elements: (1usize << layout.run(staging.along)).min(most) }
    }

    /// A shared buffer for an operand: one that a loop before had, if there is one like it.
    pub(super) fn space(&mut self, dtype: DType, len: usize) -> Place {
        let wanted = Shared { dtype, len };
        let place = match self.spare.iter().position(|&n| self.code.shared.get(n) == Some(&wanted)) {
            Some(at) => Place::Shared(self.spare.swap_remove(at)),
            None => self.code.shared(dtype, len),
        };
        if let Place::Shared(n) = place {
            self.taken.push(n);
        }
        place
    }

    /// Leaves the shared buffers of a loop that has ended to what follows; what another loop writes there follows a barrier.
    pub(super) fn leave_space(&mut self) {
        if self.code.depth() == 0 {
            self.spare.append(&mut self.taken);
        }
    }

    /// Writes tiles to shared memory, where all threads can then read them.
    pub(super) fn stage(&mut self, ids: &[TileId]) -> Result<Vec<Staged>, LowerError> {
        if self.code.depth() > 0 || !self.spare.is_empty() {
            // What the iteration or the loop before wrote here may still be read.
            self.code.push(Stmt::Barrier);
        }
        let mut all = Vec::new();
        for &id in ids {
            let (strides, size, swizzle) = self.shared_shape(id)?;
            let (layout, dtype) = (self.layouts.of(id), self.program.tiles[id].dtype);
            let place = self.space(staged_type(dtype), size);
            let staged = Staged { place, base: Expr::default(), strides, swizzle };
            let condition = self.owner(&layout);
            for group in groups(&layout, self.staged_width(id, &layout)) {
                let Some(&first) = group.first() else { continue };
                let at = self.positions(&layout, &layout.offsets(first));
                let address = self.element(&staged, &at)?;
                let mut values = Vec::new();
                for r in group {
                    let value = self.operand(id, &layout.coordinates(r))?;
                    values.push(self.code.cast(register_type(staged_type(dtype)), value));
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
            let at = self.positions(&layout, &offsets);
            let to = self.element(staged, &at)?;
            self.code.push(Stmt::Copy { to, from, count: group.len(), condition });
        }
        Ok(())
    }

    pub(super) fn product(
        &mut self,
        id: TileId,
        of: Option<Elements>,
        [a, b, acc]: [TileId; 3],
    ) -> Result<Tile, LowerError> {
        let rounded = self.rounded(id, a);
        let fresh = [Some(a).filter(|_| rounded.is_none()), Some(b)].into_iter().flatten();
        let fresh: Vec<TileId> = fresh.filter(|o| !self.staged.contains_key(o)).collect();
        let mut staged = if fresh.is_empty() { Vec::new() } else { self.stage(&fresh)? }.into_iter();
        let mut place = |o: TileId| self.staged.get(&o).cloned().or_else(|| staged.next());
        let left = match rounded {
            Some(tile) => Some(Left::Registers(tile)),
            None => place(a).map(Left::Staged),
        };
        let (Some(left), Some(right)) = (left, place(b)) else {
            return Err(self.unsupported("a product without operands"));
        };
        let layout = self.layouts.of(id);
        let init = (0..layout.registers())
            .map(|r| self.operand(acc, &layout.coordinates(r)))
            .collect::<Result<Vec<_>, _>>()?;
        let depth = self.program.tiles[a].shape.get(1).copied().unwrap_or(1);
        let factor = self.factor([a, b], of);
        let operands = Operands { a, b, left, right, layout, of, factor };
        let step = match self.layouts.product(id) {
            Product::Mma => factor.depth(),
            Product::Fma => {
                let most = (16 / staged_type(self.program.tiles[a].dtype).size()).min(4);
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
        // Matrix instructions are few enough to be written out, and then where they read is computed before the loop around.
        let most = if self.parts(factor) > 1 { MOST_DEPTH_IN_PARTS } else { MOST_DEPTH };
        if depth <= step || product == Product::Mma && depth <= most {
            // The units keep few bits of sums of floats of 8 bits, so those of a tile are added to the others outside of them.
            let apart = product == Product::Mma && factor.floats_of_8_bits().is_some();
            let zero = apart.then(|| self.code.float(0.0));
            let mut sums = zero.map_or_else(|| init.clone(), |zero| vec![zero; init.len()]);
            for first in (0..depth).step_by(step) {
                sums = add(self, &super::number(first as i64), &sums)?;
            }
            if apart {
                sums = init.into_iter().zip(sums).map(|(all, own)| self.code.binary(BinaryOp::Add, all, own)).collect();
            }
            return Ok(Tile::Registers(sums));
        }
        let sums = self.looped(DType::I32, (lo, hi, step as i64), &init, |lowering, variable, sums| {
            lowering.with_symbol(&k, variable, (0, depth as i64), |lowering| add(lowering, &Expr::from(&k), sums))
        })?;
        Ok(Tile::Registers(sums))
    }

    /// Adds `step` products to each accumulator.
    fn multiply(&mut self, o: &Operands, k: &Expr, step: usize, sums: &[ValueId]) -> Result<Vec<ValueId>, LowerError> {
        let Operands { a, b, left, right, layout, of, .. } = o;
        let ty = sums.first().map_or(DType::F32, |&s| self.code.ty(s));
        // `rows[j][i]` is row `i` at `k + j`, `columns[j][n]` column `n`.
        let Left::Staged(left) = left else { return Err(self.unsupported("a left operand in registers")) };
        let rows = self.slices(*a, left, (layout, 0), (k, step), ty)?;
        let mut sums = sums.to_vec();
        // Where columns are read for one `k` at a time, that is done just before they are needed.
        let together = self.is_by_depth(*b, 1);
        let all = if together { self.slices(*b, right, (layout, 1), (k, step), ty)? } else { Vec::new() };
        for (j, rows) in rows.iter().enumerate() {
            let columns = match all.get(j) {
                Some(columns) => columns.clone(),
                None => {
                    let k = k.add(&super::number(j as i64));
                    self.slices(*b, right, (layout, 1), (&k, 1), ty)?.into_iter().next().unwrap_or_default()
                }
            };
            for (i, &x) in rows.iter().enumerate() {
                for (n, &y) in columns.iter().enumerate() {
                    let r = layout.register(&[i, n]);
                    if let Some(slot) = sums.get_mut(r) {
                        *slot = match of {
                            None => self.multiply_add(x, y, *slot)?,
                            Some(of) => {
                                let (x, y) = of.ordered(x, y);
                                let product = self.binary(of.operation(), x, y)?;
                                self.binary(BinaryOp::Add, product, *slot)?
                            }
                        };
                    }
                }
            }
        }
        Ok(sums)
    }

    /// Whether an operand that gives axis `free` of the product has neighbours along the fold.
    pub(super) fn is_by_depth(&self, id: TileId, free: usize) -> bool {
        self.layouts.staging(id).is_some_and(|s| s.along != free)
    }

    /// An operand's elements for `step` places of the fold from `k` on, for each the thread's positions along axis `free` of
    /// the product, which is the operand's too.
    fn slices(
        &mut self,
        id: TileId,
        staged: &Staged,
        (layout, free): (&Layout, usize),
        (k, step): (&Expr, usize),
        ty: DType,
    ) -> Result<Vec<Vec<ValueId>>, LowerError> {
        let held = self.program.tiles[id].dtype;
        let dtype = staged_type(held);
        let own = self.thread_position(layout, free);
        let by_depth = self.is_by_depth(id, free);
        let most = (16 / dtype.size()).min(8);
        let width = if by_depth { 1 } else { (1usize << layout.run(free)).min(most) };
        let mut slices = vec![Vec::new(); step];
        let deep = if by_depth { step } else { 1 };
        for j in (0..step).step_by(deep) {
            for i in (0..layout.along(free)).step_by(width) {
                let position = (own.clone(), layout.offset(free, i));
                let depth = (k.clone(), j as i64);
                let at = if free == 0 { [position, depth] } else { [depth, position] };
                let address = self.element(staged, &at)?;
                let values = self.code.load(register_type(dtype), width * deep, address, None);
                for (n, value) in values.into_iter().enumerate() {
                    let value = self.convert_float8(held, ty, value).unwrap_or_else(|| self.convert(ty, value));
                    if let Some(slice) = slices.get_mut(if by_depth { n } else { j }) {
                        slice.push(value);
                    }
                }
            }
        }
        Ok(slices)
    }

    /// The tile of f32 that a product's left operand is rounded from, where both lie in the registers of the product's
    /// own layout.
    fn rounded(&self, product: TileId, left: TileId) -> Option<TileId> {
        let Some(TileOp::Cast(_, from)) = self.definitions.get(&left) else { return None };
        let depth = self.program.tiles[left].shape.get(1).copied().unwrap_or(1);
        let fits = self.program.tiles[*from].dtype == DType::F32
            && !self.program.tiles[left].dtype.is_ofp8()
            && self.program.tiles[*from].shape == self.program.tiles[left].shape
            && depth <= MOST_DEPTH;
        (fits && self.layouts.is_in_registers(product, left)).then_some(*from)
    }

    /// Puts the operands of a loop's products that the loop does not change where the products want them: in shared
    /// memory, and left ones of matrix instructions in registers, if they are not too many. Gives these operands.
    pub(super) fn before_loop(&mut self, body: &[TileStmt]) -> Result<Vec<TileId>, LowerError> {
        let mut products = Vec::new();
        each(body, &mut |stmt| {
            if let TileStmt::Let(id, TileOp::Dot(of, a, b, _)) = stmt {
                products.push((*id, *of, *a, *b));
            }
        });
        let mut ready = Vec::new();
        for o in products.iter().flat_map(|(.., a, b)| [*a, *b]) {
            let known = matches!(self.tiles.get(&o), Some(Tile::Registers(_)));
            if known && !self.staged.contains_key(&o) && !ready.contains(&o) {
                ready.push(o);
            }
        }
        if ready.is_empty() {
            return Ok(ready);
        }
        let staged = self.stage(&ready)?;
        self.staged.extend(ready.iter().copied().zip(staged));
        for (id, of, a, b) in products.into_iter().filter(|(.., a, _)| ready.contains(a)) {
            let (layout, depth) = (self.layouts.of(id), self.program.tiles[a].shape.get(1).copied().unwrap_or(1));
            let factor = self.factor([a, b], of);
            let registers = layout.along(0) * depth / factor.depth() * 2;
            // Factors of f32 need more registers while they are rounded.
            let most = if factor == Factor::TF32 { MOST_FRAGMENTS / 2 } else { MOST_FRAGMENTS };
            let few = registers <= most && depth <= MOST_DEPTH && self.parts(factor) == 1;
            let Some(left) = self.staged.get(&a).cloned().filter(|_| few) else { continue };
            if self.layouts.product(id) == Product::Mma {
                for k in (0..depth as i64).step_by(factor.depth()) {
                    let fragments = self.load_fragments(factor, (a, &left), &layout, &super::number(k))?;
                    self.fragments.insert((a, k), fragments);
                }
            }
        }
        Ok(ready)
    }
}

/// Where a left operand is.
pub(super) enum Left {
    Staged(Staged),
    /// In the registers of this tile of f32, which are rounded as they are read.
    Registers(TileId),
}

pub(super) struct Operands {
    pub a: TileId,
    pub b: TileId,
    pub left: Left,
    pub right: Staged,
    /// Of the accumulators.
    pub layout: Layout,
    /// How elements that are several numbers are multiplied.
    pub of: Option<Elements>,
    /// What matrix instructions take, where they multiply.
    pub factor: Factor,
}
