//! `pad`: a constant border, and gaps between elements.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axes};
use crate::scalar::{Code, Constant, Less, Scalar, Source};

/// `low` elements before, `high` after and `interior` between the elements of each axis, all of them `value`.
#[derive(Clone, Debug, PartialEq)]
pub struct Pad {
    /// Elements before the first one, for each axis.
    pub low: Vec<usize>,
    /// Elements after the last one, for each axis.
    pub high: Vec<usize>,
    /// Elements between neighbours, for each axis.
    pub interior: Vec<usize>,
    /// What the new elements are.
    pub value: Constant,
}

impl Pad {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Pad, OpError> {
        Ok(Pad {
            low: a.sizes("low")?,
            high: a.sizes("high")?,
            interior: a.sizes("interior")?,
            value: a.constant("value")?,
        })
    }
}

impl Operator for Pad {
    fn name(&self) -> &'static str {
        "pad"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new()
            .with("low", self.low.as_slice())
            .with("high", self.high.as_slice())
            .with("interior", self.interior.as_slice())
            .with("value", self.value)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        let rank = x.rank();
        if [&self.low, &self.high, &self.interior].iter().any(|v| v.len() != rank) || self.value.dtype != x.dtype {
            return Err(OpError::new(format!("wants {rank} amounts of each kind and a value of type {}", x.dtype)));
        }
        let dims = (0..rank).map(|n| {
            let gaps = x.dims[n].sub(&Expr::from(1i64)).greatest(&Expr::default()).mul(&Expr::from(self.interior[n]));
            x.dims[n].add(&gaps).add(&Expr::from(self.low[n])).add(&Expr::from(self.high[n]))
        });
        Ok(vec![TensorType::new(x.dtype, dims.collect())])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let x = inputs[0];
        let at = axes(out.rank());
        let (mut conditions, mut index) = (Vec::new(), Vec::new());
        for (n, at) in at.iter().enumerate() {
            let offset = at.sub(&Expr::from(self.low[n]));
            if self.low[n] > 0 {
                conditions.push(Less { left: Expr::from(self.low[n] as i64 - 1), right: at.clone() });
            }
            let step = Expr::from(self.interior[n] + 1);
            if self.high[n] > 0 {
                let end = x.dims[n].sub(&Expr::from(1i64)).mul(&step).add(&Expr::from(self.low[n] + 1));
                conditions.push(Less { left: at.clone(), right: end });
            }
            if self.interior[n] > 0 {
                conditions.push(Less { left: offset.modulo(&step), right: Expr::from(1i64) });
            }
            index.push(offset.floor_div(&step));
        }
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), index, x.dtype);
        let value = body.constant(self.value);
        let empty = x.dims.iter().any(|d| d.as_const() == Some(0));
        let result = match (empty, conditions.is_empty()) {
            (true, _) => value,
            (false, true) => load,
            (false, false) => body.push(Scalar::Guard(conditions, load, value))?,
        };
        body.set_result(result);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
