//! Quantized elements apart from their scales.
//!
//! Invariant: `number * scale + least` in f32 is bit for bit what [`super::expand`] gives.

use super::Encoding;
use super::expand::{K_ELEMENTS, fifth, k_nibble, k_scale, k_six_bits, nibbles, scale_and_least};
use half::f16;
use kiln_ir::tensor::TensorError;
use kiln_ir::{DType, Tensor};

/// Elements that share a scale.
pub const BLOCK: usize = 32;

/// What bytes are shifted by for their halves, the low ones first: i32 `[2, 1]`.
pub(crate) fn shifts_of_halves() -> Result<Tensor, TensorError> {
    let bytes: Vec<u8> = [0i32, 4].iter().flat_map(|shift| shift.to_le_bytes()).collect();
    Tensor::new(DType::I32, vec![2, 1], bytes)
}

/// How the numbers of a block are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Numbers {
    /// A signed byte for each element.
    Bytes,
    /// Two elements a byte, from 0 to 15: byte `j` of a block's 16 has element `j` in its low half, element `j + 16` in its high one.
    Halves,
}

impl Numbers {
    /// Bytes of a block of so many elements.
    pub fn bytes_of(self, elements: usize) -> usize {
        match self {
            Numbers::Bytes => elements,
            Numbers::Halves => elements / 2,
        }
    }
}

/// Blocks in parts: of 32 elements, of [`Encoding::Q6_K`] of 16.
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
        Encoding::Q5_0 | Encoding::Q5_1 => return Some(of_five_bits(encoding, bytes)),
        Encoding::Q4_K | Encoding::Q5_K => return Some(of_groups(encoding, bytes)),
        Encoding::Q6_K => return Some(of_six_bits(bytes)),
        Encoding::F32 | Encoding::F16 | Encoding::BF16 => return None,
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

/// The parts of numbers of five bits.
fn of_five_bits(encoding: Encoding, bytes: &[u8]) -> Blocks {
    let has_least = encoding == Encoding::Q5_1;
    let half = |pair: &[u8; 2]| f16::from_le_bytes(*pair).to_f32();
    let (mut numbers, mut scales, mut least) = (Vec::new(), Vec::new(), Vec::new());
    for block in bytes.chunks_exact(encoding.block_bytes()) {
        let Some((scale, mut rest)) = block.split_first_chunk::<2>() else { continue };
        if let (true, Some((m, after))) = (has_least, rest.split_first_chunk::<2>()) {
            least.push(half(m));
            rest = after;
        }
        let Some((high, low)) = rest.split_first_chunk::<4>() else { continue };
        let high = u32::from_le_bytes(*high);
        let middle = if has_least { 0 } else { 16 };
        scales.push(half(scale));
        numbers.extend(nibbles(low).enumerate().map(|(n, q)| fifth(high, n, q).wrapping_sub(middle)));
    }
    Blocks { numbers, scales, least: has_least.then_some(least) }
}

/// The parts of groups of 32 with six-bit scales and least values.
fn of_groups(encoding: Encoding, bytes: &[u8]) -> Blocks {
    let (mut numbers, mut scales, mut least) = (Vec::new(), Vec::new(), Vec::new());
    for block in bytes.chunks_exact(encoding.block_bytes()) {
        let Some(([d0, d1, m0, m1], rest)) = block.split_first_chunk::<4>() else { continue };
        let Some((packed, rest)) = rest.split_first_chunk::<12>() else { continue };
        let (d, m) = (f16::from_le_bytes([*d0, *d1]).to_f32(), f16::from_le_bytes([*m0, *m1]).to_f32());
        let (high, low) = rest.split_at(if encoding == Encoding::Q5_K { BLOCK } else { 0 });
        for group in 0..K_ELEMENTS / BLOCK {
            let (scale, offset) = scale_and_least(group, packed);
            scales.push(d * scale);
            least.push(-(m * offset));
            let fifth = |n: usize| high.get(n).map_or(0, |h| (h >> group & 1) << 4);
            numbers.extend((0..BLOCK).map(|n| k_nibble(low, group, n) | fifth(n)));
        }
    }
    Blocks { numbers, scales, least: Some(least) }
}

/// The parts of groups of 16 numbers of six bits.
fn of_six_bits(bytes: &[u8]) -> Blocks {
    let (mut numbers, mut scales) = (Vec::new(), Vec::new());
    for block in bytes.as_chunks::<210>().0 {
        let d = f16::from_le_bytes([block[208], block[209]]).to_f32();
        scales.extend((0..K_ELEMENTS / 16).map(|group| d * k_scale(block, group)));
        numbers.extend((0..K_ELEMENTS).map(|n| k_six_bits(block, n).cast_unsigned()));
    }
    Blocks { numbers, scales, least: None }
}

impl Blocks {
    /// Elements that share a scale.
    pub fn block(&self) -> usize {
        self.numbers.len() / self.scales.len().max(1)
    }

    /// The same elements with their numbers as [`Numbers::Halves`], where blocks have 32 and all of them fit 4 bits.
    pub fn halved(&self) -> Option<Blocks> {
        if self.block() != BLOCK {
            return None;
        }
        // Without a least value numbers count from the middle. That times a scale of 11 bits is exact in f32.
        let middle = if self.least.is_some() { 0 } else { 8u8 };
        let half = |n: u8| Some(n.wrapping_add(middle)).filter(|n| *n < 16);
        let mut numbers = Vec::with_capacity(self.numbers.len() / 2);
        for block in self.numbers.chunks_exact(BLOCK) {
            let (low, high) = block.split_at(BLOCK / 2);
            for (low, high) in low.iter().zip(high) {
                numbers.push(half(*low)? | half(*high)? << 4);
            }
        }
        let least = || self.scales.iter().map(|scale| -8.0 * scale).collect();
        let least = Some(self.least.clone().unwrap_or_else(least));
        Some(Blocks { numbers, scales: self.scales.clone(), least })
    }
}

/// Whole blocks in an encoding, of numbers as [`blocks`] gives them (bytes without a sign for [`Encoding::Q4_1`]), with scales and
/// least values rounded to 16 bits; nothing for encodings that do not consist of such, and where counts or numbers do not fit.
pub fn join(encoding: Encoding, parts: &Blocks) -> Option<Vec<u8>> {
    let (low, high) = match encoding {
        Encoding::Q8_0 => (i8::MIN, i8::MAX),
        Encoding::Q4_0 => (-8, 7),
        Encoding::Q4_1 => (0, 15),
        Encoding::F32 | Encoding::F16 | Encoding::BF16 | Encoding::Q5_0 | Encoding::Q5_1 => return None,
        Encoding::Q4_K | Encoding::Q5_K | Encoding::Q6_K => return None,
    };
    let Blocks { numbers, scales, least } = parts;
    let fits = |n: &u8| (low..=high).contains(&n.cast_signed());
    let counts = numbers.len() == scales.len() * BLOCK && least.as_ref().is_none_or(|l| l.len() == scales.len());
    if !counts || least.is_some() != (encoding == Encoding::Q4_1) || !numbers.iter().all(fits) {
        return None;
    }
    let mut out = Vec::with_capacity(scales.len() * encoding.block_bytes());
    for (n, (block, scale)) in numbers.chunks_exact(BLOCK).zip(scales).enumerate() {
        out.extend_from_slice(&f16::from_f32(*scale).to_le_bytes());
        if let Some(least) = least {
            out.extend_from_slice(&f16::from_f32(least[n]).to_le_bytes());
        }
        let (first, second) = block.split_at(BLOCK / 2);
        let pairs = first.iter().zip(second);
        match encoding {
            Encoding::Q8_0 => out.extend_from_slice(block),
            Encoding::Q4_0 => out.extend(pairs.map(|(a, b)| a.wrapping_add(8) | b.wrapping_add(8) << 4)),
            _ => out.extend(pairs.map(|(a, b)| a | b << 4)),
        }
    }
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
            let halved = parts.halved().filter(|_| encoding != Encoding::Q8_0);
            let of_halves = halved.map(|h| {
                let element = |n: usize| {
                    let (block, at) = (n / BLOCK, n % BLOCK);
                    let number = h.numbers[block * 16 + at % 16] >> (at / 16 * 4) & 15;
                    (f32::from(number) * h.scales[block] + h.least.as_ref().unwrap()[block]).to_bits()
                };
                (0..want.len()).map(element).collect::<Vec<_>>()
            });
            assert!(encoding == Encoding::Q8_0 || of_halves == Some(want), "{encoding}");
            assert_eq!(join(encoding, &parts), Some(bytes), "{encoding}");
            let short = Blocks { scales: vec![1.0], ..parts };
            assert_eq!(join(encoding, &short), None, "{encoding}");
        }
        assert_eq!(blocks(Encoding::BF16, &[0; 144]), None);
    }

    #[test]
    fn parts_of_the_other_encodings_make_the_same_elements() {
        for encoding in [Encoding::Q5_0, Encoding::Q5_1, Encoding::Q4_K, Encoding::Q5_K, Encoding::Q6_K] {
            let mut bytes: Vec<u8> = (0..encoding.block_bytes() * 3).map(|n| (n * 89 % 251) as u8).collect();
            // Scales that are numbers.
            for block in bytes.chunks_mut(encoding.block_bytes()) {
                let at = if encoding == Encoding::Q6_K { 208 } else { 0 };
                block[at..at + 2].copy_from_slice(&f16::from_f32(0.37).to_le_bytes());
                if !matches!(encoding, Encoding::Q5_0 | Encoding::Q6_K) {
                    block[2..4].copy_from_slice(&f16::from_f32(-1.7).to_le_bytes());
                }
            }
            let parts = blocks(encoding, &bytes).unwrap();
            assert_eq!(parts.block(), if encoding == Encoding::Q6_K { 16 } else { 32 });
            let made = parts.numbers.iter().enumerate().map(|(n, number)| {
                let scaled = f32::from(number.cast_signed()) * parts.scales[n / parts.block()];
                parts.least.as_ref().map_or(scaled, |least| scaled + least[n / parts.block()])
            });
            assert_eq!(made.collect::<Vec<f32>>(), expand(encoding, &bytes), "{encoding}");
            assert_eq!(parts.halved().is_some(), encoding == Encoding::Q4_K, "{encoding}");
            assert_eq!(join(encoding, &parts), None, "{encoding}");
        }
    }
}
