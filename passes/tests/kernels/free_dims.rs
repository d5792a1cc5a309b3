//! Dims that are free until a run.

use crate::{check, check_free};

/// Small, ragged and large values of two dims.
const SIZES: &[&[(&str, i64)]] = &[
    &[("batch", 1), ("seq", 1)],
    &[("batch", 2), ("seq", 3)],
    &[("batch", 1), ("seq", 17)],
    &[("batch", 3), ("seq", 40)],
];

#[test]
fn free_dims_elementwise() {
    let c = check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, seq, 37]\n input %1 : f32[37]\n input %2 : f32[seq, 1]
         %3 = map(%0, %1) body = { add(a0, a1) } : f32[batch, seq, 37]
         %4 = map(%3, %2) body = { mul(a0, sigmoid(a1)) } : f32[batch, seq, 37]
         output %4 \"y\"",
        SIZES,
    );
    assert_eq!(c.kernels[0].len(), 1);
    // The innermost axis in memory is free.
    check_free(
        "symbol batch in 1..64\n symbol seq in 0..512
         input %0 : f32[batch, seq]\n input %1 : f32[seq]
         %3 = map(%0, %1) body = { add(a0, a1) } : f32[batch, seq]
         %4 = transpose(%3) perm = [1, 0] : f32[seq, batch]
         output %4 \"y\"\n output %3 \"z\"",
        &[SIZES[0], SIZES[1], SIZES[2], SIZES[3], &[("batch", 2), ("seq", 0)]],
    );
}

#[test]
fn free_dims_products_take_packed_weights_and_epilogues() {
    let c = check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, seq, 20]\n const %1 : f32[20, 30] = data 0\n input %2 : f32[30]
         %3 = contract(%0, %1) lhs = \"bmk\", rhs = \"kn\", out = \"bmn\" : f32[batch, seq, 30]
         %4 = map(%3, %2) body = { add(a0, a1) } : f32[batch, seq, 30]
         %5 = map(%4) body = { mul(a0, add(erf(a0), 1.0f32)) } : f32[batch, seq, 30]
         output %5 \"y\"",
        SIZES,
    );
    assert_eq!(c.kernels[0].len(), 1);
}

#[test]
fn free_dims_attention() {
    let c = check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, seq, 12]\n input %1 : f32[batch, seq, 12]\n input %2 : f32[batch, seq, 12]
         %3 = reshape(%0) dims = [batch, seq, 2, 6] : f32[batch, seq, 2, 6]
         %4 = transpose(%3) perm = [0, 2, 1, 3] : f32[batch, 2, seq, 6]
         %5 = reshape(%1) dims = [batch, seq, 2, 6] : f32[batch, seq, 2, 6]
         %6 = transpose(%5) perm = [0, 2, 3, 1] : f32[batch, 2, 6, seq]
         %7 = contract(%4, %6) lhs = \"bhsd\", rhs = \"bhdt\", out = \"bhst\" : f32[batch, 2, seq, seq]
         %8 = map(%7) body = { div(a0, 2.5f32) } : f32[batch, 2, seq, seq]
         %9 = softmax(%8) axis = 3, log = false : f32[batch, 2, seq, seq]
         %10 = reshape(%2) dims = [batch, seq, 2, 6] : f32[batch, seq, 2, 6]
         %11 = transpose(%10) perm = [0, 2, 1, 3] : f32[batch, 2, seq, 6]
         %12 = contract(%9, %11) lhs = \"bhst\", rhs = \"bhtd\", out = \"bhsd\" : f32[batch, 2, seq, 6]
         %13 = transpose(%12) perm = [0, 2, 1, 3] : f32[batch, seq, 2, 6]
         %14 = reshape(%13) dims = [batch, seq, 12] : f32[batch, seq, 12]
         output %14 \"y\"",
        SIZES,
    );
    assert!(c.kernels[0].len() <= 5, "{}", c.plan);
}

#[test]
fn free_dims_of_images() {
    check_free(
        "symbol h in 4..64\n symbol w in 4..64
         input %0 : f32[1, 8, h, w]\n const %1 : f32[24, 8, 3, 3] = data 1\n input %2 : f32[24, 1, 1]
         %3 = pad(%0) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32[1, 8, h + 2, w + 2]
         %4 = conv(%3, %1) strides = [2, 2], dilations = [1, 1], groups = 1 : f32[1, 24, floordiv(h - 1, 2) + 1, floordiv(w - 1, 2) + 1]
         %5 = map(%4, %2) body = { max(add(a0, a1), 0.0f32) } : f32[1, 24, floordiv(h - 1, 2) + 1, floordiv(w - 1, 2) + 1]
         %6 = pool(%5) combine = max, window = [2, 2], strides = [1, 1], dilations = [1, 1] : f32[1, 24, floordiv(h - 1, 2), floordiv(w - 1, 2)]
         %7 = reduce(%6) combine = add, axes = [2, 3], keep = true : f32[1, 24, 1, 1]
         output %6 \"y\"\n output %7 \"z\"",
        &[&[("h", 4), ("w", 4)], &[("h", 11), ("w", 10)], &[("h", 33), ("w", 7)]],
    );
}

#[test]
fn free_dims_rows_folds_and_moves() {
    check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, 4, seq]\n input %1 : f32[batch, 4, 5]
         %2 = softmax(%0) axis = 2, log = false : f32[batch, 4, seq]
         %3 = reduce(%0) combine = max, axes = [2], keep = true : f32[batch, 4, 1]
         %4 = reduce(%0) combine = add, axes = [0], keep = false : f32[4, seq]
         %5 = concat(%0, %1) axis = 2 : f32[batch, 4, seq + 5]
         %6 = slice(%5) starts = [0, 1, 2], steps = [1, 2, 1], dims = [batch, 2, seq] : f32[batch, 2, seq]
         %7 = map(%5) body = { mul(a0, 2.0f32) } : f32[batch, 4, seq + 5]
         %8 = reshape(%7) dims = [4*batch, seq + 5] : f32[4*batch, seq + 5]
         %9 = transpose(%8) perm = [1, 0] : f32[seq + 5, 4*batch]
         output %2 \"a\"\n output %3 \"b\"\n output %4 \"c\"\n output %6 \"d\"\n output %9 \"e\"",
        SIZES,
    );
}

#[test]
fn rows_that_are_read_down_are_written_some_at_a_time() {
    let c = check_free(
        "symbol n in 1..600
         input %0 : f32[2, n, 21]\n input %1 : f32[131, 18]\n input %2 : i8[130, 3, 17]
         %3 = transpose(%0) perm = [0, 2, 1] : f32[2, 21, n]
         %4 = transpose(%1) perm = [1, 0] : f32[18, 131]
         %5 = map(%4) body = { mul(a0, 3.0f32) } : f32[18, 131]
         %6 = transpose(%2) perm = [2, 1, 0] : i8[17, 3, 130]
         output %3 \"x\"\n output %5 \"y\"\n output %6 \"z\"",
        &[&[("n", 1)], &[("n", 5)], &[("n", 140)]],
    );
    let tiles = c.kernels[0].iter().filter(|k| k.to_string().contains("[16,16,1]")).count();
    assert!(tiles >= 2, "{}", c.kernels[0].iter().map(ToString::to_string).collect::<String>());
}

#[test]
fn exponentials_of_long_rows_are_kept() {
    let rows = |dims: &str, range: &str| {
        format!(
            "{range} input %0 : f32[3, {dims}]\n %1 = map(%0) body = {{ mul(a0, 5.0f32) }} : f32[3, {dims}]
             %2 = softmax(%1) axis = 1, log = false : f32[3, {dims}]\n output %2 \"y\""
        )
    };
    let kept = |c: &kiln_passes::pipeline::Compiled| c.kernels[0][0].buffers.iter().any(|b| b.name == "kept");
    for (extent, keeps) in [(40, false), (300, true), (1029, true), (5000, false)] {
        assert_eq!(kept(&check(&rows(&extent.to_string(), ""))), keeps, "{extent}");
    }
    let sizes: &[&[(&str, i64)]] = &[&[("n", 1)], &[("n", 15)], &[("n", 77)], &[("n", 400)]];
    assert!(kept(&check_free(&rows("n", "symbol n in 1..400\n"), sizes)));
    assert!(!kept(&check_free(&rows("n", "symbol n in 1..9000\n"), sizes)));
}

#[test]
fn what_lies_across_is_read_in_blocks() {
    let wide =
        &[&[("rows", 1), ("columns", 1)][..], &[("rows", 16), ("columns", 33)], &[("rows", 37), ("columns", 50)]];
    let c = check_free(
        "symbol rows in 1..64\n symbol columns in 1..64
         input %0 : f32[rows, columns]\n input %1 : f32[columns, rows]\n input %2 : f32[rows]
         %3 = transpose(%0) perm = [1, 0] : f32[columns, rows]
         %4 = map(%3, %1, %2) body = { mul(add(a0, a1), a2) } : f32[columns, rows]
         output %4 \"y\"",
        wide,
    );
    assert_eq!(c.kernels[0].len(), 1);
    let blocks = |target: usize, block: &str| c.kernels[target][0].to_string().contains(block);
    assert!(blocks(0, "f32[16,16,1] = load in0") && blocks(1, "f32[16,8,1] = load in0"), "{}", c.kernels[0][0]);
    for (rows, columns) in [(1, 100), (15, 16), (16, 15), (40, 21), (64, 48)] {
        check(&format!(
            "input %0 : f32[3, {rows}, {columns}]\n input %1 : i32[{rows}, {columns}]
             %2 = transpose(%0) perm = [0, 2, 1] : f32[3, {columns}, {rows}]
             %3 = transpose(%1) perm = [1, 0] : i32[{columns}, {rows}]
             output %2 \"y\"\n output %3 \"z\""
        ));
    }
}
