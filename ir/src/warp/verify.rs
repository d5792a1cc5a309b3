//! The verifier of warp programs.
//!
//! Invariant: a program that verifies can be interpreted without any check other than those on memory and loop
//! variables, and translated without any check but for what a target cannot do. All errors are collected.

mod bulk;

use super::{Address, BUFFER_ALIGNMENT, For, LANES, Op, Place, Shared, Stmt, ValueId, WarpProgram};
use crate::dtype::DType;
use crate::scalar::{BinaryOp, UnaryOp};
use crate::tile::loads_from;
use bulk::Side;
use std::collections::HashSet;

/// A rule that a warp program breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("warp program @{program}: `{statement}`: {message}")]
pub struct VerifyError {
    /// Name of the program.
    pub program: String,
    /// First line of the statement in the text form; empty for the program's head.
    pub statement: String,
    /// What is wrong.
    pub message: String,
}

/// Most threads of a block.
const MAX_THREADS: u32 = 1024;

/// Most bytes of shared buffers that any target has for one block (sm_90: 227 KiB).
const MAX_SHARED: usize = 227 << 10;

impl WarpProgram {
    /// Checks that every value is assigned once and before its uses, all types, counts and buffers, and that loop
    /// bounds are the same in all threads of a block.
    ///
    /// # Errors
    /// Every rule that is broken, in the order of the program.
    pub fn verify(&self) -> Result<(), Vec<VerifyError>> {
        let mut verifier = Verifier {
            program: self,
            assigned: vec![false; self.values.len()],
            visible: vec![false; self.values.len()],
            uniform: vec![false; self.values.len()],
            side: Side::All,
            errors: Vec::new(),
        };
        verifier.head();
        verifier.maps();
        verifier.region(&self.body, &[], |_| {});
        if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
    }
}

/// Whether values of the type exist in warp programs.
fn computable(dtype: DType) -> bool {
    use DType::*;
    matches!(dtype, Bool | I32 | U32 | I64 | U64 | F16 | BF16 | F32)
}

/// Whether a buffer may have elements of the type: values of them are i32.
fn narrow(dtype: DType) -> bool {
    matches!(dtype, DType::I8 | DType::U8 | DType::I16 | DType::U16)
}

fn is_int(dtype: DType) -> bool {
    matches!(dtype, DType::I32 | DType::U32 | DType::I64 | DType::U64)
}

fn unary_is_defined(op: UnaryOp, dtype: DType) -> bool {
    use UnaryOp::*;
    match dtype {
        DType::F32 => matches!(op, Neg | Abs | Floor | Ceil | Round | Trunc | Sqrt),
        DType::Bool => op == Not,
        other => is_int(other) && matches!(op, Neg | Abs | Not),
    }
}

fn binary_is_defined(op: BinaryOp, dtype: DType) -> bool {
    use BinaryOp::*;
    match dtype {
        DType::F32 => op.is_comparison() || matches!(op, Add | Sub | Mul | Div | Min | Max),
        DType::Bool => matches!(op, And | Or | Xor | Eq | Ne),
        other => is_int(other) && op != Pow && (op != Dot4 || other == DType::I32),
    }
}

struct Verifier<'a> {
    program: &'a WarpProgram,
    /// Values that have been defined anywhere so far.
    assigned: Vec<bool>,
    /// Values that may be used here.
    visible: Vec<bool>,
    /// Values known to be the same in all threads of a block.
    uniform: Vec<bool>,
    /// Which threads' statements are looked at.
    side: Side,
    errors: Vec<VerifyError>,
}

impl Verifier<'_> {
    fn report(&mut self, stmt: Option<&Stmt>, message: impl Into<String>) {
        self.errors.push(VerifyError {
            program: self.program.name.clone(),
            statement: stmt.map(|s| self.program.head(s).to_string()).unwrap_or_default(),
            message: message.into(),
        });
    }

    fn head(&mut self) {
        let program = self.program;
        let plain = |s: &str| {
            s.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
                && s.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        };
        if !plain(&program.name) {
            self.report(None, "the name is not made of letters, digits and `_`");
        }
        let mut names = HashSet::new();
        for (i, b) in program.buffers.iter().enumerate() {
            if !computable(b.dtype) && !narrow(b.dtype) {
                self.report(None, format!("buffer b{i}: warp programs do not compute with {}", b.dtype));
            }
            if !plain(&b.name) || !names.insert(&b.name) {
                self.report(None, format!("buffer b{i}: `{}` is no name of its own", b.name));
            }
        }
        for (what, e) in program.buffers.iter().map(|b| ("length", &b.len)).chain([("grid", &program.grid)]) {
            e.for_each_symbol(&mut |s| {
                if !program.dims.contains(s) {
                    self.report(None, format!("the {what} `{e}` depends on `{s}`, which is no dim"));
                }
            });
        }
        let threads = program.threads;
        if threads == 0 || !threads.is_multiple_of(LANES) || threads > MAX_THREADS {
            self.report(None, format!("{threads} threads; wants a multiple of {LANES} up to {MAX_THREADS}"));
        }
        for (i, Shared { dtype, len }) in program.shared.iter().enumerate() {
            if !computable(*dtype) && !narrow(*dtype) || *dtype == DType::Bool {
                self.report(None, format!("shared buffer s{i}: holds no {dtype}"));
            }
            if *len == 0 {
                self.report(None, format!("shared buffer s{i} is empty"));
            }
        }
        let (_, bytes) = program.shared_layout();
        if bytes > MAX_SHARED {
            self.report(None, format!("{bytes} bytes of shared buffers, at most {MAX_SHARED} fit"));
        }
    }

    /// Defines a value, which must exist and not be defined yet; returns its type.
    fn define(&mut self, stmt: &Stmt, id: ValueId, uniform: bool) -> Option<DType> {
        let Some(&ty) = self.program.values.get(id) else {
            self.report(Some(stmt), format!("{id} is not a value of the program"));
            return None;
        };
        if !computable(ty) {
            self.report(Some(stmt), format!("{id}: warp programs do not compute with {ty}"));
        }
        if self.assigned[id.index()] {
            self.report(Some(stmt), format!("{id} is assigned a second time"));
        }
        self.assigned[id.index()] = true;
        self.visible[id.index()] = true;
        self.uniform[id.index()] = uniform;
        Some(ty)
    }

    /// The type of a value that is used here; nothing (and an error) where it is not defined here.
    fn used(&mut self, stmt: &Stmt, id: ValueId) -> Option<DType> {
        if self.visible.get(id.index()) == Some(&true) {
            return self.program.values.get(id).copied();
        }
        let assigned = self.assigned.get(id.index()) == Some(&true);
        self.report(Some(stmt), format!("{id} is {}", if assigned { "not visible here" } else { "not defined" }));
        None
    }

    fn want(&mut self, stmt: &Stmt, id: ValueId, want: DType) {
        if let Some(ty) = self.used(stmt, id)
            && ty != want
        {
            self.report(Some(stmt), format!("{id} is {ty}, wants {want}"));
        }
    }

    fn is_uniform(&self, id: ValueId) -> bool {
        self.uniform.get(id.index()) == Some(&true)
    }

    /// Checks a region: `inside` are defined before it (whether they are uniform is given), `at_end` runs after it;
    /// then what it defined disappears.
    fn region(&mut self, body: &[Stmt], inside: &[(&Stmt, ValueId, bool)], at_end: impl FnOnce(&mut Self)) {
        let outside = self.visible.clone();
        for (stmt, id, uniform) in inside {
            self.define(stmt, *id, *uniform);
        }
        for stmt in body {
            self.stmt(stmt);
        }
        at_end(self);
        self.visible = outside;
    }

    fn stmt(&mut self, stmt: &Stmt) {
        self.belongs(stmt);
        match stmt {
            Stmt::Let(ids, op) => {
                let types: Vec<DType> = ids.iter().filter_map(|&id| self.program.values.get(id).copied()).collect();
                if types.len() == ids.len() {
                    self.op(stmt, &types, op);
                }
                let mut uniform = match op {
                    Op::Thread | Op::Load(..) | Op::Shuffle(..) | Op::Matrix { .. } | Op::Mma { .. } => false,
                    Op::GroupMma(_) => false,
                    Op::Const(_) | Op::Block | Op::Dim(_) => true,
                    Op::Unary(..) | Op::Exp2(_) | Op::Tf32(_) | Op::Binary(..) | Op::Fma(..) => true,
                    Op::Select(..) | Op::Cast(..) | Op::Bitcast(..) | Op::Pack(..) | Op::Unpack(..) => true,
                };
                op.for_each_operand(|v| uniform &= self.is_uniform(v));
                for &id in ids {
                    self.define(stmt, id, uniform);
                }
                if let Op::GroupMma(product) = op {
                    // Their registers are the results' now.
                    product.c.iter().for_each(|c| self.visible[c.index()] = false);
                }
            }
            Stmt::Store { address, values, condition } => {
                let ty = values.first().and_then(|&v| self.used(stmt, v));
                for &v in values {
                    if let Some(ty) = ty {
                        self.want(stmt, v, ty);
                    }
                }
                self.access(stmt, address, values.len(), ty, *condition);
                if let Place::Global(n) = address.place
                    && self.program.buffers.get(n).is_some_and(|b| !b.written)
                {
                    self.report(Some(stmt), format!("b{n} is not declared `written`"));
                }
            }
            Stmt::Copy { to, from, count, condition } => {
                let ty = self.place(from.place);
                self.access(stmt, from, *count, None, *condition);
                self.access(stmt, to, *count, ty, None);
                if !matches!((to.place, from.place), (Place::Shared(_), Place::Global(_))) {
                    self.report(Some(stmt), "copies go from a buffer to a shared one");
                }
                let bytes = ty.map_or(4, |ty| ty.size().saturating_mul(*count));
                if !matches!(bytes, 4 | 8 | 16) {
                    self.report(Some(stmt), format!("copies {bytes} bytes, wants 4, 8 or 16"));
                }
            }
            Stmt::Commit | Stmt::Wait(_) | Stmt::Barrier => {}
            Stmt::Bulk(bulk) => self.bulk(stmt, bulk),
            Stmt::Fail { condition, status } => {
                self.want(stmt, *condition, DType::Bool);
                if *status == 0 {
                    self.report(Some(stmt), "status 0 means success");
                }
            }
            Stmt::For(For { var, lo, hi, step, carried, body }) => {
                let of_var = self.program.values.get(*var).copied().unwrap_or(DType::I32);
                if !matches!(of_var, DType::I32 | DType::I64) {
                    self.report(Some(stmt), format!("{var} is {of_var}, wants i32 or i64"));
                }
                for bound in [*lo, *hi] {
                    self.want(stmt, bound, of_var);
                    if self.visible.get(bound.index()) == Some(&true) && !self.is_uniform(bound) {
                        self.report(Some(stmt), format!("{bound} may differ between the threads of a block"));
                    }
                }
                if *step < 1 || of_var == DType::I32 && *step > i64::from(i32::MAX) {
                    self.report(Some(stmt), format!("the step is {step}, wants at least 1, of the variable's type"));
                }
                for c in carried {
                    if let Some(&inside) = self.program.values.get(c.inside) {
                        self.want(stmt, c.init, inside);
                    }
                }
                let mut inside = vec![(stmt, *var, true)];
                inside.extend(carried.iter().map(|c| (stmt, c.inside, false)));
                self.region(body, &inside, |verifier| {
                    for c in carried {
                        if let Some(&inside) = verifier.program.values.get(c.inside) {
                            verifier.want(stmt, c.next, inside);
                        }
                    }
                });
                for c in carried {
                    let inside = self.program.values.get(c.inside).copied();
                    let after = self.define(stmt, c.after, false);
                    if let (Some(inside), Some(after)) = (inside, after)
                        && inside != after
                    {
                        self.report(Some(stmt), format!("{} is {after}, wants {inside}", c.after));
                    }
                }
            }
        }
    }

    fn place(&self, place: Place) -> Option<DType> {
        match place {
            Place::Global(n) => self.program.buffers.get(n).map(|b| b.dtype),
            Place::Shared(n) => self.program.shared.get(n).map(|s| s.dtype),
        }
    }

    /// An access of `count` elements of a type.
    fn access(&mut self, stmt: &Stmt, address: &Address, count: usize, ty: Option<DType>, condition: Option<ValueId>) {
        let found = self.place(address.place);
        match found {
            None => self.report(Some(stmt), format!("there is no buffer of {address}")),
            Some(dtype) => {
                if let Some(ty) = ty
                    && ty != dtype
                    && !loads_from(ty, dtype)
                {
                    self.report(Some(stmt), format!("{address} holds {dtype}, the value is {ty}"));
                }
                let fits = count.saturating_mul(dtype.size()) <= BUFFER_ALIGNMENT;
                let alone = dtype == DType::Bool;
                if !count.is_power_of_two() || !fits || alone && count != 1 {
                    self.report(Some(stmt), format!("an access of {count} elements of {dtype}"));
                }
            }
        }
        if let Some(index) = address.index
            && let Some(ty) = self.used(stmt, index)
        {
            let fits = ty == DType::I32 || ty == DType::I64 && matches!(address.place, Place::Global(_));
            if !fits {
                self.report(Some(stmt), format!("{index} is {ty} and no index of {address}"));
            }
        }
        if let Some(condition) = condition {
            self.want(stmt, condition, DType::Bool);
        }
    }

    /// An operation whose results are declared with these types.
    fn op(&mut self, stmt: &Stmt, results: &[DType], op: &Op) {
        let result = results.first().copied().unwrap_or(DType::Bool);
        let mut wants = 1;
        // The type that the operands say the result has.
        let found = match op {
            Op::Const(c) => Some(c.dtype),
            Op::Thread | Op::Block => Some(DType::I32),
            Op::Dim(n) => {
                if *n >= self.program.dims.len() {
                    self.report(Some(stmt), format!("there is no dim {n}"));
                }
                Some(DType::I64)
            }
            Op::Load(address, condition) => {
                self.access(stmt, address, results.len(), Some(result), condition.map(|(c, _)| c));
                wants = results.len();
                condition.map(|(_, other)| other.dtype)
            }
            Op::Unary(op, a) => {
                let ty = self.used(stmt, *a);
                if let Some(ty) = ty
                    && !unary_is_defined(*op, ty)
                {
                    self.report(Some(stmt), format!("`{}` is not defined on {ty}", op.name()));
                }
                ty
            }
            Op::Exp2(a) => {
                self.want(stmt, *a, DType::F32);
                Some(DType::F32)
            }
            Op::Tf32(a) => {
                self.want(stmt, *a, DType::F32);
                Some(DType::U32)
            }
            Op::Binary(op, a, b) => {
                let ty = self.used(stmt, *a);
                match ty {
                    None => {
                        self.used(stmt, *b);
                    }
                    Some(ty) => {
                        self.want(stmt, *b, ty);
                        if !binary_is_defined(*op, ty) {
                            self.report(Some(stmt), format!("`{}` is not defined on {ty}", op.name()));
                        }
                    }
                }
                ty.map(|ty| if op.is_comparison() { DType::Bool } else { ty })
            }
            Op::Fma(a, b, c) => {
                [a, b, c].into_iter().for_each(|v| self.want(stmt, *v, DType::F32));
                Some(DType::F32)
            }
            Op::Select(a, b, c) => {
                self.want(stmt, *a, DType::Bool);
                self.want(stmt, *b, result);
                self.want(stmt, *c, result);
                None
            }
            Op::Cast(to, a) => {
                if let Some(from) = self.used(stmt, *a)
                    && (from.is_half() && *to != DType::F32 || to.is_half() && from != DType::F32)
                {
                    self.report(Some(stmt), format!("{from} is converted to {to} by way of f32 only"));
                }
                Some(*to)
            }
            Op::Bitcast(to, a) => {
                if let Some(from) = self.used(stmt, *a)
                    && (from.size() != to.size() || from == DType::Bool || *to == DType::Bool)
                {
                    self.report(Some(stmt), format!("the bits of {from} are no {to}"));
                }
                Some(*to)
            }
            Op::Pack(to, a, b) => {
                [a, b].into_iter().for_each(|v| self.want(stmt, *v, DType::F32));
                if !to.is_half() && !to.is_ofp8() {
                    self.report(Some(stmt), format!("no pairs of {to}"));
                }
                Some(DType::U32)
            }
            Op::Unpack(from, a, n) => {
                self.want(stmt, *a, DType::I32);
                if !from.is_ofp8() || *n > 3 {
                    self.report(Some(stmt), format!("no {from} in byte {n} of 4"));
                }
                Some(DType::F32)
            }
            Op::Shuffle(a, mask) => {
                let ty = self.used(stmt, *a);
                if ty.is_some_and(|ty| !matches!(ty.size(), 4 | 8)) {
                    self.report(Some(stmt), format!("{a} is not of 4 or 8 bytes"));
                }
                if *mask == 0 || *mask >= LANES {
                    self.report(Some(stmt), format!("lane mask {mask}; wants 1 to {}", LANES - 1));
                }
                ty
            }
            Op::Matrix { address, transposed } => {
                let size = self.place(address.place).map_or(2, |ty| ty.size());
                self.access(stmt, address, 16 / size.max(1), None, None);
                let Place::Shared(_) = address.place else {
                    return self.report(Some(stmt), "matrices are loaded from shared buffers");
                };
                if size != 2 && (!matches!(size, 1 | 4) || *transposed) {
                    self.report(Some(stmt), "matrices have elements of 2 bytes, or of 1 or 4 that are not transposed");
                }
                if !matches!(results.len(), 1 | 2 | 4) {
                    self.report(Some(stmt), format!("{} matrices; wants 1, 2 or 4", results.len()));
                }
                wants = results.len();
                Some(DType::U32)
            }
            Op::Mma { factor, a, b, c } => {
                a.iter().chain(b).for_each(|&v| self.want(stmt, v, DType::U32));
                c.iter().for_each(|&v| self.want(stmt, v, factor.sums()));
                wants = 4;
                Some(factor.sums())
            }
            Op::GroupMma(product) => {
                wants = self.group_product(stmt, product);
                Some(DType::F32)
            }
        };
        if results.len() != wants {
            self.report(Some(stmt), format!("{} results, wants {wants}", results.len()));
        }
        for ty in results {
            let want = found.unwrap_or(result);
            if *ty != want {
                self.report(Some(stmt), format!("a result is {want}, declared as {ty}"));
            }
        }
    }
}
