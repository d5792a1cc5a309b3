//! `kiln inspect`: what a model is compiled to.

use super::Talk;
use super::options::{self, Machinery, Watching};
use clap::Args as ClapArgs;
use kiln::ir::graph::Origin;
use kiln::ir::plan::{Plan, Step};
use kiln::runtime::artifact::{self, Artifact, KernelTable, LoadOptions};
use kiln::runtime::cpu::CpuLevel;
use kiln::{Compiled, Error, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Show kernels, host ops, memory and plan of a model or an artifact
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model (free dims are taken as 1) or an artifact
    model: PathBuf,
    /// Show the whole optimised graph (models only)
    #[arg(long)]
    graph: bool,
    /// Show the whole plan
    #[arg(long)]
    plan: bool,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// What is known of a compiled model, wherever it came from.
struct Contents {
    plan: Plan,
    tables: Vec<(CpuLevel, KernelTable)>,
    compiler: String,
    options: BTreeMap<String, String>,
    sections: Vec<(String, u64)>,
    graph: Option<String>,
    host_reasons: Vec<(Origin, String)>,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let contents = match Source::open(&self.model)? {
            Source::Artifact(path) if self.graph => {
                let path = path.display();
                return Err(Error::Usage(format!("--graph needs the model; {path} holds the plan only")));
            }
            Source::Artifact(path) => from_artifact(&path)?,
            source @ Source::Model { .. } => {
                let onnx = source.model(&self.machinery.limits())?;
                let mut options = self.machinery.options(self.machinery.artifact_levels(), BTreeMap::new())?;
                options.shapes = kiln::source::unit_shapes(&onnx, &options.bind);
                from_compiled(options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?)
            }
        };
        talk.report(&contents.json(self.graph, self.plan), &contents.text(self.graph, self.plan))
    }
}

fn from_artifact(path: &Path) -> Result<Contents, Error> {
    let load = |e| Error::Load(kiln::runtime::engine::LoadError::Artifact(e));
    let file = Artifact::open(path, &LoadOptions::default()).map_err(load)?;
    let broken = |what: &str, e: &dyn std::fmt::Display| Error::data(format!("{}: {what}", path.display()), e);
    let plan = Plan::parse(file.text(artifact::PLAN).map_err(load)?).map_err(|e| broken("plan", &e))?;
    let mut tables = Vec::new();
    for level in file.levels() {
        let name = artifact::kernels_section(level);
        let table = file.text(&name).map_err(load)?.parse().map_err(|e| broken(&name, &e))?;
        tables.push((level, table));
    }
    Ok(Contents {
        plan,
        tables,
        compiler: file.compiler().to_string(),
        options: file.options().clone(),
        sections: file.sections().map(|(name, bytes)| (name.to_string(), bytes)).collect(),
        graph: None,
        host_reasons: Vec::new(),
    })
}

fn from_compiled(compiled: Compiled) -> Contents {
    Contents {
        graph: Some(compiled.graph.to_string()),
        tables: compiled.code.into_iter().map(|code| (code.level, code.table)).collect(),
        compiler: compiled.manifest.compiler,
        options: compiled.manifest.options,
        sections: Vec::new(),
        host_reasons: compiled.host_reasons,
        plan: compiled.plan,
    }
}

impl Contents {
    /// Host steps: op, origin and, where it is known, why.
    fn hosts(&self) -> impl Iterator<Item = (String, &Origin, Option<&str>)> {
        self.plan.steps.iter().filter_map(|step| match step {
            Step::Host { op, origin, .. } => {
                let name = match op {
                    kiln::ir::ops::Op::Host(host) => host.function(),
                    op => op.name(),
                };
                let why = self.host_reasons.iter().find(|(o, _)| o == origin).map(|(_, why)| why.as_str());
                Some((name.to_string(), origin, why))
            }
            Step::Launch { .. } | Step::Copy { .. } => None,
        })
    }

    /// Copies that the compiler added: bytes of each.
    fn copies(&self) -> impl Iterator<Item = u64> {
        self.plan.steps.iter().filter_map(|step| match step {
            Step::Copy { from, .. } => Some(self.plan.slot_bytes(*from)),
            Step::Launch { .. } | Step::Host { .. } => None,
        })
    }

    fn ends(&self, ends: &[(std::sync::Arc<str>, kiln::ir::plan::SlotId)]) -> Vec<(String, String)> {
        ends.iter().map(|(name, slot)| (name.to_string(), self.plan.slots[*slot].ty.to_string())).collect()
    }

    fn totals(&self) -> (u64, u64) {
        self.plan.kernels.iter().fold((0, 0), |(ops, bytes), k| (ops + k.operations, bytes + k.bytes))
    }

    fn json(&self, graph: bool, plan: bool) -> Value {
        let names = |origin: &Origin| origin.names().map(str::to_string).collect::<Vec<_>>();
        let kernel = |(n, k): (usize, &kiln::ir::plan::Kernel)| {
            let entries = self.tables.iter().filter_map(|(level, table)| Some((level, table.0.get(n)?)));
            let code: serde_json::Map<String, Value> = entries
                .map(|(level, e)| {
                    let code = json!({ "emitter": e.emitter, "code_bytes": e.bytes, "programs": number(&e.programs), "grain": e.grain });
                    (level.to_string(), code)
                })
                .collect();
            json!({ "name": k.name, "what": k.what, "origin": names(&k.origin), "operations": k.operations,
                    "bytes": k.bytes, "code": code })
        };
        let end = |(name, ty): (String, String)| json!({ "name": name, "type": ty });
        let (operations, bytes) = self.totals();
        let hosts = self.hosts().map(|(op, origin, why)| json!({ "op": op, "origin": names(origin), "why": why }));
        let mut report = json!({
            "name": self.plan.name, "compiler": self.compiler, "options": self.options,
            "levels": self.tables.iter().map(|(level, _)| level.name()).collect::<Vec<_>>(),
            "inputs": self.ends(&self.plan.inputs).into_iter().map(end).collect::<Vec<_>>(),
            "outputs": self.ends(&self.plan.outputs).into_iter().map(end).collect::<Vec<_>>(),
            "arena_bytes": self.plan.arena_bytes, "live_bytes": self.plan.live_bytes,
            "weight_bytes": self.plan.weight_bytes, "operations": operations, "bytes": bytes,
            "steps": self.plan.steps.len(),
            "kernels": self.plan.kernels.iter().enumerate().map(kernel).collect::<Vec<_>>(),
            "host_ops": hosts.collect::<Vec<_>>(),
            "copies": self.copies().map(|bytes| json!({ "bytes": bytes })).collect::<Vec<_>>(),
            // One precision means that the compiler adds no cast of its own.
            "casts": [],
            "sections": self.sections.iter().map(|(n, b)| json!({ "name": n, "bytes": b })).collect::<Vec<_>>(),
        });
        if graph {
            report["graph"] = json!(self.graph);
        }
        if plan {
            report["plan"] = json!(self.plan.to_string());
        }
        report
    }

    fn text(&self, graph: bool, plan: bool) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, so results of it are dropped below.
        let (operations, bytes) = self.totals();
        let levels: Vec<&str> = self.tables.iter().map(|(level, _)| level.name()).collect();
        let _ = writeln!(text, "{:?}, compiled by Kiln {} for {}", self.plan.name, self.compiler, levels.join(", "));
        for (what, ends) in [("input", &self.plan.inputs), ("output", &self.plan.outputs)] {
            for (name, ty) in self.ends(ends) {
                let _ = writeln!(text, "  {what} {name}: {ty}");
            }
        }
        let mega = |bytes: u64| bytes as f64 / 1e6;
        let _ = writeln!(
            text,
            "  weights {:.2} MB, arena {:.2} MB (at least {:.2} MB live at once), {:.3} billion operations, {:.1} MB moved",
            mega(self.plan.weight_bytes),
            mega(self.plan.arena_bytes),
            mega(self.plan.live_bytes),
            operations as f64 / 1e9,
            mega(bytes),
        );
        let _ = writeln!(text, "  {} steps, {} kernels:", self.plan.steps.len(), self.plan.kernels.len());
        for (n, k) in self.plan.kernels.iter().enumerate() {
            let best = self.tables.last().and_then(|(_, table)| table.0.get(n));
            let emitter = best.map_or(String::new(), |e| format!(", {} {} bytes", e.emitter, e.bytes));
            let _ = writeln!(
                text,
                "    {:6} {:24} {:>12} operations {:>10} bytes{emitter}  from {}",
                k.name, k.what, k.operations, k.bytes, k.origin
            );
        }
        for (op, origin, why) in self.hosts() {
            let why = why.map_or(String::new(), |why| format!(": {why}"));
            let _ = writeln!(text, "    host   {op:24} from {origin}{why}");
        }
        let copies: Vec<u64> = self.copies().collect();
        if !copies.is_empty() {
            let _ = writeln!(text, "    {} copies, {} bytes", copies.len(), copies.iter().sum::<u64>());
        }
        if let (Some(of), true) = (&self.graph, graph) {
            text.push_str(of);
        }
        if plan {
            text.push_str(&self.plan.to_string());
        }
        text
    }
}

/// An expression over free dims: a number where it is one, else its text.
fn number(e: &kiln::ir::Expr) -> Value {
    e.as_const().map_or_else(|| json!(e.to_string()), |n| json!(n))
}
