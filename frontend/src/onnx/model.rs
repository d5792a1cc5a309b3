//! Bytes to a checked ONNX model.
//!
//! Invariant: a [`Model`] that [`load`] returns is well-formed. Versions are ones that Kiln knows; every name that is
//! used is defined, once, and before its use (nodes are sorted, even where the file's are not); attributes hold what
//! they declare; constants have the data that their shapes ask for; no call of a model-local function is left; every
//! node has a name that no other node has. Whatever is wrong is reported at once. Which operators exist, and what they
//! mean, is not known here.

mod attribute;
mod inline;
mod names;
mod read;
mod types;

pub use attribute::{Attribute, AttributeError, AttributeValue};
pub use types::{Dim, TensorType, ValueType};

use super::external::ExternalData;
use super::problem::{NodeRef, ProblemKind, Problems};
use super::proto::{self, DecodeError, ModelProto, TensorProto};
use super::sniff;
use super::value::Value;
use attribute::Reference;
use prost::bytes::Bytes;
use std::collections::BTreeMap;
use thiserror::Error;

/// The newest version of the IR that is understood.
pub const MAX_IR_VERSION: i64 = 14;

/// The newest version of ONNX's own operator set that importers may be asked for.
pub const MAX_OPSET: i64 = 28;

/// What a model may at most ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes, of all subgraphs and with functions inlined.
    pub nodes: usize,
    /// Graphs within graphs.
    pub graph_depth: usize,
    /// Functions that call functions.
    pub call_depth: usize,
    /// Bytes of a name.
    pub name_bytes: usize,
    /// Dims of a tensor.
    pub rank: usize,
    /// Bytes that decoding takes besides the file itself.
    pub decoded_bytes: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { nodes: 1_000_000, graph_depth: 32, call_depth: 64, name_bytes: 4096, rank: 64, decoded_bytes: 4 << 30 }
    }
}

/// A checked model.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Version of the IR.
    pub ir_version: i64,
    /// Name and version of the program that wrote the file, as one text.
    pub producer: String,
    /// Operator sets of the main graph: domain (empty is ONNX's own) to version.
    pub opsets: BTreeMap<String, i64>,
    /// Metadata, as in the file.
    pub metadata: Vec<(String, String)>,
    /// The main graph.
    pub graph: Graph,
}

/// A graph or subgraph.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name.
    pub name: String,
    /// Inputs that are no initializers, in order.
    pub inputs: Vec<ValueInfo>,
    /// Inputs that have an initializer as their default, in order.
    pub defaults: Vec<ValueInfo>,
    /// Outputs, in order.
    pub outputs: Vec<ValueInfo>,
    /// Constants.
    pub initializers: Vec<Initializer>,
    /// Nodes, each after those that it depends on.
    pub nodes: Vec<Node>,
    /// What the file says about types of other values; not checked against anything.
    pub value_info: Vec<ValueInfo>,
    /// Names of outer graphs that the graph uses, sorted; empty for the main graph.
    pub captures: Vec<String>,
}

/// A named value and its type.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Type; there for all inputs of the main graph.
    pub ty: Option<ValueType>,
}

/// A named constant: a dense or sparse tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Initializer {
    /// Name.
    pub name: String,
    /// Content.
    pub value: Value,
}

/// An operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Name, unique in the model: the file's, or made from the operator and position (`Relu_12`). A node from the body
    /// of a function has the name of the call before it, with `/` between.
    pub name: String,
    /// Position in its graph or function, as in the file.
    pub index: usize,
    /// Operator.
    pub op_type: String,
    /// Domain of the operator; empty is ONNX's own.
    pub domain: String,
    /// Version of the domain's operator set that applies to this node.
    pub opset: i64,
    /// Names of the inputs; nothing where an optional input is absent.
    pub inputs: Vec<Option<String>>,
    /// Names of the outputs; nothing where an output is not wanted.
    pub outputs: Vec<Option<String>>,
    /// Attributes, of distinct names.
    pub attributes: Vec<Attribute>,
    /// Which overload of a function is called; empty once functions are inlined.
    overload: String,
    /// Attributes still to come from a call; none once functions are inlined.
    references: Vec<Reference>,
}

impl Node {
    /// A node of ONNX's own operator set with one result; `name` must be one that no other node has.
    pub fn new(name: &str, op_type: &str, opset: i64, inputs: &[&str], output: &str) -> Node {
        Node {
            name: name.into(),
            index: 0,
            op_type: op_type.into(),
            domain: String::new(),
            opset,
            inputs: inputs.iter().map(|i| (!i.is_empty()).then(|| i.to_string())).collect(),
            outputs: vec![Some(output.into())],
            attributes: Vec::new(),
            overload: String::new(),
            references: Vec::new(),
        }
    }

    /// The node with one more attribute.
    #[must_use]
    pub fn with(mut self, name: &str, value: AttributeValue) -> Node {
        self.attributes.push(Attribute { name: name.into(), value });
        self
    }

    /// The node as messages show it.
    pub fn reference(&self) -> NodeRef {
        let domain = if self.domain.is_empty() { String::new() } else { format!("{}.", self.domain) };
        NodeRef { index: self.index, name: self.name.clone(), op: format!("{domain}{}", self.op_type) }
    }

    /// The name of input `i`; nothing where it is absent.
    pub fn input(&self, i: usize) -> Option<&str> {
        self.inputs.get(i).and_then(|n| n.as_deref())
    }

    /// The name of output `i`; nothing where it is not wanted.
    pub fn output(&self, i: usize) -> Option<&str> {
        self.outputs.get(i).and_then(|n| n.as_deref())
    }

    /// All subgraphs, of all attributes.
    pub fn subgraphs(&self) -> impl Iterator<Item = &Graph> {
        self.attributes.iter().flat_map(|a| a.value.graphs())
    }

    fn subgraphs_mut(&mut self) -> impl Iterator<Item = &mut Graph> {
        self.attributes.iter_mut().flat_map(|a| a.value.graphs_mut())
    }
}

/// Bytes are no valid model that Kiln can read.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum LoadError {
    /// The bytes are not ONNX at all.
    #[error("this is not an ONNX model{}: {reason}", .looks_like.map(|l| format!("; it looks like {l}")).unwrap_or_default())]
    NotOnnx {
        /// What they look like.
        looks_like: Option<&'static str>,
        /// What the decoder says.
        reason: String,
    },
    /// Decoding would take too much memory.
    #[error(transparent)]
    TooLarge(DecodeError),
    /// It is ONNX, but not a valid or supported model.
    #[error("{0}")]
    Problems(Problems),
}

impl LoadError {
    /// What decides the exit code.
    pub fn kind(&self) -> ProblemKind {
        match self {
            LoadError::NotOnnx { .. } => ProblemKind::Invalid,
            LoadError::TooLarge(_) => ProblemKind::Limit,
            LoadError::Problems(problems) => problems.worst().unwrap_or(ProblemKind::Invalid),
        }
    }
}

/// Decodes, checks and flattens a model. Weights share `bytes`, and the files that `external` gives.
///
/// # Errors
/// All problems at once where the bytes are ONNX; see [`LoadError`].
pub fn load(bytes: Bytes, external: &ExternalData, limits: &Limits) -> Result<Model, LoadError> {
    let proto = match proto::decode::<ModelProto>(bytes.clone(), limits.decoded_bytes) {
        Ok(proto) if proto.graph.is_none() && proto.ir_version == 0 => {
            return Err(LoadError::NotOnnx {
                looks_like: looks_like(&bytes),
                reason: "there is no graph in it".into(),
            });
        }
        Ok(proto) => proto,
        Err(e) if e.is_limit() && sniff::looks_like(&bytes).is_none() => return Err(LoadError::TooLarge(e)),
        Err(e) => return Err(LoadError::NotOnnx { looks_like: looks_like(&bytes), reason: e.to_string() }),
    };
    drop(bytes);
    from_proto(proto, external, limits)
}

/// A guess at what bytes that are no model are.
fn looks_like(bytes: &Bytes) -> Option<&'static str> {
    sniff::looks_like(bytes).or_else(|| {
        let tensor: TensorProto = proto::decode(bytes.clone(), 1 << 30).ok()?;
        super::tensor::element_type(tensor.data_type).ok()?;
        Some("a single tensor (TensorProto), such as test data in a .pb file")
    })
}

/// Checks and flattens a decoded model.
///
/// # Errors
/// All problems at once.
pub fn from_proto(proto: ModelProto, external: &ExternalData, limits: &Limits) -> Result<Model, LoadError> {
    let mut problems = Problems::default();
    let (mut model, mut functions) = read::read(proto, external, limits, &mut problems);
    // What was not read because of a limit would be missed by name, and wrongly reported as undefined.
    if problems.iter().all(|p| p.kind != ProblemKind::Limit) {
        names::check(&mut model.graph, &mut functions, limits, &mut problems);
    }
    if problems.is_empty() {
        inline::inline(&mut model, &functions, limits, &mut problems);
    }
    if problems.is_empty() { Ok(model) } else { Err(LoadError::Problems(problems)) }
}
