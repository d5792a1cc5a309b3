//! Linear maps.

use super::Scope;
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
    weight: Value<'g>,
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
        let shape = match order {
            WeightOrder::OutIn => [outputs, inputs],
            WeightOrder::InOut => [inputs, outputs],
        };
        let weight = scope.parameter("weight", &shape)?;
        let bias = if bias { Some(scope.parameter("bias", &[outputs])?) } else { None };
        Ok(Linear { weight, bias, order })
    }

    /// A map by values that are there, such as a tied embedding `[V, E]` (Press, Wolf 2017).
    pub fn of(weight: Value<'g>, bias: Option<Value<'g>>, order: WeightOrder) -> Linear<'g> {
        Linear { weight, bias, order }
    }

    /// `[.., in]` to `[.., out]`.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn apply(&self, x: Value<'g>) -> Result<Value<'g>> {
        let letters: String = (b'a'..=b'j').take(x.rank().saturating_sub(1)).map(char::from).collect();
        let weight = match self.order {
            WeightOrder::OutIn => "NK",
            WeightOrder::InOut => "KN",
        };
        let y = x.contract(self.weight, &format!("{letters}K,{weight}->{letters}N"))?;
        match self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}
