//! Normalization of rows.

use super::Scope;
use crate::builder::{Result, Value};

/// Layer normalization (Ba et al. 2016) of the last axis, with scale and bias.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'g> {
    scale: Value<'g>,
    bias: Option<Value<'g>>,
    epsilon: f64,
}

impl<'g> LayerNorm<'g> {
    /// `weight` and `bias`, each `[size]`, of a scope.
    ///
    /// # Errors
    /// The graph cannot hold the parameters.
    pub fn new(scope: &Scope<'g>, size: usize, epsilon: f64) -> Result<LayerNorm<'g>> {
        let (scale, bias) = (scope.parameter("weight", &[size])?, Some(scope.parameter("bias", &[size])?));
        Ok(LayerNorm { scale, bias, epsilon })
    }

    /// `[.., size]` to the same.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn apply(&self, x: Value<'g>) -> Result<Value<'g>> {
        let y = x.layer_norm(self.epsilon)?.mul(self.scale)?;
        match self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}

/// Root mean square normalization (Zhang, Sennrich 2019) of the last axis, with scale.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm<'g> {
    scale: Value<'g>,
    epsilon: f64,
}

impl<'g> RmsNorm<'g> {
    /// `weight: [size]` of a scope.
    ///
    /// # Errors
    /// The graph cannot hold the parameter.
    pub fn new(scope: &Scope<'g>, size: usize, epsilon: f64) -> Result<RmsNorm<'g>> {
        Ok(RmsNorm { scale: scope.parameter("weight", &[size])?, epsilon })
    }

    /// `[.., size]` to the same.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn apply(&self, x: Value<'g>) -> Result<Value<'g>> {
        x.rms_norm(self.epsilon)?.mul(self.scale)
    }
}
