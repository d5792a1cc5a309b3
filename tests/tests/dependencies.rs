//! The arrows between the project's crates, as ARCHITECTURE.md states them.

use std::collections::BTreeMap;
use std::path::Path;

/// What each crate of ours may depend on, of ours.
const ALLOWED: &[(&str, &str, &[&str])] = &[
    ("ir", "kiln-ir", &[]),
    ("frontend", "kiln-frontend", &["kiln-ir"]),
    ("passes", "kiln-passes", &["kiln-ir"]),
    ("backends/cpu", "kiln-cpu", &["kiln-ir"]),
    ("backends/ptx", "kiln-ptx", &["kiln-ir"]),
    ("backends/runtime", "kiln-runtime", &["kiln-ir"]),
    (".", "kiln", &["kiln-ir", "kiln-frontend", "kiln-passes", "kiln-cpu", "kiln-ptx", "kiln-runtime"]),
    ("tests/driver", "kiln-stand-in", &["kiln-ptx"]),
    (
        "tests",
        "kiln-tests",
        &["kiln", "kiln-ir", "kiln-frontend", "kiln-passes", "kiln-cpu", "kiln-ptx", "kiln-runtime"],
    ),
];

/// Crates of others that only some of ours may use.
const KEPT: &[(&str, &[&str])] = &[
    ("cranelift-codegen", &["kiln-cpu"]),
    ("iced-x86", &["kiln-cpu", "kiln"]),
    ("prost", &["kiln-frontend", "kiln"]),
    ("memmap2", &["kiln-runtime"]),
    ("cudarc", &["kiln-runtime"]),
    ("miette", &["kiln"]),
];

fn manifest(folder: &str) -> toml::Table {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    std::fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap().parse().unwrap()
}

/// Names of the dependencies in a table and in the tables of targets.
fn dependencies(manifest: &toml::Table, kind: &str) -> Vec<String> {
    let table = |t: &toml::Table| t.get(kind).and_then(|d| d.as_table()).map(|d| d.keys().cloned().collect::<Vec<_>>());
    let mut names = table(manifest).unwrap_or_default();
    for target in manifest.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values()) {
        names.extend(target.as_table().and_then(table).unwrap_or_default());
    }
    names
}

#[test]
fn crates_depend_in_one_direction() {
    let members: Vec<String> = manifest(".")["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m.as_str().unwrap().to_string())
        .collect();
    for member in &members {
        assert!(ALLOWED.iter().any(|(folder, ..)| folder == member), "{member} has no rule here");
    }
    for (folder, name, allowed) in ALLOWED {
        let manifest = manifest(folder);
        assert_eq!(manifest["package"]["name"].as_str(), Some(*name));
        let ours = |d: &&String| d.starts_with("kiln");
        for dependency in dependencies(&manifest, "dependencies").iter().filter(ours) {
            assert!(allowed.contains(&dependency.as_str()), "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn foreign_crates_stay_where_they_belong() {
    let users: BTreeMap<&str, Vec<String>> =
        ALLOWED.iter().map(|(folder, name, _)| (*name, dependencies(&manifest(folder), "dependencies"))).collect();
    for (dependency, allowed) in KEPT {
        for (name, found) in &users {
            let fine = allowed.contains(name) || !found.iter().any(|d| d == dependency);
            assert!(fine, "{name} must not depend on {dependency}");
        }
    }
}

#[test]
fn only_backends_may_be_unsafe() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for file in ["ir/src/lib.rs", "frontend/src/lib.rs", "passes/src/lib.rs", "src/lib.rs", "src/main.rs"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{file} does not forbid unsafe code");
    }
}
