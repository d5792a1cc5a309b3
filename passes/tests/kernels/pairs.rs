//! Products of pairs of bf16, and the unit for matrices.

use crate::{check_at, check_graph, parsed, random};
use kiln_ir::graph::Graph;
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Tensor};
use kiln_passes::pipeline::{Compiled, Precision, optimise};

#[test]
fn weights_of_8_bits_are_exact_in_bf16() {
    for (scale, dims) in [("[0.25f32]", "[]"), ("data 10", "[16, 1]")] {
        let text = format!(
            "input %0 : f32[2, 600]
             const %1 : u8[600, 16, 32] = data 4\n const %2 : f32{dims} = {scale}
             %3 = map(%1) body = {{ to_f32(a0) }} : f32[600, 16, 32]
             %4 = map(%3, %2) body = {{ mul(a0, a1) }} : f32[600, 16, 32]
             %5 = contract(%0, %4) lhs = \"mk\", rhs = \"kno\", out = \"mno\" : f32[2, 16, 32]
             output %5 \"y\""
        );
        assert_eq!(pair_products(&check_at(Precision::Bf16, &text, &[&[]])), 1);
        // Activations of few bits are exact too, so the result is that of floats.
        let eighths = text
            .replace("contract(%0", "contract(%6")
            .replace("%5 =", "%6 = map(%0) body = { div(round(mul(a0, 64.0f32)), 64.0f32) } : f32[2, 600]\n %5 =");
        let graph = parsed(&eighths);
        let pairs = optimise(graph.clone(), Precision::Bf16, &mut |_, _, _| Ok(())).unwrap();
        let x = [random(DType::F32, &[2, 600], 1)];
        let run = |g: &Graph| eval_graph(g, &x, &Options::default()).unwrap()[0].to_f32().unwrap();
        for (a, b) in run(&graph).iter().zip(run(&pairs)) {
            assert!((a - b).abs() <= 1e-4 * a.abs().max(1.0), "{a} {b}");
        }
    }
}

/// The kernels of products of pairs of bf16.
fn pair_products(c: &Compiled) -> usize {
    let multiplies =
        |k: &&kiln_ir::tile::TileProgram| k.buffers.iter().filter(|b| b.dtype == DType::I32 && !b.written).count() == 2;
    c.kernels[0].iter().filter(multiplies).count()
}

#[test]
fn products_with_weights_in_bf16() {
    // Rows as few as one and as many as are not known; an axis that pairs do not cover.
    for (rows, bindings) in [("1", vec![vec![]]), ("33", vec![vec![]]), ("T", vec![vec![("T", 1)], vec![("T", 19)]])] {
        let bindings: Vec<&[_]> = bindings.iter().map(Vec::as_slice).collect();
        for (k, weight, letters) in
            [(20, "[20, 30] = data 0", "kn"), (20, "[13, 20] = data 3", "nk"), (3, "[24, 8, 3, 3] = data 1", "nabk")]
        {
            let (out, result) = match letters {
                "nabk" => ("mnab", format!("[{rows}, 24, 8, 3]")),
                "kn" => ("mn", format!("[{rows}, 30]")),
                _ => ("mn", format!("[{rows}, 13]")),
            };
            let c = check_at(
                Precision::Bf16,
                &format!(
                    "symbol T in 1..64\n input %0 : f32[{rows}, {k}]\n const %1 : f32{weight}
                     %2 = contract(%0, %1) lhs = \"mk\", rhs = \"{letters}\", out = \"{out}\" : f32{result}
                     %3 = map(%2) body = {{ max(a0, 0.0f32) }} : f32{result}
                     output %3 \"y\""
                ),
                &bindings,
            );
            assert_eq!(pair_products(&c), 1, "{}", c.plan);
        }
    }
}

/// How many of the last machine's kernels leave products to the unit for matrices.
fn by_unit(c: &Compiled) -> usize {
    c.kernels[4].iter().filter(|k| k.to_string().contains("multiply sums[")).count()
}

/// Blocks of rows and columns that the registers' sizes do not divide; steps that are no sixteen elements; too few rows.
#[test]
fn products_by_a_unit_for_matrices() {
    for (rows, k, columns, units) in
        [(37, 40, 70, 1), (4, 64, 33, 1), (16, 24, 16, 1), (65, 36, 9, 1), (3, 64, 64, 0), (40, 74, 64, 0)]
    {
        let weight =
            Tensor::from_f32(&[k, columns], &(0..k * columns).map(|n| (n % 23) as f32 - 11.0).collect::<Vec<_>>());
        let text = format!(
            "graph \"unit\" {{ input %0 : f32[{rows}, {k}]\n input %4 : f32[{rows}, {columns}]
             const %1 : f32[{k}, {columns}] = data 0
             %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{rows}, {columns}]
             %3 = map(%2, %4) body = {{ max(add(a0, a1), 0.0f32) }} : f32[{rows}, {columns}]
             output %3 \"y\" }}"
        );
        let graph = Graph::parse(&text, &[weight.unwrap()]).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let c = check_graph(Precision::Bf16, graph, &[&[]]);
        assert_eq!(by_unit(&c), units, "{rows} by {k} by {columns}");
    }
}

#[test]
fn convolutions_in_bf16() {
    for (x, weight, groups, out) in [
        ("[1, 8, 11, 10]", "[24, 8, 3, 3] = data 1", 1, "[1, 24, 11, 10]"),
        ("[2, 16, 7, 9]", "[24, 8, 3, 3] = data 1", 2, "[2, 24, 7, 9]"),
    ] {
        let dims: Vec<usize> = x.trim_matches(['[', ']']).split(", ").map(|d| d.parse().unwrap()).collect();
        let padded = format!("[{}, {}, {}, {}]", dims[0], dims[1], dims[2] + 2, dims[3] + 2);
        let c = check_at(
            Precision::Bf16,
            &format!(
                "input %0 : f32{x}\n const %1 : f32{weight}
                 %2 = pad(%0) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32{padded}
                 %3 = conv(%2, %1) strides = [1, 1], dilations = [1, 1], groups = {groups} : f32{out}
                 output %3 \"y\""
            ),
            &[&[]],
        );
        assert_eq!(pair_products(&c), 1, "{}", c.plan);
    }
}

/// Rows of pixels, down which the window moves by its stride.
#[test]
fn convolutions_by_a_unit_for_matrices() {
    let weight: Vec<f32> = (0..24 * 16 * 9).map(|n| (n % 23) as f32 - 11.0).collect();
    for (stride, out) in [(1, "11, 10"), (2, "6, 5")] {
        let text = format!(
            "graph \"unit\" {{ input %0 : f32[1, 16, 11, 10]\n const %1 : f32[24, 16, 3, 3] = data 0
             %2 = pad(%0) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32[1, 16, 13, 12]
             %3 = conv(%2, %1) strides = [{stride}, {stride}], dilations = [1, 1], groups = 1 : f32[1, 24, {out}]
             %4 = map(%3) body = {{ max(a0, 0.0f32) }} : f32[1, 24, {out}]
             %6 = reduce(%4) combine = max, axes = [2, 3], keep = false : f32[1, 24]
             output %6 \"y\" }}"
        );
        let data = [Tensor::from_f32(&[24, 16, 3, 3], &weight).unwrap()];
        let graph = Graph::parse(&text, &data).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let c = check_graph(Precision::Bf16, graph, &[&[]]);
        assert_eq!(by_unit(&c), 1, "{}", c.plan);
    }
}
