//! `top_k`: the greatest or least elements along an axis, in order, and where they are.

use super::Function;
use super::element::{constants, ints, order, split, tensor, tensors, types};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::tensor::Tensor;

/// Attributes: `axis`, `largest` (else least), and `k`, or `results` where a second operand (one integer) is `k`. Results: the values in order and their positions (i64). Of equals the first
/// come first; a NaN is greater than every number.
pub(super) const FUNCTION: Function = Function { name: "top_k", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let axis = a.size("axis")?;
    a.bool("largest")?;
    if let &[x, k] = inputs {
        let types = super::sequence::given(a, 2)?;
        check_axes(&[axis], x.rank())?;
        let number = x.dtype.is_float() || x.dtype.is_int();
        let fits = types[0].dtype == x.dtype && types[1].dtype == DType::I64;
        if !number || !fits || !k.dtype.is_int() || types.iter().any(|t| t.rank() != x.rank()) {
            return Err(OpError::new("wants numbers, and k as one integer"));
        }
        return Ok(types);
    }
    let [x] = operands(inputs)?;
    let k = a.size("k")?;
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
    let (axis, largest) = (a.size("axis")?, a.bool("largest")?);
    let (x, k) = match inputs {
        [x, k] => {
            let values = ints(k)?;
            let k = values.first().and_then(|&k| usize::try_from(k).ok()).filter(|&k| k <= x.shape()[axis]);
            (x, k.ok_or_else(|| OpError::new(format!("k is {values:?}, the axis has {} elements", x.shape()[axis])))?)
        }
        _ => {
            let types = types(inputs);
            infer(a, &types.iter().collect::<Vec<_>>())?;
            let [x] = tensors(inputs)?;
            (x, a.size("k")?)
        }
    };
    let mut shape = x.shape().to_vec();
    shape[axis] = k;
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
    fn k_may_be_an_operand() {
        let x = Tensor::from_f32(&[3], &[1., 3., 2.]).unwrap();
        let n = || vec![Expr::from(crate::Symbol::new("n"))];
        let types = vec![TensorType::new(DType::F32, n()), TensorType::new(DType::I64, n())];
        let a = Attributes::new().with("axis", 0usize).with("largest", true).with("results", types);
        let op = super::super::Host::new("top_k", a).unwrap();
        let of = |k| op.eval(&[x.clone(), Tensor::from_i64(&[1], &[k]).unwrap()]);
        assert_eq!(of(2).unwrap()[0].to_f32().unwrap(), [3., 2.]);
        assert!(of(4).is_err() && of(-1).is_err());
    }

    #[test]
    fn large_u64_are_compared_as_unsigned() {
        let bytes: Vec<u8> = [1u64, u64::MAX, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
        let x = Tensor::new(DType::U64, vec![3], bytes).unwrap();
        assert_eq!(top(&x, 0, 2, true)[1].to_i64().unwrap(), [1, 2]);
    }
}
