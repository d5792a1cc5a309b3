//! A graph as an ONNX model, such as one that was written in Rust or that a checkpoint's family makes.
//!
//! Invariant: the model means what the graph means: importing it gives a graph with the same inputs, outputs and values. What has no
//! form in ONNX's own operator set (products of packed bytes, functions of the host) is an error that names it. Weights keep their
//! names; a matrix that only one product reads is stored as `MatMul` takes it, so that tools that quantize find it.

mod contract;
mod dims;
mod scalar;

use super::model::{
    AttributeValue, Dim, Graph as OnnxGraph, Initializer, Model, Node, TensorType, ValueInfo, ValueType,
};
use super::value::Value;
use kiln_ir::graph::{NodeId, ValueId};
use kiln_ir::ops::{NormKind, Op};
use kiln_ir::{BinaryOp, Constant, DType, Expr, Graph, Symbol, Tensor};
use std::collections::{BTreeMap, HashSet};

/// The version of the operator set that models are written in.
pub const OPSET: i64 = 21;
const IR_VERSION: i64 = 10;

/// A graph has no form in ONNX.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// A node has none.
    #[error("node {node}: {what} has no form in ONNX's operator set {OPSET}")]
    Op {
        /// The model's nodes that it stands for.
        node: String,
        /// What it is.
        what: String,
    },
    /// An extent is no function of the inputs' extents.
    #[error("the extent `{0}` follows from no input's shape")]
    Extent(String),
    /// The graph is not well formed.
    #[error("the graph is not well formed: {0}")]
    Graph(String),
}

/// The model of a graph.
///
/// # Errors
/// See [`ExportError`].
pub fn export(graph: &Graph) -> Result<Model, ExportError> {
    let mut work = Export {
        graph,
        nodes: Vec::new(),
        initializers: Vec::new(),
        names: BTreeMap::new(),
        taken: HashSet::new(),
        symbols: BTreeMap::new(),
        extents: BTreeMap::new(),
        scalars: BTreeMap::new(),
    };
    let inputs = work.inputs();
    work.taken.extend(graph.outputs.iter().map(|(name, _)| name.to_string()));
    let order = graph.live_order().map_err(|e| ExportError::Graph(e.to_string()))?;
    for id in order {
        work.node(id)?;
    }
    let outputs = work.outputs()?;
    let graph = OnnxGraph {
        name: graph.name.clone(),
        inputs,
        outputs,
        initializers: work.initializers,
        nodes: work.nodes,
        ..OnnxGraph::default()
    };
    let opsets = BTreeMap::from([(String::new(), OPSET)]);
    Ok(Model { ir_version: IR_VERSION, producer: String::new(), opsets, metadata: Vec::new(), graph })
}

struct Export<'g> {
    graph: &'g Graph,
    nodes: Vec<Node>,
    initializers: Vec<Initializer>,
    names: BTreeMap<ValueId, String>,
    taken: HashSet<String>,
    /// The input and axis that a symbol is the extent of.
    symbols: BTreeMap<Symbol, (String, usize)>,
    /// Tensors of one i64 that hold extents.
    extents: BTreeMap<Expr, String>,
    /// Constants of scalar code.
    scalars: BTreeMap<Constant, String>,
}

type Attributes<'a> = &'a [(&'a str, AttributeValue)];

fn int(value: usize) -> AttributeValue {
    AttributeValue::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

fn ints(values: &[usize]) -> AttributeValue {
    AttributeValue::Ints(whole(values).into())
}

fn whole(values: &[usize]) -> Vec<i64> {
    values.iter().map(|&v| i64::try_from(v).unwrap_or(i64::MAX)).collect()
}

impl Export<'_> {
    fn fresh(&mut self, name: &str) -> String {
        let mut made = name.to_string();
        let mut n = 1;
        while !self.taken.insert(made.clone()) {
            made = format!("{name}_{n}");
            n += 1;
        }
        made
    }

    fn info(&self, name: &str, value: ValueId) -> ValueInfo {
        let ty = self.graph.ty(value);
        let dim = |d: &Expr| match (d.as_size(), d.as_symbol()) {
            (Some(n), _) => Dim::Fixed(n),
            (None, Some(symbol)) => Dim::Symbol(symbol.name().into()),
            (None, None) => Dim::Unknown,
        };
        let shape = Some(ty.dims.iter().map(dim).collect());
        ValueInfo { name: name.into(), ty: Some(ValueType::Tensor(TensorType { dtype: ty.dtype, shape })) }
    }

    fn inputs(&mut self) -> Vec<ValueInfo> {
        let mut infos = Vec::new();
        for (n, &value) in self.graph.inputs.iter().enumerate() {
            let given = self.graph.value(value).name.as_deref().unwrap_or_default();
            let name = if given.is_empty() { self.fresh(&format!("input_{n}")) } else { self.fresh(given) };
            for (axis, dim) in self.graph.ty(value).dims.iter().enumerate() {
                if let Some(symbol) = dim.as_symbol() {
                    self.symbols.entry(symbol.clone()).or_insert_with(|| (name.clone(), axis));
                }
            }
            infos.push(self.info(&name, value));
            self.names.insert(value, name);
        }
        infos
    }

    fn outputs(&mut self) -> Result<Vec<ValueInfo>, ExportError> {
        let mut infos = Vec::new();
        for (name, value) in &self.graph.outputs {
            let from = self.value(*value)?;
            let node = self.fresh(&format!("{name}_output"));
            self.nodes.push(Node::new(&node, "Identity", OPSET, &[&from], name));
            infos.push(self.info(name, *value));
        }
        Ok(infos)
    }

    /// The name of a value; constants become initializers when they are first asked for.
    fn value(&mut self, id: ValueId) -> Result<String, ExportError> {
        if let Some(name) = self.names.get(&id) {
            return Ok(name.clone());
        }
        let missing = || ExportError::Graph(format!("{id} is used before it is defined"));
        let tensor = self.graph.constant(id).ok_or_else(missing)?.clone();
        let name = self.graph.value(id).name.as_deref().unwrap_or("constant");
        let name = self.tensor(name, tensor);
        self.names.insert(id, name.clone());
        Ok(name)
    }

    /// A new initializer.
    fn tensor(&mut self, name: &str, tensor: Tensor) -> String {
        let name = self.fresh(name);
        self.initializers.push(Initializer { name: name.clone(), value: Value::Tensor(tensor) });
        name
    }

    /// A new initializer of whole numbers, `[values]`.
    fn numbers(&mut self, name: &str, values: &[i64]) -> Result<String, ExportError> {
        let tensor = Tensor::from_i64(&[values.len()], values).map_err(|e| ExportError::Graph(e.to_string()))?;
        Ok(self.tensor(name, tensor))
    }

    /// A new node with one result, whose name it returns; the node has the result's name.
    fn add(&mut self, name: &str, op: &str, inputs: &[&str], attributes: Attributes<'_>) -> String {
        let name = self.fresh(name);
        let node = Node::new(&name, op, OPSET, inputs, &name);
        self.nodes.push(attributes.iter().fold(node, |node, (word, value)| node.with(word, value.clone())));
        name
    }

    fn node(&mut self, id: NodeId) -> Result<(), ExportError> {
        let node = self.graph.node(id);
        let [output] = node.outputs[..] else {
            return Err(self.refused(id, node.op.what()));
        };
        let base = match node.origin.names().next() {
            Some(origin) => format!("{origin}/{}", node.op.name()),
            None => node.op.name().to_string(),
        };
        let mut inputs = Vec::with_capacity(node.inputs.len());
        // A product asks for its operands itself, as it may store one otherwise.
        if !matches!(node.op, Op::Contract(_)) {
            for &input in &node.inputs {
                inputs.push(self.value(input)?);
            }
        }
        let x = inputs.first().cloned().unwrap_or_default();
        let dims = self.graph.ty(output).dims.clone();
        let name = match &node.op {
            Op::Map(map) => self.map(id, &base, &map.body, &inputs, &dims)?,
            Op::Contract(contract) => self.contract(id, &base, contract)?,
            Op::Reduce(reduce) => {
                let op = match reduce.combine {
                    BinaryOp::Add => "ReduceSum",
                    BinaryOp::Mul => "ReduceProd",
                    BinaryOp::Min => "ReduceMin",
                    BinaryOp::Max => "ReduceMax",
                    other => return Err(self.refused(id, &format!("a fold by `{}`", other.name()))),
                };
                let axes = self.numbers(&format!("{base}_axes"), &whole(&reduce.axes))?;
                let keep = [("keepdims", int(usize::from(reduce.keep))), ("noop_with_empty_axes", int(1))];
                self.add(&base, op, &[&x, &axes], &keep)
            }
            Op::Conv(conv) if conv.elements == Default::default() => {
                let with = [
                    ("strides", ints(&conv.strides)),
                    ("dilations", ints(&conv.dilations)),
                    ("group", int(conv.groups)),
                ];
                let weights = inputs.get(1).cloned().unwrap_or_default();
                self.add(&base, "Conv", &[&x, &weights], &with)
            }
            Op::Pool(pool) if pool.combine == BinaryOp::Max => {
                let with = [
                    ("kernel_shape", ints(&pool.window)),
                    ("strides", ints(&pool.strides)),
                    ("dilations", ints(&pool.dilations)),
                ];
                self.add(&base, "MaxPool", &[&x], &with)
            }
            Op::Softmax(softmax) => {
                let op = if softmax.log { "LogSoftmax" } else { "Softmax" };
                self.add(&base, op, &[&x], &[("axis", int(softmax.axis))])
            }
            Op::Norm(norm) => {
                let (axes, epsilon) = (norm.axes, norm.epsilon.as_f64());
                self.norm(id, &base, &x, norm.kind, (axes, epsilon))?
            }
            Op::Reshape(_) => {
                let shape = self.extents(&dims)?;
                // A 0 in the shape is an extent of 0, not that of the operand.
                self.add(&base, "Reshape", &[&x, &shape], &[("allowzero", int(1))])
            }
            Op::Transpose(transpose) => self.add(&base, "Transpose", &[&x], &[("perm", ints(&transpose.perm))]),
            Op::Broadcast(_) => self.expanded(&base, &x, &dims)?,
            Op::Slice(slice) => {
                let (mut axes, mut starts, mut ends, mut steps) = (vec![], vec![], vec![], vec![]);
                let from = &self.graph.ty(node.inputs[0]).dims;
                for (n, ((start, step), dim)) in slice.starts.iter().zip(&slice.steps).zip(&slice.dims).enumerate() {
                    if start.as_const() == Some(0) && *step == 1 && from.get(n) == Some(dim) {
                        continue;
                    }
                    let end = start.add(&dim.scale(*step));
                    let end = match end.as_const() {
                        // What lies before the first element cannot be written as a distance from the end.
                        Some(end) if end < 0 => Expr::from(i64::MIN + 1),
                        None if *step < 0 => return Err(self.refused(id, "a slice of a free extent from its end")),
                        Some(_) | None => end,
                    };
                    axes.push(n);
                    starts.push(start.clone());
                    ends.push(end);
                    steps.push(*step);
                }
                let (starts, ends) = (self.extents(&starts)?, self.extents(&ends)?);
                let axes = self.numbers(&format!("{base}_axes"), &whole(&axes))?;
                let steps = self.numbers(&format!("{base}_steps"), &steps)?;
                self.add(&base, "Slice", &[&x, &starts, &ends, &axes, &steps], &[])
            }
            Op::Concat(concat) => {
                let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
                self.add(&base, "Concat", &inputs, &[("axis", int(concat.axis))])
            }
            Op::Pad(pad) if pad.interior.iter().all(|&n| n == 0) => {
                let amounts: Vec<usize> = pad.low.iter().chain(&pad.high).copied().collect();
                let amounts = self.numbers(&format!("{base}_amounts"), &whole(&amounts))?;
                let value = self.scalar(pad.value)?;
                self.add(&base, "Pad", &[&x, &amounts, &value], &[])
            }
            Op::Gather(gather) => {
                let at = inputs.get(1).cloned().unwrap_or_default();
                self.add(&base, "Gather", &[&x, &at], &[("axis", int(gather.axis))])
            }
            Op::GatherElements(gather) => {
                let at = inputs.get(1).cloned().unwrap_or_default();
                self.add(&base, "GatherElements", &[&x, &at], &[("axis", int(gather.axis))])
            }
            Op::Iota(iota) => self.iota(&base, &dims, iota.axis)?,
            Op::Pool(_) => return Err(self.refused(id, "a pool by another fold than the greatest")),
            Op::Pad(_) => return Err(self.refused(id, "padding between elements")),
            Op::Conv(_) | Op::Pack(_) | Op::BlockProduct(_) => {
                return Err(self.refused(id, &format!("{} of packed elements", node.op.name())));
            }
            Op::WindowTiles(_) | Op::TileProduct(_) => {
                return Err(self.refused(id, "a convolution by tiles"));
            }
            Op::GatherNd(_) | Op::Host(_) => return Err(self.refused(id, node.op.what())),
        };
        self.names.insert(output, name);
        Ok(())
    }

    fn refused(&self, id: NodeId, what: &str) -> ExportError {
        ExportError::Op { node: self.graph.node(id).origin.to_string(), what: what.into() }
    }

    fn norm(
        &mut self,
        id: NodeId,
        base: &str,
        x: &str,
        kind: NormKind,
        (axes, epsilon): (usize, f64),
    ) -> Result<String, ExportError> {
        let input = self.graph.node(id).inputs[0];
        let ty = self.graph.ty(input);
        if ty.dtype != DType::F32 {
            return Err(self.refused(id, &format!("a norm of {}", ty.dtype)));
        }
        let first = ty.rank() - axes.min(ty.rank());
        match kind {
            NormKind::Layer => {
                let extents: Option<Vec<usize>> = ty.dims.iter().skip(first).map(Expr::as_size).collect();
                let extents = extents.ok_or_else(|| self.refused(id, "a norm over a free extent"))?;
                let ones = vec![1.0; extents.iter().product()];
                let ones = Tensor::from_f32(&extents, &ones).map_err(|e| ExportError::Graph(e.to_string()))?;
                let ones = self.tensor(&format!("{base}_ones"), ones);
                let with = [("axis", int(first)), ("epsilon", AttributeValue::Float(epsilon as f32))];
                Ok(self.add(base, "LayerNormalization", &[x, &ones], &with))
            }
            NormKind::Rms => {
                let axes: Vec<usize> = (first..ty.rank()).collect();
                let axes = self.numbers(&format!("{base}_axes"), &whole(&axes))?;
                let epsilon = self.scalar(Constant::float(DType::F32, epsilon))?;
                let squares = self.add(&format!("{base}_squares"), "Mul", &[x, x], &[]);
                let mean = self.add(&format!("{base}_mean"), "ReduceMean", &[&squares, &axes], &[]);
                let raised = self.add(&format!("{base}_raised"), "Add", &[&mean, &epsilon], &[]);
                let root = self.add(&format!("{base}_root"), "Sqrt", &[&raised], &[]);
                Ok(self.add(base, "Div", &[x, &root], &[]))
            }
        }
    }

    /// A value repeated to dims that it broadcasts to.
    fn expanded(&mut self, base: &str, x: &str, dims: &[Expr]) -> Result<String, ExportError> {
        let shape = self.extents(dims)?;
        Ok(self.add(base, "Expand", &[x, &shape], &[]))
    }

    fn iota(&mut self, base: &str, dims: &[Expr], axis: usize) -> Result<String, ExportError> {
        let extent = dims.get(axis).cloned().unwrap_or_default();
        let bounds = [Expr::from(0i64), extent.clone(), Expr::from(1i64)];
        let none = self.numbers(&format!("{base}_scalar"), &[])?;
        let mut scalars = Vec::with_capacity(bounds.len());
        for bound in bounds {
            let one = self.extents(&[bound])?;
            scalars.push(self.add(&format!("{base}_bound"), "Reshape", &[&one, &none], &[]));
        }
        let scalars: Vec<&str> = scalars.iter().map(String::as_str).collect();
        let row = self.add(base, "Range", &scalars, &[]);
        if dims.len() == 1 {
            return Ok(row);
        }
        let line: Vec<Expr> =
            (0..dims.len()).map(|n| if n == axis { extent.clone() } else { Expr::from(1i64) }).collect();
        let shape = self.extents(&line)?;
        let row = self.add(&format!("{base}_line"), "Reshape", &[&row, &shape], &[("allowzero", int(1))]);
        self.expanded(&format!("{base}_whole"), &row, dims)
    }
}
