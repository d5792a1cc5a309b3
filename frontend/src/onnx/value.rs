//! Values of every ONNX type, and the messages that test data and constants hold them in.
//!
//! Invariant: reading follows the type that the graph gives, so that a file's bytes decide nothing but the content.

use super::external;
use super::model::ValueType;
use super::proto::{
    self, DataType, DecodeError, ElementKind, MapProto, OptionalProto, SequenceProto, SparseTensorProto, TensorProto,
};
use super::sparse::{SparseError, SparseTensor};
use super::tensor::{self, TensorProtoError};
use kiln_ir::{DType, Tensor};
use prost::Message;
use prost::bytes::Bytes;
use thiserror::Error;

/// A value of a graph.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A dense tensor.
    Tensor(Tensor),
    /// A sparse tensor.
    Sparse(SparseTensor),
    /// A sequence.
    Sequence(Vec<Value>),
    /// A value or nothing.
    Optional(Option<Box<Value>>),
    /// A map: distinct keys, and as many values.
    Map(Keys, Vec<Value>),
}

/// The keys of a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Integers, of the type given.
    Ints(DType, Vec<i64>),
    /// Strings.
    Strings(Vec<Bytes>),
}

impl Value {
    /// The value as graphs have it: sequences and optionals are tensors of type [`DType::Seq`]; nothing for what no graph takes.
    pub fn into_tensor(self) -> Option<Tensor> {
        match self {
            Value::Tensor(t) => Some(t),
            Value::Sequence(all) => {
                let all: Option<Vec<Tensor>> = all.into_iter().map(Value::into_tensor).collect();
                all.map(Tensor::from_tensors)
            }
            Value::Optional(inner) => {
                let all: Option<Vec<Tensor>> = inner.into_iter().map(|v| v.into_tensor()).collect();
                all.map(Tensor::from_tensors)
            }
            Value::Sparse(_) | Value::Map(..) => None,
        }
    }

    /// What a tensor of a graph is as a value of type `ty`, which tells sequences from optionals; without it a sequence.
    pub fn from_tensor(tensor: Tensor, ty: Option<&ValueType>) -> Value {
        let Some(all) = tensor.tensors() else { return Value::Tensor(tensor) };
        let inner = element(ty);
        let mut all: Vec<Value> = all.iter().map(|t| Value::from_tensor(t.clone(), inner)).collect();
        match ty {
            Some(ValueType::Optional(_)) if all.len() <= 1 => Value::Optional(all.pop().map(Box::new)),
            _ => Value::Sequence(all),
        }
    }
}

/// Bytes are not a value of the type that was asked for.
#[derive(Clone, Debug, PartialEq, Error)]
pub enum ValueError {
    /// They are not the message.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A tensor is wrong.
    #[error(transparent)]
    Tensor(#[from] TensorProtoError),
    /// A sparse tensor is wrong.
    #[error(transparent)]
    Sparse(#[from] SparseError),
    /// The content is of another type.
    #[error("the value is {found}, the graph asks for {expected}")]
    Type {
        /// By the graph.
        expected: String,
        /// In the bytes.
        found: String,
    },
    /// A map has not as many values as keys, or keys of a type that it should not have.
    #[error("the map's keys do not fit its values or type")]
    Map,
    /// The type cannot be read from a file.
    #[error("values of type {0} cannot be read from a file")]
    Unsupported(String),
}

/// Reads a value of type `ty` from a TensorProto, SparseTensorProto, SequenceProto, OptionalProto or MapProto, as the
/// type asks. Data of tensors is shared with `bytes`; decoding takes at most `max_decoded` bytes besides.
///
/// # Errors
/// See [`ValueError`].
pub fn decode(bytes: Bytes, ty: &ValueType, max_decoded: u64) -> Result<Value, ValueError> {
    match ty {
        ValueType::Tensor(_) => from_tensor(proto::decode(bytes, max_decoded)?, ty),
        ValueType::Sparse(_) => from_sparse(proto::decode(bytes, max_decoded)?, ty),
        ValueType::Sequence(_) => from_sequence(proto::decode(bytes, max_decoded)?, ty),
        ValueType::Optional(_) => from_optional(proto::decode(bytes, max_decoded)?, ty),
        ValueType::Map { .. } => from_map(proto::decode(bytes, max_decoded)?, ty),
        ValueType::Opaque { .. } => Err(ValueError::Unsupported(ty.to_string())),
    }
}

/// Reads a tensor from a TensorProto, whatever its type and shape.
///
/// # Errors
/// See [`ValueError`].
pub fn decode_tensor(bytes: Bytes, max_decoded: u64) -> Result<Tensor, ValueError> {
    Ok(tensor::from_proto(proto::decode(bytes, max_decoded)?, &external::none)?)
}

fn mismatch(expected: &ValueType, found: impl ToString) -> ValueError {
    ValueError::Type { expected: expected.to_string(), found: found.to_string() }
}

fn from_tensor(proto: TensorProto, ty: &ValueType) -> Result<Value, ValueError> {
    let tensor = tensor::from_proto(proto, &external::none)?;
    match ty {
        ValueType::Tensor(t) if t.dtype == tensor.dtype() => Ok(Value::Tensor(tensor)),
        other => Err(mismatch(other, format!("a tensor of {}", tensor.dtype()))),
    }
}

fn from_sparse(proto: SparseTensorProto, ty: &ValueType) -> Result<Value, ValueError> {
    let sparse = SparseTensor::from_proto(proto, &external::none)?;
    match ty {
        ValueType::Sparse(t) if t.dtype == sparse.values().dtype() => Ok(Value::Sparse(sparse)),
        other => Err(mismatch(other, format!("a sparse tensor of {}", sparse.values().dtype()))),
    }
}

fn from_sequence(proto: SequenceProto, ty: &ValueType) -> Result<Value, ValueError> {
    let ValueType::Sequence(element) = ty else { return Err(mismatch(ty, "a sequence")) };
    Ok(Value::Sequence(elements(proto, element)?))
}

/// The values of a `SequenceProto`, whose elements are of one type.
fn elements(proto: SequenceProto, element: &ValueType) -> Result<Vec<Value>, ValueError> {
    let counts = [
        proto.tensor_values.len(),
        proto.sparse_tensor_values.len(),
        proto.sequence_values.len(),
        proto.map_values.len(),
        proto.optional_values.len(),
    ];
    let values: Vec<Value> = match element {
        ValueType::Tensor(_) => proto.tensor_values.into_iter().map(|v| from_tensor(v, element)).collect(),
        ValueType::Sparse(_) => proto.sparse_tensor_values.into_iter().map(|v| from_sparse(v, element)).collect(),
        ValueType::Sequence(_) => proto.sequence_values.into_iter().map(|v| from_sequence(v, element)).collect(),
        ValueType::Map { .. } => proto.map_values.into_iter().map(|v| from_map(v, element)).collect(),
        ValueType::Optional(_) => proto.optional_values.into_iter().map(|v| from_optional(v, element)).collect(),
        ValueType::Opaque { .. } => Err(ValueError::Unsupported(element.to_string())),
    }?;
    if values.len() != counts.iter().sum::<usize>() {
        return Err(mismatch(element, "a sequence of values of another type"));
    }
    Ok(values)
}

fn from_optional(proto: OptionalProto, ty: &ValueType) -> Result<Value, ValueError> {
    let ValueType::Optional(element) = ty else { return Err(mismatch(ty, "an optional")) };
    let kind = ElementKind::try_from(proto.elem_type);
    let (tensor, sparse) = (proto.tensor_value, proto.sparse_tensor_value);
    let (sequence, map, optional) = (proto.sequence_value, proto.map_value, proto.optional_value);
    let filled = [tensor.is_some(), sparse.is_some(), sequence.is_some(), map.is_some(), optional.is_some()];
    let value = match element.as_ref() {
        // onnx's own helper gives a kind and no value only for UNDEFINED; either way nothing is there.
        _ if !filled.contains(&true) => None,
        ValueType::Tensor(_) => tensor.map(|v| from_tensor(*v, element)),
        ValueType::Sparse(_) => sparse.map(|v| from_sparse(*v, element)),
        ValueType::Sequence(_) => sequence.map(|v| from_sequence(*v, element)),
        ValueType::Map { .. } => map.map(|v| from_map(*v, element)),
        ValueType::Optional(_) => optional.map(|v| from_optional(*v, element)),
        ValueType::Opaque { .. } => return Err(ValueError::Unsupported(element.to_string())),
    };
    match value {
        Some(value) => Ok(Value::Optional(Some(Box::new(value?)))),
        None if filled.contains(&true) => Err(mismatch(element, format!("of another kind ({kind:?})"))),
        None => Ok(Value::Optional(None)),
    }
}

fn from_map(proto: MapProto, ty: &ValueType) -> Result<Value, ValueError> {
    let ValueType::Map { key, value } = ty else { return Err(mismatch(ty, "a map")) };
    let values = elements(proto.values.unwrap_or_default(), value)?;
    let (keys, others) = match key {
        DType::Str => (Keys::Strings(proto.string_keys), proto.keys.len()),
        _ => (Keys::Ints(*key, proto.keys), proto.string_keys.len()),
    };
    let distinct = match &keys {
        Keys::Ints(_, keys) => keys.iter().collect::<std::collections::BTreeSet<_>>().len(),
        Keys::Strings(keys) => keys.iter().collect::<std::collections::BTreeSet<_>>().len(),
    };
    if others != 0 || keys.len() != values.len() || distinct != keys.len() {
        return Err(ValueError::Map);
    }
    Ok(Value::Map(keys, values))
}

impl Keys {
    /// Number of keys.
    pub fn len(&self) -> usize {
        match self {
            Keys::Ints(_, keys) => keys.len(),
            Keys::Strings(keys) => keys.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes of the message that holds the value under that name: what `output_i.pb` contains. Where the value alone does
/// not tell of what kind its elements are (an empty sequence, an optional without a value), `ty` does; without it an empty
/// sequence is one of tensors.
pub fn encode(value: &Value, ty: Option<&ValueType>, name: &str) -> Vec<u8> {
    match value {
        Value::Tensor(t) => tensor::to_proto(t, name).encode_to_vec(),
        Value::Sparse(t) => t.to_proto(name).encode_to_vec(),
        Value::Sequence(values) => to_sequence(values, element(ty), name).encode_to_vec(),
        Value::Optional(value) => to_optional(value.as_deref(), element(ty), name).encode_to_vec(),
        Value::Map(keys, values) => to_map(keys, values, element(ty), name).encode_to_vec(),
    }
}

/// The type of what a sequence, an optional or a map holds.
fn element(ty: Option<&ValueType>) -> Option<&ValueType> {
    match ty? {
        ValueType::Sequence(element) | ValueType::Optional(element) | ValueType::Map { value: element, .. } => {
            Some(element)
        }
        ValueType::Tensor(_) | ValueType::Sparse(_) | ValueType::Opaque { .. } => None,
    }
}

fn kind(value: &Value) -> ElementKind {
    match value {
        Value::Tensor(_) => ElementKind::Tensor,
        Value::Sparse(_) => ElementKind::SparseTensor,
        Value::Sequence(_) => ElementKind::Sequence,
        Value::Optional(_) => ElementKind::Optional,
        Value::Map(..) => ElementKind::Map,
    }
}

fn kind_of_type(ty: &ValueType) -> ElementKind {
    match ty {
        ValueType::Tensor(_) => ElementKind::Tensor,
        ValueType::Sparse(_) => ElementKind::SparseTensor,
        ValueType::Sequence(_) => ElementKind::Sequence,
        ValueType::Optional(_) => ElementKind::Optional,
        ValueType::Map { .. } => ElementKind::Map,
        ValueType::Opaque { .. } => ElementKind::Undefined,
    }
}

fn to_sequence(values: &[Value], ty: Option<&ValueType>, name: &str) -> SequenceProto {
    let declared = ty.map_or(ElementKind::Tensor, kind_of_type);
    let mut proto = SequenceProto {
        name: name.to_owned(),
        elem_type: values.first().map_or(declared, kind) as i32,
        ..Default::default()
    };
    let inner = ty.and_then(|ty| element(Some(ty)));
    for value in values {
        match value {
            Value::Tensor(t) => proto.tensor_values.push(tensor::to_proto(t, "")),
            Value::Sparse(t) => proto.sparse_tensor_values.push(t.to_proto("")),
            Value::Sequence(v) => proto.sequence_values.push(to_sequence(v, inner, "")),
            Value::Optional(v) => proto.optional_values.push(to_optional(v.as_deref(), inner, "")),
            Value::Map(k, v) => proto.map_values.push(to_map(k, v, inner, "")),
        }
    }
    proto
}

fn to_optional(value: Option<&Value>, ty: Option<&ValueType>, name: &str) -> OptionalProto {
    let declared = ty.map_or(ElementKind::Undefined, kind_of_type);
    let mut proto =
        OptionalProto { name: name.to_owned(), elem_type: value.map_or(declared, kind) as i32, ..Default::default() };
    let inner = ty.and_then(|ty| element(Some(ty)));
    match value {
        None => {}
        Some(Value::Tensor(t)) => proto.tensor_value = Some(Box::new(tensor::to_proto(t, ""))),
        Some(Value::Sparse(t)) => proto.sparse_tensor_value = Some(Box::new(t.to_proto(""))),
        Some(Value::Sequence(v)) => proto.sequence_value = Some(Box::new(to_sequence(v, inner, ""))),
        Some(Value::Optional(v)) => proto.optional_value = Some(Box::new(to_optional(v.as_deref(), inner, ""))),
        Some(Value::Map(k, v)) => proto.map_value = Some(Box::new(to_map(k, v, inner, ""))),
    }
    proto
}

fn to_map(keys: &Keys, values: &[Value], ty: Option<&ValueType>, name: &str) -> MapProto {
    let values = Some(to_sequence(values, ty, ""));
    let mut proto = MapProto { name: name.to_owned(), values, ..Default::default() };
    match keys {
        Keys::Ints(dtype, keys) => {
            proto.key_type = DataType::of(*dtype) as i32;
            proto.keys.clone_from(keys);
        }
        Keys::Strings(keys) => {
            proto.key_type = DataType::String as i32;
            proto.string_keys.clone_from(keys);
        }
    }
    proto
}
