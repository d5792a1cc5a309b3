//! Arithmetic on floats.
//!
//! Invariant: bit-exact with [`kiln_ir::semantics`], but for the sign and payload of a NaN that an operation makes.

use crate::Error;
use crate::emit::Emitter;
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value};
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, UnaryOp};

/// The condition of a comparison.
fn condition(op: BinaryOp) -> Option<FloatCC> {
    Some(match op {
        BinaryOp::Eq => FloatCC::Equal,
        // True where one is a NaN, the others false.
        BinaryOp::Ne => FloatCC::NotEqual,
        BinaryOp::Lt => FloatCC::LessThan,
        BinaryOp::Le => FloatCC::LessThanOrEqual,
        BinaryOp::Gt => FloatCC::GreaterThan,
        BinaryOp::Ge => FloatCC::GreaterThanOrEqual,
        _ => return None,
    })
}

impl Emitter<'_, '_> {
    pub fn float_unary(&mut self, op: UnaryOp, ty: Type, a: Value) -> Result<Value, Error> {
        let ins = self.builder.ins();
        Ok(match op {
            UnaryOp::Neg => ins.fneg(a),
            UnaryOp::Abs => ins.fabs(a),
            UnaryOp::Floor => ins.floor(a),
            UnaryOp::Ceil => ins.ceil(a),
            UnaryOp::Round => ins.nearest(a),
            UnaryOp::Trunc => ins.trunc(a),
            UnaryOp::Sqrt => ins.sqrt(a),
            UnaryOp::Not => {
                let (zero, one) = (self.float(ty, 0.0), self.float(ty, 1.0));
                let is_zero = self.builder.ins().fcmp(FloatCC::Equal, a, zero);
                if ty.is_vector() {
                    self.select_lanes(ty, is_zero, one, zero)
                } else {
                    self.builder.ins().select(is_zero, one, zero)
                }
            }
            other => return Err(self.unsupported(format!("`{}` of floats", other.name()))),
        })
    }

    pub fn float_binary(&mut self, op: BinaryOp, ty: VectorType, a: ValueId, b: ValueId) -> Result<Value, Error> {
        let (x, y) = (self.value(a), self.value(b));
        if self.target.is_x86() && matches!(op, BinaryOp::Min | BinaryOp::Max) {
            // Both are commutative; a constant has cheaper code.
            for (constant, c, x) in [(b, y, x), (a, x, y)] {
                if let Some(constant) = self.constant_of(constant)
                    && let Some(result) = self.bound(op, ty, x, c, constant.as_f64())?
                {
                    return Ok(result);
                }
            }
        }
        self.float_values(op, ty, x, y)
    }

    pub fn float_values(&mut self, op: BinaryOp, ty: VectorType, a: Value, b: Value) -> Result<Value, Error> {
        if let Some(condition) = condition(op) {
            return Ok(self.builder.ins().fcmp(condition, a, b));
        }
        Ok(match op {
            BinaryOp::Add => self.builder.ins().fadd(a, b),
            BinaryOp::Sub => self.builder.ins().fsub(a, b),
            BinaryOp::Mul => self.builder.ins().fmul(a, b),
            BinaryOp::Div => self.builder.ins().fdiv(a, b),
            // Arm's instructions give NaN for NaN and order the zeros.
            BinaryOp::Min if !self.target.is_x86() => self.builder.ins().fmin(a, b),
            BinaryOp::Max if !self.target.is_x86() => self.builder.ins().fmax(a, b),
            // minps gives its second operand for NaNs and zeros. The or of both orders is the same number where
            // they agree, -0 where one zero is negative, and a NaN where one operand is: its exponent is all ones
            // and its fraction not zero.
            BinaryOp::Min => {
                let (one, other) = (self.first_if_less(a, b), self.first_if_less(b, a));
                self.builder.ins().bor(one, other)
            }
            // Likewise with "and" for +0, which however may destroy a NaN.
            BinaryOp::Max => {
                let (one, other) = (self.first_if_greater(a, b), self.first_if_greater(b, a));
                let both = self.builder.ins().band(one, other);
                let nan = self.builder.ins().fcmp(FloatCC::Unordered, a, b);
                if ty.is_scalar() {
                    let clif = self.clif_type(ty)?;
                    let quiet = self.float(clif, f32::NAN);
                    self.builder.ins().select(nan, quiet, both)
                } else {
                    let nan = self.bitcast(self.clif_type(ty)?, nan);
                    self.builder.ins().bor(nan, both)
                }
            }
            other => return Err(self.unsupported(format!("`{}` of floats", other.name()))),
        })
    }

    /// `min(x, c)` or `max(x, c)` with a constant in one or two x86 instructions, where there is such code.
    fn bound(
        &mut self,
        op: BinaryOp,
        ty: VectorType,
        x: Value,
        c: Value,
        constant: f64,
    ) -> Result<Option<Value>, Error> {
        let negative_zero = constant == 0.0 && constant.is_sign_negative();
        let positive_zero = constant == 0.0 && !constant.is_sign_negative();
        Ok(match op {
            _ if constant.is_nan() => None,
            // For a NaN and for equal zeros the instruction gives x, which is right unless the constant is the zero
            // that wins.
            BinaryOp::Min if !negative_zero => Some(self.first_if_less(c, x)),
            BinaryOp::Max if !positive_zero => Some(self.first_if_greater(c, x)),
            // x but where x <= 0, which is false for NaN.
            BinaryOp::Max => {
                let low = self.builder.ins().fcmp(FloatCC::LessThanOrEqual, x, c);
                if ty.is_scalar() {
                    return Ok(Some(self.builder.ins().select(low, c, x)));
                }
                let bits = self.bitcast(self.builder.func.dfg.value_type(low), x);
                let kept = self.builder.ins().band_not(bits, low);
                Some(self.bitcast(self.clif_type(ty)?, kept))
            }
            _ => None,
        })
    }

    /// `a < b ? a : b`: minps.
    fn first_if_less(&mut self, a: Value, b: Value) -> Value {
        let less = self.builder.ins().fcmp(FloatCC::LessThan, a, b);
        self.choose(less, a, b)
    }

    /// `a > b ? a : b`: maxps. Written with `<` because that is the form which the selector knows.
    fn first_if_greater(&mut self, a: Value, b: Value) -> Value {
        let greater = self.builder.ins().fcmp(FloatCC::LessThan, b, a);
        self.choose(greater, a, b)
    }

    fn choose(&mut self, condition: Value, a: Value, b: Value) -> Value {
        let ty = self.builder.func.dfg.value_type(a);
        if ty.is_vector() {
            let mask = self.bitcast(ty, condition);
            self.builder.ins().bitselect(mask, a, b)
        } else {
            self.builder.ins().select(condition, a, b)
        }
    }
}
