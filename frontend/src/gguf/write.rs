//! A file with some tensors stored otherwise, or with other tensors.
//!
//! Invariant: metadata that is not changed stays byte for byte, and tensors stay in their order.

use super::{Encoding, Gguf, TensorInfo};
use bytes::Bytes;
use std::collections::BTreeMap;

/// A tensor stored anew: its encoding and whole blocks.
pub type Replaced = (Encoding, Bytes);

/// A tensor of a new file.
#[derive(Clone, Debug)]
pub struct Written {
    /// Its name.
    pub name: String,
    /// Its encoding.
    pub encoding: Encoding,
    /// Dims, outermost first.
    pub shape: Vec<usize>,
    /// Whole blocks.
    pub bytes: Bytes,
}

/// The number of a 32-bit unsigned integer among the kinds of values.
const U32: u32 = 4;

/// The bytes of the file with these tensors, by their names in the file; nothing where one has not the size that its shape asks
/// for.
pub fn rewritten(file: &Gguf, replaced: &BTreeMap<String, Replaced>) -> Option<Vec<u8>> {
    let each = file.in_order().into_iter().map(|(name, info)| {
        let (encoding, bytes) = match replaced.get(name) {
            Some((encoding, bytes)) => (*encoding, bytes.clone()),
            None => (info.encoding, file.bytes(info)),
        };
        Written { name: name.clone(), encoding, shape: info.shape.clone(), bytes }
    });
    written(file, &BTreeMap::new(), &each.collect::<Vec<_>>())
}

/// The bytes of a file with the metadata of another one, of which `changed` are these whole numbers, and these tensors; nothing where
/// one has not the size that its shape asks for.
pub fn written(file: &Gguf, changed: &BTreeMap<String, u32>, tensors: &[Written]) -> Option<Vec<u8>> {
    let (entries, alignment) = file.entries();
    let unchanged = entries.into_iter().filter(|(key, _)| !changed.contains_key(*key));
    let kept: Vec<&[u8]> = unchanged.map(|(_, bytes)| bytes).collect();
    let mut out = Vec::new();
    out.extend_from_slice(b"GGUF");
    out.extend_from_slice(&3u32.to_le_bytes());
    out.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    out.extend_from_slice(&((kept.len() + changed.len()) as u64).to_le_bytes());
    kept.into_iter().for_each(|bytes| out.extend_from_slice(bytes));
    for (key, value) in changed {
        text(&mut out, key);
        out.extend_from_slice(&U32.to_le_bytes());
        out.extend_from_slice(&value.to_le_bytes());
    }
    let mut offset = 0usize;
    for Written { name, encoding, shape, bytes } in tensors {
        if encoding.bytes(shape.iter().product()) != Some(bytes.len()) {
            return None;
        }
        text(&mut out, name);
        out.extend_from_slice(&u32::try_from(shape.len()).ok()?.to_le_bytes());
        shape.iter().rev().for_each(|&d| out.extend_from_slice(&(d as u64).to_le_bytes()));
        out.extend_from_slice(&(*encoding as u32).to_le_bytes());
        out.extend_from_slice(&(offset as u64).to_le_bytes());
        offset = (offset + bytes.len()).next_multiple_of(alignment);
    }
    for tensor in tensors {
        out.resize(out.len().next_multiple_of(alignment), 0);
        out.extend_from_slice(&tensor.bytes);
    }
    Some(out)
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

impl Gguf {
    /// The tensors by their place in the file.
    pub fn in_order(&self) -> Vec<(&String, &TensorInfo)> {
        let mut all: Vec<_> = self.tensors().iter().collect();
        all.sort_by_key(|(_, info)| info.start());
        all
    }
}
