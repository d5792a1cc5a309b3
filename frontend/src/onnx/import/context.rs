//! What an importer of one node works with: the node's inputs and attributes, and ways to add core ops.
//!
//! Invariant: importers add to the graph only through a [`Context`], which computes what it can at once and names the node as the origin
//! of all that it adds.

use super::contents::{self, Known};
use super::region::{self, Param, Region};
use super::{Body, Failure, Importer, S};
use crate::onnx::model::{Graph, Node, ValueType};
use crate::onnx::problem::shown;
use kiln_ir::expr::Atom;
use kiln_ir::graph::ValueId;
use kiln_ir::interp::{self, EvalError};
use kiln_ir::ops::{self, Attributes, Host, Map, Meaning, Op, OpError};
use kiln_ir::tensor::element_count;
use kiln_ir::{Class, Constant, DType, Expr, Origin, Ranges, Tensor, TensorType};

/// Bytes of results that are computed at once; larger ones are left to the passes, which know what is worth its memory.
const FOLDED_BYTES: usize = 1 << 20;

/// Most 8-bit elements that are taken to be something else than weights.
const MOST_FOLDED_BYTES: usize = 64;

/// Elements that such a computation may touch.
const FOLDED_WORK: usize = 1 << 22;

/// What a name of the model means.
#[derive(Clone, Debug, PartialEq)]
pub enum Bound {
    /// A tensor.
    Tensor(ValueId),
    /// A sequence whose length is known.
    Sequence(Vec<Bound>),
    /// An optional of which it is known whether there is something in it.
    Optional(Option<Box<Bound>>),
    /// A sequence or optional of this type, of which nothing else is known before the model runs.
    Value(ValueId, ValueType),
}

/// What the outputs of a node mean, in order. Outputs of the model that are missing here are ones that Kiln does not compute.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outputs(pub Vec<Bound>);

impl From<ValueId> for Outputs {
    fn from(v: ValueId) -> Outputs {
        Outputs(vec![Bound::Tensor(v)])
    }
}
impl From<Vec<ValueId>> for Outputs {
    fn from(v: Vec<ValueId>) -> Outputs {
        Outputs(v.into_iter().map(Bound::Tensor).collect())
    }
}
impl From<Bound> for Outputs {
    fn from(v: Bound) -> Outputs {
        Outputs(vec![v])
    }
}

/// A node being imported. See the module documentation.
pub struct Context<'a> {
    pub(super) importer: &'a mut Importer,
    /// The node.
    pub node: &'a Node,
    inputs: Vec<Option<Bound>>,
    origin: Origin,
}

type Result<T> = std::result::Result<T, Failure>;

impl<'a> Context<'a> {
    /// Fails with [`Failure::Skip`] where an input could not be imported.
    pub(super) fn new(importer: &'a mut Importer, node: &'a Node) -> Result<Context<'a>> {
        let mut captured = node.subgraphs().flat_map(|g| g.captures.iter());
        if captured.any(|name| importer.find(name).is_none()) {
            return Err(Failure::Skip);
        }
        let find = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => importer.find(name).map(Some).ok_or(Failure::Skip),
        };
        let inputs = node.inputs.iter().map(find).collect::<Result<Vec<_>>>()?;
        Ok(Context { importer, node, inputs, origin: Origin::new(&node.name) })
    }

    /// Version of the operator set.
    pub fn opset(&self) -> i64 {
        self.node.opset
    }

    /// How many inputs are listed, absent ones at the end left out.
    pub fn input_count(&self) -> usize {
        self.inputs.iter().rposition(Option::is_some).map_or(0, |n| n + 1)
    }

    /// What input `i` means, whatever its kind; nothing where it is absent.
    pub fn bound(&self, i: usize) -> Option<&Bound> {
        self.inputs.get(i).and_then(Option::as_ref)
    }

    /// The tensor that input `i` is; nothing where it is absent.
    pub fn optional(&self, i: usize) -> Result<Option<ValueId>> {
        match self.bound(i) {
            None => Ok(None),
            Some(Bound::Tensor(v)) => Ok(Some(*v)),
            Some(Bound::Sequence(_) | Bound::Optional(_) | Bound::Value(..)) => {
                Err(Failure::invalid(format!("input {i} is a sequence or an optional, not a tensor")))
            }
        }
    }

    /// The tensor that input `i` is.
    pub fn input(&self, i: usize) -> Result<ValueId> {
        self.optional(i)?.ok_or_else(|| Failure::invalid(format!("input {i} is missing")))
    }

    /// All inputs, of which none may be absent.
    pub fn all_inputs(&self) -> Result<Vec<ValueId>> {
        let inputs = (0..self.node.inputs.len()).map(|i| self.input(i)).collect::<Result<Vec<_>>>()?;
        if inputs.is_empty() { Err(Failure::invalid("there is no input")) } else { Ok(inputs) }
    }

    /// Whether output `i` is wanted.
    pub fn wants(&self, i: usize) -> bool {
        self.node.output(i).is_some()
    }

    /// The type of a value.
    pub fn ty(&self, v: ValueId) -> &TensorType {
        self.importer.frame.graph.ty(v)
    }

    /// The element type of a value.
    pub fn dtype(&self, v: ValueId) -> DType {
        self.ty(v).dtype
    }

    /// The dims of a value.
    pub fn dims(&self, v: ValueId) -> Vec<Expr> {
        self.ty(v).dims.clone()
    }

    /// The number of axes of a value.
    pub fn rank(&self, v: ValueId) -> usize {
        self.ty(v).rank()
    }

    /// Bounds of the graph's symbols.
    pub fn ranges(&self) -> &Ranges {
        &self.importer.frame.graph.symbols
    }

    /// The dims of a value as numbers.
    pub fn static_dims(&self, v: ValueId) -> Result<Vec<usize>> {
        let ty = self.ty(v);
        ty.shape().ok_or_else(|| {
            Failure::unsupported(format!(
                "the dims [{}] must be known; bind their symbols",
                kiln_ir::text::Commas(&ty.dims)
            ))
        })
    }

    /// The constant that a value is, if it is one.
    pub fn constant_of(&self, v: ValueId) -> Option<&Tensor> {
        self.importer.constant_of(v)
    }

    /// The constant that input `i` must be; `what` names the input.
    pub fn constant_input(&self, i: usize, what: &str) -> Result<&Tensor> {
        let v = self.input(i)?;
        self.constant_of(v).ok_or_else(|| self.computed(what, v))
    }

    /// The contents of an integer tensor with at most one axis as expressions over dims, where they are known.
    pub fn contents(&self, v: ValueId) -> Option<Vec<Expr>> {
        if let Some(known) = self.importer.frame.contents.get(&v) {
            return Some(known.clone());
        }
        let t = self.constant_of(v).filter(|t| t.shape().len() <= 1 && t.len() <= contents::MAX)?;
        Some(t.to_i64()?.into_iter().map(Expr::from).collect())
    }

    /// The failure for an operand that must be known and is not; `what` names it.
    pub fn computed(&self, what: &str, v: ValueId) -> Failure {
        Failure::Computed(format!("`{what}` of {}", shown(&self.node.op_type)), self.importer.sources(v))
    }

    /// The integers that input `i` must hold as expressions over dims; `what` names the input.
    pub fn exprs(&self, i: usize, what: &str) -> Result<Vec<Expr>> {
        let v = self.input(i)?;
        let ty = self.ty(v);
        if !ty.dtype.is_int() || ty.rank() > 1 {
            return Err(Failure::invalid(format!("`{what}` is {ty}, not a list of integers")));
        }
        self.contents(v).ok_or_else(|| self.computed(what, v))
    }

    /// The integers that input `i` must hold; `what` names the input.
    pub fn ints(&self, i: usize, what: &str) -> Result<Vec<i64>> {
        let exprs = self.exprs(i, what)?;
        let number = |e: &Expr| {
            e.as_const().ok_or_else(|| Failure::unsupported(format!("`{what}` depends on `{e}`; bind its symbols")))
        };
        exprs.iter().map(number).collect()
    }

    /// [`Context::ints`] of an input that may be absent.
    pub fn optional_ints(&self, i: usize, what: &str) -> Result<Option<Vec<i64>>> {
        if self.bound(i).is_none() { Ok(None) } else { self.ints(i, what).map(Some) }
    }

    /// The single number that input `i` must hold.
    pub fn number(&self, i: usize, what: &str) -> Result<Constant> {
        let t = self.constant_input(i, what)?;
        if t.len() != 1 {
            return Err(Failure::invalid(format!("`{what}` has {} elements, not 1", t.len())));
        }
        Constant::load(t.dtype(), t.bytes(), 0)
            .ok_or_else(|| Failure::invalid(format!("`{what}` is of type {}, not a number", t.dtype())))
    }

    /// An axis from `-rank..rank` as one from `0..rank`.
    pub fn axis(&self, axis: i64, rank: usize) -> Result<usize> {
        let r = i64::try_from(rank).unwrap_or(i64::MAX);
        let from_start = if axis < 0 { axis.saturating_add(r) } else { axis };
        match usize::try_from(from_start) {
            Ok(a) if a < rank => Ok(a),
            _ => Err(Failure::invalid(format!("axis {axis} is outside of a tensor with {rank} axes"))),
        }
    }

    /// Distinct axes, in the order given.
    pub fn axes(&self, axes: &[i64], rank: usize) -> Result<Vec<usize>> {
        let mut found: Vec<usize> = Vec::with_capacity(axes.len());
        for &a in axes {
            let axis = self.axis(a, rank)?;
            if found.contains(&axis) {
                return Err(Failure::invalid(format!("axis {a} occurs twice in {axes:?}")));
            }
            found.push(axis);
        }
        Ok(found)
    }

    /// Attribute `axis`, or `default`.
    pub fn axis_attribute(&self, default: i64, rank: usize) -> Result<usize> {
        self.axis(self.node.int_or("axis", default)?, rank)
    }

    /// An attribute of integers that are at least `least`, `count` of them; nothing where it is absent.
    pub fn sizes(&self, name: &str, count: usize, least: usize) -> Result<Option<Vec<usize>>> {
        let Some(ints) = self.node.ints_opt(name)? else { return Ok(None) };
        if ints.len() != count {
            return Err(self.node.attribute_value(name, format!("has {} entries, not {count}", ints.len())).into());
        }
        let size = |&i: &i64| usize::try_from(i).ok().filter(|&n| n >= least && n <= 1 << 31);
        ints.iter()
            .map(|i| size(i).ok_or_else(|| self.node.attribute_value(name, format!("{i} is out of range")).into()))
            .collect::<Result<Vec<_>>>()
            .map(Some)
    }

    /// Adds a constant.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.importer.constant(tensor)
    }

    /// Adds a constant without axes.
    pub fn scalar(&mut self, constant: Constant) -> Result<ValueId> {
        let mut bytes = Vec::new();
        constant.store(&mut bytes);
        Ok(self.constant(Tensor::new(constant.dtype, vec![], bytes)?))
    }

    /// Adds a float (or converted integer) without axes.
    pub fn float(&mut self, dtype: DType, value: f64) -> Result<ValueId> {
        self.scalar(Constant::float(dtype, value))
    }

    /// Adds an i64 vector of constants.
    pub fn int_vector(&mut self, values: &[i64]) -> Result<ValueId> {
        Ok(self.constant(Tensor::from_i64(&[values.len()], values)?))
    }

    /// Adds an i64 tensor with at most one axis that holds dims: a constant where they are known.
    pub fn dims_tensor(&mut self, exprs: &[Expr], scalar: bool) -> Result<ValueId> {
        let shape: Vec<usize> = if scalar { vec![] } else { vec![exprs.len()] };
        if let Some(known) = exprs.iter().map(Expr::as_const).collect::<Option<Vec<i64>>>() {
            return Ok(self.constant(Tensor::from_i64(&shape, &known)?));
        }
        // Position `e` of 0, 1, ..., e is the only core expression for the number `e`.
        let mut parts = Vec::with_capacity(exprs.len());
        for e in exprs {
            let count = self.add(ops::Iota { dims: vec![e.add(&Expr::from(1i64))], axis: 0 }, &[])?;
            let last = ops::Slice { starts: vec![e.clone()], steps: vec![1], dims: vec![Expr::from(1i64)] };
            parts.push(self.add(last, &[count])?);
        }
        let whole = if parts.len() == 1 { parts[0] } else { self.add(ops::Concat { axis: 0 }, &parts)? };
        let whole = self.reshape(whole, shape.into_iter().map(Expr::from).collect())?;
        self.importer.frame.contents.insert(whole, exprs.to_vec());
        Ok(whole)
    }

    /// Adds a core op; constants are computed at once where that is cheap.
    pub fn add_all(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let op = op.into();
        let types: Vec<&TensorType> = inputs.iter().map(|&v| self.importer.frame.graph.ty(v)).collect();
        let outs = op.infer(&types).map_err(|e| self.refused(e, inputs))?;
        for ty in &outs {
            if let Some(shape) = ty.shape() {
                element_count(&shape, ty.dtype.size().max(1))?;
            }
        }
        let followed = if let [out] = outs.as_slice() { self.follow(&op, inputs, out) } else { None };
        if let ([out], Some(exprs)) = (outs.as_slice(), &followed)
            && let Some(known) = exprs.iter().map(Expr::as_const).collect::<Option<Vec<i64>>>()
        {
            let mut bytes = Vec::new();
            known.iter().for_each(|&v| Constant::int(out.dtype, v).store(&mut bytes));
            return Ok(vec![self.constant(Tensor::new(out.dtype, out.shape().unwrap_or_default(), bytes)?)]);
        }
        if let Some(tensors) = self.fold(&op, inputs, &outs)? {
            return Ok(tensors.into_iter().map(|t| self.importer.constant(t)).collect());
        }
        let node = self.importer.frame.graph.add_node(op, inputs, &self.origin);
        let node = node.map_err(|e| self.refused(e, inputs))?;
        let made = self.importer.frame.graph.node(node).outputs.clone();
        if let (Some(exprs), [v]) = (followed, made.as_slice()) {
            self.importer.frame.contents.insert(*v, exprs);
        }
        Ok(made)
    }

    /// [`Context::add_all`] of an op with one result.
    pub fn add(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId> {
        let op = op.into();
        let name = op.name();
        let made = self.add_all(op, inputs)?;
        made.first().copied().ok_or_else(|| Failure::unsupported(format!("`{name}` has no result")))
    }

    /// Adds a host op.
    pub fn host(&mut self, name: &str, attributes: Attributes, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let host = Host::new(name, attributes).map_err(|e| Failure::unsupported(e.0))?;
        self.add_all(host, inputs)
    }

    /// The results, where all operands are constants and there is little work in it.
    fn fold(&self, op: &Op, inputs: &[ValueId], outs: &[TensorType]) -> Result<Option<Vec<Tensor>>> {
        let Some(tensors) = inputs.iter().map(|&v| self.constant_of(v).cloned()).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        // Sequences are no constants, and a graph of its own may never end.
        let never = outs.iter().any(|ty| ty.dtype == DType::Seq) || matches!(op, Op::Host(h) if h.is_region());
        // Weights of 8 bits stay what they are for the passes: products of integers are made of them.
        let weights = matches!(op, Op::Map(_))
            && tensors
                .first()
                .is_some_and(|t| matches!(t.dtype(), DType::U8 | DType::I8) && t.len() > MOST_FOLDED_BYTES);
        if never || weights {
            return Ok(None);
        }
        let small = |ty: &TensorType| ty.bytes().as_size().is_some_and(|n| n <= FOLDED_BYTES);
        // A reshape copies nothing, whatever its size.
        let free = matches!(op, Op::Reshape(_));
        if !free && (!outs.iter().all(small) || work(op, &tensors).is_none_or(|n| n > FOLDED_WORK)) {
            return Ok(None);
        }
        match interp::eval_op(op, &tensors) {
            Ok(results) => Ok(Some(results)),
            Err(e @ EvalError::Index { .. }) => Err(Failure::Invalid(e.to_string())),
            // What the interpreter does not do is left to whoever compiles the node.
            Err(_) => Ok(None),
        }
    }

    fn follow(&self, op: &Op, inputs: &[ValueId], out: &TensorType) -> Option<Vec<Expr>> {
        if inputs.is_empty() || out.rank() > 1 || !(out.dtype.is_int() || out.dtype == DType::Bool) {
            return None;
        }
        let known = |&v: &ValueId| Some(Known { ty: self.ty(v).clone(), contents: self.contents(v)? });
        let known = inputs.iter().map(known).collect::<Option<Vec<_>>>()?;
        contents::propagate(op, &known, out, self.ranges())
    }

    /// What a core op's refusal means for the model.
    fn refused(&self, e: OpError, inputs: &[ValueId]) -> Failure {
        let types = || inputs.iter().map(|&v| self.ty(v));
        if types().any(|t| matches!(t.dtype.class(), Class::Complex | Class::Str)) {
            return Failure::unsupported(format!("{}: complex numbers and strings are not supported here", e.0));
        }
        if types().any(|t| t.shape().is_none()) {
            return Failure::unsupported(format!("{}; with symbols bound to numbers it may fit", e.0));
        }
        Failure::Invalid(e.0)
    }

    /// Adds an elementwise op with broadcasting: `f` gets the operands and returns the result.
    pub fn map(&mut self, inputs: &[ValueId], f: impl FnOnce(&mut Body, &[S]) -> S) -> Result<ValueId> {
        let mut body = Body::default();
        let args: Vec<S> = inputs.iter().enumerate().map(|(n, &v)| body.arg(n, self.dtype(v))).collect();
        let result = f(&mut body, &args);
        let code = body.finish(result).map_err(|e| self.refused(e.into(), inputs))?;
        self.imply(inputs);
        if let Some(dims) = self.broadcast_later(inputs) {
            let dims = self.settled(&dims);
            let ty = TensorType::new(code.result_type(), dims);
            let a = Attributes::new().with("body", &code).with("results", vec![ty]);
            return Ok(self.host("map_at", a, inputs)?[0]);
        }
        let inputs = self.agree(inputs)?;
        self.add(Map { body: code }, &inputs)
    }

    /// The operands of a broadcast with the same dims where they meet: exporters write models in which two free dims must be equal
    /// that no arithmetic shows to be. One is relabelled as the other, which is checked when the dims are known.
    fn agree(&mut self, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        self.relabelled(inputs, None)
    }

    /// The operands with the same dims along all axes but one, as far as free dims leave that open: as for a broadcast, but
    /// extents of 1 do not repeat.
    pub fn agree_except(&mut self, inputs: &[ValueId], axis: usize) -> Result<Vec<ValueId>> {
        self.relabelled(inputs, Some(axis))
    }

    fn relabelled(&mut self, inputs: &[ValueId], except: Option<usize>) -> Result<Vec<ValueId>> {
        let repeats = |d: &Expr| except.is_none() && d.as_const() == Some(1);
        let shapes: Vec<Vec<Expr>> = inputs.iter().map(|&v| self.dims(v)).collect();
        let rank = shapes.iter().map(Vec::len).max().unwrap_or(0);
        // From the last axis on: the dim that says most, a number or else the shortest expression.
        let mut common: Vec<Option<Expr>> = vec![None; rank];
        let length = |e: &Expr| (e.as_const().is_none(), e.to_string().len());
        for shape in &shapes {
            for (d, slot) in shape.iter().rev().zip(&mut common) {
                if !repeats(d) && slot.as_ref().is_none_or(|s| length(d) < length(s)) {
                    *slot = Some(d.clone());
                }
            }
        }
        let mut agreed = Vec::with_capacity(inputs.len());
        for (&v, shape) in inputs.iter().zip(shapes) {
            let label = |n: usize, d: &Expr| {
                let other = common.get(shape.len() - 1 - n).and_then(Option::as_ref).filter(|_| except != Some(n));
                other.filter(|o| !repeats(d) && d.sub(o).as_const().is_none()).unwrap_or(d).clone()
            };
            let dims: Vec<Expr> = shape.iter().enumerate().map(|(n, d)| label(n, d)).collect();
            agreed.push(self.reshape(v, dims)?);
        }
        Ok(agreed)
    }

    /// The dims of an elementwise result where it depends on extents that the data decides how the operands broadcast;
    /// nothing for a dim that only the data says.
    fn broadcast_later(&self, inputs: &[ValueId]) -> Option<Vec<Option<Expr>>> {
        if self.importer.decided.is_empty() {
            return None;
        }
        let decided = |d: &Expr| {
            let mut found = false;
            d.for_each_symbol(&mut |s| found |= self.importer.decided.contains(s));
            found
        };
        let rank = inputs.iter().map(|&v| self.rank(v)).max()?;
        let mut open = false;
        let mut dims = vec![Some(Expr::from(1i64)); rank];
        for &v in inputs {
            let own = self.dims(v);
            let skip = rank - own.len();
            for (slot, d) in dims.iter_mut().skip(skip).zip(own) {
                match slot.clone() {
                    _ if d.as_const() == Some(1) => {}
                    Some(s) if s.as_const() == Some(1) => *slot = Some(d),
                    Some(s) if s == d => {}
                    // One of them is 1, or they are equal: a number that is not 1 is what they come to.
                    Some(s) if decided(&s) || decided(&d) => {
                        open = true;
                        *slot =
                            Some(s).filter(|s| s.as_const().is_some()).or(Some(d).filter(|d| d.as_const().is_some()));
                    }
                    Some(_) => return None,
                    None => *slot = Some(d).filter(|d| d.as_const().is_some()),
                }
            }
        }
        open.then_some(dims)
    }

    /// Notes what broadcasting implies: `min(512, n)` against `n` fits only where `n` is at most 512.
    fn imply(&mut self, inputs: &[ValueId]) {
        for (i, &a) in inputs.iter().enumerate() {
            for &b in inputs.iter().skip(i + 1) {
                let pairs: Vec<(Expr, Expr)> = self
                    .dims(a)
                    .into_iter()
                    .rev()
                    .zip(self.dims(b).into_iter().rev())
                    .filter(|(x, y)| x != y)
                    .collect();
                for (x, y) in pairs {
                    for (cut, whole) in [(&x, &y), (&y, &x)] {
                        let bounds = cut.terms().next().map(|(atoms, _)| atoms);
                        let Some([Atom::Min(m, n)]) = bounds else { continue };
                        let most = m.as_const().or_else(|| n.as_const()).filter(|&c| c > 1);
                        if let (Some(most), Some(symbol)) = (most, whole.as_symbol())
                            && *cut == whole.least(&Expr::from(most))
                        {
                            let known = self.importer.implied.entry(symbol.clone()).or_insert(most);
                            *known = most.min(*known);
                        }
                    }
                }
            }
        }
    }

    /// [`Context::map`] of floats: types narrower than f32 are computed in f32 and rounded once, to the type of operand 0.
    pub fn float_map(&mut self, inputs: &[ValueId], f: impl FnOnce(&mut Body, &[S]) -> S) -> Result<ValueId> {
        if let Some(&v) = inputs.iter().find(|&&v| !self.dtype(v).is_float()) {
            return Err(Failure::invalid(format!("an operand is {}, not of floats", self.ty(v))));
        }
        self.map(inputs, |b, args| {
            let Some(&first) = args.first() else { return f(b, args) };
            let dtype = b.dtype(first);
            let wide: Vec<S> = args
                .iter()
                .map(|&a| if b.dtype(a).class() == Class::Float { b.cast(DType::F32, a) } else { a })
                .collect();
            let result = f(b, &wide);
            b.cast(dtype, result)
        })
    }

    /// The value converted to a type.
    pub fn cast(&mut self, v: ValueId, to: DType) -> Result<ValueId> {
        if self.dtype(v) == to { Ok(v) } else { self.map(&[v], |b, a| b.cast(to, a[0])) }
    }

    /// The value under other dims.
    pub fn reshape(&mut self, v: ValueId, dims: Vec<Expr>) -> Result<ValueId> {
        if self.ty(v).dims == dims { Ok(v) } else { self.add(ops::Reshape { dims }, &[v]) }
    }

    /// The value with its axes in another order.
    pub fn transpose(&mut self, v: ValueId, perm: &[usize]) -> Result<ValueId> {
        if perm.len() == self.rank(v) && perm.iter().enumerate().all(|(n, &p)| n == p) {
            return Ok(v);
        }
        self.add(ops::Transpose { perm: perm.to_vec() }, &[v])
    }

    /// The value repeated to dims that it broadcasts to.
    pub fn broadcast(&mut self, v: ValueId, dims: Vec<Expr>) -> Result<ValueId> {
        if self.ty(v).dims == dims { Ok(v) } else { self.add(ops::Broadcast { dims }, &[v]) }
    }

    /// A vector along one axis of a tensor: reshaped to `[n, 1, ...]`, so that it broadcasts to tensors with `rank` axes.
    pub fn along(&mut self, v: ValueId, axis: usize, rank: usize) -> Result<ValueId> {
        let dims = self.dims(v);
        let [n] = dims.as_slice() else {
            return Err(Failure::invalid(format!("a vector was expected, not {}", self.ty(v))));
        };
        let mut dims = vec![n.clone()];
        dims.resize(rank.saturating_sub(axis).max(1), Expr::from(1i64));
        self.reshape(v, dims)
    }

    /// Whether the node is in a graph within the graph, where what changes from step to step cannot be known.
    pub fn is_inside(&self) -> bool {
        !self.importer.outer.is_empty()
    }

    /// A dim that the data decides.
    pub fn fresh(&mut self) -> Expr {
        self.importer.fresh()
    }

    /// The dims, with new symbols for those that the data decides.
    pub fn settled(&mut self, dims: &[Option<Expr>]) -> Vec<Expr> {
        dims.iter().map(|d| d.clone().unwrap_or_else(|| self.importer.fresh())).collect()
    }

    /// The value that a meaning is at run time, and its type where it is no tensor.
    pub fn reify(&mut self, bound: Bound) -> Result<(ValueId, Option<ValueType>)> {
        let origin = self.origin.clone();
        self.importer.reify(bound, None, &origin)
    }

    /// Imports a subgraph as a graph within the graph, with inputs of these types.
    pub fn region(&mut self, graph: &Graph, params: &[Param]) -> Result<Region> {
        let origin = self.origin.clone();
        self.importer.region(graph, params, &origin)
    }

    /// [`Context::region`], or why there is none with what is known now.
    pub fn region_or_why(
        &mut self,
        graph: &Graph,
        params: &[Param],
    ) -> std::result::Result<Region, super::ImportErrors> {
        let implied = self.importer.implied.clone();
        let before = std::mem::take(&mut self.importer.errors);
        let made = self.region(graph, params);
        let mut errors = std::mem::replace(&mut self.importer.errors, before);
        match made {
            Ok(region) if errors.is_empty() => Ok(region),
            Ok(_) => Err(errors),
            Err(failure) => {
                errors.push(self.node, failure);
                Err(errors)
            }
        }
        .inspect_err(|_| self.importer.implied = implied)
    }

    /// A graph within the graph that `f` makes: it gets the inputs, which have these types, and what stands for values of this graph,
    /// and returns the outputs. Also what the graph takes from outside, in the order of its inputs behind the params.
    pub fn built_region(
        &mut self,
        params: &[TensorType],
        outside: &[ValueId],
        f: impl FnOnce(&mut Self, &[ValueId], &[ValueId]) -> Result<Vec<ValueId>>,
    ) -> Result<(kiln_ir::Graph, Vec<ValueId>)> {
        let (inputs, outside) = self.importer.open_region(params, outside);
        let outputs = f(self, &inputs, &outside);
        let (graph, captures) = self.importer.close_region(outputs.as_deref().unwrap_or_default());
        outputs.map(|_| (graph, captures))
    }

    /// [`Context::region`] where the result may not be wanted: with nothing, what went wrong is forgotten.
    pub fn attempt<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<Option<T>>) -> Result<Option<T>> {
        let (errors, implied) = (self.importer.errors.clone(), self.importer.implied.clone());
        let made = f(self)?;
        if made.is_none() {
            (self.importer.errors, self.importer.implied) = (errors, implied);
        }
        Ok(made)
    }

    /// The type that a tensor has as an element of a sequence.
    pub fn kind(&self, v: ValueId) -> ValueType {
        region::tensor_kind(self.ty(v))
    }

    /// The type that values of both types have.
    pub fn join(&self, a: &ValueType, b: &ValueType) -> Result<ValueType> {
        region::join(a, b)
    }

    /// Imports a subgraph in place, with its inputs bound to values.
    pub fn inline(&mut self, graph: &Graph, inputs: Vec<Bound>) -> Result<Outputs> {
        let outputs = self.importer.subgraph(graph, inputs);
        // What is missing has been reported.
        outputs.into_iter().collect::<Option<Vec<_>>>().map(Outputs).ok_or(Failure::Skip)
    }
}

/// Elements that an evaluation touches; nothing where a size is not a number.
fn work(op: &Op, inputs: &[Tensor]) -> Option<usize> {
    let types: Vec<TensorType> = inputs.iter().map(|t| TensorType::of(t.dtype(), t.shape())).collect();
    let all: usize = inputs.iter().map(Tensor::len).fold(0, usize::saturating_add);
    match op.meaning(&types.iter().collect::<Vec<_>>()).ok()? {
        Meaning::Host => Some(all),
        Meaning::Nests(nests) => nests.iter().try_fold(0usize, |sum, nest| {
            let extents = nest.dims.iter().chain(&nest.folds);
            let count = extents.map(Expr::as_size).try_fold(1usize, |n, d| Some(n.saturating_mul(d?)))?;
            Some(sum.saturating_add(count))
        }),
    }
}
