//! ONNX bytes to a checked model, with models built as messages in code.

mod functions;
mod hostile;
mod problems;
mod tensors;

use kiln_frontend::onnx::external;
use kiln_frontend::onnx::model::{self, Limits, LoadError, Model};
use kiln_frontend::onnx::proto::*;
use prost::Message;
use prost::bytes::Bytes;

/// A tensor type; negative dims are unknown.
fn ty(data_type: DataType, dims: &[i64]) -> TypeProto {
    let dim =
        dims.iter().map(|&d| Dimension { value: Some(DimensionValue::DimValue(d)), ..Default::default() }).collect();
    let tensor = TensorTypeProto { elem_type: data_type as i32, shape: Some(TensorShapeProto { dim }) };
    TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() }
}

/// A named f32 tensor.
fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    ValueInfoProto { name: name.into(), r#type: Some(ty(DataType::Float, dims)), ..Default::default() }
}

fn node(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: outputs.iter().map(|s| s.to_string()).collect(),
        ..Default::default()
    }
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.push(attribute);
    node
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: Some(i), ..Default::default() }
}

fn graph_attribute(name: &str, graph: GraphProto) -> AttributeProto {
    let g = Some(Box::new(graph));
    AttributeProto { name: name.into(), r#type: AttributeType::Graph as i32, g, ..Default::default() }
}

fn reference(name: &str, from: &str, ty: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), ref_attr_name: from.into(), r#type: ty as i32, ..Default::default() }
}

fn floats(name: &str, values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: DataType::Float as i32,
        raw_data: Some(raw.into()),
        ..Default::default()
    }
}

fn opset(domain: &str, version: i64) -> OperatorSetIdProto {
    OperatorSetIdProto { domain: domain.into(), version }
}

/// A graph from `x` to `y`, both `f32[2]`.
fn graph(nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto { node: nodes, input: vec![info("x", &[2])], output: vec![info("y", &[2])], ..Default::default() }
}

fn model(graph: GraphProto) -> ModelProto {
    ModelProto { ir_version: 10, opset_import: vec![opset("", 21)], graph: Some(graph), ..Default::default() }
}

fn load(proto: &ModelProto) -> Result<Model, LoadError> {
    load_bytes(proto.encode_to_vec())
}

fn load_bytes(bytes: impl Into<Bytes>) -> Result<Model, LoadError> {
    model::load(bytes.into(), &external::none, &Limits::default())
}

/// The problems of a model, as lines.
fn problems(proto: &ModelProto) -> Vec<String> {
    match load(proto) {
        Ok(_) => Vec::new(),
        Err(e) => e.to_string().lines().map(str::to_owned).collect(),
    }
}

/// `name: op@opset(inputs) -> outputs` of each node.
fn lines(graph: &model::Graph) -> Vec<String> {
    let names = |names: &[Option<String>]| {
        let names: Vec<&str> = names.iter().map(|n| n.as_deref().unwrap_or("-")).collect();
        names.join(", ")
    };
    let line = |n: &model::Node| {
        format!("{}: {}@{}({}) -> {}", n.name, n.op_type, n.opset, names(&n.inputs), names(&n.outputs))
    };
    graph.nodes.iter().map(line).collect()
}
