//! GGUF files: the container of llama.cpp and its quantized tensors.
//!
//! Invariant: the reader works on bytes that it was handed and never panics on them; sizes and offsets from the file go
//! through checked arithmetic, and every tensor that it lists lies inside the file.
//!
//! Source: the specification `docs/gguf.md` of the ggml project; block layouts from its `ggml-quants` documentation.

mod blocks;
mod encoding;
mod expand;
mod read;
mod value;
mod write;

pub(crate) use blocks::shifts_of_halves;
pub use blocks::{BLOCK, Blocks, Numbers, blocks, join};
pub use encoding::Encoding;
pub use expand::expand;
pub use read::{Gguf, GgufError, TensorInfo};
pub use value::{Array, Value};
pub use write::{Replaced, Written, rewritten, written};
