//! Arithmetic on integers and bools.
//!
//! Invariant: no instruction traps, and the cases that others leave open follow [`kiln_ir::semantics`].

use crate::Error;
use crate::emit::{Emitter, Origin};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, Class, DType, UnaryOp};

fn condition(op: BinaryOp, signed: bool) -> Option<IntCC> {
    Some(match (op, signed) {
        (BinaryOp::Eq, _) => IntCC::Equal,
        (BinaryOp::Ne, _) => IntCC::NotEqual,
        (BinaryOp::Lt, true) => IntCC::SignedLessThan,
        (BinaryOp::Lt, false) => IntCC::UnsignedLessThan,
        (BinaryOp::Le, true) => IntCC::SignedLessThanOrEqual,
        (BinaryOp::Le, false) => IntCC::UnsignedLessThanOrEqual,
        (BinaryOp::Gt, true) => IntCC::SignedGreaterThan,
        (BinaryOp::Gt, false) => IntCC::UnsignedGreaterThan,
        (BinaryOp::Ge, true) => IntCC::SignedGreaterThanOrEqual,
        (BinaryOp::Ge, false) => IntCC::UnsignedGreaterThanOrEqual,
        _ => return None,
    })
}

impl Emitter<'_, '_> {
    pub fn int_unary(&mut self, op: UnaryOp, ty: VectorType, a: Value) -> Result<Value, Error> {
        Ok(match (op, ty.dtype.class()) {
            (UnaryOp::Not, Class::Bool) if ty.is_scalar() => self.builder.ins().bxor_imm_u(a, 1),
            (UnaryOp::Not, _) => self.builder.ins().bnot(a),
            (UnaryOp::Neg, Class::Signed | Class::Unsigned) => self.builder.ins().ineg(a),
            (UnaryOp::Abs, Class::Signed) => self.builder.ins().iabs(a),
            (UnaryOp::Abs, Class::Unsigned) => a,
            (other, _) => return Err(self.unsupported(format!("`{}` of {ty}", other.name()))),
        })
    }

    pub fn bool_binary(&mut self, op: BinaryOp, ty: VectorType, a: Value, b: Value) -> Result<Value, Error> {
        // Only these make new bits; the rest are and, or, xor on 0 and 1 as on all zeros and all ones.
        let not = |emitter: &mut Self, x: Value| emitter.int_unary(UnaryOp::Not, ty, x);
        Ok(match op {
            BinaryOp::And | BinaryOp::Mul | BinaryOp::Min => self.builder.ins().band(a, b),
            BinaryOp::Or | BinaryOp::Add | BinaryOp::Max => self.builder.ins().bor(a, b),
            BinaryOp::Xor | BinaryOp::Ne => self.builder.ins().bxor(a, b),
            BinaryOp::Eq => {
                let differ = self.builder.ins().bxor(a, b);
                not(self, differ)?
            }
            BinaryOp::Lt | BinaryOp::Ge => {
                let not_a = not(self, a)?;
                let less = self.builder.ins().band(not_a, b);
                if op == BinaryOp::Lt { less } else { not(self, less)? }
            }
            BinaryOp::Gt | BinaryOp::Le => {
                let not_b = not(self, b)?;
                let greater = self.builder.ins().band(a, not_b);
                if op == BinaryOp::Gt { greater } else { not(self, greater)? }
            }
            other => return Err(self.unsupported(format!("`{}` of {ty}", other.name()))),
        })
    }

    pub fn int_binary(&mut self, op: BinaryOp, ty: VectorType, a: ValueId, b: ValueId) -> Result<Value, Error> {
        let (x, y) = (self.value(a), self.value(b));
        match op {
            BinaryOp::Shl | BinaryOp::Shr => {
                if let Some(amount) = self.constant_of(b) {
                    return Ok(self.shift_by_constant(op, ty, x, amount.bits));
                }
                if !ty.is_scalar() {
                    if let Origin::Splat(amount) = self.origins[b.index()] {
                        return self.shift_by_scalar(op, ty, x, self.value(amount));
                    }
                    let scalar = VectorType::scalar(ty.dtype);
                    return self.scalarise(ty, &[x, y], ty, |e, v| e.int_values(op, scalar, v[0], v[1]));
                }
            }
            BinaryOp::Div | BinaryOp::Rem | BinaryOp::Mod => {
                // With a constant that can neither trap nor wrap, no guard is needed.
                if let Some(divisor) = self.constant_of(b)
                    && divisor.bits != 0
                    && divisor.bits as i64 != -1
                {
                    return self.divide(op, ty, x, y, true);
                }
            }
            _ => {}
        }
        self.int_values(op, ty, x, y)
    }

    pub fn int_values(&mut self, op: BinaryOp, ty: VectorType, a: Value, b: Value) -> Result<Value, Error> {
        let signed = ty.dtype.class() == Class::Signed;
        if let Some(condition) = condition(op, signed) {
            return Ok(self.builder.ins().icmp(condition, a, b));
        }
        Ok(match op {
            BinaryOp::Add => self.builder.ins().iadd(a, b),
            BinaryOp::Sub => self.builder.ins().isub(a, b),
            BinaryOp::Mul if ty.lanes == 16 && self.target.is_x86() => self.multiply_bytes(a, b),
            BinaryOp::Mul => self.builder.ins().imul(a, b),
            BinaryOp::Div | BinaryOp::Rem | BinaryOp::Mod => self.divide(op, ty, a, b, false)?,
            BinaryOp::Min if signed => self.builder.ins().smin(a, b),
            BinaryOp::Max if signed => self.builder.ins().smax(a, b),
            BinaryOp::Min => self.builder.ins().umin(a, b),
            BinaryOp::Max => self.builder.ins().umax(a, b),
            BinaryOp::And => self.builder.ins().band(a, b),
            BinaryOp::Or => self.builder.ins().bor(a, b),
            BinaryOp::Xor => self.builder.ins().bxor(a, b),
            BinaryOp::Shl | BinaryOp::Shr => self.shift_by_scalar(op, ty, a, b)?,
            BinaryOp::Dot4 => self.dot_of_bytes(ty, a, b),
            other => return Err(self.unsupported(format!("`{}` of {ty}", other.name()))),
        })
    }

    /// The dot products of the bytes of i32 lanes, unsigned those of `a`: as 16-bit lanes, even and odd ones, whose products are
    /// added in pairs. Cranelift makes the widening, multiplying and adding one instruction on x86-64 (`pmaddwd`).
    fn dot_of_bytes(&mut self, ty: VectorType, a: Value, b: Value) -> Value {
        let scalar = ty.is_scalar();
        let [a, b] = [a, b].map(|v| if scalar { self.builder.ins().scalar_to_vector(types::I32X4, v) } else { v });
        let [a, b] = [a, b].map(|v| self.bitcast(types::I16X8, v));
        let low = self.lanes_of(types::I16X8, 0xff);
        let even_a = self.builder.ins().band(a, low);
        let odd_a = self.builder.ins().ushr_imm_u(a, 8);
        let moved = self.builder.ins().ishl_imm_u(b, 8);
        let even_b = self.builder.ins().sshr_imm_u(moved, 8);
        let odd_b = self.builder.ins().sshr_imm_u(b, 8);
        let mut pairs = |a: Value, b: Value| {
            let (low_a, low_b) = (self.builder.ins().swiden_low(a), self.builder.ins().swiden_low(b));
            let (high_a, high_b) = (self.builder.ins().swiden_high(a), self.builder.ins().swiden_high(b));
            let (low, high) = (self.builder.ins().imul(low_a, low_b), self.builder.ins().imul(high_a, high_b));
            self.builder.ins().iadd_pairwise(low, high)
        };
        let (even, odd) = (pairs(even_a, even_b), pairs(odd_a, odd_b));
        let sum = self.builder.ins().iadd(even, odd);
        if scalar { self.builder.ins().extractlane(sum, 0) } else { sum }
    }

    /// x86 multiplies no bytes: widen, multiply, keep the low halves.
    fn multiply_bytes(&mut self, a: Value, b: Value) -> Value {
        let low_bytes = self.lanes_of(types::I16X8, 0xff);
        let ins = |e: &mut Self, wide_a: Value, wide_b: Value| {
            let product = e.builder.ins().imul(wide_a, wide_b);
            e.builder.ins().band(product, low_bytes)
        };
        let (low_a, low_b) = (self.builder.ins().uwiden_low(a), self.builder.ins().uwiden_low(b));
        let (high_a, high_b) = (self.builder.ins().uwiden_high(a), self.builder.ins().uwiden_high(b));
        let low = ins(self, low_a, low_b);
        let high = ins(self, high_a, high_b);
        // It saturates, which numbers up to 255 do not notice.
        self.builder.ins().unarrow(low, high)
    }

    /// All lanes by one constant amount.
    fn shift_by_constant(&mut self, op: BinaryOp, ty: VectorType, a: Value, amount: u64) -> Value {
        let bits = u64::from(ty.dtype.bits());
        let signed = ty.dtype.class() == Class::Signed;
        match op {
            BinaryOp::Shr if signed => {
                let amount = amount.min(bits - 1) as i64;
                self.builder.ins().sshr_imm_u(a, amount)
            }
            _ if amount >= bits => {
                let ty = self.builder.func.dfg.value_type(a);
                self.lanes_of(ty, 0)
            }
            BinaryOp::Shl => self.builder.ins().ishl_imm_u(a, amount as i64),
            _ => self.builder.ins().ushr_imm_u(a, amount as i64),
        }
    }

    /// All lanes by one amount, a scalar of the lanes' type.
    fn shift_by_scalar(&mut self, op: BinaryOp, ty: VectorType, a: Value, amount: Value) -> Result<Value, Error> {
        let clif = self.clif_type(ty)?;
        let bits = i64::from(ty.dtype.bits());
        if op == BinaryOp::Shr && ty.dtype.class() == Class::Signed {
            let most = self.lanes_of(clif.lane_type(), bits as u64 - 1);
            let amount = self.builder.ins().umin(amount, most);
            return Ok(self.builder.ins().sshr(a, amount));
        }
        let shifted =
            if op == BinaryOp::Shl { self.builder.ins().ishl(a, amount) } else { self.builder.ins().ushr(a, amount) };
        let inside = self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, amount, bits);
        let zero = self.lanes_of(clif, 0);
        Ok(self.builder.ins().select(inside, shifted, zero))
    }

    /// Division, remainder or modulus. `plain`: the divisor is known to be neither 0 nor -1 (of signed).
    fn divide(&mut self, op: BinaryOp, ty: VectorType, a: Value, b: Value, plain: bool) -> Result<Value, Error> {
        if !ty.is_scalar() {
            let scalar = VectorType::scalar(ty.dtype);
            return if plain {
                let divisor = self.extract(ty, b, 0);
                self.scalarise(ty, &[a], ty, |e, v| e.divide(op, scalar, v[0], divisor, true))
            } else {
                self.scalarise(ty, &[a, b], ty, |e, v| e.divide(op, scalar, v[0], v[1], false))
            };
        }
        let clif = self.clif_type(ty)?;
        let signed = ty.dtype.class() == Class::Signed;
        // By 1 where it would trap: then every remainder is right already.
        let divisor = if plain {
            b
        } else {
            let one = self.lanes_of(clif, 1);
            let traps = if signed {
                // b + 1 is 0 or 1.
                let next = self.builder.ins().iadd(b, one);
                self.builder.ins().icmp(IntCC::UnsignedLessThanOrEqual, next, one)
            } else {
                self.builder.ins().icmp_imm_u(IntCC::Equal, b, 0)
            };
            self.builder.ins().select(traps, one, b)
        };
        match (op, signed) {
            (BinaryOp::Div, _) => {
                let quotient =
                    if signed { self.builder.ins().sdiv(a, divisor) } else { self.builder.ins().udiv(a, divisor) };
                if plain {
                    return Ok(quotient);
                }
                let mut quotient = quotient;
                if signed {
                    let minus = self.builder.ins().ineg(a);
                    let by_minus_one = self.builder.ins().icmp_imm_s(IntCC::Equal, b, -1);
                    quotient = self.builder.ins().select(by_minus_one, minus, quotient);
                }
                let by_zero = self.builder.ins().icmp_imm_u(IntCC::Equal, b, 0);
                let zero = self.lanes_of(clif, 0);
                Ok(self.builder.ins().select(by_zero, zero, quotient))
            }
            (_, false) => Ok(self.builder.ins().urem(a, divisor)),
            (BinaryOp::Rem, true) => Ok(self.builder.ins().srem(a, divisor)),
            (_, true) => {
                // The sign of the divisor: one more divisor where the signs differ.
                let rest = self.builder.ins().srem(a, divisor);
                let moved = self.builder.ins().iadd(rest, b);
                let signs = self.builder.ins().bxor(rest, b);
                let differ = self.builder.ins().icmp_imm_s(IntCC::SignedLessThan, signs, 0);
                let some = self.builder.ins().icmp_imm_u(IntCC::NotEqual, rest, 0);
                let wrong = self.builder.ins().band(differ, some);
                Ok(self.builder.ins().select(wrong, moved, rest))
            }
        }
    }

    /// Whether lanes differ from zero: a mask, or a scalar bool.
    pub fn int_is_true(&mut self, ty: VectorType, a: Value) -> Result<Value, Error> {
        debug_assert!(ty.dtype != DType::Bool, "bools need no conversion");
        let clif = self.clif_type(ty)?;
        let zero = self.lanes_of(clif, 0);
        Ok(self.builder.ins().icmp(IntCC::NotEqual, a, zero))
    }
}
