//! The unit for matrices: products that walk in stretches, and attention of pairs.

use crate::{by_tiles, check_graph, random};
use kiln_ir::graph::Graph;
use kiln_ir::interp::eval_graph;
use kiln_ir::tile::TileProgram;
use kiln_ir::{DType, Tensor};
use kiln_passes::kernel::Machine;
use kiln_passes::lower::{VectorTarget, lower};
use kiln_passes::pipeline::{Compiled, Precision, Target, optimise, schedule};

/// The number of the machine with the unit among those of [`check_graph`].
const AMX: usize = 4;

/// The texts of the kernels that the unit multiplies in.
fn by_unit(c: &Compiled, target: usize) -> Vec<String> {
    let texts: Vec<String> =
        c.kernels[target].iter().map(TileProgram::to_string).filter(|text| text.contains("multiply ")).collect();
    for text in &texts {
        assert_eq!(TileProgram::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}")).to_string(), *text);
    }
    texts
}

fn product(rows: usize, places: usize, columns: usize) -> String {
    let text = format!(
        "graph \"unit\" {{ input %0 : f32[{rows}, {places}]\n const %1 : f32[{places}, {columns}] = data 0
         %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{rows}, {columns}]
         %3 = map(%2) body = {{ max(a0, -0.5f32) }} : f32[{rows}, {columns}]\n output %3 \"y\" }}"
    );
    let weights = random(DType::F32, &[places, columns], 9);
    let graph = Graph::parse(&text, &[weights]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut kernels = by_unit(&check_graph(Precision::Bf16, graph, &[&[]]), AMX);
    assert_eq!(kernels.len(), 1);
    kernels.remove(0)
}

#[test]
fn products_walk_in_stretches() {
    // 11 steps are two stretches, of which the second is shorter; 9 blocks of rows are two groups, and 7 rows are left. With few panels the
    // groups are programs.
    for columns in [40, 392] {
        let kernel = product(9 * 32 + 7, 352, columns);
        assert!(kernel.contains(" adds pairs "), "{kernel}");
    }
    // One stretch; and weights that no near cache holds, of which the next stretch is asked for.
    let kernel = product(64, 256, 40);
    assert!(!kernel.contains(" adds ") && !kernel.contains(" ahead "), "{kernel}");
    let kernel = product(70, 352, 400);
    assert!(kernel.contains(" ahead ") && kernel.contains(" lines "), "{kernel}");
}

/// A convolution of three rows whose result lies channels last, as no output of a graph does.
fn convolution(size: usize, channels: usize, window: usize) -> String {
    let (inner, dims) = (size + 1 - window, "strides = [1, 1], dilations = [1, 1], groups = 1");
    let (high, half) = (window + 2, inner - 1);
    let text = format!(
        "graph \"unit\" {{ input %0 : f32[1, {channels}, {high}, {size}]\n const %1 : f32[32, {channels}, {window}, {window}] = data 0
         %3 = conv(%0, %1) {dims} : f32[1, 32, 3, {inner}]
         %4 = pool(%3) combine = max, window = [2, 2], strides = [1, 1], dilations = [1, 1] : f32[1, 32, 2, {half}]\n output %4 \"y\" }}"
    );
    let weights = random(DType::F32, &[32, channels, window, window], 9);
    let graph = Graph::parse(&text, &[weights]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let mut kernels = by_unit(&check_graph(Precision::Bf16, graph, &[&[]]), AMX);
    assert_eq!(kernels.len(), 1, "{size} {channels}");
    kernels.remove(0)
}

#[test]
fn convolutions_walk_in_stretches() {
    // All folds in one stretch; rows of the window in stretches, with places of a row in one.
    let kernel = convolution(148, 16, 3);
    assert!(!kernel.contains(" adds "), "{kernel}");
    let kernel = convolution(148, 64, 3);
    assert!(kernel.contains(" adds "), "{kernel}");
}

#[test]
fn the_channels_of_a_picture_are_planes() {
    // Pairs of 3 channels are two planes, and lie side by side along a row alone.
    for window in [3, 5] {
        let kernel = convolution(148, 3, window);
        assert!(kernel.contains(&format!("pairs by {window}")), "{kernel}");
    }
}

#[test]
fn rows_that_no_cache_holds_are_programs_in_groups() {
    // What is multiplied would take the interpreter minutes: only the form is looked at, and that all is in bounds.
    let text = "graph \"unit\" { input %0 : f32[1024, 1056]\n const %1 : f32[1056, 400] = data 0
         %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[1024, 400]\n output %2 \"y\" }";
    let graph = Graph::parse(text, &[random(DType::F32, &[1056, 400], 9)]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let graph = optimise(graph, Precision::Bf16, &mut |_, _, _| Ok(())).unwrap_or_else(|e| panic!("{e}"));
    let mut lowers = |_: &_, _: &_| Ok(());
    let mut targets = [Target { machine: Machine::amx(), lowers: &mut lowers, chosen: None }];
    let compiled = schedule(&graph, &mut targets).unwrap_or_else(|e| panic!("{e}"));
    compiled.kernels[0].iter().for_each(|k| k.verify(&Default::default()).unwrap_or_else(|e| panic!("{e:?}\n{k}")));
    let [kernel] = by_unit(&compiled, 0).try_into().unwrap();
    let first = kernel.lines().find(|line| line.contains("part grid"));
    assert!(first.is_some_and(|grid| grid.contains("(g") && grid.contains(" = 2, ")), "{kernel}");
}

const TARGET: VectorTarget = VectorTarget { bytes: 64, pairs: true, matrices: true, fused: true };

/// Heads of 64 numbers, all of which are exact in bf16.
fn attention(heads: usize, queries: usize, keys: usize) -> (Compiled, Vec<Tensor>, Vec<Tensor>) {
    let text = format!(
        "graph \"unit\" {{ input %0 : f32[1, {queries}, {heads}, 64]\n input %1 : f32[1, {keys}, {heads}, 64]
         input %2 : f32[1, {keys}, {heads}, 64]\n input %3 : f32[{queries}, {keys}]
         %4 = contract(%0, %1) lhs = \"bmhd\", rhs = \"bnhd\", out = \"bhmn\" : f32[1, {heads}, {queries}, {keys}]
         %5 = map(%4, %3) body = {{ add(mul(a0, 0.125f32), a1) }} : f32[1, {heads}, {queries}, {keys}]
         %6 = softmax(%5) axis = 3, log = false : f32[1, {heads}, {queries}, {keys}]
         %7 = contract(%6, %2) lhs = \"bhmn\", rhs = \"bnhd\", out = \"bmhd\" : f32[1, {queries}, {heads}, 64]
         output %7 \"y\" }}"
    );
    let graph = Graph::parse(&text, &[]).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let sixteenths = |shape: &[usize], seed: u64| {
        let values = random(DType::F32, shape, seed).to_f32().unwrap();
        let rounded: Vec<f32> = values.iter().map(|x| (x * 32.0).round() / 16.0).collect();
        Tensor::from_f32(shape, &rounded).unwrap()
    };
    let mut inputs: Vec<Tensor> =
        [(queries, 1), (keys, 2), (keys, 3)].map(|(n, seed)| sixteenths(&[1, n, heads, 64], seed)).into();
    inputs.push(sixteenths(&[queries, keys], 4));
    let want = eval_graph(&graph, &inputs, &Default::default()).unwrap();
    let graph = optimise(graph, Precision::F32, &mut |_, _, _| Ok(())).unwrap_or_else(|e| panic!("{e}"));
    let mut lowers = |program: &TileProgram, _: &_| match lower(program, TARGET, &[], &Default::default()) {
        Ok(vector) => vector.verify().map_err(|e| format!("{e:?}")),
        Err(e) => Err(e.to_string()),
    };
    let machine = Machine { rounds_attention: true, ..Machine::amx() };
    let mut targets = [Target { machine, lowers: &mut lowers, chosen: None }];
    let compiled = schedule(&graph, &mut targets).unwrap_or_else(|e| panic!("{e}"));
    assert!(compiled.host_reasons.is_empty(), "{:?}", compiled.host_reasons);
    let found = by_tiles(&compiled, 0, &inputs);
    (compiled, want, found)
}

#[test]
fn attention_of_pairs() {
    // Whole blocks; rows and keys that are left, of which one half of the pairs' is there or more; few heads, whose blocks are programs.
    for (heads, queries, keys) in [(4, 64, 128), (5, 37, 133), (4, 36, 151), (2, 70, 160), (1, 40, 129)] {
        let (c, want, found) = attention(heads, queries, keys);
        let kernels = by_unit(&c, 0);
        assert!(kernels.len() == 1 && kernels[0].contains("shares"), "{heads} {queries} {keys}\n{}", c.plan);
        // Shares are rounded, each by up to 2^-9 of it, and values are up to 2.
        let (want, found) = (want[0].to_f32().unwrap(), found[0].to_f32().unwrap());
        for (n, (w, f)) in want.iter().zip(&found).enumerate() {
            assert!((w - f).abs() < 2.0 / 512.0, "{heads} {queries} {keys}: element {n}, {w} {f}");
        }
    }
}

#[test]
fn attention_of_odd_forms_is_not_rounded() {
    // More keys than local memory has room for; rows of which too few are left.
    for (queries, keys) in [(32, 1200), (33, 128)] {
        let (c, _, _) = attention(1, queries, keys);
        assert!(by_unit(&c, 0).is_empty(), "{}", c.plan);
    }
}
