//! A compiled model on this machine's GPU.
//!
//! Invariant: what is launched is the text that [`super::Compiled`] holds, with the plan's slots as arguments; nothing is
//! compiled here.

use super::stored::{Handed, Launch, Launches};
use super::{ARCHITECTURES, Architecture, Compiled};
use crate::Error;
use kiln_runtime::cuda::{Argument, CudaError, Device, Kernel, Model, Unavailable};

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
    let (major, minor) = device.properties().capability;
    let known =
        |a: &&Architecture| a.name.trim_start_matches("sm_").parse().is_ok_and(|n: i32| n <= 10 * major + minor);
    ARCHITECTURES.iter().rfind(known).copied().unwrap_or(ARCHITECTURES[0])
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
        let argument = |handed: &Handed| match *handed {
            Handed::Slot(n) => Argument::Slot(n),
            Handed::Status => Argument::Status,
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
