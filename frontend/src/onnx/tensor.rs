//! `TensorProto` to a tensor and back.
//!
//! Invariant: a tensor comes out only if type, dims and data agree exactly; whatever form the data has in the file, it
//! is row-major little-endian here, with types narrower than a byte spread to one element a byte (sign-extended). Raw
//! data of the other types is shared with the file, not copied.

use super::external::{self, ExternalData, ExternalError};
use super::proto::{DataType, TensorProto};
use kiln_ir::{DType, Tensor};
use prost::bytes::Bytes;
use thiserror::Error;

/// A `TensorProto` is not a tensor that Kiln can hold.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TensorProtoError {
    /// `data_type` is missing.
    #[error("the tensor has no element type")]
    NoType,
    /// `data_type` is a number that this version of ONNX does not define.
    #[error("the tensor's element type {0} is not one of ONNX's")]
    UnknownType(i32),
    /// The element type is ONNX's but not Kiln's.
    #[error("tensors of type {0} are not supported")]
    UnsupportedType(DataType),
    /// The tensor is one chunk of a larger one.
    #[error("tensors in segments are not supported")]
    Segment,
    /// A dim is negative.
    #[error("the tensor's dims {0:?} contain a negative number")]
    NegativeDim(Vec<i64>),
    /// The product of the dims overflows.
    #[error("the tensor's dims {0:?} have too large a product")]
    TooLarge(Vec<i64>),
    /// `data_location` is neither DEFAULT nor EXTERNAL.
    #[error("the tensor's data location {0} is not one of ONNX's")]
    Location(i32),
    /// More than one field holds data, or one that does not fit the type.
    #[error("the tensor of type {dtype} has data in {field}, which is not where that type's data belongs")]
    WrongField {
        /// Element type.
        dtype: DataType,
        /// Field that must be empty.
        field: &'static str,
    },
    /// The data is not as long as the dims ask.
    #[error("the tensor of type {dtype} and dims {dims:?} needs {expected} {unit} in {field}, there are {found}")]
    Length {
        /// Element type.
        dtype: DataType,
        /// Dims.
        dims: Vec<i64>,
        /// Field with the data.
        field: &'static str,
        /// What is counted.
        unit: &'static str,
        /// By dims and type.
        expected: usize,
        /// In the file.
        found: usize,
    },
    /// A number does not fit the element type.
    #[error("element {index} of the tensor, {value}, does not fit its type {dtype}")]
    Range {
        /// Element type.
        dtype: DataType,
        /// Position in the field.
        index: usize,
        /// The number.
        value: i128,
    },
    /// The external data is not acceptable or not there.
    #[error(transparent)]
    External(#[from] ExternalError),
}

impl TensorProtoError {
    /// Whether the tensor may be right, and only Kiln has no way to hold it.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, TensorProtoError::UnsupportedType(_) | TensorProtoError::Segment)
    }
}

/// The element type that a `data_type` or `elem_type` field gives.
///
/// # Errors
/// The number is none of ONNX's types, or none of Kiln's.
pub fn element_type(number: i32) -> Result<(DataType, DType), TensorProtoError> {
    let data_type = match DataType::try_from(number) {
        Ok(DataType::Undefined) => return Err(TensorProtoError::NoType),
        Ok(t) => t,
        Err(_) => return Err(TensorProtoError::UnknownType(number)),
    };
    let dtype = data_type.dtype().ok_or(TensorProtoError::UnsupportedType(data_type))?;
    Ok((data_type, dtype))
}

/// Dims as sizes, and their product.
pub(super) fn dims(dims: &[i64]) -> Result<(Vec<usize>, usize), TensorProtoError> {
    let sizes: Option<Vec<usize>> = dims.iter().map(|&d| usize::try_from(d).ok()).collect();
    let sizes = sizes.ok_or_else(|| TensorProtoError::NegativeDim(dims.to_vec()))?;
    // 16 bytes is the largest element; a tensor that passes fits the address space whatever its type.
    let count = kiln_ir::tensor::element_count(&sizes, 16).map_err(|_| TensorProtoError::TooLarge(dims.to_vec()))?;
    Ok((sizes, count))
}

/// Elements that share a byte of raw data.
fn per_byte(dtype: DType) -> usize {
    match dtype {
        DType::I4 | DType::U4 | DType::F4E2M1 => 2,
        DType::I2 | DType::U2 => 4,
        DType::Bool
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0
        | DType::F16
        | DType::BF16
        | DType::F32
        | DType::F64
        | DType::C64
        | DType::C128
        | DType::Str
        | DType::Seq => 1,
    }
}

/// Spreads packed elements to one a byte, first element in the low bits.
fn unpack(dtype: DType, packed: &[u8], count: usize) -> Vec<u8> {
    let per_byte = per_byte(dtype);
    let bits = 8 / per_byte as u32;
    let signed = matches!(dtype, DType::I4 | DType::I2);
    let unused = 8 - bits;
    let element = |byte: u8, i: u32| {
        let high = byte >> (i * bits) << unused;
        if signed { ((high as i8) >> unused) as u8 } else { high >> unused }
    };
    let elements = packed.iter().flat_map(|&byte| (0..per_byte as u32).map(move |i| element(byte, i)));
    elements.take(count).collect()
}

/// The inverse of [`unpack`].
fn pack(dtype: DType, elements: &[u8]) -> Vec<u8> {
    let per_byte = per_byte(dtype);
    let bits = 8 / per_byte;
    let mask = 0xffu8 >> (8 - bits);
    elements.chunks(per_byte).map(|c| c.iter().rev().fold(0, |byte, e| (byte << bits) | (e & mask))).collect()
}

/// The tensor that a message describes; `external` gives the content of external data files.
///
/// # Errors
/// Type, dims and data do not agree, or the external data cannot be had; see [`TensorProtoError`].
pub fn from_proto(proto: TensorProto, external: &ExternalData) -> Result<Tensor, TensorProtoError> {
    let (data_type, dtype) = element_type(proto.data_type)?;
    if proto.segment.is_some() {
        return Err(TensorProtoError::Segment);
    }
    let (shape, count) = dims(&proto.dims)?;
    let raw_length = count.div_ceil(per_byte(dtype)) * dtype.size();
    let raw = match proto.data_location {
        0 => proto.raw_data.clone().filter(|raw| !raw.is_empty()),
        1 if dtype == DType::Str => {
            return Err(TensorProtoError::WrongField { dtype: data_type, field: "external_data" });
        }
        1 => Some(external::request(&proto.external_data)?.fetch(raw_length as u64, external)?),
        other => return Err(TensorProtoError::Location(other)),
    };
    let check = |field, unit, expected, found| {
        let dims = proto.dims.clone();
        let error = TensorProtoError::Length { dtype: data_type, dims, field, unit, expected, found };
        if expected == found { Ok(()) } else { Err(error) }
    };
    let own = if raw.is_some() { "raw_data" } else { own_field(dtype) };
    let fields = [
        ("raw_data", raw.is_some()),
        ("float_data", !proto.float_data.is_empty()),
        ("int32_data", !proto.int32_data.is_empty()),
        ("string_data", !proto.string_data.is_empty()),
        ("int64_data", !proto.int64_data.is_empty()),
        ("double_data", !proto.double_data.is_empty()),
        ("uint64_data", !proto.uint64_data.is_empty()),
    ];
    if let Some((field, _)) = fields.into_iter().find(|&(field, filled)| filled && field != own) {
        return Err(TensorProtoError::WrongField { dtype: data_type, field });
    }
    if dtype == DType::Str {
        if raw.is_some() {
            return Err(TensorProtoError::WrongField { dtype: data_type, field: "raw_data" });
        }
        check("string_data", "strings", count, proto.string_data.len())?;
        let strings = proto.string_data.iter().map(|s| s.to_vec()).collect();
        return Tensor::from_strings(shape, strings).map_err(|_| TensorProtoError::TooLarge(proto.dims));
    }
    let bytes = match raw {
        Some(raw) => {
            check("raw_data", "bytes", raw_length, raw.len())?;
            if per_byte(dtype) > 1 {
                Bytes::from(unpack(dtype, &raw, count))
            } else if dtype == DType::Bool && raw.iter().any(|&b| b > 1) {
                raw.iter().map(|&b| u8::from(b != 0)).collect()
            } else {
                raw
            }
        }
        None => typed_data(&proto, data_type, dtype, count, check)?.into(),
    };
    Tensor::new(dtype, shape, bytes).map_err(|_| TensorProtoError::TooLarge(proto.dims))
}

/// The typed field in which data of a type belongs.
fn own_field(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 | DType::C64 => "float_data",
        DType::F64 | DType::C128 => "double_data",
        DType::I64 => "int64_data",
        DType::U32 | DType::U64 => "uint64_data",
        DType::Str => "string_data",
        // A tensor of a file holds no sequences.
        DType::Seq => "no field",
        DType::Bool
        | DType::I2
        | DType::I4
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::U2
        | DType::U4
        | DType::U8
        | DType::U16
        | DType::F4E2M1
        | DType::F8E4M3FN
        | DType::F8E4M3FNUZ
        | DType::F8E5M2
        | DType::F8E5M2FNUZ
        | DType::F8E8M0
        | DType::F16
        | DType::BF16 => "int32_data",
    }
}

/// The elements from the typed field, as little-endian bytes.
fn typed_data(
    proto: &TensorProto,
    data_type: DataType,
    dtype: DType,
    count: usize,
    check: impl Fn(&'static str, &'static str, usize, usize) -> Result<(), TensorProtoError>,
) -> Result<Vec<u8>, TensorProtoError> {
    let parts = if matches!(dtype, DType::C64 | DType::C128) { 2 } else { 1 };
    let range = |index, value| TensorProtoError::Range { dtype: data_type, index, value };
    match own_field(dtype) {
        "float_data" => {
            check("float_data", "numbers", count * parts, proto.float_data.len())?;
            Ok(proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "double_data" => {
            check("double_data", "numbers", count * parts, proto.double_data.len())?;
            Ok(proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "int64_data" => {
            check("int64_data", "numbers", count, proto.int64_data.len())?;
            Ok(proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        "uint64_data" => {
            check("uint64_data", "numbers", count, proto.uint64_data.len())?;
            if dtype == DType::U64 {
                return Ok(proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect());
            }
            let mut bytes = Vec::with_capacity(count * 4);
            for (i, &v) in proto.uint64_data.iter().enumerate() {
                let v = u32::try_from(v).map_err(|_| range(i, v.into()))?;
                bytes.extend_from_slice(&v.to_le_bytes());
            }
            Ok(bytes)
        }
        _ => {
            let per_entry = per_byte(dtype);
            check("int32_data", "numbers", count.div_ceil(per_entry), proto.int32_data.len())?;
            let size = dtype.size();
            let mut bytes = Vec::with_capacity(proto.int32_data.len() * size);
            for (i, &v) in proto.int32_data.iter().enumerate() {
                // Bit patterns come both as unsigned numbers and sign-extended; anything beyond either is a mistake.
                let bits = 8 * size as u32;
                if bits < 32 && !(-(1i64 << (bits - 1))..1i64 << bits).contains(&i64::from(v)) {
                    return Err(range(i, v.into()));
                }
                let v = if dtype == DType::Bool { i32::from(v != 0) } else { v };
                bytes.extend(v.to_le_bytes().into_iter().take(size));
            }
            Ok(if per_entry > 1 { unpack(dtype, &bytes, count) } else { bytes })
        }
    }
}

/// The message for a tensor, its data raw (strings in `string_data`) and shared where no repacking is needed.
pub fn to_proto(tensor: &Tensor, name: &str) -> TensorProto {
    let mut proto = TensorProto {
        // A dim is at most isize::MAX, which the tensor's own invariant ensures.
        dims: tensor.shape().iter().map(|&d| i64::try_from(d).unwrap_or(i64::MAX)).collect(),
        data_type: DataType::of(tensor.dtype()) as i32,
        name: name.to_owned(),
        ..Default::default()
    };
    match tensor.strings() {
        Some(strings) => proto.string_data = strings.iter().map(|s| Bytes::copy_from_slice(s)).collect(),
        None if per_byte(tensor.dtype()) > 1 => proto.raw_data = Some(pack(tensor.dtype(), tensor.bytes()).into()),
        None => proto.raw_data = Some(tensor.shared_bytes()),
    }
    proto
}
