//! `--target cuda`, with a stand-in for the driver: a library with its functions over the interpreter of PTX.

use super::models::{branches, mlp};
use super::{Done, Place, Word, kiln, run_with};
use kiln::ir::{DType, Tensor};
use std::path::{Path, PathBuf};

/// A folder with a library that is opened as the driver's.
fn driver(place: &Place, library: &Path) -> PathBuf {
    let folder = place.path("driver");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(library, folder.join("libcuda.so")).unwrap();
    folder
}

/// The stand-in, which Cargo leaves beside the tests.
fn stand_in() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let library = tests.parent().unwrap().join("libkiln_stand_in.so");
    assert!(library.is_file(), "{} was not built", library.display());
    library
}

/// Runs `kiln` where the folder's library is the driver, which is made worse by `how`.
fn with(folder: &Path, how: &str, words: &[&dyn Word]) -> Done {
    run_with(&[("LD_LIBRARY_PATH", folder.as_os_str()), ("KILN_STAND_IN", how.as_ref())], words)
}

/// The arrays of an archive.
fn values(path: &Path) -> Vec<(String, Vec<f64>)> {
    let of = kiln::npz::read(path, &kiln::runtime::memory::Budget::unlimited()).unwrap();
    of.into_iter().map(|(name, tensor)| (name, tensor.to_f64().unwrap())).collect()
}

#[test]
fn the_host_takes_branches() {
    let place = Place::new();
    let model = place.write("m.onnx", &branches());
    let folder = driver(&place, &stand_in());
    let x: Vec<f32> = (0..8 * 20).map(|n| ((n * 37) % 29) as f32 / 16.0 - 0.8).collect();
    let x = Tensor::from_f32(&[8, 20], &x).unwrap();
    let mut seen = Vec::new();
    for (c, d) in [(true, true), (true, false), (false, true), (false, false)] {
        let truth = |v: bool| Tensor::new(DType::Bool, vec![], vec![v.into()]).unwrap();
        let (given, cpu, gpu) = (place.path("in.npz"), place.path("cpu.npz"), place.path("gpu.npz"));
        let inputs = [("x".to_string(), x.clone()), ("c".to_string(), truth(c)), ("d".to_string(), truth(d))];
        kiln::npz::write(&given, &inputs).unwrap();
        kiln!("run", &model, "--inputs", &given, "--output", &cpu).succeeds();
        let words: [&dyn Word; 8] = [&"run", &model, &"--inputs", &given, &"--target", &"cuda", &"--output", &gpu];
        with(&folder, "checks", &words).succeeds();
        for ((_, want), (_, found)) in values(&cpu).iter().zip(&values(&gpu)) {
            assert!(want.iter().zip(found).all(|(a, b)| (a - b).abs() <= 1e-5), "{c}, {d}: {found:?}, wants {want:?}");
            seen.push(want.clone());
        }
        let words: [&dyn Word; 8] =
            [&"verify", &model, &"--inputs", &given, &"--target", &"cuda", &"--each", &"--json"];
        let report = with(&folder, "checks", &words).succeeds().json();
        // The products before and in the branch, what comes after them, and the sum; and what is not taken is not run.
        let visited = report["kernels"].as_array().unwrap().len();
        let words: [&dyn Word; 8] = [&"bench", &model, &"--inputs", &given, &"--target", &"cuda", &"--runs", &"1"];
        with(&folder, "", &words).succeeds();
        let verified = kiln!("verify", &model, "--inputs", &given, "--target", "sm_80", "--each", "--json").succeeds();
        assert_eq!(verified.json()["kernels"].as_array().unwrap().len(), visited, "{c}, {d}");
        let all =
            kiln!("compile", &model, "--target", "sm_80", "--dump", place.path("dump"), "--json").succeeds().json();
        assert_eq!(all["host_ops"], 0);
        assert!(all["kernels"].as_u64().unwrap() > visited as u64, "{all}");
    }
    assert!(seen[0] != seen[1] && seen[2] == seen[3] && seen[0] != seen[2]);
}

#[test]
fn models_run_through_the_driver() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let folder = driver(&place, &stand_in());
    let (cpu, gpu) = (place.path("cpu.npz"), place.path("gpu.npz"));
    kiln!("run", &model, "--random", "3", "--output", &cpu).succeeds();
    let words: [&dyn Word; 8] = [&"run", &model, &"--random", &"3", &"--target", &"cuda", &"--output", &gpu];
    with(&folder, "checks", &words).succeeds();
    let (want, found) = (values(&cpu), values(&gpu));
    assert_eq!(want.len(), found.len());
    for ((name, want), (other, found)) in want.iter().zip(&found) {
        assert_eq!((name, want.len()), (other, found.len()));
        assert!(want.iter().zip(found).all(|(a, b)| (a - b).abs() <= 1e-5 * a.abs().max(1.0)), "{name}");
    }
    // The same from an artifact, which has code for two architectures: the device takes the later one that it runs.
    let (both, none) = (place.path("both.kiln"), place.path("none.kiln"));
    kiln!("compile", &model, "-o", &both, "--target", "sm_80,sm_90").succeeds();
    kiln!("compile", &model, "-o", &none).succeeds();
    for (capability, entry) in [("capability=80", "sm_80"), ("capability=100", "sm_90")] {
        let stored = place.path("stored.npz");
        let words: [&dyn Word; 9] =
            [&"-v", &"run", &both, &"--random", &"3", &"--target", &"cuda", &"--output", &stored];
        let done = with(&folder, capability, &words).succeeds();
        assert!(done.err.contains(&format!("the program for {entry}")), "{}", done.err);
        assert_eq!(values(&stored), values(&gpu));
    }
    // Programs in precisions of their own; that for one GPU alone is taken there, and nowhere else.
    let own = place.path("own.kiln");
    kiln!("compile", &model, "-o", &own, "--target", "sm_80:f16,sm_90a:bf16").succeeds();
    for (how, entry) in [("capability=80", "sm_80"), ("capability=90", "sm_90a"), ("capability=100,unpinned", "sm_80")]
    {
        let stored = place.path("own.npz");
        let words: [&dyn Word; 9] =
            [&"-v", &"run", &own, &"--random", &"3", &"--target", &"cuda", &"--output", &stored];
        let done = with(&folder, how, &words).succeeds();
        assert!(done.err.contains(&format!("the program for {entry} on ")), "{how}: {}", done.err);
        for ((name, want), (_, found)) in values(&gpu).iter().zip(&values(&stored)) {
            let most = want.iter().fold(0f64, |m, v| m.max(v.abs()));
            let apart = want.iter().zip(found).fold(0f64, |m, (a, b)| m.max((a - b).abs()));
            assert!(apart > 0.0 && apart <= 5e-2 * most, "{how}, {name}: {apart} of {most}");
        }
    }
    kiln!("rebuild", &own, "--model", &model).succeeds();
    kiln!("compile", &model, "-o", &own, "--target", "sm_80", "--precision", "f16").fails(2, "--target sm_80:f16");
    kiln!("compile", &model, "-o", &own, "--target", "sm_80:f16,sm_80").fails(2, "one program for sm_80");
    kiln!("compile", &model, "-o", &own, "--target", "sm_80:f8").fails(2, "there are f32, f32-fast, tf32, f16, bf16");
    let words: [&dyn Word; 6] = [&"run", &none, &"--random", &"3", &"--target", &"cuda"];
    with(&folder, "", &words).fails(4, "has code for no GPU");
    let report = with(&folder, "", &[&"verify", &model, &"--target", &"cuda", &"--each", &"--json"]).succeeds().json();
    assert_eq!(report["agrees"], true);
    assert!(report["device"].as_str().unwrap().contains("no GPU"), "{report}");
    assert!(!report["kernels"].as_array().unwrap().is_empty());
    let report = with(&folder, "", &[&"bench", &model, &"--target", &"cuda", &"--runs", &"2", &"--json"]).succeeds();
    assert!(report.json()["kernels_ms"].as_f64().unwrap() > 0.0);
}

#[test]
fn drivers_that_will_not_do_are_named() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let folder = driver(&place, &stand_in());
    let run: [&dyn Word; 6] = [&"run", &model, &"--random", &"0", &"--target", &"cuda"];
    with(&place.path("nothing"), "", &run).fails(4, "no NVIDIA driver");
    with(&place.path("nothing"), "", &[&"bench", &model, &"--target", &"cuda"]).fails(4, "no NVIDIA driver");
    with(&place.path("nothing"), "", &[&"verify", &model, &"--target", &"cuda"]).fails(4, "no NVIDIA driver");
    with(&folder, "version=10020", &run).fails(4, "for CUDA 10.2, and 11.4 or later");
    with(&folder, "devices=0", &run).fails(4, "finds no GPU");
    with(&folder, "capability=75", &run).fails(4, "sm_75");
    with(&folder, "memory=1000", &run).fails(6, "bytes on the GPU");
    with(&folder, "refuse", &run).fails(4, "update the driver");
    kiln!("run", &model, "--random", "0", "--target", "rocm").fails(2, "cuda");
    // A library without a single function of the driver.
    let other = place.path("other.so");
    if cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        kiln!("compile", &model, "--emit", "so", "-o", &other).succeeds();
        let folder = driver(&place, &other);
        with(&folder, "", &run).fails(4, "cuInit, cuDriverGetVersion");
    }
}
