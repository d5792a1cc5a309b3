//! Runs wide code beside the interpreter.
//!
//! Invariant: every buffer ends where a page begins that must not be touched, so that an access beyond it is a
//! fault; bytes of all buffers and the status are compared, NaNs equal to one another.

#![allow(dead_code)]

#[path = "../support/mod.rs"]
mod support;
#[path = "../emulator/tiles.rs"]
pub mod tiles;
#[cfg(target_arch = "x86_64")]
#[path = "../emulator/trap.rs"]
mod trap;

use kiln_cpu::Error;
use kiln_cpu::wide::{self, WideLevel};
use kiln_ir::vector::{self, VectorProgram};
use kiln_ir::{Class, DType};
// Each test program uses what it needs of these.
#[allow(unused_imports)]
pub use support::{DTYPES, Loaded, interesting};

/// Whether this machine has the level; says so where it has not.
pub fn runs_here(level: WideLevel) -> bool {
    #[cfg(target_arch = "x86_64")]
    let has = match level {
        WideLevel::Avx2 | WideLevel::Avx2Vnni => {
            is_x86_feature_detected!("avx2")
                && (level == WideLevel::Avx2 || is_x86_feature_detected!("avxvnni") || answered())
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
        }
        WideLevel::Avx512 | WideLevel::Avx512Vnni | WideLevel::Avx512Bf16 | WideLevel::Amx => {
            (level == WideLevel::Avx512 || is_x86_feature_detected!("avx512vnni"))
                && (level < WideLevel::Avx512Bf16 || is_x86_feature_detected!("avx512bf16"))
                && (level != WideLevel::Amx || allows_matrices() || answered())
                && is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("bmi2")
        }
    };
    #[cfg(not(target_arch = "x86_64"))]
    let has = false;
    if !has {
        eprintln!("SKIPPED: this machine has no {level:?}; its code is compiled but not run");
    }
    has
}

/// Whether the CPU has AMX and the system lets this process use it: see `cpu` in the runtime, which this crate does not know.
#[cfg(target_arch = "x86_64")]
fn allows_matrices() -> bool {
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    let tiles = 1 << 22 | 1 << 24 | 1 << 25;
    let has = __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & tiles == tiles;
    // SAFETY: this request takes no pointers and only adds a permission to the process.
    has && unsafe { libc::syscall(libc::SYS_arch_prctl, 0x1023, 18) == 0 }
}

/// Has what the CPU lacks of AMX and AVX-VNNI done for it.
#[cfg(target_arch = "x86_64")]
fn answered() -> bool {
    trap::install();
    true
}

/// Bytes that end at a page without access.
struct Guarded {
    start: *mut u8,
    size: usize,
    len: usize,
}

impl Guarded {
    fn new(bytes: &[u8]) -> Guarded {
        let page = 4096;
        let size = bytes.len().next_multiple_of(page) + page;
        // SAFETY: a new mapping of whole pages, of which the last is made inaccessible.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let start = libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            assert_eq!(libc::mprotect(start.byte_add(size - page), page, libc::PROT_NONE), 0);
            start.cast::<u8>()
        };
        let mut guarded = Guarded { start, size, len: bytes.len() };
        guarded.bytes().copy_from_slice(bytes);
        guarded
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the `len` bytes before the last page are mapped, and borrowed as long as the slice is.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(self.size - 4096 - self.len), self.len) }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own.
        unsafe { libc::munmap(self.start.cast(), self.size) };
    }
}

fn is_nan(dtype: DType, bytes: &[u8]) -> bool {
    match dtype.class() {
        Class::Float => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        Class::Double => f64::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        _ => false,
    }
}

/// Compiles and compares. The message where the emitter does not support the program.
pub fn check(
    program: &VectorProgram,
    level: WideLevel,
    buffers: &[Vec<u8>],
    dims: &[i64],
    (lo, hi): (i64, i64),
) -> Result<(), String> {
    let code = match wide::compile(program, level) {
        Ok(code) => code,
        Err(Error::Unsupported { message, .. }) => return Err(message),
        Err(e) => panic!("{level:?}: {e}\n{program}"),
    };
    if !runs_here(level) {
        return Ok(());
    }
    let mut want = buffers.to_vec();
    let mut views: Vec<&mut [u8]> = want.iter_mut().map(Vec::as_mut_slice).collect();
    let want_status = vector::run(program, &mut views, dims, lo, hi, true).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let loaded = Loaded::new(&code);
    let mut got: Vec<Guarded> = buffers.iter().map(|b| Guarded::new(b)).collect();
    let mut views: Vec<&mut [u8]> = got.iter_mut().map(Guarded::bytes).collect();
    // SAFETY: the machine has the level, and the interpreter saw no access outside a buffer.
    let status = unsafe { loaded.run(&mut views, dims, lo, hi) };
    assert_eq!(status, want_status, "{level:?}: the status\n{program}");
    for (i, (dtype, _)) in program.buffers.iter().enumerate() {
        let size = dtype.size();
        let got = got[i].bytes();
        for (e, (got, want)) in got.chunks(size).zip(want[i].chunks(size)).enumerate() {
            if got != want && !(is_nan(*dtype, got) && is_nan(*dtype, want)) {
                let before = buffers.iter().map(|b| b.get(e * size..(e + 1) * size)).collect::<Vec<_>>();
                panic!(
                    "{level:?}: b{i}[{e}] is {got:02x?}, wants {want:02x?}; there before, in every buffer: \
                     {before:02x?}\n{program}"
                );
            }
        }
    }
    Ok(())
}

/// The levels with the vector sizes that they have, but for [`WideLevel::Avx512Bf16`], whose code is that of the level below but for
/// pairs of bf16.
pub const SIZES: [(WideLevel, u32); 10] = [
    (WideLevel::Avx2, 16),
    (WideLevel::Avx2, 32),
    (WideLevel::Avx2Vnni, 16),
    (WideLevel::Avx2Vnni, 32),
    (WideLevel::Avx512, 16),
    (WideLevel::Avx512, 32),
    (WideLevel::Avx512, 64),
    (WideLevel::Avx512Vnni, 16),
    (WideLevel::Avx512Vnni, 32),
    (WideLevel::Avx512Vnni, 64),
];
