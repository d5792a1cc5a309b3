//! `map_at`: scalar code applied elementwise where only the data says how the operands broadcast.

use super::Function;
use super::sequence::given;
use crate::graph::TensorType;
use crate::interp;
use crate::ops::{Attributes, Map, Op, OpError};
use crate::tensor::Tensor;

/// Attribute `body`: as [`Map`]; the result has type `results`.
pub(super) const FUNCTION: Function = Function { name: "map_at", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let (body, types) = (a.code("body")?, given(a, 1)?);
    if body.arg_types().iter().any(|(n, dtype)| inputs.get(*n).is_none_or(|t| t.dtype != *dtype)) {
        return Err(OpError::new("the operands are not of the types that its code wants"));
    }
    let rank = inputs.iter().map(|t| t.rank()).max().unwrap_or(0);
    if types[0].dtype != body.result_type() || types[0].rank() != rank {
        return Err(OpError::new(format!("{} is not the type of the result", types[0])));
    }
    Ok(types)
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let ty = given(a, 1)?.remove(0);
    let op = Op::Map(Map { body: a.code("body")? });
    let made = interp::eval_op_within(&op, inputs, interp::limits::current().bytes);
    let made = made.map_err(|e| OpError(e.to_string()))?;
    let fits = |t: &Tensor| ty.dims.iter().zip(t.shape()).all(|(d, &n)| d.as_size().is_none_or(|d| d == n));
    match made.first() {
        Some(t) if !fits(t) => Err(OpError::new(format!("the result is {:?}, {ty} was promised", t.shape()))),
        Some(_) | None => Ok(made),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Host;
    use super::*;
    use crate::{BinaryOp, Code, DType, Expr, Symbol};

    #[test]
    fn the_data_says_how_operands_broadcast() {
        let mut body = Code::new();
        let (x, y) = (body.arg(0, DType::F32), body.arg(1, DType::F32));
        let sum = body.binary(BinaryOp::Add, x, y).unwrap();
        body.set_result(sum);
        let results = vec![TensorType::new(DType::F32, vec![Expr::from(Symbol::new("n"))])];
        let op = Host::new("map_at", Attributes::new().with("body", &body).with("results", results)).unwrap();
        let t = |v: &[f32]| Tensor::from_f32(&[v.len()], v).unwrap();
        assert_eq!(op.eval(&[t(&[1., 2.]), t(&[10.])]).unwrap()[0].to_f32().unwrap(), [11., 12.]);
        assert_eq!(op.eval(&[t(&[1.]), t(&[10., 20.])]).unwrap()[0].to_f32().unwrap(), [11., 21.]);
        assert!(op.eval(&[t(&[1., 2.]), t(&[1., 2., 3.])]).is_err());
    }
}
