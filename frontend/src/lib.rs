//! Model readers: ONNX to Kiln's graph, and a builder for graphs in Rust.
#![forbid(unsafe_code)]

mod body;
pub mod builder;
pub mod gguf;
pub mod onnx;
