//! Commands for GPUs, none of which is here.

use super::models::mlp;
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
fn what_does_not_go_together_is_said() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    kiln!("compile", &model).fails(2, "--output");
    kiln!("compile", &model, "--target", "sm_80").fails(2, "--dump");
    kiln!("compile", &model, "--target", "sm_79", "--dump", place.path("d")).fails(2, "no such GPU architecture");
    let precise = kiln!("compile", &model, "--target", "sm_80", "--dump", place.path("d"), "--precision", "f8");
    precise.fails(4, "f32, f16 and bf16");
    kiln!("compile", &model, "-o", place.path("a.kiln"), "--precision", "bf16").fails(4, "bf16");
}
