//! `top_k`: the greatest or least elements along an axis, in order, and where they are.

use super::Function;
use super::element::{constants, order, result_shape, split, tensor, tensors, types};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::tensor::Tensor;

/// Attributes: `axis`, `k`, `largest` (else least). Results: the values in order and their positions (i64). Of equals the first
/// come first; a NaN is greater than every number.
pub(super) const FUNCTION: Function = Function { name: "top_k", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let (axis, k) = (a.size("axis")?, a.size("k")?);
    a.bool("largest")?;
    check_axes(&[axis], x.rank())?;
    if !x.dtype.is_float() && !x.dtype.is_int() {
        return Err(OpError::new(format!("wants numbers, not {}", x.dtype)));
    }
    if x.dims[axis].as_size().is_some_and(|d| d < k) {
        return Err(OpError::new(format!("the axis has only {} elements, k is {k}", x.dims[axis])));
    }
    let mut dims = x.dims.clone();
    dims[axis] = Expr::from(k);
    Ok(vec![TensorType::new(x.dtype, dims.clone()), TensorType::new(DType::I64, dims)])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (axis, k, largest) = (a.size("axis")?, a.size("k")?, a.bool("largest")?);
    let types = types(inputs);
    let shape = result_shape(infer(a, &types.iter().collect::<Vec<_>>()), 0)?;
    let [x] = tensors(inputs)?;
    let values = constants(x)?;
    let (outer, extent, inner) = split(x.shape(), axis);
    let count: usize = shape.iter().product();
    let mut picked = vec![crate::Constant::int(x.dtype(), 0); count];
    let mut places = vec![0i64; count];
    let mut line: Vec<usize> = Vec::with_capacity(extent);
    for o in 0..outer {
        for i in 0..inner {
            let at = |n: usize| values[(o * extent + n) * inner + i];
            let compare = |&m: &usize, &n: &usize| {
                let by_value = order(at(m), at(n));
                (if largest { by_value.reverse() } else { by_value }).then(m.cmp(&n))
            };
            line.clear();
            line.extend(0..extent);
            if k < extent && k > 0 {
                line.select_nth_unstable_by(k - 1, compare);
            }
            line.truncate(k);
            line.sort_unstable_by(compare);
            for (n, &place) in line.iter().enumerate() {
                picked[(o * k + n) * inner + i] = at(place);
                places[(o * k + n) * inner + i] = place as i64;
            }
        }
    }
    Ok(vec![tensor(x.dtype(), &shape, &picked)?, Tensor::from_i64(&shape, &places)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    fn top(x: &Tensor, axis: usize, k: usize, largest: bool) -> Vec<Tensor> {
        run(
            "top_k",
            Attributes::new().with("axis", axis).with("k", k).with("largest", largest),
            std::slice::from_ref(x),
        )
    }

    #[test]
    fn picks_in_order_and_first_of_equals() {
        let x = Tensor::from_f32(&[2, 4], &[1., 3., 3., 2., 5., f32::NAN, 4., 5.]).unwrap();
        let r = top(&x, 1, 2, true);
        assert_eq!(r[1].to_i64().unwrap(), [1, 2, 1, 0]);
        let r = top(&x, 1, 3, false);
        assert_eq!(r[1].to_i64().unwrap(), [0, 3, 1, 2, 0, 3]);
        assert_eq!(r[0].to_f32().unwrap(), [1., 2., 3., 4., 5., 5.]);
        assert_eq!(top(&x, 0, 1, false)[0].to_f32().unwrap(), [1., 3., 3., 2.]);
    }

    #[test]
    fn large_u64_are_compared_as_unsigned() {
        let bytes: Vec<u8> = [1u64, u64::MAX, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
        let x = Tensor::new(DType::U64, vec![3], bytes).unwrap();
        assert_eq!(top(&x, 0, 2, true)[1].to_i64().unwrap(), [1, 2]);
    }
}
