//! `columns_to_image`: overlapping blocks added up to an image, the inverse of cutting it into columns.

use super::Function;
use super::element::{advance, floats, from_floats, tensors};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::{Tensor, element_count};

/// `x[n, c * product(block), l]` to `out[n, c, image...]`, where `l` counts the positions of the block. Attributes: `image`,
/// `block`, `strides`, `dilations`, `low`, `high`.
pub(super) const FUNCTION: Function = Function { name: "columns_to_image", infer, eval };

struct Shape {
    image: Vec<usize>,
    block: Vec<usize>,
    strides: Vec<usize>,
    dilations: Vec<usize>,
    low: Vec<usize>,
    /// How many positions the block has along each axis.
    counts: Vec<usize>,
}

fn shape(a: &Attributes) -> Result<Shape, OpError> {
    let [image, block, strides, dilations, low, high] = [
        a.sizes("image")?,
        a.sizes("block")?,
        a.sizes("strides")?,
        a.sizes("dilations")?,
        a.sizes("low")?,
        a.sizes("high")?,
    ];
    let axes = image.len();
    if [&block, &strides, &dilations, &low, &high].iter().any(|v| v.len() != axes) {
        return Err(OpError::new(format!("wants {axes} entries in each attribute")));
    }
    if [&block, &strides, &dilations].iter().any(|v| v.contains(&0)) {
        return Err(OpError::new("block, strides and dilations must be at least 1"));
    }
    let counts: Option<Vec<usize>> = (0..axes)
        .map(|n| {
            let padded = image[n].checked_add(low[n])?.checked_add(high[n])?;
            let span = (block[n] - 1).checked_mul(dilations[n])?.checked_add(1)?;
            Some(padded.checked_sub(span)? / strides[n] + 1)
        })
        .collect();
    let counts = counts.ok_or_else(|| OpError::new("the block is larger than the image"))?;
    Ok(Shape { image, block, strides, dilations, low, counts })
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let s = shape(a)?;
    let [n, rows, columns] = x.dims.as_slice() else { return Err(OpError::new("wants three axes")) };
    let taps: Expr = s.block.iter().fold(Expr::from(1i64), |p, &b| p.mul(&Expr::from(b)));
    let positions: Expr = s.counts.iter().fold(Expr::from(1i64), |p, &b| p.mul(&Expr::from(b)));
    super::element::same("columns and positions of the block", columns, &positions)?;
    if rows.modulo(&taps).as_const().is_some_and(|r| r != 0) || !x.dtype.is_float() {
        return Err(OpError::new(format!("blocks of {taps} elements do not fit {x}")));
    }
    let mut dims = vec![n.clone(), rows.floor_div(&taps)];
    dims.extend(s.image.iter().map(|&d| Expr::from(d)));
    Ok(vec![TensorType::new(x.dtype, dims)])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = tensors(inputs)?;
    let s = shape(a)?;
    let (taps, positions) = (element_count(&s.block, 8)?, element_count(&s.counts, 8)?);
    let mut out_shape = vec![x.shape()[0], x.shape()[1] / taps];
    out_shape.extend_from_slice(&s.image);
    let values = floats(x)?;
    let mut result = vec![0.0; element_count(&out_shape, 8)?];
    let plane: usize = s.image.iter().product();
    for channel in 0..out_shape[0] * out_shape[1] {
        let mut tap = vec![0usize; s.block.len()];
        for t in 0..taps {
            let mut at = vec![0usize; s.counts.len()];
            for l in 0..positions {
                let mut place = Some(0);
                for n in 0..at.len() {
                    let padded = at[n] * s.strides[n] + tap[n] * s.dilations[n];
                    let inside = padded.checked_sub(s.low[n]).filter(|&i| i < s.image[n]);
                    place = place.zip(inside).map(|(p, i)| p * s.image[n] + i);
                }
                if let Some(place) = place {
                    result[channel * plane + place] += values[(channel * taps + t) * positions + l];
                }
                advance(&mut at, &s.counts);
            }
            advance(&mut tap, &s.block);
        }
    }
    Ok(vec![from_floats(x.dtype(), &out_shape, &result)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn overlaps_add_up() {
        let list = |v: &[usize]| crate::ops::Attribute::from(v);
        let a = Attributes::new().with("image", list(&[3])).with("block", list(&[2])).with("strides", list(&[1]));
        let a = a.with("dilations", list(&[1])).with("low", list(&[1])).with("high", list(&[0]));
        // Positions -1, 0, 1 of a block of two.
        let x = Tensor::from_f32(&[1, 2, 3], &[1., 2., 3., 10., 20., 30.]).unwrap();
        assert_eq!(run("columns_to_image", a, &[x])[0].to_f32().unwrap(), [12., 23., 30.]);
    }
}
