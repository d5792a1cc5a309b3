//! What the commands do when all is well.

use super::models::*;
use super::{Place, kiln};
use kiln::ir::DType;
use kiln::onnx::model::{TensorType, ValueType};
use kiln::onnx::value::{Value, decode, decode_tensor, encode};
use kiln::runtime::memory::Budget;
use serde_json::json;

#[test]
fn an_mlp_goes_all_the_way_through() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    let report = kiln!("compile", &model, "-o", &artifact, "--json").succeeds().json();
    assert_eq!(report["host_ops"], 0);
    kiln!("verify", &model, "--random", "4").succeeds();

    // The same from the model and from the artifact, on any number of threads.
    let inputs = place.path("i.npz");
    let outputs = |of: &std::path::PathBuf, threads: &str, name: &str| {
        let path = place.path(name);
        kiln!("run", of, "--inputs", &inputs, "--output", &path, "--threads", threads).succeeds();
        std::fs::read(path).unwrap()
    };
    let text = kiln!("run", &artifact, "--random", "4", "--save-inputs", &inputs).succeeds().out;
    assert!(text.starts_with("y: f32[3, 12] min"), "{text}");
    let one = outputs(&artifact, "1", "1.npz");
    assert_eq!(one, outputs(&artifact, "3", "3.npz"));
    assert_eq!(one, outputs(&model, "1", "m.npz"));
    let arrays = kiln::npz::read(&place.path("1.npz"), &Budget::unlimited()).unwrap();
    assert_eq!((arrays[0].0.as_str(), arrays[0].1.shape()), ("y", &[3, 12][..]));

    // A folder of messages, read back as inputs of ONNX's form.
    let folder = place.path("out");
    kiln!("run", &artifact, "--inputs", &inputs, "--output", format!("{}/", folder.display()).as_str()).succeeds();
    let tensor = decode_tensor(std::fs::read(folder.join("output_0.pb")).unwrap().into(), 1 << 20).unwrap();
    assert_eq!(tensor, arrays[0].1);

    let bench = kiln!("bench", &artifact, "--runs", "5", "--json").succeeds().json();
    assert_eq!(bench["runs"], 5);
    assert!(bench["median_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn artifacts_are_byte_identical_on_any_number_of_threads() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let compile = |name: &str, threads: &str| {
        let path = place.path(name);
        kiln!("compile", &model, "-o", &path, "--threads", threads, "--golden").succeeds();
        std::fs::read(path).unwrap()
    };
    assert_eq!(compile("a.kiln", "1"), compile("b.kiln", "4"));
}

#[test]
fn selftest_finds_golden_results_right_and_wrong() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let (golden, plain) = (place.path("g.kiln"), place.path("p.kiln"));
    kiln!("compile", &model, "-o", &golden, "--golden").succeeds();
    kiln!("compile", &model, "-o", &plain).succeeds();
    let report = kiln!("selftest", &golden, "--json").succeeds().json();
    assert_eq!((&report["golden"], &report["ok"]), (&true.into(), &true.into()));
    assert_eq!(kiln!("selftest", &plain, "--json").succeeds().json()["golden"], false);
}

#[test]
fn inspect_says_what_is_inside() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let of_artifact = kiln!("inspect", &artifact, "--json").succeeds().json();
    let of_model = kiln!("inspect", &model, "--json", "--graph", "--plan").succeeds().json();
    for key in ["arena_bytes", "live_bytes", "weight_bytes", "operations", "bytes"] {
        assert!(of_artifact[key].is_u64(), "{key}");
        assert_eq!(of_artifact[key], of_model[key]);
    }
    assert!(of_artifact["arena_bytes"].as_u64() >= of_artifact["live_bytes"].as_u64());
    let kernels = of_artifact["kernels"].as_array().unwrap();
    assert!(!kernels.is_empty());
    assert_eq!(kernels[0]["code"]["portable"]["emitter"], "cranelift");
    let origins: String = kernels.iter().map(|k| k["origin"].to_string()).collect();
    assert!(["first", "act", "second"].iter().all(|name| origins.contains(name)), "{origins}");
    assert!(of_model["graph"].as_str().unwrap().starts_with("graph"));
    assert!(of_model["plan"].as_str().unwrap().starts_with("plan"));
    let text = kiln!("inspect", &artifact).succeeds().out;
    assert!(text.contains("weights") && text.contains("from"), "{text}");
}

/// A convolution with a border, a loss whose targets must be wider, and the largest two numbers of a row.
fn model_with_help() -> Vec<u8> {
    let mut conv = node("conv", "Conv", &["x", "w"], &["c"]);
    conv.attribute = vec![ints("pads", &[1, 1, 1, 1])];
    let nodes = vec![
        conv,
        node("loss", "SoftmaxCrossEntropyLoss", &["s", "t"], &["l"]),
        node("top", "TopK", &["s", "k"], &["v", "i"]),
    ];
    let mut k = weight("k", &[1]);
    k.data_type = 7;
    k.raw_data = Some(2i64.to_le_bytes().to_vec().into());
    model(graph(
        nodes,
        vec![floats("x", &[1, 2, 5, 5]), floats("s", &[3, 4]), value("t", DType::I32, &[Dim::N(3)])],
        vec![floats("c", &[1, 4, 5, 5]), floats("l", &[]), floats("v", &[3, 2])],
        vec![weight("w", &[4, 2, 3, 3]), k],
    ))
}

#[test]
fn inspect_says_what_was_added_and_why_steps_run_on_the_host() {
    let place = Place::new();
    let model = place.write("m.onnx", &model_with_help());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let of_artifact = kiln!("inspect", &artifact, "--json").succeeds().json();
    let of_model = kiln!("inspect", &model, "--json").succeeds().json();
    for key in ["host_ops", "copies", "casts", "kernels"] {
        assert_eq!(of_artifact[key], of_model[key], "{key}");
    }
    let host = &of_artifact["host_ops"][0];
    assert_eq!((&host["op"], &host["origin"]), (&json!("top_k"), &json!(["top"])));
    assert!(host["why"].as_str().unwrap().contains("no kernel"), "{host}");
    let border = &of_artifact["copies"][0];
    assert_eq!((&border["what"], &border["operators"]), (&json!("pad"), &json!(["Conv"])));
    assert!(border["bytes"].as_u64().unwrap() >= 4 * 2 * (25 + 49));
    let cast = &of_artifact["casts"][0];
    assert_eq!((&cast["from"], &cast["to"], &cast["origin"]), (&json!("i32[3]"), &json!("i64[3]"), &json!(["loss"])));
    let text = kiln!("inspect", &artifact).succeeds().out;
    for said in ["host op", "copy added", "cast added", "operations", "per byte"] {
        assert!(text.contains(said), "{said:?} is not in\n{text}");
    }
}

#[test]
fn one_artifact_serves_all_sizes() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp_with_batch(Dim::Name("batch"), Dim::Name("batch")));
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact, "--golden", "--verify-each").succeeds();
    kiln!("selftest", &artifact).succeeds();
    let report = kiln!("inspect", &artifact, "--json").succeeds().json();
    assert_eq!(report["symbols"][0]["name"], "batch");
    assert!(kiln!("inspect", &artifact).succeeds().out.contains("free dim batch"));
    for rows in [1, 3, 8, 17] {
        let inputs = place.path("i.npz");
        let bind = format!("batch={rows}");
        kiln!("run", &model, "--random", "1", "--bind", bind.as_str(), "--save-inputs", &inputs).succeeds();
        let of = |what: &std::path::PathBuf, name: &str| {
            let path = place.path(name);
            kiln!("run", what, "--inputs", &inputs, "--output", &path).succeeds();
            kiln::npz::read(&path, &Budget::unlimited()).unwrap().remove(0).1
        };
        let (free, fixed) = (of(&artifact, "free.npz"), of(&model, "fixed.npz"));
        assert_eq!(free.shape(), [rows, 12]);
        assert!(kiln::compare::difference(&fixed, &free).within(1e-6), "{rows} rows");
    }
}

#[test]
fn pictures_show_every_step_and_tensor() {
    let place = Place::new();
    let model = place.write("m.onnx", &model_with_help());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let report = kiln!("inspect", &artifact, "--json").succeeds().json();
    let dot = kiln!("inspect", &artifact, "--picture", "graph").succeeds().out;
    assert!(dot.starts_with("digraph") && dot.trim_end().ends_with('}'), "{dot}");
    for kernel in report["kernels"].as_array().unwrap() {
        assert!(dot.contains(&format!("{} {}", kernel["name"].as_str().unwrap(), kernel["what"].as_str().unwrap())));
    }
    assert!(dot.contains("host top_k") && dot.contains("-> out0"), "{dot}");
    let svg = kiln!("inspect", &artifact, "--picture", "arena").succeeds().out;
    assert!(svg.starts_with("<svg") && svg.contains("f32[1, 2, 7, 7]"), "the input with its border: {svg}");
    kiln!("inspect", &artifact, "--picture", "graph", "--json").fails(2, "--json");
}

#[test]
fn sequences_go_in_and_come_out_as_the_model_types_them() {
    let place = Place::new();
    // A list of what was given, then one more; and its second element.
    let nodes = vec![
        node("more", "SequenceInsert", &["list", "x"], &["longer"]),
        node("at", "SequenceAt", &["longer", "i"], &["second"]),
    ];
    let i = value("i", DType::I64, &[]);
    let outputs = vec![vectors("longer"), value("second", DType::F32, &[Dim::Name("n")])];
    let bytes = model(graph(nodes, vec![vectors("list"), floats("x", &[3]), i], outputs, vec![]));
    let model = place.write("m.onnx", &bytes);
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();

    let tensor = |v: &[f32]| Value::Tensor(kiln::ir::Tensor::from_f32(&[v.len()], v).unwrap());
    let one = Value::Tensor(kiln::ir::Tensor::from_i64(&[], &[1]).unwrap());
    let list = Value::Sequence(vec![tensor(&[1.0, 2.0])]);
    let data = place.path("data");
    std::fs::create_dir(&data).unwrap();
    for (n, value) in [list, tensor(&[3.0, 4.0, 5.0]), one].iter().enumerate() {
        std::fs::write(data.join(format!("input_{n}.pb")), encode(value, None, "")).unwrap();
    }
    let tensors = ValueType::Tensor(TensorType { dtype: DType::F32, shape: None });
    let sequences = ValueType::Sequence(Box::new(tensors.clone()));
    for of in [&model, &artifact] {
        let out = place.path("out");
        let slash = format!("{}/", out.display());
        kiln!("run", of, "--data", &data, "--output", slash.as_str()).succeeds();
        let read = |n: usize, ty: &ValueType| {
            let bytes = std::fs::read(out.join(format!("output_{n}.pb"))).unwrap();
            decode(bytes.into(), ty, 1 << 20).unwrap()
        };
        let longer = Value::Sequence(vec![tensor(&[1.0, 2.0]), tensor(&[3.0, 4.0, 5.0])]);
        assert_eq!(read(0, &sequences), longer, "of {}", of.display());
        assert_eq!(read(1, &tensors), tensor(&[3.0, 4.0, 5.0]));
        std::fs::remove_dir_all(out).unwrap();
        kiln!("run", of, "--data", &data, "--output", &place.path("o.npz"))
            .fails(2, "output \"longer\" is sequence(f32[");
        let report = kiln!("run", of, "--data", &data, "--json").succeeds().json();
        assert_eq!(report["outputs"][0]["elements"][1]["values"], json!([3.0, 4.0, 5.0]));
    }
    kiln!("verify", &model, "--data", &data).succeeds();
    kiln!("run", &artifact, "--inputs", &place.path("i.npz")).fails(2, "use --data");
    kiln!("compile", &model, "-o", &artifact, "--golden").fails(4, "golden");
}

#[test]
fn taps_add_intermediate_tensors() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let report = kiln!("run", &model, "--random", "0", "--tap", "act", "--tap", "h", "--json").succeeds().json();
    let names: Vec<&str> = report["outputs"].as_array().unwrap().iter().map(|o| o["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["y", "r", "h"]);
    assert_eq!(report["outputs"][1]["min"], 0.0, "Relu has cut what is negative");
    assert!(report["outputs"][2]["min"].as_f64().unwrap() < 0.0);
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("run", &artifact, "--random", "0", "--tap", "act").fails(2, "--tap");
}

#[test]
fn dumps_hold_every_stage_and_passes_are_verified() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let dump = place.path("dump");
    kiln!("compile", &model, "-o", &place.path("a.kiln"), "--dump", &dump, "--verify-each").succeeds();
    let names: Vec<String> =
        std::fs::read_dir(&dump).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    for wanted in ["00-import.graph", "plan", "k0.portable.kernel", "k0.portable.vector", "k0.portable.clif"] {
        assert!(names.iter().any(|n| n == wanted), "{wanted} is not in {names:?}");
    }
    let plan = std::fs::read_to_string(dump.join("plan")).unwrap();
    assert!(kiln::ir::plan::Plan::parse(&plan).is_ok());
}

#[test]
fn random_inputs_follow_the_seed_and_bind() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp_with_batch(Dim::Name("batch"), Dim::Name("batch")));
    let inputs = |name: &str, words: &[&str]| {
        let path = place.path(name);
        let (model, saved) = (&model, &path);
        let mut all: Vec<&dyn super::Word> = vec![&"run", &model, &"--save-inputs", &saved];
        all.extend(words.iter().map(|w| w as &dyn super::Word));
        super::run(&all).succeeds();
        kiln::npz::read(&path, &Budget::unlimited()).unwrap().remove(0).1
    };
    let one = inputs("1.npz", &["--random", "1"]);
    assert_eq!((one.dtype(), one.shape()), (DType::F32, &[1, 20][..]), "unbound dims are 1");
    assert_eq!(inputs("2.npz", &["--random", "1"]), one);
    assert_ne!(inputs("3.npz", &["--random", "2"]), one);
    assert_eq!(inputs("4.npz", &["--random", "1", "--bind", "batch=7"]).shape(), [7, 20]);
}

#[test]
fn talk_goes_to_stderr_and_only_when_wanted() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    let plain = kiln!("compile", &model, "-o", &artifact).succeeds();
    assert!(plain.out.is_empty() && plain.err.contains("kernels"), "{}", plain.err);
    assert!(!plain.err.contains('\u{1b}') && plain.err.lines().count() == 1, "no progress without a terminal");
    let more = kiln!("compile", &model, "-o", &artifact, "-v").succeeds();
    assert!(more.err.contains("import:") && !more.err.contains("canonicalise"), "{}", more.err);
    assert!(kiln!("compile", &model, "-o", &artifact, "-vv").succeeds().err.contains("canonicalise"));
    assert!(kiln!("run", &artifact, "--random", "0", "-q").succeeds().err.is_empty());
    assert!(kiln!("run", &artifact, "--random", "0", "--output", &place.path("o.npz")).succeeds().out.is_empty());
    // Nobody listens: the work is done all the same.
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_kiln"))
        .args(["compile".as_ref(), model.as_os_str(), "-o".as_ref(), place.path("b.kiln").as_os_str()])
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success() && place.path("b.kiln").exists());
}

#[test]
fn every_report_is_json_where_that_is_asked_for() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    for done in [
        kiln!("--json", "check", &model),
        kiln!("compile", &model, "-o", &artifact, "--json"),
        kiln!("inspect", &model, "--json"),
        kiln!("inspect", &artifact, "--json"),
        kiln!("run", &model, "--random", "0", "--json"),
        kiln!("run", &artifact, "--random", "0", "--json", "--output", &place.path("o.npz")),
        kiln!("bench", &artifact, "--runs", "1", "--json"),
        kiln!("verify", &model, "--json"),
        kiln!("selftest", &artifact, "--json"),
    ] {
        assert!(done.succeeds().json().is_object());
    }
}

#[test]
fn names_cannot_confuse_a_terminal() {
    let place = Place::new();
    let nodes = vec![node("a", "Relu", &["x\u{1b}[31m"], &["y\u{7}"])];
    let bytes = model(graph(nodes, vec![floats("x\u{1b}[31m", &[2])], vec![floats("y\u{7}", &[2])], vec![]));
    let model = place.write("m.onnx", &bytes);
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    for done in [
        kiln!("check", &model),
        kiln!("inspect", &artifact, "--plan"),
        kiln!("run", &artifact, "--random", "0"),
        kiln!("run", &model, "--inputs", &place.path("no.npz")),
        kiln!("run", &model),
    ] {
        let said = done.out + &done.err;
        assert!(!said.is_empty() && !said.contains(|c: char| c.is_control() && c != '\n'), "{said:?}");
    }
}

#[test]
fn reports_and_scripts() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let report = kiln!("check", &model, "--json").succeeds().json();
    assert_eq!((&report["valid"], &report["supported"], &report["nodes"]), (&true.into(), &true.into(), &3.into()));
    for shell in ["bash", "zsh", "fish"] {
        assert!(kiln!("completions", shell).succeeds().out.contains("selftest"));
    }
    let help = kiln!("--help").succeeds().out;
    for command in ["check", "inspect", "compile", "run", "bench", "verify", "selftest", "peer", "completions"] {
        assert!(help.contains(command));
        kiln!(command, "--help").succeeds();
    }
    assert!(kiln!("compile", &model, "-o", &place.path("a.kiln"), "-q").succeeds().err.is_empty());
}
