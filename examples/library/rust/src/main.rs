//! Runs a model that is linked in: bytes of its first input on stdin to bytes of its first output on stdout.

use std::ffi::{CStr, c_char, c_void};
use std::io::{Read, Write};
use std::process::ExitCode;
use std::ptr;

/// `kiln_context` of the header.
#[repr(C)]
struct Context([u64; 8]);

unsafe extern "C" {
    fn net_arena_bytes(dims: *const i64) -> u64;
    fn net_input_bytes(n: u32, dims: *const i64) -> u64;
    fn net_output_bytes(n: u32, dims: *const i64) -> u64;
    fn net_init(context: *mut Context, options: *const c_void, message: *mut c_char, bytes: u64) -> i32;
    fn net_run(
        context: *const Context,
        inputs: *const *const c_void,
        outputs: *const *mut c_void,
        dims: *const i64,
        arena: *mut c_void,
        arena_bytes: u64,
        message: *mut c_char,
        message_bytes: u64,
    ) -> i32;
}

fn main() -> ExitCode {
    // Free dims, if there are any, are 1.
    let dims = [1i64; 8];
    let dims = dims.as_ptr();
    // SAFETY: the functions read the dims, of which no model here has more than eight.
    let sizes = unsafe { [net_input_bytes(0, dims), net_output_bytes(0, dims), net_arena_bytes(dims)] };
    let [mut input, mut output, mut arena] = sizes.map(|bytes| vec![0u8; bytes as usize]);
    if let Err(e) = std::io::stdin().read_exact(&mut input) {
        eprintln!("the input: {e}");
        return ExitCode::from(2);
    }
    let (mut context, mut message) = (Context([0; 8]), [0u8; 200]);
    let (text, bytes) = (message.as_mut_ptr().cast::<c_char>(), message.len() as u64);
    // SAFETY: context, message, arena, input and output are of the sizes that the library states and live through the calls.
    let status = unsafe {
        let (from, to) = ([input.as_ptr().cast::<c_void>()], [output.as_mut_ptr().cast::<c_void>()]);
        match net_init(&mut context, ptr::null(), text, bytes) {
            0 => net_run(&context, from.as_ptr(), to.as_ptr(), dims, arena.as_mut_ptr().cast(), sizes[2], text, bytes),
            status => status,
        }
    };
    if status != 0 {
        let said = CStr::from_bytes_until_nul(&message).map(CStr::to_string_lossy).unwrap_or_default();
        eprintln!("{said}");
        return ExitCode::from(status as u8);
    }
    match std::io::stdout().write_all(&output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
