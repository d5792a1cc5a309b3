//! Scalar code compiled to columns: every node is computed for a run of lanes along one axis of the nest.
//!
//! Invariant: a load under a guard reads only the lanes where the guard's conditions hold; every coordinate of every
//! lane that is read has been checked, at compile time or when it is read.

use super::EvalError;
use super::column::{self, Column, LANES};
use super::index::{Index, Space};
use crate::dtype::{Class, DType};
use crate::expr::Expr;
use crate::id::Id;
use crate::scalar::{BinaryOp, Code, Coord, Scalar, Source, UnaryOp};
use crate::tensor::Tensor;
use std::collections::HashMap;

/// The tensors that a nest loads from.
pub(super) struct Sources<'a> {
    pub inputs: &'a [Tensor],
    pub stages: &'a [Tensor],
}

impl<'a> Sources<'a> {
    /// The tensor of a source.
    pub fn get(&self, source: Source) -> Result<&'a Tensor, EvalError> {
        let found = match source {
            Source::Input(n) => self.inputs.get(n),
            Source::Stage(n) => self.stages.get(n),
        };
        found.ok_or_else(|| EvalError::Invalid(format!("the definition loads {source}, which is not there")))
    }

    /// The number that its first element has among the elements of all sources.
    fn number(&self, source: Source) -> i64 {
        let before = match source {
            Source::Input(n) => self.inputs.iter().take(n).map(Tensor::len).sum::<usize>(),
            Source::Stage(n) => self.inputs.iter().chain(self.stages.iter().take(n)).map(Tensor::len).sum(),
        };
        before as i64
    }

    /// The tensor that holds the element of a number, and its place there.
    pub fn locate(&self, number: i64) -> Option<(&'a Tensor, usize)> {
        let mut left = usize::try_from(number).ok()?;
        for t in self.inputs.iter().chain(self.stages) {
            if left < t.len() {
                return Some((t, left));
            }
            left -= t.len();
        }
        None
    }
}

/// One coordinate of a load, with the distance of its steps in elements.
struct Place {
    at: Position,
    extent: usize,
    stride: i64,
    axis: usize,
}

enum Position {
    Index(Index),
    /// The column that holds it.
    Value(usize),
}

enum Instruction {
    /// Filled once.
    Constant,
    Index(Index),
    Load {
        tensor: Tensor,
        number: i64,
        places: Vec<Place>,
        mask: usize,
    },
    Unary(UnaryOp, DType, usize),
    Binary(BinaryOp, DType, usize, usize),
    Product(usize, usize),
    Fma(usize, usize, usize),
    Select(usize, usize, usize),
    Cast(DType, DType, usize),
    Guard(usize, usize, usize),
}

/// The lanes in which the conditions of a guard, and of those around it, hold. Mask 0 holds everywhere.
struct Mask {
    parent: usize,
    /// Each must be greater than 0.
    conditions: Vec<Index>,
    lanes: Vec<bool>,
    /// How many lanes hold, and the first of them.
    count: usize,
    first: usize,
}

impl Mask {
    /// Whether the lanes that hold follow one another.
    fn is_run(&self) -> bool {
        self.lanes.iter().skip(self.first).take(self.count).all(|&l| l)
    }
}

/// Compiled scalar code.
pub(super) struct Program {
    instructions: Vec<Instruction>,
    columns: Vec<Column>,
    masks: Vec<Mask>,
    result: usize,
    addresses: Vec<i64>,
    numbers: Vec<i64>,
}

struct Compiler<'a> {
    code: &'a Code,
    space: &'a Space,
    sources: &'a Sources<'a>,
    program: Program,
    /// The column of a node under a mask.
    done: HashMap<(usize, usize), usize>,
    /// Masks by parent and guard.
    known: HashMap<(usize, Id<Scalar>), usize>,
}

impl Program {
    /// Compiles code that loads from `sources`. Where `wide`, a result that is a product of floats is not rounded.
    ///
    /// # Errors
    /// The code mentions symbols that are no axes, arguments, or sources that are not there.
    pub fn compile(code: &Code, space: &Space, sources: &Sources<'_>, wide: bool) -> Result<Program, EvalError> {
        let all = Mask { parent: 0, conditions: vec![], lanes: vec![true; LANES], count: LANES, first: 0 };
        let program = Program {
            instructions: vec![],
            columns: vec![],
            masks: vec![all],
            result: 0,
            addresses: vec![0; LANES],
            numbers: vec![0; LANES],
        };
        let (done, known) = (HashMap::new(), HashMap::new());
        let mut compiler = Compiler { code, space, sources, program, done, known };
        if code.is_empty() {
            return Err(EvalError::Invalid("scalar code without a node".into()));
        }
        let root = code.result();
        let product = match code.node(root) {
            Scalar::Binary(BinaryOp::Mul, a, b) if wide && code.result_type().class() == Class::Float => Some((*a, *b)),
            _ => None,
        };
        compiler.program.result = match product {
            Some((a, b)) => {
                compiler.node(a, 0)?;
                compiler.node(b, 0)?;
                let (a, b) = (compiler.of(a, 0)?, compiler.of(b, 0)?);
                compiler.push(Instruction::Product(a, b), Column::new(DType::F64))
            }
            None => {
                compiler.node(root, 0)?;
                compiler.of(root, 0)?
            }
        };
        Ok(compiler.program)
    }

    /// All index expressions, for the choice of loops.
    pub fn indices_mut(&mut self) -> Vec<&mut Index> {
        let masks = self.masks.iter_mut().flat_map(|m| m.conditions.iter_mut());
        let code = self.instructions.iter_mut().flat_map(|i| match i {
            Instruction::Index(e) => vec![e],
            Instruction::Load { places, .. } => places
                .iter_mut()
                .filter_map(|p| match &mut p.at {
                    Position::Index(e) => Some(e),
                    Position::Value(_) => None,
                })
                .collect(),
            _ => vec![],
        });
        masks.chain(code).collect()
    }

    /// How many loads walk memory along an axis one by one, and how many in longer steps.
    pub fn loads_along(&self, axis: usize) -> (usize, usize) {
        let (mut near, mut far) = (0, 0);
        for i in &self.instructions {
            if let Instruction::Load { places, .. } = i {
                let step: Option<i64> = places
                    .iter()
                    .map(|p| match &p.at {
                        Position::Index(e) => e.along(axis).map(|step| step.saturating_mul(p.stride)),
                        Position::Value(_) => None,
                    })
                    .sum();
                match step {
                    Some(0) => {}
                    Some(1) => near += 1,
                    Some(_) | None => far += 1,
                }
            }
        }
        (near, far)
    }

    /// Computes the result for `n` lanes (at most [`LANES`]) from the point `at` along an axis.
    ///
    /// # Errors
    /// An index is out of range.
    pub fn run(&mut self, at: &mut [i64], axis: usize, n: usize) -> Result<&Column, EvalError> {
        for m in 1..self.masks.len() {
            let (before, rest) = self.masks.split_at_mut(m);
            let Some(mask) = rest.first_mut() else { continue };
            let parent = &before[mask.parent];
            mask.lanes[..n].copy_from_slice(&parent.lanes[..n]);
            for condition in &mask.conditions {
                condition.fill(at, axis, &mut self.numbers[..n]);
                for (lane, v) in mask.lanes.iter_mut().zip(&self.numbers[..n]) {
                    *lane &= *v > 0;
                }
            }
            mask.count = mask.lanes[..n].iter().filter(|&&l| l).count();
            mask.first = mask.lanes[..n].iter().position(|&l| l).unwrap_or(0);
        }
        for (i, instruction) in self.instructions.iter().enumerate() {
            let (done, rest) = self.columns.split_at_mut(i);
            let Some(out) = rest.first_mut() else { continue };
            match instruction {
                Instruction::Constant => {}
                Instruction::Index(e) => e.fill(at, axis, out.i64_mut(n)),
                Instruction::Load { tensor, number, places, mask } => {
                    let mask = Some(&self.masks[*mask]).filter(|m| m.count < n);
                    let mut scratch = (&mut self.addresses[..n], &mut self.numbers[..n]);
                    load(tensor, *number, places, mask, done, at, axis, n, &mut scratch, out)?;
                }
                Instruction::Unary(op, dtype, a) => column::unary(*op, *dtype, n, &done[*a], out),
                Instruction::Binary(op, dtype, a, b) => column::binary(*op, *dtype, n, &done[*a], &done[*b], out),
                Instruction::Product(a, b) => column::product(n, &done[*a], &done[*b], out),
                Instruction::Fma(a, b, c) => column::fma(n, &done[*a], &done[*b], &done[*c], out),
                Instruction::Select(c, a, b) => {
                    let c = done[*c].i64();
                    column::select(n, |l| c[l] != 0, &done[*a], &done[*b], out);
                }
                Instruction::Cast(from, to, a) => column::cast(*from, *to, n, &done[*a], out),
                Instruction::Guard(mask, a, b) => {
                    let lanes = &self.masks[*mask].lanes;
                    column::select(n, |l| lanes[l], &done[*a], &done[*b], out);
                }
            }
        }
        Ok(&self.columns[self.result])
    }
}

fn check(index: i64, place: &Place) -> Result<(), EvalError> {
    match usize::try_from(index) {
        Ok(i) if i < place.extent => Ok(()),
        _ => Err(EvalError::Index { index, extent: place.extent, axis: place.axis }),
    }
}

/// The address of the first of `count` lanes and the step between them, where every coordinate is linear along the axis:
/// its extremes are at the ends then, and checked.
fn run_of(places: &[Place], at: &[i64], axis: usize, count: usize) -> Result<Option<(i64, i64)>, EvalError> {
    let (mut from, mut by) = (0i64, 0i64);
    for place in places {
        let Position::Index(e) = &place.at else { return Ok(None) };
        let Some(step) = e.along(axis) else { return Ok(None) };
        let base = e.eval(at);
        check(base, place)?;
        check(base.saturating_add(step.saturating_mul(count as i64 - 1)), place)?;
        from += base * place.stride;
        by += step * place.stride;
    }
    Ok(Some((from, by)))
}

#[allow(clippy::too_many_arguments)]
fn load(
    tensor: &Tensor,
    number: i64,
    places: &[Place],
    mask: Option<&Mask>,
    done: &[Column],
    at: &mut [i64],
    axis: usize,
    n: usize,
    (addresses, numbers): &mut (&mut [i64], &mut [i64]),
    out: &mut Column,
) -> Result<(), EvalError> {
    let (dtype, bytes) = (tensor.dtype(), tensor.bytes());
    if mask.is_some_and(|m| m.count == 0) {
        column::load(dtype, bytes, number, n, |_| None, out);
        return Ok(());
    }
    // The lanes that are read, where they follow one another; they begin at another point then.
    let (first, count) = mask.map_or((0, n), |m| (m.first, m.count));
    if mask.is_none_or(Mask::is_run) {
        at[axis] += first as i64;
        let run = run_of(places, at, axis, count);
        at[axis] -= first as i64;
        if let Some((from, by)) = run? {
            if by == 1 && count == n {
                column::load_run(dtype, bytes, number, n, from as usize, out);
            } else {
                let address = |l: usize| (from + by * (l as i64 - first as i64)) as usize;
                let read = |l: usize| (first..first + count).contains(&l).then(|| address(l));
                column::load(dtype, bytes, number, n, read, out);
            }
            return Ok(());
        }
    }
    let active = |l: usize| mask.is_none_or(|m| m.lanes[l]);
    addresses.fill(0);
    for place in places {
        match &place.at {
            Position::Index(e) => e.fill(at, axis, numbers),
            Position::Value(column) => {
                let extent = place.extent as i64;
                for (l, (to, &v)) in numbers.iter_mut().zip(done[*column].i64()).enumerate() {
                    *to = if v < 0 { v.saturating_add(extent) } else { v };
                    if active(l) && !(0..extent).contains(to) {
                        return Err(EvalError::Index { index: v, extent: place.extent, axis: place.axis });
                    }
                }
            }
        }
        for (l, (address, &v)) in addresses.iter_mut().zip(numbers.iter()).enumerate() {
            if active(l) {
                check(v, place)?;
                *address += v * place.stride;
            }
        }
    }
    column::load(dtype, bytes, number, n, |l| active(l).then_some(addresses[l] as usize), out);
    Ok(())
}

impl Compiler<'_> {
    fn push(&mut self, instruction: Instruction, column: Column) -> usize {
        self.program.instructions.push(instruction);
        self.program.columns.push(column);
        self.program.columns.len() - 1
    }

    /// The column of a node under a mask, or under one around it.
    fn of(&self, node: Id<Scalar>, mask: usize) -> Result<usize, EvalError> {
        let mut mask = mask;
        loop {
            if let Some(&column) = self.done.get(&(node.index(), mask)) {
                return Ok(column);
            }
            if mask == 0 {
                return Err(EvalError::Invalid("scalar code refers to a node that comes later".into()));
            }
            mask = self.program.masks[mask].parent;
        }
    }

    /// Compiles all that a node needs, without recursion: code of long chains is deep.
    fn node(&mut self, root: Id<Scalar>, mask: usize) -> Result<(), EvalError> {
        let mut stack = vec![(root, mask, false)];
        while let Some((id, mask, ready)) = stack.pop() {
            if self.of(id, mask).is_ok() {
                continue;
            }
            let node = self.code.node(id);
            let inner = match node {
                Scalar::Guard(conditions, ..) => self.mask(mask, id, conditions)?,
                _ => mask,
            };
            if ready {
                let column = self.emit(id, mask, inner)?;
                self.done.insert((id.index(), mask), column);
                continue;
            }
            stack.push((id, mask, true));
            for (n, operand) in node.operands().into_iter().enumerate() {
                if operand >= id {
                    return Err(EvalError::Invalid("scalar code refers to a node that comes later".into()));
                }
                stack.push((operand, if n == 0 { inner } else { mask }, false));
            }
        }
        Ok(())
    }

    fn mask(
        &mut self,
        parent: usize,
        guard: Id<Scalar>,
        conditions: &[crate::scalar::Less],
    ) -> Result<usize, EvalError> {
        if let Some(&mask) = self.known.get(&(parent, guard)) {
            return Ok(mask);
        }
        let conditions: Result<Vec<Index>, EvalError> =
            conditions.iter().map(|c| self.space.compile(&c.right.sub(&c.left))).collect();
        self.program.masks.push(Mask {
            parent,
            conditions: conditions?,
            lanes: vec![false; LANES],
            count: 0,
            first: 0,
        });
        let mask = self.program.masks.len() - 1;
        self.known.insert((parent, guard), mask);
        Ok(mask)
    }

    fn emit(&mut self, id: Id<Scalar>, mask: usize, inner: usize) -> Result<usize, EvalError> {
        let dtype = self.code.dtype(id);
        let instruction = match self.code.node(id) {
            Scalar::Arg(n) => return Err(EvalError::Invalid(format!("argument {n} has no value"))),
            Scalar::Const(c) => return Ok(self.push(Instruction::Constant, Column::constant(*c))),
            Scalar::Index(e) => Instruction::Index(self.space.compile(e)?),
            Scalar::Load(source, coords) => self.load(*source, coords, dtype, mask)?,
            Scalar::Unary(op, a) => Instruction::Unary(*op, dtype, self.of(*a, mask)?),
            Scalar::Binary(op, a, b) => {
                Instruction::Binary(*op, self.code.dtype(*a), self.of(*a, mask)?, self.of(*b, mask)?)
            }
            Scalar::Fma(a, b, c) => Instruction::Fma(self.of(*a, mask)?, self.of(*b, mask)?, self.of(*c, mask)?),
            Scalar::Select(c, a, b) => Instruction::Select(self.of(*c, mask)?, self.of(*a, mask)?, self.of(*b, mask)?),
            Scalar::Cast(to, a) => Instruction::Cast(self.code.dtype(*a), *to, self.of(*a, mask)?),
            Scalar::Guard(_, a, b) => Instruction::Guard(inner, self.of(*a, inner)?, self.of(*b, mask)?),
        };
        Ok(self.push(instruction, Column::new(dtype)))
    }

    fn load(&mut self, source: Source, coords: &[Coord], dtype: DType, mask: usize) -> Result<Instruction, EvalError> {
        let tensor = self.sources.get(source)?.clone();
        if tensor.dtype() != dtype || tensor.shape().len() != coords.len() {
            return Err(EvalError::Invalid(format!("a load of {dtype} with {} axes from {tensor:?}", coords.len())));
        }
        let number = self.sources.number(source);
        if mask == 0
            && let Some(flat) = flat_index(self.space, &tensor, coords)
        {
            let at = Position::Index(self.space.compile(&flat)?);
            let places = vec![Place { at, extent: tensor.len(), stride: 1, axis: 0 }];
            return Ok(Instruction::Load { tensor, number, places, mask });
        }
        let mut places = Vec::new();
        let mut stride = 1i64;
        for (axis, coord) in coords.iter().enumerate().rev() {
            let extent = tensor.shape()[axis];
            let at = match coord {
                Coord::Index(e) => Position::Index(self.space.compile(e)?),
                Coord::Value(v) => Position::Value(self.of(*v, mask)?),
            };
            places.push(Place { at, extent, stride, axis });
            // An extent of 0 allows no access, so that its stride does not matter.
            stride *= extent.max(1) as i64;
        }
        places.reverse();
        Ok(Instruction::Load { tensor, number, places, mask })
    }
}

/// The row-major address of coordinates that are all known to be in range.
pub(super) fn flat_index(space: &Space, tensor: &Tensor, coords: &[Coord]) -> Option<Expr> {
    let (mut flat, mut stride) = (Expr::default(), 1i64);
    for (coord, &extent) in coords.iter().zip(tensor.shape()).rev() {
        let Coord::Index(e) = coord else { return None };
        if !space.is_within(e, extent) {
            return None;
        }
        flat = flat.add(&e.scale(stride));
        stride = stride.checked_mul(i64::try_from(extent).ok()?)?;
    }
    Some(flat)
}
