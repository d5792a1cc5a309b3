//! Products of four warps, for GPUs that have them (sm_90a): one thread fetches tiles by bulk copies, all others multiply.
//!
//! Invariant: of the slots in shared memory, each has two barriers: *full*, told by the copies, and *free*, told by every warp
//! that has read the slot. The one that fetches waits for *free*, the others for *full*; each counts its own slots and phases.
//! A slot is free once the products that read it are done: those of the iteration before, when one group of products may be
//! under way. What a [`Stream`] is made of was seen in the tile program alone, so that schedules can ask whether there is one.

use super::layout::Layouts;
use super::{Floats, LowerError, Lowering, Tile, definitions, number};
use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::scalar::{BinaryOp, Less};
use kiln_ir::tile::{For, Part, Stmt as TileStmt, TileId, TileOp, TileProgram, axis};
use kiln_ir::warp::bulk::{DEPTH, GROUP, Operand, ROW, Rows};
use kiln_ir::warp::{Address, Bulk, GroupProduct, LANES, Map, Op, Place, Roles, Stmt, ValueId};
use kiln_ir::{DType, Expr};
use std::collections::HashMap;

/// Elements of the fold that a slot holds: a row of 128 bytes.
pub(crate) const CHUNK: i64 = (ROW / 2) as i64;

/// Bytes of shared memory that slots may take of the 227 KiB of a block.
const ROOM: usize = 220 << 10;

/// Most slots.
const MOST_SLOTS: usize = 6;

/// Registers of a thread that multiplies, and of one that does not: all of a multiprocessor's, with two groups that multiply.
const REGISTERS: [u32; 2] = [232, 40];

/// An operand that is fetched.
struct Source {
    map: Map,
    /// Of the box at the loop's variable: first that of the axis of neighbours.
    coordinates: Vec<Expr>,
    /// Whether neighbours are along the fold.
    along: bool,
    /// Places of a tile across the fold.
    extent: usize,
}

impl Source {
    fn elements(&self) -> usize {
        self.extent * CHUNK as usize
    }

    fn rows(&self) -> Rows {
        if self.along { Rows::Along } else { Rows::Across((CHUNK as usize * ROW) as u32) }
    }

    /// What is added to reach the part of 64 places across the fold, and 16 elements of it.
    fn at(&self, part: i64, k: i64) -> i64 {
        part * CHUNK * CHUNK + if self.along { k } else { k * CHUNK }
    }
}

/// A part whose product is computed so.
pub(crate) struct Stream<'a> {
    counted: &'a For,
    before: &'a [TileStmt],
    after: &'a [TileStmt],
    sums: TileId,
    dtype: DType,
    a: Source,
    b: Source,
}

impl<'a> Stream<'a> {
    /// The part as a stream, where it is one: a loop around one product of two tiles of f16 or bf16 that are loaded from
    /// arrays of fixed strides, and what is computed of the sums element by element.
    pub(crate) fn of(program: &TileProgram, part: &'a Part) -> Option<Stream<'a>> {
        let at = part.body.iter().position(|s| matches!(s, TileStmt::For(_)))?;
        let (before, rest) = part.body.split_at(at);
        let (TileStmt::For(counted), after) = (rest.first()?, rest.get(1..)?) else { return None };
        let [carried] = counted.carried.as_slice() else { return None };
        let plain = |stmt: &TileStmt| match stmt {
            TileStmt::For(_)
            | TileStmt::Multiply(_)
            | TileStmt::If(_)
            | TileStmt::Let(_, TileOp::Dot(..) | TileOp::Reduce(..) | TileOp::Transpose(..)) => false,
            TileStmt::Let(..) | TileStmt::Store { .. } => true,
        };
        if counted.step != CHUNK || !before.iter().chain(after).all(plain) {
            return None;
        }
        let known = definitions(part);
        let Some(TileOp::Dot(None, a, b, sums)) = known.get(&carried.next) else { return None };
        let Some(TileOp::Const(zero)) = known.get(&carried.init) else { return None };
        let products =
            counted.body.iter().filter(|s| !matches!(s, TileStmt::Let(_, TileOp::Load { .. } | TileOp::Cast(..))));
        let ty = &program.tiles[carried.next];
        let &[rows, columns] = ty.shape.as_slice() else { return None };
        let shaped = matches!(rows, 64 | 128) && matches!(columns, 64 | 128 | 256) && ty.dtype == DType::F32;
        if *sums != carried.inside || zero.bits != 0 || products.count() != 1 || !shaped {
            return None;
        }
        let mut grid = HashMap::new();
        for (symbol, extent) in &part.grid {
            grid.insert(symbol.clone(), extent.as_const()?);
        }
        let fetched = |id: TileId, free: usize| {
            let load = loaded(program, &known, id)?;
            source(program, load, (counted, &grid), (free, program.tiles[id].shape.get(free).copied()?))
        };
        let (a, b) = (fetched(*a, 0)?, fetched(*b, 1)?);
        let dtype = program.buffers.get(a.map.buffer)?.dtype;
        let same = program.buffers.get(b.map.buffer)?.dtype == dtype;
        (same && dtype.is_half()).then_some(Stream { counted, before, after, sums: carried.inside, dtype, a, b })
    }

    /// Threads that multiply.
    fn threads(&self) -> u32 {
        self.a.extent as u32 / 64 * GROUP
    }

    /// The layouts of its tiles.
    pub(super) fn layouts<'p>(&self, program: &'p TileProgram, part: &Part) -> Layouts<'p> {
        let mut layouts = Layouts::choose(program, part, (Some(self.threads().ilog2()), Floats::Whole));
        layouts.by_groups(self.sums);
        layouts
    }
}

/// The load that gives a tile, without what changes nothing of halves.
fn loaded<'p>(
    program: &TileProgram,
    known: &HashMap<TileId, &'p TileOp>,
    mut id: TileId,
) -> Option<(usize, &'p Expr, &'p [Less])> {
    let mut through = Vec::new();
    loop {
        match known.get(&id)? {
            TileOp::Cast(to, from) => {
                through.push(*to);
                id = *from;
            }
            TileOp::Load { buffer, address, gathered, mask, other } if gathered.is_empty() && other.bits == 0 => {
                let dtype = program.buffers.get(*buffer)?.dtype;
                let same = through.iter().all(|&ty| ty == dtype || ty == DType::F32);
                return same.then_some((*buffer, address, mask.as_slice()));
            }
            _ => return None,
        }
    }
}

/// What a load reads, as an array of fixed strides and the coordinates of its tile, where it is one.
fn source(
    program: &TileProgram,
    (buffer, address, mask): (usize, &Expr, &[Less]),
    (counted, grid): (&For, &HashMap<Symbol, i64>),
    (free, extent): (usize, usize),
) -> Option<Source> {
    let (across, depth) = (axis(free), axis(1 - free));
    let (of_across, of_depth) = (address.coefficient(&across)?, address.coefficient(&depth)?);
    let along = of_depth == 1;
    if address.coefficient(&counted.var)? != of_depth
        || !along && of_across != 1
        || !along && !extent.is_multiple_of(64)
    {
        return None;
    }
    let mut rest = address.clone();
    let mut take = |symbol: &Symbol, stride: i64| rest = rest.sub(&Expr::from(symbol).scale(stride));
    for (symbol, stride) in [(&across, of_across), (&depth, of_depth), (&counted.var, of_depth)] {
        take(symbol, stride);
    }
    let mut block = None;
    let mut batches = Vec::new();
    let mut symbols: Vec<&Symbol> = grid.keys().collect();
    symbols.sort();
    for symbol in symbols {
        let (stride, count) = (address.coefficient(symbol)?, *grid.get(symbol)?);
        if stride == 0 {
            continue;
        }
        take(symbol, stride);
        // Batches may be as far apart as blocks; then the mask says which they are.
        let masked = mask.iter().find(|m| m.left.mentions(&across)).is_none_or(|m| m.left.mentions(symbol));
        // The only one of its axis is 0.
        if count == 1 {
            continue;
        }
        if stride == of_across * extent as i64 && block.is_none() && masked {
            block = Some((symbol.clone(), count));
        } else {
            batches.push((symbol.clone(), count, stride));
        }
    }
    let first = u64::try_from(rest.as_const()?).ok()?;
    let from = block.as_ref().map_or_else(Expr::default, |(symbol, _)| Expr::from(symbol).scale(extent as i64));
    let place = |axis: &Symbol, from: &Expr| from.add(&Expr::from(axis));
    let at_depth = Expr::from(&counted.var);
    let (mut places, mut length) = (block.map_or(1, |(_, n)| n) * extent as i64, None);
    for Less { left, right } in mask {
        let (left, end) = (left.substitute(&|s| (grid.get(s) == Some(&1)).then(Expr::default)), right.as_const()?);
        let same = |e: &Expr| left.sub(e).as_const() == Some(0);
        if same(&place(&depth, &at_depth)) {
            length = Some(length.map_or(end, |l: i64| l.min(end)));
        } else if same(&place(&across, &from)) {
            places = places.min(end);
        } else {
            return None;
        }
    }
    let length = match length {
        Some(length) => length,
        None => counted.hi.bounds(&grid.iter().map(|(s, n)| (s.clone(), (0, n - 1))).collect::<Ranges>()).1,
    };
    let size = |n: i64| u64::try_from(n).ok();
    let (mut extents, stride, mut coordinates) = if along {
        (vec![size(length)?, size(places)?], of_across, vec![at_depth, from])
    } else {
        (vec![size(places)?, size(length)?], of_depth, vec![from, at_depth])
    };
    let mut strides = vec![size(stride)?];
    let mut shape = vec![CHUNK as u32, if along { extent as u32 } else { CHUNK as u32 }];
    for (symbol, count, stride) in batches {
        extents.push(size(count)?);
        strides.push(size(stride)?);
        shape.push(1);
        coordinates.push(Expr::from(&symbol));
    }
    let map = Map { buffer, first, extents, strides, shape };
    let len = program.buffers.get(buffer)?.len.as_const().and_then(size)?;
    let even = map.first.is_multiple_of(8) && map.strides.iter().all(|s| *s > 0 && s.is_multiple_of(8) && *s < 1 << 39);
    let fits = map.extents.iter().all(|&e| (1..=1 << 32).contains(&e)) && map.extents.len() <= 5;
    (even && fits && map.end().is_some_and(|end| end <= len)).then_some(Source { map, coordinates, along, extent })
}

impl Lowering<'_> {
    /// The whole part. Gives the arrays that are fetched from and the threads of a block.
    pub(super) fn stream(&mut self, stream: &Stream<'_>) -> Result<(Vec<Map>, u32), LowerError> {
        let Stream { before, after, dtype, a, b, .. } = stream;
        let threads = stream.threads();
        let bytes = (a.elements() + b.elements()) * dtype.size();
        let slots = (ROOM / bytes.max(1)).clamp(2, MOST_SLOTS);
        let [of_a, of_b] = [a, b].map(|o| self.code.shared(*dtype, o.elements() * slots));
        let barriers = self.code.shared(DType::U64, 2 * slots);
        let barrier = |index: Option<ValueId>, offset: usize| Address { place: barriers, index, offset: offset as i64 };
        for slot in 0..slots {
            self.code.push(Stmt::Bulk(Bulk::Initialise { barrier: barrier(None, slot), arrivals: 1 }));
            let free = Bulk::Initialise { barrier: barrier(None, slots + slot), arrivals: threads / LANES };
            self.code.push(Stmt::Bulk(free));
        }
        self.code.push(Stmt::Bulk(Bulk::Publish));
        self.code.push(Stmt::Barrier);
        self.region(before)?;
        let maps = vec![a.map.clone(), b.map.clone()];
        let ring = Ring { slots, of_a, of_b, barriers };
        self.code.open();
        self.multiply_stream(stream, &ring)?;
        self.code.push(Stmt::Bulk(Bulk::Wait(0)));
        self.region(after)?;
        let multiply = self.code.close();
        self.code.open();
        self.fetch_stream(stream, &ring)?;
        let fetch = self.code.close();
        self.code.push(Stmt::Bulk(Bulk::Roles(Roles { threads, registers: REGISTERS, multiply, fetch })));
        Ok((maps, threads + GROUP))
    }

    fn multiply_stream(&mut self, stream: &Stream<'_>, ring: &Ring) -> Result<(), LowerError> {
        let Stream { counted, sums, dtype, a, b, .. } = stream;
        let zero = self.code.int(DType::I32, 0);
        let thread = self.thread();
        let group = self.code.with(BinaryOp::Shr, thread, i64::from(GROUP.ilog2()));
        let group = self.code.with(BinaryOp::Mul, group, a.at(1, 0));
        let lo = self.expr(&counted.lo)?;
        let lo = self.code.cast(self.loop_type(counted), lo);
        self.repeat(counted, &[zero, zero], |lowering, further| {
            let (&[slot, parity], Some(&variable)) = (further, lowering.env.get(&counted.var)) else {
                return Err(lowering.unsupported("a ring without slots"));
            };
            let full = Address { place: ring.barriers, index: Some(slot), offset: 0 };
            lowering.code.push(Stmt::Bulk(Bulk::Await { barrier: full, parity }));
            lowering.code.push(Stmt::Bulk(Bulk::Fence));
            let layout = lowering.layouts.of(*sums);
            // Of the registers, `2 * (n / 2) + i` in pairs: columns run slower than the two rows that a lane has.
            let order: Vec<usize> = (0..layout.along(1) / 2)
                .flat_map(|n| [[0, 2 * n], [0, 2 * n + 1], [1, 2 * n], [1, 2 * n + 1]])
                .map(|at| layout.register(&at))
                .collect();
            let own = lowering.registers(*sums)?;
            let mut c: Vec<ValueId> = order.iter().filter_map(|&r| own.get(r).copied()).collect();
            let [in_a, in_b] = [a, b].map(|o| lowering.code.with(BinaryOp::Mul, slot, o.elements() as i64));
            let in_a = lowering.code.add(in_a, group);
            for k in (0..CHUNK).step_by(DEPTH) {
                let operand = |source: &Source, place: Place, index: ValueId| Operand {
                    address: Address { place, index: Some(index), offset: source.at(0, k) },
                    rows: source.rows(),
                };
                let (a, b) = (operand(a, ring.of_a, in_a), operand(b, ring.of_b, in_b));
                let count = c.len();
                c = lowering.code.several(DType::F32, count, Op::GroupMma(GroupProduct { dtype: *dtype, a, b, c }));
            }
            lowering.code.push(Stmt::Bulk(Bulk::Commit));
            lowering.code.push(Stmt::Bulk(Bulk::Wait(1)));
            let later = lowering.code.binary(BinaryOp::Ne, variable, lo);
            let last = ring.slots as i64 - 1;
            let at_first = lowering.code.with(BinaryOp::Eq, slot, 0);
            let before = lowering.code.with(BinaryOp::Sub, slot, 1);
            let last = lowering.code.int(DType::I32, last);
            let before = lowering.code.select(at_first, last, before);
            let free = Address { place: ring.barriers, index: Some(before), offset: ring.slots as i64 };
            lowering.code.push(Stmt::Bulk(Bulk::Arrive { barrier: free, condition: Some(later) }));
            let mut next = vec![zero; own.len()];
            for (&r, &v) in order.iter().zip(&c) {
                if let Some(place) = next.get_mut(r) {
                    *place = v;
                }
            }
            counted.carried.iter().for_each(|c| _ = lowering.tiles.insert(c.next, Tile::Registers(next.clone())));
            Ok(lowering.next_slot(ring, slot, parity))
        })
    }

    fn fetch_stream(&mut self, stream: &Stream<'_>, ring: &Ring) -> Result<(), LowerError> {
        let Stream { counted, dtype, a, b, .. } = stream;
        let zero = self.code.int(DType::I32, 0);
        let bytes = ((a.elements() + b.elements()) * dtype.size()) as u32;
        let ty = self.loop_type(counted);
        let bounds = (counted.lo.bounds(&self.ranges).0, counted.hi.bounds(&self.ranges).1.saturating_sub(1));
        let (lo, hi) = (self.expr(&counted.lo)?, self.expr(&counted.hi)?);
        let (lo, hi) = (self.code.cast(ty, lo), self.code.cast(ty, hi));
        self.looped(ty, (lo, hi, counted.step), &[zero, zero], |lowering, variable, further| {
            let &[slot, parity] = further else { return Err(lowering.unsupported("a ring without slots")) };
            let barrier = |offset: usize| Address { place: ring.barriers, index: Some(slot), offset: offset as i64 };
            let earlier = lowering.code.with(BinaryOp::Xor, parity, 1);
            lowering.code.push(Stmt::Bulk(Bulk::Await { barrier: barrier(ring.slots), parity: earlier }));
            lowering.code.push(Stmt::Bulk(Bulk::Expect { barrier: barrier(0), bytes }));
            lowering.with_symbol(&counted.var, variable, bounds, |lowering| {
                for (map, (source, place)) in [(a, ring.of_a), (b, ring.of_b)].into_iter().enumerate() {
                    let begin = lowering.code.with(BinaryOp::Mul, slot, source.elements() as i64);
                    let boxes = if source.along { 1 } else { source.extent as i64 / CHUNK };
                    for part in 0..boxes {
                        let mut at = Vec::new();
                        for (n, e) in source.coordinates.iter().enumerate() {
                            let e = if n == 0 { e.add(&number(part * CHUNK)) } else { e.clone() };
                            let value = lowering.expr(&e)?;
                            at.push(lowering.code.cast(DType::I32, value));
                        }
                        let to = Address { place, index: Some(begin), offset: source.at(part, 0) };
                        lowering.code.push(Stmt::Bulk(Bulk::Fetch { to, map, at, barrier: barrier(0) }));
                    }
                }
                Ok(())
            })?;
            Ok(lowering.next_slot(ring, slot, parity))
        })?;
        Ok(())
    }

    /// The slot after one, and the parity of its phase.
    fn next_slot(&mut self, ring: &Ring, slot: ValueId, parity: ValueId) -> Vec<ValueId> {
        let zero = self.code.int(DType::I32, 0);
        let at_last = self.code.with(BinaryOp::Eq, slot, ring.slots as i64 - 1);
        let next = self.code.with(BinaryOp::Add, slot, 1);
        let turned = self.code.with(BinaryOp::Xor, parity, 1);
        vec![self.code.select(at_last, zero, next), self.code.select(at_last, turned, parity)]
    }
}

/// Slots in shared memory, with their barriers: first all *full*, then all *free*.
struct Ring {
    slots: usize,
    of_a: Place,
    of_b: Place,
    barriers: Place,
}
