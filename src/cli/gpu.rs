//! What is known of a model's kernels for GPUs, as a table.

use super::Talk;
use super::table::{Align, table};
use kiln::Error;
use kiln::gpu::estimate::{self, Estimate, GPUS, Known};
use kiln::gpu::judged::{self, Judged, Tools};
use kiln::gpu::stored::{Launch, Launches};
use kiln::gpu::{self, Architecture};
use kiln::ir::plan::{Kernel, Plan, Step};
use kiln::notes::Host;
use kiln::ptx::emulate;
use serde_json::json;
use std::collections::{BTreeMap, HashMap};
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

/// The program of a model for an architecture.
pub struct Program<'a> {
    /// Name of the architecture.
    pub architecture: &'a str,
    /// Its plan.
    pub plan: &'a Plan,
    /// For each kernel of the plan its launches.
    pub launches: &'a Launches,
    /// What runs on the host.
    pub hosts: &'a [Host],
}

/// A launch with all that is known of it.
struct Row {
    shared: u64,
    judged: Option<Judged>,
    estimates: Vec<Estimate>,
}

/// A text without the name of its entry, and bytes of buffers: what decides how many instructions a block has.
type Alike = (String, Vec<u64>);

/// What is read off a text: bytes of its own shared memory, and instructions of a block.
type FromText = (usize, Option<u64>);

impl Program<'_> {
    /// Bytes of the arguments of each kernel's step.
    fn bytes(&self) -> HashMap<usize, Vec<u64>> {
        let launches = self.plan.steps.iter().filter_map(|step| match step {
            Step::Launch { kernel, arguments, .. } => {
                Some((*kernel, arguments.iter().map(|slot| self.plan.slot_bytes(*slot)).collect()))
            }
            _ => None,
        });
        launches.collect()
    }

    fn row(
        &self,
        (of_plan, launch, parts): (&Kernel, &Launch, usize),
        bytes: &[u64],
        tools: Option<&mut Tools>,
        read: &mut HashMap<Alike, FromText>,
    ) -> Row {
        let judged = tools.and_then(|tools| tools.judge(&launch.text, &launch.entry, self.architecture));
        let alike = (launch.text.replace(&launch.entry, "?"), bytes.to_vec());
        let (of_text, instructions) = *read.entry(alike).or_insert_with(|| {
            let Ok(module) = emulate::Module::parse(&launch.text) else { return (0, None) };
            let of_text = module.kernel(&launch.entry).map_or(0, emulate::Kernel::static_shared);
            (of_text, gpu::emulate::instructions_of_a_block(&module, launch, bytes))
        });
        let shared = of_text.saturating_add(launch.shared) as u64;
        let registers = judged.as_ref().map(|j| j.registers);
        let known = Known { launch, of_plan, parts, shared, registers, instructions };
        Row { shared, judged, estimates: GPUS.iter().map(|gpu| estimate::estimate(&known, gpu)).collect() }
    }
}

/// Kernels with their launches, registers and instructions where NVIDIA's tools are there, and estimates.
pub fn report(program: &Program<'_>, talk: Talk) -> Result<(), Error> {
    let mut tools = Tools::find();
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    let (bytes, mut read) = (program.bytes(), HashMap::new());
    let mut totals = vec![0f64; GPUS.len()];
    let mut opcodes: BTreeMap<String, u64> = BTreeMap::new();
    for (n, (parts, of_plan)) in program.launches.iter().zip(&program.plan.kernels).enumerate() {
        for launch in parts {
            let bytes = bytes.get(&n).map_or(&[][..], Vec::as_slice);
            let row = program.row((of_plan, launch, parts.len()), bytes, tools.as_mut(), &mut read);
            let Row { shared, judged, estimates } = row;
            totals.iter_mut().zip(&estimates).for_each(|(t, e)| *t += e.seconds);
            let us = |seconds: f64| format!("{:.1}", seconds * 1e6);
            let cell = |e: &Estimate| format!("{} {}", us(e.seconds), e.bound);
            let (first, second) = (estimates.first(), estimates.get(1));
            let number = |f: fn(&Judged) -> u64| judged.as_ref().map_or("?".into(), |j| f(j).to_string());
            let of_first = |f: &dyn Fn(&Estimate) -> String| first.map_or(String::new(), f);
            rows.push([
                launch.entry.clone(),
                launch.blocks.to_string(),
                launch.threads.to_string(),
                shared.to_string(),
                number(|j| j.registers),
                number(|j| j.spilled),
                of_first(&|e| format!("{:.0} %", 100.0 * e.occupancy)),
                of_first(&|e| us(e.memory)),
                of_first(&|e| us(e.arithmetic)),
                of_first(&|e| e.issue.map_or("?".into(), us)),
                of_first(&cell),
                second.map_or(String::new(), cell),
                format!("{} ({})", of_plan.what, of_plan.origin),
            ]);
            let sass = judged.as_ref().and_then(|j| j.sass.as_ref());
            let histogram = sass.map(judged::Sass::histogram);
            for (opcode, count) in histogram.iter().flatten() {
                *opcodes.entry((*opcode).into()).or_default() += count;
            }
            let of_gpus: Vec<_> = (GPUS.iter().zip(&estimates))
                .map(|(gpu, e)| {
                    json!({ "gpu": gpu.name, "blocks_per_multiprocessor": e.resident, "occupancy": e.occupancy,
                            "memory": e.memory, "arithmetic": e.arithmetic, "issue": e.issue,
                            "seconds": e.seconds, "bound": e.bound })
                })
                .collect();
            let judged = judged.as_ref();
            list.push(json!({
                "kernel": launch.entry, "blocks": launch.blocks, "threads": launch.threads, "shared": shared,
                "registers": judged.map(|j| j.registers), "spilled": judged.map(|j| j.spilled),
                "stack": judged.map(|j| j.stack), "sass": histogram, "loop": sass.map(|s| s.hot.len()),
                "operations": of_plan.operations, "bytes": of_plan.bytes, "estimates": of_gpus,
            }));
        }
    }
    let columns = [
        ("kernel", Align::Left),
        ("blocks", Align::Right),
        ("threads", Align::Right),
        ("shared", Align::Right),
        ("registers", Align::Right),
        ("spilled", Align::Right),
        ("occupancy", Align::Right),
        ("memory", Align::Right),
        ("arithmetic", Align::Right),
        ("issue", Align::Right),
        ("us on A100", Align::Right),
        ("us on H100", Align::Right),
        ("what", Align::Left),
    ];
    let mut text = format!("kernels for {}\n", program.architecture);
    text.push_str(&table("  ", columns, &rows));
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "estimates from public data (rooflines; occupancy, and us of memory, arithmetic and issue, on A100), not measured; all kernels \
         together, at least:"
    );
    for (gpu, total) in GPUS.iter().zip(&totals) {
        let _ = writeln!(text, "  {}: {:.0} us", gpu.name, total * 1e6);
    }
    let mut most: Vec<(&String, &u64)> = opcodes.iter().collect();
    most.sort_by_key(|(opcode, count)| (std::cmp::Reverse(**count), *opcode));
    if !most.is_empty() {
        let most: Vec<String> = most.iter().take(16).map(|(opcode, count)| format!("{opcode} {count}")).collect();
        let _ = writeln!(text, "instructions in the text of all kernels: {}", most.join(", "));
    }
    match &tools {
        None => text.push_str(
            "registers are not known: no ptxas in KILN_PTXAS, on the PATH or in the active Python environment\n",
        ),
        Some(tools) if !tools.has_disassembler() => {
            text.push_str("instructions are not known: no nvdisasm in KILN_NVDISASM, on the PATH or beside ptxas\n");
        }
        Some(_) => {}
    }
    for host in program.hosts {
        let _ = writeln!(text, "on the host: {} ({})", host.origin.join(", "), host.why);
    }
    let totals: Vec<_> = GPUS.iter().zip(&totals).map(|(g, t)| json!({ "gpu": g.name, "seconds": t })).collect();
    let report = json!({ "target": program.architecture, "measured": false, "kernels": list, "estimates": totals, "sass": opcodes });
    talk.report(&report, &text)
}
