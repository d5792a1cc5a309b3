//! `top_k`: the greatest or least elements along an axis, in order, and where they are.

use super::Function;
use super::element::{ints, keys, split, tensors, types};
use crate::DType;
use crate::expr::Expr;
use crate::graph::TensorType;
use crate::ops::{Attributes, OpError, check_axes, operands};
use crate::tensor::Tensor;

/// Attributes: `axis`, `largest` (else least), and `k`, or `results` where a second operand (one integer) is `k`. Results: the values in order and their positions (i64). Of equals the first
/// come first; a NaN is greater than every number.
pub(super) const FUNCTION: Function = Function { name: "top_k", infer, eval };

fn infer(a: &Attributes, inputs: &[&TensorType]) -> Result<Vec<TensorType>, OpError> {
    let axis = a.size("axis")?;
    a.bool("largest")?;
    if let &[x, k] = inputs {
        let types = super::sequence::given(a, 2)?;
        check_axes(&[axis], x.rank())?;
        let number = x.dtype.is_float() || x.dtype.is_int();
        let fits = types[0].dtype == x.dtype && types[1].dtype == DType::I64;
        if !number || !fits || !k.dtype.is_int() || types.iter().any(|t| t.rank() != x.rank()) {
            return Err(OpError::new("wants numbers, and k as one integer"));
        }
        return Ok(types);
    }
    let [x] = operands(inputs)?;
    let k = a.size("k")?;
    check_axes(&[axis], x.rank())?;
    if !x.dtype.is_float() && !x.dtype.is_int() {
        return Err(OpError::new(format!("wants numbers, not {}", x.dtype)));
    }
    if x.dims[axis].as_size().is_some_and(|d| d < k) {
        return Err(OpError::new(format!("the axis has only {} elements, k is {k}", x.dims[axis])));
    }
    let mut dims = x.dims.clone();
    dims[axis] = Expr::from(k);
    Ok(vec![TensorType::new(x.dtype, dims.clone()), TensorType::new(DType::I64, dims)])
}

fn eval(a: &Attributes, inputs: &[Tensor]) -> Result<Vec<Tensor>, OpError> {
    let (axis, largest) = (a.size("axis")?, a.bool("largest")?);
    let (x, k) = match inputs {
        [x, k] => {
            let values = ints(k)?;
            let k = values.first().and_then(|&k| usize::try_from(k).ok()).filter(|&k| k <= x.shape()[axis]);
            (x, k.ok_or_else(|| OpError::new(format!("k is {values:?}, the axis has {} elements", x.shape()[axis])))?)
        }
        _ => {
            let types = types(inputs);
            infer(a, &types.iter().collect::<Vec<_>>())?;
            let [x] = tensors(inputs)?;
            (x, a.size("k")?)
        }
    };
    let mut shape = x.shape().to_vec();
    shape[axis] = k;
    let (outer, extent, inner) = split(x.shape(), axis);
    let (count, size) = (shape.iter().product::<usize>(), x.dtype().size());
    let (mut picked, mut places) = (vec![0u8; count * size], vec![0i64; count]);
    let (mut row, mut line, mut best) = (Vec::new(), Vec::new(), Least::of(k));
    for (o, i) in (0..outer).flat_map(|o| (0..inner).map(move |i| (o, i))) {
        best.clear();
        for first in (0..extent).step_by(CHUNK) {
            let count = CHUNK.min(extent - first);
            // Of lines that lie side by side the elements of one are looked at.
            if inner == 1 {
                keys(x, o * extent + first, count, &mut line)?;
            } else {
                line.clear();
                for n in first..first + count {
                    keys(x, (o * extent + n) * inner + i, 1, &mut row)?;
                    line.extend_from_slice(&row);
                }
            }
            if largest {
                line.iter_mut().for_each(|key| *key = !*key);
            }
            best.see(first, &line);
        }
        for (n, &(_, place)) in best.in_order().iter().enumerate() {
            let (to, from) = ((o * k + n) * inner + i, (o * extent + place) * inner + i);
            places[to] = place as i64;
            picked[to * size..][..size].copy_from_slice(&x.bytes()[from * size..][..size]);
        }
    }
    Ok(vec![Tensor::new(x.dtype(), shape.clone(), picked)?, Tensor::from_i64(&shape, &places)?])
}

/// Keys that are looked at together: few enough to stay in the first cache.
const CHUNK: usize = 2048;

/// The `k` least of the keys that were seen, each with its position, which decides between equals.
struct Least {
    k: usize,
    /// Those, and as many others at most.
    best: Vec<(i64, usize)>,
    /// A key that is no less is none of them.
    limit: i64,
}

impl Least {
    fn of(k: usize) -> Least {
        Least { k, best: Vec::new(), limit: i64::MAX }
    }

    fn clear(&mut self) {
        self.best.clear();
        self.limit = i64::MAX;
    }

    /// Sees the keys of positions from one on, which come after all before.
    fn see(&mut self, first: usize, keys: &[i64]) {
        for (place, &key) in (first..).zip(keys) {
            // What comes later loses against an equal.
            if key < self.limit || self.best.len() < self.k {
                self.best.push((key, place));
                if self.best.len() >= self.k.saturating_mul(2).max(64) {
                    self.shorten();
                }
            }
        }
    }

    fn shorten(&mut self) {
        if self.k > 0 && self.best.len() > self.k {
            self.best.select_nth_unstable(self.k - 1);
        }
        self.best.truncate(self.k);
        self.limit = self.best.last().map_or(i64::MIN, |last| last.0);
    }

    fn in_order(&mut self) -> &[(i64, usize)] {
        self.best.sort_unstable();
        self.best.truncate(self.k);
        &self.best
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;

    fn top(x: &Tensor, axis: usize, k: usize, largest: bool) -> Vec<Tensor> {
        run(
            "top_k",
            Attributes::new().with("axis", axis).with("k", k).with("largest", largest),
            std::slice::from_ref(x),
        )
    }

    #[test]
    fn picks_in_order_and_first_of_equals() {
        let x = Tensor::from_f32(&[2, 4], &[1., 3., 3., 2., 5., f32::NAN, 4., 5.]).unwrap();
        let r = top(&x, 1, 2, true);
        assert_eq!(r[1].to_i64().unwrap(), [1, 2, 1, 0]);
        let r = top(&x, 1, 3, false);
        assert_eq!(r[1].to_i64().unwrap(), [0, 3, 1, 2, 0, 3]);
        assert_eq!(r[0].to_f32().unwrap(), [1., 2., 3., 4., 5., 5.]);
        assert_eq!(top(&x, 0, 1, false)[0].to_f32().unwrap(), [1., 3., 3., 2.]);
    }

    #[test]
    fn many_with_equals_are_what_a_sort_gives() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as i64
        };
        for (n, k, range) in
            [(1000, 1, 40), (1000, 30, 40), (1000, 33, 100_000), (500, 499, 9), (500, 500, 3), (70, 64, 2), (9, 0, 4)]
        {
            let line: Vec<i64> = (0..n).map(|_| next() % range).collect();
            let mut sorted: Vec<(i64, usize)> = line.iter().copied().zip(0..).collect();
            sorted.sort();
            let mut best = Least::of(k);
            best.see(0, &line[..n / 3]);
            best.see(n / 3, &line[n / 3..]);
            assert_eq!(best.in_order(), &sorted[..k], "{n} {k} {range}");
        }
    }

    #[test]
    fn k_may_be_an_operand() {
        let x = Tensor::from_f32(&[3], &[1., 3., 2.]).unwrap();
        let n = || vec![Expr::from(crate::Symbol::new("n"))];
        let types = vec![TensorType::new(DType::F32, n()), TensorType::new(DType::I64, n())];
        let a = Attributes::new().with("axis", 0usize).with("largest", true).with("results", types);
        let op = super::super::Host::new("top_k", a).unwrap();
        let of = |k| op.eval(&[x.clone(), Tensor::from_i64(&[1], &[k]).unwrap()]);
        assert_eq!(of(2).unwrap()[0].to_f32().unwrap(), [3., 2.]);
        assert!(of(4).is_err() && of(-1).is_err());
    }

    #[test]
    fn large_u64_are_compared_as_unsigned() {
        let bytes: Vec<u8> = [1u64, u64::MAX, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
        let x = Tensor::new(DType::U64, vec![3], bytes).unwrap();
        assert_eq!(top(&x, 0, 2, true)[1].to_i64().unwrap(), [1, 2]);
    }
}
