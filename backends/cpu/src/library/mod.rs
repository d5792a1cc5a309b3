//! A plan and its kernels as a library: code with the C calling convention that needs nothing else to run.
//!
//! Invariant: the code does what the engine of the runtime does with the same plan and kernels, so results are the same bit
//! by bit. It calls nothing outside, allocates nothing, writes only to memory that its caller hands it, and holds no state of
//! its own; everything in it is found by distance from the instruction, so it runs wherever it is mapped.
//!
//! The functions are those that docs/abi.md states. [`build`] makes the bytes; [`elf`] puts them into files.

mod asm;
mod control;
mod cpuid;
mod data;
mod describe;
pub mod elf;
mod formulas;
mod host;
mod run;
mod sizes;
mod steps;
mod tables;
#[cfg(test)]
mod tests;

use asm::{Compiled, Routine};
use data::Data;
use kiln_ir::Expr;
use kiln_ir::plan::Plan;
use std::collections::HashMap;
use tables::Tables;

/// The version of the C functions and structs, see docs/abi.md.
pub const ABI: u32 = 1;

/// What a level's code needs of the CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    /// x86-64-v2.
    Baseline,
    /// x86-64-v3.
    Avx2,
    /// x86-64-v4.
    Avx512,
    /// AVX-512 VNNI besides.
    Avx512Vnni,
    /// AVX-512 BF16 besides.
    Avx512Bf16,
    /// AMX besides: tiles, int8 and bf16.
    Amx,
}

impl Needs {
    /// The number by which the C functions know the level.
    pub fn number(self) -> i64 {
        match self {
            Needs::Baseline => 0,
            Needs::Avx2 => 1,
            Needs::Avx512 => 2,
            Needs::Avx512Vnni => 3,
            Needs::Avx512Bf16 => 4,
            Needs::Amx => 5,
        }
    }
}

/// A kernel of a level.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// Its first byte in the level's code.
    pub offset: u64,
    /// The fewest programs that are worth a thread of their own.
    pub grain: u64,
    /// How many programs its grid has, over the plan's symbols.
    pub programs: Expr,
}

/// The machine code of a level.
#[derive(Clone, Debug)]
pub struct Level<'a> {
    /// What it needs.
    pub needs: Needs,
    /// Its name, for messages.
    pub name: &'a str,
    /// The code of all kernels.
    pub code: &'a [u8],
    /// The kernels in the plan's order.
    pub kernels: Vec<Kernel>,
}

/// What a library is made of.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// Code for at least one level, in ascending order.
    pub levels: Vec<Level<'a>>,
    /// What `model` gives as its description, a JSON object.
    pub metadata: &'a str,
    /// How the weights section hashes; kept with weights that are not in the library.
    pub weights_hash: [u8; 32],
    /// Whether the weights are a part of the library; else the caller hands them over.
    pub embedded: bool,
}

/// A part of a library that code refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Code.
    Code,
    /// Texts and tables.
    Data,
    /// The weights.
    Weights,
}

impl Part {
    const ALL: [Part; 3] = [Part::Code, Part::Data, Part::Weights];

    fn number(self) -> u32 {
        match self {
            Part::Code => 0,
            Part::Data => 1,
            Part::Weights => 2,
        }
    }
}

/// Four bytes of code that hold the distance from themselves to a byte of another part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Where in the code.
    pub at: u64,
    /// The part.
    pub to: Part,
    /// What is added to the distance to the part's first byte.
    pub addend: i64,
}

/// A function of the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Its name, without the model's prefix.
    pub name: String,
    /// Its first byte in the code.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether others may call it.
    pub exported: bool,
}

/// A library's parts, ready to be put into a file.
#[derive(Clone, Debug)]
pub struct Image {
    /// Driver and kernels.
    pub code: Vec<u8>,
    /// Texts and tables.
    pub data: Vec<u8>,
    /// Bytes of the weights, where they are embedded.
    pub weights: u64,
    /// The functions, in the order of their offsets.
    pub functions: Vec<Function>,
    /// Where code refers to data and weights.
    pub references: Vec<Reference>,
}

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
pub enum LibraryError {
    /// Steps find extents or make strings, for which no caller can have memory ready.
    #[error(
        "a library's caller provides all memory, but sizes that only a run finds, or strings, are made or read by {}; a .kiln \
         artifact can do that",
        .0.join(", ")
    )]
    FoundByRun(Vec<String>),
    /// An input or output has elements that are not bytes.
    #[error("{0} is {1}, which has no form in C; a .kiln artifact can run it")]
    NotBytes(String, String),
    /// A size of the file format is exceeded.
    #[error("{0}")]
    TooLarge(String),
    /// Cranelift refused what we made: a bug of ours.
    #[error("the library's routine {routine}: {message}")]
    Codegen {
        /// The routine.
        routine: String,
        /// What Cranelift says.
        message: String,
    },
}

/// Kernels start on a multiple of this in a level's code.
const CODE_ALIGNMENT: usize = 64;

/// Makes a library of a plan and its kernels.
///
/// # Errors
/// See [`LibraryError`].
pub fn build(source: &Source<'_>) -> Result<Image, LibraryError> {
    let mut code = Vec::new();
    let mut starts = Vec::new();
    for level in &source.levels {
        code.resize(usize::next_multiple_of(code.len(), CODE_ALIGNMENT), 0xcc);
        starts.push(code.len() as u64);
        code.extend_from_slice(level.code);
    }
    let kernels_end = code.len() as u64;
    let mut data = Data::default();
    let tables = Tables::new(source, &starts, &mut data)?;
    let mut functions = kernel_functions(source, &starts, kernels_end);
    let (mut placed, mut calls, mut references) = (HashMap::new(), Vec::new(), Vec::new());
    for routine in Routine::ALL {
        let made = routine_code(routine, &tables, &mut data)?;
        code.resize(usize::next_multiple_of(code.len(), 16), 0xcc);
        let start = code.len() as u64;
        placed.insert(routine, start);
        calls.extend(made.calls.iter().map(|&(at, to, addend)| (start + u64::from(at), to, addend)));
        references.extend(made.references.iter().map(|r| Reference { at: start + r.at, ..*r }));
        let name = routine.export().map_or_else(|| format!("{routine:?}").to_lowercase(), str::to_string);
        let exported = routine.export().is_some();
        functions.push(Function { name, offset: start, bytes: made.bytes.len() as u64, exported });
        code.extend_from_slice(&made.bytes);
    }
    for (at, to, addend) in calls {
        let target = placed.get(&to).copied().unwrap_or_default();
        patch(&mut code, at, target as i64 + addend)?;
    }
    // Code that refers to code is settled here, too.
    let (inside, references): (Vec<_>, Vec<_>) = references.into_iter().partition(|r| r.to == Part::Code);
    for reference in inside {
        patch(&mut code, reference.at, reference.addend)?;
    }
    let weights = if source.embedded { source.plan.weight_bytes } else { 0 };
    Ok(Image { code, data: data.bytes, weights, functions, references })
}

/// Writes the distance from `at` to `target`, both from the same start.
pub(crate) fn patch(code: &mut [u8], at: u64, target: i64) -> Result<(), LibraryError> {
    let too_large = || LibraryError::TooLarge("the library is too large: its parts are 2 GiB apart".into());
    let distance = target.checked_sub(at as i64).and_then(|d| i32::try_from(d).ok()).ok_or_else(too_large)?;
    let at = usize::try_from(at).map_err(|_| too_large())?;
    let end = at.checked_add(4).ok_or_else(too_large)?;
    code.get_mut(at..end).ok_or_else(too_large)?.copy_from_slice(&distance.to_le_bytes());
    Ok(())
}

/// The kernels as functions, so that profilers name them; equal kernels share their code and have one name.
fn kernel_functions(source: &Source<'_>, starts: &[u64], end: u64) -> Vec<Function> {
    let mut all: Vec<Function> = Vec::new();
    for (level, start) in source.levels.iter().zip(starts) {
        let named = level.kernels.iter().zip(&source.plan.kernels);
        let mut places: Vec<(u64, String)> = named.map(|(k, of)| (start + k.offset, of.name.clone())).collect();
        places.sort();
        places.dedup_by_key(|(at, _)| *at);
        let level_end = start + level.code.len() as u64;
        for (n, (offset, name)) in places.iter().enumerate() {
            let next = places.get(n + 1).map_or(level_end.min(end), |(at, _)| *at);
            let name = format!("{name}_{}", level.name.replace('-', "_"));
            all.push(Function { name, offset: *offset, bytes: next.saturating_sub(*offset), exported: false });
        }
    }
    all
}

fn routine_code(routine: Routine, t: &Tables<'_>, data: &mut Data) -> Result<Compiled, LibraryError> {
    match routine {
        Routine::Abi => asm::compile(routine, data, |c, _| {
            let version = c.int32(i64::from(ABI));
            c.ret(version);
        }),
        Routine::Model => asm::compile(routine, data, |c, p| describe::model(c, t, p)),
        Routine::Input => asm::compile(routine, data, |c, p| describe::end(c, t.inputs, p)),
        Routine::Output => asm::compile(routine, data, |c, p| describe::end(c, t.outputs, p)),
        Routine::Dim => asm::compile(routine, data, |c, p| describe::dim(c, t, p)),
        Routine::Level => asm::compile(routine, data, |c, _| cpuid::level(c)),
        Routine::Init => asm::compile(routine, data, |c, p| run::init(c, t, p)),
        Routine::Solve => asm::compile(routine, data, |c, p| sizes::solve(c, t, p)),
        Routine::ArenaBytes => asm::compile(routine, data, |c, p| sizes::arena_bytes(c, t, p)),
        Routine::InputBytes => asm::compile(routine, data, |c, p| sizes::end_bytes(c, t, &t.plan.inputs, p)),
        Routine::OutputBytes => asm::compile(routine, data, |c, p| sizes::end_bytes(c, t, &t.plan.outputs, p)),
        Routine::OutputDims => asm::compile(routine, data, |c, p| sizes::output_dims(c, t, p)),
        Routine::Host => asm::compile(routine, data, host::host),
        Routine::Run => asm::compile(routine, data, |c, p| run::run(c, t, p)),
        Routine::Append => asm::compile(routine, data, describe::append),
        Routine::AppendNumber => asm::compile(routine, data, describe::append_number),
        Routine::Check => asm::compile(routine, data, |c, p| sizes::check(c, t, p)),
        Routine::Formulas => asm::compile(routine, data, |c, p| sizes::formulas(c, t, p)),
        Routine::Steps => asm::compile(routine, data, |c, p| steps::steps(c, t, p)),
        Routine::Move => asm::compile(routine, data, steps::move_bytes),
        Routine::Body => asm::compile(routine, data, steps::body),
        Routine::CpuId => Ok(cpuid::cpuid()),
        Routine::XGetBv => Ok(cpuid::xgetbv()),
        Routine::Tiles => Ok(cpuid::tiles()),
    }
}
