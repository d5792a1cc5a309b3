//! Random graphs as shared objects, run by a C program, against the engine: the same bits, loops and branches among them.

#[path = "../cli/host_inputs.rs"]
mod host_inputs;

use host_inputs::give;
use kiln::Options;
use kiln::Silent;
use kiln::ir::plan::{Plan, Step};
use kiln::library::{Form, LibraryOptions};
use kiln::runtime::cpu::CpuLevel;
use kiln::runtime::engine::{Context, Model, ModelOptions};
use kiln::runtime::memory::Budget;
use kiln_tests::graphs::sample;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const GRAPHS: u64 = 90;

/// The C program of the command line's tests, made for libraries with the prefix `m`.
fn host(folder: &Path, header: &Path) -> PathBuf {
    std::fs::copy(header, folder.join("model.h")).unwrap();
    let (source, host) = (concat!(env!("CARGO_MANIFEST_DIR"), "/cli/host.c"), folder.join("host"));
    let mut cc = Command::new("cc");
    cc.args(["-O1", "-Wall", "-Werror", "-I"]).arg(folder).arg(source).arg("-o").arg(&host).args(["-ldl", "-lpthread"]);
    assert!(cc.status().unwrap().success());
    host
}

/// Whether a plan has steps of the host that a library leaves to its caller.
fn left_to_the_host(plan: &Plan) -> bool {
    plan.steps.iter().any(|s| matches!(s, Step::Host { .. }) && s.renames().is_none())
}

#[test]
#[cfg(target_arch = "x86_64")]
fn libraries_of_random_graphs_give_the_engines_bits() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let level = CpuLevel::Portable;
    let (mut program, mut tried, mut turns, mut branches) = (None, 0, 0, 0);
    for seed in 0..GRAPHS {
        let sample = sample(seed);
        let options = Options { levels: vec![level], ..Options::default() };
        let compiled = kiln::compile_graph(sample.graph.clone(), &options, &mut Silent).unwrap();
        if left_to_the_host(&compiled.plan) {
            continue;
        }
        let library = LibraryOptions { form: Form::Shared, prefix: Some("m".into()), weights: None };
        match compiled.write_library(&at("libm.so"), &library) {
            Ok(_) => {}
            Err(kiln::Error::Unsupported(why)) => {
                assert!(why.contains("sizes that only a run finds"), "seed {seed}: {why}");
                continue;
            }
            Err(e) => panic!("seed {seed}: {e}"),
        }
        compiled.write(&at("m.kiln")).unwrap();
        let host = program.get_or_insert_with(|| host(folder.path(), &at("m.h")));
        let model = Model::open(&at("m.kiln"), &ModelOptions::default()).unwrap();
        for n in 0..sample.bindings.len() {
            let inputs = sample.inputs(n);
            give(folder.path(), &inputs);
            let library = at("libm.so");
            let words = [library.as_os_str(), "m".as_ref(), folder.path().as_os_str()];
            let rest = ["0", if seed % 2 == 0 { "1" } else { "3" }, "-"];
            let Output { status, stderr, .. } = Command::new(&*host).args(words).args(rest).output().unwrap();
            let said = String::from_utf8_lossy(&stderr);
            match Context::new(&model, 1, &Budget::unlimited()).unwrap().run(&inputs) {
                Ok(want) => {
                    assert!(status.success(), "seed {seed}, inputs {n}: {status} {said}\n{}", sample.graph);
                    for (k, want) in want.iter().enumerate() {
                        let found = std::fs::read(at(&format!("output_{k}"))).unwrap();
                        assert!(found == *want.bytes(), "seed {seed}, inputs {n}, output {k}\n{}", sample.graph);
                    }
                }
                Err(error) => {
                    assert_eq!(status.code(), Some(3), "seed {seed}: {error}");
                    assert_eq!(said.trim(), error.to_string(), "seed {seed}");
                }
            }
        }
        tried += 1;
        turns += compiled.plan.steps.iter().filter(|s| matches!(s, Step::Loop(_))).count();
        branches += compiled.plan.steps.iter().filter(|s| matches!(s, Step::If { .. })).count();
    }
    println!("{tried} of {GRAPHS} graphs, {turns} loops, {branches} branches");
    assert!(tried > GRAPHS / 2 && turns > 3 && branches > 3, "{tried} {turns} {branches}");
}
