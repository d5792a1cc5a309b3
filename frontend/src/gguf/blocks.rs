//! Quantized elements apart from their scales.
//!
//! Invariant: `number * scale + least` in f32 is bit for bit what [`super::expand`] gives.

use super::Encoding;
use half::f16;

/// Elements that share a scale.
pub const BLOCK: usize = 32;

/// How the numbers of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Numbers {
    /// A signed byte for each element.
    Bytes,
    /// Two elements a byte, from 0 to 15: byte `j` of a block's 16 has element `j` in its low half, element `j + 16` in its high one.
    Halves,
}

impl Numbers {
    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Numbers::Bytes => BLOCK,
            Numbers::Halves => BLOCK / 2,
        }
    }
}

/// Blocks of 32 elements in parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// What `numbers` holds.
    pub form: Numbers,
    /// The numbers, block after block.
    pub numbers: Vec<u8>,
    /// A scale for each block.
    pub scales: Vec<f32>,
    /// What is added to the elements of each block; nothing where that is 0.
    pub least: Option<Vec<f32>>,
}

/// The parts of whole blocks; nothing for encodings that do not consist of such.
pub fn blocks(encoding: Encoding, bytes: &[u8]) -> Option<Blocks> {
    match encoding {
        Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q4_1 => {}
        Encoding::F32 | Encoding::F16 | Encoding::BF16 | Encoding::Q5_0 | Encoding::Q5_1 => return None,
        Encoding::Q4_K | Encoding::Q5_K | Encoding::Q6_K => return None,
    }
    let half = |b: &[u8], at: usize| Some(f16::from_le_bytes([*b.get(at)?, *b.get(at + 1)?]).to_f32());
    let form = if encoding == Encoding::Q8_0 { Numbers::Bytes } else { Numbers::Halves };
    let mut out = Blocks { form, numbers: Vec::new(), scales: Vec::new(), least: None };
    let mut least = Vec::new();
    for block in bytes.chunks_exact(encoding.block_bytes()) {
        let scale = half(block, 0)?;
        out.scales.push(scale);
        // Four-bit numbers lie in the file as they do in parts: the low halves of all bytes come before the high ones.
        let numbers = match encoding {
            Encoding::Q4_1 => {
                least.push(half(block, 2)?);
                block.get(4..)?
            }
            Encoding::Q4_0 => {
                least.push(-8.0 * scale);
                block.get(2..)?
            }
            _ => block.get(2..)?,
        };
        out.numbers.extend_from_slice(numbers);
    }
    out.least = (form == Numbers::Halves).then_some(least);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::expand;

    #[test]
    fn parts_make_the_same_elements() {
        for encoding in [Encoding::Q8_0, Encoding::Q4_0, Encoding::Q4_1] {
            let bytes: Vec<u8> = (0..encoding.block_bytes() * 3).map(|n| (n * 37 % 120) as u8).collect();
            let parts = blocks(encoding, &bytes).unwrap();
            let number = |n: usize| match parts.form {
                Numbers::Bytes => f32::from(parts.numbers[n].cast_signed()),
                Numbers::Halves => {
                    let (block, at) = (n / BLOCK, n % BLOCK);
                    f32::from(parts.numbers[block * 16 + at % 16] >> (at / 16 * 4) & 15)
                }
            };
            let least = |n: usize| parts.least.as_ref().map(|l| l[n / BLOCK]);
            let made = (0..parts.scales.len() * BLOCK).map(|n| {
                let scaled = number(n) * parts.scales[n / BLOCK];
                least(n).map_or(scaled, |least| scaled + least).to_bits()
            });
            let want: Vec<u32> = expand(encoding, &bytes).into_iter().map(f32::to_bits).collect();
            assert_eq!(made.collect::<Vec<_>>(), want, "{encoding}");
        }
        assert_eq!(blocks(Encoding::Q4_K, &[0; 144]), None);
    }
}
