//! What this machine can do at best, measured by kernels that Kiln's own emitters make.
//!
//! Invariant: the peaks are measured by the engine, with the threads and the code level that the measured model runs on, so
//! that a share of them is a share of what this code generator reaches in the best case. The roofline is Williams,
//! Waterman and Patterson, "Roofline: an insightful visual performance model" (2009), with one bandwidth for each size of
//! memory that is read.

use crate::emit::{Emitters, LevelCode};
use crate::{Compiled, Error};
use kiln_cpu::wide::{self, WideLevel};
use kiln_ir::expr::Expr;
use kiln_ir::graph::{Origin, TensorType};
use kiln_ir::plan::{Kernel, Place, Plan, Slot, Step};
use kiln_ir::vector::VectorProgram;
use kiln_ir::{DType, Tensor};
use kiln_runtime::artifact::{KernelEntry, KernelTable};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{Context, ModelOptions};
use kiln_runtime::memory::Budget;
use std::fmt::Write;
use std::time::{Duration, Instant};

/// How fast memory of some size is read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Bytes that are read again and again.
    pub bytes: u64,
    /// Bytes a second.
    pub rate: f64,
}

/// The peaks of a machine, for a level and a number of threads.
#[derive(Clone, Debug, PartialEq)]
pub struct Peaks {
    /// f32 operations a second of multiply-adds between registers; a multiply-add is two.
    pub operations: f64,
    /// Rates of reading, for ever larger memory.
    pub reads: Vec<Bandwidth>,
}

impl Peaks {
    /// The rate at which memory of that many bytes is read at best.
    pub fn bandwidth(&self, bytes: u64) -> f64 {
        let fits = self.reads.iter().find(|b| b.bytes >= bytes).or(self.reads.last());
        fits.map_or(f64::INFINITY, |b| b.rate)
    }

    /// The least seconds in which a kernel can do its work, and whether memory is what limits it.
    pub fn least_seconds(&self, operations: u64, bytes: u64) -> (f64, bool) {
        let compute = operations as f64 / self.operations;
        let memory = bytes as f64 / self.bandwidth(bytes);
        (compute.max(memory), memory > compute)
    }
}

/// Programs of each kernel: enough for the threads to share them evenly.
const PROGRAMS: i64 = 32;
/// Multiply-adds of each accumulator in a program.
const STEPS: i64 = 8_000;
/// Accumulators of a program that reads.
const SUMS: usize = 8;

/// Bytes that a program reads, how often, and for a program of its own or all together.
struct Probe {
    /// Bytes that each program reads.
    bytes: i64,
    /// How often each program reads them.
    times: i64,
}

/// Memory within the first caches of a core, within those that cores share, and beyond.
const PROBES: &[Probe] =
    &[Probe { bytes: 256 << 10, times: 16 }, Probe { bytes: 512 << 10, times: 1 }, Probe { bytes: 4 << 20, times: 1 }];

impl Probe {
    /// The bytes that are read again and again: what one program reads where it reads it again, else what all read.
    fn working_set(&self, threads: usize) -> u64 {
        let each = self.bytes.unsigned_abs();
        if self.times > 1 { each * threads as u64 } else { each * PROGRAMS.unsigned_abs() }
    }
}

/// Measures the peaks, for a fraction of a second.
///
/// # Errors
/// This build makes no code for the level, or there is no memory.
pub fn measure(level: CpuLevel, threads: usize, budget: &Budget) -> Result<Peaks, Error> {
    let emitters =
        Emitters::of(level).ok_or_else(|| Error::Unsupported(format!("this build makes no code for {level}")))?;
    let (lanes, sums) = match emitters.wide {
        None => (4, 12),
        Some(WideLevel::Avx2 | WideLevel::Avx2Vnni) => (8, 12),
        Some(WideLevel::Avx512 | WideLevel::Avx512Vnni | WideLevel::Avx512Bf16 | WideLevel::Amx) => (16, 24),
    };
    let mut programs = vec![multiply_adds(lanes, sums)];
    programs.extend(PROBES.iter().map(|p| reads(lanes, p)));
    let mut code = LevelCode { level, bytes: Vec::new(), table: KernelTable::default() };
    for (n, text) in programs.iter().enumerate() {
        let internal = |e: String| Error::Internal(format!("a peak's kernel: {e}"));
        let program = VectorProgram::parse(text).map_err(|e| internal(e.to_string()))?;
        let made = match emitters.wide {
            Some(level) => wide::compile(&program, level),
            None => kiln_cpu::compile(&program, emitters.narrow),
        };
        let made = made.map_err(|e| internal(e.to_string()))?;
        let start = code.bytes.len().next_multiple_of(64.max(made.alignment as usize));
        code.bytes.resize(start, 0xcc);
        code.bytes.extend_from_slice(&made.bytes);
        code.table.0.push(KernelEntry {
            name: format!("k{n}"),
            offset: start as u64,
            bytes: made.bytes.len() as u64,
            grain: 1,
            emitter: "peak".into(),
            programs: Expr::from(PROGRAMS),
        });
    }
    let floats = PROBES.iter().map(|p| p.bytes).max().unwrap_or(0) * PROGRAMS / 4;
    let plan = plan(programs.len(), floats, PROGRAMS * (sums * lanes) as i64);
    let compiled = Compiled::of_code("peaks", plan, code);
    let model = compiled.load(&ModelOptions { levels: Some(vec![level]), ..ModelOptions::default() })?;
    let count = usize::try_from(floats).unwrap_or(0);
    // Charged to the budget by the context; written, as zeros that were never touched are one page of memory.
    let data = Tensor::from_f32(&[count], &vec![1.0; count]).map_err(|e| Error::Internal(e.to_string()))?;
    let mut context = Context::new(&model, threads, budget)?;
    context.load(&[data])?;
    let mut best = vec![Duration::MAX; programs.len()];
    let begin = Instant::now();
    let mut runs = 0;
    while runs < 3 || begin.elapsed() < Duration::from_millis(400) {
        let mut last = Instant::now();
        context.run_watched(&mut |n| {
            let now = Instant::now();
            if let Some(best) = best.get_mut(n) {
                *best = (*best).min(now - last);
            }
            last = now;
        })?;
        runs += 1;
    }
    let rate = |n: usize, amount: f64| best.get(n).map_or(0.0, |t| amount / t.as_secs_f64().max(1e-9));
    let operations = rate(0, 2.0 * (PROGRAMS * STEPS) as f64 * (sums * lanes) as f64);
    let bandwidth = |(n, p): (usize, &Probe)| Bandwidth {
        bytes: p.working_set(threads),
        rate: rate(n + 1, (p.bytes * p.times * PROGRAMS) as f64),
    };
    Ok(Peaks { operations, reads: PROBES.iter().enumerate().map(bandwidth).collect() })
}

/// One launch of each kernel on an input of `floats` elements and an output of `results`.
fn plan(kernels: usize, floats: i64, results: i64) -> Plan {
    let mut plan = Plan { name: "peaks".into(), ..Plan::default() };
    let ty = |n: i64| TensorType::new(DType::F32, vec![Expr::from(n)]);
    let data = plan.slots.push(Slot { name: None, ty: ty(floats), place: Place::Input(0) });
    let sums = plan.slots.push(Slot { name: None, ty: ty(results), place: Place::Output(0) });
    plan.inputs.push(("data".into(), data));
    plan.outputs.push(("sums".into(), sums));
    for n in 0..kernels {
        let (name, what) = (format!("k{n}"), "peak".to_string());
        plan.kernels.push(Kernel { name, origin: Origin::default(), what, operations: 0, bytes: 0 });
        plan.steps.push(Step::Launch { kernel: n, arguments: vec![data, sums], written: 1 });
    }
    plan
}

/// Comma-separated items.
fn list(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(", ")
}

/// Stores of the accumulators `%(90+i)` to where program `%2`'s results are.
fn stores(lanes: usize, sums: usize) -> String {
    let mut text = format!("    %8: i64 = {}i64\n    %9: i64 = mul(%2, %8)\n", sums * lanes);
    for i in 0..sums {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "    store b1[%9 + {}], %{}", i * lanes, 90 + i);
    }
    text
}

/// A loop of multiply-adds between registers.
fn multiply_adds(lanes: usize, sums: usize) -> String {
    let v = format!("f32x{lanes}");
    let steps: String = (0..sums).map(|i| format!("      %{} : {v} = fma(%6, %7, %{})\n", 50 + i, 10 + i)).collect();
    format!(
        "vector @fma(b0: f32, b1: f32 written, dims 0) {{
  %0: i64 = lo
  %1: i64 = hi
  %3: i64 = 0i64
  %4: i64 = {STEPS}i64
  %6: {v} = load_splat b0[0]
  %7: {v} = load_splat b0[1]
  for %2 in %0..%1 step 1 {{
    for %5 in %3..%4 step 1 carry ({}) {{
{}    }} next ({}) as ({})
{}  }}
}}",
        list(sums, |i| format!("%{}: {v} = %6", 10 + i)),
        steps.replace(" :", ":"),
        list(sums, |i| format!("%{}", 50 + i)),
        list(sums, |i| format!("%{}", 90 + i)),
        stores(lanes, sums),
    )
}

/// Each program sums its part of the memory, as often as asked.
fn reads(lanes: usize, probe: &Probe) -> String {
    let v = format!("f32x{lanes}");
    let (floats, step) = (probe.bytes / 4, SUMS * lanes);
    let loads = |i: usize| {
        let at = i * lanes;
        format!(
            "        %{}: {v} = load b0[%13 + {at}]\n        %{}: {v} = add(%{}, %{})\n",
            20 + i,
            70 + i,
            50 + i,
            20 + i
        )
    };
    format!(
        "vector @read(b0: f32, b1: f32 written, dims 0) {{
  %0: i64 = lo
  %1: i64 = hi
  %3: i64 = 0i64
  %4: i64 = {floats}i64
  %5: i64 = {}i64
  %6: {v} = 0.0f32
  for %2 in %0..%1 step 1 {{
    %7: i64 = mul(%2, %4)
    for %10 in %3..%5 step 1 carry ({}) {{
      for %11 in %3..%4 step {step} carry ({}) {{
        %13: i64 = add(%7, %11)
{}      }} next ({}) as ({})
    }} next ({}) as ({})
{}  }}
}}",
        probe.times,
        list(SUMS, |i| format!("%{}: {v} = %6", 30 + i)),
        list(SUMS, |i| format!("%{}: {v} = %{}", 50 + i, 30 + i)),
        (0..SUMS).map(loads).collect::<String>(),
        list(SUMS, |i| format!("%{}", 70 + i)),
        list(SUMS, |i| format!("%{}", 80 + i)),
        list(SUMS, |i| format!("%{}", 80 + i)),
        list(SUMS, |i| format!("%{}", 90 + i)),
        stores(lanes, SUMS),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_runtime::cpu::Machine;

    #[test]
    fn peaks_are_measured_on_every_level_of_this_machine() {
        let here = Machine::detect();
        for level in crate::default_levels().into_iter().filter(|level| here.supports(*level)) {
            let peaks = measure(level, 1, &Budget::unlimited()).unwrap();
            assert!(peaks.operations > 1e8, "{level}: {peaks:?}");
            assert_eq!(peaks.reads.len(), PROBES.len());
            assert!(peaks.reads.iter().all(|b| b.rate > 1e8), "{level}: {peaks:?}");
            assert!(peaks.reads.is_sorted_by_key(|b| b.bytes));
        }
    }

    #[test]
    fn the_roof_is_the_lower_of_two() {
        let reads = vec![Bandwidth { bytes: 1000, rate: 100.0 }, Bandwidth { bytes: 100_000, rate: 10.0 }];
        let peaks = Peaks { operations: 1000.0, reads };
        assert_eq!(peaks.least_seconds(5000, 10), (5.0, false));
        assert_eq!(peaks.least_seconds(5000, 1000), (10.0, true));
        assert_eq!(peaks.least_seconds(0, 2000), (200.0, true));
        assert_eq!(peaks.bandwidth(1 << 40), 10.0);
    }
}
