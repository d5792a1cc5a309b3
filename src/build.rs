//! Hashes the sources of the compiler, so that an artifact can say which one made it.
//!
//! Invariant: the hash depends on what the sources hold and on the versions of dependencies, not on where they lie, on the
//! profile or on the machine.

use std::path::{Path, PathBuf};

/// What decides what the compiler makes.
const PARTS: [&str; 8] = [
    "Cargo.toml",
    "Cargo.lock",
    "ir/src",
    "frontend/src",
    "passes/src",
    "backends/cpu/src",
    "backends/runtime/src",
    "src",
];

fn main() {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut files = Vec::new();
    for part in PARTS {
        println!("cargo::rerun-if-changed={part}");
        collect(&root.join(part), &mut files);
    }
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for file in files {
        let name = file.strip_prefix(&root).unwrap_or(&file).to_string_lossy().replace('\\', "/");
        let bytes = std::fs::read(&file).unwrap_or_default();
        hasher.update(name.as_bytes()).update(&[0]).update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    println!("cargo::rustc-env=KILN_SOURCES={}", hasher.finalize());
}

/// All files beneath a path.
fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    match std::fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| collect(&entry.path(), files)),
        Err(_) if path.is_file() => files.push(path.into()),
        Err(_) => {}
    }
}
