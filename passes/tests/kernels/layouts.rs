//! Where results lie.

use super::{Precision, check, optimise, parsed};

#[test]
fn channels_that_become_pixels_stay_channels_last() {
    // As `DepthToSpace` and transposed convolutions have it, with an epilogue and a pool behind it.
    let text = "input %0 : f32[2, 8, 7, 9]\n input %9 : f32[6, 1, 1]\n const %1 : f32[24, 8, 3, 3] = data 1
        %2 = conv(%0, %1) strides = [1, 1], dilations = [1, 1], groups = 1 : f32[2, 24, 5, 7]
        %3 = reshape(%2) dims = [2, 2, 2, 6, 5, 7] : f32[2, 2, 2, 6, 5, 7]
        %4 = transpose(%3) perm = [0, 3, 4, 1, 5, 2] : f32[2, 6, 5, 2, 7, 2]
        %5 = reshape(%4) dims = [2, 6, 10, 14] : f32[2, 6, 10, 14]
        %6 = map(%5, %9) body = { max(add(a0, a1), 0.0f32) } : f32[2, 6, 10, 14]
        %7 = pool(%6) combine = max, window = [2, 2], strides = [1, 1], dilations = [1, 1] : f32[2, 6, 9, 13]
        output %7 \"y\"";
    check(text);
    let optimised = optimise(parsed(text), Precision::F32, &mut |_, _, _| Ok(())).unwrap().to_string();
    let last = |what: &str| {
        let made = optimised.lines().filter(|l| l.contains(&format!("= {what}(")));
        made.filter(|l| l.contains("order [0, 2, 3, 1]")).count()
    };
    assert_eq!([last("reshape"), last("map")], [1, 1], "{optimised}");
}
