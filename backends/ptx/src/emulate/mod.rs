//! An interpreter of PTX: runs kernels on plain memory and says what is wrong with them.
//!
//! Invariant: it runs any module of the supported subset — what Kiln, Triton and nvrtc write for `sm_80` — by the manual
//! alone and knows nothing of who wrote it; no text and no launch makes it panic. A run without findings under one order
//! of warps has none of the looked-for mistakes under any other: races are found by what orders accesses, not by which
//! came first. A copy may land at any time from its issue until it is waited for, so until then its target is not to be
//! touched.
//!
//! - [`parse`] reads text, [`decode`] makes instructions of it, [`alu`] and [`matrix`] are what they compute,
//!   [`memory`] is who accessed what when, [`machine`] runs blocks.

mod alu;
mod decode;
mod machine;
mod matrix;
mod memory;
mod parse;
mod tensor;
#[cfg(test)]
mod tests;

pub use decode::Kernel;
pub use parse::ParseError;
pub use tensor::{Swizzle, TensorMap};

use decode::variable_base;
use memory::{Global, base};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Where shared memory begins among generic addresses.
const SHARED_WINDOW: u64 = 0x7fff << 40;

/// Where parameters begin among generic addresses.
const PARAMETER_WINDOW: u64 = 0x7ffe << 40;

/// A module: its kernels and its variables.
#[derive(Clone, Debug)]
pub struct Module {
    kernels: Vec<Kernel>,
    variables: Vec<parse::Variable>,
}

impl Module {
    /// Parses PTX text.
    ///
    /// # Errors
    /// What is no PTX or not supported, with its line and column.
    pub fn parse(text: &str) -> Result<Module, ParseError> {
        let (kernels, variables) = decode::decode(text)?;
        Ok(Module { kernels, variables })
    }

    /// The kernels.
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }
}

/// Memory that a kernel is given.
#[derive(Clone, Debug)]
pub struct Buffer {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether the kernel may write to it.
    pub written: bool,
    /// Whether its bytes mean something before the launch; reading what nobody wrote is a finding.
    pub initialised: bool,
    /// Bytes of an element, up to 4: accesses to different elements are no race.
    pub granule: usize,
}

/// An argument of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Where the n-th buffer begins.
    Buffer(usize),
    /// The low bytes of a number.
    Value(u64),
    /// A tensor map, which begins so many bytes after its address in the n-th buffer.
    Map(usize, TensorMap),
    /// The bytes themselves.
    Bytes(Vec<u8>),
}

/// How a kernel is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Arguments, in order.
    pub arguments: Vec<Argument>,
}

/// How tensor cores add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Accumulate {
    /// Exactly, rounded once.
    #[default]
    Exact,
    /// Eight products at a time, each cut off at the last bit of the largest, and the sum cut off too.
    Truncating,
}

/// How a kernel is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether to look for mistakes, and to count what memory accesses cost.
    pub checks: bool,
    /// Decides the order of warps and the errors of approximate instructions; with 0 warps go by number and approximate
    /// instructions are exact.
    pub seed: u64,
    /// How tensor cores add up.
    pub accumulate: Accumulate,
    /// Threads to run on.
    pub threads: usize,
    /// Most instructions that a warp may execute.
    pub steps: u64,
}

impl Default for Options {
    fn default() -> Options {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Options { checks: true, seed: 0, accumulate: Accumulate::Exact, threads, steps: 1 << 26 }
    }
}

/// Where the n-th buffer of a launch begins: what a kernel sees as the pointer to it. Buffers may be huge and lie far apart.
pub fn address(n: usize) -> u64 {
    base(n)
}

/// A kind of mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An access outside all buffers, or outside shared or local memory.
    OutOfBounds,
    /// An address that is no multiple of the access' size.
    Misaligned,
    /// A read of memory that nothing was written to.
    Uninitialised,
    /// A read of a register that nothing was written to.
    UndefinedRegister,
    /// A write to a buffer that is only to be read.
    ReadOnly,
    /// Two threads of a block access shared memory, one of them to write, with nothing to order them.
    SharedRace,
    /// The same in global memory, between any two threads.
    GlobalRace,
    /// An access to what an asynchronous copy, which was not waited for, is being copied to.
    Pending,
    /// A barrier, shuffle or matrix instruction that only some lanes of a warp reach.
    Divergent,
    /// A product reads or adds to registers or shared memory that no fence stands before.
    Unfenced,
    /// Threads wait at a barrier that others never reach.
    MissingBarrier,
    /// A shuffle reads a lane that does not take part.
    AbsentLane,
    /// `trap`.
    Trap,
}

impl Kind {
    /// The kind in words.
    pub fn name(self) -> &'static str {
        match self {
            Kind::OutOfBounds => "out of bounds",
            Kind::Misaligned => "misaligned",
            Kind::Uninitialised => "uninitialised memory",
            Kind::UndefinedRegister => "undefined register",
            Kind::ReadOnly => "write to a read-only buffer",
            Kind::SharedRace => "race in shared memory",
            Kind::GlobalRace => "race in global memory",
            Kind::Pending => "copy not waited for",
            Kind::Divergent => "divergent",
            Kind::Unfenced => "missing fence",
            Kind::MissingBarrier => "missing barrier",
            Kind::AbsentLane => "absent lane",
            Kind::Trap => "trap",
        }
    }
}

/// A mistake, at the first place where it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What kind.
    pub kind: Kind,
    /// Line of the PTX text, from 1.
    pub line: usize,
    /// The line.
    pub instruction: String,
    /// The statement that it came from, where the text says so.
    pub source: Option<String>,
    /// Number of the block.
    pub block: u64,
    /// Number of the thread in the block.
    pub thread: u32,
    /// More about it.
    pub detail: String,
    /// How often it happened, over all threads.
    pub count: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Finding { kind, line, instruction, source, block, thread, detail, count } = self;
        write!(f, "line {line}: {}: `{instruction}`", kind.name())?;
        if let Some(source) = source {
            write!(f, ", from `{source}`")?;
        }
        write!(f, ": block {block}, thread {thread}: {detail}")?;
        if *count > 1 { write!(f, " ({count} times)") } else { Ok(()) }
    }
}

/// What a run executed and moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Instructions of warps.
    pub instructions: u64,
    /// The same, over the threads for which they were executed.
    pub thread_instructions: u64,
    /// Matrix products.
    pub mma: u64,
    /// 32-byte sectors that accesses to global memory touched.
    pub sectors: u64,
    /// The fewest sectors that hold the accessed bytes.
    pub least_sectors: u64,
    /// Passes of 128 bytes that accesses to shared memory took.
    pub wavefronts: u64,
    /// The same without bank conflicts.
    pub least_wavefronts: u64,
    /// Barriers that blocks passed.
    pub barriers: u64,
}

impl Counts {
    /// The sum of two.
    #[must_use]
    pub fn plus(self, other: Counts) -> Counts {
        Counts {
            instructions: self.instructions + other.instructions,
            thread_instructions: self.thread_instructions + other.thread_instructions,
            mma: self.mma + other.mma,
            sectors: self.sectors + other.sectors,
            least_sectors: self.least_sectors + other.least_sectors,
            wavefronts: self.wavefronts + other.wavefronts,
            least_wavefronts: self.least_wavefronts + other.least_wavefronts,
            barriers: self.barriers + other.barriers,
        }
    }

    /// Passes through shared memory that bank conflicts cost.
    pub fn conflicts(&self) -> u64 {
        self.wavefronts.saturating_sub(self.least_wavefronts)
    }

    /// The share of the moved sectors that was needed.
    pub fn sector_efficiency(&self) -> f64 {
        if self.sectors == 0 { 1.0 } else { self.least_sectors as f64 / self.sectors as f64 }
    }
}

/// What came of a run.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Mistakes by line.
    pub findings: Vec<Finding>,
    /// What was executed.
    pub counts: Counts,
}

/// A kernel could not be run to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The launch does not fit the kernel; nothing was run.
    #[error("kernel {kernel}: {message}")]
    Launch {
        /// Name of the kernel.
        kernel: String,
        /// What is wrong.
        message: String,
    },
    /// A warp executed more instructions than it may.
    #[error("kernel {kernel}: block {block} does not end: a warp executed {steps} instructions, now at line {line}")]
    Endless {
        /// Name of the kernel.
        kernel: String,
        /// Number of the block.
        block: u64,
        /// Instructions that it executed.
        steps: u64,
        /// The line where it is.
        line: usize,
    },
}

/// What one worker has seen: findings by line and kind, and counts.
type Seen = (BTreeMap<(usize, Kind), Finding>, Counts);

/// Runs the whole grid of a kernel on the buffers.
///
/// # Errors
/// The launch does not fit the kernel, or the kernel does not end.
pub fn run(
    module: &Module,
    kernel: &Kernel,
    launch: &Launch,
    buffers: &mut [Buffer],
    options: &Options,
) -> Result<Report, RunError> {
    let wrong = |message: String| RunError::Launch { kernel: kernel.name.clone(), message };
    let threads = launch.block.iter().try_fold(1u32, |n, &e| n.checked_mul(e)).filter(|n| (1..=1024).contains(n));
    let threads = threads.ok_or_else(|| wrong(format!("a block of {:?} threads; 1 to 1024 fit", launch.block)))?;
    if kernel.threads.is_some_and(|t| t != launch.block) {
        return Err(wrong(format!("blocks of {:?} threads; the text demands {:?}", launch.block, kernel.threads)));
    }
    let blocks = launch.grid.iter().map(|&e| u64::from(e)).try_fold(1u64, u64::checked_mul);
    let blocks = blocks.filter(|b| b.saturating_mul(u64::from(threads)) < u64::from(u32::MAX));
    let blocks = blocks.ok_or_else(|| wrong(format!("a grid of {:?} blocks", launch.grid)))?;
    let shared = kernel.shared.saturating_add(launch.shared);
    if shared > 228 << 10 {
        return Err(wrong(format!("{shared} bytes of shared memory; no GPU has more than 228 KiB for a block")));
    }
    if launch.arguments.len() != kernel.parameters.len() {
        let (given, taken) = (launch.arguments.len(), kernel.parameters.len());
        return Err(wrong(format!("{given} arguments; the kernel takes {taken}")));
    }
    let mut parameters = vec![0u8; kernel.parameters.iter().map(|(at, bytes)| at + bytes).max().unwrap_or(0)];
    for (argument, &(at, bytes)) in launch.arguments.iter().zip(&kernel.parameters) {
        let value = match argument {
            Argument::Buffer(n) if *n < buffers.len() => base(*n),
            Argument::Buffer(n) => return Err(wrong(format!("there is no buffer {n}"))),
            Argument::Value(v) => *v,
            Argument::Map(n, map) if *n < buffers.len() => {
                let map = TensorMap { address: base(*n).wrapping_add(map.address), ..map.clone() };
                let encoded = map.encode().map_err(|e| wrong(format!("a tensor map with {e}")))?;
                parameters[at..at + bytes].iter_mut().zip(encoded).for_each(|(to, from)| *to = from);
                continue;
            }
            Argument::Map(n, _) => return Err(wrong(format!("there is no buffer {n}"))),
            Argument::Bytes(all) => {
                parameters[at..at + bytes].iter_mut().zip(all).for_each(|(to, from)| *to = *from);
                continue;
            }
        };
        for (to, from) in parameters[at..at + bytes].iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }
    let mut global: Vec<Global> = Vec::new();
    for b in buffers.iter() {
        let mut g = Global::new(b, options.checks);
        if b.initialised {
            g.initialised();
        }
        global.push(g);
    }
    let mut variables = Vec::new();
    for v in &module.variables {
        let mut bytes = v.init.clone();
        bytes.resize(v.bytes, 0);
        let mut g = Global::new(&Buffer { bytes, written: true, initialised: true, granule: 1 }, options.checks);
        g.initialised();
        variables.push(g);
    }
    let shape = machine::Shape { kernel, launch, threads, shared, parameters: &parameters, options };
    let places = machine::Places { global: &global, variables: &variables, lock: &Mutex::new(()) };
    let next = AtomicU64::new(0);
    let work = || {
        let mut machine = machine::Machine::new(&shape, &places);
        loop {
            let block = next.fetch_add(1, Relaxed);
            if block >= blocks {
                return Ok(machine.done());
            }
            machine.block(block)?;
        }
    };
    let results: Vec<Result<Seen, RunError>> = std::thread::scope(|scope| {
        let workers = (options.threads as u64).min(blocks).max(1);
        let others: Vec<_> = (1..workers).map(|_| scope.spawn(work)).collect();
        let mut all = vec![work()];
        for other in others {
            match other.join() {
                Ok(result) => all.push(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        all
    });
    let mut report = Report::default();
    let mut findings: BTreeMap<(usize, Kind), Finding> = BTreeMap::new();
    for result in results {
        let (found, counts) = result?;
        report.counts = report.counts.plus(counts);
        for (key, finding) in found {
            match findings.get_mut(&key) {
                Some(known) => {
                    let count = known.count + finding.count;
                    if finding.block < known.block {
                        *known = finding;
                    }
                    known.count = count;
                }
                None => _ = findings.insert(key, finding),
            }
        }
    }
    report.findings = findings.into_values().collect();
    for (buffer, global) in buffers.iter_mut().zip(&global) {
        if buffer.written {
            global.store_to(&mut buffer.bytes);
        }
    }
    Ok(report)
}

/// The buffer that an address is in, with the byte there; a number from `buffers` on is a variable's.
fn place_of(address: u64, buffers: usize, variables: usize) -> Option<(usize, usize)> {
    let (number, at) = ((address >> 40) as usize, (address & ((1 << 40) - 1)) as usize);
    let first = (variable_base(0) >> 40) as usize;
    if number >= 1 && number <= buffers {
        Some((number - 1, at))
    } else if number >= first && number < first + variables {
        Some((buffers + number - first, at))
    } else {
        None
    }
}
