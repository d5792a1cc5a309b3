//! Small models as ONNX bytes.

use kiln::ir::DType;
use kiln::onnx::proto::{
    AttributeProto, AttributeType, DataType, Dimension, DimensionValue, ElementTypeProto, GraphProto, ModelProto,
    NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, TypeValue,
    ValueInfoProto,
};
use prost::Message;

/// A dim: a number or a name.
pub enum Dim {
    /// A fixed extent.
    N(i64),
    /// A symbol.
    Name(&'static str),
}

/// A named tensor type.
pub fn value(name: &str, dtype: DType, dims: &[Dim]) -> ValueInfoProto {
    let dim = |d: &Dim| Dimension {
        value: Some(match d {
            Dim::N(n) => DimensionValue::DimValue(*n),
            Dim::Name(s) => DimensionValue::DimParam((*s).into()),
        }),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let ty = TensorTypeProto { elem_type: DataType::of(dtype) as i32, shape: Some(shape) };
    let ty = TypeProto { value: Some(TypeValue::TensorType(ty)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(ty), ..Default::default() }
}

/// An f32 tensor type of fixed dims.
pub fn floats(name: &str, dims: &[i64]) -> ValueInfoProto {
    value(name, DType::F32, &dims.iter().map(|d| Dim::N(*d)).collect::<Vec<_>>())
}

/// A sequence of f32 tensors of any shape.
pub fn sequence(name: &str) -> ValueInfoProto {
    sequence_of(name, None)
}

/// A sequence of f32 tensors with one axis of any length.
pub fn vectors(name: &str) -> ValueInfoProto {
    sequence_of(name, Some(TensorShapeProto { dim: vec![Dimension::default()] }))
}

fn sequence_of(name: &str, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    let tensor = TensorTypeProto { elem_type: DataType::of(DType::F32) as i32, shape };
    let element = TypeProto { value: Some(TypeValue::TensorType(tensor)), ..Default::default() };
    let ty = ElementTypeProto { elem_type: Some(Box::new(element)) };
    let ty = TypeProto { value: Some(TypeValue::SequenceType(Box::new(ty))), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(ty), ..Default::default() }
}

/// A node.
pub fn node(name: &str, op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let words = |w: &[&str]| w.iter().map(|s| s.to_string()).collect();
    NodeProto {
        name: name.into(),
        op_type: op.into(),
        input: words(inputs),
        output: words(outputs),
        ..Default::default()
    }
}

/// An integer attribute.
pub fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: Some(value), ..Default::default() }
}

/// An attribute of several integers.
pub fn ints(name: &str, values: &[i64]) -> AttributeProto {
    let r#type = AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type, ints: values.to_vec(), ..Default::default() }
}

/// An attribute that is a graph.
fn subgraph(name: &str, graph: GraphProto) -> AttributeProto {
    let r#type = AttributeType::Graph as i32;
    AttributeProto { name: name.into(), r#type, g: Some(Box::new(graph)), ..Default::default() }
}

/// A weight whose elements run through a few small numbers.
pub fn weight(name: &str, dims: &[i64]) -> TensorProto {
    let count: i64 = dims.iter().product();
    let data = (0..count).flat_map(|i| (((i * 7919) % 23 - 11) as f32 / 32.0).to_le_bytes()).collect::<Vec<u8>>();
    let data_type = DataType::of(DType::F32) as i32;
    TensorProto { name: name.into(), dims: dims.to_vec(), data_type, raw_data: Some(data.into()), ..Default::default() }
}

/// A graph of these parts.
pub fn graph(
    nodes: Vec<NodeProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> GraphProto {
    GraphProto { name: "test".into(), node: nodes, input, output, initializer, ..Default::default() }
}

/// The bytes of a model with that graph.
pub fn model(graph: GraphProto) -> Vec<u8> {
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 18 }];
    ModelProto { ir_version: 9, opset_import, graph: Some(graph), ..Default::default() }.encode_to_vec()
}

/// Two dense layers with a Relu between: `x [batch, 20] -> y [batch, 12]`.
pub fn mlp_with_batch(batch: Dim, output_batch: Dim) -> Vec<u8> {
    model(graph(
        vec![
            node("first", "Gemm", &["x", "w1", "b1"], &["h"]),
            node("act", "Relu", &["h"], &["r"]),
            node("second", "Gemm", &["r", "w2", "b2"], &["y"]),
        ],
        vec![value("x", DType::F32, &[batch, Dim::N(20)])],
        vec![value("y", DType::F32, &[output_batch, Dim::N(12)])],
        vec![weight("w1", &[20, 33]), weight("b1", &[33]), weight("w2", &[33, 12]), weight("b2", &[12])],
    ))
}

/// The same for a batch of 3.
pub fn mlp() -> Vec<u8> {
    mlp_with_batch(Dim::N(3), Dim::N(3))
}

/// `y = Gather(x [4, 2], indices [3])`.
pub fn gather() -> Vec<u8> {
    let indices = value("indices", DType::I64, &[Dim::N(3)]);
    model(graph(
        vec![node("pick", "Gather", &["x", "indices"], &["y"])],
        vec![floats("x", &[4, 2]), indices],
        vec![floats("y", &[3, 2])],
        vec![],
    ))
}

/// `steps = Loop(x [1000])` that never ends and keeps its state at every step.
pub fn endless() -> Vec<u8> {
    let nodes = vec![
        node("", "Identity", &["go"], &["on"]),
        node("", "Identity", &["state"], &["next"]),
        node("", "Identity", &["state"], &["kept"]),
    ];
    let scalar = |name: &str, dtype| value(name, dtype, &[]);
    let given = vec![scalar("step", DType::I64), scalar("go", DType::Bool), floats("state", &[1000])];
    let made = vec![scalar("on", DType::Bool), floats("next", &[1000]), floats("kept", &[1000])];
    let body = graph(nodes, given, made, vec![]);
    let mut spin = node("spin", "Loop", &["", "yes", "x"], &["last", "all"]);
    spin.attribute.push(subgraph("body", body));
    let data_type = DataType::of(DType::Bool) as i32;
    let yes = TensorProto { name: "yes".into(), data_type, raw_data: Some(vec![1].into()), ..Default::default() };
    model(graph(vec![spin], vec![floats("x", &[1000])], vec![floats("last", &[1000])], vec![yes]))
}

/// `y = a + (if c { if d { relu(a w) } else { -(a w) } } else { softmax(a) })` with `a = x v`, of `x [8, 20]`.
pub fn branches() -> Vec<u8> {
    let either = |name: &str, condition: &str, [then, otherwise]: [(Vec<NodeProto>, &str); 2]| {
        let of = |(nodes, result): (Vec<NodeProto>, &str)| graph(nodes, vec![], vec![floats(result, &[8, 12])], vec![]);
        let mut made = node(name, "If", &[condition], &[name]);
        made.attribute = vec![subgraph("then_branch", of(then)), subgraph("else_branch", of(otherwise))];
        made
    };
    let inner = [(vec![node("", "Relu", &["t"], &["p"])], "p"), (vec![node("", "Neg", &["t"], &["q"])], "q")];
    let outer = [
        (vec![node("", "MatMul", &["a", "w"], &["t"]), either("inner", "d", inner)], "inner"),
        (vec![node("", "Softmax", &["a"], &["s"])], "s"),
    ];
    let truth = |name: &str| value(name, DType::Bool, &[]);
    model(graph(
        vec![
            node("", "MatMul", &["x", "v"], &["a"]),
            either("outer", "c", outer),
            node("", "Add", &["a", "outer"], &["y"]),
        ],
        vec![floats("x", &[8, 20]), truth("c"), truth("d")],
        vec![floats("y", &[8, 12])],
        vec![weight("v", &[20, 12]), weight("w", &[12, 12])],
    ))
}
