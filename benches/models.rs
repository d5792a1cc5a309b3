//! Whole small models, built with `kiln::builder`: how long they take to compile, and to run on one thread; and products of one row
//! with large weights of few bits.
//!
//! Weights are pseudo-random, so that no pass can fold them away; the levels are those that this machine runs.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kiln::builder::{BuildError, Builder, Value};
use kiln::ir::{DType, Graph, Tensor};
use kiln::nn::Matrix;
use kiln::runtime::cpu::Machine;
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::{Options, Silent, compile_graph};
use kiln_frontend::gguf::{BLOCK, Numbers};
use std::hint::black_box;
use std::time::Duration;

/// Numbers between -0.5 and 0.5, the same every time.
fn numbers(shape: &[usize]) -> Tensor {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
    Tensor::from_f32(shape, &values).unwrap()
}

fn layer<'g>(g: &'g Builder, x: Value<'g>, from: usize, to: usize) -> Result<Value<'g>, BuildError> {
    g.linear(x, g.constant(numbers(&[from, to])), g.constant(numbers(&[to])))
}

/// 256 - 512 - 512 - 64 with GELU and softmax.
fn mlp(batch: usize) -> Result<Graph, BuildError> {
    let g = Builder::new("mlp");
    let x = g.input("x", DType::F32, [batch.into(), 256.into()])?;
    let h = layer(&g, x, 256, 512)?.gelu()?;
    let h = layer(&g, h, 512, 512)?.gelu()?;
    g.output("y", layer(&g, h, 512, 64)?.softmax(-1)?)?;
    g.finish()
}

/// A transformer's block with one head: 64 tokens of 128 numbers.
fn block() -> Result<Graph, BuildError> {
    let (tokens, width) = (64usize, 128usize);
    let g = Builder::new("block");
    let x = g.input("x", DType::F32, [tokens.into(), width.into()])?;
    let n = x.layer_norm(1e-5)?;
    let (q, k, v) = (layer(&g, n, width, width)?, layer(&g, n, width, width)?, layer(&g, n, width, width)?);
    let weights = q.matmul(k.transpose(&[1, 0])?)?.scale(1.0 / (width as f64).sqrt())?.softmax(-1)?;
    let x = x.add(layer(&g, weights.matmul(v)?, width, width)?)?;
    let h = layer(&g, x.layer_norm(1e-5)?, width, 4 * width)?.gelu()?;
    g.output("y", x.add(layer(&g, h, 4 * width, width)?)?)?;
    g.finish()
}

fn models(c: &mut Criterion) {
    let here = Machine::detect();
    let levels: Vec<_> = kiln::default_levels().into_iter().filter(|level| here.supports(*level)).collect();
    for (name, graph) in [("mlp_b1", mlp(1)), ("mlp_b64", mlp(64)), ("block", block())] {
        let graph = graph.unwrap();
        let input = numbers(&graph.ty(graph.inputs[0]).shape().unwrap());
        let mut group = c.benchmark_group(name);
        group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        let options = Options { levels: levels.clone(), threads: 1, ..Options::default() };
        group.bench_function("compile", |b| {
            b.iter(|| compile_graph(black_box(graph.clone()), &options, &mut Silent).unwrap());
        });
        let compiled = compile_graph(graph, &options, &mut Silent).unwrap();
        let operations: u64 = compiled.plan.kernels.iter().map(|k| k.operations).sum();
        group.throughput(Throughput::Elements(operations));
        for level in &levels {
            let only = ModelOptions { levels: Some(vec![*level]), verify_weights: false, ..ModelOptions::default() };
            let model = compiled.load(&only).unwrap();
            let mut context = Context::new(&model, 1, &Budget::unlimited()).unwrap();
            context.load(std::slice::from_ref(&input)).unwrap();
            group.bench_function(format!("run {level}"), |b| b.iter(|| context.run_loaded().unwrap()));
        }
        group.finish();
    }
}

/// Rows and columns of a weight that no cache holds.
const WIDE: usize = 8192;

/// One row times a weight of few bits in blocks of 32, each with a scale; those of 4 bits also with a least value.
fn row(form: Numbers) -> Result<Graph, BuildError> {
    let g = Builder::new("row");
    let x = g.input("x", DType::F32, [1.into(), WIDE.into()])?;
    let blocks = WIDE / BLOCK;
    let shape = vec![WIDE, blocks, form.bytes_of(BLOCK)];
    let bytes: Vec<u8> =
        (0..shape.iter().product::<usize>()).map(|n| (n.wrapping_mul(0x9e37_79b9) >> 11) as u8).collect();
    let dtype = if form == Numbers::Bytes { DType::I8 } else { DType::U8 };
    let tensor = Tensor::new(dtype, shape, bytes).expect("as many bytes as the shape has");
    let of_blocks = || g.constant(numbers(&[WIDE, blocks, 1]));
    let least = (form == Numbers::Halves).then(of_blocks);
    let weight = Matrix::Blocks { form, numbers: g.constant(tensor), scales: of_blocks(), least };
    g.output("y", weight.product(x)?)?;
    g.finish()
}

/// Weights of few bits at one row: bytes of weights a second, beside the rate at which as much memory is read at best.
fn rows(c: &mut Criterion) {
    let here = Machine::detect();
    let Some(level) = kiln::default_levels().into_iter().filter(|level| here.supports(*level)).max() else { return };
    let peaks = kiln::peaks::measure(level, 1, &Budget::unlimited()).unwrap();
    let mut group = c.benchmark_group("one row");
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    for (name, form) in [("8 bits", Numbers::Bytes), ("4 bits", Numbers::Halves)] {
        let options = Options { levels: vec![level], threads: 1, ..Options::default() };
        let compiled = compile_graph(row(form).unwrap(), &options, &mut Silent).unwrap();
        let bytes = compiled.plan.weight_bytes;
        group.throughput(Throughput::Bytes(bytes));
        let model = compiled.load(&ModelOptions { verify_weights: false, ..ModelOptions::default() }).unwrap();
        let mut context = Context::new(&model, 1, &Budget::unlimited()).unwrap();
        context.load(std::slice::from_ref(&numbers(&[1, WIDE]))).unwrap();
        group.bench_function(format!("{name}, at best {:.1} GB/s", peaks.bandwidth(bytes) / 1e9), |b| {
            b.iter(|| context.run_loaded().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, models, rows);
criterion_main!(benches);
