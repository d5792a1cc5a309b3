//! Attention in one kernel.

use super::{Compiled, check, check_free};

/// Heads of 20 numbers; `softened` makes `%6` of the scores `%5`.
fn attention(batch: &str, queries: usize, keys: usize, softened: &str) -> String {
    format!(
        "input %0 : f32[{batch}, {queries}, 2, 20]\n input %1 : f32[{batch}, {keys}, 2, 20]\n input %2 : f32[{batch}, {keys}, 2, 20]
         input %3 : f32[{queries}, {keys}]
         %4 = map(%0) body = {{ mul(a0, 0.25f32) }} : f32[{batch}, {queries}, 2, 20]
         %5 = contract(%4, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : f32[{batch}, 2, {queries}, {keys}]
         {softened} : f32[{batch}, 2, {queries}, {keys}]
         %7 = softmax(%6) axis = 3, log = false : f32[{batch}, 2, {queries}, {keys}]
         %8 = contract(%7, %2) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[{batch}, {queries}, 2, 20]
         %9 = map(%8) body = {{ max(a0, -0.5f32) }} : f32[{batch}, {queries}, 2, 20]\n output %9 \"y\""
    )
}

fn fused(c: &Compiled) -> usize {
    c.plan.kernels.iter().filter(|k| k.what.contains("softmax") && k.what.contains("contract")).count()
}

#[test]
fn scores_stay_in_the_program() {
    let scaled = "%6 = map(%5) body = { mul(a0, 1.5f32) }";
    let c = check(&attention("1", 17, 133, scaled));
    assert_eq!(fused(&c), 1, "{}", c.plan);
    assert!(c.kernels[0].iter().any(|k| k.buffers.iter().any(|b| b.name == "scores")), "{}", c.plan);
    // With a mask that is added, and whole blocks of rows and of columns.
    let c = check(&attention("2", 28, 128, "%6 = map(%5, %3) body = { add(a0, mul(a1, 8.0f32)) }"));
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn rows_without_a_key_are_what_they_are_by_definition() {
    // `log` of what is not above zero is minus infinity or no number: some rows of scores have no finite one.
    let c = check(&attention("1", 16, 130, "%6 = map(%5, %3) body = { add(a0, log(max(sub(a1, 0.9f32), 0.0f32))) }"));
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn a_free_batch_is_fine_and_few_keys_stay_three_kernels() {
    let plain = "%6 = map(%5) body = { mul(a0, 1.5f32) }";
    let c = check_free(&format!("symbol b in 0..4\n {}", attention("b", 16, 128, plain)), &[&[("b", 0)], &[("b", 2)]]);
    assert_eq!(fused(&c), 1, "{}", c.plan);
    let c = check(&attention("1", 17, 40, plain));
    assert_eq!(fused(&c), 0, "{}", c.plan);
}

#[test]
fn masks_behind_a_reshape_are_read_at_their_keys() {
    // What masks is then part of the softmax, not of the product, and reads the key that is folded there.
    let c = check(
        "input %0 : f32[1, 18, 2, 20]\n input %1 : f32[1, 131, 2, 20]\n input %2 : f32[1, 131, 2, 20]\n input %3 : f32[18, 131]
         %5 = contract(%0, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : f32[1, 2, 18, 131]
         %6 = reshape(%5) dims = [2, 18, 131] : f32[2, 18, 131]
         %7 = map(%6, %3) body = { add(a0, mul(a1, 8.0f32)) } : f32[2, 18, 131]
         %8 = softmax(%7) axis = 2, log = false : f32[2, 18, 131]
         %9 = reshape(%8) dims = [1, 2, 18, 131] : f32[1, 2, 18, 131]
         %10 = contract(%9, %2) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[1, 18, 2, 20]\n output %10 \"y\"",
    );
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn free_keys_are_walked_in_stretches() {
    let of = |softened: &str| {
        let free = attention("1", 77, 99, softened).replace("77", "m").replace("99", "n");
        format!("symbol m in 1..2000\n symbol n in 1..2000\n {free}")
    };
    let sizes: [&[(&str, i64)]; 6] = [
        &[("m", 1), ("n", 1)],
        &[("m", 2), ("n", 3)],
        &[("m", 15), ("n", 47)],
        &[("m", 5), ("n", 127)],
        &[("m", 1), ("n", 257)],
        &[("m", 1), ("n", 530)],
    ];
    let c = check_free(&of("%6 = map(%5, %3) body = { add(a0, mul(a1, 8.0f32)) }"), &sizes);
    assert_eq!(fused(&c), 1, "{}", c.plan);
    // No score is above minus infinity in some stretches of some rows, and in all of others.
    let c = check_free(&of("%6 = map(%5, %3) body = { add(a0, log(max(sub(a1, 0.985f32), 0.0f32))) }"), &sizes[2..]);
    assert_eq!(fused(&c), 1, "{}", c.plan);
    // There might be no keys, of which the sum is 0.
    let c = check_free(&of("%6 = map(%5) body = { a0 }").replace("n in 1", "n in 0"), &[&[("m", 3), ("n", 0)]]);
    assert_eq!(fused(&c), 0, "{}", c.plan);
}

#[test]
fn shares_that_are_no_numbers_may_be_zero() {
    // Rows of 130 keys of which none is seen are one in three.
    let guarded = |queries: usize, keys: usize| {
        let hidden = "%6 = map(%5, %3) body = { add(a0, log(max(sub(a1, 0.985f32), 0.0f32))) }";
        let zero = "%17 = map(%7) body = { select(ne(a0, a0), 0.0f32, a0) }";
        let scores = format!(" : f32[1, 2, {queries}, {keys}]");
        let text = attention("1", queries, keys, hidden);
        text.replace("%8 = contract(%7", &format!("{zero}{scores}\n %8 = contract(%17"))
    };
    let c = check(&guarded(16, 130));
    assert_eq!(fused(&c), 1, "{}", c.plan);
    let free = guarded(16, 99).replace("99", "n");
    let c = check_free(&format!("symbol n in 1..600\n {free}"), &[&[("n", 1)], &[("n", 40)], &[("n", 300)]]);
    assert_eq!(fused(&c), 1, "{}", c.plan);
}

#[test]
fn heads_in_groups_share_keys() {
    let c = check_free(
        "symbol b in 1..4\n symbol m in 1..400\n symbol n in 1..400
         input %0 : f32[b, 2, 3, m, 20]\n input %1 : f32[b, 2, n, 20]\n input %2 : f32[b, 2, n, 20]
         %5 = contract(%0, %1) lhs = \"bhgmd\", rhs = \"bhnd\", out = \"bhgmn\" : f32[b, 2, 3, m, n]
         %7 = softmax(%5) axis = 4, log = false : f32[b, 2, 3, m, n]
         %8 = contract(%7, %2) lhs = \"bhgmn\", rhs = \"bhnd\", out = \"bhgmd\" : f32[b, 2, 3, m, 20]\n output %8 \"y\"",
        &[&[("b", 2), ("m", 1), ("n", 7)], &[("b", 1), ("m", 15), ("n", 66)]],
    );
    assert_eq!(fused(&c), 1, "{}", c.plan);
}
