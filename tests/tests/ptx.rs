//! Tile programs through warp programs to PTX: golden texts, and what NVIDIA's assembler says of them.
//!
//! `BLESS=1` rewrites the golden files. The assembler is looked for in the environment variable `KILN_PTXAS`, on the
//! PATH and in `target/ptxas`, where `scripts/ptxas.py` puts it.

use kiln_ir::Ranges;
use kiln_ir::tile::TileProgram;
use kiln_ir::warp::WarpProgram;
use kiln_passes::warp::{Options, lower};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lowers a tile program of one part and translates it; returns the warp program's text, the PTX and the launch.
fn compile(text: &str, options: &Options) -> (String, kiln_ptx::Module) {
    let program = TileProgram::parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    program.verify(&Ranges::new()).unwrap_or_else(|e| panic!("{e:?}"));
    let kernels = lower(&program, &Ranges::new(), options).unwrap_or_else(|e| panic!("{e}"));
    let [kernel] = kernels.as_slice() else { panic!("{} kernels", kernels.len()) };
    (kernel.to_string(), kiln_ptx::emit(kernel).unwrap_or_else(|e| panic!("{e}")))
}

fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/ptx").join(name);
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }
    let want = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}; BLESS=1 writes it", path.display()));
    if let Some(line) = want.lines().zip(text.lines()).position(|(w, t)| w != t) {
        let show = |text: &str| text.lines().nth(line).unwrap_or("").to_string();
        panic!("{name}, line {}: `{}`, wants `{}`; BLESS=1 rewrites it", line + 1, show(text), show(&want));
    }
    assert_eq!(want.lines().count(), text.lines().count(), "{name}: lines; BLESS=1 rewrites it");
}

fn ptxas() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("KILN_PTXAS") {
        return Some(program.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ptxas/ptxas");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("ptxas")).chain([here]).find(|program| program.is_file())
}

/// What the assembler says of a kernel: registers of a thread and bytes of static shared memory, for each GPU.
/// Fails where it refuses the text, spills a register or uses local memory; is empty, loudly, where it is not there.
fn assemble(name: &str, text: &str) -> Vec<(u32, u32)> {
    let Some(program) = ptxas() else {
        eprintln!("SKIPPED: {name} was not assembled: no ptxas; `scripts/ptxas.py` fetches it, or set KILN_PTXAS");
        return Vec::new();
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let source = folder.path().join("kernel.ptx");
    std::fs::write(&source, text).expect("a file in the temporary folder");
    ["sm_80", "sm_90"]
        .into_iter()
        .map(|arch| {
            let output = Command::new(&program)
                .args(["-arch", arch, "-v", "-warn-spills", "-warn-lmem-usage", "-Werror"])
                .arg(&source)
                .arg("-o")
                .arg(folder.path().join("kernel.cubin"))
                .output()
                .unwrap_or_else(|e| panic!("{}: {e}", program.display()));
            let log = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{name} for {arch}:\n{log}\n{text}");
            assert!(log.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"), "{name}: {log}");
            let number = |before: &str, after: &str| {
                let words = log.split(after).next().unwrap_or("").rsplit(before).next().unwrap_or("");
                words.trim().parse().unwrap_or(0)
            };
            (number("Used", "registers"), number("barriers,", "bytes smem"))
        })
        .collect()
}

/// A matrix product of `m` by `k` and `k` by `n` with a bias, in tiles; ragged in the rows.
fn matmul(dtype: &str, (m, n, k): (usize, usize, usize), (bm, bn, bk): (usize, usize, usize)) -> String {
    let (gm, gn) = (m.div_ceil(bm), n / bn);
    let (xs, ws, ys) = (m * k, k * n, m * n);
    format!(
        "\
kernel @matmul(x: {dtype}[{xs}], w: {dtype}[{ws}], b: f32[{n}], y: f32[{ys}] written) {{
  part grid(i = {gm}, j = {gn}) {{
    %0: f32[{bm},{bn}] = const 0.0f32
    for k in 0..{k} step {bk} carry(%1: f32[{bm},{bn}] = %0) {{
      %2: {dtype}[{bm},{bk}] = load x[a1 + {k}*a0 + {bm}*{k}*i + k] if(a0 + {bm}*i < {m}) else 0.0{dtype}
      %3: {dtype}[{bk},{bn}] = load w[a1 + {n}*a0 + {bn}*j + {n}*k]
      %4: f32[{bm},{bn}] = dot %2, %3, %1
    }} next(%4) as(%5)
    %6: f32[1,{bn}] = load b[a1 + {bn}*j]
    %7: f32[{bm},{bn}] = add %5, %6
    %8: f32[1,1] = const 0.0f32
    %9: f32[{bm},{bn}] = max %7, %8
    store y[a1 + {n}*a0 + {bm}*{n}*i + {bn}*j] = %9 if(a0 + {bm}*i < {m})
  }}
}}
"
    )
}

/// A softmax of rows of `n` elements.
fn softmax(n: usize) -> String {
    let width = n.next_power_of_two();
    let (size, mask) = (100 * n, if width == n { String::new() } else { format!(" if(a0 < {n})") });
    let other = if mask.is_empty() { "" } else { " else minus_inf_f32" };
    format!(
        "\
kernel @softmax(x: f32[{size}], y: f32[{size}] written) {{
  part grid(i = 100) {{
    %0: f32[{width}] = load x[a0 + {n}*i]{mask}{other}
    %1: f32[1] = reduce max 0, %0
    %2: f32[{width}] = sub %0, %1
    %3: f32[{width}] = exp %2
    %4: f32[1] = reduce add 0, %3
    %5: f32[{width}] = div %3, %4
    store y[a0 + {n}*i] = %5{mask}
  }}
}}
"
    )
}

#[test]
fn kernels_become_the_expected_text() {
    let few = Options { threads: Some(32), ..Options::default() };
    for (name, text, options) in [
        ("matmul_f32", matmul("f32", (30, 32, 64), (16, 16, 8)), &few),
        ("matmul_bf16", matmul("bf16", (30, 32, 64), (16, 16, 16)), &few),
        ("softmax", softmax(500), &Options { threads: Some(64), ..Options::default() }),
    ] {
        let (warp, module) = compile(&text, options);
        golden(&format!("{name}.tile"), &text);
        golden(&format!("{name}.warp"), &warp);
        golden(&format!("{name}.ptx"), &module.text);
        golden(&format!("{name}.json"), &module.launch.to_string());
        assemble(name, &module.text);
    }
}

#[test]
fn kernels_of_real_sizes_fit_the_registers() {
    let options = |stages| Options { stages, shared: 160 << 10, ..Options::default() };
    for (name, text, stages, most) in [
        ("sgemm 128x128x16", matmul("f32", (1000, 1024, 1024), (128, 128, 16)), 2, 168),
        ("sgemm 128x128x32", matmul("f32", (1000, 1024, 1024), (128, 128, 32)), 3, 168),
        ("hgemm 128x128x32", matmul("f16", (1000, 1024, 1024), (128, 128, 32)), 4, 168),
        ("bgemm 64x128x64", matmul("bf16", (1000, 1024, 1024), (64, 128, 64)), 3, 168),
        ("synchronous sgemm", matmul("f32", (1000, 1024, 1024), (64, 64, 32)), 1, 128),
        ("softmax 1000", softmax(1000), 1, 64),
        ("softmax 8192", softmax(8192), 1, 96),
    ] {
        let (_, module) = compile(&text, &options(stages));
        for (registers, _) in assemble(name, &module.text) {
            eprintln!("{name}: {registers} registers, {} threads", module.launch.threads);
            assert!(registers <= most, "{name}: {registers} registers, at most {most} were needed before");
        }
    }
}

/// Every operation on every type that has it, and every width of every access.
fn everything() -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut next = 0;
    let mut add = |ty: &str, op: String| {
        next += 1;
        lines.push(format!("  %{next}: {ty} = {op}"));
        next
    };
    let thread = add("i32", "thread".into());
    let block = add("i32", "block".into());
    let dim = add("i64", "dim 0".into());
    let float = add("f32", format!("load b0[%{thread}]"));
    let mut values = vec![("i32", thread), ("i64", dim), ("f32", float)];
    for ty in ["u32", "u64"] {
        values.push((ty, add(ty, format!("to_{ty}(%{thread})"))));
    }
    for ty in ["f16", "bf16"] {
        let half = add(ty, format!("to_{ty}(%{float})"));
        values.push(("f32", add("f32", format!("to_f32(%{half})"))));
        values.push((ty, half));
    }
    let bool = add("bool", format!("lt(%{thread}, %{block})"));
    values.push(("bool", bool));
    let (mut results, sources) = (Vec::new(), values.clone());
    for &(ty, v) in &sources {
        let int = ty.starts_with(['i', 'u']);
        let unary: &[&str] = match ty {
            "f32" => &["neg", "abs", "floor", "ceil", "round", "trunc", "sqrt", "exp2"],
            "bool" => &["not"],
            _ if int => &["neg", "abs", "not"],
            _ => &[],
        };
        for op in unary {
            results.push((ty, add(ty, format!("{op}(%{v})"))));
        }
        let binary: &[&str] = match ty {
            "f32" => &["add", "sub", "mul", "div", "min", "max"],
            "bool" => &["and", "or", "xor"],
            _ if int => &["add", "sub", "mul", "div", "rem", "mod", "min", "max", "and", "or", "xor", "shl", "shr"],
            _ => &[],
        };
        for op in binary {
            results.push((ty, add(ty, format!("{op}(%{v}, %{v})"))));
            if int {
                for number in ["7", "0", "-1"] {
                    if number == "-1" && ty.starts_with('u') {
                        continue;
                    }
                    let c = add(ty, format!("{number}{ty}"));
                    results.push((ty, add(ty, format!("{op}(%{v}, %{c})"))));
                }
            }
        }
        let compare: &[&str] = match ty {
            "bool" => &["eq", "ne"],
            "f16" | "bf16" => &[],
            _ => &["eq", "ne", "lt", "le", "gt", "ge"],
        };
        for op in compare {
            results.push(("bool", add("bool", format!("{op}(%{v}, %{v})"))));
        }
        results.push((ty, add(ty, format!("select(%{bool}, %{v}, %{v})"))));
        for to in ["bool", "i32", "u32", "i64", "u64", "f32"] {
            if !matches!(ty, "f16" | "bf16") || to == "f32" {
                results.push((to, add(to, format!("to_{to}(%{v})"))));
            }
        }
        if !matches!(ty, "f16" | "bf16" | "bool") {
            results.push((ty, add(ty, format!("shuffle(%{v}, 5)"))));
        }
    }
    results.push(("f32", add("f32", format!("fma(%{float}, %{float}, %{float})"))));
    results.push(("u32", add("u32", format!("bits_u32(%{float})"))));
    results.push(("f32", add("f32", format!("bits_f32(%{thread})"))));
    let mut text = "\
warp @everything(b0 x: f32[n], b1 i32: i32[n] written, b2 u32: u32[n] written, b3 i64: i64[n] written, \
b4 u64: u64[n] written, b5 f32: f32[n] written, b6 f16: f16[n] written, b7 bf16: bf16[n] written, \
b8 bool: bool[n] written, dims(n)) grid(ceildiv(n, 32)) threads 32 shared(s0: f16[512], s1: f32[64]) {\n"
        .to_string();
    let types = ["i32", "u32", "i64", "u64", "f32", "f16", "bf16", "bool"];
    let buffer = |ty: &str| 1 + types.iter().position(|t| *t == ty).unwrap_or(0);
    text += &lines.join("\n");
    text.push('\n');
    for (n, (ty, v)) in values.iter().chain(&results).enumerate() {
        text += &format!("  store b{}[%{thread} + {n}], (%{v})\n", buffer(ty));
    }
    let mut id = 10_000;
    for ty in types {
        let b = buffer(ty);
        for count in [1, 2, 4, 8] {
            let size = match ty {
                "f16" | "bf16" => 2,
                "i64" | "u64" => 8,
                _ => 4,
            };
            if size * count > 16 || ty == "bool" && count > 1 {
                continue;
            }
            let other = match ty {
                "bool" => "true".to_string(),
                "f32" | "f16" | "bf16" => format!("1.5{ty}"),
                _ => format!("3{ty}"),
            };
            let list = |typed: bool| {
                (0..count)
                    .map(|i| if typed { format!("%{}: {ty}", id + i) } else { format!("%{}", id + i) })
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            text += &format!("  {} = load b{b}[%{dim} + 8]\n", list(true));
            text += &format!("  store b{b}[%{dim} - 16], ({}) if %{bool}\n", list(false));
            id += 10;
            let list = |typed: bool| {
                (0..count)
                    .map(|i| if typed { format!("%{}: {ty}", id + i) } else { format!("%{}", id + i) })
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            text += &format!("  {} = load b{b}[16] if %{bool} else {other}\n", list(true));
            text += &format!("  store b{b}[8], ({})\n", list(false));
            id += 10;
        }
    }
    text += &format!(
        "\
  %20000: i32 = 8i32
  %20001: i32 = mul(%{thread}, %20000)
  copy s0[%20001], b6[%20001], 8 if %{bool}
  copy s1[%{thread}], b0[%{thread}], 1
  copy s1[32], b0[32], 2
  commit
  wait 0
  barrier
  %20002: u32, %20003: u32, %20004: u32, %20005: u32 = matrix s0[%20001]
  %20006: u32, %20007: u32 = matrix_transposed s0[%20001 + 8]
  %20008: u32 = matrix s0[%20001]
  %20010: f32, %20011: f32, %20012: f32, %20013: f32 = mma_f16(%20002, %20003, %20004, %20005, %20006, %20007, %{float}, %{float}, %{float}, %{float})
  %20014: f32, %20015: f32, %20016: f32, %20017: f32 = mma_bf16(%20002, %20003, %20004, %20005, %20008, %20007, %20010, %20011, %20012, %20013)
  store b5[%20001], (%20014, %20015, %20016, %20017)
  %20020: i64 = 0i64
  for %20021: i64 in %20020..%{dim} step 3 carry(%20022: f32 = %{float}, %20023: f32 = %20014, %20024: bool = %{bool}) {{
    for %20025: i32 in %20000..%{block} step 1 carry(%20026: f32 = %20022) {{
      %20027: f32 = fma(%20026, %20022, %20023)
    }} next(%20027) as(%20028)
    %20029: bool = lt(%20028, %20023)
  }} next(%20023, %20022, %20029) as(%20030, %20031, %20032)
  store b5[%20001], (%20030)
  store b5[%20001 + 1], (%20031)
  store b8[%{thread}], (%20032)
}}
"
    );
    text
}

#[test]
fn every_operation_assembles() {
    let text = everything();
    let program = WarpProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let module = kiln_ptx::emit(&program).unwrap_or_else(|e| panic!("{e}"));
    assemble("everything", &module.text);
}

#[test]
fn what_breaks_rules_is_not_translated() {
    let emit = |text: &str| kiln_ptx::emit(&WarpProgram::parse(text).unwrap_or_else(|e| panic!("{e}")));
    let error = emit("warp @k(dims()) grid(1) threads 33 { }").unwrap_err().to_string();
    assert_eq!(error, "warp program @k: ``: 33 threads; wants a multiple of 32 up to 1024");
    let far = "warp @k(b0 x: f32[1], dims()) grid(1) threads 32 {\n %1: f32 = load b0[1000000000]\n}";
    let error = emit(far).unwrap_err().to_string();
    assert_eq!(error, "warp program @k: the offset 1000000000 of an address does not fit 31 bits in bytes");
}
