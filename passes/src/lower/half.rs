//! f16 and bf16: f32 in registers, 16 bits in memory.
//!
//! Invariant: a register of a tile of halves holds f32 that are numbers of the narrow type, so each operation on halves is that on
//! f32, rounded once more (see [`kiln_ir::semantics`]). Processors with vectors of 32 bytes and more convert f16 themselves; bf16, and
//! f16 on all others, are bits that integer operations move and round.

use super::tiles::Lowering;
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::tile::{TileId, TileOp};
use kiln_ir::vector::{Op, ValueId, VectorType};
use kiln_ir::{DType, semantics};

/// The type that a buffer has in a vector program for vectors of so many bytes.
pub(super) fn in_memory(dtype: DType, bytes: u32) -> DType {
    match dtype {
        DType::F16 if bytes >= 32 => DType::F16,
        DType::F16 | DType::BF16 => DType::U16,
        _ => dtype,
    }
}

/// The constant as registers hold it.
pub(super) fn held_constant(c: Constant) -> Constant {
    // Constants of halves are the bits of an f32.
    Constant { dtype: c.dtype.computed(), ..c }
}

/// Whether the result of an operation on halves is one, so that nothing rounds it.
fn is_exact(op: &TileOp) -> bool {
    match op {
        TileOp::Unary(op, _) => {
            matches!(
                op,
                UnaryOp::Neg
                    | UnaryOp::Abs
                    | UnaryOp::Sign
                    | UnaryOp::Floor
                    | UnaryOp::Ceil
                    | UnaryOp::Round
                    | UnaryOp::Trunc
            )
        }
        TileOp::Binary(op, _, _) => matches!(op, BinaryOp::Min | BinaryOp::Max),
        // A conversion rounds itself.
        TileOp::Const(_)
        | TileOp::Index(_)
        | TileOp::Load { .. }
        | TileOp::Select(..)
        | TileOp::Cast(..)
        | TileOp::Transpose(..)
        | TileOp::CheckIndex { .. } => true,
        TileOp::Fma(..) | TileOp::Reduce(..) | TileOp::Dot(..) => false,
    }
}

impl Lowering<'_> {
    /// The type of what a load of a tile gives before [`Self::decoded`].
    pub(super) fn loaded(&self, tile: DType, buffer: DType) -> DType {
        if tile.is_half() && in_memory(buffer, self.bytes) == DType::U16 { DType::I32 } else { tile.computed() }
    }

    /// What stands for a constant where a load does not happen, before [`Self::decoded`].
    pub(super) fn encoded_constant(&self, c: Constant) -> Constant {
        if self.loaded(c.dtype, c.dtype) != DType::I32 || !c.dtype.is_half() {
            return held_constant(c);
        }
        let mut bytes = Vec::new();
        c.store(&mut bytes);
        Constant::int(DType::I32, semantics::load_i64(DType::U16, &bytes, 0))
    }

    /// What a load of halves gave as f32.
    pub(super) fn decoded(&mut self, depth: usize, half: DType, x: ValueId) -> ValueId {
        let mut code = self.builder.at(depth);
        if code.ty(x).dtype != DType::I32 {
            return x;
        }
        if half == DType::BF16 {
            let bits = code.with(BinaryOp::Shl, x, 16.0);
            return code.bits(DType::F32, bits);
        }
        // The exponent's bias differs by 112; numbers below the least normal one are normal f32 after the product.
        let magnitude = code.with(BinaryOp::And, x, 32767.0);
        let magnitude = code.with(BinaryOp::Shl, magnitude, 13.0);
        let sign = code.with(BinaryOp::And, x, 32768.0);
        let sign = code.with(BinaryOp::Shl, sign, 16.0);
        let number = code.bits(DType::F32, magnitude);
        let number = code.with(BinaryOp::Mul, number, 2f64.powi(112));
        let number = code.bits(DType::I32, number);
        let special = code.with(BinaryOp::Or, magnitude, f64::from(INFINITY));
        let limit = code.int(x, 0x7c00 << 13);
        let is_special = code.binary(BinaryOp::Ge, magnitude, limit);
        let number = code.select(is_special, special, number);
        let bits = code.binary(BinaryOp::Or, number, sign);
        code.bits(DType::F32, bits)
    }

    /// An f32 that is a number of the half type as what a store to a buffer of it takes.
    pub(super) fn encoded(&mut self, depth: usize, half: DType, x: ValueId) -> ValueId {
        if !half.is_half() || in_memory(half, self.bytes) == DType::F16 {
            return x;
        }
        let mut code = self.builder.at(depth);
        let bits = code.bits(DType::I32, x);
        if half == DType::BF16 {
            return code.with(BinaryOp::Shr, bits, 16.0);
        }
        let magnitude = code.with(BinaryOp::And, bits, f64::from(i32::MAX));
        let number = code.bits(DType::F32, magnitude);
        // Exact: what is below the least normal f16 becomes a multiple of 2^-136.
        let number = code.with(BinaryOp::Mul, number, 2f64.powi(-112));
        let number = code.bits(DType::I32, number);
        let number = code.with(BinaryOp::Shr, number, 13.0);
        let limit = code.int(bits, i64::from(INFINITY));
        let payload = code.with(BinaryOp::Shr, magnitude, 13.0);
        let payload = code.with(BinaryOp::And, payload, 1023.0);
        let special = code.with(BinaryOp::Or, payload, 31744.0);
        let is_special = code.binary(BinaryOp::Ge, magnitude, limit);
        let number = code.select(is_special, special, number);
        let sign = code.with(BinaryOp::Shr, bits, 16.0);
        let sign = code.with(BinaryOp::And, sign, 32768.0);
        code.binary(BinaryOp::Or, number, sign)
    }

    /// The nearest number of the half type, as f32.
    pub(super) fn rounded_to(&mut self, depth: usize, half: DType, x: ValueId) -> ValueId {
        let mut code = self.builder.at(depth);
        let ty = code.ty(x);
        if half == DType::F16 && self.bytes >= 32 {
            return code.op(ty, Op::RoundHalf(x));
        }
        if half == DType::BF16 && self.pairs {
            // Only programs of products in bf16 are lowered so; there subnormal numbers may count as 0.
            let zero = code.num(x, 0.0);
            let low = code.binary(BinaryOp::Pair, x, zero);
            let bits = code.with(BinaryOp::Shl, low, 16.0);
            return code.bits(DType::F32, bits);
        }
        let bits = code.bits(DType::I32, x);
        let dropped = if half == DType::BF16 { 16 } else { 13 };
        // Half of what is dropped, less one where the last bit that stays is even.
        let last = code.with(BinaryOp::Shr, bits, f64::from(dropped));
        let last = code.with(BinaryOp::And, last, 1.0);
        let up = code.with(BinaryOp::Add, last, f64::from((1 << (dropped - 1)) - 1));
        let magnitude = code.with(BinaryOp::And, bits, f64::from(i32::MAX));
        let raised = code.add(magnitude, up);
        let mut result = code.with(BinaryOp::And, raised, -f64::from(1 << dropped));
        let infinity = code.int(bits, i64::from(INFINITY));
        if half == DType::F16 {
            // Below the least normal number f16 has the multiples of 2^-24, which are all that f32 has between a half and 1.
            let number = code.bits(DType::F32, magnitude);
            let small = code.with(BinaryOp::Add, number, 0.5);
            let small = code.with(BinaryOp::Sub, small, 0.5);
            let small = code.bits(DType::I32, small);
            let normal = code.int(bits, i64::from(2f32.powi(-14).to_bits()));
            let below = code.binary(BinaryOp::Lt, magnitude, normal);
            result = code.select(below, small, result);
            let limit = code.int(bits, i64::from(65520f32.to_bits()));
            let above = code.binary(BinaryOp::Ge, magnitude, limit);
            result = code.select(above, infinity, result);
        }
        let quiet = code.with(BinaryOp::Or, magnitude, f64::from(0x0040_0000));
        let nan = code.binary(BinaryOp::Gt, magnitude, infinity);
        result = code.select(nan, quiet, result);
        let sign = code.with(BinaryOp::And, bits, f64::from(i32::MIN));
        let result = code.binary(BinaryOp::Or, result, sign);
        code.bits(DType::F32, result)
    }

    /// The result of an operation as the tile's type has it.
    pub(super) fn rounded(&mut self, id: TileId, op: &TileOp, x: ValueId) -> ValueId {
        let dtype = self.ty(id).dtype;
        if !dtype.is_half() || is_exact(op) {
            return x;
        }
        self.rounded_to(self.depths[id.index()], dtype, x)
    }

    /// An f64 as an f32 that rounds to a half as the f64 does: an inexact one is rounded to odd.
    pub(super) fn narrowed_to_odd(&mut self, depth: usize, x: ValueId) -> ValueId {
        let mut code = self.builder.at(depth);
        let nearest = code.cast(DType::F32, x);
        let bits = code.bits(DType::I32, nearest);
        let back = code.cast(DType::F64, nearest);
        let (a, b) = (code.unary(UnaryOp::Abs, back), code.unary(UnaryOp::Abs, x));
        let away = code.binary(BinaryOp::Gt, a, b);
        let near = code.binary(BinaryOp::Lt, a, b);
        let less = code.with(BinaryOp::Sub, bits, 1.0);
        let less = code.with(BinaryOp::Or, less, 1.0);
        let odd = code.with(BinaryOp::Or, bits, 1.0);
        // Neither holds of a NaN or of what is exact.
        let result = code.select(near, odd, bits);
        let result = code.select(away, less, result);
        let ty = VectorType { dtype: DType::F32, ..code.ty(result) };
        code.op(ty, Op::Bitcast(DType::F32, result))
    }
}

/// The bits of an infinite f32.
const INFINITY: i32 = 0x7f80_0000;
