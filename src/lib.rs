//! Kiln compiles ONNX models ahead of time to one artifact of machine code, plan and weights.
//!
//! Invariant: [`compile`] is the whole line from a checked model to an artifact; each step has one input type and one
//! output type, and nothing here decides what the passes should.
#![forbid(unsafe_code)]

mod activations;
pub mod bundle;
pub mod compare;
pub mod cross;
pub mod data;
pub mod emit;
mod error;
pub mod fit;
pub mod golden;
pub mod gpu;
pub mod library;
pub mod lm;
pub mod notes;
pub mod npz;
pub mod observe;
pub mod peaks;
pub mod profile;
pub mod provenance;
pub mod quantize;
pub mod random;
pub mod reduce;
pub mod source;
pub mod steps;
pub mod tune;

pub use activations::Activations;
pub use bundle::Bundle;
use emit::Emitter;
pub use emit::{LevelCode, default_levels};
pub use error::{Error, Kind};
pub use kiln_frontend::{builder, checkpoint, families, nn, onnx};
pub use kiln_ir as ir;
pub use kiln_passes as passes;
pub use kiln_ptx as ptx;
pub use kiln_runtime as runtime;
use notes::{Notes, Operators};
pub use observe::{Observer, Silent};
pub use source::Source;
use tune::record::Tuning;

use kiln_frontend::onnx::import::{self, import};
use kiln_frontend::onnx::model::{Model, ValueInfo};
use kiln_ir::Tensor;
use kiln_ir::graph::{Graph, GraphError, Origin};
use kiln_ir::ops::Elements;
use kiln_ir::plan::Plan;
use kiln_passes::kernel::{Choice, Machine};
use kiln_passes::pipeline::{self, Scheduled, optimise, schedule};
pub use kiln_passes::pipeline::{Precision, UnknownPrecision};
use kiln_passes::plan::Weight;
use kiln_passes::rewrite::{has_products_of, strings_from_steps};
use kiln_runtime::artifact::{self, Artifact, Manifest, Section};
use kiln_runtime::cpu::CpuLevel;
use kiln_runtime::engine::{self, ModelOptions};
use kiln_runtime::memory::Budget;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::path::Path;

/// The compiler's version, as artifacts state it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// How to compile.
#[derive(Clone, Debug)]
pub struct Options {
    /// Symbolic dims by name, with their least and greatest value; equal ones fix the dim.
    pub bind: BTreeMap<String, (i64, i64)>,
    /// Inputs whose dims are fixed entirely, by name.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Inputs whose values are known, by name: the result is right for these values only.
    pub values: BTreeMap<String, Tensor>,
    /// How precisely products are computed.
    pub precision: Precision,
    /// CPU levels to make code for.
    pub levels: Vec<CpuLevel>,
    /// Nodes (all of their results) or values that become outputs too.
    pub taps: Vec<String>,
    /// Threads to compile on; the result does not depend on it.
    pub threads: usize,
    /// Bytes that constants and the arena may take together.
    pub memory_limit: u64,
    /// Schedules that a search has found better than the cost model's.
    pub tuning: Tuning,
    /// What activations are rounded to where they meet weights of few bits.
    pub activations: Activations,
}

impl Default for Options {
    fn default() -> Options {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (bind, shapes, values) = Default::default();
        let tuning = Tuning::default();
        Options {
            bind,
            shapes,
            values,
            precision: Precision::default(),
            levels: default_levels(),
            taps: vec![],
            threads,
            memory_limit: u64::MAX,
            tuning,
            activations: Activations::F32,
        }
    }
}

impl Options {
    /// After an import that failed because the values of some inputs decide shapes: takes those values from `inputs`
    /// (by name). Whether another try is worth it.
    pub fn learn(&mut self, error: &Error, inputs: &BTreeMap<String, Tensor>) -> bool {
        let Error::Import(errors) = error else { return false };
        let unknown = errors.values.iter().filter_map(|name| inputs.get_key_value(name));
        let unknown: Vec<_> = unknown.filter(|(name, _)| !self.values.contains_key(*name)).collect();
        self.values.extend(unknown.iter().map(|(name, tensor)| ((*name).clone(), (*tensor).clone())));
        !unknown.is_empty()
    }
}

/// A compiled model.
#[derive(Debug)]
pub struct Compiled {
    /// The optimised graph.
    pub graph: Graph,
    /// The plan.
    pub plan: Plan,
    /// What the weights section holds.
    pub weights: Vec<Weight>,
    /// Machine code of each level, in ascending order.
    pub code: Vec<LevelCode>,
    /// Why steps run on the host, and which casts and copies were added.
    pub notes: Notes,
    /// What the artifact says of its options.
    pub manifest: Manifest,
    /// The golden section, if there is one; see [`golden`].
    pub golden: Option<Vec<u8>>,
    /// The bill of materials, if there is one; see [`provenance`].
    pub sbom: Option<String>,
    /// The graph as it was cut into kernels.
    pub scheduled: Scheduled,
}

/// Compiles a model: import, then what [`compile_graph`] does.
///
/// # Errors
/// The model or its nodes are invalid or not supported, dims are free, a limit is reached; or a bug of Kiln.
pub fn compile(model: &Model, options: &Options, observer: &mut dyn Observer) -> Result<Compiled, Error> {
    observer.stage("import");
    let graph = import_graph(model, options)?;
    let mut compiled = compile_with(graph, &notes::operators(model), options, observer)?;
    compiled.notes.inputs = notes::declared(&model.graph.inputs);
    compiled.notes.outputs = notes::declared(&model.graph.outputs);
    Ok(compiled)
}

/// Compiles a graph, such as one of [`builder`]: passes, groups as tile programs, vector programs, machine code for each
/// level, plan. Names in `options` (`bind`, `shapes`, `values`, `taps`) are an importer's matter and do nothing here.
///
/// # Errors
/// Dims are free, a limit is reached; or a bug of Kiln.
pub fn compile_graph(graph: Graph, options: &Options, observer: &mut dyn Observer) -> Result<Compiled, Error> {
    compile_with(graph, &Operators::new(), options, observer)
}

fn compile_with(
    graph: Graph,
    operators: &Operators,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Compiled, Error> {
    let graph = activations::applied(graph, None, options)?;
    let graph = optimised(graph, options, observer)?;

    observer.stage("schedule");
    let failed = |pass| move |error| kiln_passes::pipeline::PassError::Graph { pass, error };
    // What kernels compute; reports and verifications are of what the model says.
    let mut in_kernels = match options.precision {
        // All levels share one form of the weights, and where a dot product of bytes is no single instruction this one gains nothing.
        Precision::F32 | Precision::F32Fast | Precision::Bf16 if options.levels.iter().all(|l| l.has_dots()) => {
            Some(kiln_passes::rewrite::products_in_digits(&graph).map_err(failed("digits"))?)
        }
        Precision::F32 | Precision::F32Fast | Precision::Bf16 | Precision::Strict => None,
    };
    // The best level comes first: the weights are stored in the layout that it prefers.
    let mut levels = options.levels.clone();
    levels.sort_unstable_by(|a, b| b.cmp(a));
    levels.dedup();
    // Without products of pairs, or of bytes, it would be the code of the level below.
    let all = in_kernels.as_ref().unwrap_or(&graph);
    let (pairs, bytes) = (has_products_of(all, Elements::Pairs), has_products_of(all, Elements::Bytes));
    // Weights in parts are for matrix registers alone, and are stored in one form for all levels.
    let alone = levels == [CpuLevel::X86_64V4Amx] && has_products_of(all, Elements::Numbers);
    let terms = options.precision.terms().filter(|_| alone);
    let same = [
        (pairs || bytes || terms.is_some(), CpuLevel::X86_64V4Amx, CpuLevel::X86_64V4Bf16),
        (pairs, CpuLevel::X86_64V4Bf16, CpuLevel::X86_64V4Vnni),
        (bytes, CpuLevel::X86_64V4Vnni, CpuLevel::X86_64V4),
        (bytes, CpuLevel::X86_64V3Vnni, CpuLevel::X86_64V3),
    ];
    for (_, level, below) in same.into_iter().filter(|(differs, ..)| !differs) {
        levels.iter_mut().filter(|l| **l == level).for_each(|l| *l = below);
        levels.dedup();
    }
    let mut emitters = levels.iter().map(|&level| Emitter::new(level, pairs, terms)).collect::<Result<Vec<_>, _>>()?;
    let machines: Vec<Machine> = emitters.iter().map(Emitter::machine).collect();
    let mut lowers: Vec<_> =
        emitters.iter_mut().map(|e| |program: &_, dims: &_| e.number(program, dims).map(|_| ())).collect();
    let chosen: Vec<_> = levels.iter().map(|&level| chosen(&options.tuning, level)).collect();
    let targets = machines.into_iter().zip(&mut lowers).zip(&chosen);
    let tuned = !options.tuning.choices.is_empty();
    let mut targets: Vec<_> = targets
        .map(|((machine, lowers), chosen)| {
            let chosen = tuned.then_some(chosen as &pipeline::Chosen<'_>);
            pipeline::Target { machine, lowers, chosen }
        })
        .collect();
    // Weights in parts are for all products alike.
    if matches!(options.precision, Precision::F32 | Precision::F32Fast) && terms.is_none() {
        let all = in_kernels.as_ref().unwrap_or(&graph);
        in_kernels = Some(kiln_passes::rewrite::convolutions_by_tiles(all).map_err(failed("tiles"))?);
    }
    let pipeline::Compiled { plan, weights, kernels, host_reasons, scheduled } =
        schedule(in_kernels.as_ref().unwrap_or(&graph), &mut targets)?;
    within(options, "weights and arena", plan.weight_bytes.saturating_add(plan.arena_bytes))?;

    observer.stage("emit");
    let each = emitters.iter_mut().zip(&kernels);
    let code = each.map(|(emitter, kernels)| emitter.emit(&plan, kernels, options.threads, observer)).rev();
    let code = code.collect::<Result<Vec<_>, _>>()?;
    observer.plan(&plan)?;

    let notes = Notes::of(&graph, &plan, &host_reasons, operators).with_kernels(&scheduled, operators);
    let (mut recorded, hashes) = (provenance::record(options), provenance::hashes());
    let used = used(&options.tuning, &scheduled);
    if !used.choices.is_empty() {
        recorded.insert(provenance::TUNING.into(), used.to_string());
    }
    let manifest = Manifest { compiler: VERSION.into(), options: recorded, hashes };
    Ok(Compiled { graph, plan, weights, code, notes, manifest, golden: None, sbom: None, scheduled })
}

/// The graph after the passes on graphs.
fn optimised(graph: Graph, options: &Options, observer: &mut dyn Observer) -> Result<Graph, Error> {
    observer.graph("import", &graph, &graph)?;

    observer.stage("optimise");
    let mut stopped = None;
    let graph = optimise(graph, options.precision, &mut |pass, before, after| {
        observer.graph(pass, before, after).map_err(|e| {
            let error = GraphError::new(&Origin::default(), e.to_string());
            stopped = Some(e);
            error
        })
    });
    let graph = match (graph, stopped) {
        (_, Some(stopped)) => return Err(stopped),
        (graph, None) => graph?,
    };
    within(options, "the constants", graph.constant_bytes() as u64)?;

    Ok(strings_from_steps(graph).map_err(|error| kiln_passes::pipeline::PassError::Graph { pass: "strings", error })?)
}

/// The schedules of a level by the kernel's key.
fn chosen(tuning: &Tuning, level: CpuLevel) -> impl Fn(&str) -> Option<Choice> {
    move |key| tuning.get(&tune::hash(key.as_bytes()), level)
}

/// The part of a tuning that is about kernels of this model, and what was asked of their fusion.
fn used(tuning: &Tuning, scheduled: &Scheduled) -> Tuning {
    if tuning.choices.is_empty() {
        return Tuning::default();
    }
    let kernels = scheduled.groups().map(|g| kiln_passes::kernel::key(&scheduled.graph, g));
    let places = scheduled.asked.iter().cloned();
    let kernels: BTreeSet<String> = kernels.chain(places).map(|key| tune::hash(key.as_bytes())).collect();
    let choices = tuning.choices.iter().filter(|((kernel, _), _)| kernels.contains(kernel));
    Tuning { choices: choices.map(|(at, choice)| (at.clone(), *choice)).collect() }
}

/// The graph of a model as the passes get it: imported, dims bound, taps added to the outputs.
///
/// # Errors
/// All problems of the nodes at once; [`Error::Usage`] where a tap or a bound names nothing.
pub fn import_graph(model: &Model, options: &Options) -> Result<Graph, Error> {
    source::check_bind(&model.graph, &options.bind, &options.shapes)?;
    let mut tapped;
    let mut model = model;
    if !options.taps.is_empty() {
        tapped = model.clone();
        add_taps(&mut tapped, &options.taps)?;
        model = &tapped;
    }
    let (bind, shapes, values) = (options.bind.clone(), options.shapes.clone(), options.values.clone());
    let binding = import::Options { bind, shapes, values };
    let graph = activations::applied(import(model, &binding)?, Some(model), options)?;
    match graph.verify().into_iter().next() {
        Some(error) => Err(Error::Internal(format!("the imported graph is not valid: {error}"))),
        None => Ok(graph),
    }
}

/// Makes the results of the named nodes, and the named values, outputs of the model.
fn add_taps(model: &mut Model, taps: &[String]) -> Result<(), Error> {
    let graph = &mut model.graph;
    for tap in taps {
        let by_node = graph.nodes.iter().filter(|n| n.name == *tap).flat_map(|n| n.outputs.iter().flatten());
        let mut names: Vec<String> = by_node.cloned().collect();
        let values = graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten());
        if names.is_empty() {
            names.extend(values.filter(|v| *v == tap).take(1).cloned());
        }
        if names.is_empty() {
            return Err(Error::Usage(format!("the model has no node or value that is called {tap:?}")));
        }
        for name in names {
            if !graph.outputs.iter().any(|o| o.name == name) {
                graph.outputs.push(ValueInfo { name, ty: None });
            }
        }
    }
    Ok(())
}

fn within(options: &Options, what: &str, bytes: u64) -> Result<(), Error> {
    let limit = options.memory_limit;
    if bytes <= limit {
        return Ok(());
    }
    Err(Error::Limit(format!("{what} need {bytes} bytes, the memory limit is {limit} bytes")))
}

/// The sections of an artifact that are text.
struct Texts {
    plan: String,
    notes: String,
    tables: Vec<String>,
}

impl Compiled {
    /// A plan that was made by hand with its kernels' code, for measurements: without weights, and of no model.
    pub(crate) fn of_code(name: &str, plan: Plan, code: LevelCode) -> Compiled {
        Compiled {
            graph: Graph::new(name),
            plan,
            weights: Vec::new(),
            code: vec![code],
            notes: Notes::default(),
            manifest: Manifest { compiler: VERSION.into(), ..Manifest::default() },
            golden: None,
            sbom: None,
            scheduled: Scheduled::default(),
        }
    }

    fn sections<'a>(&'a self, texts: &'a Texts) -> Vec<Section<'a>> {
        let mut sections = self.program_sections("", texts);
        let weights = move |out: &mut dyn Write| write_weights(&self.weights, self.plan.weight_bytes, out);
        sections.push(Section::streamed(artifact::WEIGHTS, self.plan.weight_bytes, weights));
        sections
    }

    /// All but the weights, as an entry of that name.
    fn program_sections<'a>(&'a self, entry: &str, texts: &'a Texts) -> Vec<Section<'a>> {
        let part = |section: &str| artifact::of_entry(entry, section);
        let mut sections = vec![Section::new(part(artifact::PLAN), texts.plan.as_bytes())];
        sections.push(Section::new(part(artifact::NOTES), texts.notes.as_bytes()));
        for (code, table) in self.code.iter().zip(&texts.tables) {
            sections.push(Section::new(part(&artifact::code_section(code.level)), &code.bytes));
            sections.push(Section::new(part(&artifact::kernels_section(code.level)), table.as_bytes()));
        }
        if let Some(golden) = &self.golden {
            sections.push(Section::new(part(artifact::GOLDEN), golden));
        }
        if let Some(sbom) = &self.sbom {
            sections.push(Section::new(part(artifact::SBOM), sbom.as_bytes()));
        }
        sections
    }

    fn texts(&self) -> Result<Texts, Error> {
        let tables = self.code.iter().map(|code| code.table.to_string()).collect();
        Ok(Texts { plan: self.plan.to_string(), notes: self.notes.to_text()?, tables })
    }

    /// Orders the steps so that less memory is needed, if that is possible; whether it was. The results stay the same.
    pub fn save_memory(&mut self) -> bool {
        let less = kiln_passes::memory::reorder(&mut self.plan);
        if less {
            // Notes on host steps and copies are in the order of the steps; a plan with host steps is not reordered.
            self.manifest.options.insert(provenance::ORDER.into(), provenance::LEAST_MEMORY.into());
        }
        less
    }

    /// Writes the artifact and returns its size in bytes. The file appears complete or not at all.
    ///
    /// # Errors
    /// [`Error::Artifact`].
    pub fn write(&self, path: &Path) -> Result<u64, Error> {
        let texts = self.texts()?;
        Ok(artifact::write(path, &self.manifest, self.sections(&texts))?)
    }

    /// The artifact in memory.
    ///
    /// # Errors
    /// [`Error::Artifact`] where the memory is not to be had.
    pub fn to_artifact(&self) -> Result<Artifact, Error> {
        let texts = self.texts()?;
        let buffer = artifact::to_buffer(&Budget::unlimited(), &self.manifest, self.sections(&texts))?;
        Ok(Artifact::from_buffer(buffer, &Default::default()).map_err(engine::LoadError::Artifact)?)
    }

    /// Makes the model ready to run without a file.
    ///
    /// # Errors
    /// [`Error::Load`], or [`Error::Limit`] where the memory is not to be had.
    pub fn load(&self, options: &ModelOptions) -> Result<engine::Model, Error> {
        let texts = self.texts()?;
        // The caller's budget counts the weights when a context is made.
        let buffer = artifact::to_buffer(&Budget::unlimited(), &self.manifest, self.sections(&texts))?;
        Ok(engine::Model::from_buffer(buffer, options)?)
    }
}

/// Writes the weights section: each weight at its offset, zeros between.
fn write_weights(weights: &[Weight], total: u64, out: &mut dyn Write) -> io::Result<()> {
    let mut at = 0;
    let zeros = |out: &mut dyn Write, count: u64| io::copy(&mut io::Read::take(io::repeat(0), count), out).map(|_| ());
    for weight in weights {
        let gap = weight.offset.checked_sub(at).ok_or_else(|| io::Error::other("weights overlap"))?;
        zeros(out, gap)?;
        let bytes = weight.bytes();
        out.write_all(&bytes)?;
        at = weight.offset + bytes.len() as u64;
    }
    zeros(out, total.saturating_sub(at))
}
