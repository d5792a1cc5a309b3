//! Products of f32 in parts: the machine code of whole kernels beside the interpreter of vector programs, in buffers that end at pages
//! without access. Where the processor has no matrix registers, the test does what they do ([`wide_support`]).

#[path = "../../backends/cpu/tests/wide_support/mod.rs"]
mod wide_support;

use kiln::runtime::cpu::CpuLevel;
use kiln_cpu::wide::WideLevel;
use kiln_ir::graph::Graph;
use kiln_ir::plan::{Place, Step};
use kiln_ir::{DType, Tensor};
use kiln_passes::kernel::{Machine, Terms};
use kiln_passes::lower::{VectorTarget, lower};
use kiln_passes::pipeline::{Precision, Target, optimise, schedule};
use kiln_passes::plan::weights_section;

const TARGET: VectorTarget = VectorTarget { bytes: 64, pairs: true, matrices: true, fused: true };

fn numbers(count: usize, seed: usize) -> Vec<f32> {
    (0..count).map(|n| ((n * 7919 + seed * 104_729) % 100_003) as f32 / 50_000.0 - 1.0).collect()
}

/// Compiles `relu(x w + bias)` and runs its only kernel on `x`, in two halves of its programs.
fn run([rows, places, columns]: [usize; 3], terms: Terms, x: &[f32]) {
    let text = format!(
        "graph \"parts\" {{ input %0 : f32[{rows}, {places}]\n const %1 : f32[{places}, {columns}] = data 0
         const %2 : f32[{columns}] = data 1
         %3 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{rows}, {columns}]
         %4 = map(%3, %2) body = {{ max(add(a0, a1), 0.0f32) }} : f32[{rows}, {columns}]
         output %4 \"y\" }}"
    );
    let data = [
        Tensor::from_f32(&[places, columns], &numbers(places * columns, 1)).unwrap(),
        Tensor::from_f32(&[columns], &numbers(columns, 2)).unwrap(),
    ];
    let graph = Graph::parse(&text, &data).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let graph = optimise(graph, Precision::F32, &mut |_, _, _| Ok(())).unwrap();
    let mut lowers = |_: &_, _: &_| Ok(());
    let machine = Machine { terms: Some(terms), ..Machine::amx() };
    let compiled = schedule(&graph, &mut [Target { machine, lowers: &mut lowers, chosen: None }]).unwrap();
    let [program] = compiled.kernels[0].as_slice() else { panic!("{}", compiled.plan) };
    assert!(program.to_string().contains("multiply products["), "{program}");
    assert!(compiled.plan.kernels[0].what.ends_with("bf16 products"), "{}", compiled.plan);
    let weights = weights_section(&compiled.weights, compiled.plan.weight_bytes);
    let [Step::Launch { arguments, .. }] = compiled.plan.steps.as_slice() else { panic!("{}", compiled.plan) };
    let bytes = |buffer: &kiln_ir::tile::Buffer| buffer.len.as_size().unwrap() * buffer.dtype.size();
    let places = arguments.iter().map(|slot| compiled.plan.slots[*slot].place).zip(program.arguments().map(bytes));
    let buffers: Vec<Vec<u8>> = places
        .map(|(place, bytes)| match place {
            Place::Weights(at) => weights[at as usize..at as usize + bytes].to_vec(),
            Place::Input(_) => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => vec![0xee; bytes],
        })
        .collect();
    let vector = lower(program, TARGET, &[], &Default::default()).unwrap_or_else(|e| panic!("{e}\n{program}"));
    assert_eq!(vector.buffers.last().map(|b| b.0), Some(DType::F32));
    let count = program.programs().as_const().unwrap();
    for part in [(0, count / 2), (count / 2, count)] {
        wide_support::check(&vector, WideLevel::Amx, &buffers, &[], part).unwrap();
    }
}

/// What each precision makes of a product, in an artifact for AMX alone and in one for other levels too.
#[test]
fn a_precision_says_how_f32_is_multiplied() {
    let graph = || {
        let text = "graph \"parts\" { input %0 : f32[64, 64]\n const %1 : f32[64, 64] = data 0
             %2 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[64, 64]\n output %2 \"y\" }";
        Graph::parse(text, &[Tensor::from_f32(&[64, 64], &numbers(4096, 1)).unwrap()]).unwrap()
    };
    let alone = [CpuLevel::X86_64V4Amx];
    if !kiln::default_levels().contains(&alone[0]) {
        return;
    }
    for (precision, levels, what, weight_bytes) in [
        (kiln::Precision::F32, &alone[..], "contract", 4 * 4096),
        (kiln::Precision::F32Fast, &alone, "contract of 3 bf16 products", 6 * 4096),
        (kiln::Precision::Strict, &alone, "contract", 4 * 4096),
        (kiln::Precision::F32, &[CpuLevel::X86_64V4, alone[0]], "contract", 4 * 4096),
        (kiln::Precision::F32Fast, &[CpuLevel::X86_64V4], "contract", 4 * 4096),
    ] {
        let options = kiln::Options { levels: levels.to_vec(), precision, ..kiln::Options::default() };
        let compiled = kiln::compile_graph(graph(), &options, &mut kiln::Silent).unwrap();
        let [kernel] = compiled.plan.kernels.as_slice() else { panic!("{}", compiled.plan) };
        assert_eq!(
            (kernel.what.as_str(), compiled.plan.weight_bytes),
            (what, weight_bytes),
            "{precision:?} {levels:?}"
        );
        // A product and an addition for each place, however they are made.
        assert_eq!(kernel.operations, 2 * 64 * 64 * 64);
        assert_eq!(compiled.manifest.options["precision"], precision.name());
        assert!(compiled.code.iter().all(|code| code.table.0.iter().all(|k| k.emitter == "wide")));
    }
}

/// Ragged rows and columns, several stretches, runs of 9 and of 16 places.
#[test]
fn kernels_in_parts_do_what_their_vector_programs_do() {
    for (shape, terms) in [
        ([67, 96, 70], Terms::Six),
        ([64, 416, 96], Terms::Six),
        ([65, 72, 65], Terms::Three),
        ([130, 64, 417], Terms::Six),
    ] {
        run(shape, terms, &numbers(shape[0] * shape[1], 3));
    }
}

/// The way without parts, in one block and in all of them.
#[test]
fn kernels_in_parts_multiply_whole_what_has_none() {
    let shape = [100, 64, 70];
    for odd in [f32::INFINITY, f32::NAN, f32::from_bits(1), -3e38, 2f32.powi(-101)] {
        let mut x = numbers(shape[0] * shape[1], 4);
        x[shape[1] * 99 + 63] = odd;
        run(shape, Terms::Six, &x);
        run(shape, Terms::Three, &vec![odd; x.len()]);
    }
}
