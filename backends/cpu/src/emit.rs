//! Control flow and the dispatch over operations.
//!
//! Invariant: the program has been verified, so every operand has been given its code before its use.

use crate::{Error, Target};
use cranelift_codegen::entity::EntityRef;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, BlockArg, Function, InstBuilder, MemFlagsData, Signature, StackSlotData, StackSlotKind, Type,
    UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use kiln_ir::vector::{For, Op, Stmt, ValueId, VectorProgram, VectorType};
use kiln_ir::{Class, Constant, DType};
use std::collections::HashMap;

/// The code of a program before Cranelift's passes.
pub(crate) fn function(program: &VectorProgram, target: Target, isa: &dyn TargetIsa) -> Result<Function, Error> {
    let mut signature = Signature::new(CallConv::SystemV);
    // args, dims, lo, hi, scratch.
    signature.params.extend([AbiParam::new(types::I64); 5]);
    signature.returns.push(AbiParam::new(types::I32));
    let mut function = Function::with_name_signature(UserFuncName::user(0, 0), signature);
    let mut context = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut function, &mut context);
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let params = builder.block_params(entry).to_vec();
    let [args, dims, lo, hi, _scratch] = params[..] else {
        return Err(Error::Codegen { program: program.name.clone(), message: "the signature is not ours".into() });
    };
    let mut emitter = Emitter {
        program,
        target,
        builder,
        values: vec![Value::new(0); program.values.len()],
        origins: vec![Origin::Other; program.values.len()],
        bases: Vec::new(),
        dims,
        lo,
        hi,
        addresses: HashMap::new(),
        known: Vec::new(),
        stmt: None,
    };
    for i in 0..program.buffers.len() {
        let base = emitter.argument(args, i)?;
        emitter.bases.push(base);
    }
    for (dtype, len) in &program.locals {
        let bytes = u32::try_from(len.saturating_mul(dtype.size()));
        let bytes = bytes.map_err(|_| emitter.unsupported("the local memory is too large"))?;
        let slot = StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4);
        let slot = emitter.builder.create_sized_stack_slot(slot);
        let base = emitter.builder.ins().stack_addr(types::I64, slot, 0);
        emitter.bases.push(base);
    }
    emitter.region(&program.body)?;
    let mut builder = emitter.builder;
    let ok = builder.ins().iconst(types::I32, 0);
    builder.ins().return_(&[ok]);
    builder.seal_all_blocks();
    builder.finalize(isa.frontend_config());
    Ok(function)
}

/// What is known of a value beyond its code.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Origin {
    /// Every lane is the constant.
    Const(Constant),
    /// Every lane is the scalar.
    Splat(ValueId),
    /// Nothing.
    Other,
}

pub(crate) struct Emitter<'a, 'f> {
    pub program: &'a VectorProgram,
    pub target: Target,
    pub builder: FunctionBuilder<'f>,
    pub values: Vec<Value>,
    pub origins: Vec<Origin>,
    /// Pointers to the buffers and to local memory.
    pub bases: Vec<Value>,
    dims: Value,
    lo: Value,
    hi: Value,
    /// Addresses without their constant part that are computed here or in an enclosing region.
    pub addresses: HashMap<(usize, ValueId), Value>,
    /// Keys of `addresses` in the order of their making.
    pub known: Vec<(usize, ValueId)>,
    /// The statement being emitted, for messages.
    stmt: Option<&'a Stmt>,
}

impl<'a> Emitter<'a, '_> {
    pub fn unsupported(&self, message: impl Into<String>) -> Error {
        Error::Unsupported {
            program: self.program.name.clone(),
            statement: self.stmt.map(|s| self.program.head(s).to_string()).unwrap_or_default(),
            message: message.into(),
        }
    }

    pub fn value(&self, id: ValueId) -> Value {
        self.values[id.index()]
    }

    pub fn ty(&self, id: ValueId) -> VectorType {
        self.program.values[id]
    }

    /// The constant that every lane is, where that is known.
    pub fn constant_of(&self, id: ValueId) -> Option<Constant> {
        match self.origins[id.index()] {
            Origin::Const(c) => Some(c),
            Origin::Splat(scalar) => self.constant_of(scalar),
            Origin::Other => None,
        }
    }

    pub fn clif_type(&self, ty: VectorType) -> Result<Type, Error> {
        let lane = match ty.dtype {
            // A mask's lanes are as wide as those of the vectors that were compared.
            DType::Bool => match ty.lanes {
                1 | 16 => types::I8,
                8 => types::I16,
                4 => types::I32,
                2 => types::I64,
                _ => types::INVALID,
            },
            DType::F32 => types::F32,
            DType::F64 => types::F64,
            other => Type::int(other.size() as u16 * 8).unwrap_or(types::INVALID),
        };
        if ty.lanes == 1 {
            return Ok(lane);
        }
        lane.by(ty.lanes)
            .filter(|t| t.bits() == 128)
            .ok_or_else(|| self.unsupported(format!("{ty}: this emitter has only vectors of 16 bytes")))
    }

    /// An element of an array of 8-byte words that does not change while the kernel runs.
    fn argument(&mut self, array: Value, index: usize) -> Result<Value, Error> {
        let offset = i32::try_from(index * 8).map_err(|_| self.unsupported("too many arguments"))?;
        let flags = MemFlagsData::trusted().with_readonly().with_can_move();
        Ok(self.builder.ins().load(types::I64, flags, array, offset))
    }

    fn define(&mut self, id: ValueId, value: Value) {
        self.values[id.index()] = value;
    }

    fn region(&mut self, body: &'a [Stmt]) -> Result<(), Error> {
        let known = self.known.len();
        for stmt in body {
            self.stmt = Some(stmt);
            self.stmt(stmt)?;
        }
        // What was computed in the region is not there after it.
        for key in self.known.drain(known..) {
            self.addresses.remove(&key);
        }
        Ok(())
    }

    fn stmt(&mut self, stmt: &'a Stmt) -> Result<(), Error> {
        match stmt {
            Stmt::Let(id, op) => {
                let value = self.op(self.ty(*id), op)?;
                self.origins[id.index()] = match op {
                    Op::Const(c) => Origin::Const(*c),
                    Op::Splat(scalar) => Origin::Splat(*scalar),
                    _ => Origin::Other,
                };
                self.define(*id, value);
                Ok(())
            }
            Stmt::Store(address, value) => self.store(address, *value),
            // Cranelift has no such instruction, and results do not depend on it.
            Stmt::Prefetch(..) => Ok(()),
            Stmt::Matrix(_) => Err(self.unsupported("there are no matrix registers")),
            Stmt::Fail { condition, status } => {
                let failed = self.builder.create_block();
                let on = self.builder.create_block();
                let condition = self.value(*condition);
                self.builder.ins().brif(condition, failed, &[], on, &[]);
                self.builder.set_cold_block(failed);
                self.builder.switch_to_block(failed);
                let status = self.builder.ins().iconst(types::I32, i64::from(*status));
                self.builder.ins().return_(&[status]);
                self.builder.switch_to_block(on);
                Ok(())
            }
            Stmt::If { condition, then, otherwise } => {
                let holds = self.builder.create_block();
                let not = self.builder.create_block();
                let on = self.builder.create_block();
                let condition = self.value(*condition);
                self.builder.ins().brif(condition, holds, &[], not, &[]);
                for (block, body) in [(holds, then), (not, otherwise)] {
                    self.builder.switch_to_block(block);
                    self.region(body)?;
                    self.builder.ins().jump(on, &[]);
                }
                self.builder.switch_to_block(on);
                Ok(())
            }
            Stmt::For(f) => self.counted_loop(f),
        }
    }

    /// One test before the loop, then one at the end of each iteration.
    fn counted_loop(&mut self, f: &'a For) -> Result<(), Error> {
        let (lo, hi) = (self.value(f.lo), self.value(f.hi));
        let body = self.builder.create_block();
        let exit = self.builder.create_block();
        let var = self.builder.append_block_param(body, types::I64);
        self.define(f.var, var);
        let mut first = vec![BlockArg::Value(lo)];
        let mut none = Vec::new();
        for c in &f.carried {
            let ty = self.clif_type(self.ty(c.init))?;
            let init = BlockArg::Value(self.value(c.init));
            first.push(init);
            none.push(init);
            let inside = self.builder.append_block_param(body, ty);
            let after = self.builder.append_block_param(exit, ty);
            self.define(c.inside, inside);
            self.define(c.after, after);
        }
        let any = self.builder.ins().icmp(IntCC::SignedLessThan, lo, hi);
        self.builder.ins().brif(any, body, &first, exit, &none);
        self.builder.switch_to_block(body);
        self.region(&f.body)?;
        let next = self.builder.ins().iadd_imm_s(var, f.step);
        let mut again = vec![BlockArg::Value(next)];
        let done: Vec<BlockArg> = f.carried.iter().map(|c| BlockArg::Value(self.value(c.next))).collect();
        again.extend_from_slice(&done);
        let more = self.builder.ins().icmp(IntCC::SignedLessThan, next, hi);
        self.builder.ins().brif(more, body, &again, exit, &done);
        self.builder.switch_to_block(exit);
        Ok(())
    }

    fn op(&mut self, result: VectorType, op: &Op) -> Result<Value, Error> {
        let ty = self.clif_type(result)?;
        match op {
            Op::Const(c) => Ok(self.constant(ty, *c)),
            Op::Dim(n) => self.argument(self.dims, *n),
            Op::Lo => Ok(self.lo),
            Op::Hi => Ok(self.hi),
            Op::Load(address) => self.load(result, ty, address),
            Op::LoadWide(address) => self.load_wide(result, ty, address),
            Op::LoadSplat(address) => self.load_splat(result, ty, address),
            Op::LoadStrided(address, stride) => self.load_strided(result, ty, address, *stride),
            Op::Splat(a) => Ok(self.splat(result, ty, self.value(*a))),
            Op::Pack(scalars) => {
                let scalars: Vec<Value> = scalars.iter().map(|s| self.value(*s)).collect();
                Ok(self.pack(result, ty, &scalars))
            }
            Op::Column(vectors, lane) => self.column(ty, vectors, *lane),
            Op::Extract(a, lane) => Ok(self.extract(self.ty(*a), self.value(*a), *lane)),
            Op::Unary(op, a) => {
                let a = self.value(*a);
                match result.dtype.class() {
                    Class::Float | Class::Double => self.float_unary(*op, ty, a),
                    _ => self.int_unary(*op, result, a),
                }
            }
            Op::Binary(op, a, b) => {
                let operands = self.ty(*a);
                match operands.dtype.class() {
                    Class::Float | Class::Double => self.float_binary(*op, operands, *a, *b),
                    Class::Bool => self.bool_binary(*op, operands, self.value(*a), self.value(*b)),
                    _ => self.int_binary(*op, operands, *a, *b),
                }
            }
            Op::Fma(a, ..) if self.ty(*a).dtype == DType::I32 => Err(self.unsupported("a product of pairs of bf16")),
            Op::Fma(a, b, c) => {
                let (a, b, c) = (self.value(*a), self.value(*b), self.value(*c));
                Ok(if self.target.fused() {
                    self.builder.ins().fma(a, b, c)
                } else {
                    let product = self.builder.ins().fmul(a, b);
                    self.builder.ins().fadd(product, c)
                })
            }
            Op::Scale(..) => Err(self.unsupported("128-bit code has no scaling by powers of two")),
            Op::Select(a, b, c) => {
                let (a, b, c) = (self.value(*a), self.value(*b), self.value(*c));
                Ok(if result.is_scalar() { self.builder.ins().select(a, b, c) } else { self.select_lanes(ty, a, b, c) })
            }
            Op::Cast(_, a) => self.cast(self.ty(*a), result, self.value(*a)),
            Op::RoundHalf(_) => Err(self.unsupported("a conversion to f16")),
            Op::Bitcast(_, a) => Ok(self.bitcast(ty, self.value(*a))),
            Op::Fold(op, a) => self.fold(*op, self.ty(*a), *a),
        }
    }

    /// A constant in every lane.
    pub fn constant(&mut self, ty: Type, c: Constant) -> Value {
        if c.dtype == DType::Bool && ty.is_vector() {
            return self.lanes_of(ty, if c.bits == 0 { 0 } else { u64::MAX });
        }
        self.lanes_of(ty, c.bits)
    }

    /// A float constant in every lane.
    pub fn float(&mut self, ty: Type, x: f32) -> Value {
        let bits = if ty.lane_type() == types::F32 { u64::from(x.to_bits()) } else { f64::from(x).to_bits() };
        self.lanes_of(ty, bits)
    }

    /// The same bits, as many as the lanes have, in every lane.
    pub fn lanes_of(&mut self, ty: Type, bits: u64) -> Value {
        let lane = ty.lane_type();
        if ty.is_vector() {
            let bytes = &bits.to_le_bytes()[..lane.bytes() as usize];
            let data = bytes.repeat(ty.lane_count() as usize);
            let handle = self.builder.func.dfg.constants.insert(data.into());
            return self.builder.ins().vconst(ty, handle);
        }
        match lane {
            types::F32 => self.builder.ins().f32const(f32::from_bits(bits as u32)),
            types::F64 => self.builder.ins().f64const(f64::from_bits(bits)),
            int => {
                let bits = bits & (u64::MAX >> (64 - int.bits().clamp(1, 64)));
                self.builder.ins().iconst(int, bits as i64)
            }
        }
    }
}
