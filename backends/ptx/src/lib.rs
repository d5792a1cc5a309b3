//! Warp programs to PTX text.
//!
//! Invariant: this crate translates and decides nothing: each statement of a warp program becomes the instructions that
//! mean it, in its order, and the text depends on the program only. It needs no CUDA and no GPU. `%f12` in the text is
//! value `%12` of the program.
//!
//! The text is a complete module with one kernel, for the oldest PTX version and GPU that have the instructions:
//! version 7.1 (for `cvt` of bf16), `sm_80`. Drivers for later GPUs take it too. A kernel with products of four warps is for
//! version 8.0 and `sm_90a` alone, one with floats of 8 bits for version 8.4 (for `mma` of them) and `sm_89`.

mod arith;
mod bulk;
pub mod emulate;
mod memory;
mod module;
mod writer;

use kiln_ir::DType;
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::warp::{Map, VerifyError, WarpProgram};
use std::fmt;

/// The PTX version of the text.
pub const VERSION: &str = "7.1";

/// The GPU that the text is for; it runs on this and every later one.
pub const TARGET: &str = "sm_80";

/// The PTX version of the text of a kernel with products of four warps.
pub const BULK_VERSION: &str = "8.0";

/// The GPU that such a text is for, and no other.
pub const BULK_TARGET: &str = "sm_90a";

/// The PTX version of the text of a kernel that converts or multiplies floats of 8 bits.
pub const FLOAT8_VERSION: &str = "8.4";

/// The GPU that such a text is for; it runs on this and every later one.
pub const FLOAT8_TARGET: &str = "sm_89";

/// Most bytes of shared memory that a kernel can have without asking the driver for more.
pub const STATIC_SHARED: usize = 48 << 10;

/// No PTX text could be made of a warp program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EmitError {
    /// The program breaks rules.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<VerifyError>),
    /// An offset that no address can hold.
    #[error("warp program @{program}: the offset {offset} of an address does not fit 31 bits in bytes")]
    Offset {
        /// Name of the program.
        program: String,
        /// The offset in elements.
        offset: i64,
    },
}

/// A kernel as text, with how to start it.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// The PTX text.
    pub text: String,
    /// How to start it.
    pub launch: Launch,
}

/// How to start a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// Name of the entry point.
    pub entry: String,
    /// Blocks, in the first dimension of the grid; over the dims among the arguments. Nothing is to be started where it is
    /// not above 0.
    pub blocks: Expr,
    /// Threads of each block.
    pub threads: u32,
    /// Bytes of dynamic shared memory to ask for; where it is not 0 the kernel's limit has to be raised to it first.
    pub dynamic_shared: usize,
    /// Arguments, in order.
    pub arguments: Vec<Argument>,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub enum Argument {
    /// A device pointer, aligned to [`kiln_ir::warp::BUFFER_ALIGNMENT`] bytes.
    Buffer {
        /// Name for people.
        name: String,
        /// Element type.
        dtype: DType,
        /// Elements, over the dims.
        len: Expr,
        /// Whether the kernel stores to it.
        written: bool,
    },
    /// A dim as a 64-bit integer.
    Dim(Symbol),
    /// A pointer to a u32 that is 0; afterwards it holds the greatest status of a check that failed.
    Status,
    /// A tensor map of 128 bytes, with the swizzle of 128 bytes, over a buffer among the arguments.
    Map(Map),
}

impl fmt::Display for Launch {
    /// The launch as JSON; expressions are strings.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Launch { entry, blocks, threads, dynamic_shared, arguments } = self;
        writeln!(f, "{{")?;
        writeln!(f, "  \"entry\": \"{entry}\",")?;
        writeln!(f, "  \"blocks\": \"{blocks}\",")?;
        writeln!(f, "  \"threads\": {threads},")?;
        writeln!(f, "  \"dynamic_shared\": {dynamic_shared},")?;
        writeln!(f, "  \"arguments\": [")?;
        for (i, argument) in arguments.iter().enumerate() {
            match argument {
                Argument::Buffer { name, dtype, len, written } => {
                    write!(f, "    {{ \"buffer\": \"{name}\", \"dtype\": \"{dtype}\", \"len\": \"{len}\", ")?;
                    write!(f, "\"written\": {written} }}")?;
                }
                Argument::Dim(symbol) => write!(f, "    {{ \"dim\": \"{symbol}\" }}")?,
                Argument::Status => write!(f, "    {{ \"status\": \"u32\" }}")?,
                Argument::Map(map) => write!(f, "    {{ \"map\": \"{map}\" }}")?,
            }
            writeln!(f, "{}", if i + 1 < arguments.len() { "," } else { "" })?;
        }
        writeln!(f, "  ]")?;
        writeln!(f, "}}")
    }
}

/// Translates a warp program.
///
/// # Errors
/// The program does not verify, or has an address that PTX cannot hold.
pub fn emit(program: &WarpProgram) -> Result<Module, EmitError> {
    program.verify().map_err(EmitError::Invalid)?;
    module::Emitter::new(program).module()
}
