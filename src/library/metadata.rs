//! What a library says of itself: one JSON object.
//!
//! Invariant: it says the same of the same model, whatever the library is called.

use super::ABI;
use crate::{Compiled, Error};
use kiln_ir::graph::Origin;
use kiln_ir::ops::Op;
use kiln_ir::plan::{Plan, SlotId, Step};
use serde_json::{Value, json};
use std::sync::Arc;

/// The steps that a library leaves to its host, in the plan's order.
pub(super) fn host_steps(plan: &Plan) -> impl Iterator<Item = (&Op, &Origin)> {
    plan.steps.iter().filter_map(|step| match step {
        Step::Host { op, origin, .. } if step.renames().is_none() => Some((op, origin)),
        Step::Host { .. } | Step::Launch { .. } | Step::Copy { .. } => None,
        Step::Bind { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => None,
    })
}

/// The text, without line breaks.
///
/// # Errors
/// None in practice: what JSON cannot hold is not in it.
pub(super) fn text(compiled: &Compiled, weights: &blake3::Hash, embedded: bool) -> Result<String, Error> {
    let plan = &compiled.plan;
    let ends = |ends: &[(Arc<str>, SlotId)]| -> Vec<Value> {
        let one = |(name, slot): &(Arc<str>, SlotId)| {
            let ty = &plan.slots[*slot].ty;
            let dim = |d: &kiln_ir::Expr| d.as_const().map_or_else(|| json!(d.to_string()), |n| json!(n));
            let dims: Vec<Value> = ty.dims.iter().map(dim).collect();
            json!({ "name": &**name, "type": ty.dtype.name(), "dims": dims, "layout": "row-major" })
        };
        ends.iter().map(one).collect()
    };
    let dims = plan.symbols.iter().map(|(s, (lo, hi))| json!({ "name": s.name(), "least": lo, "greatest": hi }));
    let levels = super::code_of(compiled).map(|code| {
        let emitters = |name: &str| code.table.0.iter().filter(|k| k.emitter == name).count();
        json!({
            "level": code.level.name(), "code_bytes": code.bytes.len(),
            "kernels": { "wide": emitters("wide"), "cranelift": emitters("cranelift") },
        })
    });
    let host_steps = host_steps(plan)
        .map(|(op, nodes)| json!({ "op": op.what(), "text": op.to_string(), "nodes": nodes.to_string() }));
    let regions: Vec<String> = plan.regions.iter().map(ToString::to_string).collect();
    let report = json!({
        "abi": ABI,
        "name": plan.name,
        "compiler": compiled.manifest.compiler,
        "options": compiled.manifest.options,
        "hashes": compiled.manifest.hashes,
        "inputs": ends(&plan.inputs),
        "outputs": ends(&plan.outputs),
        "dims": dims.collect::<Vec<_>>(),
        "host_steps": host_steps.collect::<Vec<_>>(),
        "precision": compiled.manifest.options.get("precision"),
        "levels": levels.collect::<Vec<_>>(),
        "weights": { "bytes": plan.weight_bytes, "blake3": weights.to_string(), "embedded": embedded },
        "memory": { "arena_bytes": plan.arena_bytes, "regions": regions },
    });
    serde_json::to_string(&report).map_err(|e| Error::Internal(e.to_string()))
}
