//! Lowering of tile programs to vector programs.
//!
//! Invariant: the vector program computes what the tile program means (see [`kiln_ir::tile`]), floating-point sums
//! and products of `reduce` grouped otherwise and transcendental functions within the bounds that [`math`] states,
//! and reads nothing outside the buffers. Elements are computed where they are first needed, so
//! that few registers are live; a load from a buffer that the kernel also stores to happens where it stands. So two
//! buffers may share memory only if no program stores an element before it has read it for the last time in a
//! statement up to that store.
//!
//! - [`layout`] decides which axis of each tile becomes the lanes of vectors;
//! - [`tiles`] computes tiles, one register at a time, on demand; [`memory`] their loads and stores;
//! - [`address`] turns index expressions into i64 code, each part in the outermost loop where it is known;
//! - [`ahead`] asks for what is read behind a fold; [`waiting`] loads local memory as late as it may;
//! - [`half`] is how f16 and bf16, which are f32 in registers, are in memory;
//! - [`multiply`] are products by a unit for matrices;
//! - [`ops`] are the elementwise operations, [`math`] the functions that no target has as an instruction.

mod address;
mod ahead;
mod build;
mod half;
mod layout;
pub mod math;
mod memory;
mod multiply;
mod ops;
mod stmts;
mod tiles;
mod waiting;

#[cfg(test)]
mod tests;

use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::tile::TileProgram;
use kiln_ir::vector::VectorProgram;
use kiln_ir::{Class, DType, tile};

/// What the vector program is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorTarget {
    /// Bytes of a vector: 16, 32 or 64.
    pub bytes: u32,
    /// Whether pairs of bf16 are made and multiplied by one instruction; else by plain arithmetic.
    pub pairs: bool,
    /// Whether there are matrix registers.
    pub matrices: bool,
    /// Whether [`kiln_ir::vector::Op::Fma`] rounds once.
    pub fused: bool,
}

/// A tile program cannot be lowered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LowerError {
    /// Vector programs have no such operation or type.
    #[error("kernel @{kernel}: {what} cannot be vector code")]
    Unsupported {
        /// Name of the program.
        kernel: String,
        /// The operation and type, such as `sin of f64`.
        what: String,
    },
    /// The tiles are too large to be unrolled.
    #[error("kernel @{kernel}: its tiles are too large to be unrolled into registers")]
    TooLarge {
        /// Name of the program.
        kernel: String,
    },
    /// The tile program breaks rules.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<tile::VerifyError>),
}

/// Lowers a tile program for a target. The vector program's run-time dims are `dims`, in that order; `ranges` may
/// bound them, a dim without bounds is at least 0. Programs keep their numbers.
///
/// # Errors
/// The program does not verify, uses types that vector programs do not compute with (floats narrower than 16 bits,
/// integers narrower than a byte) or functions that [`math`] does not have for the type, or is too large.
pub fn lower(
    program: &TileProgram,
    target: VectorTarget,
    dims: &[Symbol],
    ranges: &Ranges,
) -> Result<VectorProgram, LowerError> {
    let bounds = |d: &Symbol| ranges.get(d).copied().unwrap_or((0, i64::MAX));
    let ranges: Ranges = dims.iter().map(|d| (d.clone(), bounds(d))).collect();
    program.verify(&ranges).map_err(LowerError::Invalid)?;
    let unsupported = |what: String| LowerError::Unsupported { kernel: program.name.clone(), what };
    for buffer in &program.buffers {
        if !computable(buffer.dtype) {
            return Err(unsupported(format!("buffer `{}` of {}", buffer.name, buffer.dtype)));
        }
    }
    for (_, ty) in program.tiles.iter() {
        if !computable(ty.dtype) {
            return Err(unsupported(format!("a tile of {}", ty.dtype)));
        }
    }
    let mut lowering = tiles::Lowering::new(program, layout::choose(program, target.bytes), target, dims, ranges);
    lowering.parts()?;
    let (values, body) = lowering.builder.finish();
    let locals = program.buffers.iter().filter(|b| b.local);
    Ok(VectorProgram {
        name: program.name.clone(),
        buffers: program.arguments().map(|b| (half::in_memory(b.dtype, target.bytes), b.written)).collect(),
        locals: locals.map(|b| (b.dtype, b.len.as_size().unwrap_or(0))).collect(),
        dims: dims.len(),
        values,
        body,
    })
}

/// Whether vector programs compute with the type.
fn computable(dtype: DType) -> bool {
    match dtype.class() {
        Class::Bool | Class::Double => true,
        Class::Signed | Class::Unsigned => dtype.bits() >= 8,
        Class::Float => dtype == DType::F32 || dtype.is_half(),
        Class::Complex | Class::Str => false,
    }
}
