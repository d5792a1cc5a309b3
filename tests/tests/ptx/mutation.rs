//! Kernels with a mistake: whatever orders threads or guards an access is taken away, one at a time, and the interpreter
//! must say so.

use super::{attention, compile, data, execute, matmul, softmax};
use kiln_ir::tile::TileProgram;
use kiln_ir::warp::WarpProgram;
use kiln_passes::warp::Options;
use kiln_ptx::emulate;

/// What may be taken away without harm: the kernel, the line, and why.
const REDUNDANT: &[(&str, &str, &str)] = &[
    (
        "pipelined",
        "wait_group 0",
        "the copies that are left at the end of the loop are of no elements, and nobody reads what they write",
    ),
    ("matrix", "wait_group 0", "the same"),
    ("attention:", "wait_group 0", "the same"),
    (
        "attention of f32",
        "bar.sync",
        "queries, keys and shares have buffers of their own: between the last read of one and the next write to it, or its write and \
         its first read, there is also a barrier of another; any one of three may go, not all of them",
    ),
    ("softmax", "st.shared.f32", "every thread has a place of its own, and only those of the first lanes are read"),
];

/// The text without its n-th line, or with that line for all threads where only its predicate is to go.
fn without(text: &str, n: usize, predicate: bool) -> String {
    let change = |(i, line): (usize, &str)| match (i == n, predicate) {
        (false, _) => line.to_string(),
        (true, false) => String::new(),
        (true, true) => line.trim_start().split_once(' ').map_or(String::new(), |(_, rest)| rest.to_string()),
    };
    text.lines().enumerate().map(change).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_is_taken_away_is_missed() {
    let ahead = Options { stages: 3, threads: Some(64), ..Options::default() };
    let whole = Options { stages: 1, threads: Some(64), ..Options::default() };
    let (mut tried, mut survivors) = (0, Vec::new());
    for (name, text, options) in [
        ("pipelined", matmul("f32", (20, 16, 64), (16, 16, 8)), &ahead),
        ("matrix", matmul("bf16", (20, 16, 96), (16, 16, 16)), &ahead),
        ("staged", matmul("f32", (20, 16, 32), (16, 16, 8)), &whole),
        ("softmax", softmax(200), &whole),
        ("attention", attention("f16", 96, (32, 16, 16)), &ahead),
        ("attention of f32", attention("f32", 64, (16, 16, 16)), &whole),
    ] {
        let (warp, module) = compile(&text, options);
        let program = TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let warp = WarpProgram::parse(&warp).unwrap_or_else(|e| panic!("{e}"));
        let len = |b: &kiln_ir::tile::Buffer| b.len.as_size().unwrap_or(0);
        let mut buffers: Vec<Vec<u8>> = program.buffers.iter().map(|b| data(b.dtype, len(b), false)).collect();
        buffers.push(vec![0; 4]);
        let how = emulate::Options { threads: 1, ..emulate::Options::default() };
        let run = |text: String| {
            let module = kiln_ptx::Module { text, launch: module.launch.clone() };
            execute(&module, &warp, &mut buffers.clone(), &[], &how).findings
        };
        assert_eq!(run(module.text.clone()), [], "{name}");
        for (n, line) in module.text.lines().enumerate() {
            let line = line.trim();
            let orders =
                ["bar.sync", "cp.async.wait_group", "cp.async.commit_group"].iter().any(|o| line.starts_with(o));
            let guards = line.starts_with('@') && !line.contains("bra");
            if orders || guards {
                tried += 1;
                if run(without(&module.text, n, guards)).is_empty() {
                    survivors.push(format!("{name}: {line}"));
                }
            }
        }
    }
    assert!(tried > 20, "{tried} were tried");
    let explained = |s: &&String| !REDUNDANT.iter().any(|(kernel, line, _)| s.starts_with(kernel) && s.contains(line));
    let unexplained: Vec<&String> = survivors.iter().filter(explained).collect();
    assert!(unexplained.is_empty(), "{tried} tried, survivors: {survivors:#?}");
}
