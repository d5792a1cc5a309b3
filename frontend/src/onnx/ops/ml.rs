//! Feature preparation and linear models of `ai.onnx.ml`.

use super::matmul::{Flip, matmul};
use super::support::{floats, positions};
use super::{Spec, of};
use crate::onnx::import::{Context, Failure, Outputs};
use crate::onnx::model::AttributeValue;
use kiln_ir::graph::ValueId;
use kiln_ir::ops::{Attributes, Concat, Gather, Reduce, Softmax};
use kiln_ir::{BinaryOp, DType, Expr, Tensor, UnaryOp};

pub(super) const DOMAIN: &str = "ai.onnx.ml";

pub(super) const OPS: &[Spec] = &[
    of(DOMAIN, "ArrayFeatureExtractor", &[], array_feature_extractor),
    of(DOMAIN, "Binarizer", &["threshold"], binarizer),
    of(DOMAIN, "FeatureVectorizer", &["inputdimensions"], feature_vectorizer),
    of(
        DOMAIN,
        "Imputer",
        &["imputed_value_floats", "imputed_value_int64s", "replaced_value_float", "replaced_value_int64"],
        imputer,
    ),
    of(
        DOMAIN,
        "LabelEncoder",
        &[
            "classes_strings",
            "default_float",
            "default_int64",
            "default_string",
            "default_tensor",
            "keys_floats",
            "keys_int64s",
            "keys_strings",
            "keys_tensor",
            "values_floats",
            "values_int64s",
            "values_strings",
            "values_tensor",
        ],
        label_encoder,
    ),
    of(
        DOMAIN,
        "LinearClassifier",
        &["classlabels_ints", "classlabels_strings", "coefficients", "intercepts", "multi_class", "post_transform"],
        linear_classifier,
    ),
    of(DOMAIN, "LinearRegressor", &["coefficients", "intercepts", "post_transform", "targets"], linear_regressor),
    of(DOMAIN, "Normalizer", &["norm"], normalizer),
    of(DOMAIN, "OneHotEncoder", &["cats_int64s", "cats_strings", "zeros"], one_hot_encoder),
    of(DOMAIN, "Scaler", &["offset", "scale"], scaler),
];

/// The input as floats, f64 where it is that.
pub(super) fn features(cx: &mut Context) -> Result<ValueId, Failure> {
    let x = cx.input(0)?;
    if !cx.dtype(x).is_float() && !cx.dtype(x).is_int() {
        return Err(Failure::invalid(format!("{} are no numbers", cx.ty(x))));
    }
    let to = if cx.dtype(x) == DType::F64 { DType::F64 } else { DType::F32 };
    cx.cast(x, to)
}

fn widened(values: &[f32]) -> Vec<f64> {
    values.iter().map(|&v| f64::from(v)).collect()
}

/// A vector attribute along the last axis; a single number broadcasts.
fn along_last(cx: &mut Context, name: &str, dtype: DType) -> Result<Option<ValueId>, Failure> {
    match cx.node.floats_opt(name)? {
        Some(v) if !v.is_empty() => floats(cx, dtype, &[v.len()], &widened(v)).map(Some),
        _ => Ok(None),
    }
}

fn array_feature_extractor(cx: &mut Context) -> Result<Outputs, Failure> {
    let (mut x, places) = (cx.input(0)?, cx.input(1)?);
    if cx.rank(x) == 1 {
        let mut dims = vec![Expr::from(1i64)];
        dims.extend(cx.dims(x));
        x = cx.reshape(x, dims)?;
    }
    let count = cx.ty(places).elements();
    let places = cx.reshape(places, vec![count])?;
    let axis = cx.axis(-1, cx.rank(x))?;
    Ok(cx.add(Gather { axis }, &[x, places])?.into())
}

fn binarizer(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (dtype, threshold) = (cx.dtype(x), f64::from(cx.node.float_or("threshold", 0.0)?));
    let y = cx.map(&[x], |b, a| {
        let threshold = b.lit(a[0], threshold);
        let above = b.gt(a[0], threshold);
        b.cast(dtype, above)
    })?;
    Ok(y.into())
}

fn feature_vectorizer(cx: &mut Context) -> Result<Outputs, Failure> {
    let mut parts = Vec::new();
    for x in cx.all_inputs()? {
        let x = cx.cast(x, DType::F32)?;
        let dims = cx.dims(x);
        let rows = dims.first().cloned().unwrap_or(Expr::from(1i64));
        let columns = dims.iter().skip(1).fold(Expr::from(1i64), |n, d| n.mul(d));
        parts.push(cx.reshape(x, vec![rows, columns])?);
    }
    Ok(cx.add(Concat { axis: 1 }, &parts)?.into())
}

fn imputer(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let dtype = cx.dtype(x);
    let (values, replaced) = if dtype.is_int() {
        let values = cx.node.ints("imputed_value_int64s")?;
        let values = cx.int_vector(values)?;
        (cx.cast(values, dtype)?, cx.node.int_or("replaced_value_int64", 0)? as f64)
    } else {
        let values = widened(cx.node.floats("imputed_value_floats")?);
        (floats(cx, dtype, &[values.len()], &values)?, f64::from(cx.node.float_or("replaced_value_float", 0.0)?))
    };
    let y = cx.map(&[x, values], |b, a| {
        let missing = if replaced.is_nan() {
            b.ne(a[0], a[0])
        } else {
            let replaced = b.lit(a[0], replaced);
            b.eq(a[0], replaced)
        };
        b.select(missing, a[1], a[0])
    })?;
    Ok(y.into())
}

/// The tensor in one of the attributes of a family, such as `keys_floats`.
fn table(cx: &Context, family: &str) -> Result<Option<Tensor>, Failure> {
    for kind in ["floats", "int64s", "strings", "tensor"] {
        let name = format!("{family}_{kind}");
        let tensor = match cx.node.attribute(&name) {
            Some(AttributeValue::Floats(v)) => Tensor::from_f32(&[v.len()], v)?,
            Some(AttributeValue::Ints(v)) => Tensor::from_i64(&[v.len()], v)?,
            Some(AttributeValue::Strings(v)) => {
                Tensor::from_strings(vec![v.len()], v.iter().map(|s| s.to_vec()).collect())?
            }
            Some(AttributeValue::Tensor(t)) => t.reshaped(&[t.len()])?,
            Some(_) => return Err(cx.node.attribute_value(&name, "is of the wrong type").into()),
            None => continue,
        };
        if !tensor.is_empty() {
            return Ok(Some(tensor));
        }
    }
    Ok(None)
}

/// In version 1 the classes are numbered by their place; from version 2 on keys have values.
fn label_encoder(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let strings = |s: &[u8]| Tensor::from_strings(vec![1], vec![s.to_vec()]);
    let (keys, values) = match cx.node.byte_strings_opt("classes_strings")? {
        Some(classes) if !classes.is_empty() => {
            let classes = Tensor::from_strings(vec![classes.len()], classes.iter().map(|s| s.to_vec()).collect())?;
            let numbers: Vec<i64> = (0..classes.len() as i64).collect();
            let numbers = Tensor::from_i64(&[numbers.len()], &numbers)?;
            if cx.dtype(x) == DType::Str { (classes, numbers) } else { (numbers, classes) }
        }
        _ => {
            let missing = |family: &str| Failure::invalid(format!("there are no {family}"));
            (table(cx, "keys")?.ok_or_else(|| missing("keys"))?, table(cx, "values")?.ok_or_else(|| missing("values"))?)
        }
    };
    let default = match (values.dtype(), cx.node.tensor_opt("default_tensor")?) {
        (_, Some(t)) if !t.is_empty() => t.reshaped(&[t.len()])?,
        (DType::F32, _) => Tensor::from_f32(&[1], &[cx.node.float_or("default_float", -0.0)?])?,
        (DType::I64, _) => Tensor::from_i64(&[1], &[cx.node.int_or("default_int64", -1)?])?,
        (DType::Str, _) => strings(cx.node.string_or("default_string", "_Unused")?.as_bytes())?,
        (dtype, _) => Tensor::zeros(dtype, &[1])?,
    };
    let (keys, values, default) = (cx.constant(keys), cx.constant(values), cx.constant(default));
    Ok(cx.host("lookup", Attributes::new(), &[x, keys, values, default])?.into())
}

/// Labels by number, as the classes that one of the attributes lists; nothing where none does.
pub(super) fn class_labels(cx: &Context, ints: &str) -> Result<Option<Tensor>, Failure> {
    if let Some(labels) = cx.node.ints_opt(ints)?.filter(|l| !l.is_empty()) {
        return Ok(Some(Tensor::from_i64(&[labels.len()], labels)?));
    }
    match cx.node.byte_strings_opt("classlabels_strings")?.filter(|l| !l.is_empty()) {
        Some(labels) => {
            Ok(Some(Tensor::from_strings(vec![labels.len()], labels.iter().map(|s| s.to_vec()).collect())?))
        }
        None => Ok(None),
    }
}

/// The label of the greatest score of each row.
pub(super) fn best_label(cx: &mut Context, scores: ValueId, labels: Tensor) -> Result<ValueId, Failure> {
    let a = Attributes::new().with("axis", 1usize).with("keep", false).with("max", true).with("last", false);
    let best = cx.host("arg_reduce", a, &[scores])?.remove(0);
    numbered_label(cx, best, labels)
}

/// The labels of classes given by their numbers.
pub(super) fn numbered_label(cx: &mut Context, number: ValueId, labels: Tensor) -> Result<ValueId, Failure> {
    let numbers: Vec<i64> = (0..labels.len() as i64).collect();
    let numbers = cx.int_vector(&numbers)?;
    // Every number is a key: the default is never taken.
    let default = match labels.dtype() {
        DType::Str => Tensor::from_strings(vec![1], vec![vec![]])?,
        dtype => Tensor::zeros(dtype, &[1])?,
    };
    let (labels, default) = (cx.constant(labels), cx.constant(default));
    Ok(cx.host("lookup", Attributes::new(), &[number, numbers, labels, default])?.remove(0))
}

/// `x * coefficients + intercepts` for `rows` rows of coefficients (as many as there are, where that is nothing).
fn linear(cx: &mut Context, rows: Option<usize>) -> Result<ValueId, Failure> {
    let x = features(cx)?;
    let dtype = cx.dtype(x);
    let x = if cx.rank(x) == 1 {
        let mut dims = vec![Expr::from(1i64)];
        dims.extend(cx.dims(x));
        cx.reshape(x, dims)?
    } else {
        x
    };
    let coefficients = widened(cx.node.floats("coefficients")?);
    let rows = match (rows, cx.dims(x).get(1).and_then(Expr::as_size)) {
        (Some(rows), _) => rows,
        (None, Some(columns)) => coefficients.len().checked_div(columns).unwrap_or(0),
        (None, None) => return Err(Failure::unsupported("the number of features must be known")),
    };
    let columns = coefficients.len().checked_div(rows).unwrap_or(0);
    if columns * rows != coefficients.len() || rows == 0 {
        return Err(Failure::invalid(format!("{} coefficients are not {rows} rows", coefficients.len())));
    }
    let w = floats(cx, dtype, &[rows, columns], &coefficients)?;
    let y = matmul(cx, x, w, Flip::default(), Flip(true))?;
    match along_last(cx, "intercepts", dtype)? {
        Some(bias) => cx.map(&[y, bias], |b, a| b.add(a[0], a[1])),
        None => Ok(y),
    }
}

/// What `post_transform` makes of scores `[n, classes]`.
pub(super) fn post_transform(cx: &mut Context, scores: ValueId, kind: &str) -> Result<ValueId, Failure> {
    match kind {
        "NONE" => Ok(scores),
        "LOGISTIC" => cx.map(&[scores], |b, a| b.sigmoid(a[0])),
        "SOFTMAX" => cx.add(Softmax { axis: 1, log: false }, &[scores]),
        // Scores that are 0 get no share.
        "SOFTMAX_ZERO" => {
            let max = cx.add(Reduce { combine: BinaryOp::Max, axes: vec![1], keep: true }, &[scores])?;
            let raised = cx.map(&[scores, max], |b, a| {
                let (difference, size, least) = (b.sub(a[0], a[1]), b.abs(a[0]), b.lit(a[0], 1e-7));
                let (power, negative) = (b.exp(difference), b.neg(a[1]));
                let factor = b.exp(negative);
                let (tiny, large) = (b.mul(a[0], factor), b.gt(size, least));
                b.select(large, power, tiny)
            })?;
            let sum = cx.add(Reduce { combine: BinaryOp::Add, axes: vec![1], keep: true }, &[raised])?;
            cx.map(&[raised, sum], |b, a| {
                let (zero, half) = (b.lit(a[0], 0.0), b.lit(a[0], 0.5));
                let (empty, share) = (b.eq(a[1], zero), b.div(a[0], a[1]));
                b.select(empty, half, share)
            })
        }
        // The inverse of the normal distribution by Winitzki's approximation of the inverse error function.
        "PROBIT" => cx.map(&[scores], |b, a| {
            let (one, two) = (b.lit(a[0], 1.0), b.lit(a[0], 2.0));
            let doubled = b.mul(a[0], two);
            let x = b.sub(doubled, one);
            let (below, above) = (b.sub(one, x), b.add(one, x));
            let product = b.mul(below, above);
            let log = b.unary(UnaryOp::Log, product);
            let (half, c, d) = (b.lit(x, 0.5), b.lit(x, 2.0 / (std::f64::consts::PI * 0.147)), b.lit(x, 1.0 / 0.147));
            let (halved, v2) = (b.mul(half, log), b.mul(d, log));
            let v = b.add(c, halved);
            let square = b.mul(v, v);
            let inner = b.sub(square, v2);
            let root = b.sqrt(inner);
            let v3 = b.sub(root, v);
            let (size, sign, scale) = (b.sqrt(v3), b.sign(x), b.lit(x, std::f64::consts::SQRT_2));
            let signed = b.mul(sign, size);
            b.mul(scale, signed)
        }),
        other => Err(cx.node.attribute_value("post_transform", format!("{other:?} is none of ONNX's")).into()),
    }
}

fn linear_regressor(cx: &mut Context) -> Result<Outputs, Failure> {
    let targets = cx.node.int_or("targets", 1)?;
    let targets = usize::try_from(targets).map_err(|_| cx.node.attribute_value("targets", "is negative"))?;
    let y = linear(cx, Some(targets))?;
    let kind = cx.node.string_or("post_transform", "NONE")?;
    Ok(post_transform(cx, y, kind)?.into())
}

/// A single score of two classes is the second one's, the first one has its negative.
fn linear_classifier(cx: &mut Context) -> Result<Outputs, Failure> {
    let labels = class_labels(cx, "classlabels_ints")?;
    let labels = labels.ok_or_else(|| Failure::invalid("there are no class labels"))?;
    let mut scores = linear(cx, None)?;
    let single = cx.dims(scores).get(1).and_then(Expr::as_size) == Some(1);
    if single && labels.len() == 2 {
        let first = cx.map(&[scores], |b, a| b.neg(a[0]))?;
        scores = cx.add(Concat { axis: 1 }, &[first, scores])?;
    } else if cx.dims(scores).get(1).and_then(Expr::as_size) != Some(labels.len()) {
        return Err(Failure::unsupported(format!("{} classes for scores {}", labels.len(), cx.ty(scores))));
    }
    let kind = cx.node.string_or("post_transform", "NONE")?;
    let label = best_label(cx, scores, labels)?;
    Ok(vec![label, post_transform(cx, scores, kind)?].into())
}

fn normalizer(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = features(cx)?;
    let axis = cx.axis(-1, cx.rank(x))?;
    let kind = cx.node.string_or("norm", "MAX")?;
    let combine = match kind {
        "MAX" => BinaryOp::Max,
        "L1" | "L2" => BinaryOp::Add,
        other => return Err(cx.node.attribute_value("norm", format!("{other:?} is none of ONNX's")).into()),
    };
    let squares = kind == "L2";
    let sizes = cx.map(&[x], |b, a| match kind {
        "L2" => b.mul(a[0], a[0]),
        "L1" => b.abs(a[0]),
        _ => a[0],
    })?;
    let norm = cx.add(Reduce { combine, axes: vec![axis], keep: true }, &[sizes])?;
    let y = cx.map(&[x, norm], |b, a| {
        let norm = if squares { b.sqrt(a[1]) } else { a[1] };
        let zero = b.lit(norm, 0.0);
        let (empty, quotient) = (b.eq(norm, zero), b.div(a[0], norm));
        b.select(empty, a[0], quotient)
    })?;
    Ok(y.into())
}

/// A value that is no category has no place; whether that is allowed is not checked.
fn one_hot_encoder(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let (keys, x) = match cx.node.ints_opt("cats_int64s")?.filter(|c| !c.is_empty()) {
        Some(cats) => (Tensor::from_i64(&[cats.len()], cats)?, cx.cast(x, DType::I64)?),
        None => {
            let cats = cx.node.byte_strings("cats_strings")?;
            (Tensor::from_strings(vec![cats.len()], cats.iter().map(|s| s.to_vec()).collect())?, x)
        }
    };
    let count = keys.len();
    let numbers: Vec<i64> = (0..count as i64).collect();
    let (keys, numbers, none) = (cx.constant(keys), cx.int_vector(&numbers)?, cx.int_vector(&[-1])?);
    let index = cx.host("lookup", Attributes::new(), &[x, keys, numbers, none])?.remove(0);
    let mut dims = cx.dims(index);
    dims.push(Expr::from(1i64));
    let rank = dims.len();
    let index = cx.reshape(index, dims)?;
    let place = positions(cx, Expr::from(count), rank - 1, rank)?;
    let y = cx.map(&[place, index], |b, a| {
        let here = b.eq(a[0], a[1]);
        b.cast(DType::F32, here)
    })?;
    Ok(y.into())
}

fn scaler(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let mut x = cx.cast(x, DType::F32)?;
    if let Some(offset) = along_last(cx, "offset", DType::F32)? {
        x = cx.map(&[x, offset], |b, a| b.sub(a[0], a[1]))?;
    }
    if let Some(scale) = along_last(cx, "scale", DType::F32)? {
        x = cx.map(&[x, scale], |b, a| b.mul(a[0], a[1]))?;
    }
    Ok(x.into())
}
