//! Graphs through the whole pipeline, their plans run by the tile interpreter and compared with the graph interpreter.

use kiln_ir::graph::Graph;
use kiln_ir::interp::{Bindings, Options, eval_graph};
use kiln_ir::{DType, Expr, Symbol, Tensor};
use kiln_passes::kernel::Machine;
use kiln_passes::pipeline::{Compiled, Precision, Target, optimise, schedule};
use kiln_passes::plan::weights_section;
use kiln_passes::rewrite::{activations_in_bytes, has_block_products};

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
                    let kernels: Vec<String> = compiled.kernels[target].iter().map(ToString::to_string).collect();
                    assert!(
                        close || a.is_nan() && b.is_nan(),
                        "{bound:?}: element {n}: {a} expected, {b} found\n{}\n{}",
                        compiled.plan,
                        kernels.join("\n")
                    );
                }
            }
        }
    }
    compiled
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

/// A quantized convolution with a border as exporters write it, on `pixels` of that many channels. All scales are powers of two: what
/// integers compute is exactly what the floats come to.
fn quantized_convolution(dtype: &str, zero: i64, x: [usize; 4], w: [usize; 4], data: usize, groups: usize) -> Compiled {
    let [n, c, h, width] = x;
    let (rows, columns) = (h + 2 - w[2] + 1, width + 2 - w[3] + 1);
    let out = format!("[{n}, {}, {rows}, {columns}]", w[0]);
    let (low, high) = if dtype == "u8" { (0.0, 255.0) } else { (-128.0, 127.0) };
    check(&format!(
        "input %0 : f32[{n}, {c}, {h}, {width}]
         const %1 : f32[] = [0.015625f32]
         const %2 : {dtype}[] = [{zero}{dtype}]
         %3 = map(%0, %1, %2) body = {{ to_{dtype}(min(max(add(round(div(a0, a1)), to_f32(a2)), {low:?}f32), {high:?}f32)) }}
            : {dtype}[{n}, {c}, {h}, {width}]
         %4 = map(%3, %1, %2) body = {{ mul(to_f32(sub(to_i32(a0), to_i32(a2))), a1) }} : f32[{n}, {c}, {h}, {width}]
         %5 = pad(%4) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32
            : f32[{n}, {c}, {}, {}]
         const %6 : i8{w:?} = data {data}
         const %7 : f32[] = [0.0078125f32]
         %8 = map(%6, %7) body = {{ mul(to_f32(a0), a1) }} : f32{w:?}
         %9 = conv(%5, %8) strides = [1, 1], dilations = [1, 1], groups = {groups} : f32{out}
         const %10 : f32[1, 1, 1] = [0.25f32]
         %11 = map(%9, %10) body = {{ add(a0, a1) }} : f32{out}
         %12 = map(%11) body = {{ max(a0, 0.0f32) }} : f32{out}
         const %13 : f32[] = [0.0625f32]
         const %14 : u8[] = [3u8]
         %15 = map(%12, %13, %14) body = {{ to_u8(min(max(add(round(div(a0, a1)), to_f32(a2)), 0.0f32), 255.0f32)) }} : u8{out}
         output %15 \"y\"",
        h + 2,
        width + 2
    ))
}

/// The kernels of products of bytes.
fn byte_products(c: &Compiled) -> usize {
    c.kernels[0].iter().filter(|k| k.to_string().contains("dot4")).count()
}

#[test]
fn quantized_convolutions_are_products_of_bytes() {
    for (dtype, zero) in [("u8", 0), ("u8", 7), ("i8", -3)] {
        // Channels that are packed in place, that are not, and one for each group.
        for (x, w, data, groups) in [
            ([1, 8, 7, 9], [24, 8, 3, 3], 6, 1),
            ([2, 3, 6, 5], [5, 3, 2, 2], 9, 1),
            ([1, 16, 5, 6], [16, 1, 3, 3], 7, 16),
        ] {
            let c = quantized_convolution(dtype, zero, x, w, data, groups);
            assert_eq!(byte_products(&c), 1, "{}", c.plan);
        }
    }
}

#[test]
fn integer_products_take_zero_points_out_of_the_sum() {
    for m in [1, 5, 40] {
        for (dtype, zero) in [("u8", ""), ("i8", ""), ("u8", "const %1 : u8[] = [200u8]")] {
            let given = if zero.is_empty() { format!("input %1 : {dtype}[]") } else { zero.into() };
            let c = check(&format!(
                "input %0 : {dtype}[{m}, 30]
                 {given}
                 const %2 : i8[30, 21] = data 8
                 %3 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[{m}, 30]
                 %4 = map(%2) body = {{ to_i32(a0) }} : i32[30, 21]
                 %5 = contract(%3, %4) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : i32[{m}, 21]
                 output %5 \"y\""
            ));
            assert_eq!(byte_products(&c), 1, "{}", c.plan);
        }
    }
}

/// Weights whose zero point is far from their middle are no signed bytes without it.
#[test]
fn weights_with_any_zero_point_are_products_of_bytes() {
    for (dtype, zero) in [("u8", "7"), ("i8", "-3")] {
        for (m, letters) in [(1, "mn"), (5, "nm")] {
            let made = if letters == "mn" { format!("[{m}, 21]") } else { format!("[21, {m}]") };
            let c = check(&format!(
                "input %0 : {dtype}[{m}, 30]\n const %1 : {dtype}[] = [{zero}{dtype}]
                 const %2 : i8[30, 21] = data 8\n const %3 : i8[] = [60i8]
                 %4 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[{m}, 30]
                 %5 = map(%2, %3) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[30, 21]
                 %6 = contract(%4, %5) lhs = \"mk\", rhs = \"kn\", out = \"{letters}\" : i32{made}
                 output %6 \"y\""
            ));
            assert!(byte_products(&c) >= 1, "{}", c.plan);
        }
        for (x, w, made, data, groups, strides) in [
            ("[1, 8, 7, 9]", "[24, 8, 3, 3]", "[1, 24, 3, 4]", 6, 1, "[2, 2]"),
            ("[2, 3, 6, 5]", "[5, 3, 2, 2]", "[2, 5, 5, 4]", 9, 1, "[1, 1]"),
            ("[1, 16, 5, 6]", "[16, 1, 3, 3]", "[1, 16, 3, 4]", 7, 16, "[1, 1]"),
        ] {
            let c = check(&format!(
                "input %0 : {dtype}{x}\n const %1 : {dtype}[] = [{zero}{dtype}]
                 const %2 : i8{w} = data {data}\n const %3 : i8[] = [60i8]
                 %4 = map(%0, %1) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32{x}
                 %5 = map(%2, %3) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32{w}
                 %6 = conv(%4, %5) strides = {strides}, dilations = [1, 1], groups = {groups} : i32{made}
                 output %6 \"y\""
            ));
            assert!(byte_products(&c) >= 1, "{}", c.plan);
        }
    }
}

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

#[test]
fn products_of_two_activations_are_products_of_bytes() {
    for (left, right) in [("u8", "i8"), ("u8", "u8"), ("i8", "i8"), ("i8", "u8")] {
        for (m, k, n) in [(1, 30, 21), (5, 32, 40)] {
            for known in [true, false] {
                let zero = |at: &str, dtype: &str, value: &str| match known {
                    true => format!("const {at} : {dtype}[] = [{value}{dtype}]"),
                    false => format!("input {at} : {dtype}[]"),
                };
                let c = check(&format!(
                    "input %0 : {left}[2, {m}, {k}]
                     input %1 : {right}[2, {n}, {k}]
                     {}
                     {}
                     %4 = map(%0, %2) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[2, {m}, {k}]
                     %5 = map(%1, %3) body = {{ sub(to_i32(a0), to_i32(a1)) }} : i32[2, {n}, {k}]
                     %6 = contract(%4, %5) lhs = \"bmk\", rhs = \"bnk\", out = \"bmn\" : i32[2, {m}, {n}]
                     %7 = contract(%5, %4) lhs = \"bnk\", rhs = \"bmk\", out = \"mbn\" : i32[{m}, 2, {n}]
                     output %6 \"y\"\n output %7 \"turned\"",
                    zero("%2", left, "3"),
                    zero("%3", right, "100"),
                ));
                assert!(byte_products(&c) >= 2, "{}", c.plan);
            }
        }
    }
}

/// Attention of a model in which every value is quantized.
#[test]
fn quantized_attention_stays_in_bytes() {
    let quantize = |from: &str, to: &str, dims: &str, (scale, zero): (&str, u8)| {
        format!(
            "const {to}1 : f32[] = [{scale}f32]\n const {to}2 : u8[] = [{zero}u8]
             {to}3 = map({from}, {to}1, {to}2)
                body = {{ to_u8(min(max(add(round(div(a0, a1)), to_f32(a2)), 0.0f32), 255.0f32)) }} : u8{dims}
             {to} = map({to}3, {to}1, {to}2) body = {{ mul(to_f32(sub(to_i32(a0), to_i32(a2))), a1) }} : f32{dims}\n"
        )
    };
    let head = |from: &str, to: &str, perm: &str, made: &str| {
        let line = ("0.015625", 120);
        format!(
            "{}{to}5 = reshape({to}4) dims = [1, 6, 2, 8] : f32[1, 6, 2, 8]\n{}
             {to}7 = transpose({to}6) perm = {perm} : f32{made}\n{}",
            quantize(from, &format!("{to}4"), "[1, 6, 16]", line),
            quantize(&format!("{to}5"), &format!("{to}6"), "[1, 6, 2, 8]", line),
            quantize(&format!("{to}7"), to, made, line),
        )
    };
    let text = format!(
        "input %0 : f32[1, 6, 16]\n input %1 : f32[1, 6, 16]\n input %2 : f32[1, 6, 16]
         {}{}{}%7 = contract(%4, %5) lhs = \"bhmk\", rhs = \"bhkn\", out = \"bhmn\" : f32[1, 2, 6, 6]
         {}%9 = contract(%8, %6) lhs = \"bhmk\", rhs = \"bhkn\", out = \"bhmn\" : f32[1, 2, 6, 8]
         {}output %39 \"y\"",
        head("%0", "%4", "[0, 2, 1, 3]", "[1, 2, 6, 8]"),
        head("%1", "%5", "[0, 2, 3, 1]", "[1, 2, 8, 6]"),
        head("%2", "%6", "[0, 2, 1, 3]", "[1, 2, 6, 8]"),
        quantize("%7", "%8", "[1, 2, 6, 6]", ("0.03125", 128)),
        quantize("%9", "%39", "[1, 2, 6, 8]", ("0.0625", 110)),
    );
    let c = check(&text);
    assert!(byte_products(&c) >= 2, "{}", c.plan);
    // Nothing but the model's inputs and its output is in memory as floats.
    let floats = c.scheduled.groups().filter(|g| c.scheduled.graph.ty(g.output).dtype == DType::F32).count();
    assert_eq!(floats, 1, "{}", c.plan);
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

/// Small, ragged and large values of two dims.
const SIZES: &[&[(&str, i64)]] = &[
    &[("batch", 1), ("seq", 1)],
    &[("batch", 2), ("seq", 3)],
    &[("batch", 1), ("seq", 17)],
    &[("batch", 3), ("seq", 40)],
];

#[test]
fn free_dims_elementwise() {
    let c = check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, seq, 37]\n input %1 : f32[37]\n input %2 : f32[seq, 1]
         %3 = map(%0, %1) body = { add(a0, a1) } : f32[batch, seq, 37]
         %4 = map(%3, %2) body = { mul(a0, sigmoid(a1)) } : f32[batch, seq, 37]
         output %4 \"y\"",
        SIZES,
    );
    assert_eq!(c.kernels[0].len(), 1);
    // The innermost axis in memory is free.
    check_free(
        "symbol batch in 1..64\n symbol seq in 0..512
         input %0 : f32[batch, seq]\n input %1 : f32[seq]
         %3 = map(%0, %1) body = { add(a0, a1) } : f32[batch, seq]
         %4 = transpose(%3) perm = [1, 0] : f32[seq, batch]
         output %4 \"y\"\n output %3 \"z\"",
        &[SIZES[0], SIZES[1], SIZES[2], SIZES[3], &[("batch", 2), ("seq", 0)]],
    );
}

#[test]
fn free_dims_products_take_packed_weights_and_epilogues() {
    let c = check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, seq, 20]\n const %1 : f32[20, 30] = data 0\n input %2 : f32[30]
         %3 = contract(%0, %1) lhs = \"bmk\", rhs = \"kn\", out = \"bmn\" : f32[batch, seq, 30]
         %4 = map(%3, %2) body = { add(a0, a1) } : f32[batch, seq, 30]
         %5 = map(%4) body = { mul(a0, add(erf(a0), 1.0f32)) } : f32[batch, seq, 30]
         output %5 \"y\"",
        SIZES,
    );
    assert_eq!(c.kernels[0].len(), 1);
}

#[test]
fn free_dims_attention() {
    let c = check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, seq, 12]\n input %1 : f32[batch, seq, 12]\n input %2 : f32[batch, seq, 12]
         %3 = reshape(%0) dims = [batch, seq, 2, 6] : f32[batch, seq, 2, 6]
         %4 = transpose(%3) perm = [0, 2, 1, 3] : f32[batch, 2, seq, 6]
         %5 = reshape(%1) dims = [batch, seq, 2, 6] : f32[batch, seq, 2, 6]
         %6 = transpose(%5) perm = [0, 2, 3, 1] : f32[batch, 2, 6, seq]
         %7 = contract(%4, %6) lhs = \"bhsd\", rhs = \"bhdt\", out = \"bhst\" : f32[batch, 2, seq, seq]
         %8 = map(%7) body = { div(a0, 2.5f32) } : f32[batch, 2, seq, seq]
         %9 = softmax(%8) axis = 3, log = false : f32[batch, 2, seq, seq]
         %10 = reshape(%2) dims = [batch, seq, 2, 6] : f32[batch, seq, 2, 6]
         %11 = transpose(%10) perm = [0, 2, 1, 3] : f32[batch, 2, seq, 6]
         %12 = contract(%9, %11) lhs = \"bhst\", rhs = \"bhtd\", out = \"bhsd\" : f32[batch, 2, seq, 6]
         %13 = transpose(%12) perm = [0, 2, 1, 3] : f32[batch, seq, 2, 6]
         %14 = reshape(%13) dims = [batch, seq, 12] : f32[batch, seq, 12]
         output %14 \"y\"",
        SIZES,
    );
    assert!(c.kernels[0].len() <= 5, "{}", c.plan);
}

#[test]
fn free_dims_of_images() {
    check_free(
        "symbol h in 4..64\n symbol w in 4..64
         input %0 : f32[1, 8, h, w]\n const %1 : f32[24, 8, 3, 3] = data 1\n input %2 : f32[24, 1, 1]
         %3 = pad(%0) low = [0, 0, 1, 1], high = [0, 0, 1, 1], interior = [0, 0, 0, 0], value = 0.0f32 : f32[1, 8, h + 2, w + 2]
         %4 = conv(%3, %1) strides = [2, 2], dilations = [1, 1], groups = 1 : f32[1, 24, floordiv(h - 1, 2) + 1, floordiv(w - 1, 2) + 1]
         %5 = map(%4, %2) body = { max(add(a0, a1), 0.0f32) } : f32[1, 24, floordiv(h - 1, 2) + 1, floordiv(w - 1, 2) + 1]
         %6 = pool(%5) combine = max, window = [2, 2], strides = [1, 1], dilations = [1, 1] : f32[1, 24, floordiv(h - 1, 2), floordiv(w - 1, 2)]
         %7 = reduce(%6) combine = add, axes = [2, 3], keep = true : f32[1, 24, 1, 1]
         output %6 \"y\"\n output %7 \"z\"",
        &[&[("h", 4), ("w", 4)], &[("h", 11), ("w", 10)], &[("h", 33), ("w", 7)]],
    );
}

#[test]
fn free_dims_rows_folds_and_moves() {
    check_free(
        "symbol batch in 1..64\n symbol seq in 1..512
         input %0 : f32[batch, 4, seq]\n input %1 : f32[batch, 4, 5]
         %2 = softmax(%0) axis = 2, log = false : f32[batch, 4, seq]
         %3 = reduce(%0) combine = max, axes = [2], keep = true : f32[batch, 4, 1]
         %4 = reduce(%0) combine = add, axes = [0], keep = false : f32[4, seq]
         %5 = concat(%0, %1) axis = 2 : f32[batch, 4, seq + 5]
         %6 = slice(%5) starts = [0, 1, 2], steps = [1, 2, 1], dims = [batch, 2, seq] : f32[batch, 2, seq]
         %7 = map(%5) body = { mul(a0, 2.0f32) } : f32[batch, 4, seq + 5]
         %8 = reshape(%7) dims = [4*batch, seq + 5] : f32[4*batch, seq + 5]
         %9 = transpose(%8) perm = [1, 0] : f32[seq + 5, 4*batch]
         output %2 \"a\"\n output %3 \"b\"\n output %4 \"c\"\n output %6 \"d\"\n output %9 \"e\"",
        SIZES,
    );
}

#[test]
fn weights_of_few_bits_are_unpacked_in_the_product() {
    // Smaller weights would be unpacked at compile time.
    for rows in [1, 3] {
        let c = check(&format!(
            "input %0 : f32[{rows}, 512]\n const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
             %3 = map(%1, %2) body = {{ mul(sub(to_f32(a0), 8.0f32), a1) }} : f32[600, 16, 32]
             %4 = reshape(%3) dims = [600, 512] : f32[600, 512]
             %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[{rows}, 600]
             output %5 \"y\""
        ));
        assert_eq!(c.kernels[0].len(), 1, "{}", c.plan);
        let text = c.kernels[0][0].to_string();
        // Bytes are widened by their loads, a vector of columns at a time.
        assert!(text.contains("i32[1,128,1] = load in1[") || text.contains("i32[1,32,1] = load in1["), "{text}");
        // For one row the scale is read twice for the 32 steps of a block: for their sum, and with the zero point.
        let scales = text.matches("load in2[").count();
        let steps = text.matches("load in1[").count();
        assert!(if rows == 1 { steps == 16 * scales } else { steps == scales }, "{scales} of {steps}: {text}");
    }
}

/// A weight of few bits as a graph's text, with its scales.
const FEW_BITS: &str = "const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
    %3 = map(%1, %2) body = { mul(sub(to_f32(a0), 8.0f32), a1) } : f32[600, 16, 32]
    %4 = reshape(%3) dims = [600, 512] : f32[600, 512]";

#[test]
fn activations_are_rounded_to_bytes_where_that_is_asked_for() {
    for rows in [1i64, 2, 7] {
        let text = format!(
            "input %0 : f32[{rows}, 512]\n {FEW_BITS}
             %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[{rows}, 600]
             output %5 \"y\""
        );
        let graph = parsed(&text);
        let rounded = activations_in_bytes(&graph).unwrap();
        assert!(has_block_products(&rounded), "{rounded}");
        let x = random(DType::F32, &[rows as usize, 512], 7);
        let found = eval_graph(&rounded, std::slice::from_ref(&x), &Options::default()).unwrap();
        // The same by hand, of rows rounded by hand.
        let constant = |n: usize| graph.constant(graph.nodes().next().unwrap().1.inputs[n]).unwrap().to_f64().unwrap();
        let (numbers, scales) = (constant(0), constant(1));
        let (x, y) = (x.to_f64().unwrap(), found[0].to_f64().unwrap());
        let rounded_row = |row: &[f64]| -> Vec<f64> {
            row.chunks(32)
                .flat_map(|block| {
                    let step = block.iter().fold(0f64, |m, v| m.max(v.abs())) / 127.0;
                    block.iter().map(move |v| (v / step).round_ties_even() * step)
                })
                .collect()
        };
        let (mut worst, mut lost) = (0f64, 0f64);
        for (m, row) in x.chunks(512).enumerate() {
            let near = rounded_row(row);
            for n in 0..600 {
                let weight = |k: usize| (numbers[n * 512 + k] - 8.0) * scales[n * 16 + k / 32];
                let sum = |x: &[f64]| x.iter().enumerate().map(|(k, x)| x * weight(k)).sum::<f64>();
                worst = worst.max((sum(&near) - y[m * 600 + n]).abs());
                lost = lost.max((sum(row) - y[m * 600 + n]).abs());
            }
        }
        let largest = y.iter().fold(0f64, |a, b| a.max(b.abs()));
        // A tie may be rounded to either side.
        assert!(worst < 1e-3 * largest && lost > worst && lost < 0.02 * largest, "{worst} {lost} of {largest}");
        // Rounding, sums and numbers of the rows, and the product.
        assert_eq!(check_graph(Precision::F32, rounded, &[&[]]).kernels[0].len(), 4);
    }
}

#[test]
fn rows_of_a_table_are_picked_from_what_the_product_reads() {
    let text = format!(
        "input %0 : f32[3, 512]\n input %6 : i64[2]\n {FEW_BITS}
         %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[3, 600]
         %7 = gather(%1, %6) axis = 0 : u8[2, 16, 32]\n output %5 \"y\"\n output %7 \"rows\""
    );
    // Numbers of 8 bits; those of 4 are two a byte in the product, and one each in the table.
    let mut graph = parsed(&text.replace("8.0f32", "200.0f32"));
    let table = graph.nodes().next().unwrap().1.inputs[0];
    let wide: Vec<u8> =
        graph.constant(table).unwrap().bytes().iter().enumerate().map(|(n, b)| b + (n % 99) as u8).collect();
    let wide = graph.add_constant(Tensor::new(DType::U8, vec![600, 16, 32], wide).unwrap());
    graph.replace(table, wide);
    let rounded = activations_in_bytes(&graph.compact().unwrap()).unwrap();
    let constants = rounded.values().filter_map(|(v, _)| rounded.constant(v));
    assert_eq!(constants.filter(|c| c.bytes().len() == 600 * 512).count(), 1, "{rounded}");
    check_graph(Precision::F32, rounded, &[&[]]);
}

#[test]
fn weights_without_blocks_keep_their_activations() {
    let text = "input %0 : f32[3, 512]\n const %1 : u8[600, 16, 32] = data 4
        %2 = map(%1) body = { mul(to_f32(a0), to_f32(a0)) } : f32[600, 16, 32]
        %4 = reshape(%2) dims = [600, 512] : f32[600, 512]
        %5 = contract(%0, %4) lhs = \"mk\", rhs = \"nk\", out = \"mn\" : f32[3, 600]\n output %5 \"y\"";
    assert!(!has_block_products(&activations_in_bytes(&parsed(text)).unwrap()));
}

/// What the steps of a plan are, in a letter each: launch, host, copy, bind, if, loop.
fn steps(compiled: &Compiled) -> String {
    use kiln_ir::plan::Step;
    let letter = |step: &Step| match step {
        Step::Launch { .. } => 'k',
        Step::Host { .. } => 'h',
        Step::Copy { .. } => 'c',
        Step::Bind { .. } => 'b',
        Step::If { .. } => 'i',
        Step::Loop(_) => 'l',
    };
    compiled.plan.steps.iter().map(letter).collect()
}

#[test]
fn a_scan_of_any_length_is_a_loop_of_kernels() {
    let c = check_free(
        "symbol n in 0..64
         input %0 : f32[3, 16]\n input %1 : f32[n, 3, 8]\n input %2 : f32[8, 16]\n input %3 : f32[16, 16]
         %4, %5 = host(%0, %1, %2, %3) function = scan, body = graph \"turn\" {
           input %0 : f32[3, 16]\n input %1 : f32[3, 8]\n input %2 : f32[8, 16]\n input %3 : f32[16, 16]
           %4 = contract(%1, %2) lhs = mk, rhs = kn, out = mn : f32[3, 16]
           %5 = contract(%0, %3) lhs = mk, rhs = kn, out = mn : f32[3, 16]
           %6 = map(%4, %5) body = { tanh(add(a0, a1)) } : f32[3, 16]
           %7 = reduce(%6) combine = add, axes = [1], keep = false : f32[3]
           output %6 \"h\"\n output %7 \"y\"
         }, states = 1, axes = [0], backward = [1], out_axes = [0], out_backward = [1], results = (f32[3, 16], f32[n, 3]) : f32[3, 16], f32[n, 3]
         output %4 \"h\"\n output %5 \"y\"",
        &[&[("n", 0)], &[("n", 1)], &[("n", 7)]],
    );
    let steps = steps(&c);
    assert!(steps.starts_with("clk") && !steps.contains('h'), "{steps}");
}

#[test]
fn states_may_change_places_and_the_data_may_end_a_loop() {
    // a, b = b, a + b while b < 50; what a was is collected, with as many elements as there are turns.
    let c = check(
        "input %0 : i64[]\n input %1 : i64[2]\n input %2 : i64[2]\n input %3 : bool[]
         symbol turns in 0..1000
         %4, %5, %6 = host(%0, %3, %1, %2) function = loop, body = graph \"turn\" {
           input %0 : i64[]\n input %1 : bool[]\n input %2 : i64[2]\n input %3 : i64[2]
           %4 = map(%2, %3, %0) body = { add(add(a0, a1), a2) } : i64[2]
           %5 = reduce(%4) combine = max, axes = [0], keep = false : i64[]
           %6 = map(%5) body = { lt(a0, 50i64) } : bool[]
           output %6 \"go\"\n output %3 \"a\"\n output %4 \"b\"\n output %2 \"was\"
         }, carried = 2, results = (i64[2], i64[2], i64[turns, 2]) : i64[2], i64[2], i64[turns, 2]
         output %4 \"a\"\n output %5 \"b\"\n output %6 \"all\"",
    );
    let steps = steps(&c);
    assert!(steps.starts_with("ccl") && !steps.contains('h'), "{steps}");
}

#[test]
fn branches_are_steps_and_bind_what_they_decide() {
    let c = check(
        "input %0 : bool[]\n input %1 : f32[5]
         symbol size in 0..1000
         %2, %3 = host(%0, %1, %1) function = if, then = graph \"then\" {
           input %0 : f32[5]
           %1 = map(%0) body = { mul(a0, 2.0f32) } : f32[5]
           %2 = slice(%0) starts = [1], steps = [1], dims = [3] : f32[3]
           output %1 \"y\"\n output %2 \"z\"
         }, else = graph \"else\" {
           input %0 : f32[5]
           output %0 \"y\"\n output %0 \"z\"
         }, results = (f32[5], f32[size]) : f32[5], f32[size]
         %4 = map(%3) body = { add(a0, 1.0f32) } : f32[size]
         output %2 \"y\"\n output %4 \"z\"",
    );
    let steps = steps(&c);
    assert!(steps.starts_with('i') && steps.contains('b') && !steps.contains('h'), "{steps}");
}

#[test]
fn a_state_that_grows_stays_in_the_interpreter() {
    let c = check(
        "input %0 : i64[]\n input %1 : f32[3]\n input %2 : bool[]
         symbol size in 0..1000
         %3 = host(%0, %2, %1) function = loop, body = graph \"turn\" {
           symbol old in 0..1000
           input %0 : i64[]\n input %1 : bool[]\n input %2 : f32[old]
           %3 = concat(%2, %2) axis = 0 : f32[2*old]
           output %1 \"go\"\n output %3 \"s\"
         }, carried = 1, results = (f32[size]) : f32[size]
         output %3 \"y\"",
    );
    assert_eq!(steps(&c), "h");
}

/// The numbers and scales of a table, and what they stand for.
const TABLE: &str = "const %1 : u8[600, 16, 32] = data 4\n const %2 : f32[600, 16, 1] = data 5
    %3 = map(%1, %2) body = { mul(sub(to_f32(a0), 8.0f32), a1) } : f32[600, 16, 32]";

#[test]
fn what_is_picked_from_a_table_is_all_that_is_unpacked() {
    for (axis, most, dims) in [(0, 255, "2, 3, 16, 32"), (2, 31, "600, 16, 2, 3")] {
        let c = check(&format!(
            "input %0 : u8[2, 3]\n {TABLE}\n %4 = map(%0) body = {{ min(a0, {most}u8) }} : u8[2, 3]
             %5 = gather(%3, %4) axis = {axis} : f32[{dims}]\n output %5 \"y\""
        ));
        let unpacked = 4 * 600 * 16 * 32;
        assert!(c.plan.arena_bytes < unpacked, "axis {axis}: {} bytes\n{}", c.plan.arena_bytes, c.plan);
    }
}

#[test]
fn what_constants_alone_make_is_made_once() {
    let c = check(&format!(
        "input %0 : f32[5, 600]\n {TABLE}
         %4 = reduce(%3) combine = max, axes = [1, 2], keep = false : f32[600]
         %5 = contract(%0, %4) lhs = \"mk\", rhs = \"k\", out = \"m\" : f32[5]\n output %5 \"y\""
    ));
    assert_eq!(c.kernels[0].len(), 1, "{}", c.plan);
    assert!(c.weights.iter().all(|w| w.tensor.shape() == [600]), "{}", c.plan);
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
