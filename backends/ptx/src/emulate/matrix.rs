//! Matrix products of a warp.
//!
//! Invariant: the layouts are the manual's, from its tables ("Matrix Fragments for mma.m16n8k...") — for all types one
//! rule: a register of `e` elements holds, in lane `l`, row `l / 4` (or 8 below, for every second register) and columns
//! `e * (l % 4)` and on, then those `4 * e` further. So `a` by rows, and `b` by columns.

use super::Accumulate;
use super::alu::{Round, Ty, float, rounded};
use super::decode::Element;

impl Element {
    fn bits(self) -> usize {
        match self {
            Element::F16 | Element::BF16 => 16,
            Element::TF32 => 32,
            Element::S8 | Element::U8 => 8,
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
        for (x, y) in x[..depth].chunks(8).zip(b[..depth].chunks(8)) {
            if whole || p.accumulate == Accumulate::Exact {
                for (x, y) in x.iter().zip(y) {
                    sums.iter_mut().zip(y).for_each(|(sum, y)| *sum += x * y);
                }
            } else {
                // The accumulator comes last.
                let mut terms = [[0.0; 8]; 9];
                for (terms, (x, y)) in terms.iter_mut().zip(x.iter().zip(y)) {
                    terms.iter_mut().zip(y).for_each(|(t, y)| *t = x * y);
                }
                terms[8] = sums;
                sums = truncated(&terms).map(|sum| cut(ty, sum));
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

/// The sums of eight columns: of eight products and the accumulator, each aligned to the largest of them and cut off 24 bits below it.
fn truncated(terms: &[[f64; 8]; 9]) -> [f64; 8] {
    /// From here on numbers of f64 are whole.
    const WHOLE: f64 = (1u64 << 52) as f64;
    let (mut plain, mut largest, mut sums) = ([0f64; 8], [0f64; 8], [0f64; 8]);
    for term in terms {
        for column in 0..8 {
            plain[column] += term[column];
            largest[column] = largest[column].max(term[column].abs());
        }
    }
    // Products of f32 are normal numbers of f64, so the exponent is in the bits; what is left of a term has 25 of them.
    let exponents = largest.map(|l| (l.to_bits() >> 52).clamp(25, 2000));
    let power = |e: u64| f64::from_bits(e << 52);
    let (units, scales) = (exponents.map(|e| power(e - 24)), exponents.map(|e| power(2 * 1023 + 24 - e)));
    for term in terms {
        for column in 0..8 {
            let exact = term[column].abs() * scales[column];
            let nearest = (exact + WHOLE) - WHOLE;
            let whole = if nearest > exact { nearest - 1.0 } else { nearest };
            sums[column] += whole.copysign(term[column]);
        }
    }
    std::array::from_fn(|column| {
        // Zeros keep their sign, and what is not finite stays so.
        let as_it_is = largest[column] == 0.0 || !plain[column].is_finite();
        if as_it_is { plain[column] } else { sums[column] * units[column] }
    })
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

    #[test]
    fn what_is_below_the_largest_is_cut_off() {
        let of = |list: &[f64]| {
            // Beside other columns.
            let mut terms = [[1.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, f64::NAN]; 9];
            (0..9).for_each(|n| terms[n][3] = list.get(n).copied().unwrap_or(0.0));
            let sums = truncated(&terms);
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
