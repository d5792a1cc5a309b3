//! Conversions.
//!
//! Invariant: as [`kiln_ir::semantics`] has them: floats to integers truncate, saturate and take NaN to 0; integers
//! wrap; integers to floats round once.

use crate::Error;
use crate::emit::Emitter;
use cranelift_codegen::ir::condcodes::FloatCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use kiln_ir::vector::VectorType;
use kiln_ir::{Class, DType};

impl Emitter<'_, '_> {
    pub fn cast(&mut self, from: VectorType, to: VectorType, a: Value) -> Result<Value, Error> {
        let clif = self.clif_type(to)?;
        if from.dtype == to.dtype {
            return Ok(a);
        }
        if from.is_scalar() {
            return self.cast_scalar(from.dtype, to, a);
        }
        // Vectors of equal lane count are of equal lane width here: all are 16 bytes.
        match (from.dtype.class(), to.dtype.class()) {
            (Class::Bool, _) => {
                let one = match to.dtype {
                    DType::F32 => u64::from(1f32.to_bits()),
                    DType::F64 => 1f64.to_bits(),
                    _ => 1,
                };
                let lanes = self.builder.func.dfg.value_type(a);
                let one = self.lanes_of(lanes, one);
                let kept = self.builder.ins().band(a, one);
                Ok(self.bitcast(clif, kept))
            }
            (Class::Float | Class::Double, Class::Bool) => self.float_is_true(from, a),
            (_, Class::Bool) => self.int_is_true(from, a),
            (Class::Signed | Class::Unsigned, Class::Signed | Class::Unsigned) => Ok(a),
            (Class::Signed, Class::Float) => Ok(self.builder.ins().fcvt_from_sint(clif, a)),
            (Class::Unsigned, Class::Float) => Ok(self.builder.ins().fcvt_from_uint(clif, a)),
            (Class::Float, Class::Signed) => Ok(self.builder.ins().fcvt_to_sint_sat(clif, a)),
            (Class::Float, Class::Unsigned) => Ok(self.builder.ins().fcvt_to_uint_sat(clif, a)),
            _ => {
                let scalar = VectorType::scalar(to.dtype);
                self.scalarise(from, &[a], to, |e, v| e.cast_scalar(from.dtype, scalar, v[0]))
            }
        }
    }

    fn float_is_true(&mut self, ty: VectorType, a: Value) -> Result<Value, Error> {
        let clif = self.clif_type(ty)?;
        let zero = self.float(clif, 0.0);
        Ok(self.builder.ins().fcmp(FloatCC::NotEqual, a, zero))
    }

    fn cast_scalar(&mut self, from: DType, to: VectorType, a: Value) -> Result<Value, Error> {
        let clif = self.clif_type(to)?;
        let have = self.builder.func.dfg.value_type(a);
        let signed = from.class() == Class::Signed;
        Ok(match (from.class(), to.dtype.class()) {
            (Class::Float, Class::Double) => self.builder.ins().fpromote(clif, a),
            (Class::Double, Class::Float) => self.builder.ins().fdemote(clif, a),
            (Class::Float | Class::Double, Class::Bool) => self.float_is_true(VectorType::scalar(from), a)?,
            (Class::Float | Class::Double, _) => self.float_to_int(to.dtype, a)?,
            (_, Class::Bool) => self.int_is_true(VectorType::scalar(from), a)?,
            (_, Class::Float | Class::Double) => {
                // Narrow integers are exact in the next wider signed one.
                match (from, have.bits()) {
                    (DType::U64, _) => self.builder.ins().fcvt_from_uint(clif, a),
                    (DType::U32, _) => {
                        let wide = self.builder.ins().uextend(types::I64, a);
                        self.builder.ins().fcvt_from_sint(clif, wide)
                    }
                    (_, 8 | 16) => {
                        let wide = if signed {
                            self.builder.ins().sextend(types::I32, a)
                        } else {
                            self.builder.ins().uextend(types::I32, a)
                        };
                        self.builder.ins().fcvt_from_sint(clif, wide)
                    }
                    _ => self.builder.ins().fcvt_from_sint(clif, a),
                }
            }
            _ if have.bits() == clif.bits() => a,
            _ if have.bits() > clif.bits() => self.builder.ins().ireduce(clif, a),
            _ if signed => self.builder.ins().sextend(clif, a),
            _ => self.builder.ins().uextend(clif, a),
        })
    }

    fn float_to_int(&mut self, to: DType, a: Value) -> Result<Value, Error> {
        let clif = self.clif_type(VectorType::scalar(to))?;
        if clif.bits() >= 32 {
            return Ok(if to.class() == Class::Signed {
                self.builder.ins().fcvt_to_sint_sat(clif, a)
            } else {
                self.builder.ins().fcvt_to_uint_sat(clif, a)
            });
        }
        // Saturated twice, which is the same as once.
        let wide = self.builder.ins().fcvt_to_sint_sat(types::I32, a);
        let Some((lo, hi)) = to.int_range() else {
            return Err(self.unsupported(format!("a float as {to}")));
        };
        let lo = self.lanes_of(types::I32, lo as u64);
        let hi = self.lanes_of(types::I32, hi as u64);
        let wide = self.builder.ins().smax(wide, lo);
        let wide = self.builder.ins().smin(wide, hi);
        Ok(self.builder.ins().ireduce(clif, wide))
    }
}
