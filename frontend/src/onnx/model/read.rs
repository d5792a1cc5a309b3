//! Messages to owned structures: everything that can be checked without knowing other nodes.
//!
//! Invariant: what is wrong becomes a problem and is left out or replaced by something harmless, so that reading goes on
//! and finds the rest.

use super::attribute::Reference;
use super::types::ValueType;
use super::{Attribute, AttributeValue, Graph, Initializer, Limits, MAX_IR_VERSION, MAX_OPSET, Model, Node, ValueInfo};
use crate::onnx::external::ExternalData;
use crate::onnx::problem::{NodeRef, Problem, ProblemKind, Problems, shown};
use crate::onnx::proto::{
    AttributeProto, AttributeType, DataType, FunctionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    SparseTensorProto, TensorProto, TypeProto, ValueInfoProto,
};
use crate::onnx::sparse::{SparseError, SparseTensor};
use crate::onnx::tensor::{self, TensorProtoError};
use crate::onnx::value::Value;
use kiln_ir::Tensor;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What identifies a function: domain, name, overload.
pub(super) type FunctionKey = (String, String, String);

/// A model-local function. Its body is a graph whose inputs and outputs have no types.
#[derive(Debug)]
pub(super) struct Function {
    pub key: FunctionKey,
    /// Attributes without a default.
    pub attributes: Vec<String>,
    /// Attributes with one.
    pub defaults: Vec<Attribute>,
    pub body: Graph,
}

impl Function {
    /// The function as messages show it.
    pub fn shown(&self) -> String {
        let (domain, name, overload) = &self.key;
        let overload = if overload.is_empty() { String::new() } else { format!(":{overload}") };
        format!("function {}", shown(&format!("{domain}.{name}{overload}")))
    }
}

/// `ai.onnx` is another spelling of ONNX's own domain.
fn domain(name: String) -> String {
    if name == "ai.onnx" { String::new() } else { name }
}

/// The function context that a node is read in.
struct InFunction {
    attributes: HashSet<String>,
}

struct Reader<'a> {
    external: &'a ExternalData<'a>,
    limits: &'a Limits,
    problems: &'a mut Problems,
    ir_version: i64,
    /// Where the reader is: functions and subgraphs.
    scope: Vec<String>,
    node: Option<NodeRef>,
    opsets: BTreeMap<String, i64>,
    functions: HashSet<FunctionKey>,
    in_function: Option<InFunction>,
    nodes: usize,
    /// Bytes of external data that were spread out, which sharing does not bound.
    spread: u64,
}

/// Reads the model and its functions, in the file's order.
pub(super) fn read(
    mut proto: ModelProto,
    external: &ExternalData,
    limits: &Limits,
    problems: &mut Problems,
) -> (Model, Vec<Function>) {
    // Each file is asked for once, however many tensors lie in it.
    let files = std::cell::RefCell::new(std::collections::HashMap::new());
    let cached = |location: &str| {
        let mut files = files.borrow_mut();
        files.entry(location.to_owned()).or_insert_with(|| external(location)).clone()
    };
    let mut reader = Reader {
        external: &cached,
        limits,
        problems,
        ir_version: proto.ir_version,
        scope: Vec::new(),
        node: None,
        opsets: BTreeMap::new(),
        functions: HashSet::new(),
        in_function: None,
        nodes: 0,
        spread: 0,
    };
    reader.version();
    let opsets = reader.opset_imports(std::mem::take(&mut proto.opset_import));
    for f in &mut proto.functions {
        f.domain = domain(std::mem::take(&mut f.domain));
        let key = (f.domain.clone(), f.name.clone(), f.overload.clone());
        if f.name.is_empty() {
            reader.invalid("a function has no name");
        }
        if !reader.functions.insert(key) {
            let name = shown(&format!("{}.{}", f.domain, f.name));
            reader.invalid(format!("the function {name} is defined twice"));
        }
    }
    let functions = std::mem::take(&mut proto.functions).into_iter().map(|f| reader.function(f)).collect();
    reader.opsets = opsets;
    let graph = match proto.graph.take() {
        Some(graph) => reader.main_graph(graph),
        None => {
            reader.invalid("the model has no graph");
            Graph::default()
        }
    };
    let model = Model {
        ir_version: proto.ir_version,
        producer: format!("{} {}", proto.producer_name, proto.producer_version).trim().to_owned(),
        opsets: reader.opsets,
        metadata: proto.metadata_props.into_iter().map(|e| (e.key, e.value)).collect(),
        graph,
    };
    (model, functions)
}

impl Reader<'_> {
    fn problem(&mut self, kind: ProblemKind, message: impl Into<String>) {
        let scope = (!self.scope.is_empty()).then(|| self.scope.join(", "));
        self.problems.push(Problem { kind, scope, node: self.node.clone(), message: message.into() });
    }

    fn invalid(&mut self, message: impl Into<String>) {
        self.problem(ProblemKind::Invalid, message);
    }

    fn version(&mut self) {
        match self.ir_version {
            1..=MAX_IR_VERSION => {}
            newer if newer > MAX_IR_VERSION => self.problem(
                ProblemKind::Unsupported,
                format!("the model has IR version {newer}; versions up to {MAX_IR_VERSION} are supported"),
            ),
            0 => self.invalid("the model has no IR version"),
            other => self.invalid(format!("the model has IR version {other}")),
        }
    }

    fn opset_imports(&mut self, imports: Vec<OperatorSetIdProto>) -> BTreeMap<String, i64> {
        let mut opsets = BTreeMap::new();
        for import in imports {
            let name = domain(import.domain);
            self.name_length(&name);
            if import.version < 1 {
                self.invalid(format!("operator set {} is imported at version {}", shown(&name), import.version));
            } else if name.is_empty() && import.version > MAX_OPSET {
                self.problem(
                    ProblemKind::Unsupported,
                    format!("operator set version {}; versions up to {MAX_OPSET} are supported", import.version),
                );
            }
            match opsets.insert(name.clone(), import.version) {
                Some(other) if other != import.version => {
                    self.invalid(format!("operator set {} is imported at two versions", shown(&name)));
                }
                _ => {}
            }
        }
        // Before version 3 of the IR there was only one operator set, at version 1.
        if opsets.is_empty() && (1..3).contains(&self.ir_version) {
            opsets.insert(String::new(), 1);
        }
        opsets
    }

    fn name_length(&mut self, name: &str) {
        if name.len() > self.limits.name_bytes {
            let message =
                format!("the name {} has {} bytes; the limit is {}", shown(name), name.len(), self.limits.name_bytes);
            self.problem(ProblemKind::Limit, message);
        }
    }

    fn function(&mut self, proto: FunctionProto) -> Function {
        let key = (proto.domain, proto.name, proto.overload);
        let mut function = Function { key, attributes: proto.attribute, defaults: Vec::new(), body: Graph::default() };
        self.scope.push(function.shown());
        for part in [&function.key.0, &function.key.1, &function.key.2] {
            self.name_length(part);
        }
        self.opsets = self.opset_imports(proto.opset_import);
        for attribute in proto.attribute_proto {
            if let Some((attribute, None)) = self.attribute(attribute, 0) {
                function.defaults.push(attribute);
            }
        }
        let mut attributes = HashSet::new();
        for name in function.attributes.iter().chain(function.defaults.iter().map(|a| &a.name)) {
            if !attributes.insert(name.clone()) {
                self.problem(ProblemKind::Invalid, format!("the attribute {} is declared twice", shown(name)));
            }
        }
        self.in_function = Some(InFunction { attributes });
        let formal = |name| ValueInfo { name, ty: None };
        function.body = Graph {
            name: function.key.1.clone(),
            inputs: proto.input.into_iter().map(formal).collect(),
            outputs: proto.output.into_iter().map(formal).collect(),
            nodes: self.nodes(proto.node, 0),
            value_info: self.value_infos(proto.value_info, "value"),
            ..Graph::default()
        };
        let names = function.body.inputs.iter().chain(&function.body.outputs);
        for name in names.map(|v| v.name.clone()).collect::<Vec<_>>() {
            self.value_name(&name, "input or output");
        }
        self.in_function = None;
        self.scope.pop();
        function
    }

    fn main_graph(&mut self, proto: GraphProto) -> Graph {
        for input in &proto.input {
            if input.r#type.as_ref().is_none_or(|ty| ty.value.is_none()) {
                self.invalid(format!("the input {} has no type", shown(&input.name)));
            }
        }
        let graph = self.graph(proto, 0);
        if graph.outputs.is_empty() {
            self.invalid("the graph has no outputs");
        }
        let mut names = HashSet::new();
        for output in &graph.outputs {
            if !names.insert(&output.name) {
                self.problem(ProblemKind::Invalid, format!("the output {} is listed twice", shown(&output.name)));
            }
        }
        graph
    }

    fn graph(&mut self, proto: GraphProto, depth: usize) -> Graph {
        self.name_length(&proto.name);
        let mut initializers = Vec::with_capacity(proto.initializer.len());
        // Inputs without content stay inputs in name only: a constant that is wrong must not become an input.
        let mut constants = HashSet::with_capacity(proto.initializer.len());
        for tensor in proto.initializer {
            constants.insert(tensor.name.clone());
            if let Some(initializer) = self.initializer(tensor) {
                initializers.push(initializer);
            }
        }
        for sparse in proto.sparse_initializer {
            if let Some(values) = &sparse.values {
                constants.insert(values.name.clone());
            }
            if let Some(initializer) = self.sparse_initializer(sparse) {
                initializers.push(initializer);
            }
        }
        let inputs = self.value_infos(proto.input, "input");
        let (defaults, inputs) = inputs.into_iter().partition(|input| constants.contains(&input.name));
        Graph {
            name: proto.name,
            inputs,
            defaults,
            outputs: self.value_infos(proto.output, "output"),
            initializers,
            nodes: self.nodes(proto.node, depth),
            value_info: self.value_infos(proto.value_info, "value"),
            captures: Vec::new(),
        }
    }

    fn value_name(&mut self, name: &str, what: &str) {
        if name.is_empty() {
            self.invalid(format!("an {what} has no name"));
        }
        self.name_length(name);
    }

    fn initializer(&mut self, proto: TensorProto) -> Option<Initializer> {
        let name = proto.name.clone();
        self.value_name(&name, "initializer");
        match self.tensor(proto) {
            Ok(tensor) => Some(Initializer { name, value: Value::Tensor(tensor) }),
            Err((kind, message)) => {
                self.problem(kind, format!("initializer {}: {message}", shown(&name)));
                // The name stays defined, so that its uses are not reported too.
                Some(Initializer { name, value: Value::Sequence(Vec::new()) })
            }
        }
    }

    fn sparse_initializer(&mut self, proto: SparseTensorProto) -> Option<Initializer> {
        let name = proto.values.as_ref().map(|v| v.name.clone()).unwrap_or_default();
        self.value_name(&name, "initializer");
        match self.sparse(proto) {
            Ok(sparse) => Some(Initializer { name, value: Value::Sparse(sparse) }),
            Err((kind, message)) => {
                self.problem(kind, format!("initializer {}: {message}", shown(&name)));
                Some(Initializer { name, value: Value::Sequence(Vec::new()) })
            }
        }
    }

    fn tensor(&mut self, proto: TensorProto) -> Result<Tensor, (ProblemKind, String)> {
        if proto.dims.len() > self.limits.rank {
            let message = format!("rank {} is above the limit of {}", proto.dims.len(), self.limits.rank);
            return Err((ProblemKind::Limit, message));
        }
        // External data is shared unless its elements are smaller than a byte, or bools to be checked.
        let copied =
            [DataType::Int4, DataType::Uint4, DataType::Float4E2m1, DataType::Int2, DataType::Uint2, DataType::Bool];
        if proto.data_location != 0 && copied.iter().any(|&t| t as i32 == proto.data_type) {
            let count = tensor::dims(&proto.dims).map(|(_, count)| count as u64);
            self.spread = self.spread.saturating_add(count.map_err(|e| (ProblemKind::Invalid, e.to_string()))?);
            if self.spread > self.limits.decoded_bytes {
                let message = format!("external data takes more than {} bytes of memory", self.limits.decoded_bytes);
                return Err((ProblemKind::Limit, message));
            }
        }
        tensor::from_proto(proto, self.external).map_err(|e| (tensor_kind(&e), e.to_string()))
    }

    fn sparse(&mut self, proto: SparseTensorProto) -> Result<SparseTensor, (ProblemKind, String)> {
        if proto.dims.len() > self.limits.rank {
            let message = format!("rank {} is above the limit of {}", proto.dims.len(), self.limits.rank);
            return Err((ProblemKind::Limit, message));
        }
        SparseTensor::from_proto(proto, self.external).map_err(|e| {
            let kind = match &e {
                SparseError::Part(part) => tensor_kind(part),
                SparseError::Missing(_) | SparseError::Shape(_) | SparseError::Index(_) => ProblemKind::Invalid,
                SparseError::TooLarge(_) => ProblemKind::Limit,
            };
            (kind, e.to_string())
        })
    }

    fn value_infos(&mut self, protos: Vec<ValueInfoProto>, what: &str) -> Vec<ValueInfo> {
        let mut infos = Vec::with_capacity(protos.len());
        for proto in protos {
            self.value_name(&proto.name, what);
            let ty = proto.r#type.and_then(|ty| self.ty(ty, &format!("{what} {}", shown(&proto.name))));
            infos.push(ValueInfo { name: proto.name, ty });
        }
        infos
    }

    fn ty(&mut self, proto: TypeProto, whose: &str) -> Option<ValueType> {
        // Old exporters write an empty type for a value that they know nothing of.
        proto.value.as_ref()?;
        ValueType::from_proto(proto, self.limits)
            .map_err(|(kind, message)| self.problem(kind, format!("{whose}: {message}")))
            .ok()
    }

    fn nodes(&mut self, protos: Vec<NodeProto>, depth: usize) -> Vec<Node> {
        self.nodes = self.nodes.saturating_add(protos.len());
        if self.nodes > self.limits.nodes {
            self.problem(ProblemKind::Limit, format!("the model has more than {} nodes", self.limits.nodes));
            return Vec::new();
        }
        let outer = self.node.take();
        let nodes = protos.into_iter().enumerate().map(|(index, proto)| self.node(index, proto, depth)).collect();
        self.node = outer;
        nodes
    }

    fn node(&mut self, index: usize, proto: NodeProto, depth: usize) -> Node {
        let mut node = Node {
            name: proto.name,
            index,
            op_type: proto.op_type,
            domain: domain(proto.domain),
            opset: 0,
            inputs: proto.input.into_iter().map(|n| Some(n).filter(|n| !n.is_empty())).collect(),
            outputs: proto.output.into_iter().map(|n| Some(n).filter(|n| !n.is_empty())).collect(),
            attributes: Vec::with_capacity(proto.attribute.len()),
            overload: proto.overload,
            references: Vec::new(),
        };
        self.node = Some(node.reference());
        for name in [&node.name, &node.op_type, &node.domain, &node.overload] {
            self.name_length(name);
        }
        for name in node.inputs.iter().chain(&node.outputs).flatten() {
            self.name_length(name);
        }
        if node.op_type.is_empty() {
            self.invalid("the node has no operator");
        }
        let key = (node.domain.clone(), node.op_type.clone(), node.overload.clone());
        match self.opsets.get(&node.domain) {
            Some(&version) => node.opset = version,
            // Some exporters leave out the import of a domain that has only functions.
            None if self.functions.contains(&key) => {}
            None => {
                let which = if node.domain.is_empty() { "ONNX's own operator set".into() } else { shown(&node.domain) };
                self.invalid(format!("{which} is not among the imported operator sets"));
            }
        }
        if !node.overload.is_empty() && !self.functions.contains(&key) {
            self.invalid(format!("there is no function with the overload {}", shown(&node.overload)));
        }
        let mut names = HashSet::new();
        for attribute in proto.attribute {
            if !names.insert(attribute.name.clone()) {
                self.invalid(format!("the attribute {} appears twice", shown(&attribute.name)));
            }
            match self.attribute(attribute, depth) {
                Some((_, Some(reference))) => node.references.push(reference),
                Some((attribute, None)) => node.attributes.push(attribute),
                None => {}
            }
        }
        self.node = None;
        node
    }

    /// The attribute, or the reference that it is.
    fn attribute(&mut self, proto: AttributeProto, depth: usize) -> Option<(Attribute, Option<Reference>)> {
        let name = shown(&proto.name);
        if proto.name.is_empty() {
            self.invalid("an attribute has no name");
        }
        self.name_length(&proto.name);
        let filled = filled(&proto);
        let ty = match AttributeType::try_from(proto.r#type) {
            Err(_) => {
                self.invalid(format!("the attribute {name} has the type {}, which is not one of ONNX's", proto.r#type));
                return None;
            }
            // The first version of the IR had no types.
            Ok(AttributeType::Undefined) => match filled.as_slice() {
                &[(ty, _)] if self.ir_version < 2 => ty,
                [] if self.ir_version < 2 && proto.i.is_some() => AttributeType::Int,
                [] if self.ir_version < 2 && proto.f.is_some() => AttributeType::Float,
                [] if self.ir_version < 2 && proto.s.is_some() => AttributeType::String,
                _ => {
                    self.invalid(format!("the attribute {name} has no type"));
                    return None;
                }
            },
            Ok(ty) => ty,
        };
        let is_reference = !proto.ref_attr_name.is_empty();
        if let Some((_, field)) = filled.iter().find(|&&(filled, _)| is_reference || filled != ty) {
            let declared = if is_reference { "a reference".to_owned() } else { ty.to_string() };
            self.invalid(format!("the attribute {name} is {declared} but has content in the field {field}"));
            return None;
        }
        if is_reference {
            let from = shown(&proto.ref_attr_name);
            match &self.in_function {
                None => self.invalid(format!("the attribute {name} refers to {from}, outside of a function")),
                Some(function) if !function.attributes.contains(&proto.ref_attr_name) => {
                    self.invalid(format!("the attribute {name} refers to {from}, which the function does not declare"));
                }
                Some(_) => {
                    let reference = Reference { name: proto.name.clone(), from: proto.ref_attr_name, ty };
                    return Some((Attribute { name: proto.name, value: AttributeValue::Int(0) }, Some(reference)));
                }
            }
            return None;
        }
        let attribute_name = proto.name.clone();
        let value = self.content(proto, ty, &name, depth)?;
        Some((Attribute { name: attribute_name, value }, None))
    }

    /// The content of an attribute of a known type.
    fn content(
        &mut self,
        proto: AttributeProto,
        ty: AttributeType,
        name: &str,
        depth: usize,
    ) -> Option<AttributeValue> {
        let whose = format!("attribute {name}");
        let report = |reader: &mut Self, (kind, message): (ProblemKind, String)| {
            reader.problem(kind, format!("{whose}: {message}"))
        };
        // A writer by proto3's rules leaves out a zero or empty string; anything else must be there.
        let value = match ty {
            AttributeType::Undefined => None,
            AttributeType::Float => Some(AttributeValue::Float(proto.f.unwrap_or_default())),
            AttributeType::Int => Some(AttributeValue::Int(proto.i.unwrap_or_default())),
            AttributeType::String => Some(AttributeValue::String(proto.s.unwrap_or_default())),
            AttributeType::Floats => Some(AttributeValue::Floats(proto.floats.into())),
            AttributeType::Ints => Some(AttributeValue::Ints(proto.ints.into())),
            AttributeType::Strings => Some(AttributeValue::Strings(proto.strings.into())),
            AttributeType::Tensor => match self.tensor(*proto.t.unwrap_or_default()) {
                Ok(tensor) => return Some(AttributeValue::Tensor(tensor)),
                Err(e) => {
                    report(self, e);
                    return None;
                }
            },
            AttributeType::Tensors => {
                let mut tensors = Vec::with_capacity(proto.tensors.len());
                for t in proto.tensors {
                    self.tensor(t).map_or_else(|e| report(self, e), |t| tensors.push(t));
                }
                Some(AttributeValue::Tensors(tensors.into()))
            }
            AttributeType::SparseTensor => match self.sparse(*proto.sparse_tensor.unwrap_or_default()) {
                Ok(sparse) => return Some(AttributeValue::Sparse(Arc::new(sparse))),
                Err(e) => {
                    report(self, e);
                    return None;
                }
            },
            AttributeType::SparseTensors => {
                let mut sparses = Vec::with_capacity(proto.sparse_tensors.len());
                for t in proto.sparse_tensors {
                    self.sparse(t).map_or_else(|e| report(self, e), |t| sparses.push(t));
                }
                Some(AttributeValue::Sparses(sparses.into()))
            }
            AttributeType::TypeProto => match proto.tp {
                None => None,
                Some(ty) => return self.ty(*ty, &whose).map(AttributeValue::Type),
            },
            AttributeType::TypeProtos => {
                let types: Vec<_> = proto.type_protos.into_iter().filter_map(|ty| self.ty(ty, &whose)).collect();
                Some(AttributeValue::Types(types.into()))
            }
            AttributeType::Graph => match proto.g {
                None => None,
                Some(graph) => return self.subgraph(*graph, name, depth).map(|g| AttributeValue::Graph(Box::new(g))),
            },
            AttributeType::Graphs => {
                let graphs = proto.graphs.into_iter().filter_map(|g| self.subgraph(g, name, depth)).collect();
                Some(AttributeValue::Graphs(graphs))
            }
        };
        if value.is_none() {
            self.invalid(format!("the attribute {name} is {} but has no content", ty));
        }
        value
    }

    fn subgraph(&mut self, proto: GraphProto, attribute: &str, depth: usize) -> Option<Graph> {
        if depth >= self.limits.graph_depth {
            let message = format!("graphs nest more than {} deep", self.limits.graph_depth);
            self.problem(ProblemKind::Limit, message);
            return None;
        }
        let node = self.node.take();
        self.scope.push(scope(node.as_ref(), attribute));
        let graph = self.graph(proto, depth + 1);
        self.scope.pop();
        self.node = node;
        Some(graph)
    }
}

/// The words for a subgraph.
pub(super) fn scope(node: Option<&NodeRef>, attribute: &str) -> String {
    match node {
        Some(node) => format!("graph {attribute} of {node}"),
        None => format!("graph {attribute}"),
    }
}

fn tensor_kind(error: &TensorProtoError) -> ProblemKind {
    if error.is_unsupported() { ProblemKind::Unsupported } else { ProblemKind::Invalid }
}

/// The types of the content fields that hold something. A number that is zero, or an empty string, holds nothing: some
/// writers fill in every field.
fn filled(proto: &AttributeProto) -> Vec<(AttributeType, &'static str)> {
    let fields = [
        (AttributeType::Float, "f", proto.f.is_some_and(|v| v != 0.0)),
        (AttributeType::Int, "i", proto.i.is_some_and(|v| v != 0)),
        (AttributeType::String, "s", proto.s.as_ref().is_some_and(|v| !v.is_empty())),
        (AttributeType::Tensor, "t", proto.t.is_some()),
        (AttributeType::Graph, "g", proto.g.is_some()),
        (AttributeType::SparseTensor, "sparse_tensor", proto.sparse_tensor.is_some()),
        (AttributeType::TypeProto, "tp", proto.tp.is_some()),
        (AttributeType::Floats, "floats", !proto.floats.is_empty()),
        (AttributeType::Ints, "ints", !proto.ints.is_empty()),
        (AttributeType::Strings, "strings", !proto.strings.is_empty()),
        (AttributeType::Tensors, "tensors", !proto.tensors.is_empty()),
        (AttributeType::Graphs, "graphs", !proto.graphs.is_empty()),
        (AttributeType::SparseTensors, "sparse_tensors", !proto.sparse_tensors.is_empty()),
        (AttributeType::TypeProtos, "type_protos", !proto.type_protos.is_empty()),
    ];
    fields.into_iter().filter(|f| f.2).map(|f| (f.0, f.1)).collect()
}
