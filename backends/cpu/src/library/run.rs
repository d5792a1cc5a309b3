//! How a library runs its plan.
//!
//! Invariant: a run writes to the caller's outputs and arena and to nothing else, so runs with arenas of their own never meet.
//! No step is begun before dims, sizes and pointers have been checked.

use super::Part;
use super::asm::{Code, I64, Piece, Routine};
use super::describe::fail_end;
use super::sizes::aligned;
use super::steps::{Run, number};
use super::tables::{BASE_ARENA, BASE_REGIONS, BASE_WEIGHTS, Ends, SLOT_ROW, Tables};
use super::{control, host};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

/// Words of a context, see `kiln_context` in the header.
const CONTEXT_MAGIC: i32 = 0;
pub(super) const CONTEXT_LEVEL: i32 = 8;
const CONTEXT_WEIGHTS: i32 = 16;
pub(super) const CONTEXT_PARALLEL: i32 = 24;
pub(super) const CONTEXT_HOST: i32 = 32;
pub(super) const CONTEXT_STEP: i32 = 40;
pub(super) const CONTEXT_STEP_HOST: i32 = 48;

/// Offsets in `kiln_options`.
const OPTION_ABI: i32 = 0;
const OPTION_LEVEL: i32 = 4;
const OPTION_WEIGHTS: i32 = 8;
const OPTION_WEIGHTS_BYTES: i32 = 16;
const OPTION_PARALLEL: i32 = 24;
const OPTION_HOST: i32 = 32;

/// Bytes of a file of weights: the section, then its hash, which tells the weights of one model from those of another.
pub(super) fn weights_file_bytes(t: &Tables<'_>) -> i64 {
    i64::try_from(t.plan.weight_bytes).unwrap_or(i64::MAX).saturating_add(t.source.weights_hash.len() as i64)
}

/// What an initialised context begins with; another for every model.
fn magic(t: &Tables<'_>) -> i64 {
    let (hash, _) = t.source.weights_hash.split_at(8);
    let word = hash.iter().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
    // A context that is all zeros is not initialised.
    (word | 1) as i64
}

/// `init(context, options, message, bytes)`
pub(super) fn init(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[context, options, message, bytes] = p else { return };
    c.message = Some((message, bytes));
    c.no_message();
    let null = c.icmp_imm(IntCC::Equal, context, 0);
    c.guard(null, |c| c.fail(2, &[Piece::Text("the context is a null pointer")]));
    let zero = c.int(0);
    c.store(zero, context, CONTEXT_MAGIC);
    let best = c.int(-1);
    let (level, weights, weights_bytes) = (c.variable(best), c.variable(zero), c.variable(zero));
    let (parallel, host) = (c.variable(zero), c.variable(zero));
    let abi = c.int(i64::from(super::ABI));
    let version = c.variable(abi);
    c.branch(
        options,
        |c| {
            let wanted = c.load32(options, OPTION_LEVEL);
            let wanted = c.b.ins().ireduce(types::I32, wanted);
            let wanted = c.b.ins().sextend(I64, wanted);
            c.b.def_var(level, wanted);
            let found = c.load32(options, OPTION_ABI);
            c.b.def_var(version, found);
            for (variable, offset) in [
                (weights, OPTION_WEIGHTS),
                (weights_bytes, OPTION_WEIGHTS_BYTES),
                (parallel, OPTION_PARALLEL),
                (host, OPTION_HOST),
            ] {
                let value = c.load(options, offset);
                c.b.def_var(variable, value);
            }
        },
        |_| {},
    );
    let found = c.b.use_var(version);
    let other = c.icmp(IntCC::NotEqual, found, abi);
    c.guard(other, |c| {
        let wants = format!(", this library has {}", super::ABI);
        c.fail(2, &[Piece::Text("the options are of version "), Piece::Number(found), Piece::Text(&wants)]);
    });
    let index = choose(c, t, level);
    let pointer = match (t.plan.weight_bytes, t.source.embedded) {
        (0, _) => c.int(0),
        (_, true) => c.address(Part::Weights, 0),
        (_, false) => outside_weights(c, t, weights, weights_bytes),
    };
    c.store(index, context, CONTEXT_LEVEL);
    c.store(pointer, context, CONTEXT_WEIGHTS);
    let (parallel, host) = (c.b.use_var(parallel), c.b.use_var(host));
    c.store(parallel, context, CONTEXT_PARALLEL);
    c.store(host, context, CONTEXT_HOST);
    c.store(zero, context, CONTEXT_STEP);
    c.store(zero, context, CONTEXT_STEP_HOST);
    let magic = c.int(magic(t));
    c.store(magic, context, CONTEXT_MAGIC);
    let ok = c.int32(0);
    c.ret(ok);
}

/// The index of the level to run: the one that is wanted, or the best that runs here.
fn choose(c: &mut Code<'_, '_>, t: &Tables<'_>, level: cranelift_frontend::Variable) -> Value {
    let here = c.get(Routine::Level, &[]);
    let here = c.b.ins().sextend(I64, here);
    let wanted = c.b.use_var(level);
    let none = c.int(-1);
    let chosen = c.variable(none);
    for (n, of) in t.source.levels.iter().enumerate() {
        let this = c.icmp_imm(IntCC::Equal, wanted, of.needs.number());
        let best = c.icmp_imm(IntCC::SignedLessThan, wanted, 0);
        let asked = c.b.ins().bor(this, best);
        let runs = c.icmp_imm(IntCC::SignedGreaterThanOrEqual, here, of.needs.number());
        let takes = c.b.ins().band(asked, runs);
        let (number, before) = (c.int(n as i64), c.b.use_var(chosen));
        let now = c.b.ins().select(takes, number, before);
        c.b.def_var(chosen, now);
    }
    let index = c.b.use_var(chosen);
    let missing = c.icmp_imm(IntCC::SignedLessThan, index, 0);
    let names: Vec<String> = t.source.levels.iter().map(|l| format!("{} ({})", l.name, l.needs.number())).collect();
    c.guard(missing, |c| {
        let there = format!("the library has code for {}; level ", names.join(", "));
        let (asked, runs) = (" was asked for (-1: the best), this CPU runs up to ", " (-1: none)");
        c.fail(
            4,
            &[Piece::Text(&there), Piece::Number(wanted), Piece::Text(asked), Piece::Number(here), Piece::Text(runs)],
        );
    });
    index
}

/// The caller's weights, checked: their size, and that the hash at their end is that of this model.
fn outside_weights(
    c: &mut Code<'_, '_>,
    t: &Tables<'_>,
    weights: cranelift_frontend::Variable,
    bytes: cranelift_frontend::Variable,
) -> Value {
    let (pointer, bytes) = (c.b.use_var(weights), c.b.use_var(bytes));
    let null = c.icmp_imm(IntCC::Equal, pointer, 0);
    c.guard(null, |c| {
        c.fail(2, &[Piece::Text("the weights are not in the library: options.weights must point to them")])
    });
    let wanted = weights_file_bytes(t);
    let short = c.icmp_imm(IntCC::NotEqual, bytes, wanted);
    c.guard(short, |c| {
        let wants = format!(" bytes, those of this model {wanted}");
        c.fail(3, &[Piece::Text("the weights have "), Piece::Number(bytes), Piece::Text(&wants)]);
    });
    let (own, end) = (c.address(Part::Data, t.hash), t.plan.weight_bytes);
    let offset = c.int(end as i64);
    let theirs = c.b.ins().iadd(pointer, offset);
    let mut differ = c.int(0);
    for word in 0..t.source.weights_hash.len() / 8 {
        let (a, b) = (c.load(own, word as i32 * 8), c.load(theirs, word as i32 * 8));
        let difference = c.b.ins().bxor(a, b);
        differ = c.b.ins().bor(differ, difference);
    }
    c.guard(differ, |c| c.fail(3, &[Piece::Text("the weights are those of another model")]));
    pointer
}

/// `run(context, inputs, outputs, dims, arena, arena_bytes, message, bytes)`
pub(super) fn run(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[context, inputs, outputs, dims, arena, arena_bytes, message, bytes] = p else { return };
    c.message = Some((message, bytes));
    c.no_message();
    let null = c.icmp_imm(IntCC::Equal, context, 0);
    c.guard(null, |c| c.fail(2, &[Piece::Text("the context is a null pointer")]));
    let (found, wanted) = (c.load(context, CONTEXT_MAGIC), c.int(magic(t)));
    let other = c.icmp(IntCC::NotEqual, found, wanted);
    c.guard(other, |c| c.fail(2, &[Piece::Text("the context was not initialised for this model")]));
    host::check(c, t, context);
    let status = c.get(Routine::Check, &[dims, message, bytes]);
    c.guard(status, |c| c.ret(status));
    let needed = c.get(Routine::ArenaBytes, &[dims]);
    let absurd = c.icmp_imm(IntCC::Equal, needed, 0);
    c.guard(absurd, |c| c.fail(3, &[Piece::Text("with these dims a tensor would have a size that no memory holds")]));
    let null = c.icmp_imm(IntCC::Equal, arena, 0);
    c.guard(null, |c| c.fail(2, &[Piece::Text("the arena is a null pointer")]));
    let small = c.icmp(IntCC::UnsignedLessThan, arena_bytes, needed);
    c.guard(small, |c| {
        let (has, needs) = (Piece::Text("the arena has "), Piece::Text(" bytes, the run needs "));
        c.fail(2, &[has, Piece::Number(arena_bytes), needs, Piece::Number(needed)]);
    });
    let frame = t.frame;
    let start = aligned(c, arena);
    let values = c.add_imm(start, frame.values);
    let absurd = c.get(Routine::Formulas, &[dims, values]);
    c.guard(absurd, |c| c.fail(3, &[Piece::Text("with these dims a tensor would have a size that no memory holds")]));

    let bases = c.add_imm(start, frame.bases);
    let weights = c.load(context, CONTEXT_WEIGHTS);
    c.store(weights, bases, (BASE_WEIGHTS * 8) as i32);
    let tensors = c.add_imm(start, frame.arena);
    c.store(tensors, bases, (BASE_ARENA * 8) as i32);
    let mut next = c.add_imm(start, frame.regions);
    for (n, region) in t.plan.regions.iter().enumerate() {
        c.store(next, bases, (BASE_REGIONS as i32 + n as i32) * 8);
        let bytes = Run(start).value(c, t, region);
        let bytes = aligned(c, bytes);
        next = c.b.ins().iadd(next, bytes);
    }
    let first = t.first_input();
    let of_inputs = c.add_imm(bases, first * 8);
    let of_outputs = c.add_imm(bases, (first + t.inputs.count) * 8);
    take(c, ("the input `", "no inputs are given"), t.inputs, inputs, of_inputs);
    take(c, ("the output `", "no memory is given for outputs"), t.outputs, outputs, of_outputs);

    let pointers = c.add_imm(start, frame.pointers);
    point(c, t, values, bases, pointers, start);
    ends_there(c, t, ("the input `", t.inputs, &t.plan.inputs), of_inputs, values);
    ends_there(c, t, ("the output `", t.outputs, &t.plan.outputs), of_outputs, values);
    c.store(context, start, frame.context as i32);
    c.store(dims, start, frame.dims as i32);
    let run = Run(start);
    control::range(c, t, run, 0..t.plan.steps.len());
    let ok = c.int32(0);
    c.ret(ok);
}

/// Copies the caller's pointers.
fn take(c: &mut Code<'_, '_>, (_, none): (&str, &str), ends: Ends, from: Value, to: Value) {
    if ends.count == 0 {
        return;
    }
    let null = c.icmp_imm(IntCC::Equal, from, 0);
    c.guard(null, |c| c.fail(2, &[Piece::Text(none)]));
    let count = c.int(ends.count);
    c.repeat(count, |c, n| {
        let (source, place) = (c.element(from, n, 8), c.element(to, n, 8));
        let pointer = c.load(source, 0);
        c.store(pointer, place, 0);
    });
}

/// Refuses a null pointer for an input or output that has bytes.
fn ends_there(
    c: &mut Code<'_, '_>,
    t: &Tables<'_>,
    (what, ends, of): (&str, Ends, &[(std::sync::Arc<str>, kiln_ir::plan::SlotId)]),
    pointers: Value,
    values: Value,
) {
    if ends.count == 0 {
        return;
    }
    let slots: Vec<u32> = of.iter().map(|(_, slot)| slot.index() as u32).collect();
    let slots = c.data.halves(&slots);
    let count = c.int(ends.count);
    c.repeat(count, |c, n| {
        let (list, table) = (c.address(Part::Data, slots), c.address(Part::Data, t.slots));
        let place = c.element(list, n, 4);
        let slot = c.load32(place, 0);
        let row = c.element(table, slot, SLOT_ROW * 8);
        let raw = c.load(row, 16);
        let bytes = number(c, raw, values);
        let place = c.element(pointers, n, 8);
        let pointer = c.load(place, 0);
        let (null, some) = (c.icmp_imm(IntCC::Equal, pointer, 0), c.icmp_imm(IntCC::NotEqual, bytes, 0));
        let missing = c.b.ins().band(null, some);
        c.guard(missing, |c| fail_end(c, what, ends, n, "` is a null pointer"));
    });
}

/// Finds the first byte of every slot.
fn point(c: &mut Code<'_, '_>, t: &Tables<'_>, values: Value, bases: Value, pointers: Value, start: Value) {
    let count = c.int(t.plan.slots.len() as i64);
    let nothing = c.add_imm(start, t.frame.nothing);
    c.repeat(count, |c, n| {
        let table = c.address(Part::Data, t.slots);
        let row = c.element(table, n, SLOT_ROW * 8);
        let (base, offset) = (c.load(row, 0), c.load(row, 8));
        let (bytes, most) = (c.load(row, 16), c.load(row, 24));
        let (bytes, most) = (number(c, bytes, values), number(c, most, values));
        let large = c.icmp(IntCC::SignedGreaterThan, bytes, most);
        c.guard(large, |c| c.fail(1, &[Piece::Text("internal: a tensor is larger than its region")]));
        let base = c.element(bases, base, 8);
        let base = c.load(base, 0);
        let pointer = c.b.ins().iadd(base, offset);
        // A kernel may form the address of a slot without bytes, so it must be one.
        let empty = c.icmp_imm(IntCC::Equal, bytes, 0);
        let pointer = c.b.ins().select(empty, nothing, pointer);
        let place = c.element(pointers, n, 8);
        c.store(pointer, place, 0);
    });
}
