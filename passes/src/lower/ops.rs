//! Elementwise operations on registers.
//!
//! Invariant: only operations that [`kiln_ir::vector::Op`] allows are emitted, with the meaning of
//! [`kiln_ir::semantics`]; what no instruction does is spelled out.

use super::LowerError;
use super::layout::Home;
use super::math;
use super::tiles::Lowering;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::tile::TileId;
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{Class, Constant, DType};

impl Lowering<'_> {
    pub(super) fn unary(&mut self, depth: usize, op: UnaryOp, x: ValueId) -> Result<ValueId, LowerError> {
        let dtype = self.builder.ty(x).dtype;
        let mut code = self.builder.at(depth);
        Ok(match dtype.class() {
            Class::Float | Class::Double => match op {
                UnaryOp::Neg
                | UnaryOp::Abs
                | UnaryOp::Floor
                | UnaryOp::Ceil
                | UnaryOp::Round
                | UnaryOp::Trunc
                | UnaryOp::Sqrt => code.unary(op, x),
                _ => return math::unary(&mut code, op, x).ok_or_else(|| self.unsupported(of(op.name(), dtype))),
            },
            Class::Signed | Class::Unsigned | Class::Bool => match op {
                UnaryOp::Neg | UnaryOp::Not => code.unary(op, x),
                UnaryOp::Abs if dtype.class() == Class::Signed => code.unary(op, x),
                UnaryOp::Sign => {
                    let (zero, one) = (code.int(x, 0), code.int(x, 1));
                    let above = code.binary(BinaryOp::Gt, x, zero);
                    let result = code.select(above, one, zero);
                    if dtype.class() == Class::Signed {
                        let minus = code.int(x, -1);
                        let below = code.binary(BinaryOp::Lt, x, zero);
                        code.select(below, minus, result)
                    } else {
                        result
                    }
                }
                UnaryOp::Abs | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round | UnaryOp::Trunc => x,
                _ => return Err(self.unsupported(of(op.name(), dtype))),
            },
            Class::Complex | Class::Str => return Err(self.unsupported(of(op.name(), dtype))),
        })
    }

    pub(super) fn binary(&mut self, depth: usize, op: BinaryOp, x: ValueId, y: ValueId) -> Result<ValueId, LowerError> {
        use BinaryOp::*;
        let dtype = self.builder.ty(x).dtype;
        let mut code = self.builder.at(depth);
        Ok(match (dtype.class(), op) {
            (Class::Float | Class::Double, Pow | Rem | Mod) => {
                let result = match op {
                    Pow => math::pow(&mut code, x, y),
                    _ => math::remainder(&mut code, x, y, op == Mod),
                };
                return result.ok_or_else(|| self.unsupported(of(op.name(), dtype)));
            }
            (_, Dot2) => {
                let ty = VectorType { dtype: DType::F32, ..code.ty(x) };
                let zero = code.constant(ty, Constant::float(DType::F32, 0.0));
                return Ok(self.multiply_add(depth, x, y, zero));
            }
            (_, Pair) if !self.pairs => math::pair(&mut code, x, y),
            (Class::Signed | Class::Unsigned, Pow) => math::int_pow(&mut code, x, y),
            (Class::Bool, _) => {
                let not_x = |code: &mut super::build::At<'_>| code.unary(UnaryOp::Not, x);
                let not_y = |code: &mut super::build::At<'_>| code.unary(UnaryOp::Not, y);
                let (a, op, b) = match op {
                    Add | Max | Or => (x, Or, y),
                    Mul | Min | And => (x, And, y),
                    Ne | Xor => (x, Xor, y),
                    Eq => (not_x(&mut code), Xor, y),
                    Lt => (not_x(&mut code), And, y),
                    Le => (not_x(&mut code), Or, y),
                    Gt => (x, And, not_y(&mut code)),
                    Ge => (x, Or, not_y(&mut code)),
                    Sub | Div | Rem | Mod | Pow | Shl | Shr | Dot4 | Pair | Dot2 => {
                        return Err(self.unsupported(of(op.name(), dtype)));
                    }
                };
                code.binary(op, a, b)
            }
            _ => code.binary(op, x, y),
        })
    }

    /// `x * y + z`, with one rounding on floats; of pairs of bf16 their `dot2` onto `z`.
    pub(super) fn multiply_add(&mut self, depth: usize, x: ValueId, y: ValueId, z: ValueId) -> ValueId {
        let mut code = self.builder.at(depth);
        let dtype = code.ty(x).dtype;
        if dtype == DType::I32 && code.ty(z).dtype == DType::F32 {
            return if self.pairs { code.fma(x, y, z) } else { math::dot_of_pairs(&mut code, x, y, z, self.fused) };
        }
        if dtype.is_float() {
            return code.fma(x, y, z);
        }
        let (times, plus) =
            if dtype == DType::Bool { (BinaryOp::And, BinaryOp::Or) } else { (BinaryOp::Mul, BinaryOp::Add) };
        let product = code.binary(times, x, y);
        code.binary(plus, product, z)
    }

    /// Conversion by the rules of [`kiln_ir::semantics`].
    pub(super) fn cast(&mut self, depth: usize, to: DType, x: ValueId) -> ValueId {
        if to.is_half() {
            let x = match self.builder.ty(x).dtype {
                DType::F64 => self.narrowed_to_odd(depth, x),
                _ => self.cast(depth, DType::F32, x),
            };
            return self.rounded_to(depth, to, x);
        }
        let mut code = self.builder.at(depth);
        let from = code.ty(x);
        if from.dtype == to {
            return x;
        }
        if to == DType::Bool {
            let zero = code.num(x, 0.0);
            return code.binary(BinaryOp::Ne, x, zero);
        }
        if from.dtype == DType::Bool {
            let ty = kiln_ir::vector::VectorType { dtype: to, ..from };
            let (one, zero) = match to.is_float() {
                true => (kiln_ir::Constant::float(to, 1.0), kiln_ir::Constant::float(to, 0.0)),
                false => (kiln_ir::Constant::int(to, 1), kiln_ir::Constant::int(to, 0)),
            };
            let (one, zero) = (code.constant(ty, one), code.constant(ty, zero));
            return code.select(x, one, zero);
        }
        if from.dtype.is_int() && to.is_int() && from.dtype.size() == to.size() {
            return code.bits(to, x);
        }
        code.cast(to, x)
    }

    /// A power of floats with a small constant exponent as multiplications; nothing where it is no such power.
    /// At most 1 ulp for each multiplication.
    pub(super) fn power_by_constant(
        &mut self,
        depth: usize,
        op: BinaryOp,
        (a, b): (TileId, TileId),
        at: &[usize],
        home: Option<Home>,
    ) -> Result<Option<ValueId>, LowerError> {
        let exponent = match self.constant_of(b) {
            Some(c) if op == BinaryOp::Pow && c.dtype.is_float() => c.as_f64(),
            _ => return Ok(None),
        };
        if !matches!(exponent, 0.5 | 1.0 | 2.0 | 3.0 | 4.0 | -1.0 | -2.0) {
            return Ok(None);
        }
        let x = self.value(a, at, home)?;
        let mut code = self.builder.at(depth);
        if exponent == 0.5 {
            // The square root, but +inf for -inf and +0 for -0.
            let (infinity, minus) = (code.num(x, f64::INFINITY), code.num(x, f64::NEG_INFINITY));
            let zero = code.num(x, 0.0);
            let x_plus_zero = code.add(x, zero);
            let root = code.unary(UnaryOp::Sqrt, x_plus_zero);
            let infinite = code.binary(BinaryOp::Eq, x, minus);
            return Ok(Some(code.select(infinite, infinity, root)));
        }
        let one = code.num(x, 1.0);
        let base = if exponent < 0.0 { code.div(one, x) } else { x };
        let square = |code: &mut super::build::At<'_>| code.mul(base, base);
        Ok(Some(match exponent.abs() as u32 {
            1 => base,
            2 => square(&mut code),
            3 => {
                let s = square(&mut code);
                code.mul(s, base)
            }
            _ => {
                let s = square(&mut code);
                code.mul(s, s)
            }
        }))
    }
}

fn of(op: &str, dtype: DType) -> String {
    format!("`{op}` of {dtype}")
}
