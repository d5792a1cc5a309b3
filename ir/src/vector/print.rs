//! The text form of vector programs.
//!
//! Invariant: [`VectorProgram::parse`](super::VectorProgram::parse) of the text gives back the program, provided that
//! every value in it is defined and it verifies.

use super::{Address, Cache, For, Matrix, Op, Stmt, ValueId, VectorProgram, VectorType};
use crate::text::Commas;
use std::fmt::{self, Display, Formatter, Result, Write};

impl Display for VectorType {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        self.dtype.fmt(f)?;
        if self.lanes == 1 { Ok(()) } else { write!(f, "x{}", self.lanes) }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "b{}[", self.buffer)?;
        match (self.index, self.offset) {
            (None, offset) => write!(f, "{offset}")?,
            (Some(index), 0) => write!(f, "{index}")?,
            (Some(index), offset @ (1.. | i64::MIN)) => write!(f, "{index} + {offset}")?,
            (Some(index), offset) => write!(f, "{index} - {}", offset.unsigned_abs())?,
        }
        f.write_char(']')
    }
}

impl Display for Op {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Op::Const(c) => c.fmt(f),
            Op::Dim(n) => write!(f, "dim {n}"),
            Op::Lo => f.write_str("lo"),
            Op::Hi => f.write_str("hi"),
            Op::Load(a) => write!(f, "load {a}"),
            Op::LoadWide(a) => write!(f, "load_wide {a}"),
            Op::LoadSplat(a) => write!(f, "load_splat {a}"),
            Op::LoadStrided(a, stride) => write!(f, "load_strided {a} by {stride}"),
            Op::Splat(a) => write!(f, "splat({a})"),
            Op::Pack(values) => write!(f, "pack({})", Commas(values)),
            Op::Column(values, lane) => write!(f, "column_{lane}({})", Commas(values)),
            Op::Extract(a, lane) => write!(f, "extract({a}, {lane})"),
            Op::Unary(op, a) => write!(f, "{}({a})", op.name()),
            Op::Binary(op, a, b) => write!(f, "{}({a}, {b})", op.name()),
            Op::Scale(a, n) => write!(f, "scale({a}, {n})"),
            Op::Fma(a, b, c) => write!(f, "fma({a}, {b}, {c})"),
            Op::Select(a, b, c) => write!(f, "select({a}, {b}, {c})"),
            Op::Cast(to, a) => write!(f, "to_{to}({a})"),
            Op::RoundHalf(a) => write!(f, "round_f16({a})"),
            Op::Bitcast(to, a) => write!(f, "bits_{to}({a})"),
            Op::Fold(op, a) => write!(f, "fold_{}({a})", op.name()),
        }
    }
}

impl Display for Matrix {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        match self {
            Matrix::Shape(shapes) => {
                let shape = |f: &mut Formatter<'_>, (n, s): (usize, &super::Shape)| {
                    write!(f, "{}{} by {}", if n > 0 { ", " } else { "" }, s.rows, s.row_bytes)
                };
                f.write_str("shape (")?;
                shapes.iter().enumerate().try_for_each(|s| shape(f, s))?;
                f.write_char(')')
            }
            Matrix::Zero(register) => write!(f, "zero {register}"),
            Matrix::Load { to, from, stride } => write!(f, "load {to}, {from} by {stride}"),
            Matrix::Store { from, to, stride } => write!(f, "store {to} by {stride}, {from}"),
            Matrix::Multiply { product, sum, left, right } => write!(f, "{} {sum}, {left}, {right}", product.name()),
        }
    }
}

impl Display for VectorProgram {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        write!(f, "vector @{}(", self.name)?;
        for (i, (dtype, written)) in self.buffers.iter().enumerate() {
            write!(f, "b{i}: {dtype}{}, ", if *written { " written" } else { "" })?;
        }
        write!(f, "dims {}", self.dims)?;
        for (i, (dtype, len)) in self.locals.iter().enumerate() {
            write!(f, ", local b{}: {dtype}[{len}]", self.buffers.len() + i)?;
        }
        writeln!(f, ") {{")?;
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

impl VectorProgram {
    /// `%3: f32x4`; the type is left out where the arena has no such value.
    fn typed(&self, id: ValueId) -> impl Display + use<> {
        let ty = self.values.get(id).copied();
        fmt::from_fn(move |f| match ty {
            Some(ty) => write!(f, "{id}: {ty}"),
            None => write!(f, "{id}"),
        })
    }

    /// The first line of a statement in the text form: what an error message quotes.
    pub fn head<'a>(&'a self, stmt: &'a Stmt) -> impl Display + use<'a> {
        fmt::from_fn(move |f| match stmt {
            Stmt::Let(id, op) => write!(f, "{} = {op}", self.typed(*id)),
            Stmt::Store(address, value) => write!(f, "store {address}, {value}"),
            Stmt::Prefetch(Cache::First, address) => write!(f, "prefetch {address}"),
            Stmt::Prefetch(Cache::Second, address) => write!(f, "prefetch second {address}"),
            Stmt::Matrix(matrix) => write!(f, "matrix {matrix}"),
            Stmt::Fail { condition, status } => write!(f, "fail {status} if {condition}"),
            Stmt::If { condition, .. } => write!(f, "if {condition} {{"),
            Stmt::For(For { var, lo, hi, step, carried, .. }) => {
                write!(f, "for {var} in {lo}..{hi} step {step}")?;
                if !carried.is_empty() {
                    let items = carried.iter().map(|c| format!("{} = {}", self.typed(c.inside), c.init));
                    write!(f, " carry ({})", Commas(items))?;
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
                Stmt::Let(..) | Stmt::Store(..) | Stmt::Prefetch(..) | Stmt::Matrix(_) | Stmt::Fail { .. } => {}
                Stmt::If { then, otherwise, .. } => {
                    self.write_region(f, then, depth + 1)?;
                    if !otherwise.is_empty() {
                        writeln!(f, "{indent}}} else {{")?;
                        self.write_region(f, otherwise, depth + 1)?;
                    }
                    writeln!(f, "{indent}}}")?;
                }
                Stmt::For(For { carried, body, .. }) => {
                    self.write_region(f, body, depth + 1)?;
                    write!(f, "{indent}}}")?;
                    if !carried.is_empty() {
                        let next = Commas(carried.iter().map(|c| c.next));
                        write!(f, " next ({next}) as ({})", Commas(carried.iter().map(|c| c.after)))?;
                    }
                    writeln!(f)?;
                }
            }
        }
        Ok(())
    }
}
