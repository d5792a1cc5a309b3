//! How far two results are apart.
//!
//! Invariant: floats are compared relative to the largest finite value of the expected tensor; everything else must be
//! equal. A NaN equals a NaN, an infinity the same infinity.

use kiln_ir::{DType, Tensor};
use std::fmt;

/// What two ways of computing the same f32 model may differ by, relative to the largest output.
pub const TOLERANCE: f64 = 1e-4;

/// What two ways of computing values of these types may differ by, relative to the largest output: of halves, which are rounded after
/// each operation, one that lies near the middle between two takes either.
pub fn tolerance(types: impl IntoIterator<Item = DType>) -> f64 {
    types.into_iter().fold(TOLERANCE, |most, dtype| match dtype {
        DType::F16 => most.max(1e-2),
        DType::BF16 => most.max(8e-2),
        _ => most,
    })
}

/// The outcome of a comparison.
#[derive(Clone, Debug, PartialEq)]
pub enum Difference {
    /// Types or shapes differ.
    Type {
        /// What was expected.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Floats: the largest absolute difference over the largest expected value (over 1 where all are zero); infinite
    /// where only one of two is not a number or infinite.
    Relative(f64),
    /// Everything else: how many elements differ.
    Elements(usize),
}

impl Difference {
    /// Whether the difference is at most `tolerance` (floats), or nothing (everything else).
    pub fn within(&self, tolerance: f64) -> bool {
        match self {
            Difference::Type { .. } => false,
            Difference::Relative(d) => *d <= tolerance,
            Difference::Elements(n) => *n == 0,
        }
    }
}

impl Difference {
    /// What two differences of parts come to for the whole: another type, then the larger relative one, then elements.
    fn worse(self, other: Difference) -> Difference {
        match (self, other) {
            (Difference::Type { expected, found }, _) | (_, Difference::Type { expected, found }) => {
                Difference::Type { expected, found }
            }
            (Difference::Relative(a), Difference::Relative(b)) => Difference::Relative(a.max(b)),
            (Difference::Elements(a), Difference::Elements(b)) => Difference::Elements(a + b),
            (Difference::Relative(d), Difference::Elements(0)) | (Difference::Elements(0), Difference::Relative(d)) => {
                Difference::Relative(d)
            }
            (Difference::Relative(_), Difference::Elements(n)) | (Difference::Elements(n), Difference::Relative(_)) => {
                Difference::Elements(n)
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Difference::Type { expected, found } => write!(f, "{found} instead of {expected}"),
            Difference::Relative(d) => write!(f, "the largest difference is {d:.2e} of the largest value"),
            Difference::Elements(0) => f.write_str("equal"),
            Difference::Elements(n) => write!(f, "{n} elements differ"),
        }
    }
}

/// Compares a tensor with the expected one.
pub fn difference(expected: &Tensor, found: &Tensor) -> Difference {
    if expected.dtype() != found.dtype() || expected.shape() != found.shape() {
        let name = |t: &Tensor| format!("{}{:?}", t.dtype(), t.shape());
        return Difference::Type { expected: name(expected), found: name(found) };
    }
    if let (Some(a), Some(b)) = (expected.tensors(), found.tensors()) {
        return a.iter().zip(b).map(|(a, b)| difference(a, b)).fold(Difference::Elements(0), Difference::worse);
    }
    if let (Some(a), Some(b)) = (expected.strings(), found.strings()) {
        return Difference::Elements(a.iter().zip(b).filter(|(a, b)| a != b).count());
    }
    let floats = expected.dtype().is_float();
    match (expected.to_f64(), found.to_f64()) {
        (Some(a), Some(b)) if floats => {
            let scale = a.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
            let scale = if scale > 0.0 { scale } else { 1.0 };
            let apart = |(a, b): (&f64, &f64)| {
                if a == b || (a.is_nan() && b.is_nan()) {
                    0.0
                } else if a.is_finite() && b.is_finite() {
                    (a - b).abs() / scale
                } else {
                    f64::INFINITY
                }
            };
            Difference::Relative(a.iter().zip(&b).map(apart).fold(0.0, f64::max))
        }
        _ => {
            if !expected.dtype().is_bytes() {
                return Difference::Elements(usize::from(found != expected));
            }
            let size = expected.dtype().size();
            let (a, b) = (expected.bytes().chunks(size), found.bytes().chunks(size));
            Difference::Elements(a.zip(b).filter(|(a, b)| a != b).count())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_relative_and_integers_exact() {
        let t = |v: &[f32]| Tensor::from_f32(&[v.len()], v).unwrap();
        let d = difference(&t(&[100.0, 1.0, f32::NAN]), &t(&[100.0, 1.5, f32::NAN]));
        assert_eq!(d, Difference::Relative(0.005));
        assert!(d.within(0.005) && !d.within(0.004));
        assert!(!difference(&t(&[f32::INFINITY]), &t(&[1.0])).within(1.0));
        assert!(!difference(&t(&[1.0]), &t(&[f32::NAN])).within(1.0));
        assert!(!difference(&t(&[1.0]), &t(&[1.0, 1.0])).within(1.0));
        assert_eq!(difference(&t(&[0.0]), &t(&[0.5])), Difference::Relative(0.5));
        let i = |v: &[i64]| Tensor::from_i64(&[v.len()], v).unwrap();
        assert_eq!(difference(&i(&[1, 2]), &i(&[1, 3])), Difference::Elements(1));
        let list = |v: f32| Tensor::from_tensors(vec![t(&[1.0]), i(&[3]), t(&[v])]);
        assert_eq!(difference(&list(2.0), &list(2.5)), Difference::Relative(0.25));
        assert!(!difference(&list(2.0), &Tensor::from_tensors(vec![t(&[1.0])])).within(1.0));
        let s = |v: &str| Tensor::from_strings(vec![1], vec![v.into()]).unwrap();
        assert!(!difference(&s("a"), &s("b")).within(1.0) && difference(&s("a"), &s("a")).within(0.0));
    }
}
