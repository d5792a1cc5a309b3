//! What is known of a model's kernels for GPUs, as a table.

use super::Talk;
use super::table::{Align, table};
use kiln::Error;
use kiln::gpu::estimate::{self, GPUS};
use kiln::gpu::{Architecture, Compiled};
use serde_json::json;
use std::fmt::Write;

/// This machine's GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDevice {
    /// Through the NVIDIA driver.
    Cuda,
}

impl std::str::FromStr for OnDevice {
    type Err = String;

    fn from_str(name: &str) -> Result<OnDevice, String> {
        match name {
            "cuda" => Ok(OnDevice::Cuda),
            _ => Err("models run on `cuda`, or on the CPU without this option".into()),
        }
    }
}

/// Where PTX is run to verify it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// In the interpreter, made for an architecture.
    Interpreter(Architecture),
    /// On this machine's GPU.
    Device(OnDevice),
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(name: &str) -> Result<Target, String> {
        let architecture =
            |e| name.parse().map(Target::Interpreter).map_err(|a: String| if name.starts_with("sm_") { a } else { e });
        name.parse().map(Target::Device).or_else(architecture)
    }
}

/// Kernels with their launches, registers where NVIDIA's assembler is there, and estimates.
pub fn report(compiled: &Compiled, talk: Talk) -> Result<(), Error> {
    let assembler = estimate::assembler();
    let registers = assembler.as_deref().map(|a| estimate::registers(compiled, a)).unwrap_or_default();
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    let mut totals = vec![0f64; GPUS.len()];
    for (n, (kernel, of_plan)) in compiled.kernels.iter().zip(&compiled.plan.kernels).enumerate() {
        for (part, (module, warp)) in kernel.modules.iter().zip(&kernel.warps).enumerate() {
            let used = registers.get(n).and_then(|r| r.get(part)).copied().flatten();
            let (launch, (_, shared)) = (&module.launch, warp.shared_layout());
            let all: Vec<_> =
                GPUS.iter().map(|gpu| (gpu, estimate::estimate(kernel, of_plan, part, used, gpu))).collect();
            totals.iter_mut().zip(&all).for_each(|(t, (_, e))| *t += e.seconds);
            let cell = |e: &estimate::Estimate| format!("{:.1} {}", e.seconds * 1e6, e.bound);
            let (first, second) = (all.first().map(|a| &a.1), all.get(1).map(|a| &a.1));
            rows.push([
                launch.entry.clone(),
                launch.blocks.to_string(),
                launch.threads.to_string(),
                shared.to_string(),
                used.map_or("?".into(), |r| r.to_string()),
                first.map_or(String::new(), |e| format!("{:.0} %", 100.0 * e.occupancy)),
                first.map_or(String::new(), cell),
                second.map_or(String::new(), cell),
                format!("{} ({})", of_plan.what, of_plan.origin),
            ]);
            let gpus: Vec<_> = all
                .iter()
                .map(|(gpu, e)| {
                    json!({ "gpu": gpu.name, "blocks_per_multiprocessor": e.resident, "occupancy": e.occupancy,
                            "seconds": e.seconds, "bound": e.bound })
                })
                .collect();
            list.push(json!({ "kernel": launch.entry, "blocks": launch.blocks.as_const(), "threads": launch.threads,
                              "shared": shared, "registers": used, "operations": of_plan.operations,
                              "bytes": of_plan.bytes, "estimates": gpus }));
        }
    }
    let columns = [
        ("kernel", Align::Left),
        ("blocks", Align::Right),
        ("threads", Align::Right),
        ("shared", Align::Right),
        ("registers", Align::Right),
        ("occupancy", Align::Right),
        ("us on A100", Align::Right),
        ("us on H100", Align::Right),
        ("what", Align::Left),
    ];
    let mut text = format!("kernels for {}\n", compiled.architecture.name);
    text.push_str(&table("  ", columns, &rows));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "estimates from public data (rooflines, occupancy on A100), not measured; all kernels together, at least:"
    );
    for (gpu, total) in GPUS.iter().zip(&totals) {
        let _ = writeln!(text, "  {}: {:.0} us", gpu.name, total * 1e6);
    }
    if assembler.is_none() {
        text.push_str("registers are not known: no ptxas on the PATH or in KILN_PTXAS\n");
    }
    for host in &compiled.notes.hosts {
        let _ = writeln!(text, "on the host: {} ({})", host.origin.join(", "), host.why);
    }
    let totals: Vec<_> = GPUS.iter().zip(&totals).map(|(g, t)| json!({ "gpu": g.name, "seconds": t })).collect();
    let report =
        json!({ "target": compiled.architecture.name, "measured": false, "kernels": list, "estimates": totals });
    talk.report(&report, &text)
}
