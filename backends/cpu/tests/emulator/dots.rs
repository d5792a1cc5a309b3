//! Dot products of bytes as AVX-VNNI has them, from Intel's SDM, volume 2C (VPDPBUSD), on the vector registers that a signal handler is given.

use super::Thread;
use crate::wide_support::tiles::{Around, address};
use iced_x86::{Code, Instruction, OpKind, Register};

/// Where the system keeps XMM registers, what of the rest is not zero, and the upper halves of YMM registers (SDM, volume 1, 13.4).
const LOW: usize = 160;
const PRESENT: usize = 512;
const HIGH: usize = 576;
/// Of what is not zero: upper halves.
const UPPER: u8 = 1 << 2;

/// The saved vector registers of a thread.
struct Vectors(*mut u8);

impl Vectors {
    fn bytes(&mut self, at: usize, count: usize) -> &mut [u8] {
        // SAFETY: a processor with AVX saves 256 bytes from `HIGH` on, and this stands at an instruction of AVX.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), count) }
    }

    fn read(&mut self, register: usize) -> [u8; 32] {
        let mut value = [0; 32];
        value[..16].copy_from_slice(self.bytes(LOW + 16 * register, 16));
        if self.bytes(PRESENT, 1)[0] & UPPER != 0 {
            value[16..].copy_from_slice(self.bytes(HIGH + 16 * register, 16));
        }
        value
    }

    fn write(&mut self, register: usize, value: [u8; 32]) {
        self.bytes(LOW + 16 * register, 16).copy_from_slice(&value[..16]);
        if self.bytes(PRESENT, 1)[0] & UPPER == 0 {
            self.bytes(HIGH, 256).fill(0);
            self.bytes(PRESENT, 1)[0] |= UPPER;
        }
        self.bytes(HIGH + 16 * register, 16).copy_from_slice(&value[16..]);
    }
}

/// Which vector register it is.
fn number(register: Register) -> usize {
    let first = if register.is_ymm() { Register::YMM0 } else { Register::XMM0 };
    register as usize - first as usize
}

/// Does the instruction; false where it is another one.
pub fn run(i: &Instruction, context: &libc::mcontext_t) -> bool {
    let bytes = match i.code() {
        Code::VEX_Vpdpbusd_xmm_xmm_xmmm128 => 16,
        Code::VEX_Vpdpbusd_ymm_ymm_ymmm256 => 32,
        _ => return false,
    };
    let mut vectors = Vectors(context.fpregs.cast());
    let (to, unsigned) = (number(i.op0_register()), vectors.read(number(i.op1_register())));
    let signed = match i.op2_kind() {
        OpKind::Register => vectors.read(number(i.op2_register())),
        _ => {
            let mut thread = Thread(context);
            let at = address(i, &thread);
            let mut value = [0; 32];
            value[..bytes].copy_from_slice(thread.memory(at, bytes));
            value
        }
    };
    let (onto, mut result) = (vectors.read(to), [0; 32]);
    for lane in (0..bytes).step_by(4) {
        let word = i32::from_le_bytes(onto[lane..lane + 4].try_into().unwrap());
        let products = (lane..lane + 4).map(|n| i32::from(unsigned[n]) * i32::from(signed[n] as i8));
        result[lane..lane + 4].copy_from_slice(&word.wrapping_add(products.sum()).to_le_bytes());
    }
    vectors.write(to, result);
    true
}
