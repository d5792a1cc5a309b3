//! What a kernel could reach on GPUs, from public data.
//!
//! Invariant: these are estimates and no measurements: a roofline knows no latency, no cache and no clock that falls
//! under load; docs/gpu.md says how far they are off. They rank kernels and say what bounds them; they promise nothing.

use super::stored::Launch;
use kiln_ir::plan::Kernel as OfPlan;

/// A GPU in public numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gpu {
    /// Its name.
    pub name: &'static str,
    /// Streaming multiprocessors.
    pub multiprocessors: u64,
    /// Multiply-adds of f32 that each of them begins in a cycle.
    pub lanes: u64,
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
    gpu("A100", (108, 64), (19.5, 312.0), 2039.0, (164, 2048, 32)),
    gpu("H100", (132, 128), (66.9, 989.0), 3350.0, (228, 2048, 32)),
    gpu("L4", (58, 128), (30.3, 121.0), 300.0, (100, 1536, 24)),
    gpu("RTX 4090", (128, 128), (82.6, 165.0), 1008.0, (100, 1536, 24)),
];

/// A row of the table: multiprocessors and lanes of each, TFLOP/s of f32 and of matrix units, GB/s, and of a multiprocessor KiB of
/// shared memory, threads and blocks.
const fn gpu(
    name: &'static str,
    (multiprocessors, lanes): (u64, u64),
    (f32_tera, matrix_tera): (f64, f64),
    giga: f64,
    (shared_kib, threads, blocks): (u64, u64, u64),
) -> Gpu {
    Gpu {
        name,
        multiprocessors,
        lanes,
        f32_operations: f32_tera * 1e12,
        matrix_operations: matrix_tera * 1e12,
        bandwidth: giga * 1e9,
        shared: shared_kib << 10,
        threads,
        blocks,
    }
}

impl Gpu {
    /// Cycles of the clock in a second, at which the peak of f32 is counted.
    fn clock(&self) -> f64 {
        self.f32_operations / (self.multiprocessors * self.lanes * 2) as f64
    }
}

/// Registers of a multiprocessor, of all architectures here.
const REGISTERS: u64 = 65536;

/// Warps of which a multiprocessor begins an instruction in a cycle.
const ISSUES: u64 = 4;

/// What is known of a launch before it runs.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The launch.
    pub launch: &'a Launch,
    /// The kernel that it is a part of.
    pub of_plan: &'a OfPlan,
    /// How many launches the kernel has.
    pub parts: usize,
    /// Bytes of a block's shared memory.
    pub shared: u64,
    /// Registers of a thread.
    pub registers: Option<u64>,
    /// Instructions of all warps of a block.
    pub instructions: Option<u64>,
}

/// What is estimated of a launch on a GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Estimate {
    /// Blocks that a multiprocessor holds at once.
    pub resident: u64,
    /// The share of its threads that are then there.
    pub occupancy: f64,
    /// Seconds that its bytes take.
    pub memory: f64,
    /// Seconds that its operations take, on matrix units where it has products for them.
    pub arithmetic: f64,
    /// Seconds until all instructions have been issued.
    pub issue: Option<f64>,
    /// Seconds below which the kernel cannot be: the largest of these, and of a launch.
    pub seconds: f64,
    /// What that is: `memory`, `tensor`, `arithmetic`, `issue` or `launch`.
    pub bound: &'static str,
}

/// A launch on a GPU.
pub fn estimate(known: &Known<'_>, gpu: &Gpu) -> Estimate {
    let Known { launch, of_plan, parts, shared, registers, instructions } = *known;
    let threads = u64::from(launch.threads).max(1);
    // Registers are given to warps in units of 256; each block takes 1 KiB of shared memory for itself.
    let by_registers = registers.map_or(u64::MAX, |r| {
        let warp = (r * 32).next_multiple_of(256).max(256);
        REGISTERS / warp / (threads / 32).max(1)
    });
    let resident =
        by_registers.min(gpu.threads / threads).min(gpu.shared / shared.saturating_add(1024)).min(gpu.blocks).max(1);
    let parts = parts.max(1) as f64;
    let matrix = ["mma.sync", "wgmma.mma_async"].iter().any(|of| launch.text.contains(of));
    let peak = if matrix { gpu.matrix_operations } else { gpu.f32_operations };
    // A GPU that is not full has that share of its arithmetic only.
    let share = (launch.blocks as f64 / gpu.multiprocessors as f64).clamp(1e-9, 1.0);
    let memory = of_plan.bytes as f64 / parts / gpu.bandwidth;
    let arithmetic = of_plan.operations as f64 / parts / (peak * share);
    let issue = instructions.map(|of_block| {
        let of_multiprocessor = of_block as f64 * launch.blocks.div_ceil(gpu.multiprocessors) as f64;
        of_multiprocessor / ISSUES as f64 / gpu.clock()
    });
    // What the least of kernels takes within a CUDA graph: 1.1 to 1.3 us on an H100.
    let bounds = [
        ("launch", 1.2e-6),
        ("memory", memory),
        (if matrix { "tensor" } else { "arithmetic" }, arithmetic),
        ("issue", issue.unwrap_or(0.0)),
    ];
    let (bound, seconds) = bounds.into_iter().fold(bounds[0], |most, b| if b.1 > most.1 { b } else { most });
    let occupancy = (resident * threads) as f64 / gpu.threads as f64;
    Estimate { resident, occupancy, memory, arithmetic, issue, seconds, bound }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_bound_decides() {
        let launch = |text: &str| Launch {
            entry: "k".into(),
            blocks: 216,
            threads: 256,
            shared: 0,
            arguments: Vec::new(),
            text: text.into(),
        };
        let of_plan = |operations, bytes| OfPlan {
            name: "k".into(),
            origin: Default::default(),
            what: "k".into(),
            operations,
            bytes,
        };
        let gpu = &GPUS[0];
        let of = |text: &str, operations, bytes, instructions| {
            let (launch, of_plan) = (launch(text), of_plan(operations, bytes));
            let registers = Some(64);
            estimate(
                &Known { launch: &launch, of_plan: &of_plan, parts: 1, shared: 40 << 10, registers, instructions },
                gpu,
            )
        };
        assert!((gpu.clock() / 1e9 - 1.41).abs() < 0.01);
        let small = of("", 1, 1, Some(100));
        assert_eq!((small.bound, small.seconds, small.resident, small.occupancy), ("launch", 1.2e-6, 4, 0.5));
        assert_eq!(of("", 1, 2_039_000_000, None).bound, "memory");
        assert!((of("", 1, 2_039_000_000, None).seconds - 1e-3).abs() < 1e-9);
        assert_eq!(of("", 19_500_000_000, 1, None).bound, "arithmetic");
        assert!((of("mma.sync", 312_000_000_000, 1, Some(1)).seconds - 1e-3).abs() < 1e-9);
        // Two blocks on each multiprocessor, four instructions a cycle.
        let issue = of("mma.sync", 1_000_000, 1, Some(1_000_000));
        assert_eq!(issue.bound, "issue");
        assert!((issue.seconds - 5e5 / gpu.clock()).abs() < 1e-9);
    }
}
