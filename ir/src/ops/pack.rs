//! `pack`: neighbouring numbers of few bits as one 32-bit number, the form in which products of bytes and of pairs take their
//! operands.

use super::{Attributes, Meaning, OpError, Operator, operands};
use crate::dtype::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::id::Id;
use crate::nest::{Nest, axis};
use crate::scalar::{BinaryOp, Code, Constant, Less, Scalar, Source, TypeError};

/// What one element of an operand of a product holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Elements {
    /// A number.
    #[default]
    Numbers,
    /// Four bytes in an i32: the product of two elements is their `dot4`.
    Bytes,
    /// Two bf16 in an i32: the product of two elements is their `dot2`, an f32.
    Pairs,
    /// An f16, a bf16 or a float of 8 bits (of which operands may have different ones), whose products are f32 and exact.
    Halves,
}

impl Elements {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Elements, OpError> {
        match (a.optional_flag("bytes")?, a.optional_flag("pairs")?, a.optional_flag("halves")?) {
            (false, false, false) => Ok(Elements::Numbers),
            (true, false, false) => Ok(Elements::Bytes),
            (false, true, false) => Ok(Elements::Pairs),
            (false, false, true) => Ok(Elements::Halves),
            _ => Err(OpError::new("elements are bytes, pairs or halves, not two of them")),
        }
    }

    /// The attributes of an op with these operands.
    pub(super) fn note(self, attributes: Attributes) -> Attributes {
        match self {
            Elements::Numbers => attributes,
            Elements::Bytes => attributes.with("bytes", true),
            Elements::Pairs => attributes.with("pairs", true),
            Elements::Halves => attributes.with("halves", true),
        }
    }

    /// What the product of two elements is.
    pub(super) fn product(self) -> BinaryOp {
        match self {
            Elements::Numbers | Elements::Halves => BinaryOp::Mul,
            Elements::Bytes => BinaryOp::Dot4,
            Elements::Pairs => BinaryOp::Dot2,
        }
    }

    /// The type of the product of two elements of a type.
    pub(super) fn result_type(self, operand: DType) -> DType {
        match self {
            Elements::Halves => DType::F32,
            Elements::Numbers | Elements::Bytes | Elements::Pairs => self.product().result_type(operand),
        }
    }
}

/// Of 8-bit integers: `out[.., j, ..]` holds `x[.., 4j + b, ..]` in its bits `8b..8b + 8`. Of bf16, or of f32 rounded to it: it holds
/// the `pair` of `x[.., 2j, ..]` and `x[.., 2j + 1, ..]`. Elements past the end are 0.
/// Where the axis is innermost in memory and neighbours cover it, the result of bytes and of bf16 is the operand's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pack {
    /// The axis.
    pub axis: usize,
}

impl Pack {
    pub(super) fn from_attributes(a: &Attributes) -> Result<Pack, OpError> {
        Ok(Pack { axis: a.size("axis")? })
    }

    /// How many neighbours of a type an element of the result holds.
    ///
    /// # Errors
    /// The type is not packed.
    pub fn neighbours(dtype: DType) -> Result<i64, OpError> {
        match dtype {
            DType::U8 | DType::I8 => Ok(4),
            DType::F32 | DType::BF16 => Ok(2),
            _ => Err(OpError::new(format!("only 8-bit integers, bf16 and f32 are packed, not {dtype}"))),
        }
    }
}

/// A byte as an i32 with it in the place of number `n`, and 0 or (of the highest one) its sign around it.
fn placed_byte(body: &mut Code, dtype: DType, loaded: Id<Scalar>, n: i64) -> Result<Id<Scalar>, TypeError> {
    let mut element = body.push(Scalar::Cast(DType::I32, loaded))?;
    if dtype == DType::I8 && n < 3 {
        let low = body.constant(Constant::int(DType::I32, 0xff));
        element = body.binary(BinaryOp::And, element, low)?;
    }
    if n > 0 {
        let bits = body.constant(Constant::int(DType::I32, 8 * n));
        element = body.binary(BinaryOp::Shl, element, bits)?;
    }
    Ok(element)
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
        let neighbours = Pack::neighbours(x.dtype)?;
        let mut dims = x.dims.clone();
        let extent = dims.get_mut(self.axis).ok_or_else(|| OpError::new(format!("there is no axis {}", self.axis)))?;
        *extent = extent.ceil_div(&Expr::from(neighbours));
        Ok(vec![TensorType::new(DType::I32, dims)])
    }

    fn meaning(&self, inputs: &[&TensorType]) -> Result<Meaning, OpError> {
        let out = self.infer(inputs)?.remove(0);
        let x = inputs[0];
        let neighbours = Pack::neighbours(x.dtype)?;
        let extent = &x.dims[self.axis];
        let whole = extent.modulo(&Expr::from(neighbours)).as_const() == Some(0);
        let mut body = Code::new();
        let pairs = neighbours == 2;
        let join = if pairs { BinaryOp::Pair } else { BinaryOp::Or };
        let mut packed = None;
        for n in 0..neighbours {
            let at = Expr::from(axis(self.axis)).scale(neighbours).add(&Expr::from(n));
            let index = (0..x.rank()).map(|a| if a == self.axis { at.clone() } else { Expr::from(axis(a)) }).collect();
            let mut element = body.load_at(Source::Input(0), index, x.dtype);
            element = match pairs {
                true => body.cast(DType::F32, element)?,
                false => placed_byte(&mut body, x.dtype, element, n)?,
            };
            if !whole && n > 0 {
                let zero = body.constant(Constant::int(body.dtype(element), 0));
                let inside = Less { left: at, right: extent.clone() };
                element = body.push(Scalar::Guard(vec![inside], element, zero))?;
            }
            packed = Some(match packed {
                Some(rest) => body.binary(join, rest, element)?,
                None => element,
            });
        }
        let packed = packed.ok_or_else(|| OpError::new("nothing to pack"))?;
        body.set_result(packed);
        Ok(Meaning::Nests(vec![Nest::map(out.dims, body)]))
    }
}
