//! Floats of 8 bits: conversions against the values of ml_dtypes, and quantized graphs whose products matrix instructions multiply, or which
//! older GPUs widen, over ragged shapes in the interpreter of PTX.

use super::models::{assembled_for, both_ways, close, expected};
use super::{assemble, compile, data, execute};
use kiln::gpu::{ARCHITECTURES, Architecture, Precision};
use kiln_ir::tile::TileProgram;
use kiln_ir::warp::WarpProgram;
use kiln_ir::{DType, Graph, Ranges, Tensor, tile};
use kiln_passes::warp::{Options, lower};
use kiln_ptx::emulate;

fn architecture(name: &str) -> Architecture {
    name.parse().expect("an architecture")
}

/// Runs a tile program of a buffer `x` and a result `y` in both ways to convert: by instructions and by shifts.
fn converted(text: &str, x: &[u8], result: usize) -> [Vec<u8>; 2] {
    [true, false].map(|float8| {
        let (warp, module) = compile(text, &Options { float8, ..Options::default() });
        assert_eq!(module.text.contains("x2.f32") || module.text.contains("cvt.rn.f16x2"), float8, "{}", module.text);
        assemble("conversions", &module.text);
        let warp = WarpProgram::parse(&warp).unwrap_or_else(|e| panic!("{e}\n{warp}"));
        let mut buffers = [x.to_vec(), vec![0; result], vec![0; 4]];
        let report = execute(&module, &warp, &mut buffers, &[], &emulate::Options::default());
        assert_eq!(report.findings, []);
        let [_, y, _] = buffers;
        y
    })
}

#[test]
fn conversions_give_the_values_of_ml_dtypes() {
    let table = include_str!("../../golden/values/float8.txt");
    let mut seen = 0;
    for line in table.lines().filter(|l| !l.starts_with('#')) {
        let mut words = line.split(' ');
        let (Some(what), Some(dtype)) = (words.next(), words.next()) else { panic!("{line}") };
        let words: Vec<&str> = words.collect();
        let hex = |s: &str| u32::from_str_radix(s, 16).unwrap_or_else(|e| panic!("{s}: {e}"));
        seen += 1;
        if what == "decode" {
            let text = format!(
                "kernel @decode(x: {dtype}[256], y: f32[256] written) {{\n  part grid(i = 1) {{\n    %0: {dtype}[256] = load x[a0]\n    \
                 %1: f32[256] = to_f32 %0\n    store y[a0] = %1\n  }}\n}}\n"
            );
            let all: Vec<u8> = (0..=255).collect();
            for found in converted(&text, &all, 1024) {
                for (byte, (bits, want)) in found.as_chunks::<4>().0.iter().zip(&words).enumerate() {
                    let found = f32::from_le_bytes(*bits);
                    let same = if *want == "nan" { found.is_nan() } else { found.to_bits() == hex(want) };
                    assert!(same, "{dtype}: byte {byte:02x} is {found}, wants {want}");
                }
            }
            continue;
        }
        let pairs: Vec<(u32, u32)> =
            words.iter().filter_map(|w| w.split_once(':')).map(|(a, b)| (hex(a), hex(b))).collect();
        let n = pairs.len().next_multiple_of(4);
        let text = format!(
            "kernel @encode(x: f32[{n}], y: {dtype}[{n}] written) {{\n  part grid(i = {}) {{\n    %0: f32[4] = load x[a0 + 4*i]\n    \
             %1: {dtype}[4] = to_{dtype} %0\n    store y[a0 + 4*i] = %1\n  }}\n}}\n",
            n / 4
        );
        let mut x: Vec<u8> = pairs.iter().flat_map(|(bits, _)| bits.to_le_bytes()).collect();
        x.resize(4 * n, 0);
        for found in converted(&text, &x, n) {
            for ((bits, want), found) in pairs.iter().zip(found) {
                let value = f32::from_bits(*bits);
                assert_eq!(u32::from(found), *want, "{dtype}: {value:e} ({bits:08x})");
            }
        }
        // What is no number stays none.
        let nan: Vec<u8> = vec![f32::NAN.to_le_bytes(); n].concat();
        for found in converted(&text, &nan, n) {
            assert!(found.iter().all(|b| b & 0x7f == 0x7f), "{dtype}: {found:02x?}");
        }
    }
    assert_eq!(seen, 4);
}

/// Rows that a model quantizes, by a constant matrix with a scale for each column.
pub(super) fn product([a, b]: [&str; 2], [m, k, n]: [usize; 3]) -> Graph {
    let text = format!(
        "input %0 : f32[{m}, {k}]\n const %1 : f32[] = [0.0078125f32]\n const %2 : {b}[{k}, {n}] = data 0\n const %3 : f32[{n}] = data 1
         %4 = map(%0, %1) body = {{ to_{a}(div(a0, a1)) }} : {a}[{m}, {k}]
         %5 = map(%4, %1) body = {{ mul(to_f32(a0), a1) }} : f32[{m}, {k}]
         %6 = map(%2, %3) body = {{ mul(to_f32(a0), a1) }} : f32[{k}, {n}]
         %7 = contract(%5, %6) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{m}, {n}]
         %8 = map(%7) body = {{ max(a0, 0.0f32) }} : f32[{m}, {n}]
         output %8 \"y\""
    );
    parsed(&text, &[weights(b, &[k, n]), Tensor::new(DType::F32, vec![n], data(DType::F32, n, false)).expect("scales")])
}

/// Two activations, batched, both with a scale that is known when the model runs, or with none.
fn activations([a, b]: [&str; 2], [m, k, n]: [usize; 3], turned: bool) -> Graph {
    let (of_b, letters) = if turned { (format!("[2, {k}, {n}]"), "bkn") } else { (format!("[2, {n}, {k}]"), "bnk") };
    let text = format!(
        "input %0 : f32[2, {m}, {k}]\n input %1 : f32{of_b}\n input %2 : f32[1]
         %4 = map(%0) body = {{ to_{a}(mul(a0, 30.0f32)) }} : {a}[2, {m}, {k}]
         %5 = map(%4, %2) body = {{ mul(to_f32(a0), a1) }} : f32[2, {m}, {k}]
         %6 = map(%1) body = {{ to_{b}(mul(a0, 50.0f32)) }} : {b}{of_b}
         %7 = map(%6) body = {{ to_f32(a0) }} : f32{of_b}
         %8 = contract(%5, %7) lhs = \"bmk\", rhs = \"{letters}\", out = \"bmn\" : f32[2, {m}, {n}]
         output %8 \"y\"\n output %4 \"bytes\""
    );
    parsed(&text, &[])
}

/// Rows of f32 by weights of 8 bits.
fn weights_only([m, k, n]: [usize; 3], dtype: &str) -> Graph {
    let text = format!(
        "input %0 : f32[{m}, {k}]\n const %2 : {dtype}[{k}, {n}] = data 0\n const %3 : f32[{n}] = data 1
         %6 = map(%2, %3) body = {{ mul(to_f32(a0), a1) }} : f32[{k}, {n}]
         %7 = contract(%0, %6) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{m}, {n}]
         output %7 \"y\""
    );
    parsed(
        &text,
        &[weights(dtype, &[k, n]), Tensor::new(DType::F32, vec![n], data(DType::F32, n, false)).expect("scales")],
    )
}

fn weights(dtype: &str, shape: &[usize]) -> Tensor {
    let dtype = DType::from_name(dtype).expect("a type");
    Tensor::new(dtype, shape.to_vec(), data(dtype, shape.iter().product(), false)).expect("weights")
}

fn parsed(text: &str, constants: &[Tensor]) -> Graph {
    let source = format!("graph \"float8\" {{\n{text}\n}}");
    Graph::parse(&source, constants).unwrap_or_else(|e| panic!("{e}\n{source}"))
}

const E4: &str = "f8e4m3fn";
const E5: &str = "f8e5m2";

#[test]
fn quantized_graphs_are_multiplied_in_8_bits() {
    // With the instruction that multiplies on GPUs that have it.
    let graphs = [
        ("whole tiles", product([E4, E4], [64, 128, 64]), Some("e4m3.e4m3")),
        ("ragged", product([E5, E4], [37, 90, 51]), Some("e5m2.e4m3")),
        ("mixed", product([E4, E5], [70, 144, 72]), Some("e4m3.e5m2")),
        ("long rows", product([E5, E5], [33, 512, 40]), Some("e5m2.e5m2")),
        ("split fold", product([E4, E4], [16, 4096, 24]), Some("e4m3.e4m3")),
        ("odd rows", product([E4, E4], [130, 75, 136]), Some("e4m3.e4m3")),
        ("large tiles", product([E4, E5], [256, 256, 384]), Some("e4m3.e5m2")),
        ("few rows", product([E4, E4], [3, 300, 70]), None),
        ("one row", product([E5, E4], [1, 256, 96]), None),
        ("two activations", activations([E4, E5], [33, 96, 24], false), Some("e4m3.e5m2")),
        ("two activations, turned", activations([E4, E4], [40, 48, 40], true), None),
    ];
    for (name, graph, factors) in graphs {
        let (inputs, want) = expected(name, &graph);
        for target in ["sm_80", "sm_89"] {
            let name = format!("{name}, {target}");
            let compiled = assembled_for(&name, graph.clone(), (architecture(target), Precision::F32));
            assert!(compiled.notes.hosts.is_empty(), "{name}: {:?}", compiled.notes.hosts);
            let texts = || compiled.kernels.iter().flat_map(|k| &k.modules).map(|m| m.text.as_str());
            let wanted =
                factors.filter(|_| target == "sm_89").map(|f| format!("mma.sync.aligned.m16n8k32.row.col.f32.{f}.f32"));
            let multiplies = texts().any(|t| t.contains("m16n8k32"));
            assert_eq!(multiplies, wanted.is_some(), "{name}");
            assert!(wanted.as_ref().is_none_or(|w| texts().any(|t| t.contains(w.as_str()))), "{name}");
            assert!(target != "sm_80" || texts().all(|t| t.contains(".target sm_80")), "{name}");
            both_ways(&name, &compiled, &inputs, 3, &|run, outcome| {
                for k in &outcome.kernels {
                    assert_eq!(k.counts.conflicts(), 0, "{run}, {}", k.name);
                }
                // Units that cut sums of 32 products off keep 13 bits below the largest.
                let allowed = if wanted.is_some() && run.ends_with('3') { 1e-3 } else { 1e-5 };
                close(run, &want, outcome, (allowed, allowed));
            });
        }
    }
}

#[test]
fn what_does_not_lie_along_the_fold_is_widened_from_shared_memory() {
    let text = "\
kernel @product(x: f8e4m3fn[2048], w: f8e5m2[2048], y: f32[1024] written) {
  part grid(i = 1) {
    %0: f32[32,32] = const 0.0f32
    for k in 0..64 step 32 carry(%1: f32[32,32] = %0) {
      %2: f8e4m3fn[32,32] = load x[a1 + 64*a0 + k]
      %3: f8e5m2[32,32] = load w[a1 + 32*a0 + 32*k]
      %4: f32[32,32] = dot %2, %3, %1
    } next(%4) as(%5)
    store y[a1 + 32*a0] = %5
  }
}
";
    let program = TileProgram::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let error = lower(&program, &Ranges::new(), &Options::default()).expect_err("sm_80 has no such products");
    assert_eq!(error.what, "products before sm_89 of f8e4m3fn");
    let (warp, module) = compile(text, &Options { float8: true, ..Options::default() });
    assert!(!module.text.contains("mma.sync"), "{}", module.text);
    assemble("bytes across the fold", &module.text);
    let warp = WarpProgram::parse(&warp).unwrap_or_else(|e| panic!("{e}\n{warp}"));
    let mut found: Vec<Vec<u8>> =
        program.buffers.iter().map(|b| data(b.dtype, b.len.as_size().unwrap_or(0), false)).collect();
    let mut want = found.clone();
    tile::run(&program, &mut want, &|_| None, 0..i64::MAX).unwrap_or_else(|e| panic!("{e}"));
    found.push(vec![0; 4]);
    let report = execute(&module, &warp, &mut found, &[], &emulate::Options::default());
    assert_eq!(report.findings, []);
    super::compare("y", DType::F32, &found[2], &want[2], 1e-5);
}

#[test]
fn weights_of_8_bits_are_widened_in_registers() {
    for (name, shape, dtype) in [
        ("one row", [1, 256, 96], E4),
        ("rows", [5, 130, 72], E5),
        ("tiles", [40, 96, 64], E4),
        ("ragged tiles", [37, 91, 51], E5),
    ] {
        let graph = weights_only(shape, dtype);
        let (inputs, want) = expected(name, &graph);
        for (target, precision, tolerance) in
            [("sm_80", Precision::F32, 1e-5), ("sm_89", Precision::F32, 1e-5), ("sm_80", Precision::F16, 2e-3)]
        {
            let name = format!("{name}, {target}, {precision:?}");
            let compiled = assembled_for(&name, graph.clone(), (architecture(target), precision));
            assert!(compiled.notes.hosts.is_empty(), "{name}: {:?}", compiled.notes.hosts);
            let reads = |k: &kiln::gpu::Kernel| k.tile.buffers.iter().any(|b| b.dtype.is_ofp8());
            assert!(compiled.kernels.iter().any(reads), "{name}: {}", compiled.kernels[0].tile);
            both_ways(&name, &compiled, &inputs, 3, &|run, outcome| close(run, &want, outcome, (tolerance, tolerance)));
        }
    }
}

#[test]
fn what_no_kernel_computes_with_8_bits_is_the_hosts() {
    let text = "input %0 : f8e5m2[8, 64]\n %1 = map(%0) body = { neg(a0) } : f8e5m2[8, 64]\n output %1 \"y\"";
    let graph = parsed(text, &[]);
    let (inputs, want) = expected("negative", &graph);
    for target in ["sm_80", "sm_90"] {
        let compiled = assembled_for(target, graph.clone(), (architecture(target), Precision::F32));
        assert!(compiled.kernels.is_empty() && !compiled.notes.hosts.is_empty());
        both_ways(target, &compiled, &inputs, 1, &|_, outcome| assert_eq!(want[0].bytes(), outcome.outputs[0].bytes()));
    }
    assert!(ARCHITECTURES.iter().any(|a| a.name == "sm_89"));
}
