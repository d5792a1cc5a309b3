//! A loaded artifact: checked plan, mapped weights, executable code of the best level.
//!
//! Invariant: a [`Model`] exists only if its plan passes the verifier, its weights section has the size that the plan
//! states, and each of the plan's kernels lies inside the code of a level that this machine runs.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use kiln_ir::Tensor;
use kiln_ir::plan::{Place, Plan, SlotId, Step};

use super::formulas::Formulas;
use crate::artifact::{self, Artifact, ArtifactError, KernelTable, KernelTableError};
use crate::code::{Code, CodeError, KernelFn};
use crate::cpu::{CpuLevel, Machine};
use crate::memory::Buffer;

/// How to load a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelOptions {
    /// The CPU levels to choose from; nothing for all that the artifact has. Where it has none of them, the next one below the
    /// highest of them is taken: an artifact has no code for a level that its kernels would not use.
    pub levels: Option<Vec<CpuLevel>>,
    /// Whether the weights are hashed too; see [`artifact::LoadOptions`].
    pub verify_weights: bool,
    /// Which of the artifact's entries; the first one has no name. See [`artifact::of_entry`].
    pub entry: String,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self { levels: None, verify_weights: true, entry: String::new() }
    }
}

/// Why an artifact could not be made ready to run.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is no sound artifact.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
    /// The plan cannot be read, or says something impossible.
    #[error("the artifact's plan is invalid: {}", .0.join("; "))]
    Plan(Vec<String>),
    /// The table of kernels is not that of the plan.
    #[error("the artifact's kernels are invalid")]
    Kernels(#[from] KernelTableError),
    /// The code cannot be made executable.
    #[error(transparent)]
    Code(#[from] CodeError),
    /// The code is for another architecture.
    #[error("the artifact has code for {found}, this machine is {}", std::env::consts::ARCH)]
    Architecture {
        /// The architecture that it was compiled for.
        found: String,
    },
    /// There is no code that may be used here.
    #[error(
        "the artifact has code for {}, but {}",
        list(there),
        match asked {
            Some(asked) => format!("{} was asked for, and this machine runs {}", list(asked), list(machine)),
            None => format!("this machine runs {}", list(machine)),
        }
    )]
    NoLevel {
        /// The levels that the caller would take, if not all.
        asked: Option<Vec<CpuLevel>>,
        /// The levels of the artifact.
        there: Vec<CpuLevel>,
        /// The levels of this machine.
        machine: Vec<CpuLevel>,
    },
}

fn list(levels: &[CpuLevel]) -> String {
    match levels {
        [] => "no CPU level".into(),
        levels => levels.iter().map(|level| level.name()).collect::<Vec<_>>().join(", "),
    }
}

/// A loaded artifact. Cloning shares it.
#[derive(Clone)]
pub struct Model(pub(super) Arc<Loaded>);

/// What all contexts of a model share.
pub(super) struct Loaded {
    artifact: Arc<Artifact>,
    plan: Plan,
    level: CpuLevel,
    table: KernelTable,
    kernels: Vec<KernelFn>,
    formulas: Formulas,
    /// Owns the pages that `kernels` point into.
    _code: Code,
}

impl Model {
    /// Maps the artifact at `path` and makes it ready to run.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn open(path: &Path, options: &ModelOptions) -> Result<Self, LoadError> {
        let load = artifact::LoadOptions { verify_weights: options.verify_weights };
        Self::new(Artifact::open(path, &load)?.into(), options)
    }

    /// Makes an artifact ready to run that is in memory.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn from_buffer(buffer: Buffer, options: &ModelOptions) -> Result<Self, LoadError> {
        let load = artifact::LoadOptions { verify_weights: options.verify_weights };
        Self::new(Artifact::from_buffer(buffer, &load)?.into(), options)
    }

    /// Makes an entry of a checked artifact ready to run. Entries share the artifact's weights.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn new(artifact: Arc<Artifact>, options: &ModelOptions) -> Result<Self, LoadError> {
        let part = |section: &str| artifact::of_entry(&options.entry, section);
        let plan = read_plan(&artifact, &part(artifact::PLAN))?;
        if let Some(found) = artifact.options().get("arch").filter(|arch| *arch != std::env::consts::ARCH) {
            return Err(LoadError::Architecture { found: found.clone() });
        }
        let machine = Machine::detect();
        let there = || artifact.levels_of(&options.entry);
        let level = match &options.levels {
            None => machine.choose(there()),
            Some(asked) => machine.choose(there().filter(|level| asked.contains(level))).or_else(|| {
                let highest = asked.iter().copied().max().filter(|level| machine.supports(*level))?;
                let absent = !there().any(|level| asked.contains(&level));
                absent.then(|| machine.capped(highest).choose(there())).flatten()
            }),
        };
        let level = level.ok_or_else(|| LoadError::NoLevel {
            asked: options.levels.clone(),
            there: there().collect(),
            machine: machine.levels().collect(),
        })?;
        let code_bytes = artifact.section(&part(&artifact::code_section(level)))?;
        let table: KernelTable = artifact.text(&part(&artifact::kernels_section(level)))?.parse()?;
        table.check(code_bytes.len() as u64)?;
        let named = |(kernel, entry): (&kiln_ir::plan::Kernel, &artifact::KernelEntry)| kernel.name == entry.name;
        if table.0.len() != plan.kernels.len() || !plan.kernels.iter().zip(&table.0).all(named) {
            return Err(LoadError::Plan(vec![format!("the kernels of level {level} are not those of the plan")]));
        }
        for (name, programs) in table.0.iter().map(|entry| (&entry.name, &entry.programs)) {
            let mut unknown = None;
            programs.for_each_symbol(&mut |s| {
                if !plan.symbols.iter().any(|(declared, _)| declared == s) {
                    unknown = Some(s.clone());
                }
            });
            if let Some(symbol) = unknown {
                return Err(LoadError::Plan(vec![format!(
                    "the grid of {name} is over `{symbol}`, which is no symbol"
                )]));
            }
        }
        let formulas = Formulas::new(&plan, table.0.iter().map(|entry| &entry.programs));
        let code = Code::new(code_bytes)?;
        // SAFETY: the code section of a level that this machine supports holds one kernel at each entry of its table:
        // the compiler wrote both, and their hashes were just checked. The code lives as long as the pointers.
        let kernel = |entry: &artifact::KernelEntry| unsafe { code.kernel(entry.offset, entry.bytes) };
        let kernels = table.0.iter().map(kernel).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Loaded { artifact, plan, level, table, kernels, formulas, _code: code })))
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.0.plan
    }

    /// The level whose code runs.
    pub fn level(&self) -> CpuLevel {
        self.0.level
    }

    /// Where each kernel lies in the code of [`Model::level`], and what emitted it.
    pub fn kernels(&self) -> &KernelTable {
        &self.0.table
    }

    /// The artifact.
    pub fn artifact(&self) -> &Arc<Artifact> {
        &self.0.artifact
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({:?}, {})", self.0.plan.name, self.0.level)
    }
}

impl Loaded {
    pub(super) fn artifact(&self) -> &Arc<Artifact> {
        &self.artifact
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The code of the plan's n-th kernel, and what the table says of it.
    pub(super) fn kernel(&self, n: usize) -> Option<(KernelFn, &artifact::KernelEntry)> {
        Some((*self.kernels.get(n)?, self.table.0.get(n)?))
    }

    pub(super) fn formulas(&self) -> &Formulas {
        &self.formulas
    }

    /// The bytes of the weights section in that range; empty where the range is not inside.
    pub(super) fn weights(&self, range: Range<u64>) -> &[u8] {
        let range = range.start as usize..range.end as usize;
        self.artifact.section(artifact::WEIGHTS).ok().and_then(|weights| weights.get(range)).unwrap_or_default()
    }

    /// A weight as a tensor that shares the artifact's memory.
    pub(super) fn weight(self: &Arc<Self>, slot: SlotId, at: u64) -> Option<Tensor> {
        let range = at..at.checked_add(self.plan.slot_bytes(slot))?;
        let ty = &self.plan.slots.get(slot)?.ty;
        let shared = Bytes::from_owner(Weight { model: Arc::clone(self), range });
        Tensor::new(ty.dtype, ty.shape()?, shared).ok()
    }
}

/// Keeps the artifact alive for a tensor that shares its memory.
struct Weight {
    model: Arc<Loaded>,
    range: Range<u64>,
}

impl AsRef<[u8]> for Weight {
    fn as_ref(&self) -> &[u8] {
        self.model.weights(self.range.clone())
    }
}

/// The plan in a section of an artifact, checked.
///
/// # Errors
/// The section is not there, is no plan, or does not go with the weights.
pub fn read_plan(artifact: &Artifact, section: &str) -> Result<Plan, LoadError> {
    let plan = Plan::parse(artifact.text(section)?).map_err(|e| LoadError::Plan(vec![e.to_string()]))?;
    let mut errors: Vec<String> = plan.verify().iter().map(ToString::to_string).collect();
    let weights = match artifact.section(artifact::WEIGHTS) {
        Ok(weights) => weights.len() as u64,
        Err(_) if plan.weight_bytes == 0 => 0,
        Err(missing) => return Err(missing.into()),
    };
    if weights != plan.weight_bytes {
        errors.push(format!("the weights have {weights} bytes, the plan has {}", plan.weight_bytes));
    }
    for (id, slot) in plan.slots.iter() {
        let ends = matches!(slot.place, Place::Input(_) | Place::Output(_));
        if ends && !slot.ty.layout.is_row_major() {
            errors.push(format!("slot {id} is an input or output and not row-major"));
        }
    }
    let rows = |slot: &SlotId| plan.slots.get(*slot).is_some_and(|s| s.ty.layout.is_row_major());
    let strings = |slot: &SlotId| plan.slots.get(*slot).is_some_and(|s| !s.ty.dtype.is_bytes());
    for (n, step) in plan.steps.iter().enumerate() {
        let (reads, writes) = step.accesses();
        let mut all = reads.iter().chain(writes.iter());
        match step {
            Step::Host { .. } if !all.all(rows) => errors.push(format!("step {n} gives the host a blocked layout")),
            Step::Launch { .. } if all.any(strings) => errors.push(format!("step {n} launches a kernel on strings")),
            Step::Host { .. } | Step::Launch { .. } | Step::Copy { .. } => {}
            // The verifier has looked at these.
            Step::Bind { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => {}
        }
    }
    if errors.is_empty() { Ok(plan) } else { Err(LoadError::Plan(errors)) }
}
