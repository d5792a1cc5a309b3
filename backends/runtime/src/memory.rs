//! Aligned buffers under a budget.
//!
//! Invariant: every byte of model memory is charged to a [`Budget`] *before* it is allocated and
//! given back when it is dropped, so a run that would exceed its limit fails with an error that
//! states both numbers instead of being killed by the system. A failed allocation is an error,
//! never an abort.

use std::alloc::{self, Layout};
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::MmapMut;

/// Alignment in bytes of every buffer: one cache line, and the widest vector any kernel loads.
pub const ALIGNMENT: usize = 64;

/// From this size on a buffer is mapped directly. The system hands out zeroed pages on first
/// touch, so a large arena costs nothing until it is used; `alloc_zeroed` would write all of it,
/// because an over-aligned request cannot use `calloc`.
const MAPPED_FROM_BYTES: usize = 64 * 1024;

/// Why memory was not handed out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The request would exceed the limit.
    #[error("{what} needs {needed} bytes, but only {available} of the memory limit of {limit} bytes are left")]
    OverBudget {
        /// What the memory was for.
        what: String,
        /// Requested size in bytes.
        needed: u64,
        /// Bytes of the limit that are not in use.
        available: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// The request was within the limit, but the system refused it.
    #[error("{what} needs {needed} bytes, which the system did not provide")]
    OutOfMemory {
        /// What the memory was for.
        what: String,
        /// Requested size in bytes.
        needed: u64,
    },
}

impl MemoryError {
    /// True if the caller's limit was reached, as opposed to the machine's.
    pub fn is_limit(&self) -> bool {
        matches!(self, Self::OverBudget { .. })
    }
}

#[derive(Debug)]
struct Account {
    limit: u64,
    used: AtomicU64,
    peak: AtomicU64,
}

/// A shared limit on bytes in use. Clones share one account.
#[derive(Debug, Clone)]
pub struct Budget(Arc<Account>);

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Account { limit, used: AtomicU64::new(0), peak: AtomicU64::new(0) }))
    }

    /// A budget that refuses nothing but still counts.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// The limit in bytes.
    pub fn limit(&self) -> u64 {
        self.0.limit
    }

    /// Bytes charged at this moment.
    pub fn used(&self) -> u64 {
        self.0.used.load(Ordering::Relaxed)
    }

    /// The most bytes that were ever charged at once.
    pub fn peak(&self) -> u64 {
        self.0.peak.load(Ordering::Relaxed)
    }

    /// Charges `bytes` for `what` without allocating: for memory that lives elsewhere, such as
    /// mapped weights.
    ///
    /// # Errors
    /// [`MemoryError::OverBudget`] if the limit would be exceeded; nothing is charged then.
    pub fn reserve(&self, bytes: u64, what: &str) -> Result<Reservation, MemoryError> {
        let account = &self.0;
        let charged = account.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
            used.checked_add(bytes).filter(|total| *total <= account.limit)
        });
        match charged {
            Ok(before) => {
                account.peak.fetch_max(before + bytes, Ordering::Relaxed);
                Ok(Reservation { budget: self.clone(), bytes })
            }
            Err(used) => Err(MemoryError::OverBudget {
                what: what.to_string(),
                needed: bytes,
                available: account.limit.saturating_sub(used),
                limit: account.limit,
            }),
        }
    }
}

/// A charge against a [`Budget`], given back on drop.
#[derive(Debug)]
pub struct Reservation {
    budget: Budget,
    bytes: u64,
}

impl Reservation {
    /// The charge in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.budget.0.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

enum Storage {
    /// No bytes; the pointer is dangling but aligned.
    Empty,
    Heap(NonNull<u8>, Layout),
    Mapped(MmapMut),
}

/// A zero-initialised byte buffer that starts on an [`ALIGNMENT`] boundary.
pub struct Buffer {
    storage: Storage,
    bytes: usize,
    _charge: Reservation,
}

// SAFETY: the buffer owns its memory exclusively and hands out access by the usual borrow rules;
// nothing in it is tied to the thread that made it.
unsafe impl Send for Buffer {}
// SAFETY: shared access is read-only (`&self` gives only `&[u8]` and a const pointer).
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates `bytes` zero bytes for `what`, which names the purpose in errors.
    ///
    /// # Errors
    /// [`MemoryError::OverBudget`] before anything is allocated if `budget` does not allow it,
    /// [`MemoryError::OutOfMemory`] if the system refuses.
    pub fn zeroed(budget: &Budget, bytes: u64, what: &str) -> Result<Self, MemoryError> {
        let charge = budget.reserve(bytes, what)?;
        let refused = || MemoryError::OutOfMemory { what: what.to_string(), needed: bytes };
        let size = usize::try_from(bytes).map_err(|_| refused())?;
        let storage = if size == 0 {
            Storage::Empty
        } else if size < MAPPED_FROM_BYTES {
            let layout = Layout::from_size_align(size, ALIGNMENT).map_err(|_| refused())?;
            // SAFETY: the layout's size is not zero.
            let pointer = unsafe { alloc::alloc_zeroed(layout) };
            Storage::Heap(NonNull::new(pointer).ok_or_else(refused)?, layout)
        } else {
            // A length beyond what the platform can map is refused here rather than by memmap2,
            // which is free to panic on it.
            if isize::try_from(size).is_err() {
                return Err(refused());
            }
            Storage::Mapped(MmapMut::map_anon(size).map_err(|_| refused())?)
        };
        Ok(Self { storage, bytes: size, _charge: charge })
    }

    /// Allocates a buffer that holds a copy of `source`.
    ///
    /// # Errors
    /// As [`Buffer::zeroed`].
    pub fn copy_of(budget: &Budget, source: &[u8], what: &str) -> Result<Self, MemoryError> {
        let mut buffer = Self::zeroed(budget, source.len() as u64, what)?;
        buffer.as_mut_slice().copy_from_slice(source);
        Ok(buffer)
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// True if the buffer has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The first byte; aligned to [`ALIGNMENT`], dangling if the buffer is empty.
    pub fn as_ptr(&self) -> *const u8 {
        match &self.storage {
            Storage::Empty => std::ptr::without_provenance(ALIGNMENT),
            Storage::Heap(pointer, _) => pointer.as_ptr(),
            Storage::Mapped(map) => map.as_ptr(),
        }
    }

    /// The first byte, for writing; aligned to [`ALIGNMENT`], dangling if the buffer is empty.
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        match &mut self.storage {
            Storage::Empty => std::ptr::without_provenance_mut(ALIGNMENT),
            Storage::Heap(pointer, _) => pointer.as_ptr(),
            Storage::Mapped(map) => map.as_mut_ptr(),
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        // SAFETY: the pointer is valid for `bytes` initialised bytes while `self` is borrowed,
        // and non-null and aligned even when there are none.
        unsafe { std::slice::from_raw_parts(self.as_ptr(), self.bytes) }
    }

    /// The bytes, for writing.
    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr(), self.bytes) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.storage {
            // SAFETY: the pointer came from `alloc_zeroed` with this very layout and is freed once.
            Storage::Heap(pointer, layout) => unsafe {
                alloc::dealloc(pointer.as_ptr(), *layout);
            },
            Storage::Empty | Storage::Mapped(_) => {}
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_zeroed_and_charged() {
        let budget = Budget::new(10 << 20);
        for bytes in [0usize, 1, 63, 64, 65, 4096, MAPPED_FROM_BYTES - 1, MAPPED_FROM_BYTES, 3 << 20] {
            let mut buffer = Buffer::zeroed(&budget, bytes as u64, "a test").unwrap();
            assert_eq!(buffer.as_ptr() as usize % ALIGNMENT, 0);
            assert_eq!(buffer.len(), bytes);
            assert_eq!(buffer.is_empty(), bytes == 0);
            assert_eq!(budget.used(), bytes as u64);
            assert!(buffer.as_slice().iter().all(|byte| *byte == 0));
            buffer.as_mut_slice().fill(7);
            assert_eq!(buffer.as_slice().last().copied(), (bytes > 0).then_some(7));
        }
        assert_eq!(budget.used(), 0);
        assert_eq!(budget.peak(), 3 << 20);
    }

    #[test]
    fn the_limit_is_checked_before_allocating() {
        let budget = Budget::new(1000);
        let held = Buffer::zeroed(&budget, 600, "the arena").unwrap();
        let error = Buffer::zeroed(&budget, 401, "an output").unwrap_err();
        assert_eq!(
            error.to_string(),
            "an output needs 401 bytes, but only 400 of the memory limit of 1000 bytes are left"
        );
        assert!(error.is_limit());
        drop(held);
        Buffer::zeroed(&budget, 1000, "an output").unwrap();
        // A size that overflows the account is refused like any other.
        assert!(Buffer::zeroed(&budget, u64::MAX, "an output").is_err());
    }

    #[test]
    fn what_the_system_refuses_is_an_error() {
        let budget = Budget::unlimited();
        for bytes in [u64::MAX, u64::MAX / 2, 1 << 60] {
            let error = Buffer::zeroed(&budget, bytes, "a huge tensor").unwrap_err();
            assert!(!error.is_limit(), "{error}");
        }
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn concurrent_charges_never_pass_the_limit() {
        let budget = Budget::new(100);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        if let Ok(held) = budget.reserve(40, "a tensor") {
                            assert!(budget.used() <= 100);
                            drop(held);
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used(), 0);
        assert!(budget.peak() <= 100 && budget.peak() >= 40);
    }
}
