//! Parts, loops and the order of statements.
//!
//! Invariant: programs keep their numbers, parts one after the other; grid variables are decoded from the number
//! once for each program, and what does not depend on a loop is outside it.

use super::LowerError;
use super::ahead::{Blocks, Folding};
use super::memory::Target;
use super::multiply::Wanted;
use super::tiles::{Lowering, flat, positions};
use kiln_ir::DType;
use kiln_ir::expr::Expr;
use kiln_ir::scalar::BinaryOp;
use kiln_ir::tile::{self, Part, Stmt};
use kiln_ir::vector::{self, Op, ValueId, VectorType};

const I64: VectorType = VectorType { dtype: DType::I64, lanes: 1 };

impl<'a> Lowering<'a> {
    /// Lowers all parts of the program.
    pub(super) fn parts(&mut self) -> Result<(), LowerError> {
        let program = self.program;
        let mut start = Expr::default();
        for part in &program.parts {
            let end = start.add(&part.programs().simplify(&self.ranges));
            self.part(part, &start, &end)?;
            start = end;
        }
        Ok(())
    }

    /// Runs the programs of a part that are asked for: `for p in max(lo, start)..min(hi, end)`.
    fn part(&mut self, part: &'a Part, start: &Expr, end: &Expr) -> Result<(), LowerError> {
        let mut lo = self.builder.emit(0, I64, Op::Lo);
        if start.as_const() != Some(0) {
            let first = self.outer(start)?;
            lo = self.builder.i64_op(BinaryOp::Max, lo, first);
        }
        let last = self.outer(end)?;
        let hi = self.builder.emit(0, I64, Op::Hi);
        let hi = self.builder.i64_op(BinaryOp::Min, hi, last);
        self.reshape(Wanted::by_all(&part.body));
        self.builder.open();
        let var = self.builder.fresh(self.builder.depth(), I64);
        self.decode(part, start, var)?;
        self.blocks = Blocks::of(part);
        self.region(&part.body)?;
        for (variable, _) in &part.grid {
            self.symbols.remove(variable);
            self.fixed.remove(variable);
            self.ranges.remove(variable);
        }
        if matches!(Wanted::by_all(&part.body), Wanted::Several) {
            self.shapes = None;
        }
        let body = self.builder.close();
        let depth = self.builder.depth();
        self.builder.push(depth, vector::Stmt::For(vector::For { var, lo, hi, step: 1, carried: Vec::new(), body }));
        Ok(())
    }

    /// Splits the number of a program into the grid variables, the last of which runs fastest.
    fn decode(&mut self, part: &Part, start: &Expr, number: ValueId) -> Result<(), LowerError> {
        let mut rest = number;
        if start.as_const() != Some(0) {
            let start = self.outer(start)?;
            rest = self.builder.i64_op(BinaryOp::Sub, rest, start);
        }
        let many: Vec<_> = part.grid.iter().filter(|(_, extent)| extent.as_const() != Some(1)).collect();
        for (variable, extent) in &part.grid {
            if extent.as_const() == Some(1) {
                self.fixed.insert(variable.clone(), Expr::default());
            }
            let (_, hi) = extent.bounds(&self.ranges);
            let bounds = (0, if hi == i64::MAX { hi } else { (hi - 1).max(0) });
            self.ranges.insert(variable.clone(), bounds);
        }
        for (i, (variable, extent)) in many.iter().enumerate().rev() {
            let value = if i == 0 {
                rest
            } else {
                let by = self.outer(extent)?;
                let value = self.builder.i64_op(BinaryOp::Rem, rest, by);
                rest = self.builder.i64_op(BinaryOp::Div, rest, by);
                value
            };
            self.symbols.insert(variable.clone(), value);
        }
        Ok(())
    }

    fn region(&mut self, body: &'a [Stmt]) -> Result<(), LowerError> {
        for (n, stmt) in body.iter().enumerate() {
            self.reshape(Wanted::by(stmt));
            self.before(stmt)?;
            // A loop that carries nothing is no fold.
            if matches!(stmt, Stmt::For(f) if !f.carried.is_empty()) {
                let behind = &body[n + 1..];
                let end = behind.iter().position(|s| matches!(s, Stmt::For(_))).unwrap_or(behind.len());
                self.ask_ahead(&behind[..end])?;
            }
            match stmt {
                Stmt::Let(id, op) => self.define(*id, op)?,
                Stmt::Store { buffer, address, gathered, mask, value } => {
                    self.store(&Target { buffer: *buffer, address, gathered, mask }, *value)?;
                }
                Stmt::For(f) => self.counted_loop(f)?,
                Stmt::Multiply(m) => self.multiply(m)?,
                Stmt::If(choice) => self.choice(choice)?,
            }
            if matches!(Wanted::by(stmt), Wanted::Several) {
                self.shapes = None;
            }
        }
        // What nothing has needed by now is not needed.
        self.waiting.clear();
        Ok(())
    }

    fn choice(&mut self, choice: &'a tile::If) -> Result<(), LowerError> {
        let condition = self.value(choice.condition, &vec![0; self.ty(choice.condition).shape.len()], None)?;
        let shapes = self.shapes;
        let mut bodies = [Vec::new(), Vec::new()];
        for (body, of) in bodies.iter_mut().zip([&choice.then, &choice.otherwise]) {
            self.shapes = shapes;
            self.builder.open();
            self.region(of)?;
            *body = self.builder.close();
        }
        // What either of them did to the registers' shapes is not known after both.
        if !matches!(Wanted::by_all(&choice.then).and(Wanted::by_all(&choice.otherwise)), Wanted::Nothing) {
            self.shapes = None;
        }
        let [then, otherwise] = bodies;
        let depth = self.builder.depth();
        self.builder.push(depth, vector::Stmt::If { condition, then, otherwise });
        Ok(())
    }

    fn counted_loop(&mut self, f: &'a tile::For) -> Result<(), LowerError> {
        let lo_bound = f.lo.bounds(&self.ranges).0;
        let hi_bound = f.hi.bounds(&self.ranges).1;
        let last = if hi_bound == i64::MAX { hi_bound } else { (hi_bound - 1).max(lo_bound) };
        let outside = self.ranges.insert(f.var.clone(), (lo_bound, last));
        let depth = self.builder.depth();
        // All carried tiles lie as they do inside the loop.
        let mut inits = Vec::new();
        for c in &f.carried {
            let home = self.home(c.inside);
            let at = positions(self.ty(c.inside), home);
            inits.push(at.iter().map(|at| self.value(c.init, at, home)).collect::<Result<Vec<_>, _>>()?);
        }
        match f.hi.sub(&f.lo).as_const() {
            Some(count) if count <= 0 => {
                for (c, init) in f.carried.iter().zip(inits) {
                    self.set(c.after, c.inside, depth, init);
                }
            }
            Some(count) if count <= f.step => {
                // A single iteration needs no loop.
                let lo = f.lo.substitute(&|s| self.fixed.get(s).cloned());
                self.fixed.insert(f.var.clone(), lo);
                for (c, init) in f.carried.iter().zip(inits) {
                    self.set(c.inside, c.inside, depth, init);
                }
                self.region(&f.body)?;
                for c in &f.carried {
                    let next = self.next(c)?;
                    self.set(c.after, c.inside, depth, next);
                }
                self.fixed.remove(&f.var);
            }
            _ => {
                let (lo, hi) = (self.outer(&f.lo)?, self.outer(&f.hi)?);
                let carried = f.carried.iter().map(|c| self.ty(c.inside).shape.iter().product()).max();
                let fold = carried.map(|elements| Folding { var: f.var.clone(), step: f.step, elements });
                let around = std::mem::replace(&mut self.folding, fold);
                let blocks = self.blocks.enter(f);
                self.builder.open();
                let folds = std::mem::replace(&mut self.builder.folds, !f.carried.is_empty());
                let var = self.builder.fresh(depth + 1, I64);
                self.symbols.insert(f.var.clone(), var);
                let mut carried = Vec::new();
                for (c, init) in f.carried.iter().zip(&inits) {
                    let ty = self.register_type(c.inside);
                    let inside: Vec<_> = init.iter().map(|_| self.builder.fresh(depth + 1, ty)).collect();
                    self.set(c.inside, c.inside, depth + 1, inside);
                }
                self.region(&f.body)?;
                for (c, init) in f.carried.iter().zip(inits) {
                    let (inside, next) = (self.all(c.inside)?, self.next(c)?);
                    let ty = self.register_type(c.inside);
                    let after: Vec<_> = init.iter().map(|_| self.builder.fresh(depth, ty)).collect();
                    for (((init, inside), next), after) in init.into_iter().zip(inside).zip(next).zip(&after) {
                        carried.push(vector::Carried { init, inside, next, after: *after });
                    }
                    self.set(c.after, c.inside, depth, after);
                }
                self.symbols.remove(&f.var);
                self.folding = around;
                self.blocks.leave(blocks);
                self.builder.folds = folds;
                let body = self.builder.close();
                self.builder.push(depth, vector::Stmt::For(vector::For { var, lo, hi, step: f.step, carried, body }));
            }
        }
        self.ranges.remove(&f.var);
        if let Some(bounds) = outside {
            self.ranges.insert(f.var.clone(), bounds);
        }
        Ok(())
    }

    /// The registers that a carried tile hands on.
    fn next(&mut self, c: &tile::Carried) -> Result<Vec<ValueId>, LowerError> {
        let home = self.home(c.inside);
        positions(self.ty(c.inside), home).iter().map(|at| self.value(c.next, at, home)).collect()
    }

    /// Gives a tile its registers, which lie like those of `like`.
    fn set(&mut self, id: tile::TileId, like: tile::TileId, depth: usize, registers: Vec<ValueId>) {
        self.homes[id.index()] = self.home(like);
        self.depths[id.index()] = depth;
        let ty = self.ty(id);
        for (at, value) in positions(ty, self.home(id)).iter().zip(registers) {
            self.registers.insert((id, flat(ty, at)), value);
        }
    }
}
