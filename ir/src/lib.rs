//! Kiln's intermediate representations: types, text forms, verifiers and interpreters.
//!
//! Invariant: this crate does no I/O, holds no `unsafe`, knows no file format and no code generator.
#![forbid(unsafe_code)]

pub mod dtype;
pub mod expr;
pub mod float8;
pub mod graph;
pub mod id;
pub mod interp;
pub mod layout;
pub mod loops;
pub mod nest;
pub mod ops;
pub mod plan;
pub mod scalar;
pub mod semantics;
pub mod tensor;
pub mod text;
pub mod tile;
pub mod vector;
pub mod warp;

pub use dtype::{Class, DType};
pub use expr::{Expr, Ranges, Symbol};
pub use graph::{Graph, Origin, TensorType};
pub use id::{Arena, Id};
pub use layout::Layout;
pub use scalar::{BinaryOp, Code, Constant, Scalar, UnaryOp};
pub use tensor::{Tensor, TensorError};
