//! Operations on elements.
//!
//! Invariant: what a GPU has no instruction for with the meaning of [`kiln_ir::semantics`] is made of instructions that
//! it has; f16 and bf16 are computed in f32 and rounded after each operation.

use super::{LowerError, Lowering};
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::warp::ValueId;
use kiln_ir::{Class, DType};

/// Whether values of the type are kept in registers of 32 bits.
pub(super) fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::U16)
}

/// The type of the registers that hold values of a type: narrow integers are held as i32, always in the range of their
/// type, and floats of 8 bits as an i32 of their byte.
pub(super) fn register_type(dtype: DType) -> DType {
    if is_narrow(dtype) || dtype.is_ofp8() { DType::I32 } else { dtype }
}

/// The constant in a register.
pub(super) fn register_constant(c: Constant) -> Constant {
    if c.dtype.is_ofp8() {
        let mut byte = Vec::with_capacity(1);
        c.store(&mut byte);
        return Constant::int(DType::I32, byte.first().copied().unwrap_or(0).into());
    }
    if is_narrow(c.dtype) { Constant::int(DType::I32, c.bits as i64) } else { c }
}

/// The greatest power that is computed by products.
const MOST_POWER: f64 = 8.0;

impl Lowering<'_> {
    /// A constant of any type.
    pub(super) fn constant(&mut self, c: Constant) -> ValueId {
        self.code.constant(register_constant(c))
    }

    /// The value brought into the range of a narrow type, of which it has the low bits.
    pub(super) fn wrapped(&mut self, dtype: DType, x: ValueId) -> ValueId {
        if !is_narrow(dtype) || self.code.ty(x) != DType::I32 {
            return x;
        }
        if dtype.class() == Class::Unsigned {
            return self.code.with(BinaryOp::And, x, (1 << dtype.bits()) - 1);
        }
        let unused = 32 - i64::from(dtype.bits());
        let high = self.code.with(BinaryOp::Shl, x, unused);
        self.code.with(BinaryOp::Shr, high, unused)
    }

    pub(super) fn unary(&mut self, op: UnaryOp, x: ValueId) -> Result<ValueId, LowerError> {
        use UnaryOp::*;
        let ty = self.code.ty(x);
        if ty.is_half() {
            let wide = self.code.cast(DType::F32, x);
            let result = self.unary(op, wide)?;
            return Ok(self.code.cast(ty, result));
        }
        if ty != DType::F32 {
            return match op {
                Neg | Not => Ok(self.code.unary(op, x)),
                Abs if ty.class() == Class::Signed => Ok(self.code.unary(op, x)),
                Abs | Floor | Ceil | Round | Trunc => Ok(x),
                Sign => Ok(self.sign(x)),
                Sqrt | Recip | Exp | Log | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Tanh | Asinh
                | Acosh | Atanh | Erf | Sigmoid => Err(self.unsupported(format!("`{}` of {ty}", op.name()))),
            };
        }
        match op {
            Neg | Abs | Floor | Ceil | Round | Trunc | Sqrt => Ok(self.code.unary(op, x)),
            Sign => Ok(self.sign(x)),
            Recip => {
                let one = self.code.float(1.0);
                Ok(self.code.binary(BinaryOp::Div, one, x))
            }
            Exp => Ok(self.code.exp(x)),
            Log => Ok(self.code.log(x)),
            Sigmoid => Ok(self.code.sigmoid(x)),
            Tanh => Ok(self.code.tanh(x)),
            Erf => Ok(self.code.erf(x)),
            Not | Sin | Cos | Tan | Asin | Acos | Atan | Sinh | Cosh | Asinh | Acosh | Atanh => {
                Err(self.unsupported(format!("`{}` of {ty}", op.name())))
            }
        }
    }

    /// 1, -1, or the number itself where it is neither above nor below zero.
    fn sign(&mut self, x: ValueId) -> ValueId {
        let ty = self.code.ty(x);
        let [zero, one, minus] = [0, 1, -1].map(|n| self.code.constant(Constant::int(ty, n)));
        let above = self.code.binary(BinaryOp::Gt, x, zero);
        let result = self.code.select(above, one, x);
        if ty.class() == Class::Unsigned {
            return result;
        }
        let below = self.code.binary(BinaryOp::Lt, x, zero);
        self.code.select(below, minus, result)
    }

    pub(super) fn binary(&mut self, op: BinaryOp, x: ValueId, y: ValueId) -> Result<ValueId, LowerError> {
        use BinaryOp::*;
        let ty = self.code.ty(x);
        if ty.is_half() {
            let (a, b) = (self.code.cast(DType::F32, x), self.code.cast(DType::F32, y));
            let result = self.binary(op, a, b)?;
            return Ok(if op.is_comparison() { result } else { self.code.cast(ty, result) });
        }
        if ty == DType::Bool {
            let mut not = |v| self.code.unary(UnaryOp::Not, v);
            let (op, x, y) = match op {
                Add | Max => (Or, x, y),
                Mul | Min => (And, x, y),
                Lt => (And, not(x), y),
                Le => (Or, not(x), y),
                Gt => (And, x, not(y)),
                Ge => (Or, x, not(y)),
                And | Or | Xor | Eq | Ne => (op, x, y),
                Sub | Div | Rem | Mod | Pow | Shl | Shr | Dot4 | Pair | Dot2 => {
                    return Err(self.unsupported(format!("`{}` of {ty}", op.name())));
                }
            };
            return Ok(self.code.binary(op, x, y));
        }
        let whole = self.code.known(y).filter(|_| ty == DType::F32 && op == Pow).map(Constant::as_f64);
        if let Some(n) = whole.filter(|n| n.fract() == 0.0 && n.abs() <= MOST_POWER) {
            return Ok(self.power(x, n));
        }
        if ty == DType::F32
            && op == Sub
            && let Some(value) = self.code.known(y).and_then(|less| self.unpacked_less(x, less))
        {
            return Ok(value);
        }
        let missing = match ty {
            DType::F32 => matches!(op, Rem | Mod | Pow | Pair),
            _ => matches!(op, Pow | Dot2) || op == Dot4 && ty != DType::I32,
        };
        if missing {
            return Err(self.unsupported(format!("`{}` of {ty}", op.name())));
        }
        Ok(self.code.binary(op, x, y))
    }

    /// A float to the power of a small whole number, by products.
    fn power(&mut self, x: ValueId, n: f64) -> ValueId {
        let one = self.code.float(1.0);
        let (mut rest, mut square, mut result) = (n.abs() as u32, x, None);
        while rest > 0 {
            if rest & 1 != 0 {
                result = Some(result.map_or(square, |r| self.code.binary(BinaryOp::Mul, r, square)));
            }
            rest >>= 1;
            if rest > 0 {
                square = self.code.binary(BinaryOp::Mul, square, square);
            }
        }
        match result {
            None => one,
            Some(result) if n < 0.0 => self.code.binary(BinaryOp::Div, one, result),
            Some(result) => result,
        }
    }

    /// `x * y + z`, with one rounding on floats.
    pub(super) fn multiply_add(&mut self, x: ValueId, y: ValueId, z: ValueId) -> Result<ValueId, LowerError> {
        let ty = self.code.ty(z);
        if ty.is_half() {
            let [x, y, z] = [x, y, z].map(|v| self.code.cast(DType::F32, v));
            let sum = self.code.fma(x, y, z);
            return Ok(self.code.cast(ty, sum));
        }
        if ty == DType::F32 {
            return Ok(self.code.fma(x, y, z));
        }
        let product = self.binary(BinaryOp::Mul, x, y)?;
        self.binary(BinaryOp::Add, product, z)
    }

    pub(super) fn convert(&mut self, to: DType, x: ValueId) -> ValueId {
        let from = self.code.ty(x);
        if is_narrow(to) {
            let whole = self.convert(DType::I32, x);
            let Some((lo, hi)) = to.int_range().filter(|_| from.is_float()) else { return self.wrapped(to, whole) };
            // A float saturates.
            let above = self.code.with(BinaryOp::Max, whole, lo as i64);
            return self.code.with(BinaryOp::Min, above, hi as i64);
        }
        if to == DType::F32
            && let Some(value) = self.unpacked(x)
        {
            return value;
        }
        let by_f32 = from != to && (from.is_half() && to != DType::F32 || to.is_half() && from != DType::F32);
        let x = if by_f32 { self.code.cast(DType::F32, x) } else { x };
        self.code.cast(to, x)
    }

    /// What the reduction begins with: `op(identity, x) = x`. Minus zero for sums, since it alone keeps a minus zero.
    pub(super) fn identity(&mut self, op: BinaryOp, ty: DType) -> Result<ValueId, LowerError> {
        let number = match op {
            BinaryOp::Add | BinaryOp::Or if !ty.is_float() => Some(0.0),
            BinaryOp::Add => Some(-0.0),
            BinaryOp::Mul => Some(1.0),
            BinaryOp::Min if ty.is_float() => Some(f64::INFINITY),
            BinaryOp::Max if ty.is_float() => Some(f64::NEG_INFINITY),
            _ => None,
        };
        let c = match (op, number) {
            (_, Some(v)) if ty.is_float() => Constant::float(ty, v),
            (_, Some(v)) => Constant::int(ty, v as i64),
            (BinaryOp::Min | BinaryOp::Max | BinaryOp::And, None) => {
                let (lo, hi) = ty.int_range().unwrap_or((0, 1));
                let value = match op {
                    BinaryOp::Min => hi,
                    BinaryOp::Max => lo,
                    _ => -1,
                };
                Constant::int(ty, value as i64)
            }
            (_, None) => return Err(self.unsupported(format!("a reduction with `{}`", op.name()))),
        };
        let c = if ty == DType::Bool { Constant { dtype: ty, bits: c.bits & 1 } } else { c };
        Ok(self.constant(c))
    }
}
