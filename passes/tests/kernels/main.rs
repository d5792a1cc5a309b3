//! Graphs through the whole pipeline, their plans run by the tile interpreter and compared with the graph interpreter.

mod attention;
mod borders;
mod bytes;
mod few_bits;
mod free_dims;
mod groups;
mod layouts;
mod moves;
mod orders;
mod pairs;
mod parts;
mod spread;
mod steps;
mod tiles;
mod unit;

use kiln_ir::graph::Graph;
use kiln_ir::interp::{Bindings, Options, eval_graph};
use kiln_ir::{DType, Expr, Symbol, Tensor};
use kiln_passes::kernel::Machine;
use kiln_passes::pipeline::{Compiled, PassError, Precision, Target, optimise, schedule};
use kiln_passes::plan::weights_section;

/// Seeded values: small integers where exactness matters, floats otherwise.
fn random(dtype: DType, shape: &[usize], seed: u64) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(1);
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::new();
    for _ in 0..shape.iter().product::<usize>() {
        let r = next();
        let c = match dtype {
            DType::Bool => kiln_ir::Constant { dtype, bits: r & 1 },
            d if d.is_float() => kiln_ir::Constant::float(d, (r >> 40) as f64 / (1u64 << 23) as f64 - 1.0),
            DType::I8 => kiln_ir::Constant::int(dtype, (r % 255) as i64 - 127),
            d => kiln_ir::Constant::int(d, (r % 3) as i64),
        };
        c.store(&mut bytes);
    }
    Tensor::new(dtype, shape.to_vec(), bytes).unwrap()
}

/// Runs a plan with every kernel in the tile interpreter.
fn by_tiles(compiled: &Compiled, target: usize, inputs: &[Tensor]) -> Vec<Tensor> {
    for program in &compiled.kernels[target] {
        let verified = program.verify(&compiled.plan.ranges());
        verified.unwrap_or_else(|errors| panic!("{errors:?}\n{program}"));
    }
    let weights = weights_section(&compiled.weights, compiled.plan.weight_bytes);
    kiln_ir::plan::run(&compiled.plan, &compiled.kernels[target], &weights, inputs).unwrap_or_else(|e| panic!("{e}"))
}

/// Compiles the graph and compares; returns what was compiled.
fn check(text: &str) -> Compiled {
    check_free(text, &[&[]])
}

/// Compiles the graph once and compares for each of some values of its free dims; returns what was compiled.
fn check_free(text: &str, bindings: &[&[(&str, i64)]]) -> Compiled {
    check_graph(Precision::F32, parsed(text), bindings)
}

/// The same in a precision: bit by bit the sums of what the passes rounded.
fn check_at(precision: Precision, text: &str, bindings: &[&[(&str, i64)]]) -> Compiled {
    check_graph(precision, parsed(text), bindings)
}

/// A graph whose constants are seeded.
fn parsed(text: &str) -> Graph {
    let source = format!("graph \"test\" {{\n{text}\n}}");
    let data: Vec<Tensor> = [
        (DType::F32, vec![20, 30]),
        (DType::F32, vec![24, 8, 3, 3]),
        (DType::F32, vec![16, 1, 3, 3]),
        (DType::F32, vec![13, 20]),
        (DType::U8, vec![600, 16, 32]),
        (DType::F32, vec![600, 16, 1]),
        (DType::I8, vec![24, 8, 3, 3]),
        (DType::I8, vec![16, 1, 3, 3]),
        (DType::I8, vec![30, 21]),
        (DType::I8, vec![5, 3, 2, 2]),
        (DType::F32, vec![16, 1]),
        (DType::U8, vec![768, 16, 32]),
        (DType::F32, vec![768, 16, 1]),
        (DType::F32, vec![768]),
        (DType::U8, vec![576, 16, 32]),
        (DType::F32, vec![576, 16, 1]),
        (DType::F32, vec![576]),
        (DType::F32, vec![1024, 16]),
        (DType::F32, vec![3, 1024]),
        (DType::F32, vec![1024, 256]),
        (DType::F32, vec![16, 1024, 1, 1]),
        (DType::F32, vec![1024, 2, 1, 1]),
        (DType::F32, vec![512, 2, 1, 1]),
        (DType::F32, vec![16, 512, 1, 1]),
    ]
    .iter()
    .enumerate()
    .map(|(n, (d, s))| random(*d, s, n as u64 + 100))
    .collect();
    Graph::parse(&source, &data).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

/// As [`check_at`], of a graph.
fn check_graph(precision: Precision, graph: Graph, bindings: &[&[(&str, i64)]]) -> Compiled {
    let original = graph.clone();
    let optimised = optimise(graph, precision, &mut |_, _, _| Ok(())).unwrap_or_else(|e| panic!("{e}"));
    let machines = [
        Machine::avx512(),
        Machine::avx2(),
        Machine::narrow(),
        Machine { enough_programs: 1, chunk: 16, ..Machine::narrow() },
        Machine::amx(),
    ];
    let targets = |lowers: &mut [Box<dyn FnMut(&_, &_) -> _>]| -> Compiled {
        let mut targets: Vec<Target<'_>> = machines
            .iter()
            .zip(lowers)
            .map(|(m, l)| Target { machine: m.clone(), lowers: &mut **l, chosen: None })
            .collect();
        schedule(&optimised, &mut targets).unwrap_or_else(|e| panic!("{e}"))
    };
    let compiled = targets(&mut [
        Box::new(|_, _| Ok(())),
        Box::new(|_, _| Ok(())),
        Box::new(|_, _| Ok(())),
        Box::new(|_, _| Ok(())),
        Box::new(|_, _| Ok(())),
    ]);
    for bound in bindings {
        let values: Bindings = bound.iter().map(|(name, value)| (Symbol::new(name), *value)).collect();
        let extent = |d: &Expr| usize::try_from(d.eval(&|s| values.get(s).copied()).unwrap()).unwrap();
        let input = |(n, &v): (usize, &_)| {
            let ty = original.ty(v);
            random(ty.dtype, &ty.dims.iter().map(extent).collect::<Vec<_>>(), n as u64)
        };
        let inputs: Vec<Tensor> = original.inputs.iter().enumerate().map(input).collect();
        let meant = if precision == Precision::F32 { &original } else { &optimised };
        let expected = eval_graph(meant, &inputs, &Options::default()).unwrap();
        for target in 0..machines.len() {
            let got = by_tiles(&compiled, target, &inputs);
            for (e, g) in expected.iter().zip(&got) {
                assert_eq!((e.dtype(), e.shape()), (g.dtype(), g.shape()));
                let (ev, gv) = (e.to_f64().unwrap(), g.to_f64().unwrap());
                let largest = ev.iter().fold(1e-30f64, |a, b| a.max(b.abs()));
                for (n, (a, b)) in ev.iter().zip(&gv).enumerate() {
                    let close = if e.dtype().is_float() { (a - b).abs() <= 2e-6 * largest } else { a == b };
                    // The text of all kernels takes longer than their runs: it is made where it is shown.
                    let shown = || {
                        let kernels: Vec<String> = compiled.kernels[target].iter().map(ToString::to_string).collect();
                        format!("{}\n{}", compiled.plan, kernels.join("\n"))
                    };
                    assert!(
                        close || a.is_nan() && b.is_nan(),
                        "{bound:?}: element {n}: {a} expected, {b} found\n{}",
                        shown()
                    );
                }
            }
        }
    }
    compiled
}

/// Rows of weights that lie as the caller has them, longer and shorter than what is read one row after the other, and such that vectors leave
/// some elements.
#[test]
fn a_row_meets_long_rows_one_after_the_other() {
    for (k, tile) in [(1030, "f32[1,1,64]"), (528, "f32[1,1,48]"), (560, "f32[1,7,16]"), (496, "f32[1,7,16]")] {
        let c = check(&format!(
            "input %0 : f32[1, {k}]\n input %1 : f32[7, {k}]
             %2 = contract(%0, %1) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[1, 7]\n output %2 \"y\""
        ));
        let kernel = c.kernels[0].last().unwrap().to_string();
        assert!(kernel.contains(&format!("{tile} = fma")), "{k}: {kernel}");
    }
}

/// What vectors leave of a row is added up in shorter ones and apart from the rest, so that no element is rounded as the whole sum is.
#[test]
fn the_rest_of_a_row_is_folded_by_itself() {
    let c = check(
        "input %0 : f32[3, 79]
         %1 = reduce(%0) combine = add, axes = [1], keep = false : f32[3]\n output %1 \"y\"",
    );
    let kernel = c.kernels[0].last().unwrap().to_string();
    for tile in ["f32[1,1,64] = load", "f32[1,1,8] = load", "f32[1,1,4] = load"] {
        assert!(kernel.contains(tile), "{tile}: {kernel}");
    }
    assert_eq!(kernel.matches("f32[1,1,1] = load").count(), 3, "{kernel}");
}

#[test]
fn elementwise_chains_become_one_kernel() {
    let c = check(
        "input %0 : f32[3, 5, 37]\n input %1 : f32[37]\n input %2 : f32[5, 1]
         %3 = map(%0, %1) body = { add(a0, a1) } : f32[3, 5, 37]
         %4 = map(%3, %2) body = { mul(a0, sigmoid(a1)) } : f32[3, 5, 37]
         %5 = map(%4) body = { max(a0, 0.1f32) } : f32[3, 5, 37]
         output %5 \"y\"",
    );
    assert_eq!(c.kernels[0].len(), 1);
}

#[test]
fn products_with_weights_are_packed_and_take_their_epilogue() {
    for m in [1, 2, 7, 33] {
        let c = check(&format!(
            "input %0 : f32[{m}, 20]\n const %1 : f32[20, 30] = data 0\n input %2 : f32[30]
             %3 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{m}, 30]
             %4 = map(%3, %2) body = {{ add(a0, a1) }} : f32[{m}, 30]
             %5 = map(%4) body = {{ mul(a0, add(erf(a0), 1.0f32)) }} : f32[{m}, 30]
             output %5 \"y\""
        ));
        assert_eq!(c.kernels[0].len(), 1);
        assert!(c.plan.kernels[0].what.starts_with("contract+"));
    }
    check(
        "input %0 : f32[6, 20]\n const %1 : f32[13, 20] = data 3
         %3 = contract(%0, %1) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[6, 13]
         output %3 \"y\"",
    );
}

#[test]
fn columns_that_no_vector_has_are_one_tile_that_overhangs() {
    for columns in [1, 2, 3, 5, 7, 9, 10, 12, 15, 17, 18, 29] {
        // Something for each column and for each element, and a row of its own, come after the product.
        let c = check(&format!(
            "input %0 : f32[23, 20]\n const %1 : f32[20, 30] = data 0\n input %2 : f32[{columns}]\n input %3 : f32[23, {columns}]
             input %4 : f32[23, 1]
             %5 = slice(%1) starts = [0, 0], steps = [1, 1], dims = [20, {columns}] : f32[20, {columns}]
             %6 = contract(%0, %5) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[23, {columns}]
             %7 = map(%6, %2, %3, %4) body = {{ mul(add(add(a0, a1), a2), a3) }} : f32[23, {columns}]
             output %7 \"y\""
        ));
        // Of each level: what overhangs is not stored, which only masks say.
        let overhangs = c.kernels.iter().map(|k| k[0].to_string().contains(" if("));
        let expected = [16, 8, 4].map(|lanes| ![0, 1, 4, 8].contains(&(columns % lanes)));
        let expected: Vec<bool> = expected.into_iter().chain([expected[2], expected[0]]).collect();
        assert_eq!(overhangs.collect::<Vec<_>>(), expected, "{columns}\n{}", c.kernels[0][0]);
    }
    // The weight is no constant, so that nothing lies behind its last row.
    for columns in [3, 15, 31] {
        check(&format!(
            "input %0 : f32[23, 20]\n input %1 : f32[20, {columns}]
             %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[23, {columns}]\n output %2 \"y\""
        ));
    }
}

#[test]
fn attention_products_and_softmax() {
    let c = check(
        "input %0 : f32[1, 9, 12]\n input %1 : f32[1, 9, 12]\n input %2 : f32[1, 9, 12]
         %3 = reshape(%0) dims = [1, 9, 2, 6] : f32[1, 9, 2, 6]
         %4 = transpose(%3) perm = [0, 2, 1, 3] : f32[1, 2, 9, 6]
         %5 = reshape(%1) dims = [1, 9, 2, 6] : f32[1, 9, 2, 6]
         %6 = transpose(%5) perm = [0, 2, 3, 1] : f32[1, 2, 6, 9]
         %7 = contract(%4, %6) lhs = \"bhsd\", rhs = \"bhdt\", out = \"bhst\" : f32[1, 2, 9, 9]
         %8 = map(%7) body = { div(a0, 2.5f32) } : f32[1, 2, 9, 9]
         %9 = softmax(%8) axis = 3, log = false : f32[1, 2, 9, 9]
         %10 = reshape(%2) dims = [1, 9, 2, 6] : f32[1, 9, 2, 6]
         %11 = transpose(%10) perm = [0, 2, 1, 3] : f32[1, 2, 9, 6]
         %12 = contract(%9, %11) lhs = \"bhst\", rhs = \"bhtd\", out = \"bhsd\" : f32[1, 2, 9, 6]
         %13 = transpose(%12) perm = [0, 2, 1, 3] : f32[1, 9, 2, 6]
         %14 = reshape(%13) dims = [1, 9, 12] : f32[1, 9, 12]
         output %14 \"y\"",
    );
    assert!(c.kernels[0].len() <= 4, "{}", c.plan);
}

#[test]
fn convolutions_channels_last() {
    let c = check(
        "input %0 : f32[1, 8, 11, 10]\n const %1 : f32[24, 8, 3, 3] = data 1\n input %2 : f32[24, 1, 1]
         %3 = pad(%0) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32[1, 8, 13, 12]
         %4 = conv(%3, %1) strides = [2, 2], dilations = [1, 1], groups = 1 : f32[1, 24, 6, 5]
         %5 = map(%4, %2) body = { max(add(a0, a1), 0.0f32) } : f32[1, 24, 6, 5]
         %6 = slice(%5) starts = [0, 0, 0, 0], steps = [1, 1, 1, 1], dims = [1, 16, 6, 5] : f32[1, 16, 6, 5]
         const %7 : f32[16, 1, 3, 3] = data 2
         %8 = pad(%6) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32[1, 16, 8, 7]
         %9 = conv(%8, %7) strides = [1, 1], dilations = [1, 1], groups = 16 : f32[1, 16, 6, 5]
         %10 = pool(%9) combine = max, window = [2, 2], strides = [2, 2], dilations = [1, 1] : f32[1, 16, 3, 2]
         %11 = reduce(%10) combine = add, axes = [2, 3], keep = true : f32[1, 16, 1, 1]
         %12 = reshape(%11) dims = [1, 16] : f32[1, 16]
         output %12 \"y\"\n output %9 \"z\"",
    );
    assert!(c.kernels[0].len() <= 7, "{}", c.plan);
}

#[test]
fn normalization_is_recognised_and_computed_in_one_pass_of_rows() {
    let c = check(
        "input %0 : f32[4, 7, 50]\n input %1 : f32[50]\n input %2 : f32[50]\n const %3 : f32[] = [0.00001f32]\n const %4 : f32[] = [2.0f32]
         %5 = reduce(%0) combine = add, axes = [2], keep = true : f32[4, 7, 1]
         %6 = map(%5) body = { div(a0, 50.0f32) } : f32[4, 7, 1]
         %7 = map(%0, %6) body = { sub(a0, a1) } : f32[4, 7, 50]
         %8 = map(%7, %4) body = { pow(a0, a1) } : f32[4, 7, 50]
         %9 = reduce(%8) combine = add, axes = [2], keep = true : f32[4, 7, 1]
         %10 = map(%9) body = { div(a0, 50.0f32) } : f32[4, 7, 1]
         %11 = map(%10, %3) body = { add(a0, a1) } : f32[4, 7, 1]
         %12 = map(%11) body = { sqrt(a0) } : f32[4, 7, 1]
         %13 = map(%7, %12) body = { div(a0, a1) } : f32[4, 7, 50]
         %14 = map(%13, %1) body = { mul(a0, a1) } : f32[4, 7, 50]
         %15 = map(%14, %2) body = { add(a0, a1) } : f32[4, 7, 50]
         output %15 \"y\"",
    );
    assert_eq!(c.kernels[0].len(), 1, "{}", c.plan);
    assert!(c.plan.kernels[0].what.starts_with("norm"));
}

#[test]
fn reductions_of_every_shape() {
    for (axes, dims) in
        [("[2]", "4, 5, 1"), ("[0]", "1, 5, 19"), ("[1]", "4, 1, 19"), ("[0, 2]", "1, 5, 1"), ("[0, 1, 2]", "1, 1, 1")]
    {
        for (combine, ty) in [("add", "f32"), ("max", "f32"), ("min", "i32"), ("mul", "f32"), ("add", "i64")] {
            check(&format!(
                "input %0 : {ty}[4, 5, 19]\n %1 = reduce(%0) combine = {combine}, axes = {axes}, keep = true : {ty}[{dims}]\n output %1 \"y\""
            ));
        }
    }
}

#[test]
fn softmax_along_any_axis() {
    for axis in 0..3 {
        for log in [true, false] {
            check(&format!(
                "input %0 : f32[4, 6, 21]\n %1 = softmax(%0) axis = {axis}, log = {log} : f32[4, 6, 21]\n output %1 \"y\""
            ));
        }
    }
}

#[test]
fn moves_of_every_kind() {
    check(
        "input %0 : f32[2, 3, 10]\n input %1 : f32[2, 5, 10]\n input %2 : i64[4]
         %3 = concat(%0, %1) axis = 1 : f32[2, 8, 10]
         %4 = gather(%3, %2) axis = 1 : f32[2, 4, 10]
         %5 = slice(%4) starts = [1, 3, 9], steps = [-1, -1, -2], dims = [2, 3, 5] : f32[2, 3, 5]
         %6 = transpose(%5) perm = [2, 0, 1] : f32[5, 2, 3]
         %7 = reshape(%6) dims = [6, 5] : f32[6, 5]
         %8 = broadcast(%7) dims = [3, 6, 5] : f32[3, 6, 5]
         %9 = pad(%8) low = [1, 0, 2], high = [0, 1, 0], interior = [0, 1, 0], value = 7.0f32 : f32[4, 12, 7]
         output %9 \"y\"\n output %3 \"z\"\n output %7 \"w\"",
    );
    check(
        "input %0 : i32[3, 4]\n %1 = concat(%0, %0, %0) axis = 1 : i32[3, 12]\n output %1 \"y\"\n output %0 \"x\"\n output %1 \"z\"",
    );
    check("%0 = iota() dims = [3, 4], axis = 1 : i64[3, 4]\n output %0 \"y\"");
    check(
        "input %0 : f32[0, 4]\n %1 = map(%0) body = { exp(a0) } : f32[0, 4]\n %2 = reduce(%1) combine = add, axes = [0], keep = false : f32[4]\n output %1 \"y\"\n output %2 \"z\"",
    );
    check("input %0 : f32[]\n %1 = map(%0) body = { exp(a0) } : f32[]\n output %1 \"y\"");
}

#[test]
fn host_nodes_stay_between_kernels() {
    let c = check(
        "input %0 : f32[4, 6]
         %1 = map(%0) body = { neg(a0) } : f32[4, 6]
         %2 = host(%1) function = arg_reduce, axis = 1, keep = true, max = true, last = false : i64[4, 1]
         %3 = map(%2) body = { add(a0, 1i64) } : i64[4, 1]
         %4 = map(%0) body = { to_f8e5m2(a0) } : f8e5m2[4, 6]
         output %3 \"y\"\n output %4 \"h\"",
    );
    assert_eq!(c.host_reasons.len(), 1);
}

/// Queries times keys: the keys are copied with the columns last, so that no sum runs along lanes; where each key is read a few times
/// only it is not.
#[test]
fn operands_that_are_read_often_have_their_columns_side_by_side() {
    for (rows, kernels) in [(40, 2), (5, 1)] {
        let c = check(&format!(
            "input %0 : f32[1, {rows}, 2, 24]\n input %1 : f32[1, 19, 2, 24]
             %2 = contract(%0, %1) lhs = \"aybz\", rhs = \"axbz\", out = \"abyx\" : f32[1, 2, {rows}, 19]
             %3 = map(%2) body = {{ mul(a0, 0.125f32) }} : f32[1, 2, {rows}, 19]
             output %3 \"y\""
        ));
        assert_eq!(c.kernels[0].len(), kernels, "{}", c.plan);
    }
}

#[test]
fn a_result_that_no_memory_holds_is_named() {
    let graph = parsed(
        "input %0 : f32[1]
         %1 \"vast\" = broadcast(%0) dims = [1048576, 1048576, 1024] : f32[1048576, 1048576, 1024]
         output %1 \"y\"",
    );
    let mut lowers = |_: &_, _: &_| Ok(());
    let target = Target { machine: Machine::narrow(), lowers: &mut lowers, chosen: None };
    let error = schedule(&graph, &mut [target]).unwrap_err();
    assert!(matches!(error, PassError::TooLarge(..)) && error.to_string().contains("\"vast\""), "{error}");
}
