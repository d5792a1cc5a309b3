//! What a library says of dims: whether they are allowed, what inputs' shapes make them, and what sizes follow.
//!
//! Invariant: no size is computed from dims that are outside their ranges or break a requirement of the plan.

use super::asm::{Code, I64, Piece, Routine};
use super::control::unequal;
use super::formulas::Formulas;
use super::tables::{ALIGNMENT, Tables};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value};
use kiln_ir::expr::{Expr, Symbol};
use kiln_ir::plan::{MOST_BYTES, SlotId};
use std::collections::HashMap;
use std::sync::Arc;

type Named = [(Arc<str>, SlotId)];

fn outside(c: &mut Code<'_, '_>, value: Value, (lo, hi): (i64, i64)) -> Value {
    let below = c.icmp_imm(IntCC::SignedLessThan, value, lo);
    let above = c.icmp_imm(IntCC::SignedGreaterThan, value, hi);
    c.b.ins().bor(below, above)
}

fn range((lo, hi): (i64, i64)) -> String {
    format!(" is outside its range {lo}..{hi}")
}

/// `check(dims, message, bytes)`: whether the dims are in their ranges and keep the plan's requirements.
pub(super) fn check(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[dims, message, bytes] = p else { return };
    c.message = Some((message, bytes));
    if !t.symbols().is_empty() {
        let null = c.icmp_imm(IntCC::Equal, dims, 0);
        c.guard(null, |c| c.fail(2, &[Piece::Text("no dims are given, the model has free ones")]));
    }
    for (n, (symbol, bounds)) in t.symbols().iter().enumerate() {
        let value = c.load(dims, (n * 8) as i32);
        let wrong = outside(c, value, *bounds);
        c.guard(wrong, |c| {
            let name = format!("{symbol} = ");
            c.fail(3, &[Piece::Text(&name), Piece::Number(value), Piece::Text(&range(*bounds))]);
        });
    }
    let mut formulas = Formulas::load(c, t.symbols(), dims);
    for requirement in &t.plan.requirements {
        let (left, right) = (formulas.value(c, &requirement.left), formulas.value(c, &requirement.right));
        let differ = c.icmp(IntCC::NotEqual, left, right);
        let sides = (&requirement.left, &requirement.right);
        c.guard(differ, |c| unequal(c, &requirement.origin, sides, (left, right)));
    }
    let ok = c.int32(0);
    c.ret(ok);
}

/// Whether a value is no size.
fn no_size(c: &mut Code<'_, '_>, value: Value) -> Value {
    c.icmp_imm(IntCC::UnsignedGreaterThanOrEqual, value, MOST_BYTES)
}

/// `formulas(dims, values)`: writes all values that depend on dims; gives 1 where one of them should be a size and is none.
pub(super) fn formulas(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[dims, values] = p else { return };
    let mut formulas = Formulas::load(c, t.symbols(), dims);
    let mut wrong = c.int(0);
    for (n, (formula, size)) in t.formulas.iter().zip(&t.sizes).enumerate() {
        let value = formulas.value(c, formula);
        c.store(value, values, (n * 8) as i32);
        if *size {
            let no_size = no_size(c, value);
            let no_size = c.b.ins().uextend(I64, no_size);
            wrong = c.b.ins().bor(wrong, no_size);
        }
    }
    c.ret(wrong);
}

/// Returns where the dims are not allowed.
fn checked(c: &mut Code<'_, '_>, dims: Value, otherwise: i64) {
    let zero = c.int(0);
    let status = c.get(Routine::Check, &[dims, zero, zero]);
    c.guard(status, |c| {
        let none = c.int(otherwise);
        c.ret(none);
    });
}

/// `arena_bytes(dims)`: 0 where the dims are not allowed or no memory is large enough.
pub(super) fn arena_bytes(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[dims] = p else { return };
    checked(c, dims, 0);
    let mut formulas = Formulas::load(c, t.symbols(), dims);
    // The caller's memory may start anywhere.
    let mut sum = c.int(t.frame.regions + ALIGNMENT);
    for region in &t.plan.regions {
        let bytes = formulas.value(c, region);
        let wrong = no_size(c, bytes);
        c.guard(wrong, |c| {
            let none = c.int(0);
            c.ret(none);
        });
        let bytes = aligned(c, bytes);
        sum = c.b.ins().iadd(sum, bytes);
    }
    c.ret(sum);
}

/// The next multiple of [`ALIGNMENT`].
pub(super) fn aligned(c: &mut Code<'_, '_>, value: Value) -> Value {
    let up = c.add_imm(value, ALIGNMENT - 1);
    let mask = c.int(-ALIGNMENT);
    c.b.ins().band(up, mask)
}

/// For each of `ends` whose number `n` is, `body`; then `none` is returned.
fn each(c: &mut Code<'_, '_>, n: Value, count: usize, mut body: impl FnMut(&mut Code<'_, '_>, usize)) {
    for number in 0..count {
        let this = c.icmp_imm(IntCC::Equal, n, number as i64);
        c.guard(this, |c| body(c, number));
    }
}

/// `input_bytes(n, dims)` and `output_bytes(n, dims)`: -1, which without a sign is the largest number, where there is no answer.
pub(super) fn end_bytes(c: &mut Code<'_, '_>, t: &Tables<'_>, ends: &Named, p: &[Value]) {
    let &[n, dims] = p else { return };
    checked(c, dims, -1);
    each(c, n, ends.len(), |c, number| {
        let (_, slot) = &ends[number];
        let bytes = Formulas::load(c, t.symbols(), dims).value(c, &t.plan.slots[*slot].ty.bytes());
        let (wrong, none) = (no_size(c, bytes), c.int(-1));
        let bytes = c.b.ins().select(wrong, none, bytes);
        c.ret(bytes);
    });
    let none = c.int(-1);
    c.ret(none);
}

/// `output_dims(n, dims, extents)`
pub(super) fn output_dims(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[n, dims, extents] = p else { return };
    let zero = c.int(0);
    let status = c.get(Routine::Check, &[dims, zero, zero]);
    c.guard(status, |c| c.ret(status));
    each(c, n, t.plan.outputs.len(), |c, number| {
        let (_, slot) = &t.plan.outputs[number];
        let mut formulas = Formulas::load(c, t.symbols(), dims);
        for (axis, dim) in t.plan.slots[*slot].ty.dims.iter().enumerate() {
            let extent = formulas.value(c, dim);
            c.store(extent, extents, (axis * 8) as i32);
        }
        let ok = c.int32(0);
        c.ret(ok);
    });
    let wrong = c.int32(2);
    c.ret(wrong);
}

/// `solve(shapes, dims, message, bytes)`: the values of the free dims that the shapes of all inputs give, in the order in which
/// the interpreter finds them; then every extent is checked.
pub(super) fn solve(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[shapes, dims, message, bytes] = p else { return };
    c.message = Some((message, bytes));
    c.no_message();
    let null = c.icmp_imm(IntCC::Equal, shapes, 0);
    c.guard(null, |c| c.fail(2, &[Piece::Text("no shapes are given")]));
    // Axes of all inputs: input, axis, expression, extent.
    let mut axes: Vec<(&str, usize, &Expr, Value)> = Vec::new();
    for (n, (name, slot)) in t.plan.inputs.iter().enumerate() {
        let of = &t.plan.slots[*slot].ty.dims;
        if of.is_empty() {
            continue;
        }
        let shape = c.load(shapes, (n * 8) as i32);
        let null = c.icmp_imm(IntCC::Equal, shape, 0);
        c.guard(null, |c| c.fail(2, &[Piece::Text(&format!("no shape is given for the input {name:?}"))]));
        for (axis, dim) in of.iter().enumerate() {
            let extent = c.load(shape, (axis * 8) as i32);
            axes.push((name, axis, dim, extent));
        }
    }
    let bounds: HashMap<&Symbol, (i64, i64)> = t.symbols().iter().map(|(s, b)| (s, *b)).collect();
    let mut formulas = Formulas::default();
    let mut known: Vec<&Symbol> = Vec::new();
    loop {
        let before = known.len();
        for (input, axis, dim, extent) in &axes {
            let mut open: Vec<&Symbol> =
                bounds.keys().copied().filter(|s| dim.mentions(s) && !known.contains(s)).collect();
            let (Some(symbol), None) = (open.pop(), open.pop()) else { continue };
            let Some(factor) = dim.coefficient(symbol).filter(|f| *f != 0) else { continue };
            let rest = formulas.value(c, &dim.replace(symbol, &Expr::from(0i64)));
            let rest = c.b.ins().isub(*extent, rest);
            let factor = c.int(factor);
            let value = c.b.ins().sdiv(rest, factor);
            let back = c.b.ins().imul(value, factor);
            let inexact = c.icmp(IntCC::NotEqual, back, rest);
            c.guard(inexact, |c| {
                let (start, end) = (format!("axis {axis} of `{input}` is "), format!(", which {dim} cannot be"));
                c.fail(3, &[Piece::Text(&start), Piece::Number(*extent), Piece::Text(&end)]);
            });
            let range_of = bounds[symbol];
            let wrong = outside(c, value, range_of);
            c.guard(wrong, |c| {
                let (start, end) = (format!("{symbol} = "), format!(" in `{input}`{}", range(range_of)));
                c.fail(3, &[Piece::Text(&start), Piece::Number(value), Piece::Text(&end)]);
            });
            formulas.know(symbol, value, range_of.0, range_of.1);
            known.push(symbol);
        }
        if known.len() == before {
            break;
        }
    }
    if let Some((unknown, _)) = t.symbols().iter().find(|(s, _)| !known.contains(&s)) {
        c.fail(2, &[Piece::Text(&format!("the shapes of the inputs do not say what {unknown} is; it must be given"))]);
        return;
    }
    for (input, axis, dim, extent) in &axes {
        let wanted = formulas.value(c, dim);
        let differs = c.icmp(IntCC::NotEqual, wanted, *extent);
        c.guard(differs, |c| {
            let start = format!("axis {axis} of `{input}` is ");
            let wants = if dim.as_const().is_some() { ", wants ".into() } else { format!(", wants {dim} = ") };
            c.fail(3, &[Piece::Text(&start), Piece::Number(*extent), Piece::Text(&wants), Piece::Number(wanted)]);
        });
    }
    for (n, (symbol, _)) in t.symbols().iter().enumerate() {
        let value = formulas.value(c, &Expr::from(symbol));
        c.store(value, dims, (n * 8) as i32);
    }
    let status = c.get(Routine::Check, &[dims, message, bytes]);
    c.ret(status);
}
