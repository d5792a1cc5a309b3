//! Language models: from a checkpoint to text.
//!
//! Invariant: what a model says depends on its weights, the tokens before, the sampling's settings and its seed; not on the
//! number of threads, nor on how the tokens before were handed over (at once, one by one, or kept from a call before).

mod beam;
mod chat;
mod compiled;
mod constraint;
mod encoder;
mod entities;
mod generate;
mod lookup;
mod model;
mod opened;
mod packed;
mod pieces;
mod programs;
mod sampling;
mod schema;
mod score;
mod sequence;
mod session;
mod together;
mod tokenizer;

pub use beam::{BeamSearch, Ending, Hypothesis};
pub use chat::{Message, render};
pub use compiled::CacheFacts;
pub use constraint::{Constraint, Matcher};
pub(crate) use encoder::switched_encoder_graph;
pub use encoder::{Encoder, Passage, Tokens, encoder_graph};
pub use entities::{Counts, Entity, EntityCounts, Shares, entities};
pub use generate::{Generation, Generator, Settings, Stop};
use lookup::Lookup;
pub use model::LanguageModel;
pub use opened::Opened;
pub use packed::{PackedPrograms, Reading, TextId, Texts};
pub use programs::{ProgramOptions, Programs};
pub use sampling::{Sampler, Sampling};
pub use schema::pattern;
pub(crate) use score::log_softmax;
pub use score::{Scored, score, score_together, windows};
pub use sequence::{SequenceModel, SequencePrograms};
pub use session::Session;
pub use together::Together;
pub use tokenizer::{TextStream, Tokenizer};

use kiln_frontend::checkpoint::CheckpointError;
use std::path::PathBuf;

/// A language model cannot be read or used as asked.
#[derive(Debug, thiserror::Error)]
pub enum LmError {
    /// The checkpoint is not right.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The path leads to no checkpoint.
    #[error("{} is no language model: neither a GGUF file, nor a folder with config.json, nor an artifact of one", .0.display())]
    NoCheckpoint(PathBuf),
    /// The artifact's description of its model is not right.
    #[error("{}: {what}", path.display())]
    Compiled {
        /// The artifact.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The artifact was compiled for fewer positions.
    #[error(
        "the artifact was compiled for {capacity} positions, {wanted} are wanted; compile it with a larger --context"
    )]
    Positions {
        /// Positions that are wanted.
        wanted: usize,
        /// Positions that there are.
        capacity: usize,
    },
    /// The tokenizer is not right.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The chat template is not right, or there is none.
    #[error("chat template: {0}")]
    Template(String),
    /// There are more tokens than positions.
    #[error("{tokens} tokens do not fit: {used} of {capacity} positions are in use")]
    Capacity {
        /// Tokens that were to be added.
        tokens: usize,
        /// Positions in use.
        used: usize,
        /// Positions that there are.
        capacity: usize,
    },
    /// A token is not one of the model's.
    #[error("token {token} is not one of the model's {vocabulary}")]
    Token {
        /// The token.
        token: u32,
        /// Number of tokens of the model.
        vocabulary: usize,
    },
    /// There are no tokens.
    #[error("there are no tokens; a model that has no token for the beginning of a text needs a prompt")]
    Empty,
    /// What a text is to follow is not right, or not supported.
    #[error("constraint: {0}")]
    Constraint(String),
    /// No token is possible.
    #[error("no token is possible here: all are banned")]
    NoToken,
}
