//! Each function over all magnitudes against libm in f64, through the interpreter of vector programs.

use crate::lower::build::{At, Builder};
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::vector::{self, Address, For, Op, Stmt, ValueId, VectorProgram, VectorType};
use kiln_ir::{DType, semantics};

/// A program that applies a function to whole vectors of its inputs, all of one type.
fn program(
    dtype: DType,
    lanes: u32,
    inputs: usize,
    f: impl FnOnce(&mut At<'_>, &[ValueId]) -> ValueId,
) -> VectorProgram {
    let mut builder = Builder::new([vec![false; inputs], vec![true]].concat(), lanes as usize * dtype.size() == 64);
    let i64 = VectorType::scalar(DType::I64);
    let (lo, hi) = (builder.emit(0, i64, Op::Lo), builder.emit(0, i64, Op::Hi));
    builder.open();
    let var = builder.fresh(1, i64);
    let ty = VectorType { dtype, lanes };
    let place = |buffer| Address { buffer, index: Some(var), offset: 0 };
    let operands: Vec<_> = (0..inputs).map(|b| builder.emit(1, ty, Op::Load(place(b)))).collect();
    let result = f(&mut builder.at(1), &operands);
    builder.push(1, Stmt::Store(place(inputs), result));
    let body = builder.close();
    builder.push(0, Stmt::For(For { var, lo, hi, step: i64::from(lanes), carried: Vec::new(), body }));
    let (values, body) = builder.finish();
    let buffers = (0..=inputs).map(|b| (dtype, b == inputs)).collect();
    VectorProgram { name: "math".into(), buffers, locals: vec![], dims: 0, values, body }
}

fn bytes(dtype: DType, values: &[f64]) -> Vec<u8> {
    let mut out = Vec::new();
    for &v in values {
        match dtype {
            DType::F64 => out.extend_from_slice(&v.to_le_bytes()),
            _ => semantics::store_f32(dtype, v as f32, &mut out),
        }
    }
    out
}

fn apply(program: &VectorProgram, dtype: DType, inputs: &[Vec<f64>], fused: bool) -> Vec<f64> {
    let count = inputs[0].len();
    let mut data: Vec<Vec<u8>> = inputs.iter().map(|v| bytes(dtype, v)).collect();
    data.push(vec![0; count * dtype.size()]);
    let mut buffers: Vec<&mut [u8]> = data.iter_mut().map(Vec::as_mut_slice).collect();
    assert_eq!(vector::run(program, &mut buffers, &[], 0, count as i64, fused), Ok(0));
    let out = &data[inputs.len()];
    (0..count).map(|i| semantics::load_f64(dtype, out, i)).collect()
}

/// The distance between a result and the exact value (which for f64 is rounded) in units in the last place of the
/// exact value's rounding; 0 where both are NaN, or the same infinity or zero.
fn ulps(dtype: DType, got: f64, exact: f64) -> f64 {
    if got.is_nan() || exact.is_nan() {
        return if got.is_nan() && exact.is_nan() { 0.0 } else { f64::INFINITY };
    }
    let rounded = if dtype == DType::F32 { f64::from(exact as f32) } else { exact };
    if got == rounded {
        let same_sign = got.is_sign_negative() == rounded.is_sign_negative();
        return if got != 0.0 || same_sign { 0.0 } else { f64::INFINITY };
    }
    if rounded.is_infinite() || got.is_infinite() {
        // Off by one at the edge of overflow.
        let largest = if dtype == DType::F32 { f64::from(f32::MAX) } else { f64::MAX };
        return if got.abs().min(rounded.abs()) == largest && got.signum() == rounded.signum() {
            1.0
        } else {
            f64::INFINITY
        };
    }
    let ulp = if dtype == DType::F32 {
        let r = (rounded as f32).abs();
        f64::from(f32::from_bits(r.to_bits() + 1)) - f64::from(r)
    } else {
        f64::from_bits(rounded.abs().to_bits() + 1) - rounded.abs()
    };
    (got - exact).abs() / ulp
}

/// Values of all magnitudes and signs, the special ones, and some that are dense where functions have their joints.
fn values(dtype: DType) -> Vec<f64> {
    let mut all = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        88.72283,
        88.72284,
        -87.33654,
        -103.97207,
        -103.97209,
        -103.28,
        709.782712893384,
        709.7827128933841,
        -708.4,
        -745.13321910194,
        -745.1332191019412,
        0.92,
        0.9199999,
        4.0,
        3.99999,
        9.01,
        std::f64::consts::LN_2,
        std::f64::consts::PI,
        1e9,
        1.0000001,
        0.99999994,
        0.41421357,
        2.4142137,
    ];
    if dtype == DType::F32 {
        // About 65,000 patterns with all exponents, a prime apart.
        let mut bits = 0u32;
        while let Some(next) = bits.checked_add(65_537) {
            all.push(f64::from(f32::from_bits(bits)));
            bits = next;
        }
        all.extend([f32::MAX, f32::MIN_POSITIVE, f32::from_bits(1), -f32::from_bits(1)].map(f64::from));
    } else {
        let mut bits = 0u64;
        while let Some(next) = bits.checked_add(0x0001_2345_6789_abcd * 2) {
            all.push(f64::from_bits(bits));
            bits = next;
        }
        all.extend([f64::MAX, f64::MIN_POSITIVE, 5e-324, -5e-324]);
    }
    for i in -20_000..20_000 {
        all.push(f64::from(i) * 0.000_513_7);
        all.push(f64::from(i) * 0.005_3);
    }
    while all.len() % 16 != 0 {
        all.push(0.25);
    }
    all
}

/// Checks a function with and without fused multiply-add, on vectors and on scalars.
fn check(op: UnaryOp, dtype: DType, bound: f64) {
    let all = values(dtype);
    let narrow = 16 / dtype.size() as u32;
    // Vectors of 64 bytes have operations of their own.
    for (lanes, fused) in [(narrow, true), (narrow, false), (4 * narrow, true), (1, true)] {
        let program = program(dtype, lanes, 1, |code, x| super::unary(code, op, x[0]).expect("a function"));
        let results = apply(&program, dtype, std::slice::from_ref(&all), fused);
        let mut worst = (0.0, 0.0, 0.0);
        for (&x, &y) in all.iter().zip(&results) {
            let x = if dtype == DType::F32 { f64::from(x as f32) } else { x };
            let exact = semantics::unary_f64(op, x);
            let off = ulps(dtype, y, exact);
            assert!(off <= bound, "{}({x:?}) = {y:?}, exactly {exact:?}: {off} ulp, fused {fused}", op.name());
            if off > worst.0 {
                worst = (off, x, y);
            }
        }
        println!("{} of {dtype}x{lanes}, fused {fused}: at most {:.3} ulp, at {:?}", op.name(), worst.0, worst.1);
    }
}

#[test]
fn single_precision() {
    for (op, bound) in [
        (UnaryOp::Exp, 1.5),
        (UnaryOp::Log, 1.0),
        (UnaryOp::Tanh, 2.0),
        (UnaryOp::Sigmoid, 2.0),
        (UnaryOp::Erf, 1.5),
        (UnaryOp::Recip, 0.5),
        (UnaryOp::Sign, 0.0),
    ] {
        check(op, DType::F32, bound);
    }
}

#[test]
fn single_precision_by_way_of_double() {
    for op in [
        UnaryOp::Tan,
        UnaryOp::Asin,
        UnaryOp::Acos,
        UnaryOp::Atan,
        UnaryOp::Sinh,
        UnaryOp::Cosh,
        UnaryOp::Asinh,
        UnaryOp::Acosh,
        UnaryOp::Atanh,
        UnaryOp::Sin,
        UnaryOp::Cos,
    ] {
        check(op, DType::F32, 1.0);
    }
}

#[test]
fn double_precision() {
    // libm itself is off by up to 1 ulp.
    for (op, bound) in [
        (UnaryOp::Exp, 2.0),
        (UnaryOp::Log, 2.0),
        (UnaryOp::Tanh, 4.0),
        (UnaryOp::Sigmoid, 3.0),
        (UnaryOp::Recip, 0.5),
        (UnaryOp::Sign, 0.0),
    ] {
        check(op, DType::F64, bound);
    }
}

/// Special values and a spread of others, each with each.
fn pairs() -> (Vec<f64>, Vec<f64>) {
    let mut some = vec![
        0.0,
        -0.0,
        1.0,
        -1.0,
        2.0,
        -2.0,
        3.0,
        -3.0,
        0.5,
        -0.5,
        2.5,
        -2.5,
        1e-40,
        1e38,
        -1e38,
        7.0,
        16_777_215.0,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        1.000_001,
        0.999_999,
        88.0,
        -149.0,
        1e-45,
        3.4e38,
        0.1,
        1e10,
        -7.3,
    ];
    let mut x = 0.000_37;
    while some.len() < 100 {
        some.push(if some.len().is_multiple_of(3) { -x } else { x });
        x *= 1.7;
    }
    let x = some.iter().flat_map(|&x| some.iter().map(move |_| x)).collect();
    let y = some.iter().flat_map(|_| some.iter().copied()).collect();
    (x, y)
}

#[test]
fn powers_and_remainders() {
    let (x, y) = pairs();
    for (op, bound) in [(BinaryOp::Pow, 1.0), (BinaryOp::Rem, 0.0), (BinaryOp::Mod, 0.0)] {
        for fused in [true, false] {
            let program = program(DType::F32, 4, 2, |code, v| match op {
                BinaryOp::Pow => super::pow(code, v[0], v[1]).expect("f32"),
                _ => super::remainder(code, v[0], v[1], op == BinaryOp::Mod).expect("f32"),
            });
            let results = apply(&program, DType::F32, &[x.clone(), y.clone()], fused);
            for ((&x, &y), &z) in x.iter().zip(&y).zip(&results) {
                let (x, y) = (f64::from(x as f32), f64::from(y as f32));
                let exact = match op {
                    BinaryOp::Pow => semantics::binary_f64(BinaryOp::Pow, x, y),
                    _ => f64::from(semantics::binary_f32(op, x as f32, y as f32)),
                };
                let off = ulps(DType::F32, z, exact);
                assert!(off <= bound, "{}({x:?}, {y:?}) = {z:?}, wants {exact:?}: {off} ulp", op.name());
            }
        }
    }
}

/// Factors and sums of all magnitudes: a product beyond f32's range that the sum brings back, one that stays there, both signs.
#[test]
fn dot_products_of_pairs_round_once_where_products_are_beyond_f32() {
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let mut inputs = vec![vec![], vec![], vec![]];
    for n in 0..40_000u32 {
        // Exponents: any ones, and every other time a product of about 2^128 onto a sum that is just in range.
        let left = 128 + random() % 127;
        let exponents = if n % 2 == 0 { [left, 381 - left, 254] } else { [0; 3].map(|_| random() % 255) };
        for (list, exponent) in inputs.iter_mut().zip(exponents) {
            let other = random();
            list.push(f64::from(f32::from_bits(other << 31 | exponent << 23 | (other >> 1) & 0x7f_ffff)));
        }
    }
    let bits = |x: f64| i64::from((x as f32).to_bits() as i32);
    let mut rescued = 0;
    for fused in [true, false] {
        let program = program(DType::F32, 4, 3, |code, v| {
            let (a, b) = (code.bits(DType::I32, v[0]), code.bits(DType::I32, v[1]));
            super::dot_of_pairs(code, a, b, v[2], fused)
        });
        let results = apply(&program, DType::F32, &inputs, fused);
        for (i, &got) in results.iter().enumerate() {
            let (a, b, sum) = (inputs[0][i], inputs[1][i], inputs[2][i]);
            let exact = semantics::dot2(bits(a), bits(b), sum as f32);
            let high = |x: f64| f32::from_bits(bits(x) as u32 & 0xffff_0000);
            rescued += usize::from((high(a) * high(b)).is_infinite() && exact.is_finite());
            let same = got as f32 == exact || got.is_nan() && exact.is_nan();
            assert!(
                same || exact.abs() < 1e-30,
                "dot2({a:?}, {b:?}) onto {sum:?} = {got:?}, wants {exact:?}, fused {fused}"
            );
        }
    }
    assert!(rescued > 10, "only {rescued} sums bring a product back");
}

#[test]
fn integer_powers() {
    for dtype in [DType::I32, DType::U32, DType::I64, DType::U64] {
        let some: Vec<i64> = vec![0, 1, -1, 2, -2, 3, 5, 31, 32, 33, -7, 63, 64, 1 << 30, i64::MIN, i64::MAX];
        let some: Vec<i64> = some.into_iter().map(|x| semantics::wrap(dtype, x)).collect();
        let (mut x, mut y, mut z) = (Vec::new(), Vec::new(), vec![0u8; 256 * dtype.size()]);
        for &a in &some {
            for &b in &some {
                semantics::store_i64(dtype, a, &mut x);
                semantics::store_i64(dtype, b, &mut y);
            }
        }
        let lanes = if dtype.size() == 4 { 4 } else { 1 };
        let program = program(dtype, lanes, 2, |code, v| super::int_pow(code, v[0], v[1]));
        let mut buffers = [x.as_mut_slice(), y.as_mut_slice(), z.as_mut_slice()];
        assert_eq!(vector::run(&program, &mut buffers, &[], 0, 256, true), Ok(0));
        for (i, (a, b)) in some.iter().flat_map(|a| some.iter().map(move |b| (*a, *b))).enumerate() {
            let want = semantics::binary_int(BinaryOp::Pow, dtype, a, b);
            assert_eq!(Constant::load(dtype, &z, i).and_then(Constant::as_i64), want, "{a} ^ {b} of {dtype}");
        }
    }
}
