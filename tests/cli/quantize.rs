//! `kiln quantize` from the command line.

use super::Place;
use super::kiln;
use super::models::mlp;
use std::path::PathBuf;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("frontend/tests/fixtures/lm").join(name)
}

#[test]
fn a_quantized_checkpoint_is_one_and_a_budget_that_is_missed_writes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (output, text) = (folder.path().join("q.gguf"), folder.path().join("text"));
    let words = "the cat sat on the mat and the dog ran to the man\n".repeat(40);
    std::fs::write(&text, words).unwrap();
    std::fs::write(&output, "before").unwrap();
    let quantize = |more: &[&str]| {
        let mut all = vec!["--weights", "int4", "--group", "32", "--window", "16", "--json"];
        all.extend_from_slice(more);
        let command = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
            .arg("quantize")
            .arg(fixture("tiny.gguf"))
            .arg("-o")
            .arg(&output)
            .arg("--text")
            .arg(&text)
            .args(all)
            .output();
        command.unwrap()
    };
    // Better than the model itself by nine tenths: no mix can be.
    let missed = quantize(&["--metric", "perplexity", "--max-drop", "-0.9"]);
    let said = String::from_utf8_lossy(&missed.stderr).into_owned();
    assert_eq!(missed.status.code(), Some(5), "{said}");
    assert!(said.contains("cannot be met"), "{said}");
    assert_eq!(std::fs::read(&output).unwrap(), b"before");
    for method in ["rtn", "gptq", "awq", "hqq"] {
        let made = quantize(&["--method", method]);
        assert!(made.status.success(), "{method}: {}", String::from_utf8_lossy(&made.stderr));
        let report: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
        let layers = report["layers"].as_array().unwrap();
        assert!(!layers.is_empty() && layers.iter().all(|l| l["relative_error"].as_f64().unwrap() < 0.1), "{report:#}");
        kiln!("generate", &output, "--prompt", "the", "-n", "2", "--ignore-eos").succeeds();
    }
}

#[test]
fn a_quantized_model_is_verified_from_one_quantized_value_to_the_next() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let (data, quantized) = (place.path("x.npz"), place.path("q.onnx"));
    kiln!("run", &model, "--random", "0", "--save-inputs", &data).succeeds();
    kiln!("quantize", &model, "-o", &quantized, "--activations", "u8", "--data", &data, "--group", "0").succeeds();
    let report = kiln!("verify", &quantized, "--random", "3", "--json").succeeds().json();
    let found = &report["quantized"];
    assert!(found["values"].as_u64().unwrap() >= 2 && found["most_steps"].as_u64().unwrap() <= 1, "{report:#}");
    kiln!("compile", &quantized, "-o", &place.path("a.kiln"), "--verify-each").succeeds();
    // Nothing is quantized in the model itself.
    assert!(kiln!("verify", &model, "--json").succeeds().json()["quantized"].is_null());
}
