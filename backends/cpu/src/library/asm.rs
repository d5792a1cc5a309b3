//! Routines of a library as Cranelift builds them, with the few forms of control flow that they need.
//!
//! Invariant: code refers to other routines, to kernels and to read-only data by distance from the instruction only; what it
//! calls and reads is part of the library, so nothing is left for a system linker to find.

use super::data::Data;
use super::{LibraryError, Part, Reference};
use crate::{OptLevel, Target};
use cranelift_codegen::binemit::Reloc;
use cranelift_codegen::control::ControlPlane;
use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, ExtFuncData, ExternalName, Function, GlobalValueData, InstBuilder, MemFlagsData, Signature,
    StackSlotData, StackSlotKind, Type, UserExternalName, UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetIsa};
use cranelift_codegen::{Context, FinalizedRelocTarget};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};

pub(super) const I32: Type = types::I32;
pub(super) const I64: Type = types::I64;

/// Spaces of Cranelift's names.
const ROUTINES: u32 = 0;
const PARTS: u32 = 1;

/// A routine of the library: its number, and what it takes and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Routine {
    /// `abi() -> u32`
    Abi,
    /// `model(out)`
    Model,
    /// `input(n, out) -> status`
    Input,
    /// `output(n, out) -> status`
    Output,
    /// `dim(n, out) -> status`
    Dim,
    /// `level() -> level`
    Level,
    /// `init(context, options, message, bytes) -> status`
    Init,
    /// `solve(shapes, dims, message, bytes) -> status`
    Solve,
    /// `arena_bytes(dims) -> bytes`
    ArenaBytes,
    /// `input_bytes(n, dims) -> bytes`
    InputBytes,
    /// `output_bytes(n, dims) -> bytes`
    OutputBytes,
    /// `output_dims(n, dims, extents) -> status`
    OutputDims,
    /// `host(context, function, host) -> status`
    Host,
    /// `run(context, inputs, outputs, dims, arena, bytes, message, bytes) -> status`
    Run,
    /// `append(message, bytes, at, text, length) -> at`
    Append,
    /// `append_number(message, bytes, at, value) -> at`
    AppendNumber,
    /// `check(dims, message, bytes) -> status`
    Check,
    /// `formulas(dims, values) -> whether a size is out of bounds`
    Formulas,
    /// `steps(run, first, last, message, bytes) -> status`: launches and copies, one after another
    Steps,
    /// `move(from, to, bytes)`
    Move,
    /// `body(task, lo, hi) -> status`, what a host's `parallel_for` calls
    Body,
    /// `cpuid(leaf, subleaf, out)`
    CpuId,
    /// `xgetbv() -> bits of XCR0`
    XGetBv,
    /// `tiles() -> 0 where the system lets the process use matrix registers`
    Tiles,
}

impl Routine {
    /// In the order of the code; those that are exported first.
    pub const ALL: [Routine; 24] = [
        Routine::Abi,
        Routine::Model,
        Routine::Input,
        Routine::Output,
        Routine::Dim,
        Routine::Level,
        Routine::Init,
        Routine::Solve,
        Routine::ArenaBytes,
        Routine::InputBytes,
        Routine::OutputBytes,
        Routine::OutputDims,
        Routine::Host,
        Routine::Run,
        Routine::Append,
        Routine::AppendNumber,
        Routine::Check,
        Routine::Formulas,
        Routine::Steps,
        Routine::Move,
        Routine::Body,
        Routine::CpuId,
        Routine::XGetBv,
        Routine::Tiles,
    ];

    /// What follows the model's prefix in the symbol, where the routine is exported.
    pub fn export(self) -> Option<&'static str> {
        match self {
            Routine::Abi => Some("abi"),
            Routine::Model => Some("model"),
            Routine::Input => Some("input"),
            Routine::Output => Some("output"),
            Routine::Dim => Some("dim"),
            Routine::Level => Some("level"),
            Routine::Init => Some("init"),
            Routine::Solve => Some("solve"),
            Routine::ArenaBytes => Some("arena_bytes"),
            Routine::InputBytes => Some("input_bytes"),
            Routine::OutputBytes => Some("output_bytes"),
            Routine::OutputDims => Some("output_dims"),
            Routine::Host => Some("host"),
            Routine::Run => Some("run"),
            Routine::Append
            | Routine::AppendNumber
            | Routine::Check
            | Routine::Formulas
            | Routine::Steps
            | Routine::Move
            | Routine::Body
            | Routine::CpuId
            | Routine::XGetBv
            | Routine::Tiles => None,
        }
    }

    fn signature(self) -> Signature {
        let (params, result): (&[Type], Option<Type>) = match self {
            Routine::Abi | Routine::Level => (&[], Some(I32)),
            Routine::Model => (&[I64], None),
            Routine::Input | Routine::Output | Routine::Dim => (&[I32, I64], Some(I32)),
            Routine::Init | Routine::Solve => (&[I64; 4], Some(I32)),
            Routine::ArenaBytes => (&[I64], Some(I64)),
            Routine::InputBytes | Routine::OutputBytes => (&[I32, I64], Some(I64)),
            Routine::OutputDims => (&[I32, I64, I64], Some(I32)),
            Routine::Host => (&[I64; 3], Some(I32)),
            Routine::Run => (&[I64; 8], Some(I32)),
            Routine::Append => (&[I64; 5], Some(I64)),
            Routine::AppendNumber => (&[I64; 4], Some(I64)),
            Routine::Check => (&[I64; 3], Some(I32)),
            Routine::Formulas => (&[I64; 2], Some(I64)),
            Routine::Steps => (&[I64; 5], Some(I32)),
            Routine::Move => (&[I64; 3], None),
            Routine::Body => (&[I64; 3], Some(I32)),
            Routine::CpuId => (&[I64; 3], None),
            Routine::XGetBv | Routine::Tiles => (&[], Some(I64)),
        };
        signature(params, result)
    }

    fn number(self) -> u32 {
        Routine::ALL.iter().position(|r| *r == self).unwrap_or_default() as u32
    }
}

pub(super) fn signature(params: &[Type], result: Option<Type>) -> Signature {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params.extend(params.iter().map(|t| AbiParam::new(*t)));
    signature.returns.extend(result.map(AbiParam::new));
    signature
}

/// A routine's code, and what it refers to.
#[derive(Debug)]
pub(super) struct Compiled {
    pub bytes: Vec<u8>,
    pub calls: Vec<(u32, Routine, i64)>,
    pub references: Vec<Reference>,
}

/// A routine that is being built.
pub(super) struct Code<'f, 'd> {
    pub b: FunctionBuilder<'f>,
    pub data: &'d mut Data,
    /// Where messages go: the caller's memory and its size.
    pub message: Option<(Value, Value)>,
}

/// A piece of a message.
pub(super) enum Piece<'a> {
    Text(&'a str),
    Number(Value),
    /// A text at an address, of that many bytes.
    At(Value, Value),
}

/// Builds and compiles a routine.
pub(super) fn compile(
    routine: Routine,
    data: &mut Data,
    build: impl FnOnce(&mut Code<'_, '_>, &[Value]),
) -> Result<Compiled, LibraryError> {
    let failed = |message: String| LibraryError::Codegen { routine: format!("{routine:?}"), message };
    let isa = Target::X86_64.isa_with(OptLevel::Speed, false).map_err(failed)?;
    let name = UserFuncName::user(ROUTINES, routine.number());
    let mut function = Function::with_name_signature(name, routine.signature());
    let mut context = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut function, &mut context);
    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let params = builder.block_params(entry).to_vec();
    let mut code = Code { b: builder, data, message: None };
    build(&mut code, &params);
    code.b.seal_all_blocks();
    code.b.finalize(isa.frontend_config());
    finish(routine, function, &*isa)
}

fn finish(routine: Routine, function: Function, isa: &dyn TargetIsa) -> Result<Compiled, LibraryError> {
    let failed = |message: String| LibraryError::Codegen { routine: format!("{routine:?}"), message };
    let mut context = Context::for_function(function);
    context
        .compile(isa, &mut ControlPlane::default())
        .map_err(|e| failed(cranelift_codegen::print_errors::pretty_error(e.func, e.inner)))?;
    let names = context.func.params.user_named_funcs();
    let Some(compiled) = context.compiled_code() else { return Err(failed("there is no code".into())) };
    let (mut calls, mut references) = (Vec::new(), Vec::new());
    for reloc in compiled.buffer.relocs() {
        let odd = || failed(format!("the code refers to something outside: {reloc:?}"));
        let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = &reloc.target else { return Err(odd()) };
        if !matches!(reloc.kind, Reloc::X86PCRel4 | Reloc::X86CallPCRel4) {
            return Err(odd());
        }
        let UserExternalName { namespace, index } = names.get(*name).ok_or_else(odd)?;
        let index = *index as usize;
        match *namespace {
            ROUTINES => calls.push((reloc.offset, *Routine::ALL.get(index).ok_or_else(odd)?, reloc.addend)),
            PARTS => {
                let to = *Part::ALL.get(index).ok_or_else(odd)?;
                references.push(Reference { at: u64::from(reloc.offset), to, addend: reloc.addend });
            }
            _ => return Err(odd()),
        }
    }
    Ok(Compiled { bytes: compiled.code_buffer().to_vec(), calls, references })
}

fn trusted() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

impl Code<'_, '_> {
    pub fn int(&mut self, value: i64) -> Value {
        self.b.ins().iconst(I64, value)
    }

    pub fn int32(&mut self, value: i64) -> Value {
        self.b.ins().iconst(I32, value)
    }

    fn external(&mut self, namespace: u32, index: u32) -> ExternalName {
        ExternalName::user(self.b.func.declare_imported_user_function(UserExternalName { namespace, index }))
    }

    /// The address of a byte of a part of the library.
    pub fn address(&mut self, part: Part, offset: u64) -> Value {
        let name = self.external(PARTS, part.number());
        let offset = i64::try_from(offset).unwrap_or(i64::MAX).into();
        let global = GlobalValueData::Symbol { name, offset, colocated: true, tls: false };
        let global = self.b.create_global_value(global);
        self.b.ins().symbol_value(I64, global)
    }

    /// The address of a text that ends in a zero byte.
    pub fn text(&mut self, text: &str) -> Value {
        let at = self.data.text(text);
        self.address(Part::Data, at)
    }

    fn import(&mut self, routine: Routine) -> cranelift_codegen::ir::FuncRef {
        let name = self.external(ROUTINES, routine.number());
        let signature = self.b.import_signature(routine.signature());
        self.b.import_function(ExtFuncData { name, signature, colocated: true, patchable: false })
    }

    /// Calls a routine and gives its result, where it has one.
    pub fn call(&mut self, routine: Routine, arguments: &[Value]) -> Option<Value> {
        let function = self.import(routine);
        let call = self.b.ins().call(function, arguments);
        self.b.inst_results(call).first().copied()
    }

    /// Calls a routine that has a result.
    pub fn get(&mut self, routine: Routine, arguments: &[Value]) -> Value {
        let result = self.call(routine, arguments);
        result.unwrap_or_else(|| self.int(0))
    }

    /// The address of a routine.
    pub fn routine(&mut self, routine: Routine) -> Value {
        let function = self.import(routine);
        self.b.ins().func_addr(I64, function)
    }

    /// Calls a function by its address; it gives 32 bits.
    pub fn call_at(&mut self, address: Value, arguments: &[Value]) -> Value {
        let signature = signature(&vec![I64; arguments.len()], Some(I32));
        let signature = self.b.import_signature(signature);
        let call = self.b.ins().call_indirect(signature, address, arguments);
        let result = self.b.inst_results(call).first().copied();
        result.unwrap_or_else(|| self.int32(0))
    }

    pub fn load(&mut self, address: Value, offset: i32) -> Value {
        self.b.ins().load(I64, trusted(), address, offset)
    }

    /// Loads 32 bits without a sign.
    pub fn load32(&mut self, address: Value, offset: i32) -> Value {
        self.b.ins().uload32(trusted(), address, offset)
    }

    pub fn store(&mut self, value: Value, address: Value, offset: i32) {
        self.b.ins().store(trusted(), value, address, offset);
    }

    pub fn load_of(&mut self, ty: Type, address: Value) -> Value {
        self.b.ins().load(ty, trusted(), address, 0)
    }

    /// The address of the n-th of elements of `size` bytes.
    pub fn element(&mut self, base: Value, n: Value, size: i64) -> Value {
        let offset = self.b.ins().imul_imm_s(n, size);
        self.b.ins().iadd(base, offset)
    }

    pub fn icmp(&mut self, condition: IntCC, a: Value, b: Value) -> Value {
        self.b.ins().icmp(condition, a, b)
    }

    pub fn icmp_imm(&mut self, condition: IntCC, a: Value, b: i64) -> Value {
        let ty = self.b.func.dfg.value_type(a);
        let b = self.b.ins().iconst(ty, b);
        self.icmp(condition, a, b)
    }

    pub fn add_imm(&mut self, a: Value, b: i64) -> Value {
        self.b.ins().iadd_imm_s(a, b)
    }

    pub fn variable(&mut self, value: Value) -> Variable {
        let ty = self.b.func.dfg.value_type(value);
        let variable = self.b.declare_var(ty);
        self.b.def_var(variable, value);
        variable
    }

    /// Memory on the stack.
    pub fn stack(&mut self, bytes: u32) -> Value {
        let slot = self.b.create_sized_stack_slot(StackSlotData::new(StackSlotKind::ExplicitSlot, bytes, 4));
        self.b.ins().stack_addr(I64, slot, 0)
    }

    pub fn ret(&mut self, value: Value) {
        self.b.ins().return_(&[value]);
    }

    /// Code for when a condition holds, which must end in a return.
    pub fn guard(&mut self, condition: Value, body: impl FnOnce(&mut Self)) {
        let (then, next) = (self.b.create_block(), self.b.create_block());
        self.b.ins().brif(condition, then, &[], next, &[]);
        self.b.set_cold_block(then);
        self.b.switch_to_block(then);
        body(self);
        self.b.switch_to_block(next);
    }

    /// Code for when a condition holds, and code for when it does not.
    pub fn branch(&mut self, condition: Value, yes: impl FnOnce(&mut Self), no: impl FnOnce(&mut Self)) {
        let (then, otherwise) = (self.b.create_block(), self.b.create_block());
        let next = self.b.create_block();
        self.b.ins().brif(condition, then, &[], otherwise, &[]);
        self.b.switch_to_block(then);
        yes(self);
        self.b.ins().jump(next, &[]);
        self.b.switch_to_block(otherwise);
        no(self);
        self.b.ins().jump(next, &[]);
        self.b.switch_to_block(next);
    }

    /// Runs `body` as long as `condition` gives something that is not zero.
    pub fn while_(&mut self, condition: impl FnOnce(&mut Self) -> Value, body: impl FnOnce(&mut Self)) {
        let (head, inside, after) = (self.b.create_block(), self.b.create_block(), self.b.create_block());
        self.b.ins().jump(head, &[]);
        self.b.switch_to_block(head);
        let more = condition(self);
        self.b.ins().brif(more, inside, &[], after, &[]);
        self.b.switch_to_block(inside);
        body(self);
        self.b.ins().jump(head, &[]);
        self.b.switch_to_block(after);
    }

    /// Runs `body` for each number below `count`.
    pub fn repeat(&mut self, count: Value, body: impl FnOnce(&mut Self, Value)) {
        let zero = self.int(0);
        let n = self.variable(zero);
        self.while_(
            |c| {
                let at = c.b.use_var(n);
                c.icmp(IntCC::SignedLessThan, at, count)
            },
            |c| {
                let at = c.b.use_var(n);
                body(c, at);
                let next = c.add_imm(at, 1);
                c.b.def_var(n, next);
            },
        );
    }

    /// Writes a message and returns a status.
    pub fn fail(&mut self, status: i64, pieces: &[Piece<'_>]) {
        if let Some((buffer, bytes)) = self.message {
            let mut at = self.int(0);
            for piece in pieces {
                at = match piece {
                    Piece::Text(text) => {
                        let (address, length) = (self.text(text), self.int(text.len() as i64));
                        self.get(Routine::Append, &[buffer, bytes, at, address, length])
                    }
                    Piece::At(address, length) => self.get(Routine::Append, &[buffer, bytes, at, *address, *length]),
                    Piece::Number(value) => self.get(Routine::AppendNumber, &[buffer, bytes, at, *value]),
                };
            }
        }
        let status = self.int32(status);
        self.ret(status);
    }

    /// Empties the message.
    pub fn no_message(&mut self) {
        if let Some((buffer, bytes)) = self.message {
            let zero = self.int(0);
            self.call(Routine::Append, &[buffer, bytes, zero, zero, zero]);
        }
    }
}
