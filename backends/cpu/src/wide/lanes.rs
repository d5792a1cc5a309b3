//! Floats, vectors and masks: arithmetic, comparisons, selection.
//!
//! Invariant: what a lane becomes is what [`kiln_ir::semantics`] says; what no instruction does is done lane by lane.

use super::codes::{self, Row};
use super::emit::{Emitter, imm8};
use super::machine::{Arg, Inst, Width};
use crate::Error;
use iced_x86::Code;
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, Class, Constant, DType, UnaryOp};
use regalloc2::VReg;

/// The one of four rows for elements of 1, 2, 4 or 8 bytes.
fn by_size(size: usize, rows: [Row; 4]) -> Row {
    rows[size.trailing_zeros().min(3) as usize]
}

/// The instruction that is the operation, if there is one; it may lack widths.
fn row_of(dtype: DType, op: BinaryOp, wide: bool) -> Option<Row> {
    use BinaryOp::*;
    use codes::*;
    let size = dtype.size();
    let signed = dtype.class() == Class::Signed;
    Some(match (dtype, op) {
        (DType::F32, Add) => VADDPS,
        (DType::F32, Sub) => VSUBPS,
        (DType::F32, Mul) => VMULPS,
        (DType::F32, Div) => VDIVPS,
        (DType::F64, Add) => VADDPD,
        (DType::F64, Sub) => VSUBPD,
        (DType::F64, Mul) => VMULPD,
        (DType::F64, Div) => VDIVPD,
        (DType::F32 | DType::F64, _) => return None,
        (_, Add) => by_size(size, [VPADDB, VPADDW, VPADDD, VPADDQ]),
        (_, Sub) => by_size(size, [VPSUBB, VPSUBW, VPSUBD, VPSUBQ]),
        (_, Mul) if size == 4 => VPMULLD,
        (_, Mul) if size == 8 => VPMULLQ,
        (_, And) if wide => VPANDD,
        (_, Or) if wide => VPORD,
        (_, Xor) if wide => VPXORD,
        (_, And) => VPAND,
        (_, Or) => VPOR,
        (_, Xor) => VPXOR,
        (_, Min) if signed => by_size(size, [VPMINSB, VPMINSW, VPMINSD, VPMINSQ]),
        (_, Max) if signed => by_size(size, [VPMAXSB, VPMAXSW, VPMAXSD, VPMAXSQ]),
        (_, Min) => by_size(size, [VPMINUB, VPMINUW, VPMINUD, VPMINUQ]),
        (_, Max) => by_size(size, [VPMAXUB, VPMAXUW, VPMAXUD, VPMAXUQ]),
        // Counts are unsigned, and those too large give what the table says.
        (_, Shl) if size == 4 => VPSLLVD,
        (_, Shl) if size == 8 => VPSLLVQ,
        (_, Shr) if size == 4 && signed => VPSRAVD,
        (_, Shr) if size == 8 && signed => VPSRAVQ,
        (_, Shr) if size == 4 => VPSRLVD,
        (_, Shr) if size == 8 => VPSRLVQ,
        _ => return None,
    })
}

fn commutes(op: BinaryOp) -> bool {
    use BinaryOp::*;
    matches!(op, Add | Mul | And | Or | Xor | Min | Max)
}

/// The bytes of a float of the type.
fn float(dtype: DType, value: f64) -> Vec<u8> {
    if dtype == DType::F32 { (value as f32).to_le_bytes().to_vec() } else { value.to_le_bytes().to_vec() }
}

impl Emitter<'_> {
    fn single<T>(&self, dtype: DType, single: T, double: T) -> T {
        if dtype == DType::F32 { single } else { double }
    }

    pub fn op_unary(&mut self, id: ValueId, ty: VectorType, op: UnaryOp, a: ValueId) -> Result<VReg, Error> {
        let dtype = ty.dtype;
        if ty.is_scalar() && !dtype.is_float() {
            let a = self.integer(a)?;
            return self.integer_unary(dtype, op, a);
        }
        if dtype == DType::Bool {
            let bytes = self.mask_bytes[a.index()];
            self.mask_bytes[id.index()] = bytes;
            let a = self.mask_as(a, bytes)?;
            return self.mask_not(a, ty.lanes, bytes);
        }
        let width = self.width(ty)?;
        if !dtype.is_float() {
            let v = self.vector_of(a)?;
            return match op {
                UnaryOp::Neg => {
                    let zero = self.filled(&[0], width)?;
                    self.lanes_binary(ty, BinaryOp::Sub, zero, Arg::Use(v, width))
                }
                UnaryOp::Not => {
                    let ones = self.repeated(&vec![0xff; dtype.size()], width, if dtype.size() == 4 { 32 } else { 0 });
                    self.lanes_binary(ty, BinaryOp::Xor, v, ones)
                }
                UnaryOp::Abs if dtype.class() == Class::Signed => {
                    let row = by_size(dtype.size(), [codes::VPABSB, codes::VPABSW, codes::VPABSD, codes::VPABSQ]);
                    if self.has(row, width) {
                        return self.unary(row, width, Arg::Use(v, width));
                    }
                    self.scalarise(ty, &[v], ty, |e, v| e.integer_unary(dtype, op, v[0]))
                }
                UnaryOp::Abs => Ok(v),
                _ => Err(self.unsupported(format!("`{}` of {ty}", op.name()))),
            };
        }
        let sign = float(dtype, -0.0);
        let repeats = dtype.bits();
        match op {
            UnaryOp::Neg => {
                let (v, sign) = (self.vector_of(a)?, self.repeated(&sign, width, repeats));
                self.binary(self.single(dtype, codes::VXORPS, codes::VXORPD), width, v, sign)
            }
            UnaryOp::Abs => {
                let rest: Vec<u8> = sign.iter().map(|b| !b).collect();
                let (v, rest) = (self.vector_of(a)?, self.repeated(&rest, width, repeats));
                self.binary(self.single(dtype, codes::VANDPS, codes::VANDPD), width, v, rest)
            }
            UnaryOp::Sqrt => {
                let row = self.single(dtype, codes::VSQRTPS, codes::VSQRTPD);
                let a = self.operand(a, row)?;
                self.unary(row, width, a)
            }
            UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::Round | UnaryOp::Trunc => {
                let mode = match op {
                    UnaryOp::Round => 0,
                    UnaryOp::Floor => 1,
                    UnaryOp::Ceil => 2,
                    _ => 3,
                };
                let row = if self.wide() {
                    self.single(dtype, codes::VRNDSCALEPS, codes::VRNDSCALEPD)
                } else {
                    self.single(dtype, codes::VROUNDPS, codes::VROUNDPD)
                };
                let a = self.operand(a, row)?;
                // 8: without an exception flag.
                self.unary_with(row, width, a, mode | 8)
            }
            UnaryOp::Not => {
                let v = self.vector_of(a)?;
                let zero = Arg::Use(self.filled(&[0], width)?, width);
                let mask = self.compare_lanes(ty, BinaryOp::Eq, v, zero)?;
                self.one_where(ty, mask)
            }
            _ => Err(self.unsupported(format!("`{}` of {ty}", op.name()))),
        }
    }

    /// 1 where the mask (of lanes as wide as the type's) holds, else 0.
    pub fn one_where(&mut self, ty: VectorType, mask: VReg) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let one = match ty.dtype.class() {
            Class::Float | Class::Double => Constant::float(ty.dtype, 1.0),
            _ => Constant::int(ty.dtype, 1),
        };
        let zero = self.filled(&[0], width)?;
        let one = Arg::Use(self.filled(&Self::element(one), width)?, width);
        self.blend(ty.dtype.size(), width, mask, one, zero)
    }

    pub fn op_binary(&mut self, id: ValueId, op: BinaryOp, a: ValueId, b: ValueId) -> Result<VReg, Error> {
        let ty = self.ty(a);
        if ty.is_scalar() && !ty.dtype.is_float() {
            return self.integer_values(op, a, b);
        }
        if ty.dtype == DType::Bool {
            let bytes = self.mask_bytes[a.index()];
            self.mask_bytes[id.index()] = bytes;
            let (a, b) = (self.mask_as(a, bytes)?, self.mask_as(b, bytes)?);
            return self.mask_binary(op, ty.lanes, bytes, a, b);
        }
        if op.is_comparison() {
            self.mask_bytes[id.index()] = ty.dtype.size() as u32;
            let v = self.vector_of(a)?;
            let row = self.single(ty.dtype, codes::VCMPPS, codes::VCMPPD);
            let width = self.width(ty)?;
            let other = if ty.dtype.is_float() { self.operand(b, row)? } else { Arg::Use(self.vector_of(b)?, width) };
            let mask = self.compare_lanes(ty, op, v, other)?;
            return if ty.is_scalar() { self.truth_of(mask) } else { Ok(mask) };
        }
        if ty.dtype.is_float() && matches!(op, BinaryOp::Min | BinaryOp::Max) {
            return self.extreme_of(ty, op, a, b);
        }
        if op == BinaryOp::Add {
            for (dot, onto) in [(b, a), (a, b)] {
                if let Some((x, y)) = self.take_dot(dot) {
                    let onto = self.vector_of(onto)?;
                    return self.dot_onto(onto, x, y);
                }
            }
        }
        let width = self.width(ty)?;
        match row_of(ty.dtype, op, self.wide()) {
            Some(row) if self.has(row, width) => {
                let swap = commutes(op) && self.in_memory(a, row) && !self.in_memory(b, row);
                let (a, b) = if swap { (b, a) } else { (a, b) };
                let v = self.vector_of(a)?;
                let other = self.operand(b, row)?;
                self.binary(row, width, v, other)
            }
            _ => {
                let (v, other) = (self.vector_of(a)?, self.vector_of(b)?);
                self.lanes_binary(ty, op, v, Arg::Use(other, width))
            }
        }
    }

    /// The operation on the lanes of registers, comparisons excepted. `b` is in memory only where the instruction set
    /// has the operation.
    pub fn lanes_binary(&mut self, ty: VectorType, op: BinaryOp, a: VReg, b: Arg) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        if let Some(row) = row_of(ty.dtype, op, self.wide())
            && self.has(row, width)
        {
            return self.binary(row, width, a, b);
        }
        let Arg::Use(b, _) = b else { return Err(self.unsupported(format!("`{}` of {ty}", op.name()))) };
        if ty.dtype.is_float() {
            return self.extreme(ty, op, a, b);
        }
        self.scalarise(ty, &[a, b], ty, |e, v| e.integer_binary(ty.dtype, op, v[0], v[1]))
    }

    /// Least or greatest of values of the program. The processor gives the second operand where one is a NaN or
    /// both are zeros, which is right where the first is a constant.
    fn extreme_of(&mut self, ty: VectorType, op: BinaryOp, a: ValueId, b: ValueId) -> Result<VReg, Error> {
        let constant = |e: &Self, id| e.constant_of(id).map(Constant::as_f64);
        let (a, b) = if constant(self, a).is_some() { (a, b) } else { (b, a) };
        let width = self.width(ty)?;
        let minimum = op == BinaryOp::Min;
        if let Some(c) = constant(self, a)
            && !c.is_nan()
            && !(minimum && c == 0.0 && c.is_sign_negative())
        {
            let row = match (minimum, ty.dtype) {
                (true, DType::F32) => codes::VMINPS,
                (true, _) => codes::VMINPD,
                (false, DType::F32) => codes::VMAXPS,
                (false, _) => codes::VMAXPD,
            };
            let first = self.vector_of(a)?;
            let second = self.operand(b, row)?;
            let result = self.binary(row, width, first, second)?;
            if c == 0.0 && !minimum && c.is_sign_positive() {
                // -0 becomes +0.
                let row = self.single(ty.dtype, codes::VADDPS, codes::VADDPD);
                return self.binary(row, width, result, Arg::Use(first, width));
            }
            return Ok(result);
        }
        let (a, b) = (self.vector_of(a)?, self.vector_of(b)?);
        self.extreme(ty, op, a, b)
    }

    /// Least or greatest of floats: NaN where one is a NaN, -0 less than +0.
    fn extreme(&mut self, ty: VectorType, op: BinaryOp, a: VReg, b: VReg) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let (left, right) = (Arg::Use(a, width), Arg::Use(b, width));
        let dtype = ty.dtype;
        match op {
            BinaryOp::Min => {
                let row = self.single(dtype, codes::VMINPS, codes::VMINPD);
                let (first, second) = (self.binary(row, width, a, right)?, self.binary(row, width, b, left)?);
                // They differ where one is a NaN, which stays, and where both are zeros.
                self.binary(codes::VORPS, width, first, Arg::Use(second, width))
            }
            BinaryOp::Max if self.wide() => {
                let row = self.single(dtype, codes::VRANGEPS, codes::VRANGEPD);
                // 1: the greater; 4: with its sign.
                let greater = self.binary_with(row, width, a, right, 5)?;
                let row = self.single(dtype, codes::VCMPPS, codes::VCMPPD);
                let (code, unordered) = (self.code(row, width)?, self.mask());
                self.ins(code, &[Arg::Def(unordered, Width::K), Arg::Use(a, width), right, imm8(3)]);
                let row = self.single(dtype, codes::VADDPS, codes::VADDPD);
                let (code, def) = (self.code(row, width)?, self.vector());
                // As a third operand, for the lanes that are not written.
                let args = [Arg::Tied { def, from: greater, width }, Arg::Use(a, width), right];
                self.push(Inst { mask: Some(unordered), ..Inst::new(code, &args) });
                Ok(def)
            }
            BinaryOp::Max => {
                let row = self.single(dtype, codes::VMAXPS, codes::VMAXPD);
                let (first, second) = (self.binary(row, width, a, right)?, self.binary(row, width, b, left)?);
                let both = self.binary(codes::VANDPS, width, first, Arg::Use(second, width))?;
                let row = self.single(dtype, codes::VCMPPS, codes::VCMPPD);
                let unordered = self.binary_with(row, width, a, right, 3)?;
                self.binary(codes::VORPS, width, both, Arg::Use(unordered, width))
            }
            _ => Err(self.unsupported(format!("`{}` of {ty}", op.name()))),
        }
    }

    /// `a * b + c`, in the register of `c`, or of `a` where `c` is in memory.
    pub fn fma(&mut self, ty: VectorType, a: ValueId, b: ValueId, c: ValueId) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let onto = self.single(ty.dtype, codes::VFMADD231PS, codes::VFMADD231PD);
        let (a, b) = if self.in_memory(a, onto) { (b, a) } else { (a, b) };
        if self.in_memory(c, onto) && !self.in_memory(b, onto) {
            let row = self.single(ty.dtype, codes::VFMADD213PS, codes::VFMADD213PD);
            let (from, by) = (self.vector_of(a)?, self.vector_of(b)?);
            let plus = self.operand(c, row)?;
            let (code, def) = (self.code(row, width)?, self.vector());
            self.ins(code, &[Arg::Tied { def, from, width }, Arg::Use(by, width), plus]);
            return Ok(def);
        }
        let (from, left) = (self.vector_of(c)?, self.vector_of(a)?);
        let right = self.operand(b, onto)?;
        let (code, def) = (self.code(onto, width)?, self.vector());
        self.ins(code, &[Arg::Tied { def, from, width }, Arg::Use(left, width), right]);
        Ok(def)
    }

    /// `a * 2^n`, which only AVX-512 has.
    pub fn scale(&mut self, ty: VectorType, a: ValueId, n: ValueId) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let a = self.vector_of(a)?;
        let n = self.operand(n, codes::VSCALEFPS)?;
        self.binary(codes::VSCALEFPS, width, a, n)
    }

    /// A mask: of AVX2, of lanes as wide as those compared.
    pub fn compare_lanes(&mut self, ty: VectorType, op: BinaryOp, a: VReg, b: Arg) -> Result<VReg, Error> {
        use BinaryOp::*;
        let width = self.width(ty)?;
        let size = ty.dtype.size();
        if ty.dtype.is_float() {
            // Ordered and quiet, but `ne`, which holds of NaN.
            let predicate = match op {
                Eq => 0,
                Ne => 4,
                Lt => 17,
                Le => 18,
                Gt => 30,
                _ => 29,
            };
            let row = self.single(ty.dtype, codes::VCMPPS, codes::VCMPPD);
            return self.mask_from(row, width, a, b, predicate);
        }
        if self.wide() {
            let predicate = match op {
                Eq => 0,
                Lt => 1,
                Le => 2,
                Ne => 4,
                Ge => 5,
                _ => 6,
            };
            let rows = if ty.dtype.class() == Class::Signed {
                [codes::VPCMPB, codes::VPCMPW, codes::VPCMPD, codes::VPCMPQ]
            } else {
                [codes::VPCMPUB, codes::VPCMPUW, codes::VPCMPUD, codes::VPCMPUQ]
            };
            return self.mask_from(by_size(size, rows), width, a, b, predicate);
        }
        let (mut a, mut b) = (a, self.in_register(width, b)?);
        if ty.dtype.class() != Class::Signed && !matches!(op, Eq | Ne) {
            let mut top = vec![0; size];
            top[size - 1] = 0x80;
            let top = self.repeated(&top, width, 0);
            a = self.binary(codes::VPXOR, width, a, top)?;
            b = self.binary(codes::VPXOR, width, b, top)?;
        }
        let greater = by_size(size, [codes::VPCMPGTB, codes::VPCMPGTW, codes::VPCMPGTD, codes::VPCMPGTQ]);
        let equal = by_size(size, [codes::VPCMPEQB, codes::VPCMPEQW, codes::VPCMPEQD, codes::VPCMPEQQ]);
        let (row, left, right, not) = match op {
            Eq => (equal, a, b, false),
            Ne => (equal, a, b, true),
            Gt => (greater, a, b, false),
            Le => (greater, a, b, true),
            Lt => (greater, b, a, false),
            _ => (greater, b, a, true),
        };
        let mask = self.binary(row, width, left, Arg::Use(right, width))?;
        if not { self.mask_not(mask, ty.lanes, size as u32) } else { Ok(mask) }
    }

    pub fn in_register(&mut self, width: Width, a: Arg) -> Result<VReg, Error> {
        match a {
            Arg::Use(v, _) => Ok(v),
            other => self.unary(codes::VMOVUPS, width, other),
        }
    }

    fn mask_from(&mut self, row: Row, width: Width, a: VReg, b: Arg, predicate: u8) -> Result<VReg, Error> {
        let (code, to) = (self.code(row, width)?, self.mask());
        let def = Arg::Def(to, if self.wide() { Width::K } else { width });
        self.ins(code, &[def, Arg::Use(a, width), b, imm8(predicate)]);
        Ok(to)
    }

    /// Lane 0 of a mask as a scalar bool.
    pub fn truth_of(&mut self, mask: VReg) -> Result<VReg, Error> {
        let bits = self.general();
        if self.wide() {
            self.ins(Code::VEX_Kmovd_r32_kr, &[Arg::Def(bits, Width::D), Arg::Use(mask, Width::K)]);
        } else {
            let code = self.code(codes::VMOVD_GPR, Width::X)?;
            self.ins(code, &[Arg::Def(bits, Width::D), Arg::Use(mask, Width::X)]);
        }
        Ok(self.low_bit(bits))
    }

    /// A scalar bool as a mask of any lanes.
    pub fn mask_of_truth(&mut self, truth: VReg, lanes_width: Width) -> Result<VReg, Error> {
        let all = self.all_bits(truth);
        let to = self.mask();
        if self.wide() {
            self.ins(Code::VEX_Kmovq_kr_r64, &[Arg::Def(to, Width::K), Arg::Use(all, Width::Q)]);
            return Ok(to);
        }
        let code = self.code(codes::VMOVQ, Width::X)?;
        self.ins(code, &[Arg::Def(to, Width::X), Arg::Use(all, Width::Q)]);
        self.unary(codes::VPBROADCASTQ, lanes_width, Arg::Use(to, Width::X))
    }

    // Masks.

    /// The width of a mask in a vector register.
    pub fn mask_width(&self, lanes: u32, bytes: u32) -> Result<Width, Error> {
        match lanes * bytes {
            0..=16 => Ok(Width::X),
            32 => Ok(Width::Y),
            _ => Err(self.unsupported(format!("a mask of {lanes} lanes of {bytes} bytes"))),
        }
    }

    /// A mask of lanes of so many bytes (which only matters for AVX2).
    pub fn mask_as(&mut self, id: ValueId, bytes: u32) -> Result<VReg, Error> {
        let lanes = self.ty(id).lanes;
        if let Some(c) = self.constant_of(id) {
            if self.wide() {
                let truth = self.number(i64::from(c.bits != 0));
                return self.mask_of_truth(truth, Width::Z);
            }
            let width = self.mask_width(lanes, bytes)?;
            return self.filled(&[if c.bits != 0 { 0xff } else { 0 }], width);
        }
        let mask = self.vector_of(id)?;
        let from = self.mask_bytes[id.index()];
        if self.wide() || from == bytes {
            return Ok(mask);
        }
        let (narrow, wide) = (self.mask_width(lanes, from)?, self.mask_width(lanes, bytes)?);
        match (from, bytes) {
            (4, 8) => {
                let (code, to) = (self.code(codes::VPMOVSXDQ, wide)?, self.mask());
                self.ins(code, &[Arg::Def(to, wide), Arg::Use(mask, Width::X)]);
                Ok(to)
            }
            (8, 4) if narrow == Width::Y => {
                let upper = self.chunk(mask, Width::Y, 1)?;
                self.binary_with(codes::VSHUFPS, Width::X, mask, Arg::Use(upper, Width::X), 0x88)
            }
            (8, 4) => self.unary_with(codes::VPSHUFD, Width::X, Arg::Use(mask, Width::X), 0x08),
            _ => Err(self.unsupported(format!("a mask of {from}-byte lanes for {bytes}-byte lanes"))),
        }
    }

    pub fn mask_not(&mut self, a: VReg, lanes: u32, bytes: u32) -> Result<VReg, Error> {
        if self.wide() {
            let to = self.mask();
            self.ins(Code::VEX_Knotq_kr_kr, &[Arg::Def(to, Width::K), Arg::Use(a, Width::K)]);
            return Ok(to);
        }
        let width = self.mask_width(lanes, bytes)?;
        let ones = self.repeated(&[0xff], width, 0);
        self.binary(codes::VXORPS, width, a, ones)
    }

    pub fn mask_binary(&mut self, op: BinaryOp, lanes: u32, bytes: u32, a: VReg, b: VReg) -> Result<VReg, Error> {
        use BinaryOp::*;
        let (kand, kor, kxor) = (Code::VEX_Kandq_kr_kr_kr, Code::VEX_Korq_kr_kr_kr, Code::VEX_Kxorq_kr_kr_kr);
        let (code, row, a, b) = match op {
            And | Mul | Min => (kand, codes::VANDPS, a, b),
            Or | Add | Max => (kor, codes::VORPS, a, b),
            Xor | Ne => (kxor, codes::VXORPS, a, b),
            Eq => (kxor, codes::VXORPS, self.mask_not(a, lanes, bytes)?, b),
            Lt => (kand, codes::VANDPS, self.mask_not(a, lanes, bytes)?, b),
            Le => (kor, codes::VORPS, self.mask_not(a, lanes, bytes)?, b),
            Gt => (kand, codes::VANDPS, a, self.mask_not(b, lanes, bytes)?),
            Ge => (kor, codes::VORPS, a, self.mask_not(b, lanes, bytes)?),
            Sub | Div | Rem | Mod | Pow | Shl | Shr | Dot4 | Pair | Dot2 => {
                return Err(self.unsupported(format!("`{}` of masks", op.name())));
            }
        };
        if self.wide() {
            let to = self.mask();
            self.ins(code, &[Arg::Def(to, Width::K), Arg::Use(a, Width::K), Arg::Use(b, Width::K)]);
            return Ok(to);
        }
        let width = self.mask_width(lanes, bytes)?;
        self.binary(row, width, a, Arg::Use(b, width))
    }

    /// Lanes of `a` where the mask holds, else of `b`. The mask's lanes are of `size` bytes.
    pub fn blend(&mut self, size: usize, width: Width, mask: VReg, a: Arg, b: VReg) -> Result<VReg, Error> {
        let to = self.vector();
        if self.wide() {
            let row = by_size(size, [codes::VPBLENDMB, codes::VPBLENDMW, codes::VPBLENDMD, codes::VPBLENDMQ]);
            let code = self.code(row, width)?;
            let args = [Arg::Def(to, width), Arg::Use(b, width), a];
            self.push(Inst { mask: Some(mask), ..Inst::new(code, &args) });
            return Ok(to);
        }
        let row = by_size(size, [codes::VPBLENDVB, codes::VPBLENDVB, codes::VBLENDVPS, codes::VBLENDVPD]);
        let code = self.code(row, width)?;
        self.ins(code, &[Arg::Def(to, width), Arg::Use(b, width), a, Arg::Use(mask, width)]);
        Ok(to)
    }

    pub fn select(
        &mut self,
        id: ValueId,
        ty: VectorType,
        condition: ValueId,
        a: ValueId,
        b: ValueId,
    ) -> Result<VReg, Error> {
        if ty.is_scalar() && !ty.dtype.is_float() {
            let (a, b, c) = (self.integer(a)?, self.integer(b)?, self.integer(condition)?);
            self.test(c);
            return Ok(self.choose(Code::Cmovne_r64_rm64, b, a));
        }
        if ty.dtype == DType::Bool {
            let bytes = self.mask_bytes[condition.index()];
            self.mask_bytes[id.index()] = bytes;
            let (c, a, b) = (self.mask_as(condition, bytes)?, self.mask_as(a, bytes)?, self.mask_as(b, bytes)?);
            let holds = self.mask_binary(BinaryOp::And, ty.lanes, bytes, c, a)?;
            // `c < b` is `not c and b`.
            let fails = self.mask_binary(BinaryOp::Lt, ty.lanes, bytes, c, b)?;
            return self.mask_binary(BinaryOp::Or, ty.lanes, bytes, holds, fails);
        }
        let (width, size) = (self.width(ty)?, ty.dtype.size());
        let mask = if ty.is_scalar() {
            let truth = self.integer(condition)?;
            self.mask_of_truth(truth, Width::X)?
        } else {
            self.mask_as(condition, size as u32)?
        };
        let row = if size == 4 { codes::VPBLENDMD } else { codes::VPBLENDMQ };
        let b = self.vector_of(b)?;
        let a = if size >= 4 { self.operand(a, row)? } else { Arg::Use(self.vector_of(a)?, width) };
        self.blend(size, width, mask, a, b)
    }
}
