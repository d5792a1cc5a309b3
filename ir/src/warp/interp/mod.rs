//! The reference interpreter of warp programs.
//!
//! Invariant: it never panics; the threads of a block go through a statement together, and whatever would depend on
//! another order of threads — a race, shared memory read before it is written or while a copy is under way — is an
//! error. So a program that runs without an error computes the same on every schedule that a GPU may choose, but for
//! the rounding of [`Op::Exp2`] and [`Op::Mma`], which are computed exactly and rounded once here.

mod compute;
mod memory;

use super::{Address, For, LANES, Op, Place, Stmt, ValueId, VerifyError, WarpProgram};
use crate::dtype::DType;
use crate::expr::Symbol;
use crate::scalar::Constant;
use compute::{binary, bits, cast, float, mma, pack, tf32, unary};
use memory::Memory;

/// A warp program could not be interpreted to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The program breaks rules; nothing was run.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<VerifyError>),
    /// The arguments are not those that the program takes; nothing was run.
    #[error("warp program @{program}: {message}")]
    Arguments {
        /// Name of the program.
        program: String,
        /// What is wrong.
        message: String,
    },
    /// Threads of the program do different things at a time; its PTX can be interpreted instead.
    #[error("warp program @{program}: `{statement}` is only interpreted as PTX")]
    Concurrent {
        /// Name of the program.
        program: String,
        /// First line of the statement in the text form.
        statement: String,
    },
    /// A thread did what it must not.
    #[error("warp program @{program}: `{statement}`: block {block}, thread {thread}: {fault}")]
    Fault {
        /// Name of the program.
        program: String,
        /// First line of the statement in the text form.
        statement: String,
        /// Number of the block.
        block: i64,
        /// Number of the thread in the block.
        thread: usize,
        /// What it did.
        fault: Fault,
    },
}

/// What a thread must not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// An access outside a buffer.
    #[error("element {element} of a buffer of {len}")]
    OutOfBounds {
        /// The first element outside.
        element: i64,
        /// Elements of the buffer.
        len: usize,
    },
    /// A wide access whose place is no multiple of its size.
    #[error("element {element} is no place for an access of {count} elements")]
    Misaligned {
        /// First element.
        element: i64,
        /// Elements of the access.
        count: usize,
    },
    /// A read of shared memory that nothing was written to.
    #[error("element {element} is read before anything is written to it")]
    Uninitialised {
        /// The element.
        element: i64,
    },
    /// Two threads access an element, one of them to write, without a barrier between them.
    #[error("element {element} is accessed by thread {other} too, without a barrier between")]
    Race {
        /// The element.
        element: i64,
        /// The other thread (one of several), numbered over all blocks in a global buffer.
        other: u64,
    },
    /// An access to an element that an asynchronous copy has not been waited for.
    #[error("element {element} is being copied to")]
    Pending {
        /// The element.
        element: i64,
    },
    /// The loop variable leaves its type.
    #[error("the loop variable overflows")]
    LoopOverflow,
}

/// What a run moved and computed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Multiply-adds of f32, over all threads.
    pub fma: u64,
    /// Matrix products of 16x8x16, over all warps.
    pub mma: u64,
    /// 32-byte sectors of global memory that the warps' accesses touched.
    pub sectors: u64,
    /// The least number of sectors that could hold the bytes.
    pub least_sectors: u64,
    /// Passes that shared memory takes for the warps' accesses: 128 bytes each without bank conflicts.
    pub wavefronts: u64,
    /// The same without bank conflicts.
    pub least_wavefronts: u64,
}

/// What came of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The greatest status of a check that failed; 0 where all held.
    pub status: u32,
    /// What was moved and computed.
    pub counts: Counts,
}

/// Runs the whole grid on little-endian buffers, one for each of the kernel's, and the dims.
///
/// # Errors
/// The program does not verify, the arguments do not fit it, or a thread did what it must not.
pub fn run(program: &WarpProgram, buffers: &mut [Vec<u8>], dims: &[i64]) -> Result<Outcome, RunError> {
    program.verify().map_err(RunError::Invalid)?;
    let wrong = |message: String| RunError::Arguments { program: program.name.clone(), message };
    if buffers.len() != program.buffers.len() || dims.len() != program.dims.len() {
        return Err(wrong(format!("{} buffers and {} dims were given", buffers.len(), dims.len())));
    }
    let dim = |s: &Symbol| program.dims.iter().position(|d| d == s).and_then(|i| dims.get(i).copied());
    let mut lens = Vec::new();
    for (b, bytes) in program.buffers.iter().zip(buffers.iter()) {
        let len = b.len.eval(&dim).and_then(|n| usize::try_from(n).ok());
        match len.filter(|n| n.checked_mul(b.dtype.size()).is_some_and(|n| n <= bytes.len())) {
            Some(len) => lens.push(len),
            None => return Err(wrong(format!("`{}` has {} bytes for {} elements", b.name, bytes.len(), b.len))),
        }
    }
    let blocks = program.grid.eval(&dim).unwrap_or(0).max(0);
    if blocks > i64::from(i32::MAX) {
        return Err(wrong(format!("{blocks} blocks; at most 2^31 - 1 can run")));
    }
    let mut machine = Machine {
        program,
        dims,
        block: 0,
        status: 0,
        threads: program.threads as usize,
        values: vec![Vec::new(); program.values.len()],
        memory: Memory::new(program, buffers, lens),
    };
    for block in 0..blocks {
        machine.block = block;
        machine.memory.enter(block);
        machine.region(&program.body)?;
    }
    Ok(Outcome { status: machine.status, counts: machine.memory.counts })
}

struct Machine<'a> {
    program: &'a WarpProgram,
    dims: &'a [i64],
    block: i64,
    status: u32,
    threads: usize,
    /// For every value its bits in each thread: those of a [`Constant`].
    values: Vec<Vec<u64>>,
    memory: Memory<'a>,
}

impl Machine<'_> {
    fn get(&self, id: ValueId) -> &[u64] {
        self.values.get(id.index()).map_or(&[], Vec::as_slice)
    }

    fn set(&mut self, id: ValueId, bits: Vec<u64>) {
        if let Some(slot) = self.values.get_mut(id.index()) {
            *slot = bits;
        }
    }

    fn dtype(&self, id: ValueId) -> DType {
        self.program.values.get(id).copied().unwrap_or(DType::Bool)
    }

    /// The type of the elements of a buffer.
    fn element(&self, place: Place) -> DType {
        let found = match place {
            Place::Global(n) => self.program.buffers.get(n).map(|b| b.dtype),
            Place::Shared(n) => self.program.shared.get(n).map(|s| s.dtype),
        };
        found.unwrap_or(DType::Bool)
    }

    fn fault(&self, stmt: &Stmt, thread: usize, fault: Fault) -> RunError {
        RunError::Fault {
            program: self.program.name.clone(),
            statement: self.program.head(stmt).to_string(),
            block: self.block,
            thread,
            fault,
        }
    }

    fn concurrent(&self, stmt: &Stmt) -> RunError {
        RunError::Concurrent { program: self.program.name.clone(), statement: self.program.head(stmt).to_string() }
    }

    /// The first element of each thread's access; nothing in threads where the condition does not hold.
    fn places(&self, address: &Address, condition: Option<ValueId>) -> Vec<Option<i64>> {
        let index = address.index.map(|i| self.get(i));
        let condition = condition.map(|c| self.get(c));
        let at =
            |values: Option<&[u64]>, t: usize, absent: u64| values.map_or(absent, |v| v.get(t).copied().unwrap_or(0));
        (0..self.threads)
            .map(|t| (at(condition, t, 1) != 0).then(|| (at(index, t, 0) as i64).saturating_add(address.offset)))
            .collect()
    }

    fn region(&mut self, body: &[Stmt]) -> Result<(), RunError> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), RunError> {
        match stmt {
            Stmt::Let(ids, op) => self.define(stmt, ids, op)?,
            Stmt::Store { address, values, condition } => {
                let places = self.places(address, *condition);
                let dtype = self.element(address.place);
                self.memory.count(address.place, &places, values.len() * dtype.size());
                let mut bytes = Vec::with_capacity(16);
                for (t, place) in places.into_iter().enumerate() {
                    let Some(element) = place else { continue };
                    bytes.clear();
                    for &v in values {
                        Constant { dtype, bits: self.get(v).get(t).copied().unwrap_or(0) }.store(&mut bytes);
                    }
                    let written = self.memory.write(address.place, t, element, values.len(), &bytes);
                    written.map_err(|fault| self.fault(stmt, t, fault))?;
                }
            }
            Stmt::Copy { to, from, count, condition } => {
                let (source, target) = (self.places(from, *condition), self.places(to, None));
                let size = self.memory.size(to.place) * count;
                self.memory.count(from.place, &source, size);
                self.memory.count(to.place, &target, size);
                for (t, (source, target)) in source.into_iter().zip(target).enumerate() {
                    let Some(target) = target else { continue };
                    let copied = self.memory.copy((to.place, target), (from.place, source), *count, t);
                    copied.map_err(|fault| self.fault(stmt, t, fault))?;
                }
            }
            Stmt::Commit => self.memory.commit(),
            Stmt::Wait(groups) => self.memory.wait(*groups),
            Stmt::Barrier => self.memory.barrier(),
            Stmt::Fail { condition, status } => {
                if self.get(*condition).iter().any(|&c| c != 0) {
                    self.status = self.status.max(*status);
                }
            }
            Stmt::For(counted) => self.counted_loop(stmt, counted)?,
            Stmt::Bulk(_) => return Err(self.concurrent(stmt)),
        }
        Ok(())
    }

    fn counted_loop(&mut self, stmt: &Stmt, counted: &For) -> Result<(), RunError> {
        let For { var, lo, hi, step, carried, body } = counted;
        let first = |v: &[u64]| v.first().copied().unwrap_or(0) as i64;
        let (mut at, hi) = (first(self.get(*lo)), first(self.get(*hi)));
        let most = if self.dtype(*var) == DType::I32 { i64::from(i32::MAX) } else { i64::MAX };
        for c in carried {
            self.set(c.inside, self.get(c.init).to_vec());
        }
        while at < hi {
            self.set(*var, vec![at as u64; self.threads]);
            self.region(body)?;
            // All next values are read before the first of the values inside changes.
            let next: Vec<Vec<u64>> = carried.iter().map(|c| self.get(c.next).to_vec()).collect();
            for (c, next) in carried.iter().zip(next) {
                self.set(c.inside, next);
            }
            at = match at.checked_add(*step).filter(|&at| at <= most) {
                Some(at) => at,
                None => return Err(self.fault(stmt, 0, Fault::LoopOverflow)),
            };
        }
        for c in carried {
            self.set(c.after, self.get(c.inside).to_vec());
        }
        Ok(())
    }

    fn define(&mut self, stmt: &Stmt, ids: &[ValueId], op: &Op) -> Result<(), RunError> {
        let threads = self.threads;
        let map = |a: &[u64], f: &dyn Fn(u64) -> u64| a.iter().map(|&a| f(a)).collect::<Vec<u64>>();
        let &[id, ..] = ids else { return Ok(()) };
        let ty = self.dtype(id);
        let bits = match op {
            Op::Load(address, condition) => return self.load(stmt, ids, address, *condition),
            Op::Matrix { address, transposed } => return self.matrix(stmt, ids, address, *transposed),
            Op::Mma { factor, a, b, c } => {
                let operands: Vec<&[u64]> = a.iter().chain(b).chain(c).map(|&v| self.get(v)).collect();
                let results = mma(*factor, &operands, threads);
                self.memory.counts.mma += threads as u64 / u64::from(LANES);
                for (&id, bits) in ids.iter().zip(results) {
                    self.set(id, bits);
                }
                return Ok(());
            }
            Op::GroupMma(_) => return Err(self.concurrent(stmt)),
            Op::Const(c) => vec![c.bits; threads],
            Op::Thread => (0..threads as u64).collect(),
            Op::Block => vec![self.block as u64; threads],
            Op::Dim(n) => vec![self.dims.get(*n).copied().unwrap_or(0) as u64; threads],
            Op::Unary(op, a) => map(self.get(*a), &|a| unary(*op, ty, a)),
            Op::Exp2(a) => map(self.get(*a), &|a| bits(libm::exp2(f64::from(float(a))) as f32)),
            Op::Tf32(a) => map(self.get(*a), &tf32),
            Op::Binary(op, a, b) => {
                let of = self.dtype(*a);
                self.get(*a).iter().zip(self.get(*b)).map(|(&a, &b)| binary(*op, of, a, b)).collect()
            }
            Op::Fma(a, b, c) => {
                self.memory.counts.fma += threads as u64;
                let ab = self.get(*a).iter().zip(self.get(*b));
                ab.zip(self.get(*c)).map(|((&a, &b), &c)| bits(float(a).mul_add(float(b), float(c)))).collect()
            }
            Op::Select(a, b, c) => {
                let bc = self.get(*b).iter().zip(self.get(*c));
                self.get(*a).iter().zip(bc).map(|(&a, (&b, &c))| if a != 0 { b } else { c }).collect()
            }
            Op::Cast(to, a) => map(self.get(*a), &|bits| cast(*to, Constant { dtype: self.dtype(*a), bits })),
            Op::Bitcast(to, a) => map(self.get(*a), &|bits| {
                let mut bytes = Vec::with_capacity(8);
                Constant { dtype: self.dtype(*a), bits }.store(&mut bytes);
                Constant::load(*to, &bytes, 0).map_or(0, |c| c.bits)
            }),
            Op::Pack(to, a, b) => self.get(*a).iter().zip(self.get(*b)).map(|(&a, &b)| pack(*to, a, b)).collect(),
            Op::Unpack(from, a, n) => {
                map(self.get(*a), &|word| bits(crate::float8::decode(*from, (word >> (8 * n)) as u8)))
            }
            Op::Shuffle(a, mask) => {
                let a = self.get(*a);
                (0..threads).map(|t| a.get(t ^ *mask as usize).copied().unwrap_or(0)).collect()
            }
        };
        self.set(id, bits);
        Ok(())
    }

    fn load(
        &mut self,
        stmt: &Stmt,
        ids: &[ValueId],
        address: &Address,
        condition: Option<(ValueId, Constant)>,
    ) -> Result<(), RunError> {
        let places = self.places(address, condition.map(|(c, _)| c));
        let other = condition.map_or(0, |(_, other)| other.bits);
        let dtype = self.element(address.place);
        self.memory.count(address.place, &places, ids.len() * dtype.size());
        let mut results = vec![vec![other; self.threads]; ids.len()];
        for (t, place) in places.into_iter().enumerate() {
            let Some(element) = place else { continue };
            let bytes = self.memory.read(address.place, t, element, ids.len());
            let bytes = bytes.map_err(|fault| self.fault(stmt, t, fault))?;
            for (i, result) in results.iter_mut().enumerate() {
                result[t] = Constant::load(dtype, &bytes, i).map_or(0, |c| c.bits);
            }
        }
        for (&id, bits) in ids.iter().zip(results) {
            self.set(id, bits);
        }
        Ok(())
    }

    fn matrix(&mut self, stmt: &Stmt, ids: &[ValueId], address: &Address, transposed: bool) -> Result<(), RunError> {
        let mut places = self.places(address, None);
        for (t, place) in places.iter_mut().enumerate() {
            if t % LANES as usize / 8 >= ids.len() {
                *place = None;
            }
        }
        self.memory.count(address.place, &places, 16);
        let mut results = vec![vec![0u64; self.threads]; ids.len()];
        let size = self.memory.element(address.place);
        for warp in (0..self.threads).step_by(LANES as usize) {
            for (j, result) in results.iter_mut().enumerate() {
                // Rows in parts of 2 bytes, whatever the elements are.
                let mut matrix = [[0u64; 8]; 8];
                for (row, elements) in matrix.iter_mut().enumerate() {
                    let t = warp + 8 * j + row;
                    let element = places.get(t).copied().flatten().unwrap_or(-1);
                    let bytes = self.memory.read(address.place, t, element, 16 / size);
                    let bytes = bytes.map_err(|fault| self.fault(stmt, t, fault))?;
                    for (e, b) in elements.iter_mut().zip(bytes.as_chunks::<2>().0) {
                        *e = u64::from(u16::from_le_bytes(*b));
                    }
                }
                for (lane, result) in result.iter_mut().skip(warp).take(LANES as usize).enumerate() {
                    let (row, column) = (lane / 4, lane % 4 * 2);
                    let at = |c: usize| if transposed { matrix[c][row] } else { matrix[row][c] };
                    *result = at(column) | at(column + 1) << 16;
                }
            }
        }
        for (&id, bits) in ids.iter().zip(results) {
            self.set(id, bits);
        }
        Ok(())
    }
}
