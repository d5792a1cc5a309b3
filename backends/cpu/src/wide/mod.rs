//! Vector programs of 32 and 64 bytes to machine code for x86-64-v3 and x86-64-v4.
//!
//! Invariant: as that of the crate: the result is a leaf function without relocations that computes what
//! [`kiln_ir::vector::run`] computes with fused multiply-add. Operations keep the order of the program, but for
//! loads, which happen at their first use if nothing is stored and no loop begins in between, and for stores of bytes that go to memory
//! together.
//!
//! - [`emit`] walks the program: control flow, constants, operands;
//! - [`scalar`] integers in general registers, [`lanes`] floats and vectors, [`bytes`] dot products of bytes, [`pairs`] those of bf16, [`convert`] casts,
//!   [`saturate`] floats that are stored as bytes, [`shuffle`] what moves lanes, [`memory`] loads and stores, [`matrix`] the matrix registers;
//! - [`machine`] is what they make: instructions with virtual registers; [`encode`] gives them registers and bytes.

mod bytes;
mod codes;
mod convert;
mod emit;
mod encode;
mod folds;
mod half;
mod lanes;
mod machine;
mod matrix;
mod memory;
mod pairs;
mod saturate;
mod scalar;
mod shuffle;

use crate::{Error, MachineCode};
use kiln_ir::vector::VectorProgram;

/// The instruction set of wide code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WideLevel {
    /// x86-64-v3: AVX2, FMA, BMI1 and BMI2; vectors up to 32 bytes, 16 registers.
    Avx2,
    /// AVX-VNNI besides: four products of bytes and their sum in one instruction.
    Avx2Vnni,
    /// x86-64-v4: [`WideLevel::Avx2`] and AVX-512 F, BW, VL and DQ; vectors up to 64 bytes, 32 registers, masks in their own.
    Avx512,
    /// AVX-512 VNNI besides: four products of bytes and their sum in one instruction.
    Avx512Vnni,
    /// AVX-512 BF16 besides: two products of bf16 and their sum in one instruction.
    Avx512Bf16,
    /// AMX besides: matrix registers, and products of them, for int8 and bf16.
    Amx,
}

impl WideLevel {
    /// Every level.
    pub const ALL: [WideLevel; 6] = [
        WideLevel::Avx2,
        WideLevel::Avx2Vnni,
        WideLevel::Avx512,
        WideLevel::Avx512Vnni,
        WideLevel::Avx512Bf16,
        WideLevel::Amx,
    ];

    /// Whether it has AVX-512: 32 vector registers and mask registers.
    pub(crate) fn has_masks(self) -> bool {
        match self {
            WideLevel::Avx2 | WideLevel::Avx2Vnni => false,
            WideLevel::Avx512 | WideLevel::Avx512Vnni | WideLevel::Avx512Bf16 | WideLevel::Amx => true,
        }
    }

    /// Bytes of its widest vectors.
    pub fn bytes(self) -> u32 {
        if self.has_masks() { 64 } else { 32 }
    }

    /// Whether a dot product of bytes is one instruction.
    pub(crate) fn has_dots(self) -> bool {
        matches!(self, WideLevel::Avx2Vnni | WideLevel::Avx512Vnni | WideLevel::Avx512Bf16 | WideLevel::Amx)
    }

    /// Whether pairs of bf16 are made and multiplied by one instruction; programs for other levels hold none.
    pub fn has_pairs(self) -> bool {
        matches!(self, WideLevel::Avx512Bf16 | WideLevel::Amx)
    }

    /// Whether there are matrix registers; programs for other levels use none.
    pub fn has_matrices(self) -> bool {
        self == WideLevel::Amx
    }
}

/// Compiles a program, which may hold vectors of any size up to that of the level.
///
/// # Errors
/// The program does not verify, or holds an operation that the emitter does not have for the type; then
/// [`crate::compile`] may have it for 16-byte vectors.
pub fn compile(program: &VectorProgram, level: WideLevel) -> Result<MachineCode, Error> {
    program.verify().map_err(Error::Invalid)?;
    let (machine, pool) = emit::function(program, level)?;
    let bytes = encode::encode(&machine, &pool, level)
        .map_err(|message| Error::Codegen { program: program.name.clone(), message })?;
    Ok(MachineCode { bytes, alignment: 64 })
}
