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
    // The least value, 2^-127, is half of the least normal f32.
    let exact = if bits < 0x80_0000 { bits <= 0x40_0000 } else { bits & 0x7f_ffff == 0 };
    let exponent = (bits >> 23) + u32::from(!exact);
    if exponent > 254 && !saturate { 0xff } else { exponent.min(254) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPES: [DType; 6] =
        [DType::F4E2M1, DType::F8E4M3FN, DType::F8E4M3FNUZ, DType::F8E5M2, DType::F8E5M2FNUZ, DType::F8E8M0];

    fn patterns(dtype: DType) -> std::ops::RangeInclusive<u8> {
        0..=if dtype == DType::F4E2M1 { 15 } else { 255 }
    }

    /// The formula of the formats, without their special values.
    fn plain(dtype: DType, bits: u8) -> f64 {
        let (e, m, bias) = match dtype {
            DType::F4E2M1 => (2, 1, 1),
            DType::F8E4M3FN => (4, 3, 7),
            DType::F8E4M3FNUZ => (4, 3, 8),
            DType::F8E5M2 => (5, 2, 15),
            DType::F8E5M2FNUZ => (5, 2, 16),
            _ => return 2f64.powi(i32::from(bits) - 127),
        };
        let field = i32::from(bits >> m) & ((1 << e) - 1);
        let mantissa = f64::from(bits & ((1 << m) - 1)) / f64::from(1 << m);
        let sign = if bits >> (e + m) & 1 == 1 { -1.0 } else { 1.0 };
        sign * if field == 0 { mantissa * 2f64.powi(1 - bias) } else { (1.0 + mantissa) * 2f64.powi(field - bias) }
    }

    #[test]
    fn every_pattern_has_the_value_of_the_formula() {
        for dtype in TYPES {
            let mut special = Vec::new();
            for bits in patterns(dtype) {
                let v = decode(dtype, bits);
                if f64::from(v) == plain(dtype, bits) && v.is_sign_negative() == (plain(dtype, bits).is_sign_negative())
                {
                    assert_eq!(encode(dtype, v, true), bits, "{dtype} {bits:#x}");
                } else {
                    assert!(!v.is_finite(), "{dtype} {bits:#x} = {v}");
                    special.push(bits);
                }
            }
            let expected: &[u8] = match dtype {
                DType::F8E4M3FN => &[0x7f, 0xff],
                DType::F8E5M2 => &[0x7c, 0x7d, 0x7e, 0x7f, 0xfc, 0xfd, 0xfe, 0xff],
                DType::F8E4M3FNUZ | DType::F8E5M2FNUZ => &[0x80],
                DType::F8E8M0 => &[0xff],
                _ => &[],
            };
            assert_eq!(special, expected, "{dtype}");
        }
        assert_eq!(decode(DType::F8E5M2, 0x7c), f32::INFINITY);
        assert_eq!(decode(DType::F8E5M2, 0xfc), f32::NEG_INFINITY);
    }

    #[test]
    fn what_is_out_of_range_saturates_or_does_not() {
        for (dtype, max, beyond) in [
            (DType::F8E4M3FN, 448.0, f32::NAN),
            (DType::F8E4M3FNUZ, 240.0, f32::NAN),
            (DType::F8E5M2, 57344.0, f32::INFINITY),
            (DType::F8E5M2FNUZ, 57344.0, f32::NAN),
            (DType::F4E2M1, 6.0, 6.0),
        ] {
            for sign in [1.0, -1.0] {
                for v in [max * 1.5, 1e30, f32::INFINITY] {
                    assert_eq!(decode(dtype, encode(dtype, sign * v, true)), sign * max);
                    let found = decode(dtype, encode(dtype, sign * v, false));
                    assert!(found == sign * beyond || found.is_nan() && beyond.is_nan(), "{dtype} {v}: {found}");
                }
            }
        }
        assert_eq!(encode(DType::F8E8M0, f32::MAX, true), 254);
        assert_eq!(encode(DType::F8E8M0, f32::MAX, false), 255);
        assert_eq!(encode(DType::F8E8M0, -3.0, true), 129, "the sign is dropped, 3 rounds up to 4");
    }

    proptest::proptest! {
        #[test]
        fn values_round_to_the_nearest_pattern(x in -600f32..600.0, scale in -16i32..8) {
            let x = x * 2f32.powi(scale);
            for dtype in TYPES {
                if dtype == DType::F8E8M0 {
                    continue;
                }
                let found = encode(dtype, x, true);
                let distance = |bits: u8| (f64::from(decode(dtype, bits)) - f64::from(x)).abs();
                let finite = patterns(dtype).filter(|&b| decode(dtype, b).is_finite());
                let least = finite.clone().map(distance).fold(f64::INFINITY, f64::min);
                proptest::prop_assert_eq!(distance(found), least);
                // Of two nearest magnitudes the even pattern is taken.
                let tied = finite.filter(|&b| distance(b) == least && decode(dtype, b) != decode(dtype, found)).count();
                proptest::prop_assert!(tied == 0 || found & 1 == 0, "{} {}", dtype, x);
            }
        }
    }
}
