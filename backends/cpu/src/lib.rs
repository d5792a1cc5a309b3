//! Vector programs to machine code through Cranelift.
//!
//! Invariant: this crate translates and decides nothing about a kernel but its optimisation level. The result is one
//! leaf function without relocations, calls, traps or unwind information, so the same bytes are run at once or kept
//! in an artifact; equal programs give equal bytes. It computes what [`kiln_ir::vector::run`] computes, bit by bit,
//! but for the sign and payload of NaNs, and checks no address.
//!
//! The function has the C calling convention of its platform and the parameters that [`kiln_ir::vector`] states.

mod cast;
mod emit;
mod float;
mod int;
mod lanes;
pub mod library;
mod memory;
mod target;
pub mod wide;

pub use target::{OptLevel, Target};

use cranelift_codegen::Context;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::Function;
use kiln_ir::BinaryOp;
use kiln_ir::vector::{Op, Stmt, VectorProgram, VerifyError};

/// The machine code of one kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineCode {
    /// The function, from its first byte, and the constants it reads, which follow it. Position-independent.
    pub bytes: Vec<u8>,
    /// Where it may start: a multiple of this many bytes, a power of two.
    pub alignment: u32,
}

/// A vector program could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The program breaks rules.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<VerifyError>),
    /// The emitter has no code for a statement; the lowering must not make it for this target.
    #[error("vector program @{program}: `{statement}`: {message}")]
    Unsupported {
        /// Name of the program.
        program: String,
        /// First line of the statement in the text form.
        statement: String,
        /// What is not supported.
        message: String,
    },
    /// Cranelift refused what the emitter made of a valid program: a bug of ours.
    #[error("vector program @{program}: the code generator failed: {message}")]
    Codegen {
        /// Name of the program.
        program: String,
        /// What Cranelift says.
        message: String,
    },
}

/// Compiles a program.
///
/// # Errors
/// The program does not verify, or holds what the emitter does not support: vectors that are not 16 bytes wide, or
/// addresses whose constant part overflows.
pub fn compile(program: &VectorProgram, target: Target) -> Result<MachineCode, Error> {
    compile_at(program, target, opt_level(program))
}

/// Compiles a program with a given optimisation level; [`compile`] knows which one is best.
///
/// # Errors
/// As [`compile`].
pub fn compile_at(program: &VectorProgram, target: Target, level: OptLevel) -> Result<MachineCode, Error> {
    let failed = |message: String| Error::Codegen { program: program.name.clone(), message };
    let isa = target.isa(level).map_err(failed)?;
    let mut context = Context::for_function(function(program, target, level)?);
    let compiled = context
        .compile(&*isa, &mut ControlPlane::default())
        .map_err(|e| failed(cranelift_codegen::print_errors::pretty_error(e.func, e.inner)))?;
    if let Some(relocation) = compiled.buffer.relocs().first() {
        return Err(failed(format!("the code refers to something outside: {relocation:?}")));
    }
    Ok(MachineCode { bytes: compiled.code_buffer().to_vec(), alignment: compiled.buffer.alignment.max(16) })
}

/// The text of the code that is handed to Cranelift, for dumps.
///
/// # Errors
/// As [`compile`].
pub fn clif_text(program: &VectorProgram, target: Target) -> Result<String, Error> {
    Ok(function(program, target, opt_level(program))?.display().to_string())
}

fn function(program: &VectorProgram, target: Target, level: OptLevel) -> Result<Function, Error> {
    program.verify().map_err(Error::Invalid)?;
    let failed = |message: String| Error::Codegen { program: program.name.clone(), message };
    let isa = target.isa(level).map_err(failed)?;
    emit::function(program, target, &*isa)
}

/// The level at which a program gives the best code.
///
/// Cranelift's optimiser moves arithmetic to its first use and leaves loads in place, which turns the unrolled body
/// of a matrix product into loads, spills and then arithmetic. So where a loop accumulates products, the program's
/// own order is kept: measured on Zen 5, 5x8 tiles unrolled 8 times, 52 against 20 GFLOP/s.
/// Everything else gains up to a quarter from moving invariants and merging common subexpressions.
pub fn opt_level(program: &VectorProgram) -> OptLevel {
    fn accumulates(body: &[Stmt]) -> bool {
        body.iter().any(|stmt| match stmt {
            Stmt::For(f) => {
                let made = |id| {
                    f.body.iter().find_map(|s| match s {
                        Stmt::Let(d, op) if *d == id => Some(op),
                        _ => None,
                    })
                };
                let is_dot = |id| matches!(made(id), Some(Op::Binary(BinaryOp::Dot4, ..)));
                let product = |id| match made(id) {
                    Some(Op::Fma(..)) => true,
                    Some(Op::Binary(BinaryOp::Add, a, b)) => is_dot(*a) || is_dot(*b),
                    _ => false,
                };
                accumulates(&f.body) || f.carried.iter().any(|c| product(c.next))
            }
            Stmt::If { then, otherwise, .. } => accumulates(then) || accumulates(otherwise),
            Stmt::Let(..) | Stmt::Store(..) | Stmt::Prefetch(..) | Stmt::Matrix(_) | Stmt::Fail { .. } => false,
        })
    }
    if accumulates(&program.body) { OptLevel::None } else { OptLevel::Speed }
}
