//! Commands on this machine's GPU (`--target cuda`).
//!
//! Invariant: a device is looked for before anything else is done, so a machine without one gets its answer at once.

use super::Talk;
use super::options::{self, Machinery, Watching};
use super::table::{Align, table};
use kiln::data::{self, From};
use kiln::gpu::{self, Precision, launch};
use kiln::ir::Tensor;
use kiln::ir::tile;
use kiln::notes::Notes;
use kiln::onnx::model::ValueType;
use kiln::runtime::artifact::{self, Artifact, LoadOptions};
use kiln::runtime::cuda::{Device, Model};
use kiln::runtime::engine::LoadError;
use kiln::{Error, Source, compare};
use serde_json::json;
use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

/// A model on the device, with inputs for it.
pub struct Ready {
    /// What was compiled.
    pub compiled: gpu::Compiled,
    /// What is loaded.
    pub model: Model,
    /// The inputs, in order.
    pub inputs: Vec<Tensor>,
    /// The types of the outputs as the model declares them.
    pub declared: Vec<Option<ValueType>>,
}

/// What a device is, in a line.
pub fn describe(device: &Device) -> String {
    let p = device.properties();
    let (major, minor) = p.capability;
    let gib = p.memory as f64 / f64::from(1 << 30);
    format!(
        "{} (sm_{major}{minor}, {gib:.1} GiB, driver for CUDA {}.{})",
        p.name,
        p.driver / 1000,
        p.driver % 1000 / 10
    )
}

/// Compiles a model for the GPU of this machine and loads it there.
///
/// # Errors
/// There is no GPU; those of compiling and loading.
pub fn ready(
    path: &Path,
    machinery: &Machinery,
    watching: &Watching,
    from: Option<From>,
    taps: &[String],
    talk: Talk,
) -> Result<Ready, Error> {
    let device = Device::open()?;
    let onnx = match Source::open(path)? {
        Source::Artifact(path) => {
            let path = path.display();
            return Err(Error::Usage(format!("{path}: an artifact only runs on a GPU (`kiln run`); give the model")));
        }
        source @ Source::Model { .. } => source.model(&machinery.limits())?,
    };
    let machinery = &Machinery { gpu: true, ..machinery.clone() };
    let precision = Precision::parse(&machinery.precision)?;
    let (mut options, inputs) = options::with_inputs(&onnx, machinery, from, Vec::new(), &machinery.budget())?;
    options.taps = taps.to_vec();
    let named = options::by_name(&onnx, &inputs);
    let target = (launch::architecture(&device), precision);
    let compiled = loop {
        match gpu::compile(&onnx, &options, target, &mut watching.observers(machinery, talk)?) {
            Err(error) if options.learn(&error, &named) => {}
            done => break done?,
        }
    };
    let model = launch::load(&compiled, device)?;
    let declared = onnx.graph.outputs.iter().map(|o| o.ty.clone()).collect();
    Ok(Ready { compiled, model, inputs, declared })
}

/// What a run on the device gave.
pub struct Outcome {
    /// The device, in a line.
    pub device: String,
    /// The outputs by name.
    pub outputs: Vec<(String, Tensor)>,
    /// Their types as the model declares them.
    pub declared: Vec<Option<ValueType>>,
}

/// Runs the program of an artifact for this machine's GPU once.
///
/// # Errors
/// There is no GPU, or the artifact has no program for it; those of reading inputs and running.
pub fn run_stored(
    path: &Path,
    machinery: &Machinery,
    from: Option<From>,
    save_inputs: Option<&Path>,
) -> Result<Outcome, Error> {
    let device = Device::open()?;
    let file = Artifact::open(path, &LoadOptions::default()).map_err(LoadError::Artifact)?;
    let launch::Stored { entry, plan, mut model } = launch::load_stored(&file, device)?;
    let text = file.text(&artifact::of_entry(&entry, artifact::NOTES)).map_err(LoadError::Artifact)?;
    let notes = Notes::parse(text)?;
    let wanted = data::declared_types(&plan, &plan.inputs, &notes.inputs)?;
    let declared = data::declared_types(&plan, &plan.outputs, &notes.outputs)?;
    let shape = |name: &str| data::unit_shape(&plan, name);
    let inputs = options::read_inputs(from, &wanted, &shape, &machinery.budget())?;
    if let Some(path) = save_inputs {
        super::run::save(path, &plan, &inputs)?;
    }
    let device = describe(model.device());
    let results = model.run(&inputs)?;
    tracing::info!("run: the program for {entry} on {device}");
    let outputs = plan.outputs.iter().map(|(name, _)| name.to_string()).zip(results).collect();
    Ok(Outcome { device, outputs, declared: declared.into_iter().map(|o| Some(o.ty)).collect() })
}

/// Looks for a device.
///
/// # Errors
/// There is none.
pub fn probe() -> Result<(), Error> {
    Device::open()?;
    Ok(())
}

/// Runs a model once; keeps its inputs where that is asked for.
///
/// # Errors
/// A kernel or a host step fails.
pub fn run(ready: Ready, save_inputs: Option<&Path>) -> Result<Outcome, Error> {
    let Ready { compiled, mut model, inputs, declared } = ready;
    if let Some(path) = save_inputs {
        super::run::save(path, &compiled.plan, &inputs)?;
    }
    let device = describe(model.device());
    let graphs = model.graph_count();
    let start = Instant::now();
    let results = model.run(&inputs)?;
    tracing::info!("run: {:.3} ms on {device}, {graphs} graphs", start.elapsed().as_secs_f64() * 1e3);
    let outputs = compiled.plan.outputs.iter().map(|(name, _)| name.to_string()).zip(results).collect();
    Ok(Outcome { device, outputs, declared })
}

/// Times a model: whole runs by this machine's clock, kernels by the device's.
pub fn bench(ready: Ready, runs: u64, talk: Talk) -> Result<(), Error> {
    let Ready { compiled, mut model, inputs, .. } = ready;
    let mut times = Vec::new();
    // The first run is not counted.
    for n in 0..=runs.max(1) {
        let start = Instant::now();
        model.run(&inputs)?;
        if n > 0 {
            times.push(start.elapsed().as_secs_f64());
        }
    }
    times.sort_unstable_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(0.0);
    let graphs = model.time_graphs(10)?;
    let each = model.time(5, 20)?;
    let (mut rows, mut list) = (Vec::new(), Vec::new());
    for (step, kernel, seconds) in &each {
        let Some(of_plan) = compiled.plan.kernels.get(*kernel) else { continue };
        let tera = of_plan.operations as f64 / seconds * 1e-12;
        let giga = of_plan.bytes as f64 / seconds * 1e-9;
        let what = format!("{} ({})", of_plan.what, of_plan.origin);
        let cells = [format!("{:.1}", seconds * 1e6), format!("{tera:.2}"), format!("{giga:.0}")];
        let [us, tera_cell, giga_cell] = cells;
        rows.push([of_plan.name.clone(), us, tera_cell, giga_cell, what.clone()]);
        list.push(json!({ "step": step, "kernel": of_plan.name, "what": what, "seconds": seconds,
                          "operations": of_plan.operations, "bytes": of_plan.bytes }));
    }
    let all: f64 = each.iter().map(|e| e.2).sum();
    let device = describe(model.device());
    let columns = [
        ("kernel", Align::Left),
        ("us", Align::Right),
        ("TFLOP/s", Align::Right),
        ("GB/s", Align::Right),
        ("what", Align::Left),
    ];
    let mut text = format!(
        "on {device}: median {:.3} ms of {} runs with copies of inputs and outputs\n",
        median * 1e3,
        times.len()
    );
    let _ = writeln!(text, "all kernels once, in their graphs, by the device's clock: {:.3} ms", graphs * 1e3);
    let _ = writeln!(text, "kernels by the device's clock, {:.1} us together:", all * 1e6);
    text.push_str(&table("  ", columns, &rows));
    let report = json!({ "device": device, "runs": times.len(), "median_ms": median * 1e3,
                         "min_ms": times.first().map(|t| t * 1e3), "device_ms": graphs * 1e3, "kernels_ms": all * 1e3, "kernels": list });
    talk.report(&report, &text)
}

/// Runs a model on the device and compares its outputs with `expected` and, with `each`, every kernel with its tile program.
pub fn verify(ready: Ready, expected: &[Tensor], tolerance: f64, each: bool, talk: Talk) -> Result<(), Error> {
    let Ready { compiled, mut model, inputs, .. } = ready;
    let device = describe(model.device());
    let (mut text, mut wrong) = (String::new(), Vec::new());
    let (mut list, mut kernels) = (Vec::new(), Vec::new());
    let found = model.run(&inputs)?;
    // A second run of the same graph must give the same bits.
    let again = model.run(&inputs)?;
    for ((name, _), ((want, found), again)) in compiled.plan.outputs.iter().zip(expected.iter().zip(&found).zip(&again))
    {
        let difference = compare::difference(want, found);
        let ok = difference.within(tolerance);
        let verdict = if ok { "agrees" } else { "DIFFERS" };
        let _ = writeln!(text, "{name} (on {device}): {verdict}; {difference}");
        list.push(json!({ "output": &**name, "agrees": ok, "difference": difference.to_string() }));
        if !ok {
            wrong.push(format!("output {name:?} on {device}: {difference}"));
        }
        if found.bytes() != again.bytes() {
            wrong.push(format!("output {name:?} differs from one run to the next"));
        }
    }
    if each {
        let mut failure = None;
        model.visit(&inputs, &mut |visit| {
            let Some(made) = compiled.kernels.get(visit.kernel) else { return };
            let mut want = visit.before.to_vec();
            if let Err(e) = tile::run(&made.tile, &mut want, &|_| None, 0..i64::MAX) {
                failure.get_or_insert(Error::Internal(e.to_string()));
                return;
            }
            let apart = gpu::apart(&made.tile, &want, visit.after.iter().map(Vec::as_slice));
            let name = &made.tile.name;
            kernels.push(json!({ "kernel": name, "difference": apart }));
            if apart.is_nan() || apart > gpu::allowed(&made.tile) {
                let _ = writeln!(text, "{name}: DIFFERS from its tile program by {apart:.2e}");
                wrong.push(format!("{name} differs from its tile program"));
            }
        })?;
        if let Some(failure) = failure {
            return Err(failure);
        }
        let _ = writeln!(text, "{} kernels compared with their tile programs", kernels.len());
    }
    let report = json!({ "agrees": wrong.is_empty(), "tolerance": tolerance, "device": device,
                         "outputs": list, "kernels": kernels });
    talk.report(&report, &text)?;
    wrong.truncate(8);
    if wrong.is_empty() { Ok(()) } else { Err(Error::Mismatch(wrong.join("; "))) }
}
