//! What moves lanes: splats, packs, extracts, folds and bits.
//!
//! Invariant: lane 0 is at the lowest byte; a fold takes lanes `i` and `i + n/2` first.

use super::codes;
use super::emit::Emitter;
use super::machine::{Arg, Width};
use crate::Error;
use iced_x86::Code;
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, DType};
use regalloc2::VReg;

impl Emitter<'_> {
    /// A scalar in the kind of register that holds it.
    fn scalar_of(&mut self, id: ValueId) -> Result<VReg, Error> {
        if self.ty(id).dtype.is_float() { self.vector_of(id) } else { self.integer(id) }
    }

    pub fn splat(&mut self, id: ValueId, ty: VectorType, a: ValueId) -> Result<VReg, Error> {
        if ty.is_scalar() {
            return self.scalar_of(a);
        }
        if ty.dtype == DType::Bool {
            let bytes = (32 / ty.lanes).clamp(1, 8);
            self.mask_bytes[id.index()] = bytes;
            let truth = self.integer(a)?;
            let width = if self.wide() { Width::Z } else { self.mask_width(ty.lanes, bytes)? };
            return self.mask_of_truth(truth, width);
        }
        let width = self.width(ty)?;
        if let Some(c) = self.constant_of(a) {
            return self.filled(&Self::element(c), width);
        }
        if let Some(address) = self.take_load(a) {
            return self.load(ty, &address, true);
        }
        let size = ty.dtype.size();
        if ty.dtype.is_float() {
            let a = self.vector_of(a)?;
            let row = match (size, width) {
                (4, _) => codes::VBROADCASTSS,
                (_, Width::X) => codes::VMOVDDUP,
                _ => codes::VBROADCASTSD,
            };
            return self.unary(row, width, Arg::Use(a, Width::X));
        }
        let a = self.integer(a)?;
        let general = if size == 8 { Width::Q } else { Width::D };
        if self.wide() {
            let row = match size {
                1 => codes::VPBROADCASTB_GPR,
                2 => codes::VPBROADCASTW_GPR,
                4 => codes::VPBROADCASTD_GPR,
                _ => codes::VPBROADCASTQ_GPR,
            };
            return self.unary(row, width, Arg::Use(a, general));
        }
        let a = self.moved_to_vector(a)?;
        let row = match size {
            1 => codes::VPBROADCASTB,
            2 => codes::VPBROADCASTW,
            4 => codes::VPBROADCASTD,
            _ => codes::VPBROADCASTQ,
        };
        self.unary(row, width, Arg::Use(a, Width::X))
    }

    /// The 8 bytes of a general register as the low bytes of a vector.
    pub fn moved_to_vector(&mut self, a: VReg) -> Result<VReg, Error> {
        self.unary(codes::VMOVQ, Width::X, Arg::Use(a, Width::Q))
    }

    pub fn pack_values(&mut self, id: ValueId, ty: VectorType, values: &[ValueId]) -> Result<VReg, Error> {
        self.mask_bytes[id.index()] = (32 / ty.lanes).clamp(1, 8);
        if let Some((op, vectors)) = self.take_folds(values)
            && let Some(folded) = self.folded_together(op, &vectors)?
        {
            return Ok(folded);
        }
        let scalars = values.iter().map(|&v| self.scalar_of(v)).collect::<Result<Vec<_>, _>>()?;
        self.pack(ty, &scalars)
    }

    /// Scalars as the lanes of a vector; of a mask on AVX2, of the lanes' bytes by their number.
    pub fn pack(&mut self, ty: VectorType, scalars: &[VReg]) -> Result<VReg, Error> {
        if ty.is_scalar() {
            return scalars.first().copied().ok_or_else(|| self.unsupported("a vector of nothing"));
        }
        if ty.dtype == DType::Bool && self.wide() {
            let mut bits = self.number(0);
            for (lane, &truth) in scalars.iter().enumerate() {
                let at = self.shifted(Code::Shl_rm64_imm8, truth, lane as u8);
                bits = self.in_place(Code::Or_r64_rm64, bits, Arg::Use(at, Width::Q));
            }
            let to = self.mask();
            self.ins(Code::VEX_Kmovq_kr_r64, &[Arg::Def(to, Width::K), Arg::Use(bits, Width::Q)]);
            return Ok(to);
        }
        let (size, scalars) = if ty.dtype == DType::Bool {
            let all = scalars.iter().map(|&s| self.all_bits(s)).collect();
            ((32 / ty.lanes as usize).clamp(1, 8), all)
        } else {
            (ty.dtype.size(), scalars.to_vec())
        };
        let mut chunks = Vec::new();
        for lanes in scalars.chunks(16 / size) {
            let mut vector = None;
            for (lane, &scalar) in lanes.iter().enumerate() {
                let from = Arg::Use(scalar, Width::X);
                vector = Some(match vector {
                    None if ty.dtype.is_float() => scalar,
                    None => self.moved_to_vector(scalar)?,
                    Some(v) if ty.dtype == DType::F32 => {
                        self.binary_with(codes::VINSERTPS, Width::X, v, from, (lane as u8) << 4)?
                    }
                    Some(v) if ty.dtype == DType::F64 => self.binary(codes::VUNPCKLPD, Width::X, v, from)?,
                    Some(v) => {
                        let general = if size == 8 { Width::Q } else { Width::D };
                        self.insert(size, v, Arg::Use(scalar, general), lane as u8)?
                    }
                });
            }
            chunks.extend(vector);
        }
        self.join(&chunks, size * ty.lanes as usize)
    }

    /// Registers of 16 bytes as one of so many.
    pub fn join(&mut self, chunks: &[VReg], bytes: usize) -> Result<VReg, Error> {
        match *chunks {
            [one] => Ok(one),
            [low, high] if bytes == 32 => {
                let row = if self.wide() { codes::VINSERTF32X4 } else { codes::VINSERTF128 };
                self.binary_with(row, Width::Y, low, Arg::Use(high, Width::X), 1)
            }
            [a, b, c, d] if bytes == 64 && self.wide() => {
                let (low, high) = (self.join(&[a, b], 32)?, self.join(&[c, d], 32)?);
                self.binary_with(codes::VINSERTF64X4, Width::Z, low, Arg::Use(high, Width::Y), 1)
            }
            _ => Err(self.unsupported(format!("vectors of {bytes} bytes at this level"))),
        }
    }

    /// 16 bytes of a register.
    pub fn chunk(&mut self, vector: VReg, width: Width, index: u8) -> Result<VReg, Error> {
        if index == 0 {
            return Ok(vector);
        }
        let row = if self.wide() { codes::VEXTRACTF32X4 } else { codes::VEXTRACTF128 };
        let (code, to) = (self.code(row, width)?, self.vector());
        self.ins(code, &[Arg::Def(to, Width::X), Arg::Use(vector, width), super::emit::imm8(index)]);
        Ok(to)
    }

    pub fn extract_value(&mut self, a: ValueId, lane: u32) -> Result<VReg, Error> {
        let ty = self.ty(a);
        if ty.is_scalar() {
            return self.scalar_of(a);
        }
        if ty.dtype == DType::Bool {
            let bytes = self.mask_bytes[a.index()];
            let mask = self.mask_as(a, bytes)?;
            return self.mask_lane(mask, ty.lanes, bytes, lane);
        }
        let a = self.vector_of(a)?;
        self.extract(ty, a, lane)
    }

    fn mask_lane(&mut self, mask: VReg, lanes: u32, bytes: u32, lane: u32) -> Result<VReg, Error> {
        if self.wide() {
            let bits = self.general();
            self.ins(Code::VEX_Kmovq_r64_kr, &[Arg::Def(bits, Width::Q), Arg::Use(mask, Width::K)]);
            let at = self.shifted(Code::Shr_rm64_imm8, bits, lane as u8);
            return Ok(self.low_bit(at));
        }
        let dtype = match bytes {
            1 => DType::U8,
            2 => DType::U16,
            4 => DType::U32,
            _ => DType::U64,
        };
        let all = self.extract(VectorType { dtype, lanes }, mask, lane)?;
        Ok(self.low_bit(all))
    }

    /// One lane of a vector that is no mask.
    pub fn extract(&mut self, ty: VectorType, a: VReg, lane: u32) -> Result<VReg, Error> {
        let size = ty.dtype.size();
        let per_chunk = 16 / size as u32;
        let width = self.width(ty)?;
        let chunk = self.chunk(a, width, (lane / per_chunk) as u8)?;
        let lane = (lane % per_chunk) as u8;
        let from = Arg::Use(chunk, Width::X);
        if ty.dtype.is_float() {
            return match (size, lane) {
                (_, 0) => Ok(chunk),
                (4, _) => self.unary_with(codes::VPSHUFD, Width::X, from, lane),
                _ => self.unary_with(codes::VPSHUFD, Width::X, from, 0x4e),
            };
        }
        let (row, general) = match size {
            1 => (codes::VPEXTRB, Width::D),
            2 => (codes::VPEXTRW, Width::D),
            4 => (codes::VPEXTRD, Width::D),
            _ => (codes::VPEXTRQ, Width::Q),
        };
        let (code, to) = (self.code(row, Width::X)?, self.general());
        self.ins(code, &[Arg::Def(to, general), from, super::emit::imm8(lane)]);
        Ok(self.wrapped(ty.dtype, to))
    }

    /// Applies `f` to every lane as a scalar of type `from`; the results are the lanes of `to`.
    pub fn scalarise(
        &mut self,
        from: VectorType,
        operands: &[VReg],
        to: VectorType,
        mut f: impl FnMut(&mut Self, &[VReg]) -> Result<VReg, Error>,
    ) -> Result<VReg, Error> {
        let mut scalars = Vec::new();
        for lane in 0..from.lanes {
            let lanes = operands.iter().map(|&v| self.extract(from, v, lane)).collect::<Result<Vec<_>, _>>()?;
            scalars.push(f(self, &lanes)?);
        }
        self.pack(to, &scalars)
    }

    pub fn fold(&mut self, op: BinaryOp, a: ValueId) -> Result<VReg, Error> {
        let ty = self.ty(a);
        if ty.is_scalar() {
            return self.scalar_of(a);
        }
        if ty.dtype == DType::Bool {
            return self.fold_mask(op, a, ty.lanes);
        }
        let mut vector = self.vector_of(a)?;
        let size = ty.dtype.size();
        let mut half = ty.lanes as usize / 2;
        while half > 0 {
            let upper = match half * size {
                32 => {
                    let (code, to) = (self.code(codes::VEXTRACTF64X4, Width::Z)?, self.vector());
                    self.ins(code, &[Arg::Def(to, Width::Y), Arg::Use(vector, Width::Z), super::emit::imm8(1)]);
                    to
                }
                16 => self.chunk(vector, Width::Y, 1)?,
                bytes => self.unary_with(codes::VPSRLDQ, Width::X, Arg::Use(vector, Width::X), bytes as u8)?,
            };
            // What is beyond the half does not matter.
            let part = VectorType { lanes: half.max(16 / size) as u32, ..ty };
            let width = self.width(part)?;
            vector = self.lanes_binary(part, op, vector, Arg::Use(upper, width))?;
            half /= 2;
        }
        self.extract(VectorType { lanes: 16 / size as u32, ..ty }, vector, 0)
    }

    fn fold_mask(&mut self, op: BinaryOp, a: ValueId, lanes: u32) -> Result<VReg, Error> {
        let bytes = self.mask_bytes[a.index()];
        let mask = self.mask_as(a, bytes)?;
        let bits = self.general();
        let count = if self.wide() {
            self.ins(Code::VEX_Kmovq_r64_kr, &[Arg::Def(bits, Width::Q), Arg::Use(mask, Width::K)]);
            lanes
        } else {
            let width = self.mask_width(lanes, bytes)?;
            let code = self.code(codes::VPMOVMSKB, width)?;
            self.ins(code, &[Arg::Def(bits, Width::D), Arg::Use(mask, width)]);
            lanes * bytes
        };
        let all = self.number((u64::MAX >> (64 - count)) as i64);
        let bits = self.in_place(Code::And_r64_rm64, bits, Arg::Use(all, Width::Q));
        if matches!(op, BinaryOp::And | BinaryOp::Mul | BinaryOp::Min) {
            self.compare(bits, Arg::Use(all, Width::Q));
            return Ok(self.flag(Code::Sete_rm8));
        }
        self.test(bits);
        Ok(self.flag(Code::Setne_rm8))
    }

    /// The bytes of a value as another type of the same total size.
    pub fn bitcast(&mut self, to: VectorType, a: ValueId) -> Result<VReg, Error> {
        let from = self.ty(a);
        let general = |ty: VectorType| ty.is_scalar() && !ty.dtype.is_float();
        match (general(from), general(to)) {
            (false, false) => self.vector_of(a),
            (true, true) => {
                let a = self.integer(a)?;
                Ok(self.wrapped(to.dtype, a))
            }
            (true, false) => {
                let a = self.integer(a)?;
                self.moved_to_vector(a)
            }
            (false, true) => {
                let (code, bits) = (self.code(codes::VMOVQ_GPR, Width::X)?, self.general());
                let a = self.vector_of(a)?;
                self.ins(code, &[Arg::Def(bits, Width::Q), Arg::Use(a, Width::X)]);
                Ok(self.wrapped(to.dtype, bits))
            }
        }
    }
}
