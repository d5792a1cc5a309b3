//! What NVIDIA's assembler makes of kernels of fixed shapes: registers, the instructions of the hot loop, and what one block
//! executes in the interpreter, so that a loop that was rolled up does not look cheaper than it is.
//!
//! `golden/ptx/budgets.txt` holds the figures; a change of any of them has to be blessed, which makes it a line of a diff.
//! They are those of one version of the assembler and are not looked at with another.

use super::{compile, golden, ptxas, tool};
use kiln::gpu::judged::Sass;
use kiln::gpu::{self, ARCHITECTURES, Precision};
use kiln_ir::DType;
use kiln_passes::warp::Options;
use kiln_ptx::Argument;
use kiln_ptx::emulate::{self, Buffer, Launch};
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// The assembler whose figures are checked in.
const VERSION: &str = "V13.5.37";

fn nvdisasm() -> Option<PathBuf> {
    tool("nvdisasm", "KILN_NVDISASM")
}

/// A matrix product of f16, its loop over `k` and nothing after it but the store.
fn product(n: usize, (bm, bn, bk): (usize, usize, usize)) -> String {
    let size = n * n;
    format!(
        "\
kernel @product(x: f16[{size}], w: f16[{size}], y: f32[{size}] written) {{
  part grid(i = {}, j = {}) {{
    %0: f32[{bm},{bn}] = const 0.0f32
    for k in 0..{n} step {bk} carry(%1: f32[{bm},{bn}] = %0) {{
      %2: f16[{bm},{bk}] = load x[a1 + {n}*a0 + {bm}*{n}*i + k]
      %3: f16[{bk},{bn}] = load w[a1 + {n}*a0 + {bn}*j + {n}*k]
      %4: f32[{bm},{bn}] = dot %2, %3, %1
    }} next(%4) as(%5)
    store y[a1 + {n}*a0 + {bm}*{n}*i + {bn}*j] = %5
  }}
}}
",
        n / bm,
        n / bn
    )
}

/// A product of bytes, four to a word: both operands' words follow one another along the fold.
fn product_of_bytes(n: usize, tile: (usize, usize, usize)) -> String {
    let text = product(n, tile).replace("f16", "i32").replace("f32", "i32").replace("0.0i32", "0i32");
    let turned = format!("load w[{n}*a1 + a0 + {}*{n}*j + k]", tile.1);
    text.replace("= dot ", "= dot_u8s8 ").replace(&format!("load w[a1 + {n}*a0 + {}*j + {n}*k]", tile.1), &turned)
}

/// A product of floats of 8 bits, both of which follow one another along the fold.
fn product_of_float8(n: usize, tile: (usize, usize, usize)) -> String {
    let turned = format!("load w[{n}*a1 + a0 + {}*{n}*j + k]", tile.1);
    let text = product(n, tile).replace("f16", "f8e4m3fn");
    text.replace(&format!("load w[a1 + {n}*a0 + {}*j + {n}*k]", tile.1), &turned)
}

fn count(all: &[String], what: &str) -> usize {
    all.iter().filter(|o| o.starts_with(what)).count()
}

#[test]
fn kernels_of_fixed_shapes_keep_their_budgets() {
    let (Some(ptxas), Some(nvdisasm)) = (ptxas(), nvdisasm()) else {
        eprintln!("SKIPPED: budgets were not looked at: no ptxas or nvdisasm; `scripts/ptxas.py` fetches both");
        return;
    };
    let version = Command::new(&ptxas).arg("--version").output().map(|o| o.stdout).unwrap_or_default();
    if !String::from_utf8_lossy(&version).contains(VERSION) {
        eprintln!("SKIPPED: budgets are those of ptxas {VERSION}");
        return;
    }
    let options = |threads, stages| Options { threads: Some(threads), stages, shared: 100 << 10, ..Options::default() };
    let groups = Options { groups: true, ..Options::default() };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut text = String::new();
    // What the passes make of a row of 1,024 with 4-bit weights.
    let graph = super::models::of_few_bits(1, 1024, 1024, DType::U8, 8.0).expect("a graph");
    let of_gpu = (ARCHITECTURES[0], Precision::F32);
    let words = gpu::compile_graph(graph, &kiln::Options::default(), of_gpu, &mut kiln::Silent).expect("a kernel");
    let words = words.kernels.first().expect("a kernel").tile.to_string();
    for (name, arch, tile, options) in [
        ("f16 product 128x128x64, 4 warps, 3 stages", "sm_80", product(256, (128, 128, 64)), options(128, 3)),
        ("f16 product 128x128x32, 8 warps, 4 stages", "sm_80", product(256, (128, 128, 32)), options(256, 4)),
        (
            "int8 product 128x128 by 128 bytes, 4 warps, 3 stages",
            "sm_80",
            product_of_bytes(256, (128, 128, 32)),
            options(128, 3),
        ),
        (
            "fp8 product 128x128x64, 8 warps, 3 stages",
            "sm_89",
            product_of_float8(256, (128, 128, 64)),
            Options { float8: true, ..options(256, 3) },
        ),
        (
            "f16 attention 128x64, D = 64, 4 warps, 2 stages",
            "sm_80",
            super::attention("f16", 1024, (128, 64, 64)),
            options(128, 2),
        ),
        ("f16 product 128x256x64, 3 groups of warps", "sm_90a", product(512, (128, 256, 64)), groups.clone()),
        ("f16 product 128x128x64, 3 groups of warps", "sm_90a", product(256, (128, 128, 64)), groups),
        ("softmax of 4096, 4 warps", "sm_90", super::softmax(4096), options(128, 1)),
        ("4-bit weights by a row, 1024x1024", "sm_80", words, Options::default()),
    ] {
        let (_, module) = compile(&tile, &options);
        let (source, cubin) = (folder.path().join("k.ptx"), folder.path().join("k.cubin"));
        std::fs::write(&source, &module.text).expect("a file in the temporary folder");
        let mut command = Command::new(&ptxas);
        let log = command.args(["-arch", arch, "-v"]).arg(&source).arg("-o").arg(&cubin).output().expect("ptxas");
        let log = String::from_utf8_lossy(&log.stderr).into_owned() + &String::from_utf8_lossy(&log.stdout);
        let registers = log.split("Used ").nth(1).and_then(|l| l.split(' ').next()).unwrap_or("?").to_string();
        let sass = Command::new(&nvdisasm).arg("-c").arg(&cubin).output().expect("nvdisasm").stdout;
        let Sass { all, hot } = Sass::parse(&String::from_utf8_lossy(&sass));
        // One block in the interpreter.
        let parsed = emulate::Module::parse(&module.text).expect("our own PTX");
        let kernel = parsed.kernel(&module.launch.entry).expect("the entry");
        let of_buffers = |a: &&Argument| matches!(a, Argument::Buffer { .. });
        let mut buffers: Vec<Buffer> = (0..module.launch.arguments.iter().filter(of_buffers).count())
            .map(|_| Buffer { bytes: vec![0; 4 << 20], written: true, initialised: true, granule: 4 })
            .collect();
        let launch = Launch {
            grid: [1, 1, 1],
            block: [module.launch.threads, 1, 1],
            shared: module.launch.dynamic_shared,
            arguments: (module.launch.arguments.iter().enumerate())
                .map(|(n, argument)| match argument {
                    Argument::Map(map) => emulate::Argument::Map(map.buffer, map.into()),
                    Argument::Buffer { .. } | Argument::Dim(_) | Argument::Status => emulate::Argument::Buffer(n),
                })
                .collect(),
        };
        let report = emulate::run(&parsed, kernel, &launch, &mut buffers, &emulate::Options::default()).expect("a run");
        assert_eq!(report.findings, [], "{name}");
        assert_eq!(report.counts.conflicts(), 0, "{name}");
        let warps = u64::from(module.launch.threads / 32);
        let _ = writeln!(
            text,
            "{name}, {arch}: registers {registers}, instructions {}, PTX instructions of a warp {}",
            all.len(),
            report.counts.instructions / warps
        );
        for (what, list) in [("loop", &hot), ("all", &all)] {
            // What follows an exit is a loop of one jump.
            if list.len() < 2 {
                continue;
            }
            let of = |what: &str| format!("{what} {}", count(list, what));
            let kinds = [
                "HGMMA",
                "UTMALDG",
                "SYNCS",
                "USETMAXREG",
                "HMMA",
                "IMMA",
                "QMMA",
                "LDSM",
                "LDGSTS",
                "LDG.E",
                "STG",
                "LDS.",
                "STS",
                "MUFU",
                "SHFL",
                "BAR",
                "PRMT",
                "F2F",
            ];
            let unpacking = if name.starts_with("4-bit") { &["I2F", "LOP3", "FFMA"][..] } else { &[] };
            let kinds: Vec<String> =
                kinds.iter().chain(unpacking).filter(|k| count(list, k) > 0).map(|k| of(k)).collect();
            let _ = writeln!(text, "  {what}: {} instructions, {}", list.len(), kinds.join(", "));
        }
        if arch == "sm_90a" {
            assert!(!log.contains("serialized") && !log.contains("setmaxnreg"), "{name}: {log}");
            for none in ["LDGSTS", "LDSM", "PRMT", "LDL", "STL"] {
                assert_eq!(count(&all, none), 0, "{name}: {none}");
            }
            assert!(count(&hot, "HGMMA") > 0 && count(&all, "UTMALDG") > 0, "{name}: {all:?}");
        } else if name.starts_with("4-bit") {
            for none in ["I2F", "F2F", "PRMT", "LDL", "STL"] {
                assert_eq!(count(&all, none), 0, "{name}: {none}");
            }
            assert!(count(&all, "LOP3") > 0, "{name}: {all:?}");
        } else if ["f16", "int8", "fp8"].iter().any(|kind| name.starts_with(kind)) {
            let wide = |what: &str, end: &str| all.iter().filter(|o| o.starts_with(what)).all(|o| o.ends_with(end));
            let unit = match name.get(..3) {
                Some("int") => "IMMA.16832.U8.S8",
                Some("fp8") => "QMMA.16832.F32.E4M3.E4M3",
                _ => "HMMA.16816.F32",
            };
            assert!(count(&hot, unit) > 0 && wide("LDGSTS", "128") && wide("LDSM", "4"), "{name}: {hot:?}");
            // Attention rounds its probabilities, two at a time.
            let pairs = if name.contains("attention") { "F2F." } else { "F2FP" };
            for none in ["PRMT", "F2F.", pairs, "I2F", "LDL", "STL"] {
                assert_eq!(count(&hot, none), 0, "{name}: {none} in the loop");
            }
        }
    }
    eprintln!("{text}");
    golden("budgets.txt", &text);
}
