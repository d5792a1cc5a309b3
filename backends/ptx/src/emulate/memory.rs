//! Global and shared memory, and who accessed what when.
//!
//! Invariant: no access leaves a buffer: one that would is a finding and does nothing. Two accesses of different threads
//! to a granule, one of them a write, are ordered only by what the program did: barriers, synchronisation of a warp, or
//! the end of a copy that was waited for. The order in which the interpreter happened to run them is no order.
//!
//! Threads of a block are ordered by vector clocks over its warps: `clock` counts what synchronises; an access bears the
//! clock's number, and `seen[w][x]` is the number below which warp `w` has seen everything that warp `x` did.

use super::{Buffer, Kind};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Where buffer `n` begins in the address space.
pub(super) fn base(n: usize) -> u64 {
    (n as u64 + 1) << 40
}

/// A buffer that all blocks see.
pub(super) struct Global {
    words: Vec<AtomicU32>,
    pub bytes: usize,
    written: bool,
    granule: usize,
    /// The thread that wrote last, from 1, and its clock; nothing where nobody tracks it.
    writers: Vec<AtomicU64>,
    readers: Vec<AtomicU64>,
}

const SEVERAL: u32 = u32::MAX;

impl Global {
    pub fn new(buffer: &Buffer, checks: bool) -> Global {
        let words = buffer.bytes.chunks(4).map(|c| {
            let mut word = [0; 4];
            word[..c.len()].copy_from_slice(c);
            AtomicU32::new(u32::from_le_bytes(word))
        });
        let granule = buffer.granule.clamp(1, 4);
        let count = if checks && buffer.written { buffer.bytes.len().div_ceil(granule) } else { 0 };
        let cells = || (0..count).map(|_| AtomicU64::new(0)).collect();
        Global {
            words: words.collect(),
            bytes: buffer.bytes.len(),
            written: buffer.written,
            granule,
            writers: cells(),
            readers: cells(),
        }
    }

    pub fn store_to(&self, bytes: &mut [u8]) {
        for (to, from) in bytes.chunks_mut(4).zip(&self.words) {
            let word = from.load(Relaxed).to_le_bytes();
            to.copy_from_slice(&word[..to.len()]);
        }
    }

    /// Up to 8 bytes, which lie in one aligned run.
    pub fn read(&self, at: usize, size: usize) -> u64 {
        let word = |n: usize| u64::from(self.words.get(n).map_or(0, |w| w.load(Relaxed)));
        match size {
            8 => word(at / 4) | word(at / 4 + 1) << 32,
            4 => word(at / 4),
            _ => word(at / 4) >> (8 * (at % 4)) & ((1 << (8 * size)) - 1),
        }
    }

    pub fn write(&self, at: usize, size: usize, value: u64) {
        let Some(word) = self.words.get(at / 4) else { return };
        match size {
            8 => {
                word.store(value as u32, Relaxed);
                if let Some(next) = self.words.get(at / 4 + 1) {
                    next.store((value >> 32) as u32, Relaxed);
                }
            }
            4 => word.store(value as u32, Relaxed),
            _ => {
                let shift = 8 * (at % 4) as u32;
                let mask = ((1u32 << (8 * size)) - 1) << shift;
                let put = |old: u32| Some(old & !mask | (value as u32) << shift & mask);
                let _ = word.fetch_update(Relaxed, Relaxed, put);
            }
        }
    }

    /// An atomic change of 2, 4 or 8 bytes; gives what was there.
    pub fn update(&self, at: usize, size: usize, lock: &std::sync::Mutex<()>, f: impl Fn(u64) -> u64) -> u64 {
        // Atomics of one launch take turns, which is one of the orders that a GPU may choose.
        let _turn = lock.lock();
        let old = self.read(at, size);
        self.write(at, size, f(old));
        old
    }
}

/// Who accessed a granule of shared memory. Threads are numbered from 1.
#[derive(Clone, Copy, Default)]
struct Cell {
    writer: u32,
    written: u32,
    reader: u32,
    read: u32,
    /// Where there are several readers: when each warp read last, in the list of that number, from 1.
    list: u32,
    /// The thread that is copying here.
    copying: u32,
    /// Whether a bulk copy has written it.
    bulk: bool,
}

/// What a block's threads know of one another.
pub(super) struct Order {
    pub clock: u32,
    seen: Vec<Vec<u32>>,
}

impl Order {
    pub fn new(warps: usize) -> Order {
        Order { clock: 1, seen: vec![vec![0; warps]; warps] }
    }

    /// Whether what a thread (from 0) did at a time is before what another one does now.
    pub fn before(&self, other: u32, time: u32, me: u32) -> bool {
        other == me || self.seen[me as usize / 32][other as usize / 32] > time
    }

    /// Whether what warps did at these times, or never where it is 0, is before what a thread does now.
    fn all_before(&self, times: &[u32], me: u32) -> bool {
        self.seen[me as usize / 32].iter().zip(times).all(|(seen, time)| *time == 0 || seen > time)
    }

    /// The next time.
    pub fn tick(&mut self) -> u32 {
        self.clock += 1;
        self.clock
    }

    /// What a warp has seen, and what it did itself.
    pub fn snapshot(&self, warp: usize) -> Vec<u32> {
        let mut seen = self.seen[warp].clone();
        seen[warp] = self.clock;
        seen
    }

    /// A warp has seen what somebody else had.
    pub fn merge(&mut self, warp: usize, seen: &[u32]) {
        self.seen[warp].iter_mut().zip(seen).for_each(|(own, seen)| *own = (*own).max(*seen));
    }

    /// The lanes of a warp have seen one another.
    pub fn join_warp(&mut self, warp: usize) {
        self.clock += 1;
        self.seen[warp][warp] = self.clock;
    }

    /// The warps that waited have seen all that arrived, and what those had seen.
    pub fn join(&mut self, arrived: &[(usize, u32)], waited: &[usize]) {
        let mut sum = vec![0; self.seen.len()];
        for &(warp, time) in arrived {
            for (n, s) in sum.iter_mut().enumerate() {
                *s = (*s).max(if n == warp { time } else { self.seen[warp][n] });
            }
        }
        for &w in waited {
            for (seen, s) in self.seen[w].iter_mut().zip(&sum) {
                *seen = (*seen).max(*s);
            }
        }
    }
}

/// Shared memory of a block.
pub(super) struct Shared {
    pub bytes: Vec<u8>,
    granule: usize,
    cells: Vec<Cell>,
    /// For granules with several readers, when each warp read last.
    lists: Vec<Vec<u32>>,
    free: Vec<u32>,
}

impl Shared {
    pub fn new(bytes: usize, granule: usize, checks: bool) -> Shared {
        // What nobody wrote is a NaN that one recognises.
        let cells = vec![Cell::default(); if checks { bytes.div_ceil(granule) } else { 0 }];
        Shared { bytes: vec![0xff; bytes], granule, cells, lists: Vec::new(), free: Vec::new() }
    }

    pub fn clear(&mut self) {
        self.bytes.fill(0xff);
        self.cells.fill(Cell::default());
        self.free = (1..=self.lists.len() as u32).collect();
    }

    pub fn fetch(&self, at: usize, size: usize) -> u64 {
        let mut word = [0; 8];
        if let Some(bytes) = self.bytes.get(at..at + size) {
            word[..size].copy_from_slice(bytes);
        }
        u64::from_le_bytes(word)
    }

    pub fn put(&mut self, at: usize, size: usize, value: u64) {
        if let Some(bytes) = self.bytes.get_mut(at..at + size) {
            bytes.copy_from_slice(&value.to_le_bytes()[..size]);
        }
    }

    fn range(&self, at: usize, bytes: usize) -> std::ops::Range<usize> {
        at / self.granule..(at + bytes).div_ceil(self.granule).min(self.cells.len())
    }

    /// A list of times, of which none is set.
    fn list(&mut self, warps: usize) -> u32 {
        let number = self.free.pop().unwrap_or_else(|| {
            self.lists.push(Vec::new());
            self.lists.len() as u32
        });
        let list = &mut self.lists[number as usize - 1];
        list.clear();
        list.resize(warps, 0);
        number
    }

    /// Notes that thread `me` reads; gives what is wrong with it.
    pub fn reads(&mut self, at: usize, bytes: usize, me: u32, order: &Order) -> Option<(Kind, u32)> {
        let mut wrong = None;
        for n in self.range(at, bytes) {
            let cell = self.cells[n];
            if cell.copying != 0 {
                wrong = wrong.or(Some((Kind::Pending, cell.copying - 1)));
            } else if cell.writer == 0 {
                wrong = wrong.or(Some((Kind::Uninitialised, me)));
            } else if !order.before(cell.writer - 1, cell.written, me) {
                wrong = wrong.or(Some((Kind::SharedRace, cell.writer - 1)));
            }
            let alone = match cell.reader {
                0 => true,
                SEVERAL => {
                    self.lists[cell.list as usize - 1][me as usize / 32] = order.clock;
                    continue;
                }
                reader => order.before(reader - 1, cell.read, me),
            };
            if alone {
                (self.cells[n].reader, self.cells[n].read) = (me + 1, order.clock);
            } else {
                let list = self.list(order.seen.len());
                self.lists[list as usize - 1][(cell.reader as usize - 1) / 32] = cell.read;
                self.lists[list as usize - 1][me as usize / 32] = order.clock;
                (self.cells[n].reader, self.cells[n].list) = (SEVERAL, list);
            }
        }
        wrong
    }

    /// Notes that thread `me` writes, or begins a copy. Writing what is there already is no race with a write.
    pub fn writes(
        &mut self,
        at: usize,
        bytes: usize,
        me: u32,
        order: &Order,
        (same, copies): (bool, bool),
    ) -> Option<(Kind, u32)> {
        let mut wrong = None;
        for n in self.range(at, bytes) {
            let cell = &mut self.cells[n];
            if cell.copying != 0 {
                wrong = wrong.or(Some((Kind::Pending, cell.copying - 1)));
            } else if cell.writer != 0 && !same && !order.before(cell.writer - 1, cell.written, me) {
                wrong = wrong.or(Some((Kind::SharedRace, cell.writer - 1)));
            }
            let read_before = match cell.reader {
                0 => true,
                SEVERAL => {
                    self.free.push(cell.list);
                    order.all_before(&self.lists[cell.list as usize - 1], me)
                }
                reader => order.before(reader - 1, cell.read, me),
            };
            if !read_before {
                wrong = wrong.or(Some((Kind::SharedRace, cell.reader.wrapping_sub(1))));
            }
            let copying = if copies { me + 1 } else { 0 };
            *cell = Cell { writer: me + 1, written: order.clock, copying, ..Cell::default() };
        }
        wrong
    }

    /// When the granule was written.
    pub fn stamp(&self, at: usize) -> u32 {
        self.cells.get(at / self.granule).map_or(0, |c| c.written)
    }

    /// A bulk copy has written here.
    pub fn by_copy(&mut self, at: usize, bytes: usize) {
        for n in self.range(at, bytes) {
            self.cells[n].bulk = true;
        }
    }

    /// The thread that wrote here and has no fence after that, which bulk copies and products need.
    pub fn unfenced(&self, at: usize, fences: &[u32]) -> Option<u32> {
        let cell = self.cells.get(at / self.granule).filter(|c| !c.bulk)?;
        let writer = cell.writer.checked_sub(1)?;
        (fences.get(writer as usize).is_none_or(|f| *f <= cell.written)).then_some(writer)
    }

    /// The copy of thread `me` has landed.
    pub fn landed(&mut self, at: usize, bytes: usize, me: u32, time: u32) {
        for n in self.range(at, bytes) {
            let cell = &mut self.cells[n];
            (cell.copying, cell.writer, cell.written) = (0, me + 1, time);
        }
    }
}

/// A thread of the whole grid, for what all blocks share.
#[derive(Clone, Copy)]
pub(super) struct Thread {
    /// Number of the block's first thread.
    pub first: u32,
    /// In the block.
    pub me: u32,
}

impl Global {
    fn ordered(cell: u64, thread: Thread, threads: u32, order: &Order) -> bool {
        let (who, time) = ((cell >> 32) as u32, cell as u32);
        if who == 0 {
            return true;
        }
        if who == SEVERAL {
            return false;
        }
        let who = who - 1;
        let here = who >= thread.first && who - thread.first < threads;
        here && order.before(who - thread.first, time, thread.me)
    }

    fn other(cell: u64) -> u32 {
        ((cell >> 32) as u32).wrapping_sub(1)
    }

    /// Notes a read; gives what is wrong with it.
    pub fn reads(&self, at: usize, bytes: usize, thread: Thread, threads: u32, order: &Order) -> Option<(Kind, u32)> {
        if !self.written || self.writers.is_empty() {
            return None;
        }
        let own = u64::from(thread.first + thread.me + 1) << 32 | u64::from(order.clock);
        let mut wrong = None;
        for n in at / self.granule..(at + bytes).div_ceil(self.granule) {
            let (Some(writer), Some(reader)) = (self.writers.get(n), self.readers.get(n)) else { continue };
            let held = reader.swap(own, Relaxed);
            if !Self::ordered(held, thread, threads, order) {
                reader.store(u64::from(SEVERAL) << 32, Relaxed);
            }
            let writer = writer.load(Relaxed);
            if writer == 0 {
                wrong = wrong.or(Some((Kind::Uninitialised, thread.me)));
            } else if !Self::ordered(writer, thread, threads, order) {
                wrong = wrong.or(Some((Kind::GlobalRace, Self::other(writer))));
            }
        }
        wrong
    }

    /// Notes a write; gives what is wrong with it.
    pub fn writes(
        &self,
        at: usize,
        bytes: usize,
        thread: Thread,
        threads: u32,
        order: &Order,
        same: bool,
    ) -> Option<(Kind, u32)> {
        if self.writers.is_empty() {
            return if self.written { None } else { Some((Kind::ReadOnly, thread.me)) };
        }
        let own = u64::from(thread.first + thread.me + 1) << 32 | u64::from(order.clock);
        let mut wrong = None;
        for n in at / self.granule..(at + bytes).div_ceil(self.granule) {
            let (Some(writer), Some(reader)) = (self.writers.get(n), self.readers.get(n)) else { continue };
            let before = writer.swap(own, Relaxed);
            let read = reader.load(Relaxed);
            if !same && !Self::ordered(before, thread, threads, order) {
                wrong = wrong.or(Some((Kind::GlobalRace, Self::other(before))));
            } else if !Self::ordered(read, thread, threads, order) {
                wrong = wrong.or(Some((Kind::GlobalRace, Self::other(read))));
            }
        }
        wrong
    }

    /// Notes that something was written here by an atomic operation, which races with none of its kind.
    pub fn touched(&self, at: usize, bytes: usize) {
        for n in at / self.granule..(at + bytes).div_ceil(self.granule) {
            if let Some(writer) = self.writers.get(n) {
                let _ = writer.compare_exchange(0, u64::from(SEVERAL) << 32, Relaxed, Relaxed);
            }
        }
    }

    /// The contents count as written before the launch.
    pub fn initialised(&mut self) {
        for writer in &mut self.writers {
            *writer.get_mut() = INITIAL;
        }
    }
}

/// Written before the launch, by a thread that all have seen.
const INITIAL: u64 = 1;
