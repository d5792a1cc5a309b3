//! Products of bytes by matrix instructions: quantized graphs over ragged shapes in the interpreter of PTX, whose results are exactly
//! those of the graph.

use super::data;
use super::models::{assembled, both_ways, expected};
use kiln::compare;
use kiln::gpu::Precision;
use kiln_ir::{DType, Graph, Tensor};

/// A graph in the text form with one constant of i8.
fn parsed(text: &str, weights: &[usize]) -> Graph {
    let source = format!("graph \"bytes\" {{\n{text}\n}}");
    let constant = Tensor::new(DType::I8, weights.to_vec(), data(DType::I8, weights.iter().product(), false));
    Graph::parse(&source, &[constant.expect("weights")]).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

/// Rows of bytes with a zero point by a constant matrix: a sum of integers.
fn product(dtype: &str, m: usize, k: usize, n: usize) -> Graph {
    let text = format!(
        "input %0 : {dtype}[{m}, {k}]\n const %1 : {dtype}[] = [7{dtype}]\n const %2 : i8[{k}, {n}] = data 0
         %3 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[{m}, {k}]
         %4 = map(%2) body = {{ to_i32(a0) }} : i32[{k}, {n}]
         %5 = contract(%3, %4) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : i32[{m}, {n}]
         output %5 \"y\""
    );
    parsed(&text, &[k, n])
}

/// The same with sums that become bytes again: rows of them lie side by side.
fn product_to_bytes(m: usize, k: usize, n: usize, to: &str) -> Graph {
    let (low, high) = if to == "u8" { (0, 255) } else { (-128, 127) };
    let text = format!(
        "input %0 : u8[{m}, {k}]\n const %2 : i8[{k}, {n}] = data 0
         %3 = map(%0) body = {{ to_i32(a0) }} : i32[{m}, {k}]
         %4 = map(%2) body = {{ to_i32(a0) }} : i32[{k}, {n}]
         %5 = contract(%3, %4) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : i32[{m}, {n}]
         %6 = map(%5) body = {{ to_{to}(min(max(round(mul(to_f32(a0), 0.001953125f32)), {low}.0f32), {high}.0f32)) }}
            : {to}[{m}, {n}]
         %7 = map(%6) body = {{ max(a0, 3{to}) }} : {to}[{m}, {n}]
         output %6 \"y\"\n output %7 \"z\""
    );
    parsed(&text, &[k, n])
}

/// Two activations, batched: the second one's bytes lie along the fold.
fn activations(m: usize, k: usize, n: usize) -> Graph {
    let text = format!(
        "input %0 : u8[2, {m}, {k}]\n input %1 : i8[2, {n}, {k}]\n const %2 : i8[1] = data 0
         %4 = map(%0) body = {{ to_i32(a0) }} : i32[2, {m}, {k}]
         %5 = map(%1) body = {{ to_i32(a0) }} : i32[2, {n}, {k}]
         %6 = contract(%4, %5) lhs = \"bmk\", rhs = \"bnk\", out = \"bmn\" : i32[2, {m}, {n}]
         %7 = contract(%5, %4) lhs = \"bnk\", rhs = \"bmk\", out = \"mbn\" : i32[{m}, 2, {n}]
         output %6 \"y\"\n output %7 \"turned\""
    );
    parsed(&text, &[1])
}

/// A convolution as exporters quantize it, with a border, from bytes to bytes. Scales are powers of two.
fn convolution([n, c, h, w]: [usize; 4], [o, i, kh, kw]: [usize; 4], groups: usize) -> Graph {
    let (rows, columns) = (h + 2 - kh + 1, w + 2 - kw + 1);
    let (x, out) = (format!("[{n}, {c}, {h}, {w}]"), format!("[{n}, {o}, {rows}, {columns}]"));
    let (wide, high) = (w + 2, h + 2);
    let text = format!(
        "input %0 : u8{x}\n const %1 : f32[] = [0.015625f32]\n const %2 : u8[] = [3u8]
         %4 = map(%0, %2, %1) body = {{ mul(to_f32(sub(to_i32(a0), to_i32(a1))), a2) }} : f32{x}
         %5 = pad(%4) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32
            : f32[{n}, {c}, {high}, {wide}]
         const %6 : i8[{o}, {i}, {kh}, {kw}] = data 0\n const %7 : f32[] = [0.0078125f32]
         %8 = map(%6, %7) body = {{ mul(to_f32(a0), a1) }} : f32[{o}, {i}, {kh}, {kw}]
         %9 = conv(%5, %8) strides = [1, 1], dilations = [1, 1], groups = {groups} : f32{out}
         const %13 : f32[] = [0.25f32]\n const %14 : u8[] = [100u8]
         %15 = map(%9, %13, %14) body = {{ to_u8(min(max(add(round(div(a0, a1)), to_f32(a2)), 0.0f32), 255.0f32)) }} : u8{out}
         output %15 \"y\""
    );
    parsed(&text, &[o, i, kh, kw])
}

#[test]
fn quantized_graphs_are_computed_exactly_on_matrix_instructions() {
    // With whether matrix instructions multiply.
    let graphs = [
        ("whole tiles", product("u8", 64, 128, 64), true),
        ("ragged", product("u8", 37, 90, 51), true),
        ("signed", product("i8", 20, 64, 40), true),
        ("rows that are no words", product("u8", 19, 45, 33), true),
        ("split fold", product("u8", 16, 8192, 24), true),
        ("few rows", product("u8", 3, 512, 70), false),
        ("one row", product("i8", 1, 300, 64), false),
        ("short fold", product("u8", 30, 20, 30), false),
        ("two activations", activations(33, 70, 24), true),
        ("convolution", convolution([1, 16, 9, 11], [24, 16, 3, 3], 1), true),
        ("batches", convolution([2, 20, 6, 7], [40, 20, 2, 3], 1), true),
        ("three channels", convolution([1, 3, 12, 10], [16, 3, 3, 3], 1), true),
        // The group is a quotient of the column.
        ("groups", convolution([1, 96, 8, 8], [64, 48, 2, 2], 2), false),
        ("to bytes", product_to_bytes(64, 256, 128, "u8"), true),
        ("to signed bytes, ragged", product_to_bytes(50, 200, 72, "i8"), true),
        ("to bytes in fours", product_to_bytes(33, 128, 100, "u8"), true),
        ("a channel a group", convolution([1, 16, 7, 7], [16, 1, 3, 3], 16), false),
    ];
    for (name, graph, by_matrices) in graphs {
        let (inputs, want) = expected(name, &graph);
        let compiled = assembled(name, graph, Precision::F32);
        assert!(compiled.notes.hosts.is_empty(), "{name}: {:?}", compiled.notes.hosts);
        let modules = compiled.kernels.iter().flat_map(|k| &k.modules);
        let multiply = modules.filter(|m| m.text.contains("mma.sync.aligned.m16n8k32")).count();
        assert_eq!(multiply > 0, by_matrices, "{name}: {multiply} kernels with matrix instructions");
        both_ways(name, &compiled, &inputs, 3, &|run, outcome| {
            for k in &outcome.kernels {
                assert!(k.difference.is_none_or(|d| d == 0.0), "{run}, {}: {:?}", k.name, k.difference);
                assert_eq!(k.counts.conflicts(), 0, "{run}, {}", k.name);
                if name == "to bytes" {
                    assert_eq!(k.counts.sectors, k.counts.least_sectors, "{run}, {}", k.name);
                }
            }
            for (want, found) in want.iter().zip(&outcome.outputs) {
                assert_eq!(want.bytes(), found.bytes(), "{run}: {}", compare::difference(want, found));
            }
        });
    }
}
