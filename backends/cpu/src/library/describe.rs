//! What a library says: of its model, and in messages.
//!
//! Invariant: what is handed out points into the library's read-only data; a message never passes the end of the caller's
//! memory and always ends in a zero byte.

use super::asm::{Code, I64, Piece, Routine};
use super::tables::{END_ROW, Ends, Tables};
use super::{ABI, Part};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, MemFlagsData, Value, types};

/// `model(out)`: see `kiln_model` in the header.
pub(super) fn model(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[out] = p else { return };
    let counts = [i64::from(ABI), t.inputs.count, t.outputs.count, t.symbols().len() as i64];
    for (n, count) in counts.into_iter().enumerate() {
        let value = c.int32(count);
        c.store(value, out, n as i32 * 4);
    }
    let outside = if t.source.embedded || t.plan.weight_bytes == 0 { 0 } else { super::run::weights_file_bytes(t) };
    let (name, metadata) = (c.address(Part::Data, t.name), c.address(Part::Data, t.metadata));
    let outside = c.int(outside);
    for (n, value) in [name, metadata, outside].into_iter().enumerate() {
        c.store(value, out, 16 + n as i32 * 8);
    }
    c.b.ins().return_(&[]);
}

/// Returns a status of 2 where `n` is not below `count`, or `out` is a null pointer.
fn within(c: &mut Code<'_, '_>, n: Value, count: i64, out: Value) -> Value {
    let n = c.b.ins().uextend(I64, n);
    let beyond = c.icmp_imm(IntCC::UnsignedGreaterThanOrEqual, n, count);
    let null = c.icmp_imm(IntCC::Equal, out, 0);
    let wrong = c.b.ins().bor(beyond, null);
    c.guard(wrong, |c| c.fail(2, &[]));
    n
}

/// `input(n, out)` and `output(n, out)`: see `kiln_tensor` in the header.
pub(super) fn end(c: &mut Code<'_, '_>, ends: Ends, p: &[Value]) {
    let &[n, out] = p else { return };
    let n = within(c, n, ends.count, out);
    let table = c.address(Part::Data, ends.table);
    let row = c.element(table, n, END_ROW * 8);
    let data = c.address(Part::Data, 0);
    for word in 0..4 {
        let offset = c.load(row, word * 8);
        let address = c.b.ins().iadd(data, offset);
        c.store(address, out, word * 8);
    }
    for (from, to) in [(4, 32), (5, 36)] {
        let number = c.load(row, from * 8);
        let number = c.b.ins().ireduce(types::I32, number);
        c.store(number, out, to);
    }
    let ok = c.int32(0);
    c.ret(ok);
}

/// `dim(n, out)`: see `kiln_dim` in the header.
pub(super) fn dim(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[n, out] = p else { return };
    let n = within(c, n, t.symbols().len() as i64, out);
    let table = c.address(Part::Data, t.symbols);
    let row = c.element(table, n, 24);
    let (offset, data) = (c.load(row, 0), c.address(Part::Data, 0));
    let name = c.b.ins().iadd(data, offset);
    let (least, greatest) = (c.load(row, 8), c.load(row, 16));
    for (n, value) in [name, least, greatest].into_iter().enumerate() {
        c.store(value, out, n as i32 * 8);
    }
    let ok = c.int32(0);
    c.ret(ok);
}

fn store_byte(c: &mut Code<'_, '_>, value: Value, base: Value, at: Value) {
    let address = c.b.ins().iadd(base, at);
    c.b.ins().istore8(MemFlagsData::new().with_notrap(), value, address, 0);
}

fn load_byte(c: &mut Code<'_, '_>, base: Value, at: Value) -> Value {
    let address = c.b.ins().iadd(base, at);
    c.b.ins().uload8(I64, MemFlagsData::new().with_notrap(), address, 0)
}

/// `append(message, bytes, at, text, length)`: copies what fits, ends it, and gives where it ends.
pub(super) fn append(c: &mut Code<'_, '_>, p: &[Value]) {
    let &[message, bytes, at, text, length] = p else { return };
    let (null, empty) = (c.icmp_imm(IntCC::Equal, message, 0), c.icmp_imm(IntCC::Equal, bytes, 0));
    let nowhere = c.b.ins().bor(null, empty);
    c.guard(nowhere, |c| c.ret(at));
    let room = c.b.ins().isub(bytes, at);
    let room = c.add_imm(room, -1);
    let length = c.b.ins().umin(length, room);
    c.repeat(length, |c, n| {
        let byte = load_byte(c, text, n);
        let to = c.b.ins().iadd(at, n);
        store_byte(c, byte, message, to);
    });
    let end = c.b.ins().iadd(at, length);
    let zero = c.int(0);
    store_byte(c, zero, message, end);
    c.ret(end);
}

/// `append_number(message, bytes, at, value)`: the same with a decimal number.
pub(super) fn append_number(c: &mut Code<'_, '_>, p: &[Value]) {
    let &[message, bytes, at, value] = p else { return };
    let digits = c.stack(24);
    let negative = c.icmp_imm(IntCC::SignedLessThan, value, 0);
    // Without a sign the least number is its own negation, as it should be.
    let negated = c.b.ins().ineg(value);
    let size = c.b.ins().select(negative, negated, value);
    let end = c.int(24);
    let (rest, first) = (c.variable(size), c.variable(end));
    let digit = |c: &mut Code<'_, '_>| {
        let (now, ten) = (c.b.use_var(rest), c.int(10));
        let quotient = c.b.ins().udiv(now, ten);
        let back = c.b.ins().imul(quotient, ten);
        let digit = c.b.ins().isub(now, back);
        let digit = c.add_imm(digit, i64::from(b'0'));
        let place = c.b.use_var(first);
        let place = c.add_imm(place, -1);
        store_byte(c, digit, digits, place);
        c.b.def_var(first, place);
        c.b.def_var(rest, quotient);
    };
    digit(c);
    c.while_(
        |c| {
            let rest = c.b.use_var(rest);
            c.icmp_imm(IntCC::NotEqual, rest, 0)
        },
        digit,
    );
    c.branch(
        negative,
        |c| {
            let place = c.b.use_var(first);
            let place = c.add_imm(place, -1);
            let minus = c.int(i64::from(b'-'));
            store_byte(c, minus, digits, place);
            c.b.def_var(first, place);
        },
        |_| {},
    );
    let place = c.b.use_var(first);
    let (text, end) = (c.b.ins().iadd(digits, place), c.int(24));
    let length = c.b.ins().isub(end, place);
    let at = c.get(Routine::Append, &[message, bytes, at, text, length]);
    c.ret(at);
}

/// The length of a text that a zero byte ends.
pub(super) fn length(c: &mut Code<'_, '_>, text: Value) -> Value {
    let zero = c.int(0);
    let n = c.variable(zero);
    c.while_(
        |c| {
            let at = c.b.use_var(n);
            let byte = load_byte(c, text, at);
            c.icmp_imm(IntCC::NotEqual, byte, 0)
        },
        |c| {
            let at = c.b.use_var(n);
            let next = c.add_imm(at, 1);
            c.b.def_var(n, next);
        },
    );
    c.b.use_var(n)
}

/// Says that an input or output, the n-th of `ends`, is wrong, and returns 2.
pub(super) fn fail_end(c: &mut Code<'_, '_>, what: &str, ends: Ends, n: Value, wrong: &str) {
    let table = c.address(Part::Data, ends.table);
    let row = c.element(table, n, END_ROW * 8);
    let (offset, data) = (c.load(row, 0), c.address(Part::Data, 0));
    let name = c.b.ins().iadd(data, offset);
    let length = length(c, name);
    c.fail(2, &[Piece::Text(what), Piece::At(name, length), Piece::Text(wrong)]);
}
