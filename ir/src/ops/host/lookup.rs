//! `lookup`: every element replaced by the value that a table has for it.

use super::Function;
use super::element::{assemble, same, tensors};
use crate::Class;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// Operands: `x`, `keys[n]` of its type, `values[n]`, `default[1]` of the values' type, which stands for what is no key. Any
/// types, strings too. A NaN equals a NaN, -0 equals 0. Of equal keys the last one counts. No attributes.
pub(super) const FUNCTION: Function = Function { name: "lookup", infer, eval };

fn infer(_: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x, keys, values, default] = operands(inputs)?;
    if x.dtype != keys.dtype || values.dtype != default.dtype || [keys, values, default].iter().any(|t| t.rank() != 1) {
        return Err(OpError::new("wants keys of the operand's type, and values and a default of one type"));
    }
    same("keys and values", &keys.dims[0], &values.dims[0])?;
    same("defaults", &default.dims[0], &Expr::from(1i64))?;
    Ok(vec![TensorType::new(values.dtype, x.dims.clone())])
}

/// The bytes by which elements are told apart.
pub(super) fn keys(t: &Tensor) -> Vec<Vec<u8>> {
    if let Some(strings) = t.strings() {
        return strings.to_vec();
    }
    let float = matches!(t.dtype().class(), Class::Float | Class::Double);
    let elements = t.bytes().chunks(t.dtype().size().max(1)).enumerate();
    let canonical = |(i, bytes): (usize, &[u8])| match crate::semantics::load_f64(t.dtype(), t.bytes(), i) {
        v if float && v.is_nan() => b"nan".to_vec(),
        0.0 if float => b"zero".to_vec(),
        _ => bytes.to_vec(),
    };
    elements.map(canonical).collect()
}

fn eval(_: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x, table, values, default] = tensors(inputs)?;
    let places: HashMap<Vec<u8>, usize> = keys(table).into_iter().enumerate().map(|(i, k)| (k, i)).collect();
    let picks: Vec<Option<usize>> = keys(x).iter().map(|k| places.get(k).copied()).collect();
    let base = match (default.strings(), default.dtype()) {
        (Some(d), _) => {
            let d = d.first().cloned().unwrap_or_default();
            Tensor::from_strings(x.shape().to_vec(), vec![d; x.len()])?
        }
        (None, dtype) => Tensor::new(dtype, x.shape().to_vec(), default.bytes().repeat(x.len()))?,
    };
    Ok(vec![assemble(&base, values, &picks)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn strings_and_floats() {
        let strings = |s: &[&str]| {
            Tensor::from_strings(vec![s.len()], s.iter().map(|s| s.as_bytes().to_vec()).collect()).unwrap()
        };
        let numbers = Tensor::from_i64(&[2], &[10, 20]).unwrap();
        let r = run(
            "lookup",
            Attributes::new(),
            &[strings(&["b", "c", "a"]), strings(&["a", "b"]), numbers, Tensor::from_i64(&[1], &[-1]).unwrap()],
        );
        assert_eq!(r[0].to_i64().unwrap(), [20, -1, 10]);
        let floats = |v: &[f32]| Tensor::from_f32(&[v.len()], v).unwrap();
        let r = run(
            "lookup",
            Attributes::new(),
            &[floats(&[f32::NAN, -0.0, 2.0]), floats(&[0.0, f32::NAN]), strings(&["zero", "nan"]), strings(&["none"])],
        );
        assert_eq!(r[0].strings().unwrap(), strings(&["nan", "zero", "none"]).strings().unwrap());
    }
}
