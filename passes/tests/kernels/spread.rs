//! Rows whose distance 4,096 divides, moved apart.

use super::{Compiled, Precision, check, check_at, check_free};

/// How many slots have gaps.
fn gaps(c: &Compiled) -> usize {
    c.plan.slots.iter().filter(|(_, slot)| slot.ty.layout.gap.is_some()).count()
}

/// The second of two layers reads rows of 1,024 numbers.
fn layers(rows: &str) -> String {
    format!(
        "input %0 : f32[{rows}, 3]\n const %1 : f32[3, 1024] = data 18\n const %2 : f32[1024, 16] = data 17
         %3 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{rows}, 1024]
         %4 = map(%3) body = {{ max(a0, 0.0f32) }} : f32[{rows}, 1024]
         %5 = contract(%4, %2) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{rows}, 16]"
    )
}

#[test]
fn rows_of_a_layer_are_moved_apart() {
    let c = check(&format!("{}\n output %5 \"y\"", layers("6")));
    assert_eq!((c.plan.kernels.len(), gaps(&c)), (2, 1), "{}", c.plan);
    let text = format!("symbol n in 0..40\n {}\n output %5 \"y\"", layers("n"));
    let c = check_free(&text, &[&[("n", 0)], &[("n", 1)], &[("n", 7)]]);
    assert_eq!(gaps(&c), 1, "{}", c.plan);
    // Rounded to bf16 and laid as pairs, rows have 2,048 bytes.
    let c = check_at(Precision::Bf16, &format!("{}\n output %5 \"y\"", layers("6")), &[&[]]);
    assert_eq!(gaps(&c), 0, "{}", c.plan);
}

#[test]
fn few_rows_and_what_the_caller_sees_lie_as_ever() {
    let c = check(&format!("{}\n output %5 \"y\"", layers("3")));
    assert_eq!(gaps(&c), 0, "{}", c.plan);
    let c = check(&format!("{}\n output %4 \"h\"\n output %5 \"y\"", layers("6")));
    assert_eq!(gaps(&c), 0, "{}", c.plan);
}

#[test]
fn all_names_of_a_memory_have_the_gap() {
    let text = |reader: &str| {
        format!(
            "input %0 : f32[6, 3]\n const %1 : f32[3, 1024] = data 18\n const %2 : f32[1024, 16] = data 17
             %3 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[6, 1024]
             %4 = map(%3) body = {{ max(a0, 0.0f32) }} : f32[6, 1024]
             %5 = reshape(%4) dims = [1, 6, 1024] : f32[1, 6, 1024]
             %6 = contract(%5, %2) lhs = \"bmk\", rhs = \"kn\", out = \"bmn\" : f32[1, 6, 16]
             {reader}\n output %6 \"y\"\n output %9 \"z\""
        )
    };
    // Another reader, which adds up columns, reads it too.
    let c = check(&text("%9 = reduce(%5) combine = add, axes = [1], keep = false : f32[1, 1024]"));
    assert_eq!(gaps(&c), 1, "{}", c.plan);
    // Under other lines it would be other memory.
    let split = "%7 = reshape(%4) dims = [192, 32] : f32[192, 32]
        %9 = reduce(%7) combine = add, axes = [0], keep = false : f32[32]";
    let c = check(&text(split));
    assert_eq!(gaps(&c), 0, "{}", c.plan);
}

#[test]
fn an_input_is_copied_for_many_columns() {
    let product = |n: usize, data: usize| {
        format!(
            "input %0 : f32[6, 1024]\n const %1 : f32[1024, {n}] = data {data}
             %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[6, {n}]\n output %2 \"y\""
        )
    };
    let c = check(&product(256, 19));
    assert_eq!((c.plan.kernels.len(), gaps(&c)), (2, 1), "{}", c.plan);
    let c = check(&product(16, 17));
    assert_eq!((c.plan.kernels.len(), gaps(&c)), (1, 0), "{}", c.plan);
}

#[test]
fn values_of_heads_are_moved_apart() {
    // They lie as the layer before left them, heads beside one another.
    let c = check(
        "input %0 : f32[4, 20, 20]\n input %1 : f32[20, 128]
         %2 = map(%1) body = { exp(a0) } : f32[20, 128]
         %3 = reshape(%2) dims = [20, 4, 32] : f32[20, 4, 32]
         %4 = contract(%0, %3) lhs = \"hmn\", rhs = \"nhd\", out = \"mhd\" : f32[20, 4, 32]\n output %4 \"y\"",
    );
    assert!(c.plan.to_string().contains("f32[20, 128] order [0, 1]+0:16"), "{}", c.plan);
}

#[test]
fn pixels_of_many_channels_are_moved_apart() {
    let c = check(
        "input %0 : f32[1, 2, 3, 5]\n const %1 : f32[1024, 2, 1, 1] = data 21\n const %2 : f32[16, 1024, 1, 1] = data 20
         %3 = conv(%0, %1) strides = [1, 1], dilations = [1, 1], groups = 1 : f32[1, 1024, 3, 5]
         %4 = conv(%3, %2) strides = [1, 1], dilations = [1, 1], groups = 1 : f32[1, 16, 3, 5]\n output %4 \"y\"",
    );
    assert!(c.plan.to_string().contains("order [0, 2, 3, 1]+3:16"), "{}", c.plan);
}

#[test]
fn every_other_pixel_counts_as_a_row() {
    let layers = |strides: &str| {
        format!(
            "input %0 : f32[1, 2, 3, 13]\n const %1 : f32[512, 2, 1, 1] = data 22\n const %2 : f32[16, 512, 1, 1] = data 23
             %3 = conv(%0, %1) strides = [1, 1], dilations = [1, 1], groups = 1 : f32[1, 512, 3, 13]
             %4 = conv(%3, %2) {strides}\n output %4 \"y\""
        )
    };
    let c = check(&layers("strides = [2, 2], dilations = [1, 1], groups = 1 : f32[1, 16, 2, 7]"));
    assert!(c.plan.to_string().contains("order [0, 2, 3, 1]+3:16"), "{}", c.plan);
    let c = check(&layers("strides = [1, 1], dilations = [1, 1], groups = 1 : f32[1, 16, 3, 13]"));
    assert_eq!(gaps(&c), 0, "{}", c.plan);
}
