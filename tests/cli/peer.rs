//! `kiln peer` as a benchmark driver talks to it.

use super::Place;
use super::models::mlp;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

#[test]
fn a_session_compiles_loads_runs_and_dumps() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let data: Vec<u8> = (0..60).flat_map(|i| (i as f32 / 60.0).to_le_bytes()).collect();
    let input = json!({ "name": "x", "dtype": "f32", "shape": [3, 20], "file": place.write("x.raw", &data) });
    let mut child = Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["peer", "--threads", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut requests = child.stdin.take().unwrap();
    let mut answers = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut ask = |request: Value| -> Value {
        writeln!(requests, "{request}").unwrap();
        serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap()
    };
    let hello = ask(json!({ "op": "hello" }));
    assert_eq!((&hello["ok"], &hello["aot"]), (&json!(true), &json!(true)));
    assert_eq!(ask(json!({ "op": "run", "n": 1 }))["ok"], false, "nothing is loaded");

    let nowhere =
        json!({ "op": "compile", "model": place.path("no.onnx"), "inputs": [input], "cache": place.path("") });
    let failed = ask(nowhere);
    assert_eq!(failed["ok"], false);
    assert!(failed["error"].as_str().unwrap().contains("no.onnx"));
    let compiled = ask(json!({ "op": "compile", "model": model, "inputs": [input], "cache": place.path("") }));
    assert_eq!(compiled["ok"], true, "{compiled}");
    // Loading needs the artifact alone.
    std::fs::remove_file(&model).unwrap();
    let load = json!({ "op": "load", "model": model, "inputs": [input], "cache": place.path(""),
                       "artifact": compiled["artifact"] });
    let loaded = ask(load);
    assert!(loaded["first_s"].as_f64().unwrap() >= loaded["load_s"].as_f64().unwrap());
    let run = ask(json!({ "op": "run", "n": 7 }));
    assert_eq!(run["ns"].as_array().unwrap().len(), 7);
    let dumped = ask(json!({ "op": "dump", "dir": place.path("") }));
    assert_eq!(dumped["outputs"][0]["shape"], json!([3, 12]));
    let bytes = std::fs::read(dumped["outputs"][0]["file"].as_str().unwrap()).unwrap();
    assert_eq!(bytes.len(), 3 * 12 * 4);
    assert!(bytes.iter().any(|b| *b != 0));
    writeln!(requests, "{}", json!({ "op": "quit" })).unwrap();
    assert!(child.wait().unwrap().success());
}
