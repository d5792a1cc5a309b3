//! `ngrams`: how often each n-gram of a pool occurs in a sequence.

use super::Function;
use super::element::tensors;
use super::lookup::keys;
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// Operands: `x[length]` or `x[batch, length]`, and `pool[k]` of the same type (integers or strings). Result: f32 counts,
/// `[width]` or `[batch, width]`. Attributes: `starts` (where in the pool the 1-grams, 2-grams, ... begin), `columns` (of each
/// n-gram of the pool in the result), `width`, `least` and `most` (lengths that count), `skips` (items of an n-gram are also
/// looked for at distances of 2 to `skips + 1`; single items count once).
pub(super) const FUNCTION: Function = Function { name: "ngrams", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, pool] = operands(inputs)?;
    if x.dtype != pool.dtype || !(x.dtype.is_int() || x.dtype == DType::Str) || x.rank() > 2 || pool.rank() != 1 {
        return Err(OpError::new("wants one or several sequences and a pool of one type, integers or strings"));
    }
    let (width, columns) = (a.size("width")?, a.sizes("columns")?);
    if columns.iter().any(|&c| c >= width) {
        return Err(OpError::new(format!("a column is not below {width}")));
    }
    a.sizes("starts")?;
    a.size("least")?;
    a.size("most")?;
    a.size("skips")?;
    let mut dims = x.dims.clone();
    dims.pop();
    dims.push(Expr::from(width));
    Ok(vec![TensorType::new(DType::F32, dims)])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, pool] = tensors(inputs)?;
    let (starts, columns, width) = (a.sizes("starts")?, a.sizes("columns")?, a.size("width")?);
    let (least, most, skips) = (a.size("least")?.max(1), a.size("most")?, a.size("skips")?);
    let items = keys(pool);
    // Each n-gram of the pool with its column; they are numbered in the pool's order, whether they count or not.
    let mut grams: HashMap<&[Vec<u8>], usize> = HashMap::new();
    let mut number = 0;
    for (n, &start) in starts.iter().enumerate() {
        let end = starts.get(n + 1).copied().unwrap_or(items.len());
        let part = items.get(start..end).ok_or_else(|| OpError::new("the parts of the pool are not in order"))?;
        for gram in part.chunks_exact(n + 1) {
            let column = columns.get(number).ok_or_else(|| OpError::new("the pool has more n-grams than columns"))?;
            grams.insert(gram, *column);
            number += 1;
        }
    }
    let most = most.min(starts.len());
    let length = x.shape().last().copied().unwrap_or(1);
    let rows = if x.shape().len() == 2 { x.shape()[0] } else { 1 };
    let sequence = keys(x);
    let mut counts = vec![0f32; crate::tensor::element_count(&[rows, width], 4)?];
    for row in 0..rows {
        let line = &sequence[row * length..(row + 1) * length];
        for n in least..=most {
            let distances = if n == 1 { 1 } else { skips + 1 };
            for distance in 1..=distances.min(length.max(1)) {
                for start in 0..length {
                    let gram: Vec<Vec<u8>> = line[start..].iter().step_by(distance).take(n).cloned().collect();
                    if let (true, Some(&column)) = (gram.len() == n, grams.get(gram.as_slice())) {
                        counts[row * width + column] += 1.0;
                    }
                }
            }
        }
    }
    let mut shape = x.shape().to_vec();
    shape.pop();
    shape.push(width);
    Ok(vec![Tensor::from_f32(&shape, &counts)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn counts_with_and_without_gaps() {
        let pool = Tensor::from_i64(&[4], &[7, 8, 1, 2]).unwrap();
        let x = Tensor::from_i64(&[2, 4], &[1, 2, 7, 2, 8, 8, 1, 7]).unwrap();
        let of = |least: usize, skips: usize| {
            let a = Attributes::new().with("starts", &[0usize, 2][..]).with("columns", &[0usize, 2, 1][..]);
            let a = a.with("width", 3usize).with("least", least).with("most", 2usize).with("skips", skips);
            run("ngrams", a, &[x.clone(), pool.clone()])[0].to_f32().unwrap()
        };
        assert_eq!(of(1, 0), [1., 1., 0., 1., 0., 2.]);
        assert_eq!(of(2, 2), [0., 2., 0., 0., 0., 0.]);
    }
}
