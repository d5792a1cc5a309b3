//! Types of values, checked.
//!
//! Invariant: dims are not negative and their product fits the address space; ranks are at most
//! [`super::Limits::rank`]; element types are ones that the graph has.

use super::Limits;
use crate::onnx::problem::ProblemKind;
use crate::onnx::proto::{DimensionValue, TensorTypeProto, TypeProto, TypeValue};
use crate::onnx::tensor::{TensorProtoError, element_type};
use kiln_ir::DType;
use std::fmt;

/// One dim of a tensor type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    /// A fixed extent.
    Fixed(usize),
    /// A symbol; equal symbols are equal extents.
    Symbol(String),
    /// Nothing is known.
    Unknown,
}

/// Element type and, if known, shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dims; nothing where not even the rank is known.
    pub shape: Option<Vec<Dim>>,
}

/// The type of a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueType {
    /// A dense tensor.
    Tensor(TensorType),
    /// A sparse tensor.
    Sparse(TensorType),
    /// A sequence of values of one type.
    Sequence(Box<ValueType>),
    /// A value or nothing.
    Optional(Box<ValueType>),
    /// A map.
    Map {
        /// An integer type or string.
        key: DType,
        /// Type of the values.
        value: Box<ValueType>,
    },
    /// A type that only its domain knows.
    Opaque {
        /// Domain.
        domain: String,
        /// Name.
        name: String,
    },
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.dtype)?;
        let Some(shape) = &self.shape else { return f.write_str("[...]") };
        f.write_str("[")?;
        for (i, dim) in shape.iter().enumerate() {
            f.write_str(if i > 0 { ", " } else { "" })?;
            match dim {
                Dim::Fixed(n) => write!(f, "{n}")?,
                Dim::Symbol(s) => write!(f, "{}", s.escape_debug())?,
                Dim::Unknown => f.write_str("?")?,
            }
        }
        f.write_str("]")
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ValueType::Tensor(t) => write!(f, "{t}"),
            ValueType::Sparse(t) => write!(f, "sparse({t})"),
            ValueType::Sequence(t) => write!(f, "sequence({t})"),
            ValueType::Optional(t) => write!(f, "optional({t})"),
            ValueType::Map { key, value } => write!(f, "map({key}, {value})"),
            ValueType::Opaque { domain, name } => {
                write!(f, "opaque({}, {})", domain.escape_debug(), name.escape_debug())
            }
        }
    }
}

/// Why a type is refused.
pub(super) type TypeProblem = (ProblemKind, String);

fn invalid<T>(message: impl Into<String>) -> Result<T, TypeProblem> {
    Err((ProblemKind::Invalid, message.into()))
}

fn element(number: i32) -> Result<DType, TypeProblem> {
    match element_type(number) {
        Ok((_, dtype)) => Ok(dtype),
        Err(TensorProtoError::UnsupportedType(t)) => {
            Err((ProblemKind::Unsupported, format!("element type {} is not supported", t)))
        }
        Err(TensorProtoError::NoType) => invalid("the type has no element type"),
        Err(_) => invalid(format!("the element type {number} is not one of ONNX's")),
    }
}

fn tensor(proto: TensorTypeProto, limits: &Limits) -> Result<TensorType, TypeProblem> {
    let dtype = element(proto.elem_type)?;
    let Some(shape) = proto.shape else { return Ok(TensorType { dtype, shape: None }) };
    if shape.dim.len() > limits.rank {
        let message = format!("the type has rank {}; the limit is {}", shape.dim.len(), limits.rank);
        return Err((ProblemKind::Limit, message));
    }
    let mut fixed = Vec::new();
    let mut dims = Vec::with_capacity(shape.dim.len());
    for dim in shape.dim {
        dims.push(match dim.value {
            // Some exporters write -1, and a parameter named `?`, for what they do not know: two of them may differ.
            Some(DimensionValue::DimValue(-1)) => Dim::Unknown,
            Some(DimensionValue::DimValue(n)) => match usize::try_from(n) {
                Ok(n) => {
                    fixed.push(n);
                    Dim::Fixed(n)
                }
                Err(_) => return invalid(format!("the type's shape has the dim {n}")),
            },
            Some(DimensionValue::DimParam(s)) if !s.is_empty() && s != "?" => Dim::Symbol(s),
            Some(DimensionValue::DimParam(_)) | None => Dim::Unknown,
        });
    }
    if kiln_ir::tensor::element_count(&fixed, dtype.size()).is_err() {
        return invalid(format!("the dims {fixed:?} of the type have too large a product"));
    }
    Ok(TensorType { dtype, shape: Some(dims) })
}

impl ValueType {
    /// The checked type.
    pub(super) fn from_proto(proto: TypeProto, limits: &Limits) -> Result<ValueType, TypeProblem> {
        // prost has bounded the depth of the message, and so of this recursion.
        let inner = |inner: Option<Box<TypeProto>>| match inner {
            Some(inner) => ValueType::from_proto(*inner, limits).map(Box::new),
            None => invalid("the type has no element type"),
        };
        Ok(match proto.value {
            Some(TypeValue::TensorType(t)) => ValueType::Tensor(tensor(t, limits)?),
            Some(TypeValue::SparseTensorType(t)) => ValueType::Sparse(tensor(t, limits)?),
            Some(TypeValue::SequenceType(t)) => ValueType::Sequence(inner(t.elem_type)?),
            Some(TypeValue::OptionalType(t)) => ValueType::Optional(inner(t.elem_type)?),
            Some(TypeValue::MapType(t)) => {
                let key = element(t.key_type)?;
                if !(key.is_int() || key == DType::Str) {
                    return invalid(format!("{key} cannot be the key of a map"));
                }
                ValueType::Map { key, value: inner(t.value_type)? }
            }
            Some(TypeValue::OpaqueType(t)) => ValueType::Opaque { domain: t.domain, name: t.name },
            None => return invalid("the type is empty"),
        })
    }

    /// The tensor type, where it is one.
    pub fn tensor(&self) -> Option<&TensorType> {
        match self {
            ValueType::Tensor(t) => Some(t),
            ValueType::Sparse(_)
            | ValueType::Sequence(_)
            | ValueType::Optional(_)
            | ValueType::Map { .. }
            | ValueType::Opaque { .. } => None,
        }
    }
}
