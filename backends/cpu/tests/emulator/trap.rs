//! Matrix registers, and AVX-VNNI, for a processor without them: its fault at each of their instructions is answered by doing what the
//! instruction does.
//!
//! Invariant: everything else that a kernel does, vectors too, is done by the processor itself, in the memory and on the stack that the kernel
//! was given. What faults for another reason faults.

#[path = "dots.rs"]
mod dots;

use super::tiles::{Around, Tiles};
use iced_x86::{Decoder, DecoderOptions, Register};
use std::cell::RefCell;
use std::sync::Once;

/// Longest of these instructions.
const LONGEST: usize = 12;

thread_local! {
    static TILES: RefCell<Tiles> = const { RefCell::new(Tiles::none()) };
}

/// The registers of a thread that stands at an instruction.
struct Thread<'a>(&'a libc::mcontext_t);

impl Around for Thread<'_> {
    fn register(&self, register: Register) -> u64 {
        let place = match register {
            Register::RAX => libc::REG_RAX,
            Register::RCX => libc::REG_RCX,
            Register::RDX => libc::REG_RDX,
            Register::RBX => libc::REG_RBX,
            Register::RSP => libc::REG_RSP,
            Register::RBP => libc::REG_RBP,
            Register::RSI => libc::REG_RSI,
            Register::RDI => libc::REG_RDI,
            Register::R8 => libc::REG_R8,
            Register::R9 => libc::REG_R9,
            Register::R10 => libc::REG_R10,
            Register::R11 => libc::REG_R11,
            Register::R12 => libc::REG_R12,
            Register::R13 => libc::REG_R13,
            Register::R14 => libc::REG_R14,
            Register::R15 => libc::REG_R15,
            other => panic!("{other:?}"),
        };
        self.0.gregs[place as usize] as u64
    }

    fn memory(&mut self, address: u64, bytes: usize) -> &mut [u8] {
        // SAFETY: the instruction would access these bytes; where they are not to be accessed, it faults here instead.
        unsafe { std::slice::from_raw_parts_mut(address as *mut u8, bytes) }
    }
}

/// Answers faults at unknown instructions from now on.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler has the type that the flag asks for, and stays.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            assert_eq!(libc::sigaction(libc::SIGILL, &action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn handle(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands the interrupted thread's own context to the handler alone.
    let context = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext };
    let ip = context.gregs[libc::REG_RIP as usize] as u64;
    // SAFETY: the code goes on after the instruction, at least with what leaves the function.
    let code = unsafe { std::slice::from_raw_parts(ip as *const u8, LONGEST) };
    let instruction = Decoder::with_ip(64, code, ip, DecoderOptions::NONE).decode();
    let done = dots::run(&instruction, context)
        || TILES.with(|tiles| tiles.borrow_mut().run(&instruction, &mut Thread(context)));
    if done {
        context.gregs[libc::REG_RIP as usize] = instruction.next_ip() as i64;
    } else {
        // SAFETY: back at the instruction, the default action ends the process.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}
