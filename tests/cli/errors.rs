//! Every error of the contract: its exit code, that the message says what is wrong, and that nothing half-written stays.

use super::models::*;
use super::{Place, kiln};
use kiln::ir::{DType, Tensor};

/// `kiln check` and `kiln compile` refuse the bytes with that code, and leave nothing behind.
#[track_caller]
fn refused(bytes: &[u8], code: i32, says: &str) {
    let place = Place::new();
    let model = place.write("m.onnx", bytes);
    kiln!("check", &model).fails(code, says);
    kiln!("compile", &model, "-o", &place.path("a.kiln")).fails(code, says);
    assert_eq!(place.list(), ["m.onnx"]);
    let report = kiln!("check", &model, "--json").json();
    assert_eq!(report["supported"], false);
    assert_eq!(report["valid"], code != 3);
}

fn one_node(n: kiln::onnx::proto::NodeProto) -> Vec<u8> {
    model(graph(vec![n], vec![floats("x", &[2, 3])], vec![floats("y", &[2, 3])], vec![]))
}

#[test]
fn truncated_models_are_invalid() {
    let whole = mlp();
    for keep in [1, 10, whole.len() / 2, whole.len() - 1] {
        let place = Place::new();
        let model = place.write("m.onnx", &whole[..keep]);
        kiln!("check", &model).fails(3, "");
    }
    refused(&whole[..whole.len() - 1], 3, "not an ONNX model");
}

#[test]
fn other_files_are_named() {
    refused(b"<!DOCTYPE html><html>not found</html>", 3, "an HTML page");
    refused(b"GGUF\x03\0\0\0", 3, "GGUF");
    refused(b"", 3, "an empty file");
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    kiln!("selftest", &model).fails(3, "looks like an ONNX model");
}

#[test]
fn unknown_operators_are_unsupported_and_all_named() {
    let nodes = vec![
        node("a", "Frobnicate", &["x"], &["h"]),
        node("b", "Relu", &["h"], &["r"]),
        node("c", "Transmogrify", &["x"], &["y"]),
    ];
    let bytes = model(graph(nodes, vec![floats("x", &[2])], vec![floats("y", &[2])], vec![]));
    refused(&bytes, 4, "Frobnicate");
    refused(&bytes, 4, "Transmogrify");
}

#[test]
fn invalid_wins_over_unsupported() {
    let nodes = vec![node("a", "Frobnicate", &["x"], &["h"]), node("b", "Relu", &["nothing"], &["y"])];
    let bytes = model(graph(nodes, vec![floats("x", &[2])], vec![floats("y", &[2])], vec![]));
    refused(&bytes, 3, "nothing");
}

#[test]
fn cycles_are_invalid() {
    let nodes = vec![node("a", "Add", &["x", "q"], &["p"]), node("b", "Relu", &["p"], &["q"])];
    let bytes = model(graph(nodes, vec![floats("x", &[2])], vec![floats("q", &[2])], vec![]));
    refused(&bytes, 3, "cycle");
}

#[test]
fn undefined_names_are_invalid() {
    refused(&one_node(node("a", "Add", &["x", "missing"], &["y"])), 3, "missing");
}

#[test]
fn bad_attributes_are_invalid() {
    let mut n = node("soft", "Softmax", &["x"], &["y"]);
    n.attribute = vec![int("axis", 7)];
    refused(&one_node(n), 3, "soft");
    let mut n = node("soft", "Softmax", &["x"], &["y"]);
    n.attribute = vec![int("axes", 1)];
    refused(&one_node(n), 3, "axes");
}

#[test]
fn overflowing_dims_are_invalid() {
    let big = 1 << 62;
    let bytes = model(graph(
        vec![node("a", "Relu", &["x"], &["y"])],
        vec![floats("x", &[big, big])],
        vec![floats("y", &[big, big])],
        vec![],
    ));
    refused(&bytes, 3, "too large");
    let mut lying = weight("w", &[2]);
    lying.dims = vec![1 << 40, 1 << 40];
    let bytes = model(graph(
        vec![node("a", "Add", &["x", "w"], &["y"])],
        vec![floats("x", &[2])],
        vec![floats("y", &[2])],
        vec![lying],
    ));
    refused(&bytes, 3, "w");
}

#[test]
fn a_changed_byte_anywhere_is_noticed() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let whole = std::fs::read(&artifact).unwrap();
    kiln!("run", &artifact, "--random", "1").succeeds();
    for at in (0..whole.len()).step_by(whole.len() / 24) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        let damaged = place.write("damaged.kiln", &bytes);
        kiln!("run", &damaged, "--random", "1").fails(3, "");
    }
    let cut = place.write("cut.kiln", &whole[..whole.len() - 1]);
    kiln!("run", &cut, "--random", "1").fails(3, "truncated");
    kiln!("inspect", &cut).fails(3, "truncated");
}

#[test]
fn levels_that_are_not_there_are_unsupported() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact, "--cpu", "portable").succeeds();
    // A machine that has the level takes the code of a lower one.
    let above = kiln!("run", &artifact, "--random", "1", "--cpu", "x86-64-v4-amx");
    if kiln::default_levels().contains(&kiln::runtime::cpu::CpuLevel::X86_64V4Amx) {
        above.succeeds();
    } else {
        above.fails(4, "code for portable");
    }
    kiln!("run", &artifact, "--random", "1", "--cpu", "portable").succeeds();
    kiln!("compile", &model, "-o", &artifact, "--cpu", "x86-64-v3").succeeds();
    kiln!("run", &artifact, "--random", "1", "--cpu", "portable").fails(4, "code for x86-64-v3");
    kiln!("compile", &model, "-o", &place.path("b.kiln"), "--cpu", "pentium").fails(2, "pentium");
    assert_eq!(place.list(), ["a.kiln", "m.onnx"]);
}

#[test]
fn unwritable_outputs_are_usage_errors() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let nowhere = place.path("no/such/folder/a.kiln");
    kiln!("compile", &model, "-o", &nowhere).fails(2, "cannot write");
    let folder = place.path("folder");
    std::fs::create_dir(&folder).unwrap();
    kiln!("compile", &model, "-o", &folder).fails(2, "not a regular file");
    kiln!("run", &model, "--random", "0", "--output", &place.path("no/such/o.npz")).fails(2, "cannot write");
    kiln!("run", &model, "--random", "0", "--save-inputs", &place.path("no/such/i.npz")).fails(2, "cannot write");
    kiln!("run", &model, "--random", "0", "--output", &place.path("o.txt")).fails(2, ".npz");
    assert_eq!(place.list(), ["folder", "m.onnx"]);
}

#[test]
fn files_that_are_not_there_are_usage_errors() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    kiln!("check", &place.path("nothing.onnx")).fails(2, "nothing.onnx");
    kiln!("check", place.0.path()).fails(2, "folder");
    kiln!("run", &model, "--inputs", &place.path("nothing.npz")).fails(2, "nothing.npz");
    kiln!("run", &model).fails(2, "--inputs");
    kiln!("run", &model, "--random", "0", "--tap", "nobody").fails(2, "nobody");
    kiln!("frobnicate").fails(2, "frobnicate");
}

#[test]
fn data_that_breaks_a_rule_is_invalid() {
    let place = Place::new();
    let model = place.write("m.onnx", &gather());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let x = Tensor::from_f32(&[4, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]).unwrap();
    let write = |name: &str, indices: &[i64]| {
        let indices = Tensor::from_i64(&[indices.len()], indices).unwrap();
        let path = place.path(name);
        kiln::npz::write(&path, &[("x".into(), x.clone()), ("indices".into(), indices)]).unwrap();
        path
    };
    kiln!("run", &artifact, "--inputs", &write("good.npz", &[-4, 3, 0])).succeeds();
    let bad = write("bad.npz", &[0, 4, 1]);
    kiln!("run", &artifact, "--inputs", &bad).fails(3, "pick");
    kiln!("run", &model, "--inputs", &bad).fails(3, "pick");
    kiln!("run", &artifact, "--inputs", &write("short.npz", &[1])).fails(3, "indices");
}

#[test]
fn inputs_that_do_not_fit_are_named() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let try_it = |name: &str, tensor: Tensor, says: &str| {
        let path = place.path("i.npz");
        kiln::npz::write(&path, &[(name.into(), tensor)]).unwrap();
        kiln!("run", &model, "--inputs", &path).fails(3, says);
    };
    let right = Tensor::from_f32(&[3, 20], &[0.0; 60]).unwrap();
    try_it("z", right, "\"z\"");
    try_it("x", Tensor::from_f32(&[3, 21], &[0.0; 63]).unwrap(), "20");
    try_it("x", Tensor::from_i64(&[3, 20], &[0; 60]).unwrap(), "i64");
    let folder = place.path("data");
    std::fs::create_dir(&folder).unwrap();
    kiln!("run", &model, "--data", &folder).fails(3, "input_0.pb");
    std::fs::write(folder.join("input_0.pb"), b"\xff\xff").unwrap();
    kiln!("run", &model, "--data", &folder).fails(3, "input_0.pb");
}

#[test]
fn limits_and_what_is_not_built() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact, "--memory-limit", "1K").fails(6, "more than 1024 bytes");
    let squares = vec![node("a", "MatMul", &["x", "x"], &["h"]), node("b", "MatMul", &["h", "x"], &["y"])];
    let large = model_of(squares, &[512, 512]);
    let large = place.write("l.onnx", &large);
    kiln!("compile", &large, "-o", &artifact, "--memory-limit", "64K").fails(6, "memory limit");
    kiln!("compile", &model, "-o", &artifact, "--precision", "f16").fails(4, "f16");
    assert_eq!(place.list(), ["l.onnx", "m.onnx"]);
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("run", &artifact, "--random", "0", "--memory-limit", "1K").fails(6, "memory limit");
    kiln!("run", &artifact, "--random", "0", "--bind", "batch=2").fails(2, "--bind");
    kiln!("run", &artifact, "--random", "0", "--threads", "0").fails(2, "--threads");
    kiln!("check", &artifact).fails(2, "artifact");
    let strings = place.write("s.onnx", &model_of_strings());
    kiln!("run", &strings, "--random", "0").fails(4, "string");
}

#[test]
fn what_no_archive_holds_needs_a_folder() {
    let place = Place::new();
    let archive = place.path("o.npz");
    let words = place.write("words.onnx", &model_of_strings());
    kiln!("run", &words, "--random", "0", "--output", &archive).fails(2, "use --output DIR/");
    kiln!("run", &words, "--inputs", &archive).fails(2, "use --data DIR");

    // A list of one tensor: read as the graph's type says, and never written to an archive.
    let nodes = vec![node("list", "SequenceConstruct", &["x"], &["y"])];
    let list = place.write("list.onnx", &model(graph(nodes, vec![floats("x", &[2])], vec![sequence("y")], vec![])));
    kiln!("run", &list, "--random", "0", "--output", &archive).fails(2, "sequence(f32[...])");

    let nodes = vec![node("at", "SequenceAt", &["x", "i"], &["y"])];
    let i = value("i", DType::I64, &[]);
    let at = place.write("at.onnx", &model(graph(nodes, vec![sequence("x"), i], vec![floats("y", &[2])], vec![])));
    kiln!("run", &at, "--inputs", &archive).fails(2, "input \"x\" is sequence(f32[...])");
    kiln!("run", &at, "--random", "0").fails(4, "use --data");
    let folder = place.path("data");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("input_0.pb"), b"\x10\x02").unwrap();
    kiln!("run", &at, "--data", &folder).fails(3, "input_1.pb");
    std::fs::write(folder.join("input_0.pb"), b"\x10\x01\x1a\x04\x08\x00\x10\x07").unwrap();
    kiln!("run", &at, "--data", &folder).fails(3, "the graph asks for f32[...]");
    assert!(!archive.exists());
}

/// Nodes from an f32 `x` to a `y` of the same dims.
fn model_of(nodes: Vec<kiln::onnx::proto::NodeProto>, dims: &[i64]) -> Vec<u8> {
    model(graph(nodes, vec![floats("x", dims)], vec![floats("y", dims)], vec![]))
}

/// `y = Identity(x)` on strings.
fn model_of_strings() -> Vec<u8> {
    let of = |name| value(name, DType::Str, &[Dim::N(2)]);
    model(graph(vec![node("same", "Identity", &["x"], &["y"])], vec![of("x")], vec![of("y")], vec![]))
}

#[test]
fn options_that_make_no_sense_are_errors() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    for option in [["--bind", "n=1"], ["--cpu", "portable"], ["--threads", "1"], ["--dump", "d"]] {
        kiln!("inspect", &artifact, option[0], option[1]).fails(2, option[0]);
    }
    kiln!("inspect", &artifact, "--graph").fails(2, "--graph");
    kiln!("run", &artifact, "--random", "0", "--verify-each").fails(2, "--verify-each");
    kiln!("check", &model, "--threads", "2").fails(2, "--threads");
    kiln!("compile", &model, "-o", &artifact, "--bind", "n=1", "--bind", "n=2").fails(2, "twice");
    kiln!("run", &model, "--random", "0", "--inputs", "x.npz").fails(2, "--random");
    kiln!().fails(2, "Usage");
}

#[test]
fn free_dims_have_the_range_that_is_bound() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp_with_batch(Dim::Name("batch"), Dim::Name("batch")));
    let artifact = place.path("a.kiln");
    kiln!("check", &model).succeeds();
    kiln!("compile", &model, "-o", &artifact, "--bind", "batch").fails(2, "DIM=N");
    kiln!("compile", &model, "-o", &artifact, "--bind", "batch=2..8").succeeds();
    let inputs = |rows: usize| {
        let path = place.path("i.npz");
        let values: Vec<f32> = (0..rows * 20).map(|i| (i % 7) as f32 - 3.0).collect();
        kiln::npz::write(&path, &[("x".into(), Tensor::from_f32(&[rows, 20], &values).unwrap())]).unwrap();
        path
    };
    kiln!("run", &artifact, "--inputs", &inputs(9)).fails(3, "batch");
    kiln!("run", &model, "--inputs", &inputs(9), "--bind", "batch=2..8").fails(3, "bound to 2..8");
    kiln!("check", &model, "--bind", "seq=3").fails(2, "there are batch");
    kiln!("run", &artifact, "--inputs", &inputs(1)).fails(3, "batch");
    let report = kiln!("run", &artifact, "--inputs", &inputs(5), "--json").succeeds().json();
    assert_eq!(report["outputs"][0]["shape"], serde_json::json!([5, 12]));
    let report = kiln!("run", &artifact, "--random", "3", "--json").succeeds().json();
    assert_eq!(report["outputs"][0]["shape"], serde_json::json!([2, 12]), "the least of the range");
    kiln!("compile", &model, "-o", &artifact, "--bind", "batch=5").succeeds();
    let report = kiln!("run", &artifact, "--random", "3", "--json").succeeds().json();
    assert_eq!(report["outputs"][0]["shape"], serde_json::json!([5, 12]));
}

#[test]
fn loops_without_an_end_are_stopped_by_time_and_memory() {
    let place = Place::new();
    let model = place.write("m.onnx", &endless());
    kiln!("run", &model, "--random", "0", "--timeout", "0.3").fails(6, "spin: the time limit has been reached");
    kiln!("run", &model, "--random", "0", "--memory-limit", "40M").fails(6, "spin: the memory limit has been reached");
    let artifact = place.path("m.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("bench", &artifact, "--timeout", "0.2").fails(6, "spin: the time limit has been reached");
    let mlp = place.write("mlp.onnx", &mlp());
    kiln!("run", &mlp, "--random", "0", "--timeout", "0").fails(6, "first: the time limit has been reached");
    kiln!("run", &mlp, "--random", "0", "--timeout", "soon").fails(2, "no number of seconds");
}
