//! A checked ONNX model to Kiln's graph.
//!
//! Invariant: every problem of a model is found in one pass: a node that cannot be imported leaves its results undefined, nodes
//! that need those are passed over in silence, all others are tried. Values that are known here (constants, and
//! the contents of small integer tensors as expressions over dims) are computed here, so that shapes that exporters compute step by step
//! arrive as dims.

mod assumed;
mod contents;
mod context;
mod errors;
mod region;
mod symbols;

pub use crate::body::{Body, S};
pub use context::{Bound, Context, Outputs};
pub use errors::{Failure, ImportErrors, Unsupported};
pub use region::{Param, Region};

use super::model::{self, Model, Node, ValueType};
use super::ops;
use super::value::Value;
use kiln_ir::graph::{Definition, ValueId};
use kiln_ir::{DType, Graph, Origin, Symbol, Tensor, TensorType};
use region::Frame;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Bytes that a sparse constant may take when it is made dense.
const DENSE_LIMIT: usize = 1 << 30;

/// Nodes that are imported, those of a repeated graph each time: more than [`model::Limits`] allows a model to have.
const MOST_NODES: usize = 4_000_000;

/// What the caller knows of the model's inputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Symbolic dims by name, with their least and greatest value; equal ones fix the dim.
    pub bind: BTreeMap<String, (i64, i64)>,
    /// Inputs whose dims are fixed entirely.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Inputs whose values are known; the graph is then right for these values only, which is the caller's to see to. The
    /// inputs that a model needs this for are [`ImportErrors::values`]. They stay inputs, which nothing reads.
    pub values: BTreeMap<String, Tensor>,
}

/// Imports a model.
///
/// # Errors
/// All problems at once; see [`ImportErrors`].
pub fn import(model: &Model, options: &Options) -> Result<Graph, ImportErrors> {
    let mut options = options.clone();
    loop {
        let mut bounds = BTreeMap::new();
        let imported = once(model, &options, &mut bounds);
        // A bound that the model itself implies was not known where the dim was first used.
        let known = |s: &Symbol, most: &i64| options.bind.get(s.name()).is_some_and(|b| b.1 <= *most);
        bounds.retain(|s, most| !known(s, most));
        if bounds.is_empty() {
            return imported;
        }
        for (symbol, most) in bounds {
            let least = options.bind.get(symbol.name()).map_or(1, |b| b.0);
            options.bind.insert(symbol.name().to_owned(), (least.min(most), most));
        }
    }
}

/// One attempt; `bounds` gets the greatest values of symbols that the model turns out to imply.
fn once(model: &Model, options: &Options, bounds: &mut BTreeMap<Symbol, i64>) -> Result<Graph, ImportErrors> {
    let mut importer = Importer::new(&model.graph.name);
    importer.inputs(&model.graph, options);
    let outputs = importer.body(&model.graph);
    for (info, bound) in model.graph.outputs.iter().zip(outputs) {
        importer.output(info, bound);
    }
    let Importer { frame: Frame { graph, .. }, mut errors, implied, .. } = importer;
    *bounds = implied;
    if !errors.is_empty() {
        return Err(errors);
    }
    graph.compact().map_err(|e| {
        errors.invalid(None, e.to_string());
        errors
    })
}

/// The state of an import.
#[derive(Debug)]
pub(super) struct Importer {
    /// The graph that nodes are added to, with the contents of integer values with at most one axis, where they are known as
    /// expressions.
    frame: Frame,
    /// The graphs around it, outermost first.
    outer: Vec<Frame>,
    /// What names mean, innermost graph last; nothing where the value could not be imported.
    scopes: Vec<HashMap<String, Option<Bound>>>,
    /// How many symbols were made for extents that the data decides.
    made: usize,
    /// Those symbols.
    decided: HashSet<Symbol>,
    /// How many nodes were imported, repetitions counted.
    nodes: usize,
    /// Greatest values of symbols without which nodes do not fit.
    implied: BTreeMap<Symbol, i64>,
    errors: ImportErrors,
}

impl Importer {
    fn new(name: &str) -> Importer {
        Importer {
            frame: Frame { graph: Graph::new(name), ..Frame::default() },
            outer: Vec::new(),
            scopes: vec![HashMap::new()],
            made: 0,
            decided: HashSet::new(),
            nodes: 0,
            implied: BTreeMap::new(),
            errors: ImportErrors::default(),
        }
    }

    fn define(&mut self, name: &str, bound: Option<Bound>) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name.to_owned(), bound);
        }
    }

    /// Defines the inputs of the main graph.
    fn inputs(&mut self, graph: &model::Graph, options: &Options) {
        let mut symbols = symbols::Symbols::new(&options.bind);
        for input in &graph.inputs {
            if let (Some(ValueType::Tensor(t)), Some(shape)) = (&input.ty, options.shapes.get(&input.name))
                && let Err(message) = symbols.fix(t, shape)
            {
                self.errors.invalid(None, format!("input {}: {message}", super::problem::shown(&input.name)));
            }
        }
        for input in &graph.inputs {
            let bound = match &input.ty {
                Some(ValueType::Tensor(t)) => {
                    let fixed = options.shapes.get(&input.name).map(Vec::as_slice);
                    match symbols.dims(&input.name, t, fixed) {
                        Some(dims) => {
                            let id = self.frame.graph.add_input(&input.name, TensorType::new(t.dtype, dims));
                            self.value(&input.name, id, options.values.get(&input.name))
                        }
                        None => {
                            let name = super::problem::shown(&input.name);
                            self.errors.unsupported_value(format!("input {name}: not even its rank is known"));
                            None
                        }
                    }
                }
                Some(kind @ (ValueType::Sequence(_) | ValueType::Optional(_))) => {
                    let length = self.fresh();
                    let id = self.frame.graph.add_input(&input.name, TensorType::new(DType::Seq, vec![length]));
                    Some(Bound::Value(id, kind.clone()))
                }
                other => {
                    let name = super::problem::shown(&input.name);
                    let ty = other.as_ref().map_or(String::new(), |t| format!(" of type {t}"));
                    self.errors.unsupported_value(format!(
                        "input {name}{ty}: only tensors, sequences and optionals can be inputs"
                    ));
                    None
                }
            };
            self.define(&input.name, bound);
        }
        self.frame.graph.symbols.extend(symbols.into_ranges());
    }

    /// The input, or the constant that takes its place.
    fn value(&mut self, name: &str, input: ValueId, known: Option<&Tensor>) -> Option<Bound> {
        let Some(known) = known else { return Some(Bound::Tensor(input)) };
        let ty = self.frame.graph.ty(input);
        let fits = ty.dims.iter().zip(known.shape()).all(|(d, &n)| d.as_size().is_none_or(|d| d == n));
        if ty.dtype == known.dtype() && ty.rank() == known.shape().len() && fits {
            return Some(Bound::Tensor(self.frame.graph.add_constant(known.clone())));
        }
        let message = format!(
            "input {} is {ty}, a value of type {} with dims {:?} was given",
            super::problem::shown(name),
            known.dtype(),
            known.shape()
        );
        self.errors.invalid(None, message);
        None
    }

    /// The names of the inputs that a value depends on.
    fn sources(&self, value: ValueId) -> BTreeSet<String> {
        let mut open = vec![value];
        let mut found = BTreeSet::new();
        for level in (0..=self.outer.len()).rev() {
            let Frame { graph, captures, .. } = self.outer.get(level).unwrap_or(&self.frame);
            let mut seen: HashSet<ValueId> = open.iter().copied().collect();
            let mut outside = Vec::new();
            while let Some(v) = open.pop() {
                let value = graph.value(v);
                match &value.definition {
                    Definition::Input(_) if level == 0 => found.extend(value.name.as_deref().map(str::to_owned)),
                    Definition::Input(_) => outside.extend(captures.iter().find(|(i, _)| *i == v).map(|(_, o)| *o)),
                    Definition::Constant(_) => {}
                    Definition::Node(n, _) => open.extend(graph.node(*n).inputs.iter().filter(|i| seen.insert(**i))),
                }
            }
            open = outside;
        }
        found
    }

    /// Imports constants and nodes of a graph, whose inputs are defined; returns what its outputs mean.
    fn body(&mut self, graph: &model::Graph) -> Vec<Option<Bound>> {
        for initializer in &graph.initializers {
            let tensor = match &initializer.value {
                Value::Tensor(t) => Some(t.clone()),
                Value::Sparse(s) => match s.to_dense(DENSE_LIMIT) {
                    Ok(t) => Some(t),
                    Err(e) => {
                        let name = super::problem::shown(&initializer.name);
                        self.errors.unsupported_value(format!("initializer {name}: {e}"));
                        None
                    }
                },
                Value::Sequence(_) | Value::Optional(_) | Value::Map(..) => None,
            };
            let bound = tensor.map(|t| {
                let id = self.constant(t);
                if self.outer.is_empty() {
                    self.frame.graph.set_name(id, &initializer.name);
                }
                Bound::Tensor(id)
            });
            self.define(&initializer.name, bound);
        }
        for node in &graph.nodes {
            self.node(node);
        }
        graph.outputs.iter().map(|o| self.find(&o.name)).collect()
    }

    /// Imports a subgraph in a scope of its own, with its inputs bound to values.
    fn subgraph(&mut self, graph: &model::Graph, inputs: Vec<Bound>) -> Vec<Option<Bound>> {
        self.scopes.push(HashMap::new());
        for (info, bound) in graph.inputs.iter().zip(inputs) {
            self.define(&info.name, Some(bound));
        }
        let outputs = self.body(graph);
        self.scopes.pop();
        outputs
    }

    fn node(&mut self, node: &Node) {
        self.nodes += 1;
        if self.nodes > MOST_NODES {
            if self.nodes == MOST_NODES + 1 {
                let message = format!("graphs that are repeated come to more than {MOST_NODES} nodes");
                self.errors.push(node, Failure::Unsupported(message));
            }
            node.outputs.iter().flatten().for_each(|name| self.define(name, None));
            return;
        }
        let outputs = match ops::find(&node.domain, &node.op_type, node.opset) {
            Err(message) => Err(Failure::Unsupported(message)),
            Ok(spec) => match node.only_attributes(spec.attributes) {
                Err(e) => Err(e.into()),
                Ok(()) => Context::new(self, node).and_then(|mut cx| (spec.import)(&mut cx)),
            },
        };
        let outputs = match outputs {
            Ok(outputs) => outputs.0,
            Err(failure) => {
                self.errors.push(node, failure);
                Vec::new()
            }
        };
        let mut outputs = outputs.into_iter();
        for name in &node.outputs {
            let bound = outputs.next();
            let Some(name) = name else { continue };
            if let Some(Bound::Tensor(id)) = bound
                && self.frame.graph.value(id).name.is_none()
            {
                self.frame.graph.set_name(id, name);
            }
            self.define(name, bound);
        }
    }

    /// Makes a value an output of the graph, if it has the type that the model declares.
    fn output(&mut self, info: &model::ValueInfo, bound: Option<Bound>) {
        let name = super::problem::shown(&info.name);
        match bound {
            None => {}
            Some(Bound::Tensor(id)) => {
                let found = self.frame.graph.ty(id).dtype;
                match info.ty.as_ref().and_then(ValueType::tensor) {
                    Some(t) if t.dtype != found => {
                        self.errors.invalid(None, format!("output {name} is declared as {}, but is {found}", t.dtype));
                    }
                    _ => self.frame.graph.add_output(&info.name, id),
                }
            }
            Some(bound) => match self.reify(bound, info.ty.as_ref(), &Origin::default()) {
                Ok((id, _)) => self.frame.graph.add_output(&info.name, id),
                Err(Failure::Unsupported(message) | Failure::Invalid(message)) => {
                    self.errors.unsupported_value(format!("output {name}: {message}"));
                }
                Err(Failure::Computed(..) | Failure::Skip) => {}
            },
        }
    }
}
