//! Machine code as text, each distinct kernel once.
//!
//! Invariant: a listing says every instruction of its kernel, or it is not there and the page says why.

use iced_x86::{Decoder, DecoderOptions, FastFormatter, Instruction, OpKind};
use kiln::runtime::artifact::KernelEntry;
use std::collections::{BTreeSet, HashMap};
use std::fmt::Write;

/// Text of all listings together at most: a page must stay small enough to be sent by mail.
const MOST_BYTES: usize = 3 << 20;

/// Listings by where their code begins.
#[derive(Debug, Default)]
pub struct Listings {
    pub texts: Vec<String>,
    numbers: HashMap<u64, usize>,
    bytes: usize,
}

impl Listings {
    /// The number of a kernel's listing; nothing where there is no room left, or the code is for no x86-64.
    pub fn add(&mut self, code: &[u8], entry: &KernelEntry) -> Option<usize> {
        if let Some(&known) = self.numbers.get(&entry.offset) {
            return Some(known);
        }
        let start = usize::try_from(entry.offset).ok()?;
        let end = start.checked_add(usize::try_from(entry.bytes).ok()?)?;
        let text = disassembly(code.get(start..end)?)?;
        if self.bytes + text.len() > MOST_BYTES {
            return None;
        }
        self.bytes += text.len();
        self.texts.push(text);
        self.numbers.insert(entry.offset, self.texts.len() - 1);
        Some(self.texts.len() - 1)
    }
}

/// A line for each instruction; targets of jumps have a line of their own with the offset, and constants after the code are
/// left out.
#[cfg(target_arch = "x86_64")]
fn disassembly(code: &[u8]) -> Option<String> {
    let mut instructions: Vec<Instruction> = Vec::new();
    let mut targets = BTreeSet::new();
    // Constants follow the last return; what is loaded relative to the instruction pointer says where they begin.
    let mut end = code.len() as u64;
    let mut decoder = Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    while decoder.can_decode() && decoder.ip() < end {
        let i = decoder.decode();
        if jumps(&i) {
            targets.insert(i.near_branch_target());
        }
        if i.is_ip_rel_memory_operand() {
            end = end.min(i.ip_rel_memory_address());
        }
        instructions.push(i);
    }
    let mut formatter = FastFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(true);
    let (mut text, mut line) = (String::new(), String::new());
    for i in &instructions {
        if targets.contains(&i.ip()) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{:x}:", i.ip());
        }
        line.clear();
        if jumps(i) {
            let name = format!("{:?}", i.mnemonic()).to_lowercase();
            let _ = write!(line, "{name} {:x}", i.near_branch_target());
        } else {
            formatter.format(i, &mut line);
        }
        let _ = writeln!(text, " {line}");
    }
    Some(text)
}

fn jumps(i: &Instruction) -> bool {
    i.op_count() == 1 && i.op0_kind() == OpKind::NearBranch64
}

/// Code for other architectures has no listing.
#[cfg(not(target_arch = "x86_64"))]
fn disassembly(_: &[u8]) -> Option<String> {
    None
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn loops_have_names_and_constants_are_left_out() {
        // mov eax, [rip + 5]; dec eax; jnz -4; ret; then four bytes of data at 0xb.
        let code = [0x8b, 0x05, 5, 0, 0, 0, 0xff, 0xc8, 0x75, 0xfc, 0xc3, 1, 2, 3, 4];
        let text = disassembly(&code).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 5, "{text}");
        assert_eq!((lines[1], lines[2], lines[3], lines[4]), ("6:", " dec eax", " jne 6", " ret"));
    }

    #[test]
    fn equal_kernels_share_a_listing() {
        let code = [0xc3, 0xc3];
        let entry = |offset| KernelEntry {
            name: "k".into(),
            offset,
            bytes: 1,
            grain: 1,
            emitter: "wide".into(),
            programs: 1.into(),
        };
        let mut listings = Listings::default();
        assert_eq!([0, 1, 0, 7].map(|at| listings.add(&code, &entry(at))), [Some(0), Some(1), Some(0), None]);
        assert_eq!(listings.texts, [" ret\n", " ret\n"]);
    }
}
