//! Loops and branches of a plan as code.
//!
//! Invariant: no pointer moves while a loop runs; a turn reads and makes slots that stay where they are, and every copy between an
//! element and its whole lies within both. What a run does is what the engine does: the same turns, the same order, the same refusals.

use super::asm::{Code, Piece, Routine};
use super::host;
use super::steps::Run;
use super::tables::Tables;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use cranelift_frontend::Variable;
use kiln_ir::Expr;
use kiln_ir::graph::Origin;
use kiln_ir::plan::{Elements, Loop, Refusal, SlotId, Step};
use std::ops::Range;

/// The steps of a range, each with those that belong to it.
pub(super) fn range(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, range: Range<usize>) {
    let mut n = range.start;
    while n < range.end {
        let simple = (n..range.end).find(|&k| t.plan.steps.get(k).is_none_or(is_control)).unwrap_or(range.end);
        straight(c, t, run, n..simple);
        let Some(step) = t.plan.steps.get(simple).filter(|_| simple < range.end) else { return };
        // The verifier has checked that these steps are there.
        let next = simple.saturating_add(1).saturating_add(step.inner());
        match step {
            Step::If { condition, then, .. } => {
                let middle = simple.saturating_add(1).saturating_add(*then);
                let taken = truth(c, t, run, *condition);
                c.branch(
                    taken,
                    |c| self::range(c, t, run, simple + 1..middle),
                    |c| self::range(c, t, run, middle..next),
                );
            }
            Step::Loop(l) => repeat(c, t, run, l, simple + 1..next),
            Step::Bind { from, to, origin } => bind(c, t, run, *from, *to, origin),
            Step::Refuse { why, origin } => refuse(c, t, run, why, origin),
            Step::Host { .. } => host::call(c, t, run, simple),
            Step::Launch { .. } | Step::Copy { .. } => {}
        }
        n = next;
    }
}

/// Whether a step is more than a row of the table of steps.
fn is_control(step: &Step) -> bool {
    match step {
        Step::Launch { .. } | Step::Copy { .. } => false,
        Step::Host { .. } => step.renames().is_none(),
        Step::Bind { .. } | Step::Refuse { .. } | Step::If { .. } | Step::Loop(_) => true,
    }
}

/// Steps that are rows of the table.
fn straight(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, range: Range<usize>) {
    let (Some(&first), Some(&last)) = (t.rows.get(range.start), t.rows.get(range.end)) else { return };
    if first == last {
        return;
    }
    let (message, bytes) = c.message.unwrap_or((run.0, run.0));
    let (first, last) = (c.int(first), c.int(last));
    let status = c.get(Routine::Steps, &[run.0, first, last, message, bytes]);
    c.guard(status, |c| c.ret(status));
}

fn truth(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, slot: SlotId) -> Value {
    let place = run.pointer(c, t, slot);
    let byte = c.load_of(types::I8, place);
    c.icmp_imm(IntCC::NotEqual, byte, 0)
}

fn number(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, slot: SlotId) -> Value {
    let place = run.pointer(c, t, slot);
    c.load(place, 0)
}

/// Copies a slot to one whose extents may differ in what they are called, not in what they are.
fn bind(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, from: SlotId, to: SlotId, origin: &Origin) {
    let (have, want) = (&t.plan.slots[from].ty, &t.plan.slots[to].ty);
    let found: Vec<Value> = have.dims.iter().map(|d| run.value(c, t, d)).collect();
    for (axis, dim) in want.dims.iter().enumerate().filter(|(axis, dim)| have.dims.get(*axis) != Some(*dim)) {
        let (wanted, Some(&is)) = (run.value(c, t, dim), found.get(axis)) else { continue };
        let differ = c.icmp(IntCC::NotEqual, wanted, is);
        c.guard(differ, |c| other_shape(c, t, to, origin, &found));
    }
    copy(c, t, run, from, to);
}

/// Returns 3 where it is to be refused, in the engine's words.
fn refuse(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, why: &Refusal, origin: &Origin) {
    match why {
        Refusal::Always(message) => {
            let text = format!("{origin}: {message}");
            let always = c.int(1);
            c.guard(always, |c| c.fail(3, &[Piece::Text(&text)]));
        }
        Refusal::Unequal(sides) => {
            let sides = (&sides.0, &sides.1);
            let (left, right) = (run.value(c, t, sides.0), run.value(c, t, sides.1));
            let differ = c.icmp(IntCC::NotEqual, left, right);
            c.guard(differ, |c| unequal(c, origin, sides, (left, right)));
        }
    }
}

/// Says which two sizes should be equal and are not, and returns 3.
pub(super) fn unequal(c: &mut Code<'_, '_>, origin: &Origin, (l, r): (&Expr, &Expr), (left, right): (Value, Value)) {
    let start = format!("{origin} needs {l} = {r}, which are ");
    c.fail(3, &[Piece::Text(&start), Piece::Number(left), Piece::Text(" and "), Piece::Number(right)]);
}

fn copy(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, from: SlotId, to: SlotId) {
    let (source, target, bytes) = (run.pointer(c, t, from), run.pointer(c, t, to), run.bytes(c, t, from));
    c.call(Routine::Move, &[source, target, bytes]);
}

/// Says that a slot should have got a tensor of other extents, and returns 3.
fn other_shape(c: &mut Code<'_, '_>, t: &Tables<'_>, slot: SlotId, origin: &Origin, found: &[Value]) {
    let ty = &t.plan.slots[slot].ty;
    let (start, end) = (format!("{origin} gave {}[", ty.dtype), format!("] where the plan has {ty}"));
    let mut pieces = vec![Piece::Text(&start)];
    for (n, &extent) in found.iter().enumerate() {
        if n > 0 {
            pieces.push(Piece::Text(", "));
        }
        pieces.push(Piece::Number(extent));
    }
    pieces.push(Piece::Text(&end));
    c.fail(3, &pieces);
}

/// The extent of the first axis.
fn extent(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, e: &Elements) -> Value {
    match t.plan.slots[e.whole].ty.dims.first() {
        Some(dim) => run.value(c, t, dim),
        None => c.int(0),
    }
}

/// The greatest number of turns.
fn most_turns(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, l: &Loop) -> Value {
    let mut most = l.times.map(|slot| number(c, t, run, slot));
    for e in &l.scanned {
        let extent = extent(c, t, run, e);
        if let Some(most) = most {
            let differ = c.icmp(IntCC::NotEqual, most, extent);
            c.guard(differ, |c| {
                let start = format!("{} scans tensors of ", l.origin);
                let (one, other) = (Piece::Number(most), Piece::Number(extent));
                c.fail(3, &[Piece::Text(&start), one, Piece::Text(" and "), other, Piece::Text(" elements")]);
            });
        }
        most = Some(extent);
    }
    // The verifier refuses a loop without an end.
    most.unwrap_or_else(|| c.int(0))
}

/// Where the element of a turn is in its whole: from the front, or from the back.
fn place(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, e: &Elements, turn: Value, count: Value) -> (Value, Value) {
    let at = if e.backward {
        let last = c.add_imm(count, -1);
        c.b.ins().isub(last, turn)
    } else {
        turn
    };
    let (bytes, whole) = (run.bytes(c, t, e.element), run.pointer(c, t, e.whole));
    let offset = c.b.ins().imul(at, bytes);
    (c.b.ins().iadd(whole, offset), bytes)
}

/// Says that a loop has made another number of elements than there is room for.
fn other_turns(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, (l, e): (&Loop, &Elements), turns: Value) {
    let mut found = vec![turns];
    let element = &t.plan.slots[e.element].ty.dims;
    found.extend(element.iter().map(|d| run.value(c, t, d)));
    other_shape(c, t, e.whole, &l.origin, &found);
}

fn repeat(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, l: &Loop, body: Range<usize>) {
    let most = most_turns(c, t, run, l);
    let (zero, one) = (c.int(0), c.b.ins().iconst(types::I8, 1));
    let turn = c.variable(zero);
    let first = l.first.map_or(one, |slot| truth(c, t, run, slot));
    let go = c.variable(first);
    c.while_(
        |c| {
            let (at, go) = (c.b.use_var(turn), c.b.use_var(go));
            let left = c.icmp(IntCC::SignedLessThan, at, most);
            c.b.ins().band(left, go)
        },
        |c| one_turn(c, t, run, (l, body), (turn, go, most)),
    );
    let turns = c.b.use_var(turn);
    for e in &l.collected {
        let room = extent(c, t, run, e);
        let differ = c.icmp(IntCC::NotEqual, turns, room);
        c.guard(differ, |c| other_turns(c, t, run, (l, e), turns));
    }
}

fn one_turn(
    c: &mut Code<'_, '_>,
    t: &Tables<'_>,
    run: Run,
    (l, body): (&Loop, Range<usize>),
    (turn, go, most): (Variable, Variable, Value),
) {
    let at = c.b.use_var(turn);
    if let Some(slot) = l.counter {
        let place = run.pointer(c, t, slot);
        c.store(at, place, 0);
    }
    for e in &l.scanned {
        let (source, bytes) = place(c, t, run, e, at, most);
        let target = run.pointer(c, t, e.element);
        c.call(Routine::Move, &[source, target, bytes]);
    }
    range(c, t, run, body);
    let next = c.add_imm(at, 1);
    for e in &l.collected {
        let room = extent(c, t, run, e);
        let full = c.icmp(IntCC::SignedGreaterThanOrEqual, at, room);
        c.guard(full, |c| other_turns(c, t, run, (l, e), next));
        let (target, bytes) = place(c, t, run, e, at, room);
        let source = run.pointer(c, t, e.element);
        c.call(Routine::Move, &[source, target, bytes]);
    }
    // Asked before the states change: it may be one of them.
    if let Some(slot) = l.again {
        let again = truth(c, t, run, slot);
        c.b.def_var(go, again);
    }
    for &(made, state) in &l.carried {
        copy(c, t, run, made, state);
    }
    c.b.def_var(turn, next);
}
