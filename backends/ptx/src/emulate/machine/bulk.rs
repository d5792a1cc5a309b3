//! Barriers in shared memory, bulk copies and products of four warps.
//!
//! Invariant: what is under way may be done at any time until it is waited for. A bulk copy's target is poisoned from its issue
//! to the end of its barrier's phase, and only who waits for that is ordered after it. A product reads shared memory when it is
//! issued and again when it is waited for, so that a write in between is a race; until then its registers are nobody's. What
//! threads have written to shared memory, products see only behind the writer's `fence.proxy.async`.

use super::super::decode::{Address, Bulk, GroupMma, Instruction, Scale, Space, Src};
use super::super::matrix::{Product, product};
use super::super::tensor::{BYTES, Descriptor, TensorMap};
use super::super::{Kind, PARAMETER_WINDOW};
use super::access::Spot;
use super::step::put;
use super::{ALL, Flow, Lanes, Machine, Warp, lanes};
use std::collections::BTreeMap;

/// Most bytes that a barrier counts.
const MOST_BYTES: i64 = (1 << 20) - 1;

/// A barrier in shared memory.
#[derive(Default)]
pub(super) struct Barrier {
    arrivals: u32,
    /// Arrivals and bytes that are missing in this phase.
    left: u32,
    bytes: i64,
    /// Number of the phase.
    phase: u64,
    /// The thread that made it, and when.
    made: (u32, u32),
    /// What those who arrived have seen.
    seen: Vec<u32>,
    /// The same of ended phases, by their parity.
    ended: [Vec<u32>; 2],
    copies: Vec<Landing>,
}

/// A piece of 16 bytes that a copy brings.
struct Landing {
    at: usize,
    data: [u64; 2],
    thread: u32,
}

/// A product that is not waited for yet.
pub(super) struct UnderWay {
    group: u64,
    registers: Vec<(usize, Lanes)>,
    /// Instructions that the warp had executed.
    issued: u64,
    /// What it reads, and when that was written.
    reads: Vec<(usize, u32)>,
    line: usize,
}

/// What a warp has under way.
#[derive(Default)]
pub(super) struct Products {
    pub under_way: Vec<UnderWay>,
    closed: u64,
    /// Instructions that the warp had executed when it last wrote to each register, and at its last `wgmma.fence`.
    pub touched: Vec<u64>,
    fenced: Option<u64>,
    /// The barrier's address and the parity that the warp waits for, and the line.
    pub blocked: Option<(usize, u64, usize)>,
}

fn join(to: &mut Vec<u32>, from: &[u32]) {
    to.resize(to.len().max(from.len()), 0);
    to.iter_mut().zip(from).for_each(|(to, from)| *to = (*to).max(*from));
}

/// The barriers of a block, by address.
pub(super) type Barriers = BTreeMap<usize, Barrier>;

impl<'a> Machine<'a> {
    /// Where the barrier of the first active lane is.
    fn barrier_at(&mut self, warp: &Warp, i: &Instruction, lane: usize, address: Address) -> Option<usize> {
        let at = self.get(warp, i, address.base, 1 << lane)[lane].wrapping_add(address.offset as u64);
        let thread = (32 * warp.number + lane) as u32;
        match self.spot(i, Space::Shared, at & 0xffff_ffff, 8, thread) {
            Some(Spot::Shared(at)) => Some(at),
            _ => None,
        }
    }

    /// The barrier at an address, or a finding.
    fn known_barrier(&mut self, i: &Instruction, at: usize, thread: u32) -> Option<&mut Barrier> {
        match self.bulk.get(&at).map(|b| b.made) {
            None => self.report(Kind::Uninitialised, i.line, thread, format!("there is no barrier at {at}")),
            Some((maker, time)) if !self.order.before(maker, time, thread) => {
                let detail = format!("thread {maker} makes the barrier at {at}, and nothing orders that before this");
                self.report(Kind::SharedRace, i.line, thread, detail);
            }
            Some(_) => {}
        }
        self.bulk.get_mut(&at)
    }

    pub(super) fn bulk(&mut self, warp: &mut Warp, i: &Instruction, active: u32, bulk: &Bulk) -> Flow {
        match bulk {
            Bulk::Init { barrier, arrivals } => {
                let arrivals = self.get(warp, i, *arrivals, active);
                for lane in lanes(active) {
                    let Some(at) = self.barrier_at(warp, i, lane, *barrier) else { continue };
                    let (me, count) = ((32 * warp.number + lane) as u32, arrivals[lane] as u32);
                    if count == 0 || count >= 1 << 20 {
                        self.report(Kind::OutOfBounds, i.line, me, format!("a barrier of {count} arrivals"));
                    }
                    if let Some((maker, _)) = self.bulk.get(&at).map(|b| b.made) {
                        let detail = format!("thread {maker} has made a barrier at {at} already");
                        self.report(Kind::SharedRace, i.line, me, detail);
                    }
                    self.order.join_warp(warp.number);
                    let seen = self.order.snapshot(warp.number);
                    let ended = [seen.clone(), seen];
                    let made = (me, self.order.clock);
                    self.bulk.insert(at, Barrier { arrivals: count, left: count, ended, made, ..Barrier::default() });
                }
            }
            Bulk::Arrive { barrier, bytes } => {
                let bytes = bytes.map(|b| self.get(warp, i, b, active));
                for lane in lanes(active) {
                    let Some(at) = self.barrier_at(warp, i, lane, *barrier) else { continue };
                    let me = (32 * warp.number + lane) as u32;
                    self.order.join_warp(warp.number);
                    let seen = self.order.snapshot(warp.number);
                    let Some(b) = self.known_barrier(i, at, me) else { continue };
                    b.bytes += bytes.map_or(0, |b| b[lane] as i64);
                    let full = b.left == 0 || b.bytes > MOST_BYTES;
                    b.left = b.left.saturating_sub(1);
                    join(&mut b.seen, &seen);
                    if full {
                        let detail = format!("the barrier at {at} gets more arrivals or bytes than it counts");
                        self.report(Kind::OutOfBounds, i.line, me, detail);
                    }
                    self.end_phase(at);
                }
            }
            Bulk::TryWait { d, barrier, parity } => {
                let first = active.trailing_zeros() as usize & 31;
                let parity = self.get(warp, i, *parity, active)[first] & 1;
                let Some(at) = self.barrier_at(warp, i, first, *barrier) else { return Flow::End };
                let me = (32 * warp.number + first) as u32;
                let Some(b) = self.known_barrier(i, at, me) else { return Flow::End };
                if b.phase & 1 == parity {
                    warp.products.blocked = Some((at, parity, i.line));
                    return Flow::Again;
                }
                let seen = b.ended[parity as usize].clone();
                self.order.merge(warp.number, &seen);
                put(warp, *d, active, |_| 1);
            }
            Bulk::Fetch { to, map, at, barrier } => self.fetch(warp, i, active, (*to, *barrier), *map, at),
            Bulk::ProxyFence => {
                self.order.join_warp(warp.number);
                lanes(active).for_each(|l| self.fences[32 * warp.number + l] = self.order.clock);
            }
            Bulk::Fence => {
                self.all_here(warp, i, active, ALL);
                warp.products.fenced = Some(warp.steps);
            }
            Bulk::Mma(m) => self.group_product(warp, i, active, m),
            Bulk::Commit => {
                self.all_here(warp, i, active, ALL);
                warp.products.closed += 1;
            }
            Bulk::Wait(groups) => {
                self.all_here(warp, i, active, ALL);
                self.wait_products(warp, i, *groups);
            }
            Bulk::Registers => self.all_here(warp, i, active, ALL),
        }
        Flow::Next
    }

    /// Whether the barrier's phase of that parity has ended.
    pub(super) fn has_ended(&self, at: usize, parity: u64) -> bool {
        self.bulk.get(&at).is_none_or(|b| b.phase & 1 != parity)
    }

    /// Ends the phase of a barrier where nothing is missing.
    fn end_phase(&mut self, at: usize) {
        let Some(b) = self.bulk.get_mut(&at) else { return };
        if b.left > 0 || b.bytes != 0 {
            return;
        }
        let mut seen = std::mem::take(&mut b.seen);
        let copies = std::mem::take(&mut b.copies);
        for Landing { at, data, thread } in copies {
            let fetcher = thread as usize / 32;
            self.shared.put(at, 8, data[0]);
            self.shared.put(at + 8, 8, data[1]);
            let time = self.order.tick();
            self.shared.landed(at, 16, thread, time);
            self.shared.by_copy(at, 16);
            seen.resize(seen.len().max(fetcher + 1), 0);
            seen[fetcher] = seen[fetcher].max(time + 1);
        }
        self.order.tick();
        let Some(b) = self.bulk.get_mut(&at) else { return };
        let parity = (b.phase & 1) as usize;
        b.phase += 1;
        b.left = b.arrivals;
        b.ended[parity] = seen;
    }

    fn fetch(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        active: u32,
        (to, barrier): (Address, Address),
        map: Src,
        at: &[Src],
    ) {
        let (to_base, maps) = (self.get(warp, i, to.base, active), self.get(warp, i, map, active));
        let places: Vec<Lanes> = at.iter().map(|s| self.get(warp, i, *s, active)).collect();
        for lane in lanes(active) {
            let me = (32 * warp.number + lane) as u32;
            let place = maps[lane].checked_sub(PARAMETER_WINDOW).and_then(|at| usize::try_from(at).ok());
            let bytes = place.and_then(|at| self.shape.parameters.get(at..at.checked_add(BYTES)?));
            let map = bytes.and_then(TensorMap::decode).filter(|map| map.extents.len() == places.len());
            let Some(map) = map else {
                self.report(Kind::OutOfBounds, i.line, me, format!("no tensor map of {} axes", places.len()));
                continue;
            };
            let Some(told) = self.barrier_at(warp, i, lane, barrier) else { continue };
            let begin = to_base[lane].wrapping_add(to.offset as u64) & 0xffff_ffff;
            let (bytes, alignment) = (map.bytes() as usize, if map.element == 2 { 128 } else { 16 });
            if !begin.is_multiple_of(alignment)
                || !matches!(self.spot(i, Space::Shared, begin, 1, me), Some(Spot::Shared(_)))
            {
                self.report(Kind::Misaligned, i.line, me, format!("a box at {begin}"));
                continue;
            }
            if begin as usize + bytes > self.shape.shared {
                self.report(Kind::OutOfBounds, i.line, me, format!("a box of {bytes} bytes at {begin}"));
                continue;
            }
            let coordinates: Vec<i64> = places.iter().map(|p| i64::from(p[lane] as i32)).collect();
            let mut pieces: BTreeMap<u64, [u64; 2]> = BTreeMap::new();
            for (offset, from) in map.elements(&coordinates) {
                let lies = map.swizzle.place(begin + offset);
                let piece = pieces.entry(lies & !15).or_default();
                let Some(from) = from else { continue };
                let Some(Spot::Global(n, at)) = self.spot(i, Space::Global, from, map.element as usize, me) else {
                    continue;
                };
                let value = self.read(warp, i, &Spot::Global(n, at), lane, map.element as usize, 1)[0];
                piece[(lies & 15) as usize / 8] |= value << (8 * (lies & 7));
            }
            self.counts.sectors += (bytes as u64).div_ceil(32);
            self.counts.least_sectors += (bytes as u64).div_ceil(32);
            let mut copies = Vec::with_capacity(pieces.len());
            for (at, data) in pieces {
                let at = at as usize;
                if self.checks {
                    let found = self.shared.writes(at, 16, me, &self.order, (false, true));
                    self.wrong(i, me, found);
                }
                self.shared.put(at, 8, u64::MAX);
                self.shared.put(at + 8, 8, u64::MAX);
                copies.push(Landing { at, data, thread: me });
            }
            let Some(b) = self.known_barrier(i, told, me) else { continue };
            let (maker, time) = b.made;
            if self.fences.get(maker as usize).is_none_or(|f| *f <= time) {
                let detail = format!("thread {maker} made the barrier at {told} and has no fence after that");
                self.report(Kind::Unfenced, i.line, me, detail);
            }
            let Some(b) = self.known_barrier(i, told, me) else { continue };
            b.bytes -= bytes as i64;
            b.copies.extend(copies);
            self.end_phase(told);
        }
    }

    /// A finding where a product under way has the register.
    pub(super) fn not_busy(&mut self, warp: &Warp, i: &Instruction, register: usize) {
        let busy = |u: &UnderWay| u.registers.iter().any(|(r, _)| *r == register);
        if let Some(u) = warp.products.under_way.iter().find(|u| busy(u)) {
            let name = self.shape.kernel.registers.get(register).cloned().unwrap_or_default();
            let detail = format!("{name} belongs to the product of line {}, which has not been waited for", u.line);
            self.report(Kind::Pending, i.line, 32 * warp.number as u32, detail);
        }
    }

    /// Two neighbouring elements in shared memory that a product reads.
    fn pair(&mut self, i: &Instruction, me: u32, [low, high]: [u64; 2], reads: &mut Vec<usize>) -> u64 {
        let mut value = 0;
        for (n, at) in [low, high].into_iter().enumerate() {
            let Some(Spot::Shared(at)) = self.spot(i, Space::Shared, at, 2, me) else { continue };
            if self.checks && !reads.contains(&(at & !3)) {
                reads.push(at & !3);
            }
            value |= self.shared.fetch(at, 2) << (16 * n);
        }
        value
    }

    fn group_product(&mut self, warp: &mut Warp, i: &Instruction, active: u32, m: &GroupMma) {
        self.all_here(warp, i, active, ALL);
        let me = 32 * warp.number as u32;
        let (a, b) = (self.get(warp, i, m.a, active)[0], self.get(warp, i, m.b, active)[0]);
        let (Some(of_a), Some(of_b)) = (Descriptor::of(a), Descriptor::of(b)) else {
            return self.report(Kind::Misaligned, i.line, me, "a descriptor with a base offset".into());
        };
        let add = match m.add {
            Scale::Known(add) => add,
            Scale::Predicate(p, not) => (self.predicate(warp, i, p, active) & 1 != 0) != not,
        };
        // Of registers that other instructions have written since the last fence, nothing is known.
        let held = |warp: &Warp, r: usize| {
            let of = |u: &UnderWay| u.registers.iter().find(|(d, _)| *d == r).map(|(_, values)| *values);
            warp.products.under_way.iter().rev().find_map(of)
        };
        let unfenced = |warp: &Warp, r: &usize| {
            let touched = warp.products.touched.get(*r).copied().unwrap_or(0);
            held(warp, *r).is_none() && warp.products.fenced.is_none_or(|f| f < touched)
        };
        if warp.products.fenced.is_none() || m.d.iter().any(|r| unfenced(warp, r)) {
            let detail = "the registers of its sums were written after the last `wgmma.fence`".to_string();
            self.report(Kind::Unfenced, i.line, me, detail);
        }
        let mut reads = Vec::new();
        let mut left = [[0u64; 32]; 4];
        // A warp has 16 of the 64 rows.
        let row = 16 * (warp.number as u64 % 4);
        for (r, register) in left.iter_mut().enumerate() {
            for (l, word) in register.iter_mut().enumerate() {
                let (n, k) = (row + l as u64 / 4 + 8 * (r as u64 % 2), l as u64 % 4 * 2 + 8 * (r as u64 / 2));
                let at = [k, k + 1].map(|k| of_a.place(m.across[0], n, k));
                *word = self.pair(i, me + l as u32, at, &mut reads);
            }
        }
        let mut after_a = std::mem::take(&mut reads);
        let mut results: Vec<(usize, Lanes)> = Vec::with_capacity(m.d.len());
        for (block, d) in m.d.chunks(4).enumerate() {
            let mut right = [[0u64; 32]; 2];
            for (r, register) in right.iter_mut().enumerate() {
                for (l, word) in register.iter_mut().enumerate() {
                    let (n, k) = (8 * block as u64 + l as u64 / 4, l as u64 % 4 * 2 + 8 * r as u64);
                    let at = [k, k + 1].map(|k| of_b.place(m.across[1], n, k));
                    *word = self.pair(i, me + l as u32, at, &mut reads);
                }
            }
            after_a.append(&mut reads);
            let mut sums = Vec::with_capacity(4);
            for &r in d {
                sums.push(match (add, held(warp, r)) {
                    (false, _) => [0; 32],
                    (true, Some(values)) => values,
                    (true, None) => self.get(warp, i, Src::Reg(r), active),
                });
            }
            let depth = 16;
            let accumulate = self.shape.options.accumulate;
            let (a_type, b_type, half) = (m.element, m.element, false);
            let found = product(&Product { depth, a_type, b_type, half, accumulate, a: &left, b: &right, c: &sums });
            self.counts.mma += 1;
            results.extend(d.iter().copied().zip(found));
        }
        self.products_read(warp, i, &after_a);
        let issued = warp.steps;
        let group = warp.products.closed;
        let reads = after_a.into_iter().map(|at| (at, self.shared.stamp(at))).collect();
        warp.products.under_way.push(UnderWay { group, registers: results, issued, reads, line: i.line });
    }

    fn products_read(&mut self, warp: &Warp, i: &Instruction, reads: &[usize]) {
        if !self.checks {
            return;
        }
        let me = 32 * warp.number as u32;
        for &at in reads {
            if let Some(writer) = self.shared.unfenced(at, &self.fences) {
                let detail = format!("thread {writer} wrote byte {at} and has no `fence.proxy.async` after that");
                self.report(Kind::Unfenced, i.line, me, detail);
            }
            let found = self.shared.reads(at, 4, me, &self.order);
            self.wrong(i, me, found);
        }
    }

    fn wait_products(&mut self, warp: &mut Warp, i: &Instruction, groups: u64) {
        let all = std::mem::take(&mut warp.products.under_way);
        let closed = warp.products.closed;
        let (done, open): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|u| u.group < closed && u.group + groups < closed);
        for u in done {
            let reads: Vec<usize> = u.reads.iter().map(|(at, _)| *at).collect();
            self.products_read(warp, i, &reads);
            if let Some((at, _)) = u.reads.iter().find(|(at, stamp)| self.shared.stamp(*at) != *stamp) {
                let detail = format!("byte {at} was written while the product of line {} was under way", u.line);
                self.report(Kind::SharedRace, i.line, 32 * warp.number as u32, detail);
            }
            for (r, values) in &u.registers {
                let touched = warp.products.touched.get(*r).copied().unwrap_or(0);
                if touched > u.issued {
                    let detail =
                        format!("a register of the product of line {} was written before it was waited for", u.line);
                    self.report(Kind::Pending, i.line, 32 * warp.number as u32, detail);
                }
                put(warp, *r, ALL, |l| values[l]);
                if let Some(slot) = warp.products.touched.get_mut(*r) {
                    *slot = touched;
                }
            }
        }
        warp.products.under_way = open;
    }
}
