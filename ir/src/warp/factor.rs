//! What matrix instructions of one warp multiply.
//!
//! Invariant: a register holds 4 bytes that are neighbours along the fold; so all of these have 4 registers of the left side
//! and 2 of the right one, and differ in what is in these bytes, and so in how far they walk along the fold. To everything but
//! what multiplies them, four integers of a byte are one element, an i32; floats of a byte are elements of their own.

use crate::dtype::DType;
use crate::vector::Product;

/// What the operands of [`super::Op::Mma`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Factor {
    /// Pairs of f16.
    F16,
    /// Pairs of bf16.
    BF16,
    /// f32 of which the low 13 bits are not looked at.
    TF32,
    /// Four unsigned bytes on the left, four signed ones on the right.
    UnsignedSigned,
    /// Four signed bytes on the left, four unsigned ones on the right.
    SignedUnsigned,
    /// Four floats of 8 bits on each side, with so many bits of the exponent and the mantissa: e4m3 on both.
    E4M3,
    /// e5m2 on both.
    E5M2,
    /// e4m3 on the left, e5m2 on the right.
    E4M3E5M2,
    /// e5m2 on the left, e4m3 on the right.
    E5M2E4M3,
}

impl Factor {
    /// All of them.
    pub const ALL: [Factor; 9] = [
        Factor::F16,
        Factor::BF16,
        Factor::TF32,
        Factor::UnsignedSigned,
        Factor::SignedUnsigned,
        Factor::E4M3,
        Factor::E5M2,
        Factor::E4M3E5M2,
        Factor::E5M2E4M3,
    ];

    /// Its name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Factor::F16 => "f16",
            Factor::BF16 => "bf16",
            Factor::TF32 => "tf32",
            Factor::UnsignedSigned => Product::UnsignedSigned.name(),
            Factor::SignedUnsigned => Product::SignedUnsigned.name(),
            Factor::E4M3 => "e4m3",
            Factor::E5M2 => "e5m2",
            Factor::E4M3E5M2 => "e4m3e5m2",
            Factor::E5M2E4M3 => "e5m2e4m3",
        }
    }

    /// The factor of a name.
    pub fn from_name(name: &str) -> Option<Factor> {
        Factor::ALL.into_iter().find(|factor| factor.name() == name)
    }

    /// That of products of elements of the operands' types that are numbers, or several numbers each; pairs of bf16 have none yet.
    pub fn of(operands: [DType; 2], product: Option<Product>) -> Option<Factor> {
        use DType::{BF16, F8E4M3FN, F8E5M2, F16, F32, I32};
        match (product, operands) {
            (None, [F16, F16]) => Some(Factor::F16),
            (None, [BF16, BF16]) => Some(Factor::BF16),
            (None, [F32, F32]) => Some(Factor::TF32),
            (None, [F8E4M3FN, F8E4M3FN]) => Some(Factor::E4M3),
            (None, [F8E5M2, F8E5M2]) => Some(Factor::E5M2),
            (None, [F8E4M3FN, F8E5M2]) => Some(Factor::E4M3E5M2),
            (None, [F8E5M2, F8E4M3FN]) => Some(Factor::E5M2E4M3),
            (Some(Product::UnsignedSigned), [I32, I32]) => Some(Factor::UnsignedSigned),
            (Some(Product::SignedUnsigned), [I32, I32]) => Some(Factor::SignedUnsigned),
            _ => None,
        }
    }

    /// The types of floats of 8 bits on both sides, where they are these.
    pub fn floats_of_8_bits(self) -> Option<[DType; 2]> {
        use DType::{F8E4M3FN, F8E5M2};
        match self {
            Factor::E4M3 => Some([F8E4M3FN, F8E4M3FN]),
            Factor::E5M2 => Some([F8E5M2, F8E5M2]),
            Factor::E4M3E5M2 => Some([F8E4M3FN, F8E5M2]),
            Factor::E5M2E4M3 => Some([F8E5M2, F8E4M3FN]),
            Factor::F16 | Factor::BF16 | Factor::TF32 | Factor::UnsignedSigned | Factor::SignedUnsigned => None,
        }
    }

    /// The type of sums. Those of bytes are exact, but for what goes beyond 32 bits.
    pub fn sums(self) -> DType {
        match self {
            Factor::UnsignedSigned | Factor::SignedUnsigned => DType::I32,
            Factor::F16 | Factor::BF16 | Factor::TF32 => DType::F32,
            Factor::E4M3 | Factor::E5M2 | Factor::E4M3E5M2 | Factor::E5M2E4M3 => DType::F32,
        }
    }

    /// Elements of a register.
    pub fn each(self) -> usize {
        match self {
            Factor::F16 | Factor::BF16 => 2,
            Factor::TF32 | Factor::UnsignedSigned | Factor::SignedUnsigned => 1,
            Factor::E4M3 | Factor::E5M2 | Factor::E4M3E5M2 | Factor::E5M2E4M3 => 4,
        }
    }

    /// Numbers of a register.
    pub fn numbers(self) -> usize {
        match self {
            Factor::F16 | Factor::BF16 | Factor::TF32 => self.each(),
            Factor::E4M3 | Factor::E5M2 | Factor::E4M3E5M2 | Factor::E5M2E4M3 => self.each(),
            Factor::UnsignedSigned | Factor::SignedUnsigned => 4,
        }
    }

    /// Elements of the fold that an instruction takes.
    pub fn depth(self) -> usize {
        8 * self.each()
    }
}
