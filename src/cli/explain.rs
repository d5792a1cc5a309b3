//! `kiln explain`: what became of each node, and why.
//!
//! Invariant: what is said was recorded by the passes or is computed by their own functions; nothing is guessed here.

use super::Talk;
use super::options::{self, Machinery, Watching};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use kiln::ir::graph::{Graph, NodeId, ValueId};
use kiln::ir::plan::nominal;
use kiln::passes::fusion::Attempt;
use kiln::passes::group::{Group, Work};
use kiln::passes::islands;
use kiln::passes::kernel::{Arrangement, Machine, Space, preferred_layouts};
use kiln::passes::pipeline::Scheduled;
use kiln::runtime::cpu::CpuLevel;
use kiln::{Compiled, Error, Source, emit};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

/// Explain which kernel each node went into and why, what fusion refused, which layouts and schedules were chosen
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model
    model: PathBuf,
    /// Only what concerns this node (its name in the model), value or kernel (such as k3)
    node: Option<String>,
    /// Take schedules from a tuning database (see `kiln tune`); several times for several
    #[arg(long, value_name = "F.jsonl")]
    tuning: Vec<PathBuf>,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// What is known of a compilation, by kernel.
pub(super) struct Reader<'a> {
    compiled: &'a Compiled,
    machine: Machine,
    groups: Vec<&'a Group>,
    /// The kernel of each node.
    kernel_of: BTreeMap<NodeId, usize>,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let level = self.machinery.level_here()?;
        let onnx = Source::open(&self.model)?.model(&self.machinery.limits())?;
        let mut options = self.machinery.options(vec![level], BTreeMap::new())?;
        options.tuning = super::compile::schedules(&self.tuning, talk)?;
        let compiled = options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?;
        drop(onnx);
        let reader = Reader::new(&compiled, level)?;
        let kernels: Vec<usize> = match &self.node {
            None => (0..reader.groups.len()).collect(),
            Some(name) => reader.find(name)?,
        };
        let others = reader.others(self.node.as_deref());
        let reports: Vec<Value> = kernels.iter().filter_map(|&k| reader.json(k)).collect();
        let report = json!({ "model": compiled.plan.name, "level": level.name(), "kernels": reports,
            "others": others.iter().map(|(what, origin, why)| json!({ "what": what, "origin": origin, "why": why }))
                .collect::<Vec<_>>(),
            "integers_end": reader.ends(self.node.as_deref()) });
        talk.report(&report, &text(&report, self.node.is_some()))
    }
}

impl<'a> Reader<'a> {
    /// Of a compilation, as the cost model of that level sees it.
    pub(super) fn new(compiled: &'a Compiled, level: CpuLevel) -> Result<Reader<'a>, Error> {
        let machine = emit::Emitter::of(level, &compiled.scheduled)?.machine();
        let groups: Vec<&Group> = compiled.scheduled.groups().collect();
        let nodes = groups.iter().enumerate().flat_map(|(k, g)| g.nodes.iter().map(move |&n| (n, k)));
        Ok(Reader { compiled, machine, kernel_of: nodes.collect(), groups })
    }

    fn scheduled(&self) -> &Scheduled {
        &self.compiled.scheduled
    }

    fn graph(&self) -> &Graph {
        &self.scheduled().graph
    }

    /// The kernels that a name is about.
    fn find(&self, name: &str) -> Result<Vec<usize>, Error> {
        let named = |g: &Group| g.origin.names().any(|n| n == name);
        let computes = |g: &Group| {
            let results = g.nodes.iter().flat_map(|&n| &self.graph().node(n).outputs);
            results.into_iter().any(|&v| self.graph().value(v).name.as_deref() == Some(name))
        };
        let kernel = |n: usize| self.compiled.plan.kernels.get(n).is_some_and(|k| k.name == name);
        let all = self.groups.iter().enumerate();
        let found: Vec<usize> = all.filter(|(n, g)| kernel(*n) || named(g) || computes(g)).map(|(n, _)| n).collect();
        if found.is_empty() && self.others(Some(name)).is_empty() {
            let near = |n: &&str| n.to_lowercase().contains(&name.to_lowercase());
            let names = self.graph().nodes().flat_map(|(_, node)| node.origin.names().collect::<Vec<_>>());
            let mut near: Vec<&str> = names.filter(near).collect();
            near.sort_unstable();
            near.dedup();
            near.truncate(5);
            let hint = if near.is_empty() {
                "`kiln explain MODEL` lists all; constants and what nothing reads leave no kernel".into()
            } else {
                format!("there are {}", near.join(", "))
            };
            return Err(Error::Usage(format!(
                "no node, value or kernel of the compiled model is called {name:?}; {hint}"
            )));
        }
        Ok(found)
    }

    /// What is no kernel: host steps and values that are another's memory.
    fn others(&self, name: Option<&str>) -> Vec<(String, Vec<String>, String)> {
        let mut all = Vec::new();
        for work in &self.scheduled().work {
            match work {
                Work::Kernel(_) => {}
                Work::Host(id) => {
                    let node = self.graph().node(*id);
                    let names: Vec<String> = node.origin.names().map(str::to_string).collect();
                    let note = self.compiled.notes.hosts.iter().find(|h| h.origin == names);
                    let why = note.map_or("it is a host op".into(), |h| h.why.clone());
                    all.push((format!("host {}", node.op.name()), names, why));
                }
                Work::Alias { of, value } => {
                    let Some(id) = self.graph().producer(*value) else { continue };
                    let node = self.graph().node(id);
                    let names = node.origin.names().map(str::to_string).collect();
                    let why = format!("it is the memory of {} under other dims, so nothing is done", self.value(*of));
                    all.push((format!("view {}", node.op.name()), names, why));
                }
            }
        }
        all.retain(|(_, names, _)| name.is_none_or(|name| names.iter().any(|n| n == name)));
        all
    }

    /// Where regions of 8-bit integers end.
    fn ends(&self, name: Option<&str>) -> Vec<Value> {
        let names = |id: NodeId| self.graph().node(id).origin.names().map(str::to_string).collect::<Vec<_>>();
        let mut all = Vec::new();
        for end in islands::ends(self.graph()) {
            let (of, by) = (names(end.node), end.reader.map(names).unwrap_or_default());
            if name.is_none_or(|name| of.iter().chain(&by).any(|n| n == name)) {
                let op = end.reader.map(|id| self.graph().node(id).op.name());
                all.push(json!({ "of": of, "reader": by, "op": op, "why": end.why.to_string() }));
            }
        }
        all
    }

    /// A value, for people.
    fn value(&self, v: ValueId) -> String {
        let value = self.graph().value(v);
        let made = self.graph().producer(v).map(|n| self.graph().node(n).origin.to_string());
        match (&value.name, made) {
            (Some(name), _) => format!("{name:?}"),
            (None, Some(made)) => format!("the result of {made}"),
            (None, None) => "a constant".into(),
        }
    }

    /// The last word on each value that the kernel reads or has taken in.
    fn attempts(&self, group: &Group) -> Vec<Attempt> {
        let nodes: BTreeSet<NodeId> = group.nodes.iter().copied().collect();
        let mut last: BTreeMap<ValueId, Attempt> = BTreeMap::new();
        for a in self.scheduled().attempts.iter().filter(|a| nodes.contains(&a.reader)) {
            let inside = self.graph().producer(a.value).is_some_and(|n| nodes.contains(&n));
            // What another way brought in was not refused after all.
            if a.verdict.is_ok() == inside {
                last.insert(a.value, *a);
            }
        }
        last.into_values().collect()
    }

    pub(super) fn json(&self, k: usize) -> Option<Value> {
        let (group, kernel) = (*self.groups.get(k)?, self.compiled.plan.kernels.get(k)?);
        let graph = self.graph();
        let names = |n: NodeId| graph.node(n).origin.names().map(str::to_string).collect::<Vec<_>>();
        let nodes = group.nodes.iter().map(|&n| {
            let node = graph.node(n);
            json!({ "op": node.op.name(), "origin": names(n) })
        });
        let mut fused = Vec::new();
        let mut refused = Vec::new();
        for a in self.attempts(group) {
            let producer = graph.producer(a.value);
            let of = producer.map(|n| graph.node(n).op.name()).unwrap_or("constant");
            let origin = producer.map(names).unwrap_or_default();
            match a.verdict {
                Ok(way) => fused
                    .push(json!({ "value": self.value(a.value), "op": of, "origin": origin, "how": way.to_string() })),
                Err(why) => {
                    let kernel =
                        producer.and_then(|n| self.kernel_of.get(&n)).and_then(|&k| self.compiled.plan.kernels.get(k));
                    refused.push(json!({ "value": self.value(a.value), "op": of, "origin": origin,
                        "kernel": kernel.map(|k| k.name.clone()), "why": why.to_string() }));
                }
            }
        }
        // Where the result was not taken into what reads it.
        let reads = self.scheduled().attempts.iter().filter(|a| a.value == group.output && a.verdict.is_err());
        let onward: BTreeMap<Vec<String>, String> =
            reads.filter_map(|a| Some((names(a.reader), a.verdict.err()?.to_string()))).collect();
        let onward: Vec<Value> = onward.iter().map(|(to, why)| json!({ "reader": to, "why": why })).collect();
        let wishes = preferred_layouts(graph, group, &self.machine, &Default::default());
        let packed =
            wishes.iter().map(|(v, layout)| json!({ "type": graph.ty(*v).to_string(), "layout": layout.to_string() }));
        let space = Space::of(graph, group, &self.machine);
        let schedule = space.as_ref().map(|s| {
            json!({ "choice": s.default.to_string(), "rows": s.rows, "columns": s.columns, "depth": s.depth, "outer": s.outer,
                    "estimated_cycles": s.estimate(&s.default).round(), "choices": s.choices().len() })
        });
        let free: Vec<String> = graph.symbols.iter().map(|(s, range)| format!("{s}={}", nominal(*range))).collect();
        let table = self.compiled.code.last().and_then(|c| c.table.0.get(k));
        Some(json!({
            "kernel": kernel.name, "what": kernel.what, "result": graph.ty(group.output).to_string(),
            "arranged": self.scheduled().wishes.arrangement(group.output).map(Arrangement::name),
            "reads": group.inputs.iter().map(|&v| graph.ty(v).to_string()).collect::<Vec<_>>(),
            "nodes": nodes.collect::<Vec<_>>(), "fused": fused, "refused": refused, "not_taken_further": onward,
            "packed": packed.collect::<Vec<_>>(), "schedule": schedule, "operations": kernel.operations, "bytes": kernel.bytes,
            "estimates_for": free, "emitter": table.map(|e| e.emitter.clone()), "code_bytes": table.map(|e| e.bytes),
            "programs": table.map(|e| e.programs.to_string()),
        }))
    }
}

fn text(report: &Value, full: bool) -> String {
    let mut text = String::new();
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let word = |v: &Value| v.as_str().unwrap_or_default().to_string();
    let words = |v: &Value| list(v).iter().map(word).collect::<Vec<_>>().join(", ");
    let kernels = list(&report["kernels"]);
    if !full {
        let l = Align::Left;
        let rows: Vec<_> = kernels
            .iter()
            .map(|k| {
                let nodes: Vec<String> = list(&k["nodes"]).iter().map(|n| word(&n["op"])).collect();
                let why: BTreeSet<String> = list(&k["refused"]).iter().map(|r| word(&r["why"])).collect();
                let why = why.into_iter().collect::<Vec<_>>().join("; ");
                [word(&k["kernel"]), nodes.join(" "), word(&k["schedule"]["choice"]), word(&k["result"]), why]
            })
            .collect();
        let columns =
            [("kernel", l), ("nodes", l), ("schedule", l), ("result", l), ("what it reads is not fused: why", l)];
        text.push_str(&table("", columns, &rows));
        let ends = list(&report["integers_end"]);
        if !ends.is_empty() {
            let first = |v: &Value| word(&v[0]);
            let rows: Vec<_> =
                ends.iter().map(|e| [first(&e["of"]), first(&e["reader"]), word(&e["op"]), word(&e["why"])]).collect();
            let columns = [("8-bit integers of", l), ("end at", l), ("op", l), ("because", l)];
            text.push_str(&table("", columns, &rows));
        }
        text.push_str("`kiln explain MODEL NODE` says all of one node, value or kernel\n");
    }
    // Writing to a string cannot fail.
    for k in kernels.iter().filter(|_| full) {
        let _ = writeln!(text, "{} ({}) makes {}", word(&k["kernel"]), word(&k["what"]), word(&k["result"]));
        let _ = writeln!(text, "  reads {}", words(&k["reads"]));
        if let Some(arrangement) = k["arranged"].as_str() {
            let _ = writeln!(text, "  its result lies {arrangement}: measurements found it quicker");
        }
        for n in list(&k["nodes"]) {
            let _ = writeln!(text, "  node {} ({})", words(&n["origin"]), word(&n["op"]));
        }
        for f in list(&k["fused"]) {
            let _ = writeln!(text, "  fused: {} of {}: {}", word(&f["value"]), word(&f["op"]), word(&f["how"]));
        }
        for r in list(&k["refused"]) {
            let at = r["kernel"].as_str().map_or(String::new(), |k| format!(" (kernel {k})"));
            let _ = writeln!(text, "  not fused: {} of {}{at}: {}", word(&r["value"]), word(&r["op"]), word(&r["why"]));
        }
        for r in list(&k["not_taken_further"]) {
            let _ = writeln!(text, "  its result was not fused into {}: {}", words(&r["reader"]), word(&r["why"]));
        }
        for p in list(&k["packed"]) {
            let _ = writeln!(text, "  constant {} is stored in the order {}", word(&p["type"]), word(&p["layout"]));
        }
        if let Some(choice) = k["schedule"]["choice"].as_str() {
            let s = &k["schedule"];
            let _ = writeln!(
                text,
                "  schedule {choice}, one of {}, for {} rows, {} columns, {} steps, {} times; about {} cycles",
                s["choices"], s["rows"], s["columns"], s["depth"], s["outer"], s["estimated_cycles"]
            );
        }
        let free = words(&k["estimates_for"]);
        let free = if free.is_empty() { String::new() } else { format!(" for {free}") };
        let _ = writeln!(
            text,
            "  {} operations, {} bytes{free}; {} bytes of code by {}, {} programs",
            k["operations"],
            k["bytes"],
            k["code_bytes"],
            word(&k["emitter"]),
            word(&k["programs"])
        );
    }
    for e in list(&report["integers_end"]).iter().filter(|_| full) {
        let at =
            if e["op"].is_null() { "the end".into() } else { format!("{} ({})", words(&e["reader"]), word(&e["op"])) };
        let _ = writeln!(text, "8-bit integers of {} end at {at}: {}", words(&e["of"]), word(&e["why"]));
    }
    for o in list(&report["others"]) {
        let _ = writeln!(text, "{}: {}: {}", words(&o["origin"]), word(&o["what"]), word(&o["why"]));
    }
    text
}
