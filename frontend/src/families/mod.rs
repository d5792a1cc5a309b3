//! Model families over [`crate::nn`], as their checkpoints have them.
//!
//! Invariant: a family's graph is a function of its configuration and a form (how many tokens, what past); every parameter
//! has the name that Hugging Face gives it.

mod anatomy;
pub mod bart;
pub mod bert;
pub mod deberta;
mod decoder;
mod encoder;
pub mod gpt2;
mod heads;
pub mod llama;
mod sequence;
mod settings;
pub mod t5;
pub mod xlnet;

pub use anatomy::{Anatomy, HeadParts, Keys};
pub use decoder::{Decoder, Extent, Form, Past};
pub use encoder::TextEncoder;
pub use heads::{Head, Wanted};
pub use sequence::{Sequence, SequenceForm};
pub use settings::Settings;
