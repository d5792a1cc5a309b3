//! What matrix instructions of one warp multiply.
//!
//! Invariant: a register holds the elements of 4 bytes that are neighbours along the fold; so all of these have 4
//! registers of the left side and 2 of the right one, and differ in how far they walk along the fold.

use crate::dtype::DType;

/// What the operands of [`super::Op::Mma`] hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Factor {
    /// Pairs of f16.
    F16,
    /// Pairs of bf16.
    BF16,
    /// f32 of which the low 13 bits are not looked at.
    TF32,
}

impl Factor {
    /// All of them.
    pub const ALL: [Factor; 3] = [Factor::F16, Factor::BF16, Factor::TF32];

    /// Its name in texts.
    pub fn name(self) -> &'static str {
        match self {
            Factor::F16 => "f16",
            Factor::BF16 => "bf16",
            Factor::TF32 => "tf32",
        }
    }

    /// The factor of a name.
    pub fn from_name(name: &str) -> Option<Factor> {
        Factor::ALL.into_iter().find(|factor| factor.name() == name)
    }

    /// That of products of a type of floats.
    pub fn of(dtype: DType) -> Option<Factor> {
        match dtype {
            DType::F16 => Some(Factor::F16),
            DType::BF16 => Some(Factor::BF16),
            DType::F32 => Some(Factor::TF32),
            _ => None,
        }
    }

    /// Elements of a register.
    pub fn each(self) -> usize {
        match self {
            Factor::F16 | Factor::BF16 => 2,
            Factor::TF32 => 1,
        }
    }

    /// Elements of the fold that an instruction takes.
    pub fn depth(self) -> usize {
        8 * self.each()
    }
}
