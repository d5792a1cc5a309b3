//! Integers that scalar code makes of rounded floats and floats again: the float is there already.
//!
//! Invariant: a range is that of all values that the code may have; floats with a range are no NaN. Bounds of floats are exact: they are
//! constants of the code.

use kiln_ir::dtype::DType;
use kiln_ir::id::Id;
use kiln_ir::scalar::{BinaryOp, Code, Scalar, UnaryOp};

/// Up to this magnitude every integer is an f32.
const EXACT: f64 = (1u64 << 24) as f64;

/// How many operations back a value is looked at.
const MOST: usize = 8;

/// The least and the greatest value of an integer, or of a float that is no NaN.
fn range(code: &Code, id: Id<Scalar>, left: usize) -> Option<(f64, f64)> {
    let left = left.checked_sub(1)?;
    let of = |id: Id<Scalar>| range(code, id, left);
    let dtype = code.dtype(id);
    let whole = dtype.int_range().map(|(low, high)| (low as f64, high as f64));
    // Which zero the least or the greatest of two is, is open: -0 is taken.
    let lesser = |x: f64, y: f64| if x.total_cmp(&y).is_lt() { x } else { y };
    let found = match code.node(id) {
        Scalar::Const(c) => Some(c.as_f64()).filter(|v| !v.is_nan()).map(|v| (v, v)),
        // A NaN is not above the bound.
        Scalar::Select(above, a, b) => match code.node(*above) {
            Scalar::Binary(BinaryOp::Lt, bound, x) if (x, bound) == (a, b) => {
                let (low, least_high) = of(*b)?;
                let high = of(*a).map_or(f64::INFINITY, |(_, high)| high.max(least_high));
                Some((low, high))
            }
            _ => None,
        },
        Scalar::Unary(UnaryOp::Round, a) => of(*a).map(|(low, high)| (low.round_ties_even(), high.round_ties_even())),
        Scalar::Binary(BinaryOp::Max, a, b) => {
            let greater = |x: f64, y: f64| if x == y { lesser(x, y) } else { x.max(y) };
            of(*a).zip(of(*b)).map(|(a, b)| (greater(a.0, b.0), greater(a.1, b.1)))
        }
        Scalar::Binary(BinaryOp::Min, a, b) => of(*a).zip(of(*b)).map(|(a, b)| (lesser(a.0, b.0), lesser(a.1, b.1))),
        Scalar::Binary(BinaryOp::Add, a, b) if dtype.is_int() => {
            of(*a).zip(of(*b)).map(|(a, b)| (a.0 + b.0, a.1 + b.1))
        }
        Scalar::Cast(_, a) if dtype.is_int() => of(*a).map(|(low, high)| match code.dtype(*a).is_float() {
            true => (low.trunc(), high.trunc()),
            false => (low, high),
        }),
        _ => None,
    };
    // What leaves the type wraps, or is brought back.
    match whole {
        Some((low, high)) => Some(found.filter(|r| low <= r.0 && r.1 <= high).unwrap_or((low, high))),
        None => found,
    }
}

/// Whether the conversion of the value to an integer type leaves it as it is.
pub(super) fn fits(code: &Code, id: Id<Scalar>, to: DType) -> bool {
    let whole = to.int_range().map(|(low, high)| (low as f64, high as f64));
    range(code, id, MOST).zip(whole).is_some_and(|(r, whole)| whole.0 <= r.0 && r.1 <= whole.1)
}

/// Whether a float has no fraction; one with a range.
fn is_whole(code: &Code, id: Id<Scalar>) -> bool {
    matches!(code.node(id), Scalar::Unary(UnaryOp::Round, _))
}

/// A float and a number whose sum, in f32, an integer is; no number where the float is the integer. A rounded float may be -0, which an integer
/// is not: 0 added to it is 0.
pub(super) fn float_of(code: &Code, id: Id<Scalar>) -> Option<(Id<Scalar>, Option<i64>)> {
    let (low, high) = range(code, id, MOST)?;
    if low < -EXACT || high > EXACT {
        return None;
    }
    match code.node(id) {
        Scalar::Cast(to, a) if to.is_int() && fits(code, *a, *to) => match code.dtype(*a) {
            DType::F32 if is_whole(code, *a) => {
                let (low, _) = range(code, *a, MOST)?;
                Some((*a, low.is_sign_negative().then_some(0)))
            }
            other if other.is_int() => float_of(code, *a),
            _ => None,
        },
        Scalar::Binary(BinaryOp::Add, a, b) => {
            let Scalar::Const(c) = code.node(*b) else { return None };
            // The sum must not have wrapped.
            let (whole, by) = (range(code, *a, MOST)?, c.as_i64()?);
            let sum = (whole.0 + by as f64, whole.1 + by as f64);
            let type_range = code.dtype(id).int_range().map(|(low, high)| (low as f64, high as f64))?;
            let (float, before) = float_of(code, *a)?;
            let by = before.unwrap_or(0).checked_add(by)?;
            let exact = type_range.0 <= sum.0 && sum.1 <= type_range.1 && by.unsigned_abs() <= EXACT as u64;
            exact.then_some((float, Some(by)))
        }
        _ => None,
    }
}
