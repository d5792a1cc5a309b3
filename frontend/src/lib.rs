//! Model readers: ONNX to Kiln's graph, and a builder for graphs in Rust.
#![forbid(unsafe_code)]

pub mod onnx;
