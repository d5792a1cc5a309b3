//! Attributes, and how importers read them.
//!
//! Invariant: an attribute's content is of the type that it declares; every accessor's error names node, operator and
//! attribute.

use super::types::ValueType;
use super::{Graph, Node};
use crate::onnx::problem::{NodeRef, shown};
use crate::onnx::proto::AttributeType;
use crate::onnx::sparse::SparseTensor;
use kiln_ir::Tensor;
use prost::bytes::Bytes;
use std::sync::Arc;
use thiserror::Error;

/// The content of an attribute. Cloning shares all that is large, graphs excepted.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum AttributeValue {
    Float(f32),
    Int(i64),
    String(Bytes),
    Tensor(Tensor),
    Sparse(Arc<SparseTensor>),
    Graph(Box<Graph>),
    Type(ValueType),
    Floats(Arc<[f32]>),
    Ints(Arc<[i64]>),
    Strings(Arc<[Bytes]>),
    Tensors(Arc<[Tensor]>),
    Sparses(Arc<[SparseTensor]>),
    Graphs(Vec<Graph>),
    Types(Arc<[ValueType]>),
}

impl AttributeValue {
    /// ONNX's name of the type.
    pub fn ty(&self) -> AttributeType {
        match self {
            AttributeValue::Float(_) => AttributeType::Float,
            AttributeValue::Int(_) => AttributeType::Int,
            AttributeValue::String(_) => AttributeType::String,
            AttributeValue::Tensor(_) => AttributeType::Tensor,
            AttributeValue::Sparse(_) => AttributeType::SparseTensor,
            AttributeValue::Graph(_) => AttributeType::Graph,
            AttributeValue::Type(_) => AttributeType::TypeProto,
            AttributeValue::Floats(_) => AttributeType::Floats,
            AttributeValue::Ints(_) => AttributeType::Ints,
            AttributeValue::Strings(_) => AttributeType::Strings,
            AttributeValue::Tensors(_) => AttributeType::Tensors,
            AttributeValue::Sparses(_) => AttributeType::SparseTensors,
            AttributeValue::Graphs(_) => AttributeType::Graphs,
            AttributeValue::Types(_) => AttributeType::TypeProtos,
        }
    }

    /// The subgraphs.
    pub fn graphs(&self) -> &[Graph] {
        match self {
            AttributeValue::Graph(g) => std::slice::from_ref(g),
            AttributeValue::Graphs(gs) => gs,
            AttributeValue::Float(_)
            | AttributeValue::Int(_)
            | AttributeValue::String(_)
            | AttributeValue::Tensor(_)
            | AttributeValue::Sparse(_)
            | AttributeValue::Type(_)
            | AttributeValue::Floats(_)
            | AttributeValue::Ints(_)
            | AttributeValue::Strings(_)
            | AttributeValue::Tensors(_)
            | AttributeValue::Sparses(_)
            | AttributeValue::Types(_) => &[],
        }
    }

    /// The subgraphs, to change.
    pub(super) fn graphs_mut(&mut self) -> &mut [Graph] {
        match self {
            AttributeValue::Graph(g) => std::slice::from_mut(g),
            AttributeValue::Graphs(gs) => gs,
            AttributeValue::Float(_)
            | AttributeValue::Int(_)
            | AttributeValue::String(_)
            | AttributeValue::Tensor(_)
            | AttributeValue::Sparse(_)
            | AttributeValue::Type(_)
            | AttributeValue::Floats(_)
            | AttributeValue::Ints(_)
            | AttributeValue::Strings(_)
            | AttributeValue::Tensors(_)
            | AttributeValue::Sparses(_)
            | AttributeValue::Types(_) => &mut [],
        }
    }
}

/// A named attribute.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    /// Name.
    pub name: String,
    /// Content.
    pub value: AttributeValue,
}

/// An attribute of a function's body whose content the call of the function gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Reference {
    /// The node's attribute.
    pub name: String,
    /// The function's attribute.
    pub from: String,
    /// The type that both must have.
    pub ty: AttributeType,
}

/// An attribute is not what the operator asks for.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AttributeError {
    /// A required attribute is missing.
    #[error("{node}: attribute {} is missing", shown(.attribute))]
    Missing {
        /// The node.
        node: NodeRef,
        /// The attribute.
        attribute: String,
    },
    /// The attribute has another type.
    #[error("{node}: attribute {} is {found}, not {expected}", shown(.attribute))]
    Type {
        /// The node.
        node: NodeRef,
        /// The attribute.
        attribute: String,
        /// By the operator.
        expected: AttributeType,
        /// In the model.
        found: AttributeType,
    },
    /// The attribute's value is not acceptable.
    #[error("{node}: attribute {}: {message}", shown(.attribute))]
    Value {
        /// The node.
        node: NodeRef,
        /// The attribute.
        attribute: String,
        /// What is wrong with it.
        message: String,
    },
    /// The operator has no such attribute.
    #[error("{node}: the operator has no attribute {}", shown(.attribute))]
    Unknown {
        /// The node.
        node: NodeRef,
        /// The attribute.
        attribute: String,
    },
}

/// An accessor for an attribute that may be absent, and one for an attribute that must be there.
macro_rules! accessors {
    ($($opt:ident, $req:ident: $variant:ident => $ty:ty, |$v:ident| $get:expr, $doc:literal;)*) => {$(
        #[doc = concat!($doc, "; nothing where the attribute is absent.")]
        ///
        /// # Errors
        /// The attribute has another type.
        pub fn $opt(&self, name: &str) -> Result<Option<$ty>, AttributeError> {
            match self.attribute(name) {
                None => Ok(None),
                Some(AttributeValue::$variant($v)) => Ok(Some($get)),
                Some(other) => Err(self.attribute_type(name, AttributeType::$variant, other.ty())),
            }
        }

        #[doc = concat!($doc, ".")]
        ///
        /// # Errors
        /// The attribute is missing or has another type.
        pub fn $req(&self, name: &str) -> Result<$ty, AttributeError> {
            self.$opt(name)?.ok_or_else(|| self.attribute_missing(name))
        }
    )*};
}

impl Node {
    /// The content of an attribute.
    pub fn attribute(&self, name: &str) -> Option<&AttributeValue> {
        self.attributes.iter().find(|a| a.name == name).map(|a| &a.value)
    }

    accessors! {
        int_opt, int: Int => i64, |v| *v, "An integer";
        float_opt, float: Float => f32, |v| *v, "A float";
        bytes_opt, bytes: String => &Bytes, |v| v, "A string, as bytes";
        tensor_opt, tensor: Tensor => &Tensor, |v| v, "A tensor";
        graph_opt, graph: Graph => &Graph, |v| v, "A subgraph";
        ints_opt, ints: Ints => &[i64], |v| v, "Integers";
        floats_opt, floats: Floats => &[f32], |v| v, "Floats";
        byte_strings_opt, byte_strings: Strings => &[Bytes], |v| v, "Strings, as bytes";
    }

    /// An integer, or `default` where the attribute is absent.
    ///
    /// # Errors
    /// The attribute has another type.
    pub fn int_or(&self, name: &str, default: i64) -> Result<i64, AttributeError> {
        Ok(self.int_opt(name)?.unwrap_or(default))
    }

    /// An integer that stands for a truth value (0 is false), or `default` where the attribute is absent.
    ///
    /// # Errors
    /// The attribute has another type.
    pub fn bool_or(&self, name: &str, default: bool) -> Result<bool, AttributeError> {
        Ok(self.int_opt(name)?.map_or(default, |v| v != 0))
    }

    /// A float, or `default` where the attribute is absent.
    ///
    /// # Errors
    /// The attribute has another type.
    pub fn float_or(&self, name: &str, default: f32) -> Result<f32, AttributeError> {
        Ok(self.float_opt(name)?.unwrap_or(default))
    }

    /// A string; nothing where the attribute is absent.
    ///
    /// # Errors
    /// The attribute has another type or is not UTF-8.
    pub fn string_opt(&self, name: &str) -> Result<Option<&str>, AttributeError> {
        let Some(bytes) = self.bytes_opt(name)? else { return Ok(None) };
        std::str::from_utf8(bytes).map(Some).map_err(|_| self.attribute_value(name, "is not valid UTF-8"))
    }

    /// A string.
    ///
    /// # Errors
    /// The attribute is missing, has another type or is not UTF-8.
    pub fn string(&self, name: &str) -> Result<&str, AttributeError> {
        self.string_opt(name)?.ok_or_else(|| self.attribute_missing(name))
    }

    /// A string, or `default` where the attribute is absent.
    ///
    /// # Errors
    /// The attribute has another type or is not UTF-8.
    pub fn string_or<'a>(&'a self, name: &str, default: &'a str) -> Result<&'a str, AttributeError> {
        Ok(self.string_opt(name)?.unwrap_or(default))
    }

    /// The error for an attribute that must be there and is not.
    pub fn attribute_missing(&self, name: &str) -> AttributeError {
        AttributeError::Missing { node: self.reference(), attribute: name.to_owned() }
    }

    /// The error for an attribute of the wrong type.
    pub fn attribute_type(&self, name: &str, expected: AttributeType, found: AttributeType) -> AttributeError {
        AttributeError::Type { node: self.reference(), attribute: name.to_owned(), expected, found }
    }

    /// The error for an attribute with a value that the operator does not allow.
    pub fn attribute_value(&self, name: &str, message: impl Into<String>) -> AttributeError {
        AttributeError::Value { node: self.reference(), attribute: name.to_owned(), message: message.into() }
    }

    /// Checks that there are no attributes but those known to the operator.
    ///
    /// # Errors
    /// Names the first that is not known.
    pub fn only_attributes(&self, known: &[&str]) -> Result<(), AttributeError> {
        match self.attributes.iter().find(|a| !known.contains(&a.name.as_str())) {
            None => Ok(()),
            Some(a) => Err(AttributeError::Unknown { node: self.reference(), attribute: a.name.clone() }),
        }
    }
}
