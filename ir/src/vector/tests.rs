//! Text form, verifier and interpreter on programs written by hand.

use super::*;

const SUM: &str = "\
vector @k3(b0: f32, b1: f32 written, b2: bool written, dims 1) {
  %0: i64 = lo
  %1: i64 = dim 0
  %2: f32x4 = -0.0f32
  %20: i64 = hi
  for %3 in %0..%1 step 4 carry (%4: f32x4 = %2) {
    %5: f32x4 = load b0[%3 + 8]
    %6: f32x4 = load_strided b0[%3 - 0] by 2
    %7: f32x4 = load_splat b0[1]
    %8: f32x4 = fma(%5, %6, %7)
    %9: f32x4 = add(%4, %8)
    store b1[%3], %8
  } next (%9) as (%10)
  %11: f32 = fold_add(%10)
  %12: f32 = inf_f32
  %13: bool = lt(%11, %12)
  if %13 {
    %14: i32 = to_i32(%11)
    %15: f32 = to_f32(%14)
    %16: u32 = bits_u32(%15)
    store b1[0], %15
  } else {
    for %17 in %0..%1 step 1 {
      store b2[%17], %13
    }
  }
  fail 7 if %13
}
";

#[test]
fn the_text_form_round_trips() {
    let text = SUM.replace(" - 0]", "]");
    let program = VectorProgram::parse(SUM).unwrap();
    let printed = program.to_string();
    let again = VectorProgram::parse(&printed).unwrap();
    assert_eq!(program, again);
    assert_eq!(printed, text);
    assert_eq!(program.verify(), Ok(()));
    for (address, text) in [
        (Address { buffer: 1, index: None, offset: -3 }, "b1[-3]"),
        (Address { buffer: 1, index: Some(ValueId::from_index(2)), offset: -3 }, "b1[%2 - 3]"),
        (Address { buffer: 1, index: Some(ValueId::from_index(2)), offset: i64::MIN }, "b1[%2 + -9223372036854775808]"),
    ] {
        assert_eq!(address.to_string(), text);
        let program = format!("vector @k(dims 0) {{ %1: f32 = load {text} }}");
        let program = VectorProgram::parse(&program).unwrap();
        assert_eq!(program.body, [Stmt::Let(ValueId::from_index(1), Op::Load(address))]);
    }
}

#[test]
fn text_that_is_no_program_is_refused_with_its_place() {
    for (text, message) in [
        ("vector k(dims 0) {}", "line 1, column 9: expected a name such as `@k3`"),
        ("vector @k(b1: f32, dims 0) {}", "line 1, column 11: expected `b0`, found `b1`"),
        ("vector @k(dims 0) { %0: i64 = load b0[%x] }", "line 1, column 39: expected an integer, found `%`"),
        ("vector @k(dims 0) {\n  %0: i64x = lo }", "line 2, column 7: expected a type such as `i64` or `f32x4`"),
        ("vector @k(dims 0) { %0: i64 = frob(%1) }", "column 31: `frob` is no operation of a vector program"),
        ("vector @k(dims 0) { %0: i64 = add(%1) }", "expected 2 operands, found 1"),
        ("vector @k(dims 0) { %99999999: i64 = lo }", "the number of the value is too large"),
        ("vector @k(dims 0) { for %0 in %1..%1 step 1 carry (%2: i64 = %1) {} next () as () }", "carries 1 values"),
        ("vector @k(dims 0) { ", "expected a statement"),
        ("vector @k(dims 0) { } store", "expected the end of the program"),
    ] {
        let error = VectorProgram::parse(text).unwrap_err().to_string();
        assert!(error.contains(message), "{text}: {error}");
    }
}

#[test]
fn the_verifier_collects_every_error() {
    let text = "\
vector @k(b0: f32, b1: bf16 written, dims 1) {
  %0: i64 = lo
  %0: i64 = hi
  %1: i64 = dim 1
  %2: f32x4 = load b0[%3]
  %3: i64 = load b0[%0]
  %4: f32x3 = splat(%2)
  store b0[%0], %2
  store b7[%0], %2
  if %0 {
    %5: i64 = 1i64
  }
  %6: i64 = add(%5, %0)
  %7: f32x4 = and(%2, %2)
  %8: boolx4 = lt(%2, %2)
  store b0[%0], %8
  %9: f32 = fold_add(%2)
  %10: f32 = extract(%2, 4)
  %11: f32x4 = pack(%9, %9)
  %12: i32x4 = lt(%2, %2)
  %13: f32x4 = pow(%2, %2)
  %14: f64x4 = bits_f64(%2)
  %15: bool = true
  fail 0 if %15
  for %16 in %0..%9 step 0 carry (%17: f32x4 = %9) {
    %18: i64 = add(%16, %0)
  } next (%18) as (%19)
  %20: i64 = add(%16, %18)
  %21: i32 = 1i64
}
";
    let errors = VectorProgram::parse(text).unwrap().verify().unwrap_err();
    let errors: Vec<String> = errors.iter().map(|e| format!("{} | {}", e.statement, e.message)).collect();
    let want = [
        " | buffer b1: vector programs do not compute with bf16",
        "%0: i64 = hi | %0 is assigned a second time",
        "%1: i64 = dim 1 | there is no dim 1",
        "%2: f32x4 = load b0[%3] | %3 is not defined",
        "%3: i64 = load b0[%0] | b0 holds f32, the value is i64",
        "%4: f32x3 = splat(%2) | %2 is f32x4, wants f32",
        "%4: f32x3 = splat(%2) | %4: 3 lanes; wants a power of two up to 64",
        "store b0[%0], %2 | b0 is not declared `written`",
        "store b7[%0], %2 | there is no buffer b7",
        "if %0 { | %0 is i64, wants bool",
        "%6: i64 = add(%5, %0) | %5 is not visible here",
        "%7: f32x4 = and(%2, %2) | `and` is not defined on f32x4",
        "store b0[%0], %8 | b0 holds f32, the value is boolx4",
        "store b0[%0], %8 | masks are never in memory",
        "store b0[%0], %8 | b0 is not declared `written`",
        "%10: f32 = extract(%2, 4) | %2 is f32x4 and has no lane 4",
        "%11: f32x4 = pack(%9, %9) | 2 scalars for 4 lanes",
        "%12: i32x4 = lt(%2, %2) | the result is boolx4, declared as i32x4",
        "%13: f32x4 = pow(%2, %2) | `pow` is not defined on f32x4",
        "%14: f64x4 = bits_f64(%2) | the bits of f32x4 are no f64x4",
        "fail 0 if %15 | status 0 means success",
        "for %16 in %0..%9 step 0 carry (%17: f32x4 = %9) { | %9 is f32, wants i64",
        "for %16 in %0..%9 step 0 carry (%17: f32x4 = %9) { | the step is 0, wants at least 1",
        "for %16 in %0..%9 step 0 carry (%17: f32x4 = %9) { | %9 is f32, wants f32x4",
        "for %16 in %0..%9 step 0 carry (%17: f32x4 = %9) { | %18 is i64, wants f32x4",
        "%20: i64 = add(%16, %18) | %16 is not visible here",
        "%20: i64 = add(%16, %18) | %18 is not visible here",
        "%21: i32 = 1i64 | the result is i64, declared as i32",
    ];
    assert_eq!(errors, want);
}

/// Runs a program on f32 buffers.
fn run_f32(text: &str, buffers: &mut [Vec<f32>], dims: &[i64]) -> Result<u32, InterpError> {
    let program = VectorProgram::parse(text).unwrap();
    let mut bytes: Vec<Vec<u8>> = buffers.iter().map(|b| b.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
    let mut views: Vec<&mut [u8]> = bytes.iter_mut().map(Vec::as_mut_slice).collect();
    let status = run(&program, &mut views, dims, 0, 1, true);
    for (out, bytes) in buffers.iter_mut().zip(&bytes) {
        *out = bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    }
    status
}

#[test]
fn a_sum_of_products() {
    let text = "\
vector @dot(b0: f32, b1: f32 written, dims 1) {
  %0: i64 = lo
  %1: i64 = dim 0
  %2: f32x4 = 0.0f32
  for %3 in %0..%1 step 4 carry (%4: f32x4 = %2, %5: i64 = %0) {
    %6: f32x4 = load b0[%3]
    %7: f32x4 = load_strided b0[%3 + 3] by -1
    %8: f32x4 = fma(%6, %7, %4)
    %9: i64 = add(%5, %3)
  } next (%8, %9) as (%10, %11)
  %12: f32 = fold_add(%10)
  store b1[%0], %12
  %13: f32 = to_f32(%11)
  store b1[1], %13
  %14: i64 = 4i64
  %15: bool = ge(%11, %14)
  if %15 {
    store b1[2], %13
  }
  fail 9 if %15
  store b1[3], %13
}
";
    let mut buffers = [(1u8..=8).map(f32::from).collect(), vec![0.0; 4]];
    assert_eq!(run_f32(text, &mut buffers, &[8]), Ok(9));
    // 1*4 + 2*3 + 3*2 + 4*1 and 5*8 + 6*7 + 7*6 + 8*5
    assert_eq!(buffers[1], [20.0 + 164.0, 4.0, 4.0, 0.0]);
    assert_eq!(run_f32(text, &mut buffers, &[4]), Ok(0));
    assert_eq!(buffers[1], [20.0, 0.0, 4.0, 0.0]);
    assert_eq!(run_f32(text, &mut buffers, &[0]), Ok(0));
    assert_eq!(buffers[1], [0.0, 0.0, 4.0, 0.0]);

    let error = run_f32(text, &mut buffers, &[9]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vector program @dot: `%6: f32x4 = load b0[%3]`: element 8 of b0, which holds 8 elements"
    );
    assert!(matches!(run_f32(text, &mut buffers[..1], &[4]), Err(InterpError::Arguments { .. })));
    assert!(matches!(run_f32(text, &mut buffers, &[]), Err(InterpError::Arguments { .. })));
}

#[test]
fn carried_values_are_exchanged_at_once() {
    let text = "\
vector @swap(b0: f32 written, dims 1) {
  %0: i64 = lo
  %1: i64 = dim 0
  %2: f32 = 1.0f32
  %3: f32 = 2.0f32
  for %4 in %0..%1 step 1 carry (%5: f32 = %2, %6: f32 = %3) {
  } next (%6, %5) as (%7, %8)
  store b0[0], %7
  store b0[1], %8
}
";
    let mut buffers = [vec![0.0; 2]];
    assert_eq!(run_f32(text, &mut buffers, &[3]), Ok(0));
    assert_eq!(buffers[0], [2.0, 1.0]);
}

#[test]
fn a_fused_product_rounds_once() {
    let text = "\
vector @fma(b0: f32 written, dims 0) {
  %0: f32 = load b0[0]
  %1: f32 = load b0[1]
  %2: f32 = fma(%0, %0, %1)
  store b0[2], %2
}
";
    let x = 1.0 + f32::EPSILON;
    let mut buffers = [vec![x, -1.0 - 2.0 * f32::EPSILON, 0.0]];
    assert_eq!(run_f32(text, &mut buffers, &[]), Ok(0));
    assert_eq!(buffers[0][2], f32::EPSILON * f32::EPSILON);
    let program = VectorProgram::parse(text).unwrap();
    let mut bytes: Vec<u8> = buffers[0].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!(run(&program, &mut [&mut bytes], &[], 0, 1, false), Ok(0));
    assert_eq!(&bytes[8..], [0; 4]);
}

#[test]
fn casts_follow_the_table() {
    use crate::dtype::DType::*;
    let text = "\
vector @cast(b0: f64, b1: f64 written, dims 0) {
  %0: f64 = load b0[0]
  %1: FROM = to_FROM(%0)
  %2: TO = to_TO(%1)
  %3: f64 = to_f64(%2)
  store b1[0], %3
}
";
    for (x, from, to, want) in [
        (f64::NAN, F64, I32, 0.0),
        (1e30, F64, I32, 2147483647.0),
        (-1e30, F32, I8, -128.0),
        (-0.9, F64, U8, 0.0),
        (300.0, F32, U8, 255.0),
        (300.0, I32, U8, 44.0),
        (-1.0, I8, U64, 18446744073709551615.0),
        (-1.0, I8, U16, 65535.0),
        (f64::NAN, F32, Bool, 1.0),
        (256.0, I32, Bool, 1.0),
        (16777217.0, I64, F32, 16777216.0),
        (1e20, F64, U64, 18446744073709551615.0),
        // One rounding: through f64 it would be 2^62 exactly and half-way cases would go to even.
        (4611686293305294849.0, U64, F32, 4611686018427387904.0),
    ] {
        let text = text.replace("FROM", from.name()).replace("TO", to.name());
        let program = VectorProgram::parse(&text).unwrap();
        let mut out = [0u8; 8];
        assert_eq!(run(&program, &mut [&mut x.to_le_bytes(), &mut out], &[], 0, 1, true), Ok(0));
        assert_eq!(f64::from_le_bytes(out), want, "{x} as {from} as {to}");
    }
}

#[test]
fn halves_are_widened_and_rounded() {
    let text = "\
vector @halves(b0: f16, b1: f16 written, b2: f32 written, dims 0) {
  %0: f32x4 = load_wide b0[0]
  %1: f32 = load_wide b0[3]
  %2: f32x4 = splat(%1)
  %3: f32x4 = div(%0, %2)
  %4: f32x4 = round_f16(%3)
  store b1[0], %3
  store b2[0], %4
}
";
    let program = VectorProgram::parse(text).unwrap();
    assert_eq!(program.to_string(), text);
    let halves = |values: [f32; 4]| values.map(|v| half::f16::from_f32(v).to_le_bytes()).concat();
    let (mut from, mut to, mut rounded) = (halves([1.0, 2.0, -1e-7, 3.0]), vec![0u8; 8], vec![0u8; 16]);
    run(&program, &mut [&mut from, &mut to, &mut rounded], &[], 0, 1, true).unwrap();
    assert_eq!(to, halves([1.0 / 3.0, 2.0 / 3.0, -3.9736e-8, 1.0]));
    let kept: Vec<f32> = rounded.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(kept[..2], [0.333_251_95, 0.666_503_9]);
    let wrong = text.replace("f32x4 = load_wide", "i32x4 = load_wide");
    assert!(VectorProgram::parse(&wrong).unwrap().verify().is_err());
}
