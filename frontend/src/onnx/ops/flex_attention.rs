//! `FlexAttention` of `ai.onnx.preview`: attention whose scores and weights graphs of the model change.
//!
//! Invariant: scores, weights and their products have the softmax's precision; only the result has the inputs' type.

use super::softmax::softmax;
use super::support::type_attribute;
use super::{Spec, of};
use crate::onnx::import::{Bound, Context, Failure, Outputs};
use kiln_ir::graph::ValueId;
use kiln_ir::ops::Contract;
use kiln_ir::{DType, Expr};

pub(super) const OPS: &[Spec] =
    &[of("ai.onnx.preview", "FlexAttention", &["prob_mod", "scale", "score_mod", "softmax_precision"], flex_attention)];

fn flex_attention(cx: &mut Context) -> Result<Outputs, Failure> {
    let inputs = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
    let dtype = cx.dtype(inputs[0]);
    let given = type_attribute(cx, "softmax_precision")?.filter(|t| t.is_float());
    let precision = given.unwrap_or(if dtype == DType::F64 { DType::F64 } else { DType::F32 });
    let mut dims = Vec::new();
    for x in inputs {
        let four: [Expr; 4] =
            cx.dims(x).try_into().map_err(|_| Failure::invalid(format!("{} has not 4 axes", cx.ty(x))))?;
        dims.push(four);
    }
    let [[batch, q_heads, queries, size], [_, kv_heads, keys, _], [.., v_size]] = dims.as_slice() else {
        return Err(Failure::invalid("takes 3 inputs"));
    };
    let group = match (q_heads.as_const(), kv_heads.as_const()) {
        (Some(a), Some(b)) if b > 0 && a % b == 0 => Expr::from(a / b),
        _ if q_heads == kv_heads => Expr::from(1i64),
        _ => return Err(Failure::invalid(format!("{q_heads} query heads do not share {kv_heads} key heads evenly"))),
    };
    let scale = match (cx.node.float_opt("scale")?, size.as_const()) {
        (Some(s), _) => f64::from(s),
        (None, Some(n)) => 1.0 / (n as f64).sqrt(),
        (None, None) => {
            return Err(Failure::unsupported(format!("the head size `{size}` must be known; bind its symbols")));
        }
    };
    let [q, k, v] = inputs.map(|x| cx.cast(x, precision));
    let (k, v) = (k?, v?);
    let q = cx.reshape(q?, vec![batch.clone(), kv_heads.clone(), group.clone(), queries.clone(), size.clone()])?;
    let scores = cx.add(Contract::new("bngqd", "bnkd", "bngqk"), &[q, k])?;
    let scores = cx.map(&[scores], |b, a| {
        let scale = b.lit(a[0], scale);
        b.mul(a[0], scale)
    })?;
    let whole = vec![batch.clone(), q_heads.clone(), queries.clone(), keys.clone()];
    let scores = cx.reshape(scores, whole)?;
    let scores = modified(cx, "score_mod", scores)?;
    let weights = softmax(cx, scores, 3, false)?;
    let weights = modified(cx, "prob_mod", weights)?;
    let split = vec![batch.clone(), kv_heads.clone(), group, queries.clone(), keys.clone()];
    let weights = cx.reshape(weights, split)?;
    let y = cx.add(Contract::new("bngqk", "bnkd", "bngqd"), &[weights, v])?;
    let y = cx.reshape(y, vec![batch.clone(), q_heads.clone(), queries.clone(), v_size.clone()])?;
    Ok(cx.cast(y, dtype)?.into())
}

/// What the graph in an attribute makes of a tensor; the tensor itself without one.
fn modified(cx: &mut Context, attribute: &str, x: ValueId) -> Result<ValueId, Failure> {
    let node = cx.node;
    let Some(graph) = node.graph_opt(attribute)? else { return Ok(x) };
    let made = cx.inline(graph, vec![Bound::Tensor(x)])?;
    let wrong = || Failure::invalid(format!("`{attribute}` must give one tensor {}", cx.ty(x)));
    match made.0.as_slice() {
        [Bound::Tensor(y)] if cx.ty(*y) == cx.ty(x) => Ok(*y),
        _ => Err(wrong()),
    }
}
