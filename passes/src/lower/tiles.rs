//! Tiles, one register at a time.
//!
//! Invariant: a register of a tile is computed at most once, in the region where the tile is defined, and only if
//! it is needed. What is asked for in another layout is taken apart into scalars and packed again.

use super::ahead::{Blocks, Folding};
use super::build::Builder;
use super::half;
use super::layout::Home;
use super::memory::Lanes;
use super::{LowerError, VectorTarget};
use kiln_ir::DType;
use kiln_ir::expr::{Expr, Ranges, Symbol};
use kiln_ir::scalar::{BinaryOp, Constant};
use kiln_ir::tile::{TileId, TileOp, TileProgram, TileType};
use kiln_ir::vector::{self, Op, ValueId, VectorType};
use std::collections::HashMap;

/// Most values of a vector program. What is larger is slow to compile and does not fit the instruction cache.
const MAX_VALUES: usize = 1 << 17;

/// How many operations deep tiles may hang on tiles that are not computed yet: this bounds the recursion.
pub(super) const MAX_PENDING: usize = 64;

/// The state of a lowering.
pub(super) struct Lowering<'a> {
    pub(super) program: &'a TileProgram,
    pub(super) homes: Vec<Option<Home>>,
    /// Bytes of a vector.
    pub(super) bytes: u32,
    /// See [`VectorTarget::pairs`].
    pub(super) pairs: bool,
    /// See [`VectorTarget::matrices`].
    pub(super) matrices: bool,
    /// See [`VectorTarget::fused`].
    pub(super) fused: bool,
    /// The shapes that matrix registers surely have here.
    pub(super) shapes: Option<vector::Shapes>,
    pub(super) dims: &'a [Symbol],
    pub(super) ranges: Ranges,
    pub(super) builder: Builder,
    /// Loop and grid variables, and gathered values.
    pub(super) symbols: HashMap<Symbol, ValueId>,
    /// The innermost loop, where that is a fold.
    pub(super) folding: Option<Folding>,
    /// The blocks of each program.
    pub(super) blocks: Blocks,
    /// The loads of the innermost region that wait.
    pub(super) waiting: Vec<TileId>,
    /// Variables with only one value in their scope.
    pub(super) fixed: HashMap<Symbol, Expr>,
    /// How each tile is computed; nothing for those that loops define.
    pub(super) ops: Vec<Option<&'a TileOp>>,
    /// The region that each tile belongs to.
    pub(super) depths: Vec<usize>,
    /// How many operations each tile is away from computed ones.
    pub(super) pending: Vec<usize>,
    /// The registers of tiles by the flat index of their first element.
    pub(super) registers: HashMap<(TileId, usize), ValueId>,
}

/// The flat index of a position.
pub(super) fn flat(ty: &TileType, coords: &[usize]) -> usize {
    ty.shape.iter().zip(coords).fold(0, |flat, (&e, &i)| flat * e + i)
}

/// The first positions of all registers of a tile, in row-major order.
pub(super) fn positions(ty: &TileType, home: Option<Home>) -> Vec<Vec<usize>> {
    let step = |axis: usize| home.filter(|h| h.axis == axis).map_or(1, |h| h.lanes as usize);
    let mut all = vec![Vec::new()];
    for (axis, &extent) in ty.shape.iter().enumerate() {
        all = all
            .into_iter()
            .flat_map(|at: Vec<usize>| (0..extent).step_by(step(axis)).map(move |i| [at.as_slice(), &[i]].concat()))
            .collect();
    }
    all
}

impl<'a> Lowering<'a> {
    pub(super) fn new(
        program: &'a TileProgram,
        homes: Vec<Option<Home>>,
        target: VectorTarget,
        dims: &'a [Symbol],
        ranges: Ranges,
    ) -> Lowering<'a> {
        Lowering {
            program,
            homes,
            bytes: target.bytes,
            pairs: target.pairs,
            matrices: target.matrices,
            fused: target.fused,
            shapes: None,
            dims,
            ranges,
            builder: Builder::new(program.buffers.iter().map(|b| b.written).collect(), target.bytes == 64),
            symbols: HashMap::new(),
            folding: None,
            blocks: Blocks::default(),
            waiting: Vec::new(),
            fixed: HashMap::new(),
            ops: vec![None; program.tiles.len()],
            depths: vec![0; program.tiles.len()],
            pending: vec![0; program.tiles.len()],
            registers: HashMap::new(),
        }
    }

    pub(super) fn unsupported(&self, what: impl Into<String>) -> LowerError {
        LowerError::Unsupported { kernel: self.program.name.clone(), what: what.into() }
    }

    pub(super) fn ty(&self, id: TileId) -> &'a TileType {
        let program: &'a TileProgram = self.program;
        &program.tiles[id]
    }

    pub(super) fn home(&self, id: TileId) -> Option<Home> {
        self.homes[id.index()]
    }

    /// The type of a tile's registers.
    pub(super) fn register_type(&self, id: TileId) -> VectorType {
        VectorType { dtype: self.ty(id).dtype.computed(), lanes: self.home(id).map_or(1, |h| h.lanes) }
    }

    /// Notes how a tile is computed; computes it at once where that must not wait.
    pub(super) fn define(&mut self, id: TileId, op: &'a TileOp) -> Result<(), LowerError> {
        self.ops[id.index()] = Some(op);
        self.depths[id.index()] = self.builder.depth();
        let mut pending = 0;
        for_each_operand(op, &mut |o| pending = pending.max(self.pending[o.index()] + 1));
        self.pending[id.index()] = pending;
        let now = match op {
            TileOp::CheckIndex { .. } => true,
            TileOp::Load { .. } if self.may_wait(id, op) => {
                self.waiting.push(id);
                false
            }
            TileOp::Load { buffer, .. } => self.program.buffers[*buffer].written,
            // One step of a product of matrices: a chain of them, element by element, would keep the factors of all
            // steps live.
            TileOp::Fma(a, b, c) => {
                let few = |o: &TileId| self.ty(*o).elements() < self.ty(id).elements();
                pending >= MAX_PENDING || !few(c) && (few(a) || few(b))
            }
            TileOp::Binary(BinaryOp::Add, a, b) => {
                let dot = |o: &TileId| matches!(self.ops[o.index()], Some(TileOp::Binary(BinaryOp::Dot4, ..)));
                pending >= MAX_PENDING || dot(a) || dot(b)
            }
            TileOp::Const(_)
            | TileOp::Index(_)
            | TileOp::Unary(..)
            | TileOp::Binary(..)
            | TileOp::Select(..)
            | TileOp::Cast(..)
            | TileOp::Reduce(..)
            | TileOp::Transpose(..)
            | TileOp::Dot(..) => pending >= MAX_PENDING,
        };
        if now {
            self.all(id)?;
            self.pending[id.index()] = 0;
        }
        Ok(())
    }

    /// All registers of a tile, in row-major order.
    pub(super) fn all(&mut self, id: TileId) -> Result<Vec<ValueId>, LowerError> {
        positions(self.ty(id), self.home(id)).iter().map(|at| self.register(id, at)).collect()
    }

    /// A position of a tile that broadcasts to the position.
    fn clip(&self, id: TileId, coords: &[usize]) -> Vec<usize> {
        self.ty(id).shape.iter().zip(coords).map(|(&e, &i)| if e == 1 { 0 } else { i }).collect()
    }

    /// The elements of a tile from a position (of one that it broadcasts to) on: lanes along an axis, or one.
    pub(super) fn value(&mut self, id: TileId, coords: &[usize], want: Option<Home>) -> Result<ValueId, LowerError> {
        let at = self.clip(id, coords);
        let Some(home) = want else { return self.scalar(id, &at) };
        let depth = self.depths[id.index()];
        if let Some(TileOp::Const(c)) = self.ops[id.index()] {
            let c = half::held_constant(*c);
            let ty = VectorType { dtype: c.dtype, lanes: home.lanes };
            return Ok(self.builder.emit(depth, ty, Op::Const(c)));
        }
        if self.ty(id).shape[home.axis] == 1 {
            return self.splat(id, &at, home.lanes);
        }
        if self.home(id) == want && at[home.axis].is_multiple_of(home.lanes as usize) {
            return self.register(id, &at);
        }
        if let Some(mask) = self.mask_of_indices(id, &at, home)? {
            return Ok(mask);
        }
        let mut lanes = Vec::new();
        for lane in 0..home.lanes as usize {
            let mut at = at.clone();
            at[home.axis] += lane;
            lanes.push(self.scalar(id, &at)?);
        }
        Ok(self.builder.at(depth).pack(lanes))
    }

    /// Lanes of a tile of bools that says how index expressions compare, as a comparison of vectors that are as wide
    /// as the tiles that it selects from, not as wide as indices. Nothing for other tiles.
    fn mask_of_indices(&mut self, id: TileId, at: &[usize], home: Home) -> Result<Option<ValueId>, LowerError> {
        let Some(op) = self.ops[id.index()] else { return Ok(None) };
        if self.ty(id).dtype != DType::Bool || self.home(id).is_some() {
            return Ok(None);
        }
        let (depth, ty) = (self.depths[id.index()], VectorType { dtype: DType::Bool, lanes: home.lanes });
        Ok(match op {
            TileOp::Binary(op @ (BinaryOp::And | BinaryOp::Or), a, b)
                if self.compares_indices(*a) && self.compares_indices(*b) =>
            {
                let (x, y) = (self.value(*a, at, Some(home))?, self.value(*b, at, Some(home))?);
                Some(self.builder.emit(depth, ty, Op::Binary(*op, x, y)))
            }
            TileOp::Binary(BinaryOp::Lt, a, b) => {
                let (Some(TileOp::Index(left)), Some(TileOp::Index(right))) =
                    (self.ops[a.index()], self.ops[b.index()])
                else {
                    return Ok(None);
                };
                let left = self.placed_index(*a, left, at, home);
                let right = self.placed_index(*b, right, at, home);
                let lanes = self.lanes_below_zero(&left.sub(&right), home)?;
                let all = |holds: bool| Op::Const(Constant { dtype: DType::Bool, bits: u64::from(holds) });
                match lanes {
                    Some(Lanes::All) => Some(self.builder.emit(depth, ty, all(true))),
                    Some(Lanes::None) => Some(self.builder.emit(depth, ty, all(false))),
                    Some(Lanes::Some(mask)) => Some(mask),
                    None => None,
                }
            }
            _ => None,
        })
    }

    fn compares_indices(&self, id: TileId) -> bool {
        match self.ops[id.index()] {
            Some(TileOp::Binary(BinaryOp::And | BinaryOp::Or, a, b)) => {
                self.compares_indices(*a) && self.compares_indices(*b)
            }
            Some(TileOp::Binary(BinaryOp::Lt, a, b)) => {
                [a, b].into_iter().all(|t| matches!(self.ops[t.index()], Some(TileOp::Index(_))))
            }
            _ => false,
        }
    }

    /// The expression of a tile of indices at a position that it broadcasts to.
    fn placed_index(&mut self, id: TileId, e: &Expr, at: &[usize], home: Home) -> Expr {
        let at = self.clip(id, at);
        let along = (self.ty(id).shape[home.axis] > 1).then_some((home.axis, home.lanes));
        self.placed(e, &at, along, &[])
    }

    /// One element in all lanes.
    pub(super) fn splat(&mut self, id: TileId, at: &[usize], lanes: u32) -> Result<ValueId, LowerError> {
        let ty = VectorType { dtype: self.ty(id).dtype.computed(), lanes };
        if let Some(TileOp::Load { buffer, address, gathered, mask, .. }) = self.ops[id.index()]
            && gathered.is_empty()
            && mask.is_empty()
            && self.home(id).is_none()
            && ty.dtype != DType::Bool
            && !self.program.buffers[*buffer].written
            && self.program.buffers[*buffer].dtype == ty.dtype
        {
            let e = self.placed(address, at, None, &[]);
            let address = self.address(*buffer, &e)?;
            return Ok(self.builder.emit(self.depths[id.index()], ty, Op::LoadSplat(address)));
        }
        let scalar = self.scalar(id, at)?;
        Ok(self.builder.emit(self.depths[id.index()], ty, Op::Splat(scalar)))
    }

    fn scalar(&mut self, id: TileId, at: &[usize]) -> Result<ValueId, LowerError> {
        let Some(home) = self.home(id) else { return self.register(id, at) };
        let lane = at[home.axis] % home.lanes as usize;
        let mut first = at.to_vec();
        first[home.axis] -= lane;
        let register = self.register(id, &first)?;
        Ok(self.builder.at(self.depths[id.index()]).extract(register, lane as u32))
    }

    /// The register whose first element is at a position.
    pub(super) fn register(&mut self, id: TileId, at: &[usize]) -> Result<ValueId, LowerError> {
        let key = (id, flat(self.ty(id), at));
        if let Some(&known) = self.registers.get(&key) {
            return Ok(known);
        }
        if self.builder.len() > MAX_VALUES {
            return Err(LowerError::TooLarge { kernel: self.program.name.clone() });
        }
        let Some(op) = self.ops[id.index()] else {
            return Err(self.unsupported(format!("{id} without a definition")));
        };
        if let TileOp::Dot(of, a, b, c) = op {
            if of.is_some() {
                return Err(self.unsupported("a product of bytes as a tile"));
            }
            // A product needs all its operands: computing it element by element would keep all of them live.
            self.dot(id, *a, *b, *c)?;
            return self.registers.get(&key).copied().ok_or_else(|| self.unsupported("a product out of shape"));
        }
        let value = self.compute(id, op, at)?;
        let value = self.rounded(id, op, value);
        self.registers.insert(key, value);
        Ok(value)
    }

    fn compute(&mut self, id: TileId, op: &'a TileOp, at: &[usize]) -> Result<ValueId, LowerError> {
        let (home, depth, ty) = (self.home(id), self.depths[id.index()], self.register_type(id));
        Ok(match op {
            TileOp::Const(c) => self.builder.emit(depth, ty, Op::Const(half::held_constant(*c))),
            TileOp::Index(e) => {
                let mut lanes = Vec::new();
                for lane in 0..ty.lanes as usize {
                    let mut at = at.to_vec();
                    if let Some(home) = home {
                        at[home.axis] += lane;
                    }
                    let e = self.placed(e, &at, None, &[]);
                    lanes.push(self.expr(&e)?);
                }
                self.builder.at(depth).pack(lanes)
            }
            TileOp::Load { .. } => self.load(id, op, at)?,
            TileOp::Unary(op, a) => {
                let x = self.value(*a, at, home)?;
                self.unary(depth, *op, x)?
            }
            TileOp::Binary(op, a, b) => {
                if let Some(value) = self.power_by_constant(depth, *op, (*a, *b), at, home)? {
                    return Ok(value);
                }
                let (x, y) = (self.value(*a, at, home)?, self.value(*b, at, home)?);
                self.binary(depth, *op, x, y)?
            }
            TileOp::Fma(a, b, c) => {
                let (x, y) = (self.value(*a, at, home)?, self.value(*b, at, home)?);
                let z = self.value(*c, at, home)?;
                self.multiply_add(depth, x, y, z)
            }
            TileOp::Select(c, a, b) => {
                let condition = self.value(*c, at, home)?;
                let (x, y) = (self.value(*a, at, home)?, self.value(*b, at, home)?);
                self.builder.at(depth).select(condition, x, y)
            }
            TileOp::Cast(to, a) => self.converted(depth, *a, at, home, *to)?,
            TileOp::Reduce(op, axis, a) => self.reduce(id, *op, *axis, *a, at)?,
            TileOp::Transpose(order, a) => {
                let mut from = vec![0; order.len()];
                for (&axis, &i) in order.iter().zip(at) {
                    from[axis] = i;
                }
                let want = home.and_then(|h| order.get(h.axis).map(|&axis| Home { axis, ..h }));
                // The axes of a transposed tile do not broadcast: an extent of 1 stays with its axis.
                self.value(*a, &from, want)?
            }
            TileOp::Dot(..) => return Err(self.unsupported("a product out of order")),
            TileOp::CheckIndex { index, extent, status } => {
                let x = self.value(*index, at, home)?;
                let extent = self.placed(extent, at, None, &[]);
                let extent = self.expr(&extent)?;
                self.check(depth, x, extent, *status)
            }
        })
    }

    /// An element (or lanes of them) converted to a type.
    fn converted(
        &mut self,
        depth: usize,
        id: TileId,
        at: &[usize],
        want: Option<Home>,
        to: DType,
    ) -> Result<ValueId, LowerError> {
        let from = self.ty(id).dtype;
        let narrow = |d: DType| if d == DType::Bool { 0 } else { d.computed().size() };
        let same_width = narrow(from) == narrow(to) || narrow(from) == 0 || narrow(to) == 0;
        match want {
            Some(home) if !same_width && self.ty(id).shape[home.axis] > 1 => {
                let mut lanes = Vec::new();
                for lane in 0..home.lanes as usize {
                    let mut at = at.to_vec();
                    at[home.axis] += lane;
                    let x = self.value(id, &at, None)?;
                    lanes.push(self.cast(depth, to, x));
                }
                Ok(self.builder.at(depth).pack(lanes))
            }
            Some(home) if !same_width => {
                let x = self.value(id, at, None)?;
                let x = self.cast(depth, to, x);
                Ok(self.builder.emit(depth, VectorType { dtype: to, lanes: home.lanes }, Op::Splat(x)))
            }
            _ => {
                let x = self.value(id, at, want)?;
                Ok(self.cast(depth, to, x))
            }
        }
    }

    fn reduce(
        &mut self,
        id: TileId,
        op: BinaryOp,
        axis: usize,
        a: TileId,
        at: &[usize],
    ) -> Result<ValueId, LowerError> {
        if self.ty(id).dtype.is_half() {
            return Err(self.unsupported("a reduction that keeps halves"));
        }
        let (home, depth) = (self.home(id), self.depths[id.index()]);
        let Some(folded) = self.home(a).filter(|h| h.axis == axis) else {
            return self.reduced(depth, op, axis, a, at, home);
        };
        let ty = VectorType::scalar(self.ty(a).dtype);
        let mut lanes = Vec::new();
        for lane in 0..home.map_or(1, |h| h.lanes as usize) {
            let mut at = at.to_vec();
            if let Some(home) = home {
                at[home.axis] += lane;
            }
            let sum = self.reduced(depth, op, axis, a, &at, Some(folded))?;
            lanes.push(self.builder.emit(depth, ty, Op::Fold(op, sum)));
        }
        Ok(self.builder.at(depth).pack(lanes))
    }

    /// Registers of a tile along an axis as one, in a layout.
    fn reduced(
        &mut self,
        depth: usize,
        op: BinaryOp,
        axis: usize,
        a: TileId,
        at: &[usize],
        home: Option<Home>,
    ) -> Result<ValueId, LowerError> {
        let step = home.filter(|h| h.axis == axis).map_or(1, |h| h.lanes as usize);
        let mut from = at.to_vec();
        let mut sum: Option<ValueId> = None;
        for r in (0..self.ty(a).shape[axis]).step_by(step) {
            from[axis] = r;
            let x = self.value(a, &from, home)?;
            sum = Some(match sum {
                Some(s) => self.binary(depth, op, s, x)?,
                None => x,
            });
        }
        sum.ok_or_else(|| self.unsupported("a reduction of nothing"))
    }

    /// Computes all of a matrix product, as a sum of outer products.
    fn dot(&mut self, id: TileId, a: TileId, b: TileId, c: TileId) -> Result<(), LowerError> {
        let (home, depth, ty) = (self.home(id), self.depths[id.index()], self.ty(id));
        if ty.dtype.is_half() {
            return Err(self.unsupported("a product that keeps halves"));
        }
        let all = positions(ty, home);
        let mut sums = all.iter().map(|at| self.value(c, at, home)).collect::<Result<Vec<_>, _>>()?;
        for k in 0..self.ty(b).shape[0] {
            for (at, sum) in all.iter().zip(&mut sums) {
                let &[m, n] = at.as_slice() else { return Err(self.unsupported("a product out of shape")) };
                let along = |axis: usize| home.filter(|h| h.axis == axis);
                let x = self.factor(depth, a, [m, k], along(0), home, ty.dtype)?;
                let y = self.factor(depth, b, [k, n], along(1), home, ty.dtype)?;
                *sum = self.multiply_add(depth, x, y, *sum);
            }
        }
        for (at, sum) in all.iter().zip(sums) {
            self.registers.insert((id, flat(ty, at)), sum);
        }
        Ok(())
    }

    /// A factor of a product: lanes along the axis that it shares with the result, else one element in all lanes.
    fn factor(
        &mut self,
        depth: usize,
        id: TileId,
        at: [usize; 2],
        along: Option<Home>,
        home: Option<Home>,
        to: DType,
    ) -> Result<ValueId, LowerError> {
        match home {
            Some(h) if along.is_none() => {
                if self.ty(id).dtype == to {
                    return self.splat(id, &at, h.lanes);
                }
                let x = self.value(id, &at, None)?;
                let x = self.cast(depth, to, x);
                Ok(self.builder.emit(depth, VectorType { dtype: to, lanes: h.lanes }, Op::Splat(x)))
            }
            _ => self.converted(depth, id, &at, along, to),
        }
    }

    fn check(&mut self, depth: usize, x: ValueId, extent: ValueId, status: u32) -> ValueId {
        let mut code = self.builder.at(depth);
        let zero = code.int(extent, 0);
        let lanes = code.ty(x).lanes;
        let mut results = Vec::new();
        for lane in 0..lanes {
            let mut code = self.builder.at(depth);
            let index = code.extract(x, lane);
            let least = code.sub(zero, extent);
            let below = code.binary(BinaryOp::Lt, index, least);
            let above = code.binary(BinaryOp::Ge, index, extent);
            let condition = code.binary(BinaryOp::Or, below, above);
            let moved = code.add(index, extent);
            let negative = code.binary(BinaryOp::Lt, index, zero);
            let result = code.select(negative, moved, index);
            self.builder.push(depth, vector::Stmt::Fail { condition, status });
            results.push(result);
        }
        self.builder.at(depth).pack(results)
    }

    /// The constant that a tile consists of.
    pub(super) fn constant_of(&self, id: TileId) -> Option<Constant> {
        match self.ops[id.index()] {
            Some(TileOp::Const(c)) => Some(*c),
            _ => None,
        }
    }
}

/// Calls `f` with every tile that the operation reads.
fn for_each_operand(op: &TileOp, f: &mut dyn FnMut(TileId)) {
    match op {
        TileOp::Const(_) | TileOp::Index(_) => {}
        TileOp::Load { gathered, .. } => gathered.iter().copied().for_each(f),
        TileOp::Unary(_, a) | TileOp::Cast(_, a) | TileOp::Reduce(_, _, a) | TileOp::Transpose(_, a) => f(*a),
        TileOp::CheckIndex { index, .. } => f(*index),
        TileOp::Binary(_, a, b) => [*a, *b].into_iter().for_each(f),
        TileOp::Fma(a, b, c) | TileOp::Select(a, b, c) | TileOp::Dot(_, a, b, c) => {
            [*a, *b, *c].into_iter().for_each(f)
        }
    }
}
