//! Quantized matrices in safetensors: the `pack-quantized` form of the compressed-tensors format.
//!
//! A matrix `X` `[rows, columns]` is `X_packed` (integers of 32 bits with 8 or 4 numbers each, the first lowest, `2^(bits-1)` added
//! to every number), `X_scale` `[rows, groups]`, `X_shape`, and for asymmetric grids `X_zero_point`, packed along the rows.
//!
//! Invariant: what [`pack`] stores, [`Packed::stored`] gives as blocks with the same numbers and scales.

use super::{Element, Stored};
use crate::gguf::{BLOCK, Blocks, Encoding, join};
use bytes::Bytes;
use half::f16;
use kiln_ir::DType;

/// Words that follow a matrix' name, with an underscore between.
pub(super) const PARTS: [&str; 4] = ["packed", "scale", "shape", "zero_point"];

/// The parts of a matrix.
#[derive(Clone, Debug)]
pub struct Packed {
    /// i32 `[rows, words]`.
    pub packed: Stored,
    /// Floats `[rows, groups]`.
    pub scale: Stored,
    /// i64 `[2]`.
    pub shape: Stored,
    /// i32 `[words, groups]`, or nothing.
    pub zero_point: Option<Stored>,
}

/// The word at a place of a tensor of i32.
fn word(stored: &Stored, at: usize) -> Option<u32> {
    let bytes = stored.bytes.get(at.checked_mul(4)?..)?.first_chunk::<4>()?;
    Some(u32::from_le_bytes(*bytes))
}

impl Packed {
    /// The matrix in blocks of 32 where its groups are made of such, else as floats; nothing where the parts do not fit.
    pub(super) fn stored(&self) -> Option<Stored> {
        let ints = |s: &Stored, dtype: DType| matches!(s.element, Element::Other(d) if d == dtype);
        if !ints(&self.packed, DType::I32) || !ints(&self.shape, DType::I64) {
            return None;
        }
        let shape = kiln_ir::Tensor::new(DType::I64, self.shape.shape.clone(), self.shape.bytes.clone()).ok()?;
        let [rows, columns] = <[i64; 2]>::try_from(shape.to_i64()?).ok()?;
        let (rows, columns) = (usize::try_from(rows).ok()?, usize::try_from(columns).ok()?);
        let (words, bits) = match self.packed.shape[..] {
            [r, words] if r == rows && words == columns.div_ceil(8) => (words, 4u32),
            [r, words] if r == rows && words == columns.div_ceil(4) => (words, 8),
            _ => return None,
        };
        let groups = match self.scale.shape[..] {
            [r, groups] if r == rows && groups > 0 => groups,
            _ => return None,
        };
        let group = columns.div_ceil(groups).max(1);
        let scales = self.scale.to_f32()?;
        let (per_word, mask) = (32 / bits as usize, u32::MAX >> (32 - bits));
        let part = |word: u32, n: usize| word >> (bits * (n % per_word) as u32) & mask;
        let middle = 1i32 << (bits - 1);
        let mut numbers = Vec::with_capacity(rows.checked_mul(columns)?);
        for row in 0..rows {
            for column in 0..columns {
                numbers.push(part(word(&self.packed, row * words + column / per_word)?, column) as i32 - middle);
            }
        }
        let mut zeros = vec![0i32; scales.len()];
        if let Some(stored) = self.zero_point.as_ref().filter(|z| ints(z, DType::I32)) {
            for (n, zero) in zeros.iter_mut().enumerate() {
                let (row, at) = (n / groups, n % groups);
                *zero = part(word(stored, row / per_word * groups + at)?, row) as i32 - middle;
            }
        }
        let shape = vec![rows, columns];
        let exact = scales.iter().all(|&s| f16::from_f32(s).to_f32() == s);
        if group.is_multiple_of(BLOCK) && columns.is_multiple_of(group) && exact {
            let asymmetric = self.zero_point.is_some();
            if let Some((encoding, bytes)) = blocks(bits, &numbers, &scales, &zeros, group, asymmetric) {
                return Some(Stored { element: Element::Float(encoding), shape, bytes: bytes.into() });
            }
        }
        let value = |(n, q): (usize, &i32)| {
            let at = n / columns * groups + n % columns / group;
            Some((q - zeros.get(at)?) as f32 * scales.get(at)?)
        };
        let values: Option<Vec<f32>> = numbers.iter().enumerate().map(value).collect();
        let bytes: Vec<u8> = values?.into_iter().flat_map(f32::to_le_bytes).collect();
        Some(Stored { element: Element::Float(Encoding::F32), shape, bytes: bytes.into() })
    }
}

/// Numbers `[rows, columns]` that count from the middle, with scales and zero points for groups of a row, as whole blocks.
fn blocks(
    bits: u32,
    numbers: &[i32],
    scales: &[f32],
    zeros: &[i32],
    group: usize,
    asymmetric: bool,
) -> Option<(Encoding, Vec<u8>)> {
    let encoding = match (bits, asymmetric) {
        (4, false) => Encoding::Q4_0,
        (4, true) => Encoding::Q4_1,
        (8, false) => Encoding::Q8_0,
        _ => return None,
    };
    let repeated = group / BLOCK;
    let middle = if asymmetric { 1i32 << (bits - 1) } else { 0 };
    let least = |(s, z): (&f32, &i32)| -((z + middle) as f32) * s;
    let spread =
        |values: Vec<f32>| values.into_iter().flat_map(|v| std::iter::repeat_n(v, repeated)).collect::<Vec<_>>();
    let parts = Blocks {
        numbers: numbers
            .iter()
            .map(|q| i8::try_from(q + middle).map(i8::cast_unsigned))
            .collect::<Result<_, _>>()
            .ok()?,
        scales: spread(scales.to_vec()),
        least: asymmetric.then(|| spread(scales.iter().zip(zeros).map(least).collect())),
    };
    Some((encoding, join(encoding, &parts)?))
}

/// The parts of a matrix by their words, of blocks in an encoding that consists of numbers and scales; nothing for others. Blocks
/// that share scales become groups of `group` columns.
pub fn pack(stored: &Stored, group: usize) -> Option<Vec<(&'static str, Stored)>> {
    let (Element::Float(encoding), &[rows, columns]) = (stored.element, stored.shape.as_slice()) else { return None };
    let bits = match encoding {
        Encoding::Q8_0 => 8u32,
        Encoding::Q4_0 | Encoding::Q4_1 => 4,
        _ => return None,
    };
    if group == 0 || !group.is_multiple_of(BLOCK) || !columns.is_multiple_of(group) {
        return None;
    }
    let parts = crate::gguf::blocks(encoding, &stored.bytes)?;
    let (per_word, middle) = (32 / bits as usize, 1i32 << (bits - 1));
    let unsigned = |q: u8| match encoding {
        Encoding::Q4_1 => u32::from(q),
        _ => (i32::from(q.cast_signed()) + middle) as u32,
    };
    let join = |numbers: &mut dyn Iterator<Item = u32>| {
        numbers.enumerate().fold(0u32, |word, (n, q)| word | q << (bits * n as u32))
    };
    let row_words =
        |row: &[u8]| row.chunks(per_word).map(|c| join(&mut c.iter().map(|&q| unsigned(q)))).collect::<Vec<_>>();
    let words: Vec<u32> = parts.numbers.chunks(columns.max(1)).flat_map(row_words).collect();
    let (groups, step) = (columns / group, group / BLOCK);
    let ints = |shape: Vec<usize>, words: Vec<u32>| {
        let bytes: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
        Stored { element: Element::Other(DType::I32), shape, bytes: bytes.into() }
    };
    let halves = |values: Vec<f32>| {
        let bytes: Vec<u8> = values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        Stored { element: Element::Float(Encoding::F16), shape: vec![rows, groups], bytes: bytes.into() }
    };
    let scales: Vec<f32> = parts.scales.iter().step_by(step).copied().collect();
    let mut all = vec![("packed", ints(vec![rows, columns.div_ceil(per_word)], words))];
    if let Some(least) = parts.least {
        // The zero point is the number that means 0.
        let zeros =
            least.iter().step_by(step).zip(&scales).map(|(l, s)| if *s != 0.0 { (-l / s).round() as u32 } else { 0 });
        let zeros: Vec<u32> = zeros.map(|z| z.min(15)).collect();
        let lines = zeros.chunks(groups * per_word);
        let words = lines.flat_map(|line| {
            (0..groups).map(|at| join(&mut line.iter().skip(at).step_by(groups).copied())).collect::<Vec<_>>()
        });
        let words: Vec<u32> = words.collect();
        all.push(("zero_point", ints(vec![rows.div_ceil(per_word), groups], words)));
    }
    all.push(("scale", halves(scales)));
    let shape: Vec<u8> = [rows, columns].iter().flat_map(|&d| (d as i64).to_le_bytes()).collect();
    let shape = Stored { element: Element::Other(DType::I64), shape: vec![2], bytes: Bytes::from(shape) };
    all.push(("shape", shape));
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::expand;

    #[test]
    fn packing_is_undone() {
        let (rows, columns, group) = (10, 128, 64);
        for (encoding, bits) in [(Encoding::Q4_0, 4), (Encoding::Q4_1, 4), (Encoding::Q8_0, 8)] {
            let count = rows * columns;
            let low = if encoding == Encoding::Q4_1 { 0 } else { -(1i32 << (bits - 1)) };
            let numbers = (0..count).map(|n| (low + (n * 7 % (1 << bits)) as i32) as u8).collect();
            let per_block = |f: &dyn Fn(usize) -> f32| (0..count / 32).map(|b| f(b / 2)).collect::<Vec<f32>>();
            let scales = per_block(&|g| 0.25 * (1 + g % 5) as f32);
            let least = (encoding == Encoding::Q4_1).then(|| per_block(&|g| -0.25 * ((1 + g % 5) * (g % 16)) as f32));
            let bytes = join(encoding, &Blocks { numbers, scales, least }).unwrap();
            let stored = Stored { element: Element::Float(encoding), shape: vec![rows, columns], bytes: bytes.into() };
            let mut parts = pack(&stored, group).unwrap();
            let mut take = |word: &str| {
                let at = parts.iter().position(|(w, _)| *w == word)?;
                Some(parts.swap_remove(at).1)
            };
            let zero_point = take("zero_point");
            let (packed, scale, shape) = (take("packed").unwrap(), take("scale").unwrap(), take("shape").unwrap());
            assert_eq!(packed.shape, [rows, columns * bits as usize / 32]);
            let back = Packed { packed, scale, shape, zero_point }.stored().unwrap();
            assert_eq!(back.element, stored.element);
            assert_eq!(expand(encoding, &back.bytes), expand(encoding, &stored.bytes), "{encoding}");
        }
    }
}
