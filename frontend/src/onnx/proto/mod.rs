//! ONNX's protobuf messages, written by hand over prost, and how bytes become one of them.
//!
//! Invariant: field numbers and types are those of onnx.proto3 and onnx-data.proto (IR version 14); nothing here
//! checks what the fields say. Decoding shares the buffer (`raw_data` is a slice of it, never a copy), and is bounded
//! before it starts: [`scan`] walks the wire format first and knows what the decoded structures will take. Lists of numbers
//! are read packed or not; `dims` and `keys` are written unpacked, so that values have the bytes that the `onnx` package gives
//! them.

mod data;
mod model;
pub mod scan;
mod tensor;
mod types;

pub use data::{ElementKind, MapProto, OptionalProto, SequenceProto};
pub use model::{
    AttributeProto, AttributeType, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    TensorAnnotation, TrainingInfoProto,
};
pub use tensor::{DataType, Segment, SparseTensorProto, TensorProto};
pub use types::{
    Dimension, DimensionValue, ElementTypeProto, MapTypeProto, OpaqueTypeProto, TensorShapeProto, TensorTypeProto,
    TypeProto, TypeValue, ValueInfoProto,
};

use prost::bytes::Bytes;
use scan::{Kind, ScanError};
use thiserror::Error;

/// A key and a value: ONNX's way of writing a map.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringStringEntryProto {
    /// Key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Bytes are not the message that they were taken for.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum DecodeError {
    /// The wire format is broken, cut off, or would decode to more than the limit.
    #[error(transparent)]
    Scan(#[from] ScanError),
    /// A string field holds bytes that are not UTF-8.
    #[error("a string is not valid UTF-8 ({0})")]
    Utf8(String),
    /// prost refuses a field: its wire type does not fit, or messages nest more than 100 deep.
    #[error("{0}")]
    Prost(String),
}

impl DecodeError {
    /// Whether the bytes may be fine but ask for more memory than the limit.
    pub fn is_limit(&self) -> bool {
        matches!(self, DecodeError::Scan(ScanError::TooLarge { .. }))
    }
}

/// A message that can be the top of a file.
pub trait Top: prost::Message + Default {
    /// Which entry of the scanner's table describes it.
    const KIND: Kind;
}

impl Top for ModelProto {
    const KIND: Kind = Kind::Model;
}
impl Top for TensorProto {
    const KIND: Kind = Kind::Tensor;
}
impl Top for SparseTensorProto {
    const KIND: Kind = Kind::SparseTensor;
}
impl Top for SequenceProto {
    const KIND: Kind = Kind::Sequence;
}
impl Top for OptionalProto {
    const KIND: Kind = Kind::Optional;
}
impl Top for MapProto {
    const KIND: Kind = Kind::Map;
}

/// Decodes a message. Byte fields of the result share `bytes`; the structures take at most `max_decoded` bytes.
///
/// # Errors
/// The bytes are no such message, or would decode to more than the limit.
pub fn decode<M: Top>(bytes: Bytes, max_decoded: u64) -> Result<M, DecodeError> {
    scan::scan(M::KIND, &bytes, max_decoded)?;
    M::decode(bytes).map_err(|e| {
        let text = e.to_string();
        let text = text.strip_prefix("failed to decode Protobuf message: ").unwrap_or(&text).to_owned();
        if text.contains("UTF-8") { DecodeError::Utf8(text) } else { DecodeError::Prost(text) }
    })
}
