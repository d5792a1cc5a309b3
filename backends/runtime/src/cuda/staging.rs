//! Memory of the host from which the GPU copies by itself.
//!
//! Invariant: it is written only after the stream was waited for, so no copy that is under way reads what changes.

use super::{CudaError, Device, meaning};
use cudarc::driver::{CudaContext, result};
use std::ptr::NonNull;
use std::sync::Arc;

/// Pinned memory of a model's inputs, and of its outputs.
pub(super) struct Staging {
    memory: NonNull<u8>,
    len: usize,
    /// Memory is freed in the context in which it was allocated.
    _context: Arc<CudaContext>,
}

// SAFETY: the memory is owned by this value alone, and the driver's functions may be called from any thread.
unsafe impl Send for Staging {}

impl Staging {
    /// So many bytes, which are zero.
    pub fn new(device: &Device, len: usize) -> Result<Staging, CudaError> {
        let fails = |what: String| CudaError::Driver { doing: "allocates pinned memory", what };
        // SAFETY: all bytes are written before anything reads them, by the next statement.
        let memory = unsafe { result::malloc_host(len.max(1), 0) }.map_err(|e| fails(meaning(e)))?;
        let memory = NonNull::new(memory.cast::<u8>()).ok_or_else(|| fails("there is none".into()))?;
        // SAFETY: the driver has just given so many bytes.
        unsafe { memory.write_bytes(0, len.max(1)) };
        Ok(Staging { memory, len, _context: Arc::clone(&device.context) })
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory has so many bytes, all of which were written.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }

    /// The bytes, to be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; the borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: the memory came from the driver's function, and nobody has it any more. A failure leaves it to the
        // end of the process.
        _ = unsafe { result::free_host(self.memory.as_ptr().cast()) };
    }
}
