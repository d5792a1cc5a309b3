//! Conversions.
//!
//! Invariant: as [`kiln_ir::semantics`] has them: floats to integers truncate, saturate and take NaN to 0; integers
//! wrap; integers to floats round once.

use super::codes;
use super::emit::Emitter;
use super::machine::{Arg, Inst, Width};
use crate::Error;
use iced_x86::Code;
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, Class, DType};
use regalloc2::VReg;

const TWO_63: f64 = 9_223_372_036_854_775_808.0;

impl Emitter<'_> {
    pub fn cast(&mut self, id: ValueId, to: VectorType, a: ValueId) -> Result<VReg, Error> {
        let from = self.ty(a);
        if from.is_scalar() {
            let a = if from.dtype.is_float() { self.vector_of(a)? } else { self.integer(a)? };
            return self.cast_scalar(from.dtype, to.dtype, a);
        }
        if from.dtype == DType::Bool {
            let size = to.dtype.size() as u32;
            if to.dtype == DType::Bool {
                let bytes = self.mask_bytes[a.index()];
                self.mask_bytes[id.index()] = bytes;
                return self.mask_as(a, bytes);
            }
            let mask = self.mask_as(a, size)?;
            return self.one_where(to, mask);
        }
        if (from.dtype, to.dtype) == (DType::F32, DType::I32) {
            return self.floats_to_integers(from, a);
        }
        let v = self.vector_of(a)?;
        if from.dtype == to.dtype {
            return Ok(v);
        }
        let (source, target) = (self.width(from)?, if to.dtype == DType::Bool { Width::X } else { self.width(to)? });
        let widest = source.max(target);
        let used = Arg::Use(v, source);
        use DType::*;
        let row = match (from.dtype, to.dtype) {
            (_, Bool) => {
                self.mask_bytes[id.index()] = from.dtype.size() as u32;
                let zero = Arg::Use(self.filled(&[0], source)?, source);
                return self.compare_lanes(from, BinaryOp::Ne, v, zero);
            }
            (F32, F64) => codes::VCVTPS2PD,
            (F64, F32) => codes::VCVTPD2PS,
            (I32, F32) => codes::VCVTDQ2PS,
            (U32, F32) => codes::VCVTUDQ2PS,
            (I32, F64) => codes::VCVTDQ2PD,
            (U32, F64) => codes::VCVTUDQ2PD,
            (I64, F64) => codes::VCVTQQ2PD,
            (I32, I64 | U64) => codes::VPMOVSXDQ,
            (U32, I64 | U64) => codes::VPMOVZXDQ,
            (I64 | U64, I32 | U32) => codes::VPMOVQD,
            (a, b) if a.is_int() && b.is_int() && a.size() == b.size() => return Ok(v),
            _ => return self.scalarise(from, &[v], to, |e, v| e.cast_scalar(from.dtype, to.dtype, v[0])),
        };
        if !self.has(row, widest) {
            return self.scalarise(from, &[v], to, |e, v| e.cast_scalar(from.dtype, to.dtype, v[0]));
        }
        let (code, result) = (self.code(row, widest)?, self.vector());
        self.ins(code, &[Arg::Def(result, target), used]);
        Ok(result)
    }

    /// f32 to i32, rounded to the nearest even or towards zero. The processor gives the least integer for all that is out of range.
    fn floats_to_integers(&mut self, from: VectorType, a: ValueId) -> Result<VReg, Error> {
        let width = self.width(from)?;
        let ints = VectorType { dtype: DType::I32, ..from };
        let (row, a) = match self.take_rounded(a) {
            Some(rounded) => (codes::VCVTPS2DQ, rounded),
            None => (codes::VCVTTPS2DQ, a),
        };
        let v = self.vector_of(a)?;
        if self.is_below_integers(a) {
            if self.is_number(a) {
                return self.unary(row, width, Arg::Use(v, width));
            }
            let number = self.compare_lanes(from, BinaryOp::Eq, v, Arg::Use(v, width))?;
            if !self.wide() {
                let raw = self.unary(row, width, Arg::Use(v, width))?;
                return self.lanes_binary(ints, BinaryOp::And, raw, Arg::Use(number, width));
            }
            let (code, to) = (self.code(row, width)?, self.vector());
            let args = [Arg::Def(to, width), Arg::Use(v, width)];
            self.push(Inst { mask: Some(number), zeroing: true, ..Inst::new(code, &args) });
            return Ok(to);
        }
        let raw = self.unary(row, width, Arg::Use(v, width))?;
        let limit = self.repeated(&2_147_483_648f32.to_le_bytes(), width, 32);
        let above = self.compare_lanes(from, BinaryOp::Ge, v, limit)?;
        let number = self.compare_lanes(from, BinaryOp::Eq, v, Arg::Use(v, width))?;
        if self.wide() {
            let most = self.repeated(&i32::MAX.to_le_bytes(), width, 32);
            let limited = self.blend(4, width, above, most, raw)?;
            let (code, to) = (self.code(codes::VPANDD, width)?, self.vector());
            let args = [Arg::Def(to, width), Arg::Use(limited, width), Arg::Use(limited, width)];
            self.push(Inst { mask: Some(number), zeroing: true, ..Inst::new(code, &args) });
            return Ok(to);
        }
        // The least with all bits turned is the greatest.
        let limited = self.lanes_binary(ints, BinaryOp::Xor, raw, Arg::Use(above, width))?;
        self.lanes_binary(ints, BinaryOp::And, limited, Arg::Use(number, width))
    }

    pub fn cast_scalar(&mut self, from: DType, to: DType, a: VReg) -> Result<VReg, Error> {
        if from == to {
            return Ok(a);
        }
        let scalar = VectorType::scalar(from);
        Ok(match (from.class(), to.class()) {
            (Class::Float, Class::Double) => self.unary(codes::VCVTPS2PD, Width::X, Arg::Use(a, Width::X))?,
            (Class::Double, Class::Float) => self.unary(codes::VCVTPD2PS, Width::X, Arg::Use(a, Width::X))?,
            (Class::Float | Class::Double, Class::Bool) => {
                let zero = Arg::Use(self.filled(&[0], Width::X)?, Width::X);
                let mask = self.compare_lanes(scalar, BinaryOp::Ne, a, zero)?;
                self.truth_of(mask)?
            }
            (Class::Float, _) => {
                let a = self.unary(codes::VCVTPS2PD, Width::X, Arg::Use(a, Width::X))?;
                self.float_to_integer(to, a)?
            }
            (Class::Double, _) => self.float_to_integer(to, a)?,
            (_, Class::Bool) => {
                self.test(a);
                self.flag(Code::Setne_rm8)
            }
            (_, Class::Float | Class::Double) => self.integer_to_float(from, to, a)?,
            _ => self.wrapped(to, a),
        })
    }

    fn integer_to_float(&mut self, from: DType, to: DType, a: VReg) -> Result<VReg, Error> {
        let (signed, unsigned, add) = if to == DType::F32 {
            (codes::VCVTSI2SS, codes::VCVTUSI2SS, codes::VADDPS)
        } else {
            (codes::VCVTSI2SD, codes::VCVTUSI2SD, codes::VADDPD)
        };
        let zero = self.filled(&[0], Width::X)?;
        if from != DType::U64 || self.wide() {
            let row = if from == DType::U64 { unsigned } else { signed };
            return self.binary(row, Width::X, zero, Arg::Use(a, Width::Q));
        }
        // Halved with the lost bit kept, so that it is rounded as the whole; then doubled.
        let half = self.shifted(Code::Shr_rm64_imm8, a, 1);
        let bit = self.low_bit(a);
        let half = self.in_place(Code::Or_r64_rm64, half, Arg::Use(bit, Width::Q));
        self.test(a);
        let small = self.choose(Code::Cmovs_r64_rm64, a, half);
        let small = self.binary(signed, Width::X, zero, Arg::Use(small, Width::Q))?;
        let doubled = self.binary(add, Width::X, small, Arg::Use(small, Width::X))?;
        let large = self.shifted(Code::Shr_rm64_imm8, a, 63);
        let mask = self.mask_of_truth(large, Width::X)?;
        self.blend(to.size(), Width::X, mask, Arg::Use(doubled, Width::X), small)
    }

    /// Compares doubles; NaN sets the carry, zero and parity flags.
    fn compare_doubles(&mut self, a: VReg, b: Arg) {
        let code = if self.wide() { Code::EVEX_Vucomisd_xmm_xmmm64_sae } else { Code::VEX_Vucomisd_xmm_xmmm64 };
        self.ins(code, &[Arg::Use(a, Width::X), b]);
    }

    fn double(&mut self, value: f64) -> Result<VReg, Error> {
        self.filled(&value.to_le_bytes(), Width::X)
    }

    fn truncated(&mut self, a: VReg) -> Result<VReg, Error> {
        let (code, to) = (self.code(codes::VCVTTSD2SI, Width::X)?, self.general());
        self.ins(code, &[Arg::Def(to, Width::Q), Arg::Use(a, Width::X)]);
        Ok(to)
    }

    fn float_to_integer(&mut self, to: DType, a: VReg) -> Result<VReg, Error> {
        let limit = self.double(TWO_63)?;
        if to == DType::U64 {
            // NaN gives the second operand.
            let zero = self.filled(&[0], Width::X)?;
            let a = self.binary(codes::VMAXPD, Width::X, a, Arg::Use(zero, Width::X))?;
            if self.wide() {
                let (code, result) = (self.code(codes::VCVTTSD2USI, Width::X)?, self.general());
                self.ins(code, &[Arg::Def(result, Width::Q), Arg::Use(a, Width::X)]);
                return Ok(result);
            }
            let less = self.binary(codes::VSUBPD, Width::X, a, Arg::Use(limit, Width::X))?;
            let (low, high) = (self.truncated(a)?, self.truncated(less)?);
            let top = self.number(i64::MIN);
            let high = self.in_place(Code::Xor_r64_rm64, high, Arg::Use(top, Width::Q));
            let (all, twice) = (self.number(-1), self.double(2.0 * TWO_63)?);
            self.compare_doubles(a, Arg::Use(limit, Width::X));
            let result = self.choose(Code::Cmovae_r64_rm64, low, high);
            self.compare_doubles(a, Arg::Use(twice, Width::X));
            return Ok(self.choose(Code::Cmovae_r64_rm64, result, all));
        }
        let zero = self.number(0);
        let result = match to.int_range() {
            Some((lo, hi)) if to != DType::I64 => {
                let (lo, hi) = (self.double(lo as f64)?, self.double(hi as f64)?);
                let bounded = self.binary(codes::VMAXPD, Width::X, a, Arg::Use(lo, Width::X))?;
                let bounded = self.binary(codes::VMINPD, Width::X, bounded, Arg::Use(hi, Width::X))?;
                self.truncated(bounded)?
            }
            _ => {
                let (raw, most) = (self.truncated(a)?, self.number(i64::MAX));
                self.compare_doubles(a, Arg::Use(limit, Width::X));
                self.choose(Code::Cmovae_r64_rm64, raw, most)
            }
        };
        self.compare_doubles(a, Arg::Use(a, Width::X));
        Ok(self.choose(Code::Cmovp_r64_rm64, result, zero))
    }
}
