//! The 8-bit and 4-bit floating-point formats of ONNX, decoded to and encoded from f32.
//!
//! Source: the ONNX specification, "Float stored in 8 bits" and "4 bit floating point"; OCP OFP8 and MX.

use crate::dtype::DType;

struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    bias: i32,
    /// Greatest finite value.
    max: f32,
    has_inf: bool,
    /// The bits of NaN (without sign), where the format has one.
    nan: Option<u8>,
    /// Negative zero does not exist: its pattern is NaN.
    unsigned_zero: bool,
}

fn format(dtype: DType) -> Format {
    let (exponent_bits, mantissa_bits, bias, max, has_inf, nan, unsigned_zero) = match dtype {
        DType::F8E4M3FNUZ => (4, 3, 8, 240.0, false, Some(0x80), true),
        DType::F8E5M2 => (5, 2, 15, 57344.0, true, Some(0x7f), false),
        DType::F8E5M2FNUZ => (5, 2, 16, 57344.0, false, Some(0x80), true),
        DType::F4E2M1 => (2, 1, 1, 6.0, false, None, false),
        _ => (4, 3, 7, 448.0, false, Some(0x7f), false),
    };
    Format { exponent_bits, mantissa_bits, bias, max, has_inf, nan, unsigned_zero }
}

/// The value of a pattern; exact.
pub fn decode(dtype: DType, bits: u8) -> f32 {
    if dtype == DType::F8E8M0 {
        return if bits == 0xff { f32::NAN } else { libm::ldexp(1.0, i32::from(bits) - 127) as f32 };
    }
    let f = format(dtype);
    let sign_bit = 1u8 << (f.exponent_bits + f.mantissa_bits);
    let magnitude = bits & (sign_bit - 1);
    let negative = bits & sign_bit != 0;
    if f.unsigned_zero && bits == 0x80 {
        return f32::NAN;
    }
    let exponent = i32::from(magnitude >> f.mantissa_bits);
    let mantissa = i32::from(magnitude & ((1 << f.mantissa_bits) - 1));
    let top = (1 << f.exponent_bits) - 1;
    if f.has_inf && exponent == top {
        let v = if mantissa == 0 { f32::INFINITY } else { f32::NAN };
        return if negative { -v } else { v };
    }
    if !f.unsigned_zero && !f.has_inf && f.nan == Some(magnitude) {
        return f32::NAN;
    }
    let m = f.mantissa_bits as i32;
    let value = if exponent == 0 {
        libm::ldexp(f64::from(mantissa), 1 - f.bias - m)
    } else {
        libm::ldexp(f64::from(mantissa + (1 << m)), exponent - f.bias - m)
    } as f32;
    if negative { -value } else { value }
}

/// The pattern nearest to a value (half to even). Out of range: the greatest finite value where `saturate`, else
/// infinity or NaN, whichever the format has. A format without NaN (F4E2M1) encodes NaN as -0,
/// as ONNX's own conversion does. F8E8M0 rounds up, which is the default of ONNX's Cast.
pub fn encode(dtype: DType, value: f32, saturate: bool) -> u8 {
    if dtype == DType::F8E8M0 {
        return encode_e8m0(value, saturate);
    }
    let f = format(dtype);
    let sign_bit = 1u8 << (f.exponent_bits + f.mantissa_bits);
    let sign = if value.is_sign_negative() { sign_bit } else { 0 };
    let max_bits = encode_magnitude(&f, f.max) as u8;
    let Some(nan) = f.nan else {
        return if value.is_nan() { sign_bit } else { sign | encode_magnitude(&f, value.abs().min(f.max)) as u8 };
    };
    let nan = if f.unsigned_zero { nan } else { sign | nan };
    if value.is_nan() {
        return nan;
    }
    let overflow = if saturate {
        sign | max_bits
    } else if f.has_inf {
        sign | (((1 << f.exponent_bits) - 1) << f.mantissa_bits)
    } else {
        nan
    };
    if value.is_infinite() {
        return overflow;
    }
    let bits = encode_magnitude(&f, value.abs());
    if bits > u64::from(max_bits) {
        return overflow;
    }
    if f.unsigned_zero && bits == 0 { 0 } else { sign | bits as u8 }
}

/// Rounds a finite magnitude to the format; a magnitude beyond the greatest finite one gives a greater pattern, which
/// may not fit the format.
fn encode_magnitude(f: &Format, x: f32) -> u64 {
    let x = f64::from(x);
    let m = f.mantissa_bits as i32;
    let min_exponent = 1 - f.bias;
    let exponent = if x == 0.0 { min_exponent } else { libm::ilogb(x).max(min_exponent) };
    let units = libm::ldexp(x, m - exponent).round_ties_even();
    // A subnormal has exponent field 0 and fewer than 2^m units; a carry out of the mantissa moves the exponent.
    let field = i64::from(exponent - min_exponent) * (1 << m) + units as i64;
    field.max(0) as u64
}

/// The format has no sign and no infinity: magnitudes are rounded, and infinity is NaN, as in ONNX's reference.
fn encode_e8m0(value: f32, saturate: bool) -> u8 {
    if !value.is_finite() {
        return 0xff;
    }
    let bits = value.abs().to_bits();
    let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
    if exponent > 254 && !saturate { 0xff } else { exponent.min(254) as u8 }
}
