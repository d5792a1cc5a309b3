//! Instructions with virtual registers, and the view of them that the register allocator takes.
//!
//! Invariant: an instruction is one x86 instruction: its operands in encoding order, all inputs read before an
//! output is written. Blocks are kept in the order in which they are encoded; a block that branches two ways passes
//! no values.

use iced_x86::{Code, OpKind};
use regalloc2::{Block, Function, Inst as Index, InstRange, Operand, PReg, PRegSet, RegClass, VReg};

/// The width at which a register is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Width {
    B,
    W,
    D,
    Q,
    X,
    Y,
    Z,
    K,
}

/// What an address starts from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Base {
    Register(VReg),
    /// A byte of local memory.
    Local(usize),
    /// A byte of the constants.
    Pool(usize),
}

/// A place in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub base: Base,
    /// With its scale: 1, 2, 4 or 8.
    pub index: Option<(VReg, u32)>,
    pub displacement: i32,
    /// The one element there stands for all (EVEX).
    pub repeated: bool,
}

/// An operand of an instruction.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg {
    Def(VReg, Width),
    Use(VReg, Width),
    /// Read, then written: the result replaces the value of `from`.
    Tied {
        def: VReg,
        from: VReg,
        width: Width,
    },
    Memory(Place),
    /// A matrix register, which the program names.
    Matrix(u8),
    Immediate(i64, OpKind),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    /// Only binds registers; no code.
    Entry,
    /// All three operands are the one register that it defines.
    Zero,
    Jump,
    /// To the first successor on the condition of the code, else to the second.
    Branch,
    Return,
}

#[derive(Clone, Debug)]
pub(super) struct Inst {
    pub code: Code,
    pub kind: Kind,
    pub args: Vec<Arg>,
    /// EVEX: the lanes that are written; the others are zeroed.
    pub mask: Option<VReg>,
    pub zeroing: bool,
    /// Registers that the instruction reads or writes without naming them.
    pub fixed: Vec<Operand>,
}

impl Inst {
    pub fn new(code: Code, args: &[Arg]) -> Inst {
        Inst { code, kind: Kind::Plain, args: args.to_vec(), mask: None, zeroing: false, fixed: Vec::new() }
    }

    pub fn control(kind: Kind, code: Code) -> Inst {
        Inst { kind, ..Inst::new(code, &[]) }
    }

    /// The registers for the allocator, in the order in which [`super::encode`] takes them back.
    fn operands(&self) -> Vec<Operand> {
        let mut all = Vec::new();
        for arg in &self.args {
            match *arg {
                Arg::Def(v, _) => all.push(Operand::reg_def(v)),
                Arg::Use(v, _) => all.push(Operand::reg_use(v)),
                Arg::Tied { def, from, .. } => {
                    all.push(Operand::reg_use(from));
                    all.push(Operand::reg_reuse_def(def, all.len() - 1));
                }
                Arg::Memory(place) => {
                    if let Base::Register(v) = place.base {
                        all.push(Operand::reg_use(v));
                    }
                    if let Some((v, _)) = place.index {
                        all.push(Operand::reg_use(v));
                    }
                }
                Arg::Matrix(_) | Arg::Immediate(..) => {}
            }
        }
        all.extend(self.mask.map(Operand::reg_use));
        all.extend(&self.fixed);
        all
    }
}

/// A block under construction.
#[derive(Default, Clone, Debug)]
pub(super) struct Draft {
    pub params: Vec<VReg>,
    pub insts: Vec<Inst>,
    /// With the values passed.
    pub next: Vec<(usize, Vec<VReg>)>,
    /// Encoded after all others.
    pub cold: bool,
}

/// A whole function.
pub(super) struct Machine {
    pub insts: Vec<Inst>,
    operands: Vec<Vec<Operand>>,
    ranges: Vec<InstRange>,
    params: Vec<Vec<VReg>>,
    successors: Vec<Vec<Block>>,
    passed: Vec<Vec<Vec<VReg>>>,
    predecessors: Vec<Vec<Block>>,
    registers: usize,
    /// In 8-byte words.
    vector_slot: usize,
    /// Bytes of local memory.
    pub local_bytes: usize,
}

impl Machine {
    /// Puts the blocks in order: as made, the cold ones last.
    pub fn new(mut drafts: Vec<Draft>, order: &[usize], registers: usize, vector_slot: usize) -> Machine {
        let mut order = order.to_vec();
        order.sort_by_key(|&b| drafts[b].cold);
        let mut place = vec![0; drafts.len()];
        for (at, &b) in order.iter().enumerate() {
            place[b] = at;
        }
        let mut machine = Machine {
            insts: Vec::new(),
            operands: Vec::new(),
            ranges: Vec::new(),
            params: Vec::new(),
            successors: Vec::new(),
            passed: Vec::new(),
            predecessors: vec![Vec::new(); drafts.len()],
            registers,
            vector_slot,
            local_bytes: 0,
        };
        for (at, &b) in order.iter().enumerate() {
            let draft = std::mem::take(&mut drafts[b]);
            let first = machine.insts.len();
            machine.operands.extend(draft.insts.iter().map(Inst::operands));
            machine.insts.extend(draft.insts);
            machine.ranges.push(InstRange::new(Index::new(first), Index::new(machine.insts.len())));
            machine.params.push(draft.params);
            machine.successors.push(draft.next.iter().map(|(b, _)| Block::new(place[*b])).collect());
            for (next, _) in &draft.next {
                machine.predecessors[place[*next]].push(Block::new(at));
            }
            machine.passed.push(draft.next.into_iter().map(|(_, values)| values).collect());
        }
        machine
    }
}

impl Function for Machine {
    fn num_insts(&self) -> usize {
        self.insts.len()
    }
    fn num_blocks(&self) -> usize {
        self.ranges.len()
    }
    fn entry_block(&self) -> Block {
        Block::new(0)
    }
    fn block_insns(&self, block: Block) -> InstRange {
        self.ranges[block.index()]
    }
    fn block_succs(&self, block: Block) -> &[Block] {
        &self.successors[block.index()]
    }
    fn block_preds(&self, block: Block) -> &[Block] {
        &self.predecessors[block.index()]
    }
    fn block_params(&self, block: Block) -> &[VReg] {
        &self.params[block.index()]
    }
    fn is_ret(&self, inst: Index) -> bool {
        self.insts[inst.index()].kind == Kind::Return
    }
    fn is_branch(&self, inst: Index) -> bool {
        matches!(self.insts[inst.index()].kind, Kind::Jump | Kind::Branch)
    }
    fn branch_blockparams(&self, block: Block, _: Index, successor: usize) -> &[VReg] {
        &self.passed[block.index()][successor]
    }
    fn inst_operands(&self, inst: Index) -> &[Operand] {
        &self.operands[inst.index()]
    }
    fn inst_clobbers(&self, _: Index) -> PRegSet {
        PRegSet::empty()
    }
    fn num_vregs(&self) -> usize {
        self.registers
    }
    fn spillslot_size(&self, class: RegClass) -> usize {
        match class {
            RegClass::Float => self.vector_slot,
            RegClass::Int | RegClass::Vector => 1,
        }
    }
}

/// A general register by its number in the encoding.
pub(super) fn gpr(number: usize) -> PReg {
    PReg::new(number, RegClass::Int)
}
