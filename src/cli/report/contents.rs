//! What a report says, as data.
//!
//! Invariant: numbers are those of the plan, of the profile and of the comparison; the page only draws them.

use super::listing::Listings;
use crate::cli::compare::{Layer, relative};
use kiln::compare::{difference, tolerance};
use kiln::ir::expr::{Expr, Symbol};
use kiln::ir::plan::{Place, Plan, SlotId, Step};
use kiln::notes::Notes;
use kiln::runtime::artifact;
use kiln::runtime::engine::{LoadError, Model};
use kiln::tune::record::{self, Record, best_of};
use kiln::{Error, VERSION, gpu};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Everything that a report is made of.
pub struct Contents<'a> {
    pub model: &'a Model,
    /// What the report calls it.
    pub name: String,
    pub notes: &'a Notes,
    /// The values of the plan's symbols in the run that was measured.
    pub dims: &'a [Option<i64>],
    /// The report of `kiln profile`.
    pub measured: Value,
    /// The reports of `kiln explain`, by kernel; empty where the model was not compiled now.
    pub explained: Vec<Option<Value>>,
    pub accuracy: Accuracy,
    pub records: &'a [Record],
    /// The hashes of places where fusion and layout have a choice.
    pub places: BTreeSet<String>,
    pub gpu: Option<&'a gpu::Compiled>,
}

/// The values of a run beside those of another one.
pub enum Accuracy {
    /// Why there is nothing to compare with.
    None(String),
    /// What was compared.
    Compared {
        /// What the other run was of.
        with: String,
        /// Values by name.
        own: BTreeMap<String, Layer>,
        /// Values of the other run.
        other: BTreeMap<String, Layer>,
    },
}

/// PTX of all kernels together at most.
const MOST_PTX: usize = 1 << 20;

impl Contents<'_> {
    fn plan(&self) -> &Plan {
        self.model.plan()
    }

    pub fn json(self) -> Result<Value, Error> {
        let (plan, level) = (self.plan(), self.model.level());
        let file = self.model.artifact();
        let code = file.section(&artifact::code_section(level)).map_err(LoadError::Artifact)?;
        let mut listings = Listings::default();
        // What takes the most time is listed first, should there be no room for all.
        let mut order: Vec<usize> = (0..plan.steps.len()).collect();
        let share = |n: &usize| self.measured["steps"][*n]["share"].as_f64().unwrap_or(0.0);
        order.sort_by(|a, b| share(b).total_cmp(&share(a)));
        let mut numbers: HashMap<usize, usize> = HashMap::new();
        for n in order {
            if let Some(Step::Launch { kernel, .. }) = plan.steps.get(n)
                && let Some(entry) = self.model.kernels().0.get(*kernel)
                && let Some(number) = listings.add(code, entry)
            {
                numbers.insert(*kernel, number);
            }
        }
        let ends = |ends: &[(std::sync::Arc<str>, SlotId)]| -> Vec<Value> {
            let end = |(name, slot): &(std::sync::Arc<str>, SlotId)| json!({ "name": name.to_string(), "type": plan.slots[*slot].ty.to_string() });
            ends.iter().map(end).collect()
        };
        let symbols = plan.symbols.iter().zip(self.dims).map(
            |((symbol, (lo, hi)), value)| json!({ "name": symbol.name(), "least": lo, "greatest": hi, "value": value }),
        );
        Ok(json!({
            "name": self.name, "graph": plan.name, "version": VERSION, "level": level.name(), "processor": record::cpu_name(),
            "threads": self.measured["threads"], "total": self.measured["total"], "machine": self.measured["machine"],
            "counters": self.measured["counters"], "nominal": plan.is_symbolic(),
            "options": file.options(), "hashes": file.hashes(),
            "inputs": ends(&plan.inputs), "outputs": ends(&plan.outputs), "symbols": symbols.collect::<Vec<_>>(),
            "weight_bytes": plan.weight_bytes, "arena_bytes": plan.arena_bytes, "live_bytes": plan.live_bytes,
            "code_bytes": code.len(), "kernels": plan.kernels.len(),
            "steps": self.steps(&numbers), "slots": self.slots(), "listings": listings.texts,
            "accuracy": self.accuracy(), "tuning": self.tuning(), "gpu": self.gpu(),
        }))
    }

    /// The steps with what was measured of them, and which earlier steps they read from.
    fn steps(&self, listings: &HashMap<usize, usize>) -> Vec<Value> {
        let plan = self.plan();
        let mut made: HashMap<SlotId, usize> = HashMap::new();
        let inputs: HashMap<SlotId, &str> = plan.inputs.iter().map(|(name, slot)| (*slot, &**name)).collect();
        let outputs: HashMap<SlotId, &str> = plan.outputs.iter().map(|(name, slot)| (*slot, &**name)).collect();
        let mut hosts = self.notes.hosts.iter();
        let mut steps = Vec::new();
        for (n, step) in plan.steps.iter().enumerate() {
            let (reads, writes) = step.accesses();
            let ty = |slot: &SlotId| plan.slots[*slot].ty.to_string();
            let read = |slot: &SlotId| {
                let from = made.get(slot).map_or_else(|| json!(inputs.get(slot)), |from| json!(from));
                json!({ "from": from, "type": ty(slot) })
            };
            let mut of = self.measured["steps"][n].clone();
            of["reads"] = reads.iter().map(read).collect();
            of["result"] = json!(writes.iter().map(ty).collect::<Vec<_>>().join(", "));
            of["gives"] = json!(writes.iter().filter_map(|slot| outputs.get(slot)).collect::<Vec<_>>());
            match step {
                Step::Launch { kernel, .. } => {
                    of["kind"] = json!("kernel");
                    of["ops"] = json!(self.notes.kernels.get(*kernel).map(|k| &k.ops));
                    of["operators"] = json!(self.notes.kernels.get(*kernel).map(|k| &k.operators));
                    of["listing"] = json!(listings.get(kernel));
                    of["explained"] = json!(self.explained.get(*kernel));
                    if let Some(entry) = self.model.kernels().0.get(*kernel) {
                        of["code_bytes"] = json!(entry.bytes);
                        of["programs"] = json!(entry.programs.to_string());
                    }
                }
                Step::Host { .. } => {
                    of["kind"] = json!("host");
                    of["why"] = json!(hosts.next().map(|h| &h.why));
                }
                Step::Copy { .. } | Step::Bind { .. } => of["kind"] = json!("copy"),
                Step::Refuse { .. } => of["kind"] = json!("check"),
                Step::If { .. } => of["kind"] = json!("if"),
                Step::Loop(_) => of["kind"] = json!("loop"),
            }
            made.extend(writes.iter().map(|slot| (*slot, n)));
            steps.push(of);
        }
        steps
    }

    /// The value of a size in the run that was measured.
    fn value(&self, e: &Expr) -> u64 {
        let value = |s: &Symbol| {
            let n = self.plan().symbols.iter().position(|(name, _)| name == s)?;
            self.dims.get(n).copied().flatten()
        };
        e.eval(&value).and_then(|v| u64::try_from(v).ok()).unwrap_or(0)
    }

    /// What lies in the arena and in the regions, one region after another behind the arena.
    fn slots(&self) -> Vec<Value> {
        let plan = self.plan();
        let mut starts = Vec::new();
        let mut end = plan.arena_bytes;
        for region in &plan.regions {
            starts.push(end);
            end = end.saturating_add(self.value(region).next_multiple_of(64));
        }
        let slot = |(slot, life): (&kiln::ir::plan::Slot, Option<(usize, usize)>)| {
            let at = match slot.place {
                Place::Arena(at) => at,
                Place::Region(n) => *starts.get(n)?,
                Place::Weights(_) | Place::Input(_) | Place::Output(_) | Place::Host => return None,
            };
            let (first, last) = life?;
            Some(json!({ "name": slot.name.as_deref(), "type": slot.ty.to_string(), "at": at,
                         "bytes": self.value(&slot.ty.bytes()), "first": first, "last": last }))
        };
        plan.slots.iter().map(|(_, slot)| slot).zip(plan.lives()).filter_map(slot).collect()
    }

    fn accuracy(&self) -> Value {
        let (with, own, other) = match &self.accuracy {
            Accuracy::None(why) => return json!({ "why": why }),
            Accuracy::Compared { with, own, other } => (with, own, other),
        };
        let tolerance = tolerance(self.plan().slots.iter().map(|(_, slot)| slot.ty.dtype));
        let mut layers: Vec<(usize, Value)> = Vec::new();
        for (name, a) in own {
            let Some(b) = other.get(name) else { continue };
            let d = difference(&b.tensor, &a.tensor);
            layers.push((
                a.step,
                json!({
                    "value": name, "step": a.step, "type": format!("{}{:?}", a.tensor.dtype(), a.tensor.shape()),
                    "difference": d.to_string(), "relative": relative(&d), "agrees": d.within(tolerance),
                }),
            ));
        }
        layers.sort_by_key(|(step, _)| *step);
        let layers: Vec<Value> = layers.into_iter().map(|(_, layer)| layer).collect();
        json!({ "with": with, "tolerance": tolerance, "alone": own.len() - layers.len(), "layers": layers })
    }

    /// For each kernel that has records its trials, in the order in which they were made.
    fn tuning(&self) -> Value {
        let level = self.model.level().name();
        let mut by_key: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
        for r in self.records.iter().filter(|r| r.level == level) {
            by_key.entry(&r.kernel).or_default().push(r);
        }
        let mut named: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (kernel, of_plan) in self.notes.kernels.iter().zip(&self.plan().kernels) {
            named.entry(&kernel.key).or_default().push(&of_plan.name);
        }
        let cpu = record::cpu_name();
        let kernel = |(key, records): (&&str, &Vec<&Record>)| {
            let kernels = named.get(*key)?;
            let first = records.first()?;
            let usable = usable(records, &cpu);
            let trials = records
                .iter()
                .map(|r| json!({ "ns": r.p20_ns, "default": r.default, "last": r.last, "schedule": r.schedule }));
            Some(json!({ "kernels": kernels, "what": first.what, "shapes": first.shapes,
                         "chosen": best_of(&usable).map(|r| &r.schedule), "stale": records.len() - usable.len(),
                         "trials": trials.collect::<Vec<_>>() }))
        };
        let of_model: Vec<Value> = by_key.iter().filter_map(kernel).collect();
        let place = |(key, records): (&&str, &Vec<&Record>)| {
            let first = records.first().filter(|_| self.places.contains(*key))?;
            let usable = usable(records, &cpu);
            let mut ways: BTreeMap<&str, f64> = BTreeMap::new();
            for r in records {
                let least = ways.entry(&r.schedule).or_insert(r.p20_ns);
                *least = least.min(r.p20_ns);
            }
            let rules = records.iter().find(|r| r.default).map(|r| &r.schedule);
            Some(json!({ "what": first.what, "value": first.shapes, "rules": rules, "ways": ways,
                         "chosen": best_of(&usable).map(|r| &r.schedule) }))
        };
        let places: Vec<Value> = by_key.iter().filter_map(place).collect();
        json!({ "records": self.records.len(), "kernels": of_model, "places": places })
    }

    fn gpu(&self) -> Value {
        let Some(gpu) = self.gpu else { return Value::Null };
        let mut left = MOST_PTX;
        let mut kernels = Vec::new();
        for (kernel, of_plan) in gpu.kernels.iter().zip(&gpu.plan.kernels) {
            for module in &kernel.modules {
                let text = (module.text.len() <= left).then_some(&module.text);
                left -= text.map_or(0, String::len);
                kernels.push(
                    json!({ "name": module.launch.entry, "what": of_plan.what, "origin": of_plan.origin.to_string(),
                                     "blocks": module.launch.blocks.to_string(), "threads": module.launch.threads,
                                     "shared": module.launch.dynamic_shared, "ptx": text }),
                );
            }
        }
        json!({ "target": gpu.architecture.name, "kernels": kernels })
    }
}

/// The records that a compilation for that processor can use.
fn usable<'r>(records: &[&'r Record], cpu: &str) -> Vec<&'r Record> {
    records.iter().copied().filter(|r| r.stale(cpu).is_none()).collect()
}
