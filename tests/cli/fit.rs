//! `kiln fit`, and what a run takes as a formula.

use super::models::*;
use super::{Place, kiln};
use kiln::fit::Footprint;
use kiln::ir::{DType, Tensor};
use kiln::onnx::model::{Limits, load};
use kiln::runtime::engine::{Context, ModelOptions};
use kiln::runtime::memory::{ALIGNMENT, Budget};
use kiln::{Options, Silent};

/// Layers whose results live beside one another, over two free dims.
fn layers() -> Vec<u8> {
    let x = value("x", DType::F32, &[Dim::Name("batch"), Dim::Name("length"), Dim::N(20)]);
    let y = value("y", DType::F32, &[Dim::Name("batch"), Dim::Name("length"), Dim::N(12)]);
    let nodes = vec![
        node("first", "MatMul", &["x", "w1"], &["h"]),
        node("soft", "Softmax", &["h"], &["s"]),
        node("add", "Add", &["h", "s"], &["r"]),
        node("second", "MatMul", &["r", "w2"], &["y"]),
    ];
    model(graph(nodes, vec![x], vec![y], vec![weight("w1", &[20, 33]), weight("w2", &[33, 12])]))
}

#[test]
fn the_formula_is_what_the_engine_allocates() {
    for (bytes, shapes) in [
        (layers(), vec![vec![1, 1, 20], vec![3, 7, 20], vec![2, 300, 20], vec![17, 64, 20]]),
        (mlp_with_batch(Dim::Name("n"), Dim::Name("n")), vec![vec![1, 20], vec![5, 20], vec![1000, 20]]),
        (mlp(), vec![vec![3, 20]]),
    ] {
        let onnx = load(bytes.into(), &|_| Err("no files".into()), &Limits::default()).unwrap();
        let compiled = kiln::compile(&onnx, &Options::default(), &mut Silent).unwrap();
        let model = compiled.load(&ModelOptions::default()).unwrap();
        let footprint = Footprint::of(&compiled.plan);
        for shape in shapes {
            let count = shape.iter().product::<usize>();
            let x = Tensor::from_f32(&shape, &vec![0.5; count]).unwrap();
            let aligned = (x.bytes().as_ptr() as usize).is_multiple_of(ALIGNMENT);
            let budget = Budget::unlimited();
            let mut context = Context::new(&model, 1, &budget).unwrap();
            context.load(&[x]).unwrap();
            context.run_loaded().unwrap();
            let copied = if aligned { 0 } else { 4 * count as u64 };
            let expected = footprint.bytes(&compiled.plan, context.dims()).unwrap() + copied;
            assert_eq!(budget.peak(), expected, "{shape:?}: {}", footprint.formula());
        }
    }
}

#[test]
fn budgets_are_met_or_it_is_said_what_is_not() {
    let place = Place::new();
    let model = place.write("m.onnx", &layers());
    let (inputs, out) = (place.path("i.npz"), place.path("o.kiln"));
    kiln!("run", &model, "--random", "1", "--bind", "batch=2", "--bind", "length=9", "--save-inputs", &inputs)
        .succeeds();
    let found = kiln!(
        "fit",
        &model,
        "--ram",
        "1M",
        "--latency",
        "10s",
        "--inputs",
        &inputs,
        "--seconds",
        "0.01",
        "-o",
        &out,
        "--json"
    );
    let found = found.succeeds().json();
    assert_eq!((&found["chosen"]["precision"], &found["chosen"]["threads"]), (&"f32".into(), &1.into()), "{found:#}");
    assert!(found["chosen"]["formula"].as_str().unwrap().contains("batch"), "{found:#}");
    kiln!("run", &out, "--inputs", &inputs).succeeds();
    assert_eq!(kiln!("rebuild", &out, "--model", &model, "--json").succeeds().json()["same"], true);
    let short = kiln!("fit", &model, "--ram", "1K", "--inputs", &inputs, "--seconds", "0.01", "--json");
    let tried = short.fails(6, "% more than 1024").json()["tried"].as_array().unwrap().clone();
    // Products in bf16 are tried before integers, and what they lose is told.
    let precisions: Vec<_> = tried.iter().map(|c| c["precision"].as_str().unwrap()).collect();
    assert_eq!(precisions, ["f32", "bf16", "int8 weights", "int8", "int4 weights"]);
    let lost = tried[1]["drop"].as_f64().unwrap();
    assert!(lost.abs() < 1e-3 && tried[1]["formula"] != tried[0]["formula"], "{tried:#?}");
    kiln!("fit", &model, "--ram", "1M", "--precision", "bf16").fails(2, "leave it away");
    let slow = kiln!("fit", &model, "--latency", "0.001us", "--inputs", &inputs, "--seconds", "0.01", "--threads", "2");
    slow.fails(6, "time: ");
    // Where time alone is missed, schedules are searched for what fits otherwise.
    let tuned = kiln!(
        "fit",
        &model,
        "--latency",
        "0.001us",
        "--tune",
        "2s",
        "--inputs",
        &inputs,
        "--seconds",
        "0.01",
        "--threads",
        "1",
        "--json"
    );
    let tuned = tuned.fails(6, "time: ").json();
    let found = tuned["tried"].as_array().unwrap().iter().any(|c| c["tuned"] == true);
    let noted = tuned["notes"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().contains("nothing quicker"));
    assert!(found || noted, "{tuned:#}");
    kiln!("fit", &model).fails(2, "give --ram");
    kiln!("fit", &model, "--ram", "1M", "--metric", "perplexity").fails(2, "cosine, top1 and mse");
    let text = kiln!("inspect", &model).succeeds().out;
    assert!(text.contains("peak memory of weights and a run"), "{text}");
}

#[test]
fn an_artifact_of_few_bits_is_made_again_from_the_users_model() {
    let place = Place::new();
    let nodes = vec![node("product", "MatMul", &["x", "w"], &["y"])];
    let (x, y) = (floats("x", &[2, 512]), floats("y", &[2, 512]));
    let model = place.write("m.onnx", &model(graph(nodes, vec![x], vec![y], vec![weight("w", &[512, 512])])));
    let out = place.path("o.kiln");
    // As f32 the weights take 1 MB, as bf16 half of that.
    for (ram, precision) in [("400K", "int8 weights"), ("250K", "int4 weights")] {
        let found = kiln!("fit", &model, "--ram", ram, "--max-drop", "1", "--seconds", "0.01", "-o", &out, "--json");
        assert_eq!(found.succeeds().json()["chosen"]["precision"], precision);
        assert_eq!(kiln!("rebuild", &out, "--model", &model, "--json").succeeds().json()["same"], true);
    }
}
