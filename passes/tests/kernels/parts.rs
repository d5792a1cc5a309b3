//! Products of f32 as sums of products of bf16 by the unit for matrices: tile programs and vector programs beside sums in f64.

use kiln_ir::graph::Graph;
use kiln_ir::plan::{Place, Step};
use kiln_ir::tile::{self, TileProgram};
use kiln_ir::{Tensor, vector};
use kiln_passes::kernel::{Machine, Terms};
use kiln_passes::lower::{VectorTarget, lower};
use kiln_passes::pipeline::{Compiled, Precision, Target, optimise, schedule};
use kiln_passes::plan::weights_section;

const TARGET: VectorTarget = VectorTarget { bytes: 64, pairs: true, matrices: true, fused: true };

/// Seeded floats around 0, of some 20 binary places.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next() + next() * 1e-3).collect()
}

/// A product with an epilogue: `max(x w + bias, -1)`.
struct Case {
    rows: usize,
    places: usize,
    columns: usize,
    x: Vec<f32>,
    w: Vec<f32>,
    bias: Vec<f32>,
}

impl Case {
    fn new(rows: usize, places: usize, columns: usize) -> Case {
        let [x, w, bias] = [(rows * places, 1), (places * columns, 2), (columns, 3)].map(|(n, s)| numbers(n, s));
        Case { rows, places, columns, x, w, bias }
    }

    fn graph(&self) -> Graph {
        let Case { rows, places, columns, .. } = self;
        let text = format!(
            "graph \"parts\" {{ input %0 : f32[{rows}, {places}]\n const %1 : f32[{places}, {columns}] = data 0
             const %2 : f32[{columns}] = data 1
             %3 = contract(%0, %1) lhs = \"mk\", rhs = \"kn\", out = \"mn\" : f32[{rows}, {columns}]
             %4 = map(%3, %2) body = {{ max(add(a0, a1), -1.0f32) }} : f32[{rows}, {columns}]
             output %4 \"y\" }}"
        );
        let data = [Tensor::from_f32(&[*places, *columns], &self.w), Tensor::from_f32(&[*columns], &self.bias)];
        Graph::parse(&text, &data.map(Result::unwrap)).unwrap_or_else(|e| panic!("{e}\n{text}"))
    }

    /// The result in f64, and for each element the sum of its products' sizes.
    fn wanted(&self) -> Vec<(f64, f64)> {
        let mut wanted = Vec::new();
        for m in 0..self.rows {
            for n in 0..self.columns {
                let products = (0..self.places)
                    .map(|k| f64::from(self.x[m * self.places + k]) * f64::from(self.w[k * self.columns + n]));
                let (sum, size) = products.fold((0.0, 0.0), |(sum, size), p| (sum + p, size + p.abs()));
                wanted.push(((sum + f64::from(self.bias[n])).max(-1.0), size));
            }
        }
        wanted
    }

    /// Results of the tile program and of the vector program, with what was compiled.
    fn run(&self, terms: Option<Terms>) -> (Compiled, Vec<f32>, Vec<f32>) {
        let compiled = compiled(self.graph(), Machine { terms, ..Machine::amx() });
        let bytes: Vec<u8> = self.x.iter().flat_map(|x| x.to_le_bytes()).collect();
        let (tiles, vectors) = both(&compiled, &bytes);
        (compiled, tiles, vectors)
    }
}

fn compiled(graph: Graph, machine: Machine) -> Compiled {
    let graph = optimise(graph, Precision::F32, &mut |_, _, _| Ok(())).unwrap_or_else(|e| panic!("{e}"));
    let mut lowers = |program: &TileProgram, _: &_| match lower(program, TARGET, &[], &Default::default()) {
        Ok(vector) => vector.verify().map_err(|e| format!("{e:?}")),
        Err(e) => Err(e.to_string()),
    };
    let mut targets = [Target { machine, lowers: &mut lowers, chosen: None }];
    let compiled = schedule(&graph, &mut targets).unwrap_or_else(|e| panic!("{e}"));
    assert!(compiled.host_reasons.is_empty(), "{:?}", compiled.host_reasons);
    compiled
}

/// Runs the only kernel of a plan in the interpreters of tile and of vector programs.
fn both(compiled: &Compiled, x: &[u8]) -> (Vec<f32>, Vec<f32>) {
    let [program] = compiled.kernels[0].as_slice() else { panic!("{}", compiled.plan) };
    program.verify(&Default::default()).unwrap_or_else(|e| panic!("{e:?}\n{program}"));
    let text = program.to_string();
    assert_eq!(TileProgram::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}")).to_string(), text);
    let weights = weights_section(&compiled.weights, compiled.plan.weight_bytes);
    let [Step::Launch { arguments, .. }] = compiled.plan.steps.as_slice() else { panic!("{}", compiled.plan) };
    let buffers: Vec<Vec<u8>> = arguments
        .iter()
        .zip(program.arguments())
        .map(|(slot, buffer)| {
            let bytes = buffer.len.as_size().unwrap() * buffer.dtype.size();
            match compiled.plan.slots[*slot].place {
                Place::Weights(at) => weights[at as usize..at as usize + bytes].to_vec(),
                Place::Input(_) => x.to_vec(),
                Place::Output(_) => vec![0xee; bytes],
                other => panic!("{other:?}"),
            }
        })
        .collect();
    let count = program.programs().as_const().unwrap();
    let mut tiles = buffers.clone();
    tile::run(program, &mut tiles, &|_| None, 0..count).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let vector = lower(program, TARGET, &[], &Default::default()).unwrap_or_else(|e| panic!("{e}\n{program}"));
    let mut vectors = buffers.clone();
    // In two halves: a program knows nothing of the one before it.
    for (lo, hi) in [(0, count / 2), (count / 2, count)] {
        let mut views: Vec<&mut [u8]> = vectors.iter_mut().map(Vec::as_mut_slice).collect();
        assert_eq!(vector::run(&vector, &mut views, &[], lo, hi, true).unwrap_or_else(|e| panic!("{e}\n{vector}")), 0);
    }
    let floats = |bytes: &[u8]| bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (floats(tiles.last().unwrap()), floats(vectors.last().unwrap()))
}

fn by_unit(compiled: &Compiled) -> bool {
    compiled.kernels[0].iter().any(|k| k.to_string().contains("multiply products["))
}

/// Root of the mean square and greatest of the errors, relative to the largest result.
fn errors(wanted: &[(f64, f64)], found: &[f32]) -> (f64, f64) {
    let largest = wanted.iter().fold(0.0f64, |a, (b, _)| a.max(b.abs()));
    let all = wanted.iter().zip(found).map(|((w, _), f)| (w - f64::from(*f)).abs() / largest);
    let (sum, most) = all.fold((0.0, 0.0f64), |(sum, most), e| (sum + e * e, most.max(e)));
    ((sum / wanted.len() as f64).sqrt(), most)
}

/// Sizes that blocks, panels and registers do not divide; folds that are cut in stretches and have runs of other lengths than 16.
#[test]
fn sums_of_products_of_parts_are_products() {
    for (rows, places, columns) in [(64, 64, 64), (67, 96, 100), (130, 416, 70), (65, 72, 65)] {
        let case = Case::new(rows, places, columns);
        let wanted = case.wanted();
        let (whole, plain, _) = case.run(None);
        assert!(!by_unit(&whole));
        let (plain, _) = errors(&wanted, &plain);
        for (terms, bound) in [(Terms::Six, 2.0 * plain.max(3e-8)), (Terms::Three, 1.5e-6)] {
            let (c, tiles, vectors) = case.run(Some(terms));
            assert!(by_unit(&c), "{rows} by {places} by {columns}\n{}", c.kernels[0][0]);
            for found in [tiles, vectors] {
                let (rms, most) = errors(&wanted, &found);
                println!(
                    "{rows} by {places} by {columns}, {terms:?}: rms {rms:.2e}, greatest {most:.2e}; whole {plain:.2e}"
                );
                assert!(
                    rms <= bound && most <= 12.0 * bound,
                    "{rows} by {places} by {columns}, {terms:?}: {rms} {most}, plain {plain}"
                );
            }
        }
    }
}

/// Whether two results are the same, bit by bit but for what a number that is none says.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// What has no parts is multiplied by multiply-adds, in the very order of the kernel without parts; other blocks of rows are not.
#[test]
fn activations_without_parts_are_multiplied_whole() {
    let (rows, places, columns) = (131, 96, 70);
    let tiny = f32::from_bits(1);
    let odd: &[&[f32]] = &[
        &[f32::INFINITY],
        &[f32::NEG_INFINITY, f32::INFINITY],
        &[f32::NAN],
        &[f32::MAX, -f32::MAX],
        &[3e38, 3e38, 3e38, 3e38],
        &[2f32.powi(64)],
        &[tiny],
        &[f32::MIN_POSITIVE / 2.0, -f32::MIN_POSITIVE],
        &[-(2f32.powi(-100)) * 0.999],
    ];
    for (n, values) in odd.iter().enumerate() {
        let mut case = Case::new(rows, places, columns);
        // Somewhere in the second block of rows, in the ends of runs and of the matrix, too.
        let places_of = [places * 64 + n, places * 76 + 15, places * 127 + 95, places * 86 + 16];
        // What is small shows only where all of a row is.
        let small = values.iter().all(|v| v.abs() < 1e-20);
        for (k, value) in values.iter().enumerate() {
            case.x[places_of[k]] = *value;
        }
        if small {
            case.x[places * 66..places * 67].iter_mut().for_each(|x| *x *= values[0].abs());
            case.bias = vec![0.0; columns];
        }
        let (_, want, _) = case.run(None);
        let (c, tiles, vectors) = case.run(Some(Terms::Six));
        assert!(by_unit(&c));
        let block = 64 * columns..128 * columns;
        for found in [tiles, vectors] {
            for at in block.clone() {
                assert!(same(want[at], found[at]), "{values:?}, element {at}: {} and {}", want[at], found[at]);
            }
            let ends = |v: &[f32]| [&v[..block.start], &v[block.end..]].concat();
            let differ = ends(&want).iter().zip(ends(&found)).filter(|(a, b)| !same(**a, *b)).count();
            assert!(differ > columns, "other blocks are multiplied in parts");
        }
    }
}

/// Zeros of both signs, and the least and greatest numbers with parts.
#[test]
fn the_ends_of_the_range_have_parts() {
    let mut case = Case::new(64, 64, 64);
    let largest = 2f32.powi(64) * (1.0 - f32::EPSILON / 2.0);
    for (at, value) in [(0, 0.0), (1, -0.0), (64 * 3, largest), (64 * 5, -largest), (64 * 5 + 17, 2f32.powi(-100))] {
        case.x[at] = value;
    }
    case.x[64 * 7..64 * 8].iter_mut().for_each(|x| *x *= 2f32.powi(-75));
    case.bias = vec![0.0; 64];
    let wanted = case.wanted();
    let (_, plain, _) = case.run(None);
    let (_, tiles, vectors) = case.run(Some(Terms::Six));
    for found in [&tiles, &vectors] {
        assert_ne!(plain, *found, "every number has parts");
        for (at, ((want, size), found)) in wanted.iter().zip(found).enumerate() {
            let error = (want - f64::from(*found)).abs();
            assert!(error <= 2e-6 * size, "element {at}: {want} and {found}");
        }
    }
}

/// Weights that have no parts stay whole, and so does all that reads them.
#[test]
fn weights_without_parts_stay_whole() {
    for odd in [f32::INFINITY, f32::NAN, 1e-31, -1e-40, 2f32.powi(32)] {
        let mut case = Case::new(64, 64, 64);
        case.w[77] = odd;
        let (_, want, _) = case.run(None);
        let (c, tiles, _) = case.run(Some(Terms::Six));
        assert!(!by_unit(&c), "{odd}");
        assert!(want.iter().zip(&tiles).all(|(a, b)| same(*a, *b)), "{odd}");
    }
    for fine in [0.0, -0.0, 1e-30, -4e9] {
        let mut case = Case::new(64, 64, 64);
        case.w[77] = fine;
        assert!(by_unit(&case.run(Some(Terms::Six)).0), "{fine}");
    }
}

/// Few rows, columns or places, and folds that two runs do not cover.
#[test]
fn shapes_that_do_not_pay_stay_whole() {
    for (rows, places, columns) in [(63, 64, 64), (64, 56, 64), (64, 64, 63), (64, 65, 64), (1, 128, 128)] {
        let (c, _, _) = Case::new(rows, places, columns).run(Some(Terms::Six));
        assert!(!by_unit(&c), "{rows} by {places} by {columns}");
    }
}

/// Convolutions: rows of pixels, a window's columns and channels as one fold, its rows around it; strides.
#[test]
fn convolutions_in_parts() {
    for (size, channels, window, stride) in [(20, 32, 3, 1), (41, 16, 3, 2), (10, 64, 1, 1)] {
        let out = (size - window) / stride + 1;
        let text = format!(
            "graph \"parts\" {{ input %0 : f32[1, {size}, {size}, {channels}]\n const %1 : f32[64, {channels}, {window}, {window}] = data 0
             %2 = transpose(%0) perm = [0, 3, 1, 2] : f32[1, {channels}, {size}, {size}]
             %3 = conv(%2, %1) strides = [{stride}, {stride}], dilations = [1, 1], groups = 1 : f32[1, 64, {out}, {out}]
             %4 = map(%3) body = {{ max(a0, 0.0f32) }} : f32[1, 64, {out}, {out}]
             %5 = reduce(%4) combine = max, axes = [3], keep = false : f32[1, 64, {out}]
             output %5 \"y\" }}"
        );
        let weights = Tensor::from_f32(&[64, channels, window, window], &numbers(64 * channels * window * window, 5));
        let graph = Graph::parse(&text, &[weights.unwrap()]).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let x = Tensor::from_f32(&[1, size, size, channels], &numbers(size * size * channels, 6)).unwrap();
        let want = kiln_ir::interp::eval_graph(&graph, std::slice::from_ref(&x), &Default::default()).unwrap();
        let c = compiled(graph, Machine { terms: Some(Terms::Six), ..Machine::amx() });
        assert!(by_unit(&c), "{size} {channels} {window}\n{}", c.plan);
        let weights = weights_section(&c.weights, c.plan.weight_bytes);
        let found = kiln_ir::plan::run(&c.plan, &c.kernels[0], &weights, &[x]).unwrap_or_else(|e| panic!("{e}"));
        let (want, found) = (want[0].to_f64().unwrap(), found[0].to_f32().unwrap());
        let wanted: Vec<(f64, f64)> = want.into_iter().map(|w| (w, 0.0)).collect();
        let (rms, most) = errors(&wanted, &found);
        assert!(rms < 2e-7 && most < 1e-6, "{size} {channels} {window}: {rms} {most}");
    }
}

/// A view of a constant is one node that uses it and part of two kernels: neither may change what the other reads.
#[test]
fn a_constant_that_two_kernels_read_through_a_view_stays_whole() {
    let text = "graph \"parts\" { input %0 : f32[2, 64, 512]\n input %1 : f32[2, 64, 512]\n const %2 : f32[1, 512, 1024] = data 0
         %3 = broadcast(%2) dims = [2, 512, 1024] : f32[2, 512, 1024]
         %4 = contract(%0, %3) lhs = \"bmk\", rhs = \"bkn\", out = \"bmn\" : f32[2, 64, 1024]
         %5 = contract(%1, %3) lhs = \"bmk\", rhs = \"bkn\", out = \"bmn\" : f32[2, 64, 1024]
         output %4 \"y\"\n output %5 \"z\" }";
    let weights = Tensor::from_f32(&[1, 512, 1024], &numbers(512 * 1024, 7)).unwrap();
    let graph = Graph::parse(text, &[weights]).unwrap_or_else(|e| panic!("{e}"));
    let c = compiled(graph, Machine { terms: Some(Terms::Six), ..Machine::amx() });
    assert!(!by_unit(&c), "{}", c.plan);
}
