//! Building vector code into nested regions.
//!
//! Invariant: a value is emitted once for equal operations on equal operands, at the end of the region that is
//! named for it; that region is open and encloses (or is) every region that uses the value. Code for an outer region
//! may be emitted while an inner one is open: it runs before the inner region's statement, which is only added
//! when it is complete. This is how everything that a loop does not change ends up before the loop.

use kiln_ir::id::Arena;
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::vector::{Carried, For, Op, Stmt, ValueId, VectorType};
use kiln_ir::{Class, DType};
use std::collections::HashMap;

/// How many values later a fold loads a number that fills all lanes again rather than keeping it: windows that overlap, as a convolution's of few
/// channels do, would else keep more of them than there are registers beside the sums, and a load is less than a spill.
const SPLAT_KEPT: usize = 48;

/// The statements of a region under construction.
#[derive(Default)]
struct Region {
    stmts: Vec<Stmt>,
    known: HashMap<(Op, VectorType), ValueId>,
}

/// A vector program under construction.
pub(super) struct Builder {
    values: Arena<VectorType>,
    /// In which region each value is, counted from the outermost.
    depths: Vec<usize>,
    regions: Vec<Region>,
    /// Buffers that the kernel stores to: what is loaded from them may change.
    written: Vec<bool>,
    /// Whether there is [`Op::Scale`].
    scales: bool,
    /// Whether the innermost region is the loop of a fold, whose sums take most registers.
    pub(super) folds: bool,
}

impl Builder {
    /// With the outermost region open.
    pub(super) fn new(written: Vec<bool>, scales: bool) -> Builder {
        Builder {
            values: Arena::default(),
            depths: Vec::new(),
            regions: vec![Region::default()],
            written,
            scales,
            folds: false,
        }
    }

    /// The finished program's values and body.
    pub(super) fn finish(mut self) -> (Arena<VectorType>, Vec<Stmt>) {
        let body = self.close();
        (self.values, body)
    }

    /// How many values there are.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// The depth of the innermost open region.
    pub(super) fn depth(&self) -> usize {
        self.regions.len() - 1
    }

    pub(super) fn depth_of(&self, value: ValueId) -> usize {
        self.depths[value.index()]
    }

    pub(super) fn ty(&self, value: ValueId) -> VectorType {
        self.values[value]
    }

    /// Opens a region inside the innermost one.
    pub(super) fn open(&mut self) {
        self.regions.push(Region::default());
    }

    /// Closes the innermost region and gives its statements.
    pub(super) fn close(&mut self) -> Vec<Stmt> {
        self.regions.pop().map(|r| r.stmts).unwrap_or_default()
    }

    /// A value that a statement other than `Let` defines, in the region of that depth.
    pub(super) fn fresh(&mut self, depth: usize, ty: VectorType) -> ValueId {
        let id = self.values.push(ty);
        self.depths.push(depth);
        id
    }

    /// Adds a statement to the region of that depth.
    pub(super) fn push(&mut self, depth: usize, stmt: Stmt) {
        self.regions[depth].stmts.push(stmt);
    }

    /// The operation's value, computed in the region of that depth or one around it.
    pub(super) fn emit(&mut self, depth: usize, ty: VectorType, op: Op) -> ValueId {
        let stable = match &op {
            Op::Load(a) | Op::LoadWide(a) | Op::LoadSplat(a) | Op::LoadStrided(a, _) => !self.written[a.buffer],
            _ => true,
        };
        // What leaves a loop is loaded once.
        let short = self.folds && matches!(op, Op::LoadSplat(_)) && depth == self.depth();
        let kept = |&&known: &&ValueId| !short || self.values.len() - known.index() <= SPLAT_KEPT;
        let known = self.regions[..=depth].iter().find_map(|r| r.known.get(&(op.clone(), ty)));
        if stable && let Some(&known) = known.filter(kept) {
            return known;
        }
        let id = self.fresh(depth, ty);
        self.push(depth, Stmt::Let(id, op.clone()));
        if stable {
            self.regions[depth].known.insert((op, ty), id);
        }
        id
    }

    /// Emits a pure operation in the outermost region where its operands are known.
    pub(super) fn hoisted(&mut self, ty: VectorType, op: Op) -> ValueId {
        let mut depth = 0;
        op.for_each_operand(|v| depth = depth.max(self.depths[v.index()]));
        self.emit(depth, ty, op)
    }

    /// An i64 constant, in the outermost region: code generators remake it at its uses.
    pub(super) fn i64(&mut self, value: i64) -> ValueId {
        self.emit(0, VectorType::scalar(DType::I64), Op::Const(Constant::int(DType::I64, value)))
    }

    /// `a op b` of i64 scalars, in the outermost region where both are known.
    pub(super) fn i64_op(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        let dtype = if op.is_comparison() { DType::Bool } else { DType::I64 };
        self.hoisted(VectorType::scalar(dtype), Op::Binary(op, a, b))
    }

    /// For emitting in the region of that depth.
    pub(super) fn at(&mut self, depth: usize) -> At<'_> {
        At { builder: self, depth }
    }
}

/// Emits operations in one region. The types of results follow from the operands.
pub(super) struct At<'a> {
    builder: &'a mut Builder,
    depth: usize,
}

impl At<'_> {
    pub(super) fn ty(&self, v: ValueId) -> VectorType {
        self.builder.ty(v)
    }

    pub(super) fn op(&mut self, ty: VectorType, op: Op) -> ValueId {
        self.builder.emit(self.depth, ty, op)
    }

    /// A constant of a type in every lane.
    pub(super) fn constant(&mut self, ty: VectorType, c: Constant) -> ValueId {
        self.op(ty, Op::Const(c))
    }

    /// An i64 scalar.
    pub(super) fn i64(&mut self, value: i64) -> ValueId {
        self.builder.i64(value)
    }

    /// A number as a value of the type of `like`.
    pub(super) fn num(&mut self, like: ValueId, value: f64) -> ValueId {
        let ty = self.ty(like);
        let c = match ty.dtype.class() {
            Class::Float | Class::Double => Constant::float(ty.dtype, value),
            _ => Constant::int(ty.dtype, value as i64),
        };
        self.constant(ty, c)
    }

    /// An integer as a value of the type of `like`.
    pub(super) fn int(&mut self, like: ValueId, value: i64) -> ValueId {
        let ty = self.ty(like);
        self.constant(ty, Constant::int(ty.dtype, value))
    }

    pub(super) fn unary(&mut self, op: UnaryOp, a: ValueId) -> ValueId {
        let ty = self.ty(a);
        self.op(ty, Op::Unary(op, a))
    }

    pub(super) fn binary(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        let ty = self.ty(a);
        let ty = VectorType { dtype: op.result_type(ty.dtype), ..ty };
        self.op(ty, Op::Binary(op, a, b))
    }

    /// `a op number`, the number in the type of `a`.
    pub(super) fn with(&mut self, op: BinaryOp, a: ValueId, number: f64) -> ValueId {
        let b = self.num(a, number);
        self.binary(op, a, b)
    }

    pub(super) fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Add, a, b)
    }

    pub(super) fn sub(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Sub, a, b)
    }

    pub(super) fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Mul, a, b)
    }

    pub(super) fn div(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Div, a, b)
    }

    pub(super) fn fma(&mut self, a: ValueId, b: ValueId, c: ValueId) -> ValueId {
        let ty = self.ty(c);
        self.op(ty, Op::Fma(a, b, c))
    }

    /// `a * 2^n` for whole n in one operation; nothing where there is none.
    pub(super) fn scale(&mut self, a: ValueId, n: ValueId) -> Option<ValueId> {
        let ty = self.ty(a);
        (self.builder.scales && ty.dtype == DType::F32).then(|| self.op(ty, Op::Scale(a, n)))
    }

    pub(super) fn select(&mut self, c: ValueId, a: ValueId, b: ValueId) -> ValueId {
        let ty = self.ty(a);
        self.op(ty, Op::Select(c, a, b))
    }

    pub(super) fn cast(&mut self, to: DType, a: ValueId) -> ValueId {
        let ty = VectorType { dtype: to, ..self.ty(a) };
        self.op(ty, Op::Cast(to, a))
    }

    pub(super) fn bits(&mut self, to: DType, a: ValueId) -> ValueId {
        let ty = VectorType { dtype: to, ..self.ty(a) };
        self.op(ty, Op::Bitcast(to, a))
    }

    pub(super) fn extract(&mut self, a: ValueId, lane: u32) -> ValueId {
        let ty = self.ty(a);
        if ty.is_scalar() { a } else { self.op(VectorType::scalar(ty.dtype), Op::Extract(a, lane)) }
    }

    /// Scalars of one type as a vector; a single one as it is.
    pub(super) fn pack(&mut self, scalars: Vec<ValueId>) -> ValueId {
        match scalars.as_slice() {
            [one] => *one,
            [first, ..] => {
                let ty = VectorType { dtype: self.ty(*first).dtype, lanes: scalars.len() as u32 };
                // Equal scalars come from a broadcast.
                let op = if scalars.iter().all(|s| s == first) { Op::Splat(*first) } else { Op::Pack(scalars) };
                self.op(ty, op)
            }
            [] => self.builder.i64(0),
        }
    }

    /// A polynomial by Horner's rule; coefficients from the highest power down.
    pub(super) fn polynomial(&mut self, x: ValueId, coefficients: &[f64]) -> ValueId {
        let mut terms = coefficients.iter();
        let first = terms.next().copied().unwrap_or(0.0);
        let mut sum = self.num(x, first);
        for &c in terms {
            let c = self.num(x, c);
            sum = self.fma(sum, x, c);
        }
        sum
    }

    /// `for _ in 0..count` carrying values; `f` makes the next values from those inside.
    pub(super) fn repeat(
        &mut self,
        count: ValueId,
        init: &[ValueId],
        f: impl FnOnce(&mut At<'_>, &[ValueId]) -> Vec<ValueId>,
    ) -> Vec<ValueId> {
        let (lo, hi) = (self.builder.i64(0), count);
        let types: Vec<_> = init.iter().map(|&v| self.ty(v)).collect();
        // Regions that are open inside this one must not take part.
        let inner = self.builder.regions.split_off(self.depth + 1);
        self.builder.open();
        let depth = self.depth + 1;
        let var = self.builder.fresh(depth, VectorType::scalar(DType::I64));
        let inside: Vec<_> = types.iter().map(|&ty| self.builder.fresh(depth, ty)).collect();
        let next = f(&mut self.builder.at(depth), &inside);
        let body = self.builder.close();
        self.builder.regions.extend(inner);
        let after: Vec<_> = types.iter().map(|&ty| self.builder.fresh(self.depth, ty)).collect();
        let carried = init
            .iter()
            .zip(&inside)
            .zip(next.iter().zip(&after))
            .map(|((&init, &inside), (&next, &after))| Carried { init, inside, next, after })
            .collect();
        self.builder.push(self.depth, Stmt::For(For { var, lo, hi, step: 1, carried, body }));
        after
    }
}
