//! Steps that a library leaves to its host.
//!
//! Invariant: the host gets the step's text, its operands and memory for its results, all with extents that are known, and writes to
//! nothing but those results; a library without such steps never calls it.

use super::asm::{Code, Piece};
use super::run::{CONTEXT_STEP, CONTEXT_STEP_HOST};
use super::steps::Run;
use super::tables::Tables;
use cranelift_codegen::ir::Value;
use cranelift_codegen::ir::condcodes::IntCC;
use kiln_ir::plan::Step;

/// Words of `kiln_operand` and `kiln_step` in the header.
pub(super) const OPERAND: i64 = 5;
pub(super) const STEP: i64 = 7;

/// Two numbers of 32 bits in one word, the first at the lower address.
fn pair(c: &mut Code<'_, '_>, low: usize, high: usize) -> Value {
    let half = |n: usize| u64::from(u32::try_from(n).unwrap_or(u32::MAX));
    c.int((half(low) | half(high) << 32) as i64)
}

/// Refuses a context that has no function for the steps of the host.
pub(super) fn check(c: &mut Code<'_, '_>, t: &Tables<'_>, context: Value) {
    if t.host.steps.is_empty() {
        return;
    }
    let function = c.load(context, CONTEXT_STEP);
    let none = c.icmp_imm(IntCC::Equal, function, 0);
    let names: Vec<&str> = t.host.names(t.plan);
    let text = format!(
        "the host must supply {} of the model ({}): the function `host` takes who does",
        if t.host.steps.len() == 1 { "a step".into() } else { format!("{} steps", t.host.steps.len()) },
        names.join(", ")
    );
    c.guard(none, |c| c.fail(2, &[Piece::Text(&text)]));
}

/// `host(context, function, host) -> status`
pub(super) fn host(c: &mut Code<'_, '_>, p: &[Value]) {
    let &[context, function, host] = p else { return };
    let null = c.icmp_imm(IntCC::Equal, context, 0);
    c.guard(null, |c| c.fail(2, &[]));
    c.store(function, context, CONTEXT_STEP);
    c.store(host, context, CONTEXT_STEP_HOST);
    let ok = c.int32(0);
    c.ret(ok);
}

/// Hands the n-th step of the plan to the host.
pub(super) fn call(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, n: usize) {
    let Some(Step::Host { op, inputs, outputs, origin }) = t.plan.steps.get(n) else { return };
    let operands = c.add_imm(run.0, t.frame.operands);
    let mut extents = c.add_imm(run.0, t.frame.extents);
    for (k, &slot) in inputs.iter().chain(outputs).enumerate() {
        let ty = &t.plan.slots[slot].ty;
        let row = c.add_imm(operands, k as i64 * OPERAND * 8);
        let (pointer, name, bytes) = (run.pointer(c, t, slot), c.text(ty.dtype.name()), run.bytes(c, t, slot));
        let sizes = pair(c, ty.rank(), ty.dtype.size());
        for (word, value) in [pointer, name, extents, sizes, bytes].into_iter().enumerate() {
            c.store(value, row, word as i32 * 8);
        }
        for (axis, dim) in ty.dims.iter().enumerate() {
            let extent = run.value(c, t, dim);
            c.store(extent, extents, axis as i32 * 8);
        }
        extents = c.add_imm(extents, ty.rank() as i64 * 8);
    }
    let number = t.host.steps.iter().position(|&k| k == n).unwrap_or_default();
    let step = c.add_imm(run.0, t.frame.step);
    let (name, text, nodes) = (c.text(op.what()), c.text(&op.to_string()), c.text(&origin.to_string()));
    let (first, second) = (pair(c, number, inputs.len()), pair(c, outputs.len(), 0));
    let dims = c.load(run.0, t.frame.dims as i32);
    for (word, value) in [name, text, nodes, first, second, operands, dims].into_iter().enumerate() {
        c.store(value, step, word as i32 * 8);
    }
    let context = c.load(run.0, t.frame.context as i32);
    let (function, host) = (c.load(context, CONTEXT_STEP), c.load(context, CONTEXT_STEP_HOST));
    let (message, bytes) = c.message.unwrap_or((run.0, run.0));
    let status = c.call_at(function, &[host, step, message, bytes]);
    c.guard(status, |c| c.ret(status));
}
