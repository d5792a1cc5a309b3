//! The reference interpreter of vector programs.
//!
//! Invariant: it never panics, and what it computes is what compiled code must compute, bit by bit (but for the
//! payload and sign of a NaN that an operation made): every scalar operation is that of [`crate::semantics`].

use super::{Address, For, Matrix, Op, Registers, Stmt, ValueId, VectorProgram, VectorType, VerifyError};
use crate::dtype::{Class, DType};
use crate::scalar::{BinaryOp, UnaryOp};
use crate::semantics;
use half::f16;

/// A vector program could not be interpreted to its end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterpError {
    /// The program breaks rules; nothing was run.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<VerifyError>),
    /// The arguments are not those that the program takes; nothing was run.
    #[error("vector program @{program}: {message}")]
    Arguments {
        /// Name of the program.
        program: String,
        /// What is wrong.
        message: String,
    },
    /// An access reached outside a buffer.
    #[error("vector program @{program}: `{statement}`: element {element} of b{buffer}, which holds {len} elements")]
    OutOfBounds {
        /// Name of the program.
        program: String,
        /// The statement in the text form.
        statement: String,
        /// Index of the buffer.
        buffer: usize,
        /// The first element outside, in the order of the lanes.
        element: i128,
        /// Elements of the buffer.
        len: usize,
    },
    /// A loop variable left the range of i64.
    #[error("vector program @{program}: `{statement}`: the loop variable overflows")]
    LoopOverflow {
        /// Name of the program.
        program: String,
        /// The statement in the text form.
        statement: String,
    },
}

/// Runs programs `lo..hi` of a kernel on little-endian buffers, and returns its status: 0, or that of the first
/// check that failed (what was stored before stays). `fused` says whether the target has fused multiply-add, see
/// [`Op::Fma`].
///
/// # Errors
/// The program does not verify, the arguments do not fit it, or it reaches outside a buffer.
pub fn run(
    program: &VectorProgram,
    buffers: &mut [&mut [u8]],
    dims: &[i64],
    lo: i64,
    hi: i64,
    fused: bool,
) -> Result<u32, InterpError> {
    program.verify().map_err(InterpError::Invalid)?;
    let wrong = |message: String| InterpError::Arguments { program: program.name.clone(), message };
    if buffers.len() != program.buffers.len() {
        return Err(wrong(format!("{} buffers, wants {}", buffers.len(), program.buffers.len())));
    }
    if dims.len() != program.dims {
        return Err(wrong(format!("{} dims, wants {}", dims.len(), program.dims)));
    }
    for (i, (buffer, (dtype, _))) in buffers.iter().zip(&program.buffers).enumerate() {
        if !buffer.len().is_multiple_of(dtype.size()) {
            return Err(wrong(format!("b{i} has {} bytes, no whole number of {dtype}", buffer.len())));
        }
    }
    // Verified lanes are at most 64, so the sum of as many as fit memory does not overflow.
    let mut start = Vec::with_capacity(program.values.len());
    let mut lanes = 0;
    for (_, ty) in program.values.iter() {
        start.push(lanes);
        lanes += ty.lanes as usize;
    }
    let mut locals: Vec<Vec<u8>> = program.locals.iter().map(|(dtype, len)| vec![0; dtype.size() * len]).collect();
    let memory: Vec<&mut [u8]> =
        buffers.iter_mut().map(|b| &mut **b).chain(locals.iter_mut().map(Vec::as_mut_slice)).collect();
    let (lanes, registers) = (vec![0; lanes], Registers::default());
    let mut frame = Frame { program, memory, dims, lo, hi, fused, start, lanes, registers };
    match frame.region(&program.body) {
        Ok(()) => Ok(0),
        Err(Stop::Fail(status)) => Ok(status),
        Err(Stop::Error(e)) => Err(e),
    }
}

enum Stop {
    Fail(u32),
    Error(InterpError),
}

/// A lane is kept as in [`crate::scalar::Constant`]: integers and bools as the bits of an i64, floats by their bits.
type Lane = u64;

fn f32_of(lane: Lane) -> f32 {
    f32::from_bits(lane as u32)
}

fn lane_of(x: f32) -> Lane {
    Lane::from(x.to_bits())
}

fn load(dtype: DType, bytes: &[u8], element: usize) -> Lane {
    match dtype.class() {
        Class::Float if dtype == DType::F16 => semantics::load_i64(DType::U16, bytes, element) as u64,
        // Not through a float: the bits of a signalling NaN stay.
        Class::Float => semantics::load_i64(DType::U32, bytes, element) as u64,
        Class::Double => semantics::load_i64(DType::U64, bytes, element) as u64,
        Class::Bool | Class::Signed | Class::Unsigned | Class::Complex | Class::Str => {
            semantics::load_i64(dtype, bytes, element) as u64
        }
    }
}

/// The conversion of [`Op::Cast`].
fn cast(from: DType, to: DType, lane: Lane) -> Lane {
    let int = lane as i64;
    match (from.class(), to.class()) {
        (Class::Float, Class::Float) | (Class::Double, Class::Double) => lane,
        (Class::Float, Class::Double) => f64::from(f32_of(lane)).to_bits(),
        (Class::Double, Class::Float) => lane_of(f64::from_bits(lane) as f32),
        (Class::Float, _) => semantics::float_to_int(to, f64::from(f32_of(lane))) as u64,
        (Class::Double, _) => semantics::float_to_int(to, f64::from_bits(lane)) as u64,
        (Class::Unsigned, Class::Float) => lane_of(lane as f32),
        (_, Class::Float) => lane_of(int as f32),
        (Class::Unsigned, Class::Double) => (lane as f64).to_bits(),
        (_, Class::Double) => (int as f64).to_bits(),
        (_, Class::Bool) => Lane::from(lane != 0),
        _ => semantics::wrap(to, int) as u64,
    }
}

fn unary(op: UnaryOp, dtype: DType, a: Lane) -> Lane {
    match dtype.class() {
        Class::Float => lane_of(semantics::unary_f32(op, f32_of(a))),
        Class::Double => semantics::unary_f64(op, f64::from_bits(a)).to_bits(),
        // The verifier let only operations pass that are defined.
        _ => semantics::unary_int(op, dtype, a as i64).unwrap_or(0) as u64,
    }
}

fn binary(op: BinaryOp, dtype: DType, a: Lane, b: Lane) -> Lane {
    if op.is_comparison() {
        let truth = match dtype.class() {
            Class::Float => semantics::compare(op, f32_of(a), f32_of(b)),
            Class::Double => semantics::compare(op, f64::from_bits(a), f64::from_bits(b)),
            Class::Signed => semantics::compare(op, a as i64, b as i64),
            Class::Unsigned | Class::Bool | Class::Complex | Class::Str => semantics::compare(op, a, b),
        };
        return Lane::from(truth == Some(true));
    }
    match dtype.class() {
        Class::Float if op == BinaryOp::Pair => semantics::pair(f32_of(a), f32_of(b)) as u64,
        Class::Float => lane_of(semantics::binary_f32(op, f32_of(a), f32_of(b))),
        Class::Double => semantics::binary_f64(op, f64::from_bits(a), f64::from_bits(b)).to_bits(),
        _ => semantics::binary_int(op, dtype, a as i64, b as i64).unwrap_or(0) as u64,
    }
}

fn fma(fused: bool, dtype: DType, a: Lane, b: Lane, c: Lane) -> Lane {
    if dtype.class() == Class::Float {
        let (a, b, c) = (f32_of(a), f32_of(b), f32_of(c));
        lane_of(if fused { a.mul_add(b, c) } else { a * b + c })
    } else {
        let (a, b, c) = (f64::from_bits(a), f64::from_bits(b), f64::from_bits(c));
        (if fused { a.mul_add(b, c) } else { a * b + c }).to_bits()
    }
}

/// See [`Op::Scale`]. In f64 nothing is rounded, and no factor beyond the bounds changes what f32 makes of the product.
fn scale(a: Lane, n: Lane) -> Lane {
    let n = f64::from(f32_of(n)).floor();
    let factor = if n.is_infinite() { n.exp2() } else { n.clamp(-500.0, 500.0).exp2() };
    let a = f32_of(a);
    // The instruction prefers an infinite n to a quiet NaN.
    let ignored = a.is_nan() && a.to_bits() & 1 << 22 != 0 && n.is_infinite();
    lane_of(if ignored { factor } else { f64::from(a) * factor } as f32)
}

struct Frame<'a> {
    program: &'a VectorProgram,
    /// Buffers, then local memory.
    memory: Vec<&'a mut [u8]>,
    dims: &'a [i64],
    lo: i64,
    hi: i64,
    fused: bool,
    /// Where the lanes of each value begin.
    start: Vec<usize>,
    lanes: Vec<Lane>,
    registers: Registers,
}

impl Frame<'_> {
    fn ty(&self, id: ValueId) -> VectorType {
        self.program.values[id]
    }

    fn at(&self, id: ValueId) -> usize {
        self.start[id.index()]
    }

    fn scalar(&self, id: ValueId) -> Lane {
        self.lanes[self.at(id)]
    }

    fn copy(&mut self, to: ValueId, from: ValueId) {
        let (to, from, count) = (self.at(to), self.at(from), self.ty(from).lanes as usize);
        self.lanes.copy_within(from..from + count, to);
    }

    fn region(&mut self, body: &[Stmt]) -> Result<(), Stop> {
        body.iter().try_for_each(|stmt| self.stmt(stmt))
    }

    fn stmt(&mut self, stmt: &Stmt) -> Result<(), Stop> {
        match stmt {
            Stmt::Let(id, op) => self.op(stmt, *id, op),
            Stmt::Store(address, value) => {
                let lanes = self.ty(*value).lanes as usize;
                let dtype = self.program.element(address.buffer);
                let from = self.at(*value);
                for lane in 0..lanes {
                    let element = self.element(stmt, address, lane as i128)?;
                    let lane = self.lanes[from + lane];
                    let lane =
                        if dtype == DType::F16 { Lane::from(f16::from_f32(f32_of(lane)).to_bits()) } else { lane };
                    let begin = element * dtype.size();
                    self.memory[address.buffer][begin..begin + dtype.size()]
                        .copy_from_slice(&lane.to_le_bytes()[..dtype.size()]);
                }
                Ok(())
            }
            Stmt::Prefetch(..) => Ok(()),
            Stmt::Matrix(matrix) => self.matrix(stmt, matrix),
            Stmt::If { condition, then, otherwise } => {
                let holds = self.scalar(*condition) != 0;
                self.region(if holds { then } else { otherwise })
            }
            Stmt::Fail { condition, status } => {
                if self.scalar(*condition) != 0 {
                    return Err(Stop::Fail(*status));
                }
                Ok(())
            }
            Stmt::For(For { var, lo, hi, step, carried, body }) => {
                let mut at = self.scalar(*lo) as i64;
                let hi = self.scalar(*hi) as i64;
                for c in carried {
                    self.copy(c.inside, c.init);
                }
                // `next` may be another carried value's `inside`, so all are read before one is written.
                let mut moved: Vec<Lane> = Vec::new();
                while at < hi {
                    let var = self.at(*var);
                    self.lanes[var] = at as u64;
                    self.region(body)?;
                    moved.clear();
                    for c in carried {
                        let from = self.at(c.next);
                        moved.extend_from_slice(&self.lanes[from..from + self.ty(c.next).lanes as usize]);
                    }
                    let mut rest = moved.as_slice();
                    for c in carried {
                        let to = self.at(c.inside);
                        let (now, later) = rest.split_at(self.ty(c.inside).lanes as usize);
                        self.lanes[to..to + now.len()].copy_from_slice(now);
                        rest = later;
                    }
                    at = at.checked_add(*step).ok_or_else(|| {
                        Stop::Error(InterpError::LoopOverflow {
                            program: self.program.name.clone(),
                            statement: self.program.head(stmt).to_string(),
                        })
                    })?;
                }
                for c in carried {
                    self.copy(c.after, c.inside);
                }
                Ok(())
            }
        }
    }

    fn matrix(&mut self, stmt: &Stmt, matrix: &Matrix) -> Result<(), Stop> {
        match matrix {
            Matrix::Shape(shapes) => self.registers.shape(shapes),
            Matrix::Zero(register) => self.registers.zero(*register),
            Matrix::Multiply { product, sum, left, right } => self.registers.multiply(*product, *sum, *left, *right),
            Matrix::Load { to: register, from: address, stride }
            | Matrix::Store { from: register, to: address, stride } => {
                let shape = self.registers.shape_of(*register);
                let size = self.program.element(address.buffer).size();
                let bytes = usize::from(shape.row_bytes);
                for row in 0..usize::from(shape.rows) {
                    let distance = row as i128 * i128::from(*stride);
                    let first = self.element(stmt, address, distance)?;
                    self.element(stmt, address, distance + (bytes / size) as i128 - 1)?;
                    let memory = &mut self.memory[address.buffer][first * size..][..bytes];
                    for (element, there) in
                        self.registers.row(*register, row).iter_mut().zip(memory.chunks_exact_mut(4))
                    {
                        match matrix {
                            Matrix::Store { .. } => there.copy_from_slice(&element.to_le_bytes()),
                            _ => *element = semantics::load_i64(DType::U32, there, 0) as u32,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// The element `distance` after an address, which must lie in the buffer.
    fn element(&self, stmt: &Stmt, address: &Address, distance: i128) -> Result<usize, Stop> {
        let index = address.index.map_or(0, |id| self.scalar(id) as i64);
        let element = i128::from(index) + i128::from(address.offset) + distance;
        let len = self.memory[address.buffer].len() / self.program.element(address.buffer).size();
        match usize::try_from(element) {
            Ok(element) if element < len => Ok(element),
            _ => Err(Stop::Error(InterpError::OutOfBounds {
                program: self.program.name.clone(),
                statement: self.program.head(stmt).to_string(),
                buffer: address.buffer,
                element,
                len,
            })),
        }
    }

    fn op(&mut self, stmt: &Stmt, id: ValueId, op: &Op) -> Result<(), Stop> {
        let VectorType { dtype, lanes } = self.ty(id);
        let (to, count) = (self.at(id), lanes as usize);
        match op {
            Op::Const(c) => self.lanes[to..to + count].fill(c.bits),
            Op::Dim(n) => self.lanes[to] = self.dims[*n] as u64,
            Op::Lo => self.lanes[to] = self.lo as u64,
            Op::Hi => self.lanes[to] = self.hi as u64,
            Op::Load(a) => self.load_lanes(stmt, a, dtype, to, count, 1)?,
            Op::LoadWide(a) => {
                let narrow = self.program.element(a.buffer);
                self.load_lanes(stmt, a, narrow, to, count, 1)?;
                for lane in &mut self.lanes[to..to + count] {
                    let c = crate::Constant { dtype: narrow, bits: *lane };
                    *lane = match narrow {
                        DType::F16 => lane_of(f16::from_bits(*lane as u16).to_f32()),
                        _ => crate::Constant::int(DType::I32, c.as_i64().unwrap_or(0)).bits,
                    };
                }
            }
            Op::LoadStrided(a, stride) => self.load_lanes(stmt, a, dtype, to, count, *stride)?,
            Op::LoadSplat(a) => {
                self.load_lanes(stmt, a, dtype, to, 1, 0)?;
                let lane = self.lanes[to];
                self.lanes[to..to + count].fill(lane);
            }
            Op::Splat(a) => {
                let lane = self.scalar(*a);
                self.lanes[to..to + count].fill(lane);
            }
            Op::Pack(values) => {
                for (lane, v) in values.iter().enumerate() {
                    self.lanes[to + lane] = self.scalar(*v);
                }
            }
            Op::Column(values, lane) => {
                for (n, v) in values.iter().enumerate() {
                    self.lanes[to + n] = self.lanes[self.at(*v) + *lane as usize];
                }
            }
            Op::Extract(a, lane) => self.lanes[to] = self.lanes[self.at(*a) + *lane as usize],
            Op::Unary(op, a) => {
                let a = self.at(*a);
                for l in 0..count {
                    self.lanes[to + l] = unary(*op, dtype, self.lanes[a + l]);
                }
            }
            Op::Binary(op, a, b) => {
                let operands = self.ty(*a).dtype;
                let (a, b) = (self.at(*a), self.at(*b));
                for l in 0..count {
                    self.lanes[to + l] = binary(*op, operands, self.lanes[a + l], self.lanes[b + l]);
                }
            }
            Op::Fma(a, b, c) => {
                let pairs = self.ty(*a).dtype == DType::I32;
                let (a, b, c) = (self.at(*a), self.at(*b), self.at(*c));
                for l in 0..count {
                    let (a, b, c) = (self.lanes[a + l], self.lanes[b + l], self.lanes[c + l]);
                    self.lanes[to + l] = match pairs {
                        true => lane_of(semantics::dot2(a as i64, b as i64, f32_of(c))),
                        false => fma(self.fused, dtype, a, b, c),
                    };
                }
            }
            Op::Scale(a, n) => {
                let (a, n) = (self.at(*a), self.at(*n));
                for l in 0..count {
                    self.lanes[to + l] = scale(self.lanes[a + l], self.lanes[n + l]);
                }
            }
            Op::Select(a, b, c) => {
                let (a, b, c) = (self.at(*a), self.at(*b), self.at(*c));
                for l in 0..count {
                    self.lanes[to + l] = self.lanes[if self.lanes[a + l] != 0 { b + l } else { c + l }];
                }
            }
            Op::Cast(_, a) => {
                let from = self.ty(*a).dtype;
                let a = self.at(*a);
                for l in 0..count {
                    self.lanes[to + l] = cast(from, dtype, self.lanes[a + l]);
                }
            }
            Op::RoundHalf(a) => {
                let a = self.at(*a);
                for l in 0..count {
                    self.lanes[to + l] = lane_of(semantics::round_to(DType::F16, f32_of(self.lanes[a + l])));
                }
            }
            Op::Bitcast(_, a) => {
                let from = self.ty(*a);
                let a = self.at(*a);
                let mut bytes = Vec::with_capacity(from.dtype.size() * from.lanes as usize);
                for lane in &self.lanes[a..a + from.lanes as usize] {
                    bytes.extend_from_slice(&lane.to_le_bytes()[..from.dtype.size()]);
                }
                for l in 0..count {
                    self.lanes[to + l] = load(dtype, &bytes, l);
                }
            }
            Op::Fold(op, a) => {
                let from = self.ty(*a);
                let a = self.at(*a);
                let mut lanes = self.lanes[a..a + from.lanes as usize].to_vec();
                while lanes.len() > 1 {
                    let half = lanes.len() / 2;
                    lanes = (0..half).map(|l| binary(*op, dtype, lanes[l], lanes[l + half])).collect();
                }
                self.lanes[to] = lanes.first().copied().unwrap_or(0);
            }
        }
        Ok(())
    }

    fn load_lanes(
        &mut self,
        stmt: &Stmt,
        address: &Address,
        dtype: DType,
        to: usize,
        count: usize,
        stride: i64,
    ) -> Result<(), Stop> {
        for lane in 0..count {
            let element = self.element(stmt, address, lane as i128 * i128::from(stride))?;
            self.lanes[to + lane] = load(dtype, self.memory[address.buffer], element);
        }
        Ok(())
    }
}
