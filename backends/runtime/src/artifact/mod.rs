//! The `.kiln` container: one safetensors file that holds a compiled model.
//!
//! Invariants: no byte of a file can change without the reader noticing before it uses any of it;
//! the file is a function of what is written (no time, no path, no map order); and a file appears
//! under its name complete or not at all.
//!
//! # Format, version 1
//! A safetensors file (8 bytes of little-endian header length, JSON header, data), so any
//! safetensors reader can list and extract the parts. The header begins with exactly
//!
//! ```text
//! {"__metadata__":{"format":"kiln","format_version":"1","header_blake3":"<64 hex digits>",
//! ```
//!
//! (without the line break), which makes it recognisable without parsing. `header_blake3` is the
//! BLAKE3 hash of everything before the data (the length included) with its own digits replaced by
//! `0`. The rest of `__metadata__`, sorted by key:
//!
//! - `blake3.<section>`: the hash of that section's bytes,
//! - `compiler`: the version that wrote the file,
//! - `option.<name>`: how it was told to compile,
//! - `hash.<name>`: the hash of something it was made from.
//!
//! Each section is a one-dimensional U8 tensor that starts on a 64-byte boundary *of the file*, so
//! that a mapping can be used in place. Sections are stored in the order of their names. Because
//! safetensors allows no gaps, the space between two sections is a tensor `pad.<n>` of zero bytes,
//! which the reader checks; the header ends in spaces for the same reason.
//!
//! The hashes find damage, not malice: an artifact holds machine code, and running one is as
//! trusting as running any other program.

mod kernels;
mod read;
mod sniff;
mod write;

pub use kernels::{KernelEntry, KernelTable, KernelTableError};
pub use read::{Artifact, ArtifactError, LoadOptions};
pub use sniff::{describe, is_artifact};
pub use write::{Manifest, Section, WriteError, replace, to_buffer, write, write_to};

use crate::cpu::CpuLevel;

/// The newest format this build writes and reads.
pub const FORMAT_VERSION: u32 = 1;

/// Every section starts on a multiple of this many bytes in the file.
pub const SECTION_ALIGNMENT: u64 = crate::memory::ALIGNMENT as u64;

/// The section with the plan's text.
pub const PLAN: &str = "plan";

/// The section with what the compiler says of its decisions and of the model's types, for reports and for reading files of
/// inputs; the engine reads nothing of it.
pub const NOTES: &str = "notes";

/// The section with all weights, in the layout the plan states.
pub const WEIGHTS: &str = "weights";

/// The section with seeded inputs and their expected outputs, for the self-test.
pub const GOLDEN: &str = "golden";

/// The section with the bill of materials, SPDX as JSON.
pub const SBOM: &str = "sbom";

/// The name of an entry's section: an artifact may hold several programs over one section of weights, each with a plan, notes,
/// code and kernels of its own. The sections of the first entry, which has no name, are named as they are here; those of another one
/// begin with `entry.NAME.`.
pub fn of_entry(entry: &str, section: &str) -> String {
    if entry.is_empty() { section.to_string() } else { format!("{ENTRY}{entry}.{section}") }
}

const ENTRY: &str = "entry.";

/// The section with the machine code of a level.
pub fn code_section(level: CpuLevel) -> String {
    format!("code.{level}")
}

/// The section with the [`KernelTable`] of a level.
pub fn kernels_section(level: CpuLevel) -> String {
    format!("kernels.{level}")
}

/// The header is bounded so that a damaged length cannot make the reader work for long.
const MAX_HEADER_BYTES: u64 = 16 << 20;

const LENGTH_BYTES: usize = 8;
const PREFIX: &[u8] = br#"{"__metadata__":{"format":"kiln","format_version":""#;
const HASH_KEY: &[u8] = br#"","header_blake3":""#;
const HASH_DIGITS: usize = 2 * blake3::OUT_LEN;
const PAD: &str = "pad.";

/// The header's hash, given its bytes with the length and where its own digits are.
fn header_hash(length_and_header: &[u8], digits: std::ops::Range<usize>) -> Option<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(length_and_header.get(..digits.start)?);
    hasher.update(&[b'0'; HASH_DIGITS]);
    hasher.update(length_and_header.get(digits.end..)?);
    Some(hasher.finalize())
}

#[cfg(test)]
mod tests;
