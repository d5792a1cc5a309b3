//! The activation functions of recurrent cells, by ONNX's names.

use crate::ops::OpError;
use crate::scalar::UnaryOp;
use crate::semantics::unary_f64;

/// A function with its two parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Activation {
    kind: Kind,
    alpha: f64,
    beta: f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Relu,
    Tanh,
    Sigmoid,
    Affine,
    LeakyRelu,
    ThresholdedRelu,
    ScaledTanh,
    HardSigmoid,
    Elu,
    Softsign,
    Softplus,
}

/// `count` functions separated by commas, each a name with its parameters: `Sigmoid,LeakyRelu 0.01`. Parameters that are not
/// given have ONNX's defaults.
pub(super) fn parse(text: &str, count: usize) -> Result<Vec<Activation>, OpError> {
    let all: Vec<Activation> = text.split(',').map(parse_one).collect::<Result<_, _>>()?;
    if all.len() != count {
        return Err(OpError::new(format!("wants {count} activations, not {}", all.len())));
    }
    Ok(all)
}

fn parse_one(text: &str) -> Result<Activation, OpError> {
    let mut words = text.split_whitespace();
    let name = words.next().unwrap_or_default();
    let (kind, alpha, beta) = match name.to_ascii_lowercase().as_str() {
        "relu" => (Kind::Relu, 0.0, 0.0),
        "tanh" => (Kind::Tanh, 0.0, 0.0),
        "sigmoid" => (Kind::Sigmoid, 0.0, 0.0),
        "affine" => (Kind::Affine, 1.0, 0.0),
        "leakyrelu" => (Kind::LeakyRelu, 0.01, 0.0),
        "thresholdedrelu" => (Kind::ThresholdedRelu, 1.0, 0.0),
        "scaledtanh" => (Kind::ScaledTanh, 1.0, 1.0),
        "hardsigmoid" => (Kind::HardSigmoid, 0.2, 0.5),
        "elu" => (Kind::Elu, 1.0, 0.0),
        "softsign" => (Kind::Softsign, 0.0, 0.0),
        "softplus" => (Kind::Softplus, 0.0, 0.0),
        _ => return Err(OpError::new(format!("there is no activation `{name}`"))),
    };
    let mut parameter = |default: f64| match words.next() {
        Some(w) => w.parse().map_err(|_| OpError::new(format!("`{w}` is no parameter of {name}"))),
        None => Ok(default),
    };
    Ok(Activation { kind, alpha: parameter(alpha)?, beta: parameter(beta)? })
}

impl Activation {
    pub(super) fn of(self, x: f64) -> f64 {
        let (a, b) = (self.alpha, self.beta);
        match self.kind {
            Kind::Relu => x.max(0.0),
            Kind::Tanh => unary_f64(UnaryOp::Tanh, x),
            Kind::Sigmoid => unary_f64(UnaryOp::Sigmoid, x),
            Kind::Affine => a * x + b,
            Kind::LeakyRelu if x < 0.0 => a * x,
            Kind::LeakyRelu => x,
            Kind::ThresholdedRelu if x > a => x,
            Kind::ThresholdedRelu => 0.0,
            Kind::ScaledTanh => a * unary_f64(UnaryOp::Tanh, b * x),
            Kind::HardSigmoid => (a * x + b).clamp(0.0, 1.0),
            Kind::Elu if x < 0.0 => a * (unary_f64(UnaryOp::Exp, x) - 1.0),
            Kind::Elu => x,
            Kind::Softsign => x / (1.0 + x.abs()),
            Kind::Softplus => x.max(0.0) + libm::log1p(unary_f64(UnaryOp::Exp, -x.abs())),
        }
    }
}
