//! A file with some tensors stored otherwise.
//!
//! Invariant: metadata stays byte for byte, tensors stay in their order, and those that are not replaced keep their bytes.

use super::{Encoding, Gguf};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A tensor stored anew: its encoding and whole blocks.
pub type Replaced = (Encoding, Bytes);

/// The bytes of the file with these tensors, by their names in the file; nothing where one has not the size that its shape asks
/// for.
pub fn rewritten(file: &Gguf, replaced: &BTreeMap<String, Replaced>) -> Option<Vec<u8>> {
    let (entries, count, alignment) = file.entries();
    let tensors = file.in_order();
    let mut out = Vec::new();
    out.extend_from_slice(b"GGUF");
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(entries);
    let mut data: Vec<Bytes> = Vec::with_capacity(tensors.len());
    let mut offset = 0usize;
    for (name, info) in tensors {
        let (encoding, bytes) = match replaced.get(name) {
            Some((encoding, bytes)) => (*encoding, bytes.clone()),
            None => (info.encoding, file.bytes(info)),
        };
        if encoding.bytes(info.shape.iter().product()) != Some(bytes.len()) {
            return None;
        }
        out.extend_from_slice(&(name.len() as u64).to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&u32::try_from(info.shape.len()).ok()?.to_le_bytes());
        info.shape.iter().rev().for_each(|&d| out.extend_from_slice(&(d as u64).to_le_bytes()));
        out.extend_from_slice(&(encoding as u32).to_le_bytes());
        out.extend_from_slice(&(offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(alignment);
        data.push(bytes);
    }
    for bytes in data {
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend_from_slice(&bytes);
    }
    Some(out)
}
