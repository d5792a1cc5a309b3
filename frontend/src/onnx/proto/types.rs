//! Types and shapes: `TypeProto`, `TensorShapeProto`, `ValueInfoProto`, as the wire has them, unchecked.

use super::StringStringEntryProto;

/// A named value with its type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// The value's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The value's type; graph inputs and outputs must have one.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
    /// Documentation.
    #[prost(string, tag = "3")]
    pub doc_string: String,
    /// Metadata, keys distinct.
    #[prost(message, repeated, tag = "4")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// The shape of a tensor type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    /// Dims, outermost first.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

/// One dim of a [`TensorShapeProto`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Dimension {
    /// Number or symbol; neither when unknown.
    #[prost(oneof = "DimensionValue", tags = "1, 2")]
    pub value: Option<DimensionValue>,
    /// What the dim stands for, by ONNX's list of denotations.
    #[prost(string, tag = "3")]
    pub denotation: String,
}

/// The content of a [`Dimension`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum DimensionValue {
    /// A fixed extent.
    #[prost(int64, tag = "1")]
    DimValue(i64),
    /// A symbol.
    #[prost(string, tag = "2")]
    DimParam(String),
}

/// The type of a value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// Which type.
    #[prost(oneof = "TypeValue", tags = "1, 4, 5, 9, 8, 7")]
    pub value: Option<TypeValue>,
    /// What the value stands for, by ONNX's list of denotations.
    #[prost(string, tag = "6")]
    pub denotation: String,
}

/// The content of a [`TypeProto`].
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum TypeValue {
    /// A dense tensor.
    #[prost(message, tag = "1")]
    TensorType(TensorTypeProto),
    /// A sequence.
    #[prost(message, tag = "4")]
    SequenceType(Box<ElementTypeProto>),
    /// A map.
    #[prost(message, tag = "5")]
    MapType(Box<MapTypeProto>),
    /// An optional.
    #[prost(message, tag = "9")]
    OptionalType(Box<ElementTypeProto>),
    /// A sparse tensor.
    #[prost(message, tag = "8")]
    SparseTensorType(TensorTypeProto),
    /// A type that only its domain knows.
    #[prost(message, tag = "7")]
    OpaqueType(OpaqueTypeProto),
}

/// `TypeProto.Tensor` and `TypeProto.SparseTensor`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorTypeProto {
    /// A [`super::DataType`].
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// Absent when even the rank is unknown.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// `TypeProto.Sequence` and `TypeProto.Optional`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ElementTypeProto {
    /// The type of what is inside.
    #[prost(message, optional, boxed, tag = "1")]
    pub elem_type: Option<Box<TypeProto>>,
}

/// `TypeProto.Map`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct MapTypeProto {
    /// A [`super::DataType`]: an integer type or string.
    #[prost(int32, tag = "1")]
    pub key_type: i32,
    /// The type of the values.
    #[prost(message, optional, boxed, tag = "2")]
    pub value_type: Option<Box<TypeProto>>,
}

/// `TypeProto.Opaque`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OpaqueTypeProto {
    /// Domain; empty means the model's.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Name within the domain.
    #[prost(string, tag = "2")]
    pub name: String,
}
