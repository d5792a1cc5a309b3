//! `TfIdfVectorizer`.

use super::support::floats;
use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::{Attribute, Attributes};
use kiln_ir::{DType, Tensor};

const ATTRIBUTES: &[&str] = &[
    "max_gram_length",
    "max_skip_count",
    "min_gram_length",
    "mode",
    "ngram_counts",
    "ngram_indexes",
    "pool_int64s",
    "pool_strings",
    "weights",
];

pub(super) const OPS: &[Spec] = &[onnx("TfIdfVectorizer", 9, ATTRIBUTES, tf_idf)];

/// Counts of n-grams, and what the mode makes of them.
fn tf_idf(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut x = cx.input(0)?;
    let pool = match (cx.node.ints_opt("pool_int64s")?, cx.node.byte_strings_opt("pool_strings")?) {
        (Some(ints), None) => Tensor::from_i64(&[ints.len()], ints)?,
        (None, Some(s)) => Tensor::from_strings(vec![s.len()], s.iter().map(|s| s.to_vec()).collect())?,
        _ => return Err(Failure::invalid("one of `pool_int64s` and `pool_strings` must be given")),
    };
    if pool.dtype() == DType::I64 && cx.dtype(x).is_int() {
        x = cx.cast(x, DType::I64)?;
    }
    let pool = cx.constant(pool);
    let columns = cx.node.ints("ngram_indexes")?;
    let width = columns.iter().max().map_or(0, |m| m.saturating_add(1));
    let size = |name: &str| {
        let v = cx.node.int(name)?;
        usize::try_from(v).map_err(|_| Failure::from(cx.node.attribute_value(name, format!("{v} is negative"))))
    };
    let list = |ints: &[i64]| Attribute::from(ints);
    let a = Attributes::new()
        .with("starts", list(cx.node.ints("ngram_counts")?))
        .with("columns", list(columns))
        .with("width", width)
        .with("least", size("min_gram_length")?)
        .with("most", size("max_gram_length")?)
        .with("skips", size("max_skip_count")?);
    let mode = cx.node.string("mode")?;
    let counts = cx.host("ngrams", a, &[x, pool])?.remove(0);
    let weights: Option<Vec<f64>> = cx.node.floats_opt("weights")?.map(|w| w.iter().map(|&w| f64::from(w)).collect());
    let present = match mode {
        "TF" => return Ok(counts.into()),
        "TFIDF" => counts,
        "IDF" => cx.map(&[counts], |b, a| {
            let one = b.lit(a[0], 1.0);
            b.min(a[0], one)
        })?,
        other => return Err(cx.node.attribute_value("mode", format!("{other:?} is none of ONNX's")).into()),
    };
    let Some(weights) = weights else { return Ok(present.into()) };
    let weights = floats(cx, DType::F32, &[weights.len()], &weights)?;
    Ok(cx.map(&[present, weights], |b, a| b.mul(a[0], a[1]))?.into())
}
