//! `kiln compare`: two models, artifacts or levels on the same inputs, layer by layer.
//!
//! Invariant: values are matched by the names that the model gives them; what only one side stores is not compared, and said.

use super::Talk;
use super::options::{self, Inputs, Machinery, Ready, Request, Watching};
use super::table::{Align, table};
use clap::Args as ClapArgs;
use kiln::compare::{Difference, TOLERANCE, difference};
use kiln::data::From;
use kiln::ir::Tensor;
use kiln::ir::plan::{Plan, SlotId};
use kiln::runtime::cpu::CpuLevel;
use kiln::runtime::engine::{Context, Model};
use kiln::runtime::memory::Budget;
use kiln::{Error, Source};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Compare two models, artifacts, CPU levels or precisions layer by layer, and say where they part first (exit code 5 where they do)
///
/// Both run on the same inputs. Values are matched by name: those that both sides keep in memory, which fusion decides.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// An ONNX model or an artifact: what is right
    first: PathBuf,
    /// Another one, or the same for other CPU levels or another precision
    second: PathBuf,
    #[command(flatten)]
    inputs: Inputs,
    /// Levels of the second one, where they are others
    #[arg(long, value_delimiter = ',', value_name = "LEVEL,...")]
    second_cpu: Vec<CpuLevel>,
    /// Precision of the second one, where it is another: f32, f32-fast, strict or bf16
    #[arg(long, value_name = "P")]
    second_precision: Option<String>,
    /// What a value may differ by, relative to its largest element
    #[arg(long, value_name = "R", default_value_t = TOLERANCE)]
    tolerance: f64,
    /// Show so many values, the most different first
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    #[command(flatten)]
    machinery: Machinery,
    #[command(flatten)]
    watching: Watching,
}

/// A value of one side: when it is made, by what, and what it is.
pub(super) struct Layer {
    pub(super) step: usize,
    pub(super) by: String,
    pub(super) tensor: Tensor,
}

impl Args {
    pub fn run(&self, talk: Talk) -> Result<(), Error> {
        if !self.tolerance.is_finite() || self.tolerance < 0.0 {
            return Err(Error::Usage(format!("--tolerance {} is no tolerance", self.tolerance)));
        }
        let first = self.layers(&self.first, &self.machinery, talk)?;
        let mut other = self.machinery.clone();
        if !self.second_cpu.is_empty() {
            other.cpu.clone_from(&self.second_cpu);
        }
        if let Some(precision) = &self.second_precision {
            other.precision.clone_from(precision);
        }
        let second = self.layers(&self.second, &other, talk)?;
        let matched = first.iter().filter_map(|(name, a)| Some((name, a, second.get(name)?)));
        let mut compared: Vec<(&String, &Layer, &Layer, Difference)> =
            matched.map(|(name, a, b)| (name, a, b, difference(&a.tensor, &b.tensor))).collect();
        compared.sort_by_key(|(_, a, _, _)| a.step);
        if compared.is_empty() {
            return Err(Error::Usage("no value has the same name on both sides".into()));
        }
        let parts = compared.iter().position(|(.., d)| !d.within(self.tolerance));
        let layer = |(name, a, b, d): &(&String, &Layer, &Layer, Difference)| {
            json!({ "value": name, "step": a.step, "by": a.by, "second_by": b.by, "difference": d.to_string(),
                    "relative": relative(d), "agrees": d.within(self.tolerance) })
        };
        let layers: Vec<Value> = compared.iter().map(layer).collect();
        let report = json!({
            "agrees": parts.is_none(), "tolerance": self.tolerance, "compared": compared.len(),
            "only_first": first.len() - compared.len(), "only_second": second.len() - compared.len(),
            "first_apart": parts.and_then(|n| layers.get(n)), "layers": layers,
        });
        talk.report(&report, &self.text(&report))?;
        match parts.and_then(|n| compared.get(n)) {
            None => Ok(()),
            Some((name, a, _, d)) => Err(Error::Mismatch(format!("they part at {name:?}, made by {}: {d}", a.by))),
        }
    }

    fn layers(&self, path: &Path, machinery: &Machinery, talk: Talk) -> Result<BTreeMap<String, Layer>, Error> {
        let watching = match Source::open(path)? {
            Source::Artifact(_) => Watching { dump: None, verify_each: false },
            Source::Model { .. } => self.watching.clone(),
        };
        let request = Request {
            path,
            machinery,
            watching: &watching,
            inputs: Some(self.inputs.from().unwrap_or(From::Seed(0))),
            taps: &[],
            archive: false,
            entry: None,
        };
        let Ready { model, inputs, budget, .. } = options::ready(request, talk)?;
        layers(&model, &inputs, machinery.threads(), &budget)
    }

    fn text(&self, report: &Value) -> String {
        let word = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let mut text = String::new();
        let mut layers = report["layers"].as_array().cloned().unwrap_or_default();
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{} values compared; {} more only the first side stores, {} only the second",
            report["compared"], report["only_first"], report["only_second"]
        );
        match report["first_apart"].as_object() {
            None => {
                let _ = writeln!(text, "all agree within {:e}", self.tolerance);
            }
            Some(apart) => {
                let (value, by) = (word(&apart["value"]), word(&apart["by"]));
                let _ = writeln!(text, "they part at {value:?}, made by {by}: {}", word(&apart["difference"]));
            }
        }
        let size = |v: &Value| v["relative"].as_f64().unwrap_or(if v["agrees"] == true { 0.0 } else { f64::INFINITY });
        layers.sort_by(|a, b| size(b).total_cmp(&size(a)));
        let row = |v: &Value| {
            [word(&v["value"]), v["step"].to_string(), word(&v["difference"]), word(&v["by"]), word(&v["second_by"])]
        };
        let rows: Vec<_> = layers.iter().take(self.top).map(row).collect();
        let (l, r) = (Align::Left, Align::Right);
        let columns = [("value", l), ("step", r), ("difference", l), ("made by", l), ("on the other side", l)];
        text.push_str(&table("  ", columns, &rows));
        text
    }
}

/// The named values that a run keeps in memory, by name.
pub(super) fn layers(
    model: &Model,
    inputs: &[Tensor],
    threads: usize,
    budget: &Budget,
) -> Result<BTreeMap<String, Layer>, Error> {
    let mut context = Context::new(model, threads, budget)?;
    context.load(inputs)?;
    let plan = model.plan();
    let outputs: BTreeMap<SlotId, String> = plan.outputs.iter().map(|(n, s)| (*s, n.to_string())).collect();
    let mut layers = BTreeMap::new();
    context.run_inspected(&mut |context, step| {
        let Some(of) = plan.steps.get(step) else { return };
        for &slot in of.accesses().1.iter() {
            let own = plan.slots.get(slot).and_then(|s| s.name.as_deref().map(str::to_string));
            // Strings and sequences have no bytes to look at: the outputs of both sides are compared by `kiln run`.
            if let Some(name) = outputs.get(&slot).cloned().or(own)
                && let Ok(tensor) = context.slot_tensor(slot)
            {
                layers.insert(name, Layer { step, by: maker(plan, step), tensor });
            }
        }
    })?;
    Ok(layers)
}

pub(super) fn relative(d: &Difference) -> Option<f64> {
    match d {
        Difference::Relative(d) if d.is_finite() => Some(*d),
        Difference::Relative(_) | Difference::Type { .. } | Difference::Elements(_) => None,
    }
}

/// What a step is called.
fn maker(plan: &Plan, step: usize) -> String {
    use kiln::ir::plan::Step;
    match plan.steps.get(step) {
        Some(Step::Launch { kernel, .. }) => {
            plan.kernels.get(*kernel).map_or(String::new(), |k| format!("{} {} ({})", k.name, k.what, k.origin))
        }
        Some(Step::Host { op, origin, .. }) => format!("host {} ({origin})", op.name()),
        Some(Step::Loop(l)) => format!("loop ({})", l.origin),
        Some(Step::Refuse { origin, .. }) => format!("check ({origin})"),
        Some(Step::If { origin, .. }) => format!("if ({origin})"),
        Some(Step::Copy { .. } | Step::Bind { .. }) | None => "copy".into(),
    }
}
