//! Convolutions by tiles: whole graphs beside sums in f64 that are written down here once more.

use super::{by_tiles, random};
use kiln_ir::graph::Graph;
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Tensor};
use kiln_passes::kernel::Machine;
use kiln_passes::pipeline::{Compiled, Precision, Target, optimise, schedule};
use kiln_passes::rewrite::convolutions_by_tiles;

/// A convolution of a padded picture between others, with bias, another addend and an activation.
struct Case {
    pictures: usize,
    channels: usize,
    outputs: usize,
    /// Of the result.
    height: usize,
    width: usize,
    /// Before and after the rows, before and after the columns.
    pads: [usize; 4],
    /// A border around the result.
    border: bool,
}

const CASE: Case = Case { pictures: 1, channels: 32, outputs: 32, height: 8, width: 8, pads: [1; 4], border: false };

/// Channels of the picture that the caller gives, and of the result: products of one pixel go before and after.
const FEW: usize = 3;

impl Case {
    fn constants(&self) -> Vec<Tensor> {
        let Case { channels, outputs, .. } = *self;
        let shapes =
            [vec![channels, FEW, 1, 1], vec![outputs, channels, 3, 3], vec![outputs, 1, 1], vec![FEW, outputs, 1, 1]];
        shapes.iter().enumerate().map(|(n, s)| random(DType::F32, s, 50 + n as u64)).collect()
    }

    /// Height and width of the picture before it is padded.
    fn given(&self) -> [usize; 2] {
        let [top, bottom, left, right] = self.pads;
        [self.height + 2 - top - bottom, self.width + 2 - left - right]
    }

    fn text(&self) -> String {
        let Case {
            pictures: n, channels: c, outputs: o, height: h, width: w, pads: [top, bottom, left, right], ..
        } = *self;
        let [gh, gw] = self.given();
        let one = "strides = [1, 1], dilations = [1, 1], groups = 1";
        let none = "interior = [0, 0, 0, 0], value = 0.0f32";
        let edge = usize::from(self.border);
        let (bh, bw) = (h + 2 * edge, w + 2 * edge);
        format!(
            "graph \"tiles\" {{
             input %0 : f32[{n}, {FEW}, {gh}, {gw}]\n input %1 : f32[{n}, {o}, {h}, {w}]
             const %2 : f32[{c}, {FEW}, 1, 1] = data 0\n const %3 : f32[{o}, {c}, 3, 3] = data 1
             const %4 : f32[{o}, 1, 1] = data 2\n const %5 : f32[{FEW}, {o}, 1, 1] = data 3
             %6 = conv(%0, %2) {one} : f32[{n}, {c}, {gh}, {gw}]
             %7 = pad(%6) low = [0, 0, {top}, {left}], high = [0, 0, {bottom}, {right}], {none} : f32[{n}, {c}, {}, {}]
             %8 = conv(%7, %3) {one} : f32[{n}, {o}, {h}, {w}]
             %9 = map(%8, %4, %1) body = {{ max(add(add(a0, a1), a2), -0.5f32) }} : f32[{n}, {o}, {h}, {w}]
             %10 = pad(%9) low = [0, 0, {edge}, {edge}], high = [0, 0, {edge}, {edge}], {none} : f32[{n}, {o}, {bh}, {bw}]
             %11 = conv(%10, %5) {one} : f32[{n}, {FEW}, {bh}, {bw}]
             output %11 \"y\" }}",
            h + 2,
            w + 2
        )
    }

    fn inputs(&self) -> Vec<Tensor> {
        let [gh, gw] = self.given();
        let shapes = [[self.pictures, FEW, gh, gw], [self.pictures, self.outputs, self.height, self.width]];
        shapes.iter().enumerate().map(|(n, s)| random(DType::F32, s, n as u64)).collect()
    }

    /// The result in f64.
    fn wanted(&self) -> Vec<f64> {
        let Case { pictures, channels, outputs, height, width, pads: [top, _, left, _], .. } = *self;
        let [gh, gw] = self.given();
        let inputs: Vec<Vec<f64>> = self.inputs().iter().map(|t| t.to_f64().unwrap()).collect();
        let [first, weights, bias, last] =
            <[Vec<f64>; 4]>::try_from(self.constants().iter().map(|t| t.to_f64().unwrap()).collect::<Vec<_>>())
                .unwrap();
        let edge = usize::from(self.border);
        let mut wanted = Vec::new();
        for n in 0..pictures {
            let pixel = |c: usize, y: usize, x: usize| -> f64 {
                let (Some(y), Some(x)) = (y.checked_sub(top), x.checked_sub(left)) else { return 0.0 };
                if y >= gh || x >= gw {
                    return 0.0;
                }
                (0..FEW).map(|f| inputs[0][((n * FEW + f) * gh + y) * gw + x] * first[c * FEW + f]).sum()
            };
            let picture: Vec<f64> = (0..channels)
                .flat_map(|c| (0..height + 2).flat_map(move |y| (0..width + 2).map(move |x| (c, y, x))))
                .map(|(c, y, x)| pixel(c, y, x))
                .collect();
            let at = |c: usize, y: usize, x: usize| picture[(c * (height + 2) + y) * (width + 2) + x];
            let mut results = vec![0.0; outputs * height * width];
            for (place, result) in results.iter_mut().enumerate() {
                let (o, y, x) = (place / (height * width), place / width % height, place % width);
                let mut sum = 0.0;
                for c in 0..channels {
                    for k in 0..9 {
                        sum += at(c, y + k / 3, x + k % 3) * weights[(o * channels + c) * 9 + k];
                    }
                }
                *result = f64::max(sum + bias[o] + inputs[1][n * outputs * height * width + place], -0.5);
            }
            for f in 0..FEW {
                for y in 0..height + 2 * edge {
                    for x in 0..width + 2 * edge {
                        let inside = (edge..height + edge).contains(&y) && (edge..width + edge).contains(&x);
                        let of = |o: usize| results[(o * height + y - edge) * width + x - edge] * last[f * outputs + o];
                        wanted.push(if inside { (0..outputs).map(of).sum() } else { 0.0 });
                    }
                }
            }
        }
        wanted
    }

    /// Compiles for every kind of machine, and compares what the graph with tiles means and what its kernels make with the sums.
    fn check(&self) -> Compiled {
        let text = self.text();
        let graph = Graph::parse(&text, &self.constants()).unwrap_or_else(|e| panic!("{e}\n{text}"));
        let direct = optimise(graph, Precision::F32, &mut |_, _, _| Ok(())).unwrap();
        let graph = convolutions_by_tiles(&direct).unwrap();
        assert!(graph.verify().is_empty(), "{graph}");
        let wanted = self.wanted();
        let largest = wanted.iter().fold(0f64, |a, b| a.max(b.abs()));
        let compare = |found: &Tensor, by: &str| {
            for (n, (a, b)) in wanted.iter().zip(found.to_f64().unwrap()).enumerate() {
                assert!((a - b).abs() <= 1e-6 * largest, "{by}: element {n}: {a} expected, {b} found\n{text}");
            }
        };
        let inputs = self.inputs();
        // The graph interpreter takes long for many pixels.
        if self.height * self.width < 400 {
            compare(&eval_graph(&graph, &inputs, &Options::default()).unwrap()[0], "the graph");
        }
        let machines = [Machine::avx512(), Machine::avx2(), Machine::narrow(), Machine::amx()];
        let mut lowers = [|_: &_, _: &_| Ok(()), |_: &_, _: &_| Ok(()), |_: &_, _: &_| Ok(()), |_: &_, _: &_| Ok(())];
        let targets = machines.iter().zip(&mut lowers);
        let mut targets: Vec<Target<'_>> =
            targets.map(|(m, lowers)| Target { machine: m.clone(), lowers, chosen: None }).collect();
        let compiled = schedule(&graph, &mut targets).unwrap_or_else(|e| panic!("{e}\n{text}"));
        for target in 0..machines.len() {
            compare(&by_tiles(&compiled, target, &inputs)[0], &format!("{:?}", machines[target]));
        }
        compiled
    }

    /// The same where tiles are taken and every kernel has the form that is meant for it.
    fn check_tiled(&self) {
        let compiled = self.check();
        let made = |what: &str| compiled.plan.kernels.iter().position(|k| k.what.starts_with(what));
        let (tiles, product) = (made("window_tiles").unwrap(), made("tile_product").unwrap());
        for kernels in &compiled.kernels {
            // One part, or one for whole vectors and what they leave, whose programs make all 16 numbers.
            assert!(kernels[tiles].parts.len() == 1, "{}", kernels[tiles]);
            assert!(kernels[product].buffers.iter().any(|b| b.local && b.name == "products"), "{}", kernels[product]);
        }
        assert!(!compiled.plan.kernels.iter().any(|k| k.what.starts_with("conv+map+map")), "{}", compiled.plan);
    }

    /// The same where one kernel makes the tiles and their products.
    fn check_joined(&self) {
        let compiled = self.check();
        let whats: Vec<&str> = compiled.plan.kernels.iter().map(|k| k.what.as_str()).collect();
        let at = whats.iter().position(|w| w.starts_with("window_tiles+tile_product"));
        let at = at.unwrap_or_else(|| panic!("{whats:?}"));
        for kernels in &compiled.kernels {
            let local = |name: &str| kernels[at].buffers.iter().any(|b| b.local && b.name == name);
            assert!(local("tiles") && local("products"), "{}", kernels[at]);
            let bytes = kernels[at].buffers.iter().filter(|b| b.local).map(|b| b.len.as_size().unwrap() * 4);
            assert!(bytes.sum::<usize>() <= 200 << 10, "{}", kernels[at]);
        }
    }
}

#[test]
fn many_tiles_are_made_where_they_are_multiplied() {
    for (height, width, border) in [(45, 47, false), (46, 48, true), (3, 1100, false)] {
        Case { height, width, border, ..CASE }.check_joined();
    }
    Case { pictures: 2, height: 24, width: 46, outputs: 45, ..CASE }.check_joined();
    Case { channels: 96, outputs: 33, height: 27, width: 27, ..CASE }.check_joined();
    // Their weights would be read again and again.
    Case { channels: 160, outputs: 160, height: 21, width: 21, ..CASE }.check_tiled();
}

#[test]
fn tiles_of_even_and_odd_pictures() {
    for (height, width) in [(8, 8), (7, 7), (7, 12), (13, 8), (2, 25), (1, 24), (24, 1), (3, 131), (9, 121)] {
        Case { height, width, ..CASE }.check_tiled();
    }
}

#[test]
fn tiles_of_any_number_of_channels() {
    for (channels, outputs) in [(16, 16), (33, 32), (32, 37), (45, 51), (64, 64), (250, 33), (40, 100)] {
        Case { channels, outputs, height: 7, width: 9, ..CASE }.check_tiled();
    }
}

#[test]
fn borders_before_and_after_and_several_pictures() {
    for pads in [[0; 4], [1, 1, 0, 0], [2, 0, 1, 2], [0, 1, 2, 0], [2; 4]] {
        for (height, width) in [(9, 10), (6, 7)] {
            Case { pads, height, width, ..CASE }.check_tiled();
        }
    }
    Case { pictures: 3, height: 5, width: 6, ..CASE }.check_tiled();
    // The result is stored within the border of what comes next.
    for (height, width) in [(5, 12), (4, 13), (6, 124)] {
        Case { border: true, height, width, ..CASE }.check_tiled();
    }
}

#[test]
fn what_does_not_pay_stays_direct() {
    for case in [Case { channels: 15, ..CASE }, Case { outputs: 15, ..CASE }, Case { height: 4, width: 4, ..CASE }] {
        let compiled = case.check();
        assert!(!compiled.plan.kernels.iter().any(|k| k.what.contains("tile")), "{}", compiled.plan);
    }
}
