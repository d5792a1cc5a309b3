//! `determinant`: of square matrices, by elimination with partial pivoting (Golub & Van Loan, Matrix Computations, 3.4).

use super::Function;
use super::element::{floats, from_floats, same, tensors};
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;

/// `out[b..] = det(x[b.., :, :])`, computed in f64. No attributes.
pub(super) const FUNCTION: Function = Function { name: "determinant", infer, eval };

fn infer(_: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let [batch @ .., rows, columns] = x.dims.as_slice() else {
        return Err(OpError::new("wants at least two axes"));
    };
    same("rows and columns", rows, columns)?;
    if !x.dtype.is_float() {
        return Err(OpError::new(format!("wants floats, not {}", x.dtype)));
    }
    Ok(vec![TensorType::new(x.dtype, batch.to_vec())])
}

fn eval(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = tensors(inputs)?;
    let [batch @ .., n, columns] = x.shape() else { return Err(OpError::new("wants at least two axes")) };
    if n != columns {
        return Err(OpError::new(format!("a matrix of {n} rows and {columns} columns has no determinant")));
    }
    let values = floats(x)?;
    let count: usize = batch.iter().product();
    let result: Vec<f64> = match n {
        0 => vec![1.0; count],
        n => values.chunks(n * n).map(|m| determinant(m.to_vec(), *n)).collect(),
    };
    Ok(vec![from_floats(x.dtype(), batch, &result)?])
}

fn determinant(mut m: Vec<f64>, n: usize) -> f64 {
    let mut product = 1.0;
    for k in 0..n {
        let pivot = (k..n).max_by(|&a, &b| m[a * n + k].abs().total_cmp(&m[b * n + k].abs())).unwrap_or(k);
        if pivot != k {
            (0..n).for_each(|j| m.swap(k * n + j, pivot * n + j));
            product = -product;
        }
        let d = m[k * n + k];
        product *= d;
        if d == 0.0 {
            return product;
        }
        for i in k + 1..n {
            let factor = m[i * n + k] / d;
            for j in k..n {
                m[i * n + j] -= factor * m[k * n + j];
            }
        }
    }
    product
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn of_a_batch() {
        let x = Tensor::from_f32(&[3, 2, 2], &[0., 2., 3., 4., 1., 2., 2., 4., 1., 0., 0., 5.]).unwrap();
        assert_eq!(run("determinant", Attributes::new(), &[x])[0].to_f32().unwrap(), [-6., 0., 5.]);
    }
}
