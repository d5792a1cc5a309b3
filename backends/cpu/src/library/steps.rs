//! Launches and copies of a plan, one after another.
//!
//! Invariant: a step is given by its row in a table, so that a plan of many steps takes no more code than one of few; everything
//! that a step needs is found from the run's memory.

use super::Part;
use super::asm::{Code, I64, Piece, Routine};
use super::run::{CONTEXT_HOST, CONTEXT_LEVEL, CONTEXT_PARALLEL};
use super::tables::{ALIGNMENT, KERNEL_ROW, SLOT_ROW, STEP_ROW, Tables};
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};
use kiln_ir::Expr;
use kiln_ir::plan::SlotId;

/// Words of a task: kernel, arguments, dims.
const TASK_ARGUMENTS: i32 = 8;
const TASK_DIMS: i32 = 16;

/// The memory of a run: where it starts, see [`super::tables::Frame`].
#[derive(Clone, Copy)]
pub(super) struct Run(pub Value);

impl Run {
    pub fn values(self, c: &mut Code<'_, '_>, t: &Tables<'_>) -> Value {
        c.add_imm(self.0, t.frame.values)
    }

    /// The first byte of the slot whose number is `n`.
    pub fn pointer_of(self, c: &mut Code<'_, '_>, t: &Tables<'_>, n: Value) -> Value {
        let pointers = c.add_imm(self.0, t.frame.pointers);
        let place = c.element(pointers, n, 8);
        c.load(place, 0)
    }

    /// The first byte of a slot.
    pub fn pointer(self, c: &mut Code<'_, '_>, t: &Tables<'_>, slot: SlotId) -> Value {
        let n = c.int(slot.index() as i64);
        self.pointer_of(c, t, n)
    }

    /// The value of an expression that is a constant or one of the formulas.
    pub fn value(self, c: &mut Code<'_, '_>, t: &Tables<'_>, e: &Expr) -> Value {
        match t.formulas.iter().position(|f| f == e) {
            Some(n) => {
                let values = self.values(c, t);
                c.load(values, (n * 8) as i32)
            }
            None => c.int(e.as_const().unwrap_or(0)),
        }
    }

    /// The bytes that a slot takes.
    pub fn bytes(self, c: &mut Code<'_, '_>, t: &Tables<'_>, slot: SlotId) -> Value {
        self.value(c, t, &t.plan.slots[slot].ty.bytes())
    }
}

/// `body(task, lo, hi)`: programs of the kernel that a run has got to.
pub(super) fn body(c: &mut Code<'_, '_>, p: &[Value]) {
    let &[task, lo, hi] = p else { return };
    let (kernel, arguments, dims) = (c.load(task, 0), c.load(task, TASK_ARGUMENTS), c.load(task, TASK_DIMS));
    let scratch = c.int(0);
    let status = c.call_at(kernel, &[arguments, dims, lo, hi, scratch]);
    c.ret(status);
}

/// A number of a table: itself, or a value that the run has computed.
pub(super) fn number(c: &mut Code<'_, '_>, raw: Value, values: Value) -> Value {
    let index = c.b.ins().bnot(raw);
    let symbolic = c.icmp_imm(IntCC::SignedLessThan, raw, 0);
    let zero = c.int(0);
    // There always is a value 0 to read.
    let index = c.b.ins().select(symbolic, index, zero);
    let place = c.element(values, index, 8);
    let value = c.load(place, 0);
    c.b.ins().select(symbolic, value, raw)
}

/// `steps(run, first, last, message, bytes)`: the steps of these rows; `last` is not among them.
pub(super) fn steps(c: &mut Code<'_, '_>, t: &Tables<'_>, p: &[Value]) {
    let &[run, first, last, message, bytes] = p else { return };
    c.message = Some((message, bytes));
    let run = Run(run);
    let context = c.load(run.0, t.frame.context as i32);
    let level = c.load(context, CONTEXT_LEVEL);
    let kernels = c.address(Part::Data, t.kernels);
    let kernels = c.element(kernels, level, t.plan.kernels.len() as i64 * KERNEL_ROW * 8);
    let count = c.b.ins().isub(last, first);
    c.repeat(count, |c, n| {
        let n = c.b.ins().iadd(first, n);
        let table = c.address(Part::Data, t.steps);
        let row = c.element(table, n, STEP_ROW * 8);
        let (kernel, second, third) = (c.load(row, 0), c.load(row, 8), c.load(row, 16));
        let copies = c.icmp_imm(IntCC::SignedLessThan, kernel, 0);
        c.branch(
            copies,
            |c| copy(c, t, run, second, third),
            |c| launch(c, t, run, (context, kernels, kernel), second, third),
        );
    });
    let ok = c.int32(0);
    c.ret(ok);
}

fn launch(
    c: &mut Code<'_, '_>,
    t: &Tables<'_>,
    run: Run,
    (context, kernels, kernel): (Value, Value, Value),
    first: Value,
    count: Value,
) {
    let arguments = c.add_imm(run.0, t.frame.arguments);
    let list = c.address(Part::Data, t.arguments);
    let list = c.element(list, first, 4);
    c.repeat(count, |c, n| {
        let place = c.element(list, n, 4);
        let slot = c.load32(place, 0);
        let pointer = run.pointer_of(c, t, slot);
        let place = c.element(arguments, n, 8);
        c.store(pointer, place, 0);
    });
    let row = c.element(kernels, kernel, KERNEL_ROW * 8);
    let (offset, grain, programs) = (c.load(row, 0), c.load(row, 8), c.load(row, 16));
    let values = run.values(c, t);
    let programs = number(c, programs, values);
    let dims = c.load(run.0, t.frame.dims as i32);
    let code = c.address(Part::Code, 0);
    let entry = c.b.ins().iadd(code, offset);
    let zero = c.int32(0);
    let status = c.variable(zero);
    let parallel = c.load(context, CONTEXT_PARALLEL);
    let (some, large) = (
        c.icmp_imm(IntCC::NotEqual, parallel, 0),
        // Less than two grains are not worth a second thread.
        c.icmp(IntCC::SignedGreaterThan, programs, grain),
    );
    let shared = c.b.ins().band(some, large);
    let none = c.icmp_imm(IntCC::Equal, programs, 0);
    c.branch(
        none,
        |_| {},
        |c| {
            c.branch(
                shared,
                |c| {
                    let task = c.add_imm(run.0, t.frame.task);
                    c.store(entry, task, 0);
                    c.store(arguments, task, TASK_ARGUMENTS);
                    c.store(dims, task, TASK_DIMS);
                    let (body, host) = (c.routine(Routine::Body), c.load(context, CONTEXT_HOST));
                    let found = c.call_at(parallel, &[host, programs, grain, body, task]);
                    c.b.def_var(status, found);
                },
                |c| {
                    let (lo, scratch) = (c.int(0), c.int(0));
                    let found = c.call_at(entry, &[arguments, dims, lo, programs, scratch]);
                    c.b.def_var(status, found);
                },
            );
        },
    );
    let status = c.b.use_var(status);
    c.guard(status, |c| {
        let table = c.address(Part::Data, t.messages);
        let row = c.element(table, kernel, 16);
        let (offset, length, data) = (c.load(row, 0), c.load(row, 8), c.address(Part::Data, 0));
        let text = c.b.ins().iadd(data, offset);
        let status = c.b.ins().uextend(I64, status);
        c.fail(3, &[Piece::At(text, length), Piece::Number(status), Piece::Text(")")]);
    });
}

/// Copies a slot to another of the same size; both are the same or apart.
fn copy(c: &mut Code<'_, '_>, t: &Tables<'_>, run: Run, from: Value, to: Value) {
    let table = c.address(Part::Data, t.slots);
    let row = c.element(table, from, SLOT_ROW * 8);
    let (raw, values) = (c.load(row, 16), run.values(c, t));
    let bytes = number(c, raw, values);
    let (from, to) = (run.pointer_of(c, t, from), run.pointer_of(c, t, to));
    c.call(Routine::Move, &[from, to, bytes]);
}

/// `move(from, to, bytes)`: both are the same or apart.
pub(super) fn move_bytes(c: &mut Code<'_, '_>, p: &[Value]) {
    let &[from, to, bytes] = p else { return };
    let shift = c.int(ALIGNMENT.ilog2().into());
    let blocks = c.b.ins().ushr(bytes, shift);
    c.repeat(blocks, |c, n| {
        let (source, target) = (c.element(from, n, ALIGNMENT), c.element(to, n, ALIGNMENT));
        let loaded: Vec<Value> = (0..4)
            .map(|k| {
                let at = c.add_imm(source, k * 16);
                c.load_of(types::I8X16, at)
            })
            .collect();
        for (k, value) in loaded.into_iter().enumerate() {
            c.store(value, target, k as i32 * 16);
        }
    });
    let done = c.b.ins().ishl(blocks, shift);
    let left = c.b.ins().isub(bytes, done);
    let (from, to) = (c.b.ins().iadd(from, done), c.b.ins().iadd(to, done));
    c.repeat(left, |c, n| {
        let (source, target) = (c.b.ins().iadd(from, n), c.b.ins().iadd(to, n));
        let byte = c.load_of(types::I8, source);
        c.store(byte, target, 0);
    });
    c.b.ins().return_(&[]);
}
