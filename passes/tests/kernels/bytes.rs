//! Products of bytes: quantized convolutions, matrix products and attention.

use crate::check;
use kiln_ir::DType;
use kiln_passes::pipeline::Compiled;

/// A quantized convolution with a border as exporters write it, on `pixels` of that many channels. All scales are powers of two: what
/// integers compute is exactly what the floats come to.
fn quantized_convolution(dtype: &str, zero: i64, x: [usize; 4], w: [usize; 4], data: usize, groups: usize) -> Compiled {
    let [n, c, h, width] = x;
    let (rows, columns) = (h + 2 - w[2] + 1, width + 2 - w[3] + 1);
    let out = format!("[{n}, {}, {rows}, {columns}]", w[0]);
    let (low, high) = if dtype == "u8" { (0.0, 255.0) } else { (-128.0, 127.0) };
    check(&format!(
        "input %0 : f32[{n}, {c}, {h}, {width}]
         const %1 : f32[] = [0.015625f32]
         const %2 : {dtype}[] = [{zero}{dtype}]
         %3 = map(%0, %1, %2) body = {{ to_{dtype}(min(max(add(round(div(a0, a1)), to_f32(a2)), {low:?}f32), {high:?}f32)) }}
            : {dtype}[{n}, {c}, {h}, {width}]
         %4 = map(%3, %1, %2) body = {{ mul(to_f32(sub(to_i32(a0), to_i32(a2))), a1) }} : f32[{n}, {c}, {h}, {width}]
         %5 = pad(%4) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32
            : f32[{n}, {c}, {}, {}]
         const %6 : i8{w:?} = data {data}
         const %7 : f32[] = [0.0078125f32]
         %8 = map(%6, %7) body = {{ mul(to_f32(a0), a1) }} : f32{w:?}
         %9 = conv(%5, %8) strides = [1, 1], dilations = [1, 1], groups = {groups} : f32{out}
         const %10 : f32[1, 1, 1] = [0.25f32]
         %11 = map(%9, %10) body = {{ add(a0, a1) }} : f32{out}
         %12 = map(%11) body = {{ max(a0, 0.0f32) }} : f32{out}
         const %13 : f32[] = [0.0625f32]
         const %14 : u8[] = [3u8]
         %15 = map(%12, %13, %14) body = {{ to_u8(min(max(add(round(div(a0, a1)), to_f32(a2)), 0.0f32), 255.0f32)) }} : u8{out}
         output %15 \"y\"",
        h + 2,
        width + 2
    ))
}

/// The kernels of products of bytes.
fn byte_products(c: &Compiled) -> usize {
    c.kernels[0].iter().filter(|k| k.to_string().contains("dot4")).count()
}

#[test]
fn quantized_convolutions_are_products_of_bytes() {
    for (dtype, zero) in [("u8", 0), ("u8", 7), ("i8", -3)] {
        // Channels that are packed in place, that are not, and one for each group.
        for (x, w, data, groups) in [
            ([1, 8, 7, 9], [24, 8, 3, 3], 6, 1),
            ([2, 3, 6, 5], [5, 3, 2, 2], 9, 1),
            ([1, 16, 5, 6], [16, 1, 3, 3], 7, 16),
        ] {
            let c = quantized_convolution(dtype, zero, x, w, data, groups);
            assert_eq!(byte_products(&c), 1, "{}", c.plan);
        }
    }
}

#[test]
fn integer_products_take_zero_points_out_of_the_sum() {
    for m in [1, 5, 40] {
        for (dtype, zero) in [("u8", ""), ("i8", ""), ("u8", "const %1 : u8[] = [200u8]")] {
            let given = if zero.is_empty() { format!("input %1 : {dtype}[]") } else { zero.into() };
            let c = check(&format!(
                "input %0 : {dtype}[{m}, 30]
                 {given}
                 const %2 : i8[30, 21] = data 8
                 %3 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[{m}, 30]
                 %4 = map(%2) body = {{ to_i32(a0) }} : i32[30, 21]
                 %5 = contract(%3, %4) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : i32[{m}, 21]
                 output %5 \"y\""
            ));
            assert_eq!(byte_products(&c), 1, "{}", c.plan);
        }
    }
}

/// Weights whose zero point is far from their middle are no signed bytes without it.
#[test]
fn weights_with_any_zero_point_are_products_of_bytes() {
    for (dtype, zero) in [("u8", "7"), ("i8", "-3")] {
        for (m, letters) in [(1, "mn"), (5, "nm")] {
            let made = if letters == "mn" { format!("[{m}, 21]") } else { format!("[21, {m}]") };
            let c = check(&format!(
                "input %0 : {dtype}[{m}, 30]\n const %1 : {dtype}[] = [{zero}{dtype}]
                 const %2 : i8[30, 21] = data 8\n const %3 : i8[] = [60i8]
                 %4 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[{m}, 30]
                 %5 = map(%2, %3) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[30, 21]
                 %6 = contract(%4, %5) lhs = \"mk\", rhs = \"kn\", out = \"{letters}\" : i32{made}
                 output %6 \"y\""
            ));
            assert!(byte_products(&c) >= 1, "{}", c.plan);
        }
        for (x, w, made, data, groups, strides) in [
            ("[1, 8, 7, 9]", "[24, 8, 3, 3]", "[1, 24, 3, 4]", 6, 1, "[2, 2]"),
            ("[2, 3, 6, 5]", "[5, 3, 2, 2]", "[2, 5, 5, 4]", 9, 1, "[1, 1]"),
            ("[1, 16, 5, 6]", "[16, 1, 3, 3]", "[1, 16, 3, 4]", 7, 16, "[1, 1]"),
        ] {
            let c = check(&format!(
                "input %0 : {dtype}{x}\n const %1 : {dtype}[] = [{zero}{dtype}]
                 const %2 : i8{w} = data {data}\n const %3 : i8[] = [60i8]
                 %4 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32{x}
                 %5 = map(%2, %3) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32{w}
                 %6 = conv(%4, %5) strides = {strides}, dilations = [1, 1], groups = {groups} : i32{made}
                 output %6 \"y\""
            ));
            assert!(byte_products(&c) >= 1, "{}", c.plan);
        }
    }
}

#[test]
fn products_of_two_activations_are_products_of_bytes() {
    for (left, right) in [("u8", "i8"), ("u8", "u8"), ("i8", "i8"), ("i8", "u8")] {
        for (m, k, n) in [(1, 30, 21), (5, 32, 40)] {
            for known in [true, false] {
                let zero = |at: &str, dtype: &str, value: &str| match known {
                    true => format!("const {at} : {dtype}[] = [{value}{dtype}]"),
                    false => format!("input {at} : {dtype}[]"),
                };
                let c = check(&format!(
                    "input %0 : {left}[2, {m}, {k}]
                     input %1 : {right}[2, {n}, {k}]
                     {}
                     {}
                     %4 = map(%0, %2) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[2, {m}, {k}]
                     %5 = map(%1, %3) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[2, {n}, {k}]
                     %6 = contract(%4, %5) lhs = \"bmk\", rhs = \"bnk\", out = \"bmn\" : i32[2, {m}, {n}]
                     %7 = contract(%5, %4) lhs = \"bnk\", rhs = \"bmk\", out = \"mbn\" : i32[{m}, 2, {n}]
                     output %6 \"y\"\n output %7 \"turned\"",
                    zero("%2", left, "3"),
                    zero("%3", right, "100"),
                ));
                assert!(byte_products(&c) >= 2, "{}", c.plan);
            }
        }
    }
}

/// Attention of a model in which every value is quantized.
#[test]
fn quantized_attention_stays_in_bytes() {
    let quantize = |from: &str, to: &str, dims: &str, (scale, zero): (&str, u8)| {
        format!(
            "const {to}1 : f32[] = [{scale}f32]\n const {to}2 : u8[] = [{zero}u8]
             {to}3 = map({from}, {to}1, {to}2)
                body = {{ to_u8(min(max(add(round(div(a0, a1)), to_f32(a2)), 0.0f32), 255.0f32)) }} : u8{dims}
             {to} = map({to}3, {to}1, {to}2) body = {{ mul(to_f32(sub(to_i32(a0), to_i32(a2))), a1) }} : f32{dims}\n"
        )
    };
    let head = |from: &str, to: &str, perm: &str, made: &str| {
        let line = ("0.015625", 120);
        format!(
            "{}{to}5 = reshape({to}4) dims = [1, 6, 2, 8] : f32[1, 6, 2, 8]\n{}
             {to}7 = transpose({to}6) perm = {perm} : f32{made}\n{}",
            quantize(from, &format!("{to}4"), "[1, 6, 16]", line),
            quantize(&format!("{to}5"), &format!("{to}6"), "[1, 6, 2, 8]", line),
            quantize(&format!("{to}7"), to, made, line),
        )
    };
    let text = format!(
        "input %0 : f32[1, 6, 16]\n input %1 : f32[1, 6, 16]\n input %2 : f32[1, 6, 16]
         {}{}{}%7 = contract(%4, %5) lhs = \"bhmk\", rhs = \"bhkn\", out = \"bhmn\" : f32[1, 2, 6, 6]
         {}%9 = contract(%8, %6) lhs = \"bhmk\", rhs = \"bhkn\", out = \"bhmn\" : f32[1, 2, 6, 8]
         {}output %39 \"y\"",
        head("%0", "%4", "[0, 2, 1, 3]", "[1, 2, 6, 8]"),
        head("%1", "%5", "[0, 2, 3, 1]", "[1, 2, 8, 6]"),
        head("%2", "%6", "[0, 2, 1, 3]", "[1, 2, 6, 8]"),
        quantize("%7", "%8", "[1, 2, 6, 6]", ("0.03125", 128)),
        quantize("%9", "%39", "[1, 2, 6, 8]", ("0.0625", 110)),
    );
    let c = check(&text);
    assert!(byte_products(&c) >= 2, "{}", c.plan);
    // Nothing but the model's inputs and its output is in memory as floats.
    let floats = c.scheduled.groups().filter(|g| c.scheduled.graph.ty(g.output).dtype == DType::F32).count();
    assert_eq!(floats, 1, "{}", c.plan);
}

#[test]
fn sums_begin_with_one_of_the_numbers_that_are_added() {
    for (m, n) in [(1, 20), (6, 64), (40, 33)] {
        check(&format!(
            "input %0 : i32[{m}, 32]
             input %1 : i32[32, {n}]
             input %2 : i32[{n}]
             input %3 : i32[{n}]
             %4 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : i32[{m}, {n}]
             %5 = map(%4, %2) body = {{ add(a0, a1) }} : i32[{m}, {n}]
             %6 = map(%5, %3) body = {{ add(mul(add(a0, a1), 3i32), a1) }} : i32[{m}, {n}]
             output %6 \"y\""
        ));
    }
}

#[test]
fn rounded_floats_that_were_bytes_have_no_negative_zero() {
    // 1 / -0 is below 0.
    let c = check(
        "input %0 : f32[3, 40]
         %1 = map(%0) body = { to_i8(to_i32(round(min(select(lt(-128.0f32, a0), a0, -128.0f32), 127.0f32)))) } : i8[3, 40]
         %2 = map(%1) body = { select(lt(div(1.0f32, to_f32(a0)), 0.0f32), -1.0f32, 1.0f32) } : f32[3, 40]
         output %2 \"y\"",
    );
    assert_eq!(c.kernels[0].len(), 1, "{}", c.plan);
    assert!(!c.kernels[0][0].to_string().contains("to_i32"), "{}", c.kernels[0][0]);
    // Nothing is below 0; and what is too large for the byte wraps.
    check(
        "input %0 : f32[3, 40]
         %1 = map(%0) body = { to_u8(to_i32(round(min(select(lt(0.0f32, a0), a0, 0.0f32), 255.0f32)))) } : u8[3, 40]
         %2 = map(%1) body = { select(lt(div(1.0f32, to_f32(a0)), 0.0f32), -1.0f32, 1.0f32) } : f32[3, 40]
         %3 = map(%0) body = { to_u8(to_i32(round(min(select(lt(-300.0f32, mul(a0, 300.0f32)), mul(a0, 300.0f32), -300.0f32), 300.0f32)))) }
            : u8[3, 40]
         %4 = map(%3) body = { add(to_f32(a0), 0.5f32) } : f32[3, 40]
         output %2 \"y\"
         output %4 \"z\"",
    );
}
