//! Checked ONNX models to graphs: shapes that models compute, errors, and what single operators mean.

mod control;
mod errors;
mod meaning;
mod quantized;
mod shapes;

use kiln_frontend::onnx::import::{ImportErrors, Options, import};
use kiln_frontend::onnx::model::{Limits, load};
use kiln_frontend::onnx::{external, proto::*};
use kiln_ir::{Graph, Tensor, interp};
use prost::Message;

/// A model in the making.
struct Draft {
    graph: GraphProto,
    opset: i64,
}

/// A model of that version of ONNX's operator set.
fn draft(opset: i64) -> Draft {
    Draft { graph: GraphProto::default(), opset }
}

/// Dims: a number, or a name.
#[derive(Clone, Copy)]
enum D {
    N(i64),
    S(&'static str),
    Unknown,
}

impl Draft {
    fn info(name: &str, data_type: DataType, dims: Option<&[D]>) -> ValueInfoProto {
        let dim = |d: &D| Dimension {
            value: match d {
                D::N(n) => Some(DimensionValue::DimValue(*n)),
                D::S(s) => Some(DimensionValue::DimParam(s.to_string())),
                D::Unknown => None,
            },
            ..Default::default()
        };
        let shape = dims.map(|d| TensorShapeProto { dim: d.iter().map(dim).collect() });
        let ty = TypeValue::TensorType(TensorTypeProto { elem_type: data_type as i32, shape });
        ValueInfoProto {
            name: name.into(),
            r#type: Some(TypeProto { value: Some(ty), ..Default::default() }),
            ..Default::default()
        }
    }

    /// An input of floats.
    fn input(self, name: &str, dims: &[D]) -> Draft {
        self.input_of(name, DataType::Float, dims)
    }

    fn input_of(mut self, name: &str, data_type: DataType, dims: &[D]) -> Draft {
        self.graph.input.push(Draft::info(name, data_type, Some(dims)));
        self
    }

    /// An output of floats whose shape is not declared.
    fn output(self, name: &str) -> Draft {
        self.output_of(name, DataType::Float)
    }

    fn output_of(mut self, name: &str, data_type: DataType) -> Draft {
        self.graph.output.push(Draft::info(name, data_type, None));
        self
    }

    /// A list of integers as an initializer.
    fn ints(mut self, name: &str, values: &[i64]) -> Draft {
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            ..Default::default()
        });
        self
    }

    /// A node named after its first output; inputs, outputs, attributes.
    fn node(mut self, op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> Draft {
        let own = |names: &[&str]| names.iter().map(|s| s.to_string()).collect();
        self.graph.node.push(NodeProto {
            name: format!("n_{}", outputs.first().unwrap_or(&"")),
            op_type: op.into(),
            input: own(inputs),
            output: own(outputs),
            attribute: attributes,
            ..Default::default()
        });
        self
    }

    /// The last node is one of ONNX Runtime's own.
    fn of_microsoft(mut self) -> Draft {
        if let Some(node) = self.graph.node.last_mut() {
            node.domain = "com.microsoft".into();
        }
        self
    }

    fn import(self, options: &Options) -> Result<Graph, ImportErrors> {
        let model = ModelProto {
            ir_version: 10,
            opset_import: vec![
                OperatorSetIdProto { domain: String::new(), version: self.opset },
                OperatorSetIdProto { domain: "com.microsoft".into(), version: 1 },
            ],
            graph: Some(self.graph),
            ..Default::default()
        };
        let model =
            load(model.encode_to_vec().into(), &external::none, &Limits::default()).expect("a well-formed model");
        import(&model, options)
    }

    /// The graph, which must be well formed.
    fn graph(self) -> Graph {
        let graph = self.import(&Options::default()).expect("a model that can be imported");
        assert_eq!(graph.verify(), vec![]);
        graph
    }

    /// The lines of the errors.
    fn errors(self) -> Vec<String> {
        let errors = self.import(&Options::default()).expect_err("a model that cannot be imported");
        errors.to_string().lines().map(str::to_owned).collect()
    }

    /// The outputs for some inputs.
    fn run(self, inputs: &[Tensor]) -> Vec<Tensor> {
        interp::eval_graph(&self.graph(), inputs, &interp::Options::default()).expect("a graph that runs")
    }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: Some(i), ..Default::default() }
}

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints: ints.to_vec(), ..Default::default() }
}

fn word(name: &str, s: &str) -> AttributeProto {
    let s = Some(s.as_bytes().to_vec().into());
    AttributeProto { name: name.into(), r#type: AttributeType::String as i32, s, ..Default::default() }
}

/// The type of the only output.
fn output_type(graph: &Graph) -> String {
    graph.ty(graph.outputs[0].1).to_string()
}

fn f32s(shape: &[usize], values: &[f32]) -> Tensor {
    Tensor::from_f32(shape, values).expect("as many values as elements")
}
