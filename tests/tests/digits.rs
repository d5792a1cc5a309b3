//! Which products with weights of 4 bits are computed in bytes: what an artifact's levels and its precision say.

use kiln::runtime::cpu::CpuLevel;
use kiln::{Options, Silent, compile_graph};
use kiln_ir::graph::Graph;
use kiln_ir::{DType, Tensor};
use kiln_passes::pipeline::Precision;

/// Whether the weight, stored as bytes, is compiled as words for dot products.
fn in_words(levels: &[CpuLevel], precision: Precision) -> bool {
    let text = "graph \"g\" { input %0 : f32[1, 256]\n const %1 : u8[256, 8, 1, 16] = data 0
         const %2 : i32[2, 1] = [0i32, 4i32]\n const %3 : f16[256, 8, 1] = data 1
         %4 = map(%1, %2) body = { and(shr(to_i32(a0), a1), 15i32) } : i32[256, 8, 2, 16]
         %5 = reshape(%4) dims = [256, 8, 32] : i32[256, 8, 32]
         %6 = map(%5, %3) body = { mul(sub(to_f32(a0), 8.0f32), to_f32(a1)) } : f32[256, 8, 32]
         %7 = reshape(%0) dims = [1, 8, 32] : f32[1, 8, 32]
         %8 = contract(%7, %6) lhs = \"yab\", rhs = \"xab\", out = \"yx\" : f32[1, 256]\n output %8 \"y\" }";
    let numbers =
        Tensor::new(DType::U8, vec![256, 8, 1, 16], (0..32768u32).map(|n| ((n * 37) >> 3) as u8).collect::<Vec<_>>());
    let scales = Tensor::new(DType::F16, vec![256, 8, 1], [0, 0x3c].repeat(2048));
    let graph = Graph::parse(text, &[numbers.unwrap(), scales.unwrap()]).unwrap();
    let options = Options { levels: levels.to_vec(), precision, ..Options::default() };
    let compiled = compile_graph(graph, &options, &mut Silent).unwrap();
    // What is reported and verified is the model's own product.
    assert!(!compiled.graph.to_string().contains("block_product"), "{}", compiled.graph);
    compiled.weights.iter().any(|w| w.tensor.dtype() == DType::I32 && w.tensor.len() == 256 * 8 * 4)
}

#[test]
fn one_row_meets_four_bits_in_bytes_where_all_levels_have_dot_products() {
    use CpuLevel::*;
    assert!(in_words(&[X86_64V4Vnni], Precision::F32));
    assert!(in_words(&[X86_64V3Vnni, X86_64V4Bf16], Precision::F32Fast));
    assert!(!in_words(&[X86_64V4Vnni], Precision::Strict));
    assert!(!in_words(&[X86_64V3, X86_64V4Vnni], Precision::F32));
    assert!(!in_words(&[Portable], Precision::F32));
}
