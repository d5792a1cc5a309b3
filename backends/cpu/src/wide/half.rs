//! f16 in memory, f32 in registers.
//!
//! Invariant: conversions to f16 round to the nearest, ties to even, whatever the processor's rounding mode is.

use super::codes;
use super::emit::{Emitter, imm8};
use super::machine::{Arg, Width};
use crate::Error;
use kiln_ir::vector::{Address, ValueId, VectorType};
use regalloc2::VReg;

/// The immediate of conversions that rounds to the nearest even.
const NEAREST: u8 = 0;

/// The width of a register that holds so many halves as a register holds f32.
fn half_width(width: Width) -> Width {
    if width == Width::Z { Width::Y } else { Width::X }
}

impl Emitter<'_> {
    /// Loads f16 as f32.
    pub fn load_halves(&mut self, ty: VectorType, address: &Address) -> Result<VReg, Error> {
        let (width, place) = (self.width(ty)?, Arg::Memory(self.place(address, 0)?));
        if ty.is_scalar() {
            let zero = self.filled(&[0], Width::X)?;
            let half = self.insert(2, zero, place, 0)?;
            return self.unary(codes::VCVTPH2PS, Width::X, Arg::Use(half, Width::X));
        }
        // The instruction reads as many elements as its register has lanes, which must not be more than are asked for.
        if ty.lanes < 4 {
            return Err(self.unsupported(format!("a wide load of {ty}")));
        }
        self.unary(codes::VCVTPH2PS, width, place)
    }

    /// f32 as f16, from the lowest bytes of a register on.
    pub fn narrowed_to_halves(&mut self, x: VReg, width: Width) -> Result<VReg, Error> {
        let (code, to) = (self.code(codes::VCVTPS2PH, width)?, self.vector());
        self.ins(code, &[Arg::Def(to, half_width(width)), Arg::Use(x, width), imm8(NEAREST)]);
        Ok(to)
    }

    pub fn round_half(&mut self, ty: VectorType, a: ValueId) -> Result<VReg, Error> {
        let (width, x) = (self.width(ty)?, self.vector_of(a)?);
        let halves = self.narrowed_to_halves(x, width)?;
        self.unary(codes::VCVTPH2PS, width, Arg::Use(halves, half_width(width)))
    }
}
