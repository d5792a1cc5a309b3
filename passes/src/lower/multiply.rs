//! Products of matrices by a unit for them.
//!
//! Invariant: matrix registers get their shapes in the outermost region in which all products want the same ones, and every
//! product begins and ends without anything in them.

use super::LowerError;
use super::ahead::LINE;
use super::tiles::Lowering;
use kiln_ir::DType;
use kiln_ir::expr::Expr;
use kiln_ir::tile::{Ahead, Factors, Multiply, Stmt};
use kiln_ir::vector::{self, Address, Cache, Matrix, REGISTERS, Shape, Shapes, VectorType};

/// The registers of a product: sums row by row, then one for each run of rows, then one for each run of columns.
struct Registers {
    rows: usize,
    columns: usize,
}

impl Registers {
    fn of(m: &Multiply) -> Option<Registers> {
        let found = Registers { rows: m.rows.len(), columns: m.columns.len() };
        (found.right(found.columns) <= REGISTERS).then_some(found)
    }

    fn sum(&self, row: usize, column: usize) -> usize {
        row * self.columns + column
    }

    fn left(&self, row: usize) -> usize {
        self.rows * self.columns + row
    }

    fn right(&self, column: usize) -> usize {
        self.left(self.rows) + column
    }
}

/// The shapes that a product wants; nothing where it takes too many registers.
fn shapes(m: &Multiply) -> Option<Shapes> {
    let registers = Registers::of(m)?;
    let shape = |rows: usize, elements: usize| Shape { rows: rows as u8, row_bytes: 4 * elements as u8 };
    let mut shapes = Shapes::default();
    for (i, &rows) in m.rows.iter().enumerate() {
        for (j, &columns) in m.columns.iter().enumerate() {
            shapes[registers.sum(i, j)] = shape(rows, columns);
            shapes[registers.right(j)] = shape(m.depth, columns);
        }
        shapes[registers.left(i)] = shape(rows, m.depth);
    }
    Some(shapes)
}

/// What the products of a region want.
pub(super) enum Wanted {
    Nothing,
    One(Shapes),
    Several,
}

impl Wanted {
    /// What a statement wants.
    pub(super) fn by(stmt: &Stmt) -> Wanted {
        match stmt {
            Stmt::Let(..) | Stmt::Store { .. } => Wanted::Nothing,
            Stmt::Multiply(m) => shapes(m).map_or(Wanted::Several, Wanted::One),
            Stmt::For(f) => Wanted::by_all(&f.body),
            Stmt::If(choice) => Wanted::by_all(&choice.then).and(Wanted::by_all(&choice.otherwise)),
        }
    }

    /// What one and the other want together.
    pub(super) fn and(self, other: Wanted) -> Wanted {
        match (self, other) {
            (Wanted::Nothing, wanted) | (wanted, Wanted::Nothing) => wanted,
            (Wanted::One(a), Wanted::One(b)) if a == b => Wanted::One(a),
            (Wanted::One(_) | Wanted::Several, Wanted::One(_) | Wanted::Several) => Wanted::Several,
        }
    }

    /// What statements want together.
    pub(super) fn by_all(body: &[Stmt]) -> Wanted {
        body.iter().map(Wanted::by).fold(Wanted::Nothing, Wanted::and)
    }
}

impl<'a> Lowering<'a> {
    /// Before a region or a statement: gives the registers the shapes that all of it wants, where it wants some and they may have
    /// others. Where it wants several, each is set further in.
    pub(super) fn reshape(&mut self, wanted: Wanted) {
        match wanted {
            Wanted::Nothing => {}
            Wanted::Several => self.shapes = None,
            Wanted::One(shapes) if self.shapes == Some(shapes) => {}
            Wanted::One(shapes) => {
                let stmt = vector::Stmt::Matrix(Matrix::Shape(Box::new(shapes)));
                self.builder.push(self.builder.depth(), stmt);
                self.shapes = Some(shapes);
            }
        }
    }

    pub(super) fn multiply(&mut self, m: &'a Multiply) -> Result<(), LowerError> {
        let registers = Registers::of(m).filter(|_| self.matrices);
        let Some(registers) = registers else { return Err(self.unsupported("a product of matrices")) };
        let stride = m.shape()[1] as i64;
        let places = self.places(m, &registers)?;
        for (sum, from) in places.iter().cloned() {
            self.matrix(if m.adds { Matrix::Load { to: sum, from, stride } } else { Matrix::Zero(sum) });
        }
        for factors in &m.rounds {
            self.steps((m, factors), &registers, &m.folds)?;
        }
        for (sum, to) in places {
            self.matrix(Matrix::Store { from: sum, to, stride });
        }
        Ok(())
    }

    /// The registers of the sums, and where their first elements are in local memory.
    fn places(&mut self, m: &Multiply, registers: &Registers) -> Result<Vec<(u8, Address)>, LowerError> {
        let width = m.shape()[1];
        let (out, at) = &m.out;
        let first = self.address(*out, at)?;
        let mut places = Vec::new();
        let mut row = 0;
        for (i, rows) in m.rows.iter().enumerate() {
            let mut column = 0;
            for (j, columns) in m.columns.iter().enumerate() {
                let offset = first.offset + (row * width + column) as i64;
                places.push((registers.sum(i, j) as u8, Address { offset, ..first }));
                column += columns;
            }
            row += rows;
        }
        Ok(places)
    }

    fn matrix(&mut self, matrix: Matrix) {
        self.builder.push(self.builder.depth(), vector::Stmt::Matrix(matrix));
    }

    /// The loops over folds around one step.
    fn steps(
        &mut self,
        of: (&'a Multiply, &'a [Factors]),
        registers: &Registers,
        folds: &'a [(kiln_ir::expr::Symbol, Expr, i64)],
    ) -> Result<(), LowerError> {
        let Some(((variable, extent, step), rest)) = folds.split_first() else { return self.step(of, registers) };
        if extent.as_const().is_some_and(|n| n > 0 && n <= *step) {
            self.fixed.insert(variable.clone(), Expr::default());
            let done = self.steps(of, registers, rest);
            self.fixed.remove(variable);
            return done;
        }
        let (_, end) = extent.bounds(&self.ranges);
        let last = if end == i64::MAX { end } else { (end - step).max(0) };
        self.ranges.insert(variable.clone(), (0, last));
        let (lo, hi) = (self.builder.i64(0), self.outer(extent)?);
        self.builder.open();
        let var = self.builder.fresh(self.builder.depth(), VectorType::scalar(DType::I64));
        self.symbols.insert(variable.clone(), var);
        self.steps(of, registers, rest)?;
        self.symbols.remove(variable);
        self.ranges.remove(variable);
        let body = self.builder.close();
        let depth = self.builder.depth();
        let (step, carried) = (*step, Vec::new());
        self.builder.push(depth, vector::Stmt::For(vector::For { var, lo, hi, step, carried, body }));
        Ok(())
    }

    /// One step: each operand is loaded once, and stays where the next product has it too.
    fn step(&mut self, (m, factors): (&'a Multiply, &'a [Factors]), registers: &Registers) -> Result<(), LowerError> {
        if let Some(Ahead { from: (buffer, first), lines }) = &m.ahead {
            let first = self.address(*buffer, first)?;
            let line = LINE / self.program.buffers[*buffer].dtype.size() as i64;
            for n in 0..*lines as i64 {
                let asked = Address { offset: first.offset.saturating_add(n * line), ..first };
                self.builder.push(self.builder.depth(), vector::Stmt::Prefetch(Cache::Second, asked));
            }
        }
        for (n, Factors { left, right }) in factors.iter().enumerate() {
            let before = n.checked_sub(1).and_then(|before| factors.get(before));
            let kept = [before.is_some_and(|b| b.left == *left), before.is_some_and(|b| b.right == *right)];
            let mut row = 0;
            for (i, rows) in m.rows.iter().enumerate() {
                if !kept[0] {
                    self.operand(left, [row, 0], [*rows, m.depth], registers.left(i))?;
                }
                let mut column = 0;
                for (j, columns) in m.columns.iter().enumerate() {
                    if i == 0 && !kept[1] {
                        self.operand(right, [0, column], [m.depth, *columns], registers.right(j))?;
                    }
                    let (sum, left, right) = (registers.sum(i, j), registers.left(i), registers.right(j));
                    let (sum, left, right) = (sum as u8, left as u8, right as u8);
                    self.matrix(Matrix::Multiply { product: m.product, sum, left, right });
                    column += columns;
                }
                row += rows;
            }
        }
        Ok(())
    }

    /// Loads rows whose first element is at a position of the operand.
    fn operand(
        &mut self,
        (buffer, address): &(usize, Expr),
        at: [usize; 2],
        [rows, columns]: [usize; 2],
        register: usize,
    ) -> Result<(), LowerError> {
        let even = |e: &Expr| e.coefficient(&super::address::lane());
        // Down the rows, then along one: the unit takes any even distance between rows, but elements side by side.
        let down = self.placed(address, &at, Some((0, rows as u32)), &[]);
        let along = self.placed(address, &at, Some((1, columns as u32)), &[]);
        let (Some(stride), Some(1)) = (even(&down), even(&along)) else {
            return Err(self.unsupported("a product of matrices that do not lie evenly"));
        };
        let first = down.replace(&super::address::lane(), &Expr::default());
        let from = self.address(*buffer, &first)?;
        self.matrix(Matrix::Load { to: register as u8, from, stride });
        Ok(())
    }
}
