//! What goes wrong around an artifact: killed compilers, full disks, folders that cannot be written, damaged bytes, many threads.

use super::models::*;
use super::{Place, kiln};
use kiln::ir::{DType, Tensor};
use kiln::runtime::artifact::{Artifact, LoadOptions};
use kiln::runtime::engine::{Context, Model, ModelOptions};
use kiln::runtime::memory::{Budget, Buffer};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn input(seed: usize) -> Tensor {
    let bytes: Vec<u8> = (0..60).flat_map(|n| (((n * 31 + seed * 7) % 41) as f32 / 8.0 - 2.0).to_le_bytes()).collect();
    Tensor::new(DType::F32, vec![3, 20], bytes).unwrap()
}

/// How often something is tried: `KILN_KILLS`, which scripts/long sets, or a few times.
fn tries() -> u64 {
    std::env::var("KILN_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(8)
}

#[test]
#[cfg(unix)]
fn killed_compilations_leave_nothing_half_written() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    for (emit, name) in [("kiln", "a.kiln"), ("so", "liba.so")] {
        let path = place.path(name);
        let start = Instant::now();
        kiln!("compile", &model, "-o", &path, "--emit", emit).succeeds();
        let whole = start.elapsed().as_micros() as u64;
        let new = std::fs::read(&path).unwrap();
        let mut random = 12345u64;
        let (mut kept, mut replaced) = (0, 0);
        for _ in 0..tries() {
            std::fs::write(&path, b"old").unwrap();
            let mut command = Command::new(env!("CARGO_BIN_EXE_kiln"));
            command.args(["compile", "--emit", emit, "-o"]).arg(&path).arg(&model).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            // Moments from the start to a little after the end; SIGKILL cannot be caught.
            std::thread::sleep(Duration::from_micros((random >> 33) % (whole + whole / 5)));
            child.kill().unwrap();
            child.wait().unwrap();
            let found = std::fs::read(&path).unwrap();
            assert!(found == b"old" || found == new, "{emit}: {} bytes of {}", found.len(), new.len());
            if found == new {
                replaced += 1
            } else {
                kept += 1
            }
            for left in place.list().into_iter().filter(|n| n.ends_with(".tmp")) {
                let left = place.path(&left);
                let complete = std::fs::read(&left).unwrap() == new;
                assert!(complete || Artifact::open(&left, &LoadOptions::default()).is_err(), "{}", left.display());
                std::fs::remove_file(left).unwrap();
            }
        }
        eprintln!("{emit}: killed {} times, {kept} before and {replaced} after the file was there", kept + replaced);
    }
}

/// Runs words as a shell would, in a mount namespace of their own; nothing where the system does not allow that.
#[cfg(target_os = "linux")]
fn in_namespace(script: &str, words: &[&Path]) -> Option<super::Done> {
    let mut command = Command::new("unshare");
    command.args(["-rm", "sh", "-c", &format!("{script} || exit 99\nexec \"$@\""), "sh"]).args(words);
    let output = command.output().ok()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let done = super::Done { code: output.status.code()?, out: text(output.stdout), err: text(output.stderr) };
    let refused = done.code == 99 || done.err.starts_with("unshare:");
    (!refused).then_some(done)
}

#[test]
#[cfg(target_os = "linux")]
fn full_disks_and_folders_that_cannot_be_written_are_clear_errors() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let folder = place.path("disk");
    std::fs::create_dir(&folder).unwrap();
    let kiln = Path::new(env!("CARGO_BIN_EXE_kiln"));
    let product = graph(
        vec![node("product", "MatMul", &["x", "w"], &["y"])],
        vec![floats("x", &[2, 96])],
        vec![floats("y", &[2, 64])],
        vec![weight("w", &[96, 64])],
    );
    let large = place.write("large.onnx", &super::models::model(product));
    for (emit, file) in [("kiln", "a.kiln"), ("so", "liba.so"), ("staticlib", "liba.a")] {
        let path = folder.join(file);
        let words = [kiln, Path::new("compile"), &model, Path::new("-o"), &path, Path::new("--emit"), Path::new(emit)];
        check_disk(&folder, &path, &words);
    }
    for file in ["q.onnx", "q.kiln"] {
        let path = folder.join(file);
        let words = ["--weights", "f16"].map(Path::new);
        check_disk(&folder, &path, &[kiln, Path::new("quantize"), &large, Path::new("-o"), &path, words[0], words[1]]);
    }
}

/// A disk that is full, a folder that is read-only, and a limit on the size of files, for a command that writes to `path`.
#[cfg(target_os = "linux")]
fn check_disk(folder: &Path, path: &Path, words: &[&Path]) {
    let mount = format!("mount -t tmpfs -o size=8k none '{}'", folder.display());
    match in_namespace(&mount, words) {
        Some(done) => drop(done.fails(6, "o space left")),
        None => eprintln!("WARNING: no mounts here: a full disk was not tried"),
    }
    match in_namespace(&format!("{mount} && mount -o remount,ro '{}'", folder.display()), words) {
        Some(done) => drop(done.fails(2, "cannot write")),
        None => eprintln!("WARNING: no mounts here: a folder that is read-only was not tried"),
    }
    // A limit of the process on the size of files.
    let mut limited = Command::new("bash");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 1; exec \"$@\"", "bash"]).args(words);
    let done = limited.output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    let full = said.contains("o space left") || said.contains("File too large");
    assert!(done.status.code() == Some(6) && full, "{:?} {said}", done.status);
    assert!(std::fs::read_dir(folder).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().ends_with(".tmp")));
    assert!(!path.exists());
}

#[test]
fn every_changed_byte_of_an_artifact_is_noticed() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact, "--cpu", "portable").succeeds();
    let bytes = std::fs::read(&artifact).unwrap();
    let mut file = Buffer::copy_of(&Budget::unlimited(), &bytes, "a file").unwrap();
    for at in 0..bytes.len() {
        file.as_mut_slice()[at] ^= 1 << (at % 8);
        let damaged = Buffer::copy_of(&Budget::unlimited(), file.as_slice(), "a file").unwrap();
        assert!(Artifact::from_buffer(damaged, &LoadOptions::default()).is_err(), "byte {at} of {}", bytes.len());
        file.as_mut_slice()[at] = bytes[at];
    }
    assert!(Artifact::from_buffer(file, &LoadOptions::default()).is_ok());
}

#[test]
fn threads_share_an_artifact_and_get_serial_results() {
    let place = Place::new();
    let model = place.write("m.onnx", &mlp());
    let artifact = place.path("a.kiln");
    kiln!("compile", &model, "-o", &artifact).succeeds();
    let model = Model::open(&artifact, &ModelOptions::default()).unwrap();
    let context = || Context::new(&model, 1, &Budget::unlimited()).unwrap();
    let inputs: Vec<Tensor> = (0..10).map(input).collect();
    let mut serial = context();
    let expected: Vec<_> = inputs.iter().map(|x| serial.run(std::slice::from_ref(x)).unwrap()).collect();
    let work = |thread: usize| {
        let mut own = context();
        for n in 0..1000 {
            let which = (n + thread) % inputs.len();
            assert_eq!(own.run(std::slice::from_ref(&inputs[which])).unwrap(), expected[which], "{thread}: run {n}");
        }
    };
    std::thread::scope(|scope| (0..8).for_each(|thread| drop(scope.spawn(move || work(thread)))));

    // Another artifact takes the name meanwhile: what is mapped stays what it was.
    let other = place.write("o.onnx", &mlp_with_batch(Dim::N(4), Dim::N(4)));
    kiln!("compile", &other, "-o", &artifact).succeeds();
    assert_eq!(serial.run(std::slice::from_ref(&inputs[3])).unwrap(), expected[3]);
    let opened = Model::open(&artifact, &ModelOptions::default()).unwrap();
    assert!(Context::new(&opened, 1, &Budget::unlimited()).unwrap().run(&inputs[..1]).is_err());
}
