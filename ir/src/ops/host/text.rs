//! `string_concat` and `string_equal`: elementwise on strings, with NumPy's broadcasting.

use super::Function;
use super::element::{advance, tensors};
use crate::DType;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, broadcast_dims, operands};
use crate::tensor::Tensor;

/// The strings one after the other. No attributes.
pub(super) const CONCAT: Function = Function { name: "string_concat", infer: infer_concat, eval: eval_concat };
/// Whether the strings are equal. No attributes.
pub(super) const EQUAL: Function = Function { name: "string_equal", infer: infer_equal, eval: eval_equal };

fn infer(inputs: &[&TensorType], result: DType) -> Result<Vec<TensorType>, OpError> {
    let [a, b] = operands(inputs)?;
    if a.dtype != DType::Str || b.dtype != DType::Str {
        return Err(OpError::new("wants strings"));
    }
    Ok(vec![TensorType::new(result, broadcast_dims(&[&a.dims, &b.dims])?)])
}

fn infer_concat(_: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    infer(inputs, DType::Str)
}

fn infer_equal(_: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    infer(inputs, DType::Bool)
}

/// The function of every pair of strings, and the shape of the result.
fn zip<T>(inputs: &[Tensor], f: impl Fn(&[u8], &[u8]) -> T) -> Result<(Vec<usize>, Vec<T>), OpError> {
    let [a, b] = tensors(inputs)?;
    let (Some(left), Some(right)) = (a.strings(), b.strings()) else { return Err(OpError::new("wants strings")) };
    let rank = a.shape().len().max(b.shape().len());
    let extent = |t: &Tensor, n: usize| (n + t.shape().len()).checked_sub(rank).map_or(1, |n| t.shape()[n]);
    let shape: Vec<usize> = (0..rank).map(|n| if extent(a, n) == 1 { extent(b, n) } else { extent(a, n) }).collect();
    let mut at = vec![0; rank];
    let place = |t: &Tensor, at: &[usize]| {
        (0..rank).fold(0, |p, n| p * extent(t, n) + if extent(t, n) == 1 { 0 } else { at[n] })
    };
    let mut result = Vec::new();
    for _ in 0..shape.iter().product::<usize>() {
        let fail = || OpError::new("shapes do not broadcast");
        let (l, r) = (left.get(place(a, &at)).ok_or_else(fail)?, right.get(place(b, &at)).ok_or_else(fail)?);
        result.push(f(l, r));
        advance(&mut at, &shape);
    }
    Ok((shape, result))
}

fn eval_concat(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (shape, strings) = zip(inputs, |a, b| [a, b].concat())?;
    Ok(vec![Tensor::from_strings(shape, strings)?])
}

fn eval_equal(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (shape, equal) = zip(inputs, |a, b| u8::from(a == b))?;
    Ok(vec![Tensor::new(DType::Bool, shape, equal)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn pairs_broadcast() {
        let strings = |s: &[&str]| s.iter().map(|s| s.as_bytes().to_vec()).collect::<Vec<_>>();
        let a = Tensor::from_strings(vec![2, 1], strings(&["a", "b"])).unwrap();
        let b = Tensor::from_strings(vec![2], strings(&["b", ""])).unwrap();
        let joined = run("string_concat", Attributes::new(), &[a.clone(), b.clone()]);
        assert_eq!(joined[0].strings().unwrap(), strings(&["ab", "a", "bb", "b"]));
        assert_eq!(run("string_equal", Attributes::new(), &[a, b])[0].bytes(), [0, 0, 1, 0]);
    }
}
