//! Everything that can go wrong, with the exit code that it means.
//!
//! Invariant: an error's kind says whose turn it is: the caller's command line, the model or its data, or Kiln itself.

use crate::lm::LmError;
use kiln_frontend::checkpoint::CheckpointError;
use kiln_frontend::gguf::GgufError;
use kiln_frontend::onnx::import::ImportErrors;
use kiln_frontend::onnx::model::LoadError as ModelError;
use kiln_frontend::onnx::problem::ProblemKind;
use kiln_passes::pipeline::PassError;
use kiln_runtime::artifact::{ArtifactError, WriteError};
use kiln_runtime::engine::{LoadError, RunError};
use kiln_runtime::memory::MemoryError;
use std::io;
use std::path::PathBuf;

/// What an error means; the numbers are the exit codes of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A bug of Kiln.
    Internal = 1,
    /// The command line: a wrong option, a file that is not there or not writable.
    Usage = 2,
    /// The model, the input or the artifact breaks a rule.
    Invalid = 3,
    /// Right, but not supported.
    Unsupported = 4,
    /// Two results that should agree do not.
    Mismatch = 5,
    /// A limit was reached: memory, time, capacity.
    Limit = 6,
}

/// Any error of the facade.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file or folder cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The command line asks for something that does not exist or does not go together.
    #[error("{0}")]
    Usage(String),
    /// The model is not valid.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The model uses what is not supported, or its nodes break rules.
    #[error(transparent)]
    Import(#[from] ImportErrors),
    /// A pass failed.
    #[error(transparent)]
    Pass(#[from] PassError),
    /// Code generation failed on a program that the passes made.
    #[error("kernel {kernel}: {message}")]
    Code {
        /// The kernel.
        kernel: String,
        /// What the emitter says.
        message: String,
    },
    /// The artifact was not written.
    #[error(transparent)]
    Artifact(#[from] WriteError),
    /// The artifact cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A run failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A file of inputs, or an input, is not what it should be.
    #[error("{place}: {message}")]
    Data {
        /// The file or input.
        place: String,
        /// A sentence.
        message: String,
    },
    /// A language model cannot be read, or used as asked.
    #[error(transparent)]
    Lm(#[from] LmError),
    /// A GPU or its driver fails.
    #[error("{0}")]
    Device(String),
    /// Something is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// Results differ.
    #[error("{0}")]
    Mismatch(String),
    /// A limit was reached.
    #[error("{0}")]
    Limit(String),
    /// A bug of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl Error {
    /// What the error means.
    pub fn kind(&self) -> Kind {
        match self {
            Error::Read { .. } | Error::Usage(_) => Kind::Usage,
            Error::Write { source, .. } => written(source),
            Error::Model(e) => problem(e.kind()),
            Error::Import(e) => problem(e.kind()),
            Error::Unsupported(_) => Kind::Unsupported,
            Error::Pass(PassError::Graph { .. } | PassError::Plan(_)) => Kind::Internal,
            Error::Pass(PassError::TooLarge(..)) => Kind::Limit,
            Error::Code { .. } | Error::Internal(_) | Error::Device(_) => Kind::Internal,
            Error::Artifact(e) => match e {
                WriteError::NotWritable { .. } | WriteError::NotAFile { .. } => Kind::Usage,
                WriteError::NoSpace { .. } | WriteError::TooLarge | WriteError::Memory(_) => Kind::Limit,
                WriteError::Io(source) => written(source),
                WriteError::Name(_) | WriteError::Length { .. } => Kind::Internal,
            },
            Error::Load(e) => load(e),
            Error::Run(e) => match e {
                RunError::Memory(MemoryError::OverBudget { .. } | MemoryError::OutOfMemory { .. }) => Kind::Limit,
                RunError::Stopped { .. } => Kind::Limit,
                RunError::Pool(_) => Kind::Usage,
                RunError::HostResult { .. } => Kind::Unsupported,
                e if e.is_data() => Kind::Invalid,
                _ => Kind::Internal,
            },
            Error::Data { .. } => Kind::Invalid,
            Error::Lm(e) => language(e),
            Error::Mismatch(_) => Kind::Mismatch,
            Error::Limit(_) => Kind::Limit,
        }
    }

    /// What the user can do, where there is something to say.
    pub fn help(&self) -> Option<String> {
        match self {
            Error::Load(LoadError::NoLevel { .. }) => Some(
                "compile the model again with `--cpu portable`, which every machine of the architecture runs".into(),
            ),
            Error::Internal(_) | Error::Code { .. } => Some("this is a bug of Kiln; please report it".into()),
            _ => None,
        }
    }

    /// An error in a file of inputs, or in an input.
    pub fn data(place: impl ToString, message: impl ToString) -> Error {
        Error::Data { place: place.to_string(), message: message.to_string() }
    }
}

impl From<MemoryError> for Error {
    fn from(e: MemoryError) -> Error {
        Error::Run(RunError::Memory(e))
    }
}

fn language(error: &LmError) -> Kind {
    match error {
        LmError::NoCheckpoint(_) | LmError::Constraint(_) => Kind::Usage,
        LmError::Checkpoint(CheckpointError::Family(..) | CheckpointError::Unsupported(_)) => Kind::Unsupported,
        LmError::Checkpoint(CheckpointError::Gguf(GgufError::Version(_) | GgufError::Encoding { .. })) => {
            Kind::Unsupported
        }
        LmError::Checkpoint(CheckpointError::Build(_)) => Kind::Internal,
        LmError::Checkpoint(
            CheckpointError::Gguf(_)
            | CheckpointError::File { .. }
            | CheckpointError::Config { .. }
            | CheckpointError::Weights(_)
            | CheckpointError::Adapter(_),
        ) => Kind::Invalid,
        LmError::Tokenizer(_) | LmError::Template(_) | LmError::Token { .. } | LmError::Empty | LmError::NoToken => {
            Kind::Invalid
        }
        LmError::Compiled { .. } => Kind::Invalid,
        LmError::Capacity { .. } | LmError::Positions { .. } => Kind::Limit,
    }
}

fn problem(kind: ProblemKind) -> Kind {
    match kind {
        ProblemKind::Invalid => Kind::Invalid,
        ProblemKind::Unsupported => Kind::Unsupported,
        ProblemKind::Limit => Kind::Limit,
    }
}

fn written(source: &io::Error) -> Kind {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => Kind::Limit,
        _ => Kind::Usage,
    }
}

fn load(error: &LoadError) -> Kind {
    match error {
        LoadError::Artifact(ArtifactError::Io { .. } | ArtifactError::NotAFile { .. }) => Kind::Usage,
        LoadError::Artifact(ArtifactError::Newer { .. }) => Kind::Unsupported,
        LoadError::Artifact(
            ArtifactError::NotAnArtifact { .. }
            | ArtifactError::Truncated { .. }
            | ArtifactError::TooLong { .. }
            | ArtifactError::Damaged { .. }
            | ArtifactError::Header(_)
            | ArtifactError::Missing { .. }
            | ArtifactError::NotText { .. },
        ) => Kind::Invalid,
        LoadError::Plan(_) | LoadError::Kernels(_) => Kind::Invalid,
        LoadError::Code(_) => Kind::Limit,
        LoadError::Architecture { .. } | LoadError::NoLevel { .. } => Kind::Unsupported,
    }
}
