//! Linear maps.

use super::{Matrix, Scope};
use crate::builder::{Result, Value};

/// How a checkpoint stores the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightOrder {
    /// `[out, in]`, as torch's `Linear` does.
    OutIn,
    /// `[in, out]`, as Keras' `Dense` and GPT-2's `Conv1D` do.
    InOut,
}

/// `x W + b`.
#[derive(Clone, Copy, Debug)]
pub struct Linear<'g> {
    weight: Matrix<'g>,
    bias: Option<Value<'g>>,
    order: WeightOrder,
}

impl<'g> Linear<'g> {
    /// `weight: [outputs, inputs]` and, where wanted, `bias: [outputs]` of a scope.
    ///
    /// # Errors
    /// The graph cannot hold the parameters.
    pub fn new(scope: &Scope<'g>, inputs: usize, outputs: usize, bias: bool) -> Result<Linear<'g>> {
        Linear::ordered(scope, inputs, outputs, bias, WeightOrder::OutIn)
    }

    /// The same with a weight of that order.
    ///
    /// # Errors
    /// The graph cannot hold the parameters.
    pub fn ordered(
        scope: &Scope<'g>,
        inputs: usize,
        outputs: usize,
        bias: bool,
        order: WeightOrder,
    ) -> Result<Linear<'g>> {
        let weight = match order {
            WeightOrder::OutIn => scope.matrix("weight", outputs, inputs)?,
            WeightOrder::InOut => Matrix::Plain(scope.parameter("weight", &[inputs, outputs])?),
        };
        let bias = if bias { Some(scope.parameter("bias", &[outputs])?) } else { None };
        Ok(Linear { weight, bias, order })
    }

    /// A map by values that are there, such as a tied embedding `[V, E]` (Press, Wolf 2017).
    pub fn of(weight: Matrix<'g>, bias: Option<Value<'g>>, order: WeightOrder) -> Linear<'g> {
        Linear { weight, bias, order }
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn apply(&self, x: Value<'g>) -> Result<Value<'g>> {
        let y = match (self.order, self.weight) {
            (WeightOrder::OutIn, weight) => weight.product(x)?,
            (WeightOrder::InOut, weight) => x.matmul(weight.value()?)?,
        };
        match self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}
