//! Every core op against a direct computation over index tuples, written without the op's nests.

use super::{Bindings, EvalError, Options, bind_inputs, eval_graph, eval_nests, eval_op, eval_op_within};
use crate::graph::{Graph, Origin, TensorType};
use crate::nest::{Nest, axes, fold_axis};
use crate::ops::*;
use crate::scalar::{BinaryOp, Code, Constant, Coord, Less, Scalar, Source, UnaryOp};
use crate::semantics;
use crate::tensor::Tensor;
use crate::{DType, Expr};
use proptest::prelude::*;

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
    semantics::load_f64(t.dtype(), t.bytes(), flat)
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
        let op = Conv { strides: strides.to_vec(), dilations: dilations.to_vec(), groups, elements: Elements::Numbers };
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

fn exprs(dims: &[usize]) -> Vec<Expr> {
    dims.iter().map(|&d| Expr::from(d)).collect()
}

/// The bytes of an element, for values that are only moved.
fn element(t: &Tensor, index: &[usize]) -> Vec<u8> {
    let flat = index.iter().zip(t.shape()).fold(0, |a, (i, d)| a * d + i);
    match t.strings() {
        Some(s) => s[flat].clone(),
        None => t.bytes()[flat * t.dtype().size()..][..t.dtype().size()].to_vec(),
    }
}

/// A tensor of any type whose elements differ.
fn distinct(dtype: DType, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    if dtype == DType::Str {
        return Tensor::from_strings(shape.to_vec(), (0..count).map(|i| format!("s{i}").into_bytes()).collect())
            .unwrap();
    }
    let bytes =
        (0..count * dtype.size()).map(|i| if i % dtype.size() == 0 { (i / dtype.size()) as u8 & 0x3f } else { 7 });
    let bytes: Vec<u8> = if dtype == DType::Bool { bytes.map(|b| b % 2).collect() } else { bytes.collect() };
    Tensor::new(dtype, shape.to_vec(), bytes).unwrap()
}

/// Checks a result whose elements are those of operands: `from` gives operand and index.
fn check_moves(result: &Tensor, inputs: &[Tensor], from: impl Fn(&[usize]) -> (usize, Vec<usize>)) {
    for index in indices(result.shape()) {
        let (operand, source) = from(&index);
        assert_eq!(element(result, &index), element(&inputs[operand], &source), "{index:?}");
    }
}

/// Types with elements of every size and kind that ops move.
const MOVED: [DType; 9] =
    [DType::Bool, DType::I8, DType::U16, DType::F32, DType::I64, DType::C64, DType::C128, DType::Str, DType::F8E5M2];

#[test]
fn views_move_elements_of_every_type() {
    for dtype in MOVED {
        let x = distinct(dtype, &[2, 3, 4]);
        let inputs = [x.clone()];
        check_moves(&run(Transpose { perm: vec![2, 0, 1] }, &inputs), &inputs, |i| (0, vec![i[1], i[2], i[0]]));
        check_moves(&run(Reshape { dims: exprs(&[4, 1, 6]) }, &inputs), &inputs, |i| {
            let flat = i[0] * 6 + i[2];
            (0, vec![flat / 12, flat / 4 % 3, flat % 4])
        });
        let slice = Slice {
            starts: vec![Expr::from(1i64), Expr::from(2i64), Expr::from(0i64)],
            steps: vec![1, -2, 3],
            dims: exprs(&[1, 2, 2]),
        };
        check_moves(&run(slice, &inputs), &inputs, |i| (0, vec![1 + i[0], 2 - 2 * i[1], 3 * i[2]]));
        let row = distinct(dtype, &[3, 1]);
        let inputs = [row];
        check_moves(&run(Broadcast { dims: exprs(&[2, 3, 5]) }, &inputs), &inputs, |i| (0, vec![i[1], 0]));
        let parts = [distinct(dtype, &[2, 1, 4]), x.clone(), distinct(dtype, &[2, 0, 4]), distinct(dtype, &[2, 2, 4])];
        let starts = [0, 1, 4, 4, 6];
        check_moves(&run(Concat { axis: 1 }, &parts), &parts, |i| {
            let n = if i[1] >= starts[3] { 3 } else { usize::from(i[1] >= 1) };
            (n, vec![i[0], i[1] - starts[n], i[2]])
        });
    }
}

#[test]
fn pads_have_borders_and_gaps() {
    for dtype in [DType::F32, DType::I8, DType::Bool, DType::F16, DType::U64] {
        let x = sample(dtype, &[3, 1, 4], 5);
        let value = Constant::int(dtype, 1);
        let op = Pad { low: vec![1, 0, 2], high: vec![0, 2, 1], interior: vec![2, 0, 1], value };
        let result = run(op, std::slice::from_ref(&x));
        assert_eq!(result.shape(), [8, 3, 10]);
        check(&result, |i| {
            let inside = |i: usize, low: usize, step: usize, d: usize| {
                (i >= low && (i - low).is_multiple_of(step) && (i - low) / step < d).then(|| (i - low) / step)
            };
            match (inside(i[0], 1, 3, 3), inside(i[1], 0, 1, 1), inside(i[2], 2, 2, 4)) {
                (Some(a), Some(b), Some(c)) => at(&x, &[a, b, c]),
                _ => 1.0,
            }
        });
    }
    let empty = Tensor::from_f32(&[0, 2], &[]).unwrap();
    let op = Pad { low: vec![1, 0], high: vec![1, 0], interior: vec![3, 0], value: Constant::int(DType::F32, 4) };
    assert_eq!(run(op, &[empty]).to_f32().unwrap(), [4.0; 4]);
}

#[test]
fn gathers_pick_and_check_indices() {
    for dtype in MOVED {
        let data = distinct(dtype, &[2, 4, 3]);
        let picked = Tensor::from_i64(&[2, 2], &[3, -4, -1, 1]).unwrap();
        let real = [[3, 0], [3, 1]];
        let inputs = [data.clone(), picked.clone()];
        check_moves(&run(Gather { axis: 1 }, &inputs), &inputs, |i| (0, vec![i[0], real[i[1]][i[2]], i[3]]));
        let each =
            Tensor::new(DType::I32, vec![1, 2, 3], [1i32, -1, 0, 2, -4, 3].map(i32::to_le_bytes).concat()).unwrap();
        let inputs = [data.clone(), each];
        let real = [[1, 3, 0], [2, 0, 3]];
        check_moves(&run(GatherElements { axis: 1 }, &inputs), &inputs, |i| (0, vec![i[0], real[i[1]][i[2]], i[2]]));
        let tuples = Tensor::from_i64(&[2, 2, 2], &[0, 0, 3, -1, -1, 1, 2, -3]).unwrap();
        let real = [[[0, 0], [3, 2]], [[3, 1], [2, 0]]];
        let inputs = [data.clone(), tuples];
        check_moves(&run(GatherNd { batch: 1 }, &inputs), &inputs, |i| {
            let t = real[i[0]][i[1]];
            (0, vec![i[0], t[0], t[1]])
        });
        let inputs = [data, Tensor::from_i64(&[4, 1], &[1, -2, -1, 0]).unwrap()];
        check_moves(&run(GatherNd { batch: 0 }, &inputs), &inputs, |i| (0, vec![[1, 0, 1, 0][i[0]], i[1], i[2]]));
    }
    let data = sample(DType::F32, &[2, 4], 1);
    for (index, ok) in [(3, true), (4, false), (-4, true), (-5, false), (i64::MIN, false), (i64::MAX, false)] {
        let picked = Tensor::from_i64(&[1], &[index]).unwrap();
        let result = eval_op(&Gather { axis: 1 }.into(), &[data.clone(), picked]);
        let fault = EvalError::Index { index, extent: 4, axis: 1 };
        if ok {
            assert!(result.is_ok());
        } else {
            assert_eq!(result, Err(fault.clone()));
            assert_eq!(fault.to_string(), format!("index {index} is out of range for axis 1 with extent 4"));
        }
    }
    // Nothing is picked from nothing.
    let empty = Tensor::from_f32(&[0, 2], &[]).unwrap();
    let none = Tensor::from_i64(&[0], &[]).unwrap();
    assert_eq!(run(Gather { axis: 0 }, &[empty.clone(), none]).shape(), [0, 2]);
    let one = Tensor::from_i64(&[1], &[0]).unwrap();
    let fault = eval_op(&Gather { axis: 0 }.into(), &[empty, one]);
    assert_eq!(fault, Err(EvalError::Index { index: 0, extent: 0, axis: 0 }));
}

#[test]
fn reductions_and_pools() {
    type Fold = (BinaryOp, fn(f64, f64) -> f64, f64);
    let folds: [Fold; 4] = [
        (BinaryOp::Add, |a, b| a + b, 0.0),
        (BinaryOp::Mul, |a, b| a * b, 1.0),
        (BinaryOp::Max, f64::max, f64::NEG_INFINITY),
        (BinaryOp::Min, f64::min, f64::INFINITY),
    ];
    for dtype in [DType::F32, DType::F64, DType::I64, DType::BF16] {
        // Both long and short axes, so that lanes run along the result and along the fold.
        for shape in [[2, 3, 4], [2, 600, 2], [40, 2, 70], [1, 1, 1030]] {
            let x = sample(dtype, &shape, 7);
            for (combine, f, init) in folds {
                if combine == BinaryOp::Mul && shape != [2, 3, 4] {
                    continue;
                }
                for axes in [vec![1], vec![2, 0], vec![0, 1, 2], vec![]] {
                    let op = Reduce { combine, axes: axes.clone(), keep: true };
                    let result = run(op, std::slice::from_ref(&x));
                    let wanted = |i: &[usize]| {
                        let inside = |k: &Vec<usize>| (0..3).all(|n| axes.contains(&n) || k[n] == i[n]);
                        let v = indices(&shape).iter().filter(|k| inside(k)).fold(init, |a, k| f(a, at(&x, k)));
                        f64::from(semantics::round_to(dtype, v as f32))
                    };
                    // The direct computation is quadratic: long results are spared.
                    if result.len() < 50 {
                        check(&result, wanted);
                    }
                    let flat = run(Reduce { combine, axes: axes.clone(), keep: false }, std::slice::from_ref(&x));
                    assert_eq!(flat.bytes(), result.bytes());
                    assert_eq!(flat.shape().len(), 3 - axes.len());
                }
            }
        }
    }
    for (combine, pick) in [(BinaryOp::And, false), (BinaryOp::Or, true)] {
        let x = Tensor::new(DType::Bool, vec![4, 2], vec![0, 0, 0, 1, 1, 0, 1, 1]).unwrap();
        let result = run(Reduce { combine, axes: vec![1], keep: false }, &[x]);
        assert_eq!(result.bytes(), [0, u8::from(pick), u8::from(pick), 1]);
    }
    let (x, strides, dilations) = (sample(DType::F32, &[1, 2, 7, 9], 9), vec![2, 1], vec![1, 3]);
    for (combine, f, init) in folds {
        if combine != BinaryOp::Mul {
            let op = Pool { combine, window: vec![3, 2], strides: strides.clone(), dilations: dilations.clone() };
            let result = run(op, std::slice::from_ref(&x));
            assert_eq!(result.shape(), [1, 2, 3, 6]);
            check(&result, |i| {
                indices(&[3, 2]).iter().fold(init, |a, k| f(a, at(&x, &[0, i[1], i[2] * 2 + k[0], i[3] + k[1] * 3])))
            });
        }
    }
}

#[test]
fn empty_folds_give_the_neutral_element() {
    for (combine, dtype, wanted) in [
        (BinaryOp::Add, DType::F32, 0.0),
        (BinaryOp::Mul, DType::I32, 1.0),
        (BinaryOp::Max, DType::F16, f64::NEG_INFINITY),
        (BinaryOp::Min, DType::F64, f64::INFINITY),
        (BinaryOp::Max, DType::I8, -128.0),
        (BinaryOp::Min, DType::U16, 65535.0),
        (BinaryOp::And, DType::Bool, 1.0),
        (BinaryOp::Or, DType::Bool, 0.0),
    ] {
        let empty = Tensor::new(dtype, vec![2, 0], vec![]).unwrap();
        let result = run(Reduce { combine, axes: vec![1], keep: false }, &[empty]);
        assert_eq!(result.to_f64().unwrap(), [wanted; 2], "{combine:?} {dtype}");
        if dtype == DType::Bool {
            assert!(result.bytes().iter().all(|&b| b <= 1), "a bool is 0 or 1 in memory");
        }
    }
    let none = Tensor::from_f32(&[0, 3], &[]).unwrap();
    assert_eq!(run(Reduce { combine: BinaryOp::Add, axes: vec![1], keep: true }, &[none]).shape(), [0, 1]);
}

#[test]
fn softmax_and_norms() {
    for dtype in [DType::F32, DType::F64, DType::F16] {
        let tolerance = if dtype == DType::F16 { 1e-3 } else { 1e-5 };
        let near = |t: &Tensor, f: &dyn Fn(&[usize]) -> f64| {
            let found = t.to_f64().unwrap();
            for (i, index) in indices(t.shape()).iter().enumerate() {
                let wanted = f(index);
                let close = (found[i] - wanted).abs() <= tolerance * wanted.abs().max(1e-2);
                assert!(close, "{dtype} {index:?}: {} != {wanted}", found[i]);
            }
        };
        let x = sample(dtype, &[3, 5, 4], 11);
        for axis in 0..3 {
            let along = |i: &[usize]| -> Vec<f64> {
                let mut k = i.to_vec();
                (0..x.shape()[axis])
                    .map(|n| {
                        k[axis] = n;
                        at(&x, &k)
                    })
                    .collect()
            };
            let total = |i: &[usize]| along(i).iter().map(|v| v.exp()).sum::<f64>();
            near(&run(Softmax { axis, log: false }, std::slice::from_ref(&x)), &|i| at(&x, i).exp() / total(i));
            near(&run(Softmax { axis, log: true }, std::slice::from_ref(&x)), &|i| at(&x, i) - total(i).ln());
        }
        let epsilon = Constant::float(dtype, 1e-3);
        for count in 1..=3 {
            let row = |i: &[usize]| -> Vec<f64> {
                let inside = |k: &&Vec<usize>| k[..3 - count] == i[..3 - count];
                indices(x.shape()).iter().filter(inside).map(|k| at(&x, k)).collect()
            };
            let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
            let rms = |v: &[f64], m: f64| {
                (mean(&v.iter().map(|x| (x - m) * (x - m)).collect::<Vec<_>>()) + epsilon.as_f64()).sqrt()
            };
            near(&run(Norm { kind: NormKind::Layer, axes: count, epsilon }, std::slice::from_ref(&x)), &|i| {
                let m = mean(&row(i));
                (at(&x, i) - m) / rms(&row(i), m)
            });
            near(&run(Norm { kind: NormKind::Rms, axes: count, epsilon }, std::slice::from_ref(&x)), &|i| {
                at(&x, i) / rms(&row(i), 0.0)
            });
        }
    }
    // Squares beyond the range of f16: the sums are kept in f32.
    let large = Tensor::new(DType::F16, vec![1, 64], [half::f16::from_f32(1000.0).to_le_bytes(); 64].concat()).unwrap();
    let op = Norm { kind: NormKind::Rms, axes: 1, epsilon: Constant::float(DType::F16, 0.0) };
    assert_eq!(run(op, &[large]).to_f64().unwrap(), [1.0; 64]);
}

#[test]
fn iota_counts_along_its_axis() {
    for axis in 0..3 {
        check(&run(Iota { dims: exprs(&[2, 3, 600]), axis }, &[]), |i| i[axis] as f64);
    }
}

fn arg_code(dtypes: &[DType], f: impl Fn(&mut Code, &[crate::Id<Scalar>]) -> crate::Id<Scalar>) -> Map {
    let mut body = Code::new();
    let args: Vec<_> = dtypes.iter().enumerate().map(|(n, &d)| body.arg(n, d)).collect();
    let result = f(&mut body, &args);
    body.set_result(result);
    Map { body }
}

/// Values at the edges of every type.
fn edges(dtype: DType) -> Tensor {
    let mut bytes = Vec::new();
    let floats = [0.0, -0.0, 1.0, -1.0, 0.5, 2.5, -2.5, 1e9, -1e9, 300.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN];
    let ints = [0, 1, -1, 2, 3, -7, 63, 64, 127, 128, 255, 256, i64::MAX, i64::MIN];
    let count = if dtype.is_float() {
        floats.iter().for_each(|&v| Constant::float(dtype, v).store(&mut bytes));
        floats.len()
    } else {
        ints.iter().for_each(|&v| Constant::int(dtype, v).store(&mut bytes));
        ints.len()
    };
    Tensor::new(dtype, vec![count], bytes).unwrap()
}

fn scalars(t: &Tensor) -> Vec<Constant> {
    (0..t.len()).map(|i| Constant::load(t.dtype(), t.bytes(), i).unwrap()).collect()
}

fn same(found: Constant, wanted: Constant) -> bool {
    found == wanted || found.as_f64().is_nan() && wanted.as_f64().is_nan()
}

/// The scalar semantics, applied one element at a time.
/// The result of an operation, rounded to its type as the table says: what is too large saturates.
fn rounded(dtype: DType, value: f32) -> Constant {
    Constant { dtype, bits: u64::from(semantics::round_to(dtype, value).to_bits()) }
}

fn binary_of(op: BinaryOp, a: Constant, b: Constant) -> Constant {
    if op == BinaryOp::Pair {
        return Constant::int(DType::I32, semantics::pair(a.as_f64() as f32, b.as_f64() as f32));
    }
    if op == BinaryOp::Dot2 {
        let half = |c: Constant, high: bool| {
            f32::from_bits(if high { c.bits as u32 & 0xffff_0000 } else { (c.bits as u32) << 16 })
        };
        let [low, high] = [false, true].map(|h| f64::from(half(a, h)) * f64::from(half(b, h)));
        return Constant::float(DType::F32, low + high);
    }
    use crate::Class;
    let d = a.dtype;
    let truth = |t: Option<bool>| t.map(|t| Constant { dtype: DType::Bool, bits: u64::from(t) });
    match d.class() {
        Class::Float | Class::Double => {
            truth(semantics::compare(op, a.as_f64(), b.as_f64())).unwrap_or_else(|| match d.class() {
                Class::Double => Constant::float(d, semantics::binary_f64(op, a.as_f64(), b.as_f64())),
                _ => rounded(d, semantics::binary_f32(op, a.as_f64() as f32, b.as_f64() as f32)),
            })
        }
        Class::Unsigned => truth(semantics::compare(op, a.bits, b.bits))
            .unwrap_or_else(|| Constant::int(d, semantics::binary_int(op, d, a.bits as i64, b.bits as i64).unwrap())),
        _ => truth(semantics::compare(op, a.bits as i64, b.bits as i64))
            .unwrap_or_else(|| Constant::int(d, semantics::binary_int(op, d, a.bits as i64, b.bits as i64).unwrap())),
    }
}

#[test]
fn maps_follow_the_table_of_semantics() {
    for dtype in DType::ALL {
        if matches!(dtype.class(), crate::Class::Complex | crate::Class::Str) {
            continue;
        }
        let x = edges(dtype);
        let n = x.len();
        let (rows, columns) = (x.reshaped(&[n, 1]).unwrap(), x.clone());
        for &op in BinaryOp::ALL {
            let mut code = Code::new();
            let (a, b) = (code.arg(0, dtype), code.arg(1, dtype));
            let Ok(result) = code.binary(op, a, b) else { continue };
            code.set_result(result);
            let result = run(Map { body: code }, &[rows.clone(), columns.clone()]);
            let values = scalars(&x);
            for (i, found) in scalars(&result).into_iter().enumerate() {
                let (a, b) = (values[i / n], values[i % n]);
                let wanted = binary_of(op, a, b);
                assert!(same(found, wanted), "{} of {a}, {b}: {found} != {wanted}", op.name());
            }
        }
        for &op in UnaryOp::ALL {
            let mut code = Code::new();
            let a = code.arg(0, dtype);
            let Ok(result) = code.unary(op, a) else { continue };
            code.set_result(result);
            for (found, a) in scalars(&run(Map { body: code }, std::slice::from_ref(&x))).into_iter().zip(scalars(&x)) {
                let wanted = match dtype.class() {
                    crate::Class::Float => rounded(dtype, semantics::unary_f32(op, a.as_f64() as f32)),
                    crate::Class::Double => Constant::float(dtype, semantics::unary_f64(op, a.as_f64())),
                    _ => Constant::int(dtype, semantics::unary_int(op, dtype, a.bits as i64).unwrap()),
                };
                assert!(same(found, wanted), "{} of {a}: {found} != {wanted}", op.name());
            }
        }
        for to in DType::ALL {
            if matches!(to.class(), crate::Class::Complex | crate::Class::Str) {
                continue;
            }
            let op = arg_code(&[dtype], |code, a| code.cast(to, a[0]).unwrap());
            for (found, a) in scalars(&run(op, std::slice::from_ref(&x))).into_iter().zip(scalars(&x)) {
                let wanted = match (a.as_i64(), to.is_float()) {
                    (Some(v), false) => Constant::int(to, v),
                    (None, false) => Constant { dtype: to, bits: semantics::float_to_int(to, a.as_f64()) as u64 },
                    (_, true) if to == dtype => a,
                    (_, true) if to.class() == crate::Class::Float => rounded(to, semantics::narrow(to, a.as_f64())),
                    (_, true) => Constant::float(to, a.as_f64()),
                };
                assert!(same(found, wanted), "{a} to {to}: {found} != {wanted}");
            }
        }
    }
}

#[test]
fn maps_broadcast_and_select() {
    let (a, b, c) = (sample(DType::F32, &[4, 1, 3], 1), sample(DType::F32, &[5, 1], 2), sample(DType::Bool, &[1], 3));
    let op = arg_code(&[DType::F32, DType::F32, DType::Bool], |code, x| {
        let sum = code.binary(BinaryOp::Add, x[0], x[1]).unwrap();
        let flipped = code.unary(UnaryOp::Not, x[2]).unwrap();
        let two = code.float(DType::F32, 2.0);
        let twice = code.binary(BinaryOp::Mul, sum, two).unwrap();
        code.select(flipped, sum, twice).unwrap()
    });
    let factor = if c.bytes() == [0] { 1.0 } else { 2.0 };
    let result = run(op, &[a.clone(), b.clone(), c]);
    assert_eq!(result.shape(), [4, 5, 3]);
    check(&result, |i| (at(&a, &[i[0], 0, i[2]]) + at(&b, &[i[1], 0])) * factor);
    // Nothing to do, and a single element.
    let empty = Tensor::from_f32(&[0, 5, 1], &[]).unwrap();
    let add = || arg_code(&[DType::F32, DType::F32], |code, x| code.binary(BinaryOp::Add, x[0], x[1]).unwrap());
    assert_eq!(run(add(), &[empty, b]).shape(), [0, 5, 1]);
    let (x, y) = (Tensor::from_f32(&[], &[2.0]).unwrap(), Tensor::from_f32(&[], &[3.0]).unwrap());
    assert_eq!(run(add(), &[x, y]).to_f32().unwrap(), [5.0]);
    let three = arg_code(&[], |code, _| code.float(DType::F32, 3.0));
    assert_eq!(run(three, &[]).to_f32().unwrap(), [3.0]);
}

#[test]
fn float_sums_are_rounded_once() {
    // In f32 each 1 would be lost against 2^24; the products are not rounded either.
    let big = 16_777_216.0f32;
    let mut values = vec![1.0f32; 1000];
    values[0] = big;
    let x = Tensor::from_f32(&[1, 1000], &values).unwrap();
    let sum = run(Reduce { combine: BinaryOp::Add, axes: vec![0, 1], keep: false }, std::slice::from_ref(&x));
    assert_eq!(sum.to_f32().unwrap(), [big + 1000.0]);
    let ones = Tensor::from_f32(&[1000, 1], &[1.0; 1000]).unwrap();
    assert_eq!(run(Contract::new("mk", "kn", "mn"), &[x, ones]).to_f32().unwrap(), [big + 1000.0]);
    let (a, b) = (1.0 + f32::EPSILON, 1.0 - f32::EPSILON);
    let left = Tensor::from_f32(&[1, 2], &[a, 1.0]).unwrap();
    let right = Tensor::from_f32(&[2, 1], &[b, -1.0]).unwrap();
    let exact = (f64::from(a) * f64::from(b) - 1.0) as f32;
    assert_ne!(exact, 0.0);
    assert_eq!(run(Contract::new("mk", "kn", "mn"), &[left, right]).to_f32().unwrap(), [exact]);
    // 2049 is halfway between two values of f16 and 2^-26 more than that; f32 would round to the half first.
    let third = Tensor::new(DType::F64, vec![1], (2049.0 + 2f64.powi(-26)).to_le_bytes().to_vec()).unwrap();
    let op = arg_code(&[DType::F64], |code, a| code.cast(DType::F16, a[0]).unwrap());
    assert_eq!(run(op, &[third]).to_f64().unwrap(), [2050.0]);
}

#[test]
fn guards_keep_loads_in_range() {
    // out[i] = if 2 <= i < 6 { sum over r of x[i - 2] * x[r] if r < i - 1 } else { x[0] }
    let x = sample(DType::F32, &[4], 1);
    let i = Expr::symbol("i0");
    let two = Expr::from(2i64);
    let mut body = Code::new();
    let shifted = body.load_at(Source::Input(0), vec![i.sub(&two)], DType::F32);
    let other = body.load_at(Source::Input(0), vec![Expr::from(fold_axis(0)).add(&i).sub(&two)], DType::F32);
    let zero = body.float(DType::F32, 0.0);
    let less = |left: &Expr, right: Expr| Less { left: left.clone(), right };
    let inner = vec![less(&Expr::from(fold_axis(0)).add(&i), Expr::from(6i64))];
    let product = body.binary(BinaryOp::Mul, shifted, other).unwrap();
    let nested = body.push(Scalar::Guard(inner, product, zero)).unwrap();
    let first = body.load_at(Source::Input(0), vec![Expr::default()], DType::F32);
    let outer = vec![less(&Expr::from(1i64), i.clone()), less(&i, Expr::from(6i64))];
    let result = body.push(Scalar::Guard(outer, nested, first)).unwrap();
    body.set_result(result);
    let nest = Nest::fold(exprs(&[9]), exprs(&[3]), BinaryOp::Add, body);
    let result = eval_nests(&[nest], std::slice::from_ref(&x), None).unwrap();
    check(&result, |i| {
        let i = i[0];
        if !(2..6).contains(&i) {
            return 3.0 * at(&x, &[0]);
        }
        (0..3).filter(|r| r + i < 6).map(|r| at(&x, &[i - 2]) * at(&x, &[r + i - 2])).sum()
    });
    // Without its guard the load is out of range, which is an error and not a wrong number.
    let mut body = Code::new();
    body.load_at(Source::Input(0), vec![i.sub(&two)], DType::F32);
    let nest = Nest::map(exprs(&[4]), body);
    let fault = eval_nests(&[nest], &[x], None);
    assert_eq!(fault, Err(EvalError::Index { index: -2, extent: 4, axis: 0 }));
}

#[test]
fn indices_that_are_not_linear() {
    let x = sample(DType::I32, &[700], 1);
    let table = Tensor::from_i64(&[3], &[2, -1, 0]).unwrap();
    let i = Expr::symbol("i0");
    let mut body = Code::new();
    let at_mod = body.load_at(Source::Input(0), vec![i.mul(&i).modulo(&Expr::from(700i64))], DType::I32);
    let picked =
        body.load_at(Source::Input(1), vec![i.floor_div(&Expr::from(5i64)).modulo(&Expr::from(3i64))], DType::I64);
    let through = body.load(Source::Input(0), vec![Coord::Value(picked)], DType::I32);
    let sum = body.binary(BinaryOp::Add, at_mod, through).unwrap();
    let position = body.index(i.least(&Expr::from(100i64)));
    let position = body.cast(DType::I32, position).unwrap();
    let sum = body.binary(BinaryOp::Add, sum, position).unwrap();
    body.set_result(sum);
    let result = eval_nests(&[Nest::map(exprs(&[1500]), body)], &[x.clone(), table], None).unwrap();
    check(&result, |i| {
        let i = i[0];
        at(&x, &[i * i % 700]) + at(&x, &[[2, 699, 0][i / 5 % 3]]) + i.min(100) as f64
    });
}

#[test]
fn stages_and_finish_see_earlier_results() {
    let x = sample(DType::F32, &[3, 5], 1);
    let mut body = Code::new();
    body.load_at(Source::Input(0), vec![Expr::symbol("i0"), Expr::from(fold_axis(0))], DType::F32);
    let mut sum = Nest::fold(exprs(&[3]), exprs(&[5]), BinaryOp::Add, body);
    let mut finish = Code::new();
    let total = finish.arg(0, DType::F32);
    let first = finish.load_at(Source::Input(0), vec![Expr::symbol("i0"), Expr::default()], DType::F32);
    let result = finish.binary(BinaryOp::Sub, total, first).unwrap();
    finish.set_result(result);
    sum.finish = finish;
    let mut body = Code::new();
    let stage = body.load_at(Source::Stage(0), axes(1), DType::F32);
    let twice = body.binary(BinaryOp::Add, stage, stage).unwrap();
    body.set_result(twice);
    let mut double = Nest::map(exprs(&[3]), body);
    let mut finish = Code::new();
    let value = finish.arg(0, DType::F32);
    let negative = finish.unary(UnaryOp::Neg, value).unwrap();
    finish.set_result(negative);
    double.finish = finish;
    let result = eval_nests(&[sum, double], std::slice::from_ref(&x), None).unwrap();
    check(&result, |i| -2.0 * (1..5).map(|k| at(&x, &[i[0], k])).sum::<f64>());
}

#[test]
fn sizes_are_checked_before_they_are_allocated() {
    let x = Tensor::from_f32(&[1], &[1.0]).unwrap();
    let huge = Broadcast { dims: exprs(&[1 << 40, 1 << 40]) }.into();
    let result = eval_op(&huge, std::slice::from_ref(&x));
    assert!(matches!(result, Err(EvalError::Tensor(_))), "{result:?}");
    let beyond: Op = Broadcast { dims: exprs(&[1 << 60]) }.into();
    let error = eval_op(&beyond, std::slice::from_ref(&x)).unwrap_err();
    assert_eq!(error.to_string(), format!("{} bytes cannot be allocated", 1u64 << 62));
    let large: Op = Broadcast { dims: exprs(&[1 << 20]) }.into();
    let error = eval_op_within(&large, std::slice::from_ref(&x), Some(1000)).unwrap_err();
    assert_eq!(error, EvalError::Budget { needed: 4 << 20, left: 1000 });
    assert!(eval_op_within(&large, std::slice::from_ref(&x), Some(4 << 20)).is_ok());
    let free: Op = Broadcast { dims: vec![Expr::symbol("n")] }.into();
    assert_eq!(eval_op(&free, &[x]), Err(EvalError::Unbound("n".into())));
}

fn affine_graph() -> Graph {
    let mut graph = Graph::new("g");
    let n = Expr::symbol("N");
    graph.symbols.insert(crate::Symbol::new("N"), (1, 100));
    let a = graph.add_input("a", TensorType::new(DType::F32, vec![n.clone(), Expr::from(3i64)]));
    let b =
        graph.add_input("b", TensorType::new(DType::F32, vec![n.scale(2).add(&Expr::from(1i64)), Expr::from(3i64)]));
    let from = |name: &str| Origin::new(name);
    let both = graph.add(Concat { axis: 0 }.into(), &[a, b], &from("join")).unwrap();
    let rows = Expr::symbol("N").scale(3).add(&Expr::from(1i64));
    let flat = graph.add(Reshape { dims: vec![rows.scale(3)] }.into(), &[both], &from("flatten")).unwrap();
    let index = graph.add_constant(Tensor::from_i64(&[2], &[-1, 4]).unwrap());
    let picked = graph.add(Gather { axis: 0 }.into(), &[flat, index], &from("pick")).unwrap();
    graph.add_output("y", picked);
    graph.add_output("z", both);
    graph
}

#[test]
fn graphs_bind_symbols_and_free_values() {
    let graph = affine_graph();
    let (a, b) = (sample(DType::F32, &[2, 3], 1), sample(DType::F32, &[5, 3], 2));
    let inputs = [a.clone(), b.clone()];
    let taps = [graph.node(graph.order().unwrap()[1]).outputs[0]];
    let results = eval_graph(&graph, &inputs, &Options { taps: &taps, budget: None }).unwrap();
    let flat = [a.to_f32().unwrap(), b.to_f32().unwrap()].concat();
    assert_eq!(results[0].to_f32().unwrap(), [flat[20], flat[4]]);
    assert_eq!(results[1].shape(), [7, 3]);
    assert_eq!(results[2].to_f32().unwrap(), flat);
    // The same after the symbol is bound in the graph itself.
    let bound = graph.rebuild(&|e| e.replace(&crate::Symbol::new("N"), &Expr::from(2i64))).unwrap();
    assert_eq!(eval_graph(&bound, &inputs, &Options::default()).unwrap(), results[..2]);
    let small = eval_graph(&graph, &inputs, &Options { taps: &[], budget: Some(50) }).unwrap_err();
    assert_eq!(small.to_string(), "join: results of 84 bytes exceed the 50 bytes that are left of the memory budget");
    // A chain needs no more than two of its tensors at once.
    let mut chain = Graph::new("chain");
    let mut v = chain.add_input("x", TensorType::of(DType::F32, &[256]));
    for _ in 0..20 {
        let neg = arg_code(&[DType::F32], |code, a| code.unary(UnaryOp::Neg, a[0]).unwrap());
        v = chain.add(neg.into(), &[v], &Origin::default()).unwrap();
    }
    chain.add_output("y", v);
    let x = sample(DType::F32, &[256], 3);
    let options = Options { taps: &[], budget: Some(2048) };
    assert_eq!(eval_graph(&chain, std::slice::from_ref(&x), &options).unwrap(), std::slice::from_ref(&x));
    assert!(eval_graph(&chain, &[x], &Options { taps: &[], budget: Some(2047) }).is_err());
}

#[test]
fn a_failing_node_is_named() {
    let mut graph = Graph::new("g");
    let x = graph.add_input("x", TensorType::of(DType::F32, &[2]));
    let i = graph.add_input("i", TensorType::of(DType::I64, &[1]));
    let y = graph.add(Gather { axis: 0 }.into(), &[x, i], &Origin::new("embed/gather")).unwrap();
    graph.add_output("y", y);
    let x = Tensor::from_f32(&[2], &[1.0, 2.0]).unwrap();
    let i = Tensor::from_i64(&[1], &[2]).unwrap();
    let error = eval_graph(&graph, &[x.clone(), i], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "embed/gather: index 2 is out of range for axis 0 with extent 2");
    let error = eval_graph(&graph, &[x.clone(), x], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "axis 0 of `i` is 2, wants 1");
    let (wrong, i) = (Tensor::from_i64(&[2], &[1, 2]).unwrap(), Tensor::from_i64(&[1], &[0]).unwrap());
    let error = eval_graph(&graph, &[wrong, i], &Options::default()).unwrap_err();
    assert_eq!(error.to_string(), "input `x` is i64, wants f32");
}

#[test]
fn inputs_bind_symbols_or_say_why_not() {
    let graph = affine_graph();
    let bind = |a: [usize; 2], b: [usize; 2]| bind_inputs(&graph, &[a, b]);
    assert_eq!(bind([2, 3], [5, 3]), Ok(Bindings::from([(crate::Symbol::new("N"), 2)])));
    for (a, b, message) in [
        ([2, 3], [7, 3], "N = 2 in `a`, 3 in `b`"),
        ([2, 4], [5, 3], "axis 1 of `a` is 4, wants 3"),
        ([0, 3], [1, 3], "N = 0 in `a` is outside its range 1..100"),
        ([101, 3], [203, 3], "N = 101 in `a` is outside its range 1..100"),
    ] {
        assert_eq!(bind(a, b), Err(message.to_string()));
    }
    assert_eq!(bind_inputs(&graph, &[[1, 2]]), Err("1 inputs are given, the model takes 2".to_string()));
    let ranks: [&[usize]; 2] = [&[2, 3], &[5]];
    assert_eq!(bind_inputs(&graph, &ranks), Err("input `b` has 1 axes, wants f32[2*N + 1, 3]".to_string()));
    let mut graph = Graph::new("g");
    let (m, n) = (Expr::symbol("M"), Expr::symbol("N"));
    graph.add_input("sum", TensorType::new(DType::F32, vec![m.add(&n)]));
    graph.add_input("half", TensorType::new(DType::F32, vec![m.scale(2)]));
    let bound = bind_inputs(&graph, &[[7], [4]]).unwrap();
    assert_eq!(bound.values().copied().collect::<Vec<_>>(), [2, 5]);
    assert_eq!(bind_inputs(&graph, &[[7], [5]]), Err("axis 0 of `half` is 5, which 2*M cannot be".to_string()));
    graph.add_input("product", TensorType::new(DType::F32, vec![Expr::symbol("P").mul(&Expr::symbol("Q"))]));
    let error = bind_inputs(&graph, &[[7], [4], [6]]).unwrap_err();
    assert_eq!(error, "axis 0 of `product` is 6: P*Q does not say what its symbols are");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn contractions_agree_with_the_sum(
        (b, m, k, n) in (1usize..4, 1usize..10, 0usize..20, 1usize..12),
        order in 0usize..6,
        lhs in 0usize..3,
        seed in 0u64..1000,
    ) {
        let letters = ["bmn", "bnm", "mbn", "nbm", "mnb", "nmb"][order];
        let (lhs_letters, lhs_shape) = [("bmk", vec![b, m, k]), ("kbm", vec![k, b, m]), ("mkb", vec![m, k, b])][lhs].clone();
        let (x, y) = (sample(DType::F32, &lhs_shape, seed), sample(DType::F32, &[k, n, b], seed + 1));
        let result = run(Contract::new(lhs_letters, "knb", letters), &[x.clone(), y.clone()]);
        check(&result, |i| {
            let of = |c: char| i[letters.find(c).unwrap()];
            (0..k).map(|r| {
                let index: Vec<usize> = lhs_letters.chars().map(|c| if c == 'k' { r } else { of(c) }).collect();
                at(&x, &index) * at(&y, &[r, of('n'), of('b')])
            }).sum()
        });
    }

    #[test]
    fn convolutions_agree_with_the_sum(
        (groups, per_in, per_out) in (1usize..4, 1usize..4, 1usize..4),
        (h, k, stride, dilation) in (1usize..12, 1usize..4, 1usize..4, 1usize..4),
        seed in 0u64..1000,
    ) {
        prop_assume!((k - 1) * dilation < h);
        let x = sample(DType::F32, &[2, groups * per_in, h], seed);
        let w = sample(DType::F32, &[groups * per_out, per_in, k], seed + 1);
        let op = Conv { strides: vec![stride], dilations: vec![dilation], groups, elements: Elements::Numbers };
        check(&run(op, &[x.clone(), w.clone()]), |i| {
            indices(&[per_in, k]).iter().map(|r| {
                at(&x, &[i[0], i[1] / per_out * per_in + r[0], i[2] * stride + r[1] * dilation]) * at(&w, &[i[1], r[0], r[1]])
            }).sum()
        });
    }

    #[test]
    fn reshapes_keep_row_major_order(dims in prop::collection::vec(1usize..5, 0..4), split in 1usize..4, seed in 0u64..99) {
        let count: usize = dims.iter().product();
        let x = sample(DType::I32, &dims, seed);
        let mut target = vec![count];
        if count.is_multiple_of(split) {
            target = vec![split, 1, count / split];
        }
        let result = run(Reshape { dims: exprs(&target) }, std::slice::from_ref(&x));
        prop_assert_eq!(result.bytes(), x.bytes());
        prop_assert_eq!(result.shape(), target);
    }

    #[test]
    fn folds_agree_with_a_loop(
        dims in prop::collection::vec(1usize..40, 1..4),
        mask in 0usize..8,
        seed in 0u64..1000,
    ) {
        let axes: Vec<usize> = (0..dims.len()).filter(|n| mask >> n & 1 == 1).collect();
        let x = sample(DType::I32, &dims, seed);
        let result = run(Reduce { combine: BinaryOp::Add, axes: axes.clone(), keep: true }, std::slice::from_ref(&x));
        let mut wanted = vec![0.0; result.len()];
        for (flat, index) in indices(&dims).iter().enumerate() {
            let kept: Vec<usize> = index.iter().enumerate().map(|(n, &i)| if axes.contains(&n) { 0 } else { i }).collect();
            let to = kept.iter().zip(result.shape()).fold(0, |a, (i, d)| a * d + i);
            wanted[to] += semantics::load_f64(DType::I32, x.bytes(), flat);
        }
        prop_assert_eq!(result.to_f64().unwrap(), wanted);
    }
}
