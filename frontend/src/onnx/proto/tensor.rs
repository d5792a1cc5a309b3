//! `TensorProto`, `SparseTensorProto` and the list of element types, as the wire has them, unchecked.

use super::StringStringEntryProto;
use kiln_ir::DType;
use prost::bytes::Bytes;
use std::fmt;

/// `TensorProto.DataType` (onnx.proto3, up to IR version 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
#[allow(missing_docs)]
pub enum DataType {
    Undefined = 0,
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Uint16 = 4,
    Int16 = 5,
    Int32 = 6,
    Int64 = 7,
    String = 8,
    Bool = 9,
    Float16 = 10,
    Double = 11,
    Uint32 = 12,
    Uint64 = 13,
    Complex64 = 14,
    Complex128 = 15,
    Bfloat16 = 16,
    Float8E4m3fn = 17,
    Float8E4m3fnuz = 18,
    Float8E5m2 = 19,
    Float8E5m2fnuz = 20,
    Uint4 = 21,
    Int4 = 22,
    Float4E2m1 = 23,
    Float8E8m0 = 24,
    Uint2 = 25,
    Int2 = 26,
    Float6E2m3 = 27,
    Float6E3m2 = 28,
}

impl DataType {
    /// The graph's element type; nothing for `UNDEFINED` and the 6-bit floats, which Kiln has no type for.
    pub fn dtype(self) -> Option<DType> {
        Some(match self {
            DataType::Undefined | DataType::Float6E2m3 | DataType::Float6E3m2 => return None,
            DataType::Float => DType::F32,
            DataType::Uint8 => DType::U8,
            DataType::Int8 => DType::I8,
            DataType::Uint16 => DType::U16,
            DataType::Int16 => DType::I16,
            DataType::Int32 => DType::I32,
            DataType::Int64 => DType::I64,
            DataType::String => DType::Str,
            DataType::Bool => DType::Bool,
            DataType::Float16 => DType::F16,
            DataType::Double => DType::F64,
            DataType::Uint32 => DType::U32,
            DataType::Uint64 => DType::U64,
            DataType::Complex64 => DType::C64,
            DataType::Complex128 => DType::C128,
            DataType::Bfloat16 => DType::BF16,
            DataType::Float8E4m3fn => DType::F8E4M3FN,
            DataType::Float8E4m3fnuz => DType::F8E4M3FNUZ,
            DataType::Float8E5m2 => DType::F8E5M2,
            DataType::Float8E5m2fnuz => DType::F8E5M2FNUZ,
            DataType::Uint4 => DType::U4,
            DataType::Int4 => DType::I4,
            DataType::Float4E2m1 => DType::F4E2M1,
            DataType::Float8E8m0 => DType::F8E8M0,
            DataType::Uint2 => DType::U2,
            DataType::Int2 => DType::I2,
        })
    }

    /// ONNX's number for an element type of the graph.
    pub fn of(dtype: DType) -> DataType {
        match dtype {
            DType::Bool => DataType::Bool,
            DType::I2 => DataType::Int2,
            DType::I4 => DataType::Int4,
            DType::I8 => DataType::Int8,
            DType::I16 => DataType::Int16,
            DType::I32 => DataType::Int32,
            DType::I64 => DataType::Int64,
            DType::U2 => DataType::Uint2,
            DType::U4 => DataType::Uint4,
            DType::U8 => DataType::Uint8,
            DType::U16 => DataType::Uint16,
            DType::U32 => DataType::Uint32,
            DType::U64 => DataType::Uint64,
            DType::F4E2M1 => DataType::Float4E2m1,
            DType::F8E4M3FN => DataType::Float8E4m3fn,
            DType::F8E4M3FNUZ => DataType::Float8E4m3fnuz,
            DType::F8E5M2 => DataType::Float8E5m2,
            DType::F8E5M2FNUZ => DataType::Float8E5m2fnuz,
            DType::F8E8M0 => DataType::Float8E8m0,
            DType::F16 => DataType::Float16,
            DType::BF16 => DataType::Bfloat16,
            DType::F32 => DataType::Float,
            DType::F64 => DataType::Double,
            DType::C64 => DataType::Complex64,
            DType::C128 => DataType::Complex128,
            DType::Str => DataType::String,
            DType::Seq => DataType::Undefined,
        }
    }
}

impl fmt::Display for DataType {
    /// ONNX's own spelling, such as `FLOAT8E4M3FN`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_uppercase())
    }
}

/// A dense tensor. Exactly one of the data fields holds the elements.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// Dims, outermost first.
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    /// A [`DataType`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// Set when this is one chunk of a larger tensor.
    #[prost(message, optional, tag = "3")]
    pub segment: Option<Segment>,
    /// Elements of FLOAT and COMPLEX64.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Elements of the types of 32 bits or fewer; 4-bit types two to an entry, 2-bit types four.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Elements of STRING.
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub string_data: Vec<Bytes>,
    /// Elements of INT64.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// The tensor's name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// Documentation.
    #[prost(string, tag = "12")]
    pub doc_string: String,
    /// Elements of any type but STRING, little-endian; shares the buffer that the message was decoded from.
    #[prost(bytes = "bytes", optional, tag = "9")]
    pub raw_data: Option<Bytes>,
    /// Where the data is, when `data_location` is EXTERNAL.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// 0 is DEFAULT, 1 is EXTERNAL.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
    /// Elements of DOUBLE and COMPLEX128.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// Elements of UINT32 and UINT64.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Metadata, keys distinct.
    #[prost(message, repeated, tag = "16")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// `TensorProto.Segment`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Segment {
    /// First element.
    #[prost(int64, tag = "1")]
    pub begin: i64,
    /// One past the last element.
    #[prost(int64, tag = "2")]
    pub end: i64,
}

/// A sparse tensor in coordinate form.
#[derive(Clone, PartialEq, prost::Message)]
pub struct SparseTensorProto {
    /// The non-default values, of shape `[NNZ]`; its name is the sparse tensor's name.
    #[prost(message, optional, tag = "1")]
    pub values: Option<TensorProto>,
    /// `[NNZ, rank]` coordinates or `[NNZ]` linear positions, ascending.
    #[prost(message, optional, tag = "2")]
    pub indices: Option<TensorProto>,
    /// Dims of the dense tensor.
    #[prost(int64, repeated, packed = "false", tag = "3")]
    pub dims: Vec<i64>,
}
