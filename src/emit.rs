//! Tile programs to machine code for every wanted CPU level.
//!
//! Invariant: equal programs are lowered and compiled once and share their code; the result does not depend on how
//! many threads made it. A kernel that the wide emitter of a level does not have is made by Cranelift at 128 bits, and the
//! kernel table says so.

use crate::{Error, Observer};
use kiln_cpu::wide::{self, WideLevel};
use kiln_cpu::{MachineCode, Target};
use kiln_ir::DType;
use kiln_ir::expr::{Ranges, Symbol};
use kiln_ir::plan::Plan;
use kiln_ir::tile::TileProgram;
use kiln_ir::vector::VectorProgram;
use kiln_passes::kernel::{Machine, Terms};
use kiln_passes::lower::{VectorTarget, lower};
use kiln_passes::pipeline::Scheduled;
use kiln_passes::plan::{grain, program_count};
use kiln_runtime::artifact::{KernelEntry, KernelTable};
use kiln_runtime::cpu::CpuLevel;
use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Machine code of all kernels for one level.
#[derive(Debug, Clone)]
pub struct LevelCode {
    /// The level.
    pub level: CpuLevel,
    /// The code section.
    pub bytes: Vec<u8>,
    /// Where each kernel lies in it.
    pub table: KernelTable,
}

/// The emitters of a level.
#[derive(Clone, Copy, Debug)]
pub struct Emitters {
    /// The wide one, where the level has vectors for it.
    pub wide: Option<WideLevel>,
    /// Cranelift's target, for everything else.
    pub narrow: Target,
}

impl Emitters {
    /// Nothing where this build makes no code for the level.
    pub fn of(level: CpuLevel) -> Option<Emitters> {
        let x86 = cfg!(target_arch = "x86_64");
        match level {
            CpuLevel::Portable if cfg!(target_arch = "aarch64") => {
                Some(Emitters { wide: None, narrow: Target::Aarch64 })
            }
            CpuLevel::Portable => Some(Emitters { wide: None, narrow: Target::X86_64 }),
            CpuLevel::X86_64V3 if x86 => Some(Emitters { wide: Some(WideLevel::Avx2), narrow: Target::X86_64V3 }),
            CpuLevel::X86_64V3Vnni if x86 => {
                Some(Emitters { wide: Some(WideLevel::Avx2Vnni), narrow: Target::X86_64V3 })
            }
            CpuLevel::X86_64V4 if x86 => Some(Emitters { wide: Some(WideLevel::Avx512), narrow: Target::X86_64V3 }),
            CpuLevel::X86_64V4Vnni if x86 => {
                Some(Emitters { wide: Some(WideLevel::Avx512Vnni), narrow: Target::X86_64V3 })
            }
            CpuLevel::X86_64V4Bf16 if x86 => {
                Some(Emitters { wide: Some(WideLevel::Avx512Bf16), narrow: Target::X86_64V3 })
            }
            CpuLevel::X86_64V4Amx if x86 => Some(Emitters { wide: Some(WideLevel::Amx), narrow: Target::X86_64V3 }),
            CpuLevel::X86_64V3
            | CpuLevel::X86_64V3Vnni
            | CpuLevel::X86_64V4
            | CpuLevel::X86_64V4Vnni
            | CpuLevel::X86_64V4Bf16
            | CpuLevel::X86_64V4Amx => None,
        }
    }
}

/// The levels that code is made for where nothing else is asked: all of them. What a level would only repeat is not stored.
pub fn default_levels() -> Vec<CpuLevel> {
    CpuLevel::ALL.into_iter().filter(|level| Emitters::of(*level).is_some()).collect()
}

/// A distinct kernel of a level.
#[derive(Debug)]
struct Program {
    tile: Arc<TileProgram>,
    vector: VectorProgram,
    /// Whether `vector` has the wide emitter's vectors.
    wide: bool,
}

/// The number of a program, or why it has none.
type Number = Result<usize, String>;

/// Lowers the tile programs of one level, each distinct one once, and compiles them.
#[derive(Debug)]
pub struct Emitter {
    /// The level.
    pub level: CpuLevel,
    emitters: Emitters,
    pairs: bool,
    terms: Option<Terms>,
    /// What became of programs, by the hashes of what they do.
    numbers: HashMap<u64, Vec<(Arc<TileProgram>, Number)>>,
    programs: Vec<Program>,
}

/// Kernels get the values of all free dims, in this order of the ranges, which is the plan's.
fn lower_to(tile: &TileProgram, target: VectorTarget, dims: &Ranges) -> Result<VectorProgram, String> {
    let order: Vec<Symbol> = dims.keys().cloned().collect();
    lower(tile, target, &order, dims).map_err(|e| e.to_string())
}

fn narrow(tile: &TileProgram, target: Target, dims: &Ranges) -> Result<VectorProgram, String> {
    lower_to(tile, VectorTarget { bytes: 16, pairs: false, matrices: false, fused: target.fused() }, dims)
}

/// Machine code and the name of what emitted it.
type Made = Result<(MachineCode, &'static str), String>;

impl Emitter {
    /// The emitter of a level. `pairs` says whether the graph has products of pairs of bf16: only beside those may the instructions
    /// for pairs, which take subnormal numbers as 0, round other numbers too. `terms` says how many products of bf16 stand for one of f32
    /// where there are matrix registers and it pays, if any may.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where this build has none.
    pub fn new(level: CpuLevel, pairs: bool, terms: Option<Terms>) -> Result<Emitter, Error> {
        let none = || Error::Unsupported(format!("this build makes no code for the CPU level {level}"));
        let emitters = Emitters::of(level).ok_or_else(none)?;
        Ok(Emitter { level, emitters, pairs, terms, numbers: HashMap::new(), programs: Vec::new() })
    }

    /// The emitter of a level for what was scheduled.
    ///
    /// # Errors
    /// See [`Emitter::new`].
    pub fn of(level: CpuLevel, scheduled: &Scheduled) -> Result<Emitter, Error> {
        Emitter::new(level, scheduled.has_pairs(), scheduled.terms)
    }

    /// What the cost model knows of the level.
    pub fn machine(&self) -> Machine {
        match self.emitters.wide {
            None => Machine::narrow(),
            Some(WideLevel::Avx2) => Machine::avx2(),
            Some(WideLevel::Avx2Vnni) => Machine::avx2_vnni(),
            Some(WideLevel::Avx512) => Machine::avx512(),
            Some(WideLevel::Avx512Vnni) => Machine::avx512_vnni(),
            Some(WideLevel::Avx512Bf16) => Machine::avx512_bf16(),
            Some(WideLevel::Amx) => Machine { terms: self.terms, rounds_attention: self.pairs, ..Machine::amx() },
        }
    }

    /// The number of the vector program for a tile program over free dims, the same ones for all programs.
    ///
    /// # Errors
    /// Why it cannot be vector code.
    pub fn number(&mut self, program: &TileProgram, dims: &Ranges) -> Number {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(program.code());
        let alike = self.numbers.entry(hash).or_default();
        if let Some((_, known)) = alike.iter().find(|(other, _)| other.code() == program.code()) {
            return known.clone();
        }
        let nameless = Arc::new(TileProgram { name: "k".into(), ..program.clone() });
        let wide = self.emitters.wide.and_then(|w| {
            // Beside products of parts nothing but these is rounded to bf16.
            let own = nameless.multiplies() && !rounds(&nameless);
            let (pairs, matrices) = ((self.pairs || own) && w.has_pairs(), w.has_matrices());
            lower_to(&nameless, VectorTarget { bytes: w.bytes(), pairs, matrices, fused: true }, dims).ok()
        });
        let is_wide = wide.is_some();
        let made = wide.map_or_else(|| narrow(&nameless, self.emitters.narrow, dims), Ok).and_then(|vector| {
            // Cranelift, to which other programs fall back, has no matrix registers.
            if let Some(level) = self.emitters.wide.filter(|_| nameless.multiplies()) {
                wide::compile(&vector, level).map_err(|e| e.to_string())?;
            }
            self.programs.push(Program { tile: nameless.clone(), vector, wide: is_wide });
            Ok(self.programs.len() - 1)
        });
        alike.push((nameless, made.clone()));
        made
    }

    /// Compiles the kernels of a plan on `threads` threads.
    ///
    /// # Errors
    /// [`Error::Code`] where the code generator refuses a program.
    pub fn emit(
        &mut self,
        plan: &Plan,
        kernels: &[TileProgram],
        threads: usize,
        observer: &mut dyn Observer,
    ) -> Result<LevelCode, Error> {
        let code = |kernel: &str, message: String| Error::Code { kernel: kernel.into(), message };
        let dims = plan.ranges();
        let mut numbers = Vec::with_capacity(kernels.len());
        for kernel in kernels {
            let number = self.number(kernel, &dims).map_err(|e| code(&kernel.name, e))?;
            if let Some(program) = self.programs.get(number) {
                observer.kernel(self.level, kernel, &program.vector)?;
            }
            numbers.push(number);
        }
        let mut used = numbers.clone();
        used.sort_unstable();
        used.dedup();
        let compiled = self.compile(&used, &dims, threads);
        let mut result = LevelCode { level: self.level, bytes: Vec::new(), table: KernelTable::default() };
        let mut placed: HashMap<usize, (u64, u64, &'static str)> = HashMap::new();
        for ((kernel, of_plan), &number) in kernels.iter().zip(&plan.kernels).zip(&numbers) {
            let (offset, bytes, emitter) = match placed.get(&number) {
                Some(&place) => place,
                None => {
                    let (made, emitter) = match compiled.get(&number) {
                        Some(Ok((made, emitter))) => (made, emitter),
                        Some(Err(e)) => return Err(code(&kernel.name, e.clone())),
                        None => return Err(Error::Internal(format!("{} was not compiled", kernel.name))),
                    };
                    // Entries start on a cache line, which also is at least every alignment that emitters ask for.
                    let start = result.bytes.len().next_multiple_of(64.max(made.alignment as usize));
                    result.bytes.resize(start, 0xcc);
                    result.bytes.extend_from_slice(&made.bytes);
                    let place = (start as u64, made.bytes.len() as u64, *emitter);
                    placed.insert(number, place);
                    place
                }
            };
            let programs = program_count(kernel, &dims);
            result.table.0.push(KernelEntry {
                name: kernel.name.clone(),
                offset,
                bytes,
                grain: grain(of_plan, &programs, &dims),
                emitter: emitter.into(),
                programs,
            });
        }
        Ok(result)
    }

    /// The code of one program: wide where the wide emitter has all of its operations.
    fn compile_one(&self, program: &Program, dims: &Ranges) -> Made {
        let by_cranelift = |vector: &VectorProgram| {
            kiln_cpu::compile(vector, self.emitters.narrow).map(|code| (code, "cranelift")).map_err(|e| e.to_string())
        };
        match self.emitters.wide.filter(|_| program.wide) {
            None => by_cranelift(&program.vector),
            Some(level) => match wide::compile(&program.vector, level) {
                Ok(code) => Ok((code, "wide")),
                Err(kiln_cpu::Error::Unsupported { .. }) => {
                    by_cranelift(&narrow(&program.tile, self.emitters.narrow, dims)?)
                }
                Err(e) => Err(e.to_string()),
            },
        }
    }

    /// The code of the programs with these numbers. Threads take the next one that is left; the answer is by number.
    fn compile(&self, used: &[usize], dims: &Ranges, threads: usize) -> HashMap<usize, Made> {
        let next = AtomicUsize::new(0);
        let work = || {
            let mut made = HashMap::new();
            while let Some(&number) = used.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Some(program) = self.programs.get(number) {
                    made.insert(number, self.compile_one(program, dims));
                }
            }
            made
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads.min(used.len())).map(|_| scope.spawn(work)).collect();
            let mut made = work();
            for other in others {
                match other.join() {
                    Ok(more) => made.extend(more),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            made
        })
    }
}

/// Whether a program has values of bf16.
fn rounds(program: &TileProgram) -> bool {
    program.tiles.iter().any(|(_, ty)| ty.dtype == DType::BF16)
}
