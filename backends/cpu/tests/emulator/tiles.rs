//! Matrix registers and the instructions on them, from Intel's SDM, volumes 1 (chapter 18) and 2.

use iced_x86::{Code, Instruction, Register};

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

/// What an instruction sees of the machine around the registers.
pub trait Around {
    /// A register's value.
    fn register(&self, register: Register) -> u64;
    /// Memory at an address.
    fn memory(&mut self, address: u64, bytes: usize) -> &mut [u8];
}

/// The registers: none before they are configured and after they are given back.
pub struct Tiles(Option<Vec<Tile>>);

/// Numbers too small to be normal count as 0.
fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

fn bf16(bits: u16) -> f32 {
    flush(f32::from_bits(u32::from(bits) << 16))
}

/// The address of a memory operand.
pub fn address(i: &Instruction, around: &dyn Around) -> u64 {
    let part = |r: Register| if r == Register::None { 0 } else { around.register(r) };
    if i.is_ip_rel_memory_operand() {
        return i.memory_displacement64();
    }
    let index = part(i.memory_index()).wrapping_mul(u64::from(i.memory_index_scale()));
    part(i.memory_base()).wrapping_add(index).wrapping_add(i.memory_displacement64())
}

impl Tiles {
    pub const fn none() -> Tiles {
        Tiles(None)
    }

    /// Whether they are configured.
    pub fn are_set(&self) -> bool {
        self.0.is_some()
    }

    /// Runs one instruction; false where it is not one of these.
    pub fn run(&mut self, i: &Instruction, around: &mut dyn Around) -> bool {
        let register = |n: u32| i.op_register(n) as usize - Register::TMM0 as usize;
        match i.code() {
            Code::VEX_Ldtilecfg_m512 => {
                let at = address(i, around);
                let config = around.memory(at, 64).to_vec();
                assert_eq!(config[0], 1, "the palette");
                assert!(config[1..16].iter().chain(&config[32..48]).chain(&config[56..]).all(|&b| b == 0));
                let tile = |n: usize| Tile {
                    rows: usize::from(config[48 + n]),
                    row_bytes: usize::from(u16::from_le_bytes([config[16 + 2 * n], config[17 + 2 * n]])),
                    bytes: vec![0; 1024],
                };
                let tiles: Vec<Tile> = (0..8).map(tile).collect();
                assert!(tiles.iter().all(|t| t.rows <= 16 && t.row_bytes <= 64 && (t.rows == 0) == (t.row_bytes == 0)));
                self.0 = Some(tiles);
                return true;
            }
            Code::VEX_Tilerelease => {
                self.0 = None;
                return true;
            }
            Code::VEX_Tilezero_tmm
            | Code::VEX_Tileloadd_tmm_sibmem
            | Code::VEX_Tilestored_sibmem_tmm
            | Code::VEX_Tdpbf16ps_tmm_tmm_tmm
            | Code::VEX_Tdpbusd_tmm_tmm_tmm
            | Code::VEX_Tdpbsud_tmm_tmm_tmm => {}
            _ => return false,
        }
        let tiles = self.0.as_mut().unwrap_or_else(|| panic!("{:?} before a configuration", i.code()));
        match i.code() {
            Code::VEX_Tilezero_tmm => tiles[register(0)].bytes.fill(0),
            Code::VEX_Tileloadd_tmm_sibmem | Code::VEX_Tilestored_sibmem_tmm => {
                let load = i.code() == Code::VEX_Tileloadd_tmm_sibmem;
                let tile = &mut tiles[register(u32::from(!load))];
                assert!(tile.rows > 0);
                assert_ne!(i.memory_index(), Register::None, "the distance between rows");
                let stride = around.register(i.memory_index()) << i.memory_index_scale().trailing_zeros();
                let first = around.register(i.memory_base()).wrapping_add(i.memory_displacement64());
                for row in 0..tile.rows {
                    let memory = around.memory(first.wrapping_add(stride.wrapping_mul(row as u64)), tile.row_bytes);
                    let here = &mut tile.bytes[row * 64..row * 64 + tile.row_bytes];
                    if load { here.copy_from_slice(memory) } else { memory.copy_from_slice(here) }
                }
            }
            _ => {
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
        }
        true
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
