//! Tile programs through warp programs to PTX: golden texts, what NVIDIA's assembler says of them, and what they do
//! in the interpreter of PTX, which knows PTX from its manual and looks for races and the like.
//!
//! `BLESS=1` rewrites the golden files. The assembler is looked for in the environment variable `KILN_PTXAS`, on the
//! PATH and in `target/ptxas`, where `scripts/ptxas.py` puts it.

mod attention;
mod budgets;
mod bytes;
mod float8;
mod groups;
mod models;
mod mutation;

use kiln_ir::scalar::Constant;
use kiln_ir::tile::TileProgram;
use kiln_ir::warp::WarpProgram;
use kiln_ir::{DType, Ranges, tile, warp};
use kiln_passes::warp::{Options, lower};
use kiln_ptx::Argument;
use kiln_ptx::emulate::{self, Buffer, Launch, Report};
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

/// Runs a kernel in the interpreter of PTX. The arguments are the buffers, after which comes the status, and the dims.
fn execute(
    module: &kiln_ptx::Module,
    program: &WarpProgram,
    buffers: &mut [Vec<u8>],
    dims: &[i64],
    options: &emulate::Options,
) -> Report {
    try_execute(module, program, buffers, dims, options).unwrap_or_else(|e| panic!("{e}"))
}

/// The same for one that may not end.
fn try_execute(
    module: &kiln_ptx::Module,
    program: &WarpProgram,
    buffers: &mut [Vec<u8>],
    dims: &[i64],
    options: &emulate::Options,
) -> Result<Report, emulate::RunError> {
    let text = emulate::Module::parse(&module.text).unwrap_or_else(|e| panic!("{e}\n{}", module.text));
    let kernel = text.kernel(&module.launch.entry).expect("the entry");
    let (mut next, mut dim, status) = (0, 0, buffers.len() - 1);
    let arguments = module.launch.arguments.iter().map(|a| match a {
        Argument::Buffer { .. } => {
            next += 1;
            emulate::Argument::Buffer(next - 1)
        }
        Argument::Dim(_) => {
            dim += 1;
            emulate::Argument::Value(dims[dim - 1] as u64)
        }
        Argument::Status => emulate::Argument::Buffer(status),
        Argument::Map(map) => emulate::Argument::Map(map.buffer, map.into()),
    });
    let arguments = arguments.collect();
    let symbol = |s: &kiln_ir::expr::Symbol| program.dims.iter().position(|d| d == s).map(|i| dims[i]);
    let blocks = program.grid.eval(&symbol).and_then(|b| u32::try_from(b).ok()).expect("a grid");
    let shared = module.launch.dynamic_shared;
    let launch = Launch { grid: [blocks, 1, 1], block: [module.launch.threads, 1, 1], shared, arguments };
    let mut given: Vec<Buffer> = buffers
        .iter()
        .enumerate()
        .map(|(n, bytes)| {
            let of = program.buffers.get(n);
            let granule = of.map_or(4, |b| b.dtype.size());
            Buffer { bytes: bytes.clone(), written: of.is_none_or(|b| b.written), initialised: true, granule }
        })
        .collect();
    let report = emulate::run(&text, kernel, &launch, &mut given, options)?;
    buffers.iter_mut().zip(given).for_each(|(to, from)| *to = from.bytes);
    Ok(report)
}

/// A program of NVIDIA's tools: what the variable names, or on the PATH, or where `scripts/ptxas.py` puts it.
fn tool(name: &str, variable: &str) -> Option<PathBuf> {
    if let Some(program) = std::env::var_os(variable) {
        return Some(program.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/ptxas").join(name);
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join(name)).chain([here]).find(|program| program.is_file())
}

fn ptxas() -> Option<PathBuf> {
    tool("ptxas", "KILN_PTXAS")
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
    // What is for one GPU is no text for another.
    let one = text.contains(".target sm_90a");
    let eight = text.contains(".target sm_89");
    (match (one, eight) {
        (true, _) => &["sm_90a"][..],
        (_, true) => &["sm_89", "sm_90", "sm_100", "sm_120"],
        _ => &["sm_80", "sm_90"],
    })
    .iter()
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

/// The same of words of four bytes, whose sums are i32.
fn matmul_of_bytes(op: &str, shape: (usize, usize, usize), tile: (usize, usize, usize)) -> String {
    let text = matmul("f32", shape, tile).replace("f32", "i32").replace("0.0i32", "0i32");
    text.replace("= dot ", &format!("= dot_{op} "))
}

/// Attention of `n` queries over `n` keys, some queries and keys at a time, with a scale on the queries.
fn attention(dtype: &str, n: usize, (rows, keys, depth): (usize, usize, usize)) -> String {
    let size = n * depth;
    format!(
        "\
kernel @attention(q: {dtype}[{size}], k: {dtype}[{size}], v: {dtype}[{size}], y: f32[{size}] written) {{
  part grid(i = {}) {{
    %0: {dtype}[{rows},{depth}] = load q[a1 + {depth}*a0 + {rows}*{depth}*i]
    %1: f32[{rows},{depth}] = const 0.0f32
    %2: f32[{rows},1] = const minus_inf_f32
    %3: f32[{rows},1] = const 0.0f32
    %26: f32[{rows},{keys}] = const 0.0f32
    for j in 0..{n} step {keys} carry(%4: f32[{rows},{depth}] = %1, %5: f32[{rows},1] = %2, %6: f32[{rows},1] = %3) {{
      %7: {dtype}[{depth},{keys}] = load k[a0 + {depth}*a1 + {depth}*j]
      %8: f32[{rows},{keys}] = dot %0, %7, %26
      %9: f32[{rows},1] = reduce max 1, %8
      %10: f32[{rows},1] = max %5, %9
      %11: f32[{rows},{keys}] = sub %8, %10
      %12: f32[{rows},{keys}] = exp %11
      %13: f32[{rows},1] = sub %5, %10
      %14: f32[{rows},1] = exp %13
      %15: f32[{rows},1] = reduce add 1, %12
      %16: f32[{rows},1] = fma %6, %14, %15
      %17: f32[{rows},{depth}] = mul %4, %14
      %18: {dtype}[{rows},{keys}] = to_{dtype} %12
      %19: {dtype}[{keys},{depth}] = load v[a1 + {depth}*a0 + {depth}*j]
      %20: f32[{rows},{depth}] = dot %18, %19, %17
    }} next(%20, %10, %16) as(%21, %22, %23)
    %24: f32[{rows},1] = recip %23
    %25: f32[{rows},{depth}] = mul %21, %24
    store y[a1 + {depth}*a0 + {rows}*{depth}*i] = %25
  }}
}}
",
        n / rows
    )
}

/// Narrow integers, eight of them to an access; of half of them other numbers are there.
fn narrow() -> String {
    let types = [("i8", "-3"), ("u8", "200"), ("i16", "-300"), ("u16", "65535")];
    let (mut buffers, mut body) = (String::new(), String::new());
    for (n, (ty, other)) in types.iter().enumerate() {
        buffers += &format!("x{n}: {ty}[4000], y{n}: {ty}[4000] written{}", if n < 3 { ", " } else { "" });
        let [x, y] = [2 * n, 2 * n + 1];
        body += &format!(
            "    %{x}: {ty}[1024] = load x{n}[a0 + 1024*i] if(a0 + 1024*i < 2000) else {other}{ty}
    %{y}: {ty}[1024] = add %{x}, %{x}
    store y{n}[a0 + 1024*i] = %{y} if(a0 + 1024*i < 4000)\n"
        );
    }
    format!("kernel @narrow({buffers}) {{\n  part grid(i = 4) {{\n{body}  }}\n}}\n")
}

#[test]
fn narrow_integers_are_moved_several_at_once() {
    let (_, module) = compile(&narrow(), &Options::default());
    for access in ["ld.global.v2.b32", "ld.global.v4.b32", "st.global.v2.b32", "st.global.v4.b32"] {
        assert_eq!(module.text.matches(access).count(), 2, "{access}: {}", module.text);
    }
    assemble("narrow", &module.text);
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

/// Elements of each buffer of [`everything`]; the first half is stored to, the second is only read.
const ELEMENTS: usize = 1 << 19;

/// A program with every operation on every type that has it, and every width of every access.
fn everything() -> String {
    let types = ["i32", "u32", "i64", "u64", "f32", "f16", "bf16", "bool"];
    let buffers = types.iter().enumerate().map(|(n, ty)| format!("b{n} {ty}: {ty}[{ELEMENTS}] written, "));
    let mut text = format!(
        "warp @everything({}dims(n)) grid(1) threads 64 shared(s0: f16[512], s1: f32[64]) {{\n",
        buffers.collect::<String>()
    );
    let (mut next, mut place) = (0, 0);
    // Each thread has 8 elements of each row of 512, and the dim is 512.
    let input = |n: usize, row: usize| format!("b{n}[%2 + {}]", ELEMENTS / 2 + 512 * row);
    let of = |ty: &str| types.iter().position(|t| *t == ty).unwrap_or(0);
    let mut add = |ty: &str, op: &str| {
        text += &format!("  %{next}: {ty} = {op}\n");
        if next > 2 && !op.starts_with("load") && !op.ends_with(ty) {
            // What is computed is stored, one place each.
            text += &format!("  store b{}[%2 + {}], (%{next})\n", of(ty), 512 * place);
            place += 1;
        }
        next += 1;
        next - 1
    };
    let thread = add("i32", "thread");
    let eight = add("i32", "8i32");
    add("i32", &format!("mul(%{thread}, %{eight})"));
    let block = add("i32", "block");
    let dim = add("i64", "dim 0");
    let wide = add("i64", "to_i64(%2)");
    let wide = add("i64", &format!("add(%{wide}, %{dim})"));
    for (n, &ty) in types.iter().enumerate() {
        let v = add(ty, &format!("load {}", input(n, 0)));
        let w = add(ty, &format!("load {}", input(n, 1)));
        let c = add("bool", &format!("load {}", input(7, 2)));
        let int = ty.starts_with(['i', 'u']);
        let unary: &[&str] = match ty {
            "f32" => &["neg", "abs", "floor", "ceil", "round", "trunc", "sqrt", "exp2"],
            "bool" => &["not"],
            _ if int => &["neg", "abs", "not"],
            _ => &[],
        };
        for op in unary {
            add(ty, &format!("{op}(%{v})"));
        }
        let binary: &[&str] = match ty {
            "f32" => &["add", "sub", "mul", "div", "min", "max"],
            "bool" => &["and", "or", "xor"],
            _ if int => &["add", "sub", "mul", "div", "rem", "mod", "min", "max", "and", "or", "xor", "shl", "shr"],
            _ => &[],
        };
        for op in binary {
            add(ty, &format!("{op}(%{v}, %{w})"));
            for number in ["7", "0", "-1", "40", "64"] {
                if int && !(number == "-1" && ty.starts_with('u')) {
                    let c = add(ty, &format!("{number}{ty}"));
                    add(ty, &format!("{op}(%{v}, %{c})"));
                    add(ty, &format!("{op}(%{c}, %{v})"));
                }
            }
        }
        let compare: &[&str] = match ty {
            "bool" => &["eq", "ne"],
            "f16" | "bf16" => &[],
            _ => &["eq", "ne", "lt", "le", "gt", "ge"],
        };
        for op in compare {
            add("bool", &format!("{op}(%{v}, %{w})"));
        }
        add(ty, &format!("select(%{c}, %{v}, %{w})"));
        for to in types {
            if !to.ends_with("f16") && !ty.ends_with("f16") || to == "f32" || ty == "f32" {
                add(to, &format!("to_{to}(%{v})"));
            }
        }
        if !ty.ends_with("f16") && ty != "bool" {
            add(ty, &format!("shuffle(%{v}, 5)"));
        }
        if ty == "f32" {
            add(ty, &format!("fma(%{v}, %{w}, %{w})"));
            add("u32", &format!("bits_u32(%{v})"));
        }
        if ty == "i32" {
            add("f32", &format!("bits_f32(%{v})"));
        }
    }
    for ty in types {
        let size = if ty.ends_with("64") { 8 } else { 4 };
        let size = if ty.ends_with("f16") { 2 } else { size };
        let counts = [1, 2, 4, 8].into_iter().filter(|count| size * count <= 16 && (ty != "bool" || *count == 1));
        for count in counts {
            let other = match ty {
                "bool" => "true".to_string(),
                "f32" | "f16" | "bf16" => format!("1.5{ty}"),
                _ => format!("3{ty}"),
            };
            let list = |first: usize, typed: bool| {
                let ty = if typed { format!(": {ty}") } else { String::new() };
                (first..first + count).map(|i| format!("%{i}{ty}")).collect::<Vec<_>>().join(", ")
            };
            // The condition of one load and the other store.
            let (n, condition, second) = (of(ty), next + 2 * count, next + count);
            text += &format!("  %{condition}: bool = load {}\n", input(7, 3 + count));
            text += &format!("  {} = load b{n}[%{wide} + {}]\n", list(next, true), ELEMENTS / 2);
            text += &format!("  store b{n}[%2 + {}], ({}) if %{condition}\n", 512 * place, list(next, false));
            text += &format!("  {} = load {} if %{condition} else {other}\n", list(second, true), input(n, 5));
            text += &format!("  store b{n}[%{wide} + {}], ({})\n", 512 * place, list(second, false));
            next += 2 * count + 1;
            place += 2;
        }
    }
    text += &format!(
        "\
  %20000: bool = load {}
  %20001: f32 = load {}
  copy s0[%2], b5[%2 + {}], 8 if %20000
  copy s1[%{thread}], b4[%{thread} + {}], 1 if %20000
  commit
  wait 0
  barrier
  %20002: u32, %20003: u32, %20004: u32, %20005: u32 = matrix s0[%2]
  %20006: u32, %20007: u32 = matrix_transposed s0[%2]
  %20008: u32 = matrix s0[%2]
  %20009: f32 = load s1[%{thread}]
  %20010: f32, %20011: f32, %20012: f32, %20013: f32 = mma_f16(%20002, %20003, %20004, %20005, %20006, %20007, %20009, %20009, %20009, %20009)
  %20014: f32, %20015: f32, %20016: f32, %20017: f32 = mma_bf16(%20002, %20003, %20004, %20005, %20008, %20007, %20010, %20011, %20012, %20013)
  store b4[%2 + {}], (%20014, %20015, %20016, %20017)
  %20020: i64 = 0i64
  %20040: i32 = 11i32
  %20041: f32 = 0.125f32
  for %20021: i64 in %20020..%{dim} step 100 carry(%20022: f32 = %20001, %20023: f32 = %20009, %20024: bool = %20000) {{
    for %20025: i32 in %{eight}..%20040 step 1 carry(%20026: f32 = %20022) {{
      %20027: f32 = fma(%20026, %20041, %20023)
    }} next(%20027) as(%20028)
    for %20035: i32 in %{eight}..%{block} step 1 carry(%20036: f32 = %20028) {{
      %20037: f32 = neg(%20036)
    }} next(%20037) as(%20038)
    %20029: bool = lt(%20038, %20023)
  }} next(%20023, %20028, %20029) as(%20030, %20031, %20032)
  store b4[%2 + {}], (%20030)
  store b4[%2 + {}], (%20031)
  store b7[%2 + {}], (%20032)
  %20033: bool = eq(%{thread}, %{eight})
  fail 5 if %20033
  fail 2 if %20000
  %20034: bool = lt(%{dim}, %20020)
  fail 9 if %20034
}}
",
        input(7, 6),
        input(4, 6),
        ELEMENTS / 2,
        ELEMENTS / 2,
        512 * place,
        512 * (place + 1),
        512 * (place + 2),
        512 * (place + 3),
    );
    text
}

/// Numbers among which are those at which operations differ.
fn data(dtype: DType, len: usize, special: bool) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut bytes = Vec::new();
    for i in 0..len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = (state >> 40) as f64 / f64::from(1 << 22) - 2.0;
        let floats = [0.0, -0.0, 0.5, -2.5, 3e9, -3e9, 1e30, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e-40];
        let ints = [0, -1, 1, 7, -7, 31, 33, 64, i64::MIN, i64::MAX, i64::from(i32::MIN), i64::from(i32::MAX)];
        let pick = (state >> 20) as usize;
        let c = match (dtype.is_float(), special && i % 3 > 0) {
            (true, true) => Constant::float(dtype, floats[pick % floats.len()]),
            (true, false) => Constant::float(dtype, number),
            (false, true) => Constant::int(dtype, ints[pick % ints.len()]),
            (false, false) => Constant::int(dtype, (state >> 30) as i64 - (1 << 33)),
        };
        let c = if dtype == DType::Bool { Constant { dtype, bits: state >> 50 & 1 } } else { c };
        c.store(&mut bytes);
    }
    bytes
}

/// Compares two buffers; floats may differ by the tolerance, and all NaN are one.
fn compare(what: &str, dtype: DType, found: &[u8], want: &[u8], tolerance: f64) {
    for i in 0..found.len() / dtype.size() {
        let [f, w] = [found, want].map(|bytes| Constant::load(dtype, bytes, i).map_or(f64::NAN, Constant::as_f64));
        let close = dtype.is_float() && (f - w).abs() <= tolerance * w.abs().max(1.0);
        assert!(f == w || f.is_nan() && w.is_nan() || close, "{what}[{i}]: {f}, wants {w}");
    }
}

#[test]
fn every_operation_does_what_the_warp_program_says() {
    let text = everything();
    let program = WarpProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let module = kiln_ptx::emit(&program).unwrap_or_else(|e| panic!("{e}"));
    assemble("everything", &module.text);
    let dtypes: Vec<DType> = program.buffers.iter().map(|b| b.dtype).collect();
    let buffers: Vec<Vec<u8>> = dtypes.iter().map(|&d| data(d, ELEMENTS, d.size() != 2)).collect();
    let (mut found, mut want) = (buffers.clone(), buffers);
    let outcome = warp::run(&program, &mut want, &[512]).unwrap_or_else(|e| panic!("{e}"));
    found.push(vec![0; 4]);
    want.push(outcome.status.to_le_bytes().to_vec());
    assert_eq!(outcome.status, 5);
    execute(&module, &program, &mut found, &[512], &emulate::Options::default());
    assert_eq!(found.last(), want.last());
    for ((b, found), want) in program.buffers.iter().zip(&found).zip(&want) {
        compare(&b.name, b.dtype, found, want, 0.0);
    }
}

#[test]
fn kernels_compute_what_their_tile_programs_say() {
    for (text, options, tolerance) in [
        (matmul("f32", (50, 64, 64), (32, 32, 16)), Options { stages: 2, ..Options::default() }, 0.0),
        (matmul("f32", (50, 64, 64), (16, 64, 16)), Options { stages: 1, ..Options::default() }, 0.0),
        (matmul("bf16", (50, 64, 128), (32, 64, 32)), Options::default(), 1e-5),
        (matmul("f16", (50, 64, 96), (64, 32, 32)), Options { stages: 1, ..Options::default() }, 1e-5),
        (matmul_of_bytes("u8s8", (50, 64, 96), (64, 32, 32)), Options::default(), 0.0),
        (matmul_of_bytes("s8u8", (50, 64, 64), (32, 64, 16)), Options { stages: 1, ..Options::default() }, 0.0),
        (narrow(), Options::default(), 0.0),
        (softmax(500), Options { threads: Some(64), ..Options::default() }, 1e-6),
        (softmax(1024), Options::default(), 1e-6),
    ] {
        let (warp, module) = compile(&text, &options);
        let program = TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}"));
        let len = |b: &tile::Buffer| b.len.as_size().unwrap_or(0);
        let buffers: Vec<Vec<u8>> = program.buffers.iter().map(|b| data(b.dtype, len(b), false)).collect();
        let (found, mut want) = (buffers.clone(), buffers);
        let warp = WarpProgram::parse(&warp).unwrap_or_else(|e| panic!("{e}"));
        let mut between = want.clone();
        warp::run(&warp, &mut between, &[]).unwrap_or_else(|e| panic!("{e}"));
        tile::run(&program, &mut want, &|_| None, 0..i64::MAX).unwrap_or_else(|e| panic!("{e}"));
        for ((b, found), want) in program.buffers.iter().zip(&between).zip(&want) {
            compare(&format!("{} of the warp program", b.name), b.dtype, found, want, tolerance);
        }
        for seed in [0, 7] {
            let mut found = found.clone();
            found.push(vec![0; 4]);
            let accumulate = if seed == 0 { emulate::Accumulate::Exact } else { emulate::Accumulate::Truncating };
            let options = emulate::Options { seed, accumulate, ..emulate::Options::default() };
            let report = execute(&module, &warp, &mut found, &[], &options);
            assert_eq!(report.findings, [], "{text}");
            let name = |b: &tile::Buffer| format!("{} of seed {seed}", b.name);
            for ((b, found), want) in program.buffers.iter().zip(&found).zip(&want) {
                compare(&name(b), b.dtype, found, want, tolerance.max(f64::from(seed as u32) * 1e-6));
            }
        }
    }
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
