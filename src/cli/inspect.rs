//! `kiln inspect`: what a model is compiled to.

use super::Talk;
use super::gpu::Program;
use super::options::{self, Machinery, Watching};
use super::picture::{Picture, draw};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use kiln::fit::Footprint;
use kiln::gpu::{self, Architecture, Precision, stored};
use kiln::ir::expr::{Expr, Symbol};
use kiln::ir::graph::Origin;
use kiln::ir::ops::{Op, TileProduct};
use kiln::ir::plan::{Plan, Step, nominal};
use kiln::lm::CacheFacts;
use kiln::notes::Notes;
use kiln::passes::kernel::Terms;
use kiln::runtime::artifact::{self, Artifact, KernelTable, LoadOptions};
use kiln::runtime::cpu::CpuLevel;
use kiln::runtime::engine::{LoadError, read_plan};
use kiln::{Compiled, Error, Source, provenance};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Characters of a formula that people still read.
const LONGEST_FORMULA: usize = 100;

/// Show kernels, host ops, memory and plan of a model or an artifact
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model, which is compiled as `kiln compile` does, or an artifact
    model: PathBuf,
    /// Show the whole optimised graph (models only)
    #[arg(long)]
    graph: bool,
    /// Show the whole plan
    #[arg(long)]
    plan: bool,
    /// Show the bill of materials instead: SPDX as JSON (artifacts only)
    #[arg(long, conflicts_with_all = ["graph", "plan", "picture"])]
    sbom: bool,
    /// Draw a picture instead
    #[arg(long, value_name = "KIND", conflicts_with_all = ["graph", "plan", "json"])]
    picture: Option<Picture>,
    /// Show the kernels for this GPU architecture: launches, registers and instructions (where ptxas and nvdisasm are found), and
    /// estimates of speed, not measurements
    #[arg(long, value_name = "SM", conflicts_with_all = ["graph", "plan", "picture", "cpu"])]
    target: Option<Architecture>,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// What is known of a compiled model, wherever it came from.
pub(super) struct Contents {
    pub(super) plan: Plan,
    pub(super) tables: Vec<(CpuLevel, KernelTable)>,
    pub(super) compiler: String,
    pub(super) options: BTreeMap<String, String>,
    /// Hashes of what it was made from, and those of an artifact.
    pub(super) hashes: BTreeMap<String, String>,
    /// The hash of an artifact's header; empty for a model.
    pub(super) identity: String,
    pub(super) sections: Vec<(String, u64)>,
    graph: Option<String>,
    pub(super) notes: Notes,
    /// GPU architectures, with their launches and bytes of PTX.
    gpus: Vec<(String, usize, usize)>,
    /// The cache of a language model.
    cache: Option<CacheFacts>,
    /// Names of an artifact's programs beside the one that is shown.
    entries: Vec<String>,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        let contents = match Source::open(&self.model)? {
            Source::Artifact(path) => {
                let graph = self.graph.then_some("--graph");
                if let Some(option) = graph.or(self.machinery.compiles()).or(self.watching.given()) {
                    return Err(options::compiled_already(option, &path));
                }
                if let Some(target) = self.target {
                    return for_gpu(&path, target, talk);
                }
                if self.sbom {
                    let load = LoadOptions { verify_weights: false };
                    let file = Artifact::open(&path, &load).map_err(LoadError::Artifact)?;
                    return super::print(provenance::sbom_of(&file)?);
                }
                from_artifact(&path)?
            }
            Source::Model { .. } if self.sbom => {
                return Err(Error::Usage("--sbom is for artifacts; a model is compiled first".into()));
            }
            source @ Source::Model { .. } => {
                let onnx = source.model(&self.machinery.limits())?;
                let machinery = Machinery { gpu: self.target.is_some(), ..self.machinery.clone() };
                let options = machinery.options(machinery.artifact_levels(), BTreeMap::new())?;
                if let Some(target) = self.target {
                    let mut observer = self.watching.observers(&machinery, talk)?;
                    let precision = Precision::parse(&machinery.precision)?;
                    let compiled = gpu::compile(&onnx, &options, (target, precision), &mut observer)?;
                    let (launches, hosts) = (compiled.stored()?, &compiled.notes.hosts);
                    let program =
                        Program { architecture: target.name, plan: &compiled.plan, launches: &launches, hosts };
                    return super::gpu::report(&program, talk);
                }
                from_compiled(options::compile(&onnx, &options, &self.watching, &self.machinery, talk)?)
            }
        };
        if let Some(picture) = self.picture {
            return super::print(&draw(picture, &contents.plan));
        }
        talk.report(&contents.json(self.graph, self.plan), &contents.text(self.graph, self.plan))
    }
}

/// The program of an artifact for an architecture.
fn for_gpu(path: &Path, target: Architecture, talk: Talk) -> Result<(), Error> {
    let load = |e| Error::Load(LoadError::Artifact(e));
    let file = Artifact::open(path, &LoadOptions { verify_weights: false }).map_err(load)?;
    let all = stored::launches(&file)?;
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    let Some((name, launches)) = all.iter().find(|(name, _)| name == target.name) else {
        let there = if names.is_empty() { "no GPU".into() } else { names.join(", ") };
        return Err(Error::Usage(format!(
            "{}: the artifact has code for {there}, not for {}",
            path.display(),
            target.name
        )));
    };
    let plan = read_plan(&file, &artifact::of_entry(name, artifact::PLAN))?;
    let notes = Notes::parse(file.text(&artifact::of_entry(name, artifact::NOTES)).map_err(load)?)?;
    super::gpu::report(&Program { architecture: name, plan: &plan, launches, hosts: &notes.hosts }, talk)
}

pub(super) fn from_artifact(path: &Path) -> Result<Contents, Error> {
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
    let mut hashes = file.hashes().clone();
    if let Some(weights) = file.section_hash(artifact::WEIGHTS) {
        hashes.insert(artifact::WEIGHTS.into(), weights);
    }
    Ok(Contents {
        plan,
        tables,
        compiler: file.compiler().to_string(),
        options: file.options().clone(),
        hashes,
        identity: file.identity().to_string(),
        sections: file.sections().map(|(name, bytes)| (name.to_string(), bytes)).collect(),
        graph: None,
        gpus: stored::launches(&file)?
            .into_iter()
            .map(|(name, kernels)| {
                let all = || kernels.iter().flatten();
                (name, all().count(), all().map(|launch| launch.text.len()).sum())
            })
            .collect(),
        cache: CacheFacts::of(path, &file)?,
        entries: file.entries().filter(|name| !name.is_empty()).map(String::from).collect(),
        notes: Notes::parse(file.text(artifact::NOTES).map_err(load)?)?,
    })
}

fn from_compiled(compiled: Compiled) -> Contents {
    Contents {
        graph: Some(compiled.graph.to_string()),
        tables: compiled.code.into_iter().map(|code| (code.level, code.table)).collect(),
        compiler: compiled.manifest.compiler,
        options: compiled.manifest.options,
        hashes: compiled.manifest.hashes,
        identity: String::new(),
        sections: Vec::new(),
        notes: compiled.notes,
        gpus: Vec::new(),
        cache: None,
        entries: Vec::new(),
        plan: compiled.plan,
    }
}

impl Contents {
    /// Host steps: op, origin and why. Notes on them are in the order of the steps.
    fn hosts(&self) -> impl Iterator<Item = (String, &Origin, &str)> {
        let steps = self.plan.steps.iter().filter_map(|step| match step {
            Step::Host { op: Op::Host(host), origin, .. } => Some((host.function().to_string(), origin)),
            Step::Host { op, origin, .. } => Some((op.name().to_string(), origin)),
            Step::Launch { .. } | Step::Copy { .. } => None,
            Step::Bind { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => None,
        });
        steps.zip(&self.notes.hosts).map(|((op, origin), note)| (op, origin, note.why.as_str()))
    }

    fn ends(&self, ends: &[(std::sync::Arc<str>, kiln::ir::plan::SlotId)]) -> Vec<(String, String)> {
        ends.iter().map(|(name, slot)| (name.to_string(), self.plan.slots[*slot].ty.to_string())).collect()
    }

    pub(super) fn totals(&self) -> (u64, u64) {
        self.plan.kernels.iter().fold((0, 0), |(ops, bytes), k| (ops + k.operations, bytes + k.bytes))
    }

    /// How many kernels multiply f32 as sums of how many products of bf16.
    fn in_parts(&self) -> impl Iterator<Item = (Terms, usize)> {
        let kernels = |terms: Terms| self.plan.kernels.iter().filter(|k| k.what.ends_with(terms.mark())).count();
        Terms::ALL.into_iter().map(move |terms| (terms, kernels(terms))).filter(|(_, kernels)| *kernels > 0)
    }

    /// How many kernels are convolutions by tiles.
    fn tiled(&self) -> usize {
        let product = Op::from(TileProduct { extents: vec![] });
        self.plan.kernels.iter().filter(|k| k.what.split('+').any(|what| what == product.name())).count()
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
            "hashes": self.hashes, "identity": self.identity,
            "levels": self.tables.iter().map(|(level, _)| level.name()).collect::<Vec<_>>(),
            "inputs": self.ends(&self.plan.inputs).into_iter().map(end).collect::<Vec<_>>(),
            "outputs": self.ends(&self.plan.outputs).into_iter().map(end).collect::<Vec<_>>(),
            "arena_bytes": self.plan.arena_bytes, "live_bytes": self.plan.live_bytes,
            "weight_bytes": self.plan.weight_bytes, "operations": operations, "bytes": bytes,
            "symbols": self.plan.symbols.iter().map(|(s, (lo, hi))| json!({ "name": s.name(), "least": lo, "greatest": hi }))
                .collect::<Vec<_>>(),
            "peak_bytes": number(&Footprint::of(&self.plan).formula()),
            "gpus": self.gpus.iter().map(|(name, launches, bytes)| json!({ "name": name, "launches": launches, "ptx_bytes": bytes }))
                .collect::<Vec<_>>(),
            "regions": self.plan.regions.iter().map(number).collect::<Vec<_>>(),
            "steps": self.plan.steps.len(),
            "kernels": self.plan.kernels.iter().enumerate().map(kernel).collect::<Vec<_>>(),
            "host_ops": hosts.collect::<Vec<_>>(),
            "entries": self.entries, "copies": self.notes.copies, "casts": self.notes.casts,
            "sections": self.sections.iter().map(|(n, b)| json!({ "name": n, "bytes": b })).collect::<Vec<_>>(),
        });
        if let Some(CacheFacts { element, position_bytes, capacity }) = self.cache {
            report["cache"] =
                json!({ "element": element.name(), "position_bytes": position_bytes, "capacity": capacity });
        }
        let in_parts = self.in_parts().map(
            |(terms, kernels)| json!({ "kernels": kernels, "products": terms.count(), "left_out": terms.left_out() }),
        );
        let in_parts: Vec<Value> = in_parts.collect();
        if !in_parts.is_empty() {
            report["in_parts"] = in_parts.into();
        }
        if self.tiled() > 0 {
            report["tiled"] = json!({ "kernels": self.tiled(), "products": 16, "direct_products": 36 });
        }
        if graph {
            report["graph"] = json!(self.graph);
        }
        if plan {
            report["plan"] = json!(self.plan.to_string());
        }
        report
    }

    /// A number of bytes as people read it: a long formula is its value where free dims are what estimates take them as.
    fn size(&self, bytes: &Expr) -> String {
        let text = bytes.to_string();
        let estimate =
            bytes.eval(&|s: &Symbol| self.plan.symbols.iter().find(|(name, _)| name == s).map(|p| nominal(p.1)));
        match estimate.filter(|_| text.len() > LONGEST_FORMULA) {
            Some(bytes) => format!("{bytes} by the estimates (`--json` has the formula)"),
            None => text,
        }
    }

    fn text(&self, graph: bool, plan: bool) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail, so results of it are dropped below.
        let (operations, bytes) = self.totals();
        let levels: Vec<&str> = self.tables.iter().map(|(level, _)| level.name()).collect();
        let _ = writeln!(text, "{:?}, compiled by Kiln {} for {}", self.plan.name, self.compiler, levels.join(", "));
        for (name, hash) in &self.hashes {
            let _ = writeln!(text, "  hash of {name}: {hash}");
        }
        if let Some(rounded) = self.options.get("activations") {
            let (to, where_) = match rounded.as_str() {
                "allowed" => ("int8", "the model allows it (accuracy_level 4)"),
                other => (other, "they meet weights of few bits"),
            };
            let _ = writeln!(text, "  activations are rounded to {to} where {where_}");
        }
        if let Some(CacheFacts { element, position_bytes, capacity }) = self.cache {
            let most = position_bytes.saturating_mul(capacity as u64) as f64 / 1e6;
            let _ = writeln!(
                text,
                "  keys and values in {element}: {position_bytes} bytes a token, {most:.1} MB for {capacity}"
            );
        }
        if !self.entries.is_empty() {
            let _ = writeln!(text, "  other programs over the same weights: {}", self.entries.join(", "));
        }
        for (what, ends) in [("input", &self.plan.inputs), ("output", &self.plan.outputs)] {
            for (name, ty) in self.ends(ends) {
                let _ = writeln!(text, "  {what} {name}: {ty}");
            }
        }
        for (symbol, (lo, hi)) in &self.plan.symbols {
            let _ = writeln!(text, "  free dim {symbol}: {lo} to {hi}; estimates take it as {}", nominal((*lo, *hi)));
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
        let regions: Vec<String> = self.plan.regions.iter().map(|bytes| self.size(bytes)).collect();
        if !regions.is_empty() {
            let _ = writeln!(text, "  besides the arena, bytes of run-time size: {}", regions.join("; "));
        }
        let _ = writeln!(
            text,
            "  peak memory of weights and a run, in bytes: {}; inputs that are not aligned come on top",
            self.size(&Footprint::of(&self.plan).formula())
        );
        for (name, launches, bytes) in &self.gpus {
            let _ = writeln!(
                text,
                "  {name}: {launches} launches, {:.2} MB of PTX, over the same weights",
                mega(*bytes as u64)
            );
        }
        let (hosts, copies, casts) = (self.notes.hosts.len(), self.notes.copies.len(), self.notes.casts.len());
        let (steps, kernels) = (self.plan.steps.len(), self.plan.kernels.len());
        let _ = writeln!(
            text,
            "  {steps} steps: {kernels} kernels, {hosts} host ops; the compiler added {copies} copies and {casts} casts"
        );
        for (terms, kernels) in self.in_parts() {
            let (n, left_out) = (terms.count(), terms.left_out());
            let _ = writeln!(
                text,
                "  {kernels} kernels multiply f32 as {n} products of bf16: {left_out:.1e} of a product is left out at most"
            );
        }
        if self.tiled() > 0 {
            let _ = writeln!(
                text,
                "  {} convolutions of 3x3 windows by tiles: 16 products for 36, and 16 weights are stored for 9",
                self.tiled()
            );
        }
        text.push_str(&self.by_kind());
        text.push_str(&self.by_kernel());
        text.push_str(&self.remarks());
        if let (Some(of), true) = (&self.graph, graph) {
            text.push_str(of);
        }
        if plan {
            text.push_str(&self.plan.to_string());
        }
        text
    }

    /// Estimates for each kind of kernel, the dearest first.
    fn by_kind(&self) -> String {
        let (all_operations, all_bytes) = self.totals();
        let mut kinds: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
        for k in &self.plan.kernels {
            let (count, operations, bytes) = kinds.entry(&k.what).or_default();
            *count += 1;
            *operations = operations.saturating_add(k.operations);
            *bytes = bytes.saturating_add(k.bytes);
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(what, (_, operations, bytes))| (std::cmp::Reverse((*operations, *bytes)), *what));
        let row = |(what, (count, operations, bytes)): (&str, (u64, u64, u64))| {
            [
                what.to_string(),
                count.to_string(),
                operations.to_string(),
                percent(operations, all_operations),
                bytes.to_string(),
                percent(bytes, all_bytes),
            ]
        };
        let total = ("all", (self.plan.kernels.len() as u64, all_operations, all_bytes));
        let rows: Vec<_> = kinds.into_iter().chain([total]).map(row).collect();
        let (l, r) = (Align::Left, Align::Right);
        let columns = [("kind", l), ("kernels", r), ("operations", r), ("%", r), ("bytes", r), ("%", r)];
        format!("\n{}", table("  ", columns, &rows))
    }

    /// Estimates for each kernel, and its code for the best level.
    fn by_kernel(&self) -> String {
        let (all_operations, _) = self.totals();
        let best = self.tables.last();
        let mut rows = Vec::new();
        for (n, k) in self.plan.kernels.iter().enumerate() {
            let entry = best.and_then(|(_, table)| table.0.get(n));
            let of = |f: &dyn Fn(&artifact::KernelEntry) -> String| entry.map_or(String::new(), f);
            rows.push([
                k.name.clone(),
                k.what.clone(),
                k.operations.to_string(),
                percent(k.operations, all_operations),
                k.bytes.to_string(),
                format!("{:.1}", k.operations as f64 / k.bytes.max(1) as f64),
                of(&|e| e.programs.to_string()),
                of(&|e| e.bytes.to_string()),
                of(&|e| e.emitter.clone()),
                k.origin.to_string(),
            ]);
        }
        let (l, r) = (Align::Left, Align::Right);
        let columns = [
            ("kernel", l),
            ("what", l),
            ("operations", r),
            ("%", r),
            ("bytes", r),
            ("per byte", r),
            ("programs", r),
            ("code", r),
            ("emitter", l),
            ("from", l),
        ];
        let level = best.map_or(String::new(), |(level, _)| format!(" (programs, code and emitter for {level})"));
        format!("\n  estimates; bytes are those of operands and results{level}\n{}", table("  ", columns, &rows))
    }

    /// What runs on the host, and what was added.
    fn remarks(&self) -> String {
        let l = Align::Left;
        let mut text = String::new();
        let hosts: Vec<_> = self.hosts().map(|(op, origin, why)| [op, origin.to_string(), why.to_string()]).collect();
        if !hosts.is_empty() {
            text.push('\n');
            text.push_str(&table("  ", [("host op", l), ("from", l), ("why", l)], &hosts));
        }
        let nodes = |operators: &[String], origin: &[String]| format!("{} {}", operators.join(", "), origin.join(", "));
        let copies = self.notes.copies.iter().map(|c| {
            let kernel = c.kernel.clone().unwrap_or_default();
            [kernel, c.what.clone(), c.bytes.to_string(), nodes(&c.operators, &c.origin)]
        });
        let copies: Vec<_> = copies.collect();
        if !copies.is_empty() {
            let columns = [("kernel", l), ("copy added", l), ("bytes", Align::Right), ("for", l)];
            text.push('\n');
            text.push_str(&table("  ", columns, &copies));
        }
        let casts = self
            .notes
            .casts
            .iter()
            .map(|c| [c.kernels.join(", "), format!("{} to {}", c.from, c.to), nodes(&c.operators, &c.origin)]);
        let casts: Vec<_> = casts.collect();
        if !casts.is_empty() {
            text.push('\n');
            text.push_str(&table("  ", [("kernel", l), ("cast added", l), ("for", l)], &casts));
        }
        text
    }
}

/// A share in percent.
fn percent(part: u64, all: u64) -> String {
    format!("{:.1}", 100.0 * part as f64 / all.max(1) as f64)
}

/// An expression over free dims: a number where it is one, else its text.
fn number(e: &kiln::ir::Expr) -> Value {
    e.as_const().map_or_else(|| json!(e.to_string()), |n| json!(n))
}
