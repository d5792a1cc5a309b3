//! `Constant` and `ConstantOfShape`.

use super::{Spec, onnx};
use crate::onnx::import::{Context, Failure, Outputs};
use crate::onnx::model::AttributeValue;
use kiln_ir::{DType, Tensor};

pub(super) const OPS: &[Spec] = &[
    onnx(
        "Constant",
        1,
        &[
            "value",
            "sparse_value",
            "value_float",
            "value_floats",
            "value_int",
            "value_ints",
            "value_string",
            "value_strings",
        ],
        constant,
    ),
    onnx("ConstantOfShape", 9, &["value"], |cx| {
        let dims = cx.exprs(0, "input")?;
        if let Some(d) = dims.iter().find(|d| d.as_const().is_some_and(|d| d < 0)) {
            return Err(Failure::invalid(format!("the shape has the dim {d}")));
        }
        let value = match cx.node.tensor_opt("value")? {
            Some(t) if t.len() != 1 => {
                return Err(cx.node.attribute_value("value", format!("has {} elements, not 1", t.len())).into());
            }
            Some(t) => t.reshaped(&[])?,
            None => Tensor::zeros(DType::F32, &[])?,
        };
        let value = cx.constant(value);
        Ok(cx.broadcast(value, dims)?.into())
    }),
];

/// Exactly one attribute holds the content.
fn constant(cx: &mut Context) -> Result<Outputs, Failure> {
    let [attribute] = cx.node.attributes.as_slice() else {
        return Err(Failure::invalid(format!("has {} attributes, not one", cx.node.attributes.len())));
    };
    let wrong = |expected| cx.node.attribute_type(&attribute.name, expected, attribute.value.ty());
    let strings = |shape: Vec<usize>, s: Vec<Vec<u8>>| Tensor::from_strings(shape, s);
    use crate::onnx::proto::AttributeType as T;
    let tensor = match (attribute.name.as_str(), &attribute.value) {
        ("value", AttributeValue::Tensor(t)) => t.clone(),
        ("value", _) => return Err(wrong(T::Tensor).into()),
        ("sparse_value", AttributeValue::Sparse(s)) => {
            s.to_dense(1 << 30).map_err(|e| cx.node.attribute_value("sparse_value", e.to_string()))?
        }
        ("sparse_value", _) => return Err(wrong(T::SparseTensor).into()),
        ("value_float", AttributeValue::Float(v)) => Tensor::from_f32(&[], &[*v])?,
        ("value_float", _) => return Err(wrong(T::Float).into()),
        ("value_floats", AttributeValue::Floats(v)) => Tensor::from_f32(&[v.len()], v)?,
        ("value_floats", _) => return Err(wrong(T::Floats).into()),
        ("value_int", AttributeValue::Int(v)) => Tensor::from_i64(&[], &[*v])?,
        ("value_int", _) => return Err(wrong(T::Int).into()),
        ("value_ints", AttributeValue::Ints(v)) => Tensor::from_i64(&[v.len()], v)?,
        ("value_ints", _) => return Err(wrong(T::Ints).into()),
        ("value_string", AttributeValue::String(v)) => strings(vec![], vec![v.to_vec()])?,
        ("value_string", _) => return Err(wrong(T::String).into()),
        ("value_strings", AttributeValue::Strings(v)) => strings(vec![v.len()], v.iter().map(|s| s.to_vec()).collect())?,
        (_, _) => return Err(wrong(T::Strings).into()),
    };
    Ok(cx.constant(tensor).into())
}
