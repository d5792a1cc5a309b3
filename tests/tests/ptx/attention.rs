//! Attention in one kernel: graphs of every kind of it, in each precision, in the interpreter of PTX.

use super::models::{assembled, both_ways, close, expected, graph};
use kiln::gpu::{self, Precision};
use kiln_ir::Graph;

/// Queries, keys and values in heads; what becomes of the scores.
pub(super) fn plain(batch: i64, queries: i64, keys: i64, depth: i64, value: i64) -> Graph {
    let made = graph(&[&[batch, 2, queries, depth], &[batch, 2, keys, depth], &[batch, 2, keys, value]], |g, x| {
        let scores = x[0].matmul(x[1].transpose(&[0, 1, 3, 2])?)?.scale(1.0 / (depth as f64).sqrt())?;
        g.output("y", scores.softmax(-1)?.matmul(x[2])?)
    });
    made.expect("a graph")
}

/// The same with a mask that is added, and the heads side by side in memory before and after.
pub(super) fn masked(queries: i64, keys: i64) -> Graph {
    let made = graph(&[&[1, queries, 96], &[1, keys, 96], &[1, keys, 96], &[1, 1, queries, keys]], |g, x| {
        let heads = |n: usize, len: i64| x[n].reshape([1, len, 3, 32].map(Into::into))?.transpose(&[0, 2, 1, 3]);
        let (q, k, v) = (heads(0, queries)?, heads(1, keys)?, heads(2, keys)?);
        let mask = x[3].scale(8.0)?;
        let weights = q.matmul(k.transpose(&[0, 1, 3, 2])?)?.scale(0.2)?.add(mask)?.softmax(-1)?;
        let joined = weights.matmul(v)?.transpose(&[0, 2, 1, 3])?.reshape([1, queries, 96].map(Into::into))?;
        g.output("y", joined.relu()?)
    });
    made.expect("a graph")
}

/// Causal, with three query heads to a head of keys, and new tokens after a past.
pub(super) fn grouped(tokens: i64, keys: i64) -> Graph {
    let made = graph(&[&[1, tokens, 2, 3, 64], &[1, keys, 2, 64], &[1, keys, 2, 64]], |g, x| {
        let scores = x[0].contract(x[1], "bthgd,bshd->bhgts")?.scale(0.125)?;
        let dims = |axis: usize, n: i64| (0..5).map(move |a| if a == axis { n } else { 1 }.into());
        let (query, key) = (g.iota(dims(3, tokens), 3)?, g.iota(dims(4, keys), 4)?);
        let past = g.constant(kiln_ir::Tensor::from_i64(&[1, 1, 1, 1, 1], &[keys - tokens]).expect("a number"));
        let visible = key.at_most(query.add(past)?)?;
        let weights = scores.where_or(visible, f64::NEG_INFINITY)?.softmax(-1)?;
        g.output("y", weights.contract(x[2], "bhgts,bshd->bthgd")?)
    });
    made.expect("a graph")
}

/// Causal by a constant that is added, of which `hidden` hides keys more than `past` beyond the query.
fn causal(tokens: i64, keys: i64, past: i64, hidden: f32) -> Graph {
    let made = graph(&[&[2, 3, tokens, 32], &[2, 3, keys, 32], &[2, 3, keys, 32]], |g, x| {
        let of = |n: i64| if n % keys > n / keys + past { hidden } else { 0.0 };
        let mask: Vec<f32> = (0..tokens * keys).map(of).collect();
        let mask = g.floats(&[1, 1, tokens as usize, keys as usize], &mask)?;
        let scores = x[0].matmul(x[1].transpose(&[0, 1, 3, 2])?)?.scale(0.2)?.add(mask)?;
        g.output("y", scores.softmax(-1)?.matmul(x[2])?)
    });
    made.expect("a graph")
}

/// Tiles of keys that no row of a tile of queries sees are not visited, and a mask is looked at only where it hides something.
#[test]
fn hidden_tiles_of_keys_are_left_out() {
    for (name, graph, skips) in [
        ("square", causal(160, 160, 0, f32::NEG_INFINITY), true),
        ("a low number", causal(150, 150, 0, -1e9), true),
        ("after a past", causal(70, 270, 130, f32::NEG_INFINITY), true),
        ("a number that scores may make up for", causal(150, 150, 0, -1e4), false),
        ("by numbers", grouped(96, 96), true),
        ("by numbers after a past", grouped(100, 190), true),
    ] {
        let (inputs, want) = expected(name, &graph);
        for (precision, tolerance) in [(Precision::F32, 1e-5), (Precision::F16, 2e-3)] {
            let compiled = assembled(name, graph.clone(), precision);
            let loops = |k: &gpu::Kernel| k.tile.to_string().matches("for k").count();
            let most = compiled.kernels.iter().map(loops).max();
            assert_eq!(most, Some(if skips { 2 } else { 1 }), "{name} in {precision:?}");
            let name = format!("{name} in {precision:?}");
            both_ways(&name, &compiled, &inputs, 5, &|run, outcome| {
                close(run, &want, outcome, (tolerance, 2.0 * tolerance))
            });
        }
    }
}

#[test]
fn attention_is_one_kernel() {
    let graphs = [
        ("whole tiles", plain(2, 64, 128, 64, 64)),
        ("ragged", plain(1, 37, 71, 40, 24)),
        ("long queries", plain(1, 70, 66, 128, 128)),
        ("one tile", plain(1, 9, 11, 16, 16)),
        ("few keys", plain(1, 16, 16, 32, 32)),
        ("few rows", plain(1, 11, 50, 64, 64)),
        ("few of both", plain(2, 13, 29, 24, 40)),
        ("masked", masked(33, 50)),
        ("grouped, causal", grouped(20, 150)),
        ("grouped, past", grouped(3, 100)),
        ("decoding", plain(1, 1, 70, 64, 64)),
        ("grouped, decoding", grouped(1, 45)),
        ("split keys", grouped(2, 700)),
    ];
    for (name, graph) in graphs {
        let (inputs, want) = expected(name, &graph);
        let half = if name.len() % 2 == 0 { (Precision::F16, 2e-3) } else { (Precision::BF16, 2e-2) };
        let single = [(Precision::F32, 1e-5), (Precision::F32Fast, 1e-5), (Precision::Tf32, 2e-3)];
        for (precision, tolerance) in single.into_iter().chain([half]) {
            let name = format!("{name} in {precision:?}");
            let compiled = assembled(&name, graph.clone(), precision);
            let what: Vec<&str> = compiled.plan.kernels.iter().map(|k| k.what.as_ref()).collect();
            assert!(what.iter().any(|w| w.matches("contract").count() == 2), "{name}: {what:?}");
            both_ways(&name, &compiled, &inputs, 5, &|run, outcome| {
                for k in &outcome.kernels {
                    if k.what.matches("contract").count() == 2 {
                        assert_eq!(k.counts.conflicts(), 0, "{run}, {}", k.name);
                    }
                }
                close(run, &want, outcome, (tolerance, 2.0 * tolerance));
            });
        }
    }
}
