//! `cumulate`: running sums and products along an axis.

use super::Function;
use super::element::{binary, constants, split, tensor, tensors};
use crate::graph::TensorType;
use crate::nest::neutral;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::scalar::BinaryOp;
use crate::tensor::Tensor;

/// Attributes: `axis`, `combine` (add or mul), `exclusive` (an element is not in its own sum), `reverse` (from the end).
pub(super) const FUNCTION: Function = Function { name: "cumulate", infer, eval };

fn combine(a: &Attributes) -> Result<BinaryOp, OpError> {
    let op = BinaryOp::from_name(a.word("combine")?).filter(|op| matches!(op, BinaryOp::Add | BinaryOp::Mul));
    op.ok_or_else(|| OpError::new("`combine` must be add or mul"))
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    check_axes(&[a.size("axis")?], x.rank())?;
    combine(a)?;
    a.bool("exclusive")?;
    a.bool("reverse")?;
    if !x.dtype.is_float() && !x.dtype.is_int() {
        return Err(OpError::new(format!("wants numbers, not {}", x.dtype)));
    }
    Ok(vec![TensorType::new(x.dtype, x.dims.clone())])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (op, exclusive, reverse) = (combine(a)?, a.bool("exclusive")?, a.bool("reverse")?);
    let [x] = tensors(inputs)?;
    let (outer, extent, inner) = split(x.shape(), a.size("axis")?);
    let mut values = constants(x)?;
    for o in 0..outer {
        for i in 0..inner {
            let mut sum = neutral(op, x.dtype());
            for n in 0..extent {
                let at = (o * extent + if reverse { extent - 1 - n } else { n }) * inner + i;
                let next = binary(op, sum, values[at]);
                values[at] = if exclusive { sum } else { next };
                sum = next;
            }
        }
    }
    Ok(vec![tensor(x.dtype(), x.shape(), &values)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn all_four_directions() {
        let x = Tensor::from_f32(&[2, 3], &[1., 2., 3., 4., 5., 6.]).unwrap();
        let of = |axis: usize, op: &str, exclusive: bool, reverse: bool| {
            let a = Attributes::new().with("axis", axis).with("combine", op);
            let a = a.with("exclusive", exclusive).with("reverse", reverse);
            run("cumulate", a, std::slice::from_ref(&x))[0].to_f32().unwrap()
        };
        assert_eq!(of(1, "add", false, false), [1., 3., 6., 4., 9., 15.]);
        assert_eq!(of(1, "add", true, false), [0., 1., 3., 0., 4., 9.]);
        assert_eq!(of(1, "add", true, true), [5., 3., 0., 11., 6., 0.]);
        assert_eq!(of(0, "mul", false, true), [4., 10., 18., 4., 5., 6.]);
    }
}
