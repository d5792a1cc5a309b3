//! A checked model as an ONNX file.
//!
//! Invariant: what [`encode`] writes, [`load`](super::model::load) reads back as an equal model: names, order of nodes, attributes,
//! types and element bits are kept. Functions were inlined when the model was read, and stay so. Weights are inside the file.

use super::model::{Attribute, AttributeValue, Dim, Graph, Initializer, Model, Node, TensorType, ValueInfo, ValueType};
use super::proto::{
    AttributeProto, DataType, Dimension, DimensionValue, ElementTypeProto, GraphProto, MapTypeProto, ModelProto,
    NodeProto, OpaqueTypeProto, OperatorSetIdProto, StringStringEntryProto, TensorShapeProto, TensorTypeProto,
    TypeProto, TypeValue, ValueInfoProto,
};
use super::tensor;
use super::value::Value;
use kiln_ir::DType;
use prost::Message;

/// Most bytes of a protobuf message.
pub const MOST_BYTES: usize = i32::MAX as usize;

/// A model cannot be a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// Protobuf has no messages of that size, and weights in files of their own are not written.
    #[error(
        "the model takes {0} bytes as ONNX, more than the {MOST_BYTES} that one file can hold; weights outside of the file are \
         not written: use fewer bits for the weights, or write an artifact"
    )]
    TooLarge(usize),
    /// A constant is of a kind that no initializer can be.
    #[error("the initializer {0:?} is neither a dense nor a sparse tensor")]
    Initializer(String),
}

/// The bytes of the file. `producer` is the name and version of the program that changed the model.
///
/// # Errors
/// See [`WriteError`].
pub fn encode(model: &Model, producer: (&str, &str)) -> Result<Vec<u8>, WriteError> {
    let opset = |(domain, &version): (&String, &i64)| OperatorSetIdProto { domain: domain.clone(), version };
    let entry = |(key, value): &(String, String)| StringStringEntryProto { key: key.clone(), value: value.clone() };
    let proto = ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opsets.iter().map(opset).collect(),
        producer_name: producer.0.into(),
        producer_version: producer.1.into(),
        graph: Some(graph(&model.graph)?),
        metadata_props: model.metadata.iter().map(entry).collect(),
        ..Default::default()
    };
    match proto.encoded_len() {
        bytes if bytes > MOST_BYTES => Err(WriteError::TooLarge(bytes)),
        _ => Ok(proto.encode_to_vec()),
    }
}

fn graph(graph: &Graph) -> Result<GraphProto, WriteError> {
    let mut proto = GraphProto {
        name: graph.name.clone(),
        input: graph.inputs.iter().chain(&graph.defaults).map(value_info).collect(),
        output: graph.outputs.iter().map(value_info).collect(),
        value_info: graph.value_info.iter().map(value_info).collect(),
        ..Default::default()
    };
    for Initializer { name, value } in &graph.initializers {
        match value {
            Value::Tensor(t) => proto.initializer.push(tensor::to_proto(t, name)),
            Value::Sparse(t) => proto.sparse_initializer.push(t.to_proto(name)),
            Value::Sequence(_) | Value::Optional(_) | Value::Map(..) => {
                return Err(WriteError::Initializer(name.clone()));
            }
        }
    }
    proto.node = graph.nodes.iter().map(node).collect::<Result<_, _>>()?;
    Ok(proto)
}

fn node(node: &Node) -> Result<NodeProto, WriteError> {
    let names = |all: &[Option<String>]| all.iter().map(|name| name.clone().unwrap_or_default()).collect();
    Ok(NodeProto {
        input: names(&node.inputs),
        output: names(&node.outputs),
        name: node.name.clone(),
        op_type: node.op_type.clone(),
        domain: node.domain.clone(),
        attribute: node.attributes.iter().map(attribute).collect::<Result<_, _>>()?,
        ..Default::default()
    })
}

fn attribute(attribute: &Attribute) -> Result<AttributeProto, WriteError> {
    let value = &attribute.value;
    let mut proto = AttributeProto { name: attribute.name.clone(), r#type: value.ty() as i32, ..Default::default() };
    match value {
        AttributeValue::Float(v) => proto.f = Some(*v),
        AttributeValue::Int(v) => proto.i = Some(*v),
        AttributeValue::String(v) => proto.s = Some(v.clone()),
        AttributeValue::Tensor(v) => proto.t = Some(Box::new(tensor::to_proto(v, ""))),
        AttributeValue::Sparse(v) => proto.sparse_tensor = Some(Box::new(v.to_proto(""))),
        AttributeValue::Graph(v) => proto.g = Some(Box::new(graph(v)?)),
        AttributeValue::Type(v) => proto.tp = Some(Box::new(ty(v))),
        AttributeValue::Floats(v) => proto.floats = v.to_vec(),
        AttributeValue::Ints(v) => proto.ints = v.to_vec(),
        AttributeValue::Strings(v) => proto.strings = v.to_vec(),
        AttributeValue::Tensors(v) => proto.tensors = v.iter().map(|t| tensor::to_proto(t, "")).collect(),
        AttributeValue::Sparses(v) => proto.sparse_tensors = v.iter().map(|t| t.to_proto("")).collect(),
        AttributeValue::Graphs(v) => proto.graphs = v.iter().map(graph).collect::<Result<_, _>>()?,
        AttributeValue::Types(v) => proto.type_protos = v.iter().map(ty).collect(),
    }
    Ok(proto)
}

fn value_info(info: &ValueInfo) -> ValueInfoProto {
    ValueInfoProto { name: info.name.clone(), r#type: info.ty.as_ref().map(ty), ..Default::default() }
}

fn ty(ty: &ValueType) -> TypeProto {
    let element = |element: &ValueType| Box::new(ElementTypeProto { elem_type: Some(Box::new(self::ty(element))) });
    let value = match ty {
        ValueType::Tensor(t) => TypeValue::TensorType(tensor_type(t)),
        ValueType::Sparse(t) => TypeValue::SparseTensorType(tensor_type(t)),
        ValueType::Sequence(inner) => TypeValue::SequenceType(element(inner)),
        ValueType::Optional(inner) => TypeValue::OptionalType(element(inner)),
        ValueType::Map { key, value } => TypeValue::MapType(Box::new(MapTypeProto {
            key_type: number(*key),
            value_type: Some(Box::new(self::ty(value))),
        })),
        ValueType::Opaque { domain, name } => {
            TypeValue::OpaqueType(OpaqueTypeProto { domain: domain.clone(), name: name.clone() })
        }
    };
    TypeProto { value: Some(value), ..Default::default() }
}

fn number(dtype: DType) -> i32 {
    DataType::of(dtype) as i32
}

fn tensor_type(ty: &TensorType) -> TensorTypeProto {
    let dim = |dim: &Dim| {
        let value = match dim {
            // A dim is at most isize::MAX, which reading ensures.
            Dim::Fixed(n) => Some(DimensionValue::DimValue(i64::try_from(*n).unwrap_or(i64::MAX))),
            Dim::Symbol(name) => Some(DimensionValue::DimParam(name.clone())),
            Dim::Unknown => None,
        };
        Dimension { value, ..Default::default() }
    };
    let shape = ty.shape.as_ref().map(|dims| TensorShapeProto { dim: dims.iter().map(dim).collect() });
    TensorTypeProto { elem_type: number(ty.dtype), shape }
}
