//! Loads and stores.
//!
//! Invariant: every access is one that the program makes; none is moved over another, because buffers may overlap
//! where the memory plan computes in place.

use crate::Error;
use crate::emit::Emitter;
use crate::target::Target;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use kiln_ir::DType;
use kiln_ir::vector::{Address, ValueId, VectorType};

/// Elements lie at any address, and the caller vouches for all of them.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Emitter<'_, '_> {
    /// A pointer and a byte offset for the element `distance` after an address.
    ///
    /// Index and scale stay visible as `base + (index << scale)`, which the selectors fold into addressing modes.
    fn place(&mut self, address: &Address, distance: i128) -> Result<(Value, i32), Error> {
        let size = self.program.element(address.buffer).size();
        let base = self.bases[address.buffer];
        let pointer = match address.index {
            None => base,
            Some(index) => match self.addresses.get(&(address.buffer, index)) {
                Some(&pointer) => pointer,
                None => {
                    let mut bytes = self.value(index);
                    if size > 1 {
                        bytes = self.builder.ins().ishl_imm_u(bytes, i64::from(size.trailing_zeros()));
                    }
                    let pointer = self.builder.ins().iadd(base, bytes);
                    self.addresses.insert((address.buffer, index), pointer);
                    self.known.push((address.buffer, index));
                    pointer
                }
            },
        };
        let bytes = (i128::from(address.offset) + distance) * size as i128;
        if let Ok(offset) = i32::try_from(bytes) {
            return Ok((pointer, offset));
        }
        let bytes = i64::try_from(bytes).map_err(|_| self.unsupported("the offset in bytes overflows"))?;
        Ok((self.builder.ins().iadd_imm_s(pointer, bytes), 0))
    }

    /// A scalar.
    fn load_element(&mut self, dtype: DType, address: &Address, distance: i128) -> Result<Value, Error> {
        let ty = self.clif_type(VectorType::scalar(dtype))?;
        let (pointer, offset) = self.place(address, distance)?;
        let value = self.builder.ins().load(ty, flags(), pointer, offset);
        // Any byte but 0 is true.
        Ok(if dtype == DType::Bool { self.builder.ins().icmp_imm_u(IntCC::NotEqual, value, 0) } else { value })
    }

    pub fn load(&mut self, result: VectorType, ty: Type, address: &Address) -> Result<Value, Error> {
        if result.is_scalar() {
            return self.load_element(result.dtype, address, 0);
        }
        let (pointer, offset) = self.place(address, 0)?;
        // Cranelift 0.135 makes a load the memory operand of `cmpps` or `cmppd`, which without AVX fault where 16 does not divide the
        // address. Integers that are then taken for floats are loaded by an instruction of their own.
        if self.target == Target::X86_64 && result.dtype.is_float() {
            let loaded = self.builder.ins().load(types::I8X16, flags(), pointer, offset);
            return Ok(self.bitcast(ty, loaded));
        }
        Ok(self.builder.ins().load(ty, flags(), pointer, offset))
    }

    /// Narrow integers as i32.
    pub fn load_wide(&mut self, result: VectorType, ty: Type, address: &Address) -> Result<Value, Error> {
        let narrow = self.program.element(address.buffer);
        let signed = matches!(narrow, DType::I8 | DType::I16);
        if result.lanes != 4 {
            let mut scalars = Vec::new();
            for lane in 0..result.lanes {
                let (pointer, offset) = self.place(address, i128::from(lane))?;
                let ins = self.builder.ins();
                scalars.push(match (narrow.size(), signed) {
                    (1, true) => ins.sload8(types::I32, flags(), pointer, offset),
                    (1, false) => ins.uload8(types::I32, flags(), pointer, offset),
                    (_, true) => ins.sload16(types::I32, flags(), pointer, offset),
                    (_, false) => ins.uload16(types::I32, flags(), pointer, offset),
                });
            }
            return match scalars.as_slice() {
                [one] => Ok(*one),
                lanes => Ok(self.pack(result, ty, lanes)),
            };
        }
        let (pointer, offset) = self.place(address, 0)?;
        let (word, vector, narrow) = match narrow.size() {
            1 => (types::I32, types::I32X4, types::I8X16),
            _ => (types::I64, types::I64X2, types::I16X8),
        };
        let loaded = self.builder.ins().load(word, flags(), pointer, offset);
        let loaded = self.builder.ins().scalar_to_vector(vector, loaded);
        // On a big-endian machine lanes would be reversed; Kiln has no such target.
        let order = MemFlagsData::new().with_endianness(Endianness::Little);
        let mut lanes = self.builder.ins().bitcast(narrow, order, loaded);
        let steps = if narrow == types::I8X16 { 2 } else { 1 };
        for _ in 0..steps {
            lanes = match signed {
                true => self.builder.ins().swiden_low(lanes),
                false => self.builder.ins().uwiden_low(lanes),
            };
        }
        Ok(lanes)
    }

    pub fn load_splat(&mut self, result: VectorType, ty: Type, address: &Address) -> Result<Value, Error> {
        let scalar = self.load_element(result.dtype, address, 0)?;
        Ok(self.splat(result, ty, scalar))
    }

    pub fn load_strided(
        &mut self,
        result: VectorType,
        ty: Type,
        address: &Address,
        stride: i64,
    ) -> Result<Value, Error> {
        if stride == 1 {
            return self.load(result, ty, address);
        }
        let mut scalars = Vec::new();
        for lane in 0..result.lanes {
            scalars.push(self.load_element(result.dtype, address, i128::from(lane) * i128::from(stride))?);
        }
        Ok(self.pack(result, ty, &scalars))
    }

    pub fn store(&mut self, address: &Address, value: ValueId) -> Result<(), Error> {
        let (ty, buffer) = (self.ty(value), self.program.element(address.buffer));
        let mut value = self.value(value);
        if buffer.size() < ty.dtype.size() {
            value = self.narrowed(ty, buffer, value)?;
        }
        let (pointer, offset) = self.place(address, 0)?;
        self.builder.ins().store(flags(), value, pointer, offset);
        Ok(())
    }

    /// The low bits of i32 lanes, moved together in an integer of their size.
    fn narrowed(&mut self, ty: VectorType, to: DType, value: Value) -> Result<Value, Error> {
        if ty.is_scalar() {
            let narrow = self.clif_type(VectorType::scalar(to))?;
            return Ok(self.builder.ins().ireduce(narrow, value));
        }
        let mask = self.lanes_of(types::I32X4, if to.size() == 1 { 0xff } else { 0xffff });
        let low = self.builder.ins().band(value, mask);
        // It saturates, which numbers without high bits do not notice.
        let words = self.builder.ins().unarrow(low, low);
        if to.size() == 2 {
            let halves = self.bitcast(types::I64X2, words);
            return Ok(self.builder.ins().extractlane(halves, 0));
        }
        let bytes = self.builder.ins().unarrow(words, words);
        let quarters = self.bitcast(types::I32X4, bytes);
        Ok(self.builder.ins().extractlane(quarters, 0))
    }
}
