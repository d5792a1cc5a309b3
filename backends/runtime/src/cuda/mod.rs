//! Runs models on NVIDIA GPUs, by the driver of the machine alone.
//!
//! Invariant: nothing of CUDA is needed to build, and the driver's library is opened only when someone asks for a device:
//! [`Device::open`] is the one way to one, and it calls nothing before it has seen that the library is there, has every
//! symbol that is used here, is recent enough and has a GPU. So a machine without a driver gets an [`Unavailable`], never a
//! panic. Tests run it against a stand-in for the driver over an interpreter of PTX.
//!
//! [`Model`] is a plan on a device: one allocation for everything, weights uploaded once, and a CUDA graph of all steps
//! between two host steps.

mod device;
mod memory;
mod model;
mod staging;
mod tensor;

pub use device::{Device, Properties};
pub use model::{Model, Visit};

use kiln_ir::plan::PlanError;

/// A kernel's launch: PTX text and how to start it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Name of the entry point.
    pub entry: String,
    /// The PTX text of a module that has it.
    pub text: String,
    /// Blocks.
    pub blocks: u32,
    /// Threads of each block.
    pub threads: u32,
    /// Bytes of dynamic shared memory.
    pub dynamic_shared: u32,
    /// Arguments, in order.
    pub arguments: Vec<Argument>,
}

/// An argument of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    /// Where the slot lies that is the n-th argument of the plan's step.
    Slot(usize),
    /// A u32 that is 0 before and greater than 0 after a check that failed.
    Status,
    /// A tensor map over a slot.
    Map(TensorMap),
}

/// An array of elements of 2 bytes in a slot, of which boxes are fetched with the swizzle of 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// The slot, the n-th argument of the plan's step.
    pub slot: usize,
    /// Its element where the array begins.
    pub first: u64,
    /// Elements along each axis, first that of neighbours.
    pub extents: Vec<u64>,
    /// Elements from one place to the next along each axis but the first.
    pub strides: Vec<u64>,
    /// Elements of a box along each axis.
    pub shape: Vec<u32>,
}

/// There is no GPU to run on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// No library of the driver.
    #[error("there is no NVIDIA driver here: no libcuda could be opened")]
    NoDriver,
    /// The library lacks functions.
    #[error(
        "the NVIDIA driver's library is not complete: it has no {}; install the driver again", missing.join(", ")
    )]
    Incomplete {
        /// Those that are missing.
        missing: Vec<&'static str>,
    },
    /// The driver is older than what is needed.
    #[error("the NVIDIA driver is too old: it is for CUDA {}.{}, and {}.{} or later is needed; update the driver",
        .version / 1000, .version % 1000 / 10, .least / 1000, .least % 1000 / 10)]
    Old {
        /// What it says: 1000 times the major version and 10 times the minor one.
        version: i32,
        /// The least that works.
        least: i32,
    },
    /// The driver is there, but no GPU.
    #[error("the NVIDIA driver finds no GPU")]
    NoDevice,
    /// The GPU is older than the code.
    #[error("the GPU {name} is sm_{}{}; code here is for sm_80 and later", capability.0, capability.1)]
    OldDevice {
        /// The GPU.
        name: String,
        /// Its compute capability.
        capability: (i32, i32),
    },
    /// A call fails that every working driver answers.
    #[error("the NVIDIA driver does not work: {call} fails with status {status}")]
    Broken {
        /// The call.
        call: &'static str,
        /// The driver's `CUresult`.
        status: u32,
    },
}

/// A model cannot be run on a device.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The plan breaks rules.
    #[error("the plan does not verify: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Plan(Vec<PlanError>),
    /// The plan and the kernels do not fit together.
    #[error("{0}")]
    Inconsistent(String),
    /// Dims that only inputs decide.
    #[error("code for GPUs needs fixed dims")]
    Symbolic,
    /// Steps that only the CPU's engine takes.
    #[error("control flow does not run on GPUs yet: {origin}")]
    Control {
        /// The nodes.
        origin: String,
    },
    /// The device has too little memory.
    #[error("the model needs {needed} bytes on the GPU, of whose {total} bytes {free} are free")]
    Memory {
        /// Bytes of weights, arena, inputs and outputs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// The driver is older than the PTX of a kernel.
    #[error("the driver does not know the version of PTX that kernel {entry} is written in; update the driver")]
    Newer {
        /// The kernel.
        entry: String,
    },
    /// The driver refuses a kernel.
    #[error("the driver refuses kernel {entry}: {what}")]
    Kernel {
        /// The kernel.
        entry: String,
        /// What it says.
        what: String,
    },
    /// The driver reports a failure.
    #[error("the driver fails while it {doing}: {what}")]
    Driver {
        /// What was to be done.
        doing: &'static str,
        /// What it says.
        what: String,
    },
    /// An input is not what the plan wants.
    #[error("input {name:?}: {what}")]
    Input {
        /// Its name.
        name: String,
        /// What is wrong.
        what: String,
    },
    /// A kernel's own check failed.
    #[error("an index is out of range in {origin}")]
    Check {
        /// The nodes.
        origin: String,
    },
    /// A step on the host failed.
    #[error("{origin}: {what}")]
    Host {
        /// The nodes.
        origin: String,
        /// What is wrong.
        what: String,
    },
}

/// What a status of the driver means, for those that say something to the user.
fn meaning(error: cudarc::driver::DriverError) -> String {
    let number = error.0 as u32;
    let text = match number {
        2 => "out of memory",
        209 => "no code for this GPU",
        218 => "the PTX is not valid",
        700 => "a kernel accessed an address outside of its memory",
        701 => "the launch needs more registers or shared memory than there are",
        702 => "a kernel took too long",
        716 => "a kernel accessed a misaligned address",
        719 => "a kernel failed",
        _ => "no more is known",
    };
    format!("status {number}, {text}")
}
