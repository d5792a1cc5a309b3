//! A run of a model with known dims allocates nothing, on one thread and on two.
//!
//! One test only: the allocator counts for the whole process.

use kiln::builder::{BuildError, Builder};
use kiln::ir::{DType, Graph, Tensor};
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln::{Options, Silent, compile_graph};

#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

/// `softmax(gelu(x w1 + b1) w2 + b2)` for 64 rows: kernels with and without products, with several stages.
fn mlp() -> Result<Graph, BuildError> {
    let weight = |shape: &[usize]| {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| ((i * 7919) % 23) as f32 / 32.0).collect();
        Tensor::from_f32(shape, &values).unwrap()
    };
    let g = Builder::new("mlp");
    let x = g.input("x", DType::F32, [64.into(), 96.into()])?;
    let h = g.linear(x, g.constant(weight(&[96, 128])), g.constant(weight(&[128])))?.gelu()?;
    let y = g.linear(h, g.constant(weight(&[128, 40])), g.constant(weight(&[40])))?;
    g.output("y", y.softmax(-1)?)?;
    // An output that is another one's value is copied by a step of its own.
    g.output("again", y)?;
    g.finish()
}

fn blocks() -> u64 {
    dhat::HeapStats::get().total_blocks
}

#[test]
fn a_run_allocates_nothing() {
    let _profiler = dhat::Profiler::builder().testing().build();
    let compiled = compile_graph(mlp().unwrap(), &Options::default(), &mut Silent).unwrap();
    let shared = |code: &kiln::LevelCode| {
        code.table.0.iter().any(|k| k.programs.as_size().is_some_and(|n| n as u64 >= 2 * k.grain))
    };
    assert!(compiled.code.iter().all(shared), "no kernel is large enough for two threads");
    let model = compiled.load(&ModelOptions::default()).unwrap();
    let input = Tensor::from_f32(&[64, 96], &[0.25; 64 * 96]).unwrap();
    for threads in [1, 2] {
        let mut context = Context::new(&model, threads, &Budget::unlimited()).unwrap();
        context.load(std::slice::from_ref(&input)).unwrap();
        // The first run wakes the threads.
        context.run_loaded().unwrap();
        let before = blocks();
        assert!(before > 0, "nothing is counted");
        for _ in 0..20 {
            context.run_loaded().unwrap();
        }
        assert_eq!(blocks() - before, 0, "allocations in 20 runs on {threads} threads");
        assert!(context.output_bytes(0).is_some_and(|bytes| bytes.iter().any(|b| *b != 0)));
    }
}
