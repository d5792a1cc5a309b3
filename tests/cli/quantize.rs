//! `kiln quantize` from the command line.

use super::Place;
use super::kiln;
use super::models::{floats, graph, int, ints, mlp, model, node, weight};
use kiln::ir::{DType, Tensor};
use kiln::onnx::proto::{
    AttributeProto, AttributeType, DataType, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
};
use kiln::runtime::memory::Budget;
use prost::Message;
use std::collections::BTreeMap;
use std::path::PathBuf;

pub fn fixture(name: &str) -> PathBuf {
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

/// `kiln quantize` of a checkpoint in `tests/fixtures`, with a text to calibrate on.
fn checkpoint() -> (Place, PathBuf) {
    let place = Place::new();
    let words = "the cat sat on the mat and the dog ran to the man\n".repeat(40);
    let text = place.write("text", words.as_bytes());
    (place, text)
}

#[test]
fn a_decoder_becomes_an_onnx_model_with_every_kind_of_numbers() {
    let (place, text) = checkpoint();
    let source = fixture("tiny.gguf");
    let exported = place.path("f.onnx");
    kiln!("quantize", &source, "-o", &exported, "--weights", "f16").succeeds();
    let data = place.path("in.npz");
    kiln!("run", &exported, "--random", "1", "--save-inputs", &data, "--bind", "past=2", "--bind", "tokens=3")
        .succeeds();
    let cases: [(&str, &[&str], f64); 11] = [
        ("bf16", &["--weights", "bf16"], 1e-5),
        ("fp8e4m3", &["--weights", "fp8e4m3"], 2e-3),
        ("fp8e5m2", &["--weights", "fp8e5m2"], 1e-2),
        ("int8", &["--weights", "int8", "--group", "0"], 1e-3),
        ("int4", &["--weights", "int4", "--group", "16", "--method", "gptq"], 0.1),
        ("int4", &["--weights", "int4", "--group", "16", "--method", "awq"], 0.1),
        ("uint4", &["--weights", "uint4", "--group", "16", "--method", "hqq"], 0.1),
        ("int3", &["--weights", "int3", "--group", "16"], 0.2),
        ("nf4", &["--weights", "nf4", "--group", "16"], 0.1),
        ("int8", &["--activations", "u8"], 1e-3),
        ("int8", &["--activations", "dynamic"], 1e-3),
    ];
    for (precision, options, most) in cases {
        let output = place.path("q.onnx");
        let mut words: Vec<&dyn super::Word> = vec![&"quantize", &source, &"-o", &output, &"--text", &text, &"--json"];
        words.extend(options.iter().map(|word| word as &dyn super::Word));
        let report = super::run(&words).succeeds().json();
        let layers = report["layers"].as_array().unwrap();
        let fits = |l: &serde_json::Value| l["precision"] == precision && l["relative_error"].as_f64().unwrap() < most;
        assert!(layers.len() >= 7 && layers.iter().all(fits), "{options:?}: {report:#}");
        kiln!("run", &output, "--inputs", &data).succeeds();
    }
}

#[test]
fn a_decoder_becomes_an_artifact_that_generates_and_layers_differ() {
    let (place, _) = checkpoint();
    let output = place.path("q.kiln");
    let words =
        ["--weights", "int4", "--group", "32", "--layer", "down_proj=int8", "--layer", "layers.0=f32", "--json"];
    let source = fixture("tiny.gguf");
    let mut all: Vec<&dyn super::Word> = vec![&"quantize", &source, &"-o", &output];
    all.extend(words.iter().map(|word| word as &dyn super::Word));
    let report = super::run(&all).succeeds().json();
    let layers = report["layers"].as_array().unwrap();
    let named = |l: &&serde_json::Value, part: &str| l["name"].as_str().unwrap().contains(part);
    assert!(!layers.is_empty() && !layers.iter().any(|l| named(&l, "layers.0.")), "{report:#}");
    for layer in layers {
        let wanted = if named(&layer, "down_proj") { "int8" } else { "int4" };
        assert_eq!(layer["precision"], wanted, "{layer}");
    }
    kiln!("generate", &output, "--prompt", "the", "-n", "2", "--ignore-eos").succeeds();
    // What neither kind of file has a place for becomes an artifact as an ONNX model does.
    kiln!("quantize", &source, "-o", &output, "--weights", "nf4", "--group", "16").succeeds();
    kiln!("run", &output, "--random", "0").succeeds();
    kiln!("quantize", &source, "-o", &place.path("q.gguf"), "--weights", "nf4").fails(4, "artifacts take all");
    kiln!("quantize", &source, "-o", &output, "--layer", "=int8").fails(2, "the part of the name is empty");
}

#[test]
fn an_encoder_becomes_an_onnx_model_within_a_budget() {
    let place = Place::new();
    for (file, from) in
        [("config.json", "bert-Model/config.json"), ("model.safetensors", "bert-Model/model.safetensors")]
    {
        std::fs::copy(fixture(from), place.path(file)).unwrap();
    }
    std::fs::copy(fixture("words.json"), place.path("tokenizer.json")).unwrap();
    let text = place.write("text", b"w1 w2 w3\nw4 w5\nw6 w7 w8 w9\nw2 w2 w7\nw9 w1\nw3 w3 w4\nw5 w8\nw1 w7 w2\n");
    let (model, output) = (place.path(""), place.path("q.onnx"));
    let quantize = |more: &[&str]| {
        let mut words: Vec<&dyn super::Word> = vec![&"quantize", &model, &"-o", &output, &"--text", &text, &"--json"];
        words.extend(more.iter().map(|word| word as &dyn super::Word));
        super::run(&words)
    };
    let report = quantize(&["--activations", "u8", "--metric", "cosine", "--max-drop", "0.05"]).succeeds().json();
    assert!(report["budget"]["measured"]["drop"].as_f64().unwrap() <= 0.05, "{report:#}");
    let before = std::fs::read(&output).unwrap();
    quantize(&["--weights", "int3", "--metric", "cosine", "--max-drop", "-1"]).fails(5, "cannot be met");
    assert_eq!(std::fs::read(&output).unwrap(), before);
}

/// Two products with the same weight of 4 bits, one of which allows activations of 8 bits.
#[test]
fn activations_are_rounded_where_a_model_allows_it() {
    let place = Place::new();
    let (k, n) = (64i64, 40i64);
    let packed = TensorProto {
        name: "w".into(),
        dims: vec![n, k / 32, 16],
        data_type: DataType::of(DType::U8) as i32,
        raw_data: Some((0..n * k / 2).map(|i| (i * 37 % 251) as u8).collect::<Vec<u8>>().into()),
        ..Default::default()
    };
    let product = |name: &str, level: i64| {
        let sizes = [("K", k), ("N", n), ("bits", 4), ("block_size", 32), ("accuracy_level", level)];
        let attribute = sizes.iter().map(|(name, v)| int(name, *v)).collect();
        NodeProto { domain: "com.microsoft".into(), attribute, ..node(name, "MatMulNBits", &["x", "w", "s"], &[name]) }
    };
    let graph = |levels: [i64; 2]| {
        let nodes = vec![product("may", levels[0]), product("must", levels[1])];
        let ends = vec![floats("may", &[3, n]), floats("must", &[3, n])];
        graph(nodes, vec![floats("x", &[3, k])], ends, vec![packed.clone(), weight("s", &[n, k / 32])])
    };
    let opset_import = ["", "com.microsoft"]
        .map(|d| OperatorSetIdProto { domain: d.into(), version: if d.is_empty() { 18 } else { 1 } });
    let written = |name: &str, levels: [i64; 2]| {
        let opset_import = opset_import.to_vec();
        let model = ModelProto { ir_version: 9, opset_import, graph: Some(graph(levels)), ..Default::default() };
        place.write(name, &model.encode_to_vec())
    };
    let model = written("m.onnx", [4, 0]);
    let run = |rounded: &str| {
        let output = place.path("out.npz");
        kiln!("run", &model, "--random", "1", "--round-activations", rounded, "--output", &output).succeeds();
        let arrays = kiln::npz::read(&output, &Budget::unlimited()).unwrap();
        ["may", "must"].map(|name| arrays.iter().find(|(n, _)| n == name).unwrap().1.clone())
    };
    let (plain, allowed, all) = (run("f32"), run("allowed"), run("int8"));
    assert!(allowed[0] != plain[0] && allowed[0] == all[0]);
    assert!(allowed[1] == plain[1] && allowed[1] != all[1]);
    let none = written("none.onnx", [0, 1]);
    kiln!("run", &none, "--random", "1", "--round-activations", "allowed").fails(4, "none that allows it");
}

/// A command measures: the size of the model's file, of which less is better.
#[cfg(unix)]
#[test]
fn a_command_measures_few_mixes_and_none_twice() {
    let place = Place::new();
    let (model, output, log) = (place.write("m.onnx", &mlp()), place.path("q.onnx"), place.path("log"));
    let command = format!("f() {{ wc -c < \"$1\" | tee -a '{}'; }}; f", log.display());
    let layers = kiln!("quantize", &model, "-o", &place.path("all.onnx"), "--group", "0", "--json").succeeds().json();
    let layers = layers["layers"].as_array().unwrap().len();
    for (more, each) in [(&[][..], 0), (&["--measure-layers", "100"], layers)] {
        std::fs::write(&log, "").unwrap();
        let words = ["--metric", &command, "--max-drop", "-1", "--weights", "int4", "--group", "0"];
        let mut all: Vec<&dyn super::Word> = vec![&"quantize", &model, &"-o", &output];
        all.extend(words.iter().chain(more).map(|word| word as &dyn super::Word));
        let done = super::run(&all);
        let runs = std::fs::read_to_string(&log).unwrap().lines().count();
        let most: usize = done.err.split("at most ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
        assert!(runs > 1 + each && runs <= most, "{runs} of {most}: {}", done.err);
    }
    kiln!(
        "quantize",
        fixture("tiny.gguf"),
        "-o",
        &place.path("q.gguf"),
        "--metric",
        "perplexity",
        "--max-drop",
        "1",
        "--measure-layers",
        "3"
    )
    .fails(4, "--measure-layers is for ONNX models");
}

#[test]
fn calibration_data_that_does_not_fit_is_refused_and_the_model_that_was_there_stays() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let output = place.write("q.onnx", b"before");
    let tensor = |shape: &[usize], value: f32| Tensor::from_f32(shape, &vec![value; shape.iter().product()]).unwrap();
    let write = |name: &str, arrays: &[(&str, Tensor)]| {
        let path = place.path(name);
        let arrays: Vec<(String, Tensor)> = arrays.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
        kiln::npz::write(&path, &arrays).unwrap();
        path
    };
    std::fs::create_dir(place.path("empty")).unwrap();
    let labels = Tensor::from_i64(&[3], &[1, 2, 3]).unwrap();
    let cases = [
        (write("name.npz", &[("z", tensor(&[3, 20], 1.0))]), "no input \"z\"; its inputs are \"x\""),
        (write("missing.npz", &[("labels", labels.clone())]), "no array for input \"x\""),
        (write("shape.npz", &[("x", tensor(&[3, 21], 1.0))]), "shape is [3, 21]"),
        (write("rank.npz", &[("x", tensor(&[60], 1.0))]), "shape is [60]"),
        (write("type.npz", &[("x", Tensor::from_i64(&[3, 20], &[1; 60]).unwrap())]), "the model wants f32"),
        (write("nan.npz", &[("x", tensor(&[3, 20], f32::NAN))]), "NaN or infinite"),
        (write("inf.npz", &[("x", tensor(&[3, 20], f32::INFINITY))]), "NaN or infinite"),
        (place.path("empty"), "no calibration data"),
        (place.write("no.npz", b"not an archive"), ""),
    ];
    for (data, says) in &cases {
        kiln!("quantize", &model, "-o", &output, "--activations", "u8", "--data", data).fails(3, says);
        assert_eq!(std::fs::read(&output).unwrap(), b"before", "{}", data.display());
    }
    kiln!("quantize", &model, "-o", &output, "--activations", "u8").fails(2, "needs calibration data");
    kiln!("quantize", &model, "-o", &output, "--method", "gptq").fails(2, "needs calibration data");
    let good = write("good.npz", &[("x", tensor(&[3, 20], 0.5)), ("labels", labels)]);
    let budget = ["--metric", "cosine", "--max-drop", "-0.1"];
    kiln!(
        "quantize",
        &model,
        "-o",
        &output,
        "--data",
        &good,
        "--held-back",
        &good,
        budget[0],
        budget[1],
        budget[2],
        budget[3]
    )
    .fails(5, "the budget cannot be met");
    kiln!("quantize", &model, "-o", &output, "--data", &good, budget[0], budget[1], budget[2], budget[3])
        .fails(2, "calibration does not see");
    kiln!("quantize", &model, "-o", &output, "--weights", "f16", "--method", "hqq").fails(2, "rounded to the nearest");
    kiln!("quantize", &model, "-o", &output, "--activations", "u8", "--data", &good, "--layer", "w1=int4")
        .fails(4, "--layer PART=int8 or f32, not int4");
    assert_eq!(std::fs::read(&output).unwrap(), b"before");
    assert_eq!(place.list().iter().filter(|name| name.starts_with('.')).count(), 0);
}

/// Activations without any range, and weights of which a channel is constant or zero, have scales that are numbers.
/// A PNG file of `size x size` pixels, each three bytes.
fn image(size: u32, value: impl Fn(u32) -> u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, size, size);
    encoder.set_color(png::ColorType::Rgb);
    let values: Vec<u8> = (0..size * size * 3).map(value).collect();
    encoder.write_header().unwrap().write_image_data(&values).unwrap();
    bytes
}

#[test]
fn images_calibrate_a_model_of_images() {
    let place = Place::new();
    let model = place.write(
        "m.onnx",
        &model(graph(
            vec![node("first", "Conv", &["x", "w"], &["y"])],
            vec![floats("x", &[1, 3, 8, 8])],
            vec![floats("y", &[1, 4, 6, 6])],
            vec![weight("w", &[4, 3, 3, 3])],
        )),
    );
    let (folder, output, report) = (place.path("images"), place.path("q.onnx"), place.path("r.json"));
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("a.png"), image(16, |n| (n * 7 % 256) as u8)).unwrap();
    std::fs::write(folder.join("b.PNG"), image(8, |_| 255)).unwrap();
    std::fs::write(folder.join("notes.txt"), "no image").unwrap();
    kiln!(
        "quantize",
        &model,
        "-o",
        &output,
        "--activations",
        "u8",
        "--data",
        &folder,
        "--report",
        &report,
        "--image-mean",
        "0.5",
        "--image-std",
        "0.25,0.25,0.5"
    )
    .succeeds();
    let said: serde_json::Value = serde_json::from_slice(&std::fs::read(&report).unwrap()).unwrap();
    assert_eq!(said["calibration"]["samples"], 2, "{said:#}");
    kiln!("verify", &output, "--random", "1").succeeds();
    std::fs::write(folder.join("c.png"), b"\x89PNG\r\n\x1a\n").unwrap();
    let before = std::fs::read(&output).unwrap();
    kiln!("quantize", &model, "-o", &output, "--activations", "u8", "--data", &folder)
        .fails(3, "c.png: it cannot be decoded");
    let one = folder.join("b.PNG");
    kiln!("quantize", &model, "-o", &output, "--activations", "u8", "--data", &one, "--image-std", "0")
        .fails(2, "above 0");
    kiln!("quantize", &model, "-o", &output, "--activations", "u8", "--data", &one, "--image-mean", "1,2")
        .fails(2, "3 channels");
    let other = place.write("mlp.onnx", &mlp());
    kiln!("quantize", &other, "-o", &output, "--activations", "u8", "--data", &one).fails(2, "takes no image");
    assert_eq!(std::fs::read(&output).unwrap(), before);
}

#[test]
fn zero_ranges_and_constant_channels_quantize_and_run() {
    let place = Place::new();
    let constant = |name: &str, dims: &[i64], value: &dyn Fn(usize) -> f32| {
        let mut made = weight(name, dims);
        let count: i64 = dims.iter().product();
        made.raw_data = Some((0..count as usize).flat_map(|i| value(i).to_le_bytes()).collect::<Vec<u8>>().into());
        made
    };
    let model = place.write(
        "m.onnx",
        &model(graph(
            vec![node("first", "MatMul", &["x", "w"], &["h"]), node("second", "MatMul", &["h", "v"], &["y"])],
            vec![floats("x", &[2, 8])],
            vec![floats("y", &[2, 4])],
            vec![
                // Column 0 is zero, column 1 is 3 throughout.
                constant("w", &[8, 4], &|i| [0.0, 3.0, (i as f32).sin(), -1e-30][i % 4]),
                constant("v", &[4, 4], &|_| 0.0),
            ],
        )),
    );
    let (data, output) = (place.path("zero.npz"), place.path("q.onnx"));
    kiln::npz::write(&data, &[("x".into(), Tensor::from_f32(&[2, 8], &[0.0; 16]).unwrap())]).unwrap();
    for ranges in ["minmax", "entropy", "percentile", "mse"] {
        for activations in ["u8", "i8"] {
            kiln!("quantize", &model, "-o", &output, "--activations", activations, "--ranges", ranges, "--data", &data)
                .succeeds();
            kiln!("verify", &output, "--inputs", &data).succeeds();
        }
    }
    for weights in ["int8", "uint4", "int3", "nf4", "fp8e4m3", "bf16"] {
        for &method in if weights == "int8" { &["rtn", "gptq", "awq", "hqq"][..] } else { &["rtn"] } {
            kiln!(
                "quantize",
                &model,
                "-o",
                &output,
                "--weights",
                weights,
                "--method",
                method,
                "--group",
                "4",
                "--data",
                &data
            )
            .succeeds();
            let (inputs, outputs) = (place.path("one.npz"), place.path("out.npz"));
            let ones = Tensor::from_f32(&[2, 8], &[1.0; 16]).unwrap();
            kiln::npz::write(&inputs, &[("x".into(), ones)]).unwrap();
            kiln!("run", &output, "--inputs", &inputs, "--output", &outputs).succeeds();
            let made = kiln::npz::read(&outputs, &kiln::runtime::memory::Budget::unlimited()).unwrap();
            assert!(made[0].1.to_f32().unwrap().iter().all(|v| *v == 0.0), "{weights} {method}: {made:?}");
        }
    }
    let nan = constant("w", &[8, 4], &|i| if i == 5 { f32::NAN } else { 1.0 });
    let sick = place.write(
        "nan.onnx",
        &super::models::model(graph(
            vec![node("first", "MatMul", &["x", "w"], &["y"])],
            vec![floats("x", &[2, 8])],
            vec![floats("y", &[2, 4])],
            vec![nan],
        )),
    );
    let before = std::fs::read(&output).unwrap();
    kiln!("quantize", &sick, "-o", &output).fails(3, "weights \"w\": they hold NaN");
    assert_eq!(std::fs::read(&output).unwrap(), before);
}

#[test]
fn pruned_weights_of_one_row_take_fewer_bytes_and_mean_the_same() {
    let place = Place::new();
    let (steps, columns) = (2048, 1024);
    let product = |nodes| {
        let (x, y) = (vec![floats("x", &[1, steps])], vec![floats("y", &[1, columns])]);
        super::models::model(graph(nodes, x, y, vec![weight("w", &[steps, columns])]))
    };
    let dense = place.write("m.onnx", &product(vec![node("n", "MatMul", &["x", "w"], &["y"])]));
    let (pruned, artifact) = (place.path("p.onnx"), place.path("p.kiln"));
    let report =
        kiln!("quantize", &dense, "-o", &pruned, "--prune", "2:4", "--no-quantize", "--json").succeeds().json();
    let bytes = steps * columns / 4 * 9;
    assert_eq!(report["pruned"][0]["packed_bytes_f32"], bytes, "{report:#}");
    assert!(report["layers"].as_array().unwrap().is_empty());
    kiln!("compile", &pruned, "-o", &artifact).succeeds();
    let size = i64::try_from(artifact.metadata().unwrap().len()).unwrap();
    assert!(size > bytes && size < bytes + 500_000, "{size} bytes for {bytes}");
    // Against the interpreter, which reads the model as it is, and on each level.
    kiln!("verify", &pruned, "--random", "5").succeeds();
    kiln!("selftest", &artifact).succeeds();
}

/// Paddle's exporter stores all weights in `Constant` nodes, and its models are of versions in which softmax took all axes from one on for one.
#[test]
fn weights_that_nodes_give_are_quantized_and_nodes_of_old_versions_keep_their_axes() {
    let place = Place::new();
    let constant = |name: &str, dims: &[i64]| {
        let mut made = node("", "Constant", &[], &[name]);
        let r#type = AttributeType::Tensor as i32;
        let t = Some(Box::new(weight("", dims)));
        made.attribute.push(AttributeProto { name: "value".into(), r#type, t, ..Default::default() });
        made
    };
    let mut last = node("last", "LogSoftmax", &["h"], &["z"]);
    last.attribute.push(int("axis", 2));
    // Its axes are an attribute before version 18, so in a model of 13 too.
    let mut mean = node("mean", "ReduceMean", &["h"], &["m"]);
    mean.attribute.push(ints("axes", &[1]));
    let nodes = vec![
        constant("w", &[4, 5]),
        constant("b", &[5]),
        node("product", "MatMul", &["x", "w"], &["p"]),
        node("bias", "Add", &["p", "b"], &["h"]),
        node("from_1", "Softmax", &["h"], &["y"]),
        last,
        mean,
    ];
    let outputs = vec![floats("y", &[2, 3, 5]), floats("z", &[2, 3, 5]), floats("m", &[2, 1, 5])];
    let graph = graph(nodes, vec![floats("x", &[2, 3, 4])], outputs, vec![]);
    let opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 11 }];
    let model = ModelProto { ir_version: 6, opset_import, graph: Some(graph), ..Default::default() };
    let model = place.write("m.onnx", &model.encode_to_vec());
    let (data, output, results) = (place.path("x.npz"), place.path("q.onnx"), place.path("y.npz"));
    let read = || {
        let read = kiln::npz::read(&results, &kiln::runtime::memory::Budget::unlimited()).unwrap();
        read.into_iter().map(|(name, t)| (name, t.to_f32().unwrap())).collect::<BTreeMap<_, _>>()
    };
    kiln!("run", &model, "--random", "0", "--save-inputs", &data, "--output", &results).succeeds();
    let before = read();
    // A softmax over 15 values, not 5.
    let sum: f32 = before["y"].iter().sum();
    assert!((sum - 2.0).abs() < 1e-4 && before["z"].iter().all(|v| *v < 0.0), "{before:?}");
    // Integers of version 13, blocks of version 21, and integer products.
    for options in [["--activations", "u8"], ["--group", "2"], ["--activations", "dynamic"]] {
        let mut words: Vec<&dyn super::Word> = vec![&"quantize", &model, &"-o", &output, &"--data", &data, &"--json"];
        words.extend(options.iter().map(|word| word as &dyn super::Word));
        let report = super::run(&words).succeeds().json();
        assert_eq!(report["layers"].as_array().unwrap().len(), 1, "{options:?}: {report:#}");
        kiln!("run", &output, "--inputs", &data, "--output", &results).succeeds();
        let after = read();
        assert!(after != before, "{options:?}: nothing was quantized");
        for (name, before) in &before {
            let near = before.iter().zip(&after[name]).all(|(a, b)| (a - b).abs() < 0.02);
            assert!(near && before.len() == after[name].len(), "{options:?} {name}: {before:?} {:?}", after[name]);
        }
    }
}
