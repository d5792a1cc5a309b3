//! The text form of warp programs.
//!
//! Invariant: [`WarpProgram::parse`](super::WarpProgram::parse) of the text gives back the program, provided that
//! every value in it is defined.

use super::{Address, Bulk, For, Op, Place, Roles, Shared, Stmt, ValueId, WarpProgram};
use crate::text::Commas;
use std::fmt::{self, Display, Formatter, Result};

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self.place {
            Place::Global(n) => write!(f, "b{n}[")?,
            Place::Shared(n) => write!(f, "s{n}[")?,
        }
        match (self.index, self.offset) {
            (None, offset) => write!(f, "{offset}]"),
            (Some(index), 0) => write!(f, "{index}]"),
            (Some(index), offset @ (1.. | i64::MIN)) => write!(f, "{index} + {offset}]"),
            (Some(index), offset) => write!(f, "{index} - {}]", offset.unsigned_abs()),
        }
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Op::Const(c) => c.fmt(f),
            Op::Thread => f.write_str("thread"),
            Op::Block => f.write_str("block"),
            Op::Dim(n) => write!(f, "dim {n}"),
            Op::Load(address, None) => write!(f, "load {address}"),
            Op::Load(address, Some((condition, other))) => write!(f, "load {address} if {condition} else {other}"),
            Op::Unary(op, a) => write!(f, "{}({a})", op.name()),
            Op::Exp2(a) => write!(f, "exp2({a})"),
            Op::Tf32(a) => write!(f, "tf32({a})"),
            Op::Binary(op, a, b) => write!(f, "{}({a}, {b})", op.name()),
            Op::Fma(a, b, c) => write!(f, "fma({a}, {b}, {c})"),
            Op::Select(a, b, c) => write!(f, "select({a}, {b}, {c})"),
            Op::Cast(to, a) => write!(f, "to_{to}({a})"),
            Op::Bitcast(to, a) => write!(f, "bits_{to}({a})"),
            Op::Unpack(from, a, n) => write!(f, "unpack_{from}({a}, {n})"),
            Op::Pack(to, a, b) => write!(f, "pack_{to}({a}, {b})"),
            Op::Shuffle(a, mask) => write!(f, "shuffle({a}, {mask})"),
            Op::Matrix { address, transposed: false } => write!(f, "matrix {address}"),
            Op::Matrix { address, transposed: true } => write!(f, "matrix_transposed {address}"),
            Op::Mma { factor, a, b, c } => {
                write!(f, "mma_{}({}, {}, {})", factor.name(), Commas(a), Commas(b), Commas(c))
            }
            Op::GroupMma(product) => product.fmt(f),
        }
    }
}

impl Display for WarpProgram {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "warp @{}(", self.name)?;
        for (i, b) in self.buffers.iter().enumerate() {
            write!(f, "b{i} {}: {}[{}]{}, ", b.name, b.dtype, b.len, if b.written { " written" } else { "" })?;
        }
        write!(f, "dims({})) grid({}) threads {}", Commas(&self.dims), self.grid, self.threads)?;
        if !self.shared.is_empty() {
            let items =
                self.shared.iter().enumerate().map(|(i, Shared { dtype, len })| format!("s{i}: {dtype}[{len}]"));
            write!(f, " shared({})", Commas(items))?;
        }
        if !self.maps.is_empty() {
            let items = self.maps.iter().enumerate().map(|(i, map)| format!("m{i}: {map}"));
            write!(f, " maps({})", Commas(items))?;
        }
        writeln!(f, " {{")?;
        self.write_region(f, &self.body, 1)?;
        writeln!(f, "}}")
    }
}

struct Indent(usize);

impl Display for Indent {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        (0..self.0).try_for_each(|_| f.write_str("  "))
    }
}

impl WarpProgram {
    /// `%3: f32`; the type is left out where the arena has no such value.
    fn typed(&self, id: ValueId) -> impl Display + Clone + use<> {
        match self.values.get(id) {
            Some(ty) => format!("{id}: {ty}"),
            None => id.to_string(),
        }
    }

    /// The first line of a statement, as in the text form.
    pub fn head<'a>(&'a self, stmt: &'a Stmt) -> impl Display + use<'a> {
        fmt::from_fn(move |f| match stmt {
            Stmt::Let(ids, op) => write!(f, "{} = {op}", Commas(ids.iter().map(|&id| self.typed(id)))),
            Stmt::Store { address, values, condition } => {
                write!(f, "store {address}, ({}){}", Commas(values), If(*condition))
            }
            Stmt::Copy { to, from, count, condition } => write!(f, "copy {to}, {from}, {count}{}", If(*condition)),
            Stmt::Commit => f.write_str("commit"),
            Stmt::Wait(groups) => write!(f, "wait {groups}"),
            Stmt::Barrier => f.write_str("barrier"),
            Stmt::Fail { condition, status } => write!(f, "fail {status} if {condition}"),
            Stmt::For(For { var, lo, hi, step, carried, .. }) => {
                write!(f, "for {} in {lo}..{hi} step {step}", self.typed(*var))?;
                if !carried.is_empty() {
                    let items = carried.iter().map(|c| format!("{} = {}", self.typed(c.inside), c.init));
                    write!(f, " carry({})", Commas(items))?;
                }
                f.write_str(" {")
            }
            Stmt::Bulk(bulk) => bulk.fmt(f),
        })
    }

    fn write_region(&self, f: &mut Formatter<'_>, body: &[Stmt], depth: usize) -> Result {
        let indent = Indent(depth);
        for stmt in body {
            writeln!(f, "{indent}{}", self.head(stmt))?;
            match stmt {
                Stmt::Let(..) | Stmt::Store { .. } | Stmt::Copy { .. } => {}
                Stmt::Commit | Stmt::Wait(_) | Stmt::Barrier | Stmt::Fail { .. } => {}
                Stmt::For(For { carried, body, .. }) => {
                    self.write_region(f, body, depth + 1)?;
                    write!(f, "{indent}}}")?;
                    if !carried.is_empty() {
                        let next = Commas(carried.iter().map(|c| c.next));
                        write!(f, " next({next}) as({})", Commas(carried.iter().map(|c| c.after)))?;
                    }
                    writeln!(f)?;
                }
                Stmt::Bulk(Bulk::Roles(Roles { multiply, fetch, .. })) => {
                    self.write_region(f, multiply, depth + 1)?;
                    writeln!(f, "{indent}}} fetch {{")?;
                    self.write_region(f, fetch, depth + 1)?;
                    writeln!(f, "{indent}}}")?;
                }
                Stmt::Bulk(_) => {}
            }
        }
        Ok(())
    }
}

/// ` if %3`, or nothing.
struct If(Option<ValueId>);

impl Display for If {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.0.map_or(Ok(()), |c| write!(f, " if {c}"))
    }
}
