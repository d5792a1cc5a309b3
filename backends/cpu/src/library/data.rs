//! The read-only data of a library: texts and tables of words.
//!
//! Invariant: equal texts are stored once; nothing in the data is an address, so it is the same wherever it is mapped.

use std::collections::HashMap;

/// Read-only data that grows.
#[derive(Debug, Default)]
pub(super) struct Data {
    pub bytes: Vec<u8>,
    texts: HashMap<String, u64>,
}

impl Data {
    /// Where a text is, which a zero byte ends. A zero byte within would end it early and becomes a question mark.
    pub fn text(&mut self, text: &str) -> u64 {
        if let Some(&at) = self.texts.get(text) {
            return at;
        }
        let at = self.bytes.len() as u64;
        self.bytes.extend(text.bytes().map(|b| if b == 0 { b'?' } else { b }));
        self.bytes.push(0);
        self.texts.insert(text.to_string(), at);
        at
    }

    /// Where a table of words is; its first byte is a multiple of 8.
    pub fn words(&mut self, words: &[i64]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.bytes.len() as u64;
        self.bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        at
    }

    /// Where a table of 32-bit words is.
    pub fn halves(&mut self, words: &[u32]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let at = self.bytes.len() as u64;
        self.bytes.extend(words.iter().flat_map(|w| w.to_le_bytes()));
        at
    }
}
