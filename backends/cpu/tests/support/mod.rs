//! Runs compiled programs beside the interpreter.
//!
//! Invariant: [`check`] compiles for every target and level, runs what this machine can run, and compares every
//! byte of every buffer and the status with the interpreter; NaNs are equal to one another.

use kiln_cpu::{MachineCode, OptLevel, Target};
use kiln_ir::vector::{self, VectorProgram};
use kiln_ir::{Class, DType};

pub const DTYPES: [DType; 11] = [
    DType::Bool,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U16,
    DType::U32,
    DType::U64,
    DType::F32,
    DType::F64,
];

/// Whether this machine runs code for a target.
pub fn runs_here(target: Target) -> bool {
    match target {
        #[cfg(target_arch = "x86_64")]
        Target::X86_64 => is_x86_feature_detected!("sse4.2") && is_x86_feature_detected!("popcnt"),
        #[cfg(target_arch = "x86_64")]
        Target::X86_64V3 => {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("bmi1")
                && is_x86_feature_detected!("bmi2")
                && is_x86_feature_detected!("lzcnt")
        }
        #[cfg(target_arch = "aarch64")]
        Target::Aarch64 => true,
        _ => false,
    }
}

type Kernel = unsafe extern "C" fn(*const *mut u8, *const i64, i64, i64, *mut u8) -> u32;

/// Machine code in executable pages.
pub struct Loaded(memmap2::Mmap);

impl Loaded {
    pub fn new(code: &MachineCode) -> Loaded {
        let mut pages = memmap2::MmapMut::map_anon(code.bytes.len()).unwrap();
        pages.copy_from_slice(&code.bytes);
        Loaded(pages.make_exec().unwrap())
    }

    /// Runs the kernel.
    ///
    /// # Safety
    /// The code is for this machine, and reaches outside no buffer with these arguments.
    pub unsafe fn run(&self, buffers: &mut [&mut [u8]], dims: &[i64], lo: i64, hi: i64) -> u32 {
        let args: Vec<*mut u8> = buffers.iter_mut().map(|b| b.as_mut_ptr()).collect();
        // SAFETY: the pages hold a kernel with this signature from their first byte; the caller vouches for the rest.
        unsafe {
            let kernel = std::mem::transmute::<*const u8, Kernel>(self.0.as_ptr());
            kernel(args.as_ptr(), dims.as_ptr(), lo, hi, std::ptr::null_mut())
        }
    }
}

fn is_nan(dtype: DType, bytes: &[u8]) -> bool {
    match dtype.class() {
        Class::Float => f32::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        Class::Double => f64::from_le_bytes(bytes.try_into().unwrap()).is_nan(),
        _ => false,
    }
}

pub fn check(program: &VectorProgram, buffers: &[Vec<u8>], dims: &[i64], lo: i64, hi: i64) {
    let views = |buffers: &mut [Vec<u8>], f: &mut dyn FnMut(&mut [&mut [u8]]) -> u32| {
        let mut views: Vec<&mut [u8]> = buffers.iter_mut().map(Vec::as_mut_slice).collect();
        f(&mut views)
    };
    for target in Target::ALL {
        let mut want = buffers.to_vec();
        let want_status = views(&mut want, &mut |b| {
            vector::run(program, b, dims, lo, hi, target.fused()).unwrap_or_else(|e| panic!("{e}\n{program}"))
        });
        for level in [OptLevel::None, OptLevel::Speed] {
            let code = kiln_cpu::compile_at(program, target, level)
                .unwrap_or_else(|e| panic!("{target:?} {level:?}: {e}\n{program}"));
            if !runs_here(target) {
                continue;
            }
            let loaded = Loaded::new(&code);
            let mut got = buffers.to_vec();
            // SAFETY: the target runs here, and the interpreter saw no access outside a buffer.
            let status = views(&mut got, &mut |b| unsafe { loaded.run(b, dims, lo, hi) });
            assert_eq!(status, want_status, "{target:?} {level:?}: the status\n{program}");
            for (i, (dtype, _)) in program.buffers.iter().enumerate() {
                let size = dtype.size();
                for (e, (got, want)) in got[i].chunks(size).zip(want[i].chunks(size)).enumerate() {
                    if got != want && !(is_nan(*dtype, got) && is_nan(*dtype, want)) {
                        let before = buffers.iter().map(|b| b.get(e * size..(e + 1) * size)).collect::<Vec<_>>();
                        panic!(
                            "{target:?} {level:?}: b{i}[{e}] is {got:02x?}, wants {want:02x?}; there before, in every \
                             buffer: {before:02x?}\n{program}"
                        );
                    }
                }
            }
        }
    }
}

/// Values near the edges of a type, as the bytes of its elements.
pub fn interesting(dtype: DType) -> Vec<Vec<u8>> {
    let ints: &[i64] = &[0, 1, -1, 2, -2, 3, 7, 8, 15, 16, 31, 32, 63, 64, -7, 100, 255, 65_537];
    match dtype {
        DType::Bool => vec![vec![0], vec![1], vec![255]],
        DType::F32 => [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            1.5,
            2.5,
            -2.5,
            3.7,
            -3.7,
            127.9,
            255.5,
            -129.0,
            40000.0,
            2147483600.0,
            2147483648.0,
            -2147483648.0,
            4294967296.0,
            9.3e18,
            -9.3e18,
            1.9e19,
            3e38,
            -3e38,
            1e-40,
            -1e-40,
            f32::MIN_POSITIVE,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            -f32::NAN,
            f32::from_bits(0x7f80_0001),
            8388609.0,
        ]
        .iter()
        .map(|x: &f32| x.to_le_bytes().to_vec())
        .collect(),
        DType::F64 => [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            -0.5,
            1.5,
            2.5,
            -2.5,
            3.7,
            -3.7,
            127.9,
            255.5,
            -129.0,
            2147483647.5,
            -2147483648.5,
            4294967295.5,
            4294967296.0,
            9.3e18,
            -9.3e18,
            1.9e19,
            1e300,
            -1e300,
            1e-320,
            16777217.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            f64::from_bits(0xfff0_0000_0000_0001),
            4503599627370497.5,
        ]
        .iter()
        .map(|x: &f64| x.to_le_bytes().to_vec())
        .collect(),
        _ => {
            let (lo, hi) = dtype.int_range().unwrap();
            let mut all: Vec<i64> = ints.to_vec();
            all.extend([lo as i64, lo as i64 + 1, hi as i64, hi as i64 - 1, hi as i64 / 2, hi as i64 / 3]);
            all.extend([0x0100_0001, 0x0040_0000_1000_0001, 0x7fff_ffbf_ffff_fffe]);
            all.iter().map(|x| x.to_le_bytes()[..dtype.size()].to_vec()).collect()
        }
    }
}
