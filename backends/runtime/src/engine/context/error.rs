//! Why a run fails.

use kiln_ir::graph::Origin;
use kiln_ir::interp::EvalError;
use kiln_ir::interp::limits::Reached;

use crate::memory::MemoryError;
use crate::pool::PoolError;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The number of inputs is not the model's.
    #[error("the model has {expected} inputs ({names}), {found} were given")]
    InputCount {
        /// Number of the model's inputs.
        expected: usize,
        /// Their names.
        names: String,
        /// Number of inputs that were given.
        found: usize,
    },
    /// An input is not of the model's type.
    #[error("input {name:?} must be {expected}, but {found} was given")]
    InputType {
        /// The input's name.
        name: String,
        /// The type in the plan.
        expected: String,
        /// The type that was given.
        found: String,
    },
    /// The shapes of the inputs do not fit together, or a dim is outside its range.
    #[error("{0}")]
    InputShape(String),
    /// A tensor is larger than anything that can be addressed.
    #[error("{0} has a size that no memory holds")]
    Size(String),
    /// Memory that was lent for an output has another size.
    #[error("output {name:?} has {expected} bytes, memory of {found} bytes was lent for it")]
    OutputSize {
        /// The output's name.
        name: String,
        /// Its size in bytes.
        expected: u64,
        /// The size of the memory.
        found: u64,
    },
    /// A run was asked for before inputs were loaded.
    #[error("no inputs were loaded")]
    NoInputs,
    /// A kernel found that the data breaks a rule.
    #[error("{}", broken_rule(origin, kernel, *status))]
    Kernel {
        /// The kernel's name in the plan.
        kernel: String,
        /// The model's nodes that it computes.
        origin: Origin,
        /// What it returned.
        status: u32,
    },
    /// A host op refused its operands.
    #[error("{origin}: {error}")]
    Host {
        /// The model's nodes that it computes.
        origin: Origin,
        /// Why.
        error: EvalError,
    },
    /// A limit of this thread ([`kiln_ir::interp::limits`]) was reached, or someone cancelled the run.
    #[error("{origin}: {reached}{}", detail.as_deref().map(|d| format!(": {d}")).unwrap_or_default())]
    Stopped {
        /// The model's nodes that were about to be computed, or were being.
        origin: Origin,
        /// Which limit.
        reached: Reached,
        /// What the op said.
        detail: Option<String>,
    },
    /// A host op gave something else than the plan says.
    #[error("{origin} gave {found} where the plan has {expected}")]
    HostResult {
        /// The model's nodes that it computes.
        origin: Origin,
        /// The type in the plan.
        expected: String,
        /// The type that came out.
        found: String,
    },
    /// A kernel's code panicked, which generated code cannot do: the fault is Kiln's.
    #[error("kernel {kernel} panicked")]
    Panicked {
        /// The kernel's name in the plan.
        kernel: String,
    },
    /// The plan and the context do not agree, which the verifier excludes: the fault is Kiln's.
    #[error("internal: {0}")]
    Internal(&'static str),
    /// The memory budget does not allow it.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The threads could not be made.
    #[error(transparent)]
    Pool(#[from] PoolError),
}

fn broken_rule(origin: &Origin, kernel: &str, status: u32) -> String {
    match origin.names().len() {
        0 => format!("an index is out of range in kernel {kernel} (status {status})"),
        1 => format!("an index of {origin} is out of range (kernel {kernel}, status {status})"),
        _ => format!("an index of one of {origin} is out of range (kernel {kernel}, status {status})"),
    }
}

impl RunError {
    /// Whether the data of the inputs is at fault, rather than a limit or Kiln.
    pub fn is_data(&self) -> bool {
        match self {
            Self::InputCount { .. } | Self::InputType { .. } | Self::InputShape(_) => true,
            Self::Kernel { .. } | Self::Host { .. } => true,
            Self::Size(_)
            | Self::OutputSize { .. }
            | Self::NoInputs
            | Self::HostResult { .. }
            | Self::Stopped { .. }
            | Self::Panicked { .. }
            | Self::Internal(_) => false,
            Self::Memory(_) | Self::Pool(_) => false,
        }
    }
}
