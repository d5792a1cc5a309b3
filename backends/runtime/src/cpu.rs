//! The CPU levels that code is compiled for, and which of them this machine runs.
//!
//! Invariant: a level is reported as supported only if the CPU has all of its instructions *and*
//! the operating system lets this process use them, so code of a supported level never raises an
//! illegal-instruction signal. Levels are ordered by how fast their code is; a machine that supports one supports those that it builds
//! on, which are all below but for [`CpuLevel::X86_64V3Vnni`]: processors with AVX-512 have its dot products in another form.

use std::fmt;
use std::str::FromStr;

/// A set of instructions that kernels may assume, from the least to the most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CpuLevel {
    /// 128-bit vectors: x86-64-v2 (SSSE3, SSE4.1, SSE4.2) on x86-64, the base ISA on aarch64.
    /// No fused multiply-add on x86-64.
    Portable,
    /// 256-bit vectors: AVX2, FMA, F16C, BMI1, BMI2, LZCNT, MOVBE.
    X86_64V3,
    /// [`CpuLevel::X86_64V3`] and AVX-VNNI: dot products of bytes. Most processors of PCs since 2021, which have no AVX-512.
    X86_64V3Vnni,
    /// 512-bit vectors: AVX-512 F, BW, CD, DQ, VL.
    X86_64V4,
    /// [`CpuLevel::X86_64V4`] and AVX-512 VNNI: dot products of bytes.
    X86_64V4Vnni,
    /// [`CpuLevel::X86_64V4Vnni`] and AVX-512 BF16: dot products of pairs of bf16.
    X86_64V4Bf16,
    /// [`CpuLevel::X86_64V4Bf16`] and AMX tiles for int8 and bf16.
    X86_64V4Amx,
}

/// A name that is no CPU level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown CPU level `{0}`; the levels are portable, x86-64-v3, x86-64-v3-vnni, x86-64-v4, x86-64-v4-vnni, x86-64-v4-bf16 and x86-64-v4-amx"
)]
pub struct UnknownLevel(pub String);

impl CpuLevel {
    /// All levels in ascending order.
    pub const ALL: [Self; 7] = [
        Self::Portable,
        Self::X86_64V3,
        Self::X86_64V3Vnni,
        Self::X86_64V4,
        Self::X86_64V4Vnni,
        Self::X86_64V4Bf16,
        Self::X86_64V4Amx,
    ];

    /// Whether a dot product of four bytes is one instruction.
    pub fn has_dots(self) -> bool {
        match self {
            Self::Portable | Self::X86_64V3 | Self::X86_64V4 => false,
            Self::X86_64V3Vnni | Self::X86_64V4Vnni | Self::X86_64V4Bf16 | Self::X86_64V4Amx => true,
        }
    }

    /// The level whose instructions it adds its own to.
    fn base(self) -> Option<Self> {
        match self {
            Self::Portable => None,
            Self::X86_64V3 => Some(Self::Portable),
            Self::X86_64V3Vnni | Self::X86_64V4 => Some(Self::X86_64V3),
            Self::X86_64V4Vnni => Some(Self::X86_64V4),
            Self::X86_64V4Bf16 => Some(Self::X86_64V4Vnni),
            Self::X86_64V4Amx => Some(Self::X86_64V4Bf16),
        }
    }

    /// The name used on the command line and in artifacts.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::X86_64V3 => "x86-64-v3",
            Self::X86_64V3Vnni => "x86-64-v3-vnni",
            Self::X86_64V4 => "x86-64-v4",
            Self::X86_64V4Vnni => "x86-64-v4-vnni",
            Self::X86_64V4Bf16 => "x86-64-v4-bf16",
            Self::X86_64V4Amx => "x86-64-v4-amx",
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for CpuLevel {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| UnknownLevel(name.to_string()))
    }
}

/// The levels a machine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// By [`CpuLevel::ALL`].
    has: [bool; CpuLevel::ALL.len()],
}

impl Machine {
    /// Asks this machine. Where the CPU has AMX, this also asks the kernel for permission to use
    /// the tile registers, which holds for the whole process from then on.
    pub fn detect() -> Self {
        Self::with(detect::has)
    }

    /// A machine of which it is known what it has beside a level's base.
    fn with(adds: impl Fn(CpuLevel) -> bool) -> Self {
        let mut machine = Self { has: [false; CpuLevel::ALL.len()] };
        for level in CpuLevel::ALL {
            machine.has[level as usize] = level.base().is_none_or(|base| machine.supports(base)) && adds(level);
        }
        machine
    }

    /// This machine as if it had nothing above `ceiling`: how tests and `--cpu` choose less than
    /// the best.
    pub fn capped(self, ceiling: CpuLevel) -> Self {
        Self::with(|level| level <= ceiling && self.supports(level))
    }

    /// The highest level, if the machine runs any.
    pub fn highest(self) -> Option<CpuLevel> {
        self.levels().last()
    }

    /// Whether code of `level` runs here.
    pub fn supports(self, level: CpuLevel) -> bool {
        self.has[level as usize]
    }

    /// The supported levels in ascending order.
    pub fn levels(self) -> impl Iterator<Item = CpuLevel> {
        CpuLevel::ALL.into_iter().filter(move |level| self.supports(*level))
    }

    /// The best of the `available` levels that runs here.
    pub fn choose(self, available: impl IntoIterator<Item = CpuLevel>) -> Option<CpuLevel> {
        available.into_iter().filter(|level| self.supports(*level)).max()
    }
}

#[cfg(target_arch = "x86_64")]
mod detect {
    use super::CpuLevel;
    use std::arch::is_x86_feature_detected as has_feature;

    /// Whether this machine has what `level` adds to its base.
    pub fn has(level: CpuLevel) -> bool {
        match level {
            CpuLevel::Portable => has_feature!("ssse3") && has_feature!("sse4.1") && has_feature!("sse4.2"),
            // These macros include the check that the system saves the wide registers.
            CpuLevel::X86_64V3 => {
                has_feature!("avx")
                    && has_feature!("avx2")
                    && has_feature!("fma")
                    && has_feature!("f16c")
                    && has_feature!("bmi1")
                    && has_feature!("bmi2")
                    && has_feature!("lzcnt")
                    && has_feature!("movbe")
            }
            CpuLevel::X86_64V3Vnni => has_feature!("avxvnni"),
            CpuLevel::X86_64V4 => {
                has_feature!("avx512f")
                    && has_feature!("avx512bw")
                    && has_feature!("avx512cd")
                    && has_feature!("avx512dq")
                    && has_feature!("avx512vl")
            }
            CpuLevel::X86_64V4Vnni => has_feature!("avx512vnni"),
            CpuLevel::X86_64V4Bf16 => has_feature!("avx512bf16"),
            CpuLevel::X86_64V4Amx => cpu_has_tiles() && system_allows_tiles(),
        }
    }

    /// CPUID's word on AMX, read by hand because the library's feature names for it are unstable.
    /// Leaf 7, EDX: bit 22 AMX-BF16, bit 24 AMX-TILE, bit 25 AMX-INT8 (Intel SDM, vol. 2A, CPUID).
    fn cpu_has_tiles() -> bool {
        use std::arch::x86_64::{__cpuid, __cpuid_count};
        const TILES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES == TILES
    }

    /// Linux enables the tile registers only for a process that asks
    /// (Documentation/arch/x86/xstate.rst). A refusal also covers kernels without support.
    #[cfg(target_os = "linux")]
    fn system_allows_tiles() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: this request takes no pointers and only adds a permission to the process.
        let answer = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) };
        answer == 0
    }

    #[cfg(not(target_os = "linux"))]
    fn system_allows_tiles() -> bool {
        false
    }
}

#[cfg(target_arch = "aarch64")]
mod detect {
    use super::CpuLevel;

    /// The base ISA of aarch64 has all that [`CpuLevel::Portable`] asks for.
    pub fn has(level: CpuLevel) -> bool {
        level == CpuLevel::Portable
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod detect {
    use super::CpuLevel;

    /// No code is emitted for this architecture.
    pub fn has(_level: CpuLevel) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for level in CpuLevel::ALL {
            assert_eq!(level.to_string().parse::<CpuLevel>().unwrap(), level);
        }
        assert!("x86-64-v5".parse::<CpuLevel>().is_err());
        assert!("Portable".parse::<CpuLevel>().is_err());
    }

    #[test]
    fn a_cap_lowers_the_choice_and_never_raises_it() {
        let with = |levels: &[CpuLevel]| Machine::with(|level| levels.contains(&level));
        let all = CpuLevel::ALL;
        let machine = with(&[CpuLevel::Portable, CpuLevel::X86_64V3, CpuLevel::X86_64V4]);
        let levels: Vec<CpuLevel> = machine.levels().collect();
        assert_eq!(
            levels,
            [CpuLevel::Portable, CpuLevel::X86_64V3, CpuLevel::X86_64V4],
            "ascending, up to the highest"
        );
        // Neither without its base, nor one without the other.
        assert_eq!(
            with(&[CpuLevel::Portable, CpuLevel::X86_64V3Vnni, CpuLevel::X86_64V4]).choose(all),
            Some(CpuLevel::Portable)
        );
        let dots = with(&[CpuLevel::Portable, CpuLevel::X86_64V3, CpuLevel::X86_64V3Vnni]);
        assert_eq!(dots.choose(all), Some(CpuLevel::X86_64V3Vnni));
        assert_eq!(dots.choose([CpuLevel::X86_64V3, CpuLevel::X86_64V4]), Some(CpuLevel::X86_64V3));
        assert_eq!(machine.capped(CpuLevel::X86_64V3Vnni).choose(all), Some(CpuLevel::X86_64V3));
        assert_eq!(machine.choose(all), Some(CpuLevel::X86_64V4));
        assert_eq!(machine.capped(CpuLevel::X86_64V4Amx), machine);
        let capped = machine.capped(CpuLevel::Portable);
        assert_eq!(capped.choose(all), Some(CpuLevel::Portable));
        assert_eq!(capped.choose([CpuLevel::X86_64V3]), None);
        let none = with(&[]);
        assert_eq!(none.capped(CpuLevel::X86_64V4Amx).choose(all), None);
    }

    #[test]
    fn this_machine_agrees_with_the_library() {
        let machine = Machine::detect();
        #[cfg(target_arch = "x86_64")]
        {
            assert_eq!(machine.supports(CpuLevel::Portable), std::arch::is_x86_feature_detected!("sse4.2"));
            if machine.supports(CpuLevel::X86_64V3) {
                assert!(std::arch::is_x86_feature_detected!("fma"));
            }
        }
        #[cfg(target_arch = "aarch64")]
        assert_eq!(machine.highest(), Some(CpuLevel::Portable));
        assert_eq!(machine, Machine::detect(), "asking again changes nothing");
    }
}
