//! Matrix products of a warp.
//!
//! Invariant: the layouts are the manual's, from its tables ("Matrix Fragments for mma.m16n8k...") — for all types one
//! rule: a register of `e` elements holds, in lane `l`, row `l / 4` (or 8 below, for every second register) and columns
//! `e * (l % 4)` and on, then those `4 * e` further. So `a` by rows, and `b` by columns.

use super::Accumulate;
use super::alu::{Round, Ty, float, rounded};
use super::decode::Element;
use kiln_ir::DType;
use kiln_ir::float8::decode;

impl Element {
    fn bits(self) -> usize {
        match self {
            Element::F16 | Element::BF16 => 16,
            Element::TF32 => 32,
            Element::S8 | Element::U8 | Element::E4M3 | Element::E5M2 => 8,
        }
    }

    fn value(self, word: u64, n: usize) -> f64 {
        let bits = word >> (n * self.bits());
        match self {
            Element::F16 => half(bits as u16),
            Element::BF16 => float(Ty::BF16, bits),
            // The bits that tf32 does not have are not looked at.
            Element::TF32 => float(Ty::F32, bits & 0xffff_e000),
            Element::S8 => f64::from(bits as i8),
            Element::U8 => f64::from(bits as u8),
            Element::E4M3 => f64::from(decode(DType::F8E4M3FN, bits as u8)),
            Element::E5M2 => f64::from(decode(DType::F8E5M2, bits as u8)),
        }
    }
}

/// An f16 as f64; its bits are those of an f32 that is 2^112 times too small.
fn half(bits: u16) -> f64 {
    const UP: f32 = f32::from_bits((127 + 112) << 23);
    if bits & 0x7c00 == 0x7c00 {
        return float(Ty::F16, bits.into());
    }
    let size = f32::from_bits(u32::from(bits & 0x7fff) << 13) * UP;
    f64::from(if bits >> 15 == 0 { size } else { -size })
}

/// A sum as the accumulator holds it, cut off.
fn cut(ty: Ty, sum: f64) -> f64 {
    if ty != Ty::F32 {
        return float(ty, rounded(ty, sum, Round::Zero));
    }
    let nearest = sum as f32;
    let away = f64::from(nearest).abs() > sum.abs();
    f64::from(if away { f32::from_bits(nearest.to_bits() - 1) } else { nearest })
}

/// What is multiplied.
pub(super) struct Product<'a> {
    pub depth: usize,
    pub a_type: Element,
    pub b_type: Element,
    pub half: bool,
    pub accumulate: Accumulate,
    pub a: &'a [[u64; 32]],
    pub b: &'a [[u64; 32]],
    pub c: &'a [[u64; 32]],
}

/// `a · b + c`, in the registers of the result.
pub(super) fn product(p: &Product<'_>) -> Vec<[u64; 32]> {
    // `b` by places along the fold, so that eight columns are summed side by side.
    let (mut a, mut b) = ([[0f64; 32]; 16], [[0f64; 8]; 32]);
    let each = 32 / p.a_type.bits();
    for lane in 0..32 {
        let (group, place) = (lane / 4, lane % 4);
        for (r, words) in p.a.iter().enumerate() {
            for n in 0..each {
                let k = place * each + n + 4 * each * (r / 2);
                if let Some(slot) = a[group + 8 * (r % 2)].get_mut(k) {
                    *slot = p.a_type.value(words[lane], n);
                }
            }
        }
        for (r, words) in p.b.iter().enumerate() {
            for n in 0..each {
                if let Some(slot) = b.get_mut(place * each + n + 4 * each * r) {
                    slot[group] = p.b_type.value(words[lane], n);
                }
            }
        }
    }
    let eight = matches!(p.a_type, Element::E4M3 | Element::E5M2);
    let whole = matches!(p.a_type, Element::S8 | Element::U8);
    let ty = if p.half { Ty::F16 } else { Ty::F32 };
    let depth = p.depth.min(32);
    let mut d = vec![[0u64; 32]; p.c.len()];
    for (row, x) in a.iter().enumerate() {
        // Where the result of a column lies: lane, register, and the bit in it.
        let place = |column: usize| {
            let n = 2 * (row / 8) + column % 2;
            let (r, shift) = if p.half { (n / 2, 16 * (n % 2)) } else { (n, 0) };
            (4 * (row % 8) + column / 2, r, shift)
        };
        let c: [u64; 8] = std::array::from_fn(|column| {
            let (lane, r, shift) = place(column);
            p.c.get(r).map_or(0, |c| c[lane] >> shift)
        });
        let mut sums = if whole { [0.0; 8] } else { c.map(|c| float(ty, c)) };
        if whole || p.accumulate == Accumulate::Exact {
            for (x, y) in x[..depth].iter().zip(&b) {
                sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += x * y);
            }
        } else if eight {
            sums = truncated(&terms::<33>((&x[..depth], &b), sums), BITS_OF_EIGHT).map(|sum| cut(ty, sum));
        } else {
            for (x, y) in x[..depth].chunks(8).zip(b[..depth].chunks(8)) {
                sums = truncated(&terms::<9>((x, y), sums), BITS).map(|sum| cut(ty, sum));
            }
        }
        for (column, (sum, c)) in sums.into_iter().zip(c).enumerate() {
            let (lane, r, shift) = place(column);
            let bits = if whole {
                u64::from((sum as i64 as i32).wrapping_add(c as i32) as u32)
            } else {
                rounded(ty, sum, Round::Nearest)
            };
            if let Some(slot) = d.get_mut(r) {
                slot[lane] |= (bits & if p.half { 0xffff } else { 0xffff_ffff }) << shift;
            }
        }
    }
    d
}

/// Bits below the largest term that a sum keeps, and those of products of floats of 8 bits: Hopper keeps about 14 bits of them, the leading
/// one among them (DeepSeek-V3 Technical Report, 2024, section 3.5.2).
const BITS: u64 = 24;
const BITS_OF_EIGHT: u64 = 13;

/// The products of a row with eight columns, and what they are added to, which comes last.
fn terms<const N: usize>((row, columns): (&[f64], &[[f64; 8]]), sums: [f64; 8]) -> [[f64; 8]; N] {
    let mut terms = [[0.0; 8]; N];
    for (terms, (x, y)) in terms.iter_mut().zip(row.iter().zip(columns)) {
        terms.iter_mut().zip(y).for_each(|(t, y)| *t = x * y);
    }
    if let Some(last) = terms.last_mut() {
        *last = sums;
    }
    terms
}

/// The sums of eight columns: of products and the accumulator, each aligned to the largest of them and cut off so many bits below it.
fn truncated(terms: &[[f64; 8]], bits: u64) -> [f64; 8] {
    /// From here on numbers of f64 are whole.
    const WHOLE: f64 = (1u64 << 52) as f64;
    let (mut largest, mut sums) = ([0f64; 8], [0f64; 8]);
    for term in terms {
        for (most, term) in largest.iter_mut().zip(term) {
            // Without a thought for NaN, which the sum has in any case, this is one instruction.
            *most = if term.abs() > *most { term.abs() } else { *most };
        }
    }
    // Products of f32 are normal numbers of f64, so the exponent is in the bits; what is left of a term has 25 of them.
    let exponents = largest.map(|l| (l.to_bits() >> 52).clamp(25, 2000));
    let power = |e: u64| f64::from_bits(e << 52);
    let (units, scales) = (exponents.map(|e| power(e - bits)), exponents.map(|e| power(2 * 1023 + bits - e)));
    for term in terms {
        for column in 0..8 {
            let exact = term[column].abs() * scales[column];
            let nearest = (exact + WHOLE) - WHOLE;
            let whole = if nearest > exact { nearest - 1.0 } else { nearest };
            sums[column] += whole.copysign(term[column]);
        }
    }
    // What is not finite has stayed so.
    std::array::from_fn(|column| sums[column] * units[column])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_and_what_is_cut_off_are_those_of_arithmetic() {
        for bits in 0..=u16::MAX {
            let (found, want) = (half(bits), float(Ty::F16, bits.into()));
            assert!(
                found.to_bits() == want.to_bits() || found.is_nan() && want.is_nan(),
                "{bits:x}: {found}, wants {want}"
            );
        }
        let mut state = 1u64;
        for _ in 0..100_000 {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let sum = f64::from_bits(state & !(0x7ff << 52) | (850 + (state >> 40) % 350) << 52);
            assert_eq!(
                cut(Ty::F32, sum).to_bits(),
                float(Ty::F32, rounded(Ty::F32, sum, Round::Zero)).to_bits(),
                "{sum}"
            );
        }
    }

    /// Bytes of both types and what they are, from the table of values in OCP's OFP8.
    const E4M3: [(u8, f64); 8] = [
        (0x38, 1.0),
        (0x3c, 1.5),
        (0xc0, -2.0),
        (0x7e, 448.0),
        (0x01, 0.001953125),
        (0x80, -0.0),
        (0x87, -0.013671875),
        (0x08, 0.015625),
    ];
    const E5M2: [(u8, f64); 8] = [
        (0x3c, 1.0),
        (0x3e, 1.5),
        (0xc0, -2.0),
        (0x7b, 57344.0),
        (0x01, 1.52587890625e-5),
        (0x80, -0.0),
        (0x83, -4.57763671875e-5),
        (0x04, 6.103515625e-5),
    ];

    #[test]
    fn floats_of_8_bits_lie_as_the_manual_says() {
        let kinds = [(Element::E4M3, E4M3), (Element::E5M2, E5M2)];
        for (n, ((a_type, of_a), (b_type, of_b))) in
            kinds.iter().flat_map(|a| kinds.iter().map(move |b| (a, b))).enumerate()
        {
            let pick = |i: usize| (i * i / 3 + 5 * i + n) % 8;
            let (left, right) =
                (|r: usize, k: usize| of_a[pick(r + 17 * k)], |k: usize, c: usize| of_b[pick(3 * k + c)]);
            let (mut a, mut b, mut c) = ([[0u64; 32]; 4], [[0u64; 32]; 2], [[0u64; 32]; 4]);
            for lane in 0..32 {
                let (group, thread) = (lane / 4, lane % 4);
                // The manual's "Matrix Fragments for mma.m16n8k32", element by element.
                for i in 0..16 {
                    let row = if i < 4 || (8..12).contains(&i) { group } else { group + 8 };
                    let column = thread * 4 + i % 4 + if i < 8 { 0 } else { 16 };
                    a[i / 4][lane] |= u64::from(left(row, column).0) << (8 * (i % 4));
                }
                for i in 0..8 {
                    let row = thread * 4 + i % 4 + if i < 4 { 0 } else { 16 };
                    b[i / 4][lane] |= u64::from(right(row, group).0) << (8 * (i % 4));
                }
                for (i, c) in c.iter_mut().enumerate() {
                    c[lane] = u64::from((i as f32 - 0.5).to_bits());
                }
            }
            for accumulate in [Accumulate::Exact, Accumulate::Truncating] {
                let (a_type, b_type) = (*a_type, *b_type);
                let p = Product { depth: 32, a_type, b_type, half: false, accumulate, a: &a, b: &b, c: &c };
                for (i, d) in product(&p).iter().enumerate() {
                    for (lane, &found) in d.iter().enumerate() {
                        let (row, column) = (lane / 4 + if i < 2 { 0 } else { 8 }, 2 * (lane % 4) + i % 2);
                        let terms: Vec<f64> = (0..32).map(|k| left(row, k).1 * right(k, column).1).collect();
                        let want = terms.iter().sum::<f64>() + i as f64 - 0.5;
                        let largest = terms.iter().fold(i as f64 - 0.5, |most, t| most.max(t.abs())).max(0.5);
                        let found = f64::from(f32::from_bits(found as u32));
                        let off = (found - want).abs() / largest;
                        // A sum is at most 33 times the largest term, and rounded once; or less than 2^-13 of that is lost of each.
                        let allowed =
                            if accumulate == Accumulate::Exact { 33.0 * 2f64.powi(-24) } else { 33.0 * 2f64.powi(-13) };
                        assert!(off <= allowed, "{a_type:?} {b_type:?} {accumulate:?}: {found}, wants {want}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_below_the_largest_is_cut_off() {
        let kept = |bits: u64, small: f64| truncated(&[[1.0; 8], [small; 8]], bits)[0] > 1.0;
        assert!(kept(BITS_OF_EIGHT, 2f64.powi(-13)) && !kept(BITS_OF_EIGHT, 2f64.powi(-14)));
        assert!(kept(BITS, 2f64.powi(-24)) && !kept(BITS, 2f64.powi(-25)));
        let of = |list: &[f64]| {
            // Beside other columns.
            let mut terms = [[1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f64::NAN]; 9];
            (0..9).for_each(|n| terms[n][3] = list.get(n).copied().unwrap_or(0.0));
            let sums = truncated(&terms, BITS);
            assert!(sums[0] == 13.5 && sums[1] == 0.0 && sums[7].is_nan());
            sums[3]
        };
        let small = 2f64.powi(-24);
        assert_eq!(of(&[1.0, small]), 1.0 + small);
        assert_eq!(of(&[1.0, 0.999 * small, 0.999 * small]), 1.0);
        assert_eq!(of(&[-1.0, -1.5 * small]), -1.0 - small);
        assert_eq!(of(&[1.999, small]), (1.999 / small).trunc() * small + small);
        assert_eq!(of(&[1.0, -1.0, 1e-30]), 0.0);
        let (tiny, huge) = (f64::from(f32::from_bits(1)).powi(2), f64::from(f32::MAX).powi(2));
        assert_eq!(
            (of(&[tiny, tiny]), of(&[huge, huge])),
            (2.0 * tiny, ((huge / 2f64.powi(231)).trunc() * 2.0) * 2f64.powi(231))
        );
        assert!(of(&[f64::NAN, 1.0]).is_nan() && of(&[f64::INFINITY, f64::NEG_INFINITY]).is_nan());
        assert_eq!((of(&[f64::INFINITY, 1.0]), of(&[])), (f64::INFINITY, 0.0));
    }
}
