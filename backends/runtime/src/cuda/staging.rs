//! Memory of the host from which the GPU copies by itself.
//!
//! Invariant: it is written only after the stream was waited for, so no copy that is under way reads what changes. Where the
//! driver has no pinned memory to give, it is ordinary memory, which the driver copies before a call returns: slower, no less right.

use super::Device;
use cudarc::driver::{CudaContext, result};
use std::ptr::NonNull;
use std::sync::Arc;

/// Memory of a model's inputs, and of its outputs.
pub(super) enum Staging {
    /// From which the GPU copies by itself.
    Pinned(Pinned),
    /// From which the driver copies.
    Ordinary(Vec<u8>),
}

impl Staging {
    /// So many bytes, which are zero.
    pub fn new(device: &Device, len: usize) -> Staging {
        Pinned::new(device, len).map_or_else(|| Staging::Ordinary(vec![0; len]), Staging::Pinned)
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        match self {
            Staging::Pinned(pinned) => pinned.bytes(),
            Staging::Ordinary(bytes) => bytes,
        }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Staging::Pinned(pinned) => pinned.bytes_mut(),
            Staging::Ordinary(bytes) => bytes,
        }
    }
}

/// Memory that the driver pinned.
pub(super) struct Pinned {
    memory: NonNull<u8>,
    len: usize,
    /// Memory is freed in the context in which it was allocated.
    _context: Arc<CudaContext>,
}

// SAFETY: the memory is owned by this value alone, and the driver's functions may be called from any thread.
unsafe impl Send for Pinned {}

impl Pinned {
    /// So many bytes, which are zero, if the driver has them.
    fn new(device: &Device, len: usize) -> Option<Pinned> {
        // SAFETY: all bytes are written before anything reads them, by the next statement.
        let memory = unsafe { result::malloc_host(len.max(1), 0) }.ok()?;
        let memory = NonNull::new(memory.cast::<u8>())?;
        // SAFETY: the driver has just given so many bytes.
        unsafe { memory.write_bytes(0, len.max(1)) };
        Some(Pinned { memory, len, _context: Arc::clone(&device.context) })
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: the memory has so many bytes, all of which were written.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: the memory came from the driver's function, and nobody has it any more. A failure leaves it to the
        // end of the process.
        _ = unsafe { result::free_host(self.memory.as_ptr().cast()) };
    }
}
