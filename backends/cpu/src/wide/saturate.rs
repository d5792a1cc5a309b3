//! Floats rounded, clipped and stored as bytes: the instructions that narrow four vectors to one saturate.
//!
//! Invariant: a byte is what the program says it is. The conversion gives the least integer for what is too small and for a NaN, so only what is
//! too large must be clipped before it. A store may come later than in the program, but no load from its buffer, no other store and
//! no end of a region comes in between.

use super::codes;
use super::emit::{Emitter, imm8, width_bytes};
use super::machine::{Arg, Inst, Width};
use crate::Error;
use iced_x86::Code;
use kiln_ir::vector::{Address, Op, ValueId};
use kiln_ir::{BinaryOp, DType, UnaryOp};
use regalloc2::VReg;

/// How a byte is made of a float: `add + round(min(x, high))`, saturated.
#[derive(Clone, Copy, PartialEq)]
struct Clip {
    to: DType,
    high: f32,
    add: i16,
    width: Width,
}

/// A value of 32-bit lanes that is only made to be stored as bytes.
pub(super) struct Clipped {
    x: ValueId,
    clip: Clip,
    /// The values on the way from the float to it, which need not be computed.
    through: Vec<ValueId>,
}

/// A vector of floats on its way to memory.
pub(super) struct Late {
    address: Address,
    x: VReg,
    clip: Clip,
}

/// Vectors that are narrowed together.
const TOGETHER: usize = 4;

impl Emitter<'_> {
    /// The float of which a value makes bytes, where it is clipped to their range.
    pub fn clipped(&self, to: DType, value: ValueId) -> Option<Clipped> {
        let (least, most) = match to {
            DType::U8 => (0, 255),
            DType::I8 => (-128, 127),
            _ => return None,
        };
        let made = |id: ValueId| self.made[id.index()];
        let constant = |id: ValueId| match made(id) {
            Some(Op::Const(c)) => Some(*c),
            _ => None,
        };
        let ty = self.ty(value);
        let width = self.width(ty).ok().filter(|&width| width_bytes(width) == 4 * ty.lanes as usize)?;
        let mut through = vec![value];
        let (converted, add) = match made(value)? {
            Op::Binary(BinaryOp::Add, a, b) => (*a, constant(*b)?.as_i64()?),
            _ => (value, 0),
        };
        let &Op::Cast(DType::I32, rounded) = made(converted)? else { return None };
        let &Op::Unary(UnaryOp::Round, clipped) = made(rounded)? else { return None };
        let &Op::Binary(BinaryOp::Min, raised, high) = made(clipped)? else { return None };
        let &Op::Select(above, x, low) = made(raised)? else { return None };
        if !self.is_greatest(above, x, low) {
            return None;
        }
        through.extend([converted, rounded, clipped]);
        through.dedup();
        let (low, high) = (constant(low)?.as_f64(), constant(high)?.as_f64());
        let (least, most) = ((least - add) as f64, (most - add) as f64);
        // The sums are 16 bits wide before and after the addition.
        if least < f64::from(i16::MIN) || most > f64::from(i16::MAX) {
            return None;
        }
        // In the type's range, so that the low bits that a store takes are all there is.
        if !(least <= low && low <= high && high <= most) {
            return None;
        }
        let x = if low == least {
            through.extend([raised, above]);
            x
        } else {
            raised
        };
        let clip = Clip { to, high: high as f32, add: i16::try_from(add).ok()?, width };
        Some(Clipped { x, clip, through })
    }

    /// Once all uses are counted: keeps what is used for nothing else.
    pub fn settle_clips(&mut self) {
        let uses = &self.uses;
        self.clips.retain(|_, c| c.through.iter().all(|id| uses[id.index()] == 1));
        self.through = self.clips.values().flat_map(|c| c.through.iter().copied()).collect();
    }

    /// Takes a store of bytes that need not be made by themselves; false where it is any other store.
    pub fn put_off(&mut self, address: &Address, value: ValueId) -> Result<bool, Error> {
        let Some(&Clipped { x, clip, .. }) = self.clips.get(&value) else { return Ok(false) };
        let other = |late: &Late| late.clip != clip || late.address.buffer != address.buffer;
        if self.late.len() == TOGETHER || self.late.first().is_some_and(other) {
            self.store_late()?;
        }
        let x = self.vector_of(x)?;
        self.late.push(Late { address: *address, x, clip });
        if self.late.len() == TOGETHER {
            self.store_late()?;
        }
        Ok(true)
    }

    /// Before a load: stores what the load may be to see.
    pub fn before_load(&mut self, buffer: usize) -> Result<(), Error> {
        match self.late.first() {
            Some(late) if late.address.buffer == buffer => self.store_late(),
            _ => Ok(()),
        }
    }

    /// Does the stores that were put off.
    pub fn store_late(&mut self) -> Result<(), Error> {
        let late = std::mem::take(&mut self.late);
        let Some(&Late { clip, .. }) = late.first() else { return Ok(()) };
        self.settle()?;
        let Clip { to, high, add, width } = clip;
        let high = self.filled(&high.to_le_bytes(), width)?;
        let mut ints = Vec::new();
        for Late { x, .. } in &late {
            // The second operand where it is a NaN.
            let low_enough = self.binary(codes::VMINPS, width, high, Arg::Use(*x, width))?;
            ints.push(self.unary(codes::VCVTPS2DQ, width, Arg::Use(low_enough, width))?);
        }
        let words = ints
            .chunks(2)
            .map(|pair| {
                let second = *pair.last().unwrap_or(&pair[0]);
                let words = self.binary(codes::VPACKSSDW, width, pair[0], Arg::Use(second, width))?;
                if add == 0 {
                    return Ok(words);
                }
                let add = self.repeated(&add.to_le_bytes(), width, 0);
                self.binary(codes::VPADDSW, width, words, add)
            })
            .collect::<Result<Vec<VReg>, Error>>()?;
        let (Some(&first), Some(&last)) = (words.first(), words.last()) else { return Ok(()) };
        let row = if to == DType::U8 { codes::VPACKUSWB } else { codes::VPACKSSWB };
        let mut bytes = self.binary(row, width, first, Arg::Use(last, width))?;
        // Each 16 bytes hold four of each vector.
        let quarters = width_bytes(width) / 16;
        if quarters > 1 {
            let order: Vec<u8> =
                (0..4 * quarters).flat_map(|n| ((n % quarters * 4 + n / quarters) as u32).to_le_bytes()).collect();
            let base = self.pooled(&order);
            let order = Arg::Memory(super::machine::Place { base, index: None, displacement: 0, repeated: false });
            let order = self.unary(codes::VMOVUPS, width, order)?;
            bytes = self.binary(codes::VPERMD, width, order, Arg::Use(bytes, width))?;
        }
        self.store_pieces(&late, bytes, width)
    }

    /// Stores the parts of a vector, one for each address in turn; neighbours together.
    fn store_pieces(&mut self, late: &[Late], bytes: VReg, width: Width) -> Result<(), Error> {
        let each = width_bytes(width) / TOGETHER;
        let mut at = 0;
        while let Some(Late { address, .. }) = late.get(at) {
            let follows = |n: usize| {
                late.get(at + n).is_some_and(|next| {
                    next.address.index == address.index
                        && i128::from(next.address.offset) == i128::from(address.offset) + (n * each) as i128
                })
            };
            let run = (1..TOGETHER).take_while(|&n| follows(n)).count() + 1;
            // Of an even place two or four.
            let count = match (at, run) {
                (0, 4) => 4,
                (0 | 2, 2..) => 2,
                _ => 1,
            };
            self.store_piece(address, bytes, width, (at * each, count * each))?;
            at += count;
        }
        Ok(())
    }

    /// Stores some bytes of a vector, of 4, 8, 16 or more, beginning at a multiple of their number.
    fn store_piece(
        &mut self,
        address: &Address,
        bytes: VReg,
        width: Width,
        (first, count): (usize, usize),
    ) -> Result<(), Error> {
        let place = Arg::Memory(self.place(address, 0)?);
        let (part, within) = (first / 16, first % 16);
        let store = |this: &mut Self, row, width, from| -> Result<(), Error> {
            let code = this.code(row, width)?;
            this.push(Inst::new(code, &[place, Arg::Use(from, width)]));
            Ok(())
        };
        if first == 0 && count >= 16 {
            let width = if count == 64 {
                Width::Z
            } else if count == 32 {
                Width::Y
            } else {
                Width::X
            };
            return store(self, codes::VMOVUPS_STORE, width, bytes);
        }
        let extract = |this: &mut Self, row, part: usize, to: Arg| -> Result<(), Error> {
            let code = this.code(row, width)?;
            this.push(Inst::new(code, &[to, Arg::Use(bytes, width), imm8(part as u8)]));
            Ok(())
        };
        let sixteen = if self.wide() { codes::VEXTRACTF32X4 } else { codes::VEXTRACTF128 };
        match count {
            32 => return extract(self, codes::VEXTRACTF64X4, first / 32, place),
            16 => return extract(self, sixteen, part, place),
            _ => {}
        }
        let mut quarter = bytes;
        if part > 0 {
            quarter = self.vector();
            extract(self, sixteen, part, Arg::Def(quarter, Width::X))?;
        }
        match (count, within) {
            (8, 0) => store(self, codes::VMOVSD_STORE, Width::X, quarter),
            (4, 0) => store(self, codes::VMOVSS_STORE, Width::X, quarter),
            _ => {
                let row = if count == 8 { codes::VPEXTRQ } else { codes::VPEXTRD };
                let code: Code = self.code(row, Width::X)?;
                self.push(Inst::new(code, &[place, Arg::Use(quarter, Width::X), imm8((within / count) as u8)]));
                Ok(())
            }
        }
    }
}
