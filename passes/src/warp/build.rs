//! Builds the statements of a warp program.
//!
//! Invariant: a pure operation is emitted once for the regions that see it, in the outermost region where its operands
//! are known, and not at all where its value is a known constant. Memory is accessed in the order of the calls.

use kiln_ir::id::Arena;
use kiln_ir::scalar::{BinaryOp, Constant, UnaryOp};
use kiln_ir::semantics;
use kiln_ir::warp::{Address, Carried, For, Op, Place, Shared, Stmt, ValueId};
use kiln_ir::{Class, DType};
use std::collections::HashMap;

#[derive(Default)]
struct Region {
    stmts: Vec<Stmt>,
    known: HashMap<(DType, Op), ValueId>,
}

/// See the module documentation.
pub(super) struct Builder {
    pub values: Arena<DType>,
    pub shared: Vec<Shared>,
    regions: Vec<Region>,
    /// The region that each value belongs to.
    depths: Vec<usize>,
    constants: HashMap<ValueId, Constant>,
    operations: HashMap<ValueId, Op>,
}

impl Builder {
    pub fn new() -> Builder {
        Builder {
            values: Arena::default(),
            shared: Vec::new(),
            regions: vec![Region::default()],
            depths: Vec::new(),
            constants: HashMap::new(),
            operations: HashMap::new(),
        }
    }

    /// The statements of the outermost region.
    pub fn finish(mut self) -> (Arena<DType>, Vec<Shared>, Vec<Stmt>) {
        let stmts = self.regions.drain(..).flat_map(|r| r.stmts).collect();
        (self.values, self.shared, stmts)
    }

    /// How many loops are open.
    pub fn depth(&self) -> usize {
        self.regions.len() - 1
    }

    pub fn ty(&self, id: ValueId) -> DType {
        self.values[id]
    }

    /// The value as a constant, where it is known.
    pub fn known(&self, id: ValueId) -> Option<Constant> {
        self.constants.get(&id).copied()
    }

    /// The pure operation that gives the value, if one does.
    pub fn definition(&self, id: ValueId) -> Option<&Op> {
        self.operations.get(&id)
    }

    /// A value of the innermost region that something other than an operation defines.
    pub fn fresh(&mut self, ty: DType) -> ValueId {
        self.fresh_at(ty, self.depth())
    }

    fn fresh_at(&mut self, ty: DType, depth: usize) -> ValueId {
        self.depths.push(depth);
        self.values.push(ty)
    }

    /// Adds a statement to the innermost region.
    pub fn push(&mut self, stmt: Stmt) {
        if let Some(region) = self.regions.last_mut() {
            region.stmts.push(stmt);
        }
    }

    /// The value of a pure operation.
    pub fn op(&mut self, ty: DType, op: Op) -> ValueId {
        let mut depth = 0;
        op.for_each_operand(|v| depth = depth.max(self.depths.get(v.index()).copied().unwrap_or(0)));
        let key = (ty, op);
        if let Some(&id) = self.regions[depth].known.get(&key) {
            return id;
        }
        let id = self.fresh_at(ty, depth);
        if let Op::Const(c) = &key.1 {
            self.constants.insert(id, *c);
        }
        self.operations.insert(id, key.1.clone());
        self.regions[depth].stmts.push(Stmt::Let(vec![id], key.1.clone()));
        self.regions[depth].known.insert(key, id);
        id
    }

    pub fn constant(&mut self, c: Constant) -> ValueId {
        self.op(c.dtype, Op::Const(c))
    }

    pub fn int(&mut self, ty: DType, value: i64) -> ValueId {
        self.constant(Constant::int(ty, value))
    }

    pub fn float(&mut self, value: f64) -> ValueId {
        self.constant(Constant::float(DType::F32, value))
    }

    pub fn unary(&mut self, op: UnaryOp, a: ValueId) -> ValueId {
        self.op(self.ty(a), Op::Unary(op, a))
    }

    pub fn binary(&mut self, op: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        let ty = self.ty(a);
        let (x, y) = (self.known(a), self.known(b));
        if let Some(value) = fold(op, ty, a, b, x, y) {
            return match value {
                Folded::Same(id) => id,
                Folded::Constant(c) => self.constant(c),
            };
        }
        let result = op.result_type(ty);
        self.op(result, Op::Binary(op, a, b))
    }

    /// The operation with an integer constant on its right.
    pub fn with(&mut self, op: BinaryOp, a: ValueId, number: i64) -> ValueId {
        let b = self.int(self.ty(a), number);
        self.binary(op, a, b)
    }

    pub fn add(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.binary(BinaryOp::Add, a, b)
    }

    pub fn fma(&mut self, a: ValueId, b: ValueId, c: ValueId) -> ValueId {
        self.op(DType::F32, Op::Fma(a, b, c))
    }

    pub fn select(&mut self, c: ValueId, a: ValueId, b: ValueId) -> ValueId {
        match self.known(c) {
            Some(c) if c.bits != 0 => a,
            Some(_) => b,
            None if a == b => a,
            None => self.op(self.ty(a), Op::Select(c, a, b)),
        }
    }

    pub fn cast(&mut self, to: DType, a: ValueId) -> ValueId {
        let from = self.ty(a);
        if from == to {
            return a;
        }
        let int = |ty: DType| matches!(ty.class(), Class::Signed | Class::Unsigned);
        match self.known(a) {
            Some(c) if int(from) && int(to) => self.int(to, c.bits as i64),
            _ => self.op(to, Op::Cast(to, a)),
        }
    }

    /// Both of two conditions, of which none is one that always holds.
    pub fn both(&mut self, a: Option<ValueId>, b: Option<ValueId>) -> Option<ValueId> {
        match (a, b) {
            (Some(a), Some(b)) => Some(self.binary(BinaryOp::And, a, b)),
            (one, None) | (None, one) => one,
        }
    }

    pub fn load(
        &mut self,
        ty: DType,
        count: usize,
        address: Address,
        condition: Option<(ValueId, Constant)>,
    ) -> Vec<ValueId> {
        self.several(ty, count, Op::Load(address, condition))
    }

    /// The values of an operation that has several and belongs where it is.
    pub fn several(&mut self, ty: DType, count: usize, op: Op) -> Vec<ValueId> {
        let ids: Vec<ValueId> = (0..count).map(|_| self.fresh(ty)).collect();
        self.push(Stmt::Let(ids.clone(), op));
        ids
    }

    pub fn shared(&mut self, dtype: DType, len: usize) -> Place {
        self.shared.push(Shared { dtype, len });
        Place::Shared(self.shared.len() - 1)
    }

    /// Begins a region; statements are its until it is closed.
    pub fn open(&mut self) {
        self.regions.push(Region::default());
    }

    /// Ends the region that was opened last. Gives its statements.
    pub fn close(&mut self) -> Vec<Stmt> {
        self.regions.pop().unwrap_or_default().stmts
    }

    /// A loop that carries values; `body` is given the loop variable and the values inside, and gives the next ones.
    /// Returns the values after the loop.
    pub fn repeat<E>(
        &mut self,
        ty: DType,
        (lo, hi, step): (ValueId, ValueId, i64),
        init: &[ValueId],
        body: impl FnOnce(&mut Self, ValueId, &[ValueId]) -> Result<Vec<ValueId>, E>,
    ) -> Result<Vec<ValueId>, E> {
        self.regions.push(Region::default());
        let var = self.fresh(ty);
        let inside: Vec<ValueId> = init.iter().map(|&v| self.fresh(self.ty(v))).collect();
        let next = body(self, var, &inside)?;
        let region = self.regions.pop().unwrap_or_default();
        let after: Vec<ValueId> = init.iter().map(|&v| self.fresh(self.ty(v))).collect();
        let carried = (0..init.len().min(next.len()))
            .map(|i| Carried { init: init[i], inside: inside[i], next: next[i], after: after[i] })
            .collect();
        self.push(Stmt::For(For { var, lo, hi, step, carried, body: region.stmts }));
        Ok(after)
    }
}

enum Folded {
    Same(ValueId),
    Constant(Constant),
}

/// What is known of an operation on integers or bools without running it.
fn fold(op: BinaryOp, ty: DType, a: ValueId, b: ValueId, x: Option<Constant>, y: Option<Constant>) -> Option<Folded> {
    if !matches!(ty.class(), Class::Signed | Class::Unsigned | Class::Bool) {
        return None;
    }
    if let (Some(x), Some(y)) = (x, y) {
        let (x, y) = (x.bits as i64, y.bits as i64);
        let compared = if ty.class() == Class::Unsigned {
            semantics::compare(op, x as u64, y as u64)
        } else {
            semantics::compare(op, x, y)
        };
        return match compared {
            Some(holds) => Some(Folded::Constant(Constant { dtype: DType::Bool, bits: u64::from(holds) })),
            None => {
                semantics::binary_int(op, ty, x, y).map(|v| Folded::Constant(Constant { dtype: ty, bits: v as u64 }))
            }
        };
    }
    let is = |c: Option<Constant>, v: u64| c.is_some_and(|c| c.bits == v);
    let zero = Constant { dtype: ty, bits: 0 };
    let bool = ty == DType::Bool;
    Some(match op {
        BinaryOp::And if bool && is(x, 1) => Folded::Same(b),
        BinaryOp::And if bool && is(y, 1) => Folded::Same(a),
        BinaryOp::And | BinaryOp::Mul if is(x, 0) || is(y, 0) => Folded::Constant(zero),
        BinaryOp::Add if !bool && is(x, 0) => Folded::Same(b),
        BinaryOp::Mul if !bool && is(x, 1) => Folded::Same(b),
        BinaryOp::Add | BinaryOp::Sub | BinaryOp::Xor | BinaryOp::Shl | BinaryOp::Shr if !bool && is(y, 0) => {
            Folded::Same(a)
        }
        BinaryOp::Mul | BinaryOp::Div if !bool && is(y, 1) => Folded::Same(a),
        BinaryOp::Rem | BinaryOp::Mod if !bool && is(y, 1) => Folded::Constant(zero),
        _ => return None,
    })
}
