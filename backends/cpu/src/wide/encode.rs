//! Registers, frame and bytes.
//!
//! Invariant: the bytes do not depend on where they are loaded; constants lie after the code at a multiple of 64.

use super::WideLevel;
use super::machine::{Arg, Base, Kind, Machine, Place, Width, gpr};
use iced_x86::{
    BlockEncoder, BlockEncoderOptions, Code, Instruction, InstructionBlock, MemoryOperand, OpKind, Register,
};
use regalloc2::{
    Allocation, Block, Edit, Function, InstOrEdit, MachineEnv, Output, PReg, PRegSet, RegClass, RegallocOptions,
};

/// rbx, r12 to r15; rbp keeps the stack pointer.
const CALLEE_SAVED: [usize; 5] = [3, 12, 13, 14, 15];

/// The least page there is.
const PAGE: i32 = 4096;

fn environment(level: WideLevel) -> MachineEnv {
    let set = |class: RegClass, numbers: &mut dyn Iterator<Item = usize>| {
        numbers.fold(PRegSet::empty(), |set, n| set.with(PReg::new(n, class)))
    };
    let (vectors, masks) = if level.has_masks() { (32, 1..8) } else { (16, 1..1) };
    let none = PRegSet::empty();
    MachineEnv {
        preferred_regs_by_class: [
            set(RegClass::Int, &mut [0, 1, 2, 6, 7, 8, 9, 10, 11].into_iter()),
            set(RegClass::Float, &mut (0..vectors)),
            set(RegClass::Vector, &mut masks.into_iter()),
        ],
        non_preferred_regs_by_class: [set(RegClass::Int, &mut CALLEE_SAVED.into_iter()), none, none],
        scratch_by_class: [None; 3],
        fixed_stack_slots: Vec::new(),
    }
}

/// Allocates registers and encodes the function with its constants.
pub(super) fn encode(machine: &Machine, pool: &[u8], level: WideLevel) -> Result<Vec<u8>, String> {
    let options = RegallocOptions { validate_ssa: cfg!(debug_assertions), ..RegallocOptions::default() };
    let output =
        regalloc2::run(machine, &environment(level), &options).map_err(|e| format!("register allocation: {e:?}"))?;
    // The length of the code does not depend on where the constants are.
    let mut pool_at = 1 << 20;
    loop {
        let mut encoder = Encoder { machine, output: &output, level, pool_at, code: Vec::new(), saved: Vec::new() };
        encoder.function()?;
        let block = InstructionBlock::new(&encoder.code, 0);
        let encoded = BlockEncoder::encode(64, block, BlockEncoderOptions::NONE).map_err(|e| e.to_string())?;
        let mut bytes = encoded.code_buffer;
        if pool.is_empty() {
            return Ok(bytes);
        }
        let end = bytes.len().next_multiple_of(64);
        if pool_at == end as u64 {
            // int3: control never gets here.
            bytes.resize(end, 0xcc);
            bytes.extend_from_slice(pool);
            return Ok(bytes);
        }
        pool_at = end as u64;
    }
}

struct Encoder<'a> {
    machine: &'a Machine,
    output: &'a Output,
    level: WideLevel,
    pool_at: u64,
    code: Vec<Instruction>,
    /// Callee-saved registers in use.
    saved: Vec<usize>,
}

fn register(preg: PReg, width: Width) -> Register {
    let n = preg.hw_enc() as u32;
    match width {
        Width::B if n < 4 => Register::AL + n,
        Width::B if n < 8 => Register::SPL + (n - 4),
        Width::B => Register::R8L + (n - 8),
        Width::W => Register::AX + n,
        Width::D => Register::EAX + n,
        Width::Q => Register::RAX + n,
        Width::X => Register::XMM0 + n,
        Width::Y => Register::YMM0 + n,
        Width::Z => Register::ZMM0 + n,
        Width::K => Register::K0 + n,
    }
}

fn negated(code: Code) -> Result<Code, String> {
    match code {
        Code::Jl_rel32_64 => Ok(Code::Jge_rel32_64),
        Code::Jne_rel32_64 => Ok(Code::Je_rel32_64),
        other => Err(format!("{other:?} has no known opposite")),
    }
}

/// Takes an instruction's allocations one after the other.
struct Allocations<'a>(std::slice::Iter<'a, Allocation>);

impl Allocations<'_> {
    fn next(&mut self) -> Result<PReg, String> {
        self.0.next().and_then(|a| a.as_reg()).ok_or_else(|| "an operand without a register".to_string())
    }
}

impl Encoder<'_> {
    fn push(&mut self, instruction: Result<Instruction, iced_x86::IcedError>) -> Result<(), String> {
        self.code.push(instruction.map_err(|e| e.to_string())?);
        Ok(())
    }

    fn function(&mut self) -> Result<(), String> {
        let used = self.output.allocs.iter().chain(self.output.edits.iter().flat_map(|(_, edit)| {
            let Edit::Move { from, to } = edit;
            [from, to]
        }));
        let mut saved: Vec<usize> = used
            .filter_map(|a| a.as_reg())
            .filter(|r| r.class() == RegClass::Int && CALLEE_SAVED.contains(&r.hw_enc()))
            .map(PReg::hw_enc)
            .collect();
        saved.sort_unstable();
        saved.dedup();
        self.saved = saved;
        let frame = self.locals_at() + self.machine.local_bytes;
        let frame = i32::try_from(frame.next_multiple_of(64)).map_err(|_| "the frame is too large".to_string())?;
        let (rsp, rbp) = (Register::RSP, Register::RBP);
        self.push(Instruction::with1(Code::Push_r64, rbp))?;
        self.push(Instruction::with2(Code::Mov_r64_rm64, rbp, rsp))?;
        for r in self.saved.clone() {
            self.push(Instruction::with1(Code::Push_r64, register(gpr(r), Width::Q)))?;
        }
        if frame > 0 {
            self.push(Instruction::with2(Code::And_rm64_imm8, rsp, -64))?;
            // Page after page, so that none is reached before the one that says that the stack ends, or grows it.
            for _ in 0..frame / PAGE {
                self.push(Instruction::with2(Code::Sub_rm64_imm32, rsp, PAGE))?;
                let top = MemoryOperand::with_base(rsp);
                self.push(Instruction::with2(Code::Or_rm64_imm8, top, 0))?;
            }
            if frame % PAGE > 0 {
                self.push(Instruction::with2(Code::Sub_rm64_imm32, rsp, frame % PAGE))?;
            }
        }
        let blocks = self.machine.num_blocks();
        // Where the code of each block starts; branches hold block numbers until all are known.
        let mut starts = Vec::with_capacity(blocks);
        let mut branches = Vec::new();
        for b in 0..blocks {
            starts.push(self.code.len());
            self.block(Block::new(b), &mut branches)?;
        }
        for (at, instruction) in self.code.iter_mut().enumerate() {
            instruction.set_ip(at as u64 + 1);
        }
        for (at, target) in branches {
            let start = starts.get(target).copied().ok_or("a branch to nowhere")?;
            self.code[at].set_near_branch64(start as u64 + 1);
        }
        Ok(())
    }

    /// Where local memory begins, above the spilled registers.
    fn locals_at(&self) -> usize {
        (self.output.num_spillslots * 8).next_multiple_of(64)
    }

    /// Where control really goes on: past blocks that only jump.
    fn resolve(&self, mut block: Block) -> Block {
        for _ in 0..self.machine.num_blocks() {
            let range = self.machine.block_insns(block);
            let only_jump = range.len() == 1 && self.machine.insts[range.first().index()].kind == Kind::Jump;
            if !only_jump || self.moves(block) {
                break;
            }
            block = self.machine.block_succs(block)[0];
        }
        block
    }

    fn moves(&self, block: Block) -> bool {
        self.output.block_insts_and_edits(self.machine, block).any(|item| match item {
            InstOrEdit::Edit(Edit::Move { from, to }) => from != to,
            InstOrEdit::Inst(_) => false,
        })
    }

    /// Whether the target's code comes next after that of a block.
    fn follows(&self, block: Block, target: Block) -> bool {
        let (from, to) = (block.index() + 1, target.index());
        from <= to && (from..to).all(|b| self.resolve(Block::new(b)) != Block::new(b))
    }

    fn branch(&mut self, code: Code, target: Block, branches: &mut Vec<(usize, usize)>) -> Result<(), String> {
        branches.push((self.code.len(), target.index()));
        self.push(Instruction::with_branch(code, 0))
    }

    fn block(&mut self, block: Block, branches: &mut Vec<(usize, usize)>) -> Result<(), String> {
        if block.index() != 0 && self.resolve(block) != block {
            return Ok(());
        }
        for item in self.output.block_insts_and_edits(self.machine, block) {
            let index = match item {
                InstOrEdit::Edit(Edit::Move { from, to }) => {
                    self.copy(*from, *to)?;
                    continue;
                }
                InstOrEdit::Inst(index) => index,
            };
            let next = self.machine.block_succs(block);
            match self.machine.insts[index.index()].kind {
                Kind::Plain => self.plain(index.index())?,
                Kind::Entry => {}
                Kind::Zero => self.zero(index.index())?,
                Kind::Jump => {
                    let target = self.resolve(next[0]);
                    if !self.follows(block, target) {
                        self.branch(Code::Jmp_rel32_64, target, branches)?;
                    }
                }
                Kind::Branch => {
                    let code = self.machine.insts[index.index()].code;
                    let (holds, fails) = (self.resolve(next[0]), self.resolve(next[1]));
                    if self.follows(block, holds) {
                        self.branch(negated(code)?, fails, branches)?;
                    } else {
                        self.branch(code, holds, branches)?;
                        if !self.follows(block, fails) {
                            self.branch(Code::Jmp_rel32_64, fails, branches)?;
                        }
                    }
                }
                Kind::Return => self.epilogue()?,
            }
        }
        Ok(())
    }

    fn epilogue(&mut self) -> Result<(), String> {
        self.code.push(Instruction::with(Code::VEX_Vzeroupper));
        let depth = i64::try_from(self.saved.len() * 8).map_err(|e| e.to_string())?;
        let saved = MemoryOperand::with_base_displ(Register::RBP, -depth);
        self.push(Instruction::with2(Code::Lea_r64_m, Register::RSP, saved))?;
        for r in self.saved.clone().into_iter().rev() {
            self.push(Instruction::with1(Code::Pop_r64, register(gpr(r), Width::Q)))?;
        }
        self.push(Instruction::with1(Code::Pop_r64, Register::RBP))?;
        self.code.push(Instruction::with(Code::Retnq));
        Ok(())
    }

    fn copy(&mut self, from: Allocation, to: Allocation) -> Result<(), String> {
        if from == to {
            return Ok(());
        }
        let class = from.as_reg().or(to.as_reg()).ok_or("a move between stack slots")?.class();
        let slot = |a: Allocation| -> Result<MemoryOperand, String> {
            let slot = a.as_stack().ok_or("a move from nowhere")?;
            Ok(MemoryOperand::with_base_displ(Register::RSP, slot.index() as i64 * 8))
        };
        let wide = self.level.has_masks();
        let (width, [load, store, both]) = match class {
            RegClass::Int => (Width::Q, [Code::Mov_r64_rm64, Code::Mov_rm64_r64, Code::Mov_r64_rm64]),
            RegClass::Vector => (Width::K, [Code::VEX_Kmovq_kr_km64, Code::VEX_Kmovq_m64_kr, Code::VEX_Kmovq_kr_km64]),
            RegClass::Float if wide => (
                Width::Z,
                [
                    Code::EVEX_Vmovaps_zmm_k1z_zmmm512,
                    Code::EVEX_Vmovaps_zmmm512_k1z_zmm,
                    Code::EVEX_Vmovaps_zmm_k1z_zmmm512,
                ],
            ),
            RegClass::Float => (
                Width::Y,
                [Code::VEX_Vmovaps_ymm_ymmm256, Code::VEX_Vmovaps_ymmm256_ymm, Code::VEX_Vmovaps_ymm_ymmm256],
            ),
        };
        let instruction = match (from.as_reg(), to.as_reg()) {
            (Some(from), Some(to)) => Instruction::with2(both, register(to, width), register(from, width)),
            (None, Some(to)) => Instruction::with2(load, register(to, width), slot(from)?),
            (Some(from), None) => Instruction::with2(store, slot(to)?, register(from, width)),
            (None, None) => return Err("a move between stack slots".into()),
        };
        self.push(instruction)
    }

    /// The exclusive or of a register with itself, which does not wait for it.
    fn zero(&mut self, index: usize) -> Result<(), String> {
        let inst = &self.machine.insts[index];
        let mut allocations = Allocations(self.output.inst_allocs(regalloc2::Inst::new(index)).iter());
        let all = register(allocations.next()?, Width::X);
        self.push(Instruction::with3(inst.code, all, all, all))
    }

    fn plain(&mut self, index: usize) -> Result<(), String> {
        let inst = &self.machine.insts[index];
        let mut allocations = Allocations(self.output.inst_allocs(regalloc2::Inst::new(index)).iter());
        let mut instruction = Instruction::default();
        instruction.set_code(inst.code);
        for (n, arg) in inst.args.iter().enumerate() {
            let n = n as u32;
            match *arg {
                Arg::Def(_, width) | Arg::Use(_, width) => {
                    instruction.set_op_kind(n, OpKind::Register);
                    instruction.set_op_register(n, register(allocations.next()?, width));
                }
                Arg::Tied { width, .. } => {
                    allocations.next()?;
                    instruction.set_op_kind(n, OpKind::Register);
                    instruction.set_op_register(n, register(allocations.next()?, width));
                }
                Arg::Matrix(number) => {
                    instruction.set_op_kind(n, OpKind::Register);
                    instruction.set_op_register(n, Register::TMM0 + u32::from(number));
                }
                Arg::Memory(place) => {
                    instruction.set_op_kind(n, OpKind::Memory);
                    self.memory(&mut instruction, place, &mut allocations)?;
                }
                Arg::Immediate(value, kind) => {
                    instruction.set_op_kind(n, kind);
                    instruction.try_set_immediate_i64(n, value).map_err(|e| e.to_string())?;
                }
            }
        }
        if inst.mask.is_some() {
            instruction.set_op_mask(register(allocations.next()?, Width::K));
            instruction.set_zeroing_masking(inst.zeroing);
        }
        self.code.push(instruction);
        Ok(())
    }

    fn memory(
        &self,
        instruction: &mut Instruction,
        place: Place,
        allocations: &mut Allocations<'_>,
    ) -> Result<(), String> {
        match place.base {
            Base::Register(_) => {
                instruction.set_memory_base(register(allocations.next()?, Width::Q));
                instruction.set_memory_displacement64(i64::from(place.displacement) as u64);
                instruction.set_memory_displ_size(u32::from(place.displacement != 0));
            }
            Base::Local(offset) => {
                instruction.set_memory_base(Register::RSP);
                let offset = (self.locals_at() + offset) as u64;
                instruction.set_memory_displacement64(offset.wrapping_add(i64::from(place.displacement) as u64));
                instruction.set_memory_displ_size(1);
            }
            Base::Pool(offset) => {
                instruction.set_memory_base(Register::RIP);
                instruction.set_memory_displacement64(self.pool_at + offset as u64);
                instruction.set_memory_displ_size(8);
            }
        }
        instruction.set_memory_index_scale(1);
        if let Some((_, scale)) = place.index {
            instruction.set_memory_index(register(allocations.next()?, Width::Q));
            instruction.set_memory_index_scale(scale);
        }
        instruction.set_is_broadcast(place.repeated);
        Ok(())
    }
}
