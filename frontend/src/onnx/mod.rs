//! ONNX: the only place that knows its protobuf.
//!
//! Invariant: no file is opened here; bytes come in, and a closure gives the content of external data.

pub mod export;
pub mod external;
pub mod import;
pub mod model;
pub mod ops;
pub mod problem;
pub mod proto;
pub mod sniff;
pub mod sparse;
pub mod tensor;
pub mod value;
pub mod write;
