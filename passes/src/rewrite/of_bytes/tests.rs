use crate::rewrite::functions_of_bytes;
use kiln_ir::graph::Graph;
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::ops::{Map, Op};
use kiln_ir::scalar::{BinaryOp, Scalar};
use kiln_ir::{DType, Tensor};

/// The maps of the lines, applied to all pairs of bytes, before and after: whether they became one map without a division. The results
/// are the same.
fn replaced(a: DType, b: DType, maps: &str, result: &str) -> bool {
    let (a_name, b_name) = (a.name(), b.name());
    let to = if result == "%8" { "u8" } else { "i8" };
    let text = format!(
        "graph \"g\" {{\n input %0 : {a_name}[256, 256]\n input %1 : {b_name}[256, 256]\n{maps} : {to}[256, 256]\n output {result} \"y\"\n}}"
    );
    let graph = Graph::parse(&text, &[]).unwrap();
    let made = functions_of_bytes(&graph).unwrap();
    let rows: Vec<u8> = (0..1 << 16).map(|n: u32| (n >> 8) as u8).collect();
    let columns: Vec<u8> = (0..1 << 16).map(|n: u32| n as u8).collect();
    let inputs = [(a, rows), (b, columns)].map(|(dtype, bytes)| Tensor::new(dtype, vec![256, 256], bytes).unwrap());
    let run = |g: &Graph| eval_graph(g, &inputs, &Options::default()).unwrap()[0].bytes().to_vec();
    assert_eq!(run(&graph), run(&made), "{made}");
    let maps: Vec<&Map> =
        made.nodes().filter_map(|(_, n)| if let Op::Map(m) = &n.op { Some(m) } else { None }).collect();
    let divides = |m: &Map| m.body.nodes().any(|(_, n)| matches!(n, Scalar::Binary(BinaryOp::Div, ..)));
    maps.len() == 1 && !divides(maps[0])
}

/// A rectified sum of two dequantized bytes, quantized.
fn sum(a: (f32, i64), b: (f32, i64), y: (f32, i64)) -> String {
    let ((sa, za), (sb, zb), (sy, zy)) = (a, b, y);
    format!(
        " %2 = map(%0) body = {{ mul(to_f32(sub(to_i32(a0), {za}i32)), {sa:?}f32) }} : f32[256, 256]
         %3 = map(%1) body = {{ mul(to_f32(sub(to_i32(a0), {zb}i32)), {sb:?}f32) }} : f32[256, 256]
         %4 = map(%2, %3) body = {{ add(a0, a1) }} : f32[256, 256]
         %5 = map(%4) body = {{ max(a0, 0.0f32) }} : f32[256, 256]
         %8 = map(%5) body = {{ to_u8(min(max(add(round(div(a0, {sy:?}f32)), {zy:?}.0f32), 0.0f32), 255.0f32)) }}"
    )
}

#[test]
fn sums_are_two_multiply_adds() {
    let mut state = 7u32;
    let mut random = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 8
    };
    let mut done = 0;
    for _ in 0..24 {
        let mut scale = || 0.001 + random() as f32 / (1 << 24) as f32 * 0.2;
        let scales = [scale(), scale(), scale()];
        let mut zero = || i64::from(random() % 256);
        let zeros = [zero(), zero(), zero()];
        let maps = sum((scales[0], zeros[0]), (scales[1], zeros[1]), (scales[2], zeros[2]));
        done += usize::from(replaced(DType::U8, DType::U8, &maps, "%8"));
    }
    assert!(done >= 23, "{done}");
    // Where halves are everywhere, an odd zero point is added after rounding.
    assert!(replaced(DType::U8, DType::U8, &sum((0.5, 0), (0.5, 0), (1.0, 3)), "%8"));
    assert!(replaced(DType::U8, DType::I8, &sum((0.25, 7), (0.5, -3), (1.0, 0)), "%8"));
}

#[test]
fn scales_of_any_kind_keep_their_results() {
    for scale in ["1e-45", "1e-38", "3e38", "inf_", "nan_", "minus_inf_", "-0.5", "0.0"] {
        let number = |s: &str| format!("{s}f32");
        for at in 0..3 {
            let scales: Vec<String> =
                (0..3).map(|n| number(if n == at { scale } else { ["0.02", "0.03", "0.05"][n] })).collect();
            let maps = format!(
                " %2 = map(%0) body = {{ mul(to_f32(to_i32(a0)), {}) }} : f32[256, 256]
                 %3 = map(%1) body = {{ mul(to_f32(sub(to_i32(a0), 5i32)), {}) }} : f32[256, 256]
                 %4 = map(%2, %3) body = {{ add(a0, a1) }} : f32[256, 256]
                 %9 = map(%4) body = {{ to_i8(min(max(add(round(div(a0, {})), 3.0f32), -128.0f32), 127.0f32)) }}",
                scales[0], scales[1], scales[2]
            );
            replaced(DType::U8, DType::I8, &maps, "%9");
        }
    }
}

#[test]
fn other_functions_lose_their_division_alone() {
    // The product of both is no sum.
    let product = " %2 = map(%0) body = { mul(to_f32(sub(to_i32(a0), 128i32)), 0.0123f32) } : f32[256, 256]
         %3 = map(%1) body = { mul(to_f32(to_i32(a0)), 0.0371f32) } : f32[256, 256]
         %4 = map(%2, %3) body = { mul(a0, a1) } : f32[256, 256]
         %9 = map(%4) body = { to_i8(min(max(round(div(a0, 0.0291f32)), -128.0f32), 127.0f32)) }";
    assert!(replaced(DType::U8, DType::I8, product, "%9"));
}

#[test]
fn what_others_read_stays() {
    // The sum is an output, too, and reads both operands.
    let text = "graph \"g\" {\n input %0 : u8[8]\n input %1 : u8[8]
         %2 = map(%0, %1) body = { add(mul(to_f32(a0), 0.02f32), mul(to_f32(a1), 0.03f32)) } : f32[8]
         %3 = map(%2) body = { to_u8(min(max(round(div(a0, 0.04f32)), 0.0f32), 255.0f32)) } : u8[8]
         output %2 \"s\"\n output %3 \"y\"\n}";
    let graph = Graph::parse(text, &[]).unwrap();
    assert_eq!(functions_of_bytes(&graph).unwrap().nodes().count(), 2);
}
