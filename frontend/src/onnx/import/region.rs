//! Graphs within the graph, and values that are no tensors.
//!
//! Invariant: a graph within the graph refers to nothing outside: what it takes from there is an input of its own, found by name and
//! added once. Its constants are small, so that a plan can hold it as text; large ones are the outermost graph's.

use super::{Bound, Failure, Importer};
use crate::onnx::model::{self, Dim, ValueType};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Host};
use kiln_ir::{Class, DType, Expr, Graph, Origin, Symbol, Tensor, TensorType};
use std::collections::HashMap;

/// Elements of a constant that stays within a graph within the graph.
const SMALL: usize = 16;

/// The greatest extent that data may decide.
const MOST: i64 = 1_000_000_000;

/// A graph that is being made: the outer ones wait while an inner one is imported.
#[derive(Debug, Default)]
pub(super) struct Frame {
    pub graph: Graph,
    pub contents: HashMap<ValueId, Vec<Expr>>,
    /// The first of its scopes.
    pub base: usize,
    /// Its inputs that stand for values of the graph around it: inside, outside.
    pub captures: Vec<(ValueId, ValueId)>,
}

/// An input of a graph within the graph.
#[derive(Clone, Debug)]
pub struct Param {
    /// Element type.
    pub dtype: DType,
    /// Dims; nothing where they differ from one evaluation to the next.
    pub dims: Vec<Option<Expr>>,
    /// The type of a sequence or optional; nothing for a tensor.
    pub kind: Option<ValueType>,
}

impl Param {
    /// A tensor of this type.
    pub fn tensor(ty: &TensorType) -> Param {
        Param { dtype: ty.dtype, dims: ty.dims.iter().cloned().map(Some).collect(), kind: None }
    }

    /// A sequence or optional of this type.
    pub fn value(kind: ValueType) -> Param {
        Param { dtype: DType::Seq, dims: vec![None], kind: Some(kind) }
    }
}

/// A graph within the graph.
#[derive(Debug)]
pub struct Region {
    /// The graph: its inputs are the params and then the captures.
    pub graph: Graph,
    /// Types of its outputs, dims over symbols of its own nothing; the type of a sequence or optional.
    pub outputs: Vec<Param>,
    /// What it takes from outside.
    pub captures: Vec<ValueId>,
}

impl Importer {
    fn graph_at(&mut self, level: usize) -> &mut Frame {
        if level < self.outer.len() { &mut self.outer[level] } else { &mut self.frame }
    }

    /// What a name means here; a value of a graph around this one becomes an input.
    pub(super) fn find(&mut self, name: &str) -> Option<Bound> {
        self.find_at(self.outer.len(), name)
    }

    fn find_at(&mut self, level: usize, name: &str) -> Option<Bound> {
        let from = self.graph_at(level).base;
        let to = if level < self.outer.len() { self.graph_at(level + 1).base } else { self.scopes.len() };
        if let Some(found) = self.scopes[from..to].iter().rev().find_map(|s| s.get(name)) {
            return found.clone();
        }
        let outside = self.find_at(level.checked_sub(1)?, name)?;
        let inside = self.capture(level, &outside);
        self.scopes[from].insert(name.to_owned(), Some(inside.clone()));
        Some(inside)
    }

    /// What stands within graph `level` for a meaning of the graph around it.
    fn capture(&mut self, level: usize, bound: &Bound) -> Bound {
        match bound {
            Bound::Tensor(v) => Bound::Tensor(self.capture_value(level, *v)),
            Bound::Value(v, kind) => Bound::Value(self.capture_value(level, *v), kind.clone()),
            Bound::Sequence(all) => Bound::Sequence(all.iter().map(|b| self.capture(level, b)).collect()),
            Bound::Optional(inner) => Bound::Optional(inner.as_ref().map(|b| Box::new(self.capture(level, b)))),
        }
    }

    fn capture_value(&mut self, level: usize, outside: ValueId) -> ValueId {
        let there = self.graph_at(level - 1);
        let (ty, name) = (there.graph.ty(outside).clone(), there.graph.value(outside).name.clone());
        let (constant, contents) = (there.graph.constant(outside).cloned(), there.contents.get(&outside).cloned());
        let here = self.graph_at(level);
        if let Some(&(inside, _)) = here.captures.iter().find(|(_, o)| *o == outside) {
            return inside;
        }
        if let Some(small) = constant.filter(is_small) {
            return here.graph.add_constant(small);
        }
        let inside = here.graph.add_input(name.as_deref().unwrap_or(""), ty);
        here.captures.push((inside, outside));
        if let Some(contents) = contents {
            here.contents.insert(inside, contents);
        }
        inside
    }

    /// Adds a constant; a large one goes to the outermost graph.
    pub(super) fn constant(&mut self, tensor: Tensor) -> ValueId {
        if self.outer.is_empty() || is_small(&tensor) {
            return self.frame.graph.add_constant(tensor);
        }
        let mut v = self.graph_at(0).graph.add_constant(tensor);
        for level in 1..=self.outer.len() {
            v = self.capture_value(level, v);
        }
        v
    }

    /// The constant that a value is, also where it is one of a graph around this one.
    pub(super) fn constant_of(&self, v: ValueId) -> Option<&Tensor> {
        let mut v = v;
        for level in (0..=self.outer.len()).rev() {
            let frame = self.outer.get(level).unwrap_or(&self.frame);
            match frame.graph.constant(v) {
                Some(t) => return Some(t),
                None => v = frame.captures.iter().find(|(inside, _)| *inside == v)?.1,
            }
        }
        None
    }

    /// A symbol for an extent that the data decides.
    pub(super) fn fresh(&mut self) -> Expr {
        loop {
            let symbol = Symbol::new(&format!("extent_{}", self.made));
            self.made += 1;
            let taken = |f: &Frame| f.graph.symbols.contains_key(&symbol);
            if !taken(&self.frame) && !self.outer.iter().any(taken) {
                let e = Expr::from(&symbol);
                self.frame.graph.symbols.insert(symbol.clone(), (0, MOST));
                self.decided.insert(symbol);
                return e;
            }
        }
    }

    /// Imports a graph with inputs of these types as a graph within the current one.
    pub(super) fn region(
        &mut self,
        graph: &model::Graph,
        params: &[Param],
        origin: &Origin,
    ) -> Result<Region, Failure> {
        let mut inner = Graph::new(&graph.name);
        inner.symbols = self.frame.graph.symbols.clone();
        let frame = Frame { graph: inner, base: self.scopes.len(), ..Frame::default() };
        let around = std::mem::replace(&mut self.frame, frame);
        self.outer.push(around);
        self.scopes.push(HashMap::new());
        for (info, param) in graph.inputs.iter().zip(params) {
            let mut dims = Vec::with_capacity(param.dims.len());
            for d in &param.dims {
                dims.push(d.clone().unwrap_or_else(|| self.fresh()));
            }
            let v = self.frame.graph.add_input(&info.name, TensorType::new(param.dtype, dims));
            let bound = match &param.kind {
                Some(kind) => Bound::Value(v, kind.clone()),
                None => Bound::Tensor(v),
            };
            self.define(&info.name, Some(bound));
        }
        let given = graph.inputs.len() == params.len();
        let meant = if given { self.body(graph) } else { Vec::new() };
        let mut outputs = Vec::new();
        let mut failure = None;
        for (info, bound) in graph.outputs.iter().zip(meant) {
            let made = bound.ok_or(Failure::Skip).and_then(|b| self.reify(b, info.ty.as_ref(), origin));
            match made {
                Ok((v, kind)) => {
                    self.frame.graph.add_output(&info.name, v);
                    outputs.push((self.frame.graph.ty(v).clone(), kind));
                }
                Err(e) => failure = failure.or(Some(e)),
            }
        }
        self.scopes.truncate(self.frame.base);
        let around = self.outer.pop().unwrap_or_default();
        let inner = std::mem::replace(&mut self.frame, around);
        if !given {
            let message = format!("a graph takes {} inputs, {} are given", graph.inputs.len(), params.len());
            return Err(Failure::invalid(message));
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        let known = &self.frame.graph.symbols;
        let outside = |d: &Expr| {
            let mut all = true;
            d.for_each_symbol(&mut |s| all &= known.contains_key(s));
            all
        };
        let outputs = outputs.into_iter().map(|(ty, kind)| Param {
            dtype: ty.dtype,
            dims: ty.dims.into_iter().map(|d| Some(d).filter(outside)).collect(),
            kind,
        });
        let outputs = outputs.collect();
        let captures = inner.captures.iter().map(|(_, o)| *o).collect();
        Ok(Region { graph: inner.graph, outputs, captures })
    }

    /// Begins a graph within the current one that is not the model's: its inputs, and what stands there for values of this one.
    pub(super) fn open_region(&mut self, params: &[TensorType], outside: &[ValueId]) -> (Vec<ValueId>, Vec<ValueId>) {
        let mut inner = Graph::new("body");
        inner.symbols = self.frame.graph.symbols.clone();
        let frame = Frame { graph: inner, base: self.scopes.len(), ..Frame::default() };
        let around = std::mem::replace(&mut self.frame, frame);
        self.outer.push(around);
        self.scopes.push(HashMap::new());
        let inputs = params.iter().map(|ty| self.frame.graph.add_input("", ty.clone())).collect();
        let level = self.outer.len();
        (inputs, outside.iter().map(|&v| self.capture_value(level, v)).collect())
    }

    /// Ends it: the graph with these outputs, and what it takes from outside.
    pub(super) fn close_region(&mut self, outputs: &[ValueId]) -> (Graph, Vec<ValueId>) {
        outputs.iter().for_each(|&v| self.frame.graph.add_output("", v));
        self.scopes.truncate(self.frame.base);
        let around = self.outer.pop().unwrap_or_default();
        let inner = std::mem::replace(&mut self.frame, around);
        (inner.graph, inner.captures.into_iter().map(|(_, outside)| outside).collect())
    }

    /// The value that a meaning is at run time, and its type where it is no tensor. `declared` is what the model says of it.
    pub(super) fn reify(
        &mut self,
        bound: Bound,
        declared: Option<&ValueType>,
        origin: &Origin,
    ) -> Result<(ValueId, Option<ValueType>), Failure> {
        let inner = match declared {
            Some(ValueType::Sequence(t) | ValueType::Optional(t)) => Some(&**t),
            _ => None,
        };
        match bound {
            Bound::Tensor(v) => Ok((v, None)),
            Bound::Value(v, kind) => Ok((v, Some(kind))),
            Bound::Sequence(all) => {
                let (values, element) = self.reify_all(all, inner, origin)?;
                Ok((self.sequence(&values, origin)?, Some(ValueType::Sequence(Box::new(element)))))
            }
            Bound::Optional(inside) => {
                let all = inside.into_iter().map(|b| *b).collect();
                let (values, element) = self.reify_all(all, inner, origin)?;
                Ok((self.sequence(&values, origin)?, Some(ValueType::Optional(Box::new(element)))))
            }
        }
    }

    /// Values of elements, and the type that all have.
    fn reify_all(
        &mut self,
        all: Vec<Bound>,
        declared: Option<&ValueType>,
        origin: &Origin,
    ) -> Result<(Vec<ValueId>, ValueType), Failure> {
        let mut values = Vec::with_capacity(all.len());
        let mut element: Option<ValueType> = None;
        for bound in all {
            let (v, kind) = self.reify(bound, declared, origin)?;
            let kind = kind.unwrap_or_else(|| tensor_kind(self.frame.graph.ty(v)));
            element = Some(match element {
                None => kind,
                Some(other) => join(&other, &kind)?,
            });
            values.push(v);
        }
        let element = element.or_else(|| declared.cloned());
        let unknown = || Failure::unsupported("the type of an empty sequence or optional is not known");
        Ok((values, element.ok_or_else(unknown)?))
    }

    fn sequence(&mut self, values: &[ValueId], origin: &Origin) -> Result<ValueId, Failure> {
        let refused = |e: kiln_ir::ops::OpError| Failure::unsupported(e.0);
        let host = Host::new("sequence", Attributes::new()).map_err(refused)?;
        self.frame.graph.add(host.into(), values, origin).map_err(refused)
    }
}

fn is_small(t: &Tensor) -> bool {
    t.len() <= SMALL && !matches!(t.dtype().class(), Class::Str | Class::Complex)
}

/// The type of a tensor as an element of a sequence: dims that are no numbers are not known.
pub(super) fn tensor_kind(ty: &TensorType) -> ValueType {
    let dim = |d: &Expr| d.as_size().map_or(Dim::Unknown, Dim::Fixed);
    ValueType::Tensor(model::TensorType { dtype: ty.dtype, shape: Some(ty.dims.iter().map(dim).collect()) })
}

/// The type that values of both types have.
pub(super) fn join(a: &ValueType, b: &ValueType) -> Result<ValueType, Failure> {
    let different = || Failure::invalid(format!("values of types {a} and {b} in one place"));
    match (a, b) {
        (ValueType::Tensor(x), ValueType::Tensor(y)) if x.dtype == y.dtype => {
            let shape = match (&x.shape, &y.shape) {
                (Some(p), Some(q)) if p.len() == q.len() => {
                    let dim = |(p, q): (&Dim, &Dim)| if p == q { p.clone() } else { Dim::Unknown };
                    Some(p.iter().zip(q).map(dim).collect())
                }
                _ => None,
            };
            Ok(ValueType::Tensor(model::TensorType { dtype: x.dtype, shape }))
        }
        (ValueType::Sequence(x), ValueType::Sequence(y)) => Ok(ValueType::Sequence(Box::new(join(x, y)?))),
        (ValueType::Optional(x), ValueType::Optional(y)) => Ok(ValueType::Optional(Box::new(join(x, y)?))),
        (ValueType::Optional(x), y) | (y, ValueType::Optional(x)) if join(x, y).is_ok() => {
            Err(Failure::unsupported(format!("a value of type {y} or an optional of it in one place")))
        }
        _ => Err(different()),
    }
}
