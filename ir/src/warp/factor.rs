//! What matrix instructions of one warp multiply.
//!
//! Invariant: a register holds 4 bytes that are neighbours along the fold; so all of these have 4 registers of the left side
//! and 2 of the right one, and differ in what is in these bytes, and so in how far they walk along the fold. To everything but
//! what multiplies them, four numbers of a byte are one element, an i32.

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
}

impl Factor {
    /// All of them.
    pub const ALL: [Factor; 5] =
        [Factor::F16, Factor::BF16, Factor::TF32, Factor::UnsignedSigned, Factor::SignedUnsigned];

    /// Its name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Factor::F16 => "f16",
            Factor::BF16 => "bf16",
            Factor::TF32 => "tf32",
            Factor::UnsignedSigned => Product::UnsignedSigned.name(),
            Factor::SignedUnsigned => Product::SignedUnsigned.name(),
        }
    }

    /// The factor of a name.
    pub fn from_name(name: &str) -> Option<Factor> {
        Factor::ALL.into_iter().find(|factor| factor.name() == name)
    }

    /// That of products of elements of a type that are numbers, or several numbers each; pairs of bf16 have none yet.
    pub fn of(dtype: DType, product: Option<Product>) -> Option<Factor> {
        match (product, dtype) {
            (None, DType::F16) => Some(Factor::F16),
            (None, DType::BF16) => Some(Factor::BF16),
            (None, DType::F32) => Some(Factor::TF32),
            (Some(Product::UnsignedSigned), DType::I32) => Some(Factor::UnsignedSigned),
            (Some(Product::SignedUnsigned), DType::I32) => Some(Factor::SignedUnsigned),
            _ => None,
        }
    }

    /// The type of sums. Those of bytes are exact, but for what goes beyond 32 bits.
    pub fn sums(self) -> DType {
        match self {
            Factor::F16 | Factor::BF16 | Factor::TF32 => DType::F32,
            Factor::UnsignedSigned | Factor::SignedUnsigned => DType::I32,
        }
    }

    /// Elements of a register.
    pub fn each(self) -> usize {
        match self {
            Factor::F16 | Factor::BF16 => 2,
            Factor::TF32 | Factor::UnsignedSigned | Factor::SignedUnsigned => 1,
        }
    }

    /// Numbers of a register.
    pub fn numbers(self) -> usize {
        match self {
            Factor::F16 | Factor::BF16 | Factor::TF32 => self.each(),
            Factor::UnsignedSigned | Factor::SignedUnsigned => 4,
        }
    }

    /// Elements of the fold that an instruction takes.
    pub fn depth(self) -> usize {
        8 * self.each()
    }
}
