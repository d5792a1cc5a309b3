//! Random graphs in every way that Kiln has to run them. `KILN_GRAPHS` is how many (`FROM..TO` are the seeds themselves); without it
//! the ways that cost most take turns.

use kiln::Options;
use kiln::compare;
use kiln::cross::{self, Way};
use kiln::ir::graph::Origin;
use kiln::ir::ops::{Attributes, Broadcast, Host, Map};
use kiln::ir::plan::Step;
use kiln::ir::scalar::{BinaryOp, Code};
use kiln::ir::{DType, Expr, Graph, Ranges, Symbol, Tensor, TensorType};
use kiln::runtime::cpu::CpuLevel;
use kiln_tests::graphs::Random;
use kiln_tests::graphs::sample;
use std::ops::Range;

/// How many graphs an ordinary run makes.
const GRAPHS: u64 = 240;

fn wanted() -> Option<Range<u64>> {
    let wanted = std::env::var("KILN_GRAPHS").ok()?;
    let number = |s: &str| s.parse::<u64>().unwrap_or_else(|_| panic!("KILN_GRAPHS={wanted} is no number of graphs"));
    Some(match wanted.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => 0..number(&wanted),
    })
}

#[test]
fn random_graphs_give_the_same_in_every_way() {
    let mut wrong = Vec::new();
    let (seeds, all) = wanted().map_or((0..GRAPHS, false), |seeds| (seeds, true));
    for seed in seeds {
        let sample = sample(seed);
        let problems = sample.graph.verify();
        assert!(problems.is_empty(), "seed {seed}: {problems:?}\n{}", sample.graph);
        let inputs: Vec<_> = (0..sample.bindings.len()).map(|n| sample.inputs(n)).collect();
        let judge = |n: usize, expected: &_, found: &_| sample.judge(n, expected, found);
        let in_turn = [Way::RawTiles, Way::Unfused, Way::File, Way::Cuts][seed as usize % 4];
        let ways = [Way::Passes, Way::Tiles, Way::Levels, in_turn];
        let ways = if all { Way::ALL } else { &ways };
        if let Err(finding) = cross::check(&sample.graph, &inputs, ways, &judge) {
            println!("seed {seed}: {finding}\n{}", sample.graph);
            wrong.push(format!("seed {seed}: {finding}"));
        }
    }
    assert!(wrong.is_empty(), "{} graphs differ:\n{}", wrong.len(), wrong.join("\n"));
}

/// A graph of elementwise code over inputs of so many elements.
fn elementwise(types: &[DType], elements: usize, bodies: &[&dyn Fn(&mut Code)]) -> Graph {
    let mut graph = Graph::new("elementwise");
    let dims = vec![elements.into()];
    let inputs: Vec<_> = types
        .iter()
        .enumerate()
        .map(|(n, t)| graph.add_input(&format!("x{n}"), TensorType::new(*t, dims.clone())))
        .collect();
    for (n, body) in bodies.iter().enumerate() {
        let mut code = Code::new();
        body(&mut code);
        let value = graph.add(Map { body: code }.into(), &inputs, &Origin::new("map")).unwrap();
        graph.add_output(&format!("y{n}"), value);
    }
    graph
}

/// Every number of a half type is loaded and stored as it is, and f32 and f64 at, just below and just above the middle between two
/// of them go to the right one: on every level, bit by bit.
#[test]
fn halves_are_converted_exactly() {
    for half in [DType::F16, DType::BF16] {
        let numbers =
            Tensor::new(half, vec![65536], (0..=u16::MAX).flat_map(u16::to_le_bytes).collect::<Vec<u8>>()).unwrap();
        let values = numbers.to_f64().unwrap();
        let mut between: Vec<f64> = Vec::new();
        for pair in values.windows(2).filter(|p| p[0].is_finite()) {
            // The next number after the largest would be as far away as the one before.
            let next = if pair[1].is_finite() { pair[1] } else { 2.0 * pair[0] - values[values.len() / 2 - 1] };
            let middle = pair[0] + (next - pair[0]) / 2.0;
            between.extend([
                middle,
                middle * (1.0 - 1e-12),
                middle * (1.0 + 1e-12),
                middle * 1.00001,
                middle * 0.99999,
            ]);
        }
        between.extend([f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 65519.0, 65520.0, 1e30, -1e300, 1e-30, -0.0]);
        let n = between.len();
        let doubles =
            Tensor::new(DType::F64, vec![n], between.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>());
        let singles: Vec<u8> = between.iter().flat_map(|v| (*v as f32).to_le_bytes()).collect();
        let singles = Tensor::new(DType::F32, vec![n], singles).unwrap();
        let same = |n: usize, expected: &Tensor, found: &Tensor| {
            let d = compare::difference(expected, found);
            (!d.within(0.0)).then(|| format!("{half}, output {n}: {d}"))
        };
        let narrow = |from: DType| {
            move |code: &mut Code| {
                let x = code.arg(0, from);
                let y = code.cast(half, x).unwrap();
                code.set_result(y);
            }
        };
        let own = elementwise(
            &[half],
            65536,
            &[
                &narrow(half),
                &|code| {
                    let x = code.arg(0, half);
                    let y = code.cast(DType::F32, x).unwrap();
                    code.set_result(y);
                },
                &|code| {
                    let x = code.arg(0, half);
                    let y = code.binary(BinaryOp::Add, x, x).unwrap();
                    code.set_result(y);
                },
            ],
        );
        let of_singles = elementwise(&[DType::F32], n, &[&narrow(DType::F32)]);
        let of_doubles = elementwise(&[DType::F64], n, &[&narrow(DType::F64)]);
        for (graph, input) in [(own, numbers), (of_singles, singles), (of_doubles, doubles.unwrap())] {
            cross::check(&graph, &[vec![input]], &[Way::Levels], &same).unwrap_or_else(|e| panic!("{e}"));
        }
    }
}

/// A level whose own products a graph does not have is not made for it: its instructions for pairs of bf16 take subnormal numbers
/// as 0, which conversions to bf16 may not. (Found by random graphs on a machine with AMX.)
#[test]
fn levels_without_products_of_their_own_are_not_made() {
    let convert = |code: &mut Code| {
        let x = code.arg(0, DType::F32);
        let y = code.cast(DType::BF16, x).unwrap();
        code.set_result(y);
    };
    let graph = elementwise(&[DType::F32], 64, &[&convert]);
    let v4 = [CpuLevel::X86_64V4Vnni, CpuLevel::X86_64V4Bf16, CpuLevel::X86_64V4Amx]
        .map(|level| (level, CpuLevel::X86_64V4));
    for (level, base) in [(CpuLevel::X86_64V3Vnni, CpuLevel::X86_64V3)].into_iter().chain(v4) {
        if !kiln::default_levels().contains(&level) {
            continue;
        }
        let options = Options { levels: vec![level], ..Options::default() };
        let compiled = kiln::compile_graph(graph.clone(), &options, &mut kiln::Silent).unwrap();
        let made: Vec<CpuLevel> = compiled.code.iter().map(|code| code.level).collect();
        assert_eq!(made, [base], "asked for {level}");
    }
}

/// Rows of 15 floats lie at addresses that 16 does not divide, where instructions of the oldest level may not read memory: each
/// comparison of rows with one row, on every level. (Found by random graph 7479.)
#[test]
fn comparisons_read_from_any_address() {
    let comparisons = [BinaryOp::Eq, BinaryOp::Ne, BinaryOp::Lt, BinaryOp::Le, BinaryOp::Gt, BinaryOp::Ge];
    for dtype in [DType::F32, DType::F64] {
        let mut graph = Graph::new("comparisons");
        let row = graph.add_input("row", TensorType::new(dtype, vec![1.into(), 15.into()]));
        let rows = graph.add_input("rows", TensorType::new(dtype, vec![7.into(), 15.into()]));
        for (n, op) in comparisons.into_iter().enumerate() {
            for (side, operands) in [[row, rows], [rows, row]].into_iter().enumerate() {
                let mut body = Code::new();
                let (a, b) = (body.arg(0, dtype), body.arg(1, dtype));
                let chosen = body.binary(op, a, b).and_then(|c| body.select(c, a, b)).unwrap();
                body.set_result(chosen);
                let value = graph.add(Map { body }.into(), &operands, &Origin::new("map")).unwrap();
                graph.add_output(&format!("y{n}{side}"), value);
            }
        }
        let numbers = |count: usize| {
            let values = (0..count).map(|k| (k * 7 % 5) as f64);
            let bytes: Vec<u8> = match dtype {
                DType::F32 => values.flat_map(|v| (v as f32).to_le_bytes()).collect(),
                _ => values.flat_map(f64::to_le_bytes).collect(),
            };
            bytes
        };
        let tensor = |rows: usize| Tensor::new(dtype, vec![rows, 15], numbers(15 * rows)).unwrap();
        let same = |n: usize, expected: &Tensor, found: &Tensor| {
            let d = compare::difference(expected, found);
            (!d.within(0.0)).then(|| format!("output {n}: {d}"))
        };
        cross::check(&graph, &[vec![tensor(1), tensor(7)]], &[Way::Levels], &same).unwrap_or_else(|e| panic!("{e}"));
    }
}

/// Scatters of every combination, type and form of indices give the interpreter's bits in every way, and refuse what it refuses.
#[test]
fn scatters_are_kernels() {
    let mut random = Random::new(7);
    let exact = |n: usize, expected: &Tensor, found: &Tensor| {
        let d = compare::difference(expected, found);
        (!d.within(0.0)).then(|| format!("output {n}: {d}"))
    };
    for round in 0..60 {
        let dtype = *random.pick(&[DType::F32, DType::F32, DType::I64, DType::F16, DType::U8, DType::Bool, DType::F64]);
        let combine = *random.pick(&["replace", "add", "mul", "max", "min"]);
        let number = *random.pick(&[DType::I64, DType::I32]);
        let dims: Vec<usize> = (0..3).map(|n| *random.pick(if n == 2 { &[1, 3, 70] } else { &[1, 2, 9] })).collect();
        let (axis, count) = (random.below(3), random.below(12));
        let mut graph = Graph::new("scatter");
        let symbol = Symbol::new("updates");
        graph.symbols = Ranges::from([(symbol.clone(), (0, 1000))]);
        let given = |dims: &[usize]| dims.iter().map(|&d| Expr::from(d)).collect::<Vec<_>>();
        let data = graph.add_input("data", TensorType::new(dtype, given(&dims)));
        let along = |dims: &[usize], n: usize| {
            let mut dims = given(dims);
            dims[n] = Expr::from(&symbol);
            dims
        };
        let mut attributes = Attributes::new().with("combine", combine);
        let (indices, places, updates, tensor_dims) = if round % 3 == 0 {
            // `axis` is how many components an index has, less one.
            let places = vec![Expr::from(&symbol), Expr::from(axis + 1)];
            let updates: Vec<Expr> = [Expr::from(&symbol)].into_iter().chain(given(&dims[axis + 1..])).collect();
            let shape: Vec<usize> = [count].into_iter().chain(dims[axis + 1..].iter().copied()).collect();
            (graph.add_input("places", TensorType::new(number, places)), vec![count, axis + 1], updates, shape)
        } else {
            attributes = attributes.with("axis", axis);
            let mut shape = dims.clone();
            shape[axis] = count;
            let mut places = shape.clone();
            if round % 3 == 1 {
                places = vec![1; 3];
                places[axis] = count;
            }
            let input = graph.add_input("places", TensorType::new(number, along(&places, axis)));
            let dims = along(&shape, axis);
            let indices = graph.add(Broadcast { dims: dims.clone() }.into(), &[input], &Origin::new("expand")).unwrap();
            (indices, places, dims, shape)
        };
        let updates = graph.add_input("updates", TensorType::new(dtype, updates));
        let function = if round % 3 == 0 { "scatter_nd" } else { "scatter_elements" };
        let scatter = Host::new(function, attributes).unwrap();
        let result = graph.add(scatter.into(), &[data, indices, updates], &Origin::new("Scatter_1")).unwrap();
        graph.add_output("y", result);
        let mut numbers = |dtype: DType, dims: &[usize], limits: &dyn Fn(usize) -> i64| {
            let mut bytes = Vec::new();
            for n in 0..dims.iter().product() {
                let limit = limits(n);
                let value = random.below(2 * limit as usize) as i64 - limit;
                kiln::ir::Constant::int(dtype, value).store(&mut bytes);
            }
            Tensor::new(dtype, dims.to_vec(), bytes).unwrap()
        };
        let small = |_: usize| 4;
        // One set of five has an index that is out of range.
        let beyond = i64::from(round % 5 == 4);
        let limit = |n: usize| if function == "scatter_nd" { dims[n % (axis + 1)] } else { dims[axis] } as i64 + beyond;
        let inputs =
            vec![numbers(dtype, &dims, &small), numbers(number, &places, &limit), numbers(dtype, &tensor_dims, &small)];
        if let Err(e) = cross::check(&graph, &[inputs], Way::ALL, &exact) {
            panic!("round {round}: {e}\n{graph}");
        }
        let compiled = kiln::compile_graph(graph, &kiln::Options::default(), &mut kiln::observe::Silent).unwrap();
        assert!(compiled.plan.steps.iter().all(|s| !matches!(s, Step::Host { .. })), "round {round} runs on the host");
    }
}

/// A graph over inputs alone, in every way.
fn in_every_way(text: &str) {
    in_every_way_at(text, &[&[]]);
}

/// The same with free dims, of which it gets values.
fn in_every_way_at(text: &str, sizes: &[&[(&str, i64)]]) {
    let graph = Graph::parse(&format!("graph \"fixed\" {{\n{text}\n}}"), &[]).unwrap_or_else(|e| panic!("{e}"));
    let inputs = |sizes: &&[(&str, i64)]| -> Vec<Tensor> {
        let value = |s: &Symbol| sizes.iter().find(|(name, _)| *name == s.name()).map(|&(_, value)| value);
        let input = |(n, &v): (usize, &_)| {
            let dims = graph.ty(v).dims.iter();
            let shape: Vec<usize> = dims.map(|d| d.eval(&value).unwrap().try_into().unwrap()).collect();
            let mut random = Random::new(n as u64);
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| random.unit() as f32 - 0.5).collect();
            Tensor::from_f32(&shape, &values).unwrap()
        };
        graph.inputs.iter().enumerate().map(input).collect()
    };
    let sets: Vec<Vec<Tensor>> = sizes.iter().map(inputs).collect();
    let ways = [Way::Tiles, Way::Levels, Way::Cuts, Way::File];
    cross::check(&graph, &sets, &ways, &cross::within_tolerance).unwrap_or_else(|e| panic!("{e}\n{graph}"));
}

#[test]
fn attention_in_one_kernel_and_rows_moved_apart() {
    // Blocks of 13 and 12 queries, 300 keys, with the frame of more than a page that this takes; layers whose rows have 4,096 bytes.
    let attention = |queries: usize, keys: usize, head: usize| {
        format!(
            "input %0 : f32[{queries}, 2, {head}]\n input %1 : f32[{keys}, 2, {head}]\n input %2 : f32[{keys}, 2, {head}]
             %3 = contract(%0, %1) lhs = \"mhd\", rhs = \"nhd\", out = \"hmn\" : f32[2, {queries}, {keys}]
             %4 = map(%3) body = {{ mul(a0, 9.0f32) }} : f32[2, {queries}, {keys}]
             %5 = softmax(%4) axis = 2, log = false : f32[2, {queries}, {keys}]
             %6 = contract(%5, %2) lhs = \"hmn\", rhs = \"nhd\", out = \"mhd\" : f32[{queries}, 2, {head}]\n output %6 \"y\""
        )
    };
    in_every_way(&attention(38, 300, 40));
    in_every_way(&attention(17, 1100, 16));
    in_every_way(
        "input %0 : f32[15, 8]\n input %1 : f32[8, 1024]\n input %2 : f32[1024, 40]
         %3 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[15, 1024]
         %4 = map(%3) body = { max(a0, 0.0f32) } : f32[15, 1024]
         %5 = contract(%4, %2) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[15, 40]\n output %5 \"y\"",
    );
}

#[test]
fn attention_over_a_free_number_of_keys() {
    // A mask that is added, and the same where shares that are no numbers are 0, over keys whose scores are hidden or not.
    let attention = |last: &str| {
        format!(
            "symbol b in 1..3\n symbol m in 1..4000\n symbol n in 1..4000
             input %0 : f32[b, 2, m, 24]\n input %1 : f32[b, 2, n, 24]\n input %2 : f32[b, 2, n, 24]\n input %3 : f32[b, 1, m, n]
             %4 = contract(%0, %1) lhs = \"bhmd\", rhs = \"bhnd\", out = \"bhmn\" : f32[b, 2, m, n]
             %5 = map(%4, %3) body = {{ add(mul(a0, 9.0f32), log(max(add(a1, 0.2f32), 0.0f32))) }} : f32[b, 2, m, n]
             %6 = softmax(%5) axis = 3, log = false : f32[b, 2, m, n]
             {last}
             %9 = contract(%7, %2) lhs = \"bhmn\", rhs = \"bhnd\", out = \"bmhd\" : f32[b, m, 2, 24]\n output %9 \"y\""
        )
    };
    let sizes: &[&[(&str, i64)]] = &[
        &[("b", 2), ("m", 1), ("n", 1)],
        &[("b", 1), ("m", 2), ("n", 5)],
        &[("b", 1), ("m", 15), ("n", 127)],
        &[("b", 2), ("m", 1), ("n", 129)],
        &[("b", 1), ("m", 29), ("n", 128)],
        &[("b", 1), ("m", 14), ("n", 1000)],
        &[("b", 1), ("m", 2), ("n", 1024)],
    ];
    in_every_way_at(&attention("%7 = map(%6) body = { a0 } : f32[b, 2, m, n]"), sizes);
    let or_zero = "%7 = map(%6) body = { select(ne(a0, a0), 0.0f32, a0) } : f32[b, 2, m, n]";
    in_every_way_at(&attention(or_zero), sizes);
}

#[test]
fn borders_of_every_type_of_float() {
    for dtype in ["f16", "bf16", "f32", "f64"] {
        in_every_way(&format!(
            "input %0 : f32[1, 5, 6, 64]
             %1 = map(%0) body = {{ to_{dtype}(a0) }} : {dtype}[1, 5, 6, 64]
             %2 = pad(%1) low = [0, 0, 2, 0], high = [0, 0, 3, 0], interior = [0, 0, 0, 0], value = 0.5{dtype} : {dtype}[1, 5, 11, 64]
             %3 = map(%2) body = {{ to_f32(a0) }} : f32[1, 5, 11, 64]\n output %2 \"y\"\n output %3 \"z\""
        ));
    }
}
