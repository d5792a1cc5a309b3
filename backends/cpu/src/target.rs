//! What code is made for.
//!
//! Invariant: a target's code uses no instruction beyond those named here.

use cranelift_codegen::isa::OwnedTargetIsa;
use cranelift_codegen::settings::{self, Configurable};

/// An instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// x86-64 with SSSE3, SSE4.1, SSE4.2 and POPCNT (x86-64-v2). No fused multiply-add: see
    /// [`kiln_ir::vector::Op::Fma`].
    X86_64,
    /// x86-64-v3: AVX, AVX2, FMA, BMI1, BMI2 and LZCNT besides. Vectors stay 128 bits wide.
    X86_64V3,
    /// 64-bit Arm with Advanced SIMD.
    Aarch64,
}

/// How much Cranelift rearranges the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OptLevel {
    /// Instructions in the order of the program.
    None,
    /// Common subexpressions merged, invariants moved out of loops, arithmetic moved to its use.
    Speed,
}

impl Target {
    /// Every target.
    pub const ALL: [Target; 3] = [Target::X86_64, Target::X86_64V3, Target::Aarch64];

    /// Whether [`kiln_ir::vector::Op::Fma`] rounds once; the interpreter wants to know it.
    pub fn fused(self) -> bool {
        match self {
            Target::X86_64 => false,
            Target::X86_64V3 | Target::Aarch64 => true,
        }
    }

    pub(crate) fn is_x86(self) -> bool {
        match self {
            Target::X86_64 | Target::X86_64V3 => true,
            Target::Aarch64 => false,
        }
    }

    pub(crate) fn isa(self, level: OptLevel) -> Result<OwnedTargetIsa, String> {
        self.isa_with(level, true)
    }

    /// Without `global_offsets` names that are near are found by distance rather than through a global offset table; the code
    /// is as independent of its position.
    pub(crate) fn isa_with(self, level: OptLevel, global_offsets: bool) -> Result<OwnedTargetIsa, String> {
        let mut flags = settings::builder();
        let mut set = |name: &str, value: &str| flags.set(name, value).map_err(|e| format!("{name}: {e}"));
        set(
            "opt_level",
            match level {
                OptLevel::None => "none",
                OptLevel::Speed => "speed",
            },
        )?;
        set("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" })?;
        // Local memory may be larger than the guard page behind a stack.
        set("enable_probestack", "true")?;
        set("probestack_strategy", "inline")?;
        set("unwind_info", "false")?;
        set("is_pic", if global_offsets { "true" } else { "false" })?;
        let (triple, features): (&str, &[&str]) = match self {
            Target::X86_64 => {
                ("x86_64-unknown-linux", &["has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"])
            }
            Target::X86_64V3 => (
                "x86_64-unknown-linux",
                &[
                    "has_sse3",
                    "has_ssse3",
                    "has_sse41",
                    "has_sse42",
                    "has_popcnt",
                    "has_avx",
                    "has_avx2",
                    "has_fma",
                    "has_bmi1",
                    "has_bmi2",
                    "has_lzcnt",
                ],
            ),
            Target::Aarch64 => ("aarch64-unknown-linux", &[]),
        };
        let mut isa = cranelift_codegen::isa::lookup_by_name(triple).map_err(|e| e.to_string())?;
        for feature in features {
            isa.enable(feature).map_err(|e| format!("{feature}: {e}"))?;
        }
        isa.finish(settings::Flags::new(flags)).map_err(|e| e.to_string())
    }
}
