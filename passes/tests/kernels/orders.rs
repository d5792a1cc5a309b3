//! Orders of tiles.

use super::{Precision, by_tiles, optimise, parsed, random};
use kiln_ir::DType;
use kiln_ir::interp::{Options, eval_graph};
use kiln_passes::kernel::{Choice, Machine};
use kiln_passes::pipeline::{Target, schedule};

const CONVOLUTION: &str =
    "input %0 : f32[2, 8, 11, 10]\n const %1 : f32[24, 8, 3, 3] = data 1\n input %2 : f32[2, 24, 9, 8]
     %3 = conv(%0, %1) strides = [1, 1], dilations = [1, 1], groups = 1 : f32[2, 24, 9, 8]
     %4 = map(%3, %2) body = { max(add(a0, a1), 0.0f32) } : f32[2, 24, 9, 8]\n output %4 \"y\"";

#[test]
fn every_order_computes_the_same() {
    let graph = parsed(CONVOLUTION);
    let inputs = [random(DType::F32, &[2, 8, 11, 10], 1), random(DType::F32, &[2, 24, 9, 8], 2)];
    let expected = eval_graph(&graph, &inputs, &Options::default()).unwrap().remove(0).to_f64().unwrap();
    let optimised = optimise(graph, Precision::Strict, &mut |_, _, _| Ok(())).unwrap();
    for order in ["columns", "tiles", "outer", "rows", "across"] {
        // Rows and columns that tiles do not divide.
        for tile in ["rows=5 columns=8 panel=16", "rows=3 columns=16 panel=16", ""] {
            let choice: Choice = format!("{tile} order={order}").trim().parse().unwrap();
            for machine in [Machine::avx512(), Machine::avx2(), Machine::narrow()] {
                let chosen = |_: &str| Some(choice);
                let mut lowers = |_: &_, _: &_| Ok(());
                let target = Target { machine, chosen: Some(&chosen), lowers: &mut lowers };
                let compiled = schedule(&optimised, &mut [target]).unwrap();
                let got = by_tiles(&compiled, 0, &inputs).remove(0).to_f64().unwrap();
                let far = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                assert!(far < 2e-5, "{choice}: {far}\n{}", compiled.kernels[0].last().unwrap());
            }
        }
    }
}

#[test]
fn a_large_result_of_few_weights_is_written_line_after_line() {
    let text = |pixels: usize| {
        format!(
            "input %0 : f32[1, 2, 1, {pixels}]\n const %1 : f32[1024, 2, 1, 1] = data 21
             %2 = conv(%0, %1) strides = [1, 1], dilations = [1, 1], groups = 1 : f32[1, 1024, 1, {pixels}]
             %3 = map(%2) body = {{ max(a0, 0.0f32) }} : f32[1, 1024, 1, {pixels}]
             %4 = reduce(%3) combine = add, axes = [3], keep = false : f32[1, 1024, 1]\n output %4 \"y\""
        )
    };
    for (pixels, walks) in [(300, true), (100, false)] {
        let optimised = optimise(parsed(&text(pixels)), Precision::Strict, &mut |_, _, _| Ok(())).unwrap();
        let mut lowers = |_: &_, _: &_| Ok(());
        let target = Target { machine: Machine::avx512(), chosen: None, lowers: &mut lowers };
        let compiled = schedule(&optimised, &mut [target]).unwrap();
        let product = compiled.kernels[0].iter().map(ToString::to_string).find(|k| k.contains("fma")).unwrap();
        // The columns' blocks are a loop of the program.
        assert_eq!(product.contains("_block in 0..32"), walks, "{product}");
    }
}
