//! A compiled model on this machine's GPU.
//!
//! Invariant: what is launched is the text that [`super::Compiled`] or an artifact holds, with the plan's slots as arguments;
//! nothing is compiled here.

use super::stored::{self, Handed, Launch, Launches};
use super::{ARCHITECTURES, Architecture, Compiled};
use crate::Error;
use kiln_ir::plan::{Place, Plan};
use kiln_runtime::artifact::{self, Artifact};
use kiln_runtime::cuda::{Argument, CudaError, Device, Kernel, Model, TensorMap, Unavailable};
use kiln_runtime::engine::{LoadError, read_plan};
use std::collections::BTreeMap;

impl From<Unavailable> for Error {
    fn from(e: Unavailable) -> Error {
        Error::Unsupported(e.to_string())
    }
}

impl From<CudaError> for Error {
    fn from(e: CudaError) -> Error {
        let text = e.to_string();
        match e {
            CudaError::Memory { .. } => Error::Limit(text),
            CudaError::Symbolic | CudaError::Control { .. } | CudaError::Newer { .. } => Error::Unsupported(text),
            CudaError::Check { origin } => Error::data(origin, "an index is out of range"),
            CudaError::Host { origin, what } => Error::data(origin, what),
            CudaError::Input { name, what } => Error::data(format!("input {name:?}"), what),
            CudaError::Plan(_) | CudaError::Inconsistent(_) => Error::Internal(text),
            CudaError::Kernel { .. } | CudaError::Driver { .. } => Error::Device(text),
        }
    }
}

/// The latest architecture that a device runs code for.
pub fn architecture(device: &Device) -> Architecture {
    let runs = |a: &&Architecture| a.runs_on(device.properties().capability);
    ARCHITECTURES.iter().rfind(runs).copied().unwrap_or(ARCHITECTURES[0])
}

/// Launches as a device takes them.
///
/// # Errors
/// [`Error::Limit`] for a grid that no GPU takes.
pub fn kernels(launches: Launches) -> Result<Vec<Vec<Kernel>>, Error> {
    let kernel = |launch: Launch| {
        // The first dimension of a grid has 31 bits.
        let blocks = u32::try_from(launch.blocks).ok().filter(|b| i32::try_from(*b).is_ok());
        let blocks = blocks.ok_or_else(|| Error::Limit(format!("{} blocks of {}", launch.blocks, launch.entry)))?;
        let argument = |handed: &Handed| match handed {
            Handed::Slot(n) => Argument::Slot(*n),
            Handed::Status => Argument::Status,
            Handed::Map(map) => {
                let stored::Map { slot, first, extents, strides, shape } = map.clone();
                Argument::Map(TensorMap { slot, first, extents, strides, shape })
            }
        };
        Ok(Kernel {
            blocks,
            threads: launch.threads,
            dynamic_shared: u32::try_from(launch.shared).unwrap_or(u32::MAX),
            arguments: launch.arguments.iter().map(argument).collect(),
            entry: launch.entry,
            text: launch.text,
        })
    };
    launches.into_iter().map(|parts| parts.into_iter().map(kernel).collect()).collect()
}

/// Loads a model to a device.
///
/// # Errors
/// The device has too little memory, or its driver refuses a kernel.
pub fn load(compiled: &Compiled, device: Device) -> Result<Model, Error> {
    let weights = compiled.weights.iter().map(|w| (w.offset, w.bytes()));
    Ok(Model::load(device, compiled.plan.clone(), kernels(compiled.stored()?)?, weights)?)
}

/// A program for GPUs of an artifact, loaded.
pub struct Stored {
    /// Name of the entry: the architecture that it was compiled for.
    pub entry: String,
    /// Its plan.
    pub plan: Plan,
    /// What is on the device.
    pub model: Model,
}

/// Loads the latest program of an artifact that a device runs, with its weights.
///
/// # Errors
/// [`Error::Unsupported`] where the artifact has none; those of reading the artifact and of [`load`].
pub fn load_stored(artifact: &Artifact, device: Device) -> Result<Stored, Error> {
    let newest = architecture(&device);
    let rank = |name: &str| ARCHITECTURES.iter().position(|a| a.name == name);
    let all = stored::launches(artifact)?;
    let names: Vec<String> = all.iter().map(|(name, _)| name.clone()).collect();
    let capability = device.properties().capability;
    let runs = |name: &str| ARCHITECTURES.iter().any(|a| a.name == name && a.runs_on(capability));
    let Some((entry, launches)) = all.into_iter().filter(|(name, _)| runs(name)).max_by_key(|(name, _)| rank(name))
    else {
        let there = if names.is_empty() { "no GPU".to_string() } else { names.join(", ") };
        let wanted = newest.name;
        let text = format!("the artifact has code for {there}; for this device: `kiln compile --target {wanted} -o`");
        return Err(Error::Unsupported(text));
    };
    let plan = read_plan(artifact, &artifact::of_entry(&entry, artifact::PLAN))?;
    let section = match plan.weight_bytes {
        0 => &[],
        _ => artifact.section(artifact::WEIGHTS).map_err(LoadError::Artifact)?,
    };
    let mut weights = BTreeMap::new();
    for (id, slot) in plan.slots.iter() {
        if let Place::Weights(offset) = slot.place {
            let end = offset.checked_add(plan.slot_bytes(id)).and_then(|end| usize::try_from(end).ok());
            let range = usize::try_from(offset).ok().zip(end);
            let bytes = range.and_then(|(first, end)| section.get(first..end));
            let beyond = || Error::data(&entry, format!("the weight at {offset} ends beyond the weights"));
            weights.insert(offset, bytes.ok_or_else(beyond)?);
        }
    }
    let model = Model::load(device, plan.clone(), kernels(launches)?, weights)?;
    Ok(Stored { entry, plan, model })
}
