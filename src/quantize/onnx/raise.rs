//! A model in a newer version of ONNX's operator set.
//!
//! Invariant: a node that is not known to mean the same in the new version, as it is or after it was written anew, is named in an
//! error; nothing is raised in silence. Source: the changes that ONNX's `Changelog.md` lists for each operator up to version 21.

use super::Names;
use super::layers::int;
use crate::Error;
use kiln_frontend::onnx::model::{AttributeValue, Graph, Initializer, Model, Node};
use kiln_frontend::onnx::value::Value;
use kiln_ir::{DType, Tensor};

/// Operators, and the version since which they mean the same (with the defaults of attributes that came later) up to version 21.
const SINCE: &[(i64, &[&str])] = &[
    (
        1,
        &[
            "Abs",
            "Acos",
            "Acosh",
            "And",
            "Asin",
            "Asinh",
            "Atan",
            "Atanh",
            "Ceil",
            "Conv",
            "ConvTranspose",
            "Cos",
            "Cosh",
            "DepthToSpace",
            "Elu",
            "Erf",
            "Exp",
            "Floor",
            "Gather",
            "GlobalAveragePool",
            "GlobalLpPool",
            "GlobalMaxPool",
            "HardSigmoid",
            "Identity",
            "InstanceNormalization",
            "IsInf",
            "IsNaN",
            "LRN",
            "LeakyRelu",
            "Log",
            "LpNormalization",
            "MatMul",
            "Neg",
            "NonZero",
            "Not",
            "Or",
            "Reciprocal",
            "Relu",
            "Selu",
            "Shape",
            "Sigmoid",
            "Sign",
            "Sin",
            "Sinh",
            "Size",
            "Softplus",
            "Softsign",
            "SpaceToDepth",
            "Sqrt",
            "Tan",
            "Tanh",
            "ThresholdedRelu",
            "Transpose",
            "Xor",
            "Where",
            "Expand",
            "ConstantOfShape",
            "Compress",
            "EyeLike",
        ],
    ),
    (4, &["Concat"]),
    (5, &["Reshape"]),
    (6, &["Tile", "Cast"]),
    (
        7,
        &[
            "Add",
            "Sub",
            "Mul",
            "Div",
            "Pow",
            "Equal",
            "Greater",
            "Less",
            "PRelu",
            "Gemm",
            "LSTM",
            "GRU",
            "RNN",
            "AveragePool",
        ],
    ),
    (8, &["Max", "Min", "Mean", "Sum", "MaxPool"]),
    (9, &["BatchNormalization", "Flatten", "ArgMax", "ArgMin", "Constant", "Scan", "Scatter", "MaxUnpool"]),
    (
        10,
        &[
            "Slice",
            "Mod",
            "NonMaxSuppression",
            "RoiAlign",
            "QLinearConv",
            "QLinearMatMul",
            "MatMulInteger",
            "ConvInteger",
            "QuantizeLinear",
            "DequantizeLinear",
        ],
    ),
    (
        11,
        &[
            "Clip",
            "Pad",
            "TopK",
            "Resize",
            "OneHot",
            "CumSum",
            "Range",
            "Round",
            "Det",
            "GatherElements",
            "GatherND",
            "ScatterElements",
            "ScatterND",
            "DynamicQuantizeLinear",
            "If",
            "Loop",
            "Unique",
            "BitShift",
        ],
    ),
    (12, &["Einsum", "GreaterOrEqual", "LessOrEqual", "Celu"]),
    (13, &["Softmax", "LogSoftmax", "Hardmax", "Squeeze", "Unsqueeze", "ReduceSum"]),
    (14, &["HardSwish", "Trilu", "CumSum"]),
    (
        18,
        &[
            "ReduceMean",
            "ReduceMax",
            "ReduceMin",
            "ReduceProd",
            "ReduceL1",
            "ReduceL2",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
            "Split",
            "Mish",
            "BitwiseAnd",
            "BitwiseOr",
            "BitwiseNot",
            "BitwiseXor",
            "CenterCropPad",
            "Col2Im",
        ],
    ),
    (17, &["LayerNormalization"]),
    (20, &["Gelu", "AffineGrid"]),
];

/// Raises the model to the version that its nodes ask for, if it is not there already.
///
/// # Errors
/// [`Error::Unsupported`] with the nodes that cannot be raised.
pub fn raise(model: &mut Model) -> Result<(), Error> {
    let own = model.opsets.get("").copied().unwrap_or(1);
    let wanted = model.graph.nodes.iter().filter(|n| n.domain.is_empty()).map(|n| n.opset).max().unwrap_or(own);
    if wanted <= own {
        return Ok(());
    }
    let mut names = Names::of(model);
    let mut refused = Vec::new();
    graph(&mut model.graph, own, wanted, &mut names, &mut refused);
    if !refused.is_empty() {
        let (count, shown) = (refused.len(), refused.iter().take(8).cloned().collect::<Vec<_>>().join(", "));
        return Err(Error::Unsupported(format!(
            "the numbers need version {wanted} of ONNX's operator set, the model has {own}, and {count} of its nodes cannot be \
             raised: {shown}; convert the model first, or write an artifact"
        )));
    }
    model.opsets.insert(String::new(), wanted);
    // IR version 10 came with version 21, which has types of 4 bits; 7 with version 13.
    model.ir_version = model.ir_version.max(if wanted >= 21 { 10 } else { 7 });
    Ok(())
}

fn graph(graph: &mut Graph, own: i64, wanted: i64, names: &mut Names, refused: &mut Vec<String>) {
    let mut added = Vec::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        if !node.domain.is_empty() || node.opset > own {
            graph.nodes.push(node);
            continue;
        }
        if !raised(&mut node, (own, wanted), names, &mut added) {
            refused.push(format!("{} ({})", node.name, node.op_type));
        }
        node.opset = wanted;
        for attribute in &mut node.attributes {
            match &mut attribute.value {
                AttributeValue::Graph(inner) => self::graph(inner, own, wanted, names, refused),
                AttributeValue::Graphs(all) => all.iter_mut().for_each(|g| self::graph(g, own, wanted, names, refused)),
                _ => {}
            }
        }
        if own < 13 && over_flattened(&node) {
            in_two_axes(node, wanted, names, &mut graph.nodes);
        } else {
            graph.nodes.push(node);
        }
    }
    graph.initializers.extend(added);
}

/// Takes an attribute out of a node.
fn take(node: &mut Node, name: &str) -> Option<AttributeValue> {
    let at = node.attributes.iter().position(|a| a.name == name)?;
    Some(node.attributes.remove(at).value)
}

/// Makes an attribute of integers the input at a place.
fn to_input(node: &mut Node, name: &str, at: usize, names: &mut Names, added: &mut Vec<Initializer>) -> bool {
    match take(node, name) {
        None => true,
        Some(AttributeValue::Ints(values)) => {
            let Ok(tensor) = Tensor::from_i64(&[values.len()], &values) else { return false };
            let input = names.fresh(&format!("{}_{name}", node.name));
            added.push(Initializer { name: input.clone(), value: Value::Tensor(tensor) });
            if node.inputs.len() <= at {
                node.inputs.resize(at + 1, None);
            }
            node.inputs[at] = Some(input);
            true
        }
        Some(_) => false,
    }
}

/// Whether a node is of the operators that before version 13 took the axes from `axis` on (1 where nothing is said) for one; with the last
/// axis that is what they do now.
fn over_flattened(node: &Node) -> bool {
    matches!(node.op_type.as_str(), "Softmax" | "LogSoftmax" | "Hardmax") && int(node, "axis", 1) != -1
}

/// Such a node as itself between `Flatten` and a `Reshape` to what the shape was, whatever the number of axes is.
fn in_two_axes(mut node: Node, opset: i64, names: &mut Names, nodes: &mut Vec<Node>) {
    let (Some(input), Some(output)) = (node.input(0).map(String::from), node.output(0).map(String::from)) else {
        return nodes.push(node);
    };
    let axis = AttributeValue::Int(int(&node, "axis", 1));
    take(&mut node, "axis");
    let mut fresh = |word: &str| names.fresh(&format!("{}_{word}", node.name));
    let [flat, shape, made] = ["flat", "shape", "made"].map(&mut fresh);
    let [flatten, shape_of, reshape] = ["Flatten", "Shape", "Reshape"].map(&mut fresh);
    nodes.push(Node::new(&flatten, "Flatten", opset, &[&input], &flat).with("axis", axis));
    nodes.push(Node::new(&shape_of, "Shape", opset, &[&input], &shape));
    (node.inputs, node.outputs) = (vec![Some(flat)], vec![Some(made.clone())]);
    nodes.push(node.with("axis", AttributeValue::Int(-1)));
    nodes.push(Node::new(&reshape, "Reshape", opset, &[&made, &shape], &output));
}

/// Whether a node of version `own` means the same in the version that is wanted, at least 13, now that it has that version's form.
fn raised(node: &mut Node, (own, wanted): (i64, i64), names: &mut Names, added: &mut Vec<Initializer>) -> bool {
    let op = node.op_type.clone();
    match op.as_str() {
        "Squeeze" | "Unsqueeze" | "ReduceSum" if own < 13 => to_input(node, "axes", 1, names, added),
        "Split" if own < 18 => {
            let sized = own >= 13 || to_input(node, "split", 1, names, added);
            if node.input(1).is_none() && wanted >= 18 {
                let count = i64::try_from(node.outputs.len()).unwrap_or(i64::MAX);
                *node = node.clone().with("num_outputs", AttributeValue::Int(count));
            }
            sized
        }
        "Softmax" | "LogSoftmax" | "Hardmax" if own < 13 => node.input(0).is_some() && node.output(0).is_some(),
        "Dropout" if own < 12 => {
            take(node, "ratio");
            node.outputs.len() == 1
        }
        "Dropout" => node.input(2).is_none(),
        "Clip" if own < 11 => {
            for (at, name) in [(1, "min"), (2, "max")] {
                let Some(value) = take(node, name) else { continue };
                let AttributeValue::Float(value) = value else { return false };
                let bytes = value.to_le_bytes().to_vec();
                let Ok(tensor) = Tensor::new(DType::F32, vec![], bytes) else { return false };
                let input = names.fresh(&format!("{}_{name}", node.name));
                added.push(Initializer { name: input.clone(), value: Value::Tensor(tensor) });
                node.inputs.resize(node.inputs.len().max(at + 1), None);
                node.inputs[at] = Some(input);
            }
            true
        }
        "BatchNormalization" => own >= 9 && node.outputs.iter().flatten().count() == 1,
        // Its axes became an input with version 18.
        _ if op.starts_with("Reduce") && op != "ReduceSum" && own < 18 => {
            wanted < 18 || to_input(node, "axes", 1, names, added)
        }
        _ => SINCE.iter().any(|(since, ops)| own >= *since && ops.contains(&op.as_str())),
    }
}
