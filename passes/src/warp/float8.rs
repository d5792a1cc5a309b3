//! Floats of 8 bits: what lies in memory as a byte, in registers as an i32 of that byte.
//!
//! Invariant: conversions mean what [`kiln_ir::semantics`] says, bit by bit but for which NaN it is. Where the GPU has no instruction for
//! them (before sm_89) they are made of shifts: moved to where an f32 has them, a byte's bits are its value less a power of two in
//! the exponent, subnormal ones too, which one product puts right.

use super::Lowering;
use kiln_ir::DType;
use kiln_ir::scalar::{BinaryOp, UnaryOp};
use kiln_ir::tile::{Buffer, Part, Stmt as TileStmt, TileOp, TileProgram};
use kiln_ir::warp::{Op, ValueId};

/// Where the fields of a type are.
struct Fields {
    mantissa: i64,
    bias: i64,
    /// The greatest finite value, and the least normal one.
    most: f64,
    least: f64,
}

fn fields(dtype: DType) -> Fields {
    match dtype {
        DType::F8E5M2 => Fields { mantissa: 2, bias: 15, most: 57344.0, least: 2f64.powi(-14) },
        _ => Fields { mantissa: 3, bias: 7, most: 448.0, least: 2f64.powi(-6) },
    }
}

/// Bits of the mantissa of an f32, and what is added to its exponents.
const MANTISSA: i64 = 23;
const BIAS: i64 = 127;

/// The NaN that GPUs make, in either type.
const NAN: i64 = 0x7f;

/// Why a part cannot be made, where it multiplies floats of 8 bits on a GPU that does not, or computes with them otherwise than by
/// conversions, moves and products of matrices.
pub(super) fn check(program: &TileProgram, part: &Part, multiplies: bool) -> Result<(), String> {
    let mut found = Ok(());
    super::layout::each(&part.body, &mut |stmt| {
        let TileStmt::Let(id, op) = stmt else { return };
        let mut types = vec![program.tiles[*id].dtype];
        op.clone().for_each_operand(&mut |o| types.push(program.tiles[*o].dtype));
        let Some(dtype) = types.into_iter().find(|ty| ty.is_ofp8()) else { return };
        let what = match op {
            TileOp::Unary(..) | TileOp::Binary(..) | TileOp::Fma(..) | TileOp::Reduce(..) => "arithmetic on",
            TileOp::Index(_) | TileOp::CheckIndex { .. } => "indices of",
            TileOp::Dot(..) if !multiplies => "products before sm_89 of",
            TileOp::Const(_) | TileOp::Load { .. } | TileOp::Select(..) | TileOp::Cast(..) => return,
            TileOp::Transpose(..) | TileOp::Dot(..) => return,
        };
        found = Err(format!("{what} {dtype}"));
    });
    found
}

/// The buffer as kernels see it: floats of 8 bits are bytes.
pub(super) fn as_bytes(buffer: &Buffer) -> Buffer {
    let dtype = if buffer.dtype.is_ofp8() { DType::U8 } else { buffer.dtype };
    Buffer { dtype, ..buffer.clone() }
}

impl Lowering<'_> {
    /// The value of a byte as f32.
    pub(super) fn widened_float8(&mut self, from: DType, byte: ValueId) -> ValueId {
        if self.options.float8 {
            return self.code.op(DType::F32, Op::Unpack(from, byte, 0));
        }
        let Fields { mantissa, bias, .. } = fields(from);
        // The sign is at the top, and copies of it that are masked away lie below.
        let top = self.code.with(BinaryOp::Shl, byte, 24);
        let moved = self.code.with(BinaryOp::Shr, top, 24 - (MANTISSA - mantissa));
        let kept = self.code.with(BinaryOp::And, moved, -(1 << 31) | NAN << (MANTISSA - mantissa));
        let small = self.code.op(DType::F32, Op::Bitcast(DType::F32, kept));
        let power = self.code.float(((BIAS - bias) as f64).exp2());
        let value = self.code.binary(BinaryOp::Mul, small, power);
        let size = self.code.with(BinaryOp::And, byte, NAN);
        // Of e5m2 all bytes whose exponent is full are infinities and NaN, of e4m3 the last is NaN.
        let first = if from == DType::F8E5M2 { 0x7c } else { NAN };
        let special = self.code.with(BinaryOp::Ge, size, first);
        let full = self.code.with(BinaryOp::Or, kept, 0xff << MANTISSA);
        let full = self.code.op(DType::F32, Op::Bitcast(DType::F32, full));
        self.code.select(special, full, value)
    }

    /// The byte of an f32, rounded to the nearest; what is too large becomes the largest.
    pub(super) fn rounded_float8(&mut self, to: DType, x: ValueId) -> ValueId {
        if self.options.float8 {
            let zero = self.code.float(0.0);
            let pair = self.code.op(DType::U32, Op::Pack(to, x, zero));
            return self.code.cast(DType::I32, pair);
        }
        let Fields { mantissa, bias, most, least } = fields(to);
        let (most, least) = (self.code.float(most), self.code.float(least));
        let size = self.code.unary(UnaryOp::Abs, x);
        let size = self.code.binary(BinaryOp::Min, size, most);
        let dropped = MANTISSA - mantissa;
        let bits = self.code.op(DType::I32, Op::Bitcast(DType::I32, size));
        // Half of the last place, less one where the number is even.
        let odd = self.code.with(BinaryOp::Shr, bits, dropped);
        let odd = self.code.with(BinaryOp::And, odd, 1);
        let rounded = self.code.with(BinaryOp::Add, bits, (1 << (dropped - 1)) - 1);
        let rounded = self.code.add(rounded, odd);
        let normal = self.code.with(BinaryOp::Shr, rounded, dropped);
        let normal = self.code.with(BinaryOp::Add, normal, -((BIAS - bias) << mantissa));
        // Below the normal numbers steps are all alike.
        let steps = self.code.float(((bias - 1 + mantissa) as f64).exp2());
        let steps = self.code.binary(BinaryOp::Mul, size, steps);
        let steps = self.code.unary(UnaryOp::Round, steps);
        let steps = self.code.cast(DType::I32, steps);
        let is_small = self.code.binary(BinaryOp::Lt, size, least);
        let byte = self.code.select(is_small, steps, normal);
        let all = self.code.op(DType::I32, Op::Bitcast(DType::I32, x));
        let sign = self.code.with(BinaryOp::Shr, all, 24);
        let sign = self.code.with(BinaryOp::And, sign, 0x80);
        let byte = self.code.binary(BinaryOp::Or, byte, sign);
        let nan = self.code.binary(BinaryOp::Ne, x, x);
        let of_nan = self.code.int(DType::I32, NAN);
        self.code.select(nan, of_nan, byte)
    }

    /// A conversion to or from a float of 8 bits; nothing where neither type is one.
    pub(super) fn convert_float8(&mut self, from: DType, to: DType, x: ValueId) -> Option<ValueId> {
        if from == to || !from.is_ofp8() && !to.is_ofp8() {
            return None;
        }
        let wide = if from.is_ofp8() { self.widened_float8(from, x) } else { self.convert(DType::F32, x) };
        Some(if to.is_ofp8() { self.rounded_float8(to, wide) } else { self.convert(to, wide) })
    }
}
