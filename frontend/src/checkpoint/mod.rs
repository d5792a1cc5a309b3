//! Weights of trained models, from whatever file they are in.
//!
//! Invariant: readers work on bytes that they are handed; a tensor that they list lies inside those bytes. A model asks a
//! [`Loader`] for all of its parameters before anything is reported, so that all that is missing, surplus or of another shape is
//! named at once.

mod adapter;
mod cut;
mod folder;
mod llama_gguf;
mod loader;
mod overlay;
mod packed;
mod safetensors;
mod stored;
mod vectors;

pub use adapter::Adapter;
pub use cut::Cut;
pub use folder::{Files, Folder};
pub use llama_gguf::GgufWeights;
pub use loader::{Loader, WeightProblems};
pub use overlay::Overlay;
pub use packed::{Packed, pack};
pub use safetensors::Safetensors;
pub use stored::{Element, Stored, Weights};
pub use vectors::WordVectors;

use crate::gguf::GgufError;

/// A checkpoint cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A GGUF file is not right.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A file is not right.
    #[error("{file}: {message}")]
    File {
        /// The file.
        file: String,
        /// What is wrong.
        message: String,
    },
    /// The configuration misses something, or what it says cannot be.
    #[error("{file}: `{key}` {message}")]
    Config {
        /// The file.
        file: String,
        /// The key.
        key: String,
        /// What is wrong.
        message: String,
    },
    /// The model's kind is not supported.
    #[error("models of the kind `{0}` are not supported; these are: {1}")]
    Family(String, String),
    /// A setting of the model is not supported.
    #[error("{0}")]
    Unsupported(String),
    /// Weights do not fit the configuration.
    #[error(transparent)]
    Weights(#[from] WeightProblems),
    /// An adapter does not fit the model.
    #[error("the adapter does not fit the model:{}", .0.lists())]
    Adapter(WeightProblems),
    /// The graph cannot be built.
    #[error(transparent)]
    Build(#[from] crate::builder::BuildError),
}
