//! Executable memory.
//!
//! Invariant: no page is ever writable and executable at once. The machine code is copied into
//! fresh pages, which then lose write access before they gain execute access, and the copy is
//! private, so later changes of the file it came from cannot reach it. A function is handed out
//! only for an offset inside the code.

use memmap2::{Mmap, MmapMut};

/// The calling convention of every kernel: the C convention of the platform.
///
/// - `args`: one pointer per buffer argument, in the order of the plan.
/// - `dims`: the values of the symbols the kernel reads.
/// - `lo..hi`: the programs of the grid to run, in linear order.
/// - `scratch`: the thread's private scratch memory, of the size the plan states.
///
/// Returns 0, or a status that names the rule that the data broke.
pub type KernelFn =
    unsafe extern "C" fn(args: *const *mut u8, dims: *const i64, lo: i64, hi: i64, scratch: *mut u8) -> u32;

/// Why machine code could not be made executable.
#[derive(Debug, thiserror::Error)]
pub enum CodeError {
    /// The system refused the pages, or to make them executable.
    #[error("cannot make {bytes} bytes of machine code executable")]
    Map {
        /// Size of the code in bytes.
        bytes: usize,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A function does not lie in the code.
    #[error("a kernel at offset {offset} with {bytes} bytes is outside the {available} bytes of machine code")]
    Outside {
        /// Start of the function.
        offset: u64,
        /// Size of the function.
        bytes: u64,
        /// Size of the whole code.
        available: u64,
    },
    /// A function does not start where this architecture allows one.
    #[error("a kernel at offset {offset} is not aligned to {alignment} bytes")]
    Misaligned {
        /// Start of the function.
        offset: u64,
        /// Required alignment in bytes.
        alignment: u64,
    },
}

/// Instructions start on multiples of this many bytes.
const INSTRUCTION_ALIGNMENT: u64 = if cfg!(target_arch = "aarch64") { 4 } else { 1 };

/// Machine code that can be called. Unmapped on drop, so whoever holds a [`KernelFn`] from it
/// must keep it alive.
#[derive(Debug)]
pub struct Code {
    /// `None` for empty code: pages cannot be mapped for no bytes.
    pages: Option<Mmap>,
}

impl Code {
    /// Copies `code` into fresh pages and makes them executable.
    ///
    /// # Errors
    /// [`CodeError::Map`] if the system refuses.
    pub fn new(code: &[u8]) -> Result<Self, CodeError> {
        if code.is_empty() {
            return Ok(Self { pages: None });
        }
        let refused = |source| CodeError::Map { bytes: code.len(), source };
        let mut pages = MmapMut::map_anon(code.len()).map_err(refused)?;
        pages.copy_from_slice(code);
        // One `mprotect` from read-write to read-execute.
        let pages = pages.make_exec().map_err(refused)?;
        make_visible(&pages);
        Ok(Self { pages: Some(pages) })
    }

    /// Size of the code in bytes.
    pub fn len(&self) -> usize {
        self.pages.as_ref().map_or(0, |pages| pages.len())
    }

    /// True if there is no code.
    pub fn is_empty(&self) -> bool {
        self.pages.is_none()
    }

    /// The kernel that occupies `offset..offset + bytes`.
    ///
    /// # Safety
    /// A kernel of this machine's architecture and of a supported CPU level must start at
    /// `offset`. The result must not be called after this `Code` is dropped.
    ///
    /// # Errors
    /// [`CodeError::Outside`] or [`CodeError::Misaligned`] if no function can be there.
    pub unsafe fn kernel(&self, offset: u64, bytes: u64) -> Result<KernelFn, CodeError> {
        let available = self.len() as u64;
        let inside = bytes > 0 && offset.checked_add(bytes).is_some_and(|end| end <= available);
        let (Some(pages), true) = (&self.pages, inside) else {
            return Err(CodeError::Outside { offset, bytes, available });
        };
        if !offset.is_multiple_of(INSTRUCTION_ALIGNMENT) {
            return Err(CodeError::Misaligned { offset, alignment: INSTRUCTION_ALIGNMENT });
        }
        // SAFETY: `offset` is inside the mapping, which was just checked, and fits `usize` with it.
        let entry = unsafe { pages.as_ptr().add(offset as usize) };
        // SAFETY: the caller vouches that a kernel with this signature starts here; the pages are
        // executable and outlive every call, again by the caller's word.
        Ok(unsafe { std::mem::transmute::<*const u8, KernelFn>(entry) })
    }
}

/// x86-64 keeps instruction and data caches coherent.
#[cfg(not(target_arch = "aarch64"))]
fn make_visible(_code: &[u8]) {}

/// aarch64 does not: the lines are cleaned to the point of unification and the instruction cache
/// invalidated, as in "Synchronization and coherency issues between data and instruction accesses"
/// (Arm Architecture Reference Manual, B2.4.4). Other threads pass a context synchronisation event
/// on the wake-up or the start that precedes their first call.
#[cfg(target_arch = "aarch64")]
fn make_visible(code: &[u8]) {
    use std::arch::asm;
    let start = code.as_ptr() as usize;
    let end = start + code.len();
    let cache_type: usize;
    // SAFETY: CTR_EL0 is readable from user code on the systems this is built for.
    unsafe { asm!("mrs {}, ctr_el0", out(reg) cache_type, options(nomem, nostack)) };
    let data_line = 4usize << (cache_type >> 16 & 0xf);
    let instruction_line = 4usize << (cache_type & 0xf);
    for line in (start & !(data_line - 1)..end).step_by(data_line) {
        // SAFETY: cleaning a cache line of mapped memory changes no contents.
        unsafe { asm!("dc cvau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: barriers have no other effect.
    unsafe { asm!("dsb ish", options(nostack)) };
    for line in (start & !(instruction_line - 1)..end).step_by(instruction_line) {
        // SAFETY: invalidating a line of the instruction cache changes no contents.
        unsafe { asm!("ic ivau, {}", in(reg) line, options(nostack)) };
    }
    // SAFETY: as above.
    unsafe { asm!("dsb ish", "isb", options(nostack)) };
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `return hi - lo` as a kernel.
    #[cfg(target_arch = "x86_64")]
    const DIFFERENCE: &[u8] = &[
        0x89, 0xc8, // mov eax, ecx
        0x29, 0xd0, // sub eax, edx
        0xc3, // ret
    ];
    #[cfg(target_arch = "aarch64")]
    const DIFFERENCE: &[u8] = &[
        0x60, 0x00, 0x02, 0x4b, // sub w0, w3, w2
        0xc0, 0x03, 0x5f, 0xd6, // ret
    ];

    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn a_kernel_runs_from_its_offset() {
        let mut bytes = vec![0u8; 4096 + 64];
        bytes[4096..4096 + DIFFERENCE.len()].copy_from_slice(DIFFERENCE);
        let code = Code::new(&bytes).unwrap();
        assert_eq!(code.len(), bytes.len());
        // SAFETY: the bytes at 4096 are the kernel above, and `code` lives to the end of the test.
        let status = unsafe {
            let kernel = code.kernel(4096, DIFFERENCE.len() as u64).unwrap();
            kernel(std::ptr::null(), std::ptr::null(), 3, 45, std::ptr::null_mut())
        };
        assert_eq!(status, 42);
    }

    #[test]
    fn functions_outside_the_code_are_refused() {
        let code = Code::new(&[0xc3; 64]).unwrap();
        for (offset, bytes) in [(0, 65), (64, 1), (64, 0), (0, 0), (u64::MAX, 2), (1, u64::MAX)] {
            // SAFETY: nothing is called.
            let answer = unsafe { code.kernel(offset, bytes) };
            assert!(matches!(answer, Err(CodeError::Outside { .. })), "{offset} {bytes}");
        }
        let empty = Code::new(&[]).unwrap();
        assert!(empty.is_empty());
        // SAFETY: nothing is called.
        assert!(unsafe { empty.kernel(0, 1) }.is_err());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn pages_are_never_writable_and_executable() {
        let code = Code::new(&[0xc3; 100]).unwrap();
        let start = code.pages.as_ref().unwrap().as_ptr() as usize;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        // The kernel may have merged the pages with neighbours, so the range is searched.
        let holds_start = |line: &&str| {
            let hex = |text| usize::from_str_radix(text, 16).unwrap();
            let (low, high) = line.split(' ').next().unwrap().split_once('-').unwrap();
            (hex(low)..hex(high)).contains(&start)
        };
        let line = maps.lines().find(holds_start).unwrap();
        assert!(line.contains(" r-xp "), "{line}");
    }
}
