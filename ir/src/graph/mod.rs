//! The graph: values and the nodes that compute them.
//!
//! Invariant: every node's inputs exist and its outputs have the types that its op infers from them; a value is
//! defined once. Nodes are stored in an arena in any order; [`Graph::order`] gives a topological one. Nodes that no
//! output depends on are allowed (a pass removes them).

mod order;
mod parse;
mod print;
#[cfg(test)]
mod tests;
mod verify;

use crate::DType;
use crate::expr::{Expr, Ranges, Symbol};
use crate::id::{Arena, Id};
use crate::layout::Layout;
use crate::ops::{Op, OpError};
use crate::tensor::{Tensor, element_count};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

pub use order::Dataflow;
pub use verify::GraphError;

/// A handle to a node.
pub type NodeId = Id<Node>;
/// A handle to a value.
pub type ValueId = Id<Value>;

/// Element type, dims and layout of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dims, outermost first; expressions over the graph's symbols.
    pub dims: Vec<Expr>,
    /// Layout in memory.
    pub layout: Layout,
}

impl TensorType {
    /// A row-major tensor.
    pub fn new(dtype: DType, dims: Vec<Expr>) -> TensorType {
        let layout = Layout::row_major(dims.len());
        TensorType { dtype, dims, layout }
    }

    /// A row-major tensor of constant dims.
    pub fn of(dtype: DType, dims: &[usize]) -> TensorType {
        TensorType::new(dtype, dims.iter().map(|&d| Expr::from(d)).collect())
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.dims.len()
    }

    /// The dims, where all are constant.
    pub fn shape(&self) -> Option<Vec<usize>> {
        self.dims.iter().map(Expr::as_size).collect()
    }

    /// The number of elements.
    pub fn elements(&self) -> Expr {
        self.dims.iter().fold(Expr::from(1i64), |a, d| a.mul(d))
    }

    /// Bytes of the storage, padding included.
    pub fn bytes(&self) -> Expr {
        self.layout.storage_len(&self.dims).scale(self.dtype.size() as i64)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[{}]", self.dtype, crate::text::Commas(&self.dims))?;
        if self.layout.is_row_major() { Ok(()) } else { write!(f, " order {}", self.layout) }
    }
}

/// Where something came from: names of nodes in the model, for messages and reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(BTreeSet<Arc<str>>);

impl Origin {
    /// The origin with one name.
    pub fn new(name: &str) -> Origin {
        Origin(BTreeSet::from([Arc::from(name)]))
    }

    /// Adds the names of another origin.
    pub fn merge(&mut self, other: &Origin) {
        self.0.extend(other.0.iter().cloned());
    }

    /// The names, sorted.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &str> {
        self.0.iter().map(|n| &**n)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => f.write_str("(made by Kiln)"),
            n => {
                let mut names = self.names().take(4).collect::<Vec<_>>().join(", ");
                if n > 4 {
                    names += &format!(" and {} more", n - 4);
                }
                f.write_str(&names)
            }
        }
    }
}

/// How a value comes about.
#[derive(Clone, Debug, PartialEq)]
pub enum Definition {
    /// The n-th input of the graph.
    Input(usize),
    /// A constant (weights and folded values).
    Constant(Tensor),
    /// The n-th output of a node.
    Node(NodeId, usize),
}

/// A tensor that flows along the graph's edges.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// Name in the model, where it has one.
    pub name: Option<Arc<str>>,
    /// Type.
    pub ty: TensorType,
    /// How it comes about.
    pub definition: Definition,
}

/// An application of an op.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The op with its attributes.
    pub op: Op,
    /// Operands.
    pub inputs: Vec<ValueId>,
    /// Results.
    pub outputs: Vec<ValueId>,
    /// The model's nodes that it stands for.
    pub origin: Origin,
}

/// A dataflow graph. See the module documentation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// Name of the model.
    pub name: String,
    /// Inclusive bounds of the symbols that dims mention.
    pub symbols: Ranges,
    /// Inputs, in the caller's order.
    pub inputs: Vec<ValueId>,
    /// Outputs with their names, in the caller's order.
    pub outputs: Vec<(Arc<str>, ValueId)>,
    values: Arena<Value>,
    nodes: Arena<Node>,
    users: Vec<Vec<NodeId>>,
    /// Symbols that a host op's result decides, and the op.
    decided: BTreeMap<Symbol, NodeId>,
    /// For each such op the nodes that mention its symbols without reading a value of it, and the reverse.
    followers: BTreeMap<NodeId, Vec<NodeId>>,
    leaders: BTreeMap<NodeId, Vec<NodeId>>,
}

impl Graph {
    /// A graph without values.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.to_string(), ..Graph::default() }
    }

    fn push_value(&mut self, value: Value) -> ValueId {
        self.users.push(Vec::new());
        self.values.push(value)
    }

    /// Adds a graph input.
    pub fn add_input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let definition = Definition::Input(self.inputs.len());
        let id = self.push_value(Value { name: Some(name.into()), ty, definition });
        self.inputs.push(id);
        id
    }

    /// Adds a constant.
    pub fn add_constant(&mut self, tensor: Tensor) -> ValueId {
        let ty = TensorType::of(tensor.dtype(), tensor.shape());
        self.push_value(Value { name: None, ty, definition: Definition::Constant(tensor) })
    }

    /// Names a value that is an output.
    pub fn add_output(&mut self, name: &str, value: ValueId) {
        self.outputs.push((name.into(), value));
    }

    /// Adds a node; its results get the inferred types.
    ///
    /// # Errors
    /// The op does not take inputs of these types.
    pub fn add_node(&mut self, op: Op, inputs: &[ValueId], origin: &Origin) -> Result<NodeId, OpError> {
        let types: Vec<&TensorType> = inputs.iter().map(|&v| &self.values[v].ty).collect();
        let outputs = op.infer(&types)?;
        Ok(self.push_node(op, inputs, outputs, origin))
    }

    /// Adds a node with one result and returns that.
    ///
    /// # Errors
    /// The op does not take inputs of these types.
    pub fn add(&mut self, op: Op, inputs: &[ValueId], origin: &Origin) -> Result<ValueId, OpError> {
        let id = self.add_node(op, inputs, origin)?;
        Ok(self.nodes[id].outputs[0])
    }

    fn push_node(&mut self, op: Op, inputs: &[ValueId], types: Vec<TensorType>, origin: &Origin) -> NodeId {
        let id: NodeId = Id::from_index(self.nodes.len());
        let outputs: Vec<ValueId> = types
            .into_iter()
            .enumerate()
            .map(|(n, ty)| self.push_value(Value { name: None, ty, definition: Definition::Node(id, n) }))
            .collect();
        for &input in inputs {
            self.users[input.index()].push(id);
        }
        self.note_symbols(id, &op, &outputs);
        self.nodes.push(Node { op, inputs: inputs.to_vec(), outputs, origin: origin.clone() })
    }

    /// Notes which symbols a new node's results decide, and which nodes decided those that it mentions.
    fn note_symbols(&mut self, id: NodeId, op: &Op, outputs: &[ValueId]) {
        if !self.decided.is_empty() {
            let mut leaders = Vec::new();
            op.operator().attributes().for_each_symbol(&mut |s| leaders.extend(self.decided.get(s)));
            leaders.sort();
            leaders.dedup();
            for &leader in &leaders {
                self.followers.entry(leader).or_default().push(id);
            }
            if !leaders.is_empty() {
                self.leaders.insert(id, leaders);
            }
        }
        if let Op::Host(_) = op {
            let dims = outputs.iter().flat_map(|&v| &self.values[v].ty.dims);
            let symbols: Vec<Symbol> = dims.filter_map(Expr::as_symbol).cloned().collect();
            for symbol in symbols {
                let given = self.inputs.iter().any(|&v| self.values[v].ty.dims.iter().any(|d| d.mentions(&symbol)));
                if !given {
                    self.decided.entry(symbol).or_insert(id);
                }
            }
        }
    }

    /// The nodes that must run after a node because they mention a symbol that its results decide.
    pub fn followers(&self, id: NodeId) -> &[NodeId] {
        self.followers.get(&id).map_or(&[], Vec::as_slice)
    }

    /// The nodes whose results decide symbols that a node mentions.
    pub fn leaders(&self, id: NodeId) -> &[NodeId] {
        self.leaders.get(&id).map_or(&[], Vec::as_slice)
    }

    /// A value.
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id]
    }

    /// The type of a value.
    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.values[id].ty
    }

    /// Names a value after the model's name for it.
    pub fn set_name(&mut self, id: ValueId, name: &str) {
        self.values[id].name = Some(name.into());
    }

    /// Changes the layout of a value; the caller sees to it that every user can read it.
    pub fn set_layout(&mut self, id: ValueId, layout: Layout) {
        self.values[id].ty.layout = layout;
    }

    /// Changes the element type of a value, and what it holds where it is a constant; the caller sees to it that everything which makes
    /// or reads the value does so in that type.
    pub fn set_dtype(&mut self, id: ValueId, dtype: DType, constant: Option<Tensor>) {
        let value = &mut self.values[id];
        value.ty.dtype = dtype;
        if let (Definition::Constant(held), Some(new)) = (&mut value.definition, constant) {
            *held = new;
        }
    }

    /// Puts another constant, whose type may differ, in the place of one; the caller sees to it that everything which reads it reads the
    /// new one.
    pub fn replace_constant(&mut self, id: ValueId, constant: Tensor) {
        let value = &mut self.values[id];
        if let Definition::Constant(held) = &mut value.definition {
            let dims = constant.shape().iter().map(|&e| Expr::from(e)).collect();
            value.ty = TensorType::new(constant.dtype(), dims);
            *held = constant;
        }
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// All values.
    pub fn values(&self) -> impl ExactSizeIterator<Item = (ValueId, &Value)> {
        self.values.iter()
    }

    /// All nodes, in no particular order.
    pub fn nodes(&self) -> impl ExactSizeIterator<Item = (NodeId, &Node)> {
        self.nodes.iter()
    }

    /// The constant that a value is, if it is one.
    pub fn constant(&self, id: ValueId) -> Option<&Tensor> {
        match &self.values[id].definition {
            Definition::Constant(t) => Some(t),
            Definition::Input(_) | Definition::Node(..) => None,
        }
    }

    /// The node that defines a value, if one does.
    pub fn producer(&self, id: ValueId) -> Option<NodeId> {
        match self.values[id].definition {
            Definition::Node(n, _) => Some(n),
            Definition::Input(_) | Definition::Constant(_) => None,
        }
    }

    /// The nodes that read a value, once for each operand that it is (dead nodes included).
    pub fn users(&self, id: ValueId) -> &[NodeId] {
        &self.users[id.index()]
    }

    /// Whether the value is an output of the graph.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.iter().any(|(_, v)| *v == id)
    }

    /// Makes every user of `old`, and the graph's outputs, read `new` instead, which has the same dtype and dims.
    pub fn replace(&mut self, old: ValueId, new: ValueId) {
        if old == new {
            return;
        }
        let users = std::mem::take(&mut self.users[old.index()]);
        for &user in &users {
            for input in &mut self.nodes[user].inputs {
                if *input == old {
                    *input = new;
                }
            }
        }
        self.users[new.index()].extend(users);
        for (_, v) in &mut self.outputs {
            if *v == old {
                *v = new;
            }
        }
        if self.values[new].name.is_none() {
            self.values[new].name = self.values[old].name.clone();
        }
    }

    /// The graph without the nodes and constants that no output depends on, nodes in topological order.
    ///
    /// # Errors
    /// The graph has a cycle.
    pub fn compact(&self) -> Result<Graph, GraphError> {
        self.rebuild(&|e| e.clone())
    }

    /// [`Graph::compact`] with every dim and expression attribute rewritten, for example with a symbol bound.
    ///
    /// # Errors
    /// The graph has a cycle, or no longer type-checks.
    pub fn rebuild(&self, dim: &dyn Fn(&Expr) -> Expr) -> Result<Graph, GraphError> {
        let mut new = Graph::new(&self.name);
        new.symbols = self.symbols.clone();
        let mut map: Vec<Option<ValueId>> = vec![None; self.values.len()];
        for &input in &self.inputs {
            let value = &self.values[input];
            let mut ty = value.ty.clone();
            ty.dims = ty.dims.iter().map(dim).collect();
            let id = new.add_input(value.name.as_deref().unwrap_or(""), ty);
            map[input.index()] = Some(id);
        }
        let constant = |new: &mut Graph, map: &mut Vec<Option<ValueId>>, v: ValueId| {
            if let (None, Definition::Constant(t)) = (map[v.index()], &self.values[v].definition) {
                let id = new.add_constant(t.clone());
                new.values[id].name = self.values[v].name.clone();
                new.values[id].ty.layout = self.values[v].ty.layout.clone();
                map[v.index()] = Some(id);
            }
        };
        for id in self.live_order()? {
            let node = &self.nodes[id];
            for &v in &node.inputs {
                constant(&mut new, &mut map, v);
            }
            let inputs: Vec<ValueId> = node.inputs.iter().filter_map(|v| map[v.index()]).collect();
            let op = node.op.map_exprs(dim);
            let fail = |e: OpError| GraphError::new(&node.origin, e.to_string());
            let made = new.add_node(op, &inputs, &node.origin).map_err(fail)?;
            let outputs = new.nodes[made].outputs.clone();
            for (&old, created) in node.outputs.iter().zip(outputs) {
                map[old.index()] = Some(created);
                new.values[created].name = self.values[old].name.clone();
                new.values[created].ty.layout = self.values[old].ty.layout.clone();
            }
        }
        for (name, v) in &self.outputs {
            constant(&mut new, &mut map, *v);
            if let Some(v) = map[v.index()] {
                new.outputs.push((name.clone(), v));
            }
        }
        Ok(new)
    }

    /// Bytes of all constants.
    pub fn constant_bytes(&self) -> usize {
        let size = |v: &Value| match &v.definition {
            Definition::Constant(t) => element_count(t.shape(), t.dtype().size()).map_or(0, |n| n * t.dtype().size()),
            Definition::Input(_) | Definition::Node(..) => 0,
        };
        self.values.iter().map(|(_, v)| size(v)).sum()
    }
}
