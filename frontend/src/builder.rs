//! Graphs written in Rust: the start of Kiln's own language for models.
//!
//! Invariant: a [`Builder`] makes the same [`Graph`] that a model reader makes, op by op through [`Graph::add`], so that whatever it
//! finishes is well typed; names of inputs and outputs are distinct.
//!
//! A multilayer perceptron, and its result from the interpreter:
//!
//! ```
//! use kiln_frontend::builder::Builder;
//! use kiln_ir::interp::{self, Options};
//! use kiln_ir::{DType, Tensor};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let g = Builder::new("mlp");
//! let batch = g.symbol("batch", 1..=512)?;
//! let x = g.input("x", DType::F32, [batch, 3.into()])?;
//! let w1 = g.constant(Tensor::from_f32(&[3, 2], &[0.5, -1.0, 0.25, 1.0, -0.75, 0.5])?);
//! let b1 = g.constant(Tensor::from_f32(&[2], &[0.1, -0.1])?);
//! let w2 = g.constant(Tensor::from_f32(&[2, 2], &[1.0, -1.0, 0.5, 2.0])?);
//! let b2 = g.constant(Tensor::from_f32(&[2], &[0.0, 0.0])?);
//! let h = g.linear(x, w1, b1)?.gelu()?;
//! let y = g.linear(h, w2, b2)?.softmax(-1)?;
//! g.output("y", y)?;
//! let graph = g.finish()?;
//!
//! let input = Tensor::from_f32(&[1, 3], &[1.0, 2.0, 3.0])?;
//! let y = interp::eval_graph(&graph, &[input], &Options::default())?;
//! let row = y[0].to_f32().unwrap();
//! assert_eq!(y[0].shape(), &[1, 2]);
//! assert!((row[0] + row[1] - 1.0).abs() < 1e-6 && row[1] > row[0]);
//! # Ok(())
//! # }
//! ```

pub use crate::body::{Body, S};
use kiln_ir::graph::{GraphError, ValueId};
use kiln_ir::ops::{self, Contract, Map, NormKind, Op, OpError};
use kiln_ir::{BinaryOp, Constant, DType, Expr, Graph, Origin, Symbol, Tensor, TensorType, UnaryOp};
use std::cell::RefCell;
use std::fmt;
use std::ops::RangeInclusive;

mod values;

/// A graph cannot be built as asked.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BuildError {
    /// An op refuses its operands.
    #[error("{call}: {error}")]
    Op {
        /// The call, such as `matmul_3`.
        call: String,
        /// What is wrong.
        error: OpError,
    },
    /// An axis is outside of the operand.
    #[error("{call}: axis {axis} is outside of a tensor with {rank} axes")]
    Axis {
        /// The call.
        call: String,
        /// The axis, as given.
        axis: i64,
        /// Number of axes of the operand.
        rank: usize,
    },
    /// The name of a symbol, input or output is used twice.
    #[error("the name `{0}` is used twice")]
    Name(String),
    /// The bounds of a symbol are empty or negative.
    #[error("the symbol `{0}` cannot have these bounds")]
    Range(String),
    /// A value of another builder was used.
    #[error("{0}: an operand belongs to another builder")]
    Foreign(String),
    /// The finished graph is not well formed.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

/// A result that may be a [`BuildError`].
pub type Result<T> = std::result::Result<T, BuildError>;

/// A graph being built. See the module documentation.
#[derive(Debug)]
pub struct Builder {
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    graph: Graph,
    calls: usize,
}

/// A tensor of a graph being built.
#[derive(Clone, Copy)]
pub struct Value<'g> {
    builder: &'g Builder,
    id: ValueId,
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.id, self.ty())
    }
}

impl Builder {
    /// A builder of an empty graph.
    pub fn new(name: &str) -> Builder {
        Builder { state: RefCell::new(State { graph: Graph::new(name), calls: 0 }) }
    }

    /// A dim that is known when the model runs, with its least and greatest value.
    ///
    /// # Errors
    /// The name is taken, or the bounds are empty or negative.
    pub fn symbol(&self, name: &str, range: RangeInclusive<i64>) -> Result<Expr> {
        let symbol = Symbol::new(name);
        let mut state = self.state.borrow_mut();
        if state.graph.symbols.contains_key(&symbol) {
            return Err(BuildError::Name(name.into()));
        }
        if range.is_empty() || *range.start() < 0 {
            return Err(BuildError::Range(name.into()));
        }
        state.graph.symbols.insert(symbol.clone(), range.into_inner());
        Ok(Expr::from(symbol))
    }

    /// An input of the model.
    ///
    /// # Errors
    /// The name is taken.
    pub fn input(&self, name: &str, dtype: DType, dims: impl IntoIterator<Item = Expr>) -> Result<Value<'_>> {
        let mut state = self.state.borrow_mut();
        if state.graph.inputs.iter().any(|&v| state.graph.value(v).name.as_deref() == Some(name)) {
            return Err(BuildError::Name(name.into()));
        }
        let id = state.graph.add_input(name, TensorType::new(dtype, dims.into_iter().collect()));
        Ok(Value { builder: self, id })
    }

    /// A constant, such as weights.
    pub fn constant(&self, tensor: Tensor) -> Value<'_> {
        Value { builder: self, id: self.state.borrow_mut().graph.add_constant(tensor) }
    }

    /// A constant that keeps the name that it has in a checkpoint.
    pub fn named_constant(&self, name: &str, tensor: Tensor) -> Value<'_> {
        let value = self.constant(tensor);
        self.state.borrow_mut().graph.set_name(value.id, name);
        value
    }

    /// Names an output of the model.
    ///
    /// # Errors
    /// The name is taken, or the value belongs to another builder.
    pub fn output(&self, name: &str, value: Value<'_>) -> Result<()> {
        self.check(&[value], "output")?;
        let mut state = self.state.borrow_mut();
        if state.graph.outputs.iter().any(|(n, _)| &**n == name) {
            return Err(BuildError::Name(name.into()));
        }
        state.graph.add_output(name, value.id);
        Ok(())
    }

    /// The graph, without what no output depends on.
    ///
    /// # Errors
    /// The graph is not well formed.
    pub fn finish(self) -> Result<Graph> {
        let graph = self.state.into_inner().graph.compact()?;
        match graph.verify().into_iter().next() {
            Some(error) => Err(error.into()),
            None => Ok(graph),
        }
    }

    /// `x * w + b` over the last axis of `x`: `[.., k]`, `[k, n]` and `[n]` give `[.., n]`.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn linear(&self, x: Value<'_>, w: Value<'_>, b: Value<'_>) -> Result<Value<'_>> {
        self.check(&[x, w, b], "linear")?;
        let product = Value { builder: self, id: x.id }.matmul(Value { builder: self, id: w.id })?;
        product.add(Value { builder: self, id: b.id })
    }

    /// Tensors one after another along an axis; a negative one counts from the end.
    ///
    /// # Errors
    /// There is no operand, or their other dims or types differ.
    pub fn concat(&self, parts: &[Value<'_>], axis: i64) -> Result<Value<'_>> {
        let rank = parts.first().map_or(0, |v| v.rank());
        let axis = self.axis("concat", axis, rank)?;
        self.node("concat", ops::Concat { axis }, parts)
    }

    fn check(&self, values: &[Value<'_>], call: &str) -> Result<()> {
        match values.iter().all(|v| std::ptr::eq(v.builder, self)) {
            true => Ok(()),
            false => Err(BuildError::Foreign(call.into())),
        }
    }

    fn axis(&self, call: &str, axis: i64, rank: usize) -> Result<usize> {
        let from_start = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
        let found = usize::try_from(from_start).ok().filter(|&a| a < rank);
        found.ok_or_else(|| BuildError::Axis { call: call.into(), axis, rank })
    }

    fn node(&self, call: &str, op: impl Into<Op>, inputs: &[Value<'_>]) -> Result<Value<'_>> {
        self.check(inputs, call)?;
        let ids: Vec<ValueId> = inputs.iter().map(|v| v.id).collect();
        let mut state = self.state.borrow_mut();
        let call = format!("{call}_{}", state.calls);
        state.calls += 1;
        let made = state.graph.add(op.into(), &ids, &Origin::new(&call));
        made.map(|id| Value { builder: self, id }).map_err(|error| BuildError::Op { call, error })
    }
}

macro_rules! elementwise {
    ($($(#[$doc:meta])* $name:ident = $op:ident),* $(,)?) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// The operands' types do not fit.
        pub fn $name(self, other: Value<'g>) -> Result<Value<'g>> {
            self.map(stringify!($name), &[other], |b, a| b.binary(BinaryOp::$op, a[0], a[1]))
        }
    )*};
}

macro_rules! unary {
    ($($name:ident = $op:ident),* $(,)?) => {$(
        #[doc = concat!("[`UnaryOp::", stringify!($op), "`] of every element.")]
        ///
        /// # Errors
        /// The operation is not defined on the element type.
        pub fn $name(self) -> Result<Value<'g>> {
            self.map(stringify!($name), &[], |b, a| b.unary(UnaryOp::$op, a[0]))
        }
    )*};
}

// `add` and its like return a result, as the operators' traits cannot.
#[allow(clippy::should_implement_trait)]
impl<'g> Value<'g> {
    /// The tensor's type.
    pub fn ty(self) -> TensorType {
        self.builder.state.borrow().graph.ty(self.id).clone()
    }

    /// The number of axes.
    pub fn rank(self) -> usize {
        self.ty().rank()
    }

    /// Scalar code applied elementwise to this tensor and others, with broadcasting. `call` names it in errors.
    ///
    /// # Errors
    /// The operands' dims do not broadcast, or the code is not well typed.
    pub fn map(self, call: &str, others: &[Value<'g>], f: impl FnOnce(&mut Body, &[S]) -> S) -> Result<Value<'g>> {
        let inputs: Vec<Value<'g>> = std::iter::once(self).chain(others.iter().copied()).collect();
        self.builder.check(&inputs, call)?;
        let mut body = Body::default();
        let args: Vec<S> = inputs.iter().enumerate().map(|(n, v)| body.arg(n, v.ty().dtype)).collect();
        let result = f(&mut body, &args);
        let code = body.finish(result).map_err(|e| BuildError::Op { call: call.into(), error: e.into() })?;
        self.builder.node(call, Map { body: code }, &inputs)
    }

    elementwise! {
        /// The sum, with broadcasting.
        add = Add,
        /// The difference, with broadcasting.
        sub = Sub,
        /// The product of elements, with broadcasting.
        mul = Mul,
        /// The quotient, with broadcasting.
        div = Div,
        /// The greater, with broadcasting.
        max = Max,
        /// The lesser, with broadcasting.
        min = Min,
        /// The power, with broadcasting.
        pow = Pow,
    }

    unary! { neg = Neg, abs = Abs, exp = Exp, log = Log, sqrt = Sqrt, tanh = Tanh, sigmoid = Sigmoid, erf = Erf }

    /// Every element times a number.
    ///
    /// # Errors
    /// The elements are no numbers.
    pub fn scale(self, by: f64) -> Result<Value<'g>> {
        self.map("scale", &[], |b, a| {
            let by = b.lit(a[0], by);
            b.mul(a[0], by)
        })
    }

    /// `max(x, 0)`.
    ///
    /// # Errors
    /// The elements are no numbers.
    pub fn relu(self) -> Result<Value<'g>> {
        self.map("relu", &[], |b, a| {
            let zero = b.int(a[0], 0);
            b.max(a[0], zero)
        })
    }

    /// `x / 2 * (1 + erf(x / sqrt(2)))` (Hendrycks, Gimpel 2016).
    ///
    /// # Errors
    /// The elements are not floats.
    pub fn gelu(self) -> Result<Value<'g>> {
        self.map("gelu", &[], |b, a| b.gelu(a[0]))
    }

    /// `x * sigmoid(x)`.
    ///
    /// # Errors
    /// The elements are not floats.
    pub fn silu(self) -> Result<Value<'g>> {
        self.map("silu", &[], |b, a| {
            let gate = b.sigmoid(a[0]);
            b.mul(a[0], gate)
        })
    }

    /// The elements converted.
    ///
    /// # Errors
    /// There is no such conversion.
    pub fn cast(self, to: DType) -> Result<Value<'g>> {
        self.map("cast", &[], |b, a| b.cast(to, a[0]))
    }

    /// The matrix product over the last axis of this tensor: `[.., m, k]` and `[k, n]` give `[.., m, n]`; operands with
    /// the same number of axes share all but the last two.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn matmul(self, other: Value<'g>) -> Result<Value<'g>> {
        let (left, right) = (self.rank(), other.rank());
        let letters: String = (b'a'..=b'z').take(left.saturating_sub(1)).map(char::from).collect();
        let batch = letters.get(..letters.len().saturating_sub(1)).unwrap_or_default();
        let rhs = if right == left && right > 2 { format!("{batch}KN") } else { "KN".to_string() };
        let lhs = format!("{letters}K");
        self.builder.node("matmul", Contract::new(&lhs, &rhs, &format!("{letters}N")), &[self, other])
    }

    /// The softmax along an axis; a negative one counts from the end.
    ///
    /// # Errors
    /// There is no such axis, or the elements are not floats.
    pub fn softmax(self, axis: i64) -> Result<Value<'g>> {
        let axis = self.builder.axis("softmax", axis, self.rank())?;
        self.builder.node("softmax", ops::Softmax { axis, log: false }, &[self])
    }

    /// Layer normalization of the last axis, without scale and bias.
    ///
    /// # Errors
    /// There is no axis, or the elements are not floats.
    pub fn layer_norm(self, epsilon: f64) -> Result<Value<'g>> {
        self.norm("layer_norm", NormKind::Layer, epsilon)
    }

    /// Root mean square normalization of the last axis, without scale.
    ///
    /// # Errors
    /// There is no axis, or the elements are not floats.
    pub fn rms_norm(self, epsilon: f64) -> Result<Value<'g>> {
        self.norm("rms_norm", NormKind::Rms, epsilon)
    }

    fn norm(self, call: &str, kind: NormKind, epsilon: f64) -> Result<Value<'g>> {
        let epsilon = Constant::float(self.ty().dtype, epsilon);
        self.builder.node(call, ops::Norm { kind, axes: 1, epsilon }, &[self])
    }

    /// The sum over axes; they stay with extent 1 where `keep`. Negative axes count from the end.
    ///
    /// # Errors
    /// There is no such axis, or the elements are no numbers.
    pub fn sum(self, axes: &[i64], keep: bool) -> Result<Value<'g>> {
        self.reduce("sum", BinaryOp::Add, axes, keep)
    }

    /// The maximum over axes; they stay with extent 1 where `keep`. Negative axes count from the end.
    ///
    /// # Errors
    /// There is no such axis, or the elements are no numbers.
    pub fn maximum(self, axes: &[i64], keep: bool) -> Result<Value<'g>> {
        self.reduce("maximum", BinaryOp::Max, axes, keep)
    }

    fn reduce(self, call: &str, combine: BinaryOp, axes: &[i64], keep: bool) -> Result<Value<'g>> {
        let rank = self.rank();
        let axes = axes.iter().map(|&a| self.builder.axis(call, a, rank)).collect::<Result<Vec<_>>>()?;
        self.builder.node(call, ops::Reduce { combine, axes, keep }, &[self])
    }

    /// The same elements under other dims.
    ///
    /// # Errors
    /// The number of elements differs, or is not known to be the same.
    pub fn reshape(self, dims: impl IntoIterator<Item = Expr>) -> Result<Value<'g>> {
        self.builder.node("reshape", ops::Reshape { dims: dims.into_iter().collect() }, &[self])
    }

    /// Axis `n` of the result is axis `perm[n]`.
    ///
    /// # Errors
    /// `perm` is no permutation of the axes.
    pub fn transpose(self, perm: &[usize]) -> Result<Value<'g>> {
        self.builder.node("transpose", ops::Transpose { perm: perm.to_vec() }, &[self])
    }

    /// Slices picked by integers along an axis, such as the rows of an embedding.
    ///
    /// # Errors
    /// There is no such axis, or the indices are no integers.
    pub fn gather(self, indices: Value<'g>, axis: i64) -> Result<Value<'g>> {
        let axis = self.builder.axis("gather", axis, self.rank())?;
        self.builder.node("gather", ops::Gather { axis }, &[self, indices])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_call() {
        let g = Builder::new("t");
        let x = g.input("x", DType::F32, [2.into(), 3.into()]).unwrap();
        let w = g.input("w", DType::F32, [4.into(), 5.into()]).unwrap();
        let error = x.matmul(w).unwrap_err().to_string();
        assert!(error.starts_with("matmul_0: contract of (f32[2, 3], f32[4, 5])"), "{error}");
        assert_eq!(x.softmax(2).unwrap_err(), BuildError::Axis { call: "softmax".into(), axis: 2, rank: 2 });
        assert_eq!(g.input("x", DType::F32, []).unwrap_err(), BuildError::Name("x".into()));
        let other = Builder::new("other");
        let y = other.input("y", DType::F32, []).unwrap();
        assert_eq!(x.add(y).unwrap_err(), BuildError::Foreign("add".into()));
        assert!(
            g.symbol("n", std::ops::RangeInclusive::new(3, 2)).is_err()
                && g.symbol("n", 1..=2).is_ok()
                && g.symbol("n", 1..=2).is_err()
        );
    }

    #[test]
    fn batched_products_share_leading_axes() {
        let g = Builder::new("t");
        let n = g.symbol("n", 1..=8).unwrap();
        let a = g.input("a", DType::F32, [n.clone(), 2.into(), 3.into()]).unwrap();
        let b = g.input("b", DType::F32, [n, 3.into(), 4.into()]).unwrap();
        let product = a.matmul(b).unwrap().scale(0.5).unwrap().softmax(-1).unwrap();
        assert_eq!(product.ty().to_string(), "f32[n, 2, 4]");
        g.output("y", product).unwrap();
        assert_eq!(g.finish().unwrap().nodes().len(), 3);
    }
}
