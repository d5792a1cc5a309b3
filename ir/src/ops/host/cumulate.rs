//! `cumulate`: running sums and products along an axis.

use super::Function;
use super::element::{binary, constants, split, tensors};
use crate::DType;
use crate::graph::TensorType;
use crate::nest::neutral;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::scalar::BinaryOp;
use crate::semantics;
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
    let lines = Lines { outer, extent, inner, exclusive, reverse };
    let mut bytes: Vec<u8> = Vec::with_capacity(x.bytes().len());
    match x.dtype() {
        DType::F32 => {
            let mut values = x.to_f32().unwrap_or_default();
            lines.run(&mut values, if op == BinaryOp::Add { 0.0 } else { 1.0 }, |a, b| semantics::binary_f32(op, a, b));
            values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        }
        DType::I64 => {
            let mut values = x.to_i64().unwrap_or_default();
            let next = |a: i64, b: i64| if op == BinaryOp::Add { a.wrapping_add(b) } else { a.wrapping_mul(b) };
            lines.run(&mut values, i64::from(op == BinaryOp::Mul), next);
            values.iter().for_each(|v| bytes.extend_from_slice(&v.to_le_bytes()));
        }
        dtype => {
            let mut values = constants(x)?;
            lines.run(&mut values, neutral(op, dtype), |a, b| binary(op, a, b));
            values.iter().for_each(|v| v.store(&mut bytes));
        }
    }
    Ok(vec![Tensor::new(x.dtype(), x.shape().to_vec(), bytes)?])
}

/// The lines along an axis, and how they are walked.
struct Lines {
    outer: usize,
    extent: usize,
    inner: usize,
    exclusive: bool,
    reverse: bool,
}

impl Lines {
    /// Replaces the values by what `next` makes of all before; lines that lie side by side go on together.
    fn run<T: Copy>(&self, values: &mut [T], first: T, next: impl Fn(T, T) -> T) {
        let mut sums = vec![first; self.inner];
        for o in 0..self.outer {
            sums.fill(first);
            for n in 0..self.extent {
                let at = (o * self.extent + if self.reverse { self.extent - 1 - n } else { n }) * self.inner;
                for (value, sum) in values[at..at + self.inner].iter_mut().zip(&mut sums) {
                    let after = next(*sum, *value);
                    *value = if self.exclusive { *sum } else { after };
                    *sum = after;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;
    use crate::Constant;

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
        // Each type rounds and wraps as itself.
        for dtype in [DType::F64, DType::F16, DType::I64, DType::I8, DType::U32] {
            let mut bytes = Vec::new();
            for n in [100i64, 60, 50, 3] {
                if dtype.is_float() { Constant::float(dtype, n as f64) } else { Constant::int(dtype, n) }
                    .store(&mut bytes);
            }
            let x = Tensor::new(dtype, vec![4], bytes).unwrap();
            let a = Attributes::new().with("axis", 0usize).with("combine", "add");
            let a = a.with("exclusive", false).with("reverse", false);
            let last = if dtype == DType::I8 { [100., -96., -46., -43.] } else { [100., 160., 210., 213.] };
            assert_eq!(run("cumulate", a, &[x])[0].to_f64().unwrap(), last, "{dtype}");
        }
    }
}
