//! Loads and stores.
//!
//! Invariant: every access lies within what the program accesses, with the sizes of its elements; a load of every other element reads those
//! between too, and drops them; stores keep their order.

use super::codes;
use super::emit::{Emitter, imm8, width_bytes};
use super::machine::{Arg, Base, Inst, Place, Width};
use crate::Error;
use iced_x86::Code;
use kiln_ir::DType;
use kiln_ir::vector::{Address, ValueId, VectorType};
use regalloc2::VReg;

/// A value about to be stored.
pub(super) struct Stored {
    ty: VectorType,
    register: VReg,
}

impl Emitter<'_> {
    /// The place of the element `distance` after an address.
    pub fn place(&mut self, address: &Address, distance: i128) -> Result<Place, Error> {
        let size = self.program.element(address.buffer).size();
        let mut elements = i128::from(address.offset) + distance;
        let mut index = None;
        if let Some(id) = address.index {
            match self.constant_of(id) {
                Some(c) => elements += i128::from(c.bits as i64),
                None => index = Some((self.integer(id)?, size as u32)),
            }
        }
        let Some(&(mut base)) = self.bases.get(address.buffer) else { return Err(self.unsupported("no such memory")) };
        let bytes = elements * size as i128;
        let displacement = match i32::try_from(bytes) {
            Ok(bytes) => bytes,
            Err(_) => {
                let bytes = i64::try_from(bytes).map_err(|_| self.unsupported("the offset in bytes overflows"))?;
                let distance = self.number(bytes);
                let Base::Register(start) = base else { return Err(self.unsupported("the address is not local")) };
                base = Base::Register(self.sum(start, distance));
                0
            }
        };
        Ok(Place { base, index, displacement, repeated: false })
    }

    pub fn load_integer(&mut self, dtype: DType, address: &Address, distance: i128) -> Result<VReg, Error> {
        let place = Arg::Memory(self.place(address, distance)?);
        let to = self.general();
        let (code, width) = match dtype {
            DType::Bool => {
                self.ins(Code::Cmp_rm8_imm8, &[place, imm8(0)]);
                return Ok(self.flag(Code::Setne_rm8));
            }
            DType::I8 => (Code::Movsx_r64_rm8, Width::Q),
            DType::U8 => (Code::Movzx_r32_rm8, Width::D),
            DType::I16 => (Code::Movsx_r64_rm16, Width::Q),
            DType::U16 => (Code::Movzx_r32_rm16, Width::D),
            DType::I32 => (Code::Movsxd_r64_rm32, Width::Q),
            DType::U32 => (Code::Mov_r32_rm32, Width::D),
            DType::I64 | DType::U64 => (Code::Mov_r64_rm64, Width::Q),
            _ => return Err(self.unsupported(format!("{dtype} in a general register"))),
        };
        self.ins(code, &[Arg::Def(to, width), place]);
        Ok(to)
    }

    /// Loads a float or a vector.
    pub fn load(&mut self, ty: VectorType, address: &Address, one: bool) -> Result<VReg, Error> {
        let width = self.width(ty)?;
        let place = Arg::Memory(self.place(address, 0)?);
        let size = ty.dtype.size();
        let (row, width) = if one && !ty.is_scalar() {
            match (size, width) {
                (1, _) => (codes::VPBROADCASTB, width),
                (2, _) => (codes::VPBROADCASTW, width),
                (4, _) => (codes::VBROADCASTSS_MEM, width),
                (_, Width::X) => (codes::VMOVDDUP, width),
                _ => (codes::VBROADCASTSD_MEM, width),
            }
        } else {
            match size * ty.lanes as usize {
                4 => (codes::VMOVSS, Width::X),
                8 => (codes::VMOVSD, Width::X),
                bytes if bytes >= 16 => (codes::VMOVUPS, width),
                _ => return Err(self.unsupported(format!("a load of {ty}"))),
            }
        };
        self.unary(row, width, place)
    }

    /// Narrow integers as i32, f16 as f32.
    pub fn load_wide(&mut self, ty: VectorType, address: &Address) -> Result<VReg, Error> {
        let narrow = self.program.element(address.buffer);
        if narrow == DType::F16 {
            return self.load_halves(ty, address);
        }
        if ty.is_scalar() {
            return self.load_integer(narrow, address, 0);
        }
        // The instruction reads as many elements as its register has lanes, which must not be more than are asked for.
        if ty.lanes < 4 {
            return Err(self.unsupported(format!("a wide load of {ty}")));
        }
        let row = match narrow {
            DType::I8 => codes::VPMOVSXBD,
            DType::U8 => codes::VPMOVZXBD,
            DType::I16 => codes::VPMOVSXWD,
            _ => codes::VPMOVZXWD,
        };
        let (width, place) = (self.width(ty)?, Arg::Memory(self.place(address, 0)?));
        self.unary(row, width, place)
    }

    pub fn load_strided(&mut self, ty: VectorType, address: &Address, stride: i64) -> Result<VReg, Error> {
        if stride == 1 && ty.dtype.is_float() | !ty.is_scalar() {
            return self.load(ty, address, false);
        }
        if ty.is_scalar() && !ty.dtype.is_float() {
            return self.load_integer(ty.dtype, address, 0);
        }
        if ty.is_scalar() {
            return self.load(ty, address, false);
        }
        let size = ty.dtype.size();
        if stride == 2 && size == 4 && ty.lanes >= 4 {
            return self.load_every_other(ty, address);
        }
        let chunk = (16 / size).min(ty.lanes as usize);
        let mut chunks = Vec::new();
        for first in (0..ty.lanes as usize).step_by(chunk) {
            let mut vector = None;
            for lane in 0..chunk {
                let distance = (first + lane) as i128 * i128::from(stride);
                let place = Arg::Memory(self.place(address, distance)?);
                vector = Some(match (vector, size) {
                    (None, 4) => self.unary(codes::VMOVSS, Width::X, place)?,
                    (None, 8) => self.unary(codes::VMOVSD, Width::X, place)?,
                    (None, _) => {
                        let zero = self.filled(&[0], Width::X)?;
                        self.insert(size, zero, place, 0)?
                    }
                    (Some(vector), _) => self.insert(size, vector, place, lane as u8)?,
                });
            }
            chunks.extend(vector);
        }
        self.join(&chunks, width_bytes(self.width(ty)?))
    }

    /// Every other element of 4 bytes: the even lanes of a vector and the odd ones of the next, which begins one element before the first one's
    /// end so that nothing behind the last element is read.
    fn load_every_other(&mut self, ty: VectorType, address: &Address) -> Result<VReg, Error> {
        let (width, lanes) = (self.width(ty)?, ty.lanes);
        let [low, high] = [0, i128::from(lanes) - 1].map(|distance| self.place(address, distance));
        let low = self.unary(codes::VMOVUPS, width, Arg::Memory(low?))?;
        let high = Arg::Memory(high?);
        if self.wide() && width != Width::X {
            let lane = |n: u32| 2 * n + u32::from(n >= lanes / 2);
            let order: Vec<u8> = (0..lanes).flat_map(|n| lane(n).to_le_bytes()).collect();
            let order = Place { base: self.pooled(&order), index: None, displacement: 0, repeated: false };
            let order = self.unary(codes::VMOVUPS, width, Arg::Memory(order))?;
            let (code, def) = (self.code(codes::VPERMT2PS, width)?, self.vector());
            self.ins(code, &[Arg::Tied { def, from: low, width }, Arg::Use(order, width), high]);
            return Ok(def);
        }
        let both = self.binary_with(codes::VSHUFPS, width, low, high, 0xd8)?;
        if width == Width::X {
            return Ok(both);
        }
        // Of each 16 bytes the lower half is the first vector's.
        self.unary_with(codes::VPERMPD, width, Arg::Use(both, width), 0xd8)
    }

    /// Replaces a lane of 16 bytes by an element in memory or a general register.
    pub fn insert(&mut self, size: usize, vector: VReg, from: Arg, lane: u8) -> Result<VReg, Error> {
        let row = match size {
            1 => codes::VPINSRB,
            2 => codes::VPINSRW,
            4 => codes::VPINSRD,
            _ => codes::VPINSRQ,
        };
        self.binary_with(row, Width::X, vector, from, lane)
    }

    /// A value in a register, to be stored.
    pub fn stored(&mut self, value: ValueId) -> Result<Stored, Error> {
        let ty = self.ty(value);
        let register = if ty.is_scalar() && !ty.dtype.is_float() {
            self.integer(value)?
        } else if ty.dtype == DType::Bool {
            return Err(self.unsupported("a mask in memory"));
        } else {
            self.vector_of(value)?
        };
        Ok(Stored { ty, register })
    }

    pub fn store(&mut self, address: &Address, value: Stored) -> Result<(), Error> {
        let Stored { ty, register } = value;
        // Of 32-bit lanes narrower elements are the low bits, or the nearest f16.
        let narrow = self.program.element(address.buffer);
        let size = narrow.size();
        if narrow == DType::F16 && ty.is_scalar() {
            let half = self.narrowed_to_halves(register, Width::X)?;
            let (code, bits) = (self.code(codes::VMOVD_GPR, Width::X)?, self.general());
            self.ins(code, &[Arg::Def(bits, Width::D), Arg::Use(half, Width::X)]);
            let place = Arg::Memory(self.place(address, 0)?);
            self.ins(Code::Mov_rm16_r16, &[place, Arg::Use(bits, Width::W)]);
            return Ok(());
        }
        let place = Arg::Memory(self.place(address, 0)?);
        if ty.is_scalar() && !ty.dtype.is_float() {
            let (code, width) = match size {
                1 => (Code::Mov_rm8_r8, Width::B),
                2 => (Code::Mov_rm16_r16, Width::W),
                4 => (Code::Mov_rm32_r32, Width::D),
                _ => (Code::Mov_rm64_r64, Width::Q),
            };
            self.ins(code, &[place, Arg::Use(register, width)]);
            return Ok(());
        }
        let mut width = self.width(ty)?;
        let mut register = register;
        let row = match size * ty.lanes as usize {
            4 => codes::VMOVSS_STORE,
            8 => codes::VMOVSD_STORE,
            bytes if bytes >= 16 => codes::VMOVUPS_STORE,
            _ => return Err(self.unsupported(format!("a store of {ty}"))),
        };
        if size < ty.dtype.size() {
            register = match narrow {
                DType::F16 => self.narrowed_to_halves(register, width)?,
                _ => self.narrowed(register, width, size)?,
            };
            width = if size * ty.lanes as usize == 32 { Width::Y } else { Width::X };
        }
        let code = self.code(row, width)?;
        self.push(Inst::new(code, &[place, Arg::Use(register, width)]));
        Ok(())
    }
}
