//! Every core op against a direct computation over index tuples, written without the op's nests.

use super::{eval_nests, eval_op};
use crate::DType;
use crate::graph::TensorType;
use crate::ops::*;
use crate::scalar::Constant;
use crate::tensor::Tensor;

/// A tensor of a type with values from a small linear congruence: whole numbers in -8..8, or halves of them.
fn sample(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let count: usize = shape.iter().product();
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::new();
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let v = (state >> 33) % 32;
        let c = if dtype.is_float() {
            Constant::float(dtype, (v as f64 - 16.0) / 2.0)
        } else {
            Constant::int(dtype, v as i64 - if dtype.class() == crate::Class::Signed { 16 } else { 0 })
        };
        c.store(&mut bytes);
    }
    Tensor::new(dtype, shape.to_vec(), bytes).unwrap()
}

/// All index tuples of a shape, row-major.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![vec![]];
    for &d in shape {
        all = all.into_iter().flat_map(|p| (0..d).map(move |i| [p.as_slice(), &[i]].concat())).collect();
    }
    all
}

fn at(t: &Tensor, index: &[usize]) -> f64 {
    let flat = index.iter().zip(t.shape()).fold(0, |a, (i, d)| a * d + i);
    t.to_f64().unwrap()[flat]
}

/// Evaluates an op by its entry point and by its nests alone, which must agree.
fn run(op: impl Into<Op>, inputs: &[Tensor]) -> Tensor {
    let op = op.into();
    let types: Vec<TensorType> = inputs.iter().map(|t| TensorType::of(t.dtype(), t.shape())).collect();
    let types: Vec<&TensorType> = types.iter().collect();
    let result = eval_op(&op, inputs).unwrap().remove(0);
    if let Meaning::Nests(nests) = op.meaning(&types).unwrap() {
        assert_eq!(eval_nests(&nests, inputs, None).unwrap(), result, "{op}");
    }
    assert_eq!(result.shape(), op.infer(&types).unwrap()[0].shape().unwrap());
    result
}

/// Checks a result against a function of the index.
fn check(result: &Tensor, expected: impl Fn(&[usize]) -> f64) {
    let found = result.to_f64().unwrap();
    for (i, index) in indices(result.shape()).iter().enumerate() {
        let wanted = expected(index);
        let close = (found[i] - wanted).abs() <= 1e-6 * wanted.abs().max(1.0);
        assert!(
            close || found[i] == wanted || found[i].is_nan() && wanted.is_nan(),
            "{index:?}: {} != {wanted}",
            found[i]
        );
    }
}

#[test]
fn contractions_and_convolutions() {
    for dtype in [DType::F32, DType::F64, DType::F16, DType::I32, DType::U8] {
        for (b, m, k, n) in [(2, 3, 5, 7), (1, 1, 130, 9), (1, 9, 3, 1), (3, 5, 1, 133), (1, 4, 0, 2)] {
            let (x, y) = (sample(dtype, &[b, m, k], 1), sample(dtype, &[b, k, n], 2));
            let wrap = |v: f64| if dtype == DType::U8 { v.rem_euclid(256.0) } else { v };
            check(&run(Contract::new("bmk", "bkn", "bmn"), &[x.clone(), y.clone()]), |i| {
                wrap((0..k).map(|r| at(&x, &[i[0], i[1], r]) * at(&y, &[i[0], r, i[2]])).sum())
            });
            check(&run(Contract::new("bmk", "bkn", "nbm"), &[x.clone(), y.clone()]), |i| {
                wrap((0..k).map(|r| at(&x, &[i[1], i[2], r]) * at(&y, &[i[1], r, i[0]])).sum())
            });
        }
    }
    for (groups, strides, dilations) in [(1, [1, 1], [1, 1]), (2, [2, 1], [1, 2]), (4, [1, 3], [2, 1])] {
        let (x, w) = (sample(DType::F32, &[2, 4, 9, 8], 3), sample(DType::F32, &[8, 4 / groups, 3, 2], 4));
        let op = Conv { strides: strides.to_vec(), dilations: dilations.to_vec(), groups };
        let result = run(op, &[x.clone(), w.clone()]);
        assert_eq!(result.shape()[2], (9 - 2 * dilations[0] - 1) / strides[0] + 1);
        check(&result, |i| {
            let mut sum = 0.0;
            for k in indices(&w.shape()[1..]) {
                let channel = i[1] / (8 / groups) * (4 / groups) + k[0];
                let (h, v) = (i[2] * strides[0] + k[1] * dilations[0], i[3] * strides[1] + k[2] * dilations[1]);
                sum += at(&x, &[i[0], channel, h, v]) * at(&w, &[i[1], k[0], k[1], k[2]]);
            }
            sum
        });
    }
}
