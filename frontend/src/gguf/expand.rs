//! Stored elements as f32.
//!
//! Invariant: each element is computed by the operations that ggml's reference code makes, in its order, so that the
//! result equals it bit for bit.

use super::Encoding;
use half::{bf16, f16};

/// Groups that share a scale in the K encodings.
pub(super) const K_ELEMENTS: usize = 256;

/// The elements of whole blocks; a part of a block at the end is left out.
pub fn expand(encoding: Encoding, bytes: &[u8]) -> Vec<f32> {
    let blocks = bytes.len() / encoding.block_bytes();
    let mut out = Vec::with_capacity(blocks.saturating_mul(encoding.block_elements()));
    match encoding {
        Encoding::F32 => each(bytes, &mut out, |block: &[u8; 4], out| out.push(f32::from_le_bytes(*block))),
        Encoding::F16 => each(bytes, &mut out, |block: &[u8; 2], out| out.push(f16::from_le_bytes(*block).to_f32())),
        Encoding::BF16 => each(bytes, &mut out, |block: &[u8; 2], out| out.push(bf16::from_le_bytes(*block).to_f32())),
        Encoding::Q8_0 => each(bytes, &mut out, q8_0),
        Encoding::Q4_0 => each(bytes, &mut out, q4_0),
        Encoding::Q4_1 => each(bytes, &mut out, q4_1),
        Encoding::Q5_0 => each(bytes, &mut out, q5_0),
        Encoding::Q5_1 => each(bytes, &mut out, q5_1),
        Encoding::Q4_K => each(bytes, &mut out, q4_k),
        Encoding::Q5_K => each(bytes, &mut out, q5_k),
        Encoding::Q6_K => each(bytes, &mut out, q6_k),
    }
    out
}

fn each<const N: usize>(bytes: &[u8], out: &mut Vec<f32>, block: impl Fn(&[u8; N], &mut Vec<f32>)) {
    bytes.as_chunks::<N>().0.iter().for_each(|b| block(b, out));
}

fn half(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

fn q8_0(block: &[u8; 34], out: &mut Vec<f32>) {
    let [d0, d1, numbers @ ..] = block;
    let d = half(*d0, *d1);
    out.extend(numbers.iter().map(|&q| f32::from(q.cast_signed()) * d));
}

fn q4_0(block: &[u8; 18], out: &mut Vec<f32>) {
    let [d0, d1, numbers @ ..] = block;
    let d = half(*d0, *d1);
    out.extend(nibbles(numbers).map(|q| f32::from(i16::from(q) - 8) * d));
}

fn q4_1(block: &[u8; 20], out: &mut Vec<f32>) {
    let [d0, d1, m0, m1, numbers @ ..] = block;
    let (d, m) = (half(*d0, *d1), half(*m0, *m1));
    out.extend(nibbles(numbers).map(|q| f32::from(q) * d + m));
}

fn q5_0(block: &[u8; 22], out: &mut Vec<f32>) {
    let [d0, d1, h0, h1, h2, h3, numbers @ ..] = block;
    let (d, high) = (half(*d0, *d1), u32::from_le_bytes([*h0, *h1, *h2, *h3]));
    out.extend(nibbles(numbers).enumerate().map(|(n, q)| f32::from(i16::from(fifth(high, n, q)) - 16) * d));
}

fn q5_1(block: &[u8; 24], out: &mut Vec<f32>) {
    let [d0, d1, m0, m1, h0, h1, h2, h3, numbers @ ..] = block;
    let (d, m, high) = (half(*d0, *d1), half(*m0, *m1), u32::from_le_bytes([*h0, *h1, *h2, *h3]));
    out.extend(nibbles(numbers).enumerate().map(|(n, q)| f32::from(fifth(high, n, q)) * d + m));
}

/// The low halves of all bytes, then the high halves.
pub(super) fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}

/// Number `n` of a block with its fifth bit.
pub(super) fn fifth(high: u32, n: usize, low: u8) -> u8 {
    low | (((high >> n) & 1) << 4) as u8
}

/// The six-bit scale and least value of group `n` of 8.
pub(super) fn scale_and_least(n: usize, s: &[u8; 12]) -> (f32, f32) {
    let (scale, least) = if n < 4 {
        (s[n] & 63, s[n + 4] & 63)
    } else {
        ((s[n + 4] & 15) | ((s[n - 4] >> 6) << 4), (s[n + 4] >> 4) | ((s[n] >> 6) << 4))
    };
    (f32::from(scale), f32::from(least))
}

/// The 256 numbers of a block in 8 groups with scale and least value.
fn k_groups(d: f32, least: f32, scales: &[u8; 12], number: impl Fn(usize, usize) -> u8, out: &mut Vec<f32>) {
    for group in 0..K_ELEMENTS / 32 {
        let (scale, m) = scale_and_least(group, scales);
        let (d, m) = (d * scale, least * m);
        out.extend((0..32).map(|n| d * f32::from(number(group, n)) - m));
    }
}

/// Four bits of number `n` of a group of 32: two groups share 32 bytes, the first has the low halves.
pub(super) fn k_nibble(q: &[u8], group: usize, n: usize) -> u8 {
    let byte = q[group / 2 * 32 + n];
    if group.is_multiple_of(2) { byte & 15 } else { byte >> 4 }
}

fn q4_k(block: &[u8; 144], out: &mut Vec<f32>) {
    let [d0, d1, m0, m1, rest @ ..] = block;
    if let Some((scales, q)) = rest.split_first_chunk::<12>() {
        k_groups(half(*d0, *d1), half(*m0, *m1), scales, |group, n| k_nibble(q, group, n), out);
    }
}

fn q5_k(block: &[u8; 176], out: &mut Vec<f32>) {
    let [d0, d1, m0, m1, rest @ ..] = block;
    let Some((scales, rest)) = rest.split_first_chunk::<12>() else { return };
    let Some((high, q)) = rest.split_first_chunk::<32>() else { return };
    let number = |group, n: usize| k_nibble(q, group, n) + ((high[n] >> group & 1) << 4);
    k_groups(half(*d0, *d1), half(*m0, *m1), scales, number, out);
}

fn q6_k(block: &[u8; 210], out: &mut Vec<f32>) {
    let d = half(block[208], block[209]);
    for n in 0..K_ELEMENTS {
        out.push(d * k_scale(block, n / 16) * f32::from(k_six_bits(block, n)));
    }
}

/// The eight-bit scale of a group of 16.
pub(super) fn k_scale(block: &[u8; 210], group: usize) -> f32 {
    f32::from(block[192 + group].cast_signed())
}

/// Number `n` of a block of six-bit ones.
pub(super) fn k_six_bits(block: &[u8; 210], n: usize) -> i8 {
    let (low, high) = (&block[..128], &block[128..192]);
    // Two halves of 128; within one, four runs of 32 share 32 bytes of upper bits.
    let (half, run, at) = (n / 128, n % 128 / 32, n % 32);
    let byte = low[half * 64 + run % 2 * 32 + at];
    let low = if run < 2 { byte & 15 } else { byte >> 4 };
    let high = high[half * 32 + at] >> (2 * run) & 3;
    (low | high << 4).cast_signed() - 32
}
