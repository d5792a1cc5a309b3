//! Memory that was lent is read in order right before a kernel reads it in an order of its own.
//!
//! Invariant: only what the caller lent for this run is read, and only within its size.

use super::{Context, Launch, Loan};

/// Bytes of memory that was lent which a launch reads once in order before its kernel does, from and to: what a cache of tokens holds. Its kernels read
/// a head of each token, and what the processor foresees by itself is what lies in order: of 256 tokens' keys of three heads 25 us in their
/// kernel's order and 13 us so (Zen 4, from memory). What is less has little to gain, what is more does not stay near.
const READ_AHEAD: std::ops::RangeInclusive<u64> = 4096..=768 * 1024;

/// Memory that a launch reads in order beforehand.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    from: *const u8,
    bytes: u64,
}
// SAFETY: the memory is not changed while a run reads it.
unsafe impl Sync for Ahead {}

impl Ahead {
    /// Reads the part that belongs to some of the programs, a byte of each line of the cache.
    pub(super) fn read(&self, lo: u64, hi: u64, programs: u64) {
        let at = |n: u64| (u128::from(self.bytes) * u128::from(n) / u128::from(programs.max(1))) as usize;
        let mut line = at(lo);
        while line < at(hi) {
            // SAFETY: within the memory that was lent, which nobody writes meanwhile.
            std::hint::black_box(unsafe { self.from.wrapping_add(line).read_volatile() });
            line += 64;
        }
    }
}

impl Context {
    /// What a launch reads ahead: the first two of the inputs that it is the first to read, where they are lent.
    pub(super) fn ahead(&self, launch: &Launch) -> [Option<Ahead>; 2] {
        let mut found = launch.fresh.iter().filter_map(|&(slot, n)| {
            let from = match self.inputs.get(n) {
                Some(Loan::Lent(from)) => *from,
                Some(Loan::Nothing | Loan::Shared(_) | Loan::Copied(_)) | None => return None,
            };
            let bytes = self.model.formulas().bytes(&self.values, slot).filter(|bytes| READ_AHEAD.contains(bytes))?;
            Some(Ahead { from, bytes })
        });
        [found.next(), found.next()]
    }
}
