//! Global and shared memory with who accessed what when.
//!
//! Invariant: an access that returns bytes or stores them was in bounds, aligned and not in a race. A race in shared
//! memory is two accesses of different threads to an element, one of them a write, in one stretch between barriers;
//! in global memory, in the whole grid. A copy may land at any time until it is waited for, and its writer is then
//! the thread that waited, so that the others need a barrier after it.

use super::{Counts, Fault};
use crate::warp::{LANES, Place, WarpProgram};

/// Who accessed an element. Threads are numbered from 1; 0 is none.
#[derive(Clone, Copy, Default)]
struct Cell {
    writer: u64,
    written: u32,
    reader: u64,
    read: u32,
    /// The group of the copy under way to the element, from 1; 0 is none.
    copying: u32,
}

/// Stands for several readers.
const SEVERAL: u64 = u64::MAX;

struct Buffer<'a> {
    bytes: &'a mut Vec<u8>,
    size: usize,
    len: usize,
    cells: Vec<Cell>,
}

struct Shared {
    bytes: Vec<u8>,
    size: usize,
    len: usize,
    cells: Vec<Cell>,
    /// Byte at which the buffer begins, for bank conflicts.
    start: usize,
}

pub(super) struct Memory<'a> {
    pub counts: Counts,
    buffers: Vec<Buffer<'a>>,
    shared: Vec<Shared>,
    /// Number of the block's first thread in the grid.
    first: u64,
    threads: u64,
    /// Barriers that the block has passed.
    epoch: u32,
    /// The group of copies that is open, from 1.
    group: u32,
    /// Elements being copied to: shared buffer, element, group.
    copies: Vec<(usize, usize, u32)>,
}

impl<'a> Memory<'a> {
    pub fn new(program: &WarpProgram, buffers: &'a mut [Vec<u8>], lens: Vec<usize>) -> Memory<'a> {
        let (places, _) = program.shared_layout();
        let shared = program.shared.iter().zip(places).map(|(s, start)| Shared {
            bytes: vec![0; s.len.saturating_mul(s.dtype.size())],
            size: s.dtype.size(),
            len: s.len,
            cells: Vec::new(),
            start,
        });
        let buffers = program.buffers.iter().zip(buffers).zip(lens).map(|((b, bytes), len)| Buffer {
            bytes,
            size: b.dtype.size(),
            len,
            // A buffer that is only read cannot be in a race.
            cells: vec![Cell::default(); if b.written { len } else { 0 }],
        });
        Memory {
            counts: Counts::default(),
            buffers: buffers.collect(),
            shared: shared.collect(),
            first: 0,
            threads: u64::from(program.threads),
            epoch: 0,
            group: 1,
            copies: Vec::new(),
        }
    }

    /// Begins a block: its shared memory holds nothing yet.
    pub fn enter(&mut self, block: i64) {
        self.first = (block as u64).saturating_mul(self.threads);
        self.epoch = 0;
        self.group = 1;
        self.copies.clear();
        for s in &mut self.shared {
            s.cells.clear();
            s.cells.resize(s.len, Cell::default());
        }
    }

    pub fn barrier(&mut self) {
        self.epoch += 1;
    }

    pub fn commit(&mut self) {
        self.group += 1;
    }

    pub fn wait(&mut self, groups: u32) {
        let open = self.group.saturating_sub(groups);
        let (shared, epoch) = (&mut self.shared, self.epoch);
        self.copies.retain(|&(n, element, group)| {
            if group >= open {
                return true;
            }
            if let Some(cell) = shared.get_mut(n).and_then(|s| s.cells.get_mut(element)) {
                cell.copying = 0;
                cell.written = epoch;
            }
            false
        });
    }

    /// Bytes of an element.
    pub fn size(&self, place: Place) -> usize {
        match place {
            Place::Global(n) => self.buffers.get(n).map_or(1, |b| b.size),
            Place::Shared(n) => self.shared.get(n).map_or(1, |s| s.size),
        }
    }

    /// The elements of an access as a range of the buffer, in bounds and aligned.
    fn check(&self, place: Place, element: i64, count: usize) -> Result<std::ops::Range<usize>, Fault> {
        let len = match place {
            Place::Global(n) => self.buffers.get(n).map_or(0, |b| b.len),
            Place::Shared(n) => self.shared.get(n).map_or(0, |s| s.len),
        };
        let end = usize::try_from(element).ok().and_then(|start| start.checked_add(count)).filter(|&end| end <= len);
        let Some(end) = end else {
            let inside = element >= 0 && (element as u64) < len as u64;
            return Err(Fault::OutOfBounds { element: if inside { len as i64 } else { element }, len });
        };
        if (end - count).is_multiple_of(count) {
            Ok(end - count..end)
        } else {
            Err(Fault::Misaligned { element, count })
        }
    }

    /// Bytes of an element.
    pub fn element(&self, place: Place) -> usize {
        match place {
            Place::Global(n) => self.buffers.get(n).map_or(1, |b| b.size),
            Place::Shared(n) => self.shared.get(n).map_or(1, |s| s.size),
        }
    }

    /// Reads the elements; the bytes after theirs are 0.
    pub fn read(&mut self, place: Place, thread: usize, element: i64, count: usize) -> Result<[u8; 16], Fault> {
        let range = self.check(place, element, count)?;
        let (bytes, size, cells, epoch, me) = match place {
            Place::Global(n) => {
                let b = &mut self.buffers[n];
                (&*b.bytes, b.size, &mut b.cells, 0, self.first + thread as u64 + 1)
            }
            Place::Shared(n) => {
                let s = &mut self.shared[n];
                (&s.bytes, s.size, &mut s.cells, self.epoch, thread as u64 + 1)
            }
        };
        for (i, cell) in range.clone().zip(cells.get_mut(range.clone()).into_iter().flatten()) {
            let element = i as i64;
            if cell.copying != 0 {
                return Err(Fault::Pending { element });
            }
            if matches!(place, Place::Shared(_)) && cell.writer == 0 {
                return Err(Fault::Uninitialised { element });
            }
            if cell.writer != 0 && cell.writer != me && cell.written == epoch {
                return Err(Fault::Race { element, other: cell.writer - 1 });
            }
            let alone = cell.reader == 0 || cell.reader == me || cell.read != epoch;
            (cell.reader, cell.read) = (if alone { me } else { SEVERAL }, epoch);
        }
        let mut data = [0; 16];
        for (to, from) in data.iter_mut().zip(&bytes[range.start * size..range.end * size]) {
            *to = *from;
        }
        Ok(data)
    }

    pub fn write(&mut self, place: Place, thread: usize, element: i64, count: usize, data: &[u8]) -> Result<(), Fault> {
        let range = self.check(place, element, count)?;
        let (bytes, size, cells, epoch, me) = match place {
            Place::Global(n) => {
                let b = &mut self.buffers[n];
                (&mut *b.bytes, b.size, &mut b.cells, 0, self.first + thread as u64 + 1)
            }
            Place::Shared(n) => {
                let s = &mut self.shared[n];
                (&mut s.bytes, s.size, &mut s.cells, self.epoch, thread as u64 + 1)
            }
        };
        for (i, cell) in range.clone().zip(cells.get_mut(range.clone()).into_iter().flatten()) {
            let element = i as i64;
            if cell.copying != 0 {
                return Err(Fault::Pending { element });
            }
            if cell.writer != 0 && cell.writer != me && cell.written == epoch {
                return Err(Fault::Race { element, other: cell.writer - 1 });
            }
            if cell.reader != 0 && cell.reader != me && cell.read == epoch {
                return Err(Fault::Race { element, other: cell.reader.saturating_sub(1) });
            }
            (cell.writer, cell.written) = (me, epoch);
        }
        bytes[range.start * size..range.end * size].copy_from_slice(data);
        Ok(())
    }

    /// Begins a copy of `count` elements; zeros where there is no source.
    pub fn copy(
        &mut self,
        to: (Place, i64),
        from: (Place, Option<i64>),
        count: usize,
        thread: usize,
    ) -> Result<(), Fault> {
        let data = match from.1 {
            Some(element) => self.read(from.0, thread, element, count)?,
            None => [0; 16],
        };
        let bytes = count * self.size(from.0);
        self.write(to.0, thread, to.1, count, data.get(..bytes).unwrap_or(&[]))?;
        let range = self.check(to.0, to.1, count)?;
        if let Place::Shared(n) = to.0 {
            for element in range {
                self.shared[n].cells[element].copying = self.group;
                self.copies.push((n, element, self.group));
            }
        }
        Ok(())
    }

    /// Counts what an access of so many bytes in each thread costs.
    pub fn count(&mut self, place: Place, elements: &[Option<i64>], bytes: usize) {
        let start = match place {
            Place::Global(_) => 0,
            Place::Shared(n) => self.shared.get(n).map_or(0, |s| s.start),
        };
        let size = self.size(place);
        let at = |element: i64| start as u64 + (element.max(0) as u64).saturating_mul(size as u64);
        for warp in elements.chunks(LANES as usize) {
            let distinct = |lanes: &[Option<i64>], unit: u64| {
                let mut units: Vec<u64> =
                    lanes.iter().flatten().flat_map(|&e| at(e) / unit..(at(e) + bytes as u64).div_ceil(unit)).collect();
                units.sort_unstable();
                units.dedup();
                units
            };
            match place {
                Place::Global(_) => {
                    self.counts.sectors += distinct(warp, 32).len() as u64;
                    let least: usize = distinct(warp, 1).len().div_ceil(32);
                    self.counts.least_sectors += least as u64;
                }
                // 128 bytes go at once: all lanes of a 4-byte access, a quarter of those of a 16-byte access.
                Place::Shared(_) => {
                    for lanes in warp.chunks((128 / bytes.max(4)).max(1)) {
                        let words = distinct(lanes, 4);
                        let bank = |b| words.iter().filter(|&w| w % 32 == b).count() as u64;
                        self.counts.wavefronts += (0..32).map(bank).max().unwrap_or(0);
                        self.counts.least_wavefronts += words.len().div_ceil(32) as u64;
                    }
                }
            }
        }
    }
}
