//! Random graphs in every way that Kiln has to run them. `KILN_GRAPHS` is how many (`FROM..TO` are the seeds themselves); without it
//! the ways that cost most take turns.

use kiln::compare;
use kiln::cross::{self, Way};
use kiln::ir::graph::Origin;
use kiln::ir::ops::Map;
use kiln::ir::scalar::{BinaryOp, Code};
use kiln::ir::{DType, Graph, Tensor, TensorType};
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
        let in_turn = [Way::RawTiles, Way::Unfused, Way::File][seed as usize % 3];
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
