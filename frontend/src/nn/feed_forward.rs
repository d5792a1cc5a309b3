//! Position-wise layers.

use super::{Linear, Scope, WeightOrder};
use crate::builder::{Result, Value};

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// With the error function (Hendrycks, Gimpel 2016).
    Gelu,
    /// With tanh (the same paper).
    GeluTanh,
    /// `x sigmoid(x)` (Elfwing et al. 2017), also called Swish.
    Silu,
    /// Hyperbolic tangent.
    Tanh,
}

impl Activation {
    /// The activation that Hugging Face configurations call so.
    pub fn from_name(name: &str) -> Option<Activation> {
        Some(match name {
            "relu" => Activation::Relu,
            "gelu" => Activation::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Activation::GeluTanh,
            "silu" | "swish" => Activation::Silu,
            "tanh" => Activation::Tanh,
            _ => return None,
        })
    }

    /// Applied to every element.
    ///
    /// # Errors
    /// The elements are not floats.
    pub fn apply(self, x: Value<'_>) -> Result<Value<'_>> {
        match self {
            Activation::Relu => x.relu(),
            Activation::Gelu => x.gelu(),
            Activation::GeluTanh => x.gelu_tanh(),
            Activation::Silu => x.silu(),
            Activation::Tanh => x.tanh(),
        }
    }
}

/// `activation(x W1 + b1) W2 + b2` (Vaswani et al. 2017, section 3.3).
#[derive(Clone, Copy, Debug)]
pub struct FeedForward<'g> {
    up: Linear<'g>,
    down: Linear<'g>,
    activation: Activation,
}

impl<'g> FeedForward<'g> {
    /// The two maps of size `E -> F -> E`, under these scopes.
    ///
    /// # Errors
    /// The graph cannot hold the parameters.
    pub fn new(
        (up, down): (&Scope<'g>, &Scope<'g>),
        (model, inner): (usize, usize),
        activation: Activation,
        bias: bool,
        order: WeightOrder,
    ) -> Result<FeedForward<'g>> {
        let up = Linear::ordered(up, model, inner, bias, order)?;
        let down = Linear::ordered(down, inner, model, bias, order)?;
        Ok(FeedForward { up, down, activation })
    }

    /// `[.., E]` to the same.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn apply(&self, x: Value<'g>) -> Result<Value<'g>> {
        self.down.apply(self.activation.apply(self.up.apply(x)?)?)
    }
}

/// `(activation(x Wg) * x Wu) Wd`: SwiGLU with SiLU, GEGLU with GELU (Shazeer 2020).
#[derive(Clone, Copy, Debug)]
pub struct Gated<'g> {
    gate: Linear<'g>,
    up: Linear<'g>,
    down: Linear<'g>,
    activation: Activation,
}

impl<'g> Gated<'g> {
    /// Of three maps.
    pub fn new(gate: Linear<'g>, up: Linear<'g>, down: Linear<'g>, activation: Activation) -> Gated<'g> {
        Gated { gate, up, down, activation }
    }

    /// `[.., E]` to the same.
    ///
    /// # Errors
    /// The last axis does not fit.
    pub fn apply(&self, x: Value<'g>) -> Result<Value<'g>> {
        let gate = self.activation.apply(self.gate.apply(x)?)?;
        self.down.apply(gate.mul(self.up.apply(x)?)?)
    }
}
