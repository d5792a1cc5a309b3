//! Where instructions read and write, and what that costs.
//!
//! Invariant: an access that goes nowhere is a finding and does nothing; every other one is noted with its thread and time
//! before it is done.

use super::super::alu::{self, FloatOp, Mode, Ty};
use super::super::decode::{Address, Atom, Instruction, Op, Space, Src};
use super::super::memory::{Global, Thread};
use super::super::{Kind, SHARED_WINDOW, place_of};
use super::step::put;
use super::{ALL, Copy, Lanes, Machine, Warp, lanes};

/// What each lane accesses: elements of a type from an address on.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub space: Space,
    pub ty: Ty,
    pub address: Address,
}

/// An address in bytes of the space that it is in.
#[derive(Clone, Copy)]
pub(super) enum Spot {
    Global(usize, usize),
    Shared(usize),
    Local(usize),
    Parameter(usize),
}

impl<'a> Machine<'a> {
    /// Where an access of one lane goes; nothing (and a finding) where that is nowhere.
    pub(super) fn spot(
        &mut self,
        i: &Instruction,
        space: Space,
        address: u64,
        bytes: usize,
        thread: u32,
    ) -> Option<Spot> {
        if !address.is_multiple_of(bytes.max(1) as u64) {
            let detail = format!("{bytes} bytes at address {address:#x}");
            self.report(Kind::Misaligned, i.line, thread, detail);
            return None;
        }
        let (space, address) = match space {
            Space::Generic if address >= SHARED_WINDOW => (Space::Shared, address - SHARED_WINDOW),
            Space::Generic => (Space::Global, address),
            other => (other, address),
        };
        let inside = |len: usize, at: usize| at.checked_add(bytes).is_some_and(|end| end <= len);
        match space {
            Space::Global | Space::Generic => {
                let (global, variables) = (self.places.global, self.places.variables);
                let found = place_of(address, global.len(), variables.len());
                if let Some((n, at)) = found
                    && let Some(buffer) = global.get(n).or_else(|| variables.get(n - global.len()))
                {
                    if inside(buffer.bytes, at) {
                        return Some(Spot::Global(n, at));
                    }
                    let detail = format!("{bytes} bytes at {at} of buffer {n}, which has {}", buffer.bytes);
                    self.report(Kind::OutOfBounds, i.line, thread, detail);
                    return None;
                }
                self.report(Kind::OutOfBounds, i.line, thread, format!("address {address:#x} is in no buffer"));
            }
            Space::Shared => {
                let at = (address & 0xffff_ffff) as usize;
                if inside(self.shape.shared, at) {
                    return Some(Spot::Shared(at));
                }
                let detail = format!("{bytes} bytes at {at} of {} shared ones", self.shape.shared);
                self.report(Kind::OutOfBounds, i.line, thread, detail);
            }
            Space::Local => {
                let at = (address & 0xffff_ffff) as usize;
                if inside(self.shape.kernel.local, at) {
                    return Some(Spot::Local(at));
                }
                self.report(Kind::OutOfBounds, i.line, thread, format!("{bytes} bytes at {at} of local memory"));
            }
            Space::Param => {
                if inside(self.shape.parameters.len(), address as usize) {
                    return Some(Spot::Parameter(address as usize));
                }
                self.report(Kind::OutOfBounds, i.line, thread, format!("parameter byte {address}"));
            }
        }
        None
    }

    fn buffer(&self, n: usize) -> Option<&'a Global> {
        let global = self.places.global;
        global.get(n).or_else(|| self.places.variables.get(n.checked_sub(global.len())?))
    }

    fn thread(&self, me: u32) -> Thread {
        Thread { first: (self.block * u64::from(self.shape.threads)) as u32, me }
    }

    /// What is wrong with a race or a read, as a finding.
    pub(super) fn wrong(&mut self, i: &Instruction, me: u32, found: Option<(Kind, u32)>) {
        let Some((kind, other)) = found else { return };
        let detail = match kind {
            Kind::SharedRace => match other {
                u32::MAX | 0xffff_fffe => "several threads access it too".to_string(),
                _ => format!("thread {other} accesses it too, and nothing orders them"),
            },
            Kind::GlobalRace => "another thread accesses it too, and nothing orders them".to_string(),
            Kind::Pending => format!("a copy of thread {other} has not been waited for"),
            Kind::ReadOnly => "the buffer is not declared as written".to_string(),
            _ => "nothing was written there".to_string(),
        };
        self.report(kind, i.line, me, detail);
    }

    pub(super) fn read(
        &mut self,
        warp: &Warp,
        i: &Instruction,
        spot: &Spot,
        lane: usize,
        each: usize,
        count: usize,
    ) -> [u64; 8] {
        let me = (32 * warp.number + lane) as u32;
        let mut values = [0; 8];
        match *spot {
            Spot::Global(n, at) => {
                let Some(buffer) = self.buffer(n) else { return values };
                if self.checks {
                    let threads = self.shape.threads;
                    let found = buffer.reads(at, each * count, self.thread(me), threads, &self.order);
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = buffer.read(at + k * each, each);
                }
            }
            Spot::Shared(at) => {
                if self.checks {
                    let found = self.shared.reads(at, each * count, me, &self.order);
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = self.shared.fetch(at + k * each, each);
                }
            }
            Spot::Local(at) => {
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = word(warp.local.get(lane).map_or(&[], Vec::as_slice), at + k * each, each);
                }
            }
            Spot::Parameter(at) => {
                for (k, v) in values.iter_mut().enumerate().take(count) {
                    *v = word(self.shape.parameters, at + k * each, each);
                }
            }
        }
        values
    }

    fn write(&mut self, warp: &mut Warp, i: &Instruction, spot: &Spot, lane: usize, each: usize, values: &[u64]) {
        let me = (32 * warp.number + lane) as u32;
        match *spot {
            Spot::Global(n, at) => {
                let Some(buffer) = self.buffer(n) else { return };
                if self.checks {
                    let same = values
                        .iter()
                        .enumerate()
                        .all(|(k, v)| buffer.read(at + k * each, each) == v & u64::MAX >> (64 - 8 * each));
                    let (thread, threads) = (self.thread(me), self.shape.threads);
                    let found = buffer.writes(at, each * values.len(), thread, threads, &self.order, same);
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter().enumerate() {
                    buffer.write(at + k * each, each, *v);
                }
            }
            Spot::Shared(at) => {
                if self.checks {
                    let same = values
                        .iter()
                        .enumerate()
                        .all(|(k, v)| self.shared.fetch(at + k * each, each) == v & u64::MAX >> (64 - 8 * each));
                    let found = self.shared.writes(at, each * values.len(), me, &self.order, (same, false));
                    self.wrong(i, me, found);
                }
                for (k, v) in values.iter().enumerate() {
                    self.shared.put(at + k * each, each, *v);
                }
            }
            Spot::Local(at) => {
                if let Some(local) = warp.local.get_mut(lane) {
                    for (k, v) in values.iter().enumerate() {
                        if let Some(to) = local.get_mut(at + k * each..at + (k + 1) * each) {
                            to.copy_from_slice(&v.to_le_bytes()[..each]);
                        }
                    }
                }
            }
            Spot::Parameter(_) => self.report(Kind::ReadOnly, i.line, me, "parameters are only read".into()),
        }
    }

    fn addresses(&mut self, warp: &Warp, i: &Instruction, address: Address, mask: u32) -> Lanes {
        self.get(warp, i, address.base, mask).map(|a| a.wrapping_add(address.offset as u64))
    }

    /// Where each lane's access of `bytes` goes, once it is counted what they cost together.
    fn spots(&mut self, warp: &Warp, i: &Instruction, mask: u32, access: Access, bytes: usize) -> [Option<Spot>; 32] {
        let addresses = self.addresses(warp, i, access.address, mask);
        self.count(access.space, &addresses, mask, bytes);
        let mut spots = [None; 32];
        for l in lanes(mask) {
            let thread = (32 * warp.number + l) as u32;
            spots[l] = self.spot(i, access.space, addresses[l], bytes, thread);
        }
        spots
    }

    pub(super) fn load(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        access: Access,
        targets: &[Option<usize>],
    ) {
        let (each, count) = (access.ty.bytes(), targets.len().min(8));
        // Parameters are the same for all threads.
        let together = access.space == Space::Param;
        let reading = if together { 1 << (mask.trailing_zeros() & 31) } else { mask };
        let spots = self.spots(warp, i, reading, access, each * count);
        let mut results = [[0u64; 32]; 8];
        for (l, spot) in spots.iter().enumerate() {
            let Some(spot) = spot else { continue };
            let values = self.read(warp, i, spot, l, each, count);
            for (result, v) in results.iter_mut().zip(values).take(count) {
                result[l] = access.ty.extend(v);
            }
        }
        let first = reading.trailing_zeros() as usize & 31;
        for (target, result) in targets.iter().zip(&results) {
            if let Some(d) = target {
                put(warp, *d, mask, |l| result[if together { first } else { l }]);
            }
        }
    }

    pub(super) fn store(&mut self, warp: &mut Warp, i: &Instruction, mask: u32, access: Access, sources: &[Src]) {
        let values: Vec<Lanes> = sources.iter().take(8).map(|s| self.get(warp, i, *s, mask)).collect();
        let each = access.ty.bytes();
        let spots = self.spots(warp, i, mask, access, each * values.len());
        for (l, spot) in spots.iter().enumerate() {
            let Some(spot) = spot else { continue };
            let mut own = [0; 8];
            own.iter_mut().zip(&values).for_each(|(o, v)| *o = v[l]);
            self.write(warp, i, spot, l, each, &own[..values.len()]);
        }
    }

    pub(super) fn atom(&mut self, warp: &mut Warp, i: &Instruction, mask: u32) {
        let Op::Atom { space, op, ty, d, address, b, c } = &i.op else { return };
        let (b, c) = (self.get(warp, i, *b, mask), self.get(warp, i, *c, mask));
        let size = ty.bytes();
        let spots = self.spots(warp, i, mask, Access { space: *space, ty: *ty, address: *address }, size);
        let mut results = [0; 32];
        for l in lanes(mask) {
            let Some(spot) = spots[l] else { continue };
            let (op, ty, b, c) = (*op, *ty, b[l], c[l]);
            let change = move |old: u64| match op {
                Atom::Int(op) => alu::int_op(op, ty, old, b),
                Atom::Float => alu::float_op(FloatOp::Add, ty, Mode::default(), old, b),
                Atom::Exchange => b,
                Atom::Cas => {
                    if old == b & ty.mask() {
                        c
                    } else {
                        old
                    }
                }
                Atom::Inc => {
                    if old >= b & ty.mask() {
                        0
                    } else {
                        old + 1
                    }
                }
                Atom::Dec => {
                    if old == 0 || old > b & ty.mask() {
                        b
                    } else {
                        old - 1
                    }
                }
            };
            results[l] = match spot {
                Spot::Global(n, at) => match self.buffer(n) {
                    Some(buffer) => {
                        buffer.touched(at, size);
                        buffer.update(at, size, self.places.lock, change)
                    }
                    None => 0,
                },
                Spot::Shared(at) => {
                    let old = self.shared.fetch(at, size);
                    self.shared.put(at, size, change(old));
                    old
                }
                Spot::Local(_) | Spot::Parameter(_) => 0,
            };
        }
        if let Some(d) = d {
            put(warp, *d, mask, |l| results[l]);
        }
    }

    pub(super) fn matrices(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        active: u32,
        trans: bool,
        targets: &[usize],
        address: Address,
    ) {
        self.all_here(warp, i, active, ALL);
        let used = ALL >> (32 - (8 * targets.len()).clamp(1, 32));
        let addresses = self.addresses(warp, i, address, used);
        self.count(Space::Shared, &addresses, used, 16);
        for (j, target) in targets.iter().enumerate() {
            let mut rows = [[0u64; 2]; 8];
            for (row, words) in rows.iter_mut().enumerate() {
                let lane = (8 * j + row) & 31;
                let thread = (32 * warp.number + lane) as u32;
                if let Some(spot) = self.spot(i, Space::Shared, addresses[lane] & 0xffff_ffff, 16, thread) {
                    let values = self.read(warp, i, &spot, lane, 8, 2);
                    *words = [values[0], values[1]];
                }
            }
            let element = |r: usize, c: usize| rows[r][c / 4] >> (16 * (c % 4)) & 0xffff;
            put(warp, *target, active, |l| {
                let (r, c) = (l / 4, l % 4 * 2);
                if trans { element(c, r) | element(c + 1, r) << 16 } else { element(r, c) | element(r, c + 1) << 16 }
            });
        }
    }

    pub(super) fn copy(
        &mut self,
        warp: &mut Warp,
        i: &Instruction,
        mask: u32,
        (to, from): (Address, Address),
        bytes: usize,
        (read, off): (Option<Src>, Option<usize>),
    ) {
        let (to, from) = (self.addresses(warp, i, to, mask), self.addresses(warp, i, from, mask));
        let read = read.map(|r| self.get(warp, i, r, mask));
        let off = off.map_or(0, |p| self.predicate(warp, i, p, mask));
        let reading = lanes(mask).filter(|l| off >> l & 1 == 0 && read.is_none_or(|r| r[*l] as u32 != 0));
        let reading = reading.fold(0u32, |m, l| m | 1 << l);
        self.count(Space::Global, &from, reading, bytes);
        self.count(Space::Shared, &to, mask, bytes);
        for l in lanes(mask) {
            let me = (32 * warp.number + l) as u32;
            let mut data = [0u64; 2];
            if reading >> l & 1 != 0
                && let Some(spot) = self.spot(i, Space::Global, from[l], bytes, me)
            {
                let each = bytes.min(8);
                let values = self.read(warp, i, &spot, l, each, bytes / each);
                data = [values[0], values[1]];
                let wanted = read.map_or(bytes, |r| r[l] as u32 as usize).min(bytes);
                for (n, word) in data.iter_mut().enumerate() {
                    let kept = wanted.saturating_sub(8 * n).min(8);
                    *word &= if kept == 0 { 0 } else { u64::MAX >> (64 - 8 * kept) };
                }
            }
            let target = if to[l] >= SHARED_WINDOW { to[l] - SHARED_WINDOW } else { to[l] };
            let Some(Spot::Shared(at)) = self.spot(i, Space::Shared, target & 0xffff_ffff, bytes, me) else { continue };
            if self.checks {
                let found = self.shared.writes(at, bytes, me, &self.order, (false, true));
                self.wrong(i, me, found);
            }
            for n in 0..bytes.div_ceil(8) {
                self.shared.put(at + 8 * n, bytes.min(8), u64::MAX);
            }
            warp.copies.push(Copy { lane: l, group: warp.closed[l], at, bytes, data });
        }
    }

    /// Counts what an access of so many bytes in each lane costs.
    fn count(&mut self, space: Space, addresses: &Lanes, mask: u32, bytes: usize) {
        if !self.checks || mask == 0 {
            return;
        }
        let shared = match space {
            Space::Shared => true,
            Space::Generic => addresses[mask.trailing_zeros() as usize & 31] >= SHARED_WINDOW,
            Space::Global => false,
            Space::Local | Space::Param => return,
        };
        let bytes = bytes.max(1);
        if shared {
            // 128 bytes go at once: all lanes of a 4-byte access, a quarter of those of a 16-byte access.
            let together = (128 / bytes.max(4)).clamp(1, 32);
            for first in (0..32).step_by(together) {
                let part = mask >> first & (ALL >> (32 - together as u32));
                if part == 0 {
                    continue;
                }
                let mut words: Vec<u64> = lanes(part)
                    .flat_map(|l| {
                        let at = addresses[first + l] & 0xffff_ffff;
                        at / 4..(at + bytes as u64).div_ceil(4)
                    })
                    .collect();
                words.sort_unstable();
                words.dedup();
                let mut banks = [0u32; 32];
                words.iter().for_each(|w| banks[(w % 32) as usize] += 1);
                self.counts.wavefronts += u64::from(banks.iter().copied().max().unwrap_or(0));
                self.counts.least_wavefronts += words.len().div_ceil(32) as u64;
            }
            return;
        }
        let distinct = |unit: u64| {
            let ends = lanes(mask).flat_map(|l| {
                let at = addresses[l];
                at / unit..at.saturating_add(bytes as u64).div_ceil(unit)
            });
            let mut all: Vec<u64> = ends.collect();
            all.sort_unstable();
            all.dedup();
            all.len() as u64
        };
        let granule = bytes.next_power_of_two().min(16) as u64;
        self.counts.sectors += distinct(32);
        self.counts.least_sectors += (distinct(granule) * granule).div_ceil(32);
    }
}

fn word(bytes: &[u8], at: usize, size: usize) -> u64 {
    let mut word = [0; 8];
    if let Some(from) = bytes.get(at..at + size.min(8)) {
        word[..from.len()].copy_from_slice(from);
    }
    u64::from_le_bytes(word)
}
