//! The verifier of vector programs.
//!
//! Invariant: a program that verifies can be interpreted without any check other than those on addresses, sizes
//! and loop bounds, and compiled without any check but for what a target cannot do. All errors are collected.

use super::matrix::{MAX_ROW_BYTES, MAX_ROWS};
use super::{Address, For, Matrix, Op, Shapes, Stmt, ValueId, VectorProgram, VectorType, multiplies};
use crate::dtype::{Class, DType};
use crate::scalar::{BinaryOp, UnaryOp};

/// A rule that a vector program breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("vector program @{program}: `{statement}`: {message}")]
pub struct VerifyError {
    /// Name of the program.
    pub program: String,
    /// First line of the statement in the text form; empty for the program's head.
    pub statement: String,
    /// What is wrong.
    pub message: String,
}

/// Most lanes of a vector: 64 bytes of one-byte elements, the widest registers there are.
const MAX_LANES: u32 = 64;

/// Most bytes of all local memory: it lies on the stack.
const MAX_LOCAL_BYTES: usize = 3 << 16;

/// Whether statements give matrix registers shapes.
fn reshapes(body: &[Stmt]) -> bool {
    body.iter().any(|stmt| match stmt {
        Stmt::Matrix(matrix) => matches!(matrix, Matrix::Shape(_)),
        Stmt::If { then, otherwise, .. } => reshapes(then) || reshapes(otherwise),
        Stmt::For(f) => reshapes(&f.body),
        Stmt::Let(..) | Stmt::Store(..) | Stmt::Prefetch(..) | Stmt::Fail { .. } => false,
    })
}

impl VectorProgram {
    /// Checks that every value is assigned once and before its uses, and all types, lanes, buffers and dims.
    ///
    /// # Errors
    /// Every rule that is broken, in the order of the program.
    pub fn verify(&self) -> Result<(), Vec<VerifyError>> {
        let mut verifier = Verifier {
            program: self,
            assigned: vec![false; self.values.len()],
            visible: vec![false; self.values.len()],
            shapes: None,
            errors: Vec::new(),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if self.name.is_empty() || !self.name.chars().all(plain) {
            verifier.report(None, "the name is not made of letters, digits and `_`");
        }
        for (i, (dtype, _)) in self.buffers.iter().enumerate() {
            if !computable(*dtype) && *dtype != DType::F16 {
                verifier.report(None, format!("buffer b{i}: vector programs do not compute with {dtype}"));
            }
        }
        let mut local = 0usize;
        for (i, (dtype, len)) in self.locals.iter().enumerate() {
            local = local.saturating_add(len.saturating_mul(dtype.size()));
            if !computable(*dtype) || local > MAX_LOCAL_BYTES {
                verifier.report(None, format!("local memory {i}: {len} of {dtype}"));
            }
        }
        verifier.region(&self.body, &[], |_| {});
        if verifier.errors.is_empty() { Ok(()) } else { Err(verifier.errors) }
    }
}

/// Whether values of the type exist in vector programs.
fn computable(dtype: DType) -> bool {
    use DType::*;
    matches!(dtype, Bool | I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64 | F32 | F64)
}

fn unary_is_defined(op: UnaryOp, dtype: DType) -> bool {
    use UnaryOp::*;
    match dtype.class() {
        Class::Float | Class::Double => {
            matches!(op, Neg | Abs | Not | Floor | Ceil | Round | Trunc | Sqrt)
        }
        Class::Signed | Class::Unsigned => matches!(op, Neg | Abs | Not),
        Class::Bool => op == Not,
        Class::Complex | Class::Str => false,
    }
}

fn binary_is_defined(op: BinaryOp, dtype: DType) -> bool {
    use BinaryOp::*;
    op.is_comparison()
        || match dtype.class() {
            Class::Float => matches!(op, Add | Sub | Mul | Div | Min | Max | Pair),
            Class::Double => matches!(op, Add | Sub | Mul | Div | Min | Max),
            Class::Signed | Class::Unsigned => !matches!(op, Pow | Pair | Dot2) && (op != Dot4 || dtype == DType::I32),
            Class::Bool => matches!(op, And | Or | Xor | Add | Mul | Min | Max),
            Class::Complex | Class::Str => false,
        }
}

fn fold_is_defined(op: BinaryOp, dtype: DType) -> bool {
    use BinaryOp::*;
    matches!(op, Add | Mul | Min | Max | And | Or) && binary_is_defined(op, dtype)
}

struct Verifier<'a> {
    program: &'a VectorProgram,
    /// Values that have been defined anywhere so far.
    assigned: Vec<bool>,
    /// Values that may be used here.
    visible: Vec<bool>,
    /// The shapes that matrix registers surely have here.
    shapes: Option<Shapes>,
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

    /// Defines a value, which must exist and not be defined yet; returns its type.
    fn define(&mut self, stmt: &Stmt, id: ValueId) -> Option<VectorType> {
        let Some(&ty) = self.program.values.get(id) else {
            self.report(Some(stmt), format!("{id} is not a value of the program"));
            return None;
        };
        if !computable(ty.dtype) {
            self.report(Some(stmt), format!("{id}: vector programs do not compute with {}", ty.dtype));
        }
        if !ty.lanes.is_power_of_two() || ty.lanes > MAX_LANES {
            self.report(Some(stmt), format!("{id}: {} lanes; wants a power of two up to {MAX_LANES}", ty.lanes));
        }
        if self.assigned[id.index()] {
            self.report(Some(stmt), format!("{id} is assigned a second time"));
        }
        self.assigned[id.index()] = true;
        self.visible[id.index()] = true;
        Some(ty)
    }

    /// The type of a value that is used here; nothing (and an error) where it is not defined here.
    fn used(&mut self, stmt: &Stmt, id: ValueId) -> Option<VectorType> {
        if self.visible.get(id.index()) == Some(&true) {
            return self.program.values.get(id).copied();
        }
        let what = if self.assigned.get(id.index()) == Some(&true) { "not visible here" } else { "not defined" };
        self.report(Some(stmt), format!("{id} is {what}"));
        None
    }

    fn want(&mut self, stmt: &Stmt, id: ValueId, want: VectorType) {
        if let Some(ty) = self.used(stmt, id)
            && ty != want
        {
            self.report(Some(stmt), format!("{id} is {ty}, wants {want}"));
        }
    }

    /// Checks a region: `inside` are defined before it, `at_end` runs after it; then what it defined disappears.
    fn region(&mut self, body: &[Stmt], inside: &[(&Stmt, ValueId)], at_end: impl FnOnce(&mut Self)) {
        let outside = self.visible.clone();
        for (stmt, id) in inside {
            self.define(stmt, *id);
        }
        for stmt in body {
            self.stmt(stmt);
        }
        at_end(self);
        self.visible = outside;
    }

    fn stmt(&mut self, stmt: &Stmt) {
        let bool = VectorType::scalar(DType::Bool);
        match stmt {
            Stmt::Let(id, op) => {
                let declared = self.program.values.get(*id).copied();
                if let Some(ty) = declared {
                    self.op(stmt, ty, op);
                }
                self.define(stmt, *id);
            }
            Stmt::Store(address, value) => {
                let buffer = self.program.memory(address.buffer).map(|b| b.0);
                let stored = self.used(stmt, *value).map(|ty| match buffer {
                    Some(dtype) if super::widened(dtype) == Some(ty.dtype) => VectorType { dtype, ..ty },
                    Some(_) | None => ty,
                });
                self.memory(stmt, address, stored);
                self.written(stmt, address);
            }
            Stmt::Matrix(matrix) => self.matrix(stmt, matrix),
            Stmt::Prefetch(_, address) => self.memory(stmt, address, None),
            Stmt::If { condition, then, otherwise } => {
                self.want(stmt, *condition, bool);
                let before = self.shapes;
                self.region(then, &[], |_| {});
                self.shapes = before;
                self.region(otherwise, &[], |_| {});
                self.shapes = before.filter(|_| !reshapes(then) && !reshapes(otherwise));
            }
            Stmt::Fail { condition, status } => {
                self.want(stmt, *condition, bool);
                if *status == 0 {
                    self.report(Some(stmt), "status 0 means success");
                }
            }
            Stmt::For(For { var, lo, hi, step, carried, body }) => {
                let i64 = VectorType::scalar(DType::I64);
                self.want(stmt, *lo, i64);
                self.want(stmt, *hi, i64);
                if *step < 1 {
                    self.report(Some(stmt), format!("the step is {step}, wants at least 1"));
                }
                for c in carried {
                    if let Some(&inside) = self.program.values.get(c.inside) {
                        self.want(stmt, c.init, inside);
                    }
                }
                let mut inside = vec![(stmt, *var)];
                inside.extend(carried.iter().map(|c| (stmt, c.inside)));
                // The first iteration finds other shapes than the later ones.
                let lasting = self.shapes.filter(|_| !reshapes(body));
                self.shapes = lasting;
                self.region(body, &inside, |verifier| {
                    for c in carried {
                        if let Some(&inside) = verifier.program.values.get(c.inside) {
                            verifier.want(stmt, c.next, inside);
                        }
                    }
                });
                self.shapes = lasting;
                if self.program.values.get(*var).is_some_and(|ty| *ty != i64) {
                    self.report(Some(stmt), format!("{var} is not i64"));
                }
                for c in carried {
                    let inside = self.program.values.get(c.inside).copied();
                    let after = self.define(stmt, c.after);
                    if let (Some(inside), Some(after)) = (inside, after)
                        && inside != after
                    {
                        self.report(Some(stmt), format!("{} is {after}, wants {inside}", c.after));
                    }
                }
            }
        }
    }

    fn written(&mut self, stmt: &Stmt, address: &Address) {
        if self.program.memory(address.buffer).is_some_and(|(_, written)| !written) {
            self.report(Some(stmt), format!("b{} is not declared `written`", address.buffer));
        }
    }

    fn matrix(&mut self, stmt: &Stmt, matrix: &Matrix) {
        if let Matrix::Shape(shapes) = matrix {
            let fine = |rows, bytes| {
                (rows == 0) == (bytes == 0) && rows <= MAX_ROWS && bytes <= MAX_ROW_BYTES && bytes % 4 == 0
            };
            if !shapes.iter().all(|s| fine(s.rows, s.row_bytes)) {
                self.report(Some(stmt), "no register has such a shape");
            }
            self.shapes = Some(**shapes);
            return;
        }
        let Some(shapes) = self.shapes else { return self.report(Some(stmt), "registers may have no shape here") };
        let mut shape = |register: u8| {
            let found = shapes.get(usize::from(register)).copied().filter(|s| s.rows > 0);
            if found.is_none() {
                self.report(Some(stmt), format!("register {register} is not used in this shape"));
            }
            found
        };
        match matrix {
            Matrix::Shape(_) => {}
            Matrix::Zero(register) => {
                shape(*register);
            }
            Matrix::Load { to: register, from: address, stride }
            | Matrix::Store { from: register, to: address, stride } => {
                let found = shape(*register);
                self.memory(stmt, address, None);
                if matches!(matrix, Matrix::Store { .. }) {
                    self.written(stmt, address);
                }
                let size = self.program.memory(address.buffer).map_or(1, |(dtype, _)| dtype.size());
                let bytes = stride.checked_mul(size as i64).is_some_and(|b| i32::try_from(b).is_ok());
                if !bytes || found.is_some_and(|s| usize::from(s.row_bytes) % size != 0) {
                    self.report(Some(stmt), format!("rows of b{} cannot be {stride} elements apart", address.buffer));
                }
            }
            Matrix::Multiply { sum, left, right, .. } => {
                if let (Some(s), Some(l), Some(r)) = (shape(*sum), shape(*left), shape(*right))
                    && (!multiplies(s, l, r) || [left, right].contains(&sum) || left == right)
                {
                    self.report(Some(stmt), "the registers' shapes are none of a product, or it has one of them twice");
                }
            }
        }
    }

    /// An access of a value of a type.
    fn memory(&mut self, stmt: &Stmt, address: &Address, ty: Option<VectorType>) {
        match self.program.memory(address.buffer) {
            None => self.report(Some(stmt), format!("there is no buffer b{}", address.buffer)),
            Some((dtype, _)) => {
                if let Some(ty) = ty
                    && ty.dtype != dtype
                {
                    self.report(Some(stmt), format!("b{} holds {dtype}, the value is {ty}", address.buffer));
                }
            }
        }
        if ty.is_some_and(|ty| ty.dtype == DType::Bool && ty.lanes > 1) {
            self.report(Some(stmt), "masks are never in memory");
        }
        if let Some(index) = address.index {
            self.want(stmt, index, VectorType::scalar(DType::I64));
        }
    }

    /// An operation whose result is declared with a type.
    fn op(&mut self, stmt: &Stmt, result: VectorType, op: &Op) {
        let i64 = VectorType::scalar(DType::I64);
        let scalar = VectorType::scalar(result.dtype);
        // The type that the operands say the result has.
        let found = match op {
            Op::Const(c) => Some(VectorType { dtype: c.dtype, ..result }),
            Op::Dim(n) => {
                if *n >= self.program.dims {
                    self.report(Some(stmt), format!("there is no dim {n}"));
                }
                Some(i64)
            }
            Op::Lo | Op::Hi => Some(i64),
            Op::Load(a) | Op::LoadStrided(a, _) => {
                self.memory(stmt, a, Some(result));
                None
            }
            Op::LoadWide(a) => {
                let narrow = self.program.memory(a.buffer).map(|b| b.0);
                let wide = narrow.and_then(super::widened);
                match narrow.filter(|_| wide.is_some()) {
                    Some(dtype) => self.memory(stmt, a, Some(VectorType { dtype, ..result })),
                    None => {
                        self.report(Some(stmt), "only buffers of 8- and 16-bit integers and of f16 are loaded wide")
                    }
                }
                Some(VectorType { dtype: wide.unwrap_or(result.dtype), ..result })
            }
            Op::LoadSplat(a) => {
                self.memory(stmt, a, Some(scalar));
                None
            }
            Op::Splat(a) => {
                self.want(stmt, *a, scalar);
                None
            }
            Op::Column(values, lane) => {
                let lanes = result.lanes;
                let fits = u32::try_from(values.len()) == Ok(lanes) && *lane < lanes && lanes >= 2;
                if !fits || result.dtype == DType::Bool {
                    self.report(Some(stmt), format!("lane {lane} of {} vectors is no {result}", values.len()));
                }
                for v in values {
                    self.want(stmt, *v, result);
                }
                None
            }
            Op::Pack(values) => {
                if u32::try_from(values.len()) != Ok(result.lanes) {
                    self.report(Some(stmt), format!("{} scalars for {} lanes", values.len(), result.lanes));
                }
                for v in values {
                    self.want(stmt, *v, scalar);
                }
                None
            }
            Op::Extract(a, lane) => self.used(stmt, *a).map(|ty| {
                if *lane >= ty.lanes {
                    self.report(Some(stmt), format!("{a} is {ty} and has no lane {lane}"));
                }
                VectorType::scalar(ty.dtype)
            }),
            Op::Unary(op, a) => {
                let ty = self.used(stmt, *a);
                if let Some(ty) = ty
                    && !unary_is_defined(*op, ty.dtype)
                {
                    self.report(Some(stmt), format!("`{}` is not defined on {ty}", op.name()));
                }
                ty
            }
            Op::Binary(op, a, b) => {
                let ty = self.used(stmt, *a);
                match ty {
                    None => {
                        self.used(stmt, *b);
                    }
                    Some(ty) => {
                        self.want(stmt, *b, ty);
                        if !binary_is_defined(*op, ty.dtype) {
                            self.report(Some(stmt), format!("`{}` is not defined on {ty}", op.name()));
                        }
                    }
                }
                ty.map(|ty| VectorType { dtype: op.result_type(ty.dtype), ..ty })
            }
            Op::Fma(a, b, c) => {
                let pairs = VectorType { dtype: DType::I32, ..result };
                let of_pairs = result.dtype == DType::F32 && self.used(stmt, *a) == Some(pairs);
                let factor = if of_pairs { pairs } else { result };
                for (v, ty) in [(a, factor), (b, factor), (c, result)] {
                    self.want(stmt, *v, ty);
                }
                if !result.dtype.is_float() {
                    self.report(Some(stmt), format!("`fma` is not defined on {result}"));
                }
                None
            }
            Op::Scale(a, n) => {
                for v in [a, n] {
                    self.want(stmt, *v, result);
                }
                if result.dtype != DType::F32 {
                    self.report(Some(stmt), format!("`scale` is not defined on {result}"));
                }
                None
            }
            Op::Select(a, b, c) => {
                self.want(stmt, *a, VectorType { dtype: DType::Bool, ..result });
                self.want(stmt, *b, result);
                self.want(stmt, *c, result);
                None
            }
            Op::Cast(to, a) => self.used(stmt, *a).map(|ty| VectorType { dtype: *to, ..ty }),
            Op::RoundHalf(a) => {
                self.want(stmt, *a, VectorType { dtype: DType::F32, ..result });
                Some(VectorType { dtype: DType::F32, ..result })
            }
            Op::Bitcast(to, a) => {
                if let Some(ty) = self.used(stmt, *a) {
                    let bytes = |ty: VectorType| ty.dtype.size() * ty.lanes as usize;
                    if bytes(ty) != bytes(result) || ty.dtype == DType::Bool || *to == DType::Bool {
                        self.report(Some(stmt), format!("the bits of {ty} are no {result}"));
                    }
                }
                Some(VectorType { dtype: *to, ..result })
            }
            Op::Fold(op, a) => {
                let ty = self.used(stmt, *a);
                if let Some(ty) = ty
                    && !fold_is_defined(*op, ty.dtype)
                {
                    self.report(Some(stmt), format!("`fold_{}` is not defined on {ty}", op.name()));
                }
                ty.map(|ty| VectorType::scalar(ty.dtype))
            }
        };
        if let Some(found) = found
            && found != result
        {
            self.report(Some(stmt), format!("the result is {found}, declared as {result}"));
        }
    }
}
