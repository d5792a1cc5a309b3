//! Commands for GPUs, none of which is here.

use super::models::{Dim, mlp, mlp_with_batch};
use super::{Place, kiln};
use serde_json::json;

#[test]
fn a_model_becomes_ptx_that_runs_in_the_interpreter() {
    let place = Place::new();
    let (model, dump) = (place.write("m.onnx", &mlp()), place.path("dump"));
    let report = kiln!("compile", &model, "--target", "sm_80", "--dump", &dump, "--json").succeeds().json();
    assert_eq!((&report["target"], &report["host_ops"]), (&json!("sm_80"), &json!(0)));
    let launch: serde_json::Value = serde_json::from_slice(&std::fs::read(dump.join("launch.json")).unwrap()).unwrap();
    let first = &launch["launches"][0];
    assert_eq!(first["file"], "k0.ptx");
    assert!(std::fs::read_to_string(dump.join("k0.ptx")).unwrap().contains(".visible .entry k0"));

    for precision in ["f32", "f16", "bf16"] {
        let run = kiln!("verify", &model, "--target", "sm_80", "--each", "--precision", precision, "--json").succeeds();
        assert_eq!(run.json()["agrees"], true);
    }
    let kernel = dump.join("k0.ptx");
    let counts = kiln!("emulate", &kernel, "--launch", dump.join("launch.json"), "--json").succeeds().json();
    assert_eq!(counts["findings"], json!([]));
    assert!(counts["instructions"].as_u64().unwrap() > 0);
    let estimates = kiln!("inspect", &model, "--target", "sm_90", "--json").succeeds().json();
    assert_eq!(estimates["measured"], false);

    // A mistake in the text: a store of every thread past the end.
    let text = std::fs::read_to_string(&kernel).unwrap();
    let broken = place.write("broken.ptx", text.replace("\tret;", "\tst.global.u32 \t[1], 0;\n\tret;").as_bytes());
    kiln!("emulate", &broken, "--launch", dump.join("launch.json")).fails(5, "findings");
    let broken = place.write("broken.ptx", b".version 7.1\nnonsense");
    kiln!("emulate", &broken, "--launch", dump.join("launch.json")).fails(3, "line 2, column 1");
}

#[test]
fn an_artifact_holds_code_for_cpus_and_gpus_over_one_copy_of_the_weights() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let (plain, fat, two) = (place.path("plain.kiln"), place.path("fat.kiln"), place.path("two.kiln"));
    kiln!("compile", &model, "-o", &plain, "--golden").succeeds();
    kiln!("compile", &model, "-o", &fat, "--golden", "--target", "sm_90,sm_80").succeeds();
    kiln!("compile", &model, "-o", &two, "--golden", "--target", "sm_80,sm_90", "--threads", "1").succeeds();
    assert_eq!(std::fs::read(&fat).unwrap(), std::fs::read(&two).unwrap());
    let shown = kiln!("inspect", &fat, "--json").succeeds().json();
    let gpus = shown["gpus"].as_array().unwrap();
    assert_eq!((&gpus[0]["name"], &gpus[1]["name"]), (&json!("sm_80"), &json!("sm_90")));
    assert!(gpus[0]["launches"].as_u64().unwrap() > 0);
    assert!(kiln!("inspect", &fat).out.contains("of PTX, over the same weights"));
    // The launches are those of the model compiled for the GPU alone, word by word.
    let dump = place.path("dump");
    kiln!("compile", &model, "--target", "sm_80", "--dump", &dump).succeeds();
    let file = kiln::runtime::artifact::Artifact::open(&fat, &Default::default()).unwrap();
    let stored = kiln::gpu::stored::launches(&file).unwrap();
    let first = &stored[0].1[0][0];
    assert_eq!(first.text, std::fs::read_to_string(dump.join(format!("{}.ptx", first.entry))).unwrap());
    // GPUs read products' weights in the order of the model, which only some levels for CPUs do: two copies at the most.
    let weights = |path| {
        let file = kiln::runtime::artifact::Artifact::open(path, &Default::default()).unwrap();
        file.section(kiln::runtime::artifact::WEIGHTS).unwrap().len()
    };
    assert!(weights(&fat) < 2 * weights(&plain), "{} and {}", weights(&fat), weights(&plain));
    // A machine without a GPU runs it as if there were none.
    let (a, b) = (place.path("a.npz"), place.path("b.npz"));
    kiln!("run", &plain, "--random", "1", "--output", &a).succeeds();
    kiln!("run", &fat, "--random", "1", "--output", &b).succeeds();
    assert_eq!(std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    kiln!("selftest", &fat).succeeds();
    assert_eq!(kiln!("rebuild", &fat, "--model", &model, "--json").succeeds().json()["same"], true);
    let library = kiln!("compile", &model, "-o", &place.path("l.so"), "--emit", "so", "--target", "sm_80");
    library.fails(2, "holds no PTX");
    kiln!(
        "compile",
        &place.write("f.onnx", &mlp_with_batch(Dim::Name("n"), Dim::Name("n"))),
        "-o",
        &two,
        "--target",
        "sm_80"
    )
    .fails(4, "fixed dims");
}

#[test]
fn what_does_not_go_together_is_said() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    kiln!("compile", &model).fails(2, "--output");
    kiln!("compile", &model, "--target", "sm_80").fails(2, "--dump");
    kiln!("compile", &model, "--target", "sm_79", "--dump", place.path("d")).fails(2, "no such GPU architecture");
    let precise = kiln!("compile", &model, "--target", "sm_80", "--dump", place.path("d"), "--precision", "f8");
    precise.fails(4, "f32, f32-fast, tf32, f16, bf16");
    kiln!("compile", &model, "-o", place.path("a.kiln"), "--precision", "f16").fails(4, "f16");
}
