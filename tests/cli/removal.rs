//! Layers and heads taken out by `kiln quantize`.

use super::models::mlp;
use super::quantize::fixture;
use super::{Done, Place, Word, kiln, run};
use serde_json::Value;
use std::path::Path;

/// A text of one window of the model in `tests/fixtures/lm/tiny.gguf`.
const TEXT: &[u8] = b"the cat sat on the mat and the dog ran";

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn removed(model: &Path, output: &Path, text: &Path, more: &[&str]) -> Done {
    let mut words: Vec<&dyn Word> = vec![&"quantize", &model, &"-o", &output, &"--text", &text, &"--json"];
    words.extend(more.iter().map(|word| word as &dyn Word));
    run(&words)
}

fn loss(model: &Path, text: &Path) -> f64 {
    number(&kiln!("eval", "perplexity", model, "--text", text, "--window", "64", "--json").succeeds().json()["loss"])
}

#[test]
fn what_is_worth_least_goes_and_the_rest_is_a_checkpoint() {
    let place = Place::new();
    let (model, text) = (fixture("tiny.gguf"), place.write("text", TEXT));
    let (small, both) = (place.path("small.gguf"), place.path("both.gguf"));
    let only = ["--no-quantize", "--window", "64", "--drop-layers", "1"];
    let report = removed(&model, &small, &text, &only).succeeds().json();
    let removal = &report["removed"];
    assert_eq!(removal["measure"], "loss");
    assert!((number(&removal["whole"]) - loss(&model, &text)).abs() < 1e-5, "{removal:#}");
    assert!((number(&removal["left"]) - loss(&small, &text)).abs() < 1e-5, "{removal:#}");
    // The least harm of both layers went.
    let round = removal["rounds"][0].as_array().unwrap();
    let least = round.iter().min_by(|a, b| number(&a["harm"]).total_cmp(&number(&b["harm"]))).unwrap();
    assert!(round.len() == 2 && removal["layers_removed"][0] == least["layer"], "{removal:#}");
    assert!(report["layers"].as_array().unwrap().is_empty() && report["weights"].is_null(), "{report:#}");
    assert!(small.metadata().unwrap().len() < model.metadata().unwrap().len());
    // Heads too, and what is left quantized.
    let more = ["--window", "64", "--drop-layers", "1", "--drop-heads", "0.5", "--weights", "int8", "--group", "32"];
    let report = removed(&model, &both, &text, &more).succeeds().json();
    let removal = &report["removed"];
    assert!(removal["heads"].as_array().unwrap().len() == 2, "{removal:#}");
    let gone = removal["heads_removed"].as_array().unwrap();
    let least = removal["heads"].as_array().unwrap().iter().map(|h| number(&h["harm"])).fold(f64::MAX, f64::min);
    assert!(gone.len() == 1 && number(&gone[0]["harm"]) == least, "{removal:#}");
    assert!(!report["layers"].as_array().unwrap().is_empty());
    assert!((number(&removal["left"]) - loss(&both, &text)).abs() < 0.05, "{removal:#}");
    kiln!("generate", &both, "--prompt", "the", "-n", "2", "--ignore-eos").succeeds();
    // As an ONNX model it is the same.
    let onnx = place.path("both.onnx");
    removed(&model, &onnx, &text, &["--no-quantize", "--window", "64", "--drop-heads", "0.5"]).succeeds();
    kiln!("run", &onnx, "--random", "1", "--bind", "past=2", "--bind", "tokens=3").succeeds();
}

#[test]
fn a_budget_holds_for_what_is_taken_out() {
    let place = Place::new();
    let model = fixture("tiny.gguf");
    let text = place.write("text", "the cat sat on the mat and the dog ran to the man\n".repeat(20).as_bytes());
    let small = place.write("small.gguf", b"before");
    let only = ["--no-quantize", "--drop-heads", "0.5", "--window", "16", "--metric", "perplexity", "--max-drop"];
    let with = |drop: &'static str| removed(&model, &small, &text, &[&only[..], &[drop]].concat());
    with("-0.9").fails(5, "cannot be met");
    assert_eq!(std::fs::read(&small).unwrap(), b"before");
    let report = with("1000").succeeds().json();
    let measured = &report["budget"]["measured"];
    // The drop is that from the model as it was.
    let grown = |model: &Path| {
        let part = place.write("part", "the cat sat on the mat and the dog ran to the man\n".repeat(5).as_bytes());
        let told = kiln!("eval", "perplexity", model, "--text", &part, "--window", "16", "--stride", "15", "--json");
        number(&told.succeeds().json()["perplexity"])
    };
    let drop = grown(&small) / grown(&model) - 1.0;
    assert!((number(&measured["drop"]) - drop).abs() < 1e-4 * (1.0 + drop.abs()), "{drop} {measured:#}");
    // ONNX models are measured in the same way, against the model as it was.
    let onnx = place.path("small.onnx");
    removed(&model, &onnx, &text, &[&only[..], &["-0.9"]].concat()).fails(5, "cannot be met");
    removed(&model, &onnx, &text, &[&only[..], &["1000"]].concat()).succeeds();
    let cosine = ["--no-quantize", "--drop-heads", "0.5", "--window", "16", "--metric", "cosine", "--max-drop", "1"];
    removed(&model, &onnx, &text, &cosine).fails(4, "measure perplexity");
}

#[test]
fn an_encoder_loses_heads_unevenly_and_stays_a_folder() {
    let place = Place::new();
    let folder = place.path("bert");
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(fixture("bert-Model").join(file), folder.join(file)).unwrap();
    }
    std::fs::copy(fixture("words.json"), folder.join("tokenizer.json")).unwrap();
    let text = place.write("text", b"w1 w2 w3\nw4 w5\nw6 w7 w8 w9\nw2 w2 w7\nw9 w1\nw3 w3 w4\nw5 w8\nw1 w7 w2\n");
    let small = place.path("small");
    let budget = ["--metric", "cosine", "--max-drop"];
    let some = ["--no-quantize", "--drop-heads", "0.4"];
    removed(&folder, &small, &text, &[&some[..], &budget, &["-1"]].concat()).fails(5, "cannot be met");
    assert!(!small.exists());
    let report = removed(&folder, &small, &text, &some).succeeds().json();
    let gone = report["removed"]["heads_removed"].as_array().unwrap();
    // 0.4 of 8 heads; their numbers are in the configuration.
    assert_eq!(gone.len(), 3, "{report:#}");
    let config: Value = serde_json::from_slice(&std::fs::read(small.join("config.json")).unwrap()).unwrap();
    for head in gone {
        let list = config["pruned_heads"][head["layer"].to_string()].as_array().unwrap();
        assert!(list.contains(&head["head"]), "{config:#}");
    }
    let embed = |model: &Path| {
        let all = kiln!("eval", "embed", model, "--text", "w1 w2 w3", "--json").succeeds().json();
        all["embeddings"][0].as_array().unwrap().iter().map(number).collect::<Vec<f64>>()
    };
    let cosine: f64 = embed(&folder).iter().zip(&embed(&small)).map(|(a, b)| a * b).sum();
    assert!(cosine < 0.999_999 && cosine > -1.0, "{cosine}");
    // What was taken out before stays out, and what is quantized then is in the same folder.
    let smaller = place.path("smaller");
    removed(&small, &smaller, &text, &["--drop-layers", "1", "--weights", "f16"]).succeeds();
    kiln!("eval", "embed", &smaller, "--text", "w1 w2 w3").succeeds();
}

#[test]
fn what_cannot_be_taken_out_is_said() {
    let place = Place::new();
    let (model, text, output) = (fixture("tiny.gguf"), place.write("text", TEXT), place.path("o.gguf"));
    let fails = |more: &[&str], code: i32, says: &str| removed(&model, &output, &text, more).fails(code, says);
    fails(&["--drop-layers", "2"], 2, "of 2 layers 2 cannot be taken out");
    fails(&["--drop-heads", "0.1"], 2, "a share of 0.1 of the heads is 0 of 4 of each layer");
    fails(&["--drop-heads", "1"], 2, "a share between 0 and 1");
    fails(&["--no-quantize"], 2, "goes with --drop-layers, --drop-heads or --prune");
    let empty = place.write("empty", b"");
    removed(&model, &output, &empty, &["--drop-layers", "1"]).fails(3, "fewer than two tokens");
    kiln!("quantize", &model, "-o", &output, "--drop-layers", "1").fails(2, "--text");
    let onnx = place.write("m.onnx", &mlp());
    removed(&onnx, &place.path("o.onnx"), &text, &["--drop-layers", "1"]).fails(4, "checkpoints");
    assert!(!output.exists());
}
