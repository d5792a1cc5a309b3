//! An emulator of the instructions that kernels of matrix registers are made of.
//!
//! Invariant: every access lies in the code, the stack, the arguments or a buffer, which lie far apart; what is not known, an
//! instruction or an operand, ends the test. Written from Intel's SDM, volumes 1 (chapter 18) and 2.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};

const CODE: u64 = 0x10_0000;
const STACK: u64 = 0x40_0000;
const STACK_BYTES: u64 = 0x1_0000;
const ARGUMENTS: u64 = 0x80_0000;
const BUFFERS: u64 = 0x1000_0000;
const APART: u64 = 0x100_0000;
/// Where a kernel returns to.
const END: u64 = 0xdead_0000;

#[derive(Clone, Default)]
struct Tile {
    rows: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl Tile {
    fn word(&self, row: usize, column: usize) -> u32 {
        let at = row * 64 + column * 4;
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().unwrap())
    }

    fn set(&mut self, row: usize, column: usize, word: u32) {
        let at = row * 64 + column * 4;
        self.bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
}

pub struct Emulator {
    regions: Vec<(u64, Vec<u8>)>,
    registers: [u64; 16],
    /// Of the last comparison, as signed and as unsigned numbers.
    compared: (i64, i64),
    /// None before the registers are configured and after they are given back.
    tiles: Option<Vec<Tile>>,
}

fn number(register: Register) -> usize {
    let wide = register as usize >= Register::RAX as usize && register as usize <= Register::R15 as usize;
    let number = register as usize - if wide { Register::RAX } else { Register::EAX } as usize;
    assert!(number < 16, "{register:?}");
    number
}

/// Numbers too small to be normal count as 0.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn bf16(bits: u16) -> f32 {
    flush(f32::from_bits(u32::from(bits) << 16))
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
        Emulator { regions, registers: [0x5555_5555_5555; 16], compared: (0, 0), tiles: None }
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
                assert!(self.tiles.is_none(), "the registers were not given back");
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

    fn address(&self, i: &Instruction) -> u64 {
        let part = |r: Register| if r == Register::None { 0 } else { self.registers[number(r)] };
        if i.is_ip_rel_memory_operand() {
            return i.memory_displacement64();
        }
        let index = part(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale()));
        part(i.memory_base()).wrapping_add(index).wrapping_add(i.memory_displacement64())
    }

    /// An operand's value, of 8 bytes but for 32-bit registers and memory.
    fn operand(&mut self, i: &Instruction, n: u32) -> u64 {
        match i.op_kind(n) {
            OpKind::Register if (i.op_register(n) as usize) < Register::RAX as usize => {
                self.registers[number(i.op_register(n))] & 0xffff_ffff
            }
            OpKind::Register => self.registers[number(i.op_register(n))],
            OpKind::Memory => {
                let (address, bytes) = (self.address(i), i.memory_size().size());
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
            Code::Lea_r64_m => self.registers[to(i)] = self.address(i),
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
        let register = |n: u32| i.op_register(n) as usize - Register::TMM0 as usize;
        match i.code() {
            Code::VEX_Ldtilecfg_m512 => {
                let at = self.address(i);
                let config = self.at(at, 64).to_vec();
                assert_eq!(config[0], 1, "the palette");
                assert!(config[1..16].iter().chain(&config[32..48]).chain(&config[56..]).all(|&b| b == 0));
                let tile = |n: usize| Tile {
                    rows: usize::from(config[48 + n]),
                    row_bytes: usize::from(u16::from_le_bytes([config[16 + 2 * n], config[17 + 2 * n]])),
                    bytes: vec![0; 1024],
                };
                let tiles: Vec<Tile> = (0..8).map(tile).collect();
                assert!(tiles.iter().all(|t| t.rows <= 16 && t.row_bytes <= 64 && (t.rows == 0) == (t.row_bytes == 0)));
                self.tiles = Some(tiles);
                return;
            }
            Code::VEX_Tilerelease => {
                self.tiles = None;
                return;
            }
            _ => {}
        }
        let mut tiles = self.tiles.clone().unwrap_or_else(|| panic!("{:?} before a configuration", i.code()));
        match i.code() {
            Code::VEX_Tilezero_tmm => tiles[register(0)].bytes.fill(0),
            Code::VEX_Tileloadd_tmm_sibmem | Code::VEX_Tilestored_sibmem_tmm => {
                let load = i.code() == Code::VEX_Tileloadd_tmm_sibmem;
                let tile = &mut tiles[register(u32::from(!load))];
                assert!(tile.rows > 0);
                assert_ne!(i.memory_index(), Register::None, "the distance between rows");
                let stride = self.registers[number(i.memory_index())] << i.memory_index_scale().trailing_zeros();
                let first = self.registers[number(i.memory_base())].wrapping_add(i.memory_displacement64());
                for row in 0..tile.rows {
                    let memory = self.at(first.wrapping_add(stride.wrapping_mul(row as u64)), tile.row_bytes);
                    let here = &mut tile.bytes[row * 64..row * 64 + tile.row_bytes];
                    if load { here.copy_from_slice(memory) } else { memory.copy_from_slice(here) }
                }
            }
            Code::VEX_Tdpbf16ps_tmm_tmm_tmm | Code::VEX_Tdpbusd_tmm_tmm_tmm | Code::VEX_Tdpbsud_tmm_tmm_tmm => {
                let [sum, a, b] = [0, 1, 2].map(register);
                assert!(sum != a && sum != b && a != b);
                let (a, b, sum) = (tiles[a].clone(), tiles[b].clone(), &mut tiles[sum]);
                assert!(sum.rows == a.rows && sum.row_bytes == b.row_bytes && a.row_bytes == 4 * b.rows && b.rows > 0);
                for m in 0..sum.rows {
                    for n in 0..sum.row_bytes / 4 {
                        let words = (0..b.rows).map(|k| (a.word(m, k), b.word(k, n)));
                        let before = sum.word(m, n);
                        sum.set(m, n, dot(i.code(), before, words));
                    }
                }
            }
            other => panic!("{other:?} is not known"),
        }
        self.tiles = Some(tiles);
    }
}

fn dot(code: Code, sum: u32, words: impl Iterator<Item = (u32, u32)>) -> u32 {
    let signed = |word: u32, n: u32, has_sign: bool| {
        let byte = (word >> (8 * n)) as u8;
        if has_sign { i32::from(byte as i8) } else { i32::from(byte) }
    };
    if code == Code::VEX_Tdpbf16ps_tmm_tmm_tmm {
        let mut parts = [0.0f32; 2];
        for (a, b) in words {
            for (half, part) in parts.iter_mut().enumerate() {
                let (a, b) = (bf16((a >> (16 * half)) as u16), bf16((b >> (16 * half)) as u16));
                *part = flush(a.mul_add(b, *part));
            }
        }
        return flush(flush(f32::from_bits(sum)) + flush(parts[0] + parts[1])).to_bits();
    }
    let left_signed = code == Code::VEX_Tdpbsud_tmm_tmm_tmm;
    let each = |(a, b): (u32, u32)| (0..4).map(|n| signed(a, n, left_signed) * signed(b, n, !left_signed)).sum::<i32>();
    words.fold(sum as i32, |sum, two| sum.wrapping_add(each(two))) as u32
}
