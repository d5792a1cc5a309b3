//! The interpreter of tile programs, the oracle of every emitter.
//!
//! Invariant: nothing is read or written outside a buffer, whatever the program: every access is checked against
//! the buffer's declared length and its bytes. A program need not verify; what it means otherwise is an error.

use super::verify::MAX_ELEMENTS;
use super::{
    Factors, For, If, Multiply, Part, Stmt, TileId, TileOp, TileProgram, TileType, axis, gathered as gathered_symbol,
};
use crate::dtype::{Class, DType};
use crate::expr::{Expr, Symbol};
use crate::scalar::{BinaryOp, Constant, Less, UnaryOp};
use crate::semantics;
use crate::vector::Product;
use std::ops::Range;
use std::rc::Rc;

/// A tile program could not be interpreted to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// A check of the program failed with its status.
    #[error("kernel @{kernel} stopped with status {status}")]
    Failed {
        /// Name of the program.
        kernel: String,
        /// The check's status.
        status: u32,
    },
    /// An access outside a buffer.
    #[error("kernel @{kernel}: element {element} of `{buffer}`, which has {len} elements")]
    OutOfBounds {
        /// Name of the program.
        kernel: String,
        /// Name of the buffer.
        buffer: String,
        /// Address in elements.
        element: i64,
        /// Elements of the buffer.
        len: i64,
    },
    /// The program, its buffers or its dims are not as they must be.
    #[error("kernel @{kernel}: {message}")]
    Invalid {
        /// Name of the program.
        kernel: String,
        /// What is wrong.
        message: String,
    },
}

/// Runs programs `programs` (numbered over all parts) on row-major little-endian buffers, one for each of the
/// kernel's. `dims` gives the run-time dims.
///
/// # Errors
/// A check failed, an access was out of bounds, or the program does not verify in a way that shows when it runs.
pub fn run(
    program: &TileProgram,
    buffers: &mut [Vec<u8>],
    dims: &dyn Fn(&Symbol) -> Option<i64>,
    programs: Range<i64>,
) -> Result<(), RunError> {
    let given = buffers.len();
    let mut locals = Vec::new();
    for b in program.buffers.iter().filter(|b| b.local) {
        let elements = b.len.as_size().filter(|&n| n <= MAX_ELEMENTS).unwrap_or(0);
        locals.push(vec![0; elements * b.dtype.size()]);
    }
    let memory = buffers.iter_mut().chain(&mut locals).collect();
    let mut machine =
        Machine { program, buffers: memory, dims, env: Vec::new(), tiles: vec![None; program.tiles.len()] };
    if given != program.arguments().count() {
        return Err(machine.invalid(format!("{given} buffers were given")));
    }
    let mut start = 0i64;
    for part in &program.parts {
        let extents = part.grid.iter().map(|(_, e)| machine.eval(e)).collect::<Result<Vec<_>, _>>()?;
        let count = extents.iter().fold(1i64, |n, &e| n.saturating_mul(e.max(0)));
        let end = start.saturating_add(count);
        for p in programs.start.max(start)..programs.end.min(end) {
            machine.program(part, &extents, p - start)?;
        }
        start = end;
    }
    Ok(())
}

/// The elements of a tile, row-major.
#[derive(Clone, Debug)]
enum Data {
    /// Class `Float`: values of the type, as f32.
    Float(Vec<f32>),
    Double(Vec<f64>),
    /// Integers and bools.
    Int(Vec<i64>),
}

#[derive(Clone, Debug)]
struct Tile {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
}

struct Machine<'a> {
    program: &'a TileProgram,
    /// The arguments, then what is local.
    buffers: Vec<&'a mut Vec<u8>>,
    dims: &'a dyn Fn(&Symbol) -> Option<i64>,
    env: Vec<(Symbol, i64)>,
    tiles: Vec<Option<Rc<Tile>>>,
}

/// Calls `f` with every position of the shape, in row-major order.
fn each(shape: &[usize], mut f: impl FnMut(&[usize]) -> Result<(), RunError>) -> Result<(), RunError> {
    if shape.contains(&0) {
        return Ok(());
    }
    let mut at = vec![0usize; shape.len()];
    loop {
        f(&at)?;
        let Some(axis) = (0..shape.len()).rev().find(|&k| at[k] + 1 < shape[k]) else { return Ok(()) };
        at[axis] += 1;
        at[axis + 1..].fill(0);
    }
}

/// For every position of `shape`, the position in a tile of shape `from` that broadcasts to it.
fn broadcast(from: &[usize], shape: &[usize]) -> Vec<usize> {
    let mut map = Vec::with_capacity(shape.iter().product());
    let _ = each(shape, |at| {
        let flat = from.iter().zip(at).fold(0, |flat, (&e, &i)| flat * e + if e == 1 { 0 } else { i });
        map.push(flat);
        Ok(())
    });
    map
}

fn pick<T: Copy>(data: &[T], map: &[usize]) -> Vec<T> {
    map.iter().filter_map(|&i| data.get(i).copied()).collect()
}

impl Data {
    fn pick(&self, map: &[usize]) -> Data {
        match self {
            Data::Float(v) => Data::Float(pick(v, map)),
            Data::Double(v) => Data::Double(pick(v, map)),
            Data::Int(v) => Data::Int(pick(v, map)),
        }
    }

    fn splat(c: Constant, count: usize) -> Data {
        match c.dtype.class() {
            Class::Float => Data::Float(vec![f32::from_bits(c.bits as u32); count]),
            Class::Double => Data::Double(vec![f64::from_bits(c.bits); count]),
            Class::Signed | Class::Unsigned | Class::Bool | Class::Complex | Class::Str => {
                Data::Int(vec![c.bits as i64; count])
            }
        }
    }

    /// Whether these are the elements of a tile of that type.
    fn is(&self, ty: &TileType) -> bool {
        let count = match (self, ty.dtype.class()) {
            (Data::Float(v), Class::Float) => v.len(),
            (Data::Double(v), Class::Double) => v.len(),
            (Data::Int(v), Class::Signed | Class::Unsigned | Class::Bool) => v.len(),
            (Data::Float(_) | Data::Double(_) | Data::Int(_), _) => return false,
        };
        count == ty.elements()
    }

    fn push(&mut self, c: Constant) {
        match self {
            Data::Float(v) => v.push(f32::from_bits(c.bits as u32)),
            Data::Double(v) => v.push(f64::from_bits(c.bits)),
            Data::Int(v) => v.push(c.bits as i64),
        }
    }
}

/// One tile of each type there is, made by the rule for scalars of that type.
fn binary(op: BinaryOp, dtype: DType, a: &Data, b: &Data) -> Option<Data> {
    fn zip<T: Copy, U>(a: &[T], b: &[T], f: impl Fn(T, T) -> U) -> Vec<U> {
        a.iter().zip(b).map(|(&x, &y)| f(x, y)).collect()
    }
    let truth =
        |v: Vec<Option<bool>>| v.into_iter().map(|b| b.map(i64::from)).collect::<Option<Vec<_>>>().map(Data::Int);
    if op.is_comparison() {
        return match (a, b) {
            (Data::Float(a), Data::Float(b)) => truth(zip(a, b, |x, y| semantics::compare(op, x, y))),
            (Data::Double(a), Data::Double(b)) => truth(zip(a, b, |x, y| semantics::compare(op, x, y))),
            (Data::Int(a), Data::Int(b)) if dtype == DType::U64 => {
                truth(zip(a, b, |x, y| semantics::compare(op, x as u64, y as u64)))
            }
            (Data::Int(a), Data::Int(b)) => truth(zip(a, b, |x, y| semantics::compare(op, x, y))),
            _ => None,
        };
    }
    match (a, b) {
        (Data::Float(a), Data::Float(b)) if op == BinaryOp::Pair => Some(Data::Int(zip(a, b, semantics::pair))),
        (Data::Int(a), Data::Int(b)) if op == BinaryOp::Dot2 => {
            Some(Data::Float(zip(a, b, |x, y| semantics::dot2(x, y, 0.0))))
        }
        (Data::Float(a), Data::Float(b)) => {
            Some(Data::Float(zip(a, b, |x, y| semantics::round_to(dtype, semantics::binary_f32(op, x, y)))))
        }
        (Data::Double(a), Data::Double(b)) => Some(Data::Double(zip(a, b, |x, y| semantics::binary_f64(op, x, y)))),
        (Data::Int(a), Data::Int(b)) => zip(a, b, |x, y| semantics::binary_int(op, dtype, x, y))
            .into_iter()
            .collect::<Option<Vec<_>>>()
            .map(Data::Int),
        _ => None,
    }
}

fn unary(op: UnaryOp, dtype: DType, a: &Data) -> Option<Data> {
    match a {
        Data::Float(v) => {
            Some(Data::Float(v.iter().map(|&x| semantics::round_to(dtype, semantics::unary_f32(op, x))).collect()))
        }
        Data::Double(v) => Some(Data::Double(v.iter().map(|&x| semantics::unary_f64(op, x)).collect())),
        Data::Int(v) => {
            v.iter().map(|&x| semantics::unary_int(op, dtype, x)).collect::<Option<Vec<_>>>().map(Data::Int)
        }
    }
}

fn cast(from: DType, to: DType, a: &Data) -> Data {
    let int = |x: i64| if to == DType::Bool { i64::from(x != 0) } else { semantics::wrap(to, x) };
    let unsigned = from == DType::U64;
    match (to.class(), a) {
        (Class::Float, Data::Float(v)) => Data::Float(v.iter().map(|&x| semantics::round_to(to, x)).collect()),
        (Class::Float, Data::Double(v)) => Data::Float(v.iter().map(|&x| semantics::round_to(to, x as f32)).collect()),
        (Class::Float, Data::Int(v)) if unsigned => {
            Data::Float(v.iter().map(|&x| semantics::round_to(to, x as u64 as f32)).collect())
        }
        (Class::Float, Data::Int(v)) => Data::Float(v.iter().map(|&x| semantics::round_to(to, x as f32)).collect()),
        (Class::Double, Data::Float(v)) => Data::Double(v.iter().map(|&x| f64::from(x)).collect()),
        (Class::Double, Data::Double(v)) => Data::Double(v.clone()),
        (Class::Double, Data::Int(v)) if unsigned => Data::Double(v.iter().map(|&x| x as u64 as f64).collect()),
        (Class::Double, Data::Int(v)) => Data::Double(v.iter().map(|&x| x as f64).collect()),
        (_, Data::Float(v)) => Data::Int(v.iter().map(|&x| semantics::float_to_int(to, f64::from(x))).collect()),
        (_, Data::Double(v)) => Data::Int(v.iter().map(|&x| semantics::float_to_int(to, x)).collect()),
        (_, Data::Int(v)) => Data::Int(v.iter().map(|&x| int(x)).collect()),
    }
}

fn fma(dtype: DType, a: &Data, b: &Data, c: &Data) -> Option<Data> {
    match (a, b, c) {
        (Data::Float(a), Data::Float(b), Data::Float(c)) => {
            let one = |((&x, &y), &z): ((&f32, &f32), &f32)| semantics::round_to(dtype, x.mul_add(y, z));
            Some(Data::Float(a.iter().zip(b).zip(c).map(one).collect()))
        }
        (Data::Double(a), Data::Double(b), Data::Double(c)) => {
            Some(Data::Double(a.iter().zip(b).zip(c).map(|((&x, &y), &z)| x.mul_add(y, z)).collect()))
        }
        (Data::Int(a), Data::Int(b), Data::Float(c)) => {
            let one = |((&x, &y), &z): ((&i64, &i64), &f32)| semantics::dot2(x, y, z);
            Some(Data::Float(a.iter().zip(b).zip(c).map(one).collect()))
        }
        (Data::Int(_), Data::Int(_), Data::Int(_)) => {
            binary(BinaryOp::Add, dtype, &binary(BinaryOp::Mul, dtype, a, b)?, c)
        }
        _ => None,
    }
}

impl Machine<'_> {
    fn invalid(&self, message: impl Into<String>) -> RunError {
        RunError::Invalid { kernel: self.program.name.clone(), message: message.into() }
    }

    fn symbol(&self, s: &Symbol) -> Option<i64> {
        self.env.iter().rev().find(|(name, _)| name == s).map(|(_, v)| *v).or_else(|| (self.dims)(s))
    }

    fn eval(&self, e: &Expr) -> Result<i64, RunError> {
        e.eval(&|s| self.symbol(s)).ok_or_else(|| self.invalid(format!("`{e}` has no value")))
    }

    /// The expression's value at a position of a tile of the rank.
    fn compile(&self, e: &Expr, rank: usize, gathered: usize) -> Result<Affine, RunError> {
        let reserved: Vec<Symbol> = (0..rank).map(axis).chain((0..gathered).map(gathered_symbol)).collect();
        let partial = e.substitute(&|s| {
            if reserved.contains(s) { None } else { self.symbol(s).map(Expr::from) }
        });
        let strides: Option<Vec<i64>> = reserved.iter().map(|s| partial.coefficient(s)).collect();
        Ok(match strides {
            Some(strides) => {
                let base = partial.eval(&|s| reserved.contains(s).then_some(0));
                let base = base.ok_or_else(|| self.invalid(format!("`{e}` has no value")))?;
                Affine { base, strides, general: None }
            }
            None => Affine { base: 0, strides: Vec::new(), general: Some((partial, reserved)) },
        })
    }

    fn program(&mut self, part: &Part, extents: &[i64], index: i64) -> Result<(), RunError> {
        let mut rest = index;
        self.env.clear();
        for ((variable, _), &extent) in part.grid.iter().zip(extents).rev() {
            self.env.push((variable.clone(), rest % extent.max(1)));
            rest /= extent.max(1);
        }
        self.region(&part.body)
    }

    fn region(&mut self, body: &[Stmt]) -> Result<(), RunError> {
        for stmt in body {
            match stmt {
                Stmt::Let(id, op) => {
                    let ty = self.program.tiles.get(*id).ok_or_else(|| self.invalid(format!("no tile {id}")))?;
                    if ty.elements() > MAX_ELEMENTS {
                        return Err(self.invalid(format!("{id}: a tile of {ty} is too large")));
                    }
                    let data = self.op(ty, op)?;
                    if !data.is(ty) {
                        return Err(self.invalid(format!("the operation gives no {ty} for {id}")));
                    }
                    self.set(*id, Rc::new(Tile { dtype: ty.dtype, shape: ty.shape.clone(), data }))?;
                }
                Stmt::Store { buffer, address, gathered, mask, value } => {
                    let tile = self.get(*value)?;
                    let gathered = self.gathered(gathered, &tile.shape)?;
                    self.store(*buffer, address, &gathered, mask, &tile)?;
                }
                Stmt::For(f) => self.counted_loop(f)?,
                Stmt::Multiply(m) => self.multiply(m)?,
                Stmt::If(If { condition, then, otherwise }) => {
                    let holds = match &self.get(*condition)?.data {
                        Data::Int(v) if v.len() == 1 => v[0] != 0,
                        _ => return Err(self.invalid("the condition of a choice is one bool")),
                    };
                    self.region(if holds { then } else { otherwise })?;
                }
            }
        }
        Ok(())
    }

    fn multiply(&mut self, m: &Multiply) -> Result<(), RunError> {
        let [rows, columns] = m.shape();
        if rows.saturating_mul(columns) > MAX_ELEMENTS || m.depth > MAX_ELEMENTS || m.folds.iter().any(|f| f.2 < 1) {
            return Err(self.invalid("a product that is too large, or without steps"));
        }
        let fail = || self.invalid("the result of a product has no place");
        let (out, at) = (m.out.0, usize::try_from(self.eval(&m.out.1)?).map_err(|_| fail())?);
        let local = self.program.buffers.get(out).is_some_and(|b| b.local && b.dtype.size() == 4);
        let place = local.then_some(at).and_then(|at| Some(at.checked_mul(4)?..(at + rows * columns).checked_mul(4)?));
        let place = place.ok_or_else(fail)?;
        let before = self.buffers.get(out).and_then(|b| b.get(place.clone())).ok_or_else(fail)?;
        let mut sums = match m.adds {
            true => before.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect(),
            false => vec![0u32; rows * columns],
        };
        for factors in &m.rounds {
            self.round(m, factors, &mut sums)?;
        }
        let bytes: Vec<u8> = sums.iter().flat_map(|s| s.to_le_bytes()).collect();
        if let Some(to) = self.buffers.get_mut(out).and_then(|b| b.get_mut(place)) {
            to.copy_from_slice(&bytes);
        }
        Ok(())
    }

    /// One walk along the folds of a product.
    fn round(&mut self, m: &Multiply, factors: &[Factors], sums: &mut [u32]) -> Result<(), RunError> {
        let [rows, columns] = m.shape();
        let mut counters: Vec<i64> = vec![0; m.folds.len()];
        let extents = m.folds.iter().map(|(_, e, _)| self.eval(e)).collect::<Result<Vec<_>, _>>()?;
        let around = self.env.len();
        let mut more = extents.iter().all(|&e| e > 0);
        while more {
            self.env.extend(m.folds.iter().zip(&counters).map(|((variable, ..), &at)| (variable.clone(), at)));
            for factors in factors {
                let left = self.operand_of(&factors.left, &[rows, m.depth])?;
                let right = self.operand_of(&factors.right, &[m.depth, columns])?;
                for (n, sum) in sums.iter_mut().enumerate() {
                    for k in 0..m.depth {
                        let (l, r) = (left[n / columns * m.depth + k], right[k * columns + n % columns]);
                        let (a, b) = m.product.ordered(l, r);
                        *sum = match m.product {
                            Product::Pairs => semantics::dot2(a, b, f32::from_bits(*sum)).to_bits(),
                            Product::UnsignedSigned | Product::SignedUnsigned => {
                                sum.wrapping_add(semantics::dot4(a, b) as u32)
                            }
                        };
                    }
                }
            }
            self.env.truncate(around);
            more = false;
            for ((at, extent), (_, _, step)) in counters.iter_mut().zip(&extents).zip(&m.folds).rev() {
                *at = at.saturating_add(*step);
                if *at < *extent {
                    more = true;
                    break;
                }
                *at = 0;
            }
        }
        Ok(())
    }

    /// The elements of an operand of a product, row-major.
    fn operand_of(&self, (buffer, address): &(usize, Expr), shape: &[usize]) -> Result<Vec<i64>, RunError> {
        let ty = TileType { dtype: DType::I32, shape: shape.to_vec() };
        let load = Load { buffer: *buffer, address, gathered: &[], mask: &[], other: Constant::int(DType::I32, 0) };
        match self.load(&ty, &load)? {
            Data::Int(v) => Ok(v),
            Data::Float(_) | Data::Double(_) => Err(self.invalid("operands of products are integers")),
        }
    }

    fn counted_loop(&mut self, f: &For) -> Result<(), RunError> {
        let (mut i, hi) = (self.eval(&f.lo)?, self.eval(&f.hi)?);
        if f.step < 1 {
            return Err(self.invalid("a loop with a step below 1"));
        }
        let mut values = f.carried.iter().map(|c| self.get(c.init)).collect::<Result<Vec<_>, _>>()?;
        while i < hi {
            for (c, value) in f.carried.iter().zip(&values) {
                self.set(c.inside, value.clone())?;
            }
            self.env.push((f.var.clone(), i));
            self.region(&f.body)?;
            self.env.pop();
            values = f.carried.iter().map(|c| self.get(c.next)).collect::<Result<Vec<_>, _>>()?;
            i = i.saturating_add(f.step);
        }
        for (c, value) in f.carried.iter().zip(values) {
            self.set(c.after, value)?;
        }
        Ok(())
    }

    fn get(&self, id: TileId) -> Result<Rc<Tile>, RunError> {
        let tile = self.tiles.get(id.index()).cloned().flatten();
        tile.ok_or_else(|| self.invalid(format!("{id} has no value")))
    }

    fn set(&mut self, id: TileId, tile: Rc<Tile>) -> Result<(), RunError> {
        let fail = self.invalid(format!("no tile {id}"));
        *self.tiles.get_mut(id.index()).ok_or(fail)? = Some(tile);
        Ok(())
    }

    /// The elements of a tile broadcast to a shape.
    fn operand(&self, id: TileId, shape: &[usize]) -> Result<(DType, Data), RunError> {
        let tile = self.get(id)?;
        if tile.shape == shape {
            return Ok((tile.dtype, tile.data.clone()));
        }
        let fits = tile.shape.len() == shape.len() && tile.shape.iter().zip(shape).all(|(&e, &s)| e == s || e == 1);
        if !fits {
            return Err(self.invalid(format!("{id} does not broadcast to {shape:?}")));
        }
        Ok((tile.dtype, tile.data.pick(&broadcast(&tile.shape, shape))))
    }

    fn holds(&self, mask: &[(Affine, Affine)], at: &[usize]) -> Result<bool, RunError> {
        for (left, right) in mask {
            if left.at(self, at, &[])? >= right.at(self, at, &[])? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn mask(&self, mask: &[Less], rank: usize) -> Result<Vec<(Affine, Affine)>, RunError> {
        mask.iter().map(|l| Ok((self.compile(&l.left, rank, 0)?, self.compile(&l.right, rank, 0)?))).collect()
    }

    /// Checks an address against the declared length and the bytes that are there.
    fn element(&self, buffer: usize, len: i64, address: i64) -> Result<usize, RunError> {
        let b = &self.program.buffers[buffer];
        let there = self.buffers[buffer].len() / b.dtype.size().max(1);
        usize::try_from(address).ok().filter(|&i| address < len && i < there).ok_or_else(|| RunError::OutOfBounds {
            kernel: self.program.name.clone(),
            buffer: b.name.clone(),
            element: address,
            len: len.min(there as i64),
        })
    }

    /// The elements of gathered tiles, broadcast to a shape.
    fn gathered(&self, tiles: &[TileId], shape: &[usize]) -> Result<Vec<Vec<i64>>, RunError> {
        let elements = |&id: &TileId| match self.operand(id, shape)?.1 {
            Data::Int(v) => Ok(v),
            Data::Float(_) | Data::Double(_) => Err(self.invalid(format!("{id} holds no integers"))),
        };
        tiles.iter().map(elements).collect()
    }

    fn store(
        &mut self,
        buffer: usize,
        address: &Expr,
        gathered: &[Vec<i64>],
        mask: &[Less],
        tile: &Tile,
    ) -> Result<(), RunError> {
        let b = self.program.buffers.get(buffer).ok_or_else(|| self.invalid("no such buffer"))?;
        if !super::stores_to(tile.dtype, b.dtype) || !b.written {
            return Err(self.invalid(format!("`{}` cannot be stored to", b.name)));
        }
        let rank = tile.shape.len();
        let (len, size) = (self.eval(&b.len)?, b.dtype.size());
        let (address, mask) = (self.compile(address, rank, gathered.len())?, self.mask(mask, rank)?);
        let mut values = vec![0; gathered.len()];
        let mut flat = 0;
        let mut bytes = Vec::with_capacity(8);
        each(&tile.shape, |at| {
            let i = flat;
            flat += 1;
            for (value, tile) in values.iter_mut().zip(gathered) {
                *value = tile[i];
            }
            if !self.holds(&mask, at)? {
                return Ok(());
            }
            let element = self.element(buffer, len, address.at(self, at, &values)?)?;
            bytes.clear();
            match &tile.data {
                Data::Float(v) => semantics::store_f32(b.dtype, v[i], &mut bytes),
                Data::Double(v) => bytes.extend_from_slice(&v[i].to_le_bytes()),
                Data::Int(v) => semantics::store_i64(b.dtype, v[i], &mut bytes),
            }
            self.buffers[buffer][element * size..][..size].copy_from_slice(&bytes);
            Ok(())
        })
    }

    fn load(&self, ty: &TileType, load: &Load<'_>) -> Result<Data, RunError> {
        let Load { buffer, address, gathered, mask, other } = *load;
        let b = self.program.buffers.get(buffer).ok_or_else(|| self.invalid("no such buffer"))?;
        let gathered = self.gathered(gathered, &ty.shape)?;
        if !super::loads_from(ty.dtype, b.dtype) || other.dtype != ty.dtype {
            return Err(self.invalid(format!("a load of {} from `{}`", ty.dtype, b.name)));
        }
        let rank = ty.shape.len();
        let len = self.eval(&b.len)?;
        let (address, mask) = (self.compile(address, rank, gathered.len())?, self.mask(mask, rank)?);
        let mut data = Data::splat(other, 0);
        let mut values = vec![0; gathered.len()];
        let mut flat = 0;
        each(&ty.shape, |at| {
            for (value, tile) in values.iter_mut().zip(&gathered) {
                *value = tile[flat];
            }
            flat += 1;
            if !self.holds(&mask, at)? {
                data.push(other);
                return Ok(());
            }
            let element = self.element(buffer, len, address.at(self, at, &values)?)?;
            let loaded = Constant::load(b.dtype, self.buffers[buffer], element);
            let loaded = loaded.ok_or_else(|| self.invalid("a load of no number"))?;
            data.push(if b.dtype == ty.dtype { loaded } else { Constant::int(ty.dtype, loaded.as_i64().unwrap_or(0)) });
            Ok(())
        })?;
        Ok(data)
    }

    fn op(&self, ty: &TileType, op: &TileOp) -> Result<Data, RunError> {
        let wrong = || self.invalid(format!("an operation giving {ty} has operands of wrong types"));
        match op {
            TileOp::Const(c) => Ok(Data::splat(*c, ty.elements())),
            TileOp::Index(e) => {
                let e = self.compile(e, ty.shape.len(), 0)?;
                let mut v = Vec::new();
                each(&ty.shape, |at| {
                    v.push(e.at(self, at, &[])?);
                    Ok(())
                })?;
                Ok(Data::Int(v))
            }
            TileOp::Load { buffer, address, gathered, mask, other } => {
                self.load(ty, &Load { buffer: *buffer, address, gathered, mask, other: *other })
            }
            TileOp::Unary(op, a) => {
                let (dtype, a) = self.operand(*a, &ty.shape)?;
                unary(*op, dtype, &a).ok_or_else(wrong)
            }
            TileOp::Binary(op, a, b) => {
                let ((dtype, a), (_, b)) = (self.operand(*a, &ty.shape)?, self.operand(*b, &ty.shape)?);
                binary(*op, dtype, &a, &b).ok_or_else(wrong)
            }
            TileOp::Fma(a, b, c) => {
                let [(_, a), (_, b), (_, c)] =
                    [self.operand(*a, &ty.shape)?, self.operand(*b, &ty.shape)?, self.operand(*c, &ty.shape)?];
                fma(ty.dtype, &a, &b, &c).ok_or_else(wrong)
            }
            TileOp::Select(c, a, b) => {
                let Data::Int(c) = self.operand(*c, &ty.shape)?.1 else { return Err(wrong()) };
                let (a, b) = (self.operand(*a, &ty.shape)?.1, self.operand(*b, &ty.shape)?.1);
                fn choose<T: Copy>(c: &[i64], a: &[T], b: &[T]) -> Vec<T> {
                    c.iter().zip(a.iter().zip(b)).map(|(&c, (&a, &b))| if c != 0 { a } else { b }).collect()
                }
                match (a, b) {
                    (Data::Float(a), Data::Float(b)) => Ok(Data::Float(choose(&c, &a, &b))),
                    (Data::Double(a), Data::Double(b)) => Ok(Data::Double(choose(&c, &a, &b))),
                    (Data::Int(a), Data::Int(b)) => Ok(Data::Int(choose(&c, &a, &b))),
                    _ => Err(wrong()),
                }
            }
            TileOp::Cast(to, a) => {
                let (from, a) = self.operand(*a, &ty.shape)?;
                Ok(cast(from, *to, &a))
            }
            TileOp::Reduce(op, axis, a) => {
                let a = self.get(*a)?;
                let &extent = a.shape.get(*axis).ok_or_else(wrong)?;
                let inner: usize = a.shape[axis + 1..].iter().product();
                let outer: usize = a.shape[..*axis].iter().product();
                let slice = |r: usize| {
                    let map: Vec<_> =
                        (0..outer * inner).map(|i| (i / inner * extent + r) * inner + i % inner).collect();
                    a.data.pick(&map)
                };
                let mut sum = slice(0);
                for r in 1..extent {
                    sum = binary(*op, a.dtype, &sum, &slice(r)).ok_or_else(wrong)?;
                }
                Ok(sum)
            }
            TileOp::Transpose(order, a) => {
                let a = self.get(*a)?;
                let mut sorted = order.clone();
                sorted.sort_unstable();
                if !sorted.into_iter().eq(0..a.shape.len()) {
                    return Err(wrong());
                }
                let mut map = Vec::new();
                let mut from = vec![0; order.len()];
                each(&ty.shape, |at| {
                    for (&axis, &i) in order.iter().zip(at) {
                        from[axis] = i;
                    }
                    map.push(a.shape.iter().zip(&from).fold(0, |flat, (&e, &i)| flat * e + i));
                    Ok(())
                })?;
                Ok(a.data.pick(&map))
            }
            TileOp::Dot(of, a, b, c) => {
                let (a, b, c) = (self.get(*a)?, self.get(*b)?, self.get(*c)?);
                let (&[m, depth], &[_, n]) = (a.shape.as_slice(), b.shape.as_slice()) else { return Err(wrong()) };
                let (left, right) = (cast(a.dtype, c.dtype, &a.data), cast(b.dtype, c.dtype, &b.data));
                let mut sum = c.data.clone();
                for k in 0..depth {
                    let column: Vec<_> = (0..m * n).map(|i| i / n * depth + k).collect();
                    let row: Vec<_> = (0..m * n).map(|i| k * n + i % n).collect();
                    let (x, y) = (left.pick(&column), right.pick(&row));
                    let next = match of {
                        None => fma(c.dtype, &x, &y, &sum),
                        Some(of) => {
                            let (x, y) = of.ordered(x, y);
                            let products = binary(of.operation(), c.dtype, &x, &y);
                            products.and_then(|p| binary(BinaryOp::Add, c.dtype, &sum, &p))
                        }
                    };
                    sum = next.ok_or_else(wrong)?;
                }
                Ok(sum)
            }
            TileOp::CheckIndex { index, extent, status } => {
                let Data::Int(mut v) = self.operand(*index, &ty.shape)?.1 else { return Err(wrong()) };
                let extent = self.compile(extent, ty.shape.len(), 0)?;
                let mut flat = 0;
                each(&ty.shape, |at| {
                    let (limit, index) = (extent.at(self, at, &[])?, &mut v[flat]);
                    flat += 1;
                    if *index >= limit || *index < limit.saturating_neg() {
                        return Err(RunError::Failed { kernel: self.program.name.clone(), status: *status });
                    }
                    *index += if *index < 0 { limit } else { 0 };
                    Ok(())
                })?;
                Ok(Data::Int(v))
            }
        }
    }
}

/// The fields of [`TileOp::Load`].
#[derive(Clone, Copy)]
struct Load<'a> {
    buffer: usize,
    address: &'a Expr,
    gathered: &'a [TileId],
    mask: &'a [Less],
    other: Constant,
}

/// An expression over the axes of a tile (and gathered values): a sum with constant strides where it is one.
struct Affine {
    base: i64,
    strides: Vec<i64>,
    general: Option<(Expr, Vec<Symbol>)>,
}

impl Affine {
    fn at(&self, machine: &Machine<'_>, at: &[usize], gathered: &[i64]) -> Result<i64, RunError> {
        let coordinates = || at.iter().map(|&i| i as i64).chain(gathered.iter().copied());
        match &self.general {
            None => Ok(self
                .strides
                .iter()
                .zip(coordinates())
                .fold(self.base, |sum, (s, i)| sum.saturating_add(s.saturating_mul(i)))),
            Some((e, symbols)) => e
                .eval(&|s| symbols.iter().position(|x| x == s).and_then(|k| coordinates().nth(k)))
                .ok_or_else(|| machine.invalid(format!("`{e}` has no value"))),
        }
    }
}
