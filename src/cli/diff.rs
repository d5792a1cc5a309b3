//! `kiln diff`: what changed between two artifacts.
//!
//! Invariant: kernels are matched by the nodes they came from; where fusion changed, the kernels on both sides that share nodes are
//! one change.

mod times;

use super::Talk;
use super::inspect::{Contents, from_artifact};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use kiln::Error;
use kiln::ir::plan::Kernel;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use times::{Measuring, Times};

/// Show what changed between two artifacts: kernels, fusion, code, memory, options, cost; with --measure times
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An artifact
    first: PathBuf,
    /// Another one
    second: PathBuf,
    #[command(flatten)]
    measuring: Measuring,
}

/// A property of both, as text.
struct Property {
    what: String,
    first: String,
    second: String,
}

/// Kernels that share nodes and are not the same on both sides.
struct Change {
    first: Vec<usize>,
    second: Vec<usize>,
    why: &'static str,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let (a, b) = (from_artifact(&self.first)?, from_artifact(&self.second)?);
        let times = self.measuring.times([&self.first, &self.second], talk)?;
        let mut properties = properties(&a, &b);
        if let Some(times) = &times {
            let names = ["least us that the roofline allows", "measured us"];
            let sides = [times.of(0, None), times.of(1, None)];
            properties.extend(names.into_iter().enumerate().map(|(n, what)| {
                let [first, second] = sides.map(|side| format!("{:.2}", side[n] * 1e6));
                Property { what: what.into(), first, second }
            }));
        }
        let changes = changes(&a, &b);
        let changed: Vec<&Property> = properties.iter().filter(|p| p.first != p.second).collect();
        let same = a.identity == b.identity;
        let report = json!({
            "same": same,
            "changed": changed.iter().map(|p| json!({ "what": p.what, "first": p.first, "second": p.second })).collect::<Vec<_>>(),
            "kernels": changes.iter().map(|c| c.json((&a, &b), times.as_ref())).collect::<Vec<_>>(),
            "times": times.as_ref().map(|times| [0, 1].map(|side| {
                let [least, measured] = times.of(side, None);
                json!({ "least_us": least * 1e6, "measured_us": measured * 1e6 })
            })),
            "operations": [a.totals().0, b.totals().0], "bytes": [a.totals().1, b.totals().1],
        });
        if same {
            return talk.report(&report, &"the same, byte for byte\n");
        }
        let (l, r) = (Align::Left, Align::Right);
        let mut text = String::new();
        let rows: Vec<[String; 4]> = changed
            .iter()
            .map(|p| [p.what.clone(), p.first.clone(), p.second.clone(), change(&p.first, &p.second)])
            .collect();
        if !rows.is_empty() {
            text.push_str(&table("  ", [("changed", l), ("first", r), ("second", r), ("", r)], &rows));
        }
        let rows: Vec<[String; 5]> = changes.iter().map(|c| c.row((&a, &b), times.as_ref())).collect();
        if !rows.is_empty() {
            let cost = if times.is_some() { "measured us (roofline)" } else { "operations" };
            let columns = [("kernels", l), ("first", l), ("second", l), (cost, r), ("from", l)];
            text.push_str(&format!("\n{}", table("  ", columns, &rows)));
        }
        let kernels = a.plan.kernels.len() - changes.iter().map(|c| c.first.len()).sum::<usize>();
        text.push_str(&format!("\n  {kernels} kernels are the same on both sides\n"));
        talk.report(&report, &text)
    }
}

/// By how much a number changed, where both are numbers.
fn change(first: &str, second: &str) -> String {
    match (first.parse::<f64>(), second.parse::<f64>()) {
        (Ok(a), Ok(b)) if a > 0.0 => format!("{:+.1} %", 100.0 * (b - a) / a),
        _ => String::new(),
    }
}

fn properties(a: &Contents, b: &Contents) -> Vec<Property> {
    let mut all = Vec::new();
    let mut add = |what: &str, first: String, second: String| all.push(Property { what: what.into(), first, second });
    let missing = || "-".to_string();
    let mut maps = |what: &str, a: &BTreeMap<String, String>, b: &BTreeMap<String, String>| {
        let keys: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
        for key in keys {
            let value = |m: &BTreeMap<String, String>| m.get(key).cloned().unwrap_or_else(missing);
            add(&format!("{what} {key}"), value(a), value(b));
        }
    };
    maps("hash of", &a.hashes, &b.hashes);
    maps("option", &a.options, &b.options);
    let sections = |c: &Contents| c.sections.iter().map(|(name, bytes)| (name.clone(), bytes.to_string())).collect();
    maps("bytes of", &sections(a), &sections(b));
    add("compiler", a.compiler.clone(), b.compiler.clone());
    let mut number = |what: &str, f: &dyn Fn(&Contents) -> u64| add(what, f(a).to_string(), f(b).to_string());
    number("arena bytes", &|c| c.plan.arena_bytes);
    number("live bytes", &|c| c.plan.live_bytes);
    number("steps", &|c| c.plan.steps.len() as u64);
    number("kernels", &|c| c.plan.kernels.len() as u64);
    number("host ops", &|c| c.notes.hosts.len() as u64);
    number("copies added", &|c| c.notes.copies.len() as u64);
    number("casts added", &|c| c.notes.casts.len() as u64);
    number("estimated operations", &|c| c.totals().0);
    number("estimated bytes moved", &|c| c.totals().1);
    let regions = |c: &Contents| c.plan.regions.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    add("regions", regions(a), regions(b));
    all
}

/// What a kernel is, its name and place in the code aside.
fn identity(c: &Contents, n: usize) -> Option<(String, &str, u64, u64)> {
    let k = c.plan.kernels.get(n)?;
    Some((k.origin.to_string(), k.what.as_str(), k.operations, k.bytes))
}

/// Bytes, emitter and programs of a kernel on each level.
fn code(c: &Contents, n: usize) -> Vec<String> {
    let entries = c.tables.iter().filter_map(|(level, table)| Some((level, table.0.get(n)?)));
    entries.map(|(level, e)| format!("{level} {} bytes {} x {}", e.bytes, e.emitter, e.programs)).collect()
}

/// What the other side does not have, short: a number of programs that is a formula is left out.
fn only_in(here: &[String], other: &[String]) -> String {
    let brief = |text: &String| match text.split_once(" x ") {
        Some((code, programs)) if programs.parse::<i64>().is_err() => code.to_string(),
        Some(_) | None => text.clone(),
    };
    here.iter().filter(|text| !other.contains(text)).map(brief).collect::<Vec<_>>().join("; ")
}

fn changes(a: &Contents, b: &Contents) -> Vec<Change> {
    let mut left: Vec<usize> = (0..b.plan.kernels.len()).collect();
    let (mut open, mut found) = (Vec::new(), Vec::new());
    for n in 0..a.plan.kernels.len() {
        let same = left.iter().position(|&m| identity(a, n) == identity(b, m));
        match same.map(|at| left.remove(at)) {
            None => open.push(n),
            Some(m) if code(a, n) == code(b, m) => {}
            Some(m) => found.push(Change { first: vec![n], second: vec![m], why: "code" }),
        }
    }
    let nodes = |k: Option<&Kernel>| -> BTreeSet<String> {
        k.map(|k| k.origin.names().map(str::to_string).collect()).unwrap_or_default()
    };
    // Kernels of both sides that share a node belong together, as do those that share one with these.
    while let Some(n) = open.first().copied() {
        open.remove(0);
        let mut change = Change { first: vec![n], second: vec![], why: "fusion" };
        let mut names = nodes(a.plan.kernels.get(n));
        loop {
            let mut grown = false;
            let mut take = |side: &Contents, from: &mut Vec<usize>, to: &mut Vec<usize>| {
                let meets = |&m: &usize| !nodes(side.plan.kernels.get(m)).is_disjoint(&names);
                let (with, without): (Vec<usize>, Vec<usize>) = from.iter().partition(|m| meets(m));
                *from = without;
                with.iter().for_each(|&m| names.extend(nodes(side.plan.kernels.get(m))));
                grown |= !with.is_empty();
                to.extend(with);
            };
            take(b, &mut left, &mut change.second);
            take(a, &mut open, &mut change.first);
            if !grown {
                break;
            }
        }
        if change.second.is_empty() {
            change.why = "removed";
        } else if change.first.len() == 1 && change.second.len() == 1 {
            change.why = "work";
        }
        found.push(change);
    }
    found.extend(left.into_iter().map(|m| Change { first: vec![], second: vec![m], why: "added" }));
    found
}

impl Change {
    fn json(&self, (a, b): (&Contents, &Contents), times: Option<&Times>) -> Value {
        let side = |c: &Contents, kernels: &[usize]| -> Vec<Value> {
            let one = |&n: &usize| {
                let k = c.plan.kernels.get(n)?;
                let origin: Vec<&str> = k.origin.names().collect();
                Some(
                    json!({ "name": k.name, "what": k.what, "origin": origin, "operations": k.operations, "bytes": k.bytes,
                             "code": code(c, n) }),
                )
            };
            kernels.iter().filter_map(one).collect()
        };
        let us = |n: usize, kernels: &[usize]| {
            let [least, measured] = times?.of(n, Some(kernels));
            Some(json!({ "least_us": least * 1e6, "measured_us": measured * 1e6 }))
        };
        json!({ "change": self.why, "first": side(a, &self.first), "second": side(b, &self.second),
                "times": [us(0, &self.first), us(1, &self.second)] })
    }

    fn row(&self, (a, b): (&Contents, &Contents), times: Option<&Times>) -> [String; 5] {
        let kernels = |c: &Contents, of: &[usize]| {
            let each = of.iter().filter_map(|&n| c.plan.kernels.get(n));
            each.map(|k| format!("{} {}", k.name, k.what)).collect::<Vec<_>>().join(" + ")
        };
        let operations = |c: &Contents, of: &[usize]| {
            of.iter().filter_map(|&n| c.plan.kernels.get(n)).map(|k| k.operations).sum::<u64>()
        };
        let (before, after) = (operations(a, &self.first), operations(b, &self.second));
        let (first, second) = match self.why {
            "code" => {
                let all = |c: &Contents, of: &[usize]| of.iter().flat_map(|&n| code(c, n)).collect::<Vec<_>>();
                let (before, after) = (all(a, &self.first), all(b, &self.second));
                (only_in(&before, &after), only_in(&after, &before))
            }
            _ => (kernels(a, &self.first), kernels(b, &self.second)),
        };
        let mut origin = kiln::ir::graph::Origin::default();
        let of_first = self.first.iter().filter_map(|&n| a.plan.kernels.get(n));
        let of_second = self.second.iter().filter_map(|&n| b.plan.kernels.get(n));
        of_first.chain(of_second).for_each(|k| origin.merge(&k.origin));
        let cost = match times {
            Some(times) => {
                let us = |[least, measured]: [f64; 2]| format!("{:.1} ({:.1})", measured * 1e6, least * 1e6);
                format!("{} -> {}", us(times.of(0, Some(&self.first))), us(times.of(1, Some(&self.second))))
            }
            None if before == after => before.to_string(),
            None => format!("{before} -> {after}"),
        };
        [self.why.into(), first, second, cost, origin.to_string()]
    }
}
