//! The reference interpreter of ops and graphs: what every other way of running them is compared with.
//!
//! Invariant: an op is evaluated from its nests alone (or its host function). Scalar operations are those of
//! [`crate::semantics`]; folds of floats, and the products that they sum, are kept in f64 and rounded once to the element
//! type. Tensors are logical: layouts do not matter here. Nothing panics, and no result is allocated beyond the budget.

mod column;
mod contract;
mod graph;
mod index;
pub mod limits;
mod nest;
mod program;
#[cfg(test)]
mod tests;

pub use graph::{Bindings, Options, bind_inputs, bind_types, eval_graph};

use crate::expr::Expr;
use crate::graph::{Origin, TensorType};
use crate::nest::Nest;
use crate::ops::{Meaning, Op, OpError};
use crate::tensor::{Tensor, TensorError, element_count};

/// An op or a graph could not be evaluated.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum EvalError {
    /// The op refuses its operands.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A tensor cannot be made.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// An index is out of range.
    #[error("index {index} is out of range for axis {axis} with extent {extent}")]
    Index {
        /// The index, as computed.
        index: i64,
        /// Extent of the axis.
        extent: usize,
        /// Number of the axis.
        axis: usize,
    },
    /// A symbol has no value.
    #[error("`{0}` is not bound to a number")]
    Unbound(String),
    /// The results do not fit the memory budget.
    #[error("results of {needed} bytes exceed the {left} bytes that are left of the memory budget")]
    Budget {
        /// Bytes asked for.
        needed: u64,
        /// Bytes left.
        left: u64,
    },
    /// The inputs do not fit the graph, or a nest is not well formed.
    #[error("{0}")]
    Invalid(String),
    /// An error with the model's nodes that it concerns.
    #[error("{origin}: {error}")]
    At {
        /// The model's nodes.
        origin: Origin,
        /// What went wrong.
        error: Box<EvalError>,
    },
}

impl EvalError {
    /// The error at the model's nodes that it concerns.
    #[must_use]
    pub fn at(self, origin: &Origin) -> EvalError {
        EvalError::At { origin: origin.clone(), error: Box::new(self) }
    }
}

/// The results of an op for these operands. Expression attributes must be numbers.
///
/// # Errors
/// The op refuses the operands, an index is out of range, or a size is not a number.
pub fn eval_op(op: &Op, inputs: &[Tensor]) -> Result<Vec<Tensor>, EvalError> {
    eval_op_within(op, inputs, None)
}

/// [`eval_op`] with results of at most `budget` bytes (temporaries of a stage count).
///
/// # Errors
/// As [`eval_op`], or the budget is exceeded.
pub fn eval_op_within(op: &Op, inputs: &[Tensor], budget: Option<u64>) -> Result<Vec<Tensor>, EvalError> {
    let owned: Vec<TensorType> = inputs.iter().map(|t| TensorType::of(t.dtype(), t.shape())).collect();
    let types: Vec<&TensorType> = owned.iter().collect();
    let results = op.infer(&types)?;
    let mut budget = Budget { left: budget };
    if let (Op::Reshape(_), [x], [ty]) = (op, inputs, results.as_slice()) {
        // Row-major order does not change, so the data can be shared.
        return Ok(vec![x.reshaped(&shape(&ty.dims)?)?]);
    }
    match op {
        Op::Host(host) => {
            for ty in &results {
                // What the function makes of data-dependent extents is its own to check.
                if let Some(dims) = ty.shape() {
                    budget.take(&dims, ty.dtype.size())?;
                }
            }
            let limits = limits::Limits { bytes: budget.left, ..Default::default() };
            Ok(limits::scope(limits, || host.eval(inputs))?)
        }
        _ => match op.meaning(&types)? {
            Meaning::Nests(nests) => Ok(vec![nests_within(&nests, inputs, &mut budget)?]),
            Meaning::Host => Err(EvalError::Invalid(format!("`{}` has no definition", op.name()))),
        },
    }
}

/// The result of the last of some nests, each of which may load the inputs and the results of earlier ones.
///
/// # Errors
/// An index is out of range, a size is not a number, or results and temporaries exceed `budget` bytes.
pub fn eval_nests(nests: &[Nest], inputs: &[Tensor], budget: Option<u64>) -> Result<Tensor, EvalError> {
    nests_within(nests, inputs, &mut Budget { left: budget })
}

fn nests_within(nests: &[Nest], inputs: &[Tensor], budget: &mut Budget) -> Result<Tensor, EvalError> {
    let mut stages = Vec::with_capacity(nests.len());
    for nest in nests {
        let result = nest::eval(nest, inputs, &stages, budget)?;
        stages.push(result);
    }
    stages.pop().ok_or_else(|| EvalError::Invalid("a definition without nests".into()))
}

/// Dims as numbers.
fn shape(dims: &[Expr]) -> Result<Vec<usize>, EvalError> {
    dims.iter().map(|d| d.as_size().ok_or_else(|| EvalError::Unbound(d.to_string()))).collect()
}

/// Bytes that may still be allocated for results; `None` is no limit.
struct Budget {
    left: Option<u64>,
}

impl Budget {
    /// Takes a tensor's bytes from the budget and returns its number of elements.
    fn take(&mut self, shape: &[usize], size: usize) -> Result<usize, EvalError> {
        let count = element_count(shape, size)?;
        let needed = (count * size.max(1)) as u64;
        if let Some(left) = &mut self.left {
            let Some(rest) = left.checked_sub(needed) else {
                limits::refuse_memory();
                return Err(EvalError::Budget { needed, left: *left });
            };
            *left = rest;
        }
        Ok(count)
    }
}
