//! onnx-data.proto: `SequenceProto`, `OptionalProto`, `MapProto`, as the wire has them, unchecked.

use super::{SparseTensorProto, TensorProto};
use prost::bytes::Bytes;

/// `SequenceProto.DataType` and `OptionalProto.DataType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum ElementKind {
    Undefined = 0,
    Tensor = 1,
    SparseTensor = 2,
    Sequence = 3,
    Map = 4,
    Optional = 5,
}

/// A sequence of values of one kind.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SequenceProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// An [`ElementKind`].
    #[prost(int32, tag = "2")]
    pub elem_type: i32,
    /// Elements, of kind TENSOR.
    #[prost(message, repeated, tag = "3")]
    pub tensor_values: Vec<TensorProto>,
    /// Elements, of kind SPARSE_TENSOR.
    #[prost(message, repeated, tag = "4")]
    pub sparse_tensor_values: Vec<SparseTensorProto>,
    /// Elements, of kind SEQUENCE.
    #[prost(message, repeated, tag = "5")]
    pub sequence_values: Vec<SequenceProto>,
    /// Elements, of kind MAP.
    #[prost(message, repeated, tag = "6")]
    pub map_values: Vec<MapProto>,
    /// Elements, of kind OPTIONAL.
    #[prost(message, repeated, tag = "7")]
    pub optional_values: Vec<OptionalProto>,
}

/// A map: keys, and as many values.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MapProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A [`super::DataType`]: an integer type or STRING.
    #[prost(int32, tag = "2")]
    pub key_type: i32,
    /// Integer keys.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub keys: Vec<i64>,
    /// String keys.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub string_keys: Vec<Bytes>,
    /// The values.
    #[prost(message, optional, tag = "5")]
    pub values: Option<SequenceProto>,
}

/// A value or nothing.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OptionalProto {
    /// Name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// An [`ElementKind`]; UNDEFINED when there is no value.
    #[prost(int32, tag = "2")]
    pub elem_type: i32,
    /// The value, of kind TENSOR.
    #[prost(message, optional, boxed, tag = "3")]
    pub tensor_value: Option<Box<TensorProto>>,
    /// The value, of kind SPARSE_TENSOR.
    #[prost(message, optional, boxed, tag = "4")]
    pub sparse_tensor_value: Option<Box<SparseTensorProto>>,
    /// The value, of kind SEQUENCE.
    #[prost(message, optional, boxed, tag = "5")]
    pub sequence_value: Option<Box<SequenceProto>>,
    /// The value, of kind MAP.
    #[prost(message, optional, boxed, tag = "6")]
    pub map_value: Option<Box<MapProto>>,
    /// The value, of kind OPTIONAL.
    #[prost(message, optional, boxed, tag = "7")]
    pub optional_value: Option<Box<OptionalProto>>,
}
