//! Whole graphs as PTX: every form of kernel over ragged shapes, in the interpreter of PTX, against the graph interpreter.

use super::{assemble, data};
use kiln::builder::Builder;
use kiln::gpu::emulate::Outcome;
use kiln::gpu::{self, ARCHITECTURES, Architecture, Compiled, Precision};
use kiln::{Options, Silent, compare};
use kiln_ir::interp::{self, eval_graph};
use kiln_ir::{DType, Graph, Tensor};
use kiln_ptx::emulate::{self, Accumulate};

pub(super) type Made = Result<Graph, Box<dyn std::error::Error>>;

pub(super) fn tensor(dtype: DType, shape: &[usize]) -> Tensor {
    let len = shape.iter().product();
    Tensor::new(dtype, shape.to_vec(), data(dtype, len, false)).expect("a tensor")
}

/// Inputs of a graph, and what the interpreter of graphs makes of them.
pub(super) fn expected(name: &str, graph: &Graph) -> (Vec<Tensor>, Vec<Tensor>) {
    let shape = |v: &kiln_ir::graph::ValueId| graph.ty(*v).shape().expect("a shape");
    let inputs: Vec<Tensor> = graph.inputs.iter().map(|v| tensor(graph.ty(*v).dtype, &shape(v))).collect();
    let want = eval_graph(graph, &inputs, &interp::Options::default()).unwrap_or_else(|e| panic!("{name}: {e}"));
    (inputs, want)
}

/// A graph for the base of all architectures; the assembler takes all of its kernels.
pub(super) fn assembled(name: &str, graph: Graph, precision: Precision) -> Compiled {
    assembled_for(name, graph, (ARCHITECTURES[0], precision))
}

/// The same for another architecture.
pub(super) fn assembled_for(name: &str, graph: Graph, target: (Architecture, Precision)) -> Compiled {
    let compiled = gpu::compile_graph(graph, &Options::default(), target, &mut Silent);
    let compiled = compiled.unwrap_or_else(|e| panic!("{name}: {e}"));
    compiled.kernels.iter().flat_map(|k| &k.modules).for_each(|module| _ = assemble(name, &module.text));
    compiled
}

/// Runs it with sums of both kinds, the second time with warps in the order of `seed`: nothing is found. `check` is told of each run.
pub(super) fn both_ways(name: &str, compiled: &Compiled, inputs: &[Tensor], seed: u64, check: &dyn Fn(&str, &Outcome)) {
    for (seed, accumulate) in [(0, Accumulate::Exact), (seed, Accumulate::Truncating)] {
        let how = emulate::Options { seed, accumulate, ..emulate::Options::default() };
        let outcome = gpu::emulate::run(compiled, inputs, &how, seed == 0, &mut |_| {});
        let outcome = outcome.unwrap_or_else(|e| panic!("{name}: {e}"));
        for k in &outcome.kernels {
            assert_eq!(k.findings, [], "{name}, {}", k.name);
        }
        check(&format!("{name}, seed {seed}"), &outcome);
    }
}

/// Demands results within a tolerance, and each kernel's of what its tile program says.
pub(super) fn close(name: &str, want: &[Tensor], outcome: &Outcome, (tolerance, of_kernels): (f64, f64)) {
    for k in &outcome.kernels {
        assert!(k.difference.is_none_or(|d| d < of_kernels), "{name}, {}: {:?}", k.name, k.difference);
    }
    for (want, found) in want.iter().zip(&outcome.outputs) {
        let difference = compare::difference(want, found);
        assert!(difference.within(tolerance), "{name}: {difference}");
    }
}

/// A graph of f32 inputs of these shapes.
pub(super) fn graph(
    shapes: &[&[i64]],
    f: impl for<'g> FnOnce(&'g Builder, &[kiln::builder::Value<'g>]) -> Result<(), kiln::builder::BuildError>,
) -> Made {
    let g = Builder::new("g");
    let mut inputs = Vec::new();
    for (n, shape) in shapes.iter().enumerate() {
        inputs.push(g.input(&format!("x{n}"), DType::F32, shape.iter().map(|&e| e.into()))?);
    }
    f(&g, &inputs)?;
    drop(inputs);
    Ok(g.finish()?)
}

/// A product of some rows with weights of 4 bits, whose scales are of 32 of them; `zero` is taken away from each.
pub(super) fn of_few_bits(rows: i64, fold: usize, columns: usize, dtype: DType, zero: f32) -> Made {
    let values = (0..fold * columns).map(|n| (n * n / 7 + 3 * n) as u8 % 16);
    let low = if dtype == DType::I8 { 8 } else { 0 };
    let weights = values.map(|v| v.wrapping_sub(low)).collect::<Vec<u8>>();
    let weights = Tensor::new(dtype, vec![fold / 32, 32, columns], weights)?;
    let scales = Tensor::from_f32(&[fold / 32, 1, columns], &vec![0.25; fold / 32 * columns])?;
    let zero = Tensor::from_f32(&[], &[zero])?;
    graph(&[&[rows, fold as i64]], move |g, x| {
        let weights = g.constant(weights).cast(DType::F32)?;
        let weights = weights.sub(g.constant(zero))?.mul(g.constant(scales))?;
        let all = weights.reshape([fold as i64, columns as i64].map(Into::into))?;
        g.output("y", x[0].matmul(all)?.relu()?)
    })
}

fn all() -> Vec<(&'static str, Made)> {
    let indices = Tensor::from_i64(&[5], &[0, 6, -1, 3, 3]).expect("indices");
    vec![
        ("product", graph(&[&[37, 45], &[45, 51]], |g, x| g.output("y", x[0].matmul(x[1])?.gelu()?))),
        ("batches", graph(&[&[3, 20, 24], &[3, 24, 20]], |g, x| g.output("y", x[0].matmul(x[1])?.softmax(-1)?))),
        ("split fold", graph(&[&[20, 1024], &[1024, 40]], |g, x| g.output("y", x[0].matmul(x[1])?.gelu()?))),
        ("vector", graph(&[&[1, 100], &[100, 30]], |g, x| g.output("y", x[0].matmul(x[1])?.relu()?))),
        ("4 bits", of_few_bits(1, 576, 80, DType::U8, 8.0)),
        ("4 bits with a sign", of_few_bits(3, 128, 48, DType::I8, 0.0)),
        (
            "4 bits, transposed",
            graph(&[&[1, 128]], |g, x| {
                let values: Vec<u8> = (0..64 * 128).map(|n: usize| (n * n / 5 + 7 * n) as u8 % 16).collect();
                let weights = Tensor::new(DType::U8, vec![64, 128], values).expect("weights");
                g.output("y", x[0].matmul(g.constant(weights).cast(DType::F32)?.transpose(&[1, 0])?)?)
            }),
        ),
        ("transposed", graph(&[&[20, 40], &[24, 40]], |g, x| g.output("y", x[0].matmul(x[1].transpose(&[1, 0])?)?))),
        ("softmax", graph(&[&[7, 1000]], |g, x| g.output("y", x[0].softmax(-1)?))),
        ("short rows", graph(&[&[33, 5]], |g, x| g.output("y", x[0].softmax(-1)?))),
        ("long rows", graph(&[&[2, 9001]], |g, x| g.output("y", x[0].softmax(-1)?))),
        ("first axis", graph(&[&[30, 50]], |g, x| g.output("y", x[0].softmax(0)?))),
        ("norm", graph(&[&[9, 77]], |g, x| g.output("y", x[0].layer_norm(1e-5)?))),
        ("rms norm", graph(&[&[9, 128]], |g, x| g.output("y", x[0].rms_norm(1e-5)?.silu()?))),
        (
            "sums",
            graph(&[&[11, 6, 70]], |g, x| {
                g.output("last", x[0].sum(&[2], false)?)?;
                g.output("first", x[0].sum(&[0], true)?)?;
                g.output("outer", x[0].maximum(&[0, 2], false)?)
            }),
        ),
        (
            "transpose",
            graph(&[&[5, 33, 17]], |g, x| g.output("y", x[0].transpose(&[2, 0, 1])?.add(x[0].transpose(&[2, 0, 1])?)?)),
        ),
        ("concat", graph(&[&[3, 10], &[4, 10]], |g, x| g.output("y", g.concat(x, 0)?.relu()?))),
        (
            "gather",
            graph(&[&[7, 40]], move |g, x| {
                let indices = g.constant(indices);
                g.output("y", x[0].gather(indices, 0)?.scale(2.0)?)
            }),
        ),
        ("many elements", graph(&[&[20000]], |g, x| g.output("y", x[0].silu()?))),
        (
            "narrow integers",
            graph(&[&[19, 30]], |g, x| {
                let bytes = x[0].scale(100.0)?.cast(DType::I8)?;
                g.output("bytes", bytes)?;
                g.output("sum", bytes.add(bytes)?.cast(DType::F32)?.sum(&[1], false)?)?;
                g.output("words", x[0].scale(1000.0)?.cast(DType::U16)?)
            }),
        ),
    ]
}

/// Products, in each of the ways that f32 are multiplied, by how much they may be off.
const PRECISIONS: [(Precision, f64); 3] = [(Precision::F32, 1e-5), (Precision::F32Fast, 1e-5), (Precision::Tf32, 2e-3)];

#[test]
fn graphs_compute_what_the_interpreter_says() {
    for (name, made) in all() {
        let graph = made.unwrap_or_else(|e| panic!("{name}: {e}"));
        let (inputs, want) = expected(name, &graph);
        let multiplies = graph.inputs.len() > 1 && name != "concat";
        for (precision, tolerance) in PRECISIONS.into_iter().take(if multiplies { 3 } else { 1 }) {
            let name = format!("{name} in {precision:?}");
            let compiled = assembled(&name, graph.clone(), precision);
            assert!(compiled.notes.hosts.is_empty(), "{name}: {:?}", compiled.notes.hosts);
            for module in compiled.kernels.iter().flat_map(|k| &k.modules) {
                assert!(!name.starts_with("4 bits") || !module.text.contains("cvt.rn.f32"), "{name}: {}", module.text);
            }
            both_ways(&name, &compiled, &inputs, 3, &|name, outcome| {
                close(name, &want, outcome, (tolerance, tolerance))
            });
        }
    }
}
