//! `tree_ensemble`: decision trees whose leaves add up to scores.

use super::Function;
use super::element::{floats, from_floats, ints, tensors};
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;

/// Operands: `x[n, features]`; `splits[nodes]` (floats); `nodes[nodes, 7]` (integers: mode, feature, node if true, node if
/// false, whether a NaN counts as true, first and end member); `members` (floats); `roots[trees]`; `targets` (integers) and
/// `weights` (floats) of the leaves. Modes: 0 <=, 1 <, 2 >=, 3 >, 4 =, 5 not =, 6 is a member; 7 is a leaf, whose "true" and
/// "false" are the first and the end of its targets. Result: `[n, count]` of the weights' type. Attributes: `count` (of
/// targets), `combine` (sum, mean, min, max; targets without a leaf are 0 for the first two, else the type's limit).
pub(super) const FUNCTION: Function = Function { name: "tree_ensemble", infer, eval };

const COLUMNS: usize = 7;
const LEAF: i64 = 7;

fn combine(a: &Attributes) -> Result<&str, OpError> {
    let word = a.word("combine")?;
    if ["sum", "mean", "min", "max"].contains(&word) {
        Ok(word)
    } else {
        Err(OpError::new(format!("scores cannot be combined by `{word}`")))
    }
}

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, splits, nodes, members, roots, targets, weights] = operands(inputs)?;
    let real = [x, splits, members, weights].iter().all(|t| t.dtype.is_float() || t.dtype.is_int());
    let whole = [nodes, roots, targets].iter().all(|t| t.dtype.is_int());
    if !real || !whole || !weights.dtype.is_float() || x.rank() != 2 || nodes.rank() != 2 {
        return Err(OpError::new("wants rows of numbers, and trees of numbers and integers"));
    }
    combine(a)?;
    Ok(vec![TensorType::new(weights.dtype, vec![x.dims[0].clone(), Expr::from(a.size("count")?)])])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, splits, nodes, members, roots, targets, weights] = tensors(inputs)?;
    let (combine, count) = (combine(a)?, a.size("count")?);
    let (rows, features) = (x.shape()[0], x.shape()[1]);
    let dtype = weights.dtype();
    let (values, splits, nodes, members) = (floats(x)?, floats(splits)?, ints(nodes)?, floats(members)?);
    let (roots, targets, weights) = (ints(roots)?, ints(targets)?, floats(weights)?);
    let nodes: Vec<&[i64]> = nodes.chunks_exact(COLUMNS).collect();
    if splits.len() != nodes.len() || targets.len() != weights.len() {
        return Err(OpError::new("there are not as many splits as nodes, or targets as weights"));
    }
    let limit = if dtype == crate::DType::F64 { f64::MAX } else { f64::from(f32::MAX) };
    let start = match combine {
        "min" => limit,
        "max" => -limit,
        _ => 0.0,
    };
    let share = if combine == "mean" { 1.0 / roots.len().max(1) as f64 } else { 1.0 };
    let bad = |what: &str, n: i64| OpError::new(format!("{what} {n} of a tree does not exist"));
    let at = |n: i64| usize::try_from(n).ok().filter(|&i| i < nodes.len()).ok_or_else(|| bad("node", n));
    let range = |first: i64, end: i64, len: usize| {
        let range = usize::try_from(first).ok().zip(usize::try_from(end).ok());
        range.filter(|&(f, e)| f <= e && e <= len).map(|(f, e)| f..e).ok_or_else(|| bad("entry", end))
    };
    let mut result = vec![start; crate::tensor::element_count(&[rows, count], 8)?];
    for row in 0..rows {
        let line = &values[row * features..(row + 1) * features];
        for &root in &roots {
            let mut here = at(root)?;
            let mut steps = 0;
            while nodes[here][0] != LEAF {
                let node = nodes[here];
                let feature = usize::try_from(node[1]).ok().and_then(|f| line.get(f)).copied();
                let v = feature.ok_or_else(|| OpError::new(format!("there is no feature {}", node[1])))?;
                let split = splits[here];
                let holds = match node[0] {
                    0 => v <= split,
                    1 => v < split,
                    2 => v >= split,
                    3 => v > split,
                    4 => v == split,
                    5 => v != split,
                    6 => members[range(node[5], node[6], members.len())?].contains(&v),
                    mode => return Err(OpError::new(format!("there is no mode {mode}"))),
                };
                let holds = holds || (v.is_nan() && node[4] != 0);
                here = at(if holds { node[2] } else { node[3] })?;
                steps += 1;
                if steps > nodes.len() {
                    return Err(OpError::new("a tree has a cycle"));
                }
            }
            for entry in range(nodes[here][2], nodes[here][3], targets.len())? {
                let target = usize::try_from(targets[entry]).ok().filter(|&t| t < count);
                let target = target.ok_or_else(|| OpError::new(format!("there is no target {}", targets[entry])))?;
                let slot = &mut result[row * count + target];
                *slot = match combine {
                    "min" => slot.min(weights[entry]),
                    "max" => slot.max(weights[entry]),
                    _ => *slot + weights[entry] * share,
                };
            }
        }
    }
    Ok(vec![from_floats(dtype, &[rows, count], &result)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::{fails, run};
    use super::*;

    fn trees(second: i64) -> Vec<Tensor> {
        // x0 <= 1 ? leaf(0: 10) : leaf(1: 20, 0: 1), and a tree of one leaf (1: 5).
        let nodes = [0, 0, 1, second, 1, 0, 0, 7, 0, 0, 1, 0, 0, 0, 7, 0, 1, 3, 0, 0, 0, 7, 0, 3, 4, 0, 0, 0];
        vec![
            Tensor::from_f32(&[3, 1], &[1.0, 2.0, f32::NAN]).unwrap(),
            Tensor::from_f32(&[4], &[1.0, 0.0, 0.0, 0.0]).unwrap(),
            Tensor::from_i64(&[4, 7], &nodes).unwrap(),
            Tensor::from_f32(&[0], &[]).unwrap(),
            Tensor::from_i64(&[2], &[0, 3]).unwrap(),
            Tensor::from_i64(&[4], &[0, 1, 0, 1]).unwrap(),
            Tensor::from_f32(&[4], &[10.0, 20.0, 1.0, 5.0]).unwrap(),
        ]
    }

    #[test]
    fn scores_add_up() {
        let a = |combine: &str| Attributes::new().with("count", 2usize).with("combine", combine);
        assert_eq!(run("tree_ensemble", a("sum"), &trees(2))[0].to_f32().unwrap(), [10., 5., 1., 25., 10., 5.]);
        assert_eq!(run("tree_ensemble", a("max"), &trees(2))[0].to_f32().unwrap()[2..4], [1., 20.]);
        assert!(fails("tree_ensemble", a("sum"), &trees(0)).contains("cycle"));
        assert!(fails("tree_ensemble", a("sum"), &trees(9)).contains("node 9"));
    }
}
