//! What a kernel could reach on GPUs, from public data.
//!
//! Invariant: these are estimates and no measurements: a roofline knows no latency, no cache and no clock that falls
//! under load; docs/gpu.md says how far they are off. They rank kernels and say what bounds them; they promise nothing.

use super::{Compiled, Kernel};
use kiln_ir::plan::Kernel as OfPlan;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A GPU in public numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Streaming multiprocessors.
    pub multiprocessors: u64,
    /// f32 operations a second outside of matrix units.
    pub f32_operations: f64,
    /// Operations a second of matrix units on f16 or bf16, without sparsity.
    pub matrix_operations: f64,
    /// Bytes a second of its memory.
    pub bandwidth: f64,
    /// Of a multiprocessor: bytes of shared memory for blocks.
    pub shared: u64,
    /// Of a multiprocessor: threads.
    pub threads: u64,
    /// Of a multiprocessor: blocks.
    pub blocks: u64,
}

/// GPUs, from NVIDIA's data sheets (A100 80GB SXM, H100 SXM, L4, GeForce RTX 4090) and the table of compute capabilities
/// in the CUDA C++ Programming Guide.
pub const GPUS: &[Gpu] = &[
    gpu("A100", 108, (19.5, 312.0), 2039.0, (164, 2048, 32)),
    gpu("H100", 132, (66.9, 989.0), 3350.0, (228, 2048, 32)),
    gpu("L4", 58, (30.3, 121.0), 300.0, (100, 1536, 24)),
    gpu("RTX 4090", 128, (82.6, 165.0), 1008.0, (100, 1536, 24)),
];

/// A row of the table: multiprocessors, TFLOP/s of f32 and of matrix units, GB/s, and of a multiprocessor KiB of shared memory,
/// threads and blocks.
const fn gpu(
    name: &'static str,
    multiprocessors: u64,
    (f32_tera, matrix_tera): (f64, f64),
    giga: f64,
    (shared_kib, threads, blocks): (u64, u64, u64),
) -> Gpu {
    Gpu {
        name,
        multiprocessors,
        f32_operations: f32_tera * 1e12,
        matrix_operations: matrix_tera * 1e12,
        bandwidth: giga * 1e9,
        shared: shared_kib << 10,
        threads,
        blocks,
    }
}

/// Registers of a multiprocessor, of all architectures here.
const REGISTERS: u64 = 65536;

/// What is estimated of a launch on a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Blocks that a multiprocessor holds at once.
    pub resident: u64,
    /// The share of its threads that are then there.
    pub occupancy: f64,
    /// Seconds below which the kernel cannot be.
    pub seconds: f64,
    /// What bounds it: `memory`, `arithmetic`, or `launch` where its blocks do not fill the GPU once.
    pub bound: &'static str,
}

/// The launch of a kernel's n-th part on a GPU.
pub fn estimate(kernel: &Kernel, of_plan: &OfPlan, part: usize, registers: Option<u64>, gpu: &Gpu) -> Estimate {
    let module = kernel.modules.get(part);
    let threads = module.map_or(32, |m| u64::from(m.launch.threads)).max(1);
    let shared = kernel.warps.get(part).map_or(0, |w| w.shared_layout().1 as u64);
    let blocks = module.and_then(|m| m.launch.blocks.as_const()).and_then(|b| u64::try_from(b).ok()).unwrap_or(1);
    // Registers are given to warps in units of 256; each block takes 1 KiB of shared memory for itself.
    let by_registers = registers.map_or(u64::MAX, |r| {
        let warp = (r * 32).next_multiple_of(256).max(256);
        REGISTERS / warp / (threads / 32).max(1)
    });
    let resident =
        by_registers.min(gpu.threads / threads).min(gpu.shared / (shared + 1024)).min(gpu.blocks).max(u64::from(true));
    let parts = kernel.modules.len().max(1) as f64;
    let matrix = module.is_some_and(|m| m.text.contains("mma.sync"));
    let peak = if matrix { gpu.matrix_operations } else { gpu.f32_operations };
    // A GPU that is not full has that share of its arithmetic only.
    let share = (blocks as f64 / gpu.multiprocessors as f64).clamp(1e-9, 1.0);
    let memory = of_plan.bytes as f64 / parts / gpu.bandwidth;
    let arithmetic = of_plan.operations as f64 / parts / (peak * share);
    // What the least of kernels takes within a CUDA graph: 1.1 to 1.3 us on an H100.
    let launch = 1.2e-6;
    let seconds = memory.max(arithmetic).max(launch);
    let bound = if seconds == launch {
        "launch"
    } else if memory >= arithmetic {
        "memory"
    } else {
        "arithmetic"
    };
    Estimate { resident, occupancy: (resident * threads) as f64 / gpu.threads as f64, seconds, bound }
}

/// NVIDIA's assembler: `KILN_PTXAS`, else on the PATH.
pub fn assembler() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("KILN_PTXAS") {
        return Some(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("ptxas")).find(|program| program.is_file())
}

/// Registers of a thread of every launch, in the order of kernels and parts, as the assembler says; nothing for those that it
/// refuses or where it cannot be run.
pub fn registers(compiled: &Compiled, assembler: &Path) -> Vec<Vec<Option<u64>>> {
    let of = |text: &str| -> Option<u64> {
        let folder = tempfile::tempdir().ok()?;
        let (source, target) = (folder.path().join("k.ptx"), folder.path().join("k.cubin"));
        std::fs::write(&source, text).ok()?;
        let mut command = Command::new(assembler);
        command.args(["-v", "-arch", compiled.architecture.name]).arg(&source).arg("-o").arg(target);
        let output = command.output().ok().filter(|o| o.status.success())?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let (_, after) = log.split_once("Used ")?;
        after.split_whitespace().next()?.parse().ok()
    };
    compiled.kernels.iter().map(|k| k.modules.iter().map(|m| of(&m.text)).collect()).collect()
}
