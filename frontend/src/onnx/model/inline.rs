//! Model-local functions: calls are replaced by the nodes of the function's body, until none is left.
//!
//! Invariant: afterwards no node calls a function, refers to an attribute of one, or shares its name with another node;
//! values of bodies have names that nothing else in the model has, so that a body sees nothing of where it is called.
//! Work is counted as it is done, so that functions that multiply each other end at a limit.

use super::attribute::Attribute;
use super::names;
use super::read::{Function, FunctionKey};
use super::{AttributeValue, Graph, Limits, MAX_OPSET, Model, Node, ValueInfo};
use crate::onnx::problem::{Problem, ProblemKind, Problems, shown};
use std::collections::{HashMap, HashSet};

/// What a node would call if there is such a function.
pub(super) fn key(node: &Node) -> FunctionKey {
    (node.domain.clone(), node.op_type.clone(), node.overload.clone())
}

/// Inlines all calls and gives every node its unique name.
pub(super) fn inline(model: &mut Model, functions: &[Function], limits: &Limits, problems: &mut Problems) {
    let mut node_names = Names::default();
    let mut value_names = Names::default();
    reserve(&model.graph, &mut node_names, &mut value_names);
    let mut inliner = Inliner {
        functions: functions.iter().map(|f| (f.key.clone(), f)).collect(),
        identity_opset: model.opsets.get("").copied().unwrap_or(MAX_OPSET),
        limits,
        problems,
        node_names,
        value_names,
        kept: HashSet::new(),
        nodes: 0,
        work: 0,
        calls: Vec::new(),
    };
    // Running into a limit leaves the graph unfinished; the problem is recorded.
    if inliner.graph(&mut model.graph, "", 0).is_ok() && !functions.is_empty() {
        names::capture(&mut model.graph);
    }
}

/// Collects the names that the file gives.
fn reserve(graph: &Graph, node_names: &mut Names, value_names: &mut Names) {
    let values = graph.inputs.iter().chain(&graph.defaults).map(|v| &v.name);
    value_names.taken.extend(values.chain(graph.initializers.iter().map(|i| &i.name)).cloned());
    for node in &graph.nodes {
        value_names.taken.extend(node.outputs.iter().flatten().cloned());
        node_names.taken.insert(node.name.clone());
        node.subgraphs().for_each(|g| reserve(g, node_names, value_names));
    }
}

/// Names that are in use.
#[derive(Default)]
struct Names {
    taken: HashSet<String>,
    /// The next number to try for a base.
    next: HashMap<String, u64>,
}

impl Names {
    /// `base`, or `base_2` and so on where it is taken.
    fn fresh(&mut self, base: &str) -> String {
        if self.taken.insert(base.to_owned()) {
            return base.to_owned();
        }
        let next = self.next.entry(base.to_owned()).or_insert(2);
        loop {
            let name = format!("{base}_{next}");
            *next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }
}

/// A limit was reached and reported.
struct Stop;

/// A call being inlined: what names and attributes of the body become.
struct Frame<'a> {
    function: &'a Function,
    /// Name of the call.
    call: String,
    /// The body's names, then those of the subgraphs that renaming is inside of. Nothing: an absent input.
    names: Vec<HashMap<&'a str, Option<String>>>,
    attributes: HashMap<&'a str, AttributeValue>,
}

struct Inliner<'a> {
    functions: HashMap<FunctionKey, &'a Function>,
    identity_opset: i64,
    limits: &'a Limits,
    problems: &'a mut Problems,
    node_names: Names,
    value_names: Names,
    /// Names of the file that a node already has.
    kept: HashSet<String>,
    nodes: usize,
    /// Names copied and calls made, in steps of about a node.
    work: usize,
    /// The functions that the inliner is inside of, as text.
    calls: Vec<String>,
}

impl<'a> Inliner<'a> {
    fn problem(&mut self, kind: ProblemKind, node: Option<&Node>, message: String) {
        let scope = (!self.calls.is_empty()).then(|| self.calls.join(", "));
        self.problems.push(Problem { kind, scope, node: node.map(Node::reference), message });
    }

    fn count(&mut self, nodes: usize, work: usize) -> Result<(), Stop> {
        self.nodes = self.nodes.saturating_add(nodes);
        self.work = self.work.saturating_add(work);
        if self.nodes > self.limits.nodes || self.work > self.limits.nodes.saturating_mul(16) {
            let message =
                format!("with functions inlined, the model has more than {} nodes or as much", self.limits.nodes);
            self.problem(ProblemKind::Limit, None, message);
            return Err(Stop);
        }
        Ok(())
    }

    /// A name for what has `name` in the body of the call `prefix`; long ones are made anew, so that nested calls do not
    /// add up beyond the limit.
    fn joined(&self, prefix: &str, name: &str) -> String {
        let length = prefix.len() + 1 + name.len();
        match prefix {
            "" => name.to_owned(),
            _ if length <= self.limits.name_bytes.min(256) => format!("{prefix}/{name}"),
            _ => format!("call_{}/{}", self.work, if name.len() <= 128 { name } else { "value" }),
        }
    }

    /// Inlines the calls of a graph and its subgraphs, and names its nodes.
    fn graph(&mut self, graph: &mut Graph, prefix: &str, depth: usize) -> Result<(), Stop> {
        if depth > self.limits.graph_depth {
            let message = format!("with functions inlined, graphs nest more than {} deep", self.limits.graph_depth);
            self.problem(ProblemKind::Limit, None, message);
            return Err(Stop);
        }
        let nodes = std::mem::take(&mut graph.nodes);
        let mut out = Vec::with_capacity(nodes.len());
        for node in nodes {
            self.node(node, prefix, depth, &mut out, &mut graph.value_info)?;
        }
        graph.nodes = out;
        Ok(())
    }

    fn node(
        &mut self,
        mut node: Node,
        prefix: &str,
        depth: usize,
        out: &mut Vec<Node>,
        value_info: &mut Vec<ValueInfo>,
    ) -> Result<(), Stop> {
        self.count(0, 1)?;
        node.name = self.name(&node, prefix);
        if let Some(&function) = self.functions.get(&key(&node)) {
            return self.call(function, node, depth, out, value_info);
        }
        node.overload.clear();
        self.count(1, 0)?;
        let name = node.name.clone();
        for subgraph in node.subgraphs_mut() {
            // A subgraph's node without a name is named after the node that the subgraph is in.
            self.graph(subgraph, &name, depth + 1)?;
        }
        out.push(node);
        Ok(())
    }

    /// The unique name of a node; the file's own where it has one that no node before it has.
    fn name(&mut self, node: &Node, prefix: &str) -> String {
        let name = if node.name.is_empty() {
            let base = self.joined(prefix, &format!("{}_{}", node.op_type, node.index));
            self.node_names.fresh(&base)
        } else if self.node_names.taken.contains(&node.name) && !self.kept.contains(&node.name) {
            node.name.clone()
        } else {
            self.node_names.fresh(&node.name)
        };
        self.kept.insert(name.clone());
        name
    }

    /// Replaces a call by the function's body.
    fn call(
        &mut self,
        function: &'a Function,
        call: Node,
        depth: usize,
        out: &mut Vec<Node>,
        value_info: &mut Vec<ValueInfo>,
    ) -> Result<(), Stop> {
        let Some(mut frame) = self.bind(function, &call) else { return Ok(()) };
        self.calls.push(format!("{}, called by {}", function.shown(), call.reference()));
        let body = &function.body;
        // The formal outputs that a node of the body defines take the names of the actual ones.
        let inputs: HashSet<&str> = body.inputs.iter().map(|v| v.name.as_str()).collect();
        let mut copies = Vec::new();
        for (i, formal) in body.outputs.iter().enumerate() {
            let Some(actual) = call.output(i) else { continue };
            let names = frame.names.first_mut();
            if inputs.contains(formal.name.as_str())
                || names.as_ref().is_some_and(|n| n.contains_key(formal.name.as_str()))
            {
                copies.push((formal.name.as_str(), actual));
            } else if let Some(names) = names {
                names.insert(&formal.name, Some(actual.to_owned()));
            }
        }
        self.define(&mut frame, body)?;
        self.count(0, body.value_info.len())?;
        for info in &body.value_info {
            // What the file says of a formal input holds of the actual one, which has its own type elsewhere.
            if !inputs.contains(info.name.as_str())
                && let Some(name) = frame.lookup(&info.name)
            {
                value_info.push(ValueInfo { name, ty: info.ty.clone() });
            }
        }
        for node in &body.nodes {
            let node = self.renamed_node(node, &mut frame)?;
            self.node(node, &frame.call, depth, out, value_info)?;
        }
        for (formal, actual) in copies {
            match frame.lookup(formal) {
                Some(input) => {
                    let identity = self.identity(&frame.call, input, actual.to_owned());
                    out.push(identity);
                    self.count(1, 1)?;
                }
                None => {
                    let message = format!("the output {} is an input that the call leaves out", shown(formal));
                    self.problem(ProblemKind::Invalid, None, message);
                }
            }
        }
        self.calls.pop();
        Ok(())
    }

    fn identity(&mut self, call: &str, input: String, output: String) -> Node {
        let base = self.joined(call, "Identity");
        Node {
            name: self.node_names.fresh(&base),
            index: 0,
            op_type: "Identity".to_owned(),
            domain: String::new(),
            opset: self.identity_opset,
            inputs: vec![Some(input)],
            outputs: vec![Some(output)],
            attributes: Vec::new(),
            overload: String::new(),
            references: Vec::new(),
        }
    }

    /// Matches the call's inputs, outputs and attributes with the function's; nothing if they do not fit.
    fn bind(&mut self, function: &'a Function, call: &Node) -> Option<Frame<'a>> {
        let body = &function.body;
        let shape =
            [("inputs", call.inputs.len(), body.inputs.len()), ("outputs", call.outputs.len(), body.outputs.len())];
        for (what, given, formal) in shape {
            if given > formal {
                let message = format!("{} has {formal} {what}, the call gives {given}", function.shown());
                self.problem(ProblemKind::Invalid, Some(call), message);
                return None;
            }
        }
        let inputs = body.inputs.iter().enumerate();
        let names = inputs.map(|(i, v)| (v.name.as_str(), call.input(i).map(str::to_owned))).collect();
        let mut attributes: HashMap<&str, AttributeValue> =
            function.defaults.iter().map(|a| (a.name.as_str(), a.value.clone())).collect();
        let mut fits = true;
        for attribute in &call.attributes {
            let default = function.defaults.iter().find(|d| d.name == attribute.name);
            let declared = function.attributes.iter().find(|name| **name == attribute.name);
            let Some(name) = default.map(|d| d.name.as_str()).or(declared.map(String::as_str)) else {
                let message = format!("{} has no attribute {}", function.shown(), shown(&attribute.name));
                self.problem(ProblemKind::Invalid, Some(call), message);
                fits = false;
                continue;
            };
            attributes.insert(name, attribute.value.clone());
        }
        fits.then(|| Frame { function, call: call.name.clone(), names: vec![names], attributes })
    }

    /// Gives fresh names to the values that a graph of the body defines, except those that have one.
    fn define(&mut self, frame: &mut Frame<'a>, graph: &'a Graph) -> Result<(), Stop> {
        let Some(mut names) = frame.names.pop() else { return Ok(()) };
        let values = graph.inputs.iter().chain(&graph.defaults).map(|v| v.name.as_str());
        let values = values.chain(graph.initializers.iter().map(|i| i.name.as_str()));
        let defined = values.chain(graph.nodes.iter().flat_map(|n| n.outputs.iter().flatten()).map(String::as_str));
        for name in defined {
            if !names.contains_key(name) {
                self.count(0, 1)?;
                let base = self.joined(&frame.call, name);
                names.insert(name, Some(self.value_names.fresh(&base)));
            }
        }
        frame.names.push(names);
        Ok(())
    }

    /// A node of the body in the caller's terms.
    fn renamed_node(&mut self, node: &'a Node, frame: &mut Frame<'a>) -> Result<Node, Stop> {
        self.count(0, 1 + (node.inputs.len() + node.outputs.len() + node.attributes.len()) / 4)?;
        let lookup = |names: &[Option<String>], frame: &Frame| {
            names.iter().map(|name| name.as_deref().and_then(|name| frame.lookup(name))).collect()
        };
        let inner = if node.name.is_empty() { format!("{}_{}", node.op_type, node.index) } else { node.name.clone() };
        let mut renamed = Node {
            name: self.joined(&frame.call, &inner),
            index: node.index,
            op_type: node.op_type.clone(),
            domain: node.domain.clone(),
            opset: node.opset,
            inputs: lookup(&node.inputs, frame),
            outputs: lookup(&node.outputs, frame),
            attributes: Vec::with_capacity(node.attributes.len() + node.references.len()),
            overload: node.overload.clone(),
            references: Vec::new(),
        };
        for attribute in &node.attributes {
            let value = match &attribute.value {
                AttributeValue::Graph(graph) => AttributeValue::Graph(Box::new(self.renamed_graph(graph, frame)?)),
                AttributeValue::Graphs(graphs) => {
                    let graphs: Result<Vec<Graph>, Stop> =
                        graphs.iter().map(|g| self.renamed_graph(g, frame)).collect();
                    AttributeValue::Graphs(graphs?)
                }
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
                | AttributeValue::Types(_) => attribute.value.clone(),
            };
            renamed.attributes.push(Attribute { name: attribute.name.clone(), value });
        }
        for reference in &node.references {
            // An attribute that the call leaves out is left out of the body's node too, which may have a default.
            let Some(value) = frame.attributes.get(reference.from.as_str()) else { continue };
            if value.ty() != reference.ty {
                let message = format!(
                    "the attribute {} is {}, but {} of {} is {}",
                    shown(&reference.name),
                    reference.ty,
                    shown(&reference.from),
                    frame.function.shown(),
                    value.ty()
                );
                self.problem(ProblemKind::Invalid, Some(node), message);
                continue;
            }
            let copied = value.graphs().iter().map(size).sum();
            let value = value.clone();
            self.count(0, copied)?;
            renamed.attributes.push(Attribute { name: reference.name.clone(), value });
        }
        Ok(renamed)
    }

    /// A subgraph of the body in the caller's terms.
    fn renamed_graph(&mut self, graph: &'a Graph, frame: &mut Frame<'a>) -> Result<Graph, Stop> {
        frame.names.push(HashMap::new());
        self.define(frame, graph)?;
        self.count(0, graph.value_info.len() + graph.outputs.len())?;
        let info = |v: &ValueInfo, frame: &Frame| Some(ValueInfo { name: frame.lookup(&v.name)?, ty: v.ty.clone() });
        let infos = |values: &[ValueInfo], frame: &Frame| values.iter().filter_map(|v| info(v, frame)).collect();
        let outputs: Vec<ValueInfo> = infos(&graph.outputs, frame);
        if outputs.len() < graph.outputs.len() {
            self.problem(ProblemKind::Invalid, None, "a subgraph's output is an input that the call leaves out".into());
        }
        let mut renamed = Graph {
            name: graph.name.clone(),
            inputs: infos(&graph.inputs, frame),
            defaults: infos(&graph.defaults, frame),
            outputs,
            initializers: graph.initializers.clone(),
            nodes: Vec::with_capacity(graph.nodes.len()),
            value_info: infos(&graph.value_info, frame),
            captures: Vec::new(),
        };
        for initializer in &mut renamed.initializers {
            if let Some(name) = frame.lookup(&initializer.name) {
                initializer.name = name;
            }
        }
        for node in &graph.nodes {
            let node = self.renamed_node(node, frame)?;
            renamed.nodes.push(node);
        }
        frame.names.pop();
        Ok(renamed)
    }
}

impl Frame<'_> {
    /// What a name of the body becomes; nothing for an absent input.
    fn lookup(&self, name: &str) -> Option<String> {
        self.names.iter().rev().find_map(|names| names.get(name)).cloned().flatten()
    }
}

/// Nodes of a graph and its subgraphs.
fn size(graph: &Graph) -> usize {
    1 + graph.nodes.iter().map(|n| 1 + n.subgraphs().map(size).sum::<usize>()).sum::<usize>()
}
