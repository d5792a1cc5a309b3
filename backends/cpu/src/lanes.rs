//! Vectors made of scalars and scalars made of vectors, masks, and folds.
//!
//! Invariant: a mask's lanes are all ones or all zeros; a scalar bool is 0 or 1 in 8 bits.

use crate::Error;
use crate::emit::Emitter;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use kiln_ir::vector::{ValueId, VectorType};
use kiln_ir::{BinaryOp, Class, DType};

impl Emitter<'_, '_> {
    /// The bytes of a value as another type of the same size.
    pub fn bitcast(&mut self, ty: Type, a: Value) -> Value {
        if self.builder.func.dfg.value_type(a) == ty {
            return a;
        }
        self.builder.ins().bitcast(ty, MemFlagsData::new().with_endianness(Endianness::Little), a)
    }

    /// A scalar as one lane: a bool becomes all ones or all zeros.
    fn as_lane(&mut self, result: VectorType, ty: Type, scalar: Value) -> Value {
        if result.dtype != DType::Bool || !ty.is_vector() {
            return scalar;
        }
        let wide = match ty.lane_type() {
            types::I8 => scalar,
            lane => self.builder.ins().uextend(lane, scalar),
        };
        self.builder.ins().ineg(wide)
    }

    pub fn splat(&mut self, result: VectorType, ty: Type, scalar: Value) -> Value {
        let lane = self.as_lane(result, ty, scalar);
        if ty.is_vector() { self.builder.ins().splat(ty, lane) } else { lane }
    }

    pub fn pack(&mut self, result: VectorType, ty: Type, scalars: &[Value]) -> Value {
        let mut vector = None;
        for (i, scalar) in scalars.iter().enumerate() {
            let lane = self.as_lane(result, ty, *scalar);
            vector = Some(match vector {
                None if !ty.is_vector() => lane,
                None => self.builder.ins().splat(ty, lane),
                Some(vector) => self.builder.ins().insertlane(vector, lane, i as u8),
            });
        }
        // The verifier saw as many scalars as lanes, so at least one.
        vector.unwrap_or_else(|| self.lanes_of(ty, 0))
    }

    pub fn extract(&mut self, from: VectorType, a: Value, lane: u32) -> Value {
        if from.is_scalar() {
            return a;
        }
        let scalar = self.builder.ins().extractlane(a, lane as u8);
        if from.dtype == DType::Bool {
            return self.builder.ins().icmp_imm_u(IntCC::NotEqual, scalar, 0);
        }
        scalar
    }

    /// `mask ? b : c` on the lanes of vectors (masks among them).
    pub fn select_lanes(&mut self, ty: Type, mask: Value, b: Value, c: Value) -> Value {
        // In integers: the selector then sees that the mask comes from a comparison, and blends.
        let lanes = self.builder.func.dfg.value_type(mask);
        let b = self.bitcast(lanes, b);
        let c = self.bitcast(lanes, c);
        let selected = self.builder.ins().bitselect(mask, b, c);
        self.bitcast(ty, selected)
    }

    /// Applies `f` to every lane as a scalar of type `from`; the results are lanes of `to`.
    pub fn scalarise(
        &mut self,
        from: VectorType,
        operands: &[Value],
        to: VectorType,
        mut f: impl FnMut(&mut Self, &[Value]) -> Result<Value, Error>,
    ) -> Result<Value, Error> {
        let ty = self.clif_type(to)?;
        let mut scalars = Vec::new();
        for lane in 0..from.lanes {
            let lanes: Vec<Value> = operands.iter().map(|v| self.extract(from, *v, lane)).collect();
            scalars.push(f(self, &lanes)?);
        }
        Ok(self.pack(to, ty, &scalars))
    }

    /// Bytes of two vectors of 16, those of the second from 16 on.
    fn shuffled(&mut self, a: Value, b: Value, bytes: Vec<u8>) -> Value {
        let mask = self.builder.func.dfg.immediates.push(bytes.into());
        self.builder.ins().shuffle(a, b, mask)
    }

    /// One lane of each of as many vectors as they have lanes. The shuffles that the lanes share are made once: equal instructions become one.
    pub fn column(&mut self, ty: Type, vectors: &[ValueId], lane: u32) -> Result<Value, Error> {
        let lanes = vectors.len();
        if !lanes.is_power_of_two() || lanes < 2 || ty.bytes() != 16 || ty.lane_count() as usize != lanes {
            return Err(self.unsupported("vectors of other than 16 bytes transposed"));
        }
        let vectors: Vec<Value> = vectors.iter().map(|v| self.value(*v)).collect();
        let vectors: Vec<Value> = vectors.into_iter().map(|v| self.bitcast(types::I8X16, v)).collect();
        let column = self.interleaved(&vectors, lanes.ilog2(), lane as usize);
        Ok(self.bitcast(ty, column))
    }

    /// The n-th of what so many rounds make of vectors of 16 bytes: the lower and the upper halves of a vector and of that half of them further,
    /// lane by lane.
    fn interleaved(&mut self, vectors: &[Value], rounds: u32, n: usize) -> Value {
        let Some(rounds) = rounds.checked_sub(1) else { return vectors[n] };
        let (lanes, size) = (vectors.len(), 16 / vectors.len());
        let [a, b] = [0, lanes / 2].map(|from| self.interleaved(vectors, rounds, n / 2 + from));
        let first = n % 2 * lanes / 2;
        let bytes = (first..first + lanes / 2).flat_map(|lane| {
            let of = move |from: usize| (0..size).map(move |byte| (from + lane * size + byte) as u8);
            of(0).chain(of(16))
        });
        self.shuffled(a, b, bytes.collect())
    }

    /// Folds lanes `i` and `i + n/2` until one is left.
    pub fn fold(&mut self, op: BinaryOp, from: VectorType, id: ValueId) -> Result<Value, Error> {
        let mut vector = self.value(id);
        let ty = self.clif_type(from)?;
        if from.is_scalar() {
            return Ok(vector);
        }
        if from.dtype == DType::Bool {
            return Ok(match op {
                BinaryOp::And | BinaryOp::Mul | BinaryOp::Min => self.builder.ins().vall_true(vector),
                _ => self.builder.ins().vany_true(vector),
            });
        }
        let size = from.dtype.size();
        let mut half = from.lanes as usize / 2;
        while half > 0 {
            // The upper lanes of the result are garbage that no later step reads.
            let whole = self.bitcast(types::I8X16, vector);
            let moved = self.shuffled(whole, whole, (0..16).map(|i| ((i + half * size) % 16) as u8).collect());
            let moved = self.bitcast(ty, moved);
            vector = match from.dtype.class() {
                Class::Float | Class::Double => self.float_values(op, from, vector, moved)?,
                _ => self.int_values(op, from, vector, moved)?,
            };
            half /= 2;
        }
        Ok(self.extract(from, vector, 0))
    }
}
