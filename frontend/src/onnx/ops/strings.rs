//! Operators on strings: `RegexFullMatch`, `StringConcat`, `StringNormalizer` and `StringSplit`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use kiln_ir::ops::{Attribute, Attributes};
use kiln_ir::{DType, Tensor, TensorType};

pub(super) const OPS: &[Spec] = &[
    onnx("RegexFullMatch", 20, &["pattern"], |cx| {
        let x = cx.input(0)?;
        let pattern = cx.node.string_or("pattern", "")?.to_owned();
        Ok(cx.host("string_match", Attributes(vec![("pattern".into(), Attribute::Text(pattern))]), &[x])?.into())
    }),
    onnx("StringConcat", 20, &[], |cx| {
        let inputs = [cx.input(0)?, cx.input(1)?];
        Ok(cx.host("string_concat", Attributes::new(), &inputs)?.into())
    }),
    onnx("StringNormalizer", 10, &["case_change_action", "is_case_sensitive", "locale", "stopwords"], normalizer),
    onnx("StringSplit", 20, &["delimiter", "maxsplit"], split),
];

/// Cases are changed as Unicode does for all languages; `locale` is not looked at.
fn normalizer(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let stop: Vec<Vec<u8>> = cx.node.byte_strings_opt("stopwords")?.unwrap_or_default().iter().map(|s| s.to_vec()).collect();
    let stop = cx.constant(Tensor::from_strings(vec![stop.len()], stop)?);
    let case = match cx.node.string_or("case_change_action", "NONE")? {
        "NONE" => "none",
        "LOWER" => "lower",
        "UPPER" => "upper",
        other => return Err(cx.node.attribute_value("case_change_action", format!("{other:?} is none of ONNX's")).into()),
    };
    let mut dims = cx.dims(x);
    let Some(last) = dims.last_mut() else {
        return Err(Failure::invalid("wants strings [C] or [1, C], not one string"));
    };
    *last = cx.fresh();
    let a = Attributes::new().with("case", case).with("sensitive", cx.node.bool_or("is_case_sensitive", false)?);
    let a = a.with("results", vec![TensorType::new(DType::Str, dims)]);
    Ok(cx.host("string_normalize", a, &[x, stop])?.into())
}

fn split(cx: &mut Context) -> Result<Outputs, Failure> {
    let x = cx.input(0)?;
    let mut dims = cx.dims(x);
    let counts = TensorType::new(DType::I64, dims.clone());
    dims.push(cx.fresh());
    let mut a = Attributes::new().with("results", vec![TensorType::new(DType::Str, dims), counts]);
    let delimiter = cx.node.string_or("delimiter", "")?;
    if !delimiter.is_empty() {
        a.0.push(("delimiter".into(), Attribute::Text(delimiter.to_owned())));
    }
    if let Some(most) = cx.node.int_opt("maxsplit")? {
        let most = usize::try_from(most).map_err(|_| cx.node.attribute_value("maxsplit", format!("{most} is negative")))?;
        a = a.with("most", most);
    }
    Ok(cx.host("string_split", a, &[x])?.into())
}
