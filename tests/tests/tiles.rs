//! Convolutions by tiles as machine code: random ones on every level, on one and two threads, and which precisions have them.

use kiln::cross::{self, Way};
use kiln::ir::{Graph, Tensor};
use kiln::{Options, Precision, Silent, compare, compile_graph};
use kiln_tests::graphs::Random;

fn numbers(shape: &[usize], random: &mut Random) -> Tensor {
    let values: Vec<f32> = (0..shape.iter().product()).map(|_: usize| random.unit() as f32 * 2.0 - 1.0).collect();
    Tensor::from_f32(shape, &values).unwrap()
}

/// A 3×3 convolution of a padded picture between two of 1×1, with bias and activation; and its input.
fn sample(
    [n, c, o, h, w]: [usize; 5],
    [top, bottom, left, right]: [usize; 4],
    random: &mut Random,
) -> (Graph, Vec<Tensor>) {
    let (gh, gw) = (h + 2 - top - bottom, w + 2 - left - right);
    let one = "strides = [1, 1], dilations = [1, 1], groups = 1";
    let text = format!(
        "graph \"tiles\" {{
         input %0 : f32[{n}, 4, {gh}, {gw}]
         const %1 : f32[{c}, 4, 1, 1] = data 0\n const %2 : f32[{o}, {c}, 3, 3] = data 1
         const %3 : f32[{o}, 1, 1] = data 2\n const %4 : f32[5, {o}, 1, 1] = data 3
         %5 = conv(%0, %1) {one} : f32[{n}, {c}, {gh}, {gw}]
         %6 = pad(%5) low = [0, 0, {top}, {left}], high = [0, 0, {bottom}, {right}], interior = [0, 0, 0, 0], value = 0.0f32 : f32[{n}, {c}, {}, {}]
         %7 = conv(%6, %2) {one} : f32[{n}, {o}, {h}, {w}]
         %8 = map(%7, %3) body = {{ max(add(a0, a1), -0.25f32) }} : f32[{n}, {o}, {h}, {w}]
         %9 = conv(%8, %4) {one} : f32[{n}, 5, {h}, {w}]
         output %9 \"y\" }}",
        h + 2,
        w + 2
    );
    let shapes = [vec![c, 4, 1, 1], vec![o, c, 3, 3], vec![o, 1, 1], vec![5, o, 1, 1]];
    let data: Vec<Tensor> = shapes.iter().map(|shape| numbers(shape, random)).collect();
    let graph = Graph::parse(&text, &data).unwrap_or_else(|e| panic!("{e}\n{text}"));
    (graph, vec![numbers(&[n, 4, gh, gw], random)])
}

fn tiled(graph: &Graph, options: &Options) -> usize {
    let compiled = compile_graph(graph.clone(), options, &mut Silent).unwrap();
    compiled.plan.kernels.iter().filter(|k| k.what.contains("tile_product")).count()
}

#[test]
fn random_convolutions_by_tiles_are_what_the_interpreter_makes_of_direct_ones() {
    for seed in 0..24 {
        let mut random = Random::new(seed);
        let channels = *random.pick(&[32, 33, 48, 64]);
        let outputs = *random.pick(&[32, 35, 45, 64]);
        let (h, w) = match seed % 6 {
            // One kernel makes the tiles and multiplies them.
            0 => (40 + random.below(8), 60 + random.below(8)),
            _ => (5 + random.below(9), 7 + random.below(9)),
        };
        let pads = [0; 4].map(|_: usize| random.below(3));
        let shape = [1 + random.below(2), channels, outputs, h, w];
        let (graph, inputs) = sample(shape, pads, &mut random);
        assert_eq!(tiled(&graph, &Options::default()), 1, "seed {seed}: {graph}");
        let judge = |_, expected: &_, found: &_| {
            let difference = compare::difference(expected, found);
            (!difference.within(2e-6)).then(|| difference.to_string())
        };
        let checked = cross::check(&graph, &[inputs], &[Way::Levels, Way::File], &judge);
        checked.unwrap_or_else(|finding| panic!("seed {seed}: {finding}\n{graph}"));
    }
}

#[test]
fn only_f32_has_tiles() {
    let (graph, _) = sample([1, 32, 32, 8, 8], [1; 4], &mut Random::new(0));
    for (precision, count) in
        [(Precision::F32, 1), (Precision::F32Fast, 1), (Precision::Strict, 0), (Precision::Bf16, 0)]
    {
        let options = Options { precision, ..Options::default() };
        assert_eq!(tiled(&graph, &options), count, "{precision:?}");
    }
}
