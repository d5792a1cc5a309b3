//! Control flow, operands and the dispatch over operations.
//!
//! Invariant: the program has been verified. A scalar integer or bool is in a general register, extended to 64 bits
//! as its type is signed or not; a float or vector is in a vector register, whatever is beyond its lanes undefined.
//! A mask is in a mask register (AVX-512), or a vector of lanes of `mask_bytes`, all ones or all zeros (AVX2).

use super::WideLevel;
use super::codes::{self, Row};
use super::machine::{Arg, Base, Draft, Inst, Kind, Machine, Place, Width, gpr};
use super::saturate::{Clipped, Late};
use crate::Error;
use iced_x86::{Code, OpKind};
use kiln_ir::vector::{Address, Cache, For, Op, Stmt, ValueId, VectorProgram, VectorType};
use kiln_ir::{BinaryOp, Constant, DType, UnaryOp};
use regalloc2::{Operand, RegClass, VReg};
use std::collections::{HashMap, HashSet};

/// Where a value is.
#[derive(Clone, Copy)]
pub(super) enum Value {
    Register(VReg),
    /// Made anew at each use.
    Const(Constant),
    /// Not loaded yet: all lanes from consecutive elements, or from one.
    Load(Address, bool),
    /// A dot product of bytes that is not computed yet: it may begin with the sum that it goes into.
    Dot(ValueId, ValueId),
    /// Not loaded yet: every second element, which a pair may take with those in between.
    Strided(Address),
    /// Rounded to the nearest even, which the conversion to integers that alone reads it does by itself.
    Rounded(ValueId),
    /// The lanes of a vector folded, which the vector that alone holds the result does along with its other lanes.
    Fold(BinaryOp, ValueId),
}

pub(super) struct Emitter<'a> {
    pub program: &'a VectorProgram,
    pub level: WideLevel,
    drafts: Vec<Draft>,
    order: Vec<usize>,
    current: usize,
    registers: usize,
    values: Vec<Option<Value>>,
    /// How often each value is read.
    pub uses: Vec<u32>,
    /// How each value is computed, where it is.
    pub made: Vec<Option<&'a Op>>,
    /// Values that a conversion from f32 to i32 reads.
    to_integers: HashSet<ValueId>,
    /// Comparisons that raise floats to a bound.
    bounded: HashSet<ValueId>,
    /// Values that are stored as bytes with saturation.
    pub clips: HashMap<ValueId, Clipped>,
    /// Values that are not computed for the sake of that.
    pub through: HashSet<ValueId>,
    /// Stores that come later, together.
    pub late: Vec<Late>,
    /// Values that become lanes of a vector.
    packed: HashSet<ValueId>,
    /// Values that may still be [`Value::Load`], [`Value::Strided`] or [`Value::Dot`].
    pending: Vec<ValueId>,
    /// The even and the odd bytes of vectors as 16-bit lanes, with whether they are signed; of this block.
    pub halves: HashMap<(ValueId, bool), [VReg; 2]>,
    /// The lanes of vectors that are transposed; of this block.
    pub columns: HashMap<&'a [ValueId], Vec<VReg>>,
    /// AVX2: bytes of the lanes of each mask.
    pub mask_bytes: Vec<u32>,
    /// Of buffers, then of local memory.
    pub bases: Vec<Base>,
    /// Distances between rows in registers; of this block.
    pub strides: HashMap<i64, VReg>,
    /// Whether there are statements about matrix registers.
    matrices: bool,
    dims: VReg,
    lo: VReg,
    hi: VReg,
    pool: Vec<u8>,
    pooled: HashMap<Vec<u8>, usize>,
    stmt: Option<&'a Stmt>,
}

/// The code of a program, and its constants.
pub(super) fn function(program: &VectorProgram, level: WideLevel) -> Result<(Machine, Vec<u8>), Error> {
    let none = VReg::new(0, RegClass::Int);
    let mut emitter = Emitter {
        program,
        level,
        drafts: Vec::new(),
        order: Vec::new(),
        current: 0,
        registers: 0,
        values: vec![None; program.values.len()],
        uses: vec![0; program.values.len()],
        made: vec![None; program.values.len()],
        to_integers: HashSet::new(),
        bounded: HashSet::new(),
        clips: HashMap::new(),
        through: HashSet::new(),
        late: Vec::new(),
        packed: HashSet::new(),
        pending: Vec::new(),
        halves: HashMap::new(),
        columns: HashMap::new(),
        mask_bytes: vec![0; program.values.len()],
        bases: Vec::new(),
        strides: HashMap::new(),
        matrices: false,
        dims: none,
        lo: none,
        hi: none,
        pool: Vec::new(),
        pooled: HashMap::new(),
        stmt: None,
    };
    emitter.count(&program.body);
    emitter.settle_clips();
    let entry = emitter.block();
    emitter.start(entry);
    let parameters = [(); 4].map(|()| emitter.general());
    let mut inst = Inst::control(Kind::Entry, Code::INVALID);
    // rdi, rsi, rdx, rcx.
    inst.fixed = parameters.iter().zip([7, 6, 2, 1]).map(|(&v, r)| Operand::reg_fixed_def(v, gpr(r))).collect();
    emitter.push(inst);
    let [args, dims, lo, hi] = parameters;
    (emitter.dims, emitter.lo, emitter.hi) = (dims, lo, hi);
    for i in 0..program.buffers.len() {
        let base = emitter.word(args, i)?;
        emitter.bases.push(Base::Register(base));
    }
    let mut local_bytes = 0usize;
    for (dtype, len) in &program.locals {
        emitter.bases.push(Base::Local(local_bytes));
        local_bytes = (local_bytes + dtype.size() * len).next_multiple_of(64);
    }
    emitter.region(&program.body)?;
    emitter.leave(0);
    let words = level.bytes() as usize / 8;
    if emitter.registers >= VReg::MAX {
        return Err(Error::Codegen { program: program.name.clone(), message: "too many values".into() });
    }
    let mut machine = Machine::new(emitter.drafts, &emitter.order, emitter.registers, words);
    machine.local_bytes = local_bytes;
    Ok((machine, emitter.pool))
}

impl<'a> Emitter<'a> {
    pub fn unsupported(&self, message: impl Into<String>) -> Error {
        Error::Unsupported {
            program: self.program.name.clone(),
            statement: self.stmt.map(|s| self.program.head(s).to_string()).unwrap_or_default(),
            message: message.into(),
        }
    }

    pub fn ty(&self, id: ValueId) -> VectorType {
        self.program.values[id]
    }

    pub fn wide(&self) -> bool {
        self.level.has_masks()
    }

    fn count(&mut self, body: &'a [Stmt]) {
        for stmt in body {
            if let Stmt::Let(id, op) = stmt {
                self.made[id.index()] = Some(op);
                if let Op::Cast(DType::I32, a) = op
                    && self.program.values[*a].dtype == DType::F32
                {
                    self.to_integers.insert(*a);
                }
                if let Op::Pack(values) = op {
                    self.packed.extend(values);
                }
                if let Op::Select(above, a, b) = op
                    && self.is_greatest(*above, *a, *b)
                {
                    self.bounded.insert(*above);
                }
            }
            let mut used = |id: ValueId| self.uses[id.index()] += 1;
            match stmt {
                Stmt::Let(_, op) => op.for_each_operand(used),
                Stmt::Store(address, value) => {
                    address.index.iter().for_each(|&i| used(i));
                    used(*value);
                    if let Some(clipped) = self.clipped(self.program.element(address.buffer), *value) {
                        self.clips.insert(*value, clipped);
                    }
                }
                Stmt::Prefetch(_, address) => address.index.iter().for_each(|&i| used(i)),
                Stmt::Matrix(matrix) => {
                    matrix.address().and_then(|a| a.index).into_iter().for_each(used);
                    self.matrices = true;
                }
                Stmt::Fail { condition, .. } => used(*condition),
                Stmt::If { condition, then, otherwise } => {
                    used(*condition);
                    self.count(then);
                    self.count(otherwise);
                }
                Stmt::For(f) => {
                    used(f.lo);
                    used(f.hi);
                    for c in &f.carried {
                        used(c.init);
                        used(c.next);
                    }
                    self.count(&f.body);
                }
            }
        }
    }

    // Registers, blocks and instructions.

    fn fresh(&mut self, class: RegClass) -> VReg {
        self.registers += 1;
        // The number is checked at the end.
        VReg::new((self.registers - 1).min(VReg::MAX), class)
    }

    pub fn general(&mut self) -> VReg {
        self.fresh(RegClass::Int)
    }

    pub fn vector(&mut self) -> VReg {
        self.fresh(RegClass::Float)
    }

    /// A register for a value of the type.
    fn register_for(&mut self, ty: VectorType) -> VReg {
        match (ty.dtype, ty.lanes) {
            (DType::F32 | DType::F64, _) => self.vector(),
            (_, 1) => self.general(),
            (DType::Bool, _) => self.mask(),
            _ => self.vector(),
        }
    }

    /// A register for a mask of lanes.
    pub fn mask(&mut self) -> VReg {
        self.fresh(if self.wide() { RegClass::Vector } else { RegClass::Float })
    }

    fn block(&mut self) -> usize {
        self.drafts.push(Draft::default());
        self.drafts.len() - 1
    }

    fn start(&mut self, block: usize) {
        self.order.push(block);
        self.current = block;
        self.halves.clear();
        self.columns.clear();
        self.strides.clear();
    }

    pub fn push(&mut self, inst: Inst) {
        self.drafts[self.current].insts.push(inst);
    }

    pub fn ins(&mut self, code: Code, args: &[Arg]) {
        self.push(Inst::new(code, args));
    }

    fn jump(&mut self, block: usize, values: Vec<VReg>) {
        self.push(Inst::control(Kind::Jump, Code::INVALID));
        self.drafts[self.current].next = vec![(block, values)];
    }

    fn branch(&mut self, code: Code, holds: usize, fails: usize) {
        self.push(Inst::control(Kind::Branch, code));
        self.drafts[self.current].next = vec![(holds, vec![]), (fails, vec![])];
    }

    fn leave(&mut self, status: u32) {
        if self.matrices {
            self.ins(Code::VEX_Tilerelease, &[]);
        }
        let result = self.general();
        self.ins(
            Code::Mov_r32_imm32,
            &[Arg::Def(result, Width::D), Arg::Immediate(i64::from(status as i32), OpKind::Immediate32)],
        );
        let mut inst = Inst::control(Kind::Return, Code::INVALID);
        inst.fixed = vec![Operand::reg_fixed_use(result, gpr(0))];
        self.push(inst);
    }

    /// An element of an array of 8-byte words.
    fn word(&mut self, array: VReg, index: usize) -> Result<VReg, Error> {
        let displacement = i32::try_from(index * 8).map_err(|_| self.unsupported("too many arguments"))?;
        let to = self.general();
        let place = Place { base: Base::Register(array), index: None, displacement, repeated: false };
        self.ins(Code::Mov_r64_rm64, &[Arg::Def(to, Width::Q), Arg::Memory(place)]);
        Ok(to)
    }

    // Statements.

    fn region(&mut self, body: &'a [Stmt]) -> Result<(), Error> {
        for stmt in body {
            self.stmt = Some(stmt);
            self.stmt(stmt)?;
        }
        self.store_late()
    }

    /// Loads what has been put off, before memory may change or control goes elsewhere.
    pub fn settle(&mut self) -> Result<(), Error> {
        for id in std::mem::take(&mut self.pending) {
            let waits = matches!(self.values[id.index()], Some(Value::Load(..) | Value::Strided(_) | Value::Dot(..)));
            if waits && self.uses[id.index()] > 0 {
                self.vector_of(id)?;
            }
        }
        Ok(())
    }

    pub fn define(&mut self, id: ValueId, value: VReg) {
        self.values[id.index()] = Some(Value::Register(value));
    }

    fn truth(&mut self, condition: ValueId) -> Result<(), Error> {
        let c = self.integer(condition)?;
        self.ins(Code::Test_rm32_r32, &[Arg::Use(c, Width::D), Arg::Use(c, Width::D)]);
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt) -> Result<(), Error> {
        match stmt {
            Stmt::Let(..) | Stmt::Prefetch(..) => {}
            Stmt::Store(address, value) if self.put_off(address, *value)? => return Ok(()),
            Stmt::Store(..) | Stmt::Matrix(_) | Stmt::Fail { .. } | Stmt::If { .. } | Stmt::For(_) => {
                self.store_late()?
            }
        }
        match stmt {
            Stmt::Let(id, op) => self.assign(*id, op),
            Stmt::Store(address, value) => {
                // The value may be a load, too.
                let value = self.stored(*value)?;
                self.settle()?;
                self.store(address, value)
            }
            Stmt::Prefetch(cache, address) => {
                let place = Arg::Memory(self.place(address, 0)?);
                let code = match cache {
                    Cache::First => Code::Prefetcht0_m8,
                    Cache::Second => Code::Prefetcht1_m8,
                };
                self.ins(code, &[place]);
                Ok(())
            }
            Stmt::Matrix(matrix) => self.matrix(matrix),
            Stmt::Fail { condition, status } => {
                self.truth(*condition)?;
                let (failed, on) = (self.block(), self.block());
                self.branch(Code::Jne_rel32_64, failed, on);
                self.drafts[failed].cold = true;
                self.start(failed);
                self.leave(*status);
                self.start(on);
                Ok(())
            }
            Stmt::If { condition, then, otherwise } => {
                self.settle()?;
                self.truth(*condition)?;
                let (holds, fails, after) = (self.block(), self.block(), self.block());
                self.branch(Code::Jne_rel32_64, holds, fails);
                for (block, body) in [(holds, then), (fails, otherwise)] {
                    self.start(block);
                    self.region(body)?;
                    self.jump(after, vec![]);
                    self.pending.clear();
                }
                self.start(after);
                Ok(())
            }
            Stmt::For(f) => {
                self.settle()?;
                self.stmt_for(f)
            }
        }
    }

    /// The loop's condition is at its end; before the first iteration it is only tested where it is not known.
    fn stmt_for(&mut self, f: &'a For) -> Result<(), Error> {
        let known = match (self.constant_of(f.lo), self.constant_of(f.hi)) {
            (Some(lo), Some(hi)) => Some((lo.bits as i64) < hi.bits as i64),
            _ => None,
        };
        for c in &f.carried {
            let lanes = self.ty(c.inside).lanes;
            let bytes = (32 / lanes).clamp(1, 8);
            self.mask_bytes[c.inside.index()] = bytes;
            self.mask_bytes[c.after.index()] = bytes;
        }
        let after = self.block();
        let afters: Vec<VReg> = f.carried.iter().map(|c| self.register_for(self.ty(c.after))).collect();
        let (enter, skip) = (self.block(), self.block());
        match known {
            Some(true) => self.jump(enter, vec![]),
            Some(false) => self.jump(skip, vec![]),
            None => {
                let (lo, hi) = (self.integer(f.lo)?, self.integer_arg(f.hi)?);
                self.compare(lo, hi);
                self.branch(Code::Jl_rel32_64, enter, skip);
            }
        }
        if known != Some(true) {
            self.drafts[skip].cold = known.is_none();
            self.start(skip);
            let inits = self.passed(f.carried.iter().map(|c| (c.init, c.inside)))?;
            self.jump(after, inits);
        }
        if known != Some(false) {
            self.start(enter);
            let body = self.block();
            let var = self.general();
            self.drafts[body].params.push(var);
            self.define(f.var, var);
            let mut inits = vec![self.integer(f.lo)?];
            inits.extend(self.passed(f.carried.iter().map(|c| (c.init, c.inside)))?);
            self.jump(body, inits);
            for c in &f.carried {
                let inside = self.register_for(self.ty(c.inside));
                self.drafts[body].params.push(inside);
                self.define(c.inside, inside);
            }
            self.start(body);
            self.region(&f.body)?;
            let nexts = self.passed(f.carried.iter().map(|c| (c.next, c.inside)))?;
            self.pending.clear();
            let (latch, exit) = (self.block(), self.block());
            let hi = self.integer_arg(f.hi)?;
            let next = self.add_constant(var, f.step);
            self.compare(next, hi);
            self.branch(Code::Jl_rel32_64, latch, exit);
            self.start(latch);
            let mut passed = vec![next];
            passed.extend(&nexts);
            self.jump(body, passed);
            self.start(exit);
            self.jump(after, nexts);
        }
        for (c, &v) in f.carried.iter().zip(&afters) {
            self.define(c.after, v);
        }
        self.drafts[after].params = afters;
        self.start(after);
        Ok(())
    }

    /// The registers of values that a loop takes under the names of others.
    fn passed(&mut self, values: impl Iterator<Item = (ValueId, ValueId)>) -> Result<Vec<VReg>, Error> {
        let mut registers = Vec::new();
        for (value, inside) in values {
            let ty = self.ty(value);
            registers.push(match (ty.dtype, ty.lanes) {
                (DType::F32 | DType::F64, _) => self.vector_of(value)?,
                (_, 1) => self.integer(value)?,
                (DType::Bool, _) => self.mask_as(value, self.mask_bytes[inside.index()])?,
                _ => self.vector_of(value)?,
            });
        }
        Ok(registers)
    }

    // Operands.

    pub fn constant_of(&self, id: ValueId) -> Option<Constant> {
        match self.values[id.index()] {
            Some(Value::Const(c)) => Some(c),
            _ => None,
        }
    }

    /// A scalar integer or bool in a register.
    pub fn integer(&mut self, id: ValueId) -> Result<VReg, Error> {
        match self.values[id.index()] {
            Some(Value::Register(v)) => Ok(v),
            Some(Value::Const(c)) => Ok(self.number(c.bits as i64)),
            Some(Value::Fold(op, a)) => {
                let v = self.fold(op, a)?;
                self.define(id, v);
                Ok(v)
            }
            Some(Value::Load(..) | Value::Strided(_) | Value::Dot(..) | Value::Rounded(_)) | None => {
                Err(self.unsupported(format!("{id} is not in a register")))
            }
        }
    }

    /// An integer in a new register.
    pub fn number(&mut self, value: i64) -> VReg {
        let to = self.general();
        if let Ok(value) = u32::try_from(value) {
            self.ins(
                Code::Mov_r32_imm32,
                &[Arg::Def(to, Width::D), Arg::Immediate(i64::from(value as i32), OpKind::Immediate32)],
            );
        } else if i32::try_from(value).is_ok() {
            self.ins(Code::Mov_rm64_imm32, &[Arg::Def(to, Width::Q), Arg::Immediate(value, OpKind::Immediate32to64)]);
        } else {
            self.ins(Code::Mov_r64_imm64, &[Arg::Def(to, Width::Q), Arg::Immediate(value, OpKind::Immediate64)]);
        }
        to
    }

    /// A scalar integer or bool, as an immediate where it is a constant of 32 bits.
    pub fn integer_arg(&mut self, id: ValueId) -> Result<Arg, Error> {
        if let Some(c) = self.constant_of(id)
            && i32::try_from(c.bits as i64).is_ok()
        {
            return Ok(Arg::Immediate(c.bits as i64, OpKind::Immediate32to64));
        }
        Ok(Arg::Use(self.integer(id)?, Width::Q))
    }

    /// Puts bytes among the constants, at a multiple of their number (a power of two).
    pub fn pooled(&mut self, bytes: &[u8]) -> Base {
        if let Some(&at) = self.pooled.get(bytes) {
            return Base::Pool(at);
        }
        let at = self.pool.len().next_multiple_of(bytes.len());
        self.pool.resize(at, 0);
        self.pool.extend_from_slice(bytes);
        self.pooled.insert(bytes.to_vec(), at);
        Base::Pool(at)
    }

    /// A constant in every lane as the memory operand of an instruction.
    pub fn repeated(&mut self, element: &[u8], width: Width, repeats: u32) -> Arg {
        let one = self.wide() && repeats as usize == element.len() * 8;
        let bytes = if one { element.to_vec() } else { element.repeat(width_bytes(width) / element.len()) };
        let base = self.pooled(&bytes);
        Arg::Memory(Place { base, index: None, displacement: 0, repeated: one })
    }

    /// A constant in every lane of a new register.
    pub fn filled(&mut self, element: &[u8], width: Width) -> Result<VReg, Error> {
        let to = self.vector();
        if element.iter().all(|&b| b == 0) {
            let code = self.code(codes::VXORPS, Width::X)?;
            self.push(Inst { kind: Kind::Zero, ..Inst::new(code, &[Arg::Def(to, Width::X)]) });
            return Ok(to);
        }
        if self.wide() && element.len() >= 4 {
            let row = if element.len() == 4 { codes::VBROADCASTSS } else { codes::VPBROADCASTQ };
            let base = self.pooled(element);
            let place = Place { base, index: None, displacement: 0, repeated: false };
            let code = self.code(row, width)?;
            self.ins(code, &[Arg::Def(to, width), Arg::Memory(place)]);
        } else {
            let place = self.repeated(element, width, 0);
            let code = self.code(codes::VMOVUPS, width)?;
            self.ins(code, &[Arg::Def(to, width), place]);
        }
        Ok(to)
    }

    /// The bytes of a constant as an element.
    pub fn element(c: Constant) -> Vec<u8> {
        let mut bytes = Vec::new();
        c.store(&mut bytes);
        bytes
    }

    /// A float or a vector (but a mask) in a register.
    pub fn vector_of(&mut self, id: ValueId) -> Result<VReg, Error> {
        match self.values[id.index()] {
            Some(Value::Register(v)) => Ok(v),
            Some(Value::Const(c)) => {
                let width = self.width(self.ty(id))?;
                self.filled(&Self::element(c), width)
            }
            Some(Value::Load(address, one)) => {
                let v = self.load(self.ty(id), &address, one)?;
                self.define(id, v);
                Ok(v)
            }
            Some(Value::Strided(address)) => {
                let v = self.load_strided(self.ty(id), &address, 2)?;
                self.define(id, v);
                Ok(v)
            }
            Some(Value::Dot(a, b)) => {
                let zero = self.filled(&[0], self.width(self.ty(id))?)?;
                let v = self.dot_onto(zero, a, b)?;
                self.define(id, v);
                Ok(v)
            }
            Some(Value::Rounded(a)) => {
                let v = self.op_unary(id, self.ty(id), UnaryOp::Round, a)?;
                self.define(id, v);
                Ok(v)
            }
            Some(Value::Fold(op, a)) => {
                let v = self.fold(op, a)?;
                self.define(id, v);
                Ok(v)
            }
            None => Err(self.unsupported(format!("{id} has no code"))),
        }
    }

    /// Where a value is, if it has been come to.
    pub fn value_of(&self, id: ValueId) -> Option<Value> {
        self.values[id.index()]
    }

    /// How often a value is still read.
    pub fn readers(&self, id: ValueId) -> u32 {
        self.uses[id.index()]
    }

    /// Notes that a value's only reader does without it.
    pub fn forget(&mut self, id: ValueId) {
        self.uses[id.index()] = 0;
    }

    /// What is rounded, where the value's only reader rounds it.
    pub fn take_rounded(&self, id: ValueId) -> Option<ValueId> {
        match self.values[id.index()] {
            Some(Value::Rounded(a)) => Some(a),
            _ => None,
        }
    }

    /// The operation and the vectors whose folds, used only here, these values are; nothing where they are not folded alike.
    pub fn take_folds(&mut self, values: &[ValueId]) -> Option<(BinaryOp, Vec<ValueId>)> {
        let fold = |&id: &ValueId| match self.values[id.index()] {
            Some(Value::Fold(op, a)) => Some((op, a)),
            _ => None,
        };
        let folds: Vec<(BinaryOp, ValueId)> = values.iter().map(fold).collect::<Option<_>>()?;
        let &(op, first) = folds.first()?;
        let alike = folds.iter().all(|&(other, a)| other == op && self.ty(a) == self.ty(first));
        alike.then(|| (op, folds.into_iter().map(|(_, a)| a).collect()))
    }

    /// Whether both are one value, or equal constants.
    fn same(&self, a: ValueId, b: ValueId) -> bool {
        let constant = |id: ValueId| match self.made[id.index()] {
            Some(Op::Const(c)) => Some(*c),
            _ => None,
        };
        a == b || constant(a).is_some() && constant(a) == constant(b)
    }

    /// Whether the choice of vectors by the condition is that of `a` where it is greater than `b`.
    pub fn is_greatest(&self, condition: ValueId, a: ValueId, b: ValueId) -> bool {
        let ty = self.ty(a);
        let Some(Op::Binary(BinaryOp::Lt, low, high)) = self.made[condition.index()] else { return false };
        ty.dtype == DType::F32 && !ty.is_scalar() && self.same(*low, b) && self.same(*high, a)
    }

    /// Whether the condition is only there for such a choice, which is one instruction.
    pub fn is_bounded(&self, condition: ValueId) -> bool {
        self.bounded.contains(&condition) && self.uses[condition.index()] == 1
    }

    /// Whether a float is surely no NaN: what a choice raised to a bound, and what becomes of that.
    pub fn is_number(&self, id: ValueId) -> bool {
        let bound = |id: ValueId| matches!(self.made[id.index()], Some(Op::Const(c)) if !c.as_f64().is_nan());
        match self.made[id.index()] {
            Some(Op::Select(above, a, b)) => self.is_greatest(*above, *a, *b) && bound(*b),
            Some(Op::Binary(BinaryOp::Min | BinaryOp::Max, a, b)) => {
                bound(*a) && self.is_number(*b) || bound(*b) && self.is_number(*a)
            }
            Some(_) | None => false,
        }
    }

    /// Whether a float is surely below 2^31, or a NaN: clamped to a constant.
    pub fn is_below_integers(&self, id: ValueId) -> bool {
        let small = |id: ValueId| self.constant_of(id).is_some_and(|c| c.as_f64() < 2_147_483_648.0);
        match self.made[id.index()] {
            Some(Op::Binary(BinaryOp::Min, a, b)) => small(*a) || small(*b),
            Some(Op::Binary(BinaryOp::Max, a, b)) => {
                small(*a) && self.is_below_integers(*b) || small(*b) && self.is_below_integers(*a)
            }
            Some(_) | None => false,
        }
    }

    /// The factors of a dot product that is computed for one use only, which is this.
    pub fn take_dot(&mut self, id: ValueId) -> Option<(ValueId, ValueId)> {
        match self.values[id.index()] {
            Some(Value::Dot(a, b)) if self.uses[id.index()] == 1 => {
                self.uses[id.index()] = 0;
                Some((a, b))
            }
            _ => None,
        }
    }

    /// Whether [`Self::operand`] would be in memory.
    pub fn in_memory(&self, id: ValueId, row: Row) -> bool {
        match self.values[id.index()] {
            Some(Value::Const(c)) => c.bits != 0 || self.wide(),
            Some(Value::Load(_, one)) => self.uses[id.index()] == 1 && self.foldable(self.ty(id), one, row),
            Some(Value::Register(_) | Value::Strided(_) | Value::Dot(..) | Value::Rounded(_) | Value::Fold(..))
            | None => false,
        }
    }

    fn foldable(&self, ty: VectorType, one: bool, row: Row) -> bool {
        if one || ty.is_scalar() {
            self.wide() && row.repeats as usize == ty.dtype.size() * 8
        } else {
            ty.dtype.size() * ty.lanes as usize >= 16
        }
    }

    /// The address of a value that is loaded for one use only, which is this.
    pub fn take_load(&mut self, id: ValueId) -> Option<Address> {
        match self.values[id.index()] {
            Some(Value::Load(address, _)) if self.uses[id.index()] == 1 => {
                self.uses[id.index()] = 0;
                Some(address)
            }
            _ => None,
        }
    }

    /// A float or a vector as the last operand of an instruction: in memory where it is a constant, or a load that
    /// is used only here.
    pub fn operand(&mut self, id: ValueId, row: Row) -> Result<Arg, Error> {
        let ty = self.ty(id);
        let width = self.width(ty)?;
        match self.values[id.index()] {
            Some(Value::Const(c)) if self.in_memory(id, row) => {
                Ok(self.repeated(&Self::element(c), width, row.repeats))
            }
            Some(Value::Load(address, one)) if self.in_memory(id, row) => {
                self.uses[id.index()] = 0;
                let place = self.place(&address, 0)?;
                Ok(Arg::Memory(Place { repeated: one || ty.is_scalar(), ..place }))
            }
            _ => Ok(Arg::Use(self.vector_of(id)?, width)),
        }
    }

    // Vector instructions.

    pub fn width(&self, ty: VectorType) -> Result<Width, Error> {
        let size = if ty.dtype == DType::Bool { 1 } else { ty.dtype.size() };
        match size * ty.lanes as usize {
            0..=16 => Ok(Width::X),
            32 => Ok(Width::Y),
            64 if self.wide() => Ok(Width::Z),
            bytes => Err(self.unsupported(format!("{ty}: vectors of {bytes} bytes at this level"))),
        }
    }

    pub fn code(&self, row: Row, width: Width) -> Result<Code, Error> {
        let n = width as usize - Width::X as usize;
        let code = if self.wide() { row.evex.get(n) } else { row.vex.get(n) };
        match code {
            Some(&code) if code != Code::INVALID => Ok(code),
            _ => Err(self.unsupported("the instruction set has no such operation")),
        }
    }

    /// Whether the level has the instruction at a width.
    pub fn has(&self, row: Row, width: Width) -> bool {
        self.code(row, width).is_ok()
    }

    pub fn unary(&mut self, row: Row, width: Width, a: Arg) -> Result<VReg, Error> {
        let (code, to) = (self.code(row, width)?, self.vector());
        self.ins(code, &[Arg::Def(to, width), a]);
        Ok(to)
    }

    pub fn unary_with(&mut self, row: Row, width: Width, a: Arg, immediate: u8) -> Result<VReg, Error> {
        let (code, to) = (self.code(row, width)?, self.vector());
        self.ins(code, &[Arg::Def(to, width), a, imm8(immediate)]);
        Ok(to)
    }

    pub fn binary(&mut self, row: Row, width: Width, a: VReg, b: Arg) -> Result<VReg, Error> {
        let (code, to) = (self.code(row, width)?, self.vector());
        self.ins(code, &[Arg::Def(to, width), Arg::Use(a, width), b]);
        Ok(to)
    }

    pub fn binary_with(&mut self, row: Row, width: Width, a: VReg, b: Arg, immediate: u8) -> Result<VReg, Error> {
        let (code, to) = (self.code(row, width)?, self.vector());
        self.ins(code, &[Arg::Def(to, width), Arg::Use(a, width), b, imm8(immediate)]);
        Ok(to)
    }

    // Operations.

    fn assign(&mut self, id: ValueId, op: &'a Op) -> Result<(), Error> {
        if self.through.contains(&id) {
            return Ok(());
        }
        if let Op::Load(a) | Op::LoadWide(a) | Op::LoadSplat(a) | Op::LoadStrided(a, _) = op {
            self.before_load(a.buffer)?;
        }
        let ty = self.ty(id);
        let floats = ty.dtype.is_float();
        let in_vector = floats || !ty.is_scalar();
        let value = match op {
            Op::Const(c) => {
                self.values[id.index()] = Some(Value::Const(*c));
                self.mask_bytes[id.index()] = (32 / ty.lanes).clamp(1, 8);
                return Ok(());
            }
            Op::Dim(n) => self.word(self.dims, *n)?,
            Op::Lo => self.lo,
            Op::Hi => self.hi,
            Op::Load(a) | Op::LoadSplat(a) if in_vector && ty.dtype != DType::Bool => {
                let one = matches!(op, Op::LoadSplat(_));
                self.values[id.index()] = Some(Value::Load(*a, one));
                self.pending.push(id);
                return Ok(());
            }
            Op::Load(a) | Op::LoadSplat(a) if ty.is_scalar() => self.load_integer(ty.dtype, a, 0)?,
            Op::Load(_) | Op::LoadSplat(_) => return Err(self.unsupported("a mask in memory")),
            Op::LoadWide(a) => self.load_wide(ty, a)?,
            Op::LoadStrided(a, 2) if self.level.has_pairs() && ty.dtype == DType::F32 && !ty.is_scalar() => {
                self.values[id.index()] = Some(Value::Strided(*a));
                self.pending.push(id);
                return Ok(());
            }
            Op::LoadStrided(a, stride) => self.load_strided(ty, a, *stride)?,
            Op::Splat(a) => self.splat(id, ty, *a)?,
            Op::Pack(values) => self.pack_values(id, ty, values)?,
            Op::Column(vectors, lane) => self.column(ty, vectors, *lane)?,
            Op::Extract(a, lane) => self.extract_value(*a, *lane)?,
            Op::Unary(UnaryOp::Round, a)
                if !ty.is_scalar() && self.uses[id.index()] == 1 && self.to_integers.contains(&id) =>
            {
                self.values[id.index()] = Some(Value::Rounded(*a));
                return Ok(());
            }
            Op::Unary(op, a) => self.op_unary(id, ty, *op, *a)?,
            Op::Binary(BinaryOp::Dot4, a, b) if in_vector && self.level.has_dots() => {
                self.values[id.index()] = Some(Value::Dot(*a, *b));
                self.pending.push(id);
                return Ok(());
            }
            Op::Binary(BinaryOp::Dot4, a, b) if in_vector && self.has_small_bytes(*a) => self.dot_of_small(*a, *b)?,
            Op::Binary(BinaryOp::Dot4, a, b) if in_vector => self.dot_of_halves(*a, *b)?,
            Op::Binary(BinaryOp::Pair, a, b) => self.pair(self.ty(*a), *a, *b)?,
            Op::Binary(BinaryOp::Lt, ..) if self.is_bounded(id) => return Ok(()),
            Op::Binary(op, a, b) => self.op_binary(id, *op, *a, *b)?,
            Op::Fma(a, b, c) if self.ty(*a).dtype == DType::I32 => self.dot_of_pairs(ty, *a, *b, *c)?,
            Op::Fma(a, b, c) => self.fma(ty, *a, *b, *c)?,
            Op::Scale(a, n) => self.scale(ty, *a, *n)?,
            Op::Select(c, a, b) if self.is_bounded(*c) => {
                let first = self.vector_of(*a)?;
                let bound = self.operand(*b, codes::VMAXPS)?;
                // The second operand where either is a NaN, and of zeros.
                self.binary(codes::VMAXPS, self.width(ty)?, first, bound)?
            }
            Op::Select(c, a, b) => self.select(id, ty, *c, *a, *b)?,
            Op::Cast(_, a) => self.cast(id, ty, *a)?,
            Op::RoundHalf(a) => self.round_half(ty, *a)?,
            Op::Bitcast(_, a) => self.bitcast(ty, *a)?,
            Op::Fold(op, a)
                if matches!(ty.dtype, DType::F32 | DType::I32)
                    && self.uses[id.index()] == 1
                    && self.packed.contains(&id) =>
            {
                self.values[id.index()] = Some(Value::Fold(*op, *a));
                return Ok(());
            }
            Op::Fold(op, a) => self.fold(*op, *a)?,
        };
        self.define(id, value);
        Ok(())
    }
}

/// Bytes of a vector register at a width.
pub(super) fn width_bytes(width: Width) -> usize {
    match width {
        Width::B | Width::W | Width::D | Width::Q | Width::K | Width::X => 16,
        Width::Y => 32,
        Width::Z => 64,
    }
}

pub(super) fn imm8(value: u8) -> Arg {
    Arg::Immediate(i64::from(value), OpKind::Immediate8)
}
