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
            Element::F16 => float(Ty::F16, bits),
            Element::BF16 => float(Ty::BF16, bits),
            // The bits that tf32 does not have are not looked at.
            Element::TF32 => float(Ty::F32, bits & 0xffff_e000),
            Element::S8 => f64::from(bits as i8),
            Element::U8 => f64::from(bits as u8),
        }
    }
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
    let (mut a, mut b) = ([[0f64; 32]; 16], [[0f64; 32]; 8]);
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
                if let Some(slot) = b[group].get_mut(place * each + n + 4 * each * r) {
                    *slot = p.b_type.value(words[lane], n);
                }
            }
        }
    }
    let whole = matches!(p.a_type, Element::S8 | Element::U8);
    let mut d = vec![[0u64; 32]; p.c.len()];
    for lane in 0..32 {
        for n in 0..4 {
            let (row, column) = (lane / 4 + 8 * (n / 2), lane % 4 * 2 + n % 2);
            let (r, shift) = if p.half { (n / 2, 16 * (n % 2)) } else { (n, 0) };
            let (Some(c), Some(slot)) = (p.c.get(r).map(|c| c[lane] >> shift), d.get_mut(r)) else { continue };
            let (x, y) = (&a[row][..p.depth.min(32)], &b[column][..p.depth.min(32)]);
            let bits = if whole {
                let sum: f64 = x.iter().zip(y).map(|(x, y)| x * y).sum();
                u64::from((sum as i64 as i32).wrapping_add(c as i32) as u32)
            } else {
                let ty = if p.half { Ty::F16 } else { Ty::F32 };
                match p.accumulate {
                    Accumulate::Exact => {
                        let sum = x.iter().zip(y).fold(float(ty, c), |sum, (x, y)| sum + x * y);
                        rounded(ty, sum, Round::Nearest)
                    }
                    Accumulate::Truncating => truncating(ty, c, x, y),
                }
            };
            slot[lane] |= (bits & if p.half { 0xffff } else { 0xffff_ffff }) << shift;
        }
    }
    d
}

/// Blocks of eight products and the accumulator, aligned to the largest of them and cut off 24 bits below it.
fn truncating(ty: Ty, c: u64, x: &[f64], y: &[f64]) -> u64 {
    x.chunks(8).zip(y.chunks(8)).fold(c, |c, (x, y)| {
        let mut terms: Vec<f64> = x.iter().zip(y).map(|(x, y)| x * y).collect();
        terms.push(float(ty, c));
        let largest = terms.iter().fold(0f64, |m, t| m.max(t.abs()));
        if largest == 0.0 || !largest.is_finite() {
            return rounded(ty, terms.iter().sum(), Round::Zero);
        }
        let unit = (largest.log2().floor() - 24.0).exp2();
        let sum: f64 = terms.iter().map(|t| (t / unit).trunc()).sum();
        rounded(ty, sum * unit, Round::Zero)
    })
}
