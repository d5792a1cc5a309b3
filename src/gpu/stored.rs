//! PTX in an artifact: beside the code for CPUs, over the same weights.
//!
//! Invariant: each architecture is an entry of the artifact (see [`artifact::of_entry`]) that is called what the architecture is
//! called: it has a plan and notes like any other, and instead of machine code the section [`PTX`] with all launches. A program
//! that knows no GPUs reads the first entry and sees nothing of it.

use super::{Compiled, Target};
use crate::{Bundle, Error, Observer, Options};
use kiln_frontend::onnx::model::Model;
use kiln_ptx::Argument;
use kiln_ptx::emulate::TensorMap;
use kiln_runtime::artifact::{self, Artifact, Manifest};
use kiln_runtime::engine::LoadError;
use serde::{Deserialize, Serialize};

/// The section of an entry with its launches, as JSON: for each kernel of the plan its [`Launch`]es in order.
pub const PTX: &str = "ptx";

/// The option of an artifact that lists its architectures.
pub const OPTION: &str = "gpu";

/// A launch with the module that it starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// Name of the entry point.
    pub entry: String,
    /// Blocks, in the first dimension of the grid.
    pub blocks: u64,
    /// Threads of each block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// What is handed over, in order.
    pub arguments: Vec<Handed>,
    /// The PTX text.
    pub text: String,
}

/// The launches of a plan: for each of its kernels those that it takes, in order.
pub type Launches = Vec<Vec<Launch>>;

/// An argument of a launch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Handed {
    /// The address of the n-th slot of the step.
    Slot(usize),
    /// The address of a u32 for the status.
    Status,
    /// A tensor map over a slot of the step.
    Map(Map),
}

/// A tensor map: elements of 2 bytes, boxes with the swizzle of 128 bytes, zeros outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// Number of the slot among the step's.
    pub slot: usize,
    /// Element where the array begins.
    pub first: u64,
    /// Elements along each axis, first that of neighbours.
    pub extents: Vec<u64>,
    /// Elements from one place to the next along each axis but the first.
    pub strides: Vec<u64>,
    /// Elements of a box along each axis.
    pub shape: Vec<u32>,
}

impl From<&kiln_ir::warp::Map> for Map {
    fn from(map: &kiln_ir::warp::Map) -> Map {
        let kiln_ir::warp::Map { buffer, first, extents, strides, shape } = map.clone();
        Map { slot: buffer, first, extents, strides, shape }
    }
}

impl From<&Map> for TensorMap {
    fn from(map: &Map) -> TensorMap {
        let Map { slot: buffer, first, extents, strides, shape } = map.clone();
        TensorMap::from(&kiln_ir::warp::Map { buffer, first, extents, strides, shape })
    }
}

impl Compiled {
    /// All launches, by kernel.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a launch depends on free dims.
    pub fn stored(&self) -> Result<Launches, Error> {
        let launch = |module: &kiln_ptx::Module| {
            let of = &module.launch;
            let free = |what: &dyn std::fmt::Display| Error::Unsupported(format!("{}: {what} is a free dim", of.entry));
            let blocks = of.blocks.as_const().and_then(|b| u64::try_from(b.max(0)).ok());
            let mut slots = 0..;
            let argument = |argument: &Argument| match argument {
                Argument::Buffer { .. } => Ok(Handed::Slot(slots.next().unwrap_or(usize::MAX))),
                Argument::Status => Ok(Handed::Status),
                Argument::Map(map) => Ok(Handed::Map(map.into())),
                Argument::Dim(symbol) => Err(free(symbol)),
            };
            Ok(Launch {
                entry: of.entry.clone(),
                blocks: blocks.ok_or_else(|| free(&of.blocks))?,
                threads: of.threads,
                shared: of.dynamic_shared,
                arguments: of.arguments.iter().map(argument).collect::<Result<_, Error>>()?,
                text: module.text.clone(),
            })
        };
        self.kernels.iter().map(|kernel| kernel.modules.iter().map(launch).collect()).collect()
    }
}

impl Bundle {
    /// Adds a program for a GPU, which shares weights that it reads in the same order of elements.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where a launch depends on free dims.
    pub fn add_gpu(&mut self, program: Compiled) -> Result<(), Error> {
        let launches = program.stored()?;
        let text = serde_json::to_vec(&launches).map_err(|e| Error::Internal(format!("launches: {e}")))?;
        let entry = program.architecture.name;
        let Compiled { graph, plan, weights, notes, kernels: _, architecture: _ } = program;
        let (code, manifest, scheduled) = (Vec::new(), Manifest::default(), Default::default());
        self.add(
            entry,
            crate::Compiled { graph, plan, weights, code, notes, manifest, golden: None, sbom: None, scheduled },
        );
        self.attach(&artifact::of_entry(entry, PTX), text);
        Ok(())
    }
}

/// A program for CPUs with programs of the same model for GPUs, each of which may have a precision of its own, over one set of weights.
///
/// # Errors
/// Those of [`super::compile`]; an architecture is there twice.
pub fn bundle(
    model: &Model,
    mut compiled: crate::Compiled,
    options: &Options,
    targets: &[Target],
    observer: &mut dyn Observer,
) -> Result<Bundle, Error> {
    let mut targets = targets.to_vec();
    targets.sort_by_key(|target| target.architecture.name);
    targets.dedup();
    if let Some([one, _]) = targets.array_windows().find(|[a, b]| a.architecture == b.architecture) {
        let name = one.architecture.name;
        return Err(Error::Usage(format!("an artifact has one program for {name}, in one precision")));
    }
    let names: Vec<String> = targets.iter().map(Target::to_string).collect();
    compiled.manifest.options.insert(OPTION.into(), names.join(","));
    let mut bundle = Bundle::default();
    bundle.add("", compiled);
    for target in targets {
        bundle.add_gpu(super::compile(
            model,
            options,
            (target.architecture, target.precision.unwrap_or_default()),
            observer,
        )?)?;
    }
    Ok(bundle)
}

/// The architectures that an artifact has code for, each with its launches.
///
/// # Errors
/// [`Error::Data`] where a section is no list of launches.
pub fn launches(artifact: &Artifact) -> Result<Vec<(String, Launches)>, Error> {
    let mut all = Vec::new();
    for entry in artifact.entries().filter(|entry| !entry.is_empty()) {
        let section = artifact::of_entry(entry, PTX);
        if artifact.sections().all(|(name, _)| name != section) {
            continue;
        }
        let bytes = artifact.section(&section).map_err(LoadError::Artifact)?;
        all.push((entry.to_string(), serde_json::from_slice(bytes).map_err(|e| Error::data(&section, e))?));
    }
    Ok(all)
}

/// The architectures of an option of an artifact.
///
/// # Errors
/// [`Error::Data`] for one that this build does not know.
pub fn targets(option: &str) -> Result<Vec<Target>, Error> {
    option
        .split(',')
        .map(|name| name.parse().map_err(|e: String| Error::data("the artifact's option gpu", e)))
        .collect()
}
