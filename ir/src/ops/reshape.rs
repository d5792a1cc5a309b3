//! `reshape`: the same elements, in row-major order, under other dims.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::expr::{Expr, Ranges};
use crate::graph::TensorType;
use crate::nest::{Nest, axes, index_ranges};
use crate::scalar::{Code, Source};

/// The operand's elements in row-major order under new dims with the same product. Where free dims leave open whether the products
/// are equal, they are taken to be: the plan has that checked when the dims are known (see [`Reshape::assumes`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshape {
    /// New dims.
    pub dims: Vec<Expr>,
}

impl Reshape {
    /// The products that have to come out equal, where that is not certain.
    pub fn assumes(&self, x: &TensorType) -> Option<(Expr, Expr)> {
        let (from, to) = (x.elements(), TensorType::new(x.dtype, self.dims.clone()).elements());
        if from == to {
            return None;
        }
        // A single axis that differs says more than the products.
        let differ: Vec<(&Expr, &Expr)> = x.dims.iter().zip(&self.dims).filter(|(a, b)| a != b).collect();
        match differ.as_slice() {
            [(a, b)] if x.rank() == self.dims.len() => Some(((*a).clone(), (*b).clone())),
            _ => Some((from, to)),
        }
    }

    pub(super) fn from_attributes(a: &Attributes) -> Result<Reshape, OpError> {
        Ok(Reshape { dims: a.exprs("dims")? })
    }
}

impl Operator for Reshape {
    fn name(&self) -> &'static str {
        "reshape"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("dims", self.dims.as_slice())
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        let out = TensorType::new(x.dtype, self.dims.clone());
        let difference = out.elements().sub(&x.elements());
        if difference.as_const().is_some_and(|d| d != 0) {
            return Err(OpError::new(format!("{} elements do not fit {out}", x.elements())));
        }
        Ok(vec![out])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let x = inputs[0];
        let at = axes(out.rank());
        let flat = out.layout.address(&out.dims, &at, &Ranges::new());
        let ranges = index_ranges(&out.dims);
        let mut index = vec![Expr::default(); x.rank()];
        let mut stride = Expr::from(1i64);
        let mut outermost = None;
        for n in (0..x.rank()).rev() {
            index[n] = flat.floor_div(&stride).simplify(&ranges).modulo(&x.dims[n]).simplify(&ranges);
            if x.dims[n].as_const() != Some(1) {
                outermost = Some((n, flat.floor_div(&stride).simplify(&ranges)));
            }
            stride = stride.mul(&x.dims[n]);
        }
        // The outermost axis needs no remainder: the address is in range.
        if let Some((n, e)) = outermost {
            index[n] = e;
        }
        let mut body = Code::new();
        let load = body.load_at(Source::Input(0), index, x.dtype);
        body.set_result(load);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
