//! Layers and dropout against a transcription in plain loops.

use crate::check_close;
use kiln_frontend::builder::{Builder, Result, Value};
use kiln_frontend::nn::{
    Activation, Dropout, EncoderLayer, FeedForward, Heads, LayerNorm, Mask, MultiHead, MultiHeadNames, NormPlace,
    Parameters, Phase, Residual, Scope, WeightOrder,
};
use kiln_ir::interp::{Options, eval_graph};
use kiln_ir::{DType, Tensor};

const MODEL: usize = 6;
const INNER: usize = 5;
const TOKENS: usize = 4;
/// Values have another size than keys, and two query heads share one of keys.
const HEADS: Heads = Heads { queries: 4, keys: 2, key_size: 3, value_size: 5 };
const EPSILON: f64 = 1e-5;

/// The elements of a parameter.
fn elements(path: &str, count: usize) -> Vec<f32> {
    let start = path.bytes().fold(0u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b))) % 1000;
    (0..count).map(|n| (start as f32 + 0.7 * n as f32).sin() * 0.8).collect()
}

struct Sines;

impl Parameters for Sines {
    fn parameter<'g>(&self, builder: &'g Builder, path: &str, shape: &[usize]) -> Result<Value<'g>> {
        builder.floats(shape, &elements(path, shape.iter().product()))
    }

    fn has(&self, _: &str) -> bool {
        true
    }
}

type Rows = Vec<Vec<f64>>;

fn norm(x: &Rows, path: &str) -> Rows {
    let (scale, bias) = (elements(&format!("{path}.weight"), MODEL), elements(&format!("{path}.bias"), MODEL));
    let of_row = |row: &Vec<f64>| {
        let mean = row.iter().sum::<f64>() / MODEL as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / MODEL as f64;
        let parts = row.iter().zip(scale.iter().zip(&bias));
        parts.map(|(v, (s, b))| (v - mean) / (variance + EPSILON).sqrt() * f64::from(*s) + f64::from(*b)).collect()
    };
    x.iter().map(of_row).collect()
}

fn linear(x: &Rows, path: &str, to: usize) -> Rows {
    let from = x[0].len();
    let (w, b) = (elements(&format!("{path}.weight"), to * from), elements(&format!("{path}.bias"), to));
    let element = |row: &Vec<f64>, n: usize| {
        let product = row.iter().zip(&w[n * from..(n + 1) * from]).map(|(x, w)| x * f64::from(*w)).sum::<f64>();
        product + f64::from(b[n])
    };
    x.iter().map(|row| (0..to).map(|n| element(row, n)).collect()).collect()
}

/// Attention to tokens that are not after one's own.
fn attention(x: &Rows) -> Rows {
    let q = linear(x, "attn.q", HEADS.queries * HEADS.key_size);
    let (k, v) = (linear(x, "attn.k", HEADS.keys * HEADS.key_size), linear(x, "attn.v", HEADS.keys * HEADS.value_size));
    let mut joined = vec![vec![]; TOKENS];
    for (t, out) in joined.iter_mut().enumerate() {
        for h in 0..HEADS.queries {
            let of = h * HEADS.keys / HEADS.queries;
            let score = |s: usize| {
                let parts = 0..HEADS.key_size;
                let product = parts.map(|d| q[t][h * HEADS.key_size + d] * k[s][of * HEADS.key_size + d]).sum::<f64>();
                (product / (HEADS.key_size as f64).sqrt()).exp()
            };
            let all: Vec<f64> = (0..=t).map(score).collect();
            let sum: f64 = all.iter().sum();
            let value =
                |d: usize| all.iter().enumerate().map(|(s, w)| w / sum * v[s][of * HEADS.value_size + d]).sum::<f64>();
            out.extend((0..HEADS.value_size).map(value));
        }
    }
    linear(&joined, "attn.o", MODEL)
}

fn inner(x: &Rows) -> Rows {
    let mut made = linear(x, "up", INNER);
    made.iter_mut().flatten().for_each(|v| *v = v.max(0.0));
    linear(&made, "down", MODEL)
}

fn sum(a: &Rows, b: &Rows) -> Rows {
    a.iter().zip(b).map(|(a, b)| a.iter().zip(b).map(|(a, b)| a + b).collect()).collect()
}

#[test]
fn layers_with_norms_before_and_after() {
    let x: Vec<f32> = (0..TOKENS * MODEL).map(|n| (n as f32 * 1.3).cos()).collect();
    let rows: Rows = x.chunks(MODEL).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
    for norms in [NormPlace::Before, NormPlace::After] {
        let g = Builder::new("layer");
        let scope = Scope::new(&g, &Sines);
        let input = g.input("x", DType::F32, [1.into(), TOKENS.into(), MODEL.into()]).unwrap();
        let at = g.iota([TOKENS.into()], 0).unwrap();
        let visible = at.at_most(at.unsqueeze(1).unwrap()).unwrap();
        let names = MultiHeadNames { query: "q", key: "k", value: "v", output: "o" };
        let scale = 1.0 / (HEADS.key_size as f64).sqrt();
        let place = |name: &str| scope.enter(name);
        let inner_places = (&place("up"), &place("down"));
        let layer = EncoderLayer {
            attention: MultiHead::new(&place("attn"), names, MODEL, HEADS, true, scale).unwrap(),
            attention_norm: LayerNorm::new(&place("first"), MODEL, EPSILON).unwrap(),
            inner: FeedForward::new(inner_places, (MODEL, INNER), Activation::Relu, true, WeightOrder::OutIn).unwrap(),
            inner_norm: LayerNorm::new(&place("second"), MODEL, EPSILON).unwrap(),
            // What is dropped in training is not at inference.
            residual: Residual { norms, dropout: Some(Dropout::new(0.5, 1).unwrap()), phase: Phase::Inference },
        };
        let mask = Mask { visible, fill: f64::NEG_INFINITY };
        g.output("y", layer.apply(input, None, Some(mask)).unwrap().output).unwrap();
        let graph = g.finish().unwrap();
        let inputs = [Tensor::from_f32(&[1, TOKENS, MODEL], &x).unwrap()];
        let got = eval_graph(&graph, &inputs, &Options::default()).unwrap().remove(0).to_f32().unwrap();
        let want = match norms {
            NormPlace::Before => {
                let middle = sum(&rows, &attention(&norm(&rows, "first")));
                sum(&middle, &inner(&norm(&middle, "second")))
            }
            NormPlace::After => {
                let middle = norm(&sum(&rows, &attention(&rows)), "first");
                norm(&sum(&middle, &inner(&middle)), "second")
            }
        };
        let want: Vec<f32> = want.concat().into_iter().map(|v| v as f32).collect();
        check_close(&format!("{norms:?}"), &got, &want, 2e-6);
    }
}

/// What is left of ones.
fn dropped(seed: u32) -> Vec<f32> {
    let g = Builder::new("dropout");
    let rows = g.symbol("rows", 1..=4096).unwrap();
    let x = g.input("x", DType::F32, [rows, 64.into()]).unwrap();
    g.output("y", Dropout::new(0.25, seed).unwrap().apply(x, Phase::Training).unwrap()).unwrap();
    let ones = Tensor::from_f32(&[512, 64], &vec![1.0; 512 * 64]).unwrap();
    eval_graph(&g.finish().unwrap(), &[ones], &Options::default()).unwrap().remove(0).to_f32().unwrap()
}

#[test]
fn dropout_drops_as_often_as_it_says_by_its_seed() {
    let (first, second) = (dropped(7), dropped(8));
    assert_eq!(first, dropped(7));
    let share = |values: &[f32]| values.iter().filter(|v| **v == 0.0).count() as f64 / values.len() as f64;
    // Six standard deviations of 32,768 draws.
    assert!((share(&first) - 0.25).abs() < 0.0144 && (share(&second) - 0.25).abs() < 0.0144);
    assert!(first.iter().all(|v| *v == 0.0 || *v == 1.0 / 0.75));
    let both = first.iter().zip(&second).filter(|(a, b)| **a == 0.0 && **b == 0.0).count() as f64;
    assert!((both / first.len() as f64 - 0.0625).abs() < 0.0081, "seeds agree on {both}");
    assert!(Dropout::new(1.0, 0).is_err() && Dropout::new(f64::NAN, 0).is_err());
}
