//! What models need beyond arithmetic: parts of tensors, positions, contractions by letters, choices.
//!
//! Invariant: as in [`super::Builder`], every call is one op of the graph.

use super::{BuildError, Builder, Result, Value};
use kiln_ir::ops::{self, Contract, OpError};
use kiln_ir::{Constant, DType, Expr, Tensor};

impl Builder {
    /// Positions `0, 1, ...` along an axis, as i64.
    ///
    /// # Errors
    /// There is no such axis.
    pub fn iota(&self, dims: impl IntoIterator<Item = Expr>, axis: i64) -> Result<Value<'_>> {
        let dims: Vec<Expr> = dims.into_iter().collect();
        let axis = self.axis("iota", axis, dims.len())?;
        self.node("iota", ops::Iota { dims, axis }, &[])
    }

    /// A constant of f32 values.
    ///
    /// # Errors
    /// The number of values does not fit the shape.
    pub fn floats(&self, shape: &[usize], values: &[f32]) -> Result<Value<'_>> {
        let made = Tensor::from_f32(shape, values);
        let tensor = made.map_err(|e| BuildError::Op { call: "floats".into(), error: OpError::new(e.to_string()) })?;
        Ok(self.constant(tensor))
    }

    /// A value that stands for an operand that is not there, such as a missing parameter: an input of that name, or the
    /// one that has it already.
    pub(crate) fn placeholder(&self, name: &str, dtype: DType, dims: Vec<Expr>) -> Value<'_> {
        let mut name = name.to_string();
        loop {
            match self.input(&name, dtype, dims.clone()) {
                Ok(value) => return value,
                Err(_) => name.push('\''),
            }
        }
    }
}

impl<'g> Value<'g> {
    /// The builder that this value belongs to.
    pub fn builder(self) -> &'g Builder {
        self.builder
    }

    /// The dims.
    pub fn dims(self) -> Vec<Expr> {
        self.ty().dims
    }

    /// The dim of an axis; a negative one counts from the end.
    ///
    /// # Errors
    /// There is no such axis.
    pub fn dim(self, axis: i64) -> Result<Expr> {
        let dims = self.dims();
        let axis = self.builder.axis("dim", axis, dims.len())?;
        Ok(dims.get(axis).cloned().unwrap_or_default())
    }

    /// `length` elements from `start` along an axis; a negative axis counts from the end.
    ///
    /// # Errors
    /// There is no such axis, or the part is known to be outside.
    pub fn part(self, axis: i64, start: impl Into<Expr>, length: impl Into<Expr>) -> Result<Value<'g>> {
        let mut dims = self.dims();
        let at = self.builder.axis("part", axis, dims.len())?;
        let mut starts = vec![Expr::default(); dims.len()];
        starts[at] = start.into();
        dims[at] = length.into();
        let steps = vec![1; dims.len()];
        self.builder.node("part", ops::Slice { starts, steps, dims }, &[self])
    }

    /// A sum of products by letters, as in Einstein's notation: `"bik,bjk->bij"`.
    ///
    /// # Errors
    /// The letters do not fit the operands.
    pub fn contract(self, other: Value<'g>, letters: &str) -> Result<Value<'g>> {
        let parts = letters.split_once("->").and_then(|(from, to)| Some((from.split_once(',')?, to)));
        let Some(((lhs, rhs), out)) = parts else {
            let error = OpError::new(format!("`{letters}` is not of the form `ab,bc->ac`"));
            return Err(BuildError::Op { call: "contract".into(), error });
        };
        self.builder.node("contract", Contract::new(lhs, rhs, out), &[self, other])
    }

    /// The tensor repeated to dims that it broadcasts to.
    ///
    /// # Errors
    /// It does not broadcast to them.
    pub fn broadcast(self, dims: impl IntoIterator<Item = Expr>) -> Result<Value<'g>> {
        self.builder.node("broadcast", ops::Broadcast { dims: dims.into_iter().collect() }, &[self])
    }

    /// The tensor with an axis of extent 1 before axis `axis`; `rank` puts it last.
    ///
    /// # Errors
    /// There is no such place.
    pub fn unsqueeze(self, axis: usize) -> Result<Value<'g>> {
        let mut dims = self.dims();
        if axis > dims.len() {
            return Err(BuildError::Axis { call: "unsqueeze".into(), axis: axis as i64, rank: dims.len() });
        }
        dims.insert(axis, Expr::from(1i64));
        self.reshape(dims)
    }

    /// `self` where `condition` holds, else the number `otherwise`; with broadcasting.
    ///
    /// # Errors
    /// The condition is not of type bool, or the dims do not broadcast.
    pub fn where_or(self, condition: Value<'g>, otherwise: f64) -> Result<Value<'g>> {
        self.map("where_or", &[condition], |b, a| {
            let other = b.lit(a[0], otherwise);
            b.select(a[1], a[0], other)
        })
    }

    /// Every element plus a number.
    ///
    /// # Errors
    /// The elements are no numbers.
    pub fn shift(self, by: f64) -> Result<Value<'g>> {
        self.map("shift", &[], |b, a| {
            let by = b.lit(a[0], by);
            b.add(a[0], by)
        })
    }

    /// Whether elements are at most those of another tensor, with broadcasting.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn at_most(self, other: Value<'g>) -> Result<Value<'g>> {
        self.map("at_most", &[other], |b, a| b.le(a[0], a[1]))
    }

    /// Whether elements are less than those of another tensor, with broadcasting.
    ///
    /// # Errors
    /// The operands' types do not fit.
    pub fn less(self, other: Value<'g>) -> Result<Value<'g>> {
        self.map("less", &[other], |b, a| b.lt(a[0], a[1]))
    }

    /// Whether elements differ from a number.
    ///
    /// # Errors
    /// The elements are no numbers.
    pub fn differs(self, from: i64) -> Result<Value<'g>> {
        self.map("differs", &[], |b, a| {
            let from = b.int(a[0], from);
            b.ne(a[0], from)
        })
    }

    /// Both of two conditions, with broadcasting.
    ///
    /// # Errors
    /// An operand is not of type bool.
    pub fn both(self, other: Value<'g>) -> Result<Value<'g>> {
        self.map("both", &[other], |b, a| b.and(a[0], a[1]))
    }

    /// `x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3)))` (Hendrycks, Gimpel 2016).
    ///
    /// # Errors
    /// The elements are not floats.
    pub fn gelu_tanh(self) -> Result<Value<'g>> {
        self.map("gelu_tanh", &[], |b, a| {
            let x = a[0];
            let root = b.lit(x, std::f64::consts::FRAC_2_PI.sqrt());
            let (cubic, one, half) = (b.lit(x, 0.044715), b.lit(x, 1.0), b.lit(x, 0.5));
            let square = b.mul(x, x);
            let cube = b.mul(square, x);
            let bent = b.mul(cubic, cube);
            let sum = b.add(x, bent);
            let inner = b.mul(root, sum);
            let tanh = b.tanh(inner);
            let gate = b.add(one, tanh);
            let halved = b.mul(half, x);
            b.mul(halved, gate)
        })
    }

    /// The constant of one value in this tensor's type, without axes.
    ///
    /// # Errors
    /// The type is not one of numbers.
    pub fn like(self, value: f64) -> Result<Value<'g>> {
        let dtype = self.ty().dtype;
        let mut bytes = Vec::new();
        Constant::float(dtype, value).store(&mut bytes);
        let made = Tensor::new(dtype, Vec::new(), bytes);
        let tensor = made.map_err(|e| BuildError::Op { call: "like".into(), error: OpError::new(e.to_string()) })?;
        Ok(self.builder.constant(tensor))
    }
}
