//! `max_pool`: the greatest element under a moving window and where it is; `max_unpool`: its inverse.

use super::Function;
use super::element::{
    advance, assemble, constants, ints, order, position, result_shape, strides, tensor, tensors, types,
};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::{Tensor, element_count};

/// For `x[n, c, d...]`. Attributes: `window`, `strides`, `dilations`, `low`, `high` (padding, never the greatest), and
/// `column_major` (positions count the first spatial axis fastest). Results: the values, and their positions (i64) in the
/// whole unpadded operand.
pub(super) const POOL: Function = Function { name: "max_pool", infer, eval };

/// A tensor of zeros with dims `dims` and the values at the positions given by the second operand.
pub(super) const UNPOOL: Function = Function { name: "max_unpool", infer: infer_unpool, eval: eval_unpool };

struct Window {
    window: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    low: Vec<usize>,
    high: Vec<usize>,
}

fn window(a: &Attributes, spatial: usize) -> Result<Window, OpError> {
    let w = Window {
        window: a.sizes("window")?,
        strides: a.sizes("strides")?,
        dilations: a.sizes("dilations")?,
        low: a.sizes("low")?,
        high: a.sizes("high")?,
    };
    if [&w.window, &w.strides, &w.dilations, &w.low, &w.high].iter().any(|v| v.len() != spatial) {
        return Err(OpError::new(format!("wants {spatial} entries in each attribute")));
    }
    if [&w.window, &w.strides, &w.dilations].iter().any(|v| v.contains(&0)) {
        return Err(OpError::new("window, strides and dilations must be at least 1"));
    }
    Ok(w)
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let spatial = x.rank().checked_sub(2).ok_or_else(|| OpError::new("wants at least two axes"))?;
    a.bool("column_major")?;
    if !x.dtype.is_float() && !x.dtype.is_int() {
        return Err(OpError::new(format!("wants numbers, not {}", x.dtype)));
    }
    let w = window(a, spatial)?;
    let mut dims = x.dims[..2].to_vec();
    for n in 0..spatial {
        let span = (w.window[n] - 1).saturating_mul(w.dilations[n]).saturating_add(1);
        let padded = x.dims[n + 2].add(&Expr::from(w.low[n])).add(&Expr::from(w.high[n]));
        let d = padded.sub(&Expr::from(span)).floor_div(&Expr::from(w.strides[n])).add(&Expr::from(1i64));
        if d.as_const().is_some_and(|d| d < 0) {
            return Err(OpError::new("the window is larger than the input"));
        }
        dims.push(d);
    }
    Ok(vec![TensorType::new(x.dtype, dims.clone()), TensorType::new(DType::I64, dims)])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let operand_types = types(inputs);
    let shape = result_shape(infer(a, &operand_types.iter().collect::<Vec<_>>()), 0)?;
    let [x] = tensors(inputs)?;
    let spatial = x.shape().len() - 2;
    let w = window(a, spatial)?;
    let column_major = a.bool("column_major")?;
    let values = constants(x)?;
    let extents = &x.shape()[2..];
    let stride = strides(extents);
    // Distances in the order in which positions are counted.
    let counted: Vec<usize> = match column_major {
        true => extents.iter().scan(1, |s, &d| Some(std::mem::replace(s, *s * d))).collect(),
        false => stride.clone(),
    };
    let plane: usize = extents.iter().product();
    let (out_plane, taps) = (element_count(&shape[2..], 8)?, element_count(&w.window, 8)?);
    let (mut picked, mut places) = (Vec::new(), Vec::new());
    for channel in 0..shape[0] * shape[1] {
        let mut at = vec![0usize; spatial];
        for _ in 0..out_plane {
            let mut tap = vec![0usize; spatial];
            let mut best: Option<(usize, usize)> = None;
            for _ in 0..taps {
                let index = (0..spatial).map(|n| {
                    let padded = at[n] * w.strides[n] + tap[n] * w.dilations[n];
                    padded.checked_sub(w.low[n]).filter(|&i| i < extents[n])
                });
                if let Some(index) = index.collect::<Option<Vec<usize>>>() {
                    let sum = |s: &[usize]| index.iter().zip(s).map(|(i, s)| i * s).sum::<usize>();
                    let here = channel * plane + sum(&stride);
                    if best.is_none_or(|(b, _)| order(values[here], values[b]).is_gt()) {
                        best = Some((here, channel * plane + sum(&counted)));
                    }
                }
                advance(&mut tap, &w.window);
            }
            let (value, place) = best.ok_or_else(|| OpError::new("a window lies wholly in the padding"))?;
            picked.push(values[value]);
            places.push(place as i64);
            advance(&mut at, &shape[2..]);
        }
    }
    Ok(vec![tensor(x.dtype(), &shape, &picked)?, Tensor::from_i64(&shape, &places)?])
}

fn infer_unpool(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, places] = operands(inputs)?;
    if !places.dtype.is_int() || places.dims != x.dims || x.dtype == DType::Str {
        return Err(OpError::new("wants as many integer positions as values"));
    }
    Ok(vec![TensorType::new(x.dtype, a.exprs("dims")?)])
}

fn eval_unpool(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, places] = tensors(inputs)?;
    let result = Tensor::zeros(x.dtype(), &a.sizes("dims")?)?;
    let mut picks = vec![None; result.len()];
    for (value, place) in ints(places)?.into_iter().enumerate() {
        picks[position(place, result.len())?] = Some(value);
    }
    Ok(vec![assemble(&result, x, &picks)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, run};
    use super::*;

    fn attributes(column_major: bool) -> Attributes {
        let a = Attributes::new().with("window", &[2usize, 2][..]).with("strides", &[1usize, 2][..]);
        let a = a.with("dilations", &[1usize, 1][..]).with("low", &[0usize, 1][..]).with("high", &[0usize, 0][..]);
        a.with("column_major", column_major)
    }

    #[test]
    fn values_and_positions() {
        let x = Tensor::from_f32(&[1, 2, 2, 3], &[1., 2., 3., 6., 5., 4., -1., -2., -3., -4., -5., -6.]).unwrap();
        let r = run("max_pool", attributes(false), std::slice::from_ref(&x));
        assert_eq!(r[0].to_f32().unwrap(), [6., 5., -1., -2.]);
        assert_eq!(r[1].to_i64().unwrap(), [3, 4, 6, 7]);
        assert_eq!(run("max_pool", attributes(true), &[x])[1].to_i64().unwrap(), [1, 3, 6, 8]);
    }

    #[test]
    fn unpool_puts_values_back() {
        let a = Attributes::new().with("dims", &[1usize, 1, 4][..]);
        let x = Tensor::from_f32(&[1, 1, 2], &[7., 8.]).unwrap();
        let at = |p: &[i64]| Tensor::from_i64(&[1, 1, 2], p).unwrap();
        assert_eq!(run("max_unpool", a.clone(), &[x.clone(), at(&[3, 1])])[0].to_f32().unwrap(), [0., 8., 0., 7.]);
        assert!(fails("max_unpool", a, &[x, at(&[3, 4])]).contains("index 4"));
    }
}
