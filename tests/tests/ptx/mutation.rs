//! Kernels with a mistake: whatever orders threads or guards an instruction is taken away, one at a time, and that must show: by a
//! finding of the interpreter, by an error, or by another result. What does not is in [`REDUNDANT`], with the proof that nothing was
//! lost with it.

use super::attention::{grouped, masked, plain};
use super::models::{graph, of_few_bits, tensor};
use super::{attention, compile, data, groups, matmul, softmax, try_execute};
use kiln::gpu::{self, ARCHITECTURES, Architecture, Precision};
use kiln::{Options as Compiling, Silent};
use kiln_ir::scalar::Constant;
use kiln_ir::tile::{Buffer, TileProgram};
use kiln_ir::warp::WarpProgram;
use kiln_ir::{DType, Graph, Tensor};
use kiln_passes::warp::Options;
use kiln_ptx::emulate;
use std::collections::HashMap;

/// What may be taken away without harm: the kernels, the line, from how many lines of a kernel at most, and why.
const REDUNDANT: &[(&[&str], &str, usize, &str)] = &[
    (
        &["pipelined", "matrix", "attention", "split fold", "product of sums of tf32", "product of floats of 8 bits"],
        "cp.async.wait_group 0",
        1,
        "the copies that are left at the end of the loop are of no elements, and nobody reads what they write",
    ),
    (
        &["attention of f32"],
        "bar.sync",
        3,
        "queries, keys and shares have buffers of their own: between the last read of one and the next write to it, or its write and \
         its first read, there is also a barrier of another; any one of three may go, not all of them",
    ),
    (
        &["ragged attention", "masked attention", "causal attention"],
        "bar.sync",
        2,
        "keys and values have buffers of their own, and both are written and read in each turn of the loop: between the last read of \
         one and the next write to it there is also the barrier between the write and the read of the other",
    ),
    (
        &["products of four warps"],
        "fence.mbarrier_init",
        1,
        "the other fence beside it orders the same; each is there for one of two readings of the manual",
    ),
    (&["products of four warps"], "fence.proxy.async", 1, "the same"),
    (
        &["products of four warps"],
        "setmaxnreg",
        2,
        "it moves registers from one group of warps to another and orders nothing; the assembler, which needs it, checks it",
    ),
];

/// Whether the n-th line may be done by all threads instead of those of its guard, with what that was proved by. Kernels are made for fixed
/// extents, and neither addresses nor guards depend on data, so one run shows every access that can happen; the run without the guard
/// had no finding and the same results.
///
/// - A load is inside of its buffer. What it gives where the guard does not hold decides no result: with numbers that are none in place of
///   it, and with other bits of integers, the results are the same bits.
/// - A store is guarded by bits of the thread's number that must be zero, and by nothing else: threads that differ in these alone hold
///   copies of a layout's element (`Lowering::owner`), so all of them store the same bits. Others would be a race.
/// - A fence of all threads orders what that of one does, and more.
fn of_all_threads(text: &str, n: usize, run: &mut dyn FnMut(&str) -> bool) -> bool {
    let Some((guard, code)) = text.lines().nth(n).and_then(|line| line.trim().strip_prefix('@')?.split_once(' '))
    else {
        return false;
    };
    let code = code.trim();
    if code.starts_with("fence") {
        return true;
    }
    if code.starts_with("st.shared") || code.starts_with("st.global") {
        return is_of_thread_bits(text, guard);
    }
    code.starts_with("ld.global") && poisoned(text, n, (guard, code)).is_some_and(|text| run(&text))
}

/// Whether a predicate says that some bits of the thread's number are zero.
fn is_of_thread_bits(text: &str, predicate: &str) -> bool {
    let made = |register: &str| {
        let of = |line: &str| {
            let (op, operands) = line.trim().trim_end_matches(';').split_once(char::is_whitespace)?;
            let operands: Vec<String> = operands.split(',').map(|o| o.trim().to_string()).collect();
            (operands.first().map(String::as_str) == Some(register)).then(|| (op.to_string(), operands))
        };
        let mut all = text.lines().filter(|l| !l.trim().starts_with('@')).filter_map(of);
        all.next().filter(|_| all.next().is_none())
    };
    let Some((compare, of_predicate)) = made(predicate) else { return false };
    let [_, bits, zero] = of_predicate.as_slice() else { return false };
    let Some((and, of_bits)) = made(bits) else { return false };
    let [_, thread, mask] = of_bits.as_slice() else { return false };
    let number = made(thread).is_some_and(|(op, from)| op == "mov.u32" && from.get(1).is_some_and(|f| f == "%tid.x"));
    compare == "setp.eq.s32" && zero == "0" && and == "and.b32" && mask.parse::<u32>().is_ok() && number
}

/// The text with what a guarded load leaves alone set to what is no number, or to rubbish.
fn poisoned(text: &str, n: usize, (guard, code): (&str, &str)) -> Option<String> {
    let (op, operands) = code.split_once(char::is_whitespace)?;
    let (targets, _) = operands.split_once(", [")?;
    let (ty, rubbish) = match op.rsplit('.').next()? {
        "f32" => ("f32", "0f7FFFFFFF"),
        "b16" => ("b16", "0x7FFF"),
        "b64" | "u64" | "s64" => ("b64", "0x7FFF7FFF7FFF7FFF"),
        "b32" | "u32" | "s32" => ("b32", "0x7FFF7FFF"),
        // In registers of 32 bits.
        "u8" | "s8" => ("b32", "0x5B"),
        "u16" | "s16" => ("b32", "0x5B5B"),
        _ => return None,
    };
    let targets = targets.trim().trim_matches(['{', '}']).split(',').map(str::trim);
    let set: String = targets.map(|target| format!("\n@!{guard} mov.{ty} {target}, {rubbish};")).collect();
    let line = |(i, line): (usize, &str)| if i == n { format!("{line}{set}") } else { line.to_string() };
    Some(text.lines().enumerate().map(line).collect::<Vec<_>>().join("\n"))
}

/// What orders threads, copies and products.
const ORDERS: &[&str] = &[
    "bar.",
    "barrier.",
    "cp.async.wait",
    "cp.async.commit",
    "mbarrier.",
    "fence",
    "wgmma.fence",
    "wgmma.commit",
    "wgmma.wait",
    "setmaxnreg",
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

/// An operand, and the element of it that is no number.
type Nan = Option<(usize, usize)>;

/// Runs kernels with the n-th of their texts replaced: what they wrote, or nothing where something was found.
type Run = Box<dyn FnMut(usize, &str, Nan) -> Option<Vec<Vec<u8>>>>;

/// How many elements of an operand are no number in turns.
const PLACES: usize = 17;

/// Sets an element of the data to NaN, one of [`PLACES`] that are nearly as far from one another; whether the data is of floats.
fn set_nan(dtype: DType, bytes: &mut [u8], place: usize) -> bool {
    let len = bytes.len() / dtype.size();
    let mut nan = Vec::new();
    Constant::float(dtype, f64::NAN).store(&mut nan);
    let at = (place * (len / PLACES) + 3 * place) % len.max(1) * dtype.size();
    let fits = dtype.is_float() && bytes.get(at..at + nan.len()).is_some();
    if fits {
        bytes[at..at + nan.len()].copy_from_slice(&nan);
    }
    fits
}

/// Kernels whose texts are changed.
struct Subject {
    name: &'static str,
    texts: Vec<String>,
    /// The types of its operands.
    operands: Vec<DType>,
    run: Run,
}

fn how() -> emulate::Options {
    emulate::Options { threads: 1, steps: 1 << 17, ..emulate::Options::default() }
}

fn kernel(name: &'static str, text: &str, options: &Options) -> Subject {
    let (warp, module) = compile(text, options);
    let program = TileProgram::parse(text).unwrap_or_else(|e| panic!("{e}"));
    let warp = WarpProgram::parse(&warp).unwrap_or_else(|e| panic!("{e}"));
    let len = |b: &Buffer| b.len.as_size().unwrap_or(0);
    let mut buffers: Vec<Vec<u8>> = program.buffers.iter().map(|b| data(b.dtype, len(b), false)).collect();
    buffers.push(vec![0; 4]);
    let texts = vec![module.text];
    let operands: Vec<DType> = program.buffers.iter().filter(|b| !b.written).map(|b| b.dtype).collect();
    let types = operands.clone();
    let run = move |_: usize, text: &str, nan: Nan| {
        let module = kiln_ptx::Module { text: text.into(), launch: module.launch.clone() };
        let mut written = buffers.clone();
        if let Some((operand, place)) = nan {
            set_nan(types[operand], &mut written[operand], place);
        }
        let report = try_execute(&module, &warp, &mut written, &[], &how()).ok()?;
        report.findings.is_empty().then_some(written)
    };
    Subject { name, texts, operands, run: Box::new(run) }
}

fn of_graph(name: &'static str, graph: Graph, target: (Architecture, Precision)) -> Subject {
    let shape = |v| graph.ty(v).shape().expect("a shape");
    let inputs: Vec<Tensor> = graph.inputs.iter().map(|&v| tensor(graph.ty(v).dtype, &shape(v))).collect();
    let compiled = gpu::compile_graph(graph, &Compiling::default(), target, &mut Silent);
    let mut compiled = compiled.unwrap_or_else(|e| panic!("{name}: {e}"));
    let places: Vec<(usize, usize)> =
        compiled.kernels.iter().enumerate().flat_map(|(k, of)| (0..of.modules.len()).map(move |m| (k, m))).collect();
    let texts = places.iter().map(|&(k, m)| compiled.kernels[k].modules[m].text.clone()).collect();
    let operands = inputs.iter().map(Tensor::dtype).collect();
    let run = move |n: usize, text: &str, nan: Nan| {
        let mut inputs = inputs.clone();
        if let Some((operand, place)) = nan {
            let of = &inputs[operand];
            let (dtype, shape, mut bytes) = (of.dtype(), of.shape().to_vec(), of.bytes().to_vec());
            set_nan(dtype, &mut bytes, place);
            inputs[operand] = Tensor::new(dtype, shape, bytes).expect("a tensor");
        }
        let (k, m) = places[n];
        let own = std::mem::replace(&mut compiled.kernels[k].modules[m].text, text.into());
        let outcome = gpu::emulate::run(&compiled, &inputs, &how(), false, &mut |_| {});
        compiled.kernels[k].modules[m].text = own;
        let outcome = outcome.ok()?;
        let clean = outcome.kernels.iter().all(|k| k.findings.is_empty());
        clean.then(|| outcome.outputs.iter().map(|t| t.bytes().to_vec()).collect())
    };
    Subject { name, texts, operands, run: Box::new(run) }
}

/// Takes away one thing after another; panics where something is not missed that is not explained.
fn taken_away(subjects: impl IntoIterator<Item = Subject>) {
    let (mut tried, mut survivors) = (0, Vec::new());
    for Subject { name, texts, operands, mut run } in subjects {
        let Some(whole) = texts.first().and_then(|text| run(0, text, None)) else {
            panic!("{name} itself has findings")
        };
        let mut with_nan: HashMap<(usize, usize), Option<Vec<Vec<u8>>>> = HashMap::new();
        let (mut guards, mut open) = (0, 0);
        for (k, text) in texts.iter().enumerate() {
            let mut explained = vec![0; REDUNDANT.len()];
            for (n, line) in text.lines().enumerate() {
                let line = line.trim();
                let (guarded, code) = match line.strip_prefix('@').and_then(|rest| rest.split_once(' ')) {
                    Some((_, code)) => (true, code.trim()),
                    None => (false, line),
                };
                for predicate in [true, false] {
                    if predicate && !guarded || !predicate && !ORDERS.iter().any(|o| code.starts_with(o)) {
                        continue;
                    }
                    tried += 1;
                    guards += usize::from(predicate);
                    let changed = without(text, n, predicate);
                    if run(k, &changed, None).is_none_or(|found| found != whole) {
                        continue;
                    }
                    let mut same = |text: &str| run(k, text, None).is_some_and(|found| found == whole);
                    if predicate && of_all_threads(text, n, &mut same) {
                        open += 1;
                        continue;
                    }
                    // What only finite numbers hide, such as a factor of zero beside it, shows where one is none.
                    let floats = operands.iter().enumerate().filter(|(_, dtype)| dtype.is_float());
                    let mut nans = floats.flat_map(|(operand, _)| (0..PLACES).map(move |place| (operand, place)));
                    let shows = predicate
                        && nans.any(|nan| {
                            let want = with_nan.entry(nan).or_insert_with(|| run(k, text, Some(nan)));
                            run(k, &changed, Some(nan)) != *want
                        });
                    if shows {
                        continue;
                    }
                    let known =
                        REDUNDANT.iter().position(|(of, what, ..)| of.contains(&name) && code.starts_with(what));
                    if let Some(known) = known.filter(|&n| explained[n] < REDUNDANT[n].2) {
                        explained[known] += 1;
                        continue;
                    }
                    survivors.push(format!("{name}, kernel {k}, line {}: {line}", n + 1));
                }
            }
        }
        assert!(guards == 0 || open < guards, "{name}: none of its {guards} guards is missed");
    }
    eprintln!("{tried} tried");
    assert!(tried > 20, "{tried} were tried");
    assert!(survivors.is_empty(), "{tried} tried, survivors: {survivors:#?}");
}

#[test]
fn what_is_taken_away_of_products_is_missed() {
    let ahead = Options { stages: 3, threads: Some(64), ..Options::default() };
    let whole = Options { stages: 1, threads: Some(64), ..Options::default() };
    taken_away([
        kernel("pipelined", &matmul("f32", (20, 16, 64), (16, 16, 8)), &ahead),
        kernel("matrix", &matmul("bf16", (20, 16, 96), (16, 16, 16)), &ahead),
        kernel("staged", &matmul("f32", (20, 16, 32), (16, 16, 8)), &whole),
        kernel("softmax", &softmax(200), &whole),
        kernel("attention", &attention("f16", 96, (32, 16, 16)), &ahead),
        kernel("attention of f32", &attention("f32", 64, (16, 16, 16)), &whole),
        kernel(
            "products of four warps",
            &groups::product("f16", [64, 64, 400], [64, 64], (false, 1)),
            &groups::options(),
        ),
    ]);
}

#[test]
fn what_is_taken_away_of_graphs_is_missed() {
    let f32s = (ARCHITECTURES[0], Precision::F32);
    let made = |made: super::models::Made| made.expect("a graph");
    taken_away([
        of_graph("4-bit words", made(of_few_bits(1, 128, 48, DType::U8, 8.0)), f32s),
        of_graph(
            "split fold",
            made(graph(&[&[20, 1024], &[1024, 40]], |g, x| g.output("y", x[0].matmul(x[1])?.gelu()?))),
            f32s,
        ),
        of_graph(
            "one row",
            made(graph(&[&[1, 100], &[100, 30]], |g, x| g.output("y", x[0].matmul(x[1])?.relu()?))),
            f32s,
        ),
        of_graph(
            "product of sums of tf32",
            made(graph(&[&[37, 48], &[48, 52]], |g, x| g.output("y", x[0].matmul(x[1])?))),
            (ARCHITECTURES[0], Precision::F32Fast),
        ),
        of_graph(
            "product of floats of 8 bits",
            super::float8::product(["f8e4m3fn", "f8e5m2"], [37, 400, 52]),
            ("sm_89".parse().expect("an architecture"), Precision::F32),
        ),
        of_graph(
            "widened floats of 8 bits",
            super::float8::product(["f8e4m3fn", "f8e4m3fn"], [37, 75, 56]),
            (ARCHITECTURES[0], Precision::F16),
        ),
        of_graph("norm", made(graph(&[&[9, 77]], |g, x| g.output("y", x[0].layer_norm(1e-5)?))), f32s),
        of_graph("sums", made(graph(&[&[11, 6, 70]], |g, x| g.output("y", x[0].sum(&[0], true)?))), f32s),
        of_graph(
            "transpose",
            made(graph(&[&[5, 33, 17]], |g, x| g.output("y", x[0].transpose(&[2, 0, 1])?.relu()?))),
            f32s,
        ),
    ]);
}

#[test]
fn what_is_taken_away_of_attention_is_missed() {
    let at = |precision| (ARCHITECTURES[0], precision);
    taken_away([
        of_graph("ragged attention", plain(1, 37, 71, 40, 24), at(Precision::F16)),
        of_graph("masked attention", masked(33, 50), at(Precision::F16)),
        of_graph("causal attention", grouped(20, 150), at(Precision::F16)),
        of_graph("decoding", grouped(1, 45), at(Precision::F32)),
        of_graph("split keys", grouped(2, 700), at(Precision::F16)),
    ]);
}
