//! What goes straight into the middle of its border.

use super::check;

const CONVOLUTION: &str = "const %1 : f32[24, 8, 3, 3] = data 1
    %2 = conv(%0, %1) strides = [1, 1], dilations = [1, 1], groups = 1";

#[test]
fn a_convolution_and_its_epilogue_are_stored_within_the_border() {
    // Rows of 12, 13 and 30 elements, which tiles of no level all divide; another border on every side.
    for (height, width, value) in [(4, 12, "0.0f32"), (3, 13, "-2.5f32"), (5, 30, "1.5f32")] {
        let (h, w) = (height + 2, width + 2);
        let (tall, wide) = (height + 3, width + 3);
        let c = check(&format!(
            "input %0 : f32[1, 8, {h}, {w}]\n input %3 : f32[24, 1, 1]\n input %4 : f32[1, 24, {height}, {width}]\n {CONVOLUTION} : f32[1, 24, {height}, {width}]
             %5 = map(%2, %3, %4) body = {{ max(add(add(a0, a1), a2), 0.0f32) }} : f32[1, 24, {height}, {width}]
             %6 = pad(%5) low = [0, 0, 1, 2], high = [0, 0, 2, 1], interior = [0, 0, 0, 0], value = {value} : f32[1, 24, {tall}, {wide}]
             %7 = pool(%6) combine = max, window = [2, 2], strides = [1, 1], dilations = [1, 1] : f32[1, 24, {}, {}]
             output %7 \"y\"",
            tall - 1,
            wide - 1
        ));
        let made: Vec<&str> = c.plan.kernels.iter().map(|k| k.what.as_str()).collect();
        assert!(made.contains(&"conv+map+pad"), "{made:?}");
        // What is counted is what is computed: 8 times 9 multiply-adds and the rest for each element within the border.
        let kernel = c.plan.kernels.iter().find(|k| k.what == "conv+map+pad").unwrap();
        assert_eq!(kernel.operations, 24 * height * width * (2 * 8 * 9 + 3));
    }
}

#[test]
fn what_others_read_or_what_has_short_rows_gets_a_copy() {
    for (width, and) in [(13, "output %2 \"z\""), (6, "")] {
        let c = check(&format!(
            "input %0 : f32[1, 8, 5, {}]\n {CONVOLUTION} : f32[1, 24, 3, {width}]
             %6 = pad(%2) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32[1, 24, 5, {}]
             %7 = pool(%6) combine = max, window = [2, 2], strides = [1, 1], dilations = [1, 1] : f32[1, 24, 4, {}]
             output %7 \"y\"\n {and}",
            width + 2,
            width + 2,
            width + 1
        ));
        let made: Vec<&str> = c.plan.kernels.iter().map(|k| k.what.as_str()).collect();
        assert!(made.iter().any(|w| w.starts_with("pad")), "{made:?}");
    }
}
