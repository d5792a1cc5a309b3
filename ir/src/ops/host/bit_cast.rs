//! `bit_cast`: the bits of elements taken for those of another type of the same size.

use super::Function;
use super::element::tensors;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, operands};
use crate::tensor::Tensor;
use crate::{Class, DType};

/// Attribute: `to`. To bool, every pattern but 0 is true.
pub(super) const FUNCTION: Function = Function { name: "bit_cast", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let [x] = operands(inputs)?;
    let to = a.dtype("to")?;
    let bits = |d: DType| if d == DType::Bool { 8 } else { d.bits() };
    if bits(x.dtype) != bits(to) || to.class() == Class::Str {
        return Err(OpError::new(format!("{} and {to} do not have the same size", x.dtype)));
    }
    Ok(vec![TensorType::new(to, x.dims.clone())])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let [x] = tensors(inputs)?;
    let to = a.dtype("to")?;
    let bytes: Vec<u8> = match to {
        DType::Bool => x.bytes().iter().map(|&b| u8::from(b != 0)).collect(),
        // One byte holds an element: sign-extended in the signed types, with zeros above in the others.
        DType::I4 => x.bytes().iter().map(|&b| ((b << 4) as i8 >> 4) as u8).collect(),
        DType::I2 => x.bytes().iter().map(|&b| ((b << 6) as i8 >> 6) as u8).collect(),
        DType::U4 | DType::F4E2M1 => x.bytes().iter().map(|&b| b & 15).collect(),
        DType::U2 => x.bytes().iter().map(|&b| b & 3).collect(),
        _ => return Ok(vec![Tensor::new(to, x.shape().to_vec(), x.shared_bytes())?]),
    };
    Ok(vec![Tensor::new(to, x.shape().to_vec(), bytes)?])
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    #[test]
    fn patterns_stay() {
        let x = Tensor::from_f32(&[2], &[1.0, -0.0]).unwrap();
        let r = run("bit_cast", Attributes::new().with("to", DType::I32), &[x]);
        assert_eq!(r[0].to_i64().unwrap(), [0x3f80_0000, i64::from(i32::MIN)]);
        let x = Tensor::new(DType::U4, vec![2], vec![15u8, 7]).unwrap();
        let r = run("bit_cast", Attributes::new().with("to", DType::I4), &[x]);
        assert_eq!(r[0].to_i64().unwrap(), [-1, 7]);
    }
}
