//! Element types.
//!
//! Invariant: every element type other than `Str` and `Seq` has a fixed size in bytes; types narrower than a byte
//! (`I4`, `U2`, `F4E2M1` ...) hold one element a byte in Kiln's own tensors.

use std::fmt;

/// The type of a tensor's elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum DType {
    Bool,
    I2,
    I4,
    I8,
    I16,
    I32,
    I64,
    U2,
    U4,
    U8,
    U16,
    U32,
    U64,
    F4E2M1,
    F8E4M3FN,
    F8E4M3FNUZ,
    F8E5M2,
    F8E5M2FNUZ,
    F8E8M0,
    F16,
    BF16,
    F32,
    F64,
    C64,
    C128,
    Str,
    /// Tensors as elements: a tensor of one axis of these is a sequence, or an optional where there is at most one. What the
    /// elements' types are is known to those who use them.
    Seq,
}

/// How arithmetic on a type is carried out; see [`crate::semantics`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// One truth value.
    Bool,
    /// Two's complement, wrapping at the type's width.
    Signed,
    /// Modular arithmetic at the type's width.
    Unsigned,
    /// IEEE 754 binary32, or computed in it and rounded to the narrower type after each operation.
    Float,
    /// IEEE 754 binary64.
    Double,
    /// Complex numbers: only moved, never computed with.
    Complex,
    /// Strings and tensors in sequences: only moved by host ops.
    Str,
}

impl DType {
    /// Every element type.
    pub const ALL: [DType; 27] = [
        DType::Bool,
        DType::I2,
        DType::I4,
        DType::I8,
        DType::I16,
        DType::I32,
        DType::I64,
        DType::U2,
        DType::U4,
        DType::U8,
        DType::U16,
        DType::U32,
        DType::U64,
        DType::F4E2M1,
        DType::F8E4M3FN,
        DType::F8E4M3FNUZ,
        DType::F8E5M2,
        DType::F8E5M2FNUZ,
        DType::F8E8M0,
        DType::F16,
        DType::BF16,
        DType::F32,
        DType::F64,
        DType::C64,
        DType::C128,
        DType::Str,
        DType::Seq,
    ];

    /// Bytes of one element in memory; 0 for strings and sequences, which have no fixed size.
    pub fn size(self) -> usize {
        match self {
            DType::Str | DType::Seq => 0,
            DType::Bool
            | DType::I2
            | DType::I4
            | DType::I8
            | DType::U2
            | DType::U4
            | DType::U8
            | DType::F4E2M1
            | DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0 => 1,
            DType::I16 | DType::U16 | DType::F16 | DType::BF16 => 2,
            DType::I32 | DType::U32 | DType::F32 => 4,
            DType::I64 | DType::U64 | DType::F64 | DType::C64 => 8,
            DType::C128 => 16,
        }
    }

    /// Whether elements are bytes in memory, which strings and sequences are not.
    pub fn is_bytes(self) -> bool {
        self.size() > 0
    }

    /// Significant bits of one element (4 for `I4`); 0 for strings and sequences.
    pub fn bits(self) -> u32 {
        match self {
            DType::I2 | DType::U2 => 2,
            DType::I4 | DType::U4 | DType::F4E2M1 => 4,
            DType::Bool => 1,
            DType::Str | DType::Seq => 0,
            other => other.size() as u32 * 8,
        }
    }

    /// The arithmetic that applies.
    pub fn class(self) -> Class {
        match self {
            DType::Bool => Class::Bool,
            DType::I2 | DType::I4 | DType::I8 | DType::I16 | DType::I32 | DType::I64 => Class::Signed,
            DType::U2 | DType::U4 | DType::U8 | DType::U16 | DType::U32 | DType::U64 => Class::Unsigned,
            DType::F4E2M1
            | DType::F8E4M3FN
            | DType::F8E4M3FNUZ
            | DType::F8E5M2
            | DType::F8E5M2FNUZ
            | DType::F8E8M0
            | DType::F16
            | DType::BF16
            | DType::F32 => Class::Float,
            DType::F64 => Class::Double,
            DType::C64 | DType::C128 => Class::Complex,
            DType::Str | DType::Seq => Class::Str,
        }
    }

    /// Whether the type is a real floating-point type.
    pub fn is_float(self) -> bool {
        matches!(self.class(), Class::Float | Class::Double)
    }

    /// Whether the type is a float of 16 bits.
    pub fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// Whether the type is one of the floats of 8 bits that GPUs convert and multiply (OCP's OFP8). Both are exact in f16.
    pub fn is_ofp8(self) -> bool {
        matches!(self, DType::F8E4M3FN | DType::F8E5M2)
    }

    /// The type that arithmetic on the type is done in: f32 for halves, itself for all others.
    pub fn computed(self) -> DType {
        if self.is_half() { DType::F32 } else { self }
    }

    /// Whether the type is an integer type (not bool).
    pub fn is_int(self) -> bool {
        matches!(self.class(), Class::Signed | Class::Unsigned)
    }

    /// The name in the text forms, such as `f32`.
    pub fn name(self) -> &'static str {
        match self {
            DType::Bool => "bool",
            DType::I2 => "i2",
            DType::I4 => "i4",
            DType::I8 => "i8",
            DType::I16 => "i16",
            DType::I32 => "i32",
            DType::I64 => "i64",
            DType::U2 => "u2",
            DType::U4 => "u4",
            DType::U8 => "u8",
            DType::U16 => "u16",
            DType::U32 => "u32",
            DType::U64 => "u64",
            DType::F4E2M1 => "f4e2m1",
            DType::F8E4M3FN => "f8e4m3fn",
            DType::F8E4M3FNUZ => "f8e4m3fnuz",
            DType::F8E5M2 => "f8e5m2",
            DType::F8E5M2FNUZ => "f8e5m2fnuz",
            DType::F8E8M0 => "f8e8m0",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::C64 => "c64",
            DType::C128 => "c128",
            DType::Str => "str",
            DType::Seq => "seq",
        }
    }

    /// The type of that name in the text forms.
    pub fn from_name(name: &str) -> Option<DType> {
        DType::ALL.into_iter().find(|d| d.name() == name)
    }

    /// Least and greatest value of an integer type; nothing for the others.
    pub fn int_range(self) -> Option<(i128, i128)> {
        let bits = self.bits();
        match self.class() {
            Class::Signed => Some((-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1)),
            Class::Unsigned => Some((0, (1i128 << bits) - 1)),
            Class::Bool | Class::Float | Class::Double | Class::Complex | Class::Str => None,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
