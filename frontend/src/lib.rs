//! Model readers: ONNX, GGUF and Hugging Face checkpoints to Kiln's graph; a builder for graphs in Rust, and the parts of
//! language models in it.
#![forbid(unsafe_code)]

mod body;
pub mod builder;
pub mod checkpoint;
pub mod families;
pub mod gguf;
pub mod nn;
pub mod onnx;
