//! Random graphs in every way that Kiln has to run them. `KILN_GRAPHS` is how many (`FROM..TO` are the seeds themselves); without it
//! the ways that cost most take turns.

use kiln::cross::{self, Way};
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
