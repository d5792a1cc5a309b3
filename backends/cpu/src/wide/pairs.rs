//! Pairs of bf16: rounded from floats, and multiplied onto sums.
//!
//! Invariant: as [`kiln_ir::semantics::pair`] and [`kiln_ir::semantics::dot2`], subnormal numbers as 0; only where the level
//! [has them](super::WideLevel::has_pairs).

use super::codes;
use super::emit::{Emitter, Value};
use super::machine::{Arg, Width};
use crate::Error;
use kiln_ir::DType;
use kiln_ir::vector::{Address, ValueId, VectorType};
use regalloc2::VReg;

impl Emitter<'_> {
    /// The dot product of the pairs of `a` and `b` onto `c`, in its register.
    pub fn dot_of_pairs(&mut self, ty: VectorType, a: ValueId, b: ValueId, c: ValueId) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let from = self.vector_of(c)?;
        let (left, right) = if ty.is_scalar() {
            let (a, b) = (self.integer(a)?, self.integer(b)?);
            (self.moved_to_vector(a)?, Arg::Use(self.moved_to_vector(b)?, width))
        } else {
            let (a, b) = if self.in_memory(a, codes::VDPBF16PS) { (b, a) } else { (a, b) };
            (self.vector_of(a)?, self.operand(b, codes::VDPBF16PS)?)
        };
        let (code, def) = (self.code(codes::VDPBF16PS, width)?, self.vector());
        self.ins(code, &[Arg::Tied { def, from, width }, Arg::Use(left, width), right]);
        Ok(def)
    }

    /// Floats rounded to pairs, those of `low` in the low halves. `ty` is that of the floats.
    pub fn pair(&mut self, ty: VectorType, low: ValueId, high: ValueId) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        if let Some(first) = self.take_neighbours(low, high) {
            return self.pairs_in_memory(ty, &first);
        }
        if !ty.is_scalar() && self.constant_of(high).is_some_and(|c| c.bits == 0) {
            let low = self.vector_of(low)?;
            return self.rounded(low, width);
        }
        let (low, high) = (self.vector_of(low)?, self.vector_of(high)?);
        if ty.is_scalar() {
            let both = self.binary(codes::VUNPCKLPS, Width::X, low, Arg::Use(high, Width::X))?;
            let pair = self.unary(codes::VCVTNEPS2BF16, Width::X, Arg::Use(both, Width::X))?;
            let (code, to) = (self.code(codes::VMOVD_GPR, Width::X)?, self.general());
            self.ins(code, &[Arg::Def(to, Width::D), Arg::Use(pair, Width::X)]);
            return Ok(self.wrapped(DType::I32, to));
        }
        let (low, high) = (self.rounded(low, width)?, self.rounded(high, width)?);
        let places = self.repeated(&16i32.to_le_bytes(), width, 32);
        let high = self.binary(codes::VPSLLVD, width, high, places)?;
        self.binary(codes::VPORD, width, low, Arg::Use(high, width))
    }

    /// Floats as bf16 in the low halves of their lanes.
    fn rounded(&mut self, floats: VReg, width: Width) -> Result<VReg, Error> {
        let half = if width == Width::Z { Width::Y } else { Width::X };
        let (code, narrow) = (self.code(codes::VCVTNEPS2BF16, width)?, self.vector());
        self.ins(code, &[Arg::Def(narrow, half), Arg::Use(floats, width)]);
        self.unary(codes::VPMOVZXWD, width, Arg::Use(narrow, half))
    }

    /// The first of the floats that make up pairs in memory, where those loaded with stride 2 are their even and their odd ones.
    fn take_neighbours(&mut self, low: ValueId, high: ValueId) -> Option<Address> {
        let (Some(Value::Strided(first)), Some(Value::Strided(second))) = (self.value_of(low), self.value_of(high))
        else {
            return None;
        };
        let next = Address { offset: first.offset.checked_add(1)?, ..first };
        if next != second || self.readers(low) != 1 || self.readers(high) != 1 {
            return None;
        }
        self.forget(low);
        self.forget(high);
        Some(first)
    }

    /// Neighbouring floats as pairs.
    fn pairs_in_memory(&mut self, ty: VectorType, first: &Address) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let low = Arg::Memory(self.place(first, 0)?);
        let high = Arg::Memory(self.place(first, i128::from(ty.lanes))?);
        let high = self.unary(codes::VMOVUPS, width, high)?;
        self.binary(codes::VCVTNE2PS2BF16, width, high, low)
    }
}
