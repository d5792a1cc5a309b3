//! Dot products of four bytes, and lanes stored as their low bytes.
//!
//! Invariant: sums are exact. Where the processor has no instruction for the whole, bytes become 16-bit lanes and pairs of their
//! products are added in 32 bits; the instruction that multiplies bytes (`vpmaddubsw`) saturates, so it multiplies with 0 and 1 and with bytes that
//! are known to be below 128: two products of these with signed bytes fit 16 bits.

use super::codes;
use super::emit::{Emitter, imm8};
use super::machine::{Arg, Width};
use crate::Error;
use kiln_ir::scalar::BinaryOp;
use kiln_ir::vector::{Op, ValueId};
use regalloc2::VReg;

impl Emitter<'_> {
    /// `onto` plus the dot products of the bytes of two vectors, unsigned those of the left one: with VNNI one instruction.
    pub fn dot_onto(&mut self, onto: VReg, a: ValueId, b: ValueId) -> Result<VReg, Error> {
        let width = self.width(self.ty(a))?;
        let left = self.vector_of(a)?;
        let right = self.operand(b, codes::VPDPBUSD)?;
        let (code, def) = (self.code(codes::VPDPBUSD, width)?, self.vector());
        self.ins(code, &[Arg::Tied { def, from: onto, width }, Arg::Use(left, width), right]);
        Ok(def)
    }

    /// Whether the program says of a vector that its bytes are below 128: that of 4-bit numbers in words.
    pub fn has_small_bytes(&self, id: ValueId) -> bool {
        let made = |id: ValueId| self.made.get(id.index()).copied().flatten();
        let Some(Op::Binary(BinaryOp::And, a, b)) = made(id) else { return false };
        [a, b].into_iter().any(|&mask| {
            let constant = match made(mask) {
                Some(Op::Const(c)) => Some(*c),
                Some(Op::Splat(one)) => match made(*one) {
                    Some(Op::Const(c)) => Some(*c),
                    _ => None,
                },
                _ => None,
            };
            constant.is_some_and(|c| (c.bits as u32).to_le_bytes().iter().all(|&byte| byte < 0x80))
        })
    }

    /// The dot products of the bytes of two vectors, of which the left one's are below 128.
    pub fn dot_of_small(&mut self, a: ValueId, b: ValueId) -> Result<VReg, Error> {
        let width = self.width(self.ty(a))?;
        let left = self.vector_of(a)?;
        let right = self.operand(b, codes::VPMADDUBSW)?;
        let pairs = self.binary(codes::VPMADDUBSW, width, left, right)?;
        let ones = self.repeated(&[1, 0], width, 0);
        self.binary(codes::VPMADDWD, width, pairs, ones)
    }

    /// The dot products of the bytes of two vectors by way of 16-bit lanes.
    pub fn dot_of_halves(&mut self, a: ValueId, b: ValueId) -> Result<VReg, Error> {
        let width = self.width(self.ty(a))?;
        let [left, right] = [self.halves_of(a, false)?, self.halves_of(b, true)?];
        self.sum_of_halves(width, left, right)
    }

    fn sum_of_halves(&mut self, width: Width, a: [VReg; 2], b: [VReg; 2]) -> Result<VReg, Error> {
        let even = self.binary(codes::VPMADDWD, width, a[0], Arg::Use(b[0], width))?;
        let odd = self.binary(codes::VPMADDWD, width, a[1], Arg::Use(b[1], width))?;
        self.binary(codes::VPADDD, width, even, Arg::Use(odd, width))
    }

    /// The even and the odd bytes of a vector; those of one block are kept for its other products.
    fn halves_of(&mut self, id: ValueId, signed: bool) -> Result<[VReg; 2], Error> {
        if let Some(&known) = self.halves.get(&(id, signed)) {
            return Ok(known);
        }
        let (width, whole) = (self.width(self.ty(id))?, self.vector_of(id)?);
        let halves = self.halved(width, whole, signed)?;
        self.halves.insert((id, signed), halves);
        Ok(halves)
    }

    fn halved(&mut self, width: Width, whole: VReg, signed: bool) -> Result<[VReg; 2], Error> {
        let row = if signed { codes::VPSRAW } else { codes::VPSRLW };
        let odd = self.unary_with(row, width, Arg::Use(whole, width), 8)?;
        let even = if signed {
            // Each even byte once and each odd one not at all.
            let once = self.filled(&[1, 0, 1, 0], width)?;
            self.binary(codes::VPMADDUBSW, width, once, Arg::Use(whole, width))?
        } else {
            let mask = self.repeated(&[0xff, 0, 0xff, 0], width, 32);
            let and = if self.wide() { codes::VPANDD } else { codes::VPAND };
            self.binary(and, width, whole, mask)?
        };
        Ok([even, odd])
    }

    /// The dot product of the low four bytes of two vectors, in a general register.
    pub fn dot_of_scalars(&mut self, a: VReg, b: VReg) -> Result<VReg, Error> {
        let width = Width::X;
        let (left, right) = (self.halved(width, a, false)?, self.halved(width, b, true)?);
        let sum = self.sum_of_halves(width, left, right)?;
        let (code, to) = (self.code(codes::VMOVD_GPR, width)?, self.general());
        self.ins(code, &[Arg::Def(to, Width::D), Arg::Use(sum, width)]);
        Ok(to)
    }

    /// The low bytes (one or two) of each 32-bit lane, moved together: `lanes * size` bytes from the lowest on.
    pub fn narrowed(&mut self, from: VReg, width: Width, size: usize) -> Result<VReg, Error> {
        if self.wide() {
            let row = if size == 1 { codes::VPMOVDB } else { codes::VPMOVDW };
            let target = if size == 2 && width == Width::Z { Width::Y } else { Width::X };
            let (code, to) = (self.code(row, width)?, self.vector());
            self.ins(code, &[Arg::Def(to, target), Arg::Use(from, width)]);
            return Ok(to);
        }
        // Within each 16 bytes first; 0x80 makes a zero.
        let order: Vec<u8> =
            (0..16).map(|i| if i < 4 * size { (i / size * 4 + i % size) as u8 } else { 0x80 }).collect();
        let order = self.repeated(&order, width, 0);
        let together = self.binary(codes::VPSHUFB, width, from, order)?;
        if width == Width::X {
            return Ok(together);
        }
        let (code, high) = (self.code(codes::VEXTRACTF128, width)?, self.vector());
        self.ins(code, &[Arg::Def(high, Width::X), Arg::Use(together, width), imm8(1)]);
        // Two halves of 4 or 8 bytes each.
        if size == 1 {
            self.binary_with(codes::VINSERTPS, Width::X, together, Arg::Use(high, Width::X), 1 << 4)
        } else {
            self.binary(codes::VUNPCKLPD, Width::X, together, Arg::Use(high, Width::X))
        }
    }
}
