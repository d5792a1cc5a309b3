//! `pack`: four neighbouring bytes as one 32-bit number, the form in which products of bytes take their operands.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::nest::{Nest, axis};
use crate::scalar::{BinaryOp, Code, Constant, Less, Scalar, Source};

/// `out[.., j, ..]` holds `x[.., 4j + b, ..]` in its bits `8b..8b + 8`, for a tensor of 8-bit integers; elements past the end are 0.
/// Where the axis is innermost in memory and its extent a multiple of 4, the result is the operand's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The axis.
    pub axis: usize,
}

impl Pack {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Pack, OpError> {
        Ok(Pack { axis: a.size("axis")? })
    }
}

impl Operator for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn attributes(&self) -> Attributes {
        Attributes::new().with("axis", self.axis)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
        let [x] = operands(inputs)?;
        if !matches!(x.dtype, DType::U8 | DType::I8) {
            return Err(OpError::new(format!("only 8-bit integers are packed, not {}", x.dtype)));
        }
        let mut dims = x.dims.clone();
        let extent = dims.get_mut(self.axis).ok_or_else(|| OpError::new(format!("there is no axis {}", self.axis)))?;
        *extent = extent.ceil_div(&Expr::from(4i64));
        Ok(vec![TensorType::new(DType::I32, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let x = inputs[0];
        let extent = &x.dims[self.axis];
        let whole = extent.modulo(&Expr::from(4i64)).as_const() == Some(0);
        let mut body = Code::new();
        let mut packed = None;
        for byte in 0..4i64 {
            let at = Expr::from(axis(self.axis)).scale(4).add(&Expr::from(byte));
            let index = (0..x.rank()).map(|n| if n == self.axis { at.clone() } else { Expr::from(axis(n)) }).collect();
            let loaded = body.load_at(Source::Input(0), index, x.dtype);
            let mut element = body.push(Scalar::Cast(DType::I32, loaded))?;
            let int = |body: &mut Code, v: i64| body.constant(Constant::int(DType::I32, v));
            if x.dtype == DType::I8 && byte < 3 {
                let low = int(&mut body, 0xff);
                element = body.binary(BinaryOp::And, element, low)?;
            }
            if byte > 0 {
                let bits = int(&mut body, 8 * byte);
                element = body.binary(BinaryOp::Shl, element, bits)?;
            }
            if !whole && byte > 0 {
                let zero = int(&mut body, 0);
                let inside = Less { left: at, right: extent.clone() };
                element = body.push(Scalar::Guard(vec![inside], element, zero))?;
            }
            packed = Some(match packed {
                Some(rest) => body.binary(BinaryOp::Or, rest, element)?,
                None => element,
            });
        }
        body.set_result(packed.ok_or_else(|| OpError::new("nothing to pack"))?);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
