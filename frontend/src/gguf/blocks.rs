//! Quantized elements apart from their scales.
//!
//! Invariant: `number * scale + least` in f32 is bit for bit what [`super::expand`] gives.

use super::Encoding;
use half::f16;

/// Elements that share a scale.
pub const BLOCK: usize = 32;

/// Blocks of 32 elements in parts.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocks {
    /// A signed byte for each element.
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
    let mut out = Blocks { numbers: Vec::new(), scales: Vec::new(), least: None };
    let mut least = Vec::new();
    for block in bytes.chunks_exact(encoding.block_bytes()) {
        out.scales.push(half(block, 0)?);
        let numbers = match encoding {
            Encoding::Q4_1 => {
                least.push(half(block, 2)?);
                block.get(4..)?
            }
            _ => block.get(2..)?,
        };
        // Four-bit numbers: the low halves of all bytes come before the high ones.
        let nibbles = || numbers.iter().map(|b| b & 15).chain(numbers.iter().map(|b| b >> 4));
        match encoding {
            Encoding::Q8_0 => out.numbers.extend_from_slice(numbers),
            Encoding::Q4_0 => out.numbers.extend(nibbles().map(|q| q.wrapping_sub(8))),
            _ => out.numbers.extend(nibbles()),
        }
    }
    out.least = (encoding == Encoding::Q4_1).then_some(least);
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
            let number = |n: usize| f32::from(parts.numbers[n].cast_signed());
            let least = |n: usize| parts.least.as_ref().map(|l| l[n / BLOCK]);
            let made = (0..parts.numbers.len()).map(|n| {
                let scaled = number(n) * parts.scales[n / BLOCK];
                least(n).map_or(scaled, |least| scaled + least).to_bits()
            });
            let want: Vec<u32> = expand(encoding, &bytes).into_iter().map(f32::to_bits).collect();
            assert_eq!(made.collect::<Vec<_>>(), want, "{encoding}");
        }
        assert_eq!(blocks(Encoding::Q4_K, &[0; 144]), None);
    }
}
