//! Libraries of models: built, linked and loaded by C programs, with the engine's results bit by bit.

use super::host_inputs::give;
use super::models::*;
use super::{Done, Place, kiln};
use kiln::ir::{DType, Tensor};
use kiln::runtime::cpu::{CpuLevel, Machine};
use kiln::runtime::engine::{Context, Model, ModelOptions};
use kiln::runtime::memory::Budget;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs a program; its exit code and what it wrote.
fn program(path: &Path, words: &[&dyn super::Word]) -> Done {
    let output = Command::new(path).args(words.iter().map(|w| w.word())).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// Compiles C, or makes something of objects.
#[track_caller]
fn cc(words: &[&dyn super::Word]) {
    program(Path::new("cc"), words).succeeds();
}

/// The program of `host.c`, made for the header of any library: they differ in prefixes only.
fn host(place: &Place, header: &Path, prefix: &str) -> PathBuf {
    let text = std::fs::read_to_string(header).unwrap().replace(&format!("{prefix}_"), "m_");
    place.write("model.h", text.as_bytes());
    let (source, host) = (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/host.c"), place.path("host"));
    let folder = place.path("");
    cc(&[&"-O1", &"-Wall", &"-Werror", &"-I", &&folder, &source, &"-o", &&host, &"-ldl", &"-lpthread"]);
    host
}

fn floats_of(shape: &[usize], seed: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let value = |n: usize| ((n * 7919 + seed * 31) % 255) as f32 / 64.0 - 2.0;
    let bytes: Vec<u8> = (0..count).flat_map(|n| value(n).to_le_bytes()).collect();
    Tensor::new(DType::F32, shape.to_vec(), bytes).unwrap()
}

/// What the engine makes of an artifact at a level.
fn engine(artifact: &Path, level: CpuLevel, inputs: &[Tensor]) -> Vec<Vec<u8>> {
    let options = ModelOptions { levels: Some(vec![level]), ..ModelOptions::default() };
    let model = Model::open(artifact, &options).unwrap();
    let outputs = Context::new(&model, 1, &Budget::unlimited()).unwrap().run(inputs).unwrap();
    outputs.iter().map(|t| t.bytes().to_vec()).collect()
}

/// The numbers by which libraries know the levels that run here; says what is not tried.
fn levels() -> Vec<(CpuLevel, &'static str)> {
    let all = [(CpuLevel::Portable, "0"), (CpuLevel::X86_64V3, "1"), (CpuLevel::X86_64V4, "2")];
    let (here, missing): (Vec<_>, Vec<_>) = all.into_iter().partition(|(l, _)| Machine::detect().supports(*l));
    missing.iter().for_each(|(level, _)| eprintln!("WARNING: this machine has no {level}: its code was not run"));
    here
}

fn read(folder: &Path, n: usize) -> Vec<u8> {
    std::fs::read(folder.join(format!("output_{n}"))).unwrap()
}

/// A model with free dims: a product over two of them, reshapes, of which one allows only one value of its dim, a softmax, a
/// transposition and an output that is an input.
fn free() -> Vec<u8> {
    let dims = || [Dim::Name("batch"), Dim::Name("seq"), Dim::N(20)];
    let shape = |name: &str, extents: [i64; 2]| {
        let mut shape = weight(name, &[2]);
        shape.data_type = 7;
        shape.raw_data = Some(extents.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into());
        shape
    };
    model(graph(
        vec![
            node("product", "MatMul", &["x", "w"], &["p"]),
            node("fold", "Reshape", &["p", "shape"], &["r"]),
            node("soft", "Softmax", &["r"], &["s"]),
            node("turn", "Transpose", &["s"], &["t"]),
            node("same", "Identity", &["x"], &["z"]),
            node("table", "Reshape", &["u", "four_by_three"], &["v"]),
        ],
        vec![value("x", DType::F32, &dims()), value("u", DType::F32, &[Dim::Name("n")])],
        vec![
            value("t", DType::F32, &[Dim::N(16), Dim::Name("rows")]),
            value("z", DType::F32, &dims()),
            floats("v", &[4, 3]),
        ],
        vec![weight("w", &[20, 16]), shape("shape", [-1, 16]), shape("four_by_three", [4, 3])],
    ))
}

#[test]
#[cfg(target_arch = "x86_64")]
fn twenty_lines_of_c_run_a_model_in_every_form() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let x = floats_of(&[3, 20], 1);
    let best = levels().last().unwrap().0;
    let want = engine(&artifact, best, std::slice::from_ref(&x)).remove(0);
    let input = place.write("input", x.bytes());
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/library/run.c");
    for (emit, name) in [("so", "libnet.so"), ("obj", "net.o"), ("staticlib", "libnet.a")] {
        let folder = place.path(emit);
        std::fs::create_dir(&folder).unwrap();
        let library = folder.join(name);
        let report = kiln!("compile", &model, "-o", &library, "--emit", emit, "--json").succeeds().json();
        assert_eq!(report["prefix"], "net");
        assert_eq!(report["files"].as_array().unwrap().len(), 5);
        for code in report["code"].as_array().unwrap() {
            assert!((1..1 << 20).contains(&code["bytes"].as_u64().unwrap()), "{code}");
        }
        let undefined = program(Path::new("nm"), &[&"-u", &&library]).succeeds().out;
        assert!(!undefined.contains(" U "), "{undefined}");
        let run = folder.join("run");
        cc(&[&"-Wall", &"-Werror", &"-I", &&folder, &source, &&library, &"-o", &&run]);
        let feed = std::fs::File::open(&input).unwrap();
        let done = Command::new(&run).env("LD_LIBRARY_PATH", &folder).stdin(feed).output().unwrap();
        assert!(done.status.success(), "{emit}: {}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(done.stdout, want, "{emit}");
    }
    // From Rust.
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/library/rust/Cargo.toml");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["run", "--quiet", "--offline", "--manifest-path", manifest]);
    cargo.env("KILN_LIBRARY", place.path("staticlib")).env("CARGO_TARGET_DIR", place.path("target"));
    let done = cargo.stdin(std::fs::File::open(&input).unwrap()).output().unwrap();
    assert!(done.stdout == want, "{}", String::from_utf8_lossy(&done.stderr));
    // What builds find: pkg-config where it is installed.
    let mut find = Command::new("pkg-config");
    match find.args(["--cflags", "--libs", "net"]).env("PKG_CONFIG_PATH", place.path("so")).output() {
        Ok(done) => {
            let text = String::from_utf8_lossy(&done.stdout);
            assert!(text.contains("-lnet") && text.contains("-I"), "{text} {}", String::from_utf8_lossy(&done.stderr));
        }
        Err(_) => eprintln!("WARNING: no pkg-config here: the .pc file was not tried"),
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn libraries_of_free_dims_give_the_engines_bits() {
    let place = Place::new();
    let model = place.write("m.onnx", &free());
    let (artifact, library, weights) = (place.path("a.kiln"), place.path("libfree.so"), place.path("free.weights"));
    kiln!("compile", &model, "-o", &artifact, "--bind", "seq=0..100").succeeds();
    kiln!("compile", &model, "-o", &library, "--emit", "so", "--prefix", "f", "--bind", "seq=0..100").succeeds();
    let host = host(&place, &place.path("free.h"), "f");
    let folder = place.path("data");
    let run = |library: &Path, level: &str, threads: &str, weights: &dyn super::Word| {
        program(&host, &[&library, &"f", &&folder, &level, &threads, weights])
    };
    let u = floats_of(&[12], 9);
    for (batch, seq) in [(1, 1), (2, 7), (5, 64), (3, 0)] {
        let inputs = [floats_of(&[batch, seq, 20], batch), u.clone()];
        give(&folder, &inputs);
        for (level, number) in levels() {
            let want = engine(&artifact, level, &inputs);
            for threads in ["1", "3"] {
                let done = run(&library, number, threads, &"-").succeeds();
                assert_eq!(done.out, format!("t f32 16 {}\nz f32 {batch} {seq} 20\nv f32 4 3\n", batch * seq));
                for (n, want) in want.iter().enumerate() {
                    assert!(read(&folder, n) == *want, "{batch} {seq} {level} on {threads} threads, output {n}");
                }
            }
        }
    }
    // What dims may not be.
    give(&folder, &[floats_of(&[3, 5, 20], 0), floats_of(&[11], 0)]);
    let said = run(&library, "-1", "1", &"-").fails(3, "table needs").err;
    assert!(said.contains("which are 11 and 12"), "{said}");
    give(&folder, &[floats_of(&[3, 101, 20], 0), u.clone()]);
    run(&library, "-1", "1", &"-").fails(3, "seq = 101 in `x` is outside its range 0..100");
    give(&folder, &[floats_of(&[3, 5, 21], 0), u.clone()]);
    run(&library, "-1", "1", &"-").fails(3, "axis 2 of `x` is 21, wants 20");
    run(&library, "7", "1", &"-").fails(4, "level 7 was asked for");

    // Weights beside the library: the right ones, none, others.
    give(&folder, &[floats_of(&[2, 2, 20], 3), u]);
    run(&library, "0", "1", &"-").succeeds();
    let want = read(&folder, 0);
    let bare = place.path("libbare.so");
    kiln!(
        "compile",
        &model,
        "-o",
        &bare,
        "--emit",
        "so",
        "--prefix",
        "f",
        "--weights",
        &weights,
        "--bind",
        "seq=0..100"
    )
    .succeeds();
    run(&bare, "0", "1", &&weights).succeeds();
    assert_eq!(read(&folder, 0), want);
    run(&bare, "0", "1", &"-").fails(2, "options.weights");
    let mut other = std::fs::read(&weights).unwrap();
    *other.last_mut().unwrap() ^= 1;
    run(&bare, "0", "1", &&place.write("other", &other)).fails(3, "another model");
    run(&bare, "0", "1", &&place.write("other", &other[1..])).fails(3, "the weights have");

    // Many threads, one context.
    let many = program(&host, &[&&library, &"f", &&folder, &"-1", &"8", &"-", &"1000"]).succeeds().out;
    assert!(many.ends_with("8 threads of 1000 runs\n"), "{many}");
}

/// CPUs that this machine is not, by QEMU's emulation: each gets the best level that it has, and one with none a clear error. It
/// has no AVX-512, so that level is only run where the machine has it.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_cpu_decides_which_level_runs() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let (artifact, library) = (place.path("a.kiln"), place.path("libm.so"));
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("compile", &model, "-o", &library, "--emit", "so").succeeds();
    let host = host(&place, &place.path("m.h"), "m");
    let folder = place.path("data");
    let x = floats_of(&[3, 20], 1);
    give(&folder, std::slice::from_ref(&x));
    // A mask of the levels that may be used: the same code whether it is alone or one of several.
    for (level, number) in levels() {
        let alone = place.path("alone.kiln");
        kiln!("compile", &model, "-o", &alone, "--cpu", level.name()).succeeds();
        let want = engine(&alone, level, std::slice::from_ref(&x)).remove(0);
        assert!(engine(&artifact, level, std::slice::from_ref(&x)).remove(0) == want, "{level}");
        program(&host, &[&library, &"m", &folder, &number, &"1", &"-"]).succeeds();
        assert!(read(&folder, 0) == want, "{level}");
    }
    let qemu = Path::new("/usr/bin/qemu-x86_64");
    if !qemu.exists() {
        eprintln!("WARNING: no qemu-x86_64 here: other CPUs were not tried");
        return;
    }
    for (cpu, best) in [("Nehalem", CpuLevel::Portable), ("Haswell", CpuLevel::X86_64V3)] {
        let words: [&dyn super::Word; 9] = [&"-cpu", &cpu, &host, &library, &"m", &folder, &"-1", &"1", &"-"];
        program(qemu, &words).succeeds();
        if Machine::detect().supports(best) {
            assert!(read(&folder, 0) == engine(&artifact, best, std::slice::from_ref(&x)).remove(0), "{cpu}");
        }
        // What the CPU lacks is refused, not tried.
        let words: [&dyn super::Word; 9] = [&"-cpu", &cpu, &host, &library, &"m", &folder, &"2", &"1", &"-"];
        program(qemu, &words).fails(4, "level 2 was asked for");
    }
    let words: [&dyn super::Word; 9] = [&"-cpu", &"qemu64", &host, &library, &"m", &folder, &"-1", &"1", &"-"];
    program(qemu, &words).fails(4, "this CPU runs up to -1");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn libraries_are_the_same_in_another_folder_and_on_more_threads() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let files = |folder: &str, threads: &str| {
        std::fs::create_dir(place.path(folder)).unwrap();
        let at = |name: &str| place.path(folder).join(name);
        kiln!("compile", &model, "-o", at("libm.so"), "--emit", "so", "--threads", threads).succeeds();
        kiln!("compile", &model, "-o", at("m.a"), "--emit", "staticlib", "--threads", threads).succeeds();
        ["libm.so", "m.a", "m.h", "m.pc", "m-config.cmake", "m.spdx.json"].map(|name| std::fs::read(at(name)).unwrap())
    };
    assert!(files("one", "1") == files("two", "3"));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_host_does_the_steps_that_have_no_code() {
    let place = Place::new();
    let nodes = vec![
        node("twice", "Add", &["x", "x"], &["d"]),
        node("volume", "Det", &["d"], &["v"]),
        node("half", "Mul", &["v", "h"], &["y"]),
    ];
    let graph = graph(nodes, vec![floats("x", &[6, 4, 4])], vec![floats("y", &[6])], vec![weight("h", &[6])]);
    let model = place.write("m.onnx", &super::models::model(graph));
    let (artifact, library) = (place.path("a.kiln"), place.path("libnet.so"));
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let said = kiln!("compile", &model, "-o", &library, "--emit", "so").succeeds().err;
    assert!(said.contains("determinant"), "what the host must supply is said: {said}");
    let undefined = program(Path::new("nm"), &[&"-u", &&library]).succeeds().out;
    assert!(!undefined.contains(" U "), "{undefined}");
    let x = floats_of(&[6, 4, 4], 3);
    let (level, want) = (levels().last().unwrap().0, place.write("input", x.bytes()));
    let want = (engine(&artifact, level, std::slice::from_ref(&x)).remove(0), want);
    let run = |source: &str| {
        let (source, run) = (format!("{}/examples/library/{source}", env!("CARGO_MANIFEST_DIR")), place.path("run"));
        let folder = place.path("");
        cc(&[&"-Wall", &"-Werror", &"-I", &&folder, &source.as_str(), &&library, &"-o", &&run, &"-lm"]);
        let feed = std::fs::File::open(&want.1).unwrap();
        Command::new(&run).env("LD_LIBRARY_PATH", &folder).stdin(feed).output().unwrap()
    };
    let done = run("host_step.c");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    assert!(done.stdout == want.0, "the host's determinants are Kiln's, computed alike");
    // A host that does not know of it.
    let done = run("run.c");
    assert_eq!(done.status.code(), Some(2));
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(said.contains("the host must supply a step of the model (determinant)"), "{said}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn what_no_library_can_hold_is_refused_by_name() {
    let place = Place::new();
    let words = |emit: &'static str| ["--emit", emit];
    // A host op.
    let pick = node("find", "NonZero", &["x"], &["y"]);
    let y = value("y", DType::I64, &[Dim::N(1), Dim::Name("n")]);
    let model =
        place.write("m.onnx", &super::models::model(graph(vec![pick], vec![floats("x", &[4])], vec![y], vec![])));
    let library = place.path("libm.so");
    kiln!("compile", &model, "-o", &library, words("so")[0], words("so")[1]).fails(4, "find");
    assert_eq!(place.list(), ["m.onnx"]);
    // Data that breaks a rule: the library says what the engine says.
    let model = place.write("g.onnx", &gather());
    let (artifact, library) = (place.path("g.kiln"), place.path("libg.so"));
    kiln!("compile", &model, "-o", &artifact).succeeds();
    kiln!("compile", &model, "-o", &library, "--emit", "so").succeeds();
    let host = host(&place, &place.path("g.h"), "g");
    let indices: Vec<u8> = [0i64, 7, 1].iter().flat_map(|v| v.to_le_bytes()).collect();
    let inputs = [floats_of(&[4, 2], 0), Tensor::new(DType::I64, vec![3], indices).unwrap()];
    give(&place.path("data"), &inputs);
    let opened = Model::open(&artifact, &ModelOptions::default()).unwrap();
    let engine = Context::new(&opened, 1, &Budget::unlimited()).unwrap().run(&inputs).unwrap_err().to_string();
    let folder = place.path("data");
    program(&host, &[&&library, &"g", &&folder, &"-1", &"2", &"-"]).fails(3, &engine);
    // Options that do not go together, names that are none.
    kiln!("compile", &model, "-o", &artifact, "--prefix", "x").fails(2, "--prefix is for libraries");
    kiln!("compile", &model, "-o", &library, "--emit", "so", "--prefix", "a b").fails(2, "cannot begin the names");
    kiln!("compile", &model, "-o", &library, "--emit", "so", "--golden").fails(2, "--golden is for artifacts");
}
