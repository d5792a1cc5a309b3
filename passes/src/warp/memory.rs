//! Loads and stores of tiles.
//!
//! Invariant: an access is as wide as the layout, the address and the mask allow for certain, and no thread accesses
//! what is outside the tile or the mask; of threads that hold copies of an element, one stores it.

use super::arith::register_type;
use super::index::{Condition, divisor};
use super::layout::Layout;
use super::{LowerError, Lowering, Tile};
use kiln_ir::DType;
use kiln_ir::Expr;
use kiln_ir::expr::Symbol;
use kiln_ir::scalar::{BinaryOp, Constant, Less};
use kiln_ir::tile::{Stmt as TileStmt, TileId, TileOp, axis, gathered as gathered_symbol};
use kiln_ir::warp::{Address, BUFFER_ALIGNMENT, Place, Stmt, ValueId};
use std::collections::HashMap;

/// The axis along which accesses are wide, and of how many elements each is.
#[derive(Clone, Copy)]
pub(super) struct Width {
    pub axis: usize,
    pub elements: usize,
}

impl Width {
    const ONE: Width = Width { axis: 0, elements: 1 };
}

/// Registers that are accessed together: the first one's number and those of all.
pub(super) fn groups(layout: &Layout, width: Width) -> Vec<Vec<usize>> {
    let mut groups = Vec::new();
    for register in 0..layout.registers() {
        let mut coordinates = layout.coordinates(register);
        if width.elements == 1 {
            groups.push(vec![register]);
            continue;
        }
        let first = coordinates[width.axis];
        if first.is_multiple_of(width.elements) {
            let along = (first..first + width.elements).map(|c| {
                coordinates[width.axis] = c;
                layout.register(&coordinates)
            });
            groups.push(along.collect());
        }
    }
    groups
}

/// How many neighbours along an axis of a tile can be accessed at once, whoever holds them: as many as the address, the
/// mask and the tile's end allow for certain.
pub(super) fn aligned(
    (shape, k): (&[usize], usize),
    dtype: DType,
    address: &Expr,
    mask: &[Less],
    multiples: &HashMap<Symbol, i64>,
) -> usize {
    let symbol = axis(k);
    if dtype == DType::Bool || address.coefficient(&symbol) != Some(1) {
        return 1;
    }
    let divides = |n: i64, e: &Expr| divisor(&e.replace(&symbol, &Expr::default()), multiples) % n == 0;
    let extent = shape.get(k).copied().unwrap_or(1);
    let fits = |n: i64| {
        let even = |less: &Less| {
            let difference = less.left.sub(&less.right);
            match difference.coefficient(&symbol) {
                Some(0) => true,
                // A multiple of the width plus 0, 1, ... below the width: below zero for all of them or none.
                Some(1) => divides(n, &difference),
                Some(_) | None => false,
            }
        };
        divides(n, address) && mask.iter().all(even) && (extent.is_power_of_two() || (extent as i64) % n == 0)
    };
    let most = if dtype.is_ofp8() { BUFFER_ALIGNMENT } else { 8 };
    let mut elements = (BUFFER_ALIGNMENT / dtype.size().max(1)).min(most);
    while elements > 1 && !fits(elements as i64) {
        elements /= 2;
    }
    elements
}

impl Lowering<'_> {
    /// How wide the accesses of a tile at an address under a mask can be.
    pub(super) fn width(&self, layout: &Layout, dtype: DType, address: &Expr, mask: &[Less]) -> Width {
        let mut best = Width::ONE;
        for k in 0..layout.shape.len() {
            let aligned = aligned((&layout.shape, k), dtype, address, mask, &self.multiples);
            let elements = (1usize << layout.run(k)).min(aligned);
            if elements > best.elements {
                best = Width { axis: k, elements };
            }
        }
        best
    }

    /// Where the thread's element is, given what its register adds to its position.
    pub(super) fn address(
        &mut self,
        place: Place,
        address: &Expr,
        layout: &Layout,
        offsets: &[i64],
    ) -> Result<Address, LowerError> {
        let e = self.at(address, layout, offsets);
        self.place(place, &e)
    }

    /// The address of an element.
    pub(super) fn place(&mut self, place: Place, e: &Expr) -> Result<Address, LowerError> {
        let offset = e.constant();
        let rest = e.sub(&Expr::from(offset));
        let index = if rest.as_const() == Some(0) { None } else { Some(self.expr(&rest)?) };
        Ok(Address { place, index, offset })
    }

    pub(super) fn load(
        &mut self,
        id: TileId,
        buffer: usize,
        address: &Expr,
        gathered: &[TileId],
        mask: &[Less],
        other: Constant,
    ) -> Result<Tile, LowerError> {
        let (layout, dtype) = (self.layouts.of(id), self.program.tiles[id].dtype);
        let in_memory = self.program.buffers[buffer].dtype;
        let width = if gathered.is_empty() { self.width(&layout, in_memory, address, mask) } else { Width::ONE };
        let mut mask = mask.to_vec();
        if !gathered.is_empty() {
            // The index in place of one out of bounds is 0, which an empty buffer does not have.
            let len = self.program.buffers[buffer].len.clone();
            mask.push(Less { left: Expr::default(), right: len });
        }
        let mut registers = vec![None; layout.registers()];
        for group in groups(&layout, width) {
            let Some(&first) = group.first() else { continue };
            let offsets = layout.offsets(first);
            let condition = match self.mask(&mask, &layout, &offsets)? {
                Condition::Never => {
                    let other = self.constant(other);
                    group.iter().for_each(|&r| registers[r] = Some(other));
                    continue;
                }
                Condition::Always => None,
                Condition::Where(condition) => Some((condition, other)),
            };
            for (k, &g) in gathered.iter().enumerate() {
                let value = self.operand(g, &layout.coordinates(first))?;
                self.env.insert(gathered_symbol(k), value);
            }
            let place = self.address(Place::Global(buffer), address, &layout, &offsets)?;
            let condition = condition.map(|(c, other)| (c, super::arith::register_constant(other)));
            let values = self.code.load(register_type(dtype), group.len(), place, condition);
            group.iter().zip(values).for_each(|(&r, v)| registers[r] = Some(v));
        }
        (0..gathered.len()).for_each(|k| {
            self.env.remove(&gathered_symbol(k));
        });
        Ok(Tile::Registers(registers.into_iter().flatten().collect()))
    }

    /// The tiles, as many as one access holds, of which the first of these statements loads one and each other one what is beside it in
    /// memory, all of them single elements under one mask: numbers of a fold that one word holds weights of.
    pub(super) fn beside(&self, body: &[TileStmt]) -> Option<Vec<TileId>> {
        let TileStmt::Let(first, TileOp::Load { buffer, address, gathered, mask, other }) = body.first()? else {
            return None;
        };
        let (of, layout) = (self.program.buffers.get(*buffer)?, self.layouts.of(*first));
        let alone = self.width(&layout, of.dtype, address, mask).elements == 1;
        let plain = gathered.is_empty() && !of.written && of.dtype != DType::Bool && of.dtype.size() > 1;
        if !alone || !plain || self.staged.contains_key(first) || divisor(address, &self.multiples) % 2 != 0 {
            return None;
        }
        let same = |stmt: &TileStmt, n: i64| match stmt {
            TileStmt::Let(id, TileOp::Load { buffer: b, address: a, gathered, mask: m, other: o }) => {
                let fits = b == buffer && m == mask && o == other && gathered.is_empty();
                let beside = fits && a.sub(address).as_const() == Some(n);
                let types = &self.program.tiles;
                let alike = types[*id].dtype == types[*first].dtype && self.layouts.of(*id) == layout;
                (beside && alike && !self.staged.contains_key(id)).then_some(*id)
            }
            _ => None,
        };
        let most = (BUFFER_ALIGNMENT / of.dtype.size()).min(8) as i64;
        let found: Vec<TileId> = (0..most).map_while(|n| body.iter().find_map(|stmt| same(stmt, n))).collect();
        let count =
            [8, 4, 2].into_iter().find(|&n| n <= found.len() && divisor(address, &self.multiples) % n as i64 == 0)?;
        Some(found.into_iter().take(count).collect())
    }

    /// Loads what [`Lowering::beside`] has found.
    pub(super) fn load_beside(&mut self, first: &TileStmt, tiles: &[TileId]) -> Result<(), LowerError> {
        let TileStmt::Let(id, TileOp::Load { buffer, address, mask, other, .. }) = first else { return Ok(()) };
        let (layout, dtype) = (self.layouts.of(*id), self.program.tiles[*id].dtype);
        let mut registers = vec![Vec::new(); tiles.len()];
        for register in 0..layout.registers() {
            let offsets = layout.offsets(register);
            let condition = match self.mask(mask, &layout, &offsets)? {
                Condition::Never => {
                    let other = self.constant(*other);
                    registers.iter_mut().for_each(|own| own.push(other));
                    continue;
                }
                Condition::Always => None,
                Condition::Where(condition) => Some((condition, super::arith::register_constant(*other))),
            };
            let place = self.address(Place::Global(*buffer), address, &layout, &offsets)?;
            let values = self.code.load(register_type(dtype), tiles.len(), place, condition);
            registers.iter_mut().zip(values).for_each(|(own, value)| own.push(value));
        }
        for (&id, own) in tiles.iter().zip(registers) {
            self.tiles.insert(id, Tile::Registers(own));
        }
        Ok(())
    }

    pub(super) fn store(&mut self, buffer: usize, address: &Expr, mask: &[Less], id: TileId) -> Result<(), LowerError> {
        let (layout, dtype) = (self.layouts.of(id), self.program.tiles[id].dtype);
        let width = self.width(&layout, dtype, address, mask);
        let owner = self.owner(&layout);
        for group in groups(&layout, width) {
            let Some(&first) = group.first() else { continue };
            let offsets = layout.offsets(first);
            let condition = match self.mask(mask, &layout, &offsets)? {
                Condition::Never => continue,
                Condition::Always => owner,
                Condition::Where(condition) => self.code.both(Some(condition), owner),
            };
            let address = self.address(Place::Global(buffer), address, &layout, &offsets)?;
            let coordinates = group.iter().map(|&r| layout.coordinates(r));
            let values = coordinates.map(|c| self.operand(id, &c)).collect::<Result<Vec<_>, _>>()?;
            self.code.push(Stmt::Store { address, values, condition });
        }
        Ok(())
    }

    /// Whether this thread is the one that stores of those that hold copies; nothing where all threads store.
    pub(super) fn owner(&mut self, layout: &Layout) -> Option<ValueId> {
        let idle = ((1u32 << self.layouts.threads) - 1) & !layout.used();
        self.bits_are_zero(idle)
    }

    /// Whether these bits of the thread's number are zero; nothing where there are none.
    pub(super) fn bits_are_zero(&mut self, mask: u32) -> Option<ValueId> {
        (mask != 0).then(|| {
            let thread = self.thread();
            let rest = self.code.with(BinaryOp::And, thread, i64::from(mask));
            self.code.with(BinaryOp::Eq, rest, 0)
        })
    }
}
