//! An emulator of the instructions that kernels of matrix registers are made of.
//!
//! Invariant: every access lies in the code, the stack, the arguments or a buffer, which lie far apart; what is not known, an
//! instruction or an operand, ends the test. What matrix registers do is in `tiles.rs`.

use crate::wide_support::tiles::{Around, Tiles, address};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x40_0000;
const STACK_BYTES: u64 = 0x1_0000;
const ARGUMENTS: u64 = 0x80_0000;
const BUFFERS: u64 = 0x1000_0000;
const APART: u64 = 0x100_0000;
/// Where a kernel returns to.
const END: u64 = 0xdead_0000;

pub struct Emulator {
    regions: Vec<(u64, Vec<u8>)>,
    registers: [u64; 16],
    /// Of the last comparison, as signed and as unsigned numbers.
    compared: (i64, i64),
    tiles: Tiles,
}

fn number(register: Register) -> usize {
    let wide = register as usize >= Register::RAX as usize && register as usize <= Register::R15 as usize;
    let number = register as usize - if wide { Register::RAX } else { Register::EAX } as usize;
    assert!(number < 16, "{register:?}");
    number
}

impl Around for Emulator {
    fn register(&self, register: Register) -> u64 {
        self.registers[number(register)]
    }

    fn memory(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        self.at(address, bytes)
    }
}

impl Emulator {
    pub fn new(code: &[u8], buffers: &[Vec<u8>]) -> Emulator {
        let mut regions = vec![(CODE, code.to_vec()), (STACK, vec![0xcd; STACK_BYTES as usize])];
        let mut arguments = Vec::new();
        for (n, buffer) in buffers.iter().enumerate() {
            let at = BUFFERS + n as u64 * APART;
            arguments.extend(at.to_le_bytes());
            regions.push((at, buffer.clone()));
        }
        regions.push((ARGUMENTS, arguments));
        Emulator { regions, registers: [0x5555_5555_5555; 16], compared: (0, 0), tiles: Tiles::none() }
    }

    pub fn buffer(&self, n: usize) -> &[u8] {
        &self.regions[2 + n].1
    }

    fn at(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        let found = self.regions.iter_mut().find_map(|(start, region)| {
            let from = usize::try_from(address.checked_sub(*start)?).ok()?;
            region.get_mut(from..from.checked_add(bytes)?)
        });
        found.unwrap_or_else(|| panic!("{bytes} bytes at {address:#x} are in no region"))
    }

    fn load(&mut self, address: u64, bytes: usize) -> u64 {
        let mut word = [0; 8];
        word[..bytes].copy_from_slice(self.at(address, bytes));
        u64::from_le_bytes(word)
    }

    /// Runs programs `lo..hi` and gives the status. What callers keep in registers and on the stack must be there after it.
    pub fn call(&mut self, lo: i64, hi: i64) -> u32 {
        let kept =
            [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15].map(number);
        for (n, &register) in kept.iter().enumerate() {
            self.registers[register] = 0x7777_0000 + n as u64;
        }
        let top = STACK + STACK_BYTES - 64;
        self.registers[number(Register::RSP)] = top - 8;
        self.at(top - 8, 8).copy_from_slice(&END.to_le_bytes());
        for (register, value) in
            [(Register::RDI, ARGUMENTS), (Register::RSI, 0), (Register::RDX, lo as u64), (Register::RCX, hi as u64)]
        {
            self.registers[number(register)] = value;
        }
        let code = self.regions[0].1.clone();
        let mut ip = CODE;
        for _ in 0..1_000_000 {
            if ip == END {
                assert!(!self.tiles.are_set(), "the registers were not given back");
                assert_eq!(self.registers[number(Register::RSP)], top);
                for (n, &register) in kept.iter().enumerate() {
                    assert_eq!(self.registers[register], 0x7777_0000 + n as u64, "a register that callers keep");
                }
                return self.registers[0] as u32;
            }
            let mut decoder = Decoder::with_ip(64, &code[(ip - CODE) as usize..], ip, DecoderOptions::NONE);
            let instruction = decoder.decode();
            ip = self.step(&instruction).unwrap_or(instruction.next_ip());
        }
        panic!("the kernel does not end");
    }

    /// An operand's value, of 8 bytes but for 32-bit registers and memory.
    fn operand(&mut self, i: &Instruction, n: u32) -> u64 {
        match i.op_kind(n) {
            OpKind::Register if (i.op_register(n) as usize) < Register::RAX as usize => {
                self.registers[number(i.op_register(n))] & 0xffff_ffff
            }
            OpKind::Register => self.registers[number(i.op_register(n))],
            OpKind::Memory => {
                let (address, bytes) = (address(i, self), i.memory_size().size());
                self.load(address, bytes)
            }
            _ => i.immediate(n),
        }
    }

    /// One instruction; where control goes, if not on.
    fn step(&mut self, i: &Instruction) -> Option<u64> {
        let rsp = number(Register::RSP);
        let to = |i: &Instruction| number(i.op0_register());
        match i.code() {
            Code::Push_r64 => {
                self.registers[rsp] -= 8;
                let (at, value) = (self.registers[rsp], self.registers[to(i)]);
                self.at(at, 8).copy_from_slice(&value.to_le_bytes());
            }
            Code::Pop_r64 => {
                let at = self.registers[rsp];
                self.registers[to(i)] = self.load(at, 8);
                self.registers[rsp] += 8;
            }
            Code::Retnq => {
                let at = self.registers[rsp];
                self.registers[rsp] += 8;
                return Some(self.load(at, 8));
            }
            Code::Mov_r64_rm64 | Code::Mov_r32_imm32 | Code::Mov_r64_imm64 | Code::Mov_rm64_imm32 => {
                self.registers[to(i)] = self.operand(i, 1);
            }
            Code::Lea_r64_m => self.registers[to(i)] = address(i, self),
            Code::Imul_r64_rm64 => self.registers[to(i)] = self.operand(i, 0).wrapping_mul(self.operand(i, 1)),
            Code::Imul_r64_rm64_imm32 | Code::Imul_r64_rm64_imm8 => {
                self.registers[to(i)] = self.operand(i, 1).wrapping_mul(self.operand(i, 2));
            }
            Code::Add_r64_rm64 | Code::Add_rm64_imm8 | Code::Add_rm64_imm32 | Code::Add_rm64_r64 => {
                self.registers[to(i)] = self.operand(i, 0).wrapping_add(self.operand(i, 1));
            }
            Code::Sub_r64_rm64 | Code::Sub_rm64_imm8 | Code::Sub_rm64_imm32 | Code::Sub_rm64_r64 => {
                self.registers[to(i)] = self.operand(i, 0).wrapping_sub(self.operand(i, 1));
            }
            Code::Or_rm64_imm8 => {
                let (address, word) = (address(i, self), self.operand(i, 0) | self.operand(i, 1));
                self.at(address, 8).copy_from_slice(&word.to_le_bytes());
            }
            Code::And_rm64_imm8 => self.registers[to(i)] = self.operand(i, 0) & self.operand(i, 1),
            Code::Shl_rm64_imm8 => self.registers[to(i)] = self.operand(i, 0) << self.operand(i, 1),
            Code::Cmp_r64_rm64 | Code::Cmp_rm64_r64 | Code::Cmp_rm64_imm8 | Code::Cmp_rm64_imm32 => {
                self.compared = (self.operand(i, 0) as i64, self.operand(i, 1) as i64);
            }
            Code::Jmp_rel32_64 | Code::Jmp_rel8_64 => return Some(i.near_branch_target()),
            Code::Jl_rel32_64 | Code::Jl_rel8_64 => {
                return (self.compared.0 < self.compared.1).then_some(i.near_branch_target());
            }
            Code::Jge_rel32_64 | Code::Jge_rel8_64 => {
                return (self.compared.0 >= self.compared.1).then_some(i.near_branch_target());
            }
            Code::VEX_Vzeroupper => {}
            _ => self.tile(i),
        }
        None
    }

    fn tile(&mut self, i: &Instruction) {
        let mut tiles = std::mem::replace(&mut self.tiles, Tiles::none());
        assert!(tiles.run(i, self), "{:?} is not known", i.code());
        self.tiles = tiles;
    }
}
