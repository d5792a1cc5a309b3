//! The text form of tile programs.
//!
//! Invariant: [`TileProgram::parse`](super::TileProgram::parse) of the text gives back the program, provided that
//! every tile in its arena is defined and it verifies.

use super::{Ahead, Buffer, Factors, For, If, Multiply, Part, Stmt, TileId, TileOp, TileProgram, TileType};
use crate::scalar::{Constant, Less};
use crate::text::Commas;
use std::fmt::{self, Display, Formatter, Result};

impl Display for TileType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "{}[{}]", self.dtype, self.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    }
}

impl Display for Buffer {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        let written = match (self.local, self.written) {
            (true, _) => " local",
            (false, true) => " written",
            (false, false) => "",
        };
        write!(f, "{}: {}[{}]{written}", self.name, self.dtype, self.len)
    }
}

impl Display for TileProgram {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        writeln!(f, "kernel @{}({}) {{", self.name, Commas(&self.buffers))?;
        for Part { grid, body } in &self.parts {
            let variables = grid.iter().map(|(variable, extent)| format!("{variable} = {extent}"));
            writeln!(f, "  part grid({}) {{", Commas(variables))?;
            self.write_region(f, body, 2)?;
            writeln!(f, "  }}")?;
        }
        writeln!(f, "}}")
    }
}

struct Indent(usize);

impl Display for Indent {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        (0..self.0).try_for_each(|_| f.write_str("  "))
    }
}

/// ` if(a < b, c < d)`, or nothing where there is no condition.
fn mask(conditions: &[Less]) -> impl Display + use<'_> {
    fmt::from_fn(move |f| match conditions {
        [] => Ok(()),
        some => write!(f, " if({})", Commas(some.iter().map(|c| format!("{} < {}", c.left, c.right)))),
    })
}

impl TileProgram {
    fn typed(&self, id: TileId) -> impl Display + use<'_> {
        fmt::from_fn(move |f| match self.tiles.get(id) {
            Some(ty) => write!(f, "{id}: {ty}"),
            None => write!(f, "{id}"),
        })
    }

    fn buffer_name(&self, buffer: usize) -> impl Display + use<'_> {
        fmt::from_fn(move |f| match self.buffers.get(buffer) {
            Some(b) => f.write_str(&b.name),
            None => write!(f, "no_buffer_{buffer}"),
        })
    }

    fn op<'a>(&'a self, op: &'a TileOp) -> impl Display + use<'a> {
        fmt::from_fn(move |f| match op {
            TileOp::Const(c) => write!(f, "const {c}"),
            TileOp::Index(e) => write!(f, "index({e})"),
            TileOp::Load { buffer, address, gathered, mask: conditions, other } => {
                write!(f, "load {}[{address}]", self.buffer_name(*buffer))?;
                if !gathered.is_empty() {
                    write!(f, " with({})", Commas(gathered))?;
                }
                write!(f, "{}", mask(conditions))?;
                if conditions.is_empty() && *other == Constant::int(other.dtype, 0) {
                    return Ok(());
                }
                write!(f, " else {other}")
            }
            TileOp::Unary(op, a) => write!(f, "{} {a}", op.name()),
            TileOp::Binary(op, a, b) => write!(f, "{} {a}, {b}", op.name()),
            TileOp::Fma(a, b, c) => write!(f, "fma {a}, {b}, {c}"),
            TileOp::Select(a, b, c) => write!(f, "select {a}, {b}, {c}"),
            TileOp::Cast(to, a) => write!(f, "to_{to} {a}"),
            TileOp::Reduce(op, axis, a) => write!(f, "reduce {} {axis}, {a}", op.name()),
            TileOp::Transpose(order, a) => write!(f, "transpose [{}], {a}", Commas(order)),
            TileOp::Dot(None, a, b, c) => write!(f, "dot {a}, {b}, {c}"),
            TileOp::Dot(Some(of), a, b, c) => write!(f, "dot_{} {a}, {b}, {c}", of.name()),
            TileOp::CheckIndex { index, extent, status } => write!(f, "check {index} in({extent}) status {status}"),
        })
    }

    /// The first line of a statement, as in the text form.
    pub(super) fn head<'a>(&'a self, stmt: &'a Stmt) -> impl Display + use<'a> {
        fmt::from_fn(move |f| match stmt {
            Stmt::Let(id, op) => write!(f, "{} = {}", self.typed(*id), self.op(op)),
            Stmt::Store { buffer, address, gathered, mask: conditions, value } => {
                write!(f, "store {}[{address}] = {value}", self.buffer_name(*buffer))?;
                if !gathered.is_empty() {
                    write!(f, " with({})", Commas(gathered))?;
                }
                write!(f, "{}", mask(conditions))
            }
            Stmt::Multiply(Multiply { out: (out, at), adds, rows, columns, product, depth, rounds, folds, ahead }) => {
                let cut = |sizes: &[usize]| sizes.iter().map(usize::to_string).collect::<Vec<_>>().join("+");
                let (out, product) = (self.buffer_name(*out), product.name());
                write!(f, "multiply {out}[{},{}]", cut(rows), cut(columns))?;
                if at.as_const() != Some(0) {
                    write!(f, " at {at}")?;
                }
                write!(f, "{} {product} by {depth}", if *adds { " adds" } else { "" })?;
                for (n, factors) in rounds.iter().enumerate() {
                    for (k, Factors { left, right }) in factors.iter().enumerate() {
                        f.write_str(if k > 0 { " and" } else { ["", " then"][usize::from(n > 0)] })?;
                        for (buffer, address) in [left, right] {
                            write!(f, " {}[{address}]", self.buffer_name(*buffer))?;
                        }
                    }
                }
                write!(f, " for({})", Commas(folds.iter().map(|(v, e, step)| format!("{v} = {e} step {step}"))))?;
                match ahead {
                    None => Ok(()),
                    Some(Ahead { from: (buffer, address), lines }) => {
                        write!(f, " ahead {}[{address}] lines {lines}", self.buffer_name(*buffer))
                    }
                }
            }
            Stmt::If(If { condition, .. }) => write!(f, "if {condition} {{"),
            Stmt::For(For { var, lo, hi, step, carried, .. }) => {
                write!(f, "for {var} in {lo}..{hi} step {step}")?;
                if !carried.is_empty() {
                    let items = carried.iter().map(|c| format!("{} = {}", self.typed(c.inside), c.init));
                    write!(f, " carry({})", Commas(items))?;
                }
                f.write_str(" {")
            }
        })
    }

    fn write_region(&self, f: &mut Formatter<'_>, body: &[Stmt], depth: usize) -> Result {
        let indent = Indent(depth);
        for stmt in body {
            writeln!(f, "{indent}{}", self.head(stmt))?;
            match stmt {
                Stmt::Let(..) | Stmt::Store { .. } | Stmt::Multiply(_) => {}
                Stmt::If(If { then, otherwise, .. }) => {
                    self.write_region(f, then, depth + 1)?;
                    writeln!(f, "{indent}}} else {{")?;
                    self.write_region(f, otherwise, depth + 1)?;
                    writeln!(f, "{indent}}}")?;
                }
                Stmt::For(For { carried, body, .. }) => {
                    self.write_region(f, body, depth + 1)?;
                    write!(f, "{indent}}}")?;
                    if !carried.is_empty() {
                        let next = Commas(carried.iter().map(|c| c.next));
                        write!(f, " next({next}) as({})", Commas(carried.iter().map(|c| c.after)))?;
                    }
                    writeln!(f)?;
                }
            }
        }
        Ok(())
    }
}
